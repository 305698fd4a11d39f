//! A small executor: ready tasks are polled in seeded order, time jumps when nothing is ready. No runtime besides.
//!
//! Owns: tasks, timers, the simulated clocks, and lives. A task that is spawned through a node's [`Env`] belongs to that life and
//! dies with it; tasks of the world (clients, handlers) go on. Does not own: disk contents, or what tasks do. Timers follow the
//! monotonic clock; the wall clock jumps both ways when it is told to, as when somebody sets it or the machine was suspended.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use surefoot_env::sim::Rng;
use surefoot_env::{BoxFuture, Clock, Ids, Step, Steps, Tasks, Undone, Wake};

/// The life of tasks that belong to the world and not to a node.
pub(crate) const WORLD: u64 = 0;

/// Unix time at which every simulation begins, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// The longest step of a stepper that is not slow, in microseconds.
const STEP_MICROS_MAX: u64 = 8_000;
/// For how long work may be left undone while others are busy: what one stepper makes room for, another hears of at the end of a
/// step, and perhaps through a third.
const HANDED_ON_MAX: Duration = Duration::from_micros(3 * STEP_MICROS_MAX);
/// Idle steppers are looked at before time passes, but not more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One simulated world's time and tasks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Executor(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    now: Duration,
    ready: Vec<u64>,
    queued: BTreeSet<u64>,
    /// Tasks not being polled right now; the life each belongs to.
    tasks: BTreeMap<u64, (u64, Option<BoxFuture>)>,
    next_task: u64,
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
    /// Steppers of nodes, by their number.
    steppers: BTreeMap<u64, Driven>,
    findings: Vec<String>,
    /// When idle steppers are looked at again.
    next_look: Duration,
    /// Where the wall clock stood against the monotonic one, from when on, in milliseconds.
    jumps: Vec<(Duration, i64)>,
    polls: u64,
    hash: u64,
}

type Stepper = Arc<Mutex<Box<dyn Steps>>>;

/// A stepper, as the executor looks at it before it lets time pass.
struct Driven {
    life: u64,
    stepper: Stepper,
    /// It waits, and did nothing in its last step that takes time.
    is_idle: bool,
    /// What it has left undone, since when.
    undone: BTreeMap<String, Duration>,
}

/// Why [`Executor::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// The asked-for number of polls is over.
    Polls,
    /// The condition holds.
    Until,
    /// Nothing is ready and no timer is set: everything waits for something that cannot come.
    Quiet,
}

