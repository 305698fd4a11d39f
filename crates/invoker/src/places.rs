//! Places: how many attempts run at a time, and who gives one up (rule O5).
//!
//! Owns: the count, the attempts that only wait, and which of them are asked to suspend while others want to start, or want a stream
//! to the same deployment: as many as wait, the longest idle first, and of those the ones with the shortest journals, since a replay
//! has its price. Does not own: in which order attempts start (`partition`), or how one suspends (`attempt`).

use crate::feed::Line;
use crate::reach::PlacesLeft;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_model::DeploymentId;

/// An attempt that was asked to suspend counts as one that will for so long; then another one is asked, too.
const ASKED_COUNTS: Duration = Duration::from_secs(5);
/// Attempts whose idle times differ by less are equal but for their journals.
const SIMILAR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: AtomicUsize,
    /// Starts that wait for a place, of all workers.
    wanted: AtomicUsize,
    /// Attempts that only wait, and were not asked yet.
    idle: AtomicUsize,
    is_watched: AtomicBool,
    waits: Mutex<Waits>,
    /// Nobody is ever asked: the broken variant of rule O5.
    never_asks: bool,
}

#[derive(Debug, Default)]
struct Waits {
    /// Starts that wait, by worker.
    wanted: BTreeMap<usize, usize>,
    idle: BTreeMap<Rank, IdleAttempt>,
    idle_of: BTreeMap<DeploymentId, BTreeSet<Rank>>,
    /// Attempts that were asked and have not ended, unless that was too long ago.
    asked: BTreeMap<u64, DeploymentId>,
    /// The same in the order of asking, those that have ended included.
    asked_at: VecDeque<(Duration, u64)>,
    next: u64,
    /// Deployments of which attempts wait for a stream.
    crowded: BTreeMap<DeploymentId, Crowded>,
}

#[derive(Debug)]
struct IdleAttempt {
    deployment: DeploymentId,
    line: Arc<Line>,
}

#[derive(Debug, Default)]
struct Crowded {
    /// Attempts that wait for a stream.
    waiting: usize,
    /// Those that were asked since the first of them waited.
    asked: usize,
}

/// Who is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// In units of [`SIMILAR`].
    idle_since: u64,
    journal_bytes: usize,
    number: u64,
}

