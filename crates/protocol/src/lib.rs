//! The service protocol with handlers, versions 5 and 6, and discovery, manifests 1 to 4. Bytes in, values out.
//!
//! Owns: frames, messages in both directions, version negotiation, manifests and their rules, and how what is named in a call becomes a
//! submission. Does not own: sockets, tasks, time, randomness, or what a message sets in motion. Source: protocol reference
//! sections 1 to 5; fields and type codes are those of section 5.

mod decode;
pub mod discovery;
mod encode;
mod frame;
pub mod message_type;
mod messages;
mod submission;
mod version;

pub use decode::{
    Behavior, Call, Command, HandlerError, Message, Violation, command_name, completion_ids, decode, place, state_key_bytes,
};
pub use encode::{Outgoing, Start, encode_input, encode_input_head};
pub use frame::{Frame, FrameDecoder, HEADER_BYTES, TooLarge};
pub use submission::{KEY_BYTES_MAX, NewSubmission, SubmissionError, build_submission};
pub use version::{MAX_VERSION, MIN_VERSION, content_type, is_supported, negotiate};
