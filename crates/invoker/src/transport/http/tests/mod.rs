//! The transport against real sockets of this host.

pub(super) mod peer;

use super::connection::REQUESTS_MAX;
use super::pool::{CONNECTIONS_MAX, LINGERING_MAX};
use super::tls::Tls;
use super::*;
use futures_util::future::join_all;
use h2::server;
use peer::{EchoingHttp2, HEADERS, Http1Peer, Http2Peer, PeerEvent, RawHttp2, Received, within};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Long enough that a test never meets it by chance.
const TIMING: Timing = Timing {
    connect: Duration::from_secs(60),
    discovery: Duration::from_secs(60),
    idle: Duration::from_secs(600),
    ping_interval: Duration::from_secs(60),
    ping_timeout: Duration::from_secs(60),
    goodbye_interval: Duration::from_secs(60),
    goodbye_timeout: Duration::from_secs(60),
};

fn transport(timing: Timing) -> HttpTransport {
    HttpTransport::dialing(Dialing { timing, tls: Tls::trusting_the_web() })
}

fn deployment(uri: String, http: HttpVersion) -> Arc<Deployment> {
    let additional_headers = BTreeMap::from([("x-own".to_owned(), "1".to_owned())]);
    Arc::new(Deployment { http, additional_headers, ..Deployment::at(DeploymentId(1), uri) })
}

fn at(address: SocketAddr, http: HttpVersion) -> Arc<Deployment> {
    deployment(format!("http://{address}/"), http)
}

async fn open_path(
    transport: &HttpTransport,
    deployment: &Arc<Deployment>,
    path: &str,
) -> Result<Box<dyn Exchange>, TransportError> {
    let request =
        OpenRequest { deployment: deployment.clone(), path: path.to_owned(), headers: HeaderMap::new(), no_room: Arc::default() };
    within("opening", transport.open(request)).await
}

async fn try_open(transport: &HttpTransport, deployment: &Arc<Deployment>) -> Result<Box<dyn Exchange>, TransportError> {
    open_path(transport, deployment, "/invoke/Service/handler").await
}

async fn open(transport: &HttpTransport, deployment: &Arc<Deployment>) -> Box<dyn Exchange> {
    try_open(transport, deployment).await.unwrap()
}

async fn discover(transport: &HttpTransport, uri: String, http: HttpVersion) -> Result<DiscoverResponse, TransportError> {
    within("discovery", transport.discover(DiscoverRequest { uri, http, headers: HeaderMap::new() })).await
}

async fn next(exchange: &mut Box<dyn Exchange>) -> ExchangeEvent {
    within("an event", poll_fn(|cx| exchange.poll_event(cx))).await
}

/// Reads to the end: the body, or why there is no more of it.
async fn read(exchange: &mut Box<dyn Exchange>) -> Result<Vec<u8>, TransportError> {
    let mut body = Vec::new();
    loop {
        match next(exchange).await {
            ExchangeEvent::Writable => {}
            ExchangeEvent::Head(status, _) => assert_eq!(status, StatusCode::OK),
            ExchangeEvent::Chunk(chunk) => body.extend_from_slice(&chunk),
            ExchangeEvent::End => return Ok(body),
            ExchangeEvent::Error(error) => return Err(error),
        }
    }
}

/// Sends a body and reads the answer.
async fn call(exchange: &mut Box<dyn Exchange>, body: &'static str) -> Result<Vec<u8>, TransportError> {
    exchange.send(Bytes::from_static(body.as_bytes()));
    exchange.half_close();
    read(exchange).await
}

