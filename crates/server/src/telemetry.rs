//! Metrics of the process.
//!
//! Owns: the recorder behind the `metrics` crate, which is one per process, and its page. Does not own: names of metrics (each room
//! has its own), or logs (`cli`).

use metrics_exporter_prometheus::PrometheusBuilder;
use std::sync::Arc;
use std::time::Duration;
use surefoot_admin::MetricsPage;
use surefoot_env::Env;

/// How often samples are folded into summaries; between two of them each sample is kept.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Installs the recorder of this process and returns its page. **Errors**: there is one already.
pub fn install_metrics(env: &Env) -> Result<MetricsPage, metrics_exporter_prometheus::BuildError> {
    let recorder = PrometheusBuilder::new().install_recorder()?;
    let (upkeep, clock) = (recorder.clone(), env.clock.clone());
    env.tasks.spawn(Box::pin(async move {
        loop {
            clock.sleep(UPKEEP_INTERVAL).await;
            upkeep.run_upkeep();
        }
    }));
    Ok(Arc::new(move || recorder.render()))
}
