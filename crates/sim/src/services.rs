//! What simulated handlers serve, as it is registered.

use surefoot_model::catalog::{Deployment, Handler, Options, Service, ServiceKind};
use surefoot_model::{DeploymentId, TargetKind};

/// One revision of the deployments of a simulated world, at an address of its own. `without` is a service whose handlers it does
/// not have, by mistake.
pub(crate) fn deployment(revision: u32, without: Option<&str>) -> Deployment {
    let service = |name: &str, kind: ServiceKind, retention_ms: Option<u64>, handlers: &[(&str, TargetKind)]| {
        let handlers = handlers.iter().filter(|_| without != Some(name)).map(|(name, target)| Handler::new(name, *target));
        Service {
            revision,
            options: Options {
                // Short, so that sleeping handlers suspend; what the probe asks has to go well without.
                inactivity_timeout_ms: (name != "Probe").then_some(300),
                abort_timeout_ms: Some(5_000),
                // Each revision has another, so that whoever looks at the wrong one shows.
                journal_retention_ms: retention_ms.or(Some(u64::from(revision) * 10_000_000)),
                ..Options::default()
            },
            ..Service::new(name, kind, handlers)
        }
    };
    // What is forgotten once it has ended would run again if it came again.
    let forgotten = Some(0);
    let object = [("add", TargetKind::ObjectExclusive), ("get", TargetKind::ObjectShared)];
    let probe = ["nap", "retry", "chain"].map(|name| (name, TargetKind::Service));
    Deployment::at(DeploymentId(revision.into()), format!("http://handlers-{revision}/")).serving([
        service("Counter", ServiceKind::VirtualObject, None, &object),
        service("Sink", ServiceKind::VirtualObject, forgotten, &object),
        service("Ledger", ServiceKind::VirtualObject, forgotten, &object),
        service("Mirror", ServiceKind::VirtualObject, forgotten, &object),
        service("Relay", ServiceKind::Service, forgotten, &[("relay", TargetKind::Service)]),
        service("Echo", ServiceKind::Service, None, &[("echo", TargetKind::Service)]),
        service("Probe", ServiceKind::Service, None, &probe),
    ])
}
