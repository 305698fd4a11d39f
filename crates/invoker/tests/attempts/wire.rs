//! The handler's side of the protocol, as far as these tests speak it.
//!
//! Written beside `protocol` and not with it, so that a mistake there does not meet the same mistake here.

use bytes::{Buf, Bytes, BytesMut};
use surefoot_model::entry_type;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(mut message: Vec<u8>, tag: u32, value: u64) -> Vec<u8> {
    varint(&mut message, u64::from(tag) << 3);
    varint(&mut message, value);
    message
}

fn bytes(mut message: Vec<u8>, tag: u32, value: &[u8]) -> Vec<u8> {
    varint(&mut message, u64::from(tag) << 3 | 2);
    varint(&mut message, value.len() as u64);
    message.extend_from_slice(value);
    message
}

fn value(message: Vec<u8>, tag: u32, content: &[u8]) -> Vec<u8> {
    bytes(message, tag, &bytes(Vec::new(), 1, content))
}

fn frame(ty: u16, message: Vec<u8>) -> Bytes {
    header(ty, message.len()).into_iter().chain(message).collect()
}

/// The header of a frame alone.
pub(crate) fn header(ty: u16, len: usize) -> Vec<u8> {
    [&ty.to_be_bytes()[..], &[0, 0], &(len as u32).to_be_bytes()].concat()
}

/// The input command, without header.
pub(crate) fn input(body: &[u8]) -> Bytes {
    value(Vec::new(), 14, body).into()
}

/// A command with a completion id alone, without header.
pub(crate) fn completable(id: u32) -> Bytes {
    number(Vec::new(), 11, id.into()).into()
}

pub(crate) fn output(body: &[u8]) -> Bytes {
    frame(entry_type::OUTPUT, value(Vec::new(), 14, body))
}

pub(crate) fn end() -> Bytes {
    frame(0x0003, Vec::new())
}

pub(crate) fn set_state(key: &[u8], content: &[u8]) -> Bytes {
    frame(entry_type::SET_STATE, value(bytes(Vec::new(), 1, key), 3, content))
}

pub(crate) fn clear_state(key: &[u8]) -> Bytes {
    frame(entry_type::CLEAR_STATE, bytes(Vec::new(), 1, key))
}

pub(crate) fn lazy_state(key: &[u8], id: u32) -> Bytes {
    frame(entry_type::GET_LAZY_STATE, number(bytes(Vec::new(), 1, key), 11, id.into()))
}

pub(crate) fn eager_state(key: &[u8]) -> Bytes {
    frame(entry_type::GET_EAGER_STATE, bytes(bytes(Vec::new(), 1, key), 13, &[]))
}

pub(crate) fn run(id: u32) -> Bytes {
    frame(entry_type::RUN, completable(id).to_vec())
}

pub(crate) fn sleep(until: u64, id: u32) -> Bytes {
    frame(entry_type::SLEEP, number(number(Vec::new(), 1, until), 11, id.into()))
}

pub(crate) fn call(service: &str, key: &str, handler: &str, ids: (u32, u32)) -> Bytes {
    let mut message = bytes(bytes(Vec::new(), 1, service.as_bytes()), 2, handler.as_bytes());
    message = bytes(message, 5, key.as_bytes());
    frame(entry_type::CALL, number(number(message, 10, ids.0.into()), 11, ids.1.into()))
}

pub(crate) fn proposes(id: u32, content: &[u8]) -> Bytes {
    frame(0x0005, bytes(number(Vec::new(), 1, id.into()), 14, content))
}

pub(crate) fn suspends(ids: &[u32]) -> Bytes {
    suspends_on(ids, &[])
}

/// A suspension on completions and signals.
pub(crate) fn suspends_on(ids: &[u32], signals: &[u32]) -> Bytes {
    let message = ids.iter().fold(Vec::new(), |message, id| number(message, 1, (*id).into()));
    frame(0x0001, signals.iter().fold(message, |message, signal| number(message, 2, (*signal).into())))
}

/// What a handler says of its failure.
#[derive(Clone, Copy, Default)]
pub(crate) struct Says<'a> {
    pub(crate) message: &'a str,
    pub(crate) stacktrace: &'a str,
    pub(crate) delay_ms: Option<u64>,
    /// 1: pause, 2: fail.
    pub(crate) behavior: u64,
}

pub(crate) fn fails(says: Says<'_>) -> Bytes {
    let mut message = bytes(number(Vec::new(), 1, 500), 2, says.message.as_bytes());
    message = bytes(message, 3, says.stacktrace.as_bytes());
    if let Some(delay) = says.delay_ms {
        message = number(message, 8, delay);
    }
    frame(0x0002, number(message, 9, says.behavior))
}

/// Takes one frame of what the server sent, if it is whole, and tells it.
pub(crate) fn told(sent: &mut BytesMut) -> Option<String> {
    let header = sent.get(..8)?;
    let ty = u16::from_be_bytes([header[0], header[1]]);
    let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if sent.len() < 8 + len {
        return None;
    }
    sent.advance(8);
    let message = sent.split_to(len).freeze();
    Some(match ty {
        0x0000 => start(message),
        entry_type::INPUT => "Input".to_owned(),
        entry_type::OUTPUT => "Output".to_owned(),
        ty if ty >= 0x8000 => format!("{ty:#06x} #{}", numbers(message, 1).first().copied().unwrap_or_default()),
        ty => format!("{ty:#06x}"),
    })
}

fn start(message: Bytes) -> String {
    let of = |tag| numbers(message.clone(), tag).first().copied().unwrap_or_default();
    let partial = if of(5) == 1 { ", partial" } else { "" };
    format!("Start, {} known, {} values{partial}, retry {}", of(3), fields(message.clone(), 4).len(), of(7))
}

fn numbers(message: Bytes, tag: u32) -> Vec<u64> {
    let of_tag = |(t, number, _): (u32, u64, Option<Bytes>)| (t == tag).then_some(number);
    all(message).into_iter().filter_map(of_tag).collect()
}

fn fields(message: Bytes, tag: u32) -> Vec<Bytes> {
    all(message).into_iter().filter(|(t, ..)| *t == tag).filter_map(|(_, _, bytes)| bytes).collect()
}

/// Fields in order: tag, number or length, and the bytes where it has some.
fn all(mut message: Bytes) -> Vec<(u32, u64, Option<Bytes>)> {
    let mut found = Vec::new();
    while message.has_remaining() {
        let key = read(&mut message);
        let number = read(&mut message);
        let bytes = (key & 7 == 2).then(|| message.split_to(number as usize));
        found.push(((key >> 3) as u32, number, bytes));
    }
    found
}

fn read(bytes: &mut Bytes) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}
