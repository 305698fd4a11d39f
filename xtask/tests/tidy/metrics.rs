//! Names of metrics: each is explained on the page of metrics, and counters say that they are.
//!
//! Does not own: what is measured.

use crate::sources::{code, expect_none, rust};
use std::collections::BTreeSet;

/// Where each metric has its explanation.
const HELP: &str = "crates/server/src/telemetry.rs";

/// The names in texts of a line.
fn names(line: &str) -> impl Iterator<Item = String> {
    let texts = code(line).split('"').skip(1).step_by(2);
    let is_name = |text: &&str| text.starts_with("surefoot_") && text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    texts.filter(is_name).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[test]
fn every_metric_is_explained() {
    let (mut given, mut explained) = (BTreeSet::new(), BTreeSet::new());
    for source in rust().iter().filter(|source| source.room().is_some()) {
        let of = if source.path == HELP { &mut explained } else { &mut given };
        for (_, line) in source.shipped() {
            of.extend(names(line));
        }
    }
    // Names of fields in an answer are no metrics.
    given.remove("surefoot_version");
    assert!(!given.is_empty(), "no metrics were found");
    expect_none("explain each metric in crates/server/src/telemetry.rs:", given.difference(&explained).cloned().collect());
    expect_none("explanations of metrics that are gone:", explained.difference(&given).cloned().collect());
}

#[test]
fn counters_end_in_total() {
    let mut faults = Vec::new();
    for source in rust().iter().filter(|source| source.room().is_some()) {
        for (n, line) in source.shipped().into_iter().filter(|(_, line)| line.contains("counter!(\"")) {
            faults
                .extend(names(line).filter(|name| !name.ends_with("_total")).map(|name| format!("{}:{n}: {name}", source.path)));
        }
    }
    expect_none("counters are named ..._total:", faults);
}
