//! Services and handlers as the API shows them.
//!
//! Owns: the JSON shapes of HTTP reference 2.3 and 2.4. Values are resolved: the server's defaults show where nobody else set one.

use crate::text::duration;
use crate::{Admin, Error};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use surefoot_model::catalog::{
    Defaults, Deployment, Handler, InputRule, OnMaxAttempts, Options, OutputRule, Service, ServiceKind, StreamMode,
};
use surefoot_model::{TargetKind, Text};

#[derive(Serialize)]
pub(crate) struct ServiceJson {
    name: String,
    handlers: Vec<HandlerJson>,
    ty: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    documentation: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    deployment_id: String,
    revision: u32,
    public: bool,
    idempotency_retention: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_completion_retention: Option<String>,
    journal_retention: String,
    inactivity_timeout: String,
    abort_timeout: String,
    enable_lazy_state: bool,
    retry_policy: RetryPolicyJson,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    info: Vec<Info>,
}

#[derive(Serialize)]
pub(crate) struct HandlerJson {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ty: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    documentation: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_retention: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_completion_retention: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal_retention: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inactivity_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    abort_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_lazy_state: Option<bool>,
    public: bool,
    input_description: String,
    output_description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_json_schema: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_json_schema: Option<Box<RawValue>>,
    retry_policy: RetryOverridesJson,
}

#[derive(Serialize)]
struct RetryPolicyJson {
    initial_interval: String,
    exponentiation_factor: f64,
    max_attempts: Option<u32>,
    max_interval: String,
    on_max_attempts: &'static str,
}

#[derive(Serialize)]
struct RetryOverridesJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    initial_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exponentiation_factor: Option<f64>,
    /// Shown as null when unset.
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_max_attempts: Option<&'static str>,
}

/// A remark beside a value.
#[derive(Serialize)]
struct Info {
    code: &'static str,
    message: &'static str,
}

#[derive(Serialize)]
pub(crate) struct Services {
    services: Vec<ServiceJson>,
}

#[derive(Serialize)]
pub(crate) struct Handlers {
    handlers: Vec<HandlerJson>,
}

impl Admin {
    pub(crate) fn list_services(&self) -> Services {
        let catalog = self.catalog();
        Services {
            services: catalog
                .services
                .values()
                .map(|s| self.service_json(s, catalog.deployments.get(&s.deployment).map(|d| &**d)))
                .collect(),
        }
    }

    pub(crate) fn show_service(&self, name: &str) -> Result<ServiceJson, Error> {
        let catalog = self.catalog();
        let service = catalog.services.get(name).ok_or_else(|| Error::ServiceNotFound(name.to_owned()))?;
        Ok(self.service_json(service, catalog.deployment_of(name).map(|d| &**d)))
    }

    pub(crate) fn list_handlers(&self, service: &str) -> Result<Handlers, Error> {
        let catalog = self.catalog();
        let found = catalog.services.get(service).ok_or_else(|| Error::ServiceNotFound(service.to_owned()))?;
        Ok(Handlers { handlers: found.handlers.values().map(|h| handler_json(found, h)).collect() })
    }

    pub(crate) fn show_handler(&self, service: &str, handler: &str) -> Result<HandlerJson, Error> {
        let catalog = self.catalog();
        let found = catalog.services.get(service).ok_or_else(|| Error::ServiceNotFound(service.to_owned()))?;
        let not_found = || Error::HandlerNotFound { service: service.to_owned(), handler: handler.to_owned() };
        Ok(handler_json(found, found.handlers.get(handler).ok_or_else(not_found)?))
    }

    /// All services of a deployment, in full.
    pub(crate) fn services_of(&self, deployment: &Deployment) -> Vec<ServiceJson> {
        deployment.services.iter().map(|s| self.service_json(s, Some(deployment))).collect()
    }

    fn service_json(&self, service: &Service, deployment: Option<&Deployment>) -> ServiceJson {
        service_json(service, deployment, &self.shared().settings.defaults)
    }
}

