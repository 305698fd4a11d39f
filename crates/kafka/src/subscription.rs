//! The task of one subscription: it opens a session, and another one whenever that ends, until it is told to leave.
//!
//! Owns: back-off between sessions, and what a session needs before its first fetch: the topic, the epoch, the starts, all durable
//! (rules K1, K4 and K7). Does not own: what happens while it reads (`session`).

use crate::admission::{Admission, ParkedTotal};
use crate::backoff::Backoff;
use crate::latch::Latch;
use crate::opening::{self, Plan};
use crate::properties::Reset;
use crate::session::{LAST_COMMIT_INTERVAL, LAST_COMMIT_TIMEOUT, Positions, Session};
use crate::source::{ErrorKind, RecordSource, SourceClient, SourceError, SourceSpec, TopicInfo};
use crate::sources::{Mutant, Settings, Troubles, Waiters};
use crate::status::StatusCell;
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
    /// The topic's id and the positions in it, as they were stored when the task was made.
    pub(crate) stored: (u128, Positions),
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
    /// Reads until `leave` is set, then leaves.
    pub(crate) async fn run(&self, leave: &Latch<Leave>) {
        let mut backoff = Backoff::default();
        let mut last_message = String::new();
        // How far the last session has read, and of which topic.
        let mut read = self.stored.clone();
        loop {
            let end = match self.client.open(&self.spec) {
                Ok(source) => self.session(source, &mut backoff, leave, &mut read).await,
                Err(error) => End::Failed(error),
            };
            let error = match end {
                End::Left(Leave::Close) => return,
                End::Left(Leave::Stop) => {
                    // What it noticed first was a deletion, or the node's end.
                    if leave.wait().await == Leave::Close {
                        self.close_unread(&read).await;
                    }
                    return;
                }
                End::Again(why) => {
                    tracing::info!(subscription = %self.spec.subscription, topic = &*self.spec.topic, why, "the subscription starts over");
                    continue;
                }
                End::Failed(error) => error,
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
                how = leave.wait() => {
                    if how == Leave::Close {
                        self.close_unread(&read).await;
                    }
                    return;
                }
                // Nothing is lost with a delay.
                () = self.env.clock.sleep(delay) => {}
            }
        }
    }

    /// One member's life.
    async fn session(
        &self,
        mut source: Box<dyn RecordSource>,
        backoff: &mut Backoff,
        leave: &Latch<Leave>,
        read: &mut (u128, Positions),
    ) -> End {
        let opened = tokio::select! {
            biased;
            // What was being stored is stored whole or not at all; the next session looks again.
            how = leave.wait() => Err(End::Left(how)),
            opened = self.open(&mut *source) => opened,
        };
        let end = match opened {
            Ok(opened) => {
                let mut session = Session::new(self, &mut *source, opened);
                let end = session.run(backoff, leave).await;
                if matches!(end, End::Left(Leave::Close)) {
                    session.close().await
                } else {
                    session.leave().await
                }
                *read = session.read_up_to();
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
        end
    }

    /// The end of a deleted subscription that no session reads (rule K10). `read` is how far the last one had come.
    pub(crate) async fn close_unread(&self, (topic_id, read): &(u128, Positions)) {
        if self.admission.close_source(self.spec.subscription).await.is_err() {
            return; // the node stops; the next start closes it
        }
        let committing = async {
            loop {
                let Err(error) = self.commit_unread(*topic_id, read).await else { return };
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
            () = committing => {}
            // Commits that were sent may arrive all the same, and are right.
            () = timeout => tracing::warn!(
                subscription = %self.spec.subscription, topic = &*self.spec.topic,
                "the group of a deleted subscription was not told how far it has read: who reads in its place may repeat Kafka records"
            ),
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
            Ok(_) => source.commit_now(read).await,
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
        let partitions: Vec<i32> = topic.partitions.iter().map(|p| p.partition).collect();
        // A group of the subscription's own name has no past.
        let is_own_group = self.spec.properties.get("group.id").is_none_or(|group| *group == self.spec.subscription.to_string());
        let committed =
            if is_own_group || self.subscription()?.resolved { Vec::new() } else { source.committed(&partitions).await? };
        let plan = {
            let _edit = self.catalog_edit.lock().await;
            let subscription = self.subscription()?;
            let mut catalog = self.admission.catalog();
            let mut known = (*subscription).clone();
            if mutant == Mutant::ResolveAgain {
                known.resolved = false;
                Arc::make_mut(&mut catalog).positions.clear();
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
