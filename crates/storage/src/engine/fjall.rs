//! The production engine: fjall, fed by ingestion, with bounds on cache and on what waits for compaction.
//!
//! Owns: the only use of the crate, its settings, the thread that compacts, and what follows where fjall fails (rule C8). Does not
//! own: when to flush.
//!
//! A batch is sorted, so it becomes a table file at once instead of passing through fjall's journal and memtable: half the bytes
//! written, no second log under ours, nothing to replay when opening. One version of the tree then names the file, which makes it
//! atomic and, since fjall syncs file and version, durable. One fjall keyspace holds all partitions; a partition's checkpoints
//! lie in one range of it.
//!
//! fjall's own worker ends for good with its first error, a full disk included, so it has none: compaction runs here, and is tried
//! again. What fails may leave files that no version names, and fjall clears those away only when it opens. So [`Files`] knows all
//! that were ever named, and removes the others before anything is tried again, lest each try takes more of a disk that is full.
//! Every file is held open, so that a read never lacks a descriptor.

#![allow(
    clippy::disallowed_methods,
    reason = "production half of the seam: fjall's files are the operating system's, and so is the thread that compacts"
)]

use super::{Batch, Engine, RawEntry, View, take_within};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, Readable, Snapshot, UserValue};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use surefoot_env::{Disk, OsDisk, is_shortage};

/// What may be set; the rest follows.
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Bytes for cached blocks of table files.
    pub cache_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20 }
    }
}

/// Table files that nobody has compacted yet, from which on a commit waits.
const WAITING_TABLES_MAX: usize = 24;

/// Table files that nobody has compacted, from which on a commit is put off: compaction does not come along, and each read looks at
/// all of them.
const WAITING_TABLES_LIMIT: usize = 10 * WAITING_TABLES_MAX;

/// How often, and how many times, a commit looks whether compaction caught up. Bounded, as each commit causes a compaction.
const WAIT_STEP: Duration = Duration::from_millis(20);
const WAIT_STEPS_MAX: u32 = 100;

/// A compaction that found no room is tried again once there is room for all that it may write. That is looked at this often.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// It may write less than that, so after this long it is tried all the same.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

const KEYSPACE: &str = "tables";
/// Where fjall keeps keyspaces, and each of them its table files and the name of its version.
const KEYSPACES_DIR: &str = "keyspaces";
const TABLES_DIR: &str = "tables";
const CURRENT_FILE: &str = "current";

/// A fjall database.
pub struct FjallEngine {
    open: Arc<Open>,
    compactor: Option<JoinHandle<()>>,
}

struct Open {
    database: Database,
    keyspace: Keyspace,
    /// Held while a commit writes. Comes before `compacting`.
    files: Mutex<Files>,
    /// Held while a compaction writes.
    compacting: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_compaction_due: bool,
    is_closing: bool,
    /// Why nothing is written any more: nobody knows what is on the disk.
    failed: Option<String>,
    /// Why nothing is compacted any more.
    trouble: Option<String>,
}

/// The table files of the tree.
struct Files {
    /// Numbers of those that a version has named since the tree was opened. Whoever holds a view may still read one that the newest
    /// version does not name; fjall removes it after that.
    named: BTreeSet<u64>,
    /// Something failed: there may be files that no version ever named, and the version on the disk may not be the one in memory.
    is_in_doubt: bool,
}

impl FjallEngine {
    /// Opens the database in a directory of its own, creating it where there is none; what it shows is durable. **Errors**: another
    /// process has it open (`ResourceBusy`), or it cannot be read.
    pub fn open(dir: &Path, options: FjallOptions) -> io::Result<Self> {
        let database = Database::builder(dir)
            .cache_size(options.cache_bytes)
            // No cache of descriptors: each table holds its own.
            .max_cached_files(None)
            .worker_threads_unchecked(0)
            .open()
            .map_err(io_error)?;
        let keyspace = database.keyspace(KEYSPACE, KeyspaceCreateOptions::default).map_err(io_error)?;
        sync_names(dir)?;
        let mut files = Files { named: BTreeSet::new(), is_in_doubt: false };
        files.note(&keyspace);
        let open = Arc::new(Open {
            database,
            keyspace,
            files: Mutex::new(files),
            compacting: Mutex::default(),
            state: Mutex::new(State { is_compaction_due: true, ..State::default() }),
            changed: Condvar::new(),
        });
        let compactor = {
            let open = open.clone();
            thread::Builder::new().name("compactor".to_owned()).spawn(move || open.compact_until_closed())?
        };
        Ok(Self { open, compactor: Some(compactor) })
    }
}

