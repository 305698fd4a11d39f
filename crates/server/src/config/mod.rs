//! Settings, checked once at the start and never read again.
//!
//! Owns: [`Config`], the table of all settings ([`SETTINGS`]), where values come from and which source wins: defaults, then the
//! TOML file, then the environment, then flags. Does not own: what a room does with a setting.

mod docs;
mod load;
mod table;
mod value;

pub use docs::{dump, settings_page};
pub use load::{Loaded, Sources, load};
pub use table::{Kind, SETTINGS, Setting};
pub use value::Address;

use crate::disk::DISK_RESERVE_BYTES;
use std::path::PathBuf;
use std::time::Duration;
use surefoot_model::catalog::{Defaults, OnMaxAttempts, RetryPolicy};

/// Everything an operator decides about a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub base_dir: PathBuf,
    /// Fixed when the data directory is created.
    pub partitions: u16,
    pub cluster_name: String,
    /// Names that both ports may be called by, besides those of this machine.
    pub allowed_hosts: Vec<String>,
    pub ingress: Ingress,
    pub admin: Admin,
    pub shutdown_timeout: Duration,
    pub log_format: LogFormat,
    /// A directive of tracing's `EnvFilter`.
    pub log_filter: String,
    pub retry: RetryPolicySettings,
    pub journal_retention: Duration,
    pub idempotency_retention: Duration,
    pub workflow_completion_retention: Duration,
    pub worker: Worker,
    /// Bytes that memory layers, the engine's buffers and caches may take together.
    pub memory_bytes: u64,
    /// Bytes of completed invocations' journals and unkeyed results (rule R1).
    pub retained_bytes_max: u64,
    /// Bytes of the disk that the edges leave free (rule R2).
    pub disk_reserve_bytes: u64,
    pub checkpoint_interval: Duration,
    pub kafka: Kafka,
    /// Bytes of the largest value that the disk takes. No setting.
    pub value_bytes_max: u64,
    /// Acknowledge before the disk has the data. Loses acknowledged work when the machine loses power.
    pub skip_fsync: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Ingress {
    pub bind_address: Address,
    /// Bytes of one request's body.
    pub request_bytes_max: u64,
    /// Requests in progress at a time; absent: what [`Config::requests_max`] chooses.
    pub requests_max: Option<u64>,
    /// Where clients are told to call, if that is another address than the port's own; empty if not.
    pub advertised_address: String,
    /// Origins of web pages that may call.
    pub allowed_origins: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub bind_address: Address,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// How often expired invocations are looked for.
    pub cleanup_interval: Duration,
    pub invoker: Invoker,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Invoker {
    pub inactivity_timeout: Duration,
    pub abort_timeout: Duration,
    /// Absent: what [`Config::attempts_max`] chooses.
    pub attempts_max: Option<u64>,
    pub journal_entries_max: u64,
    pub journal_bytes_max: u64,
    pub message_bytes_max: u64,
    pub eager_state_bytes_max: u64,
    pub replay_bytes_max: u64,
    pub connect_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicySettings {
    pub initial_interval: Duration,
    pub factor: f64,
    pub max_interval: Duration,
    /// Counts the first attempt; absent: no bound.
    pub max_attempts: Option<u64>,
    pub on_max_attempts: OnMaxAttempts,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Kafka {
    /// Parked Kafka records of one subscription at which it pauses (rule K6).
    pub parked_records_max: u64,
    /// Bytes that are kept of them, at which it pauses as well. No setting.
    pub parked_bytes_max: u64,
    /// What may be under way of one subscription. No setting.
    pub bounds: surefoot_kafka::Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    Compact,
    Json,
}

/// Attempts that run at a time, where an operator does not say and memory allows.
const ATTEMPTS_MAX: u64 = 24_000;
/// So many run however little memory there is.
const ATTEMPTS_MIN: u64 = 100;
/// Share of the memory setting for attempts that wait; it is part of the one for tables.
const ATTEMPTS_SHARE: u64 = 2;
/// What an attempt takes while it waits: its task has less than 4,000 bytes, the rest is its stream.
pub(crate) const WAITING_ATTEMPT_BYTES: u64 = 6 << 10;

/// Requests of clients in progress at a time, where an operator does not say and memory allows.
const REQUESTS_MAX: u64 = 25_000;
/// So many may be however little memory there is.
const REQUESTS_MIN: u64 = 100;
/// Share of the memory setting that they may take beside it.
const REQUESTS_SHARE: u64 = 2;

impl Default for Config {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let defaults = Defaults::default();
        let ms = Duration::from_millis;
        Self {
            base_dir: PathBuf::from("surefoot-data"),
            partitions: 16,
            cluster_name: "localcluster".to_owned(),
            allowed_hosts: Vec::new(),
            ingress: Ingress {
                bind_address: Address::localhost(8080),
                request_bytes_max: 32 * MIB,
                requests_max: None,
                advertised_address: String::new(),
                allowed_origins: Vec::new(),
            },
            admin: Admin { bind_address: Address::localhost(9070) },
            shutdown_timeout: Duration::from_secs(25),
            log_format: LogFormat::Pretty,
            log_filter: "warn,surefoot=info,h2=error".to_owned(),
            retry: RetryPolicySettings {
                initial_interval: ms(defaults.retry.initial_interval_ms),
                factor: defaults.retry.factor,
                max_interval: ms(defaults.retry.max_interval_ms),
                max_attempts: defaults.retry.max_attempts.map(u64::from),
                on_max_attempts: defaults.retry.on_max,
            },
            journal_retention: DAY,
            idempotency_retention: DAY,
            workflow_completion_retention: DAY,
            worker: Worker {
                cleanup_interval: Duration::from_secs(60 * 60),
                invoker: Invoker {
                    inactivity_timeout: ms(defaults.inactivity_timeout_ms),
                    abort_timeout: ms(defaults.abort_timeout_ms),
                    attempts_max: None,
                    journal_entries_max: 500_000,
                    journal_bytes_max: 256 * MIB,
                    message_bytes_max: 32 * MIB,
                    eager_state_bytes_max: 32 * MIB,
                    replay_bytes_max: 64 * MIB,
                    connect_timeout: Duration::from_secs(10),
                },
            },
            memory_bytes: 256 * MIB,
            retained_bytes_max: 4096 * MIB,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            checkpoint_interval: Duration::from_secs(30),
            kafka: Kafka { parked_records_max: 1_000, parked_bytes_max: 256 * MIB, bounds: surefoot_kafka::Bounds::default() },
            value_bytes_max: u64::MAX,
            skip_fsync: false,
        }
    }
}

impl Config {
    /// Bytes of the largest call or Kafka record that is let in: no larger than what handlers can be sent.
    pub fn request_bytes_max(&self) -> u64 {
        self.ingress.request_bytes_max.min(self.worker.invoker.message_bytes_max).min(self.value_bytes_max)
    }

    /// Bytes of the largest message that is taken from a handler. What it is sent may be larger: it was taken when the data directory lay on a
    /// larger disk.
    pub fn report_bytes_max(&self) -> u64 {
        self.worker.invoker.message_bytes_max.min(self.value_bytes_max)
    }

    /// The same for a disk that takes no larger values than so many bytes.
    #[must_use]
    pub fn with_values_of(&self, bytes_max: u64) -> Self {
        for (set_bytes, setting) in [
            (self.ingress.request_bytes_max, "ingress.request-size-limit"),
            (self.worker.invoker.message_bytes_max, "worker.invoker.message-size-limit"),
        ] {
            if bytes_max < set_bytes {
                tracing::warn!(
                    setting,
                    set_bytes,
                    bytes_max,
                    "the disk of the data directory is too small for values as large as that is set to: no larger ones are taken"
                );
            }
        }
        Self { value_bytes_max: bytes_max, ..self.clone() }
    }

    /// Requests of clients in progress at a time.
    pub fn requests_max(&self) -> u64 {
        let fit = self.memory_bytes / REQUESTS_SHARE / surefoot_ingress::REQUEST_BYTES as u64;
        self.ingress.requests_max.unwrap_or(fit.clamp(REQUESTS_MIN, REQUESTS_MAX))
    }

    /// Attempts that run at a time.
    pub fn attempts_max(&self) -> u64 {
        let fit = self.memory_bytes / ATTEMPTS_SHARE / WAITING_ATTEMPT_BYTES;
        self.worker.invoker.attempts_max.unwrap_or(fit.clamp(ATTEMPTS_MIN, ATTEMPTS_MAX))
    }

    /// What holds where neither a handler nor its service sets an option.
    pub fn defaults(&self) -> Defaults {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Defaults {
            inactivity_timeout_ms: ms(self.worker.invoker.inactivity_timeout),
            abort_timeout_ms: ms(self.worker.invoker.abort_timeout),
            journal_retention_ms: ms(self.journal_retention),
            idempotency_retention_ms: ms(self.idempotency_retention),
            workflow_retention_ms: ms(self.workflow_completion_retention),
            retry: RetryPolicy {
                initial_interval_ms: ms(self.retry.initial_interval),
                factor: self.retry.factor,
                max_interval_ms: ms(self.retry.max_interval),
                max_attempts: self.retry.max_attempts.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
                on_max: self.retry.on_max_attempts,
            },
        }
    }
}

#[cfg(test)]
mod tests;
