//! All subscriptions of a node: one task for each in the catalog, started, restarted and stopped as the catalog changes.
//!
//! Owns: which tasks run, their statuses, that one that dies is started again, and who waits for a start or an end. Does not own: what
//! a task does.

use crate::admission::Admission;
use crate::backoff::Backoff;
use crate::latch::Latch;
use crate::opening;
use crate::properties;
use crate::session::Progress;
use crate::source::{ErrorKind, SourceClient, SourceError, SourceSpec};
use crate::status::{SourceStatus, StatusCell, lock};
use crate::subscription::{Leave, Task};
use futures_util::FutureExt;
use metrics::counter;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surefoot_env::{BoxFuture, Env, Wake};
use surefoot_model::catalog::{Catalog, Defaults, Subscription};
use surefoot_model::{SubscriptionId, Text};
use surefoot_partition::Partitions;
use tokio::sync::oneshot;

/// How long a creation waits for its start offsets (rule K4).
const CREATED_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a deletion waits for the source to have ended (rule K10).
const CLOSED_TIMEOUT: Duration = Duration::from_secs(5);

/// What sources take from the node's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Retention and the like of new invocations.
    pub defaults: Defaults,
    /// A Kafka record with more bytes of key, value and headers is parked.
    pub record_bytes_max: usize,
    /// Parked Kafka records of one subscription, beyond which it pauses.
    pub parked_max: u64,
    /// And what may be kept of them, in bytes; one alone may have more.
    pub parked_bytes_max: u64,
    pub bounds: Bounds,
    /// Names this data directory among all that read from one Kafka cluster. Part of the members' instance ids, so that a node
    /// that was killed takes its members' places again without waiting for their session's end.
    pub node: String,
    /// What the simulator breaks on purpose.
    pub mutant: Mutant,
}

/// How much of one subscription may be under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Kafka records that wait for room at the edge, and their bytes. Beyond, none is asked for.
    pub queue_records: usize,
    pub queue_bytes: usize,
    /// Of one stream: Kafka records from its position on, and their bytes. They are not applied yet, or come after one that is not, and
    /// a restart reads them again. Beyond, the stream waits.
    pub pending_records: usize,
    pub pending_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { queue_records: 4_096, queue_bytes: 8 << 20, pending_records: 100_000, pending_bytes: 64 << 20 }
    }
}

impl Bounds {
    /// Whether so many Kafka records with so many bytes of one stream are as many as may be.
    pub(crate) fn is_full(&self, (records, bytes): (usize, usize)) -> bool {
        records >= self.pending_records || bytes >= self.pending_bytes
    }
}

/// What went wrong since the start that nobody caused.
#[derive(Debug, Default)]
pub struct Troubles {
    panics: AtomicU64,
    standstills: AtomicU64,
}

impl Troubles {
    /// Tasks of subscriptions that panicked; each was started again.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Streams that stood still though there was more to read and room for it.
    pub fn standstills(&self) -> u64 {
        self.standstills.load(Ordering::Relaxed)
    }

    pub(crate) fn stood_still(&self) {
        counter!("surefoot_kafka_ingress_standstills_total").increment(1);
        self.standstills.fetch_add(1, Ordering::Relaxed);
    }

