//! The body of an answer, handed on in pieces as its client takes them.
//!
//! A whole body handed on at once would be gone from here while its client still reads, and the connection would look idle: a slow
//! download would be cut. Owns: how fast a large one is taken while others wait for the memory that it holds. Does not own: its content.

use crate::activity::Sending;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use surefoot_env::Clock;

/// Bytes of a piece. The next one is asked for when most of this one has left.
const PIECE_BYTES: usize = 64 << 10;

/// While others wait for memory, an answer of several pieces is taken at this rate at least: so many bytes between two looks, or the rest.
const LOOK: Duration = Duration::from_secs(2);
const LEAST_BYTES: u64 = 1 << 20;

/// A body that counts as an answer on its way until it has left.
pub(crate) struct OutgoingBody<B> {
    inner: B,
    /// What came from `inner` and is not handed on yet.
    rest: Bytes,
    sending: Sending,
    /// Bytes that were taken since the last look, of a large one.
    taken: Option<Arc<AtomicU64>>,
}

/// Looks at how fast a large body is taken.
pub(crate) struct Taking(Weak<AtomicU64>);

impl<B: Body> OutgoingBody<B> {
    pub(crate) fn new(inner: B, sending: Sending) -> Self {
        let taken = (inner.size_hint().lower() >= PIECE_BYTES as u64).then(Arc::default);
        Self { inner, rest: Bytes::new(), sending, taken }
    }

    /// None: it is small, and leaves with what its connection keeps.
    pub(crate) fn taking(&self) -> Option<Taking> {
        self.taken.as_ref().map(|taken| Taking(Arc::downgrade(taken)))
    }
}

impl Taking {
    /// Completes once it is too slow, while `is_wanted` says that others wait. False: it has been taken, or given up.
    pub(crate) async fn becomes_too_slow(self, clock: Arc<dyn Clock>, is_wanted: impl Fn() -> bool) -> bool {
        loop {
            clock.sleep(LOOK).await;
            let Some(taken) = self.0.upgrade() else { return false };
            if taken.swap(0, Ordering::Relaxed) < LEAST_BYTES && is_wanted() {
                return true;
            }
        }
    }
}

impl<B> Body for OutgoingBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.sending.piece();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let bytes = self.rest.len().min(PIECE_BYTES);
        if let Some(taken) = &self.taken {
            taken.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::{Activity, Answering};
    use crate::testing::ToldClock;
    use http_body_util::Full;
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::Waker;

    #[test]
    fn a_large_answer_leaves_in_pieces_and_is_on_its_way_until_the_last() {
        let activity = Arc::new(Activity::new(Arc::new(ToldClock::default())));
        let sending = Answering::new(activity.clone(), &AtomicU64::new(0)).into_sending();
        let mut body = OutgoingBody::new(Full::new(Bytes::from(vec![b'x'; 2 * PIECE_BYTES + 1])), sending);
        assert_eq!(body.size_hint().exact(), Some(2 * PIECE_BYTES as u64 + 1));
        let mut sizes = Vec::new();
        while !body.is_end_stream() {
            assert!(!activity.is_unused());
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) else {
                panic!("a piece is there")
            };
            sizes.push(frame.into_data().unwrap().len());
            assert_eq!(body.size_hint().exact(), Some((2 * PIECE_BYTES + 1 - sizes.iter().sum::<usize>()) as u64));
        }
        assert_eq!(sizes, [PIECE_BYTES, PIECE_BYTES, 1]);
        assert!(!activity.was_idle(), "it has moved");
        assert!(activity.was_idle(), "and moves no more, though its client has not let go of it");
        drop(body);
        assert!(activity.is_unused());
    }

    #[test]
    fn a_large_answer_becomes_too_slow_where_little_of_it_is_taken_between_two_looks_while_others_wait() {
        let clock = ToldClock::default();
        let sending =
            || Answering::new(Arc::new(Activity::new(Arc::new(ToldClock::default()))), &AtomicU64::new(0)).into_sending();
        let body = |bytes| OutgoingBody::new(Full::new(Bytes::from(vec![b'x'; bytes])), sending());
        assert!(body(PIECE_BYTES - 1).taking().is_none(), "it leaves at once");
        let mut large = body(9 * LEAST_BYTES as usize);
        let taking = large.taking().expect("it is large");
        let is_short = Arc::new(AtomicBool::new(false));
        let wanted = is_short.clone();
        let mut too_slow = pin!(taking.becomes_too_slow(Arc::new(clock.clone()), move || wanted.load(Ordering::Relaxed)));
        let mut look = |large: &mut OutgoingBody<Full<Bytes>>, pieces: u64| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(too_slow.as_mut().poll(&mut cx).is_pending());
            (0..pieces).for_each(|_| assert!(Pin::new(&mut *large).poll_frame(&mut cx).is_ready()));
            clock.due();
            too_slow.as_mut().poll(&mut cx)
        };
        let enough = LEAST_BYTES / PIECE_BYTES as u64;
        assert_eq!(look(&mut large, 0), Poll::Pending, "nobody waits");
        is_short.store(true, Ordering::Relaxed);
        assert_eq!(look(&mut large, enough), Poll::Pending);
        assert_eq!(look(&mut large, enough - 1), Poll::Ready(true));
        let taken = body(PIECE_BYTES);
        let taking = taken.taking().expect("it has a whole piece");
        drop(taken);
        let mut gone = pin!(taking.becomes_too_slow(Arc::new(clock.clone()), || true));
        assert!(gone.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        clock.due();
        assert_eq!(gone.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(false), "it has left");
    }
}
