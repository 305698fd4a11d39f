//! Damage of every kind to the bytes of a segment: recovered to a batch's boundary, or refused with file and offset (rule L2).

use crate::harness::{A, B, C, DIR, Node, entry, files, segment, small};
use std::collections::BTreeMap;
use std::path::Path;
use surefoot_env::Step;
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_log::local::{Error, Mutant, Options, inspect};
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

/// Where a segment's header ends in these tests, and the room for its witness begins.
const WITNESS: std::ops::Range<usize> = 64..96;
/// In place of the byte where a segment was refused: because it is shorter than it was.
const SHORT: u64 = u64::MAX;

/// The segment as it lies there. Behind its last batch it has zeros.
fn image(disk: &SimDisk, ends: &[usize]) -> Vec<u8> {
    assert_eq!(ends[0], WITNESS.end);
    let bytes = disk.bytes_of(&segment(1)).unwrap();
    assert!(bytes[*ends.last().unwrap()..].iter().all(|b| *b == 0));
    bytes
}

/// The log is known to have gone on to segment 1, as the filler says once it comes to its turn.
fn mark(disk: &SimDisk) {
    if !files(disk, "mark").is_empty() {
        return;
    }
    surefoot_env::Disk::create(disk, &Path::new(DIR).join("0000000001.mark")).unwrap();
    surefoot_env::Disk::sync_dir(disk, Path::new(DIR)).unwrap();
}

/// Recovers from `bytes` in place of segment `number`, which must yield whole batches; how many, or where it was refused.
fn recover(disk: &SimDisk, number: u64, bytes: Vec<u8>) -> Result<usize, u64> {
    recover_with(disk, number, bytes, Mutant::None)
}

