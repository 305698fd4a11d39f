//! The room's front: slots, and the tasks that fill them.

use crate::api::{AttemptStart, Output, Settings};
use crate::attempt;
use crate::transport::Transport;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use surefoot_env::Env;
use surefoot_model::{CatalogCell, Entry, Target};

/// WARN lines about failing invocations per second of this node.
const WARNINGS_PER_SECOND: u64 = 10;

/// Runs attempts, as many at a time as the settings allow.
pub struct Invoker {
    pub(crate) env: Env,
    pub(crate) settings: Settings,
    pub(crate) catalog: CatalogCell,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) output: Arc<dyn Output>,
    slots: AtomicUsize,
    replay_bytes: AtomicUsize,
    /// Second of the clock, and WARN lines in it so far: `second << 16 | lines`.
    warnings: AtomicU64,
}

impl Invoker {
    pub fn new(
        env: Env,
        settings: Settings,
        catalog: CatalogCell,
        transport: Arc<dyn Transport>,
        output: Arc<dyn Output>,
    ) -> Arc<Self> {
        metrics::gauge!("surefoot_invoker_concurrency_limit").set(settings.attempts_max as f64);
        Arc::new(Self {
            env,
            settings,
            catalog,
            transport,
            output,
            slots: AtomicUsize::new(0),
            replay_bytes: AtomicUsize::new(0),
            warnings: AtomicU64::new(0),
        })
    }

    /// Takes a slot if one is free and replays in flight are below their bound. It is for one [`Self::start`], or
    /// [`Self::release`] where nothing is to start after all.
    pub fn try_reserve(&self) -> bool {
        if self.replay_bytes.load(Ordering::Relaxed) >= self.settings.replay_bytes_max {
            return false;
        }
        let take = |slots| (slots < self.settings.attempts_max).then_some(slots + 1);
        self.slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Gives a slot back unused.
    pub fn release(&self) {
        self.slots.fetch_sub(1, Ordering::Relaxed);
    }

    /// Starts an attempt in the slot reserved before.
    pub fn start(self: &Arc<Self>, start: AttemptStart) {
        metrics::counter!("surefoot_invoker_invocation_tasks_total", "status" => "started").increment(1);
        let invoker = self.clone();
        self.env.tasks.spawn(Box::pin(async move {
            let bytes = start.replay.iter().map(Entry::bytes).sum::<u64>() as usize
                + start.state.entries.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            invoker.replay_bytes.fetch_add(bytes, Ordering::Relaxed);
            attempt::run(&invoker, start).await;
            invoker.replay_bytes.fetch_sub(bytes, Ordering::Relaxed);
            invoker.release();
            invoker.output.ended();
        }));
    }

    /// Bytes of state that the start of an attempt carries; 0 where the target has no state, or asked for it lazily.
    pub fn eager_state_bytes(&self, target: &Target) -> usize {
        if !target.kind.is_keyed() {
            return 0;
        }
        let catalog = self.catalog.load();
        let options = catalog.handler(&target.service, &target.handler).map(|(s, h)| s.resolve(h, &self.settings.defaults));
        if options.is_some_and(|o| o.enable_lazy_state) { 0 } else { self.settings.eager_state_bytes_max }
    }

    /// Whether one more WARN line may be written now.
    pub(crate) fn may_warn(&self) -> bool {
        let second = self.env.clock.now_ms() / 1_000;
        let count = |packed: u64| {
            let lines = if packed >> 16 == second { packed & 0xffff } else { 0 };
            (lines < WARNINGS_PER_SECOND).then_some(second << 16 | (lines + 1))
        };
        self.warnings.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }
}