async fn http2_peer(streams_max: u32) -> Http2Peer {
    let mut settings = server::Builder::new();
    settings.max_concurrent_streams(streams_max);
    Http2Peer::start(settings).await
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_endpoint_that_swallows_connections_holds_nobody_up_for_longer_than_one_connect_timeout() {
    const ATTEMPTS: u32 = 200;
    let hole = peer::BlackHole::dig();
    let connect = Duration::from_millis(500);
    let transport = transport(Timing { connect, ..TIMING });
    let deployment = at(hole.address, HttpVersion::Http2);
    let start = Instant::now();
    // The one that happens to connect goes away meanwhile; the others are not to wait from the start again.
    drop(tokio::time::timeout(Duration::from_millis(1), try_open(&transport, &deployment)).await);
    for opened in join_all((0..ATTEMPTS).map(|_| try_open(&transport, &deployment))).await {
        assert!(matches!(opened, Err(TransportError::Connect { .. })));
    }
    // One after the other they would take 200 times as long.
    assert!(start.elapsed() < connect * ATTEMPTS / 10, "{:?}", start.elapsed());
    // Who comes later tries again.
    assert!(matches!(try_open(&transport, &deployment).await, Err(TransportError::Connect { .. })));
    assert!(start.elapsed() >= connect * 2);
}

#[tokio::test]
async fn after_a_goodbye_attempts_go_to_another_connection_while_an_old_stream_goes_on() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut old = open(&transport, &deployment).await;
    let mut old_received = peer.request().await;
    let mut old_body = old_received.respond_head();
    assert!(matches!(next(&mut old).await, ExchangeEvent::Head(..)));
    old_received.say_goodbye();

    // Whether the goodbye has come when a stream is opened is up to the network: the answer is the same.
    let mut connections = BTreeSet::new();
    for _ in 0..5 {
        let mut exchange = open(&transport, &deployment).await;
        let (answer, ()) = tokio::join!(call(&mut exchange, "new"), async {
            let received = peer.request().await;
            connections.insert(received.connection);
            received.echo().await;
        });
        assert_eq!(answer.unwrap(), b"new");
    }
    assert!(connections.contains(&1), "{connections:?}");

    old.send(Bytes::from_static(b"still there"));
    old.half_close();
    assert_eq!(old_received.read_body().await.unwrap(), "still there");
    old_body.send_data(Bytes::from_static(b"as before"), true).unwrap();
    assert_eq!(read(&mut old).await.unwrap(), b"as before");
}

#[tokio::test]
async fn a_refused_stream_is_opened_once_more_with_all_it_sent() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut exchange = open(&transport, &deployment).await;
    exchange.send(Bytes::from_static(b"one "));
    exchange.send(Bytes::from_static(b"two "));
    peer.request().await.refuse();
    let (answer, ()) = tokio::join!(call(&mut exchange, "three"), async { peer.request().await.echo().await });
    assert_eq!(answer.unwrap(), b"one two three");

    let mut exchange = open(&transport, &deployment).await;
    let (answer, ()) = tokio::join!(call(&mut exchange, "x"), async {
        // As often as it may be sent anew, and once more.
        peer.request().await.refuse();
        peer.request().await.refuse();
        peer.request().await.refuse();
    });
    assert!(matches!(answer, Err(TransportError::Broken(_))), "{answer:?}");
}

#[tokio::test]
async fn a_connection_that_is_told_to_calm_down_takes_no_new_stream_and_keeps_those_it_has() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut old = open(&transport, &deployment).await;
    let old_received = peer.request().await;
    let mut exchange = open(&transport, &deployment).await;
    let (answer, ()) = tokio::join!(call(&mut exchange, "x"), async {
        let received = peer.request().await;
        assert_eq!(received.connection, 0);
        received.reset(h2::Reason::ENHANCE_YOUR_CALM);
        peer.request().await.echo().await;
    });
    assert_eq!(answer.unwrap(), b"x");
    for _ in 0..5 {
        let mut exchange = open(&transport, &deployment).await;
        let (answer, ()) = tokio::join!(call(&mut exchange, "x"), async {
            let received = peer.request().await;
            assert_eq!(received.connection, 1);
            received.echo().await;
        });
        assert_eq!(answer.unwrap(), b"x");
    }
    let (answer, ()) = tokio::join!(call(&mut old, "old"), old_received.echo());
    assert_eq!(answer.unwrap(), b"old");
    drop(old);
    assert!(matches!(peer.event().await, PeerEvent::Ended(0)));
}

#[tokio::test]
async fn a_connection_is_left_to_end_after_so_many_requests_and_a_long_stream_on_it_goes_on() {
    let peer = EchoingHttp2::start(server::Builder::new()).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut long = open(&transport, &deployment).await;
    for _ in 0..REQUESTS_MAX * 3 {
        assert_eq!(call(&mut open(&transport, &deployment).await, "x").await.unwrap(), b"x");
    }
    let requests = peer.requests();
    assert!(requests.iter().all(|&requests| requests <= REQUESTS_MAX), "{requests:?}");
    assert!(requests.len() <= 6, "{requests:?}");
    assert_eq!(call(&mut long, "long").await.unwrap(), b"long");
}

