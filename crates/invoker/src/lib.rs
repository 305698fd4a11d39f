//! Attempts: one task and one HTTP stream each, from a journal to the events it yields.
//!
//! Owns: replay, live delivery, retry verdicts, timeouts, suspension by half-close, the bounds on attempts and bytes in flight,
//! the [`Transport`] seam and its HTTP/2 version. Does not own: storage, timers that outlive an attempt, or any fate but the
//! verdict. What an attempt brings goes to an [`Output`]; what it is to know comes in [`AttemptStart`] and live.

mod api;
mod attempt;
mod completions;
mod feed;
mod invoker;
mod lines;
mod metrics;
mod pace;
mod parts;
mod places;
mod reach;
mod retry;
pub mod transport;

pub use api::{
    AttemptStart, Destination, EagerState, JournalRest, Live, MemoryTicket, Mutant, Output, ReadEntries, Room, Settings,
};
pub use feed::{Dropped, Feeds, Notifications, Notifier, Told};
pub use invoker::{Admission, Invoker, ReplayBytes};
pub use lines::Lines;
pub use pace::{AnswerPace, COUNTS as ANSWER_COUNTS, WINDOW_MIN as ANSWER_WINDOW_MIN};
pub use retry::{Delay, Wish, verdict};
pub use transport::{
    DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, OpenRequest, Transport, TransportError, UNSENT_BYTES_MAX,
};
