//! Copies of a log that goes on (rule C6): each opens, ends where the log was durable at the cut, and begins where the tables end that were
//! copied before.

use crate::harness::{A, B, C, DIR, Node, files, small};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_env::{CopyContent, Disk, FileCopy};
use surefoot_log::local::{Error, LogHold, Mutant, Options};
use surefoot_log::{Entry, Log};
use surefoot_model::{Lsn, PartitionId};

/// A backup under way: of the tables nothing but how far they had come.
struct Backup {
    hold: Option<LogHold>,
    tables: BTreeMap<PartitionId, Lsn>,
    /// What sinks had heard of at the cut, by partition: at least that is in the copy.
    durable: BTreeMap<PartitionId, Lsn>,
    files: VecDeque<FileCopy>,
    to: SimDisk,
}

impl Backup {
    fn begin(node: &Node, tables: BTreeMap<PartitionId, Lsn>) -> Self {
        let to = SimDisk::new();
        to.create_dir(Path::new(DIR)).unwrap();
        Self { hold: Some(node.log.hold()), tables, durable: BTreeMap::new(), files: VecDeque::new(), to }
    }

    fn cut(&mut self, durable: BTreeMap<PartitionId, Lsn>) {
        self.files = self.hold.as_ref().unwrap().cut().into();
        self.durable = durable;
    }

    /// Copies one file; false once all are.
    fn copy(&mut self, from: &SimDisk) -> Result<bool, String> {
        let Some(FileCopy { name, content }) = self.files.pop_front() else {
            self.hold = None;
            return Ok(false);
        };
        let bytes = match content {
            CopyContent::Bytes(bytes) => bytes,
            CopyContent::Start { of, bytes, then } => {
                let mut all = vec![0; bytes as usize];
                let read = from.open(&of).and_then(|file| file.read_at(0, &mut all));
                read.map_err(|error| format!("a file that is to be copied is gone: {}: {error}", of.display()))?;
                all.extend(then);
                all
            }
        };
        self.to.create(&Path::new(DIR).join(name)).unwrap().write_at(0, &bytes).unwrap();
        Ok(true)
    }

    /// Opens the copy as a node would whose tables were copied before.
    fn check(&self, written: &BTreeMap<(PartitionId, u64), Entry>) -> Result<(), String> {
        let node =
            Node::start_behind(&self.to, small(), &self.tables).map_err(|error| format!("the copy is refused: {error}"))?;
        let mut due = Vec::new();
        for partition in [A, B, C] {
            let (tables, durable) = (self.tables[&partition], self.durable[&partition]);
            node.recovery.check(partition, tables).map_err(|error| error.to_string())?;
            let next = node.recovery.bounds(partition).next;
            if next <= durable {
                return Err(format!("{partition} ends before {next}, and {durable} was durable"));
            }
            due.extend((tables.0 + 1..next.0).map(|lsn| written[&(partition, lsn)].clone()));
        }
        let mut found = node.recovered;
        found.sort_by_key(|entry| (entry.partition, entry.lsn));
        if found == due { Ok(()) } else { Err(format!("{} entries are there, {} are due", found.len(), due.len())) }
    }

    /// The last file of the copy is shorter than the log's, and says so: cut shorter still it is refused.
    fn check_cut(&self, rng: &mut Rng) -> Result<(), String> {
        let cut = self.to.fork();
        let last = files(&cut, "seg").pop().expect("a log has a segment");
        let mut bytes = cut.bytes_of(&last).unwrap();
        // What a batch took beyond the size that the header names, only the witness tells, and that may come later.
        let stated = u64::from_le_bytes(bytes[48..56].try_into().unwrap());
        bytes.truncate(rng.below(stated.min(bytes.len() as u64)) as usize);
        cut.overwrite(&last, bytes).unwrap();
        match Node::start_behind(&cut, small(), &self.tables) {
            Err(Error::Short { .. } | Error::Damaged { .. }) => Ok(()),
            Err(error) => Err(format!("a copy that is cut short is refused as another: {error}")),
            Ok(_) => Err("a copy that is cut short is taken for whole".to_owned()),
        }
    }
}

