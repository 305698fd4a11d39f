//! What storing a table takes that [`Table`] does not say: its keys' bytes and its entries' weight, found by the table's type.
//!
//! Owns: the list that ties each table to them. A table that is missing here panics on first use, and a test says so.
//! Does not own: the encodings themselves (`keys`).

use crate::keys::TableKey;
use crate::weight::Weight;
use std::sync::LazyLock;
use surefoot_machine::{
    CatalogRows, ChoreOutcomes, ChorePages, Chores, Expiries, Family, Inbound, Inbox, Invocations, Journal, Listings, Meta,
    Objects, Open, Outbox, Outboxes, Parked, Running, Sources, StateNames, StateValues, States, Streams, Table, TableSet, Timers,
    Waiters,
};

/// Functions of one table.
pub(crate) struct Codec<T: Table> {
    pub(crate) write_key: fn(&T::Key, &mut Vec<u8>),
    pub(crate) read_key: fn(&mut &[u8]) -> Option<T::Key>,
    pub(crate) key_heap_bytes: fn(&T::Key) -> usize,
    pub(crate) value_heap_bytes: fn(&T::Value) -> usize,
}

/// The functions of a table.
pub(crate) fn of<T: Table>() -> &'static Codec<T> {
    T::of(&*CODECS).0.as_ref().expect("every table is listed: a test visits them all")
}

struct Codecs;

impl Family for Codecs {
    type Of<T: Table> = Listed<T>;
}

struct Listed<T: Table>(Option<Codec<T>>);

impl<T: Table> Default for Listed<T> {
    fn default() -> Self {
        Self(None)
    }
}

// shared: built once from the list of tables, never changed.
static CODECS: LazyLock<TableSet<Codecs>> = LazyLock::new(|| {
    let mut set = TableSet::default();
    list::<Meta>(&mut set);
    list::<Invocations>(&mut set);
    list::<Journal>(&mut set);
    list::<Objects>(&mut set);
    list::<Inbox>(&mut set);
    list::<StateValues>(&mut set);
    list::<StateNames>(&mut set);
    list::<Timers>(&mut set);
    list::<Running>(&mut set);
    list::<Expiries>(&mut set);
    list::<Outbox>(&mut set);
    list::<Outboxes>(&mut set);
    list::<Inbound>(&mut set);
    list::<Streams>(&mut set);
    list::<Sources>(&mut set);
    list::<Parked>(&mut set);
    list::<CatalogRows>(&mut set);
    list::<States>(&mut set);
    list::<Open>(&mut set);
    list::<Waiters>(&mut set);
    list::<Chores>(&mut set);
    list::<ChorePages>(&mut set);
    list::<Listings>(&mut set);
    list::<ChoreOutcomes>(&mut set);
    set
});

fn list<T: Table<Key: TableKey, Value: Weight>>(set: &mut TableSet<Codecs>) {
    T::of_mut(set).0 = Some(Codec {
        write_key: T::Key::write,
        read_key: T::Key::read,
        key_heap_bytes: T::Key::heap_bytes,
        value_heap_bytes: T::Value::heap_bytes,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_machine::Visit;

    struct Names;

    impl Family for Names {
        type Of<T: Table> = ();
    }

    struct Ask(Vec<u8>);

    impl Visit<Names> for Ask {
        fn visit<T: Table>(&mut self, (): &mut ()) {
            let _ = of::<T>();
            self.0.push(T::TAG);
        }
    }

    #[test]
    fn every_table_is_listed_and_tags_are_distinct_and_ascend() {
        let mut ask = Ask(vec![0]);
        TableSet::<Names>::default().visit(&mut ask);
        assert!(ask.0.is_sorted_by(|a, b| a < b), "{:?}", ask.0);
    }
}
