//! The seam to the embedded key-value engine: atomic sorted batches in, consistent views out, durability asked for by name.
//!
//! Owns: the two traits and the batch. Does not own: layers, tables or LSNs; an engine sees bytes. Everything is synchronous:
//! waiting belongs to whoever drives the checkpoint.

#[cfg(feature = "fjall")]
pub(crate) mod fjall;
pub(crate) mod mem;

use std::io;
use std::sync::Arc;

/// An ordered key-value store, shared by all partitions of a node.
pub trait Engine: Send + Sync {
    /// Everything committed so far, and nothing of what is committed later.
    fn view(&self) -> Arc<dyn View>;

    /// Applies a batch: all of it or nothing, in views as well as after a crash. Not durable until [`Engine::flush`]; after a
    /// power failure what is left is the result of the first n commits, for some n no less than what was flushed.
    /// **Errors** (rule C8): of a kind that passes ([`crate::Failure::Passing`]): nothing was applied, nothing is left of it, and it may be
    /// tried again; else nobody knows what a power failure would leave, the engine takes nothing more, and the process has to end.
    fn commit(&self, batch: &Batch) -> io::Result<()>;

    /// Makes everything committed before this call durable. **Errors**: as for [`Engine::commit`].
    fn flush(&self) -> io::Result<()>;

    /// What is wrong with the engine although it goes on for now: a person must look.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// One state of an engine. Held views hold back the clearing away of what was overwritten since: renew or drop them.
pub trait View: Send + Sync {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// At most `limit` entries with `from <= key < to`, in key order; no more after the one that makes them `bytes_max` or more.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>>;
}

/// The first entries of an ordered run, within both bounds of [`View::scan`].
fn take_within(entries: impl Iterator<Item = io::Result<RawEntry>>, limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for entry in entries.take(limit) {
        let (key, value) = entry?;
        bytes += key.len() + value.len();
        taken.push((key, value));
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(taken)
}

/// A key and its value.
pub type RawEntry = (Vec<u8>, Vec<u8>);

/// Puts and deletes in ascending order of distinct keys, in one allocation.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    operations: Vec<Operation>,
}

/// Where an operation's parts end in [`Batch::bytes`]; it begins where the one before ends.
struct Operation {
    key_end: usize,
    end: usize,
    is_put: bool,
}

impl Batch {
    /// A batch with room for that many operations and bytes.
    pub fn with_capacity(operations: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), operations: Vec::with_capacity(operations) }
    }

    /// Adds a put; the functions append key and value. **Panics** unless the key is greater than the one before.
    pub fn put(&mut self, key: impl FnOnce(&mut Vec<u8>), value: impl FnOnce(&mut Vec<u8>)) {
        key(&mut self.bytes);
        let key_end = self.bytes.len();
        value(&mut self.bytes);
        self.push(key_end, true);
    }

    /// Adds a delete; the function appends the key. **Panics** unless the key is greater than the one before.
    pub fn delete(&mut self, key: impl FnOnce(&mut Vec<u8>)) {
        key(&mut self.bytes);
        self.push(self.bytes.len(), false);
    }

    fn push(&mut self, key_end: usize, is_put: bool) {
        let start = self.operations.last().map_or(0, |last| last.end);
        if let Some(before) = self.operations.len().checked_sub(1) {
            assert!(*self.key(before) < self.bytes[start..key_end], "a batch ascends");
        }
        self.operations.push(Operation { key_end, end: self.bytes.len(), is_put });
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.operations[before].end)
    }

    fn key(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.operations[index].key_end]
    }

    /// The operations in order: a key, and its value or `None` for a delete.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.operations.iter().enumerate().map(|(index, operation)| {
            let value = operation.is_put.then(|| &self.bytes[operation.key_end..operation.end]);
            (self.key(index), value)
        })
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}
