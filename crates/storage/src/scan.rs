//! Layers in memory and the engine's view, read as one.
//!
//! Owns: point reads, reads of known keys and ordered scans across layers, newest first, a deletion hiding what lies below; and
//! what an entry that does not decode is called. Does not own: which layers there are (`store`).
//!
//! A scan has to ask the engine even where all entries lie in memory, since it cannot know; that costs far more than they do.
//! Whoever knows the keys (a journal's indexes, a queue's numbers, names that a row lists) reads them as [`Known`].

use crate::codec;
use crate::engine::{RawEntry, View};
use crate::keys;
use crate::layer::{Layer, Merged, MergedSlot, Slot};
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::vec;
use surefoot_machine::{Family, StateError, Table, TableSet, Visit};
use surefoot_model::{PartitionId, encoding};

/// Everything below the overlay.
#[derive(Clone, Copy)]
pub(crate) struct Layers<'a> {
    pub(crate) partition: PartitionId,
    /// The layer that is written; none in a published view.
    pub(crate) active: Option<&'a Layer>,
    /// Layers that do not change any more, oldest first.
    pub(crate) below: &'a [Arc<Layer>],
    pub(crate) view: &'a dyn View,
}

/// An entry as its table types it.
pub(crate) type Typed<T> = (<T as Table>::Key, <T as Table>::Value);

/// The slots of one table that lie above the layers: those of the record being applied.
type Above<'a, T> = &'a [(<T as Table>::Key, Slot<<T as Table>::Value>)];

impl<'a> Layers<'a> {
    pub(crate) fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        match self.slot::<T>(key) {
            Some(slot) => Ok(slot.value.clone()),
            None => Ok(self.stored::<T>(key)?.map(|(value, _)| value)),
        }
    }

    /// What memory says about an entry; `None` where it says nothing.
    fn slot<T: Table>(&self, key: &T::Key) -> Option<&'a Slot<T::Value>> {
        self.newest_first().find_map(|layer| layer.get::<T>(key))
    }

    fn newest_first(&self) -> impl Iterator<Item = &'a Layer> + use<'a> {
        self.active.into_iter().chain(self.below.iter().rev().map(|layer| &**layer))
    }

    /// What the engine has, and its bytes.
    fn stored<T: Table>(&self, key: &T::Key) -> Result<Option<(T::Value, usize)>, StateError> {
        match self.view.get(&keys::entry::<T>(self.partition, key)).map_err(|e| unreadable::<T>(&e))? {
            Some(bytes) => {
                let len = bytes.len();
                Ok(Some((decode::<T>(key, bytes)?, len)))
            }
            None => Ok(None),
        }
    }

    /// The entries with `from <= key < to`, of which there are `count`, in key order; `None` where memory does not hold them all.
    pub(crate) fn in_memory<T: Table>(
        &self,
        above: Above<'a, T>,
        from: &T::Key,
        to: &T::Key,
        count: usize,
    ) -> Option<Vec<Typed<T>>> {
        let mut rows = Vec::with_capacity(count);
        if count == 0 || to <= from {
            return (count == 0).then_some(rows);
        }
        let above = within::<T>(above, from, Some(to));
        let merged = Merged::<T>::new(self.newest_first(), Bound::Included(from), Bound::Excluded(to)).below(above);
        for slot in merged {
            if let Some(value) = slot.value {
                rows.push((slot.key.clone(), value.clone()));
                if rows.len() == count {
                    return Some(rows);
                }
            }
        }
        None
    }

    /// Every entry of every table, in the order of tables and keys.
    pub(crate) fn rows(&self) -> Result<Vec<Row>, StateError> {
        let mut all = AllRows { layers: *self, rows: Vec::new(), error: None };
        TableSet::<Nothing>::default().visit(&mut all);
        all.error.map_or(Ok(all.rows), Err)
    }

    fn all<T: Table>(&self) -> Result<BTreeMap<T::Key, T::Value>, StateError> {
        let (from, to) = (keys::prefix(self.partition, T::TAG), keys::prefix(self.partition, T::TAG + 1));
        let mut entries = BTreeMap::new();
        for (key, value) in self.view.scan(&from, &to, usize::MAX, usize::MAX).map_err(|e| unreadable::<T>(&e))? {
            let key = keys::read_entry::<T>(&key)?;
            let value = decode::<T>(&key, value)?;
            entries.insert(key, value);
        }
        for MergedSlot { key, value, .. } in Merged::<T>::new(self.newest_first(), Bound::Unbounded, Bound::Unbounded) {
            match value {
                Some(value) => entries.insert(key.clone(), value.clone()),
                None => entries.remove(key),
            };
        }
        Ok(entries)
    }

    /// The first entries with `from <= key < to`, in key order, as far as the limit lets them.
    pub(crate) fn scan<T: Table>(
        &self,
        above: Above<'a, T>,
        from: &T::Key,
        to: Option<&T::Key>,
        limit: Limit,
    ) -> Result<Piece<T>, StateError> {
        let mut piece = Piece { rows: Vec::new(), is_last: true, goes_on_at: None };
        if to.is_some_and(|to| to <= from) {
            return Ok(piece);
        }
        let above = within::<T>(above, from, to);
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut in_memory = Merged::<T>::new(self.newest_first(), Bound::Included(from), end).below(above);
        let mut stored = Stored::<T>::new(self, from, to, limit.rows);

        let (mut bytes, mut looks) = (0, 0);
        loop {
            if looks >= limit.looks {
                let (above, below) = (in_memory.peek(), stored.peek()?);
                piece.goes_on_at = above.into_iter().chain(below).min().cloned();
                piece.is_last = piece.goes_on_at.is_none();
                return Ok(piece);
            }
            looks += 1;
            if piece.rows.len() >= limit.rows || bytes >= limit.bytes {
                piece.is_last = false;
                return Ok(piece);
            }
            let Some(key) = in_memory.peek() else {
                let Some((entry, entry_bytes)) = stored.next()? else { return Ok(piece) };
                bytes += entry_bytes;
                piece.rows.push(entry);
                continue;
            };
            if stored.peek()?.is_some_and(|below| below < key) {
                if let Some((entry, entry_bytes)) = stored.next()? {
                    bytes += entry_bytes;
                    piece.rows.push(entry);
                }
                continue;
            }
            stored.skip(key)?;
            if let Some(MergedSlot { value: Some(value), .. }) = in_memory.next() {
                bytes += size_of::<T::Value>() + (codec::of::<T>().value_heap_bytes)(value);
                piece.rows.push((key.clone(), value.clone()));
            }
        }
    }
}

