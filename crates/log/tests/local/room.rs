//! Where room or descriptors run out (rule L8): running work goes on in the reserve, what comes from outside waits, and nothing ends
//! or is lost. A failed sync is another matter (rule L4).

use crate::harness::{A, B, Node, files, segment, shown, small};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_env::{Disk, Step};
use surefoot_log::local::{Bounds, Error, Options};
use surefoot_log::{Log, Room};
use surefoot_model::Lsn;

const PAYLOAD: &str = "a payload of a length that is not so short that segments would hold a great many of them";

/// A log with its reserve, on a disk that takes not one byte more.
fn full() -> (SimDisk, Node) {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.settle();
    assert_eq!(files(&disk, "spare").len(), 1, "the reserve");
    disk.set_capacity(disk.bytes_used());
    (disk, node)
}

/// Steps until both wait; says what the writer waits for.
fn run(node: &mut Node) -> Step {
    for _ in 0..10_000 {
        let (filled, step) = (node.filler.step(), node.writer.step());
        if step != Step::Worked && filled != Step::Worked {
            return step;
        }
    }
    panic!("it never rests");
}

#[test]
fn running_work_goes_on_in_the_reserve_and_what_comes_from_outside_waits() {
    let (disk, mut node) = full();
    let mut work = 0;
    while node.log.retained().room == Room::Enough {
        node.batches(&[&[(A, PAYLOAD)]]);
        work += 1;
    }
    assert_eq!(node.log.retained().room, Room::Reserve);
    node.mailbox.take();
    let told = Arc::new(Mutex::new(Vec::new()));
    for payload in ["b1", "b2"] {
        let told = told.clone();
        let payloads = vec![payload.into()];
        let teller = Box::new(move |lsn: Lsn| told.lock().unwrap().push(lsn.0));
        node.log.append_from_outside(B, surefoot_model::Epoch(1), payloads, Some(teller));
    }
    node.append(A, &["work"]);
    run(&mut node);
    assert_eq!(shown(&node.mailbox.take().concat()), [(A, work + 1, "work".to_owned())]);
    assert!(told.lock().unwrap().is_empty());

    disk.set_capacity(u64::MAX);
    while node.log.retained().room != Room::Enough {
        run(&mut node);
    }
    run(&mut node);
    let late = shown(&node.mailbox.take().concat());
    assert_eq!(late, [(B, 1, "b1".to_owned()), (B, 2, "b2".to_owned())], "in their order");
    assert_eq!(*told.lock().unwrap(), [1, 2]);
    assert!(node.fatal.lock().unwrap().is_empty());
}

/// A clean stop left what a client had asked for on a full disk to the next start (rule M7).
#[test]
fn at_a_stop_nothing_is_written_behind_what_was_appended_last() {
    let (disk, mut node) = full();
    while node.log.retained().room == Room::Enough {
        node.batches(&[&[(A, PAYLOAD)]]);
    }
    node.mailbox.take();
    node.log.append_from_outside(B, surefoot_model::Epoch(1), vec!["waits".into()], None);
    node.append(A, &["work"]);
    run(&mut node);
    node.log.drop_waiting();
    node.log.append_from_outside(B, surefoot_model::Epoch(1), vec!["late".into()], None);
    node.append(A, &["last"]);
    run(&mut node);
    let written = shown(&node.mailbox.take().concat());
    assert_eq!(written.iter().map(|(_, _, payload)| payload.as_str()).collect::<Vec<_>>(), ["work", "last"]);
    disk.set_capacity(u64::MAX);
    while node.log.retained().room != Room::Enough {
        run(&mut node);
    }
    run(&mut node);
    assert!(node.mailbox.take().is_empty(), "nothing came behind it");
}

#[test]
fn a_log_that_finds_no_room_at_all_waits_and_goes_on_by_itself() {
    let (disk, mut node) = full();
    let mut appended = 0;
    while node.log.retained().room != Room::None {
        node.append(A, &[PAYLOAD]);
        appended += 1;
        run(&mut node);
    }
    let durable = shown(&node.mailbox.take().concat()).len();
    assert_eq!(durable, appended - 1, "what found no room is not acknowledged");
    for _ in 0..10 {
        node.append(A, &["later"]);
        assert!(matches!(run(&mut node), Step::IdleFor(_)));
    }
    assert!(node.mailbox.take().is_empty() && node.fatal.lock().unwrap().is_empty());
    let lost = disk.fork();
    lost.lose_power(&mut |_| false);
    lost.set_capacity(u64::MAX);
    assert_eq!(Node::start(&lost).unwrap().recovered.len(), durable);

    disk.set_capacity(u64::MAX);
    while node.log.retained().room != Room::Enough {
        run(&mut node);
    }
    assert_eq!(node.mailbox.take().concat().len(), 11);
    disk.lose_power(&mut |_| false);
    assert_eq!(Node::start(&disk).unwrap().recovered.len(), durable + 11);
}

