//! Segments over time: trimming, recycling, restarts, large entries, failure.

use crate::harness::{A, B, C, Node, files, segment, shown, small};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use surefoot_env::sim::SimDisk;
use surefoot_env::{Disk, Step};
use surefoot_log::Log;
use surefoot_log::local::{Bounds, Error, Options};
use surefoot_model::{Epoch, Lsn};

const PAYLOAD: &str = "a payload of a length that is not so short that segments would hold a great many of them";

#[test]
fn an_idle_partition_whose_entries_were_all_trimmed_keeps_its_count() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.batches(&[&[(B, "b1"), (B, "b2")]]);
    for lsn in 1..100 {
        node.batches(&[&[(A, PAYLOAD)]]);
        node.log.trim(A, Lsn(lsn));
        node.log.trim(B, Lsn(2));
        node.settle();
    }
    for _ in 0..3 {
        disk.lose_power(&mut |_| false);
        node = Node::start(&disk).unwrap();
        assert!(node.recovered.iter().all(|e| e.partition == A));
        assert_eq!(node.recovery.bounds(B), Bounds { first: Lsn(3), next: Lsn(3) });
        node.log.trim(A, Lsn(99));
        node.settle();
    }
    node.batches(&[&[(B, "b3")]]);
    assert_eq!(shown(&node.mailbox.take().concat()), [(B, 3, "b3".to_owned())]);
}

#[test]
fn tables_that_do_not_meet_the_log_are_refused() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    for lsn in 1..50 {
        node.batches(&[&[(A, PAYLOAD)]]);
        node.log.trim(A, Lsn(lsn));
        node.settle();
    }
    disk.process_kill();
    let recovery = Node::start(&disk).unwrap().recovery;
    let Bounds { first, next } = recovery.bounds(A);
    assert!(first > Lsn(1) && next == Lsn(50));
    recovery.check(A, Lsn(first.0 - 1)).unwrap();
    recovery.check(A, Lsn(49)).unwrap();
    assert!(matches!(recovery.check(A, Lsn(first.0 - 2)), Err(Error::Gap { .. })), "records are missing between");
    assert!(matches!(recovery.check(A, Lsn(50)), Err(Error::Gap { .. })), "the log lost what the tables know");
    recovery.check(B, Lsn(0)).unwrap();
    assert!(recovery.check(B, Lsn(1)).is_err());
}

#[test]
fn trimmed_files_are_used_again_and_their_old_batches_stay_dead() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    let mut shown_last = 0;
    for lsn in 1..200_u64 {
        node.batches(&[&[(A, PAYLOAD)]]);
        node.log.trim(A, Lsn(lsn - lsn % 3));
        if lsn % 2 == 0 {
            node.settle();
        }
        let (segments, spares) = (node.segments().len(), files(&disk, "spare").len());
        assert!(segments <= 5 && segments + spares <= 9, "{segments} segments, {spares} spares");
        if lsn % 10 == 0 {
            let future = disk.fork();
            future.lose_power(&mut |_| lsn % 20 == 0);
            let recovered = Node::start(&future).unwrap().recovered;
            let lsns: Vec<u64> = recovered.iter().map(|e| e.lsn.0).collect();
            assert_eq!(lsns, (lsns[0]..=lsn).collect::<Vec<_>>());
            shown_last = lsn;
        }
    }
    assert!(shown_last > 0 && node.log.retained().bytes < 5 * 1024);
}

#[test]
fn the_holder_of_the_oldest_segment_is_known() {
    let mut node = Node::start(&SimDisk::new()).unwrap();
    assert_eq!(node.log.retained().oldest_holder, None);
    node.batches(&[&[(B, "b1"), (C, "c1"), (C, "c2")]]);
    while node.segments().len() < 3 {
        node.batches(&[&[(A, PAYLOAD)]]);
    }
    node.log.trim(A, Lsn(1000));
    node.log.trim(C, Lsn(1));
    assert!(node.log.retained().oldest_holder.is_some());
    node.log.trim(C, Lsn(2));
    assert_eq!(node.log.retained().oldest_holder, Some(B));
    let before = node.log.retained().bytes;
    node.settle();
    assert_eq!(node.log.retained().bytes, before + 48, "B holds it all; the log vouched");
    node.log.trim(B, Lsn(1));
    node.settle();
    assert!(node.log.retained().bytes < before);
    assert_eq!(node.log.retained().oldest_holder, None);
}

