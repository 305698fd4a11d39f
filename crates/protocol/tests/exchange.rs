//! The worked exchange of the protocol reference (section 12.6) byte for byte, observed bodies (12.5), and hostile input.

#![allow(clippy::unwrap_used, reason = "a test says where it fails")]

use bytes::Bytes;
use proptest::prelude::*;
use surefoot_model::{
    Action, Entry, Failure, InvocationId, Notification, NotificationId, Outcome, Resolution, Timestamp, entry_type,
};
use surefoot_protocol::{
    Behavior, Command, Frame, FrameDecoder, Message, Outgoing, Start, Violation, decode, encode_input, encode_input_head,
};

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn frame(text: &str) -> Frame {
    let mut frames = FrameDecoder::new(1 << 20);
    frames.push(hex(text).into());
    frames.next_frame().unwrap().unwrap()
}

fn read(text: &str) -> Message {
    decode(frame(text)).unwrap()
}

fn id() -> InvocationId {
    InvocationId::from_bytes(std::array::from_fn(|i| i as u8 + 1))
}

fn start(version: u8, known_entries: u32) -> Vec<u8> {
    let start = Start {
        id: id(),
        debug_id: &id().to_string(),
        known_entries,
        state: &[],
        complete_state: false,
        key: "",
        retries_since_entry: 0,
        since_entry_ms: 0,
        random_seed: 42,
    };
    let mut out = Outgoing::with_capacity(100);
    out.start(&start, version);
    out.take().flatten().collect()
}

fn entry(entry: &Entry, version: u8) -> Vec<u8> {
    let mut out = Outgoing::with_capacity(100);
    out.entry(entry, version);
    out.take().flatten().collect()
}

fn notification(ty: u16, completion: u32, result: Resolution) -> Entry {
    Entry::Notification(Notification { ty, id: NotificationId::Completion(completion), result })
}

#[test]
fn a_body_stands_behind_all_else_of_an_input() {
    for body in ["", "b", &"b".repeat(1 << 20)] {
        for headers in [vec![], vec![("k", "v"), ("l", "w")]] {
            let head = encode_input_head(&headers, body.len());
            assert_eq!([&head, body.as_bytes()].concat(), encode_input(&headers, body.as_bytes()));
        }
    }
}

#[test]
fn the_worked_exchange_is_byte_for_byte_the_published_one() {
    let v6 = "0000000000000048 0a18 0102030405060708090a0b0c0d0e0f101112131415161718
        1226 696e765f3130474a667930474750495a304a736d4932596869687768624c7a447468304a767a 1801 2801 482a";
    assert_eq!(start(6, 1), hex(v6));
    let v5 = v6.replace("482a", "").replace("0000000000000048", "0000000000000046");
    assert_eq!(start(5, 1), hex(&v5));
    let input = Entry::Command { ty: entry_type::INPUT, raw: encode_input(&[("k", "v")], b"\"in\"") };
    assert_eq!(entry(&input, 6), hex("0400000000000010 0a06 0a016b 120176 7206 0a04 22696e22"));
    let run = "0411000000000008 5801 6204 73746570";
    let Message::Command { ty, raw, command: Command::Act(action) } = read(run) else { panic!("a command") };
    assert_eq!(action, Action::Run { completion: 1 });
    assert_eq!(entry(&Entry::Command { ty, raw }, 6), hex(run), "replayed as it came");
    let outcome = Outcome::Success("\"R\"".into());
    assert_eq!(read("0005000000000007 0801 7203 225222"), Message::RunProposed { completion: 1, outcome: outcome.clone() });
    let completion = notification(entry_type::RUN_COMPLETION, 1, outcome.into());
    assert_eq!(entry(&completion, 6), hex("8011000000000009 0801 2a05 0a03 225222"));
    let Message::Command { raw, command: Command::Act(Action::Succeed { value: (from, len) }), .. } =
        read("0401000000000007 7205 0a03 225222")
    else {
        panic!("an output")
    };
    assert_eq!(&raw[from as usize..(from + len) as usize], b"\"R\"");
    assert_eq!(read("0003000000000000"), Message::Ended);
    assert_eq!(
        read("0001000000000006 0a0101 120101"),
        Message::Suspended { awaiting: vec![NotificationId::Completion(1), NotificationId::Signal(1)] }
    );
}

