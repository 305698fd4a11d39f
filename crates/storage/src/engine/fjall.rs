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
//!
//! A backup copies files as they are ([`Engine::files`]). fjall never changes a table file, and removes one only once nobody has a version that
//! names it any more: so whoever holds the newest version may copy its files for as long as that takes, and no link to them is needed, nor
//! anything to clear away after a crash. Of what does change, the name of the version, its contents are taken at once.
//!
//! What was overwritten or deleted goes in two steps. A compaction leaves it out of the files that it writes; and those that it read go
//! once nobody holds a view of a version that names them, which is looked for often. Where the disk is short, all that lies above the
//! last level is brought down to it, so that everything deleted is left out, in steps that each need little room (`reclaim`).

#![allow(
    clippy::disallowed_methods,
    reason = "production half of the seam: fjall's files are the operating system's, and so is the thread that compacts"
)]

use super::{Batch, Engine, EngineFiles, Given, RawEntry, View, take_within};
use fjall::compaction::Leveled;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, Readable, SeqNo, Snapshot, UserValue};
use lsm_tree::compaction::{CompactionStrategy, MoveDown};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use surefoot_env::{CopyContent, Disk, FileCopy, OsDisk, is_shortage};

/// What may be set; the rest follows.
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Bytes for cached blocks of table files.
    pub cache_bytes: u64,
    /// Bytes of a table file that compaction writes. A step of it may write a dozen of them, and that must fit into what is left free.
    pub table_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, table_bytes: 16 << 20 }
    }
}

/// Table files that nobody has compacted yet, from which on a commit waits.
const WAITING_TABLES_MAX: usize = 24;

/// Table files that nobody has compacted, from which on a commit is put off: compaction does not come along, and each read looks at
/// all of them.
const WAITING_TABLES_LIMIT: usize = 10 * WAITING_TABLES_MAX;

/// The same in bytes, counted in table files of [`FjallOptions::table_bytes`]: one step compacts all of them together.
const WAITING_BYTES_SHARE: u64 = 8;

/// How often, and how many times, a commit looks whether compaction caught up. Bounded, as each commit causes a compaction.
const WAIT_STEP: Duration = Duration::from_millis(20);
const WAIT_STEPS_MAX: u32 = 100;

/// A compaction that found no room is tried again once there is room for all that it may write. That is looked at this often.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// It may write less than that, so after this long it is tried all the same.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// Files that no view needs any more are looked for this often.
const RELEASE_LOOK: Duration = Duration::from_millis(250);
/// With less room than so many table files take, a step waits until the files that earlier steps have replaced are gone.
const STEP_TABLES: u64 = 12;
/// Looks after which it waits no more: a view may be held for long.
const RELEASE_LOOKS_MAX: u32 = 10;

/// Where the disk is short, this long passes at least between two rounds that bring everything down, and as long as the one before took.
const RECLAIM_REST: Duration = Duration::from_secs(1);
/// A round begins without a rest once this share of all tables is deleted.
const GARBAGE_SHARE: u64 = 8;
/// Tables no larger than so many files are compacted all at once where no step can be found: deletes that are few reach over more files
/// than fjall takes in one.
const AT_ONCE_SHARE: u64 = 256;
/// A table file that covers a part of all keys is no smaller than this.
const PIECE_BYTES_MIN: u64 = 4 << 10;
/// What comes from the first level is cut into no more than so many of them.
const PIECES_MAX: u64 = 1024;

/// Keys before and after all others. They lie in the last level from the beginning, so that its tables reach around whatever lies above
/// them: fjall compacts a table downwards only together with tables that do. They are never shown.
const FIRST_KEY: &[u8] = &[0];
const LAST_KEY: &[u8] = &[0xFF; 4];

const KEYSPACE: &str = "tables";
/// Where fjall keeps keyspaces, and each of them its table files and the name of its version.
pub(super) const KEYSPACES_DIR: &str = "keyspaces";
pub(super) const TABLES_DIR: &str = "tables";
pub(super) const CURRENT_FILE: &str = "current";
/// The keyspace with the names of the others. It was written when they were made.
const NAMES_KEYSPACE: &str = "0";
/// fjall opens only where this one is.
const LOCK_FILE: &str = "lock";
const VERSION_FILE: &str = "version";
/// fjall's own log, in which nothing is: a table file takes its place.
const JOURNAL_EXTENSION: &str = "jnl";

