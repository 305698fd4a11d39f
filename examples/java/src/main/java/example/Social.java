package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;

/**
 * The social network that the user feed talks to: the service at SOCIAL_URL, or a stand-in that
 * answers in this process.
 */
final class Social {
  record Post(String id, String content) {}

  private static final String SOCIAL_URL = System.getenv("SOCIAL_URL");
  private static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
  private static final ObjectMapper JSON = new ObjectMapper();

  static String createPost(String user, Post post) throws Exception {
    if (SOCIAL_URL == null) return UUID.randomUUID().toString();
    var body = Map.of("user", user, "id", post.id(), "content", post.content());
    return request("POST", "/posts", body).get("postId").asText();
  }

  static String getStatus(String postId) throws Exception {
    if (SOCIAL_URL == null) return ThreadLocalRandom.current().nextBoolean() ? "PENDING" : "DONE";
    return request("GET", "/posts/" + segment(postId) + "/status", null).get("status").asText();
  }

  static void updateFeed(String user, String postId) throws Exception {
    if (SOCIAL_URL != null) request("POST", "/feeds/" + segment(user), Map.of("postId", postId));
  }

  private static JsonNode request(String method, String path, Object body) throws Exception {
    var publisher = body == null ? BodyPublishers.noBody() : BodyPublishers.ofByteArray(JSON.writeValueAsBytes(body));
    var request =
        HttpRequest.newBuilder(URI.create(SOCIAL_URL + path))
            .method(method, publisher)
            .header("content-type", "application/json")
            .build();
    var response = CLIENT.send(request, BodyHandlers.ofByteArray());
    if (response.statusCode() >= 300) throw new IOException(method + " " + path + ": status " + response.statusCode());
    return JSON.readTree(response.body());
  }

  private static String segment(String text) {
    return URLEncoder.encode(text, StandardCharsets.UTF_8).replace("+", "%20");
  }
}
