//! What handlers send: commands, results of runs, and how an attempt ends.
//!
//! Owns: checking that a message may come from a handler at the spoken versions, and its translation into the vocabulary. A
//! command's bytes are kept as they came; payloads are named by their place in them. Does not own: resolving calls, or whether
//! a command suits its invocation (`invoker`). Source: protocol reference sections 5, 6.11 and 6.12.

use crate::frame::Frame;
use crate::message_type;
use crate::messages::{self, EagerResult, OutputResult, RunResult};
use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use surefoot_model::{Action, Failure, NotificationId, Outcome, Text, Timestamp, entry_type};

/// Bytes of a suspension: each awaited id takes a few, and many times as many once it is read.
const SUSPENSION_BYTES_MAX: usize = 4 << 20;
/// Ids that a suspension names.
const AWAITED_MAX: usize = 500_000;
/// Headers of a call, and pieces of a failure's metadata. An empty one takes two bytes, and many times as many once it is read.
const PAIRS_MAX: usize = 1_000;
// Tags of these fields, as `messages` has them.
const CALL_HEADERS: u32 = 4;
const ONE_WAY_CALL_HEADERS: u32 = 5;
const OUTPUT_FAILURE: u32 = 15;
const RUN_FAILURE: u32 = 15;
const FAILURE_METADATA: u32 = 3;

/// One message of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Command {
        ty: u16,
        /// As received, without frame header.
        raw: Bytes,
        command: Command,
    },
    /// The result of a run.
    RunProposed { completion: u32, outcome: Outcome },
    /// The handler waits for any of these; never empty.
    Suspended { awaiting: Vec<NotificationId> },
    /// The attempt failed.
    Failed(HandlerError),
    /// The invocation is over; its output came before.
    Ended,
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ready to be stored.
    Act(Action),
    /// To be resolved against the catalog first.
    Call(Box<Call>),
}

/// A call where `result` is there, a one-way call where not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub service: String,
    pub handler: String,
    /// Empty: none.
    pub key: String,
    pub parameter: Bytes,
    /// In the order given.
    pub headers: Vec<(String, String)>,
    pub idempotency_key: Option<String>,
    /// A one-way call's due time; absent: now.
    pub invoke_at: Option<Timestamp>,
    /// Completion id of the callee's invocation id.
    pub id_completion: u32,
    /// Completion id of the callee's result.
    pub result: Option<u32>,
}

/// A failure that is to be tried again, as the handler tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError {
    pub code: u32,
    pub message: String,
    pub stacktrace: Option<String>,
    /// The command it belongs to: index, type code and name.
    pub command: Option<(u32, u16, String)>,
    /// Replaces the policy's next delay; 0 means at once.
    pub next_retry_delay_ms: Option<u64>,
    pub behavior: Behavior,
}

/// What the handler wants to follow its failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behavior {
    /// What the retry policy says.
    #[default]
    Retry,
    Pause,
    /// The invocation ends with this failure.
    Fail,
}

/// A message that an attempt cannot go on after.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Known to the protocol, not carried out by this server. A later version may.
    #[error("the handler uses {name}, which this server does not support yet")]
    Unsupported { ty: u16, name: &'static str },
    /// Carries a scope or a limit key.
    #[error("the handler sent {name} with a {field}, which this server does not support")]
    Scoped { ty: u16, name: &'static str, field: &'static str },
    /// Not of the protocol.
    #[error("protocol violation: {0}")]
    Illegal(String),
}

impl Violation {
    /// Its code in `docs/errors.md`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unsupported { .. } | Self::Scoped { .. } => "SF3003",
            Self::Illegal(_) => "RT0012",
        }
    }
}

/// Reads one message that came from a handler at version 5 or 6.
///
/// **Errors**: every message is either understood or a [`Violation`]; the attempt fails and is retried.
pub fn decode(frame: Frame) -> Result<Message, Violation> {
    let Frame { ty, payload: raw } = frame;
    match ty {
        message_type::SUSPENSION => suspension(raw),
        message_type::ERROR => error(raw),
        message_type::END => Ok(Message::Ended),
        message_type::PROPOSE_RUN_COMPLETION => run_proposed(raw),
        _ => {
            let command = command(ty, &raw)?;
            Ok(Message::Command { ty, raw, command })
        }
    }
}

