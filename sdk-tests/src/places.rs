//! Where things lie, and which ports are free.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Below the range from which outgoing connections take theirs, so that a port stays free while its process is down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
const PORT_TRIES: usize = 1000;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies one folder below the root")
}

/// The folder that holds the built binaries: the one this program was built into.
pub fn binaries() -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("find this program")?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}

/// Where downloads, stamps and the processes' own folders go; git ignores it.
pub fn scratch() -> Result<PathBuf> {
    let target = binaries()?.parent().context("find the target folder")?.to_owned();
    let scratch = target.join("sdk-tests");
    std::fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    Ok(scratch)
}

/// A new folder for one process, removed when dropped unless `SUREFOOT_KEEP_FILES` is set.
pub fn temporary(name: &str) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(name).disable_cleanup(std::env::var_os("SUREFOOT_KEEP_FILES").is_some());
    builder.tempdir_in(scratch()?).context("create a temporary folder")
}

/// A port on loopback that nobody listens on and that this process has not given out before.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("nobody panics while holding it");
    for _ in 0..PORT_TRIES {
        let port = fastrand::u16(PORTS);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("find a free port in {PORTS:?}")
}
