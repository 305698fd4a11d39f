//! Looking at a log that nobody writes, without changing anything: what recovery would refuse, and what it would not read.
//!
//! Owns: going on after a fault, so that each segment is looked at. Does not own: what a fault is (`recovery`), or mending one.

use super::recovery::{self, Bounds, Keeps, Reader, Source};
use super::{Error, Mutant, Replay};
use std::collections::BTreeMap;
use std::path::Path;
use surefoot_env::Disk;
use surefoot_model::{Lsn, PartitionId};

/// What was found. Without faults, a recovery would go the same way.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Each names its file, and the byte where that is known.
    pub faults: Vec<Error>,
    pub segments: usize,
    /// Bytes of batches, in all segments.
    pub bytes: u64,
    /// Bytes of a torn tail: no fault, the next start cuts them.
    pub torn_bytes: u64,
    /// What the log holds of each partition; nothing where there are faults.
    pub partitions: BTreeMap<PartitionId, Bounds>,
}

/// Looks at every batch of every segment in `dir`. Where none is at fault, it hands all entries behind `covered` to `replay`, as a recovery would.
/// **Errors**: the directory cannot be listed.
pub fn inspect(
    disk: &dyn Disk,
    dir: &Path,
    covered: &BTreeMap<PartitionId, Lsn>,
    replay: &mut Replay<'_>,
) -> Result<Inspection, Error> {
    let listed = recovery::list(disk, dir)?;
    let (number_max, marked) = (listed.number_max(), listed.marked());
    let mut found = Inspection { segments: listed.numbers.len(), ..Inspection::default() };
    found.faults.extend(listed.check_mark(dir).err());
    let mut sources = Vec::new();
    for number in listed.numbers {
        match Source::open(disk, dir, number) {
            Ok(Some(source)) => sources.push(source),
            Ok(None) => found.faults.extend(recovery::check_stillborn(dir, number, number_max, marked).err()),
            Err(error) => found.faults.push(error),
        }
    }
    let nothing = BTreeMap::new();
    let mut ignore = |_| Ok(());
    let reader = Reader::new(disk, Mutant::None, &nothing, &mut ignore, Keeps::AsItIs);
    for (at, source) in sources.iter().enumerate() {
        let follower = sources.get(at + 1);
        found.faults.extend(follower.and_then(|follower| recovery::check_follows(dir, source, follower).err()));
        // Where the next one is missing, nobody says where this one ends.
        let previous = follower.and_then(|follower| follower.header.previous);
        let end = previous.filter(|(number, _)| *number == source.header.number).map(|(_, end)| end);
        match reader.check(source, end) {
            Ok((bytes, torn_bytes)) => (found.bytes, found.torn_bytes) = (found.bytes + bytes, torn_bytes),
            Err(error) => found.faults.push(error),
        }
    }
    if found.faults.is_empty() {
        match recovery::read(disk, dir, Mutant::None, covered, replay, Keeps::AsItIs) {
            Ok(read) => found.partitions = read.summary.partitions,
            Err(error) => found.faults.push(error),
        }
    }
    Ok(found)
}
