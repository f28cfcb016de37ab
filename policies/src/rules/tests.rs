//! The index against a plain list that is searched from end to end.

use super::selector::without_v;
use super::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::cmp::Ordering;
use std::net::IpAddr;

/// What one value of each dimension weighs, most specific first; 0 where it is not asked for.
type Weight = [usize; 5];

fn rule(line: usize) -> Rule {
    Rule { kind: Kind::LimitPolicy, name: format!("p{line}"), file: "p.yaml".into(), line }
}

fn header(selector: Selector) -> Arc<Header> {
    Arc::new(Header { selector, mode: Mode::Enforce, canary: None })
}

fn hash(first: u64) -> [u8; 32] {
    let mut hash = [0x5a; 32];
    hash[..8].copy_from_slice(&first.to_be_bytes());
    hash
}

fn prefix(text: &str) -> HexPrefix {
    HexPrefix::parse(text).unwrap()
}

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).unwrap()
}

fn version(text: &str) -> VersionPattern {
    VersionPattern::parse(text).unwrap()
}

/// The greatest weight with which a selector matches, written without any of the index's ideas.
fn weigh(selector: &Selector, subject: &Subject<'_>) -> Option<Weight> {
    let best = |matching: Vec<usize>, asked: bool| match asked {
        true => matching.into_iter().max(),
        false => Some(0),
    };
    let hex =
        subject.token_hash.map(|hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let tokens = selector.token_hashes.iter().map(ToString::to_string);
    let tokens =
        tokens.filter(|one| hex.as_ref().is_some_and(|hex| hex.starts_with(one))).map(|one| one.len());
    let client = subject.client.map(|client| client.to_canonical());
    let networks = selector.client_cidrs.iter().filter(|one| {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => format!("4{:032b}", v4.to_bits()),
            IpAddr::V6(v6) => format!("6{:0128b}", v6.to_bits()),
        };
        let length = 1 + usize::from(one.length());
        client.is_some_and(|client| bits(client).get(..length) == bits(one.address()).get(..length))
    });
    let versions = selector.agent_versions.iter().filter_map(|one| {
        let (pattern, version) = (one.to_string(), without_v(subject.agent_version?).to_owned());
        match pattern.strip_suffix('*') {
            Some(beginning) => version.starts_with(beginning).then_some(1 + beginning.len()),
            None => (version == pattern).then_some(1_000),
        }
    });
    let same = |ids: &[u64], id: Option<u64>| ids.iter().filter(|one| Some(**one) == id).map(|_| 1).collect();
    Some([
        best(same(&selector.agent_ids, subject.agent_id), !selector.agent_ids.is_empty())?,
        best(tokens.collect(), !selector.token_hashes.is_empty())?,
        best(same(&selector.project_ids, subject.project_id), !selector.project_ids.is_empty())?,
        best(networks.map(|one| 1 + usize::from(one.length())).collect(), !selector.client_cidrs.is_empty())?,
        best(versions.collect(), !selector.agent_versions.is_empty())?,
    ])
}

/// The lines of the rules in force and the one that reports.
fn naive(rules: &[(Arc<Header>, usize)], subject: &Subject<'_>) -> (Option<usize>, Option<usize>) {
    let lot = subject.token_hash.map(|hash| u64::from_be_bytes(hash[..8].try_into().unwrap()) % 10_000);
    let taken = |header: &Header| match header.canary {
        None => true,
        Some(share) => lot.is_some_and(|lot| lot < share.into()),
    };
    let mut best: [Option<(Weight, bool, bool, usize)>; 2] = [None; 2];
    for (header, line) in rules.iter().filter(|(header, _)| taken(header)) {
        let Some(weight) = weigh(&header.selector, subject) else { continue };
        let report = header.mode == Mode::Report;
        let new = (weight, report, header.canary.is_some(), *line);
        for (which, best) in best.iter_mut().enumerate() {
            let order =
                best.map_or(Ordering::Greater, |best| (new.0, new.1, new.2).cmp(&(best.0, best.1, best.2)));
            if (which == 1 || !report) && order == Ordering::Greater {
                *best = Some(new);
            }
        }
    }
    let [in_force, any] = best;
    (in_force.map(|best| best.3), any.filter(|best| best.1).map(|best| best.3))
}

