//! A value that is cloned by reference, so that a row that holds it is cloned in constant time (rule O7).

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use std::ops::Deref;
use std::sync::Arc;

/// An immutable value, cloned by reference. Stored as the value itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared<T>(Arc<T>);

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<C, T: Encode<C>> Encode<C> for Shared<T> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, cx: &mut C) -> Result<(), EncodeError<W::Error>> {
        self.0.encode(e, cx)
    }
}

impl<'b, C, T: Decode<'b, C>> Decode<'b, C> for Shared<T> {
    fn decode(d: &mut Decoder<'b>, cx: &mut C) -> Result<Self, DecodeError> {
        T::decode(d, cx).map(Self::from)
    }
}
