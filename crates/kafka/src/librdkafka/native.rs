//! What librdkafka offers and its Rust binding does not: the id of a topic, the offsets of many Kafka partitions in one request,
//! one queue for the Kafka records of all of them, and headers whose names are not UTF-8 (where the binding panics). The only unsafe
//! code of the server.
//!
//! Does not own: threads. What asks brokers blocks, what reads the queue does not.
#![allow(
    unsafe_code,
    reason = "the safe binding has no DescribeTopics, no ListOffsets and no queue of several Kafka partitions, and panics on names \
              that are not UTF-8"
)]

use super::Callbacks;
use super::words::{Words, kind};
use crate::source::{ErrorKind, KafkaRecord, SourceError};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use rdkafka::bindings::{self as ffi, rd_kafka_resp_err_t};
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

/// Messages taken off the queue in one call.
const TAKE_MAX: usize = 64;

/// How much later than librdkafka's own time limit we stop waiting for its answer.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// Which offset of a Kafka partition.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    Low,
    High,
    /// Of the first Kafka record that is not older than this, in milliseconds since the Unix epoch; negative where there is none.
    Since(i64),
}

/// Something of librdkafka's that we have to give back.
struct Owned<T> {
    ptr: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// `ptr` comes from librdkafka, belongs to the caller, and is given back through `destroy`.
    fn new(ptr: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, SourceError> {
        let ptr = NonNull::new(ptr).ok_or_else(|| SourceError::new(ErrorKind::Refused, "the Kafka client gave nothing back"))?;
        Ok(Self { ptr, destroy })
    }

    fn as_ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `ptr` was given to us to own (see `new`), is not null, and this is the only place that gives it back.
        unsafe { (self.destroy)(self.ptr.as_ptr()) }
    }
}

/// The queue that Kafka records are forwarded to and that is read only while there is room. It has to go before its client.
pub(super) struct Fetched {
    queue: Owned<ffi::rd_kafka_queue_t>,
    /// What the queue's callback is given; kept until the callback is gone.
    _arrived: Arc<AtomicWaker>,
    words: Words,
}

// SAFETY: librdkafka's queues may be used from any thread, and by several at once.
unsafe impl Send for Fetched {}
// SAFETY: as above.
unsafe impl Sync for Fetched {}

/// What was on the queue.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) records: Vec<KafkaRecord>,
    /// In order, behind the records that came before them.
    pub(super) others: Vec<Other>,
    /// Nothing was left.
    pub(super) is_empty: bool,
}

/// Something on the queue that is no Kafka record.
pub(super) enum Other {
    AtEnd { generation: u64, partition: i32, offset: i64 },
    Failed(SourceError),
}

impl Fetched {
    /// A queue of this client; `arrived` is woken when something comes to it while it is empty.
    pub(super) fn new(client: &Client<Callbacks>, arrived: Arc<AtomicWaker>) -> Result<Self, SourceError> {
        unsafe extern "C" fn wake(_: *mut ffi::rd_kafka_t, arrived: *mut c_void) {
            // SAFETY: `arrived` is the waker below, which lives until this callback is taken away, and is only shared.
            unsafe { &*arrived.cast_const().cast::<AtomicWaker>() }.wake();
        }
        // SAFETY: the client is alive; the queue belongs to us.
        let queue = Owned::new(unsafe { ffi::rd_kafka_queue_new(client.native_ptr()) }, ffi::rd_kafka_queue_destroy)?;
        // SAFETY: the queue is alive. The waker is kept in an allocation of its own that outlives the callback (see `drop`).
        unsafe {
            ffi::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(wake), Arc::as_ptr(&arrived).cast_mut().cast::<c_void>());
        }
        Ok(Self { queue, _arrived: arrived, words: client.context().words.clone() })
    }

    /// From now on Kafka records of these Kafka partitions come to this queue, after those that were fetched before.
    pub(super) fn forward(&self, client: &Client<Callbacks>, topic: &str, partitions: &[i32]) -> Result<(), SourceError> {
        forward(client, topic, partitions, self.queue.as_ptr())
    }

    /// From now on they wait in a queue of their own.
    pub(super) fn stop_forwarding(client: &Client<Callbacks>, topic: &str, partitions: &[i32]) -> Result<(), SourceError> {
        forward(client, topic, partitions, ptr::null_mut())
    }

    /// Takes what is there, up to about these bounds, in order. `generation` says which assignment a Kafka partition is fetched
    /// under; what belongs to none is dropped.
    pub(super) fn take(&self, records_max: usize, bytes_max: usize, generation: impl Fn(i32) -> Option<u64>) -> Taken {
        let mut taken = Taken::default();
        let mut bytes = 0;
        while taken.records.len() < records_max && bytes < bytes_max && taken.others.is_empty() {
            let mut messages = [ptr::null_mut::<ffi::rd_kafka_message_t>(); TAKE_MAX];
            // SAFETY: the queue is alive, and librdkafka writes at most `messages.len()` pointers, which belong to us then.
            let count =
                unsafe { ffi::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, messages.as_mut_ptr(), messages.len()) };
            let count = usize::try_from(count).unwrap_or(0);
            for message in &messages[..count] {
                // SAFETY: the message is not null, belongs to us, and is given back here, once.
                let Ok(message) = Owned::new(*message, ffi::rd_kafka_message_destroy) else { continue };
                // SAFETY: the message is alive, and only read.
                let head = unsafe { &*message.as_ptr() };
                let Some(generation) = generation(head.partition) else { continue };
                match head.err {
                    rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        let record = record(&message, head, generation);
                        bytes += record.bytes();
                        taken.records.push(record);
                    }
                    rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                        taken.others.push(Other::AtEnd { generation, partition: head.partition, offset: head.offset });
                    }
                    code => {
                        // SAFETY: the words belong to the message and are copied while it is alive.
                        let words = unsafe { text(ffi::rd_kafka_message_errstr(message.as_ptr())) };
                        taken.others.push(Other::Failed(self.words.error(RDKafkaErrorCode::from(code), &words)));
                    }
                }
            }
            if count < messages.len() {
                taken.is_empty = true;
                break;
            }
        }
        taken
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        // SAFETY: the queue is alive. Callbacks run under its lock: after this none runs, and the waker may go.
        unsafe { ffi::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut()) }
    }
}

