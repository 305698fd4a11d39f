//! The REST API: routes, versions in the path, and answers.
//!
//! Owns: which path and method reach what, and the form of success and error. Source: HTTP reference 2.1 to 2.6. Does not own: what
//! is done (the other modules).

use crate::backups::NewBackup;
use crate::clusters::{ClusterPatch, cluster_json};
use crate::extract::{JsonBody, Path, Query, path_id};
use crate::invocations::InvocationQuery;
use crate::subscriptions::{ParkedQuery, SubscriptionJson, SubscriptionQuery};
use crate::{Admin, Error, NewCluster, NewDeployment, NewSubscription, Registration};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, patch, post};
use axum::{Json, Router};
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use surefoot_listener::NoAnswer;
use surefoot_model::Operation;

/// What clients take this server for when they check whether they can speak to it.
const COMPATIBLE_VERSION: &str = "1.7.12";
const OLDEST_API: u8 = 2;
const NEWEST_API: u8 = 4;
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

type Answer<T> = Result<Json<T>, Error>;

pub(crate) fn router(admin: Admin) -> Router {
    let mut router =
        api(NEWEST_API).route("/metrics", get(metrics)).route("/v1", any(too_old)).route("/v1/{*rest}", any(too_old));
    for version in OLDEST_API..=NEWEST_API {
        router = router.nest(&format!("/v{version}"), api(version));
    }
    router.fallback(no_such_route).method_not_allowed_fallback(wrong_method).with_state(admin)
}

/// The routes of one API version; they differ in `POST /deployments` only.
fn api(version: u8) -> Router<Admin> {
    let register = move |State(admin): State<Admin>, JsonBody(body): JsonBody<NewDeployment>| register(admin, version, body);
    Router::new()
        .route("/health", get(health))
        .route("/version", get(show_version))
        .route("/deployments", get(list_deployments).post(register))
        .route("/deployments/{id}", get(show_deployment).delete(delete_deployment))
        .route("/services", get(list_services))
        .route("/services/{name}", get(show_service))
        .route("/services/{name}/handlers", get(list_handlers))
        .route("/services/{name}/handlers/{handler}", get(show_handler))
        .route("/invocations", get(list_invocations))
        .route("/invocations/{id}", get(show_invocation))
        .route("/invocations/{id}/{action}", patch(operate))
        .route("/kafka-clusters", get(list_clusters).post(create_cluster))
        .route("/kafka-clusters/{name}", get(show_cluster).patch(update_cluster).delete(delete_cluster))
        .route("/subscriptions", get(list_subscriptions).post(subscribe))
        .route("/subscriptions/{id}", get(show_subscription).delete(unsubscribe))
        .route("/subscriptions/{id}/parked", get(list_parked))
        .route("/subscriptions/{id}/parked/{n}", delete(discard_parked))
        .route("/backup", post(back_up))
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            message: String,
            restate_code: &'static str,
        }
        let mut response = (self.status(), Json(Body { message: self.message(), restate_code: self.code() })).into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Self::OutcomeUnknown {
            response.extensions_mut().insert(NoAnswer);
        }
        response
    }
}

/// What was made, and where it is.
fn created(status: StatusCode, location: String, body: impl Serialize) -> Response {
    let location = HeaderValue::try_from(location).expect("ids and names of clusters are visible ASCII");
    (status, [(LOCATION, location)], Json(body)).into_response()
}

async fn too_old() -> Error {
    Error::ApiVersion { oldest: OLDEST_API, newest: NEWEST_API }
}

async fn no_such_route() -> Error {
    Error::RouteNotFound
}

async fn wrong_method() -> Error {
    Error::Method
}

async fn health(State(admin): State<Admin>) -> Result<(), Error> {
    admin.health()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, METRICS_TYPE)], (admin.shared().metrics)()).into_response()
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    surefoot_version: &'static str,
    min_admin_api_version: u8,
    max_admin_api_version: u8,
    ingress_endpoint: String,
    features: Features,
}

/// Flags of experiments; there are none, but clients look for the object.
#[derive(Serialize)]
struct Features {}

async fn show_version(State(admin): State<Admin>) -> Json<Version> {
    Json(Version {
        version: COMPATIBLE_VERSION,
        surefoot_version: env!("CARGO_PKG_VERSION"),
        min_admin_api_version: OLDEST_API,
        max_admin_api_version: NEWEST_API,
        ingress_endpoint: admin.shared().settings.ingress_url.clone(),
        features: Features {},
    })
}

async fn register(admin: Admin, version: u8, body: NewDeployment) -> Result<Response, Error> {
    if body.uri.is_none() && body.arn.is_none() {
        let reason = "expected a field 'uri' with the address of an endpoint".to_owned();
        return Err(Error::Body { status: StatusCode::UNPROCESSABLE_ENTITY, reason });
    }
    let is_oldest = version == OLDEST_API;
    let force = body.force.unwrap_or(is_oldest);
    let registration = admin.register(NewDeployment { force: Some(force), ..body }).await?;
    let status = match &registration {
        Registration::New(_) => StatusCode::CREATED,
        Registration::Unchanged(existing) if is_oldest => return Err(Error::AddressTaken(existing.id)),
        Registration::Overwritten(_) if is_oldest => StatusCode::CREATED,
        Registration::Unchanged(_) | Registration::Overwritten(_) => StatusCode::OK,
    };
    let deployment = registration.deployment();
    Ok(created(status, format!("deployments/{}", deployment.id), admin.registered_json(deployment)))
}

