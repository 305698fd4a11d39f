//! Files as the log and the node see them: synchronous, positioned, with durability asked for by name.
//!
//! Owns: the seam and its version over `std::fs`. Does not own: formats. A write is durable after [`File::sync_data`], a
//! created, renamed or removed name after [`Disk::sync_dir`] of its directory; before that a power failure may lose either.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub trait Disk: Send + Sync {
    /// Creates an empty file; an existing one of that name is an error (`AlreadyExists`).
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// The entries of a directory, sorted by name. A missing directory is an error (`NotFound`).
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and its parents; one that exists is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

pub trait File: Send {
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`; a file that ends before is an error (`UnexpectedEof`).
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, growing the file where needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes so many zeros at `offset`, growing the file where needed: for room that small writes will fill later.
    fn write_zeros(&self, offset: u64, bytes: usize) -> io::Result<()> {
        self.write_at(offset, &vec![0; bytes])
    }
    /// Makes everything written before this call durable. After an error nothing about the file can be trusted (rule L4).
    fn sync_data(&self) -> io::Result<()>;
}

/// The operating system's files.
pub struct OsDisk;

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(OsFile(fs::OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

struct OsFile(fs::File);

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    /// Page by page: the kernel caches a write in one piece where it can, and later counts, and on some file systems writes, the
    /// whole piece for every few bytes that change in it.
    fn write_zeros(&self, offset: u64, bytes: usize) -> io::Result<()> {
        const PAGE: [u8; 4096] = [0; 4096];
        let end = offset + bytes as u64;
        let mut at = offset;
        while at < end {
            let page_end = (at / PAGE.len() as u64 + 1) * PAGE.len() as u64;
            let piece = (page_end.min(end) - at) as usize;
            self.0.write_all_at(&PAGE[..piece], at)?;
            at += piece as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
