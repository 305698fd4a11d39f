//! A store beside a plain map, under random records, views held for random times, checkpoints in every interleaving, and crashes.
//! Each rule that a mutant leaves out is missed by it.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::catch_unwind;
use std::sync::Arc;
use surefoot_machine::{Inbound, State, StateKey, StateValue, StateValues, Table};
use surefoot_model::{Lsn, ObjectKey, PartitionId};
use surefoot_storage::{Checkpoint, Checkpointed, Limit, MemEngine, Mutant, PartitionView, Reader, Store};

const PARTITION: PartitionId = PartitionId(3);

#[test]
fn a_store_is_the_map_of_its_records() {
    for seed in 0..400 {
        let outcome = World::run(seed, Mutant::None, 300);
        assert_eq!(outcome, Ok(()), "seed {seed}");
    }
}

#[test]
fn a_seed_gives_the_same_history_twice() {
    for seed in 0..5 {
        assert_eq!(World::run(seed, Mutant::VanishAcrossLayers, 300), World::run(seed, Mutant::VanishAcrossLayers, 300));
    }
}

#[test]
fn every_mutant_is_noticed() {
    let mutants = [
        Mutant::VanishAcrossLayers,
        Mutant::SplitCheckpoint,
        Mutant::SkipFlush,
        Mutant::LateEngineView,
        Mutant::ForgetSealed,
        Mutant::KeepHalf,
    ];
    for mutant in mutants {
        // A broken invariant is as good as a wrong answer.
        let holds = |seed: &u64| matches!(catch_unwind(|| World::run(*seed, mutant, 300)), Ok(Ok(())));
        let noticed = (0..200).filter(|seed| !holds(seed)).count();
        assert!(noticed > 20, "{mutant:?} was noticed in {noticed} of 200 seeds");
    }
}

/// Layers that were sealed for views and folded again weigh no more than a layer that never was (they may know better than it
/// what lies below); and what views hold is counted until they drop it.
#[test]
fn views_leave_no_weight_behind() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let (mut store, mut twin) = (open(), open());
        let (mut tables, mut twin_tables) = (Tables::default(), Tables::default());
        let mut views = Vec::new();
        for lsn in 1..150 {
            let mut same_again = random.clone();
            write(&mut random, &mut store, &mut tables, Lsn(lsn));
            write(&mut same_again, &mut twin, &mut twin_tables, Lsn(lsn));
            match random.below(8) {
                0 => views.extend(store.publish()),
                1 if !views.is_empty() => drop(views.swap_remove(random.below(views.len() as u64) as usize)),
                2 if random.below(4) == 0 => {
                    let (weighed, running) = (store.memory_bytes(), store.freeze().expect("records were applied"));
                    assert_eq!((store.memory_bytes(), store.active_bytes()), (weighed, 0));
                    store.checkpointed(running.run().expect("the engine lives"));
                    assert!(store.memory_bytes() == 0 || !views.is_empty(), "seed {seed}");
                    let running = twin.freeze().expect("records were applied");
                    twin.checkpointed(running.run().expect("the engine lives"));
                }
                _ => {}
            }
        }
        views.clear();
        write(&mut random.clone(), &mut store, &mut tables, Lsn(150));
        write(&mut random, &mut twin, &mut twin_tables, Lsn(150));
        assert_eq!(tables, twin_tables);
        assert!(store.active_bytes() <= twin.active_bytes(), "seed {seed}");
        assert_eq!(store.active_bytes(), store.memory_bytes(), "seed {seed}");
        let running = store.freeze().expect("records were applied");
        store.checkpointed(running.run().expect("the engine lives"));
        assert_eq!(store.memory_bytes(), 0, "seed {seed}");
    }
}

fn open() -> Store {
    Store::open(Arc::new(MemEngine::new()), PARTITION).expect("empty")
}

