//! A file system of few bytes, in memory, under a directory of a test.
//!
//! Owns: mounting and unmounting it, and the ballast in it. Does not own: what a server makes of it. Mounting needs the rights of root.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Volume(PathBuf);

impl Volume {
    /// Mounts so many bytes at `path`, which is made. None, said aloud, where this process may not mount.
    pub fn mount(path: &Path, bytes: u64) -> Result<Option<Self>> {
        fs::create_dir_all(path).context("make the mount point")?;
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output();
        match mounted {
            Ok(done) if done.status.success() => Ok(Some(Self(path.to_owned()))),
            refused => {
                println!("skipped: cannot mount a tmpfs here: {refused:?}");
                Ok(None)
            }
        }
    }

    /// Writes a file of so many bytes, or of as many as there is room for.
    pub fn load(&self, bytes: u64) -> Result<()> {
        const PIECE: [u8; 4096] = [1; 4096];
        let mut ballast = fs::File::options().create(true).append(true).open(self.ballast()).context("open the ballast")?;
        for _ in 0..bytes / PIECE.len() as u64 {
            match ballast.write_all(&PIECE) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                written => written.context("write the ballast")?,
            }
        }
        Ok(())
    }

    /// Removes the ballast.
    pub fn unload(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("remove the ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn unmount(&self) -> Result<()> {
        // What still has files open loses them with its end.
        let done = Command::new("umount").arg("-l").arg(&self.0).status().context("start umount")?;
        ensure!(done.success(), "umount: {done}");
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            println!("{} stays mounted: {error:#}", self.0.display());
        }
    }
}
