//! Numbered nodes, which of them needs which, and the levels that follow from that. Before it: `order.rs`, which knows
//! what the numbers stand for. Nothing here recurses, since chains may be as long as there are nodes.

use std::collections::VecDeque;

/// Who needs whom.
#[derive(Debug)]
pub(super) struct Graph {
    needs: Vec<Vec<usize>>,
}

/// What becomes of nodes that wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// They have no level, and neither has what needs them.
    Stay,
    /// One of them does not wait, again and again until all have levels.
    Force,
}

impl Graph {
    /// So many nodes that need nothing.
    pub(super) fn new(nodes: usize) -> Self {
        Self { needs: vec![Vec::new(); nodes] }
    }

    pub(super) fn len(&self) -> usize {
        self.needs.len()
    }

    /// Says what a node needs.
    pub(super) fn set(&mut self, node: usize, mut needs: Vec<usize>) {
        needs.sort_unstable();
        needs.dedup();
        self.needs[node] = needs;
    }

    /// In order, each once.
    pub(super) fn needs(&self, node: usize) -> &[usize] {
        &self.needs[node]
    }

    /// Who needs a node.
    pub(super) fn dependents(&self) -> Vec<Vec<usize>> {
        let mut dependents = vec![Vec::new(); self.len()];
        for (node, needs) in self.needs.iter().enumerate() {
            for &needed in needs {
                dependents[needed].push(node);
            }
        }
        dependents
    }

    /// The lowest level of each node that is above those of all that it needs and not below its base. Nodes that are left
    /// out have none; nobody else needs them.
    pub(super) fn levels(
        &self,
        dependents: &[Vec<usize>],
        base: impl Fn(usize) -> usize,
        left_out: &[bool],
        stuck: Stuck,
    ) -> Vec<Option<usize>> {
        let mut levels: Vec<usize> = (0..self.len()).map(base).collect();
        let mut waits: Vec<usize> = self.needs.iter().map(Vec::len).collect();
        let mut done = left_out.to_vec();
        let mut ready: VecDeque<usize> =
            (0..self.len()).filter(|&node| !done[node] && waits[node] == 0).collect();
        let mut first = 0;
        loop {
            while let Some(node) = ready.pop_front() {
                done[node] = true;
                for &dependent in dependents[node].iter().filter(|&&dependent| !done[dependent]) {
                    levels[dependent] = levels[dependent].max(levels[node] + 1);
                    waits[dependent] -= 1;
                    if waits[dependent] == 0 {
                        ready.push_back(dependent);
                    }
                }
            }
            first += done[first..].iter().take_while(|done| **done).count();
            if stuck == Stuck::Stay || first == self.len() {
                break;
            }
            ready.push_back(self.on_ring(first, &done));
        }
        let level = |(node, level): (usize, usize)| (done[node] && !left_out[node]).then_some(level);
        levels.into_iter().enumerate().map(level).collect()
    }

    /// The next node that this one waits for; every node that is not done waits for one.
    fn next(&self, node: usize, done: &[bool]) -> usize {
        self.needs[node].iter().copied().find(|&needed| !done[needed]).unwrap_or(node)
    }

    /// A node that waits for itself, found from one that is not done.
    fn on_ring(&self, start: usize, done: &[bool]) -> usize {
        let mut seen = vec![false; self.len()];
        let mut node = start;
        while !seen[node] {
            seen[node] = true;
            node = self.next(node, done);
        }
        node
    }

    /// For each of the stuck nodes a ring that it is on, or that it waits for.
    pub(super) fn rings(&self, stuck: &[bool]) -> Rings {
        let done: Vec<bool> = stuck.iter().map(|stuck| !stuck).collect();
        let mut rings = Rings { rings: Vec::new(), of: vec![None; self.len()] };
        let mut on_path = vec![false; self.len()];
        for start in (0..self.len()).filter(|&node| stuck[node]) {
            let mut path = Vec::new();
            let mut node = start;
            while rings.of[node].is_none() && !on_path[node] {
                on_path[node] = true;
                path.push(node);
                node = self.next(node, &done);
            }
            let ring = match rings.of[node] {
                Some((ring, _)) => ring,
                None => {
                    let begin = path.iter().position(|&known| known == node).unwrap_or_default();
                    let ring = path.split_off(begin);
                    for (place, &node) in ring.iter().enumerate() {
                        rings.of[node] = Some((rings.rings.len(), Some(place)));
                    }
                    rings.rings.push(ring);
                    rings.rings.len() - 1
                }
            };
            for node in path {
                rings.of[node] = Some((ring, None));
            }
        }
        rings
    }
}

/// Nodes that wait for each other.
#[derive(Debug)]
pub(super) struct Rings {
    /// Each node needs the one after it, the last one needs the first.
    rings: Vec<Vec<usize>>,
    /// A node's ring, and its place if it is on it.
    of: Vec<Option<(usize, Option<usize>)>>,
}

impl Rings {
    /// A stuck node's ring, and its place if it is on it.
    pub(super) fn of(&self, node: usize) -> (&[usize], Option<usize>) {
        match self.of[node] {
            Some((ring, place)) => (&self.rings[ring], place),
            None => (&[], None),
        }
    }
}
