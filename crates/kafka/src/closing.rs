//! The end of a deleted subscription (rule K10).
//!
//! Owns: its order. What was taken is stored before anything of it is forgotten, so that a crash anywhere loses none of it; then it
//! is closed in every partition; then its group is told; and its row in the catalog goes last. Does not own: how its source stops
//! (`session`).

use crate::backoff::Backoff;
use crate::properties;
use crate::session::{LEAVE_TIMEOUT, Positions, Progress, optional};
use crate::source::{ErrorKind, RecordSource, SourceError, SourceEvent, SourceSpec};
use crate::sources::{Mutant, stored_progress};
use crate::status::lock;
use crate::subscription::{Left, Task};
use std::collections::BTreeMap;
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_model::catalog::{CatalogEvent, Closing};
use surefoot_model::{PartitionId, StreamId};
use surefoot_partition::Stopped;

/// How long one member of the group tries to tell it.
const TELL_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries of its.
const TELL_INTERVAL: Duration = Duration::from_millis(500);
/// A group that cannot be told is logged this often.
const UNTOLD_LOG_INTERVAL: Duration = Duration::from_secs(60);

impl Task {
    /// Ends it, however its source has left, and returns once its row has gone, or the node stops: then the next start ends it.
    pub(crate) async fn end(&self, left: Left) {
        let mut backoff = Backoff::default();
        self.status.closing(None);
        if left == Left::Unclosed {
            let read = lock(&self.read).clone();
            let positions = loop {
                match self.close_source(&read).await {
                    Ok(positions) => break positions,
                    Err(Stopped::NotTaken) => return,
                    Err(stopped) => self.status.closing(Some(stopped.to_string())),
                }
                if !self.pause(&mut backoff).await {
                    return;
                }
            };
            if !self.tell_group(read.topic_id, &positions).await {
                return;
            }
        }
        self.delete_row().await;
    }

    async fn delete_row(&self) {
        let mut backoff = Backoff::default();
        while let Err(stopped) = self.admission.change_catalog(CatalogEvent::SubscriptionDeleted(self.spec.subscription)).await {
            self.status.closing(Some(stopped.to_string()));
            if stopped == Stopped::NotTaken || !self.pause(&mut backoff).await {
                return;
            }
        }
    }

    /// Stores how far it has read, and closes it in every partition. `read` and what is stored are what is known of that; what was
    /// taken in an earlier session or life, and read again since or not, only watermarks know. What a partition took that has stopped
    /// nobody knows until it is repaired: that is waited for, unless an operator lets it go, or nobody can read in its place.
    pub(crate) async fn close_source(&self, read: &Progress) -> Result<Positions, Stopped> {
        let id = self.spec.subscription;
        // A try that has to wait appends nothing.
        self.expect_all_running()?;
        // Once that is applied everything before it is.
        self.admission.open_source(id, read.epoch).await?;
        let taken = self.admission.watermarks(id, read.epoch).await?;
        // One that has stopped meanwhile said nothing of what it took.
        self.expect_all_running()?;
        let catalog = self.admission.catalog();
        let Some(subscription) = catalog.subscriptions.get(&id) else { return Err(Stopped::NotTaken) };
        let stored = stored_progress(&catalog, subscription);
        let taken = taken.into_iter().filter(|(stream, _)| stream.topic == read.topic_id);
        let taken = taken.map(|(stream, offset)| (stream.partition, offset + 1));
        let mut positions: BTreeMap<i32, i64> = BTreeMap::new();
        let stored_here =
            stored.positions.iter().copied().filter(|_| (stored.topic_id, stored.epoch) == (read.topic_id, read.epoch));
        for (partition, position) in read.positions.iter().copied().chain(stored_here).chain(taken) {
            let furthest = positions.entry(partition).or_insert(position);
            *furthest = position.max(*furthest);
        }
        let stream = |partition: i32| StreamId { subscription: id, epoch: read.epoch, topic: read.topic_id, partition };
        let moved = positions.iter().map(|(partition, position)| (stream(*partition), *position));
        let moved: Vec<(StreamId, i64)> =
            moved.filter(|(stream, position)| catalog.positions.get(stream) != Some(position)).collect();
        // Closing forgets the watermarks, and after a crash in between nothing else knows what they said.
        if !moved.is_empty() {
            self.admission.change_catalog(CatalogEvent::PositionsAdvanced(moved)).await?;
        }
        self.admission.close_source(id).await?;
        if self.settings.mutant == Mutant::RowGoesFirst {
            self.delete_row().await;
        }
        Ok(positions.into_iter().collect())
    }

    /// **Errors**: a partition that has stopped, and that is waited for.
    fn expect_all_running(&self) -> Result<(), Stopped> {
        let stopped = (0..self.admission.count()).map(PartitionId).find(|partition| self.admission.is_stopped(*partition));
        match stopped.filter(|_| !self.is_forced() && !self.has_own_group()) {
            Some(partition) => Err(Stopped::Partition(partition)),
            None => Ok(()),
        }
    }