fn recover_with(disk: &SimDisk, number: u64, bytes: Vec<u8>, mutant: Mutant) -> Result<usize, u64> {
    let disk = disk.fork();
    disk.overwrite(&segment(number), bytes).unwrap();
    let node = match Node::start_with(&disk, Options { mutant, ..small() }) {
        Ok(node) => node,
        Err(error) => {
            let (path, offset) = match &error {
                Error::Damaged { path, offset, .. } => (path, *offset),
                Error::Version { path, .. } => (path, 0),
                Error::Short { path, .. } => (path, SHORT),
                other => panic!("{other}"),
            };
            assert_eq!(*path, segment(number));
            let looked = inspect(&disk, Path::new(DIR), &BTreeMap::new(), &mut |_| Ok(())).unwrap();
            assert_eq!(
                looked.faults.first().map(ToString::to_string),
                Some(error.to_string()),
                "it is told without a start as well"
            );
            return Err(offset);
        }
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
    for cut in 0..=*ends.last().unwrap() {
        let mut zeros = whole[..cut].to_vec();
        zeros.resize(2048, 0);
        let mut noise = whole[..cut].to_vec();
        noise.resize_with(2048, || rng.next_u64() as u8);
        for bytes in [zeros, noise] {
            // Noise and zeros may repeat the bytes that were cut off.
            let same = bytes.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            let expected = ends[1..].iter().filter(|end| **end <= same).count();
            assert_eq!(recover(&disk, 1, bytes), Ok(expected), "cut at {cut}");
        }
    }
}

/// Wherever a file is cut, a start says so.
fn cut_files_are_refused(mutant: Mutant) -> Result<(), String> {
    for vouched in [false, true] {
        let (disk, ends) = written(vouched);
        let whole = image(&disk, &ends);
        let marked = disk.fork();
        mark(&marked);
        for cut in 0..whole.len() {
            let expected = if cut < WITNESS.start { Err(0) } else { Err(SHORT) };
            let found = recover_with(&marked, 1, whole[..cut].to_vec(), mutant);
            if found != expected {
                return Err(format!("cut at {cut}: {found:?}"));
            }
            // Without the mark a file without its header is one whose making was cut short: no batch is written before.
            let expected = if cut < WITNESS.start && !vouched { Ok(0) } else { expected };
            assert_eq!(recover(&disk, 1, whole[..cut].to_vec()), expected, "cut at {cut}");
        }
        assert_eq!(recover(&marked, 1, whole), Ok(BATCHES.len()));
    }
    Ok(())
}

/// A file that a full disk, a copy that ended early or its file system had cut passed for a torn tail, and most of the log was gone in silence.
#[test]
fn a_segment_that_is_shorter_than_it_was_made_is_refused_wherever_it_was_cut() {
    cut_files_are_refused(Mutant::None).unwrap();
    cut_files_are_refused(Mutant::TakeShort).unwrap_err();
}

/// One segment with many batches, of which the machine lost none.
fn long(witness_bytes: u64, is_idle: bool) -> (SimDisk, Options, usize) {
    let options = Options { segment_bytes_min: 16 << 10, segment_bytes_max: 16 << 10, witness_bytes, ..small() };
    let disk = SimDisk::new();
    let mut node = Node::start_with(&disk, options.clone()).unwrap();
    while node.log.retained().bytes < 12 << 10 {
        node.batches(&[&[(A, "one of many that are acknowledged one by one")]]);
    }
    if is_idle {
        node.settle();
    }
    let bytes = node.log.retained().bytes as usize;
    disk.process_kill();
    (disk, options, bytes)
}

/// Entries that are found where `zeroed` of the segment is zeros; none if it is refused.
fn found_behind(disk: &SimDisk, options: &Options, zeroed: std::ops::Range<usize>) -> Option<usize> {
    let disk = disk.fork();
    let mut bytes = disk.bytes_of(&segment(1)).unwrap();
    bytes[zeroed].fill(0);
    disk.overwrite(&segment(1), bytes).unwrap();
    match Node::start_with(&disk, options.clone()) {
        Ok(node) => Some(node.recovered.len()),
        Err(Error::Damaged { path, .. }) => {
            assert_eq!(path, segment(1));
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn blocks_of_zeros_are_refused_in_the_middle_and_at_the_end_of_what_is_written() {
    const BLOCK: usize = 1024;
    let (disk, options, end) = long(u64::MAX, true);
    let forgets = Options { mutant: Mutant::ForgetWitness, ..options.clone() };
    // Last comes the batch that vouches, which has nothing in it.
    let end = end - 48;
    for block in 0..end.div_ceil(BLOCK) {
        let (hole, rest) = (block * BLOCK..(block + 1) * BLOCK, block * BLOCK..16 << 10);
        assert_eq!(found_behind(&disk, &options, hole), None, "block {block}");
        assert_eq!(found_behind(&disk, &options, rest.clone()), None, "from block {block}");
        assert!(block == 0 || found_behind(&disk, &forgets, rest).is_some(), "nothing else tells it");
    }
    // What nothing was written to is no damage.
    assert!(found_behind(&disk, &options, end.next_multiple_of(8)..16 << 10).is_some());
}

#[test]
fn a_busy_log_that_loses_its_end_may_miss_what_its_witness_did_not_come_to_and_no_more() {
    const WITNESS_BYTES: u64 = 600;
    let (disk, options, end) = long(WITNESS_BYTES, false);
    let whole = found_behind(&disk, &options, 0..0).unwrap();
    let mut refused = 0;
    for from in (WITNESS.end..end).step_by(8) {
        match found_behind(&disk, &options, from..16 << 10) {
            None => refused += 1,
            Some(found) => {
                let batch = (end - WITNESS.end) / whole;
                assert!((whole - found) * batch < WITNESS_BYTES as usize + 2 * batch, "from {from}: {found} of {whole}");
            }
        }
    }
    assert!(refused * 8 > end - 2 * WITNESS_BYTES as usize, "{refused} of {}", end / 8);
}

/// A batch that no segment has room for grows the file beyond the size that the header names.
#[test]
fn a_file_that_has_grown_is_refused_wherever_what_it_took_is_cut() {
    let options = || Options { batch_bytes_max: 4096, segment_bytes_max: 1024, ..small() };
    let disk = SimDisk::new();
    let mut node = Node::start_with(&disk, options()).unwrap();
    node.batches(&[&[(A, &"x".repeat(3000))]]);
    disk.process_kill();
    let whole = disk.bytes_of(&segment(1)).unwrap();
    assert!(whole.len() > 3000);
    for cut in (WITNESS.end..whole.len()).step_by(8) {
        let disk = disk.fork();
        disk.overwrite(&segment(1), whole[..cut].to_vec()).unwrap();
        let error = Node::start_with(&disk, options()).err().expect("refused");
        assert!(
            matches!((&error, cut < 1024), (Error::Short { .. }, true) | (Error::Damaged { .. }, false)),
            "cut at {cut}: {error}"
        );
    }
    assert_eq!(Node::start_with(&disk, options()).unwrap().recovered.len(), 1);
}

/// Flips each bit of a segment behind whose header it finds what `behind` says of a bit behind so many ends, which are at least one.
fn flip_each_bit(vouched: bool, behind: impl Fn(usize, &[usize]) -> Result<usize, u64>) {
    let (disk, ends) = written(vouched);
    let whole = image(&disk, &ends);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let expected = match ends.iter().filter(|end| **end <= bit / 8).count() {
            // A witness that is damaged says nothing.
            0 if WITNESS.contains(&(bit / 8)) => Ok(BATCHES.len()),
            0 => Err(0),
            hit => behind(hit, &ends),
        };
        assert_eq!(recover(&disk, 1, bytes), expected, "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_is_cut_in_the_last_batch_and_refused_before_it() {
    flip_each_bit(false, |hit, ends| match hit {
        1 | 2 => Err(ends[hit - 1] as u64),
        3 => Ok(2),
        _ => Ok(3),
    });
}

#[test]
fn a_flipped_bit_behind_a_vouching_batch_is_always_refused() {
    flip_each_bit(true, |hit, ends| if hit <= 3 { Err(ends[hit - 1] as u64) } else { Ok(3) });
}

#[test]
fn a_flipped_bit_or_a_cut_in_an_older_segment_is_refused_and_the_last_ones_header_may_be_torn() {
    let (disk, ends) = written(false);
    drop(Node::start(&disk).unwrap());
    disk.process_kill();
    let (old, new) = (image(&disk, &ends), disk.bytes_of(&segment(2)).unwrap());
    let end = *ends.last().unwrap();
    for bit in (0..end * 8).filter(|bit| !WITNESS.contains(&(bit / 8))) {
        let mut bytes = old.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        assert_eq!(recover(&disk, 1, bytes), Err(if hit == 0 { 0 } else { ends[hit - 1] as u64 }), "bit {bit}");
    }
    for cut in 0..end {
        let expected = if cut < WITNESS.start { Err(0) } else { Err(SHORT) };
        assert_eq!(recover(&disk, 1, old[..cut].to_vec()), expected, "cut at {cut}");
    }
    assert_eq!(recover(&disk, 1, old[..end].to_vec()), Ok(3), "nobody needs what is behind its end");
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
