//! From an engine and a log to running partitions.
//!
//! Owns: recovery (the last checkpoint plus the log's tail, without effects, within the bounds of running) and the start of workers,
//! checkpointer and first term. Does not own: opening engine and log (`server`).

use crate::acting::ActingPartition;
use crate::answers::Requests;
use crate::apply::{ApplyError, apply_entry, panic_message};
use crate::checkpointer::{Checkpointer, Checkpoints, Fatal};
use crate::disk::DiskWatch;
use crate::gate::{Gate, LargeTicket};
use crate::handle::{Partitions, Shared, called_bytes, edge_permits};
use crate::housekeeping::Housekeeping;
use crate::mailbox::{Input, Mailbox, ReportOnWay};
use crate::outbox::OutboxRoom;
use crate::query::PartitionHealth;
use crate::retained::RetainedBytes;
use crate::settings::{Mutant, Settings};
use crate::worker::Worker;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use surefoot_env::{Env, Wake};
use surefoot_invoker::{Invoker, MemoryTicket, Output, Room};
use surefoot_log::{Entry, Log, Sink};
use surefoot_machine::{Meta, StateError, catalog};
use surefoot_model::{Attempt, AttemptProgress, CatalogCell, DeploymentId, Epoch, Event, InvocationId, Lsn, PartitionId, RULES};
use surefoot_storage::{Engine, Failure, Row, Store};
use tokio::sync::oneshot;

/// What keeps a node from starting. Trouble of one partition does not, but for the catalog's: that one stops and says so (rule C5).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("partition {partition}: {message}")]
    Partition { partition: PartitionId, message: String },
    /// The catalog's: what other partitions do without.
    #[error(
        "partition {partition} cannot go on, and no other without it: {message}; restore the data directory as a whole from a backup (`surefoot \
         doctor` lists what is damaged)"
    )]
    Unreadable { partition: PartitionId, message: String },
    #[error("the tables cannot be made durable: {0}")]
    Engine(String),
    #[error("the log holds records of partition {0}, which this node was not created with")]
    UnknownPartition(PartitionId),
    /// May be tried again: nothing has changed that another try would miss.
    #[error("the log holds more than `memory-size` takes, and the disk has no room to write it to tables ({0}): make room on it")]
    DiskFull(std::io::Error),
}

/// Partitions that take the log's tail.
pub struct Recovering {
    engine: Arc<dyn Engine>,
    /// In the order of their ids, the catalog's last.
    partitions: Vec<Recovered>,
    records: u64,
    /// Memory of all active layers.
    active_bytes: u64,
    settings: Settings,
}

struct Recovered {
    id: PartitionId,
    /// What stopped it, where that is not a reason for the whole node.
    store: Result<Store, String>,
    /// The largest one in its tables and in entries of the log: what is appended for it carries one that counts (rule M8), whether
    /// or not it can be opened.
    epoch: Epoch,
    /// Log bytes that the next recovery would have to apply again.
    applied_bytes: u64,
}

impl Recovered {
    /// Goes on without this partition, if the node can.
    fn stop(&mut self, message: String) -> Result<(), StartError> {
        if self.id == PartitionId::CATALOG {
            return Err(StartError::Unreadable { partition: self.id, message });
        }
        tracing::error!(partition = %self.id, error = message, "partition stopped; its data is kept, other partitions run on");
        self.store = Err(message);
        Ok(())
    }

    /// Moves what it has in memory into the engine. **Errors** where the disk is full: there is no bound to keep without it.
    fn checkpoint(&mut self) -> Result<(), StartError> {
        let Ok(store) = &mut self.store else { return Ok(()) };
        let Some(checkpoint) = store.freeze() else { return Ok(()) };
        match checkpoint.run() {
            Ok(done) => {
                store.checkpointed(done);
                self.applied_bytes = 0;
                Ok(())
            }
            Err(error) => match Failure::of(&error) {
                Failure::Passing => Err(StartError::DiskFull(error)),
                Failure::Partition => self.stop(format!("checkpoint failed: {error}")),
                Failure::Engine => Err(StartError::Engine(error.to_string())),
            },
        }
    }
}

