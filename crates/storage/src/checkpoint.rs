//! Writing frozen layers to the engine, on a thread of its own.
//!
//! Owns: one atomic batch of the layers' entries and the applied LSN (rule C1), its commit and its flush, cut into steps of at
//! most one blocking operation. Does not own: when to take a checkpoint, and what follows (`partition`, [`crate::Store`]).

use crate::codec;
use crate::engine::{Batch, Engine, View};
use crate::keys;
use crate::layer::{Layer, Merged};
use crate::store::Mutant;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use surefoot_env::is_shortage;
use surefoot_machine::{Family, Table, TableSet, Visit};
use surefoot_model::{Lsn, PartitionId, encoding};

/// A value of so many bytes in memory is written down when the engine takes it, and not before.
const LARGE_BYTES: usize = 16 << 10;
/// What is set aside for a batch at first: much of what the layers hold may be large values.
const FIRST_BYTES_MAX: usize = 4 << 20;

/// The work of one checkpoint. Given up midway it may have been committed or not; the store then must not go on.
pub struct Checkpoint {
    engine: Arc<dyn Engine>,
    partition: PartitionId,
    /// Oldest first.
    layers: Vec<Arc<Layer>>,
    applied: Lsn,
    mutant: Mutant,
    next: Next,
    operations: usize,
    bytes: usize,
}

enum Next {
    Encode,
    /// Batches to commit, last one first. Without a mutant there is one.
    Commit(Vec<Batch>),
    Flush,
}

/// What an error of [`Checkpoint::step`] asks for (rule C8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A want of room or descriptors, or compaction that does not come along: nothing has changed, and the same step may be tried
    /// again.
    Passing,
    /// What is to be written cannot be stored: this partition stops (rule C5).
    Partition,
    /// Nobody knows what is durable: the process ends, the log has everything.
    Engine,
}

impl Failure {
    pub fn of(error: &io::Error) -> Self {
        if is_shortage(error) || error.kind() == io::ErrorKind::ResourceBusy {
            Self::Passing
        } else if error.kind() == io::ErrorKind::InvalidInput {
            Self::Partition
        } else {
            Self::Engine
        }
    }
}

/// A checkpoint that is durable, for [`crate::Store::checkpointed`].
pub struct Checkpointed {
    pub(crate) partition: PartitionId,
    pub(crate) applied: Lsn,
    pub(crate) view: Arc<dyn View>,
    /// Entries written and deleted, the applied LSN's included.
    pub operations: usize,
    /// Bytes of their keys and values, large values left out.
    pub bytes: usize,
}

impl Checkpoint {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        partition: PartitionId,
        layers: Vec<Arc<Layer>>,
        applied: Lsn,
        mutant: Mutant,
    ) -> Self {
        Self { engine, partition, layers, applied, mutant, next: Next::Encode, operations: 0, bytes: 0 }
    }

    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The last record that the checkpoint covers.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Bytes of what is encoded and not yet committed; large values are not encoded before.
    pub fn batch_bytes(&self) -> usize {
        match &self.next {
            Next::Commit(batches) => batches.iter().map(Batch::bytes).sum(),
            Next::Encode | Next::Flush => 0,
        }
    }

    /// What is wrong with the engine although it goes on for now ([`Engine::trouble`]).
    pub fn engine_trouble(&self) -> Option<String> {
        self.engine.trouble()
    }

    /// Does one piece of the work: encodes, commits, or flushes. `Some` ends it. **Errors**: [`Failure::of`] says what follows. A key that
    /// exceeds [`keys::KEY_BYTES_MAX`] is its partition's fault.
    pub fn step(&mut self) -> io::Result<Option<Checkpointed>> {
        match &mut self.next {
            Next::Encode => {
                let batches = self.encode()?;
                self.operations = batches.iter().map(Batch::len).sum();
                self.bytes = batches.iter().map(Batch::bytes).sum();
                self.next = Next::Commit(batches);
            }
            Next::Commit(batches) => {
                self.engine.commit(batches.last().expect("none is left only with the last step"))?;
                batches.pop();
                if batches.is_empty() {
                    self.next = Next::Flush;
                }
            }
            Next::Flush => {
                if self.mutant != Mutant::SkipFlush {
                    let flushed = self.engine.flush();
                    if self.mutant != Mutant::IgnoreFailedFlush {
                        flushed?;
                    }
                }
                return Ok(Some(Checkpointed {
                    partition: self.partition,
                    applied: self.applied,
                    view: self.engine.view(),
                    operations: self.operations,
                    bytes: self.bytes,
                }));
            }
        }
        Ok(None)
    }

    /// Does all of the work at once. **Errors** as for [`Checkpoint::step`].
    pub fn run(mut self) -> io::Result<Checkpointed> {
        loop {
            if let Some(done) = self.step()? {
                return Ok(done);
            }
        }
    }
}

impl Checkpoint {
    fn encode(&self) -> io::Result<Vec<Batch>> {
        // At rest an entry takes about a quarter of what it takes in memory.
        let (slots, bytes) = self.layers.iter().fold((1, 0), |(slots, bytes), l| (slots + l.slots, bytes + l.bytes));
        let mut batch = Batch::with_capacity(slots, (bytes / 4).min(FIRST_BYTES_MAX));
        batch.put(
            |key| key.extend_from_slice(&keys::applied(self.partition)),
            |value| encoding::encode_into(&self.applied, value),
        );
        let mut batches = Vec::new();
        if self.mutant == Mutant::SplitCheckpoint {
            batches.push(std::mem::take(&mut batch));
        }
        let mut encode = Encode { partition: self.partition, layers: &self.layers, batch, longest_key: 0 };
        TableSet::<Tables>::default().visit(&mut encode);
        if encode.longest_key > keys::KEY_BYTES_MAX {
            let message = format!("a key of {} bytes; at most {} can be stored", encode.longest_key, keys::KEY_BYTES_MAX);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        batches.insert(0, encode.batch);
        Ok(batches)
    }
}

/// Visits the tables of layers that are shared, and so cannot be visited themselves.
struct Tables;

impl Family for Tables {
    type Of<T: Table> = ();
}

struct Encode<'a> {
    partition: PartitionId,
    layers: &'a [Arc<Layer>],
    batch: Batch,
    longest_key: usize,
}

impl Visit<Tables> for Encode<'_> {
    fn visit<T: Table>(&mut self, (): &mut ()) {
        let codec = codec::of::<T>();
        let prefix = keys::prefix(self.partition, T::TAG);
        let newest_first = self.layers.iter().rev().map(|layer| &**layer);
        for slot in Merged::<T>::new(newest_first, Bound::Unbounded, Bound::Unbounded) {
            let longest = &mut self.longest_key;
            let write_key = |out: &mut Vec<u8>| {
                let start = out.len();
                out.extend_from_slice(&prefix);
                (codec.write_key)(slot.key, out);
                *longest = (*longest).max(out.len() - start);
            };
            match slot.value {
                // A copy of what is large would take as much memory again as all layers; a clone of it shares it.
                Some(value) if (codec.value_heap_bytes)(value) >= LARGE_BYTES => {
                    let value = value.clone();
                    self.batch.put_later(write_key, move |take| encoding::encode_pieces(&value, take));
                }
                Some(value) => self.batch.put(write_key, |out| encoding::encode_into(value, out)),
                // Created and deleted in two layers that a view kept from being folded into one.
                None if slot.absent_below => continue,
                None => self.batch.delete(write_key),
            }
            if slot.absent_below {
                self.batch.over_nothing();
            }
        }
    }
}
