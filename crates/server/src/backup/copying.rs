//! The work of a backup, cut into steps: each reads and writes one piece, and looks whether it is still wanted.
//!
//! Owns: the order (hold the log, tables, then the log, then what makes it whole), durability, and leaving nothing behind where it is given up. Memory is one piece,
//! whatever there is to copy. Does not own: the answer (`admin`).

#![allow(
    clippy::disallowed_methods,
    reason = "it looks at a directory that an operator names: a simulated node has no tables to copy, and comes no further"
)]

use super::Turn;
use super::manifest::{self, Listed, Manifest};
use crate::data_dir;
use crate::node::Place;
use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use surefoot_admin::{BackedUp, BackupError};
use surefoot_env::{CopyContent, Disk, Env, File, FileCopy, Step, Steps, is_shortage};
use surefoot_log::Log;
use surefoot_log::local::{LocalLog, LogHold};
use surefoot_partition::{DiskRoom, Partitions};
use surefoot_storage::{Engine, EngineFiles};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::Xxh3Default;

/// What is read and written at a time.
const PIECE_BYTES: usize = 256 << 10;
/// What is written between two syncs: those of the log queue behind what is on its way to the disk by then.
const SYNC_BYTES: u64 = 4 << 20;

/// What is backed up.
pub(super) struct Source {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) log: LocalLog,
    pub(super) partitions: Partitions,
    pub(super) place: Place,
    pub(super) env: Env,
}

/// Once it is dropped, nothing of the node is held any more; then the next one may begin; then the answer is told.
pub(super) struct Copying {
    source: Source,
    /// Where it goes.
    dir: PathBuf,
    stage: Stage,
    queue: VecDeque<FileCopy>,
    file: Option<OpenCopy>,
    piece: Vec<u8>,
    made: Made,
    manifest: Manifest,
    began: Duration,
    is_wanted: Arc<AtomicBool>,
    turn: Turn,
    answer: Answer,
}

/// Tells what came of it when dropped.
struct Answer {
    outcome: Result<BackedUp, BackupError>,
    told: Option<oneshot::Sender<Result<BackedUp, BackupError>>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // Nobody may wait for it any more.
            let _ = told.send(mem::replace(&mut self.outcome, Err(BackupError::Stopping)));
        }
    }
}

enum Stage {
    Begin,
    /// Before the log, which then has all that follows them (rule C2).
    Tables {
        _held: EngineFiles,
        hold: LogHold,
    },
    Log {
        _hold: LogHold,
    },
    /// Files are durable; their names are not.
    Names,
    Manifest,
    Over,
}

/// A copy on its way.
struct OpenCopy {
    name: PathBuf,
    from: From,
    to: Box<dyn File>,
    bytes: u64,
    copied: u64,
    hash: Xxh3Default,
}

enum From {
    Bytes(Vec<u8>),
    File {
        file: Box<dyn File>,
        /// So many of its bytes.
        bytes: u64,
        then: Vec<u8>,
    },
}

impl From {
    /// What is at `at`, as much as fits into `piece`, which is more than nothing.
    fn piece<'a>(&'a self, at: u64, piece: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let rest = match self {
            Self::Bytes(bytes) => &bytes[at as usize..],
            Self::File { file, bytes, .. } if at < *bytes => {
                let wanted = (bytes - at).min(piece.len() as u64) as usize;
                file.read_at(at, &mut piece[..wanted])?;
                return Ok(&piece[..wanted]);
            }
            Self::File { bytes, then, .. } => &then[(at - bytes) as usize..],
        };
        Ok(&rest[..rest.len().min(piece.len())])
    }
}

/// What is there that was not before.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    /// Each after those above it.
    dirs: BTreeSet<PathBuf>,
    /// The directory itself, and those above it.
    root: data_dir::Made,
}

impl Copying {
    pub(super) fn new(
        source: Source,
        dir: PathBuf,
        is_wanted: Arc<AtomicBool>,
        turn: Turn,
        told: oneshot::Sender<Result<BackedUp, BackupError>>,
    ) -> Self {
        let Place { node_id, partitions, .. } = source.place;
        let taken_ms = source.env.clock.now_ms();
        Self {
            began: source.env.clock.monotonic(),
            source,
            dir,
            stage: Stage::Begin,
            queue: VecDeque::new(),
            file: None,
            piece: vec![0; PIECE_BYTES],
            made: Made::default(),
            manifest: Manifest { node_id, partitions, taken_ms, files: Vec::new() },
            is_wanted,
            turn,
            answer: Answer { outcome: Err(BackupError::Stopping), told: Some(told) },
        }
    }

