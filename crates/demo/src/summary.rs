//! The figures of a run, told so that a reader can check them.
//!
//! Owns: the source of each figure, and whether the run held. Does not own: the rules for faults (`surefoot_sdk_tests::judge`).

use crate::broker::Sent;
use crate::events::Events;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};
use surefoot_client::admin::Invocation;
use surefoot_sdk_tests::judge::{Fault, Verdict};

/// How many events a fault names.
const NAMED_MAX: usize = 10;
const RULE: &str = "───────────────────────────────────────────────────────────────────────────────";
const SECOND_MS: i64 = 1_000;

const FAULTS: [(Fault, &str); 6] = [
    (Fault::Lost, "events lost"),
    (Fault::Twice, "applied twice"),
    (Fault::Disordered, "out of order"),
    (Fault::StepRepeated, "finished steps again"),
    (Fault::ResultChanged, "results changed"),
    (Fault::Unknown, "never sent"),
];

/// What a run came to.
pub(crate) struct Figures<'a> {
    pub(crate) events: Events,
    /// Events that were sent in a second.
    pub(crate) rate: u64,
    pub(crate) sent: &'a Sent,
    /// As the server has committed them.
    pub(crate) invocations: &'a [Invocation],
    pub(crate) server_kills: usize,
    pub(crate) handlers_kills: usize,
    pub(crate) verdict: &'a Verdict,
}

impl Figures<'_> {
    /// Whether every event was sent, became one invocation that succeeded, and has no fault.
    pub(crate) fn hold(&self) -> bool {
        let all = self.events.count();
        self.sent.acknowledged() == all && self.succeeded() == all && self.invocations.len() == all && self.verdict.holds()
    }

    /// The block that ends the run.
    pub(crate) fn told(&self) -> String {
        let mut text = format!("\n{RULE}\n");
        let mut row = |name: &str, number: String, note: &str| {
            let line = format!("  {name:<21} {number:>9}   {note}");
            let _ = writeln!(text, "{}", line.trim_end());
        };
        let keys = grouped(self.events.keys());
        row("events in", grouped(self.sent.acknowledged()), &format!("for {keys} keys, acknowledged by the broker"));
        row("invocations done", grouped(self.succeeded()), "as the server has committed");
        row("attempts", grouped(self.attempts()), "likewise; a kill cuts off those that run, and they start anew");
        let kills = format!("processes: the server {}, the handlers {}", times(self.server_kills), times(self.handlers_kills));
        row("killed with -9", grouped(self.server_kills + self.handlers_kills), &kills);
        for (fault, name) in FAULTS {
            let count = self.verdict.count(fault);
            if count > 0 || !matches!(fault, Fault::ResultChanged | Fault::Unknown) {
                row(name, grouped(count), "");
            }
        }
        let again = grouped(self.verdict.repeated);
        row(
            "steps run",
            grouped(self.verdict.executions),
            &format!("{again} of them again, killed before their result was durable: no fault"),
        );
        if let Some(pace) = self.pace() {
            let best = format!("events a second, sent at {}; {} in the best second", self.rate, grouped(pace.best_second));
            row("throughput", grouped(pace.per_second), &best);
            let [p50, p99, slowest] = [pace.p50, pace.p99, pace.slowest].map(millis);
            row("event to completion", p50, &format!("p50; p99 {p99}, slowest {slowest}"));
        }
        text.push_str(RULE);
        text.push('\n');
        text.push_str(&self.sentence());
        text
    }

    fn sentence(&self) -> String {
        if self.hold() {
            return "Held: every event was applied exactly once, in the order of its key.".to_owned();
        }
        let mut text = "DID NOT HOLD.".to_owned();
        for (fault, name) in FAULTS {
            let events: Vec<&str> = self.verdict.events(fault).take(NAMED_MAX).collect();
            if !events.is_empty() {
                let more = self.verdict.count(fault) - events.len();
                let more = if more > 0 { format!(" and {} more", grouped(more)) } else { String::new() };
                let _ = write!(text, "\n  {name}: {}{more}", events.join(", "));
            }
        }
        let open: Vec<&Invocation> = self.invocations.iter().filter(|invocation| !is_success(invocation)).collect();
        for invocation in open.iter().take(NAMED_MAX) {
            let error = invocation.last_error.as_ref().map(|error| format!(", {error}")).unwrap_or_default();
            let _ = write!(text, "\n  {} {} is {}{error}", invocation.id, invocation.target, invocation.status);
        }
        let (all, found) = (self.events.count(), self.invocations.len());
        if found != all {
            let _ = write!(text, "\n  {} invocations for {} events", grouped(found), grouped(all));
        }
        text
    }

    fn succeeded(&self) -> usize {
        self.invocations.iter().filter(|invocation| is_success(invocation)).count()
    }

    fn attempts(&self) -> usize {
        self.invocations.iter().filter_map(|invocation| usize::try_from(invocation.attempt?).ok()).sum()
    }

    /// From the times that the server has committed. None: something did not become an invocation that succeeded, or a time cannot
    /// be read.
    fn pace(&self) -> Option<Pace> {
        let mut by_key: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for invocation in self.invocations.iter().filter(|invocation| is_success(invocation)) {
            let at: jiff::Timestamp = invocation.modified_at.as_ref()?.parse().ok()?;
            by_key.entry(invocation.key.as_deref()?).or_default().push(at.as_millisecond());
        }
        // One at a time and in order: the n-th completion of a key is that of its n-th event.
        by_key.values_mut().for_each(|times| times.sort_unstable());
        let mut spans = Vec::new();
        for n in 0..self.events.count() {
            let sent = self.sent.at(n)?.duration_since(UNIX_EPOCH).ok()?;
            let completed = *by_key.get(self.events.user(n).as_str())?.get(n / self.events.keys())?;
            spans.push((i64::try_from(sent.as_millis()).ok()?, completed));
        }
        Some(Pace::of(&spans))
    }
}

