//! Two durable programs, for any server that speaks the service protocol.

mod delivery_tracker;
mod social;
mod user_feed;

pub use delivery_tracker::DeliveryTracker;
pub use social::Social;
pub use user_feed::UserFeed;

use anyhow::Context;
use restate_sdk::prelude::{Endpoint, HttpServer};
use std::time::Duration;
use tokio::net::TcpListener;

/// Where the handlers listen, and whom they talk to.
#[derive(Debug, Clone)]
pub struct Settings {
    pub port: u16,
    /// The sleep between two looks at a post's status.
    pub poll_interval: Duration,
    pub social: Social,
}

impl Settings {
    /// `PORT` (9080), `POLL_INTERVAL_MS` (5000) and `SOCIAL_URL` (a stand-in in this process).
    pub fn from_environment() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let port = variable("PORT").map_or(Ok(9080), |port| port.parse()).context("read PORT")?;
        let interval = variable("POLL_INTERVAL_MS").map_or(Ok(5000), |ms| ms.parse()).context("read POLL_INTERVAL_MS")?;
        let social = variable("SOCIAL_URL").map_or_else(Social::stand_in, Social::at);
        Ok(Self { port, poll_interval: Duration::from_millis(interval), social })
    }
}

/// Serves both programs on loopback until the process ends.
pub async fn serve(settings: Settings) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", settings.port)).await.context("listen")?;
    let feed = UserFeed { social: settings.social, poll_interval: settings.poll_interval };
    HttpServer::new(Endpoint::builder().bind(feed).bind(DeliveryTracker).build()).serve(listener).await;
    Ok(())
}
