//! Looking at invocations, and acting on one.
//!
//! Owns: the JSON shape of an invocation, the filter of a listing, and what each action's outcome means to a client (HTTP reference
//! 2.5). Does not own: what an action does (`machine`).

use crate::text::timestamp;
use crate::{Admin, Error};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use surefoot_model::{InvocationId, Operation, Status};
use surefoot_partition::{InvocationInfo, ListFilter, OperationAnswer};

/// Invocations per page where the client does not say.
const PAGE: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InvocationQuery {
    service: Option<String>,
    key: Option<String>,
    status: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct InvocationJson {
    id: String,
    target: String,
    service: String,
    handler: String,
    key: Option<String>,
    status: &'static str,
    attempt: u32,
    last_error: Option<String>,
    next_retry_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
    created_at: String,
    modified_at: String,
}

#[derive(Serialize)]
pub(crate) struct Invocations {
    invocations: Vec<InvocationJson>,
    next: Option<String>,
}

impl Admin {
    /// Kills, pauses, resumes or purges one invocation. Returns 200 where it is done, 202 where it happens at the next safe point.
    pub async fn operate(&self, id: InvocationId, operation: Operation) -> Result<StatusCode, Error> {
        outcome(id, operation, self.shared().partitions.operate(id, operation).await?)
    }

    pub(crate) async fn list_invocations(&self, query: InvocationQuery) -> Result<Invocations, Error> {
        let page = self.shared().partitions.list(filter(query)?).await?;
        Ok(Invocations {
            invocations: page.invocations.iter().map(invocation_json).collect(),
            next: page.next.map(|id| id.to_string()),
        })
    }

    pub(crate) async fn show_invocation(&self, id: InvocationId) -> Result<InvocationJson, Error> {
        let found = self.shared().partitions.invocation(id).await?;
        found.map(|info| invocation_json(&info)).ok_or(Error::InvocationNotFound(id))
    }
}

fn outcome(id: InvocationId, operation: Operation, answer: OperationAnswer) -> Result<StatusCode, Error> {
    match answer {
        OperationAnswer::Done => Ok(StatusCode::OK),
        OperationAnswer::Accepted => Ok(StatusCode::ACCEPTED),
        OperationAnswer::NotFound => Err(Error::InvocationNotFound(id)),
        OperationAnswer::Completed => Err(Error::InvocationCompleted(id)),
        OperationAnswer::NotCompleted => Err(Error::InvocationNotCompleted(id)),
        OperationAnswer::NotStarted if operation == Operation::Pause => Err(Error::InvocationNotRunning(id)),
        OperationAnswer::NotStarted => Err(Error::InvocationNotStarted(id)),
    }
}

fn filter(query: InvocationQuery) -> Result<ListFilter, Error> {
    let given = |value: Option<String>| value.filter(|text| !text.is_empty());
    let status = given(query.status).map(|text| {
        let known = Status::ALL.into_iter().find(|status| status.as_str() == text);
        known.ok_or_else(|| {
            let names: Vec<&str> = Status::ALL.into_iter().map(Status::as_str).collect();
            Error::Query(format!("status: '{text}' is none of {}", names.join(", ")))
        })
    });
    let limit = given(query.limit).map(|text| {
        let number = text.parse().ok().filter(|limit| *limit >= 1);
        number.ok_or_else(|| Error::Query(format!("limit: '{text}' is no number from 1")))
    });
    let after =
        given(query.after).map(|text| text.parse().map_err(|_| Error::Query(format!("after: '{text}' is no invocation id"))));
    Ok(ListFilter {
        service: given(query.service),
        // The empty key is a key.
        key: query.key,
        status: status.transpose()?,
        after: after.transpose()?,
        limit: limit.transpose()?.unwrap_or(PAGE),
    })
}

fn invocation_json(info: &InvocationInfo) -> InvocationJson {
    let failed = info.failure.as_ref().map(|failure| (failure.code, &failure.message));
    let last_error = failed.or(info.last_error.as_ref().map(|error| (error.code, &error.message)));
    InvocationJson {
        id: info.id.to_string(),
        target: info.target.to_string(),
        service: info.target.service.to_string(),
        handler: info.target.handler.to_string(),
        key: info.target.kind.is_keyed().then(|| info.target.key.to_string()),
        status: info.status.as_str(),
        attempt: info.attempts,
        last_error: last_error.map(|(code, message)| format!("[{code}] {message}")),
        next_retry_at: info.next_retry_at.map(timestamp),
        waits_for: info.waits_for.clone(),
        created_at: timestamp(info.created_at),
        modified_at: timestamp(info.modified_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_model::{AttemptError, Failure, Origin, Target, TargetKind, Timestamp};

    fn id() -> InvocationId {
        InvocationId { partition_key: 1, unique: 2 }
    }

    #[test]
    fn each_outcome_has_its_status() {
        let status = |operation, answer| outcome(id(), operation, answer).unwrap_or_else(|error| error.status()).as_u16();
        use Operation::{Kill, Pause, Purge, PurgeJournal, Resume};
        for (operation, answer, expected) in [
            (Kill, OperationAnswer::Done, 200),
            (Kill, OperationAnswer::Completed, 409),
            (Kill, OperationAnswer::NotFound, 404),
            (Pause, OperationAnswer::NotStarted, 409),
            (Pause, OperationAnswer::Accepted, 202),
            (Pause, OperationAnswer::Done, 200),
            (Resume, OperationAnswer::NotStarted, 425),
            (Resume, OperationAnswer::Completed, 409),
            (Purge, OperationAnswer::NotCompleted, 409),
            (PurgeJournal, OperationAnswer::NotCompleted, 409),
        ] {
            assert_eq!(status(operation, answer), expected, "{operation:?} {answer:?}");
        }
    }

    #[test]
    fn a_filter_says_what_it_cannot_read() {
        let query = |status: &str, limit: &str, after: &str| InvocationQuery {
            status: Some(status.into()),
            limit: Some(limit.into()),
            after: Some(after.into()),
            ..InvocationQuery::default()
        };
        let read = filter(query("backing-off", "7", &id().to_string())).unwrap();
        assert_eq!((read.status, read.limit, read.after), (Some(Status::BackingOff), 7, Some(id())));
        let read = filter(query("", "", "")).unwrap();
        assert_eq!((read.status, read.limit, read.after), (None, PAGE, None));
        for (query, says) in [
            (query("stuck", "", ""), "none of scheduled, pending, running"),
            (query("", "0", ""), "no number from 1"),
            (query("", "", "inv_x"), "no invocation id"),
        ] {
            let error = filter(query).unwrap_err();
            assert!(error.status() == 400 && error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn an_invocation_shows_what_helps_with_a_stuck_key() {
        let mut info = InvocationInfo {
            id: id(),
            target: Target::new(TargetKind::ObjectExclusive, "Obj", "k", "set"),
            status: Status::BackingOff,
            idempotency_key: None,
            origin: Origin::Ingress,
            created_at: Timestamp(0),
            modified_at: Timestamp(1),
            execute_at: None,
            attempts: 3,
            last_error: Some(AttemptError {
                code: 500,
                message: "boom".into(),
                at: Timestamp(1),
                stacktrace: None,
                command: None,
            }),
            next_retry_at: Some(Timestamp(2)),
            waits_for: None,
            pin: None,
            journal_len: 1,
            failure: None,
            completed_at: None,
        };
        assert_eq!(
            serde_json::to_string(&invocation_json(&info)).unwrap(),
            format!(
                r#"{{"id":"{}","target":"Obj/k/set","service":"Obj","handler":"set","key":"k","status":"backing-off","attempt":3,"last_error":"[500] boom","next_retry_at":"1970-01-01T00:00:00.002000000Z","created_at":"1970-01-01T00:00:00.000000000Z","modified_at":"1970-01-01T00:00:00.001000000Z"}}"#,
                id()
            )
        );
        info.failure = Some(Failure::new(409, "killed"));
        info.target = Target::new(TargetKind::Service, "Svc", "", "echo");
        let json = invocation_json(&info);
        assert_eq!((json.key, json.last_error.as_deref()), (None, Some("[409] killed")));
    }
}
