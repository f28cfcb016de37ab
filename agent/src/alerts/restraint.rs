//! Keeps alerts to what people can read: the same one once in five minutes, and of one policy not too many. Before it:
//! `matching.rs`. After it: `posts.rs`. It computes; what it remembers is bounded.

use super::policies::MOST as MOST_POLICIES;
use postern_wire::proto::flow::{Endpoint, Flow, layer4, layer7};
use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hash, Hasher},
    time::Duration,
};
use tokio::time::Instant;

/// How long an alert is not repeated.
const REPEATED: Duration = Duration::from_secs(5 * 60);
/// Alerts that are remembered; beyond that the oldest are forgotten.
const REMEMBERED: usize = 4_096;
/// Alerts of a policy at once.
const BURST: f64 = 20.0;
/// Alerts of a policy in a minute thereafter.
const PER_MINUTE: f64 = 10.0;

/// Whether to say that a flow goes against a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Yes. The number is for [`Restraint::forget`].
    Post(u64),
    /// It has been said of one just like it.
    Repeated,
    /// Too much has been said of the policy.
    Limited,
}

/// What has been said.
#[derive(Debug, Default)]
pub(crate) struct Restraint {
    keys: RandomState,
    said: HashMap<u64, Instant>,
    /// In the order of time; those that were forgotten are still in it.
    order: VecDeque<(u64, Instant)>,
    buckets: HashMap<String, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Restraint {
    /// Decides, and takes a `Post` as said.
    pub(crate) fn decide(&mut self, policy: &str, flow: &Flow, now: Instant) -> Decision {
        self.drop_old(now);
        let mut hasher = self.keys.build_hasher();
        policy.hash(&mut hasher);
        identify(flow, &mut hasher);
        let key = hasher.finish();
        if self.said.contains_key(&key) {
            return Decision::Repeated;
        }
        if !self.take(policy, now) {
            return Decision::Limited;
        }
        self.said.insert(key, now);
        self.order.push_back((key, now));
        Decision::Post(key)
    }

    /// It could not be said after all: the next flow like it is to be.
    pub(crate) fn forget(&mut self, key: u64) {
        self.said.remove(&key);
    }

    fn drop_old(&mut self, now: Instant) {
        while let Some((key, at)) = self.order.front().copied() {
            if self.order.len() < REMEMBERED && now.duration_since(at) < REPEATED {
                return;
            }
            self.order.pop_front();
            if self.said.get(&key) == Some(&at) {
                self.said.remove(&key);
            }
        }
    }

    fn take(&mut self, policy: &str, now: Instant) -> bool {
        if !self.buckets.contains_key(policy) && self.buckets.len() >= 2 * MOST_POLICIES {
            // Of policies that are gone, or have been silent for long: a new one is as full.
            self.buckets.retain(|_, bucket| bucket.filled(now).left < BURST);
            if self.buckets.len() >= 2 * MOST_POLICIES {
                return false;
            }
        }
        let bucket = self.buckets.entry(policy.to_owned()).or_insert(Bucket { left: BURST, at: now });
        *bucket = bucket.filled(now);
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }
}

impl Bucket {
    fn filled(self, now: Instant) -> Self {
        let since = now.duration_since(self.at).as_secs_f64();
        Self { left: (self.left + since * PER_MINUTE / 60.0).min(BURST), at: now }
    }
}

/// What makes two flows the same to people: who, to whom, what for, and why not. Not when, nor from which port.
fn identify(flow: &Flow, hasher: &mut impl Hasher) {
    (flow.traffic_direction, flow.verdict, flow.drop_reason_desc).hash(hasher);
    let addresses = flow.ip.as_ref();
    end(flow.source.as_ref(), addresses.map(|ip| ip.source.as_str()), hasher);
    end(flow.destination.as_ref(), addresses.map(|ip| ip.destination.as_str()), hasher);
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(layer4::Protocol::Tcp(tcp)) => (1, tcp.destination_port, 0).hash(hasher),
        Some(layer4::Protocol::Udp(udp)) => (2, udp.destination_port, 0).hash(hasher),
        Some(layer4::Protocol::IcmPv4(icmp)) => (3, icmp.r#type, icmp.code).hash(hasher),
        Some(layer4::Protocol::IcmPv6(icmp)) => (4, icmp.r#type, icmp.code).hash(hasher),
        Some(layer4::Protocol::Sctp(sctp)) => (5, sctp.destination_port, 0).hash(hasher),
        None => 0.hash(hasher),
    }
    match flow.l7.as_ref().and_then(|l7| l7.record.as_ref()) {
        Some(layer7::Record::Http(http)) => {
            let url = http.url.split(['?', '#']).next().unwrap_or_default();
            (1, &http.method, url).hash(hasher);
        }
        Some(layer7::Record::Dns(dns)) => (2, "", &dns.query).hash(hasher),
        Some(layer7::Record::Kafka(kafka)) => (3, &kafka.api_key, &kafka.topic).hash(hasher),
        None => 0.hash(hasher),
    }
}

/// Pods by name, since their addresses are lent; all else by address.
fn end(endpoint: Option<&Endpoint>, address: Option<&str>, hasher: &mut impl Hasher) {
    match endpoint {
        Some(pod) if !pod.pod_name.is_empty() => (&pod.namespace, &pod.pod_name).hash(hasher),
        _ => ("", address.unwrap_or_default()).hash(hasher),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::flow::{Http, Ip, Layer4, Layer7, Tcp};

    fn flow(pod: &str, port: u32) -> Flow {
        let end = |pod: &str| {
            Some(Endpoint { namespace: "shop".to_owned(), pod_name: pod.to_owned(), ..Default::default() })
        };
        let tcp = Tcp { source_port: 1, destination_port: port, flags: None };
        Flow {
            source: end(pod),
            destination: end("db-0"),
            l4: Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) }),
            traffic_direction: 1,
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_in_five_minutes() {
        let mut restraint = Restraint::default();
        let start = Instant::now();
        let mut decide = |flow: &Flow, after: u64| {
            matches!(
                restraint.decide("shop/web", flow, start + Duration::from_secs(after)),
                Decision::Post(_)
            )
        };
        assert!(decide(&flow("web-0", 5432), 0));
        let mut later = flow("web-0", 5432);
        later.time = Some(prost_types::Timestamp { seconds: 9, nanos: 9 });
        later.uuid = "another".to_owned();
        later.ip = Some(Ip { source: "10.0.0.9".to_owned(), ..Default::default() });
        if let Some(layer4::Protocol::Tcp(tcp)) = later.l4.as_mut().and_then(|l4| l4.protocol.as_mut()) {
            tcp.source_port = 999;
        }
        assert!(!decide(&later, 1) && !decide(&later, 299));
        assert!(decide(&flow("web-1", 5432), 10) && decide(&flow("web-0", 5433), 10));
        let mut other = flow("web-0", 5432);
        other.traffic_direction = 2;
        assert!(decide(&other, 11));
        let asks = |url: &str| {
            let http = Http { url: url.to_owned(), ..Default::default() };
            Flow {
                l7: Some(Layer7 { record: Some(layer7::Record::Http(http)), ..Default::default() }),
                ..flow("web-0", 5432)
            }
        };
        assert!(decide(&asks("http://db/a?x=1"), 12) && !decide(&asks("http://db/a?x=2"), 12));
        assert!(decide(&asks("http://db/b"), 12));
        // Its silence began with what was said, not with what was not.
        assert!(decide(&later, 301));
    }

    #[tokio::test(start_paused = true)]
    async fn ends_that_are_no_pods_are_told_apart_by_address() {
        let mut restraint = Restraint::default();
        let from = |address: &str| Flow {
            source: None,
            ip: Some(Ip { source: address.to_owned(), ..Default::default() }),
            ..flow("", 80)
        };
        let mut decide = |flow: &Flow| restraint.decide("p", flow, Instant::now());
        assert!(matches!(decide(&from("192.0.2.1")), Decision::Post(_)));
        assert!(matches!(decide(&from("192.0.2.2")), Decision::Post(_)));
        assert_eq!(decide(&from("192.0.2.1")), Decision::Repeated);
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_has_a_burst_and_then_ten_a_minute() {
        let mut restraint = Restraint::default();
        let start = Instant::now();
        let mut port = 0;
        let mut posted = |policy: &str, after: u64, tries: u32| {
            let now = start + Duration::from_secs(after);
            (0..tries)
                .filter(|_| {
                    port += 1;
                    matches!(restraint.decide(policy, &flow("web-0", port), now), Decision::Post(_))
                })
                .count()
        };
        assert_eq!(posted("shop/web", 0, 100), 20);
        assert_eq!(posted("shop/other", 0, 5), 5);
        assert_eq!(posted("shop/web", 60, 100), 10);
        assert_eq!(posted("shop/web", 66, 100), 1);
        assert_eq!(posted("shop/web", 4_000, 100), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_said_after_all_may_be_said_again() {
        let mut restraint = Restraint::default();
        let Decision::Post(key) = restraint.decide("p", &flow("a", 1), Instant::now()) else { panic!("new") };
        restraint.forget(key);
        assert_eq!(restraint.decide("p", &flow("a", 1), Instant::now()), Decision::Post(key));
        assert_eq!(restraint.decide("p", &flow("a", 1), Instant::now()), Decision::Repeated);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut restraint = Restraint::default();
        let now = Instant::now();
        for number in 0..3 * REMEMBERED as u32 {
            restraint.decide(&format!("p{number}"), &flow("a", number), now);
            assert!(restraint.order.len() <= REMEMBERED && restraint.said.len() <= REMEMBERED);
            assert!(restraint.buckets.len() <= 2 * MOST_POLICIES);
        }
        // Buckets that are full again make room.
        let later = now + Duration::from_secs(600);
        assert!(matches!(restraint.decide("new", &flow("b", 1), later), Decision::Post(_)));
        assert_eq!(restraint.buckets.len(), 1);
        assert_eq!((restraint.order.len(), restraint.said.len()), (1, 1));
    }
}