/// A log that is written, trimmed and backed up again and again.
fn backups(seed: u64, mutant: Mutant) -> Result<u32, String> {
    let (mut rng, disk) = (Rng::new(seed), SimDisk::new());
    let mut node = Node::start_with(&disk, Options { mutant, ..small() }).unwrap();
    let mut written: BTreeMap<(PartitionId, u64), Entry> = BTreeMap::new();
    let mut durable: BTreeMap<PartitionId, Lsn> = [A, B, C].map(|partition| (partition, Lsn(0))).into();
    let mut trimmed = durable.clone();
    let (mut backup, mut count): (Option<Backup>, u32) = (None, 0);
    for _ in 0..1_500 {
        let partition = [A, A, B, C][rng.below(4) as usize];
        match rng.below(16) {
            0..4 => {
                let is_large = rng.below(20) == 0;
                let bytes = rng.below(if is_large { 3_000 } else { 150 }) as usize;
                node.append(partition, &[&"x".repeat(bytes)]);
            }
            4 => {
                let up_to = Lsn(durable[&partition].0.saturating_sub(rng.below(4)));
                trimmed.entry(partition).and_modify(|before| *before = up_to.max(*before));
                node.log.trim(partition, up_to);
            }
            5..8 => _ = node.filler.step(),
            8 => match &mut backup {
                None => backup = Some(Backup::begin(&node, trimmed.clone())),
                Some(begun) if begun.durable.is_empty() => begun.cut(durable.clone()),
                Some(begun) => {
                    if !begun.copy(&disk)? {
                        // What was durable at the cut is told by then.
                        node.write_out();
                        take(&node, &mut durable, &mut written);
                        begun.check_cut(&mut rng)?;
                        begun.check(&written)?;
                        backup = None;
                        count += 1;
                    }
                }
            },
            _ => _ = node.writer.step(),
        }
        take(&node, &mut durable, &mut written);
    }
    Ok(count)
}

/// Takes what sinks were told.
fn take(node: &Node, durable: &mut BTreeMap<PartitionId, Lsn>, written: &mut BTreeMap<(PartitionId, u64), Entry>) {
    for entry in node.mailbox.take().concat() {
        durable.insert(entry.partition, entry.lsn);
        written.insert((entry.partition, entry.lsn.0), entry);
    }
}

#[test]
fn a_copy_of_a_log_that_goes_on_is_the_log_as_it_was_at_the_cut() {
    let counts = (0..400).map(|seed| backups(seed, Mutant::None).unwrap_or_else(|error| panic!("seed {seed}: {error}")));
    let count: u32 = counts.sum();
    assert!(count > 1_000, "{count} backups");
}

#[test]
fn a_hold_that_holds_nothing_is_caught() {
    let found: Vec<String> = (0..100).filter_map(|seed| backups(seed, Mutant::TrimHeld).err()).collect();
    assert!(
        found.iter().any(|error| error.contains("gone") || error.contains("refused") || error.contains("has applied")),
        "{found:?}"
    );
}

#[test]
fn what_was_trimmed_meanwhile_goes_once_nobody_holds_it() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    for _ in 0..40 {
        node.batches(&[&[(A, "a payload of a length that is not so short that segments would hold a great many of them")]]);
    }
    node.settle();
    let segments = node.segments();
    assert!(segments.len() > 3);
    let (first, second) = (node.log.hold(), node.log.hold());
    node.log.trim(A, Lsn(40));
    node.settle();
    assert_eq!(node.segments(), segments);
    drop(first);
    node.settle();
    assert_eq!(node.segments(), segments, "one that holds is enough");
    drop(second);
    node.settle();
    assert_eq!(node.segments().len(), 1);
}
