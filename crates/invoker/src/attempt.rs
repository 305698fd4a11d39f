//! One attempt: a stream to a handler, from `Start` to the event that ends it.
//!
//! Owns: what is sent and when, what of the handler's messages is let through, timeouts, and the verdict on a failure. Does not
//! own: the journal (it is given, and reported back to the log), or what happens next. Source: protocol reference 3, 6 and 7.

use crate::api::{AttemptStart, EagerState, JournalRest, Live, MemoryTicket, Mutant, ReadEntries, Room};
use crate::completions::Completions;
use crate::feed::{self, FeedBytes, Told};
use crate::invoker::{Held, Invoker, ReplayBytes, StreamWanted};
use crate::parts::{LEAST_TIME, PartPace, PartWaiting};
use crate::reach::{NO_DEPLOYMENT, Tried};
use crate::retry::{self, Delay, Wish};
use crate::transport::{Exchange, ExchangeEvent, OpenRequest, TransportError, UNSENT_BYTES_MAX};
use ::http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, UNIX_EPOCH};
use surefoot_env::BoxFuture;
use surefoot_model::catalog::{Catalog, Deployment, HttpVersion, ResolvedOptions, StreamMode};
use surefoot_model::{
    Action, AttemptEnd, AttemptError, AttemptProgress, DeploymentId, Entry, Item, NotificationId, Origin, Outcome, Pin,
    RECORD_COST, Text, Timestamp, Verdict, entry_type,
};
use surefoot_protocol::{
    self as protocol, Behavior, Call, Command, FrameDecoder, KEY_BYTES_MAX, Message, NewSubmission, Outgoing, Start,
    SubmissionError, build_submission,
};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// From this failing attempt on the log says so.
const WARN_FROM_ATTEMPT: u32 = 3;
/// Notifications that are there together leave as one frame of HTTP/2, up to so many bytes and one more. Libraries end a connection on which a
/// few thousand small frames have come that their program has not read, with all of its streams.
const GATHERED_BYTES: u64 = 64 << 10;
/// From so many frames on to which the handler has not said a word, one leaves in each such time.
const FRAMES_UNHEARD_MAX: u32 = 64;
const GATHER: Duration = Duration::from_millis(10);
/// Longer than anything waits.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
/// A handler that only waits is idle once nothing was said for this long: then it may be asked to suspend.
const IDLE: Duration = Duration::from_millis(50);
/// Values of state that a handler may have asked for and not been sent, however small they are. Reading stops at the bound: each takes a
/// place in the journal.
const VALUES_AWAITED_MAX: u32 = 16;
/// Bytes of them, each as large as the largest of its key's. Nobody knows a value's size before it is read, and it may be as large as a
/// message.
const VALUE_BYTES_AWAITED_MAX: u64 = 1 << 20;
/// What a piece of a failure's metadata takes beside its texts.
const PAIR_BYTES: usize = size_of::<(String, String)>();
/// A peer of HTTP/1.1 that has not closed a new connection for so long has taken it. Its response may begin much later.
const TAKEN_AFTER: Duration = Duration::from_secs(1);
/// A handler that has brought nothing for so long brings nothing soon: others begin past it.
const HEARD_AFTER: Duration = Duration::from_millis(100);
/// The response is read to its end for this long after its last message: peers refuse new streams if many are cut.
const DRAIN: Duration = Duration::from_secs(5);
/// And so much of it.
const DRAIN_BYTES: usize = 1 << 20;
/// Items that are reported in one event.
const ITEMS_MAX: usize = AttemptProgress::ITEMS_MAX;
const READS_MAX: u32 = AttemptProgress::READS_MAX as u32;
/// Payload bytes at which an event is reported before more is read: it exceeds them by less than one message.
const EVENT_BYTES: usize = 64 << 10;
/// What an event, and each of its items, takes beside payloads.
const FIXED_BYTES: usize = 128;
/// What an item of an event counts beside that until it is applied, in time, as [`RECORD_COST`] does for the event.
const ITEM_COST: usize = 1 << 10;
/// What the server puts around a payload (ids, headers of a request) may exceed the limit on messages by this much.
const ENVELOPE_BYTES: usize = 1 << 20;
/// What has come of a handler's message counts from this size on.
const PART_BYTES: usize = 16 << 10;
/// Room taken for a replay at once; large entries are passed on by reference and need none.
const REPLAY_ALLOCATION_BYTES: usize = 64 << 10;
/// Bytes kept of what a handler says about its failure: it stands in the invocation's row and in the log.
const MESSAGE_BYTES_MAX: usize = 8 << 10;
const STACKTRACE_BYTES_MAX: usize = 64 << 10;
const COMMAND_NAME_BYTES_MAX: usize = 1 << 10;

const INVOCATION_ID: HeaderName = HeaderName::from_static("x-restate-invocation-id");
const SERVICE_KEY: HeaderName = HeaderName::from_static("x-restate-service-key");
/// A key that is longer once encoded does not go into a header: peers bound all of them together, at 8 KiB and more. The handler
/// has it from `Start`.
const SERVICE_KEY_BYTES_MAX: usize = 2_048;
/// What stands for itself in a URI component.
const URI_COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// Runs an attempt to its end and reports what it brings.
pub(crate) async fn run(invoker: Arc<Invoker>, start: AttemptStart, chosen: Result<Chosen, Failure>, held: Held) {
    // Its place is free once this returns: a peer that is slow to end its response holds up nobody.
    if let Some(exchange) = attempt(&invoker, start, chosen, held).await
        && let Some(leave) = invoker.try_drain()
    {
        drain(exchange, &invoker.env.clock).await;
        drop(leave);
    }
}

/// Gives the stream back where the rest of the response is to be read.
async fn attempt(
    invoker: &Arc<Invoker>,
    start: AttemptStart,
    chosen: Result<Chosen, Failure>,
    held: Held,
) -> Option<Box<dyn Exchange>> {
    let options = invoker.options(&invoker.catalog.load(), &start.target, chosen.as_ref().ok().map(|chosen| &chosen.deployment));
    let pin = match &chosen {
        Ok(Chosen { deployment, version }) => Pin { deployment: deployment.id, protocol: *version },
        // Nothing is pinned: there is nothing to pin to.
        Err(_) => start.pin.unwrap_or(Pin { deployment: NO_DEPLOYMENT, protocol: protocol::MAX_VERSION }),
    };
    let mut attempt = Attempt::new(invoker, start, options, pin, held);
    let opened = match chosen {
        Ok(chosen) => attempt.open(chosen).await,
        Err(failure) => Some(Err(failure)),
    };
    match opened? {
        Ok(stream) => attempt.exchange(stream).await,
        Err(failure) => {
            attempt.fail(failure).await;
            None
        }
    }
}

/// Why an attempt failed, as far as the attempt itself knows.
pub(crate) struct Failure {
    code: u32,
    message: String,
    stacktrace: Option<String>,
    command: Option<(u32, u16, String)>,
    wish: Wish,
    /// False for trouble on this side, or where no handler was reached, which raises no counter that handlers see.
    by_handler: bool,
    /// The rest of the response is read, within bounds, before the stream is let go of.
    is_read_on: bool,
}

impl Failure {
    fn of_peer(code: u32, message: String) -> Self {
        Self { code, message, stacktrace: None, command: None, wish: Wish::default(), by_handler: true, is_read_on: true }
    }

    fn of_server(message: String) -> Self {
        Self { by_handler: false, ..Self::of_peer(500, message) }
    }

