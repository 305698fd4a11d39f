//! Scripts: what goes into one partition's machine, and the effects that come out, through one `check`.
//!
//! A script is a list of lines. Invocations go by the name that their submission gives them; effects are printed in order.

#![allow(clippy::unwrap_used, reason = "a script that fails to read says where")]

use expect_test::{Expect, expect};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use surefoot_machine::catalog::load as load_catalog;
use surefoot_machine::testing::MemState;
use surefoot_machine::{
    Bounds, CatalogRows, ChoreOutcomes, ChorePages, Chores, Effect, Inbox, Invocations, Journal, JournalKey, Listings, Mutant,
    Objects, Open, Outbox, Parked, Rows, Running, RunningKey, State, StateError, StateNames, StateValues, States, Streams, Table,
    Timers, Waiters, apply_broken,
};
use surefoot_model::catalog::{CatalogEvent, Subscription};
use surefoot_model::{
    Action, Attempt, AttemptClass, AttemptEnd, AttemptError, AttemptProgress, Caller, DeploymentId, Entry, Epoch, Event,
    Incarnation, InvocationId, Item, Life, Message, NotificationId, Operation, Origin, Outcome, ParkedRecord, PartitionId, Pin,
    Record, Request, RequestId, Resolution, Retention, SourceRecord, Stage, StreamId, Submission, SubscriptionId, Target,
    TargetKind, TimerOwner, Timestamp, Verdict, encoding, entry_type,
};

const HERE: PartitionId = PartitionId(0);

/// Counts what a record writes, and what it is given to read.
#[derive(Default)]
struct Counted {
    rows: MemState,
    written: usize,
    written_bytes: usize,
    read: Cell<usize>,
    read_bytes: Cell<usize>,
}

impl Counted {
    fn is_empty<T: Table>(&self) -> bool {
        self.rows.is_empty::<T>()
    }

    fn len<T: Table>(&self) -> usize {
        self.rows.len::<T>()
    }

    fn count_read<'a, T: Table>(&self, values: impl IntoIterator<Item = &'a T::Value>) {
        let bytes: usize = values.into_iter().map(encoded_bytes).sum();
        self.read_bytes.set(self.read_bytes.get() + bytes);
    }
}

impl State for Counted {
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        self.read.set(self.read.get() + 1);
        let value = self.rows.get::<T>(key)?;
        self.count_read::<T>(value.as_ref());
        Ok(value)
    }

    fn put<T: Table>(&mut self, key: T::Key, value: T::Value) {
        self.written += 1;
        self.written_bytes += encoded_bytes(&value);
        self.rows.put::<T>(key, value);
    }

    fn insert<T: Table>(&mut self, key: T::Key, value: T::Value) {
        self.written += 1;
        self.written_bytes += encoded_bytes(&value);
        self.rows.insert::<T>(key, value);
    }

    fn delete<T: Table>(&mut self, key: &T::Key) {
        self.written += 1;
        self.rows.delete::<T>(key);
    }

    fn scan<T: Table>(&self, from: &T::Key, to: Option<&T::Key>, limit: usize) -> Result<Rows<T>, StateError> {
        let rows = self.rows.scan::<T>(from, to, limit)?;
        self.read.set(self.read.get() + rows.len());
        self.count_read::<T>(rows.iter().map(|(_, value)| value));
        Ok(rows)
    }
}

/// Bytes of a value as it is stored, without the copy.
fn encoded_bytes(value: &impl minicbor::Encode<()>) -> usize {
    struct Length(usize);
    impl minicbor::encode::Write for &mut Length {
        type Error = std::convert::Infallible;
        fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
            self.0 += bytes.len();
            Ok(())
        }
    }
    let mut length = Length(0);
    minicbor::encode(value, &mut length).unwrap();
    length.0
}

/// One partition and the names of a script.
#[derive(Default)]
struct World {
    mutant: Mutant,
    state: Counted,
    epoch: Epoch,
    now: u64,
    names: BTreeMap<String, InvocationId>,
    attempts: BTreeMap<InvocationId, Attempt>,
    out: Vec<String>,
    request: u64,
    /// The most that one record has written and read.
    most: usize,
    /// The most bytes that one record has written.
    most_bytes: usize,
    chores: VecDeque<u64>,
}

impl World {
    /// Rows written and read so far.
    fn touched(&self) -> usize {
        self.state.written + self.state.read.get()
    }

    fn id(&mut self, name: &str) -> InvocationId {
        let next = self.names.len() as u128 + 1;
        *self.names.entry(name.to_owned()).or_insert(InvocationId { partition_key: 7, unique: next })
    }

    fn name(&self, id: InvocationId) -> String {
        self.names.iter().find(|(_, i)| **i == id).map_or_else(|| id.to_string(), |(n, _)| n.clone())
    }

    fn event(&mut self, event: Event) {
        let mut effects = Vec::new();
        let record = Record::new(Timestamp(self.now), event);
        let (before, bytes_before) = (self.touched(), self.state.written_bytes);
        apply_broken(self.mutant, &mut self.state, HERE, self.epoch, &record, &mut effects).unwrap();
        self.most = self.most.max(self.touched() - before);
        self.most_bytes = self.most_bytes.max(self.state.written_bytes - bytes_before);
        for effect in effects {
            self.note(effect);
        }
    }

    fn note(&mut self, effect: Effect) {
        let line = match effect {
            Effect::StartAttempt { id, attempt, .. } if self.attempts.get(&id) == Some(&attempt) => {
                format!("{}: goes with what is needed", self.name(id))
            }
            Effect::StartAttempt { id, attempt, .. } => {
                self.attempts.insert(id, attempt);
                let invocation = self.state.get::<Invocations>(&id).unwrap().unwrap();
                format!("{}: start, {} known", self.name(id), invocation.active().unwrap().journal_len)
            }
            Effect::AbortAttempt { id, .. } => format!("{}: abort", self.name(id)),
            Effect::DeliverNotification { id, index, notification, .. } => {
                format!("{}: deliver #{index} {:#06x} {}", self.name(id), notification.ty, show(&notification.result))
            }
            Effect::Accept { id, existing: false, .. } => format!("{}: accept", self.name(id)),
            Effect::Accept { id, existing: true, .. } => format!("{}: accept again", self.name(id)),
            Effect::ReplyRetained { id, outcome, .. } => format!("{}: reply retained {}", self.name(id), show(&outcome.into())),
            Effect::RefuseRepeatedRun { id, .. } => format!("{}: refuse second run", self.name(id)),
            Effect::Complete { id, outcome } => format!("{}: complete {}", self.name(id), show(&outcome.into())),
            Effect::ReplyOperation { answer, .. } => format!("operator: {answer:?}"),
            Effect::SetExpiry(_) => return,
            Effect::SetTimer(key) => {
                let TimerOwner::Invocation { life, slot } = key.owner;
                format!("{}: timer at {} for {slot}", self.name(life.id), key.due.0)
            }
            Effect::SetChore(number) => {
                self.chores.push_back(number);
                format!("chore {number}")
            }
            Effect::Send { to, sequence } => format!("send #{sequence} to {to}"),
            Effect::CountParked { parked, .. } => format!("{parked} parked"),
            Effect::PublishCatalog(_) => "catalog".to_owned(),
        };
        self.out.push(line);
    }

