//! Rules that the compiler and clippy cannot see, each a plain test.
//!
//! Owns: the rules' texts and exceptions. Does not own: what clippy can see (`clippy.toml`, `clippy-simulated.toml`). A failure
//! names file and line, and says what to do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod codes;
mod metrics;
mod rooms;
mod sources;
mod text;
