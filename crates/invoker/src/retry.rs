//! What follows a failed attempt: a pure function of the policy and the failure.
//!
//! Does not own: waiting (the timer wheel's), so that a retry survives a restart.

use surefoot_model::catalog::{OnMaxAttempts, RetryPolicy};
use surefoot_model::{Timestamp, Verdict};
use surefoot_protocol::Behavior;

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
    /// As the handler has it, in milliseconds; 0 means at once. Such an attempt is not counted (protocol reference 7.2).
    Handler(u64),
    /// As a peer that is overloaded has it, in milliseconds. It counts as any other failure.
    Peer(u64),
}

/// The verdict on an attempt that failed at `now`, after `counted` earlier failures that the policy has counted.
pub fn verdict(policy: &RetryPolicy, counted: u32, wish: Wish, now: Timestamp) -> Verdict {
    match wish.behavior {
        Behavior::Pause => return Verdict::Pause,
        Behavior::Fail => return Verdict::Fail,
        Behavior::Retry => {}
    }
    let delay_ms = match wish.delay {
        Delay::Handler(delay) => return Verdict::Retry { at: now.after_ms(delay), counted: false },
        Delay::Peer(delay) => delay,
        Delay::Policy => next_delay_ms(policy, counted),
    };
    if policy.max_attempts.is_some_and(|max| counted.saturating_add(1) >= max) {
        return match policy.on_max {
            OnMaxAttempts::Pause => Verdict::Pause,
            OnMaxAttempts::Kill => Verdict::Fail,
        };
    }
    Verdict::Retry { at: now.after_ms(delay_ms), counted: true }
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
        match verdict(policy, counted, Wish::default(), NOW) {
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
        assert_eq!(verdict(&policy(), 69, Wish::default(), NOW), Verdict::Pause);
        let kill = RetryPolicy { max_attempts: Some(1), on_max: OnMaxAttempts::Kill, ..policy() };
        assert_eq!(verdict(&kill, 0, Wish::default(), NOW), Verdict::Fail);
    }

    #[test]
    fn the_handlers_wish_comes_first_and_is_not_counted() {
        let wish = |behavior, delay| verdict(&policy(), 500, Wish { behavior, delay }, NOW);
        assert_eq!(wish(Behavior::Retry, Delay::Handler(0)), Verdict::Retry { at: NOW, counted: false });
        assert_eq!(wish(Behavior::Pause, Delay::Handler(5)), Verdict::Pause);
        assert_eq!(wish(Behavior::Fail, Delay::Policy), Verdict::Fail);
    }

    #[test]
    fn an_overloaded_peers_delay_is_taken_and_counted() {
        let wish = |counted| verdict(&policy(), counted, Wish { delay: Delay::Peer(7), ..Wish::default() }, NOW);
        assert_eq!(wish(0), Verdict::Retry { at: NOW.after_ms(7), counted: true });
        assert_eq!(wish(69), Verdict::Pause);
    }
}