/// A partition's tables, and the epoch they were written in.
fn open(engine: &Arc<dyn Engine>, id: PartitionId) -> Result<(Store, Epoch), String> {
    let store = Store::open(engine.clone(), id).map_err(|error| error.to_string())?;
    let meta = store.read().get::<Meta>(&()).map_err(|error| error.to_string())?;
    Ok((store, meta.unwrap_or_default().epoch))
}

impl Recovering {
    /// Opens the tables of `count` partitions and of the catalog as the last checkpoints left them.
    pub fn open(
        engine: &Arc<dyn Engine>,
        count: u16,
        storage_mutant: surefoot_storage::Mutant,
        settings: Settings,
    ) -> Result<Self, StartError> {
        // A process that was killed may have committed what is not durable, and what is read now decides what is trimmed.
        engine.flush().map_err(|error| match Failure::of(&error) {
            Failure::Passing => StartError::DiskFull(error),
            Failure::Partition | Failure::Engine => StartError::Engine(error.to_string()),
        })?;
        let ids = (0..count).map(PartitionId).chain([PartitionId::CATALOG]);
        let mut partitions = Vec::with_capacity(usize::from(count) + 1);
        for id in ids {
            let mut recovered = Recovered { id, store: Err(String::new()), epoch: Epoch::default(), applied_bytes: 0 };
            match open(engine, id) {
                Ok((store, epoch)) => {
                    check_rules(id, &store)?;
                    (recovered.store, recovered.epoch) = (Ok(store.with_mutant(storage_mutant)), epoch);
                }
                Err(error) => recovered.stop(error)?,
            }
            partitions.push(recovered);
        }
        Ok(Self { engine: engine.clone(), partitions, records: 0, active_bytes: 0, settings })
    }

    fn find(&mut self, partition: PartitionId) -> Option<&mut Recovered> {
        let last = self.partitions.len() - 1;
        let at = if partition == PartitionId::CATALOG { last } else { usize::from(partition.0) };
        (partition == PartitionId::CATALOG || at < last).then(|| &mut self.partitions[at])
    }

