//! The connections of one port: how many there may be, and which of them give way.
//!
//! At the bound the connections that have been unused for longest are closed, so that clients that keep connections for later do not
//! shut others out; one of HTTP/1.1 that is in use is closed with its answer, which says so, for each that waits; and where requests do not
//! come, at a byte now and then, they are refused. Does not own: a connection's own time limits, or what one is told that found no place.

use crate::activity::Activity;
use crate::intake::Intake;
use crate::leftover::Leftovers;
use crate::server::ConnectionBounds;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use surefoot_env::Clock;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Of all connections, the share that gives way together: finding them looks at all.
const YIELDING_SHARE: usize = 32;

/// A connection counts as unused after this long: the first request of a new one is on its way, as a rule, and the next one of a client
/// that has just had an answer. To a new one that gives way it is said; over HTTP/1.1 a request on another one may cross with its close.
const NEVER_USED: Duration = Duration::from_millis(500);
const UNUSED: Duration = Duration::from_secs(2);
/// How often a full port looks for connections that have become unused.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// One that was told to leave is counted on for so long: it may have an answer to finish that its client takes slowly.
const LEAVING: Duration = Duration::from_secs(1);
/// How long a new connection waits for a place. Longer than those take that give way; and once one has waited for so long in vain, those
/// behind it find none at once.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(4);

const OPEN: &str = "the semaphore is never closed";

/// A place.
pub(crate) type Slot = OwnedSemaphorePermit;

/// What a connection is told. A later one is stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    Stay,
    /// Finish what is in progress, and close.
    Finish,
    /// Close now if unused; otherwise as [`Self::Finish`].
    Yield,
    /// Give up bodies that do not come, and close once their requests are answered.
    GiveWay,
    /// Close, whatever is in progress.
    Cut,
}

/// A connection as its port sees it.
pub(crate) struct Member {
    pub(crate) activity: Arc<Activity>,
    order: AtomicU8,
    told: Notify,
    number: u64,
    /// It closes, and its place is another's: since when.
    leaves_since: OnceLock<Duration>,
    crowd: Arc<Crowd>,
}

/// Those that wait for a place, and those that leave one for them.
#[derive(Default)]
struct Crowd {
    waiting: AtomicUsize,
    /// Those whose places will be free soon: since when they leave, and their numbers.
    leaving: Mutex<BTreeSet<(Duration, u64)>>,
}

impl Crowd {
    /// Without those that take longer than that.
    fn leaving(&self, now: Duration) -> MutexGuard<'_, BTreeSet<(Duration, u64)>> {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        while leaving.first().is_some_and(|(since, _)| now.saturating_sub(*since) >= LEAVING) {
            leaving.pop_first();
        }
        leaving
    }
}

impl Member {
    /// Returns once the order is another than `known`.
    pub(crate) async fn order_after(&self, known: Order) -> Order {
        loop {
            let order = self.order();
            if order != known {
                return order;
            }
            // One word is kept for the next call, so none is lost in between.
            self.told.notified().await;
        }
    }

    /// Whether it may give way to others, with nothing cut off.
    fn may_yield(&self, now: Duration) -> bool {
        let patience = if self.activity.requests() == 0 { NEVER_USED } else { UNUSED };
        self.order() < Order::Yield && self.activity.unused_for(now).is_some_and(|time| time >= patience)
    }

    /// Whether it is to close with its next answer: it was told to, or more wait than leave.
    pub(crate) fn closes_with_its_answer(&self) -> bool {
        self.order() > Order::Stay || self.leaves_for_others()
    }

    fn leaves_for_others(&self) -> bool {
        let waiting = self.crowd.waiting.load(Ordering::Relaxed);
        if waiting == 0 {
            return false;
        }
        let now = self.activity.now();
        let mut leaving = self.crowd.leaving(now);
        leaving.len() < waiting && self.leave(now, &mut leaving)
    }

    /// False: it was told before.
    fn leave(&self, now: Duration, leaving: &mut BTreeSet<(Duration, u64)>) -> bool {
        self.leaves_since.set(now).is_ok() && leaving.insert((now, self.number))
    }