    /// No handler was reached: nobody counts it.
    fn out_of_reach(why: &str) -> Self {
        let wish = Wish { behavior: Behavior::Retry, delay: Delay::Unreached };
        Self { wish, is_read_on: false, ..Self::of_server(format!("{why} (RT0010)")) }
    }

    fn of_transport(error: &TransportError) -> Self {
        if error.is_out_of_reach() {
            return Self::out_of_reach(&error.to_string());
        }
        Self { is_read_on: false, ..Self::of_peer(500, format!("{error} (RT0010)")) }
    }

    /// Its texts within their bounds.
    fn cut(mut self) -> Self {
        cut(&mut self.message, MESSAGE_BYTES_MAX);
        if let Some(stacktrace) = &mut self.stacktrace {
            cut(stacktrace, STACKTRACE_BYTES_MAX);
        }
        if let Some((_, _, name)) = &mut self.command {
            cut(name, COMMAND_NAME_BYTES_MAX);
        }
        self
    }

    fn bytes(&self) -> usize {
        self.message.len() + self.stacktrace.as_ref().map_or(0, String::len)
    }
}

/// The deployment that an attempt runs on, and the protocol version that both sides speak.
pub(crate) struct Chosen {
    pub(crate) deployment: Arc<Deployment>,
    version: u8,
}

impl Chosen {
    /// Its request leaves once it is whole, and no part of it before.
    pub(crate) fn leaves_whole(&self) -> bool {
        self.deployment.http == HttpVersion::Http11
    }
}

/// The deployment and protocol version: the pinned ones, or the newest.
pub(crate) fn choose(catalog: &Catalog, service: &Text, pin: Option<Pin>) -> Result<Chosen, Failure> {
    match pin {
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
            Ok(Chosen { deployment: deployment.clone(), version: pin.protocol })
        }
        None => {
            let deployment = catalog.deployment_of(service).ok_or_else(|| {
                Failure::of_server(format!("no deployment serves '{service}': register one that does (RT0011)"))
            })?;
            let version = protocol::negotiate(deployment.min_protocol, deployment.max_protocol).ok_or_else(|| {
                Failure::of_server(format!(
                    "deployment {} speaks no protocol version in common with this server (RT0013)",
                    deployment.id
                ))
            })?;
            Ok(Chosen { deployment: deployment.clone(), version })
        }
    }
}

/// Shortens a text that is longer, and says by how much.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = text.floor_char_boundary(bytes_max);
        let more = text.len() - end;
        text.truncate(end);
        text.shrink_to_fit();
        text.push_str(&format!("… ({more} bytes more)"));
    }
}

/// How many entries of the journal the attempt is to know at first.
fn known_entries(start: &AttemptStart) -> u32 {
    start.replay.len() as u32 + start.rest.as_ref().map_or(0, |rest| rest.entries)
}

/// A sleep that costs nothing before it is waited for.
async fn sleep(clock: &Arc<dyn surefoot_env::Clock>, duration: Duration) {
    clock.sleep(duration).await;
}

fn open_request(attempt: &Attempt<'_>, deployment: Arc<Deployment>, version: u8, no_room: Arc<Notify>) -> OpenRequest {
    let target = &attempt.start.target;
    let content_type = HeaderValue::from_static(protocol::content_type(version));
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, content_type.clone());
    headers.insert(ACCEPT, content_type);
    headers.insert(INVOCATION_ID, once(HeaderValue::try_from(&*attempt.id_text).expect("an id is plain ASCII")));
    if target.kind.is_keyed() {
        let key = utf8_percent_encode(&target.key, URI_COMPONENT).to_string();
        if key.len() <= SERVICE_KEY_BYTES_MAX {
            headers.insert(SERVICE_KEY, once(HeaderValue::try_from(key).expect("percent-encoded text is plain ASCII")));
        }
    }
    for (name, value) in &attempt.invoker.headers {
        headers.insert(name.clone(), value.clone());
    }
    let path = format!("/invoke/{}/{}", target.service, target.handler);
    OpenRequest { deployment, path, headers, no_room }
}

/// A value that hardly comes again: HTTP/2 does not keep it for later requests, in the place of one that does.
fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// The exchange with a handler, and what is known of it.
struct Stream {
    exchange: Box<dyn Exchange>,
    version: u8,
    /// A connection says nothing of whether its peer stands behind it, before that answers or has kept it for a while.
    may_be_refused: bool,
    is_bidirectional: bool,
    /// The request leaves once it is whole, and no part of it before.
    leaves_whole: bool,
    /// More may be sent.
    is_open: bool,
}

impl JournalRest {
    /// Bytes of it that come into memory at a time, where it has so many.
    pub(crate) fn bytes_at_once(&self, leaves_whole: bool, bytes: u64) -> u64 {
        if leaves_whole { bytes } else { bytes.min(self.part_bytes) }
    }
}

/// What of the replay has not been sent.
struct Unreplayed {
    /// What was sent before has to leave.
    waits: Option<Box<JournalRest>>,
    reads: Option<BoxFuture<Option<ReadEntries>>>,
    /// Bytes of it that come into memory at a time.
    bytes: usize,
    /// The request ends behind it.
    is_last: bool,
}

impl Unreplayed {
    fn read_on(&mut self) {
        if let Some(rest) = self.waits.take() {
            self.reads = Some((rest.read)());
        }
    }

    /// Never ready where the read finds nothing: the attempt does not count any more, or its partition stops, and either aborts it. A
    /// failure that was reported instead would be durable, and count against an invocation that did nothing wrong.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<ReadEntries> {
        let Some(reads) = &mut self.reads else { return Poll::Pending };
        let Some(read) = ready!(reads.as_mut().poll(cx)) else {
            *reads = Box::pin(pending());
            return Poll::Pending;
        };
        Poll::Ready(read)
    }
}

/// What an attempt looks for in its stream.
#[derive(Clone, Copy)]
struct Looks {
    for_messages: bool,
    /// The unsent bytes are above their limit: the moment at which they are below it again.
    for_little_unsent: bool,
    /// The replay has not left.
    for_nothing_unsent: bool,
}

impl Stream {
    fn half_close(&mut self) {
        if self.is_open {
            self.is_open = false;
            self.exchange.half_close();
        }
    }

    /// The next event as far as it is looked for.
    fn poll_event(&mut self, cx: &mut Context<'_>, looks: Looks) -> Poll<ExchangeEvent> {
        if looks.for_nothing_unsent && self.exchange.poll_unsent(cx, 0).is_ready() {
            return Poll::Ready(ExchangeEvent::Writable);
        }
        if looks.for_little_unsent && self.exchange.poll_unsent(cx, UNSENT_BYTES_MAX).is_ready() {
            return Poll::Ready(ExchangeEvent::Writable);
        }
        if looks.for_messages { self.exchange.poll_event(cx) } else { Poll::Pending }
    }

    /// Sends everything, unless one of the messages is larger than any may be.
    fn send(&mut self, invoker: &Invoker, mut out: Outgoing) -> Result<(), Failure> {
        let (largest, limit) = (out.largest_message_bytes(), invoker.settings.message_bytes_max);
        if largest > limit.saturating_add(ENVELOPE_BYTES) {
            return Err(Failure::of_server(format!(
                "a message of {largest} bytes to the handler is larger than the limit of {limit} (RT0003)"
            )));
        }
        for chunk in out.take() {
            invoker.metrics.sent_bytes.increment(chunk.len() as u64);
            self.exchange.send(chunk);
        }
        Ok(())
    }
}

