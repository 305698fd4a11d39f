//! What is left of a body whose request is refused.
//!
//! Some clients write all of a request before they read the answer. To them an answer that comes earlier, and then a closed
//! connection, is a broken pipe: they never learn why. So a bounded amount is read and thrown away, of so many requests
//! at a time: one that is refused takes memory until it is answered. Does not own: bodies that are wanted.

use bytes::{Buf, Bytes};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use surefoot_env::Clock;
use tokio::sync::Semaphore;

/// Bytes of a refused body that are read, and for how long.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;
const DISCARDED_FOR: Duration = Duration::from_secs(5);
/// Refused requests of a port whose bodies are waited for. Further ones are answered at once.
const WAITING_MAX: usize = 256;

/// Leave to wait for bodies of refused requests, for all connections of a port.
#[derive(Clone)]
pub(crate) struct Leftovers(Arc<Semaphore>);

impl Default for Leftovers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WAITING_MAX)))
    }
}

/// Reads the rest of a body and throws it away, within bounds.
pub(crate) async fn discard<B>(headers: &HeaderMap, body: B, clock: &dyn Clock, leftovers: &Leftovers)
where
    B: Body<Data = Bytes>,
{
    let is_too_much = body.size_hint().lower() > DISCARDED_BYTES_MAX;
    // A client that asks first has not sent it, and will not.
    if body.is_end_stream() || is_too_much || headers.contains_key(header::EXPECT) {
        return;
    }
    let mut body = pin!(body);
    let mut discarding = pin!(async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.into_data().map_or(0, |data| data.remaining() as u64);
            if bytes > DISCARDED_BYTES_MAX {
                return;
            }
        }
    });
    // Bytes that have come already need no wait.
    if poll_fn(|cx| Poll::Ready(discarding.as_mut().poll(cx).is_ready())).await {
        return;
    }
    let Ok(_waiting) = leftovers.0.try_acquire() else { return };
    tokio::select! {
        biased;
        // What was read is thrown away in any case.
        () = discarding => {}
        // A timer has nothing to lose.
        () = clock.sleep(DISCARDED_FOR) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ToldClock;
    use http_body::{Frame, SizeHint};
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    /// A body of one piece, and of nothing more: it never ends.
    struct Endless(Option<Bytes>);

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }
    }

    /// A client that kept refused requests open, a thousand on each connection of HTTP/2, took the server's memory.
    #[test]
    fn refused_requests_beyond_the_bound_are_answered_at_once() {
        let (headers, clock, leftovers) = (HeaderMap::new(), ToldClock::default(), Leftovers::default());
        let mut cx = Context::from_waker(Waker::noop());
        let refuse = || Box::pin(discard(&headers, Endless(Some(Bytes::from_static(b"x"))), &clock, &leftovers));
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| refuse()).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().poll(&mut cx).is_pending()));
        assert!(refuse().as_mut().poll(&mut cx).is_ready());
        waiting.pop();
        assert!(refuse().as_mut().poll(&mut cx).is_pending(), "there is leave again");
        clock.due();
        assert!(waiting.iter_mut().all(|one| one.as_mut().poll(&mut cx).is_ready()), "nobody is waited for for ever");
    }

    #[test]
    fn what_is_there_is_read_without_leave() {
        let (headers, clock, leftovers) = (HeaderMap::new(), ToldClock::default(), Leftovers(Arc::new(Semaphore::new(0))));
        let body = http_body_util::Full::new(Bytes::from_static(b"xyz"));
        let mut read = Box::pin(discard(&headers, body, &clock, &leftovers));
        assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
