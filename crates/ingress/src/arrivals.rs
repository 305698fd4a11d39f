//! Room for what comes in pieces and may become large: bodies of requests. Not for what comes over a connection that others share
//! and wait for: what nobody reads takes of its window.
//!
//! Owns: the room, which grows with what has come and not with what was announced, so that who announces much and sends little holds
//! little. Small ones, and the first bytes of those whose size nobody knows, have room of their own: large ones hold up large ones
//! only. One that outgrows it gives it back for large room; while that is full, those that wait for it so hold half of the small room at
//! most, and further ones are refused. One of all may always grow, so that several cannot wait for what the others hold. Of each deployment one stands in line
//! at a time, and none takes room for which the tables have none (rule O8). Does not own: how large one may be, or how long it may take.

use crate::Error;
use crate::wait::{HOLDING_WAIT_MAX, ROOM_WAIT_MAX, at_once};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use surefoot_model::DeploymentId;
use surefoot_partition::Lines;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of each that count as small.
pub(crate) const SMALL_BYTES: u64 = 64 << 10;
/// Room is taken in steps of so many bytes.
pub(crate) const SMALL_STEP_BYTES: u64 = 4 << 10;
pub(crate) const LARGE_STEP_BYTES: u64 = 256 << 10;

/// Of the small room, the share that those may hold which have outgrown it and wait.
const OUTGROWN_SHARE: u64 = 2;

const OPEN: &str = "the semaphore is never closed";

/// What all of them may take.
#[derive(Clone, Copy, Debug)]
pub struct ArrivalBounds {
    /// Those of up to 64 KiB, and the first 64 KiB of those that come without their size.
    pub small_bytes_max: u64,
    /// All others. The one that may always grow comes on top.
    pub large_bytes_max: u64,
}

/// Room for all of them.
#[derive(Debug)]
pub(crate) struct Arrivals {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Those that wait for either.
    small_lines: Lines,
    large_lines: Lines,
    /// Held by the one that may always grow.
    growing: Arc<Semaphore>,
    /// Held by those that wait for large room and have small room until then.
    outgrown: Arc<Semaphore>,
}

/// What one of them has of it; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct ArrivalRoom {
    /// It is known to be large: it has nothing of the small room, but for one that has outgrown it and waits for large room.
    is_large: bool,
    small: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
    growing: Option<OwnedSemaphorePermit>,
}

impl Arrivals {
    pub(crate) fn new(bounds: ArrivalBounds) -> Self {
        let pool =
            |bytes: u64| Arc::new(Semaphore::new(usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)));
        let small = bounds.small_bytes_max.max(SMALL_BYTES);
        let large = bounds.large_bytes_max.max(LARGE_STEP_BYTES);
        let outgrown = small / SMALL_BYTES / OUTGROWN_SHARE;
        let lines = Lines::default;
        let (small_lines, large_lines) = (lines(), lines());
        Self { small: pool(small), large: pool(large), small_lines, large_lines, growing: pool(1), outgrown: pool(outgrown) }
    }

    /// Bytes that are free of the small room and of the large one, and whether the one that may always grow is still to be chosen.
    #[cfg(test)]
    pub(crate) fn free(&self) -> (usize, usize, bool) {
        (self.small.available_permits(), self.large.available_permits(), self.growing.available_permits() > 0)
    }

    /// Makes room for so many bytes of one in all, unless that has to be waited for: see [`Self::grow`].
    pub(crate) fn try_grow(&self, room: &mut ArrivalRoom, bytes: u64) -> bool {
        room.is_large |= bytes > SMALL_BYTES;
        let (small, large) = (room.lacking_small(bytes), room.lacking_large(bytes));
        let has_small = small == 0 || take(&mut room.small, self.small.clone().try_acquire_many_owned(small));
        let has_large = large == 0 || (has_small && take(&mut room.large, self.large.clone().try_acquire_many_owned(large)));
        if has_large {
            room.leave_small();
        }
        has_small && has_large
    }

    /// Waits until a body has room for this many bytes in all. Its turn comes after at most one body of each other deployment. Then it waits
    /// for room in the tables as well: `tables` does so for the time that it is given. Until both have room, the body holds no more than
    /// before. **Errors**: what `tables` says, or too many wait already that have outgrown the small room.
    /// Dropped midway, it gives back all that the body has.
    pub(crate) async fn grow<R: Future<Output = Result<(), Error>>>(
        &self,
        mut room: ArrivalRoom,
        bytes: u64,
        deployment: DeploymentId,
        tables: impl Fn(Duration) -> R,
    ) -> Result<ArrivalRoom, Error> {
        room.is_large |= bytes > SMALL_BYTES;
        let has_outgrown = room.is_large && room.small.is_some();
        let outgrown = has_outgrown.then(|| self.outgrown.clone().try_acquire_owned()).transpose();
        let _outgrown = outgrown.map_err(|_| Error::NoRoom)?;
        let wait_max = if room.holds_large() { HOLDING_WAIT_MAX } else { ROOM_WAIT_MAX };
        let lines = if room.is_large { &self.large_lines } else { &self.small_lines };
        loop {
            tables(wait_max).await?;
            let more = lines.in_turn(deployment, self.more(&room, bytes)).await;
            // Those before it may have filled them meanwhile, and it would wait as a whole, in memory.
            if let Some(has_room) = at_once(pin!(tables(wait_max))).await {
                has_room?;
                room.add(more);
                return Ok(room);
            }
        }
    }

    /// What one lacks for so many bytes in all.
    async fn more(&self, room: &ArrivalRoom, bytes: u64) -> ArrivalRoom {
        let (small, large) = (room.lacking_small(bytes), room.lacking_large(bytes));
        let both = async {
            let small = self.small.clone().acquire_many_owned(small).await.expect(OPEN);
            (small, self.large.clone().acquire_many_owned(large).await.expect(OPEN))
        };
        tokio::select! {
            biased;
            // Permits that one of the two has got when the other one is ready go to the next body that waits.
            (small, large) = both => ArrivalRoom { small: Some(small), large: Some(large), ..ArrivalRoom::default() },
            permit = self.growing.clone().acquire_owned() => {
                ArrivalRoom { growing: Some(permit.expect(OPEN)), ..ArrivalRoom::default() }
            }
        }
    }
}