    fn order(&self) -> Order {
        match self.order.load(Ordering::Relaxed) {
            0 => Order::Stay,
            1 => Order::Finish,
            2 => Order::Yield,
            3 => Order::GiveWay,
            _ => Order::Cut,
        }
    }

    pub(crate) fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::Relaxed);
        if order >= Order::Yield {
            let now = self.activity.now();
            self.leave(now, &mut self.crowd.leaving(now));
        }
        if order == Order::GiveWay {
            self.activity.give_way();
        }
        self.told.notify_one();
    }
}

pub(crate) struct Registry {
    connections_max: usize,
    slots: Arc<Semaphore>,
    /// What all are told.
    order: AtomicU8,
    crowd: Arc<Crowd>,
    /// Held by the one of those that wait which looks for others that may give way.
    looking: tokio::sync::Mutex<()>,
    intake: Arc<Intake>,
    ends_held_back: Arc<Semaphore>,
    members: Mutex<BTreeMap<u64, Arc<Member>>>,
    next: AtomicU64,
    /// Of all connections.
    requests: AtomicU64,
    leftovers: Leftovers,
    /// The newest connection found no place.
    is_full: AtomicBool,
}

/// Given back when dropped.
pub(crate) struct Membership {
    registry: Arc<Registry>,
    pub(crate) member: Arc<Member>,
    intake: Arc<Intake>,
    _slot: Slot,
}

impl Registry {
    pub(crate) fn new(bounds: ConnectionBounds) -> Arc<Self> {
        let connections_max = bounds.connections_max.clamp(1, u32::MAX as usize);
        Arc::new(Self {
            connections_max,
            slots: Arc::new(Semaphore::new(connections_max)),
            order: AtomicU8::new(Order::Stay as u8),
            crowd: Arc::default(),
            looking: tokio::sync::Mutex::default(),
            intake: Intake::of_port(),
            ends_held_back: Arc::new(Semaphore::new(bounds.half_closed_max.min(connections_max))),
            members: Mutex::default(),
            next: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            leftovers: Leftovers::default(),
            is_full: AtomicBool::new(false),
        })
    }

    /// Waits for a place. Does not ask others to give way, and comes after those that wait already.
    pub(crate) async fn slot(&self) -> Slot {
        self.slots.clone().acquire_owned().await.expect(OPEN)
    }