#[tokio::test]
async fn few_connections_wait_for_long_streams_and_further_ones_go_on() {
    let peer = EchoingHttp2::start(server::Builder::new()).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut long = Vec::new();
    for _ in 0..REQUESTS_MAX * (LINGERING_MAX + 3) {
        let path = if long.len() < peer.requests().len() { "/silence" } else { "/x" };
        let mut exchange = open_path(&transport, &deployment, path).await.unwrap();
        if path == "/silence" {
            exchange.half_close();
            long.push(exchange);
        } else {
            assert_eq!(call(&mut exchange, "x").await.unwrap(), b"x");
        }
    }
    let requests = peer.requests();
    assert!(requests.iter().any(|&requests| requests > REQUESTS_MAX), "{requests:?}");
    assert!(requests.len() <= LINGERING_MAX + 2, "{requests:?}");
}

#[tokio::test]
async fn a_burst_is_spread_over_connections_that_are_opened_side_by_side() {
    const BURST: usize = 100;
    let mut peer = http2_peer(1_000).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let _exchanges = join_all((0..BURST).map(|_| open(&transport, &deployment))).await;
    let mut streams = std::collections::BTreeMap::<usize, usize>::new();
    for _ in 0..BURST {
        *streams.entry(peer.request().await.connection).or_default() += 1;
    }
    assert!((2..=8).contains(&streams.len()), "{streams:?}");
    assert!(streams.values().all(|&streams| streams <= BURST / 2), "{streams:?}");
}

#[tokio::test]
async fn connections_have_a_bound_and_a_stream_waits_for_a_place_there() {
    let mut peer = http2_peer(1).await;
    let connect = Duration::from_secs(1);
    let (transport, deployment) = (transport(Timing { connect, ..TIMING }), at(peer.address, HttpVersion::Http2));
    let mut exchanges = join_all((0..CONNECTIONS_MAX).map(|_| open(&transport, &deployment))).await;
    let no_room = Arc::new(Notify::new());
    let request = OpenRequest {
        deployment: deployment.clone(),
        path: "/x".to_owned(),
        headers: HeaderMap::new(),
        no_room: no_room.clone(),
    };
    let told = async {
        // At once, and again: it goes on to wait.
        for _ in 0..2 {
            within("that there is no room", no_room.notified()).await;
        }
        drop(exchanges.pop());
    };
    let (last, ()) = tokio::join!(within("a place", transport.open(request)), told);
    assert!(last.is_ok());
    for _ in 0..=CONNECTIONS_MAX {
        assert!(peer.request().await.connection < CONNECTIONS_MAX);
    }
}

#[tokio::test]
async fn streams_that_a_peer_forgets_after_its_goodbye_end_soon() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport(Timing { goodbye_timeout: Duration::from_millis(50), ..TIMING });
    let deployment = at(listener.local_addr().unwrap(), HttpVersion::Http2);
    let serve = async {
        let mut peer = RawHttp2::accept(&listener).await;
        peer.read_until(HEADERS).await;
        // The stream is among those that it has taken.
        peer.say_goodbye(1).await;
        peer.fall_silent().await;
    };
    let ask = async { read(&mut open(&transport, &deployment).await).await };
    let (answer, ()) = tokio::join!(ask, serve);
    assert!(matches!(answer, Err(TransportError::Broken(_))), "{answer:?}");
}

#[tokio::test]
async fn a_port_that_says_nothing_does_not_hold_discovery_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport(Timing { discovery: Duration::from_millis(100), ..TIMING });
    for http in [HttpVersion::Http2, HttpVersion::Http11] {
        let error = discover(&transport, format!("http://{}/", listener.local_addr().unwrap()), http).await.unwrap_err();
        assert!(matches!(error, TransportError::Silent { .. }), "{error}");
    }
}

#[tokio::test]
async fn headers_without_end_fail_their_stream_alone() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let (mut large, mut other) = (open(&transport, &deployment).await, open(&transport, &deployment).await);
    let mut received = peer.request().await;
    let mut response = ::http::Response::new(());
    // More than the bound once they are decoded. Where what is sent is beyond it already, the connection ends: it cannot be read on.
    for number in 0..20 {
        let name = HeaderName::try_from(format!("x-{number}")).unwrap();
        response.headers_mut().insert(name, HeaderValue::try_from("a".repeat(4 << 10)).unwrap());
    }
    received.respond.send_response(response, false).unwrap();
    assert!(matches!(next(&mut large).await, ExchangeEvent::Error(TransportError::Broken(_))));
    let (answer, ()) = tokio::join!(call(&mut other, "x"), async { peer.request().await.echo().await });
    assert_eq!(answer.unwrap(), b"x");
}

