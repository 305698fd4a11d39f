//! The room's front: slots, bytes in flight, and the tasks that take them.

use crate::api::{AttemptStart, Destination, Mutant, Output, Settings};
use crate::attempt::{self, Chosen, Failure};
use crate::feed::{Feeds, Line, Notifications, Notifier};
use crate::lines::Lines;
use crate::metrics::Metrics;
use crate::parts::{MessagePart, Parts, permits};
use crate::places::{Idle, Places};
use crate::reach::{Leave, NO_DEPLOYMENT, News, PlacesLeft, Reach, Tried};
use crate::transport::Transport;
use ::http::{HeaderName, HeaderValue};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use surefoot_env::Env;
use surefoot_model::catalog::{Catalog, Deployment, ResolvedOptions};
use surefoot_model::{CatalogCell, DeploymentId, Entry, Pin, Target};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// WARN lines about failing invocations per second of this node.
const WARNINGS_PER_SECOND: u32 = 10;
/// What an entry of a replay takes beside its payload.
const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// Runs attempts, as many at a time as the settings allow.
pub struct Invoker {
    pub(crate) env: Env,
    pub(crate) settings: Settings,
    pub(crate) catalog: CatalogCell,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) output: Arc<dyn Output>,
    pub(crate) metrics: Metrics,
    /// On every request to a deployment.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// What may be reported before it is applied, as [`surefoot_model::RECORD_COST`] counts.
    pub(crate) reports: Arc<Semaphore>,
    pub(crate) report_lines: Lines,
    /// Bytes of state that handlers have asked for, and that have not come.
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) read_lines: Lines,
    pub(crate) parts: Parts,
    places: Arc<Places>,
    pub(crate) reach: Reach,
    feeds: Feeds,
    replay_bytes: AtomicUsize,
    /// Responses that are read to their end after their attempt is over.
    drains: AtomicUsize,
    warnings: Mutex<Warnings>,
}

/// WARN lines of the present second, and those left out since the last line.
#[derive(Default)]
struct Warnings {
    second: u64,
    lines: u32,
    left_out: u64,
}

impl Invoker {
    pub fn new(
        env: Env,
        settings: Settings,
        catalog: CatalogCell,
        transport: Arc<dyn Transport>,
        output: Arc<dyn Output>,
    ) -> Arc<Self> {
        // What is no header is left out.
        let header = |(name, value): &(String, String)| Some((name.try_into().ok()?, value.try_into().ok()?));
        Arc::new(Self {
            metrics: Metrics::new(settings.attempts_max),
            places: Arc::new(Places::new(settings.attempts_max, settings.mutant == Mutant::NeverAsk)),
            headers: settings.additional_headers.iter().filter_map(header).collect(),
            reports: Arc::new(Semaphore::new(permits(settings.report_bytes_max, usize::MAX) as usize)),
            reads: Arc::new(Semaphore::new(permits(settings.read_bytes_max, usize::MAX) as usize)),
            report_lines: Lines::default(),
            read_lines: Lines::default(),
            parts: Parts::new(settings.part_bytes_max),
            feeds: Feeds::new(settings.live_bytes_max),
            env,
            settings,
            catalog,
            transport,
            output,
            reach: Reach::default(),
            replay_bytes: AtomicUsize::new(0),
            drains: AtomicUsize::new(0),
            warnings: Mutex::default(),
        })
    }

    /// Takes a place if there is memory, one is free, and replays on their way are below their bound. It is for one [`Self::admit`] and
    /// [`Self::start`], or [`Self::release`] where nothing is to start after all.
    pub fn try_reserve(&self) -> bool {
        if !self.can_take_in() || !self.output.has_memory() {
            return false;
        }
        let is_taken = self.places.try_take();
        if is_taken {
            self.metrics.slots_acquired.increment(1);
        }
        is_taken
    }

    /// Whether [`Self::try_reserve`] would find a place, if there is memory.
    pub fn has_place(&self) -> bool {
        self.can_take_in() && self.places.free() > 0
    }

    /// Replays on their way are below their bound.
    fn can_take_in(&self) -> bool {
        self.replay_bytes.load(Ordering::Relaxed) < self.settings.replay_bytes_max
    }