#[test]
fn room_that_trimming_gives_back_is_enough() {
    let (_disk, mut node) = full();
    let mut last = 0;
    while node.log.retained().room != Room::None {
        node.append(A, &[PAYLOAD]);
        last += 1;
        run(&mut node);
    }
    node.log.trim(A, Lsn(last - 1));
    for _ in 0..8 {
        run(&mut node);
    }
    assert_eq!(node.mailbox.take().concat().len(), last as usize);
}

/// The mark, and a trimmed file's new name, were tried again and again, and nothing was trimmed.
#[test]
fn trimming_gives_room_back_where_not_even_a_name_finds_any() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.settle();
    let mut last = 0;
    // The filler does not come to its turn.
    while node.segments().len() < 4 {
        node.batches(&[&[(A, PAYLOAD)]]);
        last += 1;
    }
    let (marks, segments) = (files(&disk, "mark"), node.segments());
    disk.set_capacity(disk.bytes_used());
    disk.set_name_bytes(2 * 1024);
    run(&mut node);
    assert_eq!((files(&disk, "mark"), node.segments()), (marks.clone(), segments.clone()), "there is nothing to give back");

    // What can be given back is, the oldest first: whatever a power loss leaves of that is a log without a gap.
    node.log.trim(A, Lsn(last - 1));
    let (mut left, mut steps) = (node.segments().len(), 0);
    while files(&disk, "mark") == marks {
        node.filler.step();
        steps += 1;
        assert!(steps < 100, "it waits for room, and holds {left} segments");
        assert!(node.segments().len() <= left, "nothing is made");
        left = node.segments().len();
        for seed in 0..8 {
            let lost = disk.fork();
            lost.power_loss(&mut Rng::new(seed));
            lost.set_name_bytes(0);
            lost.set_capacity(u64::MAX);
            let covered = BTreeMap::from([(A, Lsn(last - 1))]);
            let started = Node::start_behind(&lost, small(), &covered).unwrap();
            assert_eq!(started.recovered.last().map(|entry| entry.lsn), Some(Lsn(last)), "with {left} segments");
        }
    }
    run(&mut node);
    assert!(node.segments().len() < segments.len() && node.fatal.lock().unwrap().is_empty());

    // With its room the log has its mark again, which tells that its last segment is missing.
    disk.process_kill();
    let newest = node.segments().pop().unwrap();
    disk.set_name_bytes(0);
    disk.remove(&newest).unwrap();
    assert!(matches!(Node::start(&disk), Err(Error::LastMissing { path, .. }) if path == newest));
}

#[test]
fn a_full_disk_can_be_started_on_again_and_again() {
    let options = || Options {
        segment_bytes_min: 32 << 10,
        segment_bytes_max: 64 << 10,
        reserve_bytes: 128 << 10,
        batch_bytes_max: 4 << 10,
        ..small()
    };
    let disk = SimDisk::new();
    let mut node = Node::start_with(&disk, options()).unwrap();
    node.settle();
    disk.set_capacity(disk.bytes_used());
    let mut entries = 0;
    while node.log.retained().room != Room::None {
        node.append(A, &[PAYLOAD]);
        entries += 1;
        run(&mut node);
    }
    entries -= 1;
    for life in 0..4 {
        disk.process_kill();
        let mut node = Node::start_with(&disk, options()).unwrap_or_else(|error| panic!("life {life}: {error}"));
        assert_eq!(node.recovered.len(), entries);
        node.batches(&[&[(A, "elected")]]);
        assert_eq!(node.mailbox.take().concat().len(), 1, "life {life}");
        entries += 1;
    }
    disk.set_capacity(u64::MAX);
    disk.lose_power(&mut |_| false);
    assert_eq!(Node::start_with(&disk, options()).unwrap().recovered.len(), entries);
}

/// Such a start cuts off what the last segment does not use. Wherever it ends, that passes for no damage, and nothing else passes for that.
#[test]
fn a_start_on_a_full_disk_that_is_cut_short_leaves_a_log_that_starts() {
    let options = || Options { segment_bytes_min: 32 << 10, segment_bytes_max: 32 << 10, reserve_bytes: 32 << 10, ..small() };
    let disk = SimDisk::new();
    let mut node = Node::start_with(&disk, options()).unwrap();
    node.batches(&[&[(A, PAYLOAD)], &[(A, PAYLOAD)]]);
    disk.process_kill();
    disk.set_capacity(disk.bytes_used());
    let whole = disk.bytes_of(&segment(1)).unwrap().len();
    let mut was_cut = 0;
    for crash in 1.. {
        let started = disk.fork();
        started.crash_at(crash);
        let is_over = Node::start_with(&started, options()).is_ok();
        for seed in 0..8 {
            let disk = started.fork();
            disk.power_loss(&mut Rng::new(seed));
            disk.set_capacity(u64::MAX);
            let bytes = disk.bytes_of(&segment(1)).unwrap();
            assert_eq!(Node::start_with(&disk.fork(), options()).unwrap().recovered.len(), 2, "crash {crash}, seed {seed}");
            let is_last = !files(&disk, "seg").contains(&segment(2));
            if is_last && bytes.len() < whole {
                was_cut += 1;
                disk.overwrite(&segment(1), bytes[..bytes.len() - 8].to_vec()).unwrap();
                let refused = Node::start_with(&disk, options()).err().expect("refused");
                assert!(matches!(refused, Error::Short { .. }), "{refused}");
            }
        }
        if is_over {
            break;
        }
    }
    assert!(was_cut > 0, "it is cut before anything follows it");
}

