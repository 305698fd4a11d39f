//! `POST /backup`: what admin asks of the node, and how it answers (rule C6).
//!
//! Owns: the trait `Backups` that `server` implements, the JSON of the answer, and the error that an operator sees for each outcome. Does not
//! own: the contents of a backup, or how it is made.

use crate::{Admin, Error};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use surefoot_env::BoxFuture;

pub trait Backups: Send + Sync {
    /// Makes a backup of the whole node, as it is at one instant of its log, in a directory of this machine that does not exist or is empty.
    /// Completes once it is durable. Dropped before, it leaves nothing behind, and nothing held.
    fn back_up(&self, directory: PathBuf) -> BoxFuture<Result<BackedUp, BackupError>>;
}

/// A backup that is whole and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedUp {
    pub files: u64,
    pub bytes: u64,
    pub took_ms: u64,
}

/// Why there is no backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupError {
    /// One at a time.
    Running,
    /// The directory cannot be one: another one may.
    Directory(String),
    /// What was under way is given up: there is no room, or a file could not be read or written.
    Failed(String),
    /// The node stops.
    Stopping,
}

impl From<BackupError> for Error {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Running => Self::BackupRuns,
            BackupError::Directory(why) => Self::BackupDirectory(why),
            BackupError::Failed(why) => Self::BackupFailed(why),
            BackupError::Stopping => Self::Stopping,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBackup {
    directory: PathBuf,
}

#[derive(Serialize)]
pub(crate) struct BackupJson {
    directory: PathBuf,
    files: u64,
    bytes: u64,
    took_ms: u64,
}

impl Admin {
    pub(crate) async fn back_up(&self, NewBackup { directory }: NewBackup) -> Result<BackupJson, Error> {
        let BackedUp { files, bytes, took_ms } = self.shared().backups.back_up(directory.clone()).await?;
        Ok(BackupJson { directory, files, bytes, took_ms })
    }
}
