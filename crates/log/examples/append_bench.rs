//! Appends per second and their latency: N appenders, each waiting until its event of 300 bytes is durable.
//!
//! `cargo run --release -p surefoot-log --example append_bench [DIRECTORY] [SECONDS]`; the directory must be on the disk in
//! question and is left empty.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]
#![allow(clippy::disallowed_methods, reason = "it measures the real world")]

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use surefoot_env::{Disk, File, OsDisk, OsTasks, Space};
use surefoot_log::local::{self, Options};
use surefoot_log::{Entry, Log, Sink};
use surefoot_model::{Epoch, Lsn, PartitionId};
use tokio::sync::oneshot;

const EVENT_BYTES: usize = 300;
const PARTITIONS: u16 = 16;
/// So much is kept before it is trimmed, as a checkpoint would.
const KEPT: u64 = 100_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("surefoot-append-bench"), PathBuf::from);
    let seconds = args.next().map_or(3, |s| s.parse().expect("a number of seconds"));
    println!("appenders  appends/s   p50 us   p99 us  bytes written/append  syncs/append");
    for appenders in [1, 16, 128] {
        measure(&dir, appenders, Duration::from_secs(seconds));
    }
}

struct Trim {
    log: local::LocalLog,
}

impl Sink for Trim {
    fn durable(&self, entries: Vec<Entry>) {
        for entry in entries.iter().filter(|e| e.lsn.0.is_multiple_of(1000)) {
            self.log.trim(entry.partition, Lsn(entry.lsn.0.saturating_sub(KEPT / u64::from(PARTITIONS))));
        }
    }
}

fn measure(dir: &Path, appenders: usize, duration: Duration) {
    std::fs::remove_dir_all(dir).ok();
    let disk = Arc::new(Counting::default());
    let options = Options::new(|message| panic!("{message}"));
    let opened =
        local::open(disk.clone(), dir, options, &BTreeMap::new(), &mut |_| Ok(())).expect("open a log in an empty directory");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let tasks = OsTasks::new(runtime.handle().clone());
    let log = opened.log;
    let sink = Arc::new(Trim { log: log.clone() });
    (0..PARTITIONS).for_each(|p| log.connect(PartitionId(p), sink.clone()));
    opened.writer.drive(&tasks);
    opened.filler.drive(&tasks);
    let payload = Bytes::from(vec![42; EVENT_BYTES]);
    let (start, written, syncs) = (Instant::now(), disk.written(), disk.syncs());
    let mut times = runtime.block_on(async {
        let running = (0..appenders).map(|n| {
            let (log, payload) = (log.clone(), payload.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < duration {
                    let (done, durable) = oneshot::channel();
                    let at = Instant::now();
                    let tell = Box::new(move |_| _ = done.send(()));
                    log.append(PartitionId(n as u16 % PARTITIONS), Epoch(1), vec![payload.clone()], Some(tell));
                    durable.await.expect("the log outlives its appenders");
                    times.push(at.elapsed().as_nanos() as u64 / 1000);
                }
                times
            })
        });
        let running: Vec<_> = running.collect();
        let mut times = Vec::new();
        for appender in running {
            times.extend(appender.await.expect("an appender ends well"));
        }
        times
    });
    let elapsed = start.elapsed().as_secs_f64();
    log.close();
    times.sort_unstable();
    let appends = times.len() as f64;
    println!(
        "{appenders:9}  {:9.0}  {:7}  {:7}  {:20.0}  {:12.3}",
        appends / elapsed,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        (disk.written() - written) as f64 / appends,
        (disk.syncs() - syncs) as f64 / appends,
    );
    std::fs::remove_dir_all(dir).ok();
}

/// The operating system's disk, counted.
#[derive(Default)]
struct Counting(Arc<[AtomicU64; 2]>);

impl Counting {
    fn written(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    fn syncs(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }
}

struct CountingFile(Box<dyn File>, Arc<[AtomicU64; 2]>);

impl Disk for Counting {
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn File>> {
        Ok(Box::new(CountingFile(OsDisk.create(path)?, self.0.clone())))
    }

    fn open(&self, path: &Path) -> std::io::Result<Box<dyn File>> {
        Ok(Box::new(CountingFile(OsDisk.open(path)?, self.0.clone())))
    }

    fn list(&self, dir: &Path) -> std::io::Result<Vec<PathBuf>> {
        OsDisk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> std::io::Result<()> {
        OsDisk.remove(path)
    }

    fn create_dir(&self, dir: &Path) -> std::io::Result<()> {
        OsDisk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        OsDisk.sync_dir(dir)
    }

    fn space(&self, dir: &Path) -> std::io::Result<Space> {
        OsDisk.space(dir)
    }
}

impl File for CountingFile {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.1[0].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.0.write_at(offset, bytes)
    }

    fn truncate(&self, bytes: u64) -> std::io::Result<()> {
        self.0.truncate(bytes)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.1[1].fetch_add(1, Ordering::Relaxed);
        self.0.sync_data()
    }
}
