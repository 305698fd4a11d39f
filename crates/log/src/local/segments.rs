//! Which files there are, what each holds, which may go and which are ready for use: plain bookkeeping.
//!
//! Owns: names, sizes, trim points, spares. Does not own: any disk operation (writer, filler and recovery do those).

use super::format::{self, Place};
use super::{Mutant, Options};
use crate::Room;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use surefoot_env::{CopyContent, FileCopy};
use surefoot_model::{Lsn, PartitionId};

/// First and last LSN of each partition in a segment; an entry that is only partly in it counts.
pub(super) type Ranges = BTreeMap<PartitionId, (Lsn, Lsn)>;

pub(super) fn note(ranges: &mut Ranges, partition: PartitionId, lsn: Lsn) {
    ranges.entry(partition).and_modify(|(_, last)| *last = lsn).or_insert((lsn, lsn));
}

/// A segment that is no longer written.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) path: PathBuf,
    /// Where its last batch ends.
    pub(super) end: u64,
    /// Size of the file, as far as it is known to last.
    pub(super) file_bytes: u64,
    pub(super) ranges: Ranges,
}

/// A file that can become a segment. Its contents do not matter, and its size is durable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file_bytes: u64,
}

pub(super) struct Segments {
    dir: PathBuf,
    pub(super) bytes_min: u64,
    /// The size of a segment for which no file was prepared.
    pub(super) unprepared_bytes: u64,
    bytes_max: u64,
    mutant: Mutant,
    /// Oldest first.
    pub(super) closed: VecDeque<Closed>,
    pub(super) current_end: u64,
    /// The segment being written, and up to where it is durable.
    pub(super) current_synced: Place,
    pub(super) current_capacity: u64,
    pub(super) spares: Vec<Spare>,
    /// What running work may fill once there is no room for another segment (rule L8).
    pub(super) reserve: Option<Spare>,
    reserve_bytes: u64,
    /// The reserve became a segment, and there is no room for another one.
    pub(super) reserve_is_taken: bool,
    /// Nothing could be written for want of room.
    pub(super) is_stuck: bool,
    /// Room on the disk is short: one spare is kept, and no more.
    pub(super) is_short: bool,
    /// Counts the names of spares.
    pub(super) spares_named: u64,
    /// The number that the mark in the directory has.
    pub(super) marked: Option<u64>,
    trims: BTreeMap<PartitionId, Lsn>,
    /// So many want everything kept that is there (rule C6).
    pub(super) holds: usize,
    /// Making a spare failed: not before the next segment again.
    pub(super) spare_refused: bool,
    /// The most that was retained while these segments were started: of the present window, and of the one before.
    peaks: [u64; 2],
    /// Segments started in the present window.
    started: u32,
}

/// Segments in a window. Each should see several rounds of checkpoints.
const WINDOW: u32 = 16;

impl Segments {
    pub(super) fn new(dir: &Path, options: &Options) -> Self {
        Self {
            dir: dir.to_owned(),
            bytes_min: options.segment_bytes_min,
            unprepared_bytes: options.segment_bytes_min,
            bytes_max: options.segment_bytes_max,
            mutant: options.mutant,
            closed: VecDeque::new(),
            current_end: 0,
            current_synced: Place { segment: 0, offset: 0, synced: 0, chain: 0 },
            current_capacity: 0,
            spares: Vec::new(),
            reserve: None,
            reserve_bytes: options.reserve_bytes,
            reserve_is_taken: false,
            is_stuck: false,
            is_short: false,
            spares_named: 0,
            marked: None,
            trims: BTreeMap::new(),
            holds: 0,
            spare_refused: false,
            peaks: [0, 0],
            started: 0,
        }
    }

    pub(super) fn bytes_retained(&self) -> u64 {
        self.closed.iter().map(|s| s.end).sum::<u64>() + self.current_end
    }

    /// The writer goes on in another segment.
    pub(super) fn turned(&mut self, closed: Option<Closed>, place: Place, capacity: u64) {
        self.closed.extend(closed);
        // Its header is durable.
        (self.current_end, self.current_synced, self.current_capacity) = (place.offset, place, capacity);
        self.started += 1;
        if self.started > WINDOW {
            (self.peaks, self.started) = ([0, self.peaks[0]], 1);
        }
        self.peaks[0] = self.peaks[0].max(self.bytes_retained());
    }

    /// The most that was retained of late. Trimming frees at once what checkpoints held for as long as their interval, and as much
    /// is written again until the next: so many bytes, log and spares together, stay on disk.
    fn bytes_peak(&self) -> u64 {
        self.peaks[0].max(self.peaks[1]).max(self.bytes_retained())
    }

    /// How large the next segment should be: half of what is retained at most, so that segments grow (and shrink) with the load.
    pub(super) fn capacity_wanted(&self) -> u64 {
        (self.bytes_peak() / 2).next_power_of_two().clamp(self.bytes_min, self.bytes_max)
    }

