//! Room: how much memory the tables take, how much waits to be applied, how much of the disk is free, and who waits until it is less.
//!
//! Owns: marks of memory, and what follows from those of the disk. At one mark the outer edges wait (rules O3, R2), at one above it attempts
//! neither start nor read on: only checkpoints free that memory, and they wait for nobody. Both are lower for deployments that have brought
//! much lately, and between the lower pair and the higher one nothing is sent from partition to partition, and no chore goes on: handlers
//! that send without end leave room to those who bring little (rule O8). What was taken counts against the disk from then on until it lies
//! in the tables, so that a burst between two looks at the disk does not fill it. Large results that clients do not take count as memory,
//! for the edges and for attempts. What is large is let in by its size ([`Gate::has_memory_for`]). Does not own: when a checkpoint is due
//! (`housekeeping`), how much of the disk is free (`disk`), who has brought much (`brought`), or who waits with what is large (`large`).

use crate::brought::{Brought, Tally};
use crate::large::{LargePlace, LargeWaits};
use crate::mailbox::{Input, Mailbox};
use crate::settings::Mutant;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use surefoot_model::{CatalogCell, DeploymentId};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What may be durable and not applied by a worker before the edges wait, as [`surefoot_model::RECORD_COST`] counts. A call waits behind all
/// of it: two thousand small entries take a worker some fifty milliseconds.
const WAITING_COST_MAX: u64 = 16 << 20;

/// Who waits beyond how many hundredths of [`Gate::tables_bytes_max`]. Edges and attempts of a deployment that has brought much:
const MUCH: Marks = Marks { edges: 100, attempts: 110 };
/// Messages from partition to partition, and chores: most are for what attempts have brought.
const WORK_PERCENT: u64 = 115;
/// Edges and attempts of the other deployments.
const LITTLE: Marks = Marks { edges: 120, attempts: 125 };

/// What brings more than this part of the tables' bound at once is large: a body, a report, a message.
const LARGE_PART: u64 = 16;

/// What the tables take at most for a byte that attempts have reported and that is not durable, where it is small.
const REPORTED_COPIES: u64 = 3;

#[derive(Clone, Copy)]
struct Marks {
    edges: u64,
    attempts: u64,
}

/// What the disk has yet to take for each byte on its way: in the log, as an entry of a journal, and, where it is a call, in the log once
/// more and as the input of what is called; a call's parameter as a message to another partition, too ([`Gate::counts_twice`]). The log has
/// it once it is durable, and a table once it is applied.
const QUEUED_COPIES: u64 = 4;
const WAITING_COPIES: u64 = 3;
const TABLE_COPIES: u64 = 2;

/// What the edges find no room in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Passes within moments, as checkpoints do their work.
    Memory,
    /// Lasts until an operator makes room, or retention does.
    Disk,
}

/// Who may still write to the disk (rule R2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskRoom {
    #[default]
    Enough,
    /// Running work; the edges refuse.
    Work,
    /// What is left is for the log and for compaction: attempts are neither started nor read.
    Reserve,
}

/// The disk at the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    pub room: DiskRoom,
    /// What was found free.
    pub found_bytes: u64,
    /// That, but for what was taken and is yet to be written.
    pub free_bytes: u64,
    /// What is to become free before the edges open.
    pub missing_bytes: u64,
    /// What of that lies on the disk, and not only in memory: most of the rest goes with the next checkpoint.
    pub evict_bytes: u64,
    /// With less than this the edges refuse.
    pub edges_bytes: u64,
    /// With less than this running work waits.
    pub work_bytes: u64,
    /// The log or a checkpoint found no room, or no file descriptor, however much is free.
    pub is_starved: bool,
}

/// What tables, and what waits for them, may take at the bound of the edges, so that they take no more than so many bytes at that of
/// attempts.
pub fn edges_bytes_max(bytes_max: u64) -> u64 {
    bytes_max / LITTLE.attempts * 100
}

/// Tells those who wait that there is room.
#[derive(Default)]
struct RoomNews {
    /// Of deployments that have brought much.
    much: Notify,
    little: Notify,
}

impl RoomNews {
    fn all(&self) {
        self.much.notify_waiters();
        self.little.notify_waiters();
    }

    /// So that nothing is missed between a look and the wait that follows it.
    fn listen(&self) -> (Notified<'_>, Notified<'_>) {
        (self.much.notified(), self.little.notified())
    }
}

/// Goes by the sum over all workers.
pub(crate) struct Gate {
    bytes_max: u64,
    /// What attempts that run take of that.
    attempts: AtomicU64,
    /// What the tables of each worker take, written by it.
    tables: Vec<AtomicU64>,
    mailboxes: Vec<Mailbox>,
    /// What the running checkpoint has encoded, written by the checkpointer.
    checkpoint: AtomicU64,
    /// Large results that clients have been given and have not taken.
    untaken: AtomicU64,
    /// Parameters of calls that are in reports on their way: the tables take them twice.
    called: AtomicU64,
    /// One partition at a time lets in a large message: it reads it between the look and the log.
    message_turn: Mutex<()>,
    /// A checkpoint waits for room on the disk.
    checkpoint_waits: AtomicBool,
    disk: Mutex<DiskStatus>,
    /// The node has stopped: nobody waits any more.
    has_ended: AtomicBool,
    brought: Mutex<Brought>,
    large: LargeWaits,
    edges_room: RoomNews,
    attempts_room: RoomNews,
    /// Attempts found no room since this was last looked at.
    attempts_wait: AtomicBool,
    /// Attempts of deployments that have brought much did.
    much_waits: AtomicBool,
    /// Messages or chores did.
    work_waits: AtomicBool,
    /// A large message did.
    large_message_waits: AtomicBool,
    mutant: Mutant,
}

impl Gate {
    pub(crate) fn new(mailboxes: Vec<Mailbox>, bytes_max: u64) -> Self {
        Self {
            bytes_max,
            attempts: AtomicU64::new(0),
            tables: mailboxes.iter().map(|_| AtomicU64::new(0)).collect(),
            mailboxes,
            checkpoint: AtomicU64::new(0),
            untaken: AtomicU64::new(0),
            called: AtomicU64::new(0),
            message_turn: Mutex::default(),
            checkpoint_waits: AtomicBool::new(false),
            disk: Mutex::default(),
            has_ended: AtomicBool::new(false),
            brought: Mutex::default(),
            large: LargeWaits::default(),
            edges_room: RoomNews::default(),
            attempts_room: RoomNews::default(),
            attempts_wait: AtomicBool::new(false),
            much_waits: AtomicBool::new(false),
            work_waits: AtomicBool::new(false),
            large_message_waits: AtomicBool::new(false),
            mutant: Mutant::None,
        }
    }

    /// The same, broken on purpose.
    pub(crate) fn with_mutant(self, mutant: Mutant) -> Self {
        Self { mutant, ..self }
    }

    /// What all attempts that run take. Tables can be written to the disk, and make room for them.
    pub(crate) fn set_attempts(&self, bytes: u64) {
        self.attempts.store(bytes, Ordering::Relaxed);
    }

