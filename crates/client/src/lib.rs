//! Typed client of a server's two HTTP surfaces: `Ingress` invokes handlers, `Admin` looks after what runs there.
//!
//! Owns: paths, request and reply shapes, and telling apart what a caller can do about an error. Does not own: retries; nothing
//! is sent twice, save that an idle connection which the server had closed is replaced. Knows nothing of the server's inside.

pub mod admin;
mod error;
mod http;
pub mod ingress;

pub use admin::Admin;
pub use error::{Error, Source};
pub use ingress::Ingress;

pub type Result<T> = std::result::Result<T, Error>;
