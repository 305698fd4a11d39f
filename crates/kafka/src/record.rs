//! From a Kafka record to an event (reference, HTTP API 6.3; rules K3 and K6).
//!
//! Owns: the route, the id, the headers a handler sees, and what is parked with which reason. Does not own: appending, or the
//! bound on what is parked. Everything here is a pure function of the Kafka record, the catalog and the settings.

use crate::source::KafkaRecord;
use crate::sources::Mutant;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use surefoot_model::catalog::{Defaults, Subscription};
use surefoot_model::{
    Catalog, Event, InvocationId, Origin, ParkedRecord, PartitionId, SourceRecord, StreamId, Submission, TargetKind, Text,
    Timestamp, key_hash,
};
use surefoot_protocol::{KEY_BYTES_MAX, NewSubmission, SubmissionError, build_submission};

/// Bytes of key and of value that are kept of a Kafka record that is too large.
const PREFIX_BYTES: usize = 4 << 10;
/// Names the headers of a Kafka record whose name or value no handler could be given.
const DROPPED_HEADERS: &str = "surefoot.dropped-headers";
/// Names that begin so are ours.
const OUR_PREFIXES: [&str; 2] = ["kafka.", "restate."];

/// What decides what becomes of a Kafka record, beside itself.
pub(crate) struct Mapping<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) subscription: &'a Subscription,
    pub(crate) defaults: &'a Defaults,
    /// Number of partitions.
    pub(crate) partitions: u16,
    /// A Kafka record with more bytes of key, value and headers is parked.
    pub(crate) record_bytes_max: usize,
    pub(crate) mutant: Mutant,
}

/// A header's name and value.
type Header<'r> = (Cow<'r, str>, Cow<'r, str>);

/// An event and where it goes.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) partition: PartitionId,
    pub(crate) event: Event,
    /// Why it is parked, if it is.
    pub(crate) parked: Option<Reason>,
}

/// Why a Kafka record cannot become an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    MissingKey,
    KeyNotText,
    KeyTooLong,
    TooLarge,
}

/// Why a Kafka record is not submitted.
enum Refused {
    Parked(Reason),
    /// That is not the Kafka record's fault.
    NoHandler,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Self::Parked(reason)
    }
}

impl Reason {
    /// For metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MissingKey => "missing-key",
            Self::KeyNotText => "key-not-utf8",
            Self::KeyTooLong => "key-too-long",
            Self::TooLarge => "too-large",
        }
    }
}

