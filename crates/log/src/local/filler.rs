//! The zero-filler: writes zeros through the next segment's file before it is needed, and takes trimmed segments out of the log.
//!
//! Owns: making, recycling and removing files, one disk operation per step, the reserve first (rule L8); and the mark that says how far
//! the log has gone (rule L2). Does not own: which segments may go (`segments`). Each change of a name is made durable before the next, and before the file is used again, so that
//! whatever a power loss leaves is a run of segments without a gap, and no file is written under a name it may lose. What finds no
//! room or no descriptor is tried again later, once what can be given back is: some file systems need room for a name. A mark that
//! comes late says less, and nothing false: it names a segment that was there, and what goes first are older ones.

use super::segments::{Spare, mark_path};
use super::{SHORT_RETRY, Shared, of_sync};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use surefoot_env::{Disk, File, Step, Steps, is_shortage};

/// Zeros per write.
const FILL_BYTES: usize = 256 << 10;
/// Zeros between two syncs: the writer's own syncs queue behind what is on its way to the disk by then.
const SYNC_BYTES: u64 = 4 << 20;
/// A file is made ready where so many times its size are free: what is left should not go into one that only may be needed.
const FREE_SHARE: u64 = 2;

pub(super) struct Filler {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    stage: Stage,
    /// The mark found no room, and nothing was given back since.
    mark_is_refused: bool,
}

enum Stage {
    Look,
    /// The log has gone on to this segment, whose header is durable. Then it goes on with what it was at.
    Mark {
        number: u64,
        then: Box<Stage>,
    },
    Remove {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        spare: Spare,
    },
    Create {
        spare: Spare,
    },
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
    /// There was no room for all of it.
    Abandon {
        path: PathBuf,
    },
    /// A name changed; once that is durable the spare can be used.
    SyncDir {
        ready: Option<Spare>,
        then: Box<Stage>,
    },
}

/// What a stage came to.
enum Next {
    Stage(Stage),
    /// Nothing to do before something changes.
    Rest,
    /// No room: look again in a while.
    Later,
}

