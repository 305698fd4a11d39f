//! The writer: takes everything that is queued, writes it as one batch, makes it durable, hands it on. One disk operation a step.
//!
//! Owns: LSNs, batches, the segment being written, and who goes on where there is no room for another one (rule L8). Does not own:
//! threads or waiting (the driver's), or older segments.

use super::format::{self, BATCH_HEADER, ENTRY_HEADER, PARTS_MAX, Part, Place, SegmentHeader, WITNESS};
use super::segments::{self, Closed, Ranges, Spare, segment_path};
use super::{Mutant, Origin, Queued, SHORT_RETRY, Shared, of_sync};
use crate::{Durable, Entry};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Disk, File, Step, Steps, Undone, is_out_of_descriptors, is_shortage};
use surefoot_model::{Lsn, PartitionId};

/// A log that has been idle for this long writes one empty batch, to vouch for its last (rule L2). Late enough not to stand in
/// the way of the next append of a caller that waits for each.
const VOUCH_AFTER: Duration = Duration::from_millis(20);

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    batch_bytes_max: usize,
    witness_bytes: u64,
    mutant: Mutant,
    segment: Segment,
    next: BTreeMap<PartitionId, Lsn>,
    /// Taken off the queue. `payload` and `part` say how far the first is written.
    taken: VecDeque<Queued>,
    /// What came from outside while nothing but the reserve was left.
    held: VecDeque<Queued>,
    payload: usize,
    part: usize,
    batch: Batch,
    stage: Stage,
    vouch: Vouch,
}

/// The batch being made durable. Its buffers are used again.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    parts: u32,
    entries: Vec<Entry>,
    durable: Vec<(Durable, Lsn)>,
}

enum Stage {
    Write,
    /// A batch is sealed.
    Put,
    Sync,
    Publish,
    /// The segment's witness is to say how much is durable by now.
    Witness,
    Start(Starting),
}

