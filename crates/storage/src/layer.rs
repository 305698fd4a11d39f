//! Layers of a partition's tables in memory: what was written since the layer below, entry by entry.
//!
//! Owns: typed maps, the overlay of one record, the rule by which created-and-deleted vanishes (rule C3), and several layers read
//! in one order. Does not own: which layers there are, or how they are read together with the engine (`store`, `scan`).
//!
//! The rule: an entry's slot may vanish with its deletion only if the slot knows that the layers below, read together, show no
//! such entry. Only who first writes a slot can know it; a slot that once stood for something below never learns it. It holds
//! alike for a record's overlay laid over a layer and for a layer folded with the one below it: of two slots the newer one says
//! what there is, the older one what lies below both.

use crate::codec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::iter::Peekable;
use std::mem;
use std::ops::Bound;
use std::sync::Arc;
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

    /// Makes one layer of two, `newer` right above `older`. Takes time by the smaller one. **Panics** as [`Layer::lay`].
    pub(crate) fn fold(mut older: Self, mut newer: Self) -> Self {
        if older.slots >= newer.slots {
            newer.tables.visit(&mut Fold { into: &mut older, lay: Lay::Over });
            older
        } else {
            older.tables.visit(&mut Fold { into: &mut newer, lay: Lay::Under });
            newer
        }
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

    /// Lays a slot of the layer below under this one: the same in the end. **Panics** as [`Layer::lay`].
    fn lay_under<T: Table>(&mut self, key: T::Key, slot: Slot<T::Value>) {
        let codec = codec::of::<T>();
        match T::of_mut(&mut self.tables).0.entry(key) {
            MapEntry::Vacant(vacant) => {
                self.bytes += slot_bytes::<T>() + (codec.key_heap_bytes)(vacant.key()) + value_bytes(codec, &slot);
                self.slots += 1;
                vacant.insert(slot);
            }
            MapEntry::Occupied(occupied) if occupied.get().value.is_none() && slot.absent_below => {
                let (key, _) = occupied.remove_entry();
                self.bytes -= slot_bytes::<T>() + (codec.key_heap_bytes)(&key);
                self.slots -= 1;
            }
            MapEntry::Occupied(mut occupied) => {
                let new = occupied.get_mut();
                assert!(!new.absent_below || slot.value.is_none(), "{}: inserted over an entry", T::NAME);
                new.absent_below = slot.absent_below;
            }
        }
    }
}

struct Fold<'a> {
    into: &'a mut Layer,
    lay: Lay,
}

enum Lay {
    Over,
    Under,
}

impl Visit<Maps> for Fold<'_> {
    fn visit<T: Table>(&mut self, map: &mut Map<T>) {
        for (key, slot) in mem::take(&mut map.0) {
            match self.lay {
                Lay::Over => self.into.lay::<T>(key, slot),
                Lay::Under => self.into.lay_under::<T>(key, slot),
            }
        }
    }
}

/// Slots of one table in the order of their keys.
type Slots<'a, T> = Box<dyn Iterator<Item = (&'a <T as Table>::Key, &'a Slot<<T as Table>::Value>)> + 'a>;

/// Several layers read as one, key by key.
pub(crate) struct Merged<'a, T: Table> {
    /// Newest first.
    layers: Vec<Peekable<Slots<'a, T>>>,
}

/// All that layers say about one key.
pub(crate) struct MergedSlot<'a, T: Table> {
    pub(crate) key: &'a T::Key,
    /// What the newest of them says.
    pub(crate) value: Option<&'a T::Value>,
    /// What the oldest of them knows: below all of them there is no such entry.
    pub(crate) absent_below: bool,
}

impl<'a, T: Table> Merged<'a, T> {
    /// The entries with `from <= key < to` of layers, newest first.
    pub(crate) fn new(layers: impl Iterator<Item = &'a Layer>, from: Bound<&T::Key>, to: Bound<&T::Key>) -> Self {
        let range = |layer: &'a Layer| -> Slots<'a, T> { Box::new(T::of(&layer.tables).0.range::<T::Key, _>((from, to))) };
        Self { layers: layers.map(range).map(Iterator::peekable).collect() }
    }

    /// The same with the slots of a newer layer above them, which are sorted and within the range.
    pub(crate) fn below(mut self, above: &'a [(T::Key, Slot<T::Value>)]) -> Self {
        let above: Slots<'a, T> = Box::new(above.iter().map(|(key, slot)| (key, slot)));
        self.layers.insert(0, above.peekable());
        self
    }

