//! What one decision costs among 5,000 selectors: `decision_ns` and `decision_allocs`, a line each, and `request_ns` for all
//! that an edge looks up for one request where every document says something of each of it. Half of the subjects are
//! strangers to all selectors; of a third of them everything is known, of the others only what an edge knows. Fails where
//! a decision allocates; a time is only told.
//!
//! What moves the number: how many lengths of prefixes there are, for each is one look-up, and how many combinations of
//! what is known of the subject some selector asks for. The number of documents matters only as far as caches go.

use postern_policies::{PolicySet, Subject, load_dir};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SELECTORS: u64 = 5_000;
const SUBJECTS: u64 = 4_096;
const ROUNDS: usize = 200;
/// What each document says where one field alone is looked up.
const ONE: &str = "requestsPerToken: {perMinute: 60}";
/// And where a request is judged as an edge does.
const EVERYTHING: &str = "requestsPerToken: {perMinute: 60}, requestsPerIp: {perMinute: 60}, requestsPerAgent: {perMinute: 60}, \
                          streamsPerToken: 6, streamsPerIp: 6, streamsPerAgent: 6, bodyBytes: 60";
/// Odd, so that multiplying by it gives every number once.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

struct Known {
    agent_id: u64,
    project_id: u64,
    token_hash: [u8; 32],
    client: IpAddr,
    agent_version: String,
}

fn main() {
    let set = policies(ONE, false);
    let known: Vec<Known> = (0..SUBJECTS).map(known).collect();
    let subjects: Vec<Subject<'_>> = known.iter().map(subject).collect();
    let met = subjects.iter().filter(|subject| decide(&set, subject)).count();
    println!(
        "{SELECTORS} selectors; {met} of {} subjects are met by one that does not ask for everybody",
        subjects.len()
    );
    let (time, allocations) = measure(&subjects, |subject| decide(&set, subject));
    println!("decision_ns {time:.0}");
    println!("decision_allocs {allocations}");
    drop(set);
    let set = policies(EVERYTHING, true);
    let (request, more) = measure(&subjects, |subject| all_of_a_request(&set, subject));
    println!("request_ns {request:.0}");
    println!("request_allocs {more}");
    assert_eq!((allocations, more), (0.0, 0.0), "a decision allocates");
}

/// Nanoseconds of the best round, and allocations, of one subject.
fn measure<T>(subjects: &[Subject<'_>], decide: impl Fn(&Subject<'_>) -> T) -> (f64, f64) {
    let mut best = f64::MAX;
    let region = Region::new(ALLOCATOR);
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for subject in subjects {
            black_box(decide(black_box(subject)));
        }
        best = best.min(begin.elapsed().as_secs_f64() * 1e9 / subjects.len() as f64);
    }
    let stats = region.change();
    (best, (stats.allocations + stats.reallocations) as f64 / (ROUNDS * subjects.len()) as f64)
}

fn decide(set: &PolicySet, subject: &Subject<'_>) -> bool {
    let choice = set.limits.requests_per_token.choose(subject);
    choice.in_force.is_some_and(|ruled| ruled.rule.name != "everybody")
}

/// The eight fields that an edge looks up for a request of a caller: two each of the token, the address and the agent, the
/// size of the body, and who may come, of whom the token is all that is asked.
fn all_of_a_request(set: &PolicySet, subject: &Subject<'_>) -> usize {
    let limits = &set.limits;
    let mut found = 0;
    for rates in [&limits.requests_per_token, &limits.requests_per_ip, &limits.requests_per_agent] {
        found += usize::from(black_box(rates.choose(subject)).in_force.is_some());
    }
    for counts in [&limits.streams_per_token, &limits.streams_per_ip, &limits.streams_per_agent] {
        found += usize::from(black_box(counts.choose(subject)).in_force.is_some());
    }
    let whoever = Subject { token_hash: subject.token_hash, ..Subject::default() };
    found += usize::from(black_box(limits.body_bytes.choose(subject)).in_force.is_some());
    found + usize::from(black_box(set.access.clients.choose(&whoever)).in_force.is_some())
}

