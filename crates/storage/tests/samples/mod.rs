//! One entry of every table, for what must hold of all of them.

use bytes::Bytes;
use std::collections::BTreeMap;
use surefoot_machine::*;
use surefoot_model::catalog::{Deployment, HttpVersion, KafkaCluster, StreamMode, Subscription};
use surefoot_model::*;

/// Something done with an entry of each table, in the order of tags.
pub(crate) trait Each {
    fn entry<T: Table>(&mut self, key: T::Key, value: T::Value);
}

pub(crate) fn id() -> InvocationId {
    InvocationId { partition_key: 0x0102_0304_0506_0708, unique: 0xA0 }
}

pub(crate) fn stream() -> StreamId {
    StreamId { subscription: SubscriptionId(0x5B), epoch: 2, topic: 0x70, partition: -1 }
}

pub(crate) fn object() -> ObjectKey {
    ObjectKey { service: "Cart".into(), key: "a\0ü".into() }
}

pub(crate) fn invocation() -> Invocation {
    Invocation {
        incarnation: Incarnation(4),
        target: Target::new(TargetKind::ObjectExclusive, "Cart", "a", "add"),
        idempotency_key: Some("once".into()),
        origin: Origin::Subscription(SubscriptionId(0x5B)),
        created_at: Timestamp(1),
        modified_at: Timestamp(2),
        execute_at: Some(Timestamp(3)),
        retention: Retention { completion_ms: 9, journal_ms: 8 },
        random_seed: 77,
        waiters: 3,
        stage: Stage::Completed {
            outcome: Outcome::Failure(Failure::killed()),
            completed_at: Timestamp(5),
            expires_at: Timestamp(6),
            journal_len: 7,
            attempts: 1,
        },
    }
}

pub(crate) fn every_table(each: &mut impl Each) {
    let (id, at) = (id(), Timestamp(0x0A0B));
    each.entry::<Meta>((), MetaRow { epoch: Epoch(3), now: at, last_attempt: Attempt(9), ..MetaRow::default() });
    each.entry::<Invocations>(id, invocation());
    let raw = Bytes::from_static(b"\x0a\x00raw");
    let (life, generation) = (Incarnation(4), 0x6E);
    each.entry::<Journal>(JournalKey { life, index: 5 }, Entry::Command { ty: entry_type::RUN, raw });
    each.entry::<Objects>(object(), ObjectRow { owner: Some(id), head: 1, tail: 4, waiting: 2, needed: 1 });
    each.entry::<Inbox>(InboxKey { object: object(), slot: 6 }, id);
    let key = StateKey { object: object(), generation, name: "count".into() };
    each.entry::<StateValues>(key.clone(), StateValue { bytes: Bytes::from_static(b"{}") });
    each.entry::<StateNames>(key, 2);
    let owner = TimerOwner::Invocation { life: Life { id, incarnation: life }, slot: 1 };
    each.entry::<Timers>(TimerKey { due: at, owner }, ());
    each.entry::<Running>(RunningKey { class: AttemptClass::Fresh, turn: 12 }, id);
    let key = ExpiryKey { at, id, journal_only: true };
    each.entry::<Expiries>(key, ExpiryRow { incarnation: Incarnation(4), evictable_bytes: 99 });
    let caller = Caller { partition: PartitionId(7), id, incarnation: Incarnation(4), completion: 1 };
    let result = CalleeResult { caller, outcome: Outcome::Success(Bytes::from_static(b"yes")) };
    each.entry::<Outbox>(OutboxKey { to: PartitionId(7), sequence: 8 }, Message::Result(Box::new(result)));
    each.entry::<Outboxes>(PartitionId(7), OutboxRow { last: 8, acked: 7 });
    each.entry::<Inbound>(PartitionId::CATALOG, 41);
    each.entry::<Streams>(stream(), -5);
    each.entry::<Sources>(SubscriptionId(0x5B), SourceRow { epoch: 2, last_parked: 3, parked: 1, parked_bytes: 9 });
    let parked = ParkedRecord {
        source: SourceRecord { stream: stream(), offset: 17 },
        topic: "orders".into(),
        timestamp: Some(at),
        key: Bytes::from_static(b"k"),
        has_key: true,
        value: Bytes::from_static(&[0xFF, 0]),
        bytes: 3,
        value_hash: [7; 32],
        headers: vec![("h".into(), "v".into())],
        reason: "no such handler".to_owned(),
    };
    each.entry::<Parked>(ParkedKey { subscription: SubscriptionId(0x5B), number: 3 }, parked);
    let deployment = Deployment {
        id: DeploymentId(0xD0),
        uri: "http://localhost:9080/".to_owned(),
        http: HttpVersion::Http2,
        mode: StreamMode::Bidirectional,
        additional_headers: BTreeMap::from([("x-a".to_owned(), "b".to_owned())]),
        metadata: BTreeMap::new(),
        created_at: at,
        min_protocol: 5,
        max_protocol: 6,
        sdk_version: None,
        services: Vec::new(),
    };
    each.entry::<CatalogRows>(CatalogKey::Deployment(deployment.id), CatalogRow::Deployment(deployment));
    let cluster = KafkaCluster { name: "main".into(), properties: BTreeMap::new(), created_at: at };
    each.entry::<CatalogRows>(CatalogKey::KafkaCluster("main".into()), CatalogRow::KafkaCluster(cluster));
    let subscription = Subscription {
        id: SubscriptionId(0x5B),
        cluster: "main".into(),
        topic: "orders".into(),
        service: "Cart".into(),
        handler: "add".into(),
        options: BTreeMap::from([("group.id".to_owned(), "g".to_owned())]),
        created_at: at,
        epoch: 2,
        topic_id: 0x70,
        resolved: true,
        closing: None,
    };
    each.entry::<CatalogRows>(CatalogKey::Subscription(subscription.id), CatalogRow::Subscription(subscription));
    each.entry::<CatalogRows>(CatalogKey::Position(stream()), CatalogRow::Position(-3));
    let sizes = (2, 9, 700, 400);
    let (values, name_bytes, value_bytes, value_bytes_max) = sizes;
    each.entry::<States>(object(), StateRow { generation, values, name_bytes, value_bytes, value_bytes_max });
    each.entry::<Open>(OpenKey { life, completion: 9 }, OpenCompletion::Sleep { until: at });
    each.entry::<Waiters>(WaiterKey { callee: life, caller }, ());
    let after = Some("count".into());
    each.entry::<Chores>(5, Chore::ClearState { object: object(), generation, left: 7, after });
    each.entry::<ChorePages>(ChorePageKey { chore: 5, page: 1 }, vec!["count".into(), "".into()]);
    each.entry::<Listings>(ListingKey { generation, chore: 5 }, ());
    each.entry::<ChoreOutcomes>(5, Outcome::Success(Bytes::from_static(b"yes")));
}
