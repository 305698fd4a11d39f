//! Looking at fjall's files in a directory that nobody uses, without changing anything.
//!
//! Owns: every byte of every table file against the checksum that its version has of it, with the block where they part; and a view of the rows, read through
//! links from a directory of its own, since fjall writes where it opens. Does not own: what rows mean.

#![allow(clippy::disallowed_methods, reason = "fjall's files are the operating system's")]

use super::View;
use super::fjall::{CURRENT_FILE, KEYSPACES_DIR, TABLES_DIR, open_to_read, version_file, version_of, written_bytes};
use lsm_tree::table::Block;
use lsm_tree::table::block::Header;
use lsm_tree::{CompressionType, TableId};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

/// What is read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What is wrong with a file of the tables.
#[derive(Debug, thiserror::Error)]
#[error("{path}{at}: {problem}", path = .path.display(), at = .offset.map_or_else(String::new, |at| format!(" at byte {at}")))]
pub struct FileFault {
    pub path: PathBuf,
    /// Where it begins, if that is known.
    pub offset: Option<u64>,
    pub problem: String,
}

/// What was found in the tables' directory.
#[derive(Debug, Default)]
pub struct CheckedFiles {
    pub files: usize,
    pub bytes: u64,
    pub faults: Vec<FileFault>,
}

/// Reads every table file that the newest version names. **Errors**: there are no tables, or the directory cannot be read.
pub fn check_files(dir: &Path) -> io::Result<CheckedFiles> {
    let mut found = CheckedFiles::default();
    for entry in fs::read_dir(dir.join(KEYSPACES_DIR))? {
        let keyspace = entry?.path();
        match tables_of(&keyspace) {
            Ok(tables) => tables
                .into_iter()
                .for_each(|(id, checksum)| found.check(keyspace.join(TABLES_DIR).join(id.to_string()), checksum)),
            Err(fault) => found.faults.push(fault),
        }
    }
    Ok(found)
}

/// The tables of a keyspace's newest version, and the checksum of each.
fn tables_of(keyspace: &Path) -> Result<Vec<(TableId, u128)>, FileFault> {
    let fault = |path: &Path, problem: String| FileFault { path: path.to_owned(), offset: None, problem };
    let current = keyspace.join(CURRENT_FILE);
    let named = fs::read(&current).map_err(|error| fault(&current, error.to_string()))?;
    let checksum = named.get(8..24).and_then(|bytes| bytes.try_into().ok()).map(u128::from_le_bytes);
    let (Some(version), Some(checksum)) = (version_of(&named), checksum) else {
        return Err(fault(&current, "it names no version".to_owned()));
    };
    let path = keyspace.join(version_file(version));
    let bytes = fs::read(&path).map_err(|error| fault(&path, error.to_string()))?;
    if xxh3_128(&bytes) != checksum {
        return Err(fault(&path, format!("its checksum is not the one in {}", current.display())));
    }
    let unreadable = |error: String| fault(&path, format!("it cannot be read: {error}"));
    let reader = sfa::Reader::new(&path).map_err(|error| unreadable(error.to_string()))?;
    let section = reader.toc().section(b"tables").ok_or_else(|| unreadable("it lists no tables".to_owned()))?;
    let listed = section.buf_reader(&path).and_then(|mut section| read_tables(&mut section));
    listed.map_err(|error| unreadable(error.to_string()))
}

/// `levels:1 (runs:1 (tables:4 (id:8 kind:1 checksum:16 seqno:8)*)*)*`, as lsm-tree writes it.
fn read_tables(from: &mut impl Read) -> io::Result<Vec<(TableId, u128)>> {
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
                    let problem = "its bytes are not those that were written".to_owned();
                    self.faults.push(FileFault { path, offset, problem });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let problem = "it is missing, and the newest version of the tables names it".to_owned();
                self.faults.push(FileFault { path, offset: None, problem });
            }
            Err(error) => self.faults.push(FileFault { path, offset: None, problem: error.to_string() }),
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