impl Executor {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: Rng::new(seed),
            now: Duration::ZERO,
            ready: Vec::new(),
            queued: BTreeSet::new(),
            tasks: BTreeMap::new(),
            next_task: 1,
            timers: BTreeMap::new(),
            next_timer: 0,
            steppers: BTreeMap::new(),
            findings: Vec::new(),
            next_look: Duration::ZERO,
            jumps: vec![(Duration::ZERO, 0)],
            polls: 0,
            hash: seed,
        })))
    }

    pub(crate) fn spawn(&self, life: u64, future: BoxFuture) {
        let mut state = self.lock();
        let id = state.next_task;
        state.next_task += 1;
        state.tasks.insert(id, (life, Some(future)));
        state.queued.insert(id);
        state.ready.push(id);
    }

    /// Drops every task of a life, after whoever asks has made its disk dead: destructors still run.
    pub(crate) fn kill(&self, life: u64) {
        let doomed: (Vec<_>, Vec<_>) = {
            let mut state = self.lock();
            let ids: Vec<u64> = state.tasks.iter().filter(|(_, (of, _))| *of == life).map(|(id, _)| *id).collect();
            let tasks = ids.into_iter().filter_map(|id| state.tasks.remove(&id)).collect();
            (tasks, state.steppers.extract_if(.., |_, driven| driven.life == life).collect())
        };
        drop(doomed);
    }

    /// Drops all tasks, of every life: they hold what holds them.
    pub(crate) fn end(&self) {
        loop {
            let (tasks, timers, _steppers) = {
                let state = &mut *self.lock();
                state.ready.clear();
                (std::mem::take(&mut state.tasks), std::mem::take(&mut state.timers), std::mem::take(&mut state.steppers))
            };
            if tasks.is_empty() && timers.is_empty() {
                return;
            }
        }
    }

    /// What a node left undone while time passed.
    pub(crate) fn findings(&self) -> Vec<String> {
        self.lock().findings.clone()
    }

    pub(crate) fn has_findings(&self) -> bool {
        !self.lock().findings.is_empty()
    }

    /// Nothing runs, and time is to pass up to `until`: whoever is idle has nothing to do.
    fn look_for_undone(&self, until: Duration) {
        let idle: Vec<(u64, Stepper)> = {
            let state = self.lock();
            let idle = state.steppers.iter().filter(|(_, driven)| driven.is_idle);
            idle.map(|(number, driven)| (*number, driven.stepper.clone())).collect()
        };
        for (number, stepper) in idle {
            let found = stepper.lock().unwrap_or_else(PoisonError::into_inner).undone();
            let state = &mut *self.lock();
            let Some(driven) = state.steppers.get_mut(&number) else { continue };
            driven.undone.retain(|what, _| found.iter().any(|undone| undone.what == *what));
            for Undone { what, patience } in found {
                let since = *driven.undone.entry(what.clone()).or_insert(state.now);
                let finding = format!("time passes while there is work: {what}");
                if until - since > patience.max(HANDED_ON_MAX) && !state.findings.contains(&finding) {
                    state.findings.push(finding);
                }
            }
        }
    }

    fn add_stepper(&self, life: u64, stepper: Stepper) -> u64 {
        let state = &mut *self.lock();
        let number = state.next_task;
        state.next_task += 1;
        state.steppers.insert(number, Driven { life, stepper, is_idle: false, undone: BTreeMap::new() });
        number
    }

    fn drop_stepper(&self, number: u64) {
        let driven = self.lock().steppers.remove(&number);
        drop(driven);
    }

    fn set_idle(&self, number: u64, is_idle: bool) {
        if let Some(driven) = self.lock().steppers.get_mut(&number) {
            driven.is_idle = is_idle;
        }
    }

    /// Polls until `until` holds, `polls` polls are over, or nothing can happen any more.
    pub(crate) fn run(&self, mut polls: u64, until: impl Fn() -> bool) -> Ran {
        loop {
            if until() {
                return Ran::Until;
            }
            let mut state = self.lock();
            if state.ready.is_empty() {
                let Some((&(at, _), _)) = state.timers.first_key_value() else { return Ran::Quiet };
                if at > state.now && at >= state.next_look {
                    state.next_look = state.now + LOOK_EVERY;
                    drop(state);
                    self.look_for_undone(at);
                    state = self.lock();
                }
                let (_, waker) = state.timers.pop_first().expect("no timer goes while nothing runs");
                state.now = state.now.max(at);
                drop(state);
                waker.wake();
                continue;
            }
            if polls == 0 {
                return Ran::Polls;
            }
            polls -= 1;
            let count = state.ready.len() as u64;
            let at = state.rng.below(count) as usize;
            let id = state.ready.swap_remove(at);
            state.queued.remove(&id);
            let Some(mut future) = state.tasks.get_mut(&id).and_then(|(_, future)| future.take()) else { continue };
            state.polls += 1;
            let now = state.now.as_nanos() as u64;
            state.trace(id ^ now);
            drop(state);
            let waker = Waker::from(Arc::new(TaskWaker { id, executor: self.clone() }));
            let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            let mut state = self.lock();
            let finished = if done {
                state.tasks.remove(&id);
                Some(future)
            } else if let Some((_, slot)) = state.tasks.get_mut(&id) {
                *slot = Some(future);
                None
            } else {
                Some(future) // killed itself meanwhile
            };
            drop(state);
            drop(finished);
        }
    }

    /// A number that any difference between two runs changes.
    pub(crate) fn hash(&self) -> u64 {
        self.lock().hash
    }

    /// Adds something that happened to the trace.
    pub(crate) fn trace(&self, what: u64) {
        self.lock().trace(what);
    }

    /// Adds data that went from one to another to the trace.
    pub(crate) fn trace_bytes(&self, bytes: &[u8]) {
        let state = &mut *self.lock();
        state.trace(bytes.len() as u64);
        for word in bytes.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            state.trace(u64::from_le_bytes(padded));
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.lock().now
    }

    /// What the wall clock shows, in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        let state = self.lock();
        let (_, skew_ms) = state.jumps.last().expect("the first is never taken away");
        wall_ms(state.now, *skew_ms)
    }

    /// Sets the wall clock forth, or back.
    pub(crate) fn jump(&self, by_ms: i64) {
        let state = &mut *self.lock();
        let (_, skew_ms) = state.jumps.last().expect("the first is never taken away");
        state.jumps.push((state.now, skew_ms + by_ms));
    }

    /// When the wall clock last jumped.
    pub(crate) fn last_jump(&self) -> Duration {
        self.lock().jumps.last().expect("the first is never taken away").0
    }

    /// The latest time that the wall clock has shown since then.
    pub(crate) fn latest_ms_since(&self, since: Duration) -> u64 {
        let state = self.lock();
        let ends = state.jumps.iter().skip(1).map(|(at, _)| *at).chain([state.now]);
        let shown = state.jumps.iter().zip(ends).filter(|(_, end)| *end >= since);
        shown.map(|((_, skew_ms), end)| wall_ms(end, *skew_ms)).max().expect("it shows a time now")
    }

    /// Completes when simulated time has passed.
    pub(crate) fn sleep(&self, duration: Duration) -> BoxFuture {
        Box::pin(Sleep { until: self.now() + duration, executor: self.clone(), key: None })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wall_ms(monotonic: Duration, skew_ms: i64) -> u64 {
    (EPOCH_MS + monotonic.as_millis() as u64).saturating_add_signed(skew_ms)
}

impl State {
    fn trace(&mut self, what: u64) {
        self.hash = (self.hash ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

struct TaskWaker {
    id: u64,
    executor: Executor,
}

impl std::task::Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut state = self.executor.lock();
        if state.tasks.contains_key(&self.id) && state.queued.insert(self.id) {
            state.ready.push(self.id);
        }
    }
}

struct Sleep {
    until: Duration,
    executor: Executor,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let executor = self.executor.clone();
        let mut state = executor.lock();
        if state.now >= self.until {
            return Poll::Ready(());
        }
        let key = match self.key {
            Some(key) => key,
            None => {
                state.next_timer += 1;
                (self.until, state.next_timer)
            }
        };
        let replaced = state.timers.insert(key, cx.waker().clone());
        drop(state);
        drop(replaced);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.executor.lock().timers.remove(&key);
            drop(waker);
        }
    }
}

