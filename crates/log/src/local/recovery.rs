//! Recovery: what a directory of segments still says after a crash, or why it must not be trusted.
//!
//! Owns: reading segments in order, telling a torn tail from rot (rule L2), putting large entries together again. Does not own:
//! writing, but for what makes durable what it keeps (rule L3) and the removal of files that never became part of the log.

use super::format::{self, ALIGN, BATCH_HEADER, BatchHeader, HEADER_START, HeaderFault, Part, Place, SegmentHeader, WITNESS};
use super::segments::{self, Closed, Named, Ranges, Segments, Spare, named, segment_path};
use super::{Error, Mutant, Options, Replay};
use crate::Entry;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use surefoot_env::{Disk, File};
use surefoot_model::{Epoch, Lsn, PartitionId};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Entries replayed.
    pub records: u64,
    /// Bytes of log that were read and kept.
    pub bytes: u64,
    /// Bytes recognised as a torn tail and cut; never acknowledged.
    pub cut_bytes: u64,
    /// What the log holds of each partition it ever saw.
    pub partitions: BTreeMap<PartitionId, Bounds>,
}

/// The entries of one partition: from `first` to before `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first retained LSN; equal to `next` if nothing is retained.
    pub first: Lsn,
    /// The LSN that the next entry gets.
    pub next: Lsn,
}

impl Recovery {
    /// A partition that was never seen starts at 1.
    pub fn bounds(&self, partition: PartitionId) -> Bounds {
        self.partitions.get(&partition).copied().unwrap_or(Bounds { first: Lsn(1), next: Lsn(1) })
    }

    /// Whether tables that have applied up to `applied` and this log meet without a gap (rule C2). Errors: [`Error::Gap`].
    pub fn check(&self, partition: PartitionId, applied: Lsn) -> Result<(), Error> {
        let Bounds { first, next } = self.bounds(partition);
        let met = first <= applied.next() && applied < next;
        if met { Ok(()) } else { Err(Error::Gap { partition, applied, first, next }) }
    }
}

/// A directory that was read.
pub(super) struct Found {
    pub(super) summary: Recovery,
    pub(super) closed: Vec<Closed>,
    pub(super) next: BTreeMap<PartitionId, Lsn>,
    /// Where the last segment ends: all before is durable.
    pub(super) last: Option<Place>,
    /// The highest number any segment had.
    pub(super) number_max: u64,
    /// A segment whose header never became durable.
    stillborn: Option<PathBuf>,
    spares: Vec<(u64, PathBuf)>,
    /// Up to which segment the log had gone, by marks: more than one only where a power loss undid a removal.
    marks: Vec<(u64, PathBuf)>,
}

impl Found {
    /// Removes what is of no use, keeps spares, and makes the names durable.
    pub(super) fn tidy(&self, disk: &dyn Disk, dir: &Path, options: &Options, segments: &mut Segments) -> Result<(), Error> {
        let remove = |path: &Path| disk.remove(path).map_err(|e| io(e, "remove", path));
        self.stillborn.iter().try_for_each(|path| remove(path))?;
        segments.marked = self.marks.iter().map(|(number, _)| *number).max();
        let old = self.marks.iter().filter(|(number, _)| Some(*number) != segments.marked);
        old.map(|(_, path)| path).try_for_each(|path| remove(path))?;
        let mut spares = Vec::new();
        for (name, path) in &self.spares {
            let file_bytes = disk.open(path).and_then(|file| file.len()).map_err(|e| io(e, "open", path))?;
            segments.spares_named = segments.spares_named.max(*name);
            spares.push(Spare { path: path.clone(), file_bytes });
        }
        // The smallest that will do becomes the reserve.
        spares.sort_by_key(|spare| spare.file_bytes);
        for spare in spares {
            let keeps = segments.has_use_for(spare.file_bytes)
                && (options.mutant == Mutant::HeaderBeforeSize || make_size_durable(disk, &spare));
            if keeps { segments.ready(spare) } else { remove(&spare.path)? }
        }
        if options.mutant == Mutant::SkipDirSync { Ok(()) } else { disk.sync_dir(dir).map_err(|e| io(e, "sync", dir)) }
    }
}

