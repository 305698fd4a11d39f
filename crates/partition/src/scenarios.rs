//! What a user sees of all partitions together: real parts on one thread, in the order that each test fixes.
//!
//! Owns: the scenarios that need neither handlers nor threads. Does not own: what random schedules find (`sim`).

use crate::answers::{Answer, Stopped};
use crate::settings::{Mutant, Settings};
use crate::start::Recovering;
use crate::testing::{COUNT, NodeLife, TestLog, TestNode, TestPlaces, settings};
use bytes::Bytes;
use std::sync::Arc;
use surefoot_invoker::Mutant as InvokerMutant;
use surefoot_log::Log;
use surefoot_model::catalog::{CatalogEvent, Deployment, Service, ServiceKind};
use surefoot_model::{
    Action, Attempt, AttemptEnd, AttemptProgress, DeploymentId, Epoch, Event, InvocationId, Item, Origin, PartitionId, Pin,
    Record, Retention, Submission, SubscriptionId, Target, TargetKind, Timestamp, encoding, entry_type,
};
use surefoot_storage::{Engine, MemEngine};

/// The n-th id of a partition.
fn id(partition: u16, n: u128) -> InvocationId {
    let partition_key = u64::from(partition) << (64 - COUNT.trailing_zeros());
    let id = InvocationId { partition_key, unique: n };
    assert_eq!(id.partition(COUNT), PartitionId(partition));
    id
}

fn submission(id: InvocationId, input_bytes: usize) -> Submission {
    Submission {
        id,
        target: Target::new(TargetKind::Service, "Greeter", "", "greet"),
        input: Bytes::from(vec![7; input_bytes]),
        idempotency_key: None,
        origin: Origin::Ingress,
        execute_at: None,
        retention: Retention { completion_ms: 1_000_000, journal_ms: 0 },
        random_seed: 1,
        request: None,
        caller: None,
        source: None,
    }
}

fn submitted(id: InvocationId, input_bytes: usize) -> Event {
    Event::InvocationSubmitted(Box::new(submission(id, input_bytes)))
}

/// What the first attempt of a partition brings.
fn progressed(id: InvocationId, attempt: u64, items: Vec<Item>, end: Option<AttemptEnd>) -> Event {
    let pin = Pin { deployment: DeploymentId(1), protocol: 6 };
    Event::AttemptProgressed(Box::new(AttemptProgress { id, attempt: Attempt(attempt), first_command: 1, pin, items, end }))
}

fn call(submission: Submission) -> Item {
    let partition = submission.id.partition(COUNT);
    let action =
        Action::Call { submission: Box::new(submission), partition, id_completion: 1, result: Some(2), parameter: (0, 0) };
    Item::Command { ty: entry_type::CALL, raw: Bytes::new(), action }
}

fn output() -> Item {
    Item::Command { ty: entry_type::OUTPUT, raw: Bytes::from_static(b"42"), action: Action::Succeed { value: (0, 2) } }
}

fn messages(log: &TestLog, to: PartitionId) -> Vec<PartitionId> {
    let from = |event: &Event| match event {
        Event::MessageArrived { from, .. } => Some(*from),
        _ => None,
    };
    log.events(to).iter().filter_map(from).collect()
}

fn has_acked(log: &TestLog, from: PartitionId, destination: PartitionId) -> bool {
    log.events(from).iter().any(|event| matches!(event, Event::OutboxAcked { to, .. } if *to == destination))
}

fn exists(node: &TestNode, id: InvocationId) -> bool {
    node.ask(node.partitions.invocation(id)).unwrap().is_some()
}

/// A partition stops in replay; meanwhile others call it, and answer into it. The next build can read what this one could not.
struct Repaired {
    log: Arc<TestLog>,
    engine: MemEngine,
}

const BROKEN: PartitionId = PartitionId(1);

