//! Time. Wall time stamps and orders; monotonic time measures. Does not own: timers of the product (they live in state).

use crate::BoxFuture;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync {
    /// Wall-clock time in milliseconds since the Unix epoch. May jump in either direction.
    fn now_ms(&self) -> u64;
    /// Time since an arbitrary start. Never goes back.
    fn monotonic(&self) -> Duration;
    /// Completes once `duration` of monotonic time has passed. Dropping it cancels.
    fn sleep(&self, duration: Duration) -> BoxFuture;
}

/// The operating system's clocks, and tokio's timer.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture {
        Box::pin(tokio::time::sleep(duration))
    }
}
