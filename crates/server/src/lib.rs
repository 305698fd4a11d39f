//! A whole node: its settings, its data directory, and the wiring of the rooms.
//!
//! Owns: the checked configuration, and the order of starting and stopping. Does not own: rules of any kind.

pub mod backup;
pub mod config;
pub mod data_dir;
mod descriptors;
pub mod disk;
pub mod doctor;
pub mod memory;
pub mod node;
pub mod restore;
pub mod serve;
pub mod sources;
pub mod telemetry;