impl Repaired {
    /// Runs up to the repair, under these settings.
    fn until_repair(settings: Settings) -> Self {
        let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
        let first = TestNode::start(&log, &engine, NodeLife(1), settings.clone());
        first.append(PartitionId(0), submitted(id(0, 1), 10));
        first.append(BROKEN, submitted(id(1, 1), 10));
        // It has called one on partition 2, which runs.
        first.append(BROKEN, progressed(id(1, 1), 1, vec![call(submission(id(2, 1), 10))], None));
        assert_eq!(messages(&log, PartitionId(2)), [BROKEN]);
        drop(first);
        // The build cannot read the record of the call: its version byte is right, what follows is not.
        let lsn = log.entries(BROKEN).iter().rfind(|entry| entry.payload.len() > 100).unwrap().lsn;
        let mut record = Bytes::from_static(&[1, 0xff]);
        log.swap_payload(BROKEN, lsn, &mut record);
        let second = TestNode::start(&log, &engine, NodeLife(2), settings);
        assert_eq!(second.stopped(), [BROKEN]);
        second.append(PartitionId(0), progressed(id(0, 1), 1, vec![call(submission(id(1, 2), 10))], None));
        let end = Some(AttemptEnd::Completed);
        second.append(PartitionId(2), progressed(id(2, 1), 1, vec![output()], end));
        second.ask(second.partitions.open_source(SubscriptionId(5), 1)).unwrap();
        second.pass_ms(60_000);
        drop(second);
        log.swap_payload(BROKEN, lsn, &mut record);
        Self { log, engine }
    }
}

#[test]
fn nothing_is_lost_for_a_partition_that_was_stopped_when_the_node_started() {
    let Repaired { log, engine } = Repaired::until_repair(settings());
    assert_eq!(messages(&log, BROKEN), [], "kept by their senders");
    assert!(!has_acked(&log, PartitionId(0), BROKEN) && !has_acked(&log, PartitionId(2), BROKEN));
    let node = TestNode::start(&log, &engine, NodeLife(3), settings());
    assert_eq!(node.stopped(), []);
    assert!(exists(&node, id(1, 2)), "it was called");
    assert_eq!(messages(&log, BROKEN), [PartitionId(0), PartitionId(2)]);
    // Its caller has the result: an entry for the id of the callee, and one for what it brought.
    let caller = node.ask(node.partitions.invocation(id(1, 1))).unwrap().unwrap();
    assert_eq!(caller.journal_len, 4);
    node.pass_ms(1_000);
    assert!(has_acked(&log, PartitionId(0), BROKEN) && has_acked(&log, PartitionId(2), BROKEN));
}

#[test]
fn a_worker_that_sends_to_a_stopped_partition_is_caught() {
    let Repaired { log, .. } = Repaired::until_repair(Settings { mutant: Mutant::SendToStopped, ..settings() });
    assert!(!messages(&log, BROKEN).is_empty() && has_acked(&log, PartitionId(0), BROKEN));
}

/// What is appended for a partition that could not be opened counts once it can be.
#[test]
fn what_is_appended_for_a_stopped_partition_carries_an_epoch_that_counts() {
    for (mutant, counts) in [(Mutant::None, true), (Mutant::ForgetEpoch, false)] {
        let Repaired { log, .. } = Repaired::until_repair(Settings { mutant, ..settings() });
        let entries = log.entries(BROKEN);
        let newest = entries.iter().map(|entry| entry.epoch).max().unwrap();
        assert_eq!(log.events(BROKEN).last().unwrap(), &Event::SourceOpened { subscription: SubscriptionId(5), epoch: 1 });
        assert_eq!(entries.last().unwrap().epoch == newest, counts, "{mutant:?}");
    }
}

#[test]
fn another_process_that_leads_silences_this_one() {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings());
    let here = PartitionId(0);
    let due = Timestamp(node.now().0 + 1_000);
    node.append(here, Event::InvocationSubmitted(Box::new(Submission { execute_at: Some(due), ..submission(id(0, 1), 1) })));
    let waiting = node.ask(node.partitions.submit(submission(id(0, 2), 1), true)).unwrap();
    node.settle();
    let election = encoding::encode(&Record::new(node.now(), Event::LeaderElected { process: 99 }));
    log.append(here, Epoch(7), vec![election.into()], None);
    node.settle();
    assert_eq!(node.ask(waiting.answer()), Err(Stopped::Unknown), "the other process answers nobody here");
    node.pass_ms(10_000);
    assert!(!log.events(here).iter().any(|event| matches!(event, Event::TimerFired { .. })), "it fires no timer");
    // Another partition of this process goes on.
    let sent = node.ask(node.partitions.submit(submission(id(1, 1), 1), false)).unwrap();
    assert!(matches!(node.ask(sent.answer()), Ok(Answer::Accepted { .. })));
}

