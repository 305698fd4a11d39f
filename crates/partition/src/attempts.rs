//! The attempts of one partition: asked for, prepared, fed with notifications, and gone.
//!
//! Owns: which attempts run, where those that wait for a slot are found once there are too many to remember, and what an attempt
//! is shown (rule M5). Does not own: slots and the order of starting across partitions (`starting`), reading long journals
//! (`replay`), or the streams (`invoker`).

use crate::held_back::HeldBack;
use crate::replay::{ON_WORKER, Replay, StateWish, UnreadJournal};
use crate::settings::Mutant;
use crate::starting::{StartQueue, WaitingAttempt};
use std::collections::BTreeMap;
use surefoot_invoker::{AttemptStart, Destination, EagerState, Live as LiveNotification, Notifications, Notifier};
use surefoot_machine::{Invocations, Meta, Running, RunningKey, StateError, States};
use surefoot_model::{
    Active, Attempt, AttemptClass, Entry, Event, Invocation, InvocationId, Notification, PartitionId, Pin, Progress, Stage,
    Target,
};
use surefoot_storage::Reader;

/// Running invocations read at a time from the tables.
const BACKLOG_PAGE: usize = 256;

/// Until what ended them is applied, so that none is started twice.
pub(crate) struct PartitionAttempts {
    partition: PartitionId,
    journal_part_bytes: u64,
    running: BTreeMap<InvocationId, RunningAttempt>,
    /// By class, where the pass over the running invocations in the tables is: attempts from this turn on are not queued yet, or were
    /// too many to be. New ones come last, so that the pass meets all of them.
    backlogs: BTreeMap<AttemptClass, u64>,
    /// Attempts of a class up to this turn were looked at to be started.
    seen: BTreeMap<AttemptClass, u64>,
    /// By destination and class: attempts from this turn on that were looked at are held back, and too many to be remembered.
    aside: BTreeMap<(Destination, AttemptClass), u64>,
    mutant: Mutant,
}

struct RunningAttempt {
    attempt: Attempt,
    /// Dropped to abort it.
    notifications: Notifier,
}

/// An attempt that waits, as its row stands.
pub(crate) struct FoundAttempt {
    waiting: WaitingAttempt,
    invocation: Invocation,
    active: Active,
}

impl FoundAttempt {
    pub(crate) fn target(&self) -> &Target {
        &self.invocation.target
    }

    pub(crate) fn attempt(&self) -> Attempt {
        self.active.attempt
    }

    pub(crate) fn pin(&self) -> Option<Pin> {
        self.active.pin
    }

    pub(crate) fn destination(&self) -> Destination {
        Destination::of(&self.invocation.target.service, self.active.pin)
    }
}

/// An attempt as it stands in the tables at one instant.
pub(crate) struct PreparedAttempt {
    pub(crate) start: AttemptStart,
    /// What is to be read from a view of the same instant before it starts; none where enough was read.
    pub(crate) unread: Option<Replay>,
    /// What is read while it runs, where enough was read.
    pub(crate) left: Option<UnreadJournal>,
    /// For [`PartitionAttempts::started`].
    pub(crate) notifications: Notifier,
}

impl PartitionAttempts {
    /// `journal_part_bytes`: as [`crate::Settings`] has it.
    pub(crate) fn new(partition: PartitionId, journal_part_bytes: u64, mutant: Mutant) -> Self {
        let (running, backlogs, seen, aside) = Default::default();
        Self { partition, journal_part_bytes, running, backlogs, seen, aside, mutant }
    }

    /// A term of this process begins: attempts of an earlier one are void (rule M6), and what runs is found in the tables.
    pub(crate) fn begin_term(&mut self, queue: &mut StartQueue) {
        self.end_term();
        if self.mutant != Mutant::ForgetRunning {
            AttemptClass::ALL.into_iter().for_each(|class| self.leave_to_tables(RunningKey { class, turn: 0 }, queue));
        }
    }

    /// Aborts all, and starts none any more.
    pub(crate) fn end_term(&mut self) {
        self.running.clear();
        self.backlogs.clear();
        self.seen.clear();
        self.aside.clear();
    }

