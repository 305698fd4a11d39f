//! All subscriptions of a node: one task for each in the catalog, started, restarted and stopped as the catalog changes.
//!
//! Owns: which tasks run, their statuses, that one that dies is started again, and who waits for a start or an end. Does not own: what
//! a task does.

use crate::admission::Admission;
use crate::backoff::Backoff;
use crate::latch::Latch;
use crate::memory::ClientMemory;
use crate::opening;
use crate::properties;
use crate::session::Progress;
use crate::source::{ErrorKind, SourceClient, SourceError, SourceSpec};
use crate::status::{SourceStatus, StatusCell, lock};
use crate::subscription::{Leave, Left, Task};
use futures_util::FutureExt;
use metrics::counter;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surefoot_env::{BoxFuture, Env, Wake};
use surefoot_model::catalog::{Catalog, Defaults, Subscription};
use surefoot_model::{SubscriptionId, Text};
use surefoot_partition::Partitions;
use tokio::sync::oneshot;

/// How long a creation waits for its start offsets (rule K4).
pub(crate) const CREATED_TIMEOUT: Duration = Duration::from_secs(5);
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
    /// What all clients may take together: what they have fetched, and what sessions have taken from them.
    pub memory_bytes: u64,
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
    /// Against rule K5: reading goes on where the group has come to, whoever has committed that.
    FollowGroup,
    /// Against rule K6: as many are parked as come.
    ParkWithoutBound,
    /// Against rule K6: what is held when Kafka partitions go to another member is never taken again.
    HoldSurvives,
    /// Against rule K6: what no deployment has a handler for is parked.
    ParkUnknown,
    /// Against rule K6: what waits for a handler does not hear of it.
    MissHandler,
    /// Against rule K5: a stream of which too much was not applied stays with its source for good.
    StreamStaysHeld,
    /// Against rule K10: a subscription is closed while its source still reads.
    CloseEarly,
    /// Against rule K10: a deleted subscription is forgotten before its group knows how far it has read.
    RowGoesFirst,
    /// Against rule K10: the last commit does not look at what the group knows by then.
    CommitGoesBack,
    /// Against rule K7: fetching does not wait for the partitions to have the epoch.
    FetchBeforeOpen,
    /// Against rule K7: Kafka records of a revoked assignment are taken.
    TakeRevoked,
    /// Against rule K4: a Kafka partition that is added later is read from its end.
    AddedAtEnd,
    /// Against rule K4: what others have committed under the name of a subscription is taken for its own.
    TrustOwnGroup,
    /// Against rule K4: a topic is not read before all its Kafka partitions have a leader.
    WaitForLeaders,
    /// Against rule K4: a topic that was missing when its subscription was created is read from where the subscription asks.
    MissingAtEnd,
}

/// The running subscriptions of a node. Cheap to clone.
#[derive(Clone)]
pub struct Sources(Arc<Shared>);

