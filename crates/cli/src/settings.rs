//! Where settings of a command come from: its arguments, the environment, and a file.
//!
//! Owns: reading them. Does not own: their names and values (`server`).

use anyhow::Context;
use std::path::PathBuf;
use surefoot_server::config::Sources;

/// `flags` are settings by their names, with the argument that gave each.
pub(crate) fn sources(
    file: Option<PathBuf>,
    flags: impl IntoIterator<Item = (&'static str, Option<String>, &'static str)>,
) -> anyhow::Result<Sources> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read the settings in {}", path.display()))?;
        anyhow::Ok((path, text))
    };
    Ok(Sources {
        file: file.map(read).transpose()?,
        // Names and values that are not UTF-8 are no settings.
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        flags: flags.into_iter().filter_map(|(key, value, flag)| Some((key, value?, flag))).collect(),
    })
}

/// Which data directory a command is about that does not start a node.
#[derive(Debug, clap::Args)]
pub(crate) struct DataDirArguments {
    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory [default: ./surefoot-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl DataDirArguments {
    pub(crate) fn path(self) -> anyhow::Result<PathBuf> {
        let sources = sources(self.config, [("base-dir", self.data_dir, "--data-dir")])?;
        Ok(surefoot_server::config::load(&sources)?.config.base_dir)
    }
}