/// The name that the handler gave a command, empty if none. For messages about it.
pub fn command_name(raw: &Bytes) -> String {
    messages::Named::decode(raw.clone()).map(|c| c.name).unwrap_or_default()
}

/// Completion ids that a command of this type has taken, as stored: a call up to two, most commands none.
pub fn completion_ids(ty: u16, raw: &Bytes) -> impl Iterator<Item = u32> + use<> {
    let ids = match ty {
        entry_type::CALL | entry_type::ONE_WAY_CALL => {
            let call = messages::CallIds::decode(&raw[..]).unwrap_or_default();
            [call.invocation_id_notification_idx, call.result_completion_id]
        }
        entry_type::GET_LAZY_STATE | entry_type::GET_LAZY_STATE_KEYS | entry_type::SLEEP | entry_type::RUN => {
            [messages::Completable::decode(&raw[..]).unwrap_or_default().result_completion_id, 0]
        }
        _ => [0, 0],
    };
    ids.into_iter().filter(|id| *id != 0)
}

/// Bytes of the key that a command about one value of the state names.
pub fn state_key_bytes(raw: &Bytes) -> usize {
    messages::ClearState::decode(raw.clone()).map_or(0, |message| message.key.len())
}

fn command(ty: u16, raw: &Bytes) -> Result<Command, Violation> {
    let action = match ty {
        entry_type::OUTPUT => {
            bounded(ty, raw, &[OUTPUT_FAILURE, FAILURE_METADATA])?;
            match parse::<messages::Output>(ty, raw)?.result {
                Some(OutputResult::Value(value)) => Action::Succeed { value: place(raw, &value.content) },
                Some(OutputResult::Failure(failure)) => Action::Fail(failure_of(failure)),
                None => return Err(illegal(ty, "without a result")),
            }
        }
        entry_type::GET_LAZY_STATE => {
            let message = parse::<messages::GetLazyState>(ty, raw)?;
            Action::GetState { key: state_key(ty, &message.key)?, completion: completion(ty, message.result_completion_id)? }
        }
        entry_type::SET_STATE => {
            let message = parse::<messages::SetState>(ty, raw)?;
            let value = message.value.ok_or_else(|| illegal(ty, "without a value"))?;
            Action::SetState { key: state_key(ty, &message.key)?, value: place(raw, &value.content) }
        }
        entry_type::CLEAR_STATE => Action::ClearState { key: state_key(ty, &parse::<messages::ClearState>(ty, raw)?.key)? },
        entry_type::CLEAR_ALL_STATE => {
            parse::<messages::Named>(ty, raw)?;
            Action::ClearAllState
        }
        entry_type::GET_LAZY_STATE_KEYS => {
            let message = parse::<messages::Completable>(ty, raw)?;
            Action::GetStateKeys { completion: completion(ty, message.result_completion_id)? }
        }
        entry_type::GET_EAGER_STATE => {
            let message = parse::<messages::GetEagerState>(ty, raw)?;
            state_key(ty, &message.key)?;
            match message.result {
                Some(EagerResult::Void(_) | EagerResult::Value(_)) => Action::Keep,
                None => return Err(illegal(ty, "without a result")),
            }
        }
        entry_type::GET_EAGER_STATE_KEYS => {
            parse::<messages::Named>(ty, raw)?;
            Action::Keep
        }
        entry_type::SLEEP => {
            let message = parse::<messages::Sleep>(ty, raw)?;
            let until = Timestamp(message.wake_up_time);
            Action::Sleep { until, completion: completion(ty, message.result_completion_id)? }
        }
        entry_type::RUN => {
            let message = parse::<messages::Completable>(ty, raw)?;
            Action::Run { completion: completion(ty, message.result_completion_id)? }
        }
        entry_type::CALL => return call(raw),
        entry_type::ONE_WAY_CALL => return one_way_call(raw),
        _ => {
            return Err(match message_type::name(ty) {
                Some(name) if message_type::unsupported(ty) => Violation::Unsupported { ty, name },
                Some(name) => Violation::Illegal(format!("a handler must not send {name}")),
                None => Violation::Illegal(format!("unknown message type {ty:#06x}")),
            });
        }
    };
    Ok(Command::Act(action))
}

