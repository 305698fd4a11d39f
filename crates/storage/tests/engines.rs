//! What every engine owes, asked of each: the production engine and the one in memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "they run on the machine's own disk, and say what they skip")]

use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_storage::{Batch, Engine, Failure, MemEngine, View, keys};

/// An engine, and how to start it again as after a crash of the process.
trait Subject {
    fn engine(&self) -> Arc<dyn Engine>;
    fn restart(&mut self);
    /// Leaves no room for anything, or gives back all of it; false where this place has no such bound.
    fn set_full(&mut self, is_full: bool) -> bool;
    /// Whether everything that is stored belongs to what was committed.
    fn has_leftovers(&self) -> bool;
}

fn suite(subject: &mut impl Subject) {
    a_full_engine_refuses_and_leaves_nothing_and_goes_on_once_there_is_room(subject);
    what_is_committed_is_seen_in_later_views_only(&*subject.engine());
    an_empty_batch_and_a_delete_of_nothing_change_nothing(&*subject.engine());
    scans_are_bounded_ordered_and_half_open(&*subject.engine());
    awkward_keys_and_values_come_back(&*subject.engine());
    a_value_that_is_written_down_later_is_not_held_by_its_batch(&*subject.engine());
    a_view_outlives_overwrites_and_flushes(&*subject.engine());
    random_batches_match_a_map(subject);
    large_values_are_values_like_others(subject);
}

#[test]
fn mem_engine() {
    struct Mem(MemEngine);
    impl Subject for Mem {
        fn engine(&self) -> Arc<dyn Engine> {
            Arc::new(self.0.clone())
        }
        fn restart(&mut self) {
            self.0 = self.0.restart();
        }
        fn set_full(&mut self, is_full: bool) -> bool {
            self.0.set_full(is_full);
            true
        }
        fn has_leftovers(&self) -> bool {
            false
        }
    }
    suite(&mut Mem(MemEngine::new()));
}

#[cfg(feature = "fjall")]
mod on_disk {
    use super::{Map, Random, Subject, all, get, suite};
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use surefoot_env::{CopyContent, Disk, OsDisk};
    use surefoot_storage::{Batch, Engine, FjallEngine, FjallOptions};

    struct Fjall {
        dir: PathBuf,
        /// Bounds the room.
        volume: Option<Volume>,
        engine: Option<Arc<dyn Engine>>,
    }

    impl Fjall {
        fn open(dir: &Path, volume: Option<Volume>) -> Self {
            let mut subject = Self { dir: dir.to_owned(), volume, engine: None };
            subject.restart();
            subject
        }
    }

    impl Subject for Fjall {
        fn engine(&self) -> Arc<dyn Engine> {
            self.engine.clone().unwrap()
        }
        fn restart(&mut self) {
            self.engine = None;
            self.engine = Some(Arc::new(FjallEngine::open(&self.dir, FjallOptions::default()).unwrap()));
        }
        fn set_full(&mut self, is_full: bool) -> bool {
            let Some(volume) = &self.volume else { return false };
            if is_full {
                volume.fill()
            } else {
                volume.free()
            }
            true
        }
        fn has_leftovers(&self) -> bool {
            // What an engine clears away when it opens.
            let before = table_files(&self.dir);
            let copy = tempfile::tempdir().unwrap();
            let copied = Command::new("cp").arg("-r").arg(&self.dir).arg(copy.path().join("tables")).status().unwrap();
            assert!(copied.success());
            drop(FjallEngine::open(&copy.path().join("tables"), FjallOptions::default()).unwrap());
            table_files(&copy.path().join("tables")) != before
        }
    }

    fn table_files(dir: &Path) -> usize {
        fs::read_dir(dir.join("keyspaces/1/tables")).unwrap().count()
    }

    /// The engine works on threads of its own, and tells nobody when a file goes: this looks until the condition holds. `told` says what is
    /// there instead once five minutes have passed: on a machine that others keep busy the work of a second takes one.
    fn wait_until(holds: impl Fn() -> bool, told: impl Fn() -> String) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !holds() {
            assert!(Instant::now() < deadline, "{}", told());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// A file system of few bytes, in memory.
    pub(super) struct Volume(tempfile::TempDir);

    const VOLUME_BYTES: u64 = 96 << 20;

    impl Volume {
        /// None, said aloud, where this process may not mount.
        pub(super) fn mount() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let options = format!("size={VOLUME_BYTES}");
            let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
            if mount.as_ref().is_ok_and(|done| done.status.success()) {
                return Some(Self(dir));
            }
            println!("skipped: cannot mount a tmpfs here: {mount:?}");
            None
        }

        pub(super) fn path(&self) -> &Path {
            self.0.path()
        }

        fn fill(&self) {
            let mut ballast = fs::File::options().create(true).append(true).open(self.0.path().join("ballast")).unwrap();
            while ballast.write_all(&[1; 4096]).is_ok() {}
        }

        /// Leaves so many bytes free.
        fn fill_but(&self, bytes: u64) {
            let free = || OsDisk.space(self.path()).unwrap().free;
            let mut ballast = fs::File::options().create(true).append(true).open(self.0.path().join("ballast")).unwrap();
            while free() > bytes && ballast.write_all(&[1; 4096]).is_ok() {}
        }

        fn free(&self) {
            fs::remove_file(self.0.path().join("ballast")).unwrap();
        }
    }

