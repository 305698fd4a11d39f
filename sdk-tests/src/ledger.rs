//! The social network of the user feed, outside of the processes that are killed: it remembers every step that was executed.
//!
//! Owns: the HTTP shapes that the examples speak (`POST /posts`, `GET /posts/{id}/status`, `POST /feeds/{user}`), and how long a post stays
//! pending. Does not own: what may be said of the steps (`judge`), or the feeds, which are the server's state.

use crate::judge::{Evidence, Verdict, judge};
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// At how many looks the post of an event is still pending.
type PendingLooks = Box<dyn Fn(&str) -> u32 + Send>;

#[derive(Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    address: String,
}

struct Book {
    /// In the order in which the steps arrived.
    executions: Vec<Execution>,
    /// What a created post stands for, by the id that its creation gave out. Each creation gives out another one.
    posts: HashMap<String, (String, String)>,
    /// How often each post was looked at.
    looks: HashMap<String, u32>,
    pending_looks: PendingLooks,
    held: BTreeSet<String>,
    updated: BTreeSet<(String, String)>,
}

/// A step that ran, be it for the first time or again.
#[derive(Debug, Clone)]
pub struct Execution {
    pub step: Step,
    pub user: String,
    /// The id that the event carried.
    pub event: String,
    /// The id that the step before got from its creation.
    pub post: String,
    pub at: Instant,
    pub at_wall: SystemTime,
}

/// In the order of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Create,
    Look,
    Update,
}

impl Ledger {
    /// Listens on loopback until the program ends. The post of an event is pending at so many looks as `pending_looks` says of its id.
    pub async fn start(pending_looks: impl Fn(&str) -> u32 + Send + 'static) -> Result<Self> {
        let book = Arc::new(Mutex::new(Book {
            executions: Vec::new(),
            posts: HashMap::new(),
            looks: HashMap::new(),
            pending_looks: Box::new(pending_looks),
            held: BTreeSet::new(),
            updated: BTreeSet::new(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("bind the ledger")?;
        let address = format!("http://{}", listener.local_addr().context("ask for the ledger's port")?);
        let router = Router::new()
            .route("/posts", post(create))
            .route("/posts/{post}/status", get(status))
            .route("/feeds/{user}", post(update))
            .with_state(Arc::clone(&book));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { book, address })
    }

    /// For `SOCIAL_URL`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Keeps the posts of a user pending until they are released.
    pub fn hold(&self, user: &str) {
        self.book().held.insert(user.to_owned());
    }

    pub fn release(&self, user: &str) {
        self.book().held.remove(user);
    }

    /// How many events have reached their last step.
    pub fn completions(&self) -> usize {
        self.book().updated.len()
    }

    pub fn has_completed(&self, user: &str, event: &str) -> bool {
        self.book().updated.contains(&(user.to_owned(), event.to_owned()))
    }

    /// Waits until this many events have reached their last step, as long as there is some progress within `stall`.
    pub async fn reach(&self, completions: usize, stall: Duration) -> Result<()> {
        let mut seen = self.steps();
        loop {
            let progress = eventually("progress in the ledger", stall, || async {
                let now = self.steps();
                let done = self.completions();
                ensure!(done >= completions || now > seen, "{done} of {completions} completed");
                Ok(now)
            });
            seen = progress.await?;
            if self.completions() >= completions {
                return Ok(());
            }
        }
    }

    /// How many steps ran so far.
    pub fn steps(&self) -> usize {
        self.book().executions.len()
    }

    /// All steps so far, in the order in which they arrived.
    pub fn executions(&self) -> Vec<Execution> {
        self.book().executions.clone()
    }

    /// Judges the steps of each user whose events are given in their order; the feeds are asked elsewhere.
    ///
    /// **Errors**: a fault, with the events that have it.
    pub fn judge(&self, expected: &BTreeMap<String, Vec<String>>) -> Result<Verdict> {
        let verdict = judge(&Evidence { sent: expected.clone(), feeds: None, executions: self.executions() });
        ensure!(verdict.holds(), "{verdict}");
        Ok(verdict)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics while holding it")
    }
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

impl Book {
    fn record(&mut self, step: Step, post: &str) -> Option<(String, String)> {
        let (user, event) = self.posts.get(post)?.clone();
        let (at, at_wall) = (Instant::now(), SystemTime::now());
        self.executions.push(Execution { step, user: user.clone(), event: event.clone(), post: post.to_owned(), at, at_wall });
        Some((user, event))
    }
}

async fn create(State(book): Shared, Json(new): Json<NewPost>) -> Json<Value> {
    let mut book = book.lock().expect("nobody panics while holding it");
    let post = format!("post-{}", book.posts.len() + 1);
    book.posts.insert(post.clone(), (new.user, new.id));
    book.record(Step::Create, &post);
    Json(json!({ "postId": post }))
}

async fn status(State(book): Shared, Path(post): Path<String>) -> Result<Json<Value>, StatusCode> {
    let mut book = book.lock().expect("nobody panics while holding it");
    let (user, event) = book.record(Step::Look, &post).ok_or(StatusCode::NOT_FOUND)?;
    let (is_held, pending_looks) = (book.held.contains(&user), (book.pending_looks)(&event));
    let looks = book.looks.entry(post).or_default();
    *looks += 1;
    let pending = is_held || *looks <= pending_looks;
    Ok(Json(json!({ "status": if pending { "PENDING" } else { "DONE" } })))
}

async fn update(
    State(book): Shared,
    Path(user): Path<String>,
    Json(update): Json<FeedUpdate>,
) -> Result<Json<Value>, StatusCode> {
    let mut book = book.lock().expect("nobody panics while holding it");
    let (owner, event) = book.record(Step::Update, &update.post).ok_or(StatusCode::NOT_FOUND)?;
    if owner != user {
        return Err(StatusCode::CONFLICT);
    }
    book.updated.insert((owner, event));
    Ok(Json(json!({})))
}
