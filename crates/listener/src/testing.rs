//! What this room's tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use surefoot_env::{BoxFuture, Clock};
use tokio::sync::Notify;

/// A clock that goes on when it is told, and whose timers are then all due.
#[derive(Clone, Default)]
pub(crate) struct ToldClock {
    due: Arc<Notify>,
    seconds: Arc<AtomicU64>,
}

impl ToldClock {
    pub(crate) fn due(&self) {
        self.due.notify_waiters();
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
        self.due();
    }
}

impl Clock for ToldClock {
    fn now_ms(&self) -> u64 {
        0
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.seconds.load(Ordering::Relaxed))
    }

    fn sleep(&self, _: Duration) -> BoxFuture {
        let due = self.due.clone();
        Box::pin(async move { due.notified().await })
    }
}
