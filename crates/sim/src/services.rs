//! What simulated handlers serve, as it is registered.

use std::collections::BTreeMap;
use surefoot_model::catalog::{
    Deployment, Handler, HttpVersion, InputRule, Options, OutputRule, Service, ServiceKind, StreamMode,
};
use surefoot_model::{DeploymentId, TargetKind, Timestamp};

/// One revision of the deployments of a simulated world, at an address of its own. `without` is a service whose handlers it does
/// not have, by mistake.
pub(crate) fn deployment(revision: u32, without: Option<&str>) -> Deployment {
    let id = DeploymentId(revision.into());
    let service = |name: &str, kind: ServiceKind, retention_ms: Option<u64>, handlers: &[(&str, TargetKind)]| Service {
        name: name.into(),
        kind,
        revision,
        deployment: id,
        public: true,
        handlers: handlers
            .iter()
            .filter(|_| without != Some(name))
            .map(|(name, target)| ((*name).into(), handler(name, *target)))
            .collect(),
        options: Options {
            // Short, so that sleeping handlers suspend; what the probe asks has to go well without.
            inactivity_timeout_ms: (name != "Probe").then_some(300),
            abort_timeout_ms: Some(5_000),
            // Each revision has another, so that whoever looks at the wrong one shows.
            journal_retention_ms: retention_ms.or(Some(u64::from(revision) * 10_000_000)),
            ..Options::default()
        },
        documentation: None,
        metadata: BTreeMap::new(),
    };
    // What is forgotten once it has ended would run again if it came again.
    let forgotten = Some(0);
    let object = [("add", TargetKind::ObjectExclusive), ("get", TargetKind::ObjectShared)];
    let probe = ["nap", "retry", "chain"].map(|name| (name, TargetKind::Service));
    Deployment {
        id,
        uri: format!("http://handlers-{revision}/"),
        http: HttpVersion::Http2,
        mode: StreamMode::Bidirectional,
        additional_headers: BTreeMap::new(),
        metadata: BTreeMap::new(),
        created_at: Timestamp(0),
        min_protocol: 5,
        max_protocol: 6,
        sdk_version: None,
        services: vec![
            service("Counter", ServiceKind::VirtualObject, None, &object),
            service("Sink", ServiceKind::VirtualObject, forgotten, &object),
            service("Ledger", ServiceKind::VirtualObject, forgotten, &object),
            service("Mirror", ServiceKind::VirtualObject, forgotten, &object),
            service("Relay", ServiceKind::Service, forgotten, &[("relay", TargetKind::Service)]),
            service("Echo", ServiceKind::Service, None, &[("echo", TargetKind::Service)]),
            service("Probe", ServiceKind::Service, None, &probe),
        ],
    }
}

fn handler(name: &str, target: TargetKind) -> Handler {
    Handler {
        name: name.into(),
        target,
        public: None,
        input: InputRule::default(),
        output: OutputRule::default(),
        options: Options::default(),
        documentation: None,
        metadata: BTreeMap::new(),
    }
}