fn service_json(service: &Service, deployment: Option<&Deployment>, defaults: &Defaults) -> ServiceJson {
    let Options { inactivity_timeout_ms, abort_timeout_ms, .. } = service.options;
    let own = &service.options;
    let never_inactive = inactivity_timeout_ms.is_some() && deployment.is_some_and(|d| d.mode == StreamMode::RequestResponse);
    let info = never_inactive.then_some(Info {
        code: "RT0021",
        message: "the inactivity timeout does not apply: the service is exposed in request/response mode",
    });
    let inactivity_ms = if never_inactive { 0 } else { inactivity_timeout_ms.unwrap_or(defaults.inactivity_timeout_ms) };
    let retry = &defaults.retry;
    ServiceJson {
        name: service.name.to_string(),
        handlers: service.handlers.values().map(|h| handler_json(service, h)).collect(),
        ty: match service.kind {
            ServiceKind::Service => "Service",
            ServiceKind::VirtualObject => "VirtualObject",
            ServiceKind::Workflow => "Workflow",
        },
        documentation: service.documentation.clone(),
        metadata: service.metadata.clone(),
        deployment_id: service.deployment.to_string(),
        revision: service.revision,
        public: service.public,
        idempotency_retention: duration(own.idempotency_retention_ms.unwrap_or(defaults.idempotency_retention_ms)),
        workflow_completion_retention: (service.kind == ServiceKind::Workflow)
            .then(|| duration(workflow_retention_ms(service, defaults))),
        journal_retention: duration(own.journal_retention_ms.unwrap_or(defaults.journal_retention_ms)),
        inactivity_timeout: duration(inactivity_ms),
        abort_timeout: duration(abort_timeout_ms.unwrap_or(defaults.abort_timeout_ms)),
        enable_lazy_state: own.enable_lazy_state.unwrap_or(false),
        retry_policy: RetryPolicyJson {
            initial_interval: duration(own.retry_initial_interval_ms.unwrap_or(retry.initial_interval_ms)),
            exponentiation_factor: own.retry_factor.unwrap_or(retry.factor),
            max_attempts: own.retry_max_attempts.or(retry.max_attempts),
            max_interval: duration(own.retry_max_interval_ms.unwrap_or(retry.max_interval_ms)),
            on_max_attempts: on_max_attempts(own.retry_on_max.unwrap_or(retry.on_max)),
        },
        info: info.into_iter().collect(),
    }
}

/// That of the run handler, which alone can set one of its own.
fn workflow_retention_ms(service: &Service, defaults: &Defaults) -> u64 {
    let run = service.handlers.values().find(|h| h.target == TargetKind::WorkflowRun);
    run.and_then(|h| h.options.workflow_retention_ms)
        .or(service.options.workflow_retention_ms)
        .unwrap_or(defaults.workflow_retention_ms)
}

fn handler_json(service: &Service, handler: &Handler) -> HandlerJson {
    let own = &handler.options;
    HandlerJson {
        name: handler.name.to_string(),
        ty: match handler.target {
            TargetKind::Service => None,
            TargetKind::ObjectExclusive => Some("Exclusive"),
            TargetKind::ObjectShared | TargetKind::WorkflowShared => Some("Shared"),
            TargetKind::WorkflowRun => Some("Workflow"),
        },
        documentation: handler.documentation.clone(),
        metadata: handler.metadata.clone(),
        idempotency_retention: own.idempotency_retention_ms.map(duration),
        workflow_completion_retention: own.workflow_retention_ms.map(duration),
        journal_retention: own.journal_retention_ms.map(duration),
        inactivity_timeout: own.inactivity_timeout_ms.map(duration),
        abort_timeout: own.abort_timeout_ms.map(duration),
        enable_lazy_state: own.enable_lazy_state,
        public: service.is_public(handler),
        input_description: describe_input(&handler.input),
        output_description: describe_output(&handler.output),
        input_json_schema: schema(handler.input.json_schema.as_deref()),
        output_json_schema: schema(handler.output.json_schema.as_deref()),
        retry_policy: RetryOverridesJson {
            initial_interval: own.retry_initial_interval_ms.map(duration),
            exponentiation_factor: own.retry_factor,
            max_attempts: own.retry_max_attempts,
            max_interval: own.retry_max_interval_ms.map(duration),
            on_max_attempts: own.retry_on_max.map(on_max_attempts),
        },
    }
}

