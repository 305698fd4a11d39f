//! From an engine and a log to running partitions.
//!
//! Owns: recovery (the last checkpoint plus the log's tail, without effects) and the start of workers, checkpointer and first
//! term. Does not own: opening engine and log (`server`).

use crate::answers::Requests;
use crate::checkpointer::{Checkpointer, Checkpoints};
use crate::gate::Gate;
use crate::handle::{Partitions, Shared, edge_permits};
use crate::mailbox::{Input, Mailbox};
use crate::worker::{Partition, Settings, Worker, apply_entry};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use surefoot_env::{Env, Wake};
use surefoot_invoker::{Invoker, Output};
use surefoot_log::{Entry, Log, Sink};
use surefoot_machine::{Meta, Mutant};
use surefoot_model::{Attempt, AttemptProgress, CatalogCell, Epoch, Event, InvocationId, Lsn, PartitionId};
use surefoot_storage::{Engine, Store};
use tokio::sync::oneshot;

/// What keeps partitions from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("partition {partition}: {message}")]
    Partition { partition: PartitionId, message: String },
    #[error("the log holds records of partition {0}, which this node was not created with")]
    UnknownPartition(PartitionId),
}

/// Partitions that take the log's tail.
pub struct Recovering {
    /// In the order of their ids, the catalog's last.
    stores: Vec<Store>,
    records: u64,
    mutant: Mutant,
}

impl Recovering {
    /// Opens the tables of `count` partitions and of the catalog as the last checkpoints left them.
    pub fn open(
        engine: &Arc<dyn Engine>,
        count: u16,
        storage_mutant: surefoot_storage::Mutant,
        mutant: Mutant,
    ) -> Result<Self, StartError> {
        let ids = (0..count).map(PartitionId).chain([PartitionId::CATALOG]);
        let stores = ids
            .map(|id| {
                Store::open(engine.clone(), id)
                    .map(|store| store.with_mutant(storage_mutant))
                    .map_err(|e| StartError::Partition { partition: id, message: e.to_string() })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { stores, records: 0, mutant })
    }

    fn index(&self, partition: PartitionId) -> Option<usize> {
        let last = self.stores.len() - 1;
        let at = if partition == PartitionId::CATALOG { last } else { usize::from(partition.0) };
        (partition == PartitionId::CATALOG || at < last).then_some(at)
    }

    /// Applies one durable entry unless a checkpoint covers it. Its effects are not carried out: what they asked for is found in
    /// the tables once a new term begins.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), StartError> {
        let at = self.index(entry.partition).ok_or(StartError::UnknownPartition(entry.partition))?;
        if entry.lsn <= self.stores[at].applied() {
            return Ok(());
        }
        self.records += 1;
        apply_entry(&mut self.stores[at], entry, &mut Vec::new(), self.mutant)
            .map(|_| ())
            .map_err(|message| StartError::Partition { partition: entry.partition, message })
    }

    /// Records applied from the log so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Refuses tables and log that do not meet (rule C2): `retained` gives a partition's first retained and next LSN in the log.
    pub fn check(&self, retained: impl Fn(PartitionId) -> (Lsn, Lsn)) -> Result<(), StartError> {
        for store in &self.stores {
            let partition = store.partition();
            let (first, next) = retained(partition);
            store.check_log(first, next).map_err(|e| StartError::Partition { partition, message: e.to_string() })?;
        }
        Ok(())
    }