    /// Whether a file of this size is worth keeping for the next segments.
    pub(super) fn fits(&self, file_bytes: u64) -> bool {
        let wanted = self.capacity_wanted();
        let kept = self.bytes_retained() + self.spare_bytes() + file_bytes;
        let has_use = self.spares.is_empty() || kept <= self.bytes_peak() && !self.is_short;
        (wanted / 2..=wanted * 2).contains(&file_bytes) && has_use
    }

    /// A file is ready to become a segment. The reserve comes first.
    pub(super) fn ready(&mut self, spare: Spare) {
        if self.reserve.is_none() && spare.file_bytes >= self.reserve_bytes {
            self.reserve = Some(spare);
            self.reserve_is_taken = false;
        } else {
            self.spares.push(spare);
        }
    }

    /// Whether a trimmed file should be kept for the next segments.
    pub(super) fn has_use_for(&self, file_bytes: u64) -> bool {
        self.fits(file_bytes) || self.reserve.is_none() && file_bytes >= self.reserve_bytes
    }

    /// Makes a file of this size out of nothing, if there is need for one: the reserve before a spare.
    pub(super) fn wanted(&mut self) -> Option<Spare> {
        let file_bytes = match self.reserve {
            None => self.reserve_bytes,
            Some(_) if self.wants_spare() => self.capacity_wanted(),
            Some(_) => return None,
        };
        Some(Spare { file_bytes, path: self.spare_path() })
    }

    pub(super) fn room(&self) -> Room {
        match (self.is_stuck, self.reserve_is_taken) {
            (true, _) => Room::None,
            (false, true) => Room::Reserve,
            (false, false) => Room::Enough,
        }
    }

    /// The number that the mark is to have, if it has another one.
    pub(super) fn unmarked(&self) -> Option<u64> {
        let current = self.current_synced.segment;
        (self.marked != Some(current)).then_some(current)
    }

    /// Takes a spare of which there are too many, since less is written or the disk is short.
    pub(super) fn take_surplus(&mut self) -> Option<Spare> {
        let kept = self.bytes_retained() + self.spare_bytes();
        let is_surplus = self.spares.len() > 1 && (self.is_short || kept > self.bytes_peak() + self.bytes_max);
        if is_surplus { self.spares.pop() } else { None }
    }

    fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|spare| spare.file_bytes).sum()
    }

    /// Whether to make a spare now: the segment being written is a quarter full and there is nothing to follow it.
    pub(super) fn wants_spare(&self) -> bool {
        self.spares.is_empty() && !self.spare_refused && self.current_end * 4 >= self.current_capacity
    }

    pub(super) fn trim(&mut self, partition: PartitionId, up_to: Lsn) {
        let point = self.trims.entry(partition).or_default();
        *point = up_to.max(*point);
    }

    /// Takes the oldest segment out of the log if all of its entries are covered by the trim points, and nobody holds it.
    pub(super) fn take_covered(&mut self) -> Option<Closed> {
        if self.holds > 0 && self.mutant != Mutant::TrimHeld {
            return None;
        }
        let oldest = self.closed.front()?;
        let covered = oldest.ranges.iter().all(|(partition, (first, last))| {
            let needed = if self.mutant == Mutant::TrimEarly { first } else { last };
            self.trim_point(*partition) >= *needed
        });
        if covered { self.closed.pop_front() } else { None }
    }

    /// The partition that has most to trim before the oldest segment can go.
    pub(super) fn oldest_holder(&self) -> Option<PartitionId> {
        let lag = |(partition, (_, last)): (&PartitionId, &(Lsn, Lsn))| {
            (last.0.saturating_sub(self.trim_point(*partition).0), *partition)
        };
        let most = self.closed.front()?.ranges.iter().map(lag).max()?;
        (most.0 > 0).then_some(most.1)
    }

    /// All that is durable now: the bytes of each segment, of the last one with the batch that says that its file ends there, and a
    /// mark (rule L2).
    pub(super) fn durable_files(&self) -> Vec<FileCopy> {
        let closed = self.closed.iter().map(|closed| (closed.path.clone(), closed.end, Vec::new()));
        let durable = self.current_synced;
        let current = (segment_path(&self.dir, durable.segment), durable.offset, format::cut(durable));
        let segments = closed.chain([current]).map(|(of, bytes, then)| FileCopy {
            name: of.file_name().expect("a segment has a name").into(),
            content: CopyContent::Start { of, bytes, then },
        });
        let mark = FileCopy { name: mark_path(Path::new(""), durable.segment), content: CopyContent::Bytes(Vec::new()) };
        segments.chain([mark]).collect()
    }

    pub(super) fn spare_path(&mut self) -> PathBuf {
        self.spares_named += 1;
        self.dir.join(format!("{:010}.spare", self.spares_named))
    }

    fn trim_point(&self, partition: PartitionId) -> Lsn {
        self.trims.get(&partition).copied().unwrap_or_default()
    }
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.seg"))
}

