//! A client that sends exactly what it is told to, over HTTP/1.1.

use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Who an error comes from, as its header and its body say.
    pub(crate) fn source(&self) -> String {
        let source = self.json()["source"].as_str().unwrap().to_owned();
        assert_eq!(self.header("x-restate-error-source"), Some(source.as_str()));
        assert_eq!(self.json()["code"], self.status);
        source
    }
}

/// Sends one request on a connection of its own: `line` is method and path, `headers` are whole lines.
pub(crate) async fn send(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    let length = format!("content-length: {}", body.len());
    let own: &[&str] =
        if body.is_empty() || headers.iter().any(|h| h.starts_with("transfer-encoding")) { &[] } else { &[&length] };
    let lines: Vec<&str> = headers.iter().chain(own).copied().collect();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{}\r\n{body}",
        lines.iter().map(|l| format!("{l}\r\n")).collect::<String>()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    last(stream, line).await
}

/// The last answer on a connection, which is all that comes. `line` says what was asked.
pub(crate) async fn last(mut stream: TcpStream, line: &str) -> Answer {
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.unwrap();
    let text = String::from_utf8(raw).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer to {line}: {text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}
