//! The delivery tracker: a delivery's state lives with its key.

use restate_sdk::prelude::*;
use serde::{Deserialize, Serialize};

const DELIVERY: &str = "delivery";

/// One delivery per key: where it has been, in the order of the events.
pub struct DeliveryTracker;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Delivery {
    title: String,
    #[serde(default)]
    locations: Vec<Location>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Location {
    timestamp: i64,
    latitude: f64,
    longitude: f64,
}

#[object(name = "DeliveryTracker")]
impl DeliveryTracker {
    #[handler]
    async fn register(&self, ctx: ObjectContext<'_>, Json(delivery): Json<Delivery>) -> Result<(), HandlerError> {
        ctx.set(DELIVERY, Json(delivery));
        Ok(())
    }

    #[handler(name = "setLocation")]
    async fn set_location(&self, ctx: ObjectContext<'_>, Json(location): Json<Location>) -> Result<(), HandlerError> {
        let Json(mut delivery) = known(ctx.key(), ctx.get::<Json<Delivery>>(DELIVERY).await?)?;
        delivery.locations.push(location);
        ctx.set(DELIVERY, Json(delivery));
        Ok(())
    }

    #[handler(name = "getDelivery")]
    async fn get_delivery(&self, ctx: SharedObjectContext<'_>) -> Result<Json<Delivery>, HandlerError> {
        Ok(known(ctx.key(), ctx.get(DELIVERY).await?)?)
    }
}

/// A terminal error ends the invocation: it would be no use to try again.
fn known<T>(key: &str, delivery: Option<T>) -> Result<T, TerminalError> {
    delivery.ok_or_else(|| TerminalError::new_with_code(404, format!("delivery {key} is not registered")))
}
