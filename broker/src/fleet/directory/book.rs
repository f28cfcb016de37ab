//! What Redis should hold of this broker's agents, and what it does as far as is known. Pure: the writer asks what is to
//! be written, says what became of it, and may be interrupted in between. A write whose outcome is not known is repeated.

use postern_wire::ids::AgentId;
use std::collections::{BTreeSet, HashMap};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Book {
    agents: HashMap<AgentId, Entry>,
    /// Held here, to be written.
    unwritten: BTreeSet<AgentId>,
    /// The same, but writing failed: later.
    failed: BTreeSet<AgentId>,
    /// Not held any more, to be removed then.
    fading: BTreeSet<(Instant, AgentId)>,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    /// When it is to be removed, if its agent is gone.
    gone: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Redis has nothing.
    New,
    /// A write or a removal was begun.
    Unsure,
    Written,
}

impl Book {
    /// The agent is held here.
    pub(super) fn hold(&mut self, agent: AgentId) {
        let entry = self.agents.entry(agent).or_insert(Entry { standing: Standing::New, gone: None });
        if let Some(at) = entry.gone.take() {
            self.fading.remove(&(at, agent));
        }
        if entry.standing != Standing::Written && !self.failed.contains(&agent) {
            self.unwritten.insert(agent);
        }
    }

    pub(super) fn knows(&self, agent: AgentId) -> bool {
        self.agents.contains_key(&agent)
    }

    /// The agent is not held any more; its entry is removed at `at`.
    pub(super) fn lose(&mut self, agent: AgentId, at: Instant) {
        let Some(entry) = self.agents.get_mut(&agent) else { return };
        self.unwritten.remove(&agent);
        self.failed.remove(&agent);
        if entry.standing == Standing::New {
            self.agents.remove(&agent);
        } else if entry.gone.is_none() {
            entry.gone = Some(at);
            self.fading.insert((at, agent));
        }
    }

    /// All that are gone are removed without delay.
    pub(super) fn hasten(&mut self, now: Instant) {
        let late = self.fading.split_off(&(now, AgentId(i64::MIN)));
        for (_, agent) in late {
            self.delay(agent, now);
        }
    }

    /// Redis may have lost everything.
    pub(super) fn doubt(&mut self) {
        for (agent, entry) in &mut self.agents {
            entry.standing = Standing::Unsure;
            if entry.gone.is_none() {
                self.unwritten.insert(*agent);
            }
        }
        self.failed.clear();
    }

    /// At most so many that are to be written now. They stay to be until [`Book::written`] says otherwise.
    pub(super) fn write(&mut self, count: usize) -> Vec<AgentId> {
        let chosen: Vec<_> = self.unwritten.iter().copied().take(count).collect();
        self.unsure(&chosen);
        chosen
    }

    pub(super) fn written(&mut self, agent: AgentId, is_good: bool) {
        if self.unwritten.remove(&agent) && !is_good {
            self.failed.insert(agent);
        }
        if let Some(entry) = self.agents.get_mut(&agent) {
            entry.standing = if is_good { Standing::Written } else { Standing::Unsure };
        }
    }

    /// At most so many that are to be removed now.
    pub(super) fn remove(&mut self, count: usize, now: Instant) -> Vec<AgentId> {
        let due = self.fading.iter().take_while(|(at, _)| *at <= now).take(count);
        let chosen: Vec<_> = due.map(|(_, agent)| *agent).collect();
        self.unsure(&chosen);
        chosen
    }

    pub(super) fn removed(&mut self, agent: AgentId) {
        if let Some(entry) = self.agents.remove(&agent) {
            entry.gone.map(|at| self.fading.remove(&(at, agent)));
            self.unwritten.remove(&agent);
            self.failed.remove(&agent);
        }
    }

    /// Its removal is tried again then.
    pub(super) fn delay(&mut self, agent: AgentId, until: Instant) {
        if let Some(gone) = self.agents.get_mut(&agent).and_then(|entry| entry.gone.as_mut()) {
            self.fading.remove(&(*gone, agent));
            *gone = until;
            self.fading.insert((until, agent));
        }
    }

