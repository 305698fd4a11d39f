//! Running things: futures, and *steppers* (blocking loops cut into steps).
//!
//! A stepper is plain synchronous code that does a bounded piece of work per call and says what comes next; waiting belongs to
//! its driver. In production the driver is a thread of its own, in simulation a task, so both run the same code.
//! Does not own: what is run, or its errors; a stepper that fails ends with [`Step::Done`] after having said why.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;

pub type BoxFuture<T = ()> = Pin<Box<dyn Future<Output = T> + Send>>;

pub trait Tasks: Send + Sync {
    /// Runs a future to its end, concurrently with everything else.
    fn spawn(&self, future: BoxFuture);
    /// Runs a stepper until it is done. `wake` tells the driver that an idle stepper has work. Fails, and drops the stepper, where the
    /// operating system has no thread to give.
    fn try_drive(&self, name: &'static str, wake: Wake, stepper: Box<dyn Steps>) -> std::io::Result<()>;

    /// The same, for what a node cannot start without.
    fn drive(&self, name: &'static str, wake: Wake, stepper: Box<dyn Steps>) {
        self.try_drive(name, wake, stepper).expect("the operating system starts a handful of threads per node");
    }
}

pub trait Steps: Send {
    /// Does one bounded piece of work: at most one blocking operation.
    fn step(&mut self) -> Step;

    /// What a stepper that is idle could do: nothing, or its driver was not woken for it. Simulation looks here before it lets time
    /// pass; production does not. Reads, and changes nothing.
    fn undone(&self) -> Vec<Undone> {
        Vec::new()
    }
}

/// Work that waits for nothing but a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    pub what: String,
    /// For how long it may be left so, where a stepper looks at times only.
    pub patience: Duration,
}

impl Undone {
    /// Something that was to be done at once.
    pub fn at_once(what: String) -> Self {
        Self { what, patience: Duration::ZERO }
    }
}

/// What a stepper wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There may be more to do: call again.
    Worked,
    /// Nothing to do until woken.
    Idle,
    /// Nothing to do until woken or until this much time has passed.
    IdleFor(Duration),
    /// The stepper has ended.
    Done,
}

/// Wakes one idle stepper. A wake that comes while it works is remembered. Cheap to clone.
#[derive(Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// Completes at the next wake, or at once if one came since the last wait. For drivers.
    pub async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Lets other tasks have their turn. For work that is cut into pieces and has nothing to wait for.
pub async fn yield_now() {
    let mut has_yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Futures go to a tokio runtime, steppers to a thread each.
pub struct OsTasks {
    handle: tokio::runtime::Handle,
}

impl OsTasks {
    pub fn new(handle: tokio::runtime::Handle) -> Self {
        Self { handle }
    }
}

impl Tasks for OsTasks {
    fn spawn(&self, future: BoxFuture) {
        self.handle.spawn(future);
    }

    fn try_drive(&self, name: &'static str, wake: Wake, mut stepper: Box<dyn Steps>) -> std::io::Result<()> {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                loop {
                    // A stepper that panics leaves its part of the process without an owner; a process that ends is what recovery is for.
                    let step = catch_unwind(AssertUnwindSafe(|| stepper.step())).unwrap_or_else(|_| std::process::abort());
                    match step {
                        Step::Worked => {}
                        Step::Idle => park_until_woken(&wake, None),
                        Step::IdleFor(duration) => park_until_woken(&wake, Some(duration)),
                        Step::Done => return,
                    }
                }
            })
            .map(drop)
    }
}

/// A waker that unparks the thread that made it.
struct Unpark(thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn park_until_woken(wake: &Wake, limit: Option<Duration>) {
    let start = std::time::Instant::now();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut woken = pin!(wake.woken());
    while woken.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        match limit {
            None => thread::park(),
            Some(limit) => match limit.checked_sub(start.elapsed()) {
                Some(left) if !left.is_zero() => thread::park_timeout(left),
                _ => return,
            },
        }
    }
}
