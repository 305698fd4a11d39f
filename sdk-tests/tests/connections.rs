//! Servers that handlers run on, as they come, and what they do to connections: one bad request there is no other's trouble.
#![expect(clippy::print_stderr, reason = "what was measured")]

use anyhow::{Context as _, Result, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use restate_sdk::prelude::{Context, Endpoint as Handlers, HandlerResult, HttpServer, Json, service};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use surefoot_client::admin::{InvocationFilter, NewDeployment};
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::process::Process;
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Language, Server, places};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);

/// A program of `endpoints/` that serves handlers.
struct Endpoint {
    _process: Process,
    _directory: TempDir,
    uri: String,
}

impl Endpoint {
    async fn start(language: Language, program: &str, environment: &[(&str, &str)]) -> Result<Self> {
        language.prepare()?;
        let (directory, port) = (places::temporary("endpoint-")?, places::free_port()?);
        let program = places::root().join("sdk-tests/endpoints").join(program);
        let mut command = language.command_of(&program)?;
        command.env("PORT", port.to_string()).envs(environment.iter().copied());
        let mut process = Process::start("the endpoint", &mut command, &directory.path().join("endpoint.log"))?;
        eventually("the endpoint", LIMIT, || {
            let alive = process.expect_running();
            async move {
                alive?;
                TcpStream::connect(("127.0.0.1", port)).await.map(drop).context("connect")
            }
        })
        .await?;
        Ok(Self { _process: process, _directory: directory, uri: format!("http://127.0.0.1:{port}") })
    }
}

async fn serving(endpoint: &Endpoint) -> Result<Server> {
    let server = Server::start(&[]).await?;
    server.admin().register(&NewDeployment::at(endpoint.uri.as_str())).await.context("register the endpoint")?;
    Ok(server)
}

