//! The messages of one partition to others: sent in order, acknowledged once they are durable there (rule O1).
//!
//! Owns: how far each destination's queue is. Does not own: the rows (`machine` writes and deletes them), or the log.

use crate::settings::Mutant;
use std::collections::BTreeMap;
use surefoot_machine::{Outbox, OutboxKey, Outboxes, StateError};
use surefoot_model::{Event, PartitionId};
use surefoot_storage::Reader;

/// Messages to one partition that may be durable and not yet acknowledged.
const ACK_MESSAGES_MAX: u64 = 256;
/// Acknowledgements wait this long for company, in milliseconds.
const ACK_DELAY_MS: u64 = 200;

/// The queues of one partition, by destination.
pub(crate) struct OutboxSender {
    from: PartitionId,
    queues: BTreeMap<PartitionId, OutboxQueue>,
    mutant: Mutant,
}

/// How far one queue is: acked <= durable <= sent <= wanted.
#[derive(Default)]
struct OutboxQueue {
    wanted: u64,
    sent: u64,
    durable: u64,
    acked: u64,
    /// When what is durable is acknowledged, by the monotonic clock in milliseconds.
    ack_due_ms: Option<u64>,
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
}

impl OutboxSender {
    pub(crate) fn new(from: PartitionId, mutant: Mutant) -> Self {
        Self { from, queues: BTreeMap::new(), mutant }
    }

    /// A term of this process begins: what earlier ones may not have sent is sent again.
    pub(crate) fn begin_term(&mut self, reader: &Reader<'_>) -> Result<(), StateError> {
        self.queues.clear();
        if self.mutant == Mutant::ForgetOutbox {
            return Ok(());
        }
        for (to, row) in reader.scan::<Outboxes>(&PartitionId(0), None, usize::from(u16::MAX) + 1)? {
            let (wanted, sent) = (row.last, row.acked);
            self.queues.insert(to, OutboxQueue { wanted, sent, durable: sent, acked: sent, ack_due_ms: None });
        }
        Ok(())
    }

    pub(crate) fn on_send(&mut self, to: PartitionId, sequence: u64) {
        let queue = self.queues.entry(to).or_default();
        queue.wanted = queue.wanted.max(sequence);
    }

    /// Messages up to this one are durable at their destination.
    pub(crate) fn on_durable(&mut self, to: PartitionId, up_to: u64, monotonic_ms: u64) {
        let queue = self.queues.entry(to).or_default();
        queue.durable = queue.durable.max(up_to);
        queue.ack_due_ms.get_or_insert(monotonic_ms + ACK_DELAY_MS);
    }

    pub(crate) fn turn(&mut self, reader: &Reader<'_>, monotonic_ms: u64) -> Result<OutboxTurn, StateError> {
        let batches = self.unsent(reader)?;
        let acks = self.acks(monotonic_ms);
        let next_ack_ms = self.queues.values().filter_map(|queue| queue.ack_due_ms).min();
        Ok(OutboxTurn { batches, acks, next_ack_ms })
    }

    /// In order of their sequence numbers.
    fn unsent(&mut self, reader: &Reader<'_>) -> Result<Vec<MessageBatch>, StateError> {
        let from = self.from;
        let mut batches = Vec::new();
        for (&to, queue) in &mut self.queues {
            if queue.sent >= queue.wanted {
                continue;
            }
            let keys = (queue.sent + 1..=queue.wanted).map(|sequence| OutboxKey { to, sequence });
            let end = OutboxKey { to, sequence: queue.wanted + 1 };
            let mut events = Vec::new();
            for row in reader.known::<Outbox, _>(keys, end) {
                let (OutboxKey { sequence, .. }, message) = row?;
                let gap = || StateError { table: "outbox", message: format!("message {sequence} to partition {to} is missing") };
                events.push(Event::MessageArrived { from, sequence, message: message.ok_or_else(gap)? });
            }
            queue.sent = queue.wanted;
            batches.push(MessageBatch { to, up_to: queue.sent, events });
        }
        Ok(batches)
    }

    /// Lets rows go whose messages are durable at their destination: in batches, since each batch is a record.
    fn acks(&mut self, monotonic_ms: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for (&to, queue) in &mut self.queues {
            let Some(due) = queue.ack_due_ms else { continue };
            if due <= monotonic_ms || queue.durable - queue.acked >= ACK_MESSAGES_MAX {
                events.push(Event::OutboxAcked { to, up_to: queue.durable });
                queue.acked = queue.durable;
                queue.ack_due_ms = None;
            }
        }
        events
    }
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
        let turn = sender.turn(&store.read(), 0).unwrap();
        assert_eq!(sent(&turn), [(ONE, 1), (ONE, 2), (TWO, 1)]);
        assert_eq!(turn.batches.iter().map(|batch| (batch.to, batch.up_to)).collect::<Vec<_>>(), [(ONE, 2), (TWO, 1)]);
        assert_eq!(sent(&sender.turn(&store.read(), 0).unwrap()), []);
        queue(&mut store, ONE, 3..=3, 0);
        sender.on_send(ONE, 3);
        assert_eq!(sent(&sender.turn(&store.read(), 0).unwrap()), [(ONE, 3)]);
    }

    #[test]
    fn rows_go_in_batches_once_their_messages_are_durable() {
        let (store, mut sender) = (empty_store(), sender());
        sender.on_durable(ONE, 1, 1_000);
        sender.on_durable(ONE, 2, 1_100);
        let turn = sender.turn(&store.read(), 1_100).unwrap();
        assert_eq!((turn.acks, turn.next_ack_ms), (vec![], Some(1_000 + ACK_DELAY_MS)));
        let turn = sender.turn(&store.read(), 1_000 + ACK_DELAY_MS).unwrap();
        assert_eq!((turn.acks, turn.next_ack_ms), (vec![Event::OutboxAcked { to: ONE, up_to: 2 }], None));
        // Many do not wait.
        sender.on_durable(ONE, 2 + ACK_MESSAGES_MAX, 2_000);
        let turn = sender.turn(&store.read(), 2_000).unwrap();
        assert_eq!(turn.acks, [Event::OutboxAcked { to: ONE, up_to: 2 + ACK_MESSAGES_MAX }]);
    }

    #[test]
    fn a_new_term_sends_again_what_was_not_acknowledged() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 4..=6, 3);
        queue(&mut store, TWO, 9..=8, 8);
        checkpoint(&mut store);
        sender.begin_term(&store.read()).unwrap();
        let turn = sender.turn(&store.read(), 0).unwrap();
        assert_eq!((sent(&turn), turn.acks), (vec![(ONE, 4), (ONE, 5), (ONE, 6)], vec![]));
    }

    #[test]
    fn a_missing_message_is_never_skipped() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 2..=2, 0);
        sender.on_send(ONE, 2);
        let error = sender.turn(&store.read(), 0).err().unwrap().to_string();
        assert!(error.contains("message 1 to partition"), "{error}");
    }
}