#[tokio::test]
async fn a_deployments_own_headers_replace_none_of_ours_and_none_of_the_connections() {
    let mut peer = http2_peer(100).await;
    let reserved = ["content-type", "accept", "x-restate-id", "transfer-encoding", "connection", "content-length", "te"];
    let own = reserved.iter().chain(&["x-own"]).map(|name| ((*name).to_owned(), "own".to_owned())).collect();
    let deployment = Arc::new(Deployment { additional_headers: own, ..(*at(peer.address, HttpVersion::Http2)).clone() });
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("ours"));
    let request = OpenRequest { deployment, path: "/x".to_owned(), headers, no_room: Arc::default() };
    let _exchange = within("opening", transport(TIMING).open(request)).await.unwrap();
    let received = peer.request().await;
    let seen: Vec<_> = received.request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(seen, [("content-type", "ours"), ("x-own", "own")]);
}

#[tokio::test]
async fn a_stream_that_was_answered_is_not_opened_once_more() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut exchange = open(&transport, &deployment).await;
    let mut received = peer.request().await;
    let _body = received.respond_head();
    assert!(matches!(next(&mut exchange).await, ExchangeEvent::Head(..)));
    received.refuse();
    assert!(matches!(next(&mut exchange).await, ExchangeEvent::Error(TransportError::Broken(_))));
}

#[tokio::test]
async fn a_stream_above_the_last_one_of_a_goodbye_is_opened_once_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (transport, deployment) = (transport(TIMING), at(listener.local_addr().unwrap(), HttpVersion::Http2));
    let serve = async {
        let mut first = RawHttp2::accept(&listener).await;
        first.read_until(HEADERS).await;
        first.say_goodbye(0).await;
        let (socket, _) = within("a second connection", listener.accept()).await.unwrap();
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(peer::serve_http2(socket, server::Builder::new(), 1, sender));
        let Some(PeerEvent::Request(received)) = within("a request", events.recv()).await else { panic!("no request") };
        received.echo().await;
    };
    let ask = async {
        let mut exchange = open(&transport, &deployment).await;
        call(&mut exchange, "again").await
    };
    let (answer, ()) = tokio::join!(ask, serve);
    assert_eq!(answer.unwrap(), b"again");
}

#[tokio::test]
async fn a_peer_that_greets_and_leaves_is_an_error_and_no_endless_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (transport, deployment) = (transport(TIMING), at(listener.local_addr().unwrap(), HttpVersion::Http2));
    let serve = async {
        loop {
            RawHttp2::accept(&listener).await.say_goodbye(0).await;
        }
    };
    tokio::select! {
        biased;
        opened = try_open(&transport, &deployment) => {
            let error = match opened {
                Err(error) => error,
                // The goodbye came after the choice.
                Ok(mut exchange) => call(&mut exchange, "x").await.unwrap_err(),
            };
            // Which of the two depends on whether the goodbye was read before the request was sent.
            assert!(error.is_out_of_reach() || matches!(error, TransportError::Broken(_)), "{error}");
        }
        () = serve => {}
    }
}

#[tokio::test]
async fn more_streams_than_the_peer_allows_go_to_further_connections() {
    let mut peer = http2_peer(2).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut exchanges = join_all((0..7).map(|_| open(&transport, &deployment))).await;
    let mut received: Vec<Received> = Vec::new();
    for _ in 0..7 {
        received.push(peer.request().await);
    }
    let connections: BTreeSet<usize> = received.iter().map(|r| r.connection).collect();
    assert_eq!(connections.len(), 4);
    let answers = exchanges.iter_mut().map(|exchange| call(exchange, "x"));
    let (answers, _) = tokio::join!(join_all(answers), join_all(received.into_iter().map(Received::echo)));
    assert!(answers.into_iter().all(|answer| answer.unwrap() == b"x"));

    // What has ended makes room again.
    drop(exchanges);
    let _again = open(&transport, &deployment).await;
    assert!(peer.request().await.connection < 4);
}

