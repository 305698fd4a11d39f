//! The local file log: one sequence of segment files for all partitions of a node, one writer, group commit.
//!
//! Owns: the files in its directory, the queue before the writer, recovery. Does not own: threads (the caller drives the two
//! steppers), the decision to trim, or what a partition has applied. Files: `NNNNNNNNNN.seg`, and `NNNNNNNNNN.spare` for files
//! waiting to become segments. The bytes are described in `format`.

mod filler;
mod format;
mod hold;
mod inspect;
mod recovery;
mod segments;
mod writer;

pub use hold::LogHold;
pub use inspect::{Inspection, inspect};
pub use recovery::{Bounds, Recovery};

use crate::{Durable, Entry, Log, Retained, Sink};
use bytes::Bytes;
use filler::Filler;
use format::{Place, SegmentHeader};
use segments::{Closed, Segments, Spare};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use surefoot_env::{Disk, Steps, Tasks, Wake, is_out_of_descriptors, is_shortage};
use surefoot_model::{Epoch, Lsn, PartitionId};
use writer::{Segment, Starting, Writer};

/// Told once, with the reason, when the log can no longer make anything durable (rule L4).
pub type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// What a log is opened with.
#[derive(Clone)]
pub struct Options {
    /// Size of the first segments in bytes; later ones double up to `segment_bytes_max` as more is retained.
    pub segment_bytes_min: u64,
    pub segment_bytes_max: u64,
    /// Bytes of the file that running work may fill once there is no room for another segment (rule L8).
    pub reserve_bytes: u64,
    /// Bytes that become durable between two times that the segment's witness says so (rule L2).
    pub witness_bytes: u64,
    /// Bytes of a batch, at least 128. A larger append becomes several batches, a larger entry several parts (rule L7).
    pub batch_bytes_max: usize,
    /// Called at most once; the log is dead then. A server ends its process at once.
    pub fatal: Fatal,
    /// [`Mutant::None`] but in tests of the tests.
    pub mutant: Mutant,
}

impl Options {
    /// The product's settings: segments of 1 to 64 MiB, 4 MiB in reserve, batches of at most 512 KiB.
    pub fn new(fatal: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            segment_bytes_min: 1 << 20,
            segment_bytes_max: 64 << 20,
            reserve_bytes: 4 << 20,
            witness_bytes: 64 << 10,
            batch_bytes_max: 512 << 10,
            fatal: Arc::new(fatal),
            mutant: Mutant::None,
        }
    }
}

/// Deliberately broken variants. Each leaves out one rule, and some check must notice; never set outside tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    #[default]
    None,
    /// Batches are not synced (L6).
    SkipSync,
    /// Sinks hear of a batch before it is synced (L6).
    PublishBeforeSync,
    /// A batch verifies wherever it lies and whatever lies before it (L1).
    NoChain,
    /// A torn batch is kept if its header is whole (L2).
    KeepTornTail,
    /// The last file is taken for whole although it is shorter than it was made (L2).
    TakeShort,
    /// A segment has its header before its file has its size (L2).
    HeaderBeforeSize,
    /// Recovery does not ask the segment's witness (L2).
    ForgetWitness,
    /// Names of segments are not made durable (L3).
    SkipDirSync,
    /// A segment goes when its first entries are covered, not its last (C2).
    TrimEarly,
    /// Recovery does not sync what it keeps (L3).
    RecoverWithoutSync,
    /// Recovery does not write again what a failed sync may have left in memory only (L3, L4).
    RecoverWithoutRewrite,
    /// Goes on after a failed sync (L4).
    IgnoreFailedSync,
    /// Recovery takes the LSNs of a partition from its entries alone (L5).
    RestartLsns,
    /// Recovery takes the first part of a large entry for all of it (L7).
    TakeFirstPart,
    /// What comes from outside may fill the reserve (L8).
    ReserveForAll,
    /// A segment that finds no room ends the log (L8).
    DieOfShortage,
    /// What is trimmed goes although a backup copies it (C6).
    TrimHeld,
}

