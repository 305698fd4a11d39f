//! A disk that loses what was not synced, for tests and for the simulator.
//!
//! Owns: page cache beside durable image, unsynced names, power loss, crash points. Does not own: scheduling, or what runs on it.
//! The model: an unsynced write survives per 512-byte sector, a sector holding all that had been written to it up to one of its
//! writes; an unsynced change of a name survives or not; nothing that was synced is ever lost. A sync that fails takes what it was
//! to make durable for clean, as kernels do: readers still see it, a later sync has nothing to do, and a power loss takes it.
//! A disk may have a capacity, in bytes of its files, and a process a number of descriptors: then what needs more fails as the
//! system's calls do. A write that finds no room leaves as much of it as there was room for; what overwrites needs none.

use crate::{Disk, File, Space};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that reach a disk all together or not at all.
pub const SECTOR: usize = 512;

/// A small seeded generator (splitmix64): the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is above 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }
}

/// Something that a power loss may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced<'a> {
    /// A created, renamed or removed name (the new name of a rename), in the order of the changes.
    Name(&'a Path),
    /// Sector `sector` of the `sectors` that write number `write` of one file touched.
    Sector { write: usize, sector: usize, sectors: usize },
}

/// A simulated disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<World>>);

struct World {
    files: BTreeMap<u64, Contents>,
    files_made: u64,
    /// What the running system sees.
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    unsynced_names: Vec<Change>,
    operations: u64,
    written: u64,
    crash_at: u64,
    fail_at: u64,
    syncs: u64,
    fail_sync_at: u64,
    /// Bytes that all files may have together.
    capacity: u64,
    /// Bytes of that which must be free for a name to be made or changed.
    name_bytes: u64,
    /// Files that may be open at a time.
    descriptors_max: u64,
    /// Of this life.
    descriptors: u64,
    dead: bool,
    /// Which run of the node; files opened in an earlier one are dead.
    life: u64,
}

#[derive(Default)]
struct Contents {
    durable: Vec<u8>,
    cache: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Copy)]
enum Node {
    Dir,
    File(u64),
}

