//! Finds the most specific rule for a subject, in a time that hardly grows with the number of rules, without allocating.
//!
//! Under `rules`. A tree with one level for each dimension in the order of specificity. Values are numbered once, so a
//! subject is first put as the numbers that match it, the most specific first, and the way through the tree, depth first,
//! is then in the order of specificity as well. The last level says which rules have exactly this selector.

use super::selector::{Cidr, Header, HexPrefix, MAX_DOTS, Mode, Selector, lot, without_v};
use crate::Subject;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Agent, token, project, client, version.
const LEVELS: usize = 5;

/// The most values that can match a subject: one agent, each length of a hash, one project, each length of an IPv6 prefix,
/// a version with its beginnings.
const MOST: usize = 1 + 64 + 1 + 129 + (MAX_DOTS + 2);

/// No node, no rule.
const NONE: u32 = u32::MAX;

type Map<K> = HashMap<K, u32, BuildHasherDefault<Mix>>;

/// The positions of the rules in force and the one that reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) in_force: Option<usize>,
    pub(super) reported: Option<usize>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    values: Values,
    /// The first one is the root.
    nodes: Vec<Node>,
    /// From a node and a value to a node of the next level or, on the last one, to a leaf.
    branches: Map<(u32, u32)>,
    leaves: Vec<Leaf>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// Where the dimension is not asked for.
    any: u32,
    /// Whether any value leads on from here.
    branches: bool,
}

/// Rules with one and the same selector.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    /// Those that report beat their equals, canaries first.
    reports: [Slot; 2],
    enforces: [Slot; 2],
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    rule: u32,
    /// The share of tokens, of 10,000; more for all subjects.
    share: u16,
}

/// Every value that some selector asks for, as a number of its own.
#[derive(Clone, Debug, Default)]
struct Values {
    count: u32,
    agents: Map<u64>,
    tokens: Map<HexPrefix>,
    projects: Map<u64>,
    networks: Map<Cidr>,
    versions: Map<Box<str>>,
    /// Which lengths there are; the longest first.
    digits: Vec<u8>,
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
}

/// The values that match a subject.
struct Matching {
    numbers: [u32; MOST],
    /// Where the values of each level end.
    ends: [u8; LEVELS],
    lot: Option<u16>,
}

impl Index {
    /// Adds a rule for all that its selector names.
    ///
    /// # Errors
    /// The position of a rule with the same mode that has one of its selectors already; nothing was added then.
    pub(super) fn add(&mut self, header: &Header, rule: usize) -> Result<(), usize> {
        let (wanted, canary) = (header.mode, header.canary.is_some());
        let cells = self.values.cells(&header.selector);
        let slot = |leaf: &Leaf| leaf.slot(wanted, canary).rule;
        if let Some(tie) = Cells::new(&cells)
            .filter_map(|cell| self.leaf(&cell))
            .map(|leaf| slot(&self.leaves[leaf as usize]))
            .find(|other| *other != NONE)
        {
            return Err(tie as usize);
        }
        let share = header.canary.unwrap_or(u16::MAX);
        let new = Slot { rule: u32::try_from(rule).unwrap_or(NONE), share };
        for cell in Cells::new(&cells) {
            let leaf = self.leaf_or_new(&cell);
            *self.leaves[leaf as usize].slot_mut(wanted, canary) = new;
        }
        Ok(())
    }

    pub(super) fn shrink(&mut self) {
        self.nodes.shrink_to_fit();
        self.branches.shrink_to_fit();
        self.leaves.shrink_to_fit();
    }

    pub(super) fn choose(&self, subject: &Subject<'_>) -> Found {
        let mut found = Found::default();
        if !self.nodes.is_empty() {
            let matching = self.values.matching(subject);
            self.descend(0, 0, &matching, &mut (false, &mut found));
        }
        found
    }

