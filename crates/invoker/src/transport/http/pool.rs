//! The connections to one address.
//!
//! Owns: which connection a request goes to, how many there are, when another one is opened and when one is retired, closing what
//! nothing uses. Does not own: what happens on a connection (`connection`, `http1`). A connection that is not in the list of those that
//! take new streams ends after its last one.

use super::connect::{self, Offer, Socket};
use super::connection::{Connection, Life, Place};
use super::http1::{self, Sender};
use super::{Address, Dialing, Timing, TransportError};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_model::catalog::HttpVersion;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Idle connections of HTTP/1.1 beyond this number are closed at once.
const HTTP1_IDLE_MAX: usize = 128;
/// Connections of HTTP/2 that take new streams. A peer may allow one stream on each.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// Streams are spread over this many connections before they are filled: what befalls one befalls few invocations.
const SPREAD_CONNECTIONS: usize = 8;
/// Streams on each connection for which another one is opened, up to that number.
const SPREAD_STREAMS: usize = 32;
/// Streams above the fewest of any connection up to which the one chosen last is chosen again: what begins together leaves in one write.
const BURST_STREAMS: usize = 16;
/// Connections that are opened at a time.
const OPENINGS_MAX: usize = 8;
/// Connections that take no new stream and wait for their last one to end. At the bound connections go on beyond their number of requests,
/// until they are spent; these, and those that peers retire, come on top, each with one stream at least.
pub(super) const LINGERING_MAX: usize = 32;
/// After a connection that nobody waits for could not be opened, until another try.
const AHEAD_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Pool {
    address: Address,
    dialing: Arc<Dialing>,
    /// Told of each stream that has gone.
    freed: Arc<Notify>,
    state: Mutex<State>,
}

struct State {
    /// Those that take new streams, the oldest first.
    http2: Vec<Connection>,
    /// The one chosen last.
    chosen: Option<Arc<Life>>,
    /// Those that take none any more, the oldest first.
    lingering: Vec<Arc<Life>>,
    openings: Vec<Opening>,
    /// Streams that the next connection is expected to take at first.
    streams_expected: usize,
    /// No connection is opened ahead of need before.
    ahead_from: Option<Instant>,
    /// The one used last at the end.
    http1: Vec<IdleHttp1>,
}

/// A connection that is being opened.
struct Opening {
    outcome: Outcome,
    /// Requests that found no room and wait for it. They share its failure.
    waiting: usize,
}

type Outcome = watch::Receiver<Option<Result<Arc<Life>, TransportError>>>;

/// A connection of HTTP/1.1 whose last response has been read.
struct IdleHttp1 {
    sender: Sender,
    since: Instant,
}

/// How a request gets its place.
enum Found {
    Place(Place),
    Opening(Outcome),
    Full,
}

impl Pool {
    pub(super) fn new(address: Address, dialing: Arc<Dialing>) -> Self {
        Self { address, dialing, freed: Arc::default(), state: Mutex::new(State::new()) }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.dialing.timing
    }

    pub(super) fn freed(&self) -> Arc<Notify> {
        self.freed.clone()
    }

    /// A place for one stream, on a connection that takes new ones. `refused` is the connection that would not take it. Where there is
    /// no room it waits for another stream to end, however long that takes, and tells `no_room`.
    pub(super) async fn place(self: &Arc<Self>, refused: Option<&Arc<Life>>, no_room: &Notify) -> Result<Place, TransportError> {
        loop {
            let mut freed = pin!(self.freed.notified());
            let mut found = self.find(refused);
            if matches!(found, Found::Full) {
                // What ends from here on is not missed.
                freed.as_mut().enable();
                found = self.find(refused);
            }
            let mut outcome = match found {
                Found::Place(place) => return Ok(place),
                Found::Opening(outcome) => outcome,
                Found::Full => {
                    no_room.notify_one();
                    // The peer may also allow more, which nobody tells.
                    if tokio::time::timeout(self.timing().connect, freed).await.is_err() && self.state().streams() == 0 {
                        return Err(self.closed());
                    }
                    continue;
                }
            };
            let opened = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            let died = || TransportError::Broken("the task that opened the connection died".to_owned());
            match opened.unwrap_or_else(|| Err(died())) {
                // One that takes nothing is no better than none.
                Ok(life) if life.has_left() => return Err(self.left_at_once()),
                // Others may have filled it already: then the next one is opened.
                Ok(_) => {}
                // Another one may have come meanwhile.
                Err(error) => return self.state().choose(refused).ok_or(error),
            }
        }
    }