/// An earlier process may have failed to sync a spare: then only the system's memory has it as long as it looks, and a sync alone does
/// nothing. So its end is written again. False where that fails: there may be no room, as on file systems that copy what they overwrite,
/// or the disk is bad there. Nothing is in a spare: the start goes on without it.
fn make_size_durable(disk: &dyn Disk, spare: &Spare) -> bool {
    let write = || {
        let file = disk.open(&spare.path)?;
        file.write_zeros(spare.file_bytes - ALIGN as u64, ALIGN)?;
        file.sync_data()
    };
    write().is_ok()
}

pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    options: &Options,
    covered: &BTreeMap<PartitionId, Lsn>,
    replay: &mut Replay<'_>,
) -> Result<Found, Error> {
    disk.create_dir(dir).map_err(|e| io(e, "make", dir))?;
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        disk.sync_dir(above).map_err(|e| io(e, "sync", above))?;
    }
    read(disk, dir, options.mutant, covered, replay, Keeps::Durably)
}

/// The files of a log, by their names.
pub(super) struct Listed {
    /// Of segments, ascending.
    pub(super) numbers: Vec<u64>,
    spares: Vec<(u64, PathBuf)>,
    marks: Vec<(u64, PathBuf)>,
}

pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Listed, Error> {
    let mut listed = Listed { numbers: Vec::new(), spares: Vec::new(), marks: Vec::new() };
    for path in disk.list(dir).map_err(|e| io(e, "list", dir))? {
        match named(&path) {
            Named::Segment(number) => listed.numbers.push(number),
            Named::Spare(name) => listed.spares.push((name, path)),
            Named::Mark(number) => listed.marks.push((number, path)),
            Named::Other => {}
        }
    }
    listed.numbers.sort_unstable();
    Ok(listed)
}

impl Listed {
    /// The highest number any segment has.
    pub(super) fn number_max(&self) -> u64 {
        self.numbers.last().copied().unwrap_or(0)
    }

    /// How far the log had gone.
    pub(super) fn marked(&self) -> u64 {
        self.marks.iter().map(|(number, _)| *number).max().unwrap_or(0)
    }

    pub(super) fn check_mark(&self, dir: &Path) -> Result<(), Error> {
        match self.marks.iter().find(|(number, _)| *number > self.number_max()) {
            Some((number, mark)) => Err(Error::LastMissing { path: segment_path(dir, *number), mark: mark.clone() }),
            None => Ok(()),
        }
    }
}

/// A segment without a sound header: only the last can have been started and not finished; `Source::open` made sure that nothing was ever in it.
/// Its mark comes after its header.
pub(super) fn check_stillborn(dir: &Path, number: u64, number_max: u64, marked: u64) -> Result<PathBuf, Error> {
    let path = segment_path(dir, number);
    if number == number_max && number > marked {
        Ok(path)
    } else {
        Err(Error::Damaged { path, offset: 0, what: "its header is damaged" })
    }
}

/// Whether nothing is missing between a segment and the one that is there next.
pub(super) fn check_follows(dir: &Path, source: &Source, follower: &Source) -> Result<(), Error> {
    let previous = follower.header.previous.map(|(number, _)| number);
    if previous == Some(source.header.number) {
        return Ok(());
    }
    Err(Error::Missing { path: segment_path(dir, previous.unwrap_or(source.header.number + 1)) })
}

/// What becomes of the segments that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    /// The last one is made durable as far as it is kept (rule L3).
    Durably,
    /// Nothing is written.
    AsItIs,
}

pub(super) fn read(
    disk: &dyn Disk,
    dir: &Path,
    mutant: Mutant,
    covered: &BTreeMap<PartitionId, Lsn>,
    replay: &mut Replay<'_>,
    keeps: Keeps,
) -> Result<Found, Error> {
    let listed = list(disk, dir)?;
    let (number_max, marked) = (listed.number_max(), listed.marked());
    listed.check_mark(dir)?;
    let Listed { numbers, spares, marks } = listed;
    let mut stillborn = None;
    let mut sources = Vec::new();
    for number in numbers {
        match Source::open(disk, dir, number)? {
            Some(source) => sources.push(source),
            None => stillborn = Some(check_stillborn(dir, number, number_max, marked)?),
        }
    }
    let mut reader = Reader::new(disk, mutant, covered, replay, keeps);
    let mut closed = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        let follower = sources.get(at + 1);
        follower.map_or(Ok(()), |follower| check_follows(dir, source, follower))?;
        let segment = match follower {
            Some(follower) if reader.covers(&follower.header) => reader.skip(source, &follower.header)?,
            _ => reader.read(source, follower.and_then(|f| f.header.previous).map(|(_, end)| end))?,
        };
        closed.push(segment);
    }
    let Reader { first, next, summary, last, .. } = reader;
    let partitions = next.iter().map(|(p, next)| (*p, Bounds { first: first.get(p).copied().unwrap_or(Lsn(1)), next: *next }));
    let summary = Recovery { partitions: partitions.collect(), ..summary };
    Ok(Found { summary, closed, next, last, number_max, stillborn, spares, marks })
}

