//! From a file, the environment and flags to one checked [`Config`].
//!
//! Owns: the order of sources, the check for unknown keys, and messages that name key, value and what is expected.

use super::{Config, SETTINGS, Setting};
use std::path::PathBuf;
use strsim::normalized_levenshtein;

/// Prefix of environment variables: `SUREFOOT_`, then the key in capitals, `__` for `.` and `_` for `-`.
const PREFIX: &str = "SUREFOOT_";
/// Beyond this share of difference a known key is no likely meaning of an unknown one.
const LIKENESS_MIN: f64 = 0.6;

/// Where values come from besides the defaults, weakest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Its name (for messages) and its text.
    pub file: Option<(PathBuf, String)>,
    pub environment: Vec<(String, String)>,
    /// Key, value, and the flag it was given with (for messages).
    pub flags: Vec<(&'static str, String, &'static str)>,
}

/// A configuration, and what is worth a warning about its sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<String>,
}

/// A value or a key that cannot be meant. The operator has to change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{place} is no valid TOML: {message}")]
    Syntax { place: String, message: String },
    #[error("{place}: unknown setting `{key}`; {}", hint(*nearest))]
    UnknownKey { place: String, key: String, nearest: Option<&'static str> },
    #[error("{place}: `{key}` is a section: its settings stand in it, each by its name")]
    Section { place: String, key: String },
    #[error("{place}: `{key}` is `{value}`, expected {expected}")]
    Value { place: String, key: String, value: String, expected: String },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or("`surefoot serve --dump-config` shows all".to_owned(), |key| format!("did you mean `{key}`?"))
}

/// Reads all sources. **Errors**: the first key or value that cannot be meant.
pub fn load(sources: &Sources) -> Result<Loaded, Error> {
    let mut loaded = Loaded { config: Config::default(), warnings: Vec::new() };
    if let Some((path, text)) = &sources.file {
        read_file(&mut loaded.config, &path.display().to_string(), text)?;
    }
    for (name, value) in &sources.environment {
        read_variable(&mut loaded, name, value)?;
    }
    for (key, value, flag) in &sources.flags {
        set(&mut loaded.config, (*flag).to_owned(), find(key).expect("flags name settings of the table"), value)?;
    }
    Ok(loaded)
}

fn read_file(config: &mut Config, place: &str, text: &str) -> Result<(), Error> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| Error::Syntax {
        place: place.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })?;
    read_table(config, place, "", &table)
}

fn read_table(config: &mut Config, place: &str, prefix: &str, table: &toml::Table) -> Result<(), Error> {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        let is_section = sections().any(|section| section == key);
        match (find(&key), value) {
            (Some(setting), toml::Value::String(text)) => set(config, place.to_owned(), setting, text)?,
            (Some(setting), toml::Value::Array(items)) => {
                let items: Vec<String> =
                    items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect();
                set(config, place.to_owned(), setting, &items.join(","))?;
            }
            (Some(setting), value) => set(config, place.to_owned(), setting, &value.to_string())?,
            (None, toml::Value::Table(inner)) if is_section => read_table(config, place, &format!("{key}."), inner)?,
            (None, _) if is_section => return Err(Error::Section { place: place.to_owned(), key }),
            (None, _) => {
                let nearest = nearest(&key, keys().chain(sections()));
                return Err(Error::UnknownKey { place: place.to_owned(), nearest, key });
            }
        }
    }
    Ok(())
}

/// Platforms inject variables of their own, so an unknown one is worth a warning only.
fn read_variable(loaded: &mut Loaded, name: &str, value: &str) -> Result<(), Error> {
    let Some(rest) = name.strip_prefix(PREFIX) else { return Ok(()) };
    let key = rest.to_ascii_lowercase().replace("__", ".").replace('_', "-");
    let place = format!("environment variable {name}");
    if let Some(setting) = find(&key) {
        return set(&mut loaded.config, place, setting, value);
    }
    let hint = nearest(&key, keys()).map_or(String::new(), |nearest| format!("; did you mean {}?", variable(nearest)));
    loaded.warnings.push(format!("{place} is no setting and is ignored{hint}"));
    Ok(())
}

fn set(config: &mut Config, place: String, setting: &Setting, value: &str) -> Result<(), Error> {
    setting.set(config, value).map_err(|expected| Error::Value {
        place,
        key: setting.key.to_owned(),
        value: value.to_owned(),
        expected,
    })
}

fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.key == key)
}

/// Of the known keys the one that looks most like this one, if any looks much like it. A key without its section, or without the first
/// words of its name, counts as near.
fn nearest(key: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let alike = |of: &'static str| {
        let whole = normalized_levenshtein(key, of);
        let (name, name_of) = (last_part(key), last_part(of));
        let rest_of = name_of.rmatch_indices('-').nth(name.matches('-').count()).map_or(name_of, |(at, _)| &name_of[at + 1..]);
        let part = normalized_levenshtein(name, name_of).max(normalized_levenshtein(name, rest_of));
        (whole.max(part) >= LIKENESS_MIN).then_some((whole + part, of))
    };
    known.filter_map(alike).max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, key)| key)
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().expect("a split has one part at least")
}

fn keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.key)
}

/// The sections of all settings.
fn sections() -> impl Iterator<Item = &'static str> {
    keys().flat_map(|key| key.match_indices('.').map(|(at, _)| &key[..at]))
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('-', "_").replace('.', "__").to_ascii_uppercase())
}
