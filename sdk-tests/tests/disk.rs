//! A disk that fills up: clients are told, running work goes on, nothing is lost, and all go on by themselves once there is room.
#![expect(clippy::print_stdout, reason = "what was measured")]

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use surefoot_client::admin::{InvocationFilter, NewDeployment};
use surefoot_client::ingress::{Call, Target};
use surefoot_client::{Admin, Error, Ingress};
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Handlers, Language, Ledger, Server, Volume};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 200 * MIB;
/// So large that what is sent in a test may stay in memory.
const LARGE_VOLUME_BYTES: u64 = 1024 * MIB;
/// So small that log, tables and their compaction have to share it out.
const SMALL_VOLUME_BYTES: u64 = 64 * MIB;
/// A disk that its own work has filled opens within so long of what filled it having gone: removals, tables and their compaction take
/// their time, and machines of tests are slow.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// Of a small disk the server leaves a quarter free.
const RESERVE_BYTES: u64 = VOLUME_BYTES / 4;
/// A disk that has taken nothing for so long is full.
const FULL_FOR: Duration = Duration::from_secs(3);
const BODY_BYTES: usize = 20_000;
/// Together with what is around it, just below the largest body that a disk of [`SMALL_VOLUME_BYTES`] takes.
const LARGE_BYTES: usize = 1_000_000;
const LIMIT: Duration = Duration::from_secs(60);
/// Without any progress for this long, the rest will not come.
const STALL: Duration = Duration::from_secs(60);
/// What the server says of a full disk.
const EXPECTED: &[&str] = &[
    "no room on the disk",
    "no room for a checkpoint",
    "the start waits for room",
    "the disk of the data directory is too small",
];

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Taken,
    /// Answered 503: nothing of it will ever happen.
    Refused,
    /// It may have been taken, and is to be sent again.
    Unknown,
}

struct World {
    ledger: Ledger,
    _handlers: Handlers,
    server: Server,
    ingress: Ingress,
    admin: Admin,
    acknowledged: usize,
}

impl World {
    /// On a small volume. None where this process may not mount, or the handlers are not there.
    async fn start_on_volume(settings: &[(&str, &str)]) -> Result<Option<(Self, Volume)>> {
        Self::start_on_volume_of(VOLUME_BYTES, settings).await
    }

    async fn start_on_volume_of(bytes: u64, settings: &[(&str, &str)]) -> Result<Option<(Self, Volume)>> {
        if Language::Rust.is_skipped() {
            return Ok(None);
        }
        let server = Server::prepare(settings)?;
        let Some(volume) = Volume::mount(&server.data(), bytes)? else { return Ok(None) };
        Ok(Some((Self::start(server).await?, volume)))
    }

    async fn start(mut server: Server) -> Result<Self> {
        let ledger = Ledger::start(|_| 0).await?;
        let handlers = Handlers::start(Language::Rust, ledger.address(), Duration::from_millis(100)).await?;
        server.restart().await?;
        server.admin().register(&NewDeployment::at(handlers.uri())).await.context("register the handlers")?;
        let (ingress, admin) = (server.ingress(), server.admin());
        Ok(Self { ledger, _handlers: handlers, server, ingress, admin, acknowledged: 0 })
    }

    /// One event for the next user, whose result is promised for a day.
    async fn send(&mut self) -> Result<Sent> {
        let user = format!("user-{}", self.acknowledged);
        let call = self.call().idempotency_key(&user);
        self.send_call(call).await
    }

    /// One event for the next user, whose result nobody can ask for.
    async fn send_unnamed(&mut self) -> Result<Sent> {
        let call = self.call();
        self.send_call(call).await
    }

    fn call(&self) -> Call {
        call_of(self.acknowledged, BODY_BYTES)
    }

    async fn send_call(&mut self, call: Call) -> Result<Sent> {
        match self.ingress.send(call).await {
            Ok(_) => {
                self.acknowledged += 1;
                Ok(Sent::Taken)
            }
            Err(Error::Refused { status: 503, .. }) => Ok(Sent::Refused),
            Err(Error::Timeout { .. }) => Ok(Sent::Unknown),
            Err(error) => Err(error).context("send"),
        }
    }

    async fn send_until_refused(&mut self) -> Result<()> {
        let most = VOLUME_BYTES as usize / BODY_BYTES;
        for _ in 0..most {
            if self.send().await? == Sent::Refused {
                return Ok(());
            }
        }
        bail!("{most} events of {BODY_BYTES} bytes were taken into {VOLUME_BYTES} bytes")
    }

