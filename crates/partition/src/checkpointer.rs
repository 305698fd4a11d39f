//! Checkpoints, one at a time, on a thread of their own (rule C1).
//!
//! Owns: the queue between workers and the thread that writes; patience while the disk is full, during which the gate is shut; the
//! end of the process where the engine has failed (rule C8); and freeing what has been written, which takes too long for a worker.
//! Does not own: what is written (`storage`), or when (`housekeeping`).

use crate::gate::Gate;
use crate::mailbox::{Input, Mailbox};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_env::{Step, Steps, Undone, Wake};
use surefoot_model::PartitionId;
use surefoot_storage::{Checkpoint, Failure, RetiredLayers};

/// The sending half; cheap to clone. At most one job per partition is in the queue.
#[derive(Clone)]
pub(crate) struct Checkpoints {
    queue: Arc<Mutex<Queue>>,
    wake: Wake,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    retired: Vec<Retired>,
}

/// Layers that a partition reads no more.
struct Retired {
    partition: PartitionId,
    layers: RetiredLayers,
    reply: Mailbox,
}

struct Job {
    partition: PartitionId,
    checkpoint: Checkpoint,
    reply: Mailbox,
}

impl Checkpoints {
    pub(crate) fn new(wake: Wake) -> Self {
        Self { queue: Arc::default(), wake }
    }

    pub(crate) fn push(&self, partition: PartitionId, checkpoint: Checkpoint, reply: Mailbox) {
        self.lock().jobs.push_back(Job { partition, checkpoint, reply });
        self.wake.wake();
    }

