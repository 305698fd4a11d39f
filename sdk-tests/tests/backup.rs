//! A backup under load, a kill, and a restore: what was acknowledged before the backup is there, once and in order (rule C6).
#![expect(clippy::print_stdout, reason = "what was measured")]

use anyhow::{Context as _, Result, ensure};
use restate_sdk::prelude::{
    ContextReadState, ContextWriteState, Endpoint, HandlerResult, HttpServer, Json, ObjectContext, object,
};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use surefoot_client::Ingress;
use surefoot_client::admin::NewDeployment;
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::server::binary;
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Server, places};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(120);
/// Keys to which a client calls, and waits for each answer; and keys to which it sends.
const CALLED: usize = 6;
const SENT: usize = 4;
/// What each call leaves behind in its key's state, beside its number.
const PAD_BYTES: usize = 4_000;
/// So many calls of each key before a backup, and so many after it, until the kill.
const BEFORE: u64 = 60;
const AFTER: u64 = 10;
/// Checkpoints and compactions go on all the time.
const SETTINGS: &[(&str, &str)] = &[("CHECKPOINT_INTERVAL", "100ms")];

struct Steps;

#[object]
impl Steps {
    /// Appends a number, and answers how many there are.
    #[handler]
    async fn add(&self, ctx: ObjectContext<'_>, Json((number, pad)): Json<(u64, String)>) -> HandlerResult<u64> {
        let mut numbers = ctx.get::<Json<Vec<u64>>>("numbers").await?.map_or_else(Vec::new, Json::into_inner);
        numbers.push(number);
        let count = numbers.len() as u64;
        ctx.set(&format!("pad-{}", number % 100), pad);
        ctx.set("numbers", Json(numbers));
        Ok(count)
    }

    /// After all that was sent before.
    #[handler]
    async fn numbers(&self, ctx: ObjectContext<'_>) -> HandlerResult<Json<Vec<u64>>> {
        Ok(ctx.get::<Json<Vec<u64>>>("numbers").await?.unwrap_or_else(|| Json(Vec::new())))
    }
}

async fn serve_steps() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
    let address = listener.local_addr().context("read the address")?;
    tokio::spawn(HttpServer::new(Endpoint::builder().bind(Steps).build()).serve(listener));
    Ok(format!("http://{address}"))
}

/// One key and its client, who goes on until told, or until the server is gone.
struct Client {
    key: String,
    /// Numbers up to here were acknowledged, or asked for.
    acknowledged: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    task: JoinHandle<Vec<Duration>>,
}

fn call(key: &str, number: u64) -> Call {
    let call = Call::new(Target::keyed("Steps", key, "add")).idempotency_key(&format!("{key}-{number}"));
    call.json(&json!([number, "x".repeat(PAD_BYTES)]))
}

