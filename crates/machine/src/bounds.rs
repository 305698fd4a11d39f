//! The numbers that `apply` decides by, for each version of the rules.
//!
//! A record that is applied again after an upgrade does what it did at first, no more and no less (rule M7): else its chores stand
//! elsewhere than the records behind it say. So it is applied within the bounds of the rules that it was written by.
//!
//! Owns: those numbers. Does not own: what the edges let into a record (`model`, `invoker`).

use surefoot_model::RULES;

/// What a record may do at once (rule M9), and what a row may hold (rule O7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows that a record works on, reads not counted. What would take more leaves a chore.
    pub rows: u32,
    /// Bytes that count as a row where a step copies a large value: a record copies 4 MiB, or one value of any size.
    pub row_bytes: u32,
    /// Items that an attempt brings in one record.
    pub items: u32,
    /// Reads of state among them: each copies a value of any size into the journal, or names.
    pub reads: u32,
    /// Rows that an item writes: its command, what it opens, a message and its queue, a notification, a value and its name.
    pub item_rows: u32,
    /// Names of state on one page that a chore collects.
    pub page_names: u32,
    /// Bytes of them; the name that reaches them is the page's last.
    pub page_name_bytes: usize,
    /// Bytes of a key's names up to which a handler is told them.
    pub listed_name_bytes: u64,
    /// Notifications that a suspension names in its row.
    pub awaited_ids: usize,
    /// Bytes of the names of signals among them.
    pub awaited_name_bytes: usize,
    /// Bytes of an attempt's last error in the row.
    pub error_bytes: usize,
    /// Bytes of a completed row beside its payloads, as the byte bound counts them (rule R1).
    pub completed_row_bytes: u64,
}

/// Never changed: other numbers are those of another version.
const VERSION_1: Bounds = Bounds {
    rows: 1_024,
    row_bytes: 4 << 10,
    items: 128,
    reads: 1,
    item_rows: 6,
    page_names: 1_000,
    page_name_bytes: 256 << 10,
    listed_name_bytes: 8 << 20,
    awaited_ids: 1_024,
    awaited_name_bytes: 64 << 10,
    error_bytes: 80 << 10,
    completed_row_bytes: 256,
};

impl Bounds {
    /// Those of the records that this build writes.
    pub const PRESENT: Self = VERSION_1;

    /// Those of the records that a version of the rules wrote.
    pub fn of(rules: u16) -> Self {
        assert!(rules <= RULES, "rule M7: a record of newer rules is refused before it is applied");
        match rules {
            0 | 1 => VERSION_1,
            _ => unreachable!("rule M7: every version of the rules has its bounds"),
        }
    }
}

const _: () = assert!(Bounds::PRESENT.items * Bounds::PRESENT.item_rows < Bounds::PRESENT.rows);

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_model::{AttemptError, AttemptProgress};

    #[test]
    fn a_version_of_the_rules_keeps_its_bounds() {
        assert_eq!(Bounds::of(RULES), Bounds::PRESENT, "the present version has bounds of its own: pin them here, too");
        let version_1 = Bounds {
            rows: 1_024,
            row_bytes: 4_096,
            items: 128,
            reads: 1,
            item_rows: 6,
            page_names: 1_000,
            page_name_bytes: 262_144,
            listed_name_bytes: 8_388_608,
            awaited_ids: 1_024,
            awaited_name_bytes: 65_536,
            error_bytes: 81_920,
            completed_row_bytes: 256,
        };
        assert_eq!(
            Bounds::of(1),
            version_1,
            "rule M7: other bounds need another version: raise RULES, and leave those of version 1"
        );
    }

    /// `apply` stops at what is beyond these, so what the edges let in is a matter of the version as well.
    #[test]
    fn the_edges_let_in_what_the_present_version_takes() {
        let edges = (AttemptProgress::ITEMS_MAX, AttemptProgress::READS_MAX, AttemptError::BYTES_MAX);
        let present = Bounds::PRESENT;
        let taken = (present.items as usize, present.reads as usize, present.error_bytes);
        assert_eq!(edges, taken, "rule M7: raise RULES, with bounds of its own");
    }
}
