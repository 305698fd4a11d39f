//! A world for one invoker: a clock that stands until told, a handler that is the test, and everything that happens as a story.
//!
//! Lines that begin with `>` went to the handler, those with `=` to the partition.

use crate::wire;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use surefoot_env::sim::SimDisk;
use surefoot_env::{BoxFuture, Clock, Env, Ids, Steps, Tasks, Wake};
use surefoot_invoker::{
    AttemptStart, DiscoverRequest, DiscoverResponse, EagerState, Exchange, ExchangeEvent, Invoker, Live, MemoryTicket, Mutant,
    Notifier, OpenRequest, Output, Room, Settings, Transport, TransportError,
};
use surefoot_model::catalog::{Catalog, Defaults, Deployment, Handler, HttpVersion, Service, ServiceKind, StreamMode};
use surefoot_model::{
    Attempt, AttemptEnd, AttemptProgress, CatalogCell, DeploymentId, Entry, InvocationId, Item, Notification, NotificationId,
    PartitionId, Resolution, Target, TargetKind, Timestamp, Verdict, entry_type,
};
use tokio::sync::Notify;

/// Unix time at which every test begins: 2023-11-14, 22:13:20.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;
pub(crate) const DEPLOYMENT: DeploymentId = DeploymentId(1);
/// Another one, which serves `Neighbour/run` and the object `Other`.
const NEIGHBOUR: DeploymentId = DeploymentId(2);

pub(crate) type Events = Arc<Mutex<Wire>>;

/// The handler's end of one exchange.
#[derive(Default)]
pub(crate) struct Wire {
    events: VecDeque<ExchangeEvent>,
    waker: Option<Waker>,
    /// Bytes that the peer does not take.
    unsent: usize,
    /// The server's task dies when it next reads.
    is_trap: bool,
}

#[derive(Default)]
struct Seen {
    story: Vec<String>,
    reports: Vec<AttemptProgress>,
    /// Rooms of reports that are not durable yet.
    rooms: Vec<Room>,
    requests: Vec<OpenRequest>,
    wires: Vec<Events>,
    /// What the next opening meets.
    refusal: Option<TransportError>,
    /// What does not leave of each request at first.
    unsent: usize,
    /// There is no memory for what this one brings; and who waits for it.
    much: Option<DeploymentId>,
    memory: Arc<Notify>,
    /// What has become of those who wait for memory, and reports.
    tickets: Vec<&'static str>,
}

type Shared = Arc<Mutex<Seen>>;

pub(crate) struct World {
    time: Arc<Time>,
    queue: Arc<Queue>,
    tasks: Vec<(Arc<Flag>, BoxFuture)>,
    seen: Shared,
    catalog: CatalogCell,
    pub(crate) invoker: Arc<Invoker>,
    /// The partition's end of the newest attempt; dropped to abort it.
    live: Option<Notifier>,
    attempts: u64,
    /// What the largest task takes.
    pub(crate) task_bytes: usize,
}

