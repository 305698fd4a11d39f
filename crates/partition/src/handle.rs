//! The handle through which the edges reach the partitions.
//!
//! Owns: routing to the partition of an id, admission at the outer edges (rule O3), and waiting for answers. Cheap to clone.
//! Does not own: tables; a worker lends a view of its own, and it is read here.

use crate::answers::{Answer, Requests, Stopped};
use crate::checkpointer::Checkpoints;
use crate::gate::{DiskStatus, Gate, LargeTicket, Shortage};
use crate::mailbox::{Input, Mailbox};
use crate::outbox::{OutboxRoom, message_bytes};
use crate::query::{
    self, IdRange, InvocationInfo, InvocationPage, LIST_MAX, ListFilter, ListStep, PAGE_BYTES_MAX, ParkedInfo, ParkedPage,
    ParkedRows, PartitionHealth, SourceInfo,
};
use crate::retained::RetainedBytes;
use crate::settings::{Mutant, Settings};
use crate::views::Lent;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use surefoot_env::{Env, Wake, yield_now};
use surefoot_invoker::{Destination, Invoker};
use surefoot_log::{Durable, Log};
use surefoot_machine::{OperationAnswer, StateError};
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{
    Action, CatalogCell, DeploymentId, Epoch, Event, InvocationId, Item, Lsn, Operation, Outcome, PartitionId, RECORD_COST,
    Record, Request, RequestId, Status, StreamId, Submission, SubscriptionId, Timestamp, encoding,
};
use surefoot_storage::{Reader, Row};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, oneshot};

/// Steps of a listing on one view; then it takes a fresh one, so that none is held for long.
const VIEW_STEPS_MAX: u32 = 64;

#[derive(Clone)]
pub struct Partitions(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) settings: Settings,
    pub(crate) log: Arc<dyn Log>,
    /// The newest epoch known of each partition, then of the catalog's: what is appended carries it.
    pub(crate) epochs: Vec<AtomicU32>,
    /// The mailbox of each partition's worker, in the same order.
    pub(crate) mailboxes: Vec<Mailbox>,
    /// Each worker's mailbox once.
    pub(crate) workers: Vec<Mailbox>,
    pub(crate) requests: Requests,
    pub(crate) catalog: CatalogCell,
    /// Woken after each change of the catalog.
    pub(crate) catalog_changed: Vec<Wake>,
    pub(crate) stopped: Mutex<Vec<PartitionHealth>>,
    /// By [`Self::index`].
    pub(crate) is_stopped: Vec<AtomicBool>,
    /// What this process has applied as the leader, by [`Self::index`]; written by each partition's worker.
    pub(crate) applied: Vec<AtomicU64>,
    /// Workers with an attempt that found no slot free.
    pub(crate) wants_slot: Vec<AtomicBool>,
    /// By worker: what its partitions have in flight to others.
    pub(crate) outbox_rooms: Vec<Arc<OutboxRoom>>,
    pub(crate) edge: Arc<Semaphore>,
    /// By [`Self::index`].
    pub(crate) retained: RetainedBytes,
    pub(crate) gate: Arc<Gate>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) catalog_edit: Arc<AsyncMutex<()>>,
    /// Asked for what operators see of attempts that wait.
    pub(crate) invoker: OnceLock<Weak<Invoker>>,
    /// The node stops: nothing is appended any more.
    pub(crate) is_stopping: AtomicBool,
}

impl Shared {
    /// Partitions, without the catalog's.
    pub(crate) fn count(&self) -> u16 {
        (self.mailboxes.len() - 1) as u16
    }

    pub(crate) fn index(&self, partition: PartitionId) -> usize {
        if partition == PartitionId::CATALOG { self.mailboxes.len() - 1 } else { usize::from(partition.0) }
    }

    pub(crate) fn worker_of(&self, partition: PartitionId) -> usize {
        self.index(partition) % self.workers.len()
    }

    pub(crate) fn epoch(&self, partition: PartitionId) -> Epoch {
        Epoch(self.epochs[self.index(partition)].load(Ordering::Acquire))
    }

    /// A term of this process begins.
    pub(crate) fn enter_epoch(&self, partition: PartitionId, epoch: Epoch) {
        self.epochs[self.index(partition)].fetch_max(epoch.0, Ordering::AcqRel);
    }

