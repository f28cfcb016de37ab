//! The policies that ship hold the defaults of this program: whoever points to them changes nothing.

use super::{Config, Provider};
use crate::{agent_limit::RedisLost, rate::Rate};
use postern_policies::{CallRate, PolicySet, Rules, Subject, load_dir};
use std::path::Path;

fn value<T: Copy>(rules: &Rules<T>) -> T {
    *rules.find(&Subject::default()).expect("a document sets it").value
}

fn rate(rules: &Rules<CallRate>) -> Rate {
    let CallRate { per_second, burst } = value(rules);
    Rate { per_second, burst: burst.get() }
}

#[test]
fn the_policies_that_ship_are_the_defaults() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let PolicySet { limits, polling, connections, access, backends, tunnels } = load_dir(&shipped).unwrap();
    let minimal = include_str!("samples/kas-14.1-minimal.yaml");
    let with_api = format!("{minimal}agent:\n  kubernetes_api: {{}}\n");
    let own = Config::parse(&with_api, Path::new("/etc/kas/kas.yaml")).unwrap();
    let Provider::GitLab(gitlab) = own.provider else { panic!("the sample is of GitLab") };
    assert_eq!(value(&limits.agent_calls_per_minute), own.agents.connections_per_token_per_minute);
    assert_eq!(own.agents.redis_lost, RedisLost::Local);
    assert_eq!(value(&limits.redis_lost), postern_policies::RedisLost::Local);
    assert_eq!(value(&polling.configuration), own.agents.poll_period);
    assert_eq!(value(&polling.manifests), gitlab.gitops_poll_period);
    assert_eq!(value(&connections.max_age), own.agents.max_connection_age);
    assert!(access.callers.is_empty(), "with any, requests with doubtful paths are denied");
    assert_eq!(rate(&backends.gitaly), gitlab.gitaly_rate);
    assert_eq!(rate(&backends.gitaly_per_server), gitlab.gitaly_rate_per_server);
    assert_eq!(rate(&backends.gitlab), gitlab.rate);
    // Without a number, as they ship, both are something that no number says.
    assert!(connections.jitter_percent.is_empty() && tunnels.max_idle.is_empty());
    assert!(tunnels.idle_per_agent.is_empty());
    let api = own.kubernetes_api.expect("the section is there");
    assert_eq!(value(&tunnels.agent_wait), api.agent_wait);
}