impl ArrivalRoom {
    /// For one that has so many bytes at least.
    pub(crate) fn of(bytes_min: u64) -> Self {
        Self { is_large: bytes_min > SMALL_BYTES, ..Self::default() }
    }

    /// Whether it has room that large ones wait for.
    pub(crate) fn holds_large(&self) -> bool {
        self.growing.is_some() || self.large.as_ref().is_some_and(|large| large.num_permits() > 0)
    }

    fn add(&mut self, more: Self) {
        more.small.into_iter().for_each(|permit| merge(&mut self.small, permit));
        more.large.into_iter().for_each(|permit| merge(&mut self.large, permit));
        self.growing = self.growing.take().or(more.growing);
        self.leave_small();
    }

    /// One that is large has room as such now.
    fn leave_small(&mut self) {
        if self.is_large {
            self.small = None;
        }
    }

    /// Permits that are missing for so many bytes of a small one.
    fn lacking_small(&self, bytes: u64) -> u32 {
        if self.growing.is_some() || self.is_large {
            return 0;
        }
        lacking(&self.small, bytes, SMALL_STEP_BYTES)
    }

    /// Permits that are missing for so many bytes of a large one.
    fn lacking_large(&self, bytes: u64) -> u32 {
        if self.growing.is_some() || !self.is_large {
            return 0;
        }
        let step = if bytes > SMALL_BYTES { LARGE_STEP_BYTES } else { SMALL_STEP_BYTES };
        lacking(&self.large, bytes, step)
    }
}

fn lacking(held: &Option<OwnedSemaphorePermit>, bytes: u64, step: u64) -> u32 {
    let held = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u64;
    u32::try_from(bytes.next_multiple_of(step).saturating_sub(held)).unwrap_or(u32::MAX)
}

fn take<E>(held: &mut Option<OwnedSemaphorePermit>, permit: Result<OwnedSemaphorePermit, E>) -> bool {
    permit.map(|permit| merge(held, permit)).is_ok()
}