    /// Waits for a place, to which others give way. `None`: all are in use.
    pub(crate) async fn wait_for_slot(&self, clock: &dyn Clock) -> Option<Slot> {
        let slot = match self.slots.clone().try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => self.others_give_way(clock).await,
        };
        self.is_full.store(slot.is_none(), Ordering::Relaxed);
        slot
    }

    /// A connection takes its place.
    pub(crate) fn enter(self: &Arc<Self>, slot: Slot, clock: Arc<dyn Clock>) -> Membership {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut members = self.lock();
        let member = Arc::new(Member {
            activity: Arc::new(Activity::new(clock)),
            order: AtomicU8::new(self.order.load(Ordering::SeqCst)),
            told: Notify::new(),
            number,
            leaves_since: OnceLock::new(),
            crowd: self.crowd.clone(),
        });
        members.insert(number, member.clone());
        drop(members);
        Membership { registry: self.clone(), member, intake: Intake::of_connection(), _slot: slot }
    }

    async fn others_give_way(&self, clock: &dyn Clock) -> Option<Slot> {
        let _waiting = Waiting::new(self.crowd.clone());
        let mut slot = std::pin::pin!(self.slots.clone().acquire_owned());
        let patience = if self.is_full.load(Ordering::Relaxed) { LOOK_AGAIN } else { PLACE_WAIT_MAX };
        let due = clock.monotonic() + patience;
        let mut looking = None;
        loop {
            // One looks for all.
            looking = looking.or_else(|| self.looking.try_lock().ok());
            if looking.is_some() {
                self.make_room(clock.monotonic(), 0);
            }
            tokio::select! {
                biased;
                // Polled by reference: it keeps its place in the queue.
                slot = slot.as_mut() => return Some(slot.expect(OPEN)),
                // A timer has nothing to lose. A connection that was in use may be unused by now.
                () = clock.sleep(LOOK_AGAIN) => {}
            }
            if clock.monotonic() >= due {
                return None;
            }
        }
    }

    /// Tells those that have been unused for longest to go; where there are none, those whose bodies are most behind. Where as many leave as
    /// wait, nobody: `unaccepted` wait beside those that wait here.
    pub(crate) fn make_room(&self, now: Duration, unaccepted: usize) {
        let waiting = self.crowd.waiting.load(Ordering::Relaxed) + unaccepted;
        let wanted = waiting.saturating_sub(self.crowd.leaving(now).len());
        if wanted == 0 {
            return;
        }
        let share = wanted.max(self.connections_max / YIELDING_SHARE);
        let members = self.lock();
        let mut unused: Vec<&Arc<Member>> = members.values().filter(|member| member.may_yield(now)).collect();
        // One that was never used is older than all that were; among equals the number decides, in whose order they lie.
        unused.sort_by_key(|member| member.activity.newest());
        if unused.is_empty() && !members.values().any(|member| member.activity.is_unused()) {
            let stalled = members.values().filter_map(|member| Some((member.activity.stalled_since(now)?, member)));
            let mut stalled: Vec<_> = stalled.filter(|(_, member)| member.order() < Order::GiveWay).collect();
            stalled.sort_by_key(|(since, _)| *since);
            for (_, member) in stalled.into_iter().take(share) {
                member.tell(Order::GiveWay);
            }
        }
        for member in unused.into_iter().take(share) {
            member.tell(Order::Yield);
        }
    }

    /// Those that are there, and those that come later.
    pub(crate) fn tell_all(&self, order: Order) {
        let members = self.lock();
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        for member in members.values() {
            member.tell(order);
        }
    }

    /// Returns when no connection is left, and lets none in while what it returns is held.
    pub(crate) async fn emptied(&self) -> SemaphorePermit<'_> {
        let all = u32::try_from(self.connections_max).expect("bounded when it was made");
        self.slots.acquire_many(all).await.expect(OPEN)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Member>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// The port's count of requests.
    pub(crate) fn requests(&self) -> &AtomicU64 {
        &self.registry.requests
    }

    /// Of the port, and of this connection.
    pub(crate) fn intakes(&self) -> [Arc<Intake>; 2] {
        [self.registry.intake.clone(), self.intake.clone()]
    }

    #[cfg(test)]
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The port's leave to wait for answers of clients that send nothing more.
    pub(crate) fn ends_held_back(&self) -> &Arc<Semaphore> {
        &self.registry.ends_held_back
    }

    /// It was told to leave, and keeps its place for a while: others are told in its stead.
    pub(crate) fn leaves_later(&self) {
        if let Some(since) = self.member.leaves_since.get() {
            self.registry.crowd.leaving(*since).remove(&(*since, self.member.number));
        }
    }

    /// The port's leave to wait for what is left of refused bodies.
    pub(crate) fn leftovers(&self) -> &Leftovers {
        &self.registry.leftovers
    }
}

/// One that waits for a place, until it is dropped.
struct Waiting(Arc<Crowd>);

impl Waiting {
    fn new(crowd: Arc<Crowd>) -> Self {
        crowd.waiting.fetch_add(1, Ordering::Relaxed);
        Self(crowd)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.member.number);
        self.leaves_later();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::Answering;
    use crate::testing::ToldClock;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn registry(connections_max: usize) -> Arc<Registry> {
        Registry::new(ConnectionBounds { connections_max, half_closed_max: 0 })
    }

    /// A connection that waits for a place and takes it.
    async fn come(registry: &Arc<Registry>, clock: &ToldClock) -> Option<Membership> {
        let slot = registry.wait_for_slot(clock).await?;
        Some(registry.enter(slot, Arc::new(clock.clone())))
    }

    fn enter(registry: &Arc<Registry>, clock: &ToldClock) -> Membership {
        poll(pin!(come(registry, clock))).flatten().expect("there is a place")
    }