    fn submission(&mut self, name: &str, target: &str) -> Submission {
        let parts: Vec<&str> = target.split('/').collect();
        let target = match parts.as_slice() {
            [service, handler] => Target::new(TargetKind::Service, *service, "", *handler),
            ["Wf", key, "run"] => Target::new(TargetKind::WorkflowRun, "Wf", *key, "run"),
            [service, key, "get"] => Target::new(TargetKind::ObjectShared, *service, *key, "get"),
            [service, key, handler] => Target::new(TargetKind::ObjectExclusive, *service, *key, *handler),
            _ => panic!("no target: {target}"),
        };
        Submission {
            id: self.id(name),
            target,
            input: name.as_bytes().to_vec().into(),
            idempotency_key: None,
            origin: Origin::Ingress,
            execute_at: None,
            retention: Retention::default(),
            random_seed: 1,
            request: None,
            caller: None,
            source: None,
        }
    }

    fn submit(&mut self, mut submission: Submission, awaits_result: bool) {
        self.request += 1;
        submission.request = Some(Request { id: RequestId { process: 1, number: self.request }, awaits_result });
        self.event(Event::InvocationSubmitted(Box::new(submission)));
    }

    fn progress(&mut self, name: &str, items: Vec<Item>, end: Option<AttemptEnd>) {
        let id = self.id(name);
        let first_command = self.state.get::<Invocations>(&id).unwrap().and_then(|i| i.active().map(|a| a.commands)).unwrap_or(1);
        let attempt = self.attempts.get(&id).copied().unwrap_or_default();
        let pin = Pin { deployment: DeploymentId(9), protocol: 6 };
        self.event(Event::AttemptProgressed(Box::new(AttemptProgress { id, attempt, first_command, pin, items, end })));
    }

    fn incarnation(&mut self, name: &str) -> Incarnation {
        let id = self.id(name);
        self.state.get::<Invocations>(&id).unwrap().map_or(Incarnation(0), |i| i.incarnation)
    }

    fn fire(&mut self, name: &str, slot: &str, due: &str, incarnation: Incarnation) {
        let life = Life { id: self.id(name), incarnation };
        let owner = TimerOwner::Invocation { life, slot: slot.parse().unwrap() };
        self.event(Event::TimerFired { due: Timestamp(due.parse().unwrap()), owner });
    }

    fn operate(&mut self, name: &str, operation: Operation) {
        let id = self.id(name);
        self.event(Event::OperatorRequested { id, operation, request: RequestId { process: 1, number: 0 } });
    }

    /// One line of a script.
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["call", target, "as", name] => {
                let submission = self.submission(name, target);
                self.submit(submission, true);
            }
            ["send", target, "as", name] => {
                let submission = self.submission(name, target);
                self.submit(submission, false);
            }
            ["retained", "call", target, "as", name] => {
                let mut submission = self.submission(name, target);
                submission.idempotency_key = Some("key".into());
                submission.retention = Retention { completion_ms: 1000, journal_ms: 500 };
                self.submit(submission, true);
            }
            ["send", target, "as", name, "at", due] => {
                let mut submission = self.submission(name, target);
                submission.execute_at = Some(Timestamp(due.parse().unwrap()));
                self.submit(submission, false);
            }
            ["await", target, "as", name] => {
                let mut submission = self.submission(name, target);
                let id = InvocationId { partition_key: u64::MAX, unique: submission.id.unique };
                submission.caller = Some(Caller { partition: PartitionId(3), id, incarnation: Incarnation(1), completion: 2 });
                self.event(Event::InvocationSubmitted(Box::new(submission)));
            }
            ["kafka", offset, target, "as", name] => {
                let mut submission = self.submission(name, target);
                submission.source = Some(SourceRecord { stream: stream(1), offset: offset.parse().unwrap() });
                self.event(Event::InvocationSubmitted(Box::new(submission)));
            }
            ["open", epoch] => self.event(Event::SourceOpened { subscription: SubscriptionId(1), epoch: epoch.parse().unwrap() }),
            ["close"] => self.event(Event::SourceClosed { subscription: SubscriptionId(1) }),
            ["end", name, value] => self.progress(name, vec![output(value)], Some(AttemptEnd::Completed)),
            ["run", name, completion] => {
                let completion = completion.parse().unwrap();
                self.progress(name, vec![command(entry_type::RUN, Action::Run { completion })], None);
            }
            ["propose", name, completion, value] => {
                let outcome = Outcome::Success(value.as_bytes().to_vec().into());
                self.progress(name, vec![Item::RunProposed { completion: completion.parse().unwrap(), outcome }], None);
            }
            ["sleep", name, completion, until] => {
                let action = Action::Sleep { until: Timestamp(until.parse().unwrap()), completion: completion.parse().unwrap() };
                self.progress(name, vec![command(entry_type::SLEEP, action)], None);
            }
            ["set", name, key, value] => {
                let action = Action::SetState { key: (*key).into(), value: (0, value.len() as u32) };
                let item = Item::Command { ty: entry_type::SET_STATE, raw: value.as_bytes().to_vec().into(), action };
                self.progress(name, vec![item], None);
            }
            ["clear-all", name] => self.progress(name, vec![command(entry_type::CLEAR_ALL_STATE, Action::ClearAllState)], None),
            ["get", name, key, completion] => {
                let action = Action::GetState { key: (*key).into(), completion: completion.parse().unwrap() };
                self.progress(name, vec![command(entry_type::GET_LAZY_STATE, action)], None);
            }
            ["keys", name, completion] => {
                let action = Action::GetStateKeys { completion: completion.parse().unwrap() };
                self.progress(name, vec![command(entry_type::GET_LAZY_STATE_KEYS, action)], None);
            }
            ["suspend", name, "on", completion, "seen", seen] => {
                let awaiting = vec![NotificationId::Completion(completion.parse().unwrap())];
                self.progress(name, vec![], Some(AttemptEnd::Suspended { awaiting, last_delivered: seen.parse().unwrap() }));
            }
            ["fail", name, "until", at] => {
                let verdict = Verdict::Retry { at: Timestamp(at.parse().unwrap()), counted: true };
                self.progress(name, vec![], Some(failed(verdict)));
            }
            ["fail", name, "for-good"] => self.progress(name, vec![], Some(failed(Verdict::Fail))),
            ["fail", name, "pause"] => self.progress(name, vec![], Some(failed(Verdict::Pause))),
            ["fire", name, slot, due] => {
                let incarnation = self.incarnation(name);
                self.fire(name, slot, due, incarnation);
            }
            ["fire", name, slot, due, "of", life] => self.fire(name, slot, due, Incarnation(life.parse().unwrap())),
            ["chores"] => {
                while let Some(chore) = self.chores.pop_front() {
                    self.event(Event::ChoreDue { chore });
                }
            }
            ["now", at] => self.now = at.parse().unwrap(),
            ["kill", name] => self.operate(name, Operation::Kill),
            ["pause", name] => self.operate(name, Operation::Pause),
            ["resume", name] => self.operate(name, Operation::Resume),
            ["purge", name] => self.operate(name, Operation::Purge),
            ["expire", name] => {
                let (id, incarnation) = (self.id(name), self.incarnation(name));
                self.event(Event::RetentionExpired { id, incarnation, journal_only: false });
            }
            ["elect"] => {
                self.epoch.0 += 1;
                self.event(Event::LeaderElected { process: u64::from(self.epoch.0) });
                // As whoever leads does: from state, and from nothing else.
                let first = RunningKey { class: AttemptClass::Needed, turn: 0 };
                self.attempts.clear();
                for (key, id) in self.state.scan::<Running>(&first, None, usize::MAX).unwrap() {
                    let attempt = self.state.get::<Invocations>(&id).unwrap().unwrap().active().unwrap().attempt;
                    self.note(Effect::StartAttempt { id, attempt, key });
                }
                self.chores.clear();
                for (number, _) in self.state.scan::<Chores>(&0, None, usize::MAX).unwrap() {
                    self.note(Effect::SetChore(number));
                }
            }
            _ => panic!("no such line: {line}"),
        }
    }

    fn status(&self, name: &str) -> String {
        let id = self.names[name];
        let invocation = self.state.get::<Invocations>(&id).unwrap();
        invocation.map_or("gone".to_owned(), |i| i.status().as_str().to_owned())
    }
}

