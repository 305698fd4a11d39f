//! One attempt: a stream to a handler, from `Start` to the event that ends it.
//!
//! Owns: what is sent and when, what of the handler's messages is let through, timeouts, and the verdict on a failure. Does not
//! own: the journal (it is given, and reported back to the log), or what happens next. Source: protocol reference 3, 6 and 7.

use crate::api::{AttemptStart, Live};
use crate::invoker::Invoker;
use crate::retry::{self, Wish};
use crate::submission::{self, KEY_BYTES_MAX, New};
use crate::transport::{Exchange, ExchangeEvent, OpenRequest};
use ::http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use surefoot_model::catalog::{Catalog, Deployment, HttpVersion, ResolvedOptions, StreamMode};
use surefoot_model::{
    Action, AttemptEnd, AttemptError, AttemptProgress, Item, NotificationId, Origin, Pin, Timestamp, Verdict, entry_type,
};
use surefoot_protocol::{self as protocol, Behavior, Call, Command, FrameDecoder, Message, Outgoing, Start};

/// From this failing attempt on the log says so.
const WARN_FROM_ATTEMPT: u32 = 3;
/// The response is read to its end for this long after its last message: peers refuse new streams if many are cut.
const DRAIN: Duration = Duration::from_secs(5);
/// Items that are reported in one event.
const ITEMS_MAX: usize = 256;

/// Runs an attempt to its end and reports what it brings.
pub(crate) async fn run(invoker: &Arc<Invoker>, start: AttemptStart) {
    let catalog = invoker.catalog.load();
    let (deployment, version) = match choose(&catalog, &start) {
        Ok(chosen) => chosen,
        Err(failure) => {
            let options = options_of(invoker, &catalog, &start, None);
            // Nothing is pinned: there is nothing to pin to.
            let pin = start.pin.unwrap_or(Pin { deployment: surefoot_model::DeploymentId(0), protocol: protocol::MAX_VERSION });
            return Attempt::new(invoker, start, options, pin).fail(failure);
        }
    };
    let options = options_of(invoker, &catalog, &start, Some(&deployment));
    let pin = Pin { deployment: deployment.id, protocol: version };
    let mut attempt = Attempt::new(invoker, start, options, pin);
    let is_bidirectional = deployment.mode == StreamMode::Bidirectional
        && deployment.http == HttpVersion::Http2
        && attempt.options.inactivity_timeout_ms > 0;
    let request = open_request(&attempt, deployment, version);
    let opening = invoker.transport.open(request);
    match attempt.until_aborted(opening).await {
        None => {}
        Some(Err(error)) => attempt.fail(Failure::of_peer(500, format!("{error} (RT0010)"))),
        Some(Ok(exchange)) => attempt.exchange(exchange, version, is_bidirectional).await,
    }
}

/// Why an attempt failed, as far as the attempt itself knows.
struct Failure {
    code: u32,
    message: String,
    stacktrace: Option<String>,
    command: Option<(u32, u16, String)>,
    wish: Wish,
    /// False for trouble on this side, which raises no counter that handlers see.
    by_handler: bool,
}

impl Failure {
    fn of_peer(code: u32, message: String) -> Self {
        Self { code, message, stacktrace: None, command: None, wish: Wish::default(), by_handler: true }
    }

    fn of_server(message: String) -> Self {
        Self { by_handler: false, ..Self::of_peer(500, message) }
    }
}

/// The deployment and protocol version: the pinned ones, or the newest.
fn choose(catalog: &Catalog, start: &AttemptStart) -> Result<(Arc<Deployment>, u8), Failure> {
    match start.pin {
        Some(pin) => {
            let deployment = catalog.deployments.get(&pin.deployment).ok_or_else(|| {
                Failure::of_server(format!(
                    "deployment {} is gone: register it again, or kill the invocation (RT0011)",
                    pin.deployment
                ))
            })?;
            if !protocol::is_supported(pin.protocol, deployment.min_protocol, deployment.max_protocol) {
                return Err(Failure::of_server(format!(
                    "deployment {} no longer speaks protocol version {}, with which this invocation began (RT0014)",
                    pin.deployment, pin.protocol
                )));
            }
            Ok((deployment.clone(), pin.protocol))
        }
        None => {
            let service = &start.target.service;
            let deployment = catalog.deployment_of(service).ok_or_else(|| {
                Failure::of_server(format!("no deployment serves '{service}': register one that does (RT0011)"))
            })?;
            let version = protocol::negotiate(deployment.min_protocol, deployment.max_protocol).ok_or_else(|| {
                Failure::of_server(format!(
                    "deployment {} speaks no protocol version in common with this server (RT0013)",
                    deployment.id
                ))
            })?;
            Ok((deployment.clone(), version))
        }
    }
}

