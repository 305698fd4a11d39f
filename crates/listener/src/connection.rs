//! One connection, from its first byte to its end: the client's, the port's, or that of our patience.
//!
//! Owns: what a connection may hold in memory, time limits, and how it is closed. Does not own: how many there are (`registry`).

use crate::activity::Answering;
use crate::incoming::IncomingBody;
use crate::intake::Fresh;
use crate::outgoing::{OutgoingBody, Taking};
use crate::registry::{Member, Membership, Order};
use crate::server::HttpAnswers;
use crate::socket::{ClientSocket, Polls};
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockRef, TcpKeepalive};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Env, Tasks};
use tokio::net::TcpStream;

/// HTTP/2 streams of one connection at a time.
const STREAMS_MAX: u32 = 1_000;
/// Bytes of what a client sends that are kept while nobody reads them: the head and a piece of the body over HTTP/1.1; of one stream,
/// and of all streams of a connection over HTTP/2.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// Bytes of a request's headers over HTTP/2, as HTTP/2 counts them.
const HEADER_LIST_BYTES: u32 = 64 << 10;
/// Bytes of answers that one HTTP/2 stream keeps while its client does not read.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// A new connection has this long for its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// A connection on which nothing moves is closed after this long, or twice as long: longer than clients keep theirs for another use.
const IDLE: Duration = Duration::from_secs(120);
/// How long a connection may take to close once nothing is answered on it, at a stop, and one that gives way to others.
const CLOSE: Duration = Duration::from_secs(10);
const FINISH: Duration = Duration::from_secs(5);
const YIELD: Duration = Duration::from_secs(1);
/// Silence after which a client is asked whether it is still there, and how long it has for its answer.
const PING_INTERVAL: Duration = Duration::from_secs(40);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection that gives way before its client has sent anything, with its place.
pub(crate) struct Unheard {
    pub(crate) stream: TcpStream,
    pub(crate) place: Membership,
}

/// Serves a connection to its end. One that gives way unheard is handed back, for its client may just be about to ask.
pub(crate) async fn serve<S: HttpAnswers>(
    stream: TcpStream,
    env: Env,
    answers: Arc<S>,
    membership: Membership,
) -> Option<Unheard> {
    let mut patience = env.clock.sleep(FIRST_REQUEST);
    let mut byte = [0];
    let first = tokio::select! {
        biased;
        // Peek leaves the byte to be read. Readiness alone is not enough: it may be reported when nothing has come.
        come = stream.peek(&mut byte) => come.map(drop).map_err(|_| Order::Cut),
        // A word that is not heard is told again at the next call.
        order = membership.member.order_after(Order::Stay) => Err(order),
        // Polled by reference: it keeps its due time.
        () = &mut patience => Err(Order::Cut),
    };
    match first {
        Ok(()) => {}
        Err(Order::Yield) => return Some(Unheard { stream, place: membership }),
        Err(_) => return None,
    }
    let mut builder = auto::Builder::new(OnTasks(env.tasks.clone()));
    builder.http1().max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let member = membership.member.clone();
    let activity = member.activity.clone();
    let clock = env.clock.clone();
    let served = Arc::new(Served { answers, member: member.clone(), env: env.clone() });
    let answer = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let (served, answering) = (served.clone(), Answering::new(activity.clone(), membership.requests()));
        let (leftovers, mut fresh) = (membership.leftovers().clone(), Some(Fresh::new(membership.intakes())));
        let is_http1 = request.version() < Version::HTTP_2;
        if is_http1 {
            activity.speaks_http1();
        }
        let request = request.map(|body| IncomingBody::of_connection(body, clock.clone(), answering.awaiting(), leftovers));
        async move {
            // Apart: a connection takes in all its requests at once, and the answer to one takes room once it is begun.
            let mut answer = Box::pin(served.answers.answer(request));
            let answer = poll_fn(|cx| {
                let polled = answer.as_mut().poll(cx);
                // From here on it is in progress, or refused.
                fresh = None;
                polled
            });
            let answer = answer.await?;
            // Before the one ends the other begins: in between, the connection would look unused.
            let sending = answering.into_sending();
            let mut answer = answer.map(|body| OutgoingBody::new(body, sending));
            if let Some(taking) = answer.body().taking() {
                served.env.tasks.spawn(Box::pin(served.clone().cut_if_too_slow(taking)));
            }
            if is_http1 && served.member.closes_with_its_answer() {
                served.member.activity.says_last();
                // A client that is told sends nothing more here; one whose connection ends unsaid may just have.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, crate::NoAnswer>(answer)
        }
    });
    let polls = Polls::default();
    let socket = ClientSocket::new(stream, &membership, env.clock.clone(), polls.clone());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), answer));
    let (mut order, mut is_closing) = (Order::Stay, false);
    loop {
        tokio::select! {
            biased;
            // Polled by reference: it goes on where it was.
            ended = poll_fn(|cx| {
                polls.next();
                connection.as_mut().poll(cx)
            }) => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a client's connection broke");
                }
                return None;
            }
            // A word that is not heard is told again at the next call.
            told = member.order_after(order) => {
                order = told;
                match order {
                    Order::Cut => return None,
                    Order::Yield | Order::GiveWay => patience = env.clock.sleep(YIELD),
                    Order::Finish => patience = env.clock.sleep(FINISH),
                    Order::Stay => {}
                }
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // Polled by reference: it keeps its due time.
            () = &mut patience => {
                let is_unused = order == Order::Yield && member.activity.is_unused();
                // An answer that its client does not take is no reason to stay; one that is still being made is.
                if member.activity.was_idle() || is_unused {
                    if is_closing {
                        return None; // half a request, or a client that does not read its goodbye
                    }
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                patience = env.clock.sleep(match order {
                    Order::GiveWay => YIELD,
                    Order::Finish => FINISH,
                    _ if is_closing => CLOSE,
                    _ => IDLE,
                });
            }
        }
    }
}

