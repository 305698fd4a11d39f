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
//!
//! No compaction takes what is kept for log and commits (rule L8). fjall is asked first what it would choose (`compact`). Where there is
//! room for all that this may write, which is no more than what it reads, it begins. Where there is room for what seems to be left once the
//! deleted is gone, it begins too, and ends itself if it meets the bound ([`WriteBound`]). Else it does not begin, and the room that it
//! needs is known ([`Engine::lacks_room`]).

#![allow(
    clippy::disallowed_methods,
    reason = "production half of the seam: fjall's files are the operating system's, and so is the thread that compacts"
)]

use super::values::{ValuesView, pieces_beyond, write_rows};
use super::{Batch, Change, Engine, EngineFiles, Given, View, inspect};
use fjall::compaction::Leveled;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, SeqNo, Snapshot};
use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use lsm_tree::compaction::{Choice, CompactionStrategy, Input, MoveDown, PullDown};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// A compaction writes no more than leaves room for so many table files: as much as a segment of the log takes, so that neither the log nor
/// a commit meets the end of the disk for it. Where little is free it leaves this share of that.
const KEPT_TABLES: u64 = 4;
const KEPT_SHARE: u64 = 4;
/// What a table file takes beside its rows, at most: its index, its description, and the rest of its last block on the disk.
const FILE_BYTES: u64 = 4 << 10;
/// The same for a row beside its key and value.
const ROW_BYTES: u64 = 32;
/// Whether there is room is looked at this often. A try that failed all the same is followed by another one after so long, and by each
/// further one after twice the time of the one before.
const ROOM_LOOK: Duration = Duration::from_secs(1);
const ROOM_REST_MAX: Duration = Duration::from_secs(30);
/// Steps have found no room for so long before it is told: views may hold what earlier ones have replaced.
const LACK_TOLD_AFTER: Duration = Duration::from_secs(10);

/// Files that no view needs any more are looked for this often.
const RELEASE_LOOK: Duration = Duration::from_millis(250);
/// With less room than so many table files take, a step waits until the files that earlier steps have replaced are gone.
const STEP_TABLES: u64 = 12;
/// Looks after which it waits no more: a view may be held for long.
const RELEASE_LOOKS_MAX: u32 = 10;

/// Where the disk is short, this long passes at least between two rounds that bring everything down, and as long as the one before took.
const RECLAIM_REST: Duration = Duration::from_secs(1);
/// A round begins without a rest once this share of all tables is deleted, or has been deleted since a round that found no room.
const GARBAGE_SHARE: u64 = 8;
/// Bytes of a level that fjall takes into one step, counted in table files of the strategy's size.
const STEP_TABLES_MAX: u64 = 50;
/// A table file that covers a part of all keys is no smaller than this.
const PIECE_BYTES_MIN: u64 = 4 << 10;
/// What comes from the first level is cut into no more than so many of them. Where they are cut again because of rows that lie far
/// apart, and there are no more rows than this, each row becomes one: then none reaches over more than a table below.
const PIECES_MAX: u64 = 1024;
/// That begins in the first level. No more tables than this get there for it: each counts as one that waits for compaction.
const LIFTED_TABLES_MAX: usize = WAITING_TABLES_MAX / 2;

/// Keys before and after all others. They lie in the last level from the beginning, so that its tables reach around whatever lies above
/// them: fjall compacts a table downwards only together with tables that do. They are never shown.
const FIRST_KEY: &[u8] = &[0];
const LAST_KEY: &[u8] = &[0xFF; 4];
/// Behind all keys but the last one. It is there once a value has been cut into pieces: before, no commit looks for pieces of what it replaces.
const PIECES_KEY: &[u8] = &[0xFF; 3];
const HIDDEN_KEYS: &[&[u8]] = &[FIRST_KEY, PIECES_KEY, LAST_KEY];

