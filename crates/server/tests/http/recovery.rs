//! What a node makes of records that it cannot apply.

use crate::World;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use surefoot_env::{OsDisk, Step};
use surefoot_log::Log;
use surefoot_log::local::{self, Options};
use surefoot_model::{Epoch, PartitionId, key_hash};
use tempfile::tempdir;

const PARTITIONS: u16 = 4;

/// Puts a record into the log of a node that is down.
fn append(directory: &Path, partition: PartitionId, payload: &'static [u8]) {
    let options = Options::new(|message| panic!("{message}"));
    let mut opened = local::open(Arc::new(OsDisk), &directory.join("data/log"), options, &BTreeMap::new(), &mut |_| Ok(()))
        .expect("the node left its log whole");
    // Of a later term than any that the node had.
    opened.log.append(partition, Epoch(1_000), vec![payload.into()], None);
    opened.log.close();
    while opened.writer.steps.step() != Step::Done {}
}

/// A key that this partition owns.
fn key_of(partition: PartitionId) -> String {
    let mut keys = (0..).map(|n| format!("k{n}"));
    keys.find(|key| PartitionId::of(key_hash(key), PARTITIONS) == partition).expect("every partition has keys")
}

#[tokio::test]
async fn a_partition_with_an_unreadable_record_stops_alone_and_again_after_a_restart() {
    let dir = tempdir().unwrap();
    World::start(dir.path()).await.stop().await;
    // A version that is known, and nothing that it could be.
    append(dir.path(), PartitionId(2), b"\x01\xff\xff");
    for life in 1..=2 {
        let world = World::start(dir.path()).await;
        let health = world.ask("GET /health").await;
        assert_eq!(health.status, 503, "life {life}");
        assert!(health.body.contains("partition 2"), "{}", health.body);
        let refused = world.call(&format!("POST /Obj/{}/echo", key_of(PartitionId(2))), &[], "").await;
        assert_eq!((refused.status, refused.source().as_str()), (503, "ingress"), "{}", refused.body);
        assert!(refused.body.contains("partition 2"), "{}", refused.body);
        for other in [0, 1, 3].map(PartitionId) {
            let answer = world.call(&format!("POST /Obj/{}/echo", key_of(other)), &[], "").await;
            assert_eq!(answer.status, 200, "partition {other}: {}", answer.body);
        }
        assert_eq!(world.ask("GET /invocations").await.status, 200, "the others' are listed");
        let killed = world.ask("PATCH /invocations/inv_1nowhere/kill").await;
        assert_eq!(killed.status, 400);
        world.stop().await;
    }
}

#[tokio::test]
async fn a_record_of_a_newer_version_keeps_the_node_from_starting_and_says_what_to_do() {
    let dir = tempdir().unwrap();
    World::start(dir.path()).await.stop().await;
    append(dir.path(), PartitionId(1), b"\xf0\xff");
    let error = World::try_bare(dir.path(), |_| ()).await.err().expect("it does not start").to_string();
    assert!(error.contains("version"), "{error}");
}

/// Without its last segment a log was taken for one that had ended before: what was acknowledged since was gone in silence.
#[tokio::test]
async fn a_log_without_its_last_segment_keeps_the_node_from_starting_and_names_it() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    assert_eq!(world.call("POST /Obj/a/echo", &[], "").await.status, 200);
    world.stop().await;
    let segments = fs::read_dir(dir.path().join("data/log")).unwrap().map(|entry| entry.unwrap().path());
    let last = segments.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).max().unwrap();
    let aside = dir.path().join("aside");
    fs::rename(&last, &aside).unwrap();
    let error = World::try_bare(dir.path(), |_| ()).await.err().expect("it does not start").to_string();
    assert!(error.contains(&format!("{} is missing", last.display())) && error.contains("backup"), "{error}");
    fs::rename(&aside, &last).unwrap();
    let world = World::start(dir.path()).await;
    assert_eq!(world.call("POST /Obj/a/echo", &[], "").await.status, 200);
    world.stop().await;
}
