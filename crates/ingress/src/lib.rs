//! The way in for clients: find the handler, submit, await the result.
//!
//! Owns: [`Ingress`], through which a client calls and sends without HTTP, and [`Server`], HTTP above it: routes, checks and
//! their order, headers that reach handlers, answers and errors. Does not own: reading tables, or what becomes of a submission.
//! Source: HTTP reference sections 1.1 to 1.9.

mod arrivals;
mod body;
mod check;
mod cors;
mod delay;
mod error;
mod ingress;
mod listen;
mod metrics;
mod reply;
mod route;
mod service;
mod wait;

pub use arrivals::ArrivalBounds;
pub use body::BodyBounds;
pub use error::{Error, ErrorSource};
pub use ingress::{Accepted, Completed, Ingress, Request};
pub use listen::{Limits, Server};
pub use service::REQUEST_BYTES;
