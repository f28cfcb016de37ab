//! One replica, one line: a replica that registers has a configuration stream as well, and one that moves is known at two
//! brokers for a while. Used by one broker's own list and by that of the whole fleet, with whatever comes along with each
//! connection.

use super::{Connected, Kind};
use postern_wire::proto::gitlab::agent::agent_tracker::ConnectedAgentInfo;
use std::{collections::BTreeMap, sync::Arc};

/// One agent's connections, each replica's once: those that register by their number, the streams of others by the name
/// of their pod. Streams of pods without a name are all different ones, as nothing tells whose they are.
pub fn once<T>(found: impl IntoIterator<Item = (Connected, T)>) -> Vec<(Connected, T)> {
    let (mut registered, mut pods, mut nameless) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for one in found {
        let number = one.0.info.connection_id;
        match (one.0.kind, pod(&one.0.info)) {
            (Kind::Registered, _) => add(&mut registered, number, one),
            (Kind::Stream, Some(pod)) => add(&mut pods, pod, one),
            (Kind::Stream, None) => add(&mut nameless, number, one),
        }
    }
    let mut registered: Vec<(Connected, T)> = registered.into_values().collect();
    // A pod whose agent was started again has two numbers for a while: the stream is the later one's.
    registered.sort_by_key(|(connected, _)| connected.heard_ago);
    let registered =
        registered.into_iter().map(|one| match pod(&one.0.info).and_then(|pod| pods.remove(&pod)) {
            Some(stream) => same(one, stream),
            None => one,
        });
    let mut once: Vec<_> = registered.collect();
    once.extend(pods.into_values().chain(nameless.into_values()));
    once
}

/// Namespace and name, of a pod that has a name.
pub(super) fn pod(info: &ConnectedAgentInfo) -> Option<(String, String)> {
    let meta = info.agent_meta.as_ref().filter(|meta| !meta.pod_name.is_empty())?;
    Some((meta.pod_namespace.clone(), meta.pod_name.clone()))
}

fn add<K: Ord, T>(known: &mut BTreeMap<K, (Connected, T)>, key: K, one: (Connected, T)) {
    let both = match known.remove(&key) {
        Some(other) => same(other, one),
        None => one,
    };
    known.insert(key, both);
}

/// Two entries of the same replica: where it was heard of last, since it came first, by the number that it registers.
fn same<T>(one: (Connected, T), other: (Connected, T)) -> (Connected, T) {
    let (mut newer, older) = if one.0.heard_ago <= other.0.heard_ago { (one, other) } else { (other, one) };
    let older = older.0;
    if since(&older.info) < since(&newer.0.info) {
        Arc::make_mut(&mut newer.0.info).connected_at = older.info.connected_at;
    }
    if (older.kind, newer.0.kind) == (Kind::Registered, Kind::Stream) {
        newer.0.kind = Kind::Registered;
        Arc::make_mut(&mut newer.0.info).connection_id = older.info.connection_id;
    }
    newer
}

fn since(info: &ConnectedAgentInfo) -> (i64, i32) {
    info.connected_at.map_or((0, 0), |at| (at.seconds, at.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Registered, Stream};
    use postern_wire::proto::gitlab::agent::modshared::AgentMeta;
    use prost_types::Timestamp;
    use std::time::Duration;

    /// Kind, number, pod, since when, heard of so long ago; and which broker says so.
    type Row = (Kind, i64, &'static str, i64, u64, char);

    fn connected((kind, connection_id, pod, since, heard_ago, broker): Row) -> (Connected, char) {
        let (pod_namespace, pod_name) = pod.split_once('/').unwrap();
        let (pod_namespace, pod_name) = (pod_namespace.to_owned(), pod_name.to_owned());
        let info = ConnectedAgentInfo {
            agent_meta: Some(AgentMeta { pod_namespace, pod_name, ..AgentMeta::default() }),
            connected_at: Some(Timestamp { seconds: since, nanos: 0 }),
            connection_id,
            ..ConnectedAgentInfo::default()
        };
        let heard_ago = Duration::from_secs(heard_ago);
        (Connected { info: Arc::new(info), name: "".into(), address: "".into(), kind, heard_ago }, broker)
    }

    /// Kind, number, since when, at which broker.
    type Listed = (Kind, i64, i64, char);

    fn row((connected, broker): &(Connected, char)) -> Listed {
        let info = &connected.info;
        (connected.kind, info.connection_id, info.connected_at.unwrap().seconds, *broker)
    }

    #[test]
    fn a_replica_is_listed_once_and_what_may_be_another_one_is() {
        let rows: &[(&str, &[Row], &[Listed])] = &[
            (
                "a stream that moved",
                &[(Stream, 5, "n/p", 100, 900, 'a'), (Stream, 6, "n/p", 997, 3, 'b')],
                &[(Stream, 6, 100, 'b')],
            ),
            (
                "one that has a stream and registers, at the same broker",
                &[(Registered, 5, "n/p", 100, 10, 'a'), (Stream, 6, "n/p", 101, 90, 'a')],
                &[(Registered, 5, 100, 'a')],
            ),
            (
                "one that registered at the broker that it left",
                &[(Registered, 5, "n/p", 100, 200, 'a'), (Stream, 6, "n/p", 300, 3, 'b')],
                &[(Registered, 5, 100, 'b')],
            ),
            (
                "one that was started again in its pod",
                &[
                    (Registered, 5, "n/p", 100, 200, 'a'),
                    (Registered, 6, "n/p", 300, 20, 'b'),
                    (Stream, 7, "n/p", 301, 19, 'b'),
                ],
                &[(Registered, 5, 100, 'a'), (Registered, 6, 300, 'b')],
            ),
            (
                "other pods, and other namespaces",
                &[
                    (Registered, 5, "n/p", 100, 0, 'a'),
                    (Stream, 6, "n/q", 100, 0, 'a'),
                    (Stream, 7, "m/p", 100, 0, 'b'),
                ],
                &[(Registered, 5, 100, 'a'), (Stream, 6, 100, 'a'), (Stream, 7, 100, 'b')],
            ),
            (
                "pods without a name",
                &[
                    (Registered, 5, "n/", 100, 0, 'a'),
                    (Stream, 6, "n/", 100, 9, 'a'),
                    (Stream, 7, "n/", 100, 0, 'b'),
                ],
                &[(Registered, 5, 100, 'a'), (Stream, 6, 100, 'a'), (Stream, 7, 100, 'b')],
            ),
        ];
        for (what, found, wanted) in rows {
            let forth = once(found.iter().copied().map(connected));
            let back = once(found.iter().rev().copied().map(connected));
            for found in [forth, back] {
                let mut found: Vec<_> = found.iter().map(row).collect();
                found.sort_unstable_by_key(|(_, number, ..)| *number);
                assert_eq!(found, *wanted, "{what}");
            }
        }
    }
}
