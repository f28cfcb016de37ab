//! Streams one after another, judged as the edge would.
//!
//! Under `simulate`. Keeps buckets and open streams of as many names as its table holds; who is refused pays nothing and
//! opens nothing. What documents only report is judged beside it, with buckets of its own.

use super::line::{Purpose, Stream};
use super::notes;
use super::report::{Causes, Report};
use crate::{Choice, Gcra, PolicySet, RateLimit, Rule, Ruled, Rules, Subject};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Names whose use is kept.
const NAMES: usize = 200_000;
/// When the table is full, who had nothing open and did nothing for so long is forgotten.
const FORGET: u64 = 600_000_000_000;
/// Streams that are open at once.
const OPEN: usize = 1_000_000;
/// Connections that have paid for their tunnels.
const PAID: usize = 200_000;

/// Whose use is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Who {
    /// The beginning of the token's hash and how many digits of it are known.
    Token([u8; 8], u8),
    /// An address, or the /64 of an IPv6 one, as the edge counts.
    Address(IpAddr),
    Agent(u64),
}

/// What somebody has used.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    rate: Gcra,
    /// As if the documents that only report were in force.
    reported: Gcra,
    open: u32,
    last: u64,
}

pub(super) struct Play<'a> {
    set: &'a PolicySet,
    pub(super) report: Report,
    causes: Causes<'a>,
    used: HashMap<Who, Used>,
    /// When each open stream ends, and whose it is.
    open: BinaryHeap<Reverse<(u64, [Option<Who>; 3])>>,
    paid: HashSet<(u64, [u8; 32])>,
    first: Option<u64>,
    now: u64,
    swept: u64,
    /// The fewest digits of a token's hash that a line had.
    digits: Option<u8>,
}

/// One of the three that a stream's rate and number are limited for.
struct Limit<'a> {
    who: Who,
    rate: (&'static str, &'a Rules<Option<RateLimit>>),
    streams: (&'static str, &'a Rules<u32>),
}

impl<'a> Play<'a> {
    pub(super) fn new(set: &'a PolicySet) -> Self {
        Self {
            set,
            report: Report::default(),
            causes: Causes::default(),
            used: HashMap::new(),
            open: BinaryHeap::new(),
            paid: HashSet::new(),
            first: None,
            now: 0,
            swept: 0,
            digits: None,
        }
    }

    /// Judges the next stream.
    pub(super) fn stream(&mut self, stream: &Stream) {
        self.report.judged += 1;
        self.report.late += u64::from(stream.begin < self.now);
        self.now = self.now.max(stream.begin);
        let first = *self.first.get_or_insert(self.now);
        self.report.span = Duration::from_nanos(self.now - first);
        self.end_until(self.now);
        if stream.token.is_some() {
            let fewest = self.digits.unwrap_or(stream.token_digits);
            self.digits = Some(fewest.min(stream.token_digits));
        }
        let subject = Subject {
            agent_id: stream.agent,
            token_hash: stream.token.as_ref(),
            client: stream.client,
            ..Subject::default()
        };
        let limits = self.limits(stream);
        let admitted = self.may_connect(stream, &subject)
            && self.may_send(stream, &subject)
            && self.may_open(stream, &limits, &subject);
        self.report.refused += u64::from(!admitted);
        self.report.refused_before += u64::from(stream.refused);
        self.report.newly_admitted += u64::from(admitted && stream.refused);
    }

    pub(super) fn finish(mut self) -> Report {
        self.report.refusals = self.causes.finish();
        self.report.notes = notes::of(self.set, self.digits);
        if self.report.newly_admitted > 0 {
            self.report.notes.push(notes::NEWLY_ADMITTED.to_owned());
        }
        self.report
    }

    fn limits(&self, stream: &Stream) -> [Option<Limit<'a>>; 3] {
        let limits = &self.set.limits;
        let token = Who::token(stream).map(|who| Limit {
            who,
            rate: ("requestsPerToken", &limits.requests_per_token),
            streams: ("streamsPerToken", &limits.streams_per_token),
        });
        let address = stream.client.map(|client| Limit {
            who: Who::address(client),
            rate: ("requestsPerIp", &limits.requests_per_ip),
            streams: ("streamsPerIp", &limits.streams_per_ip),
        });
        let agent = stream.agent.filter(|_| stream.purpose == Purpose::KubernetesApi).map(|agent| Limit {
            who: Who::Agent(agent),
            rate: ("requestsPerAgent", &limits.requests_per_agent),
            streams: ("streamsPerAgent", &limits.streams_per_agent),
        });
        [token, address, agent]
    }

    /// Whether the client's address is one that may connect.
    fn may_connect(&mut self, stream: &Stream, subject: &Subject<'_>) -> bool {
        let Some(client) = stream.client else { return true };
        let Choice { in_force, reported } =
            self.set.access.clients.choose(&Subject { client: None, ..*subject });
        let who = Who::Address(client);
        if let Some(ruled) = in_force.filter(|ruled| !ruled.value.admits(client)) {
            self.causes.add("clients", false, ruled.rule, who);
            return false;
        }
        if let Some(ruled) = reported.filter(|ruled| !ruled.value.admits(client)) {
            self.causes.add("clients", true, ruled.rule, who);
        }
        true
    }

