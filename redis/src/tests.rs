//! The connection against a real server: logins, TLS, sentinels, and a server that goes and comes back.

mod cluster;
mod fail_over;
mod pool;

use super::*;
use crate::error::chain;
use ::redis::Value;
use postern_certs::dev::Ca;
use stand_ins::redis::{Options, RedisServer, Tls as ServerTls};
use std::fs;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(60);

/// Connections for commands.
fn open(redis: &Redis) -> usize {
    match &redis.route {
        Route::One(pool) => pool.open(),
        Route::Cluster(_) => unreachable!("one server"),
    }
}

/// A machine that stands still for a while makes no command fail.
fn patient(servers: Servers) -> Config {
    Config { dial_timeout: SOON, read_timeout: SOON, ..Config::new(servers) }
}

fn unix(server: &RedisServer) -> Config {
    patient(Servers::Unix(server.socket()))
}

fn password(server: &RedisServer, text: &str) -> Option<PathBuf> {
    let path = server.directory().join("password");
    fs::write(&path, text).unwrap();
    Some(path)
}

#[tokio::test]
async fn the_right_password_opens_and_a_wrong_one_is_one_clear_error_without_it() {
    let user = Some(("kas".to_owned(), "hunter2".to_owned()));
    let options = Options { password: Some("correct".to_owned()), user, ..Options::default() };
    let server = RedisServer::start(options).await.unwrap();
    for (username, content, good) in [
        (None, Some("correct\n"), true),
        (Some("kas"), Some("hunter2"), true),
        (Some("kas"), Some("correct"), false),
        (None, Some("swordfish"), false),
        (None, None, false),
    ] {
        let config = Config {
            username: username.map(str::to_owned),
            password_file: content.and_then(|content| password(&server, content)),
            ..unix(&server)
        };
        let redis = Redis::open(config).unwrap();
        let answer = redis.ping().await;
        assert_eq!(answer.is_ok(), good, "{username:?} {answer:?}");
        if let Err(error) = answer {
            assert!(matches!(error, RedisError::Refused { .. }), "{error:?}");
            let text = chain(&error);
            assert!(text.contains("check username and password_file"), "{text}");
            assert!(!text.contains("swordfish") && !text.contains("correct"), "{text}");
        }
    }
}