#[test]
fn a_large_entry_whose_writer_died_is_void_and_its_lsn_is_used_again() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.batches(&[&[(A, "a1")]]);
    node.log.append(A, Epoch(1), vec![Bytes::from(vec![1; 3000])], None);
    for _ in 0..7 {
        assert_eq!(node.writer.step(), Step::Worked);
    }
    disk.process_kill();
    let mut node = Node::start(&disk).unwrap();
    assert_eq!(shown(&node.recovered), [(A, 1, "a1".to_owned())]);
    assert_eq!(node.recovery.bounds(A).next, Lsn(2));
    node.log.append(A, Epoch(2), vec![Bytes::from(vec![2; 2000]), Bytes::from_static(b"a3")], None);
    node.settle();
    disk.process_kill();
    let node = Node::start(&disk).unwrap();
    let found: Vec<_> = node.recovered.iter().map(|e| (e.lsn.0, e.epoch.0, e.payload.len())).collect();
    assert_eq!(found, [(1, 1, 2), (2, 2, 2000), (3, 2, 2)]);
}

#[test]
fn a_large_entry_of_which_the_first_parts_were_trimmed_is_trimmed() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    for lsn in 1..30 {
        node.log.append(A, Epoch(1), vec![Bytes::from(vec![1; 700 + lsn as usize * 31])], None);
        node.settle();
        node.log.trim(A, Lsn(lsn));
        node.settle();
        let future = disk.fork();
        future.process_kill();
        let recovered = Node::start(&future).unwrap();
        recovered.recovery.check(A, Lsn(lsn)).unwrap();
        assert_eq!(recovered.recovery.bounds(A).next, Lsn(lsn + 1));
    }
}

#[test]
fn an_idle_log_vouches_once_and_does_not_sync_for_it() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.settle();
    assert_eq!(node.writer.step(), Step::Idle, "a new segment has nothing to vouch for");
    node.append(A, &["a1"]);
    let before = disk.operations();
    node.write_out();
    assert_eq!(disk.operations(), before + 2, "one write, one sync");
    node.settle();
    assert_eq!(disk.operations(), before + 4, "one empty batch, and the segment's witness");
    for _ in 0..5 {
        assert_eq!(node.writer.step(), Step::Idle);
    }
    node.append(A, &["a2"]);
    node.write_out();
    node.append(A, &["a3"]);
    node.write_out();
    assert_eq!(disk.operations(), before + 8, "a busy log does not vouch");
}

#[test]
fn everything_queued_goes_in_one_write_and_one_sync() {
    let disk = SimDisk::new();
    let mut node = Node::start_with(&disk, Options::new(|_| {})).unwrap();
    let before = disk.operations();
    for n in 0..1000 {
        node.append([A, B, C][n % 3], &[PAYLOAD]);
    }
    node.write_out();
    assert_eq!(disk.operations(), before + 3, "and one for the witness, since that was much");
    let calls = node.mailbox.take();
    assert_eq!((calls.len(), calls[0].len()), (1, 1000));
}

#[test]
fn a_failed_write_or_sync_is_told_once_and_ends_the_log() {
    for operation in 1..=2 {
        let disk = SimDisk::new();
        let mut node = Node::start(&disk).unwrap();
        disk.fail_at(disk.operations() + operation);
        let told = std::sync::Arc::new(std::sync::Mutex::new(None));
        let teller = told.clone();
        node.append_then(A, &["a1"], Some(Box::new(move |lsn| *teller.lock().unwrap() = Some(lsn))));
        node.write_out();
        node.append(A, &["a2"]);
        assert_eq!((node.writer.step(), node.filler.step(), node.writer.step()), (Step::Done, Step::Done, Step::Done));
        assert_eq!(node.fatal.lock().unwrap().len(), 1);
        assert!(node.fatal.lock().unwrap()[0].contains("0000000001.seg"));
        assert!(told.lock().unwrap().is_none() && node.mailbox.take().is_empty());
    }
}

#[test]
fn a_spare_that_cannot_be_made_does_not_stop_the_log() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    node.settle();
    let reserve = files(&disk, "spare");
    node.batches(&[&[(A, PAYLOAD)], &[(A, PAYLOAD)], &[(A, PAYLOAD)]]);
    // Behind the batch that vouches and the witness.
    disk.fail_at(disk.operations() + 3);
    node.settle();
    node.settle();
    assert!(node.fatal.lock().unwrap().is_empty());
    assert_eq!(files(&disk, "spare"), reserve);
    for _ in 0..20 {
        node.batches(&[&[(A, PAYLOAD)]]);
    }
    assert_eq!(node.mailbox.take().len(), 23);
}