    /// What is under way by then has no answer: it waits for room, or was taken. It is sent again under its name.
    async fn send_until_told(&mut self) -> Result<()> {
        let admin = self.admin.clone();
        let told = eventually("health to tell", LIMIT, || async {
            ensure!(is_told(&admin).await, "the disk is not short");
            Ok(())
        });
        let send = async {
            loop {
                // It may be starting, and refuse for that.
                let _ = self.send().await;
            }
        };
        tokio::select! {
            biased;
            told = told => told,
            () = send => unreachable!("it never ends"),
        }
    }

    /// One event that is to run much later: all of it has to be kept.
    async fn send_for_later(&mut self, name: &str) -> Result<Sent> {
        let call = self.call().idempotency_key(name).delay(Duration::from_secs(24 * 60 * 60));
        let sent = self.send_call(call).await?;
        if sent == Sent::Taken {
            // It is killed before it runs.
            self.acknowledged -= 1;
        }
        Ok(sent)
    }

    /// Kills and so removes everything that waits, as an operator would; so many were there.
    async fn kill_all(&self) -> Result<usize> {
        let mut killed = 0;
        loop {
            let filter = InvocationFilter { limit: Some(500), ..InvocationFilter::default() };
            let page = self.admin.invocations(&filter).await.context("list")?;
            if page.invocations.is_empty() {
                return Ok(killed);
            }
            for invocation in page.invocations {
                // None of them has started: nothing is left of it.
                self.admin.kill(&invocation.id).await.context("kill")?;
                killed += 1;
            }
        }
    }

    /// Running invocations wait for the disk.
    async fn holds_work(&self) -> bool {
        matches!(self.admin.health().await, Err(Error::Refused { message, .. }) if message.contains("running invocations wait"))
    }

    async fn send_once_there_is_room(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while self.send().await? != Sent::Taken {
            ensure!(tokio::time::Instant::now() < deadline, "still refused after {LIMIT:?}");
        }
        Ok(())
    }

    /// `/health` and a metric say that the disk is short.
    async fn expect_told(&self) -> Result<()> {
        eventually("health to tell", LIMIT, || async {
            ensure!(is_told(&self.admin).await, "{:?}", self.admin.health().await);
            Ok(())
        })
        .await?;
        let metrics = self.admin.metrics().await?;
        ensure!(metrics.contains("\nsurefoot_disk_edges_refused 1"), "{metrics}");
        Ok(())
    }

    /// Everything that was acknowledged has run, and nothing twice.
    async fn expect_all(&self) -> Result<()> {
        self.ledger.reach(self.acknowledged, STALL).await?;
        let expected: BTreeMap<_, _> = (0..self.acknowledged).map(|n| (format!("user-{n}"), vec!["1".to_owned()])).collect();
        let verdict = self.ledger.judge(&expected)?;
        println!("{} events: {verdict}", self.acknowledged);
        self.server.expect_quiet(EXPECTED)
    }
}

/// One event for a user, of so many bytes.
fn call_of(user: usize, bytes: usize) -> Call {
    let call = Call::new(Target::keyed("UserFeed", format!("user-{user}"), "processPost"));
    call.json(&json!({ "id": "1", "content": "x".repeat(bytes) }))
}

/// Sends one large event until it is taken: it may be refused for want of room, and the server may be killed meanwhile.
async fn send_large(ingress: &Ingress, user: usize) -> Result<()> {
    eventually("a large body to be taken", 2 * OPEN_LIMIT, || async {
        Ok(ingress.send(call_of(user, LARGE_BYTES).idempotency_key(&format!("large-{user}"))).await.map(drop)?)
    })
    .await
}

/// The disk is short, or a start waits for room on it.
async fn is_told(admin: &Admin) -> bool {
    matches!(admin.health().await, Err(Error::Refused { status: 503, message, .. }) if message.contains("SF2021"))
}

