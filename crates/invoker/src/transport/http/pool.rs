//! The connections to one address.
//!
//! Owns: which connection a request goes to, opening another one, closing what nothing uses. Does not own: what happens on a
//! connection (`http2`, `http1`). A connection is closed by dropping its handle here: it ends after its last stream.

use super::connect::{self, Offer, Socket};
use super::http1::{self, Sender};
use super::http2::{Connection, Place};
use super::{Address, Dialing, Timing, TransportError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use surefoot_model::catalog::HttpVersion;
use tokio::sync::watch;
use tokio::time::Instant;

/// Idle connections of HTTP/1.1 beyond this number are closed at once.
const HTTP1_IDLE_MAX: usize = 128;

pub(super) struct Pool {
    address: Address,
    dialing: Arc<Dialing>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The oldest first: they are filled in this order, so that the others fall idle.
    http2: Vec<Connection>,
    /// How it goes with the one that is being opened. Whoever finds no room waits for it, and shares its failure.
    opening: Option<Opening>,
    /// The one used last at the end.
    http1: Vec<IdleHttp1>,
}

type Opening = watch::Receiver<Option<Result<Connection, TransportError>>>;

/// A connection of HTTP/1.1 whose last response has been read.
struct IdleHttp1 {
    sender: Sender,
    since: Instant,
}

impl Pool {
    pub(super) fn new(address: Address, dialing: Arc<Dialing>) -> Self {
        Self { address, dialing, state: Mutex::default() }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.dialing.timing
    }

    /// A place for one stream, on a connection that takes new ones.
    pub(super) async fn place(self: &Arc<Self>) -> Result<Place, TransportError> {
        loop {
            let mut opening = {
                let mut state = self.state();
                if let Some(place) = state.choose() {
                    return Ok(place);
                }
                // One whose task died is over without an outcome.
                state.opening.take_if(|opening| opening.has_changed().is_err());
                state.opening.get_or_insert_with(|| self.open()).clone()
            };
            let outcome = opening.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            let died = || TransportError::Broken("the task that opened the connection died".to_owned());
            // Others may have filled it already: then the next one is opened. One that takes nothing is no better than none.
            if outcome.unwrap_or_else(|| Err(died()))?.is_over() {
                return Err(TransportError::Broken("the peer ended the connection as soon as it was open".to_owned()));
            }
        }
    }

    /// Opens a connection of HTTP/2 in a task of its own, so that it goes on when whoever asked for it first is gone.
    fn open(self: &Arc<Self>) -> Opening {
        let (outcome, opening) = watch::channel(None);
        let pool = self.clone();
        tokio::spawn(async move {
            let opened = pool.open_http2().await;
            let mut state = pool.state();
            state.http2.extend(opened.iter().cloned());
            state.opening = None;
            drop(state);
            outcome.send_replace(Some(opened));
        });
        opening
    }

    async fn open_http2(self: &Arc<Self>) -> Result<Connection, TransportError> {
        let socket = self.connect(Offer::Http2).await?;
        if self.address.tls && socket.chosen != Some(HttpVersion::Http2) {
            return Err(TransportError::Http1Peer { address: self.address.to_string() });
        }
        Connection::begin(socket.io, self).await
    }

    /// Which version the peer takes where it may choose. The connection on which it chose is kept for the next request.
    pub(super) async fn negotiate(self: &Arc<Self>) -> Result<HttpVersion, TransportError> {
        if self.state().http2.iter_mut().any(|connection| !connection.is_over()) {
            return Ok(HttpVersion::Http2);
        }
        let socket = self.connect(Offer::Both).await?;
        if socket.chosen == Some(HttpVersion::Http2) {
            let connection = Connection::begin(socket.io, self).await?;
            self.state().http2.push(connection);
            Ok(HttpVersion::Http2)
        } else {
            self.give_http1(http1::begin(socket.io, self).await?);
            Ok(HttpVersion::Http11)
        }
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
        state.http2.retain_mut(|connection| !connection.is_over() && !connection.is_idle_for(limit, now));
        state.http1.retain(|idle| !idle.sender.is_closed() && now - idle.since < limit);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A place on the first connection that has one. Those that take no new streams are left to end with their last one.
    fn choose(&mut self) -> Option<Place> {
        let mut index = 0;
        while let Some(connection) = self.http2.get_mut(index) {
            if !connection.has_room() {
                index += 1;
            } else if connection.is_over() {
                self.http2.remove(index);
            } else {
                return Some(connection.place());
            }
        }
        None
    }
}
