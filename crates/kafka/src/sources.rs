//! All subscriptions of a node: one task for each in the catalog, started, restarted and stopped as the catalog changes.
//!
//! Owns: which tasks run, their statuses, and who waits for a start. Does not own: what a task does.

use crate::admission::Admission;
use crate::properties;
use crate::source::{ErrorKind, SourceClient, SourceError, SourceSpec};
use crate::status::{SourceStatus, StatusCell, lock};
use crate::subscription::Task;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surefoot_env::{BoxFuture, Env, Wake};
use surefoot_model::SubscriptionId;
use surefoot_model::catalog::{Catalog, Defaults};
use surefoot_partition::Partitions;
use tokio::sync::oneshot;

/// How long a creation waits for its start offsets (rule K4).
const CREATED_TIMEOUT: Duration = Duration::from_secs(5);

/// What sources take from the node's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Retention and the like of new invocations.
    pub defaults: Defaults,
    /// A Kafka record with more bytes of key, value and headers is parked.
    pub record_bytes_max: usize,
    /// Parked Kafka records of one subscription, beyond which it pauses.
    pub parked_max: u64,
    /// Names this data directory among all that read from one Kafka cluster. Part of the members' instance ids, so that a node
    /// that was killed takes its members' places again without waiting for their session's end.
    pub node: String,
    /// What the simulator breaks on purpose.
    pub mutant: Mutant,
}

/// Deliberately broken variants, which simulation must catch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// All rules hold.
    #[default]
    None,
    /// Against rule K1: the topic's id is not looked at.
    IgnoreTopicId,
    /// Against rule K2: a Kafka record goes on past one whose append has to wait.
    Overtake,
    /// Against rule K3: a Kafka record without a key goes to another partition with each assignment.
    RouteByAssignment,
    /// Against rule K4: where reading starts is decided anew with each start.
    ResolveAgain,
    /// Against rule K5: the position is what was read, durable or not.
    PositionLeads,
    /// Against rule K5: the group is told what was read, stored or not.
    CommitLeads,
    /// Against rule K7: fetching does not wait for the partitions to have the epoch.
    FetchBeforeOpen,
    /// Against rule K7: Kafka records of a revoked assignment are taken.
    TakeRevoked,
}

/// The running subscriptions of a node. Cheap to clone.
#[derive(Clone)]
pub struct Sources(Arc<Shared>);

struct Shared {
    env: Env,
    admission: Arc<dyn Admission>,
    statuses: Mutex<BTreeMap<SubscriptionId, StatusCell>>,
    resolved: Arc<Waiters>,
    stop: Mutex<Option<Stop>>,
}

struct Stop {
    now: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
}

impl Sources {
    /// Starts to follow the catalog. `catalog_changed` is woken after each change of it and serves this room alone;
    /// `catalog_edit` is held by everyone who reads the catalog to store a change that depends on it.
    pub fn start(
        env: Env,
        partitions: Partitions,
        settings: Settings,
        catalog_changed: Wake,
        catalog_edit: Arc<tokio::sync::Mutex<()>>,
        client: Arc<dyn SourceClient>,
    ) -> Self {
        Self::start_on(env, Arc::new(partitions), settings, catalog_changed, catalog_edit, client)
    }

    pub(crate) fn start_on(
        env: Env,
        admission: Arc<dyn Admission>,
        settings: Settings,
        catalog_changed: Wake,
        catalog_edit: Arc<tokio::sync::Mutex<()>>,
        client: Arc<dyn SourceClient>,
    ) -> Self {
        let (now, stop) = oneshot::channel();
        let (done_sender, done) = oneshot::channel();
        let shared = Arc::new(Shared {
            env: env.clone(),
            admission,
            statuses: Mutex::default(),
            resolved: Arc::default(),
            stop: Mutex::new(Some(Stop { now, done })),
        });
        let manager = Follower {
            shared: shared.clone(),
            client,
            settings: Arc::new(settings),
            catalog_edit,
            running: BTreeMap::new(),
            leaving: Vec::new(),
        };
        env.tasks.spawn(Box::pin(async move {
            manager.follow(catalog_changed, stop).await;
            // Nobody may wait for it.
            let _ = done_sender.send(());
        }));
        Self(shared)
    }

    /// How one subscription fares. One that is not known (yet) waits.
    pub fn status(&self, id: SubscriptionId) -> SourceStatus {
        lock(&self.0.statuses).get(&id).map_or_else(SourceStatus::waiting, StatusCell::get)
    }

    /// Completes once the start offsets of a subscription that was just stored are durable, it is clear that they will not be for
    /// now, or 5 seconds have passed (rule K4).
    pub fn created(&self, id: SubscriptionId) -> BoxFuture<()> {
        let shared = self.0.clone();
        Box::pin(async move {
            let fired = shared.resolved.wait(id);
            let is_resolved = shared.admission.catalog().subscriptions.get(&id).is_none_or(|s| s.resolved);
            if is_resolved {
                return;
            }
            tokio::select! {
                biased;
                // Nothing is lost with either.
                _ = fired => {}
                () = shared.env.clock.sleep(CREATED_TIMEOUT) => {}
            }
        })
    }

    /// Stops reading: positions are stored, groups are left. Later calls return at once.
    pub async fn stop(&self) {
        let stop = lock(&self.0.stop).take();
        if let Some(Stop { now, done }) = stop {
            // A follower that is gone has stopped.
            let _ = now.send(());
            let _ = done.await;
        }
    }
}

