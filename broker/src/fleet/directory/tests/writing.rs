//! What a broker writes: which bytes, how many commands, and that it always comes to the truth.

use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

#[tokio::test]
async fn an_agent_that_comes_and_goes_is_in_redis_just_so() {
    let server = server().await;
    let outside = Outside::new(&server);
    let before = outside.now().await;
    let broker = Broker::ready(&server, 8155, QUICK).await;
    let guard = broker.hold(AGENT);
    eventually("announced", || outside.is_held_by(AGENT, &[8155])).await;
    let after = outside.now().await;
    let mut key = b"gitlab-kas:tunnel_tracker2:kas_by_agent_id:".to_vec();
    key.extend(42u64.to_le_bytes());
    for key in [key.clone(), b"gitlab-kas:postern:brokers".to_vec()] {
        let fields = outside.fields(&key).await;
        let (field, value) = fields.first_key_value().expect("an entry");
        assert_eq!((field.as_slice(), fields.len(), value.len()), (b"grpc://10.0.0.1:8155".as_slice(), 1, 6));
        let (_, expires_at) = schema::parse_entry(field, value).unwrap();
        assert!((before - 1 + 300..=after + 300).contains(&expires_at.unwrap()), "{expires_at:?}");
        let ttl: i64 = outside.redis.command(cmd("PTTL").arg(&key)).await.unwrap();
        assert!((200_000..=300_000).contains(&ttl), "{ttl}");
    }
    drop(guard);
    eventually("taken back", || outside.is_held_by(AGENT, &[])).await;
    let last = outside.keys.last_seen(AGENT);
    eventually("remembered", || async { broker.directory.last_seen(AGENT).await.is_some() }).await;
    let ttl: i64 = outside.redis.command(cmd("PTTL").arg(&last)).await.unwrap();
    assert!((600_000_000..=604_800_000).contains(&ttl), "{ttl}");
    let mut keys: Vec<Vec<u8>> = outside.redis.command(cmd("KEYS").arg("*")).await.unwrap();
    keys.sort();
    assert_eq!(keys, [outside.keys.brokers(), last]);
    broker.end().await;
    let keys: Vec<Vec<u8>> = outside.redis.command(cmd("KEYS").arg("*")).await.unwrap();
    assert_eq!(keys.len(), 1, "nothing but the memory is left");
}

#[tokio::test]
async fn an_entry_stays_until_it_is_remembered_where_its_agent_was() {
    let server = server().await;
    let outside = Outside::new(&server);
    let broker = Broker::ready(&server, 1, QUICK).await;
    let guards = [broker.hold(AGENT), broker.hold(AgentId(1))];
    for agent in [AGENT, AgentId(1)] {
        eventually("announced", || outside.is_held_by(agent, &[1])).await;
    }
    let user = |rule: &str| cmd("ACL").arg("SETUSER").arg("default").arg(rule).clone();
    outside.redis.command::<()>(&user("-set")).await.unwrap();
    outside.forget_commands().await;
    drop(guards);
    let failures = || broker.directory.census().pass_failures;
    eventually("it is tried again and again", || async { failures() >= 2 }).await;
    assert_eq!(outside.commands().await.get("hdel"), None);
    assert!(outside.is_held_by(AGENT, &[1]).await && outside.is_held_by(AgentId(1), &[1]).await);
    outside.redis.command::<()>(&user("+set")).await.unwrap();
    for agent in [AGENT, AgentId(1)] {
        eventually("taken back", || outside.is_held_by(agent, &[])).await;
        assert_eq!(broker.directory.last_seen(agent).await.unwrap().broker, peer(1).to_string());
    }
}

#[tokio::test]
async fn an_agent_that_is_back_in_time_never_left() {
    let server = server().await;
    let outside = Outside::new(&server);
    let habits = Habits { fade: Duration::from_secs(600), ..QUICK };
    let broker = Broker::ready(&server, 1, habits).await;
    let guard = broker.hold(AGENT);
    eventually("announced", || outside.is_held_by(AGENT, &[1])).await;
    // What the broker says of itself when it begins to listen would be counted, too.
    outside.is_quiet().await;
    drop(guard);
    let _other = broker.hold(AgentId(1));
    eventually("it is noticed", || outside.is_held_by(AgentId(1), &[1])).await;
    let _guard = broker.hold(AGENT);
    let _third = broker.hold(AgentId(2));
    eventually("this, too", || outside.is_held_by(AgentId(2), &[1])).await;
    assert!(outside.is_held_by(AGENT, &[1]).await);
    let commands = outside.commands().await;
    assert_eq!(commands.get("hset"), Some(&2), "only the others': {commands:?}");
    assert_eq!(commands.get("hdel"), None, "{commands:?}");
}

#[tokio::test]
async fn two_thousand_agents_at_once_are_a_handful_of_round_trips() {
    let server = server().await;
    let outside = Outside::new(&server);
    let broker = Broker::ready(&server, 1, QUICK).await;
    outside.is_quiet().await;
    let passes = broker.directory.census().passes;
    let begin = Instant::now();
    let guards: Vec<_> = (0..2000).map(|agent| broker.hold(AgentId(agent))).collect();
    let size = async || -> i64 { outside.redis.command(&cmd("DBSIZE")).await.unwrap() };
    eventually("all announced", async || size().await >= 2001).await;
    let took = begin.elapsed();
    eventually("the pass is over", || async { outside.commands().await.get("publish") >= Some(&2000) }).await;
    let passes = broker.directory.census().passes - passes;
    let mut commands = outside.commands().await;
    commands.remove("dbsize");
    println!("2000 agents: {took:?}, {passes} passes of up to 8 round trips, {commands:?}");
    assert!(passes <= 10, "{passes}");
    for name in ["multi", "hset", "pexpire", "exec", "publish"] {
        assert_eq!(commands.get(name), Some(&2000), "{name}");
    }
    let bytes: u64 =
        outside.redis.command(cmd("MEMORY").arg("USAGE").arg(outside.keys.agent(AGENT))).await.unwrap();
    println!("an agent's entry takes {bytes} bytes");
    assert!(bytes <= 220, "{bytes}");
    drop(guards);
    eventually("all taken back", || async { outside.commands().await.get("hdel") >= Some(&2000) }).await;
}