/// A segment with a sound header. Its file is opened to be read, and closed again: there may be more of them than descriptors.
pub(super) struct Source {
    path: PathBuf,
    bytes: u64,
    pub(super) header: SegmentHeader,
    /// The header as it lies in the file.
    raw: Vec<u8>,
}

impl Source {
    /// None if the file has no sound header and never held a batch. Errors if it has none, but held batches.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, number: u64) -> Result<Option<Self>, Error> {
        let path = segment_path(dir, number);
        let file = disk.open_to_read(&path).map_err(|e| io(e, "open", &path))?;
        let bytes = file.len().map_err(|e| io(e, "open", &path))?;
        let mut start = [0; HEADER_START];
        let mut length = Err(HeaderFault::Damaged);
        if bytes >= HEADER_START as u64 {
            file.read_at(0, &mut start).map_err(|e| io(e, "read", &path))?;
            length = SegmentHeader::length(&start, number);
        }
        let mut raw = Vec::new();
        let header = match length {
            Ok(length) if length as u64 <= bytes => {
                raw.resize(length, 0);
                file.read_at(0, &mut raw).map_err(|e| io(e, "read", &path))?;
                SegmentHeader::decode(&raw)
            }
            Ok(_) => Err(SegmentHeader::fault_of(&start)),
            Err(fault) => Err(fault),
        };
        match header {
            Ok(header) => Ok(Some(Self { path, bytes, header, raw })),
            Err(HeaderFault::Version(found)) => Err(Error::Version { path, found }),
            Err(HeaderFault::DamagedVersion) => {
                let what = "its header is damaged: it names another format, and its checksum does not fit";
                Err(Error::Damaged { path, offset: 0, what })
            }
            Err(HeaderFault::Damaged) => {
                let mut all = vec![0; bytes as usize];
                file.read_at(0, &mut all).map_err(|e| io(e, "read", &path))?;
                // A batch is only written once the header is durable.
                let held = batches_behind(&all, 0, number).next().is_some();
                let what = "its header is damaged, though batches follow";
                if held { Err(Error::Damaged { path, offset: 0, what }) } else { Ok(None) }
            }
        }
    }

    /// Bytes of its file that are known to last, and so may be filled again.
    fn lasting_bytes(&self) -> u64 {
        self.bytes.min(self.header.file_bytes)
    }

    fn damaged(&self, offset: usize, what: &'static str) -> Error {
        Error::Damaged { path: self.path.clone(), offset: offset as u64, what }
    }

    fn short(&self, expected: u64) -> Error {
        Error::Short { path: self.path.clone(), bytes: self.bytes, expected }
    }
}

/// Headers of this segment's batches at or behind `from` that verify by themselves, whatever became of the chain.
fn batches_behind(bytes: &[u8], from: usize, segment: u64) -> impl Iterator<Item = BatchHeader> {
    (from.next_multiple_of(ALIGN)..bytes.len().saturating_sub(BATCH_HEADER - 1)).step_by(ALIGN).filter_map(move |at| {
        BatchHeader::decode(&bytes[at..]).filter(|h| h.segment == segment && h.offset == at as u64 && h.synced <= h.offset)
    })
}

/// Goes through segments in order.
pub(super) struct Reader<'a, 'r> {
    disk: &'a dyn Disk,
    mutant: Mutant,
    keeps: Keeps,
    covered: &'a BTreeMap<PartitionId, Lsn>,
    replay: &'a mut Replay<'r>,
    /// First retained LSN of each partition; set by the oldest segment's header, 1 for partitions that came later.
    first: BTreeMap<PartitionId, Lsn>,
    next: BTreeMap<PartitionId, Lsn>,
    unfinished: BTreeMap<PartitionId, Unfinished>,
    summary: Recovery,
    oldest: bool,
    /// Where the segment that nothing follows ends, once it was read.
    last: Option<Place>,
}

