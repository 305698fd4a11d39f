//! What the server sends: the start of an attempt, the journal as replay, and live notifications.
//!
//! Owns: their bytes per version; commands leave as they came. Messages are written straight into one buffer, and large payloads
//! are passed on by reference. Does not own: order and counting of what is sent (`invoker`). Source: protocol reference section 5.

use crate::frame::{self, HEADER_BYTES};
use crate::message_type;
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};
use surefoot_model::{Entry, Failure, InvocationId, Notification, NotificationId, Resolution, Text};

/// A command or a value of at least this size is passed on by reference instead of being copied.
const BY_REFERENCE_BYTES: usize = 8 * 1024;

/// First version that knows random seeds and metadata of failures.
const V6: u8 = 6;

/// What an attempt begins with.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    pub id: InvocationId,
    /// `id` as text.
    pub debug_id: &'a str,
    /// Entries that follow as replay; at least 1.
    pub known_entries: u32,
    /// Preloaded state, sorted by name.
    pub state: &'a [(Text, Bytes)],
    /// Whether `state` is all there is.
    pub complete_state: bool,
    /// Empty for plain services.
    pub key: &'a str,
    pub retries_since_entry: u32,
    pub since_entry_ms: u64,
    pub random_seed: u64,
}

/// Frames on their way out, in as few chunks as it takes.
#[derive(Debug, Default)]
pub struct Outgoing {
    chunks: Vec<Bytes>,
    tail: BytesMut,
    largest: usize,
}

impl Outgoing {
    /// `bytes`: how much is expected.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { chunks: Vec::new(), tail: BytesMut::with_capacity(bytes), largest: 0 }
    }

    pub fn start(&mut self, start: &Start<'_>, version: u8) {
        self.message(message_type::START, |buf| {
            put_bytes(buf, 1, &start.id.to_bytes());
            put_bytes(buf, 2, start.debug_id.as_bytes());
            put_number(buf, 3, start.known_entries.into());
            for (key, value) in start.state {
                put_length(buf, 4, bytes_len(1, key.len()) + bytes_len(2, value.len()));
                put_bytes(buf, 1, key.as_bytes());
                put_bytes(buf, 2, value);
            }
            put_number(buf, 5, u64::from(!start.complete_state));
            put_bytes(buf, 6, start.key.as_bytes());
            put_number(buf, 7, start.retries_since_entry.into());
            put_number(buf, 8, start.since_entry_ms);
            if version >= V6 {
                put_number(buf, 9, start.random_seed);
            }
        });
    }

    /// An entry of the journal: a command as it came, or a notification.
    pub fn entry(&mut self, entry: &Entry, version: u8) {
        match entry {
            Entry::Command { ty, raw } => {
                self.largest = self.largest.max(raw.len());
                frame::put_header(&mut self.tail, *ty, raw.len());
                if raw.len() < BY_REFERENCE_BYTES {
                    self.tail.put_slice(raw);
                } else {
                    self.chunks.push(self.tail.split().freeze());
                    self.chunks.push(raw.clone());
                }
            }
            Entry::Notification(notification) => self.notification(notification, version),
        }
    }

    pub fn notification(&mut self, notification: &Notification, version: u8) {
        if let (NotificationId::Completion(id), Resolution::Value(content)) = (&notification.id, &notification.result)
            && content.len() >= BY_REFERENCE_BYTES
        {
            return self.large_value(notification.ty, *id, content);
        }
        self.message(notification.ty, |buf| {
            match &notification.id {
                NotificationId::Completion(id) => put_number(buf, 1, (*id).into()),
                NotificationId::Signal(index) => put_number(buf, 2, (*index).into()),
                NotificationId::NamedSignal(name) => put_bytes(buf, 3, name.as_bytes()),
            }
            match &notification.result {
                Resolution::Void => put_length(buf, 4, 0),
                Resolution::Value(content) => put_value(buf, 5, content),
                Resolution::Failure(failure) => put_failure(buf, 6, failure, version),
                Resolution::InvocationId(id) => put_bytes(buf, 16, id.to_string().as_bytes()),
                Resolution::StateKeys(keys) => {
                    let field = |key: &Text| field_len(1, key.len());
                    put_length(buf, 17, keys.iter().map(field).sum());
                    for key in keys {
                        put_length(buf, 1, key.len());
                        buf.put_slice(key.as_bytes());
                    }
                }
            }
        });
    }

    /// A completion whose value is passed on by reference.
    fn large_value(&mut self, ty: u16, id: u32, content: &Bytes) {
        let value_len = field_len(1, content.len());
        let len = number_len(1, id.into()) + field_len(5, value_len);
        self.largest = self.largest.max(len);
        frame::put_header(&mut self.tail, ty, len);
        put_number(&mut self.tail, 1, id.into());
        put_length(&mut self.tail, 5, value_len);
        put_length(&mut self.tail, 1, content.len());
        self.chunks.push(self.tail.split().freeze());
        self.chunks.push(content.clone());
    }

    /// Everything written so far, to be sent in this order.
    pub fn take(&mut self) -> impl Iterator<Item = Bytes> + use<> {
        let tail = (!self.tail.is_empty()).then(|| self.tail.split().freeze());
        std::mem::take(&mut self.chunks).into_iter().chain(tail)
    }

    /// Payload bytes of the largest message written so far.
    pub fn largest_message_bytes(&self) -> usize {
        self.largest
    }

    pub fn is_empty(&self) -> bool {
        self.tail.is_empty() && self.chunks.is_empty()
    }

    fn message(&mut self, ty: u16, body: impl FnOnce(&mut BytesMut)) {
        let at = self.tail.len();
        frame::put_header(&mut self.tail, ty, 0);
        body(&mut self.tail);
        let bytes = self.tail.len() - at - HEADER_BYTES;
        self.largest = self.largest.max(bytes);
        let len = u32::try_from(bytes).expect("messages are bounded far below 4 GiB");
        self.tail[at + 4..at + HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
    }
}

