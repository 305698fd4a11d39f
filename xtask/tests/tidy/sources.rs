//! The repository's files, as git knows them: tracked, and new ones that are not ignored.
//!
//! Does not own: any rule.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Rooms that run in simulation: nothing of the world but through `env` and the seams.
pub(crate) const SIMULATED: [&str; 11] =
    ["model", "listener", "machine", "storage", "log", "protocol", "invoker", "partition", "kafka", "ingress", "server"];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

pub(crate) struct Source {
    /// Below the root.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// The room whose code this is (`log` for `crates/log/src/local.rs`), if it is a room's code.
    pub(crate) fn room(&self) -> Option<&str> {
        let (room, inside) = self.path.strip_prefix("crates/")?.split_once('/')?;
        inside.starts_with("src/").then_some(room)
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.room().is_some_and(|room| SIMULATED.contains(&room))
    }

    /// The numbered lines that ship: without those of test modules and files.
    pub(crate) fn shipped(&self) -> Vec<(usize, &str)> {
        if self.path.contains("/tests/") || self.path.ends_with("/tests.rs") {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let mut all = self.text.lines().enumerate().map(|(n, line)| (n + 1, line)).peekable();
        while let Some((n, line)) = all.next() {
            if line.trim() != "#[cfg(test)]" {
                lines.push((n, line));
                continue;
            }
            // A test module's file follows the name rule above; one written in place ends with its closing brace.
            let indent = line.len() - line.trim_start().len();
            for (_, line) in all.by_ref() {
                let at_level = line.len() - line.trim_start().len() == indent;
                if at_level && (line.trim_end().ends_with(';') || line.trim() == "}") {
                    break;
                }
            }
        }
        lines
    }
}

/// Every text file whose path passes.
pub(crate) fn files(wanted: impl Fn(&str) -> bool) -> Vec<Source> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the repository's files");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).unwrap();
    let paths = paths.split('\0').filter(|path| !path.is_empty() && wanted(path));
    // Deleted but not yet committed, binary, or a link to a folder: nothing to read.
    paths
        .filter_map(|path| Some(Source { path: path.to_owned(), text: std::fs::read_to_string(root().join(path)).ok()? }))
        .collect()
}

/// The Rust files of the workspace.
pub(crate) fn rust() -> Vec<Source> {
    let files = files(|path| path.ends_with(".rs") && !path.starts_with("examples/"));
    assert!(files.len() > 20, "the workspace's files were not found");
    files
}

/// The folders of the rooms that exist.
pub(crate) fn room_dirs() -> Vec<PathBuf> {
    let crates = root().join("crates").read_dir().unwrap();
    crates.map(|entry| entry.unwrap().path()).filter(|dir| dir.join("Cargo.toml").exists()).collect()
}

/// The code of a line: without its comment. Good enough for rules about identifiers; `//` within a string ends the line, too.
pub(crate) fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// Whether `word` occurs in `text` with no identifier character on either side.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(part_of_word) && !text[at + word.len()..].starts_with(part_of_word))
}

pub(crate) fn expect_none(rule: &str, mut faults: Vec<String>) {
    faults.sort();
    assert!(faults.is_empty(), "{rule}\n  {}", faults.join("\n  "));
}

#[test]
fn test_modules_do_not_ship() {
    let text =
        "//! Head.\nuse a;\n#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\nmod more {\n    fn g() {\n    }\n}\nfn h() {}\n";
    let source = Source { path: "crates/log/src/lib.rs".into(), text: text.into() };
    let shipped: Vec<&str> = source.shipped().into_iter().map(|(_, line)| line).collect();
    assert_eq!(shipped, ["//! Head.", "use a;", "fn f() {}", "fn h() {}"]);
}
