//! Who stands in line for room that all deployments share: of each one at a time (rule O8).
//!
//! Owns: whose turn it is among the attempts of one deployment, and among the bodies that come for it at the edges. One of them at a time
//! stands in the line of a semaphore, which is in the order of coming: however many of one deployment wait, another deployment stands behind
//! one of them. Does not own: the room, or how much of it each takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use surefoot_model::DeploymentId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns for one kind of room.
#[derive(Debug, Default)]
pub struct Lines(Mutex<BTreeMap<DeploymentId, DeploymentLine>>);

#[derive(Debug)]
struct DeploymentLine {
    /// One permit: who has it stands in the line for the room.
    turn: Arc<Semaphore>,
    /// Those who want it or have it.
    waiting: usize,
}

/// One that waits for room, until dropped.
struct InLine<'a> {
    lines: &'a Lines,
    deployment: DeploymentId,
}

impl Lines {
    /// Takes room. Where there is none, others of the deployment wait until this has some.
    pub(crate) async fn take(&self, deployment: DeploymentId, room: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
        self.in_turn(deployment, room.clone().acquire_many_owned(permits)).await.expect("the semaphore is never closed")
    }

    /// Waits for room once it is this one's turn.
    pub async fn in_turn<T>(&self, deployment: DeploymentId, wait: impl Future<Output = T>) -> T {
        let (_line, turn) = self.enter(deployment);
        let _turn = turn.acquire_owned().await;
        wait.await
    }

    fn enter(&self, deployment: DeploymentId) -> (InLine<'_>, Arc<Semaphore>) {
        let mut lines = self.lock();
        let new = || DeploymentLine { turn: Arc::new(Semaphore::new(1)), waiting: 0 };
        let line = lines.entry(deployment).or_insert_with(new);
        line.waiting += 1;
        (InLine { lines: self, deployment }, line.turn.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeploymentId, DeploymentLine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        let Some(line) = lines.get_mut(&self.deployment) else { return };
        line.waiting -= 1;
        if line.waiting == 0 {
            lines.remove(&self.deployment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Take<'a> = Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + 'a>>;

    fn poll(take: &mut Take<'_>) -> Option<OwnedSemaphorePermit> {
        match take.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    /// A report stood behind those of all attempts that another deployment had.
    #[test]
    fn of_each_deployment_one_stands_in_line_and_all_come_in_their_order() {
        let (lines, room) = (Lines::default(), Arc::new(Semaphore::new(4)));
        let mut held = room.clone().try_acquire_many_owned(4).ok();
        let deployments = [1, 1, 1, 1, 2, 2, 3].map(DeploymentId);
        let mut takes = deployments.map(|deployment| Box::pin(lines.take(deployment, &room, 4)) as Take<'_>);
        let mut waiting: Vec<_> = takes.iter_mut().enumerate().collect();
        waiting.retain_mut(|(_, take)| poll(take).is_none());
        assert_eq!((waiting.len(), lines.lock().len()), (7, 3));
        let mut order = Vec::new();
        while !waiting.is_empty() {
            held = None;
            waiting.retain_mut(|(n, take)| match poll(take) {
                None => true,
                Some(permit) => {
                    held = Some(permit);
                    order.push(*n);
                    false
                }
            });
            // Those whose turn it is stand in the line by now.
            waiting.iter_mut().for_each(|(_, take)| assert!(poll(take).is_none()));
        }
        drop(held);
        assert_eq!(order, [0, 4, 6, 1, 5, 2, 3]);
        assert_eq!(room.available_permits(), 4);
        drop(takes);
        assert!(lines.lock().is_empty(), "nobody waits");
    }

    #[test]
    fn who_is_gone_keeps_nobody_of_its_deployment_waiting() {
        let (lines, room) = (Lines::default(), Arc::new(Semaphore::new(1)));
        let held = room.clone().try_acquire_owned();
        let mut first: Take<'_> = Box::pin(lines.take(DeploymentId(1), &room, 1));
        let mut second: Take<'_> = Box::pin(lines.take(DeploymentId(1), &room, 1));
        assert!(poll(&mut first).is_none() && poll(&mut second).is_none());
        drop((first, held));
        assert!(poll(&mut second).is_some());
    }
}
