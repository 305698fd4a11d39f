//! Stable codes of errors: the source and `docs/errors.md` name the same ones.
//!
//! Does not own: what a code means.

use crate::sources::{expect_none, root, rust};
use std::collections::BTreeSet;

const PREFIXES: [&str; 3] = ["META", "RT", "SF"];
const DIGITS: usize = 4;

/// The codes in a text.
fn codes(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in PREFIXES {
        for (at, _) in text.match_indices(prefix) {
            let begins = !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
            let rest = &text[at + prefix.len()..];
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if begins && digits == DIGITS {
                found.insert(format!("{prefix}{}", &rest[..DIGITS]));
            }
        }
    }
    found
}

#[test]
fn every_code_is_explained_and_every_explanation_has_a_code() {
    let page = std::fs::read_to_string(root().join("docs/errors.md")).expect("the page of errors is there");
    let rows: String = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()).collect::<Vec<_>>().join("\n");
    let explained = codes(&rows);
    let mut given = BTreeSet::new();
    for source in rust().iter().filter(|source| source.room().is_some()) {
        for (_, line) in source.shipped() {
            // In comments a code is mentioned; in texts it is given.
            given.extend(codes(line.trim_start().strip_prefix("//").map_or(line, |_| "")));
        }
    }
    expect_none("give each code a row in docs/errors.md:", given.difference(&explained).cloned().collect());
    expect_none("rows of docs/errors.md that nothing gives any more:", explained.difference(&given).cloned().collect());
}

#[test]
fn codes_are_found() {
    let found: Vec<String> = codes("(RT0012) \"META0003\" SF1001, NORT0001 SF123 RT00123").into_iter().collect();
    assert_eq!(found, ["META0003", "RT0012", "SF1001"]);
}
