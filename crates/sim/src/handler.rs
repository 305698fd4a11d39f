//! Simulated handlers: a small deterministic SDK, and the services that scenarios call.
//!
//! Owns: replay as the published SDKs do it (commands are compared byte for byte, a difference is a finding), failures from a
//! seed, a ledger of what ran, and when what was due came. Does not own: how bytes reach the server (`transport`).

use crate::executor::Executor;
use crate::transport::Fault;
use crate::wire::{self, Frame, Frames, Message};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_env::sim::Rng;
use surefoot_model::DeploymentId;
use tokio::sync::mpsc;

/// What was due so long ago is late, where the wall clock has not jumped meanwhile. Longer than the longest delay between attempts
/// and than anything that goes wrong in a world, shorter than a jump.
const LATE: Duration = Duration::from_secs(90);

/// What all handlers of a world share, outside any node's life.
#[derive(Clone)]
pub(crate) struct Handlers(Arc<Mutex<Shared>>);

struct Shared {
    rng: Rng,
    /// Chance per point of failure, in thousandths.
    fail_per_mille: u64,
    /// What the next stream has, whatever the chance.
    next_fault: Option<Fault>,
    /// For each invocation, the highest step whose closure ran after its predecessor was recorded.
    ledger: BTreeMap<String, u32>,
    /// When each sleep was first asked for, by invocation and completion.
    sleeps: BTreeMap<(String, u32), Duration>,
    /// When the last attempt of an invocation failed, by the handler's own word.
    failed: BTreeMap<String, Duration>,
    /// Where an invocation began.
    begun: BTreeMap<String, DeploymentId>,
    attempts: u64,
    /// Streams that are served right now.
    serving: u64,
    findings: Vec<String>,
}

/// Why a handler's attempt is over before its end.
enum Stop {
    /// The request is at its end and the handler waits for this.
    Suspend(u32),
    Fail(&'static str),
    /// The connection is gone.
    Cut,
}

impl Handlers {
    pub(crate) fn new(seed: u64, fail_per_mille: u64) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            rng: Rng::new(seed),
            fail_per_mille,
            next_fault: None,
            ledger: BTreeMap::new(),
            sleeps: BTreeMap::new(),
            failed: BTreeMap::new(),
            begun: BTreeMap::new(),
            attempts: 0,
            serving: 0,
            findings: Vec::new(),
        })))
    }

    /// Handlers fail no more: what is left can end.
    pub(crate) fn calm(&self) {
        self.lock().fail_per_mille = 0;
    }

    /// What a handler saw that must not be.
    pub(crate) fn findings(&self) -> Vec<String> {
        self.lock().findings.clone()
    }

    pub(crate) fn attempts(&self) -> u64 {
        self.lock().attempts
    }

    /// Streams that are served right now.
    pub(crate) fn serving(&self) -> u64 {
        self.lock().serving
    }

    /// What goes wrong with the next stream, if anything does.
    pub(crate) fn fault(&self) -> Option<Fault> {
        let shared = &mut *self.lock();
        let is_due = shared.rng.below(1_000) < shared.fail_per_mille * 3;
        shared.next_fault.take().or_else(|| is_due.then(|| Fault::any(&mut shared.rng)))
    }

    /// The next stream has this.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.lock().next_fault = Some(fault);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finding(&self, what: String) {
        self.lock().findings.push(what);
    }

    /// Serves one attempt: reads the request, writes the response, and ends.
    pub(crate) async fn serve(
        self,
        executor: Executor,
        deployment: DeploymentId,
        service: String,
        handler: String,
        request: mpsc::Receiver<Bytes>,
        response: mpsc::Sender<Bytes>,
    ) {
        {
            let shared = &mut *self.lock();
            (shared.attempts, shared.serving) = (shared.attempts + 1, shared.serving + 1);
        }
        let mut context = Context {
            handlers: self.clone(),
            executor,
            deployment,
            request,
            response,
            frames: Frames::default(),
            at_end: false,
            id: String::new(),
            retries: 0,
            partial: false,
            state: BTreeMap::new(),
            commands: VecDeque::new(),
            notifications: BTreeMap::new(),
            next_completion: 1,
            step: 0,
        };
        let outcome = context.run(&service, &handler).await;
        let last = match outcome {
            Ok(()) => Message::default().frame(wire::END),
            Err(Stop::Suspend(completion)) => {
                Message::default().bytes(1, &[completion as u8]).bytes(2, &[1]).frame(wire::SUSPENSION)
            }
            Err(Stop::Fail(why)) => {
                let now = context.executor.now();
                self.lock().failed.insert(context.id.clone(), now);
                Message::default().number(1, 500).bytes(2, why.as_bytes()).frame(wire::ERROR)
            }
            Err(Stop::Cut) => {
                self.lock().serving -= 1;
                return;
            }
        };
        // A server that is gone does not listen.
        let _ = context.response.send(last).await;
        // The request is read to its end before the response ends, as the SDKs do.
        while context.request.recv().await.is_some() {}
        self.lock().serving -= 1;
    }
}

