//! What the files themselves must and must not say.
//!
//! Owns: the rules about module heads, markers, `select!`, hash maps, statics, and what never enters the repository.

use crate::sources::{Source, code, expect_none, files, has_word, root, rust};

const ARCHITECTURE_LINES_MAX: usize = 300;

#[test]
fn every_module_opens_with_its_head() {
    let without = rust().into_iter().filter(|source| {
        let first = source.text.lines().find(|line| !line.trim().is_empty());
        first.is_some_and(|line| !line.starts_with("//!") && !line.starts_with("// @generated"))
    });
    expect_none("open with `//!`: what the module owns, and what it does not own:", without.map(|s| s.path).collect());
}

#[test]
fn no_machine_paths() {
    // In pieces, so that this file passes.
    let machine =
        [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/tmp/", "bash")];
    let mirrors = [concat!("art", "ifactory"), concat!("ne", "xus/repository")];
    let faults = files(|_| true).into_iter().flat_map(|source| {
        let lines = source.text.lines().enumerate();
        let hits = lines.filter(|(_, line)| machine.iter().chain(&mirrors).any(|needle| line.contains(needle)));
        hits.map(|(n, _)| format!("{}:{}", source.path, n + 1)).collect::<Vec<_>>()
    });
    expect_none("paths of one machine, or a private mirror of a registry:", faults.collect());
}

#[test]
fn no_test_is_ignored() {
    let ignore = concat!("#[ig", "nore");
    let faults = rust().into_iter().flat_map(|source| found(&source, |line| line.contains(ignore)));
    expect_none("assert today's wrong answer under a comment in place of ignoring a test:", faults.collect());
}

#[test]
fn nothing_is_left_for_later() {
    let words = [concat!("FIX", "ME"), concat!("X", "XX"), concat!("TO", "DO")];
    let faults = files(|path| path.ends_with(".rs")).into_iter().flat_map(|source| {
        let lines = source.shipped();
        let hits = lines.iter().filter(|(_, line)| words.iter().any(|word| has_word(line, word)));
        hits.map(|(n, _)| format!("{}:{n}", source.path)).collect::<Vec<_>>()
    });
    expect_none("notes to oneself in code that ships:", faults.collect());
}

#[test]
fn architecture_is_read_in_one_sitting() {
    let lines = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines < ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md has {lines} lines");
}

#[test]
fn every_select_is_biased() {
    let faults = rust().into_iter().filter(|source| !source.path.starts_with("xtask/")).flat_map(|source| {
        let lines: Vec<&str> = source.text.lines().map(code).collect();
        unbiased(&lines).into_iter().map(|n| format!("{}:{n}", source.path)).collect::<Vec<_>>()
    });
    expect_none("begin each `select!` with `biased;`, so that one seed decides which arm wins:", faults.collect());
}

/// The numbers of the lines that hold a `select!` whose first word is not `biased`.
fn unbiased(lines: &[&str]) -> Vec<usize> {
    let starts = |n: &usize| lines[*n].contains("select!") && !lines[*n].contains("macro_rules");
    let is_biased = |n: usize| {
        let from = lines[n].find("select!").unwrap() + "select!".len();
        let rest = lines[n][from..].to_owned() + &lines[n + 1..].concat();
        rest.trim_start().trim_start_matches(['{', '(']).trim_start().starts_with("biased;")
    };
    (0..lines.len()).filter(starts).filter(|n| !is_biased(*n)).map(|n| n + 1).collect()
}

#[test]
fn hash_maps_say_why_their_order_is_not_seen() {
    let rooms = ["machine", "storage", "partition", "log"];
    let faults =
        rust().into_iter().filter(|source| source.room().is_some_and(|room| rooms.contains(&room))).filter_map(|source| {
            let n = unexplained_hash_map(&source)?;
            Some(format!("{}:{n}", source.path))
        });
    expect_none(
        "std's HashMap and HashSet iterate in another order in every process: take a BTreeMap, or say on the line of the \
         import or above it `// hash-order: <why nobody iterates>`:",
        faults.collect(),
    );
}

/// The line of a file's first mention of a std hash map, unless a marker with a reason stands on it or above it.
fn unexplained_hash_map(source: &Source) -> Option<usize> {
    let lines = source.shipped();
    let names_one = |line: &str| ["HashMap", "HashSet"].iter().any(|name| has_word(code(line), name));
    let first = lines.iter().position(|(_, line)| names_one(line))?;
    (!is_explained(&lines, first, "// hash-order: ")).then_some(lines[first].0)
}

#[test]
fn statics_of_simulated_rooms_say_why_worlds_may_share_them() {
    let faults = rust().into_iter().filter(Source::is_simulated).flat_map(|source| {
        let lines = unexplained_statics(&source);
        lines.into_iter().map(|n| format!("{}:{n}", source.path)).collect::<Vec<_>>()
    });
    expect_none(
        "two worlds in one process share a static: take it in the constructor, make it a const, or, where it never changes, \
         say above it `// shared: <why no world can tell>`:",
        faults.collect(),
    );
}

fn unexplained_statics(source: &Source) -> Vec<usize> {
    let is_static = |line: &str| {
        let item =
            line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ").trim_start_matches("pub ");
        item.starts_with("static ") || item.starts_with("thread_local!")
    };
    let lines = source.shipped();
    let unexplained = |at: &usize| is_static(lines[*at].1) && !is_explained(&lines, *at, "// shared: ");
    (0..lines.len()).filter(unexplained).map(|at| lines[at].0).collect()
}

/// Whether a marker with a reason stands on the line or right above it.
fn is_explained(lines: &[(usize, &str)], at: usize, marker: &str) -> bool {
    let explained = |line: &str| line.split_once(marker).is_some_and(|(_, why)| !why.trim().is_empty());
    lines[at.saturating_sub(1)..=at].iter().any(|(_, line)| explained(line))
}

fn found(source: &Source, hit: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = source.text.lines().enumerate().filter(|(_, line)| hit(line));
    lines.map(|(n, _)| format!("{}:{}", source.path, n + 1)).collect()
}

#[test]
fn the_rules_see_what_they_are_for() {
    assert_eq!(unbiased(&["tokio::select! {", "    biased;", "    a = b => {}", "}"]), [] as [usize; 0]);
    assert_eq!(unbiased(&["x", "tokio::select! {", "    a = b => {}", "}"]), [2]);
    let machine = |text: &str| Source { path: "crates/machine/src/lib.rs".into(), text: text.into() };
    assert_eq!(unexplained_hash_map(&machine("use std::collections::{BTreeMap, HashMap};")), Some(1));
    assert_eq!(unexplained_hash_map(&machine("// hash-order: looked up only\nuse std::collections::HashMap;")), None);
    assert_eq!(unexplained_hash_map(&machine("// hash-order: \nuse std::collections::HashMap;")), Some(2));
    assert_eq!(unexplained_hash_map(&machine("/// Not a HashMap.\nuse hashes::FxHashMap;")), None);
    assert_eq!(unexplained_statics(&machine("    pub static A: u8 = 1;")), [1]);
    assert_eq!(
        unexplained_statics(&machine("// shared: never changes\nstatic A: u8 = 1;\nfn f(a: &'static str) {}")),
        [] as [usize; 0]
    );
}