    fn closed(&self) -> TransportError {
        self.connect_error(format!("{CONNECTIONS_MAX} connections are open, and the peer takes no stream on any of them"))
    }

    /// It took the connection, and would hear no request.
    pub(super) fn left_at_once(&self) -> TransportError {
        self.connect_error("the peer ended the connection as soon as it was open".to_owned())
    }

    fn connect_error(&self, message: String) -> TransportError {
        TransportError::Connect { address: self.address.to_string(), message }
    }

    fn find(self: &Arc<Self>, refused: Option<&Arc<Life>>) -> Found {
        let mut state = self.state();
        if let Some(place) = state.choose(refused) {
            if state.needs_another() {
                self.open(&mut state);
            }
            return Found::Place(place);
        }
        if state.has_room_for_opening() && state.openings.iter().all(|opening| opening.waiting >= state.streams_expected) {
            self.open(&mut state);
        }
        // All that are being opened fill alike.
        match state.openings.iter_mut().min_by_key(|opening| opening.waiting) {
            Some(opening) => {
                opening.waiting += 1;
                Found::Opening(opening.outcome.clone())
            }
            // None but the one that refused: it is better than nothing.
            None => state.choose(None).map_or(Found::Full, Found::Place),
        }
    }

    /// Opens a connection of HTTP/2 in a task of its own, so that it goes on when whoever asked for it first is gone.
    fn open(self: &Arc<Self>, state: &mut State) {
        let (tell, outcome) = watch::channel(None);
        let pool = self.clone();
        let mine = outcome.clone();
        state.openings.push(Opening { outcome, waiting: 0 });
        tokio::spawn(async move {
            let opened = pool.open_http2().await;
            let mut state = pool.state();
            state.openings.retain(|opening| !opening.outcome.same_channel(&mine));
            if opened.is_err() {
                state.ahead_from = Some(Instant::now() + AHEAD_PAUSE);
            }
            let outcome = opened.map(|connection| state.add(connection));
            drop(state);
            tell.send_replace(Some(outcome));
        });
    }

    async fn open_http2(self: &Arc<Self>) -> Result<Connection, TransportError> {
        let socket = self.connect(Offer::Http2).await?;
        if self.address.tls && socket.chosen != Some(HttpVersion::Http2) {
            return Err(TransportError::Http1Peer { address: self.address.to_string() });
        }
        let mut connection = Connection::begin(socket.io, self).await?;
        if connection.is_over() { Err(self.left_at_once()) } else { Ok(connection) }
    }

    /// Which version the peer takes where it may choose. The connection on which it chose is kept for the next request.
    pub(super) async fn negotiate(self: &Arc<Self>) -> Result<HttpVersion, TransportError> {
        if self.state().http2.iter_mut().any(|connection| !connection.is_over()) {
            return Ok(HttpVersion::Http2);
        }
        let socket = self.connect(Offer::Both).await?;
        if socket.chosen == Some(HttpVersion::Http2) {
            let connection = Connection::begin(socket.io, self).await?;
            self.state().add(connection);
            Ok(HttpVersion::Http2)
        } else {
            self.give_http1(http1::begin(socket.io, self).await?);
            Ok(HttpVersion::Http11)
        }
    }

    /// Gives a connection no new stream any more.
    pub(super) fn retire(&self, life: &Arc<Life>) {
        self.state().retire(life);
    }

