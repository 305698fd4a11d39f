//! The network between a simulated node and simulated handlers: channels, and what goes wrong there.
//!
//! Owns: refused and slow connections, responses that stall, are cut, never begin, or go on behind their end; and that a stream
//! reaches the deployment that was asked for. Does not own: what handlers do (`handler`).

use crate::executor::{Executor, WORLD};
use crate::handler::Handlers;
use crate::wire;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use std::task::{Context, Poll};
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_env::sim::Rng;
use surefoot_invoker::{DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, OpenRequest, Transport, TransportError};
use tokio::sync::mpsc;

/// Chunks that may be on their way in one direction.
const CHUNKS: usize = 64;

pub(crate) struct SimTransport {
    pub(crate) executor: Executor,
    pub(crate) handlers: Handlers,
}

/// What goes wrong with one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens.
    Refused,
    /// The connection takes this long.
    SlowOpen(Duration),
    /// After so many chunks of the response nothing comes for this long.
    Stall(usize, Duration),
    /// After so many chunks of the response the connection breaks.
    Cut(usize),
    /// The response never begins: the request is lost on the way.
    Silence,
    /// The connection breaks once the last message has come.
    CutAtEnd,
    /// The last message comes twice.
    EndTwice,
}

impl Fault {
    pub(crate) fn any(rng: &mut Rng) -> Self {
        let (chunks, pause) = (rng.below(4) as usize, Duration::from_millis(rng.below(3_000)));
        match rng.below(8) {
            0 => Self::Refused,
            1 => Self::SlowOpen(pause),
            2 | 3 => Self::Stall(chunks, pause),
            4 => Self::Cut(chunks),
            5 => Self::Silence,
            6 => Self::CutAtEnd,
            _ => Self::EndTwice,
        }
    }
}

impl Transport for SimTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
        let mut names = request.path.split('/').skip(2).map(str::to_owned);
        let (service, handler) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let serves = request.deployment.services.iter().any(|s| *s.name == *service && s.handlers.contains_key(handler.as_str()));
        let fault = self.handlers.fault();
        let (to_handler, from_server) = mpsc::channel(CHUNKS);
        let (to_server, from_handler) = mpsc::channel(CHUNKS);
        let mut exchange = SimExchange {
            executor: self.executor.clone(),
            request: Some(to_handler),
            response: from_handler,
            head: None,
            fault,
            chunks: 0,
            last: Bytes::new(),
            pause: None,
            silent: None,
        };
        let opening = match fault {
            Some(Fault::Refused) => {
                let error = TransportError::Connect { address: request.deployment.uri.clone(), message: "refused".to_owned() };
                return Box::pin(std::future::ready(Err(error)));
            }
            Some(Fault::SlowOpen(pause)) => Some(self.executor.sleep(pause)),
            _ => None,
        };
        let content_type = request.headers.get(CONTENT_TYPE).cloned();
        let head = HeaderMap::from_iter(content_type.map(|content_type| (CONTENT_TYPE, content_type)));
        exchange.head = match fault {
            Some(Fault::Silence) => None,
            _ if serves => Some((StatusCode::OK, head)),
            _ => Some((StatusCode::NOT_FOUND, HeaderMap::new())),
        };
        let (executor, handlers, deployment) = (self.executor.clone(), self.handlers.clone(), request.deployment.id);
        Box::pin(async move {
            if let Some(opening) = opening {
                opening.await;
            }
            if fault == Some(Fault::Silence) {
                exchange.silent = Some(to_server);
            } else if serves {
                let serving = handlers.serve(executor.clone(), deployment, service, handler, from_server, to_server);
                executor.spawn(WORLD, Box::pin(serving));
            }
            Ok(Box::new(exchange) as Box<dyn Exchange>)
        })
    }

    fn discover(&self, request: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        Box::pin(std::future::ready(Err(TransportError::Address(request.uri))))
    }
}

struct SimExchange {
    executor: Executor,
    request: Option<mpsc::Sender<Bytes>>,
    response: mpsc::Receiver<Bytes>,
    /// The response's head, until it has been told.
    head: Option<(StatusCode, HeaderMap)>,
    fault: Option<Fault>,
    /// Chunks of the response so far, and the last of them.
    chunks: usize,
    last: Bytes,
    pause: Option<BoxFuture>,
    /// The other end of a connection that is open, and on which nothing comes.
    silent: Option<mpsc::Sender<Bytes>>,
}

impl Exchange for SimExchange {
    fn send(&mut self, bytes: Bytes) {
        if let Some(request) = &self.request {
            self.executor.trace_bytes(&bytes);
            // A handler that is gone, or that does not read, loses its stream: the response tells.
            let _ = request.try_send(bytes);
        }
    }

    fn unsent_bytes(&self) -> usize {
        0
    }

    fn poll_unsent(&mut self, _: &mut Context<'_>, _: usize) -> Poll<()> {
        Poll::Ready(())
    }

    fn half_close(&mut self) {
        self.request = None;
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        if let Some((status, headers)) = self.head.take() {
            return Poll::Ready(ExchangeEvent::Head(status, headers));
        }
        match self.fault {
            Some(Fault::Cut(after)) if self.chunks >= after => return Poll::Ready(broken()),
            Some(Fault::Stall(after, pause)) if self.chunks >= after => {
                let pause = self.pause.get_or_insert_with(|| self.executor.sleep(pause));
                if pause.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.fault = None;
            }
            _ => {}
        }
        let Some(chunk) = std::task::ready!(self.response.poll_recv(cx)) else {
            return Poll::Ready(match self.fault.take() {
                Some(Fault::CutAtEnd) => broken(),
                Some(Fault::EndTwice) if wire::is_end(&self.last) => ExchangeEvent::Chunk(self.last.clone()),
                _ => ExchangeEvent::End,
            });
        };
        self.executor.trace_bytes(&chunk);
        self.chunks += 1;
        self.last = chunk.clone();
        Poll::Ready(ExchangeEvent::Chunk(chunk))
    }
}

fn broken() -> ExchangeEvent {
    ExchangeEvent::Error(TransportError::Broken("reset by peer".to_owned()))
}