#[tokio::test]
async fn big_bodies_pass_small_windows_both_ways_at_once() {
    const CHUNKS: usize = 100;
    const CHUNK: usize = 64 << 10;
    let mut settings = server::Builder::new();
    settings.initial_window_size(1 << 14).initial_connection_window_size(1 << 16);
    let mut peer = Http2Peer::start(settings).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let chunk = |number: usize| Bytes::from(vec![number as u8; CHUNK]);
    let serve = async {
        let mut received = peer.request().await;
        let mut response = received.respond_head();
        for number in 0..CHUNKS {
            // All at once: the library keeps what the window has no room for.
            response.send_data(chunk(number), number + 1 == CHUNKS).unwrap();
        }
        received.read_body().await.unwrap()
    };
    let ask = async {
        let mut exchange = open(&transport, &deployment).await;
        (0..CHUNKS).for_each(|number| exchange.send(chunk(number)));
        exchange.half_close();
        let answer = read(&mut exchange).await.unwrap();
        // Until the peer has the rest of the request, too.
        (answer, exchange)
    };
    let ((answer, _exchange), request) = tokio::join!(ask, serve);
    let expected: Vec<u8> = (0..CHUNKS).flat_map(chunk).collect();
    assert!(answer == expected && request == expected, "{} and {} bytes", answer.len(), request.len());
}

#[tokio::test]
async fn whoever_sends_hears_how_much_has_not_left_and_when_it_is_little_again() {
    const CHUNK: usize = 64 << 10;
    let mut settings = server::Builder::new();
    settings.initial_window_size(1 << 14);
    let mut peer = Http2Peer::start(settings).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut exchange = open(&transport, &deployment).await;
    let mut received = peer.request().await;
    let mut sent = 0;
    while exchange.unsent_bytes() <= UNSENT_BYTES_MAX {
        exchange.send(Bytes::from(vec![1; CHUNK]));
        sent += CHUNK;
    }
    // The peer's window and what fits into sockets may have left, and no more than that.
    assert!(sent <= UNSENT_BYTES_MAX + (1 << 14) + CHUNK, "{sent}");
    assert!(exchange.poll_event(&mut noop()).is_pending(), "nothing is read");

    exchange.half_close();
    let (event, body) = tokio::join!(next(&mut exchange), received.read_body());
    assert!(matches!(event, ExchangeEvent::Writable), "{event:?}");
    assert_eq!(body.unwrap().len(), sent);
    assert_eq!(exchange.unsent_bytes(), 0);
    assert!(exchange.poll_event(&mut noop()).is_pending(), "told once");
}

#[tokio::test]
async fn a_large_request_that_is_refused_is_sent_once_more_and_counted_again() {
    let mut settings = server::Builder::new();
    settings.initial_window_size(1 << 14);
    let mut peer = Http2Peer::start(settings).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut exchange = open(&transport, &deployment).await;
    let sent = vec![1; UNSENT_BYTES_MAX * 2];
    exchange.send(Bytes::from(sent.clone()));
    exchange.half_close();
    let (answer, ()) = tokio::join!(read(&mut exchange), async {
        peer.request().await.refuse();
        peer.request().await.echo().await;
    });
    assert!(answer.unwrap() == sent);
    assert_eq!(exchange.unsent_bytes(), 0);
}

#[tokio::test]
async fn the_death_of_a_connection_ends_its_streams_with_an_error() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let (mut answered, mut waiting) = (open(&transport, &deployment).await, open(&transport, &deployment).await);
    let mut received = peer.request().await;
    let mut body = received.respond_head();
    body.send_data(Bytes::from_static(b"half"), false).unwrap();
    assert!(matches!(next(&mut answered).await, ExchangeEvent::Head(..)));
    assert!(matches!(next(&mut answered).await, ExchangeEvent::Chunk(_)));
    peer.request().await.kill_connection();
    for exchange in [&mut answered, &mut waiting] {
        assert!(matches!(next(exchange).await, ExchangeEvent::Error(TransportError::Broken(_))));
    }
    // The next attempt is none the worse for it.
    let mut exchange = open(&transport, &deployment).await;
    let (answer, ()) = tokio::join!(call(&mut exchange, "x"), async { peer.request().await.echo().await });
    assert_eq!(answer.unwrap(), b"x");
}