struct Attempt<'a> {
    invoker: &'a Arc<Invoker>,
    start: AttemptStart,
    id_text: Box<str>,
    options: ResolvedOptions,
    pin: Pin,
    began: Duration,
    held: Held,
    completions: Completions,
    journal: JournalSize,
    unreplayed: Option<Box<Unreplayed>>,
    /// Nothing is read: see [`VALUES_AWAITED_MAX`].
    is_paused: bool,
    /// Notifications that have not left for the handler: they count among those of all attempts until they have.
    sending: Option<FeedBytes>,
    /// Frames with notifications since the handler last said something, and when the next one may leave where they are many.
    frames_unheard: u32,
    gives_from: Duration,
    /// Not reported yet, and the bytes of it.
    items: Vec<Item>,
    /// The large message among them has room.
    part_is_whole: bool,
    item_bytes: usize,
    /// Reads of state among them.
    reads: u32,
    /// An output has come, now or in an earlier attempt.
    has_output: bool,
    /// Journal index of the last entry that the handler was sent.
    last_delivered: u32,
    /// Its end has been reported.
    has_ended: bool,
}

/// The size of the invocation's journal, with the entries that the attempt has reported and that are not applied yet.
#[derive(Clone, Copy, Default)]
struct JournalSize {
    entries: u32,
    bytes: u64,
    /// Values and names of state that were asked for, and have not come.
    values_awaited: u32,
}

/// How an exchange goes on.
enum Next {
    More,
    /// The handler's last message was read and reported.
    Over,
    /// Nothing of the attempt counts any more.
    Aborted,
}

impl<'a> Attempt<'a> {
    fn new(invoker: &'a Arc<Invoker>, start: AttemptStart, options: ResolvedOptions, pin: Pin, held: Held) -> Self {
        Self {
            invoker,
            id_text: start.id.to_string().into(),
            options,
            pin,
            began: invoker.env.clock.monotonic(),
            held,
            completions: Completions::default(),
            journal: JournalSize::default(),
            unreplayed: None,
            is_paused: false,
            sending: None,
            frames_unheard: 0,
            gives_from: Duration::ZERO,
            items: Vec::new(),
            part_is_whole: false,
            item_bytes: 0,
            reads: 0,
            has_output: false,
            last_delivered: 0,
            has_ended: false,
            start,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.invoker.env.clock.now_ms())
    }

    /// Waits for `future`, or nothing once the attempt is aborted. Notifications wait meanwhile.
    async fn until_aborted<T>(&mut self, mut future: BoxFuture<T>) -> Option<T> {
        tokio::select! {
            biased;
            // Nothing is taken by looking.
            () = poll_fn(|cx| self.start.live.poll_over(cx)) => None,
            // Over when the other arm wins.
            done = &mut future => Some(done),
        }
    }

    /// A stream to the deployment. None: aborted meanwhile.
    async fn open(&mut self, chosen: Chosen) -> Option<Result<Stream, Failure>> {
        let leaves_whole = chosen.leaves_whole();
        let Chosen { deployment, version } = chosen;
        if let Err(error) = self.held.begun.connect() {
            return Some(Err(Failure::out_of_reach(&format!("{error}, a moment ago"))));
        }
        let is_bidirectional = deployment.mode == StreamMode::Bidirectional
            && deployment.http == HttpVersion::Http2
            && self.options.inactivity_timeout_ms > 0;
        let may_be_refused = leaves_whole;
        let (id, no_room) = (deployment.id, Arc::new(Notify::new()));
        let mut opening = self.invoker.transport.open(open_request(self, deployment, version, no_room.clone()));
        let mut wanted = None;
        let opened = loop {
            tokio::select! {
                biased;
                // Nothing is taken by looking.
                () = poll_fn(|cx| self.start.live.poll_over(cx)) => return None,
                // Over when the other arms win for good.
                opened = &mut opening => break opened,
                // Being told is whole or has not happened.
                () = no_room.notified() => self.wants_stream(id, &mut wanted),
                // Nothing is lost with a sleep.
                () = sleep(&self.invoker.env.clock, HEARD_AFTER), if self.is_unheard() => self.heard(),
            }
        };
        drop(wanted);
        if opened.is_err() || !may_be_refused {
            self.has_tried(opened.as_ref().err());
        }
        Some(match opened {
            Ok(exchange) => Ok(Stream { exchange, version, may_be_refused, is_bidirectional, leaves_whole, is_open: true }),
            Err(error) => Err(Failure::of_transport(&error)),
        })
    }

    /// It has brought something, or nothing for a while: others of the deployment may begin.
    fn heard(&mut self) {
        self.held.begun.heard();
    }

    fn is_unheard(&self) -> bool {
        !self.held.begun.is_heard()
    }

    /// Tells the others whether the deployment could be connected to.
    fn has_tried(&mut self, error: Option<&TransportError>) {
        self.held.begun.connected(match error {
            Some(error) if error.is_out_of_reach() => Tried::Failed(error.to_string()),
            Some(_) | None => Tried::Connected,
        });
    }

    /// The deployment can be reached, and has no stream left. Those that only wait there make room.
    fn wants_stream(&mut self, deployment: DeploymentId, wanted: &mut Option<StreamWanted>) {
        self.has_tried(None);
        if wanted.is_some()
            && let Some(left_out) = self.invoker.may_warn()
        {
            tracing::warn!(
                %deployment, invocation = &*self.id_text, left_out,
                "all streams to the deployment are taken, and the attempt waits for one: its handlers are busy, or do not suspend"
            );
        }
        wanted.get_or_insert_with(|| StreamWanted::new(self.invoker.clone(), deployment)).ask();
    }

    /// Sends and receives until the attempt's end is reported. Gives the exchange back where the rest is to be read; dropping it
    /// resets the stream.
    async fn exchange(&mut self, mut stream: Stream) -> Option<Box<dyn Exchange>> {
        match self.converse(&mut stream).await {
            Ok(Next::Over) => Some(stream.exchange),
            Ok(Next::More | Next::Aborted) => None,
            Err(failure) => {
                stream.half_close();
                // A handler that breaks the rules is cut off gently all the same: peers refuse new streams if many are reset.
                let is_read_on = failure.is_read_on;
                self.fail(failure).await;
                is_read_on.then_some(stream.exchange)
            }
        }
    }

