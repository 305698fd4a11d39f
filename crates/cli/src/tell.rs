//! What a command tells a person. Where nobody reads on (`| head -1`), or there is no room, the rest is dropped, and the command goes on.

use std::fmt::Display;
use std::io::Write;

/// A line on standard output.
pub(crate) fn say(line: impl Display) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A line on standard error.
pub(crate) fn warn(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
