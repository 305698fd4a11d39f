//! Room on the disk: looks at it, shuts the edges before the reserve is touched, holds work back before it is eaten, and opens both
//! again (rule R2).
//!
//! Owns: the two thresholds, and telling each change once, to log and tables as well, which then give back what they can. Does not own:
//! who waits (`gate`, `worker`), what goes before its time (`housekeeping`), or what happens when there is no room all the same: the log
//! goes on in its own reserve and then waits, and checkpoints are tried again.

use crate::gate::{DiskRoom, DiskStatus};
use crate::handle::Shared;
use crate::settings::Mutant;
use std::sync::{Arc, Weak};
use std::time::Duration;
use surefoot_env::{Space, Step, Steps, Wake};
use surefoot_log::Room;
use surefoot_storage::Engine;

/// The room is looked at this often, and where it is short, or could be soon, this often.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_SHORT: Duration = Duration::from_millis(100);
/// It could be soon below this many times the reserve.
const SOON: u64 = 4;
/// The reserve is no more than this share of the file system, whatever the setting says: a small one would be shut from the start.
pub const DISK_RESERVE_SHARE: u64 = 4;
/// What was shut opens once this share of its threshold is free beyond it, so that it does not open and shut in turn.
const MARGIN_SHARE: u64 = 8;

/// Looks at the disk for as long as the node runs.
pub(crate) struct DiskWatch {
    shared: Arc<Shared>,
    /// Tries a checkpoint again that found no room.
    checkpointer: Wake,
    /// Weak, so that the tables can be opened again as soon as no partition needs them.
    engine: Weak<dyn Engine>,
    free_before: u64,
    /// It was said that the room cannot be asked for.
    has_told: bool,
    /// It was said that nothing that was deleted can give its room back.
    has_told_lack: bool,
}

impl DiskWatch {
    pub(crate) fn new(shared: Arc<Shared>, checkpointer: Wake, engine: &Arc<dyn Engine>) -> Self {
        Self {
            shared,
            checkpointer,
            engine: Arc::downgrade(engine),
            free_before: u64::MAX,
            has_told: false,
            has_told_lack: false,
        }
    }

    fn look(&mut self) -> Duration {
        let shared = self.shared.clone();
        let Shared { env, settings, gate, log, .. } = &*shared;
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
        let mut now = next(&before, space, reserve, gate.unwritten_bytes(), log.retained().room, gate.checkpoint_waits());
        if settings.mutant == Mutant::StayShut && before.room != DiskRoom::Enough && now.room == DiskRoom::Enough {
            now.room = DiskRoom::Work;
        }
        // Before anybody is refused: who is told by an answer finds the same in the metrics.
        metrics::gauge!("surefoot_disk_free_bytes").set(space.free as f64);
        metrics::gauge!("surefoot_disk_edges_refused").set(f64::from(u8::from(now.room != DiskRoom::Enough)));
        metrics::gauge!("surefoot_disk_work_held").set(f64::from(u8::from(now.room == DiskRoom::Reserve)));
        gate.set_disk(now);
        let engine = self.engine.upgrade();
        if now.room != before.room {
            tell(&now);
            let is_short = now.room != DiskRoom::Enough;
            log.set_short(is_short);
            if let Some(engine) = &engine {
                engine.set_short(is_short);
            }
        }
        self.tell_lack(engine.and_then(|engine| engine.lacks_room()), space.free);
        if gate.checkpoint_waits() && space.free > self.free_before {
            self.checkpointer.wake();
        }
        self.free_before = space.free;
        if now.room != DiskRoom::Enough || space.free < now.edges_bytes.saturating_mul(SOON) { LOOK_SHORT } else { LOOK }
    }

    /// Once, until a step has found its room again.
    fn tell_lack(&mut self, needed_bytes: Option<u64>, free_bytes: u64) {
        let has_told = std::mem::replace(&mut self.has_told_lack, needed_bytes.is_some());
        if let Some(needed_bytes) = needed_bytes.filter(|_| !has_told) {
            tracing::error!(
                free_bytes,
                needed_bytes,
                "no room on the disk to give back what was deleted: the smallest step of that needs more than is free; make so much free, by \
                 removing other files or with a larger disk, and it goes on by itself"
            );
        }
    }
}

/// What follows from a look. The log and the checkpointer may know better than the free space: another process was quicker, or a
/// quota is lower.
fn next(
    before: &DiskStatus,
    space: Space,
    reserve_bytes_max: u64,
    unwritten_bytes: u64,
    log: Room,
    checkpoint_waits: bool,
) -> DiskStatus {
    let edges_bytes = reserve_bytes_max.min(space.total / DISK_RESERVE_SHARE);
    let work_bytes = edges_bytes / 2;
    let free_bytes = space.free.saturating_sub(unwritten_bytes);
    let opens_at = |threshold: u64| threshold + threshold / MARGIN_SHARE;
    let is_below = |threshold: u64, was: bool| free_bytes < if was { opens_at(threshold) } else { threshold };
    let room = if log != Room::Enough || is_below(work_bytes, before.room == DiskRoom::Reserve) {
        DiskRoom::Reserve
    } else if checkpoint_waits || is_below(edges_bytes, before.room != DiskRoom::Enough) {
        DiskRoom::Work
    } else {
        DiskRoom::Enough
    };
    let is_starved = log != Room::Enough || checkpoint_waits;
    let missing = |free: u64| if room == DiskRoom::Enough { 0 } else { opens_at(edges_bytes).saturating_sub(free) };
    let (missing_bytes, evict_bytes) = (missing(free_bytes), missing(space.free));
    DiskStatus { room, found_bytes: space.free, free_bytes, missing_bytes, evict_bytes, edges_bytes, work_bytes, is_starved }
}

