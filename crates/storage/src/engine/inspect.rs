//! Looking at fjall's files in a directory that nobody uses, without changing anything.
//!
//! Owns: what has to be there and whole before fjall opens; every byte of every table file against the checksum that its version has of it, with the block where
//! they part; and a view of the rows, read through links from a directory of its own, since fjall writes where it opens. Does not own: what rows mean.

#![allow(clippy::disallowed_methods, reason = "fjall's files are the operating system's")]

use super::View;
use super::fjall::{
    CURRENT_FILE, JOURNAL_EXTENSION, KEYSPACES_DIR, LOCK_FILE, NAMES_KEYSPACE, TABLES_DIR, TABLES_KEYSPACE, VERSION_FILE,
    open_to_read, version_file, version_of, written_bytes,
};
use lsm_tree::CompressionType;
use lsm_tree::table::Block;
use lsm_tree::table::block::Header;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use surefoot_env::is_shortage;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

/// What is read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// What fjall's file of its version says.
const VERSION_BYTES: &[u8] = b"FJL\x03";
/// The journal that a new database has.
const FIRST_JOURNAL: &str = "0.jnl";

/// What is wrong with a file of the tables.
#[derive(Debug, thiserror::Error)]
#[error("{path}{at}: {problem}{said}", path = .path.display(), at = .offset.map_or_else(String::new, |at| format!(" at byte {at}")),
    said = .source.as_ref().map_or_else(String::new, |source| format!(": {source}")))]
pub struct FileFault {
    pub path: PathBuf,
    /// Where it begins, if that is known.
    pub offset: Option<u64>,
    pub problem: String,
    /// What the system said, where that is the problem.
    pub source: Option<io::Error>,
}

/// What was found in the tables' directory.
#[derive(Debug, Default)]
pub struct CheckedFiles {
    pub files: usize,
    pub bytes: u64,
    pub faults: Vec<FileFault>,
}

impl FileFault {
    fn of(path: &Path, problem: impl Into<String>) -> Self {
        Self { path: path.to_owned(), offset: None, problem: problem.into(), source: None }
    }

    fn unread(path: &Path, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            return Self::of(path, "it is missing");
        }
        Self { source: Some(error), ..Self::of(path, "it cannot be read") }
    }
}

impl From<FileFault> for io::Error {
    /// A shortage stays one: it may pass.
    fn from(mut fault: FileFault) -> Self {
        match fault.source.take_if(|source| is_shortage(source)) {
            Some(shortage) => shortage,
            None => Self::new(fault.source.as_ref().map_or(io::ErrorKind::InvalidData, io::Error::kind), fault),
        }
    }
}

/// Reads every table file that the newest version names, and all that says so. **Errors**: there are no tables, or the directory cannot be read.
pub fn check_files(dir: &Path) -> io::Result<CheckedFiles> {
    fs::read_dir(dir)?;
    let mut found = CheckedFiles { faults: frame_faults(dir), ..CheckedFiles::default() };
    for keyspace in keyspaces(dir) {
        match tables_of(&keyspace) {
            Ok(tables) => tables.into_iter().for_each(|(table, checksum)| found.check(table, checksum)),
            Err(fault) => found.faults.push(fault),
        }
    }
    Ok(found)
}

/// Whether fjall may open a directory. What it takes for granted, or reads without a checksum, has to be as it was written: it makes anew what is missing, and
/// removes table files and keyspaces that nothing names. Of the tables themselves it looks whether they are there: fjall has checksums of what is in them.
/// **Errors**: the first fault, as `InvalidData`.
pub(super) fn expect_whole(dir: &Path) -> io::Result<()> {
    if let Some(fault) = frame_faults(dir).into_iter().next() {
        return Err(fault.into());
    }
    let [names, tables] = keyspaces(dir);
    let mut found = CheckedFiles::default();
    tables_of(&names)?.into_iter().for_each(|(table, checksum)| found.check(table, checksum));
    if let Some(fault) = found.faults.into_iter().next() {
        return Err(fault.into());
    }
    for (table, _) in tables_of(&tables)? {
        sfa::Reader::new(&table).map_err(|error| match error {
            sfa::Error::Io(error) => FileFault::unread(&table, error),
            other => FileFault::of(&table, format!("its end cannot be read: {other}")),
        })?;
    }
    Ok(())
}

