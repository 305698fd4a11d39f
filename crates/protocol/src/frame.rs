//! Frames: 8 bytes of header, then one message.
//!
//! **Shape**: `[type:2 BE][flags:2][length:4 BE][payload]`. Owns: splitting a byte stream into frames however it was cut, and the
//! bound on their size, checked from the header alone. Does not own: what a payload says. Source: protocol reference section 4.

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub const HEADER_BYTES: usize = 8;

/// Room taken for a payload before any of its bytes have come; a header alone must not cost more.
const FIRST_ALLOCATION_BYTES: usize = 16 * 1024;

/// One message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub ty: u16,
    /// A buffer of its own: keeping it keeps nothing else in memory.
    pub payload: Bytes,
}

/// A message beyond the bound, known by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of type {ty:#06x} has {bytes} bytes; the limit is {limit}")]
pub struct TooLarge {
    pub ty: u16,
    pub bytes: usize,
    pub limit: usize,
}

/// Puts a frame's header in front of a payload of `len` bytes.
pub(crate) fn put_header(buf: &mut BytesMut, ty: u16, len: usize) {
    buf.put_u16(ty);
    buf.put_u16(0);
    buf.put_u32(u32::try_from(len).expect("messages are bounded far below 4 GiB"));
}

/// Splits a byte stream into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    limit: usize,
    chunk: Bytes,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    payload: BytesMut,
}

impl FrameDecoder {
    /// `limit`: payload bytes of the largest frame let through.
    pub fn new(limit: usize) -> Self {
        Self { limit, chunk: Bytes::new(), header: [0; HEADER_BYTES], header_len: 0, payload: BytesMut::new() }
    }

    /// Takes the next bytes of the stream. The frames of the chunk before must have been taken.
    pub fn push(&mut self, chunk: Bytes) {
        assert!(self.chunk.is_empty(), "all frames of a chunk are taken before the next one");
        self.chunk = chunk;
    }

    /// The next whole frame, if there is one.
    ///
    /// **Errors**: [`TooLarge`] as soon as a header says so; the stream is of no use any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, TooLarge> {
        if self.header_len < HEADER_BYTES {
            let taken = self.chunk.len().min(HEADER_BYTES - self.header_len);
            self.chunk.copy_to_slice(&mut self.header[self.header_len..self.header_len + taken]);
            self.header_len += taken;
            if self.header_len < HEADER_BYTES {
                return Ok(None);
            }
        }
        let ty = u16::from_be_bytes([self.header[0], self.header[1]]);
        let len = self.length();
        if len > self.limit {
            return Err(TooLarge { ty, bytes: len, limit: self.limit });
        }
        if self.payload.capacity() == 0 {
            self.payload = BytesMut::with_capacity(len.min(FIRST_ALLOCATION_BYTES));
        }
        let taken = self.chunk.len().min(len - self.payload.len());
        self.make_room(self.payload.len() + taken, len);
        self.payload.extend_from_slice(&self.chunk[..taken]);
        self.chunk.advance(taken);
        if self.payload.len() < len {
            return Ok(None);
        }
        self.header_len = 0;
        Ok(Some(Frame { ty, payload: std::mem::take(&mut self.payload).freeze() }))
    }

    /// Doubles the buffer where it is too small for `needed` bytes, up to what the whole payload takes and no further.
    fn make_room(&mut self, needed: usize, whole: usize) {
        if self.payload.capacity() < needed {
            let mut larger = BytesMut::with_capacity(whole.min(needed.saturating_mul(2)));
            larger.extend_from_slice(&self.payload);
            self.payload = larger;
        }
    }

    /// Bytes of the buffer of the frame that has come in part: at most twice what has come, and no more than all of it.
    pub fn part_bytes(&self) -> usize {
        self.payload.capacity()
    }

    /// Payload bytes of the frame that has come in part, by its header; 0 before all of that has come.
    pub fn frame_bytes(&self) -> usize {
        if self.header_len < HEADER_BYTES { 0 } else { self.length() }
    }

    /// Of the payload, by a header that is whole.
    fn length(&self) -> usize {
        u32::from_be_bytes([self.header[4], self.header[5], self.header[6], self.header[7]]) as usize
    }

    /// Whether the stream stands between two frames.
    pub fn is_between_frames(&self) -> bool {
        self.header_len == 0 && self.chunk.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(decoder: &mut FrameDecoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_by_its_header() {
        let mut decoder = FrameDecoder::new(10);
        decoder.push(Bytes::from_static(&[0x04, 0x11, 0, 0, 0, 0, 0, 11]));
        assert_eq!(decoder.next_frame(), Err(TooLarge { ty: 0x0411, bytes: 11, limit: 10 }));
    }

    #[test]
    fn flags_are_ignored_and_empty_payloads_are_frames() {
        let mut decoder = FrameDecoder::new(10);
        decoder.push(Bytes::from_static(&[0, 5, 0x80, 0, 0, 0, 0, 2, 8, 1, 0, 3, 0, 0, 0, 0, 0, 0]));
        let expected = [Frame { ty: 5, payload: Bytes::from_static(&[8, 1]) }, Frame { ty: 3, payload: Bytes::new() }];
        assert_eq!(frames(&mut decoder), expected);
        assert!(decoder.is_between_frames());
    }

    proptest! {
        #[test]
        fn frames_come_back_however_the_stream_is_cut(
            payloads in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            cuts in prop::collection::vec(1usize..50, 1..20),
        ) {
            let mut stream = BytesMut::new();
            for (ty, payload) in &payloads {
                put_header(&mut stream, *ty, payload.len());
                stream.put_slice(payload);
            }
            let mut stream = stream.freeze();
            let mut decoder = FrameDecoder::new(200);
            let mut found = Vec::new();
            for cut in cuts.iter().cycle() {
                if stream.is_empty() {
                    break;
                }
                decoder.push(stream.split_to((*cut).min(stream.len())));
                found.extend(frames(&mut decoder));
            }
            prop_assert!(decoder.is_between_frames());
            let found: Vec<_> = found.into_iter().map(|f| (f.ty, f.payload.to_vec())).collect();
            prop_assert_eq!(found, payloads);
        }

        #[test]
        fn any_bytes_are_frames_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut decoder = FrameDecoder::new(100);
            decoder.push(bytes.into());
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
