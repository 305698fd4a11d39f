//! Servers for the tests: HTTP/2 driven by hand or written frame by frame, HTTP/1.1 that echoes, and an address that swallows.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How long a test waits for what must come. Nothing is asserted by letting it pass.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing came"))
}

/// A server of HTTP/2. What comes waits until the test looks at it.
pub(super) struct Http2Peer {
    pub(super) address: SocketAddr,
    events: UnboundedReceiver<PeerEvent>,
}

pub(super) enum PeerEvent {
    Request(Box<Received>),
    /// The connection of this number has ended.
    Ended(usize),
}

pub(super) struct Received {
    /// The connection's number, from 0.
    pub(super) connection: usize,
    pub(super) request: Request<RecvStream>,
    pub(super) respond: SendResponse<Bytes>,
    commands: UnboundedSender<Command>,
}

#[derive(Debug)]
enum Command {
    Goodbye,
    Die,
}

impl Http2Peer {
    pub(super) async fn start(settings: h2::server::Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (sender, events)) = (listener.local_addr().unwrap(), unbounded_channel());
        tokio::spawn(async move {
            for number in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(serve_http2(socket, settings.clone(), number, sender.clone()));
            }
        });
        Self { address, events }
    }

    pub(super) async fn event(&mut self) -> PeerEvent {
        within("the peer", self.events.recv()).await.expect("the peer listens as long as the test runs")
    }

    pub(super) async fn request(&mut self) -> Received {
        loop {
            if let PeerEvent::Request(received) = self.event().await {
                return *received;
            }
        }
    }
}

impl Received {
    /// Announces that this is the last stream of its connection.
    pub(super) fn say_goodbye(&self) {
        self.commands.send(Command::Goodbye).expect("the connection is served");
    }

    /// Closes the connection without a word.
    pub(super) fn kill_connection(&self) {
        self.commands.send(Command::Die).expect("the connection is served");
    }

    pub(super) fn refuse(self) {
        self.reset(h2::Reason::REFUSED_STREAM);
    }

    pub(super) fn reset(mut self, reason: h2::Reason) {
        self.respond.send_reset(reason);
    }

    pub(super) fn respond_head(&mut self) -> SendStream<Bytes> {
        self.respond.send_response(Response::new(()), false).unwrap()
    }

    /// Reads the request, and answers with its body.
    pub(super) async fn echo(mut self) {
        let body = self.read_body().await.unwrap();
        self.respond_head().send_data(body, true).unwrap();
    }

    pub(super) async fn read_body(&mut self) -> Result<Bytes, h2::Error> {
        let (mut all, body) = (Vec::new(), self.request.body_mut());
        while let Some(chunk) = within("the request's body", body.data()).await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    }
}

pub(super) async fn serve_http2(
    io: impl AsyncRead + AsyncWrite + Unpin,
    settings: h2::server::Builder,
    number: usize,
    events: UnboundedSender<PeerEvent>,
) {
    let (commands, mut given) = unbounded_channel();
    if let Ok(mut connection) = settings.handshake(io).await {
        loop {
            tokio::select! {
                biased;
                command = given.recv() => match command.expect("a sender is kept here") {
                    Command::Goodbye => connection.graceful_shutdown(),
                    Command::Die => break,
                },
                accepted = connection.accept() => {
                    let Some(Ok((request, respond))) = accepted else { break };
                    let received = Received { connection: number, request, respond, commands: commands.clone() };
                    let _ = events.send(PeerEvent::Request(Box::new(received)));
                }
            }
        }
    }
    let _ = events.send(PeerEvent::Ended(number));
}

/// A server of HTTP/2 that answers by itself with the request's body, and never where the path ends in `/silence`.
pub(super) struct EchoingHttp2 {
    pub(super) address: SocketAddr,
    /// Requests on each connection.
    requests: Arc<Mutex<Vec<usize>>>,
}

impl EchoingHttp2 {
    pub(super) async fn start(settings: h2::server::Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<usize>>>::default());
        let count = requests.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                count.lock().unwrap().push(0);
                let (settings, count) = (settings.clone(), count.clone());
                tokio::spawn(async move {
                    let Ok(mut connection) = settings.handshake::<_, Bytes>(socket).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        count.lock().unwrap()[number] += 1;
                        tokio::spawn(echo(request, respond));
                    }
                });
            }
        });
        Self { address, requests }
    }

    pub(super) fn requests(&self) -> Vec<usize> {
        self.requests.lock().unwrap().clone()
    }
}

