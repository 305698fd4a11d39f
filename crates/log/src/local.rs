//! The local file log.
