//! What the name of a Kafka client's property says by itself.
//!
//! Owns: the two lists that every room has to agree on: which values are secrets, and which properties no operator may set. Does not
//! own: which names the client knows, defaults, or which value wins (`kafka`).

/// A property whose name contains one of these has a secret for its value.
const SECRETS: [&str; 17] = [
    "password",
    "passwd",
    "passwrd",
    "secret",
    "passphrase",
    "credential",
    "api.key",
    "apikey",
    "private.key",
    "sasl.username",
    "sasl.jaas.config",
    "sasl.oauthbearer.config",
    "token",
    "ssl.key.",
    "keystore.location",
    "truststore.location",
    "assertion.jwt",
];

/// Properties that no cluster and no subscription may set, and why. A name that ends with a dot stands for all that begin so. Who may
/// register a topic must not thereby run code on the server, write its files, or send them away.
const REFUSED: [(&str, &str); 14] = [
    ("plugin.library.paths", "it loads a library into the server"),
    ("ssl.engine.", "it loads a library into the server"),
    ("ssl.providers", "it loads a library into the server"),
    // Its keytab, principal and service name go into a command of the shell.
    ("sasl.kerberos.", "it runs a command on the server"),
    ("offset.store.path", "it writes a file on the server"),
    ("offset.store.method", "it writes a file on the server"),
    ("offset.store.sync.interval.ms", "it writes a file on the server"),
    ("sasl.oauthbearer.assertion.file", "it sends a file of the server away"),
    ("sasl.oauthbearer.assertion.private.key.file", "it reads a key of the server: give the key itself, as ….private.key.pem"),
    ("sasl.oauthbearer.assertion.jwt.template.file", "it sends a file of the server away"),
    ("internal.", "it can end the server's process"),
    ("interceptors", "it loads code into the server"),
    ("test.", "it opens ports that pretend to be brokers"),
    // The client knows its topic properties by a second name, which would win or lose by chance.
    ("topic.auto.", "write it without `topic.`"),
];

/// Whether the value of a property must not be shown, neither to an operator nor in the log.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.iter().any(|part| name.contains(part))
}

/// Why a property of this name is refused; none where it may be set.
pub fn refusal(name: &str) -> Option<&'static str> {
    let name = name.trim().to_ascii_lowercase();
    // The client takes topic properties with this prefix, too.
    let bare = name.strip_prefix("topic.").unwrap_or(&name);
    let is_listed = |listed: &str| {
        [name.as_str(), bare].iter().any(|name| *name == listed || (listed.ends_with('.') && name.starts_with(listed)))
    };
    REFUSED.iter().find(|(listed, _)| is_listed(listed)).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_code_or_touches_files_is_refused_by_every_name() {
        for name in [
            "plugin.library.paths",
            "PLUGIN.library.paths",
            " plugin.library.paths",
            "topic.plugin.library.paths",
            "ssl.engine.location",
            "ssl.engine.id",
            "ssl.providers",
            "sasl.kerberos.kinit.cmd",
            "sasl.kerberos.principal",
            "topic.offset.store.path",
            "internal.termination.signal",
            "test.mock.num.brokers",
            "topic.auto.offset.reset",
        ] {
            assert!(refusal(name).is_some(), "{name}");
        }
        for name in
            ["bootstrap.servers", "ssl.ca.location", "ssl.key.pem", "topic.metadata.refresh.interval.ms", "auto.offset.reset"]
        {
            assert_eq!(refusal(name), None, "{name}");
        }
    }

    #[test]
    fn what_looks_like_a_credential_is_a_secret() {
        for name in ["sasl.password", "SASL.Username", "sasl.passwrd", "ssl.key.pem", "ssl.keystore.location", "my.api.key"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["bootstrap.servers", "group.id", "ssl.ca.location", "sasl.mechanism", "key.deserializer"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