    async fn converse(&mut self, stream: &mut Stream) -> Result<Next, Failure> {
        self.send_start(stream)?;
        let invoker = self.invoker;
        let mut patience = Patience::new(&self.options, &invoker.env.clock);
        if self.invoker.settings.mutant == Mutant::NeverGiveUp {
            patience.abort = NEVER;
        }
        if !stream.is_bidirectional {
            self.close(stream);
            patience.closed(patience.abort);
        }
        let mut alarm = patience.alarm(self.due(&patience, stream));
        let mut decoder = FrameDecoder::new(self.invoker.settings.taken_bytes_max);
        let mut has_head = false;
        loop {
            let unsent = stream.exchange.unsent_bytes();
            // A handler that does not take what it asked for is read no further; once it is asked to suspend it is sent nothing more.
            let has_little = unsent <= UNSENT_BYTES_MAX || !stream.is_open || self.invoker.settings.mutant == Mutant::SendUnread;
            if has_little || stream.leaves_whole {
                self.unreplayed.iter_mut().for_each(|unreplayed| unreplayed.read_on());
            }
            let (replays, reads) = match &self.unreplayed {
                None => (false, false),
                Some(unreplayed) => (true, unreplayed.reads.is_some()),
            };
            let takes_live = has_little && !replays;
            if self.is_paused && takes_live && self.journal.values_awaited < self.values_awaited_max() {
                self.is_paused = false;
                match self.chunks(stream, &mut decoder, None).await? {
                    Next::More => continue,
                    next @ (Next::Over | Next::Aborted) => return Ok(next),
                }
            }
            let coming = self.unreplayed.as_ref().map_or(0, |unreplayed| unreplayed.bytes);
            self.held.replay.take_if(|replay| replay.shrink_to(unsent.saturating_add(coming)) == 0 && !replays);
            if unsent <= UNSENT_BYTES_MAX {
                self.sending = None;
            }
            let gives_live = takes_live && !self.gathers();
            // What a handler does not take waits in its feed, which is bounded; what it will not be sent is taken off at once.
            let due = self.due(&patience, stream);
            if due < alarm.due {
                alarm = patience.alarm(due);
            }
            let looks = Looks {
                // The part that was read holds a view of the tables: it is sent before anything else.
                for_messages: !self.is_paused && !reads,
                for_little_unsent: if replays { !reads } else { self.is_paused && !takes_live },
                for_nothing_unsent: self.held.replay.is_some() && !replays,
            };
            tokio::select! {
                biased;
                // Taking is whole or has not happened.
                told = poll_fn(|cx| self.start.live.poll_told(cx, gives_live)) => match told {
                    None => return Ok(Next::Aborted),
                    Some(Told::Live(live, bytes)) => {
                        self.deliver(stream, (live, bytes))?;
                        if stream.is_open {
                            patience.active();
                            self.held.place.resume();
                        }
                    }
                    Some(told) => {
                        if let Told::Behind(dropped) = told {
                            self.arrived(dropped.bytes, dropped.values);
                        }
                        if self.stays_open(stream) {
                            // What it still has to do it does first, and has as long for it as if nobody had asked.
                            self.close(stream);
                            patience.closed(patience.inactivity.saturating_add(patience.abort));
                        }
                    }
                },
                // The read goes on where it is.
                read = poll_fn(|cx| self.unreplayed.as_mut().map_or(Poll::Pending, |unreplayed| unreplayed.poll_read(cx))) => {
                    self.replay_on(stream, read)?;
                    patience.active();
                }
                // The exchange keeps what it has read until it is asked again.
                event = poll_fn(|cx| stream.poll_event(cx, looks)) => {
                    match event {
                        ExchangeEvent::Head(status, headers) => {
                            has_head = true;
                            if std::mem::take(&mut stream.may_be_refused) {
                                self.has_tried(None);
                            }
                            self.held.begun.answered();
                            if self.start.tells_answer {
                                let AttemptStart { partition, id, attempt, .. } = self.start;
                                self.invoker.output.answered(partition, id, attempt, self.pin.deployment);
                            }
                            self.invoker.metrics.responded(stream.is_bidirectional, status);
                            check_head(status, &headers, stream.version, self.now())?;
                        }
                        ExchangeEvent::Chunk(chunk) if has_head => {
                            self.frames_unheard = 0;
                            self.heard();
                            match self.chunks(stream, &mut decoder, Some(chunk)).await? {
                                Next::More => {}
                                next @ (Next::Over | Next::Aborted) => return Ok(next),
                            }
                        }
                        ExchangeEvent::Chunk(_) | ExchangeEvent::Writable => {}
                        ExchangeEvent::End => return Err(ended_early()),
                        ExchangeEvent::Error(error) => {
                            // The peer would not take the request, and there was nobody else to send it to.
                            if error.is_out_of_reach() {
                                self.has_tried(Some(&error));
                            }
                            return Err(Failure::of_transport(&error));
                        }
                    }
                    patience.active();
                    self.held.place.resume();
                }
                // Polled by reference: it keeps its due time.
                () = &mut alarm.sleep => {
                    if stream.may_be_refused && patience.silence() >= TAKEN_AFTER {
                        stream.may_be_refused = false;
                        self.has_tried(None);
                    }
                    if patience.silence() >= HEARD_AFTER {
                        self.heard();
                    }
                    self.check_part()?;
                    if patience.is_over() {
                        if !self.stays_open(stream) {
                            let waited = patience.closed.unwrap_or_default().as_millis();
                            let message = format!("the handler did not suspend within {waited} ms of being asked to (RT0001)");
                            return Err(Failure { is_read_on: false, ..Failure::of_peer(500, message) });
                        }
                        // A polite request to suspend.
                        self.close(stream);
                        patience.closed(patience.abort);
                        patience.active();
                    } else if self.only_waits(stream) && patience.is_idle() {
                        let bytes = usize::try_from(self.journal.bytes).unwrap_or(usize::MAX);
                        self.held.place.idle(self.pin.deployment, self.start.live.line(), patience.last_activity, bytes);
                    }
                    alarm = patience.alarm(self.due(&patience, stream));
                }
            }
        }
    }

    /// Ends the request: the handler is to suspend, or to do without more.
    fn close(&mut self, stream: &mut Stream) {
        match &mut self.unreplayed {
            Some(unreplayed) => unreplayed.is_last = true,
            None => stream.half_close(),
        }
    }

    /// The request does not end, now or behind the replay.
    fn stays_open(&self, stream: &Stream) -> bool {
        stream.is_open && !self.unreplayed.as_ref().is_some_and(|unreplayed| unreplayed.is_last)
    }

    /// Whether notifications wait for others, to leave together: the handler has been sent many, and has said nothing since.
    fn gathers(&self) -> bool {
        self.frames_unheard >= FRAMES_UNHEARD_MAX && self.invoker.env.clock.monotonic() < self.gives_from
    }

    /// When something is to be looked at.
    fn due(&self, patience: &Patience<'_>, stream: &Stream) -> Duration {
        let due = patience.due(self.silence_max(stream));
        let due = if self.gathers() { due.min(self.gives_from) } else { due };
        self.held.part.as_ref().map_or(due, |part| due.min(part.pace.due()))
    }

