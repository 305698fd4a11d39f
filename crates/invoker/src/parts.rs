//! Messages of handlers that have come in part: what room they have, who waits for more of it, and how fast they come.
//!
//! Owns: the bound on their bytes, the leave of one message at a time to grow beyond it, and the least rate at which a message comes
//! while others wait. Does not own: which deployments start less meanwhile (`reach`), or the bytes (`attempt`).

use crate::invoker::Invoker;
use crate::lines::Lines;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use surefoot_model::DeploymentId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// While others wait for room, a large message brings [`LEAST_BYTES`] in each such time, or its attempt ends.
pub(crate) const LEAST_TIME: Duration = Duration::from_secs(10);
const LEAST_BYTES: usize = 64 << 10;

const OPEN: &str = "the semaphore is never closed";

/// Permits of a semaphore for bytes: all of them where these are more.
pub(crate) fn permits(bytes_max: usize, bytes: usize) -> u32 {
    u32::try_from(bytes.min(bytes_max).min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX)
}

/// The room of all of them.
pub(crate) struct Parts {
    bytes_max: usize,
    room: Arc<Semaphore>,
    /// Leave for one message to grow beyond it.
    beyond: Arc<Semaphore>,
    lines: Lines,
    /// Messages that wait for room.
    waiting: AtomicUsize,
}

impl Parts {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let room = Arc::new(Semaphore::new(permits(bytes_max, usize::MAX) as usize));
        Self { bytes_max, room, beyond: Arc::new(Semaphore::new(1)), lines: Lines::default(), waiting: AtomicUsize::new(0) }
    }

    /// Room for nothing yet of a message that comes from now on.
    pub(crate) fn part(&self, now: Duration) -> Box<MessagePart> {
        let none = self.room.clone().try_acquire_many_owned(0).expect("none is always there");
        Box::new(MessagePart { bytes_max: self.bytes_max, room: none, beyond: None, pace: PartPace::from(now) })
    }

    /// Whether a message of so many bytes is larger than the room of all of them.
    pub(crate) fn is_beyond(&self, bytes: u64) -> bool {
        bytes > self.bytes_max as u64
    }

    /// Whether a message may grow to so many bytes at once; room is taken where there is some.
    pub(crate) fn try_grow(&self, part: &mut MessagePart, bytes: usize) -> bool {
        match part.missing(bytes) {
            0 => true,
            missing => match self.room.clone().try_acquire_many_owned(missing) {
                Ok(room) => {
                    part.room.merge(room);
                    true
                }
                Err(_) => part.beyond.is_some(),
            },
        }
    }

    /// Waits for what a message lacks to grow to so many bytes. One at a time may grow beyond the bound: those that hold a part cannot all
    /// wait for each other.
    pub(crate) async fn more(&self, deployment: DeploymentId, part: &MessagePart, bytes: usize) -> MorePart {
        let missing = part.missing(bytes);
        let more = async {
            tokio::select! {
                biased;
                // Over when the other arm wins, either of them.
                room = self.room.clone().acquire_many_owned(missing) => MorePart::Room(room.expect(OPEN)),
                leave = self.beyond.clone().acquire_owned() => MorePart::Beyond(leave.expect(OPEN)),
            }
        };
        self.lines.in_turn(deployment, more).await
    }

    /// Whether messages wait for room now.
    pub(crate) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// What lets a message grow; given back where it is dropped.
pub(crate) enum MorePart {
    Room(OwnedSemaphorePermit),
    /// Leave to grow beyond the bound.
    Beyond(OwnedSemaphorePermit),
}

/// Room for the bytes of a message that have come; given back when dropped.
pub(crate) struct MessagePart {
    bytes_max: usize,
    room: OwnedSemaphorePermit,
    /// Leave to grow beyond the bound.
    beyond: Option<OwnedSemaphorePermit>,
    pub(crate) pace: PartPace,
}

impl MessagePart {
    pub(crate) fn add(&mut self, more: MorePart) {
        match more {
            MorePart::Room(room) => self.room.merge(room),
            MorePart::Beyond(leave) => self.beyond = Some(leave),
        }
    }

    /// Permits for so many bytes that it has not: all there are for a message that is larger.
    fn missing(&self, bytes: usize) -> u32 {
        permits(self.bytes_max, bytes).saturating_sub(self.room.num_permits() as u32)
    }
}

/// A message of a deployment that waits for room, until dropped.
pub(crate) struct PartWaiting {
    invoker: Arc<Invoker>,
    deployment: DeploymentId,
}

impl PartWaiting {
    pub(crate) fn new(invoker: Arc<Invoker>, deployment: DeploymentId) -> Self {
        invoker.parts.waiting.fetch_add(1, Ordering::Relaxed);
        invoker.reach.on_part_waits(deployment);
        Self { invoker, deployment }
    }
}

impl Drop for PartWaiting {
    fn drop(&mut self) {
        let Self { invoker, deployment } = self;
        invoker.parts.waiting.fetch_sub(1, Ordering::Relaxed);
        if invoker.reach.on_part_waited(*deployment) {
            invoker.output.has_room();
        }
    }
}

/// How fast a message comes.
pub(crate) struct PartPace {
    since: Duration,
    bytes: usize,
}

impl PartPace {
    /// Begins anew: what came before, or could not come, does not count.
    pub(crate) fn from(now: Duration) -> Self {
        Self { since: now, bytes: 0 }
    }

    pub(crate) fn came(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// When it is to be looked at.
    pub(crate) fn due(&self) -> Duration {
        self.since + LEAST_TIME
    }

    /// Where its time is over it begins anew. How many bytes have come in it, if that was too slow.
    pub(crate) fn too_slow(&mut self, now: Duration) -> Option<usize> {
        if now < self.due() {
            return None;
        }
        let bytes = std::mem::replace(self, Self::from(now)).bytes;
        (bytes < LEAST_BYTES).then_some(bytes)
    }
}
