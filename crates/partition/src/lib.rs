//! The loop of a partition: log, machine, storage, effects.
//!
//! Owns: the workers that apply durable records, the timer wheel, the outbox, leadership, checkpoints, and [`Partitions`], the
//! handle through which ingress, kafka and admin submit, operate and read. Does not own: any rule about invocations (`machine`),
//! HTTP, or Kafka.

mod answers;
mod checkpointer;
mod gate;
mod handle;
mod housekeeping;
mod mailbox;
mod query;
mod replay;
mod start;
mod views;
mod wheel;
mod worker;

pub use answers::{Answer, Stopped};
pub use handle::{Partitions, Submitted};
pub use query::{InvocationInfo, InvocationPage, LIST_MAX, ListFilter, ParkedInfo, ParkedPage, PartitionHealth, SourceInfo};
pub use start::{Recovering, StartError, Started};
pub use surefoot_machine::{Mutant as MachineMutant, OperationAnswer};
pub use worker::{Mutant, Settings};