impl Mapping<'_> {
    /// What a Kafka record of `stream` becomes; absent while no deployment has the subscription's handler.
    pub(crate) fn event(&self, stream: StreamId, record: &KafkaRecord) -> Option<Mapped> {
        let source = SourceRecord { stream, offset: record.offset };
        let mut route = route(&source, record.key.as_deref());
        if self.mutant == Mutant::RouteByAssignment && record.key.is_none() {
            route = route.wrapping_add(record.generation << 62);
        }
        let partition = PartitionId::of(route, self.partitions);
        let (event, parked) = match self.submission(source, route, record) {
            Ok(submission) => (Event::InvocationSubmitted(Box::new(submission)), None),
            Err(Refused::Parked(reason)) => (Event::RecordParked(Box::new(self.parked(source, record, reason))), Some(reason)),
            Err(Refused::NoHandler) if self.mutant == Mutant::ParkUnknown => {
                let reason = Reason::MissingKey;
                (Event::RecordParked(Box::new(self.parked(source, record, reason))), Some(reason))
            }
            Err(Refused::NoHandler) => return None,
        };
        Some(Mapped { partition, event, parked })
    }

    fn submission(&self, source: SourceRecord, route: u64, record: &KafkaRecord) -> Result<Submission, Refused> {
        let Subscription { service, handler, .. } = self.subscription;
        let (_, found) = self.catalog.handler(service, handler).ok_or(Refused::NoHandler)?;
        if record.bytes() > self.record_bytes_max {
            return Err(Reason::TooLarge.into());
        }
        let key = match (&record.key, found.target.is_keyed()) {
            (_, false) => "",
            (None, true) => return Err(Reason::MissingKey.into()),
            (Some(key), true) => std::str::from_utf8(key).map_err(|_| Reason::KeyNotText)?,
        };
        let headers = self.headers(record);
        let unique = source.stream.hash_of(source.offset);
        let new = NewSubmission {
            service,
            handler,
            key,
            headers: &headers,
            body: record.value.clone().unwrap_or_default(),
            idempotency_key: None,
            execute_at: None,
            origin: Origin::Subscription(self.subscription.id),
        };
        let mut submission = build_submission(self.catalog, self.defaults, unique, new).map_err(|error| match error {
            // A Kafka record has no idempotency key.
            SubmissionError::KeyTooLong(_) | SubmissionError::IdempotencyKeyTooLong(_) => Refused::Parked(Reason::KeyTooLong),
            SubmissionError::UnknownService | SubmissionError::UnknownHandler => Refused::NoHandler,
        })?;
        // The id lies where every delivery of this Kafka record goes, whatever its handler is by then (rule K3).
        let unique = if submission.target.kind == TargetKind::WorkflowRun { submission.id.unique } else { unique.max(1) };
        submission.id = InvocationId { partition_key: route, unique };
        submission.source = Some(source);
        Ok(submission)
    }

    /// The headers that a handler sees: the Kafka record's own, then ours.
    fn headers<'r>(&'r self, record: &'r KafkaRecord) -> Vec<Header<'r>> {
        let (mut headers, dropped) = own_headers(record);
        let mut ours = |name: &'static str, value: Cow<'r, str>| headers.push((name.into(), value));
        ours("kafka.offset", record.offset.to_string().into());
        ours("kafka.topic", (&*self.subscription.topic).into());
        ours("kafka.partition", record.partition.to_string().into());
        if let Some(timestamp_ms) = record.timestamp_ms {
            ours("kafka.timestamp", timestamp_ms.to_string().into());
        }
        ours("restate.subscription.id", self.subscription.id.to_string().into());
        if let Some(key) = &record.key {
            ours("kafka.key", URL_SAFE.encode(key).into());
        }
        if !dropped.is_empty() {
            ours(DROPPED_HEADERS, dropped.join(",").into());
        }
        headers
    }

    fn parked(&self, source: SourceRecord, record: &KafkaRecord, reason: Reason) -> ParkedRecord {
        let is_large = reason == Reason::TooLarge;
        let kept = |bytes: &Option<Bytes>| match bytes {
            // A copy: the rest of the record should not stay in memory.
            Some(bytes) if is_large => Bytes::copy_from_slice(&bytes[..bytes.len().min(PREFIX_BYTES)]),
            Some(bytes) => bytes.clone(),
            None => Bytes::new(),
        };
        ParkedRecord {
            source,
            topic: self.subscription.topic.clone(),
            timestamp: record.timestamp_ms.map(Timestamp),
            key: kept(&record.key),
            has_key: record.key.is_some(),
            value: kept(&record.value),
            bytes: record.bytes() as u64,
            value_hash: Sha256::digest(record.value.as_deref().unwrap_or_default()).into(),
            headers: if is_large { Vec::new() } else { text_headers(record) },
            reason: self.explain(reason, record),
        }
    }

    fn explain(&self, reason: Reason, record: &KafkaRecord) -> String {
        let Subscription { service, handler, .. } = self.subscription;
        match reason {
            Reason::MissingKey => {
                format!("it has no key, and {service}/{handler} needs one: produce it with the object's key as its key")
            }
            Reason::KeyNotText => {
                format!("its key is not UTF-8, and {service}/{handler} needs one that is: produce it with a text key")
            }
            Reason::KeyTooLong => format!(
                "its key has {} bytes, more than the {} that a key may have: produce it with a shorter one",
                record.key.as_ref().map_or(0, bytes::Bytes::len),
                KEY_BYTES_MAX
            ),
            Reason::TooLarge => format!(
                "it has {} bytes, more than the {} that ingress.request-size-limit admits: raise the limit or produce it smaller",
                record.bytes(),
                self.record_bytes_max
            ),
        }
    }
}

/// The partition key of a Kafka record: of its key's bytes, whatever they are, or of stream and offset where it has none.
fn route(source: &SourceRecord, key: Option<&[u8]>) -> u64 {
    match key {
        // For a key that is text this is the key's own; any other is routed by its text with replacements.
        Some(key) => key_hash(&String::from_utf8_lossy(key)),
        None => (source.stream.hash_of(source.offset) >> 64) as u64,
    }
}

/// The headers of the Kafka record that a handler can be given: the first value of each name, and the names of those left out.
fn own_headers(record: &KafkaRecord) -> (Vec<Header<'_>>, Vec<String>) {
    let mut kept: Vec<Header<'_>> = Vec::with_capacity(record.headers.len() + 7);
    let mut seen: Vec<&str> = Vec::with_capacity(record.headers.len());
    let mut dropped = Vec::new();
    for (name, value) in &record.headers {
        if is_ours(name) || seen.iter().any(|s| s.eq_ignore_ascii_case(name)) {
            continue;
        }
        seen.push(name);
        match header_value(value.as_deref().unwrap_or_default()) {
            Some(value) if is_header_name(name) => kept.push((name.into(), value.into())),
            _ => dropped.push(printable(name).into_owned()),
        }
    }
    (kept, dropped)
}

