//! Work that takes more rows or bytes than one record may touch (rule M9).
//!
//! What others can see has changed at once: an invocation has completed, a key's values are of another generation, a subscription is
//! closed. What is left over lies under numbers that nobody uses again, or is a result that reaches those who wait one after the
//! other. It is a row here, done piece by piece: the first by the record that causes it, as far as that may, each further one by a
//! [`ChoreDue`](surefoot_model::Event::ChoreDue).
//!
//! Owns: the list of such work and its steps. Does not own: when the next step comes (`partition`).

use crate::apply::Context;
use crate::{
    CatalogKey, CatalogRows, ChoreOutcomes, ChorePageKey, ChorePages, Chores, Effect, Invocations, Journal, JournalKey,
    ListingKey, Listings, Open, OpenKey, Parked, ParkedKey, Rows, Sources, State, StateError, StateKey, StateNames, StateValues,
    Streams, Table, WaiterKey, Waiters, invocation, journal, object, operator, timer,
};
use minicbor::{Decode, Encode};
use surefoot_model::{
    Caller, Incarnation, InvocationId, Life, Notification, NotificationId, ObjectKey, OpenCompletion, Outcome, PartitionId,
    Resolution, Stage, StreamId, SubscriptionId, Text, entry_type,
};

/// What is left to do, and where it goes on.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Chore {
    /// Entries `next..end` of a journal go.
    #[n(0)]
    DeleteJournal {
        #[n(0)]
        life: Incarnation,
        #[n(1)]
        next: u32,
        #[n(2)]
        end: u32,
    },
    /// What a life that is over waited for is waited for no more.
    #[n(1)]
    CloseOpen {
        #[n(0)]
        life: Life,
        /// Completion ids from here on.
        #[n(1)]
        next: u32,
        #[n(2)]
        left: u32,
        #[n(3)]
        callees: Callees,
    },
    /// A result is told to the invocations that wait for it. It lies in a row of its own, written once.
    #[n(2)]
    AnswerWaiters {
        #[n(0)]
        callee: Incarnation,
        #[n(1)]
        left: u32,
        /// The last one that has been told.
        #[n(2)]
        after: Option<Caller>,
    },
    /// Values of a generation that is over go.
    #[n(3)]
    ClearState {
        #[n(0)]
        object: ObjectKey,
        #[n(1)]
        generation: u64,
        #[n(2)]
        left: u32,
        #[n(3)]
        after: Option<Text>,
    },
    /// The names of a key's values are listed for a handler that asked for them.
    #[n(4)]
    ListNames {
        #[n(0)]
        life: Life,
        #[n(1)]
        completion: u32,
        #[n(2)]
        object: ObjectKey,
        #[n(3)]
        generation: u64,
        #[n(4)]
        after: Option<Text>,
        /// Collected so far.
        #[n(5)]
        pages: u32,
        /// Bytes of the names on them.
        #[n(6)]
        bytes: u64,
    },
    /// Watermarks of epochs before this one go.
    #[n(5)]
    ForgetStreams {
        #[n(0)]
        subscription: SubscriptionId,
        #[n(1)]
        before_epoch: u32,
        #[n(2)]
        after: Option<StreamId>,
    },
    /// Positions of a subscription's epochs before this one go.
    #[n(7)]
    ForgetPositions {
        #[n(0)]
        subscription: SubscriptionId,
        #[n(1)]
        before_epoch: u32,
        #[n(2)]
        after: Option<StreamId>,
    },
    /// Parked Kafka records of a closed subscription go.
    #[n(6)]
    ForgetParked {
        #[n(0)]
        subscription: SubscriptionId,
        /// Row numbers `next..end`: by those and unread, for what is parked may be large.
        #[n(1)]
        next: u64,
        #[n(2)]
        end: u64,
    },
}

/// What becomes of the invocations that one which is over had called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Callees {
    /// They go on.
    #[n(0)]
    GoOn,
    /// They are killed, too.
    #[n(1)]
    Die,
}

/// Does what this record may do of a chore, and leaves the rest to others.
pub(crate) fn begin<S: State>(cx: &mut Context<S>, chore: Chore) -> Result<(), StateError> {
    match step(cx, chore)? {
        Some(rest) => {
            let _number = put_off(cx, rest);
            Ok(())
        }
        None => Ok(()),
    }
}

/// Leaves a chore to other records; its number.
fn put_off<S: State>(cx: &mut Context<S>, chore: Chore) -> u64 {
    let number = cx.next_chore();
    cx.state.insert::<Chores>(number, chore);
    cx.effect(Effect::SetChore(number));
    number
}

