//! The production engine: fjall, fed by ingestion, with bounds on cache and on what waits for compaction.
//!
//! Owns: the only use of the crate, its settings, and the translation of its errors. Does not own: when to flush.
//!
//! A batch is sorted, so it becomes a table file at once instead of passing through fjall's journal and memtable: half the bytes
//! written, no second log under ours, nothing to replay when opening. One version of the tree then names the file, which makes it
//! atomic and, since fjall syncs file and version, durable. One fjall keyspace holds all partitions; a partition's checkpoints
//! lie in one range of it.

#![allow(
    clippy::disallowed_methods,
    reason = "production half of the seam: it waits for fjall's compaction on the checkpointer's thread"
)]

use super::{Batch, Engine, RawEntry, View, take_within};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What may be set; the rest follows.
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Bytes for cached blocks of table files.
    pub cache_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20 }
    }
}

/// Threads that compact. fjall keeps one of several free for flushes, of which there are none, and that one spins.
const COMPACTION_THREADS: usize = 1;

/// Table files that nobody has compacted yet, from which on a commit waits.
const WAITING_TABLES_MAX: usize = 24;

/// Table files that nobody has compacted, from which on a commit fails: compaction does not come along, and each read looks at
/// all of them.
const WAITING_TABLES_FATAL: usize = 10 * WAITING_TABLES_MAX;

/// How often, and how many times, a commit looks whether compaction caught up. Bounded, as each commit causes a compaction.
const WAIT_STEP: Duration = Duration::from_millis(20);
const WAIT_STEPS_MAX: u32 = 100;

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
        let database =
            Database::builder(dir).cache_size(options.cache_bytes).worker_threads(COMPACTION_THREADS).open().map_err(io_error)?;
        let keyspace = database.keyspace(KEYSPACE, KeyspaceCreateOptions::default).map_err(io_error)?;
        Ok(Self { database, keyspace })
    }

    fn wait_for_compaction(&self) -> io::Result<()> {
        for _ in 0..WAIT_STEPS_MAX {
            if self.keyspace.l0_table_count() < WAITING_TABLES_MAX || self.is_poisoned() {
                break;
            }
            thread::sleep(WAIT_STEP);
        }
        let waiting = self.keyspace.l0_table_count();
        if waiting < WAITING_TABLES_FATAL {
            Ok(())
        } else {
            Err(io::Error::other(format!(
                "{waiting} table files wait for compaction, which does not come along; restart the server"
            )))
        }
    }

    /// An error ends fjall's only compaction thread. fjall notes it, but ingestion goes on without looking, and reads get slower with
    /// each table file. Its note can be read by asking its journal, which is empty, to be handed to the system.
    fn is_poisoned(&self) -> bool {
        matches!(self.database.persist(PersistMode::Buffer), Err(fjall::Error::Poisoned))
    }
}

impl Engine for FjallEngine {
    fn view(&self) -> Arc<dyn View> {
        Arc::new(FjallView { snapshot: self.database.snapshot(), keyspace: self.keyspace.clone() })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        self.wait_for_compaction()?;
        let mut writes = self.keyspace.start_ingestion().map_err(io_error)?;
        for (key, value) in batch.iter() {
            match value {
                Some(value) => writes.write(key, value),
                None => writes.write_tombstone(key),
            }
            .map_err(io_error)?;
        }
        writes.finish().map_err(io_error)
    }

    fn flush(&self) -> io::Result<()> {
        // A commit is durable when it returns.
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        self.is_poisoned().then(|| {
            "compaction of the tables has failed, and is not tried again before the server is restarted; until then they grow and \
             get slower"
                .to_owned()
        })
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

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
        if to <= from {
            return Ok(Vec::new());
        }
        let entries = self.snapshot.range(&self.keyspace, from..to);
        let entries =
            entries.map(|entry| entry.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(io_error));
        take_within(entries, limit, bytes_max)
    }
}

fn io_error(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error,
        fjall::Error::Locked => io::Error::new(io::ErrorKind::ResourceBusy, "another process has the tables open"),
        other => io::Error::other(other),
    }
}
