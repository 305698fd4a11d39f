//! Base62 with the alphabet `0-9a-zA-Z` in value order, most significant digit first, padded with `0` to a fixed length.
//!
//! As the public id format has it, the number that is written is the big-endian bytes read as *little* endian.

const ALPHABET: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Digits of a 64-bit number.
pub(crate) const DIGITS_64: usize = 11;
/// Digits of a 128-bit number.
pub(crate) const DIGITS_128: usize = 22;

pub(crate) fn encode_64(value: u64, out: &mut String) {
    encode(u128::from(value.swap_bytes()), DIGITS_64, out);
}

pub(crate) fn encode_128(value: u128, out: &mut String) {
    encode(value.swap_bytes(), DIGITS_128, out);
}

pub(crate) fn decode_64(digits: &str) -> Option<u64> {
    u64::try_from(decode(digits, DIGITS_64)?).ok().map(u64::swap_bytes)
}

pub(crate) fn decode_128(digits: &str) -> Option<u128> {
    decode(digits, DIGITS_128).map(u128::swap_bytes)
}

fn encode(mut value: u128, digits: usize, out: &mut String) {
    let mut buf = [b'0'; DIGITS_128];
    for slot in buf[..digits].iter_mut().rev() {
        *slot = ALPHABET[(value % 62) as usize];
        value /= 62;
    }
    out.extend(buf[..digits].iter().map(|&b| char::from(b)));
}

fn decode(text: &str, digits: usize) -> Option<u128> {
    if text.len() != digits {
        return None;
    }
    text.bytes().try_fold(0u128, |value, b| {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'z' => b - b'a' + 10,
            b'A'..=b'Z' => b - b'A' + 36,
            _ => return None,
        };
        value.checked_mul(62)?.checked_add(u128::from(digit))
    })
}