    /// Values of state that may be awaited.
    fn values_awaited_max(&self) -> u32 {
        let fit = VALUE_BYTES_AWAITED_MAX / self.start.read_bytes_max.max(1);
        u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, VALUES_AWAITED_MAX)
    }

    /// Notifications have come, or were dropped: so many bytes, and so many answers to reads of state among them.
    fn arrived(&mut self, bytes: u64, answers: u32) {
        self.journal.arrived(bytes, answers);
        if answers > 0 {
            self.start.read_bytes_max = self.start.read_bytes_max.max(bytes);
        }
    }

    /// Silence after which there is something to do, however long the handler may be silent.
    fn silence_max(&self, stream: &Stream) -> Duration {
        if self.only_waits(stream) {
            return IDLE;
        }
        let max = if stream.may_be_refused { TAKEN_AFTER } else { NEVER };
        if self.is_unheard() { max.min(HEARD_AFTER) } else { max }
    }

    /// While others wait for room, a large message comes at a least rate.
    fn check_part(&mut self) -> Result<(), Failure> {
        let now = self.invoker.env.clock.monotonic();
        if let Some(part) = &mut self.held.part
            && let Some(bytes) = part.pace.too_slow(now)
            && self.invoker.parts.are_wanted()
        {
            let message = format!(
                "the handler stopped in the middle of a large message while others wait for memory: {bytes} bytes of it came in {} s (SF3006)",
                LEAST_TIME.as_secs()
            );
            return Err(Failure { is_read_on: false, ..Failure::of_peer(500, message) });
        }
        Ok(())
    }

    /// Whether the handler does nothing but wait, and its place does not know yet.
    fn only_waits(&self, stream: &Stream) -> bool {
        stream.is_open && self.unreplayed.is_none() && !self.held.place.is_idle() && self.completions.only_waits()
    }

    /// Sends `Start` and the replay as far as it is in memory, without waiting for the response to begin. The handler's copy is the only
    /// one that is needed from here on.
    fn send_start(&mut self, stream: &mut Stream) -> Result<(), Failure> {
        let since_entry_ms = self.now().0.saturating_sub(self.start.last_entry_at.0);
        let known_entries = known_entries(&self.start);
        let replay = std::mem::take(&mut self.start.replay);
        let rest = self.start.rest.take();
        let state = std::mem::take(&mut self.start.state);
        let values = values_that_fit(&state, self.invoker.settings.message_bytes_max);
        let bytes = self.held.replay.as_ref().map_or(0, ReplayBytes::bytes).min(REPLAY_ALLOCATION_BYTES);
        let start = &self.start;
        let mut out = Outgoing::with_capacity(256 + bytes);
        out.start(
            &Start {
                id: start.id,
                debug_id: &self.id_text,
                known_entries,
                state: &state.entries[..values],
                complete_state: state.complete && values == state.entries.len(),
                key: &start.target.key,
                retries_since_entry: start.retries_since_entry,
                since_entry_ms,
                random_seed: start.random_seed,
            },
            stream.version,
        );
        self.replay(&replay, &mut out, stream.version);
        self.leave_unreplayed(rest, stream.leaves_whole);
        stream.send(self.invoker, out)
    }

    fn replay(&mut self, entries: &[Entry], out: &mut Outgoing, version: u8) {
        for entry in entries {
            out.entry(entry, version);
            self.has_output |= matches!(entry, Entry::Command { ty: entry_type::OUTPUT, .. });
            self.completions.replayed(entry);
            self.journal.add(1, entry.bytes());
        }
        // Nothing else is in it before all of these are.
        self.last_delivered = self.journal.entries.saturating_sub(1);
    }

    /// Sends the next part of the replay.
    fn replay_on(&mut self, stream: &mut Stream, read: ReadEntries) -> Result<(), Failure> {
        let mut out = Outgoing::with_capacity(64);
        self.replay(&read.entries, &mut out, stream.version);
        let is_last = self.leave_unreplayed(read.rest, stream.leaves_whole);
        stream.send(self.invoker, out)?;
        let coming = self.unreplayed.as_ref().map_or(0, |unreplayed| unreplayed.bytes);
        let bytes = stream.exchange.unsent_bytes().saturating_add(coming);
        // The part may have been one entry that is larger than parts are.
        self.held.replay.iter_mut().for_each(|replay| replay.resize_to(bytes));
        if is_last {
            stream.half_close();
        }
        Ok(())
    }

    /// So much of the replay is still to be sent. Whether it is nothing, and the request ends here.
    fn leave_unreplayed(&mut self, rest: Option<Box<JournalRest>>, leaves_whole: bool) -> bool {
        let is_last = self.unreplayed.take().is_some_and(|before| before.is_last);
        let left = self.start.journal_bytes.saturating_sub(self.journal.bytes);
        match rest {
            Some(rest) => {
                let bytes = usize::try_from(rest.bytes_at_once(leaves_whole, left)).unwrap_or(usize::MAX);
                self.unreplayed = Some(Box::new(Unreplayed { waits: Some(rest), reads: None, bytes, is_last }));
            }
            None => self.journal.add(self.completions.open(), 0),
        }
        is_last && self.unreplayed.is_none()
    }

    /// Sends a notification, with those that wait behind it.
    fn deliver(&mut self, stream: &mut Stream, first: (Live, FeedBytes)) -> Result<(), Failure> {
        let mut out = Outgoing::with_capacity(64);
        let (mut next, mut sending, mut bytes) = (Some(first), None::<FeedBytes>, 0);
        while let Some((live, counted)) = next.take() {
            self.arrived(live.notification.bytes(), u32::from(feed::answers_read(&live.notification)));
            if stream.is_open {
                out.notification(&live.notification, stream.version);
                self.completions.delivered(&live.notification.id);
                self.last_delivered = live.index;
                bytes += live.notification.bytes();
                match &mut sending {
                    Some(sending) => sending.add(counted),
                    None => sending = Some(counted),
                }
            }
            if bytes < GATHERED_BYTES {
                next = self.start.live.next_live();
            }
        }
        if sending.is_some() {
            stream.send(self.invoker, out)?;
            self.sending = sending;
            self.frames_unheard = self.frames_unheard.saturating_add(1);
            if self.frames_unheard >= FRAMES_UNHEARD_MAX {
                self.gives_from = self.invoker.env.clock.monotonic() + GATHER;
            }
        }
        Ok(())
    }

    /// Takes a chunk, or what was left of one, and everything that is there behind it, and reports it: as one event, or as several
    /// where it is much. Pauses while too many values of state are on their way.
    async fn chunks(&mut self, stream: &mut Stream, decoder: &mut FrameDecoder, first: Option<Bytes>) -> Result<Next, Failure> {
        let mut chunk = first;
        loop {
            if let Some(chunk) = chunk.take() {
                self.invoker.metrics.received_bytes.increment(chunk.len() as u64);
                if let Some(part) = &mut self.held.part {
                    part.pace.came(chunk.len());
                }
                decoder.push(chunk);
            }
            while let Some(frame) = decoder.next_frame().map_err(|e| Failure::of_peer(500, format!("{e} (RT0003)")))? {
                self.part_is_whole = self.held.part.is_some();
                if let Some(end) = self.message(frame)? {
                    // Peers go on reading the request until it ends.
                    stream.half_close();
                    return Ok(match end {
                        End::Event(end) => self.report(Some(end)).await,
                        End::Failed(failure) => self.fail(failure).await,
                    });
                }
                if self.journal.values_awaited >= self.values_awaited_max() {
                    self.is_paused = true;
                    return Ok(self.report(None).await);
                }
                if (self.item_bytes >= EVENT_BYTES || self.items.len() >= ITEMS_MAX || self.reads >= READS_MAX)
                    && let Next::Aborted = self.report(None).await
                {
                    return Ok(Next::Aborted);
                }
            }
            let part_bytes = decoder.part_bytes();
            if part_bytes > PART_BYTES
                // Apart, so that the task of an attempt that only waits is small.
                && let Next::Aborted = Box::pin(self.grow_part(part_bytes, decoder.frame_bytes())).await
            {
                return Ok(Next::Aborted);
            }
            if self.items.len() < ITEMS_MAX {
                let available = poll_fn(|cx| match stream.exchange.poll_event(cx) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    Poll::Pending => Poll::Ready(None),
                });
                match available.await {
                    Some(ExchangeEvent::Chunk(next)) => {
                        chunk = Some(next);
                        continue;
                    }
                    Some(ExchangeEvent::Head(..) | ExchangeEvent::Writable) | None => {}
                    Some(ExchangeEvent::End) => return Err(ended_early()),
                    Some(ExchangeEvent::Error(error)) => return Err(Failure::of_transport(&error)),
                }
            }
            return Ok(if self.items.is_empty() { Next::More } else { self.report(None).await });
        }
    }

    /// Waits until so much of a message has room. What came before it is reported first: nobody waits for room who has some. Where the
    /// `whole` of it is larger than that room, memory is to have room for it before it takes any, and again where it
    /// has to wait for more.
    async fn grow_part(&mut self, bytes: usize, whole: usize) -> Next {
        if self.part_is_whole
            && let Next::Aborted = self.report(None).await
        {
            return Next::Aborted;
        }
        let clock = self.invoker.env.clock.clone();
        let (deployment, whole) = (self.pin.deployment, whole as u64);
        let is_let_in = self.held.part.is_some();
        let mut ticket = self.invoker.parts.is_beyond(whole).then(|| self.invoker.output.memory_ticket(deployment, whole));
        let has_memory = |ticket: &Option<Box<dyn MemoryTicket>>| ticket.as_ref().is_none_or(|ticket| ticket.has_memory());
        let mut part = self.held.part.take().unwrap_or_else(|| self.invoker.parts.part(clock.monotonic()));
        if !is_let_in && !has_memory(&ticket) || !self.invoker.parts.try_grow(&mut part, bytes) {
            if !self.items.is_empty()
                && let Next::Aborted = self.report(None).await
            {
                return Next::Aborted;
            }
            let invoker = self.invoker.clone();
            let grow = async move {
                loop {
                    if let Some(ticket) = &mut ticket {
                        ticket.memory().await;
                        if invoker.parts.try_grow(&mut part, bytes) {
                            return part;
                        }
                        ticket.step_aside();
                    }
                    let waiting = PartWaiting::new(invoker.clone(), deployment);
                    let more = invoker.parts.more(deployment, &part, bytes).await;
                    drop(waiting);
                    // What others brought meanwhile may have filled it.
                    if has_memory(&ticket) {
                        part.add(more);
                        return part;
                    }
                }
            };
            let Some(grown) = self.until_aborted(Box::pin(grow)).await else { return Next::Aborted };
            part = grown;
            // The handler could not go on meanwhile.
            part.pace = PartPace::from(clock.monotonic());
        }
        self.held.part = Some(part);
        Next::More
    }

    /// Takes one message; gives the attempt's end back where it is one.
    fn message(&mut self, frame: protocol::Frame) -> Result<Option<End>, Failure> {
        let message =
            protocol::decode(frame).map_err(|violation| Failure::of_peer(500, format!("{violation} ({})", violation.code())))?;
        if self.unreplayed.is_some() && !matches!(message, Message::Failed(_)) {
            // Whether it fits can be told only once all that it has to fit to is known here. No SDK says anything before it has all that it
            // was told of.
            return Err(Failure::of_peer(500, "the handler went on before it had its journal (RT0012)".to_owned()));
        }
        match message {
            Message::Command { ty, raw, command } => {
                let action = match command {
                    Command::Act(action) => {
                        self.check(ty, &raw, &action)?;
                        action
                    }
                    Command::Call(call) => self.resolve(ty, &raw, &call)?,
                };
                self.check_journal(ty, &raw)?;
                if let Err(id) = self.completions.command(&action) {
                    return Err(self.precondition(ty, &raw, format!("completion id {id} is used by two commands (RT0012)")));
                }
                self.journal.command(&action, raw.len());
                self.reads += u32::from(matches!(action, Action::GetState { .. } | Action::GetStateKeys { .. }));
                if let Action::SetState { value: (_, len), .. } = &action {
                    self.start.read_bytes_max = self.start.read_bytes_max.max(u64::from(*len));
                }
                self.has_output |= ty == entry_type::OUTPUT;
                // The tables hold a call's parameter twice: in this journal, and as the input of the called invocation.
                let input_bytes = match &action {
                    Action::Call { submission, parameter: (_, bytes), .. } => submission.input.len() + *bytes as usize,
                    _ => 0,
                };
                self.item_bytes += FIXED_BYTES + raw.len() + input_bytes;
                self.items.push(Item::Command { ty, raw, action });
                Ok(None)
            }
            Message::RunProposed { completion, outcome } => {
                let bytes = match &outcome {
                    Outcome::Success(value) => value.len(),
                    Outcome::Failure(failure) => {
                        failure.message.len() + PAIR_BYTES * failure.metadata.len() + metadata_bytes(failure)
                    }
                };
                self.item_bytes += FIXED_BYTES + bytes;
                self.completions.proposed(completion);
                self.items.push(Item::RunProposed { completion, outcome });
                Ok(None)
            }
            Message::Suspended { mut awaiting } => {
                awaiting.sort_unstable();
                awaiting.dedup();
                if let Err(why) = self.completions.can_wake(&awaiting) {
                    return Err(Failure::of_peer(500, why.to_string()));
                }
                self.item_bytes += awaiting.iter().map(awaited_bytes).sum::<usize>();
                Ok(Some(End::Event(AttemptEnd::Suspended { awaiting, last_delivered: self.last_delivered })))
            }
            Message::Ended if self.has_output => Ok(Some(End::Event(AttemptEnd::Completed))),
            Message::Ended => Err(Failure::of_peer(500, "the handler ended without an output (RT0012)".to_owned())),
            Message::Failed(error) => Ok(Some(End::Failed(Failure {
                code: error.code,
                message: error.message,
                stacktrace: error.stacktrace,
                command: error.command,
                wish: Wish { behavior: error.behavior, delay: error.next_retry_delay_ms.map_or(Delay::Policy, Delay::Handler) },
                by_handler: true,
                is_read_on: true,
            }))),
        }
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
        let key_bytes = match action {
            Action::SetState { key, .. } | Action::ClearState { key } | Action::GetState { key, .. } => key.len(),
            Action::Keep if ty == entry_type::GET_EAGER_STATE => protocol::state_key_bytes(raw),
            _ => 0,
        };
        if key_bytes > KEY_BYTES_MAX {
            let message = format!("a state key of {key_bytes} bytes is longer than the {KEY_BYTES_MAX} it may have (RT0017)");
            return Err(self.precondition(ty, raw, message));
        }
        if is_allowed {
            return Ok(());
        }
        Err(self.precondition(
            ty,
            raw,
            format!(
                "{} may not do this with state: services have none, and shared handlers only read it (RT0017)",
                self.start.target
            ),
        ))
    }

    /// Whether the journal may grow. One that grows without end would be replayed whole at each attempt.
    fn check_journal(&self, ty: u16, raw: &Bytes) -> Result<(), Failure> {
        let JournalSize { entries, bytes, .. } = self.journal;
        let (entries_max, bytes_max) = (self.invoker.settings.journal_entries_max, self.invoker.settings.journal_bytes_max);
        let (what, limit) = if ty == entry_type::OUTPUT {
            return Ok(()); // nothing follows it
        } else if entries >= entries_max {
            (format!("{entries} entries"), "worker.invoker.journal-entries-limit")
        } else if bytes.saturating_add(raw.len() as u64) > bytes_max {
            (format!("{bytes} bytes"), "worker.invoker.journal-size-limit")
        } else {
            return Ok(());
        };
        let message = format!(
            "the journal has {what} and may not grow: let the handler do less in one invocation, and kill this one; or raise \
             {limit}, start again, and resume it (SF3001)"
        );
        Err(Failure { wish: Wish { behavior: Behavior::Pause, ..Wish::default() }, ..self.precondition(ty, raw, message) })
    }

    fn precondition(&self, ty: u16, raw: &Bytes, message: String) -> Failure {
        let index = self.start.commands + self.commands_taken();
        Failure { command: Some((index, ty, protocol::command_name(raw))), ..Failure::of_peer(500, message) }
    }

    /// Commands that are not reported yet.
    fn commands_taken(&self) -> u32 {
        self.items.iter().filter(|item| matches!(item, Item::Command { .. })).count() as u32
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
        let new = NewSubmission {
            service,
            handler,
            key: &call.key,
            headers: &call.headers,
            body: Bytes::new(),
            idempotency_key: call.idempotency_key.as_deref(),
            execute_at: call.invoke_at.filter(|at| *at > now),
            origin: Origin::Invocation(self.start.id),
        };
        let settings = &self.invoker.settings;
        let mut submission =
            build_submission(&catalog, &settings.defaults, self.invoker.env.ids.random_u128(), new).map_err(|error| {
                let hint = match error {
                    SubmissionError::UnknownService | SubmissionError::UnknownHandler => {
                        "; register a deployment that serves it (RT0018)"
                    }
                    SubmissionError::KeyTooLong(_) | SubmissionError::IdempotencyKeyTooLong(_) => " (RT0017)",
                };
                refuse(format!("cannot call {service}/{handler}: {error}{hint}"))
            })?;
        // The parameter stands in the command, and not in the event once more.
        submission.input = protocol::encode_input_head(&call.headers, call.parameter.len());
        Ok(Action::Call {
            parameter: protocol::place(raw, &call.parameter),
            partition: submission.id.partition(settings.partitions),
            submission: Box::new(submission),
            id_completion: call.id_completion,
            result: call.result,
        })
    }

    /// Reports what was taken, and the attempt's end where it is one. Waits for room while too much is not applied yet: reading
    /// stops then, and the handler with it.
    async fn report(&mut self, end: Option<AttemptEnd>) -> Next {
        let is_over = end.is_some();
        let Some(room) = self.room(0).await else { return Next::Aborted };
        self.report_in(room, end);
        if is_over { Next::Over } else { Next::More }
    }

    /// Reports what came before the failure, and the failure with its verdict.
    async fn fail(&mut self, failure: Failure) -> Next {
        let failure = failure.cut();
        let Some(room) = self.room(failure.bytes()).await else { return Next::Aborted };
        let end = self.failed(failure);
        self.report_in(room, Some(end));
        Next::Over
    }

    /// Room for the items and so many bytes more, and for what they ask for. None: aborted while waiting for it.
    async fn room(&mut self, more: usize) -> Option<ReportRoom> {
        let cost = RECORD_COST as usize + self.items.len() * ITEM_COST + self.item_bytes + more;
        let permits = self.invoker.report_permits(cost);
        if self.invoker.output.has_memory_for(self.pin.deployment, self.report_bytes(more))
            && let Ok(reads) = self.try_read_room()
            && let Ok(permit) = self.invoker.reports.clone().try_acquire_many_owned(permits)
        {
            self.asks_for(reads);
            return Some(ReportRoom { room: Room::new(permit), _ticket: None });
        }
        // Apart, so that the task of an attempt that only waits is small.
        Box::pin(self.wait_for_room(permits, self.report_bytes(more))).await
    }

    /// Payloads of the items, and so many bytes more.
    fn report_bytes(&self, more: usize) -> u64 {
        self.item_bytes.saturating_add(more) as u64
    }

    /// Who waits for memory holds no room of reads or reports meanwhile: others may have memory (rule O8). Only a message that is whole keeps its
    /// part until it is reported.
    async fn wait_for_room(&mut self, permits: u32, bytes: u64) -> Option<ReportRoom> {
        let (invoker, deployment) = (self.invoker.clone(), self.pin.deployment);
        let mut ticket = invoker.output.memory_ticket(deployment, bytes);
        loop {
            if !ticket.has_memory() {
                let wait = async move {
                    ticket.memory().await;
                    ticket
                };
                ticket = self.until_aborted(Box::pin(wait)).await?;
            }
            let reads = match self.try_read_room() {
                Ok(reads) => reads,
                Err(permits) => {
                    let invoker = invoker.clone();
                    let take = async move { invoker.read_lines.take(deployment, &invoker.reads, permits).await };
                    Some(self.until_aborted(Box::pin(take)).await?)
                }
            };
            let permit = self.until_aborted(Box::pin(invoker.clone().report_room(deployment, permits))).await?;
            // What others reported before may lie in the tables by now, and fill them.
            if ticket.has_memory() {
                self.asks_for(reads);
                return Some(ReportRoom { room: Room::new(permit), _ticket: Some(ticket) });
            }
        }
    }

    /// Room for all reads of state among the items: none of them is answered before it is reported. **Errors**: so many permits are not there.
    fn try_read_room(&self) -> Result<Option<OwnedSemaphorePermit>, u32> {
        if self.reads == 0 {
            return Ok(None);
        }
        let permits = self.invoker.read_permits(self.start.read_bytes_max.saturating_mul(self.reads.into()));
        self.invoker.reads.clone().try_acquire_many_owned(permits).map(Some).map_err(|_| permits)
    }

    /// The reads are about to be reported: each holds its part of the room until its answer comes.
    fn asks_for(&mut self, reads: Option<OwnedSemaphorePermit>) {
        let count = std::mem::take(&mut self.reads);
        let Some(mut all) = reads else { return };
        let each = all.num_permits() / count as usize;
        for _ in 1..count {
            self.start.live.reads(all.split(each).expect("it is a part of them"));
        }
        self.start.live.reads(all);
    }

    fn report_in(&mut self, room: ReportRoom, end: Option<AttemptEnd>) {
        let metrics = &self.invoker.metrics;
        match &end {
            None => {}
            Some(AttemptEnd::Completed) => metrics.completed.increment(1),
            Some(AttemptEnd::Suspended { .. }) => metrics.suspended.increment(1),
            Some(AttemptEnd::Failed { .. }) => metrics.failed.increment(1),
        }
        self.has_ended = end.is_some();
        let first_command = self.start.commands;
        self.start.commands += self.commands_taken();
        self.item_bytes = 0;
        if std::mem::take(&mut self.part_is_whole) {
            // From here on it counts as a report.
            self.held.part = None;
        }
        let items = std::mem::take(&mut self.items);
        let (id, attempt) = (self.start.id, self.start.attempt);
        let progress = AttemptProgress { id, attempt, first_command, pin: self.pin, items, end };
        self.invoker.output.progressed(self.start.partition, progress, room.room);
    }

    /// The end that a failure is, said in the log where somebody should know.
    fn failed(&self, failure: Failure) -> AttemptEnd {
        let now = self.now();
        let chance = self.invoker.env.ids.random_u64();
        let verdict = retry::verdict(&self.options.retry, self.start.attempts_counted, failure.wish, now, chance);
        // Neither count sees all failures: the policy's leaves out those with a delay of the handler's, the other those of ours.
        let attempt = self.start.attempts_counted.max(self.start.retries_since_entry).saturating_add(1);
        if (attempt >= WARN_FROM_ATTEMPT || !matches!(verdict, Verdict::Retry { .. }))
            && let Some(left_out) = self.invoker.may_warn()
        {
            // A key is the caller's, and must not write lines of its own.
            let target = self.start.target.to_string().escape_debug().to_string();
            let (invocation, error) = (&*self.id_text, &failure.message);
            let left_out = (left_out > 0).then_some(left_out);
            match &verdict {
                Verdict::Retry { at, .. } => {
                    let next_ms = at.0.saturating_sub(now.0);
                    tracing::warn!(
                        invocation,
                        target,
                        attempt,
                        error,
                        next_attempt_in_ms = next_ms,
                        left_out,
                        "invocation keeps failing"
                    );
                }
                Verdict::Pause => tracing::warn!(
                    invocation,
                    target,
                    attempt,
                    error,
                    left_out,
                    "invocation paused; it waits for an operator to resume or kill it"
                ),
                Verdict::Fail => {
                    tracing::warn!(invocation, target, attempt, error, left_out, "invocation failed for good");
                }
            }
        }
        let Failure { code, message, stacktrace, command, by_handler, .. } = failure;
        let error = AttemptError { code, message, at: now, stacktrace, command };
        AttemptEnd::Failed { error, verdict, by_handler }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let metrics = &self.invoker.metrics;
        metrics.duration.record(self.invoker.env.clock.monotonic().saturating_sub(self.began).as_secs_f64());
        if self.has_ended {
            return;
        }
        if std::thread::panicking() {
            // Our mistake. Without an end the invocation would count as running until the next start.
            tracing::error!(invocation = &*self.id_text, "an attempt's task panicked");
            self.items.clear();
            let end = self.failed(Failure::of_server("the server failed while it ran the attempt; see its log".to_owned()));
            self.report_in(ReportRoom { room: Room::beyond(), _ticket: None }, Some(end));
        } else {
            metrics.aborted.increment(1);
        }
    }
}