/// What is wrong with a file that fjall could not read; none if nothing is found. This reads all of them up to the first.
pub(super) fn named_fault(dir: &Path) -> Option<io::Error> {
    keyspaces(dir).iter().find_map(|keyspace| {
        let tables = match tables_of(keyspace) {
            Ok(tables) => tables,
            Err(fault) => return Some(fault.into()),
        };
        let mut found = CheckedFiles::default();
        tables.into_iter().find_map(|(table, checksum)| {
            found.check(table, checksum);
            found.faults.pop().map(Into::into)
        })
    })
}

fn keyspaces(dir: &Path) -> [PathBuf; 2] {
    [NAMES_KEYSPACE, TABLES_KEYSPACE].map(|name| dir.join(KEYSPACES_DIR).join(name))
}

/// What is wrong with all that is not in a keyspace.
fn frame_faults(dir: &Path) -> Vec<FileFault> {
    let mut faults = Vec::new();
    let version = dir.join(VERSION_FILE);
    match fs::read(&version) {
        Ok(bytes) if bytes == VERSION_BYTES => {}
        Ok(_) => faults.push(FileFault::of(&version, "it does not say what tables of this version say")),
        Err(error) => faults.push(FileFault::unread(&version, error)),
    }
    let lock = dir.join(LOCK_FILE);
    faults.extend(File::open(&lock).err().map(|error| FileFault::unread(&lock, error)));
    faults.extend(journal_faults(dir));
    let above = dir.join(KEYSPACES_DIR);
    match fs::read_dir(&above) {
        // fjall panics over what is no number, and removes what has no name.
        Ok(entries) => faults.extend(entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()).filter_map(|entry| {
            let is_known = [NAMES_KEYSPACE, TABLES_KEYSPACE].iter().any(|name| entry.file_name() == *name);
            (!is_known).then(|| FileFault::of(&entry.path(), "it is none of the tables' directories: move it elsewhere"))
        })),
        Err(error) => faults.push(FileFault::unread(&above, error)),
    }
    faults
}

/// Without a journal fjall shows nothing of what is in the tables. There is nothing in it.
fn journal_faults(dir: &Path) -> Vec<FileFault> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return vec![FileFault::unread(dir, error)],
    };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let journals: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|it| it == JOURNAL_EXTENSION)).collect();
    let faults = journals.iter().filter_map(|journal| match written_bytes(journal) {
        Ok(0) => None,
        Ok(_) => Some(FileFault::of(journal, "there is something in it, and nothing is ever written there")),
        Err(error) => Some(FileFault::unread(journal, error)),
    });
    let faults = faults.collect();
    if journals.is_empty() { vec![FileFault::of(&dir.join(FIRST_JOURNAL), "it is missing")] } else { faults }
}

/// The table files of a keyspace's newest version, and the checksum of each.
fn tables_of(keyspace: &Path) -> Result<Vec<(PathBuf, u128)>, FileFault> {
    let current = keyspace.join(CURRENT_FILE);
    let named = fs::read(&current).map_err(|error| FileFault::unread(&current, error))?;
    let checksum = named.get(8..24).and_then(|bytes| bytes.try_into().ok()).map(u128::from_le_bytes);
    let (Some(version), Some(checksum)) = (version_of(&named), checksum) else {
        return Err(FileFault::of(&current, "it names no version"));
    };
    let path = keyspace.join(version_file(version));
    let bytes = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FileFault::of(&path, format!("it is missing, and {} names it", current.display())),
        _ => FileFault::unread(&path, error),
    })?;
    if xxh3_128(&bytes) != checksum {
        return Err(FileFault::of(&path, format!("its checksum is not the one in {}", current.display())));
    }
    let unreadable = |error: String| FileFault::of(&path, format!("it cannot be read: {error}"));
    let reader = sfa::Reader::new(&path).map_err(|error| unreadable(error.to_string()))?;
    let section = reader.toc().section(b"tables").ok_or_else(|| unreadable("it lists no tables".to_owned()))?;
    let listed = section.buf_reader(&path).and_then(|mut section| read_tables(&mut section));
    let tables = listed.map_err(|error| unreadable(error.to_string()))?;
    Ok(tables.into_iter().map(|(id, checksum)| (keyspace.join(TABLES_DIR).join(id.to_string()), checksum)).collect())
}