    /// Starts wait, and an attempt that only waits has not been asked for its place.
    pub fn owes_places(&self) -> bool {
        self.places.owes()
    }

    /// Attempts that have a place.
    pub fn running(&self) -> usize {
        self.places.taken()
    }

    /// Gives a slot back unused.
    pub fn release(&self) {
        self.places.leave(None);
        self.metrics.slots_released.increment(1);
    }

    /// How many more attempts may begin there now: a deployment that does not answer, or whose attempts work on and on, holds only its
    /// share of the places, and one that cannot be connected to is tried by one at a time (rule O5). While its attempts wait to report, or
    /// for memory, none begins. Those that no deployment serves have a share together. Where it is none, [`Output::has_room`] or
    /// [`Output::ended`] says when to ask again.
    pub fn share_left(&self, destination: &Destination) -> usize {
        let deployment = deployment_at(&self.catalog.load(), destination);
        let left = self.broken(self.places.watch_within_reach(deployment));
        let share = self.reach.share_left(deployment, left, self.env.clock.monotonic());
        if share > 0 && self.output.has_memory_of(deployment) { share } else { 0 }
    }

    /// Whether that is any at all, for those who do not wait.
    pub fn has_share(&self, destination: &Destination) -> bool {
        let deployment = deployment_at(&self.catalog.load(), destination);
        let left = self.broken(self.places.within_reach(deployment));
        let share = self.reach.share(deployment, left, self.env.clock.monotonic());
        share > 0 && self.output.has_memory_of(deployment)
    }

    /// Why attempts wait that are for there, where it cannot be connected to.
    pub fn why_unreachable(&self, destination: &Destination) -> Option<String> {
        self.reach.error(deployment_at(&self.catalog.load(), destination))
    }

    /// Leave for an attempt that has a place to begin on its deployment. None: that one holds its share; see [`Self::share_left`].
    pub fn admit(self: &Arc<Self>, target: &Target, pin: Option<Pin>) -> Option<Admission> {
        let catalog = self.catalog.load();
        let chosen = attempt::choose(&catalog, &target.service, pin);
        // One that fails at once counts as well: others start past those that wait for it.
        let deployment = deployment_at(&catalog, &Destination::of(&target.service, pin));
        let left = self.broken(self.places.within_reach(deployment));
        let began = self.env.clock.monotonic();
        if !self.output.has_memory_of(deployment) {
            return None;
        }
        let is_uncounted = self.settings.mutant == Mutant::BeginUnserved && chosen.is_err();
        let leave = if is_uncounted { Leave::Begins } else { self.reach.try_begin(deployment, left, began) };
        if leave == Leave::Waits {
            return None;
        }
        let (is_connecting, invoker) = (leave == Leave::Tries, self.clone());
        let begun =
            Begun { invoker, deployment, began, is_connecting, is_answered: is_uncounted, is_heard: is_uncounted, is_uncounted };
        Some(Admission { chosen, begun })
    }

    /// What the variants have an attempt find that let deployments have all places.
    fn broken(&self, left: PlacesLeft) -> PlacesLeft {
        match self.settings.mutant {
            Mutant::TakeAllPlaces => PlacesLeft { count: usize::MAX, ..left },
            Mutant::WorkInAllPlaces => PlacesLeft { own_idle: usize::MAX, ..left },
            _ => left,
        }
    }

