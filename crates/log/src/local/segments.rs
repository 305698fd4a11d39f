//! Which files there are, what each holds, which may go and which are ready for use: plain bookkeeping.
//!
//! Owns: names, sizes, trim points, spares. Does not own: any disk operation (writer, filler and recovery do those).

use super::{Mutant, Options};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use surefoot_model::{Lsn, PartitionId};

/// So many trimmed files are kept for use again; the others are removed.
pub(super) const SPARES_MAX: usize = 2;

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
    /// Size of the file.
    pub(super) file_bytes: u64,
    pub(super) ranges: Ranges,
}

/// A file that can become a segment. Its contents do not matter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file_bytes: u64,
}

pub(super) struct Segments {
    dir: PathBuf,
    pub(super) bytes_min: u64,
    bytes_max: u64,
    mutant: Mutant,
    /// Oldest first.
    pub(super) closed: VecDeque<Closed>,
    pub(super) current_end: u64,
    pub(super) current_capacity: u64,
    pub(super) spares: Vec<Spare>,
    /// Counts the names of spares.
    pub(super) spares_named: u64,
    trims: BTreeMap<PartitionId, Lsn>,
    /// Making a spare failed: not before the next segment again.
    pub(super) spare_refused: bool,
}

impl Segments {
    pub(super) fn new(dir: &Path, options: &Options) -> Self {
        Self {
            dir: dir.to_owned(),
            bytes_min: options.segment_bytes_min,
            bytes_max: options.segment_bytes_max,
            mutant: options.mutant,
            closed: VecDeque::new(),
            current_end: 0,
            current_capacity: 0,
            spares: Vec::new(),
            spares_named: 0,
            trims: BTreeMap::new(),
            spare_refused: false,
        }
    }

    pub(super) fn bytes_retained(&self) -> u64 {
        self.closed.iter().map(|s| s.end).sum::<u64>() + self.current_end
    }

    /// How large the next segment should be: half of what is retained, so that segments grow (and shrink) with the load.
    pub(super) fn capacity_wanted(&self) -> u64 {
        (self.bytes_retained() / 2).next_power_of_two().clamp(self.bytes_min, self.bytes_max)
    }

    /// Whether a file of this size is worth keeping for the next segments.
    pub(super) fn fits(&self, file_bytes: u64) -> bool {
        let wanted = self.capacity_wanted();
        self.spares.len() < SPARES_MAX && (wanted / 2..=wanted * 2).contains(&file_bytes)
    }

    /// Whether to make a spare now: the segment being written is a quarter full and there is nothing to follow it.
    pub(super) fn wants_spare(&self) -> bool {
        self.spares.is_empty() && !self.spare_refused && self.current_end * 4 >= self.current_capacity
    }

    pub(super) fn trim(&mut self, partition: PartitionId, up_to: Lsn) {
        let point = self.trims.entry(partition).or_default();
        *point = up_to.max(*point);
    }

    /// Takes the oldest segment out of the log if all of its entries are covered by the trim points.
    pub(super) fn take_covered(&mut self) -> Option<Closed> {
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

/// What a file in the log's directory is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Segment(u64),
    Spare(u64),
    Other,
}

pub(super) fn named(path: &Path) -> Named {
    let stem = path.file_stem().and_then(|s| s.to_str()).filter(|s| s.len() >= 10 && s.bytes().all(|b| b.is_ascii_digit()));
    match (stem.and_then(|s| s.parse().ok()), path.extension().and_then(|e| e.to_str())) {
        (Some(number), Some("seg")) => Named::Segment(number),
        (Some(number), Some("spare")) => Named::Spare(number),
        _ => Named::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PartitionId = PartitionId(1);
    const B: PartitionId = PartitionId(2);

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
            s.closed.push_back(Closed { end: wanted, ..closed(&[]) });
        }
        assert_eq!(sizes, [1, 1, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
    }

    #[test]
    fn names() {
        assert_eq!(named(&segment_path(Path::new("d"), 7)), Named::Segment(7));
        assert_eq!(named(Path::new("d/0000000003.spare")), Named::Spare(3));
        assert_eq!(named(Path::new("d/notes.seg")), Named::Other);
    }
}