impl Client {
    fn start(ingress: Ingress, key: String, waits: bool, goes_on: Arc<AtomicBool>) -> Self {
        let (acknowledged, asked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (told, tried, name) = (acknowledged.clone(), asked.clone(), key.clone());
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            let mut number = 1;
            while goes_on.load(Ordering::Relaxed) {
                tried.store(number, Ordering::SeqCst);
                let began = Instant::now();
                let done = match waits {
                    true => ingress.call(call(&name, number)).await.map(drop),
                    false => ingress.send(call(&name, number)).await.map(drop),
                };
                took.push(began.elapsed());
                if done.is_ok() {
                    told.store(number, Ordering::SeqCst);
                    number += 1;
                } else if !goes_on.load(Ordering::Relaxed) {
                    break;
                }
            }
            took
        });
        Self { key, acknowledged, asked, task }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn reach(clients: &[Client], more: u64) -> Result<()> {
    let due: Vec<u64> = clients.iter().map(|client| client.acknowledged() + more).collect();
    eventually("progress", LIMIT, || async {
        for (client, due) in clients.iter().zip(&due) {
            ensure!(client.acknowledged() >= *due, "{} has {} of {due}", client.key, client.acknowledged());
        }
        Ok(())
    })
    .await
}

/// Runs a command of the binary to its end.
async fn surefoot(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SUREFOOT_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.context("join")?.context("run surefoot")?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

async fn succeed(arguments: &[&str]) -> Result<String> {
    let output = surefoot(arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn refused(arguments: &[&str]) -> Result<String> {
    let output = surefoot(arguments).await?;
    ensure!(!output.status.success(), "{arguments:?} was done");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The doctor finds nothing, and changes nothing.
async fn healthy(data: &Path) -> Result<()> {
    let before = files(data)?;
    let told = succeed(&["doctor", "--data-dir", text(data)]).await?;
    ensure!(told.contains("nothing is wrong"), "{told}");
    ensure!(files(data)? == before, "the doctor has changed something");
    Ok(())
}

/// Every file below a directory, with its size and the time of its last change.
fn files(dir: &Path) -> Result<Vec<(PathBuf, u64, SystemTime)>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.context("list")?;
            let metadata = entry.metadata().context("look at a file")?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                found.push((entry.path(), metadata.len(), metadata.modified().context("read its time")?));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What the doctor says of a directory with a fault.
async fn sick(data: &Path) -> Result<String> {
    let output = surefoot(&["doctor", "--data-dir", text(data)]).await?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' own directories are UTF-8")
}

fn longest(took: &[Duration]) -> Duration {
    took.iter().max().copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_is_there_once_and_in_order_after_its_restore() -> Result<()> {
    let uri = serve_steps().await?;
    let mut server = Server::start(SETTINGS).await?;
    server.admin().register(&NewDeployment::at(uri.as_str())).await.context("register")?;
    let goes_on = Arc::new(AtomicBool::new(true));
    let start = |key: String, waits| Client::start(server.ingress(), key, waits, goes_on.clone());
    let called = (0..CALLED).map(|n| start(format!("called-{n}"), true));
    let clients: Vec<Client> = called.chain((0..SENT).map(|n| start(format!("sent-{n}"), false))).collect();
    reach(&clients, BEFORE).await?;

    let scratch = places::temporary("backup-")?;
    let (backup, inside) = (scratch.path().join("backups/first"), server.data().join("backup"));
    let address = format!("http://{}", server.admin_address());
    let why = refused(&["backup", text(&inside), "--admin-address", &address]).await?;
    ensure!(why.contains("SF2024") && why.contains("inside the data directory"), "{why}");

    let before: Vec<u64> = clients.iter().map(Client::acknowledged).collect();
    let began = Instant::now();
    let told = succeed(&["backup", text(&backup), "--admin-address", &address]).await?;
    let took = began.elapsed();
    let asked: Vec<u64> = clients.iter().map(Client::asked).collect();
    let done: u64 = clients.iter().zip(&before).map(|(client, before)| client.acknowledged() - before).sum();
    println!("backup: {told}while {done} calls and sends were acknowledged in {took:?}");
    ensure!(told.contains("has a backup of the node"), "{told}");
    let why = refused(&["backup", text(&backup), "--admin-address", &address]).await?;
    ensure!(why.contains("SF2024") && why.contains("not empty"), "{why}");

    // Another life of it: a backup whose command is killed leaves nothing, or is whole.
    let second = scratch.path().join("backups/second");
    let mut command = Command::new(binary()?);
    command.args(["backup", text(&second), "--admin-address", &address]);
    let mut killed = command.spawn().context("start a backup")?;
    eventually("a backup to begin", LIMIT, || async {
        ensure!(second.exists(), "it has not");
        Ok(())
    })
    .await?;
    killed.kill().context("kill the command")?;
    killed.wait().context("wait for the command")?;
    eventually("a killed backup to go", LIMIT, || async {
        ensure!(!second.exists() || second.join("MANIFEST").exists(), "it has not");
        Ok(())
    })
    .await?;

    reach(&clients, AFTER).await?;
    server.kill()?;
    goes_on.store(false, Ordering::Relaxed);
    let mut latencies = Vec::new();
    let keys: Vec<String> = clients.iter().map(|client| client.key.clone()).collect();
    for client in clients {
        latencies.push(longest(&client.task.await.context("join")?));
    }
    println!("the longest a client waited, until the kill: {:?}", longest(&latencies));

    // The kill may have left a torn tail, and that is no fault.
    healthy(&server.data()).await?;
    let mut restored = Server::prepare(SETTINGS)?;
    let told = succeed(&["restore", text(&backup), "--data-dir", text(&restored.data())]).await?;
    ensure!(told.contains("are restored to"), "{told}");
    let why = refused(&["restore", text(&backup), "--data-dir", text(&restored.data())]).await?;
    ensure!(why.contains("not empty"), "{why}");
    let why = refused(&["doctor", "--data-dir", text(&backup)]).await?;
    ensure!(why.contains("no data directory"), "{why}");
    let why = refused(&["serve", "--data-dir", text(&backup)]).await?;
    ensure!(why.contains("no FORMAT"), "{why}");
    healthy(&restored.data()).await?;
    restored.restart().await?;
    let why = refused(&["doctor", "--data-dir", text(&restored.data())]).await?;
    ensure!(why.contains("in use by another process"), "{why}");
    let ingress = restored.ingress().with_timeout(LIMIT);
    for ((key, before), asked) in keys.iter().zip(&before).zip(&asked) {
        let numbers: Vec<u64> = ingress.call(Call::new(Target::keyed("Steps", key, "numbers"))).await?.json()?;
        let last = numbers.len() as u64;
        ensure!(numbers == (1..=last).collect::<Vec<_>>(), "{key}: {numbers:?}");
        ensure!(
            (*before..=*asked).contains(&last),
            "{key} has {last}; {before} were acknowledged before, {asked} asked for by its end"
        );
        // The same call again is the same invocation, and the next one goes on.
        for (number, count) in [(last, last), (last + 1, last + 1)] {
            let answer: u64 = ingress.call(call(key, number)).await?.json()?;
            ensure!(answer == count, "{key}: {answer} to {number}");
        }
    }
    restored.expect_quiet(&[])
}

/// One byte of a closed log segment, one of a table file, a segment, and the end of the last one.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_has_gone_bad_and_nothing_else() -> Result<()> {
    const CALLS: u64 = 100;
    const LARGE_BYTES: usize = 40_000;
    let uri = serve_steps().await?;
    let mut server = Server::start(&[("CHECKPOINT_INTERVAL", "1h")]).await?;
    server.admin().register(&NewDeployment::at(uri.as_str())).await.context("register")?;
    for number in 1..=CALLS {
        let call = Call::new(Target::keyed("Steps", "large", "add")).json(&json!([number, "x".repeat(LARGE_BYTES)]));
        let count: u64 = server.ingress().with_timeout(LIMIT).call(call).await?.json()?;
        ensure!(count == number, "{count} to {number}");
    }
    server.kill()?;
    let data = server.data();
    healthy(&data).await?;
    let all = files(&data)?;
    let is_segment = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let segments: Vec<&PathBuf> = all.iter().map(|(path, ..)| path).filter(is_segment).collect();
    ensure!(segments.len() > 3, "{} segments", segments.len());
    let (closed, middle) = (segments[0], segments[segments.len() / 2]);
    let tables = data.join("tables/keyspaces/1/tables");
    let table = all.iter().filter(|(path, ..)| path.starts_with(&tables)).max_by_key(|(_, bytes, _)| *bytes);
    let (table, table_bytes, _) = table.context("there is no table file")?;
    for (path, at) in [(closed, 600), (table, table_bytes / 2)] {
        let sound = std::fs::read(path).context("read")?;
        let mut bad = sound.clone();
        bad[usize::try_from(at).context("count")?] ^= 4;
        std::fs::write(path, &bad).context("write")?;
        let told = sick(&data).await?;
        ensure!(told.contains(text(path)) && told.contains("at byte") && told.contains("1 fault "), "{told}");
        std::fs::write(path, &sound).context("write")?;
    }
    let aside = data.join("aside");
    for path in [middle, table] {
        std::fs::rename(path, &aside).context("remove it")?;
        let told = sick(&data).await?;
        ensure!(told.contains(text(path)) && told.contains("missing") && told.contains("1 fault "), "{told}");
        std::fs::rename(&aside, path).context("put it back")?;
    }
    // Nothing follows the last segment, and the tables have nothing of it.
    let last = segments.last().context("there is no segment")?;
    let sound = std::fs::read(last).context("read")?;
    for kept in [sound.len() / 2, sound.len() - 1] {
        std::fs::write(last, &sound[..kept]).context("write")?;
        let told = sick(&data).await?;
        ensure!(told.contains(text(last)) && told.contains("SF4002") && told.contains("cut short"), "{told}");
        let ports = ["--ingress-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"];
        let why = refused(&[&["serve", "--data-dir", text(&data)][..], &ports].concat()).await?;
        ensure!(why.contains("SF4002") && why.contains(&format!("has {kept} bytes, and had {}", sound.len())), "{why}");
    }
    std::fs::write(last, &sound).context("write")?;
    healthy(&data).await?;
    server.restart().await?;
    let numbers: Vec<u64> = server.ingress().call(Call::new(Target::keyed("Steps", "large", "numbers"))).await?.json()?;
    ensure!(numbers == (1..=CALLS).collect::<Vec<_>>(), "{numbers:?}");
    server.expect_quiet(&[])
}