fn stream(epoch: u32) -> StreamId {
    StreamId { subscription: SubscriptionId(1), epoch, topic: 5, partition: 0 }
}

fn command(ty: u16, action: Action) -> Item {
    Item::Command { ty, raw: Default::default(), action }
}

fn output(value: &str) -> Item {
    let action = Action::Succeed { value: (0, value.len() as u32) };
    Item::Command { ty: entry_type::OUTPUT, raw: value.as_bytes().to_vec().into(), action }
}

fn failed(verdict: Verdict) -> AttemptEnd {
    let error = AttemptError { code: 500, message: "boom".into(), at: Timestamp(0), stacktrace: None, command: None };
    AttemptEnd::Failed { error, verdict, by_handler: true }
}

fn show(result: &Resolution) -> String {
    match result {
        Resolution::Void => "void".to_owned(),
        Resolution::Value(value) => format!("'{}'", String::from_utf8_lossy(value)),
        Resolution::Failure(failure) => format!("{} {}", failure.code, failure.message),
        Resolution::InvocationId(_) => "an id".to_owned(),
        Resolution::StateKeys(keys) => format!("{keys:?}"),
    }
}

fn play(script: &str) -> World {
    play_broken(Mutant::None, script)
}

fn play_broken(mutant: Mutant, script: &str) -> World {
    let mut world = World { mutant, ..World::default() };
    for line in script.split(';').map(str::trim).filter(|l| !l.is_empty()) {
        world.line(line);
    }
    world
}

fn check(script: &str, expected: Expect) -> World {
    let world = play(script);
    expected.assert_eq(&world.out.join(" · "));
    world
}

#[test]
fn a_call_starts_and_its_result_is_told() {
    let world = check("call Svc/echo as A; end A ok", expect!["A: accept · A: start, 1 known · A: complete 'ok'"]);
    assert!(world.state.is_empty::<Journal>() && world.state.is_empty::<Invocations>(), "without retention nothing stays");
}

#[test]
fn second_call_on_a_key_waits() {
    let world = check(
        "call Counter/alice/add as A; call Counter/alice/add as B; call Counter/bob/add as C; end A ok; end B ok; end C ok",
        expect![
            "A: accept · A: start, 1 known · B: accept · C: accept · C: start, 1 known · B: start, 1 known · A: complete 'ok' · B: complete 'ok' · C: complete 'ok'"
        ],
    );
    assert!(world.state.is_empty::<Objects>() && world.state.is_empty::<Inbox>() && world.state.is_empty::<Running>());
}

#[test]
fn shared_handlers_do_not_wait_for_the_key() {
    check(
        "call Counter/alice/add as A; call Counter/alice/get as B; end B ok",
        expect!["A: accept · A: start, 1 known · B: accept · B: start, 1 known · B: complete 'ok'"],
    );
}

#[test]
fn a_run_result_is_delivered_once_and_a_second_proposal_changes_nothing() {
    check(
        "call Svc/go as A; run A 1; propose A 1 R; propose A 1 other; propose A 9 none; end A done",
        expect!["A: accept · A: start, 1 known · A: deliver #2 0x8011 'R' · A: complete 'done'"],
    );
}

/// Nothing lies over what is open, and the partition goes on: the edge lets no such thing through, and this is the last that holds.
#[test]
fn a_second_command_with_an_open_completion_id_pauses_its_invocation() {
    for again in ["run A 1", "get A key 1", "keys A 1"] {
        let world = check(
            &format!(
                "call Obj/k/add as A; run A 9; sleep A 1 10; {again}; propose A 9 late; now 10; fire A 1 10; call Svc/go as B; resume A"
            ),
            expect![[
                r#"A: accept · A: start, 1 known · A: timer at 10 for 1 · A: abort · B: accept · B: start, 1 known · A: start, 4 known · operator: Done"#
            ]],
        );
        let active = world.state.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
        let active = active.active().unwrap();
        assert_eq!((active.open, world.state.len::<Open>()), (1, 1), "of the step, whose proposal came too late");
        assert_eq!(active.last_error.as_ref().unwrap().message, "completion id 1 is used by two commands (RT0012)");
    }
}

/// Ids that come in order are new.
#[test]
fn a_command_whose_id_is_larger_than_all_before_is_opened_without_a_look() {
    let reads = |script| play(script).state.read.get();
    assert_eq!(reads("call Svc/go as A; run A 1; run A 2") + 1, reads("call Svc/go as A; run A 2; run A 1"));
}

#[test]
fn a_sleep_suspends_and_its_timer_resumes_with_the_whole_journal() {
    let world = check(
        "call Svc/go as A; sleep A 1 5000; suspend A on 1 seen 0; now 5000; fire A 1 5000; end A done",
        expect!["A: accept · A: start, 1 known · A: timer at 5000 for 1 · A: start, 3 known · A: complete 'done'"],
    );
    assert!(world.state.is_empty::<Timers>());
}

#[test]
fn a_timer_that_fires_before_the_suspension_arrives_resumes_at_once() {
    check(
        "call Svc/go as A; sleep A 1 10; fire A 1 10; suspend A on 1 seen 0",
        expect!["A: accept · A: start, 1 known · A: timer at 10 for 1 · A: deliver #2 0x800c void · A: start, 3 known"],
    );
}

#[test]
fn what_an_attempt_has_seen_does_not_resume_it_again() {
    let world = check(
        "call Svc/go as A; sleep A 1 10; fire A 1 10; suspend A on 1 seen 2",
        expect!["A: accept · A: start, 1 known · A: timer at 10 for 1 · A: deliver #2 0x800c void"],
    );
    assert_eq!(world.status("A"), "suspended");
}

#[test]
fn a_timer_without_its_row_is_dropped() {
    check("call Svc/go as A; fire A 1 5; fire A 0 5", expect!["A: accept · A: start, 1 known"]);
}

#[test]
fn messages_of_an_earlier_attempt_are_dropped() {
    let mut world = play("call Svc/go as A");
    let id = world.id("A");
    let old = world.attempts[&id];
    world.line("fail A until 50");
    world.line("fire A 0 50");
    let pin = Pin { deployment: DeploymentId(9), protocol: 6 };
    let late = AttemptProgress {
        id,
        attempt: old,
        first_command: 1,
        pin,
        items: vec![output("late")],
        end: Some(AttemptEnd::Completed),
    };
    world.event(Event::AttemptProgressed(Box::new(late)));
    world.line("end A good");
    expect!["A: accept · A: start, 1 known · A: timer at 50 for 0 · A: start, 1 known · A: complete 'good'"]
        .assert_eq(&world.out.join(" · "));
}

#[test]
fn retries_wait_and_the_last_error_shows() {
    let world = check("call Svc/go as A; fail A until 500", expect!["A: accept · A: start, 1 known · A: timer at 500 for 0"]);
    assert_eq!(world.status("A"), "backing-off");
    let invocation = world.state.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
    let active = invocation.active().unwrap();
    assert_eq!((active.attempts_counted, active.retries_since_entry), (1, 1));
    assert_eq!(active.last_error.as_ref().map(|e| e.message.as_str()), Some("boom"));
}

#[test]
fn exhausted_retries_fail_the_call_where_the_policy_says_so() {
    check("call Svc/go as A; fail A for-good", expect!["A: accept · A: start, 1 known · A: complete 500 boom"]);
}

