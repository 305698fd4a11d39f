//! The local log against a disk that loses power.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by their attribute, not their helpers")]

mod harness;

mod backup;
mod conformance;
mod crash;
mod inspect;
mod room;
mod segments;
mod threads;
mod torn;