/// The clock, tasks and ids of one life of a node.
pub(crate) struct Life {
    executor: Executor,
    life: u64,
    /// Identity has a stream of numbers of its own, so that scheduling does not shift it.
    ids: Mutex<Rng>,
    /// The stepper that is slow in this life, as a disk can be at one thing, and how much slower it is than others.
    slow: (&'static str, u64),
}

impl Life {
    pub(crate) fn new(executor: Executor, life: u64, seed: u64, slow: (&'static str, u64)) -> Arc<Self> {
        Arc::new(Self { executor, life, ids: Mutex::new(Rng::new(seed ^ life.rotate_left(40))), slow })
    }
}

impl Clock for Life {
    fn now_ms(&self) -> u64 {
        self.executor.now_ms()
    }

    fn monotonic(&self) -> Duration {
        self.executor.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture {
        self.executor.sleep(duration)
    }
}

impl Ids for Life {
    fn random_u64(&self) -> u64 {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

impl Tasks for Life {
    fn spawn(&self, future: BoxFuture) {
        self.executor.spawn(self.life, future);
    }

    fn try_drive(&self, name: &'static str, wake: Wake, stepper: Box<dyn Steps>) -> std::io::Result<()> {
        let executor = self.executor.clone();
        let stepper = Arc::new(Mutex::new(stepper));
        let number = executor.add_stepper(self.life, stepper.clone());
        let slowness = if name == self.slow.0 { self.slow.1 } else { 1 };
        self.executor.spawn(
            self.life,
            Box::pin(async move {
                loop {
                    let step = stepper.lock().unwrap_or_else(PoisonError::into_inner).step();
                    executor.set_idle(number, matches!(step, Step::Idle | Step::IdleFor(_)));
                    match step {
                        // A step takes some time, at times as long as a slow disk, so that others run between any two of it.
                        Step::Worked => {
                            let micros = {
                                let rng = &mut executor.lock().rng;
                                if rng.below(8) == 0 { rng.below(STEP_MICROS_MAX) } else { rng.below(300) }
                            };
                            executor.sleep(Duration::from_micros(micros * slowness)).await;
                        }
                        Step::Idle => wake.woken().await,
                        Step::IdleFor(limit) => woken_or_over(&wake, executor.sleep(limit)).await,
                        Step::Done => return executor.drop_stepper(number),
                    }
                    executor.set_idle(number, false);
                }
            }),
        );
        Ok(())
    }
}

/// Completes at a wake or when the time is over; a wake is looked at first.
async fn woken_or_over(wake: &Wake, mut over: BoxFuture) {
    let mut woken = pin!(wake.woken());
    std::future::poll_fn(|cx| match woken.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => over.as_mut().poll(cx),
    })
    .await;
}
