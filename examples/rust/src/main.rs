//! Serves the user feed and the delivery tracker.

use surefoot_example_rust::{Settings, serve};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    serve(Settings::from_environment()?).await
}
