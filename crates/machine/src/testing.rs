//! Tables in plain memory: the second implementation of [`State`], for scripts and models.

use crate::{Family, Rows, State, StateError, Table, TableSet};
use std::collections::BTreeMap;
use std::ops::Bound;

/// One ordered map per table.
#[derive(Default)]
pub struct MemState(TableSet<Maps>);

struct Maps;

impl Family for Maps {
    type Of<T: Table> = Map<T>;
}

struct Map<T: Table>(BTreeMap<T::Key, T::Value>);

impl<T: Table> Default for Map<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl MemState {
    /// Entries of one table.
    pub fn len<T: Table>(&self) -> usize {
        T::of(&self.0).0.len()
    }

    pub fn is_empty<T: Table>(&self) -> bool {
        self.len::<T>() == 0
    }
}

impl State for MemState {
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        Ok(T::of(&self.0).0.get(key).cloned())
    }

    fn put<T: Table>(&mut self, key: T::Key, value: T::Value) {
        T::of_mut(&mut self.0).0.insert(key, value);
    }

    fn insert<T: Table>(&mut self, key: T::Key, value: T::Value) {
        let before = T::of_mut(&mut self.0).0.insert(key, value);
        assert!(before.is_none(), "{}: inserted over {before:?}", T::NAME);
    }

    fn delete<T: Table>(&mut self, key: &T::Key) {
        T::of_mut(&mut self.0).0.remove(key);
    }

    fn scan<T: Table>(&self, from: &T::Key, to: Option<&T::Key>, limit: usize) -> Result<Rows<T>, StateError> {
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let range = T::of(&self.0).0.range::<T::Key, _>((Bound::Included(from), to));
        Ok(range.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}
