//! The state machines: `apply(state, record)` to effects. Plain synchronous code: no clock, no randomness, no IO, no logging.
//!
//! Owns: every rule about what happens to invocations, keys, journals, timers, state, streams and the catalog, and the list of
//! tables they live in. Does not own: where tables are stored (`storage`), who carries effects out (`partition`), or what clock,
//! catalog and settings say: that was resolved at the edge and lies in the event (rule M1).

mod apply;
mod attempt;
mod bounds;
pub mod catalog;
mod chore;
mod effect;
mod invocation;
mod journal;
mod object;
mod operator;
mod outbox;
mod retention;
mod source;
mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod timer;

pub use apply::{Mutant, apply, apply_broken};
pub use bounds::Bounds;
pub use chore::Chore;
pub use effect::{Effect, OperationAnswer};
pub use tables::{
    CatalogKey, CatalogRow, CatalogRows, ChoreOutcomes, ChorePageKey, ChorePages, Chores, Expiries, ExpiryKey, ExpiryRow, Family,
    Inbound, Inbox, InboxKey, Invocations, Journal, JournalKey, ListingKey, Listings, Meta, MetaRow, ObjectRow, Objects, Open,
    OpenKey, Outbox, OutboxKey, OutboxRow, Outboxes, Parked, ParkedKey, Rows, Running, RunningKey, SourceRow, Sources, State,
    StateError, StateKey, StateNames, StateRow, StateValue, StateValues, States, Streams, Table, TableSet, TimerKey, Timers,
    Visit, WaiterKey, Waiters,
};
