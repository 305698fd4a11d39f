//! What a user can get wrong: each time a clear message that says what to do, and nothing is lost.

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use serde_json::json;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;
use surefoot_client::Error;
use surefoot_client::admin::{InvocationFilter, KafkaCluster, NewDeployment, NewSubscription};
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::driver::expect_state;
use surefoot_sdk_tests::process::Process;
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Handlers, Language, Ledger, Server, places};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(60);

/// Starts a server that must not start, and returns what it said.
fn refusal(command: &mut Command) -> Result<String> {
    let folder = places::temporary("refusal-")?;
    let log = folder.path().join("log");
    let status = Process::start("the server", command, &log)?.exit(LIMIT)?;
    let said = std::fs::read_to_string(&log).context("read what it said")?;
    ensure!(!status.success(), "it started, and ended well\n{said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

fn expect_parts(said: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(said.contains(part), "`{part}` is missing in: {said}");
    }
    Ok(())
}

/// The message of a refusal by the admin API, with its status and code.
fn told<T: std::fmt::Debug>(answer: surefoot_client::Result<T>) -> Result<(u16, String, String)> {
    match answer {
        Err(Error::Refused { status, code, message, .. }) => Ok((status, code, message)),
        other => anyhow::bail!("expected a refusal: {other:?}"),
    }
}

#[test]
fn settings_that_cannot_be_read() -> Result<()> {
    let server = Server::prepare(&[])?;
    let variable = "SUREFOOT_WORKER__INVOKER__INACTIVITY_TIMEOUT";
    let said = refusal(server.command()?.env(variable, "soon"))?;
    expect_parts(&said, &["inactivity", "soon", "duration"])?;

    let file = server.data().with_extension("toml");
    let path = file.to_str().context("name the file")?;
    std::fs::write(&file, "[ingress]\nbind-adress = \"127.0.0.1:1\"\n").context("write the settings")?;
    let said = refusal(server.command()?.args(["--config", path]))?;
    expect_parts(&said, &["ingress.bind-adress", "ingress.bind-address"])?;

    std::fs::write(&file, "[ingress\n").context("write the settings")?;
    expect_parts(&refusal(server.command()?.args(["--config", path]))?, &[path])?;
    expect_parts(&refusal(server.command()?.args(["--config", "no-such-file.toml"]))?, &["no-such-file.toml"])?;
    expect_parts(&refusal(server.command()?.args(["--data-dirs", "x"]))?, &["--data-dirs", "--data-dir"])?;
    ensure!(!server.data().exists(), "a start that is refused leaves no data directory");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_in_use_or_of_another_version() -> Result<()> {
    let mut server = Server::start(&[]).await?;
    let data = server.data();
    let path = data.to_str().context("name the data directory")?;
    let other = Server::prepare(&[])?;
    expect_parts(&refusal(&mut other.command_on(&data)?)?, &[path, "in use", "--data-dir"])?;
    server.admin().health().await.context("the first is not disturbed")?;

    ensure!(server.terminate()?.success(), "a stop on demand is a success");
    let format = data.join("FORMAT");
    let text = std::fs::read_to_string(&format).context("read FORMAT")?;
    ensure!(text.contains("version=2\n"), "{text}");
    std::fs::write(&format, text.replace("version=2\n", "version=99\n")).context("write FORMAT")?;
    expect_parts(&refusal(&mut server.command()?)?, &[path, "99", "version"])?;

    std::fs::write(&format, text).context("write FORMAT")?;
    server.restart().await.context("nothing was harmed")
}

/// A line that could not be written ended the server, and one that nobody read would have stopped it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_or_that_nobody_reads() -> Result<()> {
    const LINES: &str = "surefoot=trace,hyper=trace,h2=trace";
    let folder = places::temporary("log-")?;
    let pipe = |name: &str| -> Result<(std::path::PathBuf, std::fs::File)> {
        let path = folder.path().join(name);
        ensure!(Command::new("mkfifo").arg(&path).status().context("run mkfifo")?.success(), "make a pipe");
        // For writing too, so that this open waits for nobody.
        let reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).context("open the pipe")?;
        Ok((path, reader))
    };
    let (unread, _reader) = pipe("unread")?;
    let (left, leaving) = pipe("left")?;
    let mut leaving = Some(leaving);
    for log in ["/dev/full".into(), unread, left] {
        let server = Server::prepare(&[("LOG_FILTER", LINES)])?;
        let mut process = Process::start("the server", &mut server.command()?, &log)?;
        drop(leaving.take_if(|_| log.ends_with("left")));
        let admin = server.admin();
        eventually("a healthy server", LIMIT, || async { Ok(admin.health().await?) }).await?;
        let said = log.display();
        let (status, _, message) = told(admin.register(&NewDeployment::at("not a uri")).await)?;
        ensure!(status == 400, "{said}: {status} {message}");
        for _ in 0..500 {
            admin.health().await.with_context(|| format!("{said}"))?;
        }
        ensure!(process.terminate(LIMIT)?.success(), "{said}: a stop on demand is a success");
    }
    Ok(())
}

