//! The demo as a newcomer runs it: the built program, with small numbers.
//!
//! Does not own: whether the judge finds faults, which his unit tests show.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const INTERRUPTED: i32 = 130;

fn demo(files: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_surefoot-demo"));
    command.args(arguments.split_whitespace()).env("TMPDIR", files).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The number in the row of the summary with this name.
fn figure(output: &str, name: &str) -> u64 {
    let row = output.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in\n{output}"));
    row.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
}

fn is_empty(directory: &Path) -> bool {
    directory.read_dir().unwrap().next().is_none()
}

#[test]
fn every_event_is_applied_once_and_in_order_while_server_and_handlers_are_killed() {
    let files = tempfile::tempdir().unwrap();
    let output = demo(files.path(), "--events 900 --keys 60 --rate 300 --kills 3").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}\n{text}", output.status);
    for (name, expected) in [
        ("events in", 900),
        ("invocations done", 900),
        ("killed with -9", 4),
        ("events lost", 0),
        ("applied twice", 0),
        ("out of order", 0),
        ("finished steps again", 0),
    ] {
        assert_eq!(figure(&text, name), expected, "{name} in\n{text}");
    }
    assert!(figure(&text, "attempts") > 900, "kills cut off attempts:\n{text}");
    assert!(figure(&text, "steps run") >= 3 * 900 && figure(&text, "throughput") > 0, "{text}");
    assert!(text.contains("p99") && text.ends_with("in the order of its key.\n"), "{text}");
    assert!(is_empty(files.path()), "files were left");
}

#[test]
fn numbers_that_the_mock_broker_cannot_hold_are_refused() {
    let files = tempfile::tempdir().unwrap();
    for arguments in ["--events 50001", "--events 10 --keys 20", "--events 5000 --keys 1", "--kills 51", "--rate 0"] {
        let output = demo(files.path(), arguments).output().unwrap();
        assert!(!output.status.success() && !output.stderr.is_empty(), "{arguments}: {output:?}");
    }
    assert!(is_empty(files.path()));
}

/// Waits until all processes of a run are up, and returns the addresses of handlers and server.
fn addresses(demo: &mut Child) -> Vec<String> {
    let mut addresses = Vec::new();
    for line in BufReader::new(demo.stdout.as_mut().unwrap()).lines() {
        let line = line.unwrap();
        addresses.extend(line.split("http://").skip(1).map(|rest| rest.split([',', ' ']).next().unwrap().to_owned()));
        if line.contains("topic") {
            break;
        }
    }
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    addresses
}

fn expect_gone(addresses: &[String]) {
    let deadline = Instant::now() + LIMIT;
    for address in addresses {
        while TcpStream::connect(address).is_ok() {
            assert!(Instant::now() < deadline, "{address} still answers");
            std::thread::yield_now();
        }
    }
}

#[test]
fn ctrl_c_ends_all_processes_and_removes_their_files() {
    let files = tempfile::tempdir().unwrap();
    let mut demo = demo(files.path(), "--events 5000 --rate 50").spawn().unwrap();
    let addresses = addresses(&mut demo);
    assert!(addresses.iter().all(|address| TcpStream::connect(address).is_ok()));
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    // Read to the end, so that it is not held up by its output.
    demo.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(INTERRUPTED));
    expect_gone(&addresses);
    assert!(is_empty(files.path()), "files were left");
}

#[test]
fn no_process_outlives_a_demo_that_is_killed_itself() {
    let files = tempfile::tempdir().unwrap();
    let mut demo = demo(files.path(), "--events 5000 --rate 50").spawn().unwrap();
    let addresses = addresses(&mut demo);
    demo.kill().unwrap();
    assert_eq!(demo.wait().unwrap().signal(), Some(9));
    expect_gone(&addresses);
}
