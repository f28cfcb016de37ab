//! The last report about each agent's configuration and about each of its projects. Before it: an agent's report, cut and
//! cleaned. After it: [`super::known`]. In memory only, bounded for each agent and for all together: whoever was not
//! heard of for longest makes room, among the agent's own reports first.

use crate::observability::ReportOutcome;
use postern_wire::ids::AgentId;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// What may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reports of one agent: its configuration's and its projects'.
    pub per_agent: usize,
    /// Bytes of one agent's.
    pub bytes_per_agent: usize,
    /// Reports of all agents.
    pub in_all: usize,
    /// Bytes of all agents'.
    pub bytes_in_all: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_agent: 101, bytes_per_agent: 4 << 20, in_all: 10_000, bytes_in_all: 128 << 20 }
    }
}

/// Of a report, beside its JSON; in bytes.
const OVERHEAD: usize = 256;

/// A report to be kept.
#[derive(Debug)]
pub struct Kept {
    subject: Arc<str>,
    /// Of what makes it news.
    gist: [u8; 32],
    json: Arc<str>,
}

impl Kept {
    /// A report about a project, or about the configuration if that is empty; it is news if its gist is.
    pub(super) fn new(subject: &str, gist: (ReportOutcome, &str, &str), json: Arc<str>) -> Self {
        Self { subject: subject.into(), gist: Sha256::digest(format!("{gist:?}")).into(), json }
    }
}

/// A report that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// The project; empty: about the configuration.
    pub project: Arc<str>,
    /// An object.
    pub json: Arc<str>,
    /// Since it came.
    pub heard_ago: Duration,
}

/// The reports. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<AgentId, Agent>,
    /// All of them, oldest first.
    order: BTreeMap<u64, (AgentId, Arc<str>)>,
    number: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Agent {
    reports: BTreeMap<Arc<str>, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    gist: [u8; 32],
    json: Arc<str>,
    heard: Instant,
}

impl Entry {
    fn size(&self, subject: &str) -> usize {
        2 * subject.len() + self.json.len() + OVERHEAD
    }
}

impl State {
    fn remove(&mut self, agent: AgentId, subject: &str) -> Option<Entry> {
        let reports = self.agents.get_mut(&agent)?;
        let entry = reports.reports.remove(subject)?;
        let size = entry.size(subject);
        reports.bytes -= size;
        self.bytes -= size;
        if reports.reports.is_empty() {
            self.agents.remove(&agent);
        }
        self.order.remove(&entry.number);
        Some(entry)
    }

    fn insert(&mut self, agent: AgentId, subject: Arc<str>, gist: [u8; 32], json: Arc<str>) {
        self.number += 1;
        let entry = Entry { number: self.number, gist, json, heard: Instant::now() };
        let size = entry.size(&subject);
        self.bytes += size;
        self.order.insert(self.number, (agent, Arc::clone(&subject)));
        let of_agent = self.agents.entry(agent).or_default();
        of_agent.bytes += size;
        of_agent.reports.insert(subject, entry);
    }

    /// The agent's own oldest, if it has too much.
    fn surplus(&self, agent: AgentId, limits: &Limits) -> Option<Arc<str>> {
        let of_agent = self.agents.get(&agent)?;
        let too_much = of_agent.reports.len() > limits.per_agent || of_agent.bytes > limits.bytes_per_agent;
        let oldest = of_agent.reports.iter().min_by_key(|(_, entry)| entry.number);
        oldest.filter(|_| too_much).map(|(subject, _)| Arc::clone(subject))
    }
}

impl Board {
    /// With other limits.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { limits, state: Mutex::default() }))
    }

    /// Keeps the report in place of the one before about the same; whether it says something else than that one.
    pub fn put(&self, agent: AgentId, report: Kept) -> bool {
        let limits = &self.0.limits;
        let mut state = self.lock();
        let before = state.remove(agent, &report.subject);
        let is_news = before.is_none_or(|before| before.gist != report.gist);
        state.insert(agent, report.subject, report.gist, report.json);
        while let Some(oldest) = state.surplus(agent, limits) {
            state.remove(agent, &oldest);
        }
        while state.order.len() > limits.in_all || state.bytes > limits.bytes_in_all {
            let Some((agent, subject)) = state.order.values().next().cloned() else { break };
            state.remove(agent, &subject);
        }
        is_news
    }

    /// All of an agent's, in the order of projects.
    pub fn of(&self, agent: AgentId) -> Vec<Last> {
        let state = self.lock();
        let reports = state.agents.get(&agent).map(|agent| &agent.reports);
        let last = |(project, entry): (&Arc<str>, &Entry)| Last {
            project: Arc::clone(project),
            json: Arc::clone(&entry.json),
            heard_ago: entry.heard.elapsed(),
        };
        reports.into_iter().flatten().map(last).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AgentId = AgentId(1);
    const B: AgentId = AgentId(2);

    fn report(subject: &str, commit: &str, bytes: usize) -> Kept {
        Kept::new(subject, (ReportOutcome::Synchronized, commit, ""), "x".repeat(bytes).into())
    }

    fn projects(board: &Board, agent: AgentId) -> Vec<String> {
        board.of(agent).iter().map(|last| last.project.to_string()).collect()
    }

    #[test]
    fn the_last_report_about_each_project_is_kept_and_only_another_gist_is_news() {
        let board = Board::default();
        assert!(board.put(A, report("b", "1", 10)));
        assert!(!board.put(A, report("b", "1", 20)), "numbers are no news");
        assert!(board.put(A, report("b", "2", 30)));
        assert!(board.put(A, report("", "2", 5)));
        assert!(board.put(B, report("b", "2", 7)));
        assert_eq!(projects(&board, A), ["", "b"]);
        assert_eq!(board.of(A)[1].json.len(), 30);
        assert_eq!(board.of(B)[0].json.len(), 7);
        assert!(board.of(AgentId(3)).is_empty());
    }

    #[test]
    fn an_agent_has_so_much_room_and_all_together_have_so_much() {
        let limits = Limits { per_agent: 3, bytes_per_agent: 10_000, in_all: 5, bytes_in_all: 12_000 };
        let board = Board::new(limits);
        for project in ["d", "c", "b", "a"] {
            board.put(A, report(project, "1", 10));
        }
        assert_eq!(projects(&board, A), ["a", "b", "c"], "its own oldest is gone");
        for project in ["x", "y", "z"] {
            board.put(B, report(project, "1", 10));
        }
        assert_eq!(
            (projects(&board, A), projects(&board, B).len()),
            (vec!["a".to_owned(), "b".to_owned()], 3)
        );
        board.put(B, report("z", "1", 9_500));
        assert_eq!(projects(&board, B), ["z"], "by bytes, too");
        board.put(A, report("a", "1", 9_500));
        assert_eq!((projects(&board, A).len(), projects(&board, B).len()), (1, 0));
        let state = board.lock();
        let bytes: usize = state.agents.values().map(|agent| agent.bytes).sum();
        assert_eq!((state.bytes, state.order.len()), (bytes, 1));
    }

    #[test]
    fn a_report_that_is_larger_than_all_room_is_not_kept() {
        let board = Board::new(Limits { bytes_per_agent: 100, ..Limits::default() });
        board.put(A, report("a", "1", 1_000));
        assert!(board.of(A).is_empty());
        assert_eq!(board.lock().bytes, 0);
    }
}