    /// What ended an attempt has been applied.
    pub(crate) fn on_event(&mut self, event: &Event) {
        if let Event::AttemptProgressed(progress) = event
            && progress.end.is_some()
        {
            self.forget(progress.id, progress.attempt);
        }
    }

    /// An attempt is asked for, or was raised to another class while it waited. One that was raised while it ran goes on.
    pub(crate) fn on_start(&mut self, id: InvocationId, attempt: Attempt, key: RunningKey, queue: &mut StartQueue) {
        if self.backlogs.contains_key(&key.class) || self.runs(id, attempt) {
            // Where it does not run it is found in the tables.
        } else if queue.is_closed(key.class) {
            self.leave_to_tables(key, queue);
        } else {
            queue.push(WaitingAttempt { partition: self.partition, id, key });
        }
    }

    fn leave_to_tables(&mut self, from: RunningKey, queue: &mut StartQueue) {
        self.backlogs.insert(from.class, from.turn);
        queue.on_backlog(from.class);
    }

    /// Its stream is reset if it still runs.
    pub(crate) fn forget(&mut self, id: InvocationId, attempt: Attempt) {
        if self.runs(id, attempt) {
            self.running.remove(&id);
        }
    }

    /// An attempt that still waits for its slot finds the notification in the journal.
    pub(crate) fn on_notification(&self, id: InvocationId, attempt: Attempt, index: u32, notification: Notification) {
        if let Some(running) = self.running.get(&id).filter(|running| running.attempt == attempt) {
            running.notifications.notify(LiveNotification { index, notification });
        }
    }

    /// Attempts of a class are still to be found in the tables.
    pub(crate) fn has_backlog(&self, class: AttemptClass) -> bool {
        self.backlogs.contains_key(&class)
    }

    /// Queues one page of a class's backlog.
    pub(crate) fn page_backlog(
        &mut self,
        reader: &Reader<'_>,
        class: AttemptClass,
        queue: &mut StartQueue,
    ) -> Result<(), StateError> {
        let Some(&next) = self.backlogs.get(&class) else { return Ok(()) };
        let key = |turn| RunningKey { class, turn };
        let rows = reader.scan::<Running>(&key(next), Some(&key(u64::MAX)), BACKLOG_PAGE)?;
        match rows.last() {
            Some((last, _)) if rows.len() == BACKLOG_PAGE => self.backlogs.insert(class, last.turn + 1),
            _ => self.backlogs.remove(&class),
        };
        // Some may run: those that were raised.
        let waiting = |(key, id)| WaitingAttempt { partition: self.partition, id, key };
        rows.into_iter().map(waiting).for_each(|waiting| queue.push(waiting));
        Ok(())
    }

    /// Attempts that the tables ask for, and that do not run, with where each would.
    pub(crate) fn not_started(&self, reader: &Reader<'_>) -> Result<Vec<(WaitingAttempt, Destination)>, StateError> {
        let first = RunningKey { class: AttemptClass::Needed, turn: 0 };
        let mut waiting = Vec::new();
        for (key, id) in reader.scan::<Running>(&first, None, usize::MAX)? {
            let row = WaitingAttempt { partition: self.partition, id, key };
            waiting.extend(self.read(reader, row)?.map(|found| (row, found.destination())));
        }
        Ok(waiting)
    }

    /// An attempt was looked at and is held back, without a place in memory: it is found in the tables again, and so are those for the
    /// same destination that are looked at after it.
    pub(crate) fn leave_aside(&mut self, destination: Destination, waiting: WaitingAttempt) {
        let RunningKey { class, turn } = waiting.key;
        self.aside.entry((destination, class)).or_insert(turn);
    }

    /// Attempts that were left aside are still to be found in the tables.
    pub(crate) fn has_aside(&self, destination: &Destination, class: AttemptClass) -> bool {
        self.aside.contains_key(&(destination.clone(), class))
    }