impl Mutant {
    pub const ALL: [Self; 18] = [
        Self::None,
        Self::SkipSync,
        Self::PublishBeforeSync,
        Self::NoChain,
        Self::KeepTornTail,
        Self::TakeShort,
        Self::HeaderBeforeSize,
        Self::ForgetWitness,
        Self::SkipDirSync,
        Self::TrimEarly,
        Self::RecoverWithoutSync,
        Self::RecoverWithoutRewrite,
        Self::IgnoreFailedSync,
        Self::RestartLsns,
        Self::TakeFirstPart,
        Self::ReserveForAll,
        Self::DieOfShortage,
        Self::TrimHeld,
    ];
}

/// Why a log did not open. Nothing was changed that an attempt after repair would miss.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error("{doing} {path}: {source}", path = .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// Bytes that had been durable have changed, so acknowledged entries are gone. Restore the directory from a backup.
    #[error(
        "SF4002: log segment {path} is damaged at byte {offset}: {what}; it had been durable, so nothing can be cut here without \
         losing acknowledged events: restore the data directory from a backup", path = .path.display()
    )]
    Damaged { path: PathBuf, offset: u64, what: &'static str },
    /// Something cut the file off, and what was acknowledged may have been in the rest. Put the whole file back, or restore the directory from
    /// a backup.
    #[error(
        "SF4002: log segment {path} has {bytes} bytes, and had {expected}: it was cut short, as by a copy that ended early or by its file \
         system, and acknowledged events may have been in the rest: put the whole file back, or restore the data directory from a backup",
        path = .path.display()
    )]
    Short { path: PathBuf, bytes: u64, expected: u64 },
    /// Written by a version of Surefoot with another log format.
    #[error("log segment {path} has format {found}, this version reads {expected}: start the version that wrote it", path = .path.display(), expected = format::VERSION)]
    Version { path: PathBuf, found: u32 },
    /// A segment between others is not there.
    #[error("SF4002: log segment {path} is missing, but later ones follow it: restore the data directory from a backup", path = .path.display())]
    Missing { path: PathBuf },
    /// The log had gone on to a segment that is not there. Put it back, or restore the directory from a backup.
    #[error(
        "SF4002: log segment {path} is missing: {mark} says that the log had gone on to it, and what was in it had been acknowledged: put it \
         back, or restore the data directory from a backup (to go on without what was in it, remove {mark})",
        path = .path.display(), mark = .mark.display()
    )]
    LastMissing { path: PathBuf, mark: PathBuf },
    /// Checkpoint and log do not meet (rule C2).
    #[error(
        "SF4003: partition {partition} has applied up to {applied}, but the log holds {first} to before {next}: \
         tables and log are not of the same data directory, or one was restored without the other, or the log was cut short: restore the data \
         directory as a whole from a backup"
    )]
    Gap { partition: PartitionId, applied: Lsn, first: Lsn, next: Lsn },
    /// The caller could not take an entry.
    #[error("replay entry {lsn} of partition {partition}: {source}")]
    Replay { partition: PartitionId, lsn: Lsn, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Takes the recovered entries, in log order.
pub type Replay<'a> = dyn FnMut(Entry) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// A log that is ready: connect the sinks, then drive the steppers.
pub struct Opened {
    pub log: LocalLog,
    pub recovery: Recovery,
    /// Writes, syncs and publishes.
    pub writer: Stepper,
    /// Prepares and recycles segments.
    pub filler: Stepper,
}

/// A stepper with the name and the wake it is to be driven with.
pub struct Stepper {
    pub name: &'static str,
    pub wake: Wake,
    pub steps: Box<dyn Steps>,
}

impl Stepper {
    pub fn drive(self, tasks: &dyn Tasks) {
        tasks.drive(self.name, self.wake, self.steps);
    }
}

/// Opens the log in `dir`, which is made if missing. Hands every durable entry that `covered` leaves out to `replay`, in log order,
/// large ones in one piece; cuts a torn tail, makes durable what it keeps (rule L3), and starts a new segment.
///
/// `covered` says up to where the caller's durable checkpoints reach: those entries are not read again, and are trimmed (rule C2).
/// Afterwards the caller asks [`Recovery::check`] for each of its partitions. Errors: see [`Error`]; all mean that the node must not
/// start.
pub fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: Options,
    covered: &BTreeMap<PartitionId, Lsn>,
    replay: &mut Replay<'_>,
) -> Result<Opened, Error> {
    assert!(options.batch_bytes_max >= 128 && options.segment_bytes_min >= 1024, "sizes leave room for headers");
    assert!(options.segment_bytes_min <= options.segment_bytes_max, "the smallest segment is no larger than the largest");
    let mut found = recovery::recover(&*disk, dir, &options, covered, replay)?;
    let mut segments = Segments::new(dir, &options);
    segments.closed = std::mem::take(&mut found.closed).into();
    covered.iter().for_each(|(partition, up_to)| segments.trim(*partition, *up_to));
    if options.mutant == Mutant::RestartLsns {
        found.next.retain(|partition, _| segments.closed.iter().any(|closed| closed.ranges.contains_key(partition)));
    }
    found.tidy(&*disk, dir, &options, &mut segments)?;
    let shared = Arc::new(Shared {
        inbox: Mutex::default(),
        routes: Mutex::default(),
        segments: Mutex::new(segments),
        writer_wake: Wake::new(),
        filler_wake: Wake::new(),
        writer_ended: Wake::new(),
        filler_ended: Wake::new(),
        drops_waiting: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        // Rounded so that padding never exceeds the bound.
        batch_bytes_max: options.batch_bytes_max / format::ALIGN * format::ALIGN,
        witness_bytes: options.witness_bytes,
        mutant: options.mutant,
        fatal: options.fatal,
    });
    let header = SegmentHeader {
        number: found.number_max + 1,
        previous: found.last.map(|last| (last.segment, last.offset)),
        next: found.next.clone(),
        unfinished: None,
        file_bytes: 0,
    };
    let segment = start(&shared, &*disk, dir, header, found.last).map_err(|source| Error::Io {
        doing: "start a log segment in",
        path: dir.to_owned(),
        source,
    })?;
    shared.turn(None, &segment);
    shared.segments().unprepared_bytes = options.segment_bytes_min;
    let writer = Writer::new(shared.clone(), disk.clone(), dir.to_owned(), segment, found.next);
    let filler = Filler::new(shared.clone(), disk, dir.to_owned());
    Ok(Opened {
        recovery: found.summary,
        writer: Stepper { name: "log-writer", wake: shared.writer_wake.clone(), steps: Box::new(writer) },
        filler: Stepper { name: "log-filler", wake: shared.filler_wake.clone(), steps: Box::new(filler) },
        log: LocalLog { shared },
    })
}

