//! Steps of compaction with so much room as a test says, one at a time and on no thread of their own.

use super::*;
use std::collections::BTreeMap;

const TABLE_BYTES: u64 = 64 << 10;
/// Few rows are large, and stay; many are small.
const ROWS: u32 = 1_000;
const LARGE_EACH: u32 = 20;
const LARGE_BYTES: usize = 10_000;

fn key(n: u32) -> Vec<u8> {
    [b"k".as_slice(), &n.to_be_bytes()].concat()
}

/// Values that do not compress.
fn value(n: u32) -> Vec<u8> {
    let bytes = if n.is_multiple_of(LARGE_EACH) { LARGE_BYTES } else { 4 };
    let mut state = u64::from(n) + 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn options() -> FjallOptions {
    FjallOptions { table_bytes: TABLE_BYTES, ..FjallOptions::default() }
}

fn rows(open: &Open) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let held = open.views.clone();
    let view = ValuesView::new(held.open(&open.database), open.keyspace.clone(), held, HIDDEN_KEYS);
    view.scan(&key(0), &key(ROWS), usize::MAX, usize::MAX).unwrap().into_iter().collect()
}

fn files(dir: &Path) -> BTreeSet<std::ffi::OsString> {
    let files = fs::read_dir(dir.join(KEYSPACES_DIR).join(TABLES_KEYSPACE).join(TABLES_DIR)).unwrap();
    files.map(|file| file.unwrap().file_name()).collect()
}

/// All that waits, into the last level.
fn down(open: &Open) -> PullDown {
    PullDown(0, open.keyspace.tree.current_version().level_count() as u8 - 1)
}

/// An engine without a thread: all rows lie in the last level, and above it the deletes of all small ones.
fn with_deletes(dir: &Path) -> Open {
    make(dir, options()).unwrap();
    let open = Open::at(dir, options()).unwrap();
    let mut batch = Batch::default();
    (0..ROWS).for_each(|n| batch.put(|out| out.extend(key(n)), |out| out.extend(value(n))));
    open.write(&batch).unwrap();
    assert_eq!(open.compact_within(u64::MAX, down(&open)).unwrap(), Outcome::Changed);
    open.release().unwrap();
    let mut batch = Batch::default();
    (0..ROWS).filter(|n| !n.is_multiple_of(LARGE_EACH)).for_each(|n| batch.delete(|out| out.extend(key(n))));
    open.write(&batch).unwrap();
    open
}

/// What is left was taken for as little as the mean of all rows says. The compaction has begun when it turns out to be more.
#[test]
fn a_compaction_that_writes_more_than_there_is_room_for_ends_and_changes_nothing_and_goes_on_once_there_is_room() {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("tables");
    let mut open = with_deletes(&dir);
    let Choice::Merge(input) = open.choice(&down(&open)) else { panic!("there is nothing to bring down") };
    let (all, left) = open.written_bytes(&input);
    let (needed, little) = (open.needed_bytes(all), open.needed_bytes(left) + 1);
    assert!(little < needed / 2, "{little} bytes seem to be enough, {needed} are");
    let (shown, named, version) = (rows(&open), files(&dir), open.keyspace.tree.current_version().id());
    assert_eq!(shown.len() as u32, ROWS / LARGE_EACH);
    for _ in 0..3 {
        assert_eq!(open.compact_within(little, down(&open)).unwrap(), Outcome::LacksRoom(needed));
        assert!(open.bound.is_met.load(Ordering::Relaxed), "it had begun");
        assert_eq!((files(&dir), open.keyspace.tree.current_version().id()), (named.clone(), version));
        assert!(rows(&open) == shown);
    }
    // It is sound: it takes a commit, and opens again with the same rows.
    let mut batch = Batch::default();
    batch.put(|out| out.extend(key(1)), |out| out.extend(b"after"));
    open.write(&batch).unwrap();
    drop(open);
    open = Open::at(&dir, options()).unwrap();
    let mut expected = shown;
    expected.insert(key(1), b"after".to_vec());
    assert!(rows(&open) == expected);
    assert_eq!(open.compact_within(u64::MAX, down(&open)).unwrap(), Outcome::Changed);
    open.release().unwrap();
    assert!(rows(&open) == expected);
    assert_eq!(open.deleted_bytes(), 0, "nothing that is deleted is left");
}

/// It is not begun where even what seems to be left has no room.
#[test]
fn a_compaction_without_room_is_not_begun() {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("tables");
    let open = with_deletes(&dir);
    let Choice::Merge(input) = open.choice(&down(&open)) else { panic!("there is nothing to bring down") };
    let needed = open.needed_bytes(open.written_bytes(&input).1);
    assert_eq!(open.compact_within(needed - 1, down(&open)).unwrap(), Outcome::LacksRoom(needed));
    assert!(!open.bound.is_met.load(Ordering::Relaxed));
}

/// A process that was killed while it made the tables left what fjall could not open, and every start after it failed.
#[test]
fn what_was_half_made_is_made_anew_and_what_has_its_name_is_whole() {
    let above = tempfile::tempdir().unwrap();
    let (dir, aside) = (above.path().join("tables"), above.path().join("tables.new"));
    fs::create_dir_all(aside.join(KEYSPACES_DIR)).unwrap();
    fs::write(aside.join(VERSION_FILE), "").unwrap();
    let engine = FjallEngine::open(&dir, options()).unwrap();
    assert!(!aside.exists());
    let mut batch = Batch::default();
    batch.put(|out| out.extend(key(1)), |out| out.extend(b"kept"));
    engine.commit(&batch).unwrap();
    drop(engine);
    // fjall would take this for a keyspace that was never made, and remove it with all that is in it.
    let current = dir.join(KEYSPACES_DIR).join(TABLES_KEYSPACE).join(CURRENT_FILE);
    let named = fs::read(&current).unwrap();
    fs::remove_file(&current).unwrap();
    let error = FjallEngine::open(&dir, options()).err().expect("it is refused");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains(&format!("{}: it is missing", current.display())), "{error}");
    fs::write(&current, named).unwrap();
    let engine = FjallEngine::open(&dir, options()).unwrap();
    assert_eq!(engine.view().get(&key(1)).unwrap(), Some(b"kept".to_vec()));
}
