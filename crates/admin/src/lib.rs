//! The operator's API over a node.
//!
//! Owns: [`Admin`], through which an operator registers, subscribes and operates without HTTP, and [`Server`], the REST API above
//! it with every HTTP shape of the admin port. Does not own: invocation traffic (`ingress`), SQL, or reading Kafka (see
//! [`Sources`]). Source: HTTP reference sections 2.1 to 2.6, 6.1 and 6.2.

mod admin;
mod backups;
mod clusters;
mod deployments;
mod discover;
mod error;
mod extract;
mod invocations;
mod listen;
mod routes;
mod services;
mod sources;
mod subscriptions;
mod text;

pub use admin::{Admin, MetricsPage, Readiness, Settings};
pub use backups::{BackedUp, BackupError, Backups};
pub use clusters::NewCluster;
pub use deployments::{NewDeployment, Registration};
pub use error::Error;
pub use listen::Server;
pub use sources::{SourcePartition, SourceStatus, Sources};
pub use subscriptions::NewSubscription;