/// Has a life told the names of a generation, once they are collected. They stay until then, whether they are cleared or not.
pub(crate) fn list<S: State>(cx: &mut Context<S>, life: Life, completion: u32, object: ObjectKey, generation: u64) {
    let (after, pages, bytes) = (None, 0, 0);
    let chore = put_off(cx, Chore::ListNames { life, completion, object, generation, after, pages, bytes });
    cx.state.insert::<Listings>(ListingKey { generation, chore }, ());
}

/// Has a result told to the invocations that wait for it, `left` of them.
pub(crate) fn answer<S: State>(cx: &mut Context<S>, callee: Incarnation, left: u32, outcome: &Outcome) -> Result<(), StateError> {
    if let Some(rest) = answer_waiters(cx, callee, left, outcome, None)? {
        let number = put_off(cx, rest);
        cx.state.insert::<ChoreOutcomes>(number, outcome.clone());
    }
    Ok(())
}

/// Does the next piece of a chore.
pub(crate) fn due<S: State>(cx: &mut Context<S>, number: u64) -> Result<(), StateError> {
    let rest = match cx.state.get::<Chores>(&number)? {
        None => return Ok(()),
        Some(Chore::ListNames { life, completion, object, generation, after, pages, bytes }) => {
            list_names(cx, number, NamesAsked { life, completion, object, generation, after, pages, bytes })?
        }
        Some(Chore::AnswerWaiters { callee, left, after }) => {
            let outcome = cx.state.get::<ChoreOutcomes>(&number)?;
            let outcome = outcome.expect("rule M9: what a chore tells is there until its end");
            let rest = answer_waiters(cx, callee, left, &outcome, after)?;
            if rest.is_none() {
                cx.state.delete::<ChoreOutcomes>(&number);
            }
            rest
        }
        Some(chore) => step(cx, chore)?,
    };
    match rest {
        Some(rest) => {
            cx.state.put::<Chores>(number, rest);
            cx.effect(Effect::SetChore(number));
        }
        None => cx.state.delete::<Chores>(&number),
    }
    Ok(())
}

/// What is left of a chore after one step.
fn step<S: State>(cx: &mut Context<S>, chore: Chore) -> Result<Option<Chore>, StateError> {
    match chore {
        Chore::DeleteJournal { life, next, end } => {
            let until = next + cx.take_steps(end - next, 1);
            for index in next..until {
                cx.state.delete::<Journal>(&JournalKey { life, index });
            }
            Ok((until < end).then_some(Chore::DeleteJournal { life, next: until, end }))
        }
        Chore::CloseOpen { life, next, left, callees } => close_open(cx, life, next, left, callees),
        Chore::ClearState { object, generation, left, after } => clear_state(cx, object, generation, left, after),
        Chore::ForgetStreams { subscription, before_epoch, after } => forget_streams(cx, subscription, before_epoch, after),
        Chore::ForgetPositions { subscription, before_epoch, after } => forget_positions(cx, subscription, before_epoch, after),
        Chore::ForgetParked { subscription, next, end } => {
            let wanted = u32::try_from(end - next).unwrap_or(u32::MAX);
            let until = next + u64::from(cx.take_steps(wanted, 1));
            for number in next..until {
                cx.state.delete::<Parked>(&ParkedKey { subscription, number });
            }
            Ok((until < end).then_some(Chore::ForgetParked { subscription, next: until, end }))
        }
        Chore::ListNames { .. } | Chore::AnswerWaiters { .. } => unreachable!("they have rows of their own, by their numbers"),
    }
}

fn close_open<S: State>(
    cx: &mut Context<S>,
    life: Life,
    next: u32,
    left: u32,
    callees: Callees,
) -> Result<Option<Chore>, StateError> {
    let steps = cx.take_steps(left, 3);
    let from = OpenKey { life: life.incarnation, completion: next };
    let to = OpenKey { life: Incarnation(life.incarnation.0 + 1), completion: 0 };
    let rows = first::<Open, S>(cx, &from, &to, steps, left)?;
    assert_eq!(rows.len(), steps as usize, "rule O7: the row of {} counts its open completions", life.id);
    let mut next = next;
    for (key, open) in rows {
        next = key.completion.saturating_add(1);
        cx.state.delete::<Open>(&key);
        match open {
            OpenCompletion::Run => {}
            OpenCompletion::Sleep { until } => timer::clear(cx, timer::of_sleep(life, key.completion, until)),
            OpenCompletion::Call { callee, partition } => match callees {
                Callees::GoOn => {}
                Callees::Die => operator::kill_callee(cx, life, key.completion, callee, partition)?,
            },
        }
    }
    let left = left - steps;
    Ok((left > 0).then_some(Chore::CloseOpen { life, next, left, callees }))
}

