//! The verdict on a run: from what was sent, the committed state of every key, and the steps that ran, to what was lost, applied
//! twice or out of order.
//!
//! Owns: the rules, as a pure function. Two witnesses are heard, and both must be content: the feeds, which the server committed,
//! and the ledger, which outlived every kill. Does not own: asking them.

use crate::ledger::{Execution, Step};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// What the witnesses say.
#[derive(Debug, Default)]
pub struct Evidence {
    /// The events that were sent to each key, in order.
    pub sent: BTreeMap<String, Vec<String>>,
    /// The committed state of each key: the events that it applied, in order. None where nobody asked for it.
    pub feeds: Option<BTreeMap<String, Vec<String>>>,
    /// The steps that ran, in order.
    pub executions: Vec<Execution>,
}

/// What may not happen to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is not in its key's state, or its last step never ran.
    Lost,
    /// It is in its key's state twice, or ran again after it had ended.
    Twice,
    /// It was applied after, or ran before the end of, an event that its key got later or earlier.
    Disordered,
    /// One of its steps ran again after a later step had run, so after its result was durable.
    StepRepeated,
    /// A step was given another result of the first step than it had returned last.
    ResultChanged,
    /// It was never sent.
    Unknown,
}

/// What a run came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Key and id of the events with each fault.
    faults: BTreeMap<Fault, BTreeSet<(String, String)>>,
    /// Steps that ran.
    pub executions: usize,
    /// Those that ran again because their process died before the result was durable, looks apart. No fault.
    pub repeated: usize,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    pub fn count(&self, fault: Fault) -> usize {
        self.events(fault).count()
    }

    /// The ids of the events with this fault.
    pub fn events(&self, fault: Fault) -> impl Iterator<Item = &str> {
        self.faults.get(&fault).into_iter().flatten().map(|(_, event)| event.as_str())
    }

    fn add(&mut self, fault: Fault, key: &str, event: &str) {
        self.faults.entry(fault).or_default().insert((key.to_owned(), event.to_owned()));
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} steps, {} of them again", self.executions, self.repeated)?;
        for (fault, events) in &self.faults {
            write!(f, "; {fault:?}: {events:?}")?;
        }
        Ok(())
    }
}

/// Hears the witnesses.
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { executions: evidence.executions.len(), ..Verdict::default() };
    let mut steps: BTreeMap<&str, Vec<&Execution>> = BTreeMap::new();
    for execution in &evidence.executions {
        steps.entry(&execution.user).or_default().push(execution);
    }
    for (key, sent) in &evidence.sent {
        let places: HashMap<&str, usize> = sent.iter().enumerate().map(|(n, event)| (event.as_str(), n)).collect();
        if let Some(feeds) = &evidence.feeds {
            judge_feed(key, sent, &places, feeds.get(key).map_or(&[], Vec::as_slice), &mut verdict);
        }
        judge_steps(key, sent, &places, &steps.remove(key.as_str()).unwrap_or_default(), &mut verdict);
    }
    for execution in steps.into_values().flatten() {
        verdict.add(Fault::Unknown, &execution.user, &execution.event);
    }
    for (key, feed) in evidence.feeds.iter().flatten().filter(|(key, _)| !evidence.sent.contains_key(*key)) {
        feed.iter().for_each(|event| verdict.add(Fault::Unknown, key, event));
    }
    verdict
}

/// Judges the committed state of a key. `places` says where in `sent` an event stands.
fn judge_feed(key: &str, sent: &[String], places: &HashMap<&str, usize>, feed: &[String], verdict: &mut Verdict) {
    let mut applied = vec![false; sent.len()];
    let mut last = 0;
    for event in feed {
        match places.get(event.as_str()) {
            None => verdict.add(Fault::Unknown, key, event),
            Some(n) if applied[*n] => verdict.add(Fault::Twice, key, event),
            Some(n) => {
                if *n < last {
                    verdict.add(Fault::Disordered, key, event);
                }
                applied[*n] = true;
                last = last.max(*n);
            }
        }
    }
    for (event, _) in sent.iter().zip(applied).filter(|(_, applied)| !applied) {
        verdict.add(Fault::Lost, key, event);
    }
}

