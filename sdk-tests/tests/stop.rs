//! What a stop keeps to: calls that are taken have their answers, as long as it may take, and none is told that it was not taken.

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::routing::post;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use surefoot_client::admin::{InvocationFilter, NewDeployment};
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Server, by_hand};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

const CALLS: u32 = 300;
const LIMIT: Duration = Duration::from_secs(60);

/// A server with calls that wait for a handler, which answers once it has a permit. Each of them ends in all that its client heard.
async fn calls(shutdown_timeout: &str) -> Result<(Server, Arc<Semaphore>, FuturesUnordered<impl Future<Output = String>>)> {
    let server = Server::start(&[("SHUTDOWN_TIMEOUT", shutdown_timeout)]).await?;
    let leave = Arc::new(Semaphore::new(0));
    let waiting = leave.clone();
    let slow = post(move || async move {
        let _leave = waiting.acquire().await;
        by_hand::response(by_hand::output_and_end())
    });
    let services = r#"{"name":"Slow","ty":"SERVICE","handlers":[{"name":"run"}]}"#;
    let endpoint = by_hand::serve(services, Router::new().route("/invoke/Slow/run", slow)).await?;
    server.admin().register(&NewDeployment::at(endpoint)).await.context("register the endpoint")?;
    let calls = FuturesUnordered::new();
    for _ in 0..CALLS {
        let mut client = TcpStream::connect(server.ingress_address()).await.context("connect")?;
        client.write_all(b"POST /Slow/run HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await.context("call")?;
        calls.push(async move {
            let mut heard = Vec::new();
            match client.read_to_end(&mut heard).await {
                Ok(_) => String::from_utf8_lossy(&heard).into_owned(),
                Err(error) => error.to_string(),
            }
        });
    }
    let admin = server.admin();
    eventually("all calls to be taken", LIMIT, || async {
        let running = InvocationFilter { status: Some("running".into()), limit: Some(CALLS + 1), ..Default::default() };
        let taken = admin.invocations(&running).await?.invocations.len() as u32;
        ensure!(taken == CALLS, "{taken} of them");
        Ok(())
    })
    .await?;
    Ok((server, leave, calls))
}

/// Their connections were closed after five seconds, whatever the setting was.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_answers_to_calls_as_long_as_it_may_take() -> Result<()> {
    const STILL: Duration = Duration::from_secs(8);
    let (mut server, leave, mut calls) = calls("25s").await?;
    let stop = tokio::task::spawn_blocking(move || server.terminate().map(|status| (server, status)));
    ensure!(timeout(STILL, calls.next()).await.is_err(), "a call ended before it had its answer");
    leave.add_permits(CALLS as usize);
    while let Some(heard) = calls.next().await {
        ensure!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    }
    let (server, status) = stop.await.context("stop")??;
    ensure!(status.success(), "{status}");
    server.expect_quiet(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_take_longer_than_a_stop_are_closed_without_an_answer_and_go_on_at_the_next_start() -> Result<()> {
    let (mut server, leave, mut calls) = calls("12s").await?;
    let stop = tokio::task::spawn_blocking(move || server.terminate().map(|status| (server, status)));
    while let Some(heard) = calls.next().await {
        ensure!(!heard.starts_with("HTTP"), "{heard}");
    }
    let (mut server, status) = stop.await.context("stop")??;
    ensure!(status.success(), "{status}");
    // In time, with its last checkpoint.
    server.expect_quiet(&[])?;
    server.restart().await?;
    leave.add_permits(CALLS as usize);
    let admin = server.admin();
    eventually("all of them to end", LIMIT, || async {
        let running = InvocationFilter { status: Some("running".into()), ..Default::default() };
        let left = admin.invocations(&running).await?.invocations.len();
        ensure!(left == 0, "{left} and more are running");
        Ok(())
    })
    .await?;
    server.expect_quiet(&[])
}