enum Change {
    Put(PathBuf, Node),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Self::Put(path, _) | Self::Rename(_, path) | Self::Remove(path) => path,
        }
    }

    /// A change whose own precondition was lost is lost with it.
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Put(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk: only the directories `/` and the current one exist.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(World {
            files: BTreeMap::new(),
            files_made: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            operations: 0,
            written: 0,
            crash_at: u64::MAX,
            fail_at: u64::MAX,
            syncs: 0,
            fail_sync_at: u64::MAX,
            capacity: u64::MAX,
            name_bytes: 0,
            descriptors_max: u64::MAX,
            descriptors: 0,
            dead: false,
            life: 0,
        })))
    }

    /// Operations that change something, since the last restart.
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// Bytes written since the disk was made.
    pub fn bytes_written(&self) -> u64 {
        self.world().written
    }

    /// The machine dies in operation number `operation` (the first is 1) of this life: that one is issued and may or may not
    /// survive, and it and all later ones fail. `u64::MAX` is never.
    pub fn crash_at(&self, operation: u64) {
        self.world().crash_at = operation;
    }

    /// Operation number `operation` of this life fails and does nothing, the ones after it work.
    pub fn fail_at(&self, operation: u64) {
        self.world().fail_at = operation;
    }

    /// Syncs of files and directories since the last restart.
    pub fn syncs(&self) -> u64 {
        self.world().syncs
    }

    /// Sync number `sync` (the first is 1) of this life fails: what it was to make durable is lost with the next power failure,
    /// though later syncs succeed. `u64::MAX` is never.
    pub fn fail_sync_at(&self, sync: u64) {
        self.world().fail_sync_at = sync;
    }

    /// Bounds the bytes of all files together. Files that exist are kept. `u64::MAX` is no bound. The bound survives restarts.
    pub fn set_capacity(&self, bytes: u64) {
        self.world().capacity = bytes;
    }

    /// So many bytes must be free for a file to be made or renamed, as on file systems that write names anew; none are taken. Removing
    /// needs none. Survives restarts.
    pub fn set_name_bytes(&self, bytes: u64) {
        self.world().name_bytes = bytes;
    }

    /// So many files may be open at a time; those that are stay open. `u64::MAX` is no bound. Survives restarts.
    pub fn set_descriptors(&self, max: u64) {
        self.world().descriptors_max = max;
    }

    /// Bytes of all files that have a name.
    pub fn bytes_used(&self) -> u64 {
        self.world().bytes_used()
    }

    /// From here on every operation fails, until the next restart.
    pub fn die(&self) {
        self.world().dead = true;
    }

    pub fn is_dead(&self) -> bool {
        self.world().dead
    }

    /// The process died, the machine did not: what was issued is there, synced or not. Files that are open are dead.
    pub fn process_kill(&self) {
        let mut world = self.world();
        let world = &mut *world;
        world.names.clone_from(&world.durable_names);
        for change in &world.unsynced_names {
            change.apply(&mut world.names);
        }
        // The write in which the machine died is in the cache, too.
        for contents in world.files.values_mut() {
            for (offset, bytes) in &contents.unsynced {
                put(&mut contents.cache, *offset, bytes);
            }
        }
        world.restart();
    }

    /// Power fails: of what was not synced, chance decides what survives. Ends with a disk for the next life.
    pub fn power_loss(&self, rng: &mut Rng) {
        let (names_mode, sectors_mode) = (rng.below(4), rng.below(5));
        let mut names_go_on = true;
        let mut kept = 0;
        self.lose_power(&mut |unsynced| match unsynced {
            Unsynced::Name(_) => match names_mode {
                0 => false,
                1 => true,
                2 => {
                    names_go_on &= rng.below(3) > 0;
                    names_go_on
                }
                _ => rng.below(2) == 0,
            },
            Unsynced::Sector { sector, sectors, .. } => {
                if sector == 0 {
                    kept = match sectors_mode {
                        0 => 0,
                        1 => sectors as u64,
                        2 => rng.below(2) * sectors as u64,
                        _ => rng.below(sectors as u64 + 1),
                    };
                }
                if sectors_mode == 4 { rng.below(2) == 0 } else { (sector as u64) < kept }
            }
        });
    }

    /// Power fails: `keep` decides for each unsynced name, then for each unsynced sector, whether it survives.
    pub fn lose_power(&self, keep: &mut dyn FnMut(Unsynced<'_>) -> bool) {
        let mut world = self.world();
        let world = &mut *world;
        for change in std::mem::take(&mut world.unsynced_names) {
            if keep(Unsynced::Name(change.path())) {
                change.apply(&mut world.durable_names);
            }
        }
        let all = world.durable_names.clone();
        world.durable_names.retain(|path, _| path.ancestors().skip(1).all(|dir| is_root(dir) || all.contains_key(dir)));
        for contents in world.files.values_mut() {
            contents.lose(keep);
        }
        world.names = world.durable_names.clone();
        let named: Vec<u64> =
            world.names.values().filter_map(|n| if let Node::File(id) = n { Some(*id) } else { None }).collect();
        world.files.retain(|id, _| named.contains(id));
        world.restart();
    }

    /// A copy of the disk in its present state, for running several futures of one past.
    pub fn fork(&self) -> Self {
        let world = self.world();
        let copy = |c: &Contents| Contents { durable: c.durable.clone(), cache: c.cache.clone(), unsynced: c.unsynced.clone() };
        let changes = world.unsynced_names.iter().map(|change| match change {
            Change::Put(path, node) => Change::Put(path.clone(), *node),
            Change::Rename(from, to) => Change::Rename(from.clone(), to.clone()),
            Change::Remove(path) => Change::Remove(path.clone()),
        });
        Self(Arc::new(Mutex::new(World {
            files: world.files.iter().map(|(id, contents)| (*id, copy(contents))).collect(),
            files_made: world.files_made,
            names: world.names.clone(),
            durable_names: world.durable_names.clone(),
            unsynced_names: changes.collect(),
            operations: world.operations,
            written: world.written,
            crash_at: world.crash_at,
            fail_at: world.fail_at,
            syncs: world.syncs,
            fail_sync_at: world.fail_sync_at,
            capacity: world.capacity,
            name_bytes: world.name_bytes,
            descriptors_max: world.descriptors_max,
            descriptors: world.descriptors,
            dead: world.dead,
            life: world.life,
        })))
    }

    /// What a reader of the file sees now. Errors: `NotFound`.
    pub fn bytes_of(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut world = self.world();
        Ok(world.file(path)?.cache.clone())
    }

    /// Replaces a file's bytes, durably: rot, or a careless hand. Errors: `NotFound`.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        let mut world = self.world();
        let contents = world.file(path)?;
        contents.durable = bytes.clone();
        contents.cache = bytes;
        contents.unsynced.clear();
        Ok(())
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl World {
    fn restart(&mut self) {
        self.life += 1;
        (self.operations, self.syncs, self.descriptors, self.dead) = (0, 0, 0, false);
        (self.crash_at, self.fail_at, self.fail_sync_at) = (u64::MAX, u64::MAX, u64::MAX);
    }

    fn bytes_used(&self) -> u64 {
        let named = self.names.values().filter_map(|node| if let Node::File(id) = node { self.files.get(id) } else { None });
        named.map(|contents| contents.cache.len() as u64).sum()
    }

    fn room_for_name(&self) -> io::Result<()> {
        let has_room = self.name_bytes == 0 || self.capacity.saturating_sub(self.bytes_used()) >= self.name_bytes;
        if has_room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Counts a sync; an error if it is the one that fails.
    fn sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        let fails = self.syncs == self.fail_sync_at;
        died(self.operation()?)?;
        if fails { Err(io::Error::other("the sync failed")) } else { Ok(()) }
    }

    /// Takes a descriptor, for a file or for a directory that is to be synced.
    fn descriptor(&mut self) -> io::Result<()> {
        if self.descriptors >= self.descriptors_max {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()));
        }
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the machine is down")) } else { Ok(()) }
    }

    /// Counts a changing operation; true if the machine dies in it.
    fn operation(&mut self) -> io::Result<bool> {
        self.alive()?;
        self.operations += 1;
        if self.operations == self.fail_at {
            return Err(io::Error::other("the operation failed"));
        }
        self.dead = self.operations >= self.crash_at;
        Ok(self.dead)
    }

    fn file(&mut self, path: &Path) -> io::Result<&mut Contents> {
        match self.names.get(path) {
            Some(Node::File(id)) => Ok(self.files.get_mut(id).expect("a named file has contents")),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn require_dir(&self, dir: &Path) -> io::Result<()> {
        let found = is_root(dir) || matches!(self.names.get(dir), Some(Node::Dir));
        if found { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Makes a change to the names, unless the machine dies in it; then it may survive, but nobody sees it in this life.
    fn change(&mut self, change: Change) -> io::Result<()> {
        let dies = self.operation()?;
        if !dies {
            change.apply(&mut self.names);
        }
        self.unsynced_names.push(change);
        died(dies)
    }
}

impl Contents {
    fn lose(&mut self, keep: &mut dyn FnMut(Unsynced<'_>) -> bool) {
        let unsynced = std::mem::take(&mut self.unsynced);
        if !unsynced.is_empty() {
            let mut written = self.durable.clone();
            for (write, (offset, bytes)) in unsynced.iter().enumerate() {
                put(&mut written, *offset, bytes);
                let (first, end) = (*offset as usize / SECTOR, (*offset as usize + bytes.len()).div_ceil(SECTOR));
                for at in first..end {
                    if keep(Unsynced::Sector { write, sector: at - first, sectors: end - first }) {
                        let range = at * SECTOR..written.len().min((at + 1) * SECTOR);
                        put(&mut self.durable, range.start as u64, &written[range]);
                    }
                }
            }
        }
        self.cache.clone_from(&self.durable);
    }
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset as usize..end].copy_from_slice(bytes);
}

fn died(dies: bool) -> io::Result<()> {
    if dies { Err(io::Error::other("the machine went down")) } else { Ok(()) }
}

fn is_root(dir: &Path) -> bool {
    dir.as_os_str().is_empty() || dir == Path::new("/")
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        world.alive()?;
        world.require_dir(parent(path))?;
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.room_for_name()?;
        world.descriptor()?;
        let id = world.files_made;
        world.files_made += 1;
        world.files.insert(id, Contents::default());
        world.change(Change::Put(path.to_owned(), Node::File(id)))?;
        world.descriptors += 1;
        Ok(Box::new(SimFile { disk: self.clone(), id, life: world.life }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        world.alive()?;
        let Some(Node::File(id)) = world.names.get(path).copied() else { return Err(io::ErrorKind::NotFound.into()) };
        world.descriptor()?;
        world.descriptors += 1;
        Ok(Box::new(SimFile { disk: self.clone(), id, life: world.life }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let world = self.world();
        world.alive()?;
        world.require_dir(dir)?;
        Ok(world.names.keys().filter(|path| parent(path) == dir && !is_root(path)).cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        world.require_dir(parent(to))?;
        if !world.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.room_for_name()?;
        world.change(Change::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        world.file(path)?;
        world.change(Change::Remove(path.to_owned()))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        let missing: Vec<PathBuf> =
            dir.ancestors().filter(|d| !is_root(d) && !world.names.contains_key(*d)).map(Path::to_owned).collect();
        missing.into_iter().rev().try_for_each(|dir| world.change(Change::Put(dir, Node::Dir)))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        let world = &mut *world;
        world.alive()?;
        world.require_dir(dir)?;
        world.descriptor()?;
        world.sync()?;
        for change in std::mem::take(&mut world.unsynced_names) {
            if parent(change.path()) == dir {
                change.apply(&mut world.durable_names);
            } else {
                world.unsynced_names.push(change);
            }
        }
        Ok(())
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let world = self.world();
        world.alive()?;
        world.require_dir(dir)?;
        Ok(Space { free: world.capacity.saturating_sub(world.bytes_used()), total: world.capacity })
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
    life: u64,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut World, u64) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.disk.world();
        if world.life != self.life {
            return Err(io::Error::other("the process that opened this file is gone"));
        }
        world.alive()?;
        act(&mut world, self.id)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut world = self.disk.world();
        if world.life == self.life {
            world.descriptors -= 1;
        }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|world, id| Ok(world.files[&id].cache.len() as u64))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(|world, id| {
            let cache = &world.files[&id].cache;
            let range = offset as usize..offset as usize + buf.len();
            buf.copy_from_slice(cache.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|world, id| {
            let dies = world.operation()?;
            let free = if world.capacity == u64::MAX { u64::MAX } else { world.capacity.saturating_sub(world.bytes_used()) };
            let contents = world.files.get_mut(&id).expect("an open file of this life has contents");
            let fits = (contents.cache.len() as u64).saturating_add(free).saturating_sub(offset).min(bytes.len() as u64);
            let written = &bytes[..fits as usize];
            contents.unsynced.push((offset, written.to_vec()));
            if !dies {
                put(&mut contents.cache, offset, written);
            }
            world.written += fits;
            died(dies)?;
            if written.len() < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    /// A power loss during this leaves the old length; after it, the new one. There is none in between.
    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.with(|world, id| {
            let dies = world.operation()?;
            let contents = world.files.get_mut(&id).expect("an open file of this life has contents");
            let bytes = bytes as usize;
            if !dies {
                contents.cache.truncate(bytes);
                contents.durable.truncate(bytes);
                for (offset, written) in &mut contents.unsynced {
                    written.truncate(bytes.saturating_sub(*offset as usize));
                }
                contents.unsynced.retain(|(_, written)| !written.is_empty());
            }
            died(dies)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|world, id| {
            let done = world.sync();
            let is_dead = world.dead;
            let contents = world.files.get_mut(&id).expect("an open file of this life has contents");
            if done.is_err() && !is_dead {
                contents.unsynced.clear();
            }
            done?;
            for (offset, bytes) in std::mem::take(&mut contents.unsynced) {
                put(&mut contents.durable, offset, &bytes);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_takes_what_was_not_synced_and_nothing_else() {
        for seed in 0..200 {
            let disk = SimDisk::new();
            let dir = Path::new("/d");
            disk.create_dir(dir).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            let file = disk.create(&dir.join("a")).unwrap();
            disk.sync_dir(dir).unwrap();
            file.write_at(0, &[1; 2000]).unwrap();
            file.sync_data().unwrap();
            file.write_at(1000, &[2; 3000]).unwrap();
            disk.create(&dir.join("b")).unwrap();
            disk.power_loss(&mut Rng::new(seed));
            let bytes = disk.bytes_of(&dir.join("a")).unwrap();
            assert!(bytes.len() >= 2000 && bytes[..1000].iter().all(|b| *b == 1));
            for (at, sector) in bytes.chunks(SECTOR).enumerate().skip(2) {
                let alike = |s: &[u8]| s.iter().all(|b| *b == s[0]);
                assert!(at * SECTOR < 2000 || alike(sector), "sector {at} is torn");
            }
            assert!(file.len().is_err(), "a file of an earlier life is dead");
        }
    }

    #[test]
    fn unsynced_names_may_go_and_synced_ones_stay() {
        let (disk, dir) = (SimDisk::new(), Path::new("/d"));
        disk.create_dir(dir).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        disk.create(&dir.join("a")).unwrap();
        disk.sync_dir(dir).unwrap();
        disk.rename(&dir.join("a"), &dir.join("b")).unwrap();
        let lost = disk.fork();
        lost.lose_power(&mut |_| false);
        assert_eq!(lost.list(dir).unwrap(), [dir.join("a")]);
        disk.lose_power(&mut |_| true);
        assert_eq!(disk.list(dir).unwrap(), [dir.join("b")]);
    }

    #[test]
    fn a_sync_that_failed_leaves_clean_pages_that_are_not_on_the_disk() {
        let (disk, path) = (SimDisk::new(), Path::new("/a"));
        let file = disk.create(path).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_at(0, b"old").unwrap();
        file.sync_data().unwrap();
        file.write_at(0, b"new").unwrap();
        disk.fail_at(disk.operations() + 1);
        assert!(file.sync_data().is_err());
        disk.process_kill();
        let file = disk.open(path).unwrap();
        assert_eq!(disk.bytes_of(path).unwrap(), b"new", "the cache has it");
        file.sync_data().unwrap();
        let rewritten = disk.fork();
        disk.lose_power(&mut |_| true);
        assert_eq!(disk.bytes_of(path).unwrap(), b"old", "there was nothing left to sync");
        let file = rewritten.open(path).unwrap();
        file.write_at(0, b"new").unwrap();
        file.sync_data().unwrap();
        rewritten.lose_power(&mut |_| false);
        assert_eq!(rewritten.bytes_of(path).unwrap(), b"new");
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_overwrites_and_has_room_again_once_something_goes() {
        let disk = SimDisk::new();
        let file = disk.create(Path::new("/a")).unwrap();
        disk.set_capacity(1000);
        assert_eq!(file.write_at(0, &[1; 1500]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!((file.len().unwrap(), disk.bytes_used()), (1000, 1000));
        assert_eq!(disk.space(Path::new("/")).unwrap(), Space { free: 0, total: 1000 });
        file.write_at(0, &[2; 1000]).unwrap();
        file.sync_data().unwrap();
        let other = disk.create(Path::new("/b")).unwrap();
        assert!(crate::is_shortage(&other.write_at(0, &[3]).unwrap_err()));
        file.truncate(990).unwrap();
        other.write_at(0, &[3; 10]).unwrap();
        assert!(other.write_at(10, &[3]).is_err());
        disk.remove(Path::new("/a")).unwrap();
        other.write_at(10, &[3; 990]).unwrap();
    }

    #[test]
    fn names_may_need_room_as_well_and_removing_them_needs_none() {
        let disk = SimDisk::new();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        disk.create(a).unwrap().write_at(0, &[1; 100]).unwrap();
        disk.set_capacity(110);
        disk.set_name_bytes(11);
        for error in [disk.create(b).err(), disk.rename(a, b).err()] {
            assert!(crate::is_shortage(&error.unwrap()));
        }
        disk.remove(a).unwrap();
        disk.create(b).unwrap();
        disk.rename(b, a).unwrap();
    }

    #[test]
    fn descriptors_run_out_and_come_back() {
        let disk = SimDisk::new();
        disk.set_descriptors(1);
        let file = disk.create(Path::new("/a")).unwrap();
        for error in [disk.create(Path::new("/b")).err(), disk.open(Path::new("/a")).err(), disk.sync_dir(Path::new("/")).err()] {
            assert!(crate::is_out_of_descriptors(&error.unwrap()));
        }
        file.write_at(0, b"x").unwrap();
        drop(file);
        disk.sync_dir(Path::new("/")).unwrap();
        drop(disk.open(Path::new("/a")).unwrap());
        assert!(disk.open(Path::new("/a")).is_ok());
    }

    #[test]
    fn the_sync_that_is_to_fail_does_and_the_next_one_has_nothing_to_do() {
        let disk = SimDisk::new();
        let file = disk.create(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_at(0, b"x").unwrap();
        disk.fail_sync_at(disk.syncs() + 1);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        disk.lose_power(&mut |_| true);
        assert_eq!(disk.bytes_of(Path::new("/a")).unwrap(), b"");
    }

    #[test]
    fn a_crash_point_kills_the_machine_and_a_failure_one_operation() {
        let disk = SimDisk::new();
        let file = disk.create(Path::new("/a")).unwrap();
        disk.fail_at(2);
        assert!(file.write_at(0, b"x").is_err() && file.write_at(0, b"y").is_ok());
        disk.crash_at(4);
        assert!(file.sync_data().is_err() && file.sync_data().is_err() && disk.is_dead());
        disk.process_kill();
        assert_eq!(disk.bytes_of(Path::new("/a")).unwrap(), b"y");
    }
}
