//! Short traces, and what of them would have been refused.

use super::{Report, simulate, windowed};
use crate::PolicySet;
use crate::explain::tests::set;
use std::fmt::Write as _;
use std::time::Duration;

/// A trace in the making; times in milliseconds.
#[derive(Default)]
struct Trace(String);

impl Trace {
    /// A call of an agent from its begin to its end.
    fn call(self, token: &str, client: &str, begin: u64, end: u64) -> Self {
        self.line("agents", "/a.B/C", token, client, begin, end, "")
    }

    #[expect(clippy::too_many_arguments, reason = "these are the fields of a line")]
    fn line(
        mut self,
        route: &str,
        method: &str,
        token: &str,
        client: &str,
        begin: u64,
        end: u64,
        more: &str,
    ) -> Self {
        let (minutes, millis) = (end / 60_000, end % 60_000);
        let (seconds, millis) = (millis / 1_000, millis % 1_000);
        writeln!(
            self.0,
            r#"{{"timestamp":"2026-11-21T10:{minutes:02}:{seconds:02}.{millis:03}Z","message":"stream finished","target":"access","client":"{client}:1","route":"{route}","method":"{method}","token":"{token}","duration_ms":{}{more}}}"#,
            end - begin
        )
        .unwrap();
        self
    }

    fn play(&self, set: &PolicySet) -> Report {
        simulate(set, self.0.as_bytes()).unwrap()
    }
}

/// Field, document, times and names of one cause.
type Told<'a> = (&'a str, &'a str, u64, Vec<(&'a str, u64)>);

fn told(report: &Report) -> Vec<Told<'_>> {
    report
        .refusals
        .iter()
        .map(|one| {
            let names = one.names.iter().map(|(name, times)| (name.as_str(), *times)).collect();
            (one.field, one.rule.name.as_str(), one.times, names)
        })
        .collect()
}

fn limits(rest: &str) -> PolicySet {
    set(&[("LimitPolicy", "p", rest)])
}

#[test]
fn each_name_has_a_bucket_of_its_own_that_refills() {
    let set = limits("spec: {requestsPerToken: {perMinute: 60}}");
    let mut trace = Trace::default();
    for index in 0..70 {
        trace = trace.call("aa000000", "10.0.0.1", index * 10, index * 10);
    }
    for at in [1_000, 1_001, 1_002, 9_000] {
        trace = trace.call("bb000000", "10.0.0.1", at, at);
    }
    // One comes back in each second: of this token five more.
    for index in 0..10 {
        trace = trace.call("aa000000", "10.0.0.1", 5_700 + index, 5_700 + index);
    }
    let report = trace.play(&set);
    assert_eq!(told(&report), [("requestsPerToken", "p", 15, vec![("token aa000000", 15)])]);
    assert_eq!((report.judged, report.refused, report.unreadable, report.late), (84, 15, 0, 0));
    assert_eq!(report.span, Duration::from_secs(9));
}

#[test]
fn streams_are_open_for_as_long_as_they_lasted_whatever_the_order_of_their_lines() {
    let set = limits("spec: {streamsPerToken: 2, streamsPerIp: 3}");
    // The long ones end last, so that their lines come last.
    let trace = Trace::default()
        .call("aa000000", "10.0.0.1", 2_000, 3_000)
        .call("bb000000", "10.0.0.1", 2_500, 3_100)
        .call("bb000000", "10.0.0.1", 2_600, 3_200)
        .call("aa000000", "10.0.0.2", 0, 10_000)
        .call("aa000000", "10.0.0.1", 1_000, 11_000)
        .call("aa000000", "10.0.0.2", 10_000, 12_000);
    assert_eq!(told(&trace.play(&set)), [("streamsPerToken", "p", 1, vec![("token aa000000", 1)])]);
    let trace = trace.call("cc000000", "10.0.0.1", 2_700, 13_000).call("dd000000", "10.0.0.1", 2_800, 13_000);
    assert_eq!(
        told(&trace.play(&set)),
        [
            ("streamsPerIp", "p", 2, vec![("address 10.0.0.1", 2)]),
            ("streamsPerToken", "p", 1, vec![("token aa000000", 1)]),
        ]
    );
    // With too small a window what began first is seen too late, which is said.
    let report = windowed(&set, trace.0.as_bytes(), 1).unwrap();
    assert!(report.late > 0 && report.to_string().contains("judged late"));
}