impl Drop for FjallEngine {
    fn drop(&mut self) {
        self.open.state().is_closing = true;
        self.open.changed.notify_all();
        if let Some(compactor) = self.compactor.take() {
            // It catches its panics.
            let _ = compactor.join();
        }
    }
}

/// Makes the names of all directories durable, and with them the version that was read: the process that wrote it may have been
/// killed before it could. fjall does not sync the directory above the one of a new keyspace.
fn sync_names(dir: &Path) -> io::Result<()> {
    let sync = |dir: &Path| File::open(dir)?.sync_all();
    let keyspaces = dir.join(KEYSPACES_DIR);
    for entry in fs::read_dir(&keyspaces)? {
        let keyspace = entry?.path();
        sync(&keyspace.join(TABLES_DIR))?;
        sync(&keyspace)?;
    }
    sync(&keyspaces)?;
    sync(dir)?;
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(above)
}

impl Files {
    /// To be called after everything that made a new version.
    fn note(&mut self, keyspace: &Keyspace) {
        self.named.extend(keyspace.tree.current_version().iter_tables().map(|table| table.id()));
    }

    /// Removes every file that no version ever named. To be called while nobody writes one.
    fn sweep(&mut self, tables: &Path) -> io::Result<()> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(tables)? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if self.named.contains(&number) {
                found.insert(number);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        self.named = found;
        Ok(())
    }
}