#[test]
fn empty_values_stay_on_the_wire() {
    let empty = notification(entry_type::RUN_COMPLETION, 1, Resolution::Value(Bytes::new()));
    assert_eq!(entry(&empty, 6), hex("8011000000000004 0801 2a00"));
    let void = notification(entry_type::SLEEP_COMPLETION, 3, Resolution::Void);
    assert_eq!(entry(&void, 6), hex("800c000000000004 0803 2200"));
    let keys = notification(entry_type::GET_LAZY_STATE_KEYS_COMPLETION, 1, Resolution::StateKeys(vec![]));
    assert_eq!(entry(&keys, 6), hex("8006000000000005 0801 8a0100"));
    let listing = notification(entry_type::GET_LAZY_STATE_KEYS_COMPLETION, 4, Resolution::StateKeys(vec!["b".into()]));
    assert_eq!(entry(&listing, 6), hex("8006000000000008 0804 8a0103 0a0162"));
    let Message::RunProposed { outcome, .. } = read("0005000000000004 0801 7200") else { panic!("a proposal") };
    assert_eq!(outcome, Outcome::Success(Bytes::new()));
    let Message::Command { command: Command::Act(action), .. } = read("0401000000000002 7200") else { panic!("an output") };
    assert_eq!(action, Action::Succeed { value: (0, 0) });
}

#[test]
fn failure_metadata_is_left_out_at_v5() {
    let failure = Failure { code: 418, message: "nope".into(), metadata: vec![("a".into(), "b".into())], stacktrace: None };
    let result = notification(entry_type::CALL_COMPLETION, 2, Resolution::Failure(failure.clone()));
    assert_eq!(entry(&result, 6), hex("800d000000000015 0802 3211 08a203 1204 6e6f7065 1a06 0a0161 120162"));
    assert_eq!(entry(&result, 5), hex("800d00000000000d 0802 3209 08a203 1204 6e6f7065"));
    let output = read("0401000000000013 7a11 08a203 1204 6e6f7065 1a06 0a0161 120162");
    let Message::Command { command: Command::Act(action), .. } = output else { panic!("an output") };
    assert_eq!(action, Action::Fail(failure));
}

#[test]
fn a_value_has_the_same_bytes_whether_it_is_copied_or_passed_on_by_reference() {
    for len in [8 * 1024 - 1, 8 * 1024, 100_000] {
        let content = Bytes::from(vec![7; len]);
        let mut out = Outgoing::default();
        let Entry::Notification(value) = notification(entry_type::CALL_COMPLETION, 300, Resolution::Value(content.clone()))
        else {
            unreachable!("it is one")
        };
        out.notification(&value, 6);
        let largest = out.largest_message_bytes();
        let chunks: Vec<Bytes> = out.take().collect();
        assert_eq!(chunks.iter().any(|chunk| chunk.as_ptr() == content.as_ptr()), len >= 8 * 1024, "{len} bytes");
        let mut frames = FrameDecoder::new(1 << 20);
        frames.push(chunks.concat().into());
        let frame = frames.next_frame().unwrap().unwrap();
        assert_eq!((frame.ty, frame.payload.len()), (entry_type::CALL_COMPLETION, largest));
        // Completion id 300, then the value within a value.
        assert_eq!(frame.payload[..3], hex("08 ac 02"));
        assert!(frame.payload.ends_with(&content));
    }
}

#[test]
fn small_frames_that_would_grow_when_they_are_read_are_refused() {
    let refused = |ty: u16, payload: Vec<u8>| match decode(Frame { ty, payload: payload.into() }) {
        Err(Violation::Illegal(message)) => message,
        other => panic!("refused: {other:?}"),
    };
    // 33 million ids of one byte, and the same a little smaller than a frame may be.
    let ids = |n: usize| {
        let mut payload = vec![0x0a];
        prost::encoding::encode_varint(n as u64, &mut payload);
        payload.resize(payload.len() + n, 1);
        payload
    };
    assert!(refused(0x0001, ids(33_000_000)).contains("bytes"));
    assert!(refused(0x0001, ids(600_000)).contains("600000 things"));
    // Metadata of a failed run, and headers of a call: two bytes each.
    let pairs = |tag: u8, n: usize| [tag << 3 | 2, 0].repeat(n);
    let inside = |tag: u8, inner: Vec<u8>| {
        let mut payload = vec![tag << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut payload);
        [payload, inner].concat()
    };
    let with_id = |payload: Vec<u8>| [hex("08 01"), payload].concat();
    assert!(refused(0x0005, with_id(inside(15, pairs(3, 1_001)))).contains("1001 headers or pieces of metadata"));
    assert!(decode(Frame { ty: 0x0005, payload: with_id(inside(15, pairs(3, 1_000))).into() }).is_ok());
    assert!(refused(entry_type::OUTPUT, inside(15, pairs(3, 1_001))).contains("1001"));
    assert!(refused(entry_type::CALL, pairs(4, 1_001)).contains("1001"));
    assert!(refused(entry_type::ONE_WAY_CALL, pairs(5, 1_001)).contains("1001"));
}

