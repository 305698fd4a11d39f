//! The service protocol spoken by hand, for handlers that no SDK would let be written.
//!
//! Owns: frames and fields, and a deployment of handlers that are given as routes. Does not own: what the handlers say.

use anyhow::{Context, Result};
use axum::Router;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// Types of messages.
pub const END: u16 = 0x0003;
pub const PROPOSE_RUN: u16 = 0x0005;
pub const OUTPUT: u16 = 0x0401;
pub const GET_LAZY_STATE: u16 = 0x0402;
pub const SET_STATE: u16 = 0x0403;
pub const ONE_WAY_CALL: u16 = 0x040E;
pub const RUN: u16 = 0x0411;

const INVOCATION_TYPE: &str = "application/vnd.restate.invocation.v5";
const MANIFEST_TYPE: &str = "application/vnd.restate.endpointmanifest.v3+json";
const SERVER: HeaderName = HeaderName::from_static("x-restate-server");
const BY_HAND: &str = "by-hand/1";

/// One frame.
pub fn frame(ty: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("it is small");
    [&ty.to_be_bytes()[..], &[0, 0], &length.to_be_bytes(), body].concat()
}

/// A length-delimited field of a protobuf message.
pub fn bytes_field(tag: u8, value: &[u8]) -> Vec<u8> {
    [varint(u64::from(tag) << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// A number of a protobuf message.
pub fn number_field(tag: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(tag) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Sets a name of the key's state.
pub fn set_state(name: &[u8], value: &[u8]) -> Vec<u8> {
    frame(SET_STATE, &[bytes_field(1, name), bytes_field(3, &bytes_field(1, value))].concat())
}

/// The last words of a handler, with a result of nothing.
pub fn output_and_end() -> Vec<u8> {
    [frame(OUTPUT, &bytes_field(14, &bytes_field(1, b"null"))), frame(END, &[])].concat()
}

/// A handler's response that goes on with this.
pub fn response(body: impl IntoResponse) -> impl IntoResponse {
    ([(CONTENT_TYPE, INVOCATION_TYPE), (SERVER, BY_HAND)], body)
}

/// Serves handlers at `/invoke/SERVICE/HANDLER`; where. `services` is the list of them in the manifest.
pub async fn serve(services: &str, handlers: Router) -> Result<String> {
    let manifest =
        format!(r#"{{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":5,"services":[{services}]}}"#);
    let discover = get(|| async { ([(CONTENT_TYPE, MANIFEST_TYPE), (SERVER, BY_HAND)], manifest) });
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
    let address = listener.local_addr().context("read the address")?;
    tokio::spawn(async move { axum::serve(listener, handlers.route("/discover", discover)).await });
    Ok(format!("http://{address}"))
}
