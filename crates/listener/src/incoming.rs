//! The body of a request, and patience with a client that sends it slowly.
//!
//! Owns: the least rate. Without one, clients that send a byte now and then hold for hours what others need. Does not own: how large a
//! body may be, or room for it.

use crate::activity::Awaiting;
use crate::leftover::{self, Leftovers};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use surefoot_env::{BoxFuture, Clock};

/// Any body may take this long, and longer by what it has brought at this rate.
const GRACE: Duration = Duration::from_secs(30);
/// Where its connection is wanted for others, it may take no longer than this.
const GRACE_AT_BOUND: Duration = Duration::from_secs(2);
const BYTES_PER_SECOND_MIN: u64 = 8 << 10;

/// A body that fails when it comes too slowly.
pub struct IncomingBody<B> {
    inner: B,
    clock: Arc<dyn Clock>,
    /// Since its first byte was waited for, without the time that it was not asked for more.
    pace: Option<Pace>,
    timer: Option<BoxFuture<()>>,
    /// Tells its connection whether it is waited for.
    awaiting: Option<Awaiting>,
    leftovers: Leftovers,
}

struct Pace {
    start: Duration,
    bytes: u64,
}

/// Why a body did not come.
#[derive(Debug, thiserror::Error)]
pub enum BodyFault {
    #[error("it came too slowly: {bytes} bytes in {seconds} s", seconds = .took.as_secs())]
    Slow { bytes: u64, took: Duration },
    /// It came too slowly for a port that is full.
    #[error("all connections are in use, and others go before a body of which {bytes} bytes came in {seconds} s", seconds = .took.as_secs())]
    GaveWay { bytes: u64, took: Duration },
    #[error("{0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl<B> IncomingBody<B> {
    /// One that no connection has.
    pub fn new(inner: B, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, pace: None, timer: None, awaiting: None, leftovers: Leftovers::default() }
    }

    pub(crate) fn of_connection(inner: B, clock: Arc<dyn Clock>, awaiting: Awaiting, leftovers: Leftovers) -> Self {
        Self { inner, clock, pace: None, timer: None, awaiting: Some(awaiting), leftovers }
    }

    /// The server did not ask for more for so long: that is not the client's fault.
    pub fn excuse(&mut self, waited: Duration) {
        if let Some(pace) = &mut self.pace {
            pace.start += waited;
        }
    }

    /// Reads the rest of the body and throws it away, within bounds. To be called before its request is refused.
    pub async fn discard(self, headers: &HeaderMap)
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (clock, leftovers) = (self.clock.clone(), self.leftovers.clone());
        leftover::discard(headers, self, &*clock, &leftovers).await;
    }
}

impl Pace {
    fn due(&self) -> Duration {
        self.behind_from() + (GRACE - GRACE_AT_BOUND)
    }

    /// When it is behind the least rate so far that its connection may be taken from it.
    fn behind_from(&self) -> Duration {
        self.start + GRACE_AT_BOUND + Duration::from_secs(self.bytes / BYTES_PER_SECOND_MIN)
    }
}