/// A version that is named on the disk may be replaced before its file is read: tried so often, each with the newest one.
const VERSION_READS_MAX: u32 = 100;

/// A fjall database.
pub struct FjallEngine {
    open: Arc<Open>,
    compactor: Option<JoinHandle<()>>,
}

struct Open {
    database: Database,
    keyspace: Keyspace,
    table_bytes: u64,
    views: Arc<HeldViews>,
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
    /// Room on the disk is short.
    is_short: bool,
    is_closing: bool,
    /// Why nothing is written any more: nobody knows what is on the disk.
    failed: Option<String>,
    /// Why nothing is compacted any more.
    trouble: Option<String>,
}

/// Views that are held, by what they show: all that was committed before. fjall counts them as well, and looks at its count seldom.
#[derive(Default)]
struct HeldViews(Mutex<BTreeMap<SeqNo, usize>>);

impl HeldViews {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SeqNo, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a view.
    fn open(&self, database: &Database) -> Snapshot {
        let mut held = self.lock();
        let snapshot = database.snapshot();
        *held.entry(snapshot.seqno()).or_default() += 1;
        snapshot
    }

    fn close(&self, seqno: SeqNo) {
        let mut held = self.lock();
        if let Some(count) = held.get_mut(&seqno) {
            *count -= 1;
            if *count == 0 {
                held.remove(&seqno);
            }
        }
    }

    /// What the oldest view shows that is held, or is opened later.
    fn oldest(&self, database: &Database) -> SeqNo {
        let held = self.lock();
        held.keys().next().copied().unwrap_or_else(|| database.visible_seqno())
    }
}

/// When everything is brought down.
struct Reclaiming {
    round: Round,
    /// When all tables at once found no room.
    failed_at_once: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Round {
    /// The next one not before then.
    Rests(Instant),
    Since(Instant),
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
        let (database, keyspace) = open_database(dir, options.cache_bytes)?;
        sync_names(dir)?;
        let mut files = Files { named: BTreeSet::new(), is_in_doubt: false };
        files.note(&keyspace);
        let is_new = keyspace.table_count() == 0;
        let open = Arc::new(Open {
            database,
            keyspace,
            table_bytes: options.table_bytes,
            views: Arc::default(),
            files: Mutex::new(files),
            compacting: Mutex::default(),
            state: Mutex::new(State { is_compaction_due: true, ..State::default() }),
            changed: Condvar::new(),
        });
        if is_new {
            open.put_ends()?;
            // Into the last level: there is nothing else.
            open.compact(open.leveled())?;
        }
        let compactor = {
            let open = open.clone();
            thread::Builder::new().name("compactor".to_owned()).spawn(move || open.compact_until_closed())?
        };
        Ok(Self { open, compactor: Some(compactor) })
    }
}

fn open_database(dir: &Path, cache_bytes: u64) -> io::Result<(Database, Keyspace)> {
    let database = Database::builder(dir)
        .cache_size(cache_bytes)
        // No cache of descriptors: each table holds its own.
        .max_cached_files(None)
        .worker_threads_unchecked(0)
        .open()
        .map_err(io_error)?;
    let keyspace = database.keyspace(KEYSPACE, KeyspaceCreateOptions::default).map_err(io_error)?;
    Ok((database, keyspace))
}