/// Options of the handler as the deployment has it, else as the newest revision has it, else the defaults.
fn options_of(
    invoker: &Invoker,
    catalog: &Catalog,
    start: &AttemptStart,
    deployment: Option<&Arc<Deployment>>,
) -> ResolvedOptions {
    let (name, handler) = (&start.target.service, &start.target.handler);
    let defaults = &invoker.settings.defaults;
    let of_deployment = deployment.and_then(|d| d.services.iter().find(|s| s.name == *name));
    let newest = catalog.services.get(name).map(|s| &**s);
    let resolved = of_deployment.or(newest).and_then(|s| s.handlers.get(handler).map(|h| s.resolve(h, defaults)));
    resolved.unwrap_or_else(|| ResolvedOptions {
        inactivity_timeout_ms: defaults.inactivity_timeout_ms,
        abort_timeout_ms: defaults.abort_timeout_ms,
        enable_lazy_state: false,
        retry: defaults.retry.clone(),
    })
}

fn open_request(attempt: &Attempt<'_>, deployment: Arc<Deployment>, version: u8) -> OpenRequest {
    let start = &attempt.start;
    let content_type = HeaderValue::from_static(protocol::content_type(version));
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(CONTENT_TYPE, content_type.clone());
    headers.insert(ACCEPT, content_type);
    let id = HeaderValue::try_from(start.id.to_string()).expect("an id is plain ASCII");
    headers.insert(HeaderName::from_static("x-restate-invocation-id"), id);
    for (name, value) in &attempt.invoker.settings.additional_headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    let path = format!("/invoke/{}/{}", start.target.service, start.target.handler);
    OpenRequest { deployment, path, headers }
}

struct Attempt<'a> {
    invoker: &'a Arc<Invoker>,
    start: AttemptStart,
    options: ResolvedOptions,
    pin: Pin,
    /// Commands reported so far, those of the replay included.
    commands: u32,
    /// Not reported yet.
    items: Vec<Item>,
    /// An output has been reported.
    outputs: bool,
    /// Journal index of the last entry that the handler was sent.
    last_delivered: u32,
    /// Notifications that came before the stream was open.
    early: Vec<Live>,
}

/// How reading goes on.
enum Next {
    More,
    /// The handler's last message was read and reported.
    Over,
}