    /// Whether its group is not waited for.
    pub(crate) fn is_forced(&self) -> bool {
        let catalog = self.admission.catalog();
        let subscription = catalog.subscriptions.get(&self.spec.subscription);
        subscription.is_none_or(|subscription| subscription.closing == Some(Closing::Forced))
    }

    /// Tells its group how far it has read, however long that takes. False: the node stops.
    async fn tell_group(&self, topic_id: u128, positions: &Positions) -> bool {
        let mut backoff = Backoff::default();
        let mut logged: Option<Duration> = None;
        let clock = self.env.clock.clone();
        loop {
            if self.is_forced() {
                self.warn_untold();
                return true;
            }
            let error = tokio::select! {
                biased;
                // What was sent may arrive all the same, and is right.
                () = self.hurry.wait() => return false,
                () = self.forced() => continue,
                told = self.tell_once(topic_id, positions) => match told {
                    Ok(()) => return true,
                    Err(error) => error,
                },
            };
            if self.has_own_group() {
                // Nobody reads in it again; what was told while it was read is there.
                tracing::debug!(subscription = %self.spec.subscription, %error, "the group of a deleted subscription ends with it");
                return true;
            }
            let now = clock.monotonic();
            if logged.is_none_or(|last| now >= last + UNTOLD_LOG_INTERVAL) {
                logged = Some(now);
                tracing::warn!(
                    subscription = %self.spec.subscription, topic = &*self.spec.topic, %error,
                    "a deleted subscription is closed once its group knows how far it has read: it is tried again (DELETE with \
                     ?force=true lets it go)"
                );
            }
            self.status.closing(Some(format!(
                "its group does not know yet how far it has read: {error}; it is tried again, and DELETE with ?force=true lets it go"
            )));
            let goes_on = tokio::select! {
                biased;
                // Nothing is under way.
                goes_on = self.pause(&mut backoff) => goes_on,
                () = self.forced() => true,
            };
            if !goes_on {
                return false;
            }
        }
    }

    fn warn_untold(&self) {
        if !self.has_own_group() {
            tracing::warn!(
                subscription = %self.spec.subscription, topic = &*self.spec.topic,
                "an operator lets a deleted subscription go whose group does not know how far it has read: one in its place may repeat \
                 Kafka records"
            );
        }
    }

    /// Completes once it is not to wait for its group any more.
    pub(crate) async fn forced(&self) {
        while !self.is_forced() {
            self.changed.woken().await;
        }
    }

    /// Waits before the next try. False: the node stops.
    async fn pause(&self, backoff: &mut Backoff) -> bool {
        tokio::select! {
            biased;
            // Nothing is under way.
            () = self.hurry.wait() => false,
            () = self.env.clock.sleep(backoff.next_delay()) => true,
        }
    }