    /// A written one was refreshed, or could not be.
    pub(super) fn refreshed(&mut self, agent: AgentId, is_good: bool) {
        if let Some(entry) = self.agents.get_mut(&agent)
            && !is_good
        {
            entry.standing = Standing::Unsure;
            if entry.gone.is_none() {
                self.failed.insert(agent);
            }
        }
    }

    /// What failed is to be written now.
    pub(super) fn retry(&mut self) {
        self.unwritten.append(&mut self.failed);
    }

    pub(super) fn is_written(&self, agent: AgentId) -> bool {
        self.agents.get(&agent).is_some_and(|entry| entry.standing == Standing::Written)
    }

    /// All that Redis holds for sure: also those that are gone, for they may come back.
    pub(super) fn all_written(&self) -> Vec<AgentId> {
        let written = self.agents.iter().filter(|(_, entry)| entry.standing == Standing::Written);
        written.map(|(agent, _)| *agent).collect()
    }

    /// All that Redis may hold.
    pub(super) fn all(&self) -> Vec<AgentId> {
        let written = self.agents.iter().filter(|(_, entry)| entry.standing != Standing::New);
        written.map(|(agent, _)| *agent).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }

    /// When something is to be removed next.
    pub(super) fn next_removal(&self) -> Option<Instant> {
        self.fading.first().map(|(at, _)| *at)
    }

    pub(super) fn is_anything_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    #[cfg(test)]
    fn has_anything_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn unsure(&mut self, chosen: &[AgentId]) {
        for agent in chosen {
            if let Some(entry) = self.agents.get_mut(agent) {
                entry.standing = Standing::Unsure;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ONE: AgentId = AgentId(1);

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_comes_and_goes_before_anything_was_written_costs_nothing() {
        let mut book = Book::default();
        book.hold(ONE);
        book.lose(ONE, later(5));
        assert!(book.write(9).is_empty() && book.remove(9, later(9)).is_empty() && book.len() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_in_time_is_not_written_again() {
        let mut book = Book::default();
        book.hold(ONE);
        assert_eq!(book.write(9), [ONE]);
        book.written(ONE, true);
        book.lose(ONE, later(5));
        assert_eq!(book.next_removal(), Some(later(5)));
        assert!(book.remove(9, later(4)).is_empty());
        assert_eq!(book.all_written(), [ONE], "it is refreshed meanwhile");
        book.hold(ONE);
        assert!(book.remove(9, later(9)).is_empty() && book.write(9).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_of_a_write_that_was_interrupted_is_not_assumed() {
        let mut book = Book::default();
        book.hold(ONE);
        assert_eq!(book.write(9), [ONE]);
        assert_eq!(book.write(9), [ONE], "again");
        book.lose(ONE, later(5));
        assert_eq!(book.remove(9, later(5)), [ONE], "it may be there");
        book.hold(ONE);
        assert_eq!(book.write(9), [ONE], "it may be gone");
        book.written(ONE, false);
        assert!(book.write(9).is_empty() && book.has_anything_failed());
        book.retry();
        assert_eq!(book.write(9), [ONE]);
        book.written(ONE, true);
        book.lose(ONE, later(5));
        assert_eq!(book.remove(9, later(5)), [ONE]);
        book.delay(ONE, later(7));
        assert!(book.remove(9, later(6)).is_empty());
        assert_eq!(book.remove(9, later(7)), [ONE]);
        book.removed(ONE);
        assert_eq!((book.len(), book.next_removal()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_doubt_everything_held_is_written_again() {
        let mut book = Book::default();
        for agent in 0..5 {
            book.hold(AgentId(agent));
        }
        for agent in book.write(9) {
            book.written(agent, agent.0 != 4);
        }
        book.refreshed(AgentId(0), false);
        book.lose(AgentId(1), later(5));
        book.doubt();
        assert_eq!(book.write(9), [0, 2, 3, 4].map(AgentId));
        assert!(!book.has_anything_failed());
        book.hasten(Instant::now());
        assert_eq!(book.remove(9, Instant::now()), [AgentId(1)]);
    }
}
