//! Attempts: one task and one HTTP/2 stream each
