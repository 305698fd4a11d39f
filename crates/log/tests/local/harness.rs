//! A log on a simulated disk whose steppers are stepped by hand.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use surefoot_env::sim::SimDisk;
use surefoot_env::{Step, Steps};
use surefoot_log::local::{self, Error, LocalLog, Options, Recovery};
use surefoot_log::{Durable, Entry, Log, Sink};
use surefoot_model::{Epoch, Lsn, PartitionId};

pub(crate) const DIR: &str = "/log";
pub(crate) const A: PartitionId = PartitionId(0);
pub(crate) const B: PartitionId = PartitionId(1);
pub(crate) const C: PartitionId = PartitionId::CATALOG;

/// Keeps every delivery as it came.
#[derive(Default)]
pub(crate) struct Mailbox(pub(crate) Mutex<Vec<Vec<Entry>>>);

impl Mailbox {
    pub(crate) fn take(&self) -> Vec<Vec<Entry>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Sink for Mailbox {
    fn durable(&self, entries: Vec<Entry>) {
        self.0.lock().unwrap().push(entries);
    }
}

pub(crate) struct Node {
    pub(crate) disk: SimDisk,
    pub(crate) log: LocalLog,
    pub(crate) writer: Box<dyn Steps>,
    pub(crate) filler: Box<dyn Steps>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) recovered: Vec<Entry>,
    pub(crate) recovery: Recovery,
    pub(crate) fatal: Arc<Mutex<Vec<String>>>,
}

/// Small segments and batches, so that little work meets every edge. Only an idle log writes a witness.
pub(crate) fn small() -> Options {
    Options {
        segment_bytes_min: 1024,
        segment_bytes_max: 4096,
        reserve_bytes: 1024,
        batch_bytes_max: 512,
        ..Options::new(|_| {})
    }
}

impl Node {
    pub(crate) fn start(disk: &SimDisk) -> Result<Self, Error> {
        Self::start_with(disk, small())
    }

    pub(crate) fn start_with(disk: &SimDisk, options: Options) -> Result<Self, Error> {
        Self::start_behind(disk, options, &BTreeMap::new())
    }

    /// As a process whose checkpoints cover entries up to those LSNs.
    pub(crate) fn start_behind(
        disk: &SimDisk,
        mut options: Options,
        covered: &BTreeMap<PartitionId, Lsn>,
    ) -> Result<Self, Error> {
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let told = fatal.clone();
        options.fatal = Arc::new(move |message| told.lock().unwrap().push(message));
        let mut recovered = Vec::new();
        let opened = local::open(Arc::new(disk.clone()), Path::new(DIR), options, covered, &mut |entry| {
            recovered.push(entry);
            Ok(())
        })?;
        let mailbox = Arc::new(Mailbox::default());
        for partition in [A, B, C] {
            opened.log.connect(partition, mailbox.clone());
        }
        Ok(Self {
            disk: disk.clone(),
            log: opened.log,
            writer: opened.writer.steps,
            filler: opened.filler.steps,
            mailbox,
            recovered,
            recovery: opened.recovery,
            fatal,
        })
    }

    pub(crate) fn append(&self, partition: PartitionId, payloads: &[&str]) {
        self.append_then(partition, payloads, None);
    }

    pub(crate) fn append_then(&self, partition: PartitionId, payloads: &[&str], durable: Option<Durable>) {
        let payloads = payloads.iter().map(|p| Bytes::copy_from_slice(p.as_bytes())).collect();
        self.log.append(partition, Epoch(1), payloads, durable);
    }

    /// Steps the writer until it has nothing more to write for now.
    pub(crate) fn write_out(&mut self) {
        while self.writer.step() == Step::Worked {}
    }

    /// Lets time pass: the writer vouches, the filler finishes.
    pub(crate) fn settle(&mut self) {
        while !matches!(self.writer.step(), Step::Idle | Step::Done) {}
        while self.filler.step() == Step::Worked {}
    }

    /// Appends and writes out one batch each.
    pub(crate) fn batches(&mut self, batches: &[&[(PartitionId, &str)]]) {
        for batch in batches {
            for (partition, payload) in *batch {
                self.append(*partition, &[payload]);
            }
            self.write_out();
        }
    }

    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        files(&self.disk, "seg")
    }
}

pub(crate) fn files(disk: &SimDisk, extension: &str) -> Vec<PathBuf> {
    use surefoot_env::Disk;
    let all = disk.list(Path::new(DIR)).unwrap();
    all.into_iter().filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
}

pub(crate) fn segment(number: u64) -> PathBuf {
    Path::new(DIR).join(format!("{number:010}.seg"))
}

pub(crate) fn shown(entries: &[Entry]) -> Vec<(PartitionId, u64, String)> {
    entries.iter().map(|e| (e.partition, e.lsn.0, String::from_utf8_lossy(&e.payload).into_owned())).collect()
}

pub(crate) fn entry(partition: PartitionId, lsn: u64, payload: &str) -> Entry {
    Entry { partition, lsn: Lsn(lsn), epoch: Epoch(1), payload: Bytes::copy_from_slice(payload.as_bytes()) }
}
