//! What is allowed, and to whom: the numbers of `edge.yaml`, and what policies say instead.
//!
//! Beneath `limits`. Made anew with each change of the policies; asked for each request, without an allocation, and where
//! no policy says anything about a field without a look-up. Counts nothing.

use super::bucket::{Bucket, Level, Measure};
use crate::config::limits::{Limits as Config, Rate};
use postern_policies::{Choice, Limits as Documents, PolicySet, RateLimit, Rule, Ruled, Rules, Subject};
use serde_json::{Value, json};
use std::num::NonZeroU32;
use std::sync::Arc;

/// Numbers before the present ones that are remembered, for those who were judged last by them. Whoever was not asked for
/// so many changes refills a little more exactly than he would otherwise.
const BEFORE: usize = 8;

/// The numbers that hold, and those that held.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) now: Arc<Numbers>,
    /// The oldest first.
    before: Vec<Arc<Numbers>>,
}

/// What was allowed at one time.
#[derive(Debug)]
pub(super) struct Numbers {
    /// From 1.
    generation: u32,
    /// In nanoseconds since the process began.
    since: u64,
    pub(super) base: Arc<Base>,
    set: Arc<PolicySet>,
    said: Said,
}

/// What `edge.yaml` says.
#[derive(Debug)]
pub(super) struct Base {
    measures: [Measure; 3],
    rates: [Option<Rate>; 3],
    pub(super) failed: Option<Bucket>,
    /// In nanoseconds.
    pub(super) remember: u64,
    connections_per_ip: u32,
    pub(super) connection_rate: Option<Bucket>,
    /// What each offence costs, in nanoseconds. 0: nothing.
    pub(super) flood_wait: u64,
    pub(super) header_bytes: u32,
    body_bytes: u64,
}

/// Of what any document says anything.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    rates: [bool; 3],
    streams: [bool; 3],
    connections_per_ip: bool,
    body_bytes: bool,
}

/// Whose use is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Token,
    Ip,
    Agent,
}

/// What holds for one subject, and which documents say so.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Judged<'a> {
    pub(super) enforced: Measure,
    pub(super) rate_by: Option<&'a Rule>,
    pub(super) streams_by: Option<&'a Rule>,
    /// Of `mode: report`. Where nothing is, there is no limit.
    pub(super) reported: Measure,
    pub(super) reported_rate_by: Option<&'a Rule>,
    pub(super) reported_streams_by: Option<&'a Rule>,
}

/// One number, who says so, and what `mode: report` would say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number<'a, T> {
    pub(super) value: T,
    pub(super) by: Option<&'a Rule>,
    pub(super) reported: Option<(T, &'a Rule)>,
}

impl Base {
    pub(super) fn new(config: &Config) -> Self {
        let all = [&config.per_token, &config.per_ip, &config.per_agent];
        Self {
            measures: all.map(|each| Measure { rate: each.rate.map(Bucket::new), streams: each.streams }),
            rates: all.map(|each| each.rate),
            failed: config.failed_tokens.per_ip.map(Bucket::new),
            remember: super::nanos(config.failed_tokens.remember),
            connections_per_ip: config.connections_per_ip,
            connection_rate: config.connection_rate_per_ip.map(Bucket::new),
            flood_wait: super::nanos(config.flood_wait),
            header_bytes: config.header_bytes,
            body_bytes: config.body_bytes,
        }
    }
}

impl InForce {
    pub(super) fn new(base: Base, set: Arc<PolicySet>) -> Self {
        Self { now: Arc::new(Numbers::new(Arc::new(base), set, 1, 0)), before: Vec::new() }
    }

    /// With other policies from `since` on. An edit that leaves all limits as they are changes nothing here.
    pub(super) fn changed(self: &Arc<Self>, set: Arc<PolicySet>, since: u64) -> Arc<Self> {
        if set.limits == self.now.set.limits {
            return self.clone();
        }
        let generation = self.now.generation.wrapping_add(1);
        let spare = (self.before.len() + 1).saturating_sub(BEFORE);
        let before = self.before.iter().chain([&self.now]).skip(spare).cloned().collect();
        Arc::new(Self { now: Arc::new(Numbers::new(self.now.base.clone(), set, generation, since)), before })
    }