fn text_headers(record: &KafkaRecord) -> Vec<(Text, Text)> {
    own_headers(record).0.iter().map(|(name, value)| (Text::from(&**name), Text::from(&**value))).collect()
}

fn is_ours(name: &str) -> bool {
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    OUR_PREFIXES.iter().any(|prefix| starts(prefix)) || name.eq_ignore_ascii_case(DROPPED_HEADERS)
}

/// A token of RFC 9110 5.6.2: SDKs that keep headers as HTTP types refuse anything else.
fn is_header_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

/// The bytes as a header's value: text without control characters other than the tab.
fn header_value(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7F)).then_some(text)
}

/// A name as part of a header's value.
fn printable(name: &str) -> Cow<'_, str> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if is_plain { Cow::Borrowed(name) } else { Cow::Owned(name.escape_default().to_string().replace(',', "\\u{2c}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    /// More than the longest key has.
    const BYTES_MAX: usize = 16 << 10;

    fn stream() -> StreamId {
        StreamId { subscription: testing::subscription().id, epoch: 0, topic: 7, partition: 3 }
    }

    fn try_map_to(service: &str, handler: &str, record: KafkaRecord) -> Option<Mapped> {
        let catalog = testing::catalog();
        let mut subscription = testing::subscription();
        subscription.service = service.into();
        subscription.handler = handler.into();
        let defaults = Defaults::default();
        let mapping = Mapping {
            catalog: &catalog,
            subscription: &subscription,
            defaults: &defaults,
            partitions: 16,
            record_bytes_max: BYTES_MAX,
            mutant: Mutant::None,
        };
        mapping.event(stream(), &record)
    }

    fn map_to(service: &str, handler: &str, record: KafkaRecord) -> Mapped {
        try_map_to(service, handler, record).unwrap()
    }

    fn record(key: Option<&[u8]>, value: Option<&[u8]>) -> KafkaRecord {
        let copy = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        KafkaRecord {
            partition: 3,
            offset: 42,
            timestamp_ms: Some(1_700_000_000_123),
            key: copy(key),
            value: copy(value),
            ..KafkaRecord::default()
        }
    }

    fn with_headers(headers: &[(&str, &[u8])]) -> KafkaRecord {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), Some(Bytes::copy_from_slice(value)))).collect();
        KafkaRecord { headers, ..record(None, None) }
    }

    fn submission(mapped: &Mapped) -> &Submission {
        match &mapped.event {
            Event::InvocationSubmitted(submission) => submission,
            other => panic!("not submitted: {other:?}"),
        }
    }

    fn parked(mapped: &Mapped) -> &ParkedRecord {
        match &mapped.event {
            Event::RecordParked(record) => record,
            other => panic!("not parked: {other:?}"),
        }
    }

    fn headers_of(record: &KafkaRecord) -> Vec<(String, String)> {
        let (catalog, subscription, defaults) = (testing::catalog(), testing::subscription(), Defaults::default());
        let mapping = Mapping {
            catalog: &catalog,
            subscription: &subscription,
            defaults: &defaults,
            partitions: 16,
            record_bytes_max: BYTES_MAX,
            mutant: Mutant::None,
        };
        mapping.headers(record).into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
    }

    #[test]
    fn an_objects_key_is_the_records_and_decides_the_partition() {
        let mapped = map_to("Counter", "add", record(Some(b"k1"), Some(b"5")));
        let submitted = submission(&mapped);
        assert_eq!(&*submitted.target.key, "k1");
        assert_eq!(submitted.id.partition_key, key_hash("k1"));
        assert_eq!(submitted.id.unique, stream().hash_of(42));
        assert_eq!(mapped.partition, submitted.id.partition(16));
        assert_eq!(submitted.source, Some(SourceRecord { stream: stream(), offset: 42 }));
        assert_eq!(submitted.origin, Origin::Subscription(testing::subscription().id));
        assert_eq!(submitted.idempotency_key, None);
    }

    #[test]
    fn a_workflows_run_has_the_id_of_its_key() {
        let mapped = map_to("Flow", "run", record(Some(b"w1"), None));
        let workflow = surefoot_model::Target::new(TargetKind::WorkflowRun, "Flow", "w1", "run");
        assert_eq!(submission(&mapped).id, InvocationId::for_submission(&workflow, None, 0));
    }

    #[test]
    fn every_delivery_gives_the_same_event_and_the_route_does_not_depend_on_the_handler() {
        for key in [None, Some(&b"k1"[..]), Some(&[0xFF, 0x00][..])] {
            let first = map_to("Svc", "echo", record(key, Some(b"v")));
            assert_eq!(first.event, map_to("Svc", "echo", record(key, Some(b"v"))).event);
            for (service, handler) in [("Counter", "add"), ("Flow", "run")] {
                assert_eq!(map_to(service, handler, record(key, Some(b"v"))).partition, first.partition, "{service} {key:?}");
            }
        }
    }

    #[test]
    fn what_cannot_become_an_invocation_is_parked_with_what_to_do() {
        for (service, key, reason, word) in [
            ("Counter", None, Reason::MissingKey, "no key"),
            ("Counter", Some(&[0xFF][..]), Reason::KeyNotText, "not UTF-8"),
            ("Counter", Some(&[b'k'; KEY_BYTES_MAX + 1][..]), Reason::KeyTooLong, "shorter"),
        ] {
            let mapped = map_to(service, "add", record(key, Some(b"v")));
            assert_eq!(mapped.parked, Some(reason));
            let kept = parked(&mapped);
            assert!(kept.reason.contains(word), "{}", kept.reason);
            assert_eq!(
                (kept.has_key, kept.key.as_ref(), kept.value.as_ref()),
                (key.is_some(), key.unwrap_or_default(), &b"v"[..])
            );
        }
        assert!(map_to("Svc", "echo", record(None, None)).parked.is_none(), "a service needs no key");
        // Good ones were parked while their handler was away.
        assert!(try_map_to("Gone", "x", record(None, None)).is_none() && try_map_to("Svc", "gone", record(None, None)).is_none());
    }

    #[test]
    fn a_record_that_is_too_large_keeps_a_prefix_size_and_hash() {
        let value = vec![7; PREFIX_BYTES + BYTES_MAX];
        let mapped = map_to("Counter", "add", record(Some(b"k1"), Some(&value)));
        let kept = parked(&mapped);
        assert_eq!(mapped.parked, Some(Reason::TooLarge));
        assert_eq!((kept.value.len(), kept.bytes), (PREFIX_BYTES, value.len() as u64 + 2));
        assert_eq!(kept.value_hash, <[u8; 32]>::from(Sha256::digest(&value)));
        assert_eq!(map_to("Counter", "add", record(Some(b"k1"), Some(&[7; BYTES_MAX - 2]))).parked, None);
    }

    #[test]
    fn the_handler_sees_our_headers_as_documented() {
        let headers = headers_of(&record(Some(b"k1"), None));
        let id = testing::subscription().id.to_string();
        let expected = [
            ("kafka.offset", "42"),
            ("kafka.topic", "orders"),
            ("kafka.partition", "3"),
            ("kafka.timestamp", "1700000000123"),
            ("restate.subscription.id", &id),
            ("kafka.key", "azE="),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let bare = headers_of(&KafkaRecord { timestamp_ms: None, ..record(None, None) });
        assert!(bare.iter().all(|(name, _)| name != "kafka.key" && name != "kafka.timestamp"));
    }

    #[test]
    fn the_records_own_headers_come_first_once_each_and_never_as_ours() {
        let own = with_headers(&[
            ("traceparent", b"00-1"),
            ("Kafka.Offset", b"7"),
            ("restate.subscription.id", b"x"),
            ("a", b"1"),
            ("A", b"2"),
            ("bin", &[0xFF]),
            ("bin", b"text"),
            ("line", b"a\nb"),
            ("bad name", b"v"),
            ("surefoot.dropped-headers", b"forged"),
        ]);
        let headers = headers_of(&own);
        assert_eq!(headers[..2], [("traceparent", "00-1"), ("a", "1")].map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(headers.last(), Some(&("surefoot.dropped-headers".to_owned(), "bin,line,bad name".to_owned())));
        assert_eq!(headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("kafka.offset")).count(), 1);
    }

    proptest! {
        /// Whatever a record carries, what a handler gets could travel as HTTP headers.
        #[test]
        fn headers_are_always_valid(raw in prop::collection::vec((".{0,8}", prop::collection::vec(any::<u8>(), 0..8)), 0..8)) {
            let headers = raw.into_iter().map(|(name, value)| (name, Some(Bytes::from(value)))).collect();
            for (name, value) in headers_of(&KafkaRecord { headers, ..record(None, None) }) {
                prop_assert!(is_header_name(&name) && header_value(value.as_bytes()).is_some(), "{name:?}: {value:?}");
            }
        }
    }
}
