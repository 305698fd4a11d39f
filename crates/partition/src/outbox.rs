//! The messages of one partition to others: sent in order, acknowledged once they are durable there (rule O1).
//!
//! Owns: how far each destination's queue is, and how much of it is in flight, here and of all partitions of a worker. What is for a partition that has stopped stays in
//! its rows: a term that begins after the repair sends it. Does not own: the rows (`machine` writes and deletes them), or the log.

use crate::settings::Mutant;
use crate::turns::TurnOrder;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use surefoot_env::Undone;
use surefoot_machine::{Bounds, Outbox, OutboxKey, Outboxes, StateError};
use surefoot_model::{Event, Message, Outcome, PartitionId, RECORD_COST};
use surefoot_storage::Reader;

/// Messages read for one destination per turn.
const SEND_MESSAGES: u64 = 256;
/// Bytes of them beyond which no further one is read.
const SEND_BYTES: u64 = 2 << 20;
/// Bytes that the partitions of one worker may have in flight, however large memory is, as [`RECORD_COST`] counts: 512 small messages
/// keep log and workers busy, and a call waits behind no more of them.
const IN_FLIGHT_COST_MAX: u64 = 4 << 20;
/// Messages to one partition that may be durable and not yet acknowledged.
const ACK_MESSAGES_MAX: u64 = 256;
/// Messages that one record acknowledges: their rows go with it (rule M9).
const ACKED_PER_RECORD: u64 = Bounds::PRESENT.rows as u64;
/// Acknowledgements wait this long for company, in milliseconds.
const ACK_DELAY_MS: u64 = 200;

/// The queues of one partition, by destination.
pub(crate) struct OutboxSender {
    from: PartitionId,
    queues: BTreeMap<PartitionId, OutboxQueue>,
    /// Queues with something to send or to acknowledge.
    unsettled: BTreeSet<PartitionId>,
    /// Those that come first may take all that may be in flight.
    order: TurnOrder<PartitionId>,
    room: Arc<OutboxRoom>,
    mutant: Mutant,
}

/// Bytes of messages that the partitions of one worker have in flight. Only that worker writes it.
#[derive(Debug)]
pub(crate) struct OutboxRoom {
    bytes: AtomicU64,
    bytes_max: u64,
}

impl OutboxRoom {
    /// Of one of so many workers of a node, which may have so many bytes in flight: a log that falls behind holds them in memory.
    pub(crate) fn new(workers: usize, node_bytes_max: u64) -> Self {
        Self { bytes: AtomicU64::new(0), bytes_max: (node_bytes_max / workers.max(1) as u64).clamp(1, IN_FLIGHT_COST_MAX) }
    }

    /// Bytes that a queue may send now: one message where they are fewer, none at 0. It may come to have in flight what it leaves
    /// free at most: whatever a few queues want, others find something, too.
    fn for_queue(&self, queue: &OutboxQueue) -> u64 {
        let free = self.bytes_max.saturating_sub(self.bytes.load(Ordering::Relaxed));
        free.saturating_sub(queue.in_flight_bytes).div_ceil(2)
    }
}

/// Messages that were sent and are not durable; gives their bytes back when dropped.
#[derive(Debug)]
struct MessagesInFlight {
    /// The sequence number of the last one.
    up_to: u64,
    bytes: u64,
    room: Arc<OutboxRoom>,
}

impl MessagesInFlight {
    fn new(up_to: u64, bytes: u64, room: &Arc<OutboxRoom>) -> Self {
        room.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { up_to, bytes, room: room.clone() }
    }
}

impl Drop for MessagesInFlight {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
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
    /// Batches that were sent and are not durable, in order.
    in_flight: VecDeque<MessagesInFlight>,
    in_flight_bytes: u64,
    /// Bytes of the next message, where it was read and is larger than memory had room for; else 0.
    next_bytes: u64,
}

impl OutboxQueue {
    /// A queue of which everything up to here has been acknowledged.
    fn acked_up_to(acked: u64, wanted: u64) -> Self {
        Self { wanted, sent: acked, durable: acked, acked, ..Self::default() }
    }