#[derive(PartialEq, Eq)]
enum Vouch {
    Written,
    Due,
    /// Due, and the log was found idle once.
    Waiting,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        segment: Segment,
        next: BTreeMap<PartitionId, Lsn>,
    ) -> Self {
        Self {
            batch_bytes_max: shared.batch_bytes_max,
            witness_bytes: shared.witness_bytes,
            mutant: shared.mutant,
            shared,
            disk,
            dir,
            segment,
            next,
            taken: VecDeque::new(),
            held: VecDeque::new(),
            payload: 0,
            part: 0,
            batch: Batch::default(),
            stage: Stage::Write,
            vouch: Vouch::Written,
        }
    }

    fn work(&mut self) -> io::Result<Step> {
        match std::mem::replace(&mut self.stage, Stage::Write) {
            Stage::Write => return self.write(),
            Stage::Put => match self.segment.put(&self.batch.bytes) {
                Ok(()) => {
                    self.shared.set_stuck(false);
                    self.stage = if self.mutant == Mutant::PublishBeforeSync { Stage::Publish } else { Stage::Sync };
                    self.vouch = Vouch::Due;
                    if self.shared.note_end(self.segment.end) {
                        self.shared.filler_wake.wake();
                    }
                }
                // A file system that copies what it overwrites. The same bytes go to the same place later; nobody has heard of them.
                Err(error) if is_shortage(&error) => {
                    self.stage = Stage::Put;
                    self.shared.set_stuck(true);
                    return Ok(Step::IdleFor(SHORT_RETRY));
                }
                Err(error) => return Err(error),
            },
            Stage::Sync => {
                if self.mutant != Mutant::SkipSync {
                    let synced = self.segment.file.sync_data().map_err(of_sync);
                    if self.mutant != Mutant::IgnoreFailedSync {
                        synced?;
                    }
                }
                self.segment.synced = self.segment.end;
                self.shared.note_synced(self.segment.place());
                if self.mutant != Mutant::PublishBeforeSync {
                    self.stage = Stage::Publish;
                }
            }
            Stage::Publish => {
                self.shared.publish(&mut self.batch.entries, &mut self.batch.durable);
                if self.mutant == Mutant::PublishBeforeSync {
                    self.stage = Stage::Sync;
                } else if self.segment.unwitnessed() >= self.witness_bytes || self.segment.has_grown() {
                    self.stage = Stage::Witness;
                }
            }
            Stage::Witness => match self.segment.write_witness() {
                // A file system that copies what it overwrites. It is worth less than room.
                Err(error) if !is_shortage(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            },
            Stage::Start(mut starting) => match starting.step(&self.shared, &*self.disk, &self.dir) {
                Ok(None) => self.stage = Stage::Start(starting),
                Ok(Some(segment)) => {
                    self.shared.set_stuck(false);
                    self.turn_to(segment);
                }
                Err(error) if is_shortage(&error) && self.mutant != Mutant::DieOfShortage => {
                    return Ok(self.wait_for_room(starting, &error));
                }
                Err(error) => return Err(error),
            },
        }
        Ok(Step::Worked)
    }

    /// There is no room for another segment. Running work goes on in the reserve; what comes from outside waits (rule L8).
    fn wait_for_room(&mut self, mut starting: Starting, error: &io::Error) -> Step {
        self.shared.take_more(&mut self.taken);
        let begun = self.payload + self.part > 0;
        let may_use_reserve = |(at, queued): (usize, &Queued)| {
            queued.origin == Origin::Work || at == 0 && begun || self.mutant == Mutant::ReserveForAll
        };
        let reserve_helps = !is_out_of_descriptors(error) && self.taken.iter().enumerate().any(may_use_reserve);
        let has_reserve = reserve_helps && starting.take_reserve(&self.shared);
        self.stage = Stage::Start(starting);
        if has_reserve {
            return Step::Worked;
        }
        self.shared.set_stuck(true);
        Step::IdleFor(SHORT_RETRY)
    }

    /// Sets aside what came from outside, but for what is half written; or takes it back, before everything that came later. While the
    /// process stops it is not kept.
    fn sift(&mut self) {
        let begun = self.payload + self.part > 0;
        if !self.shared.reserve_is_taken() {
            if !self.held.is_empty() {
                let first = if begun { self.taken.pop_front() } else { None };
                self.held.append(&mut self.taken);
                std::mem::swap(&mut self.held, &mut self.taken);
                first.into_iter().for_each(|first| self.taken.push_front(first));
            }
        } else if self.mutant != Mutant::ReserveForAll {
            for (at, queued) in std::mem::take(&mut self.taken).into_iter().enumerate() {
                let goes_on = queued.origin == Origin::Work || at == 0 && begun;
                if goes_on { self.taken.push_back(queued) } else { self.held.push_back(queued) }
            }
            if self.shared.drops_waiting() {
                self.held.clear();
            }
        }
    }

    fn write(&mut self) -> io::Result<Step> {
        // Asked before the queue is: what was appended before the log was closed is still written.
        let closed = self.shared.is_over();
        self.shared.take_more(&mut self.taken);
        self.sift();
        if self.taken.is_empty() {
            return self.rest(closed);
        }
        if let Some(bytes) = self.first_part_bytes()
            && self.segment.is_full_for(bytes)
        {
            self.stage = Stage::Start(self.follow());
            return Ok(Step::Worked);
        }
        self.fill_batch();
        if self.batch.parts == 0 {
            self.stage = Stage::Publish;
            return Ok(Step::Worked);
        }
        self.segment.seal(&mut self.batch.bytes, self.batch.parts, self.mutant);
        self.stage = Stage::Put;
        Ok(Step::Worked)
    }

    /// Nothing is queued.
    fn rest(&mut self, closed: bool) -> io::Result<Step> {
        match self.vouch {
            Vouch::Written => return Ok(if closed { Step::Done } else { Step::Idle }),
            Vouch::Due if !closed => {
                self.vouch = Vouch::Waiting;
                return Ok(Step::IdleFor(VOUCH_AFTER));
            }
            // Not synced: the next append need not wait for it, and the system writes it back soon enough.
            Vouch::Due | Vouch::Waiting => {
                self.batch.bytes.clear();
                self.batch.bytes.resize(BATCH_HEADER, 0);
                let chain = self.segment.chain;
                self.segment.seal(&mut self.batch.bytes, 0, self.mutant);
                match self.segment.put(&self.batch.bytes) {
                    Ok(()) => _ = self.shared.note_end(self.segment.end),
                    // It may lie beyond what was prepared. The next batch vouches as well, and takes its place.
                    Err(error) if is_shortage(&error) => self.segment.chain = chain,
                    Err(error) => return Err(error),
                }
                self.vouch = Vouch::Written;
                if self.segment.unwitnessed() > 0 {
                    self.stage = Stage::Witness;
                }
            }
        }
        Ok(Step::Worked)
    }

    fn payload_bytes_max(&self) -> usize {
        self.batch_bytes_max - BATCH_HEADER - ENTRY_HEADER
    }

    /// Bytes of the smallest batch that the next append could begin with; none if it has no entries.
    fn first_part_bytes(&self) -> Option<usize> {
        let payload = self.taken.front()?.payloads.get(self.payload)?;
        let rest = payload.len() - self.part * self.payload_bytes_max();
        Some(BATCH_HEADER + ENTRY_HEADER + rest.min(self.payload_bytes_max()))
    }

    /// Moves as much from the queue into one batch as it may hold and the segment has room for, and gives out the LSNs.
    fn fill_batch(&mut self) {
        let part_max = self.payload_bytes_max();
        let bytes_max = self.batch_bytes_max.min(self.segment.room());
        let batch = &mut self.batch;
        batch.bytes.clear();
        batch.bytes.resize(BATCH_HEADER, 0);
        batch.parts = 0;
        while let Some(append) = self.taken.front_mut() {
            let next = self.next.entry(append.partition).or_insert(Lsn(1));
            let Some(payload) = append.payloads.get_mut(self.payload) else {
                let append = self.taken.pop_front().expect("it was there a line ago");
                self.payload = 0;
                batch.durable.extend(append.durable.map(|durable| (durable, Lsn(next.0 - 1))));
                continue;
            };
            let parts = payload.len().div_ceil(part_max).max(1);
            assert!(parts <= PARTS_MAX, "an entry of {} bytes is beyond what a log entry may hold", payload.len());
            let from = self.part * part_max;
            let piece = &payload[from..payload.len().min(from + part_max)];
            // The first part always fits: the segment was found to have room for it, or is empty and grows.
            if batch.parts > 0 && batch.bytes.len() + ENTRY_HEADER + piece.len() > bytes_max {
                break;
            }
            let (partition, epoch, lsn) = (append.partition, append.epoch, *next);
            let (part, of) = (self.part as u16 + 1, parts as u16);
            Part { partition, part, parts: of, epoch, lsn, payload: piece }.encode(&mut batch.bytes);
            batch.parts += 1;
            segments::note(&mut self.segment.ranges, partition, lsn);
            self.part += 1;
            if self.part == parts {
                (self.part, self.payload) = (0, self.payload + 1);
                *next = next.next();
                batch.entries.push(Entry { partition, lsn, epoch, payload: std::mem::take(payload) });
            }
        }
    }

    fn follow(&self) -> Starting {
        let header = SegmentHeader {
            number: self.segment.number + 1,
            // Not `end`: the empty batch that an idle log writes is not synced, and may never be.
            previous: Some((self.segment.number, self.segment.synced)),
            next: self.next.clone(),
            unfinished: self.taken.front().filter(|_| self.part > 0).map(|append| append.partition),
            file_bytes: 0,
        };
        Starting::new(header)
    }

    fn turn_to(&mut self, segment: Segment) {
        let old = std::mem::replace(&mut self.segment, segment);
        let closed =
            Closed { path: segment_path(&self.dir, old.number), end: old.synced, file_bytes: old.capacity, ranges: old.ranges };
        self.shared.turn(Some(closed), &self.segment);
        self.shared.filler_wake.wake();
    }
}