    /// Takes a level through the changes that came since it was looked at.
    pub(super) fn catch_up(&self, level: &mut Level, whose: Whose, subject: &Subject<'_>) {
        self.replay(level, |numbers| numbers.judged(whose, subject).enforced.rate);
    }

    /// The same with a level under policies of `mode: report`.
    pub(super) fn catch_up_supposed(&self, level: &mut Level, whose: Whose, subject: &Subject<'_>) {
        self.replay(level, |numbers| numbers.judged(whose, subject).reported.rate);
    }

    fn replay(&self, level: &mut Level, rate: impl Fn(&Numbers) -> Option<Bucket>) {
        let (seen, present) = (level.generation, self.now.generation);
        if seen == present {
            return;
        }
        let age = present.wrapping_sub(seen);
        let missed = self.before.iter().chain([&self.now]);
        for numbers in missed.filter(|numbers| present.wrapping_sub(numbers.generation) < age) {
            if level.full_at() <= numbers.since {
                // Nothing was used any more.
                break;
            }
            level.change(rate(numbers), numbers.since, numbers.generation);
        }
        level.generation = present;
    }
}

impl Numbers {
    fn new(base: Arc<Base>, set: Arc<PolicySet>, generation: u32, since: u64) -> Self {
        let limits = &set.limits;
        let said = Said {
            rates: [
                !limits.requests_per_token.is_empty(),
                !limits.requests_per_ip.is_empty(),
                !limits.requests_per_agent.is_empty(),
            ],
            streams: [
                !limits.streams_per_token.is_empty(),
                !limits.streams_per_ip.is_empty(),
                !limits.streams_per_agent.is_empty(),
            ],
            connections_per_ip: !limits.connections_per_ip.is_empty(),
            body_bytes: !limits.body_bytes.is_empty(),
        };
        Self { generation, since, base, set, said }
    }

