//! What policies of `mode: report` would refuse: judged as if they were in force, with levels of their own.
//!
//! Beneath `limits`, after every limit that is in force has let a request pass. Refuses nobody.

use super::bucket::{Level, Measure, Pays};
use super::numbers::{InForce, Judged, Whose, name_of};
use super::records::{Network, Supposed};
use super::table::Table;
use super::{Call, Inner, Limit, TokenId};
use postern_policies::{Kind, Rule};
use std::fmt;
use std::hash::Hash;

/// A policy of `mode: report` that would have refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    pub kind: Kind,
    /// What was reached, by the name that it has where it is enforced.
    pub limit: &'static str,
    /// `LimitPolicy/ours`.
    pub rule: Box<str>,
}

impl Reported {
    pub(crate) fn new(limit: &'static str, rule: &Rule) -> Self {
        Self { kind: rule.kind, limit, rule: name_of(rule) }
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.limit, self.rule)
    }
}

/// The levels under those policies, as bounded as those that count.
#[derive(Debug)]
pub(super) struct Supposition {
    tokens: Table<TokenId, Supposed>,
    addresses: Table<Network, Supposed>,
    agents: Table<u64, Supposed>,
}

/// One of the three that are measured.
struct Side<'a, K> {
    whose: Whose,
    table: &'a Table<K, Supposed>,
    key: &'a K,
    /// Streams open now, with the one that is judged.
    open: u32,
    names: [Limit; 2],
}

impl Inner {
    /// What would have refused a call that was let pass.
    pub(super) fn suppose(
        &self,
        in_force: &InForce,
        call: &Call<'_>,
        known: bool,
        now: u64,
        reported: &mut Vec<Reported>,
    ) {
        let subject = call.subject();
        let judged = |whose| Some(in_force.now.judged(whose, &subject)).filter(Judged::is_reported);
        let room = || {
            self.supposition.get_or_init(|| Supposition {
                tokens: Table::new(self.tokens.capacity()),
                addresses: Table::new(self.addresses.capacity()),
                agents: Table::new(self.agents.capacity()),
            })
        };
        let pays = if call.pays { Pays::Yes } else { Pays::No };
        if let Some(token) = &call.token
            && let Some(judged) = judged(Whose::Token)
        {
            let key = token.as_bytes();
            let open = self.tokens.find(key, |token| token.streams).unwrap_or(0);
            let names = [Limit::TokenRate, Limit::TokenStreams];
            let side = Side { whose: Whose::Token, table: &room().tokens, key, open, names };
            reported.extend(side.judge(in_force, call, &judged, pays, now));
        }
        if let Some(client) = call.client
            && let Some(judged) = judged(Whose::Ip)
        {
            let key = &Network::of(client);
            let open = self.addresses.find(key, |address| address.streams).unwrap_or(0);
            let names = [Limit::IpRate, Limit::IpStreams];
            let side = Side { whose: Whose::Ip, table: &room().addresses, key, open, names };
            reported.extend(side.judge(in_force, call, &judged, pays, now));
        }
        // A credential that nobody knows yet counts at no agent.
        if let Some(key) = call.agent.as_ref().filter(|_| known)
            && let Some(judged) = judged(Whose::Agent)
        {
            let open = self.agents.find(key, |agent| agent.streams).unwrap_or(0);
            let names = [Limit::AgentRate, Limit::AgentStreams];
            let side = Side { whose: Whose::Agent, table: &room().agents, key, open, names };
            reported.extend(side.judge(in_force, call, &judged, pays, now));
        }
    }
}

impl<K: Copy + Default + Eq + Hash> Side<'_, K> {
    fn judge(
        &self,
        in_force: &InForce,
        call: &Call<'_>,
        judged: &Judged<'_>,
        pays: Pays,
        now: u64,
    ) -> Option<Reported> {
        let Measure { rate, streams } = judged.reported;
        if streams > 0 && self.open > streams {
            return Some(Reported::new(self.names[1].name(), judged.reported_streams_by?));
        }
        let bucket = rate.filter(|_| pays == Pays::Yes)?;
        let take = |supposed: &mut Supposed, _| {
            let level: &mut Level = &mut supposed.level;
            in_force.catch_up_supposed(level, self.whose, &call.subject());
            (level.take(bucket, now).is_ok(), true)
        };
        match self.table.with(self.key, take) {
            Some((false, _)) => Some(Reported::new(self.names[0].name(), judged.reported_rate_by?)),
            _ => None,
        }
    }
}

impl Judged<'_> {
    fn is_reported(&self) -> bool {
        self.reported_rate_by.is_some() || self.reported_streams_by.is_some()
    }
}
