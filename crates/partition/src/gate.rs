//! Room in memory: how much the tables take, how much waits to be applied, and who waits until it is less.
//!
//! Owns: two thresholds. At the first one the outer edges wait (rule O3). At the second one, above it, attempts neither start nor read
//! on: only checkpoints free that memory, and they wait for nobody. Does not own: when a checkpoint is due (`housekeeping`).

use crate::mailbox::Mailbox;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Bytes that may be durable and not applied before the edges wait.
const WAITING_BYTES_MAX: u64 = 32 << 20;

/// Attempts wait beyond this many hundredths of the bound at which the edges wait.
const ATTEMPTS_PERCENT: u64 = 125;

/// Goes by the sum over all workers.
pub(crate) struct Gate {
    bytes_max: u64,
    /// What the tables of each worker take, written by it.
    tables: Vec<AtomicU64>,
    mailboxes: Vec<Mailbox>,
    /// What the running checkpoint has encoded, written by the checkpointer.
    checkpoint: AtomicU64,
    /// Checkpoints find no room on the disk.
    is_disk_full: AtomicBool,
    /// The node has stopped: nobody waits any more.
    has_ended: AtomicBool,
    room: Notify,
    attempts_room: Notify,
    /// Attempts found no room since this was last looked at.
    attempts_wait: AtomicBool,
}

impl Gate {
    pub(crate) fn new(mailboxes: Vec<Mailbox>, bytes_max: u64) -> Self {
        Self {
            bytes_max,
            tables: mailboxes.iter().map(|_| AtomicU64::new(0)).collect(),
            mailboxes,
            checkpoint: AtomicU64::new(0),
            is_disk_full: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            room: Notify::new(),
            attempts_room: Notify::new(),
            attempts_wait: AtomicBool::new(false),
        }
    }

    /// What the tables of one worker take now. To be called after entries were applied, too. Whether attempts that found no room
    /// may ask again.
    pub(crate) fn set(&self, worker: usize, bytes: u64) -> bool {
        self.tables[worker].store(bytes, Ordering::SeqCst);
        self.open_if_room();
        self.has_attempts_room() && self.attempts_wait.swap(false, Ordering::SeqCst)
    }

    /// What the running checkpoint takes besides the layers that it writes, and whether the disk has no room for it.
    pub(crate) fn set_checkpoint(&self, bytes: u64, is_disk_full: bool) {
        self.checkpoint.store(bytes, Ordering::Relaxed);
        self.is_disk_full.store(is_disk_full, Ordering::Relaxed);
        self.open_if_room();
    }

    fn open_if_room(&self) {
        if self.has_room() {
            self.room.notify_waiters();
        }
        if self.has_attempts_room() {
            self.attempts_room.notify_waiters();
        }
    }

    fn has_room(&self) -> bool {
        if self.has_ended.load(Ordering::Relaxed) {
            return true;
        }
        let waiting = self.waiting_bytes();
        !self.is_disk_full.load(Ordering::Relaxed)
            && self.bytes(waiting) <= self.bytes_max
            && waiting <= WAITING_BYTES_MAX.min(self.bytes_max / 4)
    }

    /// Whether attempts may start and read on. Where not, [`Self::set`] says when to ask again.
    pub(crate) fn try_attempts(&self) -> bool {
        if self.has_attempts_room() {
            return true;
        }
        self.attempts_wait.store(true, Ordering::SeqCst);
        // Either this sees the room that was made meanwhile, or whoever made it sees that it is wanted.
        self.has_attempts_room()
    }

    fn has_attempts_room(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
            || self.bytes(self.waiting_bytes()) <= self.bytes_max.saturating_mul(ATTEMPTS_PERCENT) / 100
    }

    fn waiting_bytes(&self) -> u64 {
        self.mailboxes.iter().map(Mailbox::waiting_bytes).sum()
    }

    fn bytes(&self, waiting: u64) -> u64 {
        let tables: u64 = self.tables.iter().map(|b| b.load(Ordering::SeqCst)).sum();
        tables + waiting + self.checkpoint.load(Ordering::Relaxed)
    }

    /// The node has stopped: those who wait find out elsewhere.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        self.open_if_room();
    }

    /// Completes while tables and what waits for them are within their bounds. Events of running invocations do not come this way.
    pub(crate) async fn wait(&self) {
        loop {
            let room = self.room.notified();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// Completes while attempts may read on.
    pub(crate) async fn wait_attempts(&self) {
        loop {
            let room = self.attempts_room.notified();
            if self.has_attempts_room() {
                return;
            }
            room.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use surefoot_env::Wake;

    fn is_ready(wait: impl Future<Output = ()>) -> bool {
        pin!(wait).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn gate(bytes_max: u64) -> Gate {
        Gate::new(vec![Mailbox::new(Wake::new())], bytes_max)
    }

    #[test]
    fn attempts_go_on_beyond_the_bound_of_the_edges_and_stop_at_their_own() {
        let gate = gate(1_000);
        for (bytes, edges, attempts) in [(1_000, true, true), (1_001, false, true), (1_250, false, true), (1_251, false, false)] {
            gate.set(0, bytes);
            assert_eq!((is_ready(gate.wait()), is_ready(gate.wait_attempts())), (edges, attempts), "{bytes}");
        }
    }

    #[test]
    fn attempts_that_found_no_room_are_told_once_to_ask_again() {
        let gate = gate(1_000);
        gate.set(0, 2_000);
        assert!(!gate.try_attempts());
        assert!(!gate.set(0, 1_500), "there is none yet");
        assert!(gate.set(0, 1_000));
        assert!(!gate.set(0, 1_000), "nobody asked since");
        assert!(gate.try_attempts());
    }

    #[test]
    fn nobody_waits_for_a_node_that_has_stopped() {
        let gate = gate(1_000);
        gate.set(0, 5_000);
        let (mut edge, mut attempt) = (Box::pin(gate.wait()), Box::pin(gate.wait_attempts()));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(edge.as_mut().poll(&mut cx).is_pending() && attempt.as_mut().poll(&mut cx).is_pending());
        gate.end();
        assert!(edge.as_mut().poll(&mut cx).is_ready() && attempt.as_mut().poll(&mut cx).is_ready());
    }
}