impl<'a> Attempt<'a> {
    fn new(invoker: &'a Arc<Invoker>, start: AttemptStart, options: ResolvedOptions, pin: Pin) -> Self {
        let (commands, known) = (start.commands, start.replay.len() as u32);
        Self {
            invoker,
            start,
            options,
            pin,
            commands,
            items: Vec::new(),
            outputs: false,
            last_delivered: known.saturating_sub(1),
            early: Vec::new(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.invoker.env.clock.now_ms())
    }

    /// Waits for `future`, or nothing once the attempt is aborted.
    async fn until_aborted<T>(&mut self, mut future: surefoot_env::BoxFuture<T>) -> Option<T> {
        loop {
            tokio::select! {
                biased;
                // Receiving is whole or has not happened.
                live = self.start.live.recv() => self.early.push(live?),
                // Polled by reference: nothing is lost when the other arm wins.
                done = &mut future => return Some(done),
            }
        }
    }

    async fn exchange(mut self, mut exchange: Box<dyn Exchange>, version: u8, is_bidirectional: bool) {
        send_start(&mut *exchange, &mut self, version);
        let mut is_open = is_bidirectional;
        if is_open {
            for live in std::mem::take(&mut self.early) {
                self.deliver(&mut *exchange, &live, version);
            }
        } else {
            exchange.half_close();
        }
        let clock = self.invoker.env.clock.clone();
        let (inactivity, abort) =
            (Duration::from_millis(self.options.inactivity_timeout_ms), Duration::from_millis(self.options.abort_timeout_ms));
        let mut last_activity = clock.monotonic();
        let mut alarm = clock.sleep(if is_open { inactivity } else { abort });
        let mut decoder = FrameDecoder::new(self.invoker.settings.message_bytes_max);
        let mut has_head = false;
        loop {
            tokio::select! {
                biased;
                // Receiving is whole or has not happened.
                live = self.start.live.recv() => {
                    let Some(live) = live else { return }; // aborted: dropping the exchange resets the stream
                    if is_open {
                        last_activity = clock.monotonic();
                        self.deliver(&mut *exchange, &live, version);
                    }
                }
                // The exchange keeps what it has read until it is asked again.
                event = poll_fn(|cx| exchange.poll_event(cx)) => {
                    last_activity = clock.monotonic();
                    let next = match event {
                        ExchangeEvent::Head(status, headers) => {
                            has_head = true;
                            check_head(status, &headers, version).map(|()| Next::More)
                        }
                        ExchangeEvent::Chunk(chunk) if has_head => self.chunks(&mut *exchange, &mut decoder, chunk).await,
                        ExchangeEvent::Chunk(_) => Ok(Next::More),
                        ExchangeEvent::End => Err(Failure::of_peer(500, "the handler's response ended before the invocation did".to_owned())),
                        ExchangeEvent::Error(error) => Err(Failure::of_peer(500, format!("{error} (RT0010)"))),
                    };
                    match next {
                        Ok(Next::More) => {}
                        Ok(Next::Over) => return drain(exchange, &clock).await,
                        Err(failure) => {
                            exchange.half_close();
                            return self.fail(failure);
                        }
                    }
                }
                // Polled by reference: it keeps its due time.
                () = &mut alarm => {
                    let limit = if is_open { inactivity } else { abort };
                    let idle = clock.monotonic().saturating_sub(last_activity);
                    if idle < limit {
                        alarm = clock.sleep(limit - idle);
                    } else if is_open {
                        // A polite request to suspend.
                        is_open = false;
                        exchange.half_close();
                        last_activity = clock.monotonic();
                        alarm = clock.sleep(abort);
                    } else {
                        let waited = abort.as_millis();
                        return self.fail(Failure::of_peer(500, format!("the handler did not suspend within {waited} ms of being asked to (RT0001)")));
                    }
                }
            }
        }
    }

    fn deliver(&mut self, exchange: &mut dyn Exchange, live: &Live, version: u8) {
        let mut out = Outgoing::with_capacity(64);
        out.notification(&live.notification, version);
        self.last_delivered = live.index;
        out.take().for_each(|chunk| exchange.send(chunk));
    }

    /// Takes a chunk and everything that is there behind it, and reports it as one event.
    async fn chunks(&mut self, exchange: &mut dyn Exchange, decoder: &mut FrameDecoder, first: Bytes) -> Result<Next, Failure> {
        let mut chunk = Some(first);
        loop {
            if let Some(chunk) = chunk.take() {
                decoder.push(chunk);
                while let Some(frame) = decoder.next_frame().map_err(|e| Failure::of_peer(500, format!("{e} (RT0003)")))? {
                    if let Some(end) = self.message(frame)? {
                        // Peers go on reading the request until it ends.
                        exchange.half_close();
                        return match end {
                            End::Event(end) => {
                                self.report(Some(end));
                                Ok(Next::Over)
                            }
                            End::Failed(failure) => {
                                self.fail_here(failure);
                                Ok(Next::Over)
                            }
                        };
                    }
                }
            }
            if self.items.len() < ITEMS_MAX {
                let available = poll_fn(|cx| match exchange.poll_event(cx) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    Poll::Pending => Poll::Ready(None),
                });
                match available.await {
                    Some(ExchangeEvent::Chunk(next)) => {
                        chunk = Some(next);
                        continue;
                    }
                    Some(ExchangeEvent::Head(..)) | None => {}
                    Some(ExchangeEvent::End) => {
                        return Err(Failure::of_peer(500, "the handler's response ended before the invocation did".to_owned()));
                    }
                    Some(ExchangeEvent::Error(error)) => return Err(Failure::of_peer(500, format!("{error} (RT0010)"))),
                }
            }
            if !self.items.is_empty() {
                self.report(None);
            }
            return Ok(Next::More);
        }
    }

    /// Takes one message; gives the attempt's end back where it is one.
    fn message(&mut self, frame: protocol::Frame) -> Result<Option<End>, Failure> {
        let message = protocol::decode(frame).map_err(|violation| Failure::of_peer(500, format!("{violation} (RT0012)")))?;
        match message {
            Message::Command { ty, raw, command } => {
                let action = match command {
                    Command::Act(action) => {
                        self.check(ty, &raw, &action)?;
                        action
                    }
                    Command::Call(call) => self.resolve(ty, &raw, &call)?,
                };
                self.items.push(Item::Command { ty, raw, action });
                Ok(None)
            }
            Message::RunProposed { completion, outcome } => {
                self.items.push(Item::RunProposed { completion, outcome });
                Ok(None)
            }
            Message::Suspended { awaiting } => Ok(Some(End::Event(self.suspended(awaiting)))),
            Message::Ended => {
                let has_output = |item: &Item| matches!(item, Item::Command { ty: entry_type::OUTPUT, .. });
                let is_stored = |entry: &surefoot_model::Entry| {
                    matches!(entry, surefoot_model::Entry::Command { ty: entry_type::OUTPUT, .. })
                };
                if self.items.iter().any(has_output) || self.outputs || self.start.replay.iter().any(is_stored) {
                    Ok(Some(End::Event(AttemptEnd::Completed)))
                } else {
                    Err(Failure::of_peer(500, "the handler ended without an output (RT0012)".to_owned()))
                }
            }
            Message::Failed(error) => Ok(Some(End::Failed(Failure {
                code: error.code,
                message: error.message,
                stacktrace: error.stacktrace,
                command: error.command,
                wish: Wish { behavior: error.behavior, delay_ms: error.next_retry_delay_ms },
                by_handler: true,
            }))),
        }
    }