/// The head of the answer to one call.
async fn answer(server: &Server) -> Result<String> {
    let mut stream = TcpStream::connect(server.ingress_address()).await.context("connect")?;
    let request = "POST /UserFeed/late/processPost/send HTTP/1.1\r\nhost: surefoot\r\ncontent-type: application/json\r\n\
                   content-length: 26\r\nconnection: close\r\n\r\n{\"id\": \"1\", \"content\": \"\"}";
    stream.write_all(request.as_bytes()).await.context("write")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("read")?;
    Ok(answer.to_lowercase())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_503_before_the_disk_is_full_and_taken_again_once_there_is_room() -> Result<()> {
    // Checkpoints all along, so that each thing asked for falls between two of them.
    let Some((mut world, volume)) = World::start_on_volume(&[("CHECKPOINT_INTERVAL", "30ms")]).await? else { return Ok(()) };
    // Work that runs while the edges refuse.
    for user in ["user-0", "user-1"] {
        world.ledger.hold(user);
        ensure!(world.send().await? == Sent::Taken, "there is room");
    }
    volume.load(VOLUME_BYTES - RESERVE_BYTES)?;
    world.send_until_refused().await?;
    world.expect_told().await?;
    let answer = answer(&world.server).await?;
    ensure!(answer.starts_with("http/1.1 503") && answer.contains("\r\nretry-after: 2\r\n"), "{answer}");
    ensure!(answer.contains("disk"), "{answer}");

    // It ends although nothing new is taken.
    ensure!(!world.ledger.has_completed("user-0", "1"), "it was held");
    world.ledger.release("user-0");
    eventually("running work", LIMIT, || async {
        ensure!(world.ledger.has_completed("user-0", "1"), "it has not ended");
        Ok(())
    })
    .await?;

    // With half of that room, running work waits as well.
    volume.load(RESERVE_BYTES / 4 * 3)?;
    eventually("running work to be held", LIMIT, || async {
        ensure!(world.holds_work().await, "{:?}", world.admin.health().await);
        Ok(())
    })
    .await?;
    world.ledger.release("user-1");
    for _ in 0..100 {
        ensure!(world.holds_work().await, "{:?}", world.admin.health().await);
        ensure!(!world.ledger.has_completed("user-1", "1"), "what is left was for the log and for compaction");
    }

    volume.unload()?;
    let began = Instant::now();
    eventually("held work", LIMIT, || async {
        ensure!(world.ledger.has_completed("user-1", "1"), "it has not ended");
        Ok(())
    })
    .await?;
    println!("held work went on and ended {:?} after there was room", began.elapsed());
    world.send_once_there_is_room().await?;
    eventually("health", LIMIT, || async { Ok(world.admin.health().await?) }).await?;
    world.server.kill()?;
    world.server.restart().await?;
    world.expect_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_byte_left_ends_nothing_and_can_be_started_on() -> Result<()> {
    // Nothing looks ahead: log and tables meet the end of the disk.
    let settings = [("CHECKPOINT_INTERVAL", "1s"), ("DISK_RESERVE_SIZE", "0")];
    let Some((mut world, volume)) = World::start_on_volume(&settings).await? else { return Ok(()) };
    for _ in 0..200 {
        ensure!(world.send().await? == Sent::Taken, "there is room");
    }
    volume.load(VOLUME_BYTES)?;
    // Whatever is under way when it hits the end has no answer, and may have been taken.
    let taken = world.acknowledged;
    // It gives back what it kept ready, and goes on for as long as that lasts.
    let told = tokio::time::timeout(LIMIT, world.send_until_told()).await;
    ensure!(told.is_ok_and(|sent| sent.is_ok()), "nothing was said within {LIMIT:?}, {} taken since", world.acknowledged - taken);

    world.server.kill()?;
    world.server.spawn()?;
    // It starts with what room its log has left and says so when that is used up, or waits where there is none.
    let told = tokio::time::timeout(LIMIT, world.send_until_told()).await;
    ensure!(told.is_ok_and(|sent| sent.is_ok()), "nothing was said within {LIMIT:?} of a start on a full disk");

    volume.unload()?;
    world.send_once_there_is_room().await?;
    world.server.kill()?;
    world.server.restart().await?;
    world.expect_all().await
}

/// A start whose log did not fit into memory ended on a full disk, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_has_to_write_tables_waits_for_room() -> Result<()> {
    const EVENTS: usize = 1_500;
    let settings = [("CHECKPOINT_INTERVAL", "1h"), ("DISK_RESERVE_SIZE", "0")];
    let Some((mut world, volume)) = World::start_on_volume_of(LARGE_VOLUME_BYTES, &settings).await? else { return Ok(()) };
    for _ in 0..EVENTS {
        ensure!(world.send().await? == Sent::Taken, "there is room");
    }
    world.server.kill()?;
    volume.load(LARGE_VOLUME_BYTES)?;
    // Far less than was held in memory before.
    world.server.set("MEMORY_SIZE", "16MiB");
    world.server.spawn()?;
    eventually("health to tell", LIMIT, || async {
        match world.admin.health().await {
            Err(Error::Refused { status: 503, message, .. }) if message.contains("SF2021") => Ok(()),
            other => bail!("{other:?}"),
        }
    })
    .await?;
    ensure!(world.server.log_text().matches("the start waits for room").count() == 1, "it is said once, not with each try");

    volume.unload()?;
    eventually("a healthy server", LIMIT, || async { Ok(world.admin.health().await?) }).await?;
    world.expect_all().await
}

/// What was removed gave no room back: the compaction that would have done so had none itself, and the disk stayed full for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_that_was_filled_opens_again_once_its_invocations_are_removed_again_and_again() -> Result<()> {
    /// More than twice what the disk holds.
    const EVENTS: usize = 6_000;
    const ROUNDS_MAX: usize = 20;
    let Some((mut world, _volume)) = World::start_on_volume_of(SMALL_VOLUME_BYTES, &[]).await? else { return Ok(()) };
    let (mut sent, mut rounds) = (0, 0);
    while sent < EVENTS {
        let before = sent;
        let mut last = Instant::now();
        while sent < EVENTS {
            match world.send_for_later(&format!("later-{sent}")).await? {
                Sent::Taken => (sent, last) = (sent + 1, Instant::now()),
                // What was removed before may be on its way out.
                Sent::Refused if last.elapsed() > FULL_FOR => break,
                Sent::Refused => {}
                Sent::Unknown => bail!("no answer in round {rounds}, {sent} sent"),
            }
        }
        let taken = sent - before;
        let killed = world.kill_all().await?;
        ensure!(killed == taken, "round {rounds}: {taken} were taken, and {killed} killed");
        let began = Instant::now();
        eventually("health", OPEN_LIMIT, || async { Ok(world.admin.health().await?) }).await?;
        println!("round {rounds}: {taken} taken; open {:?} after the last of them had gone", began.elapsed());
        rounds += 1;
        ensure!(rounds < ROUNDS_MAX, "{sent} of {EVENTS} events were taken in {rounds} rounds");
    }
    ensure!(rounds > 1, "the disk was never full");
    for _ in 0..100 {
        world.send_once_there_is_room().await?;
    }
    world.server.kill()?;
    world.server.restart().await?;
    world.expect_all().await
}

