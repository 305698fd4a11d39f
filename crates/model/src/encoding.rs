//! The one at-rest encoding: CBOR with explicit field numbers, behind one version byte.
//!
//! Owns: how any model type becomes bytes and comes back. A type's fields carry numbers that are never reused; a field that is
//! added later is an `Option` or has a default, so that old bytes still read. Does not own: keys of tables (`storage`).

use minicbor::{Decode, Encode};

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

/// Reads what [`encode`] wrote. `what` names the thing in the error.
pub fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8], what: &'static str) -> Result<T, Error> {
    match bytes.split_first() {
        None => Err(Error::Empty { what }),
        Some((&VERSION, rest)) => minicbor::decode(rest).map_err(|source| Error::Malformed { what, source }),
        Some((&found, _)) => Err(Error::Version { what, found }),
    }
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
        Ok(Bytes::copy_from_slice(d.bytes()?))
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