pub(crate) fn settings() -> Settings {
    Settings {
        defaults: Defaults::default(),
        attempts_max: 2,
        replay_bytes_max: 1_000,
        report_bytes_max: 1 << 20,
        read_bytes_max: 1 << 20,
        part_bytes_max: 1 << 20,
        live_bytes_max: 32 << 20,
        message_bytes_max: 4 << 20,
        taken_bytes_max: 4 << 20,
        journal_entries_max: 1_000,
        journal_bytes_max: 1 << 20,
        eager_state_bytes_max: 1 << 20,
        partitions: 4,
        additional_headers: vec![("x-cluster".to_owned(), "c".to_owned())],
        mutant: Mutant::None,
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(settings(), StreamMode::Bidirectional)
    }

    /// The deployment speaks HTTP/1.1.
    pub(crate) fn over_http1() -> Self {
        Self::over_http1_with(settings())
    }

    pub(crate) fn over_http1_with(settings: Settings) -> Self {
        let world = Self::with(settings, StreamMode::RequestResponse);
        world.catalog.publish(Arc::new(registered(StreamMode::RequestResponse, HttpVersion::Http11)));
        world
    }

    pub(crate) fn with(settings: Settings, mode: StreamMode) -> Self {
        let (time, queue, seen) = (Arc::new(Time::default()), Arc::new(Queue::default()), Shared::default());
        let env =
            Env { clock: time.clone(), tasks: queue.clone(), ids: Arc::new(Numbers::default()), disk: Arc::new(SimDisk::new()) };
        let catalog = CatalogCell::default();
        catalog.publish(Arc::new(registered(mode, HttpVersion::Http2)));
        let output = Arc::new(Partition(seen.clone()));
        let invoker = Invoker::new(env, settings, catalog.clone(), Arc::new(Network(seen.clone())), output);
        Self { time, queue, tasks: Vec::new(), seen, catalog, invoker, live: None, attempts: 0, task_bytes: 0 }
    }

    /// Starts an attempt on `Object/k/run` with nothing but its input, as `change` has it.
    pub(crate) fn start(&mut self, change: impl FnOnce(&mut AttemptStart)) {
        assert!(self.invoker.try_reserve(), "a slot is free");
        let (notifier, notifications) = self.invoker.feed();
        self.live = Some(notifier);
        self.attempts += 1;
        let mut start = AttemptStart {
            partition: PartitionId(0),
            id: InvocationId { partition_key: 1, unique: 1 },
            attempt: Attempt(self.attempts),
            target: Target::new(TargetKind::ObjectExclusive, "Object", "k", "run"),
            random_seed: 1,
            pin: None,
            commands: 1,
            journal_bytes: 0,
            replay: vec![command(entry_type::INPUT, wire::input(b"in"))],
            rest: None,
            state: EagerState { entries: Vec::new(), complete: true },
            read_bytes_max: 0,
            retries_since_entry: 0,
            last_entry_at: Timestamp(EPOCH_MS),
            attempts_counted: 0,
            tells_answer: false,
            live: notifications,
        };
        change(&mut start);
        let admission = self.invoker.admit(&start.target, start.pin).expect("the deployment has a share left");
        self.invoker.start(start, admission);
        self.run();
    }

    /// Lets everything happen that can happen now.
    pub(crate) fn run(&mut self) {
        loop {
            let new = self.queue.0.lock().unwrap().drain(..).collect::<Vec<_>>();
            let largest = new.iter().map(|task| size_of_val(&**task)).max().unwrap_or_default();
            self.task_bytes = self.task_bytes.max(largest);
            self.tasks.extend(new.into_iter().map(|task| (Arc::new(Flag(AtomicBool::new(true))), task)));
            let mut has_run = false;
            let mut at = 0;
            while at < self.tasks.len() {
                let (flag, task) = &mut self.tasks[at];
                if !flag.0.swap(false, Ordering::Relaxed) {
                    at += 1;
                    continue;
                }
                has_run = true;
                let waker = Waker::from(flag.clone());
                // As a runtime has it: a task that panics is gone, the others run on.
                match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(&waker)))) {
                    Ok(Poll::Pending) => at += 1,
                    Ok(Poll::Ready(())) | Err(_) => drop(self.tasks.remove(at)),
                }
            }
            if !has_run {
                return;
            }
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.time.monotonic() + duration;
        while self.time.wake_next(end) {
            self.run();
        }
    }

    /// The response of the newest exchange begins as it should.
    pub(crate) fn head(&mut self) {
        self.head_with(200, &[("content-type", "application/vnd.restate.invocation.v6")]);
    }

    pub(crate) fn head_with(&mut self, status: u16, headers: &[(&'static str, &str)]) {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).expect("a header's value"))
        };
        let headers = HeaderMap::from_iter(headers.iter().map(header));
        self.event(ExchangeEvent::Head(StatusCode::from_u16(status).unwrap(), headers));
    }

    /// The handler writes these frames, which arrive together.
    pub(crate) fn writes(&mut self, frames: &[Bytes]) {
        self.event(ExchangeEvent::Chunk(frames.concat().into()));
    }

    /// The same for the handler of an attempt that others have followed; the first one is 0.
    pub(crate) fn writes_at(&mut self, at: usize, frames: &[Bytes]) {
        let events = self.seen.lock().unwrap().wires[at].clone();
        self.event_of(&events, ExchangeEvent::Chunk(frames.concat().into()));
    }

    pub(crate) fn event(&mut self, event: ExchangeEvent) {
        let events = self.wire();
        self.event_of(&events, event);
    }

    fn event_of(&mut self, events: &Events, event: ExchangeEvent) {
        let mut wire = events.lock().unwrap();
        wire.events.push_back(event);
        if let Some(waker) = wire.waker.take() {
            waker.wake();
        }
        drop(wire);
        self.run();
    }

    /// The attempt's task panics the next time it reads.
    pub(crate) fn trap(&mut self) {
        self.wire().lock().unwrap().is_trap = true;
        self.head();
    }

    /// From now on so much of the request does not leave.
    pub(crate) fn unsent(&mut self, bytes: usize) {
        self.wire().lock().unwrap().unsent = bytes;
        // Told where it has become less, and as well where not: then it is looked at.
        self.event(ExchangeEvent::Writable);
    }

    /// Chunks that the server has not read.
    pub(crate) fn unread(&self) -> usize {
        self.wire().lock().unwrap().events.len()
    }

    /// So much does not leave of requests that begin from now on.
    pub(crate) fn clog(&self, bytes: usize) {
        self.seen.lock().unwrap().unsent = bytes;
    }

    pub(crate) fn refuse(&self, error: TransportError) {
        self.seen.lock().unwrap().refusal = Some(error);
    }

    /// There is memory for what all deployments bring but this one.
    pub(crate) fn is_much(&mut self, deployment: Option<DeploymentId>) {
        let mut seen = self.seen.lock().unwrap();
        seen.much = deployment;
        seen.memory.notify_waiters();
        drop(seen);
        self.run();
    }

    pub(crate) fn tickets(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.seen.lock().unwrap().tickets)
    }

    /// Streams that were asked for.
    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests.len()
    }

    /// A notification is durable, as entry `index`.
    pub(crate) fn notify(&mut self, index: u32, notification: Notification) {
        self.live.as_ref().expect("an attempt runs").notify(Live { index, notification });
        self.run();
    }

    /// The partition's end of the newest attempt, which goes on beside the next one.
    pub(crate) fn take_live(&mut self) -> Notifier {
        self.live.take().expect("an attempt runs")
    }

    pub(crate) fn abort(&mut self) {
        self.live = None;
        self.run();
    }

    /// All that was reported is applied.
    pub(crate) fn sync(&mut self) {
        let rooms = std::mem::take(&mut self.seen.lock().unwrap().rooms);
        drop(rooms);
        self.run();
    }

    /// What happened since this was last asked.
    pub(crate) fn story(&self) -> String {
        let lines = std::mem::take(&mut self.seen.lock().unwrap().story);
        lines.join("\n")
    }

    /// The newest report.
    pub(crate) fn report(&self) -> AttemptProgress {
        self.seen.lock().unwrap().reports.last().expect("something was reported").clone()
    }

    pub(crate) fn report_at(&self, at: usize) -> AttemptProgress {
        self.seen.lock().unwrap().reports[at].clone()
    }

    /// So many starts wait for a place.
    pub(crate) fn want(&mut self, starts: usize) {
        self.invoker.want(0, starts);
        self.run();
    }

    pub(crate) fn reports(&self) -> usize {
        self.seen.lock().unwrap().reports.len()
    }

    pub(crate) fn request(&self) -> OpenRequest {
        self.seen.lock().unwrap().requests.last().expect("a stream was asked for").clone()
    }

    fn wire(&self) -> Events {
        self.seen.lock().unwrap().wires.last().expect("a stream is open").clone()
    }
}

