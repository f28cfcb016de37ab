//! A broker that leaves, and agents that move.

use super::*;

#[tokio::test]
async fn a_broker_that_drains_announces_nothing_new_and_takes_back_what_leaves_at_once() {
    let server = server().await;
    let outside = Outside::new(&server);
    let habits = Habits { fade: Duration::from_secs(600), ..QUICK };
    let (here, there) = (Broker::ready(&server, 1, habits).await, Broker::ready(&server, 2, habits).await);
    let mut guards: Vec<_> = (1..=3).map(|agent| there.hold(AgentId(agent))).collect();
    eventually("announced", || outside.is_held_by(AgentId(3), &[2])).await;
    eventually("it is a peer", || async { here.directory.peers() == [peer(2)] }).await;
    drop(guards.remove(0));
    there.directory.begin_leave();
    eventually("the one that had left is taken back", || outside.is_held_by(AgentId(1), &[])).await;
    eventually("it is no peer", || async { here.directory.peers().is_empty() }).await;
    let _new = there.hold(AgentId(4));
    drop(guards.remove(0));
    eventually("taken back at once", || outside.is_held_by(AgentId(2), &[])).await;
    assert!(outside.is_held_by(AgentId(4), &[]).await && outside.is_held_by(AgentId(3), &[2]).await);
    let mut search = here.directory.search(AgentId(3));
    assert_eq!(next(&mut search).await, found(2));
    assert!(here.directory.peers().is_empty(), "its agents' entries do not make it one again");
    there.directory.finish_leave().await;
    assert!(outside.is_held_by(AgentId(3), &[]).await, "the rest");
    assert!(outside.fields(&outside.keys.brokers()).await.keys().eq([peer(1).to_string().as_bytes()]));
    let Found::Nobody { last: Some(last) } = next(&mut search).await else { panic!("it left") };
    assert_eq!(last.broker, peer(2).to_string());
    there.end().await;
}

#[tokio::test]
async fn an_agent_has_moved_when_another_broker_announced_it() {
    let server = server().await;
    let outside = Outside::new(&server);
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    let _before = there.hold(AgentId(1));
    eventually("announced", || outside.is_held_by(AgentId(1), &[2])).await;
    let _guards = [here.hold(AGENT), here.hold(AgentId(1))];
    eventually("announced", || outside.is_held_by(AgentId(1), &[1, 2])).await;
    timeout(SOON, here.directory.moved(AgentId(1))).await.expect("redis is asked about what was not heard");
    assert!(!here.directory.elsewhere(AGENT));
    let moved = here.directory.moved(AGENT);
    tokio::pin!(moved);
    assert!(futures::poll!(&mut moved).is_pending());
    let guard = there.hold(AGENT);
    timeout(SOON, moved).await.expect("it is heard of");
    assert!(here.directory.elsewhere(AGENT));
    drop(guard);
    eventually("it is back", || async { !here.directory.elsewhere(AGENT) }).await;
}

#[tokio::test]
async fn many_tunnels_of_agents_that_stay_keep_nobody_from_seeing_that_another_agent_moved() {
    let server = server().await;
    let outside = Outside::new(&server);
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    let _guards: Vec<_> = (0..5).map(|agent| here.hold(AgentId(agent))).collect();
    eventually("announced", || outside.is_held_by(AgentId(4), &[1])).await;
    let staying = (0..100).map(|tunnel| here.directory.moved(AgentId(tunnel % 4)));
    let staying = futures::future::join_all(staying);
    tokio::pin!(staying);
    assert!(futures::poll!(&mut staying).is_pending());
    let _guard = there.hold(AgentId(4));
    tokio::select! {
        _ = &mut staying => panic!("they are here"),
        moved = timeout(SOON, here.directory.moved(AgentId(4))) => moved.expect("it is heard of"),
    }
}

#[tokio::test]
async fn an_entry_of_a_dead_broker_is_no_place_to_move_to() {
    let server = server().await;
    let outside = Outside::new(&server);
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    let _guard = here.hold(AGENT);
    here.directory.brokers.told(&peer(9), Instant::now());
    let soon = schema::entry(outside.now().await + 60);
    outside.put(AGENT, peer(9).to_string().as_bytes(), &soon).await;
    here.directory.begin_leave();
    let moved = here.directory.moved(AGENT);
    tokio::pin!(moved);
    assert!(futures::poll!(&mut moved).is_pending());
    assert_eq!(next(&mut here.directory.search(AGENT)).await, found(9), "a request tries it all the same");
    assert!(!here.directory.elsewhere(AGENT) && futures::poll!(&mut moved).is_pending());
    let _guard = there.hold(AGENT);
    timeout(SOON, moved).await.expect("it came to one that lives");
}

#[tokio::test]
async fn a_drain_of_a_broker_whose_redis_hangs_ends_in_time() {
    let server = server().await;
    let outside = Outside::new(&server);
    let broker = Broker::ready(&server, 1, Habits { leave: LEAVE, limit: writer::LIMIT, ..QUICK }).await;
    let _guards: Vec<_> = (0..600).map(|agent| broker.hold(AgentId(agent))).collect();
    eventually("announced", || outside.is_held_by(AgentId(599), &[1])).await;
    server.pause();
    // From here on nobody but the broker's own deadlines can end a wait, and so time need not really pass.
    tokio::time::pause();
    let begin = Instant::now();
    broker.directory.begin_leave();
    broker.directory.finish_leave().await;
    broker.end().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
