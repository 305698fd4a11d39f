//! The data directory: who may open it, and how it was made.
//!
//! **Shape**: `FORMAT` (text: version, node id, partitions, checksum), `LOCK` (held by the process that runs, with its id), `log/`, `tables/`.
//! Owns: `FORMAT` and `LOCK`. Does not own: what is in `log/` and `tables/`. Each refusal says what to do.

#![allow(clippy::disallowed_methods, reason = "the lock is the operating system's: a simulated node has no data directory")]

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use surefoot_env::is_shortage;
use surefoot_model::PartitionId;
use xxhash_rust::xxh3::xxh3_128;

/// The layout that this build reads and writes.
const FORMAT_VERSION: u32 = 2;
/// Far more than any `FORMAT` has.
const FORMAT_BYTES_MAX: u64 = 4 << 10;

/// What an empty directory may hold: what a start that was cut short left, and what a new file system has at its root.
const NOT_FOREIGN: [&str; 3] = ["LOCK", "FORMAT.new", "lost+found"];

/// An open data directory; the lock goes with the value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Drawn when the directory was made.
    pub node_id: u64,
    /// Fixed when the directory was made.
    pub partitions: u16,
    /// Whether it was made just now.
    pub is_new: bool,
    _lock: File,
}

/// What keeps a data directory from opening.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "data directory {path} is in use by another process{holder}; stop that one, or give this one --data-dir of its own",
        path = .path.display()
    )]
    InUse {
        path: PathBuf,
        /// Its id where it has written one down, in brackets.
        holder: String,
    },
    #[error(
        "data directory {path} has format version {found}, this build reads version {FORMAT_VERSION}; \
         start the version that wrote it, or choose another --data-dir",
        path = .path.display()
    )]
    Version { path: PathBuf, found: String },
    #[error("{path} is damaged ({problem}); restore the data directory as a whole from a backup", path = .path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "{path} holds files but no FORMAT: it is not a data directory of this program; choose an empty --data-dir",
        path = .0.display()
    )]
    Foreign(PathBuf),
    #[error("{path} is no data directory: it has no FORMAT (of a backup, `surefoot restore` checks every byte)", path = .0.display())]
    NoDataDir(PathBuf),
    #[error("{path} is not empty: choose another --data-dir, or move away what is there", path = .0.display())]
    NotEmpty(PathBuf),
    /// With the file, or the directory itself.
    #[error("cannot open data directory: {path}: {source}; {hint}", path = .path.display(), hint = hint(.source))]
    Io { path: PathBuf, source: io::Error },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            "this user has to be allowed to read and write it and all that is in it, and its parent to make it: mend that, or choose another --data-dir"
        }
        ErrorKind::ReadOnlyFilesystem => "mount its disk for writing, or choose another --data-dir",
        _ if is_shortage(error) => {
            "make room on its disk, or raise the limit on open files (`ulimit -n`), or choose another --data-dir"
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => {
            "something else is in its place: move that away, or choose another --data-dir"
        }
        _ => "look at its disk, or choose another --data-dir",
    }
}

/// Files that this process makes from now on are its user's alone: they hold credentials of brokers, and what clients sent.
pub fn keep_private() {
    let _before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

impl DataDir {
    /// Opens `path`, or makes it with this many partitions. `node_id` is used for a new one only.
    pub fn open(path: &Path, partitions: u16, node_id: u64) -> Result<Self, Error> {
        let made = create(path).map_err(at(path))?;
        let lock_path = path.join("LOCK");
        let had_lock = lock_path.exists();
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(at(&lock_path))?;
        take(&lock, path)?;
        let format = path.join("FORMAT");
        if let Some((node_id, partitions)) = read(&format)? {
            tell_if_public(path);
            write_holder(&lock);
            return Ok(Self { path: path.to_owned(), node_id, partitions, is_new: false, _lock: lock });
        }
        if !is_empty(path).map_err(at(path))? {
            if !had_lock {
                // Not ours to leave anything in. If it stays, it is empty and says what it is.
                let _ = fs::remove_file(&lock_path);
            }
            return Err(Error::Foreign(path.to_owned()));
        }
        make_private(path);
        if let Err(source) = write(path, &format, node_id, partitions) {
            if !had_lock {
                // So that the directories above it can go as well.
                let _ = fs::remove_file(&lock_path);
            }
            return Err(Error::Io { path: format, source });
        }
        made.keep();
        write_holder(&lock);
        Ok(Self { path: path.to_owned(), node_id, partitions, is_new: true, _lock: lock })
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn tables(&self) -> PathBuf {
        self.path.join("tables")
    }
}

/// A data directory that is looked at, and left as it is. While there is this value, nobody opens it.
pub(crate) struct StillDataDir {
    path: PathBuf,
    partitions: u16,
    /// None where there is none to take.
    _lock: Option<File>,
}

impl StillDataDir {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let lock_path = path.join("LOCK");
        let lock = match File::open(&lock_path) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(at(&lock_path)(error)),
        };
        lock.iter().try_for_each(|lock| take(lock, path))?;
        let (_, partitions) = read(&path.join("FORMAT"))?.ok_or_else(|| Error::NoDataDir(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), partitions, _lock: lock })
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn tables(&self) -> PathBuf {
        self.path.join("tables")
    }

    /// All that it was made with, the catalog's last.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        (0..self.partitions).map(PartitionId).chain([PartitionId::CATALOG])
    }

    pub(crate) fn has(&self, partition: PartitionId) -> bool {
        partition == PartitionId::CATALOG || partition.0 < self.partitions
    }
}

