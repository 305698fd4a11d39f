//! The operator's REST API over a node.
//!
//! Owns: registration and discovery, the catalog's changes and their validation, actions on invocations, metrics' page, and
//! every HTTP shape of the admin port. Does not own: invocation traffic (`ingress`), SQL, or reading Kafka (see [`Sources`]).

mod sources;

pub use sources::{SourcePartition, SourceStatus, Sources};