impl JournalSize {
    fn add(&mut self, entries: u32, bytes: u64) {
        self.entries = self.entries.saturating_add(entries);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Notifications whose entries were counted with their commands.
    fn arrived(&mut self, bytes: u64, values: u32) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.values_awaited = self.values_awaited.saturating_sub(values);
    }

    /// A command, and what will answer it: each completion becomes an entry, too.
    fn command(&mut self, action: &Action, bytes: usize) {
        let answers = match action {
            Action::GetState { .. } | Action::GetStateKeys { .. } => {
                self.values_awaited += 1;
                1
            }
            Action::Sleep { .. } | Action::Run { .. } => 1,
            Action::Call { result, .. } => 1 + u32::from(result.is_some()),
            _ => 0,
        };
        self.add(1 + answers, bytes as u64);
    }
}

/// How long a handler may be silent.
struct Patience<'a> {
    clock: &'a Arc<dyn surefoot_env::Clock>,
    inactivity: Duration,
    abort: Duration,
    last_activity: Duration,
    /// From its last word on, once it has been asked to suspend.
    closed: Option<Duration>,
}

struct Alarm {
    due: Duration,
    sleep: BoxFuture,
}

impl<'a> Patience<'a> {
    fn new(options: &ResolvedOptions, clock: &'a Arc<dyn surefoot_env::Clock>) -> Self {
        let ms = Duration::from_millis;
        let (inactivity, abort) = (ms(options.inactivity_timeout_ms), ms(options.abort_timeout_ms));
        Self { inactivity, abort, last_activity: clock.monotonic(), closed: None, clock }
    }