fn chosen(rules: &Rules<usize>, subject: &Subject<'_>) -> (Option<usize>, Option<usize>) {
    let choice = rules.choose(subject);
    let line = |ruled: Ruled<'_, usize>| {
        assert_eq!(*ruled.value, ruled.rule.line);
        ruled.rule.line
    };
    (choice.in_force.map(line), choice.reported.map(line))
}

const NETWORKS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::1/128",
];
const CLIENTS: [&str; 7] =
    ["10.1.2.3", "10.1.2.4", "10.9.9.9", "192.0.2.1", "::ffff:10.1.2.3", "2001:db8:1::1", "2001:db8:2::1"];
const PATTERNS: [&str; 8] =
    ["*", "16.*", "v16.11.*", "16.11.2", "v16.11.3", "16.11.2.*", "17.*", "16.11.2-rc1"];
const VERSIONS: [&str; 7] = ["v16.11.2", "16.11.2", "v16.11.2-rc1", "v16.1.0", "v17.0.0", "", "16.11."];

fn some<T: Clone>(random: &mut StdRng, from: &[T], odds: f64) -> Vec<T> {
    match random.random_bool(odds) {
        true => (0..random.random_range(1..4)).map(|_| from.choose(random).unwrap().clone()).collect(),
        false => Vec::new(),
    }
}

fn random_header(random: &mut StdRng, tokens: &[[u8; 32]]) -> Header {
    let prefixes: Vec<_> = (0..6)
        .map(|_| {
            HexPrefix::of(tokens.choose(random).unwrap(), *[1, 2, 3, 15, 16, 17, 64].choose(random).unwrap())
        })
        .collect();
    let networks: Vec<_> = NETWORKS.into_iter().map(cidr).collect();
    let patterns: Vec<_> = PATTERNS.into_iter().map(version).collect();
    Header {
        selector: Selector {
            agent_ids: some(random, &[1, 2, 3, 42], 0.3),
            token_hashes: some(random, &prefixes, 0.4),
            project_ids: some(random, &[1, 7, 8], 0.3),
            client_cidrs: some(random, &networks, 0.4),
            agent_versions: some(random, &patterns, 0.4),
        },
        mode: if random.random_bool(0.25) { Mode::Report } else { Mode::Enforce },
        canary: random.random_bool(0.3).then(|| random.random_range(1..=10_000)),
    }
}

#[test]
fn the_index_chooses_as_a_search_through_all_rules_does() {
    for _ in 0..40 {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let tokens: Vec<_> = (0..12).map(|_| hash(random.random())).collect();
        let (mut rules, mut list) = (Rules::default(), Vec::new());
        for line in 0..random.random_range(0..120) {
            let header = Arc::new(random_header(&mut random, &tokens));
            match rules.add(&header, rule(line), line) {
                Ok(()) => list.push((header, line)),
                Err(tie) => {
                    let (other, _) = list.iter().find(|(_, line)| *line == tie.line).unwrap();
                    assert_eq!((other.mode, other.canary.is_some()), (header.mode, header.canary.is_some()));
                }
            }
        }
        let rules = rules.seal();
        assert_eq!(rules.entries().len(), list.len());
        for _ in 0..200 {
            let version = *VERSIONS.choose(&mut random).unwrap();
            let token = *tokens.choose(&mut random).unwrap();
            let subject = Subject {
                agent_id: random.random_bool(0.8).then(|| *[1, 2, 3, 42, 5].choose(&mut random).unwrap()),
                project_id: random.random_bool(0.8).then(|| *[1, 7, 8, 9].choose(&mut random).unwrap()),
                token_hash: random.random_bool(0.8).then_some(&token),
                client: random
                    .random_bool(0.8)
                    .then(|| CLIENTS.choose(&mut random).unwrap().parse().unwrap()),
                agent_version: random.random_bool(0.8).then_some(version),
            };
            assert_eq!(chosen(&rules, &subject), naive(&list, &subject), "{subject:?}");
        }
    }
}

