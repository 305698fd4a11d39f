//! Damage of every kind to the bytes of a segment: recovered to a batch's boundary, or refused with file and offset (rule L2).

use crate::harness::{A, B, C, DIR, Node, entry, files, segment, small};
use std::path::Path;
use surefoot_env::Step;
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_log::local::{Error, Options};
use surefoot_log::{Entry, Log};
use surefoot_model::{Lsn, PartitionId};

const BATCHES: &[&[(PartitionId, &str)]] =
    &[&[(A, "first"), (B, "of b")], &[(A, "second, of another length")], &[(C, "catalog"), (A, "third"), (B, "")]];

/// The entries of the first `batches` batches.
fn entries(batches: usize) -> Vec<Entry> {
    let mut next = [1, 1, 1];
    let of = |p: PartitionId| [A, B, C].iter().position(|q| *q == p).unwrap();
    let lsn = |p, next: &mut [u64; 3]| {
        next[of(p)] += 1;
        next[of(p)] - 1
    };
    BATCHES[..batches].concat().into_iter().map(|(p, payload)| entry(p, lsn(p, &mut next), payload)).collect()
}

/// A disk with the batches in segment 1, and where each of them (and last the vouching one) ends.
fn written(vouched: bool) -> (SimDisk, Vec<usize>) {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk).unwrap();
    let mut ends = vec![node.log.retained().bytes as usize];
    for batch in BATCHES {
        node.batches(&[batch]);
        ends.push(node.log.retained().bytes as usize);
    }
    if vouched {
        node.settle();
        ends.push(*ends.last().unwrap() + 48);
    }
    disk.process_kill();
    (disk, ends)
}

/// The segment up to where its last batch ends.
fn image(disk: &SimDisk, ends: &[usize]) -> Vec<u8> {
    let mut bytes = disk.bytes_of(&segment(1)).unwrap();
    let end = *ends.last().unwrap();
    assert!(bytes[end..].iter().all(|b| *b == 0));
    bytes.truncate(end);
    bytes
}

/// Recovers from `bytes` in place of segment `number`, which must yield whole batches; how many, or where it was refused.
fn recover(disk: &SimDisk, number: u64, bytes: Vec<u8>) -> Result<usize, u64> {
    let disk = disk.fork();
    disk.overwrite(&segment(number), bytes).unwrap();
    let node = match Node::start(&disk) {
        Ok(node) => node,
        Err(Error::Damaged { path, offset, .. }) => {
            assert_eq!(path, segment(number));
            return Err(offset);
        }
        Err(Error::Version { path, .. }) => {
            assert_eq!(path, segment(number));
            return Err(0);
        }
        Err(other) => panic!("{other}"),
    };
    let batches = (0..=BATCHES.len()).find(|n| node.recovered == entries(*n)).expect("whole batches, in order, unchanged");
    disk.lose_power(&mut |_| false);
    assert_eq!(Node::start(&disk).unwrap().recovered, node.recovered, "a second recovery finds the same");
    Ok(batches)
}

#[test]
fn every_prefix_of_a_segment_recovers_to_the_batches_in_it() {
    let (disk, ends) = written(false);
    let whole = image(&disk, &ends);
    let mut rng = Rng::new(3);
    for cut in 0..=whole.len() {
        let expected = ends[1..].iter().filter(|end| **end <= cut).count();
        let mut zeros = whole[..cut].to_vec();
        zeros.resize(2048, 0);
        let mut noise = whole[..cut].to_vec();
        noise.resize_with(2048, || rng.next_u64() as u8);
        for bytes in [whole[..cut].to_vec(), zeros, noise] {
            // Noise and zeros may repeat the bytes that were cut off.
            let same = bytes.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            let expected = if bytes.len() > cut { ends[1..].iter().filter(|end| **end <= same).count() } else { expected };
            assert_eq!(recover(&disk, 1, bytes), Ok(expected), "cut at {cut}");
        }
    }
}

