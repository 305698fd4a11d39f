//! Deployments that do not answer, or work on and on: what they may hold, how soon they are tried again, and how they go on.
//!
//! Owns: how many attempts of each deployment have no response yet, and how many are at work, the shares of the places that both
//! may hold (rule O5), that one attempt at a time tries a deployment that could not be connected to, while the others are held back,
//! that these do not go on all at once, and how many begin before others have brought something. Does not own: connections
//! (`transport`), retries, how soon an answer is in time (`pace`), that room (`parts`), or in which order those go on that are held
//! back (`partition`).

use crate::pace::{AnswerPace, COUNTS, WINDOW_MIN};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_model::DeploymentId;

/// After so many failures in a row to connect, a deployment is out of reach: nothing begins there but one try at a time.
const FAILURES_MIN: u32 = 3;
/// The first pause between tries; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Attempts of a deployment that are at work hold so many times the places that they leave to others, at most: a step may take hours, and
/// a service that such steps wait for may hang.
const AT_WORK_PER_LEFT: usize = 7;
/// How often a window is looked at for starts that count no more.
const WINDOW_LOOK: Duration = Duration::from_millis(20);
/// Attempts of a deployment that may begin before others are heard of, at first, and once so many were enough for a while.
const UNHEARD_MIN: usize = 256;
/// The same once a message of theirs has waited for room.
const UNHEARD_IN_CROWD: usize = 16;
/// That while.
const NOT_FULL_MAX: Duration = Duration::from_secs(1);
/// Where attempts are counted that no deployment serves: each fails at once.
pub(crate) const NO_DEPLOYMENT: DeploymentId = DeploymentId(0);
/// Attempts without a deployment that may be under way at a time. Each ends soon, but without this bound a backlog of thousands, left by a
/// deleted deployment, would begin before the calls of other deployments.
const UNSERVED_MAX: usize = 16;
/// A window that has held back nothing for so long is needed no more.
const WINDOW_UNUSED_MAX: Duration = Duration::from_secs(1);

/// All deployments that attempts are under way to, or that were out of reach.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<BTreeMap<DeploymentId, Known>>);

/// What an attempt finds that is to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlacesLeft {
    /// Places that are free, or may be had from attempts that only wait.
    pub(crate) count: usize,
    /// Attempts of its own deployment among the latter.
    pub(crate) own_idle: usize,
}

/// What came of a try to connect.
pub(crate) enum Tried {
    Connected,
    Failed(String),
    /// Nobody knows: the attempt was aborted meanwhile.
    GivenUp,
}

#[derive(Debug)]
struct Known {
    /// Attempts that have begun and not ended.
    begun: usize,
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
    /// Somebody tells when that is, and looks at the window: see [`Reach::until_next_look`].
    has_alarm: bool,
    /// Since it can be connected to again, until all that was held back has gone on. One that was always in reach has none.
    window: Option<Window>,
    intake: Intake,
}

/// How many attempts may have begun and not been heard of: each may bring a large message, and takes memory while that waits for room.
/// Once it is full it doubles, with those that are heard of.
#[derive(Debug)]
struct Intake {
    size: usize,
    /// It never grows.
    is_fixed: bool,
    /// Attempts that have begun and brought nothing yet.
    unheard: usize,
    /// So many of them make it grow by one each.
    growing: usize,
    /// Messages that wait for room.
    waiting: usize,
    /// Reports that do. Nothing begins meanwhile.
    reporting: usize,
    /// When it was full last.
    full_at: Duration,
}

impl Intake {
    fn of(deployment: DeploymentId) -> Self {
        let is_fixed = deployment == NO_DEPLOYMENT;
        let size = if is_fixed { UNSERVED_MAX } else { UNHEARD_MIN };
        Self { size, is_fixed, unheard: 0, growing: 0, waiting: 0, reporting: 0, full_at: Duration::ZERO }
    }

    fn room(&self) -> usize {
        if self.reporting > 0 { 0 } else { self.size.saturating_sub(self.unheard + self.waiting) }
    }

