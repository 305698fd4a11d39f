//! Reads the parts of a request. A request that does not fit its route is refused with a code, like every refusal of this API.
//!
//! Owns: bodies of JSON, queries and ids in paths. Does not own: what their fields mean (the other modules), or receiving bodies (`listen`).

use crate::Error;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;
use std::str::FromStr;

/// A body of JSON that says that it is.
pub(crate) struct JsonBody<T>(pub(crate) T);

/// The query of a request.
pub(crate) struct Query<T>(pub(crate) T);

/// The variable parts of a path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let refuse = |refusal: JsonRejection| Error::Body { status: refusal.status(), reason: refusal.body_text() };
        axum::Json::from_request(request, state).await.map(|axum::Json(body)| Self(body)).map_err(refuse)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let refuse = |refusal: QueryRejection| Error::Query(refusal.body_text());
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(query)| Self(query)).map_err(refuse)
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(parts)| Self(parts))
            .map_err(|_| Error::Path { what: "percent-encoded UTF-8", text: parts.uri.path().to_owned() })
    }
}

/// An id or a number in a path. `what` names the expected kind.
pub(crate) fn path_id<T: FromStr>(what: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::Path { what, text: text.to_owned() })
}
