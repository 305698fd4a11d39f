//! What an endpoint says it serves: the manifest, versions 1 to 4.
//!
//! Owns: reading and checking a manifest, and its translation into the catalog's services. Unknown fields and nulls are let
//! through, so that a newer manifest still reads. Does not own: fetching it, revisions, or what is registered already. Source:
//! protocol reference sections 2.3 to 2.9.

use serde::de::{self, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use surefoot_model::catalog::{Handler, InputRule, OnMaxAttempts, Options, OutputRule, Service, ServiceKind, StreamMode};
use surefoot_model::{DeploymentId, TargetKind};

use crate::version::{MAX_VERSION, MIN_VERSION, negotiate};

/// Media types to ask for, in the form that every SDK reads: no parameters, the newest in the list.
pub const ACCEPT: &str = "application/vnd.restate.endpointmanifest.v1+json, \
     application/vnd.restate.endpointmanifest.v2+json, \
     application/vnd.restate.endpointmanifest.v3+json, \
     application/vnd.restate.endpointmanifest.v4+json";

/// Bytes of a service's or handler's name. With a key ([`crate::KEY_BYTES_MAX`]) they fit into one key of the tables.
pub const NAME_BYTES_MAX: usize = 255;

/// Services of one manifest: each is in memory as long as its deployment is registered.
pub const MANIFEST_SERVICES_MAX: usize = 1_000;

/// Handlers of one manifest, of all its services together.
pub const MANIFEST_HANDLERS_MAX: usize = 10_000;

/// A checked manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub mode: StreamMode,
    pub min_protocol: i32,
    pub max_protocol: i32,
    /// Of revision 0 and deployment 0: whoever registers them knows better.
    pub services: Vec<Service>,
}

/// What is wrong with an endpoint's answer, told apart by who can mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// META0013: it is no manifest.
    #[error("bad discovery response: {0}")]
    Malformed(String),
    /// META0012: no protocol version in common, or no range of versions at all.
    #[error(
        "the endpoint speaks service protocol {min} to {max}, this server {server_min} to {server_max}: \
         use a version of the SDK that speaks one of them"
    )]
    Versions { min: i32, max: i32, server_min: u8, server_max: u8 },
    /// META0005: a name that belongs to the server.
    #[error("'{0}' is a reserved service name: rename the service")]
    ReservedName(String),
    /// A definition that contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// SF2032: it serves more than one deployment may have.
    #[error("it has {found} {what}, more than the {max} that one deployment may have: serve them from several endpoints")]
    TooMany { what: &'static str, found: usize, max: usize },
}

/// Reads a manifest from the body of an answer with this content type.
pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Manifest, Error> {
    let known = (1..=4).any(|v| content_type == Some(&format!("application/vnd.restate.endpointmanifest.v{v}+json")));
    if !known {
        let found = content_type.unwrap_or("none");
        return Err(Error::Malformed(format!(
            "content type is {found}, not that of an endpoint manifest: is this the right address?"
        )));
    }
    let malformed = |error: serde_json::Error| Error::Malformed(error.to_string());
    // Before anything of it is kept: what was read takes many times the bytes that it came in.
    let ManifestSize { services: ServicesSize { services, handlers } } = serde_json::from_slice(body).map_err(malformed)?;
    let bounds = [("services", services, MANIFEST_SERVICES_MAX), ("handlers", handlers, MANIFEST_HANDLERS_MAX)];
    if let Some((what, found, max)) = bounds.into_iter().find(|(_, found, max)| found > max) {
        return Err(Error::TooMany { what, found, max });
    }
    let manifest: ManifestJson = serde_json::from_slice(body).map_err(malformed)?;
    let mode = match manifest.protocol_mode.as_deref() {
        Some("BIDI_STREAM") => StreamMode::Bidirectional,
        Some("REQUEST_RESPONSE") => StreamMode::RequestResponse,
        other => return Err(Error::Malformed(format!("protocolMode is {other:?}"))),
    };
    let (min, max) = (manifest.min_protocol_version, manifest.max_protocol_version);
    // What is no range has nothing in common with ours.
    if min < 1 || max < min || negotiate(min, max).is_none() {
        return Err(Error::Versions { min, max, server_min: MIN_VERSION, server_max: MAX_VERSION });
    }
    let (mut services, mut names) = (Vec::with_capacity(manifest.services.len()), BTreeSet::new());
    for service in manifest.services {
        if !names.insert(service.own.name.clone()) {
            return Err(Error::Invalid(format!("service '{}' is defined twice", service.own.name)));
        }
        services.push(service_of(service)?);
    }
    Ok(Manifest { mode, min_protocol: min, max_protocol: max, services })
}