#[test]
fn a_port_in_use() -> Result<()> {
    let server = Server::prepare(&[])?;
    let address = server.ingress_address();
    let taken = TcpListener::bind(&address).context("take the port")?;
    expect_parts(&refusal(&mut server.command()?)?, &[&address, "use"])?;
    drop(taken);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_that_cannot_be_registered() -> Result<()> {
    let server = Server::start(&[]).await?;
    let admin = server.admin();
    let register = async |uri: &str| told(admin.register(&NewDeployment::at(uri)).await);

    let (status, _, message) = register("not a uri").await?;
    ensure!(status == 400, "{status} {message}");
    expect_parts(&message, &["uri"])?;

    let nobody = format!("http://127.0.0.1:{}", places::free_port()?);
    let (status, code, message) = register(&nobody).await?;
    ensure!((status, code.as_str()) == (500, "META0003"), "{status} {code} {message}");
    expect_parts(&message, &[&nobody])?;

    let (status, code, message) = register(&http_1_only().await?).await?;
    ensure!((status, code.as_str()) == (500, "META0014"), "{status} {code} {message}");
    expect_parts(&message, &["HTTP/1.1", "use_http_11"])?;

    let (status, code, message) = register(&endpoint("application/json", "garbage".to_owned()).await?).await?;
    ensure!((status, code.as_str()) == (500, "META0013"), "{status} {code} {message}");

    // A manifest in order, of a time to come.
    let manifest = json!({
        "protocolMode": "BIDI_STREAM", "minProtocolVersion": 90, "maxProtocolVersion": 91,
        "services": [{ "name": "Later", "ty": "SERVICE", "handlers": [{ "name": "run" }] }],
    });
    let later = endpoint("application/vnd.restate.endpointmanifest.v3+json", manifest.to_string()).await?;
    let (status, code, message) = register(&later).await?;
    ensure!((status, code.as_str()) == (500, "META0012"), "{status} {code} {message}");
    expect_parts(&message, &["90", "91"])?;

    ensure!(admin.deployments().await?.is_empty(), "nothing was registered");
    server.expect_quiet(&[])
}

/// An endpoint that answers any discovery with this, over HTTP/2 as well.
async fn endpoint(content_type: &'static str, body: String) -> Result<String> {
    let answer = get(move || async move { ([(CONTENT_TYPE, content_type)], body) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("bind an endpoint")?;
    let uri = format!("http://{}", listener.local_addr().context("ask for its port")?);
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    Ok(uri)
}

/// An endpoint that knows no HTTP/2, and answers its preface as such servers do.
async fn http_1_only() -> Result<String> {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("bind an endpoint")?;
    let uri = format!("http://{}", listener.local_addr().context("ask for its port")?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The request is read, so that closing does not reset the connection under the answer.
            let mut preface = [0; 1024];
            if stream.read(&mut preface).await.is_ok() {
                let _ = stream.write_all(ANSWER).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    Ok(uri)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_is_down_loses_nothing() -> Result<()> {
    const USERS: usize = 10;
    if Language::TypeScript.is_skipped() {
        return Ok(());
    }
    let ledger = Ledger::start(|_| 0).await?;
    let mut handlers = Handlers::start(Language::TypeScript, ledger.address(), Duration::from_millis(50)).await?;
    let server = Server::start(&[("DEFAULT_RETRY_POLICY__MAX_INTERVAL", "1s")]).await?;
    let admin = server.admin();
    admin.register(&NewDeployment::at(handlers.uri())).await.context("register the handlers")?;
    handlers.kill()?;
    for n in 0..USERS {
        let post = json!({ "id": "1", "content": "" });
        server.ingress().send(Call::new(Target::keyed("UserFeed", format!("user-{n}"), "processPost")).json(&post)).await?;
    }
    let filter = InvocationFilter { service: Some("UserFeed".into()), ..Default::default() };
    eventually("invocations that say what is wrong", LIMIT, || async {
        let listed = admin.invocations(&filter).await?.invocations;
        let told = listed.iter().filter(|one| one.last_error.is_some() && one.attempt.is_some_and(|attempt| attempt >= 3));
        ensure!(told.count() == USERS, "{listed:?}");
        Ok(())
    })
    .await?;
    let says_why = server.log_text().contains("the deployment cannot be connected to");
    ensure!(says_why, "the log names what is stuck\n{}", server.log_text());

    handlers.restart().await?;
    for n in 0..USERS {
        expect_state(&server.ingress(), "UserFeed", format!("user-{n}"), "getFeed", json!(["1"])).await?;
    }
    server.expect_quiet(&["invocation keeps failing"])
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_to_nothing() -> Result<()> {
    let server = Server::start(&[]).await?;
    let admin = server.admin();
    let (status, _, message) = told(admin.subscribe(&NewSubscription::new("nowhere", "t", "Svc", "run")).await)?;
    ensure!(status == 400, "{status} {message}");
    expect_parts(&message, &["nowhere"])?;

    let properties = [("bootstrap.servers".to_owned(), format!("127.0.0.1:{}", places::free_port()?))].into();
    admin.create_kafka_cluster(&KafkaCluster { name: "local".to_owned(), properties }).await.context("create a cluster")?;
    let (status, code, message) = told(admin.subscribe(&NewSubscription::new("local", "t", "Svc", "run")).await)?;
    ensure!((status, code.as_str()) == (400, "META0009"), "{status} {code} {message}");
    expect_parts(&message, &["service://Svc/run"])?;
    let (status, _, message) = told(admin.subscribe(&NewSubscription::new("nowhere", "t", "Svc", "run")).await)?;
    ensure!(status == 400, "{status} {message}");
    expect_parts(&message, &["nowhere", "local"])?;

    let nothing = KafkaCluster { name: "empty".to_owned(), properties: Default::default() };
    let (status, _, message) = told(admin.create_kafka_cluster(&nothing).await)?;
    ensure!(status == 400, "{status} {message}");
    expect_parts(&message, &["bootstrap.servers"])?;

    ensure!(admin.subscriptions().await?.is_empty(), "nothing was stored");
    server.expect_quiet(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_nothing() -> Result<()> {
    let server = Server::start(&[]).await?;
    let answer = server.ingress().call(Call::new(Target::keyed("Nobody", "k", "run")).json(&1)).await;
    let (status, _, message) = told(answer)?;
    ensure!(status == 404, "{status} {message}");
    expect_parts(&message, &["Nobody", "register"])?;
    server.expect_quiet(&[])
}
