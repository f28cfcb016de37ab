//! Redis away, hanging, or back without its data: agents elsewhere are found all the same.

use super::*;

#[tokio::test]
async fn after_redis_restarts_empty_everything_is_announced_again_and_searches_survive() {
    let mut server = server().await;
    let outside = Outside::new(&server);
    let habits = Habits { young: NEVER, ..QUICK };
    let (here, there) = (Broker::ready(&server, 1, habits).await, Broker::ready(&server, 2, habits).await);
    let _guards: Vec<_> = (0..600).map(|agent| there.hold(AgentId(agent))).collect();
    eventually("announced", || outside.is_held_by(AgentId(599), &[2])).await;
    let mut waiting = here.directory.search(AgentId(1000));
    assert_eq!(next(&mut waiting).await, Found::Unknown, "this broker is new");
    assert_eq!(next(&mut here.directory.search(AGENT)).await, found(2));
    server.stop().await;
    eventually("it is noticed", || async { !here.directory.is_up() }).await;
    assert_eq!(next(&mut here.directory.search(AGENT)).await, found(2), "from memory");
    assert_eq!(here.directory.peers(), [peer(2)]);
    let mut search = here.directory.search(AgentId(7));
    assert_eq!(next(&mut search).await, Found::Unknown, "never asked for before");
    let late = there.hold(AgentId(1000));
    let begin = Instant::now();
    server.restart().await.unwrap();
    assert_eq!(next(&mut search).await, found(2));
    assert_eq!(next(&mut waiting).await, found(2));
    println!("{:?} after its restart redis told the searches", begin.elapsed());
    for agent in [0, 42, 599, 1000] {
        eventually("announced again", || outside.is_held_by(AgentId(agent), &[2])).await;
    }
    println!("{:?} after its restart redis held all again", begin.elapsed());
    drop(late);
    eventually("and kept true", || outside.is_held_by(AgentId(1000), &[])).await;
    eventually("brokers too", || async { outside.fields(&outside.keys.brokers()).await.len() == 2 }).await;
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_request_a_tenth_of_a_second_once() {
    let server = server().await;
    let outside = Outside::new(&server);
    let hurried = Habits { patience: route::PATIENCE, ..QUICK };
    let (here, there) = (Broker::ready(&server, 1, hurried).await, Broker::ready(&server, 2, QUICK).await);
    let _guards = [there.hold(AGENT), there.hold(AgentId(7))];
    eventually("announced", || outside.is_held_by(AgentId(7), &[2])).await;
    let mut search = here.directory.search(AGENT);
    while next(&mut search).await != found(2) {}
    server.pause();
    // From here on nobody but the programs' own deadlines can end a wait, and so time need not really pass.
    tokio::time::pause();
    assert_eq!(next(&mut here.directory.search(AGENT)).await, found(2), "cached");
    let begin = Instant::now();
    let mut search = here.directory.search(AgentId(7));
    assert_eq!(next(&mut search).await, Found::Unknown);
    let took = begin.elapsed();
    assert!((100..1000).contains(&took.as_millis()), "{took:?}");
    let begin = Instant::now();
    assert_eq!(next(&mut here.directory.search(AgentId(7))).await, Found::Unknown);
    let took = begin.elapsed();
    assert!(took < Duration::from_millis(80), "{took:?}");
    tokio::time::resume();
    server.resume();
    assert_eq!(next(&mut search).await, found(2));
}

#[tokio::test]
async fn without_redis_nothing_hangs_and_a_broker_ends() {
    let mut server = server().await;
    server.stop().await;
    // Nobody is there who could answer, and so time need not really pass.
    tokio::time::pause();
    let broker = Broker::start(&server, 1, Habits::default());
    let _guard = broker.hold(AGENT);
    assert_eq!(next(&mut broker.directory.search(AgentId(1))).await, Found::Unknown);
    assert_eq!(timeout(SOON, broker.directory.last_seen(AGENT)).await, Ok(None));
    assert!(!broker.directory.is_up() && broker.directory.peers().is_empty());
    broker.directory.refused(AGENT, "why");
    let mut pushes = broker.directory.pushes();
    timeout(SOON, broker.directory.push(GitPushEvent::default())).await.unwrap();
    assert_eq!(pushes.recv().await.unwrap(), GitPushEvent::default(), "this one hears of it");
    let begin = Instant::now();
    broker.directory.begin_leave();
    broker.directory.finish_leave().await;
    assert!(begin.elapsed() < LEAVE + Duration::from_secs(1));
    broker.end().await;
}

#[tokio::test]
async fn what_was_not_heard_while_the_subscription_was_gone_is_looked_up_after_it() {
    let server = server().await;
    let outside = Outside::new(&server);
    let habits = Habits { fade: Duration::ZERO, ..QUICK };
    let here = Broker::ready(&server, 1, habits).await;
    let there = [Broker::ready(&server, 2, habits).await, Broker::ready(&server, 3, habits).await];
    for agent in 1..=5 {
        let agent = AgentId(agent);
        let before = there[0].hold(agent);
        eventually("announced", || outside.is_held_by(agent, &[2])).await;
        let mut waiting = here.directory.search(AgentId(agent.0 + 100));
        assert_eq!(next(&mut waiting).await, Found::Nobody { last: None });
        assert_eq!(next(&mut here.directory.search(agent)).await, found(2));
        let epoch = here.directory.world.view().epoch;
        let killed: i64 =
            outside.redis.command(cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub")).await.unwrap();
        assert!(killed >= 1);
        drop(before);
        let _after = [there[1].hold(agent), there[1].hold(AgentId(agent.0 + 100))];
        assert_eq!(next(&mut waiting).await, found(3));
        let mut search = here.directory.search(agent);
        while next(&mut search).await != found(3) {}
        eventually("it listens again", || async {
            let view = here.directory.world.view();
            view.is_listening && view.epoch > epoch
        })
        .await;
    }
}

#[tokio::test]
async fn while_a_broker_cannot_reach_redis_its_agents_are_found_by_those_who_know_them() {
    let server = server().await;
    let outside = Outside::new(&server);
    let (here, there) = (Broker::ready(&server, 1, QUICK).await, Broker::ready(&server, 2, QUICK).await);
    let _guard = there.hold(AGENT);
    eventually("announced", || outside.is_held_by(AGENT, &[2])).await;
    assert_eq!(next(&mut here.directory.search(AGENT)).await, found(2));
    // Its task does not write any more, as if it could not.
    there.stop.cancel();
    eventually("taken back", || outside.is_held_by(AGENT, &[])).await;
    eventually("its last entry, which is short, is seen", async || {
        let soon = schema::entry(outside.now().await + 2);
        outside.put(AGENT, peer(2).to_string().as_bytes(), &soon).await;
        next(&mut here.directory.search(AGENT)).await == found(2)
    })
    .await;
    let gone = || async { outside.holders(AGENT).await.is_empty() };
    eventually("its entry expires and is removed", || async {
        let _ = next(&mut here.directory.search(AGENT)).await;
        gone().await
    })
    .await;
    assert_eq!(next(&mut here.directory.search(AGENT)).await, found(2), "it never said that it left");
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_asked_long_after_its_entries_have_ended() {
    let server = server().await;
    let outside = Outside::new(&server);
    let options = Options { own: peer(1), ttl: Duration::from_secs(2), refresh: Duration::from_secs(1) };
    let here = Broker::start_with(&server, options, QUICK);
    here.listens().await;
    eventually("it is there", async || {
        let soon = schema::entry(outside.now().await + 2);
        let write = cmd("HSET").arg(outside.keys.brokers()).arg(peer(2).to_string()).arg(soon).clone();
        outside.redis.command::<()>(&write).await.unwrap();
        here.directory.alive() == [peer(2)]
    })
    .await;
    eventually("it is silent", || async { here.directory.alive().is_empty() }).await;
    assert_eq!(here.directory.peers(), [peer(2)]);
}

#[tokio::test]
async fn the_first_search_long_after_the_start_is_told_that_nobody_has_the_agent() {
    let server = server().await;
    let outside = Outside::new(&server);
    let broker = Broker::start(&server, 1, Habits { young: Duration::from_millis(300), ..QUICK });
    eventually("it has begun", || async { !outside.fields(&outside.keys.brokers()).await.is_empty() }).await;
    let begin = Instant::now();
    eventually("it is not young any more", || async { begin.elapsed() > Duration::from_millis(400) }).await;
    assert_eq!(next(&mut broker.directory.search(AGENT)).await, Found::Nobody { last: None });
}
