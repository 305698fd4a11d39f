//! The end of a run, when everything has arrived: what is left must be quiet, go by the clocks, and be what a recovery makes of it.
//!
//! Checked: nothing runs, waits or is under way any more; a timer fires when a machine that was suspended wakes, and what is asked
//! for after a clock jumped forth and back is not late; callers give their places to callees; a stream that is silent is given up; checkpoint and log give the very rows that the node has, twice over, and
//! after a power failure too. Does not own: what clients, topics and operators are owed.

use crate::transport::Fault;
use crate::world::{PLACE, World, request};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::sim::SimDisk;
use surefoot_ingress::Error;
use surefoot_log::local::{self, Options};
use surefoot_model::{Lsn, Outcome, PartitionId};
use surefoot_partition::{Recovering, Row, Settings};
use surefoot_storage::{Batch, Engine, MemEngine};

/// How long it may take until nothing happens any more, and how often that is looked at: what was due while the clock was ahead waits
/// until it is there again.
const QUIET_MAX: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_secs(1);
/// How long a probe may take that asks for no more than a second: its steps wait for a log and for checkpoints that are slow.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// How long calls within calls may take: far less than the silence after which a handler is asked to suspend if nobody needs its place.
const CHAIN_MAX: Duration = Duration::from_secs(20);
/// How long a call may take whose first stream is silent: until it is given up, and tried again.
const SILENT_MAX: Duration = Duration::from_secs(20);
/// Calls within one call: more than there are places in many worlds.
const CHAIN: &str = "3";
/// How far the clock jumps under a probe.
const JUMP: Duration = Duration::from_secs(100);
/// Calls that are completed just before tables are compared.
const NAMED: usize = 4;
/// Tables that are empty when nothing is left to do.
const EMPTY_AT_REST: [&str; 9] = ["objects", "inbox", "timers", "running", "outbox", "open", "waiters", "chores", "chore_pages"];

/// The rows of each partition, and the last record that they show.
type Tables = BTreeMap<PartitionId, (Lsn, Vec<Row>)>;

/// **Errors**: what must not be.
pub(crate) fn check(world: &World, engine: &MemEngine) -> Result<(), String> {
    quiet(world)?;
    wakes_with_the_machine(world)?;
    forgets_a_jump(world)?;
    lets_callees_run(world)?;
    gives_the_silent_up(world)?;
    quiet(world)?;
    nothing_holds_the_edges(world)?;
    is_what_recovery_makes(world, engine)
}

/// Nothing runs, no timer is set, no message is under way, nobody waits for a key whose owner is done.
fn quiet(world: &World) -> Result<(), String> {
    let deadline = world.executor.now() + QUIET_MAX;
    loop {
        let left = left(world)?;
        if left.is_empty() {
            return Ok(());
        }
        if world.executor.now() > deadline {
            return Err(format!("all has arrived and the node is not quiet: {left}"));
        }
        world.run_for(LOOK);
        world.check()?;
    }
}

/// What is still to do; empty if that is nothing.
pub(crate) fn left(world: &World) -> Result<String, String> {
    let mut left = String::new();
    for (partition, (_, rows)) in tables(world)? {
        let is_open = |row: &&Row| match row.table {
            "invocations" => !row.value.contains("stage: Completed"),
            table => EMPTY_AT_REST.contains(&table),
        };
        for row in rows.iter().filter(is_open) {
            let _ = write!(left, "partition {partition} has {} {} => {}; ", row.table, row.key, row.value);
        }
    }
    match world.serving() {
        0 => {}
        count => left.push_str(&format!("{count} handlers still run")),
    }
    Ok(left)
}

/// All that was taken is written: the edges are open, and none of it counts against the disk any more (rule R2).
fn nothing_holds_the_edges(world: &World) -> Result<(), String> {
    let deadline = world.executor.now() + QUIET_MAX;
    while !world.comes_to(LOOK, |shortage| shortage.is_none()) || world.unwritten_bytes() > 0 {
        if world.executor.now() > deadline {
            let (shortage, unwritten) = (world.shortage(), world.unwritten_bytes());
            return Err(format!(
                "the node is quiet, its edges find no room in {shortage:?}, and {unwritten} bytes count as unwritten (rule R2)"
            ));
        }
        world.run_for(LOOK);
        world.check()?;
    }
    Ok(())
}