    /// The last message that may be sent now.
    fn sendable(&self) -> u64 {
        self.wanted.min(self.sent + SEND_MESSAGES)
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
    /// There is more to send once memory, or what others have in flight, leaves room.
    pub(crate) waits: bool,
    /// A message is larger than memory has room for.
    pub(crate) large_waits: bool,
}

/// What a turn goes by.
#[derive(Clone, Copy)]
pub(crate) struct OutboxLooks {
    pub(crate) monotonic_ms: u64,
    /// Memory has room for a message of so many bytes; none: for no message.
    pub(crate) message_bytes_max: Option<u64>,
}

impl OutboxSender {
    pub(crate) fn new(from: PartitionId, room: Arc<OutboxRoom>, mutant: Mutant) -> Self {
        Self { from, queues: BTreeMap::new(), unsettled: BTreeSet::new(), order: TurnOrder::default(), room, mutant }
    }

    /// A term of this process begins: what earlier ones may not have sent is sent again.
    pub(crate) fn begin_term(&mut self, reader: &Reader<'_>) -> Result<(), StateError> {
        self.end_term();
        if self.mutant == Mutant::ForgetOutbox {
            return Ok(());
        }
        for (to, row) in reader.scan::<Outboxes>(&PartitionId(0), None, usize::from(u16::MAX) + 1)? {
            let queue = OutboxQueue::acked_up_to(row.acked, row.last);
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
        if queue.sent < up_to {
            queue.sent = up_to;
            // It was about one of those.
            queue.next_bytes = 0;
        }
        while let Some(batch) = queue.in_flight.pop_front_if(|batch| batch.up_to <= up_to) {
            queue.in_flight_bytes -= batch.bytes;
        }
        queue.ack_due_ms.get_or_insert(monotonic_ms + ACK_DELAY_MS);
        self.unsettled.insert(to);
    }

    /// `has_stopped` says whether a destination takes nothing in this life of the node: then nothing is sent to it, and nothing
    /// acknowledged.
    pub(crate) fn turn(
        &mut self,
        reader: &Reader<'_>,
        looks: OutboxLooks,
        has_stopped: impl Fn(PartitionId) -> bool,
    ) -> Result<OutboxTurn, StateError> {
        let OutboxLooks { monotonic_ms, message_bytes_max } = looks;
        let mut turn = OutboxTurn {
            batches: Vec::new(),
            acks: Vec::new(),
            next_ack_ms: None,
            is_behind: false,
            waits: false,
            large_waits: false,
        };
        for to in self.order.of(std::mem::take(&mut self.unsettled)) {
            if has_stopped(to) && self.mutant != Mutant::SendToStopped {
                continue; // for as long as this node lives
            }
            let Some(queue) = self.queues.get_mut(&to) else { continue };
            assert!(
                queue.acked <= queue.durable && queue.durable <= queue.sent && queue.sent <= queue.wanted,
                "a message is sent, then durable, then acknowledged (rule O1): {queue:?} to {to}"
            );
            let may_send = |queue: &OutboxQueue| {
                message_bytes_max.is_some_and(|max| queue.next_bytes <= max) && self.room.for_queue(queue) > 0
            };
            if let Some(bytes_max) = message_bytes_max
                && queue.sent < queue.sendable()
                && may_send(queue)
            {
                turn.batches.extend(read_batch(reader, self.from, to, queue, &self.room, bytes_max)?);
            }
            if queue.sent < queue.sendable() {
                turn.is_behind |= may_send(queue);
                turn.waits |= !may_send(queue);
                turn.large_waits |= queue.next_bytes > 0 && message_bytes_max.is_none_or(|max| queue.next_bytes > max);
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

impl OutboxSender {
    /// Messages in the tables that could be sent, and are not. To be asked where memory has room for a message of so many bytes.
    pub(crate) fn undone(
        &self,
        reader: &Reader<'_>,
        message_bytes_max: u64,
        has_stopped: impl Fn(PartitionId) -> bool,
    ) -> Result<Option<Undone>, StateError> {
        let rows = reader.scan::<Outboxes>(&PartitionId(0), None, usize::from(u16::MAX) + 1)?;
        let left = rows.into_iter().find(|(to, row)| {
            let may_send = |queue: &OutboxQueue| self.room.for_queue(queue) > 0 && queue.next_bytes <= message_bytes_max;
            let is_left = |queue: &OutboxQueue| queue.wanted < row.last || queue.sent < queue.sendable() && may_send(queue);
            row.acked < row.last && !has_stopped(*to) && self.queues.get(to).is_none_or(is_left)
        });
        Ok(left.map(|(to, _)| Undone::at_once(format!("messages to partition {to} are not sent (rule O1)"))))
    }
}

/// The next messages of a queue, in order of their sequence numbers, up to the first one that has more than so many bytes; none where that
/// is the next one. It is not read again before there is room for it: it may lie on the disk.
fn read_batch(
    reader: &Reader<'_>,
    from: PartitionId,
    to: PartitionId,
    queue: &mut OutboxQueue,
    room: &Arc<OutboxRoom>,
    message_bytes_max: u64,
) -> Result<Option<MessageBatch>, StateError> {
    let (last, bytes_max) = (queue.sendable(), room.for_queue(queue).min(SEND_BYTES));
    let keys = (queue.sent + 1..=last).map(|sequence| OutboxKey { to, sequence });
    let (mut events, mut bytes) = (Vec::new(), 0);
    queue.next_bytes = 0;
    for row in reader.known::<Outbox, _>(keys, OutboxKey { to, sequence: last + 1 }) {
        let (OutboxKey { sequence, .. }, message) = row?;
        let gap = || StateError { table: "outbox", message: format!("message {sequence} to partition {to} is missing") };
        let message = message.ok_or_else(gap)?;
        let payload = message_bytes(&message);
        if payload > message_bytes_max {
            queue.next_bytes = payload;
            break;
        }
        bytes += RECORD_COST + payload;
        events.push(Event::MessageArrived { from, sequence, message });
        queue.sent = sequence;
        if bytes >= bytes_max {
            break;
        }
    }
    if events.is_empty() {
        return Ok(None);
    }
    queue.in_flight.push_back(MessagesInFlight::new(queue.sent, bytes, room));
    queue.in_flight_bytes += bytes;
    assert!(
        queue.sent - queue.durable <= IN_FLIGHT_COST_MAX / RECORD_COST + 1,
        "what is in flight is bounded (rule O3): {queue:?} to {to}"
    );
    Ok(Some(MessageBatch { to, up_to: queue.sent, events }))
}

/// What may be large in a message.
pub(crate) fn message_bytes(message: &Message) -> u64 {
    let payload = match message {
        Message::Submit(submission) => submission.input.len(),
        Message::Result(result) => match &result.outcome {
            Outcome::Success(value) => value.len(),
            Outcome::Failure(failure) => failure.message.len(),
        },
        Message::Kill { .. } => 0,
    };
    payload as u64
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
    use surefoot_model::{CalleeResult, Caller, Incarnation, Message};
    use surefoot_storage::Store;

    const NODE_BYTES_MAX: u64 = 64 << 20;

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
        OutboxSender::new(HERE, Arc::new(OutboxRoom::new(1, NODE_BYTES_MAX)), Mutant::None)
    }

    fn looks(monotonic_ms: u64) -> OutboxLooks {
        OutboxLooks { monotonic_ms, message_bytes_max: Some(u64::MAX) }
    }

    fn turn(sender: &mut OutboxSender, store: &Store, monotonic_ms: u64) -> OutboxTurn {
        sender.turn(&store.read(), looks(monotonic_ms), |_| false).unwrap()
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
        let mut queue = OutboxQueue { wanted: 1_500, sent: 1_500, durable: 1_500, ack_due_ms: Some(0), ..OutboxQueue::default() };
        let acks: Vec<_> = std::iter::from_fn(|| acknowledge(ONE, &mut queue, 0)).collect();
        assert_eq!(acks, [ACKED_PER_RECORD, 1_500].map(|up_to| Event::OutboxAcked { to: ONE, up_to }));
    }

    /// What was read at once for a backlog of an hour filled memory.
    #[test]
    fn a_backlog_is_read_in_pages_and_waits_for_what_is_in_flight() {
        let (mut store, mut sender) = (empty_store(), sender());
        let in_flight_max = IN_FLIGHT_COST_MAX / RECORD_COST;
        let count = 2 * in_flight_max + 70;
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
            assert!(all.len() as u64 <= durable + in_flight_max, "a call waits behind few");
            if !page.is_behind {
                durable = all.len() as u64;
                sender.on_durable(ONE, durable, 0);
            }
        }
        assert!(all.into_iter().eq(1..=count));
    }

    fn caller() -> Caller {
        Caller { partition: HERE, id: id(1), incarnation: Incarnation(1), completion: 1 }
    }

    /// Results of so many bytes for a destination, as the machine writes them.
    fn queue_results(store: &mut Store, to: PartitionId, count: u64, bytes: usize) {
        let outcome = Outcome::Success(bytes::Bytes::from(vec![7; bytes]));
        let result = CalleeResult { caller: caller(), outcome };
        write(store, |txn| {
            for sequence in 1..=count {
                txn.put::<Outbox>(OutboxKey { to, sequence }, Message::Result(Box::new(result.clone())));
            }
            txn.put::<Outboxes>(to, OutboxRow { last: count, acked: 0 });
        });
    }

    /// Sends while there is anything to be sent at once; how many messages went where.
    fn send_all(sender: &mut OutboxSender, store: &Store) -> (BTreeMap<PartitionId, u64>, bool) {
        let mut counts = BTreeMap::new();
        loop {
            let turn = turn(sender, store, 0);
            for batch in &turn.batches {
                *counts.entry(batch.to).or_default() += batch.events.len() as u64;
            }
            if !turn.is_behind {
                return (counts, turn.waits);
            }
        }
    }

    /// A thousand results of a megabyte each were in the log's memory at once.
    #[test]
    fn what_is_in_flight_is_bounded_in_bytes_by_destination_and_by_worker() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue_results(&mut store, ONE, 5, 1 << 20);
        sender.begin_term(&store.read()).unwrap();
        assert_eq!(send_all(&mut sender, &store), (BTreeMap::from([(ONE, 2)]), true));
        sender.on_durable(ONE, 2, 0);
        assert_eq!(send_all(&mut sender, &store), (BTreeMap::from([(ONE, 2)]), true));
        sender.on_durable(ONE, 4, 0);
        assert_eq!(send_all(&mut sender, &store), (BTreeMap::from([(ONE, 1)]), false));
    }

    #[test]
    fn partitions_of_a_worker_share_what_may_be_in_flight_and_each_queue_goes_on() {
        let room = Arc::new(OutboxRoom::new(16, NODE_BYTES_MAX));
        let (mut store, mut sender) = (empty_store(), OutboxSender::new(HERE, room.clone(), Mutant::None));
        let (count, bytes) = (5, 100 << 10);
        (1..=20).for_each(|to| queue_results(&mut store, PartitionId(to), count, bytes));
        sender.begin_term(&store.read()).unwrap();
        let mut all = BTreeMap::<PartitionId, u64>::new();
        while all.len() < 20 || all.values().any(|sent| *sent < count) {
            let (sent, _) = send_all(&mut sender, &store);
            assert!(!sent.is_empty(), "something goes on: {all:?}");
            sent.into_iter().for_each(|(to, messages)| *all.entry(to).or_default() += messages);
            let in_flight = room.bytes.load(Ordering::Relaxed);
            assert!(in_flight <= room.bytes_max + RECORD_COST + bytes as u64);
            all.iter().for_each(|(to, up_to)| sender.on_durable(*to, *up_to, 0));
            assert_eq!(room.bytes.load(Ordering::Relaxed), 0, "all of it is given back");
        }
        queue_results(&mut store, PartitionId(21), 1, bytes);
        sender.on_send(PartitionId(21), 1);
        send_all(&mut sender, &store);
        assert!(room.bytes.load(Ordering::Relaxed) > 0);
        drop(sender);
        assert_eq!(room.bytes.load(Ordering::Relaxed), 0, "a partition that stops gives back what it had");
    }

    /// The first queues took all that was free, as often as everything in flight became durable at once.
    #[test]
    fn a_queue_has_its_turn_however_long_those_before_it_are() {
        let (mut store, mut sender) = (empty_store(), sender());
        let destinations = 12;
        (1..=destinations).for_each(|to| queue_results(&mut store, PartitionId(to), 8, 1 << 20));
        sender.begin_term(&store.read()).unwrap();
        let mut all = BTreeMap::<PartitionId, u64>::new();
        for _ in 1..=destinations {
            let (sent, _) = send_all(&mut sender, &store);
            sent.into_iter().for_each(|(to, messages)| *all.entry(to).or_default() += messages);
            all.iter().for_each(|(to, up_to)| sender.on_durable(*to, *up_to, 0));
        }
        assert_eq!(all.len(), usize::from(destinations), "{all:?}");
    }

    #[test]
    fn a_message_that_is_larger_than_the_bound_goes_alone() {
        let room = OutboxRoom { bytes: AtomicU64::new(0), bytes_max: 1_000 };
        let (mut store, mut sender) = (empty_store(), OutboxSender::new(HERE, Arc::new(room), Mutant::None));
        queue_results(&mut store, ONE, 2, 5_000);
        sender.begin_term(&store.read()).unwrap();
        assert_eq!(send_all(&mut sender, &store), (BTreeMap::from([(ONE, 1)]), true));
        sender.on_durable(ONE, 1, 0);
        assert_eq!(send_all(&mut sender, &store), (BTreeMap::from([(ONE, 1)]), false));
    }

    #[test]
    fn nothing_is_sent_while_memory_has_no_room_and_what_is_durable_is_acknowledged_all_the_same() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 1..=1, 0);
        sender.begin_term(&store.read()).unwrap();
        assert_eq!(sent(&turn(&mut sender, &store, 0)), [(ONE, 1)]);
        sender.on_durable(ONE, 1, 0);
        queue(&mut store, ONE, 2..=2, 0);
        sender.on_send(ONE, 2);
        let short = OutboxLooks { message_bytes_max: None, ..looks(ACK_DELAY_MS) };
        let held = sender.turn(&store.read(), short, |_| false).unwrap();
        assert!(held.batches.is_empty() && held.waits && !held.is_behind);
        assert_eq!(held.acks, [Event::OutboxAcked { to: ONE, up_to: 1 }]);
        assert_eq!(sent(&turn(&mut sender, &store, 0)), [(ONE, 2)]);
    }

