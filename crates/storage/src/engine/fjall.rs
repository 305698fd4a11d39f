//! The production engine: fjall, with bounds on memory, journal and cache.
//!
//! Owns: the only use of the crate, its settings, and the translation of its errors. Does not own: when to flush. One fjall
//! keyspace holds all partitions; since they check-point in turn, each flushed table file holds one partition's range.

use super::{Batch, Engine, RawEntry, View};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What may be set; the rest follows.
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Bytes for cached blocks of table files.
    pub cache_bytes: u64,
    /// Bytes of a memtable at which it is written out before its checkpoint ends. A checkpoint's batch lies there whole.
    pub memtable_bytes: u64,
    /// Threads that write out memtables and compact.
    pub worker_threads: usize,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, memtable_bytes: 16 << 20, worker_threads: 2 }
    }
}

/// Bytes of journal at which the oldest file is written out and removed; fjall's least. It bounds what opening replays.
const JOURNAL_BYTES: u64 = 64 << 20;

const KEYSPACE: &str = "tables";

/// A fjall database.
pub struct FjallEngine {
    database: Database,
    keyspace: Keyspace,
}

impl FjallEngine {
    /// Opens the database in a directory of its own, creating it where there is none. **Errors**: another process has it open
    /// (`ResourceBusy`), or it cannot be read.
    pub fn open(dir: &Path, options: FjallOptions) -> io::Result<Self> {
        let database = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(options.worker_threads)
            .open()
            .map_err(io_error)?;
        let keyspace = database
            .keyspace(KEYSPACE, || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes))
            .map_err(io_error)?;
        Ok(Self { database, keyspace })
    }
}

impl Engine for FjallEngine {
    fn view(&self) -> Arc<dyn View> {
        Arc::new(FjallView { snapshot: self.database.snapshot(), keyspace: self.keyspace.clone() })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        let mut writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for (key, value) in batch.iter() {
            match value {
                Some(value) => writes.insert(&self.keyspace, key, value),
                None => writes.remove(&self.keyspace, key),
            }
        }
        // Handed to the operating system, so that a killed process loses nothing; durable with the next flush.
        writes.durability(Some(PersistMode::Buffer)).commit().map_err(io_error)
    }

    fn flush(&self) -> io::Result<()> {
        self.database.persist(PersistMode::SyncAll).map_err(io_error)?;
        // Written out in the background: it frees memory, keeps tombstones out of the way of scans and opening short.
        // Durability does not wait for it, the journal is synced.
        self.keyspace.rotate_memtable().map_err(io_error)?;
        Ok(())
    }
}

struct FjallView {
    snapshot: Snapshot,
    keyspace: Keyspace,
}

impl View for FjallView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let value = self.snapshot.get(&self.keyspace, key).map_err(io_error)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> io::Result<Vec<RawEntry>> {
        if to <= from {
            return Ok(Vec::new());
        }
        let entries = self.snapshot.range(&self.keyspace, from..to).take(limit);
        entries.map(|entry| entry.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(io_error)).collect()
    }
}

fn io_error(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) => error,
        fjall::Error::Locked => io::Error::new(io::ErrorKind::ResourceBusy, "another process has the tables open"),
        other => io::Error::other(other),
    }
}
