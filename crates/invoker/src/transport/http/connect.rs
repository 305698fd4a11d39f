//! Sockets to peers: TCP without delays, TLS above it where the address asks for it.
//!
//! Does not own: what is spoken over them, or when one is opened (`pool`).

use super::{Address, Dialing, TransportError};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use surefoot_model::catalog::HttpVersion;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

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
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await?;
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