fn write(random: &mut Random, store: &mut Store, tables: &mut Tables, lsn: Lsn) {
    let mut txn = store.begin();
    for _ in 0..random.below(6) {
        let key = value_key(random);
        let value = |random: &mut Random| StateValue { bytes: Bytes::from(vec![1; random.below(9) as usize]) };
        operate::<StateValues>(random, &mut txn, &mut tables.values, key, value).expect("as the map says");
    }
    txn.commit(lsn);
}

/// What a test map holds of the two tables.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tables {
    numbers: BTreeMap<PartitionId, u64>,
    values: BTreeMap<StateKey, StateValue>,
}

struct World {
    random: Random,
    engine: MemEngine,
    store: Store,
    mutant: Mutant,
    /// The state after each record, from LSN 0.
    history: Vec<Tables>,
    running: Option<Checkpoint>,
    done: Option<Checkpointed>,
    views: Vec<PartitionView>,
    /// What may be trimmed: no crash may go behind it.
    trimmed: Lsn,
}

impl World {
    /// Runs a seed; the error says which step saw what it should not.
    fn run(seed: u64, mutant: Mutant, steps: u32) -> Result<(), String> {
        let engine = MemEngine::new();
        let store = Store::open(Arc::new(engine.clone()), PARTITION).expect("empty").with_mutant(mutant);
        let mut world = Self {
            random: Random(seed),
            engine,
            store,
            mutant,
            history: vec![Tables::default()],
            running: None,
            done: None,
            views: Vec::new(),
            trimmed: Lsn(0),
        };
        for step in 0..steps {
            world.step().map_err(|what| format!("step {step}: {what}"))?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(24) {
            0..8 => self.record()?,
            8..10 => {
                if let Some(checkpoint) = self.store.freeze() {
                    assert!(self.running.is_none() && self.done.is_none(), "one at a time");
                    self.running = Some(checkpoint);
                }
            }
            10..15 => self.checkpoint_step(),
            15 => self.store.refresh(),
            16 if self.random.below(3) == 0 => self.crash(true)?,
            17 if self.random.below(3) == 0 => self.crash(false)?,
            20..22 => self.publish()?,
            22..24 if !self.views.is_empty() => {
                let at = self.random.below(self.views.len() as u64) as usize;
                let view = self.views.swap_remove(at);
                self.check_view(&view)?;
            }
            _ => self.read()?,
        }
        self.check_all()
    }

    fn publish(&mut self) -> Result<(), String> {
        match self.store.publish() {
            Some(view) => {
                same(&view.applied(), &self.store.applied(), "a view's LSN")?;
                self.views.push(view);
            }
            // The stack of sealed layers is full only while views hold so many.
            None if self.views.len() >= 8 => {}
            None => return Err(format!("no view, with {} held", self.views.len())),
        }
        Ok(())
    }

    /// A view shows its own LSN, whatever happened since.
    fn check_view(&mut self, view: &PartitionView) -> Result<(), String> {
        let tables = &self.history[view.applied().0 as usize];
        read(&mut self.random, &view.read(), tables)?;
        check_all(&view.read(), tables)
    }

    fn checkpoint_step(&mut self) {
        if let Some(done) = self.done.take() {
            self.store.checkpointed(done);
            self.trimmed = self.store.checkpointed_lsn();
        } else if let Some(checkpoint) = &mut self.running {
            self.done = checkpoint.step().expect("the engine lives");
            if self.done.is_some() {
                self.running = None;
            }
        }
    }

    fn crash(&mut self, power: bool) -> Result<(), String> {
        let dead = self.engine.clone();
        self.engine = if power { dead.power_loss(self.random.next()) } else { dead.restart() };
        // The dead node's checkpointer may not touch what the next one reads.
        if let Some(mut checkpoint) = self.running.take() {
            while let Ok(None) = checkpoint.step() {}
        }
        self.done = None;
        self.views.clear();
        self.store = Store::open(Arc::new(self.engine.clone()), PARTITION).expect("readable").with_mutant(self.mutant);
        let applied = self.store.applied();
        if applied < self.trimmed || applied.0 as usize >= self.history.len() {
            return Err(format!("opened at {applied}, trimmed up to {}, applied {}", self.trimmed, self.history.len() - 1));
        }
        let end = Lsn(self.history.len() as u64);
        self.store.check_log(self.trimmed.next(), end).map_err(|e| e.to_string())?;
        // Half the time the log's tail is replayed, as after any restart; else it goes another way.
        if self.random.below(2) == 0 {
            for lsn in applied.0 + 1..end.0 {
                self.replay(Lsn(lsn));
            }
        } else {
            self.history.truncate(applied.0 as usize + 1);
        }
        Ok(())
    }

    /// Applies a record of the history again: whatever leads from the state before it to the one after.
    fn replay(&mut self, lsn: Lsn) {
        let (before, after) = (&self.history[lsn.0 as usize - 1], &self.history[lsn.0 as usize]);
        let mut txn = self.store.begin();
        differences::<Inbound>(&mut txn, &before.numbers, &after.numbers);
        differences::<StateValues>(&mut txn, &before.values, &after.values);
        txn.commit(lsn);
    }

    fn record(&mut self) -> Result<(), String> {
        let mut tables = self.history.last().expect("never empty").clone();
        let random = &mut self.random;
        let mut txn = self.store.begin();
        for _ in 0..random.below(6) {
            if random.below(2) == 0 {
                let key = number_key(random);
                operate::<Inbound>(random, &mut txn, &mut tables.numbers, key, |random| random.next())?;
            } else {
                let key = value_key(random);
                let value = |random: &mut Random| StateValue { bytes: Bytes::from(vec![1; random.below(9) as usize]) };
                operate::<StateValues>(random, &mut txn, &mut tables.values, key, value)?;
            }
            let (from, to) = (number_key(random), number_key(random));
            let limit = random.below(9) as usize;
            let found = txn.scan::<Inbound>(&from, Some(&to), limit).map_err(|e| e.to_string())?;
            same(&found, &expected(&tables.numbers, &from, Some(&to), limit), "scan in a record")?;
        }
        if self.random.below(6) == 0 {
            drop(txn);
        } else {
            txn.commit(Lsn(self.history.len() as u64));
            self.history.push(tables);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        if !self.views.is_empty() {
            let view = self.views.swap_remove(self.random.below(self.views.len() as u64) as usize);
            self.check_view(&view)?;
            self.views.push(view);
        }
        read(&mut self.random, &self.store.read(), self.history.last().expect("never empty"))
    }

    fn check_all(&self) -> Result<(), String> {
        check_all(&self.store.read(), self.history.last().expect("never empty"))?;
        same(&self.store.applied(), &Lsn(self.history.len() as u64 - 1), "applied")
    }
}

fn read(random: &mut Random, reader: &Reader<'_>, tables: &Tables) -> Result<(), String> {
    let key = value_key(random);
    let found = reader.get::<StateValues>(&key).map_err(|e| e.to_string())?;
    same(&found, &tables.values.get(&key).cloned(), "get")?;
    let (from, to) = (random.below(60) as u16, random.below(700) as u16);
    let keys = (from..to).step_by(25).map(PartitionId);
    let found = reader.known::<Inbound, _>(keys.clone(), PartitionId(to)).collect::<Result<Vec<_>, _>>();
    let expected_known = keys.map(|key| (key, tables.numbers.get(&key).copied())).collect();
    same(&found.map_err(|e| e.to_string())?, &expected_known, "known keys")?;
    let (from, limit) = (value_key(random), random.below(9) as usize);
    let found = reader.scan::<StateValues>(&from, None, limit).map_err(|e| e.to_string())?;
    same(&found, &expected(&tables.values, &from, None, limit), "scan")?;
    let (from, to) = (value_key(random), value_key(random));
    let all: Vec<_> = tables.values.range(from.clone()..).take_while(|(key, _)| **key < to).collect();
    if let Some(found) = reader.all_in_memory::<StateValues>(&from, &to, all.len()) {
        let expected: Vec<_> = all.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        same(&found, &expected, "all in memory")?;
    }
    // Piece by piece, however small, a scan finds the same.
    let mut below = |bound| random.below(bound) as usize + 1;
    let limit = Limit { rows: below(4), bytes: below(300), looks: below(6) };
    let (mut from, mut found) = (PartitionId(0), Vec::new());
    loop {
        let piece = reader.scan_within::<Inbound>(&from, None, limit).map_err(|e| e.to_string())?;
        let goes_on = piece.goes_on_at.or(piece.rows.last().map(|(last, _)| PartitionId(last.0 + 1))).filter(|_| !piece.is_last);
        if piece.rows.len() > limit.rows.min(limit.looks) || goes_on.is_none() && !piece.is_last {
            return Err(format!("a piece of {} rows within {limit:?}", piece.rows.len()));
        }
        found.extend(piece.rows);
        let Some(next) = goes_on else { break };
        from = next;
    }
    same(&found.into_iter().collect(), &tables.numbers, "scan in pieces")
}

fn check_all(reader: &Reader<'_>, tables: &Tables) -> Result<(), String> {
    let numbers = reader.scan::<Inbound>(&PartitionId(0), None, usize::MAX).map_err(|e| e.to_string())?;
    same(&numbers.into_iter().collect(), &tables.numbers, "numbers")?;
    let first = StateKey { object: ObjectKey { service: "".into(), key: "".into() }, generation: 0, name: "".into() };
    let values = reader.scan::<StateValues>(&first, None, usize::MAX).map_err(|e| e.to_string())?;
    same(&values.into_iter().collect(), &tables.values, "values")
}

fn operate<T: Table>(
    random: &mut Random,
    txn: &mut impl State,
    map: &mut BTreeMap<T::Key, T::Value>,
    key: T::Key,
    value: impl Fn(&mut Random) -> T::Value,
) -> Result<(), String> {
    match random.below(5) {
        0 => {
            let found = txn.get::<T>(&key).map_err(|e| e.to_string())?;
            same(&found, &map.get(&key).cloned(), "get in a record")?;
        }
        1 if !map.contains_key(&key) => {
            let value = value(random);
            txn.insert::<T>(key.clone(), value.clone());
            map.insert(key, value);
        }
        1 | 2 => {
            let value = value(random);
            txn.put::<T>(key.clone(), value.clone());
            map.insert(key, value);
        }
        _ => {
            txn.delete::<T>(&key);
            map.remove(&key);
        }
    }
    Ok(())
}

fn differences<T: Table>(txn: &mut impl State, before: &BTreeMap<T::Key, T::Value>, after: &BTreeMap<T::Key, T::Value>) {
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        txn.delete::<T>(key);
    }
    for (key, value) in after.iter().filter(|(key, value)| before.get(key) != Some(value)) {
        if before.contains_key(key) {
            txn.put::<T>(key.clone(), value.clone());
        } else {
            txn.insert::<T>(key.clone(), value.clone());
        }
    }
}

fn expected<K: Ord + Clone, V: Clone>(map: &BTreeMap<K, V>, from: &K, to: Option<&K>, limit: usize) -> Vec<(K, V)> {
    if to.is_some_and(|to| to <= from) {
        return Vec::new();
    }
    let to = to.map_or(Bound::Unbounded, Bound::Excluded);
    map.range((Bound::Included(from), to)).take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T, what: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: found {found:?}, expected {expected:?}")) }
}

fn number_key(random: &mut Random) -> PartitionId {
    PartitionId(random.below(12) as u16 * 50)
}

fn value_key(random: &mut Random) -> StateKey {
    let key = ["", "a", "a\0", "b"][random.below(4) as usize];
    let name = ["", "x", "x\0", "y"][random.below(4) as usize];
    StateKey { object: ObjectKey { service: "S".into(), key: key.into() }, generation: 1, name: name.into() }
}

/// SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
