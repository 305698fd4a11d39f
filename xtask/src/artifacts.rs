//! One build of the whole workspace, and the executables it left.
//!
//! Owns: the build's command line, and reading cargo's messages. Running the executables directly, in place of `cargo test -p`,
//! keeps one set of features: selecting packages would build shared dependencies again for each selection.

use crate::command::{cargo, expect_success, root};
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// An executable of the workspace.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The package's folder below the root: `crates/log`, `sdk-tests`.
    pub(crate) package: String,
    /// The target's name, and `lib`, `bin`, `test`, `bench` or `example`.
    pub(crate) target: String,
    pub(crate) kind: String,
    /// Whether it is a test harness.
    pub(crate) is_test: bool,
    pub(crate) path: PathBuf,
}

impl Executable {
    /// How reports name it: `crates/log lib`.
    pub(crate) fn name(&self) -> String {
        match self.kind.as_str() {
            "lib" => format!("{} lib", self.package),
            kind => format!("{} {kind} {}", self.package, self.target),
        }
    }

    pub(crate) fn package_dir(&self) -> PathBuf {
        root().join(&self.package)
    }
}

/// What to build.
#[derive(Clone, Copy)]
pub(crate) enum Targets<'a> {
    /// All targets of all packages.
    All,
    /// Integration tests of this name alone, with the features that they have among all.
    Test(&'a str),
}

/// Builds targets in the dev profile.
pub(crate) fn build(targets: Targets<'_>) -> Result<Vec<Executable>> {
    let mut command = match targets {
        Targets::All => cargo(&["build", "--workspace", "--all-targets"]),
        Targets::Test(name) => cargo(&["build", "--workspace", "--test", name]),
    };
    command.arg("--message-format=json-render-diagnostics");
    println!("── build: {}", if let Targets::Test(name) = targets { name } else { "all targets of the workspace" });
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo build")?;
    let stdout = child.stdout.take().expect("the output was asked for as a pipe");
    let mut executables = Vec::new();
    for line in BufReader::new(stdout).lines() {
        executables.extend(executable(&root(), &line.context("read cargo's messages")?));
    }
    expect_success("build", &command, child.wait().context("wait for cargo build")?)?;
    executables.sort_by_key(Executable::name);
    Ok(executables)
}

/// The executable that one line of cargo's messages tells of, if it tells of one.
fn executable(root: &Path, line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let path = message["executable"].as_str()?;
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(Executable {
        package: manifest.parent()?.strip_prefix(root).ok()?.to_str()?.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        is_test: message["profile"]["test"].as_bool()?,
        path: path.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_harness_is_found_among_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///r/crates/log#surefoot-log@0.1.0",
            "manifest_path":"/r/crates/log/Cargo.toml","target":{"kind":["test"],"name":"torn"},
            "profile":{"test":true},"executable":"/r/target/debug/deps/torn-1","fresh":true}"#;
        let found = executable(Path::new("/r"), line).unwrap();
        assert_eq!(found.name(), "crates/log test torn");
        assert!(found.is_test);
        assert!(executable(Path::new("/r"), &line.replace("/r/crates/log", "/registry/log")).is_none());
        assert!(executable(Path::new("/r"), r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(executable(Path::new("/r"), "a line of a build script").is_none());
    }
}