#[test]
fn a_paused_invocation_keeps_its_key_until_it_is_resumed() {
    let world = check(
        "call Obj/k/add as A; call Obj/k/add as B; fail A pause; resume A; end A ok",
        expect![
            "A: accept · A: start, 1 known · B: accept · A: start, 1 known · operator: Done · B: start, 1 known · A: complete 'ok'"
        ],
    );
    assert_eq!(world.status("B"), "running");
}

#[test]
fn a_delayed_send_starts_when_its_time_has_come() {
    check(
        "send Svc/go as A at 700; fire A 0 700; end A ok",
        expect!["A: accept · A: timer at 700 for 0 · A: start, 1 known · A: complete 'ok'"],
    );
}

#[test]
fn killing_a_queued_call_leaves_no_trace_and_the_queue_goes_on() {
    let world = check(
        "call Obj/k/add as A; call Obj/k/add as B; call Obj/k/add as C; kill B; end A ok; kill C; kill C",
        expect![
            "A: accept · A: start, 1 known · B: accept · C: accept · B: complete 409 killed · operator: Done · C: start, 1 known · A: complete 'ok' · C: abort · C: complete 409 killed · operator: Done · operator: NotFound"
        ],
    );
    assert!(world.state.is_empty::<Objects>() && world.state.is_empty::<Inbox>() && world.state.is_empty::<Journal>());
}

#[test]
fn pausing_aborts_the_attempt_and_a_late_end_changes_nothing() {
    let world = check(
        "call Svc/go as A; pause A; end A late; pause A",
        expect!["A: accept · A: start, 1 known · A: abort · operator: Accepted · operator: Done"],
    );
    assert_eq!(world.status("A"), "paused");
}

#[test]
fn the_same_idempotency_key_gets_the_first_result_until_retention_ends() {
    let world = check(
        "retained call Svc/go as A; retained call Svc/go as A; end A one; retained call Svc/go as A; expire A; retained call Svc/go as A",
        expect![
            "A: accept · A: start, 1 known · A: accept again · A: complete 'one' · A: reply retained 'one' · A: accept · A: start, 1 known"
        ],
    );
    let invocation = world.state.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
    assert_eq!(invocation.incarnation, Incarnation(2));
}

#[test]
fn a_timer_of_an_earlier_life_of_the_same_id_is_dropped() {
    // The first life sleeps until 90 and is killed; its timer, had the wheel taken it already, must not touch the second life.
    let world = check(
        "retained call Svc/go as A; sleep A 1 90; kill A; purge A; retained call Svc/go as A; sleep A 1 95; fire A 1 90 of 1",
        expect![
            "A: accept · A: start, 1 known · A: timer at 90 for 1 · A: abort · A: complete 409 killed · operator: Done · operator: Done · A: accept · A: start, 1 known · A: timer at 95 for 1"
        ],
    );
    assert_eq!(world.state.len::<Timers>(), 1);
}

#[test]
fn a_workflow_runs_once_per_key() {
    check(
        "call Wf/w/run as A; call Wf/w/run as A; send Wf/w/run as A",
        expect!["A: accept · A: start, 1 known · A: refuse second run · A: accept again"],
    );
}

#[test]
fn state_is_read_back_and_goes_with_clear_all() {
    check(
        "call Obj/k/add as A; set A n 1; set A m 2; set A n 3; get A n 1; get A x 2; keys A 3; clear-all A; keys A 4; end A ok",
        expect![[
            r#"A: accept · A: start, 1 known · A: deliver #5 0x8002 '3' · A: deliver #7 0x8002 void · A: deliver #9 0x8006 ["m", "n"] · A: deliver #12 0x8006 [] · A: complete 'ok'"#
        ]],
    );
}

#[test]
fn a_new_leader_starts_running_attempts_anew_and_ignores_records_of_the_old_term() {
    let mut world = play("elect; call Svc/go as A; run A 1; elect");
    world.epoch.0 -= 1;
    world.line("end A late");
    world.epoch.0 += 1;
    world.line("end A ok");
    expect!["A: accept · A: start, 1 known · A: start, 2 known · A: complete 'ok'"].assert_eq(&world.out.join(" · "));
}

/// What partition 3 sends, a client asks and Kafka brings, all written before it was known that the term had ended.
fn from_outside_in_an_old_term(mutant: Mutant) -> World {
    let mut world = play_broken(mutant, "elect; open 1; elect");
    world.epoch.0 -= 1;
    let submission = world.submission("message", "Svc/go");
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message: Message::Submit(Box::new(submission)) });
    world.line("call Svc/go as client");
    world.line("kafka 7 Svc/go as record");
    world.line("kill client");
    world.epoch.0 += 1;
    world
}

/// A partition had stopped at the start of a node; what others sent it meanwhile was acknowledged and dropped after its repair.
#[test]
fn what_comes_from_outside_is_taken_whatever_term_it_was_written_in() {
    let world = from_outside_in_an_old_term(Mutant::None);
    expect![
        "message: start, 1 known · client: accept · client: start, 1 known · record: start, 1 known · client: abort · client: complete 409 killed · operator: Done"
    ]
    .assert_eq(&world.out.join(" · "));
    let broken = from_outside_in_an_old_term(Mutant::FenceAll);
    assert_ne!(broken.out, world.out, "the variant that fences all is caught");
}

#[test]
fn a_kafka_record_is_taken_once_and_only_in_its_epoch() {
    let world = check(
        "kafka 0 Obj/k/add as early; open 1; kafka 7 Obj/k/add as A; kafka 7 Obj/k/add as A; kafka 6 Obj/k/add as old; end A ok; open 2; kafka 8 Obj/k/add as stale; close; kafka 9 Obj/k/add as late",
        expect!["A: start, 1 known · A: complete 'ok' · 0 parked"],
    );
    assert!(world.state.is_empty::<surefoot_machine::Streams>());
}

/// Rule K7: what the session before has still appended comes after the new epoch was opened.
#[test]
fn a_kafka_record_of_an_old_epoch_is_dropped() {
    let outcome = |mutant| play_broken(mutant, "open 1; open 2; kafka 7 Svc/go as stale").out;
    assert!(outcome(Mutant::None).is_empty());
    assert!(!outcome(Mutant::TakeOldEpochs).is_empty(), "the variant that takes it is caught");
}

/// Rule M9: what is parked may be large, and goes unread.
#[test]
fn what_was_parked_goes_with_its_subscription_and_is_not_read_again() {
    let mut world = play("open 1");
    let (count, bytes) = (3_000, 1_000);
    for offset in 0..count {
        world.event(Event::RecordParked(Box::new(ParkedRecord {
            source: SourceRecord { stream: stream(1), offset },
            topic: "topic".into(),
            timestamp: None,
            key: Default::default(),
            has_key: false,
            value: vec![b'v'; bytes].into(),
            bytes: bytes as u64,
            value_hash: [0; 32],
            headers: Vec::new(),
            reason: "too large".into(),
        })));
    }
    (world.most, world.most_bytes) = (0, 0);
    world.state.read_bytes.set(0);
    world.line("close");
    assert!(!world.state.is_empty::<Parked>(), "more than one record may do");
    world.line("elect");
    world.line("chores");
    assert!(world.state.is_empty::<Parked>() && world.state.is_empty::<Streams>() && world.state.is_empty::<Chores>());
    assert!(world.most <= Bounds::PRESENT.rows as usize * (1 + READS_PER_WRITE), "{} rows in one record", world.most);
    assert!(world.state.read_bytes.get() < 2 * bytes, "{} bytes read", world.state.read_bytes.get());
}