    /// A replay of so many bytes is in flight from here on, before it is read.
    pub fn expect_replay(self: &Arc<Self>, bytes: u64) -> ReplayBytes {
        ReplayBytes::new(self.clone(), usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// As [`Self::start_read`], where the replay was read at once.
    pub fn start(self: &Arc<Self>, start: AttemptStart, admission: Admission) {
        self.start_read(start, admission, self.expect_replay(0));
    }

    /// Starts an attempt in the slot reserved before. Its replay counts until it has left, as far as it comes into memory at a time.
    pub fn start_read(self: &Arc<Self>, start: AttemptStart, admission: Admission, mut replay: ReplayBytes) {
        self.metrics.started.increment(1);
        let Admission { chosen, begun } = admission;
        let leaves_whole = chosen.as_ref().is_ok_and(|chosen| chosen.leaves_whole());
        let read: u64 = start.replay.iter().map(|entry| entry.bytes() + ENTRY_BYTES).sum();
        let rest =
            start.rest.as_ref().map_or(0, |rest| rest.bytes_at_once(leaves_whole, start.journal_bytes.saturating_sub(read)));
        let state: usize = start.state.entries.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = read.saturating_add(rest).saturating_add(state as u64);
        replay.resize_to(usize::try_from(bytes).unwrap_or(usize::MAX));
        let place = AttemptPlace { invoker: self.clone(), idle: None };
        let held = Held { replay: Some(replay), begun, part: None, place };
        self.env.tasks.spawn(Box::pin(attempt::run(self.clone(), start, chosen, held)));
    }

    /// What a running attempt is told comes through this: the partition's end, and the one for [`AttemptStart`].
    pub fn feed(&self) -> (Notifier, Notifications) {
        self.feeds.feed()
    }

    /// So many starts of a worker wait for a place. Attempts that only wait are asked to make room (rule O5).
    pub fn want(&self, worker: usize, starts: usize) {
        self.places.want(worker, starts, !self.output.has_memory(), self.env.clock.monotonic());
    }

    /// Bytes of state that the start of an attempt carries; 0 where the target has no state, or asked for it lazily.
    pub fn eager_state_bytes(&self, target: &Target, pin: Option<Pin>) -> usize {
        if !target.kind.is_keyed() {
            return 0;
        }
        let catalog = self.catalog.load();
        let deployment = pin.and_then(|pin| catalog.deployments.get(&pin.deployment));
        let options = self.options(&catalog, target, deployment);
        if options.enable_lazy_state { 0 } else { self.settings.eager_state_bytes_max }
    }

    /// Options of a handler as the deployment has it, else as the newest revision has it, else the defaults.
    pub(crate) fn options(&self, catalog: &Catalog, target: &Target, deployment: Option<&Arc<Deployment>>) -> ResolvedOptions {
        let defaults = &self.settings.defaults;
        let of_deployment = deployment.and_then(|d| d.services.iter().find(|s| s.name == target.service));
        let newest = catalog.services.get(&target.service).map(|s| &**s);
        let resolved = of_deployment.or(newest).and_then(|s| s.handlers.get(&target.handler).map(|h| s.resolve(h, defaults)));
        resolved.unwrap_or_else(|| ResolvedOptions {
            inactivity_timeout_ms: defaults.inactivity_timeout_ms,
            abort_timeout_ms: defaults.abort_timeout_ms,
            enable_lazy_state: false,
            retry: defaults.retry.clone(),
        })
    }

    /// Bytes of a replay that have left for the handler, or never will.
    fn replay_has_left(&self, bytes: usize) {
        let max = self.settings.replay_bytes_max;
        let before = self.replay_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // Whoever was refused above the bound hears of the step below it.
        if before >= max && before - bytes < max {
            self.output.has_room();
        }
    }

    /// Room among reports. While attempts of a deployment wait for it none of them begins: more would only wait longer.
    pub(crate) async fn report_room(self: Arc<Self>, deployment: DeploymentId, permits: u32) -> OwnedSemaphorePermit {
        let _waiting = ReportWaiting::new(self.clone(), deployment);
        let line = if self.settings.mutant == Mutant::OneLine { DeploymentId(0) } else { deployment };
        self.report_lines.take(line, &self.reports, permits).await
    }

    /// Permits of `reports` for an event of so many bytes: all of them for one that is larger.
    pub(crate) fn report_permits(&self, bytes: usize) -> u32 {
        permits(self.settings.report_bytes_max, bytes)
    }

    /// Permits of `reads` for a value of so many bytes: all of them for one that is larger.
    pub(crate) fn read_permits(&self, bytes: u64) -> u32 {
        permits(self.settings.read_bytes_max, usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Leave to read a response to its end without a slot. None: so many are read already that this one is cut.
    pub(crate) fn try_drain(self: &Arc<Self>) -> Option<Drain> {
        take(&self.drains, self.settings.attempts_max).then(|| Drain(self.clone()))
    }

    /// Whether one more WARN line may be written now: how many were left out before it.
    pub(crate) fn may_warn(&self) -> Option<u64> {
        let second = self.env.clock.now_ms() / 1_000;
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.second != second {
            (warnings.second, warnings.lines) = (second, 0);
        }
        if warnings.lines >= WARNINGS_PER_SECOND {
            warnings.left_out += 1;
            return None;
        }
        warnings.lines += 1;
        Some(std::mem::take(&mut warnings.left_out))
    }
}

/// Whose share an attempt for there takes: [`NO_DEPLOYMENT`]'s where none serves it.
fn deployment_at(catalog: &Catalog, destination: &Destination) -> DeploymentId {
    let deployment = match destination {
        Destination::Pinned(deployment) => catalog.deployments.get(deployment),
        Destination::Newest(service) => catalog.deployment_of(service),
    };
    deployment.map_or(NO_DEPLOYMENT, |deployment| deployment.id)
}

/// Adds one if that does not exceed the bound.
fn take(count: &AtomicUsize, max: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1)).is_ok()
}

/// The place of a running attempt, given back when dropped: at the attempt's end, or when its task dies.
pub(crate) struct AttemptPlace {
    invoker: Arc<Invoker>,
    /// While the attempt only waits; and from when it was asked to suspend.
    idle: Option<Idle>,
}

impl AttemptPlace {
    /// The attempt only waits, and has since then: it may be asked to suspend.
    pub(crate) fn idle(&mut self, deployment: DeploymentId, line: &Arc<Line>, since: Duration, journal_bytes: usize) {
        let now = self.invoker.env.clock.monotonic();
        self.idle = Some(self.invoker.places.idle(deployment, line.clone(), since, journal_bytes, now));
        if self.invoker.places.take_watched() {
            self.invoker.output.has_room();
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.idle.is_some()
    }

    /// The handler was told something, or has said something.
    pub(crate) fn resume(&mut self) {
        if let Some(idle) = self.idle.take() {
            self.idle = self.invoker.places.resume(idle);
        }
    }
}

impl Drop for AttemptPlace {
    fn drop(&mut self) {
        self.invoker.places.leave(self.idle.take());
        self.invoker.metrics.slots_released.increment(1);
        self.invoker.output.ended();
    }
}

/// What an attempt holds from its start on.
pub(crate) struct Held {
    /// Until the replay has left for the handler.
    pub(crate) replay: Option<ReplayBytes>,
    pub(crate) begun: Begun,
    /// Of a large message, from when a part of it has come until it is reported.
    pub(crate) part: Option<Box<MessagePart>>,
    /// Given back last: the next one finds everything free.
    pub(crate) place: AttemptPlace,
}

/// Leave to begin, with the deployment that the attempt runs on. It counts there until the attempt has ended, or this is dropped
/// unused.
pub struct Admission {
    chosen: Result<Chosen, Failure>,
    begun: Begun,
}

impl Admission {
    /// None: the attempt fails at once.
    pub fn deployment(&self) -> Option<DeploymentId> {
        self.chosen.as_ref().ok().map(|chosen| chosen.deployment.id)
    }
}

/// An attempt in its deployment's counts: of those that have begun, of those that have no answer, and of those that have brought nothing
/// yet. It is in none once this is dropped.
pub(crate) struct Begun {
    invoker: Arc<Invoker>,
    deployment: DeploymentId,
    began: Duration,
    is_connecting: bool,
    is_answered: bool,
    is_heard: bool,
    is_uncounted: bool,
}

impl Begun {
    /// Leave to connect; what came of it is told by [`Self::connected`], or by dropping this. **Errors**: it could not be connected to a moment ago.
    pub(crate) fn connect(&mut self) -> Result<(), String> {
        if !self.is_connecting {
            self.invoker.reach.try_connect(self.deployment, self.invoker.env.clock.monotonic())?;
            self.is_connecting = true;
        }
        Ok(())
    }

    pub(crate) fn connected(&mut self, result: Tried) {
        self.is_connecting = false;
        let News { is_awaited, wants_alarm } =
            self.invoker.reach.connected(self.deployment, result, self.invoker.env.clock.monotonic());
        if wants_alarm {
            self.invoker.env.tasks.spawn(Box::pin(alarm(self.invoker.clone(), self.deployment)));
        }
        if is_awaited {
            self.invoker.output.has_room();
        }
    }

    /// Its response has begun.
    pub(crate) fn answered(&mut self) {
        if !std::mem::replace(&mut self.is_answered, true)
            && self.invoker.reach.answered(self.deployment, self.began, self.invoker.env.clock.monotonic())
        {
            self.invoker.output.has_room();
        }
    }

    /// It has brought something, or nothing for a while.
    pub(crate) fn heard(&mut self) {
        if !std::mem::replace(&mut self.is_heard, true) && self.invoker.reach.heard(self.deployment) {
            self.invoker.output.has_room();
        }
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.is_heard
    }
}

/// Tells those who are held back once a deployment that is out of reach may be tried again, and when more may begin there as time passes.
async fn alarm(invoker: Arc<Invoker>, deployment: DeploymentId) {
    while let Some(pause) = invoker.reach.until_next_look(deployment, invoker.env.clock.monotonic()) {
        invoker.env.clock.sleep(pause).await;
        if invoker.reach.take_awaited(deployment, invoker.env.clock.monotonic()) {
            invoker.output.has_room();
        }
    }
    let catalog = invoker.catalog.load();
    invoker.reach.forget(|deployment| !catalog.deployments.contains_key(&deployment));
    invoker.output.has_room();
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.is_connecting {
            self.connected(Tried::GivenUp);
        }
        if !self.is_uncounted {
            self.invoker.reach.ended(self.deployment);
        }
        self.answered();
        self.heard();
    }
}

/// An attempt of a deployment that waits to report, until dropped.
struct ReportWaiting {
    invoker: Arc<Invoker>,
    deployment: DeploymentId,
}

impl ReportWaiting {
    fn new(invoker: Arc<Invoker>, deployment: DeploymentId) -> Self {
        invoker.reach.on_report_waits(deployment);
        Self { invoker, deployment }
    }
}

impl Drop for ReportWaiting {
    fn drop(&mut self) {
        if self.invoker.reach.on_report_waited(self.deployment) {
            self.invoker.output.has_room();
        }
    }
}

/// An attempt that waits for a stream, until dropped.
pub(crate) struct StreamWanted {
    invoker: Arc<Invoker>,
    deployment: DeploymentId,
}

impl StreamWanted {
    pub(crate) fn new(invoker: Arc<Invoker>, deployment: DeploymentId) -> Self {
        invoker.places.want_stream(deployment);
        Self { invoker, deployment }
    }

    /// Has attempts of the deployment that only wait make room.
    pub(crate) fn ask(&self) {
        self.invoker.places.ask_for_streams(self.deployment, self.invoker.env.clock.monotonic());
    }
}

impl Drop for StreamWanted {
    fn drop(&mut self) {
        self.invoker.places.has_stream(self.deployment);
    }
}

/// Bytes of a journal and of state on their way to a handler; counted until dropped.
pub struct ReplayBytes {
    invoker: Arc<Invoker>,
    bytes: usize,
}

impl ReplayBytes {
    fn new(invoker: Arc<Invoker>, bytes: usize) -> Self {
        invoker.replay_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { invoker, bytes }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many bytes of it are in memory, or come next.
    pub(crate) fn resize_to(&mut self, bytes: usize) {
        self.invoker.replay_bytes.fetch_add(bytes.saturating_sub(self.bytes), Ordering::Relaxed);
        self.bytes = self.bytes.max(bytes);
        self.shrink_to(bytes);
    }

    /// No more than so many bytes of it are still to leave; how many are.
    pub(crate) fn shrink_to(&mut self, unsent: usize) -> usize {
        let left = self.bytes.saturating_sub(unsent);
        self.bytes -= left;
        self.invoker.replay_has_left(left);
        self.bytes
    }
}

impl Drop for ReplayBytes {
    fn drop(&mut self) {
        self.invoker.replay_has_left(self.bytes);
    }
}

/// Leave to read on after an attempt's end; given back when dropped.
pub(crate) struct Drain(Arc<Invoker>);

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.drains.fetch_sub(1, Ordering::Relaxed);
    }
}
