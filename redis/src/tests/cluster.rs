//! A real cluster: keys and channels reach all of it, and slots may move at any time.

use super::*;
use stand_ins::redis::cluster::RedisCluster;

fn over(addresses: Vec<String>) -> Arc<Redis> {
    Redis::open(patient(Servers::Cluster(addresses))).unwrap()
}

fn increment(key: &str, atomic: bool) -> Pipeline {
    let mut pipeline = ::redis::pipe();
    if atomic {
        pipeline.atomic();
    }
    pipeline.cmd("INCR").arg(key).cmd("EXPIRE").arg(key).arg(60).ignore();
    pipeline
}

#[tokio::test]
async fn commands_batches_and_channels_reach_all_of_a_cluster_that_is_known_by_one_node() {
    let cluster = RedisCluster::start(&[]).await.unwrap();
    let redis = over(vec!["127.0.0.1:1".to_owned(), cluster.addresses().remove(1)]);
    assert!(!redis.is_up());
    redis.ping().await.unwrap();
    assert!(redis.is_up());
    for at in 0..20 {
        let key = format!("key{at}");
        redis.command::<()>(&command(&["SET", &key, &key])).await.unwrap();
        let (slot, node) = cluster.slot(&key).await.unwrap();
        assert_eq!(super::super::cluster::slot(key.as_bytes()), slot, "{key}");
        assert!(cluster.nodes[node].ask(&["GET", &key]).await.unwrap().contains(&key));
    }
    let each: Vec<_> = (0..300).map(|at| increment(&format!("n{at}"), at % 2 == 0)).collect();
    let one = Value::Array(vec![Value::Int(1)]);
    for answer in redis.batch(SOON, &each).await {
        assert_eq!(answer.unwrap(), one);
    }
    assert_eq!(*redis.openings().borrow(), 3, "one connection for each master");
    let mut script = command(&["EVAL", "return redis.call('INCR', KEYS[1])", "1", "n0"]);
    assert_eq!(redis.command::<i64>(script.arg("x")).await.unwrap(), 2);

    let mut heard = redis.subscribe(vec![b"a".to_vec()]);
    // The first seed is none.
    assert_eq!(next(&mut heard).await, Heard::Connected);
    for node in &cluster.nodes {
        node.ask(&["PUBLISH", "a", &node.address()]).await.unwrap();
        assert_eq!(next(&mut heard).await, message("a", &node.address()));
    }
    redis.command::<i64>(&publish("a", "x")).await.unwrap();
    assert_eq!(next(&mut heard).await, message("a", "x"));
}

#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let cluster = RedisCluster::start(&[]).await.unwrap();
    let redis = over(cluster.addresses());
    let key = "{moving}1";
    let (slot, from) = cluster.slot(key).await.unwrap();
    let to = (from + 1) % 3;
    let (plain, atomic) = (increment(key, false), increment(key, true));
    assert_eq!(redis.pipeline::<(i64,)>(&plain).await.unwrap(), (1,));

    cluster.begin_move(slot, from, to).await.unwrap();
    // It is there still; another key of the slot is made at the other node.
    assert_eq!(redis.pipeline::<(i64,)>(&atomic).await.unwrap(), (2,));
    let (plain_there, atomic_there) = (increment("{moving}2", false), increment("{moving}3", true));
    assert_eq!(redis.pipeline::<(i64,)>(&plain_there).await.unwrap(), (1,));
    assert_eq!(redis.pipeline::<(i64,)>(&atomic_there).await.unwrap(), (1,));
    assert_eq!(redis.command::<i64>(&command(&["INCR", "{moving}3"])).await.unwrap(), 2);
    let answers = redis.batch(SOON, &[plain_there, atomic.clone(), atomic_there]).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap()).collect();
    let wanted = [2, 3, 3].map(|count| Value::Array(vec![Value::Int(count)]));
    assert_eq!(answers, wanted);

    cluster.end_move(key, from, to).await.unwrap();
    assert_eq!(redis.pipeline::<(i64,)>(&atomic).await.unwrap(), (4,));
    assert_eq!(redis.pipeline::<(i64,)>(&plain).await.unwrap(), (5,));
    let answers = redis.batch(SOON, &[plain, atomic]).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let mut script = ::redis::cmd("EVAL");
    script.arg("return redis.call('GET', KEYS[1])").arg(1).arg(key);
    assert_eq!(redis.command::<i64>(&script).await.unwrap(), 7);
}

#[tokio::test]
async fn a_master_that_is_gone_takes_only_its_own_keys_with_it() {
    let mut cluster = RedisCluster::start(&["cluster-require-full-coverage no"]).await.unwrap();
    let redis = over(cluster.addresses());
    let keys: Vec<_> = (0..30).map(|at| format!("key{at}")).collect();
    let each: Vec<_> = keys.iter().map(|key| increment(key, true)).collect();
    assert!(redis.batch(SOON, &each).await.iter().all(Result::is_ok));
    let mut lost = Vec::new();
    for key in &keys {
        lost.push(cluster.slot(key).await.unwrap().1 == 0);
    }
    cluster.nodes[0].stop().await;
    // Nobody waits for the end of a time-out: the limit is this one's and the dialler's, too.
    let answers = timeout(SOON / 2, redis.batch(SOON, &each)).await.expect("nobody is waited for");
    for (lost, answer) in lost.into_iter().zip(answers) {
        assert_eq!(answer.is_err(), lost, "{answer:?}");
    }
    answered::<()>(&redis, &command(&["PING"])).await;
    answered::<i64>(&redis, &publish("a", "x")).await;
    cluster.nodes[0].restart().await.unwrap();
    let all = async {
        while !redis.batch(SOON, &each).await.iter().all(Result::is_ok) {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, all).await.expect("it serves again");
}

#[tokio::test]
async fn a_server_that_is_no_cluster_is_said() {
    let server = RedisServer::start(Options { tcp: true, ..Options::default() }).await.unwrap();
    let error = over(vec![server.address()]).ping().await.unwrap_err();
    let text = chain(&error);
    assert!(text.starts_with("no node tells which one serves what at the cluster of 127.0.0.1:"), "{text}");
    assert!(text.contains("cluster support disabled"), "{text}");
}
