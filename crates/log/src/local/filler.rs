//! The zero-filler: writes zeros through the next segment's file before it is needed, and takes trimmed segments out of the log.
//!
//! Owns: making, recycling and removing files, one disk operation per step. Does not own: which segments may go (`segments`).
//! Each change of a name is made durable before the next, and before the file is used again, so that whatever a power loss
//! leaves is a run of segments without a gap, and no file is written under a name it may lose.

use super::Shared;
use super::segments::Spare;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use surefoot_env::{Disk, File, Step, Steps};

/// Zeros per write.
const FILL_BYTES: usize = 256 << 10;
/// Zeros between two syncs: the writer's own syncs queue behind what is on its way to the disk by then.
const SYNC_BYTES: u64 = 4 << 20;

pub(super) struct Filler {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    stage: Stage,
}

enum Stage {
    Look,
    Fill {
        file: Box<dyn File>,
        spare: Spare,
        filled: u64,
    },
    SyncFilled {
        file: Box<dyn File>,
        spare: Spare,
        filled: u64,
    },
    /// A name changed; once that is durable the spare can be used.
    SyncDir {
        ready: Option<Spare>,
    },
    /// No room for a spare: the writer makes do without.
    Abandon {
        path: PathBuf,
    },
}

impl Filler {
    pub(super) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { shared, disk, dir, stage: Stage::Look }
    }

    fn look(&mut self) -> io::Result<Step> {
        let mut segments = self.shared.segments();
        if let Some(surplus) = segments.take_surplus() {
            drop(segments);
            self.disk.remove(&surplus.path)?;
            self.stage = Stage::SyncDir { ready: None };
        } else if let Some(trimmed) = segments.take_covered() {
            let ready =
                segments.fits(trimmed.file_bytes).then(|| Spare { path: segments.spare_path(), file_bytes: trimmed.file_bytes });
            drop(segments);
            match &ready {
                Some(spare) => self.disk.rename(&trimmed.path, &spare.path)?,
                None => self.disk.remove(&trimmed.path)?,
            }
            self.stage = Stage::SyncDir { ready };
        } else if segments.wants_spare() {
            let spare = Spare { file_bytes: segments.capacity_wanted(), path: segments.spare_path() };
            drop(segments);
            self.stage = match self.disk.create(&spare.path) {
                Ok(file) => Stage::Fill { file, spare, filled: 0 },
                Err(_) => Stage::Abandon { path: spare.path },
            };
        } else {
            return Ok(Step::Idle);
        }
        Ok(Step::Worked)
    }

    fn work(&mut self) -> io::Result<Step> {
        match std::mem::replace(&mut self.stage, Stage::Look) {
            Stage::Look => return self.look(),
            Stage::Fill { file, spare, filled } => {
                let bytes = (spare.file_bytes - filled).min(FILL_BYTES as u64);
                let written = file.write_zeros(filled, bytes as usize);
                let filled = filled + bytes;
                self.stage = match written {
                    Err(_) => Stage::Abandon { path: spare.path },
                    Ok(()) if filled == spare.file_bytes || filled % SYNC_BYTES == 0 => Stage::SyncFilled { file, spare, filled },
                    Ok(()) => Stage::Fill { file, spare, filled },
                };
            }
            Stage::SyncFilled { file, spare, filled } => {
                file.sync_data()?;
                let is_full = filled == spare.file_bytes;
                self.stage = if is_full { Stage::SyncDir { ready: Some(spare) } } else { Stage::Fill { file, spare, filled } };
            }
            Stage::SyncDir { ready } => {
                self.shared.sync_dir(&*self.disk, &self.dir)?;
                self.shared.segments().spares.extend(ready);
            }
            Stage::Abandon { path } => {
                self.shared.segments().spare_refused = true;
                // What is left of it is removed or taken up by the next start.
                let _ = self.disk.remove(&path);
            }
        }
        Ok(Step::Worked)
    }
}

impl Steps for Filler {
    fn step(&mut self) -> Step {
        let step = match self.shared.is_over() {
            true => Step::Done,
            false => self.work().unwrap_or_else(|error| {
                self.shared.fail(&format!("prepare a log segment in {}: {error}", self.dir.display()));
                Step::Done
            }),
        };
        if step == Step::Done {
            self.shared.filler_ended.wake();
        }
        step
    }
}
