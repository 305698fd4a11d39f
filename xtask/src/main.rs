//! Repository tasks
fn main() {}
