//! A handler endpoint with a few handlers, which speaks discovery and just enough of the service protocol.
//!
//! Handlers: `echo` returns its input, `headers` the headers it got as JSON, `fail` fails with 418, `hang` never answers.

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::net::TcpListener;

const INPUT: u16 = 0x0400;
const OUTPUT: u16 = 0x0401;
const END: u16 = 0x0003;
/// Type, flags and length of a frame.
const HEADER_BYTES: usize = 8;
const MANIFEST_TYPE: &str = "application/vnd.restate.endpointmanifest.v4+json";

pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    discoveries: Arc<AtomicUsize>,
    hung: Arc<Mutex<Vec<usize>>>,
}

impl Endpoint {
    /// Serves this list of services (JSON of a manifest) until the test ends.
    pub(crate) async fn start(services: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let discoveries = Arc::new(AtomicUsize::new(0));
        let manifest =
            format!(r#"{{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":7,"services":[{services}]}}"#);
        let counted = discoveries.clone();
        let hung = Arc::<Mutex<Vec<usize>>>::default();
        let hanging = hung.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (manifest, counted, hung) = (manifest.clone(), counted.clone(), hanging.clone());
                let service = service_fn(move |request| {
                    if request.uri().path() == "/discover" {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    answer(request, manifest.clone(), hung.clone())
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, discoveries, hung }
    }

    /// Bytes of the input of each attempt at `hang`, as they come.
    pub(crate) fn hung(&self) -> Arc<Mutex<Vec<usize>>> {
        self.hung.clone()
    }

    pub(crate) fn discoveries(&self) -> usize {
        self.discoveries.load(Ordering::Relaxed)
    }
}

type Chunks = StreamBody<Pending>;

/// The given chunks, then the end, or nothing more for ever.
pub(crate) struct Pending {
    chunks: VecDeque<Bytes>,
    ends: bool,
}

impl futures_util::Stream for Pending {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    manifest: String,
    hung: Arc<Mutex<Vec<usize>>>,
) -> Result<Response<Chunks>, Infallible> {
    let respond = |content_type: &str, chunk: Option<Vec<u8>>| {
        let ends = chunk.is_some();
        let chunks = chunk.into_iter().map(Bytes::from).collect();
        Response::builder()
            .header("content-type", content_type)
            .header("x-restate-server", "endpoint/1")
            .body(StreamBody::new(Pending { chunks, ends }))
            .unwrap()
    };
    if request.uri().path() == "/discover" {
        return Ok(respond(MANIFEST_TYPE, Some(manifest.into_bytes())));
    }
    let content_type = request.headers()["content-type"].to_str().unwrap().to_owned();
    let handler = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let input = read_input(request.into_body()).await;
    let output = match handler.as_str() {
        "hang" => {
            hung.lock().unwrap().push(input.body.len());
            None
        }
        "fail" => Some(field(
            15,
            &[vec![0x08], varint(418), field(2, b"teapot"), field(3, &[field(1, b"a"), field(2, b"b")].concat())].concat(),
        )),
        "headers" => Some(field(14, &field(1, &input.headers_json()))),
        _ => Some(field(14, &field(1, &input.body))),
    };
    let frames = output.map(|output| [frame(OUTPUT, &output), frame(END, &[])].concat());
    Ok(respond(&content_type, frames))
}

struct Input {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Input {
    fn headers_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.headers).unwrap()
    }
}

async fn read_input(mut body: Incoming) -> Input {
    let mut received = Vec::new();
    loop {
        let chunk = body.frame().await.expect("the input comes before the end").unwrap();
        received.extend_from_slice(&chunk.into_data().unwrap());
        while let Some((ty, payload)) = take_frame(&mut received) {
            if ty != INPUT {
                continue;
            }
            let mut input = Input { headers: Vec::new(), body: Vec::new() };
            for (tag, value) in fields(&payload) {
                let inner = fields(value);
                let text = |tag| {
                    String::from_utf8(inner.iter().find(|(t, _)| *t == tag).map_or(Vec::new(), |(_, v)| v.to_vec())).unwrap()
                };
                match tag {
                    1 => input.headers.push((text(1), text(2))),
                    14 => input.body = inner.first().map_or(Vec::new(), |(_, v)| v.to_vec()),
                    _ => {}
                }
            }
            return input;
        }
    }
}

/// The first whole frame of what was received: its type and payload.
fn take_frame(received: &mut Vec<u8>) -> Option<(u16, Vec<u8>)> {
    let header = u64::from_be_bytes(received.get(..HEADER_BYTES)?.try_into().unwrap());
    let end = HEADER_BYTES + (header & 0xffff_ffff) as usize;
    let payload = received.get(HEADER_BYTES..end)?.to_vec();
    received.drain(..end);
    Some(((header >> 48) as u16, payload))
}

/// The fields of a message whose fields all have a length.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let (key, rest) = read_varint(message);
        let (length, rest) = read_varint(rest);
        assert_eq!(key & 7, 2, "a field of this test's messages has a length");
        let (value, rest) = rest.split_at(length as usize);
        found.push((key >> 3, value));
        message = rest;
    }
    found
}

fn read_varint(bytes: &[u8]) -> (u64, &[u8]) {
    let end = bytes.iter().position(|b| *b < 0x80).unwrap();
    let value = bytes[..=end].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    (value, &bytes[end + 1..])
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn field(tag: u64, value: &[u8]) -> Vec<u8> {
    [varint(tag << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn frame(ty: u16, payload: &[u8]) -> Vec<u8> {
    let header = u64::from(ty) << 48 | payload.len() as u64;
    [&header.to_be_bytes()[..], payload].concat()
}
