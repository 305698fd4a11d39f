//! How a subscription fares, for operators.
//!
//! Owns: the shape, and the cell that a task writes and others read. Does not own: HTTP shapes (`admin`).

use crate::position::Tracker;
use crate::source::{ErrorKind, SourceError, TopicInfo};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One subscription as its source sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    pub stage: Stage,
    /// What it failed or paused with, in words that say what to do; while it runs, what is wrong with single Kafka partitions.
    pub last_error: Option<String>,
    /// Assigned Kafka partitions in ascending order.
    pub partitions: Vec<PartitionStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A member of its group, with a broker that answers.
    Running,
    /// Waits for a broker, its topic, or its turn to start.
    Waiting,
    /// As many Kafka records are parked as may be, or its handler is away.
    Paused,
    /// Tries again, but somebody has to change something.
    Failing,
    /// It is deleted, and reads nothing: it is listed until its group knows how far it has read.
    Closing,
}

impl Stage {
    /// `running`, `waiting`, `paused`, `failing` or `closing`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Failing => "failing",
            Self::Closing => "closing",
        }
    }
}

/// How far a subscription is in one Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    pub partition: i32,
    /// The lowest offset that is not yet applied here.
    pub position: i64,
    /// The offset after the newest Kafka record, as last heard.
    pub high_watermark: i64,
    /// Offsets in between.
    pub lag: i64,
}

impl SourceStatus {
    /// Not started yet.
    pub fn waiting() -> Self {
        Self { stage: Stage::Waiting, last_error: None, partitions: Vec::new() }
    }
}

/// A stream's progress, shared by its task, the callbacks of its appends, and readers of its status.
pub(crate) type SharedTracker = Arc<Mutex<Tracker>>;

/// Locks, whatever another holder did: each keeps the value whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Written by a subscription's task. Clones share it.
#[derive(Clone)]
pub(crate) struct StatusCell(Arc<Mutex<Inner>>);

struct Inner {
    stage: Stage,
    last_error: Option<String>,
    assigned: BTreeMap<i32, Assigned>,
}

struct Assigned {
    tracker: SharedTracker,
    high: i64,
}

impl StatusCell {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner { stage: Stage::Waiting, last_error: None, assigned: BTreeMap::new() })))
    }

    pub(crate) fn get(&self) -> SourceStatus {
        let inner = lock(&self.0);
        let partitions = inner.assigned.iter().map(|(partition, assigned)| {
            let position = lock(&assigned.tracker).position();
            // The watermark is from the last look; what was read since cannot lie beyond the end.
            let high_watermark = assigned.high.max(position);
            PartitionStatus { partition: *partition, position, high_watermark, lag: high_watermark - position }
        });
        SourceStatus { stage: inner.stage, last_error: inner.last_error.clone(), partitions: partitions.collect() }
    }

    /// `note`: what is wrong with single Kafka partitions.
    pub(crate) fn running(&self, note: Option<String>) {
        self.set(Stage::Running, note);
    }

    pub(crate) fn waiting(&self, why: String) {
        self.set(Stage::Waiting, Some(why));
    }

    pub(crate) fn paused(&self, why: String) {
        self.set(Stage::Paused, Some(why));
    }

    pub(crate) fn failed(&self, error: &SourceError) {
        let stage = if error.kind == ErrorKind::Refused { Stage::Failing } else { Stage::Waiting };
        self.set(stage, Some(error.message.clone()));
    }

    /// It is deleted: nothing else is said of it from now on. `why`: what its end waits for.
    pub(crate) fn closing(&self, why: Option<String>) {
        let mut inner = lock(&self.0);
        inner.stage = Stage::Closing;
        inner.last_error = why;
    }

    fn set(&self, stage: Stage, last_error: Option<String>) {
        let mut inner = lock(&self.0);
        if inner.stage != Stage::Closing {
            inner.stage = stage;
            inner.last_error = last_error;
        }
    }

    pub(crate) fn assigned(&self, partition: i32, tracker: SharedTracker, high: i64) {
        lock(&self.0).assigned.insert(partition, Assigned { tracker, high });
    }

    pub(crate) fn released(&self, partitions: impl IntoIterator<Item = i32>) {
        let mut inner = lock(&self.0);
        for partition in partitions {
            inner.assigned.remove(&partition);
        }
    }

    /// Nothing is assigned any more.
    pub(crate) fn left(&self) {
        lock(&self.0).assigned.clear();
    }

    pub(crate) fn seen(&self, topic: &TopicInfo) {
        let mut inner = lock(&self.0);
        for offsets in &topic.partitions {
            if let Some(assigned) = inner.assigned.get_mut(&offsets.partition) {
                assigned.high = offsets.high;
            }
        }
    }
}