    /// Parameters and results of 31 MiB that handlers gave each other were in the log's memory beside full tables.
    #[test]
    fn a_message_that_is_larger_than_memory_has_room_for_waits_and_those_before_it_are_sent() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue(&mut store, ONE, 1..=1, 0);
        let result = CalleeResult { caller: caller(), outcome: Outcome::Success(bytes::Bytes::from(vec![7; 5_000])) };
        write(&mut store, |txn| {
            txn.put::<Outbox>(OutboxKey { to: ONE, sequence: 2 }, Message::Result(Box::new(result)));
            txn.put::<Outboxes>(ONE, OutboxRow { last: 2, acked: 0 });
        });
        sender.begin_term(&store.read()).unwrap();
        let mut send = |bytes| {
            let looks = OutboxLooks { message_bytes_max: Some(bytes), ..looks(0) };
            let turn = sender.turn(&store.read(), looks, |_| false).unwrap();
            let undone = sender.undone(&store.read(), bytes, |_| false).unwrap().is_some();
            let up_to = turn.batches.iter().map(|batch| batch.up_to).max();
            (up_to, (turn.is_behind, undone), (turn.waits, turn.large_waits))
        };
        assert_eq!(send(4_999), (Some(1), (false, false), (true, true)));
        assert_eq!(send(4_999), (None, (false, false), (true, true)));
        assert_eq!(send(5_000), (Some(2), (false, false), (false, false)));
    }