    fn begin(&mut self, now: Duration) {
        if self.full_at + NOT_FULL_MAX <= now {
            (self.size, self.growing) = (self.size.min(UNHEARD_MIN), 0);
        }
        self.unheard += 1;
        if self.unheard >= self.size && !self.is_fixed {
            (self.growing, self.full_at) = (self.size, now);
        }
    }

    fn heard(&mut self) {
        self.unheard -= 1;
        if self.growing > 0 {
            (self.size, self.growing) = (self.size + 1, self.growing - 1);
        }
    }

    /// A message waits for room.
    fn on_wait(&mut self) {
        (self.size, self.growing) = (UNHEARD_IN_CROWD, 0);
        self.waiting += 1;
    }

    fn is_as_new(&self) -> bool {
        self.unheard == 0 && self.waiting == 0 && self.reporting == 0
    }
}

/// How many starts of a deployment that was out of reach may have no answer. Those that were held back meanwhile, many thousands maybe,
/// would else go all at once, and the calls of others stand behind them. It grows with each answer that did not queue, so that it
/// doubles, until the first one has; from then on by one for each full window of them. Each late one shrinks it.
#[derive(Debug)]
struct Window {
    size: usize,
    /// No answer has queued yet.
    doubles: bool,
    /// Answers that did not queue since the window was last changed, once it doubles no more.
    in_time: usize,
    /// Starts without an answer that count, by when they began, and their sum.
    begun: BTreeMap<Duration, usize>,
    counted: usize,
    pace: AnswerPace,
    opened_at: Duration,
    /// When it held back a start last.
    held_at: Duration,
}

impl Window {
    fn new(now: Duration) -> Self {
        let (begun, pace) = (BTreeMap::new(), AnswerPace::new(now.as_millis() as u64));
        Self { size: WINDOW_MIN, doubles: true, in_time: 0, begun, counted: 0, pace, opened_at: now, held_at: now }
    }

    fn room(&self) -> usize {
        self.size.saturating_sub(self.counted)
    }

    fn begin(&mut self, now: Duration) {
        *self.begun.entry(now).or_default() += 1;
        self.counted += 1;
    }

    /// One that began then has its answer, or has ended without one.
    fn answered(&mut self, began: Duration, now: Duration) {
        if let Some(count) = self.begun.get_mut(&began) {
            *count -= 1;
            self.counted -= 1;
            if *count == 0 {
                self.begun.remove(&began);
            }
        }
        if began < self.opened_at {
            return;
        }
        let took = now.saturating_sub(began).as_millis() as u64;
        if !self.pace.is_in_time(took, now.as_millis() as u64) {
            (self.size, self.in_time, self.doubles) = ((self.size - 1).max(WINDOW_MIN), 0, false);
            return;
        }
        self.in_time += 1;
        if self.doubles || self.in_time >= self.size {
            (self.size, self.in_time) = (self.size + 1, 0);
        }
    }

    /// Those that are old count no more: so many begin in any case, however late the answers are.
    fn age(&mut self, now: Duration) {
        while let Some(oldest) = self.begun.first_entry().filter(|oldest| *oldest.key() + COUNTS <= now) {
            self.counted -= oldest.remove();
        }
    }
}

impl Known {
    fn new(deployment: DeploymentId) -> Self {
        Self {
            begun: 0,
            unanswered: 0,
            is_awaited: false,
            failures: 0,
            error: String::new(),
            next_try: Duration::ZERO,
            is_tried: false,
            has_alarm: false,
            window: None,
            intake: Intake::of(deployment),
        }
    }

    fn is_out_of_reach(&self) -> bool {
        self.failures >= FAILURES_MIN
    }

    fn may_be_tried(&self, now: Duration) -> bool {
        !self.is_tried && now >= self.next_try
    }

    /// Attempts that do not only wait: they give up their places to nobody. Those that were asked to suspend, and have not, are among them.
    fn at_work(&self, left: PlacesLeft) -> usize {
        self.begun.saturating_sub(left.own_idle)
    }

