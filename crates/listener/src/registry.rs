//! The connections of one port: how many there may be, and which of them give way.
//!
//! At the bound the connections that have been unused for longest are closed, so that clients that keep connections for later do not
//! shut others out; and where there are none, those whose requests do not come, at a byte now and then, are refused. Where all are in use
//! a new one waits for a moment. Does not own: a connection's own time limits, or what one is told that found no place.

use crate::activity::Activity;
use crate::leftover::Leftovers;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_env::Clock;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Of all connections, the share that gives way together: finding them looks at all.
const YIELDING_SHARE: usize = 32;

/// A new connection has this long before it counts as unused: its first request is on its way, as a rule.
const FIRST_MOMENT: Duration = Duration::from_millis(500);
/// How often a full port looks for connections that have become unused.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a new connection waits for a place. Longer than those take that give way; and once one has waited for so long in vain, those
/// behind it find none at once.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(4);

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
    /// When it found its place.
    since: Duration,
    order: AtomicU8,
    told: Notify,
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
        let was_used = self.activity.newest() > 0;
        self.activity.is_unused() && self.order() < Order::Yield && (was_used || now.saturating_sub(self.since) >= FIRST_MOMENT)
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
        if order == Order::GiveWay {
            self.activity.give_way();
        }
        self.told.notify_one();
    }
}

pub(crate) struct Registry {
    connections_max: usize,
    slots: Arc<Semaphore>,
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
    number: u64,
    pub(crate) member: Arc<Member>,
    _slot: OwnedSemaphorePermit,
}

impl Registry {
    pub(crate) fn new(connections_max: usize) -> Arc<Self> {
        let connections_max = connections_max.clamp(1, u32::MAX as usize);
        let slots = Arc::new(Semaphore::new(connections_max));
        let (members, next, requests) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        let (leftovers, is_full) = (Leftovers::default(), AtomicBool::new(false));
        Arc::new(Self { connections_max, slots, members, next, requests, leftovers, is_full })
    }

