//! The properties that a subscription's source runs with.
//!
//! Owns: which value wins, our defaults, and what is ours alone. Does not own: librdkafka's own defaults, or checking names.

use crate::source::{ErrorKind, SourceError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use surefoot_model::catalog::Subscription;
use surefoot_model::kafka_property;

/// Where reading starts in a Kafka partition that has neither a position nor a commit (rule K4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    Earliest,
    Latest,
    /// Somebody has to say.
    Refuse,
}

const RESET: &str = "auto.offset.reset";

/// Positions are ours (rule K5), and an offset that is not there is our decision, not the client's (rule K1).
const FORCED: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Offsets without a Kafka record, as where a transaction ended, would look like a stream that stands still.
    ("enable.partition.eof", "true"),
    (RESET, "error"),
];

/// The client would take an empty value for these and fail later, with words that do not help.
const NEVER_EMPTY: [&str; 4] = ["group.id", "client.id", "bootstrap.servers", "metadata.broker.list"];
const BROKERS: [&str; 2] = ["bootstrap.servers", "metadata.broker.list"];

/// A property that no cluster and no subscription may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    #[error("the property {name:?} is refused, since {why}: leave it out")]
    Denied { name: String, why: &'static str },
    /// Carries the client's words, and no value: it may be a secret.
    #[error("the Kafka client does not take the property {name:?}: {reason}")]
    NotTaken { name: String, reason: String },
}

/// Fails for a property that may not be set. Does not ask the client; `check_property` does.
pub(crate) fn check_denied(name: &str) -> Result<(), PropertyError> {
    match kafka_property::refusal(name) {
        Some(why) => Err(PropertyError::Denied { name: name.to_owned(), why }),
        None => Ok(()),
    }
}

/// Fails for a value that the client would take, and that cannot be meant.
pub(crate) fn check_value(name: &str, value: &str) -> Result<(), PropertyError> {
    let refuse = |reason: &str| Err(PropertyError::NotTaken { name: name.to_owned(), reason: reason.to_owned() });
    if value.is_empty() && NEVER_EMPTY.contains(&name) {
        return refuse("it is empty; leave it out, or give it a value");
    }
    if value.contains('@') && BROKERS.contains(&name) {
        return refuse("it has user information in an address; set sasl.username and sasl.password");
    }
    Ok(())
}

