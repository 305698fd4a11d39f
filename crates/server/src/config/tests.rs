//! What the sources of settings do together.

#![allow(clippy::disallowed_methods, reason = "the page of settings is a file of the repository")]

use super::load::Error;
use super::*;
use std::path::Path;

fn file(text: &str) -> Sources {
    Sources { file: Some((PathBuf::from("surefoot.toml"), text.to_owned())), ..Sources::default() }
}

fn from_file(text: &str) -> Result<Config, String> {
    load(&file(text)).map(|l| l.config).map_err(|e: Error| e.to_string())
}

fn environment(name: &str, value: &str) -> Result<Loaded, String> {
    load(&Sources { environment: vec![(name.to_owned(), value.to_owned())], ..Sources::default() }).map_err(|e| e.to_string())
}

#[test]
fn no_source_means_the_defaults() {
    assert_eq!(load(&Sources::default()), Ok(Loaded { config: Config::default(), warnings: vec![] }));
    assert_eq!(Config::default().defaults(), Defaults::default());
}

#[test]
fn later_sources_win() {
    let mut sources = file("default-num-partitions = 4\n[ingress]\nbind-address = \"[::1]:1\"\nrequest-size-limit = \"1MiB\"");
    sources.environment.push(("SUREFOOT_INGRESS__BIND_ADDRESS".into(), "host:2".into()));
    sources.environment.push(("SUREFOOT_DEFAULT_NUM_PARTITIONS".into(), "5".into()));
    sources.environment.push(("PATH".into(), "/bin".into()));
    sources.flags.push(("default-num-partitions", "6".into(), "--partitions"));
    let Loaded { config, warnings } = load(&sources).unwrap();
    assert_eq!(config.partitions, 6);
    assert_eq!(config.ingress.bind_address.to_string(), "host:2");
    assert_eq!(config.ingress.request_bytes_max, 1 << 20);
    assert!(warnings.is_empty());
}

