//! Something that happens once, and that several may wait for.
//!
//! Owns: waiting without missing it. Does not own: what it means.

use crate::status::lock;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Set once, to one value. Clones are the same.
#[derive(Debug)]
pub(crate) struct Latch<T>(Arc<(Mutex<Option<T>>, Notify)>);

impl<T> Clone for Latch<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Copy> Latch<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Mutex::new(None), Notify::new())))
    }

    /// The first value counts.
    pub(crate) fn set(&self, value: T) {
        lock(&self.0.0).get_or_insert(value);
        self.0.1.notify_waiters();
    }

    pub(crate) fn get(&self) -> Option<T> {
        *lock(&self.0.0)
    }

    /// Completes once it is set, at once if it was. Dropping the future loses nothing.
    pub(crate) async fn wait(&self) -> T {
        loop {
            // Counts every call of `notify_waiters` from here on, before it is polled as well.
            let set = self.0.1.notified();
            if let Some(value) = self.get() {
                return value;
            }
            set.await;
        }
    }
}