fn merge(held: &mut Option<OwnedSemaphorePermit>, permit: OwnedSemaphorePermit) {
    match held {
        Some(held) => held.merge(permit),
        None => *held = Some(permit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::ready;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// For a deployment that has room in the tables.
    async fn grow(all: &Arrivals, room: ArrivalRoom, bytes: u64) -> Option<ArrivalRoom> {
        all.grow(room, bytes, DeploymentId(1), |_| ready(Ok(()))).await.ok()
    }

    /// Attempts whose messages had begun filled the room for the first bytes, and all waited for each other.
    #[test]
    fn those_that_fill_the_room_for_small_ones_do_not_wait_for_each_other() {
        let all = Arrivals::new(ArrivalBounds { small_bytes_max: 4 * SMALL_BYTES, large_bytes_max: 2 * LARGE_STEP_BYTES });
        let free = all.free();
        let mut rooms = Vec::new();
        loop {
            let mut room = ArrivalRoom::default();
            if !all.try_grow(&mut room, SMALL_STEP_BYTES) {
                break;
            }
            rooms.push(room);
        }
        let mut grows: Vec<_> = rooms.into_iter().map(|room| Box::pin(grow(&all, room, SMALL_BYTES))).collect();
        while !grows.is_empty() {
            let before = grows.len();
            // Each that has grown is done with, and gives back what it has.
            grows.retain_mut(|grow| poll(grow.as_mut()).is_pending());
            assert!(grows.len() < before, "one of {before} may go on");
        }
        assert_eq!(all.free(), free);
    }

    /// Those that waited for large room had 64 KiB of the small one each, and calls of a few bytes waited behind them.
    #[test]
    fn large_ones_that_wait_leave_small_ones_their_room() {
        let all = Arrivals::new(ArrivalBounds { small_bytes_max: 4 * SMALL_BYTES, large_bytes_max: 2 * LARGE_STEP_BYTES });
        let wait = |_| Box::pin(grow(&all, ArrivalRoom::of(SMALL_BYTES + 1), 1));
        let mut large: Vec<_> = (0..100).map(wait).collect();
        large.iter_mut().for_each(|grow| drop(poll(grow.as_mut())));
        let small: Vec<_> = (0..4)
            .map(|n| {
                let mut room = ArrivalRoom::of(SMALL_BYTES);
                assert!(all.try_grow(&mut room, SMALL_BYTES), "{n}");
                room
            })
            .collect();
        assert!(!all.try_grow(&mut ArrivalRoom::default(), 1), "their own room has a bound, too");
        drop(small);
    }

    /// They kept their 64 KiB of the small room while they waited for large room, and calls of a few bytes waited behind them.
    #[test]
    fn those_that_outgrow_the_room_for_small_ones_leave_it_or_most_of_it() {
        const PLACES: usize = 8;
        let all =
            Arrivals::new(ArrivalBounds { small_bytes_max: PLACES as u64 * SMALL_BYTES, large_bytes_max: LARGE_STEP_BYTES });
        let free = all.free();
        let has_room_for = |places: usize| {
            let mut rooms = Vec::new();
            (0..places).all(|_| {
                let mut room = ArrivalRoom::default();
                let fits = all.try_grow(&mut room, SMALL_BYTES);
                rooms.push(room);
                fits
            })
        };
        // One has large room, one may always grow, and the others wait or are refused.
        let mut grown = ArrivalRoom::default();
        assert!(all.try_grow(&mut grown, SMALL_BYTES) && all.try_grow(&mut grown, SMALL_BYTES + 1));
        assert!(has_room_for(PLACES), "it left the small room");
        let (mut waiting, mut refused) = (Vec::new(), 0);
        let mut growing = None;
        for _ in 0..100 {
            let mut room = ArrivalRoom::default();
            assert!(all.try_grow(&mut room, SMALL_BYTES) && !all.try_grow(&mut room, SMALL_BYTES + 1));
            let mut grow = Box::pin(grow(&all, room, SMALL_BYTES + 1));
            match poll(grow.as_mut()) {
                Poll::Ready(Some(room)) => assert!(growing.replace(room).is_none(), "one"),
                Poll::Ready(None) => refused += 1,
                Poll::Pending => waiting.push(grow),
            }
        }
        assert_eq!((waiting.len(), refused), (PLACES / 2, 99 - PLACES / 2));
        assert!(has_room_for(PLACES / 2));
        // Whoever waits goes on as others give back what they have, and gives back its own.
        drop((grown, growing));
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain_mut(|grow| poll(grow.as_mut()).is_pending());
            assert!(waiting.len() < before);
        }
        assert_eq!(all.free(), free);
    }

    #[test]
    fn one_may_always_grow_and_the_others_wait_for_what_it_gives_back() {
        let all = Arrivals::new(ArrivalBounds { small_bytes_max: 4 * SMALL_BYTES, large_bytes_max: 2 * LARGE_STEP_BYTES });
        let free = all.free();
        let (mut one, mut other) = (ArrivalRoom::default(), ArrivalRoom::default());
        assert!(all.try_grow(&mut one, SMALL_BYTES + 1) && all.try_grow(&mut other, SMALL_BYTES + 1));
        let bytes = SMALL_BYTES + LARGE_STEP_BYTES + 1;
        assert!(!all.try_grow(&mut one, bytes) && !all.try_grow(&mut other, bytes));
        let mut grows = pin!(grow(&all, one, bytes));
        let Poll::Ready(Some(one)) = poll(grows.as_mut()) else { panic!("one of them may") };
        let mut waits = pin!(grow(&all, other, bytes));
        assert!(poll(waits.as_mut()).is_pending());
        assert!(all.try_grow(&mut ArrivalRoom::default(), SMALL_BYTES), "small ones pass");
        drop(one);
        let Poll::Ready(Some(other)) = poll(waits.as_mut()) else { panic!("there is room now") };
        drop(other);
        assert_eq!(all.free(), free);
    }
}
