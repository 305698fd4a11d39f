//! Base62 with the alphabet `0-9a-zA-Z` in value order, most significant digit first, padded with `0` to a fixed length.
//!
//! As the public id format has it, the number that is written is the big-endian bytes read as *little* endian.

const ALPHABET: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Digits of a 64-bit number.
pub(crate) const DIGITS_64: usize = 11;
/// Digits of a 128-bit number.
pub(crate) const DIGITS_128: usize = 22;

/// Fills `out`, which has [`DIGITS_64`] bytes.
pub(crate) fn encode_64(value: u64, out: &mut [u8]) {
    encode(u128::from(value.swap_bytes()), out);
}

/// Fills `out`, which has [`DIGITS_128`] bytes.
pub(crate) fn encode_128(value: u128, out: &mut [u8]) {
    encode(value.swap_bytes(), out);
}

pub(crate) fn decode_64(digits: &str) -> Option<u64> {
    u64::try_from(decode(digits, DIGITS_64)?).ok().map(u64::swap_bytes)
}

pub(crate) fn decode_128(digits: &str) -> Option<u128> {
    decode(digits, DIGITS_128).map(u128::swap_bytes)
}

/// Ten digits at a time: 62^10 fits 64 bits, and dividing 128 bits is what costs.
fn encode(mut value: u128, out: &mut [u8]) {
    const DIGITS: usize = 10;
    const STEP: u128 = 62u128.pow(DIGITS as u32);
    for slots in out.rchunks_mut(DIGITS) {
        let mut low = (value % STEP) as u64;
        value /= STEP;
        for slot in slots.iter_mut().rev() {
            *slot = ALPHABET[(low % 62) as usize];
            low /= 62;
        }
    }
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