/// `levels:1 (runs:1 (tables:4 (id:8 kind:1 checksum:16 seqno:8)*)*)*`, as lsm-tree writes it.
fn read_tables(from: &mut impl Read) -> io::Result<Vec<(u64, u128)>> {
    fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        from.read_exact(&mut bytes).map(|()| bytes)
    }
    let mut tables = Vec::new();
    for _ in 0..take::<1>(from)?[0] {
        for _ in 0..take::<1>(from)?[0] {
            for _ in 0..u32::from_le_bytes(take(from)?) {
                let id = u64::from_le_bytes(take(from)?);
                let _kind = take::<1>(from)?;
                tables.push((id, u128::from_le_bytes(take(from)?)));
                let _seqno = take::<8>(from)?;
            }
        }
    }
    Ok(tables)
}

impl CheckedFiles {
    fn check(&mut self, path: PathBuf, checksum: u128) {
        self.files += 1;
        match checksum_of(&path) {
            Ok((bytes, found)) => {
                self.bytes += bytes;
                if found != checksum {
                    let offset = first_bad_block(&path);
                    self.faults.push(FileFault { offset, ..FileFault::of(&path, "its bytes are not those that were written") });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.faults.push(FileFault::of(&path, "it is missing, and the newest version of the tables names it"));
            }
            Err(error) => self.faults.push(FileFault::unread(&path, error)),
        }
    }
}

fn checksum_of(path: &Path) -> io::Result<(u64, u128)> {
    let (mut file, mut piece) = (File::open(path)?, vec![0; PIECE_BYTES]);
    let (mut bytes, mut hash) = (0, Xxh3Default::new());
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((bytes, hash.digest128()));
        }
        bytes += read as u64;
        hash.update(&piece[..read]);
    }
}

/// Where the first block lies that does not verify. Behind the blocks come a list of them and an end, which have no checksums of that kind.
fn first_bad_block(path: &Path) -> Option<u64> {
    let mut file = BufReader::new(File::open(path).ok()?);
    let mut at = 0;
    while let Ok(block) = Block::from_reader(&mut file, CompressionType::None) {
        at += (Header::serialized_len() + block.header.data_length as usize) as u64;
    }
    Some(at)
}

/// A view of the tables in `dir`. fjall opens a copy in `scratch`, which is empty: of table files it has links. **Errors**: they cannot be opened.
pub fn view_of_files(dir: &Path, scratch: &Path) -> io::Result<Arc<dyn View>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            let mut start = vec![0; usize::try_from(written_bytes(&path)?).map_err(io::Error::other)?];
            File::open(&path)?.read_exact(&mut start)?;
            fs::write(scratch.join(name_of(&path)), start)?;
        }
    }
    for entry in fs::read_dir(dir.join(KEYSPACES_DIR))? {
        let keyspace = entry?.path();
        let copy = scratch.join(KEYSPACES_DIR).join(name_of(&keyspace));
        fs::create_dir_all(copy.join(TABLES_DIR))?;
        for file in fs::read_dir(&keyspace)? {
            let path = file?.path();
            if path.is_file() {
                fs::copy(&path, copy.join(name_of(&path)))?;
            }
        }
        for table in fs::read_dir(keyspace.join(TABLES_DIR))? {
            let path = table?.path();
            symlink(path.canonicalize()?, copy.join(TABLES_DIR).join(name_of(&path)))?;
        }
    }
    open_to_read(scratch)
}

fn name_of(path: &Path) -> &std::ffi::OsStr {
    path.file_name().expect("what a directory lists has a name")
}
