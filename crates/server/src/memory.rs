//! What `memory-size` is dealt out to: one share for each use of memory that grows with load.
//!
//! Owns: the shares, which together are no more than the setting. Does not own: what a room does at its bound; each of them lets one
//! thing of any size pass while nothing else is under way, so that no share is too small for a large body.

use std::fmt::Write;

/// What shares are counted in.
const PARTS: u64 = 128;
/// No share is smaller, however small the setting (a simulated node's is): what is small need not wait then.
const SHARE_BYTES_MIN: u64 = 64 << 10;

/// One use of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Tables,
    EngineCache,
    LargeBodies,
    SmallBodies,
    EdgeWaits,
    Reports,
    Reads,
    Replays,
    Loads,
    Live,
    Parts,
    Messages,
    Kafka,
}

/// The shares of one setting.
#[derive(Clone, Copy, Debug)]
pub struct MemoryShares {
    memory_bytes: u64,
}

impl Share {
    pub const ALL: [Self; 13] = [
        Self::Tables,
        Self::EngineCache,
        Self::LargeBodies,
        Self::SmallBodies,
        Self::EdgeWaits,
        Self::Reports,
        Self::Reads,
        Self::Replays,
        Self::Loads,
        Self::Live,
        Self::Parts,
        Self::Messages,
        Self::Kafka,
    ];

    fn parts(self) -> u64 {
        match self {
            Self::Tables => 86,
            Self::EngineCache => 8,
            Self::Kafka => 6,
            Self::Reports | Self::Parts | Self::LargeBodies | Self::Replays => 4,
            Self::SmallBodies | Self::EdgeWaits | Self::Reads | Self::Loads => 2,
            Self::Live | Self::Messages => 2,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Tables => {
                "Tables that are not written to the disk yet, records that wait to be applied, results of 64 KiB and more that clients have not \
                 taken, and attempts that run (6 KiB each, at most half of the setting): tables take what attempts leave. At four fifths of it calls and Kafka \
                 records for a deployment that has brought much lately wait at the edges, at 88 % its attempts neither start nor read on; \
                 those of deployments that bring little do so at 96 and 100 %"
            }
            Self::EngineCache => "Blocks of the tables on disk",
            Self::LargeBodies => "Bodies of calls that come in",
            Self::SmallBodies => "Those of up to 64 KiB, and the first 64 KiB of those that come without their size",
            Self::EdgeWaits => "Calls and Kafka records on their way to the disk",
            Self::Reports => "What attempts brought and is not applied yet; 4 MiB at most",
            Self::Reads => {
                "Values of state that handlers have asked for, each as large as the largest of its key has been, until they come"
            }
            Self::Replays => "Journals and state on their way to handlers; no more than `worker.invoker.memory-limit`",
            Self::Loads => "The same while they are read from the disk",
            Self::Live => {
                "Results and values of state that have not left for their running handlers, beyond the first 16 KiB of each attempt"
            }
            Self::Parts => "Messages of handlers, from when more than 16 KiB of them have come until they are reported",
            Self::Messages => "Calls and results between partitions on their way to the disk; 4 MiB at most",
            Self::Kafka => {
                "What subscriptions have read ahead: each takes half of what is free of it, 24 MiB at most and 256 KiB at least"
            }
        }
    }
}

impl MemoryShares {
    pub fn of(memory_bytes: u64) -> Self {
        Self { memory_bytes }
    }

    pub fn bytes(self, share: Share) -> u64 {
        (self.memory_bytes / PARTS * share.parts()).max(SHARE_BYTES_MIN)
    }
}

/// The shares as a table in Markdown.
pub(crate) fn page() -> String {
    let mut page = String::from("| Of `memory-size` | For |\n|---|---|\n");
    for share in Share::ALL {
        let _ = writeln!(page, "| {}/{PARTS} | {}. |", share.parts(), share.meaning());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_no_more_than_the_setting() {
        for memory_bytes in [16 << 20, (16 << 20) + 1, 64 << 20, 1_000_000_007, 256 << 20, 1 << 40] {
            let shares = MemoryShares::of(memory_bytes);
            let sum: u64 = Share::ALL.map(|share| shares.bytes(share)).into_iter().sum();
            assert!((memory_bytes - PARTS * PARTS..=memory_bytes).contains(&sum), "{sum} of {memory_bytes}");
        }
        assert_eq!(MemoryShares::of(1).bytes(Share::Kafka), SHARE_BYTES_MIN);
    }
}
