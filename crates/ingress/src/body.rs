//! Bodies of requests: received within bounds on one and on all of them.
//!
//! Owns: room for what is received and not appended yet. It grows with what has come and not with what was announced, so that a client
//! that announces much and sends little holds little. The first bytes of every body have room of their own: large bodies
//! hold up large ones only. Of these one may always grow, so that several cannot wait for what the others hold; the rest is refused
//! after a while. Does not own: the least rate (`listener`), or the room for what is appended (`partition`).

use crate::Error;
use crate::wait::{ROOM_WAIT_MAX, within};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use std::pin::pin;
use std::sync::Arc;
use surefoot_env::Clock;
use surefoot_listener::{BodyFault, IncomingBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of each body that count as small.
const SMALL_BYTES: u64 = 64 << 10;
/// Room is taken in steps of so many bytes.
const SMALL_STEP_BYTES: u64 = 4 << 10;
const LARGE_STEP_BYTES: u64 = 256 << 10;

/// What bodies may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyBounds {
    /// Of one body.
    pub body_bytes_max: u64,
    /// Of the first 64 KiB of all bodies that are on their way in.
    pub small_bytes_max: u64,
    /// Of what they have beyond. The one body that may always grow comes on top.
    pub large_bytes_max: u64,
}

/// Receives the bodies of all requests.
pub(crate) struct Bodies {
    bytes_max: u64,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Held by the one body that may always grow.
    growing: Arc<Semaphore>,
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
    small: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
    growing: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(bounds: BodyBounds, clock: Arc<dyn Clock>) -> Self {
        let pool =
            |bytes: u64| Arc::new(Semaphore::new(usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)));
        let small = bounds.small_bytes_max.max(SMALL_BYTES);
        let large = bounds.large_bytes_max.max(LARGE_STEP_BYTES);
        Self { bytes_max: bounds.body_bytes_max, small: pool(small), large: pool(large), growing: pool(1), clock }
    }

    /// Waits for the body, and for room as it comes. **Errors**: it is too large, came too slowly or not at all, or found no room.
    pub(crate) async fn receive<B>(&self, body: &mut IncomingBody<B>) -> Result<Received, Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut received = Collected::default();
        let mut room = Room::default();
        if body.size_hint().lower() > self.bytes_max {
            return Err(Error::TooLarge(self.bytes_max));
        }
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|fault| match fault {
                BodyFault::Slow { .. } => Error::BodyTooSlow(fault.to_string()),
                BodyFault::Broken(error) => Error::BodyUnreadable(error.to_string()),
            })?;
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else { continue };
            let bytes = received.len() as u64 + data.len() as u64;
            if bytes > self.bytes_max {
                return Err(Error::TooLarge(self.bytes_max));
            }
            if !self.has_grown_at_once(&mut room, bytes) {
                let start = self.clock.monotonic();
                let grown = within(&*self.clock, ROOM_WAIT_MAX, self.grow(&mut room, bytes)).await;
                grown.ok_or(Error::NoRoom)?;
                body.excuse(self.clock.monotonic().saturating_sub(start));
            }
            received.push(data);
        }
        Ok(Received { bytes: received.into_bytes(), room })
    }

    /// Makes room for so many bytes of a body in all, unless that has to be waited for.
    fn has_grown_at_once(&self, room: &mut Room, bytes: u64) -> bool {
        let (small, large) = (room.lacking_small(bytes), room.lacking_large(bytes));
        let has_small = small == 0 || take(&mut room.small, self.small.clone().try_acquire_many_owned(small));
        let has_large = large == 0 || (has_small && take(&mut room.large, self.large.clone().try_acquire_many_owned(large)));
        has_small && has_large
    }

    async fn grow(&self, room: &mut Room, bytes: u64) {
        const OPEN: &str = "the semaphore is never closed";
        let small = room.lacking_small(bytes);
        if small > 0 {
            let permit = self.small.clone().acquire_many_owned(small).await.expect(OPEN);
            merge(&mut room.small, permit);
        }
        let large = room.lacking_large(bytes);
        if large == 0 {
            return;
        }
        let mut more = pin!(self.large.clone().acquire_many_owned(large));
        tokio::select! {
            biased;
            // What is not taken here goes to the next that waits.
            permit = more.as_mut() => merge(&mut room.large, permit.expect(OPEN)),
            permit = self.growing.clone().acquire_owned() => room.growing = Some(permit.expect(OPEN)),
        }
    }
}

