//! The network between a simulated node and simulated handlers: channels.

use crate::executor::{Executor, WORLD};
use crate::handler::Handlers;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use std::task::{Context, Poll};
use surefoot_env::BoxFuture;
use surefoot_invoker::{DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, OpenRequest, Transport, TransportError};
use tokio::sync::mpsc;

/// Chunks that may be on their way in one direction.
const CHUNKS: usize = 64;

pub(crate) struct SimTransport {
    pub(crate) executor: Executor,
    pub(crate) handlers: Handlers,
}

impl Transport for SimTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
        let mut names = request.path.split('/').skip(2).map(str::to_owned);
        let (service, handler) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let (to_handler, from_server) = mpsc::channel(CHUNKS);
        let (to_server, from_handler) = mpsc::channel(CHUNKS);
        let serving = self.handlers.clone().serve(self.executor.clone(), service, handler, from_server, to_server);
        self.executor.spawn(WORLD, Box::pin(serving));
        let content_type = request.headers.get(CONTENT_TYPE).cloned();
        let exchange = SimExchange { request: Some(to_handler), response: from_handler, head: content_type };
        Box::pin(std::future::ready(Ok(Box::new(exchange) as Box<dyn Exchange>)))
    }

    fn discover(&self, request: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        Box::pin(std::future::ready(Err(TransportError::Address(request.uri))))
    }
}

struct SimExchange {
    request: Option<mpsc::Sender<Bytes>>,
    response: mpsc::Receiver<Bytes>,
    /// The response's content type, until the head has been told.
    head: Option<http::HeaderValue>,
}

impl Exchange for SimExchange {
    fn send(&mut self, bytes: Bytes) {
        if let Some(request) = &self.request {
            // A handler that is gone, or that does not read, loses its stream: the response tells.
            let _ = request.try_send(bytes);
        }
    }

    fn unsent_bytes(&self) -> usize {
        0
    }

    fn half_close(&mut self) {
        self.request = None;
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        if let Some(content_type) = self.head.take() {
            return Poll::Ready(ExchangeEvent::Head(StatusCode::OK, HeaderMap::from_iter([(CONTENT_TYPE, content_type)])));
        }
        self.response.poll_recv(cx).map(|chunk| chunk.map_or(ExchangeEvent::End, ExchangeEvent::Chunk))
    }
}
