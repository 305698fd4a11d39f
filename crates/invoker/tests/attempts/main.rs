//! Attempts from outside: a scripted handler, a clock that stands until told, and what reaches handler and partition as a story.

#![allow(clippy::unwrap_used, reason = "a script that fails to run says where")]

mod wire;
mod world;

use bytes::Bytes;
use expect_test::{Expect, expect};
use std::collections::VecDeque;
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_invoker::{
    Destination, EagerState, ExchangeEvent, JournalRest, Live, Mutant, Notifier, ReadEntries, Settings, TransportError,
    UNSENT_BYTES_MAX,
};
use surefoot_model::catalog::StreamMode;
use surefoot_model::{AttemptEnd, Entry, RECORD_COST, Resolution, Target, TargetKind, Timestamp, entry_type};
use surefoot_protocol::KEY_BYTES_MAX;
use wire::Says;
use world::{EPOCH_MS, World, command, completion, settings};

const SECOND: Duration = Duration::from_secs(1);

#[track_caller]
fn check(world: &World, expected: Expect) {
    expected.assert_eq(&world.story());
}

/// An attempt whose response has begun and whose beginning is told.
fn begun() -> World {
    begin(World::new())
}

fn begin(mut world: World) -> World {
    world.start(|_| ());
    world.head();
    world.story();
    world
}

/// An attempt of a node that has room for so many reports of a little each.
fn with_room_for(reports: usize) -> World {
    let report_bytes_max = reports * (RECORD_COST as usize + 3_000);
    begin(World::with(Settings { report_bytes_max, attempts_max: 3, ..settings() }, StreamMode::Bidirectional))
}

// Beginning and ending.