#[tokio::test]
async fn a_refresh_is_two_commands_for_each_agent_and_four_for_the_broker() {
    let server = server().await;
    let outside = Outside::new(&server);
    let options = Options { own: peer(1), ttl: Duration::from_secs(300), refresh: Duration::from_secs(2) };
    let broker = Broker::start_with(&server, options, QUICK);
    let _guards: Vec<_> = (0..600).map(|agent| broker.hold(AgentId(agent))).collect();
    eventually("announced", || outside.is_held_by(AgentId(599), &[1])).await;
    let hsets = async || outside.commands().await.get("hset").copied().unwrap_or_default();
    // The last answer, not another: the next refresh may have begun.
    let mut commands = BTreeMap::new();
    let begin = Instant::now();
    while commands.get("hset") != Some(&601)
        || !commands.contains_key("time")
        || commands.contains_key("publish")
    {
        assert!(begin.elapsed() < SOON, "in vain: nothing but refreshes is to be done");
        outside.forget_commands().await;
        eventually("a refresh begins", async || hsets().await > 0).await;
        eventually("a refresh", async || hsets().await >= 601).await;
        // The counts may have been forgotten in the middle of the last announcement, which ends with its news.
        commands = outside.commands().await;
    }
    let one = |name: &str| commands.get(name).copied().unwrap_or_default();
    println!("refresh of 600 agents took {:?}: {commands:?}", broker.directory.census().refresh);
    assert_eq!((one("hset"), one("pexpire"), one("multi"), one("publish")), (601, 601, 0, 0));
    assert_eq!((one("time"), one("hgetall")), (1, 1));
}

#[tokio::test]
async fn a_refusal_is_remembered_once_a_minute() {
    let server = server().await;
    let broker = Broker::ready(&server, 1, QUICK).await;
    broker.directory.refused(AGENT, "its token was revoked");
    let refusal = || async { broker.directory.last_seen(AGENT).await.and_then(|last| last.refusal) };
    eventually("written", || async { refusal().await.is_some() }).await;
    broker.directory.refused(AGENT, "again");
    broker.directory.refused(AgentId(1), "another");
    let other = || async { broker.directory.last_seen(AgentId(1)).await.is_some() };
    eventually("written", other).await;
    assert_eq!(refusal().await.as_deref(), Some("its token was revoked"));
    let last = broker.directory.last_seen(AGENT).await.unwrap();
    assert_eq!((last.from.as_str(), last.broker), ("", peer(1).to_string()));
    let mut search = broker.directory.search(AGENT);
    let Found::Nobody { last: Some(last) } = next(&mut search).await else { panic!("nobody has it") };
    assert_eq!(last.refusal.as_deref(), Some("its token was revoked"));
}

#[tokio::test]
async fn whatever_happens_redis_comes_to_hold_the_truth() {
    let seed = rand::rng().random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = server().await;
    let ports = [1, 2, 3];
    let brokers = [
        Broker::ready(&server, 1, QUICK).await,
        Broker::ready(&server, 2, QUICK).await,
        Broker::ready(&server, 3, QUICK).await,
    ];
    let outside = Outside::new(&server);
    let mut truth: BTreeMap<(i64, usize), PresenceGuard> = BTreeMap::new();
    for step in 0..400 {
        let at = (random.random_range(1..=12), random.random_range(0..3));
        if truth.remove(&at).is_none() {
            truth.insert(at, brokers[at.1].hold(AgentId(at.0)));
        }
        match random.random_range(0..40) {
            0 => server.restart().await.unwrap(),
            1 => {
                server.pause();
                tokio::time::timeout(Duration::from_millis(300), std::future::pending::<()>())
                    .await
                    .unwrap_err();
                server.resume();
            }
            2 => {
                let kill = cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").clone();
                let _: Result<i64, _> = outside.redis.command(&kill).await;
            }
            n if n < 20 => tokio::task::yield_now().await,
            _ => {
                let mut search = brokers[step % 3].directory.search(AgentId(at.0));
                let pause = Duration::from_millis(random.random_range(0..30));
                let _ = timeout(pause, async { while search.next().await != Found::Unknown {} }).await;
            }
        }
    }
    for agent in 1..=12 {
        let holders: Vec<_> =
            (0..3).filter(|at| truth.contains_key(&(agent, *at))).map(|at| ports[at]).collect();
        let agent = AgentId(agent);
        eventually(&format!("seed {seed}: agent {agent} at {holders:?}"), || {
            outside.is_held_by(agent, &holders)
        })
        .await;
        for (broker, own) in brokers.iter().zip(ports) {
            let elsewhere: BTreeSet<_> =
                holders.iter().copied().filter(|port| *port != own).map(peer).collect();
            let told = || async {
                let mut search = broker.directory.search(agent);
                let mut named = BTreeSet::new();
                while let Ok(Found::Peer(peer)) = timeout(Duration::from_millis(50), search.next()).await {
                    named.insert(peer);
                }
                named.is_superset(&elsewhere)
            };
            eventually(&format!("seed {seed}: {own} finds agent {agent} at {elsewhere:?}"), told).await;
        }
    }
}