fn service_of(WithOptions { own: json, options }: WithOptions<ServiceJson>) -> Result<Service, Error> {
    let name = json.name;
    if !is_service_name(&name) {
        return Err(Error::Malformed(format!("'{}' is no service name", shown(&name))));
    }
    is_short(&name)?;
    let lower = name.to_lowercase();
    if lower.starts_with("restate") || lower == "openapi" {
        return Err(Error::ReservedName(name));
    }
    let kind = match json.ty.as_str() {
        "SERVICE" => ServiceKind::Service,
        "VIRTUAL_OBJECT" => ServiceKind::VirtualObject,
        "WORKFLOW" => ServiceKind::Workflow,
        other => return Err(Error::Malformed(format!("service '{name}' has type {other}"))),
    };
    let public = !json.ingress_private.unwrap_or(false);
    let mut handlers = BTreeMap::new();
    for handler in json.handlers {
        let handler = handler_of(&name, kind, public, handler)?;
        let handler_name = handler.name.clone();
        if handlers.insert(handler_name.clone(), handler).is_some() {
            return Err(Error::Invalid(format!("handler '{name}/{handler_name}' is defined twice")));
        }
    }
    Ok(Service {
        options: options.into_options(&name)?,
        name: name.into(),
        kind,
        revision: 0,
        deployment: DeploymentId(0),
        public,
        handlers,
        documentation: json.documentation,
        metadata: json.metadata.unwrap_or_default(),
    })
}

fn handler_of(
    service: &str,
    kind: ServiceKind,
    service_is_public: bool,
    WithOptions { own: json, options }: WithOptions<HandlerJson>,
) -> Result<Handler, Error> {
    let at = format!("{service}/{}", shown(&json.name));
    if !is_handler_name(&json.name) {
        return Err(Error::Malformed(format!("'{at}' is no handler name")));
    }
    is_short(&json.name)?;
    let target = target_of(kind, json.ty.as_deref()).ok_or_else(|| {
        Error::Invalid(format!(
            "handler '{at}' has type {:?}, which a {kind:?} cannot have",
            json.ty.as_deref().unwrap_or("none")
        ))
    })?;
    if options.workflow_completion_retention.is_some() && target != TargetKind::WorkflowRun {
        return Err(Error::Invalid(format!("handler '{at}' sets a workflow retention but is not a workflow's run handler")));
    }
    if options.idempotency_retention.is_some() && target == TargetKind::WorkflowRun {
        return Err(Error::Invalid(format!("handler '{at}' is a workflow's run handler and takes no idempotency retention")));
    }
    if !service_is_public && json.ingress_private == Some(false) {
        return Err(Error::Invalid(format!("handler '{at}' is public but its service is private")));
    }
    let input = json.input.map_or_else(InputRule::default, |input| InputRule {
        declared: true,
        required: input.required.unwrap_or(false),
        content_type: input.content_type,
        json_schema: input.json_schema.map(|schema| schema.get().to_owned()),
    });
    if input.content_type.as_deref().is_some_and(|t| t.starts_with("*/") && t != "*/*") {
        return Err(Error::Invalid(format!("handler '{at}' takes content type {:?}, which no request has", input.content_type)));
    }
    let output = json.output.map_or_else(OutputRule::default, |output| OutputRule {
        declared: true,
        content_type: output.content_type,
        set_content_type_if_empty: output.set_content_type_if_empty.unwrap_or(false),
        json_schema: output.json_schema.map(|schema| schema.get().to_owned()),
    });
    Ok(Handler {
        options: options.into_options(&at)?,
        name: json.name.into(),
        target,
        public: json.ingress_private.map(|private| !private),
        input,
        output,
        documentation: json.documentation,
        metadata: json.metadata.unwrap_or_default(),
    })
}