/// A log whose tail takes more than memory may: what recovery holds at a time at most.
fn recovered_bytes_max(settings: Settings) -> usize {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings_of(64 << 20));
    for n in 1..=400 {
        node.append(PartitionId((n % 4) as u16), submitted(id((n % 4) as u16, n), 10_000));
    }
    drop(node);
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let mut recovering = Recovering::open(&engine, COUNT, surefoot_storage::Mutant::None, settings).unwrap();
    let mut bytes_max = 0;
    for partition in (0..COUNT).map(PartitionId) {
        for entry in log.entries(partition) {
            recovering.replay(&entry).unwrap();
            bytes_max = bytes_max.max(recovering.memory_bytes());
        }
    }
    assert_eq!(recovering.records(), 400 + u64::from(COUNT));
    bytes_max
}

fn settings_of(memory_bytes_max: u64) -> Settings {
    Settings { memory_bytes_max, ..settings() }
}

/// What once filled memory filled it again at every start.
#[test]
fn recovery_keeps_the_bound_of_running() {
    let bound = 1 << 20;
    let kept = recovered_bytes_max(settings_of(bound));
    assert!(kept <= bound as usize, "{kept}");
    let filled = recovered_bytes_max(Settings { mutant: Mutant::FillMemory, ..settings_of(bound) });
    assert!(filled > bound as usize * 2, "{filled}");
}

#[test]
fn what_recovery_wrote_is_there_and_nothing_is_applied_twice() {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings());
    for n in 1..=50 {
        node.append(PartitionId(0), submitted(id(0, n), 10_000));
    }
    drop(node);
    for life in 2..=3 {
        let node = TestNode::start(&log, &engine, NodeLife(life), settings_of(100_000));
        assert_eq!(node.stopped(), []);
        assert!((1..=50).all(|n| exists(&node, id(0, n))));
    }
}

/// With a share of its own each partition was written long before memory was short, and one that was busy all the time.
#[test]
fn the_largest_partition_is_written_once_all_together_take_half_of_memory() {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings_of(1 << 20));
    let busy = PartitionId(2);
    (1..=40).for_each(|n| node.append(busy, submitted(id(2, n), 10_000)));
    node.append(PartitionId(0), submitted(id(0, 1), 10_000));
    assert_eq!(log.trimmed(), [], "there is room");
    (41..=60).for_each(|n| node.append(busy, submitted(id(2, n), 10_000)));
    assert_eq!(log.trimmed(), [busy]);
}

/// A client that was told to retry ran its work twice: its first request was in the log.
#[test]
fn a_stop_tells_what_was_not_taken_from_what_may_still_be_carried_out() {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings());
    let waiting = node.ask(node.partitions.submit(submission(id(0, 1), 1), true)).unwrap();
    node.ask(node.partitions.stop());
    assert_eq!(node.ask(waiting.answer()), Err(Stopped::Unknown));
    let refused = node.ask(node.partitions.submit(submission(id(0, 2), 1), true));
    assert_eq!(refused.err(), Some(Stopped::NotTaken));
    assert_eq!(node.ask(node.partitions.invocation(id(0, 1))).err(), Some(Stopped::NotTaken));
    drop(node);
    let node = TestNode::start(&log, &engine, NodeLife(2), settings());
    assert!(exists(&node, id(0, 1)) && !exists(&node, id(0, 2)));
}

