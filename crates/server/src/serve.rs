//! A node on a real machine: its data directory, ports and operators.
//!
//! Owns: what production puts around [`Node`], in this order: lock the directory, bind the ports (which refuse until the node is ready), start
//! the node, open the ports, say that it is ready; and the way back. Does not own: signals, logs and what is printed (`cli`).

#![allow(clippy::disallowed_methods, reason = "production half of the seams: a simulated node has no ports")]

use crate::backup::Backups;
use crate::config::{Address, Config};
use crate::data_dir::{self, DataDir};
use crate::descriptors::Descriptors;
use crate::disk::{self, DiskShares};
use crate::memory::{MemoryShares, Share};
use crate::node::{self, Mutants, Node, Place, Recovered, Seams, WORKERS};
use crate::sources::KafkaSources;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use surefoot_admin::{Admin, MetricsPage, Readiness};
use surefoot_env::{Env, is_shortage};
use surefoot_ingress::{ArrivalBounds, BodyBounds, Limits};
use surefoot_invoker::transport::http::HttpTransport;
use surefoot_kafka::Librdkafka;
use surefoot_listener::{ConnectionBounds, Visitors};
use surefoot_partition::StartError;
use surefoot_storage::{FileFault, FjallEngine, FjallOptions, check_files};
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// Of the time that a stop may take, the share that is left for attempts to end and for the last checkpoint, and the most that those get:
/// until then clients have their results, and their connections close after that. An invocation may take for ever.
const LAST_SHARE: u32 = 4;
const LAST_MAX: Duration = Duration::from_secs(10);

/// Of the connections of clients, and of the calls in progress, the share that may have closed their sending side and wait for an answer: a
/// client that has gone looks the same for a minute or so.
const HALF_CLOSED_SHARE: usize = 8;
/// Connections that the kernel holds until they are accepted; the system may bound them lower (`net.core.somaxconn`).
const BACKLOG: u32 = 4_096;

/// A start that finds no room is tried again once so much more is free than before, which is looked at this often, or after this long.
const START_ROOM_BYTES: u64 = 1 << 20;
const START_LOOK: Duration = Duration::from_secs(1);
const START_RETRY_MAX: Duration = Duration::from_secs(30);
/// It is logged this often.
const START_TELL_INTERVAL: Duration = Duration::from_secs(60);

/// A running node with open ports.
pub struct Serving {
    node: Node,
    readiness: Readiness,
    ingress: surefoot_ingress::Server,
    admin: surefoot_admin::Server,
    backups: Backups,
    env: Env,
    summary: Summary,
    _data_dir: DataDir,
}

/// What a start came to.
#[derive(Clone, Debug)]
pub struct Summary {
    pub ingress: SocketAddr,
    pub admin: SocketAddr,
    /// Fixed when the data directory was made.
    pub partitions: u16,
    /// Whether the data directory was made just now.
    pub is_new: bool,
    pub recovered: Recovered,
    /// Registered deployments.
    pub deployments: usize,
}

/// What a process gives to its node.
pub struct Process {
    pub metrics: MetricsPage,
    /// Called when events or tables cannot be made durable any more; must not return (rules L4, C8).
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
}

