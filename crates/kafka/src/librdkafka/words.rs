//! What the client says, with nothing in it that nobody may see.
//!
//! Owns: that its words leave this module through here alone, whatever brought them (an answer, a callback, a line of its log): it
//! quotes at times what it was given, and a cluster's or a subscription's properties have passwords among them. Does not own: which
//! properties are secrets (`model`).

use crate::source::{ErrorKind, SourceError};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_model::kafka_property::is_secret;

/// Put in place of what is hidden.
const HIDDEN: &str = "***";
/// Each takes the place of the other, again and again.
const FENCED_HINT: &str = "; another process takes this member's place: if it runs on a copy of this data directory, stop one of the two, or \
     give one of them options with a group.id or group.instance.id of its own";
/// A value that is shorter is a part of other words.
const HIDDEN_BYTES_MIN: usize = 4;
/// What separates the parts of a value that has several, as the lines of a key and the pairs of a configuration.
const SEPARATORS: [char; 9] = [' ', '\n', '\r', '\t', ',', ';', '=', '"', '\''];

/// Takes the client's words. Clones are the same.
#[derive(Clone)]
pub(super) struct Words(Arc<[String]>);

impl Words {
    /// Of a client that runs with these properties: the values of those that are secret are hidden, whole and in part.
    pub(super) fn of(properties: &BTreeMap<String, String>) -> Self {
        let secrets = properties.iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| value);
        Self::hiding(secrets.flat_map(|value| value.split(SEPARATORS).chain([value.as_str()])))
    }

    /// Of a client that does not take these properties: nobody knows what a name that is spelt wrong stands for.
    pub(super) fn of_refused(properties: &BTreeMap<String, String>) -> Self {
        Self::hiding(properties.values().map(String::as_str))
    }

    fn hiding<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut hidden: Vec<String> = values.filter(|value| value.len() >= HIDDEN_BYTES_MIN).map(str::to_owned).collect();
        // What contains another goes first.
        hidden.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        hidden.dedup();
        Self(hidden.into())
    }

    pub(super) fn shown(&self, words: &str) -> String {
        self.0.iter().fold(words.to_owned(), |words, hidden| words.replace(hidden.as_str(), HIDDEN))
    }

    /// An error with what the client says of it.
    pub(super) fn error(&self, code: RDKafkaErrorCode, words: &str) -> SourceError {
        SourceError::new(kind(code), self.shown(&format!("{code}: {words}")))
    }

    /// An error of the binding, and the words that came with it from elsewhere.
    pub(super) fn explain(&self, error: &KafkaError, words: Option<&str>) -> SourceError {
        let (code, is_fatal) = match error {
            KafkaError::MessageConsumptionFatal(code) => (*code, true),
            error => (error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown), false),
        };
        let kind = if is_fatal { ErrorKind::Refused } else { kind(code) };
        let mut message = words.map_or_else(|| error.to_string(), |words| format!("{code}: {words}"));
        if code == RDKafkaErrorCode::FencedInstanceId {
            message.push_str(FENCED_HINT);
        }
        SourceError::new(kind, self.shown(&message))
    }
}

/// What helps.
pub(super) fn kind(code: RDKafkaErrorCode) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => ErrorKind::TopicMissing,
        Code::AutoOffsetReset | Code::OffsetOutOfRange => ErrorKind::OffsetLost,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::SSL
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::FencedInstanceId
        | Code::Fatal
        | Code::InvalidArgument
        | Code::InvalidTopic
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout
        | Code::InconsistentGroupProtocol
        | Code::UnsupportedFeature
        | Code::UnsupportedVersion
        | Code::NotImplemented => ErrorKind::Refused,
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn secrets_are_hidden_whole_and_in_part_and_the_rest_is_told() {
        let words = Words::of(&properties(&[
            ("bootstrap.servers", "broker-1:9092"),
            ("sasl.password", "hunter22"),
            ("sasl.oauthbearer.config", "principal=alice scope=role-a"),
            ("ssl.key.pem", "-----BEGIN-----\nMIIEvQ\n-----END-----"),
            ("sasl.oauthbearer.client.secret", "abc"),
        ]));
        assert_eq!(words.shown("broker-1:9092: hunter22 is wrong"), "broker-1:9092: *** is wrong");
        assert_eq!(words.shown("no scope at: role-a"), "no *** at: ***");
        assert_eq!(words.shown("bad line: MIIEvQ"), "bad line: ***");
        assert_eq!(words.shown("abcissa"), "abcissa", "what is short is a part of other words");
    }

    #[test]
    fn every_error_passes() {
        let words = Words::of(&properties(&[("sasl.password", "hunter22")]));
        let said = words.explain(&KafkaError::Subscription("hunter22".to_owned()), None);
        assert!(!said.message.contains("hunter22"), "{said}");
        let said = words.explain(&KafkaError::Global(RDKafkaErrorCode::Authentication), Some("for hunter22"));
        assert!(said.kind == ErrorKind::Refused && !said.message.contains("hunter22"), "{said}");
        assert!(!words.error(RDKafkaErrorCode::SSL, "hunter22").message.contains("hunter22"));
    }
}