/// While nothing could be written, what partitions asked of each other and of themselves went on filling memory.
#[test]
fn messages_and_chores_wait_while_memory_has_no_room() {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings());
    let here = PartitionId(0);
    node.append(here, submitted(id(0, 1), 10));
    node.append(here, submitted(id(0, 2), 10));
    let progress = |first_command, items, end| {
        let pin = Pin { deployment: DeploymentId(1), protocol: 6 };
        Event::AttemptProgressed(Box::new(AttemptProgress { id: id(0, 1), attempt: Attempt(1), first_command, pin, items, end }))
    };
    let kept = || Item::Command { ty: entry_type::RUN, raw: Bytes::new(), action: Action::Keep };
    // A journal that no single record deletes.
    let (batches, batch) = (24, 50);
    for n in 0..batches {
        node.append(here, progress(1 + n * batch, (0..batch).map(|_| kept()).collect(), None));
    }
    node.shared.gate.set_checkpoint(1 << 40, false);
    node.append(here, progress(1 + batches * batch, vec![output()], Some(AttemptEnd::Completed)));
    node.append(here, progressed(id(0, 2), 2, vec![call(submission(id(2, 1), 10))], None));
    let chores = || log.events(here).iter().filter(|event| matches!(event, Event::ChoreDue { .. })).count();
    assert_eq!((messages(&log, PartitionId(2)), chores()), (vec![], 0));
    node.shared.gate.set_checkpoint(0, false);
    node.settle();
    assert_eq!(messages(&log, PartitionId(2)), [here]);
    assert!(chores() > 0, "the rest of the journal goes");
}

/// Registers a deployment for a service, as its newest revision.
fn register(node: &TestNode, deployment: u128, service: &str) {
    let service = Service { revision: deployment as u32, ..Service::new(service, ServiceKind::Service, []) };
    let deployment = Deployment::at(DeploymentId(deployment), format!("http://handlers{deployment}/")).serving([service]);
    node.ask(node.partitions.change_catalog(CatalogEvent::DeploymentRegistered(deployment))).unwrap();
    node.settle();
}

const SILENT: DeploymentId = DeploymentId(1);
const OTHER: DeploymentId = DeploymentId(2);

/// One deployment for `Silent`, another one for `Greeter`, and four places. More calls of the first than are held back in memory.
fn flooded(mutant: InvokerMutant) -> (TestNode, Vec<InvocationId>) {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::with_places(&log, &engine, NodeLife(1), settings(), TestPlaces { max: 4, mutant });
    register(&node, 1, "Silent");
    register(&node, 2, "Greeter");
    let calls: Vec<_> = (1..=700).map(|n| id(0, n)).collect();
    for call in &calls {
        let target = Target::new(TargetKind::Service, "Silent", "", "hear");
        node.append(PartitionId(0), Event::InvocationSubmitted(Box::new(Submission { target, ..submission(*call, 10) })));
    }
    (node, calls)
}

/// One deployment that took connections and never answered stopped all handlers of a node.
#[test]
fn a_deployment_that_does_not_answer_holds_its_share_of_the_places_and_others_start_past_what_waits_for_it() {
    let (node, calls) = flooded(InvokerMutant::None);
    assert_eq!(node.handlers.asked(SILENT), calls[..2], "half of the places");
    node.append(PartitionId(1), submitted(id(1, 1), 10));
    assert_eq!(node.handlers.asked(OTHER), [id(1, 1)]);
    for begun in 3..=calls.len() {
        node.handlers.fail_one(SILENT);
        node.settle();
        let (asked, expected) = (node.handlers.asked(SILENT), &calls[begun - 2..begun]);
        assert_eq!(asked, expected, "the first that was held back goes on, with the {begun}th begun");
    }
}

/// Those that were held back heard of an answer only where none of them had begun since they last asked.
#[test]
fn what_is_held_back_goes_on_with_an_answer_of_an_attempt_that_runs_on() {
    let (node, calls) = flooded(InvokerMutant::None);
    node.handlers.fail_one(SILENT);
    node.settle();
    assert_eq!(node.handlers.asked(SILENT), calls[1..3], "one has begun in place of the one that has ended");
    for answer in 1..=2 {
        let mailbox = node.shared.mailbox(PartitionId(0));
        assert!(mailbox.is_empty(), "nothing else wakes the worker");
        node.handlers.answer_one(SILENT);
        node.poll_tasks();
        assert!(!mailbox.is_empty(), "the worker hears of the answer {answer}");
        node.step();
    }
    assert_eq!(node.handlers.asked(SILENT), calls[3..4], "with the first answer the next one has begun");
}

