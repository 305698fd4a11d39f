//! What a partition publishes: one instant of its tables, for readers on other threads (rule C4).
//!
//! Owns: an immutable value of memory layers and the engine's view that belongs to them. It is the only thing that readers take;
//! nobody puts layers and an engine's view together again. Does not own: when layers are sealed, and what becomes of them once
//! no view holds them (`store`).

use crate::engine::View;
use crate::layer::Layer;
use crate::scan::Layers;
use crate::store::Reader;
use std::sync::Arc;
use surefoot_model::{Lsn, PartitionId};

/// A partition's tables as they were at one LSN. It stays as it is whatever is applied, checkpointed or refreshed meanwhile; but
/// it keeps layers in memory and overwritten entries in the engine: drop it soon.
pub struct PartitionView {
    pub(crate) partition: PartitionId,
    pub(crate) applied: Lsn,
    /// Oldest first.
    pub(crate) layers: Vec<Arc<Layer>>,
    pub(crate) engine: Arc<dyn View>,
}

impl PartitionView {
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The last record that it shows.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    pub fn read(&self) -> Reader<'_> {
        Reader { layers: Layers { partition: self.partition, active: None, below: &self.layers, view: &*self.engine } }
    }
}
