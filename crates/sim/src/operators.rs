//! Operators who interfere: they pause and resume what runs, kill, purge and submit again under the same id, register new revisions
//! of the handlers, at times with some missing, set the wall clock, and leave no room for the engine, or on the disk.
//!
//! Checked: whatever is paused goes on where it was, and an id that lives again gives its own result. What else could come of it
//! shows elsewhere: a partition that stops, a replay that differs or goes on at another deployment, an operation that is lost, a
//! sleep that ends early or late.

use crate::services::deployment;
use crate::world::{Open, World, request};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use surefoot_env::sim::Rng;
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{AttemptError, InvocationId, Operation, Outcome, Status};
use surefoot_partition::{ListFilter, Partitions};

/// How often something is paused, and something killed.
const ROUNDS: u64 = 12;
/// How often handlers are registered anew.
pub(crate) const REVISIONS: u32 = 5;
/// Worlds in which the clock jumps, and in which the engine finds no room at times: one in so many.
const JUMPY: u64 = 4;
const CRAMPED: u64 = 3;
/// Worlds whose disk somebody else fills at times, and what is left of it then.
const FILLED: u64 = 3;
const FILLED_FREE_MAX: u64 = 96 << 10;

pub(crate) fn start(world: &World, seed: u64) {
    world.spawn(pause_some(world.clone(), Rng::new(seed ^ 0x9a05)));
    world.spawn(kill_some(world.clone(), Rng::new(seed ^ 0x6b11)));
    world.spawn(register_again(world.clone(), Rng::new(seed ^ 0x4e91)));
    let mut rng = Rng::new(seed ^ 0xc10c);
    if rng.below(JUMPY) == 0 {
        world.spawn(set_clock(world.clone(), Rng::new(rng.next_u64())));
    }
    if rng.below(CRAMPED) == 0 {
        world.spawn(take_room(world.clone(), Rng::new(rng.next_u64())));
    }
    if rng.below(FILLED) == 0 {
        world.spawn(fill_disk(world.clone(), Rng::new(rng.next_u64())));
    }
}

/// New revisions, each at an address of its own; what has begun goes on where it began (rule M1). Some lack the handlers of a service
/// that others call, or that a topic is read into, for a while; the last has all.
async fn register_again(world: World, mut rng: Rng) {
    for revision in 2..=REVISIONS {
        world.sleep_ms(rng.below(1_500)).await;
        let missing = ["Echo", "Ledger", "Relay"][rng.below(3) as usize];
        let without = (revision < REVISIONS && rng.below(2) == 0).then_some(missing);
        while !world.ask(|open| register(open, revision, without)).await.unwrap_or_default() {}
        world.model().registered = revision;
    }
}

/// Whether it is registered.
pub(crate) async fn register(open: Open, revision: u32, without: Option<&'static str>) -> bool {
    let event = CatalogEvent::DeploymentRegistered(deployment(revision, without));
    open.partitions.change_catalog(event).await.is_ok()
}

/// Forth and back, or back and forth, further than anything is late by itself.
async fn set_clock(world: World, mut rng: Rng) {
    for _ in 0..2 {
        world.sleep_ms(rng.below(3_000)).await;
        let by_ms = (120_000 + rng.below(120_000)).cast_signed() * if rng.below(3) == 0 { -1 } else { 1 };
        world.executor.jump(by_ms);
        world.sleep_ms(rng.below(1_500)).await;
        world.executor.jump(-by_ms);
    }
}

/// Checkpoints find no room for a while; edges wait, and nothing else does.
async fn take_room(world: World, mut rng: Rng) {
    for _ in 0..2 {
        world.sleep_ms(rng.below(2_500)).await;
        if world.model().is_calm {
            return;
        }
        world.set_full(true);
        world.sleep_ms(rng.below(2_500)).await;
        world.set_full(false);
    }
}

/// Somebody else fills the disk, and makes room again: edges refuse, then running work waits, and nobody ends (rules R2, L8).
async fn fill_disk(world: World, mut rng: Rng) {
    for _ in 0..3 {
        world.sleep_ms(rng.below(2_500)).await;
        if world.model().is_calm {
            return;
        }
        let free = if rng.below(3) == 0 { 0 } else { rng.below(FILLED_FREE_MAX) };
        world.set_disk_free(Some(free));
        world.sleep_ms(rng.below(6_000)).await;
        world.set_disk_free(None);
    }
}

