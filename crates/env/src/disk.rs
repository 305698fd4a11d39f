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
    /// Opens an existing file that is only read: it, its directory or its file system may allow no more.
    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.open(path)
    }
    /// The entries of a directory, sorted by name. A missing directory is an error (`NotFound`).
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and its parents; one that exists is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The room of the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// Room of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still write.
    pub free: u64,
    /// All that there is, taken or not.
    pub total: u64,
}

/// Whether an error says that the system had no room or no descriptor left. What failed has not been done, and may be tried again
/// once there is some. An error of a sync is never to be asked: after one nothing about the file can be trusted (rule L4).
pub fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded) || is_out_of_descriptors(error)
}

/// Whether an error says that the process or the system has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let code = |errno: rustix::io::Errno| Some(errno.raw_os_error());
    [code(rustix::io::Errno::MFILE), code(rustix::io::Errno::NFILE)].contains(&error.raw_os_error())
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
    /// Makes the file so many bytes long; what lies beyond is gone, and its room is free.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// Makes everything written before this call durable. After an error nothing about the file can be trusted (rule L4).
    fn sync_data(&self) -> io::Result<()>;
}

/// A file to be made elsewhere as a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCopy {
    /// Below the directory that the copies are put into.
    pub name: PathBuf,
    pub content: CopyContent,
}

/// What is to be in a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyContent {
    /// Few of them: a file that changes was read while it did not.
    Bytes(Vec<u8>),
    /// The first bytes of a file, as many, which may be copied whenever; and what follows them in the copy alone.
    Start { of: PathBuf, bytes: u64, then: Vec<u8> },
}

impl FileCopy {
    /// Bytes that the copy will have.
    pub fn bytes(&self) -> u64 {
        match &self.content {
            CopyContent::Bytes(bytes) => bytes.len() as u64,
            CopyContent::Start { bytes, then, .. } => bytes + then.len() as u64,
        }
    }
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

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(OsFile(fs::File::open(path)?)))
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

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(dir)?;
        // Not `f_bfree`: a part of that is for the superuser alone.
        Ok(Space { free: found.f_bavail * found.f_frsize, total: found.f_blocks * found.f_frsize })
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

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_told_from_what_is_broken() {
        let errno = |code: rustix::io::Errno| io::Error::from_raw_os_error(code.raw_os_error());
        use rustix::io::Errno;
        for short in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE] {
            assert!(is_shortage(&errno(short)), "{short:?}");
        }
        for broken in [Errno::IO, Errno::ROFS, Errno::ACCESS] {
            assert!(!is_shortage(&errno(broken)), "{broken:?}");
        }
        assert!(is_out_of_descriptors(&errno(Errno::MFILE)) && !is_out_of_descriptors(&errno(Errno::NOSPC)));
    }

    #[test]
    fn what_is_opened_to_be_read_takes_no_writes() {
        let path = std::env::temp_dir().join(format!("surefoot-open-to-read-{}", std::process::id()));
        fs::write(&path, b"before").unwrap();
        let file = OsDisk.open_to_read(&path).unwrap();
        let mut read = [0; 6];
        file.read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"before");
        // So it asks for no more than a file system allows that is mounted to be read only.
        assert!(file.write_at(0, b"x").is_err());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_file_system_tells_its_room() {
        let Space { free, total } = OsDisk.space(Path::new(".")).unwrap();
        assert!(total > 0 && free <= total);
        assert!(OsDisk.space(Path::new("/no/such/directory")).is_err());
    }
}