#[test]
fn two_documents_tie_when_one_selector_of_each_is_the_same() {
    let of = |agents: &[u64], versions: &[&str]| Selector {
        agent_ids: agents.to_vec(),
        agent_versions: versions.iter().map(|one| version(one)).collect(),
        ..Selector::default()
    };
    for (first, second, tie) in [
        (of(&[], &[]), of(&[], &[]), true),
        (of(&[1, 2], &[]), of(&[2, 3], &[]), true),
        (of(&[1, 2], &[]), of(&[3], &[]), false),
        (of(&[1], &[]), of(&[1], &["16.*"]), false),
        (of(&[1], &["v16.*"]), of(&[1], &["16.*", "17.*"]), true),
        (of(&[1], &["16.11.*"]), of(&[1], &["16.*"]), false),
        (of(&[1, 2], &["16.*", "17.*"]), of(&[3, 2], &["18.*", "17.*"]), true),
    ] {
        let mut rules = Rules::default();
        rules.add(&header(first.clone()), rule(1), 1).unwrap();
        let added = rules.add(&header(second.clone()), rule(2), 2);
        assert_eq!(added.is_err(), tie, "{first}; {second}");
        if let Err(tie) = added {
            assert_eq!(tie, rule(1));
            assert_eq!(rules.entries().len(), 1);
        }
        for (mode, canary) in [(Mode::Report, None), (Mode::Enforce, Some(100)), (Mode::Report, Some(100))] {
            let header = Arc::new(Header { selector: second.clone(), mode, canary });
            assert_eq!(rules.add(&header, rule(3), 3), Ok(()), "{mode:?} {canary:?}");
            assert_eq!(rules.add(&header, rule(4), 4), Err(rule(3)), "{mode:?} {canary:?}");
        }
    }
}

#[test]
fn a_value_that_stands_twice_in_one_selector_is_no_tie() {
    let mut rules = Rules::default();
    let twice = Selector { agent_ids: vec![4, 4], ..Selector::default() };
    rules.add(&header(twice), rule(1), 1).unwrap();
    assert_eq!(chosen(&rules, &Subject { agent_id: Some(4), ..Subject::default() }), (Some(1), None));
}