    /// Starts workers and a new term. `connect` tells the log where a partition's entries go; `invoker` makes the invoker that
    /// reports to the given output.
    pub fn start(
        self,
        env: Env,
        log: Arc<dyn Log>,
        connect: impl Fn(PartitionId, Arc<dyn Sink>),
        invoker: impl FnOnce(CatalogCell, Arc<dyn Output>) -> Arc<Invoker>,
        settings: Settings,
        catalog_changed: Vec<Wake>,
    ) -> Result<Started, StartError> {
        let mut epochs = Vec::new();
        for store in &self.stores {
            let partition = store.partition();
            let meta = store.read().get::<Meta>(&());
            let meta = meta.map_err(|e| StartError::Partition { partition, message: e.to_string() })?;
            epochs.push(Epoch(meta.unwrap_or_default().epoch.0 + 1));
        }
        let ids: Vec<PartitionId> = self.stores.iter().map(Store::partition).collect();
        let workers = settings.workers.clamp(1, ids.len());
        let wakes: Vec<Wake> = (0..workers).map(|_| Wake::new()).collect();
        let boxes: Vec<Mailbox> = wakes.iter().map(|wake| Mailbox::new(wake.clone())).collect();
        let mailboxes: Vec<Mailbox> = (0..ids.len()).map(|at| boxes[at % workers].clone()).collect();
        let process = env.ids.random_u64();
        let shared = Arc::new(Shared {
            log,
            epochs,
            mailboxes: mailboxes.clone(),
            workers: boxes.clone(),
            requests: Requests::new(process),
            catalog: CatalogCell::default(),
            catalog_changed,
            stopped: Mutex::default(),
            edge: edge_permits(),
            catalog_edit: Arc::default(),
            is_stopping: AtomicBool::new(false),
            gate: Gate::new(workers, settings.memory_bytes_max),
            env: env.clone(),
        });
        let invoker = invoker(shared.catalog.clone(), Arc::new(Reports(shared.clone())));

        let checkpoint_wake = Wake::new();
        let checkpoints = Checkpoints::new(checkpoint_wake.clone());
        env.tasks.drive("checkpointer", checkpoint_wake, Box::new(Checkpointer::new(checkpoints.clone())));

        let mut owned: Vec<Vec<Partition>> = (0..workers).map(|_| Vec::new()).collect();
        let mut led = Vec::new();
        for (at, (id, store)) in ids.iter().zip(self.stores).enumerate() {
            let (sender, receiver) = oneshot::channel();
            led.push(receiver);
            owned[at % workers].push(Partition::new(*id, store, sender));
            connect(*id, Arc::new(mailboxes[at].clone()));
        }
        for (at, partitions) in owned.into_iter().enumerate() {
            let worker = Worker::new(
                at,
                shared.clone(),
                invoker.clone(),
                boxes[at].clone(),
                checkpoints.clone(),
                settings.clone(),
                partitions,
            );
            env.tasks.drive("worker", wakes[at].clone(), Box::new(worker));
        }
        for id in ids {
            shared.append(id, [Event::LeaderElected { process }], None);
        }
        Ok(Started { partitions: Partitions::new(shared), led })
    }
}

/// Partitions whose first term is on its way.
pub struct Started {
    pub partitions: Partitions,
    led: Vec<oneshot::Receiver<()>>,
}

impl Started {
    /// Completes once every partition leads, and may act. A partition that stopped meanwhile is not waited for.
    pub async fn ready(self) -> Partitions {
        for led in self.led {
            // A dropped sender: the partition stopped, and says so in its health.
            let _ = led.await;
        }
        self.partitions
    }
}

/// What attempts bring, on its way to the log.
struct Reports(Arc<Shared>);

impl Output for Reports {
    fn progressed(&self, partition: PartitionId, progress: AttemptProgress) {
        self.0.append(partition, [Event::AttemptProgressed(Box::new(progress))], None);
    }

    fn ended(&self, partition: PartitionId, id: InvocationId, attempt: Attempt) {
        let owner = &self.0.mailboxes[self.0.index(partition)];
        owner.push(Input::AttemptEnded { partition, id, attempt });
        // Attempts of other workers may have waited for the slot.
        for mailbox in &self.0.workers {
            if !mailbox.is_same(owner) {
                mailbox.push(Input::SlotFreed);
            }
        }
    }
}
