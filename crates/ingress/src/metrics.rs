//! Counters of the ingress.
//!
//! Owns: their names, and the handles of each registered service, so that the way of a request looks nothing up by label. Does
//! not own: where they are shown (`admin`).

use crate::{Error, ErrorSource};
use metrics::{Counter, Histogram, counter, histogram};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use surefoot_env::{Clock, Env};

const REQUESTS: &str = "surefoot_ingress_requests_total";
const DURATION: &str = "surefoot_ingress_request_duration_seconds";
const CONNECTIONS: &str = "surefoot_ingress_http_connection_created_total";
const CONNECTIONS_REFUSED: &str = "surefoot_ingress_http_connection_refused_total";

pub(crate) struct Metrics {
    admitted: Counter,
    refused: Counter,
    rate_limited: Counter,
    /// Services that were called: at most those that were ever registered.
    services: RwLock<BTreeMap<String, Arc<[PerKind; 2]>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Call,
    Send,
}

struct PerKind {
    completed: Counter,
    invocation_error: Counter,
    ingress_error: Counter,
    request_error: Counter,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = |status: &'static str| counter!(REQUESTS, "status" => status);
        Self {
            admitted: requests("admitted"),
            refused: requests("request_error"),
            rate_limited: requests("rate-limited"),
            services: RwLock::default(),
        }
    }
}

impl PerKind {
    fn new(service: &str, kind: &'static str) -> Self {
        let requests = |status: &'static str| counter!(REQUESTS, "status" => status, "rpc_service" => service.to_owned(), "rpc_type" => kind);
        Self {
            completed: requests("completed"),
            invocation_error: requests("invocation_error"),
            ingress_error: requests("ingress_error"),
            request_error: requests("request_error"),
            duration: histogram!(DURATION, "rpc_service" => service.to_owned(), "rpc_type" => kind),
        }
    }
}

/// Connections over the life of the process.
pub(crate) struct Connections {
    pub(crate) accepted: Counter,
    /// Of these, those that were not served.
    pub(crate) refused: Counter,
}

impl Default for Connections {
    fn default() -> Self {
        Self { accepted: counter!(CONNECTIONS), refused: counter!(CONNECTIONS_REFUSED) }
    }
}

/// One request from its admission to its answer. Counts nothing more when its client goes away.
pub(crate) struct Watch {
    service: Arc<[PerKind; 2]>,
    kind: Kind,
    clock: Arc<dyn Clock>,
    start: Duration,
}

impl Metrics {
    /// A request for a service that is registered.
    pub(crate) fn begin(&self, service: &str, kind: Kind, env: &Env) -> Watch {
        self.admitted.increment(1);
        Watch { service: self.service(service), kind, clock: env.clock.clone(), start: env.clock.monotonic() }
    }

    /// A request that was turned away before it was admitted. One that was is counted by its [`Watch`], and nowhere else.
    pub(crate) fn refused(&self, error: &Error) {
        match error {
            Error::TooManyRequests => self.rate_limited.increment(1),
            _ => self.refused.increment(1),
        }
    }

    fn service(&self, name: &str) -> Arc<[PerKind; 2]> {
        if let Some(known) = self.services.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return known.clone();
        }
        let new = Arc::new([PerKind::new(name, "call"), PerKind::new(name, "send")]);
        self.services.write().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_insert(new).clone()
    }
}

impl Watch {
    /// The answer: whether the invocation succeeded, or why there is none.
    pub(crate) fn end(self, answer: Result<bool, &Error>) {
        let of_kind = &self.service[self.kind as usize];
        let counter = match answer {
            Ok(true) => &of_kind.completed,
            Ok(false) => &of_kind.invocation_error,
            Err(error) if error.source() == ErrorSource::Invocation => &of_kind.invocation_error,
            Err(error) if error.status().is_server_error() => &of_kind.ingress_error,
            Err(_) => &of_kind.request_error,
        };
        counter.increment(1);
        of_kind.duration.record(self.clock.monotonic().saturating_sub(self.start).as_secs_f64());
    }
}