fn call(raw: &Bytes) -> Result<Command, Violation> {
    let ty = entry_type::CALL;
    bounded(ty, raw, &[CALL_HEADERS])?;
    let message = parse::<messages::Call>(ty, raw)?;
    unscoped(ty, &message.scope, &message.limit_key)?;
    Ok(Command::Call(Box::new(Call {
        service: message.service_name,
        handler: message.handler_name,
        key: message.key,
        parameter: message.parameter,
        headers: pairs(message.headers),
        idempotency_key: message.idempotency_key,
        invoke_at: None,
        id_completion: completion(ty, message.invocation_id_notification_idx)?,
        result: Some(completion(ty, message.result_completion_id)?),
    })))
}

fn one_way_call(raw: &Bytes) -> Result<Command, Violation> {
    let ty = entry_type::ONE_WAY_CALL;
    bounded(ty, raw, &[ONE_WAY_CALL_HEADERS])?;
    let message = parse::<messages::OneWayCall>(ty, raw)?;
    unscoped(ty, &message.scope, &message.limit_key)?;
    Ok(Command::Call(Box::new(Call {
        service: message.service_name,
        handler: message.handler_name,
        key: message.key,
        parameter: message.parameter,
        headers: pairs(message.headers),
        idempotency_key: message.idempotency_key,
        invoke_at: (message.invoke_time > 0).then_some(Timestamp(message.invoke_time)),
        id_completion: completion(ty, message.invocation_id_notification_idx)?,
        result: None,
    })))
}

fn run_proposed(raw: Bytes) -> Result<Message, Violation> {
    let ty = message_type::PROPOSE_RUN_COMPLETION;
    bounded(ty, &raw, &[RUN_FAILURE, FAILURE_METADATA])?;
    let message = parse::<messages::ProposeRunCompletion>(ty, &raw)?;
    let completion = completion(ty, message.result_completion_id)?;
    let outcome = match message.result {
        Some(RunResult::Value(value)) => Outcome::Success(value),
        Some(RunResult::Failure(failure)) => Outcome::Failure(failure_of(failure)),
        None => return Err(illegal(ty, "without a result")),
    };
    Ok(Message::RunProposed { completion, outcome })
}

fn suspension(raw: Bytes) -> Result<Message, Violation> {
    let ty = message_type::SUSPENSION;
    if raw.len() > SUSPENSION_BYTES_MAX {
        return Err(illegal(ty, &format!("of {} bytes, and {SUSPENSION_BYTES_MAX} are let through", raw.len())));
    }
    let message = parse::<messages::Suspension>(ty, &raw)?;
    let ids = message.waiting_completions.len() + message.waiting_signals.len() + message.waiting_named_signals.len();
    if ids > AWAITED_MAX {
        return Err(illegal(ty, &format!("that waits for {ids} things, and {AWAITED_MAX} are let through")));
    }
    let mut awaiting = Vec::with_capacity(ids);
    for id in message.waiting_completions {
        awaiting.push(NotificationId::Completion(completion(ty, id)?));
    }
    awaiting.extend(message.waiting_signals.into_iter().map(NotificationId::Signal));
    awaiting.extend(message.waiting_named_signals.into_iter().map(|name| NotificationId::NamedSignal(name.into())));
    if awaiting.is_empty() {
        return Err(illegal(ty, "that waits for nothing"));
    }
    Ok(Message::Suspended { awaiting })
}

