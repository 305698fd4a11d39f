//! The loop of a partition: log, machine, storage, effects.
//!
//! Owns: the workers that apply durable records, the timer wheel, the outbox, leadership, checkpoints, and [`Partitions`], the
//! handle through which ingress, kafka and admin submit, operate and read. Does not own: any rule about invocations (`machine`),
//! HTTP, or Kafka.
//!
//! In reading order: `start` recovers; `worker` is the loop over its `owned` partitions; `acting` is one of them, and its parts are
//! `attempts` (with `starting` and `replay`), `outbox`, `timers` (with `wheel`), `chores`, `clients`, `publisher` and `housekeeping`, each of
//! the same shape: `on_...` takes what happened, `turn` says what is to be appended. `handle` is the way in from outside, `views`
//! and `query` the way to read.

mod acting;
mod answers;
mod apply;
mod attempts;
mod brought;
mod checkpointer;
mod chores;
mod clients;
mod disk;
mod gate;
mod given;
mod handle;
mod held_back;
mod housekeeping;
mod large;
mod mailbox;
mod outbox;
mod owned;
mod publisher;
mod query;
mod replay;
mod resumed;
mod retained;
#[cfg(test)]
mod scenarios;
mod settings;
mod start;
mod starting;
#[cfg(test)]
mod testing;
mod timers;
mod turns;
mod views;
mod wheel;
mod worker;

pub use answers::{Answer, Stopped};
pub use checkpointer::Fatal;
pub use disk::DISK_RESERVE_SHARE;
pub use gate::{DiskRoom, DiskStatus, Shortage, edges_bytes_max};
pub use handle::{Partitions, Submitted};
pub use query::{InvocationInfo, InvocationPage, LIST_MAX, ListFilter, ParkedInfo, ParkedPage, PartitionHealth, SourceInfo};
pub use settings::{Mutant, Settings};
pub use start::{Recovering, StartError, Started};
pub use surefoot_invoker::Lines;
pub use surefoot_machine::{Mutant as MachineMutant, OperationAnswer};
pub use surefoot_storage::Row;