fn within<'a, T: Table>(above: Above<'a, T>, from: &T::Key, to: Option<&T::Key>) -> Above<'a, T> {
    let above = &above[above.partition_point(|(key, _)| key < from)..];
    &above[..to.map_or(above.len(), |to| above.partition_point(|(key, _)| key < to))]
}

/// One entry of a table, as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub table: &'static str,
    pub key: String,
    pub value: String,
}

/// Reads every table to its end.
struct AllRows<'a> {
    layers: Layers<'a>,
    rows: Vec<Row>,
    error: Option<StateError>,
}

struct Nothing;

impl Family for Nothing {
    type Of<T: Table> = ();
}

impl Visit<Nothing> for AllRows<'_> {
    fn visit<T: Table>(&mut self, (): &mut ()) {
        match self.layers.all::<T>() {
            Ok(entries) => self.rows.extend(entries.into_iter().map(|(key, value)| Row {
                table: T::NAME,
                key: format!("{key:?}"),
                value: format!("{value:?}"),
            })),
            Err(error) => self.error = Some(error),
        }
    }
}

/// How much of a scan to give at once.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub rows: usize,
    /// Bytes of entries, roughly, beyond which no further one is added.
    pub bytes: usize,
    /// Keys that are looked at in memory and in the engine, those of deleted entries among them. What the engine skips by itself is
    /// not seen.
    pub looks: usize,
}

/// A piece of a scan.
#[derive(Debug)]
pub struct Piece<T: Table> {
    pub rows: Vec<Typed<T>>,
    /// The scan has come to its end; else it goes on behind the last row, or as `goes_on_at` says.
    pub is_last: bool,
    /// Where it goes on once it has looked at as many keys as it may.
    pub goes_on_at: Option<T::Key>,
}

/// Entries of ascending keys that the caller knows, one by one: `None` for one that is not there. The engine is asked for those
/// that memory does not know, the first few one at a time, then all that follow in one go.
pub struct Known<'a, T: Table, K> {
    layers: Layers<'a>,
    keys: K,
    to: T::Key,
    engine_reads: usize,
    engine_reads_max: usize,
    engine_bytes: usize,
    stored: Option<Stored<'a, T>>,
}

/// A range of the engine costs about as much as so many of its entries one at a time.
const POINT_READS_MAX: usize = 4;

impl<'a, T: Table, K> Known<'a, T, K> {
    /// `to` is greater than every key.
    pub(crate) fn new(layers: Layers<'a>, keys: K, to: T::Key) -> Self {
        Self { layers, keys, to, engine_reads: 0, engine_reads_max: usize::MAX, engine_bytes: 0, stored: None }
    }

