//! The demo: the main job on one machine, with kills
fn main() {}