    #[test]
    fn a_large_message_goes_on_waiting_while_memory_has_room_for_none_until_it_is_durable() {
        let (mut store, mut sender) = (empty_store(), sender());
        queue_results(&mut store, ONE, 2, 5_000);
        sender.begin_term(&store.read()).unwrap();
        let large_waits = |sender: &mut OutboxSender, message_bytes_max| {
            sender.turn(&store.read(), OutboxLooks { message_bytes_max, ..looks(0) }, |_| false).unwrap().large_waits
        };
        assert!(!large_waits(&mut sender, None), "it is not known yet");
        assert!(large_waits(&mut sender, Some(4_999)) && large_waits(&mut sender, None));
        // An earlier term of this partition had sent it.
        sender.on_durable(ONE, 1, 0);
        assert!(!large_waits(&mut sender, None), "nothing is known of the one behind it");
    }

    #[test]
    fn what_is_for_a_stopped_partition_is_neither_sent_nor_acknowledged_and_holds_up_no_other() {
        for mutant in [Mutant::None, Mutant::SendToStopped] {
            let (mut store, mut sender) =
                (empty_store(), OutboxSender::new(HERE, Arc::new(OutboxRoom::new(1, NODE_BYTES_MAX)), mutant));
            queue(&mut store, ONE, 1..=2, 0);
            queue(&mut store, TWO, 1..=1, 0);
            sender.begin_term(&store.read()).unwrap();
            let with_one_stopped = sender.turn(&store.read(), looks(0), |to| to == ONE).unwrap();
            let kept = sent(&with_one_stopped) == [(TWO, 1)];
            sender.on_durable(ONE, 1, 0);
            let acked = sender.turn(&store.read(), looks(u64::MAX), |to| to == ONE).unwrap().acks;
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
        let error = sender.turn(&store.read(), looks(0), |_| false).err().unwrap().to_string();
        assert!(error.contains("message 1 to partition"), "{error}");
    }
}