    /// An idle connection of HTTP/1.1.
    pub(super) fn take_http1(&self) -> Option<Sender> {
        let idle = &mut self.state().http1;
        // One that is not ready yet is still sending the rest of a request that was answered early.
        let index = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.remove(index).sender)
    }

    /// Takes back a connection whose response has been read to its end.
    pub(super) fn give_http1(&self, sender: Sender) {
        let idle = &mut self.state().http1;
        if idle.len() < HTTP1_IDLE_MAX && !sender.is_closed() {
            idle.push(IdleHttp1 { sender, since: Instant::now() });
        }
    }

    pub(super) async fn open_http1(self: &Arc<Self>) -> Result<Sender, TransportError> {
        http1::begin(self.connect(Offer::Http11).await?.io, self).await
    }

    async fn connect(&self, offer: Offer) -> Result<Socket, TransportError> {
        connect::connect(&self.address, &self.dialing, offer).await
    }

    /// Lets go of connections that are over, or have been idle for long. Each connection's task calls it from time to time.
    pub(super) fn sweep(&self) {
        let (now, limit) = (Instant::now(), self.timing().idle);
        let mut state = self.state();
        let unused = state.http2.iter_mut().filter_map(|connection| {
            (connection.is_over() || connection.is_idle_for(limit, now)).then(|| connection.life().clone())
        });
        for life in unused.collect::<Vec<_>>() {
            state.retire(&life);
        }
        state.http1.retain(|idle| !idle.sender.is_closed() && now - idle.since < limit);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new() -> Self {
        let (http2, lingering, openings, http1) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { http2, chosen: None, lingering, openings, streams_expected: SPREAD_STREAMS, ahead_from: None, http1 }
    }

    fn add(&mut self, connection: Connection) -> Arc<Life> {
        let life = connection.life().clone();
        self.streams_expected = connection.streams_max().min(SPREAD_STREAMS);
        self.http2.push(connection);
        // Its task may have found it ended before it stood in the list.
        if life.has_left() {
            self.retire(&life);
        }
        life
    }

    /// A place on the connection that has the fewest streams and room for more, or on the one chosen last while it has a few more.
    fn choose(&mut self, refused: Option<&Arc<Life>>) -> Option<Place> {
        loop {
            let index = self.best(refused)?;
            let chosen = &mut self.http2[index];
            if chosen.is_over() {
                let life = chosen.life().clone();
                self.retire(&life);
                continue;
            }
            let place = chosen.place();
            if self.chosen.as_ref().is_none_or(|last| !Arc::ptr_eq(last, chosen.life())) {
                self.chosen = Some(chosen.life().clone());
            }
            if chosen.is_worn() {
                let (life, is_spent) = (chosen.life().clone(), chosen.is_spent());
                self.lingering.retain(|life| !life.is_over());
                if is_spent || self.lingering.len() < LINGERING_MAX {
                    self.retire(&life);
                }
            }
            return Some(place);
        }
    }

    /// What a peer allows is asked of few connections: each answers behind a lock that its task holds while it works.
    fn best(&self, refused: Option<&Arc<Life>>) -> Option<usize> {
        let candidates =
            self.http2.iter().enumerate().filter(|(_, one)| refused.is_none_or(|refused| !Arc::ptr_eq(one.life(), refused)));
        // The oldest of those that have as few, so that the others fall idle.
        let (fewest, one) = candidates.clone().min_by_key(|(_, one)| one.streams())?;
        let burst = self.chosen.as_ref().and_then(|last| candidates.clone().find(|(_, one)| Arc::ptr_eq(one.life(), last)));
        if let Some((index, last)) = burst
            && last.streams() < one.streams() + BURST_STREAMS
            && last.has_room()
        {
            return Some(index);
        }
        if one.has_room() {
            return Some(fewest);
        }
        candidates.filter(|(_, one)| one.has_room()).min_by_key(|(_, one)| one.streams()).map(|(index, _)| index)
    }

    fn streams(&self) -> usize {
        self.http2.iter().map(Connection::streams).sum()
    }

    /// Whether one more connection is to be opened although a place was found: streams are many, or a connection is near its end.
    fn needs_another(&mut self) -> bool {
        let wanted = (self.streams() / SPREAD_STREAMS + 1).min(SPREAD_CONNECTIONS);
        let fresh = self.http2.iter().filter(|one| one.is_fresh()).count();
        fresh + self.openings.len() < wanted
            && self.has_room_for_opening()
            && self.ahead_from.is_none_or(|from| from <= Instant::now())
    }

    /// Whether one more connection may be opened now.
    fn has_room_for_opening(&mut self) -> bool {
        // One whose task died is over without an outcome.
        self.openings.retain(|opening| opening.outcome.has_changed().is_ok());
        self.openings.len() < OPENINGS_MAX && self.http2.len() + self.openings.len() < CONNECTIONS_MAX
    }

    fn retire(&mut self, life: &Arc<Life>) {
        if let Some(index) = self.http2.iter().position(|one| Arc::ptr_eq(one.life(), life)) {
            self.http2.remove(index);
            self.chosen.take_if(|chosen| Arc::ptr_eq(chosen, life));
            self.lingering.push(life.clone());
        }
        life.retire();
        self.lingering.retain(|life| !life.is_over());
    }
}