async fn list_deployments(State(admin): State<Admin>) -> impl IntoResponse {
    Json(admin.list_deployments())
}

async fn show_deployment(State(admin): State<Admin>, Path(id): Path<String>) -> Answer<impl Serialize> {
    admin.show_deployment(path_id("a deployment id", &id)?).map(Json)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Force {
    force: Option<bool>,
}

async fn delete_deployment(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Result<StatusCode, Error> {
    let id = path_id("a deployment id", &id)?;
    if force != Some(true) {
        return Err(Error::DeletesByForceOnly);
    }
    admin.delete_deployment(id).await.map(|()| StatusCode::ACCEPTED)
}

async fn list_services(State(admin): State<Admin>) -> impl IntoResponse {
    Json(admin.list_services())
}

async fn show_service(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<impl Serialize> {
    admin.show_service(&name).map(Json)
}

async fn list_handlers(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<impl Serialize> {
    admin.list_handlers(&name).map(Json)
}

async fn show_handler(State(admin): State<Admin>, Path((name, handler)): Path<(String, String)>) -> Answer<impl Serialize> {
    admin.show_handler(&name, &handler).map(Json)
}

async fn list_invocations(State(admin): State<Admin>, Query(query): Query<InvocationQuery>) -> Answer<impl Serialize> {
    admin.list_invocations(query).await.map(Json)
}

async fn show_invocation(State(admin): State<Admin>, Path(id): Path<String>) -> Answer<impl Serialize> {
    admin.show_invocation(path_id("an invocation id", &id)?).await.map(Json)
}

async fn operate(State(admin): State<Admin>, Path((id, action)): Path<(String, String)>) -> Result<StatusCode, Error> {
    let operation = match action.as_str() {
        "kill" => Operation::Kill,
        "pause" => Operation::Pause,
        "resume" => Operation::Resume,
        "purge" => Operation::Purge,
        "purge-journal" => Operation::PurgeJournal,
        "cancel" => return Err(Error::NotSupportedYet("cancel")),
        "restart-as-new" => return Err(Error::NotSupportedYet("restart-as-new")),
        _ => return Err(Error::RouteNotFound),
    };
    admin.operate(path_id("an invocation id", &id)?, operation).await
}

async fn list_clusters(State(admin): State<Admin>) -> impl IntoResponse {
    Json(admin.list_clusters())
}

async fn create_cluster(State(admin): State<Admin>, JsonBody(body): JsonBody<NewCluster>) -> Result<Response, Error> {
    let cluster = admin.create_cluster(body).await?;
    Ok(created(StatusCode::CREATED, format!("kafka-clusters/{}", cluster.name), cluster_json(&cluster, None)))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterQuery {
    include_subscriptions: Option<bool>,
}

async fn show_cluster(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<ClusterQuery>,
) -> Answer<impl Serialize> {
    admin.show_cluster(&name, query.include_subscriptions.unwrap_or(false)).map(Json)
}

async fn update_cluster(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<ClusterPatch>,
) -> Answer<impl Serialize> {
    let cluster = admin.update_cluster(&name, body.properties).await?;
    Ok(Json(cluster_json(&cluster, None)))
}

async fn delete_cluster(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Result<StatusCode, Error> {
    admin.delete_cluster(&name, force.unwrap_or(false)).await.map(|()| StatusCode::ACCEPTED)
}

async fn list_subscriptions(State(admin): State<Admin>, Query(query): Query<SubscriptionQuery>) -> Answer<impl Serialize> {
    admin.list_subscriptions(query).await.map(Json)
}

async fn subscribe(State(admin): State<Admin>, JsonBody(body): JsonBody<NewSubscription>) -> Result<Response, Error> {
    let subscription = admin.subscribe(body).await?;
    Ok(created(StatusCode::CREATED, format!("subscriptions/{}", subscription.id), SubscriptionJson::plain(&subscription)))
}

async fn show_subscription(State(admin): State<Admin>, Path(id): Path<String>) -> Answer<impl Serialize> {
    admin.show_subscription(path_id("a subscription id", &id)?).await.map(Json)
}

async fn unsubscribe(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Result<StatusCode, Error> {
    let is_gone = admin.unsubscribe(path_id("a subscription id", &id)?, force.unwrap_or(false)).await?;
    Ok(if is_gone { StatusCode::OK } else { StatusCode::ACCEPTED })
}

async fn list_parked(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Query(query): Query<ParkedQuery>,
) -> Answer<impl Serialize> {
    admin.list_parked(path_id("a subscription id", &id)?, query).await.map(Json)
}

async fn discard_parked(State(admin): State<Admin>, Path((id, n)): Path<(String, String)>) -> Result<StatusCode, Error> {
    let (id, n) = (path_id("a subscription id", &id)?, path_id("the number of a parked record", &n)?);
    admin.discard_parked(id, n).await.map(|()| StatusCode::OK)
}

async fn back_up(State(admin): State<Admin>, JsonBody(body): JsonBody<NewBackup>) -> Answer<impl Serialize> {
    admin.back_up(body).await.map(Json)
}
