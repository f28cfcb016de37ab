//! The policies that ship hold the defaults of this program: whoever points to them changes nothing.

use super::{Config, limits::Each};
use postern_policies::{PolicySet, RateLimit, Rules, Subject, load_dir};
use postern_redis::lease::RedisLost;
use std::path::Path;

fn value<T: Copy>(rules: &Rules<T>) -> T {
    *rules.find(&Subject::default()).expect("a document sets it").value
}

fn rate(each: &Each) -> Option<RateLimit> {
    each.rate.map(|rate| RateLimit { per_minute: rate.per_minute, burst: rate.burst })
}

#[test]
fn the_policies_that_ship_are_the_defaults() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let PolicySet { limits, connections, access, .. } = load_dir(&shipped).unwrap();
    let own = "listen: [{address: '127.0.0.1:0'}]\nupstreams: {agents: {addresses: ['kas:8150']}}\n";
    let own = Config::meant(serde_yaml::from_str(own).unwrap(), Path::new("/etc/postern")).unwrap();
    let each = [
        (&limits.requests_per_token, &limits.streams_per_token, own.limits.per_token),
        (&limits.requests_per_ip, &limits.streams_per_ip, own.limits.per_ip),
        (&limits.requests_per_agent, &limits.streams_per_agent, own.limits.per_agent),
    ];
    for (requests, streams, own) in each {
        assert_eq!((value(requests), value(streams)), (rate(&own), own.streams));
    }
    assert_eq!(value(&limits.connections_per_ip), own.limits.connections_per_ip);
    assert_eq!(value(&limits.body_bytes), own.limits.body_bytes);
    assert_eq!(own.limits.redis_lost, RedisLost::Local);
    assert_eq!(value(&limits.redis_lost), postern_policies::RedisLost::Local);
    assert_eq!(value(&connections.max_age), own.connections.max_age.unwrap_or_default());
    // It would be the broker's too, which has another default.
    assert!(connections.jitter_percent.is_empty());
    assert_eq!(value(&connections.grace), own.connections.grace);
    assert_eq!(value(&connections.idle), own.timeouts.idle);
    // There are two defaults, and one number would set both.
    assert!(connections.ping.is_empty());
    assert_eq!(value(&connections.drain_grace), own.drain.grace);
    assert_eq!(value(&connections.drain_per_second), own.drain.connections_per_second);
    let clients = access.clients.find(&Subject::default()).expect("a document sets it").value;
    for address in ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"] {
        assert!(clients.admits(address.parse().unwrap()), "{address}");
    }
}