struct Context {
    handlers: Handlers,
    executor: Executor,
    deployment: DeploymentId,
    request: mpsc::Receiver<Bytes>,
    response: mpsc::Sender<Bytes>,
    frames: Frames,
    at_end: bool,
    id: String,
    /// Failed attempts since the last entry, as the server counts them.
    retries: u64,
    partial: bool,
    state: BTreeMap<Bytes, Bytes>,
    /// Commands of the replay that the handler has not come to yet.
    commands: VecDeque<Frame>,
    /// Results by completion id.
    notifications: BTreeMap<u32, Bytes>,
    next_completion: u32,
    step: u32,
}

impl Context {
    async fn run(&mut self, service: &str, handler: &str) -> Result<(), Stop> {
        let input = self.start().await?;
        let value = wire::bytes(&input, 14).and_then(|v| wire::bytes(&v, 1)).unwrap_or_default();
        let input = String::from_utf8_lossy(&value).into_owned();
        let result = match (service, handler) {
            ("Echo", "echo") => {
                self.step("echo").await?;
                input
            }
            ("Counter", "add") => self.add(&input).await?,
            ("Sink", "add") => {
                self.append("ops", &input).await?;
                "kept".to_owned()
            }
            ("Ledger" | "Mirror", "add") => self.note(&input).await?,
            ("Relay", "relay") => {
                self.step("relay").await?;
                let number: u64 = input.parse().unwrap_or(0);
                self.send("Sink", &format!("r{}", number % 2), "add", &input).await?;
                input
            }
            ("Counter" | "Sink" | "Ledger" | "Mirror", "get") => self.get("ops").await?,
            ("Probe", "nap") => {
                let (id, due) = self.begin_sleep(Duration::from_millis(input.parse().unwrap_or(0))).await?;
                self.end_sleep(id, due).await?;
                input
            }
            ("Probe", "retry") if self.retries == 0 => return Err(Stop::Fail("the first attempt fails")),
            ("Probe", "retry") => input,
            ("Probe", "chain") => match input.parse().unwrap_or(0_u64) {
                0 => input,
                depth => self.call("Probe", "", "chain", &(depth - 1).to_string()).await?,
            },
            _ => panic!("no handler {service}/{handler}"),
        };
        self.write(0x0401, Message::default().value(14, result.as_bytes())).await?;
        Ok(())
    }

