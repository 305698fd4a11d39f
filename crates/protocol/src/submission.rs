//! Submissions resolved against the catalog: all that `apply` needs to know of it and of the settings is put into the event (rule M1).
//!
//! Owns: the one way to make a submission, for calls between handlers, calls over HTTP and Kafka records alike. Does not own: whether the
//! caller may ask (public or private, key rules of the way in), where randomness comes from, or who waits for the result.

use crate::encode_input;
use surefoot_model::catalog::{Catalog, Defaults};
use surefoot_model::{InvocationId, Origin, Submission, Target, Timestamp};

/// What is to be invoked, as its caller names it.
#[derive(Clone, Debug)]
pub struct NewSubmission<'a, K, V> {
    pub service: &'a str,
    pub handler: &'a str,
    /// Empty for plain services, whatever the key.
    pub key: &'a str,
    /// In the order in which the handler is to see them.
    pub headers: &'a [(K, V)],
    pub body: bytes::Bytes,
    pub idempotency_key: Option<&'a str>,
    /// Absent: at once.
    pub execute_at: Option<Timestamp>,
    pub origin: Origin,
}

/// Bytes of a key of an object or workflow, of an idempotency key, and of the name of a value in an object's state. With service names and their escapes both fit
/// into one key of the tables, which holds 64 KiB.
pub const KEY_BYTES_MAX: usize = 12_000;

/// Why it cannot be invoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmissionError {
    #[error("service not found")]
    UnknownService,
    #[error("handler not found")]
    UnknownHandler,
    #[error("the key has {0} bytes, more than the {KEY_BYTES_MAX} that a key may have")]
    KeyTooLong(usize),
    #[error("the idempotency key has {0} bytes, more than the {KEY_BYTES_MAX} that a key may have")]
    IdempotencyKeyTooLong(usize),
}

/// A submission with a new id, unless an idempotency key or a workflow's key names it. The same `random` gives the same id and seed (rule
/// K3). Nobody waits for it yet: request, caller and source are the caller's to fill in. **Errors**: [`SubmissionError`].
pub fn build_submission<K: AsRef<str>, V: AsRef<str>>(
    catalog: &Catalog,
    defaults: &Defaults,
    random: u128,
    new: NewSubmission<'_, K, V>,
) -> Result<Submission, SubmissionError> {
    let service = catalog.services.get(new.service).ok_or(SubmissionError::UnknownService)?;
    let handler = service.handlers.get(new.handler).ok_or(SubmissionError::UnknownHandler)?;
    let key = if service.is_keyed() { new.key } else { "" };
    if key.len() > KEY_BYTES_MAX {
        return Err(SubmissionError::KeyTooLong(key.len()));
    }
    if let Some(name) = new.idempotency_key
        && name.len() > KEY_BYTES_MAX
    {
        return Err(SubmissionError::IdempotencyKeyTooLong(name.len()));
    }
    let target = Target { kind: handler.target, service: service.name.clone(), key: key.into(), handler: handler.name.clone() };
    Ok(Submission {
        id: InvocationId::for_submission(&target, new.idempotency_key, random),
        input: encode_input(new.headers, &new.body),
        idempotency_key: new.idempotency_key.map(Into::into),
        origin: new.origin,
        execute_at: new.execute_at,
        retention: service.retention(handler, new.idempotency_key.is_some(), defaults),
        random_seed: (random >> 64) as u64 ^ random as u64,
        target,
        request: None,
        caller: None,
        source: None,
    })
}
