//! The catalog's machine: what operators registered becomes rows, and rows become the value that the edges read (rule M2).
//!
//! Owns: both directions, through one function that changes the value. Does not own: validation, which happened at the edge, one
//! change at a time, against the value before.

use crate::apply::Context;
use crate::chore::Chore;
use crate::{CatalogKey, CatalogRow, CatalogRows, Effect, State, StateError, chore};
use std::sync::Arc;
use surefoot_model::catalog::{Catalog, CatalogEvent};
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
            catalog.deployments.insert(deployment.id, Arc::new(deployment.clone()));
            choose_services(catalog);
        }
        CatalogEvent::DeploymentDeleted(id) => {
            catalog.deployments.remove(id);
            choose_services(catalog);
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

/// The newest revision of each service wins.
fn choose_services(catalog: &mut Catalog) {
    catalog.services.clear();
    for deployment in catalog.deployments.values() {
        for service in &deployment.services {
            let newest = catalog.services.get(&service.name).is_none_or(|s| s.revision < service.revision);
            if newest {
                catalog.services.insert(service.name.clone(), Arc::new(service.clone()));
            }
        }
    }
}