/// A few large bodies at once filled the disk between two looks at it, and the next start had no room to apply its log.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_at_once_fill_no_small_disk_and_kills_meanwhile_leave_it_room_to_start() -> Result<()> {
    const BODIES: usize = 48;
    const AT_ONCE: usize = 12;
    let Some((mut world, _volume)) = World::start_on_volume_of(SMALL_VOLUME_BYTES, &[]).await? else { return Ok(()) };
    let too_large = world.ingress.send(call_of(0, 2 * LARGE_BYTES)).await;
    ensure!(matches!(too_large, Err(Error::Refused { status: 413, .. })), "it is more than a 64th of the disk: {too_large:?}");
    let ingress = world.ingress.clone();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let sending = tokio::spawn(async move {
        let send = |user| {
            let (ingress, taken) = (ingress.clone(), count.clone());
            async move {
                send_large(&ingress, user).await?;
                taken.fetch_add(1, Ordering::Relaxed);
                anyhow::Ok(())
            }
        };
        stream::iter(0..BODIES).map(send).buffer_unordered(AT_ONCE).try_collect::<()>().await
    });
    for until in [BODIES / 4, BODIES / 2, BODIES / 4 * 3] {
        eventually("some to be taken", OPEN_LIMIT, || async {
            ensure!(sending.is_finished() || taken.load(Ordering::Relaxed) >= until, "{taken:?} were taken");
            Ok(())
        })
        .await?;
        world.server.kill()?;
        let began = Instant::now();
        world.server.restart().await?;
        println!("killed with {taken:?} taken; up {:?} after", began.elapsed());
    }
    sending.await.context("join")??;
    world.acknowledged = BODIES;
    eventually("health", OPEN_LIMIT, || async { Ok(world.admin.health().await?) }).await?;
    world.expect_all().await
}

/// Results that nobody can ask for, of work that was done, kept out what was to come.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_ask_for_gives_way_on_a_full_disk() -> Result<()> {
    const EVENTS: usize = 5_000;
    let Some((mut world, _volume)) = World::start_on_volume_of(SMALL_VOLUME_BYTES, &[]).await? else { return Ok(()) };
    let (began, mut last) = (Instant::now(), Instant::now());
    while world.acknowledged < EVENTS {
        match world.send_unnamed().await? {
            Sent::Taken => last = Instant::now(),
            Sent::Refused => {
                ensure!(
                    last.elapsed() < OPEN_LIMIT,
                    "{} of {EVENTS} were taken, and none for {OPEN_LIMIT:?}",
                    world.acknowledged
                );
            }
            Sent::Unknown => bail!("no answer, {} taken", world.acknowledged),
        }
    }
    println!("{EVENTS} events of {BODY_BYTES} bytes through {SMALL_VOLUME_BYTES} bytes in {:?}", began.elapsed());
    world.expect_all().await?;
    let metrics = world.admin.metrics().await?;
    let evicted = metrics.lines().find_map(|line| line.strip_prefix("surefoot_disk_evicted_total ")?.parse::<u64>().ok());
    ensure!(evicted.is_some_and(|evicted| evicted > 0), "{metrics}");
    Ok(())
}
