//! What a connection hears that finds no place.
//!
//! The answer is given once there is a request to answer, and what comes behind it is read for a moment: a socket that is closed with
//! something unread, or that gets more once it is closed, resets the connection, and takes the answer away again. Does not own: who finds
//! no place, or how many are told at a time.

use std::io;
use std::time::Duration;
use surefoot_env::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Over HTTP/1.1, whatever the request is.
const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: text/plain\r\ncontent-length: 52\r\n\
                       connection: close\r\n\r\nall connections are in use: keep fewer, or try later";
/// How a client begins that speaks HTTP/2.
const HTTP2_BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Over HTTP/2 (RFC 9113): our settings, none, and GOAWAY behind stream 0 with NO_ERROR. None of its calls was taken, and all may be sent again.
const HTTP2_REFUSED: [u8; 26] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A request's head is looked for in so many bytes, for so long: it has been on its way while the connection waited.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEAD_WAIT: Duration = Duration::from_millis(500);
/// How long a client may take to close once it is answered.
const LINGER: Duration = Duration::from_secs(2);

/// Refuses a connection, and is done within [`HEAD_WAIT`] and [`LINGER`].
pub(crate) async fn say(mut stream: TcpStream, clock: &dyn Clock) {
    let mut head = Vec::new();
    tokio::select! {
        biased;
        // Dropped midway, what has come lies in `head`.
        _ = read_head(&mut stream, &mut head) => {}
        // A timer has nothing to lose.
        () = clock.sleep(HEAD_WAIT) => {}
    }
    let answer = if head.starts_with(HTTP2_BEGINS) { &HTTP2_REFUSED[..] } else { REFUSED.as_bytes() };
    tokio::select! {
        biased;
        // An answer that its client does not take is no loss.
        _ = tell(&mut stream, answer) => {}
        // A timer has nothing to lose.
        () = clock.sleep(LINGER) => {}
    }
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
