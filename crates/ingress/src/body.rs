//! Bodies of requests: received within bounds on one and on all of them.
//!
//! Owns: room for what is received and not appended yet, and the patience with clients that stall. Room is taken once per body
//! and before it is read, so that no two bodies wait for what the other holds; while there is none, nothing is read and the
//! client's connection fills up. Small bodies have room of their own: large ones that come slowly hold up large ones only.
//! Does not own: the room for what is appended (`partition`).

use crate::Error;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use surefoot_env::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes up to which a body is small. One whose length is not announced counts as small until it is larger, and then as the
/// largest there may be.
const SMALL_BYTES: u64 = 64 << 10;
/// Bytes of all small bodies.
const SMALL_ROOM_BYTES: usize = 64 << 20;
/// Bytes of all large bodies. A larger one is received alone.
const LARGE_ROOM_BYTES: usize = 192 << 20;
/// A client that sends nothing of a body for so long has gone, or might as well have.
const STALL: Duration = Duration::from_secs(60);

/// Receives the bodies of all requests.
pub(crate) struct Bodies {
    bytes_max: u64,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
}

/// A whole body, and the room it takes until it is appended.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) room: Room,
}

/// Given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// `bytes_max`: of one body.
    pub(crate) fn new(bytes_max: u64, clock: Arc<dyn Clock>) -> Self {
        let room = |bytes| Arc::new(Semaphore::new(bytes));
        Self { bytes_max, small: room(SMALL_ROOM_BYTES), large: room(LARGE_ROOM_BYTES), clock }
    }

    /// Waits for room, then for the body. **Errors**: it is too large, or did not come.
    pub(crate) async fn receive<B>(&self, body: B) -> Result<Received, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if body.is_end_stream() {
            return Ok(Received::default());
        }
        let announced = body.size_hint().exact();
        let expected = announced.unwrap_or(SMALL_BYTES);
        if expected > self.bytes_max && announced.is_some() {
            return Err(Error::TooLarge(self.bytes_max));
        }
        let mut is_large = expected > SMALL_BYTES;
        let mut room = self.room(expected).await;
        let mut body = pin!(body);
        let mut collected = Collected::default();
        while let Some(frame) = self.frame(body.as_mut()).await {
            let frame = frame.map_err(|error| Error::BodyUnreadable(error.reason()))?;
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else { continue };
            collected.push(data);
            let bytes = collected.len() as u64;
            if bytes > self.bytes_max {
                return Err(Error::TooLarge(self.bytes_max));
            }
            if bytes > SMALL_BYTES && !is_large {
                is_large = true;
                room = self.room(self.bytes_max).await;
            }
        }
        Ok(Received { bytes: collected.into_bytes(), room })
    }

    async fn room(&self, bytes: u64) -> Room {
        let (of, room_bytes) =
            if bytes > SMALL_BYTES { (&self.large, LARGE_ROOM_BYTES) } else { (&self.small, SMALL_ROOM_BYTES) };
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(room_bytes as u32);
        let permit = of.clone().acquire_many_owned(permits).await.expect("the semaphore is never closed");
        Room { _permit: Some(permit) }
    }

    /// The next frame of a body. None at its end.
    async fn frame<B>(&self, mut body: Pin<&mut B>) -> Option<Result<Frame<Bytes>, Unreadable<B::Error>>>
    where
        B: Body<Data = Bytes>,
    {
        // As a rule it is there already, and no timer is needed.
        let at_once = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => Poll::Ready(None),
        });
        if let Some(frame) = at_once.await {
            return frame.map(|frame| frame.map_err(Unreadable::Broken));
        }
        tokio::select! {
            biased;
            // A frame is taken whole or stays with the body.
            frame = body.frame() => frame.map(|frame| frame.map_err(Unreadable::Broken)),
            // A timer has nothing to lose.
            () = self.clock.sleep(STALL) => Some(Err(Unreadable::Stalled)),
        }
    }
}

