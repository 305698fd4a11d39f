//! Deployments that do not answer: what they may hold, and how soon they are tried again.
//!
//! Owns: how many attempts of each deployment have no response yet, the share of the places that they may hold (rule O5), and that
//! one attempt at a time tries a deployment that could not be connected to, while the others are held back. Does not own: connections
//! (`transport`), retries, or in which order those go on that are held back (`partition`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_model::DeploymentId;

/// After so many failures in a row to connect, a deployment is out of reach: nothing begins there but one try at a time.
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
    /// Somebody tells when that is: see [`Reach::until_next_try`].
    has_alarm: bool,
}

impl Known {
    fn is_out_of_reach(&self) -> bool {
        self.failures >= FAILURES_MIN
    }

    fn may_be_tried(&self, now: Duration) -> bool {
        !self.is_tried && now >= self.next_try
    }

    /// How many more may begin.
    fn share(&self, places_left: usize, now: Duration) -> usize {
        match self.unanswered {
            _ if self.is_out_of_reach() => usize::from(self.may_be_tried(now)),
            0 => places_left.max(1),
            unanswered => places_left.saturating_sub(unanswered),
        }
    }
}

/// Whether an attempt may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Begins,
    /// It is the one that tries whether the deployment can be connected to: what came of it is told by [`Reach::connected`].
    Tries,
    /// It is held back.
    Waits,
}

/// What those who are held back hear of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Nothing,
    /// They may ask again now.
    AskAgain,
    /// The deployment is out of reach: they are to be told once it may be tried again, which nobody does so far.
    SetAlarm,
}