impl Open {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: String) -> io::Error {
        let mut state = self.state();
        let why = state.failed.get_or_insert(why).clone();
        drop(state);
        self.changed.notify_all();
        io::Error::other(why)
    }

    fn expect_sound(&self) -> io::Result<()> {
        self.state().failed.clone().map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    fn tables(&self) -> PathBuf {
        self.keyspace.path().join(TABLES_DIR)
    }

    /// After something failed, and while nobody writes: makes sure that it changed nothing, and removes what it left. **Errors**: the
    /// version on the disk is not the one in memory, so that nobody knows what a power failure would leave; or a shortage, and then it
    /// is still in doubt.
    fn settle(&self, files: &mut Files) -> io::Result<()> {
        if !files.is_in_doubt {
            return Ok(());
        }
        let in_memory = self.keyspace.tree.current_version().id();
        let on_disk = fs::read(self.keyspace.path().join(CURRENT_FILE))?;
        let on_disk = on_disk.first_chunk().map(|number| u64::from_le_bytes(*number));
        if on_disk != Some(in_memory) {
            return Err(self.fail(format!("the tables' version on the disk is {on_disk:?}, and {in_memory} in memory")));
        }
        files.note(&self.keyspace);
        files.sweep(&self.tables())?;
        files.is_in_doubt = false;
        Ok(())
    }

    fn wait_for_compaction(&self) -> io::Result<()> {
        for _ in 0..WAIT_STEPS_MAX {
            if self.waiting_tables() < WAITING_TABLES_MAX || self.state().trouble.is_some() {
                break;
            }
            thread::sleep(WAIT_STEP);
        }
        let waiting = self.waiting_tables();
        if waiting < WAITING_TABLES_LIMIT {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{waiting} table files wait for compaction, which does not come along"),
        ))
    }

    fn waiting_tables(&self) -> usize {
        self.keyspace.l0_table_count()
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        self.expect_sound()?;
        self.wait_for_compaction()?;
        let mut files = self.files();
        if files.is_in_doubt {
            let Ok(_idle) = self.compacting.try_lock() else {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "what an earlier try left is cleared away after the compaction that runs",
                ));
            };
            self.settle(&mut files)?;
        }
        match self.ingest(batch) {
            Ok(()) => files.note(&self.keyspace),
            Err(error) if is_shortage(&error) => {
                files.is_in_doubt = true;
                if let Ok(_idle) = self.compacting.try_lock() {
                    match self.settle(&mut files) {
                        Err(error) if !is_shortage(&error) => return Err(error),
                        // Or the next try does.
                        Ok(()) | Err(_) => {}
                    }
                }
                return Err(error);
            }
            Err(error) => return Err(self.fail(format!("write the tables: {error}"))),
        }
        drop(files);
        self.state().is_compaction_due = true;
        self.changed.notify_all();
        Ok(())
    }

    fn ingest(&self, batch: &Batch) -> io::Result<()> {
        let mut writes = self.keyspace.start_ingestion().map_err(io_error)?;
        let write = |key: &[u8], value: Option<Cow<'_, [u8]>>| match value {
            Some(Cow::Borrowed(value)) => writes.write(key, value),
            // Gone before its block is made, which is one more copy.
            Some(Cow::Owned(value)) => writes.write(key, UserValue::from(value)),
            None => writes.write_tombstone(key),
        };
        batch.each(write).map_err(io_error)?;
        writes.finish().map_err(io_error)
    }

    /// The compactor's thread.
    fn compact_until_closed(&self) {
        let is_idle = |state: &mut State| !state.is_compaction_due && !state.is_closing;
        loop {
            let mut state = self.changed.wait_while(self.state(), is_idle).unwrap_or_else(PoisonError::into_inner);
            if state.is_closing || state.failed.is_some() {
                return;
            }
            state.is_compaction_due = false;
            drop(state);
            let error = match catch_unwind(AssertUnwindSafe(|| self.compact())) {
                Ok(Ok(has_changed)) => {
                    // Where one level gave to the next, that one may be due.
                    self.state().is_compaction_due |= has_changed;
                    continue;
                }
                Ok(Err(error)) => error,
                // fjall's locks may be poisoned.
                Err(_) => return drop(self.fail("compaction of the tables has panicked".to_owned())),
            };
            if is_shortage(&error) {
                self.wait_for_room();
                self.state().is_compaction_due = true;
            } else {
                self.state().trouble = Some(format!(
                    "compaction of the tables has failed, and is not tried again before the server is restarted; until then they grow \
                     and get slower: {error}"
                ));
                return;
            }
        }
    }

    /// Compacts what fjall finds due, if anything; whether something was.
    fn compact(&self) -> io::Result<bool> {
        let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.keyspace.tree.current_version().id();
        let strategy = self.keyspace.config.compaction_strategy.clone();
        let oldest_read = self.database.supervisor.snapshot_tracker.get_seqno_safe_to_gc();
        let compacted = self.keyspace.tree.compact(strategy, oldest_read).map_err(|error| io_error(error.into()));
        let mut files = self.files();
        files.note(&self.keyspace);
        match compacted {
            Ok(()) => Ok(self.keyspace.tree.current_version().id() != version),
            Err(error) => {
                files.is_in_doubt = true;
                // A commit tries it again before it writes.
                self.settle(&mut files).or_else(|error| if is_shortage(&error) { Ok(()) } else { Err(error) })?;
                Err(error)
            }
        }
    }

    /// Waits until there is room for what a compaction may write at most: all of the first two levels.
    fn wait_for_room(&self) {
        let start = Instant::now();
        loop {
            let state = self.state();
            let (state, _) = self
                .changed
                .wait_timeout_while(state, ROOM_LOOK, |state| !state.is_closing)
                .unwrap_or_else(PoisonError::into_inner);
            if state.is_closing {
                return;
            }
            drop(state);
            let version = self.keyspace.tree.current_version();
            let needed: u64 = version.iter_levels().take(2).map(|level| level.size()).sum();
            let has_room = OsDisk.space(self.keyspace.path()).is_ok_and(|space| space.free >= needed);
            if has_room || start.elapsed() >= ROOM_WAIT_MAX {
                return;
            }
        }
    }
}

impl Engine for FjallEngine {
    fn view(&self) -> Arc<dyn View> {
        Arc::new(FjallView { snapshot: self.open.database.snapshot(), keyspace: self.open.keyspace.clone() })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        self.open.commit(batch)
    }

    fn flush(&self) -> io::Result<()> {
        // A commit is durable when it returns.
        self.open.expect_sound()
    }

    fn trouble(&self) -> Option<String> {
        self.open.state().trouble.clone()
    }
}

struct FjallView {
    snapshot: Snapshot,
    keyspace: Keyspace,
}

impl View for FjallView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let value = self.snapshot.get(&self.keyspace, key).map_err(io_error)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
        if to <= from {
            return Ok(Vec::new());
        }
        let entries = self.snapshot.range(&self.keyspace, from..to);
        let entries =
            entries.map(|entry| entry.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(io_error));
        take_within(entries, limit, bytes_max)
    }
}

fn io_error(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error,
        fjall::Error::Locked => io::Error::new(io::ErrorKind::ResourceBusy, "another process has the tables open"),
        other => io::Error::other(other),
    }
}
