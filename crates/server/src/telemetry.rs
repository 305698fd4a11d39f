//! Metrics of the process.
//!
//! Owns: the recorder behind the `metrics` crate, which is one per process, its page, and what each metric says there. Does not own: the
//! metrics themselves (each room has its own), or logs (`cli`).

use metrics_exporter_prometheus::PrometheusBuilder;
use std::sync::Arc;
use std::time::Duration;
use surefoot_admin::MetricsPage;
use surefoot_env::Env;

/// How often samples are folded into summaries; between two of them each sample is kept.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What each metric says. A room's metric without its line here is caught by a tidy test.
const HELP: &[(&str, Kind, &str)] = &[
    ("surefoot_ingress_requests_total", Kind::Counter, "Requests of clients, by what became of them."),
    ("surefoot_ingress_request_duration_seconds", Kind::Histogram, "Time from a request's admission to its answer."),
    ("surefoot_ingress_http_connection_created_total", Kind::Counter, "Connections of clients that were accepted."),
    (
        "surefoot_ingress_http_connection_refused_total",
        Kind::Counter,
        "Of these, those that were not served: all places were in use, or the server was stopping.",
    ),
    ("surefoot_invoker_concurrency_limit", Kind::Gauge, "Attempts that may run at a time."),
    ("surefoot_invoker_invocation_tasks_total", Kind::Counter, "Attempts, by what became of them."),
    ("surefoot_invoker_client_requests_total", Kind::Counter, "Responses of deployments, by kind and status."),
    ("surefoot_invoker_task_duration_seconds", Kind::Histogram, "How long attempts took."),
    ("surefoot_invoker_slots_acquired_total", Kind::Counter, "Places that attempts took."),
    ("surefoot_invoker_slots_released_total", Kind::Counter, "Places that attempts gave back."),
    ("surefoot_invoker_sent_bytes_total", Kind::Counter, "Bytes sent to deployments."),
    ("surefoot_invoker_received_bytes_total", Kind::Counter, "Bytes received from deployments."),
    ("surefoot_kafka_ingress_requests_total", Kind::Counter, "Kafka records that were admitted."),
    ("surefoot_kafka_ingress_consumer_lag", Kind::Gauge, "Kafka records behind the end of a Kafka partition."),
    ("surefoot_disk_free_bytes", Kind::Gauge, "Bytes that are free where the data directory is."),
    ("surefoot_disk_edges_refused", Kind::Gauge, "1 while calls are refused for want of disk, else 0."),
    ("surefoot_disk_work_held", Kind::Gauge, "1 while running invocations wait for want of disk, else 0."),
    ("surefoot_disk_evicted_total", Kind::Counter, "Completed invocations that went before their time for want of disk."),
    ("surefoot_kafka_ingress_held", Kind::Gauge, "1 while a subscription is held, else 0."),
    ("surefoot_kafka_ingress_standing_still", Kind::Gauge, "Streams that stand still without a reason."),
    ("surefoot_kafka_ingress_standstills_total", Kind::Counter, "How often a stream stood still without a reason."),
    ("surefoot_kafka_ingress_panics_total", Kind::Counter, "Tasks of subscriptions that died and were started again."),
    ("surefoot_kafka_ingress_parked_total", Kind::Counter, "Kafka records that were parked."),
];

enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Installs the recorder of this process and returns its page. **Errors**: there is one already.
pub fn install_metrics(env: &Env) -> Result<MetricsPage, metrics_exporter_prometheus::BuildError> {
    let recorder = PrometheusBuilder::new().install_recorder()?;
    for (name, kind, text) in HELP {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *text),
            Kind::Gauge => metrics::describe_gauge!(*name, *text),
            Kind::Histogram => metrics::describe_histogram!(*name, *text),
        }
    }
    let (upkeep, clock) = (recorder.clone(), env.clock.clone());
    env.tasks.spawn(Box::pin(async move {
        loop {
            clock.sleep(UPKEEP_INTERVAL).await;
            upkeep.run_upkeep();
        }
    }));
    Ok(Arc::new(move || recorder.render()))
}
