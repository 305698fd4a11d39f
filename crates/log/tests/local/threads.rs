//! The real thing: threads for the steppers, the operating system's files.
#![allow(clippy::disallowed_methods, reason = "what is tested here is how the log meets the real world")]

use crate::harness::{A, B, C, Mailbox};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use surefoot_env::{OsDisk, OsTasks, Step, Steps, Tasks};
use surefoot_log::local::{self, Opened, Options};
use surefoot_log::{Entry, Log};
use surefoot_model::{Epoch, Lsn, PartitionId};

const APPENDERS: u64 = 4;
const APPENDS: u64 = 2000;

/// A directory that goes with the test, however it ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A stepper that is known to have ended once all `mpsc::Sender`s are gone.
struct Ends(Box<dyn Steps>, #[expect(dead_code, reason = "dropping it is its use")] mpsc::Sender<()>);

impl Steps for Ends {
    fn step(&mut self) -> Step {
        self.0.step()
    }
}

fn open(dir: &Path, replayed: &mut Vec<Entry>) -> Opened {
    let options = Options { segment_bytes_min: 64 << 10, segment_bytes_max: 256 << 10, ..Options::new(|why| panic!("{why}")) };
    local::open(Arc::new(OsDisk), dir, options, &BTreeMap::new(), &mut |entry| {
        replayed.push(entry);
        Ok(())
    })
    .unwrap()
}

#[test]
fn several_threads_append_and_a_restart_finds_it_all() {
    let dir = Scratch(std::env::temp_dir().join(format!("surefoot-log-threads-{}", std::process::id())));
    let opened = open(&dir.0, &mut Vec::new());
    let (log, mailbox) = (opened.log, Arc::new(Mailbox::default()));
    [A, B, C].into_iter().for_each(|p| log.connect(p, mailbox.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tasks = OsTasks::new(runtime.handle().clone());
    let (running, ended) = mpsc::channel();
    for stepper in [opened.writer, opened.filler] {
        tasks.drive(stepper.name, stepper.wake, Box::new(Ends(stepper.steps, running.clone())));
    }
    drop(running);
    let (done, durable) = mpsc::channel::<Lsn>();
    std::thread::scope(|scope| {
        for appender in 0..APPENDERS {
            let (log, done) = (log.clone(), done.clone());
            scope.spawn(move || {
                for n in 0..APPENDS {
                    let done = done.clone();
                    let payload = Bytes::from(format!("{appender}:{n}:{}", "x".repeat((n % 300) as usize)));
                    let partition = [A, B, C][(n % 3) as usize];
                    log.append(partition, Epoch(1), vec![payload], Some(Box::new(move |lsn| done.send(lsn).unwrap())));
                }
            });
        }
    });
    drop(done);
    assert_eq!(durable.iter().count() as u64, APPENDERS * APPENDS, "every caller is told");
    log.close();
    assert_eq!(ended.iter().count(), 0, "both steppers end");
    let live = mailbox.take().concat();
    let mut replayed = Vec::new();
    let again = open(&dir.0, &mut replayed);
    assert_eq!(replayed, live);
    let count = |p: PartitionId| live.iter().filter(|e| e.partition == p).count() as u64;
    for partition in [A, B, C] {
        assert_eq!(again.recovery.bounds(partition).next, Lsn(count(partition) + 1));
    }
}
