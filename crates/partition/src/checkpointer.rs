//! Checkpoints, one at a time, on a thread of their own (rule C1).
//!
//! Owns: the queue between workers and the thread that writes. Does not own: what is written (`storage`), or when (`housekeeping`).

use crate::mailbox::{Input, Mailbox};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use surefoot_env::{Step, Steps, Wake};
use surefoot_model::PartitionId;
use surefoot_storage::Checkpoint;

/// The sending half; cheap to clone. At most one job per partition is in the queue.
#[derive(Clone)]
pub(crate) struct Checkpoints {
    queue: Arc<Mutex<VecDeque<Job>>>,
    wake: Wake,
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
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(Job { partition, checkpoint, reply });
        self.wake.wake();
    }
}

/// The receiving half: one disk operation per step.
pub(crate) struct Checkpointer {
    checkpoints: Checkpoints,
    current: Option<Job>,
}

impl Checkpointer {
    pub(crate) fn new(checkpoints: Checkpoints) -> Self {
        Self { checkpoints, current: None }
    }
}

impl Steps for Checkpointer {
    fn step(&mut self) -> Step {
        let next = || self.checkpoints.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(mut job) = self.current.take().or_else(next) else { return Step::Idle };
        let result = match job.checkpoint.step() {
            Ok(None) => {
                self.current = Some(job);
                return Step::Worked;
            }
            Ok(Some(done)) => Ok(done),
            Err(error) => Err(error.to_string()),
        };
        job.reply.push(Input::Checkpointed { partition: job.partition, result });
        Step::Worked
    }
}