fn error(raw: Bytes) -> Result<Message, Violation> {
    let message = parse::<messages::Error>(message_type::ERROR, &raw)?;
    let command = message.related_command_index.map(|index| {
        let ty = message.related_command_type.and_then(|ty| u16::try_from(ty).ok()).unwrap_or_default();
        (index, ty, message.related_command_name.unwrap_or_default())
    });
    Ok(Message::Failed(HandlerError {
        // Codes are HTTP-like; what cannot be one is an internal error.
        code: if (1..=u32::from(u16::MAX)).contains(&message.code) { message.code } else { 500 },
        message: message.message,
        stacktrace: (!message.stacktrace.is_empty()).then_some(message.stacktrace),
        command,
        next_retry_delay_ms: message.next_retry_delay,
        behavior: match message.behavior {
            1 => Behavior::Pause,
            2 => Behavior::Fail,
            _ => Behavior::Retry,
        },
    }))
}

fn parse<M: prost::Message + Default>(ty: u16, raw: &Bytes) -> Result<M, Violation> {
    M::decode(raw.clone()).map_err(|e| illegal(ty, &format!("that does not decode: {e}")))
}

/// Refuses a message in which the field at the end of `path`, one tag per level of nesting, occurs too often.
fn bounded(ty: u16, raw: &Bytes, path: &[u32]) -> Result<(), Violation> {
    let found = occurrences(raw, path).map_err(|e| illegal(ty, &format!("that does not decode: {e}")))?;
    if found > PAIRS_MAX {
        let what = format!("with {found} headers or pieces of metadata, and {PAIRS_MAX} are let through");
        return Err(illegal(ty, &what));
    }
    Ok(())
}

fn occurrences(mut raw: &[u8], path: &[u32]) -> Result<usize, prost::DecodeError> {
    let Some((tag, inner)) = path.split_first() else { return Ok(1) };
    let mut found = 0;
    while !raw.is_empty() {
        let (field, wire_type) = decode_key(&mut raw)?;
        if field != *tag || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, field, &mut raw, DecodeContext::default())?;
            continue;
        }
        let len = usize::try_from(decode_varint(&mut raw)?).unwrap_or(usize::MAX);
        let Some((content, rest)) = raw.split_at_checked(len) else {
            // What is cut off is for the decoder to refuse.
            return Ok(found);
        };
        found += occurrences(content, inner)?;
        raw = rest;
    }
    Ok(found)
}

fn illegal(ty: u16, what: &str) -> Violation {
    let name = message_type::name(ty).unwrap_or("message");
    Violation::Illegal(format!("the handler sent {name} {what}"))
}

fn completion(ty: u16, id: u32) -> Result<u32, Violation> {
    if id == 0 { Err(illegal(ty, "without a completion id")) } else { Ok(id) }
}

fn state_key(ty: u16, key: &Bytes) -> Result<Text, Violation> {
    std::str::from_utf8(key).map(Text::from).map_err(|_| illegal(ty, "with a state key that is not UTF-8"))
}

fn unscoped(ty: u16, scope: &Option<String>, limit_key: &Option<String>) -> Result<(), Violation> {
    let name = message_type::name(ty).unwrap_or("message");
    match (scope, limit_key) {
        (None, None) => Ok(()),
        (Some(_), _) => Err(Violation::Scoped { ty, name, field: "scope" }),
        (None, Some(_)) => Err(Violation::Scoped { ty, name, field: "limit key" }),
    }
}

fn pairs(pairs: Vec<messages::Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|p| (p.key, p.value)).collect()
}

fn failure_of(failure: messages::Failure) -> Failure {
    Failure { code: failure.code, message: failure.message, metadata: pairs(failure.metadata), stacktrace: None }
}

/// Where `payload` lies in `raw`, which it is a slice of.
pub fn place(raw: &Bytes, payload: &Bytes) -> (u32, u32) {
    if payload.is_empty() {
        return (0, 0);
    }
    let start = (payload.as_ptr() as usize).wrapping_sub(raw.as_ptr() as usize);
    assert!(start < raw.len() && payload.len() <= raw.len() - start, "bytes fields are decoded by reference");
    let number = |n: usize| u32::try_from(n).expect("messages are bounded far below 4 GiB");
    (number(start), number(payload.len()))
}
