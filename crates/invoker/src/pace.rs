//! How soon a deployment answers at best, and which answers have queued, here or at the deployment.
//!
//! Owns: what windows of attempts without an answer go by, those of a deployment that was out of reach (`reach`) and those of sleepers
//! that timers have resumed (`partition`): a call queues behind such an attempt as its answer does. Does not own: the size of a window.

use std::time::Duration;

/// Attempts of a node that may be under way in a window without an answer, however slow the answers are. It takes so many to keep a few
/// cores busy.
pub const WINDOW_MIN: usize = 64;
/// One without an answer counts for so long: so many go on in any case.
pub const COUNTS: Duration = Duration::from_millis(100);
/// An answer that comes so much later than the fastest one of its deployment has queued, in milliseconds.
const QUEUED_MS: u64 = 10;
/// The fastest answer is the fastest of one or two periods of so many milliseconds.
const FASTEST_PERIOD_MS: u64 = 10_000;

/// How soon a deployment answers.
#[derive(Debug)]
pub struct AnswerPace {
    /// The fastest of this period, and of the one before.
    fastest_ms: [u64; 2],
    period_since_ms: u64,
}

impl AnswerPace {
    pub fn new(now_ms: u64) -> Self {
        Self { fastest_ms: [u64::MAX; 2], period_since_ms: now_ms }
    }

    /// An answer took so long: whether it has not queued.
    pub fn is_in_time(&mut self, took_ms: u64, now_ms: u64) -> bool {
        if self.period_since_ms + FASTEST_PERIOD_MS <= now_ms {
            (self.fastest_ms, self.period_since_ms) = ([u64::MAX, self.fastest_ms[0]], now_ms);
        }
        self.fastest_ms[0] = self.fastest_ms[0].min(took_ms);
        took_ms - self.fastest_ms[0].min(self.fastest_ms[1]) <= QUEUED_MS
    }

    /// No answer was told for so long that nothing of what is known counts any more.
    pub fn is_forgotten(&self, now_ms: u64) -> bool {
        self.period_since_ms + 2 * FASTEST_PERIOD_MS <= now_ms
    }
}
