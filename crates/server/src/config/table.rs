//! The table of settings: the one list that parsing, the check for unknown keys, `--dump-config` and the documentation read.
//!
//! Owns: keys, kinds and meanings. A default is whatever `Config::default` holds. Does not own: sources and their order (`load`).

use super::value::{address, duration, show_duration, show_size, size};
use super::{Address, Config, LogFormat};
use http::Uri;
use std::path::PathBuf;
use std::time::Duration;
use surefoot_model::catalog::OnMaxAttempts;
use tracing::level_filters::LevelFilter;

/// Most partitions of a node: each costs little, but every listing asks all of them.
const PARTITIONS_MAX: u16 = 4_096;
/// Below this the memory layers of an idle node alone do not fit.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Bytes of the largest message that may be allowed: several are in memory at a time, and a frame's length has 32 bits.
const MESSAGE_BYTES_MAX: u64 = 1 << 30;

/// One setting.
pub struct Setting {
    /// Dotted path in the TOML file.
    pub key: &'static str,
    pub kind: Kind,
    pub meaning: &'static str,
}

/// What a setting's value looks like, and where it lies.
pub enum Kind {
    Path(fn(&mut Config) -> &mut PathBuf),
    Address(fn(&mut Config) -> &mut Address),
    Duration {
        field: fn(&mut Config) -> &mut Duration,
        min: Duration,
    },
    Size {
        field: fn(&mut Config) -> &mut u64,
        min: u64,
    },
    /// Bytes of one message: frames hold no larger ones.
    MessageSize(fn(&mut Config) -> &mut u64),
    Partitions(fn(&mut Config) -> &mut u16),
    /// A whole number from 1.
    Count(fn(&mut Config) -> &mut u64),
    /// A whole number from 1, or none.
    Limit(fn(&mut Config) -> &mut Option<u64>),
    /// A whole number from 1, or none: the node chooses.
    Automatic(fn(&mut Config) -> &mut Option<u64>),
    /// A number from 1.0.
    Factor(fn(&mut Config) -> &mut f64),
    Text(fn(&mut Config) -> &mut String),
    /// Levels of log lines, each for all of them or for a target.
    LogFilter(fn(&mut Config) -> &mut String),
    /// Where this server is reached by others, or nothing.
    Url(fn(&mut Config) -> &mut String),
    /// Texts without commas.
    List(fn(&mut Config) -> &mut Vec<String>),
    /// Of web pages: scheme, host and port, or `*`.
    Origins(fn(&mut Config) -> &mut Vec<String>),
    Switch(fn(&mut Config) -> &mut bool),
    LogFormat(fn(&mut Config) -> &mut LogFormat),
    OnMaxAttempts(fn(&mut Config) -> &mut OnMaxAttempts),
}

