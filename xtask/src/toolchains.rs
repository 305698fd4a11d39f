//! What the tests need besides Rust, and how to leave it out.
//!
//! Owns: the table of names that `--skip` takes and the programs each needs. Does not own: versions, and fetching packages;
//! `sdk-tests` prepares both and says what is wrong.

use crate::command::works;
use anyhow::{Result, bail};

pub(crate) struct Toolchain {
    /// What `--skip` calls it.
    pub(crate) name: &'static str,
    pub(crate) purpose: &'static str,
    /// Programs that must start, each with the arguments that make it only say its version.
    programs: &'static [(&'static str, &'static [&'static str])],
}

pub(crate) const TOOLCHAINS: &[Toolchain] = &[
    Toolchain {
        name: "typescript",
        purpose: "the TypeScript SDK",
        programs: &[("node", &["--version"]), ("npm", &["--version"])],
    },
    Toolchain {
        name: "java",
        purpose: "the Java SDK",
        programs: &[("javac", &["-version"]), ("java", &["-version"]), ("mvn", &["--version"])],
    },
    Toolchain {
        name: "python",
        purpose: "the Python SDK",
        programs: &[("python3", &["-m", "venv", "--help"]), ("python3", &["-m", "pip", "--version"])],
    },
    Toolchain { name: "go", purpose: "the Go SDK", programs: &[("go", &["version"])] },
    Toolchain { name: "rust", purpose: "the Rust SDK", programs: &[] },
    Toolchain { name: "kafka", purpose: "the real Kafka broker", programs: &[("java", &["-version"]), ("mvn", &["--version"])] },
];

/// Fails with all that is missing, before the long build and not after it.
pub(crate) fn expect_installed(skipped: &[String]) -> Result<()> {
    let needed = TOOLCHAINS.iter().filter(|toolchain| !skipped.iter().any(|name| name == toolchain.name));
    let missing: Vec<String> = needed.flat_map(missing).collect();
    if !missing.is_empty() {
        bail!("toolchains are missing\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn missing(toolchain: &Toolchain) -> Vec<String> {
    let lacking = toolchain.programs.iter().filter(|(program, arguments)| !works(program, arguments));
    lacking
        .map(|(program, arguments)| {
            let Toolchain { name, purpose, .. } = toolchain;
            format!(
                "`{program} {}` does not work: install it for {purpose}, or leave that out with --skip {name}",
                arguments.join(" ")
            )
        })
        .collect()
}
