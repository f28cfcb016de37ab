//! All limits together, at explicit times: who is refused, who pays, what strangers can and cannot do.

mod policies;

use super::permit::{BITS, Places};
use super::*;
use crate::config::limits::{Each, FailedTokens, Rate, Scope};
use postern_redis::lease::RedisLost;
use std::num::NonZeroU32;

fn each(per_minute: u32, burst: u32, streams: u32, tracked: usize) -> Each {
    let of = NonZeroU32::new;
    let rate = of(per_minute).and_then(|per_minute| Some(Rate { per_minute, burst: of(burst)? }));
    Each { rate, streams, scope: Scope::Process, tracked }
}

/// Nothing is limited.
fn none() -> Config {
    Config {
        per_token: each(0, 0, 0, 10_000),
        per_ip: each(0, 0, 0, 10_000),
        per_agent: each(0, 0, 0, 10_000),
        failed_tokens: FailedTokens { per_ip: None, remember: Duration::ZERO },
        connections: 1,
        connections_per_ip: 0,
        connection_rate_per_ip: None,
        flood_wait: Duration::ZERO,
        header_bytes: 65_536,
        body_bytes: 0,
        redis: None,
        redis_lost: RedisLost::Local,
    }
}

fn limits(config: &Config) -> (Limits, Instant) {
    let begin = Instant::now();
    (Limits::new(config, None, begin).unwrap(), begin)
}

fn key(name: impl AsRef<[u8]>) -> TokenKey {
    TokenKey::of(name.as_ref())
}

const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

fn with(token: &str) -> Call<'static> {
    Call { client: Some(HOME), token: Some(key(token)), pays: true, ..Call::default() }
}

fn limit(result: Result<(Permit, bool), Reason>) -> Option<Limit> {
    match result {
        Ok(_) => None,
        Err(Reason::TooMany { limit, .. }) => Some(limit),
        Err(reason) => panic!("{reason:?}"),
    }
}

fn good(limits: &Limits, token: &str, now: Instant) {
    drop(limits.decide(&with(token), now).unwrap());
    limits.finished_at(HOME, Some(key(token)), 200, Some(0), now);
}

fn bad(limits: &Limits, client: IpAddr, token: &str, now: Instant) {
    drop(limits.decide(&Call { client: Some(client), ..with(token) }, now));
    limits.finished_at(client, Some(key(token)), 200, Some(16), now);
}

#[test]
fn a_permit_is_small() {
    assert!(size_of::<Permit>() <= 16 && size_of::<Result<Permit, Reason>>() <= 56);
    let mut places = Places::default();
    for (which, place) in [(TOKEN, (1 << BITS) - 2), (ADDRESS, 0), (AGENT, 77)] {
        places.set(which, place);
        assert_eq!(places.get(which), Some(place));
    }
    assert_eq!(Places::default().get(ADDRESS), None);
}

