//! Attempts of one partition that timers have resumed and that have no answer yet: how many there may be at a time (rule O5).
//!
//! Owns: which attempts count, and the size of the window. It grows while answers come about as soon as they ever did, however long
//! that is, and shrinks once they queue, here or at the deployment: a call queues behind them. Does not own: which answers have queued
//! (`invoker`), which timers are due (`wheel`), or in which order attempts start (`starting`).

use std::collections::{BTreeMap, VecDeque};
use surefoot_invoker::{ANSWER_COUNTS, ANSWER_WINDOW_MIN, AnswerPace};
use surefoot_model::{Attempt, AttemptProgress, DeploymentId, InvocationId};

/// Attempts of a node that timers may have under way without an answer where answers do not queue; else [`ANSWER_WINDOW_MIN`].
const WINDOW_MAX: usize = 1_024;
/// Each partition's share of either is at least this.
const SHARE_MIN: usize = 2;
/// One without an answer counts for so many milliseconds.
const COUNTS_MS: u64 = ANSWER_COUNTS.as_millis() as u64;
/// A deployment that owes answers and has given none for so many milliseconds holds up no sleepers of others: what is resumed there does
/// not count. How many of its attempts run is bounded elsewhere.
const SILENT_MS: u64 = 1_000;

type Key = (InvocationId, Attempt);

pub(crate) struct ResumedAttempts {
    size: usize,
    size_min: usize,
    size_max: usize,
    /// Answers that did not queue since the window was last changed.
    in_time: usize,
    /// Since when each counts.
    counted: BTreeMap<Key, u64>,
    /// The same in order, with those that count no more among them.
    by_age: VecDeque<(u64, Key)>,
    deployments: BTreeMap<DeploymentId, Answers>,
}

/// How soon a deployment answers.
struct Answers {
    pace: AnswerPace,
    /// When the first attempt began after the last that has said anything.
    awaited_since_ms: Option<u64>,
}

/// What may be resumed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeRoom {
    /// So many, one at least.
    For(usize),
    /// None; and in how many milliseconds that changes of itself, where it does.
    None { until_ms: Option<u64> },
}

impl ResumedAttempts {
    /// Those of one of so many partitions of a node.
    pub(crate) fn new(partitions: u16) -> Self {
        let share = |size: usize| (size / usize::from(partitions.max(1))).max(SHARE_MIN);
        let (size_min, size_max) = (share(ANSWER_WINDOW_MIN), share(WINDOW_MAX));
        let (counted, by_age, deployments) = Default::default();
        Self { size: size_min, size_min, size_max, in_time: 0, counted, by_age, deployments }
    }

    /// A timer has resumed an attempt.
    pub(crate) fn resumed(&mut self, id: InvocationId, attempt: Attempt, now_ms: u64) {
        self.counted.insert((id, attempt), now_ms);
        self.by_age.push_back((now_ms, (id, attempt)));
    }

    /// An attempt begins on a deployment. Whether its answer is to be told with [`Self::answered`].
    pub(crate) fn begun(&mut self, id: InvocationId, attempt: Attempt, deployment: DeploymentId, now_ms: u64) -> bool {
        let counts = self.counted.contains_key(&(id, attempt));
        if counts && *self.answers_of(deployment, now_ms).awaited_since_ms.get_or_insert(now_ms) + SILENT_MS <= now_ms {
            self.counted.remove(&(id, attempt));
        }
        counts
    }

    /// The response to its request has begun.
    pub(crate) fn answered(&mut self, id: InvocationId, attempt: Attempt, deployment: DeploymentId, now_ms: u64) {
        let since_ms = self.counted.remove(&(id, attempt));
        let answers = self.answers_of(deployment, now_ms);
        answers.awaited_since_ms = None;
        let is_in_time = since_ms.is_some_and(|since_ms| answers.pace.is_in_time(now_ms - since_ms, now_ms));
        if is_in_time {
            self.in_time += 1;
            if self.in_time >= self.size {
                (self.size, self.in_time) = ((self.size + 1).min(self.size_max), 0);
            }
        } else {
            (self.size, self.in_time) = ((self.size - 1).max(self.size_min), 0);
        }
    }

    /// An attempt has reported something, be it that it failed.
    pub(crate) fn reported(&mut self, progress: &AttemptProgress) {
        self.counted.remove(&(progress.id, progress.attempt));
        if let Some(answers) = self.deployments.get_mut(&progress.pin.deployment) {
            answers.awaited_since_ms = None;
        }
    }

    /// An attempt is aborted, or may not begin for now.
    pub(crate) fn gone(&mut self, id: InvocationId, attempt: Attempt) {
        self.counted.remove(&(id, attempt));
    }

    /// What may be resumed while so many timers are on their way through the log.
    pub(crate) fn room(&mut self, firing: usize, now_ms: u64) -> ResumeRoom {
        while let Some((since_ms, key)) = self.by_age.front()
            && (since_ms + COUNTS_MS <= now_ms || !self.counted.contains_key(key))
        {
            self.counted.remove(key);
            self.by_age.pop_front();
        }
        match self.size.saturating_sub(firing + self.counted.len()) {
            0 => ResumeRoom::None { until_ms: self.by_age.front().map(|(since_ms, _)| since_ms + COUNTS_MS - now_ms) },
            room => ResumeRoom::For(room),
        }
    }

    /// Whether [`Self::room`] would find none.
    pub(crate) fn is_full(&self, now_ms: u64) -> bool {
        self.counted.values().filter(|since_ms| *since_ms + COUNTS_MS > now_ms).count() >= self.size
    }