    /// What tables, and what waits for them, may take: a fifth at least, however many attempts run. Attempts have half of the memory
    /// setting, and together with that, at the bound of attempts, it is no more than the share of both.
    pub(crate) fn tables_bytes_max(&self) -> u64 {
        self.bytes_max - self.attempts.load(Ordering::Relaxed).min(self.bytes_max / 5 * 4)
    }

    /// What the tables of one worker take now, with what was applied since this was last called: so many entries of so many bytes, which
    /// wait no more. What these held otherwise is let go of after this, and then [`Self::tell`] is called.
    pub(crate) fn weigh(&self, worker: usize, bytes: u64, (entries, entry_bytes): (u64, u64)) {
        self.tables[worker].store(bytes, Ordering::SeqCst);
        // After: in between they count twice, and never not at all.
        self.mailboxes[worker].applied(entries, entry_bytes);
    }

    /// Those who wait hear of the room that there is. Whether those who found none for attempts or other work may ask again.
    pub(crate) fn tell(&self) -> bool {
        self.open_if_room();
        self.may_ask_again()
    }

    /// A report is about to be appended with so many bytes of parameters of calls: the tables take them as an entry of a journal, and as the
    /// input of what is called or a message to its partition. They count once more until this is dropped, when the tables are weighed with them.
    pub(crate) fn counts_twice(self: &Arc<Self>, bytes: u64) -> Option<CountedTwice> {
        (bytes > 0).then(|| {
            self.called.fetch_add(bytes, Ordering::SeqCst);
            CountedTwice { gate: self.clone(), bytes }
        })
    }

    /// What the running checkpoint takes besides the layers that it writes, and whether the disk has no room for it. What it has
    /// written takes less than before its end: those who found no room hear of that at once.
    pub(crate) fn set_checkpoint(&self, bytes: u64, waits: bool) {
        self.checkpoint.store(bytes, Ordering::SeqCst);
        self.checkpoint_waits.store(waits, Ordering::Relaxed);
        self.open_if_room();
        self.let_workers_ask();
    }

    /// A checkpoint has ended: who waits with something large has waited for one more.
    pub(crate) fn checkpoint_ended(&self) {
        self.large.checkpoint_ended();
    }

    /// Something large waits for memory: layers are written before their time.
    pub(crate) fn large_waits(&self) -> bool {
        self.large.any()
    }

    /// Those who found no room hear that there is some.
    fn let_workers_ask(&self) {
        if self.may_ask_again() {
            self.mailboxes.iter().for_each(|worker| worker.push(Input::SlotFreed));
        }
    }

    fn may_ask_again(&self) -> bool {
        let attempts_may = self.has_attempts_room() && self.attempts_wait.swap(false, Ordering::SeqCst);
        let much_may = self.has_room_for_much(0, None) && self.much_waits.swap(false, Ordering::SeqCst);
        let work_may = self.has_work_memory() && self.work_waits.swap(false, Ordering::SeqCst);
        let large_may = self.has_room_for_any_message() && self.large_message_waits.swap(false, Ordering::SeqCst);
        attempts_may || much_may || work_may || large_may
    }

    /// What a worker has applied since it last said so. Who waits for the room of those that bring much, and brings little by now, hears
    /// of it: there may be room for it already.
    pub(crate) fn brought(&self, tally: &mut Tally, catalog: &CatalogCell) {
        if !tally.is_empty() && self.lock_brought().take(tally, &catalog.load()) {
            self.edges_room.much.notify_waiters();
            self.attempts_room.much.notify_waiters();
            // Those that do not wait ask again at the next [`Self::tell`].
            self.attempts_wait.store(true, Ordering::SeqCst);
        }
    }

    fn brings_much(&self, deployment: DeploymentId) -> bool {
        self.lock_brought().is_much(deployment)
    }

