//! `cargo xtask check`: what can be said about the code without running it.
//!
//! Every step resolves features for the whole workspace with its development dependencies, as `cargo xtask test` does, so that
//! both share one target folder and no dependency is built for two sets of features. Whether generated files are fresh is told
//! by tests next to their generators (`*_is_fresh`), since only the built code knows what it would generate.

use crate::command::{cargo, root, step, works};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    if root().join("examples/rust/Cargo.toml").exists() {
        // A workspace of its own: users copy it.
        step("format examples/rust", &mut cargo(&["fmt", "--manifest-path", "examples/rust/Cargo.toml", "--check"]))?;
    }
    step("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Asking for examples, too, makes cargo resolve development dependencies: the same features as everywhere else.
    let documentation = ["doc", "--workspace", "--no-deps", "--lib", "--bins", "--examples"];
    step("documentation", cargo(&documentation).env("RUSTDOCFLAGS", "-D warnings"))?;
    if works("cargo", &["deny", "--version"]) {
        step("dependencies", &mut cargo(&["deny", "check"]))?;
    } else {
        println!("── dependencies: skipped, cargo-deny is not installed (cargo install cargo-deny)");
    }
    println!("── check: ok");
    Ok(())
}