#[test]
fn who_is_refused_by_one_limit_pays_for_none() {
    let set = limits("spec: {requestsPerToken: {rate: 1, burst: 2}, requestsPerIp: {rate: 1, burst: 1}}");
    let trace = Trace::default()
        .call("aa000000", "10.0.0.1", 0, 0)
        .call("aa000000", "10.0.0.1", 1, 1)
        .call("aa000000", "10.0.0.2", 2, 2)
        .call("aa000000", "10.0.0.3", 3, 3);
    assert_eq!(
        told(&trace.play(&set)),
        [
            ("requestsPerIp", "p", 1, vec![("address 10.0.0.1", 1)]),
            ("requestsPerToken", "p", 1, vec![("token aa000000", 1)]),
        ]
    );
}

#[test]
fn tunnels_pay_once_for_each_connection() {
    let set = limits("spec: {requestsPerToken: {rate: 1, burst: 2}, bodyBytes: 10}");
    let tunnel = |trace: Trace, connection: u64, at| {
        let more = format!(r#","connection":{connection},"bytes_in":1000"#);
        let method = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";
        trace.line("agents", method, "aa000000", "10.0.0.1", at, at + 1, &more)
    };
    let trace = (0..50).fold(Trace::default(), |trace, at| tunnel(trace, 7, at));
    assert_eq!(told(&trace.play(&set)), []);
    let trace = (0..3).fold(trace, |trace, other| tunnel(trace, 8 + other, 60 + other));
    assert_eq!(told(&trace.play(&set)), [("requestsPerToken", "p", 2, vec![("token aa000000", 2)])]);
}

#[test]
fn addresses_bodies_and_agents_are_judged() {
    let set = set(&[
        ("AccessPolicy", "net", "spec: {clients: {deny: [10.0.0.0/8]}}"),
        ("LimitPolicy", "body", "spec: {bodyBytes: 100}"),
        ("LimitPolicy", "agent", "match: {agentIds: [42]}\nspec: {requestsPerAgent: {rate: 1, burst: 1}}"),
    ]);
    let api = |trace: Trace, client: &str, at, more: &str| {
        trace.line("kubernetes_api", "POST", "aa000000", client, at, at, more)
    };
    let trace = api(Trace::default(), "10.1.1.1", 0, "");
    let trace = api(trace, "192.0.2.1", 1, r#","bytes_in":100"#);
    let trace = api(trace, "192.0.2.1", 2, r#","bytes_in":101"#);
    let trace = api(trace, "192.0.2.1", 3, r#","agent":42"#);
    let trace = api(trace, "192.0.2.1", 4, r#","agent":42,"refused":"agent_rate""#);
    let trace = api(trace, "192.0.2.1", 5, r#","agent":43,"refused":"agent_rate""#);
    let report = trace.play(&set);
    assert_eq!(
        told(&report),
        [
            ("bodyBytes", "body", 1, vec![("token aa000000", 1)]),
            ("clients", "net", 1, vec![("address 10.1.1.1", 1)]),
            ("requestsPerAgent", "agent", 1, vec![("agent 42", 1)]),
        ]
    );
    assert_eq!((report.refused, report.refused_before, report.newly_admitted), (3, 2, 1));
    let agents = "documents with agentIds matched only lines that have an agent";
    assert_eq!(report.notes, [agents, crate::simulate::notes::NEWLY_ADMITTED]);
}

#[test]
fn what_documents_only_report_is_told_apart_and_refuses_nobody() {
    let set = set(&[
        ("LimitPolicy", "all", "spec: {requestsPerToken: {rate: 1, burst: 4}}"),
        (
            "LimitPolicy",
            "try",
            "mode: report\nspec: {requestsPerToken: {rate: 1, burst: 1}, streamsPerIp: 1}",
        ),
    ]);
    let trace = (0..5).fold(Trace::default(), |trace, at| trace.call("aa000000", "2001:db8::1", at, 100));
    let trace = Trace(trace.0.replace("2001:db8::1", "[2001:db8::1]"));
    let report = trace.play(&set);
    let told: Vec<_> = report.refusals.iter().map(|one| (one.field, one.report, one.times)).collect();
    assert_eq!(
        told,
        [("requestsPerToken", false, 1), ("requestsPerToken", true, 3), ("streamsPerIp", true, 3)]
    );
    assert_eq!(report.refusals[2].names, [("address 2001:db8::/64".to_owned(), 3)]);
    assert_eq!(report.refused, 1);
    let text = report.to_string();
    assert!(
        text.starts_with(
            "5 streams over 0ns on 5 lines; 0 about something else, 0 unreadable\n1 would be refused"
        ),
        "{text}"
    );
    assert!(text.contains("reported only 3 times\n  token aa000000: 3"), "{text}");
}

#[test]
fn lines_that_are_none_are_counted() {
    let set = limits("spec: {streamsPerToken: 1}");
    let mut trace = Trace::default().call("aa000000", "10.0.0.1", 0, 5);
    trace.0 += "\n{\"message\":\"listening\"}\nhello\n\u{0}\n";
    trace.0 += &format!("{{\"target\":\"{}\"}}\n", "x".repeat(200_000));
    let trace = trace.call("aa000000", "10.0.0.1", 1, 6);
    let mut bytes = trace.0.into_bytes();
    bytes.extend(b"\xff\xfe\n{\"target\":\"acc");
    let report = simulate(&set, &*bytes).unwrap();
    assert_eq!((report.lines, report.judged, report.other_lines, report.unreadable), (9, 2, 1, 6));
    assert_eq!(report.refused, 1);
}

#[test]
fn what_lines_cannot_tell_is_noted() {
    let set = set(&[
        ("LimitPolicy", "long", "match: {tokenHashes: [aa00000012]}\nspec: {streamsPerToken: 1}"),
        ("LimitPolicy", "some", "canary: 5%\nspec: {streamsPerToken: 1}"),
        ("LimitPolicy", "all", "spec: {connectionsPerIp: 1}"),
        ("LimitPolicy", "old", "match: {agentVersions: [15.*]}\nspec: {streamsPerToken: 1}"),
    ]);
    let report = Trace::default().call("aa000000", "10.0.0.1", 0, 5).play(&set);
    let begins = ["lines have 8", "lines have 8", "lines do not say what agentVersions", "connectionsPerIp"];
    assert_eq!(report.notes.len(), begins.len());
    assert!(
        report.notes.iter().zip(begins).all(|(note, begin)| note.starts_with(begin)),
        "{:?}",
        report.notes
    );
}

#[test]
fn names_beyond_those_that_are_kept_are_others() {
    let set = set(&[("AccessPolicy", "net", "spec: {clients: {deny: [10.0.0.0/8]}}")]);
    let trace = (0..11_000_u64).fold(Trace::default(), |trace, n| {
        trace.call("aa000000", &format!("10.0.{}.{}", n / 250, n % 250), n, n)
    });
    let report = trace.call("aa000000", "10.0.0.7", 11_000, 11_000).play(&set);
    let net = &report.refusals[0];
    assert_eq!((net.times, net.names.len(), net.others), (11_001, 20, 11_001 - 21));
    assert_eq!(net.names[0], ("address 10.0.0.7".to_owned(), 2));
}