    /// Whether the search is over.
    fn descend(&self, node: u32, level: usize, matching: &Matching, state: &mut (bool, &mut Found)) -> bool {
        if level == LEVELS {
            let (report_decided, found) = state;
            let leaf = &self.leaves[node as usize];
            let first = |slots: &[Slot; 2]| {
                slots.iter().find(|slot| slot.takes(matching.lot)).map(|slot| slot.rule as usize)
            };
            let in_force = first(&leaf.enforces);
            if !*report_decided {
                found.reported = first(&leaf.reports);
                *report_decided = found.reported.is_some() || in_force.is_some();
            }
            found.in_force = in_force;
            return in_force.is_some();
        }
        let Node { any, branches } = self.nodes[node as usize];
        if branches {
            for value in matching.of(level) {
                if let Some(next) = self.branches.get(&(node, *value))
                    && self.descend(*next, level + 1, matching, state)
                {
                    return true;
                }
            }
        }
        any != NONE && self.descend(any, level + 1, matching, state)
    }

    fn leaf(&self, cell: &[u32; LEVELS]) -> Option<u32> {
        let mut node = 0;
        for value in cell {
            node = match *value {
                NONE => self.nodes.get(node as usize)?.any,
                value => *self.branches.get(&(node, value))?,
            };
            if node == NONE {
                return None;
            }
        }
        Some(node)
    }

    fn leaf_or_new(&mut self, cell: &[u32; LEVELS]) -> u32 {
        if self.nodes.is_empty() {
            self.nodes.push(Node { any: NONE, branches: false });
        }
        let mut node = 0;
        for (level, value) in cell.iter().enumerate() {
            let there = match *value {
                NONE => self.nodes[node as usize].any,
                value => self.branches.get(&(node, value)).copied().unwrap_or(NONE),
            };
            node = if there == NONE { self.grow(node, *value, level + 1 == LEVELS) } else { there };
        }
        node
    }

    fn grow(&mut self, from: u32, value: u32, last: bool) -> u32 {
        // Selectors are bounded in number, far below what 32 bits can count.
        let new = if last {
            self.leaves.push(Leaf::default());
            self.leaves.len() as u32 - 1
        } else {
            self.nodes.push(Node { any: NONE, branches: false });
            self.nodes.len() as u32 - 1
        };
        let node = &mut self.nodes[from as usize];
        if value == NONE {
            node.any = new;
        } else {
            node.branches = true;
            self.branches.insert((from, value), new);
        }
        new
    }
}

impl Default for Leaf {
    fn default() -> Self {
        let free = Slot { rule: NONE, share: 0 };
        Self { reports: [free; 2], enforces: [free; 2] }
    }
}

impl Leaf {
    fn slot(&self, mode: Mode, canary: bool) -> &Slot {
        let slots = match mode {
            Mode::Report => &self.reports,
            Mode::Enforce => &self.enforces,
        };
        &slots[usize::from(!canary)]
    }

    fn slot_mut(&mut self, mode: Mode, canary: bool) -> &mut Slot {
        let slots = match mode {
            Mode::Report => &mut self.reports,
            Mode::Enforce => &mut self.enforces,
        };
        &mut slots[usize::from(!canary)]
    }
}

impl Slot {
    fn takes(&self, lot: Option<u16>) -> bool {
        self.rule != NONE && (self.share == u16::MAX || lot.is_some_and(|lot| lot < self.share))
    }
}

impl Values {
    /// The numbers of a selector's values, by dimension.
    fn cells(&mut self, selector: &Selector) -> [Vec<u32>; LEVELS] {
        let count = &mut self.count;
        let agents = selector.agent_ids.iter().map(|id| number(&mut self.agents, *id, count)).collect();
        let tokens = selector.token_hashes.iter().map(|prefix| {
            longest_first(&mut self.digits, prefix.digits());
            number(&mut self.tokens, *prefix, count)
        });
        let tokens = tokens.collect();
        let projects = selector.project_ids.iter().map(|id| number(&mut self.projects, *id, count)).collect();
        let networks = selector.client_cidrs.iter().map(|cidr| {
            let v4 = cidr.address().is_ipv4();
            longest_first(if v4 { &mut self.v4_lengths } else { &mut self.v6_lengths }, cidr.length());
            number(&mut self.networks, *cidr, count)
        });
        let networks = networks.collect();
        let versions = selector.agent_versions.iter();
        let versions = versions.map(|one| number(&mut self.versions, one.text().into(), count)).collect();
        [agents, tokens, projects, networks, versions]
    }