/// Rule M9: what a suspension looks at is bounded in bytes. What it has not looked at, the next attempt is shown.
#[test]
fn a_suspension_behind_large_results_reads_a_few_of_them_and_resumes() {
    let mut world = play("call Svc/go as A; run A 1; run A 2; run A 3; run A 4; run A 5");
    let result = "r".repeat(3 << 20);
    for completion in 1..=4 {
        world.line(&format!("propose A {completion} {result}"));
    }
    world.state.read_bytes.set(0);
    world.line("suspend A on 5 seen 0");
    assert!(world.state.read_bytes.get() < 3 * result.len(), "{} bytes read", world.state.read_bytes.get());
    assert_eq!(world.out.last().unwrap(), "A: start, 10 known");
    world.line("suspend A on 5 seen 9");
    assert_eq!(world.status("A"), "suspended", "it has seen them, and waits for what it has not");
}

#[test]
fn a_new_term_counts_attempts_anew_and_tells_the_restarted_one() {
    let counts = |world: &World| {
        let invocation = world.state.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
        let active = invocation.active().unwrap().clone();
        (active.attempts_counted(world.epoch), active.attempts_started)
    };
    let mut world = play("elect; call Svc/go as A; fail A until 10; fire A 0 10; fail A until 20; fire A 0 20");
    assert_eq!(counts(&world), (2, 3));
    world.line("elect");
    assert_eq!(counts(&world).0, 0);
    world.line("fail A until 30");
    assert_eq!(counts(&world), (1, 4));
    world.line("resume A");
    assert_eq!(counts(&world), (0, 5), "an operator's resume counts anew, too");
}

#[test]
fn a_clock_that_jumped_ahead_and_back_prolongs_no_retention() {
    let world = play("now 1000000; call Svc/go as ahead; now 10; retained call Svc/go as A; end A ok");
    let invocation = world.state.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
    assert!(matches!(invocation.stage, Stage::Completed { expires_at: Timestamp(1_010), .. }), "{:?}", invocation.stage);
}

fn call(world: &mut World, name: &str, completion: u32, callee: InvocationId) {
    let mut submission = world.submission("callee", "Other/go");
    submission.id = callee;
    let action = Action::Call {
        submission: Box::new(submission),
        partition: PartitionId(3),
        id_completion: completion,
        result: Some(completion + 1),
        parameter: (0, 0),
    };
    world.progress(name, vec![command(entry_type::CALL, action)], None);
}

#[test]
fn a_call_goes_through_the_outbox_and_its_result_comes_once() {
    let mut world = play("call Svc/go as A");
    let callee = InvocationId { partition_key: u64::MAX, unique: 77 };
    call(&mut world, "A", 1, callee);
    let caller = match world.state.get::<Outbox>(&surefoot_machine::OutboxKey { to: PartitionId(3), sequence: 1 }).unwrap() {
        Some(Message::Submit(submission)) => submission.caller.unwrap(),
        other => panic!("a submission waits in the outbox: {other:?}"),
    };
    assert_eq!(caller, Caller { partition: HERE, id: world.names["A"], incarnation: Incarnation(1), completion: 2 });
    world.event(Event::OutboxAcked { to: PartitionId(3), up_to: 1 });
    assert!(world.state.is_empty::<Outbox>());
    let result = surefoot_model::CalleeResult { caller, outcome: Outcome::Success("r".into()) };
    for _ in 0..2 {
        let message = Message::Result(Box::new(result.clone()));
        world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message });
    }
    expect!["A: accept · A: start, 1 known · send #1 to 3 · A: deliver #2 0x800e an id · A: deliver #3 0x800d 'r'"]
        .assert_eq(&world.out.join(" · "));
}

#[test]
fn killing_a_caller_kills_what_it_called() {
    let mut world = play("call Svc/go as A");
    call(&mut world, "A", 1, InvocationId { partition_key: u64::MAX, unique: 77 });
    world.line("kill A");
    let kill = world.state.get::<Outbox>(&surefoot_machine::OutboxKey { to: PartitionId(3), sequence: 2 }).unwrap();
    assert!(matches!(kill, Some(Message::Kill { .. })), "{kill:?}");
}

#[test]
fn a_kill_for_an_earlier_life_of_the_callee_is_dropped() {
    let mut world = World::default();
    let caller = |incarnation| Caller {
        partition: PartitionId(3),
        id: InvocationId { partition_key: u64::MAX, unique: 5 },
        incarnation: Incarnation(incarnation),
        completion: 2,
    };
    let mut submission = world.submission("A", "Svc/go");
    submission.caller = Some(caller(2));
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message: Message::Submit(Box::new(submission)) });
    let id = world.names["A"];
    let kill = |sequence, incarnation| {
        let message = Message::Kill { id, caller: caller(incarnation) };
        Event::MessageArrived { from: PartitionId(3), sequence, message }
    };
    world.event(kill(2, 1));
    assert_eq!(world.status("A"), "running");
    world.event(kill(3, 2));
    expect!["A: start, 1 known · A: abort · send #1 to 3 · A: complete 409 killed"].assert_eq(&world.out.join(" · "));
}

#[test]
fn a_result_for_an_earlier_life_of_the_caller_is_dropped() {
    let mut world = play("retained call Svc/go as A");
    call(&mut world, "A", 1, InvocationId { partition_key: u64::MAX, unique: 77 });
    let caller = Caller { partition: HERE, id: world.names["A"], incarnation: Incarnation(1), completion: 2 };
    world.line("kill A");
    world.line("purge A");
    world.line("retained call Svc/go as A");
    call(&mut world, "A", 1, InvocationId { partition_key: u64::MAX, unique: 78 });
    let before = world.out.len();
    let message = Message::Result(Box::new(surefoot_model::CalleeResult { caller, outcome: Outcome::Success("old".into()) }));
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message });
    assert_eq!(world.out.len(), before, "{:?}", &world.out[before..]);
}

#[test]
fn retained_bytes_are_counted_up_and_down() {
    let mut world = play("send Svc/go as A");
    world.line("kill A");
    let mut submission = world.submission("B", "Svc/go");
    submission.retention = Retention { completion_ms: 1000, journal_ms: 1000 };
    world.submit(submission, false);
    world.line("end B result");
    let bytes = |world: &World| world.state.get::<surefoot_machine::Meta>(&()).unwrap().unwrap().evictable_bytes;
    assert!(bytes(&world) > 0);
    world.line("expire B");
    assert_eq!(bytes(&world), 0);
    assert!(world.state.is_empty::<Invocations>() && world.state.is_empty::<surefoot_machine::Expiries>());
}

#[test]
fn a_completion_whose_time_is_over_makes_room_before_the_sweep_comes() {
    let world = check(
        "retained call Svc/go as A; end A one; now 2000; retained call Svc/go as A",
        expect!["A: accept · A: start, 1 known · A: complete 'one' · A: accept · A: start, 1 known"],
    );
    assert!(matches!(world.state.get::<Invocations>(&world.names["A"]).unwrap().unwrap().stage, Stage::Active(_)));
}

/// How often a record may read a row for each that it writes.
const READS_PER_WRITE: usize = 2;

/// Every table that an invocation, its callers and its key write to.
fn assert_nothing_is_left(world: &World) {
    let state = &world.state;
    assert!(state.is_empty::<Invocations>() && state.is_empty::<Journal>() && state.is_empty::<Running>());
    assert!(state.is_empty::<Open>() && state.is_empty::<Waiters>() && state.is_empty::<Timers>());
    assert!(state.is_empty::<States>() && state.is_empty::<StateNames>() && state.is_empty::<StateValues>());
    assert!(state.is_empty::<Chores>() && state.is_empty::<ChorePages>());
    assert!(state.is_empty::<ChoreOutcomes>() && state.is_empty::<Listings>());
    assert!(state.is_empty::<Objects>() && state.is_empty::<Inbox>());
}

