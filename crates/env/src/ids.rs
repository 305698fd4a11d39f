//! Identity: random numbers for ids and seeds. Nothing else in a simulated room may draw randomness.

pub trait Ids: Send + Sync {
    /// A number drawn uniformly from all 64-bit numbers.
    fn random_u64(&self) -> u64;

    /// A number drawn uniformly from all 128-bit numbers.
    fn random_u128(&self) -> u128 {
        u128::from(self.random_u64()) << 64 | u128::from(self.random_u64())
    }
}

/// The operating system's random source.
pub struct OsIds;

impl Ids for OsIds {
    fn random_u64(&self) -> u64 {
        getrandom::u64().expect("the operating system's random source works once a process runs")
    }
}