/// As [`flooded`], where each attempt has the beginning of an answer at once, and works on. Those that do.
fn working(mutant: InvokerMutant) -> (TestNode, Vec<InvocationId>, usize) {
    let (node, calls) = flooded(mutant);
    let mut working = 0;
    while !node.handlers.asked(SILENT).is_empty() {
        assert_eq!(node.handlers.asked(SILENT)[0], calls[working], "in order");
        working += 1;
        node.handlers.answer_one(SILENT);
        node.settle();
    }
    (node, calls, working)
}

/// A step that waited for a service that hung stopped all handlers of a node: its attempt had begun to answer.
#[test]
fn a_deployment_whose_attempts_work_on_and_on_leaves_places_and_others_start_past_what_waits_for_it() {
    let (node, calls, working) = working(InvokerMutant::None);
    assert_eq!(working, 3, "of four places");
    node.append(PartitionId(1), submitted(id(1, 1), 10));
    assert_eq!(node.handlers.asked(OTHER), [id(1, 1)]);
    node.handlers.fail_one(OTHER);
    node.settle();
    for (ended, attempt) in calls[..300].iter().zip(1..) {
        node.append(PartitionId(0), progressed(*ended, attempt, vec![output()], Some(AttemptEnd::Completed)));
        assert_eq!(node.handlers.asked(SILENT), [calls[attempt as usize + 2]], "in place of the one that has ended");
        node.handlers.answer_one(SILENT);
        node.settle();
    }
    assert!(node.handlers.asked(SILENT).is_empty());
}

#[test]
fn a_node_whose_places_attempts_of_one_deployment_take_that_work_on_is_caught() {
    let (node, _, working) = working(InvokerMutant::WorkInAllPlaces);
    node.append(PartitionId(1), submitted(id(1, 1), 10));
    assert_eq!((working, node.handlers.asked(OTHER)), (4, vec![]));
}

#[test]
fn what_is_held_back_goes_on_at_a_new_deployment() {
    let (node, calls) = flooded(InvokerMutant::None);
    register(&node, 3, "Silent");
    assert_eq!(node.handlers.asked(DeploymentId(3)), calls[2..3], "one, for others have the only place left");
    node.handlers.fail_one(DeploymentId(3));
    node.settle();
    assert_eq!(node.handlers.asked(DeploymentId(3)), calls[3..4]);
}

/// A thousand calls of a service that no deployment serves, and one of another service behind them. How many of them have been tried by the time
/// at which that one begins.
fn tried_before_another(mutant: InvokerMutant) -> (TestNode, Arc<TestLog>, usize) {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::with_places(&log, &engine, NodeLife(1), settings(), TestPlaces { max: 32, mutant });
    register(&node, 2, "Greeter");
    let silent = |n| {
        let target = Target::new(TargetKind::Service, "Silent", "", "hear");
        Event::InvocationSubmitted(Box::new(Submission { target, ..submission(id(0, n), 10) }))
    };
    let call = id(0, 1_001);
    let events = (1..=1_000).map(silent).chain([submitted(call, 10)]);
    assert!(node.shared.append(PartitionId(0), events, None));
    node.step_until(|| !node.handlers.asked(OTHER).is_empty());
    assert_eq!(node.handlers.asked(OTHER), [call]);
    // What they report stands in the log's queue until it is durable.
    let tried = failed(&log) + log.queued();
    (node, log, tried)
}

/// Attempts that have failed.
fn failed(log: &TestLog) -> usize {
    let events = log.events(PartitionId(0));
    events.iter().filter(|event| matches!(event, Event::AttemptProgressed(progress) if progress.end.is_some())).count()
}

