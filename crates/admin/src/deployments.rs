//! Registration of endpoints.
//!
//! Owns: the identity of a deployment, revisions, what a registration may change, and the JSON shapes of HTTP reference 2.3. Does
//! not own: asking the endpoint (`discover`), or what becomes of invocations when a deployment goes (`invoker`).

use crate::discover::{Discovered, discover};
use crate::services::{ServiceJson, ServiceRevision};
use crate::text::timestamp;
use crate::{Admin, Error};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_invoker::transport::is_reserved;
use surefoot_model::catalog::{Catalog, CatalogEvent, Deployment, Handler, HttpVersion, Service, StreamMode};
use surefoot_model::{DeploymentId, Text, Timestamp};

/// Services of all deployments that are registered, each revision counted: all are in memory.
const CATALOG_SERVICES_MAX: usize = 10_000;
/// Handlers of all of these.
const CATALOG_HANDLERS_MAX: usize = 20_000;
/// Bytes of all texts of these and of their deployments: names, documentation, metadata, schemas, headers.
const CATALOG_TEXT_BYTES_MAX: usize = 32 << 20;
/// What each text counts beside its own bytes: many short ones take more in memory than they say.
const TEXT_BYTES: usize = 64;

/// A request to register an endpoint. Absent flags are false.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDeployment {
    pub uri: Option<String>,
    /// Lambda endpoints are refused.
    pub arn: Option<String>,
    /// Stands beside `arn`.
    pub assume_role_arn: Option<String>,
    pub additional_headers: Option<BTreeMap<String, String>>,
    pub metadata: Option<BTreeMap<String, String>>,
    /// Speak HTTP/1.1, request and response. Without it, http:// means HTTP/2, and behind https:// the endpoint chooses.
    pub use_http_11: Option<bool>,
    /// Allow a service to change its type.
    pub breaking: Option<bool>,
    /// Discover and overwrite a deployment of the same address; implies `breaking`, as the published tools expect.
    pub force: Option<bool>,
    /// Discover and answer as if, and store nothing.
    pub dry_run: Option<bool>,
    /// Credentials for the endpoint's platform are refused.
    pub auth: Option<serde_json::Value>,
}

/// What a registration led to.
#[derive(Clone, Debug, PartialEq)]
pub enum Registration {
    New(Arc<Deployment>),
    /// The address was registered; the endpoint was not asked.
    Unchanged(Arc<Deployment>),
    Overwritten(Arc<Deployment>),
}