#[test]
fn the_id_of_a_callee_is_told_as_text() {
    let told = notification(entry_type::CALL_INVOCATION_ID, 1, Resolution::InvocationId(id()));
    let mut expected = hex("800e00000000002b 0801 820126");
    expected.extend_from_slice(id().to_string().as_bytes());
    assert_eq!(entry(&told, 6), expected);
}

#[test]
fn state_commands_and_sleeps_are_read() {
    let Message::Command { raw, command: Command::Act(action), .. } = read("0403000000000008 0a016e 1a03 0a0131") else {
        panic!("a set")
    };
    assert_eq!(action, Action::SetState { key: "n".into(), value: (7, 1) });
    assert_eq!(&raw[7..8], b"1");
    let Message::Command { command: Command::Act(action), .. } = read("040c00000000000e 08c984d9b2a034 5803 6203 6e6170") else {
        panic!("a sleep")
    };
    assert_eq!(action, Action::Sleep { until: Timestamp(1_795_402_646_089), completion: 3 });
    let Message::Command { command: Command::Act(action), .. } = read("0407000000000005 0a016e 6a00") else { panic!("a get") };
    assert_eq!(action, Action::Keep);
}

#[test]
fn one_way_calls_have_their_fields_one_tag_higher() {
    let Message::Command { command: Command::Call(call), .. } =
        read("040e000000000014 0a0153 120168 1a0170 2064 3202 6b6b 3a0169 5001 5800")
    else {
        panic!("a call")
    };
    assert_eq!((call.service.as_str(), call.handler.as_str(), call.key.as_str()), ("S", "h", "kk"));
    assert_eq!(
        (call.idempotency_key.as_deref(), call.invoke_at, call.id_completion, call.result),
        (Some("i"), Some(Timestamp(100)), 1, None)
    );
    let Message::Command { command: Command::Call(call), .. } = read("040d000000000011 0a0153 120168 2a02 6b6b 320169 5002 5803")
    else {
        panic!("a call")
    };
    assert_eq!(
        (call.key.as_str(), call.idempotency_key.as_deref(), call.id_completion, call.result),
        ("kk", Some("i"), 2, Some(3))
    );
}

#[test]
fn an_error_keeps_what_the_handler_says_of_it() {
    let Message::Failed(error) = read("0002000000000017 08f403 1204626f6f6d 2001 2a05666c616b79 309108 400a") else {
        panic!("an error")
    };
    assert_eq!((error.code, error.message.as_str(), error.next_retry_delay_ms), (500, "boom", Some(10)));
    assert_eq!(error.command, Some((1, entry_type::RUN, "flaky".into())));
    assert_eq!(error.behavior, Behavior::Retry);
    let Message::Failed(error) = read("0002000000000002 4801") else { panic!("an error") };
    assert_eq!((error.behavior, error.next_retry_delay_ms), (Behavior::Pause, None));
}

#[test]
fn messages_that_a_handler_may_not_send_are_violations() {
    let violation = |text: &str| decode(frame(text)).unwrap_err();
    for text in
        ["0000000000000000", "0400000000000000", "800c000000000000", "0006000000000000", "fc01000000000000", "0001000000000000"]
    {
        assert!(matches!(violation(text), Violation::Illegal(_)), "{text}");
    }
    assert!(matches!(violation("0409000000000000"), Violation::Unsupported { ty: 0x0409, .. }));
    assert_eq!(violation("0409000000000000").code(), "SF3003", "it keeps to the protocol");
    assert!(matches!(violation("0411000000000000"), Violation::Illegal(_)), "a run needs a completion id");
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(ty: u16, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(Frame { ty, payload: payload.into() });
    }

    #[test]
    fn known_types_with_arbitrary_bodies_do_not_panic(at in 0usize..16, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let types = [0x0001, 0x0002, 0x0003, 0x0005, 0x0401, 0x0402, 0x0403, 0x0404, 0x0405, 0x0406, 0x0407, 0x0408, 0x040C, 0x040D, 0x040E, 0x0411];
        let _ = decode(Frame { ty: types[at], payload: payload.into() });
    }
}
