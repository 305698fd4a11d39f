//! What a running attempt is told: notifications that came into its journal, that others want its place, and that it is over.
//!
//! Owns: the queue between a partition and one attempt, and its bound (rule O6). Beyond the bound notifications are dropped, not
//! queued: they stand in the journal, and the attempt suspends to see them in a replay. Does not own: what an attempt does about
//! what it is told.

use crate::api::Live;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use surefoot_model::{Notification, entry_type};
use tokio::sync::OwnedSemaphorePermit;

/// Bytes that may wait for each attempt, whatever waits for others.
const OWN_BYTES: usize = 16 << 10;
/// What a notification takes beside its payload.
const FIXED_BYTES: usize = size_of::<Live>();

/// All feeds of a node: what waits in them, or has not left for its handler.
#[derive(Clone, Debug)]
pub struct Feeds(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    bytes: AtomicUsize,
    /// Beyond [`OWN_BYTES`] of each; the last notification may exceed it.
    bytes_max: usize,
}

/// Bytes of one notification among those of all feeds; given back when dropped.
#[derive(Debug)]
pub struct FeedBytes {
    all: Feeds,
    bytes: usize,
}

impl FeedBytes {
    /// Both, as one.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for FeedBytes {
    fn drop(&mut self) {
        self.all.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Whether a notification answers a read of state.
pub(crate) fn answers_read(notification: &Notification) -> bool {
    matches!(notification.ty, entry_type::GET_LAZY_STATE_COMPLETION | entry_type::GET_LAZY_STATE_KEYS_COMPLETION)
}

/// The partition's end. Dropping it aborts the attempt: nothing of it counts any more.
#[derive(Debug)]
pub struct Notifier(Arc<Line>);

/// The attempt's end.
#[derive(Debug)]
pub struct Notifications(Arc<Line>);

/// What an attempt is told.
#[derive(Debug)]
pub enum Told {
    /// With what it counts for until it has left.
    Live(Live, FeedBytes),
    /// Others want its place.
    Asked,
    /// Notifications were dropped, since so much waited to be taken. None follows any more.
    Behind(Dropped),
}

/// What was dropped since this was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Answers to reads of state among it.
    pub values: u32,
    pub bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Line {
    inside: Mutex<Inside>,
    all: Feeds,
}

#[derive(Debug, Default)]
struct Inside {
    queue: VecDeque<(Live, FeedBytes)>,
    bytes: usize,
    is_behind: bool,
    dropped: Dropped,
    /// Of reads of state that were reported and whose answers have not come.
    reads: VecDeque<OwnedSemaphorePermit>,
    is_asked: bool,
    is_closed: bool,
    waker: Option<Waker>,
}

/// Without a bound for all of them.
impl Default for Feeds {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Feeds {
    /// `bytes_max`: what may wait for all attempts together, beyond a little of each attempt's own.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Waiting { bytes: AtomicUsize::new(0), bytes_max }))
    }

    /// Both ends of a new feed.
    pub fn feed(&self) -> (Notifier, Notifications) {
        let line = Arc::new(Line { inside: Mutex::default(), all: self.clone() });
        (Notifier(line.clone()), Notifications(line))
    }
}

impl Notifier {
    /// Hands a notification on, in the order of the journal.
    pub fn notify(&self, live: Live) {
        let bytes = bytes_of(&live);
        self.0.change(|inside, all| {
            if answers_read(&live.notification) {
                // From here on it counts with what waits to leave, or is dropped.
                inside.reads.pop_front();
            }
            let own = inside.bytes + bytes;
            let waits = all.0.bytes.load(Ordering::Relaxed);
            inside.is_behind |= own > OWN_BYTES && waits >= all.0.bytes_max;
            if inside.is_behind {
                inside.dropped.values += u32::from(answers_read(&live.notification));
                inside.dropped.bytes += live.notification.bytes();
            } else {
                inside.bytes = own;
                all.0.bytes.fetch_add(bytes, Ordering::Relaxed);
                inside.queue.push_back((live, FeedBytes { all: all.clone(), bytes }));
            }
        });
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.0.change(|inside, _| {
            inside.is_closed = true;
            inside.reads = VecDeque::new();
        });
    }
}

impl Notifications {
    /// The next thing the attempt is told; none once it is over. A request for its place comes first, and once. Notifications are
    /// given out only where `takes_live` says so, and wait otherwise.
    pub fn poll_told(&mut self, cx: &mut Context<'_>, takes_live: bool) -> Poll<Option<Told>> {
        let mut inside = self.0.lock();
        if inside.is_closed {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut inside.is_asked) {
            return Poll::Ready(Some(Told::Asked));
        }
        if takes_live && let Some((live, bytes)) = inside.queue.pop_front() {
            inside.bytes -= bytes.bytes;
            return Poll::Ready(Some(Told::Live(live, bytes)));
        }
        if takes_live && inside.dropped != Dropped::default() {
            return Poll::Ready(Some(Told::Behind(std::mem::take(&mut inside.dropped))));
        }
        if !inside.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            inside.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// One more notification that is there, behind one that was told.
    pub(crate) fn next_live(&mut self) -> Option<(Live, FeedBytes)> {
        let mut inside = self.0.lock();
        if inside.is_closed || inside.is_asked {
            return None;
        }
        let (live, bytes) = inside.queue.pop_front()?;
        inside.bytes -= bytes.bytes;
        Some((live, bytes))
    }

    /// Ready once the attempt is over; whatever else it is told waits.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inside = self.0.lock();
        if inside.is_closed {
            return Poll::Ready(());
        }
        inside.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A read of state is about to be reported: what it takes until its answer comes, or nothing more can.
    pub(crate) fn reads(&self, permit: OwnedSemaphorePermit) {
        let mut inside = self.0.lock();
        if !inside.is_closed {
            inside.reads.push_back(permit);
        }
    }

    /// Where a request for the attempt's place goes.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.0
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        let mut inside = self.0.lock();
        (inside.queue, inside.bytes, inside.reads) = (VecDeque::new(), 0, VecDeque::new());
        // What comes later finds nobody, and is not kept.
        inside.is_behind = true;
    }
}

impl Line {
    /// Others want the attempt's place.
    pub(crate) fn ask(&self) {
        self.change(|inside, _| inside.is_asked = true);
    }

    fn change(&self, change: impl FnOnce(&mut Inside, &Feeds)) {
        let mut inside = self.lock();
        change(&mut inside, &self.all);
        let waker = inside.waker.take();
        drop(inside);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(live: &Live) -> usize {
    FIXED_BYTES + usize::try_from(live.notification.bytes()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_model::{NotificationId, Resolution};

    const BYTES_MAX: usize = 8 << 20;

    fn live(index: u32, bytes: usize) -> Live {
        let result = Resolution::Value(vec![0; bytes].into());
        let notification = Notification { ty: entry_type::CALL_COMPLETION, id: NotificationId::Completion(index), result };
        Live { index, notification }
    }

    /// What is told now, until nothing is.
    fn told(feed: &mut Notifications, takes_live: bool) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            match feed.poll_told(&mut Context::from_waker(Waker::noop()), takes_live) {
                Poll::Pending => return told,
                Poll::Ready(None) => {
                    told.push("over".to_owned());
                    return told;
                }
                Poll::Ready(Some(Told::Live(live, _))) => told.push(live.index.to_string()),
                Poll::Ready(Some(Told::Asked)) => told.push("asked".to_owned()),
                Poll::Ready(Some(Told::Behind(dropped))) => told.push(format!("{} bytes behind", dropped.bytes)),
            }
        }
    }

    #[test]
    fn notifications_keep_their_order_and_a_request_for_the_place_comes_first() {
        let (notifier, mut feed) = Feeds::default().feed();
        notifier.notify(live(1, 10));
        notifier.notify(live(2, 10));
        feed.line().ask();
        assert_eq!(told(&mut feed, false), ["asked"]);
        assert_eq!(told(&mut feed, true), ["1", "2"]);
        notifier.notify(live(3, 10));
        drop(notifier);
        assert_eq!(told(&mut feed, true), ["over"]);
    }

    #[test]
    fn what_is_there_behind_a_notification_is_taken_with_it_and_counts_as_one() {
        let all = Feeds::new(BYTES_MAX);
        let (notifier, mut feed) = all.feed();
        (1..=3).for_each(|index| notifier.notify(live(index, 10)));
        let Poll::Ready(Some(Told::Live(first, mut sending))) = feed.poll_told(&mut Context::from_waker(Waker::noop()), true)
        else {
            panic!("it is there")
        };
        let (second, bytes) = feed.next_live().expect("it is there, too");
        assert_eq!((first.index, second.index), (1, 2));
        sending.add(bytes);
        assert_eq!(all.0.bytes.load(Ordering::Relaxed), 3 * bytes_of(&live(1, 10)));
        feed.line().ask();
        assert!(feed.next_live().is_none(), "a request for the place goes first");
        drop(sending);
        assert_eq!(all.0.bytes.load(Ordering::Relaxed), bytes_of(&live(1, 10)));
        assert_eq!(told(&mut feed, true), ["asked", "3"]);
        assert!(feed.next_live().is_none());
    }

    #[test]
    fn what_waits_is_bounded_and_nothing_follows_what_was_dropped() {
        let all = Feeds::new(BYTES_MAX);
        let (notifier, mut feed) = all.feed();
        for index in 0..100 {
            notifier.notify(live(index, 1 << 20));
        }
        assert!(all.0.bytes.load(Ordering::Relaxed) <= BYTES_MAX + (1 << 20));
        // Another attempt still has a little of its own.
        let (other, mut others) = all.feed();
        (0..200).for_each(|index| other.notify(live(index, 10_000)));
        let first = told(&mut others, true);
        let expected = |queued: usize, dropped: String| -> Vec<String> {
            (0..queued).map(|index| index.to_string()).chain([format!("{dropped} bytes behind")]).collect()
        };
        assert!(first.len() > 1);
        assert_eq!(first, expected(first.len() - 1, (10_000 * (201 - first.len())).to_string()));
        let taken = told(&mut feed, true);
        assert_eq!(taken, expected(taken.len() - 1, ((101 - taken.len()) << 20).to_string()));
        notifier.notify(live(100, 7));
        assert_eq!(told(&mut feed, true), ["7 bytes behind"], "nothing follows what was dropped");
        drop((feed, others));
        assert_eq!(all.0.bytes.load(Ordering::Relaxed), 0);
        notifier.notify(live(101, 10));
        assert_eq!(all.0.bytes.load(Ordering::Relaxed), 0, "nobody would take it");
    }

    /// A value that nobody reads stood in a feed for each attempt, whatever waited for the others.
    #[test]
    fn what_has_not_left_counts_and_one_notification_passes_the_bound_alone() {
        let all = Feeds::new(BYTES_MAX);
        let (large, mut feed) = all.feed();
        large.notify(live(1, 4 * BYTES_MAX));
        let Poll::Ready(Some(Told::Live(_, sending))) = feed.poll_told(&mut Context::from_waker(Waker::noop()), true) else {
            panic!("alone it passes")
        };
        let (other, mut others) = all.feed();
        other.notify(live(1, 1_000));
        other.notify(live(2, 1 << 20));
        assert_eq!(told(&mut others, true), ["1", "1048576 bytes behind"], "it has not left");
        drop(sending);
        let (third, mut thirds) = all.feed();
        third.notify(live(1, 1 << 20));
        assert_eq!(told(&mut thirds, true), ["1"]);
        assert_eq!(all.0.bytes.load(Ordering::Relaxed), 0);
    }
}
