//! The bytes of a segment: its header, its batches, the entries in them. All integers little-endian.
//!
//! Owns: layout and checksums. Does not own: files, or what follows from a batch that does not verify.
//!
//! ```text
//! segment  [magic:8 "SUREFLOG"][version:4][length:4][number:8][previous:8][previous_end:8][partitions:4][unfinished:4]
//!          [file_bytes:8]([partition:2][next_lsn:8])* [0..][crc:4]     length bytes in all, a multiple of 8; then witness, batches
//! witness  [magic:4 "SFWT"][0:4][segment:8][synced:8][0:4][crc:4]      zeros until there is one
//! batch    [magic:4 "SFBT"][length:4][segment:8][offset:8][synced:8][entries:4][kind:4][chain:4][crc:4] entry* [0..]
//! entry    [partition:2][part:2][parts:2][0:2][epoch:4][payload_length:4][lsn:8] payload
//! ```
//!
//! `crc` verifies a header alone, so that it can vouch for what lies before it even where the chain is broken. `chain` covers
//! the batch's header up to itself and its entries, and starts from the chain of the batch before (the first one's from the
//! segment's header and number), so that a batch verifies only behind the very bytes it was written behind (rule L1). The witness
//! repeats far from the last batch how much was durable, so that what takes a segment's end does not take the proof with it (rule L2).

use crate::Entry;
use bytes::Bytes;
use std::collections::BTreeMap;
use surefoot_model::{Epoch, Lsn, PartitionId};

/// The version of everything in this module.
pub(super) const VERSION: u32 = 2;
/// Bytes of a batch before its entries: also the smallest batch.
pub(super) const BATCH_HEADER: usize = 48;
/// Bytes of a segment between its header and its first batch.
pub(super) const WITNESS: usize = 32;
/// Bytes of an entry before its payload.
pub(super) const ENTRY_HEADER: usize = 24;
/// Batches and segment headers start and end at multiples of this, so that a search for headers can take such steps.
pub(super) const ALIGN: usize = 8;
/// So much of a segment says which one it is and how long its header is.
pub(super) const HEADER_START: usize = 24;
/// An entry has at most this many parts.
pub(super) const PARTS_MAX: usize = u16::MAX as usize;

const SEGMENT_MAGIC: [u8; 8] = *b"SUREFLOG";
const SEGMENT_FIXED: usize = 56;
const SEGMENT_ROW: usize = 10;
/// A header with a row for each of the 65,536 partition ids.
const SEGMENT_HEADER_MAX: usize = SEGMENT_FIXED + SEGMENT_ROW * 65_536 + ALIGN;
const BATCH_MAGIC: [u8; 4] = *b"SFBT";
const WITNESS_MAGIC: [u8; 4] = *b"SFWT";
const KIND_AT: usize = 36;
const KIND_PLAIN: u32 = 0;
const KIND_CUT: u32 = 1;
const CHAIN_AT: usize = 40;
const CRC_AT: usize = 44;

/// What a segment says about itself. Segment numbers start at 1 and are never used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    /// The segment before and where it ends; none for a log's first segment.
    pub(super) previous: Option<(u64, u64)>,
    /// The LSN that each known partition's next entry gets (rule L5).
    pub(super) next: BTreeMap<PartitionId, Lsn>,
    /// The partition of whose next entry the segment before holds the first parts; at rest its number + 1, or 0.
    pub(super) unfinished: Option<PartitionId>,
    /// So long was its file, durably, before this header was written. It may have grown since.
    pub(super) file_bytes: u64,
}