impl Room {
    /// Permits that are missing for the first bytes of a body of this size.
    fn lacking_small(&self, bytes: u64) -> u32 {
        lacking(&self.small, bytes.min(SMALL_BYTES), SMALL_STEP_BYTES)
    }

    /// Permits that are missing for the bytes beyond.
    fn lacking_large(&self, bytes: u64) -> u32 {
        if self.growing.is_some() {
            return 0;
        }
        lacking(&self.large, bytes.saturating_sub(SMALL_BYTES), LARGE_STEP_BYTES)
    }
}

fn lacking(held: &Option<OwnedSemaphorePermit>, bytes: u64, step: u64) -> u32 {
    let held = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u64;
    u32::try_from(bytes.next_multiple_of(step).saturating_sub(held)).unwrap_or(u32::MAX)
}

fn take<E>(held: &mut Option<OwnedSemaphorePermit>, permit: Result<OwnedSemaphorePermit, E>) -> bool {
    permit.map(|permit| merge(held, permit)).is_ok()
}

fn merge(held: &mut Option<OwnedSemaphorePermit>, permit: OwnedSemaphorePermit) {
    match held {
        Some(held) => held.merge(permit),
        None => *held = Some(permit),
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
    use http_body::{Frame, SizeHint};
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;
    use surefoot_env::BoxFuture;
    use tokio::sync::Notify;

    const SMALL_BYTES_MAX: u64 = 32 << 20;
    const BODY_BYTES_MAX: u64 = 32 << 20;
    const LARGE_BYTES: usize = 64 << 20;

    /// A clock that goes on when it is told, and whose timers are then all due.
    #[derive(Clone, Default)]
    struct Told {
        due: Arc<Notify>,
        seconds: Arc<AtomicU64>,
    }

    impl Told {
        fn pass(&self, seconds: u64) {
            self.seconds.fetch_add(seconds, Ordering::Relaxed);
            self.due.notify_waiters();
        }
    }

    impl Clock for Told {
        fn now_ms(&self) -> u64 {
            0
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.seconds.load(Ordering::Relaxed))
        }

        fn sleep(&self, _: Duration) -> BoxFuture {
            let due = self.due.clone();
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

    fn bodies() -> (Bodies, Told) {
        let clock = Told::default();
        let bounds =
            BodyBounds { body_bytes_max: BODY_BYTES_MAX, small_bytes_max: SMALL_BYTES_MAX, large_bytes_max: LARGE_BYTES as u64 };
        (Bodies::new(bounds, Arc::new(clock.clone())), clock)
    }

    fn receive<'a>(bodies: &'a Bodies, body: &Fed) -> Receiving<'a> {
        let mut body = IncomingBody::new(body.clone(), bodies.clock.clone());
        Box::pin(async move { bodies.receive(&mut body).await })
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
        let mut receiving = receive(&bodies, &body);
        body.feed(2);
        assert!(poll(&mut receiving).is_none());
        body.feed(3);
        body.end();
        assert_eq!(poll(&mut receiving).unwrap().unwrap().bytes, "xxxxx");
    }

    #[test]
    fn what_is_announced_and_does_not_come_takes_no_room() {
        let (bodies, _) = bodies();
        let slow: Vec<Fed> = (0..300).map(|_| Fed::announced(1 << 20)).collect();
        let mut receiving: Vec<Receiving<'_>> = slow.iter().map(|body| receive(&bodies, body)).collect();
        for (body, receiving) in slow.iter().zip(&mut receiving) {
            body.feed(1);
            assert!(poll(receiving).is_none());
        }
        assert_eq!(bodies.large.available_permits(), LARGE_BYTES);
        let large = Fed::announced(BODY_BYTES_MAX);
        large.feed(BODY_BYTES_MAX as usize);
        assert_eq!(poll(&mut receive(&bodies, &large)).unwrap().unwrap().bytes.len() as u64, BODY_BYTES_MAX);
    }

    #[test]
    fn of_bodies_that_fill_the_room_one_goes_on_and_the_others_are_refused_after_a_while() {
        let (bodies, clock) = bodies();
        let large: Vec<Fed> = (0..4).map(|_| Fed::announced(BODY_BYTES_MAX)).collect();
        let mut receiving: Vec<Receiving<'_>> = large.iter().map(|body| receive(&bodies, body)).collect();
        // Together as much as there is.
        for (body, receiving) in large.iter().zip(&mut receiving) {
            body.feed(LARGE_BYTES / 4 + SMALL_BYTES as usize);
            assert!(poll(receiving).is_none());
        }
        assert_eq!(bodies.large.available_permits(), 0);
        let rest = BODY_BYTES_MAX as usize - (LARGE_BYTES / 4 + SMALL_BYTES as usize);
        large[1].feed(1);
        assert!(poll(&mut receiving[1]).is_none(), "it has room and waits for its client");
        large[0].feed(1);
        assert!(poll(&mut receiving[0]).is_none());
        let small = Fed::announced(10);
        small.feed(10);
        assert!(poll(&mut receive(&bodies, &small)).unwrap().is_ok(), "small ones pass");
        clock.pass(1);
        assert_eq!(poll(&mut receiving[0]).unwrap().unwrap_err(), Error::NoRoom);
        drop(receiving.remove(0));
        large[1].feed(rest - 1);
        assert_eq!(poll(&mut receiving[0]).unwrap().unwrap().bytes.len() as u64, BODY_BYTES_MAX);
        receiving.clear();
        assert_eq!((bodies.large.available_permits(), bodies.growing.available_permits()), (LARGE_BYTES, 1));
    }

    #[test]
    fn room_is_held_until_the_body_is_appended() {
        let (bodies, _) = bodies();
        let all = bodies.small.available_permits();
        let body = Fed::announced(10);
        body.feed(10);
        let received = poll(&mut receive(&bodies, &body)).unwrap().unwrap();
        assert_eq!(bodies.small.available_permits(), all - SMALL_STEP_BYTES as usize);
        drop(received);
        assert_eq!(bodies.small.available_permits(), all);
    }

    #[test]
    fn a_body_that_is_too_large_is_refused_when_that_is_known() {
        let (bodies, _) = bodies();
        let announced = Fed::announced(BODY_BYTES_MAX + 1);
        assert_eq!(poll(&mut receive(&bodies, &announced)).unwrap().unwrap_err(), Error::TooLarge(BODY_BYTES_MAX));
        let body = Fed::default();
        let mut receiving = receive(&bodies, &body);
        body.feed(1 << 20);
        assert!(poll(&mut receiving).is_none());
        body.feed(31 << 20);
        assert!(poll(&mut receiving).is_none());
        body.feed(1);
        assert_eq!(poll(&mut receiving).unwrap().unwrap_err(), Error::TooLarge(BODY_BYTES_MAX));
    }

    #[test]
    fn a_client_that_stalls_is_given_up() {
        let (bodies, clock) = bodies();
        let body = Fed::announced(2);
        body.feed(1);
        let mut receiving = receive(&bodies, &body);
        assert!(poll(&mut receiving).is_none());
        clock.pass(30);
        assert!(matches!(poll(&mut receiving).unwrap().unwrap_err(), Error::BodyTooSlow(_)));
    }
}