    /// Applies one durable entry unless a checkpoint covers it. Its effects are not carried out: what they asked for is found in
    /// the tables once a new term begins. Errors where tables and log do not meet (rule C2), or a newer version wrote the record
    /// (rule M7): both are mended from outside, and starting would make them worse.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), StartError> {
        let (partition, mutant) = (entry.partition, self.settings.machine_mutant);
        let recovered = self.find(partition).ok_or(StartError::UnknownPartition(partition))?;
        recovered.epoch = recovered.epoch.max(entry.epoch);
        let Ok(store) = &mut recovered.store else { return Ok(()) };
        if entry.lsn <= store.applied() {
            return Ok(());
        }
        store.check_next(entry.lsn).map_err(|error| StartError::Partition { partition, message: error.to_string() })?;
        let before = store.active_bytes() as u64;
        let applied = catch_unwind(AssertUnwindSafe(|| apply_entry(store, entry, &mut Vec::new(), mutant)));
        let after = store.active_bytes() as u64;
        let stopped = match applied {
            Ok(Ok(_)) => {
                recovered.applied_bytes += entry.payload.len() as u64;
                self.records += 1;
                self.active_bytes = self.active_bytes - before + after;
                return self.keep_bound();
            }
            Ok(Err(ApplyError::NewerVersion(message))) => return Err(StartError::Partition { partition, message }),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("broken invariant at lsn {}: {}", entry.lsn, panic_message(panic)),
        };
        recovered.stop(stopped)?;
        self.active_bytes -= before;
        Ok(())
    }

    /// Writes the largest layer once all of them take what they may while the node runs (rule C7): what once filled memory does not
    /// fill it again at every start.
    fn keep_bound(&mut self) -> Result<(), StartError> {
        let bytes_max = self.settings.active_bytes_max(self.settings.memory_bytes_max);
        if self.active_bytes <= bytes_max || self.settings.mutant == Mutant::FillMemory {
            return Ok(());
        }
        let active_bytes = |recovered: &Recovered| recovered.store.as_ref().map_or(0, Store::active_bytes);
        let Some(largest) = self.partitions.iter_mut().max_by_key(|recovered| active_bytes(recovered)) else { return Ok(()) };
        self.active_bytes -= active_bytes(largest) as u64;
        largest.checkpoint()?;
        // A view that is held keeps the engine from clearing what others have overwritten since.
        self.partitions.iter_mut().filter_map(|recovered| recovered.store.as_mut().ok()).for_each(Store::refresh);
        Ok(())
    }

    /// Bytes of layers in memory.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.partitions.iter().filter_map(|recovered| recovered.store.as_ref().ok()).map(Store::memory_bytes).sum()
    }

    /// Up to where each partition's checkpoints reach: nobody needs the log up to there any more (rule C2). Of one that stopped,
    /// nothing is known.
    pub fn covered(&self) -> BTreeMap<PartitionId, Lsn> {
        let store = |recovered: &Recovered| Some((recovered.id, recovered.store.as_ref().ok()?.checkpointed_lsn()));
        self.partitions.iter().filter_map(store).collect()
    }

    /// Records applied from the log so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// All rows of one partition as far as it is recovered, and the last record that they show. **Errors**: what stopped it.
    pub fn rows(&mut self, partition: PartitionId) -> Result<(Lsn, Vec<Row>), String> {
        let recovered = self.find(partition).ok_or_else(|| format!("no partition {partition}"))?;
        let store = recovered.store.as_ref().map_err(String::clone)?;
        Ok((store.applied(), store.read().rows().map_err(|error| error.to_string())?))
    }

    /// Refuses tables and log that do not meet (rule C2): `retained` gives a partition's first retained and next LSN in the log.
    pub fn check(&self, retained: impl Fn(PartitionId) -> (Lsn, Lsn)) -> Result<(), StartError> {
        for Recovered { id: partition, store, .. } in &self.partitions {
            let Ok(store) = store else { continue };
            let (first, next) = retained(*partition);
            store.check_log(first, next).map_err(|e| StartError::Partition { partition: *partition, message: e.to_string() })?;
        }
        Ok(())
    }

    /// Starts workers and a new term. `connect` tells the log where a partition's entries go; `invoker` makes the invoker that
    /// reports to the given output; `fatal` ends the process where the engine has failed (rule C8).
    pub fn start(
        mut self,
        env: Env,
        log: Arc<dyn Log>,
        connect: impl Fn(PartitionId, Arc<dyn Sink>),
        invoker: impl FnOnce(CatalogCell, Arc<dyn Output>) -> Arc<Invoker>,
        catalog_changed: Vec<Wake>,
        fatal: Fatal,
    ) -> Result<Started, StartError> {
        let settings = self.settings;
        let epochs = self.partitions.iter().map(|recovered| match recovered.store {
            Ok(_) => AtomicU32::new(recovered.epoch.0 + 1),
            Err(_) if settings.mutant == Mutant::ForgetEpoch => AtomicU32::new(0),
            Err(_) => AtomicU32::new(recovered.epoch.0),
        });
        let epochs = epochs.collect();
        let ids: Vec<PartitionId> = self.partitions.iter().map(|recovered| recovered.id).collect();
        let workers = settings.workers.clamp(1, ids.len());
        let wakes: Vec<Wake> = (0..workers).map(|_| Wake::new()).collect();
        let boxes: Vec<Mailbox> = wakes.iter().map(|wake| Mailbox::new(wake.clone())).collect();
        let mailboxes: Vec<Mailbox> = (0..ids.len()).map(|at| boxes[at % workers].clone()).collect();
        let process = env.ids.random_u64();
        let checkpoint_wake = Wake::new();
        let shared = Arc::new(Shared {
            log,
            epochs,
            mailboxes,
            workers: boxes.clone(),
            requests: Requests::new(process),
            catalog: CatalogCell::default(),
            catalog_changed,
            stopped: Mutex::default(),
            is_stopped: ids.iter().map(|_| AtomicBool::new(false)).collect(),
            applied: ids.iter().map(|_| AtomicU64::new(0)).collect(),
            wants_slot: boxes.iter().map(|_| AtomicBool::new(false)).collect(),
            outbox_rooms: boxes.iter().map(|_| Arc::new(OutboxRoom::new(boxes.len(), settings.outbox_bytes_max))).collect(),
            edge: edge_permits(settings.edge_bytes_max),
            retained: RetainedBytes::new(settings.retained_bytes_max, ids.len()),
            catalog_edit: Arc::default(),
            invoker: OnceLock::new(),
            is_stopping: AtomicBool::new(false),
            gate: Arc::new(Gate::new(boxes, settings.memory_bytes_max).with_mutant(settings.mutant)),
            checkpoints: Checkpoints::new(checkpoint_wake.clone()),
            settings,
            env: env.clone(),
        });
        if let Some(store) = self.partitions.last_mut().and_then(|catalog| catalog.store.as_mut().ok()) {
            // Known before any attempt or source starts (rule M2). A transaction that is dropped reads and changes nothing.
            let value = catalog::load(&store.begin());
            let unreadable =
                |error: StateError| StartError::Unreadable { partition: PartitionId::CATALOG, message: error.to_string() };
            shared.catalog.publish(Arc::new(value.map_err(unreadable)?));
        }
        let invoker = invoker(shared.catalog.clone(), Arc::new(Reports(shared.clone())));
        shared.invoker.get_or_init(|| Arc::downgrade(&invoker));

        let checkpointer = Checkpointer::new(shared.checkpoints.clone(), shared.gate.clone(), fatal);
        env.tasks.drive("checkpointer", checkpoint_wake.clone(), Box::new(checkpointer));
        env.tasks.drive("disk-watch", Wake::new(), Box::new(DiskWatch::new(shared.clone(), checkpoint_wake, &self.engine)));

        let mut owned: Vec<Vec<Option<Box<ActingPartition>>>> = (0..workers).map(|_| Vec::new()).collect();
        let mut led = Vec::new();
        let mut leading = Vec::new();
        let now_ms = env.clock.monotonic().as_millis() as u64;
        for (at, Recovered { id, store, applied_bytes, .. }) in self.partitions.into_iter().enumerate() {
            connect(id, Arc::new(shared.mailboxes[at].clone()));
            owned[at % workers].push(match store {
                Ok(store) => {
                    let (sender, receiver) = oneshot::channel();
                    led.push(receiver);
                    leading.push(id);
                    let mut housekeeping = Housekeeping::new(shared.count());
                    if applied_bytes > 0 {
                        housekeeping.applied(applied_bytes, now_ms);
                    }
                    Some(ActingPartition::new(id, store, shared.clone(), housekeeping, sender))
                }
                Err(error) => {
                    shared.stop_partition(PartitionHealth { partition: id, error });
                    None
                }
            });
        }
        for (at, partitions) in owned.into_iter().enumerate() {
            let worker = Worker::new(at, shared.clone(), invoker.clone(), partitions);
            env.tasks.drive("worker", wakes[at].clone(), Box::new(worker));
        }
        for id in leading {
            shared.append(id, [Event::LeaderElected { process }], None);
        }
        Ok(Started { partitions: Partitions::new(shared), led })
    }
}