impl Filler {
    pub(super) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { shared, disk, dir, stage: Stage::Look, mark_is_refused: false }
    }

    /// What is to be done, the most useful first: giving back room, then making use of it.
    fn look(&mut self) -> io::Result<Next> {
        let mut segments = self.shared.segments();
        let unmarked = segments.unmarked();
        if let Some(number) = unmarked
            && !self.mark_is_refused
        {
            return Ok(Next::Stage(Stage::Mark { number, then: Box::new(Stage::Look) }));
        }
        if let Some(surplus) = segments.take_surplus() {
            return Ok(Next::Stage(Stage::Remove { path: surplus.path }));
        }
        if let Some(trimmed) = segments.take_covered() {
            let next = if segments.has_use_for(trimmed.file_bytes) {
                let spare = Spare { path: segments.spare_path(), file_bytes: trimmed.file_bytes };
                Stage::Rename { from: trimmed.path, spare }
            } else {
                Stage::Remove { path: trimmed.path }
            };
            return Ok(Next::Stage(next));
        }
        self.mark_is_refused = false;
        if unmarked.is_some() {
            return Ok(Next::Later);
        }
        let Some(spare) = segments.wanted() else { return Ok(Next::Rest) };
        drop(segments);
        let free = self.disk.space(&self.dir)?.free;
        if free / FREE_SHARE < spare.file_bytes { Ok(self.refused()) } else { Ok(Next::Stage(Stage::Create { spare })) }
    }

    /// A file could not be made: the writer makes do without a spare until the next segment, and the reserve is missed until there is one.
    fn refused(&self) -> Next {
        let mut segments = self.shared.segments();
        if segments.reserve.is_none() {
            return Next::Later;
        }
        segments.spare_refused = true;
        Next::Stage(Stage::Look)
    }

    /// Does a stage's disk operation. A shortage leaves behind what is to be done once it is over.
    fn work(&mut self) -> io::Result<Next> {
        let stage = std::mem::replace(&mut self.stage, Stage::Look);
        let (again, error) = match stage {
            Stage::Look => return self.look(),
            Stage::Mark { number, then } => {
                let marked = self.shared.segments().marked;
                let to = mark_path(&self.dir, number);
                let done = match marked {
                    Some(marked) => self.disk.rename(&mark_path(&self.dir, marked), &to),
                    None => self.disk.create(&to).map(drop),
                };
                match done {
                    Ok(()) => {
                        self.shared.segments().marked = Some(number);
                        return Ok(Next::Stage(Stage::SyncDir { ready: None, then }));
                    }
                    Err(error) if is_shortage(&error) => {
                        self.mark_is_refused = true;
                        return Ok(Next::Stage(*then));
                    }
                    Err(error) => return Err(error),
                }
            }
            Stage::Remove { path } => match self.disk.remove(&path) {
                Ok(()) => {
                    self.mark_is_refused = false;
                    return Ok(Next::Stage(Stage::SyncDir { ready: None, then: Box::new(Stage::Look) }));
                }
                Err(error) => (Stage::Remove { path }, error),
            },
            Stage::Rename { from, spare } => match self.disk.rename(&from, &spare.path) {
                Ok(()) => return Ok(Next::Stage(Stage::SyncDir { ready: Some(spare), then: Box::new(Stage::Look) })),
                // There is more use for its room than for the file.
                Err(error) if is_shortage(&error) => return Ok(Next::Stage(Stage::Remove { path: from })),
                Err(error) => return Err(error),
            },
            Stage::Create { spare } => match self.disk.create(&spare.path) {
                Ok(file) => return Ok(Next::Stage(Stage::Fill { file, spare, filled: 0 })),
                Err(_) => return Ok(self.refused()),
            },
            Stage::Fill { file, spare, filled } => {
                // Zeros may take long: nobody could tell meanwhile that the log has gone on.
                let unmarked = self.shared.segments().unmarked().filter(|_| !self.mark_is_refused);
                if let Some(number) = unmarked {
                    let then = Box::new(Stage::Fill { file, spare, filled });
                    return Ok(Next::Stage(Stage::Mark { number, then }));
                }
                let bytes = (spare.file_bytes - filled).min(FILL_BYTES as u64);
                if file.write_zeros(filled, bytes as usize).is_err() {
                    return Ok(Next::Stage(Stage::Abandon { path: spare.path }));
                }
                let filled = filled + bytes;
                let syncs = filled == spare.file_bytes || filled.is_multiple_of(SYNC_BYTES);
                return Ok(Next::Stage(match syncs {
                    true => Stage::SyncFilled { file, spare, filled },
                    false => Stage::Fill { file, spare, filled },
                }));
            }
            // What is left of it would hold the room that others need. If it stays, the next start removes it or makes use of it.
            Stage::Abandon { path } => {
                let _ = self.disk.remove(&path);
                return Ok(self.refused());
            }
            Stage::SyncFilled { file, spare, filled } => {
                file.sync_data().map_err(of_sync)?;
                let is_full = filled == spare.file_bytes;
                let next = match is_full {
                    true => Stage::SyncDir { ready: Some(spare), then: Box::new(Stage::Look) },
                    false => Stage::Fill { file, spare, filled },
                };
                return Ok(Next::Stage(next));
            }
            Stage::SyncDir { ready, then } => match self.shared.sync_dir(&*self.disk, &self.dir) {
                Ok(()) => {
                    if let Some(spare) = ready {
                        self.shared.segments().ready(spare);
                        // It may wait for room.
                        self.shared.writer_wake.wake();
                    }
                    return Ok(Next::Stage(*then));
                }
                Err(error) => (Stage::SyncDir { ready, then }, error),
            },
        };
        self.stage = again;
        if is_shortage(&error) { Ok(Next::Later) } else { Err(error) }
    }
}

impl Steps for Filler {
    fn step(&mut self) -> Step {
        let step = match self.shared.is_over() {
            true => Step::Done,
            false => match self.work() {
                Ok(Next::Stage(stage)) => {
                    self.stage = stage;
                    Step::Worked
                }
                Ok(Next::Rest) => Step::Idle,
                Ok(Next::Later) => Step::IdleFor(SHORT_RETRY),
                Err(error) => {
                    self.shared.fail(&format!("prepare a log segment in {}: {error}", self.dir.display()));
                    Step::Done
                }
            },
        };
        if step == Step::Done {
            self.shared.filler_ended.wake();
        }
        step
    }
}