    /// As a program that is no member, and where the group has members, or takes the one before for alive, as one.
    async fn tell_once(&self, topic_id: u128, positions: &Positions) -> Result<(), SourceError> {
        if positions.is_empty() {
            return Ok(());
        }
        let spec = self.present_spec()?;
        let part = self.memory.take();
        let mut source = self.client.open(&spec, part.client_bytes())?;
        let alone = match self.untold(&mut *source, topic_id, positions).await {
            Ok(untold) if untold.is_empty() => Ok(None),
            Ok(untold) => Ok(source.commit_now(&untold).await.err()),
            Err(error) => Err(error),
        };
        source.close().await;
        if alone?.is_none() {
            return Ok(());
        }
        // Another client: one that was refused may be of no more use.
        let mut source = self.client.open(&spec, part.client_bytes())?;
        let told = match self.untold(&mut *source, topic_id, positions).await {
            Ok(untold) if untold.is_empty() => Ok(()),
            Ok(_) => match source.subscribe() {
                Ok(()) => self.tell_as_member(&mut *source, positions, false).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        source.close().await;
        told
    }

    /// What it is read with, as its cluster is registered now: an operator may have mended that meanwhile.
    fn present_spec(&self) -> Result<SourceSpec, SourceError> {
        let catalog = self.admission.catalog();
        let Some(subscription) = catalog.subscriptions.get(&self.spec.subscription) else { return Ok(self.spec.clone()) };
        let Some(cluster) = catalog.kafka_clusters.get(&subscription.cluster) else {
            let message = format!("its Kafka cluster {:?} is not registered any more: register it again", &*subscription.cluster);
            return Err(SourceError::new(ErrorKind::Refused, message));
        };
        Ok(SourceSpec {
            properties: properties::merged(&cluster.properties, subscription, &self.settings.node),
            ..self.spec.clone()
        })
    }

    /// What the group does not know yet, if it can be told at all.
    async fn untold(
        &self,
        source: &mut dyn RecordSource,
        topic_id: u128,
        positions: &Positions,
    ) -> Result<Positions, SourceError> {
        match source.topic().await {
            // Commits would count for another topic.
            Ok(topic) if topic.id != topic_id => return Ok(Vec::new()),
            Ok(_) => {}
            // There is nothing left to read.
            Err(error) if error.kind == ErrorKind::TopicMissing => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
        let partitions: Vec<i32> = positions.iter().map(|(partition, _)| *partition).collect();
        Ok(self.ahead_of(&source.committed(&partitions).await?, positions.clone()))
    }

    /// Tells the group as one of its members, or once it is one. The group goes on around a member that reads nothing any more.
    pub(crate) async fn tell_as_member(
        &self,
        source: &mut dyn RecordSource,
        positions: &Positions,
        mut is_member: bool,
    ) -> Result<(), SourceError> {
        let partitions: Vec<i32> = positions.iter().map(|(partition, _)| *partition).collect();
        let clock = self.env.clock.clone();
        let mut timeout = clock.sleep(TELL_TIMEOUT);
        let mut hurried: BoxFuture = {
            let (hurry, clock) = (self.hurry.clone(), clock.clone());
            Box::pin(async move {
                hurry.wait().await;
                clock.sleep(LEAVE_TIMEOUT).await;
            })
        };
        let mut error = SourceError::new(ErrorKind::Unavailable, "the group does not answer");
        let mut untold: Positions = Vec::new();
        // Another member may have gone on where this one had to let go, and no commit goes back. So it is asked what the group knows
        // before each commit, and again after one that failed and after each rebalance.
        let mut is_asked = false;
        loop {
            if is_asked && untold.is_empty() {
                return Ok(());
            }
            let mut asking = (is_member && !is_asked).then(|| source.committed(&partitions));
            let mut committing = (is_member && is_asked).then(|| source.commit_now(&untold));
            let mut pause = None;
            while asking.is_some() || committing.is_some() || pause.is_some() || !is_member {
                tokio::select! {
                    biased;
                    // All are kept over the rounds, or lose nothing.
                    committed = optional(asking.as_mut()) => {
                        asking = None;
                        match committed {
                            Ok(committed) => {
                                untold = self.ahead_of(&committed, positions.clone());
                                is_asked = true;
                            }
                            Err(failed) => {
                                error = failed;
                                pause = Some(clock.sleep(TELL_INTERVAL));
                            }
                        }
                    }
                    done = optional(committing.as_mut()) => {
                        committing = None;
                        is_asked = false;
                        match done {
                            Ok(()) => return Ok(()),
                            // There is nothing left to read.
                            Err(failed) if failed.kind == ErrorKind::TopicMissing => return Ok(()),
                            Err(failed) => error = failed,
                        }
                        pause = Some(clock.sleep(TELL_INTERVAL));
                    }
                    () = optional(pause.as_mut()) => pause = None,
                    () = self.forced() => return Err(error),
                    () = &mut timeout => return Err(error),
                    () = &mut hurried => return Err(error),
                    event = source.next(false) => match event {
                        SourceEvent::Assigned { generation, partitions } => {
                            is_member = true;
                            // An answer from before says nothing of them any more.
                            (asking, is_asked) = (None, false);
                            untold.retain(|(partition, _)| !partitions.contains(partition));
                            self.answered(source.assign(generation, &[]));
                        }
                        SourceEvent::Revoked { generation, partitions } => {
                            // Once more, for another member starts there. Nobody else has gone on in what was this member's since it
                            // was asked, whatever became of a commit; from here on somebody may.
                            (asking, is_asked) = (None, false);
                            let theirs: Positions = untold.extract_if(.., |(p, _)| partitions.contains(p)).collect();
                            if !theirs.is_empty() {
                                source.commit(&theirs);
                            }
                            self.answered(source.release(generation, &partitions));
                        }
                        SourceEvent::Failed(failed) => error = failed,
                        SourceEvent::Records(_) | SourceEvent::AtEnd { .. } => {}
                    },
                }
            }
        }
    }

    /// Positions beyond what the group has committed.
    fn ahead_of(&self, committed: &[(i32, i64)], positions: Positions) -> Positions {
        if self.settings.mutant == Mutant::CommitGoesBack {
            return positions;
        }
        let committed: BTreeMap<i32, i64> = committed.iter().copied().collect();
        positions.into_iter().filter(|(partition, position)| committed.get(partition).is_none_or(|c| c < position)).collect()
    }

    fn answered(&self, done: Result<(), SourceError>) {
        if let Err(error) = done {
            tracing::debug!(subscription = %self.spec.subscription, %error, "answer the group while leaving it");
        }
    }
}
