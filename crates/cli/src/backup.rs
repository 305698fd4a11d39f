//! `surefoot backup` and `surefoot restore`.
//!
//! Owns: their arguments, and what a person reads of them. Does not own: making a backup (the node does, through its admin API), or restoring one (`server`).

use crate::settings::DataDirArguments;
use crate::tell;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use surefoot_client::Admin;
use surefoot_server::{data_dir, restore};

#[derive(Debug, clap::Args)]
pub(crate) struct BackupArguments {
    /// A directory on the machine of the node that is empty or not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where the node takes operators' requests
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9070")]
    admin_address: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArguments {
    /// The directory of the backup
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    #[command(flatten)]
    data_dir: DataDirArguments,
}

pub(crate) fn run_backup(arguments: &BackupArguments) -> anyhow::Result<ExitCode> {
    // The node has a working directory of its own.
    let directory = std::path::absolute(&arguments.directory).context("find the directory")?;
    let directory = directory.to_str().context("the name of the directory is not UTF-8")?;
    let admin = Admin::new(&arguments.admin_address)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a thread")?;
    // It takes as long as there is much to copy: no time limit. Where this process is ended, the node ends the backup.
    let backup = runtime.block_on(admin.back_up(directory))?;
    tell::say(format!(
        "{directory} has a backup of the node: {} files, {} bytes, {} ms",
        backup.files, backup.bytes, backup.took_ms
    ));
    tell::say(format!("To restore it: surefoot restore {directory} --data-dir NEW-DIRECTORY"));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn run_restore(arguments: RestoreArguments) -> anyhow::Result<ExitCode> {
    data_dir::keep_private();
    let data_dir = arguments.data_dir.path()?;
    let restored = restore::restore(&arguments.backup, &data_dir)?;
    let shown = std::path::absolute(&data_dir).unwrap_or_else(|_| Path::to_owned(&data_dir));
    tell::say(format!(
        "{} files, {} bytes of node {:016x} are restored to {}",
        restored.files,
        restored.bytes,
        restored.node_id,
        shown.display()
    ));
    tell::say(
        "The node that was backed up must not run any more, nor a second one of this backup: each would run the same invocations.",
    );
    tell::say(format!("Start it: surefoot serve --data-dir {}", shown.display()));
    Ok(ExitCode::SUCCESS)
}
