//! The arrows between rooms, the outside crates that belong to one room, and what every room's folder carries.
//!
//! Owns: the tables. A new arrow is a change of the architecture: it is made here and in ARCHITECTURE.md, in a commit of its own.

use crate::sources::{SIMULATED, expect_none, room_dirs, root};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Each room, and the rooms that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("env", &[]),
    ("client", &[]),
    ("listener", &["env"]),
    ("machine", &["model"]),
    ("protocol", &["model"]),
    ("log", &["model", "env"]),
    ("storage", &["model", "env", "machine"]),
    ("invoker", &["model", "env", "protocol"]),
    ("partition", &["model", "env", "machine", "storage", "log", "invoker"]),
    ("ingress", &["model", "env", "listener", "protocol", "partition"]),
    ("kafka", &["model", "env", "protocol", "partition"]),
    ("admin", &["model", "env", "listener", "partition", "protocol", "invoker"]),
    ("query", &["model", "storage"]),
    (
        "server",
        &[
            "model",
            "env",
            "listener",
            "machine",
            "protocol",
            "log",
            "storage",
            "invoker",
            "partition",
            "ingress",
            "kafka",
            "admin",
            "query",
        ],
    ),
    ("cli", &["server", "client"]),
    (
        "sim",
        &["server", "model", "env", "machine", "protocol", "log", "storage", "invoker", "partition", "ingress", "kafka", "admin"],
    ),
    ("demo", &["server", "client", "examples/rust", "sdk-tests"]),
    ("bench", &["client", "sdk-tests"]),
    ("sdk-tests", &["client"]),
    ("examples/rust", &[]),
    ("xtask", &[]),
];

/// Outside crates that only these rooms may name.
const BELONGS_TO: &[(&str, &[&str])] = &[
    ("fjall", &["storage"]),
    ("lsm-tree", &["storage"]),
    ("sfa", &["storage"]),
    ("rdkafka", &["kafka", "demo", "bench", "sdk-tests"]),
    ("datafusion", &["query"]),
    ("arrow", &["query"]),
    ("prost", &["protocol"]),
    ("axum", &["admin", "demo", "sdk-tests"]),
    ("getrandom", &["env"]),
    ("rustix", &["env", "server"]),
    ("anyhow", &["cli", "demo", "bench", "sdk-tests", "xtask", "examples/rust"]),
];

/// Outside crates that a room may never name, because of what the room is.
const NEVER: &[(&str, &[&str])] = &[
    ("model", &["tokio", "tracing", "metrics", "serde", "http", "hyper", "rand"]),
    ("machine", &["tokio", "tracing", "metrics", "hyper", "rand", "futures-util"]),
    ("protocol", &["tokio", "tracing", "metrics", "hyper", "rand", "futures-util"]),
    ("log", &["hyper", "rand"]),
    ("storage", &["hyper", "rand"]),
    ("partition", &["hyper", "rand"]),
];

struct Package {
    name: String,
    /// Below the root: `crates/log`, `bench`.
    dir: String,
    /// Names and kinds (`normal`, `dev`, `build`).
    dependencies: Vec<(String, String)>,
}

impl Package {
    fn room(&self) -> &str {
        self.dir.strip_prefix("crates/").unwrap_or(&self.dir)
    }
}

fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter().map(|package| {
        let manifest = std::path::Path::new(package["manifest_path"].as_str().unwrap());
        let dependencies = package["dependencies"].as_array().unwrap().iter().map(|dependency| {
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            (dependency["name"].as_str().unwrap().to_owned(), kind.to_owned())
        });
        Package {
            name: package["name"].as_str().unwrap().to_owned(),
            dir: manifest.parent().unwrap().strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
            dependencies: dependencies.collect(),
        }
    });
    packages.collect()
}

fn package_name(room: &str) -> String {
    match room {
        "cli" => "surefoot".to_owned(),
        "xtask" => "xtask".to_owned(),
        "examples/rust" => "surefoot-example-rust".to_owned(),
        room => format!("surefoot-{room}"),
    }
}