async fn pause_some(world: World, mut rng: Rng) {
    for _ in 0..ROUNDS {
        world.sleep_ms(rng.below(600)).await;
        let service = ["Counter", "Ledger", "Relay"][rng.below(3) as usize];
        let (choice, is_pipelined, pause_ms) = (rng.below(1 << 20), rng.below(3) > 0, rng.below(300));
        let clock = world.clone();
        let pausing = world.ask(move |open| async move {
            let Some(id) = running(&clock, &open.partitions, service, choice).await else { return };
            let pause = open.partitions.operate(id, Operation::Pause);
            let resume = open.partitions.operate(id, Operation::Resume);
            if is_pipelined {
                // Both are on their way before either is applied. A node that stops leaves it to the next one.
                let _ = both(pause, resume).await;
            } else if pause.await.is_ok() {
                clock.sleep_ms(pause_ms).await;
                // A node that stops leaves it to the next one.
                let _ = resume.await;
            }
        });
        // A life that ends meanwhile may leave it paused.
        let _ = pausing.await;
        while world.ask(resume_each).await.is_none() {}
    }
    // What a partition that had stopped was not told then.
    while !world.model().is_calm {
        world.sleep_ms(100).await;
    }
    while world.ask(resume_each).await.is_none() {}
}

async fn running(world: &World, partitions: &Partitions, service: &str, choice: u64) -> Option<InvocationId> {
    let filter = ListFilter { service: Some(service.to_owned()), limit: 100, ..ListFilter::default() };
    let found = partitions.list(filter).await.ok()?.invocations;
    for invocation in &found {
        // Nobody deletes a deployment here: an attempt was started before the catalog was known.
        let is_gone = |error: &&AttemptError| error.message.contains("RT0011");
        if let Some(error) = invocation.last_error.as_ref().filter(is_gone) {
            world.finding(format!("{}: {} (rule M2)", invocation.id, error.message));
        }
    }
    let running: Vec<InvocationId> = found.iter().filter(|i| i.status != Status::Completed).map(|i| i.id).collect();
    running.get(choice as usize % running.len().max(1)).copied()
}

async fn resume_each(open: Open) {
    let filter = ListFilter { status: Some(Status::Paused), limit: 100, ..ListFilter::default() };
    let Ok(page) = open.partitions.list(filter).await else { return };
    for invocation in page.invocations {
        // A node that stops is asked again.
        let _ = open.partitions.operate(invocation.id, Operation::Resume).await;
    }
}

/// Resumes what is still paused at the end.
pub(crate) fn resume_all(world: &World) -> Result<(), String> {
    world.answer("resuming", resume_each)
}

async fn kill_some(world: World, mut rng: Rng) {
    for round in 0..ROUNDS {
        world.sleep_ms(rng.below(500)).await;
        let (name, body, wait_ms) = (format!("again-{round}"), round.to_string(), rng.below(12));
        let (clock, expected) = (world.clone(), body.clone());
        let asked = world.ask(move |open| async move {
            let again = || request("Echo", "echo", "", &body, Some(&name));
            let id = open.ingress.send(again(), None).await.ok()?.id;
            clock.sleep_ms(wait_ms).await;
            // All three are on their way before the first is applied: what the killed attempt has still sent comes after.
            let removed = both(open.partitions.operate(id, Operation::Kill), open.partitions.operate(id, Operation::Purge));
            let (_, called) = both(removed, open.ingress.call(again())).await;
            Some(called.ok()?.outcome)
        });
        // What a life that ended did not answer is not asked again: the next round has another id.
        match asked.await.flatten() {
            Some(Outcome::Success(value)) if value != expected.as_bytes() => {
                world.finding(format!("round {round}: the id that lived again answered {value:?}"));
            }
            Some(Outcome::Failure(failure)) if failure.code != 409 => {
                world.finding(format!("round {round}: the id that lived again failed: {}", failure.message));
            }
            _ => {}
        }
    }
}

/// Both results; the first is polled first.
async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut a, mut b) = (None, None);
    poll_fn(|cx| {
        if a.is_none()
            && let Poll::Ready(done) = first.as_mut().poll(cx)
        {
            a = Some(done);
        }
        if b.is_none()
            && let Poll::Ready(done) = second.as_mut().poll(cx)
        {
            b = Some(done);
        }
        match (a.take(), b.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (left, right) => {
                (a, b) = (left, right);
                Poll::Pending
            }
        }
    })
    .await
}