    /// Waits for a place, to which others give way. `None`: all are in use.
    pub(crate) async fn enter(self: &Arc<Self>, clock: &dyn Clock) -> Option<Membership> {
        let slot = match self.slots.clone().try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => self.wait_for_slot(clock).await,
        };
        self.is_full.store(slot.is_none(), Ordering::Relaxed);
        let slot = slot?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (activity, order) = (Arc::default(), AtomicU8::new(Order::Stay as u8));
        let member = Arc::new(Member { activity, since: clock.monotonic(), order, told: Notify::new() });
        self.lock().insert(number, member.clone());
        Some(Membership { registry: self.clone(), number, member, _slot: slot })
    }

    async fn wait_for_slot(&self, clock: &dyn Clock) -> Option<OwnedSemaphorePermit> {
        let mut slot = std::pin::pin!(self.slots.clone().acquire_owned());
        let patience = if self.is_full.load(Ordering::Relaxed) { LOOK_AGAIN } else { PLACE_WAIT_MAX };
        let due = clock.monotonic() + patience;
        loop {
            self.make_room(clock.monotonic());
            tokio::select! {
                biased;
                // Polled by reference: it keeps its place in the queue.
                slot = slot.as_mut() => return Some(slot.expect("the semaphore is never closed")),
                // A timer has nothing to lose. A connection that was in use may be unused by now.
                () = clock.sleep(LOOK_AGAIN) => {}
            }
            if clock.monotonic() >= due {
                return None;
            }
        }
    }

    /// Tells those that have been unused for longest to go; where there are none, those whose bodies are most behind.
    pub(crate) fn make_room(&self, now: Duration) {
        let members = self.lock();
        let share = (self.connections_max / YIELDING_SHARE).max(1);
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

    pub(crate) fn tell_all(&self, order: Order) {
        for member in self.lock().values() {
            member.tell(order);
        }
    }

    /// Returns when no connection is left, and lets none in any more.
    pub(crate) async fn emptied(&self) {
        let all = u32::try_from(self.connections_max).expect("bounded when it was made");
        let slots = self.slots.acquire_many(all).await.expect("the semaphore is never closed");
        slots.forget();
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

    /// The port's leave to wait for what is left of refused bodies.
    pub(crate) fn leftovers(&self) -> &Leftovers {
        &self.registry.leftovers
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.number);
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

    fn enter(registry: &Arc<Registry>) -> Membership {
        poll(pin!(registry.enter(&ToldClock::default()))).flatten().expect("there is a place")
    }

    #[test]
    fn at_the_bound_the_one_unused_for_longest_gives_way() {
        let registry = Registry::new(3);
        let (used, busy, unused) = (enter(&registry), enter(&registry), enter(&registry));
        drop(Answering::new(used.member.activity.clone(), &registry.requests));
        let _in_progress = Answering::new(busy.member.activity.clone(), &registry.requests);
        let clock = ToldClock::default();
        clock.pass(1);
        let mut waiting = pin!(registry.enter(&clock));
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!([&used, &busy, &unused].map(|m| m.member.order()), [Order::Stay, Order::Stay, Order::Yield]);
        assert_eq!(poll(pin!(unused.member.order_after(Order::Stay))), Some(Order::Yield));
        drop(unused);
        assert!(poll(waiting.as_mut()).flatten().is_some());
    }

    /// Its client had just sent its request, and saw the connection end.
    #[test]
    fn one_that_has_just_come_does_not_give_way_before_its_first_request_can_be_here() {
        let registry = Registry::new(1);
        let new = enter(&registry);
        let clock = ToldClock::default();
        let mut waiting = pin!(registry.enter(&clock));
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(new.member.order(), Order::Stay);
        clock.pass(1);
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(new.member.order(), Order::Yield);
    }

    /// Bodies that did not come held all places for half a minute.
    #[test]
    fn where_all_are_in_use_bodies_that_do_not_come_give_way_and_others_do_not() {
        let registry = Registry::new(3);
        let members = [(); 3].map(|()| enter(&registry));
        let requests: Vec<_> =
            members.iter().map(|member| Answering::new(member.member.activity.clone(), &registry.requests)).collect();
        let second = Duration::from_secs;
        let mut bodies: Vec<_> = requests.iter().map(Answering::awaiting).collect();
        // The last one waits for its result.
        assert!(bodies[0].wait(second(2), Waker::noop()) && bodies[1].wait(second(1), Waker::noop()));
        let orders = || [0, 1, 2].map(|at| members[at].member.order());
        registry.make_room(second(0));
        assert_eq!(orders(), [Order::Stay; 3], "none is behind yet");
        bodies[1].go_on();
        registry.make_room(second(2));
        assert_eq!(orders(), [Order::GiveWay, Order::Stay, Order::Stay]);
        assert!(bodies[1].wait(second(3), Waker::noop()), "only those of the connection");
        registry.make_room(second(3));
        assert_eq!(orders(), [Order::GiveWay, Order::GiveWay, Order::Stay]);
    }

    #[test]
    fn who_finds_no_place_is_told_so_and_those_behind_it_at_once() {
        let registry = Registry::new(1);
        let busy = enter(&registry);
        let _in_progress = Answering::new(busy.member.activity.clone(), &registry.requests);
        let clock = ToldClock::default();
        for seconds in [PLACE_WAIT_MAX.as_secs(), 1] {
            let mut waiting = pin!(registry.enter(&clock));
            assert!(poll(waiting.as_mut()).is_none());
            clock.pass(seconds - 1);
            assert!(poll(waiting.as_mut()).is_none(), "a place may become free");
            clock.pass(1);
            assert!(matches!(poll(waiting.as_mut()), Some(None)));
        }
    }

    #[test]
    fn connections_in_use_are_not_closed_for_others() {
        let registry = Registry::new(1);
        let busy = enter(&registry);
        let in_progress = Answering::new(busy.member.activity.clone(), &registry.requests);
        let clock = ToldClock::default();
        let mut waiting = pin!(registry.enter(&clock));
        assert!(poll(waiting.as_mut()).is_none());
        let sending = in_progress.into_sending();
        clock.due();
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(busy.member.order(), Order::Stay);
        drop(sending);
        clock.due();
        assert!(poll(waiting.as_mut()).is_none());
        assert_eq!(busy.member.order(), Order::Yield, "it is looked for again");
    }

    #[test]
    fn a_registry_is_empty_when_all_have_left() {
        let registry = Registry::new(2);
        let member = enter(&registry);
        let mut emptied = pin!(registry.emptied());
        assert!(poll(emptied.as_mut()).is_none());
        registry.tell_all(Order::Cut);
        assert_eq!(member.member.order(), Order::Cut);
        drop(member);
        assert!(poll(emptied.as_mut()).is_some());
    }
}