    fn answers_of(&mut self, deployment: DeploymentId, now_ms: u64) -> &mut Answers {
        if !self.deployments.contains_key(&deployment) {
            // Nobody needs what is known of those that nothing was resumed on for long.
            self.deployments.retain(|_, answers| !answers.pace.is_forgotten(now_ms));
        }
        self.deployments.entry(deployment).or_insert_with(|| Answers { pace: AnswerPace::new(now_ms), awaited_since_ms: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::id;

    const WINDOW_MIN: usize = ANSWER_WINDOW_MIN;
    /// As `AnswerPace` has them.
    const QUEUED_MS: u64 = 10;
    const FASTEST_PERIOD_MS: u64 = 10_000;
    const HERE: DeploymentId = DeploymentId(1);
    const SILENT: DeploymentId = DeploymentId(2);

    /// Resumed attempts of the only partition, in virtual time.
    struct Script {
        attempts: ResumedAttempts,
        now_ms: u64,
        next: u64,
    }

    impl Script {
        fn new() -> Self {
            Self { attempts: ResumedAttempts::new(1), now_ms: 0, next: 0 }
        }

        /// Has as many resumed as may be, all of which begin; which ones.
        fn fill(&mut self, deployment: DeploymentId) -> Vec<u64> {
            let mut begun = Vec::new();
            while let ResumeRoom::For(room) = self.attempts.room(0, self.now_ms) {
                assert!(room > 0 && begun.len() < 2 * WINDOW_MAX, "it is bounded");
                self.next += 1;
                self.attempts.resumed(id(self.next.into()), Attempt(self.next), self.now_ms);
                assert!(self.attempts.begun(id(self.next.into()), Attempt(self.next), deployment, self.now_ms));
                begun.push(self.next);
            }
            assert!(self.attempts.is_full(self.now_ms));
            begun
        }

        fn answer(&mut self, begun: Vec<u64>) {
            begun.into_iter().for_each(|n| self.attempts.answered(id(n.into()), Attempt(n), HERE, self.now_ms));
        }

        /// So many windows, each of which is answered after so long.
        fn answers_in(&mut self, took_ms: u64, windows: usize) {
            for _ in 0..windows {
                let begun = self.fill(HERE);
                self.now_ms += took_ms;
                self.answer(begun);
            }
        }
    }

    #[test]
    fn the_window_grows_while_answers_do_not_queue_however_long_they_take_and_shrinks_once_they_do() {
        for took_ms in [1, 50] {
            let mut script = Script::new();
            script.answers_in(took_ms, 10);
            assert_eq!(script.attempts.size, WINDOW_MIN + 10);
            script.answers_in(took_ms + QUEUED_MS, 10);
            assert_eq!(script.attempts.size, WINDOW_MIN + 20, "a little later is in time");
            script.answers_in(took_ms + QUEUED_MS + 1, 1);
            assert_eq!(script.attempts.size, WINDOW_MIN);
            script.answers_in(took_ms, 2 * WINDOW_MAX);
            assert_eq!(script.attempts.size, WINDOW_MAX);
        }
    }

    #[test]
    fn what_was_fast_once_is_forgotten() {
        let mut script = Script::new();
        script.answers_in(1, 1);
        // It has moved.
        script.answers_in(50, 2 * FASTEST_PERIOD_MS as usize / 50 + 1);
        let size = script.attempts.size;
        script.answers_in(50, 10);
        assert_eq!(script.attempts.size, size + 10);
    }

    #[test]
    fn a_full_window_goes_on_when_one_is_gone_and_in_any_case_once_they_are_old() {
        let mut script = Script::new();
        let first = script.fill(HERE)[0];
        script.now_ms = COUNTS_MS - 1;
        assert_eq!(script.attempts.room(0, script.now_ms), ResumeRoom::None { until_ms: Some(1) });
        script.attempts.gone(id(first.into()), Attempt(first));
        assert_eq!(script.attempts.room(0, script.now_ms), ResumeRoom::For(1));
        assert_eq!(script.attempts.room(1, script.now_ms), ResumeRoom::None { until_ms: Some(1) }, "it is on its way");
        script.now_ms += 1;
        assert!(!script.attempts.is_full(script.now_ms));
        assert_eq!(script.fill(HERE).len(), WINDOW_MIN);
        script.now_ms += COUNTS_MS;
        script.answer(vec![first + 1]);
        assert_eq!(script.fill(HERE).len(), WINDOW_MIN, "an answer that comes as late has queued");
        assert!(script.attempts.by_age.len() <= 2 * WINDOW_MIN);
    }

    #[test]
    fn a_deployment_that_gives_no_answer_at_all_holds_up_no_other() {
        let mut script = Script::new();
        while script.now_ms < SILENT_MS {
            assert_eq!(script.fill(SILENT).len(), WINDOW_MIN);
            script.now_ms += COUNTS_MS;
        }
        let (silent, attempt) = (id(1_000_000), Attempt(1_000_000));
        for _ in 0..2 * WINDOW_MIN {
            script.attempts.resumed(silent, attempt, script.now_ms);
            assert!(script.attempts.begun(silent, attempt, SILENT, script.now_ms), "its answer is waited for");
        }
        assert_eq!(script.fill(HERE).len(), WINDOW_MIN);
        script.attempts.answered(silent, attempt, SILENT, script.now_ms);
        script.now_ms += COUNTS_MS;
        assert_eq!(script.fill(SILENT).len(), WINDOW_MIN, "it counts again");
    }

    #[test]
    fn partitions_share_the_window() {
        for (partitions, size) in [(1, 64), (16, 4), (4_096, SHARE_MIN)] {
            assert_eq!(ResumedAttempts::new(partitions).size, size);
        }
    }
}