/// Forwards the queues of these Kafka partitions to `to`, or to nothing.
fn forward(
    client: &Client<Callbacks>,
    topic: &str,
    partitions: &[i32],
    to: *mut ffi::rd_kafka_queue_t,
) -> Result<(), SourceError> {
    let name = c_name(topic)?;
    for partition in partitions {
        // SAFETY: the client is alive, the name ends with zero; the queue belongs to us.
        let queue = unsafe { ffi::rd_kafka_queue_get_partition(client.native_ptr(), name.as_ptr(), *partition) };
        let queue = Owned::new(queue, ffi::rd_kafka_queue_destroy)?;
        // SAFETY: `queue` is alive, `to` is alive or null; librdkafka keeps what it needs of them.
        unsafe { ffi::rd_kafka_queue_forward(queue.as_ptr(), to) };
    }
    Ok(())
}

fn record(message: &Owned<ffi::rd_kafka_message_t>, head: &ffi::rd_kafka_message_t, generation: u64) -> KafkaRecord {
    let copied = |bytes: *mut c_void, len: usize| {
        // SAFETY: what is not null has `len` bytes, belongs to the message, and is copied while that is alive.
        (!bytes.is_null()).then(|| Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) }))
    };
    let mut kind = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message is alive, and only read.
    let millis = unsafe { ffi::rd_kafka_message_timestamp(message.as_ptr(), &raw mut kind) };
    KafkaRecord {
        generation,
        partition: head.partition,
        offset: head.offset,
        timestamp_ms: u64::try_from(millis).ok(),
        key: copied(head.key, head.key_len),
        value: copied(head.payload, head.len),
        headers: headers(message),
    }
}