    impl Drop for Volume {
        fn drop(&mut self) {
            let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
            assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.path().display());
        }
    }

    /// Copies the files of an engine that goes on as a backup does, slowly.
    fn copy_files(engine: &FjallEngine, to: &Path, mut meanwhile: impl FnMut()) {
        let files = engine.files().unwrap();
        for file in &files.files {
            let path = to.join(&file.name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match &file.content {
                CopyContent::Bytes(bytes) => fs::write(&path, bytes).unwrap(),
                CopyContent::Start { of, bytes, .. } => {
                    let mut content = fs::read(of).unwrap();
                    content.truncate(*bytes as usize);
                    fs::write(&path, content).unwrap();
                }
            }
            meanwhile();
        }
    }

    #[test]
    fn a_copy_of_an_engine_that_goes_on_shows_what_was_committed_before_whole() {
        const KEYS: u32 = 400;
        let dir = tempfile::tempdir().unwrap();
        let engine =
            FjallEngine::open(&dir.path().join("tables"), FjallOptions { table_bytes: 64 << 10, ..FjallOptions::default() });
        let engine = engine.unwrap();
        let key = |n: u32| [b"k".as_slice(), &n.to_be_bytes()].concat();
        let commit = |round: u32| {
            let mut batch = Batch::default();
            for n in 0..KEYS {
                batch.put(|out| out.extend(key(n)), |out| out.extend([round.to_be_bytes().as_slice(), &[7; 100]].concat()));
            }
            engine.commit(&batch).unwrap();
        };
        let mut round = 0;
        for backup in 0..3 {
            for _ in 0..8 {
                round += 1;
                commit(round);
            }
            let (to, before) = (dir.path().join(format!("copy-{backup}")), round);
            // Compactions replace what is being copied.
            copy_files(&engine, &to, || {
                round += 1;
                commit(round);
            });
            let copy = FjallEngine::open(&to, FjallOptions::default()).unwrap();
            let shown = copy.view().scan(&key(0), &key(KEYS), usize::MAX, usize::MAX).unwrap();
            assert_eq!(shown.len(), KEYS as usize);
            assert!(
                shown.iter().all(|(_, value)| value[..4] == before.to_be_bytes()),
                "all of round {before}, and nothing later"
            );
            // It is an engine like any other.
            copy.commit(&{
                let mut batch = Batch::default();
                batch.put(|out| out.extend(key(0)), |out| out.extend(b"after"));
                batch
            })
            .unwrap();
            assert_eq!(copy.view().get(&key(0)).unwrap().unwrap(), b"after");
        }
        assert!(round > 40, "commits went on: {round}");
        let tables = dir.path().join("tables");
        let live = || engine.files().unwrap().files.iter().filter(|file| file.name.starts_with("keyspaces/1/tables")).count();
        wait_until(|| table_files(&tables) == live(), || format!("{} files, {} of them in use", table_files(&tables), live()));
    }

    /// Deleted entries kept their room: their compaction would have needed as much again, and what it replaced stayed for views that
    /// nobody held.
    #[test]
    fn what_was_deleted_gives_its_room_back_within_little_room_where_the_disk_is_short() {
        const VALUES: u32 = 800;
        const KEPT: u32 = 10;
        const VALUE_BYTES: usize = 20_000;
        // As much for one step as a short disk leaves: sixteen table files.
        const LEFT_BYTES: u64 = 4 << 20;
        let Some(volume) = Volume::mount() else { return };
        let dir = volume.path().join("tables");
        let options = FjallOptions { table_bytes: 256 << 10, ..FjallOptions::default() };
        let engine = FjallEngine::open(&dir, options).unwrap();
        let key = |n: u32| [b"k".as_slice(), &n.to_be_bytes()].concat();
        // Each batch reaches over all keys, as those of partitions do.
        for batch_number in 0..40 {
            let mut batch = Batch::default();
            for n in (0..VALUES).filter(|n| n % 40 == batch_number) {
                batch.put(|out| out.extend(key(n)), |out| out.extend(vec![n as u8; VALUE_BYTES]));
            }
            engine.commit(&batch).unwrap();
        }
        volume.fill_but(LEFT_BYTES);
        for half in 0..2 {
            let mut batch = Batch::default();
            (0..VALUES).filter(|n| n % KEPT != 0 && n % 2 == half).for_each(|n| batch.delete(|out| out.extend(key(n))));
            engine.commit(&batch).unwrap();
        }
        engine.set_short(true);
        let gone = u64::from(VALUES - VALUES / KEPT) * VALUE_BYTES as u64;
        let free = || OsDisk.space(volume.path()).unwrap().free;
        let told = || format!("{} bytes are free of {gone} that were deleted: {:?}", free(), engine.trouble());
        wait_until(|| free() >= gone / 10 * 9, told);
        let view = engine.view();
        for n in 0..VALUES {
            let expected = (n % KEPT == 0).then(|| vec![n as u8; VALUE_BYTES]);
            assert!(view.get(&key(n)).unwrap() == expected, "value {n}");
        }
    }

    fn spread_key(n: u32) -> Vec<u8> {
        [b"k".as_slice(), &n.to_be_bytes()].concat()
    }

    /// An engine whose last level holds so many values that do not compress, and nothing lies above it.
    fn settled_engine(dir: &Path, table_bytes: u64, values: u32, value_bytes: usize) -> FjallEngine {
        let engine = FjallEngine::open(dir, FjallOptions { table_bytes, ..FjallOptions::default() }).unwrap();
        let mut random = Random(1);
        let mut batch = Batch::default();
        for n in 0..values {
            let value = std::iter::repeat_with(|| random.below(256) as u8);
            batch.put(|out| out.extend(spread_key(n)), |out| out.extend(value.take(value_bytes)));
        }
        engine.commit(&batch).unwrap();
        engine.set_short(true);
        wait_until_quiet(dir);
        engine.set_short(false);
        engine
    }

    /// Nothing is left to be brought down: rounds of that rest for a second.
    fn wait_until_quiet(dir: &Path) {
        const QUIET: Duration = Duration::from_secs(2);
        let names = || -> BTreeSet<_> {
            fs::read_dir(dir.join("keyspaces/1/tables")).unwrap().map(|file| file.unwrap().file_name()).collect()
        };
        let seen = std::cell::RefCell::new((names(), Instant::now()));
        let is_quiet = || {
            let (mut seen, now) = (seen.borrow_mut(), names());
            if seen.0 != now {
                *seen = (now, Instant::now());
            }
            seen.1.elapsed() >= QUIET
        };
        wait_until(is_quiet, || "files come and go".to_owned());
    }

    fn table_bytes_in(dir: &Path) -> u64 {
        let files = fs::read_dir(dir.join("keyspaces/1/tables")).unwrap();
        files.map(|file| file.unwrap().metadata().map_or(0, |file| file.len())).sum()
    }

    fn delete(engine: &FjallEngine, keys: impl Iterator<Item = u32>) {
        let mut batch = Batch::default();
        keys.for_each(|n| batch.delete(|out| out.extend(spread_key(n))));
        engine.commit(&batch).unwrap();
    }

    /// A large value is several rows of the tables: all of them go with it, and with the part of a larger one that its successor has not.
    #[test]
    fn a_large_value_that_is_replaced_or_deleted_leaves_nothing_behind() {
        const VALUES: u32 = 20;
        const VALUE_BYTES: usize = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let options = FjallOptions { table_bytes: 256 << 10, ..FjallOptions::default() };
        let write = |engine: &FjallEngine, bytes: Option<usize>| {
            let mut batch = Batch::default();
            for n in 0..VALUES {
                match bytes {
                    Some(bytes) => batch.put(|out| out.extend(spread_key(n)), |out| out.extend(vec![7; bytes])),
                    None => batch.delete(|out| out.extend(spread_key(n))),
                }
            }
            engine.commit(&batch).unwrap();
        };
        let mut engine = FjallEngine::open(dir.path(), options).unwrap();
        // Everything that is deleted is left out once all is brought down.
        engine.set_short(true);
        for (bytes, left) in [(200_000, 4 << 20), (10, 8 << 10)] {
            write(&engine, Some(VALUE_BYTES));
            // What it has cut before is known again.
            drop(engine);
            engine = FjallEngine::open(dir.path(), options).unwrap();
            engine.set_short(true);
            write(&engine, Some(bytes));
            let told = || format!("{} bytes are left of {VALUES} values of {bytes}", table_bytes_in(dir.path()));
            wait_until(|| table_bytes_in(dir.path()) <= left + (32 << 10), told);
            let shown = all(&*engine.view(), b"k", b"l");
            assert!(shown.len() == VALUES as usize && shown.values().all(|value| value.len() == bytes));
        }
        write(&engine, Some(VALUE_BYTES));
        write(&engine, None);
        wait_until(|| table_bytes_in(dir.path()) <= 8 << 10, || format!("{} bytes are left", table_bytes_in(dir.path())));
        assert!(all(&*engine.view(), b"", b"\xFF").is_empty());
    }

    /// Deletes that are few and far apart lay in one piece over all tables. These were compacted at once without the room for it, which
    /// filled the disk each time.
    #[test]
    fn few_deletes_far_apart_give_their_room_back_on_a_short_disk_and_never_fill_it() {
        const LEFT_BYTES: u64 = 1 << 20;
        const DELETED: [u32; 4] = [1, 201, 401, 799];
        let Some(volume) = Volume::mount() else { return };
        let dir = volume.path().join("tables");
        let engine = settled_engine(&dir, 16 << 10, 800, 4_000);
        volume.fill_but(LEFT_BYTES);
        delete(&engine, DELETED.into_iter());
        let before = table_bytes_in(&dir);
        engine.set_short(true);
        let is_done = || {
            let free = OsDisk.space(volume.path()).unwrap().free;
            assert!(free > LEFT_BYTES / 2, "{free} bytes are free");
            table_bytes_in(&dir) < before - 3 * 4_000
        };
        wait_until(is_done, || format!("{} bytes of {before}", table_bytes_in(&dir)));
        assert_eq!(engine.view().get(&spread_key(201)).unwrap(), None);
        assert!(engine.view().get(&spread_key(202)).unwrap().is_some());
    }

    /// They stayed where there were too many tables to compact all of them.
    #[test]
    fn few_deletes_far_apart_give_their_room_back_from_among_many_tables() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let engine = settled_engine(dir.path(), 16 << 10, 640, 16_000);
        assert!(table_files(dir.path()) > 300, "{} files", table_files(dir.path()));
        delete(&engine, [1, 121, 241, 361, 481, 639].into_iter());
        let before = table_bytes_in(dir.path());
        engine.set_short(true);
        let bytes = || table_bytes_in(dir.path());
        wait_until(|| bytes() < before - 5 * 16_000, || format!("{} bytes of {before}", bytes()));
    }

    /// Few deletes far apart were brought down in no step, and what was deleted later waited behind them until commits failed.
    #[test]
    fn deletes_that_are_many_are_brought_down_past_few_that_reach_over_all_tables() {
        const VALUES: u32 = 9_000;
        const SHARE: u32 = 60;
        const PARTS: u32 = 45;
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let engine = settled_engine(dir.path(), 16 << 10, VALUES, 400);
        engine.set_short(true);
        delete(&engine, [1, 3_001, 6_001, 8_999].into_iter());
        let before = table_bytes_in(dir.path());
        for part in 0..PARTS / 15 {
            delete(&engine, (0..VALUES).filter(|n| n % SHARE / 15 == part));
        }
        let left = before / u64::from(SHARE) * u64::from(SHARE - PARTS) / 10 * 13;
        let bytes = || table_bytes_in(dir.path());
        wait_until(|| bytes() < left, || format!("{} bytes of {before}, {left} wanted", bytes()));
        assert!(engine.view().get(&spread_key(SHARE - 1)).unwrap().is_some());
    }

    /// A step for which there was no room was tried all the same, each half minute, and took all that was left.
    #[test]
    fn a_step_without_room_is_not_begun_and_told_and_goes_on_once_there_is_room() {
        const LEFT_BYTES: u64 = 300 << 10;
        let Some(volume) = Volume::mount() else { return };
        let dir = volume.path().join("tables");
        let engine = settled_engine(&dir, 256 << 10, 1_000, 20_000);
        volume.fill_but(LEFT_BYTES);
        delete(&engine, [1, 201, 401, 801].into_iter());
        let before = table_bytes_in(&dir);
        engine.set_short(true);
        let is_told = || {
            let free = OsDisk.space(volume.path()).unwrap().free;
            assert!(free > LEFT_BYTES / 2, "{free} bytes are free");
            engine.lacks_room().is_some()
        };
        wait_until(is_told, || "nothing was told".to_owned());
        let needed = engine.lacks_room().unwrap();
        assert!(needed > LEFT_BYTES && needed < 4 << 20, "{needed} bytes would be enough for one step");
        assert_eq!(engine.trouble(), None);
        volume.free();
        let bytes = || table_bytes_in(&dir);
        wait_until(|| bytes() < before - 3 * 20_000, || format!("{} bytes of {before}", bytes()));
        wait_until(|| engine.lacks_room().is_none(), || "it is still told".to_owned());
    }

    /// What is cut anew goes back to the first level, past what is committed meanwhile.
    #[test]
    fn a_short_disk_shows_what_was_committed_whatever_is_brought_down_meanwhile() {
        const KEYS: u64 = 800;
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = FjallOptions { table_bytes: 4 << 10, ..FjallOptions::default() };
        let open = || FjallEngine::open(dir.path(), options).unwrap();
        let (mut engine, mut random, mut model) = (open(), Random(7), Map::new());
        let key = |n: u64| spread_key(n as u32);
        for round in 0..240 {
            let mut writes = BTreeMap::new();
            // At first much, to fill the last level; then little, far apart.
            let rows = if round < 20 { 300 } else { 1 + random.below(12) };
            for _ in 0..rows {
                let is_put = round < 20 || random.below(3) > 0;
                writes
                    .insert(key(random.below(KEYS)), is_put.then(|| vec![random.below(256) as u8; random.below(2_000) as usize]));
            }
            let mut batch = Batch::default();
            let before = (round % 7 == 0).then(|| (engine.view(), model.clone()));
            for (key, value) in writes {
                match value {
                    Some(value) => {
                        batch.put(|out| out.extend(&key), |out| out.extend(&value));
                        model.insert(key, value);
                    }
                    None => {
                        batch.delete(|out| out.extend(&key));
                        model.remove(&key);
                    }
                }
            }
            engine.set_short(round % 50 < 40);
            engine.commit(&batch).unwrap();
            // A view holds the engine open.
            if before.is_none() && random.below(30) == 0 {
                drop(engine);
                engine = open();
            }
            let view = engine.view();
            // Whole, and key by key: that goes another way.
            assert!(all(&*view, b"", b"\xFF") == model, "round {round}");
            for n in (0..100).map(|_| random.below(KEYS)) {
                assert!(get(&*view, &key(n)) == model.get(&key(n)).cloned(), "round {round}, key {n}");
            }
            if let Some((view, model)) = before {
                assert!(all(&*view, b"", b"\xFF") == model, "before round {round}");
            }
        }
        assert_eq!(engine.trouble(), None);
    }

    /// Files that a compaction has replaced stayed until another one had followed.
    #[test]
    fn files_that_no_view_needs_go_without_another_commit() {
        let dir = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(dir.path(), FjallOptions::default()).unwrap();
        for n in 0..8u8 {
            let mut batch = Batch::default();
            (0..100u8).for_each(|key| batch.put(|out| out.extend([b'k', key]), |out| out.extend([n; 10_000])));
            engine.commit(&batch).unwrap();
        }
        // One batch is left, and the ends.
        let bytes = || fs::read_dir(dir.path().join("keyspaces/1/tables")).unwrap().map(|f| f.unwrap().metadata().unwrap().len());
        let view = engine.view();
        assert_eq!(view.get(b"k\x07").unwrap(), Some(vec![7; 10_000]));
        drop(view);
        engine.set_short(true);
        wait_until(|| bytes().sum::<u64>() <= 1_200_000, || format!("{:?}", bytes().collect::<Vec<_>>()));
        assert_eq!(get(&*engine.view(), b"k\x07"), Some(vec![7; 10_000]));
    }

    #[test]
    fn fjall_engine() {
        let dir = tempfile::tempdir().unwrap();
        suite(&mut Fjall::open(&dir.path().join("tables"), None));
    }

    #[test]
    fn fjall_engine_on_a_small_volume() {
        let Some(volume) = Volume::mount() else { return };
        let dir = volume.path().join("tables");
        suite(&mut Fjall::open(&dir, Some(volume)));
    }
}