/// Brings items as an attempt does: so many at a time.
fn bring(world: &mut World, name: &str, items: impl IntoIterator<Item = Item>) {
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let batch: Vec<Item> = items.by_ref().take(AttemptProgress::ITEMS_MAX).collect();
        world.progress(name, batch, None);
    }
}

/// A parameter of 31 MiB was in a report twice: in its command, and as the input of what it called.
#[test]
fn the_parameter_of_a_call_is_taken_from_its_command() {
    let mut world = play("call Svc/go as A");
    let submission = Box::new(world.submission("head of ", "Other/go"));
    let action = Action::Call { submission, partition: PartitionId(3), id_completion: 1, result: None, parameter: (2, 9) };
    world.progress("A", vec![Item::Command { ty: entry_type::CALL, raw: "a parameter.".into(), action }], None);
    match world.state.get::<Outbox>(&surefoot_machine::OutboxKey { to: PartitionId(3), sequence: 1 }).unwrap() {
        Some(Message::Submit(submission)) => assert_eq!(submission.input, "head of parameter"),
        other => panic!("a submission waits in the outbox: {other:?}"),
    }
}

fn set(n: u32) -> Item {
    let action = Action::SetState { key: format!("key-{n:06}").into(), value: (0, 1) };
    Item::Command { ty: entry_type::SET_STATE, raw: vec![b'v'].into(), action }
}

fn call_item(world: &mut World, n: u32) -> Item {
    let mut submission = world.submission("callee", "Other/go");
    submission.id = InvocationId { partition_key: u64::MAX, unique: u128::from(n) + 1_000 };
    let action = Action::Call {
        submission: Box::new(submission),
        partition: PartitionId(3),
        id_completion: 2 * n + 1,
        result: Some(2 * n + 2),
        parameter: (0, 0),
    };
    command(entry_type::CALL, action)
}

fn result_for(world: &World, name: &str, n: u32) -> Message {
    let id = world.names[name];
    let caller = Caller { partition: HERE, id, incarnation: Incarnation(1), completion: 2 * n + 2 };
    Message::Result(Box::new(surefoot_model::CalleeResult { caller, outcome: Outcome::Success("r".into()) }))
}

/// One handler sets so many values, lists their names, clears them and ends; rows touched.
fn many_values(mutant: Mutant, count: u32) -> World {
    let mut world = play_broken(mutant, "call Obj/k/add as A");
    bring(&mut world, "A", (0..count).map(set));
    world.line("keys A 1");
    world.line("chores");
    world.line("clear-all A");
    world.line("end A ok");
    world.line("chores");
    assert_nothing_is_left(&world);
    world
}

/// A handler that asked for 128 values of 32 MiB had all of them copied by one record.
#[test]
#[should_panic(expected = "rule M9: the edge cuts it behind a read of state")]
fn a_record_reads_one_value_of_state() {
    let mut world = play_broken(Mutant::None, "call Obj/k/add as A; get A a 1; keys A 2");
    let get = |completion| command(entry_type::GET_LAZY_STATE, Action::GetState { key: "a".into(), completion });
    world.progress("A", vec![get(3), set(1), get(4)], None);
}

/// One handler calls so many others, and each answers while it is suspended on the last; rows touched.
fn many_calls(mutant: Mutant, count: u32) -> World {
    let mut world = play_broken(mutant, "call Svc/go as A");
    let items: Vec<Item> = (0..count).map(|n| call_item(&mut world, n)).collect();
    bring(&mut world, "A", items);
    world.event(Event::OutboxAcked { to: PartitionId(3), up_to: u64::from(count).min(u64::from(Bounds::PRESENT.rows)) });
    world.line(&format!("suspend A on {} seen {}", 2 * count, 2 * count));
    for n in 0..count {
        let message = result_for(&world, "A", n);
        world.event(Event::MessageArrived { from: PartitionId(3), sequence: u64::from(n) + 1, message });
    }
    world.line("end A ok");
    world.line("chores");
    assert_nothing_is_left(&world);
    world
}

/// So many invocations wait for one result.
fn many_waiters(mutant: Mutant, count: u32) -> World {
    many_waiters_of(mutant, count, "ok")
}

fn many_waiters_of(mutant: Mutant, count: u32, result: &str) -> World {
    let mut world = play_broken(mutant, "");
    for n in 0..count {
        let mut submission = world.submission("A", "Svc/go");
        submission.idempotency_key = Some("key".into());
        let id = InvocationId { partition_key: u64::MAX, unique: u128::from(n) + 1 };
        submission.caller = Some(Caller { partition: PartitionId(3), id, incarnation: Incarnation(1), completion: 2 });
        let message = Message::Submit(Box::new(submission));
        world.event(Event::MessageArrived { from: PartitionId(3), sequence: u64::from(n) + 1, message });
    }
    world.line(&format!("end A {result}"));
    assert_eq!(world.status("A"), "gone", "it is over at once, whoever has still to be told");
    world.line("chores");
    assert_eq!(world.state.len::<Outbox>(), count as usize, "each is told once");
    assert_nothing_is_left(&world);
    world
}

/// Rules O7 and M9: one invocation's 100,000th call, value or caller cost what its first did, and no record did much at once.
#[test]
fn what_one_invocation_does_grows_linearly_and_no_record_does_much() {
    for many in [many_values, many_calls, many_waiters] {
        let cost = |count: u32| {
            let world = many(Mutant::None, count);
            assert!(world.most <= Bounds::PRESENT.rows as usize * (1 + READS_PER_WRITE), "{} rows in one record", world.most);
            world.touched() as f64 / f64::from(count)
        };
        let (few, more) = (cost(1_000), cost(100_000));
        assert!(more <= few * 1.5, "{more} rows each, and {few} of a thousand");
        let broken = many(Mutant::AllAtOnce, 10_000);
        assert!(
            broken.most > Bounds::PRESENT.rows as usize * (1 + READS_PER_WRITE),
            "the variant that does all at once is caught"
        );
    }
    let broken = |count: u32| many_calls(Mutant::CountAnew, count).touched() as f64 / f64::from(count);
    assert!(broken(1_000) > broken(100) * 1.5, "the variant that counts anew is caught");
}

/// Rule M9: what a record copies is bounded in bytes, and one value moves whatever its size.
#[test]
fn a_large_result_reaches_all_who_wait_piece_by_piece() {
    for (count, bytes) in [(40, 1 << 20), (6, 10 << 20)] {
        let result = "r".repeat(bytes);
        // Beside its copies: the handler's entry, and the one that the chore keeps.
        let bound = (Bounds::PRESENT.rows * Bounds::PRESENT.row_bytes) as usize + 3 * bytes;
        let world = many_waiters_of(Mutant::None, count, &result);
        assert!(world.most_bytes < bound, "{} bytes in one record", world.most_bytes);
        let all = world.state.written_bytes / bytes;
        assert!(all <= count as usize + 3, "{all} times the result was written, for {count} who wait");
        let broken = many_waiters_of(Mutant::AllAtOnce, count, &result);
        assert!(broken.most_bytes > bound, "the variant that does all at once is caught: {}", broken.most_bytes);
    }
}

#[test]
fn a_killed_invocation_kills_all_it_called_record_by_record() {
    let mut world = play("call Svc/go as A");
    let items: Vec<Item> = (0..2_000).map(|n| call_item(&mut world, n)).collect();
    bring(&mut world, "A", items);
    let sent = world.state.len::<Outbox>();
    world.line("kill A");
    assert_eq!(world.status("A"), "gone");
    world.line("elect"); // between two chores: the new leader finds the rest in the tables
    world.line("chores");
    assert_eq!(world.state.len::<Outbox>(), sent + 2_000);
    assert_nothing_is_left(&world);
}

