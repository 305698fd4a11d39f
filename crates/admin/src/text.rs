//! Times as the API shows them.

use jiff::{Span, SpanRound, Unit};
use surefoot_model::Timestamp;

/// Friendly: `1d`, `3h`, `1m 30s`, `500ms`, `0s`.
pub(crate) fn duration(ms: u64) -> String {
    let round = SpanRound::new().largest(Unit::Day).days_are_24_hours();
    let span =
        i64::try_from(ms).ok().and_then(|ms| Span::new().try_milliseconds(ms).ok()).and_then(|span| span.round(round).ok());
    span.map_or_else(|| format!("{ms}ms"), |span| format!("{span:#}"))
}

/// RFC 3339 with nine digits. Times beyond the year 9999 are shown as its end.
pub(crate) fn timestamp(at: Timestamp) -> String {
    let instant = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    format!("{:.9}", instant.unwrap_or(jiff::Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_clients_know_them() {
        for (ms, text) in [
            (0, "0s"),
            (500, "500ms"),
            (30_000, "30s"),
            (60_000, "1m"),
            (90_000, "1m 30s"),
            (10_800_000, "3h"),
            (86_400_000, "1d"),
            (30 * 86_400_000, "30d"),
        ] {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(timestamp(Timestamp(1_795_402_202_581)), "2026-11-23T02:50:02.581000000Z");
        assert_eq!(timestamp(Timestamp(u64::MAX)).len(), "9999-12-30T22:00:00.999999999Z".len());
    }
}
