//! Time is durable: what was to happen later happens after a kill, too, and never early.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::{Duration, SystemTime};
use surefoot_client::admin::{InvocationFilter, NewDeployment};
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::driver::expect_state;
use surefoot_sdk_tests::ledger::Step;
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Handlers, Language, Ledger, Server};

const USERS: usize = 40;
const LIMIT: Duration = Duration::from_secs(60);
const SLEEP: Duration = Duration::from_secs(3);
/// The least that a clock of milliseconds can tell.
const TICK: Duration = Duration::from_millis(1);

async fn start(pending_looks: u32) -> Result<(Ledger, Handlers, Server)> {
    let ledger = Ledger::start(move |_| pending_looks).await?;
    let handlers = Handlers::start(Language::TypeScript, ledger.address(), SLEEP).await?;
    let server = Server::start(&[("WORKER__INVOKER__INACTIVITY_TIMEOUT", "100ms")]).await?;
    server.admin().register(&NewDeployment::at(handlers.uri())).await.context("register the handlers")?;
    Ok((ledger, handlers, server))
}

fn post(n: usize) -> Call {
    Call::new(Target::keyed("UserFeed", format!("user-{n}"), "processPost")).json(&json!({ "id": "1", "content": "" }))
}

async fn expect_all_processed(server: &Server) -> Result<()> {
    for n in 0..USERS {
        expect_state(&server.ingress(), "UserFeed", format!("user-{n}"), "getFeed", json!(["1"])).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeps_end_after_a_kill_and_never_early() -> Result<()> {
    if Language::TypeScript.is_skipped() {
        return Ok(());
    }
    let (ledger, _handlers, mut server) = start(1).await?;
    for n in 0..USERS {
        server.ingress().send(post(n)).await?;
    }
    // A suspended invocation has its sleep in the log: only then may the gap between two polls be judged.
    let filter = InvocationFilter { service: Some("UserFeed".into()), status: Some("suspended".into()), ..Default::default() };
    eventually("suspension", LIMIT, || async {
        let sleeping = server.admin().invocations(&filter).await?.invocations.len();
        ensure!(sleeping == USERS, "{sleeping} of {USERS} sleep");
        Ok(())
    })
    .await?;
    server.kill()?;
    server.restart().await?;
    expect_all_processed(&server).await?;

    let executions = ledger.executions();
    for n in 0..USERS {
        let user = format!("user-{n}");
        let looks: Vec<_> = executions.iter().filter(|step| step.user == user && step.step == Step::Look).collect();
        ensure!(looks.len() == 2, "{user}: {} looks", looks.len());
        let gap = looks[1].at - looks[0].at;
        ensure!(gap + TICK >= SLEEP, "{user} slept for {gap:?} only");
    }
    server.expect_quiet(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_sends_start_after_a_kill_and_never_early() -> Result<()> {
    if Language::TypeScript.is_skipped() {
        return Ok(());
    }
    let (ledger, _handlers, mut server) = start(0).await?;
    // Half of them fall due while the server is down.
    let delay = |n: usize| if n.is_multiple_of(2) { Duration::from_millis(800) } else { Duration::from_secs(4) };
    let mut due = Vec::new();
    for n in 0..USERS {
        due.push(SystemTime::now() + delay(n));
        let sent = server.ingress().send(post(n).delay(delay(n))).await?;
        ensure!(sent.execution_time.is_some(), "{sent:?}");
    }
    server.kill()?;
    let overdue = SystemTime::now() + delay(0);
    eventually("the time of the first half", LIMIT, || async {
        ensure!(SystemTime::now() > overdue, "it is not due yet");
        Ok(())
    })
    .await?;
    server.restart().await?;
    expect_all_processed(&server).await?;

    for step in ledger.executions().iter().filter(|step| step.step == Step::Create) {
        let n: usize = step.user.trim_start_matches("user-").parse().context("read the user's number")?;
        ensure!(step.at_wall + TICK >= due[n], "{} started {:?} early", step.user, due[n].duration_since(step.at_wall));
    }
    server.expect_quiet(&[])
}
