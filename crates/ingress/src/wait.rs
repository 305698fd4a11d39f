//! Waiting at the edge: for a bounded time, and without a timer where nothing has to be waited for.
//!
//! Does not own: what is waited for.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use surefoot_env::Clock;

/// How long a request waits for room before it is refused (rule R2).
pub(crate) const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long it waits for the tables while it holds room of large bodies: those that wait for that room wait longer (rule O8).
pub(crate) const HOLDING_WAIT_MAX: Duration = Duration::from_secs(5);

/// The output of a future that need not be waited for. It is not dropped when it has none.
pub(crate) async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The output of a future that completes within the limit. It is dropped when it does not.
pub(crate) async fn within<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    if let Some(output) = at_once(future.as_mut()).await {
        return Some(output);
    }
    tokio::select! {
        biased;
        // Dropped midway: the caller has said what it is.
        output = future => Some(output),
        // A timer has nothing to lose.
        () = clock.sleep(limit) => None,
    }
}