#[cfg(feature = "fjall")]
#[test]
fn a_second_opener_of_fjall_is_told_that_it_is_busy() {
    use surefoot_storage::{FjallEngine, FjallOptions};

    let dir = tempfile::tempdir().unwrap();
    let _first = FjallEngine::open(dir.path(), FjallOptions::default()).unwrap();
    let Err(error) = FjallEngine::open(dir.path(), FjallOptions::default()) else { panic!("opened twice") };
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
}

/// A table file that cannot be read ends the engine's compaction for good, and nothing else.
#[cfg(feature = "fjall")]
#[test]
fn compaction_that_has_failed_is_told() {
    use surefoot_storage::{FjallEngine, FjallOptions};

    let dir = tempfile::tempdir().unwrap();
    let engine = FjallEngine::open(dir.path(), FjallOptions { cache_bytes: 0, ..FjallOptions::default() }).unwrap();
    let commit = |n: u32| {
        let key = |i: u32| [b"k".as_slice(), &i.to_be_bytes()].concat();
        let value = n.to_be_bytes().repeat(100);
        let all: Vec<(Vec<u8>, Vec<u8>)> = (0..200).map(|i| (key(i), value.clone())).collect();
        let all: Vec<(&[u8], Option<&[u8]>)> = all.iter().map(|(k, v)| (k.as_slice(), Some(v.as_slice()))).collect();
        engine.commit(&batch(&all)).unwrap();
    };
    commit(0);
    assert_eq!(engine.trouble(), None);
    damage_tables(dir.path());
    // It has a thread of its own, and comes to it at some time.
    for n in 1..200 {
        commit(n);
        if let Some(trouble) = engine.trouble() {
            assert!(trouble.contains("compaction of the tables has failed"), "{trouble}");
            return;
        }
    }
    panic!("nothing was told");
}