const KEYSPACE: &str = "tables";
/// What the name of a database ends in while it is made.
const MADE_ASIDE: &str = ".new";
/// Where fjall keeps keyspaces, and each of them its table files and the name of its version.
pub(super) const KEYSPACES_DIR: &str = "keyspaces";
pub(super) const TABLES_DIR: &str = "tables";
pub(super) const CURRENT_FILE: &str = "current";
/// The keyspace with the names of the others, which was written when they were made; and the other one.
pub(super) const NAMES_KEYSPACE: &str = "0";
pub(super) const TABLES_KEYSPACE: &str = "1";
/// fjall opens only where this one is.
pub(super) const LOCK_FILE: &str = "lock";
pub(super) const VERSION_FILE: &str = "version";
/// fjall's own log, in which nothing is: a table file takes its place.
pub(super) const JOURNAL_EXTENSION: &str = "jnl";

/// How often and how patiently the lock is tried.
const LOCK_TRIES: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A version that is named on the disk may be replaced before its file is read, or not be the newest in memory yet, for as long as two syncs
/// take: it is read anew after so long, so often.
const VERSION_READ_PAUSE: Duration = Duration::from_millis(10);
const VERSION_READS_MAX: u32 = 1_000;

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
    bound: Arc<WriteBound>,
    /// There is a value in pieces, or has been.
    has_pieces: AtomicBool,
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
    /// Since when no step that would give room back has found room itself, and the bytes that would have to be free for one.
    lack: Option<(Instant, u64)>,
}

/// Views that are held, by what they show: all that was committed before. fjall counts them as well, and looks at its count seldom.
#[derive(Default)]
pub(super) struct HeldViews(Mutex<BTreeMap<SeqNo, usize>>);

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

    pub(super) fn close(&self, seqno: SeqNo) {
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

/// What a step of compaction came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Changed,
    /// There is nothing that it could do.
    Nothing,
    /// It was not begun: so many bytes would have to be free.
    LacksRoom(u64),
}

/// What the compaction that runs may write of rows that are not deleted. It looks at each of them anyway, and may be ended there.
#[derive(Default)]
struct WriteBound {
    /// Zero is none.
    bytes_max: AtomicU64,
    is_met: AtomicBool,
}

/// Bounds every compaction of the tables.
struct Bounded(Arc<WriteBound>);

impl Factory for Bounded {
    fn name(&self) -> &'static str {
        "bound"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        let bytes_max = self.0.bytes_max.load(Ordering::Relaxed);
        Box::new(BoundedWrite { bound: self.0.clone(), bytes_left: (bytes_max > 0).then_some(bytes_max) })
    }
}

struct BoundedWrite {
    bound: Arc<WriteBound>,
    bytes_left: Option<u64>,
}

impl CompactionFilter for BoundedWrite {
    fn filter_item(&mut self, row: ItemAccessor<'_>, _: &Context) -> Result<Verdict, fjall::LsmError> {
        if let Some(left) = &mut self.bytes_left {
            let bytes = (row.key().len() + row.value()?.len()) as u64 + ROW_BYTES;
            let Some(after) = left.checked_sub(bytes) else {
                self.bound.is_met.store(true, Ordering::Relaxed);
                return Err(io::Error::from(io::ErrorKind::StorageFull).into());
            };
            *left = after;
        }
        Ok(Verdict::Keep)
    }
}

/// When everything is brought down.
struct Reclaiming {
    round: Round,
    /// Rows that were cut again in this round: those of pieces for which no step had fitted.
    rows_cut_again: Option<u64>,
    /// The rest after a round without room: longer with each one in which a step was begun in vain.
    lack_rest: Duration,
}

#[derive(Clone, Copy)]
enum Round {
    /// The next one not before then, unless much is deleted.
    Rests(Instant),
    /// The same after one that found no room.
    Lacks {
        until: Instant,
        deleted_bytes: u64,
        needed_bytes: u64,
    },
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
    /// process has it open (`ResourceBusy`); a file of it is missing or damaged, and named (`InvalidData`); or it cannot be read.
    pub fn open(dir: &Path, options: FjallOptions) -> io::Result<Self> {
        if !is_made(dir)? {
            make(dir, options)?;
        }
        // fjall begins anew, or removes, what it finds no name of: it is not to open what is not whole. Nobody changes it meanwhile.
        let lock = lock(dir)?;
        inspect::expect_whole(dir)?;
        drop(lock);
        let open = match catch_unwind(|| Open::at(dir, options)) {
            Ok(Ok(open)) => Arc::new(open),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy || is_shortage(&error) => return Err(error),
            Ok(Err(error)) => return Err(inspect::named_fault(dir).unwrap_or(error)),
            Err(_) => return Err(inspect::named_fault(dir).unwrap_or_else(|| io::Error::other("fjall panicked over them"))),
        };
        sync_names(dir)?;
        let compactor = {
            let open = open.clone();
            thread::Builder::new().name("compactor".to_owned()).spawn(move || open.compact_until_closed())?
        };
        Ok(Self { open, compactor: Some(compactor) })
    }
}

