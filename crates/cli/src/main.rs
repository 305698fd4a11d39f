//! The surefoot binary
fn main() {}
