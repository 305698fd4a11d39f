"""The user feed: one durable execution per post, one post of a user at a time."""

import os
from datetime import timedelta

from restate import ObjectContext, ObjectSharedContext, VirtualObject

import social

POLL_INTERVAL = timedelta(milliseconds=int(os.environ.get("POLL_INTERVAL_MS", "5000")))

# One feed per user. Posts of one user are processed one at a time, in order; users do not wait for each other.
user_feed = VirtualObject("UserFeed")


@user_feed.handler("processPost")
async def process_post(ctx: ObjectContext, post: social.Post) -> None:
    """Publishes a post, waits until the social network has processed it, and adds it to the user's feed."""
    user = ctx.key()

    post_id = await ctx.run_typed("create post", social.create_post, user=user, post=post)

    while await ctx.run_typed("get status", social.get_status, post_id=post_id) == "PENDING":
        await ctx.sleep(POLL_INTERVAL)

    await ctx.run_typed("update feed", social.update_feed, user=user, post_id=post_id)

    feed = await ctx.get("feed", type_hint=list[str]) or []
    ctx.set("feed", [*feed, post["id"]])


@user_feed.handler("getFeed", kind="shared")
async def get_feed(ctx: ObjectSharedContext) -> list[str]:
    """The ids of the posts that were processed, oldest first."""
    return await ctx.get("feed", type_hint=list[str]) or []
