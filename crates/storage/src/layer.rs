//! Layers of a partition's tables in memory: what was written since the layer below, entry by entry.
//!
//! Owns: typed maps, the overlay of one record, and the rule by which created-and-deleted vanishes (rule C3). Does not own: which
//! layers there are, or how they are read together (`store`, `scan`).
//!
//! The rule: an entry's slot may vanish with its deletion only if the slot knows that the layers below, read together, show no
//! such entry. Only who first writes a slot can know it; a slot that once stood for something below never learns it.

use crate::codec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::mem;
use surefoot_machine::{Family, Table, TableSet, Visit};

/// One layer's word about one entry.
#[derive(Clone, Debug)]
pub(crate) struct Slot<V> {
    /// `None`: deleted, whatever the layers below say.
    pub(crate) value: Option<V>,
    /// The layers below, read together, show no such entry.
    pub(crate) absent_below: bool,
}

/// A whole layer: typed maps, and an estimate of what they hold.
#[derive(Default)]
pub(crate) struct Layer {
    pub(crate) tables: TableSet<Maps>,
    /// Bytes in memory, roughly.
    pub(crate) bytes: usize,
    /// Slots of all tables.
    pub(crate) slots: usize,
}

pub(crate) struct Maps;

impl Family for Maps {
    type Of<T: Table> = Map<T>;
}

/// One table of a layer.
pub(crate) struct Map<T: Table>(pub(crate) BTreeMap<T::Key, Slot<T::Value>>);

impl<T: Table> Default for Map<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl Layer {
    pub(crate) fn get<T: Table>(&self, key: &T::Key) -> Option<&Slot<T::Value>> {
        T::of(&self.tables).0.get(key)
    }

    /// Lays a slot of the layer above over this one. **Panics** where an insert meets an entry.
    fn lay<T: Table>(&mut self, key: T::Key, slot: Slot<T::Value>) {
        let codec = codec::of::<T>();
        match T::of_mut(&mut self.tables).0.entry(key) {
            MapEntry::Vacant(vacant) => {
                self.bytes += slot_bytes::<T>() + (codec.key_heap_bytes)(vacant.key()) + value_bytes(codec, &slot);
                self.slots += 1;
                vacant.insert(slot);
            }
            MapEntry::Occupied(occupied) if slot.value.is_none() && occupied.get().absent_below => {
                let (key, old) = occupied.remove_entry();
                self.bytes -= slot_bytes::<T>() + (codec.key_heap_bytes)(&key) + value_bytes(codec, &old);
                self.slots -= 1;
            }
            MapEntry::Occupied(mut occupied) => {
                let old = occupied.get_mut();
                assert!(!slot.absent_below || old.value.is_none(), "{}: inserted over an entry", T::NAME);
                self.bytes = self.bytes - value_bytes(codec, old) + value_bytes(codec, &slot);
                old.value = slot.value;
            }
        }
    }
}

/// A slot in a map whose nodes are two thirds full.
const fn slot_bytes<T: Table>() -> usize {
    (size_of::<T::Key>() + size_of::<Slot<T::Value>>()) * 3 / 2
}

fn value_bytes<T: Table>(codec: &codec::Codec<T>, slot: &Slot<T::Value>) -> usize {
    slot.value.as_ref().map_or(0, codec.value_heap_bytes)
}

/// What one record has written so far. Empty between records; its allocations stay.
#[derive(Default)]
pub(crate) struct Overlay {
    pub(crate) tables: TableSet<Writes>,
}

pub(crate) struct Writes;

impl Family for Writes {
    type Of<T: Table> = TableWrites<T>;
}

/// One table of the overlay: sorted slots (a record writes few), and the last key that was found nowhere.
pub(crate) struct TableWrites<T: Table> {
    slots: Vec<(T::Key, Slot<T::Value>)>,
    missed: RefCell<Option<T::Key>>,
}

impl<T: Table> Default for TableWrites<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), missed: RefCell::new(None) }
    }
}

/// Slots that a table of the overlay keeps room for from record to record.
const ROOM: usize = 256;

impl<T: Table> TableWrites<T> {
    pub(crate) fn slots(&self) -> &[(T::Key, Slot<T::Value>)] {
        &self.slots
    }

    pub(crate) fn get(&self, key: &T::Key) -> Option<&Slot<T::Value>> {
        self.find(key).ok().map(|at| &self.slots[at].1)
    }

    /// Remembers that a key, not written by this record so far, was found nowhere.
    pub(crate) fn miss(&self, key: &T::Key) {
        self.missed.replace(Some(key.clone()));
    }

    pub(crate) fn put(&mut self, key: T::Key, value: T::Value, absent: bool) {
        match self.find(&key) {
            Ok(at) => {
                let slot = &mut self.slots[at].1;
                assert!(!absent || slot.value.is_none(), "{}: inserted over an entry", T::NAME);
                slot.value = Some(value);
            }
            Err(at) => {
                let absent_below = absent || self.missed.get_mut().as_ref() == Some(&key);
                self.slots.insert(at, (key, Slot { value: Some(value), absent_below }));
            }
        }
    }

    pub(crate) fn delete(&mut self, key: &T::Key) {
        match self.find(key) {
            Ok(at) if self.slots[at].1.absent_below => {
                self.slots.remove(at);
            }
            Ok(at) => self.slots[at].1.value = None,
            Err(_) if self.missed.get_mut().as_ref() == Some(key) => {}
            Err(at) => self.slots.insert(at, (key.clone(), Slot { value: None, absent_below: false })),
        }
    }

    fn find(&self, key: &T::Key) -> Result<usize, usize> {
        // Records write in ascending order more often than not.
        match self.slots.last() {
            None => Err(0),
            Some((last, _)) if last < key => Err(self.slots.len()),
            Some(_) => self.slots.binary_search_by(|(at, _)| at.cmp(key)),
        }
    }

    fn reset(&mut self) {
        self.slots.clear();
        self.slots.shrink_to(ROOM);
        *self.missed.get_mut() = None;
    }
}

impl Overlay {
    /// Moves everything into a layer. Against rule C3, for [`crate::Mutant::VanishAcrossLayers`]: what `vanish_from` created
    /// is forgotten with its deletion.
    pub(crate) fn publish(&mut self, into: &mut Layer, vanish_from: Option<&Layer>) {
        self.tables.visit(&mut Publish { into, vanish_from });
    }

    pub(crate) fn discard(&mut self) {
        self.tables.visit(&mut Discard);
    }
}

struct Publish<'a> {
    into: &'a mut Layer,
    vanish_from: Option<&'a Layer>,
}

impl Visit<Writes> for Publish<'_> {
    fn visit<T: Table>(&mut self, writes: &mut TableWrites<T>) {
        if !writes.slots.is_empty() {
            let mut slots = mem::take(&mut writes.slots);
            for (key, mut slot) in slots.drain(..) {
                if self.vanish_from.is_some() && slot.value.is_none() {
                    slot.absent_below = self.vanishes::<T>(&key);
                }
                self.into.lay::<T>(key, slot);
            }
            writes.slots = slots;
        }
        writes.reset();
    }
}

impl Publish<'_> {
    fn vanishes<T: Table>(&self, key: &T::Key) -> bool {
        let created_there = |layer: &Layer| layer.get::<T>(key).is_some_and(|slot| slot.absent_below);
        self.into.get::<T>(key).is_none() && self.vanish_from.is_some_and(created_there)
    }
}

struct Discard;

impl Visit<Writes> for Discard {
    fn visit<T: Table>(&mut self, writes: &mut TableWrites<T>) {
        writes.reset();
    }
}
