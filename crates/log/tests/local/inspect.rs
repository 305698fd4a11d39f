//! Looking at a log without changing it: all that recovery refuses is told, and what it would not read as well.

use crate::harness::{A, B, DIR, Node, segment};
use std::collections::BTreeMap;
use std::path::Path;
use surefoot_env::Disk;
use surefoot_env::sim::SimDisk;
use surefoot_log::local::{Bounds, Error, Inspection, inspect};
use surefoot_model::Lsn;

const PAYLOAD: &str = "a payload of a length that is not so short that segments would hold a great many of them";

/// Several closed segments, and one that is written.
fn written() -> SimDisk {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    for _ in 0..60 {
        node.batches(&[&[(A, PAYLOAD), (B, "b")]]);
    }
    node.settle();
    assert!(node.segments().len() > 4);
    disk
}

/// Looks, and makes sure that nothing was changed.
fn look(disk: &SimDisk, covered: u64) -> (Inspection, usize) {
    let covered = BTreeMap::from([(A, Lsn(covered)), (B, Lsn(covered))]);
    let (before, mut replayed) = (disk.operations(), 0);
    let found = inspect(disk, Path::new(DIR), &covered, &mut |_| {
        replayed += 1;
        Ok(())
    });
    assert_eq!(disk.operations(), before, "it changed something");
    (found.unwrap(), replayed)
}

#[test]
fn a_sound_log_has_no_faults_and_its_tail_is_handed_out() {
    let disk = written();
    let (found, replayed) = look(&disk, 50);
    assert!(found.faults.is_empty(), "{:?}", found.faults);
    assert_eq!(replayed, 20);
    assert_eq!(found.partitions[&A], Bounds { first: Lsn(1), next: Lsn(61) });
    assert_eq!(found.torn_bytes, 0);
}

#[test]
fn damage_is_named_also_where_checkpoints_cover_it_and_each_of_several() {
    let disk = written();
    let flip = |number, at: u64| {
        let file = disk.open(&segment(number)).unwrap();
        let mut byte = [0];
        file.read_at(at, &mut byte).unwrap();
        file.write_at(at, &[byte[0] ^ 4]).unwrap();
    };
    flip(1, 300);
    flip(3, 400);
    let (found, replayed) = look(&disk, 60);
    assert_eq!(replayed, 0);
    let places: Vec<_> = found
        .faults
        .iter()
        .filter_map(|fault| match fault {
            Error::Damaged { path, offset, .. } => Some((path.clone(), *offset)),
            _ => None,
        })
        .collect();
    assert_eq!(found.faults.len(), 2, "{:?}", found.faults);
    assert_eq!(places[0].0, segment(1));
    assert!(places[0].1 <= 300 && places[0].1 > 0);
    assert_eq!(places[1].0, segment(3));
    flip(1, 300);
    flip(3, 400);
    assert!(look(&disk, 60).0.faults.is_empty());
}

#[test]
fn missing_segments_are_named() {
    let disk = written();
    disk.remove(&segment(2)).unwrap();
    let faults = look(&disk, 60).0.faults;
    assert!(matches!(&faults[..], [Error::Missing { path }] if *path == segment(2)), "{faults:?}");

    let disk = written();
    let last = disk.list(Path::new(DIR)).unwrap().into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg")).max();
    disk.remove(&last.clone().unwrap()).unwrap();
    let faults = look(&disk, 60).0.faults;
    assert!(matches!(&faults[..], [Error::LastMissing { path, .. }] if Some(path) == last.as_ref()), "{faults:?}");
}
