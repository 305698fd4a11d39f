//! A data directory in which one file is damaged: a start names it and says what to do, or has lost nothing.

use crate::World;
use std::fs;
use std::path::{Path, PathBuf};
use surefoot_server::doctor;
use tempfile::tempdir_in;

const CALLS: usize = 12;
/// A file system in memory: a sync takes no time there.
const MEMORY: &str = "/dev/shm";

/// What somebody or something does to a file.
struct Damage(&'static str, fn(&Path));

const DAMAGES: [Damage; 7] = [
    Damage("is missing", |path| fs::remove_file(path).unwrap()),
    Damage("is empty", |path| fs::write(path, "").unwrap()),
    Damage("is cut in half", |path| change(path, |bytes| bytes.truncate(bytes.len() / 2))),
    Damage("lacks its last byte", |path| change(path, |bytes| _ = bytes.pop())),
    Damage("has zeros for its second half", |path| {
        change(path, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle..].fill(0);
        });
    }),
    Damage("is garbage", |path| {
        change(path, |bytes| bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37 + 11) as u8));
    }),
    Damage("has a byte changed", |path| {
        change(path, |bytes| {
            let middle = bytes.len() / 2;
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 0x55);
        });
    }),
];

/// What a refusal tells to do.
const ADVICE: [&str; 4] = ["from a backup", "another --data-dir", "empty --data-dir", "start the version that wrote it"];

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// All files below a directory, by their names in it.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { dirs.push(path) } else { found.push(path.strip_prefix(dir).unwrap().to_owned()) }
        }
    }
    found.sort();
    found
}

/// Of all files but the lock, which says who looked.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files_below(dir).into_iter().filter(|file| file != Path::new("LOCK"));
    files.map(|file| (file.clone(), fs::read(dir.join(file)).unwrap())).collect()
}

fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

/// A node that has acknowledged all calls.
async fn called(directory: &Path) -> World {
    let world = World::start(directory).await;
    for n in 0..CALLS {
        let headers = ["content-type: application/json", &format!("idempotency-key: k{n}")];
        let answer = world.call(&format!("POST /Obj/k{n}/echo"), &headers, &n.to_string()).await;
        assert_eq!((answer.status, answer.body), (200, n.to_string()));
    }
    world
}

/// One in which the tables have all that the log has.
async fn written(directory: &Path) {
    called(directory).await.stop().await;
}

async fn listed(world: &World) -> usize {
    world.ask("GET /invocations").await.json()["invocations"].as_array().unwrap().len()
}

#[tokio::test]
async fn whatever_file_is_damaged_a_start_names_it_and_says_what_to_do_or_has_lost_nothing() {
    let dir = tempdir_in(MEMORY).unwrap();
    written(dir.path()).await;
    let data = dir.path().join("data");
    let (mut refused, mut started) = (0, 0);
    for file in files_below(&data) {
        for Damage(what, damage) in DAMAGES {
            let case = format!("{} {what}", file.display());
            let copied = tempdir_in(MEMORY).unwrap();
            let copied_data = copied.path().join("data");
            copy(&data, &copied_data);
            let path = copied_data.join(&file);
            damage(&path);
            let before = contents(&copied_data);
            // It looks first, and changes nothing.
            let faults = doctor::examine(&copied_data).map(|found| found.faults);
            match World::try_bare(copied.path(), |_| ()).await {
                Ok(world) => {
                    started += 1;
                    let health = world.ask("GET /health").await;
                    let listed = listed(&world).await;
                    if health.status == 200 {
                        assert_eq!(listed, CALLS, "{case}, in silence");
                    } else {
                        // Partitions that cannot read their part of it have stopped, and say so.
                        assert!(health.body.contains("partition"), "{case}: {}", health.body);
                        assert!(
                            faults.is_err() || faults.is_ok_and(|faults| !faults.is_empty()),
                            "{case}, and the doctor finds nothing"
                        );
                    }
                    world.stop().await;
                }
                Err(error) => {
                    refused += 1;
                    let error = error.to_string();
                    // A log that was cut short at its end is told by what the tables have.
                    let is_of_log = file.starts_with("log") && error.contains("log");
                    let is_named = error.contains(path.to_str().unwrap()) || error.contains("but no FORMAT");
                    assert!(is_of_log || is_named, "{case}: {error}");
                    if error.contains("cannot open the tables") {
                        assert!(contents(&copied_data) == before, "{case}, and something was changed");
                    }
                    assert!(ADVICE.iter().any(|advice| error.contains(advice)), "{case}: {error}");
                    assert!(
                        faults.is_err() || faults.is_ok_and(|faults| !faults.is_empty()),
                        "{case}, and the doctor finds nothing"
                    );
                }
            }
        }
    }
    assert!(refused > 30 && started > 5, "{refused} were refused, {started} started");
}

/// A log file that was cut passed for one whose end a power failure had torn: of 618 records that were acknowledged 598 were gone, and nobody said so.
#[tokio::test]
async fn a_log_file_that_is_cut_short_is_refused_where_the_tables_have_nothing_of_it_yet() {
    let dir = tempdir_in(MEMORY).unwrap();
    let world = called(dir.path()).await;
    // What a kill would leave.
    let killed = tempdir_in(MEMORY).unwrap();
    copy(&dir.path().join("data"), &killed.path().join("data"));
    world.stop().await;
    let segments =
        files_below(&killed.path().join("data")).into_iter().filter(|file| file.extension().is_some_and(|e| e == "seg"));
    let last = segments.max().expect("a log has a segment");
    let whole = fs::metadata(killed.path().join("data").join(&last)).unwrap().len();
    for kept in [1, 100, 300, 1_000, 3_000, whole / 2, whole - 1] {
        let cut = tempdir_in(MEMORY).unwrap();
        let data = cut.path().join("data");
        copy(&killed.path().join("data"), &data);
        fs::File::options().write(true).open(data.join(&last)).unwrap().set_len(kept).unwrap();
        let told = doctor::examine(&data).unwrap().faults.join("\n");
        let error = World::try_bare(cut.path(), |_| ()).await.err().expect("refused").to_string();
        for told in [told, error] {
            assert!(told.contains("SF4002") && told.contains(data.join(&last).to_str().unwrap()), "{kept} bytes: {told}");
            assert!(kept < 1_000 || told.contains(&format!("has {kept} bytes, and had {whole}")), "{told}");
        }
    }
    let world = World::try_bare(killed.path(), |_| ()).await.unwrap();
    assert_eq!(listed(&world).await, CALLS);
    world.stop().await;
}