#[test]
fn a_flipped_bit_is_cut_in_the_last_batch_and_refused_before_it() {
    let (disk, ends) = written(false);
    let whole = image(&disk, &ends);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        let expected = match hit {
            0 => Err(0),
            3 => Ok(2),
            _ => Err(ends[hit - 1] as u64),
        };
        assert_eq!(recover(&disk, 1, bytes), expected, "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_behind_a_vouching_batch_is_always_refused() {
    let (disk, ends) = written(true);
    let mut whole = image(&disk, &ends);
    whole.resize(1024, 0);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        let expected = match hit {
            0 => Err(0),
            1..=3 => Err(ends[hit - 1] as u64),
            _ => Ok(3),
        };
        assert_eq!(recover(&disk, 1, bytes), expected, "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_or_a_cut_in_an_older_segment_is_refused_and_the_last_ones_header_may_be_torn() {
    let (disk, ends) = written(false);
    drop(Node::start(&disk).unwrap());
    disk.process_kill();
    let (old, new) = (image(&disk, &ends), disk.bytes_of(&segment(2)).unwrap());
    for bit in 0..old.len() * 8 {
        let mut bytes = old.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        assert_eq!(recover(&disk, 1, bytes), Err(if hit == 0 { 0 } else { ends[hit - 1] as u64 }), "bit {bit}");
    }
    for cut in 0..old.len() {
        let hit = ends.iter().filter(|end| **end <= cut).count();
        let expected = Err(if hit == 0 { 0 } else { ends[hit - 1] as u64 });
        assert_eq!(recover(&disk, 1, old[..cut].to_vec()), expected, "cut at {cut}");
    }
    for bit in (0..new.len() * 8).filter(|bit| !(64..96).contains(bit)) {
        let mut bytes = new.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(recover(&disk, 2, bytes), Ok(3), "bit {bit}: it held nothing yet");
    }
}

#[test]
fn a_missing_segment_is_named() {
    let disk = SimDisk::new();
    for _ in 0..3 {
        Node::start(&disk).unwrap().batches(BATCHES);
        disk.process_kill();
    }
    surefoot_env::Disk::remove(&disk, &segment(2)).unwrap();
    let error = Node::start(&disk).err().expect("refused").to_string();
    assert!(error.contains("0000000002.seg is missing"), "{error}");
}

/// A log without its last segment was taken for one that had ended before, and acknowledged entries were gone in silence.
#[test]
fn a_last_segment_that_is_missing_is_told_from_a_log_that_ended_before() {
    let disk = SimDisk::new();
    for _ in 0..3 {
        let mut node = Node::start(&disk).unwrap();
        node.batches(BATCHES);
        node.settle();
        disk.process_kill();
    }
    assert_eq!(files(&disk, "mark"), [Path::new(DIR).join("0000000003.mark")], "one, of the newest");
    for is_power_lost in [false, true] {
        let disk = disk.fork();
        if is_power_lost {
            disk.lose_power(&mut |_| false);
        }
        let bytes = disk.bytes_of(&segment(3)).unwrap();
        surefoot_env::Disk::remove(&disk, &segment(3)).unwrap();
        let error = Node::start(&disk).err().expect("refused").to_string();
        assert!(error.contains("0000000003.seg is missing") && error.contains("0000000003.mark"), "{error}");
        // As told: it is put back, or given up.
        let again = disk.fork();
        surefoot_env::Disk::create(&again, &segment(3)).unwrap().write_at(0, &bytes).unwrap();
        assert_eq!(Node::start(&again).unwrap().recovered.len(), 3 * BATCHES.concat().len());
        surefoot_env::Disk::remove(&disk, &files(&disk, "mark")[0]).unwrap();
        assert_eq!(Node::start(&disk).unwrap().recovered.len(), 2 * BATCHES.concat().len());
    }
    // Nor is one whose header is gone taken for one that was never begun.
    let zeros = vec![0; disk.bytes_of(&segment(3)).unwrap().len()];
    surefoot_env::Disk::open(&disk, &segment(3)).unwrap().write_at(0, &zeros).unwrap();
    let error = Node::start(&disk).err().expect("refused").to_string();
    assert!(error.contains("0000000003.seg is damaged"), "{error}");
}

#[test]
fn every_sector_subset_of_a_torn_batch_leaves_all_of_it_or_none() {
    // Once into fresh space, once into a recycled file that is full of older batches of the same shape.
    for recycled in [false, true] {
        let options = || Options { segment_bytes_min: 4096, batch_bytes_max: 4096, ..small() };
        let disk = SimDisk::new();
        let mut node = Node::start_with(&disk, options()).unwrap();
        let (old, large) = ("x".repeat(3000), "y".repeat(3000));
        let mut kept = 0;
        if recycled {
            for lsn in 1..8 {
                node.batches(&[&[(A, &old)]]);
                node.log.trim(A, Lsn(lsn));
                node.settle();
                kept = lsn;
            }
        }
        node.batches(&[&[(B, "small")]]);
        node.append(A, &[&large]);
        // A new segment may have to be started first.
        while unsynced_sectors(&disk) < 6 {
            assert_eq!(node.writer.step(), Step::Worked);
        }
        let sectors = unsynced_sectors(&disk);
        assert!((6..=8).contains(&sectors), "{sectors}");
        for subset in 0..1_u32 << sectors {
            let disk = disk.fork();
            let mut at = 0;
            disk.lose_power(&mut |_| {
                at += 1;
                subset >> (at - 1) & 1 == 1
            });
            let node = Node::start_with(&disk, options()).unwrap();
            let all = subset == (1 << sectors) - 1;
            let found = node.recovered.iter().filter(|e| e.partition == A && e.lsn.0 > kept).count();
            let unchanged = |e: &Entry| e.partition != A || e.payload == *if e.lsn.0 > kept { &large } else { &old };
            let unchanged = node.recovered.iter().all(unchanged);
            assert!(unchanged && (found == 1 || found == 0 && !all), "subset {subset:b}");
            // The batch ends within its last sector, so that one may be of old zeros alone; the others all count.
            assert!(found == 0 || all || !subset & ((1 << (sectors - 1)) - 1) == u32::MAX << (sectors - 1), "subset {subset:b}");
            assert!(node.recovered.iter().any(|e| e.partition == B));
        }
    }
}

fn unsynced_sectors(disk: &SimDisk) -> usize {
    let mut sectors = 0;
    disk.fork().lose_power(&mut |_| {
        sectors += 1;
        true
    });
    sectors
}