/// Why bytes are no segment header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Sound, and written by a version with another layout: length and checksum lie where they do here in each.
    Version(u32),
    /// It names another version, and is not sound: it is not known whether batches follow.
    DamagedVersion,
    Damaged,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let length = (SEGMENT_FIXED + SEGMENT_ROW * self.next.len() + 4).next_multiple_of(ALIGN);
        let (previous, previous_end) = self.previous.unwrap_or((0, 0));
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&previous.to_le_bytes());
        out.extend_from_slice(&previous_end.to_le_bytes());
        out.extend_from_slice(&(self.next.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.unfinished.map_or(0, |partition| u32::from(partition.0) + 1).to_le_bytes());
        out.extend_from_slice(&self.file_bytes.to_le_bytes());
        for (partition, next) in &self.next {
            out.extend_from_slice(&partition.0.to_le_bytes());
            out.extend_from_slice(&next.0.to_le_bytes());
        }
        out.resize(length - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// How long the header of segment `number` is that starts with these bytes. One with another number is what an earlier life
    /// of a recycled file left behind.
    pub(super) fn length(start: &[u8; HEADER_START], number: u64) -> Result<usize, HeaderFault> {
        let length = u32_at(start, 12) as usize;
        if start[..8] != SEGMENT_MAGIC || u64_at(start, 16) != number {
            Err(HeaderFault::Damaged)
        } else if !(SEGMENT_FIXED..=SEGMENT_HEADER_MAX).contains(&length) || !length.is_multiple_of(ALIGN) {
            Err(Self::fault_of(start))
        } else {
            Ok(length)
        }
    }

    /// What a header that begins like this is, if it is not sound.
    pub(super) fn fault_of(start: &[u8]) -> HeaderFault {
        if u32_at(start, 8) == VERSION { HeaderFault::Damaged } else { HeaderFault::DamagedVersion }
    }

    /// Reads all the bytes of a header, as many as [`SegmentHeader::length`] said.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let rows_end = bytes.len().checked_sub(4).filter(|end| *end >= SEGMENT_FIXED).ok_or(HeaderFault::Damaged)?;
        if crc32c::crc32c(&bytes[..rows_end]) != u32_at(bytes, rows_end) {
            return Err(Self::fault_of(bytes));
        }
        // Only now: one flipped bit makes another version of it.
        if u32_at(bytes, 8) != VERSION {
            return Err(HeaderFault::Version(u32_at(bytes, 8)));
        }
        let partitions = u32_at(bytes, 40) as usize;
        if partitions > (rows_end - SEGMENT_FIXED) / SEGMENT_ROW {
            return Err(HeaderFault::Damaged);
        }
        let row = |at: &[u8]| (PartitionId(u16_at(at, 0)), Lsn(u64_at(at, 2)));
        let previous = u64_at(bytes, 24);
        let unfinished = match u32_at(bytes, 44) {
            0 => None,
            number => Some(PartitionId(u16::try_from(number - 1).map_err(|_| HeaderFault::Damaged)?)),
        };
        Ok(Self {
            unfinished,
            file_bytes: u64_at(bytes, 48),
            number: u64_at(bytes, 16),
            previous: (previous != 0).then(|| (previous, u64_at(bytes, 32))),
            next: bytes[SEGMENT_FIXED..rows_end].chunks_exact(SEGMENT_ROW).take(partitions).map(row).collect(),
        })
    }
}

/// What the first batch of a segment is chained to. `header` is the segment's header in full.
pub(super) fn chain_start(header: &[u8], number: u64) -> u32 {
    crc32c::crc32c_append(u32_at(header, header.len() - 4), &number.to_le_bytes())
}

/// Where the first batch of a segment lies whose header is so long.
pub(super) fn batches_at(header_bytes: usize) -> usize {
    header_bytes + WITNESS
}

