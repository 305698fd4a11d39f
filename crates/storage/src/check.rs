//! Reading all rows of a partition, each as its table types it.
//!
//! Owns: going through them piece by piece, and on after one that cannot be read. Does not own: the bytes of the engine's files (`engine`).

use crate::engine::View;
use crate::keys;
use crate::scan::decode;
use std::io;
use surefoot_machine::{Family, Meta, StateError, Table, TableSet, Visit};
use surefoot_model::{Lsn, PartitionId, RULES, encoding};

/// What is read of the engine at a time.
const PIECE_ROWS: usize = 1_000;
const PIECE_BYTES: usize = 1 << 20;
/// So many rows that cannot be read are told of one partition.
const FAULTS_MAX: usize = 20;

/// What was found in one partition's tables.
#[derive(Debug, Default)]
pub struct CheckedRows {
    /// The last record that they show (rule C2).
    pub applied: Lsn,
    pub rows: u64,
    /// What is wrong, table and key named; after so many, no more are looked for.
    pub faults: Vec<String>,
}

/// Reads every row of a partition.
pub fn check_rows(view: &dyn View, partition: PartitionId) -> CheckedRows {
    let mut check = Check { view, partition, found: CheckedRows::default() };
    match applied(view, partition) {
        Ok(applied) => check.found.applied = applied,
        Err(error) => check.found.faults.push(format!("the applied position: {error}")),
    }
    match view.get(&keys::entry::<Meta>(partition, &())).map(|row| row.map(|row| decode::<Meta>(&(), row))) {
        Ok(Some(Ok(meta))) if meta.rules > RULES => check.found.faults.push(format!(
            "its tables follow version {} of the rules, and this build knows up to {RULES}: use the version that wrote them",
            meta.rules
        )),
        // What cannot be read is told with the other rows.
        _ => {}
    }
    TableSet::<Nothing>::default().visit(&mut check);
    check.found
}

fn applied(view: &dyn View, partition: PartitionId) -> io::Result<Lsn> {
    match view.get(&keys::applied(partition))? {
        Some(bytes) => encoding::decode(&bytes, "the row").map_err(io::Error::other),
        None => Ok(Lsn::default()),
    }
}

struct Nothing;

impl Family for Nothing {
    type Of<T: Table> = ();
}

struct Check<'a> {
    view: &'a dyn View,
    partition: PartitionId,
    found: CheckedRows,
}

impl Visit<Nothing> for Check<'_> {
    fn visit<T: Table>(&mut self, (): &mut ()) {
        let mut from = keys::prefix(self.partition, T::TAG).to_vec();
        let to = keys::prefix(self.partition, T::TAG + 1);
        while self.found.faults.len() < FAULTS_MAX {
            let piece = match self.view.scan(&from, &to, PIECE_ROWS, PIECE_BYTES) {
                Ok(piece) => piece,
                Err(error) => return self.found.faults.push(format!("table {}: the engine cannot read: {error}", T::NAME)),
            };
            let Some((last, _)) = piece.last() else { return };
            from = [last.as_slice(), &[0]].concat();
            for (key, value) in piece {
                self.found.rows += 1;
                let read = keys::read_entry::<T>(&key).and_then(|key| decode::<T>(&key, value).map(drop));
                self.found.faults.extend(read.err().map(|error: StateError| error.to_string()));
            }
        }
    }
}