/// What keeps a node from serving. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    #[error("{0}")]
    DiskTooSmall(String),
    #[error("cannot listen on {address} for {purpose}: {source}; {hint}")]
    Bind { address: Address, purpose: &'static str, source: io::Error, hint: String },
    #[error("cannot open the tables in {path}: {source}; {hint}", hint = tables_hint(.source))]
    Engine { path: String, source: io::Error },
    /// What is damaged is known, beside what could not be done for it.
    #[error("{source}: {fault}")]
    Damaged { fault: FileFault, source: node::Error },
    #[error(transparent)]
    Node(#[from] node::Error),
}

impl Serving {
    /// Starts a node as configured; returns once it is ready.
    pub async fn start(config: &Config, env: Env, process: Process) -> Result<Self, Error> {
        data_dir::keep_private();
        let descriptors = Descriptors::raised();
        let data_dir = DataDir::open(&config.base_dir, config.partitions, env.ids.random_u64())?;
        if let Ok(space) = env.disk.space(&config.base_dir) {
            disk::check(space).map_err(Error::DiskTooSmall)?;
        }
        let disk_shares = DiskShares::of_dir(&*env.disk, &config.base_dir, config.disk_reserve_bytes);
        let config = &config.with_values_of(disk_shares.value_bytes_max);
        let ingress_port = bind(&config.ingress.bind_address, "calls", "--ingress-address").await?;
        let admin_port = bind(&config.admin.bind_address, "operators", "--admin-address").await?;
        let addresses = (local(&ingress_port), local(&admin_port));
        if !addresses.1.ip().is_loopback() {
            tracing::warn!(
                address = %addresses.1,
                "the port for operators is bound beyond this machine and has no authentication: let only those reach it who may run code here"
            );
        }
        let visitors =
            |address: SocketAddr, origins: &[String]| Visitors::new(address.ip().is_loopback(), &config.allowed_hosts, origins);
        let shares = MemoryShares::of(config.memory_bytes);
        let connections_max = descriptors.clients(config.memory_bytes);
        let requests_max = usize::try_from(config.requests_max()).unwrap_or(usize::MAX);
        let half_closed_max = connections_max.min(requests_max) / HALF_CLOSED_SHARE;
        let connections = ConnectionBounds { connections_max, half_closed_max };
        let limits = Limits {
            bodies: BodyBounds {
                body_bytes_max: config.request_bytes_max(),
                arrivals: ArrivalBounds {
                    small_bytes_max: shares.bytes(Share::SmallBodies),
                    large_bytes_max: shares.bytes(Share::LargeBodies),
                },
            },
            requests_max,
            connections,
            visitors: visitors(addresses.0, &config.ingress.allowed_origins),
        };
        let ingress = surefoot_ingress::Server::start(ingress_port, env.clone(), limits);
        // An operator's command that is ended is to end what it asked for.
        let operators = ConnectionBounds { connections_max: descriptors.operators(), half_closed_max: 0 };
        let admin_server = surefoot_admin::Server::start(admin_port, env.clone(), operators, visitors(addresses.1, &[]));
        let tables = data_dir.tables();
        let mut patience = StartPatience::new(&env, data_dir.log());
        let engine = loop {
            match FjallEngine::open(&tables, engine_options(config, disk_shares)) {
                Ok(engine) => break engine,
                Err(error) if is_shortage(&error) => patience.wait(&admin_server, &error).await,
                Err(source) => return Err(Error::Engine { path: tables.display().to_string(), source }),
            }
        };
        let seams = Seams {
            engine: Arc::new(engine),
            transport: Arc::new(HttpTransport::new(config.worker.invoker.connect_timeout)),
            sources: Arc::new(Librdkafka::new(env.tasks.clone())),
            fatal: process.fatal,
            tune_log: |_| {},
            workers: WORKERS,
            mutants: Mutants::default(),
        };
        let place = Place { log: data_dir.log(), partitions: data_dir.partitions, node_id: data_dir.node_id };
        let node = loop {
            let error = match Node::start(config, env.clone(), place.clone(), seams.clone()).await {
                Ok(node) => break node,
                Err(error) => error,
            };
            // What was recovered so far is recovered again: it is the next record that needs the room.
            let Some(shortage) = error.shortage() else {
                // They are to stand still.
                drop(seams);
                return Err(with_fault(&tables, error));
            };
            tracing::debug!(%error, "the start is tried again");
            patience.wait(&admin_server, shortage).await;
        };
        let backups = Backups::new(&node, &seams.engine, place);
        drop(seams);

        let readiness = Readiness::default();
        let admin = Admin::new(
            node.partitions.clone(),
            node.transport.clone(),
            Arc::new(KafkaSources(node.sources.clone())),
            Arc::new(backups.clone()),
            readiness.clone(),
            process.metrics,
            surefoot_admin::Settings {
                defaults: config.defaults(),
                ingress_url: advertised(config, addresses.0),
                request_headers: node::request_headers(config),
            },
        );
        let summary = Summary {
            ingress: addresses.0,
            admin: addresses.1,
            partitions: data_dir.partitions,
            is_new: data_dir.is_new,
            recovered: node.recovered.clone(),
            deployments: node.partitions.catalog().load().deployments.len(),
        };
        ingress.open(node.ingress.clone());
        admin_server.open(admin);
        readiness.set(true);
        Ok(Self { node, readiness, ingress, admin: admin_server, backups, env, summary, _data_dir: data_dir })
    }

    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Closes the edges, lets clients have what they wait for, ends what runs, and takes a last checkpoint. Returns false when the deadline
    /// came first; nothing is lost then either, and the next start replays what the checkpoint would have saved.
    pub async fn stop(self, deadline: Duration) -> bool {
        let Self { node, readiness, ingress, admin, backups, env, summary: _, _data_dir } = self;
        readiness.set(false);
        let clients = clients_wait(deadline);
        let stopping = async {
            backups.stop().await;
            // What is left to drain should not wait for what Kafka still brings.
            tokio::join!(ingress.drain(clients), admin.drain(clients), node.sources.stop());
            node.stop().await;
        };
        tokio::select! {
            biased;
            // Dropped midway: the process ends, as if it had been killed.
            () = stopping => true,
            // A timer has nothing to lose.
            () = env.clock.sleep(deadline) => false,
        }
    }
}

/// Of a stop that may take so long: how long clients may wait for their results.
fn clients_wait(deadline: Duration) -> Duration {
    deadline - (deadline / LAST_SHARE).min(LAST_MAX)
}

/// Waits for what a start finds no room for, and says so.
struct StartPatience<'a> {
    env: &'a Env,
    dir: PathBuf,
    /// When it was last logged.
    told: Option<Duration>,
}