    /// How many more may begin.
    fn share(&self, left: PlacesLeft, now: Duration) -> usize {
        if self.is_out_of_reach() {
            return usize::from(self.may_be_tried(now));
        }
        let at_work = self.at_work(left);
        let unanswered = if self.unanswered == 0 { left.count.max(1) } else { left.count.saturating_sub(self.unanswered) };
        // With the n-th that begins, n places fewer are left, and n more are at work.
        let working =
            (left.count.saturating_mul(AT_WORK_PER_LEFT).saturating_add(1)).saturating_sub(at_work) / (AT_WORK_PER_LEFT + 1);
        let working = if at_work == 0 { working.max(1) } else { working };
        let share = unanswered.min(working);
        let share = self.window.as_ref().map_or(share, |window| share.min(window.room()));
        share.min(self.intake.room())
    }

    /// A start is held back.
    fn on_wait(&mut self, now: Duration) {
        self.is_awaited = true;
        if let Some(window) = self.window.as_mut().filter(|window| window.room() == 0) {
            window.held_at = now;
        }
    }

    /// Whether somebody is held back who may ask again by what the intake says.
    fn take_awaited_intake(&mut self) -> bool {
        self.intake.room() > 0 && !self.is_out_of_reach() && std::mem::take(&mut self.is_awaited)
    }

    /// Nothing has to be remembered of it.
    fn is_as_new(&self) -> bool {
        self.begun == 0 && self.unanswered == 0 && self.failures == 0 && self.window.is_none() && self.intake.is_as_new()
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

/// What follows from an attempt to connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Those who are held back may ask again now.
    pub(crate) is_awaited: bool,
    /// They are to be told later, see [`Reach::until_next_look`], which nobody does so far.
    pub(crate) wants_alarm: bool,
}

impl Reach {
    /// How many more attempts of a deployment may begin while others find so many places: as many may be without an answer as places
    /// are left to others. One deployment that does not answer holds half of them, n hold n of n + 1 parts, and the first of each
    /// always begins. [`AT_WORK_PER_LEFT`] times as many may be at work, whether they have an answer or not. Of one that is out of reach it
    /// is one try, and a window once that one succeeds. Where it is 0, [`Self::answered`], [`Self::connected`] and
    /// [`Self::until_next_look`] say when to ask again, or an attempt that ends or only waits does.
    pub(crate) fn share_left(&self, deployment: DeploymentId, left: PlacesLeft, now: Duration) -> usize {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return left.count.max(1) };
        let share = known.share(left, now);
        if share == 0 {
            known.on_wait(now);
        }
        share
    }

    /// The same for somebody who does not wait.
    pub(crate) fn share(&self, deployment: DeploymentId, left: PlacesLeft, now: Duration) -> usize {
        self.lock().get(&deployment).map_or(left.count.max(1), |known| known.share(left, now))
    }

    /// Forgets those that are no more, and that nothing is under way to.
    pub(crate) fn forget(&self, is_gone: impl Fn(DeploymentId) -> bool) {
        let is_under_way = |known: &Known| known.begun > 0 || known.unanswered > 0 || !known.intake.is_as_new();
        self.lock().retain(|deployment, known| is_under_way(known) || !is_gone(*deployment));
    }

    /// An attempt begins, and has no answer yet. `left` are the places that others find once it has its own. Where it has to wait,
    /// see [`Self::share_left`]; or more places are left. Its end is told by [`Self::ended`].
    pub(crate) fn try_begin(&self, deployment: DeploymentId, left: PlacesLeft, now: Duration) -> Leave {
        let mut deployments = self.lock();
        let known = deployments.entry(deployment).or_insert_with(|| Known::new(deployment));
        let leave = match (known.is_out_of_reach(), known.may_be_tried(now)) {
            (true, true) => Leave::Tries,
            (true, false) => Leave::Waits,
            (false, _) if known.unanswered > left.count => Leave::Waits,
            (false, _) if known.at_work(left) > left.count.saturating_mul(AT_WORK_PER_LEFT) => Leave::Waits,
            (false, _) if known.window.as_ref().is_some_and(|window| window.room() == 0) => Leave::Waits,
            (false, _) if known.intake.room() == 0 => Leave::Waits,
            (false, _) => Leave::Begins,
        };
        known.is_tried |= leave == Leave::Tries;
        known.begun += usize::from(leave != Leave::Waits);
        known.unanswered += usize::from(leave != Leave::Waits);
        match (leave, &mut known.window) {
            (Leave::Waits, _) => known.on_wait(now),
            (Leave::Begins, Some(window)) => window.begin(now),
            _ => {}
        }
        if leave != Leave::Waits {
            known.intake.begin(now);
        }
        leave
    }