    /// Has one page of what was left aside for a destination held back again in memory; how many rows it looked at.
    pub(crate) fn page_aside(
        &mut self,
        reader: &Reader<'_>,
        destination: &Destination,
        class: AttemptClass,
        held: &mut HeldBack,
    ) -> Result<usize, StateError> {
        let aside = (destination.clone(), class);
        let Some(&next) = self.aside.get(&aside) else { return Ok(0) };
        // What comes later is queued, or in a backlog.
        let seen = self.seen.get(&class).copied().unwrap_or_default();
        let key_of = |turn| RunningKey { class, turn };
        let rows = reader.scan::<Running>(&key_of(next), Some(&key_of(seen + 1)), BACKLOG_PAGE)?;
        let looks = rows.len();
        let mut goes_on_at = rows.last().filter(|_| looks == BACKLOG_PAGE).map(|(last, _)| last.turn + 1);
        for (key, id) in rows {
            let waiting = WaitingAttempt { partition: self.partition, id, key };
            let is_meant = self.read(reader, waiting)?.is_some_and(|found| found.destination() == *destination);
            if is_meant && !held.refill(destination, waiting) {
                goes_on_at = Some(key.turn);
                break;
            }
        }
        match goes_on_at {
            Some(turn) => self.aside.insert(aside, turn),
            None => self.aside.remove(&aside),
        };
        Ok(looks)
    }

    /// Looks at an attempt that is to be started. Nothing where it was killed, paused, raised or voided while it waited, or runs
    /// already.
    pub(crate) fn find(&mut self, reader: &Reader<'_>, waiting: WaitingAttempt) -> Result<Option<FoundAttempt>, StateError> {
        let RunningKey { class, turn } = waiting.key;
        let seen = self.seen.entry(class).or_default();
        *seen = turn.max(*seen);
        self.read(reader, waiting)
    }

    fn read(&self, reader: &Reader<'_>, waiting: WaitingAttempt) -> Result<Option<FoundAttempt>, StateError> {
        let Some((invocation, mut active)) = current(reader, waiting)? else { return Ok(None) };
        active.pin = active.pin.filter(|_| self.mutant != Mutant::IgnorePin);
        Ok((!self.runs(waiting.id, active.attempt)).then_some(FoundAttempt { waiting, invocation, active }))
    }

    /// Reads what an attempt starts with, all of the instant in which it was found (rule M5): what comes into the journal from now on it
    /// gets live. The feed is how it hears of that. `eager_state_bytes` says how much of a key's state is sent along.
    pub(crate) fn prepare(
        &self,
        reader: &Reader<'_>,
        found: FoundAttempt,
        (notifications, live): (Notifier, Notifications),
        eager_state_bytes: impl FnOnce(&Target, Option<Pin>) -> usize,
    ) -> Result<PreparedAttempt, StateError> {
        let FoundAttempt { waiting: WaitingAttempt { partition, id, .. }, invocation, active } = found;
        let state_bytes = eager_state_bytes(&invocation.target, active.pin);
        let state = match invocation.target.kind.is_keyed() {
            true => reader.get::<States>(&invocation.target.object_key())?,
            false => None,
        };
        let wish = StateWish { object: invocation.target.object_key(), row: state, bytes_max: state_bytes };
        let mut replay = Replay::new(invocation.life(id), active.journal_len, (state_bytes > 0).then_some(wish))
            .in_parts_of(self.journal_part_bytes);
        let mut start = AttemptStart {
            partition,
            id,
            attempt: active.attempt,
            random_seed: invocation.random_seed,
            pin: active.pin,
            commands: active.commands,
            journal_bytes: active.journal_bytes,
            replay: Vec::new(),
            rest: None,
            state: EagerState::default(),
            read_bytes_max: state.map_or(0, |row| row.answer_bytes_max()),
            retries_since_entry: active.retries_since_entry,
            last_entry_at: active.last_entry_at,
            attempts_counted: active.attempts_counted(reader.get::<Meta>(&())?.unwrap_or_default().epoch),
            target: invocation.target,
            tells_answer: false,
            live,
        };
        let (unread, left) = if replay.step(reader, ON_WORKER)? {
            let left = replay.hand_over(&mut start);
            misread(self.mutant, &mut start.replay, &notifications);
            (None, left)
        } else {
            (Some(replay), None)
        };
        Ok(PreparedAttempt { start, unread, left, notifications })
    }

