//! The task of one subscription: it opens a session, and another one whenever that ends, until it is told to leave.
//!
//! Owns: back-off between sessions, and what a session needs before its first fetch: the topic, the epoch, the starts, all durable
//! (rules K1, K4 and K7). Does not own: what happens while it reads (`session`).

use crate::admission::{Admission, ParkedTotal};
use crate::backoff::Backoff;
use crate::latch::Latch;
use crate::opening::{self, Plan};
use crate::properties::Reset;
use crate::session::{LAST_COMMIT_INTERVAL, LAST_COMMIT_TIMEOUT, Positions, Progress, Session, ahead_of};
use crate::source::{ErrorKind, RecordSource, SourceClient, SourceError, SourceSpec, TopicInfo};
use crate::sources::{Mutant, Settings, Troubles, Waiters};
use crate::status::{StatusCell, lock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Env, Wake};
use surefoot_model::catalog::{CatalogEvent, Subscription};
use surefoot_partition::Stopped;
use tokio::sync::Mutex;

/// The longest that leaving a group may hold up a stop or the next session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a task is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The node stops, or another task takes its place: reading goes on where it was.
    Stop,
    /// The subscription is deleted (rule K10).
    Close,
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
    /// Held while a subscription is read from the catalog and stored again.
    pub(crate) catalog_edit: Arc<Mutex<()>>,
    pub(crate) spec: SourceSpec,
    pub(crate) reset: Result<Reset, SourceError>,
    /// As it was stored when the task was made, then how far the present or last session has come.
    pub(crate) read: std::sync::Mutex<Progress>,
    pub(crate) status: StatusCell,
    pub(crate) resolved: Arc<Waiters>,
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
    /// Reads until `leave` is set, then leaves. Says whether it is closed and its group knows how far it has read.
    pub(crate) async fn run(&self, leave: &Latch<Leave>) -> bool {
        let mut backoff = Backoff::default();
        let mut last_message = String::new();
        loop {
            let end = match self.client.open(&self.spec) {
                Ok(source) => self.session(source, &mut backoff, leave).await,
                Err(error) => (End::Failed(error), false),
            };
            let error = match end {
                (End::Left(Leave::Close), is_told) => return is_told,
                // What it noticed first was a deletion, or the node's end.
                (End::Left(Leave::Stop), _) => return leave.wait().await == Leave::Close && self.close_unread().await,
                (End::Again(why), _) => {
                    tracing::info!(subscription = %self.spec.subscription, topic = &*self.spec.topic, why, "the subscription starts over");
                    continue;
                }
                (End::Failed(error), _) => error,
            };
            self.status.failed(&error);
            if error.kind == ErrorKind::Refused {
                // Waiting longer would not help whoever waits for the start.
                self.resolved.fire(self.spec.subscription);
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
                how = leave.wait() => return how == Leave::Close && self.close_unread().await,
                // Nothing is lost with a delay.
                () = self.env.clock.sleep(delay) => {}
            }
        }
    }

    /// One member's life, and whether the group of a deleted subscription was told of its end.
    async fn session(&self, mut source: Box<dyn RecordSource>, backoff: &mut Backoff, leave: &Latch<Leave>) -> (End, bool) {
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
                let mut session = Session::new(self, &mut *source, opened);
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

    /// Closes it in every partition, and says where one in its place goes on: `read` is what is known of that; what was taken in an
    /// earlier session or life, and read again since or not, only watermarks know.
    pub(crate) async fn close_source(&self, read: &Progress) -> Result<Positions, Stopped> {
        let id = self.spec.subscription;
        // Once that is applied everything before it is.
        self.admission.open_source(id, read.epoch).await?;
        let taken = self.admission.watermarks(id, read.epoch).await?;
        self.admission.close_source(id).await?;
        let mut positions: BTreeMap<i32, i64> = read.positions.iter().copied().collect();
        for (stream, offset) in taken.into_iter().filter(|(stream, _)| stream.topic == read.topic_id) {
            let position = positions.entry(stream.partition).or_insert(offset + 1);
            *position = (*position).max(offset + 1);
        }
        Ok(positions.into_iter().collect())
    }

    /// The end of a deleted subscription that no session reads (rule K10). Says whether its group knows how far it has been read.
    pub(crate) async fn close_unread(&self) -> bool {
        let read = lock(&self.read).clone();
        // Where the node stops, the next start closes it.
        let Ok(positions) = self.close_source(&read).await else { return false };
        let committing = async {
            loop {
                let Err(error) = self.commit_unread(read.topic_id, &positions).await else { return };
                if error.kind == ErrorKind::TopicMissing {
                    return; // there is nothing left to read
                }
                tracing::debug!(subscription = %self.spec.subscription, %error, "the last commit of a deleted subscription");
                self.env.clock.sleep(LAST_COMMIT_INTERVAL).await;
            }
        };
        let timeout = async {
            tokio::select! {
                biased;
                // It was told what was stored before.
                () = self.hurry.wait() => {}
                () = self.env.clock.sleep(LAST_COMMIT_TIMEOUT) => {}
            }
        };
        tokio::select! {
            biased;
            () = committing => true,
            // Commits that were sent may arrive all the same, and are right.
            () = timeout => {
                tracing::warn!(
                    subscription = %self.spec.subscription, topic = &*self.spec.topic,
                    "the group of a deleted subscription was not told how far it has read: who reads in its place may repeat Kafka records"
                );
                false
            }
        }
    }

    async fn commit_unread(&self, topic_id: u128, read: &Positions) -> Result<(), SourceError> {
        if read.is_empty() {
            return Ok(());
        }
        let mut source = self.client.open(&self.spec)?;
        let committed = match source.topic().await {
            // Commits would count for another topic.
            Ok(topic) if topic.id != topic_id => Ok(()),
            Ok(_) => {
                let partitions: Vec<i32> = read.iter().map(|(partition, _)| *partition).collect();
                match source.committed(&partitions).await.map(|committed| ahead_of(&committed, read.clone())) {
                    Ok(ahead) if ahead.is_empty() => Ok(()),
                    Ok(ahead) => source.commit_now(&ahead).await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        source.close().await;
        committed
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
        let committed = self.committed(source, &new).await?;
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
            let plan = opening::plan(&catalog, &known, &topic, &committed, reset)?;
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
        self.resolved.fire(self.spec.subscription);
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

    /// What the group has committed of Kafka partitions that were not read yet: by another program, or by a subscription in whose place
    /// this one reads (rule K10).
    pub(crate) async fn committed(&self, source: &mut dyn RecordSource, partitions: &[i32]) -> Result<Positions, SourceError> {
        // A group of the subscription's own name has no past.
        let is_own = self.spec.properties.get("group.id").is_none_or(|group| *group == self.spec.subscription.to_string());
        if is_own || partitions.is_empty() { Ok(Vec::new()) } else { source.committed(partitions).await }
    }

    /// A topic that is missing when its subscription is created is read from its start once it appears (rule K4).
    async fn resolve_without_topic(&self) -> Result<(), End> {
        let _edit = self.catalog_edit.lock().await;
        let subscription = self.subscription()?;
        if !subscription.resolved {
            let resolved = Subscription { resolved: true, ..(*subscription).clone() };
            self.admission.change_catalog(CatalogEvent::SubscriptionStored(resolved, Vec::new())).await?;
        }
        self.resolved.fire(self.spec.subscription);
        Ok(())
    }

    fn subscription(&self) -> Result<Arc<Subscription>, End> {
        self.admission.catalog().subscriptions.get(&self.spec.subscription).cloned().ok_or(End::Left(Leave::Stop))
    }
}
