//! Both HTTP surfaces of a node on a real disk and real sockets, in front of a small handler endpoint.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests of the production halves")]

mod admin;
mod client;
mod damage;
mod endpoint;
mod ingress;
mod moved;
mod recovery;

use client::{Answer, send};
use endpoint::Endpoint;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Disk, Env, OsDisk};
use surefoot_server::config::{Address, Config};
use surefoot_server::serve::{self, Process, Serving};

const SERVICES: &str = r#"
    {"name":"Svc","ty":"SERVICE","handlers":[
        {"name":"echo","input":{"required":false,"contentType":"application/json"},"output":{"contentType":"application/json"}},
        {"name":"headers"},{"name":"fail"},{"name":"hang"},{"name":"hidden","ingressPrivate":true}]},
    {"name":"Obj","ty":"VIRTUAL_OBJECT","handlers":[{"name":"echo"},{"name":"hang"},{"name":"peek","ty":"SHARED"}]},
    {"name":"Wf","ty":"WORKFLOW","handlers":[{"name":"run","ty":"WORKFLOW"},{"name":"peek","ty":"SHARED"}]},
    {"name":"Priv","ty":"SERVICE","ingressPrivate":true,"handlers":[{"name":"echo"}]}"#;

/// A node and the endpoint that is registered with it.
struct World {
    serving: Serving,
    endpoint: Endpoint,
}

impl World {
    /// A node in a directory, with nothing registered.
    async fn bare(directory: &Path, adjust: impl FnOnce(&mut Config)) -> Self {
        Self::try_bare(directory, adjust).await.unwrap()
    }

    async fn try_bare(directory: &Path, adjust: impl FnOnce(&mut Config)) -> Result<Self, serve::Error> {
        Self::try_on(directory, Arc::new(OsDisk), adjust).await
    }

    async fn try_on(directory: &Path, disk: Arc<dyn Disk>, adjust: impl FnOnce(&mut Config)) -> Result<Self, serve::Error> {
        let any_port = || Address { host: "127.0.0.1".to_owned(), port: 0 };
        let mut config = Config { base_dir: directory.join("data"), partitions: 4, ..Config::default() };
        config.ingress.bind_address = any_port();
        config.admin.bind_address = any_port();
        adjust(&mut config);
        let process = Process { metrics: Arc::new(String::new), fatal: Arc::new(|message| panic!("{message}")) };
        let env = Env { disk, ..Env::production(tokio::runtime::Handle::current()) };
        let serving = Serving::start(&config, env, process).await?;
        Ok(Self { serving, endpoint: Endpoint::start(SERVICES).await })
    }

    async fn with(directory: &Path, adjust: impl FnOnce(&mut Config)) -> Self {
        let world = Self::bare(directory, adjust).await;
        let registered = world.post("/deployments", &json!({"uri": world.uri()})).await;
        assert_eq!(registered.status, 201, "{}", registered.body);
        world
    }

    async fn start(directory: &Path) -> Self {
        Self::with(directory, |_| ()).await
    }

    fn uri(&self) -> String {
        format!("http://{}", self.endpoint.address)
    }

    /// A request to the ingress.
    async fn call(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        send(self.serving.summary().ingress, line, headers, body).await
    }

    /// A request without body to the admin port.
    async fn ask(&self, line: &str) -> Answer {
        send(self.serving.summary().admin, line, &[], "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = ["content-type: application/json"];
        send(self.serving.summary().admin, &format!("POST {path}"), &headers, &body.to_string()).await
    }

    /// Sends to a handler and returns the invocation's id once it has this status.
    async fn sent_until(&self, path: &str, status: &str) -> String {
        let id = self.call(&format!("POST {path}"), &[], "").await.json()["invocationId"].as_str().unwrap().to_owned();
        self.until(&id, status).await;
        id
    }

    async fn until(&self, id: &str, status: &str) {
        loop {
            let found = self.ask(&format!("GET /invocations/{id}")).await.json();
            if found["status"] == status {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        assert!(self.serving.stop(Duration::from_secs(60)).await, "the node stops in time");
    }
}
