package example;

import dev.restate.sdk.ObjectContext;
import dev.restate.sdk.SharedObjectContext;
import dev.restate.sdk.annotation.Handler;
import dev.restate.sdk.annotation.Shared;
import dev.restate.sdk.annotation.VirtualObject;
import dev.restate.sdk.common.StateKey;
import dev.restate.serde.TypeRef;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/**
 * One feed per user. Posts of one user are processed one at a time, in order; users do not wait for
 * each other.
 */
@VirtualObject
public class UserFeed {
  private static final Duration POLL_INTERVAL =
      Duration.ofMillis(Long.parseLong(System.getenv().getOrDefault("POLL_INTERVAL_MS", "5000")));
  private static final StateKey<List<String>> FEED = StateKey.of("feed", new TypeRef<List<String>>() {});

  /** Publishes a post, waits until the social network has processed it, and adds it to the feed. */
  @Handler
  public void processPost(ObjectContext ctx, Social.Post post) {
    String user = ctx.key();

    String postId = ctx.run("create post", String.class, () -> Social.createPost(user, post));

    while (ctx.run("get status", String.class, () -> Social.getStatus(postId)).equals("PENDING")) {
      ctx.sleep(POLL_INTERVAL);
    }

    ctx.run("update feed", () -> Social.updateFeed(user, postId));

    List<String> feed = new ArrayList<>(ctx.get(FEED).orElse(List.of()));
    feed.add(post.id());
    ctx.set(FEED, feed);
  }

  /** The ids of the posts that were processed, oldest first. */
  @Shared
  public List<String> getFeed(SharedObjectContext ctx) {
    return ctx.get(FEED).orElse(List.of());
  }
}
