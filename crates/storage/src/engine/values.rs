//! Values as rows of fjall: a large one is several.
//!
//! fjall copies a row whole wherever it touches it, and has one row of each table file in memory while it merges them. So no row may be large: a
//! value of more than [`PIECE_BYTES`] is cut into pieces, which follow one another, and is one value again in what is read.
//!
//! **Shape** of rows: at the value's key `[WHOLE:1][value]` or `[FIRST:1][bytes of the value:4 LE][piece]`, then at the key with
//! `[number:4 BE]` behind it, from 1 on, `[FURTHER:1][piece]`. Pieces but for the last are as long as the first. No key is the beginning of
//! another one where values are large, and so nothing lies between the pieces of a value.
//!
//! Owns: these rows, views of them as values, and which pieces of an older value a commit deletes. Does not own: commits; one makes all rows
//! of a value visible and durable together.

use super::fjall::{HeldViews, io_error};
use super::{Given, RawEntry, View, take_within};
use fjall::{Iter, Keyspace, Readable, Snapshot, UserKey, UserValue};
use std::io::{self, Read};
use std::sync::Arc;

/// Bytes of a value that are one row. A merge has no more than two of them of each table file in memory.
pub(super) const PIECE_BYTES: usize = 128 << 10;
/// What a piece's key has behind the value's.
pub(super) const NUMBER_BYTES: usize = size_of::<u32>();

const WHOLE: u8 = 0;
const FIRST: u8 = 1;
const FURTHER: u8 = 2;

/// What a row says.
enum Row<'a> {
    Whole(&'a [u8]),
    First { bytes: usize, piece: &'a [u8] },
    Further(&'a [u8]),
}

impl<'a> Row<'a> {
    fn read(row: &'a [u8]) -> io::Result<Self> {
        let read = match row.split_first() {
            Some((&WHOLE, value)) => Some(Self::Whole(value)),
            Some((&FIRST, rest)) => rest
                .split_first_chunk()
                .filter(|(_, piece)| !piece.is_empty())
                .map(|(bytes, piece)| Self::First { bytes: u32::from_le_bytes(*bytes) as usize, piece }),
            Some((&FURTHER, piece)) => Some(Self::Further(piece)),
            _ => None,
        };
        read.ok_or_else(|| io::Error::other("a row of the tables is no piece of a value"))
    }
}

/// The key of a further piece.
fn piece_key(key: &[u8], number: u32) -> Vec<u8> {
    [key, &number.to_be_bytes()].concat()
}

/// Behind all pieces of a value, one of which has this key.
fn behind_pieces(piece_key: &[u8]) -> Vec<u8> {
    [&piece_key[..piece_key.len().saturating_sub(NUMBER_BYTES)], &u32::MAX.to_be_bytes()].concat()
}

/// Writes a value as rows in ascending order; how many.
pub(super) fn write_rows(
    key: &[u8],
    value: Given<'_>,
    mut write: impl FnMut(UserKey, UserValue) -> Result<(), fjall::Error>,
) -> Result<u32, fjall::Error> {
    let bytes = match &value {
        Given::Bytes(value) => value.len(),
        Given::Pieces(pieces) => pieces.bytes(),
    };
    let (mut small, mut large);
    let value: &mut dyn Read = match value {
        Given::Bytes(value) => {
            small = value;
            &mut small
        }
        Given::Pieces(pieces) => {
            large = pieces;
            &mut large
        }
    };
    // Each is read once, and of its own size.
    let mut row = |head: &[u8], bytes: usize| UserValue::from_reader(&mut head.chain(&mut *value), head.len() + bytes);
    if bytes <= PIECE_BYTES {
        write(key.into(), row(&[WHOLE], bytes)?)?;
        return Ok(1);
    }
    let length = u32::try_from(bytes).expect("values are bounded far below 4 GiB").to_le_bytes();
    write(key.into(), row(&[&[FIRST], length.as_slice()].concat(), PIECE_BYTES)?)?;
    let mut number = 1;
    for from in (PIECE_BYTES..bytes).step_by(PIECE_BYTES) {
        write(piece_key(key, number).into(), row(&[FURTHER], PIECE_BYTES.min(bytes - from))?)?;
        number += 1;
    }
    Ok(number)
}

/// The keys of pieces that a value had and its successor, which has so many rows, has not. Costs a look that finds nothing where the value was
/// not large.
pub(super) fn pieces_beyond(keyspace: &Keyspace, key: &[u8], rows: u32) -> Result<impl Iterator<Item = Vec<u8>>, fjall::Error> {
    let has_pieces = keyspace.contains_key(piece_key(key, 1))?;
    let first = if has_pieces { keyspace.get(key)? } else { None };
    let before = match first.as_deref().map(Row::read) {
        Some(Ok(Row::First { bytes, piece })) => bytes.div_ceil(piece.len()) as u32,
        _ => 1,
    };
    Ok((rows.max(1)..before).map(move |number| piece_key(key, number)))
}

/// One state of a keyspace, read as values.
pub(super) struct ValuesView {
    snapshot: Snapshot,
    keyspace: Keyspace,
    held: Arc<HeldViews>,
    /// Keys that are shown to nobody.
    hidden: &'static [&'static [u8]],
}

impl ValuesView {
    pub(super) fn new(snapshot: Snapshot, keyspace: Keyspace, held: Arc<HeldViews>, hidden: &'static [&'static [u8]]) -> Self {
        Self { snapshot, keyspace, held, hidden }
    }

    fn rows(&self, from: &[u8], to: &[u8]) -> Iter {
        self.snapshot.range(&self.keyspace, from..to)
    }
}