impl Steps for Writer {
    fn step(&mut self) -> Step {
        let step = match self.shared.has_failed() {
            true => Step::Done,
            false => self.work().unwrap_or_else(|error| {
                let path = segment_path(&self.dir, self.segment.number);
                self.shared.fail(&format!("write to the log, at or after {}: {error}", path.display()));
                Step::Done
            }),
        };
        if step == Step::Done {
            // What was taken and not written tells nobody either.
            self.taken.clear();
            self.held.clear();
            self.batch.durable.clear();
            self.shared.end_inbox();
        }
        step
    }

    /// What is queued is written, or waits for room that there is not.
    fn undone(&self) -> Vec<Undone> {
        let is_writing = matches!(self.stage, Stage::Write) && !self.shared.has_failed();
        let is_left =
            !self.taken.is_empty() || !self.shared.is_empty() || !self.held.is_empty() && !self.shared.reserve_is_taken();
        let left =
            (is_writing && is_left).then(|| Undone::at_once("the log writes nothing of what is queued (rule O3)".to_owned()));
        left.into_iter().collect()
    }
}

/// The segment being written.
pub(super) struct Segment {
    file: Box<dyn File>,
    pub(super) number: u64,
    /// Bytes of its file; a batch that fits into no segment may go beyond.
    pub(super) capacity: u64,
    /// Bytes at its end that are left for the next start, where there is no other room.
    kept: u64,
    /// Where the next batch goes.
    pub(super) end: u64,
    /// How much of it is durable.
    synced: u64,
    /// How much of it its witness says was durable.
    witnessed: u64,
    witness_at: u64,
    chain: u32,
    ranges: Ranges,
}