    /// Whether its body is small enough. Tunnels and subscriptions have no such limit.
    fn may_send(&mut self, stream: &Stream, subject: &Subject<'_>) -> bool {
        if matches!(stream.purpose, Purpose::Tunnel | Purpose::Subscription) {
            return true;
        }
        let Some(who) = Who::token(stream).or(stream.client.map(Who::address)) else { return true };
        let Choice { in_force, reported } = self.set.limits.body_bytes.choose(subject);
        let over = |ruled: &Ruled<'_, u64>| *ruled.value > 0 && stream.body > *ruled.value;
        if let Some(ruled) = in_force.filter(over) {
            self.causes.add("bodyBytes", false, ruled.rule, who);
            return false;
        }
        if let Some(ruled) = reported.filter(over) {
            self.causes.add("bodyBytes", true, ruled.rule, who);
        }
        true
    }

    /// Takes it out of the buckets, and counts it as open until it ends.
    fn may_open(&mut self, stream: &Stream, limits: &[Option<Limit<'a>>; 3], subject: &Subject<'_>) -> bool {
        let pays = self.must_pay(stream);
        let now = Duration::from_nanos(self.now);
        let mut counted: [Option<Who>; 3] = [None; 3];
        let mut paid: [Option<(Who, Gcra)>; 3] = [None; 3];
        for (index, limit) in limits.iter().enumerate() {
            let Some(limit) = limit.as_ref().filter(|limit| !limit.is_empty()) else { continue };
            if !self.make_room(limit.who) {
                self.report.untracked += 1;
                continue;
            }
            let used = self.used.entry(limit.who).or_default();
            used.last = self.now;
            let (field, streams) = limit.streams;
            let over = streams.find(subject).filter(|most| *most.value > 0 && used.open >= *most.value);
            let mut cause = over.map(|ruled| (field, ruled.rule));
            let (field, rate) = limit.rate;
            if let Some((rate, rule)) = rate.find(subject).filter(|_| cause.is_none() && pays).and_then(rated)
            {
                let before = used.rate;
                match used.rate.take(rate, now) {
                    Ok(()) => paid[index] = Some((limit.who, before)),
                    Err(_) => cause = Some((field, rule)),
                }
            }
            if let Some((field, rule)) = cause {
                for (who, before) in paid.into_iter().flatten() {
                    self.used.entry(who).or_default().rate = before;
                }
                self.causes.add(field, false, rule, limit.who);
                return false;
            }
            counted[index] = Some(limit.who);
        }
        for (limit, counted) in limits.iter().zip(&counted) {
            if let (Some(limit), Some(_)) = (limit, counted) {
                self.report_on(limit, subject, pays, now);
            }
        }
        if stream.end > self.now && self.open.len() < OPEN {
            for who in counted.iter().flatten() {
                self.used.entry(*who).or_default().open += 1;
            }
            self.open.push(Reverse((stream.end, counted)));
        }
        true
    }

    /// What documents that only report would have refused.
    fn report_on(&mut self, limit: &Limit<'a>, subject: &Subject<'_>, pays: bool, now: Duration) {
        let used = self.used.entry(limit.who).or_default();
        let (field, streams) = limit.streams;
        if let Some(most) = streams.choose(subject).reported
            && *most.value > 0
            && used.open >= *most.value
        {
            self.causes.add(field, true, most.rule, limit.who);
        }
        let (field, rate) = limit.rate;
        if let Some((rate, rule)) = rate.choose(subject).reported.filter(|_| pays).and_then(rated)
            && used.reported.take(rate, now).is_err()
        {
            self.causes.add(field, true, rule, limit.who);
        }
    }

    /// Opening the next tunnel is free, once a connection has paid for one of its token.
    fn must_pay(&mut self, stream: &Stream) -> bool {
        let (Purpose::Tunnel, Some(connection), Some(token)) =
            (stream.purpose, stream.connection, stream.token)
        else {
            return true;
        };
        if self.paid.len() >= PAID {
            self.paid.clear();
        }
        self.paid.insert((connection, token))
    }

    fn make_room(&mut self, who: Who) -> bool {
        if self.used.len() < NAMES || self.used.contains_key(&who) {
            return true;
        }
        let (now, since) = (self.now, self.now.saturating_sub(self.swept));
        // Not for each of many names that find no place.
        if since > FORGET / 10 {
            self.swept = now;
            self.used.retain(|_, used| used.open > 0 || now.saturating_sub(used.last) < FORGET);
        }
        self.used.len() < NAMES
    }

    fn end_until(&mut self, now: u64) {
        while let Some(Reverse((end, _))) = self.open.peek()
            && *end <= now
        {
            let Some(Reverse((_, names))) = self.open.pop() else { break };
            for who in names.iter().flatten() {
                let used = self.used.entry(*who).or_default();
                used.open = used.open.saturating_sub(1);
            }
        }
    }
}

impl Limit<'_> {
    fn is_empty(&self) -> bool {
        self.rate.1.is_empty() && self.streams.1.is_empty()
    }
}

/// `None`: without a limit.
fn rated<'a>(ruled: Ruled<'a, Option<RateLimit>>) -> Option<(RateLimit, &'a Rule)> {
    ruled.value.map(|rate| (rate, ruled.rule))
}

impl Who {
    fn token(stream: &Stream) -> Option<Self> {
        let (first, _) = stream.token.as_ref()?.split_first_chunk()?;
        Some(Self::Token(*first, stream.token_digits))
    }

    fn address(client: IpAddr) -> Self {
        Self::Address(match client {
            IpAddr::V4(_) => client,
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(first, digits) => {
                let whole = format!("{:016x}", u64::from_be_bytes(*first));
                write!(f, "token {}", &whole[..usize::from(*digits).min(16)])
            }
            Self::Address(IpAddr::V6(address)) if address.to_bits() << 64 == 0 => {
                write!(f, "address {address}/64")
            }
            Self::Address(address) => write!(f, "address {address}"),
            Self::Agent(agent) => write!(f, "agent {agent}"),
        }
    }
}
