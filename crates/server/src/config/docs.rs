//! The table of settings, written out: as TOML for `--dump-config`, as Markdown for `docs/settings.md`.

use super::load::variable;
use super::{Config, SETTINGS};
use std::fmt::Write;

/// The configuration in force, as a TOML file that yields it again.
pub fn dump(config: &Config) -> String {
    let mut text = String::new();
    let mut section = "";
    // Keys without a section come first: in TOML they cannot follow one.
    let mut settings: Vec<_> = SETTINGS.iter().map(|s| (s.key.rsplit_once('.').unwrap_or(("", s.key)), s)).collect();
    settings.sort_by_key(|((section, _), _)| *section);
    for ((own_section, name), setting) in settings {
        if own_section != section {
            let _ = writeln!(text, "\n[{own_section}]");
            section = own_section;
        }
        let value = setting.show(config);
        let value = if setting.is_bare(config) { value } else { toml::Value::String(value).to_string() };
        let _ = writeln!(text, "{name} = {value}");
    }
    text
}

/// The page `docs/settings.md`.
pub fn settings_page() -> String {
    let defaults = Config::default();
    let mut page = String::from(INTRODUCTION);
    for setting in SETTINGS {
        let (key, kind, meaning) = (setting.key, setting.kind_name(), setting.meaning);
        let _ = writeln!(page, "| `{key}` | {kind} | `{}` | {meaning} |", setting.show(&defaults));
    }
    let _ = write!(page, "\n{MEMORY}\n{}", crate::memory::page());
    let _ = write!(page, "\n{}\n", EXAMPLE.replace("{variable}", &variable("worker.invoker.inactivity-timeout")));
    page
}

const INTRODUCTION: &str = "\
# Settings

<!-- Generated from the table in `crates/server/src/config/table.rs`; `UPDATE_SETTINGS=1 cargo test -p surefoot-server` writes it anew. -->

`surefoot serve --config FILE` reads a TOML file. The environment wins over the file, flags win over the environment. `surefoot serve --dump-config` prints
what is in force. An unknown key in the file is an error, in the environment a warning.

Durations are friendly (`30s`, `1m 30s`, `1d`) or ISO 8601 (`PT1M`); sizes are bytes or carry a unit (`32MiB`, `1GB`).

| Key | Value | Default | Meaning |
|---|---|---|---|
";

const MEMORY: &str = "\
`memory-size` is dealt out, so that what one use has taken is no trouble of another one. At its bound each of them waits, and one thing passes alone, whatever its size: a
body, message or value of 32 MiB is in memory several times on its way (as it comes and is encoded for the log, and in the tables), which is what the 128 MiB beside the setting are for, with code, threads, buffers of sockets, and what the allocator keeps. Several of them
at once take turns: what brings more than a sixteenth of the tables' bound is let in where it fits beside all that is there, or half of the bound is free, and so a body waits for the one before it and a result
for a checkpoint, while what is small passes; what is at the edges and comes too late for ten seconds is answered 503. On the disk a value lies in pieces of 128 KiB, so that merges of table files
hold little, and a journal is read as its handler takes it, in parts of at most 1 MiB (a 64th of `memory-size` if that is less) or one entry. At a setting of 64 MiB, where the bound is 192 MiB, the process took up to 117 MiB with six values of state of 31 MiB that one
handler sets, 100 MiB with six results of 31 MiB, 120 MiB when their journal was replayed after a kill, and 148 to 168 MiB with six calls at once that have parameters and results of as much. Six handlers that call others so took 138 to 166 MiB. A connection of a client takes 16 KiB more, and a call in progress 8 KiB
with its headers (`ingress.concurrent-api-requests-limit`). A connection over HTTP/2 on which hundreds of calls came at a time has kept half a MiB more until it ends.

What is not in it: what a handler has sent and nobody has read yet (64 KiB of each attempt at most), the first 16 KiB of a message of which a part has come, and
what is gathered for one report (64 KiB of each attempt that sends much). A deployment over HTTP/1.1 is sent each request whole, and so its journal is in memory whole. A shared
handler's read of state counts as large as the largest value of its key was when the attempt began. Properties of a Kafka cluster or a subscription win over what its client has of
`memory-size`.
";

const EXAMPLE: &str = "\
A key's environment variable is `SUREFOOT_`, then the key in capitals, with `__` for `.` and `_` for `-`:
`worker.invoker.inactivity-timeout` is `{variable}`.";
