//! A port over real sockets: what gives way at the bound, what is cut and what is not.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests of the production half")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use surefoot_env::Env;
use surefoot_listener::{ConnectionBounds, HttpAnswers, HttpServer, IncomingBody, NoAnswer, NotServed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const LARGE_BYTES: usize = 8 << 20;

/// `/large` is a large answer, `/hang` waits until it is told, `/unknown` has no answer; all else is the body.
#[derive(Default)]
struct Echo {
    told: Notify,
    hanging: Notify,
    accepted: AtomicUsize,
}

impl HttpAnswers for Echo {
    type Body = Full<Bytes>;

    fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(&self, why: NotServed) -> Response<Full<Bytes>> {
        let mut refusal = Response::new(Full::new(Bytes::from(format!("{why:?}"))));
        *refusal.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        refusal
    }

    async fn answer(&self, request: Request<IncomingBody<Incoming>>) -> Result<Response<Full<Bytes>>, NoAnswer> {
        let body = match request.uri().path() {
            "/large" => Bytes::from(vec![b'x'; LARGE_BYTES]),
            "/unknown" => return Err(NoAnswer),
            "/hang" => {
                self.hanging.notify_one();
                self.told.notified().await;
                Bytes::from_static(b"told")
            }
            _ => request.into_body().collect().await.map_err(|_| NoAnswer)?.to_bytes(),
        };
        Ok(Response::new(Full::new(body)))
    }
}

async fn start(connections_max: usize) -> (SocketAddr, HttpServer, Arc<Echo>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = Arc::new(Echo::default());
    let env = Env::production(tokio::runtime::Handle::current());
    let server =
        HttpServer::start(listener, env, ConnectionBounds { connections_max, half_closed_max: 1 }, "tests", echo.clone());
    (address, server, echo)
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads an answer of this many bytes after its head.
async fn answer(stream: &mut TcpStream, bytes: usize) -> String {
    let mut raw = Vec::new();
    loop {
        if let Some(end) = raw.windows(4).position(|window| window == b"\r\n\r\n")
            && raw.len() >= end + 4 + bytes
        {
            return String::from_utf8(raw).unwrap();
        }
        assert_ne!(stream.read_buf(&mut raw).await.unwrap(), 0, "closed after {} bytes", raw.len());
    }
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    // Reset, or closed: nothing came.
    let _ = stream.read_to_end(&mut rest).await;
    rest.is_empty()
}

#[tokio::test]
async fn at_the_bound_unused_connections_give_way_to_those_that_ask() {
    let (address, server, echo) = start(4).await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    ask(&mut busy, "/hang").await;
    echo.hanging.notified().await;
    let mut used = TcpStream::connect(address).await.unwrap();
    ask(&mut used, "/").await;
    answer(&mut used, 4).await;
    let mut unused = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
    let giving_way = tokio::spawn(async move {
        let mut heard = String::new();
        unused.read_to_string(&mut heard).await.unwrap();
        (heard, is_closed(&mut half).await)
    });
    let mut kept = Vec::new();
    while kept.len() < 20 || !giving_way.is_finished() {
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream, "/").await;
        assert!(answer(&mut stream, 4).await.ends_with("body"));
        kept.push(stream);
    }
    let (heard, is_closed) = giving_way.await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 503") && is_closed, "they never asked: {heard}");
    echo.told.notify_one();
    assert!(answer(&mut busy, 4).await.ends_with("told"), "one in use is not cut");
    drop((busy, used, kept));
    server.drain(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_download_that_is_under_way_does_not_give_way() {
    let (address, server, _) = start(1).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    ask(&mut slow, "/large").await;
    let mut first = [0; 1024];
    slow.read_exact(&mut first).await.unwrap();
    let mut waiting = TcpStream::connect(address).await.unwrap();
    ask(&mut waiting, "/").await;
    let head = String::from_utf8_lossy(&first).find("\r\n\r\n").unwrap() + 4;
    let mut rest = vec![0; LARGE_BYTES + head - first.len()];
    slow.read_exact(&mut rest).await.unwrap();
    assert!(answer(&mut waiting, 4).await.ends_with("body"), "then it is the next one's turn");
    server.drain(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn without_an_answer_the_connection_closes() {
    let (address, server, _) = start(4).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream, "/unknown").await;
    assert!(is_closed(&mut stream).await);
    server.drain(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_drain_lets_answers_leave_and_cuts_what_does_not_end() {
    let (address, server, echo) = start(4).await;
    let mut ending = TcpStream::connect(address).await.unwrap();
    ask(&mut ending, "/hang").await;
    echo.hanging.notified().await;
    let drained = tokio::spawn(server.drain(Duration::from_secs(30)));
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    echo.told.notify_one();
    assert!(answer(&mut ending, 4).await.ends_with("told"));
    drained.await.unwrap();

    let (address, server, echo) = start(4).await;
    let mut endless = TcpStream::connect(address).await.unwrap();
    ask(&mut endless, "/hang").await;
    echo.hanging.notified().await;
    server.drain(Duration::ZERO).await;
    assert!(is_closed(&mut endless).await);
}

/// `nc` and others close their sending side behind their request; they saw the connection end, and their call went on unseen.
#[tokio::test]
async fn a_client_that_has_closed_its_sending_side_has_its_answer() {
    let (address, server, echo) = start(1).await;
    let mut half = TcpStream::connect(address).await.unwrap();
    ask(&mut half, "/hang").await;
    half.shutdown().await.unwrap();
    echo.hanging.notified().await;
    echo.told.notify_one();
    assert!(answer(&mut half, 4).await.ends_with("told"));
    assert!(is_closed(&mut half).await, "there is nothing more to come");
    // Its place is another's.
    let mut next = TcpStream::connect(address).await.unwrap();
    ask(&mut next, "/").await;
    answer(&mut next, 4).await;
    // One whose body is not whole has none.
    next.write_all(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
    next.shutdown().await.unwrap();
    assert!(is_closed(&mut next).await);
    server.drain(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn of_clients_that_have_closed_their_sending_side_no_more_than_the_bound_are_waited_for() {
    let (address, server, echo) = start(4).await;
    let mut half = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    for client in &mut half {
        ask(client, "/hang").await;
        client.shutdown().await.unwrap();
    }
    let [one, other] = &mut half;
    let is_one_gone = tokio::select! {
        biased;
        // Nothing has come, so nothing is lost.
        is_closed = is_closed(one) => is_closed,
        // As above.
        is_closed = is_closed(other) => !is_closed,
    };
    echo.told.notify_one();
    assert!(answer(if is_one_gone { other } else { one }, 4).await.ends_with("told"));
    server.drain(Duration::from_secs(30)).await;
}

/// Each look told as many again, while those that had been told before had not heard so: a few that came emptied the port of all that
/// kept a connection for later.
#[tokio::test]
async fn no_more_give_way_than_are_wanted() {
    const PLACES: usize = 64;
    const COME: usize = 8;
    let (address, server, _) = start(PLACES).await;
    let mut kept = Vec::new();
    for _ in 0..PLACES {
        kept.push(TcpStream::connect(address).await.unwrap());
    }
    let come = [(); COME].map(|()| {
        tokio::spawn(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            ask(&mut client, "/").await;
            assert!(answer(&mut client, 4).await.ends_with("body"));
            client
        })
    });
    let mut clients = Vec::new();
    for client in come {
        clients.push(client.await.unwrap());
    }
    let mut gave_way = 0;
    for client in &mut kept {
        ask(client, "/").await;
        let mut status = [0; "HTTP/1.1 200".len()];
        client.read_exact(&mut status).await.unwrap();
        gave_way += usize::from(status.ends_with(b"503"));
    }
    assert!((COME..=2 * COME).contains(&gave_way), "{gave_way} of {PLACES}");
    drop((kept, clients));
    server.drain(Duration::from_secs(30)).await;
}

/// A client that has sent more requests before it hears so has its connection reset, which takes the answer away on most systems.
#[tokio::test]
async fn what_comes_behind_the_last_answer_does_not_reset_the_connection() {
    const BEHIND: usize = 1_000;
    let (address, server, echo) = start(1).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    ask(&mut client, "/hang").await;
    echo.hanging.notified().await;
    client.write_all("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody".repeat(BEHIND).as_bytes()).await.unwrap();
    let waiting = tokio::spawn(async move {
        let mut waiting = TcpStream::connect(address).await.unwrap();
        ask(&mut waiting, "/").await;
        answer(&mut waiting, 4).await
    });
    while echo.accepted.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    // It waits once its task has run.
    tokio::task::yield_now().await;
    echo.told.notify_one();
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard.matches("HTTP/1.1 200").count(), 1 + heard.matches("body").count(), "{heard}");
    assert_eq!(heard.matches("connection: close").count(), 1, "{heard}");
    assert!(client.take_error().unwrap().is_none(), "it was reset");
    drop(client);
    assert!(waiting.await.unwrap().ends_with("body"));
    server.drain(Duration::from_secs(30)).await;
}

/// Those that waited heard that all connections were in use, or saw theirs reset by the end of the process.
#[tokio::test]
async fn who_waits_for_a_place_at_a_stop_hears_so_before_the_stop_is_over() {
    let (address, server, echo) = start(1).await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    ask(&mut busy, "/hang").await;
    echo.hanging.notified().await;
    // One asks, the other one does not.
    let mut waiting = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    ask(&mut waiting[0], "/").await;
    while echo.accepted.load(Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    let drained = tokio::spawn(server.drain(Duration::from_secs(30)));
    echo.told.notify_one();
    assert!(answer(&mut busy, 4).await.ends_with("told"));
    drop(busy);
    drained.await.unwrap();
    for client in waiting {
        let mut client = client.into_std().unwrap();
        let mut heard = [0; 1024];
        // It does not wait.
        let bytes = std::io::Read::read(&mut client, &mut heard).unwrap();
        let heard = String::from_utf8_lossy(&heard[..bytes]);
        assert!(heard.starts_with("HTTP/1.1 503") && heard.ends_with("Stopping"), "{heard}");
    }
}

/// A client that called again and again saw its connection end between two calls, or reset; or kept its place for ever, if its results were
/// large.
#[tokio::test]
async fn who_leaves_while_others_wait_is_told_with_its_answer() {
    for (path, bytes) in [("/", 4), ("/large", LARGE_BYTES)] {
        let (address, server, _) = start(1).await;
        let mut busy = TcpStream::connect(address).await.unwrap();
        ask(&mut busy, path).await;
        assert!(!answer(&mut busy, bytes).await.contains("connection: close"), "nobody waits");
        let waiting = tokio::spawn(async move {
            let mut waiting = TcpStream::connect(address).await.unwrap();
            ask(&mut waiting, "/").await;
            answer(&mut waiting, 4).await
        });
        loop {
            assert!(!waiting.is_finished(), "{path}: it heard before there was a place");
            ask(&mut busy, path).await;
            if answer(&mut busy, bytes).await.contains("connection: close") {
                break;
            }
        }
        assert!(is_closed(&mut busy).await);
        assert!(waiting.await.unwrap().ends_with("body"), "{path}");
        server.drain(Duration::from_secs(30)).await;
    }
}

/// They saw their connections reset: what they had sent was not read, or came behind the answer.
#[tokio::test]
async fn clients_that_find_no_place_hear_so_and_see_no_reset() {
    const CLIENTS: usize = 40;
    let (address, server, echo) = start(1).await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    ask(&mut busy, "/hang").await;
    echo.hanging.notified().await;
    let refused = (0..CLIENTS).map(|n| {
        tokio::spawn(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            let is_http2 = n % 2 == 0;
            let asked: &[u8] =
                if is_http2 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" } else { &[b'x'; 256 << 10] };
            if !is_http2 {
                client.write_all(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 262144\r\n\r\n").await.unwrap();
            }
            client.write_all(asked).await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            if is_http2 {
                const GOAWAY_BEHIND_NONE: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                assert!(heard.ends_with(&GOAWAY_BEHIND_NONE), "{heard:?}");
            } else {
                let heard = String::from_utf8(heard).unwrap();
                assert!(heard.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{heard}");
                assert!(heard.contains("content-length: 7\r\n") && heard.ends_with("\r\n\r\nNoPlace"), "{heard}");
            }
        })
    });
    for client in refused.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    echo.told.notify_one();
    assert!(answer(&mut busy, 4).await.ends_with("told"));
    server.drain(Duration::from_secs(30)).await;
}
