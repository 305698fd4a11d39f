//! The handle through which a client calls and sends, with or without HTTP.
//!
//! Owns: checks, submission and what comes back. Cheap to clone. Does not own: HTTP shapes (`service`).

use crate::arrivals::ArrivalRoom;
use crate::metrics::{Kind, Metrics};
use crate::wait::{HOLDING_WAIT_MAX, ROOM_WAIT_MAX, within};
use crate::{Error, check};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::Env;
use surefoot_model::catalog::{Catalog, Defaults};
use surefoot_model::{InvocationId, Origin, Outcome, Submission, Timestamp};
use surefoot_partition::{Answer, Partitions};
use surefoot_protocol::{NewSubmission, SubmissionError, build_submission};

#[derive(Clone)]
pub struct Ingress(Arc<Shared>);

struct Shared {
    partitions: Partitions,
    defaults: Defaults,
    metrics: Metrics,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub service: &'a str,
    pub handler: &'a str,
    /// Empty for plain services.
    pub key: &'a str,
    /// Names in lower case. The handler gets all of them; `content-type` is checked against its input.
    pub headers: Vec<(&'a str, &'a str)>,
    pub body: Bytes,
    pub idempotency_key: Option<&'a str>,
}

/// A call that has its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Completed {
    pub id: InvocationId,
    pub outcome: Outcome,
    /// Set where the result was read from a retained completion.
    pub expires_at: Option<Timestamp>,
    /// The content type of a success.
    pub content_type: Option<String>,
}

/// A send that is durable.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub id: InvocationId,
    /// An earlier submission of the same id is in its place.
    pub existing: bool,
    pub execute_at: Option<Timestamp>,
}

impl Ingress {
    /// `defaults` hold where neither handler nor service sets an option.
    pub fn new(partitions: Partitions, defaults: Defaults) -> Self {
        Self(Arc::new(Shared { partitions, defaults, metrics: Metrics::default() }))
    }

    /// Calls a handler and waits for its result, however long it takes. A client that stops waiting does not affect the invocation.
    pub async fn call(&self, request: Request<'_>) -> Result<Completed, Error> {
        let catalog = self.catalog();
        self.check(&catalog, &request).inspect_err(|error| self.metrics().refused(error))?;
        self.submit_call(&catalog, request, ArrivalRoom::default()).await
    }

    /// Starts an invocation, at once or after a delay, and returns when that is durable.
    pub async fn send(&self, request: Request<'_>, delay: Option<Duration>) -> Result<Accepted, Error> {
        let catalog = self.catalog();
        self.check(&catalog, &request).inspect_err(|error| self.metrics().refused(error))?;
        self.submit_send(&catalog, request, delay, ArrivalRoom::default()).await
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.0.partitions.catalog().load()
    }

    pub(crate) fn env(&self) -> &Env {
        self.0.partitions.env()
    }

