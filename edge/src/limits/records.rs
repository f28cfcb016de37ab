//! What is remembered of one token, one address and one agent.
//!
//! Beneath `limits`, in its tables. Only numbers: nothing here can be turned back into a token.

use super::bucket::Level;
use super::table::Record;
use std::net::IpAddr;

/// A token whose stream was open for so long was good: brokers refuse others at once.
const SETTLED_SECONDS: u32 = 10;
const SECOND: u64 = 1_000_000_000;
/// The first wait of an address that shows too many tokens that are none; doubled each time.
const WAIT: u64 = SECOND;
const WAIT_MAX: u64 = 60 * SECOND;
/// An address that was quiet for so long begins again with the first wait.
const QUIET: u64 = 600 * SECOND;
/// Offences that an address can owe for: what it does beyond that costs it nothing more, so it is forgiven within seconds.
pub(super) const OFFENCES: u64 = 16;
/// Connections of an address that wait because of others of its; further ones are closed. Each costs a descriptor and the
/// task that waits.
const WAITING: u32 = 64;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Token {
    pub(super) level: Level,
    /// A broker said that it is none; until then nobody is asked again.
    pub(super) failed_until: u64,
    pub(super) streams: u32,
    /// When the oldest of them may have begun, in seconds.
    pub(super) since: u32,
    /// A broker has served it.
    pub(super) good: bool,
}

impl Token {
    pub(super) fn is_good(&self, now: u64) -> bool {
        self.good || self.streams > 0 && seconds(now).saturating_sub(self.since) >= SETTLED_SECONDS
    }

    /// The first stream after none begins.
    pub(super) fn begin(&mut self, now: u64) {
        if self.streams == 0 {
            self.since = seconds(now);
        }
    }
}

fn seconds(time: u64) -> u32 {
    u32::try_from(time / SECOND).unwrap_or(u32::MAX)
}

impl Record for Token {
    fn is_held(&self) -> bool {
        self.streams > 0
    }

    /// A flood of tokens that nobody knows pushes out its own kind. That they failed makes them no better: a token that is
    /// over its limit must not be forgotten for them.
    fn worth(&self) -> u64 {
        let good = if self.good { 1 << 63 } else { 0 };
        good | self.level.full_at()
    }
}

/// An address, or the /64 of an IPv6 one: so much a single subscriber has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Network([u8; 16]);

impl Network {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self(ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => {
                let mut octets = ip.octets();
                octets[8..].fill(0);
                Self(octets)
            }
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Address {
    pub(super) level: Level,
    pub(super) streams: u32,
    pub(super) connections: u32,
    /// The bucket of tokens that were none.
    failures_full_at: u64,
    /// New tokens are refused until then.
    pub(super) blocked_until: u64,
    /// How often it was blocked in a row.
    strikes: u8,
    /// The bucket of connections that were opened.
    pub(super) opened_full_at: u64,
    /// New connections wait until then.
    pub(super) wait_until: u64,
    /// Those that do.
    pub(super) waiting: u32,
}

impl Address {
    /// A broker did not know a token from here. Until when new ones are refused, if that begins now.
    pub(super) fn failed(&mut self, bucket: super::bucket::Bucket, now: u64) -> Option<u64> {
        // What was under way when the wait began is no further offence.
        if now < self.blocked_until || bucket.take(&mut self.failures_full_at, now).is_ok() {
            return None;
        }
        if now.saturating_sub(self.blocked_until) > QUIET {
            self.strikes = 0;
        }
        self.blocked_until = now + (WAIT << self.strikes).min(WAIT_MAX);
        self.strikes = (self.strikes + 1).min(16);
        Some(self.blocked_until)
    }
}

impl Address {
    /// A connection from here broke the rules, each of which costs the next ones so much. Until when they wait.
    pub(super) fn offended(&mut self, wait: u64, now: u64) -> u64 {
        let most = now.saturating_add(wait.saturating_mul(OFFENCES));
        self.wait_until = self.wait_until.max(now).saturating_add(wait).min(most);
        self.wait_until
    }

    /// How long a new connection waits; it is one of those who do, then. `Err`: there are too many.
    pub(super) fn queue(&mut self, now: u64) -> Result<Option<u64>, u64> {
        match self.wait_until.checked_sub(now).filter(|wait| *wait > 0) {
            None => Ok(None),
            Some(wait) if self.waiting >= WAITING => Err(wait),
            Some(wait) => {
                self.waiting += 1;
                Ok(Some(wait))
            }
        }
    }
}

impl Record for Address {
    fn is_held(&self) -> bool {
        self.streams > 0 || self.connections > 0 || self.waiting > 0
    }

    fn worth(&self) -> u64 {
        let buckets = self.level.full_at().max(self.failures_full_at).max(self.opened_full_at);
        buckets.max(self.blocked_until).max(self.wait_until)
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agent {
    pub(super) level: Level,
    pub(super) streams: u32,
}

impl Record for Agent {
    fn is_held(&self) -> bool {
        self.streams > 0
    }

    fn worth(&self) -> u64 {
        self.level.full_at()
    }
}

/// What policies of `mode: report` would have let pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Supposed {
    pub(super) level: Level,
}

impl Record for Supposed {
    fn is_held(&self) -> bool {
        false
    }

    fn worth(&self) -> u64 {
        self.level.full_at()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::Rate;
    use crate::limits::bucket::Bucket;
    use std::num::NonZeroU32;

    #[test]
    fn an_ipv6_subscriber_is_one_and_an_ipv4_address_in_any_form_too() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn an_address_that_goes_on_waits_longer_each_time_and_a_quiet_one_is_forgiven() {
        let of = |number| NonZeroU32::new(number).unwrap();
        let bucket = Bucket::new(Rate { per_minute: of(60), burst: of(10) });
        let (mut address, mut now) = (Address::default(), 0);
        let blocked = |address: &mut Address, now: u64| loop {
            if let Some(until) = address.failed(bucket, now) {
                return (until - now) / SECOND;
            }
        };
        let mut waits = Vec::new();
        for _ in 0..9 {
            waits.push(blocked(&mut address, now));
            assert_eq!(address.failed(bucket, now), None, "it waits already");
            now = address.blocked_until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += QUIET + 1;
        assert_eq!(blocked(&mut address, now), 1);
    }

    #[test]
    fn records_are_as_small_as_the_documentation_says() {
        let sizes =
            [size_of::<([u8; 32], Token)>(), size_of::<(Network, Address)>(), size_of::<(u64, Agent)>()];
        assert_eq!(sizes, [72, 80, 32]);
    }

    #[test]
    fn a_token_with_a_stream_that_lasts_was_good() {
        let mut token = Token::default();
        token.begin(5 * SECOND);
        token.streams = 1;
        assert!(!token.is_good(14 * SECOND) && token.is_good(15 * SECOND));
        token.streams = 0;
        assert!(!token.is_good(99 * SECOND));
    }
}