/// The unbroken run of batches from a segment's start.
struct Sound {
    batches: Vec<Range<usize>>,
    /// Where it ends.
    kept: usize,
    /// The chain that a batch there would follow.
    chain: u32,
    /// The last of them says that the file ends with it.
    ends_in_cut: bool,
}

/// A large entry of which the last part was not seen yet.
struct Unfinished {
    epoch: Epoch,
    lsn: Lsn,
    part: u16,
    parts: u16,
    payload: Vec<u8>,
}

impl<'a, 'r> Reader<'a, 'r> {
    pub(super) fn new(
        disk: &'a dyn Disk,
        mutant: Mutant,
        covered: &'a BTreeMap<PartitionId, Lsn>,
        replay: &'a mut Replay<'r>,
        keeps: Keeps,
    ) -> Self {
        Self {
            disk,
            mutant,
            keeps,
            covered,
            replay,
            first: BTreeMap::new(),
            next: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            summary: Recovery::default(),
            oldest: true,
            last: None,
        }
    }

    fn covered(&self, partition: PartitionId) -> Lsn {
        self.covered.get(&partition).copied().unwrap_or_default()
    }

    /// Whether checkpoints cover all that lies before the segment with this header, so that nobody needs to read it, nor to know
    /// whether it can be read.
    fn covers(&self, follower: &SegmentHeader) -> bool {
        follower.next.iter().all(|(partition, next)| {
            // The last entry that the segments before hold, or of which they hold a part.
            let last = if follower.unfinished == Some(*partition) { next.0 } else { next.0 - 1 };
            self.covered(*partition).0 >= last
        })
    }

    /// Passes over one segment, of which its follower says what was in it.
    fn skip(&mut self, source: &Source, follower: &SegmentHeader) -> Result<Closed, Error> {
        self.continue_at(source)?;
        let mut ranges = Ranges::new();
        for (partition, next) in &follower.next {
            let first = self.next.get(partition).copied().unwrap_or(Lsn(1));
            let last = if follower.unfinished == Some(*partition) { next.0 } else { next.0 - 1 };
            if last >= first.0 {
                ranges.insert(*partition, (first, Lsn(last)));
            }
        }
        self.next.clone_from(&follower.next);
        self.unfinished.clear();
        let end = follower.previous.map_or(source.bytes, |(_, end)| end);
        Ok(Closed { path: source.path.clone(), end, file_bytes: source.lasting_bytes(), ranges })
    }

    /// Reads one segment, up to `end` if a later one says where it ends, else as far as it is sound, and replays it.
    fn read(&mut self, source: &Source, end: Option<u64>) -> Result<Closed, Error> {
        self.continue_at(source)?;
        let (file, bytes) = self.load(source)?;
        let (Sound { batches, kept, chain, .. }, torn_bytes) = self.sound(source, &bytes, end)?;
        if end.is_none() {
            self.summary.cut_bytes += torn_bytes;
            self.make_durable(source, &*file, &bytes[..kept], &batches)?;
            let (segment, end) = (source.header.number, kept as u64);
            self.last = Some(Place { segment, offset: end, synced: end, chain });
        }
        self.summary.bytes += kept as u64;
        let mut ranges = Ranges::new();
        for batch in batches {
            let at = batch.start as u64;
            self.batch(&bytes[batch], &mut ranges, |what| Error::Damaged { path: source.path.clone(), offset: at, what })?;
        }
        Ok(Closed { path: source.path.clone(), end: kept as u64, file_bytes: source.lasting_bytes(), ranges })
    }

    /// Looks at every batch of one segment, and at nothing in them: the bytes of those that are sound, and of a torn tail.
    pub(super) fn check(&self, source: &Source, end: Option<u64>) -> Result<(u64, u64), Error> {
        let (_, bytes) = self.load(source)?;
        let (Sound { kept, .. }, torn_bytes) = self.sound(source, &bytes, end)?;
        Ok((kept as u64, torn_bytes))
    }

