//! Waiting for something to come true: never for a fixed time, always with a bound.

use anyhow::{Result, bail};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until `look` finds something. Its error says why there is nothing yet, and becomes the message when time is up.
pub(crate) async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(reason) if Instant::now() >= deadline => bail!("waited {limit:?} for {what}: {reason:#}"),
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}