    /// A prepared attempt runs from here on: what its journal takes in reaches it live.
    pub(crate) fn started(&mut self, id: InvocationId, attempt: Attempt, notifications: Notifier) {
        assert!(!self.runs(id, attempt), "an attempt is started once (rule M4): {id}");
        self.running.insert(id, RunningAttempt { attempt, notifications });
    }

    fn runs(&self, id: InvocationId, attempt: Attempt) -> bool {
        self.running.get(&id).is_some_and(|running| running.attempt == attempt)
    }
}

/// A running invocation, if the attempt that was asked for is still its newest, and in the same row.
fn current(reader: &Reader<'_>, waiting: WaitingAttempt) -> Result<Option<(Invocation, Active)>, StateError> {
    let WaitingAttempt { id, key: RunningKey { class, turn }, .. } = waiting;
    let Some(mut invocation) = reader.get::<Invocations>(&id)? else { return Ok(None) };
    match std::mem::replace(&mut invocation.stage, Stage::Scheduled) {
        Stage::Active(active) if (active.class, active.turn) == (class, turn) && active.progress == Progress::Running => {
            Ok(Some((invocation, *active)))
        }
        _ => Ok(None),
    }
}

/// Breaks what an attempt is shown, for the variants that do.
fn misread(mutant: Mutant, replay: &mut Vec<Entry>, live: &Notifier) {
    if mutant == Mutant::ShowTwice
        && let Some(Entry::Notification(notification)) = replay.last().cloned()
    {
        let index = replay.len() as u32 - 1;
        live.notify(LiveNotification { index, notification });
    }
    while mutant == Mutant::ShowLess && matches!(replay.last(), Some(Entry::Notification(_))) {
        replay.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held_back::HELD_MAX;
    use crate::testing::{HERE, command, empty_store, id, invocation, write, write_running, write_running_in};
    use std::task::{Context, Poll, Waker};
    use surefoot_invoker::{Feeds, Told};
    use surefoot_machine::State;
    use surefoot_model::{AttemptEnd, AttemptProgress, DeploymentId, NotificationId, Resolution, entry_type};
    use surefoot_storage::Store;

    const FIRST: Attempt = Attempt(1);

    fn attempts() -> PartitionAttempts {
        PartitionAttempts::new(HERE, 1 << 20, Mutant::None)
    }

    fn waiting(unique: u128, attempt: Attempt) -> WaitingAttempt {
        WaitingAttempt { partition: HERE, id: id(unique), key: fresh(attempt) }
    }

    fn fresh(attempt: Attempt) -> RunningKey {
        RunningKey { class: AttemptClass::Fresh, turn: attempt.0 }
    }

    /// So many that run, each in the attempt with the number of its id.
    fn running(count: u128) -> Store {
        let mut store = empty_store();
        write(&mut store, |txn| (1..=count).for_each(|n| write_running(txn, id(n), Attempt(n as u64), 1)));
        store
    }

    /// Prepares an attempt and lets it run; what it is shown.
    fn start(attempts: &mut PartitionAttempts, store: &Store, waiting: WaitingAttempt) -> Option<AttemptStart> {
        let found = attempts.find(&store.read(), waiting).unwrap()?;
        let PreparedAttempt { start, unread, notifications, .. } =
            attempts.prepare(&store.read(), found, Feeds::default().feed(), |_, _| 0).unwrap();
        assert!(unread.is_none());
        attempts.started(waiting.id, start.attempt, notifications);
        Some(start)
    }

    fn progress(id: InvocationId, attempt: Attempt, end: Option<AttemptEnd>) -> Event {
        let pin = Pin { deployment: DeploymentId(1), protocol: 6 };
        Event::AttemptProgressed(Box::new(AttemptProgress { id, attempt, first_command: 1, pin, items: Vec::new(), end }))
    }

    fn told(start: &mut AttemptStart) -> Poll<Option<Told>> {
        start.live.poll_told(&mut Context::from_waker(Waker::noop()), true)
    }

    fn is_aborted(start: &mut AttemptStart) -> bool {
        matches!(told(start), Poll::Ready(None))
    }

    /// Pages until there is no backlog; what was queued.
    fn page_all(attempts: &mut PartitionAttempts, store: &Store) -> Vec<InvocationId> {
        let mut queue = StartQueue::default();
        for class in AttemptClass::ALL {
            while attempts.has_backlog(class) {
                attempts.page_backlog(&store.read(), class, &mut queue).unwrap();
            }
        }
        queue.take_all().into_iter().map(|waiting| waiting.id).collect()
    }

    #[test]
    fn an_attempt_is_shown_the_journal_of_one_instant_and_hears_the_rest_live() {
        let (mut store, mut attempts) = (empty_store(), attempts());
        write(&mut store, |txn| write_running(txn, id(1), FIRST, 3));
        let mut start = start(&mut attempts, &store, waiting(1, FIRST)).unwrap();
        assert_eq!(start.replay, [0, 1, 2].map(command));
        assert_eq!((start.commands, start.random_seed), (3, 7));
        let notification =
            Notification { ty: entry_type::SLEEP_COMPLETION, id: NotificationId::Completion(1), result: Resolution::Void };
        attempts.on_notification(id(1), Attempt(9), 3, notification.clone());
        assert!(told(&mut start).is_pending(), "another attempt's");
        attempts.on_notification(id(1), FIRST, 3, notification);
        assert!(matches!(told(&mut start), Poll::Ready(Some(Told::Live(live, _))) if live.index == 3));
    }

    #[test]
    fn a_long_journal_is_left_to_a_view() {
        let (mut store, mut attempts) = (empty_store(), attempts());
        write(&mut store, |txn| write_running(txn, id(1), FIRST, 5_000));
        let found = attempts.find(&store.read(), waiting(1, FIRST)).unwrap().unwrap();
        let prepared = attempts.prepare(&store.read(), found, Feeds::default().feed(), |_, _| 0).unwrap();
        assert!(prepared.unread.is_some() && prepared.start.replay.is_empty());
    }

    #[test]
    fn an_attempt_that_counts_no_more_is_not_started_and_none_is_started_twice() {
        let (mut store, mut attempts) = (running(3), attempts());
        write(&mut store, |txn| {
            txn.delete::<Invocations>(&id(1));
            let suspended = Progress::Suspended { awaiting: surefoot_model::Awaited::Any };
            let active = || crate::testing::active(Attempt(2), 1);
            let stage = Stage::Active(Box::new(Active { progress: suspended, ..active() }));
            txn.put::<Invocations>(id(2), Invocation { stage, ..invocation(active()) });
        });
        for gone in [waiting(1, FIRST), waiting(2, Attempt(2)), waiting(3, Attempt(2))] {
            assert!(start(&mut attempts, &store, gone).is_none());
        }
        let _start = start(&mut attempts, &store, waiting(3, Attempt(3))).unwrap();
        assert!(start(&mut attempts, &store, waiting(3, Attempt(3))).is_none(), "it runs");
    }

    #[test]
    fn an_attempt_is_forgotten_when_its_own_end_is_applied() {
        let (store, mut attempts) = (running(1), attempts());
        let mut start = start(&mut attempts, &store, waiting(1, FIRST)).unwrap();
        attempts.on_event(&progress(id(1), FIRST, None));
        attempts.on_event(&progress(id(1), Attempt(2), Some(AttemptEnd::Completed)));
        assert!(!is_aborted(&mut start));
        attempts.on_event(&progress(id(1), FIRST, Some(AttemptEnd::Completed)));
        assert!(is_aborted(&mut start));
    }

    #[test]
    fn the_end_of_a_term_aborts_all() {
        let (store, mut attempts) = (running(2), attempts());
        attempts.begin_term(&mut StartQueue::default());
        let mut starts = [1, 2].map(|n| start(&mut attempts, &store, waiting(n, Attempt(n as u64))).unwrap());
        attempts.end_term();
        assert!(starts.iter_mut().all(is_aborted) && AttemptClass::ALL.into_iter().all(|class| !attempts.has_backlog(class)));
    }

    /// What has begun, and what others wait for, first; each class in the order in which it was asked for.
    #[test]
    fn a_term_finds_everything_that_runs_in_the_tables_in_order() {
        let (mut store, mut attempts) = (running(600), attempts());
        write(&mut store, |txn| write_running_in(txn, id(601), Attempt(601), 1, AttemptClass::Needed));
        attempts.begin_term(&mut StartQueue::default());
        let expected: Vec<_> = [601].into_iter().chain(1..=600).map(id).collect();
        assert_eq!(page_all(&mut attempts, &store), expected);
    }

    #[test]
    fn what_is_asked_for_while_a_pass_is_under_way_is_met_by_it_once() {
        let (mut store, mut attempts, mut queue) = (running(300), attempts(), StartQueue::default());
        attempts.begin_term(&mut queue);
        attempts.page_backlog(&store.read(), AttemptClass::Fresh, &mut queue).unwrap();
        write(&mut store, |txn| write_running(txn, id(0), Attempt(301), 1));
        attempts.on_start(id(0), Attempt(301), fresh(Attempt(301)), &mut queue);
        assert_eq!(queue.take_all().len(), BACKLOG_PAGE, "one page, and nothing beside the tables");
        let rest: Vec<_> = (BACKLOG_PAGE as u128 + 1..=300).chain([0]).map(id).collect();
        assert_eq!(page_all(&mut attempts, &store), rest);
    }

    #[test]
    fn what_the_queue_does_not_hold_is_found_in_the_tables_and_nothing_else_is() {
        let (mut store, mut attempts, mut queue) = (empty_store(), attempts(), StartQueue::default());
        let mut asked = 0;
        while !queue.is_closed(AttemptClass::Fresh) {
            asked += 1;
            write(&mut store, |txn| write_running(txn, id(asked), Attempt(asked as u64), 1));
            attempts.on_start(id(asked), Attempt(asked as u64), fresh(Attempt(asked as u64)), &mut queue);
        }
        assert!(!attempts.has_backlog(AttemptClass::Fresh));
        for n in [asked + 1, asked + 2] {
            write(&mut store, |txn| write_running(txn, id(n), Attempt(n as u64), 1));
            attempts.on_start(id(n), Attempt(n as u64), fresh(Attempt(n as u64)), &mut queue);
        }
        queue.take_all();
        assert_eq!(page_all(&mut attempts, &store), [asked + 1, asked + 2].map(id));
    }

    /// One that others wait for by now goes with those that are needed, once; one that runs already goes on.
    #[test]
    fn an_attempt_that_was_raised_starts_from_its_new_row_alone() {
        let (mut store, mut attempts, mut queue) = (running(2), attempts(), StartQueue::default());
        let raised = |n: u64| RunningKey { class: AttemptClass::Needed, turn: 2 + n };
        for n in 1..=2 {
            attempts.on_start(id(u128::from(n)), Attempt(n), fresh(Attempt(n)), &mut queue);
        }
        let mut runs = start(&mut attempts, &store, queue.pop_begun().unwrap()).unwrap();
        write(&mut store, |txn| {
            for n in 1..=2 {
                txn.delete::<Running>(&fresh(Attempt(n)));
                txn.put::<Running>(raised(n), id(u128::from(n)));
                let RunningKey { class, turn } = raised(n);
                txn.put::<Invocations>(
                    id(u128::from(n)),
                    invocation(Active { class, turn, ..crate::testing::active(Attempt(n), 1) }),
                );
            }
        });
        for n in 1..=2 {
            attempts.on_start(id(u128::from(n)), Attempt(n), raised(n), &mut queue);
        }
        let order = queue.take_all();
        assert_eq!(order.iter().map(|waiting| waiting.key).collect::<Vec<_>>(), [raised(2), fresh(Attempt(2))]);
        let started: Vec<_> = order.into_iter().map(|waiting| start(&mut attempts, &store, waiting).is_some()).collect();
        assert_eq!((started, is_aborted(&mut runs)), (vec![true, false], false));
    }

    /// Half of them run on a deployment that holds its share; those that found no room are met again, and the others are not.
    #[test]
    fn what_was_left_aside_is_found_again_once_and_in_order() {
        let (mut store, mut attempts) = (empty_store(), attempts());
        let destination = |n: u128| Destination::Pinned(DeploymentId(n % 2));
        let count = 4 * HELD_MAX as u128;
        write(&mut store, |txn| {
            for n in 1..=count {
                write_running(txn, id(n), Attempt(n as u64), 1);
                let pin = Some(Pin { deployment: DeploymentId(n % 2), protocol: 6 });
                txn.put::<Invocations>(id(n), invocation(Active { pin, ..crate::testing::active(Attempt(n as u64), 1) }));
            }
        });
        let mut held = HeldBack::default();
        // The last ones are queued and were not looked at.
        for waiting in (1..=count - 10).map(|n| waiting(n, Attempt(n as u64))) {
            let found = attempts.find(&store.read(), waiting).unwrap().unwrap();
            assert_eq!(found.destination(), destination(waiting.id.unique));
            if found.destination() == destination(1) && !held.push(destination(1), waiting) {
                attempts.leave_aside(destination(1), waiting);
            }
        }
        let mut begun = Vec::new();
        let mut looks = 0;
        while held.holds(&destination(1)) {
            held.look(|_| usize::MAX);
            while let Some(waiting) = held.front(AttemptClass::Fresh) {
                begun.push(waiting.id);
                held.pop_begun(AttemptClass::Fresh);
            }
            looks += attempts.page_aside(&store.read(), &destination(1), AttemptClass::Fresh, &mut held).unwrap();
            if !attempts.has_aside(&destination(1), AttemptClass::Fresh) {
                held.on_no_more(&destination(1), AttemptClass::Fresh);
            }
        }
        let expected: Vec<_> = (1..=count - 10).filter(|n| n % 2 == 1).map(id).collect();
        assert_eq!(begun, expected);
        assert!(looks <= count as usize, "each row is looked at once more: {looks}");
    }

    /// Its invocations stood still for as long as another partition's came faster than slots became free.
    #[test]
    fn a_backlog_has_its_turn_while_another_partition_goes_on_starting() {
        let class = AttemptClass::Fresh;
        let mut queue = StartQueue::default();
        let (mut busy_store, mut busy) = (empty_store(), PartitionAttempts::new(PartitionId(1), 1 << 20, Mutant::None));
        let mut asked = 0;
        let mut ask = |busy: &mut PartitionAttempts, store: &mut Store, queue: &mut StartQueue| {
            asked += 1;
            write(store, |txn| write_running(txn, id(asked), Attempt(asked as u64), 1));
            busy.on_start(id(asked), Attempt(asked as u64), fresh(Attempt(asked as u64)), queue);
        };
        while !queue.is_closed(class) {
            ask(&mut busy, &mut busy_store, &mut queue);
        }
        let queued = queue.len_of(class);
        let (behind_store, mut behind) = (running(1), attempts());
        behind.on_start(id(1), FIRST, fresh(FIRST), &mut queue);
        assert!(behind.has_backlog(class));
        for _ in 0..queued {
            assert_eq!(queue.pop_begun().unwrap().partition, PartitionId(1));
            ask(&mut busy, &mut busy_store, &mut queue);
        }
        assert!(queue.wants_page(class), "it drains while others push");
        behind.page_backlog(&behind_store.read(), class, &mut queue).unwrap();
        assert_eq!(queue.pop_begun(), Some(waiting(1, FIRST)));
        // What the other one has left meanwhile is found, and then all goes through the queue again.
        while busy.has_backlog(class) {
            busy.page_backlog(&busy_store.read(), class, &mut queue).unwrap();
        }
        assert_eq!(queue.take_all().len(), queued);
        queue.on_no_backlog(class);
        ask(&mut busy, &mut busy_store, &mut queue);
        assert_eq!(queue.len_of(class), 1);
    }
}
