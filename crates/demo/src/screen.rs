//! What a person sees while it runs: lines that stay, and below them one that moves, where the output is a terminal.
//!
//! Does not own: what is said.

use std::cell::RefCell;
use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

/// How often the moving line becomes a line that stays, where nothing can move.
const PLAIN_EVERY: Duration = Duration::from_secs(2);
/// Narrow terminals would wrap a longer one, and a wrapped line cannot be taken back.
const WIDTH: usize = 79;
/// Back to the line's start, and clear it.
const CLEAR: &str = "\r\x1b[2K";

#[derive(Debug)]
pub(crate) struct Screen {
    is_terminal: bool,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    is_moving: bool,
    last_plain: Instant,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        let state = State { is_moving: false, last_plain: Instant::now() };
        Self { is_terminal: stdout().is_terminal() && !is_dumb, state: RefCell::new(state) }
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        let clear = if std::mem::take(&mut self.state.borrow_mut().is_moving) { CLEAR } else { "" };
        write(&format!("{clear}{text}\n"));
    }

    /// The moving line from now on.
    pub(crate) fn moving(&self, text: &str) {
        let mut state = self.state.borrow_mut();
        if self.is_terminal {
            state.is_moving = true;
            let text: String = text.chars().take(WIDTH).collect();
            write(&format!("{CLEAR}{text}"));
        } else if state.last_plain.elapsed() >= PLAIN_EVERY {
            state.last_plain = Instant::now();
            write(&format!("{text}\n"));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.state.borrow().is_moving {
            write(CLEAR);
        }
    }
}

/// Whoever read the output may have left; the run and its exit status go on.
fn write(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
