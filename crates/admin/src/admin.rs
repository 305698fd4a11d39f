//! What an operator's requests work on.
//!
//! Owns: the handle, readiness, and the one lock under which the catalog is validated and changed. Cheap to clone. Does not own:
//! single requests (the other modules), or their HTTP form (`routes`).

use crate::{Backups, Error, Sources};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use surefoot_env::Env;
use surefoot_invoker::Transport;
use surefoot_model::Timestamp;
use surefoot_model::catalog::{Catalog, CatalogEvent, Defaults};
use surefoot_partition::{DiskRoom, Partitions};
use tokio::sync::OwnedMutexGuard;

#[derive(Clone)]
pub struct Admin(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) partitions: Partitions,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) sources: Arc<dyn Sources>,
    pub(crate) backups: Arc<dyn Backups>,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: MetricsPage,
    pub(crate) settings: Settings,
}

/// What the API shows of the node's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shown for services that set no value of their own.
    pub defaults: Defaults,
    /// Where clients reach the ingress.
    pub ingress_url: String,
    /// Sent with each discovery, as with each attempt.
    pub request_headers: Vec<(String, String)>,
}

/// Writes the metrics in Prometheus' text format.
pub type MetricsPage = Arc<dyn Fn() -> String + Send + Sync>;

/// Whether the node has recovered and takes requests. Cheap to clone; it starts as not ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says that the node takes requests, or (again) does not.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Admin {
    pub fn new(
        partitions: Partitions,
        transport: Arc<dyn Transport>,
        sources: Arc<dyn Sources>,
        backups: Arc<dyn Backups>,
        readiness: Readiness,
        metrics: MetricsPage,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Shared { partitions, transport, sources, backups, readiness, metrics, settings }))
    }

    /// Succeeds once the node has recovered, takes requests, none of its partitions has stopped, and the disk has room (rule R2).
    pub fn health(&self) -> Result<(), Error> {
        if !self.0.readiness.is_ready() {
            return Err(Error::NotReady);
        }
        if let Some(stopped) = self.0.partitions.stopped().first() {
            return Err(Error::PartitionStopped { partition: stopped.partition, error: stopped.error.clone() });
        }
        let disk = self.0.partitions.disk();
        let waits = match disk.room {
            DiskRoom::Enough => return Ok(()),
            DiskRoom::Work => "calls are answered 503 and Kafka is not read",
            DiskRoom::Reserve => "calls are answered 503, Kafka is not read, and running invocations wait",
        };
        let has = match disk.found_bytes - disk.free_bytes {
            0 => format!("the disk has {} bytes free", disk.free_bytes),
            unwritten => format!("the disk has {} bytes free, {unwritten} of them for what was taken already,", disk.found_bytes),
        };
        let why = match disk.missing_bytes {
            0 => format!("{has} but log or tables find no room or no file descriptor"),
            missing => format!("{has} and needs {missing} more"),
        };
        Err(Error::DiskShort { why, waits })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(crate) fn env(&self) -> &Env {
        self.0.partitions.env()
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.env().clock.now_ms())
    }

    /// The catalog as of now.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.0.partitions.catalog().load()
    }

    /// Begins a change: until the guard is dropped nobody else changes the catalog.
    pub(crate) async fn change(&self) -> Change<'_> {
        Change { admin: self, _lock: self.0.partitions.catalog_edit().lock_owned().await }
    }
}

/// A change of the catalog in the making.
pub(crate) struct Change<'a> {
    admin: &'a Admin,
    _lock: OwnedMutexGuard<()>,
}

impl Change<'_> {
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.admin.catalog()
    }

    /// Stores it. Several events of one change are stored one after the other.
    pub(crate) async fn store(&self, event: CatalogEvent) -> Result<(), Error> {
        Ok(self.admin.shared().partitions.change_catalog(event).await?)
    }
}
