//! Identity: random numbers for ids and seeds. Nothing else in a simulated room may draw randomness.

use std::cell::RefCell;

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

/// Numbers that a thread asks the operating system for at once: a call of it for each would cost more than all else about an id.
const DRAWN: usize = 64;

/// Numbers that were drawn and not given out.
struct Drawn {
    bytes: [u8; DRAWN * size_of::<u64>()],
    left: usize,
}

thread_local! {
    static DRAWN_HERE: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; DRAWN * size_of::<u64>()], left: 0 }) };
}

impl Drawn {
    fn next(&mut self) -> u64 {
        if self.left == 0 {
            getrandom::fill(&mut self.bytes).expect("the operating system's random source works once a process runs");
            self.left = DRAWN;
        }
        self.left -= 1;
        let (numbers, _) = self.bytes.as_chunks();
        u64::from_ne_bytes(numbers[self.left])
    }
}

impl Ids for OsIds {
    fn random_u64(&self) -> u64 {
        DRAWN_HERE.with_borrow_mut(Drawn::next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_number_is_given_out_twice() {
        let drawn = || (0..DRAWN * 3).map(|_| OsIds.random_u64()).collect::<Vec<_>>();
        let there = std::thread::spawn(drawn);
        let mut all = drawn();
        all.extend(there.join().unwrap());
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