/// The subscription's options over its cluster's properties, with defaults and forced values. `node` tells apart the members of
/// one group over restarts: with a fixed instance id a member that was killed takes its place again at once.
pub(crate) fn merged(cluster: &BTreeMap<String, String>, subscription: &Subscription, node: &str) -> BTreeMap<String, String> {
    let mut all = given(cluster, subscription);
    all.entry("client.id".to_owned()).or_insert_with(|| "surefoot".to_owned());
    let group = all.entry("group.id".to_owned()).or_insert_with(|| subscription.id.to_string()).clone();
    all.entry("group.instance.id".to_owned()).or_insert_with(|| instance_id(node, &group, &subscription.topic));
    // librdkafka takes no empty value here; an empty one asks for a member without an instance id.
    all.retain(|name, value| name != "group.instance.id" || !value.is_empty());
    // What says so to the operator is `reset`.
    all.retain(|name, _| check_denied(name).is_ok());
    all.extend(FORCED.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    all
}

/// What the subscription asks for; librdkafka's default is `largest`. Fails where a property may not be set.
pub(crate) fn reset(cluster: &BTreeMap<String, String>, subscription: &Subscription) -> Result<Reset, SourceError> {
    let given = given(cluster, subscription);
    for name in given.keys() {
        check_denied(name).map_err(|error| SourceError::new(ErrorKind::Refused, error.to_string()))?;
    }
    match given.get(RESET).map(String::as_str) {
        None | Some("largest" | "latest" | "end") => Ok(Reset::Latest),
        Some("smallest" | "earliest" | "beginning") => Ok(Reset::Earliest),
        Some("error") => Ok(Reset::Refuse),
        Some(other) => Err(SourceError::new(
            ErrorKind::Refused,
            format!("{RESET} is {other:?}: set it to \"earliest\", \"latest\" or \"error\""),
        )),
    }
}

/// The same for every member that reads this topic for this group from this data directory, so that a subscription that is made
/// anew takes the place of the one before. Hashed, since brokers take few characters here.
fn instance_id(node: &str, group: &str, topic: &str) -> String {
    let mut hash = Sha256::new();
    for part in [node, group, topic] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let number = u128::from_be_bytes(digest[..16].try_into().expect("sha-256 has 32 bytes"));
    format!("surefoot-{number:032x}")
}

fn given(cluster: &BTreeMap<String, String>, subscription: &Subscription) -> BTreeMap<String, String> {
    let mut all = cluster.clone();
    all.extend(subscription.options.iter().map(|(name, value)| (name.clone(), value.clone())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn options_win_over_the_cluster_and_ours_over_both() {
        let mut cluster = testing::cluster().properties;
        cluster.extend(
            [("a", "cluster"), ("b", "cluster"), ("enable.auto.commit", "true")].map(|(n, v)| (n.to_owned(), v.to_owned())),
        );
        let mut subscription = testing::subscription();
        subscription.options.insert("b".to_owned(), "option".to_owned());
        let all = merged(&cluster, &subscription, "n1");
        let id = subscription.id.to_string();
        for (name, value) in [
            ("a", "cluster"),
            ("b", "option"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("client.id", "surefoot"),
            ("group.id", id.as_str()),
        ] {
            assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn the_instance_id_stays_over_restarts_and_differs_between_nodes_groups_and_topics() {
        let id = |node: &str, change: &dyn Fn(&mut Subscription)| {
            let mut subscription = testing::subscription();
            change(&mut subscription);
            merged(&testing::cluster().properties, &subscription, node).remove("group.instance.id").unwrap()
        };
        let first = id("n1", &|_| ());
        assert_eq!(id("n1", &|_| ()), first);
        assert!(first.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        assert_ne!(id("n2", &|_| ()), first);
        assert_ne!(id("n1", &|s| s.topic = "other".into()), first);
        assert_ne!(id("n1", &|s| drop(s.options.insert("group.id".to_owned(), "g".to_owned()))), first);
    }

    #[test]
    fn an_empty_instance_id_asks_for_none() {
        let mut subscription = testing::subscription();
        subscription.options.insert("group.instance.id".to_owned(), String::new());
        assert!(!merged(&testing::cluster().properties, &subscription, "n1").contains_key("group.instance.id"));
    }

    /// A library named in a subscription's options was loaded into the server.
    #[test]
    fn what_would_run_code_is_refused_and_never_reaches_the_client() {
        for name in &["plugin.library.paths", "ssl.engine.location", "sasl.kerberos.kinit.cmd", "topic.offset.store.path"] {
            let mut subscription = testing::subscription();
            subscription.options.insert((*name).to_owned(), "/tmp/evil.so".to_owned());
            assert!(!merged(&testing::cluster().properties, &subscription, "n1").contains_key(*name));
            let error = reset(&testing::cluster().properties, &subscription).unwrap_err();
            assert!(error.kind == ErrorKind::Refused && error.message.contains(name) && !error.message.contains("evil"));
        }
    }

    #[test]
    fn a_reset_that_is_none_of_librdkafkas_is_refused() {
        let mut subscription = testing::subscription();
        assert_eq!(reset(&testing::cluster().properties, &subscription), Ok(Reset::Latest));
        for (text, expected) in [("smallest", Reset::Earliest), ("end", Reset::Latest), ("error", Reset::Refuse)] {
            subscription.options.insert(RESET.to_owned(), text.to_owned());
            assert_eq!(reset(&testing::cluster().properties, &subscription), Ok(expected));
        }
        subscription.options.insert(RESET.to_owned(), "newest".to_owned());
        assert!(reset(&testing::cluster().properties, &subscription).is_err());
    }
}
