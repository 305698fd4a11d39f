//! Deployments that cannot be connected to, and how soon they are tried again.
//!
//! Owns: for how long a deployment that could not be connected to is not tried again, as long as attempts of it have no response.
//! Does not own: connections (`transport`), or retries.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_model::DeploymentId;

/// After so many failures in a row to connect, attempts fail at once until the next try.
const FAILURES_MIN: u32 = 3;
/// The first pause between tries; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// All deployments that attempts are under way to, or that were out of reach.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<BTreeMap<DeploymentId, Known>>);

/// What came of a try to connect.
pub(crate) enum Tried {
    Connected,
    Failed(String),
    /// Nobody knows: the attempt was aborted meanwhile.
    GivenUp,
}

#[derive(Debug, Default)]
struct Known {
    /// Attempts that have no response yet.
    unanswered: usize,
    /// Failures in a row to connect.
    failures: u32,
    error: String,
    /// When it may be tried again, and whether somebody does so now.
    next_try: Duration,
    is_tried: bool,
}

impl Reach {
    /// An attempt begins, and has no answer yet.
    pub(crate) fn begin(&self, deployment: DeploymentId) {
        self.lock().entry(deployment).or_default().unanswered += 1;
    }

    /// An attempt has its answer, or has ended without one.
    pub(crate) fn answered(&self, deployment: DeploymentId) {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return };
        known.unanswered -= 1;
        if known.unanswered == 0 && known.failures == 0 {
            deployments.remove(&deployment);
        }
    }

    /// Leave to connect, to be followed by [`Self::connected`]. **Errors**: why the last one who tried could not, where that was a
    /// moment ago or somebody tries now.
    pub(crate) fn try_connect(&self, deployment: DeploymentId, now: Duration) -> Result<(), String> {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment).filter(|known| known.failures >= FAILURES_MIN) else { return Ok(()) };
        if known.is_tried || now < known.next_try {
            return Err(known.error.clone());
        }
        known.is_tried = true;
        Ok(())
    }

    /// What came of it.
    pub(crate) fn connected(&self, deployment: DeploymentId, result: Tried, now: Duration) {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return };
        known.is_tried = false;
        match result {
            Tried::GivenUp => {}
            Tried::Connected => known.failures = 0,
            Tried::Failed(error) => {
                known.failures = known.failures.saturating_add(1);
                let doublings = known.failures.saturating_sub(FAILURES_MIN).min(8);
                known.next_try = now + (PAUSE_MIN * (1 << doublings)).min(PAUSE_MAX);
                known.error = error;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeploymentId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: DeploymentId = DeploymentId(1);

    #[test]
    fn one_that_cannot_be_connected_to_is_tried_by_one_at_a_time() {
        let reach = Reach::default();
        let ms = Duration::from_millis;
        let try_at = |now| reach.try_connect(BAD, now).is_ok();
        reach.begin(BAD);
        for _ in 0..FAILURES_MIN {
            assert!(try_at(ms(0)));
            reach.connected(BAD, Tried::Failed("refused".to_owned()), ms(0));
        }
        assert_eq!(reach.try_connect(BAD, ms(99)), Err("refused".to_owned()));
        assert!(try_at(ms(100)) && !try_at(ms(100)), "one tries");
        reach.connected(BAD, Tried::GivenUp, ms(150));
        assert!(try_at(ms(150)));
        reach.connected(BAD, Tried::Failed("refused".to_owned()), ms(150));
        assert!(!try_at(ms(349)) && try_at(ms(350)), "the pauses grow");
        reach.connected(BAD, Tried::Connected, ms(400));
        assert!(try_at(ms(400)) && try_at(ms(400)));
        reach.answered(BAD);
        assert!(reach.lock().is_empty(), "nothing is kept of a deployment that answers");
    }
}
