//! Load scenarios against any server of this surface
fn main() {}
