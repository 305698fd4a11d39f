//! What the disk of the data directory is dealt out to: what is left free, and how large log segments, table files and what is written at
//! once may be, so that log, tables and their compaction fit on it together.
//!
//! Owns: the sizes, each a function of the disk's size and of one setting, the largest value, and the smallest disk. Does not own: looking at what is free, or
//! what follows (`partition`).

use std::path::Path;
use surefoot_env::{Disk, Space};
use surefoot_partition::DISK_RESERVE_SHARE;

const MIB: u64 = 1 << 20;

/// With a smaller disk the log and one compaction have no room beside what is kept.
pub const DISK_BYTES_MIN: u64 = 32 * MIB;
/// What is left free where nothing else is set; sizes go by it even where less is.
pub const DISK_RESERVE_BYTES: u64 = 512 * MIB;

/// Half of what is left free is for the steps of a compaction and the log's next segment. A step reads what waits in the first level, twice
/// what is written at once, and a dozen table files; four more it leaves free, for that segment. So of what is left free:
const TABLE_SHARE: u64 = 32;
const SEGMENT_SHARE: u64 = 8;
const ACTIVE_SHARE: u64 = 8;
const LOG_RESERVE_SHARE: u64 = 16;
/// Log that is more than this is written to the tables before its time.
const LOG_SHARE: u64 = 2;
/// A disk that is large beside what is left free takes so much of itself at once: what the log holds meanwhile counts as taken.
const ACTIVE_SHARE_OF_DISK: u64 = 64;

/// A body or a message is no larger than this share of the disk: it lies there several times on its way, a table file is no smaller than
/// the largest value in it, and several may be under way.
const VALUE_SHARE_OF_DISK: u64 = 64;

const TABLE_BYTES_MAX: u64 = 64 * MIB;
const SEGMENT_BYTES: (u64, u64) = (MIB, 64 * MIB);
const LOG_RESERVE_BYTES: (u64, u64) = (MIB / 2, 4 * MIB);
const LOG_BYTES: (u64, u64) = (4 * MIB, 256 * MIB);

/// The sizes of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskShares {
    /// Of a table file that compaction writes.
    pub table_bytes: u64,
    /// Of the largest log segment.
    pub segment_bytes_max: u64,
    /// What the log keeps for running work (rule L8).
    pub log_reserve_bytes: u64,
    /// Log beyond which partitions are written before their time (rule C5).
    pub log_bytes_max: u64,
    /// What is held in memory before it is written.
    pub active_bytes_max: u64,
    /// Of the largest body of a call, Kafka record, or message of a handler.
    pub value_bytes_max: u64,
}

impl DiskShares {
    /// Of a disk of so many bytes, with what is set to be left free.
    pub fn of(disk_bytes: u64, reserve_setting: u64) -> Self {
        let reserve = reserve_setting.max(DISK_RESERVE_BYTES).min(disk_bytes / DISK_RESERVE_SHARE);
        Self {
            table_bytes: (reserve / TABLE_SHARE).min(TABLE_BYTES_MAX),
            segment_bytes_max: (reserve / SEGMENT_SHARE).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1),
            log_reserve_bytes: (reserve / LOG_RESERVE_SHARE).clamp(LOG_RESERVE_BYTES.0, LOG_RESERVE_BYTES.1),
            log_bytes_max: (reserve / LOG_SHARE).clamp(LOG_BYTES.0, LOG_BYTES.1),
            active_bytes_max: (reserve / ACTIVE_SHARE).max(disk_bytes / ACTIVE_SHARE_OF_DISK),
            value_bytes_max: disk_bytes / VALUE_SHARE_OF_DISK,
        }
    }

    /// Of the disk that holds a directory; of a large one where it cannot be asked.
    pub fn of_dir(disk: &dyn Disk, dir: &Path, reserve_setting: u64) -> Self {
        // What is yet to be made lies where the directory above it does.
        let space = dir.ancestors().find_map(|above| disk.space(above).ok());
        Self::of(space.map_or(u64::MAX, |space| space.total), reserve_setting)
    }
}

/// Refuses a disk that can never hold log and tables.
pub fn check(space: Space) -> Result<(), String> {
    if space.total >= DISK_BYTES_MIN {
        return Ok(());
    }
    Err(format!(
        "SF4001: the disk of the data directory has {} bytes in all, and log and tables need {DISK_BYTES_MIN} at least: make it larger, or \
         choose another --data-dir",
        space.total
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What compaction leaves free.
    const KEPT_TABLES: u64 = 4;

    #[test]
    fn a_small_disk_has_small_pieces_and_a_large_one_what_it_always_had() {
        let shares = |disk_bytes| DiskShares::of(disk_bytes, DISK_RESERVE_BYTES);
        let of_64_mib = DiskShares {
            table_bytes: MIB / 2,
            segment_bytes_max: 2 * MIB,
            log_reserve_bytes: MIB,
            log_bytes_max: 8 * MIB,
            active_bytes_max: 2 * MIB,
            value_bytes_max: MIB,
        };
        assert_eq!(shares(64 * MIB), of_64_mib);
        let of_100_gib = DiskShares {
            table_bytes: 16 * MIB,
            segment_bytes_max: 64 * MIB,
            log_reserve_bytes: 4 * MIB,
            log_bytes_max: 256 * MIB,
            active_bytes_max: 1_600 * MIB,
            value_bytes_max: 1_600 * MIB,
        };
        assert_eq!(shares(100 << 30), of_100_gib);
        assert_eq!(DiskShares::of(100 << 30, 0), of_100_gib, "the sizes do not go by a reserve that is switched off");
    }

    /// The dead end was a reserve in which no compaction fitted, or a reserve that the disk could never leave free.
    #[test]
    fn on_every_disk_the_reserve_holds_a_segment_and_a_step_of_compaction_and_leaves_half_to_use() {
        for disk_bytes in (0..28).map(|doublings| DISK_BYTES_MIN << doublings).flat_map(|bytes| [bytes, bytes / 2 * 3 - 1]) {
            for setting in [DISK_RESERVE_BYTES, 4 * DISK_RESERVE_BYTES, 1 << 40] {
                let shares = DiskShares::of(disk_bytes, setting);
                let edges = setting.min(disk_bytes / DISK_RESERVE_SHARE);
                let work = edges / 2;
                // What waits in the first level, the level below it, and the dozen that one table overlaps.
                let step = (2 * (edges / ACTIVE_SHARE)).max(12 * shares.table_bytes);
                assert!(step + shares.segment_bytes_max <= work, "{disk_bytes} bytes, {setting} set: {shares:?}");
                assert!(
                    shares.segment_bytes_max <= KEPT_TABLES * (shares.table_bytes + 1),
                    "but for what is rounded off: {shares:?}"
                );
                // Log at its bound, what it keeps ready, and the reserve.
                let log = shares.log_bytes_max + 2 * shares.segment_bytes_max + shares.log_reserve_bytes;
                assert!(log + edges + edges / 8 <= disk_bytes / 16 * 11, "{disk_bytes} bytes, {setting} set: {shares:?}");
            }
        }
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_what_it_needs() {
        assert_eq!(check(Space { free: 0, total: DISK_BYTES_MIN }), Ok(()));
        let refused = check(Space { free: 1, total: DISK_BYTES_MIN - 1 }).unwrap_err();
        assert!(refused.starts_with("SF4001") && refused.contains("33554432"), "{refused}");
    }
}