struct Shared {
    env: Env,
    admission: Arc<dyn Admission>,
    /// Of all in the catalog.
    statuses: Mutex<BTreeMap<SubscriptionId, StatusCell>>,
    resolved: Arc<Waiters>,
    /// Who waits for the end of a deleted subscription.
    gone: Arc<Waiters>,
    troubles: Arc<Troubles>,
    /// Set when the node stops: what takes long is cut short.
    hurry: Latch<()>,
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
            gone: Arc::default(),
            hurry: Latch::new(),
            troubles: Arc::default(),
            stop: Mutex::new(Some(Stop { now, done })),
        });
        let manager = Follower {
            shared: shared.clone(),
            client,
            memory: ClientMemory::new(settings.memory_bytes),
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

    /// Completes once nothing is left of a deleted subscription: it is closed everywhere, and its group knows how far it has read
    /// (rule K10), or an operator has let it go; or 5 seconds have passed, or the node stops. Says whether it is gone.
    pub fn closed(&self, id: SubscriptionId) -> BoxFuture<bool> {
        let shared = self.0.clone();
        Box::pin(async move {
            let fired = shared.gone.wait(id);
            let is_there = || shared.admission.catalog().subscriptions.contains_key(&id);
            if is_there() {
                tokio::select! {
                    biased;
                    // Nothing is lost with any of them.
                    _ = fired => {}
                    () = shared.hurry.wait() => {}
                    () = shared.env.clock.sleep(CLOSED_TIMEOUT) => {}
                }
            }
            !is_there()
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
        self.fire_if(|waited_for| *waited_for == id);
    }

    fn fire_if(&self, is_over: impl Fn(&SubscriptionId) -> bool) {
        let over: Vec<_> = lock(&self.0).extract_if(.., |id, _| is_over(id)).collect();
        for sender in over.into_iter().flat_map(|(_, senders)| senders) {
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
    memory: ClientMemory,
    catalog_edit: Arc<tokio::sync::Mutex<()>>,
    running: BTreeMap<SubscriptionId, Running>,
    /// Tasks on their way out.
    leaving: Vec<Leaving>,
}

struct Running {
    spec: SourceSpec,
    place: GroupPlace,
    is_closing: bool,
    leave: Latch<Leave>,
    done: Latch<()>,
    changed: Wake,
}

struct Leaving {
    id: SubscriptionId,
    place: GroupPlace,
    /// Set once it has ended.
    done: Latch<()>,
}

/// What one member of a group at a time reads: cluster, topic and group.
type GroupPlace = (Text, Text, String);

impl Follower {
    async fn follow(mut self, catalog_changed: Wake, mut stop: oneshot::Receiver<()>) {
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
        self.shared.hurry.set(());
        let running = std::mem::take(&mut self.running);
        running.into_iter().for_each(|(id, running)| self.let_leave(id, running, Leave::Stop));
        for Leaving { done, .. } in self.leaving {
            done.wait().await;
        }
    }

    fn reconcile(&mut self) {
        let catalog = self.shared.admission.catalog();
        self.leaving.retain(|leaving| leaving.done.get().is_none());
        self.forget_gone(&catalog);
        // Who reads in the place of another has to know of it.
        let (closing, live): (Vec<_>, Vec<_>) = catalog.subscriptions.values().partition(|s| s.closing.is_some());
        closing.into_iter().for_each(|subscription| self.close(&catalog, subscription));
        live.into_iter().for_each(|subscription| self.adjust(&catalog, subscription));
        self.running.values().for_each(|running| running.changed.wake());
    }

    /// Of subscriptions that have ended.
    fn forget_gone(&mut self, catalog: &Catalog) {
        let is_gone = |id: &SubscriptionId| !catalog.subscriptions.contains_key(id);
        lock(&self.shared.statuses).retain(|id, _| !is_gone(id));
        for (id, running) in self.running.extract_if(.., |id, _| is_gone(id)).collect::<Vec<_>>() {
            self.let_leave(id, running, Leave::Close);
        }
        self.shared.gone.fire_if(is_gone);
    }

    fn let_leave(&mut self, id: SubscriptionId, running: Running, how: Leave) {
        running.leave.set(how);
        self.leaving.push(Leaving { id, place: running.place, done: running.done });
    }

    /// Delivery stops at once; what was admitted still runs. One that a crash left half closed is closed to its end.
    fn close(&mut self, catalog: &Catalog, subscription: &Subscription) {
        let id = subscription.id;
        self.shared.resolved.fire(id);
        if !self.running.contains_key(&id) {
            let (spec, place) = self.spec(catalog, subscription);
            let before = self.leaving(|leaving| leaving.id == id).collect();
            self.run(catalog, subscription, spec, place, before);
        }
        let running = self.running.get_mut(&id).expect("it was just made, if it was not there");
        if running.is_closing {
            return;
        }
        running.is_closing = true;
        running.leave.set(Leave::Close);
        // A broker that does not answer keeps the source for a while.
        self.status(id).closing(Some("its source stops, and tells its group how far it has read".to_owned()));
        if self.settings.mutant == Mutant::CloseEarly {
            let closing = self.shared.admission.close_source(id);
            self.shared.env.tasks.spawn(Box::pin(async move {
                // A node that stops closes nothing.
                let _ = closing.await;
            }));
        }
    }

    fn adjust(&mut self, catalog: &Catalog, subscription: &Subscription) {
        let id = subscription.id;
        if !catalog.kafka_clusters.contains_key(&subscription.cluster) {
            let message = format!("its Kafka cluster {:?} is not registered any more", &*subscription.cluster);
            self.status(id).failed(&SourceError::new(ErrorKind::Refused, message));
            if let Some(running) = self.running.remove(&id) {
                self.let_leave(id, running, Leave::Stop);
            }
            return;
        }
        let (spec, place) = self.spec(catalog, subscription);
        if self.running.get(&id).is_some_and(|running| running.spec == spec) {
            return;
        }
        // Who reads in the place of another begins where that has come to (rule K10).
        let closing = self.running.iter().filter(|(_, running)| running.is_closing && running.place == place);
        let mut before: Vec<(SubscriptionId, Latch<()>)> = closing.map(|(id, running)| (*id, running.done.clone())).collect();
        before.extend(self.leaving(|leaving| leaving.id == id || leaving.place == place));
        if let Some(running) = self.running.remove(&id) {
            before.push((id, running.done.clone()));
            self.let_leave(id, running, Leave::Stop);
        }
        self.run(catalog, subscription, spec, place, before);
    }

    /// Tasks on their way out, and when each has ended.
    fn leaving(&self, is_it: impl Fn(&Leaving) -> bool) -> impl Iterator<Item = (SubscriptionId, Latch<()>)> {
        self.leaving.iter().filter(move |leaving| is_it(leaving)).map(|leaving| (leaving.id, leaving.done.clone()))
    }

    fn status(&self, id: SubscriptionId) -> StatusCell {
        lock(&self.shared.statuses).entry(id).or_insert_with(StatusCell::new).clone()
    }

    fn spec(&self, catalog: &Catalog, subscription: &Subscription) -> (SourceSpec, GroupPlace) {
        let none = BTreeMap::new();
        let cluster = catalog.kafka_clusters.get(&subscription.cluster).map_or(&none, |cluster| &cluster.properties);
        let properties = properties::merged(cluster, subscription, &self.settings.node);
        let place = (subscription.cluster.clone(), subscription.topic.clone(), properties["group.id"].clone());
        (SourceSpec { subscription: subscription.id, topic: subscription.topic.clone(), properties }, place)
    }

    /// Starts a task, which waits for those whose place it takes.
    fn run(
        &mut self,
        catalog: &Catalog,
        subscription: &Subscription,
        spec: SourceSpec,
        place: GroupPlace,
        before: Vec<(SubscriptionId, Latch<()>)>,
    ) {
        let id = subscription.id;
        let none = BTreeMap::new();
        let cluster = catalog.kafka_clusters.get(&subscription.cluster).map_or(&none, |cluster| &cluster.properties);
        let (leave, done, changed) = (Latch::new(), Latch::new(), Wake::new());
        let task = Task {
            env: self.shared.env.clone(),
            admission: self.shared.admission.clone(),
            client: self.client.clone(),
            settings: self.settings.clone(),
            memory: self.memory.clone(),
            catalog_edit: self.catalog_edit.clone(),
            spec: spec.clone(),
            reset: properties::reset(cluster, subscription),
            read: Mutex::new(stored_progress(catalog, subscription)),
            status: self.status(id),
            resolved: self.shared.resolved.clone(),
            is_answered: AtomicBool::new(false),
            changed: changed.clone(),
            hurry: self.shared.hurry.clone(),
            troubles: self.shared.troubles.clone(),
        };
        let (its_leave, its_done) = (leave.clone(), done.clone());
        self.shared.env.tasks.spawn(Box::pin(async move {
            supervise(&task, before, &its_leave).await;
            its_done.set(());
        }));
        self.running.insert(id, Running { spec, place, is_closing: false, leave, done, changed });
    }
}

/// Runs a subscription's task once those whose place it takes have ended, then ends it where it is deleted, once its own earlier tasks
/// have ended; again after a panic.
async fn supervise(task: &Task, before: Vec<(SubscriptionId, Latch<()>)>, leave: &Latch<Leave>) {
    let waiting = async {
        for (id, done) in &before {
            let id = *id;
            if done.get().is_none() && id != task.spec.subscription {
                task.status.waiting(format!("it begins once subscription {id}, in whose place it reads, has ended"));
            }
            done.wait().await;
        }
    };
    let mut left = tokio::select! {
        biased;
        // Whoever comes next has to wait for the same.
        () = waiting => None,
        how = leave.wait() => Some(Left::from(how)),
    };
    if left == Some(Left::Unclosed) {
        // What they have appended would be dropped as closed, and committed as taken (rule K10). Each has been told to leave.
        for (_, done) in before.iter().filter(|(id, _)| *id == task.spec.subscription) {
            done.wait().await;
        }
    }
    let mut backoff = Backoff::default();
    loop {
        let life = async {
            let left = match left {
                Some(left) => left,
                None => task.run(leave).await,
            };
            if left != Left::Stopped {
                task.end(left).await;
            }
        };
        let Err(panic) = AssertUnwindSafe(life).catch_unwind().await else { return };
        task.troubles.panicked();
        let message = panic_message(&*panic);
        let (subscription, topic, delay) = (task.spec.subscription, &*task.spec.topic, backoff.next_delay());
        tracing::error!(%subscription, topic, message, delay_ms = delay.as_millis() as u64, "the subscription's task panicked, it is started again");
        task.status.left();
        task.status
            .failed(&SourceError::new(ErrorKind::Unavailable, format!("a broken invariant, it is tried again: {message}")));
        tokio::select! {
            biased;
            // The next start goes on.
            () = task.hurry.wait() => return,
            () = task.env.clock.sleep(delay) => {}
        }
        left = leave.get().map(Left::from);
    }
}

/// Where reading goes on.
pub(crate) fn stored_progress(catalog: &Catalog, subscription: &Subscription) -> Progress {
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