/// The topic's id (0 where the broker gives none) and its Kafka partitions. Asks a broker that leads one of them: librdkafka would
/// wait for the controller, which may be away for a while when nothing else is, and which its mock cluster lacks.
pub(super) fn describe(client: &Client<Callbacks>, topic: &str, timeout: Duration) -> Result<(u128, Vec<i32>), SourceError> {
    let words = &client.context().words;
    let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|error| words.explain(&error, None))?;
    let found = metadata.topics().first().ok_or_else(|| missing(topic))?;
    if let Some(code) = found.error() {
        check(words, code, || "the brokers do not describe the topic".to_owned(), topic)?;
    }
    let leaders = found.partitions().iter().map(|partition| partition.leader());
    let broker = leaders
        .chain([metadata.orig_broker_id()])
        .find(|id| *id >= 0)
        .ok_or_else(|| SourceError::new(ErrorKind::Unavailable, "no Kafka partition of the topic has a leader"))?;
    let name = c_name(topic)?;
    let mut names: [*const c_char; 1] = [name.as_ptr()];
    // SAFETY: `names` holds one pointer to a string that ends with zero; the collection copies it.
    let topics = unsafe { ffi::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()) };
    let topics = Owned::new(topics, ffi::rd_kafka_TopicCollection_destroy)?;
    let event =
        ask(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, Some(broker), timeout, |options, queue| {
            // SAFETY: client, collection, options and queue live until after the call, which copies what it needs.
            unsafe { ffi::rd_kafka_DescribeTopics(client.native_ptr(), topics.as_ptr(), options, queue) }
        })?;
    // SAFETY: the event is alive, and everything read here belongs to it and is used before it is given back at the end of the
    // function. Pointers are checked for null, and counts bound the arrays.
    unsafe {
        let result = ffi::rd_kafka_event_DescribeTopics_result(event.as_ptr());
        if result.is_null() {
            return Err(unexpected());
        }
        let mut count = 0;
        let topics = ffi::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if count == 0 || topics.is_null() {
            return Err(missing(topic));
        }
        let topic_description = *topics;
        let error = ffi::rd_kafka_TopicDescription_error(topic_description);
        if !error.is_null() {
            check(words, ffi::rd_kafka_error_code(error), || text(ffi::rd_kafka_error_string(error)), topic)?;
        }
        let id = ffi::rd_kafka_TopicDescription_topic_id(topic_description);
        let id = if id.is_null() {
            0
        } else {
            let high = ffi::rd_kafka_Uuid_most_significant_bits(id) as u64;
            let low = ffi::rd_kafka_Uuid_least_significant_bits(id) as u64;
            u128::from(high) << 64 | u128::from(low)
        };
        let mut count = 0;
        let partitions = ffi::rd_kafka_TopicDescription_partitions(topic_description, &raw mut count);
        if count == 0 || partitions.is_null() {
            return Err(missing(topic));
        }
        let partitions = (0..count).map(|at| ffi::rd_kafka_TopicPartitionInfo_partition(*partitions.add(at)));
        Ok((id, partitions.collect()))
    }
}

/// One offset of each of these Kafka partitions, of what may be read. One that has no leader has an error of its own.
pub(super) fn offsets(
    client: &Client<Callbacks>,
    topic: &str,
    partitions: &[i32],
    bound: Bound,
    timeout: Duration,
) -> Result<BTreeMap<i32, Result<i64, SourceError>>, SourceError> {
    // librdkafka takes what is asked for as the offset that it has in ListOffsets requests.
    let offset = match bound {
        Bound::Low => Offset::Beginning,
        Bound::High => Offset::End,
        Bound::Since(timestamp) => Offset::Offset(timestamp),
    };
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, *partition, offset)
            .map_err(|error| SourceError::new(ErrorKind::Refused, format!("list Kafka partition {partition}: {error}")))?;
    }
    let event = ask(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, None, timeout, |options, queue| {
        let committed = ffi::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
        // SAFETY: client, list, options and queue live until after the calls, which copy what they need. An error belongs to us;
        // there is none for a level that exists, and to give back nothing does nothing.
        unsafe {
            let error = ffi::rd_kafka_AdminOptions_set_isolation_level(options.cast_mut(), committed);
            if !error.is_null() {
                ffi::rd_kafka_error_destroy(error);
            }
            ffi::rd_kafka_ListOffsets(client.native_ptr(), list.ptr(), options, queue);
        }
    })?;
    // SAFETY: as in `describe`.
    unsafe {
        let result = ffi::rd_kafka_event_ListOffsets_result(event.as_ptr());
        if result.is_null() {
            return Err(unexpected());
        }
        let mut count = 0;
        let infos = ffi::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        let mut found = BTreeMap::new();
        for at in 0..count {
            let place = ffi::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(at));
            let place = place.as_ref().ok_or_else(unexpected)?;
            let known = check(&client.context().words, place.err, || text(ffi::rd_kafka_err2str(place.err)), topic);
            found.insert(place.partition, known.map(|()| place.offset));
        }
        Ok(found)
    }
}

/// The headers of a message, in order.
fn headers(message: &Owned<ffi::rd_kafka_message_t>) -> Vec<(String, Option<Bytes>)> {
    let mut found = Vec::new();
    let mut headers = ptr::null_mut();
    // SAFETY: the message is alive; its headers belong to it and are only read. A name ends with zero, and a value that is not null has `size` bytes.
    unsafe {
        let code = ffi::rd_kafka_message_headers(message.as_ptr(), &raw mut headers);
        if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return found;
        }
        for at in 0..ffi::rd_kafka_header_cnt(headers) {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            let code = ffi::rd_kafka_header_get_all(headers, at, &raw mut name, &raw mut value, &raw mut size);
            if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                break;
            }
            let mut name_text = text(name);
            if is_cut(name, value) {
                name_text.push('\0');
            }
            let value = (!value.is_null()).then(|| Bytes::copy_from_slice(std::slice::from_raw_parts(value.cast::<u8>(), size)));
            found.push((name_text, value));
        }
    }
    found
}

