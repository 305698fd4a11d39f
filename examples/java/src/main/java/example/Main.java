package example;

import dev.restate.sdk.endpoint.Endpoint;
import dev.restate.sdk.http.vertx.RestateHttpServer;

/** Serves the user feed and the delivery tracker. */
public class Main {
  public static void main(String[] args) {
    int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "9080"));
    RestateHttpServer.listen(Endpoint.bind(new UserFeed()).bind(new DeliveryTracker()), port);
  }
}
