//! The messages of one partition to others: sent in order, acknowledged once they are durable there (rule O1).
//!
//! Owns: how far each destination's queue is, and how much of it is in flight. What is for a partition that has stopped stays in
//! its rows: a term that begins after the repair sends it. Does not own: the rows (`machine` writes and deletes them), or the log.

use crate::settings::Mutant;
use std::collections::{BTreeMap, BTreeSet};
use surefoot_machine::{Outbox, OutboxKey, Outboxes, ROWS_MAX, StateError};
use surefoot_model::{Event, Message, Outcome, PartitionId};
use surefoot_storage::Reader;

/// Messages read for one destination per turn.
const SEND_MESSAGES: u64 = 256;
/// Bytes of them beyond which no further one is read.
const SEND_BYTES: usize = 1 << 20;
/// Messages to one destination that may be sent and not yet durable there.
const IN_FLIGHT_MAX: u64 = 1_024;
/// What a message takes beside its payload.
const MESSAGE_BYTES: usize = 256;
/// Messages to one partition that may be durable and not yet acknowledged.
const ACK_MESSAGES_MAX: u64 = 256;
/// Messages that one record acknowledges: their rows go with it (rule M9).
const ACKED_PER_RECORD: u64 = ROWS_MAX as u64;
/// Acknowledgements wait this long for company, in milliseconds.
const ACK_DELAY_MS: u64 = 200;

/// The queues of one partition, by destination.
pub(crate) struct OutboxSender {
    from: PartitionId,
    queues: BTreeMap<PartitionId, OutboxQueue>,
    /// Queues with something to send or to acknowledge.
    unsettled: BTreeSet<PartitionId>,
    mutant: Mutant,
}

/// How far one queue is: acked <= durable <= sent <= wanted.
#[derive(Debug, Default)]
struct OutboxQueue {
    wanted: u64,
    sent: u64,
    durable: u64,
    acked: u64,
    /// When what is durable is acknowledged, by the monotonic clock in milliseconds.
    ack_due_ms: Option<u64>,
}

impl OutboxQueue {
    /// The last message that may be sent now.
    fn sendable(&self) -> u64 {
        self.wanted.min(self.durable + IN_FLIGHT_MAX).min(self.sent + SEND_MESSAGES)
    }

    fn is_settled(&self) -> bool {
        self.acked == self.wanted
    }
}

/// Messages for one destination's log, in order.
pub(crate) struct MessageBatch {
    pub(crate) to: PartitionId,
    /// The sequence number of the last one.
    pub(crate) up_to: u64,
    pub(crate) events: Vec<Event>,
}

/// What is due: messages for other partitions, and acknowledgements for this one.
pub(crate) struct OutboxTurn {
    pub(crate) batches: Vec<MessageBatch>,
    pub(crate) acks: Vec<Event>,
    /// When the next acknowledgement is due, by the monotonic clock.
    pub(crate) next_ack_ms: Option<u64>,
    /// There is more to send at once.
    pub(crate) is_behind: bool,
}

impl OutboxSender {
    pub(crate) fn new(from: PartitionId, mutant: Mutant) -> Self {
        Self { from, queues: BTreeMap::new(), unsettled: BTreeSet::new(), mutant }
    }

    /// A term of this process begins: what earlier ones may not have sent is sent again.
    pub(crate) fn begin_term(&mut self, reader: &Reader<'_>) -> Result<(), StateError> {
        self.end_term();
        if self.mutant == Mutant::ForgetOutbox {
            return Ok(());
        }
        for (to, row) in reader.scan::<Outboxes>(&PartitionId(0), None, usize::from(u16::MAX) + 1)? {
            let (wanted, sent) = (row.last, row.acked);
            let queue = OutboxQueue { wanted, sent, durable: sent, acked: sent, ack_due_ms: None };
            if !queue.is_settled() {
                self.unsettled.insert(to);
            }
            self.queues.insert(to, queue);
        }
        Ok(())
    }

    /// Sends nothing any more.
    pub(crate) fn end_term(&mut self) {
        self.queues.clear();
        self.unsettled.clear();
    }

    pub(crate) fn on_send(&mut self, to: PartitionId, sequence: u64) {
        let queue = self.queues.entry(to).or_default();
        queue.wanted = queue.wanted.max(sequence);
        self.unsettled.insert(to);
    }

    /// Messages up to this one are durable at their destination.
    pub(crate) fn on_durable(&mut self, to: PartitionId, up_to: u64, monotonic_ms: u64) {
        // A term that has ended, or one before this, may have sent it.
        let Some(queue) = self.queues.get_mut(&to) else { return };
        queue.durable = queue.durable.max(up_to);
        queue.sent = queue.sent.max(up_to);
        queue.ack_due_ms.get_or_insert(monotonic_ms + ACK_DELAY_MS);
        self.unsettled.insert(to);
    }