/// Starts a segment, if need be in the reserve, so that a process can start where the disk is full; and where that is used up, in
/// the room that the last segment does not need any more.
fn start(shared: &Shared, disk: &dyn Disk, dir: &Path, header: SegmentHeader, last: Option<Place>) -> io::Result<Segment> {
    let mut starting = Starting::new(header);
    let mut was_cut = false;
    loop {
        match starting.step(shared, disk, dir) {
            Ok(None) => {}
            Ok(Some(segment)) => return Ok(segment),
            Err(error) if !is_shortage(&error) || is_out_of_descriptors(&error) => return Err(error),
            Err(_) if starting.take_reserve(shared) => {}
            Err(_) if !was_cut => {
                was_cut = true;
                last.map_or(Ok(()), |last| shared.cut_last(disk, last))?;
                starting.keep_most();
            }
            Err(error) => return Err(error),
        }
    }
}

/// What is not used of a segment is given back to start another one if it is at least this much.
const CUT_BYTES_MIN: u64 = 16 << 10;

/// How long to wait before what found no room, or no descriptor, is tried again.
const SHORT_RETRY: Duration = Duration::from_millis(500);

/// An error of a sync, which is never taken for a shortage (rule L4); but for one that came before the sync began.
fn of_sync(error: io::Error) -> io::Error {
    if is_out_of_descriptors(&error) { error } else { io::Error::other(error) }
}

/// The local log. Clones share it.
#[derive(Clone)]
pub struct LocalLog {
    shared: Arc<Shared>,
}

