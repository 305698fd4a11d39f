//! What of a request has not left yet, counted where the connection takes it.
//!
//! Owns: the pieces that are handed to the library, which queues them without a limit, and the count of their bytes. Does not own: what
//! happens at the limit, which is for whoever sends.

use super::UNSENT_BYTES_MAX;
use bytes::{Buf, Bytes};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// The count of one request's bytes that have not left.
#[derive(Default)]
pub(super) struct Unsent {
    bytes: AtomicUsize,
    /// Who waits until they are few again, or none.
    waiting: Mutex<Option<Waker>>,
}

impl Unsent {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    pub(super) fn is_above_limit(&self) -> bool {
        self.bytes() > UNSENT_BYTES_MAX
    }

    /// A piece of the request, counted until it has left or is thrown away.
    pub(super) fn piece(self: &Arc<Self>, bytes: Bytes) -> Piece {
        self.bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        Piece { bytes, unsent: self.clone() }
    }

    /// Ready while no more than so many bytes are unsent: 0, or [`UNSENT_BYTES_MAX`]. For one task.
    pub(super) fn poll_at_most(&self, cx: &Context<'_>, at_most: usize) -> Poll<()> {
        if self.bytes() <= at_most {
            return Poll::Ready(());
        }
        *self.waiting() = Some(cx.waker().clone());
        // What left before the waker lay there woke nobody.
        if self.bytes() <= at_most { Poll::Ready(()) } else { Poll::Pending }
    }

    fn left(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        let is_below_limit = before > UNSENT_BYTES_MAX && before - bytes <= UNSENT_BYTES_MAX;
        if (is_below_limit || bytes > 0 && before == bytes)
            && let Some(waker) = self.waiting().take()
        {
            waker.wake();
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a request on their way out.
pub(super) struct Piece {
    bytes: Bytes,
    unsent: Arc<Unsent>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.unsent.left(bytes);
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.unsent.left(self.bytes.len());
    }
}