    fn lock_brought(&self) -> MutexGuard<'_, Brought> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn checkpoint_waits(&self) -> bool {
        self.checkpoint_waits.load(Ordering::Relaxed)
    }

    /// The disk at the last look.
    pub(crate) fn disk(&self) -> DiskStatus {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_disk(&self, status: DiskStatus) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = status;
        self.open_if_room();
        if status.room != DiskRoom::Enough {
            // Those who wait for memory are not to wait for the disk.
            self.edges_room.all();
        }
        self.let_workers_ask();
    }

    /// What the disk has yet to take of what was taken in, however little of it has been written so far.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        let waiting = self.waiting_bytes();
        let called = self.called.load(Ordering::SeqCst);
        self.queued_bytes() * QUEUED_COPIES + waiting * WAITING_COPIES + called + self.bytes(0) * TABLE_COPIES
    }

    /// Whether the disk has room for more from the edges, as of now and not only as of the last look.
    pub(crate) fn has_edges_disk(&self) -> bool {
        let disk = self.disk();
        disk.room == DiskRoom::Enough && self.leaves_free(&disk, disk.edges_bytes)
    }

    fn has_attempts_disk(&self) -> bool {
        let disk = self.disk();
        disk.room != DiskRoom::Reserve && self.leaves_free(&disk, disk.work_bytes)
    }

    fn leaves_free(&self, disk: &DiskStatus, bytes: u64) -> bool {
        disk.found_bytes.saturating_sub(self.unwritten_bytes()) >= bytes
    }

    fn open_if_room(&self) {
        // What is large may fit where small ones wait behind it.
        let large_waits = self.large.any();
        if self.mutant == Mutant::LoseRoom {
            // Nobody at the edges hears of it.
        } else if self.shortage().is_none() || large_waits && self.shortage_at(MUCH, 0).is_none() {
            self.edges_room.all();
        } else if self.shortage_at(LITTLE, 0).is_none() {
            self.edges_room.little.notify_waiters();
        }
        let has_mark = || self.has_attempts_disk() && self.has_memory_for(0, MUCH.attempts);
        if self.has_room_for_much(0, None) || large_waits && has_mark() {
            self.attempts_room.all();
        } else if self.has_attempts_room() {
            self.attempts_room.little.notify_waiters();
        }
    }

    /// What the edges find no room in, whoever comes; none if all may go on.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        let yields = || self.yields_to_large().then_some(Shortage::Memory);
        self.shortage_at(MUCH, 0).or_else(yields)
    }

    /// The same for those who come with so many bytes for this deployment; none: for one that is not known. `place`: where it stands among
    /// what is large and waits.
    fn shortage_for(
        &self,
        bytes: u64,
        place: Option<LargePlace>,
        deployment: impl FnOnce() -> Option<DeploymentId>,
    ) -> Option<Shortage> {
        let of_much = match self.is_large(bytes) {
            true => self.shortage_at(MUCH, bytes).or_else(|| self.is_behind_large(place).then_some(Shortage::Memory)),
            false => self.shortage(),
        };
        match of_much {
            Some(Shortage::Memory) if deployment().is_some_and(|deployment| !self.brings_much(deployment)) => {
                self.shortage_at(LITTLE, bytes)
            }
            shortage => shortage,
        }
    }

    /// Whether one would still be let in at the edges: while it waited for something else others may have come. What is small does not
    /// wait again, but where something large goes first.
    pub(crate) fn has_room_still<G: Deref<Target = Self>>(
        &self,
        bytes: u64,
        ticket: &LargeTicket<G>,
        deployment: impl FnOnce() -> Option<DeploymentId>,
    ) -> bool {
        let looks = self.is_large(bytes) || self.large.goes_first();
        !looks || self.shortage_for(bytes, ticket.place, deployment).is_none()
    }

    /// What is small and of those who bring much waits once something large has waited for long, until that is in or so little is taken that
    /// this, together with what is on its way, leaves the half that lets any in: for checkpoints, and not for those that have not taken
    /// their results.
    fn yields_to_large(&self) -> bool {
        if !self.large.goes_first() || self.has_ended() {
            return false;
        }
        let bytes_max = self.tables_bytes_max();
        let left = percent(bytes_max, MUCH.edges / 2).saturating_sub(bytes_max / LARGE_PART);
        // First what comes before: in between it counts twice, and never not at all.
        let queued = self.queued_bytes();
        queued * REPORTED_COPIES + self.bytes(self.waiting_bytes()) > left
    }

    /// What is large and of those who bring much waits until the one that goes first is in.
    fn is_behind_large(&self, place: Option<LargePlace>) -> bool {
        self.large.is_behind(place) && !self.has_ended()
    }

    fn shortage_at(&self, marks: Marks, bytes: u64) -> Option<Shortage> {
        if self.has_ended() {
            return None;
        }
        if self.checkpoint_waits() || !self.has_edges_disk() {
            return Some(Shortage::Disk);
        }
        let (waiting, bytes_max) = (self.waiting_bytes(), self.tables_bytes_max());
        let is_behind = waiting > bytes_max / 4 || self.mailboxes.iter().any(|worker| worker.waiting_cost() > WAITING_COST_MAX);
        let fits = self.has_memory_for(bytes, marks.edges) && !is_behind;
        (!fits).then_some(Shortage::Memory)
    }

    /// Whether attempts may start and read on, those at least whose deployments have brought little. Where not, [`Self::tell`] and
    /// [`Self::set_checkpoint`] say when to ask again.
    pub(crate) fn try_attempts(&self) -> bool {
        if self.has_attempts_room() {
            return true;
        }
        self.attempts_wait.store(true, Ordering::SeqCst);
        // Either this sees the room that was made meanwhile, or whoever made it sees that it is wanted.
        self.has_attempts_room()
    }

    /// As [`Self::try_attempts`], for those who do not wait.
    pub(crate) fn has_attempts_room(&self) -> bool {
        self.has_room_for_little(0)
    }

    fn has_room_for_little(&self, bytes: u64) -> bool {
        self.has_ended() || self.has_attempts_disk() && self.has_memory_for(bytes, LITTLE.attempts)
    }

    /// As [`Self::try_attempts`], for those of one deployment.
    pub(crate) fn try_attempts_of(&self, deployment: DeploymentId) -> bool {
        if self.has_attempts_room_of(deployment, 0, None) {
            return true;
        }
        self.much_waits.store(true, Ordering::SeqCst);
        // Who brings much is not told of room that is there and not for it: it would ask again and again.
        if !self.lock_brought().waits_as_much(deployment) || !self.has_attempts_room() {
            self.attempts_wait.store(true, Ordering::SeqCst);
        }
        // As above.
        self.has_attempts_room_of(deployment, 0, None)
    }

    /// Whether attempts of a deployment may bring so many bytes, and read on. `place`: as in [`Self::shortage_for`].
    pub(crate) fn has_attempts_room_of(&self, deployment: DeploymentId, bytes: u64, place: Option<LargePlace>) -> bool {
        self.has_room_for_much(bytes, place) || self.has_room_for_little(bytes) && !self.brings_much(deployment)
    }

    /// Whether attempts may start and read on whose deployments have brought much. What they have reported and is on its way counts with
    /// what the tables will take: those who bring little are to find their room when it is applied.
    fn has_room_for_much(&self, bytes: u64, place: Option<LargePlace>) -> bool {
        let has_memory = || match self.is_large(bytes) {
            true => !self.is_behind_large(place) && self.has_memory_for(bytes, MUCH.attempts),
            false => {
                let queued = self.queued_bytes().min(self.tables_bytes_max() / 10);
                let beside = self.untaken_bytes() + queued * REPORTED_COPIES;
                self.has_memory_beside(beside, MUCH.attempts) && !self.yields_to_large()
            }
        };
        self.has_ended() || self.has_attempts_disk() && has_memory()
    }

    fn is_large(&self, bytes: u64) -> bool {
        bytes > self.small_bytes_max() && self.mutant != Mutant::IgnoreSize
    }

    /// Whether memory has room for so many bytes more, up to a mark.
    ///
    /// What is large is to fit below the mark together with all that is there, on its way through the log included: it would exceed the mark
    /// by its size, once for each that looked before the others had come. Where it is larger than what there is, half of that has to be free. That
    /// comes about whatever others do, so that one large thing passes and nothing stands still: log and checkpoints wait for nobody (rule
    /// O3), and layers are written early while something large waits; those who bring much wait behind it once it has waited for long (rule
    /// O8). Results that clients have not taken count as well, and nobody yields for these: they are taken, or their clients cut in time. What
    /// is at an edge waits for ten seconds at most (rule R2).
    fn has_memory_for(&self, bytes: u64, mark: u64) -> bool {
        if !self.is_large(bytes) {
            return self.has_memory_beside(self.untaken_bytes(), mark);
        }
        let (taken, bytes_max) = (self.taken_bytes(), percent(self.tables_bytes_max(), mark));
        taken.saturating_add(bytes) <= bytes_max || taken <= bytes_max / 2
    }

    /// All that is there, what is on its way through the log included.
    fn taken_bytes(&self) -> u64 {
        // First what comes before: in between it counts twice, and never not at all.
        let queued = self.queued_bytes();
        let called = self.called.load(Ordering::SeqCst);
        queued + called + self.bytes(self.waiting_bytes()) + self.untaken_bytes()
    }

    /// Whether memory has room for what partitions do of themselves: it does not ask for the disk, since that makes room there.
    pub(crate) fn has_work_memory(&self) -> bool {
        self.has_ended() || self.has_memory_beside(0, WORK_PERCENT)
    }

    fn has_memory_beside(&self, bytes: u64, mark: u64) -> bool {
        self.bytes(self.waiting_bytes()) + bytes <= percent(self.tables_bytes_max(), mark)
    }

    /// A client has been given so many bytes. Where it does not take them they wait in memory, and others for that.
    pub(crate) fn give(&self, bytes: u64) {
        self.untaken.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Whether there is room for one more result, or no other one is on its way.
    pub(crate) fn may_give(&self, bytes: u64) -> bool {
        let untaken = self.untaken_bytes();
        untaken == 0 || self.bytes(self.waiting_bytes()) + untaken + bytes <= self.tables_bytes_max()
    }

    /// It has taken them, or is gone.
    pub(crate) fn taken(&self, bytes: u64) {
        self.untaken.fetch_sub(bytes, Ordering::SeqCst);
        self.open_if_room();
        self.let_workers_ask();
    }

    /// Whether edges, of whichever deployments, would find room in memory if clients took what they have been given.
    pub(crate) fn wants_taken(&self) -> bool {
        let (bytes, untaken) = (self.bytes(self.waiting_bytes()), self.untaken_bytes());
        let of_large = self.large.any().then_some(MUCH.edges / 2);
        [MUCH.edges, LITTLE.edges].into_iter().chain(of_large).any(|mark| {
            let bytes_max = percent(self.tables_bytes_max(), mark);
            bytes <= bytes_max && bytes + untaken > bytes_max
        })
    }

    fn untaken_bytes(&self) -> u64 {
        self.untaken.load(Ordering::SeqCst)
    }

    /// As [`Self::has_work_memory`]; where not, [`Self::tell`] and [`Self::set_checkpoint`] say when to ask again.
    pub(crate) fn try_work(&self) -> bool {
        self.work_waits.store(true, Ordering::SeqCst);
        // As in `try_attempts`.
        self.has_work_memory()
    }

    /// Leave to let in a large message until it is dropped; none while another partition has it.
    pub(crate) fn message_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.message_turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The largest message that is not large.
    pub(crate) fn small_bytes_max(&self) -> u64 {
        self.bytes_max / LARGE_PART
    }

    /// The largest message from partition to partition that memory has room for, where it has room for any.
    pub(crate) fn message_bytes_max(&self) -> u64 {
        if self.has_room_for_any_message() {
            return u64::MAX;
        }
        let left = percent(self.tables_bytes_max(), WORK_PERCENT).saturating_sub(self.taken_bytes());
        left.max(self.small_bytes_max())
    }

    fn has_room_for_any_message(&self) -> bool {
        self.has_ended() || self.has_memory_for(u64::MAX, WORK_PERCENT)
    }

    /// Whether there is room for any message; where not, [`Self::tell`] and [`Self::set_checkpoint`] say when to ask again.
    pub(crate) fn try_large_message(&self) -> bool {
        self.large_message_waits.store(true, Ordering::SeqCst);
        // As in `try_attempts`.
        self.has_room_for_any_message()
    }

    /// A large message waits until this is dropped.
    pub(crate) fn wait_with_message(self: Arc<Self>) -> LargeTicket<Arc<Self>> {
        let mut ticket = LargeTicket::new(self);
        ticket.enter();
        ticket
    }

    fn queued_bytes(&self) -> u64 {
        self.mailboxes.iter().map(Mailbox::queued_bytes).sum()
    }

    fn waiting_bytes(&self) -> u64 {
        self.mailboxes.iter().map(Mailbox::waiting_bytes).sum()
    }

    fn bytes(&self, waiting: u64) -> u64 {
        let tables: u64 = self.tables.iter().map(|b| b.load(Ordering::SeqCst)).sum();
        tables + waiting + self.checkpoint.load(Ordering::SeqCst)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// The node has stopped: those who wait find out elsewhere.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        self.open_if_room();
    }

    /// Completes while tables and what waits for them have room for so many bytes for this deployment (none: one that is not known), and the
    /// disk has room. Events of running invocations do not come this way. What is large keeps the place of its `ticket`: what it waits for
    /// next may take until there is none any more.
    pub(crate) async fn wait<G: Deref<Target = Self>>(
        &self,
        bytes: u64,
        ticket: &mut LargeTicket<G>,
        deployment: impl Fn() -> Option<DeploymentId>,
    ) {
        loop {
            let (much, little) = self.edges_room.listen();
            let Some(shortage) = self.shortage_for(bytes, ticket.place, &deployment) else { return };
            self.waits_with(bytes, shortage, ticket);
            self.hear(&deployment, much, little).await;
        }
    }

    /// As [`Self::wait`], for those that can be sent away. **Errors**: the disk has no room, which may last.
    pub(crate) async fn wait_memory<G: Deref<Target = Self>>(
        &self,
        bytes: u64,
        ticket: &mut LargeTicket<G>,
        deployment: impl Fn() -> Option<DeploymentId>,
    ) -> Result<(), Shortage> {
        loop {
            let (much, little) = self.edges_room.listen();
            match self.shortage_for(bytes, ticket.place, &deployment) {
                None => return Ok(()),
                Some(Shortage::Disk) => return Err(Shortage::Disk),
                Some(Shortage::Memory) => {
                    self.waits_with(bytes, Shortage::Memory, ticket);
                    self.hear(&deployment, much, little).await;
                }
            }
        }
    }

    /// Completes while attempts of a deployment may bring so many bytes, and read on. `ticket`: as in [`Self::wait`].
    pub(crate) async fn wait_attempts<G: Deref<Target = Self>>(
        &self,
        deployment: DeploymentId,
        bytes: u64,
        ticket: &mut LargeTicket<G>,
    ) {
        loop {
            let (much, little) = self.attempts_room.listen();
            if self.has_attempts_room_of(deployment, bytes, ticket.place) {
                return;
            }
            let shortage = if self.has_attempts_disk() { Shortage::Memory } else { Shortage::Disk };
            self.waits_with(bytes, shortage, ticket);
            self.hear(|| Some(deployment), much, little).await;
        }
    }

    /// Who waits with something large is known from the first time on. Nobody waits behind it while it waits for the disk: running work makes
    /// room there.
    fn waits_with<G: Deref<Target = Self>>(&self, bytes: u64, shortage: Shortage, ticket: &mut LargeTicket<G>) {
        match shortage {
            Shortage::Disk => ticket.step_aside(),
            Shortage::Memory if self.is_large(bytes) => ticket.enter(),
            Shortage::Memory => {}
        }
    }

    /// Those who bring much are not told of room that is not for them, but that they bring little by now: see [`Self::brought`].
    async fn hear(&self, deployment: impl Fn() -> Option<DeploymentId>, much: Notified<'_>, little: Notified<'_>) {
        let waits_as_much = deployment().is_none_or(|deployment| self.lock_brought().waits_as_much(deployment));
        if waits_as_much { much.await } else { little.await }
    }
}

