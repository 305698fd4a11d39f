//! Results on their way to clients.
//!
//! Owns: that large ones count as memory ([`Gate`]) until their clients have taken the last of them, whoever holds them meanwhile. Does not
//! own: which clients take theirs too slowly (`listener`).

use crate::gate::Gate;
use bytes::Bytes;
use std::sync::Arc;
use surefoot_model::Outcome;

/// Results count from this size on. Smaller ones leave with the buffers of their connections.
const LARGE_BYTES: usize = 64 << 10;

/// A result that counts until it has left.
struct GivenBytes {
    result: Bytes,
    gate: Arc<Gate>,
}

impl AsRef<[u8]> for GivenBytes {
    fn as_ref(&self) -> &[u8] {
        &self.result
    }
}

impl Drop for GivenBytes {
    fn drop(&mut self) {
        self.gate.taken(self.result.len() as u64);
    }
}

/// A result that has just come to be: it has to be given, once for all who wait for it.
pub(crate) fn given(gate: &Arc<Gate>, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Success(result) if result.len() >= LARGE_BYTES => {
            gate.give(result.len() as u64);
            Outcome::Success(Bytes::from_owner(GivenBytes { result, gate: gate.clone() }))
        }
        other => other,
    }
}

/// A result that is kept, and can be asked for again. None: there is no room for it beside what others have not taken.
pub(crate) fn try_given(gate: &Arc<Gate>, outcome: Outcome) -> Option<Outcome> {
    let bytes = if let Outcome::Success(result) = &outcome { result.len() } else { 0 };
    (bytes < LARGE_BYTES || gate.may_give(bytes as u64)).then(|| given(gate, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Mailbox;
    use surefoot_env::Wake;

    #[test]
    fn a_kept_result_is_given_while_there_is_room_beside_those_that_are_not_taken() {
        let gate = Arc::new(Gate::new(vec![Mailbox::new(Wake::new())], 150 << 10));
        let result = |bytes| Outcome::Success(Bytes::from(vec![b'x'; bytes]));
        let mut first = try_given(&gate, result(200 << 10)).expect("one alone passes, whatever its size");
        assert_eq!(try_given(&gate, result(LARGE_BYTES)), None);
        assert_eq!(try_given(&gate, result(LARGE_BYTES - 1)), Some(result(LARGE_BYTES - 1)), "it does not count");
        // A piece of it that a connection still has keeps all of it in memory.
        let piece = if let Outcome::Success(bytes) = &mut first { bytes.split_to(10) } else { Bytes::new() };
        drop(first);
        assert_eq!(try_given(&gate, result(LARGE_BYTES)), None);
        drop(piece);
        let both: Vec<_> = (0..2).map_while(|_| try_given(&gate, result(LARGE_BYTES))).collect();
        assert_eq!(both.len(), 2);
        assert_eq!(try_given(&gate, result(LARGE_BYTES)), None);
        let new = given(&gate, result(LARGE_BYTES));
        assert_eq!(new, result(LARGE_BYTES), "what is kept nowhere is given all the same");
    }
}
