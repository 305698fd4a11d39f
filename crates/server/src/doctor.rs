//! Looking at a data directory that nobody uses: what a start would refuse, and what it would not read.
//!
//! Owns: the order (tables, then the log, then whether they meet), and the words. Changes nothing in the directory. Does not own: what is wrong with a file (`storage`, `log`), or
//! mending anything.

#![allow(clippy::disallowed_methods, reason = "it looks at the operating system's files: a simulated node has no data directory")]

use crate::data_dir::{self, StillDataDir};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use surefoot_env::OsDisk;
use surefoot_log::Entry;
use surefoot_log::local::{self, Inspection, Recovery};
use surefoot_model::{Lsn, PartitionId, Record};
use surefoot_storage::{CheckedRows, check_files, check_rows, view_of_files};

/// So many records that cannot be read are told.
const RECORDS_MAX: usize = 20;

/// What keeps a data directory from being looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    #[error("{doing} {path}: {source}", path = .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Log(#[from] local::Error),
}

/// What was looked at, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// Each names what it is about: a file, and the byte where that is known; or a partition.
    pub faults: Vec<String>,
    pub tables: usize,
    pub table_bytes: u64,
    pub rows: u64,
    pub segments: usize,
    pub log_bytes: u64,
    /// No fault: the next start cuts them.
    pub torn_bytes: u64,
    /// Records that the next start applies.
    pub records: u64,
}

/// Looks at all of a data directory. **Errors**: it is none, or in use.
pub fn examine(path: &Path) -> Result<Diagnosis, Error> {
    let dir = StillDataDir::open(path)?;
    let mut found = Diagnosis::default();
    let covered = tables(&dir, &mut found)?;
    let Inspection { faults, segments, bytes, torn_bytes, partitions } = log(&dir, &covered, &mut found)?;
    (found.segments, found.log_bytes, found.torn_bytes) = (segments, bytes, torn_bytes);
    let log_is_sound = faults.is_empty();
    found.faults.extend(faults.iter().map(ToString::to_string));
    if log_is_sound {
        // Of tables that could not be read, nothing is known.
        let recovery = Recovery { partitions, ..Recovery::default() };
        let gaps = covered.iter().filter_map(|(partition, applied)| recovery.check(*partition, *applied).err());
        found.faults.extend(gaps.map(|gap| gap.to_string()));
    }
    Ok(found)
}

/// Checks files and rows; up to where each partition's tables reach, as far as they can be read.
fn tables(dir: &StillDataDir, found: &mut Diagnosis) -> Result<BTreeMap<PartitionId, Lsn>, Error> {
    let path = dir.tables();
    let files = match check_files(&path) {
        Ok(files) => files,
        Err(error) => {
            found.faults.push(format!("{}: the tables cannot be read: {error}", path.display()));
            return Ok(BTreeMap::new());
        }
    };
    (found.tables, found.table_bytes) = (files.files, files.bytes);
    if !files.faults.is_empty() {
        // fjall would open none of them.
        found.faults.extend(files.faults.iter().map(ToString::to_string));
        return Ok(BTreeMap::new());
    }
    let scratch = Scratch::new()?;
    let view = match view_of_files(&path, &scratch.0) {
        Ok(view) => view,
        Err(error) => {
            found.faults.push(format!("{}: the tables do not open: {error}", path.display()));
            return Ok(BTreeMap::new());
        }
    };
    let mut covered = BTreeMap::new();
    for partition in dir.partitions() {
        let CheckedRows { applied, rows, faults } = check_rows(&*view, partition);
        found.rows += rows;
        found.faults.extend(faults.iter().map(|fault| format!("partition {partition}: {fault}")));
        covered.insert(partition, applied);
    }
    Ok(covered)
}

/// Checks segments, and that what a start would apply can be read (rule M7).
fn log(dir: &StillDataDir, covered: &BTreeMap<PartitionId, Lsn>, found: &mut Diagnosis) -> Result<Inspection, Error> {
    let (mut records, mut unreadable) = (0, Vec::new());
    let mut read = |entry: Entry| {
        records += 1;
        let problem = if dir.has(entry.partition) {
            Record::decode(&entry.payload).err().map(|error| error.to_string())
        } else {
            Some("this node was not made with that partition".to_owned())
        };
        if let Some(problem) = problem.filter(|_| unreadable.len() < RECORDS_MAX) {
            unreadable.push(format!(
                "record {} of partition {} in {}: {problem}",
                entry.lsn,
                entry.partition,
                dir.log().display()
            ));
        }
        Ok(())
    };
    let inspection = local::inspect(&OsDisk, &dir.log(), covered, &mut read)?;
    found.records = records;
    found.faults.append(&mut unreadable);
    Ok(inspection)
}

/// A directory of its own among the system's temporary files.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("surefoot-doctor-{}", std::process::id()));
        // One of an earlier process that was killed.
        let _ = fs::remove_dir_all(&path);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(Error::Io { doing: "make", path, source }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is links and small files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
