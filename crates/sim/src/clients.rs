//! Clients that call an object, each operation under its idempotency key until it is acknowledged.
//!
//! Checked: every acknowledged result is a prefix of its key's final history, each operation is in it exactly once, what was sent
//! one way arrived exactly once; an operation that is asked for again under its name gets the same answer.

use crate::world::{State, World, numbers, request};
use std::collections::{BTreeMap, BTreeSet};
use surefoot_env::sim::Rng;
use surefoot_ingress::Error;
use surefoot_model::Outcome;

/// Where operations send something one way.
pub(crate) const SINKS: [&str; 3] = ["s0", "s1", "s2"];
/// A key that a build may stumble over.
const BROKEN: &str = "broken";

#[derive(Default)]
pub(crate) struct Model {
    /// Operations that clients began, by key.
    begun: BTreeMap<String, BTreeSet<u64>>,
    /// Acknowledged histories, by key.
    acknowledged: BTreeMap<String, Vec<Vec<u64>>>,
    next_operation: u64,
}

impl Model {
    pub(crate) fn operations(&self) -> u64 {
        self.begun.values().map(|operations| operations.len() as u64).sum()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.begun.keys().cloned().collect()
    }

    fn begin(&mut self, key: &str) -> u64 {
        self.next_operation += 1;
        self.begun.entry(key.to_owned()).or_default().insert(self.next_operation);
        self.next_operation
    }
}

pub(crate) fn start(world: &World, seed: u64) {
    for client in 0..world.scenario.clients {
        let rng = Rng::new(seed ^ (client + 1) << 32);
        world.spawn(run(client, world.clone(), rng));
    }
    if world.scenario.repairs {
        let (clock, rng) = (world.clone(), Rng::new(seed ^ 0xb0c5));
        world.spawn(call_broken(clock, rng));
    }
}

/// One operation on the key that a build may stumble over.
async fn call_broken(world: World, mut rng: Rng) {
    world.sleep_ms(rng.below(1_500)).await;
    operate(&world, 0, BROKEN).await;
}

async fn run(client: u64, world: World, mut rng: Rng) {
    let mut done = Vec::new();
    for _ in 0..world.scenario.operations {
        let key = format!("k{}", rng.below(world.scenario.keys));
        done.extend(operate(&world, client, &key).await.map(|(operation, history)| (key, operation, history)));
        world.sleep_ms(rng.below(40)).await;
    }
    for (key, operation, history) in done {
        world.sleep_ms(rng.below(1_000)).await;
        ask_again(&world, &key, operation, &history).await;
    }
}

/// What a node answers to an operation, under the operation's name. Absent: the node stopped, or is gone.
async fn call(world: &World, key: &str, operation: u64) -> Option<Result<Outcome, Error>> {
    let key = key.to_owned();
    let answer = world.ask(|open| async move {
        let name = format!("op-{operation}");
        open.ingress.call(request("Counter", "add", &key, &operation.to_string(), Some(&name))).await
    });
    answer.await.map(|answer| answer.map(|completed| completed.outcome))
}

/// Asks once more for what was acknowledged: the same is answered, however long ago that was and however much is retained.
async fn ask_again(world: &World, key: &str, operation: u64, history: &[u64]) {
    if let Some(Ok(Outcome::Success(again))) = call(world, key, operation).await
        && numbers(&String::from_utf8_lossy(&again)) != history
    {
        let again = numbers(&String::from_utf8_lossy(&again));
        world.finding(format!("operation {operation} answered {history:?}, and under the same name {again:?} (rule R1)"));
    }
}

/// One operation, until it is acknowledged: its number, and the history that was answered.
async fn operate(world: &World, client: u64, key: &str) -> Option<(u64, Vec<u64>)> {
    let operation = world.model().clients.begin(key);
    loop {
        match call(world, key, operation).await {
            Some(Ok(Outcome::Success(history))) => {
                let history = numbers(&String::from_utf8_lossy(&history));
                world.executor.trace(operation);
                world.model().clients.acknowledged.entry(key.to_owned()).or_default().push(history.clone());
                return Some((operation, history));
            }
            Some(Ok(Outcome::Failure(failure))) => {
                world.finding(format!("client {client}: operation {operation} failed: {}", failure.message));
                return None;
            }
            Some(Err(error)) if error.status() != 503 => {
                world.finding(format!("client {client}: operation {operation} was refused: {error}"));
                return None;
            }
            // The node is stopping or gone: it comes back.
            Some(Err(_)) | None => world.sleep_ms(20).await,
        }
    }
}

/// What has not arrived yet. **Errors**: what must not be.
pub(crate) fn missing(world: &World, state: &State) -> Result<Option<String>, String> {
    let (model, none) = (&world.model().clients, BTreeSet::new());
    for (key, operations) in &model.begun {
        let history = state.at("Counter", key, &none)?;
        if history.iter().copied().collect::<BTreeSet<u64>>() != *operations {
            return Err(format!("key {key}: history {history:?} is not each of {operations:?} once"));
        }
        for acknowledged in model.acknowledged.get(key).into_iter().flatten() {
            if !history.starts_with(acknowledged) {
                return Err(format!("key {key}: acknowledged {acknowledged:?}, then {history:?}"));
            }
        }
    }
    let sent = |sink: u64| model.begun.values().flatten().copied().filter(move |op| op.is_multiple_of(5) && op % 3 == sink);
    for (number, sink) in (0..).zip(SINKS) {
        let expected: BTreeSet<u64> = sent(number).collect();
        let found: BTreeSet<u64> = state.at("Sink", sink, &none)?.iter().copied().collect();
        if expected != found {
            return Ok(Some(format!("sent one way and never arrived: expected {expected:?} in {sink}, found {found:?}")));
        }
    }
    Ok(None)
}
