//! `surefoot doctor`: lists the faults of a data directory.
//!
//! Owns: its arguments, and what a person reads of it. Does not own: looking (`server`).

use crate::settings::DataDirArguments;
use crate::tell;
use std::path::Path;
use std::process::ExitCode;
use surefoot_server::doctor::{self, Diagnosis};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    data_dir: DataDirArguments,
}

/// Prints one line per fault to standard output. The exit code is 0 without a fault, and 1 with one or more.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let path = arguments.data_dir.path()?;
    let found = doctor::examine(&path)?;
    for fault in &found.faults {
        tell::say(format!("fault: {fault}"));
    }
    tell::say(summary(&path, &found));
    Ok(if found.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(path: &Path, found: &Diagnosis) -> String {
    let Diagnosis { faults, tables, table_bytes, rows, segments, log_bytes, torn_bytes, records } = found;
    let verdict = match faults.len() {
        0 => "nothing is wrong".to_owned(),
        1 => "1 fault".to_owned(),
        count => format!("{count} faults"),
    };
    let torn = match torn_bytes {
        0 => String::new(),
        bytes => format!("; {bytes} bytes of a torn tail, which the next start cuts: a crash leaves one"),
    };
    format!(
        "{}: {verdict} in {tables} table files of {table_bytes} bytes with {rows} rows, and {segments} log segments of {log_bytes} bytes with \
         {records} records to apply{torn}",
        path.display()
    )
}
