//! Searches: what they are told, how soon, and at how many commands.

use super::*;
use futures::future::join_all;
use postern_wire::proto::gitlab::agent::event::{GitPushEvent, Project};
use tokio::sync::broadcast::error::TryRecvError;

#[tokio::test]
async fn an_agent_that_arrives_anywhere_wakes_a_search_within_milliseconds() {
    let server = server().await;
    // It is the news that wakes it.
    let habits = Habits { poll: NEVER, ..QUICK };
    let (here, there) = (Broker::ready(&server, 1, habits).await, Broker::ready(&server, 2, habits).await);
    let mut took = Vec::new();
    for agent in 1..=20 {
        let mut search = here.directory.search(AgentId(agent));
        assert_eq!(next(&mut search).await, Found::Nobody { last: None });
        let begin = Instant::now();
        let _guard = there.hold(AgentId(agent));
        assert_eq!(next(&mut search).await, found(2));
        took.push(begin.elapsed());
    }
    took.sort();
    println!("from arrival to the search: median {:?}, longest {:?}", took[10], took[19]);
    // The others may have waited for the machine.
    assert!(took[0] < Duration::from_millis(200), "{took:?}");
}

#[tokio::test]
async fn a_thousand_searches_for_one_agent_are_one_command_and_a_cached_route_is_none() {
    let server = server().await;
    let outside = Outside::new(&server);
    let there = Broker::ready(&server, 2, QUICK).await;
    let _guard = there.hold(AGENT);
    eventually("announced", || outside.is_held_by(AGENT, &[2])).await;
    let here = Broker::ready(&server, 1, Habits { poll: NEVER, ..QUICK }).await;
    outside.is_quiet().await;
    let mut searches: Vec<_> = (0..1000).map(|_| here.directory.search(AGENT)).collect();
    let all = join_all(searches.iter_mut().map(next)).await;
    assert!(all.iter().all(|news| *news == found(2)));
    assert_eq!(outside.commands().await, BTreeMap::from([("hgetall".to_owned(), 1)]));
    outside.forget_commands().await;
    for _ in 0..1000 {
        assert_eq!(next(&mut here.directory.search(AGENT)).await, found(2));
    }
    assert_eq!(outside.commands().await, BTreeMap::new());
    assert!(here.directory.census().hits >= 1000);
}

#[tokio::test]
async fn an_agent_nobody_has_costs_two_commands_for_all_that_ask_within_a_moment() {
    let server = server().await;
    let outside = Outside::new(&server);
    let here = Broker::ready(&server, 1, QUICK).await;
    outside.is_quiet().await;
    let begin = Instant::now();
    for _ in 0..100 {
        assert_eq!(next(&mut here.directory.search(AGENT)).await, Found::Nobody { last: None });
    }
    let commands = outside.commands().await;
    let moments = 1 + begin.elapsed().as_millis() / route::FRESH.as_millis();
    for name in ["hgetall", "get"] {
        let asked = u128::from(commands.get(name).copied().unwrap_or_default());
        assert!((1..=moments + 1).contains(&asked), "{moments} moments: {commands:?}");
    }
}

#[tokio::test]
async fn an_entry_of_a_kas_is_found_though_nobody_tells_and_garbage_is_passed_over() {
    let server = server().await;
    let outside = Outside::new(&server);
    let here = Broker::ready(&server, 1, QUICK).await;
    let mut search = here.directory.search(AGENT);
    assert_eq!(next(&mut search).await, Found::Nobody { last: None });
    let soon = schema::entry(outside.now().await + 60);
    outside.put(AGENT, b"grpc://10.0.0.1:1", &soon).await;
    outside.put(AGENT, b"1234567890", &soon).await;
    outside.put(AGENT, b"\xff\x00", b"\xff").await;
    outside.put(AGENT, &[b'x'; 400], &soon).await;
    outside.put(AGENT, b"grpc://10.0.0.9:7", b"nonsense").await;
    outside.put(AGENT, b"grpc://10.0.0.9:8", &schema::entry(1)).await;
    outside.put(AGENT, b"grpc://10.0.0.9:9", b"").await;
    let peer = "grpc://10.0.0.9:9".parse().unwrap();
    assert_eq!(next(&mut search).await, Found::Peer(peer), "without an end, and not its own");
    let key = outside.keys.agent(AGENT);
    eventually("the expired one is removed", || async { outside.fields(&key).await.len() == 6 }).await;
    assert!(!outside.holders(AGENT).await.contains("grpc://10.0.0.9:8"));
}

