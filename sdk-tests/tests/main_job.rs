//! The two programs of `examples/` on a real Kafka broker, with kills, once per language.

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Conclusion, Trial};
use std::sync::{Arc, Mutex};
use surefoot_sdk_tests::{Broker, Language, driver, languages, seed};

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let runtime = Arc::new(tokio::runtime::Runtime::new().context("start a runtime")?);
    // Started by the first test that runs, and held by one at a time.
    let broker: Arc<Mutex<Option<Broker>>> = Arc::default();
    let trials = Language::ALL.map(|language| {
        let (runtime, broker) = (Arc::clone(&runtime), Arc::clone(&broker));
        let test = move || {
            let mut broker = broker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            runtime.block_on(run(language, &mut broker)).map_err(|error| format!("{error:#}").into())
        };
        Trial::test(language.name(), test).with_ignored_flag(language.is_skipped() || languages::is_broker_skipped())
    });
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials.into());
    // Before the exit, which runs no destructors.
    drop(broker);
    conclusion.exit()
}

async fn run(language: Language, broker: &mut Option<Broker>) -> Result<()> {
    languages::prepare_broker()?;
    language.prepare()?;
    let mut running = match broker.take() {
        Some(broker) => broker,
        None => Broker::start().await?,
    };
    driver::main_job(language, &mut running, seed()).await?;
    // A run that fails leaves no broker: it may have died in the middle of a kill.
    *broker = Some(running);
    Ok(())
}