impl LocalLog {
    /// Sends what becomes durable of `partition` to `sink`. Partitions may share one: what becomes durable together then comes
    /// in one call. To be called before the writer is driven; entries of a partition without a sink go nowhere.
    pub fn connect(&self, partition: PartitionId, sink: Arc<dyn Sink>) {
        let mut routes = self.shared.routes();
        let known = routes.sinks.iter().position(|s| Arc::ptr_eq(s, &sink));
        let at = known.unwrap_or(routes.sinks.len());
        if known.is_none() {
            routes.sinks.push(sink);
        }
        routes.of.insert(partition, at);
    }

    /// Ends both steppers once all that was appended before is durable. What is appended after is dropped, and its callback with
    /// it. To be awaited with [`LocalLog::ended`].
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.writer_wake.wake();
        self.shared.filler_wake.wake();
    }

    /// Completes once both steppers have ended: nothing is written, synced or made known any more, and another process may open
    /// the directory. For one caller, once.
    pub async fn ended(&self) {
        self.shared.writer_ended.woken().await;
        self.shared.filler_ended.woken().await;
    }
}

impl Log for LocalLog {
    fn append(&self, partition: PartitionId, epoch: Epoch, payloads: Vec<Bytes>, durable: Option<Durable>) {
        self.shared.queue(Queued { origin: Origin::Work, partition, epoch, payloads, durable });
    }

    fn append_from_outside(&self, partition: PartitionId, epoch: Epoch, payloads: Vec<Bytes>, durable: Option<Durable>) {
        self.shared.queue(Queued { origin: Origin::Outside, partition, epoch, payloads, durable });
    }

    fn drop_waiting(&self) {
        self.shared.drops_waiting.store(true, Ordering::Release);
        self.shared.writer_wake.wake();
    }

    fn trim(&self, partition: PartitionId, up_to: Lsn) {
        self.shared.segments().trim(partition, up_to);
        self.shared.filler_wake.wake();
    }

    fn retained(&self) -> Retained {
        let segments = self.shared.segments();
        Retained { bytes: segments.bytes_retained(), oldest_holder: segments.oldest_holder(), room: segments.room() }
    }

    fn set_short(&self, is_short: bool) {
        self.shared.segments().is_short = is_short;
        self.shared.filler_wake.wake();
    }
}

/// What waits for the writer.
#[derive(Default)]
struct Inbox {
    queue: VecDeque<Queued>,
    /// Nobody takes from it any more.
    has_ended: bool,
}

struct Queued {
    origin: Origin,
    partition: PartitionId,
    epoch: Epoch,
    payloads: Vec<Bytes>,
    durable: Option<Durable>,
}

/// Who may fill the reserve (rule L8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Work,
    Outside,
}

const UNPOISONED: &str = "no holder of this lock panics";

/// What handle, writer and filler have in common.
struct Shared {
    inbox: Mutex<Inbox>,
    routes: Mutex<Routes>,
    segments: Mutex<Segments>,
    writer_wake: Wake,
    filler_wake: Wake,
    writer_ended: Wake,
    filler_ended: Wake,
    /// What came from outside does not wait for room any more.
    drops_waiting: AtomicBool,
    closed: AtomicBool,
    failed: AtomicBool,
    batch_bytes_max: usize,
    witness_bytes: u64,
    mutant: Mutant,
    fatal: Fatal,
}

#[derive(Default)]
struct Routes {
    sinks: Vec<Arc<dyn Sink>>,
    of: BTreeMap<PartitionId, usize>,
}

