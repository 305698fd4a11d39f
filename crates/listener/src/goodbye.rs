//! What a connection hears that is not served.
//!
//! The answer is given once there is a request to answer, and what comes behind it is read for a moment: a socket that is closed with
//! something unread, or that gets more once it is closed, resets the connection, and takes the answer away again. Does not own: who is
//! not served, how many are told at a time, or in which words.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Response};
use http_body::Body;
use http_body_util::BodyExt;
use std::io;
use std::time::Duration;
use surefoot_env::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How a client begins that speaks HTTP/2.
const HTTP2_BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Over HTTP/2 (RFC 9113): our settings, none, and GOAWAY behind stream 0 with NO_ERROR. None of its calls was taken, and all may be sent again.
const HTTP2_REFUSED: [u8; 26] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A request's head is looked for in so many bytes, for so long: it has been on its way while the connection waited.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEAD_WAIT: Duration = Duration::from_millis(500);
/// How long a client may take to close once it is answered.
const LINGER: Duration = Duration::from_secs(2);

/// Gives a connection this answer over HTTP/1.1, whatever its request is; done within [`HEAD_WAIT`] and [`LINGER`].
pub(crate) async fn say<B: Body<Data = Bytes>>(mut stream: TcpStream, clock: &dyn Clock, answer: Response<B>) {
    let refused = over_http1(answer).await;
    let mut head = Vec::new();
    tokio::select! {
        biased;
        // Dropped midway, what has come lies in `head`.
        _ = read_head(&mut stream, &mut head) => {}
        // A timer has nothing to lose.
        () = clock.sleep(HEAD_WAIT) => {}
    }
    let answer = if head.starts_with(HTTP2_BEGINS) { &HTTP2_REFUSED[..] } else { &refused };
    tokio::select! {
        biased;
        // An answer that its client does not take is no loss.
        _ = tell(&mut stream, answer) => {}
        // A timer has nothing to lose.
        () = clock.sleep(LINGER) => {}
    }
}

/// The last answer of a connection, as its bytes.
async fn over_http1<B: Body<Data = Bytes>>(answer: Response<B>) -> Vec<u8> {
    let (mut head, body) = answer.into_parts();
    // A body that cannot be had is no loss: the status says enough.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    // With its reason: `503 Service Unavailable`.
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

/// Reads until a head is whole, or nothing more comes.
async fn read_head(stream: &mut TcpStream, head: &mut Vec<u8>) -> io::Result<()> {
    let mut seen = 0;
    while head.len() < HEAD_BYTES_MAX && !head[seen..].windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        // The end of a head may lie in two pieces.
        seen = head.len().saturating_sub(3);
        if stream.read_buf(head).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Answers, ends our side, and reads what comes until the client has ended its own.
async fn tell(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let mut unread = [0; 4 << 10];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}
