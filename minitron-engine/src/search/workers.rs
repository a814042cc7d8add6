//! A search by several processes: groups of candidates wait in a queue, whoever is free takes one,
//! and the first rank gathers what came of them. A rank that is lost costs its group's work: the
//! group is given out again.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::field::{Field, Learned};
use super::record::{SearchRecord, ZeroShot};
use crate::ranks::Ranks;
use minitron_core::error::{Error, Result};

const QUEUE: &str = "search/groups";
const ENDED: &str = "search/ended";
/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(50);
/// A group whose rank gives no sign of life for so long, by the first rank's clock, is given out
/// again.
const LEASE: Duration = Duration::from_secs(5);

/// What is to be done with candidates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Work {
    /// Their losses before any training.
    Measure,
    /// They learn up to a step.
    Train { until: u64 },
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    Measured(Vec<ZeroShot>),
    Trained(Learned),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Group {
    id: u64,
    candidates: Vec<usize>,
    work: Work,
}

/// A group that was given out.
struct GivenOut {
    group: Group,
    /// Who has it, with their sign of life when it last changed; none while it waits, or before
    /// whoever took it says so.
    holder: Option<(usize, i64)>,
    since: Instant,
}

/// The ranks at a search.
#[derive(Debug)]
pub(super) struct Workers {
    ranks: Ranks,
    /// Groups that were given out in this process.
    n_given: u64,
}

impl Workers {
    pub fn new(ranks: Ranks) -> Self {
        Workers { ranks, n_given: 0 }
    }

    /// Has every group's work done, and passes on what came of it as it comes; until `take` returns
    /// true, or the search is asked to end. True where it was.
    pub fn each(
        &mut self,
        field: &Field,
        record: &mut SearchRecord,
        (candidates, work): (&[usize], Work),
        mut take: impl FnMut(&mut SearchRecord, &[usize], Answer) -> Result<bool>,
    ) -> Result<bool> {
        let groups = field.groups(candidates, record, self.ranks.size());
        if !self.ranks.has_others() {
            for group in groups {
                let answer = answer(field, &group, work, record)?;
                if take(record, &group, answer)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        record.save(field.out)?;
        let mut given = self.give_out(groups, work)?;
        let mut is_halted = false;
        while !given.is_empty() {
            let is_asked = field.context.interrupt.is_asked();
            is_halted |= is_asked;
            if is_halted {
                // Whoever has a group ends after the step at hand.
                self.take_back(&mut given)?;
            } else if let Some(group) = self.next()? {
                let answer = answer(field, &group.candidates, group.work, record)?;
                if given.remove(&group.id).is_some() {
                    is_halted |= take(record, &group.candidates, answer)?;
                }
            }
            for (group, answer) in self.answered(&mut given)? {
                is_halted |= take(record, &group.candidates, answer)?;
            }
            self.give_out_again(field, &mut given)?;
            sleep(LOOK);
        }
        Ok(is_halted)
    }

    /// What the other ranks do until the first one ends the search.
    pub fn serve(&self, field: &Field) -> Result<()> {
        let shared = self.ranks.shared()?;
        let (mut seen, mut since) = (shared.signs_of_life(0)?, Instant::now());
        while !shared.has(ENDED)? && !field.context.interrupt.is_asked() {
            let Some(group) = self.next()? else {
                let now = shared.signs_of_life(0)?;
                if now != seen {
                    (seen, since) = (now, Instant::now());
                }
                if since.elapsed() > LEASE {
                    return Err(Error::Ranks("search: no sign of life from rank 0".into()));
                }
                sleep(LOOK);
                continue;
            };
            shared.set(&lease(group.id), &self.ranks.rank().to_string())?;
            let record = SearchRecord::load(field.out)?
                .ok_or_else(|| Error::Internal("a search without a record".into()))?;
            let answer = answer(field, &group.candidates, group.work, &record)?;
            shared.set(&result(group.id), &to_json(&answer)?)?;
            since = Instant::now();
        }
        Ok(())
    }

    /// Sends the other ranks home.
    pub fn end(&self) -> Result<()> {
        if self.ranks.has_others() {
            self.ranks.shared()?.set(ENDED, "")?;
        }
        Ok(())
    }

    fn give_out(&mut self, groups: Vec<Vec<usize>>, work: Work) -> Result<BTreeMap<u64, GivenOut>> {
        let shared = self.ranks.shared()?;
        let mut given = BTreeMap::new();
        for candidates in groups {
            let id = self.n_given;
            self.n_given += 1;
            let group = Group {
                id,
                candidates,
                work,
            };
            shared.push(QUEUE, &to_json(&group)?)?;
            let given_out = GivenOut {
                group,
                holder: None,
                since: Instant::now(),
            };
            given.insert(id, given_out);
        }
        Ok(given)
    }

    fn next(&self) -> Result<Option<Group>> {
        let text = self.ranks.shared()?.pop(QUEUE)?;
        text.map(|text| from_json(&text)).transpose()
    }

    /// Groups that nobody has begun are not begun any more.
    fn take_back(&self, given: &mut BTreeMap<u64, GivenOut>) -> Result<()> {
        while let Some(group) = self.next()? {
            given.remove(&group.id);
        }
        Ok(())
    }

    fn answered(&self, given: &mut BTreeMap<u64, GivenOut>) -> Result<Vec<(Group, Answer)>> {
        let shared = self.ranks.shared()?;
        let mut answers = Vec::new();
        for id in given.keys().copied().collect::<Vec<_>>() {
            if shared.has(&result(id))?
                && let Some(done) = given.remove(&id)
            {
                answers.push((done.group, from_json(&shared.read(&result(id))?)?));
            }
        }
        Ok(answers)
    }

    /// Puts what a lost rank had into the queue again, and what somebody took and never said so.
    fn give_out_again(&self, field: &Field, given: &mut BTreeMap<u64, GivenOut>) -> Result<()> {
        let shared = self.ranks.shared()?;
        for out in given.values_mut() {
            let key = lease(out.group.id);
            let holder = match shared.has(&key)? {
                true => shared.read(&key)?.parse::<usize>().ok(),
                false => None,
            };
            let holder = match holder {
                Some(rank) => Some((rank, shared.signs_of_life(rank)?)),
                None => None,
            };
            if holder != out.holder {
                (out.holder, out.since) = (holder, Instant::now());
            }
            // Before all ranks have gone home, the queue is empty only while groups are under way.
            if out.since.elapsed() < LEASE || !shared.is_empty(QUEUE)? {
                continue;
            }
            let who = out
                .holder
                .map_or("a rank".to_owned(), |(rank, _)| format!("rank {rank}"));
            field.context.progress.warn(&format!(
                "search: {who} is lost; the candidates that it had are looked at again"
            ));
            shared.set(&key, "")?;
            shared.push(QUEUE, &to_json(&out.group)?)?;
            (out.holder, out.since) = (None, Instant::now());
        }
        Ok(())
    }
}

fn answer(field: &Field, group: &[usize], work: Work, record: &SearchRecord) -> Result<Answer> {
    Ok(match work {
        Work::Measure => Answer::Measured(field.measure(group, record)?),
        Work::Train { until } => Answer::Trained(field.train(group, record, until)?),
    })
}

fn lease(id: u64) -> String {
    format!("search/lease/{id}")
}

fn result(id: u64) -> String {
    format!("search/result/{id}")
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Internal(format!("search: {e}")))
}

fn from_json<T: for<'d> Deserialize<'d>>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::Internal(format!("search: {e}")))
}
