//! One Kafka partition while a session has it.
//!
//! Owns: its progress, the Kafka records that wait, and the watch that notices when it stands still. Does not own: the order among
//! several, or what is done about one that stands still.

use crate::position::Tracker;
use crate::source::KafkaRecord;
use crate::status::{SharedTracker, lock};
use metrics::{Counter, Gauge, counter, gauge};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surefoot_model::StreamId;
use surefoot_model::catalog::Subscription;

/// A stream that should move and does not is reported after this long, and its session starts over after [`STANDS_MAX`].
pub(crate) const STANDS_TOLD: Duration = Duration::from_secs(10);
pub(crate) const STANDS_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Lane {
    pub(crate) stream: StreamId,
    pub(crate) tracker: SharedTracker,
    /// The position that is stored.
    pub(crate) stored: i64,
    /// The offset after the newest Kafka record, as last heard.
    pub(crate) high: i64,
    /// Why no broker says where it ends, if none does.
    pub(crate) unknown: Option<String>,
    /// Set while assigned.
    pub(crate) generation: Option<u64>,
    /// Fetched, not yet appended.
    queue: VecDeque<KafkaRecord>,
    queue_bytes: usize,
    /// As much of it is not applied as may be: it takes nothing more, and its source keeps it back.
    pub(crate) is_full: bool,
    /// The offset after the last one that came.
    read: i64,
    /// Everything below was read, or has no Kafka record.
    reached: i64,
    /// Where it stood when it was last seen to move, and when that was.
    moved: (i64, Duration),
    /// Whether the present standstill has been told.
    pub(crate) is_standing: bool,
    pub(crate) requests: Counter,
    pub(crate) lag: Gauge,
    pub(crate) stands: Gauge,
}

impl Lane {
    pub(crate) fn new(subscription: &Subscription, stream: StreamId, start: i64, high: i64) -> Self {
        let labels = [
            ("subscription", subscription.id.to_string()),
            ("topic", subscription.topic.to_string()),
            ("partition", stream.partition.to_string()),
        ];
        Self {
            stream,
            tracker: Arc::new(Mutex::new(Tracker::new(start))),
            stored: start,
            high,
            unknown: None,
            generation: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            is_full: false,
            read: start,
            reached: start,
            moved: (start, Duration::ZERO),
            is_standing: false,
            requests: counter!("surefoot_kafka_ingress_requests_total", &labels),
            lag: gauge!("surefoot_kafka_ingress_consumer_lag", &labels),
            stands: gauge!("surefoot_kafka_ingress_standing_still", &labels),
        }
    }

    /// It is this member's from now on; says where to fetch.
    pub(crate) fn assigned(&mut self, generation: u64, now: Duration) -> i64 {
        let start = lock(&self.tracker).next();
        self.generation = Some(generation);
        (self.read, self.reached, self.moved) = (start, start, (start, now));
        start
    }

    /// It is no longer. Gives back what waited: Kafka records and their bytes.
    pub(crate) fn revoked(&mut self) -> (usize, usize) {
        let waited = self.waiting();
        self.generation = None;
        self.is_full = false;
        self.queue.clear();
        self.queue_bytes = 0;
        self.set_standing(false);
        self.lag.set(0);
        waited
    }

    /// Kafka records that wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.queue.len(), self.queue_bytes)
    }

    pub(crate) fn push(&mut self, record: KafkaRecord) {
        self.read = self.read.max(record.offset + 1);
        self.queue_bytes += record.bytes();
        self.queue.push_back(record);
    }

    /// It could not be appended yet.
    pub(crate) fn push_back_in(&mut self, record: KafkaRecord) {
        self.queue_bytes += record.bytes();
        self.queue.push_front(record);
    }

    pub(crate) fn pop(&mut self) -> Option<KafkaRecord> {
        let record = self.queue.pop_front()?;
        self.queue_bytes -= record.bytes();
        Some(record)
    }

    /// The source has handed over everything below this offset.
    pub(crate) fn at_end(&mut self, offset: i64) {
        self.reached = self.reached.max(offset);
    }

    /// For how long it should have moved and did not. `may_move`: nothing on this side keeps it from that.
    pub(crate) fn stands_for(&mut self, now: Duration, may_move: bool) -> Duration {
        let is_behind = self.high > self.read.max(self.reached);
        let should_move = may_move && is_behind && self.generation.is_some() && !self.is_full && self.unknown.is_none();
        if !should_move || self.read != self.moved.0 {
            self.moved = (self.read, now);
        }
        now.saturating_sub(self.moved.1)
    }

    pub(crate) fn set_standing(&mut self, is_standing: bool) {
        self.is_standing = is_standing;
        self.stands.set(f64::from(u8::from(is_standing)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn lane() -> Lane {
        let subscription = testing::subscription();
        let stream = StreamId { subscription: subscription.id, epoch: 0, topic: 7, partition: 0 };
        let mut lane = Lane::new(&subscription, stream, 5, 5);
        lane.assigned(1, Duration::ZERO);
        lane
    }

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_is_behind_and_free_to_move_and_does_not_stands_still() {
        let mut lane = lane();
        assert_eq!(lane.stands_for(seconds(9), true), Duration::ZERO, "it is at its end");
        lane.high = 8;
        lane.stands_for(seconds(10), true);
        assert_eq!(lane.stands_for(seconds(14), true), seconds(5));
        // One Kafka record comes: it moves.
        lane.push(testing::record(1, 0, 5));
        lane.stands_for(seconds(15), true);
        assert_eq!(lane.stands_for(seconds(18), true), seconds(3));
        // The rest are offsets without Kafka records, as where a transaction ended.
        lane.at_end(8);
        assert_eq!(lane.stands_for(seconds(60), true), Duration::ZERO);
    }

    #[test]
    fn what_is_kept_back_does_not_stand_still() {
        for change in [
            (|lane: &mut Lane| lane.is_full = true) as fn(&mut Lane),
            |lane| lane.generation = None,
            |lane| lane.unknown = Some("it has no leader".to_owned()),
        ] {
            let mut lane = lane();
            lane.high = 8;
            change(&mut lane);
            lane.stands_for(seconds(1), true);
            assert_eq!(lane.stands_for(seconds(99), true), Duration::ZERO);
        }
        let mut lane = lane();
        lane.high = 8;
        assert_eq!(lane.stands_for(seconds(99), false), Duration::ZERO);
    }
}
