//! The handler's side of the service protocol, as far as simulated handlers need it: frames, and protobuf fields by hand.
//!
//! Written beside `protocol` and not with it, so that a mistake there does not meet the same mistake here. Source: protocol
//! reference sections 4 and 5.

use bytes::{Buf, Bytes, BytesMut};

pub(crate) const START: u16 = 0x0000;
pub(crate) const SUSPENSION: u16 = 0x0001;
pub(crate) const ERROR: u16 = 0x0002;
pub(crate) const END: u16 = 0x0003;
pub(crate) const PROPOSE_RUN: u16 = 0x0005;

/// One frame's type and payload.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) ty: u16,
    pub(crate) payload: Bytes,
}

/// Whether a chunk is the frame that ends an attempt, and nothing else.
pub(crate) fn is_end(chunk: &[u8]) -> bool {
    let ty = chunk.first_chunk().map(|ty| u16::from_be_bytes(*ty));
    matches!(ty, Some(SUSPENSION | ERROR | END))
}

/// Splits a byte stream into frames.
#[derive(Default)]
pub(crate) struct Frames(BytesMut);

impl Frames {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn next(&mut self) -> Option<Frame> {
        const HEADER: usize = 8;
        let header: [u8; HEADER] = self.0.get(..HEADER)?.try_into().ok()?;
        let ty = u16::from_be_bytes([header[0], header[1]]);
        let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if self.0.len() < HEADER + len {
            return None;
        }
        self.0.advance(HEADER);
        Some(Frame { ty, payload: self.0.split_to(len).freeze() })
    }
}

/// Writes one message.
#[derive(Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn number(mut self, tag: u32, value: u64) -> Self {
        self.varint(u64::from(tag) << 3);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, tag: u32, value: &[u8]) -> Self {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn message(self, tag: u32, value: Message) -> Self {
        self.bytes(tag, &value.0)
    }

    /// A `Value` with this content.
    pub(crate) fn value(self, tag: u32, content: &[u8]) -> Self {
        let inner = if content.is_empty() { Message::default() } else { Message::default().bytes(1, content) };
        self.message(tag, inner)
    }

    pub(crate) fn frame(self, ty: u16) -> Bytes {
        let mut out = Vec::with_capacity(8 + self.0.len());
        out.extend_from_slice(&ty.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.0);
        out.into()
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// One field of a message: a number, or bytes.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    Number(u64),
    Bytes(Bytes),
}

/// The fields of a message in order. A message that is none is the server's mistake.
pub(crate) fn fields(mut message: Bytes) -> Vec<(u32, Field)> {
    let mut fields = Vec::new();
    while message.has_remaining() {
        let key = read_varint(&mut message);
        let field = match key & 7 {
            0 => Field::Number(read_varint(&mut message)),
            2 => {
                let len = read_varint(&mut message) as usize;
                Field::Bytes(message.split_to(len))
            }
            wire => panic!("the server sent a field of wire type {wire}"),
        };
        fields.push(((key >> 3) as u32, field));
    }
    fields
}

fn read_varint(bytes: &mut Bytes) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("the server sent a number of more than ten bytes");
}

pub(crate) fn number(message: &Bytes, tag: u32) -> Option<u64> {
    fields(message.clone()).into_iter().find_map(|(t, f)| match f {
        Field::Number(n) if t == tag => Some(n),
        _ => None,
    })
}

pub(crate) fn bytes(message: &Bytes, tag: u32) -> Option<Bytes> {
    fields(message.clone()).into_iter().find_map(|(t, f)| match f {
        Field::Bytes(b) if t == tag => Some(b),
        _ => None,
    })
}

/// All occurrences of a repeated field.
pub(crate) fn all(message: &Bytes, tag: u32) -> Vec<Bytes> {
    let of_tag = |(t, f): (u32, Field)| match f {
        Field::Bytes(b) if t == tag => Some(b),
        _ => None,
    };
    fields(message.clone()).into_iter().filter_map(of_tag).collect()
}