    /// `has_stopped` says whether a destination takes nothing in this life of the node: then nothing is sent to it, and nothing
    /// acknowledged.
    pub(crate) fn turn(
        &mut self,
        reader: &Reader<'_>,
        monotonic_ms: u64,
        has_stopped: impl Fn(PartitionId) -> bool,
    ) -> Result<OutboxTurn, StateError> {
        let mut turn = OutboxTurn { batches: Vec::new(), acks: Vec::new(), next_ack_ms: None, is_behind: false };
        for to in std::mem::take(&mut self.unsettled) {
            if has_stopped(to) && self.mutant != Mutant::SendToStopped {
                continue; // for as long as this node lives
            }
            let Some(queue) = self.queues.get_mut(&to) else { continue };
            assert!(
                queue.acked <= queue.durable && queue.durable <= queue.sent && queue.sent <= queue.wanted,
                "a message is sent, then durable, then acknowledged (rule O1): {queue:?} to {to}"
            );
            if queue.sent < queue.sendable() {
                turn.batches.push(read_batch(reader, self.from, to, queue)?);
                turn.is_behind |= queue.sent < queue.sendable();
            }
            turn.acks.extend(acknowledge(to, queue, monotonic_ms));
            turn.next_ack_ms = turn.next_ack_ms.into_iter().chain(queue.ack_due_ms).min();
            if !queue.is_settled() {
                self.unsettled.insert(to);
            }
        }
        Ok(turn)
    }
}

/// The next messages of a queue, in order of their sequence numbers.
fn read_batch(
    reader: &Reader<'_>,
    from: PartitionId,
    to: PartitionId,
    queue: &mut OutboxQueue,
) -> Result<MessageBatch, StateError> {
    let last = queue.sendable();
    let keys = (queue.sent + 1..=last).map(|sequence| OutboxKey { to, sequence });
    let (mut events, mut bytes) = (Vec::new(), 0);
    for row in reader.known::<Outbox, _>(keys, OutboxKey { to, sequence: last + 1 }) {
        let (OutboxKey { sequence, .. }, message) = row?;
        let gap = || StateError { table: "outbox", message: format!("message {sequence} to partition {to} is missing") };
        let message = message.ok_or_else(gap)?;
        bytes += message_bytes(&message);
        events.push(Event::MessageArrived { from, sequence, message });
        queue.sent = sequence;
        if bytes >= SEND_BYTES {
            break;
        }
    }
    Ok(MessageBatch { to, up_to: queue.sent, events })
}

fn message_bytes(message: &Message) -> usize {
    MESSAGE_BYTES
        + match message {
            Message::Submit(submission) => submission.input.len(),
            Message::Result(result) => match &result.outcome {
                Outcome::Success(value) => value.len(),
                Outcome::Failure(failure) => failure.message.len(),
            },
            Message::Kill { .. } => 0,
        }
}

