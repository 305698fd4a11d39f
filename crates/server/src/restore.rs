//! From a backup to a data directory.
//!
//! Owns: that a backup is whole and unchanged before anything is made of it, and that what is half restored is no data directory. Does not own: what is in
//! the files, or the layout of a backup (`backup`).

#![allow(clippy::disallowed_methods, reason = "it copies the operating system's files: a simulated node has no backups")]

use crate::backup::manifest::{self, Listed, Manifest};
use crate::data_dir::{self, EmptyDataDir};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3Default;

/// What is read and written at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What keeps a backup from being restored. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is no backup that is whole: it has no MANIFEST, which is written last", path = .0.display())]
    NotWhole(PathBuf),
    #[error("{path} cannot be used: {problem}", path = .path.display())]
    Manifest { path: PathBuf, problem: String },
    #[error("the backup is damaged: {path} {problem}; nothing was restored: use another backup", path = .path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    #[error("{doing} {path}: {source}", path = .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub files: u64,
    pub bytes: u64,
    pub node_id: u64,
    /// When the backup was made, by the node's wall clock.
    pub taken_ms: u64,
}

/// Checks all of a backup, then copies it into a data directory that is empty or not there; returns once that is durable. **Errors**: nothing
/// that was made is left.
pub fn restore(backup: &Path, data_dir: &Path) -> Result<Restored, Error> {
    let manifest = read_manifest(backup)?;
    let mut piece = vec![0; PIECE_BYTES];
    for listed in &manifest.files {
        copy(listed, backup, None, &mut piece)?;
    }
    let mut empty = EmptyDataDir::claim(data_dir)?;
    let mut dirs = BTreeSet::from([data_dir.to_owned()]);
    for listed in &manifest.files {
        let path = data_dir.join(&listed.name);
        let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|dir| !dirs.contains(*dir)).collect();
        for dir in missing.into_iter().rev() {
            fs::create_dir(dir).map_err(|source| Error::Io { doing: "make", path: dir.to_owned(), source })?;
            empty.made().dirs.push(dir.to_owned());
            dirs.insert(dir.to_owned());
        }
        empty.made().files.push(path);
        copy(listed, backup, Some(data_dir), &mut piece)?;
    }
    // Their names.
    for dir in dirs {
        File::open(&dir).and_then(|open| open.sync_all()).map_err(|source| Error::Io { doing: "sync", path: dir, source })?;
    }
    empty.complete(manifest.node_id, manifest.partitions)?;
    Ok(Restored {
        files: manifest.files.len() as u64,
        bytes: manifest.bytes(),
        node_id: manifest.node_id,
        taken_ms: manifest.taken_ms,
    })
}

fn read_manifest(backup: &Path) -> Result<Manifest, Error> {
    let path = backup.join(manifest::NAME);
    match fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| "it is not text".to_owned());
            text.and_then(|text| Manifest::decode(&text)).map_err(|problem| Error::Manifest { path, problem })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::NotWhole(backup.to_owned())),
        Err(source) => Err(Error::Io { doing: "read", path, source }),
    }
}

/// Reads one file, checks it, and writes it below `to` if that is given, durably.
fn copy(listed: &Listed, backup: &Path, to: Option<&Path>, piece: &mut [u8]) -> Result<(), Error> {
    let path = backup.join(&listed.name);
    let damaged = |problem: &str| Error::Damaged { path: path.clone(), problem: problem.to_owned() };
    let unread = |source: io::Error| match source.kind() {
        ErrorKind::NotFound => damaged("is missing"),
        _ => Error::Io { doing: "read", path: path.clone(), source },
    };
    let mut from = File::open(&path).map_err(unread)?;
    let mut target = match to.map(|to| to.join(&listed.name)) {
        Some(path) => Some(File::create_new(&path).map(|file| (file, path.clone())).map_err(|source| unwritten(path, source))?),
        None => None,
    };
    let (mut bytes, mut hash) = (0, Xxh3Default::new());
    loop {
        let read = from.read(piece).map_err(unread)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hash.update(&piece[..read]);
        if let Some((file, path)) = &mut target {
            file.write_all(&piece[..read]).map_err(|source| unwritten(path.clone(), source))?;
        }
    }
    if bytes != listed.bytes {
        return Err(damaged(&format!("has {bytes} bytes, and had {}", listed.bytes)));
    }
    if hash.digest128() != listed.checksum {
        return Err(damaged("has changed since it was written"));
    }
    if let Some((file, path)) = target {
        file.sync_all().map_err(|source| unwritten(path, source))?;
    }
    Ok(())
}

