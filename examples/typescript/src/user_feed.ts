import * as restate from "@restatedev/restate-sdk";
import * as social from "./social.ts";

const POLL_INTERVAL_MS = Number(process.env.POLL_INTERVAL_MS ?? 5000);

type State = { feed: string[] };

/** One feed per user. Posts of one user are processed one at a time, in order; users do not wait for each other. */
export const userFeed = restate.object({
  name: "UserFeed",
  handlers: {
    /** Publishes a post, waits until the social network has processed it, and adds it to the user's feed. */
    processPost: async (ctx: restate.ObjectContext<State>, post: social.Post): Promise<void> => {
      const user = ctx.key;

      const postId = await ctx.run("create post", () => social.createPost(user, post));

      while ((await ctx.run("get status", () => social.getStatus(postId))) === "PENDING") {
        await ctx.sleep(POLL_INTERVAL_MS);
      }

      await ctx.run("update feed", () => social.updateFeed(user, postId));

      const feed = (await ctx.get("feed")) ?? [];
      ctx.set("feed", [...feed, post.id]);
    },

    /** The ids of the posts that were processed, oldest first. */
    getFeed: restate.handlers.object.shared(
      async (ctx: restate.ObjectSharedContext<State>): Promise<string[]> => (await ctx.get("feed")) ?? [],
    ),
  },
});
