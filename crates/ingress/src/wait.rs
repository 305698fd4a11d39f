//! Waiting at the edge: for a bounded time, and without a timer where nothing has to be waited for.
//!
//! Does not own: what is waited for.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use surefoot_env::Clock;

/// How long a request waits for room before it is refused (rule R2).
pub(crate) const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

/// The output of a future that completes within the limit. It is dropped when it does not.
pub(crate) async fn within<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let at_once = poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    });
    if let Some(output) = at_once.await {
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