/// Flips bytes in the middle of every table file.
#[cfg(feature = "fjall")]
#[allow(clippy::disallowed_methods, reason = "the engine's files are the operating system's")]
fn damage_tables(dir: &std::path::Path) {
    use std::os::unix::fs::FileExt;

    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            damage_tables(&path);
        } else if path.parent().unwrap().ends_with("tables") {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let bytes = file.metadata().unwrap().len();
            file.write_at(&vec![0xA5; bytes as usize / 4], bytes / 8).unwrap();
        }
    }
}

/// Where the writer that is to be killed finds its directory.
#[cfg(feature = "fjall")]
const WRITER_DIR: &str = "STORAGE_TEST_WRITER_DIR";

/// The writer's batches all put the same keys, each with its number.
#[cfg(feature = "fjall")]
const WRITER_KEYS: u32 = 2000;

#[cfg(feature = "fjall")]
#[test]
fn a_killed_process_leaves_whole_batches_and_all_that_were_flushed() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use surefoot_storage::{FjallEngine, FjallOptions};

    let dir = tempfile::tempdir().unwrap();
    for kill in 0..6 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_to_be_killed", "--nocapture"])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed at once after a line, it is somewhere in the next batch.
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
        let flushed = lines.filter_map(|line| line.strip_prefix("flushed ")?.parse::<u64>().ok()).nth(3 + kill).unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();
        let engine = FjallEngine::open(dir.path(), FjallOptions::default()).unwrap();
        let found = all(&*engine.view(), b"", b"\xFF");
        let number = u64::from_be_bytes(found[&0u32.to_be_bytes().to_vec()].as_slice().try_into().unwrap());
        assert!(number >= flushed, "{number} is left of {flushed}");
        assert_eq!(found.len(), WRITER_KEYS as usize);
        assert!(found.values().all(|value| *value == number.to_be_bytes()), "a batch is whole");
    }
}

