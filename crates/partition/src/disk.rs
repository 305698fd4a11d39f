//! Room on the disk: looks at it, shuts the edges before the reserve is touched, holds work back before it is eaten, and opens both
//! again (rule R2).
//!
//! Owns: the two thresholds, and telling each change once. Does not own: who waits (`gate`, `worker`), or what happens when there is
//! no room all the same: the log goes on in its own reserve and then waits, and checkpoints are tried again.

use crate::gate::{DiskRoom, DiskStatus};
use crate::handle::Shared;
use crate::mailbox::Input;
use crate::settings::Mutant;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Space, Step, Steps, Wake};
use surefoot_log::Room;

/// The room is looked at this often, and where it is short, or could be soon, this often.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_SHORT: Duration = Duration::from_millis(100);
/// It could be soon below this many times the reserve.
const SOON: u64 = 4;
/// The reserve is no more than this share of the file system, whatever the setting says: a small one would be shut from the start.
const RESERVE_SHARE: u64 = 8;
/// What was shut opens once this share of its threshold is free beyond it, so that it does not open and shut in turn.
const MARGIN_SHARE: u64 = 8;

/// Looks at the disk for as long as the node runs.
pub(crate) struct DiskWatch {
    shared: Arc<Shared>,
    /// Tries a checkpoint again that found no room.
    checkpointer: Wake,
    free_before: u64,
    /// It was said that the room cannot be asked for.
    has_told: bool,
}

impl DiskWatch {
    pub(crate) fn new(shared: Arc<Shared>, checkpointer: Wake) -> Self {
        Self { shared, checkpointer, free_before: u64::MAX, has_told: false }
    }

    fn look(&mut self) -> Duration {
        let Shared { env, settings, gate, log, workers, .. } = &*self.shared;
        let dir = &settings.disk_dir;
        let space = match env.disk.space(dir) {
            Ok(space) => space,
            Err(error) => {
                if !std::mem::replace(&mut self.has_told, true) {
                    tracing::warn!(dir = %dir.display(), %error, "cannot ask for the room on the disk; it is noticed once it has run out");
                }
                Space { free: u64::MAX, total: u64::MAX }
            }
        };
        let before = gate.disk();
        let reserve = if settings.mutant == Mutant::IgnoreDisk { 0 } else { settings.disk_reserve_bytes_max };
        let now = next(&before, space, reserve, log.retained().room, gate.checkpoint_waits());
        gate.set_disk(now);
        if now.room != before.room {
            tell(&now);
            // Attempts that found no room are asked for again.
            workers.iter().for_each(|worker| worker.push(Input::SlotFreed));
        }
        if gate.checkpoint_waits() && space.free > self.free_before {
            self.checkpointer.wake();
        }
        self.free_before = space.free;
        metrics::gauge!("surefoot_disk_free_bytes").set(space.free as f64);
        metrics::gauge!("surefoot_disk_edges_refused").set(f64::from(u8::from(now.room != DiskRoom::Enough)));
        metrics::gauge!("surefoot_disk_work_held").set(f64::from(u8::from(now.room == DiskRoom::Reserve)));
        if now.room != DiskRoom::Enough || space.free < now.edges_bytes.saturating_mul(SOON) { LOOK_SHORT } else { LOOK }
    }
}

/// What follows from a look. The log and the checkpointer may know better than the free space: another process was quicker, or a
/// quota is lower.
fn next(before: &DiskStatus, space: Space, reserve_bytes_max: u64, log: Room, checkpoint_waits: bool) -> DiskStatus {
    let edges_bytes = reserve_bytes_max.min(space.total / RESERVE_SHARE);
    let work_bytes = edges_bytes / 2;
    let is_below = |threshold: u64, was: bool| space.free < threshold + if was { threshold / MARGIN_SHARE } else { 0 };
    let room = if log != Room::Enough || is_below(work_bytes, before.room == DiskRoom::Reserve) {
        DiskRoom::Reserve
    } else if checkpoint_waits || is_below(edges_bytes, before.room != DiskRoom::Enough) {
        DiskRoom::Work
    } else {
        DiskRoom::Enough
    };
    let is_starved = log != Room::Enough || checkpoint_waits;
    DiskStatus { room, free_bytes: space.free, edges_bytes, work_bytes, is_starved }
}

fn tell(now: &DiskStatus) {
    let DiskStatus { free_bytes, edges_bytes, work_bytes, is_starved, .. } = *now;
    match now.room {
        DiskRoom::Enough => tracing::info!(free_bytes, "there is room on the disk again; calls and Kafka records are taken"),
        DiskRoom::Work => tracing::warn!(
            free_bytes,
            edges_bytes,
            is_starved,
            "no room on the disk, or no file descriptor; calls are answered 503 and Kafka is not read until there is"
        ),
        DiskRoom::Reserve => tracing::error!(
            free_bytes,
            work_bytes,
            is_starved,
            "no room on the disk but for the reserve, or no file descriptor; running invocations wait as well until there is"
        ),
    }
}

impl Steps for DiskWatch {
    fn step(&mut self) -> Step {
        if self.shared.gate.has_ended() { Step::Done } else { Step::IdleFor(self.look()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVE: u64 = 800;
    const TOTAL: u64 = 100_000;

    fn look(before: DiskRoom, free: u64) -> DiskRoom {
        let before = DiskStatus { room: before, ..DiskStatus::default() };
        next(&before, Space { free, total: TOTAL }, RESERVE, Room::Enough, false).room
    }

    #[test]
    fn edges_are_shut_first_and_open_last_and_neither_flutters() {
        use DiskRoom::{Enough, Reserve, Work};
        for (before, free, after) in [
            (Enough, 800, Enough),
            (Enough, 799, Work),
            (Work, 899, Work),
            (Work, 900, Enough),
            (Work, 400, Work),
            (Work, 399, Reserve),
            (Enough, 0, Reserve),
            (Reserve, 449, Reserve),
            (Reserve, 450, Work),
            (Reserve, 5_000, Enough),
        ] {
            assert_eq!(look(before, free), after, "{before:?} with {free} bytes free");
        }
    }

    #[test]
    fn a_small_disk_is_not_shut_from_the_start() {
        let status = next(&DiskStatus::default(), Space { free: 900, total: 1_000 }, RESERVE, Room::Enough, false);
        assert_eq!((status.room, status.edges_bytes, status.work_bytes), (DiskRoom::Enough, 125, 62));
    }

    #[test]
    fn a_log_or_a_checkpoint_that_found_no_room_counts_whatever_is_free() {
        let next = |log, checkpoint_waits| {
            next(&DiskStatus::default(), Space { free: TOTAL, total: TOTAL }, RESERVE, log, checkpoint_waits)
        };
        assert_eq!(next(Room::Enough, true).room, DiskRoom::Work);
        assert_eq!(next(Room::Reserve, false).room, DiskRoom::Reserve);
        assert_eq!(next(Room::None, true).room, DiskRoom::Reserve);
        assert_eq!(next(Room::Enough, false).room, DiskRoom::Enough);
    }
}
