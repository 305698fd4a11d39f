//! Ports that speak HTTP/1.1, and HTTP/2 with prior knowledge, for every room that serves one.
//!
//! Owns: accepting, the bound on connections and what gives way at it, what one hears that is not served, how fast requests are taken in,
//! patience with clients that ask for nothing or do not read, the memory of a socket, which web pages may ask, what is left of a refused
//! body, and the drain. Does not own: binding a port, or what a request means.

mod activity;
mod connection;
mod goodbye;
mod incoming;
mod intake;
mod leftover;
mod outgoing;
mod registry;
mod server;
mod socket;
#[cfg(test)]
mod testing;
mod visitors;

pub use incoming::{BodyFault, IncomingBody};
pub use server::{ConnectionBounds, HttpAnswers, HttpServer, NoAnswer, NotServed};
pub use visitors::{Refusal, Visitors};
