//! Messages of the protocol as far as handlers send them, with the numbers of the published definition.
//!
//! Written by hand: a dozen small types need no generator. Fields of later versions are named where their presence matters.
//! Does not own: meaning. Source: protocol reference section 5.

use bytes::Bytes;
use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Void {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) content: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Failure {
    #[prost(uint32, tag = "1")]
    pub(crate) code: u32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) metadata: Vec<Pair>,
}

/// A header, or one piece of a failure's metadata.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pair {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Suspension {
    #[prost(uint32, repeated, tag = "1")]
    pub(crate) waiting_completions: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub(crate) waiting_signals: Vec<u32>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) waiting_named_signals: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Error {
    #[prost(uint32, tag = "1")]
    pub(crate) code: u32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(string, tag = "3")]
    pub(crate) stacktrace: String,
    #[prost(uint32, optional, tag = "4")]
    pub(crate) related_command_index: Option<u32>,
    #[prost(string, optional, tag = "5")]
    pub(crate) related_command_name: Option<String>,
    #[prost(uint32, optional, tag = "6")]
    pub(crate) related_command_type: Option<u32>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) next_retry_delay: Option<u64>,
    #[prost(int32, tag = "9")]
    pub(crate) behavior: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProposeRunCompletion {
    #[prost(uint32, tag = "1")]
    pub(crate) result_completion_id: u32,
    #[prost(oneof = "RunResult", tags = "14, 15")]
    pub(crate) result: Option<RunResult>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum RunResult {
    #[prost(bytes = "bytes", tag = "14")]
    Value(Bytes),
    #[prost(message, tag = "15")]
    Failure(Failure),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Output {
    #[prost(oneof = "OutputResult", tags = "14, 15")]
    pub(crate) result: Option<OutputResult>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum OutputResult {
    #[prost(message, tag = "14")]
    Value(Value),
    #[prost(message, tag = "15")]
    Failure(Failure),
}

/// Lazy reads, sleep and run: a completion id and what there is besides.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetLazyState {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(uint32, tag = "11")]
    pub(crate) result_completion_id: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetState {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(crate) value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClearState {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
}

/// A command whose fields besides its name do not matter.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Named {
    #[prost(string, tag = "12")]
    pub(crate) name: String,
}

/// A command that has a completion id alone.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Completable {
    #[prost(uint32, tag = "11")]
    pub(crate) result_completion_id: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetEagerState {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(oneof = "EagerResult", tags = "13, 14")]
    pub(crate) result: Option<EagerResult>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum EagerResult {
    #[prost(message, tag = "13")]
    Void(Void),
    #[prost(message, tag = "14")]
    Value(Value),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sleep {
    #[prost(uint64, tag = "1")]
    pub(crate) wake_up_time: u64,
    #[prost(uint32, tag = "11")]
    pub(crate) result_completion_id: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Call {
    #[prost(string, tag = "1")]
    pub(crate) service_name: String,
    #[prost(string, tag = "2")]
    pub(crate) handler_name: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) parameter: Bytes,
    #[prost(message, repeated, tag = "4")]
    pub(crate) headers: Vec<Pair>,
    #[prost(string, tag = "5")]
    pub(crate) key: String,
    #[prost(string, optional, tag = "6")]
    pub(crate) idempotency_key: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(crate) scope: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub(crate) limit_key: Option<String>,
    #[prost(uint32, tag = "10")]
    pub(crate) invocation_id_notification_idx: u32,
    #[prost(uint32, tag = "11")]
    pub(crate) result_completion_id: u32,
}

/// From `invoke_time` on, one tag above [`Call`]'s.
/// What a call and a one-way call have in common: the completion ids they take.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CallIds {
    #[prost(uint32, tag = "10")]
    pub(crate) invocation_id_notification_idx: u32,
    #[prost(uint32, tag = "11")]
    pub(crate) result_completion_id: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OneWayCall {
    #[prost(string, tag = "1")]
    pub(crate) service_name: String,
    #[prost(string, tag = "2")]
    pub(crate) handler_name: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) parameter: Bytes,
    #[prost(uint64, tag = "4")]
    pub(crate) invoke_time: u64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) headers: Vec<Pair>,
    #[prost(string, tag = "6")]
    pub(crate) key: String,
    #[prost(string, optional, tag = "7")]
    pub(crate) idempotency_key: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub(crate) scope: Option<String>,
    #[prost(string, optional, tag = "9")]
    pub(crate) limit_key: Option<String>,
    #[prost(uint32, tag = "10")]
    pub(crate) invocation_id_notification_idx: u32,
}