    /// One piece of it; what it came to once it is whole.
    fn work(&mut self) -> Result<Option<BackedUp>, BackupError> {
        if self.turn.is_over() || !self.is_wanted.load(Ordering::Acquire) {
            return Err(BackupError::Stopping);
        }
        if self.source.partitions.disk().room != DiskRoom::Enough {
            let why = "the disk of the data directory is short of room, and a backup keeps the log from giving any back: free some of it";
            return Err(BackupError::Failed(why.to_owned()));
        }
        if self.file.is_some() || !self.queue.is_empty() {
            let dir = self.dir.clone();
            return self.copy().map_err(|error| self.failed("copy to", &dir, &error)).map(|()| None);
        }
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Begin => self.begin()?,
            Stage::Tables { _held, hold } => {
                self.enqueue("log", hold.cut());
                self.stage = Stage::Log { _hold: hold };
            }
            Stage::Log { _hold } => self.stage = Stage::Names,
            Stage::Names => {
                let disk = self.source.env.disk.clone();
                let above = self.dir.parent().unwrap_or(Path::new("/"));
                let dirs = self.made.dirs.iter().map(PathBuf::as_path).chain([self.dir.as_path(), above]);
                for dir in dirs {
                    disk.sync_dir(dir).map_err(|error| self.failed("sync", dir, &error))?;
                }
                self.stage = Stage::Manifest;
            }
            Stage::Manifest => {
                let dir = self.dir.clone();
                self.write_manifest().map_err(|error| self.failed("write the manifest in", &dir, &error))?;
                let took = self.source.env.clock.monotonic().saturating_sub(self.began);
                return Ok(Some(BackedUp {
                    files: self.manifest.files.len() as u64,
                    bytes: self.manifest.bytes(),
                    took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                }));
            }
            Stage::Over => unreachable!("a backup that is over is not stepped"),
        }
        Ok(None)
    }

    fn begin(&mut self) -> Result<(), BackupError> {
        let data_dir = self.source.place.log.parent().unwrap_or(Path::new("."));
        let is_there = check_directory(&self.dir, data_dir).map_err(BackupError::Directory)?;
        let hold = self.source.log.hold();
        let unreadable = |error: io::Error| BackupError::Failed(format!("the files of the tables: {error}"));
        let mut held = self.source.engine.files().map_err(unreadable)?;
        if !is_there {
            let made = data_dir::create(&self.dir);
            self.made.root = made.map_err(|error| BackupError::Directory(format!("{}: {error}", self.dir.display())))?;
        }
        self.check_room(data_dir, held.files.iter().map(FileCopy::bytes).sum::<u64>() + self.source.log.retained().bytes)?;
        tracing::info!(directory = %self.dir.display(), "a backup begins");
        let files = mem::take(&mut held.files);
        self.enqueue("tables", files);
        self.stage = Stage::Tables { _held: held, hold };
        Ok(())
    }

    /// Refuses what will not fit. Where the node's own data lies on that disk, what it keeps free stays so.
    fn check_room(&self, data_dir: &Path, bytes: u64) -> Result<(), BackupError> {
        let Ok(space) = self.source.env.disk.space(&self.dir) else { return Ok(()) };
        let device = |dir: &Path| fs::metadata(dir).map(|metadata| metadata.dev()).ok();
        let kept = if device(data_dir) == device(&self.dir) { self.source.partitions.disk().edges_bytes } else { 0 };
        if space.free >= bytes.saturating_add(kept) {
            return Ok(());
        }
        let dir = self.dir.display();
        let beside = if kept > 0 { format!(", and the node keeps {kept} bytes free there") } else { String::new() };
        Err(BackupError::Failed(format!("{dir} has {} bytes free, the backup needs about {bytes}{beside}", space.free)))
    }

    fn enqueue(&mut self, below: &str, files: Vec<FileCopy>) {
        self.queue.extend(files.into_iter().map(|file| FileCopy { name: Path::new(below).join(file.name), ..file }));
    }

    /// Opens the next file, or copies a piece of the open one.
    fn copy(&mut self) -> io::Result<()> {
        let disk = &*self.source.env.disk;
        let Some(mut file) = self.file.take() else {
            let Some(next) = self.queue.pop_front() else { return Ok(()) };
            self.file = Some(open(disk, &self.dir, next, &mut self.made)?);
            return Ok(());
        };
        let piece = file.from.piece(file.copied, &mut self.piece)?;
        file.to.write_at(file.copied, piece)?;
        file.hash.update(piece);
        file.copied += piece.len() as u64;
        let is_whole = file.copied == file.bytes;
        if is_whole || file.copied.is_multiple_of(SYNC_BYTES) {
            file.to.sync_data()?;
        }
        if is_whole {
            self.manifest.files.push(Listed { name: file.name, bytes: file.bytes, checksum: file.hash.digest128() });
        } else {
            self.file = Some(file);
        }
        Ok(())
    }

    /// Last, and durable: from now on it is a backup.
    fn write_manifest(&mut self) -> io::Result<()> {
        let disk = &*self.source.env.disk;
        let (aside, path) = (self.dir.join(manifest::NEW_NAME), self.dir.join(manifest::NAME));
        let file = disk.create(&aside)?;
        self.made.files.push(aside.clone());
        file.write_at(0, self.manifest.encode().as_bytes())?;
        file.sync_data()?;
        disk.rename(&aside, &path)?;
        self.made.files.push(path);
        disk.sync_dir(&self.dir)
    }

    fn failed(&self, doing: &str, path: &Path, error: &io::Error) -> BackupError {
        let room = if is_shortage(error) {
            let free = self.source.env.disk.space(&self.dir).map_or(0, |space| space.free);
            format!("; {free} bytes are free there: make room, or choose another directory")
        } else {
            String::new()
        };
        BackupError::Failed(format!("{doing} {}: {error}{room}", path.display()))
    }

    /// Nothing more is to be done: it is dropped next.
    fn end(&mut self, outcome: Result<BackedUp, BackupError>) {
        (self.stage, self.file) = (Stage::Over, None);
        self.queue.clear();
        match &outcome {
            Ok(BackedUp { files, bytes, took_ms }) => {
                mem::take(&mut self.made.root).keep();
                tracing::info!(files, bytes, took_ms, directory = %self.dir.display(), "a backup is whole");
            }
            Err(error) => {
                mem::take(&mut self.made).remove(&*self.source.env.disk);
                tracing::info!(?error, directory = %self.dir.display(), "a backup was given up, and nothing of it is left");
            }
        }
        self.answer.outcome = outcome;
    }
}

