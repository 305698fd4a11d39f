//! The tables of a partition: layers in memory over an embedded ordered key-value engine, written back at checkpoints.
//!
//! Owns: the bytes of keys, the layers and what they promise (rules C1 to C4, M3), the engine seam with its two versions, and the
//! applied LSN at rest. Does not own: when a checkpoint is taken, on which thread it runs, or when the log is trimmed
//! (`partition`); the tables and their meaning (`machine`); the bytes of values (`model::encoding`).

mod check;
mod checkpoint;
mod codec;
mod engine;
pub mod keys;
mod layer;
mod scan;
mod store;
mod view;
mod weight;

pub use check::{CheckedRows, check_rows};
pub use checkpoint::{Checkpoint, Checkpointed, Failure};
#[cfg(feature = "fjall")]
pub use engine::fjall::{FjallEngine, FjallOptions};
#[cfg(feature = "fjall")]
pub use engine::inspect::{CheckedFiles, FileFault, check_files, view_of_files};
pub use engine::mem::MemEngine;
pub use engine::{Batch, Change, Engine, EngineFiles, Given, Pieces, RawEntry, View};
pub use scan::{Known, Limit, Piece, Row};
pub use store::{Error, Mutant, Reader, RetiredLayers, Store, Txn};
pub use view::PartitionView;