    #[test]
    fn at_the_bound_the_one_unused_for_longest_gives_way() {
        let registry = registry(3);
        let clock = ToldClock::default();
        let (used, busy, unused) = (enter(&registry, &clock), enter(&registry, &clock), enter(&registry, &clock));
        drop(Answering::new(used.member.activity.clone(), &registry.requests));
        let _in_progress = Answering::new(busy.member.activity.clone(), &registry.requests);
        clock.pass(1);
        let mut waiting = pin!(come(&registry, &clock));
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!([&used, &busy, &unused].map(|m| m.member.order()), [Order::Stay, Order::Stay, Order::Yield]);
        assert_eq!(poll(pin!(unused.member.order_after(Order::Stay))), Some(Order::Yield));
        drop(unused);
        assert!(poll(waiting.as_mut()).flatten().is_some());
    }

    /// Its client had just sent its request, and saw the connection end.
    #[test]
    fn one_that_has_just_come_does_not_give_way_before_its_first_request_can_be_here() {
        let registry = registry(1);
        let clock = ToldClock::default();
        let new = enter(&registry, &clock);
        let mut waiting = pin!(come(&registry, &clock));
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(new.member.order(), Order::Stay);
        clock.pass(1);
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(new.member.order(), Order::Yield);
    }

    /// Bodies that did not come held all places for half a minute.
    #[test]
    fn where_all_are_in_use_bodies_that_do_not_come_give_way_and_others_do_not() {
        let registry = registry(3);
        let clock = ToldClock::default();
        let members = [(); 3].map(|()| enter(&registry, &clock));
        let requests: Vec<_> =
            members.iter().map(|member| Answering::new(member.member.activity.clone(), &registry.requests)).collect();
        let second = Duration::from_secs;
        let mut bodies: Vec<_> = requests.iter().map(Answering::awaiting).collect();
        // The last one waits for its result.
        assert!(bodies[0].wait(second(2), Waker::noop()) && bodies[1].wait(second(1), Waker::noop()));
        let orders = || [0, 1, 2].map(|at| members[at].member.order());
        registry.make_room(second(0), 1);
        assert_eq!(orders(), [Order::Stay; 3], "none is behind yet");
        bodies[1].go_on();
        registry.make_room(second(2), 1);
        assert_eq!(orders(), [Order::GiveWay, Order::Stay, Order::Stay]);
        assert!(bodies[1].wait(second(3), Waker::noop()), "only those of the connection");
        registry.make_room(second(3), 1);
        assert_eq!(orders(), [Order::GiveWay, Order::GiveWay, Order::Stay]);
    }

    #[test]
    fn who_finds_no_place_is_told_so_and_those_behind_it_at_once() {
        let registry = registry(1);
        let clock = ToldClock::default();
        let busy = enter(&registry, &clock);
        let _in_progress = Answering::new(busy.member.activity.clone(), &registry.requests);
        for seconds in [PLACE_WAIT_MAX.as_secs(), 1] {
            let mut waiting = pin!(come(&registry, &clock));
            assert!(poll(waiting.as_mut()).is_none());
            clock.pass(seconds - 1);
            assert!(poll(waiting.as_mut()).is_none(), "a place may become free");
            clock.pass(1);
            assert!(matches!(poll(waiting.as_mut()), Some(None)));
        }
    }

    #[test]
    fn connections_in_use_are_not_closed_for_others() {
        let registry = registry(1);
        let clock = ToldClock::default();
        let busy = enter(&registry, &clock);
        let in_progress = Answering::new(busy.member.activity.clone(), &registry.requests);
        let mut waiting = pin!(come(&registry, &clock));
        assert!(poll(waiting.as_mut()).is_none());
        let sending = in_progress.into_sending();
        clock.due();
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(busy.member.order(), Order::Stay);
        drop(sending);
        clock.due();
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(busy.member.order(), Order::Stay, "its client may ask again, which crosses with a close");
        clock.pass(UNUSED.as_secs());
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(busy.member.order(), Order::Yield, "it is looked for again");
    }

