//! What an invocation's commands wait for: their completion ids, and which of them the handler knows the result of.
//!
//! Owns: ids taken twice, whether a handler only waits (rule O5), and whether anything can wake one that suspends. Does not own:
//! the journal, or what is sent when.

use std::collections::BTreeMap;
use surefoot_model::{Action, Entry, NotificationId, entry_type};

/// Completion ids of one invocation, as one attempt knows them.
#[derive(Debug, Default)]
pub(crate) struct Completions {
    ids: BTreeMap<u32, State>,
    /// How many of each are open.
    runs: usize,
    soon: usize,
    waits: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Of a run whose result has not been proposed: only the handler can bring it.
    Run,
    /// Answered as soon as it is stored.
    Soon,
    /// Of a sleep or a call: it takes as long as it takes.
    Wait,
    /// The handler was sent the result.
    Known,
}

/// Why a suspension would never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwakeable {
    #[error("the handler suspended on completion {0}, which none of its commands has (RT0012)")]
    Unknown(u32),
    #[error("the handler suspended on nothing but its own steps, which nobody else can finish (SF3002)")]
    OwnRuns,
    #[error("the handler suspended on results that it has been sent (SF3002)")]
    Known,
    #[error(
        "the handler waits for an awakeable or a signal, which this server does not support yet; it would wait for ever (SF3003)"
    )]
    Signals,
}

impl Completions {
    /// An entry of the journal that the handler is sent.
    pub(crate) fn replayed(&mut self, entry: &Entry) {
        match entry {
            Entry::Command { ty, raw } => {
                let ids = surefoot_protocol::completion_ids(*ty, raw);
                for (at, id) in ids.enumerate() {
                    let state = match *ty {
                        entry_type::RUN => State::Run,
                        entry_type::SLEEP => State::Wait,
                        // A call's first id is that of its callee's.
                        entry_type::CALL if at == 1 => State::Wait,
                        _ => State::Soon,
                    };
                    // The journal was checked when it was written.
                    self.insert(id, state);
                }
            }
            Entry::Notification(notification) => self.delivered(&notification.id),
        }
    }

    /// A new command. **Errors**: the id that another command has.
    pub(crate) fn command(&mut self, action: &Action) -> Result<(), u32> {
        let ids = match action {
            Action::GetState { completion, .. } | Action::GetStateKeys { completion } => [Some((*completion, State::Soon)), None],
            Action::Sleep { completion, .. } => [Some((*completion, State::Wait)), None],
            Action::Run { completion } => [Some((*completion, State::Run)), None],
            Action::Call { id_completion, result, .. } => {
                [Some((*id_completion, State::Soon)), result.map(|result| (result, State::Wait))]
            }
            _ => return Ok(()),
        };
        for (id, state) in ids.into_iter().flatten() {
            if self.ids.contains_key(&id) {
                return Err(id);
            }
            self.insert(id, state);
        }
        Ok(())
    }

    /// A run's result is on its way into the journal.
    pub(crate) fn proposed(&mut self, id: u32) {
        if let Some(state) = self.ids.get_mut(&id)
            && *state == State::Run
        {
            *state = State::Soon;
            self.runs -= 1;
            self.soon += 1;
        }
    }

    /// The handler was sent a notification.
    pub(crate) fn delivered(&mut self, id: &NotificationId) {
        if let NotificationId::Completion(id) = id
            && let Some(state) = self.ids.get_mut(id)
        {
            let before = std::mem::replace(state, State::Known);
            if let Some(count) = self.count(before) {
                *count -= 1;
            }
        }
    }

    /// Whether the handler can do nothing but wait: for sleeps and calls, and for no step of its own.
    pub(crate) fn only_waits(&self) -> bool {
        self.waits > 0 && self.runs == 0 && self.soon == 0
    }

    /// Completions that have not come.
    pub(crate) fn open(&self) -> u32 {
        u32::try_from(self.runs + self.soon + self.waits).unwrap_or(u32::MAX)
    }

    /// Whether one of these can come that the handler does not have.
    pub(crate) fn can_wake(&self, awaiting: &[NotificationId]) -> Result<(), Unwakeable> {
        let mut why = Unwakeable::Signals;
        let mut can_wake = false;
        for id in awaiting {
            // Nobody can send a signal yet.
            let NotificationId::Completion(id) = id else { continue };
            match self.ids.get(id) {
                None => return Err(Unwakeable::Unknown(*id)),
                Some(State::Soon | State::Wait) => can_wake = true,
                Some(State::Run) => why = Unwakeable::OwnRuns,
                Some(State::Known) if why == Unwakeable::OwnRuns => {}
                Some(State::Known) => why = Unwakeable::Known,
            }
        }
        if can_wake { Ok(()) } else { Err(why) }
    }

    fn insert(&mut self, id: u32, state: State) {
        if self.ids.insert(id, state).is_none()
            && let Some(count) = self.count(state)
        {
            *count += 1;
        }
    }

    fn count(&mut self, state: State) -> Option<&mut usize> {
        match state {
            State::Run => Some(&mut self.runs),
            State::Soon => Some(&mut self.soon),
            State::Wait => Some(&mut self.waits),
            State::Known => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_model::Timestamp;

    fn completion(id: u32) -> NotificationId {
        NotificationId::Completion(id)
    }

    #[test]
    fn a_handler_only_waits_while_none_of_its_steps_is_open() {
        let mut completions = Completions::default();
        assert!(!completions.only_waits());
        completions.command(&Action::Sleep { until: Timestamp(1), completion: 1 }).unwrap();
        assert!(completions.only_waits());
        completions.command(&Action::Run { completion: 2 }).unwrap();
        assert!(!completions.only_waits());
        completions.proposed(2);
        assert!(!completions.only_waits(), "the handler waits for the server to keep the result");
        completions.delivered(&completion(2));
        completions.delivered(&completion(2));
        assert!(completions.only_waits());
        completions.delivered(&completion(1));
        assert!(!completions.only_waits());
        assert_eq!(completions.command(&Action::Run { completion: 1 }), Err(1));
    }

    #[test]
    fn a_suspension_that_nothing_can_end_is_found() {
        let mut completions = Completions::default();
        completions.command(&Action::Run { completion: 1 }).unwrap();
        completions.command(&Action::Sleep { until: Timestamp(1), completion: 2 }).unwrap();
        let cancellation = NotificationId::Signal(1);
        let check = |completions: &Completions, ids: &[u32]| {
            let awaiting: Vec<_> = ids.iter().copied().map(completion).chain([cancellation.clone()]).collect();
            completions.can_wake(&awaiting)
        };
        assert_eq!(check(&completions, &[1, 2]), Ok(()));
        assert_eq!(check(&completions, &[1]), Err(Unwakeable::OwnRuns));
        assert_eq!(check(&completions, &[]), Err(Unwakeable::Signals));
        assert_eq!(check(&completions, &[2, 7]), Err(Unwakeable::Unknown(7)));
        completions.delivered(&completion(2));
        assert_eq!(check(&completions, &[2]), Err(Unwakeable::Known));
        completions.proposed(1);
        assert_eq!(check(&completions, &[1]), Ok(()));
    }
}
