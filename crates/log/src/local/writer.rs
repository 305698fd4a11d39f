//! The writer: takes everything that is queued, writes it as one batch, makes it durable, hands it on. One disk operation a step.
//!
//! Owns: LSNs, batches, the segment being written. Does not own: threads or waiting (the driver's), or older segments.

use super::format::{self, BATCH_HEADER, ENTRY_HEADER, PARTS_MAX, Part, Place, SegmentHeader};
use super::segments::{self, Closed, Ranges, Spare, segment_path};
use super::{Mutant, Queued, Shared};
use crate::{Durable, Entry};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Disk, File, Step, Steps};
use surefoot_model::{Lsn, PartitionId};

/// A log that has been idle for this long writes one empty batch, to vouch for its last (rule L2). Late enough not to stand in
/// the way of the next append of a caller that waits for each.
const VOUCH_AFTER: Duration = Duration::from_millis(20);

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    batch_bytes_max: usize,
    mutant: Mutant,
    segment: Segment,
    next: BTreeMap<PartitionId, Lsn>,
    /// Taken off the queue. `payload` and `part` say how far the first is written.
    taken: VecDeque<Queued>,
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
    Sync,
    Publish,
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
            mutant: shared.mutant,
            shared,
            disk,
            dir,
            segment,
            next,
            taken: VecDeque::new(),
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
            Stage::Sync => {
                if self.mutant != Mutant::SkipSync {
                    self.segment.file.sync_data()?;
                }
                self.segment.synced = self.segment.end;
                if self.mutant != Mutant::PublishBeforeSync {
                    self.stage = Stage::Publish;
                }
            }
            Stage::Publish => {
                self.shared.publish(&mut self.batch.entries, &mut self.batch.durable);
                if self.mutant == Mutant::PublishBeforeSync {
                    self.stage = Stage::Sync;
                }
            }
            Stage::Start(starting) => match starting.step(&self.shared, &*self.disk, &self.dir)? {
                Started::Not(starting) => self.stage = Stage::Start(starting),
                Started::Yes(segment) => self.turn_to(segment),
            },
        }
        Ok(Step::Worked)
    }

    fn write(&mut self) -> io::Result<Step> {
        // Asked before the queue is: what was appended before the log was closed is still written.
        let closed = self.shared.is_over();
        if self.taken.is_empty() && !self.shared.take_queued(&mut self.taken) {
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
        self.segment.write(&mut self.batch.bytes, self.batch.parts, self.mutant)?;
        self.stage = if self.mutant == Mutant::PublishBeforeSync { Stage::Publish } else { Stage::Sync };
        self.vouch = Vouch::Due;
        if self.shared.note_end(self.segment.end) {
            self.shared.filler_wake.wake();
        }
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
                self.segment.write(&mut self.batch.bytes, 0, self.mutant)?;
                self.shared.note_end(self.segment.end);
                self.vouch = Vouch::Written;
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
        };
        Starting::new(&header)
    }

    fn turn_to(&mut self, segment: Segment) {
        let old = std::mem::replace(&mut self.segment, segment);
        let closed = Closed {
            path: segment_path(&self.dir, old.number),
            end: old.synced,
            file_bytes: old.capacity.max(old.end),
            ranges: old.ranges,
        };
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
            self.batch.durable.clear();
            self.shared.end_inbox();
        }
        step
    }
}

/// The segment being written.
pub(super) struct Segment {
    file: Box<dyn File>,
    number: u64,
    /// Bytes it should hold; the last batch may go beyond.
    pub(super) capacity: u64,
    /// Where the next batch goes.
    pub(super) end: u64,
    /// How much of it is durable.
    synced: u64,
    chain: u32,
    ranges: Ranges,
}

impl Segment {
    /// A segment without entries takes any batch, so that a small one cannot stop the log.
    fn is_full_for(&self, bytes: usize) -> bool {
        !self.ranges.is_empty() && self.end + (bytes.next_multiple_of(format::ALIGN) as u64) > self.capacity
    }

    /// Bytes left, rounded down so that padding fits too.
    fn room(&self) -> usize {
        (self.capacity.saturating_sub(self.end) as usize) / format::ALIGN * format::ALIGN
    }

    fn write(&mut self, batch: &mut Vec<u8>, parts: u32, mutant: Mutant) -> io::Result<()> {
        let chain = if mutant == Mutant::NoChain { 0 } else { self.chain };
        let place = Place { segment: self.number, offset: self.end, synced: self.synced, chain };
        self.chain = format::seal(batch, parts, place);
        self.file.write_at(self.end, batch)?;
        self.end += batch.len() as u64;
        Ok(())
    }
}

/// A segment on its way: file, durable name, header, durable header. Nothing is written before the name is durable, and no
/// batch before the header is.
pub(super) struct Starting {
    number: u64,
    header: Vec<u8>,
    at: At,
}

enum At {
    File,
    Created(Box<dyn File>, u64),
    Zeros(Box<dyn File>, u64),
    Opening(Spare),
    Opened(Box<dyn File>, u64),
    Header(Box<dyn File>, u64),
    Sync(Box<dyn File>, u64),
}

pub(super) enum Started {
    Not(Starting),
    Yes(Segment),
}

impl Starting {
    pub(super) fn new(header: &SegmentHeader) -> Self {
        Self { number: header.number, header: header.encode(), at: At::File }
    }

    /// Does the next disk operation.
    pub(super) fn step(self, shared: &Shared, disk: &dyn Disk, dir: &Path) -> io::Result<Started> {
        let path = segment_path(dir, self.number);
        let at = match self.at {
            At::File => match shared.next_file() {
                Ok(spare) => {
                    disk.rename(&spare.path, &path)?;
                    At::Opening(Spare { path, file_bytes: spare.file_bytes })
                }
                Err(capacity) => At::Created(disk.create(&path)?, capacity),
            },
            At::Created(file, capacity) => {
                shared.sync_dir(disk, dir)?;
                At::Zeros(file, capacity)
            }
            At::Zeros(file, capacity) => {
                // A small one, with the zeros that the filler would have written: appends that grow a file are slow.
                file.write_zeros(0, capacity as usize)?;
                At::Header(file, capacity)
            }
            At::Opening(spare) => At::Opened(disk.open(&spare.path)?, spare.file_bytes),
            At::Opened(file, capacity) => {
                shared.sync_dir(disk, dir)?;
                At::Header(file, capacity)
            }
            At::Header(file, capacity) => {
                file.write_at(0, &self.header)?;
                At::Sync(file, capacity)
            }
            At::Sync(file, capacity) => {
                file.sync_data()?;
                let end = self.header.len() as u64;
                let chain = format::chain_start(&self.header, self.number);
                let (number, ranges) = (self.number, Ranges::new());
                return Ok(Started::Yes(Segment { file, number, capacity, end, synced: end, chain, ranges }));
            }
        };
        Ok(Started::Not(Self { at, ..self }))
    }
}