const ANY: Duration = Duration::ZERO;
const MILLISECOND: Duration = Duration::from_millis(1);

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "base-dir",
        kind: Kind::Path(|c| &mut c.base_dir),
        meaning: "Data directory, made when missing. One process at a time. Flag: `--data-dir`.",
    },
    Setting {
        key: "cluster-name",
        kind: Kind::Text(|c| &mut c.cluster_name),
        meaning: "Name sent to handlers as `x-restate-cluster-name`.",
    },
    Setting {
        key: "allowed-hosts",
        kind: Kind::List(|c| &mut c.allowed_hosts),
        meaning: "Names that a proxy on this machine calls the ports by. A port that is bound to this machine alone answers 403 to others: \
                  a web page could have its own name resolve to it.",
    },
    Setting {
        key: "default-num-partitions",
        kind: Kind::Partitions(|c| &mut c.partitions),
        meaning: "Partitions of a new data directory, 1 to 4096. An existing one keeps its number. Flag: `--partitions`.",
    },
    Setting {
        key: "shutdown-timeout",
        kind: Kind::Duration { field: |c| &mut c.shutdown_timeout, min: ANY },
        meaning: "How long a stop may take. It waits for requests in progress to be answered for all of it but the last quarter (10 s at most), which is for ending attempts and a last checkpoint. Connections of clients that still wait then are closed. Nothing is lost either way. Give the server longer than this before you kill it: Kubernetes gives it 30 s, Docker 10 s unless told otherwise. A server that is killed has no last checkpoint, and its next start takes longer.",
    },
    Setting { key: "log-format", kind: Kind::LogFormat(|c| &mut c.log_format), meaning: "How log lines look on standard error." },
    Setting {
        key: "log-filter",
        kind: Kind::LogFilter(|c| &mut c.log_filter),
        meaning: "Which log lines are written: levels, each for everything or for a target. The default leaves out warnings of the HTTP/2 library (`h2`), because any client or handler can cause as many of them as it likes.",
    },
    Setting {
        key: "memory-size",
        kind: Kind::Size { field: |c| &mut c.memory_bytes, min: MEMORY_BYTES_MIN },
        meaning: "What grows with load takes no more memory than this together; the table below says what has which share. The process takes some 128MiB beside it. At least 16MiB.",
    },
    Setting {
        key: "checkpoint-interval",
        kind: Kind::Duration { field: |c| &mut c.checkpoint_interval, min: MILLISECOND },
        meaning: "How often tables are written from memory to disk. Longer writes less, and replays more after a crash.",
    },
    Setting {
        key: "retained-bytes-limit",
        kind: Kind::Size { field: |c| &mut c.retained_bytes_max, min: 0 },
        meaning: "Bytes that completed invocations may hold. Beyond it the oldest journals and unkeyed results go before their time; \
                  results of idempotency keys and workflows stay. The same go, oldest first and as many as are needed, while the disk is \
                  short (`disk-reserve-size`): work that is to come is worth more than a record of what was done that nobody can ask for \
                  by name. What has a name is a promise to its caller and stays for its time: where it fills the disk, calls are refused.",
    },
    Setting {
        key: "disk-reserve-size",
        kind: Kind::Size { field: |c| &mut c.disk_reserve_bytes, min: 0 },
        meaning: "Room that is left free on the disk of the data directory; never more than a quarter of that disk. With less, calls are answered \
                  503 and Kafka is not read; with half of it, running invocations wait as well. All go on by themselves once there is room. \
                  The half is for the log's next segment and for compacting the tables, whose sizes follow from the disk's: on one of 64MiB \
                  segments are of 2MiB at most, and table files of 512KiB. The disk has 32MiB at least (SF4001). Less than the default leaves a \
                  compaction too little on a large disk; `0` leaves nothing free. Room comes back once invocations are purged.",
    },
    Setting {
        key: "dangerously-skip-fsync",
        kind: Kind::Switch(|c| &mut c.skip_fsync),
        meaning: "Acknowledge before data is on disk. A power failure then loses work that was acknowledged. For throw-away tests only.",
    },
    Setting {
        key: "default-journal-retention",
        kind: Kind::Duration { field: |c| &mut c.journal_retention, min: ANY },
        meaning: "How long a completed invocation and its journal are kept, where the service does not say. `0s`: not at all.",
    },
    Setting {
        key: "default-idempotency-retention",
        kind: Kind::Duration { field: |c| &mut c.idempotency_retention, min: ANY },
        meaning: "How long the result of a call with an idempotency key is kept, where the service does not say.",
    },
    Setting {
        key: "default-workflow-completion-retention",
        kind: Kind::Duration { field: |c| &mut c.workflow_completion_retention, min: ANY },
        meaning: "How long the result of a workflow is kept, where the service does not say. Its key may run again afterwards.",
    },
    Setting {
        key: "default-retry-policy.initial-interval",
        kind: Kind::Duration { field: |c| &mut c.retry.initial_interval, min: MILLISECOND },
        meaning: "Wait before the second attempt.",
    },
    Setting {
        key: "default-retry-policy.exponentiation-factor",
        kind: Kind::Factor(|c| &mut c.retry.factor),
        meaning: "Each wait is the one before times this.",
    },
    Setting {
        key: "default-retry-policy.max-interval",
        kind: Kind::Duration { field: |c| &mut c.retry.max_interval, min: MILLISECOND },
        meaning: "The longest wait.",
    },
    Setting {
        key: "default-retry-policy.max-attempts",
        kind: Kind::Limit(|c| &mut c.retry.max_attempts),
        meaning: "Attempts in all, the first included; `1` means no retry.",
    },
    Setting {
        key: "default-retry-policy.on-max-attempts",
        kind: Kind::OnMaxAttempts(|c| &mut c.retry.on_max_attempts),
        meaning: "What happens after the last attempt: wait for an operator, or complete with the last error.",
    },
    Setting {
        key: "ingress.bind-address",
        kind: Kind::Address(|c| &mut c.ingress.bind_address),
        meaning: "Where calls come in. Flag: `--ingress-address`.",
    },
    Setting {
        key: "ingress.request-size-limit",
        kind: Kind::MessageSize(|c| &mut c.ingress.request_bytes_max),
        meaning: "Largest body of a call, and largest Kafka record; at most `worker.invoker.message-size-limit`, and a 64th of the disk of the data directory. Larger calls are answered 413, larger Kafka records are parked.",
    },
    Setting {
        key: "ingress.concurrent-api-requests-limit",
        kind: Kind::Automatic(|c| &mut c.ingress.requests_max),
        meaning: "Calls in progress at a time; beyond it they are answered 429. `automatic`: 25000, or fewer if half of `memory-size` does \
                  not hold so many of 8KiB, which they take beside it. One whose headers have as much again counts as two, and so on.",
    },
    Setting {
        key: "ingress.advertised-address",
        kind: Kind::Url(|c| &mut c.ingress.advertised_address),
        meaning: "Where tools are told that calls come in, such as `http://flows.example.com`; empty: the port's own address.",
    },
    Setting {
        key: "ingress.allowed-origins",
        kind: Kind::Origins(|c| &mut c.ingress.allowed_origins),
        meaning: "Origins of web pages that may call, such as `https://app.example.com`; `*` is every one, without credentials. Pages of the \
                  port itself may, and where it is bound to this machine those of this machine. Others are answered 403.",
    },
    Setting {
        key: "admin.bind-address",
        kind: Kind::Address(|c| &mut c.admin.bind_address),
        meaning: "Where operators' requests come in. It has no authentication of its own. Flag: `--admin-address`.",
    },
    Setting {
        key: "worker.cleanup-interval",
        kind: Kind::Duration { field: |c| &mut c.worker.cleanup_interval, min: MILLISECOND },
        meaning: "How often completed invocations whose time is over are removed.",
    },
    Setting {
        key: "worker.invoker.inactivity-timeout",
        kind: Kind::Duration { field: |c| &mut c.worker.invoker.inactivity_timeout, min: ANY },
        meaning: "Silence after which a handler is asked to suspend, where the service does not say.",
    },
    Setting {
        key: "worker.invoker.abort-timeout",
        kind: Kind::Duration { field: |c| &mut c.worker.invoker.abort_timeout, min: ANY },
        meaning: "Further silence after which the attempt is aborted and retried, where the service does not say.",
    },
    Setting {
        key: "worker.invoker.concurrent-invocations-limit",
        kind: Kind::Automatic(|c| &mut c.worker.invoker.attempts_max),
        meaning: "Attempts that run at a time; `automatic`: 24000, or fewer if half of `memory-size` does not hold so many that wait. \
                  Further ones queue, and while they do, attempts that only sleep or wait for calls are asked to suspend. \
                  Attempts whose response has not begun take half at most for each deployment, and those that do not only wait \
                  seven eighths (one of 2, 3 of 4), so that one that hangs stops no other.",
    },
    Setting {
        key: "worker.invoker.journal-entries-limit",
        kind: Kind::Count(|c| &mut c.worker.invoker.journal_entries_max),
        meaning: "Entries of a journal at which its invocation is paused (SF3001). A call takes three, a sleep or a step two.",
    },
    Setting {
        key: "worker.invoker.journal-size-limit",
        kind: Kind::Size { field: |c| &mut c.worker.invoker.journal_bytes_max, min: 1 },
        meaning: "Bytes in a journal at which its invocation is paused (SF3001). Each attempt replays the journal whole, read as the handler takes it.",
    },
    Setting {
        key: "worker.invoker.message-size-limit",
        kind: Kind::MessageSize(|c| &mut c.worker.invoker.message_bytes_max),
        meaning: "Largest message to or from a handler; from one at most a 64th of the disk of the data directory. A larger one fails the attempt. Up to 1 MiB of what the server puts around a payload does not count.",
    },
    Setting {
        key: "worker.invoker.eager-state-size-limit",
        kind: Kind::Size { field: |c| &mut c.worker.invoker.eager_state_bytes_max, min: 0 },
        meaning: "State sent along with the start of an attempt; the rest is fetched by the handler. `0`: none is sent.",
    },
    Setting {
        key: "worker.invoker.memory-limit",
        kind: Kind::Size { field: |c| &mut c.worker.invoker.replay_bytes_max, min: 1 },
        meaning: "Journals and state on their way to handlers at a time, and no more than their share of `memory-size`. Further attempts queue; one that is larger runs alone.",
    },
    Setting {
        key: "worker.invoker.connect-timeout",
        kind: Kind::Duration { field: |c| &mut c.worker.invoker.connect_timeout, min: MILLISECOND },
        meaning: "How long connecting to a deployment may take, from its name's addresses to the first word of HTTP/2.",
    },
    Setting {
        key: "kafka.parked-records-limit",
        kind: Kind::Count(|c| &mut c.kafka.parked_records_max),
        meaning: "Parked Kafka records at which a subscription pauses until some are discarded; at 256MiB of them it does so, too.",
    },
];

