//! A hold on the log: what a backup copies stays as it is while it is copied (rule C6).
//!
//! Owns: the guard, and which bytes of which files make up a log as it is durable at one instant. Does not own: copying them.

use super::{LocalLog, Shared};
use std::sync::Arc;
use surefoot_env::FileCopy;

/// While there is one, no segment leaves the log: what is appended and trimmed meanwhile takes room in vain. All goes on once it is
/// dropped.
pub struct LogHold {
    shared: Arc<Shared>,
}

impl LocalLog {
    /// From now on, and until the hold is dropped, nothing goes that checkpoints did not cover before.
    pub fn hold(&self) -> LogHold {
        self.shared.segments().holds += 1;
        LogHold { shared: self.shared.clone() }
    }
}

impl LogHold {
    /// The cut: files that make up a log which ends with what is durable now, and so with everything that was acknowledged. What lies
    /// behind in the segment being written is not part of it. Tables whose snapshot was taken after the hold and before this meet that log (rule C2).
    pub fn cut(&self) -> Vec<FileCopy> {
        self.shared.segments().durable_files()
    }
}

impl Drop for LogHold {
    fn drop(&mut self) {
        self.shared.segments().holds -= 1;
        self.shared.filler_wake.wake();
    }
}