/// Lets rows go whose messages are durable at their destination: in batches, since each batch is a record.
fn acknowledge(to: PartitionId, queue: &mut OutboxQueue, monotonic_ms: u64) -> Option<Event> {
    let due = queue.ack_due_ms?;
    if due > monotonic_ms && queue.durable - queue.acked < ACK_MESSAGES_MAX {
        return None;
    }
    queue.acked = queue.durable.min(queue.acked + ACKED_PER_RECORD);
    if queue.acked == queue.durable {
        queue.ack_due_ms = None;
    }
    Some(Event::OutboxAcked { to, up_to: queue.acked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HERE, checkpoint, empty_store, id, write};
    use surefoot_machine::{OutboxRow, State};
    use surefoot_model::{Caller, Incarnation, Message};
    use surefoot_storage::Store;

    const ONE: PartitionId = PartitionId(1);
    const TWO: PartitionId = PartitionId(2);

    fn message(n: u64) -> Message {
        let caller = Caller { partition: HERE, id: id(1), incarnation: Incarnation(n), completion: 1 };
        Message::Kill { id: id(2), caller }
    }

    /// Rows as the machine writes them.
    fn queue(store: &mut Store, to: PartitionId, sequences: std::ops::RangeInclusive<u64>, acked: u64) {
        let last = *sequences.end();
        write(store, |txn| {
            sequences.for_each(|sequence| txn.put::<Outbox>(OutboxKey { to, sequence }, message(sequence)));
            txn.put::<Outboxes>(to, OutboxRow { last, acked });
        });
    }

    fn sender() -> OutboxSender {
        OutboxSender::new(HERE, Mutant::None)
    }

    fn turn(sender: &mut OutboxSender, store: &Store, monotonic_ms: u64) -> OutboxTurn {
        sender.turn(&store.read(), monotonic_ms, |_| false).unwrap()
    }

    fn sent(turn: &OutboxTurn) -> Vec<(PartitionId, u64)> {
        let events = turn.batches.iter().flat_map(|batch| batch.events.iter().map(|event| (batch.to, event)));
        events
            .map(|(to, event)| match event {
                Event::MessageArrived { from: HERE, sequence, message: m } if *m == message(*sequence) => (to, *sequence),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn messages_go_once_and_in_order_to_each_destination() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 1..=2, 0);
        queue(&mut store, TWO, 1..=1, 0);
        for (to, sequence) in [(ONE, 1), (ONE, 2), (TWO, 1)] {
            sender.on_send(to, sequence);
        }
        let first = turn(&mut sender, &store, 0);
        assert_eq!(sent(&first), [(ONE, 1), (ONE, 2), (TWO, 1)]);
        assert_eq!(first.batches.iter().map(|batch| (batch.to, batch.up_to)).collect::<Vec<_>>(), [(ONE, 2), (TWO, 1)]);
        assert_eq!(sent(&turn(&mut sender, &store, 0)), []);
        queue(&mut store, ONE, 3..=3, 0);
        sender.on_send(ONE, 3);
        assert_eq!(sent(&turn(&mut sender, &store, 0)), [(ONE, 3)]);
    }

    #[test]
    fn rows_go_in_batches_once_their_messages_are_durable() {
        let (mut store, mut sender) = (empty_store(), sender());
        let last = 2 + ACK_MESSAGES_MAX;
        queue(&mut store, ONE, 1..=last, 0);
        sender.on_send(ONE, last);
        while turn(&mut sender, &store, 0).is_behind {}
        sender.on_durable(ONE, 1, 1_000);
        sender.on_durable(ONE, 2, 1_100);
        let early = turn(&mut sender, &store, 1_100);
        assert_eq!((early.acks, early.next_ack_ms), (vec![], Some(1_000 + ACK_DELAY_MS)));
        let due = turn(&mut sender, &store, 1_000 + ACK_DELAY_MS);
        assert_eq!((due.acks, due.next_ack_ms), (vec![Event::OutboxAcked { to: ONE, up_to: 2 }], None));
        // Many do not wait.
        sender.on_durable(ONE, last, 2_000);
        assert_eq!(turn(&mut sender, &store, 2_000).acks, [Event::OutboxAcked { to: ONE, up_to: last }]);
        assert!(sender.unsettled.is_empty(), "nothing is left to look at");
    }

    #[test]
    fn no_record_acknowledges_more_than_one_may_remove() {
        let mut queue = OutboxQueue { wanted: 1_500, sent: 1_500, durable: 1_500, acked: 0, ack_due_ms: Some(0) };
        let acks: Vec<_> = std::iter::from_fn(|| acknowledge(ONE, &mut queue, 0)).collect();
        assert_eq!(acks, [ACKED_PER_RECORD, 1_500].map(|up_to| Event::OutboxAcked { to: ONE, up_to }));
    }

    /// What was read at once for a backlog of an hour filled memory.
    #[test]
    fn a_backlog_is_read_in_pages_and_waits_for_what_is_in_flight() {
        let (mut store, mut sender) = (empty_store(), sender());
        let count = IN_FLIGHT_MAX + 700;
        queue(&mut store, ONE, 1..=count, 0);
        checkpoint(&mut store);
        sender.begin_term(&store.read()).unwrap();
        let mut all = Vec::new();
        let mut durable = 0;
        while all.len() < count as usize {
            let page = turn(&mut sender, &store, 0);
            let page_sent = sent(&page);
            assert!(page_sent.len() as u64 <= SEND_MESSAGES);
            all.extend(page_sent.into_iter().map(|(_, sequence)| sequence));
            assert!(all.len() as u64 <= durable + IN_FLIGHT_MAX, "in flight");
            if !page.is_behind {
                durable = all.len() as u64;
                sender.on_durable(ONE, durable, 0);
            }
        }
        assert!(all.into_iter().eq(1..=count));
    }

    #[test]
    fn what_is_for_a_stopped_partition_is_neither_sent_nor_acknowledged_and_holds_up_no_other() {
        for mutant in [Mutant::None, Mutant::SendToStopped] {
            let (mut store, mut sender) = (empty_store(), OutboxSender::new(HERE, mutant));
            queue(&mut store, ONE, 1..=2, 0);
            queue(&mut store, TWO, 1..=1, 0);
            sender.begin_term(&store.read()).unwrap();
            let with_one_stopped = sender.turn(&store.read(), 0, |to| to == ONE).unwrap();
            let kept = sent(&with_one_stopped) == [(TWO, 1)];
            sender.on_durable(ONE, 1, 0);
            let acked = sender.turn(&store.read(), u64::MAX, |to| to == ONE).unwrap().acks;
            assert_eq!(kept && acked.is_empty(), mutant == Mutant::None, "{mutant:?}");
        }
    }

    #[test]
    fn a_new_term_sends_again_what_was_not_acknowledged() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 4..=6, 3);
        queue(&mut store, TWO, 8..=8, 8);
        checkpoint(&mut store);
        sender.begin_term(&store.read()).unwrap();
        let first = turn(&mut sender, &store, 0);
        assert_eq!((sent(&first), first.acks), (vec![(ONE, 4), (ONE, 5), (ONE, 6)], vec![]));
    }

    #[test]
    fn a_missing_message_is_never_skipped() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 2..=2, 0);
        sender.on_send(ONE, 2);
        let error = sender.turn(&store.read(), 0, |_| false).err().unwrap().to_string();
        assert!(error.contains("message 1 to partition"), "{error}");
    }
}