#[test]
fn an_id_that_lives_again_is_not_touched_by_what_its_predecessor_left_over() {
    let mut world = play("retained call Svc/go as A");
    bring(&mut world, "A", (1..=3_000).map(|completion| command(entry_type::RUN, Action::Run { completion })));
    world.line("kill A");
    world.line("purge A");
    world.line("retained call Svc/go as A");
    world.line("run A 1");
    world.line("chores");
    world.line("propose A 1 R");
    let kept = world.state.rows.scan::<Journal>(&JournalKey { life: Incarnation(0), index: 0 }, None, 9).unwrap();
    assert!(matches!(kept.as_slice(), [(_, Entry::Command { .. }), (_, Entry::Command { .. }), (_, Entry::Notification(_))]));
    world.line("end A ok");
    expect!["A: deliver #2 0x8011 'R' · A: complete 'ok'"].assert_eq(&world.out[world.out.len() - 2..].join(" · "));
}

#[test]
fn values_set_after_a_clear_stay_while_the_cleared_ones_go() {
    let mut world = play("call Obj/k/add as A");
    bring(&mut world, "A", (0..5_000).map(set));
    world.line("clear-all A");
    world.line("keys A 1");
    world.line("set A key-000007 new");
    world.line("chores");
    world.line("get A key-000007 2");
    world.line("keys A 3");
    let told = |world: &World| world.out.iter().filter(|line| line.contains("deliver")).cloned().collect::<Vec<_>>();
    let told = told(&world);
    assert!(told[0].ends_with("0x8006 []"), "{told:?}");
    assert!(told[1].ends_with("'new'") && told[2].ends_with(r#"["key-000007"]"#), "{told:?}");
    assert_eq!((world.state.len::<StateValues>(), world.state.len::<StateNames>()), (1, 1));
}

#[test]
fn many_names_are_listed_in_order_once_they_are_collected() {
    let mut world = play("call Obj/k/add as A");
    bring(&mut world, "A", (0..5_000).map(set));
    world.line("keys A 1");
    world.line("elect");
    world.line("chores");
    let expected: Vec<String> = (0..5_000).map(|n| format!("key-{n:06}")).collect();
    let line = world.out.iter().find(|line| line.contains("0x8006")).unwrap();
    assert!(line.ends_with(&format!("{expected:?}")));
    world.line("keys A 2");
    world.line("kill A");
    world.line("chores");
    assert!(world.state.is_empty::<Chores>() && world.state.is_empty::<ChorePages>(), "nobody waits for the list any more");
}

/// A shared handler was told a part of the names, which no moment had ever had.
#[test]
fn names_that_are_cleared_while_they_are_collected_are_all_told() {
    let mut world = play("call Obj/k/add as A");
    bring(&mut world, "A", (0..5_000).map(set));
    world.line("call Obj/k/get as B");
    world.line("keys B 1");
    for _ in 0..2 {
        let chore = world.chores.pop_front().unwrap();
        world.event(Event::ChoreDue { chore });
    }
    world.line("clear-all A");
    world.line("set A new value");
    world.line("chores");
    let expected: Vec<String> = (0..5_000).map(|n| format!("key-{n:06}")).collect();
    let line = world.out.iter().find(|line| line.contains("0x8006")).unwrap();
    assert!(line.ends_with(&format!("{expected:?}")), "{} bytes of names", line.len());
    assert_eq!((world.state.len::<StateValues>(), world.state.len::<StateNames>()), (1, 1), "then they go");
    assert!(world.state.is_empty::<Chores>() && world.state.is_empty::<ChorePages>() && world.state.is_empty::<Listings>());
}

/// So many names of so many bytes each.
fn long_names(count: u32, bytes: usize) -> World {
    let mut world = play("call Obj/k/add as A");
    let set = |n| {
        let action = Action::SetState { key: format!("{n:0bytes$}").into(), value: (0, 0) };
        command(entry_type::SET_STATE, action)
    };
    bring(&mut world, "A", (0..count).map(set));
    (world.most_bytes, world.state.read_bytes) = (0, Cell::default());
    world
}

#[test]
fn long_names_are_collected_in_small_pages() {
    let mut world = long_names(600, 10_000);
    world.line("keys A 1");
    let pages: Vec<usize> = std::iter::from_fn(|| {
        let chore = world.chores.pop_front()?;
        let before = world.state.written_bytes;
        world.event(Event::ChoreDue { chore });
        Some(world.state.written_bytes - before)
    })
    .collect();
    let (_, pages) = pages.split_last().unwrap();
    let most = Bounds::PRESENT.page_name_bytes + 20_000;
    assert!(pages.len() > 20 && pages.iter().all(|bytes| *bytes < most), "{pages:?}");
    assert!(world.out.last().unwrap().contains("0x8006 [\"0000"));
}

#[test]
fn a_handler_that_asks_for_too_many_bytes_of_names_is_told_so() {
    let mut world = long_names(900, 10_000);
    world.line("keys A 1");
    let says = "0x8006 413 the names of this key's state have 9000000 bytes, and 8388608 may be listed at once: use fewer or shorter \
                names, or keep a list of them in a value (SF3004)";
    assert!(world.out.last().unwrap().ends_with(says), "{:?}", world.out.last());
    // Set while it is collected: the same.
    let mut world = long_names(800, 10_000);
    world.line("call Obj/k/get as B");
    world.line("keys B 1");
    let more = |n| command(entry_type::SET_STATE, Action::SetState { key: format!("z{n:09999}").into(), value: (0, 0) });
    bring(&mut world, "A", (0..100).map(more));
    world.line("chores");
    assert!(world.out.last().unwrap().contains("(SF3004)"), "{:?}", world.out.last());
    assert!(world.state.is_empty::<Chores>() && world.state.is_empty::<ChorePages>() && world.state.is_empty::<Listings>());
    world.line("clear-all A");
    world.line("chores");
    assert!(world.state.is_empty::<States>() && world.state.is_empty::<StateNames>());
}

/// Rule M9: a subscription's positions, as many as its topics have Kafka partitions in all epochs, went in one record.
#[test]
fn positions_of_earlier_epochs_go_record_by_record_and_none_comes_back() {
    let subscription = |epoch| Subscription {
        id: SubscriptionId(1),
        cluster: "main".into(),
        topic: "orders".into(),
        service: "Svc".into(),
        handler: "go".into(),
        options: BTreeMap::new(),
        created_at: Timestamp(0),
        epoch,
        topic_id: 5,
        resolved: true,
        closing: None,
    };
    let positions = |epoch, count| (0..count).map(|partition| (StreamId { partition, ..stream(epoch) }, 7)).collect::<Vec<_>>();
    let mut world = World::default();
    let change = |world: &mut World, event| world.event(Event::CatalogChanged(Box::new(event)));
    change(&mut world, CatalogEvent::SubscriptionStored(subscription(1), positions(1, 5_000)));
    world.most = 0;
    change(&mut world, CatalogEvent::SubscriptionStored(subscription(2), positions(2, 3)));
    let loaded = load_catalog(&world.state.rows).unwrap();
    assert_eq!(loaded.positions, positions(2, 3).into_iter().collect(), "a start in between knows those of the present alone");
    change(&mut world, CatalogEvent::PositionsAdvanced(positions(1, 2)));
    world.line("chores");
    assert!(world.most <= Bounds::PRESENT.rows as usize * (1 + READS_PER_WRITE), "{} rows in one record", world.most);
    assert_eq!(world.state.len::<CatalogRows>(), 4);
    change(&mut world, CatalogEvent::SubscriptionDeleted(SubscriptionId(1)));
    assert!(world.state.is_empty::<CatalogRows>() && world.state.is_empty::<Chores>());
}

/// It said 404, as if there had been no such call.
#[test]
fn who_waits_for_an_invocation_that_is_killed_in_the_queue_or_before_its_time_hears_of_the_kill() {
    let mut world = play("call Obj/k/add as A");
    let caller = |n| {
        let id = InvocationId { partition_key: u64::MAX, unique: n };
        Caller { partition: PartitionId(3), id, incarnation: Incarnation(1), completion: 2 }
    };
    let mut queued = world.submission("B", "Obj/k/add");
    queued.caller = Some(caller(1));
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message: Message::Submit(Box::new(queued)) });
    let mut scheduled = world.submission("C", "Svc/go");
    (scheduled.caller, scheduled.execute_at) = (Some(caller(2)), Some(Timestamp(900)));
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 2, message: Message::Submit(Box::new(scheduled)) });
    world.line("kill B");
    world.line("kill C");
    expect!["A: accept · A: start, 1 known · A: goes with what is needed · C: timer at 900 for 0 · send #1 to 3 · B: complete 409 killed · operator: Done · send #2 to 3 · C: complete 409 killed · operator: Done"]
        .assert_eq(&world.out.join(" · "));
    for (number, killed) in world.state.rows.scan::<Outbox>(&first_message(), None, 9).unwrap() {
        assert!(matches!(&killed, Message::Result(result) if !result.outcome.is_success()), "{number:?} {killed:?}");
    }
}