#[tokio::test]
async fn an_expired_entry_that_was_refreshed_meanwhile_is_not_removed() {
    let server = server().await;
    let outside = Outside::new(&server);
    let here = Broker::ready(&server, 1, QUICK).await;
    let (key, field) = (outside.keys.agent(AGENT), b"grpc://10.0.0.1:2".to_vec());
    let (seen, refreshed) = (schema::entry(1), schema::entry(outside.now().await + 60));
    outside.put(AGENT, &field, &refreshed).await;
    here.directory.remove(&key, vec![(field.clone(), seen)]).await;
    assert_eq!(outside.fields(&key).await, BTreeMap::from([(field.clone(), refreshed.clone())]));
    here.directory.remove(&key, vec![(field, refreshed)]).await;
    assert_eq!(outside.fields(&key).await, BTreeMap::new());
}

#[tokio::test]
async fn the_agent_of_a_killed_broker_was_seen_as_long_as_there_is_a_trace_of_it() {
    let begin = Instant::now();
    let server = server().await;
    let outside = Outside::new(&server);
    let here = Broker::ready(&server, 1, QUICK).await;
    let now = outside.now().await;
    // (whose entry, when it ends; when and by whom the agent was last seen then)
    for (agent, port, until, ago) in [(1, 9, -10, 310), (2, 1, -10, 310), (3, 1, 100, 200), (4, 1, 900, 0)] {
        let agent = AgentId(agent);
        outside.put(agent, peer(port).to_string().as_bytes(), &schema::entry(now + until)).await;
        outside.put(agent, peer(8).to_string().as_bytes(), &schema::entry(now - 1000)).await;
        let mut search = here.directory.search(agent);
        let Found::Nobody { last: Some(last) } = next(&mut search).await else { panic!("{agent}") };
        assert_eq!((last.from.as_str(), last.broker, last.refusal), ("", peer(port).to_string(), None));
        let seen = SystemTime::now().duration_since(last.at).unwrap();
        let late = Duration::from_secs(5) + begin.elapsed();
        assert!(seen.abs_diff(Duration::from_secs(ago)) < late, "{agent}: {seen:?}");
        eventually("it is written down", || async { here.directory.last_seen(agent).await.is_some() }).await;
        let wanted = usize::from(until > 0);
        let left = || async { outside.fields(&outside.keys.agent(agent)).await.len() };
        eventually("and what expired is removed", || async { left().await == wanted }).await;
        let ttl: i64 = outside.redis.command(cmd("PTTL").arg(outside.keys.last_seen(agent))).await.unwrap();
        assert!((600_000_000..=604_800_000).contains(&ttl), "{ttl}");
        assert_eq!(here.directory.last_seen(agent).await.unwrap().broker, peer(port).to_string());
    }
}

#[tokio::test]
async fn a_record_is_not_replaced_by_a_trace_and_counts_where_only_its_own_entry_is_listed() {
    let server = server().await;
    let outside = Outside::new(&server);
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    there.directory.refused(AGENT, "its token was revoked");
    eventually("written", || async { here.directory.last_seen(AGENT).await.is_some() }).await;
    let now = outside.now().await;
    outside.put(AGENT, peer(1).to_string().as_bytes(), &schema::entry(now + 60)).await;
    outside.put(AGENT, peer(9).to_string().as_bytes(), &schema::entry(now - 1)).await;
    let mut search = here.directory.search(AGENT);
    let Found::Nobody { last: Some(last) } = next(&mut search).await else { panic!("nobody has it") };
    assert_eq!(last.refusal.as_deref(), Some("its token was revoked"));
    eventually("the expired one is removed", || outside.is_held_by(AGENT, &[1])).await;
    let last = here.directory.last_seen(AGENT).await.unwrap();
    assert_eq!((last.broker, last.refusal.is_some()), (peer(2).to_string(), true));
}

#[tokio::test]
async fn a_broker_that_was_found_dead_is_written_down_before_its_entry_ends() {
    let server = server().await;
    let outside = Outside::new(&server);
    let here = Broker::ready(&server, 1, QUICK).await;
    let later = schema::entry(outside.now().await + 600);
    outside.put(AGENT, peer(9).to_string().as_bytes(), &later).await;
    let mut search = here.directory.search(AGENT);
    assert_eq!(next(&mut search).await, found(9));
    assert_eq!(here.directory.last_seen(AGENT).await, None, "it may well be there");
    let is_remembered = async {
        loop {
            here.directory.forget(AGENT, &peer(9));
            let _ = timeout(Duration::from_millis(50), search.next()).await;
            if let Some(last) = here.directory.last_seen(AGENT).await {
                return last.broker;
            }
        }
    };
    assert_eq!(timeout(SOON, is_remembered).await.unwrap(), peer(9).to_string());
    assert!(outside.is_held_by(AGENT, &[9]).await, "and its entry stays");
}