    fn matching(&self, subject: &Subject<'_>) -> Matching {
        let mut matching = Matching { numbers: [NONE; MOST], ends: [0; LEVELS], lot: lot(subject) };
        let mut count = 0;
        let mut put = |number: Option<&u32>| {
            if let Some(number) = number {
                matching.numbers[count] = *number;
                count += 1;
            }
            count as u8
        };
        let mut ends = [0; LEVELS];
        ends[0] = put(subject.agent_id.and_then(|id| self.agents.get(&id)));
        if let Some(hash) = subject.token_hash {
            for digits in &self.digits {
                put(self.tokens.get(&HexPrefix::of(hash, *digits)));
            }
        }
        ends[1] = put(None);
        ends[2] = put(subject.project_id.and_then(|id| self.projects.get(&id)));
        if let Some(client) = subject.client.map(|client| client.to_canonical()) {
            for length in if client.is_ipv4() { &self.v4_lengths } else { &self.v6_lengths } {
                put(self.networks.get(&Cidr::of(client, *length)));
            }
        }
        ends[3] = put(None);
        if !self.versions.is_empty()
            && let Some(version) = subject.agent_version
        {
            self.versions_of(without_v(version), &mut |number| {
                put(number);
            });
        }
        ends[4] = put(None);
        matching.ends = ends;
        matching
    }

    /// The version itself, then its beginnings, the longest first. Reads no more of it than a pattern can ask for.
    fn versions_of(&self, version: &str, put: &mut impl FnMut(Option<&u32>)) {
        // One without a text cannot match a whole version, for this one is the beginning of all.
        if !version.is_empty() && !version.ends_with('.') {
            put(self.versions.get(version));
        }
        let mut dots = [0; MAX_DOTS];
        let mut known = 0;
        for (at, _) in version.match_indices('.').take(MAX_DOTS) {
            dots[known] = at;
            known += 1;
        }
        for at in dots[..known].iter().rev() {
            put(self.versions.get(&version[..=*at]));
        }
        put(self.versions.get(""));
    }
}

fn number<K: Hash + Eq>(map: &mut Map<K>, key: K, count: &mut u32) -> u32 {
    *map.entry(key).or_insert_with(|| {
        *count += 1;
        *count - 1
    })
}

fn longest_first(lengths: &mut Vec<u8>, length: u8) {
    if let Err(at) = lengths.binary_search_by(|other| length.cmp(other)) {
        lengths.insert(at, length);
    }
}

impl Matching {
    fn of(&self, level: usize) -> &[u32] {
        let start = if level == 0 { 0 } else { self.ends[level - 1] };
        &self.numbers[usize::from(start)..usize::from(self.ends[level])]
    }
}

/// Every combination of one value of each dimension; of an empty one, "any".
struct Cells<'a> {
    values: &'a [Vec<u32>; LEVELS],
    next: Option<[usize; LEVELS]>,
}

impl<'a> Cells<'a> {
    fn new(values: &'a [Vec<u32>; LEVELS]) -> Self {
        Self { values, next: Some([0; LEVELS]) }
    }
}

impl Iterator for Cells<'_> {
    type Item = [u32; LEVELS];

    fn next(&mut self) -> Option<Self::Item> {
        let mut at = self.next?;
        let cell = std::array::from_fn(|level| self.values[level].get(at[level]).copied().unwrap_or(NONE));
        self.next = (0..LEVELS).rev().find_map(|level| {
            at[level] += 1;
            if at[level] < self.values[level].len() {
                return Some(at);
            }
            at[level] = 0;
            None
        });
        Some(cell)
    }
}

/// A quick hash. Only operators choose the keys that are kept, so nobody can make them collide from outside.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mix(u64);

impl Mix {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
}