/// A machine that was suspended wakes, and its wall clock is ahead of what its other clock has counted.
fn wakes_with_the_machine(world: &World) -> Result<(), String> {
    let nap = JUMP.as_millis().to_string();
    let slept = world.begin(move |open| async move { open.ingress.call(request("Probe", "nap", "", &nap, None)).await });
    world.run_for(PROBE_MAX);
    world.executor.jump(JUMP.as_millis() as i64);
    answered(world, "a sleep that was due while the machine was suspended (rule T2)", slept, PROBE_MAX)
}

/// Somebody sets the clock, something is applied, and somebody sets it back.
fn forgets_a_jump(world: &World) -> Result<(), String> {
    let ms = JUMP.as_millis() as i64;
    world.executor.jump(ms);
    for partition in 0..world.partitions {
        // One for each partition, as far as luck goes.
        let text = partition.to_string();
        let asked = world.begin(move |open| async move { open.ingress.call(request("Echo", "echo", "", &text, None)).await });
        answered(world, "an echo while the clock is ahead", asked, PROBE_MAX)?;
    }
    world.executor.jump(-ms);
    for what in ["retry", "nap"] {
        let asked = world.begin(move |open| async move { open.ingress.call(request("Probe", what, "", "100", None)).await });
        answered(world, &format!("a {what} after the clock jumped forth and back (rule T1)"), asked, PROBE_MAX)?;
    }
    Ok(())
}

/// Handlers that wait for others hold no place that those need.
fn lets_callees_run(world: &World) -> Result<(), String> {
    let asked = world.begin(|open| async move { open.ingress.call(request("Probe", "chain", "", CHAIN, None)).await });
    answered(world, "a chain of calls in few places (rule O5)", asked, CHAIN_MAX)
}

/// A handler that says nothing, or no more, is tried again before long.
fn gives_the_silent_up(world: &World) -> Result<(), String> {
    for fault in [Fault::Silence, Fault::Stall(1, Duration::MAX / 2)] {
        world.fail_next_stream(fault);
        let asked = world.begin(|open| async move { open.ingress.call(request("Echo", "echo", "", "x", None)).await });
        answered(world, &format!("an echo whose first stream has {fault:?} (rule O5)"), asked, SILENT_MAX)?;
    }
    Ok(())
}

fn answered(
    world: &World,
    what: &str,
    asked: crate::world::Asked<Result<surefoot_ingress::Completed, Error>>,
    limit: Duration,
) -> Result<(), String> {
    match world.within(limit, asked) {
        Some(Ok(done)) if matches!(done.outcome, Outcome::Success(_)) => Ok(()),
        Some(other) => Err(format!("{what} ended with {other:?}")),
        None => Err(format!("{what} is not answered within {limit:?}")),
    }
}

// Recovery.

fn tables(world: &World) -> Result<Tables, String> {
    let partitions = world.all_partitions();
    let read = world.answer("reading all tables", |open| async move {
        let mut tables = Tables::new();
        for partition in partitions {
            tables.insert(partition, open.partitions.rows(partition).await?);
        }
        Ok::<_, surefoot_partition::Stopped>(tables)
    })?;
    read.map_err(|stopped| format!("reading all tables: {stopped}"))
}

fn is_what_recovery_makes(world: &World, engine: &MemEngine) -> Result<(), String> {
    const TRIES: usize = 50;
    for round in 0..TRIES {
        // Some that no checkpoint has yet.
        for number in 0..NAMED {
            let name = format!("named-{round}-{number}");
            let asked =
                world.begin(move |open| async move { open.ingress.call(request("Echo", "echo", "", "x", Some(&name))).await });
            answered(world, "an echo with a name", asked, PROBE_MAX)?;
        }
        let live = tables(world)?;
        let (disk, engine) = (world.disk.fork(), copy(engine));
        // A checkpoint came in between where the engine is ahead.
        if applied(world, &engine)?.iter().any(|(partition, applied)| *applied > live[partition].0) {
            world.run_for(Duration::from_millis(50));
            continue;
        }
        let unplugged = disk.fork();
        unplugged.lose_power(&mut |_| false);
        for (what, disk) in
            [("a recovery", &disk), ("a second recovery", &disk), ("a recovery after a power failure", &unplugged)]
        {
            differ(world, what, &live, &recover(world, disk, &engine, &live)?)?;
        }
        return Ok(());
    }
    Err("checkpoints never rest".to_owned())
}

