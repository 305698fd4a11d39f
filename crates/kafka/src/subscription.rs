//! The task of one subscription: it opens a session, and another one whenever that ends, until it is told to leave.
//!
//! Owns: back-off between sessions, and what a session needs before its first fetch: the topic, the epoch, the starts, all durable
//! (rules K1, K4 and K7). Does not own: what happens while it reads (`session`), or how a deleted one ends (`closing`).

use crate::admission::{Admission, ParkedTotal};
use crate::backoff::Backoff;
use crate::latch::Latch;
use crate::memory::{ClientMemory, ClientPart};
use crate::opening::{self, Asked, Plan};
use crate::properties::Reset;
use crate::session::{Positions, Progress, Session};
use crate::source::{ErrorKind, RecordSource, SourceClient, SourceError, SourceSpec, TopicInfo};
use crate::sources::{CREATED_TIMEOUT, Mutant, Settings, Troubles, Waiters, stored_progress};
use crate::status::{StatusCell, lock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use surefoot_env::{Env, Wake};
use surefoot_model::catalog::{CatalogEvent, Subscription};
use surefoot_partition::Stopped;
use tokio::sync::Mutex;

/// The longest that leaving a group may hold up a stop or the next session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Clocks of producers may be behind by as much: with `latest` that is found late, so much more is read.
const LATEST_SLACK_MS: u64 = 10_000;

/// How a task is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The node stops, or another task takes its place: reading goes on where it was.
    Stop,
    /// The subscription is deleted (rule K10).
    Close,
}

/// How a task has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Reading goes on where it was, in another task or after the next start.
    Stopped,
    /// The subscription is deleted, and what ends it is still to be done.
    Unclosed,
    /// The subscription is deleted, closed in every partition, and its group knows.
    Told,
}

impl From<Leave> for Left {
    /// Of a task that reads nothing.
    fn from(leave: Leave) -> Self {
        match leave {
            Leave::Stop => Self::Stopped,
            Leave::Close => Self::Unclosed,
        }
    }
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum End {
    Left(Leave),
    /// Begin again at once: something that nobody has to hear of has changed.
    Again(String),
    /// Try again later.
    Failed(SourceError),
}

impl From<Stopped> for End {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::NotTaken => Self::Left(Leave::Stop),
            // The catalog's, or a disk without room: nothing can be stored. The subscription waits, visibly. What is unknown is asked again.
            Stopped::DiskFull | Stopped::Partition(_) | Stopped::Unknown => {
                Self::Failed(SourceError::new(ErrorKind::Refused, stopped.to_string()))
            }
        }
    }
}

impl From<SourceError> for End {
    fn from(error: SourceError) -> Self {
        Self::Failed(error)
    }
}

/// What a subscription's task works with.
pub(crate) struct Task {
    pub(crate) env: Env,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) client: Arc<dyn SourceClient>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) memory: ClientMemory,
    /// Held while a subscription is read from the catalog and stored again.
    pub(crate) catalog_edit: Arc<Mutex<()>>,
    pub(crate) spec: SourceSpec,
    pub(crate) reset: Result<Reset, SourceError>,
    /// As it was stored when the task was made, then how far the present or last session has come.
    pub(crate) read: std::sync::Mutex<Progress>,
    pub(crate) status: StatusCell,
    pub(crate) resolved: Arc<Waiters>,
    /// Who waited for its start offsets has been told.
    pub(crate) is_answered: AtomicBool,
    /// Woken after each change of the catalog.
    pub(crate) changed: Wake,
    /// Set when the node stops: what takes long is cut short.
    pub(crate) hurry: Latch<()>,
    pub(crate) troubles: Arc<Troubles>,
}

/// What is known when reading begins.
pub(crate) struct Opened {
    pub(crate) plan: Plan,
    pub(crate) topic: TopicInfo,
    pub(crate) parked: ParkedTotal,
}