/// A directory that is to become a data directory: it has no `FORMAT` before all else is in it, so that nobody opens one that is half
/// made. The lock goes with the value.
pub(crate) struct EmptyDataDir {
    path: PathBuf,
    lock: File,
    /// Goes again, unless it is completed.
    made: Made,
}

impl EmptyDataDir {
    /// Takes a directory that is empty, or makes it.
    pub(crate) fn claim(path: &Path) -> Result<Self, Error> {
        let mut made = create(path).map_err(at(path))?;
        if !is_empty(path).map_err(at(path))? {
            return Err(Error::NotEmpty(path.to_owned()));
        }
        let lock_path = path.join("LOCK");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(at(&lock_path))?;
        take(&lock, path)?;
        made.files.push(lock_path);
        make_private(path);
        Ok(Self { path: path.to_owned(), lock, made })
    }

    /// To be told of each file and directory that is made in it.
    pub(crate) fn made(&mut self) -> &mut Made {
        &mut self.made
    }

    /// Everything else is durable: from now on it is a data directory.
    pub(crate) fn complete(self, node_id: u64, partitions: u16) -> Result<(), Error> {
        let Self { path, lock, made } = self;
        let format = path.join("FORMAT");
        write(&path, &format, node_id, partitions).map_err(at(&format))?;
        made.keep();
        drop(lock);
        Ok(())
    }
}

/// What was made for something that may yet fail. It goes when this is dropped, as far as that can be done and nobody else has put anything
/// there, unless it is kept.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) files: Vec<PathBuf>,
    /// Each before those in it.
    pub(crate) dirs: Vec<PathBuf>,
}

impl Made {
    pub(crate) fn keep(mut self) {
        self.files.clear();
        self.dirs.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in self.files.drain(..) {
            let _ = fs::remove_file(file);
        }
        for dir in self.dirs.drain(..).rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}

fn take(lock: &File, path: &Path) -> Result<(), Error> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned(), holder: holder(path) }),
        Err(TryLockError::Error(source)) => Err(Error::Io { path: path.join("LOCK"), source }),
    }
}

fn is_empty(path: &Path) -> io::Result<bool> {
    let mut entries = fs::read_dir(path)?.filter_map(Result::ok);
    Ok(entries.all(|entry| NOT_FOREIGN.contains(&entry.file_name().to_string_lossy().as_ref())))
}

/// Says who holds the lock, for those who find it held. Where a full disk does not take it, they are told less.
fn write_holder(mut lock: &File) {
    let text = format!("pid={}\n", std::process::id());
    if let Err(error) = lock.set_len(0).and_then(|()| lock.write_all(text.as_bytes())) {
        tracing::debug!(%error, "write the id of this process into LOCK");
    }
}

/// What the process that holds the lock says of itself. Ids mean little in another container, or on another machine.
fn holder(path: &Path) -> String {
    let text = fs::read_to_string(path.join("LOCK")).unwrap_or_default();
    let pid = text.lines().find_map(|line| line.strip_prefix("pid=")?.parse::<u32>().ok());
    pid.map_or_else(String::new, |pid| format!(" (pid {pid} where that one runs)"))
}