    fn suspended(&self, awaiting: Vec<NotificationId>) -> AttemptEnd {
        AttemptEnd::Suspended { awaiting, last_delivered: self.last_delivered }
    }

    /// Whether this invocation may do what the command does (protocol reference 6.8.4).
    fn check(&self, ty: u16, raw: &Bytes, action: &Action) -> Result<(), Failure> {
        let kind = self.start.target.kind;
        let is_allowed = match action {
            Action::SetState { .. } | Action::ClearState { .. } | Action::ClearAllState => kind.writes_state(),
            Action::GetState { .. } | Action::GetStateKeys { .. } => kind.is_keyed(),
            Action::Keep if matches!(ty, entry_type::GET_EAGER_STATE | entry_type::GET_EAGER_STATE_KEYS) => kind.is_keyed(),
            _ => true,
        };
        if let Action::SetState { key, .. } = action
            && key.len() > KEY_BYTES_MAX
        {
            let message = format!("a state key of {} bytes is longer than the {KEY_BYTES_MAX} it may have (RT0017)", key.len());
            return Err(self.precondition(ty, raw, message));
        }
        if is_allowed {
            return Ok(());
        }
        Err(self.precondition(ty, raw, format!("{} has no state that it may use so (RT0017)", self.start.target)))
    }

    fn precondition(&self, ty: u16, raw: &Bytes, message: String) -> Failure {
        let commands = self.items.iter().filter(|item| matches!(item, Item::Command { .. })).count() as u32;
        let index = self.commands + commands;
        Failure { command: Some((index, ty, protocol::command_name(raw))), ..Failure::of_peer(500, message) }
    }

    fn resolve(&self, ty: u16, raw: &Bytes, call: &Call) -> Result<Action, Failure> {
        let refuse = |message: String| self.precondition(ty, raw, message);
        let catalog = self.invoker.catalog.load();
        let (service, handler) = (&call.service, &call.handler);
        let keyed = catalog.services.get(service.as_str()).map(|s| s.is_keyed());
        match keyed {
            Some(true) if call.key.is_empty() => {
                return Err(refuse(format!("a call of {service}/{handler} needs a key (RT0018)")));
            }
            Some(false) if !call.key.is_empty() => return Err(refuse(format!("{service}/{handler} takes no key (RT0018)"))),
            _ => {}
        }
        if call.idempotency_key.as_deref() == Some("") {
            return Err(refuse(format!("a call of {service}/{handler} has an empty idempotency key (RT0018)")));
        }
        let now = self.now();
        let new = New {
            service,
            handler,
            key: &call.key,
            headers: &call.headers,
            body: call.parameter.clone(),
            idempotency_key: call.idempotency_key.as_deref(),
            execute_at: call.invoke_at.filter(|at| *at > now),
            origin: Origin::Invocation(self.start.id),
        };
        let settings = &self.invoker.settings;
        let submission = submission::build(&catalog, &settings.defaults, &*self.invoker.env.ids, new).map_err(|error| {
            refuse(format!("cannot call {service}/{handler}: {error}; register a deployment that serves it (RT0018)"))
        })?;
        Ok(Action::Call {
            partition: submission.id.partition(settings.partitions),
            submission: Box::new(submission),
            id_completion: call.id_completion,
            result: call.result,
        })
    }

    fn report(&mut self, end: Option<AttemptEnd>) {
        let items = std::mem::take(&mut self.items);
        let commands = items.iter().filter(|item| matches!(item, Item::Command { .. })).count() as u32;
        self.outputs |= items.iter().any(|item| matches!(item, Item::Command { ty: entry_type::OUTPUT, .. }));
        let progress = AttemptProgress {
            id: self.start.id,
            attempt: self.start.attempt,
            first_command: self.commands,
            pin: self.pin,
            items,
            end,
        };
        self.commands += commands;
        self.invoker.output.progressed(self.start.partition, progress);
    }