/// The table of protocol reference 2.8; the type may be left out.
fn target_of(kind: ServiceKind, ty: Option<&str>) -> Option<TargetKind> {
    Some(match (kind, ty) {
        (ServiceKind::Service, None | Some("SHARED")) => TargetKind::Service,
        (ServiceKind::VirtualObject, None | Some("EXCLUSIVE")) => TargetKind::ObjectExclusive,
        (ServiceKind::VirtualObject, Some("SHARED")) => TargetKind::ObjectShared,
        (ServiceKind::Workflow, None | Some("SHARED")) => TargetKind::WorkflowShared,
        (ServiceKind::Workflow, Some("WORKFLOW")) => TargetKind::WorkflowRun,
        _ => return None,
    })
}

fn is_short(name: &str) -> Result<(), Error> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let (shown, bytes) = (shown(name), name.len());
    Err(Error::Invalid(format!("the name '{shown}' has {bytes} bytes, more than the {NAME_BYTES_MAX} that a name may have")))
}

/// A name as it stands in a message: long ones by their beginning.
fn shown(name: &str) -> Cow<'_, str> {
    if name.len() <= NAME_BYTES_MAX {
        return Cow::Borrowed(name);
    }
    Cow::Owned(format!("{}…", &name[..name.floor_char_boundary(32)]))
}

fn is_service_name(name: &str) -> bool {
    is_name(name, |c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_handler_name(name: &str) -> bool {
    is_name(name, |c| c.is_ascii_alphanumeric() || c == '_')
}

/// A letter, or an underscore and a letter or digit; then anything of `rest`.
fn is_name(name: &str, rest: impl Fn(char) -> bool) -> bool {
    let mut chars = name.chars();
    let begins = match chars.next() {
        Some('_') => chars.next().is_some_and(|c| c.is_ascii_alphanumeric()),
        Some(first) => first.is_ascii_alphabetic(),
        None => false,
    };
    begins && chars.all(rest)
}

/// How much a manifest serves, read without keeping any of it.
#[derive(Deserialize)]
struct ManifestSize {
    services: ServicesSize,
}

struct ServicesSize {
    services: usize,
    handlers: usize,
}

#[derive(Deserialize)]
struct ServiceSize {
    /// Takes no memory: what is ignored has no size.
    handlers: Vec<IgnoredAny>,
}

impl<'de> Deserialize<'de> for ServicesSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;

        impl<'de> Visitor<'de> for Counting {
            type Value = ServicesSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of services")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ServicesSize, A::Error> {
                let mut size = ServicesSize { services: 0, handlers: 0 };
                while let Some(service) = list.next_element::<ServiceSize>()? {
                    size.services += 1;
                    size.handlers += service.handlers.len();
                }
                Ok(size)
            }
        }

        deserializer.deserialize_seq(Counting)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    protocol_mode: Option<String>,
    min_protocol_version: i32,
    max_protocol_version: i32,
    services: Vec<WithOptions<ServiceJson>>,
}