fn unwritten(path: PathBuf, source: io::Error) -> Error {
    Error::Io { doing: "write", path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_128;

    /// A backup of two files.
    fn backup(dir: &Path) {
        let mut files = Vec::new();
        for (name, content) in [("tables/version", "FJL3"), ("log/0000000001.seg", "a segment")] {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            files.push(Listed { name: name.into(), bytes: content.len() as u64, checksum: xxh3_128(content.as_bytes()) });
        }
        let manifest = Manifest { node_id: 7, partitions: 4, taken_ms: 1, files };
        fs::write(dir.join(manifest::NAME), manifest.encode()).unwrap();
    }

    #[test]
    fn a_whole_backup_becomes_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        backup(dir.path());
        let data = dir.path().join("a/data");
        assert_eq!(restore(dir.path(), &data).unwrap(), Restored { files: 2, bytes: 13, node_id: 7, taken_ms: 1 });
        assert_eq!(fs::read_to_string(data.join("log/0000000001.seg")).unwrap(), "a segment");
        let opened = data_dir::DataDir::open(&data, 16, 1).unwrap();
        assert_eq!((opened.node_id, opened.partitions, opened.is_new), (7, 4, false));
        let error = restore(dir.path(), &data).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }

    #[test]
    fn of_a_backup_that_is_damaged_or_not_whole_nothing_is_restored() {
        type Break = fn(&Path);
        let breaks: [(Break, &str); 5] = [
            (|dir| fs::write(dir.join("log/0000000001.seg"), "a sagment").unwrap(), "0000000001.seg has changed"),
            (|dir| fs::write(dir.join("log/0000000001.seg"), "a seg").unwrap(), "has 5 bytes, and had 9"),
            (|dir| fs::remove_file(dir.join("tables/version")).unwrap(), "version is missing"),
            (|dir| fs::remove_file(dir.join("MANIFEST")).unwrap(), "no backup that is whole"),
            (|dir| fs::write(dir.join("MANIFEST"), "version=2\n").unwrap(), "format version 2"),
        ];
        for (damage, why) in breaks {
            let dir = tempfile::tempdir().unwrap();
            backup(dir.path());
            damage(dir.path());
            let data = dir.path().join("data");
            let error = restore(dir.path(), &data).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(!data.exists(), "nothing was made");
        }
    }

    /// The directories above the one that was to be made stayed behind, and it itself with what had been copied.
    #[test]
    fn a_restore_that_fails_on_its_way_leaves_nothing_of_what_it_made() {
        let dir = tempfile::tempdir().unwrap();
        backup(dir.path());
        // The last file has the name of one that a data directory has already.
        fs::write(dir.path().join("LOCK"), "").unwrap();
        let mut manifest = Manifest::decode(&fs::read_to_string(dir.path().join(manifest::NAME)).unwrap()).unwrap();
        manifest.files.push(Listed { name: "LOCK".into(), bytes: 0, checksum: xxh3_128(b"") });
        fs::write(dir.path().join(manifest::NAME), manifest.encode()).unwrap();
        let there = dir.path().join("there");
        fs::create_dir_all(there.join("empty/lost+found")).unwrap();
        for (data, left) in [("there/a/b/data", "there/a"), ("there/empty", "there/empty/log")] {
            let error = restore(dir.path(), &dir.path().join(data)).unwrap_err().to_string();
            assert!(error.contains(&format!("{data}/LOCK")), "{error}");
            assert!(!dir.path().join(left).exists(), "{left} is left");
        }
        assert_eq!(fs::read_dir(there.join("empty")).unwrap().count(), 1, "what was there before stays");
    }

    #[test]
    fn what_is_half_restored_is_no_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let empty = EmptyDataDir::claim(dir.path()).unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        drop(empty);
        assert!(matches!(data_dir::DataDir::open(dir.path(), 4, 1), Err(data_dir::Error::Foreign(_))));
        assert!(matches!(EmptyDataDir::claim(dir.path()), Err(data_dir::Error::NotEmpty(_))));
    }
}
