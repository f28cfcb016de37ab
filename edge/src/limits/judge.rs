//! How one token is judged, what its failures cost its address, and what a refused stream gives back.
//!
//! Beneath `limits`, which asks for each stream in turn: the token, the address, the agent. Holds no state of its own.

use super::bucket::{Over, Pays};
use super::numbers::{InForce, Judged, Whose, name_of};
use super::permit::{ADDRESS, Permit, TOKEN};
use super::records::{Network, Token};
use super::{Call, Inner, LATER, Limit, nanos};
use crate::reply::Reason;
use postern_policies::Rule;
use postern_wire::token::TokenKey;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// From which buckets a stream has taken.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Took {
    pub(super) token: bool,
    pub(super) address: bool,
}

impl Inner {
    pub(super) fn time(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.begin))
    }

    /// Whether a stream took from the token's bucket, if it may go on.
    pub(super) fn judge_token(
        &self,
        in_force: &InForce,
        token: &mut Token,
        call: &Call<'_>,
        pays: Pays,
        now: u64,
    ) -> Result<bool, Reason> {
        if now < token.failed_until {
            return Err(Reason::FailedToken);
        }
        token.good = token.is_good(now);
        if !token.good
            && let Some(wait) = self.blocked_for(call, now)
        {
            return Err(Reason::TooMany { limit: Limit::FailedTokens, retry_after: wait, rule: None });
        }
        token.begin(now);
        let subject = call.subject();
        in_force.catch_up(&mut token.level, Whose::Token, &subject);
        let judged = in_force.now.judged(Whose::Token, &subject);
        judged
            .enforced
            .open(&mut token.level, &mut token.streams, pays, now)
            .map_err(|over| refusal(over, Limit::TokenRate, Limit::TokenStreams, &judged))
    }

    /// Whether the streams of an address or an agent are counted.
    pub(super) fn counts(&self, judged: &Judged<'_>) -> bool {
        self.obeys || judged.enforced.is_set()
    }

    fn blocked_for(&self, call: &Call<'_>, now: u64) -> Option<Duration> {
        if self.blocked_until.load(Ordering::Relaxed) <= now {
            return None;
        }
        let until = self.addresses.find(&Network::of(call.client?), |address| address.blocked_until)?;
        until.checked_sub(now).filter(|wait| *wait > 0).map(Duration::from_nanos)
    }

    pub(super) fn failed(&self, client: IpAddr, token: &TokenKey, now: u64) {
        let base = self.in_force.load().now.base.clone();
        let until = if base.remember == 0 { 0 } else { now.saturating_add(base.remember) };
        self.tokens.find(token.as_bytes(), |token| {
            token.good = false;
            token.failed_until = until;
        });
        let Some(bucket) = base.failed else { return };
        let judged =
            self.addresses.with(&Network::of(client), |address, _| (address.failed(bucket, now), true));
        if let Some((Some(until), _)) = judged {
            self.blocked_until.fetch_max(until, Ordering::Relaxed);
            let seconds = until.saturating_sub(now) / 1_000_000_000;
            tracing::info!(%client, seconds, "too many tokens from here that no broker knows; new ones are refused");
        }
    }

    /// A stream that another limit refused has taken nothing of the token's rate, nor of the address': what it took of them
    /// is given back, and no more.
    pub(super) fn give_back(&self, permit: &Permit, took: Took) {
        if let Some(place) = permit.place(TOKEN).filter(|_| took.token) {
            self.tokens.at(place, |token| token.level.give_back());
        }
        if let Some(place) = permit.place(ADDRESS).filter(|_| took.address) {
            self.addresses.at(place, |address| address.level.give_back());
        }
    }
}

pub(super) fn refusal(over: Over, rate: Limit, streams: Limit, judged: &Judged<'_>) -> Reason {
    let named = |rule: Option<&Rule>| rule.map(name_of);
    match over {
        Over::Rate(wait) => Reason::TooMany {
            limit: rate,
            retry_after: Duration::from_nanos(wait),
            rule: named(judged.rate_by),
        },
        Over::Streams => {
            Reason::TooMany { limit: streams, retry_after: LATER, rule: named(judged.streams_by) }
        }
    }
}