impl<B> Body for IncomingBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let (Some(pace), Some(data)) = (&mut this.pace, frame.data_ref())
        {
            pace.bytes += data.len() as u64;
        }
        if let (Poll::Ready(_), Some(awaiting)) = (&frame, &mut this.awaiting) {
            awaiting.go_on();
        }
        match frame {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(BodyFault::Broken(error.into())))),
            // As a rule it is there already, and no timer is needed.
            Poll::Ready(Some(Ok(frame))) if this.pace.is_none() => return Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Pending => {}
        }
        let now = this.clock.monotonic();
        let pace = this.pace.get_or_insert(Pace { start: now, bytes: 0 });
        let (bytes, took) = (pace.bytes, now.saturating_sub(pace.start));
        let slow = BodyFault::Slow { bytes, took };
        if now >= pace.due() {
            return Poll::Ready(Some(Err(slow)));
        }
        if let Some(awaiting) = &mut this.awaiting
            && !awaiting.wait(pace.behind_from(), cx.waker())
        {
            return Poll::Ready(Some(Err(BodyFault::GaveWay { bytes, took })));
        }
        // Silence may last as long as any body may, however much has come before.
        let wait = (pace.due() - now).min(GRACE);
        let timer = this.timer.get_or_insert_with(|| this.clock.sleep(wait));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(slow))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ToldClock;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::Mutex;
    use std::task::Waker;

    #[derive(Clone, Default)]
    struct Fed(Arc<Mutex<VecDeque<Bytes>>>);

    impl Fed {
        fn feed(&self, bytes: usize) {
            self.0.lock().unwrap().push_back(Bytes::from(vec![b'x'; bytes]));
        }
    }

    impl Body for Fed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.lock().unwrap().pop_front().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }
    }

    type Polled = Poll<Option<Result<Frame<Bytes>, BodyFault>>>;

    fn body() -> (IncomingBody<Fed>, Fed, ToldClock) {
        let (fed, clock) = (Fed::default(), ToldClock::default());
        (IncomingBody::new(fed.clone(), Arc::new(clock.clone())), fed, clock)
    }

    fn poll(body: &mut IncomingBody<Fed>) -> Polled {
        Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn is_slow(polled: &Polled) -> bool {
        matches!(polled, Poll::Ready(Some(Err(BodyFault::Slow { .. }))))
    }

    #[test]
    fn a_body_that_trickles_is_given_up() {
        let (mut body, fed, clock) = body();
        assert!(poll(&mut body).is_pending());
        for _ in 0..GRACE.as_secs() {
            clock.pass(1);
            fed.feed(1);
            assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(_)))));
        }
        assert!(is_slow(&poll(&mut body)), "a byte a second is no rate");
    }

    #[test]
    fn silence_ends_the_patience_however_much_has_come() {
        let (mut body, fed, clock) = body();
        assert!(poll(&mut body).is_pending());
        fed.feed(16 << 20);
        assert!(poll(&mut body).is_ready());
        assert!(poll(&mut body).is_pending());
        clock.pass(1);
        assert!(is_slow(&poll(&mut body)), "the timer is due");
    }

    /// Their clients saw the connection end, and no word of why.
    #[test]
    fn a_body_whose_connection_is_wanted_for_others_is_told_so() {
        use crate::activity::{Activity, Answering};
        use std::sync::atomic::AtomicU64;
        let activity = Arc::new(Activity::new(Arc::new(ToldClock::default())));
        let answering = Answering::new(activity.clone(), &AtomicU64::new(0));
        let (fed, clock) = (Fed::default(), ToldClock::default());
        let (inner, leftovers) = (fed.clone(), Leftovers::default());
        let mut body = IncomingBody::of_connection(inner, Arc::new(clock.clone()), answering.awaiting(), leftovers);
        fed.feed(1);
        assert!(poll(&mut body).is_ready() && poll(&mut body).is_pending());
        clock.pass(3);
        activity.give_way();
        fed.feed(1);
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(_)))), "what has come is taken");
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(BodyFault::GaveWay { bytes: 1, .. })))));
    }

    #[test]
    fn a_slow_body_at_the_least_rate_passes_and_our_own_waits_do_not_count() {
        let (mut body, fed, clock) = body();
        assert!(poll(&mut body).is_pending());
        for _ in 0..100 {
            clock.pass(10);
            fed.feed(10 * BYTES_PER_SECOND_MIN as usize);
            assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(_)))));
            assert!(poll(&mut body).is_pending());
        }
        clock.pass(1_000);
        body.excuse(Duration::from_secs(1_000));
        fed.feed(1);
        assert!(poll(&mut body).is_ready());
        assert!(poll(&mut body).is_pending());
    }
}
