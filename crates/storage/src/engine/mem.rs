//! The engine in memory, for simulation and tests: an ordered map with a durable point, which can lose power.
//!
//! Owns: versions of entries by commit, so that views stay as they were and a power loss can go back to any commit since the
//! last flush. Does not own: randomness; the seed comes from the caller. A connection made before a power loss or a restart is
//! dead: its commits and flushes fail, so that what is left of a dead node writes nothing. So is one after a flush that failed:
//! what it was to make durable is as a power loss leaves it, and nothing more is taken (rule C8).

use super::{Batch, Change, Engine, RawEntry, View, take_within};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

/// A connection to an engine in memory. Clones are the same connection.
#[derive(Clone)]
pub struct MemEngine {
    shared: Arc<Mutex<Shared>>,
    generation: u64,
}

#[derive(Default)]
struct Shared {
    /// Versions of each key, oldest first: the commit that wrote it, and the value or a delete.
    entries: BTreeMap<Vec<u8>, Versions>,
    /// The newest commit; never goes back, so that an old view's number means nothing new.
    commit: u64,
    /// Commits after `durable` that a power loss may go back to; those that one took back are missing.
    volatile: Vec<u64>,
    durable: u64,
    generation: u64,
    is_full: bool,
    flushes: u64,
    fail_flush_at: Option<u64>,
    /// A flush of this life has failed.
    has_failed: bool,
    /// How many views there are of each commit.
    views: BTreeMap<u64, usize>,
    /// Keys with a version that nobody can see once all views and the durable point are at this commit or later.
    garbage: VecDeque<(u64, Vec<u8>)>,
}

type Versions = Vec<(u64, Option<Arc<[u8]>>)>;

impl MemEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self { shared: Arc::default(), generation: 0 }
    }

    /// Cuts power and starts again: what was flushed is there, and of the later commits the first few, as many as the seed
    /// says. This connection and its clones are dead.
    pub fn power_loss(&self, seed: u64) -> Self {
        let mut shared = self.lock();
        let choices = shared.volatile.len() as u64 + 1;
        let kept = (seed % choices) as usize;
        let last = kept.checked_sub(1).map_or(shared.durable, |index| shared.volatile[index]);
        for versions in shared.entries.values_mut() {
            versions.retain(|(commit, _)| *commit <= last);
        }
        shared.entries.retain(|_, versions| !versions.is_empty());
        shared.volatile.truncate(kept);
        self.reconnect(shared)
    }

    /// Kills the process and starts it again: every commit is there, as durable as before. This connection and its clones
    /// are dead.
    pub fn restart(&self) -> Self {
        self.reconnect(self.lock())
    }

    /// Commits fail for want of room, or do not any more.
    pub fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// Flushes since the last restart.
    pub fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    /// Flush number `flush` (the first is 1) of this life fails, and with it the engine; a restart opens it anew.
    pub fn fail_flush_at(&self, flush: u64) {
        self.lock().fail_flush_at = Some(flush);
    }

    /// Commits that a power loss now might take back.
    pub fn volatile_commits(&self) -> usize {
        self.lock().volatile.len()
    }

    fn reconnect(&self, mut shared: MutexGuard<'_, Shared>) -> Self {
        shared.generation += 1;
        (shared.flushes, shared.fail_flush_at, shared.has_failed) = (0, None, false);
        Self { shared: self.shared.clone(), generation: shared.generation }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder panics")
    }

    fn live(&self) -> io::Result<MutexGuard<'_, Shared>> {
        let shared = self.lock();
        if shared.generation != self.generation {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the node that held this engine is dead"))
        } else if shared.has_failed {
            Err(io::Error::other("a flush has failed: nobody knows what is durable"))
        } else {
            Ok(shared)
        }
    }
}

impl Default for MemEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for MemEngine {
    fn view(&self) -> Arc<dyn View> {
        let mut shared = self.lock();
        let commit = shared.commit;
        *shared.views.entry(commit).or_default() += 1;
        Arc::new(MemView { shared: self.shared.clone(), commit })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        let mut shared = self.live()?;
        if shared.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        shared.commit += 1;
        let commit = shared.commit;
        let inside = &mut *shared;
        let write = |key: &[u8], change: Change<'_>| {
            let versions = match inside.entries.get_mut(key) {
                Some(versions) => versions,
                None => inside.entries.entry(key.to_vec()).or_default(),
            };
            let value = match change {
                Change::Insert(value) | Change::Put(value) => Some(value.into_bytes()),
                Change::Delete => None,
            };
            let is_delete = value.is_none();
            versions.push((commit, value));
            if versions.len() > 1 || is_delete {
                inside.garbage.push_back((commit, key.to_vec()));
            }
            Ok::<(), io::Error>(())
        };
        batch.each(write)?;
        shared.volatile.push(commit);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut shared = self.live()?;
        shared.flushes += 1;
        if shared.fail_flush_at == Some(shared.flushes) {
            shared.has_failed = true;
            return Err(io::Error::other("the flush failed"));
        }
        shared.durable = shared.volatile.last().copied().unwrap_or(shared.durable);
        shared.volatile.clear();
        shared.clear_garbage();
        Ok(())
    }
}

impl Shared {
    fn clear_garbage(&mut self) {
        let floor = self.views.first_key_value().map_or(self.durable, |(view, _)| self.durable.min(*view));
        while let Some((_, key)) = self.garbage.pop_front_if(|(commit, _)| *commit <= floor) {
            let Some(versions) = self.entries.get_mut(&key) else { continue };
            let kept = versions.partition_point(|(commit, _)| *commit <= floor).saturating_sub(1);
            versions.drain(..kept);
            if matches!(versions.as_slice(), [(commit, None)] if *commit <= floor) {
                self.entries.remove(&key);
            }
        }
    }
}

struct MemView {
    shared: Arc<Mutex<Shared>>,
    commit: u64,
}

impl MemView {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder panics")
    }

    fn value<'a>(&self, versions: &'a Versions) -> Option<&'a [u8]> {
        versions.iter().rfind(|(commit, _)| *commit <= self.commit)?.1.as_deref()
    }
}

impl View for MemView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().entries.get(key).and_then(|versions| self.value(versions)).map(<[u8]>::to_vec))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
        if to <= from {
            return Ok(Vec::new());
        }
        let shared = self.lock();
        let range = shared.entries.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let seen = range.filter_map(|(key, versions)| Some(Ok((key.clone(), self.value(versions)?.to_vec()))));
        take_within(seen, limit, bytes_max)
    }
}

impl Drop for MemView {
    fn drop(&mut self) {
        let mut shared = self.lock();
        let count = shared.views.get_mut(&self.commit).expect("counted when it was made");
        *count -= 1;
        if *count == 0 {
            shared.views.remove(&self.commit);
        }
    }
}