/// The name of the mark: an empty file that says up to which segment the log has gone. Without it nobody could tell a log that ended
/// there from one whose last segment is missing (rule L2).
pub(super) fn mark_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.mark"))
}

/// What a file in the log's directory is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Segment(u64),
    Spare(u64),
    Mark(u64),
    Other,
}

pub(super) fn named(path: &Path) -> Named {
    let stem = path.file_stem().and_then(|s| s.to_str()).filter(|s| s.len() >= 10 && s.bytes().all(|b| b.is_ascii_digit()));
    match (stem.and_then(|s| s.parse().ok()), path.extension().and_then(|e| e.to_str())) {
        (Some(number), Some("seg")) => Named::Segment(number),
        (Some(number), Some("spare")) => Named::Spare(number),
        (Some(number), Some("mark")) => Named::Mark(number),
        _ => Named::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PartitionId = PartitionId(1);
    const B: PartitionId = PartitionId(2);
    const START: Place = Place { segment: 1, offset: 0, synced: 0, chain: 0 };

    fn segments(mutant: Mutant) -> Segments {
        let options = Options { segment_bytes_min: 1 << 20, segment_bytes_max: 64 << 20, mutant, ..Options::new(|_| {}) };
        Segments::new(Path::new("log"), &options)
    }

    fn closed(ranges: &[(PartitionId, u64, u64)]) -> Closed {
        let ranges = ranges.iter().map(|(p, first, last)| (*p, (Lsn(*first), Lsn(*last)))).collect();
        Closed { path: PathBuf::new(), end: 1 << 20, file_bytes: 1 << 20, ranges }
    }

    #[test]
    fn a_segment_goes_when_every_partition_in_it_is_covered_and_it_is_the_oldest() {
        let mut s = segments(Mutant::None);
        s.closed.extend([closed(&[(A, 1, 10), (B, 1, 2)]), closed(&[(A, 11, 12)])]);
        s.trim(A, Lsn(12));
        assert!(s.take_covered().is_none());
        assert_eq!(s.oldest_holder(), Some(B));
        s.trim(B, Lsn(1));
        assert!(s.take_covered().is_none());
        s.trim(B, Lsn(2));
        assert_eq!(s.oldest_holder(), None);
        assert!(s.take_covered().is_some() && s.take_covered().is_some() && s.take_covered().is_none());
    }

    #[test]
    fn segments_double_with_what_is_retained() {
        let mut s = segments(Mutant::None);
        let mut sizes = Vec::new();
        for _ in 0..12 {
            let wanted = s.capacity_wanted();
            sizes.push(wanted >> 20);
            s.turned(Some(Closed { end: wanted, ..closed(&[]) }), START, wanted);
        }
        assert_eq!(sizes, [1, 1, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
    }

    /// One round of checkpoints every six segments frees all of them at once.
    fn rounds(s: &mut Segments, count: usize, segments: u64, bytes: u64) -> (usize, usize) {
        let (mut made, mut removed) = (0, 0);
        for _ in 0..count {
            for _ in 0..segments {
                let file = s.spares.pop().unwrap_or_else(|| {
                    made += 1;
                    Spare { path: PathBuf::new(), file_bytes: bytes }
                });
                let full = Closed { end: file.file_bytes, file_bytes: file.file_bytes, ..closed(&[]) };
                s.turned(Some(full), START, file.file_bytes);
                while s.take_surplus().is_some() {
                    removed += 1;
                }
            }
            while let Some(trimmed) = s.take_covered() {
                if s.fits(trimmed.file_bytes) {
                    s.spares.push(Spare { path: PathBuf::new(), file_bytes: trimmed.file_bytes });
                } else {
                    removed += 1;
                }
            }
        }
        (made, removed)
    }

    #[test]
    fn under_a_steady_load_every_trimmed_file_is_used_again_and_few_are_kept_once_it_is_over() {
        let mut s = segments(Mutant::None);
        assert_eq!(rounds(&mut s, 20, 6, 64 << 20), (6, 0));
        assert_eq!(s.spares.len(), 6);
        let (made, removed) = rounds(&mut s, 60, 1, 1 << 20);
        assert_eq!(made, 0);
        assert!(removed > 0 && s.spares.len() <= 2, "{removed} removed, {} left", s.spares.len());
    }

    #[test]
    fn of_what_is_ready_one_file_is_kept_where_the_disk_is_short() {
        let mut s = segments(Mutant::None);
        rounds(&mut s, 20, 6, 64 << 20);
        s.is_short = true;
        while s.take_surplus().is_some() {}
        assert_eq!((s.spares.len(), s.fits(64 << 20)), (1, false));
        s.is_short = false;
        assert!(s.fits(64 << 20), "it grows to what it was");
    }

    #[test]
    fn names() {
        assert_eq!(named(&segment_path(Path::new("d"), 7)), Named::Segment(7));
        assert_eq!(named(Path::new("d/0000000003.spare")), Named::Spare(3));
        assert_eq!(named(Path::new("d/notes.seg")), Named::Other);
    }
}
