//! The seam to the embedded key-value engine: atomic sorted batches in, consistent views out, durability asked for by name.
//!
//! Owns: the two traits and the batch. Does not own: layers, tables or LSNs; an engine sees bytes. Everything is synchronous:
//! waiting belongs to whoever drives the checkpoint.

#[cfg(feature = "fjall")]
pub(crate) mod fjall;
#[cfg(feature = "fjall")]
pub(crate) mod inspect;
pub(crate) mod mem;
#[cfg(feature = "fjall")]
mod values;

use std::io;
use std::sync::Arc;
use surefoot_env::FileCopy;

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

    /// Whether room on the disk is short: then giving back what was deleted goes before sparing the disk work.
    fn set_short(&self, _is_short: bool) {}

    /// The files that make up what is durable now: all commits up to some instant within this call, whole. They stay as they are, and take
    /// their room, until the value is dropped; commits go on meanwhile (rule C6). **Errors**: an engine without files
    /// (`Unsupported`), or one that has failed.
    fn files(&self) -> io::Result<EngineFiles> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "these tables lie in memory: there are no files to copy"))
    }

    /// Bytes that would have to be free before anything that was deleted gives its room back, where no step of that has fitted into what is
    /// free for a while.
    fn lacks_room(&self) -> Option<u64> {
        None
    }

    /// What is wrong with the engine although it goes on for now: a person must look.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// One durable state of an engine as files, each to be copied to its name below another directory.
pub struct EngineFiles {
    pub files: Vec<FileCopy>,
    /// What keeps them from being removed.
    _held: Box<dyn Send>,
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

/// Inserts, puts and deletes in ascending order of distinct keys. Keys and values lie in one allocation, but for values that are written down
/// only when they are wanted: what is large would lie in memory twice, and is shared where it is.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    operations: Vec<Operation>,
}

/// One of them. Its key begins in [`Batch::bytes`] where the operation before ends.
struct Operation {
    key_end: usize,
    end: usize,
    value: Value,
    /// Nothing is there before.
    is_new: bool,
}

/// Gives away a value in pieces.
type Write = dyn Fn(&mut dyn FnMut(&[u8])) + Send + Sync;

enum Value {
    /// A delete.
    None,
    /// From the end of the key to that of the operation.
    Here,
    Later(Box<Write>),
}

/// What a batch does to a key.
pub enum Change<'a> {
    /// A put where nothing is: what there may be of an older value need not be looked for.
    Insert(Given<'a>),
    Put(Given<'a>),
    Delete,
}

/// A value, as it is taken from a batch.
pub enum Given<'a> {
    Bytes(&'a [u8]),
    /// It is in memory elsewhere, in a form of its own: whoever takes it makes the only copy.
    Pieces(Pieces<'a>),
}

impl Given<'_> {
    /// A copy of it.
    pub fn into_bytes(self) -> Arc<[u8]> {
        match self {
            Self::Bytes(bytes) => bytes.into(),
            Self::Pieces(pieces) => {
                let mut bytes = Vec::with_capacity(pieces.bytes());
                (pieces.value)(&mut |piece| bytes.extend_from_slice(piece));
                bytes.into()
            }
        }
    }
}

/// A large value, to be read once.
pub struct Pieces<'a> {
    value: &'a Write,
    /// So much of it has been read.
    at: usize,
}

impl Pieces<'_> {
    /// Its bytes in all.
    pub fn bytes(&self) -> usize {
        let mut bytes = 0;
        (self.value)(&mut |piece| bytes += piece.len());
        bytes
    }
}

// As often as its reader asks; one that takes it whole asks once.
impl io::Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let (mut skipped, mut filled) = (0, 0);
        (self.value)(&mut |piece| {
            let skip = piece.len().min(self.at - skipped);
            skipped += skip;
            let piece = &piece[skip..];
            let taken = piece.len().min(out.len() - filled);
            out[filled..filled + taken].copy_from_slice(&piece[..taken]);
            filled += taken;
        });
        self.at += filled;
        Ok(filled)
    }
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
        self.push(key_end, Value::Here);
    }

    /// The same for a large value, which is given in pieces each time that the batch is read. **Panics** as [`Self::put`].
    pub fn put_later(&mut self, key: impl FnOnce(&mut Vec<u8>), value: impl Fn(&mut dyn FnMut(&[u8])) + Send + Sync + 'static) {
        key(&mut self.bytes);
        self.push(self.bytes.len(), Value::Later(Box::new(value)));
    }

    /// The put that was added last is an insert: its caller knows that nothing is there before. **Panics** unless it was a put.
    pub fn over_nothing(&mut self) {
        let last = self.operations.last_mut().filter(|last| !matches!(last.value, Value::None));
        last.expect("a put was added").is_new = true;
    }

    /// Adds a delete; the function appends the key. **Panics** unless the key is greater than the one before.
    pub fn delete(&mut self, key: impl FnOnce(&mut Vec<u8>)) {
        key(&mut self.bytes);
        self.push(self.bytes.len(), Value::None);
    }

    fn push(&mut self, key_end: usize, value: Value) {
        let start = self.operations.last().map_or(0, |last| last.end);
        if let Some(before) = self.operations.len().checked_sub(1) {
            assert!(*self.key(before) < self.bytes[start..key_end], "a batch ascends");
        }
        self.operations.push(Operation { key_end, end: self.bytes.len(), value, is_new: false });
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.operations[before].end)
    }

    fn key(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.operations[index].key_end]
    }

    /// Takes the operations in order. **Errors**: the first that `take` returns, and nothing is taken after it.
    pub fn each<E>(&self, mut take: impl FnMut(&[u8], Change<'_>) -> Result<(), E>) -> Result<(), E> {
        for (index, operation) in self.operations.iter().enumerate() {
            let given = match &operation.value {
                Value::None => None,
                Value::Here => Some(Given::Bytes(&self.bytes[operation.key_end..operation.end])),
                Value::Later(value) => Some(Given::Pieces(Pieces { value: &**value, at: 0 })),
            };
            let change = match given {
                None => Change::Delete,
                Some(given) if operation.is_new => Change::Insert(given),
                Some(given) => Change::Put(given),
            };
            take(self.key(index), change)?;
        }
        Ok(())
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Bytes that keys and values take in the batch, those left out that are written down later.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}
