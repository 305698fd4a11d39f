//! One entry of the log, decoded and applied to a store, whole or not at all (rule M3).
//!
//! Owns: what keeps an entry from being applied, and how a panic is put into words. Does not own: what a record does (`machine`),
//! or what becomes of its effects (`acting`; a recovery drops them).

use std::any::Any;
use surefoot_log::Entry as LogEntry;
use surefoot_machine::{Effect, Mutant as MachineMutant, apply_broken};
use surefoot_model::{Event, Lsn, Record, RecordError, encoding};
use surefoot_storage::Store;

/// Why an entry was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("{0}")]
    NewerVersion(String),
    #[error("lsn {lsn}: {message}")]
    Unreadable { lsn: Lsn, message: String },
}

/// Decodes and applies one entry, all or nothing; gives the event back.
pub(crate) fn apply_entry(
    store: &mut Store,
    entry: &LogEntry,
    effects: &mut Vec<Effect>,
    mutant: MachineMutant,
) -> Result<Event, ApplyError> {
    let unreadable = |message: String| ApplyError::Unreadable { lsn: entry.lsn, message };
    let record = Record::decode(&entry.payload).map_err(|error| match error {
        RecordError::Newer { .. } | RecordError::Encoding(encoding::Error::Version { .. }) => {
            ApplyError::NewerVersion(format!("record {}: {error}", entry.lsn))
        }
        RecordError::Encoding(_) => unreadable(error.to_string()),
    })?;
    let mut transaction = store.begin();
    apply_broken(mutant, &mut transaction, entry.partition, entry.epoch, &record, effects)
        .map_err(|error| unreadable(error.to_string()))?;
    transaction.commit(entry.lsn);
    Ok(record.event)
}

/// What a panic said. Takes the box: a reference to one is something of any type, too, and has no message.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    /// The health of a partition that had stopped said no more than "panic".
    #[test]
    fn a_broken_invariant_is_told_in_its_own_words() {
        for panics in [|| panic!("a plain reason"), || assert_eq!(1 + 1, 3, "a {} reason", "plain")] {
            let panic = catch_unwind(panics).unwrap_err();
            assert!(panic_message(panic).contains("a plain reason"));
        }
    }
}