/// Node and number of partitions; none where there is no such file.
fn read(path: &Path) -> Result<Option<(u64, u16)>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(FORMAT_BYTES_MAX).read_to_end(&mut bytes).map_err(at(path))?;
    let not_text = |_| Error::Damaged { path: path.to_owned(), problem: "it is not text".to_owned() };
    parse(path, &String::from_utf8(bytes).map_err(not_text)?).map(Some)
}

fn parse(path: &Path, text: &str) -> Result<(u64, u16), Error> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim);
    let damaged = |problem: &str| Error::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    // It comes first, and is the same in every version.
    let version: u32 = field("version").and_then(|version| version.parse().ok()).ok_or_else(|| damaged("no version"))?;
    if version != FORMAT_VERSION {
        return Err(Error::Version { path: path.to_owned(), found: version.to_string() });
    }
    let covered = text.rfind(CHECKSUM).map(|end| &text[..end]).ok_or_else(|| damaged("no checksum"))?;
    if text[covered.len()..] != checksum_line(covered) {
        return Err(damaged("its checksum is that of another text"));
    }
    let node_id = field("node").and_then(|v| u64::from_str_radix(v, 16).ok()).ok_or_else(|| damaged("no node id"))?;
    let partitions = field("partitions").and_then(|v| v.parse().ok()).filter(|n| (1..u16::MAX).contains(n));
    Ok((node_id, partitions.ok_or_else(|| damaged("no number of partitions"))?))
}

/// A directory that the operator made, too: it is ours from now on.
fn make_private(path: &Path) {
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
        tracing::warn!(%error, path = %path.display(), "cannot keep other users out of the data directory; take it from them with chmod 700");
    }
}

/// One that was made before is left as it is: somebody may have opened it on purpose.
fn tell_if_public(path: &Path) {
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0) {
        tracing::warn!(path = %path.display(), "every user of this machine may look into the data directory; take it from them with chmod 700");
    }
}

/// Makes a directory and those above it, each name durable, so that a power failure cannot take it with all that is in it.
pub(crate) fn create(path: &Path) -> io::Result<Made> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    let mut made = Made::default();
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => made.dirs.push(dir.to_owned()),
            // Somebody else was quicker.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(error),
        }
        let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(above)?.sync_all()?;
    }
    Ok(made)
}

/// The last line of `FORMAT`: without it a file that was cut short could pass for one of fewer partitions, and a changed digit for another node.
const CHECKSUM: &str = "checksum=";

fn checksum_line(covered: &str) -> String {
    format!("{CHECKSUM}{:032x}\n", xxh3_128(covered.as_bytes()))
}

