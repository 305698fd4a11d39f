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
use surefoot_model::entry_type;

/// Bytes that may wait for each attempt, whatever waits for others. One notification may pass it alone.
const OWN_BYTES: usize = 16 << 10;
/// Bytes that may wait for all attempts of a node together, beyond those of [`OWN_BYTES`].
const SHARED_BYTES: usize = 32 << 20;
/// What a notification takes beside its payload.
const FIXED_BYTES: usize = size_of::<Live>();

/// All feeds of a node: what waits in them to be taken, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Feeds(Arc<AtomicUsize>);

/// The partition's end. Dropping it aborts the attempt: nothing of it counts any more.
#[derive(Debug)]
pub struct Notifier(Arc<Line>);

/// The attempt's end.
#[derive(Debug)]
pub struct Notifications(Arc<Line>);

/// What an attempt is told.
#[derive(Debug)]
pub enum Told {
    Live(Live),
    /// Others want its place.
    Asked,
    /// Notifications were dropped, since so much waited to be taken. None follows any more.
    Behind(Dropped),
}

/// What was dropped since this was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Values of state among it.
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
    queue: VecDeque<Live>,
    bytes: usize,
    is_behind: bool,
    dropped: Dropped,
    is_asked: bool,
    is_closed: bool,
    waker: Option<Waker>,
}

impl Feeds {
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
            let own = inside.bytes + bytes;
            let waits = all.load(Ordering::Relaxed) + bytes;
            inside.is_behind |= !inside.queue.is_empty() && own > OWN_BYTES && waits > SHARED_BYTES;
            if inside.is_behind {
                inside.dropped.values += u32::from(live.notification.ty == entry_type::GET_LAZY_STATE_COMPLETION);
                inside.dropped.bytes += live.notification.bytes();
            } else {
                inside.bytes = own;
                all.fetch_add(bytes, Ordering::Relaxed);
                inside.queue.push_back(live);
            }
        });
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.0.change(|inside, _| inside.is_closed = true);
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
        if takes_live && let Some(live) = inside.queue.pop_front() {
            let bytes = bytes_of(&live);
            inside.bytes -= bytes;
            self.0.all.0.fetch_sub(bytes, Ordering::Relaxed);
            return Poll::Ready(Some(Told::Live(live)));
        }
        if takes_live && inside.dropped != Dropped::default() {
            return Poll::Ready(Some(Told::Behind(std::mem::take(&mut inside.dropped))));
        }
        if !inside.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            inside.waker = Some(cx.waker().clone());
        }
        Poll::Pending
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

    /// Where a request for the attempt's place goes.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.0
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        let mut inside = self.0.lock();
        inside.queue = VecDeque::new();
        let bytes = std::mem::take(&mut inside.bytes);
        // What comes later finds nobody, and is not kept.
        inside.is_behind = true;
        self.0.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Line {
    /// Others want the attempt's place.
    pub(crate) fn ask(&self) {
        self.change(|inside, _| inside.is_asked = true);
    }

    fn change(&self, change: impl FnOnce(&mut Inside, &AtomicUsize)) {
        let mut inside = self.lock();
        change(&mut inside, &self.all.0);
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
    use surefoot_model::{Notification, NotificationId, Resolution};

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
                Poll::Ready(Some(Told::Live(live))) => told.push(live.index.to_string()),
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
    fn what_waits_is_bounded_and_nothing_follows_what_was_dropped() {
        let all = Feeds::default();
        let (notifier, mut feed) = all.feed();
        for index in 0..100 {
            notifier.notify(live(index, 1 << 20));
        }
        assert!(all.0.load(Ordering::Relaxed) <= SHARED_BYTES + (1 << 20));
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
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
        notifier.notify(live(101, 10));
        assert_eq!(all.0.load(Ordering::Relaxed), 0, "nobody would take it");
    }
}