#[tokio::test]
async fn a_peer_without_a_sign_of_life_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let quick = Duration::from_millis(50);
    let transport = transport(Timing { connect: quick * 20, ping_interval: quick, ping_timeout: quick, ..TIMING });
    let deployment = at(listener.local_addr().unwrap(), HttpVersion::Http2);
    let serve = async { RawHttp2::accept(&listener).await.fall_silent().await };
    let ask = async { read(&mut open(&transport, &deployment).await).await };
    let (answer, ()) = tokio::join!(ask, serve);
    assert!(matches!(answer, Err(TransportError::Broken(_))), "{answer:?}");

    // One that takes the connection and says nothing at all.
    let (opened, _silent) = tokio::join!(try_open(&transport, &deployment), listener.accept());
    let error = opened.err().unwrap();
    assert!(matches!(error, TransportError::NoHttp2 { .. }) && error.is_out_of_reach(), "{error}");
}

#[tokio::test]
async fn a_port_that_takes_connections_and_closes_them_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    let transport = transport(TIMING);
    let error = try_open(&transport, &at(address, HttpVersion::Http2)).await.err().unwrap();
    assert!(matches!(error, TransportError::NoHttp2 { .. }) && error.is_out_of_reach(), "{error}");
    // One of HTTP/1.1 says nothing before it is asked: a handler may have what was sent before the end was seen.
    let error = match try_open(&transport, &at(address, HttpVersion::Http11)).await {
        Err(error) => error,
        Ok(mut exchange) => call(&mut exchange, "x").await.unwrap_err(),
    };
    assert!(matches!(error, TransportError::Connect { .. } | TransportError::Broken(_)), "{error}");
}

/// It counted as a request that a handler may have.
#[tokio::test]
async fn a_connection_of_http11_that_ended_before_it_was_used_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = TcpStream::connect(address).await.unwrap();
    drop(listener.accept().await.unwrap());
    assert_eq!(socket.peek(&mut [0]).await.unwrap(), 0, "its end has come");
    let base = Base::parse(&format!("http://{address}/")).unwrap();
    let dialing = Dialing { timing: TIMING, tls: Tls::trusting_the_web() };
    let error = http1::begin(Box::pin(socket), &Arc::new(Pool::new(base.address, Arc::new(dialing)))).await.err().unwrap();
    assert!(matches!(error, TransportError::Connect { .. }) && error.is_out_of_reach(), "{error}");
}

#[tokio::test]
async fn a_closed_port_of_http11_is_out_of_reach_before_anything_of_a_request_is_sent() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = try_open(&transport(TIMING), &at(closed, HttpVersion::Http11)).await.err().unwrap();
    assert!(matches!(error, TransportError::Connect { .. }) && error.is_out_of_reach(), "{error}");
}

#[tokio::test]
async fn dropping_an_exchange_resets_its_stream() {
    let mut peer = http2_peer(100).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http2));
    let mut exchange = open(&transport, &deployment).await;
    exchange.send(Bytes::from_static(b"begun"));
    let mut received = peer.request().await;
    assert_eq!(received.request.uri().path(), "/invoke/Service/handler");
    assert_eq!(received.request.headers()["x-own"], "1");
    drop(exchange);
    assert_eq!(received.read_body().await.unwrap_err().reason(), Some(h2::Reason::CANCEL));
}

#[tokio::test]
async fn what_is_in_use_is_not_closed() {
    let mut peer = http2_peer(100).await;
    let transport = transport(Timing { idle: Duration::ZERO, ..TIMING });
    let deployment = at(peer.address, HttpVersion::Http2);
    let _silent = open(&transport, &deployment).await;
    peer.request().await;
    let pool = transport.0.endpoint(&deployment).unwrap().pool.clone();
    (0..3).for_each(|_| pool.sweep());
    let _second = open(&transport, &deployment).await;
    assert_eq!(peer.request().await.connection, 0);
}