pub(crate) fn command(ty: u16, raw: Bytes) -> Entry {
    Entry::Command { ty, raw }
}

pub(crate) fn completion(ty: u16, id: u32, result: Resolution) -> Notification {
    Notification { ty, id: NotificationId::Completion(id), result }
}

fn registered(mode: StreamMode, http: HttpVersion) -> Catalog {
    let handlers = [("run", TargetKind::ObjectExclusive), ("see", TargetKind::ObjectShared)];
    let service = Service::new("Object", ServiceKind::VirtualObject, handlers.map(|(name, target)| Handler::new(name, target)));
    let deployment = Deployment { mode, http, ..Deployment::at(DEPLOYMENT, "http://handlers/") }.serving([service]);
    let service = Service::new("Neighbour", ServiceKind::Service, [Handler::new("run", TargetKind::Service)]);
    let object = Service::new("Other", ServiceKind::VirtualObject, [Handler::new("run", TargetKind::ObjectExclusive)]);
    let neighbour = Deployment { mode, http, ..Deployment::at(NEIGHBOUR, "http://neighbours/") }.serving([service, object]);
    let services = [&deployment, &neighbour].into_iter().flat_map(|deployment| deployment.services.iter().cloned());
    let services = services.map(|service| (service.name.clone(), Arc::new(service))).collect();
    Catalog {
        deployments: [deployment, neighbour].map(|deployment| (deployment.id, Arc::new(deployment))).into(),
        services,
        ..Catalog::default()
    }
}

