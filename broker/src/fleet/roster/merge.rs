//! Several brokers' lists as one. A replica that moved to another broker is on both lists for a while: it is listed
//! once, see [`replicas`].

use super::{Answer, Entry};
use crate::{
    agent_tracker::{Connected, LISTED_MAX, age, replicas},
    fleet::PeerUrl,
};
use std::collections::BTreeMap;

/// At most `limit` entries in the order of agents' ids, each agent's oldest first and its newest [`LISTED_MAX`] only;
/// and whether anything is left out.
pub(super) fn merge(answers: Vec<(Option<PeerUrl>, Answer)>, limit: usize) -> (Vec<Entry>, bool) {
    let mut agents: BTreeMap<i64, Vec<(Connected, Option<PeerUrl>)>> = BTreeMap::new();
    let mut truncated = false;
    for (broker, answer) in answers {
        truncated |= answer.truncated;
        for connected in answer.connected {
            agents.entry(connected.info.agent_id).or_default().push((connected, broker.clone()));
        }
    }
    let mut merged = Vec::new();
    for found in agents.into_values() {
        let mut once = replicas::once(found);
        once.sort_by_key(|(connected, _)| age(&connected.info));
        let surplus = once.len().saturating_sub(LISTED_MAX);
        merged.extend(once.into_iter().skip(surplus).map(|(connected, broker)| Entry { connected, broker }));
        if merged.len() > limit {
            merged.truncate(limit);
            return (merged, true);
        }
    }
    (merged, truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_tracker::Kind;
    use postern_wire::proto::gitlab::agent::agent_tracker::ConnectedAgentInfo;
    use prost_types::Timestamp;
    use std::{sync::Arc, time::Duration};

    const LIMIT: usize = 1000;

    /// Agent, number, since when, heard of so long ago.
    fn connected(agent_id: i64, connection_id: i64, since: i64, heard_ago: u64) -> Connected {
        let connected_at = Some(Timestamp { seconds: since, nanos: 0 });
        let info = ConnectedAgentInfo { agent_id, connection_id, connected_at, ..Default::default() };
        Connected {
            info: Arc::new(info),
            name: "".into(),
            address: "".into(),
            kind: Kind::Registered,
            heard_ago: Duration::from_secs(heard_ago),
        }
    }

    fn says(broker: u16, connected: Vec<Connected>) -> (Option<PeerUrl>, Answer) {
        let url = format!("grpc://b:{broker}").parse().unwrap();
        (Some(url), Answer { connected, truncated: false })
    }

    /// Agent, number, since when, at which broker.
    fn listed(entries: &[Entry]) -> Vec<(i64, i64, i64, u16)> {
        let row = |entry: &Entry| {
            let Some(PeerUrl::Tcp { port, .. }) = entry.broker else { panic!("a broker") };
            let info = &entry.connected.info;
            (info.agent_id, info.connection_id, info.connected_at.unwrap().seconds, port)
        };
        entries.iter().map(row).collect()
    }

    #[test]
    fn a_replica_that_moved_is_listed_once_where_it_was_heard_of_last_since_it_first_came() {
        for (what, lists, wanted) in [
            (
                "moved on",
                [says(1, vec![connected(1, 5, 100, 200)]), says(2, vec![connected(1, 5, 300, 3)])],
                2,
            ),
            (
                "and back",
                [says(1, vec![connected(1, 5, 100, 1)]), says(2, vec![connected(1, 5, 300, 90)])],
                1,
            ),
            (
                "the new one's clock is behind",
                [says(1, vec![connected(1, 5, 100, 200)]), says(2, vec![connected(1, 5, 100, 3)])],
                2,
            ),
        ] {
            let turned = vec![lists[1].clone(), lists[0].clone()];
            for lists in [lists.to_vec(), turned] {
                let (entries, more) = merge(lists, LIMIT);
                assert_eq!((listed(&entries), more), (vec![(1, 5, 100, wanted)], false), "{what}");
            }
        }
    }

    #[test]
    fn other_numbers_other_agents_and_streams_are_others() {
        let stream = |broker| {
            let stream = Connected { kind: Kind::Stream, ..connected(1, 5, 50, 0) };
            says(broker, vec![stream])
        };
        let lists = vec![
            says(2, vec![connected(1, 6, 90, 0), connected(3, 5, 10, 0)]),
            says(1, vec![connected(1, 5, 100, 0), connected(2, 5, 20, 0)]),
            stream(3),
        ];
        let wanted = [(1, 5, 50, 3), (1, 6, 90, 2), (1, 5, 100, 1), (2, 5, 20, 1), (3, 5, 10, 2)];
        assert_eq!(listed(&merge(lists, LIMIT).0), wanted);
    }

    #[test]
    fn an_agent_and_a_list_have_so_many_entries_together() {
        let many = |broker, agents: std::ops::Range<i64>| {
            let of = |agent| (0..80).map(move |n| connected(agent, n + 1000 * i64::from(broker), n, 0));
            says(broker, agents.flat_map(of).collect())
        };
        let (entries, more) = merge(vec![many(1, 0..3), many(2, 0..3)], LIMIT);
        assert_eq!((entries.len(), more), (3 * LISTED_MAX, false));
        assert!(listed(&entries).iter().all(|row| row.2 >= 30), "the newest are listed");
        let (entries, more) = merge(vec![many(1, 0..3), many(2, 0..3)], 250);
        assert_eq!((entries.len(), more), (250, true));
        let (_, more) = merge(vec![(None, Answer { truncated: true, ..Answer::default() })], LIMIT);
        assert!(more, "one that could not say all");
    }
}
