//! One connection, from its first byte to its end: the client's, the port's, or that of our patience.
//!
//! Owns: what a connection may hold in memory, time limits, and how it is closed. Does not own: how many there are (`registry`).

use crate::activity::Answering;
use crate::incoming::IncomingBody;
use crate::outgoing::OutgoingBody;
use crate::registry::{Membership, Order};
use crate::server::HttpAnswers;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockRef, TcpKeepalive};
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
/// How long a connection may take to close, and one that gives way to others.
const CLOSE: Duration = Duration::from_secs(10);
const YIELD: Duration = Duration::from_secs(1);
/// Silence after which a client is asked whether it is still there, and how long it has for its answer.
const PING_INTERVAL: Duration = Duration::from_secs(40);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) async fn serve<S: HttpAnswers>(stream: TcpStream, env: Env, answers: Arc<S>, membership: Membership) {
    set_options(&stream);
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
    let answer = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let (answers, answering) = (answers.clone(), Answering::new(activity.clone(), membership.requests()));
        let request = request.map(|body| IncomingBody::new(body, clock.clone()).told(answering.awaiting()));
        async move {
            let answer = answers.answer(request).await?;
            // Before the one ends the other begins: in between, the connection would look unused.
            let sending = answering.into_sending();
            Ok::<_, crate::NoAnswer>(answer.map(|body| OutgoingBody::new(body, sending)))
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let (mut order, mut is_closing) = (Order::Stay, false);
    let mut patience = env.clock.sleep(FIRST_REQUEST);
    loop {
        tokio::select! {
            biased;
            // Polled by reference: it goes on where it was.
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a client's connection broke");
                }
                return;
            }
            // A word that is not heard is told again at the next call.
            told = member.order_after(order) => {
                order = told;
                match order {
                    Order::Cut => return,
                    Order::Yield | Order::GiveWay => patience = env.clock.sleep(YIELD),
                    Order::Stay | Order::Finish => {}
                }
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // Polled by reference: it keeps its due time.
            () = &mut patience => {
                // An answer that its client does not take is no reason to stay for others that give way.
                let gives_way = order == Order::GiveWay || (order == Order::Yield && member.activity.is_unused());
                if member.activity.was_idle() || gives_way {
                    if is_closing {
                        return; // half a request, or a client that does not read its goodbye
                    }
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                patience = env.clock.sleep(if is_closing { CLOSE } else { IDLE });
            }
        }
    }
}

fn set_options(stream: &TcpStream) {
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