const UNLIMITED: &str = "unlimited";
const AUTOMATIC: &str = "automatic";

impl Setting {
    /// Reads a value into its field. **Errors**: what was expected instead.
    pub fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        let done = match &self.kind {
            Kind::Path(field) => store(field(config), (!text.is_empty()).then(|| PathBuf::from(text))),
            Kind::Address(field) => store(field(config), address(text)),
            Kind::Duration { field, min } => store(field(config), duration(text).filter(|d| d >= min)),
            Kind::Size { field, min } => store(field(config), size(text).filter(|s| s >= min)),
            Kind::Partitions(field) => store(field(config), text.parse().ok().filter(|n| (1..=PARTITIONS_MAX).contains(n))),
            Kind::Count(field) => store(field(config), count(text)),
            Kind::Limit(field) => store(field(config), if is_unlimited(text) { Some(None) } else { count(text).map(Some) }),
            Kind::Automatic(field) => store(field(config), if text == AUTOMATIC { Some(None) } else { count(text).map(Some) }),
            Kind::Factor(field) => store(field(config), text.parse().ok().filter(|f: &f64| *f >= 1.0 && f.is_finite())),
            Kind::MessageSize(field) => store(field(config), size(text).filter(|bytes| (1..=MESSAGE_BYTES_MAX).contains(bytes))),
            Kind::Text(field) => store(field(config), Some(text.to_owned())),
            Kind::LogFilter(field) => store(field(config), is_filter(text).then(|| text.to_owned())),
            Kind::Url(field) => store(field(config), (text.is_empty() || is_url(text)).then(|| text.to_owned())),
            Kind::List(field) => store(field(config), Some(items(text))),
            Kind::Origins(field) => {
                store(field(config), Some(items(text)).filter(|items| items.iter().all(|item| is_origin(item))))
            }
            Kind::Switch(field) => store(field(config), text.parse().ok()),
            Kind::LogFormat(field) => store(field(config), named(LOG_FORMATS, text)),
            Kind::OnMaxAttempts(field) => store(field(config), named(ON_MAX_ATTEMPTS, text)),
        };
        done.ok_or_else(|| self.expected())
    }

    /// The value in force, as text that [`Self::set`] reads back.
    pub fn show(&self, config: &Config) -> String {
        let config = &mut config.clone();
        match &self.kind {
            Kind::Path(field) => field(config).display().to_string(),
            Kind::Address(field) => field(config).to_string(),
            Kind::Duration { field, .. } => show_duration(*field(config)),
            Kind::Size { field, .. } => show_size(*field(config)),
            Kind::Partitions(field) => field(config).to_string(),
            Kind::Count(field) => field(config).to_string(),
            Kind::Limit(field) => field(config).map_or(UNLIMITED.to_owned(), |n| n.to_string()),
            Kind::Automatic(field) => field(config).map_or(AUTOMATIC.to_owned(), |n| n.to_string()),
            Kind::Factor(field) => format!("{:?}", field(config)),
            Kind::MessageSize(field) => show_size(*field(config)),
            Kind::Text(field) | Kind::LogFilter(field) | Kind::Url(field) => field(config).clone(),
            Kind::List(field) | Kind::Origins(field) => field(config).join(", "),
            Kind::Switch(field) => field(config).to_string(),
            Kind::LogFormat(field) => name_of(LOG_FORMATS, field(config)).to_owned(),
            Kind::OnMaxAttempts(field) => name_of(ON_MAX_ATTEMPTS, field(config)).to_owned(),
        }
    }

    /// Whether its value stands without quotes in TOML.
    pub(super) fn is_bare(&self, config: &Config) -> bool {
        match self.kind {
            Kind::Partitions(_) | Kind::Count(_) | Kind::Factor(_) | Kind::Switch(_) => true,
            Kind::Limit(_) => self.show(config) != UNLIMITED,
            Kind::Automatic(_) => self.show(config) != AUTOMATIC,
            _ => false,
        }
    }

    /// The name of its kind in the documentation.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Path(_) => "path",
            Kind::Address(_) => "host:port",
            Kind::Duration { .. } => "duration",
            Kind::Size { .. } => "size",
            Kind::Partitions(_) | Kind::Count(_) => "number",
            Kind::Limit(_) => "number or `unlimited`",
            Kind::Automatic(_) => "number or `automatic`",
            Kind::Factor(_) => "factor",
            Kind::MessageSize(_) => "size",
            Kind::Text(_) | Kind::LogFilter(_) => "text",
            Kind::Url(_) => "URL",
            Kind::List(_) | Kind::Origins(_) => "texts with commas between them",
            Kind::Switch(_) => "`true` or `false`",
            Kind::LogFormat(_) => "`pretty`, `compact` or `json`",
            Kind::OnMaxAttempts(_) => "`pause` or `kill`",
        }
    }

    fn expected(&self) -> String {
        match &self.kind {
            Kind::Path(_) => "a path".to_owned(),
            Kind::Address(_) => "an address such as 127.0.0.1:8080".to_owned(),
            Kind::Duration { min, .. } if min.is_zero() => "a duration such as 30s, 1m 30s or PT1M".to_owned(),
            Kind::Duration { min, .. } => format!("a duration of at least {}, such as 30s, 1m 30s or PT1M", show_duration(*min)),
            Kind::Size { min: 0, .. } => "a size such as 4096, 32MiB or 1GB".to_owned(),
            Kind::Size { min, .. } => format!("a size of at least {}, such as 32MiB or 1GB", show_size(*min)),
            Kind::Partitions(_) => format!("a number from 1 to {PARTITIONS_MAX}"),
            Kind::Count(_) => "a number from 1".to_owned(),
            Kind::Limit(_) => format!("a number from 1, or {UNLIMITED}"),
            Kind::Automatic(_) => format!("a number from 1, or {AUTOMATIC}"),
            Kind::Factor(_) => "a number from 1.0".to_owned(),
            Kind::MessageSize(_) => format!("a size up to {}, such as 32MiB", show_size(MESSAGE_BYTES_MAX)),
            Kind::Text(_) => "a text".to_owned(),
            Kind::LogFilter(_) => "levels with commas between them, such as warn,surefoot=info".to_owned(),
            Kind::Url(_) => "an address such as http://flows.example.com, or nothing".to_owned(),
            Kind::Origins(_) => "origins such as https://app.example.com with commas between them, or *".to_owned(),
            Kind::List(_) => "texts with commas between them".to_owned(),
            Kind::Switch(_) => "true or false".to_owned(),
            Kind::LogFormat(_) => "pretty, compact or json".to_owned(),
            Kind::OnMaxAttempts(_) => "pause or kill".to_owned(),
        }
    }
}