/// The partition: what attempts report.
struct Partition(Shared);

impl Output for Partition {
    fn progressed(&self, _: PartitionId, progress: AttemptProgress, room: Room) {
        let mut seen = self.0.lock().unwrap();
        seen.tickets.push("reported");
        seen.story.push(format!("= {}", told(&progress)));
        seen.reports.push(progress);
        seen.rooms.push(room);
    }

    fn answered(&self, _: PartitionId, _: InvocationId, _: Attempt, deployment: DeploymentId) {
        self.0.lock().unwrap().story.push(format!("= answered by {deployment}"));
    }

    fn ended(&self) {
        self.0.lock().unwrap().story.push("= slot free".to_owned());
    }

    fn has_room(&self) {
        self.0.lock().unwrap().story.push("= room for replays".to_owned());
    }

    fn has_memory(&self) -> bool {
        true
    }

    fn has_memory_of(&self, deployment: DeploymentId) -> bool {
        self.0.lock().unwrap().much != Some(deployment)
    }

    fn has_memory_for(&self, deployment: DeploymentId, _: u64) -> bool {
        self.has_memory_of(deployment)
    }

    fn memory_ticket(&self, deployment: DeploymentId, _: u64) -> Box<dyn MemoryTicket> {
        self.0.lock().unwrap().tickets.push("taken");
        Box::new(Ticket { seen: self.0.clone(), deployment })
    }
}

struct Ticket {
    seen: Shared,
    deployment: DeploymentId,
}

impl MemoryTicket for Ticket {
    fn has_memory(&self) -> bool {
        self.seen.lock().unwrap().much != Some(self.deployment)
    }

    fn memory(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let memory = self.seen.lock().unwrap().memory.clone();
            while !self.has_memory() {
                self.seen.lock().unwrap().tickets.push("waits");
                memory.notified().await;
            }
        })
    }

    fn step_aside(&mut self) {
        self.seen.lock().unwrap().tickets.push("aside");
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Ok(mut seen) = self.seen.lock() {
            seen.tickets.push("gone");
        }
    }
}

fn told(progress: &AttemptProgress) -> String {
    let mut words: Vec<String> = progress.items.iter().map(item).collect();
    if !words.is_empty() {
        words.insert(0, format!("from {}:", progress.first_command));
    }
    match &progress.end {
        None => {}
        Some(AttemptEnd::Completed) => words.push("completed".to_owned()),
        Some(AttemptEnd::Suspended { awaiting, last_delivered }) => {
            let ids: Vec<String> = awaiting.iter().map(name_of).collect();
            words.push(format!("suspended on {} after entry {last_delivered}", ids.join(" ")));
        }
        Some(AttemptEnd::Failed { error, verdict, by_handler }) => {
            let verdict = match verdict {
                Verdict::Retry { at, counted } => {
                    let counted = if *counted { "" } else { ", not counted" };
                    format!("again in {} ms{counted}", at.0 - error.at.0)
                }
                Verdict::Pause => "pause".to_owned(),
                Verdict::Fail => "for good".to_owned(),
            };
            let whose = if *by_handler { "" } else { " (ours)" };
            words.push(format!("failed{whose}: {}; {verdict}", error.message));
        }
    }
    words.join(" ")
}

fn item(item: &Item) -> String {
    match item {
        Item::Command { ty, .. } => match *ty {
            entry_type::OUTPUT => "Output".to_owned(),
            entry_type::SET_STATE => "SetState".to_owned(),
            entry_type::RUN => "Run".to_owned(),
            entry_type::SLEEP => "Sleep".to_owned(),
            ty => format!("{ty:#06x}"),
        },
        Item::RunProposed { completion, .. } => format!("proposed #{completion}"),
    }
}

fn name_of(id: &NotificationId) -> String {
    match id {
        NotificationId::Completion(id) => format!("#{id}"),
        NotificationId::Signal(index) => format!("signal {index}"),
        NotificationId::NamedSignal(name) => format!("signal {name}"),
    }
}

/// The network: what is sent is told, what comes back is the test's.
struct Network(Shared);