    /// Of the partition's worker.
    pub(crate) fn mailbox(&self, partition: PartitionId) -> &Mailbox {
        &self.mailboxes[self.index(partition)]
    }

    /// A partition will answer nothing any more.
    pub(crate) fn stop_partition(&self, health: PartitionHealth) {
        let partition = health.partition;
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).push(health);
        // Before its open requests are closed, so that one that is opened meanwhile sees it.
        self.is_stopped[self.index(partition)].store(true, Ordering::SeqCst);
        self.requests.close_partition(partition);
    }

    /// A reader of a view met what it could not read: the partition stops (rule C5).
    pub(crate) fn unreadable(&self, partition: PartitionId, error: String) {
        self.mailbox(partition).push(Input::Unreadable { partition, error });
    }

    /// To be called after a slot was freed: wakes the workers that want one.
    pub(crate) fn slot_freed(&self) {
        if self.settings.mutant == Mutant::LoseWake {
            return;
        }
        // Either this sees who wants a slot, or they see the one that was freed before this call.
        fence(Ordering::SeqCst);
        for (wants, mailbox) in self.wants_slot.iter().zip(&self.workers) {
            if wants.load(Ordering::Relaxed) && wants.swap(false, Ordering::Relaxed) {
                mailbox.push(Input::SlotFreed);
            }
        }
    }

    /// Whether memory lets a worker's partitions send and do chores; if not, the worker is woken once it does.
    pub(crate) fn has_work_memory(&self, worker: usize) -> bool {
        if self.gate.has_work_memory() {
            return true;
        }
        self.wants_slot[worker].store(true, Ordering::Relaxed);
        // As in `slot_freed`: before it is said that somebody waits, it is known who.
        fence(Ordering::SeqCst);
        self.gate.try_work()
    }

    /// A message of a worker's partitions is larger than memory has room for: the worker is woken once there is room for any.
    pub(crate) fn large_message_waits(&self, worker: usize) {
        self.wants_slot[worker].store(true, Ordering::Relaxed);
        // As above.
        fence(Ordering::SeqCst);
        if self.gate.try_large_message() {
            self.slot_freed();
        }
    }

    /// What its row does not say: why it waits, where its deployment cannot be connected to.
    fn with_waits_for(&self, info: InvocationInfo) -> InvocationInfo {
        let invoker = self.invoker.get().and_then(Weak::upgrade).filter(|_| info.status == Status::Running);
        let destination = || Destination::of(&info.target.service, info.pin);
        let waits_for = invoker.and_then(|invoker| invoker.why_unreachable(&destination()));
        InvocationInfo { waits_for, ..info }
    }

    pub(crate) fn has_stopped(&self, partition: PartitionId) -> bool {
        self.is_stopped[self.index(partition)].load(Ordering::SeqCst)
    }

    /// Fails for a partition that will not answer.
    fn expect_running(&self, partition: PartitionId) -> Result<(), Stopped> {
        if self.has_stopped(partition) { Err(Stopped::Partition(partition)) } else { Ok(()) }
    }

    /// Why a question to a partition was not answered.
    fn unanswered(&self, partition: PartitionId) -> Stopped {
        self.expect_running(partition).err().unwrap_or(Stopped::NotTaken)
    }

    /// Whether the events were taken: none is once the node stops, as if it came a moment later, to a process that is gone.
    pub(crate) fn append(
        &self,
        partition: PartitionId,
        events: impl IntoIterator<Item = Event>,
        durable: Option<Durable>,
    ) -> bool {
        let Some(payloads) = self.payloads(partition, events) else { return false };
        self.log.append(partition, self.epoch(partition), payloads, durable);
        true
    }

    /// As [`Self::append`], for what the log's reserve is not for (rule L8).
    fn append_from_outside(&self, partition: PartitionId, event: Event, durable: Durable) -> bool {
        let Some(payloads) = self.payloads(partition, [event]) else { return false };
        self.log.append_from_outside(partition, self.epoch(partition), payloads, Some(durable));
        true
    }

    /// Events as the log takes them, which count against the disk from now on; none once the node stops.
    fn payloads(&self, partition: PartitionId, events: impl IntoIterator<Item = Event>) -> Option<Vec<Bytes>> {
        if self.is_stopping.load(Ordering::Acquire) {
            return None;
        }
        let at = Timestamp(self.env.clock.now_ms());
        let mailbox = self.mailbox(partition);
        let encode = |event| {
            // It counts from before it is encoded: that takes a while where it is large, and others look meanwhile.
            let bytes = payload_bytes(&event);
            mailbox.queued(bytes);
            let payload = Bytes::from(encoding::encode(&Record::new(at, event)));
            mailbox.queued((payload.len() as u64).saturating_sub(bytes));
            payload
        };
        Some(events.into_iter().map(encode).collect())
    }
}