/// While a large file was filled with zeros, nothing said that the log had gone on to another segment: had that been lost, nobody would know.
#[test]
fn the_mark_does_not_wait_for_a_file_that_is_filled() {
    let options = Options { segment_bytes_min: 2048, segment_bytes_max: 2048, reserve_bytes: 4 << 20, ..small() };
    let disk = SimDisk::new();
    let mut node = Node::start_with(&disk, options).unwrap();
    let is_filling = || files(&disk, "spare").first().and_then(|spare| disk.bytes_of(spare).ok()).is_some_and(|b| !b.is_empty());
    while !is_filling() {
        assert_eq!(node.filler.step(), Step::Worked);
    }
    while node.segments().len() < 2 {
        node.batches(&[&[(A, PAYLOAD)]]);
    }
    let mark = std::path::Path::new(crate::harness::DIR).join("0000000002.mark");
    for _ in 0..3 {
        assert_eq!(node.filler.step(), Step::Worked);
    }
    assert_eq!(files(&disk, "mark"), std::slice::from_ref(&mark));
    node.settle();
    assert_eq!(files(&disk, "spare").first().map(|spare| disk.bytes_of(spare).unwrap().len()), Some(4 << 20), "it goes on");
    disk.lose_power(&mut |_| false);
    disk.remove(&segment(2)).unwrap();
    assert!(matches!(Node::start(&disk), Err(Error::LastMissing { mark: found, .. }) if found == mark));
}

#[test]
fn a_closed_log_writes_what_was_appended_before_and_ends() {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    let caller = Arc::new(());
    let (before, after) = (caller.clone(), caller.clone());
    node.append_then(A, &["a1"], Some(Box::new(move |_| drop(before))));
    node.log.close();
    node.append_then(A, &["too late"], Some(Box::new(move |_| drop(after))));
    {
        let mut ended = pin!(node.log.ended());
        let mut has_ended = || ended.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        while node.writer.step() == Step::Worked {
            assert!(!has_ended());
        }
        assert!(!has_ended(), "the filler may still be at a file");
        assert_eq!((node.writer.step(), node.filler.step()), (Step::Done, Step::Done));
        assert!(has_ended());
    }
    assert_eq!(Arc::strong_count(&caller), 1, "whoever waits learns that nobody will call");
    disk.process_kill();
    assert_eq!(shown(&Node::start(&disk).unwrap().recovered), [(A, 1, "a1".to_owned())]);
}

#[test]
fn a_failed_replay_names_the_entry_and_another_format_its_file() {
    let disk = SimDisk::new();
    Node::start(&disk).unwrap().batches(&[&[(A, "a1")]]);
    disk.process_kill();
    let path = std::path::Path::new(crate::harness::DIR);
    let refused = surefoot_log::local::open(std::sync::Arc::new(disk.clone()), path, small(), &BTreeMap::new(), &mut |_| {
        Err("unknown event".into())
    });
    assert_eq!(refused.err().unwrap().to_string(), "replay entry 1 of partition 0: unknown event");
    let mut bytes = disk.bytes_of(&segment(1)).unwrap();
    bytes[8] = 1;
    disk.overwrite(&segment(1), bytes.clone()).unwrap();
    let error = Node::start(&disk).err().unwrap().to_string();
    assert!(error.contains("is damaged at byte 0") && error.contains("checksum does not fit"), "{error}");
    let crc_at = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize - 4;
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite(&segment(1), bytes).unwrap();
    let error = Node::start(&disk).err().unwrap().to_string();
    assert!(error.contains("has format 1, this version reads 2"), "{error}");
}

#[test]
fn files_of_other_names_are_left_alone() {
    let disk = SimDisk::new();
    Node::start(&disk).unwrap().batches(&[&[(A, "a1")]]);
    disk.create(&std::path::Path::new(crate::harness::DIR).join("notes.txt")).unwrap();
    disk.process_kill();
    assert_eq!(Node::start(&disk).unwrap().recovered.len(), 1);
    assert_eq!(files(&disk, "txt").len(), 1);
}