impl Task {
    /// Reads until `leave` is set, then leaves.
    pub(crate) async fn run(&self, leave: &Latch<Leave>) -> Left {
        let mut backoff = Backoff::default();
        let mut last_message = String::new();
        loop {
            let part = self.memory.take();
            let end = match self.client.open(&self.spec, part.client_bytes()) {
                Ok(source) => self.session(source, part, &mut backoff, leave).await,
                Err(error) => (End::Failed(error), false),
            };
            let error = match end {
                (End::Left(Leave::Close), true) => return Left::Told,
                // What it noticed first may have been a deletion, or the node's end.
                (End::Left(_), _) => return leave.wait().await.into(),
                (End::Again(why), _) => {
                    tracing::info!(subscription = %self.spec.subscription, topic = &*self.spec.topic, why, "the subscription starts over");
                    continue;
                }
                (End::Failed(error), _) => error,
            };
            self.status.failed(&error);
            if error.kind == ErrorKind::Refused {
                // Waiting longer would not help whoever waits for the start.
                self.answer();
            }
            let delay = backoff.next_delay();
            let (subscription, topic, delay_ms) = (self.spec.subscription, &*self.spec.topic, delay.as_millis() as u64);
            if error.message == last_message {
                tracing::debug!(%subscription, topic, %error, delay_ms, "the subscription still does not run");
            } else {
                tracing::warn!(%subscription, topic, %error, delay_ms, "the subscription does not run, it is tried again");
                last_message = error.message;
            }
            tokio::select! {
                biased;
                // Nothing is open.
                how = leave.wait() => return how.into(),
                // Nothing is lost with a delay.
                () = self.env.clock.sleep(delay) => {}
            }
        }
    }

    /// One member's life, and whether the group of a deleted subscription was told of its end.
    async fn session(
        &self,
        mut source: Box<dyn RecordSource>,
        part: ClientPart,
        backoff: &mut Backoff,
        leave: &Latch<Leave>,
    ) -> (End, bool) {
        let opened = tokio::select! {
            biased;
            // What was being stored is stored whole or not at all; the next session looks again.
            how = leave.wait() => Err(End::Left(how)),
            opened = self.open(&mut *source) => opened,
        };
        let mut is_told = false;
        let end = match opened {
            Ok(opened) => {
                *lock(&self.read) = opened.plan.progress();
                let mut session = Session::new(self, &mut *source, opened, part.queue_bytes());
                let end = session.run(backoff, leave).await;
                if matches!(end, End::Left(Leave::Close)) {
                    is_told = session.close().await;
                } else {
                    session.leave().await;
                }
                *lock(&self.read) = session.read_up_to();
                end
            }
            // Nothing was read: who runs this closes it.
            Err(End::Left(_)) => End::Left(Leave::Stop),
            Err(end) => end,
        };
        self.status.left();
        tokio::select! {
            biased;
            () = source.close() => {}
            // Leaving goes on without us; the group finds out by its own time-out at worst.
            () = self.env.clock.sleep(CLOSE_TIMEOUT) => {}
        }
        (end, is_told)
    }

    /// Everything that has to be durable before the first fetch.
    async fn open(&self, source: &mut dyn RecordSource) -> Result<Opened, End> {
        let reset = self.reset.clone()?;
        let mutant = self.settings.mutant;
        let topic = match source.topic().await {
            Ok(topic) if mutant == Mutant::IgnoreTopicId => {
                let known = self.subscription()?.topic_id;
                TopicInfo { id: if known == 0 { topic.id } else { known }, ..topic }
            }
            Ok(topic) if mutant == Mutant::WaitForLeaders && !topic.unknown.is_empty() => {
                return Err(topic.unknown[0].1.clone().into());
            }
            Ok(topic) => topic,
            Err(error) => {
                if error.kind == ErrorKind::TopicMissing {
                    self.resolve_without_topic().await?;
                }
                return Err(error.into());
            }
        };
        let (subscription, catalog) = (self.subscription()?, self.admission.catalog());
        let is_new = |partition: &i32| !catalog.positions.contains_key(&opening::stream(&subscription, *partition));
        let new: Vec<i32> = topic.partitions.iter().map(|p| p.partition).filter(is_new).collect();
        let asked = self.ask_new(source, &subscription, &new, reset).await?;
        let plan = {
            let _edit = self.catalog_edit.lock().await;
            let subscription = self.subscription()?;
            let mut catalog = self.admission.catalog();
            let mut known = (*subscription).clone();
            if mutant == Mutant::ResolveAgain {
                known.resolved = false;
                Arc::make_mut(&mut catalog).positions.clear();
            }
            if mutant == Mutant::MissingAtEnd && known.topic_id == 0 {
                known.resolved = false;
            }
            let plan = opening::plan(&catalog, &known, &topic, &asked, reset)?;
            if plan.subscription != *subscription || !plan.positions.is_empty() {
                let event = CatalogEvent::SubscriptionStored(plan.subscription.clone(), plan.positions.clone());
                self.admission.change_catalog(event).await?;
            }
            plan
        };
        for finding in &plan.findings {
            let (subscription, topic, epoch) = (self.spec.subscription, &*self.spec.topic, plan.subscription.epoch);
            tracing::warn!(%subscription, topic, epoch, "{finding}");
        }
        self.answer();
        let opening = self.admission.open_source(self.spec.subscription, plan.subscription.epoch);
        if mutant == Mutant::FetchBeforeOpen {
            let late = self.env.clock.sleep(Duration::from_millis(100));
            self.env.tasks.spawn(Box::pin(async move {
                late.await;
                // A node that stops opens nothing.
                let _ = opening.await;
            }));
        } else {
            opening.await?;
        }
        let parked = self.admission.parked(self.spec.subscription).await?;
        Ok(Opened { plan, topic, parked })
    }

