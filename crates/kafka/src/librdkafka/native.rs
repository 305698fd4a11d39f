//! What librdkafka offers and its Rust binding does not: the id of a topic, the offsets of many Kafka partitions in one request,
//! and headers whose names are not UTF-8 (where the binding panics). The only unsafe code of the server.
//!
//! Does not own: threads. The calls block.
#![allow(
    unsafe_code,
    reason = "the safe binding has no DescribeTopics and no ListOffsets, and panics on names that are not UTF-8"
)]

use super::{explain, kind};
use crate::source::{ErrorKind, SourceError};
use bytes::Bytes;
use rdkafka::bindings::{self as ffi, rd_kafka_resp_err_t};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

/// How much later than librdkafka's own time limit we stop waiting for its answer.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// Which end of a Kafka partition.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    Low,
    High,
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

/// The topic's id (0 where the broker gives none) and its Kafka partitions. Asks a broker that leads one of them: librdkafka would
/// wait for the controller, which may be away for a while when nothing else is, and which its mock cluster lacks.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<(u128, Vec<i32>), SourceError> {
    let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|error| explain(&error, None))?;
    let found = metadata.topics().first().ok_or_else(|| missing(topic))?;
    if let Some(code) = found.error() {
        check(code, || "the brokers do not describe the topic".to_owned(), topic)?;
    }
    let leaders = found.partitions().iter().map(|partition| partition.leader());
    let broker = leaders
        .chain([metadata.orig_broker_id()])
        .find(|id| *id >= 0)
        .ok_or_else(|| SourceError::new(ErrorKind::Unavailable, "no Kafka partition of the topic has a leader"))?;
    let name = CString::new(topic).map_err(|_| SourceError::new(ErrorKind::Refused, "the topic's name has a zero byte"))?;
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
            check(ffi::rd_kafka_error_code(error), || text(ffi::rd_kafka_error_string(error)), topic)?;
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

/// One end of each of these Kafka partitions.
pub(super) fn offsets<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partitions: &[i32],
    bound: Bound,
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, SourceError> {
    // librdkafka takes the end as the offset that it has in ListOffsets requests.
    let offset = match bound {
        Bound::Low => Offset::Beginning,
        Bound::High => Offset::End,
    };
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, *partition, offset)
            .map_err(|error| SourceError::new(ErrorKind::Refused, format!("list Kafka partition {partition}: {error}")))?;
    }
    let event = ask(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, None, timeout, |options, queue| {
        // SAFETY: client, list, options and queue live until after the call, which copies what it needs.
        unsafe { ffi::rd_kafka_ListOffsets(client.native_ptr(), list.ptr(), options, queue) }
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
            check(place.err, || text(ffi::rd_kafka_err2str(place.err)), topic)?;
            found.insert(place.partition, place.offset);
        }
        Ok(found)
    }
}

/// The headers of a message, in order.
pub(super) fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, Option<Bytes>)> {
    let mut found = Vec::new();
    let mut headers = ptr::null_mut();
    // SAFETY: the message lives as long as the reference; its headers belong to it and are only read, before the reference ends.
    // A name ends with zero, and a value that is not null has `size` bytes.
    unsafe {
        let code = ffi::rd_kafka_message_headers(message.ptr(), &raw mut headers);
        if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return found;
        }
        for at in 0..ffi::rd_kafka_header_cnt(headers) {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            let code = ffi::rd_kafka_header_get_all(headers, at, &raw mut name, &raw mut value, &raw mut size);
            if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                break;
            }
            let value = (!value.is_null()).then(|| Bytes::copy_from_slice(std::slice::from_raw_parts(value.cast::<u8>(), size)));
            found.push((text(name), value));
        }
    }
    found
}

/// Sends one request, to this broker or to whom librdkafka chooses, and waits for its answer.
fn ask<C: ClientContext>(
    client: &Client<C>,
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
    let mut words = [0u8; 256];
    // SAFETY: the options are alive, and librdkafka writes at most `words.len()` bytes, the ending zero included.
    let code = unsafe {
        ffi::rd_kafka_AdminOptions_set_request_timeout(options.as_ptr(), millis(timeout), words.as_mut_ptr().cast(), words.len())
    };
    check(code, || until_zero(&words), "")?;
    if let Some(broker) = broker {
        // SAFETY: as above.
        let code =
            unsafe { ffi::rd_kafka_AdminOptions_set_broker(options.as_ptr(), broker, words.as_mut_ptr().cast(), words.len()) };
        check(code, || until_zero(&words), "")?;
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
        check(ffi::rd_kafka_event_error(event.as_ptr()), || text(ffi::rd_kafka_event_error_string(event.as_ptr())), "")?;
    }
    Ok(event)
}

fn check(code: rd_kafka_resp_err_t, words: impl FnOnce() -> String, topic: &str) -> Result<(), SourceError> {
    if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    match kind(RDKafkaErrorCode::from(code)) {
        ErrorKind::TopicMissing => Err(missing(topic)),
        kind => Err(SourceError::new(kind, format!("{}: {}", RDKafkaErrorCode::from(code), words()))),
    }
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
        format!("the topic {topic:?} does not exist: it is read from its start once it does"),
    )
}

fn unexpected() -> SourceError {
    SourceError::new(ErrorKind::Unavailable, "the Kafka client answered another question")
}