    /// Whether memory has no room because clients do not take results that they have been given.
    pub(crate) fn wants_results_taken(&self) -> bool {
        self.0.partitions.wants_results_taken()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits for room for so many bytes more that a service is to work on. **Errors**: the disk is full, which is not waited for, or memory
    /// was for a while.
    pub(crate) async fn room(&self, service: &str, bytes: u64, wait_max: Duration) -> Result<(), Error> {
        let room = within(&*self.env().clock, wait_max, self.0.partitions.room(service, bytes)).await.ok_or(Error::NoRoom)?;
        room.map_err(Error::Stopped)
    }

    fn check(&self, catalog: &Catalog, request: &Request<'_>) -> Result<(), Error> {
        let service = check::service(catalog, request.service)?;
        if !service.is_keyed() && !request.key.is_empty() {
            return Err(Error::PathShape);
        }
        let handler = check::handler(service, request.handler)?;
        check::idempotency_key(handler, request.idempotency_key.map(str::as_bytes))?;
        let content_type = request.headers.iter().find(|(name, _)| *name == "content-type").map(|(_, value)| *value);
        check::input(&handler.input, content_type, request.body.is_empty())
    }

    /// A call whose checks are done. `room` is what its body takes until it is appended.
    pub(crate) async fn submit_call(
        &self,
        catalog: &Catalog,
        mut request: Request<'_>,
        room: ArrivalRoom,
    ) -> Result<Completed, Error> {
        let submission = self.build(catalog, &mut request, None).inspect_err(|error| self.metrics().refused(error))?;
        let watch = self.metrics().begin(request.service, Kind::Call, self.env());
        let done = match self.submit(submission, true, room).await {
            Ok(Answer::Completed { id, outcome, expires_at }) => {
                let content_type = self.content_type(&request, &outcome);
                Ok(Completed { id, outcome, expires_at, content_type })
            }
            Ok(Answer::AlreadyInvoked { id }) => Err(Error::AlreadyInvoked(id)),
            Ok(Answer::NoRoom) => Err(Error::NoRoom),
            Ok(other @ (Answer::Accepted { .. } | Answer::Operation(_))) => {
                unreachable!("a call is answered with its result: {other:?}")
            }
            Err(error) => Err(error),
        };
        watch.end(done.as_ref().map(|completed| completed.outcome.is_success()));
        done
    }

    /// A send whose checks are done. `room` is what its body takes until it is appended.
    pub(crate) async fn submit_send(
        &self,
        catalog: &Catalog,
        mut request: Request<'_>,
        delay: Option<Duration>,
        room: ArrivalRoom,
    ) -> Result<Accepted, Error> {
        let execute_at = delay.map(|delay| {
            let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            Timestamp(self.env().clock.now_ms()).after_ms(ms)
        });
        let submission = self.build(catalog, &mut request, execute_at).inspect_err(|error| self.metrics().refused(error))?;
        let watch = self.metrics().begin(request.service, Kind::Send, self.env());
        let done = match self.submit(submission, false, room).await {
            Ok(Answer::Accepted { id, existing, execute_at }) => Ok(Accepted { id, existing, execute_at }),
            Ok(Answer::Completed { id, .. } | Answer::AlreadyInvoked { id }) => {
                Ok(Accepted { id, existing: true, execute_at: None })
            }
            Ok(other @ (Answer::Operation(_) | Answer::NoRoom)) => unreachable!("a send is answered as one: {other:?}"),
            Err(error) => Err(error),
        };
        watch.end(done.as_ref().map(|_| true));
        done
    }

    async fn submit(&self, submission: Submission, awaits_result: bool, room: ArrivalRoom) -> Result<Answer, Error> {
        if room.holds_large() {
            self.room(&submission.target.service, submission.input.len() as u64, HOLDING_WAIT_MAX).await?;
        }
        // Until it is submitted it can be given up: it is appended in the last step, or not at all.
        let submitting = self.0.partitions.submit(submission, awaits_result);
        let submitted = within(&*self.env().clock, ROOM_WAIT_MAX, submitting).await.ok_or(Error::NoRoom)?;
        let submitted = submitted.map_err(Error::Stopped)?;
        // From here on it counts among what is appended.
        drop(room);
        submitted.answer().await.map_err(Error::Stopped)
    }

    /// Takes the body: once it is in the submission, nobody who waits for the answer holds it.
    fn build(&self, catalog: &Catalog, request: &mut Request<'_>, execute_at: Option<Timestamp>) -> Result<Submission, Error> {
        let new = NewSubmission {
            service: request.service,
            handler: request.handler,
            key: request.key,
            headers: &request.headers,
            body: std::mem::take(&mut request.body),
            idempotency_key: request.idempotency_key,
            execute_at,
            origin: Origin::Ingress,
        };
        build_submission(catalog, &self.0.defaults, self.env().ids.random_u128(), new).map_err(|error| match error {
            SubmissionError::UnknownService => Error::ServiceNotFound(request.service.to_owned()),
            SubmissionError::UnknownHandler => {
                Error::HandlerNotFound { service: request.service.to_owned(), handler: request.handler.to_owned() }
            }
            SubmissionError::KeyTooLong(_) | SubmissionError::IdempotencyKeyTooLong(_) => Error::KeyTooLong(error.to_string()),
        })
    }

    /// As the newest revision of the handler declares it, which may be another than the one that ran.
    fn content_type(&self, request: &Request<'_>, outcome: &Outcome) -> Option<String> {
        let Outcome::Success(body) = outcome else { return None };
        let catalog = self.catalog();
        let (_, handler) = catalog.handler(request.service, request.handler)?;
        check::output_type(&handler.output, body.is_empty()).map(str::to_owned)
    }
}
