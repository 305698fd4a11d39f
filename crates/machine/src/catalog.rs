//! The catalog's machine: what operators registered becomes rows, and rows become the value that the edges read (rule M2).
//!
//! Owns: both directions, through one function that changes the value. Does not own: validation, which happened at the edge, one
//! change at a time, against the value before.

use crate::apply::Context;
use crate::chore::Chore;
use crate::{CatalogKey, CatalogRow, CatalogRows, Effect, State, StateError, chore};
use std::sync::Arc;
use surefoot_model::catalog::{Catalog, CatalogEvent, Deployment, Service, Subscription};
use surefoot_model::{DeploymentId, StreamId, SubscriptionId};

pub(crate) fn changed<S: State>(cx: &mut Context<S>, event: &CatalogEvent) -> Result<(), StateError> {
    match event {
        CatalogEvent::DeploymentRegistered(deployment) => {
            put(cx, CatalogKey::Deployment(deployment.id), CatalogRow::Deployment(deployment.clone()));
        }
        CatalogEvent::DeploymentDeleted(id) => cx.state.delete::<CatalogRows>(&CatalogKey::Deployment(*id)),
        CatalogEvent::KafkaClusterStored(cluster) => {
            put(cx, CatalogKey::KafkaCluster(cluster.name.clone()), CatalogRow::KafkaCluster(cluster.clone()));
        }
        CatalogEvent::KafkaClusterDeleted(name) => cx.state.delete::<CatalogRows>(&CatalogKey::KafkaCluster(name.clone())),
        CatalogEvent::SubscriptionStored(subscription, positions) => {
            put(cx, CatalogKey::Subscription(subscription.id), CatalogRow::Subscription(subscription.clone()));
            // Positions of earlier epochs are of no use any more.
            forget_positions(cx, subscription.id, subscription.epoch)?;
            put_positions(cx, positions);
        }
        CatalogEvent::SubscriptionClosing(id, closing) => {
            let key = CatalogKey::Subscription(*id);
            if let Some(CatalogRow::Subscription(subscription)) = cx.state.get::<CatalogRows>(&key)? {
                put(cx, key, CatalogRow::Subscription(Subscription { closing: Some(*closing), ..subscription }));
            }
        }
        CatalogEvent::SubscriptionDeleted(id) => {
            cx.state.delete::<CatalogRows>(&CatalogKey::Subscription(*id));
            forget_positions(cx, *id, u32::MAX)?;
        }
        CatalogEvent::PositionsAdvanced(positions) => {
            // One that comes after its subscription's deletion, or after its epoch, has nothing to belong to.
            for (stream, position) in positions {
                let row = cx.state.get::<CatalogRows>(&CatalogKey::Subscription(stream.subscription))?;
                if matches!(row, Some(CatalogRow::Subscription(subscription)) if subscription.epoch <= stream.epoch) {
                    put_positions(cx, &[(*stream, *position)]);
                }
            }
        }
    }
    cx.effect(Effect::PublishCatalog(Box::new(event.clone())));
    Ok(())
}

fn put<S: State>(cx: &mut Context<S>, key: CatalogKey, row: CatalogRow) {
    cx.state.put::<CatalogRows>(key, row);
}

fn put_positions<S: State>(cx: &mut Context<S>, positions: &[(StreamId, i64)]) {
    for (stream, position) in positions {
        put(cx, CatalogKey::Position(*stream), CatalogRow::Position(*position));
    }
}

/// The value has them no more; their rows go as fast as they can (rule M9).
fn forget_positions<S: State>(cx: &mut Context<S>, subscription: SubscriptionId, before_epoch: u32) -> Result<(), StateError> {
    chore::begin(cx, Chore::ForgetPositions { subscription, before_epoch, after: None })
}

/// The catalog as its rows say.
pub fn load(state: &impl State) -> Result<Catalog, StateError> {
    const STEP: usize = 1_000;
    let mut catalog = Catalog::default();
    let mut from = CatalogKey::Deployment(DeploymentId(0));
    loop {
        let rows = state.scan::<CatalogRows>(&from, None, STEP)?;
        let is_last = rows.len() < STEP;
        for (key, row) in rows {
            let event = match (&key, row) {
                (_, CatalogRow::Deployment(deployment)) => CatalogEvent::DeploymentRegistered(deployment),
                (_, CatalogRow::KafkaCluster(cluster)) => CatalogEvent::KafkaClusterStored(cluster),
                (_, CatalogRow::Subscription(subscription)) => CatalogEvent::SubscriptionStored(subscription, Vec::new()),
                (CatalogKey::Position(stream), CatalogRow::Position(position)) => {
                    CatalogEvent::PositionsAdvanced(vec![(*stream, position)])
                }
                (_, CatalogRow::Position(_)) => {
                    return Err(StateError { table: "catalog", message: format!("{key:?} holds a position") });
                }
            };
            update(&mut catalog, &event);
            from = key;
        }
        if is_last {
            return Ok(catalog);
        }
    }
}

