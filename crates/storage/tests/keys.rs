//! Keys: the bytes that are on disk, their order, and reading them back.

mod samples;

use proptest::prelude::*;
use samples::{Each, every_table};
use surefoot_machine::*;
use surefoot_model::*;
use surefoot_storage::keys;

/// Bytes of every table's key in partition 0x0102. A line that changes makes stores unreadable that were written before.
const GOLDEN: &str = "\
meta 010201
invocations 0102020102030405060708000000000000000000000000000000a0
journal 010203000000000000000400000005
objects 0102044361727400006100ffc3bc0000
inbox 0102054361727400006100ffc3bc00000000000000000006
state_values 0102064361727400006100ffc3bc0000000000000000006e636f756e740000
state_names 0102074361727400006100ffc3bc0000000000000000006e636f756e740000
timers 0102080000000000000a0b010102030405060708000000000000000000000000000000a0000000000000000400000001
running 01020902000000000000000c
expiries 01020a0000000000000a0b0102030405060708000000000000000000000000000000a001
outbox 01020b00070000000000000008
outboxes 01020c0007
inbound 01020dffff
streams 01020e0000000000000000000000000000005b00000002000000000000000000000000000000707fffffff
sources 01020f0000000000000000000000000000005b
parked 0102100000000000000000000000000000005b0000000000000003
catalog 01021101000000000000000000000000000000d0
catalog 010211026d61696e0000
catalog 010211030000000000000000000000000000005b
catalog 010211040000000000000000000000000000005b00000002000000000000000000000000000000707fffffff
states 0102124361727400006100ffc3bc0000
open 010213000000000000000400000009
waiters 010214000000000000000400070102030405060708000000000000000000000000000000a0000000000000000400000001
chores 0102150000000000000005
chore_pages 010216000000000000000500000001
listings 010217000000000000006e0000000000000005
chore_outcomes 0102180000000000000005
";

#[test]
fn keys_have_the_bytes_that_are_on_disk() {
    struct Print(String);
    impl Each for Print {
        fn entry<T: Table>(&mut self, key: T::Key, _: T::Value) {
            let bytes = keys::entry::<T>(PartitionId(0x0102), &key);
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            self.0 += &format!("{} {digits}\n", T::NAME);
        }
    }
    let mut print = Print(String::new());
    every_table(&mut print);
    assert_eq!(print.0, GOLDEN, "\n{}", print.0);
}

#[test]
fn what_is_no_key_of_a_table_is_refused() {
    struct Refuse;
    impl Each for Refuse {
        fn entry<T: Table>(&mut self, key: T::Key, _: T::Value) {
            let bytes = keys::entry::<T>(PartitionId(3), &key);
            let shorter = &bytes[..bytes.len() - 1];
            let longer = [bytes.as_slice(), &[0]].concat();
            let other = [&[0, 3, T::TAG + 1], &bytes[3..]].concat();
            for wrong in [shorter, &longer, &other] {
                let error = keys::read_entry::<T>(wrong).expect_err("no key");
                assert_eq!(error.table, T::NAME);
            }
        }
    }
    every_table(&mut Refuse);
    let escape_of_nothing = [0, 0, CatalogRows::TAG, 2, 0, 1];
    assert!(keys::read_entry::<CatalogRows>(&escape_of_nothing).is_err());
    let not_utf8 = [0, 0, CatalogRows::TAG, 2, 0xC3, 0, 0];
    assert!(keys::read_entry::<CatalogRows>(&not_utf8).is_err());
}

fn check<T: Table>(a: T::Key, b: T::Key) -> Result<(), TestCaseError> {
    let partition = PartitionId(9);
    let (of_a, of_b) = (keys::entry::<T>(partition, &a), keys::entry::<T>(partition, &b));
    prop_assert_eq!(of_a.cmp(&of_b), a.cmp(&b), "{:?} {:?}", a, b);
    prop_assert_eq!(keys::read_entry::<T>(&of_a).expect("own key"), a);
    prop_assert!(of_a == of_b || !of_b.starts_with(&of_a), "no key is another's prefix");
    Ok(())
}

/// Texts that are prefixes of one another, with bytes at the edges of the escape.
fn text() -> impl Strategy<Value = Text> {
    let part = prop::sample::select(vec!["\0", "\u{1}", "a", "b", "ÿ", "\u{10FFFF}"]);
    prop_oneof![
        4 => prop::collection::vec(part, 0..4).prop_map(|parts| Text::from(parts.concat())),
        1 => any::<String>().prop_map(Text::from),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3u64, Just(255), Just(256), Just(u64::MAX), any::<u64>()]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![0..3u32, Just(255), Just(256), Just(u32::MAX), any::<u32>()]
}

fn wide() -> impl Strategy<Value = u128> {
    (number(), number()).prop_map(|(high, low)| u128::from(high) << 64 | u128::from(low))
}

fn invocation() -> impl Strategy<Value = InvocationId> {
    (number(), wide()).prop_map(|(partition_key, unique)| InvocationId { partition_key, unique })
}