impl Steps for Copying {
    fn step(&mut self) -> Step {
        match self.work() {
            Ok(None) => return Step::Worked,
            Ok(Some(whole)) => self.end(Ok(whole)),
            Err(error) => self.end(Err(error)),
        }
        Step::Done
    }
}

fn open(disk: &dyn Disk, dir: &Path, FileCopy { name, content }: FileCopy, made: &mut Made) -> io::Result<OpenCopy> {
    let path = dir.join(&name);
    let above = name.parent().unwrap_or(Path::new(""));
    let missing = above.ancestors().filter(|above| !above.as_os_str().is_empty()).map(|above| dir.join(above));
    let missing: Vec<PathBuf> = missing.filter(|above| !made.dirs.contains(above)).collect();
    if let Some(deepest) = missing.first() {
        disk.create_dir(deepest)?;
        made.dirs.extend(missing);
    }
    let to = disk.create(&path)?;
    made.files.push(path);
    let (from, bytes) = match content {
        CopyContent::Start { of, bytes, then } => {
            let all = bytes + then.len() as u64;
            (From::File { file: disk.open_to_read(&of)?, bytes, then }, all)
        }
        CopyContent::Bytes(content) => {
            let bytes = content.len() as u64;
            (From::Bytes(content), bytes)
        }
    };
    Ok(OpenCopy { name, from, to, bytes, copied: 0, hash: Xxh3Default::new() })
}

impl Made {
    /// As far as it can be done: what stays keeps the directory from being taken for a backup, or for an empty one.
    fn remove(self, disk: &dyn Disk) {
        for file in self.files {
            let _ = disk.remove(&file);
        }
        for dir in self.dirs.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
        drop(self.root);
    }
}

/// Whether the directory is there; it is empty then. **Errors**: why it cannot hold a backup.
fn check_directory(dir: &Path, data_dir: &Path) -> Result<bool, String> {
    let shown = dir.display();
    if !dir.is_absolute() || dir.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{shown} is not an absolute path without `..`"));
    }
    // What is not there yet lies below the nearest directory that is, links followed.
    let real = dir.ancestors().find_map(|above| Some(above.canonicalize().ok()?.join(dir.strip_prefix(above).ok()?)));
    let data_dir = data_dir.canonicalize().map_err(|error| format!("{}: {error}", data_dir.display()))?;
    if real.is_some_and(|real| real.starts_with(&data_dir)) {
        return Err(format!("{shown} lies inside the data directory {}: a backup goes elsewhere", data_dir.display()));
    }
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.find(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name() != "lost+found")) {
            None => Ok(true),
            Some(_) => Err(format!("{shown} is not empty: each backup has a directory of its own")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_goes_into_an_empty_directory_outside_of_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("log")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        let check = |name: &str| check_directory(&dir.path().join(name), &data);
        assert_eq!(check("empty"), Ok(true));
        assert_eq!(check("new/below"), Ok(false));
        for (name, why) in [
            ("", "not empty"),
            ("data", "inside the data directory"),
            ("data/backup", "inside the data directory"),
            ("link/backup", "inside the data directory"),
            ("empty/../data/x", "absolute"),
        ] {
            let error = check(name).unwrap_err();
            assert!(error.contains(why), "{name}: {error}");
        }
        assert!(check_directory(Path::new("backup"), &data).unwrap_err().contains("absolute"));
    }
}