#[test]
fn a_segment_without_a_descriptor_is_made_later() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.settle();
    // Its own file is open.
    disk.set_descriptors(1);
    let mut appended = 0;
    while node.log.retained().room == Room::Enough {
        node.append(A, &[PAYLOAD]);
        appended += 1;
        assert!(appended < 100);
        run(&mut node);
    }
    assert_eq!(node.mailbox.take().concat().len(), appended - 1);
    disk.set_descriptors(u64::MAX);
    run(&mut node);
    run(&mut node);
    assert_eq!(node.mailbox.take().concat().len(), 1);
    assert!(node.fatal.lock().unwrap().is_empty());
}

#[test]
fn a_log_of_many_segments_is_read_with_few_descriptors() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    for _ in 0..100 {
        node.batches(&[&[(A, PAYLOAD)]]);
    }
    assert!(node.segments().len() > 8);
    disk.process_kill();
    disk.set_descriptors(2);
    assert_eq!(Node::start(&disk).unwrap().recovered.len(), 100);
}

/// Whatever fails to be synced: nothing is acknowledged on top of it, and the process ends.
#[test]
fn a_failed_sync_ends_the_log_however_full_the_disk_is() {
    for sync in 1..60 {
        let (disk, mut node) = full();
        disk.set_capacity(disk.bytes_used() + 3 * 1024);
        disk.fail_sync_at(disk.syncs() + sync);
        let before = disk.syncs();
        for _ in 0..60 {
            node.append(A, &[PAYLOAD]);
            run(&mut node);
        }
        if disk.syncs() < before + sync {
            assert!(sync > 10, "the script has syncs");
            return;
        }
        let acknowledged = node.mailbox.take().concat().len();
        assert_eq!(node.fatal.lock().unwrap().len(), 1, "sync {sync}");
        disk.lose_power(&mut |_| false);
        disk.set_capacity(u64::MAX);
        assert_eq!(Node::start(&disk).unwrap().recovered.len(), acknowledged);
    }
}

#[test]
fn what_checkpoints_cover_is_not_read_again() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    let mut rng = Rng::new(1);
    for _ in 0..60 {
        let large = "x".repeat(rng.below(900) as usize);
        node.batches(&[&[(A, PAYLOAD), (B, &large)]]);
    }
    let segments = node.segments().len() as u64;
    assert!(segments > 10);
    disk.process_kill();
    let whole = Node::start(&disk.fork()).unwrap();
    for covered in 0..=60 {
        let both = BTreeMap::from([(A, Lsn(covered)), (B, Lsn(covered))]);
        let fork = disk.fork();
        let node = Node::start_behind(&fork, small(), &both).unwrap();
        let expected: Vec<_> = whole.recovered.iter().filter(|entry| entry.lsn.0 > covered).cloned().collect();
        assert_eq!(node.recovered, expected);
        for partition in [A, B] {
            assert_eq!(node.recovery.bounds(partition).next, Lsn(61));
            node.recovery.check(partition, Lsn(covered)).unwrap();
        }
        assert!(node.recovery.bytes <= whole.recovery.bytes);
    }
    // Of two partitions the one that is behind holds the log.
    let one = BTreeMap::from([(A, Lsn(60))]);
    let node = Node::start_behind(&disk.fork(), small(), &one).unwrap();
    assert_eq!(node.recovered.len(), 60);
    assert_eq!(node.recovery.bounds(B), Bounds { first: Lsn(1), next: Lsn(61) });

    // Rot in what nobody needs keeps nobody from starting.
    let mut bytes = disk.bytes_of(&segment(2)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    disk.overwrite(&segment(2), bytes).unwrap();
    assert!(Node::start(&disk.fork()).is_err());
    let both = BTreeMap::from([(A, Lsn(60)), (B, Lsn(60))]);
    let mut node = Node::start_behind(&disk, small(), &both).unwrap();
    node.settle();
    assert!(node.segments().len() <= 2, "it is trimmed at once");
    node.batches(&[&[(A, "next")]]);
    assert_eq!(shown(&node.mailbox.take().concat()), [(A, 61, "next".to_owned())]);
    assert!(disk.list(std::path::Path::new(crate::harness::DIR)).is_ok());
}