    fn load(&self, source: &Source) -> Result<(Box<dyn File>, Vec<u8>), Error> {
        let opened = match self.keeps {
            Keeps::Durably => self.disk.open(&source.path),
            Keeps::AsItIs => self.disk.open_to_read(&source.path),
        };
        let file = opened.map_err(|e| io(e, "open", &source.path))?;
        let mut bytes = vec![0; source.bytes as usize];
        file.read_at(0, &mut bytes).map_err(|e| io(e, "read", &source.path))?;
        Ok((file, bytes))
    }

    /// The batches of a segment that nothing is wrong with, and the bytes of the torn tail behind them.
    fn sound(&self, source: &Source, bytes: &[u8], end: Option<u64>) -> Result<(Sound, u64), Error> {
        let sound = self.sound_batches(source, bytes, end);
        let torn_bytes = match end {
            Some(end) => self.check_end(source, &sound, end).map(|()| 0),
            None => self.check_tail(source, bytes, &sound),
        }?;
        Ok((sound, torn_bytes))
    }

    /// A segment of which a later one says where it ends. Its file may be cut there: nobody needs the rest.
    fn check_end(&self, source: &Source, sound: &Sound, end: u64) -> Result<(), Error> {
        if source.bytes < end {
            return Err(source.short(end));
        }
        let what = "a batch does not verify, and a later segment follows";
        if sound.kept as u64 == end { Ok(()) } else { Err(source.damaged(sound.kept, what)) }
    }

    /// The last segment: what of it does not verify is a torn tail, unless something proves that it was durable (rule L2). Its file had its
    /// size before it had its header, so that one that is shorter was cut by something else.
    fn check_tail(&self, source: &Source, bytes: &[u8], sound: &Sound) -> Result<u64, Error> {
        let Sound { kept, ends_in_cut, .. } = *sound;
        if ends_in_cut && kept == bytes.len() {
            return Ok(0);
        }
        if source.bytes < source.header.file_bytes && self.mutant != Mutant::TakeShort {
            return Err(source.short(source.header.file_bytes));
        }
        let mut torn_end = kept;
        for later in batches_behind(bytes, kept, source.header.number) {
            if later.synced > kept as u64 {
                return Err(source.damaged(kept, "a batch does not verify, and a later one proves that it was durable"));
            }
            torn_end = torn_end.max((later.offset as usize + later.length).min(bytes.len()));
        }
        let witness = bytes.get(source.raw.len()..source.raw.len() + WITNESS).unwrap_or(&[]);
        let witnessed = format::witnessed(witness, source.header.number);
        if witnessed > kept as u64 && self.mutant != Mutant::ForgetWitness {
            return Err(source.damaged(kept, "a batch does not verify, and the segment's witness proves that it was durable"));
        }
        Ok((torn_end - kept) as u64)
    }

    /// Syncs what is kept of the last segment. Where the sync that should have made it durable failed, the system may take it for
    /// clean although it is in memory only, so that a sync alone does nothing: what no later header vouches for is written again.
    fn make_durable(&self, source: &Source, file: &dyn File, kept: &[u8], batches: &[Range<usize>]) -> Result<(), Error> {
        if self.mutant == Mutant::RecoverWithoutSync || self.keeps == Keeps::AsItIs {
            return Ok(());
        }
        let synced = |batch: &Range<usize>| BatchHeader::decode(&kept[batch.clone()]).map_or(0, |header| header.synced);
        let vouched = batches.iter().map(synced).max().unwrap_or(0);
        if self.mutant != Mutant::RecoverWithoutRewrite {
            let rest = &kept[vouched as usize..];
            file.write_at(vouched, rest).map_err(|e| io(e, "write", &source.path))?;
        }
        file.sync_data().map_err(|e| io(e, "sync", &source.path))
    }

    /// The oldest header says where every partition starts; each later one repeats what was read up to it.
    fn continue_at(&mut self, source: &Source) -> Result<(), Error> {
        let stated = &source.header.next;
        if std::mem::take(&mut self.oldest) {
            self.first.clone_from(stated);
        } else {
            let at = |map: &BTreeMap<PartitionId, Lsn>, p| map.get(p).copied().unwrap_or(Lsn(1));
            if stated.keys().chain(self.next.keys()).any(|p| at(stated, p) != at(&self.next, p)) {
                let what = "its header does not continue the segment before";
                return Err(Error::Damaged { path: source.path.clone(), offset: 0, what });
            }
        }
        self.next.extend(stated);
        Ok(())
    }

