//! The social network that the user feed talks to, in the process that is not killed: it remembers every step that ran.
//!
//! Owns: the HTTP shapes that the example speaks (`POST /posts`, `GET /posts/{id}/status`, `POST /feeds/{user}`), and which posts
//! are pending at first. Does not own: what may be said of the steps (`judge`), or the feeds, which are the server's state.

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    book: Arc<Mutex<Book>>,
    address: String,
}

#[derive(Debug, Default)]
struct Book {
    /// In the order in which the steps arrived.
    executions: Vec<Execution>,
    /// User and event of a created post, by the id that its creation gave out. Each creation gives out another one.
    posts: HashMap<String, (String, String)>,
    /// Events whose post is pending at the next look.
    pending: HashSet<String>,
    /// Events whose last step ran.
    ended: HashSet<String>,
}

/// A step that ran, be it for the first time or again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Execution {
    pub(crate) step: Step,
    pub(crate) user: String,
    /// The id that the event carried.
    pub(crate) event: String,
}

/// In the order of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Create,
    Look,
    Update,
}

impl Ledger {
    /// Listens on loopback until the program ends. The posts of `slow` events are pending when they are looked at first.
    pub(crate) async fn start(slow: HashSet<String>) -> Result<Self> {
        let book = Arc::new(Mutex::new(Book { pending: slow, ..Book::default() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("bind the ledger")?;
        let address = format!("http://{}", listener.local_addr().context("ask for the ledger's port")?);
        let router = Router::new()
            .route("/posts", post(create))
            .route("/posts/{post}/status", get(look))
            .route("/feeds/{user}", post(update))
            .with_state(Arc::clone(&book));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { book, address })
    }

    /// For the handlers.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Events whose last step ran.
    pub(crate) fn ended(&self) -> usize {
        lock(&self.book).ended.len()
    }

    /// Whether the last step of this event ran.
    pub(crate) fn has_ended(&self, event: &str) -> bool {
        lock(&self.book).ended.contains(event)
    }

    /// Steps that ran so far.
    pub(crate) fn steps(&self) -> usize {
        lock(&self.book).executions.len()
    }

    /// All steps so far, in the order in which they arrived.
    pub(crate) fn executions(&self) -> Vec<Execution> {
        lock(&self.book).executions.clone()
    }
}

impl Book {
    /// Takes down that a step ran, for the event that a post stands for.
    fn record(&mut self, step: Step, post: &str) -> Option<Execution> {
        let (user, event) = self.posts.get(post)?.clone();
        let execution = Execution { step, user, event };
        self.executions.push(execution.clone());
        Some(execution)
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().expect("nobody panics while holding it")
}

#[derive(Deserialize)]
struct NewPost {
    user: String,
    id: String,
}

#[derive(Deserialize)]
struct FeedUpdate {
    #[serde(rename = "postId")]
    post: String,
}

type Shared = State<Arc<Mutex<Book>>>;

async fn create(State(book): Shared, Json(new): Json<NewPost>) -> Json<Value> {
    let mut book = lock(&book);
    let post = format!("post-{}", book.posts.len() + 1);
    book.posts.insert(post.clone(), (new.user, new.id));
    book.record(Step::Create, &post);
    Json(json!({ "postId": post }))
}

async fn look(State(book): Shared, Path(post): Path<String>) -> Result<Json<Value>, StatusCode> {
    let mut book = lock(&book);
    let Execution { event, .. } = book.record(Step::Look, &post).ok_or(StatusCode::NOT_FOUND)?;
    let status = if book.pending.remove(&event) { "PENDING" } else { "DONE" };
    Ok(Json(json!({ "status": status })))
}

async fn update(
    State(book): Shared,
    Path(user): Path<String>,
    Json(update): Json<FeedUpdate>,
) -> Result<Json<Value>, StatusCode> {
    let mut book = lock(&book);
    let execution = book.record(Step::Update, &update.post).ok_or(StatusCode::NOT_FOUND)?;
    if execution.user != user {
        return Err(StatusCode::CONFLICT);
    }
    book.ended.insert(execution.event);
    Ok(Json(json!({})))
}