/// Refuses tables that a newer version wrote: what this one does not know it would read as absent (rule M7).
fn check_rules(partition: PartitionId, store: &Store) -> Result<(), StartError> {
    match store.read().get::<Meta>(&()) {
        Ok(Some(meta)) if meta.rules > RULES => {
            let found = meta.rules;
            let message = format!(
                "its tables follow version {found} of the rules, and this build knows up to {RULES}: start the version that wrote them"
            );
            Err(StartError::Partition { partition, message })
        }
        // What cannot be read stops the partition, once it is needed.
        _ => Ok(()),
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
    fn progressed(&self, partition: PartitionId, progress: AttemptProgress, room: Room) {
        let mailbox = self.0.mailbox(partition).clone();
        let report = ReportOnWay { _room: room, _twice: self.0.gate.counts_twice(called_bytes(&progress.items)) };
        let durable = Box::new(move |_| mailbox.push(Input::Reported(report)));
        self.0.append(partition, [Event::AttemptProgressed(Box::new(progress))], Some(durable));
    }

    fn answered(&self, partition: PartitionId, id: InvocationId, attempt: Attempt, deployment: DeploymentId) {
        self.0.mailbox(partition).push(Input::Answered { partition, id, attempt, deployment });
    }

    fn ended(&self) {
        self.0.slot_freed();
    }

    fn has_room(&self) {
        self.0.slot_freed();
    }

    fn has_memory(&self) -> bool {
        self.0.gate.try_attempts()
    }

    fn has_memory_of(&self, deployment: DeploymentId) -> bool {
        self.0.gate.try_attempts_of(deployment)
    }

    fn has_memory_for(&self, deployment: DeploymentId, bytes: u64) -> bool {
        self.0.gate.has_attempts_room_of(deployment, bytes, None)
    }

    fn memory_ticket(&self, deployment: DeploymentId, bytes: u64) -> Box<dyn MemoryTicket> {
        Box::new(AttemptTicket { deployment, bytes, ticket: LargeTicket::new(self.0.gate.clone()) })
    }
}

/// Of something that an attempt brings.
struct AttemptTicket {
    deployment: DeploymentId,
    bytes: u64,
    ticket: LargeTicket<Arc<Gate>>,
}

impl MemoryTicket for AttemptTicket {
    fn has_memory(&self) -> bool {
        self.ticket.gate().has_attempts_room_of(self.deployment, self.bytes, self.ticket.place())
    }

    fn memory(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let gate = self.ticket.gate().clone();
        Box::pin(async move { gate.wait_attempts(self.deployment, self.bytes, &mut self.ticket).await })
    }

    fn step_aside(&mut self) {
        self.ticket.step_aside();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_storage::MemEngine;

    fn record(event: Event) -> surefoot_model::Record {
        surefoot_model::Record::new(surefoot_model::Timestamp(1), event)
    }

    fn entry(partition: u16, lsn: u64) -> Entry {
        let payload = surefoot_model::encoding::encode(&record(Event::LeaderElected { process: 1 })).into();
        Entry { partition: PartitionId(partition), lsn: Lsn(lsn), epoch: Epoch(1), payload }
    }

    fn open() -> Recovering {
        let engine: Arc<dyn Engine> = Arc::new(MemEngine::new());
        Recovering::open(&engine, 2, surefoot_storage::Mutant::None, crate::testing::settings()).unwrap()
    }

    #[test]
    fn a_newer_record_or_newer_tables_refuse_the_start() {
        let newer = |rules| {
            let event = Event::LeaderElected { process: 1 };
            let mut payload = surefoot_model::encoding::encode(&surefoot_model::Record { rules, ..record(event) });
            if rules > RULES {
                let at = payload.len() - 3;
                payload[at] = 23; // no variant that this build knows
            }
            Entry { payload: payload.into(), ..entry(0, 1) }
        };
        let mut recovering = open();
        let error = recovering.replay(&newer(RULES + 1)).expect_err("it is newer").to_string();
        assert!(error.contains("start the version that wrote it"), "{error}");
        recovering.replay(&newer(RULES)).unwrap();

        let engine: Arc<dyn Engine> = Arc::new(MemEngine::new());
        let mut store = Store::open(engine.clone(), PartitionId(1)).unwrap();
        let mut transaction = store.begin();
        surefoot_machine::State::put::<Meta>(
            &mut transaction,
            (),
            surefoot_machine::MetaRow { rules: RULES + 1, ..Default::default() },
        );
        transaction.commit(Lsn(1));
        let checkpoint = store.freeze().unwrap();
        store.checkpointed(checkpoint.run().unwrap());
        let opened = Recovering::open(&engine, 2, surefoot_storage::Mutant::None, crate::testing::settings());
        let error = opened.err().expect("the tables are newer").to_string();
        assert!(error.contains("partition 1") && error.contains("start the version that wrote them"), "{error}");
    }

    #[test]
    fn a_gap_between_tables_and_log_is_refused_before_a_record_is_applied_over_it() {
        let mut recovering = open();
        recovering.replay(&entry(0, 1)).unwrap();
        let error = recovering.replay(&entry(1, 50)).expect_err("49 records are missing").to_string();
        assert!(error.contains("partition 1") && error.contains("restore tables and log"), "{error}");
        // Where nothing is left to replay, the log's own bounds tell.
        let error = open().check(|_| (Lsn(50), Lsn(50))).expect_err("49 records are missing").to_string();
        assert!(error.contains("restore tables and log"), "{error}");
        recovering.check(|_| (Lsn(1), Lsn(2))).unwrap();
    }
}