fn describe_input(rule: &InputRule) -> String {
    match &rule.content_type {
        Some(content_type) => content_type.clone(),
        None if rule.declared => "none".to_owned(),
        None => "any".to_owned(),
    }
}

fn describe_output(rule: &OutputRule) -> String {
    match &rule.content_type {
        Some(content_type) => content_type.clone(),
        None if rule.declared => "none".to_owned(),
        None => "application/json".to_owned(),
    }
}

/// As the endpoint wrote it: to read it would take many times its bytes.
fn schema(text: Option<&str>) -> Option<Box<RawValue>> {
    text.and_then(|text| RawValue::from_string(text.to_owned()).ok())
}

fn on_max_attempts(on_max: OnMaxAttempts) -> &'static str {
    match on_max {
        OnMaxAttempts::Pause => "Pause",
        OnMaxAttempts::Kill => "Kill",
    }
}

/// Service and revision, as lists of deployments show them.
#[derive(Serialize)]
pub(crate) struct ServiceRevision {
    name: String,
    revision: u32,
}

impl From<&Service> for ServiceRevision {
    fn from(service: &Service) -> Self {
        let name: &Text = &service.name;
        Self { name: name.to_string(), revision: service.revision }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use surefoot_model::DeploymentId;

    pub(crate) fn handler(name: &str, target: TargetKind) -> Handler {
        Handler {
            input: InputRule { declared: true, content_type: Some("application/json".into()), ..InputRule::default() },
            output: OutputRule { declared: true, content_type: Some("application/json".into()), ..OutputRule::default() },
            ..Handler::new(name, target)
        }
    }

    pub(crate) fn service(name: &str, kind: ServiceKind, handlers: Vec<Handler>) -> Service {
        Service { deployment: DeploymentId(7), ..Service::new(name, kind, handlers) }
    }

    #[test]
    fn a_service_has_the_shape_that_clients_read() {
        let object = service("Obj", ServiceKind::VirtualObject, vec![handler("set", TargetKind::ObjectExclusive)]);
        let json = serde_json::to_string(&service_json(&object, None, &Defaults::default())).unwrap();
        let id = DeploymentId(7);
        assert_eq!(
            json,
            format!(
                r#"{{"name":"Obj","handlers":[{{"name":"set","ty":"Exclusive","public":true,"input_description":"application/json","output_description":"application/json","retry_policy":{{"max_attempts":null}}}}],"ty":"VirtualObject","deployment_id":"{id}","revision":1,"public":true,"idempotency_retention":"1d","journal_retention":"1d","inactivity_timeout":"1m","abort_timeout":"10m","enable_lazy_state":false,"retry_policy":{{"initial_interval":"500ms","exponentiation_factor":2.0,"max_attempts":70,"max_interval":"1m","on_max_attempts":"Pause"}}}}"#
            )
        );
    }

    #[test]
    fn a_workflow_shows_its_retention_and_a_handler_its_own_options() {
        let mut run = handler("run", TargetKind::WorkflowRun);
        run.options.workflow_retention_ms = Some(3_600_000);
        run.options.retry_max_attempts = Some(3);
        run.options.retry_on_max = Some(OnMaxAttempts::Kill);
        run.public = Some(false);
        let workflow = service("Wf", ServiceKind::Workflow, vec![run]);
        let json = serde_json::to_value(service_json(&workflow, None, &Defaults::default())).unwrap();
        assert_eq!(json["workflow_completion_retention"], "1h");
        assert_eq!(json["handlers"][0]["public"], false);
        assert_eq!(json["handlers"][0]["ty"], "Workflow");
        assert_eq!(json["handlers"][0]["retry_policy"], serde_json::json!({"max_attempts": 3, "on_max_attempts": "Kill"}));
    }
}