/// Invocations that no deployment served failed as fast as they were looked at, and a call of another service stood behind all of them.
#[test]
fn what_no_deployment_serves_holds_up_no_call_of_another_and_goes_on_once_one_does() {
    let (node, log, tried) = tried_before_another(InvokerMutant::None);
    assert!(tried <= 32, "it has begun past them: {tried} were tried");
    node.settle();
    assert_eq!(failed(&log), 1_000, "each fails in its turn");
    for _ in 0..3 {
        node.pass_ms(60_000);
    }
    assert!(failed(&log) >= 2_000, "and comes back: {}", failed(&log));
    assert!(node.handlers.asked(SILENT).is_empty());
    register(&node, 1, "Silent");
    node.pass_ms(60_000);
    assert!(!node.handlers.asked(SILENT).is_empty());
}

#[test]
fn a_node_that_begins_at_once_what_no_deployment_serves_is_caught() {
    let (_, _, tried) = tried_before_another(InvokerMutant::BeginUnserved);
    assert!(tried > 900, "the call stands behind them: {tried}");
}

/// Of the sleepers below.
const SLEEPERS: u128 = 1_000;

/// After a standstill, sleepers of one deployment are all overdue, and another one is called. No handler has answered yet.
fn restarted_late(mutant: Mutant) -> TestNode {
    let (log, engine) = (Arc::new(TestLog::default()), MemEngine::new());
    let node = TestNode::start(&log, &engine, NodeLife(1), settings());
    register(&node, 1, "Silent");
    register(&node, 2, "Greeter");
    let due = Timestamp(node.now().0 + 5);
    let later = |n| {
        let target = Target::new(TargetKind::Service, "Silent", "", "hear");
        Event::InvocationSubmitted(Box::new(Submission { execute_at: Some(due), target, ..submission(id(0, n), 1) }))
    };
    assert!(node.shared.append(PartitionId(0), (1..=SLEEPERS).map(later), None));
    node.settle();
    drop(node);
    let places = TestPlaces { max: 4 * SLEEPERS as usize, mutant: InvokerMutant::None };
    let node = TestNode::with_places(&log, &engine, NodeLife(2), Settings { mutant, ..settings() }, places);
    node.pass_ms(10);
    node.append(PartitionId(1), submitted(id(1, 1), 10));
    node
}

/// A call waited behind all that 200,000 sleepers had to do.
#[test]
fn overdue_sleepers_wake_as_fast_as_they_are_answered_and_calls_go_on_between_them() {
    let node = restarted_late(Mutant::None);
    let sleepers: Vec<_> = (1..=SLEEPERS).map(|n| id(0, n)).collect();
    assert_eq!(node.handlers.asked(OTHER), [id(1, 1)]);
    let window = node.handlers.asked(SILENT).len();
    assert!((1..=16).contains(&window), "a partition's share of 64: {window}");
    for begun in window + 1..=window + 100 {
        node.handlers.fail_one(SILENT);
        node.settle();
        assert_eq!(node.handlers.asked(SILENT), sleepers[begun - window..begun], "one has ended, and the next one wakes");
    }
    node.pass_ms(99);
    assert_eq!(node.handlers.asked(SILENT).len(), window);
    node.pass_ms(1);
    assert_eq!(node.handlers.asked(SILENT).len(), 2 * window, "those that have no answer count for a while");
    // Those that nobody answers are held back no more after a second; and then as many begin as have been silent for 100 ms, doubled.
    for _ in 0..12 {
        node.pass_ms(100);
    }
    assert!(
        sleepers.iter().skip(100).all(|id| node.handlers.asked(SILENT).contains(id)),
        "one that never answers holds up nobody"
    );
}

#[test]
fn sleepers_that_wake_all_at_once_are_caught() {
    let node = restarted_late(Mutant::FloodResumed);
    assert!(node.handlers.asked(SILENT).len() > 16, "more than a partition's share");
}

/// The check of rule O5 that simulation cannot make while all handlers of a world share a deployment.
#[test]
fn a_node_whose_places_one_deployment_takes_is_caught() {
    let (node, calls) = flooded(InvokerMutant::TakeAllPlaces);
    node.append(PartitionId(1), submitted(id(1, 1), 10));
    assert_eq!((node.handlers.asked(SILENT), node.handlers.asked(OTHER)), (calls[..4].to_vec(), vec![]));
}