    /// Ends before the engine would be asked once more.
    pub fn asking_at_most(self, engine_reads_max: usize) -> Self {
        Self { engine_reads_max, ..self }
    }

    /// Bytes of what the engine gave so far.
    pub fn engine_bytes(&self) -> usize {
        self.engine_bytes
    }

    fn stored(&mut self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        self.engine_reads += 1;
        if self.engine_reads <= POINT_READS_MAX {
            let found = self.layers.stored::<T>(key)?;
            self.engine_bytes += found.as_ref().map_or(0, |(_, bytes)| *bytes);
            return Ok(found.map(|(value, _)| value));
        }
        let stored = self.stored.get_or_insert_with(|| Stored::new(&self.layers, key, Some(&self.to), CHUNK));
        while stored.peek()?.is_some_and(|at| at < key) {
            stored.next = None;
        }
        if stored.peek()? != Some(key) {
            return Ok(None);
        }
        let found = stored.next()?;
        self.engine_bytes += found.as_ref().map_or(0, |(_, bytes)| *bytes);
        Ok(found.map(|((_, value), _)| value))
    }
}

impl<T: Table, K: Iterator<Item = T::Key>> Iterator for Known<'_, T, K> {
    type Item = Result<(T::Key, Option<T::Value>), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.keys.next()?;
        let value = match self.layers.slot::<T>(&key) {
            Some(slot) => Ok(slot.value.clone()),
            None if self.engine_reads == self.engine_reads_max => return None,
            None => self.stored(&key),
        };
        Some(value.map(|value| (key, value)))
    }
}

/// Entries asked of the engine at once. Few at first are enough for a scan whose layers in memory hide nothing.
const CHUNK: usize = 128;
/// Bytes of them beyond which no further one is read.
const CHUNK_BYTES: usize = 256 << 10;

/// A table's entries in the engine, read in chunks; keys are decoded, values as they are taken.
struct Stored<'a, T: Table> {
    view: &'a dyn View,
    /// Where the next chunk begins; `None` once there is no more.
    from: Option<Vec<u8>>,
    to: Vec<u8>,
    chunk: usize,
    entries: vec::IntoIter<RawEntry>,
    next: Option<(T::Key, Vec<u8>)>,
}

impl<'a, T: Table> Stored<'a, T> {
    fn new(layers: &Layers<'a>, from: &T::Key, to: Option<&T::Key>, limit: usize) -> Self {
        let to = match to {
            Some(to) => keys::entry::<T>(layers.partition, to),
            None => keys::prefix(layers.partition, T::TAG + 1).to_vec(),
        };
        Self {
            view: layers.view,
            from: Some(keys::entry::<T>(layers.partition, from)),
            to,
            chunk: limit.min(CHUNK),
            entries: Vec::new().into_iter(),
            next: None,
        }
    }

    fn peek(&mut self) -> Result<Option<&T::Key>, StateError> {
        self.fill()?;
        Ok(self.next.as_ref().map(|(key, _)| key))
    }

    /// An entry and its bytes.
    fn next(&mut self) -> Result<Option<(Typed<T>, usize)>, StateError> {
        self.fill()?;
        let Some((key, bytes)) = self.next.take() else { return Ok(None) };
        let len = bytes.len();
        let value = decode::<T>(&key, bytes)?;
        Ok(Some(((key, value), len)))
    }

    fn skip(&mut self, key: &T::Key) -> Result<(), StateError> {
        if self.peek()? == Some(key) {
            self.next = None;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), StateError> {
        if self.next.is_some() {
            return Ok(());
        }
        if self.entries.len() == 0 {
            let Some(from) = self.from.take() else { return Ok(()) };
            let entries = self.view.scan(&from, &self.to, self.chunk, CHUNK_BYTES).map_err(|e| unreadable::<T>(&e))?;
            let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
            if entries.len() == self.chunk || bytes >= CHUNK_BYTES {
                self.from = entries.last().map(|(key, _)| [key.as_slice(), &[0]].concat());
            }
            self.chunk = CHUNK;
            self.entries = entries.into_iter();
        }
        if let Some((key, value)) = self.entries.next() {
            self.next = Some((keys::read_entry::<T>(&key)?, value));
        }
        Ok(())
    }
}

/// Takes the bytes: what is large in them is not copied.
pub(crate) fn decode<T: Table>(key: &T::Key, bytes: Vec<u8>) -> Result<T::Value, StateError> {
    encoding::decode_shared(&bytes.into(), "the entry")
        .map_err(|e| StateError { table: T::NAME, message: format!("at {key:?}: {e}") })
}

fn unreadable<T: Table>(error: &io::Error) -> StateError {
    StateError { table: T::NAME, message: format!("the engine cannot read: {error}") }
}