impl Places {
    pub(crate) fn new(max: usize, never_asks: bool) -> Self {
        let [taken, wanted, idle] = [0; 3].map(AtomicUsize::new);
        Self { max, taken, wanted, idle, is_watched: AtomicBool::new(false), waits: Mutex::default(), never_asks }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes a place if one is free.
    pub(crate) fn try_take(&self) -> bool {
        let taken = &self.taken;
        let is_taken = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < self.max).then_some(taken + 1));
        if is_taken.is_ok() {
            // The start that took it waits no more.
            let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |wanted| wanted.checked_sub(1));
        }
        is_taken.is_ok()
    }

    /// Gives a place back, with what is known of the attempt that had it.
    pub(crate) fn leave(&self, idle: Option<Idle>) {
        let Some(Idle(rank)) = idle else {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        // At once: nobody is asked in between for the place that is free.
        let mut waits = self.lock();
        waits.take_idle(rank);
        self.count_idle(&waits);
        waits.forget_asked(rank.number);
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn free(&self) -> usize {
        self.max.saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// Places that are free, or may be had from attempts that only wait; and those of this deployment among the latter.
    pub(crate) fn within_reach(&self, deployment: DeploymentId) -> PlacesLeft {
        let idle = self.idle.load(Ordering::Relaxed);
        // As a rule nobody waits, and nothing is locked.
        let own_idle = if idle == 0 { 0 } else { self.lock().idle_of.get(&deployment).map_or(0, BTreeSet::len) };
        PlacesLeft { count: self.free() + idle, own_idle }
    }

    /// The same, for somebody who wants to hear of more that may be had: see [`Self::take_watched`].
    pub(crate) fn watch_within_reach(&self, deployment: DeploymentId) -> PlacesLeft {
        self.is_watched.store(true, Ordering::Relaxed);
        // Either this sees who waits by now, or they see that somebody wants to hear of it.
        fence(Ordering::SeqCst);
        self.within_reach(deployment)
    }

    /// Whether somebody wants to hear that one more attempt only waits.
    pub(crate) fn take_watched(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_watched.load(Ordering::Relaxed) && self.is_watched.swap(false, Ordering::Relaxed)
    }

    /// So many starts of a worker wait. Where places do not help (`is_short`: memory is what lacks), free ones do not count.
    pub(crate) fn want(&self, worker: usize, starts: usize, is_short: bool, now: Duration) {
        let mut waits = self.lock();
        waits.wanted.insert(worker, starts);
        self.wanted.store(waits.wanted.values().sum(), Ordering::Relaxed);
        self.ask(&mut waits, is_short, now);
    }

    /// One more attempt waits for a stream to this deployment.
    pub(crate) fn want_stream(&self, deployment: DeploymentId) {
        self.lock().crowded.entry(deployment).or_default().waiting += 1;
    }

    /// Has attempts of this deployment make room, as many as wait for a stream to it.
    pub(crate) fn ask_for_streams(&self, deployment: DeploymentId, now: Duration) {
        let mut waits = self.lock();
        waits.forget_old(now);
        self.ask_of(&mut waits, deployment, now);
    }

    /// An attempt waits for a stream no more.
    pub(crate) fn has_stream(&self, deployment: DeploymentId) {
        let mut waits = self.lock();
        if let Some(crowded) = waits.crowded.get_mut(&deployment) {
            crowded.waiting -= 1;
            if crowded.waiting == 0 {
                waits.crowded.remove(&deployment);
            }
        }
    }

    /// An attempt only waits: it may be asked through `line` to suspend.
    pub(crate) fn idle(
        &self,
        deployment: DeploymentId,
        line: Arc<Line>,
        since: Duration,
        journal_bytes: usize,
        now: Duration,
    ) -> Idle {
        let mut waits = self.lock();
        let number = waits.next;
        waits.next += 1;
        let idle_since = since.as_millis() as u64 / SIMILAR.as_millis() as u64;
        let rank = Rank { idle_since, journal_bytes, number };
        waits.idle.insert(rank, IdleAttempt { deployment, line });
        waits.idle_of.entry(deployment).or_default().insert(rank);
        self.count_idle(&waits);
        if self.wanted.load(Ordering::Relaxed) > 0 {
            self.ask(&mut waits, false, now);
        }
        self.ask_of(&mut waits, deployment, now);
        Idle(rank)
    }

    /// The attempt has work again: it is asked no more. One that has been asked already counts on.
    pub(crate) fn resume(&self, idle: Idle) -> Option<Idle> {
        let mut waits = self.lock();
        let was_asked = waits.take_idle(idle.0).is_none();
        self.count_idle(&waits);
        was_asked.then_some(idle)
    }

    /// Somebody could be asked for a place that a start waits for, and was not.
    pub(crate) fn owes(&self) -> bool {
        let waits = self.lock();
        self.wanted.load(Ordering::Relaxed) > self.free() + waits.asked.len() && !waits.idle.is_empty()
    }

    fn ask(&self, waits: &mut Waits, is_short: bool, now: Duration) {
        waits.forget_old(now);
        let free = if is_short { 0 } else { self.free() };
        let wanted = self.wanted.load(Ordering::Relaxed);
        while !self.never_asks && wanted > free + waits.asked.len() {
            let Some((&rank, _)) = waits.idle.first_key_value() else { return };
            waits.ask(rank, now);
            self.count_idle(waits);
        }
    }

    fn ask_of(&self, waits: &mut Waits, deployment: DeploymentId, now: Duration) {
        while !self.never_asks
            && waits.crowded.get(&deployment).is_some_and(|crowded| crowded.waiting > crowded.asked)
            && let Some(rank) = waits.idle_of.get(&deployment).and_then(|ranks| ranks.first().copied())
        {
            waits.ask(rank, now);
            self.count_idle(waits);
        }
    }

    fn count_idle(&self, waits: &Waits) {
        self.idle.store(waits.idle.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    fn take_idle(&mut self, rank: Rank) -> Option<IdleAttempt> {
        let idle = self.idle.remove(&rank)?;
        if let Some(ranks) = self.idle_of.get_mut(&idle.deployment) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.idle_of.remove(&idle.deployment);
            }
        }
        Some(idle)
    }

    fn ask(&mut self, rank: Rank, now: Duration) {
        let Some(IdleAttempt { deployment, line }) = self.take_idle(rank) else { return };
        self.asked.insert(rank.number, deployment);
        self.asked_at.push_back((now, rank.number));
        if let Some(crowded) = self.crowded.get_mut(&deployment) {
            crowded.asked += 1;
        }
        line.ask();
    }

    fn forget_asked(&mut self, number: u64) {
        if let Some(deployment) = self.asked.remove(&number)
            && let Some(crowded) = self.crowded.get_mut(&deployment)
        {
            // It may have been asked before anybody waited.
            crowded.asked = crowded.asked.saturating_sub(1);
        }
    }

    fn forget_old(&mut self, now: Duration) {
        while let Some((at, number)) = self.asked_at.front().copied()
            && at + ASKED_COUNTS <= now
        {
            self.asked_at.pop_front();
            self.forget_asked(number);
        }
    }
}

/// An attempt among those that may be asked, or have been; given back with [`Places::resume`] or [`Places::leave`].
#[derive(Debug)]
pub(crate) struct Idle(Rank);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Feeds, Notifications, Told};
    use std::task::{Context, Poll, Waker};

    const SECOND: Duration = Duration::from_secs(1);
    const HERE: DeploymentId = DeploymentId(1);

    /// An attempt that only waits.
    struct Sleeper {
        feed: Notifications,
        idle: Option<Idle>,
        _partition: crate::Notifier,
    }

    impl Sleeper {
        fn new(places: &Places, since: Duration, journal_bytes: usize) -> Self {
            assert!(places.try_take());
            let (partition, feed) = Feeds::default().feed();
            let idle = Some(places.idle(HERE, feed.line().clone(), since, journal_bytes, since));
            Self { feed, idle, _partition: partition }
        }

        fn is_asked(&mut self) -> bool {
            matches!(self.feed.poll_told(&mut Context::from_waker(Waker::noop()), true), Poll::Ready(Some(Told::Asked)))
        }

        fn end(&mut self, places: &Places) {
            places.leave(self.idle.take());
        }
    }

    fn asked(sleepers: &mut [Sleeper]) -> Vec<usize> {
        (0..sleepers.len()).filter(|n| sleepers[*n].is_asked()).collect()
    }

    #[test]
    fn as_many_are_asked_as_starts_wait_the_longest_idle_first_and_short_journals_before_long_ones() {
        let places = Places::new(4, false);
        let mut sleepers: Vec<Sleeper> =
            [(3, 9), (2, 50), (2, 7), (9, 1)].map(|(since, bytes)| Sleeper::new(&places, since * SECOND, bytes)).into();
        places.want(0, 1, false, 10 * SECOND);
        assert_eq!(asked(&mut sleepers), [2]);
        places.want(0, 1, false, 10 * SECOND);
        assert_eq!(asked(&mut sleepers), [0; 0], "the one that was asked counts until it ends");
        places.want(1, 2, false, 10 * SECOND);
        assert_eq!(asked(&mut sleepers), [0, 1]);
        sleepers[2].end(&places);
        assert!(places.try_take());
        places.want(0, 0, false, 10 * SECOND);
        assert_eq!(asked(&mut sleepers), [0; 0]);
    }

    #[test]
    fn who_starts_to_wait_while_others_want_its_place_is_asked_at_once() {
        let places = Places::new(1, false);
        let mut sleeper = Sleeper::new(&places, SECOND, 0);
        assert!(!sleeper.is_asked());
        assert!(places.resume(sleeper.idle.take().unwrap()).is_none());
        places.want(0, 5, false, SECOND);
        assert!(!sleeper.is_asked(), "it has work");
        sleeper.idle = Some(places.idle(HERE, sleeper.feed.line().clone(), SECOND, 0, SECOND));
        assert!(sleeper.is_asked());
    }

    #[test]
    fn those_that_were_asked_are_within_reach_no_more() {
        let places = Places::new(4, false);
        let within_reach = |deployment| {
            let PlacesLeft { count, own_idle } = places.within_reach(deployment);
            (count, own_idle)
        };
        let mut sleepers: Vec<Sleeper> = [1, 2].map(|since| Sleeper::new(&places, since * SECOND, 0)).into();
        assert_eq!((within_reach(HERE), within_reach(DeploymentId(2))), ((4, 2), (4, 0)));
        places.want(0, 3, false, 2 * SECOND);
        assert_eq!(asked(&mut sleepers), [0]);
        assert_eq!(within_reach(HERE), (3, 1));
        assert!(places.resume(sleepers[1].idle.take().unwrap()).is_none());
        assert_eq!(within_reach(HERE), (2, 0));
        sleepers[0].end(&places);
        assert_eq!(within_reach(HERE), (3, 0));
    }

    #[test]
    fn free_places_are_taken_first_unless_memory_is_what_lacks() {
        let places = Places::new(2, false);
        let mut sleeper = Sleeper::new(&places, SECOND, 0);
        places.want(0, 1, false, SECOND);
        assert!(!sleeper.is_asked());
        places.want(0, 1, true, SECOND);
        assert!(sleeper.is_asked());
    }

    #[test]
    fn one_that_does_not_suspend_holds_up_nobody_for_long() {
        let places = Places::new(2, false);
        let mut sleepers: Vec<Sleeper> = [1, 2].map(|since| Sleeper::new(&places, since * SECOND, 0)).into();
        places.want(0, 1, false, 2 * SECOND);
        assert_eq!(asked(&mut sleepers), [0]);
        places.want(0, 1, false, 2 * SECOND + ASKED_COUNTS);
        assert_eq!(asked(&mut sleepers), [1]);
    }

    #[test]
    fn attempts_of_a_deployment_without_a_free_stream_make_room_for_as_many_as_wait_for_one() {
        let places = Places::new(9, false);
        let mut sleepers: Vec<Sleeper> = [1, 2, 3].map(|since| Sleeper::new(&places, since * SECOND, 0)).into();
        places.want_stream(DeploymentId(2));
        places.ask_for_streams(DeploymentId(2), 5 * SECOND);
        assert_eq!(asked(&mut sleepers), [0; 0], "of another deployment");
        for _ in 0..2 {
            places.want_stream(HERE);
        }
        places.ask_for_streams(HERE, 5 * SECOND);
        places.ask_for_streams(HERE, 5 * SECOND);
        assert_eq!(asked(&mut sleepers), [0, 1]);
        sleepers[0].end(&places);
        places.has_stream(HERE);
        places.ask_for_streams(HERE, 5 * SECOND);
        assert_eq!(asked(&mut sleepers), [0; 0], "the other one that was asked counts until it ends");
        places.ask_for_streams(HERE, 5 * SECOND + ASKED_COUNTS);
        assert_eq!(asked(&mut sleepers), [2]);
        places.has_stream(HERE);
        let mut late = [Sleeper::new(&places, 9 * SECOND, 0)];
        assert_eq!(asked(&mut late), [0; 0], "nobody waits");
        late[0].end(&places);
        places.want_stream(HERE);
        assert_eq!(asked(&mut [Sleeper::new(&places, 9 * SECOND, 0)]), [0], "who starts to wait is asked at once");
    }
}