impl Shared {
    fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().expect(UNPOISONED)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().expect(UNPOISONED)
    }

    fn is_over(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.has_failed()
    }

    fn drops_waiting(&self) -> bool {
        self.drops_waiting.load(Ordering::Acquire)
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The end of this log: says so, once, and stops both steppers.
    fn fail(&self, message: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            (self.fatal)(message.to_owned());
            self.writer_wake.wake();
            self.filler_wake.wake();
        }
    }

    fn queue(&self, queued: Queued) {
        if self.is_over() {
            return;
        }
        let mut inbox = self.inbox.lock().expect(UNPOISONED);
        if inbox.has_ended {
            return;
        }
        // The writer takes all there is, so that an append to an empty queue wakes it for all that follow.
        let wake = inbox.queue.is_empty();
        inbox.queue.push_back(queued);
        drop(inbox);
        if wake {
            self.writer_wake.wake();
        }
    }

    /// Nothing is queued.
    fn is_empty(&self) -> bool {
        self.inbox.lock().expect(UNPOISONED).queue.is_empty()
    }

    /// Moves what is queued behind what was `taken`. An empty one is swapped, and its room used again.
    fn take_more(&self, taken: &mut VecDeque<Queued>) {
        let mut inbox = self.inbox.lock().expect(UNPOISONED);
        if taken.is_empty() {
            std::mem::swap(&mut inbox.queue, taken);
        } else {
            taken.append(&mut inbox.queue);
        }
    }

    /// The writer has ended: callbacks of what came too late are dropped, so that whoever waits for one learns it.
    fn end_inbox(&self) {
        let mut inbox = self.inbox.lock().expect(UNPOISONED);
        inbox.has_ended = true;
        let late = std::mem::take(&mut inbox.queue);
        drop(inbox);
        drop(late);
        self.writer_ended.wake();
    }

    /// Hands durable entries to their sinks, one call each, then calls back. Leaves both empty.
    fn publish(&self, entries: &mut Vec<Entry>, durable: &mut Vec<(Durable, Lsn)>) {
        let routes = self.routes();
        let sinks = routes.sinks.clone();
        let mut shares: Vec<Vec<Entry>> = sinks.iter().map(|_| Vec::new()).collect();
        for entry in entries.drain(..) {
            if let Some(at) = routes.of.get(&entry.partition) {
                shares[*at].push(entry);
            }
        }
        drop(routes);
        for (sink, share) in sinks.iter().zip(shares) {
            if !share.is_empty() {
                sink.durable(share);
            }
        }
        for (durable, lsn) in durable.drain(..) {
            durable(lsn);
        }
    }

    /// The file for the next segment, or the size to make one with.
    fn next_file(&self) -> Result<Spare, u64> {
        let mut segments = self.segments();
        segments.spare_refused = false;
        let bytes = segments.unprepared_bytes;
        segments.spares.pop().ok_or(bytes)
    }

    fn take_reserve(&self) -> Option<Spare> {
        let mut segments = self.segments();
        let reserve = segments.reserve.take()?;
        segments.reserve_is_taken = true;
        Some(reserve)
    }

    fn reserve_is_taken(&self) -> bool {
        self.segments().reserve_is_taken
    }

    fn set_stuck(&self, is_stuck: bool) {
        self.segments().is_stuck = is_stuck;
    }

    /// Gives back what the newest of the closed segments, which ends at `last`, does not use of its file, and makes the next one small
    /// enough for it. The segment says so first, durably: whatever else cuts it short is damage (rule L2).
    fn cut_last(&self, disk: &dyn Disk, last: Place) -> io::Result<()> {
        let mut segments = self.segments();
        let Some(closed) = segments.closed.back_mut() else { return Ok(()) };
        let cut = format::cut(last);
        let end = last.offset + cut.len() as u64;
        let unused = closed.file_bytes.saturating_sub(end);
        if unused < CUT_BYTES_MIN {
            return Ok(());
        }
        let file = disk.open(&closed.path)?;
        file.write_at(last.offset, &cut)?;
        file.sync_data().map_err(of_sync)?;
        file.truncate(end)?;
        closed.file_bytes = end;
        segments.reserve_is_taken = true;
        // The block that the file ends in, and what the file system writes down for the next one.
        segments.unprepared_bytes = (unused - unused / 8).min(segments.bytes_min) / 4096 * 4096;
        Ok(())
    }

    /// The writer goes on in `current`.
    fn turn(&self, closed: Option<Closed>, current: &Segment) {
        self.segments().turned(closed, current.place(), current.capacity);
    }

    /// The current segment now ends at `end`. True if the filler should look.
    fn note_end(&self, end: u64) -> bool {
        let mut segments = self.segments();
        segments.current_end = end;
        segments.wants_spare()
    }

    /// The current segment is durable up to `place`.
    fn note_synced(&self, place: Place) {
        self.segments().current_synced = place;
    }

    fn sync_dir(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        if self.mutant == Mutant::SkipDirSync { Ok(()) } else { disk.sync_dir(dir) }
    }
}