/// Whether there is a database: it is whole then, since it gets its name last.
fn is_made(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the lock that fjall takes, as patiently: the engine before may be about to end. None where there is none.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = match File::open(dir.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for _ in 1..LOCK_TRIES {
        if file.try_lock().is_ok() {
            return Ok(Some(file));
        }
        thread::sleep(LOCK_PAUSE);
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(io_error(fjall::Error::Locked)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Makes a database under another name, and gives it its own once it is whole.
fn make(dir: &Path, options: FjallOptions) -> io::Result<()> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "a directory for tables has a name");
    let mut name = dir.file_name().ok_or_else(no_name)?.to_owned();
    name.push(MADE_ASIDE);
    let aside = dir.with_file_name(name);
    // Of an earlier try.
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let open = Open::at(&aside, options)?;
    open.put_ends()?;
    // Into the last level: there is nothing else, and so it is only moved.
    open.compact(open.leveled())?;
    drop(open);
    sync_names(&aside)?;
    fs::rename(&aside, dir)
}

fn open_database(dir: &Path, cache_bytes: u64, bound: Arc<WriteBound>) -> io::Result<(Database, Keyspace)> {
    let database = Database::builder(dir)
        .cache_size(cache_bytes)
        // No cache of descriptors: each table holds its own.
        .max_cached_files(None)
        .worker_threads_unchecked(0)
        .with_compaction_filter_factories(Arc::new(move |keyspace| {
            (keyspace == KEYSPACE).then(|| Arc::new(Bounded(bound.clone())) as Arc<dyn Factory>)
        }))
        .open()
        .map_err(io_error)?;
    let keyspace = database.keyspace(KEYSPACE, KeyspaceCreateOptions::default).map_err(io_error)?;
    Ok((database, keyspace))
}

/// The rows of a database that nothing is written to: nobody compacts it. fjall writes files of its own there all the same.
pub(super) fn open_to_read(dir: &Path) -> io::Result<Arc<dyn View>> {
    let (database, keyspace) = open_database(dir, FjallOptions::default().cache_bytes, Arc::default())?;
    let held = Arc::<HeldViews>::default();
    Ok(Arc::new(ValuesView::new(held.open(&database), keyspace, held, HIDDEN_KEYS)))
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
    fn at(dir: &Path, options: FjallOptions) -> io::Result<Self> {
        let bound = Arc::<WriteBound>::default();
        let (database, keyspace) = open_database(dir, options.cache_bytes, bound.clone())?;
        let mut files = Files { named: BTreeSet::new(), is_in_doubt: false };
        files.note(&keyspace);
        let has_pieces = keyspace.contains_key(PIECES_KEY).map_err(io_error)?;
        Ok(Self {
            database,
            keyspace,
            table_bytes: options.table_bytes,
            views: Arc::default(),
            bound,
            has_pieces: AtomicBool::new(has_pieces),
            files: Mutex::new(files),
            compacting: Mutex::default(),
            state: Mutex::new(State { is_compaction_due: true, ..State::default() }),
            changed: Condvar::new(),
        })
    }

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
        let (had_pieces, mut has_pieces) = (self.has_pieces.load(Ordering::Relaxed), false);
        let write = |key: &[u8], change: Change<'_>| {
            let is_new = matches!(change, Change::Insert(_));
            let rows = match change {
                Change::Insert(value) | Change::Put(value) => write_rows(key, value, |key, row| writes.write(key, row))?,
                Change::Delete => {
                    writes.write_tombstone(key)?;
                    1
                }
            };
            has_pieces |= rows > 1;
            if had_pieces && !is_new {
                pieces_beyond(&self.keyspace, key, rows)?.try_for_each(|key| writes.write_tombstone(key))?;
            }
            Ok(())
        };
        batch.each(write).map_err(io_error)?;
        if has_pieces && !had_pieces {
            write_rows(PIECES_KEY, Given::Bytes(&[]), |key, row| writes.write(key, row)).map_err(io_error)?;
        }
        writes.finish().map_err(io_error)?;
        self.has_pieces.fetch_or(has_pieces, Ordering::Relaxed);
        Ok(())
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
        let mut reclaiming = Reclaiming { round: Round::Rests(Instant::now()), rows_cut_again: None, lack_rest: RECLAIM_REST };
        let mut rest = ROOM_LOOK;
        loop {
            let is_idle = |state: &mut State| !state.is_compaction_due && !state.is_closing;
            let waited = self.changed.wait_timeout_while(self.state(), RELEASE_LOOK, is_idle);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.is_closing || state.failed.is_some() {
                return;
            }
            let is_due = std::mem::take(&mut state.is_compaction_due);
            // One that has begun is brought to its end: what gives most room may come last. And what lacks room gives it back in small steps.
            let reclaims = state.is_short || state.lack.is_some() || matches!(reclaiming.round, Round::Since(_));
            drop(state);
            let work = || {
                self.release_for_step()?;
                if reclaims && self.reclaim(&mut reclaiming)? == Outcome::Changed {
                    return Ok(Outcome::Changed);
                }
                match self.close_gap()? {
                    Outcome::Nothing if is_due => self.compact(self.leveled()),
                    outcome => Ok(outcome),
                }
            };
            let error = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(outcome)) => {
                    rest = ROOM_LOOK;
                    match outcome {
                        // Where one level gave to the next, that one may be due.
                        Outcome::Changed => self.state().is_compaction_due = true,
                        Outcome::Nothing => {}
                        Outcome::LacksRoom(needed) => {
                            self.note_lack(needed);
                            self.rest_until_due(ROOM_LOOK);
                        }
                    }
                    continue;
                }
                Ok(Err(error)) => error,
                // fjall's locks may be poisoned.
                Err(_) => return drop(self.fail("compaction of the tables has panicked".to_owned())),
            };
            if is_shortage(&error) {
                // Others were quicker to take the room that there was.
                self.rest(rest);
                rest = (2 * rest).min(ROOM_REST_MAX);
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

    /// Waits for a while, or until the engine is closed.
    fn rest(&self, rest: Duration) {
        let rested = self.changed.wait_timeout_while(self.state(), rest, |state| !state.is_closing);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }

    /// The same for what is due all the time: it is looked at again after that, or once something is committed.
    fn rest_until_due(&self, rest: Duration) {
        let is_idle = |state: &mut State| !state.is_compaction_due && !state.is_closing;
        let rested = self.changed.wait_timeout_while(self.state(), rest, is_idle);
        rested.unwrap_or_else(PoisonError::into_inner).0.is_compaction_due = true;
    }

    fn note_lack(&self, needed: u64) {
        let mut state = self.state();
        let since = state.lack.map_or_else(Instant::now, |(since, _)| since);
        state.lack = Some((since, needed));
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
            self.rest(RELEASE_LOOK);
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
            thread::sleep(VERSION_READ_PAUSE);
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

    /// One step of bringing everything down to the last level, where what was deleted and overwritten is left out.
    ///
    /// **Shape** of a round: first the levels between, each table with those below that it overlaps, the smallest step first. Then the first
    /// level, all of it, into the empty one above the last: cut into as many pieces as the last level has tables, so that each piece overlaps
    /// few of them. Then these. No step reads more than what the first level has, or some tables. Rows that lie far apart are few in a piece that
    /// reaches over more than there is room for, or than fjall takes: such pieces are cut again, smaller.
    fn reclaim(&self, reclaiming: &mut Reclaiming) -> io::Result<Outcome> {
        let version = self.keyspace.tree.current_version();
        let last = version.level_count() - 1;
        let between = version.iter_levels().take(last).skip(1).any(|level| !level.is_empty());
        let first = version.l0();
        let began = match reclaiming.round {
            Round::Since(began) => began,
            _ if first.is_empty() && !between => {
                self.state().lack = None;
                return Ok(Outcome::Nothing);
            }
            Round::Rests(until) if Instant::now() < until && !self.has_deleted_since(0) => return Ok(Outcome::Nothing),
            Round::Lacks { until, deleted_bytes, needed_bytes }
                if Instant::now() < until && !self.has_deleted_since(deleted_bytes) && self.free() < needed_bytes =>
            {
                return Ok(Outcome::Nothing);
            }
            Round::Rests(_) | Round::Lacks { .. } => Instant::now(),
        };
        reclaiming.round = Round::Since(began);
        let mut outcome = self.close_gap()?;
        if outcome == Outcome::Nothing {
            outcome = if between {
                self.bring_down(&mut reclaiming.rows_cut_again)?
            } else if first.is_empty() {
                Outcome::Nothing
            } else {
                self.cut_first(reclaiming.rows_cut_again)?
            };
        }
        let rest = began.elapsed().max(RECLAIM_REST);
        match outcome {
            Outcome::Changed => return Ok(outcome),
            Outcome::Nothing => reclaiming.round = Round::Rests(Instant::now() + rest),
            Outcome::LacksRoom(needed_bytes) => {
                let in_vain = self.bound.is_met.load(Ordering::Relaxed);
                let has_lacked = self.state().lack.is_some();
                reclaiming.lack_rest =
                    if in_vain && has_lacked { (2 * reclaiming.lack_rest).min(ROOM_REST_MAX) } else { RECLAIM_REST };
                self.note_lack(needed_bytes);
                let until = Instant::now() + rest.max(reclaiming.lack_rest);
                reclaiming.round = Round::Lacks { until, deleted_bytes: self.deleted_bytes(), needed_bytes };
            }
        }
        reclaiming.rows_cut_again = None;
        Ok(outcome)
    }

    /// Moves a level down where the one below it is empty: fjall takes it that levels in use follow one another.
    fn close_gap(&self) -> io::Result<Outcome> {
        let version = self.keyspace.tree.current_version();
        let is_empty: Vec<bool> = version.iter_levels().map(|level| level.is_empty()).collect();
        let gap = (1..is_empty.len() - 1).rev().find(|&above| !is_empty[above] && is_empty[above + 1]);
        let Some(above) = gap else { return Ok(Outcome::Nothing) };
        self.compact(MoveDown(above as u8, above as u8 + 1))
    }

    /// Brings the levels between down.
    fn bring_down(&self, rows_cut_again: &mut Option<u64>) -> io::Result<Outcome> {
        let outcome = self.compact(self.all_down(self.table_bytes))?;
        if outcome == Outcome::Changed {
            self.state().lack = None;
            return Ok(outcome);
        }
        if self.lift(rows_cut_again)? == Outcome::Changed {
            return Ok(Outcome::Changed);
        }
        if outcome != Outcome::Nothing {
            return Ok(outcome);
        }
        // The smallest step is more than fjall takes with files of this size, and so needs larger ones.
        let bytes = self.keyspace.disk_space();
        let Choice::Merge(smallest) = self.choice(&self.all_down(bytes)) else { return Ok(Outcome::Nothing) };
        let outcome = self.compact(self.all_down(self.table_bytes.max(self.input_bytes(&smallest) / STEP_TABLES_MAX + 1)))?;
        if outcome == Outcome::Changed {
            self.state().lack = None;
        }
        Ok(outcome)
    }

    /// What brings a table of the deepest level between to the one below, with those that it overlaps there: the smallest such step, whatever
    /// size a level may have. The first level is left alone meanwhile.
    fn all_down(&self, table_bytes: u64) -> Leveled {
        self.leveled().with_table_target_size(table_bytes).with_l0_threshold(0).with_level_ratio_policy(vec![0.0])
    }

    /// One step of putting all that lies above the last level into the first, where it is cut anew. That goes by way of the level above the
    /// last, in which everything is merged. Not so again in a round before half of what was cut is down: the same cuts would be found.
    fn lift(&self, rows_cut_again: &mut Option<u64>) -> io::Result<Outcome> {
        let version = self.keyspace.tree.current_version();
        let lowest = version.level_count() - 2;
        let lowest_tables =
            || version.iter_levels().skip(lowest).take(1).flat_map(|level| level.iter()).flat_map(|run| run.iter());
        let tables = lowest_tables().count();
        let rows: u64 = lowest_tables().map(|table| table.metadata.item_count).sum();
        let above = (0..lowest).rev().find(|&above| version.level(above).is_some_and(|level| !level.is_empty()));
        let to = lowest as u8;
        if rows_cut_again.is_some_and(|before| rows > before / 2) {
            return Ok(Outcome::Nothing);
        }
        match above {
            None if rows <= tables as u64 => Ok(Outcome::Nothing),
            None if tables > LIFTED_TABLES_MAX => self.compact(PullDown(to - 1, to)),
            None => self.lift_lowest(to, rows, rows_cut_again),
            Some(0) => self.compact(PullDown(0, to)),
            // In small steps while it is more than some tables. The level above the last has no size then.
            Some(above) => match self.compact(self.leveled().with_l0_threshold(1).with_level_ratio_policy(vec![f32::MAX]))? {
                Outcome::Changed => Ok(Outcome::Changed),
                Outcome::Nothing | Outcome::LacksRoom(_) => self.compact(PullDown(above as u8, to)),
            },
        }
    }

    /// Moves the level above the last into the first. It must be the only one above the last: what lies further up counts as newer. So nobody
    /// commits meanwhile; where somebody has, nothing is moved, and that is taken into it before.
    fn lift_lowest(&self, lowest: u8, rows: u64, rows_cut_again: &mut Option<u64>) -> io::Result<Outcome> {
        let mut files = self.files();
        let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.keyspace.tree.current_version().l0().is_empty() {
            return Ok(Outcome::Changed);
        }
        let version = self.keyspace.tree.current_version().id();
        let moved = self.keyspace.tree.compact(Arc::new(MoveDown(lowest, 0)), self.views.oldest(&self.database));
        *rows_cut_again = Some(rows);
        self.settle_compaction(&mut files, version, moved)
    }

    /// Brings the first level into the empty one above the last, in pieces.
    fn cut_first(&self, rows_cut_again: Option<u64>) -> io::Result<Outcome> {
        if self.keyspace.tree.current_version().l0().run_count() == 1 {
            // It would be moved as it is, and not cut.
            self.put_ends()?;
        }
        let version = self.keyspace.tree.current_version();
        let first = version.l0();
        let rows: u64 = first.iter().flat_map(|run| run.iter()).map(|table| table.metadata.item_count).sum();
        let below = version.level(version.level_count() - 1).map_or(0, |level| level.size()) / self.table_bytes;
        let piece_bytes = if rows_cut_again.is_some() && rows <= PIECES_MAX {
            0
        } else {
            (first.size() / below.clamp(1, PIECES_MAX)).clamp(PIECE_BYTES_MIN, self.table_bytes)
        };
        self.compact(Leveled::default().with_l0_threshold(1).with_table_target_size(piece_bytes))
    }

    /// Compacts what a strategy finds due, if anything, where there is room for it.
    fn compact(&self, strategy: impl CompactionStrategy + Send + Sync + 'static) -> io::Result<Outcome> {
        self.compact_within(self.free(), strategy)
    }

    /// The same where so many bytes are free.
    fn compact_within(&self, free: u64, strategy: impl CompactionStrategy + Send + Sync + 'static) -> io::Result<Outcome> {
        let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = (KEPT_TABLES * self.table_bytes).min(free / KEPT_SHARE);
        let (mut bytes_max, mut needed_for_all) = (0, 0);
        self.bound.is_met.store(false, Ordering::Relaxed);
        match self.choice(&strategy) {
            Choice::DoNothing => return Ok(Outcome::Nothing),
            // What is committed after this look is merged as well; it is no more than what is kept.
            Choice::Merge(input) => {
                let (all, left) = self.written_bytes(&input);
                needed_for_all = self.needed_bytes(all);
                if needed_for_all > free {
                    let needed = self.needed_bytes(left);
                    if needed > free {
                        return Ok(Outcome::LacksRoom(needed));
                    }
                    bytes_max = free - kept;
                }
            }
            Choice::Move(_) | Choice::Drop(_) => {}
        }
        self.bound.bytes_max.store(bytes_max, Ordering::Relaxed);
        let version = self.keyspace.tree.current_version().id();
        let compacted = self.keyspace.tree.compact(Arc::new(strategy), self.views.oldest(&self.database));
        match self.settle_compaction(&mut self.files(), version, compacted) {
            Err(error) if is_shortage(&error) && self.bound.is_met.load(Ordering::Relaxed) => {
                Ok(Outcome::LacksRoom(needed_for_all))
            }
            outcome => outcome,
        }
    }

    /// What has to be free for a compaction that writes so much.
    fn needed_bytes(&self, written: u64) -> u64 {
        (written + KEPT_TABLES * self.table_bytes).min(written / (KEPT_SHARE - 1) * KEPT_SHARE)
    }

    /// What a strategy would do now.
    fn choice(&self, strategy: &impl CompactionStrategy) -> Choice {
        strategy.choose(&self.keyspace.tree.current_version(), self.keyspace.tree.tree_config(), &Default::default())
    }

    /// What follows a compaction of that version.
    fn settle_compaction(&self, files: &mut Files, version: u64, compacted: Result<(), fjall::LsmError>) -> io::Result<Outcome> {
        files.note(&self.keyspace);
        match compacted.map_err(|error| io_error(error.into())) {
            Ok(()) if self.keyspace.tree.current_version().id() == version => Ok(Outcome::Nothing),
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => {
                files.is_in_doubt = true;
                // A commit tries it again before it writes.
                self.settle(files).or_else(|error| if is_shortage(&error) { Ok(()) } else { Err(error) })?;
                Err(error)
            }
        }
    }

    fn input_bytes(&self, input: &Input) -> u64 {
        let version = self.keyspace.tree.current_version();
        let tables = version.iter_tables().filter(|table| input.table_ids.contains(&table.id()));
        tables.map(|table| table.metadata.file_size).sum()
    }

    /// What a compaction writes at most, which is all that it reads in as many files as that becomes; and what it writes if the rows that it
    /// leaves out are as large as all of them are in the mean. It leaves none out for sure but in the last level.
    fn written_bytes(&self, input: &Input) -> (u64, u64) {
        let version = self.keyspace.tree.current_version();
        let tables = || version.iter_tables().filter(|table| input.table_ids.contains(&table.id()));
        let entries: u64 = tables().map(|table| table.metadata.item_count).sum();
        let bytes = self.input_bytes(input);
        let files = bytes.checked_div(input.target_size).map_or(entries, |files| files + 1) * FILE_BYTES;
        let is_last = usize::from(input.dest_level) + 1 == version.level_count();
        let deletes = if is_last { tables().map(|table| table.metadata.tombstone_count).sum() } else { 0 };
        (bytes + files, bytes - deleted_bytes(bytes, entries, deletes) + files)
    }

    fn has_deleted_since(&self, deleted_bytes: u64) -> bool {
        self.deleted_bytes() >= deleted_bytes + (self.keyspace.disk_space() / GARBAGE_SHARE).max(1)
    }

    fn deleted_bytes(&self) -> u64 {
        let version = self.keyspace.tree.current_version();
        let entries: u64 = version.iter_tables().map(|table| table.metadata.item_count).sum();
        let deletes: u64 = version.iter_tables().map(|table| table.metadata.tombstone_count).sum();
        deleted_bytes(self.keyspace.disk_space(), entries, deletes)
    }

    /// All there could be where nobody can say: compaction goes on there.
    fn free(&self) -> u64 {
        OsDisk.space(self.keyspace.path()).map_or(u64::MAX, |space| space.free)
    }
}

/// Bytes of rows that are deleted, if they were as large as all rows are in the mean, of tables with so many bytes, entries and deletes.
fn deleted_bytes(bytes: u64, entries: u64, deletes: u64) -> u64 {
    let rows = entries.saturating_sub(deletes);
    (u128::from(bytes) * u128::from(deletes.min(rows)) / u128::from(rows.max(1))) as u64
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
        self.push(path, CopyContent::Start { of: path.to_owned(), bytes, then: Vec::new() });
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
        Arc::new(ValuesView::new(held.open(&self.open.database), keyspace, held, HIDDEN_KEYS))
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

    fn lacks_room(&self) -> Option<u64> {
        let (since, needed) = self.open.state().lack?;
        (since.elapsed() >= LACK_TOLD_AFTER).then_some(needed)
    }
}

pub(super) fn io_error(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error,
        fjall::Error::Locked => io::Error::new(io::ErrorKind::ResourceBusy, "another process has the tables open"),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests;
