//! Deterministic simulation: whole nodes on a simulated clock, disk, engine, handlers and Kafka, from one seed.
//!
//! Owns: the executor, the handlers' side of the protocol, brokers, scenarios and their checkers. Does not own: wiring (a simulated
//! node is started by the same `Node::start` as a real one), or anything that ships. Clock and tasks are the executor's, the disk
//! loses what was not synced, the engine what was not flushed; power fails between any two polls or disk operations.

mod broker;
mod clients;
mod ending;
mod executor;
mod handler;
mod member;
mod operators;
mod services;
mod topics;
mod transport;
mod wire;
mod world;

pub use surefoot_server::node::Mutants;
pub use world::{Report, Scenario, run};
