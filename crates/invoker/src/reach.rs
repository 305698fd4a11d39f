//! Deployments that do not answer: what they may hold, and how soon they are tried again.
//!
//! Owns: how many attempts of each deployment have no response yet, the share of the places that they may hold (rule O5), and for
//! how long a deployment that could not be connected to is not tried again. Does not own: connections (`transport`), retries, or
//! in which order those go on that are held back (`partition`).

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
    /// A start was held back because of them.
    is_awaited: bool,
    /// Failures in a row to connect.
    failures: u32,
    error: String,
    /// When it may be tried again, and whether somebody does so now.
    next_try: Duration,
    is_tried: bool,
}

impl Reach {
    /// How many more attempts of a deployment may begin while others find so many places: as many may be without an answer as places
    /// are left to others. One deployment that does not answer holds half of them, n hold n of n + 1 parts, and the first of each
    /// always begins. Where it is 0, [`Self::answered`] says when to ask again.
    pub(crate) fn share_left(&self, deployment: DeploymentId, places_left: usize) -> usize {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return places_left.max(1) };
        let share = if known.unanswered == 0 { places_left.max(1) } else { places_left.saturating_sub(known.unanswered) };
        known.is_awaited |= share == 0;
        share
    }

    /// An attempt begins, and has no answer yet. `places_left` are those that others find once it has its own. False: it has to wait
    /// until [`Self::answered`] says that one more may, or until more places are left.
    pub(crate) fn try_begin(&self, deployment: DeploymentId, places_left: usize) -> bool {
        let mut deployments = self.lock();
        let known = deployments.entry(deployment).or_default();
        let may_begin = known.unanswered <= places_left;
        known.unanswered += usize::from(may_begin);
        known.is_awaited |= !may_begin;
        may_begin
    }

    /// An attempt has its answer, or has ended without one. Whether somebody waits for that.
    pub(crate) fn answered(&self, deployment: DeploymentId) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        known.unanswered -= 1;
        let is_awaited = std::mem::take(&mut known.is_awaited);
        if known.unanswered == 0 && known.failures == 0 {
            deployments.remove(&deployment);
        }
        is_awaited
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

    /// Lets attempts of a deployment begin as long as they may, with so many places free; how many did.
    fn flood(reach: &Reach, deployment: DeploymentId, free: usize) -> usize {
        (1..=free).take_while(|begun| reach.try_begin(deployment, free - begun)).count()
    }

    #[test]
    fn deployments_that_do_not_answer_leave_places_to_others_however_many_they_are() {
        for (places, held) in [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [2, 1, 0]), (100, [50, 25, 13])] {
            let reach = Reach::default();
            let mut free = places;
            let holds = [1, 2, 3].map(|number| {
                let begun = flood(&reach, DeploymentId(number), free);
                free -= begun;
                begun
            });
            assert_eq!(holds, held, "of {places}");
        }
    }

    #[test]
    fn one_more_begins_once_one_has_its_answer_or_others_find_more_places() {
        let reach = Reach::default();
        assert_eq!(reach.share_left(BAD, 8), 8);
        assert_eq!((flood(&reach, BAD, 8), reach.share_left(BAD, 4)), (4, 0));
        assert_eq!(reach.share_left(BAD, 6), 2, "others have left");
        assert!(reach.answered(BAD), "somebody waits for it");
        assert!(!reach.answered(BAD));
        assert_eq!(reach.share_left(BAD, 4), 2);
        assert!(!reach.answered(BAD) && !reach.answered(BAD));
        assert!(reach.lock().is_empty());
    }

    #[test]
    fn one_that_cannot_be_connected_to_is_tried_by_one_at_a_time() {
        let reach = Reach::default();
        let ms = Duration::from_millis;
        let try_at = |now| reach.try_connect(BAD, now).is_ok();
        assert!(reach.try_begin(BAD, 0));
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
