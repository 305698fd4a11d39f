//! Sockets to peers: TCP without delays, TLS above it where the address asks for it.
//!
//! Owns: which of a name's addresses is taken. Does not own: what is spoken over them, or when one is opened (`pool`).

use super::{Address, Dialing, TransportError};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use surefoot_model::catalog::HttpVersion;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

/// What an address has of time for itself before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// The versions that a peer may choose from by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Http2,
    Http11,
    Both,
}

/// An open connection.
pub(super) struct Socket {
    pub(super) io: Io,
    /// What the peer chose; without TLS, or where it is silent on the matter, nothing.
    pub(super) chosen: Option<HttpVersion>,
}

pub(super) type Io = Pin<Box<dyn Duplex>>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

pub(super) async fn connect(address: &Address, dialing: &Dialing, offer: Offer) -> Result<Socket, TransportError> {
    let failed = |message: String| TransportError::Connect { address: address.to_string(), message };
    let connecting = async {
        let addresses = lookup_host((address.host.as_str(), address.port)).await?;
        let tcp = first_of(alternating(addresses.collect())).await?;
        tcp.set_nodelay(true)?;
        let tcp = QuickAck(tcp);
        if address.tls {
            dialing.tls.connect(tcp, &address.host, offer).await
        } else {
            Ok(Socket { io: Box::pin(tcp), chosen: None })
        }
    };
    match tokio::time::timeout(dialing.timing.connect, connecting).await {
        Ok(connected) => connected.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed(format!("no connection within {} ms", dialing.timing.connect.as_millis()))),
    }
}

/// The addresses with both families in turn, beginning with that of the first: where one of them leads nowhere, the other is next.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let pairs = std::iter::from_fn(|| {
        let pair = [one.next(), other.next()];
        pair.iter().any(Option::is_some).then_some(pair)
    });
    pairs.flatten().flatten().take(ADDRESSES_MAX).collect()
}

/// Connects to whichever address answers first. One that is silent does not hold up the next one; its time is bounded by the caller.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    if let [address] = addresses[..] {
        return TcpStream::connect(address).await;
    }
    let mut dialing = JoinSet::new();
    let mut left = addresses.into_iter();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = left.next() {
            dialing.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            biased;
            // Nothing is taken unless it has ended.
            dialed = dialing.join_next() => match dialed {
                Some(Ok(Ok(tcp))) => return Ok(tcp),
                Some(Ok(Err(error))) => failure = error,
                Some(Err(died)) => failure = io::Error::other(died),
                None => return Err(failure),
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
        }
    }
}

/// A TCP stream whose acknowledgements are not held back: peers that leave Nagle's algorithm on would wait up to 40 ms for each
/// small message otherwise. The kernel forgets the option, so it is set again after each read.
pub(super) struct QuickAck(TcpStream);

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.0).poll_read(cx, buf));
        #[cfg(target_os = "linux")]
        if read.is_ok() {
            // Only an optimisation: a socket that refuses it works all the same.
            let _ = socket2::SockRef::from(&self.0).set_tcp_quickack(true);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn families_take_turns() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = of(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"]);
        assert_eq!(alternating(given), of(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(alternating(of(&["1.0.0.1:1"])), of(&["1.0.0.1:1"]));
        assert!(alternating(Vec::new()).is_empty());
        assert_eq!(alternating(vec![of(&["1.0.0.1:1"])[0]; 100]).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn an_address_that_refuses_or_swallows_does_not_hide_one_that_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answers = listener.local_addr().unwrap();
        let refuses = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(first_of(vec![refuses, answers]).await.unwrap().peer_addr().unwrap(), answers);
        assert!(first_of(vec![refuses, refuses]).await.is_err());
        assert_eq!(first_of(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        #[cfg(target_os = "linux")]
        {
            let hole = super::super::tests::peer::BlackHole::dig();
            assert_eq!(first_of(vec![hole.address, answers]).await.unwrap().peer_addr().unwrap(), answers);
        }
    }
}