/// All of it or nothing: written aside, synced, renamed, and the name synced.
fn write(dir: &Path, format: &Path, node_id: u64, partitions: u16) -> io::Result<()> {
    let aside = dir.join("FORMAT.new");
    let text = format!("version={FORMAT_VERSION}\nnode={node_id:016x}\npartitions={partitions}\n");
    let mut file = File::create(&aside)?;
    let written = file.write_all(format!("{text}{}", checksum_line(&text)).as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written?;
    fs::rename(&aside, format)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_new_directory_keeps_its_node_and_partitions() {
        let dir = dir();
        let made = DataDir::open(dir.path(), 16, 7).unwrap();
        assert!(made.is_new);
        drop(made);
        let again = DataDir::open(dir.path(), 4, 8).unwrap();
        assert_eq!((again.node_id, again.partitions, again.is_new), (7, 16, false));
    }

    #[test]
    fn a_new_directory_is_its_users_alone() {
        let above = dir();
        let path = above.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        DataDir::open(&path, 16, 7).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = dir();
        let _first = DataDir::open(dir.path(), 16, 7).unwrap();
        let error = DataDir::open(dir.path(), 16, 7).unwrap_err();
        let pid = format!("in use by another process (pid {} where that one runs); stop that one", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
    }

    #[test]
    fn a_directory_that_is_looked_at_is_left_as_it_is_and_kept_from_others() {
        let dir = dir();
        assert!(matches!(StillDataDir::open(dir.path()), Err(Error::NoDataDir(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(DataDir::open(dir.path(), 16, 7).unwrap());
        let still = StillDataDir::open(dir.path()).unwrap();
        assert_eq!(still.partitions().count(), 17);
        assert!(matches!(DataDir::open(dir.path(), 16, 7), Err(Error::InUse { .. })));
        drop(still);
        let _node = DataDir::open(dir.path(), 16, 7).unwrap();
        assert!(matches!(StillDataDir::open(dir.path()), Err(Error::InUse { .. })));
    }

    #[test]
    fn another_version_is_refused_and_left_as_it_is() {
        let dir = dir();
        for (text, version) in [("version=3\nnode=0000000000000007\n", 3), ("version=1\nnode=7\npartitions=16\n", 1)] {
            fs::write(dir.path().join("FORMAT"), text).unwrap();
            let error = DataDir::open(dir.path(), 16, 7).unwrap_err();
            assert!(error.to_string().contains(&format!("format version {version}")), "{error}");
            assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), text);
        }
    }

    /// A file of zeros was told as if the directory were not this user's to read; one that was cut short passed for one of fewer partitions.
    #[test]
    fn a_damaged_format_is_told_with_what_is_wrong_and_what_to_do() {
        let dir = dir();
        drop(DataDir::open(dir.path(), 16, 7).unwrap());
        let path = dir.path().join("FORMAT");
        let whole = fs::read(&path).unwrap();
        let expect_refused = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let told = [
                DataDir::open(dir.path(), 16, 7).unwrap_err().to_string(),
                StillDataDir::open(dir.path()).map(drop).unwrap_err().to_string(),
            ];
            for error in told {
                let is_told = error.contains(&format!("{} is damaged", path.display())) && error.contains("from a backup");
                assert!(is_told || error.contains("format version"), "{what}: {error}");
            }
            assert_eq!(fs::read(&path).unwrap(), bytes, "{what}: it is left as it is");
        };
        (0..whole.len()).for_each(|bytes| expect_refused(&whole[..bytes], &format!("cut to {bytes} bytes")));
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            expect_refused(&changed, &format!("byte {at} is changed"));
        }
        expect_refused(&[0xFF; 100], "no text");
        expect_refused(&[0; 100], "zeros");
        expect_refused(&[b'x'; 1 << 20], "far too large");
        expect_refused(&[whole.as_slice(), b"\n"].concat(), "something behind it");
        fs::write(&path, whole).unwrap();
        assert_eq!(DataDir::open(dir.path(), 4, 8).unwrap().node_id, 7);
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let above = dir();
        let file = above.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file.join("data"), 16, 7).unwrap_err().to_string();
        assert!(error.contains("something else is in its place") && error.contains("file/data"), "{error}");
        let data = above.path().join("data");
        fs::create_dir_all(data.join("LOCK")).unwrap();
        let error = DataDir::open(&data, 16, 7).unwrap_err().to_string();
        assert!(error.contains("data/LOCK") && error.contains("something else is in its place"), "{error}");
    }

    /// Where this process may write whatever the permissions say, there is nothing to see.
    #[test]
    fn a_directory_that_is_not_to_be_written_is_told_with_the_file() {
        let dir = dir();
        drop(DataDir::open(dir.path(), 16, 7).unwrap());
        let lock = dir.path().join("LOCK");
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o400)).unwrap();
        match DataDir::open(dir.path(), 16, 7) {
            Ok(_) => {}
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(lock.to_str().unwrap()) && error.contains("this user's to read and write"), "{error}");
            }
        }
    }

    #[test]
    fn a_foreign_directory_is_refused() {
        let foreign = dir();
        fs::write(foreign.path().join("photo.jpg"), "x").unwrap();
        assert!(matches!(DataDir::open(foreign.path(), 16, 7), Err(Error::Foreign(_))));
        assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1, "nothing is left in it");
    }

    #[test]
    fn a_new_file_system_is_an_empty_directory() {
        let volume = dir();
        fs::create_dir(volume.path().join("lost+found")).unwrap();
        assert!(DataDir::open(volume.path(), 16, 7).unwrap().is_new);
    }

    #[test]
    fn directories_above_are_made_too() {
        let above = dir();
        let path = above.path().join("a/b/data");
        assert!(DataDir::open(&path, 16, 7).unwrap().is_new);
        assert!(!DataDir::open(&path, 16, 7).unwrap().is_new);
    }

    #[test]
    fn a_directory_half_made_by_a_crash_is_made_whole() {
        let dir = dir();
        fs::write(dir.path().join("FORMAT.new"), "vers").unwrap();
        assert!(DataDir::open(dir.path(), 16, 7).unwrap().is_new);
    }
}
