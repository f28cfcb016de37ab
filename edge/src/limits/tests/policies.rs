//! Limits by policies: who is judged by which numbers, what is kept when they change, and what is only reported.

use super::*;
use postern_policies::load_dir;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Documents of `kind: LimitPolicy`: a name, and what follows it.
fn set(documents: &[(&str, &str)]) -> Arc<PolicySet> {
    let directory = tempfile::TempDir::new().unwrap();
    let written = documents.iter().map(|(name, rest)| {
        format!("---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: {name}}}\n{rest}\n")
    });
    // A file without a byte would be a mistake.
    let text = "# all\n".to_owned() + &written.collect::<String>();
    std::fs::write(directory.path().join("all.yaml"), text).unwrap();
    Arc::new(load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}")))
}

fn under(config: &Config, documents: &[(&str, &str)]) -> (Limits, Instant) {
    let begin = Instant::now();
    (Limits::new(config, Some(set(documents)), begin).unwrap(), begin)
}

/// What refuses, by its name and its rule.
fn refused(result: Result<(Permit, bool), Reason>) -> Option<(Limit, Option<String>)> {
    match result {
        Ok(_) => None,
        Err(Reason::TooMany { limit, rule, .. }) => Some((limit, rule.map(String::from))),
        Err(reason) => panic!("{reason:?}"),
    }
}

fn passes(limits: &Limits, call: &Call<'_>, now: Instant) -> usize {
    (0..1_000).take_while(|_| limits.decide(call, now).is_ok()).count()
}

fn hash(token: &str) -> String {
    key(token).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn whoever_is_named_has_numbers_of_his_own_and_is_told_of_the_document() {
    let mut config = none();
    config.per_token = each(60, 10, 0, 100);
    let special = format!(
        "match: {{tokenHashes: ['{}']}}\nspec: {{requestsPerToken: {{rate: 1, burst: 3}}}}",
        hash("a")
    );
    let (limits, begin) = under(
        &config,
        &[
            ("special", &special),
            ("here", "match: {clientCidrs: [192.0.2.2/32]}\nspec: {requestsPerIp: {rate: 1, burst: 2}}"),
            ("free", "match: {agentVersions: ['16.*']}\nspec: {requestsPerToken: unlimited}"),
        ],
    );
    assert_eq!(passes(&limits, &with("a"), begin), 3);
    let by = |rule: &str| Some(rule.to_owned());
    let refusal = refused(limits.decide(&with("a"), begin));
    assert_eq!(refusal, Some((Limit::TokenRate, by("LimitPolicy/special"))));
    // The number of edge.yaml has no document.
    assert_eq!(passes(&limits, &with("b"), begin), 10);
    assert_eq!(refused(limits.decide(&with("b"), begin)), Some((Limit::TokenRate, None)));
    let away = Call { client: Some(AWAY), ..with("c") };
    assert_eq!(passes(&limits, &away, begin), 2);
    assert_eq!(refused(limits.decide(&away, begin)), Some((Limit::IpRate, by("LimitPolicy/here"))));
    let versed = Call { version: Some("v16.4.2"), ..with("d") };
    assert_eq!(passes(&limits, &versed, begin), 1_000);
    assert_eq!(passes(&limits, &Call { version: Some("v15.4.2"), ..with("d") }, begin), 10);
}

#[test]
fn streams_and_connections_that_were_opened_before_a_limit_count_towards_it() {
    let (limits, begin) = under(&none(), &[]);
    let held: Vec<_> = (0..5).map(|_| limits.decide(&with("a"), begin).unwrap()).collect();
    let open: Vec<_> = (0..5).map(|_| limits.connection(HOME).unwrap()).collect();
    limits.obey(set(&[("few", "spec: {streamsPerIp: 4, connectionsPerIp: 4}")]));
    let by = || Some("LimitPolicy/few".to_owned());
    assert_eq!(refused(limits.decide(&with("a"), begin)), Some((Limit::IpStreams, by())));
    let refused_by = |result: Result<ConnectionPermit, Reason>| result.unwrap_err().rule().map(str::to_owned);
    assert_eq!(refused_by(limits.connection(HOME)), by());
    drop((held, open));
    assert!(limits.decide(&with("a"), begin).is_ok() && limits.connection(HOME).is_ok());
}

#[test]
fn other_numbers_are_in_force_at_once_and_refill_nothing() {
    let mut config = none();
    config.per_token = each(60, 5, 0, 100);
    let (limits, begin) = under(&config, &[]);
    assert_eq!(passes(&limits, &with("a"), begin), 5);
    limits.obey_at(set(&[("same", "spec: {requestsPerToken: {rate: 1, burst: 5}}")]), begin);
    assert_eq!(passes(&limits, &with("a"), begin), 0);
    limits.obey_at(set(&[("more", "spec: {requestsPerToken: {rate: 1, burst: 7}}")]), begin);
    assert_eq!(passes(&limits, &with("a"), begin), 2);
    // Back to edge.yaml: the two above its burst are forgiven.
    limits.obey_at(set(&[]), begin);
    assert_eq!(passes(&limits, &with("a"), begin), 0);
    assert_eq!(passes(&limits, &with("a"), begin + Duration::from_secs(1)), 1);
}

#[test]
fn a_report_counts_by_a_level_of_its_own_and_refuses_nobody() {
    let report =
        "mode: report\nspec: {requestsPerToken: {rate: 1, burst: 3}, streamsPerIp: 2, connectionsPerIp: 1}";
    let (limits, begin) = under(&none(), &[("tighter", report)]);
    let said = |call: &Call<'_>, now| {
        let admitted = limits.admit(call, now).unwrap();
        let said: Vec<_> = admitted.reported.iter().map(ToString::to_string).collect();
        (said.join(", "), admitted.permit)
    };
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(said(&with("a"), begin).0);
    }
    let rate = "rate_limit LimitPolicy/tighter";
    assert_eq!(all, ["", "", "", rate, rate]);
    // What it would have refused took nothing: a second gives one back.
    let later = begin + Duration::from_secs(1);
    assert_eq!([said(&with("a"), later).0, said(&with("a"), later).0], ["", rate]);
    let held: Vec<_> = ["b", "c", "d"].map(|token| said(&with(token), begin)).into();
    let streams: Vec<_> = held.iter().map(|(said, _)| said.as_str()).collect();
    assert_eq!(streams, ["", "", "streams_per_ip LimitPolicy/tighter"]);
    let connections = [limits.connection(HOME).unwrap(), limits.connection(HOME).unwrap()];
    let reported = connections.map(|permit| permit.reported.clone().map(|reported| reported.limit));
    assert_eq!(reported, [None, Some("connections_per_ip")]);
}