    fn active(&mut self) {
        self.last_activity = self.clock.monotonic();
    }

    fn closed(&mut self, limit: Duration) {
        self.closed = Some(limit);
    }

    /// When something is to be done about its silence, if it lasts.
    fn due(&self, silence_max: Duration) -> Duration {
        self.last_activity.saturating_add(self.closed.unwrap_or(self.inactivity).min(silence_max))
    }

    fn alarm(&self, due: Duration) -> Alarm {
        Alarm { due, sleep: self.clock.sleep(due.saturating_sub(self.clock.monotonic())) }
    }

    fn silence(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.last_activity)
    }

    fn is_over(&self) -> bool {
        self.silence() >= self.closed.unwrap_or(self.inactivity)
    }

    fn is_idle(&self) -> bool {
        self.silence() >= IDLE
    }
}

/// What a report has been let in with.
struct ReportRoom {
    room: Room,
    /// Of one that waited for memory, until it is appended.
    _ticket: Option<Box<dyn MemoryTicket>>,
}

enum End {
    Event(AttemptEnd),
    Failed(Failure),
}

fn ended_early() -> Failure {
    Failure { is_read_on: false, ..Failure::of_peer(500, "the handler's response ended before the invocation did".to_owned()) }
}

fn metadata_bytes(failure: &surefoot_model::Failure) -> usize {
    failure.metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// What an awaited id takes in an event and in the invocation's row.
fn awaited_bytes(id: &NotificationId) -> usize {
    let name = if let NotificationId::NamedSignal(name) = id { name.len() } else { 0 };
    size_of::<NotificationId>() + name
}

/// How many values, from the first on, one message of so many bytes holds.
fn values_that_fit(state: &EagerState, bytes_max: usize) -> usize {
    /// Tags and lengths of one value.
    const AROUND: usize = 16;
    let mut bytes = 0;
    let fits = |(name, value): &&(surefoot_model::Text, Bytes)| {
        bytes += AROUND + name.len() + value.len();
        bytes <= bytes_max
    };
    state.entries.iter().take_while(fits).count()
}

/// The response's head, if an attempt can go on after it (protocol reference 3.2).
fn check_head(status: StatusCode, headers: &HeaderMap, version: u8, now: Timestamp) -> Result<(), Failure> {
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
            let delay = headers.get(RETRY_AFTER).and_then(|value| retry_after_ms(value.to_str().ok()?, now));
            let wish = Wish { behavior: Behavior::Retry, delay: delay.map_or(Delay::Policy, Delay::Peer) };
            Failure { wish, ..failure(format!("the deployment is overloaded: {status} (RT0023)")) }
        }
        StatusCode::PAYLOAD_TOO_LARGE => failure(format!("a proxy refused the size of the request: {status} (RT0019)")),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            failure(format!("the deployment cannot be reached: {status} (RT0010)"))
        }
        StatusCode::NOT_FOUND => failure(format!(
            "the deployment answers {status}: it does not serve this handler any more; bring the handler back, or register the deployment \
             again with \"force\": true (SF3005)"
        )),
        _ => failure(format!("unexpected status {status} from the deployment (RT0012)")),
    })
}