/// The place of something large among those that wait, once it has begun to. It is kept while it waits for other things, until it is on its
/// way through the log: others would take the room meanwhile, time and again.
pub(crate) struct LargeTicket<G: Deref<Target = Gate>> {
    gate: G,
    place: Option<LargePlace>,
    /// It stands there, and others may wait behind it.
    is_in_place: bool,
}

impl<G: Deref<Target = Gate>> LargeTicket<G> {
    /// Of one that does not wait yet.
    pub(crate) fn new(gate: G) -> Self {
        Self { gate, place: None, is_in_place: false }
    }

    pub(crate) fn gate(&self) -> &G {
        &self.gate
    }

    pub(crate) fn place(&self) -> Option<LargePlace> {
        self.place
    }

    fn enter(&mut self) {
        if !self.is_in_place {
            self.place = Some(self.gate.large.enter(self.place));
            self.is_in_place = true;
            // They have layers written with their next step.
            self.gate.mailboxes.iter().for_each(|worker| worker.push(Input::SlotFreed));
        }
    }

    /// Nobody waits behind it, until it waits for memory again: in the place that it has now.
    pub(crate) fn step_aside(&mut self) {
        if std::mem::take(&mut self.is_in_place) && self.place.is_some_and(|place| self.gate.large.leave(place)) {
            // Those who bring much waited behind it.
            self.gate.open_if_room();
            self.gate.let_workers_ask();
        }
    }
}