    /// The busiest handler: every kind of command, by the digits of the operation's number.
    async fn add(&mut self, input: &str) -> Result<String, Stop> {
        let op: u64 = input.parse().unwrap_or(0);
        let first = self.step("first").await?;
        let nap = Duration::from_millis(50 + op % 7 * 900);
        self.nap_and_call(op.is_multiple_of(3).then_some(nap), op.is_multiple_of(2), input).await?;
        let before = self.get("ops").await?;
        if op.is_multiple_of(5) {
            self.send("Sink", &format!("s{}", op % 3), "add", input).await?;
        }
        let second = self.step("second").await?;
        if first == second {
            self.handlers.finding(format!("op {op}: two steps with one result"));
        }
        let after = if before.is_empty() { input.to_owned() } else { format!("{before},{input}") };
        self.set("ops", &after).await?;
        Ok(after)
    }

    /// Sleeps and calls at the same time, where it is to do both.
    async fn nap_and_call(&mut self, nap: Option<Duration>, calls: bool, input: &str) -> Result<(), Stop> {
        let nap = match nap {
            Some(nap) => Some(self.begin_sleep(nap).await?),
            None => None,
        };
        if calls {
            let answer = self.call("Echo", "", "echo", input).await?;
            if answer != input {
                self.handlers.finding(format!("{}: {input} was echoed as '{answer}'", self.id));
            }
        }
        match nap {
            Some((id, due)) => self.end_sleep(id, due).await,
            None => Ok(()),
        }
    }

    /// What a Kafka record leads to: its number is kept in the order of arrival, after work that differs from one to the next.
    async fn note(&mut self, input: &str) -> Result<String, Stop> {
        let number: u64 = input.parse().unwrap_or(0);
        if number.is_multiple_of(2) {
            self.step("note").await?;
        }
        let nap = Duration::from_millis(20 + number % 4 * 40);
        self.nap_and_call(number.is_multiple_of(3).then_some(nap), number % 5 < 2, input).await?;
        self.append("ops", input).await?;
        Ok(String::new())
    }

    async fn append(&mut self, name: &str, what: &str) -> Result<(), Stop> {
        let before = self.get(name).await?;
        let after = if before.is_empty() { what.to_owned() } else { format!("{before},{what}") };
        self.set(name, &after).await
    }

    // The SDK.

    async fn start(&mut self) -> Result<Bytes, Stop> {
        let start = self.frame().await?;
        if start.ty != wire::START {
            self.handlers.finding(format!("the first frame is {:#06x}", start.ty));
        }
        let text = |tag| wire::bytes(&start.payload, tag).map(|b| String::from_utf8_lossy(&b).into_owned());
        self.id = text(2).unwrap_or_default();
        self.partial = wire::number(&start.payload, 5).unwrap_or(0) == 1;
        for entry in wire::all(&start.payload, 4) {
            self.state.insert(wire::bytes(&entry, 1).unwrap_or_default(), wire::bytes(&entry, 2).unwrap_or_default());
        }
        let known = wire::number(&start.payload, 3).unwrap_or(0);
        self.retries = wire::number(&start.payload, 7).unwrap_or(0);
        self.started(known);
        for _ in 0..known {
            let frame = self.frame().await?;
            if frame.ty < 0x8000 { self.commands.push_back(frame) } else { self.notified(&frame.payload) }
        }
        match self.commands.pop_front() {
            Some(input) if input.ty == 0x0400 => Ok(input.payload),
            other => {
                self.handlers.finding(format!("{}: the journal begins with {other:?}", self.id));
                Err(Stop::Cut)
            }
        }
    }

    /// Looks at when and where the attempt starts.
    fn started(&self, known: u64) {
        let shared = &mut *self.handlers.lock();
        if let Some(failed) = shared.failed.remove(&self.id) {
            let waited = self.executor.now() - failed;
            if waited > LATE && self.executor.last_jump() < failed {
                shared.findings.push(format!("{}: tried again {waited:?} after it failed (rule T1)", self.id));
            }
        }
        let begun = if known <= 1 { None } else { shared.begun.get(&self.id).copied() };
        if begun.is_some_and(|begun| begun != self.deployment) {
            let finding = format!("{}: began at {begun:?} and goes on at {} (rule M1)", self.id, self.deployment);
            shared.findings.push(finding);
        }
        if begun.is_none() {
            shared.begun.insert(self.id.clone(), self.deployment);
        }
    }