#[test]
fn a_canary_only_ever_gains_tokens_as_it_grows() {
    let tokens: Vec<_> = (0..4_000).map(|seed: u64| hash(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let mut before = vec![false; tokens.len()];
    for share in [1, 100, 500, 2_500, 5_000, 9_999, 10_000] {
        let mut rules = Rules::default();
        rules.add(&header(Selector::default()), rule(1), 1).unwrap();
        let canary = Header { selector: Selector::default(), mode: Mode::Enforce, canary: Some(share) };
        rules.add(&Arc::new(canary), rule(2), 2).unwrap();
        let taken: Vec<bool> = tokens
            .iter()
            .map(|hash| {
                chosen(&rules, &Subject { token_hash: Some(hash), ..Subject::default() }).0 == Some(2)
            })
            .collect();
        assert!(before.iter().zip(&taken).all(|(before, now)| *now || !before), "{share}");
        let count = taken.iter().filter(|taken| **taken).count() as f64 / tokens.len() as f64;
        assert!((count - f64::from(share) / 10_000.0).abs() < 0.03, "{share}: {count}");
        assert_eq!(chosen(&rules, &Subject::default()), (Some(1), None), "without a token");
        before = taken;
    }
    assert!(before.iter().all(|taken| *taken));
}

#[test]
fn a_document_that_reports_is_seen_only_where_it_would_decide() {
    let agent = |agent| Selector { agent_ids: vec![agent], ..Selector::default() };
    let report = |selector| Arc::new(Header { selector, mode: Mode::Report, canary: None });
    let mut rules = Rules::default();
    rules.add(&header(Selector::default()), rule(1), 1).unwrap();
    rules.add(&report(Selector::default()), rule(2), 2).unwrap();
    rules.add(&header(agent(42)), rule(3), 3).unwrap();
    rules.add(&report(agent(43)), rule(4), 4).unwrap();
    let of = |agent_id| chosen(&rules, &Subject { agent_id: Some(agent_id), ..Subject::default() });
    assert_eq!([of(1), of(42), of(43)], [(Some(1), Some(2)), (Some(3), None), (Some(1), Some(4))]);
}

#[test]
fn values_of_selectors_are_read_strictly() {
    for (text, reads) in
        [("ab12", true), ("a", true), ("", false), ("AB", false), ("0x", false), ("é", false)]
    {
        assert_eq!(HexPrefix::parse(text).map(|prefix| prefix.to_string()).as_deref(), reads.then_some(text));
    }
    assert!(HexPrefix::parse(&"a".repeat(64)).is_some());
    assert!(HexPrefix::parse(&"a".repeat(65)).is_none());
    assert!(prefix("5a5").begins(&[0x5a; 32]) && !prefix("5a6").begins(&[0x5a; 32]));
    for (text, reads) in [
        ("v16.11.2", Some("16.11.2")),
        ("16.*", Some("16.*")),
        ("v16.11.*", Some("16.11.*")),
        ("*", Some("*")),
        ("16.11.2-rc1+ee", Some("16.11.2-rc1+ee")),
        ("", None),
        ("v", None),
        ("16", Some("16")),
        ("16*", None),
        ("16.", None),
        (".*", None),
        ("16.*.2", None),
        ("16 .1", None),
        ("1.1.1.1.1.1.1.1.1.1", None),
    ] {
        assert_eq!(VersionPattern::parse(text).map(|one| one.to_string()).as_deref(), reads, "{text}");
    }
    for (text, reads) in [
        ("10.0.0.0/8", Ok("10.0.0.0/8")),
        ("10.0.0.1", Ok("10.0.0.1/32")),
        ("0.0.0.0/0", Ok("0.0.0.0/0")),
        ("::/0", Ok("::/0")),
        ("2001:db8::1", Ok("2001:db8::1/128")),
        ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
        ("::ffff:10.0.0.1", Ok("10.0.0.1/32")),
        ("10.0.0.1/8", Err(Some("10.0.0.0/8"))),
        ("2001:db8::1/32", Err(Some("2001:db8::/32"))),
        ("::ffff:10.0.0.0/90", Err(Some("::ffc0:0:0/90"))),
        ("10.0.0.0/33", Err(None)),
        ("10.0.0.0/+8", Err(None)),
        ("10.0.0.0/", Err(None)),
        ("10.0.0/8", Err(None)),
        ("10.0.0.0/256", Err(None)),
        ("", Err(None)),
    ] {
        let read = Cidr::parse(text).map(|one| one.to_string()).map_err(|mistake| match mistake {
            CidrMistake::NotACidr => None,
            CidrMistake::HostBits(meant) => Some(meant.to_string()),
        });
        assert_eq!(read.as_deref().map_err(|meant| meant.as_deref()), reads, "{text}");
    }
}

#[test]
fn a_selector_knows_how_many_combinations_it_is() {
    let wide = Selector {
        agent_ids: (0..100).collect(),
        project_ids: (0..100).collect(),
        agent_versions: vec![version("16.*"), version("17.*")],
        ..Selector::default()
    };
    assert_eq!((wide.cells(), Selector::default().cells()), (2 * MAX_CELLS, 1));
    assert_eq!(
        wide.to_string(),
        "agentIds: [0, 1, 2, 3, 4, 5, 6, 7, and 92 more], projectIds: [0, 1, 2, 3, 4, 5, 6, 7, and 92 more], \
         agentVersions: [16.*, 17.*]"
    );
}