fn object() -> impl Strategy<Value = ObjectKey> {
    (text(), text()).prop_map(|(service, key)| ObjectKey { service, key })
}

fn partition() -> impl Strategy<Value = PartitionId> {
    prop_oneof![Just(0), Just(1), Just(255), Just(256), Just(u16::MAX), any::<u16>()].prop_map(PartitionId)
}

fn stream() -> impl Strategy<Value = StreamId> {
    let partition = prop_oneof![-2..3i32, Just(i32::MIN), Just(i32::MAX), any::<i32>()];
    (wide(), small(), wide(), partition).prop_map(|(subscription, epoch, topic, partition)| StreamId {
        subscription: SubscriptionId(subscription),
        epoch,
        topic,
        partition,
    })
}

fn caller() -> impl Strategy<Value = Caller> {
    (partition(), invocation(), number(), small()).prop_map(|(partition, id, incarnation, completion)| Caller {
        partition,
        id,
        incarnation: Incarnation(incarnation),
        completion,
    })
}

fn catalog() -> impl Strategy<Value = CatalogKey> {
    prop_oneof![
        wide().prop_map(|id| CatalogKey::Deployment(DeploymentId(id))),
        text().prop_map(CatalogKey::KafkaCluster),
        wide().prop_map(|id| CatalogKey::Subscription(SubscriptionId(id))),
        stream().prop_map(CatalogKey::Position),
    ]
}

proptest! {
    #[test]
    fn invocations(a in invocation(), b in invocation()) {
        check::<Invocations>(a, b)?;
        check::<Meta>((), ())?;
    }

    #[test]
    fn journal(a in (number(), small()), b in (number(), small())) {
        let key = |(life, index)| JournalKey { life: Incarnation(life), index };
        check::<Journal>(key(a), key(b))?;
        let key = |(life, completion)| OpenKey { life: Incarnation(life), completion };
        check::<Open>(key(a), key(b))?;
        let key = |(chore, page)| ChorePageKey { chore, page };
        check::<ChorePages>(key(a), key(b))?;
        check::<Chores>(a.0, b.0)?;
    }

    #[test]
    fn running(a in (any::<bool>(), number()), b in (any::<bool>(), number())) {
        let class = |needed| if needed { AttemptClass::Needed } else { AttemptClass::Fresh };
        let key = |(needed, turn)| RunningKey { class: class(needed), turn };
        check::<Running>(key(a), key(b))?;
    }

    #[test]
    fn waiters(a in (number(), caller()), b in (number(), caller())) {
        let key = |(callee, caller)| WaiterKey { callee: Incarnation(callee), caller };
        check::<Waiters>(key(a), key(b))?;
    }

    #[test]
    fn objects(a in object(), b in object()) {
        check::<Objects>(a.clone(), b.clone())?;
        check::<States>(a, b)?;
    }

    #[test]
    fn inbox(a in (object(), number()), b in (object(), number())) {
        let key = |(object, slot)| InboxKey { object, slot };
        check::<Inbox>(key(a), key(b))?;
    }

    #[test]
    fn state_values(a in (object(), number(), text()), b in (object(), number(), text())) {
        let key = |(object, generation, name)| StateKey { object, generation, name };
        check::<StateValues>(key(a.clone()), key(b.clone()))?;
        check::<StateNames>(key(a), key(b))?;
    }

    #[test]
    fn timers(a in (number(), invocation(), number(), small()), b in (number(), invocation(), number(), small())) {
        let key = |(due, id, incarnation, slot)| {
            let life = Life { id, incarnation: Incarnation(incarnation) };
            TimerKey { due: Timestamp(due), owner: TimerOwner::Invocation { life, slot } }
        };
        check::<Timers>(key(a), key(b))?;
    }

    #[test]
    fn expiries(a in (number(), invocation(), any::<bool>()), b in (number(), invocation(), any::<bool>())) {
        let key = |(at, id, journal_only)| ExpiryKey { at: Timestamp(at), id, journal_only };
        check::<Expiries>(key(a), key(b))?;
    }

    #[test]
    fn partitions(a in partition(), b in partition(), m in number(), n in number()) {
        check::<Outboxes>(a, b)?;
        check::<Inbound>(a, b)?;
        check::<Outbox>(OutboxKey { to: a, sequence: m }, OutboxKey { to: b, sequence: n })?;
    }

    #[test]
    fn sources(a in (wide(), number()), b in (wide(), number())) {
        check::<Sources>(SubscriptionId(a.0), SubscriptionId(b.0))?;
        let key = |(id, number)| ParkedKey { subscription: SubscriptionId(id), number };
        check::<Parked>(key(a), key(b))?;
    }

    #[test]
    fn streams(a in stream(), b in stream()) {
        check::<Streams>(a, b)?;
    }

    #[test]
    fn catalog_rows(a in catalog(), b in catalog()) {
        check::<CatalogRows>(a, b)?;
    }
}
