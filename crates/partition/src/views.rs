//! Published views on loan to readers on other threads (rule C4).
//!
//! Owns: that a view's end is noticed, and how it is read: what is unreadable is an error and never takes the reader's task down.
//! Does not own: what a view shows (`storage`), when one is published (`worker`), or the questions (`query`, `replay`).

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use surefoot_env::Wake;
use surefoot_machine::StateError;
use surefoot_storage::{PartitionView, Reader};

/// A view that somebody reads. Its worker is woken when it ends: the layers that it held can be folded, and others may wait for
/// a view.
pub(crate) struct Lent {
    // Dropped in this order.
    view: PartitionView,
    _returned: Returned,
}

struct Returned(Wake);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Lent {
    pub(crate) fn new(view: PartitionView, worker: Wake) -> Self {
        Self { view, _returned: Returned(worker) }
    }

    /// Reads a bounded piece. **Errors**, with the reason, where the tables are unreadable: the partition stops (rule C5).
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Reader<'_>) -> Result<T, StateError>) -> Result<T, String> {
        match catch_unwind(AssertUnwindSafe(|| read(&self.view.read()))) {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(panic) => Err(format!("broken invariant: {}", crate::apply::panic_message(panic))),
        }
    }
}

impl Deref for Lent {
    type Target = PartitionView;

    fn deref(&self) -> &PartitionView {
        &self.view
    }
}
