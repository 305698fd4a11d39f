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
`memory-size` is dealt out: what one use has taken is no trouble of another one. At its bound each use waits, and one thing passes alone, whatever its size.

A body, message or value of 32 MiB is in memory several times on its way: as it comes, as it is encoded for the log, and in the tables. The 128 MiB beside the
setting are for that, and for code, threads, buffers of sockets, and what the allocator keeps. Several large ones take turns. One that brings more than a sixteenth
of the tables' bound is let in where it fits beside all that is there, or where half of the bound is free. So a body waits for the one before it, and a result for
a checkpoint. Small ones pass meanwhile. A call that waits for more than ten seconds is answered 503.

On the disk a value lies in pieces of 128 KiB, so that merges of table files hold little. A journal is read as its handler takes it, in parts of at most 1 MiB (a
64th of `memory-size` if that is less) or one entry.

Peaks of the process at a setting of 64 MiB, where the bound is 192 MiB:

| Load | Peak |
|---|---|
| Six values of state of 31 MiB that one handler sets | 117 MiB |
| Six results of 31 MiB that one handler waits for | 100 MiB |
| The replay of that handler's journal after a kill | 120 MiB |
| Six calls at once, each with a parameter and a result of 31 MiB | 148 to 168 MiB |
| Six handlers at once that call others with as much | 138 to 166 MiB |

What is not in it:

- 16 KiB of each connection of a client, and 8 KiB of each call in progress with its headers (`ingress.concurrent-api-requests-limit`). A connection over HTTP/2 on
  which hundreds of calls came at a time has kept half a MiB more until it ends.
- What a handler has sent and nobody has read yet: 64 KiB of each attempt at most. The first 16 KiB of a message of which a part has come. What is gathered for one
  report: 64 KiB of each attempt that sends much.
- A deployment over HTTP/1.1 is sent each request whole, and so its journal is in memory whole.
- The Kafka client that each subscription has: some 0.6 MiB, 5 threads and 6 descriptors while its broker does not answer. 100 such subscriptions took 135 MiB
  at a setting of 64 MiB, and 300 of them 251 MiB.

A shared handler's read of state counts as large as the largest value of its key was when the attempt began. Properties of a Kafka cluster or a subscription win
over what its client has of `memory-size`.
";

const EXAMPLE: &str = "\
A key's environment variable is `SUREFOOT_`, then the key in capitals, with `__` for `.` and `_` for `-`:
`worker.invoker.inactivity-timeout` is `{variable}`.";
