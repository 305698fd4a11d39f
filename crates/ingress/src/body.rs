//! Bodies of requests: received within bounds on one and on all of them.
//!
//! Owns: how long a body waits for room, before it is refused. Does not own: the room for bodies that are not appended yet
//! (`arrivals`), the least rate (`listener`), or the room for records on their way to the log (`partition`).

use crate::Error;
use crate::arrivals::{ArrivalBounds, ArrivalRoom, Arrivals};
use crate::wait::{ROOM_WAIT_MAX, within};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::Clock;
use surefoot_listener::{BodyFault, IncomingBody};
use surefoot_model::DeploymentId;

/// What bodies may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyBounds {
    /// Of one body.
    pub body_bytes_max: u64,
    /// Of all that are on their way in.
    pub arrivals: ArrivalBounds,
}

/// Receives the bodies of all requests.
pub(crate) struct Bodies {
    bytes_max: u64,
    arrivals: Arrivals,
    clock: Arc<dyn Clock>,
}

/// A whole body, and the room it takes until it is appended.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) room: ArrivalRoom,
}

impl Bodies {
    pub(crate) fn new(bounds: BodyBounds, clock: Arc<dyn Clock>) -> Self {
        Self { bytes_max: bounds.body_bytes_max, arrivals: Arrivals::new(bounds.arrivals), clock }
    }

