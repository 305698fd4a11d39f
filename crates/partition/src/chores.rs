//! The chores of one partition: which event does the next piece of work that was too long for one record (rule M9).
//!
//! One piece at a time: the next follows once it is applied, so that chores take turns with what else there is to do, and with one
//! another. Does not own: what a chore does, or the rows that say which there are (`machine`).

use crate::settings::Mutant;
use std::collections::BTreeSet;
use surefoot_env::Undone;
use surefoot_machine::{Chores, StateError};
use surefoot_model::Event;
use surefoot_storage::Reader;

/// Chores that are known at a time; further ones are found in the table once these are done.
const KNOWN_MAX: usize = 1_024;
/// Rows read at a time from there.
const PAGE: usize = 64;

pub(crate) struct PartitionChores {
    /// Those with a piece to do.
    known: BTreeSet<u64>,
    /// From this number on there may be others in the table.
    unknown: Option<u64>,
    /// Its piece has been appended and is not applied yet.
    under_way: Option<u64>,
    /// The one that had the last turn.
    last: u64,
    mutant: Mutant,
}

impl PartitionChores {
    pub(crate) fn new(mutant: Mutant) -> Self {
        Self { known: BTreeSet::new(), unknown: None, under_way: None, last: 0, mutant }
    }

    /// A term of this process begins: what earlier ones left is found in the table.
    pub(crate) fn begin_term(&mut self) {
        let unknown = if self.mutant == Mutant::ForgetChores { None } else { Some(0) };
        *self = Self { unknown, ..Self::new(self.mutant) };
    }

    /// There is a piece to do, the first or the next.
    pub(crate) fn on_set(&mut self, number: u64) {
        if self.unknown.is_some_and(|unknown| number >= unknown) {
            return;
        }
        self.known.insert(number);
        if self.known.len() > KNOWN_MAX {
            self.unknown = self.known.pop_last();
        }
    }

    /// A piece has been applied.
    pub(crate) fn on_event(&mut self, event: &Event) {
        if let Event::ChoreDue { chore } = event
            && self.under_way == Some(*chore)
        {
            self.under_way = None;
        }
    }

    /// There is, or may be, a piece that could be asked for.
    pub(crate) fn has_next(&self) -> bool {
        self.under_way.is_none() && (!self.known.is_empty() || self.unknown.is_some())
    }

    pub(crate) fn turn(&mut self, reader: &Reader<'_>) -> Result<Option<Event>, StateError> {
        if self.under_way.is_some() {
            return Ok(None);
        }
        if self.known.is_empty()
            && let Some(from) = self.unknown
        {
            let rows = reader.scan::<Chores>(&from, None, PAGE)?;
            self.known.extend(rows.iter().map(|(number, _)| *number));
            self.unknown = rows.last().filter(|_| rows.len() == PAGE).map(|(number, _)| number + 1);
        }
        let next = self.known.range(self.last + 1..).next().or_else(|| self.known.first()).copied();
        let Some(chore) = next else { return Ok(None) };
        self.known.remove(&chore);
        (self.under_way, self.last) = (Some(chore), chore);
        Ok(Some(Event::ChoreDue { chore }))
    }

    /// A chore of which no piece is under way.
    pub(crate) fn undone(&self, reader: &Reader<'_>) -> Result<Option<Undone>, StateError> {
        if self.under_way.is_some() {
            return Ok(None);
        }
        let first = reader.scan::<Chores>(&0, None, 1)?.pop();
        Ok(first.map(|(number, _)| Undone::at_once(format!("chore {number} is not gone on with (rule M9)"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, empty_store, write};
    use surefoot_machine::{Chore, State};
    use surefoot_model::Incarnation;
    use surefoot_storage::Store;

    /// The next piece, which is applied at once.
    fn next(chores: &mut PartitionChores, store: &Store) -> Option<u64> {
        let event = chores.turn(&store.read()).unwrap()?;
        chores.on_event(&event);
        match event {
            Event::ChoreDue { chore } => Some(chore),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn chores_take_turns_one_piece_at_a_time() {
        let (store, mut chores) = (empty_store(), PartitionChores::new(Mutant::None));
        chores.on_set(1);
        chores.on_set(2);
        assert_eq!(chores.turn(&store.read()).unwrap(), Some(Event::ChoreDue { chore: 1 }));
        assert_eq!(chores.turn(&store.read()).unwrap(), None, "one is under way");
        chores.on_set(1);
        chores.on_event(&Event::ChoreDue { chore: 1 });
        assert_eq!(next(&mut chores, &store), Some(2));
        assert_eq!(next(&mut chores, &store), Some(1));
        assert_eq!(next(&mut chores, &store), None);
    }

    #[test]
    fn a_new_term_finds_chores_in_the_table_and_those_that_were_too_many_to_know() {
        let (mut store, mut chores) = (empty_store(), PartitionChores::new(Mutant::None));
        let count = KNOWN_MAX as u64 + 200;
        let chore = |n| Chore::DeleteJournal { life: Incarnation(n), next: 0, end: 1 };
        write(&mut store, |txn| (1..=count).for_each(|n| txn.put::<Chores>(n, chore(n))));
        checkpoint(&mut store);
        let mut all = |chores: &mut PartitionChores| {
            let mut done = Vec::new();
            while let Some(number) = next(chores, &store) {
                write(&mut store, |txn| txn.delete::<Chores>(&number));
                done.push(number);
            }
            write(&mut store, |txn| (1..=count).for_each(|n| txn.put::<Chores>(n, chore(n))));
            done
        };
        chores.begin_term();
        assert_eq!(all(&mut chores), (1..=count).collect::<Vec<_>>());
        (1..=count).for_each(|n| chores.on_set(n));
        assert_eq!(all(&mut chores), (1..=count).collect::<Vec<_>>());
    }
}