/// What requests of one connection need.
struct Served<S> {
    answers: Arc<S>,
    member: Arc<Member>,
    env: Env,
}

impl<S: HttpAnswers> Served<S> {
    /// A client that does not take a large answer holds memory that others wait for.
    async fn cut_if_too_slow(self: Arc<Self>, taking: Taking) {
        if taking.becomes_too_slow(self.env.clock.clone(), || self.answers.wants_answers_taken()).await {
            tracing::info!("a client takes a large answer too slowly while memory is short: its connection is cut");
            self.member.tell(Order::Cut);
        }
    }
}

/// To be set before anything is read or written.
pub(crate) fn set_options(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    // A client may wait for days without a byte in either direction: the kernel finds out whether it is still there.
    let keep_alive = TcpKeepalive::new().with_time(PING_INTERVAL).with_interval(PING_TIMEOUT);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keep_alive) {
        tracing::debug!(%error, "cannot set TCP keep-alive");
    }
}

/// Runs hyper's tasks on the node's.
#[derive(Clone)]
struct OnTasks(Arc<dyn Tasks>);

impl<F> Executor<F> for OnTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(Box::pin(future));
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests of the production half")]
mod tests {
    use super::*;
    use crate::intake::CONNECTION_MAX;
    use crate::registry::Registry;
    use crate::server::ConnectionBounds;
    use crate::socket::TURN_BYTES_FIRST;
    use crate::testing::ToldClock;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, PoisonError};
    use surefoot_env::{BoxFuture, Steps, Wake};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    /// More than the sockets on the way keep.
    const LARGE_BYTES: usize = 32 << 20;

    const PIECE: &[u8] = &[b'x'; 128 << 10];

    /// Says so when it has a request, and answers when it is told; of `/half` when it has the first piece of the body, and then it waits for
    /// the rest. `/now` has its answer at once.
    #[derive(Default)]
    struct Answers {
        asked: Notify,
        told: Notify,
        is_short: AtomicBool,
    }

    impl HttpAnswers for Answers {
        type Body = Full<Bytes>;

        fn wants_answers_taken(&self) -> bool {
            self.is_short.load(Ordering::Relaxed)
        }

        async fn answer(
            &self,
            request: http::Request<IncomingBody<hyper::body::Incoming>>,
        ) -> Result<http::Response<Full<Bytes>>, crate::NoAnswer> {
            let (parts, mut body) = request.into_parts();
            let path = parts.uri.path();
            if path == "/now" {
                return Ok(http::Response::new(Full::new(Bytes::from_static(PIECE))));
            }
            if path == "/half" {
                let _first = body.frame().await;
            }
            self.asked.notify_one();
            self.told.notified().await;
            if path == "/half" {
                let _rest = body.frame().await;
            }
            let bytes = if path == "/large" { LARGE_BYTES } else { 4 };
            Ok(http::Response::new(Full::new(Bytes::from(vec![b'x'; bytes]))))
        }

        fn refuse(&self, _: crate::NotServed) -> http::Response<Full<Bytes>> {
            http::Response::default()
        }
    }

    /// A connection whose request is being answered, and that was told to give way: its client, and its own end.
    async fn giving_way(path: &str) -> (TcpStream, JoinHandle<()>, Arc<Answers>, ToldClock) {
        let (registry, client, serving, answers, clock) = asked(path).await;
        registry.tell_all(Order::GiveWay);
        (client, serving, answers, clock)
    }

    /// A client, and its connection, which has its place.
    async fn connected() -> (TcpStream, TcpStream, ToldClock, Membership) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("the connection");
        let (clock, registry) =
            (ToldClock::default(), Registry::new(ConnectionBounds { connections_max: 1, half_closed_max: 1 }));
        let slot = registry.wait_for_slot(&clock).await.expect("a place");
        let membership = registry.enter(slot, Arc::new(clock.clone()));
        (client, stream, clock, membership)
    }

    /// A connection whose request is being answered.
    async fn asked(path: &str) -> (Arc<Registry>, TcpStream, JoinHandle<()>, Arc<Answers>, ToldClock) {
        asked_with(&format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n")).await
    }

    async fn asked_with(request: &str) -> (Arc<Registry>, TcpStream, JoinHandle<()>, Arc<Answers>, ToldClock) {
        let (mut client, stream, clock, membership) = connected().await;
        let (registry, answers) = (membership.registry().clone(), Arc::new(Answers::default()));
        let env = Env { clock: Arc::new(clock.clone()), ..Env::production(tokio::runtime::Handle::current()) };
        let serving = serve(stream, env, answers.clone(), membership);
        let serving = tokio::spawn(async move { assert!(serving.await.is_none(), "it has asked") });
        client.write_all(request.as_bytes()).await.expect("room for a request");
        answers.asked.notified().await;
        (registry, client, serving, answers, clock)
    }

    /// The connection's task runs, and looks at the clock, so many times.
    async fn looks(clock: &ToldClock, times: usize) {
        for _ in 0..times {
            clock.due();
            tokio::task::yield_now().await;
        }
    }

    /// All tasks have done what they can.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// Runs none of them: what a connection has taken in stays where it is.
    #[derive(Default)]
    struct Kept(Mutex<Vec<BoxFuture<()>>>);

    impl Tasks for Kept {
        fn spawn(&self, future: BoxFuture) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(future);
        }

        fn try_drive(&self, _: &'static str, _: Wake, _: Box<dyn Steps>) -> std::io::Result<()> {
            unreachable!("a connection has no thread of its own")
        }
    }

    const ASKED: u32 = 1_000;
    /// Of one of those: POST and http, indexed, and a path of four bytes.
    const REQUEST_BYTES: usize = 9 + 8;

    /// A client of HTTP/2 asks so many times at once, and takes answers of any size.
    fn many_requests(path: &[u8; 4]) -> Vec<u8> {
        let mut asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // The largest windows that there are: a setting of each stream, and an update for all of them.
        asked.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7F, 0xFF, 0xFF, 0xFF]);
        asked.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7F, 0xFF, 0, 0]);
        for number in 0..ASKED {
            asked.extend([0, 0, 8, 1, 5]);
            asked.extend((2 * number + 1).to_be_bytes());
            asked.extend([0x83, 0x86, 0x04, 4]);
            asked.extend(path);
        }
        asked
    }

    /// One poll of HTTP/2 read on after each request that it handed out, and took in a thousand.
    #[tokio::test]
    async fn of_a_thousand_requests_at_once_a_connection_takes_in_a_bounded_number() {
        let (mut client, stream, clock, membership) = connected().await;
        let (kept, activity) = (Arc::new(Kept::default()), membership.member.activity.clone());
        let env = Env { clock: Arc::new(clock), tasks: kept.clone(), ..Env::production(tokio::runtime::Handle::current()) };
        client.write_all(&many_requests(b"/any")).await.expect("room for all of them");
        let serving = tokio::spawn(serve(stream, env, Arc::new(Answers::default()), membership));
        while activity.requests() < CONNECTION_MAX as u64 {
            tokio::task::yield_now().await;
        }
        settle().await;
        let first_turn = TURN_BYTES_FIRST / REQUEST_BYTES;
        assert!(activity.requests() as usize <= 2 * CONNECTION_MAX + first_turn, "{} of them", activity.requests());
        serving.abort();
    }

    /// Answers of a client that took none of them piled up, as many as it asked for.
    #[tokio::test]
    async fn a_client_that_takes_no_answers_is_not_read_until_it_does() {
        let (mut client, stream, clock, membership) = connected().await;
        let activity = membership.member.activity.clone();
        let env = Env { clock: Arc::new(clock), ..Env::production(tokio::runtime::Handle::current()) };
        client.write_all(&many_requests(b"/now")).await.expect("room for all of them");
        let serving = tokio::spawn(serve(stream, env, Arc::new(Answers::default()), membership));
        let mut before = 0;
        while activity.requests() < CONNECTION_MAX as u64 || activity.requests() != before {
            before = activity.requests();
            settle().await;
        }
        let turn = TURN_BYTES_FIRST / REQUEST_BYTES;
        let taken = activity.requests() as usize;
        assert!(taken >= CONNECTION_MAX && taken <= 2 * turn + 3 * CONNECTION_MAX, "{taken} of them");
        let mut answers = vec![0; 1 << 20];
        while activity.requests() < u64::from(ASKED) {
            assert_ne!(client.read(&mut answers).await.expect("more of the answers"), 0);
        }
        serving.abort();
    }

    /// A client that had gone with half a body kept its place until the next look whether it was there.
    #[tokio::test]
    async fn half_a_body_ends_as_soon_as_the_server_asks_for_the_rest() {
        let (_registry, mut client, serving, answers, _clock) =
            asked_with("POST /half HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbo").await;
        client.shutdown().await.expect("nothing more comes");
        settle().await;
        assert!(!serving.is_finished(), "nobody asks for more of it");
        answers.told.notify_one();
        settle().await;
        assert!(serving.is_finished());
    }

    /// The service waited for the rest of the body, and the connection read it and the end behind it at once: the client had no answer.
    #[tokio::test]
    async fn the_end_behind_the_last_of_a_body_that_is_awaited_is_not_the_end_of_its_request() {
        let (_registry, mut client, serving, answers, _clock) =
            asked_with("POST /half HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbo").await;
        answers.told.notify_one();
        settle().await;
        client.write_all(b"dy").await.expect("room for it");
        client.shutdown().await.expect("nothing more comes");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("xxxx"), "{answer:?}");
        serving.await.expect("it closed behind its answer");
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_sending_side_and_is_gone_is_found_out_at_the_next_look() {
        let (_registry, mut client, serving, _answers, clock) = asked("/").await;
        client.shutdown().await.expect("nothing more comes");
        for _ in 0..3 {
            settle().await;
            clock.due();
        }
        settle().await;
        assert!(!serving.is_finished(), "it waits for its answer");
        // What the kernel says once nobody answers it any more comes at once where the client's side is reset.
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("an option of any socket");
        drop(client);
        settle().await;
        clock.due();
        settle().await;
        assert!(serving.is_finished());
    }

    /// The last bytes of a slow body came just as its connection was told to give way: its client saw no answer to a call that ran.
    #[tokio::test]
    async fn one_that_gives_way_is_not_cut_while_its_request_is_answered() {
        let (mut client, serving, answers, clock) = giving_way("/").await;
        looks(&clock, 100).await;
        assert!(!serving.is_finished(), "what was taken is answered, however long that takes");
        answers.told.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("xxxx"), "{answer}");
        drop(client);
        serving.await.expect("it closed behind its answer");
    }

    #[tokio::test]
    async fn an_answer_that_its_client_does_not_take_does_not_hold_one_that_gives_way() {
        let (client, serving, answers, clock) = giving_way("/large").await;
        answers.told.notify_one();
        while !serving.is_finished() {
            looks(&clock, 1).await;
        }
        drop(client);
    }

    /// Clients that read nothing of their results held them in memory for minutes.
    #[tokio::test]
    async fn an_answer_that_its_client_does_not_take_is_cut_while_others_wait_for_memory_and_only_then() {
        for is_short in [false, true] {
            let (_registry, mut client, serving, answers, clock) = asked("/large").await;
            answers.is_short.store(is_short, Ordering::Relaxed);
            answers.told.notify_one();
            client.read_exact(&mut [0; 12]).await.expect("the answer begins");
            // What sockets keep counts at the first look. At the third one the connection would end as one that is idle.
            for _ in 0..2 {
                settle().await;
                clock.due();
            }
            settle().await;
            assert_eq!(serving.is_finished(), is_short);
        }
    }
}
