//! The one at-rest encoding: CBOR with explicit field numbers, behind one version byte.
//!
//! Owns: how any model type becomes bytes and comes back. A type's fields carry numbers that are never reused; a field that is
//! added later is an `Option` or has a default, so that old bytes still read. Does not own: keys of tables (`storage`).

use ::bytes::Bytes;
use minicbor::encode::Write;
use minicbor::{Decode, Encode};
use std::cell::RefCell;
use std::convert::Infallible;

/// A byte string of so many bytes, and with no more than an eighth as much around it, is not copied by [`decode_shared`].
const SHARED_BYTES_MIN: usize = 16 << 10;
const AROUND_SHARE: usize = 8;

// shared: set for the time of one call, which does not await.
thread_local! {
    // shared: as above.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// The encodings that this build writes; it reads this one and, once there is a second, the one before.
pub const VERSION: u8 = 1;

/// Bytes that cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} is empty")]
    Empty { what: &'static str },
    #[error("{what} has encoding version {found}; this build reads version {VERSION}: start the version that wrote it")]
    Version { what: &'static str, found: u8 },
    #[error("{what} does not decode: {source}")]
    Malformed { what: &'static str, source: minicbor::decode::Error },
}

/// `[version:1][CBOR]`.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    encode_into(value, &mut bytes);
    bytes
}

/// Appends `[version:1][CBOR]` to `bytes`.
pub fn encode_into<T: Encode<()>>(value: &T, bytes: &mut Vec<u8>) {
    bytes.push(VERSION);
    match minicbor::encode(value, bytes) {
        Ok(()) => {}
        Err(e) => unreachable!("writing to memory does not fail: {e}"),
    }
}

/// Gives `take` the same bytes one piece after the other: a byte string is a piece, and not copied before.
pub fn encode_pieces<T: Encode<()>>(value: &T, take: &mut dyn FnMut(&[u8])) {
    struct Pieces<'a>(&'a mut dyn FnMut(&[u8]));
    impl Write for Pieces<'_> {
        type Error = Infallible;

        fn write_all(&mut self, piece: &[u8]) -> Result<(), Infallible> {
            (self.0)(piece);
            Ok(())
        }
    }
    take(&[VERSION]);
    match minicbor::encode(value, Pieces(take)) {
        Ok(()) => {}
        Err(e) => unreachable!("taking pieces does not fail: {e}"),
    }
}

/// Reads what [`encode`] wrote. `what` names the thing in the error.
pub fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8], what: &'static str) -> Result<T, Error> {
    match bytes.split_first() {
        None => Err(Error::Empty { what }),
        Some((&VERSION, rest)) => minicbor::decode(rest).map_err(|source| Error::Malformed { what, source }),
        Some((&found, _)) => Err(Error::Version { what, found }),
    }
}

/// The same of bytes that are shared: a large byte string in them is a piece of them, and no copy.
pub fn decode_shared<T: for<'b> Decode<'b, ()>>(bytes: &Bytes, what: &'static str) -> Result<T, Error> {
    /// Also where a decoder panics.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            SOURCE.set(None);
        }
    }
    if bytes.len() < SHARED_BYTES_MIN {
        return decode(bytes, what);
    }
    let _reset = Reset;
    SOURCE.set(Some(bytes.clone()));
    decode(bytes, what)
}

/// A byte string that was met in what is read. Who keeps it keeps all of that, and weighs it alone: it is shared only where the rest is
/// little.
fn byte_string(found: &[u8]) -> Bytes {
    let shared = SOURCE.with_borrow(|source| {
        let source = source.as_ref().filter(|_| found.len() >= SHARED_BYTES_MIN)?;
        let start = (found.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        let around = source.len().checked_sub(found.len())?;
        let is_piece = start + found.len() <= source.len() && around <= found.len() / AROUND_SHARE;
        is_piece.then(|| source.slice(start..start + found.len()))
    });
    shared.unwrap_or_else(|| Bytes::copy_from_slice(found))
}

/// For fields of type `bytes::Bytes`: a CBOR byte string.
pub mod bytes {
    use ::bytes::Bytes;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub fn encode<C, W: Write>(v: &Bytes, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.bytes(v)?.ok()
    }

    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Bytes, DecodeError> {
        Ok(super::byte_string(d.bytes()?))
    }
}

/// For fields of type `u128`, which CBOR has no number for: 16 bytes, big endian.
pub mod u128 {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub fn encode<C, W: Write>(v: &u128, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&v.to_be_bytes())?.ok()
    }

    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<u128, DecodeError> {
        let bytes = d.bytes()?;
        bytes.try_into().map(u128::from_be_bytes).map_err(|_| DecodeError::message("a 128-bit number takes 16 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, Outcome};

    fn large(bytes: usize) -> Entry {
        Entry::Command { ty: 1, raw: Bytes::from(vec![7; bytes]) }
    }

    fn raw(entry: &Entry) -> &Bytes {
        match entry {
            Entry::Command { raw, .. } => raw,
            Entry::Notification(_) => panic!("it is a command"),
        }
    }

    /// One value of 32 MiB was in memory once more for as long as its record was applied.
    #[test]
    fn what_is_large_is_a_piece_of_what_it_is_read_from() {
        for (bytes, is_shared) in [(0, false), (SHARED_BYTES_MIN - 1, false), (SHARED_BYTES_MIN, true), (1 << 20, true)] {
            let entry = large(bytes);
            let source = Bytes::from(encode(&entry));
            let read = decode_shared::<Entry>(&source, "the entry").unwrap();
            assert_eq!(read, entry);
            assert_eq!(source.as_ptr_range().contains(&raw(&read).as_ptr()), is_shared, "{bytes} bytes");
            // What is read otherwise does not know of it.
            assert!(!source.as_ptr_range().contains(&raw(&decode::<Entry>(&source, "the entry").unwrap()).as_ptr()));
        }
    }

    #[test]
    fn pieces_are_the_same_bytes() {
        let (mut bytes, mut largest) = (Vec::new(), 0);
        encode_pieces(&large(1 << 20), &mut |piece| {
            bytes.extend_from_slice(piece);
            largest = largest.max(piece.len());
        });
        assert_eq!((bytes, largest), (encode(&large(1 << 20)), 1 << 20));
    }

    #[test]
    fn a_part_of_much_does_not_keep_the_rest_in_memory() {
        let entries = vec![large(SHARED_BYTES_MIN), large(1 << 20)];
        let source = Bytes::from(encode(&entries));
        let read = decode_shared::<Vec<Entry>>(&source, "the entries").unwrap();
        let is_shared: Vec<_> = read.iter().map(|entry| source.as_ptr_range().contains(&raw(entry).as_ptr())).collect();
        assert_eq!((&read, is_shared), (&entries, vec![false, true]));
        assert!(decode_shared::<Outcome>(&source, "the outcome").is_err());
    }
}
