//! What follows a failed attempt: a pure function of the policy and the failure.
//!
//! Does not own: waiting (the timer wheel's), so that a retry survives a restart.

use surefoot_model::catalog::{OnMaxAttempts, RetryPolicy};
use surefoot_model::{Timestamp, Verdict};
use surefoot_protocol::Behavior;

/// Attempts of one invocation are at least so far apart: one that fails at once must not spin.
const DELAY_MS_MIN: u64 = 20;
/// A peer puts off an attempt for no longer.
const PEER_DELAY_MS_MAX: u64 = 60 * 60 * 1_000;
/// A delay is spread by a fifth, so that what failed together does not come back together.
const SPREAD: f64 = 0.2;

/// What a failure itself says about the next attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub behavior: Behavior,
    pub delay: Delay,
}

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delay {
    /// As the policy has it.
    #[default]
    Policy,
    /// As the handler has it, in milliseconds, but for `DELAY_MS_MIN`. Such an attempt is not counted (protocol reference 7.2).
    Handler(u64),
    /// As a peer that is overloaded has it, in milliseconds, up to `PEER_DELAY_MS_MAX`. It counts as any other failure.
    Peer(u64),
    /// As the policy has it. No handler can have begun the attempt, so that it is not counted.
    Unreached,
}

/// The verdict on an attempt that failed at `now`, after `counted` earlier failures that the policy has counted. `chance` is a number
/// drawn at random.
pub fn verdict(policy: &RetryPolicy, counted: u32, wish: Wish, now: Timestamp, chance: u64) -> Verdict {
    match wish.behavior {
        Behavior::Pause => return Verdict::Pause,
        Behavior::Fail => return Verdict::Fail,
        Behavior::Retry => {}
    }
    let delay_ms = match wish.delay {
        Delay::Handler(delay) => return Verdict::Retry { at: now.after_ms(delay.max(DELAY_MS_MIN)), counted: false },
        // Never earlier than it asks for.
        Delay::Peer(delay) => spread(delay, 0.0, chance).min(PEER_DELAY_MS_MAX),
        Delay::Policy | Delay::Unreached => spread(next_delay_ms(policy, counted), -SPREAD, chance),
    };
    let at = now.after_ms(delay_ms.max(DELAY_MS_MIN));
    if wish.delay == Delay::Unreached {
        return Verdict::Retry { at, counted: false };
    }
    if policy.max_attempts.is_some_and(|max| counted.saturating_add(1) >= max) {
        return match policy.on_max {
            OnMaxAttempts::Pause => Verdict::Pause,
            OnMaxAttempts::Kill => Verdict::Fail,
        };
    }
    Verdict::Retry { at, counted: true }
}

/// A delay times a factor between 1 + `from` and 1 + [`SPREAD`].
fn spread(delay_ms: u64, from: f64, chance: u64) -> u64 {
    let part = chance as f64 / u64::MAX as f64;
    (delay_ms as f64 * (1.0 + from + (SPREAD - from) * part)).round() as u64
}

/// Initial interval times factor to the power of the failures before, up to the largest interval.
fn next_delay_ms(policy: &RetryPolicy, counted: u32) -> u64 {
    let exponent = i32::try_from(counted).unwrap_or(i32::MAX);
    let delay = policy.initial_interval_ms as f64 * policy.factor.max(1.0).powi(exponent);
    if delay < policy.max_interval_ms as f64 { delay as u64 } else { policy.max_interval_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    /// The chance that leaves a policy's delay as it is.
    const EVEN: u64 = u64::MAX / 2;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            initial_interval_ms: 500,
            factor: 2.0,
            max_interval_ms: 60_000,
            max_attempts: Some(70),
            on_max: OnMaxAttempts::Pause,
        }
    }

    fn delay(policy: &RetryPolicy, counted: u32) -> u64 {
        match verdict(policy, counted, Wish::default(), NOW, EVEN) {
            Verdict::Retry { at, counted: true } => at.0 - NOW.0,
            other => panic!("a counted retry: {other:?}"),
        }
    }

    #[test]
    fn delays_double_up_to_the_largest_interval() {
        let delays: Vec<u64> = (0..9).map(|counted| delay(&policy(), counted)).collect();
        assert_eq!(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(delay(&RetryPolicy { max_attempts: None, ..policy() }, u32::MAX), 60_000);
    }

    #[test]
    fn the_last_attempt_pauses_or_fails_as_the_policy_says() {
        assert_eq!(verdict(&policy(), 69, Wish::default(), NOW, EVEN), Verdict::Pause);
        let kill = RetryPolicy { max_attempts: Some(1), on_max: OnMaxAttempts::Kill, ..policy() };
        assert_eq!(verdict(&kill, 0, Wish::default(), NOW, EVEN), Verdict::Fail);
    }

    #[test]
    fn the_handlers_wish_comes_first_and_is_not_counted() {
        let wish = |behavior, delay| verdict(&policy(), 500, Wish { behavior, delay }, NOW, EVEN);
        assert_eq!(wish(Behavior::Retry, Delay::Handler(0)), Verdict::Retry { at: NOW.after_ms(DELAY_MS_MIN), counted: false });
        assert_eq!(wish(Behavior::Retry, Delay::Handler(77)), Verdict::Retry { at: NOW.after_ms(77), counted: false });
        assert_eq!(wish(Behavior::Pause, Delay::Handler(5)), Verdict::Pause);
        assert_eq!(wish(Behavior::Fail, Delay::Policy), Verdict::Fail);
    }

    #[test]
    fn an_overloaded_peers_delay_is_taken_and_counted() {
        let wish = |counted, delay, chance| {
            verdict(&policy(), counted, Wish { delay: Delay::Peer(delay), ..Wish::default() }, NOW, chance)
        };
        let after = |ms| Verdict::Retry { at: NOW.after_ms(ms), counted: true };
        assert_eq!(wish(0, 7_000, 0), after(7_000));
        assert_eq!(wish(0, 7_000, u64::MAX), after(8_400));
        assert_eq!(wish(0, u64::MAX, 0), after(PEER_DELAY_MS_MAX));
        assert_eq!(wish(69, 7, 0), Verdict::Pause);
    }

    #[test]
    fn an_attempt_that_reached_no_handler_is_not_counted_and_never_the_last() {
        let unreached = Wish { delay: Delay::Unreached, ..Wish::default() };
        let kill = RetryPolicy { max_attempts: Some(1), on_max: OnMaxAttempts::Kill, ..policy() };
        for (policy, counted, delay) in [(policy(), 0, 500), (policy(), 500, 60_000), (kill, 0, 500)] {
            let expected = Verdict::Retry { at: NOW.after_ms(delay), counted: false };
            assert_eq!(verdict(&policy, counted, unreached, NOW, EVEN), expected);
        }
    }

    #[test]
    fn what_failed_together_does_not_come_back_together() {
        let at = |chance| verdict(&policy(), 0, Wish::default(), NOW, chance);
        let after = |ms| Verdict::Retry { at: NOW.after_ms(ms), counted: true };
        assert_eq!([at(0), at(u64::MAX / 4), at(u64::MAX)], [after(400), after(450), after(600)]);
    }

    #[test]
    fn no_policy_spins_or_waits_for_nonsense() {
        for factor in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY, 1.0] {
            let policy = RetryPolicy { initial_interval_ms: 0, factor, ..policy() };
            assert_eq!(delay(&policy, 3), DELAY_MS_MIN);
        }
        assert_eq!(delay(&RetryPolicy { factor: f64::INFINITY, ..policy() }, 3), 60_000);
    }
}
