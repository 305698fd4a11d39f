//! A data directory that is moved to a smaller disk.

use crate::World;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use surefoot_env::{Disk, File, OsDisk, Space};
use tempfile::tempdir;

const MIB: usize = 1 << 20;
/// Larger than what the small disk takes.
const LARGE_BYTES: usize = 3 * MIB;

/// The machine's disk, as one of so many bytes.
struct DiskOf(u64);

impl Disk for DiskOf {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        OsDisk.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        OsDisk.open(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        OsDisk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { free: self.0, total: self.0 })
    }
}

/// What was taken on the larger disk could not be sent to its handler any more: the invocation failed for ever.
#[tokio::test]
async fn what_a_larger_disk_took_is_read_replayed_and_sent_on_a_smaller_one_which_takes_no_more_of_it() {
    let dir = tempdir().unwrap();
    let headers = ["content-type: application/json", "idempotency-key: large"];
    let large = format!("\"{}\"", "x".repeat(LARGE_BYTES));
    let on = async |disk_bytes: u64| World::try_on(dir.path(), Arc::new(DiskOf(disk_bytes)), |_| ()).await.unwrap();
    let world = on(1 << 30).await;
    let registered = world.post("/deployments", &serde_json::json!({"uri": world.uri()})).await;
    assert_eq!(registered.status, 201, "{}", registered.body);
    let echoed = world.call("POST /Svc/echo", &headers, &large).await;
    assert_eq!((echoed.status, echoed.body.len()), (200, large.len()));
    let sent = world.call("POST /Svc/hang/send", &headers[..1], &large).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    let (id, hung) = (sent.json()["invocationId"].as_str().unwrap().to_owned(), world.endpoint.hung());
    let begins = async |world: &World, attempts: usize| {
        while hung.lock().unwrap().len() < attempts {
            let found = world.ask(&format!("GET /invocations/{id}")).await.json();
            assert!(found["last_error"].is_null(), "{found}");
            tokio::task::yield_now().await;
        }
    };
    begins(&world, 1).await;
    world.stop().await;

    let world = on(64 << 20).await;
    begins(&world, 2).await;
    assert_eq!(*hung.lock().unwrap(), [large.len(); 2]);
    let again = world.call("POST /Svc/echo", &headers, "\"small\"").await;
    assert_eq!((again.status, again.body.len()), (200, large.len()), "its result is kept");
    let refused = world.call("POST /Svc/echo", &headers[..1], &large).await;
    assert_eq!(refused.status, 413, "{}", refused.body);
    world.stop().await;
    // Tables written anew on the small disk are read as well.
    let world = on(64 << 20).await;
    begins(&world, 3).await;
    world.stop().await;
}
