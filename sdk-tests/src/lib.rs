//! Process tests: the real server, a real Kafka broker, and handlers written with the published SDKs.
//!
//! Owns: starting, killing and restarting those processes on ports that they keep; the ledger outside of them; the driver that
//! judges the two programs of `examples/` in any language; preparing what the packages' registries have to give. Does not own:
//! what is asserted about single features, which lies in `tests/`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "progress of tests that take minutes")]

pub mod broker;
pub mod by_hand;
pub mod driver;
pub mod handlers;
pub mod judge;
pub mod languages;
pub mod ledger;
pub mod places;
pub mod process;
pub mod server;
pub mod volume;
pub mod wait;

pub use broker::Broker;
pub use handlers::Handlers;
pub use languages::Language;
pub use ledger::Ledger;
pub use server::Server;
pub use volume::Volume;

/// The seed of this run: `SUREFOOT_TEST_SEED`, or one that no run has had. It is printed, so that a run can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("SUREFOOT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..1 << 32));
    eprintln!("seed: SUREFOOT_TEST_SEED={seed}");
    seed
}