impl Drop for ValuesView {
    fn drop(&mut self) {
        self.held.close(self.snapshot.seqno());
    }
}

impl View for ValuesView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(row) = self.snapshot.get(&self.keyspace, key).map_err(io_error)? else { return Ok(None) };
        match Row::read(&row)? {
            Row::Whole(value) => Ok(Some(value.to_vec())),
            Row::First { bytes, piece } => {
                let further = self.rows(&piece_key(key, 1), &piece_key(key, u32::MAX));
                join(key, bytes, piece, further).map(Some)
            }
            Row::Further(_) => Ok(None),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
        if to <= from {
            return Ok(Vec::new());
        }
        take_within(Values { view: self, to, rows: self.rows(from, to) }, limit, bytes_max)
    }
}

/// The whole value of so many bytes, from its first piece and the rows that follow.
fn join(key: &[u8], bytes: usize, first: &[u8], mut rows: impl Iterator<Item = fjall::Guard>) -> io::Result<Vec<u8>> {
    let mut value = Vec::with_capacity(bytes);
    value.extend_from_slice(first);
    for number in 1.. {
        if value.len() >= bytes {
            break;
        }
        let lacks = || io::Error::other(format!("a large value lacks its piece {number}"));
        let (found, row) = rows.next().ok_or_else(lacks)?.into_inner().map_err(io_error)?;
        match Row::read(&row)? {
            Row::Further(piece) if *found == *piece_key(key, number) => value.extend_from_slice(piece),
            _ => return Err(lacks()),
        }
    }
    if value.len() != bytes {
        return Err(io::Error::other(format!("the pieces of a large value have {} bytes and not {bytes}", value.len())));
    }
    Ok(value)
}

/// The values of a range.
struct Values<'a> {
    view: &'a ValuesView,
    to: &'a [u8],
    rows: Iter,
}

impl Values<'_> {
    fn next_value(&mut self) -> io::Result<Option<RawEntry>> {
        loop {
            let Some(row) = self.rows.next() else { return Ok(None) };
            let (key, row) = row.into_inner().map_err(io_error)?;
            if self.view.hidden.contains(&&*key) {
                continue;
            }
            match Row::read(&row)? {
                Row::Whole(value) => return Ok(Some((key.to_vec(), value.to_vec()))),
                Row::First { bytes, piece } => {
                    let value = join(&key, bytes, piece, &mut self.rows)?;
                    return Ok(Some((key.to_vec(), value)));
                }
                // The range begins right behind the value's key.
                Row::Further(_) => {
                    let from = behind_pieces(&key);
                    if *from >= *self.to {
                        return Ok(None);
                    }
                    self.rows = self.view.rows(&from, self.to);
                }
            }
        }
    }
}

impl Iterator for Values<'_> {
    type Item = io::Result<RawEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_value().transpose()
    }
}
