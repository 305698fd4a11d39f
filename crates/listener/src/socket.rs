//! A client's socket: how much of it is read at a time, and where it ends.
//!
//! Owns: turns of reading, none for a client that takes no answers; the end of what a client sends while its call waits for an answer: over
//! HTTP/1.1 a client may close its sending side behind its request, and still read; and what it sends behind its last answer. Does not own:
//! how many requests of a port have come (`intake`), or HTTP.

use crate::activity::Activity;
use crate::intake::{CONNECTION_MAX, Turn};
use crate::registry::Membership;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use surefoot_env::{BoxFuture, Clock};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that are read of a connection before others have their turn. What one brings of requests is not bounded by anything else: a turn is
/// as long as [`CONNECTION_MAX`] of them are, going by the turn before, and each twice as long as that while none comes (a body does).
pub(crate) const TURN_BYTES_FIRST: usize = 2 << 10;
const TURN_BYTES_MIN: usize = 1 << 10;
const TURN_BYTES_MAX: usize = 16 << 10;
/// How often it is looked whether a client that sends nothing more is still there: the kernel asks it, and knows after a minute or two.
const LOOK: Duration = Duration::from_secs(5);
/// A client of HTTP/1.1 may have sent more requests before it hears that the answer to an earlier one is the last. So many bytes are read, for
/// so long: a socket that is closed with something unread resets the connection, and takes that answer away again. Its place is another's.
const BEHIND_LAST_BYTES: usize = 1 << 20;
const BEHIND_LAST: Duration = Duration::from_millis(500);

pub(crate) struct ClientSocket {
    stream: TcpStream,
    activity: Arc<Activity>,
    clock: Arc<dyn Clock>,
    turn: Turn,
    /// Of this turn, and what is left of it; and requests that had come before it.
    turn_bytes: usize,
    left_bytes: usize,
    requests: u64,
    /// Polls of the connection so far, and the one in which this turn ended.
    polls: Polls,
    over_in: Option<u64>,
    /// The client does not take what is written: requests that had come until then.
    blocked_since: Option<u64>,
    /// Who reads on once it does.
    blocked: Option<Waker>,
    end: End,
    /// What comes behind the last answer.
    behind_last: Option<BehindLast>,
    /// Leave to hold back an end, for all connections of a port.
    ends: Arc<Semaphore>,
}

/// How often a connection has been polled: HTTP/2 reads several times in one poll, and hands out only one request after each.
#[derive(Clone, Default)]
pub(crate) struct Polls(Arc<AtomicU64>);

impl Polls {
    /// The next one begins.
    pub(crate) fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What comes behind the last answer, and is thrown away.
struct BehindLast {
    /// It is read for no longer than this.
    patience: BoxFuture,
    left_bytes: usize,
}

/// The end of what a client sends.
enum End {
    NotYet,
    /// In this poll of the connection.
    Came {
        in_poll: u64,
    },
    /// It has come, and is told once the call that waits has its answer. With the next look whether its client is still there.
    HeldBack {
        look: BoxFuture,
        _leave: OwnedSemaphorePermit,
    },
    Told,
}

impl ClientSocket {
    /// `polls` are those of the connection.
    pub(crate) fn new(stream: TcpStream, membership: &Membership, clock: Arc<dyn Clock>, polls: Polls) -> Self {
        Self {
            stream,
            activity: membership.member.activity.clone(),
            clock,
            turn: Turn::new(membership.intakes()),
            turn_bytes: TURN_BYTES_FIRST,
            left_bytes: TURN_BYTES_FIRST,
            requests: 0,
            polls,
            over_in: None,
            blocked_since: None,
            blocked: None,
            end: End::NotYet,
            behind_last: None,
            ends: membership.ends_held_back().clone(),
        }
    }

    /// What the last turn brought is known by now: all of it was handed out in the poll that the turn ended in.
    fn next_turn(&mut self) {
        let (read, requests) = (self.turn_bytes - self.left_bytes, self.activity.requests());
        let came = usize::try_from(requests - self.requests).unwrap_or(usize::MAX);
        self.turn_bytes = next_turn_bytes(self.turn_bytes, read, came);
        (self.left_bytes, self.requests, self.over_in) = (self.turn_bytes, requests, None);
    }

