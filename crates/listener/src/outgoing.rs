//! The body of an answer, handed on in pieces as its client takes them.
//!
//! A whole body handed on at once would be gone from here while its client still reads, and the connection would look idle: a slow
//! download would be cut. Does not own: what is in it.

use crate::activity::Sending;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Bytes of a piece. The next one is asked for when most of this one has left.
const PIECE_BYTES: usize = 64 << 10;

/// A body that counts as an answer on its way until it has left.
pub(crate) struct OutgoingBody<B> {
    inner: B,
    /// What came from `inner` and is not handed on yet.
    rest: Bytes,
    sending: Sending,
}

impl<B> OutgoingBody<B> {
    pub(crate) fn new(inner: B, sending: Sending) -> Self {
        Self { inner, rest: Bytes::new(), sending }
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
    use http_body_util::Full;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::task::Waker;

    #[test]
    fn a_large_answer_leaves_in_pieces_and_is_on_its_way_until_the_last() {
        let activity = Arc::new(Activity::default());
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
}