impl Registration {
    pub fn deployment(&self) -> &Arc<Deployment> {
        match self {
            Self::New(deployment) | Self::Unchanged(deployment) | Self::Overwritten(deployment) => deployment,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct RegisteredJson {
    pub(crate) id: String,
    services: Vec<ServiceJson>,
    min_protocol_version: i32,
    max_protocol_version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    sdk_version: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct DeploymentJson<S> {
    id: String,
    uri: String,
    protocol_type: &'static str,
    http_version: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    additional_headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    created_at: String,
    min_protocol_version: i32,
    max_protocol_version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    sdk_version: Option<String>,
    services: Vec<S>,
}

#[derive(Serialize)]
pub(crate) struct Deployments {
    deployments: Vec<DeploymentJson<ServiceRevision>>,
}

impl Admin {
    /// Asks an endpoint what it serves, and from then on sends new invocations of those services there. An address that is
    /// registered already is left as it is unless `force` is set.
    pub async fn register(&self, request: NewDeployment) -> Result<Registration, Error> {
        let endpoint = Endpoint::of(&request)?;
        let force = request.force.unwrap_or(false);
        if let Some(existing) = at_address(&self.catalog(), &endpoint.uri)
            && !force
        {
            return Ok(Registration::Unchanged(existing));
        }
        // Not under the lock: an endpoint may take its time.
        let discovered = self.discover(&endpoint).await?;
        let change = self.change().await;
        let catalog = change.catalog();
        let existing = at_address(&catalog, &endpoint.uri);
        if let Some(existing) = &existing
            && !force
        {
            return Ok(Registration::Unchanged(existing.clone()));
        }
        let id = existing.as_ref().map_or_else(|| DeploymentId(self.env().ids.random_u128()), |e| e.id);
        let may_break = force || request.breaking.unwrap_or(false);
        let deployment = planned(&catalog, endpoint, discovered, id, self.now(), may_break)?;
        if !request.dry_run.unwrap_or(false) {
            change.store(CatalogEvent::DeploymentRegistered(deployment.clone())).await?;
            tracing::info!(deployment = %id, uri = %deployment.uri, services = deployment.services.len(), "deployment registered");
        }
        let deployment = Arc::new(deployment);
        Ok(if existing.is_some() { Registration::Overwritten(deployment) } else { Registration::New(deployment) })
    }

    /// Removes a deployment. Its services fall back to an older deployment that serves them, or go; invocations that are pinned to
    /// it keep retrying.
    pub async fn delete_deployment(&self, id: DeploymentId) -> Result<(), Error> {
        let change = self.change().await;
        if !change.catalog().deployments.contains_key(&id) {
            return Err(Error::DeploymentNotFound(id));
        }
        change.store(CatalogEvent::DeploymentDeleted(id)).await?;
        tracing::info!(deployment = %id, "deployment deleted");
        Ok(())
    }

    pub(crate) fn list_deployments(&self) -> Deployments {
        let catalog = self.catalog();
        let brief = |d: &Arc<Deployment>| deployment_json(d, d.services.iter().map(ServiceRevision::from).collect());
        Deployments { deployments: catalog.deployments.values().map(brief).collect() }
    }

    pub(crate) fn show_deployment(&self, id: DeploymentId) -> Result<DeploymentJson<ServiceJson>, Error> {
        let catalog = self.catalog();
        let deployment = catalog.deployments.get(&id).ok_or(Error::DeploymentNotFound(id))?;
        Ok(deployment_json(deployment, self.services_of(deployment)))
    }

    pub(crate) fn registered_json(&self, deployment: &Deployment) -> RegisteredJson {
        RegisteredJson {
            id: deployment.id.to_string(),
            services: self.services_of(deployment),
            min_protocol_version: deployment.min_protocol,
            max_protocol_version: deployment.max_protocol,
            sdk_version: deployment.sdk_version.clone(),
        }
    }

    async fn discover(&self, endpoint: &Endpoint) -> Result<Discovered, Error> {
        let own = endpoint.additional_headers.iter();
        let all = self.shared().settings.request_headers.iter().map(|(name, value)| (name, value)).chain(own);
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.insert(header_name(name)?, header_value(name, value)?);
        }
        discover(&*self.shared().transport, &*self.env().clock, &endpoint.uri, endpoint.http, headers).await
    }
}

/// Where a deployment is, and how it is spoken to.
#[derive(Clone, Debug, PartialEq)]
struct Endpoint {
    uri: String,
    /// To be asked for; discovery says what is spoken.
    http: HttpVersion,
    additional_headers: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

impl Endpoint {
    fn of(request: &NewDeployment) -> Result<Self, Error> {
        if request.arn.is_some() {
            return Err(Error::NotSupported("AWS Lambda (field 'arn')"));
        }
        if request.auth.is_some() {
            return Err(Error::NotSupported("field 'auth'"));
        }
        let uri = request.uri.as_deref().ok_or_else(|| Error::Field { field: "uri", reason: "missing".to_owned() })?;
        let mut additional_headers = BTreeMap::new();
        for (name, value) in request.additional_headers.iter().flatten() {
            header_value(name, value)?;
            let header = header_name(name)?;
            if is_reserved(&header) {
                let reason = format!("'{header}' is set by this server, or is about the connection: leave it out");
                return Err(Error::Field { field: "additional_headers", reason });
            }
            additional_headers.insert(header.as_str().to_owned(), value.clone());
        }
        Ok(Self {
            uri: normalised(uri)?,
            http: if request.use_http_11.unwrap_or(false) { HttpVersion::Http11 } else { HttpVersion::Http2 },
            additional_headers,
            metadata: request.metadata.clone().unwrap_or_default(),
        })
    }
}

fn header_name(name: &str) -> Result<HeaderName, Error> {
    name.parse().map_err(|_| Error::Field { field: "additional_headers", reason: format!("'{name}' is no header name") })
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Error> {
    let refuse = |_| Error::Field { field: "additional_headers", reason: format!("the value of '{name}' is no header value") };
    HeaderValue::try_from(value).map_err(refuse)
}

/// An absolute address with a path: scheme and host in lower case.
fn normalised(uri: &str) -> Result<String, Error> {
    // First of all checks: their errors name the address, and errors are logged and shown.
    if has_user_information(uri) {
        let reason = "it has user information before the host: send credentials as additional_headers".to_owned();
        return Err(Error::Field { field: "uri", reason });
    }
    let refuse = |reason: &str| Error::Field { field: "uri", reason: format!("'{uri}' {reason}") };
    let parsed: Uri = uri.parse().map_err(|_| refuse("is no address"))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(refuse("has no scheme or no host; expected for instance http://localhost:9080"));
    };
    if !["http", "https"].contains(&scheme) {
        return Err(refuse("has another scheme than http and https"));
    }
    if !has_usable_port(authority.as_str()) {
        return Err(refuse("has a port that is none of 1 to 65535"));
    }
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    Ok(format!("{scheme}://{}{path}", authority.as_str().to_ascii_lowercase()))
}

/// `user:password@` in front of the host.
fn has_user_information(uri: &str) -> bool {
    let after_scheme = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    after_scheme.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

/// The parser takes any number for a port, and knows of none where it is too large.
fn has_usable_port(authority: &str) -> bool {
    let after_address = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    after_address.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn at_address(catalog: &Catalog, uri: &str) -> Option<Arc<Deployment>> {
    catalog.deployments.values().find(|d| d.uri == uri).cloned()
}

/// The deployment as it would be stored.
fn planned(
    catalog: &Catalog,
    endpoint: Endpoint,
    discovered: Discovered,
    id: DeploymentId,
    now: Timestamp,
    may_break: bool,
) -> Result<Deployment, Error> {
    let Discovered { manifest, http, sdk_version } = discovered;
    let revisions = newest_revisions(catalog);
    let services = manifest.services.into_iter().map(|service| {
        if let Some(known) = catalog.services.get(&service.name)
            && known.kind != service.kind
            && !may_break
        {
            return Err(Error::TypeChanged(service.name.to_string()));
        }
        let revision = revisions.get(&service.name).copied().unwrap_or(0) + 1;
        Ok(Service { revision, deployment: id, ..service })
    });
    let planned = Deployment {
        id,
        uri: endpoint.uri,
        http,
        // Over HTTP/1.1 the request is sent whole before the response begins.
        mode: if http == HttpVersion::Http11 { StreamMode::RequestResponse } else { manifest.mode },
        additional_headers: endpoint.additional_headers,
        metadata: endpoint.metadata,
        created_at: now,
        min_protocol: manifest.min_protocol,
        max_protocol: manifest.max_protocol,
        sdk_version,
        services: services.collect::<Result<_, _>>()?,
    };
    has_room(catalog, &planned)?;
    Ok(planned)
}

/// Whether there may be this deployment beside the others.
fn has_room(catalog: &Catalog, planned: &Deployment) -> Result<(), Error> {
    let others = catalog.deployments.values().map(|deployment| &**deployment).filter(|deployment| deployment.id != planned.id);
    let (mut services, mut handlers, mut text_bytes) = (0, 0, 0);
    for deployment in others.chain([planned]) {
        services += deployment.services.len();
        handlers += deployment.services.iter().map(|service| service.handlers.len()).sum::<usize>();
        text_bytes += text_bytes_of(deployment);
    }
    let bounds = [
        ("services", services, CATALOG_SERVICES_MAX),
        ("handlers", handlers, CATALOG_HANDLERS_MAX),
        ("bytes of names, documentation, metadata and schemas", text_bytes, CATALOG_TEXT_BYTES_MAX),
    ];
    match bounds.into_iter().find(|(_, found, max)| found > max) {
        Some((what, found, max)) => Err(Error::CatalogFull { what, found, max }),
        None => Ok(()),
    }
}

fn text_bytes_of(deployment: &Deployment) -> usize {
    let text = |text: &str| TEXT_BYTES + text.len();
    let optional = |value: &Option<String>| value.as_deref().map_or(0, text);
    let texts = |map: &BTreeMap<String, String>| map.iter().map(|(name, value)| text(name) + text(value)).sum::<usize>();
    let handler = |handler: &Handler| {
        let Handler { name, input, output, documentation, metadata, .. } = handler;
        let declared = [documentation, &input.content_type, &input.json_schema, &output.content_type, &output.json_schema];
        text(name) + declared.into_iter().map(optional).sum::<usize>() + texts(metadata)
    };
    let service = |service: &Service| {
        let Service { name, handlers, documentation, metadata, .. } = service;
        text(name) + optional(documentation) + texts(metadata) + handlers.values().map(handler).sum::<usize>()
    };
    let Deployment { uri, additional_headers, metadata, sdk_version, services, .. } = deployment;
    let own = text(uri) + texts(additional_headers) + texts(metadata) + optional(sdk_version);
    own + services.iter().map(service).sum::<usize>()
}

/// The newest revision of each service that anybody knows. Of all deployments, since the newest one may have been deleted or no longer
/// serve it.
fn newest_revisions(catalog: &Catalog) -> BTreeMap<&Text, u32> {
    let registered = catalog.deployments.values().flat_map(|deployment| &deployment.services);
    let mut newest = BTreeMap::new();
    for service in registered.chain(catalog.services.values().map(|service| &**service)) {
        let revision = newest.entry(&service.name).or_insert(service.revision);
        *revision = service.revision.max(*revision);
    }
    newest
}

fn deployment_json<S>(deployment: &Deployment, services: Vec<S>) -> DeploymentJson<S> {
    DeploymentJson {
        id: deployment.id.to_string(),
        uri: deployment.uri.clone(),
        protocol_type: match deployment.mode {
            StreamMode::Bidirectional => "BidiStream",
            StreamMode::RequestResponse => "RequestResponse",
        },
        http_version: match deployment.http {
            HttpVersion::Http11 => "HTTP/1.1",
            HttpVersion::Http2 => "HTTP/2.0",
        },
        additional_headers: deployment.additional_headers.clone(),
        metadata: deployment.metadata.clone(),
        created_at: timestamp(deployment.created_at),
        min_protocol_version: deployment.min_protocol,
        max_protocol_version: deployment.max_protocol,
        sdk_version: deployment.sdk_version.clone(),
        services,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::service;
    use surefoot_model::TargetKind;
    use surefoot_model::catalog::ServiceKind;
    use surefoot_protocol::discovery::Manifest;

    fn request(uri: &str) -> NewDeployment {
        NewDeployment { uri: Some(uri.to_owned()), ..NewDeployment::default() }
    }

    fn discovered(services: Vec<Service>) -> Discovered {
        let manifest = Manifest { mode: StreamMode::Bidirectional, min_protocol: 5, max_protocol: 7, services };
        Discovered { manifest, http: HttpVersion::Http2, sdk_version: Some("sdk/1".into()) }
    }

    fn plan(catalog: &Catalog, services: Vec<Service>, may_break: bool) -> Result<Deployment, Error> {
        let endpoint = Endpoint::of(&request("http://h:1")).unwrap();
        planned(catalog, endpoint, discovered(services), DeploymentId(1), Timestamp(0), may_break)
    }

    fn knowing(services: Vec<Service>) -> Catalog {
        let services = services.into_iter().map(|s| (s.name.clone(), Arc::new(s))).collect();
        Catalog { services, ..Catalog::default() }
    }

    #[test]
    fn addresses_are_normalised() {
        for (uri, normal) in [
            ("http://h:1", "http://h:1/"),
            ("http://H:1/", "http://h:1/"),
            ("HTTPS://h/prefix", "https://h/prefix"),
            ("http://h:1/p?q=1", "http://h:1/p?q=1"),
            ("http://[::1]/", "http://[::1]/"),
        ] {
            assert_eq!(normalised(uri).as_deref(), Ok(normal));
        }
        for uri in
            ["", "h:1", "/x", "ftp://h/", "http://", "not an address", "http://h:99999/", "http://h:0", "http://[::1]:70000/"]
        {
            let error = normalised(uri).unwrap_err();
            assert!(error.to_string().starts_with("request field 'uri' is invalid"), "{error}");
        }
    }

    #[test]
    fn passwords_in_addresses_are_refused_and_not_repeated() {
        for uri in ["http://me:secret@h:1", "http://secret@h", "secret@h", "http://me:secret@h:x/"] {
            let error = normalised(uri).unwrap_err();
            assert!(error.status() == 400 && !error.to_string().contains("secret"), "{error}");
        }
        assert!(normalised("http://h/a@b?c=d@e").is_ok());
    }

    #[test]
    fn headers_are_checked_and_lowered() {
        let with = |name: &str, value: &str| {
            Endpoint::of(&NewDeployment { additional_headers: Some([(name.into(), value.into())].into()), ..request("http://h") })
        };
        assert_eq!(with("X-K", "v").unwrap().additional_headers, [("x-k".to_owned(), "v".to_owned())].into());
        assert!(with("x y", "v").is_err());
        assert!(with("x", "a\nb").is_err());
        for reserved in ["Content-Type", "accept", "x-restate-invocation-id", "Transfer-Encoding", "connection"] {
            assert!(with(reserved, "v").is_err(), "{reserved}");
        }
    }

    #[test]
    fn what_this_server_cannot_reach_is_refused() {
        let arn = NewDeployment { arn: Some("arn:aws:lambda:…".into()), ..NewDeployment::default() };
        assert_eq!(Endpoint::of(&arn).unwrap_err().status(), 400);
    }

    #[test]
    fn an_endpoint_that_chose_http11_runs_request_and_response() {
        let endpoint = Endpoint::of(&request("https://h")).unwrap();
        assert_eq!(endpoint.http, HttpVersion::Http2);
        let discovered = Discovered { http: HttpVersion::Http11, ..discovered(vec![]) };
        let deployment = planned(&Catalog::default(), endpoint, discovered, DeploymentId(1), Timestamp(0), false).unwrap();
        assert_eq!((deployment.http, deployment.mode), (HttpVersion::Http11, StreamMode::RequestResponse));
    }

    #[test]
    fn revisions_go_up_and_types_stay() {
        let known = knowing(vec![Service { revision: 4, ..service("Svc", ServiceKind::Service, vec![]) }]);
        let again = plan(
            &known,
            vec![service("Svc", ServiceKind::Service, vec![]), service("New", ServiceKind::Workflow, vec![])],
            false,
        );
        let revisions: Vec<u32> = again.unwrap().services.iter().map(|s| s.revision).collect();
        assert_eq!(revisions, [5, 1]);
        let changed = vec![service("Svc", ServiceKind::VirtualObject, vec![])];
        let error = plan(&known, changed.clone(), false).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (409, "META0006"));
        assert_eq!(plan(&known, changed, true).unwrap().services[0].revision, 5);
    }

    #[test]
    fn what_all_deployments_have_together_has_a_bound() {
        let full = |name: &str, handlers: usize| {
            let handlers = (0..handlers).map(|n| Handler::new(&format!("h{n}"), TargetKind::Service)).collect();
            service(name, ServiceKind::Service, handlers)
        };
        let having = |services: Vec<Service>| {
            let other = Deployment { services, ..Deployment::at(DeploymentId(2), "http://other:1/") };
            Catalog { deployments: [(other.id, Arc::new(other))].into(), ..Catalog::default() }
        };
        let known = having(vec![full("Old", CATALOG_HANDLERS_MAX - 1)]);
        assert!(plan(&known, vec![full("New", 1)], false).is_ok());
        let error = plan(&known, vec![full("New", 2)], true).unwrap_err();
        let (found, max) = (CATALOG_HANDLERS_MAX + 1, CATALOG_HANDLERS_MAX);
        assert_eq!((error.status().as_u16(), error.code()), (409, "SF2032"));
        assert_eq!(error, Error::CatalogFull { what: "handlers", found, max });
        let known = having((0..CATALOG_SERVICES_MAX).map(|n| full(&format!("S{n}"), 0)).collect());
        assert!(plan(&known, vec![], false).is_ok());
        let (found, max) = (CATALOG_SERVICES_MAX + 1, CATALOG_SERVICES_MAX);
        assert_eq!(plan(&known, vec![full("New", 0)], false), Err(Error::CatalogFull { what: "services", found, max }));
        // A deployment that is overwritten does not count.
        let mut replaced = having(vec![full("Old", CATALOG_HANDLERS_MAX)]);
        let old = replaced.deployments.pop_first().unwrap().1;
        replaced.deployments.insert(DeploymentId(1), Arc::new(Deployment { id: DeploymentId(1), ..(*old).clone() }));
        assert!(plan(&replaced, vec![full("Old", 1)], false).is_ok());
    }

    /// What each endpoint describes within its own bound was kept for all of them together without any.
    #[test]
    fn what_all_deployments_describe_together_has_a_bound_in_bytes() {
        let what = "bytes of names, documentation, metadata and schemas";
        let described =
            |bytes: usize| Service { documentation: Some("d".repeat(bytes)), ..service("Svc", ServiceKind::Service, vec![]) };
        let having = |services: Vec<Service>| {
            let other = Deployment { services, ..Deployment::at(DeploymentId(2), "http://other:1/") };
            Catalog { deployments: [(other.id, Arc::new(other))].into(), ..Catalog::default() }
        };
        let known = having(vec![described(CATALOG_TEXT_BYTES_MAX / 2)]);
        let others = text_bytes_of(known.deployments.values().next().unwrap());
        let own = text_bytes_of(&plan(&known, vec![described(0)], false).unwrap());
        let left = CATALOG_TEXT_BYTES_MAX - others - own;
        assert!(plan(&known, vec![described(left)], false).is_ok());
        let error = plan(&known, vec![described(left + 1)], true).unwrap_err();
        let (found, max) = (CATALOG_TEXT_BYTES_MAX + 1, CATALOG_TEXT_BYTES_MAX);
        assert_eq!(error, Error::CatalogFull { what, found, max });
        assert_eq!((error.status().as_u16(), error.code()), (409, "SF2032"));
        assert!(error.to_string().contains("delete deployments"), "{error}");
        // Whatever it is that grows, and however short each of it is.
        let handler = |grow: fn(&mut Handler, String)| {
            let mut handler = Handler::new("h", TargetKind::Service);
            grow(&mut handler, "x".repeat(left));
            service("Svc", ServiceKind::Service, vec![handler])
        };
        let many = (0..CATALOG_TEXT_BYTES_MAX / 2 / TEXT_BYTES / 2).map(|n| (n.to_string(), String::new())).collect();
        for grown in [
            handler(|handler, text| handler.documentation = Some(text)),
            handler(|handler, text| handler.metadata = [(text, String::new())].into()),
            handler(|handler, text| handler.input.json_schema = Some(text)),
            handler(|handler, text| handler.input.content_type = Some(text)),
            handler(|handler, text| handler.output.json_schema = Some(text)),
            handler(|handler, text| handler.output.content_type = Some(text)),
            Service { metadata: many, ..described(0) },
        ] {
            assert!(matches!(plan(&known, vec![grown], false), Err(Error::CatalogFull { what: found, .. }) if found == what));
        }
    }

    #[test]
    fn a_deployment_has_the_shape_that_clients_read() {
        let deployment = plan(&Catalog::default(), vec![service("Svc", ServiceKind::Service, vec![])], false).unwrap();
        let brief = deployment_json(&deployment, deployment.services.iter().map(ServiceRevision::from).collect());
        assert_eq!(
            serde_json::to_string(&brief).unwrap(),
            format!(
                r#"{{"id":"{}","uri":"http://h:1/","protocol_type":"BidiStream","http_version":"HTTP/2.0","created_at":"1970-01-01T00:00:00.000000000Z","min_protocol_version":5,"max_protocol_version":7,"sdk_version":"sdk/1","services":[{{"name":"Svc","revision":1}}]}}"#,
                DeploymentId(1)
            )
        );
    }
}
