//! The `delay` of a send: where it stands in a query, and how it reads.

use crate::Error;
use jiff::{Span, SpanRelativeTo};
use percent_encoding::percent_decode_str;
use std::time::Duration;

const NAME: &str = "delay";

/// The delay that a query asks for. **Errors**: one that cannot be read, with its text.
pub(crate) fn of_query(query: &str) -> Result<Option<Duration>, Error> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let Some((_, raw)) = pairs.find(|(name, _)| name.eq_ignore_ascii_case(NAME)) else { return Ok(None) };
    let text = raw.replace('+', " ");
    let text = percent_decode_str(&text).decode_utf8_lossy();
    parse(&text).map(Some).ok_or_else(|| Error::Delay(text.into_owned()))
}

/// Friendly ("1h30m", "01:00:00") or ISO 8601 ("PT1S"); neither negative nor with units above days and weeks, whose length varies.
fn parse(text: &str) -> Option<Duration> {
    // Nothing needs no unit.
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let span: Span = text.parse().ok()?;
    Duration::try_from(span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn friendly_and_iso_durations_are_delays() {
        for (query, ms) in [
            ("delay=1s", 1_000),
            ("delay=1ms", 1),
            ("delay=1us", 0),
            ("delay=1.5s", 1_500),
            ("delay=0s", 0),
            ("delay=0", 0),
            ("delay=1d", 86_400_000),
            ("delay=1h30m", 5_400_000),
            ("delay=1%20sec", 1_000),
            ("delay=1+sec", 1_000),
            ("delay=2+minutes", 120_000),
            ("delay=5%20hours", 18_000_000),
            ("delay=PT1S", 1_000),
            ("delay=PT0.5S", 500),
            ("delay=P1D", 86_400_000),
            ("delay=01:00:00", 3_600_000),
            ("q=1&DELAY=10s&x", 10_000),
        ] {
            let delay = of_query(query).unwrap().unwrap_or_else(|| panic!("{query}"));
            assert_eq!(delay.as_millis(), ms, "{query}");
        }
    }

    #[test]
    fn what_is_no_delay_is_refused() {
        for query in ["delay=1000", "delay=", "delay", "delay=abc", "delay=-1s", "delay=P1M", "delay=1y", "delay=1%FFs"] {
            assert!(matches!(of_query(query), Err(Error::Delay(_))), "{query}");
        }
    }

    #[test]
    fn other_parameters_are_ignored() {
        assert_eq!(of_query(""), Ok(None));
        assert_eq!(of_query("delaySec=1&other=delay"), Ok(None));
    }
}