#[test]
fn unknown_keys_of_a_file_are_refused_with_the_nearest_one() {
    for (text, message) in [
        ("partitons = 3", "surefoot.toml: unknown setting `partitons`; did you mean `default-num-partitions`?"),
        ("shutdown_timeout = '1s'", "surefoot.toml: unknown setting `shutdown_timeout`; did you mean `shutdown-timeout`?"),
        (
            "inactivity-timeout = '1s'",
            "surefoot.toml: unknown setting `inactivity-timeout`; did you mean `worker.invoker.inactivity-timeout`?",
        ),
        (
            "[worker.invoker]\nabort-timout = '1s'",
            "surefoot.toml: unknown setting `worker.invoker.abort-timout`; did you mean `worker.invoker.abort-timeout`?",
        ),
        ("[ingres]\nbind-address = 'x:1'", "surefoot.toml: unknown setting `ingres`; did you mean `ingress`?"),
        // What looks like none of ours is led nowhere, least of all to a dangerous one.
        ("[rocksdb]\nsize = 1", "surefoot.toml: unknown setting `rocksdb`; `surefoot serve --dump-config` shows all"),
        ("max-concurrent = 1", "surefoot.toml: unknown setting `max-concurrent`; `surefoot serve --dump-config` shows all"),
        (
            "default-retry-policy = 3",
            "surefoot.toml: `default-retry-policy` is a section: its settings stand in it, each by its name",
        ),
    ] {
        let error = from_file(text).unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn malformed_values_name_key_value_and_what_is_expected() {
    for (text, message) in [
        ("shutdown-timeout = 60", "surefoot.toml: `shutdown-timeout` is `60`, expected a duration such as 30s, 1m 30s or PT1M"),
        (
            "shutdown-timeout = '-1s'",
            "surefoot.toml: `shutdown-timeout` is `-1s`, expected a duration such as 30s, 1m 30s or PT1M",
        ),
        ("default-num-partitions = 0", "surefoot.toml: `default-num-partitions` is `0`, expected a number from 1 to 4096"),
        (
            "memory-size = '1MiB'",
            "surefoot.toml: `memory-size` is `1MiB`, expected a size of at least 16MiB, such as 32MiB or 1GB",
        ),
        (
            "memory-size = 'lots'",
            "surefoot.toml: `memory-size` is `lots`, expected a size of at least 16MiB, such as 32MiB or 1GB",
        ),
        (
            "ingress.request-size-limit = '2GiB'",
            "surefoot.toml: `ingress.request-size-limit` is `2GiB`, expected a size up to 1GiB, such as 32MiB",
        ),
        (
            "worker.invoker.message-size-limit = 0",
            "surefoot.toml: `worker.invoker.message-size-limit` is `0`, expected a size up to 1GiB, such as 32MiB",
        ),
        ("log-format = 'xml'", "surefoot.toml: `log-format` is `xml`, expected pretty, compact or json"),
        (
            "ingress.bind-address = '8080'",
            "surefoot.toml: `ingress.bind-address` is `8080`, expected an address such as 127.0.0.1:8080",
        ),
        ("worker = 3", "surefoot.toml: `worker` is a section: its settings stand in it, each by its name"),
        (
            "log-filter = 'warning'",
            "surefoot.toml: `log-filter` is `warning`, expected levels with commas between them, such as warn,surefoot=info",
        ),
        ("log-filter = 'surefoot=verbos'", "surefoot.toml: `log-filter` is `surefoot=verbos`, expected levels"),
        (
            "ingress.allowed-origins = 'https://a.example.com, app.example.com'",
            "surefoot.toml: `ingress.allowed-origins` is `https://a.example.com, app.example.com`, expected origins such as \
             https://app.example.com with commas between them, or *",
        ),
        (
            "ingress.allowed-origins = 'https://a.example.com/app'",
            "surefoot.toml: `ingress.allowed-origins` is `https://a.example.com/app`, expected origins",
        ),
        (
            "ingress.advertised-address = 'foo bar'",
            "surefoot.toml: `ingress.advertised-address` is `foo bar`, expected an address such as http://flows.example.com",
        ),
        ("dangerously-skip-fsync = 'yes'", "surefoot.toml: `dangerously-skip-fsync` is `yes`, expected true or false"),
        ("a = = 1", "surefoot.toml is no valid TOML: "),
    ] {
        let error = from_file(text).unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
    let error = environment("SUREFOOT_WORKER__CLEANUP_INTERVAL", "soon").unwrap_err();
    assert!(
        error.starts_with("environment variable SUREFOOT_WORKER__CLEANUP_INTERVAL: `worker.cleanup-interval` is `soon`"),
        "{error}"
    );
}

#[test]
fn unknown_variables_are_warned_about_and_ignored() {
    let loaded = environment("SUREFOOT_WORKER__CLEANUP_INTERVALL", "1s").unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(
        loaded.warnings,
        [
            "environment variable SUREFOOT_WORKER__CLEANUP_INTERVALL is no setting and is ignored; did you mean SUREFOOT_WORKER__CLEANUP_INTERVAL?"
        ]
    );
    let loaded = environment("SUREFOOT_PORT_8080_TCP_ADDR", "10.0.0.1").unwrap();
    assert_eq!(loaded.warnings, ["environment variable SUREFOOT_PORT_8080_TCP_ADDR is no setting and is ignored"]);
}

#[test]
fn friendly_values_are_read() {
    let config = from_file(
        "shutdown-timeout = '1m 30s'\nworker.cleanup-interval = 'PT0.5S'\ndefault-journal-retention = '2d'\n\
         worker.invoker.memory-limit = '1.5 GB'\nretained-bytes-limit = 1000\n\
         default-retry-policy = { max-attempts = 'unlimited', exponentiation-factor = 3, on-max-attempts = 'kill' }\n\
         ingress.concurrent-api-requests-limit = 10\nallowed-hosts = ['a.example.com', 'b.example.com']\n\
         ingress.allowed-origins = 'https://a.example.com, *'",
    )
    .unwrap();
    assert_eq!(config.shutdown_timeout, Duration::from_secs(90));
    assert_eq!(config.worker.cleanup_interval, Duration::from_millis(500));
    assert_eq!(config.journal_retention, Duration::from_secs(2 * 86_400));
    assert_eq!(config.worker.invoker.replay_bytes_max, 1_500_000_000);
    assert_eq!(config.retained_bytes_max, 1000);
    assert_eq!((config.retry.max_attempts, config.retry.factor, config.retry.on_max_attempts), (None, 3.0, OnMaxAttempts::Kill));
    assert_eq!(config.ingress.requests_max, Some(10));
    assert_eq!(config.allowed_hosts, ["a.example.com", "b.example.com"]);
    assert_eq!(config.ingress.allowed_origins, ["https://a.example.com", "*"]);
}

#[test]
fn a_dump_is_a_file_that_yields_the_same() {
    let config =
        from_file("memory-size = '300MB'\nshutdown-timeout = '1d 1ms'\n[default-retry-policy]\nmax-attempts = 'infinite'")
            .unwrap();
    for config in [config, Config::default()] {
        assert_eq!(from_file(&dump(&config)), Ok(config));
    }
    for setting in SETTINGS {
        assert!(dump(&Config::default()).contains(setting.key.rsplit('.').next().unwrap()));
    }
}

#[test]
fn the_page_of_settings_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    if std::env::var_os("UPDATE_SETTINGS").is_some() {
        std::fs::write(&path, settings_page()).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == settings_page(), "docs/settings.md is stale: run `UPDATE_SETTINGS=1 cargo test -p surefoot-server`");
}

#[test]
fn attempts_have_places_by_memory_unless_an_operator_says_how_many() {
    let with = |memory: &str| from_file(&format!("memory-size = '{memory}'")).unwrap().attempts_max();
    assert_eq!([with("16MiB"), with("256MiB"), with("4GiB")], [1_365, 21_845, 24_000]);
    assert_eq!(Config { memory_bytes: 1, ..Config::default() }.attempts_max(), 100);
    let told = from_file("worker.invoker.concurrent-invocations-limit = 50000").unwrap();
    assert_eq!(told.attempts_max(), 50_000);
    assert_eq!(from_file("worker.invoker.concurrent-invocations-limit = 'automatic'").unwrap(), Config::default());
}

#[test]
fn calls_in_progress_are_as_many_as_memory_holds_unless_an_operator_says_how_many() {
    let with = |memory: &str| from_file(&format!("memory-size = '{memory}'")).unwrap().requests_max();
    assert_eq!([with("16MiB"), with("64MiB"), with("256MiB"), with("4GiB")], [1_024, 4_096, 16_384, 25_000]);
    assert_eq!(Config { memory_bytes: 1, ..Config::default() }.requests_max(), 100);
    assert_eq!(from_file("ingress.concurrent-api-requests-limit = 50000").unwrap().requests_max(), 50_000);
}