/// Forgets a request when its client goes away before the answer.
struct OpenRequest<'a> {
    shared: &'a Shared,
    id: RequestId,
    answer: oneshot::Receiver<Answer>,
    is_answered: bool,
}

impl OpenRequest<'_> {
    /// To be called once its event is appended. **Errors**: [`Stopped::Unknown`].
    async fn wait(mut self) -> Result<Answer, Stopped> {
        let answer = (&mut self.answer).await;
        // Whoever answered has forgotten it, too.
        self.is_answered = true;
        answer.map_err(|_| Stopped::Unknown)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.requests.close(self.id.number);
        }
    }
}

/// A submission that has been appended, and whose answer is to come. Whoever drops it does not affect the invocation.
pub struct Submitted<'a>(OpenRequest<'a>);

impl Submitted<'_> {
    /// Waits until the invocation is accepted, or has completed where its result was asked for. **Errors**: [`Stopped::Unknown`], for
    /// the submission is in the log.
    pub async fn answer(self) -> Result<Answer, Stopped> {
        self.0.wait().await
    }
}

impl Partitions {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// The number of partitions, the catalog's not counted.
    pub fn count(&self) -> u16 {
        self.0.count()
    }

    pub fn catalog(&self) -> &CatalogCell {
        &self.0.catalog
    }

    /// Held by whoever reads the catalog to store a change that depends on what it read.
    pub fn catalog_edit(&self) -> Arc<AsyncMutex<()>> {
        self.0.catalog_edit.clone()
    }

    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// What there is no room in at the edge, if anything (rule R2): where it is the disk, a client had better be told than wait.
    pub fn shortage(&self) -> Option<Shortage> {
        self.0.gate.shortage()
    }

    /// Whether memory has no room because clients do not take results that they have been given.
    pub fn wants_results_taken(&self) -> bool {
        self.0.gate.wants_taken()
    }

    /// The disk at the last look.
    pub fn disk(&self) -> DiskStatus {
        self.0.gate.disk()
    }

    /// Completes while there is room at the edge for so many bytes more that a service is to work on: to be asked before anything of a
    /// submission is read. **Errors**: a disk that is full is not waited for.
    pub async fn room(&self, service: &str, bytes: u64) -> Result<(), Stopped> {
        self.room_with(service, bytes, &mut LargeTicket::new(&*self.0.gate)).await
    }

    async fn room_with(&self, service: &str, bytes: u64, ticket: &mut LargeTicket<&Gate>) -> Result<(), Stopped> {
        self.0.gate.wait_memory(bytes, ticket, || self.deployment_of(service)).await.map_err(|_| Stopped::DiskFull)
    }

    fn deployment_of(&self, service: &str) -> Option<DeploymentId> {
        self.0.catalog.load().deployment_of(service).map(|deployment| deployment.id)
    }