enum Unreadable<E> {
    Broken(E),
    Stalled,
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> Unreadable<E> {
    fn reason(self) -> String {
        match self {
            Self::Broken(error) => error.into().to_string(),
            Self::Stalled => format!("nothing came for {} s", STALL.as_secs()),
        }
    }
}

/// Data in order; a single piece is not copied.
#[derive(Default)]
struct Collected {
    first: Bytes,
    rest: BytesMut,
}

impl Collected {
    fn push(&mut self, data: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = data;
            return;
        }
        if self.rest.is_empty() {
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.rest.extend_from_slice(&data);
    }

    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn into_bytes(self) -> Bytes {
        if self.rest.is_empty() { self.first } else { self.rest.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::SizeHint;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::Mutex;
    use std::task::{Context, Waker};
    use surefoot_env::BoxFuture;
    use tokio::sync::Notify;

    /// A clock whose timers are all due once it is told.
    #[derive(Default)]
    struct Told(Arc<Notify>);

    impl Clock for Told {
        fn now_ms(&self) -> u64 {
            0
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        fn sleep(&self, _: Duration) -> BoxFuture {
            let due = self.0.clone();
            Box::pin(async move { due.notified().await })
        }
    }

    /// A body that comes as it is fed.
    #[derive(Clone, Default)]
    struct Fed {
        data: Arc<Mutex<VecDeque<Bytes>>>,
        announced: Option<u64>,
        read: u64,
    }

    impl Fed {
        fn announced(bytes: u64) -> Self {
            Self { announced: Some(bytes), ..Self::default() }
        }

        fn feed(&self, bytes: usize) {
            self.data.lock().unwrap().push_back(Bytes::from(vec![b'x'; bytes]));
        }

        /// Nothing comes any more.
        fn end(&self) {
            self.data.lock().unwrap().push_back(Bytes::new());
        }
    }

    impl Body for Fed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if self.announced.is_some_and(|bytes| self.read >= bytes) {
                return Poll::Ready(None);
            }
            let next = self.data.lock().unwrap().pop_front();
            match next {
                None => Poll::Pending,
                Some(data) if data.is_empty() => Poll::Ready(None),
                Some(data) => {
                    self.read += data.len() as u64;
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
            }
        }

        fn size_hint(&self) -> SizeHint {
            self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }

    type Receiving<'a> = Pin<Box<dyn Future<Output = Result<Received, Error>> + 'a>>;

    fn bodies() -> (Bodies, Arc<Notify>) {
        let clock = Told::default();
        let due = clock.0.clone();
        (Bodies::new(32 << 20, Arc::new(clock)), due)
    }

    fn poll(receiving: &mut Receiving<'_>) -> Option<Result<Received, Error>> {
        match receiving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[test]
    fn bodies_come_whole_in_one_piece_or_many() {
        let (bodies, _) = bodies();
        let body = Fed::default();
        let mut receiving: Receiving<'_> = Box::pin(bodies.receive(body.clone()));
        body.feed(2);
        assert!(poll(&mut receiving).is_none());
        body.feed(3);
        body.end();
        assert_eq!(poll(&mut receiving).unwrap().unwrap().bytes, "xxxxx");
    }

    #[test]
    fn large_bodies_wait_unread_until_there_is_room_and_small_ones_pass() {
        let (bodies, _) = bodies();
        // Six fill the room, and never come.
        let mut slow: Vec<Receiving<'_>> =
            (0..6).map(|_| Box::pin(bodies.receive(Fed::announced(32 << 20))) as Receiving<'_>).collect();
        assert!(slow.iter_mut().all(|receiving| poll(receiving).is_none()));
        let body = Fed::announced(1 << 20);
        body.feed(1 << 20);
        let mut waiting: Receiving<'_> = Box::pin(bodies.receive(body.clone()));
        assert!(poll(&mut waiting).is_none());
        assert_eq!(body.data.lock().unwrap().len(), 1, "nothing is read while there is no room");
        let small = Fed::announced(10);
        small.feed(10);
        let mut receiving: Receiving<'_> = Box::pin(bodies.receive(small));
        assert_eq!(poll(&mut receiving).unwrap().unwrap().bytes.len(), 10);
        drop(slow.pop());
        assert_eq!(poll(&mut waiting).unwrap().unwrap().bytes.len(), 1 << 20);
    }

    #[test]
    fn room_is_held_until_the_body_is_appended() {
        let (bodies, _) = bodies();
        let body = Fed::announced(10);
        body.feed(10);
        let mut receiving: Receiving<'_> = Box::pin(bodies.receive(body));
        let received = poll(&mut receiving).unwrap().unwrap();
        assert_eq!(bodies.small.available_permits(), SMALL_ROOM_BYTES - 10);
        drop(received);
        assert_eq!(bodies.small.available_permits(), SMALL_ROOM_BYTES);
    }

    #[test]
    fn a_body_without_a_length_moves_to_the_large_ones_once_it_is_one() {
        let (bodies, _) = bodies();
        let body = Fed::default();
        let mut receiving: Receiving<'_> = Box::pin(bodies.receive(body.clone()));
        body.feed(1 << 10);
        assert!(poll(&mut receiving).is_none());
        assert_eq!(bodies.large.available_permits(), LARGE_ROOM_BYTES);
        body.feed(1 << 20);
        assert!(poll(&mut receiving).is_none());
        assert_eq!(bodies.large.available_permits(), LARGE_ROOM_BYTES - (32 << 20));
        assert_eq!(bodies.small.available_permits(), SMALL_ROOM_BYTES);
        body.feed(31 << 20);
        assert_eq!(poll(&mut receiving).unwrap().unwrap_err(), Error::TooLarge(32 << 20));
    }

    #[test]
    fn a_client_that_stalls_is_given_up() {
        let (bodies, due) = bodies();
        let body = Fed::announced(2);
        body.feed(1);
        let mut receiving: Receiving<'_> = Box::pin(bodies.receive(body));
        assert!(poll(&mut receiving).is_none());
        due.notify_waiters();
        let error = poll(&mut receiving).unwrap().unwrap_err();
        assert_eq!(error, Error::BodyUnreadable("nothing came for 60 s".into()));
        assert_eq!(bodies.small.available_permits(), SMALL_ROOM_BYTES);
    }
}