    fn notified(&mut self, payload: &Bytes) {
        if let Some(completion) = wire::number(payload, 1) {
            let before = self.notifications.insert(completion as u32, payload.clone());
            if before.is_some() {
                self.handlers.finding(format!("{}: completion {completion} came twice", self.id));
            }
        }
    }

    /// The next frame; an error once the request is at its end.
    async fn frame(&mut self) -> Result<Frame, Stop> {
        loop {
            if let Some(frame) = self.frames.next() {
                return Ok(frame);
            }
            match self.request.recv().await {
                Some(chunk) => self.frames.push(&chunk),
                None => {
                    self.at_end = true;
                    return Err(Stop::Cut);
                }
            }
        }
    }

    /// A replayed command, or the same one sent. A replay that differs is what no SDK forgives.
    async fn write(&mut self, ty: u16, message: Message) -> Result<Frame, Stop> {
        let bytes = message.frame(ty);
        if let Some(known) = self.commands.pop_front() {
            if known.ty != ty || (ty != 0x040C && known.payload != bytes[8..]) {
                self.handlers.finding(format!("{}: replay has {:#06x} where the handler writes {ty:#06x}", self.id, known.ty));
            }
            return Ok(known);
        }
        self.stumble().await?;
        let payload = bytes.slice(8..);
        self.response.send(bytes).await.map_err(|_| Stop::Cut)?;
        Ok(Frame { ty, payload })
    }

    /// Takes a while, and fails at times.
    async fn stumble(&mut self) -> Result<(), Stop> {
        let (fails, how, pause) = {
            let shared = &mut *self.handlers.lock();
            (shared.rng.below(1_000) < shared.fail_per_mille, shared.rng.below(3), shared.rng.below(4))
        };
        if pause == 0 {
            self.executor.sleep(Duration::from_millis(how * 7 + 1)).await;
        }
        match (fails, how) {
            (false, _) => Ok(()),
            (true, 0) => Err(Stop::Cut),
            (true, _) => Err(Stop::Fail("out of luck")),
        }
    }

    /// Waits for a completion; suspends when it cannot come any more.
    async fn completion(&mut self, id: u32) -> Result<Bytes, Stop> {
        if !self.notifications.contains_key(&id) {
            self.stumble().await?;
        }
        loop {
            if let Some(result) = self.notifications.get(&id) {
                return Ok(result.clone());
            }
            match self.frame().await {
                Ok(frame) if frame.ty >= 0x8000 => self.notified(&frame.payload),
                Ok(frame) => self.handlers.finding(format!("{}: frame {:#06x} after the replay", self.id, frame.ty)),
                Err(_) if self.at_end => return Err(Stop::Suspend(id)),
                Err(stop) => return Err(stop),
            }
        }
    }

    fn next_completion(&mut self) -> u32 {
        self.next_completion += 1;
        self.next_completion - 1
    }

    async fn step(&mut self, name: &str) -> Result<Bytes, Stop> {
        let id = self.next_completion();
        self.step += 1;
        self.write(0x0411, Message::default().number(11, u64::from(id)).bytes(12, name.as_bytes())).await?;
        if !self.notifications.contains_key(&id) {
            {
                let shared = &mut *self.handlers.lock();
                let done = shared.ledger.entry(self.id.clone()).or_default();
                if *done > self.step {
                    let finding = format!("{}: step {} ran again after step {done}", self.id, self.step);
                    shared.findings.push(finding);
                }
                *done = self.step;
            }
            self.stumble().await?;
            let value = format!("{}/{name}", self.id);
            let proposal = Message::default().number(1, u64::from(id)).bytes(14, value.as_bytes());
            self.response.send(proposal.frame(wire::PROPOSE_RUN)).await.map_err(|_| Stop::Cut)?;
        }
        let result = self.completion(id).await?;
        Ok(wire::bytes(&result, 5).and_then(|v| wire::bytes(&v, 1)).unwrap_or_default())
    }