/// Does nothing unless the test above starts it.
#[cfg(feature = "fjall")]
#[test]
fn writer_to_be_killed() {
    use surefoot_storage::{FjallEngine, FjallOptions};

    let Some(dir) = std::env::var_os(WRITER_DIR) else { return };
    let engine = FjallEngine::open(dir.as_ref(), FjallOptions::default()).unwrap();
    let before = get(&*engine.view(), &0u32.to_be_bytes());
    let first = before.map_or(1, |value| u64::from_be_bytes(value.try_into().unwrap()) + 1);
    for number in first.. {
        let mut batch = Batch::default();
        for key in 0..WRITER_KEYS {
            batch.put(|out| out.extend_from_slice(&key.to_be_bytes()), |out| out.extend_from_slice(&number.to_be_bytes()));
        }
        engine.commit(&batch).unwrap();
        engine.flush().unwrap();
        println!("flushed {number}");
    }
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

fn batch(writes: &[(&[u8], Option<&[u8]>)]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in writes {
        match value {
            Some(value) => batch.put(|out| out.extend_from_slice(key), |out| out.extend_from_slice(value)),
            None => batch.delete(|out| out.extend_from_slice(key)),
        }
    }
    batch
}

fn put(engine: &dyn Engine, key: &[u8], value: &[u8]) {
    engine.commit(&batch(&[(key, Some(value))])).unwrap();
}

fn get(view: &dyn View, key: &[u8]) -> Option<Vec<u8>> {
    view.get(key).unwrap()
}

fn all(view: &dyn View, from: &[u8], to: &[u8]) -> Map {
    view.scan(from, to, usize::MAX, usize::MAX).unwrap().into_iter().collect()
}

fn what_is_committed_is_seen_in_later_views_only(engine: &dyn Engine) {
    let before = engine.view();
    engine.commit(&batch(&[(b"a1", Some(b"x")), (b"a2", Some(b"y"))])).unwrap();
    let after = engine.view();
    engine.commit(&batch(&[(b"a1", None), (b"a2", Some(b"z"))])).unwrap();
    assert_eq!((get(&*before, b"a1"), get(&*before, b"a2")), (None, None));
    assert!(all(&*before, b"a", b"b").is_empty());
    assert_eq!((get(&*after, b"a1"), get(&*after, b"a2")), (Some(b"x".to_vec()), Some(b"y".to_vec())));
    assert_eq!(all(&*after, b"a", b"b").len(), 2);
    let now = engine.view();
    assert_eq!((get(&*now, b"a1"), get(&*now, b"a2")), (None, Some(b"z".to_vec())));
    assert_eq!(all(&*now, b"a", b"b"), Map::from([(b"a2".to_vec(), b"z".to_vec())]));
}

fn an_empty_batch_and_a_delete_of_nothing_change_nothing(engine: &dyn Engine) {
    engine.commit(&Batch::default()).unwrap();
    engine.commit(&batch(&[(b"b", None)])).unwrap();
    engine.flush().unwrap();
    engine.flush().unwrap();
    assert_eq!(get(&*engine.view(), b"b"), None);
}

fn a_value_that_is_written_down_later_is_not_held_by_its_batch(engine: &dyn Engine) {
    const BYTES: usize = 1 << 20;
    let mut batch = Batch::default();
    let key = |n: u8| move |out: &mut Vec<u8>| out.extend_from_slice(&[b'l', n]);
    batch.put(key(0), |out| out.push(0));
    batch.put_later(key(1), |take| [10, BYTES - 10].into_iter().for_each(|bytes| take(&vec![1; bytes])));
    batch.delete(key(2));
    batch.put_later(key(3), |take| [10, BYTES - 10].into_iter().for_each(|bytes| take(&vec![3; bytes])));
    batch.put(key(4), |out| out.push(4));
    assert!(batch.bytes() < 100 && batch.len() == 5);
    // A commit that found no room is tried again with the same batch.
    for _ in 0..2 {
        engine.commit(&batch).unwrap();
    }
    let expected = [(0, vec![0]), (1, vec![1; BYTES]), (3, vec![3; BYTES]), (4, vec![4])];
    let expected: Map = expected.into_iter().map(|(n, value)| (vec![b'l', n], value)).collect();
    assert!(all(&*engine.view(), b"l", b"m") == expected);
}

fn a_full_engine_refuses_and_leaves_nothing_and_goes_on_once_there_is_room(subject: &mut impl Subject) {
    let large = |byte: u8| vec![byte; 3 << 20];
    put(&*subject.engine(), b"0", b"before");
    let view = subject.engine().view();
    if !subject.set_full(true) {
        return;
    }
    for _ in 0..3 {
        let error = subject.engine().commit(&batch(&[(b"0", Some(b"after")), (b"1", Some(&large(1)))])).unwrap_err();
        assert_eq!(Failure::of(&error), Failure::Passing, "{error}");
        assert_eq!(get(&*subject.engine().view(), b"0"), Some(b"before".to_vec()));
    }
    assert_eq!(subject.engine().trouble(), None);
    subject.set_full(false);
    assert!(!subject.has_leftovers());
    // Enough for compactions.
    for round in 1..12 {
        subject.engine().commit(&batch(&[(b"0", Some(b"after")), (b"1", Some(&large(round)))])).unwrap();
    }
    assert_eq!(get(&*view, b"0"), Some(b"before".to_vec()));
    assert_eq!(get(&*subject.engine().view(), b"1"), Some(large(11)));
    drop(view);
    // In the middle of compactions: what they leave goes as well.
    subject.set_full(true);
    for round in 0..8 {
        match subject.engine().commit(&batch(&[(b"2", Some(&large(round)))])) {
            // A compaction has ended and removed the tables that it read.
            Ok(()) => assert!(subject.set_full(true)),
            Err(error) => assert_eq!(Failure::of(&error), Failure::Passing, "{error}"),
        }
    }
    subject.set_full(false);
    // A compaction may still be on its way to its own end of the disk.
    loop {
        match subject.engine().commit(&batch(&[(b"2", Some(b"done"))])) {
            Ok(()) => break,
            Err(error) => assert_eq!(Failure::of(&error), Failure::Passing, "{error}"),
        }
        std::thread::yield_now();
    }
    subject.restart();
    let found = all(&*subject.engine().view(), b"", b"3");
    assert_eq!(
        (&found[b"0".as_slice()], &found[b"1".as_slice()], &found[b"2".as_slice()]),
        (&b"after".to_vec(), &large(11), &b"done".to_vec())
    );
    subject.engine().commit(&batch(&[(b"0", None), (b"1", None), (b"2", None)])).unwrap();
}

fn scans_are_bounded_ordered_and_half_open(engine: &dyn Engine) {
    for key in [b"c3", b"c1", b"c2", b"c4"] {
        put(engine, key, key);
    }
    let view = engine.view();
    let scan = |from: &[u8], to: &[u8], limit| -> Vec<Vec<u8>> {
        view.scan(from, to, limit, usize::MAX).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(scan(b"c1", b"c4", 10), [b"c1", b"c2", b"c3"]);
    assert_eq!(scan(b"c1\0", b"c4", 1), [b"c2"]);
    assert_eq!(scan(b"c1", b"c4", 0), Vec::<Vec<u8>>::new());
    assert_eq!(scan(b"c2", b"c2", 10), Vec::<Vec<u8>>::new());
    assert_eq!(scan(b"c3", b"c2", 10), Vec::<Vec<u8>>::new());
}

fn awkward_keys_and_values_come_back(engine: &dyn Engine) {
    let long_key = [b"d".as_slice(), &vec![0xFF; keys::KEY_BYTES_MAX - 1]].concat();
    let large = vec![7; 3 << 20];
    engine.commit(&batch(&[(b"d", Some(b"")), (b"d\0", Some(b"\0")), (&long_key, Some(&large))])).unwrap();
    engine.flush().unwrap();
    let view = engine.view();
    assert_eq!(get(&*view, b"d"), Some(Vec::new()));
    assert_eq!(get(&*view, b"d\0"), Some(vec![0]));
    assert_eq!(get(&*view, &long_key), Some(large));
}

fn a_view_outlives_overwrites_and_flushes(engine: &dyn Engine) {
    put(engine, b"e", b"old");
    engine.flush().unwrap();
    let view = engine.view();
    for round in 0..50u8 {
        put(engine, b"e", &[round]);
        engine.flush().unwrap();
    }
    engine.commit(&batch(&[(b"e", None)])).unwrap();
    engine.flush().unwrap();
    assert_eq!(get(&*view, b"e"), Some(b"old".to_vec()));
    assert_eq!(get(&*engine.view(), b"e"), None);
}

fn random_batches_match_a_map(subject: &mut impl Subject) {
    let mut random = Random(1);
    let mut model = all(&*subject.engine().view(), b"", b"\xFF");
    for round in 0..300 {
        let mut writes = Map::new();
        for _ in 0..random.below(40) {
            let key = format!("f{}", random.below(200)).into_bytes();
            writes.insert(key, vec![random.below(256) as u8; random.below(300) as usize]);
        }
        let mut batch = Batch::default();
        for (key, value) in writes {
            // The first byte decides, so that deletes are a third.
            if value.first().is_some_and(|first| first % 3 == 0) {
                batch.delete(|out| out.extend_from_slice(&key));
                model.remove(&key);
            } else {
                batch.put(|out| out.extend_from_slice(&key), |out| out.extend_from_slice(&value));
                model.insert(key, value);
            }
        }
        let engine = subject.engine();
        engine.commit(&batch).unwrap();
        if random.below(4) == 0 {
            engine.flush().unwrap();
        }
        drop(engine);
        // A restart, as after a kill: what was committed is there, flushed or not.
        if random.below(30) == 0 {
            subject.restart();
        }
        assert_eq!(all(&*subject.engine().view(), b"", b"\xFF"), model, "round {round}");
    }
    subject.engine().flush().unwrap();
    subject.restart();
    assert_eq!(all(&*subject.engine().view(), b"", b"\xFF"), model);
}

/// Sizes around those at which an engine may cut a value into rows.
const SIZES: [usize; 8] = [0, 1, 20_000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 17];
const PIECE: usize = 128 << 10;

/// Puts, inserts, overwrites and deletes of values of all sizes, beside a map; read by key and in ranges of all kinds, from views of any age.
fn large_values_are_values_like_others(subject: &mut impl Subject) {
    const KEYS: u64 = 12;
    let mut random = Random(7);
    let mut model = Map::new();
    let mut views: Vec<(Arc<dyn View>, Map)> = Vec::new();
    let key = |n: u64| [b"g".as_slice(), &n.to_be_bytes()].concat();
    for round in 0..60 {
        let mut batch = Batch::default();
        for n in (0..KEYS).filter(|_| random.below(3) == 0).collect::<Vec<_>>() {
            let (key, was_there) = (key(n), model.contains_key(&key(n)));
            if random.below(3) == 0 {
                batch.delete(|out| out.extend(&key));
                model.remove(&key);
                continue;
            }
            let value = vec![random.below(256) as u8; SIZES[random.below(SIZES.len() as u64) as usize]];
            if random.below(2) == 0 {
                batch.put(|out| out.extend(&key), |out| out.extend(&value));
            } else {
                let value = value.clone();
                batch.put_later(|out| out.extend(&key), move |take| value.chunks(100_000).for_each(&mut *take));
            }
            if !was_there {
                batch.over_nothing();
            }
            model.insert(key, value);
        }
        subject.engine().commit(&batch).unwrap();
        views.push((subject.engine().view(), model.clone()));
        if views.len() > 3 {
            views.remove(random.below(3) as usize);
        }
        if random.below(15) == 0 {
            views.clear();
            subject.restart();
            views.push((subject.engine().view(), model.clone()));
        }
        for (view, model) in &views {
            assert!((0..KEYS).all(|n| get(&**view, &key(n)).as_ref() == model.get(&key(n))), "round {round}");
            assert!(all(&**view, b"g", b"h") == *model, "round {round}");
            // As a table is read: in chunks, each from right behind the last key of the one before.
            let (rows, bytes) = (1 + random.below(4) as usize, random.below(300_000) as usize);
            let (mut from, mut found) = (b"g".to_vec(), Map::new());
            loop {
                let chunk = view.scan(&from, b"h", rows, bytes).unwrap();
                let Some((last, _)) = chunk.last() else { break };
                from = [last.as_slice(), &[0]].concat();
                assert!(chunk.len() <= rows);
                found.extend(chunk);
            }
            assert!(found == *model, "round {round}");
            let (from, to) = (key(random.below(KEYS)), key(random.below(KEYS)));
            let expected: Map =
                model.range(from.clone()..to.clone().max(from.clone())).map(|(k, v)| (k.clone(), v.clone())).collect();
            assert!(all(&**view, &from, &to) == expected, "round {round}");
        }
    }
    let mut batch = Batch::default();
    (0..KEYS).for_each(|n| batch.delete(|out| out.extend(key(n))));
    subject.engine().commit(&batch).unwrap();
    assert!(all(&*subject.engine().view(), b"g", b"h").is_empty());
}

#[test]
fn a_power_loss_goes_back_to_a_commit_no_older_than_the_last_flush() {
    let mut seen = [false; 4];
    for seed in 0..64 {
        let engine = MemEngine::new();
        put(&engine, b"n", b"0");
        engine.flush().unwrap();
        for n in [b"1", b"2", b"3"] {
            put(&engine, b"n", n);
        }
        assert_eq!(engine.volatile_commits(), 3);
        let after = engine.power_loss(seed);
        let kept = get(&*after.view(), b"n").unwrap()[0] - b'0';
        seen[usize::from(kept)] = true;
        assert_eq!(after.volatile_commits(), usize::from(kept));
        assert!(engine.commit(&batch(&[(b"n", Some(b"9"))])).is_err(), "the dead write nothing");
        assert!(engine.flush().is_err());
        // A second loss takes no more back than was not flushed.
        let second = after.power_loss(0);
        assert_eq!(get(&*second.view(), b"n"), Some(b"0".to_vec()));
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn an_engine_whose_flush_failed_takes_nothing_more_until_it_is_opened_anew() {
    let engine = MemEngine::new();
    put(&engine, b"n", b"0");
    engine.flush().unwrap();
    put(&engine, b"n", b"1");
    engine.fail_flush_at(engine.flushes() + 1);
    for _ in 0..3 {
        let error = engine.flush().unwrap_err();
        assert_eq!(Failure::of(&error), Failure::Engine);
        assert_eq!(Failure::of(&engine.commit(&batch(&[(b"n", None)])).unwrap_err()), Failure::Engine);
    }
    assert_eq!(get(&*engine.view(), b"n"), Some(b"1".to_vec()), "it can still be read");
    let again = engine.restart();
    put(&again, b"n", b"2");
    again.flush().unwrap();
    assert_eq!(get(&*again.power_loss(0).view(), b"n"), Some(b"2".to_vec()));
}

#[test]
#[should_panic(expected = "a batch ascends")]
fn a_batch_that_does_not_ascend_is_refused() {
    batch(&[(b"b", None), (b"a", None)]);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}