/// All rooms that `room` reaches over arrows.
fn below(room: &str) -> BTreeSet<&'static str> {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = arrows[room].to_vec();
    while let Some(next) = open.pop() {
        assert_ne!(next, room, "the arrows of {room} lead back to it");
        if found.insert(next) {
            open.extend(arrows[next]);
        }
    }
    found
}

#[test]
fn rooms_depend_only_inward() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let packages = packages();
    let rooms: BTreeMap<&str, &str> = packages.iter().map(|p| (p.name.as_str(), p.room())).collect();
    let mut faults = Vec::new();
    for package in &packages {
        let Some(allowed) = arrows.get(package.room()) else {
            faults.push(format!("{} is in no table: add its arrows", package.dir));
            continue;
        };
        let below = below(package.room());
        for (name, kind) in &package.dependencies {
            let Some(room) = rooms.get(name.as_str()) else { continue };
            // Tests may also name what lies further down, and drive a server through its client.
            let in_tests = kind == "dev" && (below.contains(room) || *room == "client" || *room == package.room());
            if !allowed.contains(room) && !in_tests {
                faults.push(format!("{} -> {room} ({kind})", package.room()));
            }
        }
    }
    expect_none("arrows that the table of rooms does not have:", faults);
}

#[test]
fn a_package_is_named_for_its_folder() {
    let wrong = packages().into_iter().filter(|p| p.name != package_name(p.room()));
    expect_none("package names:", wrong.map(|p| format!("{} is named {}", p.dir, p.name)).collect());
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let mut faults = Vec::new();
    for package in packages() {
        let room = package.room();
        for (name, kind) in package.dependencies.iter().filter(|(_, kind)| kind != "dev") {
            if BELONGS_TO.iter().any(|(outside, rooms)| outside == name && !rooms.contains(&room)) {
                faults.push(format!("{room} names {name} ({kind}), which belongs to another room"));
            }
            if NEVER.iter().any(|(of, never)| *of == room && never.contains(&name.as_str())) {
                faults.push(format!("{room} names {name} ({kind}), which it must do without"));
            }
        }
    }
    expect_none("outside crates:", faults);
}

#[test]
fn the_demo_is_built_without_tls_and_sql() {
    let slow = ["openssl-sys", "rustls", "zstd-sys", "datafusion", "arrow"];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "tree",
            "--package",
            "surefoot-demo",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("rdkafka-sys"), "the demo's dependencies were not found");
    let found = names.into_iter().filter(|name| slow.contains(name)).map(str::to_owned);
    expect_none("a newcomer would wait for these while the demo is built:", found.collect());
}

#[test]
fn every_package_takes_the_workspace_lints() {
    let without = packages().into_iter().filter(|package| {
        let manifest = std::fs::read_to_string(root().join(&package.dir).join("Cargo.toml")).unwrap();
        !manifest.contains("[lints]\nworkspace = true")
    });
    expect_none("add `[lints]` with `workspace = true`:", without.map(|package| package.dir).collect());
}

#[test]
fn simulated_rooms_link_to_the_bans() {
    let faults = room_dirs().into_iter().filter_map(|dir| {
        let room = dir.file_name()?.to_str()?.to_owned();
        let link = std::fs::read_link(dir.join("clippy.toml")).ok();
        let links = link.is_some_and(|to| to.to_str() == Some("../../clippy-simulated.toml"));
        (links != SIMULATED.contains(&room.as_str())).then_some(room)
    });
    expect_none("clippy.toml must link to ../../clippy-simulated.toml in simulated rooms, and only there:", faults.collect());
}

#[test]
fn simulated_rooms_keep_the_common_settings() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let (common, simulated) = (read("clippy.toml"), read("clippy-simulated.toml"));
    let missing = common.lines().filter(|line| !line.starts_with('#') && !simulated.lines().any(|other| other == *line));
    expect_none("clippy-simulated.toml replaces clippy.toml and lacks:", missing.map(str::to_owned).collect());
}