impl Reach {
    /// How many more attempts of a deployment may begin while others find so many places: as many may be without an answer as places
    /// are left to others. One deployment that does not answer holds half of them, n hold n of n + 1 parts, and the first of each
    /// always begins. Of one that is out of reach it is one try. Where it is 0, [`Self::answered`], [`Self::connected`] and
    /// [`Self::until_next_try`] say when to ask again.
    pub(crate) fn share_left(&self, deployment: DeploymentId, places_left: usize, now: Duration) -> usize {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return places_left.max(1) };
        let share = known.share(places_left, now);
        known.is_awaited |= share == 0;
        share
    }

    /// The same for somebody who does not wait.
    pub(crate) fn share(&self, deployment: DeploymentId, places_left: usize, now: Duration) -> usize {
        self.lock().get(&deployment).map_or(places_left.max(1), |known| known.share(places_left, now))
    }

    /// Forgets those that are no more, and that nothing is under way to.
    pub(crate) fn forget(&self, is_gone: impl Fn(DeploymentId) -> bool) {
        self.lock().retain(|deployment, known| known.unanswered > 0 || !is_gone(*deployment));
    }

    /// An attempt begins, and has no answer yet. `places_left` are those that others find once it has its own. Where it has to wait,
    /// see [`Self::share_left`]; or more places are left.
    pub(crate) fn try_begin(&self, deployment: DeploymentId, places_left: usize, now: Duration) -> Leave {
        let mut deployments = self.lock();
        let known = deployments.entry(deployment).or_default();
        let leave = match (known.is_out_of_reach(), known.may_be_tried(now)) {
            (true, true) => Leave::Tries,
            (true, false) => Leave::Waits,
            (false, _) if known.unanswered <= places_left => Leave::Begins,
            (false, _) => Leave::Waits,
        };
        known.is_tried |= leave == Leave::Tries;
        known.unanswered += usize::from(leave != Leave::Waits);
        known.is_awaited |= leave == Leave::Waits;
        leave
    }

    /// An attempt has its answer, or has ended without one. Whether somebody waits for that.
    pub(crate) fn answered(&self, deployment: DeploymentId) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        known.unanswered -= 1;
        // Of one that is out of reach something else tells when to ask again.
        let is_awaited = !known.is_out_of_reach() && std::mem::take(&mut known.is_awaited);
        if known.unanswered == 0 && known.failures == 0 {
            deployments.remove(&deployment);
        }
        is_awaited
    }

    /// Leave to connect for one that began before the deployment was known to be out of reach, to be followed by [`Self::connected`].
    /// **Errors**: why the last one who tried could not, where that was a moment ago or somebody tries now.
    pub(crate) fn try_connect(&self, deployment: DeploymentId, now: Duration) -> Result<(), String> {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment).filter(|known| known.is_out_of_reach()) else { return Ok(()) };
        if !known.may_be_tried(now) {
            return Err(known.error.clone());
        }
        known.is_tried = true;
        Ok(())
    }

    /// What came of it.
    pub(crate) fn connected(&self, deployment: DeploymentId, result: Tried, now: Duration) -> News {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return News::Nothing };
        known.is_tried = false;
        match result {
            Tried::GivenUp => {}
            Tried::Connected => {
                if known.is_out_of_reach() {
                    tracing::info!(%deployment, "the deployment can be connected to again, and its attempts go on");
                }
                known.failures = 0;
            }
            Tried::Failed(error) => {
                known.failures = known.failures.saturating_add(1);
                let doublings = known.failures.saturating_sub(FAILURES_MIN).min(8);
                known.next_try = now + (PAUSE_MIN * (1 << doublings)).min(PAUSE_MAX);
                if known.failures == FAILURES_MIN {
                    tracing::info!(%deployment, error, "the deployment cannot be connected to: its attempts wait while one at a time tries");
                }
                known.error = error;
                if known.is_out_of_reach() {
                    return if std::mem::replace(&mut known.has_alarm, true) { News::Nothing } else { News::SetAlarm };
                }
            }
        }
        if std::mem::take(&mut known.is_awaited) { News::AskAgain } else { News::Nothing }
    }

    /// How long it is until a deployment may be tried again; nothing where it may be by now, or has been connected to.
    pub(crate) fn until_next_try(&self, deployment: DeploymentId, now: Duration) -> Option<Duration> {
        let mut deployments = self.lock();
        let known = deployments.get_mut(&deployment)?;
        known.has_alarm = known.is_out_of_reach() && now < known.next_try;
        known.has_alarm.then(|| known.next_try - now)
    }

    /// Why a deployment is out of reach, if it is.
    pub(crate) fn error(&self, deployment: DeploymentId) -> Option<String> {
        let deployments = self.lock();
        deployments.get(&deployment).filter(|known| known.is_out_of_reach()).map(|known| known.error.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeploymentId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: DeploymentId = DeploymentId(1);

    const NOW: Duration = Duration::ZERO;

    /// Lets attempts of a deployment begin as long as they may, with so many places free; how many did.
    fn flood(reach: &Reach, deployment: DeploymentId, free: usize) -> usize {
        (1..=free).take_while(|begun| reach.try_begin(deployment, free - begun, NOW) == Leave::Begins).count()
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
        let share_left = |places| reach.share_left(BAD, places, NOW);
        assert_eq!(share_left(8), 8);
        assert_eq!((flood(&reach, BAD, 8), share_left(4)), (4, 0));
        assert_eq!(share_left(6), 2, "others have left");
        assert!(reach.answered(BAD), "somebody waits for it");
        assert!(!reach.answered(BAD));
        assert_eq!(share_left(4), 2);
        assert!(!reach.answered(BAD) && !reach.answered(BAD));
        assert!(reach.lock().is_empty());
    }

    #[test]
    fn one_that_cannot_be_connected_to_is_tried_by_one_at_a_time_and_the_others_are_held_back() {
        let reach = Reach::default();
        let ms = Duration::from_millis;
        let begin_at = |now| reach.try_begin(BAD, 1_000, ms(now));
        let failed_at = |now| reach.connected(BAD, Tried::Failed("refused".to_owned()), ms(now));
        // All began before anybody knew.
        let first: Vec<_> = (0..5).map(|_| begin_at(0)).collect();
        assert_eq!(first, [Leave::Begins; 5]);
        assert!((0..4).all(|_| reach.try_connect(BAD, NOW).is_ok()));
        let news: Vec<_> = (0..4).map(|_| failed_at(0)).collect();
        assert_eq!(news, [News::Nothing, News::Nothing, News::SetAlarm, News::Nothing], "one alarm");
        assert_eq!(reach.try_connect(BAD, ms(199)), Err("refused".to_owned()), "one that is late");
        assert_eq!((begin_at(199), reach.share_left(BAD, 1_000, ms(199))), (Leave::Waits, 0));
        assert_eq!((reach.until_next_try(BAD, ms(150)), reach.until_next_try(BAD, ms(200))), (Some(ms(50)), None));
        assert_eq!(reach.share_left(BAD, 1_000, ms(200)), 1);
        assert_eq!((begin_at(200), begin_at(200)), (Leave::Tries, Leave::Waits), "one tries");
        assert_eq!(reach.connected(BAD, Tried::GivenUp, ms(250)), News::AskAgain);
        assert_eq!(begin_at(250), Leave::Tries);
        assert_eq!((failed_at(250), failed_at(250)), (News::SetAlarm, News::Nothing));
        assert_eq!(reach.error(BAD).as_deref(), Some("refused"));
        assert_eq!((begin_at(1_049), begin_at(1_050)), (Leave::Waits, Leave::Tries), "the pauses grow");
        assert_eq!(reach.connected(BAD, Tried::Connected, ms(1_100)), News::AskAgain);
        assert_eq!((begin_at(1_100), reach.error(BAD)), (Leave::Begins, None));
        assert!((0..9).all(|_| !reach.answered(BAD)));
        assert!(reach.lock().is_empty(), "nothing is kept of a deployment that answers");
    }
}