#[tokio::test]
async fn clocks_of_hosts_that_are_hours_apart_change_nothing() {
    let server = server().await;
    let outside = Outside::new(&server);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let _ = hours;
    let fast = Habits { wall: || SystemTime::now() + Duration::from_secs(5 * 3600), ..QUICK };
    let slow = Habits { wall: || SystemTime::now() - Duration::from_secs(3 * 3600), ..QUICK };
    let (here, there) = (Broker::ready(&server, 1, fast).await, Broker::ready(&server, 2, slow).await);
    let guard = there.hold(AGENT);
    eventually("announced", || outside.is_held_by(AGENT, &[2])).await;
    let mut search = here.directory.search(AGENT);
    assert_eq!(next(&mut search).await, found(2));
    drop(guard);
    eventually("taken back", || outside.is_held_by(AGENT, &[])).await;
    let last = here.directory.last_seen(AGENT).await.unwrap();
    let ago = (SystemTime::now() + Duration::from_secs(5 * 3600)).duration_since(last.at).unwrap();
    // How long ago a registry measures with the host's real clock, which is three hours ahead of the pretended one.
    assert!(ago < Duration::from_secs(600), "{ago:?}");
    assert_eq!((last.from.as_str(), last.broker), ("192.0.2.1:5", peer(2).to_string()));
}

#[tokio::test]
async fn a_broker_that_is_given_up_is_looked_for_in_redis_and_found_again_when_announced() {
    let server = server().await;
    let outside = Outside::new(&server);
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    let guard = there.hold(AGENT);
    eventually("announced", || outside.is_held_by(AGENT, &[2])).await;
    let mut search = here.directory.search(AGENT);
    assert_eq!(next(&mut search).await, found(2));
    here.directory.forget(AGENT, &peer(2));
    drop(guard);
    eventually("taken back", || outside.is_held_by(AGENT, &[])).await;
    let _guard = there.hold(AGENT);
    loop {
        match next(&mut search).await {
            Found::Peer(named) => break assert_eq!(named, peer(2)),
            Found::Nobody { .. } => {}
            Found::Unknown => panic!("redis is up"),
        }
    }
}

#[tokio::test]
async fn a_push_to_a_project_reaches_every_broker_once() {
    let server = server().await;
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    let outside = Outside::new(&server);
    let mut raw = open(&server).subscribe(vec![b"kas_events".to_vec()]);
    assert_eq!(timeout(SOON, raw.next()).await.unwrap(), crate::redis::Heard::Connected);
    let mut told = [here.directory.pushes(), there.directory.pushes()];
    let event = |id| GitPushEvent { project: Some(Project { id, full_path: "group/project".into() }) };
    for id in 1..=3 {
        here.directory.push(event(id)).await;
        for told in &mut told {
            assert_eq!(timeout(SOON, told.recv()).await.unwrap().unwrap(), event(id));
        }
    }
    // One of a kas, and things that are none.
    let publish = async |payload: Vec<u8>| {
        outside.redis.command::<()>(cmd("PUBLISH").arg("kas_events").arg(payload)).await.unwrap();
    };
    publish(b"\xff".to_vec()).await;
    publish(b"\x0a\x05other".to_vec()).await;
    let mut kas = hex::decode("0a").unwrap();
    let url = b"type.googleapis.com/gitlab.agent.event.GitPushEvent";
    kas.push(u8::try_from(url.len()).unwrap());
    kas.extend(url);
    kas.extend(hex::decode("1213").unwrap());
    kas.extend(hex::decode("0a110807").unwrap());
    kas.extend(b"\x12\x0dgroup/project");
    publish(kas.clone()).await;
    for told in &mut told {
        assert_eq!(timeout(SOON, told.recv()).await.unwrap().unwrap(), event(7));
        assert!(matches!(told.try_recv(), Err(TryRecvError::Empty)));
    }
    here.directory.push(event(7)).await;
    let mut published = Vec::new();
    while published.len() < 7 {
        if let crate::redis::Heard::Message { payload, .. } = timeout(SOON, raw.next()).await.unwrap() {
            published.push(payload);
        }
    }
    assert_eq!(published[6], kas, "the same bytes");
}

#[tokio::test]
async fn searches_that_wait_in_vain_ask_redis_together_about_once_a_second() {
    let server = server().await;
    let outside = Outside::new(&server);
    let here = Broker::ready(&server, 1, QUICK).await;
    outside.is_quiet().await;
    let begin = Instant::now();
    let mut searches: Vec<_> = (0..200).map(|_| here.directory.search(AGENT)).collect();
    let waiting = join_all(searches.iter_mut().map(async |search| {
        assert_eq!(next(search).await, Found::Nobody { last: None });
        search.next().await
    }));
    let asked = async || outside.commands().await.get("hgetall").copied().unwrap_or_default();
    tokio::select! {
        _ = waiting => panic!("nobody comes"),
        () = eventually("asked three times", async || asked().await >= 3) => {}
    }
    let (asked, took) = (asked().await, begin.elapsed());
    assert!(u128::from(asked) <= 1 + took.as_millis() / 800, "{asked} in {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    drop(searches);
    outside.is_quiet().await;
}

#[test]
fn a_search_may_run_in_any_task() {
    fn is_send<T: Send>(_: impl FnOnce(&'static mut Search) -> T) {}
    is_send(Search::next);
}