/// Changes the value as the event says.
pub fn update(catalog: &mut Catalog, event: &CatalogEvent) {
    match event {
        CatalogEvent::DeploymentRegistered(deployment) => {
            let before = catalog.deployments.insert(deployment.id, Arc::new(deployment.clone()));
            before.iter().for_each(|before| leave_services(catalog, before));
            enter_services(catalog, deployment);
        }
        CatalogEvent::DeploymentDeleted(id) => {
            if let Some(gone) = catalog.deployments.remove(id) {
                leave_services(catalog, &gone);
            }
        }
        CatalogEvent::KafkaClusterStored(cluster) => {
            catalog.kafka_clusters.insert(cluster.name.clone(), Arc::new(cluster.clone()));
        }
        CatalogEvent::KafkaClusterDeleted(name) => {
            catalog.kafka_clusters.remove(name);
        }
        CatalogEvent::SubscriptionStored(subscription, positions) => {
            let (id, epoch) = (subscription.id, subscription.epoch);
            catalog.subscriptions.insert(id, Arc::new(subscription.clone()));
            catalog.positions.retain(|stream, _| stream.subscription != id || stream.epoch >= epoch);
            catalog.positions.extend(positions.iter().copied());
        }
        CatalogEvent::SubscriptionClosing(id, closing) => {
            if let Some(subscription) = catalog.subscriptions.get_mut(id) {
                Arc::make_mut(subscription).closing = Some(*closing);
            }
        }
        CatalogEvent::SubscriptionDeleted(id) => {
            catalog.subscriptions.remove(id);
            catalog.positions.retain(|stream, _| stream.subscription != *id);
        }
        CatalogEvent::PositionsAdvanced(positions) => {
            for (stream, position) in positions {
                // Rows of an earlier epoch may be there still, and go.
                let subscription = catalog.subscriptions.get(&stream.subscription);
                if subscription.is_some_and(|subscription| subscription.epoch <= stream.epoch) {
                    catalog.positions.insert(*stream, *position);
                }
            }
        }
    }
}

/// The newest revision of each service wins. Services of other names stay as they are, so that a change costs what is in it, and not
/// what there is.
fn enter_services(catalog: &mut Catalog, deployment: &Deployment) {
    for service in &deployment.services {
        if catalog.services.get(&service.name).is_none_or(|newest| newest.revision < service.revision) {
            catalog.services.insert(service.name.clone(), Arc::new(service.clone()));
        }
    }
}

/// A deployment is not there any more as it was: where it had the newest revision of a service, the one before counts.
fn leave_services(catalog: &mut Catalog, gone: &Deployment) {
    for Service { name, revision, .. } in &gone.services {
        if catalog.services.get(name).is_none_or(|newest| newest.revision != *revision) {
            continue;
        }
        let services = catalog.deployments.values().flat_map(|deployment| &deployment.services);
        let newest = services.filter(|service| service.name == *name).max_by_key(|service| service.revision).cloned();
        match newest {
            Some(newest) => catalog.services.insert(name.clone(), Arc::new(newest)),
            None => catalog.services.remove(name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use surefoot_model::Text;
    use surefoot_model::catalog::ServiceKind;

    /// A deployment with these services, each with its revision.
    fn deployment(number: u128, services: &[(u128, u32)]) -> Deployment {
        let service =
            |&(name, revision): &(u128, u32)| Service { revision, ..Service::new(&format!("S{name}"), ServiceKind::Service, []) };
        Deployment::at(DeploymentId(number), format!("http://{number}/")).serving(services.iter().map(service))
    }

    fn newest(catalog: &Catalog) -> Vec<(Text, u32, DeploymentId)> {
        catalog.services.values().map(|service| (service.name.clone(), service.revision, service.deployment)).collect()
    }

    /// What all deployments together say.
    fn chosen(catalog: &Catalog) -> Vec<(Text, u32, DeploymentId)> {
        let mut all = BTreeMap::<Text, (u32, DeploymentId)>::new();
        for service in catalog.deployments.values().flat_map(|deployment| &deployment.services) {
            let newest = all.entry(service.name.clone()).or_insert((service.revision, service.deployment));
            *newest = (service.revision, service.deployment).max(*newest);
        }
        all.into_iter().map(|(name, (revision, deployment))| (name, revision, deployment)).collect()
    }

    #[test]
    fn the_newest_revision_of_each_service_wins_whatever_is_registered_again_and_deleted() {
        let (mut catalog, mut revision) = (Catalog::default(), 0);
        // Numbers that look random, and are the same each time.
        let mut next = 12_345_u64;
        let mut below = |bound: u64| {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u128::from((next >> 33) % bound)
        };
        for _ in 0..3_000 {
            let id = below(12);
            let event = if below(3) == 0 {
                CatalogEvent::DeploymentDeleted(DeploymentId(id))
            } else {
                let mut services: Vec<(u128, u32)> = Vec::new();
                for name in 0..6 {
                    if below(3) == 0 {
                        revision += 1;
                        services.push((name, revision));
                    }
                }
                CatalogEvent::DeploymentRegistered(deployment(id, &services))
            };
            update(&mut catalog, &event);
            assert_eq!(newest(&catalog), chosen(&catalog));
        }
    }

    /// Each registration copied every service of every deployment.
    #[test]
    fn a_registration_leaves_other_services_as_they_are() {
        let mut catalog = Catalog::default();
        for number in 0..100 {
            update(&mut catalog, &CatalogEvent::DeploymentRegistered(deployment(number, &[(number, 1)])));
        }
        let before = catalog.services.clone();
        update(&mut catalog, &CatalogEvent::DeploymentRegistered(deployment(100, &[(7, 2), (100, 1)])));
        update(&mut catalog, &CatalogEvent::DeploymentDeleted(DeploymentId(8)));
        let is_same = |name: &&Text| catalog.services.get(*name).is_some_and(|service| Arc::ptr_eq(service, &before[*name]));
        assert_eq!(before.keys().filter(is_same).count(), 98, "all but the one that is newer, and the one that is gone");
    }
}
