//! From the figures of single trials to one table: medians over the rounds, and how the first server stands to the second.

use std::fmt::Write;

const COLUMNS: [&str; 8] = [
    "per second",
    "p50 ms",
    "p99 ms",
    "CPU ms per 1,000",
    "bytes written per invocation",
    "peak memory MiB",
    "resumed after kill ms",
    "late ms",
];

/// What one trial of a scenario gave; what a scenario does not measure is `None`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) per_second: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) cpu_ms_per_thousand: Option<f64>,
    pub(crate) written_per_invocation: Option<f64>,
    pub(crate) peak_mib: Option<f64>,
    pub(crate) resumed_ms: Option<f64>,
    pub(crate) late_ms: Option<f64>,
}

type Columns = [Option<f64>; COLUMNS.len()];

impl Figures {
    fn columns(&self) -> Columns {
        [
            self.per_second,
            self.p50_ms,
            self.p99_ms,
            self.cpu_ms_per_thousand,
            self.written_per_invocation,
            self.peak_mib,
            self.resumed_ms,
            self.late_ms,
        ]
    }
}

/// The trials of one scenario: for each server its name and one entry per round.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) scenario: &'static str,
    pub(crate) servers: Vec<(&'static str, Vec<Figures>)>,
}

/// The Markdown table. With two servers a third row holds the first one's figure divided by the second one's.
pub(crate) fn table(scenarios: &[Rows]) -> String {
    let mut text = format!("| scenario | server | {} |\n|---|---|", COLUMNS.join(" | "));
    text.push_str(&"---:|".repeat(COLUMNS.len()));
    text.push('\n');
    for rows in scenarios {
        let medians: Vec<Columns> = rows.servers.iter().map(|(_, rounds)| medians(rounds)).collect();
        for ((server, _), columns) in rows.servers.iter().zip(&medians) {
            line(&mut text, rows.scenario, server, columns, number);
        }
        if let [first, second] = &medians[..] {
            let ratios = std::array::from_fn(|n| first[n].zip(second[n]).filter(|&(_, b)| b > 0.0).map(|(a, b)| a / b));
            line(&mut text, rows.scenario, "ratio", &ratios, |ratio| format!("{}x", number(ratio)));
        }
    }
    text
}

fn line(text: &mut String, scenario: &str, server: &str, columns: &Columns, show: impl Fn(f64) -> String) {
    let cells = columns.map(|figure| figure.map_or_else(|| "-".to_owned(), &show));
    writeln!(text, "| {scenario} | {server} | {} |", cells.join(" | ")).expect("a string takes what is written");
}

/// Three digits that count, and no more after the point than it takes.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn medians(rounds: &[Figures]) -> Columns {
    let rounds: Vec<Columns> = rounds.iter().map(Figures::columns).collect();
    std::array::from_fn(|n| {
        let mut figures: Vec<f64> = rounds.iter().filter_map(|round| round[n]).collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        match figures.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(figures[middle]),
            _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_are_shown_and_what_is_not_measured_is_a_dash() {
        let rounds = |values: &[f64]| {
            values.iter().map(|&value| Figures { per_second: Some(value), ..Figures::default() }).collect::<Vec<_>>()
        };
        let servers = vec![("surefoot", rounds(&[900.0, 100.0, 300.0])), ("peer", rounds(&[20.0, 40.0]))];
        let text = table(&[Rows { scenario: "echo-1", servers }]);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| echo-1 | surefoot | 300 | - | - | - | - | - | - | - |",
                "| echo-1 | peer | 30.0 | - | - | - | - | - | - | - |",
                "| echo-1 | ratio | 10.0x | - | - | - | - | - | - | - |",
            ]
        );
    }
}
