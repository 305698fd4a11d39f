//! Logs of the process, on standard error.

use anyhow::Context;
use std::io::IsTerminal;
use surefoot_server::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging as configured. **Errors**: a filter that cannot be read.
pub(crate) fn start(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .with_context(|| format!("`log-filter` is `{}`, expected levels such as warn,surefoot=info", config.log_filter))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Pretty => logs.init(),
        LogFormat::Compact => logs.compact().init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
