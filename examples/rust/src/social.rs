//! The social network that the user feed talks to: a service, or a stand-in that answers in this process.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};

#[derive(Debug, Clone)]
pub struct Social {
    /// None: the stand-in.
    service: Option<Service>,
}

#[derive(Debug, Clone)]
struct Service {
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Post {
    pub(crate) id: String,
    pub(crate) content: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    Pending,
    Done,
}

impl Social {
    /// The service at this URL.
    pub fn at(url: String) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { service: Some(Service { url, client }) }
    }

    pub fn stand_in() -> Self {
        Self { service: None }
    }

    pub(crate) async fn create_post(&self, user: &str, post: &Post) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Created {
            #[serde(rename = "postId")]
            post_id: String,
        }
        let Some(service) = &self.service else { return Ok(format!("post-{:x}", random())) };
        let body = json!({ "user": user, "id": post.id, "content": post.content });
        let created: Created = service.request(Method::POST, "/posts", Some(&body)).await?;
        Ok(created.post_id)
    }

    pub(crate) async fn status(&self, post_id: &str) -> anyhow::Result<Status> {
        #[derive(Deserialize)]
        struct Answer {
            status: Status,
        }
        let Some(service) = &self.service else {
            return Ok(if random().is_multiple_of(2) { Status::Pending } else { Status::Done });
        };
        let answer: Answer = service.request(Method::GET, &format!("/posts/{}/status", segment(post_id)), None).await?;
        Ok(answer.status)
    }

    pub(crate) async fn update_feed(&self, user: &str, post_id: &str) -> anyhow::Result<()> {
        let Some(service) = &self.service else { return Ok(()) };
        let path = format!("/feeds/{}", segment(user));
        service.request::<Value>(Method::POST, &path, Some(&json!({ "postId": post_id }))).await.map(drop)
    }
}

impl Service {
    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<T> {
        let request = Request::builder().method(&method).uri(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let response = self.client.request(request.body(Full::new(body))?).await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        ensure!(status.is_success(), "{method} {path}: status {status}");
        let body = response.into_body().collect().await.with_context(|| format!("{method} {path}"))?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("{method} {path}"))
    }
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Random enough for a stand-in: the standard library seeds each hasher anew.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}