fn is_success(invocation: &Invocation) -> bool {
    invocation.status == "completed" && invocation.last_error.is_none()
}

#[derive(Debug, PartialEq, Eq)]
struct Pace {
    /// From the first event to the last completion.
    per_second: usize,
    /// The most completions within one second.
    best_second: usize,
    p50: Duration,
    p99: Duration,
    slowest: Duration,
}

impl Pace {
    /// Of events that were sent and completed at these times, in milliseconds.
    fn of(spans: &[(i64, i64)]) -> Self {
        let mut waits: Vec<i64> = spans.iter().map(|(sent, completed)| (completed - sent).max(0)).collect();
        waits.sort_unstable();
        let mut completions: Vec<i64> = spans.iter().map(|(_, completed)| *completed).collect();
        completions.sort_unstable();
        let mut best_second = 0;
        let mut from = 0;
        for (to, at) in completions.iter().enumerate() {
            while completions[from] <= at - SECOND_MS {
                from += 1;
            }
            best_second = best_second.max(to + 1 - from);
        }
        let first = spans.iter().map(|(sent, _)| *sent).min().unwrap_or_default();
        let took_ms = completions.last().map_or(0, |last| last - first).max(1);
        let per_second = usize::try_from(spans.len() as i64 * SECOND_MS / took_ms).unwrap_or_default();
        let [p50, p99, slowest] = [0.5, 0.99, 1.0].map(|share| quantile(&waits, share));
        Self { per_second, best_second, p50, p99, slowest }
    }
}

/// The smallest of the sorted `waits` that this share of them does not exceed.
fn quantile(waits: &[i64], share: f64) -> Duration {
    let rank = (waits.len() as f64 * share).ceil() as usize;
    let wait = waits.get(rank.saturating_sub(1)).copied().unwrap_or_default();
    Duration::from_millis(wait.unsigned_abs())
}

/// `1,234 ms`, and from ten seconds on `12.3 s`.
pub(crate) fn millis(time: Duration) -> String {
    let ms = time.as_millis();
    if ms < 10_000 {
        format!("{} ms", grouped(usize::try_from(ms).unwrap_or(usize::MAX)))
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

fn times(count: usize) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{} times", grouped(count)),
    }
}

/// `1,234,567`
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_times_have_their_unit() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(millis(Duration::from_millis(1_234)), "1,234 ms");
        assert_eq!(millis(Duration::from_millis(12_340)), "12.3 s");
    }

    #[test]
    fn the_pace_is_that_of_the_committed_times() {
        // Sent every 10 ms, done 5 ms later; the last two wait for a second.
        let mut spans: Vec<(i64, i64)> = (0..98).map(|n| (n * 10, n * 10 + 5)).collect();
        spans.extend([(980, 2_000), (990, 2_001)]);
        let pace = Pace::of(&spans);
        assert_eq!((pace.p50, pace.slowest), (Duration::from_millis(5), Duration::from_millis(1_020)));
        assert_eq!(pace.p99, Duration::from_millis(1_011));
        assert_eq!(pace.per_second, 49);
        assert_eq!(pace.best_second, 98);
        assert_eq!(Pace::of(&[(7, 7)]).per_second, 1_000);
    }
}