/// Judges the steps that ran for a key: one event at a time, in order, and none again after a later one. A step that ran again
/// before any later one is no fault: its process died before the result was durable.
fn judge_steps(key: &str, sent: &[String], places: &HashMap<&str, usize>, steps: &[&Execution], verdict: &mut Verdict) {
    let is_last = |execution: &&&Execution| execution.step == Step::Update;
    let ending: HashSet<&str> = steps.iter().filter(is_last).map(|execution| execution.event.as_str()).collect();
    let mut reached: Vec<Option<Step>> = vec![None; sent.len()];
    // What the first step of an event returned last.
    let mut posts: Vec<Option<&str>> = vec![None; sent.len()];
    // The latest event that has begun.
    let mut newest = 0;
    for execution in steps {
        let event = &execution.event;
        let Some(n) = places.get(event.as_str()).copied() else {
            verdict.add(Fault::Unknown, key, event);
            continue;
        };
        match reached[n] {
            None => {
                // One that never ends is lost, and puts nothing else out of order.
                let others_ended = sent[..n]
                    .iter()
                    .zip(&reached)
                    .all(|(event, step)| matches!(step, None | Some(Step::Update)) || !ending.contains(event.as_str()));
                if n < newest || !others_ended || execution.step != Step::Create {
                    verdict.add(Fault::Disordered, key, event);
                }
            }
            Some(Step::Update) if execution.step != Step::Update || n < newest => verdict.add(Fault::Twice, key, event),
            Some(step) if execution.step < step => verdict.add(Fault::StepRepeated, key, event),
            Some(_) if n < newest => verdict.add(Fault::Disordered, key, event),
            Some(_) => {}
        }
        if execution.step == Step::Create {
            posts[n] = Some(&execution.post);
        } else if posts[n].is_some_and(|post| post != execution.post) {
            verdict.add(Fault::ResultChanged, key, event);
        }
        // Any number of looks is the program's business.
        verdict.repeated += usize::from(reached[n] == Some(execution.step) && execution.step != Step::Look);
        reached[n] = reached[n].max(Some(execution.step));
        newest = newest.max(n);
    }
    for (event, _) in sent.iter().zip(&reached).filter(|(_, step)| **step != Some(Step::Update)) {
        verdict.add(Fault::Lost, key, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime};

    /// One key with the events a, b and c. `feed` and `steps` are words; a step is an event, the first letter of its step, and the post, which
    /// is that of the event unless it says another.
    fn verdict(feed: &str, steps: &str) -> Verdict {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let step = |word: String| {
            let (event, rest) = word.split_at(1);
            let (step, post) = rest.split_at(1);
            let step = match step {
                "c" => Step::Create,
                "l" => Step::Look,
                _ => Step::Update,
            };
            execution(step, "ada", event, post)
        };
        judge(&Evidence {
            sent: [("ada".to_owned(), words("a b c"))].into(),
            feeds: Some([("ada".to_owned(), words(feed))].into()),
            executions: words(steps).into_iter().map(step).collect(),
        })
    }

    fn execution(step: Step, user: &str, event: &str, post: &str) -> Execution {
        let (at, at_wall) = (Instant::now(), SystemTime::now());
        Execution { step, user: user.into(), event: event.into(), post: post.into(), at, at_wall }
    }

    fn check(feed: &str, steps: &str, expected: &[(Fault, &[&str])]) {
        let named = |events: &&[&str]| events.iter().map(|event| ("ada".to_owned(), (*event).to_owned())).collect();
        let faults: BTreeMap<_, _> = expected.iter().map(|(fault, events)| (*fault, named(events))).collect();
        assert_eq!(verdict(feed, steps).faults, faults, "feed {feed:?}, steps {steps:?}");
    }

    const FEED: &str = "a b c";
    const STEPS: &str = "ac al au bc bl bl bu cc cl cu";

    #[test]
    fn a_run_without_kills_holds() {
        check(FEED, STEPS, &[]);
        assert!(verdict(FEED, STEPS).holds());
    }

    #[test]
    fn a_step_that_ran_again_before_its_result_was_durable_is_no_fault() {
        let steps = "ac ac al al al au au bc bl bu cc cc cl cu";
        check(FEED, steps, &[]);
        assert_eq!((verdict(FEED, steps).executions, verdict(FEED, steps).repeated), (14, 3), "looks are not counted");
    }

    #[test]
    fn a_lost_event_is_found_by_either_witness() {
        check("a c", STEPS, &[(Fault::Lost, &["b"])]);
        check(FEED, "ac al au bc bl bu cc cl", &[(Fault::Lost, &["c"])]);
        check("a c", "ac al au cc cl cu", &[(Fault::Lost, &["b"])]);
        check("b c", "ac al bc bl bu cc cl cu", &[(Fault::Lost, &["a"])]);
        check("", "", &[(Fault::Lost, &["a", "b", "c"])]);
    }

    #[test]
    fn an_event_applied_twice_is_found_by_either_witness() {
        check("a b b c", STEPS, &[(Fault::Twice, &["b"])]);
        check("a b c a", STEPS, &[(Fault::Twice, &["a"])]);
        check(FEED, "ac al au ac al au bc bl bu cc cl cu", &[(Fault::Twice, &["a"])]);
        check(FEED, "ac al au bc bl bu cc cl cu au", &[(Fault::Twice, &["a"])]);
    }

    #[test]
    fn disorder_is_found_by_either_witness() {
        check("a c b", STEPS, &[(Fault::Disordered, &["b"])]);
        check(FEED, "ac al au cc cl cu bc bl bu", &[(Fault::Disordered, &["b"])]);
        check(FEED, "ac bc al au bl bu cc cl cu", &[(Fault::Disordered, &["a", "b"])]);
        check(FEED, "al ac au bc bl bu cc cl cu", &[(Fault::Disordered, &["a"]), (Fault::StepRepeated, &["a"])]);
    }

    #[test]
    fn a_finished_step_that_ran_again_is_found() {
        check(FEED, "ac al ac al au bc bl bu cc cl cu", &[(Fault::StepRepeated, &["a"])]);
    }

    #[test]
    fn a_recorded_result_that_changed_is_found() {
        check(FEED, "ac1 ac2 al2 au2 bc bl bu cc cl cu", &[]);
        check(FEED, "ac1 ac2 al1 au2 bc bl bu cc cl cu", &[(Fault::ResultChanged, &["a"])]);
    }

    #[test]
    fn state_that_nobody_asked_for_is_no_fault() {
        let evidence = Evidence { sent: [("ada".to_owned(), vec!["a".to_owned()])].into(), feeds: None, executions: Vec::new() };
        assert_eq!(judge(&evidence).to_string(), "0 steps, 0 of them again; Lost: {(\"ada\", \"a\")}");
    }

    #[test]
    fn what_was_never_sent_is_found() {
        check("a b x c", STEPS, &[(Fault::Unknown, &["x"])]);
        check(FEED, "ac al au bc bl bu cc cl cu yc", &[(Fault::Unknown, &["y"])]);
        let stranger = execution(Step::Create, "bob", "z", "");
        let evidence = Evidence { executions: vec![stranger], ..Evidence::default() };
        assert_eq!(judge(&evidence).events(Fault::Unknown).collect::<Vec<_>>(), ["z"]);
    }
}