#[test]
fn each_rate_and_each_count_of_streams_is_its_own() {
    let of = |change: fn(&mut Config)| {
        let mut config = none();
        change(&mut config);
        config
    };
    let other_token = |call: Call<'static>| Call { token: Some(key("other")), ..call };
    let other_ip = |call: Call<'static>| Call { client: Some(AWAY), ..call };
    let other_agent = |call: Call<'static>| Call { agent: Some(2), ..call };
    type Change = fn(Call<'static>) -> Call<'static>;
    let cases: [(Config, Limit, [Change; 2], Change); 6] = [
        (of(|c| c.per_token = each(60, 2, 0, 100)), Limit::TokenRate, [other_ip, other_agent], other_token),
        (of(|c| c.per_token = each(0, 0, 2, 100)), Limit::TokenStreams, [other_ip, other_agent], other_token),
        (of(|c| c.per_ip = each(60, 2, 0, 100)), Limit::IpRate, [other_token, other_agent], other_ip),
        (of(|c| c.per_ip = each(0, 0, 2, 100)), Limit::IpStreams, [other_token, other_agent], other_ip),
        (of(|c| c.per_agent = each(60, 2, 0, 100)), Limit::AgentRate, [other_token, other_ip], other_agent),
        (of(|c| c.per_agent = each(0, 0, 2, 100)), Limit::AgentStreams, [other_token, other_ip], other_agent),
    ];
    for (config, wanted, same, different) in cases {
        let (limits, begin) = limits(&config);
        let call = Call { agent: Some(1), ..with("a") };
        for token in ["a", "other"] {
            // What takes from an agent is known.
            limits.0.tokens.with(key(token).as_bytes(), |token, _| ((token.good = true), true));
        }
        let held = [limits.decide(&call, begin).unwrap(), limits.decide(&call, begin).unwrap()];
        assert_eq!(limit(limits.decide(&call, begin)), Some(wanted));
        for same in same {
            assert_eq!(limit(limits.decide(&same(call), begin)), Some(wanted));
        }
        assert_eq!(limit(limits.decide(&different(call), begin)), None, "{wanted:?}");
        // Streams are free when they are over, a rate when time has passed.
        drop(held);
        let streams = matches!(wanted, Limit::TokenStreams | Limit::IpStreams | Limit::AgentStreams);
        assert_eq!(limit(limits.decide(&call, begin)).is_none(), streams, "{wanted:?}");
        let later = begin + Duration::from_secs(1);
        assert_eq!(limit(limits.decide(&call, later)), None, "{wanted:?}");
    }
}

#[test]
fn what_one_limit_refuses_takes_nothing_of_the_others() {
    let mut config = none();
    config.per_token = each(60, 5, 3, 100);
    config.per_ip = each(60, 4, 0, 100);
    config.per_agent = each(60, 1, 0, 100);
    let (limits, begin) = limits(&config);
    good(&limits, "a", begin);
    let towards = Call { agent: Some(1), ..with("a") };
    assert_eq!(limit(limits.decide(&towards, begin)), None);
    for _ in 0..100 {
        assert_eq!(limit(limits.decide(&towards, begin)), Some(Limit::AgentRate));
    }
    // Of the address' four: one that proved the token, one that reached the agent, and these.
    assert_eq!([limit(limits.decide(&with("a"), begin)), limit(limits.decide(&with("a"), begin))], [None; 2]);
    for _ in 0..100 {
        assert_eq!(limit(limits.decide(&with("a"), begin)), Some(Limit::IpRate));
    }
    let elsewhere = Call { client: Some(AWAY), ..with("a") };
    assert_eq!(limit(limits.decide(&elsewhere, begin)), None, "the token's fifth");
    assert_eq!(limit(limits.decide(&elsewhere, begin)), Some(Limit::TokenRate));
    assert_eq!(limits.report()["tokens"]["streams"], 0);
}

#[test]
fn a_re_armed_tunnel_pays_nothing_and_counts_as_a_stream() {
    let mut config = none();
    config.per_token = each(60, 1, 3, 100);
    let (limits, begin) = limits(&config);
    let free = Call { pays: false, ..with("a") };
    let held = [limits.decide(&with("a"), begin).unwrap(), limits.decide(&free, begin).unwrap()];
    let third = limits.decide(&free, begin).unwrap();
    assert_eq!(limit(limits.decide(&free, begin)), Some(Limit::TokenStreams));
    drop(third);
    drop(limits.decide(&free, begin).unwrap());
    assert_eq!(limit(limits.decide(&with("a"), begin)), Some(Limit::TokenRate));
    drop(held);
}

#[test]
fn nobody_uses_up_an_agent_with_tokens_that_no_broker_knows() {
    let mut config = none();
    config.per_agent = each(60, 2, 0, 100);
    let (limits, begin) = limits(&config);
    good(&limits, "a", begin);
    for n in 0..1_000 {
        let invented = Call { agent: Some(1), ..with(&format!("ci:1:{n}")) };
        assert_eq!(limit(limits.decide(&invented, begin)), None);
    }
    let known = Call { agent: Some(1), ..with("a") };
    assert_eq!([limit(limits.decide(&known, begin)), limit(limits.decide(&known, begin))], [None; 2]);
    let invented = Call { agent: Some(1), ..with("b") };
    assert_eq!(limit(limits.decide(&invented, begin)), Some(Limit::AgentRate), "but it is limited by it");
}

#[test]
fn nobody_occupies_an_agent_with_tokens_that_no_broker_knows() {
    let mut config = none();
    config.per_agent = each(0, 0, 2, 100);
    let (limits, begin) = limits(&config);
    good(&limits, "a", begin);
    let invented = |n: u64, agent| Call { agent: Some(agent), ..with(&format!("ci:1:{n}")) };
    let held: Vec<_> = (0..1_000).map(|n| limits.decide(&invented(n, 1), begin).unwrap()).collect();
    for agent in 2..1_000 {
        drop(limits.decide(&invented(agent, agent), begin).unwrap());
    }
    assert_eq!(limits.0.agents.len(), 0, "nor does it grow the table");
    let known = Call { agent: Some(1), ..with("a") };
    let two = [limits.decide(&known, begin).unwrap(), limits.decide(&known, begin).unwrap()];
    assert_eq!(limit(limits.decide(&known, begin)), Some(Limit::AgentStreams));
    assert_eq!(limit(limits.decide(&invented(0, 1), begin)), Some(Limit::AgentStreams), "limited by it");
    drop(held);
    assert_eq!(limit(limits.decide(&known, begin)), Some(Limit::AgentStreams), "they leave no place behind");
    drop(two);
    assert_eq!(limit(limits.decide(&known, begin)), None);
}

#[test]
fn only_an_answer_that_takes_a_good_token_makes_one_good() {
    for (http, grpc, wanted) in [
        (200, Some(0), true),
        (200, None, true),
        (204, None, true),
        (101, None, true),
        (100, None, false),
        (301, None, false),
        (304, None, false),
        (403, None, false),
        (404, None, false),
        (503, None, false),
        (200, Some(12), false),
        (200, Some(16), false),
        (0, None, false),
    ] {
        let (limits, begin) = limits(&none());
        drop(limits.decide(&with("x"), begin).unwrap());
        limits.finished_at(HOME, Some(key("x")), http, grpc, begin);
        assert_eq!(limits.decide(&with("x"), begin).unwrap().1, wanted, "{http} {grpc:?}");
    }
}

#[test]
fn a_token_that_failed_is_answered_here_for_a_while() {
    let mut config = none();
    config.failed_tokens.remember = Duration::from_secs(10);
    let (limits, begin) = limits(&config);
    bad(&limits, HOME, "x", begin);
    let at = |seconds| limits.decide(&with("x"), begin + Duration::from_secs(seconds)).map(drop);
    assert_eq!(at(0), Err(Reason::FailedToken));
    assert_eq!(limits.decide(&Call { pays: false, ..with("x") }, begin).map(drop), Err(Reason::FailedToken));
    assert_eq!(
        limits.decide(&Call { client: Some(AWAY), ..with("x") }, begin).map(drop),
        Err(Reason::FailedToken)
    );
    assert_eq!((at(9), at(10)), (Err(Reason::FailedToken), Ok(())));
    // A cluster's 401, a broker in trouble and a caller without a token say nothing about one.
    for (token, http, grpc) in [
        (Some(key("y")), 403, None),
        (Some(key("y")), 0, None),
        (Some(key("y")), 503, None),
        (Some(key("y")), 200, Some(14)),
        (None, 401, None),
    ] {
        drop(limits.decide(&with("y"), begin).unwrap());
        limits.finished_at(HOME, token, http, grpc, begin);
        assert_eq!(limits.decide(&with("y"), begin).map(drop), Ok(()), "{http} {grpc:?}");
    }
    limits.finished_at(HOME, Some(key("y")), 401, None, begin);
    assert_eq!(limits.decide(&with("y"), begin).map(drop), Err(Reason::FailedToken));
}

#[test]
fn an_address_that_guesses_is_refused_new_tokens_and_its_good_ones_go_on() {
    let mut config = none();
    config.failed_tokens.per_ip = each(60, 10, 0, 1).rate;
    let (limits, begin) = limits(&config);
    good(&limits, "good", begin);
    let mut guess = 0;
    let mut wait = |now: Instant| loop {
        guess += 1;
        let token = format!("guess {guess}");
        match limits.decide(&with(&token), now) {
            Err(Reason::TooMany { limit: Limit::FailedTokens, retry_after, .. }) => return retry_after,
            _ => bad(&limits, HOME, &token, now),
        }
    };
    let (mut now, mut waits) = (begin, Vec::new());
    for _ in 0..4 {
        let wait = wait(now);
        waits.push(wait.as_secs());
        assert_eq!(limit(limits.decide(&with("good"), now)), None);
        assert_eq!(limit(limits.decide(&Call { client: Some(AWAY), ..with("new") }, now)), None);
        assert_eq!(limits.report()["addresses"]["blocked"], 1);
        now += wait;
    }
    assert_eq!(waits, [1, 2, 4, 8], "it grows");
    assert!(guess < 10 + 1 + 8 + 4 + 4 * 2, "{guess} reached a broker, or were refused");
    // When it has stopped, others from there are served.
    assert_eq!(limit(limits.decide(&with("newcomer"), now)), None);
}

#[test]
fn a_flood_of_tokens_and_addresses_takes_bounded_room_and_forgives_nobody() {
    let mut config = none();
    config.per_token = each(60, 5, 0, 4_000);
    config.per_ip = each(60, 5, 0, 4_000);
    config.failed_tokens = FailedTokens { per_ip: each(60, 5, 0, 1).rate, remember: Duration::from_secs(10) };
    let (limits, begin) = limits(&config);
    good(&limits, "good", begin);
    let busy = Call { client: Some(AWAY), ..with("busy") };
    while limits.decide(&busy, begin).is_ok() {}
    let now = begin + Duration::from_millis(100);
    for n in 0..100_000u32 {
        let client = IpAddr::from(((0x2001_0db8_u128 << 96) | (u128::from(n) << 64)).to_be_bytes());
        bad(&limits, client, &format!("invented {n}"), now);
    }
    let report = limits.report();
    println!("{report:#}");
    assert!(limits.tracked() <= 4_000 && report["addresses"]["tracked"].as_u64() <= Some(4_000));
    assert_eq!(limit(limits.decide(&busy, now)), Some(Limit::TokenRate));
    assert!(limits.decide(&with("good"), now).unwrap().1, "still known as good");
}

#[test]
fn connections_of_one_address_are_counted_until_they_close() {
    let mut config = none();
    config.connections_per_ip = 2;
    let (limits, _) = limits(&config);
    let [a, b] = ["2001:db8::1", "2001:db8::2"].map(|ip| limits.connection(ip.parse().unwrap()).unwrap());
    let third = || limits.connection("2001:db8::3".parse().unwrap());
    assert!(matches!(third(), Err(Reason::TooMany { limit: Limit::IpConnections, .. })));
    assert!(limits.connection("2001:db8:0:1::1".parse().unwrap()).is_ok());
    drop(a);
    assert!(third().is_ok());
    drop(b);
    assert_eq!(limits.report()["addresses"]["connections"], 0);
}

#[test]
fn bodies_are_limited_but_those_that_tunnels_carry() {
    let mut config = none();
    config.body_bytes = 10;
    let (limits, _) = limits(&config);
    let of = |route, purpose| limits.body_bytes(route, purpose, &with("a")).map(NonZeroU64::get);
    assert_eq!(of(Route::KubernetesApi, Purpose::Call), Some(10));
    assert_eq!(of(Route::Agents, Purpose::Call), Some(10));
    assert_eq!([of(Route::Agents, Purpose::Tunnel), of(Route::Agents, Purpose::Subscription)], [None; 2]);
}

/// With all limits on, as one stream of an agent meets them. Printed, since machines differ; a debug build may take longer.
#[test]
fn all_limits_of_one_stream_take_little_time() {
    let mut config = none();
    config.per_token = each(60_000_000, 60_000_000, 1_000, 100_000);
    config.per_ip = each(60_000_000, 60_000_000, 1_000, 100_000);
    config.failed_tokens.per_ip = each(60, 60, 0, 1).rate;
    let (limits, begin) = limits(&config);
    let calls: Vec<_> = (0..10_000).map(|n| with(&format!("{n}"))).collect();
    let clock = Instant::now();
    for n in 0..100_000 {
        let call = &calls[n % calls.len()];
        drop(limits.decide(call, begin).unwrap());
        limits.finished_at(HOME, call.token, 200, Some(0), begin);
    }
    println!("{} ns a stream", clock.elapsed().as_nanos() / 100_000);
}

#[test]
fn an_address_opens_so_many_connections_in_a_while_and_another_one_as_many() {
    let mut config = none();
    config.connection_rate_per_ip = each(60, 5, 0, 1).rate;
    let (limits, begin) = limits(&config);
    let opened = |client, now| limits.connection_at(client, now).is_ok();
    assert_eq!((0..20).filter(|_| opened(HOME, begin)).count(), 5);
    assert!(opened(AWAY, begin));
    let refused = limits.connection_at(HOME, begin).unwrap_err();
    let expected =
        Reason::TooMany { limit: Limit::IpConnectionRate, retry_after: Duration::from_secs(1), rule: None };
    assert_eq!(refused, expected);
    assert!(!opened(HOME, begin + Duration::from_millis(999)));
    assert!(opened(HOME, begin + Duration::from_secs(1)));
}

#[test]
fn connections_of_an_address_wait_for_what_others_of_it_did_and_it_is_forgiven_within_seconds() {
    let mut config = none();
    config.flood_wait = Duration::from_millis(250);
    let (limits, begin) = limits(&config);
    let wait = |client, now| {
        let penance = limits.penance_at(client, now).unwrap();
        penance.map_or(0, |penance| penance.wait().as_millis())
    };
    assert_eq!(wait(HOME, begin), 0);
    limits.offended_at(HOME, begin);
    assert_eq!((wait(HOME, begin), wait(AWAY, begin)), (250, 0));
    limits.offended_at(HOME, begin);
    assert_eq!(wait(HOME, begin), 500);
    // Whatever it does.
    (0..1_000_000).for_each(|_| limits.offended_at(HOME, begin));
    assert_eq!(wait(HOME, begin), 4_000);
    assert_eq!(wait(HOME, begin + Duration::from_secs(3)), 1_000);
    assert_eq!(wait(HOME, begin + Duration::from_secs(4)), 0);
    assert_eq!(limits.0.addresses.len(), 1, "somebody was remembered who did nothing");
}

#[test]
fn only_so_many_connections_of_an_address_wait_at_a_time() {
    let mut config = none();
    config.flood_wait = Duration::from_secs(1);
    let (limits, begin) = limits(&config);
    limits.offended_at(HOME, begin);
    let mut waiting: Vec<_> = (0..64).map(|_| limits.penance_at(HOME, begin).unwrap().unwrap()).collect();
    let refused = limits.penance_at(HOME, begin).unwrap_err();
    assert_eq!(refused.name(), "flood_wait");
    waiting.pop();
    assert!(limits.penance_at(HOME, begin).unwrap().is_some());
    // When the wait is over nobody asks how many waited.
    assert!(limits.penance_at(HOME, begin + Duration::from_secs(1)).unwrap().is_none());
}

#[test]
fn where_it_is_turned_off_nobody_waits() {
    let (limits, begin) = limits(&none());
    limits.offended_at(HOME, begin);
    assert!(limits.penance_at(HOME, begin).unwrap().is_none());
    assert_eq!(limits.0.addresses.len(), 0);
}
