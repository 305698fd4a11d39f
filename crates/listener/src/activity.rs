//! What one connection's requests do, so that one that asks for nothing can be told from one that waits.
//!
//! Does not own: what becomes of an idle connection (`connection`, `registry`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;
use surefoot_env::Clock;

/// Counters of one connection.
pub(crate) struct Activity {
    clock: Arc<dyn Clock>,
    /// Requests whose answer is being made.
    answering: AtomicUsize,
    /// Answers on their way to the client.
    sending: AtomicUsize,
    /// Something has begun, ended or left since this was last asked.
    has_moved: AtomicBool,
    /// Requests that have come.
    requests: AtomicU64,
    /// The port's count of requests when this connection's newest one ended; 0 before that.
    newest: AtomicU64,
    /// Bodies that their client has not gone on with, by number.
    awaited: Mutex<BTreeMap<u64, Awaited>>,
    /// Reads on once a body is awaited: the client's end, which is held back until then, is the end of that body.
    held_back: Mutex<Option<Waker>>,
    /// Bodies that are awaited are given up: the connection is wanted for others.
    gives_way: AtomicBool,
    /// Milliseconds on the clock when a request ended last, or it came: while it is unused, since when.
    unused_ms: AtomicU64,
    /// It speaks HTTP/1.1: what it sends ends with the bodies of its requests.
    is_http1: AtomicBool,
    /// An answer has said that it is the last.
    has_said_last: AtomicBool,
}

/// A body that its client has not gone on with.
struct Awaited {
    /// Since when it is behind the least rate.
    behind_from: Duration,
    /// Who waits for it.
    waker: Waker,
}

/// A body that may have to be waited for, until it is dropped.
pub(crate) struct Awaiting {
    activity: Arc<Activity>,
    number: u64,
    is_listed: bool,
}

impl Awaiting {
    /// `number`: unlike that of any other body of the connection.
    pub(crate) fn new(activity: Arc<Activity>, number: u64) -> Self {
        Self { activity, number, is_listed: false }
    }

    /// It is waited for, and behind the least rate from then on. False: it is waited for no longer, since its connection gives way.
    pub(crate) fn wait(&mut self, behind_from: Duration, waker: &Waker) -> bool {
        self.is_listed = true;
        self.activity.awaited().insert(self.number, Awaited { behind_from, waker: waker.clone() });
        if let Some(reading) = self.activity.held_back().take() {
            reading.wake();
        }
        // A word that comes later finds the waker.
        !self.activity.gives_way.load(Ordering::SeqCst)
    }

    /// It goes on, or has come.
    pub(crate) fn go_on(&mut self) {
        if std::mem::take(&mut self.is_listed) {
            self.activity.awaited().remove(&self.number);
        }
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.go_on();
    }
}

impl Activity {
    /// Of a connection that has just come.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let unused_ms = AtomicU64::new(milliseconds(clock.monotonic()));
        Self {
            clock,
            answering: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            has_moved: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            awaited: Mutex::default(),
            held_back: Mutex::default(),
            gives_way: AtomicBool::new(false),
            unused_ms,
            is_http1: AtomicBool::new(false),
            has_said_last: AtomicBool::new(false),
        }
    }

    /// Since when all that is in progress waits for bodies that come too slowly; none where something does not.
    pub(crate) fn stalled_since(&self, now: Duration) -> Option<Duration> {
        let awaited = self.awaited();
        let only_waits = awaited.len() == self.answering.load(Ordering::Relaxed) && self.sending.load(Ordering::Relaxed) == 0;
        let latest = awaited.values().map(|body| body.behind_from).max();
        latest.filter(|latest| only_waits && *latest <= now)
    }

    /// Bodies that are awaited, now or later, are given up: their requests are answered, and the connection can close.
    pub(crate) fn give_way(&self) {
        self.gives_way.store(true, Ordering::SeqCst);
        for body in self.awaited().values() {
            body.waker.wake_by_ref();
        }
    }

    /// On the clock of the connection.
    pub(crate) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeMap<u64, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is being answered, and nothing has moved since this was last asked. An answer whose client reads none of it
    /// is nothing that moves.
    pub(crate) fn was_idle(&self) -> bool {
        !self.has_moved.swap(false, Ordering::Relaxed) && self.answering.load(Ordering::Relaxed) == 0
    }

    /// Whether closing the connection now would cut off nothing.
    pub(crate) fn is_unused(&self) -> bool {
        self.answering.load(Ordering::Relaxed) == 0 && self.sending.load(Ordering::Relaxed) == 0
    }

    /// For how long closing it would have cut off nothing; none where it would now.
    pub(crate) fn unused_for(&self, now: Duration) -> Option<Duration> {
        let since = Duration::from_millis(self.unused_ms.load(Ordering::Relaxed));
        self.is_unused().then(|| now.saturating_sub(since))
    }

    /// Requests that have come so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn speaks_http1(&self) {
        self.is_http1.store(true, Ordering::Relaxed);
    }

    /// Whether its client waits for an answer, and nobody for more of its request: all of that may have come. Where it has not,
    /// `reading` hears of it once its body is asked for.
    pub(crate) fn waits_for_answer_alone(&self, reading: &Waker) -> bool {
        // Before the look, so that no body is missed that is awaited from now on.
        *self.held_back() = Some(reading.clone());
        self.is_http1.load(Ordering::Relaxed) && !self.is_unused() && self.awaited().is_empty()
    }

    fn held_back(&self) -> MutexGuard<'_, Option<Waker>> {
        self.held_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its client has been told that the answer it gets is the last.
    pub(crate) fn says_last(&self) {
        self.has_said_last.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_said_last(&self) -> bool {
        self.has_said_last.load(Ordering::Relaxed)
    }

    /// Higher for a connection that was used later.
    pub(crate) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    pub(crate) fn moved(&self) {
        self.has_moved.store(true, Ordering::Relaxed);
    }

    /// A request has been answered, or its answer has left: told before it is counted, so that the connection looks idle, or unused for
    /// long, at no time.
    fn ends(&self) {
        self.moved();
        self.unused_ms.store(milliseconds(self.clock.monotonic()), Ordering::Relaxed);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A request whose answer is being made, until it is dropped.
pub(crate) struct Answering(Arc<Activity>);

impl Answering {
    /// For its body, while that is received: no two of them begin as the same of the port's requests.
    pub(crate) fn awaiting(&self) -> Awaiting {
        Awaiting::new(self.0.clone(), self.0.newest())
    }

    /// `count`: of the port's requests.
    pub(crate) fn new(activity: Arc<Activity>, count: &AtomicU64) -> Self {
        activity.answering.fetch_add(1, Ordering::Relaxed);
        activity.requests.fetch_add(1, Ordering::Relaxed);
        activity.newest.store(count.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        activity.moved();
        Self(activity)
    }

    /// The answer is made.
    pub(crate) fn into_sending(self) -> Sending {
        self.0.sending.fetch_add(1, Ordering::Relaxed);
        Sending(self.0.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.ends();
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer on its way, until it is dropped.
pub(crate) struct Sending(Arc<Activity>);

impl Sending {
    /// The client took a piece.
    pub(crate) fn piece(&self) {
        self.0.moved();
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.ends();
        self.0.sending.fetch_sub(1, Ordering::Relaxed);
    }
}
