//! What simulated handlers serve, as it is registered.

use std::collections::BTreeMap;
use surefoot_model::catalog::{
    Deployment, Handler, HttpVersion, InputRule, Options, OutputRule, Service, ServiceKind, StreamMode,
};
use surefoot_model::{DeploymentId, TargetKind, Timestamp};

/// The one deployment of a simulated world.
pub(crate) fn deployment() -> Deployment {
    let service = |name: &str, kind: ServiceKind, retention_ms: Option<u64>, handlers: &[(&str, TargetKind)]| Service {
        name: name.into(),
        kind,
        revision: 1,
        deployment: DeploymentId(1),
        public: true,
        handlers: handlers.iter().map(|(name, target)| ((*name).into(), handler(name, *target))).collect(),
        options: Options {
            // Short, so that sleeping handlers suspend.
            inactivity_timeout_ms: Some(300),
            journal_retention_ms: retention_ms,
            ..Options::default()
        },
        documentation: None,
        metadata: BTreeMap::new(),
    };
    // What is forgotten once it has ended would run again if it came again.
    let forgotten = Some(0);
    let object = [("add", TargetKind::ObjectExclusive), ("get", TargetKind::ObjectShared)];
    Deployment {
        id: DeploymentId(1),
        uri: "http://handlers/".to_owned(),
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
