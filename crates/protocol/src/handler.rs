//! What handlers send, read as journal items.
//!
//! Owns: decoding by version, and what is wrong with a message as such. Does not own: whether what it asks for can be had (an
//! unknown callee, state where there is none): that is the invoker's to know.

use crate::frame::Frame;
use crate::messages::{self, control};
use crate::version::ProtocolVersion;
use bytes::Bytes;
use prost::Message;
use surefoot_model::{Action, Failure, Item, NotificationId, Outcome, Text, Timestamp, entry_type};

/// One message of a handler.
#[derive(Clone, Debug, PartialEq)]
pub enum HandlerMessage {
    /// A command or a run's result, as the journal takes it.
    Item(Item),
    /// A call, whose callee the catalog has to resolve first.
    Call(Box<CallRequest>),
    Suspension { awaiting: Vec<NotificationId> },
    Error(HandlerError),
    End,
}

/// A call or one-way call as the handler wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRequest {
    pub ty: u16,
    /// The command without frame header, for the journal.
    pub raw: Bytes,
    pub service: String,
    pub handler: String,
    /// Empty for plain services.
    pub key: String,
    pub parameter: Bytes,
    /// In the handler's order.
    pub headers: Vec<(String, String)>,
    pub idempotency_key: Option<String>,
    /// Absent: at once.
    pub invoke_time: Option<Timestamp>,
    pub id_completion: u32,
    /// Absent for a one-way call.
    pub result: Option<u32>,
}

/// An attempt's failure in the handler's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError {
    pub code: u32,
    pub message: String,
    pub stacktrace: Option<String>,
    /// Index, type code and name of the command it is about.
    pub command: Option<(u32, u16, String)>,
    /// 0 is a value: at once.
    pub next_retry_delay_ms: Option<u64>,
    pub behavior: Behavior,
}

/// What the handler asks to follow its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    Retry,
    Pause,
    Fail,
}

/// A message that the attempt cannot go on after. All are retried: a new deployment may heal them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the handler sent a message of type {0:#06x}, which it may not send (RT0012)")]
    Unexpected(u16),
    #[error("a message of type {ty:#06x} does not decode: {problem} (RT0012)")]
    Malformed { ty: u16, problem: String },
    #[error("{0} is not supported by this version of the server; the invocation goes on once a server runs that does")]
    Unsupported(&'static str),
    #[error("the handler suspended without waiting for anything (RT0012)")]
    EmptySuspension,
}

/// Reads one frame at the negotiated version.
pub fn decode(frame: &Frame, _version: ProtocolVersion) -> Result<HandlerMessage, Violation> {
    let raw = &frame.payload;
    let ty = frame.ty;
    let action = match ty {
        entry_type::OUTPUT => output(read(ty, raw)?, raw)?,
        entry_type::GET_LAZY_STATE => {
            let command: messages::KeyCommand = read(ty, raw)?;
            Action::GetState { key: text(ty, &command.key)?, completion: completion(ty, command.result_completion_id)? }
        }
        entry_type::SET_STATE => {
            let command: messages::SetState = read(ty, raw)?;
            let value = command.value.ok_or_else(|| malformed(ty, "no value"))?;
            Action::SetState { key: text(ty, &command.key)?, value: span(raw, &value.content) }
        }
        entry_type::CLEAR_STATE => {
            let command: messages::KeyCommand = read(ty, raw)?;
            Action::ClearState { key: text(ty, &command.key)? }
        }
        entry_type::CLEAR_ALL_STATE => Action::ClearAllState,
        entry_type::GET_LAZY_STATE_KEYS => {
            let command: messages::KeyCommand = read(ty, raw)?;
            Action::GetStateKeys { completion: completion(ty, command.result_completion_id)? }
        }
        entry_type::GET_EAGER_STATE | entry_type::GET_EAGER_STATE_KEYS => Action::Keep,
        entry_type::SLEEP => {
            let command: messages::Sleep = read(ty, raw)?;
            let completion = completion(ty, command.result_completion_id)?;
            Action::Sleep { until: Timestamp(command.wake_up_time), completion }
        }
        entry_type::RUN => {
            let command: messages::Run = read(ty, raw)?;
            Action::Run { completion: completion(ty, command.result_completion_id)? }
        }
        entry_type::CALL => return call(read(ty, raw)?, raw),
        entry_type::ONE_WAY_CALL => return one_way_call(read(ty, raw)?, raw),
        control::PROPOSE_RUN_COMPLETION => return proposal(read(ty, raw)?),
        control::SUSPENSION => return suspension(read(ty, raw)?),
        control::ERROR => return Ok(HandlerMessage::Error(error(read(ty, raw)?))),
        control::END => return Ok(HandlerMessage::End),
        _ => return Err(unsupported(ty).map_or(Violation::Unexpected(ty), Violation::Unsupported)),
    };
    Ok(HandlerMessage::Item(Item::Command { ty, raw: raw.clone(), action }))
}

/// Commands that the protocol has and this server does not serve yet.
fn unsupported(ty: u16) -> Option<&'static str> {
    Some(match ty {
        0x0409 => "GetPromise",
        0x040A => "PeekPromise",
        0x040B => "CompletePromise",
        0x0410 => "SendSignal",
        0x0412 => "AttachInvocation",
        0x0413 => "GetInvocationOutput",
        0x0414 => "CompleteAwakeable",
        _ => return None,
    })
}