    /// The completion to wait for, and when it is due.
    async fn begin_sleep(&mut self, duration: Duration) -> Result<(u32, u64), Stop> {
        let id = self.next_completion();
        let until = self.executor.now_ms() + duration.as_millis() as u64;
        if self.commands.is_empty() {
            let now = self.executor.now();
            self.handlers.lock().sleeps.entry((self.id.clone(), id)).or_insert(now);
        }
        let sent = self.write(0x040C, Message::default().number(1, until).number(11, u64::from(id))).await?;
        Ok((id, wire::number(&sent.payload, 1).unwrap_or(0)))
    }

    async fn end_sleep(&mut self, id: u32, due: u64) -> Result<(), Stop> {
        self.completion(id).await?;
        let Some(began) = self.handlers.lock().sleeps.remove(&(self.id.clone(), id)) else { return Ok(()) };
        // The clock that decides is the one that was read meanwhile, which may stand elsewhere by now.
        let latest = self.executor.latest_ms_since(began);
        if latest < due {
            self.handlers.finding(format!("{}: woken {} ms early (rule T2)", self.id, due - latest));
        }
        let late = Duration::from_millis(self.executor.now_ms().saturating_sub(due));
        if late > LATE && self.executor.last_jump() < began {
            self.handlers.finding(format!("{}: woken {late:?} late (rule T2)", self.id));
        }
        Ok(())
    }

    async fn call(&mut self, service: &str, key: &str, handler: &str, input: &str) -> Result<String, Stop> {
        let (id, result) = (self.next_completion(), self.next_completion());
        let message = Message::default().bytes(1, service.as_bytes()).bytes(2, handler.as_bytes()).bytes(3, input.as_bytes());
        let message = if key.is_empty() { message } else { message.bytes(5, key.as_bytes()) };
        self.write(0x040D, message.number(10, u64::from(id)).number(11, u64::from(result))).await?;
        let answer = self.completion(result).await?;
        let value = wire::bytes(&answer, 5).and_then(|v| wire::bytes(&v, 1)).unwrap_or_default();
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    async fn send(&mut self, service: &str, key: &str, handler: &str, input: &str) -> Result<(), Stop> {
        let id = self.next_completion();
        let message = Message::default().bytes(1, service.as_bytes()).bytes(2, handler.as_bytes()).bytes(3, input.as_bytes());
        self.write(0x040E, message.bytes(6, key.as_bytes()).number(10, u64::from(id))).await?;
        Ok(())
    }

    async fn get(&mut self, name: &str) -> Result<String, Stop> {
        let key = Bytes::copy_from_slice(name.as_bytes());
        let id = self.next_completion();
        let replayed = self.commands.front().map(|f| f.ty);
        let is_lazy = match replayed {
            Some(ty) => ty == 0x0402,
            None => self.partial && !self.state.contains_key(&key),
        };
        let value = if is_lazy {
            self.write(0x0402, Message::default().bytes(1, &key).number(11, u64::from(id))).await?;
            wire::bytes(&self.completion(id).await?, 5)
        } else if let Some(known) = self.commands.pop_front() {
            // The stored result counts, whatever the map says now.
            wire::bytes(&known.payload, 14)
        } else {
            let message = Message::default().bytes(1, &key);
            let message = match self.state.get(&key) {
                Some(value) => message.value(14, value),
                None => message.message(13, Message::default()),
            };
            wire::bytes(&self.write(0x0407, message).await?.payload, 14)
        };
        let content = value.and_then(|v| wire::bytes(&v, 1)).unwrap_or_default();
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    async fn set(&mut self, name: &str, value: &str) -> Result<(), Stop> {
        self.state.insert(Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
        self.write(0x0403, Message::default().bytes(1, name.as_bytes()).value(3, value.as_bytes())).await?;
        Ok(())
    }
}