    /// Waits for the body of what a deployment is to do, and for room as it comes; `tables` waits until the tables have room for so many
    /// bytes, and so long. **Errors**: it is too large, came too slowly or not at all, or found no room.
    pub(crate) async fn receive<B, R>(
        &self,
        body: &mut IncomingBody<B>,
        deployment: DeploymentId,
        tables: impl Fn(u64, Duration) -> R,
    ) -> Result<Received, Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        R: Future<Output = Result<(), Error>>,
    {
        let mut received = Collected::default();
        let announced = body.size_hint().lower();
        let mut room = ArrivalRoom::of(announced);
        if announced > self.bytes_max {
            return Err(Error::TooLarge(self.bytes_max));
        }
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|fault| match fault {
                BodyFault::Slow { .. } => Error::BodyTooSlow(fault.to_string()),
                BodyFault::GaveWay { .. } => Error::BodyGaveWay(fault.to_string()),
                BodyFault::Broken(error) => Error::BodyUnreadable(error.to_string()),
            })?;
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else { continue };
            let bytes = received.len() as u64 + data.len() as u64;
            if bytes > self.bytes_max {
                return Err(Error::TooLarge(self.bytes_max));
            }
            if !self.arrivals.try_grow(&mut room, bytes) {
                let start = self.clock.monotonic();
                let growing = self.arrivals.grow(room, bytes, deployment, |wait_max| tables(bytes.max(announced), wait_max));
                room = within(&*self.clock, ROOM_WAIT_MAX, growing).await.ok_or(Error::NoRoom)??;
                body.excuse(self.clock.monotonic().saturating_sub(start));
            }
            received.push(data);
        }
        Ok(Received { bytes: received.into_bytes(), room })
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
    use crate::arrivals::SMALL_STEP_BYTES;
    use http_body::{Frame, SizeHint};
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, Waker};
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
        let arrivals = ArrivalBounds { small_bytes_max: SMALL_BYTES_MAX, large_bytes_max: LARGE_BYTES as u64 };
        let bounds = BodyBounds { body_bytes_max: BODY_BYTES_MAX, arrivals };
        (Bodies::new(bounds, Arc::new(clock.clone())), clock)
    }

    fn receive<'a>(bodies: &'a Bodies, body: &Fed) -> Receiving<'a> {
        receive_for(1, bodies, body, &|| true)
    }

    /// For a deployment, with what says whether the tables have room for it.
    fn receive_for<'a>(deployment: u128, bodies: &'a Bodies, body: &Fed, has_room: &'a dyn Fn() -> bool) -> Receiving<'a> {
        let mut body = IncomingBody::new(body.clone(), bodies.clock.clone());
        let tables = move |_, _| poll_fn(move |_| if has_room() { Poll::Ready(Ok(())) } else { Poll::Pending });
        Box::pin(async move { bodies.receive(&mut body, DeploymentId(deployment), tables).await })
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
    fn what_is_announced_and_does_not_come_takes_little_room() {
        let (bodies, _) = bodies();
        let slow: Vec<Fed> = (0..300).map(|_| Fed::announced(1 << 20)).collect();
        let mut receiving: Vec<Receiving<'_>> = slow.iter().map(|body| receive(&bodies, body)).collect();
        for (body, receiving) in slow.iter().zip(&mut receiving) {
            body.feed(1);
            assert!(poll(receiving).is_none());
        }
        assert_eq!(bodies.arrivals.free().1, LARGE_BYTES - slow.len() * SMALL_STEP_BYTES as usize);
        let large = Fed::announced(BODY_BYTES_MAX);
        large.feed(BODY_BYTES_MAX as usize);
        assert_eq!(poll(&mut receive(&bodies, &large)).unwrap().unwrap().bytes.len() as u64, BODY_BYTES_MAX);
    }

    /// Each of six calls with 31 MiB was in memory while it waited for the tables to take it.
    #[test]
    fn a_large_body_whose_turn_has_come_is_not_received_before_the_tables_have_room() {
        let (bodies, _) = bodies();
        let fill = |_| {
            let body = Fed::announced(BODY_BYTES_MAX);
            body.feed(BODY_BYTES_MAX as usize);
            poll(&mut receive(&bodies, &body)).unwrap().unwrap()
        };
        let rooms: Vec<_> = (0..2).map(fill).collect();
        for tables in [None, Some(Err(Error::NoRoom)), Some(Ok(()))] {
            let body = Fed::announced(BODY_BYTES_MAX);
            (0..2).for_each(|_| body.feed(BODY_BYTES_MAX as usize / 2));
            let mut incoming = IncomingBody::new(body.clone(), bodies.clock.clone());
            let has_room = |_, _| poll_fn(|_| tables.clone().map_or(Poll::Pending, Poll::Ready));
            let mut receiving: Receiving<'_> = Box::pin(bodies.receive(&mut incoming, DeploymentId(1), has_room));
            let received = poll(&mut receiving).map(|done| done.map(|received| received.bytes.len() as u64));
            assert_eq!(received, tables.clone().map(|room| room.map(|()| BODY_BYTES_MAX)));
            assert_eq!(body.data.lock().unwrap().len(), usize::from(!matches!(tables, Some(Ok(())))), "no more of it is read");
        }
        drop(rooms);
    }

    fn fed(bytes: usize) -> Fed {
        let body = Fed::announced(bytes as u64);
        body.feed(bytes);
        body
    }

    /// Two bodies that have all the room, and one that may always grow.
    fn fill(bodies: &Bodies) -> [Received; 3] {
        std::array::from_fn(|_| poll(&mut receive(bodies, &fed(BODY_BYTES_MAX as usize))).unwrap().unwrap())
    }

    /// They took the room for large bodies and waited with it, for ten seconds each.
    #[test]
    fn large_bodies_that_wait_for_the_tables_leave_the_room_to_those_of_other_deployments() {
        let (bodies, _) = bodies();
        for is_open_first in [false, true] {
            let held = fill(&bodies);
            let is_open = Cell::new(is_open_first);
            let has_room = || is_open.get();
            let large = fed(BODY_BYTES_MAX as usize);
            let mut waiting: Vec<_> = (0..3).map(|_| receive_for(1, &bodies, &large, &has_room)).collect();
            waiting.iter_mut().for_each(|receiving| assert!(poll(receiving).is_none()));
            is_open.set(false);
            drop(held);
            waiting.iter_mut().for_each(|receiving| assert!(poll(receiving).is_none()));
            assert_eq!(bodies.arrivals.free().1, LARGE_BYTES, "they hold none of it");
            let other = poll(&mut receive_for(2, &bodies, &fed(100 << 10), &|| true));
            assert!(other.unwrap().is_ok());
        }
    }

    #[test]
    fn of_each_deployment_one_body_stands_in_line_for_large_room() {
        let (bodies, _) = bodies();
        let mut held: Vec<_> = fill(&bodies).into();
        let mut receiving: Vec<_> = [1, 1, 1, 2]
            .into_iter()
            .map(|deployment| (deployment, receive_for(deployment, &bodies, &fed(BODY_BYTES_MAX as usize), &|| true)))
            .collect();
        receiving.iter_mut().for_each(|(_, receiving)| assert!(poll(receiving).is_none()));
        let mut order = Vec::new();
        while !receiving.is_empty() {
            held.truncate(held.len() - 1);
            receiving.retain_mut(|(deployment, receiving)| match poll(receiving) {
                None => true,
                Some(received) => {
                    held.push(received.unwrap());
                    order.push(*deployment);
                    false
                }
            });
        }
        assert_eq!(order, [1, 2, 1, 1]);
    }

    #[test]
    fn of_bodies_that_fill_the_room_one_goes_on_and_the_others_are_refused_after_a_while() {
        let (bodies, clock) = bodies();
        let large: Vec<Fed> = (0..4).map(|_| Fed::announced(BODY_BYTES_MAX)).collect();
        let mut receiving: Vec<Receiving<'_>> = large.iter().map(|body| receive(&bodies, body)).collect();
        // Together as much as there is.
        for (body, receiving) in large.iter().zip(&mut receiving) {
            body.feed(LARGE_BYTES / 4);
            assert!(poll(receiving).is_none());
        }
        assert_eq!(bodies.arrivals.free().1, 0);
        let rest = BODY_BYTES_MAX as usize - LARGE_BYTES / 4;
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
        assert_eq!(bodies.arrivals.free(), (SMALL_BYTES_MAX as usize, LARGE_BYTES, true));
    }

    #[test]
    fn room_is_held_until_the_body_is_appended() {
        let (bodies, _) = bodies();
        let (all, _, _) = bodies.arrivals.free();
        let body = Fed::announced(10);
        body.feed(10);
        let received = poll(&mut receive(&bodies, &body)).unwrap().unwrap();
        assert_eq!(bodies.arrivals.free().0, all - SMALL_STEP_BYTES as usize);
        drop(received);
        assert_eq!(bodies.arrivals.free().0, all);
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
