//! Backups of a node that runs (rule C6): tables and log as they are durable at one instant of the log, in a directory of their own.
//!
//! **Shape**: `tables/` and `log/` as a data directory has them, and `MANIFEST`, which comes last: without it a backup is none. There is no
//! `FORMAT`, so that nobody runs a node on it. Owns: that there is one at a time, and its end when nobody wants it any more. Does not own:
//! which files there are (`storage`, `log`), or restoring them (`restore`).

mod copying;
pub(crate) mod manifest;

use crate::node::{Node, Place};
use copying::{Copying, Source};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use surefoot_admin::{BackedUp, BackupError};
use surefoot_env::{BoxFuture, Env, Wake};
use surefoot_log::local::LocalLog;
use surefoot_partition::Partitions;
use surefoot_storage::Engine;
use tokio::sync::oneshot;

/// What makes backups of one node. Clones share it.
#[derive(Clone)]
pub struct Backups(Arc<Shared>);

struct Shared {
    env: Env,
    /// It goes with its node.
    engine: Weak<dyn Engine>,
    log: LocalLog,
    partitions: Partitions,
    place: Place,
    runs: AtomicBool,
    is_stopping: AtomicBool,
    has_ended: Wake,
}

impl Backups {
    pub fn new(node: &Node, engine: &Arc<dyn Engine>, place: Place) -> Self {
        Self(Arc::new(Shared {
            env: node.partitions.env().clone(),
            engine: Arc::downgrade(engine),
            log: node.log.clone(),
            partitions: node.partitions.clone(),
            place,
            runs: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            has_ended: Wake::new(),
        }))
    }

    /// Ends the backup that runs, and takes no other. Completes once nothing of the node is held any more.
    pub async fn stop(&self) {
        // Either this sees the backup that runs, or that sees the stop.
        self.0.is_stopping.store(true, Ordering::SeqCst);
        while self.0.runs.load(Ordering::SeqCst) {
            self.0.has_ended.woken().await;
        }
    }
}

impl surefoot_admin::Backups for Backups {
    fn back_up(&self, directory: PathBuf) -> BoxFuture<Result<BackedUp, BackupError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let turn = Turn::take(&shared)?;
            let Some(engine) = shared.engine.upgrade() else { return Err(BackupError::Stopping) };
            let asking = Asking(Arc::new(AtomicBool::new(true)));
            let (told, answer) = oneshot::channel();
            let source = Source {
                engine,
                log: shared.log.clone(),
                partitions: shared.partitions.clone(),
                place: shared.place.clone(),
                env: shared.env.clone(),
            };
            let copying = Copying::new(source, directory, asking.0.clone(), turn, told);
            let no_thread = |error| BackupError::Failed(format!("there is no thread for it: {error}"));
            shared.env.tasks.try_drive("backup", Wake::new(), Box::new(copying)).map_err(no_thread)?;
            answer.await.unwrap_or(Err(BackupError::Stopping))
        })
    }
}

/// The right to make a backup, until it is dropped.
struct Turn(Arc<Shared>);

impl Turn {
    fn take(shared: &Arc<Shared>) -> Result<Self, BackupError> {
        if shared.runs.swap(true, Ordering::SeqCst) {
            return Err(BackupError::Running);
        }
        let turn = Self(shared.clone());
        if turn.is_over() { Err(BackupError::Stopping) } else { Ok(turn) }
    }

    /// The node stops.
    fn is_over(&self) -> bool {
        self.0.is_stopping.load(Ordering::SeqCst)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.runs.store(false, Ordering::SeqCst);
        self.0.has_ended.wake();
    }
}

/// Somebody waits for the backup.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
