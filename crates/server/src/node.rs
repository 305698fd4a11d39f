//! One node, wired top to bottom: the same in production and in simulation, which differ in [`Env`] and [`Seams`] only.
//!
//! Owns: the order of starting (recover, lead, then open the edges, Kafka among them) and of stopping (close the edges, then
//! checkpoint). Does not own: listeners and signals (`serve`), or rules of any kind.

use crate::config::{Config, WAITING_ATTEMPT_BYTES};
use crate::disk::DiskShares;
use crate::memory::{MemoryShares, Share};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Env, Wake, is_shortage};
use surefoot_ingress::Ingress;
use surefoot_invoker::{Invoker, Transport};
use surefoot_kafka::{SourceClient, Sources};
use surefoot_log::local::{self, LocalLog, Options};
use surefoot_partition::{Partitions, Recovering, StartError};
use surefoot_storage::Engine;

/// What a node is built on.
#[derive(Clone)]
pub struct Seams {
    pub engine: Arc<dyn Engine>,
    pub transport: Arc<dyn Transport>,
    /// Kafka, as subscriptions read it.
    pub sources: Arc<dyn SourceClient>,
    /// Called when log or engine cannot make durable what they take; does not return in production (rules L4, C8).
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    /// What the simulator makes small of the log; nothing in production.
    pub tune_log: fn(&mut Options),
    /// Threads that apply records: [`WORKERS`], and what a seed says in simulation.
    pub workers: usize,
    /// What the simulator breaks on purpose.
    pub mutants: Mutants,
}

/// Deliberately broken variants, which simulation must catch. All of them are off by default.
#[derive(Clone, Copy, Default)]
pub struct Mutants {
    pub log: local::Mutant,
    pub storage: surefoot_storage::Mutant,
    pub machine: surefoot_partition::MachineMutant,
    pub partition: surefoot_partition::Mutant,
    pub kafka: surefoot_kafka::Mutant,
    pub invoker: surefoot_invoker::Mutant,
}

/// What a node's data directory says: where its log is, how many partitions it was made with, and its name among others.
#[derive(Clone, Debug)]
pub struct Place {
    pub log: PathBuf,
    pub partitions: u16,
    pub node_id: u64,
}

/// A node that leads all its partitions.
pub struct Node {
    pub partitions: Partitions,
    pub ingress: Ingress,
    pub transport: Arc<dyn Transport>,
    pub sources: Sources,
    pub recovered: Recovered,
    pub(crate) log: LocalLog,
}

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Records applied beyond the last checkpoints.
    pub records: u64,
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Bytes of a torn tail that were cut.
    pub cut_bytes: u64,
    pub took: Duration,
}

/// What keeps a node from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Log(#[from] local::Error),
    #[error(transparent)]
    Partition(#[from] StartError),
}

impl Error {
    /// What the disk, or the system, had no room or no descriptor for: nothing was changed that another try would miss, and there may be
    /// some later.
    pub fn shortage(&self) -> Option<&io::Error> {
        let start = match self {
            Self::Partition(error) => error,
            // After a failed sync nothing is tried again in this life (rule L4).
            Self::Log(local::Error::Io { doing, source, .. }) => {
                return Some(source).filter(|source| *doing != "sync" && is_shortage(source));
            }
            Self::Log(local::Error::Replay { source, .. }) => source.downcast_ref::<StartError>()?,
            Self::Log(_) => return None,
        };
        match start {
            StartError::DiskFull(source) => Some(source),
            _ => None,
        }
    }
}

impl Node {
    /// Recovers, starts a new term in every partition, and returns once all of them lead and subscriptions are on their way.
    pub async fn start(config: &Config, env: Env, place: Place, seams: Seams) -> Result<Self, Error> {
        let began = env.clock.monotonic();
        let mutants = seams.mutants;
        let disk_shares = DiskShares::of_dir(&*env.disk, &place.log, config.disk_reserve_bytes);
        let settings = partition_settings(config, &place, disk_shares, seams.workers, mutants);
        let mut recovering = Recovering::open(&seams.engine, place.partitions, mutants.storage, settings)?;
        let fatal = seams.fatal.clone();
        let mut options = Options::new(move |message| fatal(message));
        (options.segment_bytes_max, options.reserve_bytes) = (disk_shares.segment_bytes_max, disk_shares.log_reserve_bytes);
        (seams.tune_log)(&mut options);
        options.mutant = if config.skip_fsync { local::Mutant::SkipSync } else { mutants.log };
        let covered = recovering.covered();
        let opened = local::open(env.disk.clone(), &place.log, options, &covered, &mut |entry| Ok(recovering.replay(&entry)?))?;
        recovering.check(|partition| {
            let bounds = opened.recovery.bounds(partition);
            (bounds.first, bounds.next)
        })?;
        let recovered = Recovered {
            records: recovering.records(),
            log_bytes: opened.recovery.bytes,
            cut_bytes: opened.recovery.cut_bytes,
            took: env.clock.monotonic().saturating_sub(began),
        };
        let log = opened.log;
        let transport = seams.transport.clone();
        let (catalog_changed, workers) = (Wake::new(), seams.workers);
        let started = recovering.start(
            env.clone(),
            Arc::new(log.clone()),
            |partition, sink| log.connect(partition, sink),
            |catalog, output| {
                Invoker::new(
                    env.clone(),
                    invoker_settings(config, place.partitions, workers, mutants),
                    catalog,
                    transport,
                    output,
                )
            },
            vec![catalog_changed.clone()],
            seams.fatal.clone(),
        )?;
        opened.writer.drive(&*env.tasks);
        opened.filler.drive(&*env.tasks);
        let partitions = started.ready().await;
        let ingress = Ingress::new(partitions.clone(), config.defaults());
        let sources = Sources::start(
            env,
            partitions.clone(),
            kafka_settings(config, place.node_id, mutants.kafka),
            catalog_changed,
            partitions.catalog_edit(),
            seams.sources,
        );
        Ok(Self { partitions, ingress, transport: seams.transport, sources, recovered, log })
    }