    /// What holds for whom.
    pub(super) fn judged(&self, whose: Whose, subject: &Subject<'_>) -> Judged<'_> {
        let at = whose as usize;
        let mut judged = Judged { enforced: self.base.measures[at], ..Judged::default() };
        if self.said.rates[at] {
            let Choice { in_force, reported } = self.rates(whose).choose(subject);
            if let Some(Ruled { value, rule }) = in_force {
                judged.enforced.rate = value.map(bucket);
                judged.rate_by = Some(rule);
            }
            if let Some(Ruled { value, rule }) = reported {
                judged.reported.rate = value.map(bucket);
                judged.reported_rate_by = Some(rule);
            }
        }
        if self.said.streams[at] {
            let Choice { in_force, reported } = self.streams(whose).choose(subject);
            if let Some(Ruled { value, rule }) = in_force {
                judged.enforced.streams = *value;
                judged.streams_by = Some(rule);
            }
            if let Some(Ruled { value, rule }) = reported {
                judged.reported.streams = *value;
                judged.reported_streams_by = Some(rule);
            }
        }
        judged
    }

    /// Whether any document says anything of requests or streams.
    pub(super) fn is_ruled(&self) -> bool {
        self.said.rates.iter().chain(&self.said.streams).any(|said| *said)
    }

    /// Whether any document says anything of bodies.
    pub(super) fn rules_bodies(&self) -> bool {
        self.said.body_bytes
    }

    /// A rate in whole requests, for those who count by the minute.
    pub(super) fn per_minute(
        &self,
        whose: Whose,
        subject: &Subject<'_>,
    ) -> Option<(NonZeroU32, Option<&Rule>)> {
        let at = whose as usize;
        let ruled = if self.said.rates[at] { self.rates(whose).find(subject) } else { None };
        match ruled {
            Some(Ruled { value, rule }) => value.map(|rate| (rate.per_minute, Some(rule))),
            None => self.base.rates[at].map(|rate| (rate.per_minute, None)),
        }
    }

    pub(super) fn connections_per_ip(&self, subject: &Subject<'_>) -> Number<'_, u32> {
        let base = self.base.connections_per_ip;
        number(&self.set.limits.connections_per_ip, self.said.connections_per_ip, base, subject)
    }

    pub(super) fn body_bytes(&self, subject: &Subject<'_>) -> Number<'_, u64> {
        number(&self.set.limits.body_bytes, self.said.body_bytes, self.base.body_bytes, subject)
    }

    fn rates(&self, whose: Whose) -> &Rules<Option<RateLimit>> {
        let Documents { requests_per_token, requests_per_ip, requests_per_agent, .. } = &self.set.limits;
        match whose {
            Whose::Token => requests_per_token,
            Whose::Ip => requests_per_ip,
            Whose::Agent => requests_per_agent,
        }
    }

    fn streams(&self, whose: Whose) -> &Rules<u32> {
        let Documents { streams_per_token, streams_per_ip, streams_per_agent, .. } = &self.set.limits;
        match whose {
            Whose::Token => streams_per_token,
            Whose::Ip => streams_per_ip,
            Whose::Agent => streams_per_agent,
        }
    }

    /// What holds for everybody of whom nothing is known, and which document says so.
    pub(super) fn shown(&self) -> Value {
        let everybody = PolicySet::everybody();
        let limits = &self.set.limits;
        let rate = |whose: Whose| {
            let base = self.base.rates[whose as usize];
            let base = base.map(|Rate { per_minute, burst }| RateLimit { per_minute, burst });
            shown(number(self.rates(whose), true, base, &everybody), |rate| match rate {
                Some(RateLimit { per_minute, burst }) => json!({ "perMinute": per_minute, "burst": burst }),
                None => json!("unlimited"),
            })
        };
        let streams = |whose: Whose| {
            let base = self.base.measures[whose as usize].streams;
            shown(number(self.streams(whose), true, base, &everybody), Value::from)
        };
        let connections = number(&limits.connections_per_ip, true, self.base.connections_per_ip, &everybody);
        json!({
            "requestsPerToken": rate(Whose::Token),
            "streamsPerToken": streams(Whose::Token),
            "requestsPerIp": rate(Whose::Ip),
            "streamsPerIp": streams(Whose::Ip),
            "connectionsPerIp": shown(connections, Value::from),
            "requestsPerAgent": rate(Whose::Agent),
            "streamsPerAgent": streams(Whose::Agent),
            "bodyBytes": shown(self.body_bytes(&everybody), Value::from),
        })
    }
}

fn bucket(rate: RateLimit) -> Bucket {
    Bucket::new(Rate { per_minute: rate.per_minute, burst: rate.burst })
}

fn number<'a, T: Copy>(rules: &'a Rules<T>, said: bool, base: T, subject: &Subject<'_>) -> Number<'a, T> {
    if !said {
        return Number { value: base, by: None, reported: None };
    }
    let Choice { in_force, reported } = rules.choose(subject);
    Number {
        value: in_force.map_or(base, |ruled| *ruled.value),
        by: in_force.map(|ruled| ruled.rule),
        reported: reported.map(|ruled| (*ruled.value, ruled.rule)),
    }
}

fn shown<T>(number: Number<'_, T>, value: impl Fn(T) -> Value) -> Value {
    let mut shown = json!({ "value": value(number.value), "rule": number.by.map(place) });
    if let Some((reported, rule)) = number.reported {
        shown["reported"] = json!({ "value": value(reported), "rule": place(rule) });
    }
    shown
}

/// A document, for people.
fn place(rule: &Rule) -> Value {
    json!({ "name": name_of(rule), "file": rule.file, "line": rule.line })
}

/// `LimitPolicy/ours`.
pub(crate) fn name_of(rule: &Rule) -> Box<str> {
    format!("{:?}/{}", rule.kind, rule.name).into()
}