fn hash(seed: u64) -> [u8; 32] {
    let mut hash = [0; 32];
    for (index, part) in (1_u64..).zip(hash.chunks_exact_mut(8)) {
        part.copy_from_slice(&(seed + 1).wrapping_mul(SPREAD).wrapping_mul(2 * index + 1).to_be_bytes());
    }
    hash
}

fn hex(hash: &[u8; 32], digits: usize) -> String {
    let mut text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(digits);
    text
}

fn address(seed: u64) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 | (seed << 8) as u32)
}

/// One in two is somebody of whom no selector knows anything.
fn known(number: u64) -> Known {
    let seed = if number.is_multiple_of(2) { number * SELECTORS / SUBJECTS } else { 1_000_000 + number };
    Known {
        agent_id: seed,
        project_id: seed,
        token_hash: hash(seed),
        client: match (number % 2, number % 8) {
            (0, 0) => Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(seed) << 80 | 1).into(),
            (0, _) => address(seed).into(),
            _ => Ipv4Addr::new(192, 0, 2, 1).into(),
        },
        agent_version: if number.is_multiple_of(2) {
            format!("v{}.{}.1", seed % 60, seed % 30)
        } else {
            "v99.0.0".to_owned()
        },
    }
}

/// All is known of some, of the others only what the edge knows.
fn subject(known: &Known) -> Subject<'_> {
    let agent = known.agent_id.is_multiple_of(3);
    Subject {
        agent_id: agent.then_some(known.agent_id),
        project_id: agent.then_some(known.project_id),
        token_hash: Some(&known.token_hash),
        client: Some(known.client),
        agent_version: agent.then_some(known.agent_version.as_str()),
    }
}

/// Ten ways to ask for somebody, as many documents of each.
fn selector(seed: u64) -> String {
    let token = |digits| hex(&hash(seed), digits);
    match seed % 10 {
        0 => format!("agentIds: [{seed}]"),
        1 => format!("tokenHashes: ['{}']", token(64)),
        2 => format!("tokenHashes: ['{}']", token(8)),
        3 => format!("agentVersions: ['{seed}.1.1']"),
        4 => format!("clientCidrs: [{}/24]", address(seed)),
        5 => format!("clientCidrs: ['2001:db8:{seed:x}::/48']"),
        6 => format!("agentIds: [{seed}], agentVersions: ['{}.*']", seed % 60),
        7 => format!("tokenHashes: ['{}'], clientCidrs: [{}/32]", token(6), address(seed)),
        8 => format!("agentIds: [{seed}], agentVersions: ['{}.{}.1']", seed % 60, seed % 30),
        _ => format!(
            "agentIds: [{seed}], clientCidrs: [{}/24], agentVersions: ['{}.*']",
            address(seed),
            seed % 60
        ),
    }
}

/// A document of limits for each selector, and of addresses where one asks for tokens alone and `clients` are wanted.
fn policies(spec: &str, clients: bool) -> PolicySet {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let head = "---\napiVersion: postern/v1\nkind: LimitPolicy\n";
    for (file, first) in (1..=SELECTORS).step_by(500).enumerate() {
        let mut text = String::new();
        for seed in first..first + 500 {
            let more = match seed % 13 {
                0 => "mode: report\n",
                1 => "canary: 10%\n",
                _ => "",
            };
            write!(
                text,
                "{head}metadata: {{name: p{seed}}}\n{more}match: {{{}}}\nspec: {{{spec}}}\n",
                selector(seed)
            )
            .expect("writing to a string cannot fail");
            if clients && matches!(seed % 10, 1 | 2) {
                write!(
                    text,
                    "---\napiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: p{seed}}}\nmatch: {{{}}}\nspec: \
                     {{clients: {{allow: [10.0.0.0/8]}}}}\n",
                    selector(seed)
                )
                .expect("writing to a string cannot fail");
            }
        }
        if file == 0 {
            text += &format!(
                "{head}metadata: {{name: everybody}}\nspec: {{requestsPerToken: {{perMinute: 600}}}}\n"
            );
        }
        std::fs::write(directory.path().join(format!("{file}.yaml")), text).expect("a file is written");
    }
    let begin = Instant::now();
    let set = load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}"));
    println!("read in {:?}", begin.elapsed());
    set
}