fn tell(now: &DiskStatus) {
    let DiskStatus { free_bytes, edges_bytes, work_bytes, is_starved, .. } = *now;
    match now.room {
        DiskRoom::Enough => tracing::info!(free_bytes, "there is room on the disk again; calls and Kafka records are taken"),
        DiskRoom::Work => tracing::warn!(
            free_bytes,
            edges_bytes,
            is_starved,
            "no room on the disk, or no file descriptor; calls are answered 503 and Kafka is not read until there is, and journals and unkeyed \
             results of completed invocations go before their time"
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
    use crate::testing::{NodeLife, TestLog, TestNode, settings};
    use std::fmt::{Debug, Write};
    use std::io;
    use std::sync::Mutex;
    use surefoot_storage::{Batch, MemEngine, View};
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata};

    /// The lines of ERROR that are written while it is the default.
    #[derive(Clone, Default)]
    struct Errors(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Errors {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::ERROR
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[derive(Default)]
    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, "{field}={value:?} ").unwrap();
        }
    }

    /// An engine in which nothing that was deleted gives its room back while so much is missing.
    struct Stuck {
        engine: MemEngine,
        needed: Mutex<Option<u64>>,
    }

    impl Engine for Stuck {
        fn view(&self) -> Arc<dyn View> {
            self.engine.view()
        }
        fn commit(&self, batch: &Batch) -> io::Result<()> {
            self.engine.commit(batch)
        }
        fn flush(&self) -> io::Result<()> {
            self.engine.flush()
        }
        fn lacks_room(&self) -> Option<u64> {
            *self.needed.lock().unwrap()
        }
    }

    #[test]
    fn that_nothing_deleted_gives_its_room_back_is_told_once_with_what_is_needed_until_something_does() {
        let engine = MemEngine::new();
        let node = TestNode::start(&Arc::<TestLog>::default(), &engine, NodeLife(1), settings());
        let stuck = Arc::new(Stuck { engine, needed: Mutex::default() });
        let mut watch = DiskWatch::new(node.shared.clone(), Wake::new(), &(stuck.clone() as Arc<dyn Engine>));
        let errors = Errors::default();
        let mut told = |needed: Option<u64>| {
            *stuck.needed.lock().unwrap() = needed;
            tracing::subscriber::with_default(errors.clone(), || _ = watch.look());
            std::mem::take(&mut *errors.0.lock().unwrap())
        };
        assert_eq!(told(None), [] as [&str; 0]);
        let lines = told(Some(123_456));
        assert!(
            matches!(&lines[..], [line] if line.contains("needed_bytes=123456 ") && line.contains("free_bytes=")),
            "{lines:?}"
        );
        assert!(lines[0].contains("no room on the disk to give back what was deleted"), "{lines:?}");
        for needed in [123_456, 123_456, 99] {
            assert_eq!(told(Some(needed)), [] as [&str; 0], "it was said");
        }
        assert_eq!(told(None), [] as [&str; 0], "it goes on");
        let lines = told(Some(77));
        assert!(matches!(&lines[..], [line] if line.contains("needed_bytes=77 ")), "{lines:?}");
    }

    const RESERVE: u64 = 800;
    const TOTAL: u64 = 100_000;

    fn look(before: DiskRoom, free: u64) -> DiskRoom {
        let before = DiskStatus { room: before, ..DiskStatus::default() };
        next(&before, Space { free, total: TOTAL }, RESERVE, 0, Room::Enough, false).room
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
        let status = next(&DiskStatus::default(), Space { free: 900, total: 1_000 }, RESERVE, 0, Room::Enough, false);
        assert_eq!((status.room, status.edges_bytes, status.work_bytes), (DiskRoom::Enough, 250, 125));
    }

    /// More than what was left free was accepted, and then found no room in the tables.
    #[test]
    fn what_is_yet_to_be_written_is_not_free() {
        let space = Space { free: 1_000, total: TOTAL };
        let status = |unwritten| next(&DiskStatus::default(), space, RESERVE, unwritten, Room::Enough, false);
        let found = |status: DiskStatus| (status.room, status.free_bytes, status.missing_bytes, status.evict_bytes);
        assert_eq!(found(status(0)), (DiskRoom::Enough, 1_000, 0, 0));
        assert_eq!(found(status(200)), (DiskRoom::Enough, 800, 0, 0));
        assert_eq!(found(status(201)), (DiskRoom::Work, 799, 101, 0), "the edges open at an eighth above, and no journal goes");
        assert_eq!(found(status(5_000)), (DiskRoom::Reserve, 0, 900, 0));
        let full = next(&DiskStatus::default(), Space { free: 700, total: TOTAL }, RESERVE, 100, Room::Enough, false);
        assert_eq!(found(full), (DiskRoom::Work, 600, 300, 200));
    }

    #[test]
    fn a_log_or_a_checkpoint_that_found_no_room_counts_whatever_is_free() {
        let next = |room, checkpoint_waits| {
            next(&DiskStatus::default(), Space { free: TOTAL, total: TOTAL }, RESERVE, 0, room, checkpoint_waits)
        };
        assert_eq!(next(Room::Enough, true).room, DiskRoom::Work);
        assert_eq!(next(Room::Reserve, false).room, DiskRoom::Reserve);
        assert_eq!(next(Room::None, true).room, DiskRoom::Reserve);
        assert_eq!(next(Room::Enough, false).room, DiskRoom::Enough);
    }
}
