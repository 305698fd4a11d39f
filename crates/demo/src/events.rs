//! What is sent: which user posts what, in which order.
//!
//! Owns: names and order of the events as pure functions of their number, and the bounds that the mock broker sets. Does not own:
//! sending.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The mock cluster keeps 100,000 messages or 5 MiB of a Kafka partition, and silently drops older ones: this many stay far below.
pub(crate) const EVENTS_MAX: u64 = 50_000;
pub(crate) const KEYS_MAX: u64 = 10_000;
/// The feed of a user is one value, which every post reads and writes whole.
const EVENTS_PER_KEY_MAX: usize = 500;
/// Of so many posts one is still pending when the handler looks first, and makes it sleep.
const SLOW_EVERY: usize = 10;

/// The events of a run, numbered from 0 in the order in which they are sent. Users take turns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Events {
    count: usize,
    keys: usize,
}

impl Events {
    /// **Errors**: numbers that do not fit each other.
    pub(crate) fn new(count: usize, keys: usize) -> Result<Self> {
        ensure!(keys <= count, "{count} events are too few for {keys} keys: give more --events or fewer --keys");
        let most = count.div_ceil(keys);
        ensure!(
            most <= EVENTS_PER_KEY_MAX,
            "{most} events per key are more than the {EVENTS_PER_KEY_MAX} that its feed has room for: give --keys {} or more",
            count.div_ceil(EVENTS_PER_KEY_MAX)
        );
        Ok(Self { count, keys })
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// The key of event `n`.
    pub(crate) fn user(&self, n: usize) -> String {
        format!("user-{}", n % self.keys)
    }

    /// The id that event `n` carries: its user, and its place among the user's events.
    pub(crate) fn post(&self, n: usize) -> String {
        format!("{}/{}", self.user(n), n / self.keys)
    }

    /// The value of event `n`, as the user feed takes it.
    pub(crate) fn value(&self, n: usize) -> Value {
        json!({ "id": self.post(n), "content": format!("post {} of {}", n / self.keys, self.user(n)) })
    }

    /// Whether the post of event `n` is pending when the handler looks first.
    pub(crate) fn is_slow(&self, n: usize) -> bool {
        (n % self.keys + n / self.keys) % SLOW_EVERY == SLOW_EVERY - 1
    }

    /// One of `partitions`, always the same for one key.
    pub(crate) fn partition(&self, n: usize, partitions: usize) -> usize {
        n % self.keys % partitions
    }

    /// The events of each key, in their order.
    pub(crate) fn by_key(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for n in 0..self.count {
            all.entry(self.user(n)).or_default().push(self.post(n));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PARTITIONS;

    /// What the mock cluster keeps of one Kafka partition.
    const MOCK_BYTES: usize = 5 << 20;
    /// What the header of a Kafka batch takes, and the fields of a record beside key and value; each record may be a batch.
    const OVERHEAD_BYTES: usize = 61 + 20;

    #[test]
    fn the_largest_run_stays_in_the_mock_brokers_memory() {
        for keys in [100, 101, 103, 5_000, 9_999, 10_000] {
            let events = Events::new(EVENTS_MAX as usize, keys).unwrap();
            let mut bytes = [0; PARTITIONS];
            for n in 0..events.count() {
                let record = events.user(n).len() + events.value(n).to_string().len() + OVERHEAD_BYTES;
                bytes[events.partition(n, PARTITIONS)] += record;
            }
            assert!(bytes.into_iter().all(|bytes| bytes < MOCK_BYTES / 2), "{keys} keys: {bytes:?}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_say_what_would() {
        let refused = |count, keys| Events::new(count, keys).unwrap_err().to_string();
        assert!(refused(10, 11).contains("fewer --keys"));
        assert!(refused(5_000, 9).contains("--keys 10"));
        assert!(Events::new(5_000, 10).is_ok() && Events::new(1, 1).is_ok());
    }

    #[test]
    fn keys_take_turns_and_each_has_slow_posts() {
        let events = Events::new(10, 4).unwrap();
        assert_eq!(events.by_key()["user-1"], ["user-1/0", "user-1/1", "user-1/2"]);
        assert_eq!(events.by_key()["user-3"], ["user-3/0", "user-3/1"]);
        let events = Events::new(4 * SLOW_EVERY, 4).unwrap();
        let slow: Vec<String> = (0..events.count()).filter(|n| events.is_slow(*n)).map(|n| events.post(n)).collect();
        assert_eq!(slow, ["user-3/6", "user-2/7", "user-1/8", "user-0/9"]);
    }
}
