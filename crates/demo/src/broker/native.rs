//! What librdkafka's mock cluster offers and its Rust binding does not: how long an empty group waits for members.
#![allow(unsafe_code, reason = "the safe binding of the mock cluster has no way to set this")]

use anyhow::{Context, Result, ensure};
use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};
use std::time::Duration;

/// For the groups of the mock cluster that lives in `client`. **Errors**: there is none.
pub(super) fn set_join_delay<C: ClientContext>(client: &Client<C>, delay: Duration) -> Result<()> {
    let delay_ms = i32::try_from(delay.as_millis()).context("take a shorter delay")?;
    // SAFETY: the client lives until after both calls, and the cluster as long as its client.
    unsafe {
        let cluster = ffi::rd_kafka_handle_mock_cluster(client.native_ptr());
        ensure!(!cluster.is_null(), "the client has no mock cluster");
        ffi::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, delay_ms);
    }
    Ok(())
}
