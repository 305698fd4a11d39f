//! Logs of the process, on standard error.
//!
//! Owns: that logging never stops what logs. A thread of its own writes the lines. Where nobody reads them, or there is no room for them, they are
//! dropped. Does not own: which lines there are, and how they look (`config`).

use anyhow::Context;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;
use surefoot_server::config::{Config, LogFormat};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait to be written. Beyond it the newest is dropped.
const LINES_MAX: usize = 1_024;
/// How long the end of the process waits for them.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// The thread that writes, until the process ends.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Starts logging as configured. **Errors**: a filter that cannot be read.
pub(crate) fn start(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .with_context(|| format!("`log-filter` is `{}`, expected levels such as warn,surefoot=info", config.log_filter))?;
    let (lines, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).thread_name("surefoot-logs").finish(std::io::stderr());
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    // A line that cannot be written would be told to standard error, and that panics.
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).log_internal_errors(false);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Pretty => logs.init(),
        LogFormat::Compact => logs.compact().init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

/// Waits until the lines before are written, [`FINISH_MAX`] at most. Later lines are dropped.
pub(crate) fn finish() {
    let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (finished, is_finished) = mpsc::channel();
    // On a thread of its own: where nobody reads standard error and standard output, the writer tells so on the latter, and waits.
    let finishing = std::thread::Builder::new().name("surefoot-logs-end".to_owned()).spawn(move || {
        drop(writer);
        let _ = finished.send(());
    });
    if finishing.is_ok() {
        let _ = is_finished.recv_timeout(FINISH_MAX);
    }
}
