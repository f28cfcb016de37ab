//! What Redis does to those who rely on it: another master, another password, and no answer at all.

use super::*;
use stand_ins::redis::sentinels::Sentinels;

#[tokio::test]
async fn a_fail_over_is_followed_by_commands_and_subscriptions_and_is_told() {
    let mut sentinels = Sentinels::start(3).await.unwrap();
    let addresses = sentinels.addresses();
    let servers = Servers::Sentinel { master_name: "mymaster".to_owned(), addresses, password_file: None };
    let redis = Redis::open(patient(servers)).unwrap();
    let mut heard = redis.subscribe(vec![b"a".to_vec()]);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    redis.command::<()>(&command(&["SET", "k", "v"])).await.unwrap();
    let mut openings = redis.openings();
    assert_eq!(*openings.borrow_and_update(), 1);

    sentinels.fail_over().await.unwrap();
    answered::<()>(&redis, &command(&["SET", "k", "w"])).await;
    assert!(sentinels.servers[1].ask(&["GET", "k"]).await.unwrap().contains('w'));
    assert!(*openings.borrow_and_update() > 1);
    assert!(redis.is_up());
    assert_eq!(next(&mut heard).await, Heard::Lost);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    redis.command::<i64>(&publish("a", "x")).await.unwrap();
    assert_eq!(next(&mut heard).await, message("a", "x"));
}

#[tokio::test]
async fn a_master_that_became_a_replica_is_left_even_if_only_a_transaction_says_so() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    redis.ping().await.unwrap();
    let mut openings = redis.openings();
    openings.mark_unchanged();
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    let mut pipeline = ::redis::pipe();
    pipeline.atomic().cmd("INCR").arg("k");
    assert!(matches!(redis.pipeline::<(i64,)>(&pipeline).await, Err(RedisError::Failed { .. })));
    timeout(SOON, openings.changed()).await.expect("it is dialled anew").unwrap();
}

#[tokio::test]
async fn a_rotated_password_needs_no_restart_and_a_bad_file_is_an_error_until_it_is_good() {
    let options = Options { password: Some("old".to_owned()), ..Options::default() };
    let server = RedisServer::start(options).await.unwrap();
    let config = Config { password_file: password(&server, "old\n"), ..unix(&server) };
    let redis = Redis::open(config).unwrap();
    let mut heard = redis.subscribe(vec![b"a".to_vec()]);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    redis.ping().await.unwrap();

    password(&server, "").unwrap();
    redis.command::<()>(&command(&["CONFIG", "SET", "requirepass", "new"])).await.unwrap();
    let _ = redis.command::<()>(&command(&["CLIENT", "KILL", "TYPE", "pubsub"])).await;
    let _ = redis.command::<()>(&command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no"])).await;
    let refused = async {
        while !matches!(redis.ping().await, Err(RedisError::BadPassword { .. })) {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, refused).await.expect("the file is bad");
    assert!(!redis.is_up());

    password(&server, "new\n").unwrap();
    answered::<()>(&redis, &command(&["PING"])).await;
    assert_eq!(next(&mut heard).await, Heard::Lost);
    assert_eq!(next(&mut heard).await, Heard::Connected);
}

#[tokio::test]
async fn a_redis_that_hangs_costs_no_caller_more_than_it_allows_and_a_subscription_is_not_left_on_it() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let short = Duration::from_millis(100);
    let redis = Redis::open(unix(&server)).unwrap();
    let mut heard = redis.subscribe(vec![b"a".to_vec()]);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    redis.ping().await.unwrap();
    let mut get = ::redis::pipe();
    get.cmd("GET").arg("k");

    server.pause();
    // From here on nobody but the callers' limits can end a wait, and so time need not really pass.
    tokio::time::pause();
    let begin = Instant::now();
    let answers = redis.batch(short, &[get.clone(), get.clone()]).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(RedisError::Silent { .. }))), "{answers:?}");
    assert!(redis.pipeline_in::<()>(short, &get).await.is_err());
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(!redis.is_up());

    tokio::time::resume();
    server.resume();
    answered::<()>(&redis, &command(&["PING"])).await;
    redis.command::<i64>(&publish("a", "x")).await.unwrap();
    // Whether it was found dead meanwhile or not, it hears.
    while next(&mut heard).await != message("a", "x") {
        let _ = redis.command::<i64>(&publish("a", "x")).await;
    }
}