    /// Submits an invocation once there is room at the edge; a disk that is full is not waited for. `awaits_result`: the answer is its result, and not only that it is
    /// accepted.
    pub async fn submit(&self, mut submission: Submission, awaits_result: bool) -> Result<Submitted<'_>, Stopped> {
        let partition = submission.id.partition(self.count());
        let request = self.open_request(partition)?;
        submission.request = Some(Request { id: request.id, awaits_result });
        let (service, bytes) = (submission.target.service.clone(), submission.input.len() as u64);
        let event = Event::InvocationSubmitted(Box::new(submission));
        // Held until it is appended.
        let mut ticket = LargeTicket::new(&*self.0.gate);
        let permit = loop {
            self.room_with(&service, bytes, &mut ticket).await?;
            self.0.expect_running(partition)?;
            let permit = self.permit(&event).await?;
            // What others were let in with meanwhile may have filled it.
            if !self.0.gate.has_edges_disk() {
                return Err(Stopped::DiskFull);
            }
            if self.0.gate.has_room_still(bytes, &ticket, || self.deployment_of(&service)) {
                break permit;
            }
        };
        self.append_outside(partition, event, permit, Box::new(|_| ()))?;
        Ok(Submitted(request))
    }

    /// Appends an event that nobody waits for, once there is room at the edge; `durable` is called when it is durable.
    /// Events of one caller keep their order per partition if it awaits each call before the next. What goes to a partition that
    /// has stopped waits in its log (rule K5).
    pub async fn append_source(&self, partition: PartitionId, event: Event, durable: Durable) -> Result<(), Stopped> {
        let service = if let Event::InvocationSubmitted(submission) = &event { Some(&submission.target.service) } else { None };
        let bytes = payload_bytes(&event);
        // Held until it is appended.
        let mut ticket = LargeTicket::new(&*self.0.gate);
        let permit = loop {
            self.0.gate.wait(bytes, &mut ticket, || self.deployment_of(service?)).await;
            let permit = self.permit(&event).await?;
            let has_room =
                || self.0.gate.has_edges_disk() && self.0.gate.has_room_still(bytes, &ticket, || self.deployment_of(service?));
            if self.0.gate.has_ended() || has_room() {
                break permit;
            }
        };
        self.append_outside(partition, event, permit, durable)
    }

    /// Up to where this process has applied a partition's log as its leader. What became durable at or below it has been applied.
    pub fn applied(&self, partition: PartitionId) -> Lsn {
        Lsn(self.0.applied[self.0.index(partition)].load(Ordering::Acquire))
    }

    /// Whether a partition has stopped on unreadable data or a broken invariant: it applies nothing more until the next start.
    pub fn is_stopped(&self, partition: PartitionId) -> bool {
        self.0.expect_running(partition).is_err()
    }

    /// Appends at once. **Errors**: [`Stopped::NotTaken`].
    fn append_outside(
        &self,
        partition: PartitionId,
        event: Event,
        permit: OwnedSemaphorePermit,
        durable: Durable,
    ) -> Result<(), Stopped> {
        let durable: Durable = Box::new(move |lsn| {
            drop(permit);
            durable(lsn);
        });
        if self.0.append_from_outside(partition, event, durable) { Ok(()) } else { Err(Stopped::NotTaken) }
    }

    /// What an operator asks for: without a look at the gate, and with the reserve, since it may make room.
    async fn append_operation(&self, partition: PartitionId, event: Event) -> Result<(), Stopped> {
        self.0.expect_running(partition)?;
        let permit = self.permit(&event).await?;
        let is_taken = self.0.append(partition, [event], Some(Box::new(move |_| drop(permit))));
        if is_taken { Ok(()) } else { Err(Stopped::NotTaken) }
    }

    /// Room among what the edges have appended and is not yet durable.
    async fn permit(&self, event: &Event) -> Result<OwnedSemaphorePermit, Stopped> {
        self.0
            .edge
            .clone()
            .acquire_many_owned(event_bytes(event, self.0.settings.edge_bytes_max))
            .await
            .map_err(|_| Stopped::NotTaken)
    }

    /// Kills, pauses, resumes or purges one invocation. Does not wait for memory: an operator may have come to make room.
    pub async fn operate(&self, id: InvocationId, operation: Operation) -> Result<OperationAnswer, Stopped> {
        let partition = id.partition(self.count());
        let request = self.open_request(partition)?;
        let event = Event::OperatorRequested { id, operation, request: request.id };
        self.append_operation(partition, event).await?;
        request.operation().await
    }

    /// One invocation, as of now.
    pub async fn invocation(&self, id: InvocationId) -> Result<Option<Box<InvocationInfo>>, Stopped> {
        let view = self.view(id.partition(self.count())).await?;
        let found = self.read(&view, |reader| query::invocation(reader, id))?;
        Ok(found.map(|info| Box::new(self.0.with_waits_for(*info))))
    }

    /// One page of invocations in the order of their ids. One key's are found without looking at any other's. A page that holds
    /// much ends before its limit.
    pub async fn list(&self, filter: ListFilter) -> Result<InvocationPage, Stopped> {
        let limit = filter.limit.clamp(1, LIST_MAX);
        let mut page = InvocationPage::default();
        let mut bytes = 0;
        let mut range = IdRange::of(&filter);
        let (first, last) =
            (range.from.partition(self.count()).0, range.to.map_or(self.count() - 1, |id| id.partition(self.count()).0));
        for partition in (first..=last.min(self.count() - 1)).map(PartitionId) {
            // The others' are shown: an operator needs them most when one has stopped.
            let Some(mut view) = unless_stopped(self.view(partition).await)? else { continue };
            for steps in 1.. {
                let room = limit - page.invocations.len();
                let step = self.read(&view, |reader| query::list(reader, &filter, range, room));
                let Some(step): Option<ListStep> = unless_stopped(step)? else { break };
                page.invocations.extend(step.found.into_iter().map(|info| self.0.with_waits_for(info)));
                bytes += step.bytes;
                if page.invocations.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    page.next = page.invocations.last().map(|i| i.id);
                    return Ok(page);
                }
                let Some(next) = step.next else { break };
                range.from = next;
                yield_now().await;
                if steps % VIEW_STEPS_MAX == 0 {
                    drop(view);
                    view = match unless_stopped(self.view(partition).await)? {
                        Some(view) => view,
                        None => break,
                    };
                }
            }
        }
        Ok(page)
    }

    /// Opens a subscription's epoch in every partition; returns once all have applied it, or recorded it where one has stopped
    /// (rule K7).
    pub async fn open_source(&self, subscription: SubscriptionId, epoch: u32) -> Result<(), Stopped> {
        self.append_everywhere(|| Event::SourceOpened { subscription, epoch }).await
    }

    /// Closes a subscription in every partition: late Kafka records of it are dropped, what it parked goes. Returns as
    /// [`Self::open_source`] does: what was appended before is durable by then.
    pub async fn close_source(&self, subscription: SubscriptionId) -> Result<(), Stopped> {
        self.append_everywhere(|| Event::SourceClosed { subscription }).await
    }

    /// Of each stream of a subscription's epoch the highest offset that was taken, as far as it was applied; what partitions that
    /// have stopped took is not among it. The log is one, and keeps the order in which a source appends (rule K2): all of a stream's
    /// Kafka records below its offset here are durable.
    pub async fn watermarks(&self, subscription: SubscriptionId, epoch: u32) -> Result<BTreeMap<StreamId, i64>, Stopped> {
        let mut all = BTreeMap::new();
        for partition in (0..self.count()).map(PartitionId) {
            let Some(view) = unless_stopped(self.view(partition).await)? else { continue };
            let mut from = StreamId { subscription, epoch, topic: 0, partition: 0 };
            loop {
                let read = self.read(&view, |reader| query::watermarks(reader, from));
                let Some((found, is_last)) = unless_stopped(read)? else { break };
                if let Some((last, _)) = found.last() {
                    from = StreamId { partition: last.partition + 1, ..*last };
                }
                for (stream, offset) in found {
                    let highest = all.entry(stream).or_insert(offset);
                    *highest = offset.max(*highest);
                }
                if is_last {
                    break;
                }
                yield_now().await;
            }
        }
        Ok(all)
    }

    /// What all partitions hold of one subscription.
    pub async fn source(&self, subscription: SubscriptionId) -> Result<SourceInfo, Stopped> {
        let mut info = SourceInfo::default();
        for partition in (0..self.count()).map(PartitionId) {
            let Some(view) = unless_stopped(self.view(partition).await)? else { continue };
            let parked = self.read(&view, |reader| query::parked_total(reader, subscription));
            let (records, bytes) = unless_stopped(parked)?.unwrap_or_default();
            info.parked += records;
            info.parked_bytes += bytes;
        }
        Ok(info)
    }

    /// One page of a subscription's parked Kafka records, by number. A page that holds much ends before its limit.
    pub async fn parked(&self, subscription: SubscriptionId, after: Option<u64>, limit: usize) -> Result<ParkedPage, Stopped> {
        let limit = limit.clamp(1, LIST_MAX);
        let count = u64::from(self.count());
        // Numbers are dealt out to the partitions in turn: row r of partition p is number r * count + p. So the page is chosen by
        // numbers and sizes first, and only what is on it is read as a whole.
        let (mut views, mut all, mut is_whole) = (BTreeMap::new(), Vec::new(), true);
        for partition in (0..self.count()).map(PartitionId) {
            let offset = u64::from(partition.0);
            let after_row = after.map_or(0, |n| n.saturating_sub(offset) / count);
            let Some(view) = unless_stopped(self.view(partition).await)? else { continue };
            let mut found = ParkedRows::default();
            // More than a page's worth of one partition cannot be on it.
            while !found.is_last && found.rows.len() <= limit && found.bytes < PAGE_BYTES_MAX {
                let read = self.read(&view, |reader| query::parked_rows(reader, subscription, after_row, &mut found));
                if unless_stopped(read)?.is_none() {
                    break;
                }
                yield_now().await;
            }
            is_whole &= found.is_last;
            let numbered = found.rows.into_iter().map(|(row, bytes)| (row * count + offset, bytes));
            all.extend(numbered.filter(|(number, _)| after.is_none_or(|n| *number > n)));
            views.insert(offset, view);
        }
        all.sort_unstable();
        let mut page = ParkedPage::default();
        let mut bytes = 0;
        let total = all.len();
        for (number, its_bytes) in all.into_iter().take(limit) {
            if bytes > 0 && bytes + its_bytes > PAGE_BYTES_MAX {
                break;
            }
            bytes += its_bytes;
            let record = self.read(&views[&(number % count)], |reader| query::parked(reader, subscription, number / count));
            if let Some(record) = unless_stopped(record)? {
                page.parked.push(ParkedInfo { number, record });
            }
            yield_now().await;
        }
        if page.parked.len() < total || !is_whole {
            page.next = page.parked.last().map(|p| p.number);
        }
        Ok(page)
    }

    /// All rows of one partition, the catalog's among them, and the last record that they show: to compare them with what a
    /// recovery makes of the log. It is as long as the tables.
    pub async fn rows(&self, partition: PartitionId) -> Result<(Lsn, Vec<Row>), Stopped> {
        let view = self.view(partition).await?;
        Ok((view.applied(), self.read(&view, |reader| reader.rows())?))
    }

    /// Discards one parked Kafka record.
    pub async fn discard_parked(&self, subscription: SubscriptionId, number: u64) -> Result<OperationAnswer, Stopped> {
        let count = u64::from(self.count());
        let partition = PartitionId((number % count) as u16);
        let request = self.open_request(partition)?;
        let event = Event::ParkedDiscarded { subscription, number: number / count, request: request.id };
        self.append_operation(partition, event).await?;
        request.operation().await
    }

    /// Stores a change of the catalog; returns once it is durable, applied and published.
    pub async fn change_catalog(&self, event: CatalogEvent) -> Result<(), Stopped> {
        self.0.expect_running(PartitionId::CATALOG)?;
        let (sender, receiver) = oneshot::channel();
        let mailbox = self.0.mailbox(PartitionId::CATALOG).clone();
        let durable: Durable =
            Box::new(move |lsn| mailbox.push(Input::NotifyApplied { partition: PartitionId::CATALOG, lsn, done: sender }));
        if !self.0.append(PartitionId::CATALOG, [Event::CatalogChanged(Box::new(event))], Some(durable)) {
            return Err(Stopped::NotTaken);
        }
        if self.0.settings.mutant == Mutant::AnswerEarly {
            return Ok(());
        }
        receiver.await.map_err(|_| Stopped::Unknown)
    }

    /// Ends every attempt, takes a last checkpoint and stops the workers; what is asked after that is answered with [`Stopped`].
    /// The checkpoint covers the whole log, so that whatever starts next has nothing to apply (rule M7).
    pub async fn stop(&self) {
        self.0.is_stopping.store(true, Ordering::Release);
        // What waits for room would be written behind the last checkpoint, should there be some by then.
        self.0.log.drop_waiting();
        // Whatever was appended before is with its worker once an append of nothing is through.
        let (done, wait) = oneshot::channel();
        let through = Box::new(move |_| {
            // Whoever asked may not wait any more.
            let _ = done.send(());
        });
        self.0.log.append(PartitionId::CATALOG, self.0.epoch(PartitionId::CATALOG), Vec::new(), Some(through));
        // The failed log already reported through `fatal`; nothing to do here.
        let _ = wait.await;
        let mut waits = Vec::new();
        for mailbox in &self.0.workers {
            let (done, wait) = oneshot::channel();
            mailbox.push(Input::Stop { done });
            waits.push(wait);
        }
        for wait in waits {
            // A worker that is gone has stopped.
            let _ = wait.await;
        }
        self.0.requests.close_all();
        self.0.gate.end();
    }

    /// Partitions that have stopped on unreadable data or a broken invariant; empty when all is well.
    pub fn stopped(&self) -> Vec<PartitionHealth> {
        self.0.stopped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open_request(&self, partition: PartitionId) -> Result<OpenRequest<'_>, Stopped> {
        let (id, answer) = self.0.requests.open(partition);
        let request = OpenRequest { shared: &self.0, id, answer, is_answered: false };
        self.0.expect_running(partition)?;
        Ok(request)
    }

    async fn append_everywhere(&self, event: impl Fn() -> Event) -> Result<(), Stopped> {
        let mut waits = Vec::new();
        for partition in (0..self.count()).map(PartitionId) {
            let (done, receiver) = oneshot::channel();
            let mailbox = self.0.mailboxes[self.0.index(partition)].clone();
            let applied: Durable = Box::new(move |lsn| mailbox.push(Input::NotifyApplied { partition, lsn, done }));
            if !self.0.append(partition, [event()], Some(applied)) {
                return Err(Stopped::NotTaken);
            }
            waits.push((partition, receiver));
        }
        for (partition, wait) in waits {
            // One that has stopped lets go of what it was to tell once it is durable, and that has to do.
            let is_durable = wait.await.is_ok() || self.0.expect_running(partition).is_err();
            if !is_durable || self.0.is_stopping.load(Ordering::Acquire) {
                return Err(Stopped::Unknown);
            }
        }
        Ok(())
    }

    /// A partition's tables as they are now, to be read here. To be dropped soon.
    async fn view(&self, partition: PartitionId) -> Result<Lent, Stopped> {
        let (reply, receiver) = oneshot::channel();
        self.0.mailbox(partition).push(Input::View { partition, reply });
        receiver.await.map_err(|_| self.0.unanswered(partition))
    }

    /// Reads a bounded piece of a view. A partition whose tables are unreadable stops.
    fn read<T>(&self, view: &Lent, read: impl FnOnce(&Reader<'_>) -> Result<T, StateError>) -> Result<T, Stopped> {
        view.read(read).map_err(|error| {
            self.0.unreadable(view.partition(), error);
            Stopped::Partition(view.partition())
        })
    }
}