    /// Reads within this turn. Nothing read: the end.
    fn poll_turn(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        if let Some(poll) = self.over_in {
            if poll == self.polls.count() {
                // It has been seen to that there is another poll.
                return Poll::Pending;
            }
            self.next_turn();
        }
        // Answers that a client does not take pile up, and it may not have ever more of them. What it goes on with is read: a client may
        // take nothing before it has sent all of a body.
        if self.blocked_since.is_some_and(|requests| self.activity.requests() - requests >= CONNECTION_MAX as u64) {
            self.blocked = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.left_bytes == 0 {
            self.over_in = Some(self.polls.count());
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.turn.poll(cx));
        let before = buf.filled().len();
        // Into the buffer as it is: to clear it before each read took 2 % of what a small call takes.
        let mut part = (&mut self.stream).take(self.left_bytes as u64);
        let Poll::Ready(read) = Pin::new(&mut part).poll_read(cx, buf) else {
            self.over_in = Some(self.polls.count());
            return Poll::Pending;
        };
        let bytes = buf.filled().len() - before;
        self.left_bytes -= bytes;
        Poll::Ready(read.map(|()| bytes))
    }

    fn written<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() {
            self.blocked_since.get_or_insert_with(|| self.activity.requests());
        } else {
            self.blocked_since = None;
            self.activity.moved();
            if let Some(blocked) = self.blocked.take() {
                blocked.wake();
            }
        }
        written
    }

    /// Ready when the end may be told. **Errors**: the client has gone.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let End::HeldBack { look, .. } = &mut self.end {
            if !self.activity.waits_for_answer_alone(cx.waker()) {
                break;
            }
            ready!(look.as_mut().poll(cx));
            *look = self.clock.sleep(LOOK);
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
        }
        self.end = End::Told;
        Poll::Ready(Ok(()))
    }

    /// Our side is closed. Ready once the client has closed its own, or has been waited for.
    fn poll_behind_last(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let clock = &self.clock;
        let behind = self
            .behind_last
            .get_or_insert_with(|| BehindLast { patience: clock.sleep(BEHIND_LAST), left_bytes: BEHIND_LAST_BYTES });
        let mut unread = [0; 4 << 10];
        while behind.left_bytes > 0 {
            let mut part = ReadBuf::new(&mut unread);
            match Pin::new(&mut self.stream).poll_read(cx, &mut part) {
                Poll::Ready(Ok(())) if !part.filled().is_empty() => {
                    behind.left_bytes = behind.left_bytes.saturating_sub(part.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return behind.patience.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

/// After a turn of so many bytes, of which so many were read and brought so many requests.
fn next_turn_bytes(turn_bytes: usize, read: usize, came: usize) -> usize {
    let bytes = match (read, came) {
        (0, _) => turn_bytes,
        (_, 0) => 2 * turn_bytes,
        (_, _) => read.saturating_mul(CONNECTION_MAX) / came,
    };
    bytes.clamp(TURN_BYTES_MIN, TURN_BYTES_MAX)
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let End::NotYet = this.end {
            let is_asked = buf.remaining() > 0;
            if ready!(this.poll_turn(cx, buf))? > 0 || !is_asked {
                return Poll::Ready(Ok(()));
            }
            // The last bytes of a body may have come just before this end. A service that awaits them takes them before the next poll:
            // only then is it known whether the body is whole.
            this.end = End::Came { in_poll: this.polls.count() };
            cx.waker().wake_by_ref();
        }
        if let End::Came { in_poll } = this.end {
            if in_poll == this.polls.count() {
                return Poll::Pending;
            }
            this.end = match this.ends.clone().try_acquire_owned() {
                Ok(leave) if this.activity.waits_for_answer_alone(cx.waker()) => {
                    End::HeldBack { look: this.clock.sleep(LOOK), _leave: leave }
                }
                _ => End::Told,
            };
        }
        this.poll_end(cx)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        if self.activity.has_said_last() && matches!(self.end, End::NotYet) {
            ready!(self.poll_behind_last(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_brings_a_bounded_number_of_requests_and_a_body_in_large_pieces() {
        let mut bytes = TURN_BYTES_FIRST;
        for _ in 0..10 {
            bytes = next_turn_bytes(bytes, bytes, 0);
        }
        assert_eq!(bytes, TURN_BYTES_MAX, "a body");
        for request in [20, 90, 250] {
            let bytes = next_turn_bytes(bytes, bytes, bytes / request);
            assert!(bytes / request <= CONNECTION_MAX + 1, "{request}: {bytes}");
        }
        assert_eq!(next_turn_bytes(2_048, 0, 0), 2_048, "a wait says nothing");
        assert_eq!(next_turn_bytes(2_048, 300, 1), TURN_BYTES_MAX, "one request is no crowd");
    }
}
