//! The user feed: one durable execution per post, one post of a user at a time.

use crate::social::{Post, Social, Status};
use restate_sdk::prelude::*;
use std::time::Duration;

const FEED: &str = "feed";

/// One feed per user. Posts of one user are processed one at a time, in order; users do not wait for each other.
pub struct UserFeed {
    pub social: Social,
    pub poll_interval: Duration,
}

#[object(name = "UserFeed")]
impl UserFeed {
    /// Publishes a post, waits until the social network has processed it, and adds it to the user's feed.
    #[handler(name = "processPost")]
    async fn process_post(&self, ctx: ObjectContext<'_>, Json(post): Json<Post>) -> Result<(), HandlerError> {
        let user = ctx.key();

        let post_id = ctx.run(async || Ok(self.social.create_post(user, &post).await?)).name("create post").await?;

        while self.status(&ctx, &post_id).await? == Status::Pending {
            ctx.sleep(self.poll_interval).await?;
        }

        ctx.run(async || Ok(self.social.update_feed(user, &post_id).await?)).name("update feed").await?;

        let Json(mut feed) = ctx.get::<Json<Vec<String>>>(FEED).await?.unwrap_or_default();
        feed.push(post.id.clone());
        ctx.set(FEED, Json(feed));
        Ok(())
    }

    /// The ids of the posts that were processed, oldest first.
    #[handler(name = "getFeed")]
    async fn get_feed(&self, ctx: SharedObjectContext<'_>) -> Result<Json<Vec<String>>, HandlerError> {
        Ok(ctx.get(FEED).await?.unwrap_or_default())
    }
}

impl UserFeed {
    async fn status(&self, ctx: &ObjectContext<'_>, post_id: &str) -> Result<Status, TerminalError> {
        let Json(status) = ctx.run(async || Ok(Json(self.social.status(post_id).await?))).name("get status").await?;
        Ok(status)
    }
}