    /// What has to be known of Kafka partitions without a position.
    async fn ask_new(
        &self,
        source: &mut dyn RecordSource,
        subscription: &Subscription,
        new: &[i32],
        reset: Reset,
    ) -> Result<Asked, SourceError> {
        let committed = self.committed(source, new).await?;
        let is_late = reset == Reset::Latest && !subscription.resolved && self.may_be_answered(subscription);
        let open: Vec<i32> =
            new.iter().copied().filter(|partition| committed.iter().all(|(known, _)| known != partition)).collect();
        let latest = if is_late && !open.is_empty() {
            source.since(&open, subscription.created_at.0.saturating_sub(LATEST_SLACK_MS)).await?
        } else {
            Vec::new()
        };
        Ok(Asked { committed, latest })
    }

    /// Whether who created it may have its answer: what is produced from then on is read, though `latest` is only found now (rule K4).
    fn may_be_answered(&self, subscription: &Subscription) -> bool {
        let has_waited = self.env.clock.now_ms() >= subscription.created_at.0 + CREATED_TIMEOUT.as_millis() as u64;
        let catalog = self.admission.catalog();
        let has_begun = subscription.topic_id != 0 || !stored_progress(&catalog, subscription).positions.is_empty();
        has_waited || has_begun || self.is_answered.load(Ordering::Relaxed)
    }

    fn answer(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
        self.resolved.fire(self.spec.subscription);
    }

    /// What the group has committed of Kafka partitions that were not read yet: by another program, or by a subscription in whose place
    /// this one reads (rule K10).
    pub(crate) async fn committed(&self, source: &mut dyn RecordSource, partitions: &[i32]) -> Result<Positions, SourceError> {
        let is_nobodys = self.has_own_group() && self.settings.mutant != Mutant::TrustOwnGroup;
        if is_nobodys || partitions.is_empty() { Ok(Vec::new()) } else { source.committed(partitions).await }
    }

    /// A group of the subscription's own name has no past, and no future.
    pub(crate) fn has_own_group(&self) -> bool {
        self.spec.properties.get("group.id").is_none_or(|group| *group == self.spec.subscription.to_string())
    }

    /// A topic that is missing when its subscription is created is read from its start once it appears (rule K4).
    async fn resolve_without_topic(&self) -> Result<(), End> {
        let _edit = self.catalog_edit.lock().await;
        let subscription = self.subscription()?;
        if !subscription.resolved {
            let resolved = Subscription { resolved: true, ..(*subscription).clone() };
            self.admission.change_catalog(CatalogEvent::SubscriptionStored(resolved, Vec::new())).await?;
        }
        self.answer();
        Ok(())
    }

    fn subscription(&self) -> Result<Arc<Subscription>, End> {
        let found = self.admission.catalog().subscriptions.get(&self.spec.subscription).cloned();
        // Nothing of one that is deleted is stored any more but how it ends.
        found.filter(|subscription| subscription.closing.is_none()).ok_or(End::Left(Leave::Stop))
    }
}