/// A service or a handler, and its options. Both are read from one text: a field that neither knows takes no memory.
struct WithOptions<T> {
    own: T,
    options: OptionsJson,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for WithOptions<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let own = serde_json::from_str(text).map_err(de::Error::custom)?;
        let options = serde_json::from_str(text).map_err(de::Error::custom)?;
        Ok(Self { own, options })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceJson {
    name: String,
    ty: String,
    handlers: Vec<WithOptions<HandlerJson>>,
    documentation: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    ingress_private: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HandlerJson {
    name: String,
    ty: Option<String>,
    input: Option<InputJson>,
    output: Option<OutputJson>,
    documentation: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    ingress_private: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InputJson {
    required: Option<bool>,
    content_type: Option<String>,
    json_schema: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutputJson {
    content_type: Option<String>,
    set_content_type_if_empty: Option<bool>,
    json_schema: Option<Box<RawValue>>,
}

/// Times in milliseconds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OptionsJson {
    inactivity_timeout: Option<u64>,
    abort_timeout: Option<u64>,
    journal_retention: Option<u64>,
    idempotency_retention: Option<u64>,
    workflow_completion_retention: Option<u64>,
    enable_lazy_state: Option<bool>,
    retry_policy_initial_interval: Option<u64>,
    retry_policy_max_interval: Option<u64>,
    retry_policy_max_attempts: Option<u64>,
    retry_policy_exponentiation_factor: Option<f64>,
    retry_policy_on_max_attempts: Option<String>,
}

impl OptionsJson {
    fn into_options(self, at: &str) -> Result<Options, Error> {
        if let Some(factor) = self.retry_policy_exponentiation_factor.filter(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(Error::Invalid(format!("'{at}' has retryPolicyExponentiationFactor {factor}, which is to be above 0")));
        }
        Ok(Options {
            inactivity_timeout_ms: self.inactivity_timeout,
            abort_timeout_ms: self.abort_timeout,
            journal_retention_ms: self.journal_retention,
            idempotency_retention_ms: self.idempotency_retention,
            workflow_retention_ms: self.workflow_completion_retention,
            enable_lazy_state: self.enable_lazy_state,
            retry_initial_interval_ms: self.retry_policy_initial_interval,
            retry_max_interval_ms: self.retry_policy_max_interval,
            retry_max_attempts: self.retry_policy_max_attempts.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            retry_factor: self.retry_policy_exponentiation_factor,
            retry_on_max: match self.retry_policy_on_max_attempts.as_deref() {
                None => None,
                Some("PAUSE") => Some(OnMaxAttempts::Pause),
                Some("KILL") => Some(OnMaxAttempts::Kill),
                Some(other) => return Err(Error::Malformed(format!("'{at}' has retryPolicyOnMaxAttempts {other}"))),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Option<&str> = Some("application/vnd.restate.endpointmanifest.v4+json");

    fn manifest(services: &str) -> String {
        format!(
            r#"{{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":7,"services":[{services}],"later":1}}"#
        )
    }

    fn parse_one(service: &str) -> Result<Service, Error> {
        parse(V4, manifest(service).as_bytes()).map(|m| m.services.into_iter().next().unwrap())
    }

    #[test]
    fn handler_types_follow_the_service_where_they_are_left_out() {
        let kinds = |ty: &str, handler: &str| {
            let service = format!(r#"{{"name":"S","ty":"{ty}","handlers":[{{"name":"h"{handler}}}]}}"#);
            parse_one(&service).map(|s| s.handlers["h"].target)
        };
        assert_eq!(kinds("SERVICE", ""), Ok(TargetKind::Service));
        assert_eq!(kinds("SERVICE", r#","ty":"SHARED""#), Ok(TargetKind::Service));
        assert_eq!(kinds("VIRTUAL_OBJECT", ""), Ok(TargetKind::ObjectExclusive));
        assert_eq!(kinds("VIRTUAL_OBJECT", r#","ty":null"#), Ok(TargetKind::ObjectExclusive));
        assert_eq!(kinds("VIRTUAL_OBJECT", r#","ty":"SHARED""#), Ok(TargetKind::ObjectShared));
        assert_eq!(kinds("WORKFLOW", ""), Ok(TargetKind::WorkflowShared));
        assert_eq!(kinds("WORKFLOW", r#","ty":"WORKFLOW""#), Ok(TargetKind::WorkflowRun));
        assert!(kinds("SERVICE", r#","ty":"EXCLUSIVE""#).is_err());
    }

    #[test]
    fn options_are_read_in_milliseconds() {
        let service = parse_one(
            r#"{"name":"S","ty":"SERVICE","inactivityTimeout":1500,"retryPolicyMaxAttempts":0,"retryPolicyOnMaxAttempts":"KILL",
                "handlers":[{"name":"h","ingressPrivate":true,"input":{"required":true,"contentType":"application/json","jsonSchema":{}}}]}"#,
        )
        .unwrap();
        assert_eq!(service.options.inactivity_timeout_ms, Some(1500));
        assert_eq!(service.options.retry_on_max, Some(OnMaxAttempts::Kill));
        let handler = &service.handlers["h"];
        assert_eq!(handler.public, Some(false));
        assert!(handler.input.declared && handler.input.required && handler.input.json_schema.is_some());
        let policy = service.resolve(handler, &Default::default()).retry;
        assert_eq!(policy.max_attempts, Some(1), "0 means 1");
    }

    #[test]
    fn what_cannot_be_registered_is_told_apart() {
        assert!(matches!(parse(Some("text/html"), b"<html>"), Err(Error::Malformed(_))));
        assert!(matches!(parse(V4, b"{"), Err(Error::Malformed(_))));
        assert!(matches!(parse(V4, manifest("").replace("BIDI_STREAM", "X").as_bytes()), Err(Error::Malformed(_))));
        let old = manifest("")
            .replace(r#""minProtocolVersion":5,"maxProtocolVersion":7"#, r#""minProtocolVersion":2,"maxProtocolVersion":4"#);
        assert!(matches!(parse(V4, old.as_bytes()), Err(Error::Versions { min: 2, max: 4, .. })));
        for range in [r#""minProtocolVersion":7,"maxProtocolVersion":5"#, r#""minProtocolVersion":0,"maxProtocolVersion":7"#] {
            let body = manifest("").replace(r#""minProtocolVersion":5,"maxProtocolVersion":7"#, range);
            assert!(matches!(parse(V4, body.as_bytes()), Err(Error::Versions { .. })), "{range}");
        }
        assert_eq!(parse_one(r#"{"name":"RestateX","ty":"SERVICE","handlers":[]}"#), Err(Error::ReservedName("RestateX".into())));
        assert!(matches!(parse_one(r#"{"name":"a/b","ty":"SERVICE","handlers":[]}"#), Err(Error::Malformed(_))));
        assert!(matches!(
            parse_one(r#"{"name":"S","ty":"SERVICE","handlers":[{"name":"h"},{"name":"h"}]}"#),
            Err(Error::Invalid(_))
        ));
        let private = r#"{"name":"S","ty":"SERVICE","ingressPrivate":true,"handlers":[{"name":"h","ingressPrivate":false}]}"#;
        assert!(matches!(parse_one(private), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_retry_factor_that_makes_no_sense_is_refused() {
        let parse = |factor: &str| {
            let options = format!(r#""retryPolicyExponentiationFactor":{factor}"#);
            let service = parse_one(&format!(r#"{{"name":"S","ty":"SERVICE",{options},"handlers":[]}}"#));
            let handler = parse_one(&format!(r#"{{"name":"S","ty":"SERVICE","handlers":[{{"name":"h",{options}}}]}}"#));
            assert_eq!(service.is_ok(), handler.is_ok());
            handler
        };
        assert!(parse("0.5").is_ok() && parse("2").is_ok());
        for factor in ["0", "-1", "-0.0"] {
            assert!(matches!(parse(factor), Err(Error::Invalid(_))), "{factor}");
        }
    }

    #[test]
    fn what_one_manifest_serves_has_a_bound() {
        let services = |count: usize, handlers_of_first: usize| {
            let handlers: Vec<_> = (0..handlers_of_first).map(|n| format!(r#"{{"name":"h{n}"}}"#)).collect();
            let services: Vec<_> = (0..count)
                .map(|n| {
                    let handlers = if n == 0 { handlers.join(",") } else { String::new() };
                    format!(r#"{{"name":"S{n}","ty":"SERVICE","handlers":[{handlers}]}}"#)
                })
                .collect();
            parse(V4, manifest(&services.join(",")).as_bytes())
        };
        let most = services(MANIFEST_SERVICES_MAX, MANIFEST_HANDLERS_MAX).unwrap();
        assert_eq!((most.services.len(), most.services[0].handlers.len()), (MANIFEST_SERVICES_MAX, MANIFEST_HANDLERS_MAX));
        let (found, max) = (MANIFEST_SERVICES_MAX + 1, MANIFEST_SERVICES_MAX);
        assert_eq!(services(found, 1), Err(Error::TooMany { what: "services", found, max }));
        let (found, max) = (MANIFEST_HANDLERS_MAX + 1, MANIFEST_HANDLERS_MAX);
        assert_eq!(services(2, found), Err(Error::TooMany { what: "handlers", found, max }));
    }

    #[test]
    fn names_have_a_bound() {
        let parse = |service: &str, handler: &str| {
            parse_one(&format!(r#"{{"name":"{service}","ty":"SERVICE","handlers":[{{"name":"{handler}"}}]}}"#))
        };
        let (longest, longer) = ("n".repeat(NAME_BYTES_MAX), "n".repeat(NAME_BYTES_MAX + 1));
        assert!(parse(&longest, &longest).is_ok());
        let says = format!("the name '{}…' has 256 bytes, more than the 255 that a name may have", "n".repeat(32));
        assert_eq!(parse(&longer, "h"), Err(Error::Invalid(says.clone())));
        assert_eq!(parse("S", &longer), Err(Error::Invalid(says)));
    }
}
