//! Room at the outer edges: how much memory the tables take, how much waits to be applied, and who waits until it is less (rule O3).

use crate::mailbox::Mailbox;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Bytes that may be durable and not applied before the edges wait.
const WAITING_BYTES_MAX: u64 = 32 << 20;

/// Edges wait for the sum over all workers.
pub(crate) struct Gate {
    bytes_max: u64,
    /// What the tables of each worker take, written by it.
    tables: Vec<AtomicU64>,
    mailboxes: Vec<Mailbox>,
    /// What the running checkpoint has encoded, written by the checkpointer.
    checkpoint: AtomicU64,
    /// Checkpoints find no room on the disk.
    is_disk_full: AtomicBool,
    room: Notify,
}

impl Gate {
    pub(crate) fn new(mailboxes: Vec<Mailbox>, bytes_max: u64) -> Self {
        Self {
            bytes_max,
            tables: mailboxes.iter().map(|_| AtomicU64::new(0)).collect(),
            mailboxes,
            checkpoint: AtomicU64::new(0),
            is_disk_full: AtomicBool::new(false),
            room: Notify::new(),
        }
    }

    /// What the tables of one worker take now. To be called after entries were applied, too.
    pub(crate) fn set(&self, worker: usize, bytes: u64) {
        self.tables[worker].store(bytes, Ordering::Relaxed);
        self.open_if_room();
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
    }

    fn has_room(&self) -> bool {
        if self.is_disk_full.load(Ordering::Relaxed) {
            return false;
        }
        let checkpoint = self.checkpoint.load(Ordering::Relaxed);
        let tables: u64 = self.tables.iter().map(|b| b.load(Ordering::Relaxed)).sum();
        let waiting: u64 = self.mailboxes.iter().map(Mailbox::waiting_bytes).sum();
        tables + waiting + checkpoint <= self.bytes_max && waiting <= WAITING_BYTES_MAX.min(self.bytes_max / 4)
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
}