/// An engine of its own with the same entries.
fn copy(engine: &MemEngine) -> Arc<dyn Engine> {
    let entries = engine.view().scan(&[], &[u8::MAX; 4], usize::MAX, usize::MAX).expect("an engine in memory reads");
    let mut batch = Batch::default();
    for (key, value) in &entries {
        batch.put(|out| out.extend_from_slice(key), |out| out.extend_from_slice(value));
    }
    let copied = MemEngine::new();
    copied.commit(&batch).expect("an empty engine takes a batch");
    Arc::new(copied)
}

fn recovering(world: &World, engine: &Arc<dyn Engine>) -> Result<Recovering, String> {
    let mutants = world.mutants;
    let settings = Settings {
        cleanup_interval_ms: u64::MAX,
        retained_bytes_max: u64::MAX,
        disk_dir: PLACE.into(),
        disk_reserve_bytes_max: 0,
        disk_active_bytes_max: u64::MAX,
        log_bytes_max: u64::MAX,
        memory_bytes_max: 64 << 20,
        attempt_bytes: 6 << 10,
        edge_bytes_max: 64 << 20,
        load_bytes_max: 64 << 20,
        journal_part_bytes: 1 << 20,
        outbox_bytes_max: 64 << 20,
        checkpoint_interval_ms: u64::MAX,
        replay_bytes_max: u64::MAX,
        workers: 1,
        mutant: mutants.partition,
        machine_mutant: mutants.machine,
    };
    Recovering::open(engine, world.partitions, mutants.storage, settings).map_err(|error| error.to_string())
}

fn applied(world: &World, engine: &Arc<dyn Engine>) -> Result<BTreeMap<PartitionId, Lsn>, String> {
    let mut recovering = recovering(world, engine)?;
    world.all_partitions().into_iter().map(|partition| Ok((partition, recovering.rows(partition)?.0))).collect()
}

/// What checkpoint and log say, up to where the live tables are.
fn recover(world: &World, disk: &SimDisk, engine: &Arc<dyn Engine>, live: &Tables) -> Result<Tables, String> {
    let mut recovering = recovering(world, engine)?;
    let covered = recovering.covered();
    let mut replay = |entry: surefoot_log::Entry| {
        let is_wanted = live.get(&entry.partition).is_some_and(|(applied, _)| entry.lsn <= *applied);
        if is_wanted { Ok(recovering.replay(&entry)?) } else { Ok(()) }
    };
    let options = Options::new(|message| unreachable!("nobody writes: {message}"));
    local::open(Arc::new(disk.clone()), PLACE.as_ref(), options, &covered, &mut replay).map_err(|error| error.to_string())?;
    world.all_partitions().into_iter().map(|partition| Ok((partition, recovering.rows(partition)?))).collect()
}

fn differ(world: &World, what: &str, live: &Tables, recovered: &Tables) -> Result<(), String> {
    for (partition, (applied, rows)) in live {
        let (recovered_to, found) = &recovered[partition];
        if applied != recovered_to {
            return Err(format!("{what} applies partition {partition} up to {recovered_to}, the node is at {applied} (rule L6)"));
        }
        let (of_node, of_recovery): (BTreeSet<&Row>, BTreeSet<&Row>) = (rows.iter().collect(), found.iter().collect());
        let (missing, extra) = (of_node.difference(&of_recovery).next(), of_recovery.difference(&of_node).next());
        if missing.is_some() || extra.is_some() {
            return Err(format!("{what} differs in partition {partition}: the node has {missing:?}, it has {extra:?} (rule M1)"));
        }
        rows.iter().for_each(|row| world.executor.trace_bytes(row.value.as_bytes()));
    }
    Ok(())
}