fn answer_waiters<S: State>(
    cx: &mut Context<S>,
    callee: Incarnation,
    left: u32,
    outcome: &Outcome,
    after: Option<Caller>,
) -> Result<Option<Chore>, StateError> {
    let steps = cx.take_large_steps(left, 3, outcome.bytes());
    let from = WaiterKey { callee, caller: after.unwrap_or(FIRST_CALLER) };
    let to = WaiterKey { callee: Incarnation(callee.0 + 1), caller: FIRST_CALLER };
    let mut after = after;
    // Those before `after` have gone, itself included.
    let rows = first::<Waiters, S>(cx, &from, &to, steps, left)?;
    assert_eq!(rows.len(), steps as usize, "rule O7: an invocation's row counts its waiters");
    for (key, ()) in rows {
        cx.state.delete::<Waiters>(&key);
        invocation::reply_to(cx, &key.caller, outcome.clone())?;
        after = Some(key.caller);
    }
    let left = left - steps;
    Ok((left > 0).then_some(Chore::AnswerWaiters { callee, left, after }))
}

const FIRST_CALLER: Caller = Caller {
    partition: PartitionId(0),
    id: InvocationId { partition_key: 0, unique: 0 },
    incarnation: Incarnation(0),
    completion: 0,
};

fn clear_state<S: State>(
    cx: &mut Context<S>,
    object: ObjectKey,
    generation: u64,
    left: u32,
    after: Option<Text>,
) -> Result<Option<Chore>, StateError> {
    if is_listed(cx, generation)? {
        // Whoever asked for them before they were cleared is told all of them.
        return Ok(Some(Chore::ClearState { object, generation, left, after }));
    }
    let steps = cx.take_steps(left, 2);
    let (from, to) = names_range(&object, generation, after.as_ref());
    let rows = first::<StateNames, S>(cx, &from, &to, steps, left)?;
    assert_eq!(rows.len(), steps as usize, "rule O7: a key's row counts its values");
    let names: Vec<Text> = rows.into_iter().map(|(key, _)| key.name).collect();
    let after = names.last().cloned().or(after);
    for name in names {
        let key = StateKey { object: object.clone(), generation, name };
        cx.state.delete::<StateNames>(&key);
        cx.state.delete::<StateValues>(&key);
    }
    let left = left - steps;
    Ok((left > 0).then_some(Chore::ClearState { object, generation, left, after }))
}

/// Whether a chore lists the names of a generation.
fn is_listed<S: State>(cx: &Context<S>, generation: u64) -> Result<bool, StateError> {
    let first = |generation| ListingKey { generation, chore: 0 };
    Ok(!cx.state.scan::<Listings>(&first(generation), Some(&first(generation + 1)), 1)?.is_empty())
}

/// Where the names of a generation lie, behind `after`.
pub(crate) fn names_range(object: &ObjectKey, generation: u64, after: Option<&Text>) -> (StateKey, StateKey) {
    let first = after.map_or_else(Text::default, |after| format!("{after}\0").into());
    let from = StateKey { object: object.clone(), generation, name: first };
    let to = StateKey { object: object.clone(), generation: generation + 1, name: Text::default() };
    (from, to)
}

/// The first `wanted` of the entries with `from <= key < to`, of which there are `left`.
fn first<T: Table, S: State>(cx: &Context<S>, from: &T::Key, to: &T::Key, wanted: u32, left: u32) -> Result<Rows<T>, StateError> {
    match wanted {
        0 => Ok(Vec::new()),
        _ if wanted == left => cx.state.all::<T>(from, to, left as usize),
        _ => cx.state.scan::<T>(from, Some(to), wanted as usize),
    }
}

struct NamesAsked {
    life: Life,
    completion: u32,
    object: ObjectKey,
    generation: u64,
    after: Option<Text>,
    pages: u32,
    bytes: u64,
}

/// Names that are read at a time: so many of the longest that there are may be read beyond the bytes of a page.
const NAMES_READ: u32 = 64;

/// A page of names, and whether it is the last one.
fn page_of_names<S: State>(
    cx: &mut Context<S>,
    object: &ObjectKey,
    generation: u64,
    after: Option<&Text>,
) -> Result<(Vec<Text>, bool), StateError> {
    let mut names: Vec<Text> = Vec::new();
    let (mut left, mut bytes) = (cx.take_steps(cx.bounds.page_names, 1), 0);
    while left > 0 && bytes < cx.bounds.page_name_bytes {
        let wanted = left.min(NAMES_READ);
        let (from, to) = names_range(object, generation, names.last().or(after));
        let rows = cx.state.scan::<StateNames>(&from, Some(&to), wanted as usize)?;
        let is_last = rows.len() < wanted as usize;
        for (key, _) in rows {
            if bytes < cx.bounds.page_name_bytes {
                bytes += key.name.len();
                left -= 1;
                names.push(key.name);
            }
        }
        if is_last {
            return Ok((names, bytes < cx.bounds.page_name_bytes));
        }
    }
    Ok((names, false))
}