impl<'a> StartPatience<'a> {
    fn new(env: &'a Env, dir: PathBuf) -> Self {
        Self { env, dir, told: None }
    }

    /// Completes once the next try may come further: there is more room than now, or [`START_RETRY_MAX`] has passed.
    async fn wait(&mut self, admin: &surefoot_admin::Server, shortage: &io::Error) {
        let clock = &self.env.clock;
        let free = || self.env.disk.space(&self.dir).map_or(0, |space| space.free);
        let (began, free_bytes) = (clock.monotonic(), free());
        admin.wait_for(format!("{shortage}, {free_bytes} bytes are free"));
        if self.told.is_none_or(|told| began >= told + START_TELL_INTERVAL) {
            self.told = Some(began);
            tracing::warn!(
                error = %shortage, free_bytes, path = %self.dir.display(),
                "the start waits for room on the disk, and goes on by itself once there is some: free some of it"
            );
        }
        while clock.monotonic() < began + START_RETRY_MAX {
            clock.sleep(START_LOOK).await;
            if free() >= free_bytes + START_ROOM_BYTES {
                return;
            }
        }
    }
}

/// Names the table file where one is the reason.
fn with_fault(tables: &Path, error: node::Error) -> Error {
    let is_unreadable = matches!(error, node::Error::Partition(StartError::Unreadable { .. }));
    let found = is_unreadable.then(|| check_files(tables).ok()).flatten();
    match found.and_then(|found| found.faults.into_iter().next()) {
        Some(fault) => Error::Damaged { fault, source: error },
        None => error.into(),
    }
}

fn tables_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => "stop that one, or give this one --data-dir of its own",
        io::ErrorKind::PermissionDenied => "all of them have to be this user's to read and write",
        _ => {
            "nothing was changed: `surefoot doctor` lists all that is damaged; restore the data directory as a whole from a backup, or, if the disk could not be read for a while, start again"
        }
    }
}

/// The real world, on the tokio runtime that calls.
pub fn world() -> Env {
    Env::production(tokio::runtime::Handle::current())
}

/// Where a client on this machine reaches a listener.
pub fn url(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!("http://localhost:{}", address.port()) } else { format!("http://{address}") }
}

/// Where tools are told that calls come in, with a slash at its end.
fn advertised(config: &Config, address: SocketAddr) -> String {
    let configured = config.ingress.advertised_address.trim_end_matches('/');
    if configured.is_empty() { format!("{}/", url(address)) } else { format!("{configured}/") }
}

async fn bind(address: &Address, purpose: &'static str, flag: &str) -> Result<TcpListener, Error> {
    listen(address).await.map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => format!("stop the process that has the port, or choose another with {flag}"),
            io::ErrorKind::PermissionDenied => format!("choose a port from 1024 with {flag}"),
            _ => format!("choose an address of this machine with {flag}"),
        };
        Error::Bind { address: address.clone(), purpose, source, hint }
    })
}

/// Listens at the first of the name's addresses that can be had.
async fn listen(address: &Address) -> io::Result<TcpListener> {
    let mut refusal = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for address in lookup_host(address.to_string()).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of the process before this one do not hold the port.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn local(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("a bound listener has an address")
}

fn engine_options(config: &Config, disk: DiskShares) -> FjallOptions {
    FjallOptions { cache_bytes: MemoryShares::of(config.memory_bytes).bytes(Share::EngineCache), table_bytes: disk.table_bytes }
}
