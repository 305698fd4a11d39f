//! A whole node: its settings, and the wiring of the rooms.
//!
//! Owns: the checked configuration. Does not own: rules of any kind.

pub mod config;