#[tokio::test]
async fn what_nothing_uses_is_closed_and_forgotten() {
    let mut peer = http2_peer(100).await;
    let mut peer1 = Http1Peer::start(TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let quick = Duration::from_millis(20);
    let transport = transport(Timing { idle: quick, ping_interval: quick, ..TIMING });
    let deployment = at(peer.address, HttpVersion::Http2);
    let deployment1 = Arc::new(Deployment { id: DeploymentId(2), ..(*at(peer1.address, HttpVersion::Http11)).clone() });

    let mut exchange = open(&transport, &deployment).await;
    let received = peer.request().await;
    let (answer, ()) = tokio::join!(call(&mut exchange, "x"), received.echo());
    assert_eq!(answer.unwrap(), b"x");
    drop(exchange);
    assert!(matches!(peer.event().await, PeerEvent::Ended(0)));

    assert_eq!(call(&mut open(&transport, &deployment1).await, "x").await.unwrap(), b"x");
    within("the end of an idle connection", peer1.ended.recv()).await;

    drop((deployment, deployment1));
    let other = deployment_at_nowhere();
    assert!(matches!(try_open(&transport, &other).await, Err(TransportError::Connect { .. })));
    within("the end of the connections' tasks", async {
        while transport.0.pools.lock().unwrap().values().filter(|pool| pool.strong_count() > 0).count() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(transport.0.endpoints.lock().unwrap().len(), 1);
}

fn noop() -> std::task::Context<'static> {
    std::task::Context::from_waker(std::task::Waker::noop())
}

/// A port that was free a moment ago.
fn deployment_at_nowhere() -> Arc<Deployment> {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    at(address, HttpVersion::Http2)
}

#[tokio::test]
async fn a_deployment_is_read_once_until_it_is_registered_anew() {
    let transport = transport(TIMING);
    let deployment = at(([127, 0, 0, 1], 1).into(), HttpVersion::Http2);
    let endpoint = transport.0.endpoint(&deployment).unwrap();
    assert!(Arc::ptr_eq(&endpoint, &transport.0.endpoint(&deployment).unwrap()));
    let moved = Arc::new(Deployment { uri: "http://127.0.0.1:2/".to_owned(), ..(*deployment).clone() });
    let endpoint = transport.0.endpoint(&moved).unwrap();
    assert_eq!(endpoint.pool.address().port, 2);
}

#[tokio::test]
async fn http11_connections_are_used_again() {
    let mut peer = Http1Peer::start(TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let (transport, deployment) = (transport(TIMING), at(peer.address, HttpVersion::Http11));
    for _ in 0..3 {
        assert_eq!(call(&mut open(&transport, &deployment).await, "one").await.unwrap(), b"one");
    }
    assert_eq!(peer.connections(), 1);
    assert_eq!(peer.seen.lock().unwrap().hosts[0], peer.address.to_string());

    // Not while a request is under way on it.
    let mut silent = open_path(&transport, &deployment, "/silence").await.unwrap();
    silent.half_close();
    assert!(matches!(silent.poll_event(&mut noop()), std::task::Poll::Pending));
    assert_eq!(call(&mut open(&transport, &deployment).await, "two").await.unwrap(), b"two");
    assert_eq!(peer.connections(), 2);

    // Dropping an exchange takes its connection down.
    drop(silent);
    within("the end of a connection", peer.ended.recv()).await;

    // One that the peer has closed is not taken.
    peer.seen.lock().unwrap().closes = true;
    for connections in [2, 3] {
        assert_eq!(call(&mut open(&transport, &deployment).await, "three").await.unwrap(), b"three");
        assert_eq!(peer.connections(), connections);
        within("the end of a connection", peer.ended.recv()).await;
    }
}

#[tokio::test]
async fn the_host_of_an_ipv6_address_has_brackets() {
    // Not every host has IPv6.
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let peer = Http1Peer::start(listener).await;
    let uri = format!("http://{}/", peer.address);
    assert_eq!(discover(&transport(TIMING), uri, HttpVersion::Http11).await.unwrap().status, StatusCode::OK);
    assert_eq!(peer.seen.lock().unwrap().hosts, [format!("[::1]:{}", peer.address.port())]);
}

#[tokio::test]
async fn a_peer_of_http11_alone_is_told_apart_from_a_broken_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (transport, deployment) = (transport(TIMING), at(listener.local_addr().unwrap(), HttpVersion::Http2));
    let answering = async |answer: &[u8]| {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(answer).await.unwrap();
        socket.shutdown().await.unwrap();
        tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.unwrap();
    };
    let bad_request = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
    let discover = || discover(&transport, deployment.uri.clone(), HttpVersion::Http2);
    let (discovered, ()) = tokio::join!(discover(), answering(bad_request));
    assert!(matches!(discovered, Err(TransportError::Http1Peer { .. })), "{discovered:?}");
    let (opened, ()) = tokio::join!(try_open(&transport, &deployment), answering(bad_request));
    assert!(matches!(opened, Err(TransportError::Http1Peer { .. })));
    let (discovered, ()) = tokio::join!(discover(), answering(b""));
    assert!(matches!(discovered, Err(TransportError::NoHttp2 { .. })), "{discovered:?}");
}

#[tokio::test]
async fn discovery_reads_the_answer_over_http2() {
    let mut peer = http2_peer(100).await;
    let uri = format!("http://{}/prefix/", peer.address);
    let transport = transport(TIMING);
    let (discovered, ()) = tokio::join!(discover(&transport, uri, HttpVersion::Http2), async {
        let mut received = peer.request().await;
        assert_eq!(received.request.uri().path(), "/prefix/discover");
        assert!(received.request.body().is_end_stream());
        received.respond_head().send_data(Bytes::from_static(b"{}"), true).unwrap();
    });
    let discovered = discovered.unwrap();
    assert_eq!((discovered.http, discovered.body), (HttpVersion::Http2, Bytes::from_static(b"{}")));
}

#[cfg(feature = "tls")]
mod over_tls {
    use super::*;
    use std::sync::Mutex;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

    /// A certificate for this host that signs itself, good for a hundred years, and its key.
    const LOCALHOST: &[u8] = include_bytes!("localhost.pem");

    fn certificate() -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(LOCALHOST).unwrap()
    }

    fn transport() -> HttpTransport {
        let mut roots = RootCertStore::empty();
        roots.add(certificate()).unwrap();
        HttpTransport::dialing(Dialing { timing: TIMING, tls: Tls::trusting(roots) })
    }

    fn acceptor(versions: &[&[u8]]) -> TlsAcceptor {
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate()], PrivateKeyDer::from_pem_slice(LOCALHOST).unwrap())
            .unwrap();
        config.alpn_protocols = versions.iter().map(|version| version.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// An endpoint that takes what is chosen: its address, and how many connections it took.
    async fn endpoint(versions: &[&[u8]]) -> (String, Arc<Mutex<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (uri, acceptor) = (format!("https://{}/", listener.local_addr().unwrap()), acceptor(versions));
        let connections = Arc::<Mutex<usize>>::default();
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                *count.lock().unwrap() += 1;
                // A client that finds no version in common goes away.
                let Ok(stream) = acceptor.accept(socket).await else { continue };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    tokio::spawn(async move {
                        let mut connection = server::handshake(stream).await.unwrap();
                        while let Some(Ok((_, mut respond))) = connection.accept().await {
                            let mut body = respond.send_response(::http::Response::new(()), false).unwrap();
                            body.send_data(Bytes::from_static(b"h2"), true).unwrap();
                        }
                    });
                } else {
                    tokio::spawn(peer::serve_http1(stream, Arc::default()));
                }
            }
        });
        (uri, connections)
    }

    #[tokio::test]
    async fn the_endpoint_chooses_the_version_at_discovery() {
        for (versions, http) in [
            (&[b"h2" as &[u8], b"http/1.1"] as &[&[u8]], HttpVersion::Http2),
            (&[b"h2"], HttpVersion::Http2),
            (&[b"http/1.1"], HttpVersion::Http11),
            // Silent on the matter, as servers were before HTTP/2.
            (&[], HttpVersion::Http11),
        ] {
            let (uri, connections) = endpoint(versions).await;
            let transport = transport();
            let deployment = deployment(uri.clone(), http);
            let answer: &[u8] = if http == HttpVersion::Http2 { b"h2" } else { b"x" };
            // The connection of the choice serves discovery and what follows.
            assert_eq!(discover(&transport, uri, HttpVersion::Http2).await.unwrap().http, http);
            assert_eq!(call(&mut open(&transport, &deployment).await, "x").await.unwrap(), answer);
            assert_eq!(*connections.lock().unwrap(), 1, "{versions:?}");
        }
    }

    #[tokio::test]
    async fn a_version_asked_for_is_not_negotiated() {
        let (uri, _) = endpoint(&[b"h2", b"http/1.1"]).await;
        assert_eq!(discover(&transport(), uri, HttpVersion::Http11).await.unwrap().http, HttpVersion::Http11);
        // Registered when it spoke HTTP/2, and changed since.
        let (uri, _) = endpoint(&[]).await;
        let error = try_open(&transport(), &deployment(uri, HttpVersion::Http2)).await.err().unwrap();
        assert!(matches!(error, TransportError::Http1Peer { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_refused() {
        let (uri, _) = endpoint(&[b"h2"]).await;
        let error = discover(&super::transport(TIMING), uri, HttpVersion::Http2).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect { .. }), "{error}");
    }
}