    fn panicked(&self) {
        counter!("surefoot_kafka_ingress_panics_total").increment(1);
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
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
    /// Against rule K6: as many are parked as come.
    ParkWithoutBound,
    /// Against rule K6: what is held when Kafka partitions go to another member is never taken again.
    HoldSurvives,
    /// Against rule K5: a stream of which too much was not applied stays with its source for good.
    StreamStaysHeld,
    /// Against rule K10: a subscription is closed while its source still reads.
    CloseEarly,
    /// Against rule K7: fetching does not wait for the partitions to have the epoch.
    FetchBeforeOpen,
    /// Against rule K7: Kafka records of a revoked assignment are taken.
    TakeRevoked,
    /// Against rule K4: a Kafka partition that is added later is read from its end.
    AddedAtEnd,
    /// Against rule K4: a topic that was missing when its subscription was created is read from where the subscription asks.
    MissingAtEnd,
}

/// The running subscriptions of a node. Cheap to clone.
#[derive(Clone)]
pub struct Sources(Arc<Shared>);

struct Shared {
    env: Env,
    admission: Arc<dyn Admission>,
    /// Of subscriptions that run or have not ended yet.
    known: Mutex<BTreeMap<SubscriptionId, Known>>,
    resolved: Arc<Waiters>,
    troubles: Arc<Troubles>,
    stop: Mutex<Option<Stop>>,
}

struct Known {
    status: StatusCell,
    /// It is deleted, and on its way out.
    is_leaving: bool,
    /// Set once it has ended: whether it is closed everywhere and its group knows how far it has read.
    closed: Latch<bool>,
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
            known: Mutex::default(),
            resolved: Arc::default(),
            troubles: Arc::default(),
            stop: Mutex::new(Some(Stop { now, done })),
        });
        let manager = Follower {
            shared: shared.clone(),
            client,
            settings: Arc::new(settings),
            catalog_edit,
            running: BTreeMap::new(),
            leaving: Vec::new(),
            hurry: Latch::new(),
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
        lock(&self.0.known).get(&id).map_or_else(SourceStatus::waiting, |known| known.status.get())
    }

    /// What went wrong since the start that nobody caused.
    pub fn troubles(&self) -> &Troubles {
        &self.0.troubles
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

    /// Completes once a subscription that was just deleted is closed everywhere and its group has been told how far it has read
    /// (rule K10), or 5 seconds have passed. Says whether it is.
    pub fn closed(&self, id: SubscriptionId) -> BoxFuture<bool> {
        let shared = self.0.clone();
        Box::pin(async move {
            let Some(closed) = lock(&shared.known).get(&id).map(|known| known.closed.clone()) else { return true };
            tokio::select! {
                biased;
                // Nothing is lost with either.
                is_told = closed.wait() => is_told,
                () = shared.env.clock.sleep(CLOSED_TIMEOUT) => false,
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
    /// Tasks on their way out.
    leaving: Vec<Leaving>,
    /// Set when the node stops.
    hurry: Latch<()>,
}

struct Running {
    spec: SourceSpec,
    place: GroupPlace,
    leave: Latch<Leave>,
    done: Latch<bool>,
    changed: Wake,
}

struct Leaving {
    /// Absent where nothing is read.
    place: Option<GroupPlace>,
    /// Set once it has ended: whether it was closed and its group knows.
    done: Latch<bool>,
}

/// What one member of a group at a time reads: cluster, topic and group.
type GroupPlace = (Text, Text, String);

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
        self.hurry.set(());
        for (_, running) in std::mem::take(&mut self.running) {
            running.leave.set(Leave::Stop);
            self.leaving.push(Leaving { place: None, done: running.done });
        }
        for Leaving { done, .. } in self.leaving {
            done.wait().await;
        }
    }

    fn reconcile(&mut self) {
        let catalog = self.shared.admission.catalog();
        self.leaving.retain(|leaving| leaving.done.get().is_none());
        let is_gone = |(id, known): &(&SubscriptionId, &Known)| !known.is_leaving && !catalog.subscriptions.contains_key(id);
        let gone: Vec<SubscriptionId> = lock(&self.shared.known).iter().filter(is_gone).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.delete(id));
        for id in catalog.subscriptions.keys() {
            self.adjust(&catalog, *id);
        }
        self.running.values().for_each(|running| running.changed.wake());
    }

    /// Closes subscriptions whose deletion is in the catalog and, where a crash came in between, not in every partition (rule K7).
    fn close_forgotten(&mut self) {
        let done = Latch::new();
        self.leaving.push(Leaving { place: None, done: done.clone() });
        let admission = self.shared.admission.clone();
        self.shared.env.tasks.spawn(Box::pin(async move {
            // The catalog is read after the partitions: what they have recorded was in it before.
            let open = admission.sources().await.unwrap_or_default();
            let catalog = admission.catalog();
            for id in open.into_iter().filter(|id| !catalog.subscriptions.contains_key(id)) {
                tracing::info!(subscription = %id, "a subscription was deleted just before the last stop: it is closed now");
                if admission.close_source(id).await.is_err() {
                    break; // the node stops
                }
            }
            done.set(true);
        }));
    }

    /// Delivery stops at once; what was admitted still runs.
    fn delete(&mut self, id: SubscriptionId) {
        let closed = {
            let mut known = lock(&self.shared.known);
            let known = known.get_mut(&id).expect("what is deleted is known");
            known.is_leaving = true;
            known.closed.clone()
        };
        self.shared.resolved.fire(id);
        let running = self.running.remove(&id);
        let closes_early = self.settings.mutant == Mutant::CloseEarly;
        let (task_done, place) = match running {
            Some(running) => {
                running.leave.set(if closes_early { Leave::Stop } else { Leave::Close });
                (Some(running.done), Some(running.place))
            }
            None => (None, None),
        };
        let (shared, done) = (self.shared.clone(), Latch::new());
        self.leaving.push(Leaving { place, done: done.clone() });
        self.shared.env.tasks.spawn(Box::pin(async move {
            let task_closes = task_done.is_some() && !closes_early;
            let is_closed = task_closes || shared.admission.close_source(id).await.is_ok();
            let is_told = match task_done {
                Some(task_done) => task_done.wait().await || closes_early,
                None => true,
            };
            if !is_closed {
                tracing::debug!(subscription = %id, "the node stops before a deleted subscription is closed");
            }
            lock(&shared.known).remove(&id);
            closed.set(is_closed && is_told);
            done.set(is_closed && is_told);
        }));
    }

    fn adjust(&mut self, catalog: &Catalog, id: SubscriptionId) {
        let subscription = &catalog.subscriptions[&id];
        let status = {
            let mut known = lock(&self.shared.known);
            let new = || Known { status: StatusCell::new(), is_leaving: false, closed: Latch::new() };
            known.entry(id).or_insert_with(new).status.clone()
        };
        let Some(cluster) = catalog.kafka_clusters.get(&subscription.cluster) else {
            let message = format!("its Kafka cluster {:?} is not registered any more", &*subscription.cluster);
            status.failed(&SourceError::new(ErrorKind::Refused, message));
            if let Some(running) = self.running.remove(&id) {
                running.leave.set(Leave::Stop);
                self.leaving.push(Leaving { place: Some(running.place), done: running.done });
            }
            return;
        };
        let properties = properties::merged(cluster, subscription, &self.settings.node);
        let spec = SourceSpec { subscription: id, topic: subscription.topic.clone(), properties };
        if self.running.get(&id).is_some_and(|running| running.spec == spec) {
            return;
        }
        let place = (subscription.cluster.clone(), spec.topic.clone(), spec.properties["group.id"].clone());
        // Who reads in the place of another begins where that has come to (rule K10).
        let mut before: Vec<Latch<bool>> =
            self.leaving.iter().filter(|leaving| leaving.place.as_ref() == Some(&place)).map(|l| l.done.clone()).collect();
        if let Some(running) = self.running.remove(&id) {
            running.leave.set(Leave::Stop);
            before.push(running.done);
        }
        let (leave, done, changed) = (Latch::new(), Latch::new(), Wake::new());
        let task = Task {
            env: self.shared.env.clone(),
            admission: self.shared.admission.clone(),
            client: self.client.clone(),
            settings: self.settings.clone(),
            catalog_edit: self.catalog_edit.clone(),
            spec: spec.clone(),
            reset: properties::reset(cluster, subscription),
            read: Mutex::new(stored_progress(catalog, subscription)),
            status,
            resolved: self.shared.resolved.clone(),
            changed: changed.clone(),
            hurry: self.hurry.clone(),
            troubles: self.shared.troubles.clone(),
        };
        let (its_leave, its_done) = (leave.clone(), done.clone());
        self.shared.env.tasks.spawn(Box::pin(async move {
            its_done.set(supervise(&task, before, &its_leave).await);
        }));
        self.running.insert(id, Running { spec, place, leave, done, changed });
    }
}

/// Runs a subscription's task once those whose place it takes have ended, and again after a panic. Says what [`Task::run`] does.
async fn supervise(task: &Task, before: Vec<Latch<bool>>, leave: &Latch<Leave>) -> bool {
    let waiting = async {
        for done in before {
            done.wait().await;
        }
    };
    let mut left = tokio::select! {
        biased;
        // Whoever comes next has to wait for the same.
        () = waiting => None,
        how = leave.wait() => Some(how),
    };
    let mut backoff = Backoff::default();
    while left.is_none() {
        let panic = match AssertUnwindSafe(task.run(leave)).catch_unwind().await {
            Ok(is_told) => return is_told,
            Err(panic) => panic,
        };
        task.troubles.panicked();
        let message = panic_message(&*panic);
        let (subscription, topic, delay) = (task.spec.subscription, &*task.spec.topic, backoff.next_delay());
        tracing::error!(%subscription, topic, message, delay_ms = delay.as_millis() as u64, "the subscription's task panicked, it is started again");
        task.status.left();
        task.status
            .failed(&SourceError::new(ErrorKind::Unavailable, format!("a broken invariant, it is tried again: {message}")));
        left = tokio::select! {
            biased;
            how = leave.wait() => Some(how),
            () = task.env.clock.sleep(delay) => None,
        };
    }
    // Before the first session, and after one that panicked: watermarks say what was taken beyond what was stored.
    left == Some(Leave::Close) && task.close_unread().await
}

/// Where reading goes on.
fn stored_progress(catalog: &Catalog, subscription: &Subscription) -> Progress {
    let (first, last) = (opening::stream(subscription, i32::MIN), opening::stream(subscription, i32::MAX));
    let stored = catalog.positions.range(first..=last).map(|(stream, position)| (stream.partition, *position));
    Progress { topic_id: subscription.topic_id, epoch: subscription.epoch, positions: stored.collect() }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".to_owned())
}

#[cfg(test)]
mod tests;