impl Segment {
    /// Where the next batch goes.
    pub(super) fn place(&self) -> Place {
        Place { segment: self.number, offset: self.end, synced: self.synced, chain: self.chain }
    }

    /// Bytes that are durable, and of which the witness does not say so.
    fn unwitnessed(&self) -> u64 {
        self.synced - self.witnessed
    }

    /// It took a batch beyond the size that its header names: that tells nothing of a file that is cut behind it.
    fn has_grown(&self) -> bool {
        self.synced > self.capacity
    }

    /// Not synced: it goes with the next batch, or the system writes it back soon enough.
    fn write_witness(&mut self) -> io::Result<()> {
        self.file.write_at(self.witness_at, &format::witness(self.number, self.synced))?;
        self.witnessed = self.synced;
        Ok(())
    }

    /// A segment without entries takes any batch, so that a small one cannot stop the log.
    fn is_full_for(&self, bytes: usize) -> bool {
        !self.ranges.is_empty() && self.end + (bytes.next_multiple_of(format::ALIGN) as u64) > self.capacity - self.kept
    }

    /// Bytes left, rounded down so that padding fits too.
    fn room(&self) -> usize {
        ((self.capacity - self.kept).saturating_sub(self.end) as usize) / format::ALIGN * format::ALIGN
    }

    /// Makes a batch the next one of this segment.
    fn seal(&mut self, batch: &mut Vec<u8>, parts: u32, mutant: Mutant) {
        let chain = if mutant == Mutant::NoChain { 0 } else { self.chain };
        self.chain = format::seal(batch, parts, Place { chain, ..self.place() });
    }

    /// Writes a sealed batch.
    fn put(&mut self, batch: &[u8]) -> io::Result<()> {
        self.file.write_at(self.end, batch)?;
        self.end += batch.len() as u64;
        Ok(())
    }
}

/// A segment on its way: file, durable name, durable size, header, durable header. Nothing is written before the name is durable, no
/// header before the size is, and no batch before the header is. So a file that has no sound header never held anything, and one that
/// has, and is shorter than it says, was cut by something else (rule L2).
pub(super) struct Starting {
    header: SegmentHeader,
    /// As it lies in the file.
    raw: Vec<u8>,
    at: At,
    /// How much of the file is left for the next start.
    keeps: Keeps,
}

#[derive(Clone, Copy)]
enum Keeps {
    Nothing,
    /// Of the reserve, so much or half of it.
    Start,
    /// Of what a start has cut off for itself, most of it, so that many can follow.
    Most,
}

/// What is left of the reserve for the starts of a process that stays on a full disk: each takes an eighth of what is left of it.
const START_BYTES: u64 = 256 << 10;

impl Keeps {
    fn bytes(self, capacity: u64) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Start => START_BYTES.min(capacity / 2),
            Self::Most => capacity - capacity / 8,
        }
    }
}

enum At {
    File,
    /// A file is ready to be renamed.
    Spare(Spare),
    Created(Box<dyn File>, u64),
    Zeros(Box<dyn File>, u64),
    SyncSize(Box<dyn File>, u64),
    /// There was no room for all of the file.
    Remove,
    Opening(u64),
    Opened(Box<dyn File>, u64),
    Header(Box<dyn File>, u64),
    Sync(Box<dyn File>, u64),
}