/// Calls at this concurrency; none may fail, and no step may run twice.
async fn no_step_runs_twice(calls: usize, environment: &[(&str, &str)]) -> Result<()> {
    const CONCURRENCY: usize = 100;
    const STEPS: usize = 2;
    if Language::Python.is_skipped() {
        return Ok(());
    }
    let endpoint = Endpoint::start(Language::Python, "counted.py", environment).await?;
    let server = serving(&endpoint).await?;
    let ingress = server.ingress().with_timeout(LIMIT);
    let ingress = &ingress;
    let mut took: Vec<Duration> = stream::iter(0..calls)
        .map(async |number| {
            let began = Instant::now();
            let call = Call::new(Target::service("Counted", "steps")).json(&number);
            let answer: usize = ingress.call(call).await?.json()?;
            ensure!(answer == number, "{answer} for {number}");
            Ok(began.elapsed())
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await?;
    took.sort();
    eprintln!("{calls} calls: p50 {:?}, p99 {:?}, longest {:?}", took[calls / 2], took[calls * 99 / 100], took[calls - 1]);
    let tally: Value = ingress.call(Call::new(Target::service("Counted", "tally"))).await?.json()?;
    ensure!(tally == json!([calls * STEPS, calls * STEPS]), "steps, and runs of them: {tally}");
    server.expect_quiet(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn hypercorn_forgets_the_streams_of_a_connection_after_1000_requests_and_no_step_runs_twice() -> Result<()> {
    no_step_runs_twice(5_000, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hypercorn_forgets_them_after_200_requests_and_no_step_runs_twice() -> Result<()> {
    no_step_runs_twice(1_500, &[("REQUESTS_MAX", "200")]).await
}

/// Calls of a service's handler `echo` beside what the others do. All are answered.
async fn neighbours_answer(server: &Server, service: &str, calls: usize) -> Result<()> {
    const CONCURRENCY: usize = 4;
    let ingress = server.ingress().with_timeout(LIMIT);
    let ingress = &ingress;
    let answers = stream::iter(0..calls).map(async |number| {
        let began = Instant::now();
        let call = Call::new(Target::service(service, "echo")).json(&number);
        let answer: usize = ingress.call(call).await.with_context(|| format!("neighbour {number}"))?.json()?;
        ensure!(answer == number, "{answer} for {number}");
        Ok(began.elapsed())
    });
    let mut took: Vec<Duration> = answers.buffer_unordered(CONCURRENCY).try_collect().await?;
    took.sort();
    eprintln!("{calls} calls of a neighbour: p50 {:?}, longest {:?}", took[calls / 2], took[calls - 1]);
    Ok(())
}

/// Waits until no invocation is under way any more, or waits for anything.
async fn all_are_done(server: &Server) -> Result<()> {
    let admin = server.admin();
    eventually("all that was held back", LIMIT, || async {
        for status in ["running", "backing-off", "paused"] {
            let unfinished = InvocationFilter { status: Some(status.into()), ..Default::default() };
            let left = admin.invocations(&unfinished).await?.invocations.len();
            ensure!(left == 0, "{left} and more are {status}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_no_trouble_of_its_neighbours() -> Result<()> {
    const NEIGHBOURS: usize = 200;
    if Language::TypeScript.is_skipped() {
        return Ok(());
    }
    let endpoint = Endpoint::start(Language::TypeScript, "large.cjs", &[]).await?;
    let server = serving(&endpoint).await?;
    let too_large = Call::new(Target::service("Large", "answer")).json(&33);
    let mut bad = Vec::new();
    for _ in 0..2 {
        bad.push(server.ingress().send(too_large.clone()).await?.invocation);
    }
    let filter = InvocationFilter { service: Some("Large".into()), ..Default::default() };
    let admin = server.admin();
    eventually("answers that are refused", LIMIT, || async {
        let listed = admin.invocations(&filter).await?.invocations;
        ensure!(listed.iter().filter(|one| one.last_error.is_some()).count() == bad.len(), "{listed:?}");
        Ok(())
    })
    .await?;
    // They go on trying, and the neighbours with them.
    neighbours_answer(&server, "Large", NEIGHBOURS).await?;
    for id in &bad {
        admin.kill(id).await?;
    }
    server.expect_quiet(&["invocation keeps failing"])
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_no_trouble_of_their_neighbours() -> Result<()> {
    const ROUNDS: usize = 5;
    const NEIGHBOURS: usize = 200;
    const MEBIBYTES: usize = 12;
    if Language::TypeScript.is_skipped() {
        return Ok(());
    }
    let endpoint = Endpoint::start(Language::TypeScript, "large.cjs", &[]).await?;
    let server = serving(&endpoint).await?;
    let ingress = server.ingress().with_timeout(LIMIT);
    let ingress = &ingress;
    let large = stream::iter(0..4 * ROUNDS).map(async |_| {
        let call = Call::new(Target::service("Large", "answer")).json(&MEBIBYTES);
        let answer: String = ingress.call(call).await.context("a large answer")?.json()?;
        ensure!(answer.len() == MEBIBYTES << 20, "{} bytes", answer.len());
        Ok(())
    });
    let (large, neighbours) =
        tokio::join!(large.buffer_unordered(4).try_collect::<()>(), neighbours_answer(&server, "Large", NEIGHBOURS));
    large?;
    neighbours?;
    server.expect_quiet(&["invocation keeps failing"])
}

struct Healthy;

#[service]
impl Healthy {
    #[handler]
    async fn echo(&self, _ctx: Context<'_>, Json(number): Json<usize>) -> HandlerResult<Json<usize>> {
        Ok(Json(number))
    }
}

struct Deaf;

#[service]
impl Deaf {
    #[handler]
    async fn echo(&self, _ctx: Context<'_>, Json(number): Json<usize>) -> HandlerResult<Json<usize>> {
        Ok(Json(number))
    }
}

/// How the port of a deployment that is down behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    Refuses,
    /// It takes connections, and says nothing on them.
    IsSilent,
    /// It takes connections, and closes them: a load balancer does while nothing stands behind it.
    Closes,
}

/// A deployment in this process.
struct Deployment {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Deployment {
    async fn serve(handlers: Handlers, address: Option<SocketAddr>) -> Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(address.unwrap_or(any)).await.context("bind")?;
        let address = listener.local_addr().context("read the address")?;
        Ok(Self { address, serving: tokio::spawn(HttpServer::new(handlers).serve(listener)) })
    }

    async fn go_down(self, down: Down) -> Result<Self> {
        self.stop().await;
        if down == Down::Refuses {
            return Ok(self);
        }
        let listener = TcpListener::bind(self.address).await.context("bind again")?;
        let serving = tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                if down == Down::IsSilent {
                    connections.push(connection);
                }
            }
        });
        Ok(Self { address: self.address, serving })
    }

    /// Its port is free after this.
    async fn stop(&self) {
        self.serving.abort();
        while !self.serving.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}

/// Flooded with calls, it took all places of the node, and nothing else ran.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_takes_connections_and_never_answers_is_no_trouble_of_the_others() -> Result<()> {
    const PLACES: usize = 8;
    const FLOOD: usize = 400;
    const NEIGHBOURS: usize = 200;
    let server = Server::start(&[("WORKER__INVOKER__CONCURRENT_INVOCATIONS_LIMIT", &PLACES.to_string())]).await?;
    let (healthy, deaf) = (|| Handlers::builder().bind(Healthy).build(), || Handlers::builder().bind(Deaf).build());
    let neighbour = Deployment::serve(healthy(), None).await?;
    let silent = Deployment::serve(deaf(), None).await?;
    for deployment in [&neighbour, &silent] {
        let uri = format!("http://{}", deployment.address);
        server.admin().register(&NewDeployment::at(uri.as_str())).await.context("register")?;
    }
    let silent = silent.go_down(Down::IsSilent).await?;
    let ingress = server.ingress();
    for number in 0..FLOOD {
        ingress.send(Call::new(Target::service("Deaf", "echo")).json(&number)).await?;
    }
    neighbours_answer(&server, "Healthy", NEIGHBOURS).await?;
    // What was held back goes on once the deployment answers.
    silent.stop().await;
    let _answering = Deployment::serve(deaf(), Some(silent.address)).await?;
    all_are_done(&server).await?;
    server.expect_quiet(&[])
}

/// Each of tens of thousands of invocations failed at once, in turn, and again with each retry; calls of the others waited behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_refuses_connections_is_tried_by_one_at_a_time_and_is_no_trouble_of_the_others() -> Result<()> {
    is_tried_by_one_at_a_time(Down::Refuses).await
}

/// All of them waited for a word of HTTP/2, failed, and were paused in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_takes_connections_and_is_silent_counts_as_a_closed_one() -> Result<()> {
    is_tried_by_one_at_a_time(Down::IsSilent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_takes_connections_and_closes_them_counts_as_a_closed_one() -> Result<()> {
    is_tried_by_one_at_a_time(Down::Closes).await
}

/// Invocations for a deployment that is down wait, whatever their retry policy allows, and complete once it is up.
async fn is_tried_by_one_at_a_time(down: Down) -> Result<()> {
    const FLOOD: usize = 2_000;
    const NEIGHBOURS: usize = 50;
    /// One a second is tried, and tried again half a second later at first.
    const BACKING_OFF_MAX: usize = 10;
    // The first one that counts pauses its invocation.
    let settings = [("WORKER__INVOKER__CONNECT_TIMEOUT", "1s"), ("DEFAULT_RETRY_POLICY__MAX_ATTEMPTS", "1")];
    let mut server = Server::start(&settings).await?;
    let (healthy, deaf) = (|| Handlers::builder().bind(Healthy).build(), || Handlers::builder().bind(Deaf).build());
    let neighbour = Deployment::serve(healthy(), None).await?;
    let deployment = Deployment::serve(deaf(), None).await?;
    for deployment in [&neighbour, &deployment] {
        let uri = format!("http://{}", deployment.address);
        server.admin().register(&NewDeployment::at(uri.as_str())).await.context("register")?;
    }
    let deployment = deployment.go_down(down).await?;
    // With this process's connections to what is down now, which may still serve.
    server.kill()?;
    server.restart().await?;
    let ingress = &server.ingress();
    let sends = (0..FLOOD).map(async |number| ingress.send(Call::new(Target::service("Deaf", "echo")).json(&number)).await);
    stream::iter(sends).buffer_unordered(64).try_for_each(async |_| Ok(())).await?;
    server.kill()?;
    server.restart().await?;
    neighbours_answer(&server, "Healthy", NEIGHBOURS).await?;
    let admin = server.admin();
    let page = async |status: &str| {
        let filter = InvocationFilter { status: Some(status.into()), limit: Some(100), ..Default::default() };
        anyhow::Ok(admin.invocations(&filter).await?.invocations)
    };
    // Those that began before anybody knew have failed, and wait with the others once their first pause is over.
    eventually("all but a few wait, and say why", LIMIT, || async {
        let (failed, waiting) = (page("backing-off").await?.len(), page("running").await?);
        ensure!(failed <= BACKING_OFF_MAX, "{failed} are backing off");
        ensure!(
            waiting.len() == 100 && waiting.iter().all(|waiting| waiting.waits_for.is_some()),
            "nobody says why: {waiting:?}"
        );
        Ok(())
    })
    .await?;
    deployment.stop().await;
    let _answering = Deployment::serve(deaf(), Some(deployment.address)).await?;
    neighbours_answer(&server, "Healthy", NEIGHBOURS).await?;
    all_are_done(&server).await?;
    server.expect_quiet(&[])
}
