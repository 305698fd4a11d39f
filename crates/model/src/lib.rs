//! The vocabulary of Surefoot, shared by every room, and its one at-rest encoding.
//!
//! Owns: ids and their text forms, targets, journal entries, events, effects' payload types, the catalog, and how each of them is
//! stored (`encoding`). Does not own: settings, metrics, HTTP, async, or any rule about what happens next.

mod ids;

pub use ids::{Epoch, Lsn, PartitionId};