#[test]
fn what_is_wrong_with_the_files_is_known_before_anything_is_dialled() {
    let config = || Config::new(Servers::Tcp("127.0.0.1:1".to_owned()));
    let absent = || Some(PathBuf::from("/nonexistent/password"));
    let tls = Tls { certificate: None, ca_certificate_file: absent() };
    for (config, wanted) in [
        (Config { password_file: absent(), ..config() }, "cannot read the Redis password file /nonexistent"),
        (Config { tls: Some(tls), ..config() }, "redis.tls: cannot read CA file /nonexistent"),
        (Config::new(Servers::Tcp("redis".to_owned())), "redis.server.address is not host:port"),
        (
            Config::new(Servers::Sentinel {
                master_name: "m".to_owned(),
                addresses: vec![],
                password_file: None,
            }),
            "redis.sentinel.addresses is empty",
        ),
    ] {
        let error = chain(&Redis::open(config).unwrap_err());
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[tokio::test]
async fn tls_wants_the_right_ca_and_shows_the_certificate_that_is_asked_for() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let issued = ca.issue(&["127.0.0.1", "kas"]);
    let tls = ServerTls {
        certificate_pem: issued.certificate_pem.clone(),
        key_pem: issued.key_pem.clone(),
        ca_pem: ca.pem(),
    };
    let server = RedisServer::start(Options { tls: Some(tls), ..Options::default() }).await.unwrap();
    let certificate = issued.write(folder.path()).unwrap();
    let ca_file = ca.write(folder.path()).unwrap();
    let open = |certificate: Option<&CertFiles>, ca: Option<&PathBuf>| {
        let tls = Tls { certificate: certificate.cloned(), ca_certificate_file: ca.cloned() };
        Redis::open(Config { tls: Some(tls), ..patient(Servers::Tcp(server.address())) }).unwrap()
    };
    open(Some(&certificate), Some(&ca_file)).ping().await.unwrap();

    let stranger = tempfile::tempdir().unwrap();
    let other_ca = Ca::new().write(stranger.path()).unwrap();
    let error = chain(&open(Some(&certificate), Some(&other_ca)).ping().await.unwrap_err());
    assert!(error.contains("redis.tls.ca_certificate_file") && error.contains("unknown CA"), "{error}");
    open(None, Some(&ca_file)).ping().await.expect_err("the server wants a certificate");
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once_and_a_server_that_comes_is_found() {
    let mut server = RedisServer::start(Options::default()).await.unwrap();
    server.stop().await;
    let redis = Redis::open(unix(&server)).unwrap();
    // With a wait for another dial in each of them, this would take many minutes.
    let at_once = async {
        for _ in 0..1000 {
            assert!(matches!(redis.ping().await, Err(RedisError::Connect { .. })));
        }
    };
    timeout(SOON, at_once).await.expect("nobody is waited for");
    server.restart().await.unwrap();
    let found = async {
        while redis.ping().await.is_err() {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, found).await.expect("it is dialled again");
}

#[tokio::test]
async fn a_restart_between_two_commands_is_not_noticed() {
    let mut server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    redis.ping().await.unwrap();
    let mut openings = redis.openings();
    openings.mark_unchanged();
    assert!(redis.is_up());
    server.restart().await.unwrap();
    timeout(SOON, openings.changed()).await.expect("it is opened again without a command").unwrap();
    assert!(redis.is_up());
    redis.ping().await.unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_after_the_time_outs() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    redis.ping().await.unwrap();
    server.pause();
    // From here on nobody but the time-outs can end a wait, and so time need not really pass.
    tokio::time::pause();
    let begin = Instant::now();
    assert!(matches!(redis.ping().await, Err(RedisError::Silent { .. })));
    assert!(matches!(redis.ping().await, Err(RedisError::Slow { .. })));
    // To write, to read, and to dial.
    assert!(begin.elapsed() < SOON * 2 + Duration::from_secs(2), "{:?}", begin.elapsed());
    tokio::time::resume();
    server.resume();
    let back = async {
        while redis.ping().await.is_err() {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, back).await.expect("it is dialled again");
}

#[tokio::test]
async fn many_commands_share_one_connection() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    let all = (0..super::pool::BUSY).map(|_| redis.ping());
    assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
    let clients: String = redis.command(::redis::cmd("CLIENT").arg("LIST")).await.unwrap();
    assert_eq!(clients.lines().count(), 1, "{clients}");
}

#[tokio::test]
async fn a_sentinel_names_the_master_and_one_that_is_down_is_passed_over() {
    let options = || Options { tcp: true, ..Options::default() };
    let master = RedisServer::start(options()).await.unwrap();
    let sentinel =
        RedisServer::start(Options { sentinel_of: Some(master.address()), ..options() }).await.unwrap();
    let mut down = RedisServer::start(options()).await.unwrap();
    down.stop().await;
    let open = |master_name: &str| {
        let addresses = vec![down.address(), sentinel.address()];
        let master_name = master_name.to_owned();
        let servers = Servers::Sentinel { master_name, addresses, password_file: None };
        Redis::open(patient(servers)).unwrap()
    };
    let redis = open("mymaster");
    let _: () = redis.command(::redis::cmd("SET").arg("seen").arg(1)).await.unwrap();
    let seen: i64 =
        Redis::open(unix(&master)).unwrap().command(::redis::cmd("GET").arg("seen")).await.unwrap();
    assert_eq!(seen, 1);
    let error = open("another").ping().await.unwrap_err();
    assert!(chain(&error).starts_with("no sentinel names the master another"), "{error}");
}

fn publish(channel: &str, text: &str) -> Cmd {
    let mut command = ::redis::cmd("PUBLISH");
    command.arg(channel).arg(text);
    command
}

fn message(channel: &str, text: &str) -> Heard {
    Heard::Message { channel: channel.into(), payload: text.into() }
}

/// Once it is.
async fn answered<T: FromRedisValue>(redis: &Redis, command: &Cmd) -> T {
    let answered = async {
        loop {
            match redis.command(command).await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(SOON, answered).await.expect("it is answered again")
}

fn command(words: &[&str]) -> Cmd {
    let mut command = ::redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
}

async fn next(subscription: &mut Subscription) -> Heard {
    timeout(SOON, subscription.next()).await.expect("there is news")
}

#[tokio::test]
async fn a_subscription_hears_its_channels_and_goes_on_after_a_restart() {
    let mut server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    let mut heard = redis.subscribe(vec![b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    for (channel, listeners) in [("a", 1), ("other", 0), ("b", 1)] {
        let count: i64 = redis.command(&publish(channel, "x")).await.unwrap();
        assert_eq!(count, listeners);
    }
    assert_eq!(next(&mut heard).await, message("a", "x"));
    assert_eq!(next(&mut heard).await, message("b", "x"));
    server.restart().await.unwrap();
    assert_eq!(next(&mut heard).await, Heard::Lost);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    answered::<i64>(&redis, &publish("a", "y")).await;
    assert_eq!(next(&mut heard).await, message("a", "y"));
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_of_the_gap_and_holds_a_bounded_number_of_messages() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    let mut heard = redis.subscribe(vec![b"a".to_vec()]);
    assert_eq!(next(&mut heard).await, Heard::Connected);
    let mut many = ::redis::pipe();
    (0..10_000).for_each(|_| {
        many.add_command(publish("a", "x")).ignore();
    });
    redis.pipeline::<()>(&many).await.unwrap();
    let dropped = async {
        let listeners = async || {
            let mut command = ::redis::cmd("PUBSUB");
            redis.command::<(String, i64)>(command.arg("NUMSUB").arg("a")).await.unwrap().1
        };
        while listeners().await > 0 {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, dropped).await.expect("the connection is given up");
    let mut messages = 0;
    while next(&mut heard).await == message("a", "x") {
        messages += 1;
    }
    assert!((1..10_000).contains(&messages), "{messages}, then lost");
    assert_eq!(next(&mut heard).await, Heard::Connected);
    redis.command::<i64>(&publish("a", "y")).await.unwrap();
    assert_eq!(next(&mut heard).await, message("a", "y"));
}

#[tokio::test]
async fn one_that_fails_takes_no_other_of_its_batch_with_it() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    let set = |key: &str, atomic: bool| {
        let mut pipeline = ::redis::pipe();
        if atomic {
            pipeline.atomic();
        }
        pipeline.cmd("HSET").arg(key).arg("f").arg(1).ignore().cmd("PEXPIRE").arg(key).arg(60_000);
        pipeline
    };
    redis.command::<()>(::redis::cmd("SET").arg("string").arg(1)).await.unwrap();
    let each = [set("a", false), set("string", false), set("string", true), set("b", true), ::redis::pipe()];
    let answers = redis.batch(SOON, &each).await;
    let done = Value::Array(vec![Value::Int(1)]);
    assert_eq!(answers[0].as_ref().unwrap(), &done);
    assert!(matches!(answers[1], Err(RedisError::Failed { .. })));
    assert!(matches!(answers[2], Err(RedisError::Failed { .. })));
    assert_eq!(answers[3].as_ref().unwrap(), &done);
    assert!(answers[4].is_err(), "an empty pipeline asks nothing");
    assert!(redis.is_up());
    let large: Vec<_> = (0..5000).map(|at| set(&format!("k{at}"), true)).collect();
    assert!(redis.batch(SOON, &large).await.iter().all(Result::is_ok));
    assert!(redis.batch(SOON, &[]).await.is_empty());
    assert_eq!(open(&redis), 1);
}