const LOG_FORMATS: &[(&str, LogFormat)] =
    &[("pretty", LogFormat::Pretty), ("compact", LogFormat::Compact), ("json", LogFormat::Json)];
const ON_MAX_ATTEMPTS: &[(&str, OnMaxAttempts)] = &[("pause", OnMaxAttempts::Pause), ("kill", OnMaxAttempts::Kill)];

/// A word that is no level would be taken for a target, and leave out the lines of all others.
fn is_filter(text: &str) -> bool {
    let is_level = |level: &str| level.trim().parse::<LevelFilter>().is_ok();
    // The fields of a span may have commas.
    text.contains('[') || text.split(',').all(|part| part.split_once('=').map_or(is_level(part), |(_, level)| is_level(level)))
}

fn is_url(text: &str) -> bool {
    let uri = text.parse::<Uri>();
    uri.is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
}

fn is_origin(text: &str) -> bool {
    let has_path = || text.trim_end_matches('/').splitn(4, '/').nth(3).is_some();
    text == "*" || text == "null" || (text.contains("://") && !text.contains(char::is_whitespace) && !has_path())
}

fn store<T>(field: &mut T, value: Option<T>) -> Option<()> {
    *field = value?;
    Some(())
}

fn items(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn count(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n| *n >= 1)
}

fn is_unlimited(text: &str) -> bool {
    [UNLIMITED, "infinite"].contains(&text)
}

fn named<T: Copy>(names: &[(&str, T)], text: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
}

fn name_of<'a, T: PartialEq>(names: &[(&'a str, T)], value: &T) -> &'a str {
    names.iter().find(|(_, v)| v == value).expect("every value has a name").0
}