/// What the witness of segment `number` is that was durable up to `synced` when it was written.
pub(super) fn witness(number: u64, synced: u64) -> [u8; WITNESS] {
    let mut out = [0; WITNESS];
    out[..4].copy_from_slice(&WITNESS_MAGIC);
    out[8..16].copy_from_slice(&number.to_le_bytes());
    out[16..24].copy_from_slice(&synced.to_le_bytes());
    let crc = crc32c::crc32c(&out[..WITNESS - 4]);
    out[WITNESS - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// How much of segment `number` was durable by its witness: 0 where there is none that is sound.
pub(super) fn witnessed(bytes: &[u8], number: u64) -> u64 {
    let sound = bytes.len() == WITNESS
        && bytes[..4] == WITNESS_MAGIC
        && crc32c::crc32c(&bytes[..WITNESS - 4]) == u32_at(bytes, WITNESS - 4)
        && u64_at(bytes, 8) == number;
    if sound { u64_at(bytes, 16) } else { 0 }
}

/// Where a batch lies and what it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// How far the segment is known to be durable.
    pub(super) synced: u64,
    /// The chain of the batch before.
    pub(super) chain: u32,
}

/// Pads `batch` (room for its header, then its entries), fills in its header, and returns its chain.
pub(super) fn seal(batch: &mut Vec<u8>, entries: u32, place: Place) -> u32 {
    seal_as(batch, KIND_PLAIN, entries, place)
}

/// The batch that says that a segment's file ends with it, whatever its header says. It has no entries.
pub(super) fn cut(place: Place) -> Vec<u8> {
    let mut batch = vec![0; BATCH_HEADER];
    seal_as(&mut batch, KIND_CUT, 0, place);
    batch
}

fn seal_as(batch: &mut Vec<u8>, kind: u32, entries: u32, place: Place) -> u32 {
    batch.resize(batch.len().next_multiple_of(ALIGN), 0);
    let length = u32::try_from(batch.len()).expect("a batch is bounded far below 4 GiB");
    batch[..4].copy_from_slice(&BATCH_MAGIC);
    batch[4..8].copy_from_slice(&length.to_le_bytes());
    batch[8..16].copy_from_slice(&place.segment.to_le_bytes());
    batch[16..24].copy_from_slice(&place.offset.to_le_bytes());
    batch[24..32].copy_from_slice(&place.synced.to_le_bytes());
    batch[32..36].copy_from_slice(&entries.to_le_bytes());
    batch[KIND_AT..CHAIN_AT].copy_from_slice(&kind.to_le_bytes());
    let chain = chain_over(batch, place.chain);
    batch[CHAIN_AT..CRC_AT].copy_from_slice(&chain.to_le_bytes());
    let crc = crc32c::crc32c(&batch[..CRC_AT]);
    batch[CRC_AT..BATCH_HEADER].copy_from_slice(&crc.to_le_bytes());
    chain
}

fn chain_over(batch: &[u8], before: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(before, &batch[..CHAIN_AT]), &batch[BATCH_HEADER..])
}

/// A batch header that verifies by itself; its entries may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) length: usize,
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) synced: u64,
    pub(super) entries: u32,
    /// The file ends with this batch.
    pub(super) is_cut: bool,
    pub(super) chain: u32,
}

impl BatchHeader {
    /// The header that `bytes` start with, if they start with one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEADER)?;
        let length = u32_at(bytes, 4) as usize;
        let sound = bytes[..4] == BATCH_MAGIC
            && crc32c::crc32c(&bytes[..CRC_AT]) == u32_at(bytes, CRC_AT)
            && length >= BATCH_HEADER
            && length.is_multiple_of(ALIGN);
        sound.then(|| Self {
            length,
            segment: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
            entries: u32_at(bytes, 32),
            is_cut: u32_at(bytes, KIND_AT) == KIND_CUT,
            chain: u32_at(bytes, CHAIN_AT),
        })
    }

    /// Whether `batch`, the bytes from this header to its end, is whole and follows a batch whose chain is `before`.
    pub(super) fn verifies(&self, batch: &[u8], before: u32) -> bool {
        chain_over(batch, before) == self.chain
    }
}

/// One entry, or one part of a large one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) partition: PartitionId,
    /// This is part `part` of `parts`, counted from 1.
    pub(super) part: u16,
    pub(super) parts: u16,
    pub(super) epoch: Epoch,
    pub(super) lsn: Lsn,
    pub(super) payload: &'a [u8],
}