#[test]
fn a_canary_is_a_share_of_the_tokens() {
    let (limits, begin) = under(
        &none(),
        &[
            ("all", "spec: {requestsPerToken: {rate: 1, burst: 9}}"),
            ("some", "canary: 20%\nspec: {requestsPerToken: {rate: 1, burst: 3}}"),
        ],
    );
    let tokens = 500;
    let few = (0..tokens).filter(|n| match passes(&limits, &with(&format!("t{n}")), begin) {
        3 => true,
        9 => false,
        passed => panic!("{passed}"),
    });
    let few = few.count();
    assert!((60..140).contains(&few), "{few} of {tokens}");
}

#[test]
fn what_was_never_taken_is_not_given_back() {
    // Refused by the address, or by the agent.
    for (document, wanted) in [
        ("match: {clientCidrs: [192.0.2.2/32]}\nspec: {requestsPerIp: {rate: 1, burst: 1}}", Limit::IpRate),
        ("match: {agentIds: [1]}\nspec: {requestsPerAgent: {rate: 1, burst: 1}}", Limit::AgentRate),
    ] {
        let (limits, begin) = under(
            &none(),
            &[
                ("everybody", "spec: {requestsPerToken: {rate: 60, burst: 10}}"),
                ("free", "match: {clientCidrs: [192.0.2.2/32]}\nspec: {requestsPerToken: unlimited}"),
                ("refusing", document),
            ],
        );
        good(&limits, "a", begin);
        let free = Call { client: Some(AWAY), agent: Some(1), ..with("a") };
        assert_eq!(limit(limits.decide(&free, begin)), None);
        assert_eq!(passes(&limits, &with("a"), begin), 9, "the first made the token good");
        for _ in 0..100 {
            assert_eq!(limit(limits.decide(&free, begin)), Some(wanted));
        }
        assert_eq!(passes(&limits, &with("a"), begin), 0, "{wanted:?}");
    }
}

#[test]
fn edits_of_other_documents_make_no_new_numbers() {
    let directory = tempfile::TempDir::new().unwrap();
    let write = |file: &str, kind: &str, spec: &str| {
        let text =
            format!("apiVersion: postern/v1\nkind: {kind}\nmetadata: {{name: ours}}\nspec: {{{spec}}}\n");
        std::fs::write(directory.path().join(file), text).unwrap();
    };
    let read = || Arc::new(load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}")));
    write("limits.yaml", "LimitPolicy", "requestsPerToken: {rate: 60, burst: 5}");
    let begin = Instant::now();
    let limits = Limits::new(&none(), Some(read()), begin).unwrap();
    let first = limits.0.in_force.load_full();
    for minutes in 1..20 {
        write("ages.yaml", "ConnectionPolicy", &format!("maxAge: {minutes}m"));
        limits.obey_at(read(), begin);
    }
    assert!(Arc::ptr_eq(&first, &limits.0.in_force.load()));
    write("limits.yaml", "LimitPolicy", "requestsPerToken: {rate: 60, burst: 3}");
    limits.obey_at(read(), begin);
    assert!(!Arc::ptr_eq(&first, &limits.0.in_force.load()));
    assert_eq!(passes(&limits, &with("a"), begin), 3);
}