    fn fail(mut self, failure: Failure) {
        self.fail_here(failure);
    }

    /// Reports what came before the failure, and the failure with its verdict.
    fn fail_here(&mut self, failure: Failure) {
        metrics::counter!("surefoot_invoker_invocation_tasks_total", "status" => "failed").increment(1);
        let now = self.now();
        let verdict = retry::verdict(&self.options.retry, self.start.attempts_counted, failure.wish, now);
        let attempt = self.start.attempts_counted + 1;
        if (attempt >= WARN_FROM_ATTEMPT || !matches!(verdict, Verdict::Retry { .. })) && self.invoker.may_warn() {
            let (invocation, target, error) = (self.start.id, &self.start.target, &failure.message);
            match &verdict {
                Verdict::Retry { at, .. } => {
                    let next_ms = at.0.saturating_sub(now.0);
                    tracing::warn!(%invocation, %target, attempt, error, next_attempt_in_ms = next_ms, "invocation keeps failing");
                }
                Verdict::Pause => {
                    tracing::warn!(%invocation, %target, attempt, error, "invocation paused; it waits for an operator to resume or kill it");
                }
                Verdict::Fail => tracing::warn!(%invocation, %target, attempt, error, "invocation failed for good"),
            }
        }
        let error = AttemptError {
            code: failure.code,
            message: failure.message,
            at: now,
            stacktrace: failure.stacktrace,
            command: failure.command,
        };
        self.report(Some(AttemptEnd::Failed { error, verdict, by_handler: failure.by_handler }));
    }
}

enum End {
    Event(AttemptEnd),
    Failed(Failure),
}

/// Sends `Start` and the whole replay at once, without waiting for the response to begin.
fn send_start(exchange: &mut dyn Exchange, attempt: &mut Attempt<'_>, version: u8) {
    let since_entry_ms = attempt.now().0.saturating_sub(attempt.start.last_entry_at.0);
    let start = &attempt.start;
    let debug_id = start.id.to_string();
    let bytes: u64 = start.replay.iter().map(|entry| entry.bytes() + 32).sum();
    let mut out = Outgoing::with_capacity(256 + bytes as usize);
    out.start(
        &Start {
            id: start.id,
            debug_id: &debug_id,
            known_entries: start.replay.len() as u32,
            state: &start.state.entries,
            complete_state: start.state.complete,
            key: &start.target.key,
            retries_since_entry: start.retries_since_entry,
            since_entry_ms,
            random_seed: start.random_seed,
        },
        version,
    );
    for entry in &start.replay {
        out.entry(entry, version);
    }
    out.take().for_each(|chunk| exchange.send(chunk));
}

/// The response's head, if an attempt can go on after it (protocol reference 3.2).
fn check_head(status: StatusCode, headers: &HeaderMap, version: u8) -> Result<(), Failure> {
    if status == StatusCode::OK {
        let expected = protocol::content_type(version);
        return match headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) {
            Some(found) if found == expected => Ok(()),
            found => {
                let found = found.unwrap_or("none");
                Err(Failure::of_peer(500, format!("the response has content type {found} instead of {expected} (RT0012)")))
            }
        };
    }
    let failure = |message: String| Failure::of_peer(500, message);
    Err(match status {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Failure::of_server(format!(
            "the deployment does not speak protocol version {version} any more: register it again (RT0015)"
        )),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
            let wish = Wish { behavior: Behavior::Retry, delay_ms: seconds.map(|s| s.saturating_mul(1_000)) };
            Failure { wish, ..failure(format!("the deployment is overloaded: {status} (RT0023)")) }
        }
        StatusCode::PAYLOAD_TOO_LARGE => failure(format!("a proxy refused the size of the request: {status} (RT0019)")),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            failure(format!("the deployment cannot be reached: {status} (RT0010)"))
        }
        _ => failure(format!("unexpected status {status} from the deployment (RT0012)")),
    })
}

/// Reads what is left of a response whose last message has come.
async fn drain(mut exchange: Box<dyn Exchange>, clock: &Arc<dyn surefoot_env::Clock>) {
    let mut over = clock.sleep(DRAIN);
    loop {
        tokio::select! {
            biased;
            // The exchange keeps what it has read until it is asked again.
            event = poll_fn(|cx| exchange.poll_event(cx)) => match event {
                ExchangeEvent::Head(..) | ExchangeEvent::Chunk(_) => {}
                ExchangeEvent::End | ExchangeEvent::Error(_) => return,
            },
            // Polled by reference: it keeps its due time.
            () = &mut over => return,
        }
    }
}