    /// The unbroken run of batches from the segment's start.
    fn sound_batches(&self, source: &Source, bytes: &[u8], end: Option<u64>) -> Sound {
        let limit = end.map_or(bytes.len(), |end| bytes.len().min(end as usize));
        let number = source.header.number;
        let chain = format::chain_start(&source.raw, number);
        let kept = format::batches_at(source.raw.len()).min(bytes.len());
        let mut sound = Sound { batches: Vec::new(), kept, chain, ends_in_cut: false };
        while let Some(header) = bytes[..limit].get(sound.kept..).and_then(BatchHeader::decode) {
            let at = sound.kept;
            let in_place = self.mutant == Mutant::NoChain || (header.segment == number && header.offset == at as u64);
            let Some(batch) = bytes[..limit].get(at..at + header.length).filter(|_| in_place) else { break };
            let before = if self.mutant == Mutant::NoChain { 0 } else { sound.chain };
            if !header.verifies(batch, before) && self.mutant != Mutant::KeepTornTail {
                break;
            }
            sound.batches.push(at..at + header.length);
            sound.kept = at + header.length;
            (sound.chain, sound.ends_in_cut) = (header.chain, header.is_cut);
        }
        sound
    }

    fn batch(&mut self, batch: &[u8], ranges: &mut Ranges, damaged: impl Fn(&'static str) -> Error) -> Result<(), Error> {
        let entries = BatchHeader::decode(batch).expect("it was decoded when it was found").entries;
        let mut body = &batch[BATCH_HEADER..];
        for _ in 0..entries {
            let part = Part::decode(&mut body).ok_or_else(|| damaged("a batch holds less than it says"))?;
            let next = self.next.entry(part.partition).or_insert(Lsn(1));
            if part.lsn != *next || part.part == 0 || part.part > part.parts {
                return Err(damaged("an entry does not continue its partition"));
            }
            segments::note(ranges, part.partition, part.lsn);
            if part.lsn <= self.covered(part.partition) {
                if part.part == part.parts {
                    self.unfinished.remove(&part.partition);
                    self.next.insert(part.partition, part.lsn.next());
                }
                continue;
            }
            let entry = if part.parts == 1 || self.mutant == Mutant::TakeFirstPart && part.part == 1 {
                self.unfinished.remove(&part.partition);
                Some(part.to_entry())
            } else {
                self.join(&part).map_err(&damaged)?
            };
            if part.part < part.parts && self.mutant != Mutant::TakeFirstPart {
                continue;
            }
            self.next.insert(part.partition, part.lsn.next());
            match entry {
                Some(entry) => {
                    let (partition, lsn) = (entry.partition, entry.lsn);
                    (self.replay)(entry).map_err(|source| Error::Replay { partition, lsn, source })?;
                    self.summary.records += 1;
                }
                // Its first parts were in a segment that is trimmed, so that the entry is, too.
                None => {
                    self.first.insert(part.partition, part.lsn.next());
                }
            }
        }
        Ok(())
    }

    /// Adds a part to its entry; the entry, if that was the last and all the others are there.
    fn join(&mut self, part: &Part<'_>) -> Result<Option<Entry>, &'static str> {
        let Part { partition, epoch, lsn, parts, .. } = *part;
        if part.part == 1 {
            // An unfinished one before it is void: its writer died.
            let payload = part.payload.to_vec();
            self.unfinished.insert(partition, Unfinished { epoch, lsn, part: 1, parts, payload });
            return Ok(None);
        }
        let Some(entry) = self.unfinished.get_mut(&partition) else {
            let trimmed = self.first.get(&partition).copied().unwrap_or(Lsn(1)) == lsn;
            return if trimmed { Ok(None) } else { Err("a part of an entry has none before it") };
        };
        if (entry.epoch, entry.lsn, entry.parts, entry.part + 1) != (epoch, lsn, parts, part.part) {
            return Err("a part of an entry does not continue the one before");
        }
        entry.part = part.part;
        entry.payload.extend_from_slice(part.payload);
        if part.part < parts {
            return Ok(None);
        }
        let whole = self.unfinished.remove(&partition).expect("it was there a line ago");
        Ok(Some(Entry { partition, lsn, epoch, payload: Bytes::from(whole.payload) }))
    }
}

fn io(source: std::io::Error, doing: &'static str, path: &Path) -> Error {
    Error::Io { doing, path: path.to_owned(), source }
}