/// Who waits for the start of which subscription.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<SubscriptionId, Vec<oneshot::Sender<()>>>>);

impl Waiters {
    fn wait(&self, id: SubscriptionId) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.0);
        let senders = waiting.entry(id).or_default();
        senders.retain(|sender| !sender.is_closed());
        senders.push(sender);
        receiver
    }

    pub(crate) fn fire(&self, id: SubscriptionId) {
        for sender in lock(&self.0).remove(&id).unwrap_or_default() {
            // It has stopped waiting.
            let _ = sender.send(());
        }
    }
}

/// Makes the running tasks those of the catalog.
struct Follower {
    shared: Arc<Shared>,
    client: Arc<dyn SourceClient>,
    settings: Arc<Settings>,
    catalog_edit: Arc<tokio::sync::Mutex<()>>,
    running: BTreeMap<SubscriptionId, Running>,
    /// Tasks of deleted subscriptions on their way out.
    leaving: Vec<oneshot::Receiver<()>>,
}

struct Running {
    spec: SourceSpec,
    stop: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
}

impl Follower {
    async fn follow(mut self, catalog_changed: Wake, mut stop: oneshot::Receiver<()>) {
        self.close_forgotten();
        loop {
            self.reconcile();
            tokio::select! {
                biased;
                // Nothing is under way.
                _ = &mut stop => break,
                // A wake that is dropped with its future was not taken yet.
                () = catalog_changed.woken() => {}
            }
        }
        for (_, running) in std::mem::take(&mut self.running) {
            // A task that is gone needs no word.
            let _ = running.stop.send(());
            self.leaving.push(running.done);
        }
        for done in self.leaving {
            let _ = done.await;
        }
    }

    fn reconcile(&mut self) {
        let catalog = self.shared.admission.catalog();
        self.leaving.retain_mut(|done| matches!(done.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        let gone: Vec<SubscriptionId> =
            lock(&self.shared.statuses).keys().filter(|id| !catalog.subscriptions.contains_key(id)).copied().collect();
        gone.into_iter().for_each(|id| self.delete(id));
        for id in catalog.subscriptions.keys() {
            self.adjust(&catalog, *id);
        }
    }

    /// Closes subscriptions whose deletion is in the catalog and, where a crash came in between, not in every partition (rule K7).
    fn close_forgotten(&mut self) {
        let (done_sender, done) = oneshot::channel();
        let admission = self.shared.admission.clone();
        self.shared.env.tasks.spawn(Box::pin(async move {
            // The catalog is read after the partitions: what they have recorded was in it before.
            let Ok(open) = admission.sources().await else { return };
            let catalog = admission.catalog();
            for id in open.into_iter().filter(|id| !catalog.subscriptions.contains_key(id)) {
                tracing::info!(subscription = %id, "a subscription was deleted just before the last stop: it is closed now");
                if admission.close_source(id).await.is_err() {
                    return;
                }
            }
            let _ = done_sender.send(());
        }));
        self.leaving.push(done);
    }

    /// Delivery stops at once; what was admitted still runs.
    fn delete(&mut self, id: SubscriptionId) {
        lock(&self.shared.statuses).remove(&id);
        self.shared.resolved.fire(id);
        let running = self.running.remove(&id);
        let (done_sender, done) = oneshot::channel();
        let admission = self.shared.admission.clone();
        self.shared.env.tasks.spawn(Box::pin(async move {
            if let Some(running) = running {
                // A task that is gone needs no word.
                let _ = running.stop.send(());
                let _ = running.done.await;
            }
            if admission.close_source(id).await.is_err() {
                tracing::debug!(subscription = %id, "the node stops before a deleted subscription is closed");
            }
            let _ = done_sender.send(());
        }));
        self.leaving.push(done);
    }

    fn adjust(&mut self, catalog: &Catalog, id: SubscriptionId) {
        let subscription = &catalog.subscriptions[&id];
        let status = lock(&self.shared.statuses).entry(id).or_insert_with(StatusCell::new).clone();
        let Some(cluster) = catalog.kafka_clusters.get(&subscription.cluster) else {
            let message = format!("its Kafka cluster {:?} is not registered any more", &*subscription.cluster);
            status.failed(&SourceError::new(ErrorKind::Refused, message));
            if let Some(running) = self.running.remove(&id) {
                let _ = running.stop.send(());
                self.leaving.push(running.done);
            }
            return;
        };
        let properties = properties::merged(cluster, subscription, &self.settings.node);
        let spec = SourceSpec { subscription: id, topic: subscription.topic.clone(), properties };
        if self.running.get(&id).is_some_and(|running| running.spec == spec) {
            return;
        }
        let before = self.running.remove(&id).map(|running| {
            let _ = running.stop.send(());
            running.done
        });
        let task = Task {
            env: self.shared.env.clone(),
            admission: self.shared.admission.clone(),
            client: self.client.clone(),
            settings: self.settings.clone(),
            catalog_edit: self.catalog_edit.clone(),
            spec: spec.clone(),
            reset: properties::reset(cluster, subscription),
            status,
            resolved: self.shared.resolved.clone(),
        };
        let (stop, stopped) = oneshot::channel();
        let (done_sender, done) = oneshot::channel();
        self.shared.env.tasks.spawn(Box::pin(async move {
            task.run(before, stopped).await;
            // Nobody may wait for it.
            let _ = done_sender.send(());
        }));
        self.running.insert(id, Running { spec, stop, done });
    }
}

#[cfg(test)]
mod tests;