    /// An attempt that began has ended, and gives its place back next: then those who are held back ask again. What else it counted in
    /// is told apart.
    pub(crate) fn ended(&self, deployment: DeploymentId) {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return };
        known.begun -= 1;
        if known.is_as_new() {
            deployments.remove(&deployment);
        }
    }

    /// An attempt that began then has its answer, or has ended without one. Whether somebody waits for that.
    pub(crate) fn answered(&self, deployment: DeploymentId, began: Duration, now: Duration) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        known.unanswered -= 1;
        if let Some(window) = &mut known.window {
            window.answered(began, now);
        }
        // Of one that is out of reach something else tells when to ask again.
        let is_awaited = !known.is_out_of_reach() && std::mem::take(&mut known.is_awaited);
        if known.is_as_new() {
            deployments.remove(&deployment);
        }
        is_awaited
    }

    /// A message of the deployment waits for room.
    pub(crate) fn on_part_waits(&self, deployment: DeploymentId) {
        let mut deployments = self.lock();
        deployments.entry(deployment).or_insert_with(|| Known::new(deployment)).intake.on_wait();
    }

    /// One waits no more. Whether somebody who is held back may ask again.
    pub(crate) fn on_part_waited(&self, deployment: DeploymentId) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        known.intake.waiting -= 1;
        known.take_awaited_intake()
    }

    /// A report of the deployment waits for room.
    pub(crate) fn on_report_waits(&self, deployment: DeploymentId) {
        self.lock().entry(deployment).or_insert_with(|| Known::new(deployment)).intake.reporting += 1;
    }

    /// One waits no more. Whether somebody who is held back may ask again.
    pub(crate) fn on_report_waited(&self, deployment: DeploymentId) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        known.intake.reporting -= 1;
        let is_awaited = known.take_awaited_intake();
        if known.is_as_new() {
            deployments.remove(&deployment);
        }
        is_awaited
    }

    /// An attempt has brought something, or nothing for a while, or has ended. Whether somebody who is held back may ask again.
    pub(crate) fn heard(&self, deployment: DeploymentId) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        known.intake.heard();
        let is_awaited = known.take_awaited_intake();
        if known.is_as_new() {
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
        let Some(known) = deployments.get_mut(&deployment) else { return News::default() };
        known.is_tried = false;
        let mut wants_alarm = false;
        match result {
            Tried::GivenUp => {}
            Tried::Connected => {
                if known.is_out_of_reach() {
                    tracing::info!(%deployment, "the deployment can be connected to again, and its attempts go on");
                    known.window = Some(Window::new(now));
                    wants_alarm = !std::mem::replace(&mut known.has_alarm, true);
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
                    known.window = None;
                    return News { is_awaited: false, wants_alarm: !std::mem::replace(&mut known.has_alarm, true) };
                }
            }
        }
        News { is_awaited: std::mem::take(&mut known.is_awaited), wants_alarm }
    }

    /// How long it is until somebody has to look again, with [`Self::take_awaited`]: whether a deployment may be tried again, or whether
    /// its window lets more begin. Nothing where it may be tried by now, or is as one that was always in reach.
    pub(crate) fn until_next_look(&self, deployment: DeploymentId, now: Duration) -> Option<Duration> {
        let mut deployments = self.lock();
        let known = deployments.get_mut(&deployment)?;
        if known.window.as_ref().is_some_and(|window| window.held_at + WINDOW_UNUSED_MAX <= now) {
            known.window = None;
        }
        let pause = match known.is_out_of_reach() {
            true => known.next_try.checked_sub(now).filter(|pause| !pause.is_zero()),
            false => known.window.as_ref().map(|_| WINDOW_LOOK),
        };
        known.has_alarm = pause.is_some();
        if known.is_as_new() {
            deployments.remove(&deployment);
        }
        pause
    }

    /// Looks at what has changed with time alone. Whether those who are held back may ask again.
    pub(crate) fn take_awaited(&self, deployment: DeploymentId, now: Duration) -> bool {
        let mut deployments = self.lock();
        let Some(known) = deployments.get_mut(&deployment) else { return false };
        let may_begin = match &mut known.window {
            Some(window) => {
                window.age(now);
                window.room() > 0
            }
            None => !known.is_out_of_reach() || known.may_be_tried(now),
        };
        may_begin && std::mem::take(&mut known.is_awaited)
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

    /// So many places, none of which an attempt has that only waits.
    fn left(count: usize) -> PlacesLeft {
        PlacesLeft { count, own_idle: 0 }
    }

    /// Lets attempts of a deployment begin as long as they may, with so many places free; how many did.
    fn flood(reach: &Reach, deployment: DeploymentId, free: usize) -> usize {
        (1..=free).take_while(|begun| reach.try_begin(deployment, left(free - begun), NOW) == Leave::Begins).count()
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
        let share_left = |places| reach.share_left(BAD, left(places), NOW);
        assert_eq!(share_left(8), 8);
        assert_eq!((flood(&reach, BAD, 8), share_left(4)), (4, 0));
        assert_eq!(share_left(6), 2, "others have left");
        let answered = || {
            reach.ended(BAD);
            reach.answered(BAD, NOW, NOW) | reach.heard(BAD)
        };
        assert!(answered(), "somebody waits for it");
        assert!(!answered());
        assert_eq!(share_left(4), 2);
        assert!(!answered() && !answered());
        assert!(reach.lock().is_empty());
    }

    /// Each has its answer at once, and works on.
    #[test]
    fn attempts_that_work_on_and_on_leave_places_to_others_however_many_deployments_have_them() {
        for (places, held) in [(1, [1, 0, 0]), (2, [1, 1, 0]), (8, [7, 1, 0]), (1_000, [875, 109, 14])] {
            let reach = Reach::default();
            let mut free = places;
            let holds = [1, 2, 3].map(DeploymentId).map(|deployment| {
                let begins = |free: usize| reach.try_begin(deployment, left(free - 1), NOW) == Leave::Begins;
                let before = free;
                while free > 0 && begins(free) {
                    assert!(!reach.answered(deployment, NOW, NOW) && !reach.heard(deployment));
                    free -= 1;
                }
                assert_eq!(reach.share_left(deployment, left(free), NOW) == 0, free > 0 || before > free, "as it was told");
                before - free
            });
            assert_eq!(holds, held, "of {places}");
        }
    }

    /// Callers that wait have to let what they call begin.
    #[test]
    fn attempts_that_only_wait_do_not_count_against_their_deployment_until_they_are_asked() {
        let reach = Reach::default();
        let of = |count, own_idle| PlacesLeft { count, own_idle };
        let answers = || reach.answered(BAD, NOW, NOW) | reach.heard(BAD);
        for free in (1..8).rev() {
            assert_eq!(reach.try_begin(BAD, left(free), NOW), Leave::Begins);
            assert!(!answers());
        }
        assert_eq!((reach.share_left(BAD, of(1, 0), NOW), reach.share_left(BAD, of(2, 1), NOW)), (0, 1), "one waits");
        assert_eq!(reach.share_left(BAD, of(8, 7), NOW), 7, "all of them do");
        assert_eq!(reach.share_left(BAD, of(1, 0), NOW), 0, "they were asked, and have not ended");
        assert_eq!(reach.try_begin(BAD, of(0, 0), NOW), Leave::Waits);
        assert_eq!(reach.try_begin(BAD, of(1, 1), NOW), Leave::Begins);
        assert!(answers(), "somebody was held back");
        (0..8).for_each(|_| reach.ended(BAD));
        assert!(reach.lock().is_empty());
    }

    #[test]
    fn one_that_cannot_be_connected_to_is_tried_by_one_at_a_time_and_the_others_are_held_back() {
        let reach = Reach::default();
        let ms = Duration::from_millis;
        let begin_at = |now| reach.try_begin(BAD, left(1_000), ms(now));
        let failed_at = |now| reach.connected(BAD, Tried::Failed("refused".to_owned()), ms(now));
        // All began before anybody knew.
        let first: Vec<_> = (0..5).map(|_| begin_at(0)).collect();
        assert_eq!(first, [Leave::Begins; 5]);
        assert!((0..4).all(|_| reach.try_connect(BAD, NOW).is_ok()));
        let nothing = News::default();
        let (ask_again, set_alarm) = (News { is_awaited: true, ..nothing }, News { wants_alarm: true, ..nothing });
        let news: Vec<_> = (0..4).map(|_| failed_at(0)).collect();
        assert_eq!(news, [nothing, nothing, set_alarm, nothing], "one alarm");
        assert_eq!(reach.try_connect(BAD, ms(199)), Err("refused".to_owned()), "one that is late");
        assert_eq!((begin_at(199), reach.share_left(BAD, left(1_000), ms(199))), (Leave::Waits, 0));
        assert!(!reach.take_awaited(BAD, ms(199)));
        assert_eq!((reach.until_next_look(BAD, ms(150)), reach.until_next_look(BAD, ms(200))), (Some(ms(50)), None));
        assert!(reach.take_awaited(BAD, ms(200)), "it was looked at in vain");
        assert_eq!(reach.share_left(BAD, left(1_000), ms(200)), 1);
        assert_eq!((begin_at(200), begin_at(200)), (Leave::Tries, Leave::Waits), "one tries");
        assert_eq!(reach.connected(BAD, Tried::GivenUp, ms(250)), ask_again);
        assert_eq!(begin_at(250), Leave::Tries);
        assert_eq!((failed_at(250), failed_at(250)), (set_alarm, nothing));
        assert_eq!(reach.error(BAD).as_deref(), Some("refused"));
        assert_eq!((begin_at(1_049), begin_at(1_050)), (Leave::Waits, Leave::Tries), "the pauses grow");
        assert_eq!(reach.connected(BAD, Tried::Connected, ms(1_100)), ask_again, "the alarm is set");
        assert_eq!((begin_at(1_100), reach.error(BAD)), (Leave::Begins, None));
        assert!((0..9).all(|_| !reach.answered(BAD, ms(1_100), ms(1_100)) && !reach.heard(BAD)));
        (0..9).for_each(|_| reach.ended(BAD));
        assert_eq!(reach.until_next_look(BAD, ms(1_100) + WINDOW_UNUSED_MAX), None);
        assert!(reach.lock().is_empty(), "nothing is kept of a deployment that answers");
    }

    /// A deployment that was out of reach and has just been connected to, with one that tries, in virtual time.
    struct Reached {
        reach: Reach,
        now: Duration,
    }

    const PLACES: usize = 10_000;

    impl Reached {
        fn new() -> Self {
            let reach = Reach::default();
            let attempts = 0..FAILURES_MIN;
            assert!(attempts.clone().all(|_| reach.try_begin(BAD, left(PLACES), NOW) == Leave::Begins));
            for _ in attempts {
                reach.connected(BAD, Tried::Failed(String::new()), NOW);
                reach.ended(BAD);
                reach.answered(BAD, NOW, NOW);
                reach.heard(BAD);
            }
            let now = PAUSE_MAX;
            assert_eq!(reach.until_next_look(BAD, now), None);
            assert_eq!(
                (reach.try_begin(BAD, left(PLACES), now), reach.try_begin(BAD, left(PLACES), now)),
                (Leave::Tries, Leave::Waits)
            );
            let news = reach.connected(BAD, Tried::Connected, now);
            assert_eq!(news, News { is_awaited: true, wants_alarm: true });
            reach.heard(BAD);
            Self { reach, now }
        }

        /// Has as many begin as may; how many. All of them bring something at once.
        fn fill(&self) -> usize {
            let begins = || self.reach.try_begin(BAD, left(PLACES), self.now) == Leave::Begins;
            let begun = (0..PLACES).take_while(|_| begins()).inspect(|_| _ = self.reach.heard(BAD)).count();
            assert_eq!(self.reach.share_left(BAD, left(PLACES), self.now), 0);
            begun
        }

        /// A full window, which is answered after so long; its size.
        fn answers_in(&mut self, took: Duration) -> usize {
            let (began, begun) = (self.now, self.fill());
            self.now += took;
            let told = (0..begun).filter(|_| self.reach.answered(BAD, began, self.now)).count();
            assert_eq!(told, 1, "once, until somebody asks in vain again");
            begun
        }

        /// As the alarm does; whether the others were told.
        fn look(&mut self) -> bool {
            let pause = self.reach.until_next_look(BAD, self.now).expect("a window is looked at");
            self.now += pause;
            self.reach.take_awaited(BAD, self.now)
        }
    }

    /// Thousands began at once, and the calls of others came behind all of them.
    #[test]
    fn what_was_held_back_goes_on_in_a_window_that_doubles_until_answers_queue() {
        let (fast, late) = (Duration::from_millis(50), Duration::from_millis(61));
        let mut reached = Reached::new();
        let sizes = [(); 4].map(|()| reached.answers_in(fast));
        assert_eq!(sizes, [WINDOW_MIN, 2 * WINDOW_MIN, 4 * WINDOW_MIN, 8 * WINDOW_MIN]);
        let size = reached.answers_in(late);
        assert_eq!(size, 16 * WINDOW_MIN);
        let sizes = [(); 3].map(|()| reached.answers_in(fast));
        assert_eq!(sizes, [WINDOW_MIN, WINDOW_MIN + 1, WINDOW_MIN + 2], "never less than the first one, and slowly from then on");
    }

    #[test]
    fn a_window_goes_on_with_time_though_nothing_is_answered() {
        let mut reached = Reached::new();
        let since = reached.now;
        assert_eq!(reached.fill(), WINDOW_MIN);
        while !reached.look() {
            assert!(reached.now < since + COUNTS);
        }
        assert_eq!(reached.now, since + COUNTS);
        assert_eq!(reached.fill(), WINDOW_MIN);
        // Their share of the places bounds them all the same.
        let share_left = |places| reached.reach.share_left(BAD, left(places), reached.now + COUNTS);
        reached.reach.take_awaited(BAD, reached.now + COUNTS);
        let unanswered = 1 + 2 * WINDOW_MIN;
        assert_eq!((share_left(unanswered), share_left(unanswered + 1), share_left(PLACES)), (0, 1, WINDOW_MIN));
    }

    #[test]
    fn a_window_that_holds_back_nothing_is_over_and_so_is_one_that_is_out_of_reach_again() {
        let mut reached = Reached::new();
        reached.fill();
        let (held_at, failed) = (reached.now, || Tried::Failed(String::new()));
        while reached.reach.until_next_look(BAD, reached.now).is_some() {
            reached.look();
        }
        assert_eq!(reached.now, held_at + WINDOW_UNUSED_MAX);
        assert_eq!(reached.reach.share_left(BAD, left(PLACES), reached.now), UNHEARD_MIN, "as of one that was always in reach");

        let reached = Reached::new();
        (0..FAILURES_MIN)
            .for_each(|_| assert_eq!(reached.reach.connected(BAD, failed(), reached.now), News::default(), "it has its alarm"));
        assert_eq!(reached.reach.until_next_look(BAD, reached.now), Some(PAUSE_MIN));
        assert!(!reached.reach.take_awaited(BAD, reached.now));
    }
}