async fn echo(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    if request.uri().path().ends_with("/silence") {
        // Until the client lets go of it.
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        return;
    }
    let mut answer = respond.send_response(Response::new(()), false).unwrap();
    while let Some(Ok(chunk)) = request.body_mut().data().await {
        request.body_mut().flow_control().release_capacity(chunk.len()).unwrap();
        if !chunk.is_empty() {
            answer.send_data(chunk, false).unwrap();
        }
    }
    answer.send_data(Bytes::new(), true).unwrap();
}

/// The server's side of HTTP/2, frame by frame, for what a library would not do.
pub(super) struct RawHttp2(TcpStream);

pub(super) const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

impl RawHttp2 {
    /// Takes a connection up to the exchange of settings.
    pub(super) async fn accept(listener: &TcpListener) -> Self {
        let (mut socket, _) = within("a connection", listener.accept()).await.unwrap();
        socket.read_exact(&mut [0; 24]).await.unwrap();
        let mut peer = Self(socket);
        peer.write(SETTINGS, &[]).await;
        peer
    }

    /// Reads until a frame of this kind has come, or the connection has ended.
    pub(super) async fn read_until(&mut self, kind: u8) {
        let mut head = [0; 9];
        while self.0.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            self.0.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] == kind {
                return;
            }
        }
    }

    pub(super) async fn say_goodbye(&mut self, last_stream: u32) {
        let no_error = [0; 4];
        self.write(GOAWAY, &[last_stream.to_be_bytes(), no_error].concat()).await;
    }

    /// Reads to the connection's end without an answer to anything.
    pub(super) async fn fall_silent(mut self) {
        self.read_until(u8::MAX).await;
    }

    async fn write(&mut self, kind: u8, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 0];
        self.0.write_all(&[&head[..], payload].concat()).await.unwrap();
    }
}

/// A server of HTTP/1.1 that answers with the request's body, and never where the path ends in `/silence`.
pub(super) struct Http1Peer {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Mutex<Seen>>,
    /// One for each connection that has ended.
    pub(super) ended: UnboundedReceiver<()>,
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) connections: usize,
    pub(super) hosts: Vec<String>,
    /// Answer with `connection: close`.
    pub(super) closes: bool,
}

impl Http1Peer {
    pub(super) async fn start(listener: TcpListener) -> Self {
        let (address, seen, (sender, ended)) =
            (listener.local_addr().unwrap(), Arc::<Mutex<Seen>>::default(), unbounded_channel());
        let shared = seen.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                shared.lock().unwrap().connections += 1;
                let (seen, ended) = (shared.clone(), sender.clone());
                tokio::spawn(async move {
                    serve_http1(socket, seen).await;
                    let _ = ended.send(());
                });
            }
        });
        Self { address, seen, ended }
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

pub(super) async fn serve_http1(io: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<Mutex<Seen>>) {
    let service = service_fn(|request: Request<Incoming>| {
        let closes = {
            let mut seen = seen.lock().unwrap();
            seen.hosts.push(request.headers()["host"].to_str().unwrap().to_owned());
            seen.closes
        };
        async move {
            if request.uri().path().ends_with("/silence") {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(Full::new(request.into_body().collect().await.unwrap().to_bytes()));
            if closes {
                response.headers_mut().insert("connection", "close".parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// An address that takes no connection and refuses none: its queue is full. Keep it for as long as it is to be so.
#[cfg(target_os = "linux")]
pub(in super::super) struct BlackHole {
    pub(in super::super) address: SocketAddr,
    _sockets: Vec<socket2::Socket>,
}

#[cfg(target_os = "linux")]
impl BlackHole {
    pub(in super::super) fn dig() -> Self {
        use socket2::{Domain, Socket, Type};
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = vec![listener];
        loop {
            let filling = socket();
            let is_full = filling.connect_timeout(&address, Duration::from_millis(200)).is_err();
            sockets.push(filling);
            if is_full {
                return Self { address: address.as_socket().unwrap(), _sockets: sockets };
            }
            assert!(sockets.len() < 100, "the queue of {address:?} has no end");
        }
    }
}
