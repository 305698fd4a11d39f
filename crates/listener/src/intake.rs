//! How fast requests are taken in: no faster than they are looked at.
//!
//! Over HTTP/2 a few bytes make a request, and each takes some KiB from its arrival on. Requests that a service has begun to answer are
//! bounded by the service. Requests that have only arrived are bounded here, for each connection and for the port: at the bound a connection
//! is not read until some have been begun. Beginning one never waits for a client, so nothing is refused or cut here.
//!
//! Does not own: what is read at a time (`socket`).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Requests of a port, and of one connection, that have come and that nobody has looked at yet. What one turn of reading brings comes on
/// top.
const PORT_MAX: usize = 1_024;
pub(crate) const CONNECTION_MAX: usize = 64;

/// Of a port, or of a connection.
pub(crate) struct Intake {
    fresh: AtomicUsize,
    fresh_max: usize,
    fell: Arc<Notify>,
}

/// A request that has come, until somebody looks at it, or it is dropped.
pub(crate) struct Fresh([Arc<Intake>; 2]);

/// The wait of a connection until it may be read.
pub(crate) struct Turn {
    intakes: [Arc<Intake>; 2],
    waiting: Option<Pin<Box<OwnedNotified>>>,
}

impl Intake {
    pub(crate) fn of_port() -> Arc<Self> {
        Self::new(PORT_MAX)
    }

    pub(crate) fn of_connection() -> Arc<Self> {
        Self::new(CONNECTION_MAX)
    }

    fn new(fresh_max: usize) -> Arc<Self> {
        Arc::new(Self { fresh: AtomicUsize::new(0), fresh_max, fell: Arc::default() })
    }

    fn has_room(&self) -> bool {
        self.fresh.load(Ordering::SeqCst) < self.fresh_max
    }

    fn seen(&self) {
        if self.fresh.fetch_sub(1, Ordering::SeqCst) == self.fresh_max / 2 + 1 {
            // All of them: each reads for one turn, and those that find the bound reached again wait before those that have read.
            self.fell.notify_waiters();
        }
    }
}

impl Fresh {
    /// One of a port's, and of a connection's.
    pub(crate) fn new(intakes: [Arc<Intake>; 2]) -> Self {
        for intake in &intakes {
            intake.fresh.fetch_add(1, Ordering::SeqCst);
        }
        Self(intakes)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for intake in &self.0 {
            intake.seen();
        }
    }
}

impl Turn {
    pub(crate) fn new(intakes: [Arc<Intake>; 2]) -> Self {
        Self { intakes, waiting: None }
    }

    /// Ready once the connection may be read.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            let Some(full) = self.intakes.iter().find(|intake| !intake.has_room()) else { return Poll::Ready(()) };
            // It hears what is told from now on, so that nothing is missed between the two looks.
            let waiting = Box::pin(full.fell.clone().notified_owned());
            if !full.has_room() {
                self.waiting = Some(waiting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn poll(turn: &mut Turn) -> bool {
        turn.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A hundred connections of HTTP/2 with a thousand calls each were all read at once, before the first of them was answered.
    #[test]
    fn connections_wait_to_be_read_while_many_requests_of_the_port_have_come_and_go_on_by_themselves() {
        let port = Intake::of_port();
        let connection = || [port.clone(), Intake::of_connection()];
        let (mut one, mut other) = (Turn::new(connection()), Turn::new(connection()));
        let mut fresh: Vec<Fresh> = (0..PORT_MAX - 1).map(|_| Fresh::new(connection())).collect();
        assert!(poll(&mut one), "there is room for more");
        fresh.push(Fresh::new(connection()));
        assert!(!poll(&mut one) && !poll(&mut other));
        fresh.truncate(PORT_MAX / 2 + 1);
        assert!(!poll(&mut one), "they go on together, not for each request");
        fresh.pop();
        assert!(poll(&mut one) && poll(&mut other));
    }

    #[test]
    fn a_connection_waits_for_its_own_requests_and_not_for_those_of_another() {
        let port = Intake::of_port();
        let (own, others) = ([port.clone(), Intake::of_connection()], [port.clone(), Intake::of_connection()]);
        let (mut one, mut other) = (Turn::new(own.clone()), Turn::new(others));
        let mut fresh: Vec<Fresh> = (0..CONNECTION_MAX).map(|_| Fresh::new(own.clone())).collect();
        assert!(!poll(&mut one) && poll(&mut other));
        fresh.truncate(CONNECTION_MAX / 2);
        assert!(poll(&mut one));
    }
}