    /// Clients that called again at once saw their connection reset.
    #[test]
    fn of_those_in_use_as_many_leave_with_their_answer_as_wait() {
        let registry = registry(3);
        let clock = ToldClock::default();
        let busy = [(); 3].map(|()| enter(&registry, &clock));
        let _in_progress = [0, 1, 2].map(|at| Answering::new(busy[at].member.activity.clone(), &registry.requests));
        assert!(!busy[0].member.leaves_for_others(), "nobody waits");
        let (mut one, mut other) = (pin!(come(&registry, &clock)), pin!(come(&registry, &clock)));
        assert!(poll(one.as_mut()).is_none() && poll(other.as_mut()).is_none());
        assert_eq!([0, 1, 2, 1].map(|at| busy[at].member.leaves_for_others()), [true, true, false, false]);
        let [first, second, third] = busy;
        drop((first, second));
        let (Some(Some(_one)), Some(Some(_other))) = (poll(one.as_mut()), poll(other.as_mut())) else {
            panic!("both have their place")
        };
        assert!(!third.member.leaves_for_others(), "nobody waits any more");
    }

    /// Each look told as many again, while those that had been told before were closing.
    #[test]
    fn no_more_give_way_than_are_wanted_while_those_that_were_told_are_closing() {
        const PLACES: usize = 128;
        let registry = registry(PLACES);
        let clock = ToldClock::default();
        let mut members: Vec<_> = (0..PLACES).map(|_| enter(&registry, &clock)).collect();
        clock.pass(1);
        let mut waiting: Vec<_> = (0..16).map(|_| Box::pin(come(&registry, &clock))).collect();
        let told = |members: &[Membership]| members.iter().filter(|member| member.member.order() == Order::Yield).count();
        for _ in 0..8 {
            assert!(waiting.iter_mut().all(|one| poll(one.as_mut()).is_none()));
            clock.due();
        }
        assert_eq!(told(&members), 16);
        // Somebody still looks at the connection that ends.
        let _seen = members[0].member.clone();
        drop(members.remove(0));
        let entered: Vec<_> = waiting.iter_mut().filter_map(|one| poll(one.as_mut())).collect();
        clock.due();
        assert!(waiting.iter_mut().skip(1).all(|one| poll(one.as_mut()).is_none()));
        assert_eq!((entered.len(), told(&members)), (1, 15), "one fewer waits, and one fewer leaves");
        // It was told, and keeps its place until it has heard so.
        members[0].leaves_later();
        clock.due();
        assert!(waiting.iter_mut().skip(1).all(|one| poll(one.as_mut()).is_none()));
        assert_eq!(told(&members), 19, "another one is told, and with it a share of all places");
        clock.pass(LEAVING.as_secs());
        assert!(waiting.iter_mut().skip(1).all(|one| poll(one.as_mut()).is_none()));
        assert_eq!(told(&members), 34, "those are not waited for any longer");
    }

    /// One whose client takes its last answer slowly may leave in minutes.
    #[test]
    fn one_that_takes_long_to_leave_does_not_keep_others_from_leaving() {
        let registry = registry(2);
        let clock = ToldClock::default();
        let busy = [(); 2].map(|()| enter(&registry, &clock));
        let _in_progress = [0, 1].map(|at| Answering::new(busy[at].member.activity.clone(), &registry.requests));
        let mut one = pin!(come(&registry, &clock));
        assert!(poll(one.as_mut()).is_none());
        assert_eq!([0, 1].map(|at| busy[at].member.leaves_for_others()), [true, false]);
        clock.pass(LEAVING.as_secs());
        assert!(busy[1].member.leaves_for_others());
    }

    #[test]
    fn a_registry_is_empty_when_all_have_left() {
        let registry = registry(2);
        let clock = ToldClock::default();
        let member = enter(&registry, &clock);
        let slot = poll(pin!(registry.wait_for_slot(&clock))).flatten().expect("there is a place");
        let mut emptied = pin!(registry.emptied());
        assert!(poll(emptied.as_mut()).is_none());
        registry.tell_all(Order::Cut);
        assert_eq!(member.member.order(), Order::Cut);
        let late = registry.enter(slot, Arc::new(clock));
        assert_eq!(late.member.order(), Order::Cut, "it came while the others were told");
        drop((member, late));
        assert!(poll(emptied.as_mut()).is_some());
    }
}