    /// Leaves Kafka's groups, ends attempts, takes a last checkpoint (rule M7) and stops. Listeners are closed before.
    pub async fn stop(self) {
        // Its positions are events: the partitions have to take them.
        self.sources.stop().await;
        self.partitions.stop().await;
        self.log.close();
        // Until then it may make records durable, and known: who opens the directory next has to read them.
        self.log.ended().await;
    }
}

/// What attempts may have reported to one worker and is not applied, however large memory is, as [`surefoot_model::RECORD_COST`] counts:
/// 512 small reports keep log and workers busy, and a call waits behind no more of them.
const REPORT_BYTES_MAX: usize = 4 << 20;

fn invoker_settings(config: &Config, partitions: u16, workers: usize, mutants: Mutants) -> surefoot_invoker::Settings {
    let invoker = &config.worker.invoker;
    let shares = MemoryShares::of(config.memory_bytes);
    let share = |share| bounded(shares.bytes(share));
    surefoot_invoker::Settings {
        defaults: config.defaults(),
        attempts_max: bounded(config.attempts_max()),
        replay_bytes_max: bounded(invoker.replay_bytes_max).min(share(Share::Replays)),
        report_bytes_max: share(Share::Reports).min(workers.saturating_mul(REPORT_BYTES_MAX)),
        read_bytes_max: share(Share::Reads),
        live_bytes_max: share(Share::Live),
        part_bytes_max: share(Share::Parts),
        message_bytes_max: bounded(invoker.message_bytes_max),
        taken_bytes_max: bounded(config.report_bytes_max()),
        journal_entries_max: u32::try_from(invoker.journal_entries_max).unwrap_or(u32::MAX),
        journal_bytes_max: invoker.journal_bytes_max,
        eager_state_bytes_max: bounded(invoker.eager_state_bytes_max),
        partitions,
        additional_headers: request_headers(config),
        mutant: mutants.invoker,
    }
}

/// Headers on every request to a deployment.
pub fn request_headers(config: &Config) -> Vec<(String, String)> {
    vec![("x-restate-cluster-name".to_owned(), config.cluster_name.clone())]
}

fn partition_settings(
    config: &Config,
    place: &Place,
    disk: DiskShares,
    workers: usize,
    mutants: Mutants,
) -> surefoot_partition::Settings {
    let shares = MemoryShares::of(config.memory_bytes);
    surefoot_partition::Settings {
        cleanup_interval_ms: millis(config.worker.cleanup_interval),
        retained_bytes_max: config.retained_bytes_max,
        disk_dir: place.log.clone(),
        disk_reserve_bytes_max: config.disk_reserve_bytes,
        disk_active_bytes_max: disk.active_bytes_max,
        log_bytes_max: disk.log_bytes_max,
        memory_bytes_max: surefoot_partition::edges_bytes_max(shares.bytes(Share::Tables)),
        attempt_bytes: WAITING_ATTEMPT_BYTES,
        edge_bytes_max: bounded(shares.bytes(Share::EdgeWaits)),
        load_bytes_max: shares.bytes(Share::Loads),
        journal_part_bytes: (config.memory_bytes / JOURNAL_PARTS).clamp(1, JOURNAL_PART_BYTES_MAX),
        outbox_bytes_max: shares.bytes(Share::Messages),
        checkpoint_interval_ms: millis(config.checkpoint_interval),
        replay_bytes_max: REPLAY_BYTES_MAX,
        workers,
        mutant: mutants.partition,
        machine_mutant: mutants.machine,
    }
}

fn kafka_settings(config: &Config, node_id: u64, mutant: surefoot_kafka::Mutant) -> surefoot_kafka::Settings {
    surefoot_kafka::Settings {
        defaults: config.defaults(),
        record_bytes_max: bounded(config.request_bytes_max()),
        parked_max: config.kafka.parked_records_max,
        parked_bytes_max: config.kafka.parked_bytes_max,
        bounds: config.kafka.bounds.clone(),
        memory_bytes: MemoryShares::of(config.memory_bytes).bytes(Share::Kafka),
        node: format!("{node_id:016x}"),
        mutant,
    }
}

/// Of a journal, a running attempt has this share of memory at most that has not been handed to its connection, and no more than so many bytes,
/// or one entry.
const JOURNAL_PARTS: u64 = 64;
const JOURNAL_PART_BYTES_MAX: u64 = 1 << 20;
/// Log bytes of one partition that a restart may have to apply: a tenth of a second or so.
const REPLAY_BYTES_MAX: u64 = 16 << 20;
/// Applying takes microseconds: one thread serves every core's worth of handlers, and hands on in larger batches than two.
pub const WORKERS: usize = 1;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bounded(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
