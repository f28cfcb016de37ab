//! Directories of policies, good and bad, and what comes of them.

use super::*;
use crate::{CallRate, CallerRule, Callers, Clients, Effect, RateLimit, RedisLost, Rules, Subject};
use postern_yaml::hostile::hostile;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::fmt::Debug;
use std::fs;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn complaints(files: &[(&str, &str)]) -> Vec<String> {
    let directory = directory(files);
    let problems = load_dir(directory.path()).unwrap_err();
    let prefix = format!("{}/", directory.path().display());
    problems.to_string().replace(&prefix, "").lines().map(str::to_owned).collect()
}

fn good(text: &str) -> PolicySet {
    let directory = directory(&[("a.yaml", text)]);
    load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn n(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn shipped() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What holds for everybody, and the line of it.
#[track_caller]
fn says<T: Clone + Debug + PartialEq>(rules: &Rules<T>, value: &T, line: usize) {
    let ruled = rules.find(&Subject::default()).expect("a document sets it");
    assert_eq!((ruled.value, ruled.rule.line), (value, line));
}

#[test]
fn every_field_of_every_kind_is_read() {
    let set = good(concat!(
        "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: a}\nspec:\n",
        "  requestsPerToken: {perMinute: 600}\n",
        "  streamsPerToken: 2\n",
        "  requestsPerIp:\n    rate: 4\n    burst: 9\n",
        "  streamsPerIp: 3\n",
        "  connectionsPerIp: 0x10\n",
        "  requestsPerAgent: unlimited\n",
        "  streamsPerAgent: 5\n",
        "  bodyBytes: 9223372036854775807\n",
        "  agentCallsPerMinute: 6\n",
        "  redisLost: deny\n",
        "---\napiVersion: postern/v1\nkind: PollingPolicy\nmetadata: {name: a}\nspec:\n",
        "  configuration: {period: 1h30m}\n  manifests: {period: 1s}\n  jitterPercent: 0\n",
        "---\napiVersion: postern/v1\nkind: ConnectionPolicy\nmetadata: {name: a}\nspec:\n",
        "  maxAge: 0s\n  jitterPercent: 100\n  grace: 500ms\n  idle: 1.5s\n  ping: 0s\n",
        "  drain:\n    grace: 5m\n    connectionsPerSecond: 0\n",
        "---\napiVersion: postern/v1\nkind: BackendPolicy\nmetadata: {name: a}\nspec:\n",
        "  gitaly: {rate: {perSecond: 0.5, burst: 1}, perServer: {perSecond: 2, burst: 3}}\n",
        "  gitlab:\n    rate: {perSecond: 1e3, burst: 4}\n",
        "---\napiVersion: postern/v1\nkind: TunnelPolicy\nmetadata: {name: a}\nspec:\n",
        "  idlePerAgent: 1000\n  maxIdle: 8760h\n  agentWait: 0s\n",
    ));
    let seconds = Duration::from_secs;
    let limits = &set.limits;
    says(&limits.requests_per_token, &Some(RateLimit { per_minute: n(600), burst: n(600) }), 5);
    says(&limits.streams_per_token, &2, 6);
    says(&limits.requests_per_ip, &Some(RateLimit { per_minute: n(240), burst: n(9) }), 7);
    says(&limits.streams_per_ip, &3, 10);
    says(&limits.connections_per_ip, &16, 11);
    says(&limits.requests_per_agent, &None, 12);
    says(&limits.streams_per_agent, &5, 13);
    says(&limits.body_bytes, &(i64::MAX as u64), 14);
    says(&limits.agent_calls_per_minute, &6, 15);
    says(&limits.redis_lost, &RedisLost::Deny, 16);
    says(&set.polling.configuration, &seconds(5_400), 22);
    says(&set.polling.manifests, &seconds(1), 23);
    says(&set.polling.jitter_percent, &0, 24);
    says(&set.connections.max_age, &seconds(0), 30);
    says(&set.connections.jitter_percent, &100, 31);
    says(&set.connections.grace, &Duration::from_millis(500), 32);
    says(&set.connections.idle, &Duration::from_millis(1_500), 33);
    says(&set.connections.ping, &seconds(0), 34);
    says(&set.connections.drain_grace, &seconds(300), 36);
    says(&set.connections.drain_per_second, &0, 37);
    says(&set.backends.gitaly, &CallRate { per_second: 0.5, burst: n(1) }, 43);
    says(&set.backends.gitaly_per_server, &CallRate { per_second: 2.0, burst: n(3) }, 43);
    says(&set.backends.gitlab, &CallRate { per_second: 1_000.0, burst: n(4) }, 45);
    says(&set.tunnels.idle_per_agent, &1_000, 51);
    says(&set.tunnels.max_idle, &seconds(8_760 * 3_600), 52);
    says(&set.tunnels.agent_wait, &seconds(0), 53);
}

#[test]
fn access_is_read_with_the_line_of_each_rule() {
    let set = good(concat!(
        "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {name: a}\nspec:\n",
        "  clients: {allow: [10.0.0.0/8, '::ffff:192.0.2.0/120'], deny: ['2001:db8::1']}\n",
        "  kubernetesApi:\n    rules:\n",
        "    - {effect: deny, resources: [secrets, '*.apps', pods/log], namespaces: [team-*, '*']}\n",
        "    - effect: allow\n      access: [ci, pat, session, postern]\n      userIds: [1]\n      projectIds: [2]\n",
        "      verbs: [get, deletecollection]\n      paths: [/version*]\n",
        "    otherwise: deny\n",
    ));
    let cidr = |address: &str, length| (address.parse().unwrap(), length);
    let clients = Clients {
        allow: vec![cidr("10.0.0.0", 8), cidr("192.0.2.0", 24)],
        deny: vec![cidr("2001:db8::1", 128)],
    };
    says(&set.access.clients, &clients, 5);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let nothing = CallerRule {
        effect: Effect::Deny,
        access: vec![],
        user_ids: vec![],
        project_ids: vec![],
        verbs: vec![],
        resources: vec![],
        namespaces: vec![],
        paths: vec![],
        line: 8,
    };
    let rules = vec![
        CallerRule {
            resources: texts(&["secrets", "*.apps", "pods/log"]),
            namespaces: texts(&["team-*", "*"]),
            ..nothing.clone()
        },
        CallerRule {
            effect: Effect::Allow,
            access: texts(&["ci", "pat", "session", "postern"]),
            user_ids: vec![1],
            project_ids: vec![2],
            verbs: texts(&["get", "deletecollection"]),
            paths: texts(&["/version*"]),
            line: 9,
            ..nothing
        },
    ];
    says(&set.access.callers, &Callers { rules, otherwise: Effect::Deny }, 6);
}

#[test]
fn selectors_mode_and_canary_are_read_and_the_match_of_the_first_version_too() {
    let set = good(concat!(
        "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: all}\nspec: {match: {}, streamsPerIp: 1}\n",
        "---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: agent}\n",
        "match: {agentIds: [42, 42], clientCidrs: [192.0.2.7]}\nspec: {streamsPerIp: 2}\n",
        "---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: version}\n",
        "match: {agentVersions: [v16.11.*], tokenHashes: [ab, \"1\"]}\nspec: {streamsPerIp: 3}\n",
        "---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: trial}\nmode: report\n",
        "spec: {streamsPerIp: 4}\n",
        "---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: canary}\ncanary: 100%\n",
        "match: {tokenHashes: [cd]}\nspec: {streamsPerIp: 5}\n",
    ));
    let streams = |subject: &Subject<'_>| {
        let choice = set.limits.streams_per_ip.choose(subject);
        (*choice.in_force.unwrap().value, choice.reported.map(|ruled| *ruled.value))
    };
    assert_eq!(streams(&Subject::default()), (1, Some(4)));
    let client = Some("::ffff:192.0.2.7".parse().unwrap());
    assert_eq!(streams(&Subject { agent_id: Some(42), client, ..Subject::default() }).0, 2);
    let of_token = |first: u8| {
        let hash = [first; 32];
        streams(&Subject { token_hash: Some(&hash), agent_version: Some("16.11.2"), ..Subject::default() })
    };
    assert_eq!(of_token(0x1f).0, 3);
    assert_eq!(of_token(0xcd).0, 5);
    assert_eq!(of_token(0xef).0, 1);
}

#[test]
fn every_problem_of_every_file_is_told_at_once_where_it_stands() {
    let several = concat!(
        "# about\n---\n# nothing\n---\n",
        "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata:\n  name: Big_Name\nspec:\n  requestsPerToken:\n    rate: 0\n    burst: -1\n",
        "--- # comment\n",
        "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: b}\nmatch:\n  agentId: [1]\nspec:\n  streamsPerIp: many\n",
        "---\n",
        "apiVersion: postern/v2\nkind: Limits\nmetadata: {name: c}\nspec: {whatever: 1}\n",
        "---\n",
        "a: [unclosed\n",
        "---\n",
        "just a word\n",
        "---\r\n",
        "apiVersion: postern/v1\r\nkind: TunnelPolicy\r\nmetadata: {name: d}\r\nspec:\r\n  maxIdle: 1d\r\n",
    );
    let second = "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: b}\nspec:\n  streamsPerIp: 1\n  streamsPerIp: 2\n";
    let told = complaints(&[("a.yaml", several), ("b.yml", second), ("c.yaml", "\0"), ("notes.txt", "\0")]);
    let wanted = [
        "a.yaml:8:9: metadata.name: \"Big_Name\"; 1 to 63 of a-z, 0-9 and -",
        "a.yaml:11:11: spec.requestsPerToken.rate: 0; a whole number from 1 to 71582788 is wanted",
        "a.yaml:12:12: spec.requestsPerToken.burst: -1; a whole number from 1 to 4294967295 is wanted",
        "a.yaml:18:3: match.agentId: unknown key; did you mean `agentIds`?",
        "a.yaml:20:17: spec.streamsPerIp: \"many\"; a whole number from 0 to 4294967295 is wanted",
        "a.yaml:22:13: apiVersion: \"postern/v2\"; postern/v1 is wanted",
        "a.yaml:23:7: kind: \"Limits\"; one of LimitPolicy, ",
        "a.yaml:2",
        "a.yaml:29:1: \"just a word\"; a mapping of keys to values is wanted",
        "a.yaml:35:12: spec.maxIdle: \"1d\"; a duration such as 30s, 5m or 1h30m is wanted",
        "b.yml:3:18: metadata.name: \"b\" is the LimitPolicy at a.yaml:16 already; another name is wanted",
        "b.yml:6:3: streamsPerIp: written twice, first in line 5; every key once is wanted",
        "c.yaml:1:1: not YAML: ",
    ];
    assert_eq!(told.len(), wanted.len(), "{told:#?}");
    for (told, wanted) in told.iter().zip(wanted) {
        assert!(told.starts_with(wanted), "{told:?} should begin with {wanted:?}");
    }
}

#[test]
fn problems_beyond_some_hundreds_are_counted() {
    let document = |name: usize| {
        format!("---\napiVersion: postern/v1\nkind: TunnelPolicy\nmetadata: {{name: a{name}}}\nspec: {{}}\n")
    };
    let text = |from: usize| (from..from + 300).map(document).collect::<String>();
    let directory = directory(&[("a.yaml", &text(0)), ("b.yaml", &text(300)), ("c.yaml", &text(600))]);
    let problems = load_dir(directory.path()).unwrap_err();
    assert_eq!((problems.list.len(), problems.more), (500, 400));
    assert!(problems.to_string().ends_with("\nand 400 more problems"));
}

#[test]
fn hidden_files_subdirectories_and_others_are_left_alone_and_zero_documents_are_fine() {
    let directory =
        directory(&[("a.yaml", "# nothing yet\n"), (".hidden.yaml", "nor: this"), ("b.json", "{}")]);
    fs::create_dir(directory.path().join("sub.yaml")).unwrap();
    let loaded = load(directory.path()).unwrap();
    assert!(loaded.set.is_empty());
}

#[test]
fn the_fingerprint_is_of_the_texts_in_the_order_of_the_files() {
    let of = |files: &[(&str, &str)]| load(directory(files).path()).unwrap().fingerprint;
    let one = of(&[("a.yaml", "# x\n"), ("b.yaml", "# y\n")]);
    assert_eq!((one.len(), one.bytes().all(|digit| digit.is_ascii_hexdigit())), (12, true));
    assert_eq!(one, of(&[("b.yaml", "# y\n"), ("a.yaml", "# x\n")]));
    assert_eq!(one, of(&[("a.yml", "# x\n"), ("z.yaml", "# y\n"), ("c.txt", "else")]));
    for other in [
        of(&[("a.yaml", "# x\n")]),
        of(&[("a.yaml", "# x\n# y\n")]),
        of(&[("a.yaml", "# y\n"), ("b.yaml", "# x\n")]),
        of(&[("a.yaml", "# x\n# y\n"), ("b.yaml", "\n")]),
        of(&[("a.yaml", "\n"), ("b.yaml", "# x\n# y\n")]),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn a_swapped_directory_is_never_read_by_halves() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let document = |kind: &str, field: &str, version: u32| {
        format!("apiVersion: postern/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{{field}: {version}}}\n")
    };
    for version in [1, 2] {
        let place = root.join(format!("..{version}"));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("a.yaml"), document("LimitPolicy", "streamsPerIp", version)).unwrap();
        fs::write(place.join("b.yaml"), document("TunnelPolicy", "idlePerAgent", version)).unwrap();
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    link("..1", "..data");
    link("..data/a.yaml", "a.yaml");
    link("..data/b.yaml", "b.yaml");
    let done = AtomicBool::new(false);
    let mut seen = [0, 0];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut version = 1;
            while !done.load(Ordering::Relaxed) {
                version = 3 - version;
                link(&format!("..{version}"), "..next");
                fs::rename(root.join("..next"), root.join("..data")).unwrap();
                // Long enough for some readings to be undisturbed.
                std::thread::park_timeout(Duration::from_millis(3));
            }
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        while seen.iter().any(|count| *count < 10) && Instant::now() < deadline {
            let Ok(set) = load_dir(root) else { continue };
            let streams = *set.limits.streams_per_ip.find(&Subject::default()).unwrap().value;
            let idle = *set.tunnels.idle_per_agent.find(&Subject::default()).unwrap().value;
            assert_eq!(streams, idle);
            seen[streams as usize - 1] += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn hostile_documents_cost_little_and_are_never_taken() {
    const HARMLESS: &[&str] = &["documents", "line ends", "comments", "tabs", "directives"];
    for (name, text) in hostile() {
        let begin = Instant::now();
        let directory = directory(&[("a.yaml", &text)]);
        let told = load_dir(directory.path());
        assert!(HARMLESS.contains(&name) || told.is_err(), "{name} was taken");
        assert!(begin.elapsed() < Duration::from_secs(30), "{name} took {:?}", begin.elapsed());
    }
}

#[test]
fn random_edits_of_what_ships_break_nothing() {
    let files: Vec<String> = fs::read_dir(shipped())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let words = [
        "match", "spec", ":", "-", "[", "]", "{", "}", "0", "-1", "5%", "&a ", "*a", "<<: ", "\n", "  ",
        "---\n",
    ];
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..1_000 {
        let mut text = files.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(1..4) {
            let mut at = random.random_range(0..=text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            match random.random_range(0..3) {
                0 => text.truncate(at),
                1 => text.insert_str(at, words.choose(&mut random).unwrap()),
                _ => drop(text.drain(at..(at + 3).min(text.len())).collect::<String>()),
            }
        }
        let mut found = Found::default();
        let mut builder = Builder::default();
        read(Path::new("a.yaml"), &text, &mut 0, &mut builder, &mut found);
        if found.list.is_empty() {
            builder.finish();
            taken += 1;
        } else {
            refused += 1;
        }
    }
    assert!(taken > 50 && refused > 50, "{taken} {refused}");
}

#[test]
fn what_ships_holds_the_defaults_of_edge_and_broker() {
    let set = load_dir(shipped()).unwrap_or_else(|problems| panic!("{problems}"));
    let everybody = Subject::default();
    fn value<T: Copy>(rules: &Rules<T>) -> T {
        *rules.find(&Subject::default()).unwrap().value
    }
    // Their own tests compare these with the constants; here stands what docs/policies.md says.
    let limits = &set.limits;
    let forty_thousand = RateLimit { per_minute: n(40_000), burst: n(40_000) };
    assert_eq!(value(&limits.requests_per_token), Some(forty_thousand));
    assert_eq!((value(&limits.requests_per_ip), value(&limits.requests_per_agent)), (None, None));
    let counts = [
        &limits.streams_per_token,
        &limits.streams_per_ip,
        &limits.connections_per_ip,
        &limits.streams_per_agent,
    ];
    assert_eq!(counts.map(value), [0; 4]);
    assert_eq!((value(&limits.body_bytes), value(&limits.agent_calls_per_minute)), (0, 40_000));
    assert_eq!(value(&limits.redis_lost), RedisLost::Local);
    let clients = set.access.clients.find(&everybody).unwrap().value;
    assert_eq!((clients.allow.len(), clients.deny.len()), (2, 0));
    assert!(set.access.callers.is_empty(), "with any rule, requests with doubtful paths are denied");
    // Whoever copies one file has what it says alone.
    assert_eq!(value(&set.polling.jitter_percent), 20);
    assert_eq!(value(&set.tunnels.agent_wait), Duration::from_secs(20));
    assert!(set.connections.jitter_percent.is_empty(), "it would be the broker's ages' too");
    assert!(set.tunnels.max_idle.is_empty() && set.tunnels.idle_per_agent.is_empty(), "both follow others");
}

#[test]
fn five_thousand_documents_are_read_and_the_first_ties_among_thousands_told() {
    let text = |from: usize, count: usize| {
        let document = |number: usize| {
            format!(
                "---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: agent-{number}}}\n\
                 match:\n  agentIds: [{}]\nspec:\n  requestsPerToken: {{perMinute: 600}}\n  streamsPerAgent: 50\n",
                number + 1
            )
        };
        (from..from + count).map(document).collect::<String>()
    };
    let one = directory(&[("a.yaml", &text(0, 5_000))]);
    let begin = Instant::now();
    let set = load_dir(one.path()).unwrap();
    let took = begin.elapsed();
    println!("5,000 documents of one file: {took:?}");
    assert_eq!(set.limits.streams_per_agent.entries().len(), 5_000);
    // Each of a thousand with one of another file.
    let again = text(0, 1_000).replace("agent-", "other-");
    let two = directory(&[("a.yaml", &text(0, 1_000)), ("b.yaml", &again)]);
    let begin = Instant::now();
    let problems = load_dir(two.path()).unwrap_err();
    let took = begin.elapsed();
    println!("2,000 documents with 2,000 ties: {took:?}");
    assert_eq!((problems.list.len(), problems.more), (500, 1_500));
}
