//! Which value comes from where: documents in files, over a kas' own configuration.

use super::*;
use crate::error::chain;
use tempfile::TempDir;

const CONFIG: &str = "
gitlab:
  address: http://gitlab.example.com
  authentication_secret_file: secret
  api_rate_limit: {refill_rate_per_second: 3, bucket_size: 4}
agent:
  listen: {connections_per_token_per_minute: 77, redis_lost: deny, max_connection_age: 100s}
  configuration: {poll_period: 7s}
  gitops: {poll_period: 9s}
gitaly:
  global_api_rate_limit: {refill_rate_per_second: 5, bucket_size: 6}
  per_server_api_rate_limit: {refill_rate_per_second: 7, bucket_size: 8}
redis: {server: {address: 'localhost:6379'}}
";

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("/etc/kas/kas.yaml")).unwrap()
}

fn policies(documents: &str) -> (TempDir, Policies) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents).unwrap();
    let text = format!("{CONFIG}policies: {{directory: '{}'}}\n", folder.path().display());
    let policies = Policies::open(&config(&text)).unwrap();
    (folder, policies)
}

fn agent(id: u64) -> Who {
    Who { agent_id: Some(id), project_id: Some(10), token_hash: [7; 32], version: Some("v16.11.2".into()) }
}

/// Everything that is asked about someone.
fn all(policies: &Policies, who: &Who) -> (Pace, Pace, Age, LimitPolicy, Rate, (Rate, Rate)) {
    let who = who.subject();
    (
        policies.pace(Followed::Configuration, &who),
        policies.pace(Followed::Manifests, &who),
        policies.max_age(&who),
        policies.agent_calls(&who),
        policies.gitlab(),
        policies.gitaly(),
    )
}

fn as_configured() -> (Pace, Pace, Age, LimitPolicy, Rate, (Rate, Rate)) {
    let pace = |period| Pace { period: Duration::from_secs(period), jitter_percent: 20 };
    let rate = |per_second, burst| Rate { per_second, burst };
    (
        pace(7),
        pace(9),
        Age { most: Some(Duration::from_secs(100)), jitter_percent: None },
        LimitPolicy { per_minute: 77, redis_lost: RedisLost::Deny },
        rate(3.0, 4),
        (rate(5.0, 6), rate(7.0, 8)),
    )
}

#[test]
fn a_kas_configuration_without_policies_says_everything_itself() {
    let alone = Policies::open(&config(CONFIG)).unwrap();
    assert_eq!(all(&alone, &agent(1)), as_configured());
    assert_eq!(alone.live().status().directory, None);
    let (_folder, silent) = policies("# nothing\n");
    assert_eq!(all(&silent, &agent(1)), as_configured());
    let default = Policies::open(&config(
        "gitlab: {address: 'http://gitlab.example.com', authentication_secret_file: secret}",
    ));
    let (configuration, manifests, age, calls, gitlab, gitaly) = all(&default.unwrap(), &agent(1));
    assert_eq!((configuration.period, manifests.period), (Duration::from_secs(20), Duration::from_secs(20)));
    assert_eq!(age.most, Some(Duration::from_secs(7_200)));
    assert_eq!((calls.per_minute, calls.redis_lost), (40_000, RedisLost::Local));
    let rate = |per_second, burst| Rate { per_second, burst };
    assert_eq!((gitlab, gitaly), (rate(10.0, 50), (rate(10.0, 50), rate(5.0, 10))));
}

#[test]
fn an_embedded_provider_has_the_same_period_for_both() {
    let text = "embedded: {identities_file: ids.yaml}\nagent: {configuration: {poll_period: 3s}}\n";
    let policies = Policies::open(&config(text)).unwrap();
    for followed in [Followed::Configuration, Followed::Manifests] {
        assert_eq!(policies.pace(followed, &agent(1).subject()).period, Duration::from_secs(3));
    }
}

#[test]
fn documents_say_what_they_set_for_whom_they_are_and_the_configuration_the_rest() {
    let documents = "
apiVersion: postern/v1
kind: PollingPolicy
metadata: {name: one}
match: {agentIds: [42]}
spec: {configuration: {period: 1s}, jitterPercent: 5}
---
apiVersion: postern/v1
kind: PollingPolicy
metadata: {name: project}
match: {projectIds: [10], agentVersions: ['16.*']}
spec: {manifests: {period: 5m}}
---
apiVersion: postern/v1
kind: LimitPolicy
metadata: {name: calls}
match: {tokenHashes: ['0707']}
spec: {agentCallsPerMinute: 5, redisLost: allow}
---
apiVersion: postern/v1
kind: ConnectionPolicy
metadata: {name: age}
match: {agentIds: [42]}
spec: {maxAge: 0s, jitterPercent: 1}
---
apiVersion: postern/v1
kind: BackendPolicy
metadata: {name: backends}
spec: {gitaly: {perServer: {perSecond: 1.5, burst: 2}}, gitlab: {rate: {perSecond: 20, burst: 30}}}
";
    let (_folder, policies) = policies(documents);
    let (mut configuration, mut manifests, mut age, mut calls, _, mut gitaly) = as_configured();
    let gitlab = Rate { per_second: 20.0, burst: 30 };
    gitaly.1 = Rate { per_second: 1.5, burst: 2 };
    let stranger = Who { project_id: Some(11), token_hash: [9; 32], ..agent(1) };
    assert_eq!(all(&policies, &stranger), (configuration, manifests, age, calls, gitlab, gitaly));
    manifests.period = Duration::from_secs(300);
    calls = LimitPolicy { per_minute: 5, redis_lost: RedisLost::Allow };
    let old = Who { version: Some("v15.0.0".into()), ..agent(1) };
    assert_eq!(policies.pace(Followed::Manifests, &old.subject()).period, Duration::from_secs(9));
    assert_eq!(all(&policies, &agent(1)), (configuration, manifests, age, calls, gitlab, gitaly));
    configuration = Pace { period: Duration::from_secs(1), jitter_percent: 5 };
    manifests.jitter_percent = 5;
    age = Age { most: None, jitter_percent: Some(1) };
    assert_eq!(all(&policies, &agent(42)), (configuration, manifests, age, calls, gitlab, gitaly));
}

#[test]
fn bad_files_at_start_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), "kind: LimitPolicyy\n").unwrap();
    std::fs::write(folder.path().join("b.yaml"), "apiVersion: postern/v9\nkind: LimitPolicy\n").unwrap();
    let error = chain(&open(Some(folder.path())).unwrap_err());
    for wanted in ["policies.directory", "a.yaml", "LimitPolicyy", "b.yaml", "postern/v9"] {
        assert!(error.contains(wanted), "{wanted} is not in {error}");
    }
}
