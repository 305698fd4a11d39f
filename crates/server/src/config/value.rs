//! Values of settings, read from text and written back.
//!
//! Owns: durations ("1m", "PT1M"), sizes ("32MiB"), addresses. Every reader returns what it expected when it cannot read a text.
//! Does not own: which setting has which value (`table`).

use jiff::{Span, SpanRelativeTo, SpanRound, Unit};
use std::fmt;
use std::time::Duration;

/// Where a listener listens: `HOST:PORT`. Port 0 lets the operating system choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an address; IPv6 in brackets.
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn localhost(port: u16) -> Self {
        Self { host: "127.0.0.1".to_owned(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

pub(super) fn address(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = !host.contains([':', '/', ' ', '[', ']']);
    let bracketed =
        host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
    if host.is_empty() || !(bare || bracketed) {
        return None;
    }
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

/// Friendly ("1m 30s") or ISO 8601 ("PT1M30S"), not negative, days at most.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let span: Span = text.trim().parse().ok()?;
    Duration::try_from(span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?).ok()
}

pub(super) fn show_duration(duration: Duration) -> String {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let round = SpanRound::new().largest(Unit::Day).days_are_24_hours();
    let span = Span::new().try_milliseconds(millis).and_then(|span| span.round(round));
    span.map_or_else(|_| format!("{millis}ms"), |span| format!("{span:#}"))
}

const UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

/// Bytes, with an optional unit and fraction: `4096`, `32MiB`, `1.5 GB`.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    // Above this a float no longer counts single bytes.
    (bytes < (1u64 << 53) as f64).then_some(bytes as u64)
}

pub(super) fn show_size(bytes: u64) -> String {
    let fits = |factor: u64| bytes != 0 && bytes.is_multiple_of(factor);
    match UNITS.iter().filter(|(name, _)| name.ends_with("iB")).find(|(_, factor)| fits(*factor)) {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => bytes.to_string(),
    }
}