impl Starting {
    /// The size of its file is filled in once it has one.
    pub(super) fn new(header: SegmentHeader) -> Self {
        Self { header, raw: Vec::new(), at: At::File, keeps: Keeps::Nothing }
    }

    /// Goes on in the reserve, if it needs a file and the reserve is there.
    pub(super) fn take_reserve(&mut self, shared: &Shared) -> bool {
        // What there was no room for is replaced by the reserve.
        let needs_file = matches!(self.at, At::File | At::Remove);
        let Some(reserve) = needs_file.then(|| shared.take_reserve()).flatten() else { return false };
        (self.at, self.keeps) = (At::Spare(reserve), Keeps::Start);
        true
    }

    /// Most of the file is left for the starts that follow.
    pub(super) fn keep_most(&mut self) {
        self.keeps = Keeps::Most;
    }

    /// Does the next disk operation; the segment once it is ready. **Errors**: a shortage may be tried again, and goes on where it
    /// was.
    pub(super) fn step(&mut self, shared: &Shared, disk: &dyn Disk, dir: &Path) -> io::Result<Option<Segment>> {
        let path = segment_path(dir, self.header.number);
        let (done, otherwise) = match std::mem::replace(&mut self.at, At::File) {
            At::File => match shared.next_file() {
                Ok(spare) => (Ok(At::Spare(spare)), At::File),
                Err(capacity) if disk.space(dir)?.free < capacity => (Err(io::ErrorKind::StorageFull.into()), At::File),
                Err(capacity) => (disk.create(&path).map(|file| At::Created(file, capacity)), At::File),
            },
            At::Spare(spare) => (disk.rename(&spare.path, &path).map(|()| At::Opening(spare.file_bytes)), At::Spare(spare)),
            At::Created(file, capacity) => match shared.sync_dir(disk, dir) {
                Ok(()) => (Ok(At::Zeros(file, capacity)), At::File),
                Err(error) => (Err(error), At::Created(file, capacity)),
            },
            // A small one, with the zeros that the filler would have written: appends that grow a file are slow.
            At::Zeros(file, capacity) => {
                let written = file.write_zeros(0, capacity as usize);
                let next = match shared.mutant {
                    Mutant::HeaderBeforeSize => At::Header(file, capacity),
                    _ => At::SyncSize(file, capacity),
                };
                (written.map(|()| next), At::Remove)
            }
            At::SyncSize(file, capacity) => {
                file.sync_data().map_err(of_sync)?;
                (Ok(At::Header(file, capacity)), At::File)
            }
            At::Remove => (disk.remove(&path).map(|()| At::File), At::Remove),
            At::Opening(capacity) => (disk.open(&path).map(|file| At::Opened(file, capacity)), At::Opening(capacity)),
            At::Opened(file, capacity) => match shared.sync_dir(disk, dir) {
                Ok(()) => (Ok(At::Header(file, capacity)), At::File),
                Err(error) => (Err(error), At::Opened(file, capacity)),
            },
            At::Header(file, capacity) => {
                self.header.file_bytes = capacity;
                self.raw = self.header.encode();
                // No witness yet: what lies there is of an earlier life of the file.
                let front = [&self.raw[..], &[0; WITNESS]].concat();
                match file.write_at(0, &front) {
                    Ok(()) => (Ok(At::Sync(file, capacity)), At::File),
                    Err(error) => (Err(error), At::Header(file, capacity)),
                }
            }
            At::Sync(file, capacity) => {
                file.sync_data().map_err(of_sync)?;
                let number = self.header.number;
                let end = format::batches_at(self.raw.len()) as u64;
                return Ok(Some(Segment {
                    file,
                    number,
                    capacity,
                    kept: self.keeps.bytes(capacity),
                    end,
                    synced: end,
                    witnessed: end,
                    witness_at: self.raw.len() as u64,
                    chain: format::chain_start(&self.raw, number),
                    ranges: Ranges::new(),
                }));
            }
        };
        match done {
            Ok(at) => self.at = at,
            Err(error) => {
                self.at = otherwise;
                return Err(error);
            }
        }
        Ok(None)
    }
}