impl OpenRequest<'_> {
    async fn operation(self) -> Result<OperationAnswer, Stopped> {
        match self.wait().await? {
            Answer::Operation(answer) => Ok(answer),
            other => unreachable!("an operator's request is answered as one: {other:?}"),
        }
    }
}

/// `None` where the partition asked has stopped alone.
fn unless_stopped<T>(asked: Result<T, Stopped>) -> Result<Option<T>, Stopped> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(Stopped::Partition(_)) => Ok(None),
        Err(stopped @ (Stopped::NotTaken | Stopped::DiskFull | Stopped::Unknown)) => Err(stopped),
    }
}

/// Bytes to reserve at the edge for an event: all there are for one that is larger.
fn event_bytes(event: &Event, bytes_max: usize) -> u32 {
    u32::try_from((RECORD_COST + payload_bytes(event)).min(bytes_max as u64)).unwrap_or(u32::MAX)
}

/// What may be large in an event.
fn payload_bytes(event: &Event) -> u64 {
    match event {
        Event::InvocationSubmitted(submission) => submission.input.len() as u64,
        Event::RecordParked(parked) => parked.kept_bytes(),
        Event::AttemptProgressed(progress) => progress.items.iter().map(item_bytes).sum(),
        Event::MessageArrived { message, .. } => message_bytes(message),
        _ => 0,
    }
}

/// Parameters of calls, which the tables take twice.
pub(crate) fn called_bytes(items: &[Item]) -> u64 {
    let called = |item: &Item| match item {
        Item::Command { action: Action::Call { parameter: (_, bytes), .. }, .. } => u64::from(*bytes),
        Item::Command { .. } | Item::RunProposed { .. } => 0,
    };
    items.iter().map(called).sum()
}

fn item_bytes(item: &Item) -> u64 {
    let bytes = match item {
        Item::Command { raw, action: Action::Call { submission, .. }, .. } => raw.len() + submission.input.len(),
        Item::Command { raw, .. } => raw.len(),
        Item::RunProposed { outcome: Outcome::Success(value), .. } => value.len(),
        Item::RunProposed { outcome: Outcome::Failure(failure), .. } => failure.message.len(),
    };
    bytes as u64
}

pub(crate) fn edge_permits(bytes_max: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS)))
}