impl Transport for Network {
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
        let mut seen = self.0.lock().unwrap();
        seen.requests.push(request);
        let opened = match seen.refusal.take() {
            Some(error) => Err(error),
            None => {
                let wire = Arc::new(Mutex::new(Wire { unsent: seen.unsent, ..Wire::default() }));
                seen.wires.push(wire.clone());
                let sent = BytesMut::new();
                Ok(Box::new(Connection { seen: self.0.clone(), wire, sent, has_ended: false }) as Box<dyn Exchange>)
            }
        };
        Box::pin(async { opened })
    }

    fn discover(&self, _: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        unreachable!("attempts discover nothing")
    }
}

struct Connection {
    seen: Shared,
    wire: Events,
    /// The beginning of a frame whose rest has not been sent.
    sent: BytesMut,
    has_ended: bool,
}

impl Exchange for Connection {
    fn send(&mut self, bytes: Bytes) {
        self.sent.extend_from_slice(&bytes);
        let mut seen = self.seen.lock().unwrap();
        while let Some(line) = wire::told(&mut self.sent) {
            seen.story.push(format!("> {line}"));
        }
    }

    fn unsent_bytes(&self) -> usize {
        self.wire.lock().unwrap().unsent
    }

    fn poll_unsent(&mut self, cx: &mut Context<'_>, at_most: usize) -> Poll<()> {
        let mut wire = self.wire.lock().unwrap();
        if wire.unsent <= at_most {
            return Poll::Ready(());
        }
        wire.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn half_close(&mut self) {
        self.seen.lock().unwrap().story.push("> half-close".to_owned());
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        let mut wire = self.wire.lock().unwrap();
        let is_trap = std::mem::take(&mut wire.is_trap);
        let event = wire.events.pop_front();
        if event.is_none() {
            wire.waker = Some(cx.waker().clone());
        }
        drop(wire);
        assert!(!is_trap, "a panic on purpose");
        match event {
            Some(event) => {
                self.has_ended |= matches!(event, ExchangeEvent::End | ExchangeEvent::Error(_));
                Poll::Ready(event)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.has_ended {
            self.seen.lock().unwrap().story.push("> reset".to_owned());
        }
    }
}

#[derive(Default)]
struct Time(Mutex<Timers>);

#[derive(Default)]
struct Timers {
    now: Duration,
    due: Vec<(Duration, Waker)>,
}

impl Time {
    /// Goes on to the next timer that is due by `end` and wakes it; to the end if there is none.
    fn wake_next(&self, end: Duration) -> bool {
        let mut timers = self.0.lock().unwrap();
        let next = timers.due.iter().map(|(due, _)| *due).min().filter(|due| *due <= end);
        timers.now = next.unwrap_or(end).max(timers.now);
        let now = timers.now;
        let (due, later) = timers.due.drain(..).partition(|(due, _)| *due <= now);
        timers.due = later;
        drop(timers);
        let due: Vec<(Duration, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
        next.is_some()
    }
}

impl Clock for Time {
    fn now_ms(&self) -> u64 {
        EPOCH_MS + self.monotonic().as_millis() as u64
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    fn sleep(&self, duration: Duration) -> BoxFuture {
        let due = self.monotonic() + duration;
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let waker = Waker::from(Arc::new(Alarm(Mutex::new(Some(sender)))));
        self.0.lock().unwrap().due.push((due, waker));
        Box::pin(async move {
            // The alarm speaks, or its world is gone.
            let _ = receiver.await;
        })
    }
}

struct Alarm(Mutex<Option<tokio::sync::oneshot::Sender<()>>>);

impl std::task::Wake for Alarm {
    fn wake(self: Arc<Self>) {
        if let Some(sender) = self.0.lock().unwrap().take() {
            // The sleeper may have been dropped.
            let _ = sender.send(());
        }
    }
}

/// Tasks that were started and not polled yet.
#[derive(Default)]
struct Queue(Mutex<Vec<BoxFuture>>);

impl Tasks for Queue {
    fn spawn(&self, future: BoxFuture) {
        self.0.lock().unwrap().push(future);
    }

    fn try_drive(&self, _: &'static str, _: Wake, _: Box<dyn Steps>) -> std::io::Result<()> {
        unreachable!("the invoker drives nothing")
    }
}

/// Set when its task can go on.
struct Flag(AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Numbers(AtomicU64);

impl Ids for Numbers {
    fn random_u64(&self) -> u64 {
        // In the middle: delays come out as the policy has them.
        u64::MAX / 2 + self.0.fetch_add(1, Ordering::Relaxed)
    }
}