    pub(crate) fn peek(&mut self) -> Option<&'a T::Key> {
        self.layers.iter_mut().filter_map(|layer| layer.peek().map(|(key, _)| *key)).min()
    }
}

impl<'a, T: Table> Iterator for Merged<'a, T> {
    type Item = MergedSlot<'a, T>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.peek()?;
        let mut slots = self.layers.iter_mut().filter_map(|layer| layer.next_if(|(at, _)| *at == key).map(|(_, slot)| slot));
        let newest = slots.next().expect("some layer has the least key");
        let oldest = slots.last().unwrap_or(newest);
        Some(MergedSlot { key, value: newest.value.as_ref(), absent_below: oldest.absent_below })
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
    pub(crate) fn publish(&mut self, into: &mut Layer, vanish_from: &[Arc<Layer>]) {
        self.tables.visit(&mut Publish { into, vanish_from });
    }

    pub(crate) fn discard(&mut self) {
        self.tables.visit(&mut Discard);
    }
}

struct Publish<'a> {
    into: &'a mut Layer,
    vanish_from: &'a [Arc<Layer>],
}

impl Visit<Writes> for Publish<'_> {
    fn visit<T: Table>(&mut self, writes: &mut TableWrites<T>) {
        if !writes.slots.is_empty() {
            let mut slots = mem::take(&mut writes.slots);
            for (key, mut slot) in slots.drain(..) {
                if !self.vanish_from.is_empty() && slot.value.is_none() {
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
        let created_there = |layer: &Arc<Layer>| layer.get::<T>(key).is_some_and(|slot| slot.absent_below);
        self.into.get::<T>(key).is_none() && self.vanish_from.iter().any(created_there)
    }
}

struct Discard;

impl Visit<Writes> for Discard {
    fn visit<T: Table>(&mut self, writes: &mut TableWrites<T>) {
        writes.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_machine::Inbound;
    use surefoot_model::PartitionId;

    type Slots = BTreeMap<PartitionId, (Option<u64>, bool)>;

    fn layer(slots: &Slots) -> Layer {
        let mut layer = Layer::default();
        for (key, (value, absent_below)) in slots {
            layer.lay::<Inbound>(*key, Slot { value: *value, absent_below: *absent_below });
        }
        layer
    }

    fn slots(layer: &Layer) -> Slots {
        Inbound::of(&layer.tables).0.iter().map(|(key, slot)| (*key, (slot.value, slot.absent_below))).collect()
    }

    /// Every pair of slots that can lie upon each other, in layers of different sizes, so that both ways of folding are taken.
    #[test]
    fn a_fold_says_what_both_layers_say_and_weighs_what_it_holds() {
        let words = [None, Some((None, false)), Some((Some(1), false)), Some((Some(1), true))];
        for (more_below, more_above) in [(0, 50), (50, 0)] {
            let (mut older, mut newer, mut expected) = (Slots::new(), Slots::new(), Slots::new());
            let mut key = (0..).map(PartitionId);
            let mut next = || key.next().expect("there are enough");
            for old in words {
                for new in words {
                    let is_over_entry = matches!((old, new), (Some((Some(_), _)), Some((_, true))));
                    if is_over_entry {
                        continue; // nobody inserts over an entry
                    }
                    let key = next();
                    older.extend(old.map(|slot| (key, slot)));
                    newer.extend(new.map(|slot| (key, slot)));
                    expected.extend(match (old, new) {
                        (Some((_, true)), Some((None, _))) => None,
                        (Some((_, absent_below)), Some((value, _))) => Some((key, (value, absent_below))),
                        (one, other) => other.or(one).map(|slot| (key, slot)),
                    });
                }
            }
            for (count, slots) in [(more_below, &mut older), (more_above, &mut newer)] {
                for _ in 0..count {
                    let (key, slot) = (next(), (Some(1), true));
                    slots.insert(key, slot);
                    expected.insert(key, slot);
                }
            }
            let folded = Layer::fold(layer(&older), layer(&newer));
            assert_eq!(slots(&folded), expected);
            let weighed = layer(&expected);
            assert_eq!((folded.bytes, folded.slots), (weighed.bytes, weighed.slots));
        }
    }
}