    /// Frees layers; the reply says that there is more room.
    pub(crate) fn free(&self, partition: PartitionId, layers: RetiredLayers, reply: Mailbox) {
        self.lock().retired.push(Retired { partition, layers, reply });
        self.wake.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait before a checkpoint that found no room is tried again, unless it is woken because there is some.
const RETRY: Duration = Duration::from_secs(1);

/// Told when nobody knows any more what the engine has made durable; ends the process.
pub type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// The receiving half: one disk operation per step.
pub(crate) struct Checkpointer {
    checkpoints: Checkpoints,
    gate: Arc<Gate>,
    fatal: Fatal,
    current: Option<Job>,
    /// The current one found no room.
    waits: bool,
    /// It was said what is wrong with the engine.
    has_told: bool,
}

impl Checkpointer {
    pub(crate) fn new(checkpoints: Checkpoints, gate: Arc<Gate>, fatal: Fatal) -> Self {
        Self { checkpoints, gate, fatal, current: None, waits: false, has_told: false }
    }

    /// The job keeps what it has encoded, and the partition its frozen layers: nothing is lost, and nothing is trimmed.
    fn try_later(&mut self, job: Job, error: &io::Error) -> Step {
        if !std::mem::replace(&mut self.waits, true) {
            tracing::warn!(partition = %job.partition, %error, "no room for a checkpoint; calls and Kafka wait until there is");
        }
        self.gate.set_checkpoint(job.checkpoint.batch_bytes() as u64, true);
        self.current = Some(job);
        Step::IdleFor(RETRY)
    }

    fn free_retired(&self) {
        let retired = std::mem::take(&mut self.checkpoints.lock().retired);
        for Retired { partition, layers, reply } in retired {
            drop(layers);
            reply.push(Input::Freed { partition });
        }
    }

    fn tell_trouble(&mut self, checkpoint: &Checkpoint) {
        if !self.has_told
            && let Some(trouble) = checkpoint.engine_trouble()
        {
            tracing::error!("{trouble}");
            self.has_told = true;
        }
    }
}

impl Steps for Checkpointer {
    fn step(&mut self) -> Step {
        self.free_retired();
        let next = || self.checkpoints.lock().jobs.pop_front();
        let Some(mut job) = self.current.take().or_else(next) else { return Step::Idle };
        let result = match job.checkpoint.step() {
            Ok(None) => {
                self.gate.set_checkpoint(job.checkpoint.batch_bytes() as u64, self.waits);
                self.current = Some(job);
                return Step::Worked;
            }
            Ok(Some(done)) => Ok(done),
            Err(error) => match Failure::of(&error) {
                Failure::Passing => return self.try_later(job, &error),
                Failure::Partition => Err(error.to_string()),
                Failure::Engine => {
                    (self.fatal)(format!("the tables cannot be written any more: {error}"));
                    return Step::Done;
                }
            },
        };
        if std::mem::take(&mut self.waits) {
            tracing::info!(partition = %job.partition, "checkpoints find room again");
        }
        self.gate.set_checkpoint(0, false);
        self.gate.checkpoint_ended();
        self.tell_trouble(&job.checkpoint);
        let Job { partition, checkpoint, reply } = job;
        // Before it is told: it holds the tables, and after the last one they may be opened again at once.
        drop(checkpoint);
        reply.push(Input::Checkpointed { partition, result });
        Step::Worked
    }

    fn undone(&self) -> Vec<Undone> {
        let queue = self.checkpoints.lock();
        let is_left = self.current.is_none() && !queue.jobs.is_empty() || !queue.retired.is_empty() && !self.waits;
        if is_left {
            vec![Undone::at_once("a checkpoint is not begun, or what was written not freed (rule O3)".to_owned())]
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Shortage;
    use std::collections::VecDeque;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use surefoot_machine::{Inbound, State};
    use surefoot_model::Lsn;
    use surefoot_storage::{MemEngine, Store};

    #[test]
    fn a_full_disk_shuts_the_gate_and_stops_no_partition() {
        let engine = MemEngine::new();
        let mailbox = Mailbox::new(Wake::new());
        let gate = Arc::new(Gate::new(vec![mailbox.clone()], 1 << 20));
        let checkpoints = Checkpoints::new(Wake::new());
        let fatal: Fatal = Arc::new(|message| panic!("{message}"));
        let mut checkpointer = Checkpointer::new(checkpoints.clone(), gate.clone(), fatal);
        let is_open = || pin!(gate.wait_once(0, || None)).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        let mut store = Store::open(Arc::new(engine.clone()), PartitionId(0)).unwrap();
        let mut txn = store.begin();
        txn.insert::<Inbound>(PartitionId(1), 1);
        txn.commit(Lsn(1));
        checkpoints.push(PartitionId(0), store.freeze().unwrap(), mailbox.clone());

        engine.set_full(true);
        assert_eq!((checkpointer.step(), is_open()), (Step::Worked, true));
        for _ in 0..3 {
            assert_eq!((checkpointer.step(), is_open()), (Step::IdleFor(RETRY), false));
            assert_eq!(gate.shortage(), Some(Shortage::Disk));
        }
        engine.set_full(false);
        assert_eq!((checkpointer.step(), is_open()), (Step::Worked, false));
        assert_eq!((checkpointer.step(), is_open()), (Step::Worked, true));
        assert_eq!(checkpointer.step(), Step::Idle);
        let mut inputs = VecDeque::new();
        mailbox.take(&mut inputs);
        let Some(Input::Checkpointed { result: Ok(done), .. }) = inputs.pop_front() else { panic!("no checkpoint") };
        store.checkpointed(done);
        assert_eq!(store.checkpointed_lsn(), Lsn(1));
    }

    /// A partition that stopped, while the others went on and lost their checkpoints as well.
    #[test]
    fn a_failed_engine_ends_the_process_and_not_one_partition_after_the_other() {
        let engine = MemEngine::new();
        let mailbox = Mailbox::new(Wake::new());
        let gate = Arc::new(Gate::new(vec![mailbox.clone()], 1 << 20));
        let checkpoints = Checkpoints::new(Wake::new());
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = told.clone();
        let fatal: Fatal = Arc::new(move |message| teller.lock().unwrap().push(message));
        let mut checkpointer = Checkpointer::new(checkpoints.clone(), gate, fatal);
        let mut store = Store::open(Arc::new(engine.clone()), PartitionId(0)).unwrap();
        let mut txn = store.begin();
        txn.insert::<Inbound>(PartitionId(1), 1);
        txn.commit(Lsn(1));
        checkpoints.push(PartitionId(0), store.freeze().unwrap(), mailbox.clone());
        engine.fail_flush_at(engine.flushes() + 1);
        while checkpointer.step() == Step::Worked {}
        let mut inputs = VecDeque::new();
        mailbox.take(&mut inputs);
        assert!(inputs.is_empty(), "no partition hears of it");
        assert_eq!(*told.lock().unwrap(), ["the tables cannot be written any more: the flush failed"]);
    }
}