fn first_message() -> surefoot_machine::OutboxKey {
    surefoot_machine::OutboxKey { to: PartitionId(0), sequence: 0 }
}

#[test]
fn a_long_queue_of_killed_calls_is_passed_over_at_once() {
    let mut world = play("call Obj/k/add as first");
    let count = 3_000;
    for n in 0..count {
        world.line(&format!("send Obj/k/add as q{n}"));
    }
    // From the middle to both ends, all but the last.
    for n in (0..count / 2).rev().chain(count / 2..count - 1) {
        world.line(&format!("kill q{n}"));
    }
    world.most = 0;
    world.line("end first ok");
    assert!(world.most < 30, "{}", world.most);
    assert_eq!(world.status(&format!("q{}", count - 1)), "running");
    world.line(&format!("end q{} ok", count - 1));
    assert_nothing_is_left(&world);
}

/// What has begun, and what others wait for, goes before what is fresh; within a class in the order of asking.
#[test]
fn attempts_are_found_in_the_order_in_which_they_are_to_start() {
    let mut world =
        play("call Svc/go as fresh-1; call Svc/go as slept; sleep slept 1 10; suspend slept on 1 seen 0; call Svc/go as fresh-2");
    let mut callee = world.submission("callee", "Svc/go");
    let id = InvocationId { partition_key: u64::MAX, unique: 5 };
    callee.caller = Some(Caller { partition: PartitionId(3), id, incarnation: Incarnation(1), completion: 2 });
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message: Message::Submit(Box::new(callee)) });
    world.line("fire slept 1 10");
    world.line("fail fresh-2 until 20");
    world.line("fire fresh-2 0 20");
    world.out.clear();
    world.line("elect");
    let order: Vec<&str> = world.out.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(order, ["callee", "slept", "fresh-2", "fresh-1"]);
}

/// In which order a new leader starts what waits.
fn starts(world: &mut World) -> Vec<String> {
    world.out.clear();
    world.line("elect");
    world.out.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect()
}

/// A handler that called a busy key waited until all that was fresh had been started: its callee was needed, and what stood before it
/// in the key's inbox was not.
#[test]
fn what_stands_before_one_that_others_wait_for_is_needed_too() {
    let script =
        "call Svc/go as fresh; call Obj/k/add as owner; call Obj/k/add as next; await Obj/k/add as callee; call Svc/go as late";
    let mut world = check(
        script,
        expect![
            "fresh: accept · fresh: start, 1 known · owner: accept · owner: start, 1 known · next: accept · owner: goes with what is needed · late: accept · late: start, 1 known"
        ],
    );
    assert_eq!(starts(&mut world), ["owner", "fresh", "late"]);
    world.line("end owner ok");
    assert_eq!(starts(&mut world), ["next", "fresh", "late"]);
    world.line("end next ok");
    world.line("call Obj/k/add as behind");
    assert_eq!(starts(&mut world), ["callee", "fresh", "late"]);
    world.line("end callee ok");
    assert_eq!(starts(&mut world), ["fresh", "late", "behind"], "nobody waits for what stands behind it");
    let mut broken = play_broken(Mutant::LeaveFresh, script);
    assert_eq!(starts(&mut broken), ["fresh", "owner", "late"], "the variant that leaves it is caught");
}

#[test]
fn an_invocation_is_needed_from_its_first_caller_on_wherever_it_waits() {
    let mut world =
        play("call Svc/go as fresh; call Obj/k/add as owner; retained call Obj/k/add as queued; retained call Svc/go as active");
    for name in ["queued", "active"] {
        let target = if name == "queued" { "Obj/k/add" } else { "Svc/go" };
        for caller in 1..=2 {
            let mut submission = world.submission(name, target);
            submission.idempotency_key = Some("key".into());
            let id = InvocationId { partition_key: u64::MAX, unique: caller };
            submission.caller = Some(Caller { partition: PartitionId(3), id, incarnation: Incarnation(1), completion: 2 });
            world.event(Event::InvocationSubmitted(Box::new(submission)));
        }
    }
    assert_eq!(starts(&mut world), ["owner", "active", "fresh"]);
    world.line("kill queued");
    world.line("send Obj/k/add as last");
    world.line("end owner ok");
    assert_eq!(starts(&mut world), ["active", "fresh", "last"], "nobody is waited for in the inbox any more");
    for name in ["active", "fresh", "last"] {
        world.line(&format!("end {name} ok"));
    }
    assert!(world.state.is_empty::<Objects>() && world.state.is_empty::<Running>());
}

/// A flood of callees for one key raises its owner once, and reads it once.
#[test]
fn many_callees_of_one_key_raise_its_owner_once() {
    let mut world = play("call Obj/k/add as owner; await Obj/k/add as c0");
    world.most = 0;
    for n in 1..=1_000 {
        world.line(&format!("await Obj/k/add as c{n}"));
    }
    assert!(world.most <= 12, "{} rows touched by one that joins", world.most);
    assert_eq!(world.out.iter().filter(|line| line.ends_with("needed")).count(), 1);
}

#[test]
fn a_suspension_on_very_many_is_resumed_by_any_and_its_row_stays_small() {
    let mut world = play("call Svc/go as A");
    let items: Vec<Item> = (0..2_000).map(|n| call_item(&mut world, n)).collect();
    bring(&mut world, "A", items);
    let awaiting = (0..2_000).map(|n| NotificationId::Completion(2 * n + 2)).collect();
    world.progress("A", vec![], Some(AttemptEnd::Suspended { awaiting, last_delivered: 4_000 }));
    assert_eq!(world.status("A"), "suspended");
    let row = world.state.rows.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
    assert!(encoding::encode(&row).len() < 1_000);
    let message = result_for(&world, "A", 77);
    world.event(Event::MessageArrived { from: PartitionId(3), sequence: 1, message });
    assert_eq!(world.status("A"), "running");
}

#[test]
fn a_clock_that_jumped_ahead_and_back_does_not_stop_the_time_since_the_last_entry() {
    let world = play("now 1000000; call Svc/go as ahead; now 10; call Svc/go as A; run A 1");
    let invocation = world.state.rows.get::<Invocations>(&world.names["A"]).unwrap().unwrap();
    assert_eq!(invocation.active().unwrap().last_entry_at, Timestamp(10));
}