/// Milliseconds from now, of a number of seconds or an HTTP date.
fn retry_after_ms(value: &str, now: Timestamp) -> Option<u64> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(seconds.saturating_mul(1_000));
    }
    let due = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(u64::try_from(due.as_millis()).unwrap_or(u64::MAX).saturating_sub(now.0))
}

/// Reads what is left of a response whose last message has come, up to [`DRAIN_BYTES`].
async fn drain(mut exchange: Box<dyn Exchange>, clock: &Arc<dyn surefoot_env::Clock>) {
    // As a rule the end came together with the last message, and nothing is waited for.
    let mut over = None;
    let mut room = DRAIN_BYTES;
    loop {
        let event = poll_fn(|cx| match exchange.poll_event(cx) {
            Poll::Ready(event) => Poll::Ready(Some(event)),
            Poll::Pending => over.get_or_insert_with(|| clock.sleep(DRAIN)).as_mut().poll(cx).map(|()| None),
        });
        match event.await {
            Some(ExchangeEvent::Head(..) | ExchangeEvent::Writable) => {}
            Some(ExchangeEvent::Chunk(chunk)) => match room.checked_sub(chunk.len()) {
                Some(left) => room = left,
                None => return,
            },
            Some(ExchangeEvent::End | ExchangeEvent::Error(_)) | None => return,
        }
    }
}