/// The list is of one instant if nobody sets or clears single values meanwhile; else some of that may show in it. A clear of all does
/// not: the names stay until they are listed.
fn list_names<S: State>(cx: &mut Context<S>, number: u64, asked: NamesAsked) -> Result<Option<Chore>, StateError> {
    let NamesAsked { life, completion, object, generation, after, pages, bytes } = asked;
    let (mut names, is_last) = page_of_names(cx, &object, generation, after.as_ref())?;
    let bytes = bytes + names.iter().map(|name| name.len() as u64).sum::<u64>();
    // More may have been set meanwhile.
    let is_too_large = bytes > cx.bounds.listed_name_bytes;
    let found = cx.state.get::<Invocations>(&life.id)?.filter(|invocation| invocation.incarnation == life.incarnation);
    let is_waiting = found.as_ref().is_some_and(|invocation| matches!(invocation.stage, Stage::Active(_)));
    if !is_last && is_waiting && !is_too_large {
        let after = names.last().cloned();
        cx.state.insert::<ChorePages>(ChorePageKey { chore: number, page: pages }, names);
        return Ok(Some(Chore::ListNames { life, completion, object, generation, after, pages: pages + 1, bytes }));
    }
    cx.state.delete::<Listings>(&ListingKey { generation, chore: number });
    let mut all = Vec::new();
    for page in 0..pages {
        let key = ChorePageKey { chore: number, page };
        let collected = cx.state.get::<ChorePages>(&key)?;
        all.append(&mut collected.expect("rule M9: a chore's pages are there until its end"));
        cx.state.delete::<ChorePages>(&key);
    }
    all.append(&mut names);
    let Some(mut invocation) = found else { return Ok(None) };
    if let Stage::Active(active) = std::mem::replace(&mut invocation.stage, Stage::Scheduled) {
        let notification = Notification {
            ty: entry_type::GET_LAZY_STATE_KEYS_COMPLETION,
            id: NotificationId::Completion(completion),
            result: if is_too_large { Resolution::Failure(object::too_large(cx, bytes)) } else { Resolution::StateKeys(all) },
        };
        journal::notify(cx, life.id, invocation, active, notification);
    }
    Ok(None)
}

fn forget_positions<S: State>(
    cx: &mut Context<S>,
    subscription: SubscriptionId,
    before_epoch: u32,
    after: Option<StreamId>,
) -> Result<Option<Chore>, StateError> {
    let bound = |epoch| StreamId { subscription, epoch, topic: 0, partition: i32::MIN };
    let limit = cx.take_steps(cx.steps_left(1).max(1), 1) as usize;
    let (from, to) = (CatalogKey::Position(after.unwrap_or(bound(0))), CatalogKey::Position(bound(before_epoch)));
    let rows = cx.state.scan::<CatalogRows>(&from, Some(&to), limit)?;
    let is_last = rows.len() < limit;
    let mut after = after;
    for (key, _) in rows {
        cx.state.delete::<CatalogRows>(&key);
        if let CatalogKey::Position(stream) = key {
            after = Some(stream);
        }
    }
    Ok((!is_last).then_some(Chore::ForgetPositions { subscription, before_epoch, after }))
}

fn forget_streams<S: State>(
    cx: &mut Context<S>,
    subscription: SubscriptionId,
    before_epoch: u32,
    after: Option<StreamId>,
) -> Result<Option<Chore>, StateError> {
    // One that was opened again meanwhile keeps what it has read since.
    let before_epoch = cx.state.get::<Sources>(&subscription)?.map_or(before_epoch, |row| row.epoch.min(before_epoch));
    let bound = |epoch| StreamId { subscription, epoch, topic: 0, partition: i32::MIN };
    let limit = cx.steps_left(1) as usize;
    let rows = cx.state.scan::<Streams>(&after.unwrap_or(bound(0)), Some(&bound(before_epoch)), limit)?;
    let is_last = rows.len() < limit;
    cx.take_steps(rows.len() as u32, 1);
    let after = rows.last().map(|(stream, _)| *stream).or(after);
    for (stream, _) in rows {
        cx.state.delete::<Streams>(&stream);
    }
    Ok((!is_last).then_some(Chore::ForgetStreams { subscription, before_epoch, after }))
}
