//! The value of the catalog that its partition publishes for the edges to read (rule M2).
//!
//! Owns: the newest value, and who is told of a change. Does not own: what a change makes of it (`machine`).

use std::sync::Arc;
use surefoot_env::Wake;
use surefoot_machine::{StateError, catalog};
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{Catalog, CatalogCell};
use surefoot_storage::Store;

/// Of the catalog's partition only.
pub(crate) struct CatalogPublisher {
    value: Arc<Catalog>,
    cell: CatalogCell,
    /// Woken after each change that decides what runs.
    changed: Vec<Wake>,
}

impl CatalogPublisher {
    pub(crate) fn new(cell: CatalogCell, changed: Vec<Wake>) -> Self {
        Self { value: Arc::default(), cell, changed }
    }

    /// A term of this process begins: the value is what the tables say.
    pub(crate) fn begin_term(&mut self, store: &mut Store) -> Result<(), StateError> {
        // A transaction that is dropped reads and changes nothing.
        self.value = Arc::new(catalog::load(&store.begin())?);
        self.publish();
        self.changed.iter().for_each(Wake::wake);
        Ok(())
    }

    pub(crate) fn on_change(&mut self, event: &CatalogEvent) {
        catalog::update(Arc::make_mut(&mut self.value), event);
        self.publish();
        // Positions move all the time, and decide nothing about what runs.
        if !matches!(event, CatalogEvent::PositionsAdvanced(_)) {
            self.changed.iter().for_each(Wake::wake);
        }
    }

    fn publish(&self) {
        self.cell.publish(self.value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{empty_store, was_woken, write};
    use std::collections::BTreeMap;
    use surefoot_machine::{CatalogKey, CatalogRow, CatalogRows, State};
    use surefoot_model::Timestamp;
    use surefoot_model::catalog::KafkaCluster;

    fn cluster(name: &str) -> KafkaCluster {
        KafkaCluster { name: name.into(), properties: BTreeMap::new(), created_at: Timestamp(0) }
    }

    #[test]
    fn the_published_value_is_the_tables_and_every_change_since() {
        let (mut store, cell, wake) = (empty_store(), CatalogCell::default(), Wake::new());
        write(&mut store, |txn| {
            txn.put::<CatalogRows>(CatalogKey::KafkaCluster("old".into()), CatalogRow::KafkaCluster(cluster("old")));
        });
        let mut publisher = CatalogPublisher::new(cell.clone(), vec![wake.clone()]);
        publisher.begin_term(&mut store).unwrap();
        assert!(was_woken(&wake));
        publisher.on_change(&CatalogEvent::KafkaClusterStored(cluster("new")));
        let names: Vec<_> = cell.load().kafka_clusters.keys().map(|name| name.to_string()).collect();
        assert_eq!((names, was_woken(&wake)), (vec!["new".to_owned(), "old".to_owned()], true));
        publisher.on_change(&CatalogEvent::PositionsAdvanced(Vec::new()));
        assert!(!was_woken(&wake), "positions decide nothing about what runs");
    }
}