impl<G: Deref<Target = Gate>> Drop for LargeTicket<G> {
    fn drop(&mut self) {
        self.step_aside();
    }
}

/// See [`Gate::counts_twice`].
pub(crate) struct CountedTwice {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Drop for CountedTwice {
    fn drop(&mut self) {
        self.gate.called.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// So many hundredths.
fn percent(bytes: u64, hundredths: u64) -> u64 {
    bytes.saturating_mul(hundredths) / 100
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use surefoot_env::Wake;
    use surefoot_log::{Entry, Sink};
    use surefoot_model::{Attempt, AttemptProgress, Epoch, Event, InvocationId, Lsn, PartitionId, Pin, RECORD_COST};

    fn is_ready(wait: impl Future<Output = ()>) -> bool {
        pin!(wait).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    impl Gate {
        /// As one that comes once, and appends at once.
        pub(crate) async fn wait_once(&self, bytes: u64, deployment: impl Fn() -> Option<DeploymentId>) {
            self.wait(bytes, &mut LargeTicket::new(self), deployment).await;
        }

        pub(crate) async fn attempt_once(&self, deployment: DeploymentId, bytes: u64) {
            self.wait_attempts(deployment, bytes, &mut LargeTicket::new(self)).await;
        }

        pub(crate) fn set(&self, worker: usize, bytes: u64, applied: (u64, u64)) -> bool {
            self.weigh(worker, bytes, applied);
            self.tell()
        }
    }

    const MANY: DeploymentId = DeploymentId(1);
    const FEW: DeploymentId = DeploymentId(2);

    fn gate(bytes_max: u64) -> Gate {
        Gate::new(vec![Mailbox::new(Wake::new())], bytes_max)
    }

    #[test]
    fn attempts_go_on_beyond_the_bound_of_the_edges_and_stop_at_their_own() {
        let gate = gate(1_000);
        for (bytes, edges, attempts) in [(1_000, true, true), (1_001, false, true), (1_250, false, true), (1_251, false, false)] {
            gate.set(0, bytes, (0, 0));
            assert_eq!(
                (is_ready(gate.wait_once(0, || None)), is_ready(gate.attempt_once(MANY, 0))),
                (edges, attempts),
                "{bytes}"
            );
        }
    }

    /// How often somebody was woken.
    #[derive(Default)]
    struct Woken(AtomicU64);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One deployment has brought much, and another one little.
    fn bring_much(gate: &Gate) {
        bring(gate, [(MANY, 100), (FEW, 1)]);
    }

    fn bring<const N: usize>(gate: &Gate, reports: [(DeploymentId, u64); N]) {
        let mut tally = Tally::default();
        for (deployment, reports) in reports {
            let pin = Pin { deployment, protocol: 5 };
            let (id, attempt) = (InvocationId { partition_key: 1, unique: 1 }, Attempt(1));
            let progress = AttemptProgress { id, attempt, first_command: 0, pin, items: Vec::new(), end: None };
            let event = Event::AttemptProgressed(Box::new(progress));
            (0..reports).for_each(|_| tally.on_event(&event, 10));
        }
        gate.brought(&mut tally, &CatalogCell::default());
    }

    /// Handlers that sent commands without end kept memory above the bound of the edges, and calls of others were refused.
    #[test]
    fn a_deployment_that_brings_much_waits_before_the_others_do() {
        let gate = gate(1_000);
        let is_open = || {
            let edges = [MANY, FEW].map(|deployment| is_ready(gate.wait_once(0, || Some(deployment))));
            (edges, [MANY, FEW].map(|deployment| is_ready(gate.attempt_once(deployment, 0))))
        };
        gate.set(0, 1_150, (0, 0));
        assert_eq!(is_open(), ([true; 2], [true; 2]), "nobody has brought much");
        bring_much(&gate);
        for (bytes, expected) in [
            (1_000, ([true, true], [true, true])),
            (1_001, ([false, true], [true, true])),
            (1_100, ([false, true], [true, true])),
            (1_101, ([false, true], [false, true])),
            (1_200, ([false, true], [false, true])),
            (1_201, ([false, false], [false, true])),
            (1_250, ([false, false], [false, true])),
            (1_251, ([false, false], [false, false])),
        ] {
            gate.set(0, bytes, (0, 0));
            assert_eq!(is_open(), expected, "{bytes}");
        }
    }

    #[test]
    fn who_brings_much_is_told_of_its_own_room_alone_and_once() {
        let gate = gate(1_000);
        bring_much(&gate);
        gate.set(0, 1_300, (0, 0));
        let mut waits = [MANY, FEW].map(|deployment| Box::pin(gate.attempt_once(deployment, 0)));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut are_ready = || waits.each_mut().map(|wait| wait.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        assert_eq!(are_ready(), [false; 2]);
        assert!(!gate.try_attempts_of(MANY));
        assert!(gate.set(0, 1_101, (0, 0)), "others may ask");
        assert!(!gate.try_attempts_of(MANY) && !gate.set(0, 1_101, (0, 0)), "it would ask again and again");
        assert_eq!((woken.0.load(Ordering::Relaxed), are_ready()), (1, [false, true]), "one is woken");
        assert!(gate.set(0, 1_100, (0, 0)), "it has room of its own");
    }

    /// It waited until there was room for those who bring much, while others of it that came later passed.
    #[test]
    fn who_brings_much_no_more_finds_the_room_of_those_who_bring_little() {
        let gate = gate(1_000);
        bring_much(&gate);
        gate.set(0, 1_150, (0, 0));
        let mut edge = Box::pin(gate.wait_once(0, || Some(MANY)));
        let mut attempt = Box::pin(gate.attempt_once(MANY, 0));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(edge.as_mut().poll(&mut cx).is_pending() && attempt.as_mut().poll(&mut cx).is_pending());
        assert!(!gate.try_attempts_of(MANY) && !gate.set(0, 1_150, (0, 0)));
        bring(&gate, [(FEW, 10_000)]);
        assert!(edge.as_mut().poll(&mut cx).is_ready() && attempt.as_mut().poll(&mut cx).is_ready());
        assert!(gate.set(0, 1_150, (0, 0)), "those that do not wait may ask again");
        assert!(!gate.set(0, 1_150, (0, 0)), "once");
    }

    #[test]
    fn reports_on_their_way_count_for_those_who_bring_much() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![mailbox.clone()], 1_000);
        bring_much(&gate);
        gate.set_disk(DiskStatus { found_bytes: 1 << 20, ..DiskStatus::default() });
        gate.set(0, 1_000, (0, 0));
        let may = || [MANY, FEW].map(|deployment| gate.try_attempts_of(deployment));
        mailbox.queued(33);
        assert_eq!(may(), [true, true]);
        mailbox.queued(1);
        assert_eq!(may(), [false, true]);
        mailbox.durable(vec![Entry { partition: PartitionId(0), lsn: Lsn(1), epoch: Epoch(1), payload: vec![0; 34].into() }]);
        assert!(gate.set(0, 1_034, (1, 34)), "those who found no room may ask again");
        assert_eq!(may(), [true, true]);
    }

    /// Clients that read nothing of their results held memory that nobody counted.
    #[test]
    fn results_that_clients_do_not_take_count_for_edges_and_attempts_and_nothing_else() {
        let gate = gate(1_000);
        gate.set(0, 600, (0, 0));
        let allowed = || {
            (
                is_ready(gate.wait_once(0, || None)),
                is_ready(gate.attempt_once(MANY, 0)),
                gate.has_work_memory(),
                gate.wants_taken(),
            )
        };
        for (given, expected) in
            [(400, (true, true, true, false)), (1, (false, true, true, true)), (250, (false, false, true, true))]
        {
            gate.give(given);
            assert_eq!(allowed(), expected, "{given} more");
        }
        gate.set(0, 1_001, (0, 0));
        assert!(gate.wants_taken(), "those who bring little would find room");
        gate.set(0, 1_201, (0, 0));
        assert!(!gate.wants_taken(), "tables alone are too much");
        gate.set(0, 0, (0, 0));
        assert_eq!(gate.unwritten_bytes(), 0, "the disk has nothing to do with it");
        gate.taken(651);
        assert_eq!(allowed(), (true, true, true, false));
    }

    /// A call waited for seconds behind what was small, and only its bytes counted.
    #[test]
    fn the_edges_wait_while_many_small_entries_wait_to_be_applied() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![Mailbox::new(Wake::new()), mailbox.clone()], 1 << 30);
        let entry = || Entry { partition: PartitionId(0), lsn: Lsn(1), epoch: Epoch(1), payload: b"small".as_slice().into() };
        let few = WAITING_COST_MAX / (RECORD_COST + 5);
        mailbox.durable((0..few).map(|_| entry()).collect());
        assert_eq!(gate.shortage(), None);
        mailbox.durable(vec![entry()]);
        assert_eq!((gate.shortage(), gate.has_attempts_room()), (Some(Shortage::Memory), true));
        mailbox.applied(1, 5);
        assert_eq!(gate.shortage(), None);
    }