#[test]
fn bodies_are_as_large_as_the_policy_for_the_caller_says() {
    let (limits, _) = under(
        &none(),
        &[
            ("bodies", "spec: {bodyBytes: 100}"),
            ("agent", "match: {agentIds: [7]}\nspec: {bodyBytes: 0}"),
            ("soon", "mode: report\nspec: {bodyBytes: 50}"),
        ],
    );
    let of =
        |call: &Call<'_>| limits.body_bytes(Route::KubernetesApi, Purpose::Call, call).map(NonZeroU64::get);
    let towards = Call { agent: Some(7), ..with("a") };
    assert_eq!([of(&with("a")), of(&towards)], [Some(100), None]);
    assert_eq!(limits.body_rule(&with("a")).as_deref(), Some("LimitPolicy/bodies"));
    assert_eq!(limits.supposed_body(&with("a"), 50), None);
    let reported = limits.supposed_body(&with("a"), 51).map(|reported| reported.to_string());
    assert_eq!(reported.as_deref(), Some("body_bytes LimitPolicy/soon"));
}

#[test]
fn everybodys_numbers_are_shown_with_their_documents() {
    let mut config = none();
    config.per_ip = each(60, 10, 5, 100);
    let (limits, _) = under(&config, &[("ours", "spec: {requestsPerToken: unlimited, streamsPerIp: 3}")]);
    let shown = limits.effective();
    assert_eq!(shown["requestsPerToken"]["value"], "unlimited");
    assert_eq!(shown["requestsPerToken"]["rule"]["name"], "LimitPolicy/ours");
    assert_eq!(
        shown["requestsPerIp"],
        serde_json::json!({ "value": { "perMinute": 60, "burst": 10 }, "rule": null })
    );
    assert_eq!(shown["streamsPerIp"]["value"], 3);
}

/// What a token used, as requests that leak out evenly.
#[derive(Debug, Clone, Copy, Default)]
struct Fluid {
    used: f64,
    at: f64,
}

impl Fluid {
    fn pass_time(&mut self, now: f64, (rate, burst): (u32, u32)) {
        self.used = (self.used - (now - self.at) * f64::from(rate)).clamp(0.0, burst.into());
        self.at = now;
    }
}

/// Numbers for everybody and for some tokens change at random; some tokens sleep over several changes.
#[test]
fn over_random_edits_each_tokens_level_goes_on_as_water_does() {
    const TOKENS: usize = 6;
    let (mut passed, mut refused, mut close) = (0, 0, 0);
    for seed in 0..25 {
        let mut random = StdRng::seed_from_u64(seed);
        let names: Vec<_> = (0..TOKENS).map(|n| format!("token {n}")).collect();
        let base = (1, 50);
        let mut config = none();
        config.per_token = each(60 * base.0, base.1, 0, 100);
        let (limits, begin) = under(&config, &[]);
        let mut numbers = [base; TOKENS];
        let mut fluid = [Fluid::default(); TOKENS];
        let mut now = 0.0;
        for edit in 0..40 {
            let any = |random: &mut StdRng| (random.random_range(1..50), random.random_range(1..60));
            let everybody = random.random_bool(0.7).then(|| any(&mut random));
            let mut documents = Vec::new();
            let document =
                |(rate, burst)| format!("spec: {{requestsPerToken: {{rate: {rate}, burst: {burst}}}}}");
            documents.extend(everybody.map(|numbers| ("everybody".to_owned(), document(numbers))));
            let mut next = [everybody.unwrap_or(base); TOKENS];
            for token in 0..TOKENS {
                if random.random_bool(0.4) {
                    next[token] = any(&mut random);
                    let chosen = format!("match: {{tokenHashes: ['{}']}}\n", &hash(&names[token])[..12]);
                    documents.push((format!("token-{token}"), chosen + &document(next[token])));
                }
            }
            let documents: Vec<_> =
                documents.iter().map(|(name, rest)| (name.as_str(), rest.as_str())).collect();
            limits.obey_at(set(&documents), begin + Duration::from_secs_f64(now));
            for token in 0..TOKENS {
                fluid[token].pass_time(now, numbers[token]);
                fluid[token].pass_time(now, next[token]);
            }
            numbers = next;
            // Half of them do nothing for up to five edits.
            let awake = |token: usize| token < TOKENS / 2 || edit % 5 == token % 5;
            for _ in 0..random.random_range(0..300) {
                now += random.random_range(0.0..0.01);
                let token = random.random_range(0..TOKENS);
                if !awake(token) {
                    continue;
                }
                let water = &mut fluid[token];
                water.pass_time(now, numbers[token]);
                let room = f64::from(numbers[token].1) - water.used - 1.0;
                let took = limits.decide(&with(&names[token]), begin + Duration::from_secs_f64(now)).is_ok();
                if room.abs() < 1e-3 {
                    close += 1;
                } else {
                    assert_eq!(took, room > 0.0, "seed {seed}, edit {edit}, token {token}: {room}");
                }
                water.used += f64::from(u8::from(took));
                passed += u32::from(took);
                refused += u32::from(!took);
            }
        }
    }
    println!("{passed} passed, {refused} refused, {close} too close to call");
    assert!(
        passed > 10_000 && refused > 10_000 && close < (passed + refused) / 50,
        "{passed} {refused} {close}"
    );
}