fn output(message: messages::Output, raw: &Bytes) -> Result<Action, Violation> {
    match (message.value, message.failure) {
        (_, Some(failure)) => Ok(Action::Fail(failure_of(failure))),
        (Some(value), None) => Ok(Action::Succeed { value: span(raw, &value.content) }),
        (None, None) => Err(malformed(entry_type::OUTPUT, "neither value nor failure")),
    }
}

fn call(message: messages::Call, raw: &Bytes) -> Result<HandlerMessage, Violation> {
    let ty = entry_type::CALL;
    refuse_scope(&message.scope, &message.limit_key)?;
    Ok(HandlerMessage::Call(Box::new(CallRequest {
        ty,
        raw: raw.clone(),
        service: message.service_name,
        handler: message.handler_name,
        key: message.key,
        parameter: message.parameter,
        headers: message.headers.into_iter().map(|h| (h.key, h.value)).collect(),
        idempotency_key: message.idempotency_key,
        invoke_time: None,
        id_completion: completion(ty, message.invocation_id_notification_idx)?,
        result: Some(completion(ty, message.result_completion_id)?),
    })))
}

fn one_way_call(message: messages::OneWayCall, raw: &Bytes) -> Result<HandlerMessage, Violation> {
    let ty = entry_type::ONE_WAY_CALL;
    refuse_scope(&message.scope, &message.limit_key)?;
    Ok(HandlerMessage::Call(Box::new(CallRequest {
        ty,
        raw: raw.clone(),
        service: message.service_name,
        handler: message.handler_name,
        key: message.key,
        parameter: message.parameter,
        headers: message.headers.into_iter().map(|h| (h.key, h.value)).collect(),
        idempotency_key: message.idempotency_key,
        invoke_time: (message.invoke_time > 0).then_some(Timestamp(message.invoke_time)),
        id_completion: completion(ty, message.invocation_id_notification_idx)?,
        result: None,
    })))
}

fn refuse_scope(scope: &Option<String>, limit_key: &Option<String>) -> Result<(), Violation> {
    if scope.is_some() || limit_key.is_some() {
        return Err(Violation::Unsupported("a scope or limit key"));
    }
    Ok(())
}

fn proposal(message: messages::ProposeRunCompletion) -> Result<HandlerMessage, Violation> {
    let ty = control::PROPOSE_RUN_COMPLETION;
    let outcome = match (message.value, message.failure) {
        (_, Some(failure)) => Outcome::Failure(failure_of(failure)),
        (Some(value), None) => Outcome::Success(value),
        (None, None) => return Err(malformed(ty, "neither value nor failure")),
    };
    Ok(HandlerMessage::Item(Item::RunProposed { completion: completion(ty, message.result_completion_id)?, outcome }))
}

fn suspension(message: messages::Suspension) -> Result<HandlerMessage, Violation> {
    let completions = message.waiting_completions.into_iter().map(NotificationId::Completion);
    let signals = message.waiting_signals.into_iter().map(NotificationId::Signal);
    let named = message.waiting_named_signals.into_iter().map(|name| NotificationId::NamedSignal(name.into()));
    let awaiting: Vec<_> = completions.chain(signals).chain(named).collect();
    if awaiting.is_empty() {
        return Err(Violation::EmptySuspension);
    }
    Ok(HandlerMessage::Suspension { awaiting })
}

fn error(message: messages::Error) -> HandlerError {
    let command = match (message.related_command_index, message.related_command_type) {
        (Some(index), ty) => {
            let ty = ty.and_then(|ty| u16::try_from(ty).ok()).unwrap_or_default();
            Some((index, ty, message.related_command_name.unwrap_or_default()))
        }
        (None, _) => None,
    };
    HandlerError {
        // Larger codes are no codes.
        code: if message.code > u32::from(u16::MAX) { 500 } else { message.code },
        message: message.message,
        stacktrace: Some(message.stacktrace).filter(|s| !s.is_empty()),
        command,
        next_retry_delay_ms: message.next_retry_delay,
        behavior: match message.behavior {
            1 => Behavior::Pause,
            2 => Behavior::Fail,
            _ => Behavior::Retry,
        },
    }
}

fn failure_of(failure: messages::Failure) -> Failure {
    Failure {
        code: failure.code,
        message: failure.message,
        metadata: failure.metadata.into_iter().map(|m| (m.key, m.value)).collect(),
        stacktrace: None,
    }
}

fn read<M: Message + Default>(ty: u16, raw: &Bytes) -> Result<M, Violation> {
    M::decode(raw.clone()).map_err(|e| malformed(ty, &e.to_string()))
}

fn malformed(ty: u16, problem: &str) -> Violation {
    Violation::Malformed { ty, problem: problem.to_owned() }
}

/// Ids start at 1: 0 is what a missing field reads as.
fn completion(ty: u16, id: u32) -> Result<u32, Violation> {
    if id == 0 { Err(malformed(ty, "no completion id")) } else { Ok(id) }
}

fn text(ty: u16, bytes: &Bytes) -> Result<Text, Violation> {
    std::str::from_utf8(bytes).map(Text::from).map_err(|_| malformed(ty, "a state key that is not UTF-8"))
}

/// Where `part` lies in `raw`, whose slice it is.
fn span(raw: &Bytes, part: &Bytes) -> (u32, u32) {
    if part.is_empty() {
        return (0, 0);
    }
    let start = part.as_ptr() as usize - raw.as_ptr() as usize;
    debug_assert!(start + part.len() <= raw.len(), "prost slices the buffer it reads");
    (start as u32, part.len() as u32)
}
