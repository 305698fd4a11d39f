//! The social network of the user feed, outside of the processes that are killed: it remembers every step that was executed.
//!
//! Owns: the HTTP shapes that the examples speak (`POST /posts`, `GET /posts/{id}/status`, `POST /feeds/{user}`), how long a post
//! stays pending, and the verdict on steps: order per user, and no finished step again. Does not own: the feed's final state.

use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

#[derive(Debug, Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    address: String,
}

#[derive(Debug, Default)]
struct Book {
    /// In the order in which the steps arrived.
    executions: Vec<Execution>,
    /// What a created post stands for, by the id that its creation gave out. Each creation gives out another one.
    posts: HashMap<String, (String, String)>,
    polls: HashMap<String, u32>,
    pending_polls: u32,
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
    Status,
    Update,
}

/// What the ledger says about a finished run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub executions: usize,
    /// Steps that ran more than once because their process died before the result was durable. No fault.
    pub repeated: usize,
}

impl Ledger {
    /// Listens on loopback until the program ends. A post is pending for its first `pending_polls` polls.
    pub async fn start(pending_polls: u32) -> Result<Self> {
        let book = Arc::new(Mutex::new(Book { pending_polls, ..Book::default() }));
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
        let mut seen = self.book().executions.len();
        loop {
            let progress = eventually("progress in the ledger", stall, || async {
                let now = self.book().executions.len();
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

    /// All steps so far, in the order in which they arrived.
    pub fn executions(&self) -> Vec<Execution> {
        self.book().executions.clone()
    }

    /// Judges the steps of each user whose events are given in their order: one event at a time, in order, and once a later step of
    /// an event ran, no earlier one does.
    pub fn judge(&self, expected: &BTreeMap<String, Vec<String>>) -> Result<Verdict> {
        let executions = self.executions();
        let mut by_user: BTreeMap<&str, Vec<&Execution>> = BTreeMap::new();
        for execution in &executions {
            by_user.entry(&execution.user).or_default().push(execution);
        }
        let mut repeated = 0;
        for (user, events) in expected {
            let steps = by_user.remove(user.as_str()).unwrap_or_default();
            repeated += judge_user(user, events, &steps)?;
        }
        let strangers: Vec<&str> = by_user.into_keys().collect();
        ensure!(strangers.is_empty(), "steps of users that got no event: {strangers:?}");
        Ok(Verdict { executions: executions.len(), repeated })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics while holding it")
    }
}

/// Returns how many steps ran again.
fn judge_user(user: &str, events: &[String], steps: &[&Execution]) -> Result<usize> {
    let (mut repeated, mut event, mut previous) = (0, 0, None::<&Execution>);
    for step in steps {
        let expected = events.get(event);
        match previous {
            None => ensure!(step.step == Step::Create && Some(&step.event) == expected, "{user}: {step:?} comes first"),
            Some(previous) if previous.event == step.event => {
                ensure!(step.step >= previous.step, "{user}: finished steps ran again: {previous:?}, then {step:?}");
                let same_post = step.post == previous.post;
                ensure!(same_post || step.step == Step::Create, "{user}: a recorded result changed: {previous:?}, then {step:?}");
                // Any number of polls is the program's business.
                repeated += usize::from(step.step == previous.step && step.step != Step::Status);
            }
            Some(previous) => {
                event += 1;
                let next = events.get(event) == Some(&step.event);
                ensure!(
                    previous.step == Step::Update && step.step == Step::Create && next,
                    "{user}: {previous:?}, then {step:?}"
                );
            }
        }
        previous = Some(step);
    }
    match previous {
        Some(last) if last.step == Step::Update && event + 1 == events.len() => Ok(repeated),
        last => bail!("{user}: {} events, but the steps end with {last:?}", events.len()),
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
    let (user, _) = book.record(Step::Status, &post).ok_or(StatusCode::NOT_FOUND)?;
    let pending_polls = book.pending_polls;
    let held = book.held.contains(&user);
    let polls = book.polls.entry(post).or_default();
    *polls += 1;
    let pending = held || *polls <= pending_polls;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(script: &str) -> Vec<Execution> {
        let step = |word: &str| {
            let parts: Vec<&str> = word.split(':').collect();
            let step = match parts[1] {
                "create" => Step::Create,
                "status" => Step::Status,
                _ => Step::Update,
            };
            let (at, at_wall) = (Instant::now(), SystemTime::now());
            Execution { step, user: "ada".into(), event: parts[0].into(), post: parts[2].into(), at, at_wall }
        };
        script.split_whitespace().map(step).collect()
    }

    fn judge(script: &str) -> Result<usize> {
        let steps = steps(script);
        judge_user("ada", &["1".into(), "2".into()], &steps.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_faultless_run_and_one_with_repeats() {
        assert_eq!(judge("1:create:a 1:status:a 1:status:a 1:update:a 2:create:b 2:status:b 2:update:b").unwrap(), 0);
        assert_eq!(judge("1:create:a 1:create:b 1:status:b 1:update:b 1:update:b 2:create:c 2:update:c").unwrap(), 2);
    }

    #[test]
    fn faults_are_named() {
        let fault = |script: &str| judge(script).unwrap_err().to_string();
        assert!(fault("1:create:a 1:update:a 1:status:a").contains("ran again"));
        assert!(fault("1:create:a 1:create:b 1:status:a").contains("changed"));
        assert!(fault("2:create:a").contains("comes first"));
        assert!(fault("1:create:a 2:create:b").contains("then"), "two events of one user at a time");
        assert!(fault("1:create:a 1:update:a").contains("steps end"), "an event was lost");
        assert!(fault("1:create:a 1:update:a 2:create:b 2:update:b 2:create:c").contains("ran again"));
        assert!(fault("1:create:a 1:update:a 2:create:b 2:update:b 1:create:c").contains("then"), "applied twice");
    }
}