/// Whether a header's name goes on behind a zero byte, where librdkafka lets nobody look: it would pass for another one. Its value, if it
/// has one, lies right behind the name's own end.
///
/// # Safety
/// `name` ends with zero, and lives during the call.
unsafe fn is_cut(name: *const c_char, value: *const c_void) -> bool {
    // SAFETY: see above. Of the value only the address is looked at.
    let end = unsafe { name.add(CStr::from_ptr(name).count_bytes() + 1) };
    !value.is_null() && value.addr() != end.addr()
}

/// Sends one request, to this broker or to whom librdkafka chooses, and waits for its answer.
fn ask(
    client: &Client<Callbacks>,
    operation: ffi::rd_kafka_admin_op_t,
    broker: Option<i32>,
    timeout: Duration,
    send: impl FnOnce(*const ffi::rd_kafka_AdminOptions_t, *mut ffi::rd_kafka_queue_t),
) -> Result<Owned<ffi::rd_kafka_event_t>, SourceError> {
    let millis = |duration: Duration| c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client outlives queue and options, which are given back at the end of this function.
    let queue = Owned::new(unsafe { ffi::rd_kafka_queue_new(client.native_ptr()) }, ffi::rd_kafka_queue_destroy)?;
    // SAFETY: as above.
    let options = unsafe { ffi::rd_kafka_AdminOptions_new(client.native_ptr(), operation) };
    let options = Owned::new(options, ffi::rd_kafka_AdminOptions_destroy)?;
    let words = &client.context().words;
    let mut said = [0u8; 256];
    // SAFETY: the options are alive, and librdkafka writes at most `said.len()` bytes, the ending zero included.
    let code = unsafe {
        ffi::rd_kafka_AdminOptions_set_request_timeout(options.as_ptr(), millis(timeout), said.as_mut_ptr().cast(), said.len())
    };
    check(words, code, || until_zero(&said), "")?;
    if let Some(broker) = broker {
        // SAFETY: as above.
        let code =
            unsafe { ffi::rd_kafka_AdminOptions_set_broker(options.as_ptr(), broker, said.as_mut_ptr().cast(), said.len()) };
        check(words, code, || until_zero(&said), "")?;
    }
    send(options.as_ptr(), queue.as_ptr());
    // SAFETY: the queue is alive; the event belongs to us.
    let event = unsafe { ffi::rd_kafka_queue_poll(queue.as_ptr(), millis(timeout + ANSWER_SLACK)) };
    if event.is_null() {
        return Err(SourceError::new(ErrorKind::Unavailable, "no broker answered in time"));
    }
    let event = Owned::new(event, ffi::rd_kafka_event_destroy)?;
    // SAFETY: the event is alive, and its text is copied before it is given back.
    unsafe {
        check(words, ffi::rd_kafka_event_error(event.as_ptr()), || text(ffi::rd_kafka_event_error_string(event.as_ptr())), "")?;
    }
    Ok(event)
}

fn check(words: &Words, code: rd_kafka_resp_err_t, said: impl FnOnce() -> String, topic: &str) -> Result<(), SourceError> {
    if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    match kind(RDKafkaErrorCode::from(code)) {
        ErrorKind::TopicMissing => Err(missing(topic)),
        _ => Err(words.error(RDKafkaErrorCode::from(code), &said())),
    }
}

fn c_name(topic: &str) -> Result<CString, SourceError> {
    CString::new(topic).map_err(|_| SourceError::new(ErrorKind::Refused, "the topic's name has a zero byte"))
}

fn until_zero(words: &[u8]) -> String {
    CStr::from_bytes_until_nul(words).map_or_else(|_| String::new(), |words| words.to_string_lossy().into_owned())
}

/// # Safety
/// `words` is null or ends with zero, and lives during the call.
unsafe fn text(words: *const c_char) -> String {
    if words.is_null() {
        return String::new();
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
}

fn missing(topic: &str) -> SourceError {
    SourceError::new(
        ErrorKind::TopicMissing,
        format!("the topic {topic:?} does not exist: once it does, all that comes into it is read"),
    )
}

fn unexpected() -> SourceError {
    SourceError::new(ErrorKind::Unavailable, "the Kafka client answered another question")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header whose name had a zero byte came as one of a shorter name.
    #[test]
    fn a_name_that_is_cut_is_told_from_a_short_one() {
        let laid_out = |name: &'static str| (name.as_ptr().cast::<c_char>(), name[name.len() - 1..].as_ptr().cast::<c_void>());
        for (bytes, expected) in [("name\0v", false), ("na\0me\0v", true), ("\0v", false), ("\0\0v", true)] {
            let (name, value) = laid_out(bytes);
            // SAFETY: the text has a zero byte, and lives for ever.
            assert_eq!(unsafe { (is_cut(name, value), is_cut(name, ptr::null())) }, (expected, false), "{bytes:?}");
        }
    }
}
