//! The languages whose SDK is tested, and the preparation of what they need from their package registries.
//!
//! Owns: which command fetches and builds what, doing so once, and naming a toolchain that is missing. What is fetched lies in
//! folders that git ignores. Does not own: versions, which the lock files in `examples/` pin.

use crate::places::{binaries, root, scratch};
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Comma-separated names of languages (and `kafka`, the broker) that a run leaves out.
const SKIP: &str = "SUREFOOT_SKIP_LANGUAGES";
/// Folders that hold what is fetched or built, not what it is built from.
const BUILT: [&str; 6] = ["node_modules", ".venv", "__pycache__", "target", "bin", "kafka"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    TypeScript,
    Python,
    Java,
    Go,
    Rust,
}

impl Language {
    pub const ALL: [Self; 5] = [Self::TypeScript, Self::Python, Self::Java, Self::Go, Self::Rust];

    /// As folders and `--skip` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TypeScript => "typescript",
            Self::Python => "python",
            Self::Java => "java",
            Self::Go => "go",
            Self::Rust => "rust",
        }
    }

    pub fn is_skipped(self) -> bool {
        is_skipped(self.name())
    }

    pub fn folder(self) -> PathBuf {
        root().join("examples").join(self.name())
    }

    /// Fetches and builds the example, unless that was done for its present sources.
    pub fn prepare(self) -> Result<()> {
        let folder = self.folder();
        once(self.name(), &folder, || match self {
            Self::TypeScript => run(Command::new("npm").args(["ci", "--no-fund", "--no-audit"]).current_dir(&folder)),
            Self::Python => {
                run(Command::new("python3").args(["-m", "venv", "--clear", ".venv"]).current_dir(&folder))?;
                let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"];
                run(Command::new(folder.join(".venv/bin/python")).args(pip).current_dir(&folder))
            }
            Self::Java => run(Command::new("mvn")
                .args(["--quiet", "--batch-mode", "package", "dependency:copy-dependencies", "-DincludeScope=runtime"])
                .current_dir(&folder)),
            Self::Go => run(Command::new("go").args(["build", "-o", "bin/surefoot-example", "."]).current_dir(&folder)),
            // A member of the workspace: cargo builds it beside the tests.
            Self::Rust => Ok(()),
        })
        .with_context(|| format!("prepare the {self} example (or leave it out: {SKIP}={})", self.name()))
    }

    /// What runs the prepared example: the process itself, with no wrapper that would survive a kill.
    pub fn command(self) -> Result<Command> {
        let folder = self.folder();
        let mut command = match self {
            Self::TypeScript => self.command_of(Path::new("src/main.ts"))?,
            Self::Python => self.command_of(Path::new("main.py"))?,
            Self::Java => {
                let mut command = Command::new("java");
                command.args(["-Xmx256m", "-cp", "target/classes:target/dependency/*", "example.Main"]);
                command
            }
            Self::Go => Command::new(folder.join("bin/surefoot-example")),
            Self::Rust => {
                let binary = binaries()?.join("surefoot-example-rust");
                ensure!(binary.exists(), "{} is missing; build it with `cargo build -p surefoot-example-rust`", binary.display());
                Command::new(binary)
            }
        };
        command.current_dir(folder);
        Ok(command)
    }

    /// What runs another program with the packages of the prepared example. Only where nothing has to be built.
    pub fn command_of(self, program: &Path) -> Result<Command> {
        let folder = self.folder();
        let interpreter = match self {
            Self::TypeScript => {
                let packaged = folder.join("node_modules/.bin/node");
                if packaged.exists() { packaged } else { "node".into() }
            }
            Self::Python => folder.join(".venv/bin/python"),
            Self::Java | Self::Go | Self::Rust => bail!("{self} has no interpreter"),
        };
        let mut command = Command::new(interpreter);
        command.arg(program).current_dir(folder);
        Ok(command)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether tests that need the broker are left out.
pub fn is_broker_skipped() -> bool {
    is_skipped("kafka")
}

fn is_skipped(name: &str) -> bool {
    std::env::var(SKIP).is_ok_and(|list| list.split(',').any(|entry| entry.trim().eq_ignore_ascii_case(name)))
}

/// Fetches the broker's jars, unless they are there.
pub fn prepare_broker() -> Result<()> {
    let folder = root().join("sdk-tests/kafka");
    let jars = scratch()?.join("kafka");
    once("kafka", &folder, || {
        let output = format!("-DoutputDirectory={}", jars.display());
        let goal = ["--quiet", "--batch-mode", "dependency:copy-dependencies", "-DincludeScope=runtime", &output];
        run(Command::new("mvn").args(goal).current_dir(&folder))
    })
    .with_context(|| format!("prepare the Kafka broker (or leave it out: {SKIP}=kafka)"))
}

/// Prepares all that is not left out, saying what it does.
pub fn prepare_all() -> Result<()> {
    if !is_broker_skipped() {
        println!("preparing the Kafka broker");
        prepare_broker()?;
    }
    for language in Language::ALL.into_iter().filter(|language| !language.is_skipped()) {
        println!("preparing {language}");
        language.prepare()?;
    }
    Ok(())
}

/// Runs `work` unless it has succeeded before on the same content of `folder`.
fn once(name: &str, folder: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = scratch()?.join(format!("{name}.stamp"));
    let mut hasher = DefaultHasher::new();
    hash_sources(folder, &mut hasher)?;
    // The stamp also goes stale with the folder it was made for: a moved checkout starts afresh.
    folder.hash(&mut hasher);
    let wanted = format!("{:016x}\n", hasher.finish());
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    work()?;
    std::fs::write(&stamp, wanted).context("write the stamp")
}

fn hash_sources(folder: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if !BUILT.iter().any(|built| path.ends_with(built)) {
                hash_sources(&path, hasher)?;
            }
        } else {
            path.file_name().hash(hasher);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))?.hash(hasher);
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("`{program}` is not installed"),
        Err(error) => return Err(error).with_context(|| format!("start {program}")),
    };
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "`{program}` failed ({})\n{told}", output.status);
    Ok(())
}