/// The rows of a database that nothing is written to: nobody compacts it. fjall writes files of its own there all the same.
pub(super) fn open_to_read(dir: &Path) -> io::Result<Arc<dyn View>> {
    let (database, keyspace) = open_database(dir, FjallOptions::default().cache_bytes)?;
    let held = Arc::<HeldViews>::default();
    Ok(Arc::new(FjallView { snapshot: held.open(&database), keyspace, held }))
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
        let on_disk = version_of(&fs::read(self.keyspace.path().join(CURRENT_FILE))?);
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
            let is_little =
                self.waiting_tables() < WAITING_TABLES_MAX && self.waiting_bytes() < WAITING_BYTES_SHARE * self.table_bytes;
            if is_little || self.state().trouble.is_some() {
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

    fn waiting_bytes(&self) -> u64 {
        self.keyspace.tree.current_version().l0().size()
    }

    /// Commits without waiting for compaction.
    fn write(&self, batch: &Batch) -> io::Result<()> {
        self.expect_sound()?;
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
        let write = |key: &[u8], value: Option<Given<'_>>| match value {
            Some(Given::Bytes(value)) => writes.write(key, value),
            Some(Given::Pieces(mut value)) => {
                let bytes = value.bytes();
                writes.write(key, UserValue::from_reader(&mut value, bytes)?)
            }
            None => writes.write_tombstone(key),
        };
        batch.each(write).map_err(io_error)?;
        writes.finish().map_err(io_error)
    }

    /// Commits the keys around all others once more: a table of theirs overlaps every other one.
    fn put_ends(&self) -> io::Result<()> {
        let mut ends = Batch::default();
        for key in [FIRST_KEY, LAST_KEY] {
            ends.put(|out| out.extend_from_slice(key), |_| {});
        }
        self.write(&ends)
    }

    /// The compactor's thread.
    fn compact_until_closed(&self) {
        let mut reclaiming = Reclaiming { round: Round::Rests(Instant::now()), failed_at_once: None };
        loop {
            let is_idle = |state: &mut State| !state.is_compaction_due && !state.is_closing;
            let waited = self.changed.wait_timeout_while(self.state(), RELEASE_LOOK, is_idle);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.is_closing || state.failed.is_some() {
                return;
            }
            let (is_due, is_short) = (std::mem::take(&mut state.is_compaction_due), state.is_short);
            drop(state);
            let work = || {
                self.release_for_step()?;
                // One that has begun is brought to its end: what gives most room may come last.
                if (is_short || matches!(reclaiming.round, Round::Since(_)))
                    && let Some(true) = self.reclaim(&mut reclaiming)?
                {
                    return Ok(true);
                }
                if is_due { Ok(self.close_gap()? || self.compact(self.leveled())?) } else { Ok(false) }
            };
            let error = match catch_unwind(AssertUnwindSafe(work)) {
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

    /// Lets go of the versions of the tree that no view needs, and so of the files that only they name.
    fn release(&self) -> io::Result<()> {
        if self.keyspace.tree.version_free_list_len() == 0 {
            return Ok(());
        }
        let oldest = self.views.oldest(&self.database);
        let mut versions = self.keyspace.tree.get_version_history_lock();
        versions.maintenance(self.keyspace.path(), oldest).map_err(|error| io_error(error.into()))
    }

    /// The same before a step of compaction: steps that follow each other faster than views are let go of would fill the disk with
    /// what they have replaced.
    fn release_for_step(&self) -> io::Result<()> {
        for _ in 0..RELEASE_LOOKS_MAX {
            self.release()?;
            let has_replaced = self.keyspace.tree.version_free_list_len() > 0;
            if !has_replaced || self.free() >= STEP_TABLES * self.table_bytes || self.state().is_closing {
                break;
            }
            let waited = self.changed.wait_timeout_while(self.state(), RELEASE_LOOK, |state| !state.is_closing);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        Ok(())
    }

    /// Where fjall has the database.
    fn root(&self) -> &Path {
        let keyspaces = self.keyspace.path().parent();
        keyspaces.and_then(Path::parent).expect("a keyspace lies two directories below its database")
    }

    fn files_now(&self) -> io::Result<EngineFiles> {
        self.expect_sound()?;
        let root = self.root();
        let mut copies = Copies { root, files: Vec::new() };
        copies.bytes(&root.join(VERSION_FILE))?;
        copies.files.push(FileCopy { name: LOCK_FILE.into(), content: CopyContent::Bytes(Vec::new()) });
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == JOURNAL_EXTENSION) {
                copies.start(&path, written_bytes(&path)?);
            }
        }
        let names = root.join(KEYSPACES_DIR).join(NAMES_KEYSPACE);
        let current = fs::read(names.join(CURRENT_FILE))?;
        let version =
            version_of(&current).ok_or_else(|| io::Error::other("the version of the keyspaces' names is unreadable"))?;
        copies.bytes(&names.join(CURRENT_FILE))?;
        copies.bytes(&names.join(version_file(version)))?;
        for entry in fs::read_dir(names.join(TABLES_DIR))? {
            let entry = entry?;
            copies.start(&entry.path(), entry.metadata()?.len());
        }
        let keyspace = self.keyspace.path();
        let mut tries = 0;
        // A commit or a compaction may come in between: then the version that it made is taken.
        let (version, current, file) = loop {
            let version = self.keyspace.tree.current_version();
            let current = fs::read(keyspace.join(CURRENT_FILE))?;
            if version_of(&current) == Some(version.id()) {
                match fs::read(keyspace.join(version_file(version.id()))) {
                    Ok(file) => break (version, current, file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            tries += 1;
            if tries == VERSION_READS_MAX {
                let why = "the tables' version on the disk is not the one in memory";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
        };
        copies.put(&keyspace.join(CURRENT_FILE), current);
        copies.put(&keyspace.join(version_file(version.id())), file);
        for table in version.iter_tables() {
            copies.start(&table.path, fs::metadata(&*table.path)?.len());
        }
        Ok(EngineFiles { files: copies.files, _held: Box::new(version) })
    }

    fn leveled(&self) -> Leveled {
        Leveled::default().with_table_target_size(self.table_bytes)
    }

    /// One step of bringing everything down to the last level, where what was deleted and overwritten is left out; whether it changed
    /// anything, or none if there is nothing to be done now.
    ///
    /// **Shape** of a round: first the levels between, each table with those below that it overlaps. Then the first level, all of it,
    /// into the empty one above the last: cut into as many pieces as the last level has tables, so that each piece overlaps few of them. Then
    /// these. No step reads more than what the first level has, or some tables.
    fn reclaim(&self, reclaiming: &mut Reclaiming) -> io::Result<Option<bool>> {
        let version = self.keyspace.tree.current_version();
        let last = version.level_count() - 1;
        let between = version.iter_levels().take(last).skip(1).any(|level| !level.is_empty());
        let first = version.l0();
        let began = match reclaiming.round {
            Round::Rests(_) if first.is_empty() && !between => return Ok(None),
            Round::Rests(until) if Instant::now() < until && !self.holds_much_garbage() => return Ok(None),
            Round::Rests(_) => Instant::now(),
            Round::Since(began) => began,
        };
        reclaiming.round = Round::Since(began);
        let has_changed = if self.close_gap()? {
            true
        } else if between {
            // Without a size that a level may have. The first one is left alone meanwhile: what lies deeper is brought down first.
            self.compact(self.leveled().with_l0_threshold(0).with_level_ratio_policy(vec![0.0]))?
                || self.compact_all(&mut reclaiming.failed_at_once)?
        } else if first.is_empty() {
            false
        } else {
            if first.run_count() == 1 {
                // It would be moved as it is, and not cut.
                self.put_ends()?;
            }
            let below = version.level(last).map_or(0, |level| level.size()) / self.table_bytes;
            let piece_bytes = (first.size() / below.clamp(1, PIECES_MAX)).clamp(PIECE_BYTES_MIN, self.table_bytes);
            self.compact(Leveled::default().with_l0_threshold(1).with_table_target_size(piece_bytes))?
        };
        if !has_changed {
            reclaiming.round = Round::Rests(Instant::now() + began.elapsed().max(RECLAIM_REST));
        }
        Ok(Some(has_changed))
    }

    /// Moves a level down where the one below it is empty: fjall takes it that levels in use follow one another.
    fn close_gap(&self) -> io::Result<bool> {
        let version = self.keyspace.tree.current_version();
        let is_empty: Vec<bool> = version.iter_levels().map(|level| level.is_empty()).collect();
        let gap = (1..is_empty.len() - 1).rev().find(|&above| !is_empty[above] && is_empty[above + 1]);
        let Some(above) = gap else { return Ok(false) };
        self.compact(MoveDown(above as u8, above as u8 + 1))
    }

    /// Compacts what a strategy finds due, if anything; whether something was.
    fn compact(&self, strategy: impl CompactionStrategy + Send + Sync + 'static) -> io::Result<bool> {
        self.compact_by(|oldest_read| self.keyspace.tree.compact(Arc::new(strategy), oldest_read))
    }

    /// Compacts everything at once, unless it is much. That needs room for all that is not deleted, which nobody knows before: where it found
    /// too little it is tried again once it seems to be enough, or after a while.
    fn compact_all(&self, failed: &mut Option<Instant>) -> io::Result<bool> {
        let rests = failed.is_some_and(|at| at.elapsed() < ROOM_WAIT_MAX) && self.undeleted_bytes() > self.free();
        if rests || self.keyspace.disk_space() > AT_ONCE_SHARE * self.table_bytes {
            return Ok(false);
        }
        let compacted = self.compact_by(|oldest_read| self.keyspace.tree.major_compact(self.table_bytes, oldest_read));
        *failed = compacted.is_err().then(Instant::now);
        compacted
    }

    fn holds_much_garbage(&self) -> bool {
        let bytes = self.keyspace.disk_space();
        bytes.saturating_sub(self.undeleted_bytes()) >= bytes / GARBAGE_SHARE
    }

    /// Bytes of rows that are not deleted, if those that are were as large as all rows are in the mean.
    fn undeleted_bytes(&self) -> u64 {
        let version = self.keyspace.tree.current_version();
        let entries: u64 = version.iter_tables().map(|table| table.metadata.item_count).sum();
        let deletes: u64 = version.iter_tables().map(|table| table.metadata.tombstone_count).sum();
        let rows = entries.saturating_sub(deletes);
        let left = rows.saturating_sub(deletes);
        (self.keyspace.disk_space() as u128 * u128::from(left) / u128::from(rows.max(1))) as u64
    }

    fn compact_by(&self, compact: impl FnOnce(SeqNo) -> Result<(), fjall::LsmError>) -> io::Result<bool> {
        let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.keyspace.tree.current_version().id();
        let compacted = compact(self.views.oldest(&self.database)).map_err(|error| io_error(error.into()));
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

    fn free(&self) -> u64 {
        OsDisk.space(self.keyspace.path()).map_or(0, |space| space.free)
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
            // What is short of room gives it back in small steps.
            let wait_max = if self.state().is_short { ROOM_LOOK } else { ROOM_WAIT_MAX };
            if self.free() >= needed || start.elapsed() >= wait_max {
                return;
            }
        }
    }
}

/// Files below the database's directory, to be copied.
struct Copies<'a> {
    root: &'a Path,
    files: Vec<FileCopy>,
}

impl Copies<'_> {
    fn put(&mut self, path: &Path, bytes: Vec<u8>) {
        self.push(path, CopyContent::Bytes(bytes));
    }

    /// One that is read now.
    fn bytes(&mut self, path: &Path) -> io::Result<()> {
        self.put(path, fs::read(path)?);
        Ok(())
    }

    fn start(&mut self, path: &Path, bytes: u64) {
        self.push(path, CopyContent::Start { of: path.to_owned(), bytes });
    }

    fn push(&mut self, path: &Path, content: CopyContent) {
        let name = path.strip_prefix(self.root).expect("fjall keeps its files below its directory").to_owned();
        self.files.push(FileCopy { name, content });
    }
}

/// The version that the file of its name says.
pub(super) fn version_of(current: &[u8]) -> Option<u64> {
    current.first_chunk().map(|number| u64::from_le_bytes(*number))
}

pub(super) fn version_file(version: u64) -> String {
    format!("v{version}")
}

/// Bytes of a file up to its last one that is not zero. fjall lays out a new journal with zeros.
pub(super) fn written_bytes(path: &Path) -> io::Result<u64> {
    let (file, mut piece) = (File::open(path)?, vec![0; 1 << 20]);
    let (mut at, mut written) = (0, 0);
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            return Ok(written);
        }
        if let Some(last) = piece[..read].iter().rposition(|byte| *byte != 0) {
            written = at + last as u64 + 1;
        }
        at += read as u64;
    }
}

impl Engine for FjallEngine {
    fn files(&self) -> io::Result<EngineFiles> {
        self.open.files_now()
    }

    fn view(&self) -> Arc<dyn View> {
        let (keyspace, held) = (self.open.keyspace.clone(), self.open.views.clone());
        Arc::new(FjallView { snapshot: held.open(&self.open.database), keyspace, held })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        self.open.expect_sound()?;
        self.open.wait_for_compaction()?;
        self.open.write(batch)
    }

    fn flush(&self) -> io::Result<()> {
        // A commit is durable when it returns.
        self.open.expect_sound()
    }

    fn set_short(&self, is_short: bool) {
        // It is looked at often enough by itself.
        self.open.state().is_short = is_short;
    }

    fn trouble(&self) -> Option<String> {
        self.open.state().trouble.clone()
    }
}

struct FjallView {
    snapshot: Snapshot,
    keyspace: Keyspace,
    held: Arc<HeldViews>,
}

impl Drop for FjallView {
    fn drop(&mut self) {
        self.held.close(self.snapshot.seqno());
    }
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
        let is_end = |entry: &io::Result<RawEntry>| entry.as_ref().is_ok_and(|(key, _)| key == FIRST_KEY || key == LAST_KEY);
        let entries = entries.filter(|entry| !is_end(entry));
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
