//! Room at the outer edges: how much memory the tables take, and who waits until it is less (rule O3).

use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// One number per worker, written by it; edges wait for their sum.
pub(crate) struct Gate {
    bytes_max: u64,
    bytes: Vec<AtomicU64>,
    room: Notify,
}

impl Gate {
    pub(crate) fn new(workers: usize, bytes_max: u64) -> Self {
        Self { bytes_max, bytes: (0..workers).map(|_| AtomicU64::new(0)).collect(), room: Notify::new() }
    }

    /// What the tables of one worker take now.
    pub(crate) fn set(&self, worker: usize, bytes: u64) {
        self.bytes[worker].store(bytes, Ordering::Relaxed);
        if self.has_room() {
            self.room.notify_waiters();
        }
    }

    fn has_room(&self) -> bool {
        self.bytes.iter().map(|b| b.load(Ordering::Relaxed)).sum::<u64>() <= self.bytes_max
    }

    /// Completes while the tables are within their bound. Events of running invocations do not come this way.
    pub(crate) async fn wait(&self) {
        loop {
            let room = self.room.notified();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }
}