impl<'a> Part<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.payload.len()).expect("a part is no longer than a batch");
        let mut header = [0; ENTRY_HEADER];
        header[..2].copy_from_slice(&self.partition.0.to_le_bytes());
        header[2..4].copy_from_slice(&self.part.to_le_bytes());
        header[4..6].copy_from_slice(&self.parts.to_le_bytes());
        header[8..12].copy_from_slice(&self.epoch.0.to_le_bytes());
        header[12..16].copy_from_slice(&length.to_le_bytes());
        header[16..24].copy_from_slice(&self.lsn.0.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.payload);
    }

    /// Takes one part off the front of `bytes`; none if they hold no whole one.
    pub(super) fn decode(bytes: &mut &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(ENTRY_HEADER)?;
        let (payload, rest) = rest.split_at_checked(u32_at(header, 12) as usize)?;
        *bytes = rest;
        Some(Self {
            partition: PartitionId(u16_at(header, 0)),
            part: u16_at(header, 2),
            parts: u16_at(header, 4),
            epoch: Epoch(u32_at(header, 8)),
            lsn: Lsn(u64_at(header, 16)),
            payload,
        })
    }

    pub(super) fn to_entry(self) -> Entry {
        let payload = Bytes::copy_from_slice(self.payload);
        Entry { partition: self.partition, lsn: self.lsn, epoch: self.epoch, payload }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check_bytes(bytes: &[u8], golden: Expect) {
        let lines: Vec<String> = bytes.chunks(16).map(|l| l.iter().map(|b| format!("{b:02x}")).collect()).collect();
        golden.assert_eq(&lines.join("\n"));
    }

    fn header() -> SegmentHeader {
        let next = [(PartitionId(3), Lsn(258)), (PartitionId::CATALOG, Lsn(7))];
        SegmentHeader { number: 5, previous: Some((4, 1024)), next: next.into(), unfinished: None, file_bytes: 4096 }
    }

    #[test]
    fn golden_segment_header() {
        let bytes = header().encode();
        check_bytes(
            &bytes,
            expect![[r#"
                53555245464c4f470200000050000000
                05000000000000000400000000000000
                00040000000000000200000000000000
                00100000000000000300020100000000
                0000ffff070000000000000037fa24d8"#]],
        );
        assert_eq!(SegmentHeader::length(bytes[..HEADER_START].try_into().unwrap(), 5), Ok(bytes.len()));
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
        for partition in [PartitionId(0), PartitionId(3), PartitionId::CATALOG] {
            let header = SegmentHeader { unfinished: Some(partition), ..header() };
            assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn golden_batch() {
        let mut batch = vec![0; BATCH_HEADER];
        let part = |lsn, payload| Part { partition: PartitionId(3), part: 1, parts: 1, epoch: Epoch(9), lsn: Lsn(lsn), payload };
        part(258, b"first".as_slice()).encode(&mut batch);
        part(259, b"second".as_slice()).encode(&mut batch);
        let start = chain_start(&header().encode(), 5);
        let chain = seal(&mut batch, 2, Place { segment: 5, offset: 112, synced: 112, chain: start });
        check_bytes(
            &batch,
            expect![[r#"
                53464254700000000500000000000000
                70000000000000007000000000000000
                0200000000000000248763f92ff45da4
                03000100010000000900000005000000
                02010000000000006669727374030001
                00010000000900000006000000030100
                00000000007365636f6e640000000000"#]],
        );
        let read = BatchHeader::decode(&batch).unwrap();
        assert_eq!(
            read,
            BatchHeader { length: batch.len(), segment: 5, offset: 112, synced: 112, entries: 2, is_cut: false, chain }
        );
        assert!(read.verifies(&batch, start) && !read.verifies(&batch, start ^ 1));
        let mut body = &batch[BATCH_HEADER..];
        assert_eq!(Part::decode(&mut body), Some(part(258, b"first")));
        assert_eq!(Part::decode(&mut body), Some(part(259, b"second")));
    }

    #[test]
    fn a_flipped_bit_is_seen_wherever_it_is() {
        let good = header().encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let length = SegmentHeader::length(bytes[..HEADER_START].try_into().unwrap(), 5);
            let expected = if (64..96).contains(&bit) { HeaderFault::DamagedVersion } else { HeaderFault::Damaged };
            assert!(length != Ok(good.len()) || SegmentHeader::decode(&bytes) == Err(expected), "bit {bit}");
        }
        let mut good = vec![0; BATCH_HEADER];
        Part { partition: PartitionId(1), part: 1, parts: 1, epoch: Epoch(1), lsn: Lsn(1), payload: b"payload" }
            .encode(&mut good);
        seal(&mut good, 1, Place { segment: 1, offset: 48, synced: 48, chain: 11 });
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let header = BatchHeader::decode(&bytes);
            assert!(header.is_none_or(|h| h.length != good.len() || !h.verifies(&bytes, 11)), "bit {bit}");
        }
        let good = witness(5, 4096);
        assert_eq!((witnessed(&good, 5), witnessed(&good, 4), witnessed(&[0; WITNESS], 5), witnessed(&[], 5)), (4096, 0, 0, 0));
        for bit in 0..good.len() * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(witnessed(&bytes, 5), 0, "bit {bit}");
        }
    }
}