    #[test]
    fn tables_have_what_attempts_leave_and_a_fifth_at_least() {
        let gate = gate(edges_bytes_max(1_250));
        for (attempts, tables) in [(0, 1_000), (300, 700), (5_000, 200)] {
            gate.set_attempts(attempts);
            gate.set(0, tables, (0, 0));
            assert_eq!((gate.tables_bytes_max(), gate.shortage()), (tables, None));
            gate.set(0, tables + 1, (0, 0));
            assert_eq!(gate.shortage(), Some(Shortage::Memory));
        }
    }

    #[test]
    fn attempts_that_found_no_room_are_told_once_to_ask_again() {
        let gate = gate(1_000);
        gate.set(0, 2_000, (0, 0));
        assert!(!gate.try_attempts());
        assert!(!gate.set(0, 1_500, (0, 0)), "there is none yet");
        assert!(gate.set(0, 1_000, (0, 0)));
        assert!(!gate.set(0, 1_000, (0, 0)), "nobody asked since");
        assert!(gate.try_attempts());
    }

    /// What was applied and not counted with the tables yet let the next large one in beside it.
    #[test]
    fn an_entry_counts_until_the_tables_are_weighed_with_it() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![mailbox.clone()], 1_000);
        let entry = Entry { partition: PartitionId(0), lsn: Lsn(1), epoch: Epoch(1), payload: vec![0; 1_251].into() };
        mailbox.durable(vec![entry]);
        mailbox.take(&mut std::collections::VecDeque::new());
        assert!(!gate.try_attempts());
        gate.set(0, 1_251, (1, 1_251));
        assert!(!gate.has_attempts_room(), "it is in the tables");
        assert!(gate.set(0, 0, (0, 0)));
    }

    /// Between the commit of what a checkpoint has encoded and its end, nobody had heard that there was room.
    #[test]
    fn room_that_a_checkpoint_makes_is_told_before_its_end() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![mailbox.clone()], 1_000);
        gate.set(0, 1_000, (0, 0));
        gate.set_checkpoint(151, false);
        assert!(!gate.try_work() && mailbox.is_empty());
        gate.set_checkpoint(150, false);
        let mut inputs = std::collections::VecDeque::new();
        mailbox.take(&mut inputs);
        assert!(matches!(inputs.pop_front(), Some(Input::SlotFreed)));
        gate.set_checkpoint(0, false);
        assert!(mailbox.is_empty(), "nobody asked since");
    }

    #[test]
    fn messages_and_chores_wait_for_memory_and_are_told_once_but_never_wait_for_the_disk() {
        let gate = gate(1_000);
        gate.set_disk(DiskStatus { room: DiskRoom::Reserve, ..DiskStatus::default() });
        gate.set(0, 1_150, (0, 0));
        assert!(gate.has_work_memory(), "they make room there");
        gate.set(0, 1_151, (0, 0));
        assert!(!gate.has_work_memory() && !gate.try_work());
        assert!(!gate.set(0, 1_151, (0, 0)), "there is none yet");
        assert!(gate.set(0, 1_150, (0, 0)));
        assert!(!gate.set(0, 1_150, (0, 0)), "nobody asked since");
    }

    #[test]
    fn the_disk_shuts_the_edges_first_and_attempts_with_the_reserve() {
        let gate = gate(1_000);
        for (room, edges, attempts) in [
            (DiskRoom::Work, false, true),
            (DiskRoom::Reserve, false, false),
            (DiskRoom::Work, false, true),
            (DiskRoom::Enough, true, true),
        ] {
            gate.set_disk(DiskStatus { room, ..DiskStatus::default() });
            assert_eq!(
                (is_ready(gate.wait_once(0, || None)), is_ready(gate.attempt_once(MANY, 0))),
                (edges, attempts),
                "{room:?}"
            );
            assert_eq!(gate.shortage(), (!edges).then_some(Shortage::Disk));
        }
        gate.set(0, 1_001, (0, 0));
        assert_eq!(gate.shortage(), Some(Shortage::Memory));
        let mut ticket = LargeTicket::new(&gate);
        let mut waits = Box::pin(gate.wait_memory(0, &mut ticket, || None));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        gate.set_disk(DiskStatus { room: DiskRoom::Work, ..DiskStatus::default() });
        assert_eq!(waits.as_mut().poll(&mut cx), std::task::Poll::Ready(Err(Shortage::Disk)), "it is sent away");
    }

    /// Two large calls were let in between two looks at the disk, and together with what came of them they were more than it could hold.
    #[test]
    fn what_was_taken_counts_against_the_disk_until_it_lies_in_the_tables() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![mailbox.clone()], 1 << 30);
        let found = |found_bytes| DiskStatus { found_bytes, edges_bytes: 200, work_bytes: 100, ..DiskStatus::default() };
        let is_open = || (gate.has_edges_disk(), gate.has_attempts_room());
        gate.set_disk(found(600));
        for (queued, edges, attempts) in [(100, true, true), (1, false, true), (24, false, true), (1, false, false)] {
            mailbox.queued(queued);
            assert_eq!(is_open(), (edges, attempts), "{}", mailbox.queued_bytes());
        }
        assert_eq!((gate.shortage(), gate.unwritten_bytes()), (Some(Shortage::Disk), 126 * QUEUED_COPIES));
        let payload = vec![0; 126].into();
        mailbox.durable(vec![Entry { partition: PartitionId(0), lsn: Lsn(1), epoch: Epoch(1), payload }]);
        assert_eq!((is_open(), gate.unwritten_bytes()), ((true, true), 126 * WAITING_COPIES));
        gate.set(0, 150, (1, 126));
        assert_eq!((is_open(), gate.unwritten_bytes()), ((true, true), 150 * TABLE_COPIES));
        gate.set_disk(found(399));
        assert!(!gate.try_attempts());
        mailbox.take(&mut std::collections::VecDeque::new());
        gate.set_disk(found(400));
        let mut inputs = std::collections::VecDeque::new();
        mailbox.take(&mut inputs);
        assert!(matches!(inputs.pop_front(), Some(Input::SlotFreed)), "a look that finds more room says so");
    }

    /// With a disk, a bound of 1,000 bytes, and a deployment that has brought much; and the mailbox that it looks at.
    fn of_one_that_brings_much() -> (Mailbox, Gate) {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![mailbox.clone()], 1_000);
        gate.set_disk(DiskStatus { found_bytes: 1 << 20, ..DiskStatus::default() });
        bring_much(&gate);
        (mailbox, gate)
    }

    const LARGE: u64 = 900;

    /// Six calls with 31 MiB each were in memory at once at a setting of 64 MiB: each found room before the others had come.
    #[test]
    fn what_is_large_is_let_in_where_it_fits_or_half_is_free() {
        let (mailbox, gate) = of_one_that_brings_much();
        let may = |bytes| (is_ready(gate.wait_once(bytes, || None)), is_ready(gate.attempt_once(MANY, bytes)));
        for (tables, small, large) in [
            (0, (true, true), (true, true)),
            (100, (true, true), (true, true)),
            (500, (true, true), (true, true)),
            (501, (true, true), (false, true)),
            (550, (true, true), (false, true)),
            (551, (true, true), (false, false)),
            (1_000, (true, true), (false, false)),
        ] {
            gate.set(0, tables, (0, 0));
            assert_eq!((may(62), may(LARGE)), (small, large), "{tables}");
        }
        assert_eq!(may(63), (false, true), "it would exceed the mark of the edges");
        let broken = Gate::new(vec![mailbox.clone()], 1_000).with_mutant(Mutant::IgnoreSize);
        broken.set(0, 1_000, (0, 0));
        assert!(is_ready(broken.wait_once(LARGE, || None)), "the variant is caught");
        gate.set(0, 0, (0, 0));
        mailbox.queued(551);
        assert_eq!((may(1), may(LARGE)), ((true, true), (false, false)), "it is on its way");
        mailbox.durable(vec![Entry { partition: PartitionId(0), lsn: Lsn(1), epoch: Epoch(1), payload: vec![0; 551].into() }]);
        assert_eq!(may(LARGE), (false, false));
        gate.set(0, 0, (1, 551));
        gate.give(551);
        assert_eq!((may(LARGE), gate.wants_taken()), ((false, false), false), "nobody waits for it");
        let mut waits = Box::pin(gate.wait_once(LARGE, || None));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending() && gate.wants_taken());
        gate.taken(551);
        assert!(waits.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn small_ones_pass_what_is_large_and_waits_and_those_who_bring_much_wait_behind_it_after_a_while() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Gate::new(vec![mailbox.clone()], 1_000);
        bring_much(&gate);
        gate.set(0, 1_000, (0, 0));
        let small =
            || [MANY, FEW].map(|deployment| (is_ready(gate.wait_once(1, || Some(deployment))), gate.try_attempts_of(deployment)));
        let mut cx = Context::from_waker(Waker::noop());
        let mut large = Box::pin(gate.attempt_once(MANY, LARGE));
        assert!(large.as_mut().poll(&mut cx).is_pending());
        assert!(gate.large_waits() && !mailbox.is_empty(), "layers are written before their time");
        assert_eq!(small(), [(true, true); 2]);
        (0..100).for_each(|_| gate.checkpoint_ended());
        assert_eq!(small(), [(false, false), (true, true)], "it has waited for long");
        gate.set(0, 439, (0, 0));
        assert_eq!(small(), [(false, false), (true, true)], "with what it brings it would be more than half");
        gate.set(0, 438, (0, 0));
        gate.give(500);
        assert_eq!(small(), [(true, true); 2], "they do not wait for those that have not taken their results");
        gate.taken(500);
        assert!(large.as_mut().poll(&mut cx).is_ready());
        gate.set(0, 1_000, (0, 0));
        drop(large);
        assert!(!gate.large_waits());
        assert_eq!(small(), [(true, true); 2]);
    }

    /// It was let in, waited for the room of reports, and began anew behind what had come meanwhile, as long as there was any.
    #[test]
    fn what_is_large_keeps_its_place_until_it_is_in() {
        let (mailbox, gate) = of_one_that_brings_much();
        gate.set(0, 1_000, (0, 0));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (LargeTicket::new(&gate), LargeTicket::new(&gate));
        let mut waits = Box::pin(gate.wait_attempts(MANY, LARGE, &mut first));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        (0..100).for_each(|_| gate.checkpoint_ended());
        let mut behind = Box::pin(gate.wait(LARGE, &mut second, || Some(MANY)));
        assert!(behind.as_mut().poll(&mut cx).is_pending());
        gate.set(0, 430, (0, 0));
        assert!(waits.as_mut().poll(&mut cx).is_ready() && behind.as_mut().poll(&mut cx).is_pending());
        drop(waits);
        let small = || (is_ready(gate.wait_once(1, || Some(MANY))), gate.try_attempts_of(MANY));
        assert_eq!(small(), (true, true));
        mailbox.queued(3);
        assert_eq!(small(), (false, false), "what is on its way will leave no half");
        let still = gate.has_room_still(1, &LargeTicket::new(&gate), || Some(MANY));
        assert!(!still, "nor may those that were let in before");
        gate.set(0, 551, (0, 0));
        assert!(!gate.has_attempts_room_of(MANY, LARGE, first.place), "what was in the log before it has filled it");
        let mut waits = Box::pin(gate.wait_attempts(MANY, LARGE, &mut first));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        gate.set(0, 500, (0, 0));
        assert!(waits.as_mut().poll(&mut cx).is_ready(), "and it goes first at once");
        drop(waits);
        assert!(behind.as_mut().poll(&mut cx).is_pending() && !is_ready(gate.wait_once(1, || Some(MANY))));
        first.step_aside();
        let mut waits = Box::pin(gate.wait_attempts(MANY, LARGE, &mut first));
        gate.set(0, 1_000, (0, 0));
        assert!(waits.as_mut().poll(&mut cx).is_pending() && gate.large.goes_first(), "it has kept its place");
        drop(waits);
        gate.set(0, 400, (0, 0));
        drop(first);
        assert!(behind.as_mut().poll(&mut cx).is_ready(), "the next one hears of it");
    }

    #[test]
    fn nobody_waits_behind_what_is_large_and_waits_for_the_disk() {
        let gate = gate(1_000);
        bring_much(&gate);
        gate.set(0, 1_000, (0, 0));
        let mut cx = Context::from_waker(Waker::noop());
        let mut ticket = LargeTicket::new(&gate);
        let mut large = Box::pin(gate.wait(LARGE, &mut ticket, || Some(MANY)));
        assert!(large.as_mut().poll(&mut cx).is_pending());
        (0..100).for_each(|_| gate.checkpoint_ended());
        assert!(!gate.has_attempts_room_of(MANY, 1, None) && !gate.has_attempts_room_of(MANY, 100, None));
        gate.set_disk(DiskStatus { room: DiskRoom::Work, ..DiskStatus::default() });
        assert!(large.as_mut().poll(&mut cx).is_pending());
        assert!(gate.has_attempts_room_of(MANY, 1, None) && gate.has_attempts_room_of(MANY, 100, None));
        gate.set_disk(DiskStatus::default());
        assert!(large.as_mut().poll(&mut cx).is_pending() && gate.large.goes_first(), "it has kept its place");
    }

    /// Between its mark and half of it nobody told it of room in which it fitted.
    #[test]
    fn what_is_large_hears_of_room_in_which_it_fits() {
        let gate = gate(1_000);
        bring_much(&gate);
        gate.set(0, 1_000, (0, 0));
        let (mut edges, mut attempts) = (LargeTicket::new(&gate), LargeTicket::new(&gate));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut attempt = Box::pin(gate.wait_attempts(MANY, 200, &mut attempts));
        assert!(attempt.as_mut().poll(&mut cx).is_pending());
        (0..100).for_each(|_| gate.checkpoint_ended());
        gate.set(0, 900, (0, 0));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(attempt.as_mut().poll(&mut cx).is_ready());
        drop(attempt);
        drop(attempts);
        gate.set(0, 1_000, (0, 0));
        let mut edge = Box::pin(gate.wait(200, &mut edges, || Some(MANY)));
        assert!(edge.as_mut().poll(&mut cx).is_pending());
        (0..100).for_each(|_| gate.checkpoint_ended());
        gate.set(0, 800, (0, 0));
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert!(edge.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn the_parameter_of_a_call_counts_twice_until_the_tables_are_weighed_with_it() {
        let mailbox = Mailbox::new(Wake::new());
        let gate = Arc::new(Gate::new(vec![mailbox.clone()], 1_000));
        gate.set_disk(DiskStatus { found_bytes: 1 << 20, ..DiskStatus::default() });
        bring_much(&gate);
        assert!(gate.counts_twice(0).is_none());
        let twice = gate.counts_twice(276);
        mailbox.queued(276);
        assert_eq!(gate.unwritten_bytes(), 276 * 5);
        assert!(!gate.has_attempts_room_of(MANY, LARGE, None));
        mailbox.durable(vec![Entry { partition: PartitionId(0), lsn: Lsn(1), epoch: Epoch(1), payload: vec![0; 276].into() }]);
        assert_eq!(gate.unwritten_bytes(), 276 * 4);
        assert!(!gate.has_attempts_room_of(MANY, LARGE, None));
        gate.weigh(0, 276, (1, 276));
        drop(twice);
        assert!(gate.has_attempts_room_of(MANY, LARGE, None));
    }

    #[test]
    fn one_partition_at_a_time_lets_in_a_large_message() {
        let gate = gate(1_000);
        let turn = gate.message_turn();
        assert!(turn.is_some() && gate.message_turn().is_none());
        drop(turn);
        assert!(gate.message_turn().is_some());
    }

    #[test]
    fn a_large_message_waits_for_what_it_needs_and_is_told_once_that_there_is_room_for_any() {
        let gate = gate(1_000);
        for (tables, bytes_max) in [(0, u64::MAX), (575, u64::MAX), (576, 574), (1_000, 150), (1_150, 62)] {
            gate.set(0, tables, (0, 0));
            assert_eq!(gate.message_bytes_max(), bytes_max, "{tables}");
        }
        assert!(!gate.try_large_message());
        assert!(!gate.set(0, 576, (0, 0)));
        assert!(gate.set(0, 575, (0, 0)));
        assert!(!gate.set(0, 575, (0, 0)), "nobody asked since");
    }

    #[test]
    fn those_who_wait_behind_what_is_large_hear_of_its_end() {
        let gate = gate(1_000);
        bring_much(&gate);
        gate.set(0, 1_000, (0, 0));
        let mut cx = Context::from_waker(Waker::noop());
        let mut large = Box::pin(gate.wait_once(LARGE, || Some(MANY)));
        assert!(large.as_mut().poll(&mut cx).is_pending());
        (0..100).for_each(|_| gate.checkpoint_ended());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let (mut edge, mut attempt) = (Box::pin(gate.wait_once(1, || Some(MANY))), Box::pin(gate.attempt_once(MANY, 1)));
        assert!(edge.as_mut().poll(&mut cx).is_pending() && attempt.as_mut().poll(&mut cx).is_pending());
        drop(large);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert!(edge.as_mut().poll(&mut cx).is_ready() && attempt.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn nobody_waits_for_a_node_that_has_stopped() {
        let gate = gate(1_000);
        gate.set(0, 5_000, (0, 0));
        let (mut edge, mut attempt) = (Box::pin(gate.wait_once(0, || None)), Box::pin(gate.attempt_once(MANY, 0)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(edge.as_mut().poll(&mut cx).is_pending() && attempt.as_mut().poll(&mut cx).is_pending());
        gate.end();
        assert!(edge.as_mut().poll(&mut cx).is_ready() && attempt.as_mut().poll(&mut cx).is_ready());
    }
}
