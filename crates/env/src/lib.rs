//! What a node takes from the world: time, identity, tasks and disk, each behind one narrow trait.
//!
//! Owns: the traits and their production versions. Does not own: anything of Surefoot. Rooms that are simulated take an
//! [`Env`] in their constructor and reach the world through it alone; `sim` supplies another one.

mod clock;
mod disk;
mod ids;
#[cfg(feature = "sim")]
pub mod sim;
mod tasks;

pub use clock::{Clock, SystemClock};
pub use disk::{CopyContent, Disk, File, FileCopy, OsDisk, Space, is_out_of_descriptors, is_shortage};
pub use ids::{Ids, OsIds};
pub use tasks::{BoxFuture, OsTasks, Step, Steps, Tasks, Undone, Wake, yield_now};

use std::sync::Arc;

/// The world as one node sees it. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub tasks: Arc<dyn Tasks>,
    pub ids: Arc<dyn Ids>,
    pub disk: Arc<dyn Disk>,
}

impl Env {
    /// The real world: the operating system, and the tokio runtime that `handle` belongs to.
    pub fn production(handle: tokio::runtime::Handle) -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            tasks: Arc::new(OsTasks::new(handle)),
            ids: Arc::new(OsIds),
            disk: Arc::new(OsDisk),
        }
    }
}
