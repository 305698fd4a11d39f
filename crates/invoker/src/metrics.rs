//! Counters of the invoker.
//!
//! Owns: their names, and the handles, so that the way of an attempt looks nothing up by label. Does not own: where they are shown
//! (`admin`).

use ::http::StatusCode;
use metrics::{Counter, Histogram, counter, gauge, histogram};

const TASKS: &str = "surefoot_invoker_invocation_tasks_total";
const REQUESTS: &str = "surefoot_invoker_client_requests_total";

pub(crate) struct Metrics {
    pub(crate) started: Counter,
    pub(crate) completed: Counter,
    pub(crate) suspended: Counter,
    pub(crate) failed: Counter,
    /// Killed, paused, or of a term that is over.
    pub(crate) aborted: Counter,
    pub(crate) duration: Histogram,
    pub(crate) slots_acquired: Counter,
    pub(crate) slots_released: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    /// Responses with status 200, by whether the stream stays open both ways.
    responses: [Counter; 2],
}

impl Metrics {
    pub(crate) fn new(slots: usize) -> Self {
        gauge!("surefoot_invoker_concurrency_limit").set(slots as f64);
        let tasks = |status: &'static str| counter!(TASKS, "status" => status);
        Self {
            started: tasks("started"),
            completed: tasks("completed"),
            suspended: tasks("suspended"),
            failed: tasks("failed"),
            aborted: tasks("aborted"),
            duration: histogram!("surefoot_invoker_task_duration_seconds"),
            slots_acquired: counter!("surefoot_invoker_slots_acquired_total"),
            slots_released: counter!("surefoot_invoker_slots_released_total"),
            sent_bytes: counter!("surefoot_invoker_sent_bytes_total"),
            received_bytes: counter!("surefoot_invoker_received_bytes_total"),
            responses: [false, true].map(|is_bidirectional| responses(is_bidirectional, StatusCode::OK)),
        }
    }

    /// The head of a response has come.
    pub(crate) fn responded(&self, is_bidirectional: bool, status: StatusCode) {
        if status == StatusCode::OK {
            self.responses[usize::from(is_bidirectional)].increment(1);
        } else {
            responses(is_bidirectional, status).increment(1);
        }
    }
}

fn responses(is_bidirectional: bool, status: StatusCode) -> Counter {
    let ty = if is_bidirectional { "Http/bidi-stream" } else { "Http/request-response" };
    counter!(REQUESTS, "type" => ty, "status_code" => status.as_str().to_owned())
}