/// The `Input` command of an invocation, without frame header: headers in the given order, then the body, present even if empty.
pub fn encode_input<K: AsRef<str>, V: AsRef<str>>(headers: &[(K, V)], body: &[u8]) -> Bytes {
    let mut buf = input_head(headers, body.len(), body.len());
    buf.put_slice(body);
    buf.freeze()
}

/// What [`encode_input`] puts before a body of so many bytes.
pub fn encode_input_head<K: AsRef<str>, V: AsRef<str>>(headers: &[(K, V)], body_bytes: usize) -> Bytes {
    input_head(headers, body_bytes, 0).freeze()
}

/// With room for so many bytes behind it.
fn input_head<K: AsRef<str>, V: AsRef<str>>(headers: &[(K, V)], body_bytes: usize, room: usize) -> BytesMut {
    let header_len = |(key, value): &(K, V)| bytes_len(1, key.as_ref().len()) + bytes_len(2, value.as_ref().len());
    let headers_len: usize = headers.iter().map(|h| field_len(1, header_len(h))).sum();
    let value_len = bytes_len(1, body_bytes);
    let mut buf = BytesMut::with_capacity(headers_len + field_len(14, value_len) - body_bytes + room);
    for header in headers {
        put_length(&mut buf, 1, header_len(header));
        put_bytes(&mut buf, 1, header.0.as_ref().as_bytes());
        put_bytes(&mut buf, 2, header.1.as_ref().as_bytes());
    }
    put_length(&mut buf, 14, value_len);
    if body_bytes > 0 {
        put_length(&mut buf, 1, body_bytes);
    }
    buf
}

fn put_value(buf: &mut BytesMut, tag: u32, content: &[u8]) {
    put_length(buf, tag, bytes_len(1, content.len()));
    put_bytes(buf, 1, content);
}

fn put_failure(buf: &mut BytesMut, tag: u32, failure: &Failure, version: u8) {
    let metadata: &[(String, String)] = if version >= V6 { &failure.metadata } else { &[] };
    let pair_len = |(key, value): &(String, String)| bytes_len(1, key.len()) + bytes_len(2, value.len());
    let len = number_len(1, failure.code.into())
        + bytes_len(2, failure.message.len())
        + metadata.iter().map(|pair| field_len(3, pair_len(pair))).sum::<usize>();
    put_length(buf, tag, len);
    put_number(buf, 1, failure.code.into());
    put_bytes(buf, 2, failure.message.as_bytes());
    for pair in metadata {
        put_length(buf, 3, pair_len(pair));
        put_bytes(buf, 1, pair.0.as_bytes());
        put_bytes(buf, 2, pair.1.as_bytes());
    }
}

// Protobuf: a number or bytes equal to the default are not written, a length-delimited field with presence always is.

fn put_key(buf: &mut BytesMut, tag: u32, wire_type: u64) {
    encode_varint(u64::from(tag) << 3 | wire_type, buf);
}

fn put_number(buf: &mut BytesMut, tag: u32, value: u64) {
    if value != 0 {
        put_key(buf, tag, 0);
        encode_varint(value, buf);
    }
}

fn put_length(buf: &mut BytesMut, tag: u32, len: usize) {
    put_key(buf, tag, 2);
    encode_varint(len as u64, buf);
}

fn put_bytes(buf: &mut BytesMut, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_length(buf, tag, bytes.len());
        buf.put_slice(bytes);
    }
}

fn key_len(tag: u32) -> usize {
    encoded_len_varint(u64::from(tag) << 3)
}

fn number_len(tag: u32, value: u64) -> usize {
    if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value) }
}

/// Bytes of a length-delimited field that is always written.
fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn bytes_len(tag: u32, len: usize) -> usize {
    if len == 0 { 0 } else { field_len(tag, len) }
}
