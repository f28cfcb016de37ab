//! How many connections for commands there are: one, and more only while that one is busy.

use super::{super::pool::BUSY, *};

/// The first command holds up all that come after it on its connection; the others are waited for by nobody yet.
fn busy(redis: &Arc<Redis>, commands: usize) -> Vec<tokio::task::JoinHandle<Result<(), RedisError>>> {
    let hold = command(&["BLPOP", "list", "0"]);
    let mut all = vec![hold];
    all.resize(commands + 1, command(&["PING"]));
    let run = |command: Cmd| {
        let redis = Arc::clone(redis);
        tokio::spawn(async move { redis.command::<Value>(&command).await.map(drop) })
    };
    all.into_iter().map(run).collect()
}

async fn until(redis: &Redis, connections: usize) {
    let wanted = async {
        while open(redis) != connections {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, wanted).await.expect("so many connections");
}

fn sized(server: &RedisServer, pool_size: usize) -> Arc<Redis> {
    let idle_timeout = Duration::from_millis(50);
    Redis::open(Config { idle_timeout, pool_size, ..unix(server) }).unwrap()
}

#[tokio::test]
async fn more_connections_are_opened_while_all_are_busy_and_closed_when_they_are_not_used() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = sized(&server, 2);
    redis.ping().await.unwrap();
    let openings = redis.openings();
    let waiting = busy(&redis, BUSY + 5);
    until(&redis, 2).await;
    // It goes over the other one, and lets the first one go on.
    redis.command::<i64>(&command(&["RPUSH", "list", "x"])).await.unwrap();
    for one in waiting {
        timeout(SOON, one).await.expect("it is answered").unwrap().unwrap();
    }
    until(&redis, 1).await;
    redis.ping().await.unwrap();
    let left = async {
        let clients = || redis.command::<String>(&CLIENTS);
        while clients().await.unwrap().lines().count() > 1 {
            tokio::task::yield_now().await
        }
    };
    timeout(SOON, left).await.expect("redis sees it closed");
    assert!(!openings.has_changed().unwrap(), "what redis held is as it was");
}

static CLIENTS: std::sync::LazyLock<Cmd> = std::sync::LazyLock::new(|| command(&["CLIENT", "LIST"]));

#[tokio::test]
async fn others_end_with_the_first_one() {
    let mut server = RedisServer::start(Options::default()).await.unwrap();
    let redis = Redis::open(unix(&server)).unwrap();
    redis.ping().await.unwrap();
    let waiting = busy(&redis, BUSY + 5);
    until(&redis, 2).await;
    server.restart().await.unwrap();
    for one in waiting {
        let _ = timeout(SOON, one).await.expect("it is answered").unwrap();
    }
    answered::<()>(&redis, &command(&["PING"])).await;
    until(&redis, 1).await;
}

#[tokio::test]
async fn one_connection_serves_a_thousand_commands_at_a_time() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let redis = sized(&server, 1);
    let set = |at: usize| {
        let redis = Arc::clone(&redis);
        async move { redis.command::<i64>(&command(&["INCRBY", &format!("k{at}"), &at.to_string()])).await }
    };
    let answers = futures::future::join_all((0..1000).map(set)).await;
    for (at, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), at as i64);
    }
    let clients: String = redis.command(&CLIENTS).await.unwrap();
    assert_eq!(clients.lines().count(), 1, "{clients}");
}