#[test]
fn a_start_carries_the_journal_and_the_state() {
    let mut world = World::new();
    world.start(|start| {
        start.replay.push(command(entry_type::RUN, wire::completable(1)));
        start.replay.push(Entry::Notification(completion(entry_type::RUN_COMPLETION, 1, Resolution::Value("x".into()))));
        start.commands = 2;
        start.state = EagerState { entries: vec![("a".into(), "1".into()), ("b".into(), "2".into())], complete: true };
        start.retries_since_entry = 3;
    });
    check(
        &world,
        expect![[r#"
            > Start, 3 known, 2 values, retry 3
            > Input
            > 0x0411
            > 0x8011 #1"#]],
    );
    let headers = world.request().headers;
    assert_eq!(world.request().path, "/invoke/Object/run");
    assert_eq!(headers["content-type"], "application/vnd.restate.invocation.v6");
    assert_eq!(headers["x-restate-service-key"], "k");
    assert_eq!(headers["x-cluster"], "c");
    assert!(headers["x-restate-invocation-id"].to_str().unwrap().starts_with("inv_1"));
}

#[test]
fn keys_travel_percent_encoded_unless_they_are_long() {
    let header = |key: &str| {
        let mut world = World::new();
        world.start(|start| start.target = Target::new(TargetKind::ObjectShared, "Object", key, "see"));
        world.request().headers.get("x-restate-service-key").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(header("a b/ü").as_deref(), Some("a%20b%2F%C3%BC"));
    assert_eq!(header("-_.!~*'()Z9").as_deref(), Some("-_.!~*'()Z9"));
    assert_eq!(header(&"k".repeat(5_000)), None);
    let mut world = World::new();
    world.start(|start| start.target = Target::new(TargetKind::Service, "Plain", "", "go"));
    check(
        &world,
        expect!["= failed (ours): no deployment serves 'Plain': register one that does (RT0011); again in 500 ms\n= slot free"],
    );
}

#[test]
fn messages_that_come_together_are_one_event_and_the_slot_is_free_at_once() {
    let mut world = begun();
    world.writes(&[wire::set_state(b"a", b"1"), wire::output(b"out"), wire::end()]);
    check(
        &world,
        expect![[r#"
            > half-close
            = from 1: SetState Output completed
            = slot free"#]],
    );
    // The peer takes its time to end the response; nothing waits for it.
    assert!(world.invoker.try_reserve() && world.invoker.try_reserve());
    world.event(ExchangeEvent::End);
    check(&world, expect![""]);
}

#[test]
fn a_response_that_does_not_end_is_cut() {
    let mut world = begun();
    world.writes(&[wire::output(b""), wire::end()]);
    world.story();
    world.pass(4 * SECOND);
    check(&world, expect![""]);
    world.pass(SECOND);
    check(&world, expect!["> reset"]);
}

#[test]
fn messages_that_come_apart_are_events_that_count_on() {
    let mut world = begun();
    world.writes(&[wire::run(1)]);
    world.writes(&[wire::proposes(1, b"x"), wire::sleep(5, 2)]);
    world.writes(&[wire::output(b"")]);
    world.writes(&[wire::end()]);
    check(
        &world,
        expect![[r#"
            = from 1: Run
            = from 2: proposed #1 Sleep
            = from 3: Output
            > half-close
            = completed
            = slot free"#]],
    );
}

#[test]
fn an_output_of_an_earlier_attempt_counts_and_none_is_a_violation() {
    let mut world = World::new();
    world.start(|start| start.replay.push(command(entry_type::OUTPUT, wire::input(b"out"))));
    world.head();
    world.writes(&[wire::end()]);
    assert_eq!(world.report().end, Some(AttemptEnd::Completed));
    let mut world = begun();
    world.writes(&[wire::end()]);
    check(
        &world,
        expect![[r#"
            > half-close
            = failed: the handler ended without an output (RT0012); again in 500 ms
            = slot free"#]],
    );
}

#[test]
fn live_notifications_move_what_a_suspension_has_seen() {
    let mut world = begun();
    world.writes(&[wire::sleep(9, 1), wire::sleep(9, 2)]);
    world.notify(3, completion(entry_type::SLEEP_COMPLETION, 1, Resolution::Void));
    world.writes(&[wire::suspends(&[2])]);
    check(
        &world,
        expect![[r#"
            = from 1: Sleep Sleep
            > 0x800c #1
            > half-close
            = suspended on #2 after entry 3
            = slot free"#]],
    );
}

/// Some thousand small frames that a handler had not read yet ended its connection, and with it all that ran there.
#[test]
fn notifications_leave_together_where_the_handler_has_been_sent_many_and_says_nothing() {
    let mut world = begun();
    let mut index = 2;
    let mut notify = |world: &mut World| {
        index += 1;
        world.notify(index, completion(entry_type::SLEEP_COMPLETION, index, Resolution::Void));
    };
    for _ in 0..64 {
        notify(&mut world);
        assert!(!world.story().is_empty(), "each leaves at once");
    }
    for _ in 0..3 {
        notify(&mut world);
    }
    check(&world, expect![""]);
    world.pass(9 * MS);
    check(&world, expect![""]);
    world.pass(MS);
    check(
        &world,
        expect![[r#"
        > 0x800c #67
        > 0x800c #68
        > 0x800c #69"#]],
    );
    notify(&mut world);
    check(&world, expect![""]);
    world.writes(&[wire::sleep(9, 1)]);
    check(
        &world,
        expect![[r#"
        = from 1: Sleep
        > 0x800c #70"#]],
    );
    notify(&mut world);
    check(&world, expect!["> 0x800c #71"]);
}

#[test]
fn notifications_that_come_while_the_stream_opens_follow_the_replay() {
    let mut world = World::new();
    let mut live = None;
    let (notifier, notifications) = world.invoker.feed();
    world.start(|start| {
        start.live = notifications;
        let notification = completion(entry_type::SLEEP_COMPLETION, 1, Resolution::Void);
        notifier.notify(surefoot_invoker::Live { index: 1, notification });
        live = Some(notifier);
    });
    check(
        &world,
        expect![[r#"
            > Start, 1 known, 0 values, retry 0
            > Input
            > 0x800c #1"#]],
    );
    drop(live);
    world.run();
    check(
        &world,
        expect![[r#"
            > reset
            = slot free"#]],
    );
}

#[test]
fn an_aborted_attempt_resets_its_stream_and_reports_nothing() {
    let mut world = begun();
    world.abort();
    check(&world, expect!["> reset\n= slot free"]);
    assert_eq!(world.reports(), 0);
}

/// What is left of a journal, each entry read on its own; the last read finds nothing where it breaks off.
fn rest(mut left: VecDeque<Entry>, breaks_off: bool) -> Box<JournalRest> {
    let entries = left.len() as u32 + u32::from(breaks_off);
    let read = move || -> BoxFuture<_> {
        let read = left.pop_front().map(|entry| {
            let is_last = left.is_empty() && !breaks_off;
            ReadEntries { entries: vec![entry], rest: (!is_last).then(|| rest(left, breaks_off)) }
        });
        Box::pin(std::future::ready(read))
    };
    Box::new(JournalRest { entries, part_bytes: 1_000, read: Box::new(read) })
}

/// An attempt on a journal with two steps that are read while it runs.
fn start_with_rest(world: &mut World, breaks_off: bool) {
    let step = |id| command(entry_type::RUN, wire::completable(id));
    world.start(|start| {
        start.rest = Some(rest([step(1), step(2)].into(), breaks_off));
        start.commands = 3;
        start.journal_bytes = 10;
    });
}

/// Six results of 31 MiB were all in memory until their handler had taken the last of them.
#[test]
fn the_rest_of_a_journal_is_read_once_what_came_before_has_left_and_comes_before_anything_live() {
    let mut world = World::new();
    world.clog(UNSENT_BYTES_MAX + 1);
    start_with_rest(&mut world, false);
    world.head();
    world.notify(3, completion(entry_type::RUN_COMPLETION, 1, Resolution::Void));
    check(
        &world,
        expect![[r#"
        > Start, 3 known, 0 values, retry 0
        > Input"#]],
    );
    world.unsent(UNSENT_BYTES_MAX);
    check(
        &world,
        expect![[r#"
        > 0x0411
        > 0x0411
        > 0x8011 #1"#]],
    );
    world.writes(&[wire::proposes(2, b"x")]);
    check(&world, expect!["= from 3: proposed #2"]);
}

#[test]
fn a_request_ends_behind_the_rest_of_its_journal() {
    // A request that leaves whole ends with its journal; a stream that goes both ways ends once its attempt is asked to suspend meanwhile.
    for mode in [StreamMode::RequestResponse, StreamMode::Bidirectional] {
        let mut world = World::with(settings(), mode);
        world.clog(UNSENT_BYTES_MAX + 1);
        start_with_rest(&mut world, false);
        if mode == StreamMode::Bidirectional {
            world.head();
            world.pass(60 * SECOND);
        }
        check(
            &world,
            expect![[r#"
            > Start, 3 known, 0 values, retry 0
            > Input"#]],
        );
        world.unsent(0);
        check(
            &world,
            expect![[r#"
            > 0x0411
            > 0x0411
            > half-close"#]],
        );
    }
}

#[test]
fn a_handler_that_never_takes_its_journal_and_a_journal_that_is_gone_end_the_attempt() {
    let mut world = World::new();
    world.clog(UNSENT_BYTES_MAX + 1);
    start_with_rest(&mut world, false);
    world.head();
    world.pass(660 * SECOND);
    check(
        &world,
        expect![[r#"
        > Start, 3 known, 0 values, retry 0
        > Input
        > half-close
        = failed: the handler did not suspend within 600000 ms of being asked to (RT0001); again in 500 ms
        > reset
        = slot free"#]],
    );
    let mut world = World::new();
    start_with_rest(&mut world, true);
    check(
        &world,
        expect![[r#"
        > Start, 4 known, 0 values, retry 0
        > Input
        > 0x0411
        > 0x0411"#]],
    );
    world.abort();
    check(
        &world,
        expect![[r#"
        > reset
        = slot free"#]],
    );
    assert_eq!(world.reports(), 0, "what is not read here is no failure of the invocation");
}

/// One handler that took its large journal slowly let no attempt of any deployment begin meanwhile.
#[test]
fn of_a_journal_that_is_read_in_parts_one_part_counts_and_all_of_it_where_the_request_leaves_whole() {
    let settings = || Settings { replay_bytes_max: 1 << 20, ..settings() };
    let has_place = |mut world: World| {
        world.clog(UNSENT_BYTES_MAX + 1);
        world.start(|start| {
            let step = |id| command(entry_type::RUN, wire::completable(id));
            start.rest = Some(rest([step(1), step(2)].into(), true));
            start.journal_bytes = 100 << 20;
        });
        world.invoker.has_place()
    };
    assert!(has_place(World::with(settings(), StreamMode::Bidirectional)));
    assert!(!has_place(World::over_http1_with(settings())));
}

/// A step with the completion id of one that had not been sent was taken, and its record stopped the partition at each start; a suspension
/// on what lay in the unread part never ended.
#[test]
fn a_handler_that_goes_on_before_it_has_its_journal_fails_and_nothing_of_it_is_taken() {
    let suspends = wire::suspends(&[1]);
    for frame in
        [wire::run(1), wire::run(3), wire::sleep(5, 2), wire::proposes(2, b"x"), wire::output(b"out"), wire::end(), suspends]
    {
        let mut world = World::new();
        world.clog(UNSENT_BYTES_MAX + 1);
        start_with_rest(&mut world, false);
        world.head();
        world.story();
        world.writes(&[frame]);
        check(
            &world,
            expect![[r#"
            > half-close
            = failed: the handler went on before it had its journal (RT0012); again in 500 ms
            = slot free"#]],
        );
        assert!(world.report().items.is_empty());
    }
    // It may say that it fails.
    let mut world = World::new();
    world.clog(UNSENT_BYTES_MAX + 1);
    start_with_rest(&mut world, false);
    world.head();
    world.story();
    world.writes(&[wire::fails(wire::Says { message: "boom", ..Default::default() })]);
    check(
        &world,
        expect![[r#"
        > half-close
        = failed: boom; again in 500 ms
        = slot free"#]],
    );
}

#[test]
fn a_suspension_says_the_last_entry_that_was_sent() {
    let mut world = World::new();
    start_with_rest(&mut world, false);
    world.head();
    world.story();
    world.writes(&[wire::sleep(5, 3), wire::suspends(&[3])]);
    check(
        &world,
        expect![[r#"
        > half-close
        = from 3: Sleep suspended on #3 after entry 2
        = slot free"#]],
    );
}

#[test]
fn a_request_response_deployment_gets_its_request_whole() {
    let mut world = World::with(settings(), StreamMode::RequestResponse);
    world.start(|start| start.replay.push(command(entry_type::SLEEP, wire::completable(1))));
    world.notify(1, completion(entry_type::SLEEP_COMPLETION, 1, Resolution::Void));
    world.head();
    world.writes(&[wire::suspends(&[1])]);
    check(
        &world,
        expect![[r#"
            > Start, 2 known, 0 values, retry 0
            > Input
            > 0x040c
            > half-close
            = suspended on #1 after entry 1
            = slot free"#]],
    );
}

// Timeouts.

#[test]
fn silence_asks_for_a_suspension_and_more_of_it_aborts() {
    let mut world = begun();
    world.pass(59 * SECOND);
    world.writes(&[wire::run(1)]);
    world.pass(59 * SECOND);
    check(&world, expect!["= from 1: Run"]);
    world.pass(SECOND);
    check(&world, expect!["> half-close"]);
    // A run that goes on may still bring its result; what comes for the handler waits in the journal.
    world.notify(2, completion(entry_type::SLEEP_COMPLETION, 7, Resolution::Void));
    world.pass(599 * SECOND);
    world.writes(&[wire::proposes(1, b"x")]);
    check(&world, expect!["= from 2: proposed #1"]);
    world.pass(600 * SECOND);
    check(
        &world,
        expect![[r#"
            = failed: the handler did not suspend within 600000 ms of being asked to (RT0001); again in 500 ms
            > reset
            = slot free"#]],
    );
}

// Places.

const MS: Duration = Duration::from_millis(1);

/// An attempt that sleeps, has said nothing for a while, and has the only place that is taken.
fn asleep() -> World {
    let mut world = begun();
    world.writes(&[wire::sleep(9, 1)]);
    world.pass(50 * MS);
    check(&world, expect!["= from 1: Sleep"]);
    world
}

#[test]
fn an_attempt_that_only_waits_is_asked_to_suspend_while_others_want_its_place() {
    let mut world = asleep();
    // Two may run.
    world.want(1);
    check(&world, expect![""]);
    world.want(2);
    check(&world, expect!["> half-close"]);
    // It is told nothing more, and misses nothing: the suspension says what it has seen.
    world.notify(2, completion(entry_type::SLEEP_COMPLETION, 1, Resolution::Void));
    world.writes(&[wire::suspends_on(&[1], &[1])]);
    check(&world, expect!["= suspended on #1 signal 1 after entry 0\n= slot free"]);
}

#[test]
fn an_attempt_that_begins_to_wait_is_asked_after_a_moment_of_silence() {
    let mut world = begun();
    world.want(9);
    world.writes(&[wire::sleep(9, 1)]);
    world.pass(49 * MS);
    check(&world, expect!["= from 1: Sleep"]);
    world.writes(&[wire::sleep(9, 2)]);
    world.pass(49 * MS);
    check(&world, expect!["= from 2: Sleep"]);
    world.pass(MS);
    check(&world, expect!["> half-close"]);
}

/// Tens of thousands may wait at a time.
#[test]
fn the_task_of_an_attempt_is_small() {
    let world = asleep();
    assert!(world.task_bytes <= 4 << 10, "{} bytes", world.task_bytes);
}

#[test]
fn an_attempt_with_work_of_its_own_is_not_asked() {
    let mut world = begun();
    world.want(9);
    // A step is under way, then its result is.
    world.writes(&[wire::sleep(9, 1), wire::run(2)]);
    world.pass(SECOND);
    world.writes(&[wire::proposes(2, b"x")]);
    world.pass(SECOND);
    check(&world, expect!["= from 1: Sleep Run\n= from 3: proposed #2"]);
    world.notify(3, completion(entry_type::RUN_COMPLETION, 2, Resolution::Value("x".into())));
    world.pass(49 * MS);
    check(&world, expect!["> 0x8011 #2"]);
    world.pass(MS);
    check(&world, expect!["> half-close"]);
    // Nothing that it waits for: whatever it does, it is at work.
    let mut world = begun();
    world.want(9);
    world.writes(&[wire::set_state(b"a", b"1")]);
    world.pass(SECOND);
    check(&world, expect!["= from 1: SetState"]);
}

#[test]
fn an_attempt_that_has_work_again_is_not_asked_any_more() {
    let mut world = asleep();
    world.writes(&[wire::run(2)]);
    world.want(9);
    world.pass(SECOND);
    check(&world, expect!["= from 2: Run"]);
}

#[test]
fn an_open_call_of_an_earlier_attempt_counts_as_waiting() {
    let mut world = World::new();
    world.start(|start| {
        start.replay.push(command(entry_type::CALL, wire::call("Object", "k", "run", (1, 2)).slice(8..)));
        start.replay.push(Entry::Notification(completion(entry_type::CALL_INVOCATION_ID, 1, Resolution::Void)));
        start.commands = 2;
    });
    world.head();
    world.story();
    world.want(9);
    world.pass(50 * MS);
    check(&world, expect!["> half-close"]);
}

/// A step that begins after the request to suspend had been stopped when the shorter time was over.
#[test]
fn who_is_asked_for_its_place_may_work_as_long_as_if_nobody_had_asked() {
    let mut world = asleep();
    world.want(9);
    world.pass(SECOND);
    check(&world, expect!["> half-close"]);
    world.writes(&[wire::run(2)]);
    world.story();
    world.pass(659 * SECOND);
    check(&world, expect![""]);
    world.pass(SECOND);
    check(
        &world,
        expect![[r#"
            = failed: the handler did not suspend within 660000 ms of being asked to (RT0001); again in 500 ms
            > reset
            = slot free"#]],
    );
}

// Suspensions that nothing ends.

#[test]
fn a_suspension_that_would_never_end_fails_the_attempt() {
    let says = "the handler suspended on nothing but its own steps, which nobody else can finish (SF3002)";
    assert_eq!(refused(&[wire::run(1), wire::suspends_on(&[1], &[1])]), says);
    let says =
        "the handler waits for an awakeable or a signal, which this server does not support yet; it would wait for ever (SF3003)";
    assert_eq!(refused(&[wire::suspends_on(&[], &[1, 17])]), says);
    let says = "the handler suspended on completion 2, which none of its commands has (RT0012)";
    assert_eq!(refused(&[wire::sleep(9, 1), wire::suspends(&[1, 2])]), says);
    // The result of a step that was proposed does come.
    let mut world = begun();
    world.writes(&[wire::run(1), wire::proposes(1, b"x"), wire::suspends(&[1, 1])]);
    check(
        &world,
        expect![[r#"
        > half-close
        = from 1: Run proposed #1 suspended on #1 after entry 0
        = slot free"#]],
    );
}

// Failures.

/// The end of an attempt whose response has this head.
fn after_head(status: u16, headers: &[(&'static str, &str)]) -> String {
    let mut world = World::new();
    world.start(|_| ());
    world.head_with(status, headers);
    let story = world.story();
    let line = story.lines().find(|line| line.starts_with("= failed")).expect("the attempt fails");
    line.to_owned()
}

#[test]
fn responses_that_are_none_fail_the_attempt_and_say_why() {
    let told = [
        after_head(200, &[("content-type", "text/html")]),
        after_head(200, &[]),
        after_head(404, &[]),
        after_head(413, &[]),
        after_head(415, &[]),
        after_head(502, &[]),
        after_head(503, &[]),
    ];
    expect![[r#"
        = failed: the response has content type text/html instead of application/vnd.restate.invocation.v6 (RT0012); again in 500 ms
        = failed: the response has content type none instead of application/vnd.restate.invocation.v6 (RT0012); again in 500 ms
        = failed: the deployment answers 404 Not Found: it does not serve this handler any more; bring the handler back, or register the deployment again with "force": true (SF3005); again in 500 ms
        = failed: a proxy refused the size of the request: 413 Payload Too Large (RT0019); again in 500 ms
        = failed (ours): the deployment does not speak protocol version 6 any more: register it again (RT0015); again in 500 ms
        = failed: the deployment cannot be reached: 502 Bad Gateway (RT0010); again in 500 ms
        = failed: the deployment is overloaded: 503 Service Unavailable (RT0023); again in 500 ms"#]]
    .assert_eq(&told.join("\n"));
}

#[test]
fn retry_after_in_seconds_or_as_a_date_replaces_the_delay_and_counts() {
    let delay = |value| after_head(429, &[("retry-after", value)]).rsplit_once("; ").unwrap().1.to_owned();
    // Never earlier, and a little later at random.
    assert_eq!(delay("7"), "again in 7700 ms");
    assert_eq!(delay("0"), "again in 20 ms");
    assert_eq!(delay("Tue, 14 Nov 2023 22:13:50 GMT"), "again in 33000 ms");
    assert_eq!(delay("Tue, 14 Nov 2023 22:13:10 GMT"), "again in 20 ms");
    assert_eq!(delay("31536000"), "again in 3600000 ms");
    assert_eq!(delay("soon"), "again in 500 ms");
}

#[test]
fn streams_that_break_or_end_early_are_tried_again() {
    let mut world = World::new();
    world.refuse(TransportError::Connect { address: "http://handlers/".into(), message: "refused".into() });
    world.start(|start| start.attempts_counted = 2);
    check(
        &world,
        expect![
            "= failed (ours): cannot connect to http://handlers/: refused (RT0010); again in 2000 ms, not counted\n= slot free"
        ],
    );
    world.start(|_| ());
    world.head();
    world.writes(&[wire::set_state(b"a", b"1")]);
    world.story();
    world.event(ExchangeEvent::End);
    check(
        &world,
        expect![[r#"
            > half-close
            = failed: the handler's response ended before the invocation did; again in 500 ms
            = slot free"#]],
    );
}

#[test]
fn a_deployment_that_cannot_be_reached_is_tried_by_one_at_a_time_and_the_others_hear_when_to_ask() {
    let mut world = World::with(Settings { attempts_max: 9, ..settings() }, StreamMode::Bidirectional);
    let destination = Destination::Newest("Object".into());
    let refusal = || TransportError::Connect { address: "http://handlers/".into(), message: "refused".into() };
    for _ in 0..3 {
        assert!(world.invoker.has_share(&destination));
        world.refuse(refusal());
        world.start(|_| ());
    }
    world.story();
    let why = Some("cannot connect to http://handlers/: refused".to_owned());
    assert_eq!((world.invoker.share_left(&destination), world.invoker.why_unreachable(&destination)), (0, why.clone()));
    world.pass(99 * MS);
    check(&world, expect![""]);
    world.pass(MS);
    check(&world, expect!["= room for replays\n= room for replays"]);
    assert_eq!(world.invoker.share_left(&destination), 1);
    world.refuse(refusal());
    world.start(|_| ());
    check(
        &world,
        expect![
            "= failed (ours): cannot connect to http://handlers/: refused (RT0010); again in 500 ms, not counted\n= slot free"
        ],
    );
    world.pass(199 * MS);
    assert_eq!((world.invoker.share_left(&destination), world.invoker.why_unreachable(&destination)), (0, why), "pauses grow");
    world.pass(MS);
    check(&world, expect!["= room for replays\n= room for replays"]);
    world.start(|_| ());
    world.head();
    assert_eq!((world.invoker.share_left(&destination) > 0, world.invoker.why_unreachable(&destination)), (true, None));
    assert_eq!(world.requests(), 5);
}

/// A port that takes connections and is silent cost each of those that waited an attempt, and after 70 of them all were paused.
#[test]
fn nobody_behind_a_port_counts_as_a_closed_port_also_once_the_request_was_refused() {
    let address = || "http://handlers/".to_owned();
    let kinds = [
        || TransportError::NoHttp2 { address: "http://handlers/".into(), message: "says nothing".into() },
        || TransportError::Http1Peer { address: "http://handlers/".into() },
    ];
    let destination = Destination::Newest("Object".into());
    for kind in kinds {
        let mut world = World::new();
        for _ in 0..2 {
            world.refuse(kind());
            world.start(|_| ());
            assert!(world.story().contains("ms, not counted"));
        }
        assert_eq!(world.invoker.why_unreachable(&destination), None);
        // Opened, refused by its peer, and there is no other one.
        world.start(|_| ());
        world.event(ExchangeEvent::Error(kind()));
        assert!(world.story().contains("ms, not counted"));
        assert_eq!(world.invoker.why_unreachable(&destination), None, "it was connected to in between");
        for _ in 0..2 {
            world.refuse(kind());
            world.start(|_| ());
        }
        assert_eq!(world.invoker.why_unreachable(&destination), Some(kind().to_string()));
    }
    // What a handler may have is counted.
    let mut world = World::new();
    for error in [TransportError::Broken("reset".to_owned()), TransportError::Address(address())] {
        world.start(|_| ());
        world.event(ExchangeEvent::Error(error));
        assert!(!world.story().contains("not counted"));
    }
}

/// Each opening counted as a connection, so that failures in a row never became many: a port that takes connections of HTTP/1.1 and
/// closes them was never out of reach, and each invocation there was tried again and again at its first interval.
#[test]
fn a_connection_of_http11_counts_once_its_peer_answers_or_has_not_closed_it_for_a_while() {
    let refused = || ExchangeEvent::Error(TransportError::Connect { address: "http://handlers/".into(), message: "left".into() });
    let destination = Destination::Newest("Object".into());
    let mut world = World::over_http1();
    for _ in 0..3 {
        assert!(world.invoker.has_share(&destination));
        world.start(|_| ());
        world.event(refused());
        assert!(world.story().contains("ms, not counted"));
    }
    let why = world.invoker.why_unreachable(&destination);
    assert_eq!((world.invoker.share_left(&destination), why.is_some()), (0, true), "three in a row were closed at once");
    world.pass(100 * MS);
    assert_eq!(world.invoker.share_left(&destination), 1);
    // The peer keeps the connection: its handler may think for hours before its response begins, and the others do not wait for that.
    world.start(|_| ());
    world.pass(900 * MS);
    assert_eq!(
        (world.invoker.share_left(&destination), world.invoker.why_unreachable(&destination)),
        (0, why),
        "it may still be closed"
    );
    world.pass(100 * MS);
    assert_eq!(world.invoker.why_unreachable(&destination), None);
    world.abort();
    // An answer tells at once, and is no failure of those that come after.
    for _ in 0..2 {
        world.start(|_| ());
        world.event(refused());
    }
    world.start(|_| ());
    world.head();
    world.abort();
    for _ in 0..2 {
        world.start(|_| ());
        world.event(refused());
    }
    assert_eq!(world.invoker.why_unreachable(&destination), None);
}

#[test]
fn the_handlers_word_on_its_failure_is_kept() {
    let told = |says: Says<'_>| {
        let mut world = begun();
        world.writes(&[wire::set_state(b"a", b"1"), wire::fails(says)]);
        world.story().lines().nth(1).unwrap().to_owned()
    };
    let says = Says { message: "no", ..Says::default() };
    let stories = [
        told(says),
        told(Says { delay_ms: Some(70), ..says }),
        told(Says { behavior: 1, ..says }),
        told(Says { behavior: 2, ..says }),
    ];
    expect![[r#"
        = from 1: SetState failed: no; again in 500 ms
        = from 1: SetState failed: no; again in 70 ms, not counted
        = from 1: SetState failed: no; pause
        = from 1: SetState failed: no; for good"#]]
    .assert_eq(&stories.join("\n"));
}

#[test]
fn a_long_failure_is_cut() {
    let mut world = begun();
    let (message, stacktrace) = ("ü".repeat(10_000), "s".repeat(100_000));
    world.writes(&[wire::fails(Says { message: &message, stacktrace: &stacktrace, ..Says::default() })]);
    let Some(AttemptEnd::Failed { error, .. }) = world.report().end else { panic!("it failed") };
    assert!(error.message.starts_with("üü") && error.message.ends_with("… (11808 bytes more)"), "{}", error.message.len());
    assert!(error.stacktrace.unwrap().ends_with("s… (34464 bytes more)"));
}

// What commands may not do.

/// Why an attempt fails after these frames.
fn refused(frames: &[Bytes]) -> String {
    let mut world = begun();
    world.writes(frames);
    let Some(AttemptEnd::Failed { error, .. }) = world.report().end else { panic!("it failed: {}", world.story()) };
    error.message
}

#[test]
fn no_command_names_a_state_key_that_no_table_holds() {
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    let says = "a state key of 12001 bytes is longer than the 12000 it may have (RT0017)";
    assert_eq!(refused(&[wire::set_state(&long, b"")]), says);
    assert_eq!(refused(&[wire::clear_state(&long)]), says);
    assert_eq!(refused(&[wire::lazy_state(&long, 1)]), says);
    assert_eq!(refused(&[wire::eager_state(&long)]), says);
    let mut world = begun();
    world.writes(&[wire::lazy_state(&long[1..], 1)]);
    check(&world, expect!["= from 1: 0x0402"]);
}

#[test]
fn a_completion_id_is_used_once() {
    let says = "completion id 1 is used by two commands (RT0012)";
    assert_eq!(refused(&[wire::sleep(1, 1), wire::sleep(2, 1)]), says);
    assert_eq!(refused(&[wire::run(2), wire::run(1), wire::lazy_state(b"a", 1)]), says);
    assert_eq!(refused(&[wire::call("Object", "k", "run", (1, 1))]), says);
    for (ty, raw) in [
        (entry_type::RUN, wire::completable(1)),
        (entry_type::SLEEP, wire::completable(1)),
        (entry_type::CALL, wire::call("Object", "k", "run", (1, 2)).slice(8..)),
        (entry_type::CALL, wire::call("Object", "k", "run", (2, 1)).slice(8..)),
    ] {
        let mut world = World::new();
        world.start(|start| {
            start.replay.push(command(ty, raw.clone()));
            start.commands = 2;
        });
        world.head();
        world.writes(&[wire::sleep(5, 1)]);
        let Some(AttemptEnd::Failed { error, .. }) = world.report().end else { panic!("it failed") };
        assert_eq!((error.message.as_str(), error.command.unwrap().0), (says, 2), "a command of type {ty:#06x} took it");
    }
}

#[test]
fn a_call_that_cannot_be_says_what_would_help() {
    let call = |service, key| refused(&[wire::call(service, key, "run", (1, 2))]);
    assert_eq!(call("Nope", "k"), "cannot call Nope/run: service not found; register a deployment that serves it (RT0018)");
    assert_eq!(call("Object", ""), "a call of Object/run needs a key (RT0018)");
    assert_eq!(
        call("Object", &"k".repeat(KEY_BYTES_MAX + 1)),
        "cannot call Object/run: the key has 12001 bytes, more than the 12000 that a key may have (RT0017)"
    );
}

// Sizes.

#[test]
fn a_journal_that_grows_without_end_is_paused_and_may_still_end() {
    let told = |settings: Settings, frames: &[Bytes]| {
        let mut world = World::with(settings, StreamMode::Bidirectional);
        world.start(|_| ());
        world.head();
        world.story();
        world.writes(frames);
        world.story()
    };
    let by_entries = Settings { journal_entries_max: 5, ..settings() };
    expect![[r#"
        = from 1: Sleep Sleep failed: the journal has 5 entries and may not grow: let the handler do less in one invocation, and kill this one; or raise worker.invoker.journal-entries-limit, start again, and resume it (SF3001); pause
        = slot free"#]]
    .assert_eq(told(by_entries.clone(), &[wire::sleep(9, 1), wire::sleep(9, 2), wire::run(3)]).trim_start_matches("> half-close\n"));
    let by_bytes = Settings { journal_bytes_max: 1_000, ..settings() };
    let says = told(by_bytes, &[wire::set_state(b"a", &[0; 900]), wire::set_state(b"a", &[0; 90])]);
    assert!(says.contains("from 1: SetState failed: the journal has") && says.contains("journal-size-limit"), "{says}");
    let ends = told(by_entries, &[wire::sleep(9, 1), wire::sleep(9, 2), wire::output(b""), wire::end()]);
    assert!(ends.contains("from 1: Sleep Sleep Output completed"), "{ends}");
}

#[test]
fn values_of_state_are_asked_for_no_faster_than_they_come() {
    let mut world = begun();
    let frames: Vec<Bytes> = (1..=40).map(|id| wire::lazy_state(b"a", id)).collect();
    world.writes(&frames);
    world.writes(&[wire::output(b""), wire::end()]);
    let asked = |world: &World| (0..world.reports()).map(|at| world.report_at(at).items.len()).sum::<usize>();
    assert_eq!(asked(&world), 16, "the key has none");
    assert_eq!(world.unread(), 1);
    let value = |id| completion(entry_type::GET_LAZY_STATE_COMPLETION, id, Resolution::Value("v".into()));
    for id in 1..=10 {
        world.notify(16 + id, value(id));
        world.sync();
    }
    assert_eq!(asked(&world), 26, "values are small");
    assert_eq!(world.reports(), 26, "each is read by an event of its own");
    for id in 11..=40 {
        world.notify(16 + id, value(id));
        world.sync();
    }
    assert_eq!(world.report().end, Some(AttemptEnd::Completed));
}

/// With one large value on its way the next was asked for at once, and the one after that.
#[test]
fn a_large_value_is_taken_before_the_next_one_is_asked_for() {
    let mut world = World::new();
    world.start(|start| start.read_bytes_max = UNSENT_BYTES_MAX as u64 + 1);
    world.head();
    let value =
        |id| completion(entry_type::GET_LAZY_STATE_COMPLETION, id, Resolution::Value(Bytes::from(vec![0; UNSENT_BYTES_MAX + 1])));
    world.writes(&(1..=8).map(|id| wire::lazy_state(b"a", id)).collect::<Vec<_>>());
    assert_eq!(world.reports(), 3, "so many of this size may be awaited");
    world.sync();
    world.notify(16, value(1));
    assert_eq!(world.reports(), 4);
    world.sync();
    world.unsent(UNSENT_BYTES_MAX + 1);
    world.notify(17, value(2));
    assert_eq!(world.reports(), 4, "the handler does not read");
    world.unsent(UNSENT_BYTES_MAX);
    assert_eq!(world.reports(), 5);
}

/// Each attempt had its first value read at once, however many there were, and however large their values.
#[test]
fn reads_of_all_attempts_have_one_bound() {
    let mut world = World::with(Settings { read_bytes_max: 1_000, attempts_max: 3, ..settings() }, StreamMode::Bidirectional);
    let start = |world: &mut World, bytes| {
        world.start(|start| start.read_bytes_max = bytes);
        world.head();
        world.writes(&[wire::lazy_state(b"a", 1)]);
    };
    start(&mut world, 800);
    let first = world.take_live();
    start(&mut world, 300);
    assert_eq!(world.reports(), 1, "the second one waits");
    let value = completion(entry_type::GET_LAZY_STATE_COMPLETION, 1, Resolution::Value("v".into()));
    first.notify(Live { index: 2, notification: value });
    world.run();
    assert_eq!(world.reports(), 2);
    // One that is aborted gives it back as well, and any passes alone.
    drop(first);
    world.abort();
    start(&mut world, 1 << 30);
    assert_eq!(world.reports(), 3);
}

/// Reads of a deployment that had brought much held the room of all reads while they waited for memory, and others had some.
#[test]
fn who_waits_for_memory_holds_no_room_for_reads() {
    let asks = |world: &mut World, service, bytes| {
        world.start(|start| {
            start.target = Target::new(TargetKind::ObjectExclusive, service, "k", "run");
            start.read_bytes_max = bytes;
        });
        world.head();
        world.take_live()
    };
    let reads = [wire::lazy_state(b"a", 1)];
    let answer = || {
        let notification = completion(entry_type::GET_LAZY_STATE_COMPLETION, 1, Resolution::Value("v".into()));
        Live { index: 2, notification }
    };
    let room = || Settings { read_bytes_max: 1_000, attempts_max: 9, ..settings() };
    // It comes when there is no memory.
    let mut world = World::with(room(), StreamMode::Bidirectional);
    let much = asks(&mut world, "Object", 800);
    world.is_much(Some(world::DEPLOYMENT));
    world.writes(&reads);
    let other = asks(&mut world, "Other", 800);
    world.writes(&reads);
    assert_eq!(world.reports(), 1, "of the other one");
    world.is_much(None);
    assert_eq!(world.reports(), 1, "the other has the room");
    other.notify(answer());
    world.run();
    assert_eq!(world.reports(), 2);
    drop((much, other));
    // The memory has gone by the time at which it has room.
    let mut world = World::with(room(), StreamMode::Bidirectional);
    let first = asks(&mut world, "Other", 800);
    world.writes(&reads);
    let much = asks(&mut world, "Object", 800);
    world.writes(&reads);
    world.is_much(Some(world::DEPLOYMENT));
    first.notify(answer());
    world.run();
    let other = asks(&mut world, "Other", 800);
    world.writes(&reads);
    assert_eq!(world.reports(), 2, "of the other deployment");
    other.notify(answer());
    world.run();
    world.is_much(None);
    assert_eq!(world.reports(), 3);
    let tickets = ["reported", "taken", "waits", "reported", "reported", "gone"];
    assert_eq!(world.tickets(), tickets, "it keeps its place until it is in");
    drop((first, much, other));
}

/// Bytes that the room for parts takes.
const HALF: usize = 130 << 10;

/// A message of many times as many bytes.
fn large() -> Bytes {
    wire::set_state(b"a", &[0; 700 << 10])
}

/// An attempt that brings twice as many bytes of it, in two pieces; how many of these are not read.
fn brings_a_part(world: &mut World) -> usize {
    let frame = large();
    world.start(|_| ());
    world.head();
    world.writes(&[frame.slice(..HALF)]);
    world.writes(&[frame.slice(HALF..2 * HALF)]);
    world.unread()
}

fn with_room_for_a_part(attempts_max: usize) -> World {
    World::with(Settings { part_bytes_max: HALF, attempts_max, ..settings() }, StreamMode::Bidirectional)
}

/// Each of hundreds of attempts held the first bytes of a large message, or a whole one that waited to be reported.
#[test]
fn messages_that_have_come_in_part_have_one_bound() {
    let frame = large();
    let mut world = with_room_for_a_part(4);
    assert_eq!(brings_a_part(&mut world), 0, "the first one has all the room");
    let first = world.take_live();
    assert_eq!(brings_a_part(&mut world), 0, "one grows beyond it");
    let second = world.take_live();
    assert_eq!(brings_a_part(&mut world), 1, "all others wait");
    // One is aborted, and gives back what it took.
    drop(first);
    world.run();
    assert_eq!(world.unread(), 0);
    world.writes(&[frame.slice(2 * HALF..)]);
    assert_eq!(world.reports(), 1);
    drop(second);
}

/// Results of 31 MiB came one after the other while memory was full of those before, and waited in it until they could be reported.
#[test]
fn a_message_that_is_larger_than_the_room_of_all_is_not_received_before_memory_has_room_for_it() {
    let mut world = with_room_for_a_part(9);
    world.start(|_| ());
    world.head();
    world.is_much(Some(world::DEPLOYMENT));
    let frame = large();
    world.writes(&[frame.slice(..HALF)]);
    world.writes(&[frame.slice(HALF..2 * HALF)]);
    assert_eq!(world.unread(), 1, "the rest of it waits");
    let much = world.take_live();
    let other = |world: &mut World| {
        world.start(|start| start.target = Target::new(TargetKind::ObjectExclusive, "Other", "k", "run"));
        world.head();
        world.writes(&[large()]);
        world.take_live()
    };
    let first = other(&mut world);
    assert_eq!(world.reports(), 1, "it holds nothing that those of another deployment need");
    world.is_much(None);
    assert_eq!(world.unread(), 0);
    drop((much, first));
}

/// A slow one of another deployment was ended, although it kept nobody waiting: the tables had no room.
#[test]
fn a_message_that_waits_for_memory_wants_no_room_of_others() {
    let mut world = with_room_for_a_part(9);
    world.start(|_| ());
    world.head();
    world.is_much(Some(world::DEPLOYMENT));
    world.writes(&[large().slice(..HALF)]);
    world.writes(&[large().slice(HALF..2 * HALF)]);
    let much = world.take_live();
    world.start(|start| start.target = Target::new(TargetKind::ObjectExclusive, "Other", "k", "run"));
    world.head();
    world.writes(&[large().slice(..HALF)]);
    world.story();
    world.pass(30_000 * MS);
    check(&world, expect![[r#""#]]);
    assert_eq!(world.tickets(), ["taken", "waits", "taken", "gone"]);
    world.is_much(None);
    assert_eq!((world.unread(), world.tickets()), (0, vec!["aside", "gone", "taken", "gone"]));
    drop(much);
}

/// Hundreds of attempts were started into a crowd, and each took memory while its first message waited.
#[test]
fn a_deployment_whose_messages_wait_begins_little_and_others_do_not_notice() {
    let mut world = with_room_for_a_part(99);
    let destination = Destination::Newest("Object".into());
    let mut lives: Vec<Notifier> = Vec::new();
    for waiting in 0..16 {
        while lives.len() < 2 + waiting {
            brings_a_part(&mut world);
            lives.push(world.take_live());
        }
        if waiting > 0 {
            assert_eq!(world.invoker.share_left(&destination), 16 - waiting, "what is small passes those that wait");
        }
    }
    brings_a_part(&mut world);
    lives.push(world.take_live());
    assert_eq!((world.invoker.share_left(&destination), world.invoker.has_place()), (0, true), "so many wait");
    world.story();
    // Those that came first have room; then nobody waits.
    lives.drain(..17);
    world.run();
    let story = world.story();
    assert!(story.contains("= room for replays"), "{story}");
    for left in (1..=16).rev() {
        assert_eq!(world.invoker.share_left(&destination), left, "none waits any more");
        world.start(|_| ());
        lives.push(world.take_live());
    }
    assert_eq!(world.invoker.share_left(&destination), 0);
    world.head();
    assert!(!world.invoker.has_share(&destination), "a response says nothing of what it brings");
    world.story();
    world.writes(&[wire::set_state(b"a", b"1")]);
    check(&world, expect!["= from 1: SetState"]);
    assert_eq!(world.invoker.share_left(&destination), 2, "twice as many as are heard of");
    world.pass(100 * MS);
    check(&world, expect![""]);
    assert_eq!(world.invoker.share_left(&destination), 32, "those that bring nothing are not waited for");
}

#[test]
fn attempts_begin_as_fast_as_others_bring_something() {
    let mut world = World::with(Settings { attempts_max: 10_000, ..settings() }, StreamMode::Bidirectional);
    let destination = Destination::Newest("Object".into());
    let mut lives = Vec::new();
    let mut begin = |world: &mut World| {
        let mut begun = 0;
        while world.invoker.share_left(&destination) > 0 {
            world.start(|_| ());
            lives.push(world.take_live());
            begun += 1;
        }
        begun
    };
    assert_eq!(begin(&mut world), 256);
    world.pass(100 * MS);
    assert_eq!(begin(&mut world), 512, "it was full");
    world.pass(100 * MS);
    assert_eq!(begin(&mut world), 1_024);
    world.pass(2_000 * MS);
    assert_eq!(begin(&mut world), 256, "it was not needed for a while");
}

/// One that stopped in the middle of a large message held up those of all others until its time-outs.
#[test]
fn a_message_that_stops_while_others_wait_ends_its_attempt() {
    let mut world = with_room_for_a_part(99);
    assert_eq!(brings_a_part(&mut world), 0);
    let _first = world.take_live();
    world.pass(30_000 * MS);
    world.story();
    assert_eq!(brings_a_part(&mut world), 0);
    let _beyond = world.take_live();
    world.pass(10_000 * MS);
    check(
        &world,
        expect![[r#"
            > Start, 1 known, 0 values, retry 0
            > Input"#]],
    );
    assert_eq!(brings_a_part(&mut world), 1);
    world.story();
    world.pass(9_999 * MS);
    check(&world, expect![[r#""#]]);
    assert_eq!(world.unread(), 1);
    world.pass(MS);
    check(
        &world,
        expect![[r#"
        > half-close
        = failed: the handler stopped in the middle of a large message while others wait for memory: 0 bytes of it came in 10 s (SF3006); again in 500 ms
        > reset
        = slot free
        > half-close
        = failed: the handler stopped in the middle of a large message while others wait for memory: 0 bytes of it came in 10 s (SF3006); again in 500 ms
        > reset
        = slot free"#]],
    );
    assert_eq!(world.unread(), 0);
}

/// The least rate is 64 KiB in 10 s.
#[test]
fn a_message_that_comes_slowly_while_others_wait_is_let_come() {
    let frame = large();
    let mut world = with_room_for_a_part(99);
    let mut lives = Vec::new();
    for _ in 0..3 {
        brings_a_part(&mut world);
        lives.push(world.take_live());
    }
    world.story();
    for piece in 0..8 {
        let from = 2 * HALF + piece * (40 << 10);
        for attempt in 0..2 {
            world.writes_at(attempt, &[frame.slice(from..from + (40 << 10))]);
        }
        world.pass(5_000 * MS);
    }
    assert_eq!(world.unread(), 1, "one waits all the time");
    check(&world, expect![""]);
}

#[test]
fn an_attempt_waits_for_no_room_that_it_has_itself() {
    let frame = wire::set_state(b"a", &[0; 80 << 10]);
    let mut world = begin(World::with(Settings { part_bytes_max: 1, ..settings() }, StreamMode::Bidirectional));
    let all: Bytes = [frame.clone(), frame.clone(), frame].concat().into();
    // Each piece ends one message and begins the next.
    for from in (0..all.len()).step_by(50 << 10) {
        world.writes(&[all.slice(from..all.len().min(from + (50 << 10)))]);
    }
    assert_eq!((world.reports(), world.unread()), (3, 0));
}

#[test]
fn a_message_beyond_the_limit_is_refused_from_its_header() {
    let header = wire::header(entry_type::OUTPUT, (4 << 20) + 1);
    let says = "a message of type 0x0401 has 4194305 bytes; the limit is 4194304 (RT0003)";
    assert_eq!(refused(&[header.into()]), says);
}

#[test]
fn a_message_beyond_the_limit_is_not_sent() {
    let large = Bytes::from(vec![0; (5 << 20) + 1]);
    let mut world = World::new();
    world.start(|start| start.replay.push(command(entry_type::SET_STATE, large.clone())));
    check(
        &world,
        expect![[r#"
            > half-close
            = failed (ours): a message of 5242881 bytes to the handler is larger than the limit of 4194304 (RT0003); again in 500 ms
            = room for replays
            = slot free"#]],
    );
    let mut world = begun();
    world.notify(1, completion(entry_type::RUN_COMPLETION, 1, Resolution::Value(large)));
    check(
        &world,
        expect![[r#"
            > half-close
            = failed (ours): a message of 5242893 bytes to the handler is larger than the limit of 4194304 (RT0003); again in 500 ms
            = slot free"#]],
    );
}

/// What had been taken on a larger disk could not be replayed on a smaller one: its invocation failed for ever.
#[test]
fn what_is_sent_may_be_larger_than_what_is_taken() {
    let mut world = World::with(Settings { taken_bytes_max: 100, ..settings() }, StreamMode::Bidirectional);
    let large = Bytes::from(vec![0; 1 << 20]);
    world.start(|start| start.replay.push(command(entry_type::SET_STATE, large)));
    check(
        &world,
        expect![[r#"
            > Start, 2 known, 0 values, retry 0
            > Input
            > 0x0403
            = room for replays"#]],
    );
    world.head();
    world.writes(&[wire::header(entry_type::OUTPUT, 101).into()]);
    let says = world.story();
    assert!(says.contains("a message of type 0x0401 has 101 bytes; the limit is 100 (RT0003)"), "{says}");
}

#[test]
fn state_beyond_the_limit_is_cut_and_marked_partial() {
    let mut world = World::with(Settings { message_bytes_max: 100, ..settings() }, StreamMode::Bidirectional);
    let value = |name: &str| (name.into(), Bytes::from(vec![0; 30]));
    world.start(|start| start.state = EagerState { entries: vec![value("a"), value("b"), value("c")], complete: true });
    check(&world, expect!["> Start, 1 known, 2 values, partial, retry 0\n> Input"]);
}

// Bounds.

#[test]
fn a_replay_takes_its_room_before_it_runs_and_gives_it_back_once_it_is_read() {
    let mut world = World::with(Settings { attempts_max: 3, ..settings() }, StreamMode::Bidirectional);
    world.clog(UNSENT_BYTES_MAX + 1);
    let large = |start: &mut surefoot_invoker::AttemptStart| {
        start.replay = vec![command(entry_type::INPUT, wire::input(&[0; 1_000]))];
    };
    world.start(large);
    assert!(!world.invoker.try_reserve(), "one replay has all the room");
    world.head();
    world.story();
    world.writes(&[wire::run(1)]);
    assert!(!world.invoker.try_reserve(), "it may answer before it has read");
    check(&world, expect!["= from 1: Run"]);
    world.unsent(0);
    check(&world, expect!["= room for replays"]);
    assert!(world.invoker.try_reserve() && world.invoker.try_reserve(), "the handler has the replay");
    assert!(!world.invoker.try_reserve(), "three slots are taken");
    (0..2).for_each(|_| world.invoker.release());
    // An end gives back what is left.
    world.start(large);
    assert!(!world.invoker.try_reserve());
    world.story();
    world.abort();
    check(
        &world,
        expect![[r#"
        > reset
        = room for replays
        = slot free"#]],
    );
    assert!(world.invoker.try_reserve());
}

#[test]
fn a_panic_frees_slot_and_room_and_fails_the_attempt() {
    let mut world = World::new();
    world.clog(1 << 20);
    world.start(|start| start.replay = vec![command(entry_type::INPUT, wire::input(&[0; 1_000]))]);
    world.story();
    world.trap();
    check(
        &world,
        expect![[r#"
            > reset
            = failed (ours): the server failed while it ran the attempt; see its log; again in 500 ms
            = room for replays
            = slot free"#]],
    );
    assert!(world.invoker.try_reserve() && world.invoker.try_reserve());
}

#[test]
fn an_event_is_reported_before_it_grows_beyond_its_bound() {
    let mut world =
        World::with(Settings { report_bytes_max: 1 << 30, journal_bytes_max: 1 << 30, ..settings() }, StreamMode::Bidirectional);
    world.start(|_| ());
    world.head();
    world.story();
    let value = vec![0; 20 << 10];
    let frames: Vec<Bytes> = (0..7).map(|_| wire::set_state(b"a", &value)).collect();
    world.writes(&frames);
    check(
        &world,
        expect![[r#"
            = from 1: SetState SetState SetState SetState
            = from 5: SetState SetState SetState"#]],
    );
}

#[test]
fn a_handler_that_outruns_the_log_waits_and_still_hears_what_comes() {
    let mut world = with_room_for(2);
    let value = vec![0; 1_500];
    world.writes(&[wire::set_state(b"a", &value)]);
    world.writes(&[wire::set_state(b"b", &value)]);
    // The third does not fit beside the two, and nothing is read behind it.
    world.writes(&[wire::set_state(b"c", &value)]);
    world.writes(&[wire::run(1)]);
    world.notify(3, completion(entry_type::SLEEP_COMPLETION, 9, Resolution::Void));
    check(&world, expect!["= from 1: SetState\n= from 2: SetState"]);
    assert_eq!(world.unread(), 1);
    assert!(!world.invoker.has_share(&Destination::Newest("Object".into())), "another attempt would only wait, too");
    // However long it takes, the handler is not to blame.
    world.pass(700 * SECOND);
    check(&world, expect![""]);
    world.sync();
    check(&world, expect!["= from 3: SetState\n> 0x800c #9\n= from 4: Run"]);
}

#[test]
fn an_attempt_that_waits_for_the_log_can_be_aborted() {
    let mut world = with_room_for(1);
    let value = vec![0; 9_000];
    world.writes(&[wire::set_state(b"a", &value)]);
    world.writes(&[wire::set_state(b"b", &value), wire::output(b""), wire::end()]);
    check(&world, expect!["= from 1: SetState\n> half-close"]);
    world.abort();
    check(&world, expect!["> reset\n= slot free"]);
    world.sync();
    assert_eq!(world.reports(), 1);
}

/// A neighbour's report stood behind those of all attempts of a deployment that sent without end (rule O8).
#[test]
fn reports_of_a_deployment_wait_in_turn_and_those_of_another_one_behind_one_of_them() {
    let reported = |mutant| {
        let settings = Settings { report_bytes_max: 1, attempts_max: 9, mutant, ..settings() };
        let mut world = World::with(settings, StreamMode::Bidirectional);
        let mut lives: Vec<Notifier> = Vec::new();
        for service in ["Object", "Object", "Object", "Object", "Neighbour"] {
            let target = Target::new(TargetKind::Service, service, "", "run");
            world.start(|start| start.target = target);
            world.head();
            lives.push(world.take_live());
        }
        (0..5).for_each(|at| world.writes_at(at, &[wire::run(1)]));
        let may_begin = ["Object", "Neighbour"].map(|service| world.invoker.has_share(&Destination::Newest(service.into())));
        assert_eq!(may_begin, [false; 2], "reports of both wait");
        while world.reports() < 5 {
            world.sync();
        }
        let may_begin = ["Object", "Neighbour"].map(|service| world.invoker.has_share(&Destination::Newest(service.into())));
        assert_eq!(may_begin, [true; 2]);
        (0..5).map(|at| world.report_at(at).attempt.0).collect::<Vec<_>>()
    };
    assert_eq!(reported(Mutant::None), [1, 2, 5, 3, 4]);
    assert_eq!(reported(Mutant::OneLine), [1, 2, 3, 4, 5], "the variant is caught");
}

/// No attempt of any deployment began while those of one waited to report.
#[test]
fn a_deployment_whose_reports_wait_begins_nothing_and_others_do_not_notice() {
    let mut world = with_room_for(1);
    let [object, neighbour] = ["Object", "Neighbour"].map(|service| Destination::Newest(service.into()));
    let value = vec![0; 9_000];
    world.writes(&[wire::set_state(b"a", &value)]);
    world.writes(&[wire::set_state(b"b", &value)]);
    assert!(world.invoker.has_place() && world.invoker.share_left(&neighbour) > 0);
    assert_eq!(world.invoker.share_left(&object), 0);
    world.story();
    world.sync();
    check(&world, expect!["= room for replays\n= from 2: SetState"]);
    assert!(world.invoker.share_left(&object) > 0);
}

/// Rule O6.
#[test]
fn a_handler_that_does_not_read_is_sent_nothing_more() {
    let told = |mutant| {
        let mut world = World::with(Settings { mutant, ..settings() }, StreamMode::Bidirectional);
        world.start(|_| ());
        world.head();
        world.writes(&[wire::call("Object", "k", "run", (1, 2))]);
        world.story();
        world.unsent(UNSENT_BYTES_MAX + 1);
        world.notify(2, completion(entry_type::CALL_INVOCATION_ID, 1, Resolution::Void));
        world.story()
    };
    assert_eq!((told(Mutant::None).as_str(), told(Mutant::SendUnread).as_str()), ("", "> 0x800e #1"), "the variant is caught");
    let mut world = begun();
    world.writes(&[wire::call("Object", "k", "run", (1, 2)), wire::sleep(9, 3)]);
    world.story();
    world.unsent(UNSENT_BYTES_MAX + 1);
    world.notify(3, completion(entry_type::CALL_INVOCATION_ID, 1, Resolution::Void));
    check(&world, expect![""]);
    world.unsent(UNSENT_BYTES_MAX);
    check(&world, expect!["> 0x800e #1"]);
    world.unsent(UNSENT_BYTES_MAX + 1);
    world.notify(4, completion(entry_type::CALL_COMPLETION, 2, Resolution::Value("v".into())));
    check(&world, expect![""]);
    // It can be aborted all the same.
    world.abort();
    check(&world, expect!["> reset\n= slot free"]);
}

#[test]
fn a_handler_that_falls_far_behind_suspends_and_has_the_rest_in_its_replay() {
    let mut world = begun();
    let calls: Vec<Bytes> = (0..70).map(|n| wire::call("Object", "k", "run", (2 * n + 1, 2 * n + 2))).collect();
    world.writes(&calls);
    world.sync();
    world.story();
    world.unsent(UNSENT_BYTES_MAX + 1);
    let large = Bytes::from(vec![0; 1 << 20]);
    for n in 0..70 {
        world.notify(71 + n, completion(entry_type::CALL_COMPLETION, 2 * n + 2, Resolution::Value(large.clone())));
    }
    check(&world, expect![""]);
    world.unsent(0);
    let story = world.story();
    let sent = story.lines().filter(|line| line.starts_with("> 0x800d")).count();
    assert!((20..40).contains(&sent) && story.ends_with("> half-close"), "{story}");
    world.writes(&[wire::suspends(&[140])]);
    assert!(
        matches!(world.report().end, Some(AttemptEnd::Suspended { last_delivered, .. }) if last_delivered == 70 + sent as u32)
    );
}

#[test]
fn a_handler_that_asks_for_values_and_reads_none_is_asked_to_suspend_in_time() {
    let mut world = begun();
    let frames: Vec<Bytes> = (1..=20).map(|id| wire::lazy_state(b"a", id)).collect();
    world.unsent(UNSENT_BYTES_MAX + 1);
    world.writes(&frames);
    assert_eq!((world.reports(), world.report().items.len()), (16, 1));
    world.pass(60 * SECOND);
    assert!(world.story().ends_with("> half-close"));
    for id in 1..=20 {
        world.notify(16 + id, completion(entry_type::GET_LAZY_STATE_COMPLETION, id, Resolution::Void));
        world.sync();
    }
    world.writes(&[wire::suspends(&[1])]);
    assert!(matches!(world.report().end, Some(AttemptEnd::Suspended { last_delivered: 0, .. })));
}

#[test]
fn time_since_the_last_entry_is_measured_by_the_wall_clock() {
    // A clock that went back since makes it none, not a huge one.
    let mut world = World::new();
    world.start(|start| start.last_entry_at = Timestamp(EPOCH_MS + 5_000));
    check(&world, expect!["> Start, 1 known, 0 values, retry 0\n> Input"]);
}
