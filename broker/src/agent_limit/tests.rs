//! Against a real Redis: several brokers at once, how many commands they need, and a Redis that goes and comes back.
//! Where no Redis is started, none is asked.

use super::*;
use crate::{
    auth::{Admission, Identities},
    identities::IdentitySource,
    policies::Base,
    rate::Rate,
    redis::{Config, Servers},
    tunnel::registry::Registry,
};
use futures::future::join_all;
use http::{HeaderMap, header};
use postern_policies::Live;
use stand_ins::redis::{Options, RedisServer};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::UNIX_EPOCH,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;

const SOON: Duration = Duration::from_secs(60);
/// Ten seconds into a minute.
const NOW: u64 = 60_010;

#[derive(Clone)]
struct Seconds(Arc<AtomicU64>);

impl Seconds {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOW)))
    }

    fn clock(&self) -> Clock {
        let seconds = self.clone();
        Box::new(move || UNIX_EPOCH + Duration::from_secs(seconds.0.load(Ordering::Relaxed)))
    }

    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

fn token(n: usize) -> AgentToken {
    AgentToken::new(format!("{n:025}ABCDEFGHIJ0123456789_-abc")).unwrap()
}

/// A machine that stands still for a while makes no command fail.
fn at(socket: PathBuf) -> Arc<Redis> {
    let config = Config { dial_timeout: SOON, read_timeout: SOON, ..Config::new(Servers::Unix(socket)) };
    Redis::open(config).unwrap()
}

fn limit(server: &RedisServer, per_minute: u32, redis_lost: RedisLost) -> Arc<AgentLimit> {
    with(at(server.socket()), per_minute, redis_lost, &Seconds::new(), ROOM)
}

/// As patient as a broker.
fn hurried(server: &RedisServer, per_minute: u32, redis_lost: RedisLost) -> Arc<AgentLimit> {
    let policy = LimitPolicy { per_minute, redis_lost };
    let times = (Seconds::new().clock(), PATIENCE);
    AgentLimit::with(at(server.socket()), "gitlab-kas".to_owned(), policy, ROOM, times)
}

fn with(
    redis: Arc<Redis>,
    per_minute: u32,
    redis_lost: RedisLost,
    seconds: &Seconds,
    room: Room,
) -> Arc<AgentLimit> {
    let policy = LimitPolicy { per_minute, redis_lost };
    AgentLimit::with(redis, "gitlab-kas".to_owned(), policy, room, (seconds.clock(), SOON))
}

/// No such server; nobody may miss it.
fn nowhere() -> Arc<Redis> {
    at("/nonexistent/redis.sock".into())
}

async fn call(limit: &Arc<AgentLimit>, token: &AgentToken) -> Result<(), Code> {
    let both = async {
        limit.begin(token)?;
        limit.admit(token, &Subject::default()).await
    };
    both.await.map_err(|status: Status| status.code())
}

async fn admitted(limit: &Arc<AgentLimit>, token: &AgentToken, calls: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..calls {
        admitted += usize::from(call(limit, token).await.is_ok());
    }
    admitted
}

/// How often this command was run.
async fn ran(server: &RedisServer, command: &str) -> u64 {
    let info: String = at(server.socket()).command(::redis::cmd("INFO").arg("commandstats")).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

async fn counts_again(limit: &Arc<AgentLimit>, token: &AgentToken) {
    let back = async {
        while limit.leases.is_lost() {
            let _ = call(limit, token).await;
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, back).await.expect("it counts again");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_calls_now_and_then_needs_no_redis_in_any_minute() {
    let seconds = Seconds::new();
    let limit = with(nowhere(), 40_000, RedisLost::Deny, &seconds, ROOM);
    let begin = Instant::now();
    for _ in 0..3 {
        assert_eq!(admitted(&limit, &token(1), 400).await, 400);
        seconds.advance(60);
    }
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert!(!limit.leases.is_lost(), "nobody has asked");
    assert_eq!(limit.leases.sizes(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_not_authenticated_are_refused_beyond_the_limit_and_told_when_to_come_again() {
    let seconds = Seconds::new();
    let limit = with(nowhere(), 5, RedisLost::Local, &seconds, ROOM);
    for _ in 0..5 {
        limit.begin(&token(1)).unwrap();
    }
    for _ in 0..100 {
        let status = limit.begin(&token(1)).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "new connection rate limit exhausted for this agent, try again later");
        let after = metadata::retry_pushback(status.metadata()).unwrap();
        assert!((50..=60).contains(&after.as_secs()), "{after:?}");
    }
    limit.begin(&token(2)).unwrap();
    seconds.advance(50);
    limit.begin(&token(1)).unwrap();
}

#[tokio::test]
async fn a_refusal_reaches_the_agent_with_its_hint() {
    let limit = with(nowhere(), 1, RedisLost::Local, &Seconds::new(), ROOM);
    limit.begin(&token(1)).unwrap();
    let status = limit.begin(&token(1)).unwrap_err();
    let wanted = metadata::retry_pushback(status.metadata());
    let response = crate::status_text::cut(status.into_http::<tonic::body::Body>());
    let read = Status::from_header_map(response.headers()).unwrap();
    assert_eq!(read.code(), Code::ResourceExhausted);
    assert!(wanted.is_some());
    assert_eq!(metadata::retry_pushback(read.metadata()), wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_brokers_admit_no_more_than_the_limit_and_their_advances() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let brokers: Vec<_> = (0..8).map(|_| limit(&server, 1_000, RedisLost::Local)).collect();
    let token = token(1);
    let tasks = (0..64).map(|n| {
        let (limit, token) = (Arc::clone(&brokers[n % 8]), token.clone());
        tokio::spawn(async move { admitted(&limit, &token, 100).await })
    });
    let sum: usize = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    println!("{sum} of 6400 calls at 8 brokers, limit 1000; {} commands", ran(&server, "incrby").await);
    assert!((1_000..=1_080).contains(&sum), "{sum}");
    assert_eq!(admitted(&brokers[0], &self::token(2), 10).await, 10, "another token is not touched");
    let key: Vec<Vec<u8>> = at(server.socket()).command(::redis::cmd("KEYS").arg("*")).await.unwrap();
    assert_eq!(key.len(), 1);
    assert_eq!(key[0].len(), 58);
    let life: i64 = at(server.socket()).command(::redis::cmd("TTL").arg(&key[0])).await.unwrap();
    assert!((60..=90).contains(&life), "{life}");
}

#[tokio::test]
async fn many_calls_at_once_wait_for_one_command() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let (limit, token) = (limit(&server, 500, RedisLost::Local), token(1));
    let calls = join_all((0..1_000).map(|_| call(&limit, &token))).await;
    assert_eq!(calls.iter().filter(|call| call.is_ok()).count(), 500);
    let commands = ran(&server, "incrby").await;
    println!("{commands} commands for 1000 calls at once, limit 500");
    assert!(commands <= 20, "{commands}");
    assert_eq!(call(&limit, &token).await, Err(Code::ResourceExhausted));
    assert_eq!(ran(&server, "incrby").await, commands, "what is used up is known");
}

#[tokio::test]
async fn ten_thousand_calls_of_one_token_are_few_commands_and_those_of_idle_agents_none() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let limit = limit(&server, 40_000, RedisLost::Local);
    for n in 0..1_000 {
        assert_eq!(admitted(&limit, &token(n), 20).await, 20);
    }
    assert_eq!(ran(&server, "incrby").await, 0);
    assert_eq!(admitted(&limit, &token(5_000), 10_000).await, 10_000);
    let commands = ran(&server, "incrby").await;
    println!("{commands} commands for 10000 calls of one token, limit 40000");
    assert!(commands <= 25, "{commands}");
    assert_eq!((ran(&server, "expire").await, ran(&server, "multi").await), (commands, commands));
}

#[tokio::test]
async fn a_kas_that_counts_beside_is_seen() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let (limit, token) = (limit(&server, 100, RedisLost::Local), token(1));
    let mut key = b"gitlab-kas:agent_limit:".to_vec();
    key.extend_from_slice(&token.half_key());
    key.push(b':');
    key.extend_from_slice(&((NOW / 60 % 60) as u16).to_le_bytes());
    let mut told = ::redis::cmd("INCRBY");
    let counted: u64 = at(server.socket()).command(told.arg(key).arg(90)).await.unwrap();
    assert_eq!(counted, 90);
    let sum = admitted(&limit, &token, 100).await;
    assert!((10..=11).contains(&sum), "{sum}");
}

#[tokio::test]
async fn a_flood_of_tokens_that_nobody_issued_makes_no_key_and_takes_bounded_room() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let limit = limit(&server, 2, RedisLost::Local);
    let file = server.directory().join("identities.yaml");
    let good = token(1);
    let hash = good.key().to_hex();
    let repository = server.directory().display();
    let text = format!(
        "agents: [{{id: 1, name: a, token_sha256: [{hash}], project: {{id: 10, path: a/a}}, repository: {repository}}}]"
    );
    std::fs::write(&file, text).unwrap();
    let admission = Admission {
        identities: Identities::File(IdentitySource::load(file).unwrap()),
        registry: Arc::new(Registry::default()),
        limit: Some(Arc::clone(&limit)),
    };
    let ask = async |token: &AgentToken| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, token.bearer());
        admission.agent(&headers).await.map(|_| ()).map_err(|status| status.code())
    };
    let mut most = 0;
    for n in 2..100_002 {
        assert_eq!(ask(&token(n)).await, Err(Code::Unauthenticated));
        most = most.max(limit.leases.sizes().1);
    }
    assert_eq!(most, 16_384);
    assert_eq!(limit.leases.sizes().0, 0);
    let keys: u64 = at(server.socket()).command(&::redis::cmd("DBSIZE")).await.unwrap();
    assert_eq!((keys, ran(&server, "incrby").await), (0, 0));
    // A good one is counted all the same, and one that is not good is not asked about for ever.
    assert_eq!([ask(&good).await, ask(&good).await], [Ok(()), Ok(())]);
    assert_eq!(ask(&good).await, Err(Code::ResourceExhausted));
    let stranger = token(200_000);
    let answers = [ask(&stranger).await, ask(&stranger).await, ask(&stranger).await];
    assert_eq!(
        answers,
        [Err(Code::Unauthenticated), Err(Code::Unauthenticated), Err(Code::ResourceExhausted)]
    );
}

#[tokio::test]
async fn where_the_table_is_full_calls_are_counted_one_by_one() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let limit = with(
        at(server.socket()),
        50,
        RedisLost::Local,
        &Seconds::new(),
        Room { good: 1, strangers: 100, shards: 1 },
    );
    assert_eq!(admitted(&limit, &token(1), 1).await, 1);
    assert_eq!(admitted(&limit, &token(2), 60).await, 50);
    assert_eq!(limit.leases.sizes().0, 1);
}

#[tokio::test]
async fn a_new_minute_is_a_new_count_and_leases_of_the_old_one_are_lost() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let (seconds, token) = (Seconds::new(), token(1));
    let brokers = [(); 2].map(|()| with(at(server.socket()), 100, RedisLost::Local, &seconds, ROOM));
    for _ in 0..3 {
        let sum = admitted(&brokers[0], &token, 150).await + admitted(&brokers[1], &token, 150).await;
        assert!((100..=102).contains(&sum), "{sum}");
        seconds.advance(60);
    }
    // An answer that comes in another minute grants nothing there.
    server.pause();
    let limit = &brokers[0];
    assert_eq!(call(limit, &token).await, Ok(()));
    let waiting = call(limit, &token);
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    seconds.advance(60);
    server.resume();
    assert_eq!(timeout(SOON, waiting).await.unwrap(), Ok(()));
    let sum = 1 + admitted(limit, &token, 150).await;
    assert!((100..=101).contains(&sum), "{sum}");
}

#[tokio::test]
async fn a_call_that_is_cancelled_takes_no_lease_with_it() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let (limit, token) = (limit(&server, 100, RedisLost::Local), token(1));
    assert_eq!(call(&limit, &token).await, Ok(()));
    {
        let mut calls: Vec<_> = (0..10).map(|_| Box::pin(call(&limit, &token))).collect();
        for call in &mut calls {
            assert!(futures::poll!(call).is_pending());
        }
    }
    assert_eq!(1 + admitted(&limit, &token, 150).await, 100);
}

#[tokio::test]
async fn another_limit_is_in_force_at_once_and_nothing_begins_anew() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let (limit, token) = (limit(&server, 100, RedisLost::Local), token(1));
    assert_eq!(admitted(&limit, &token, 60).await, 60);
    limit.set_policy(LimitPolicy { per_minute: 50, ..limit.policy() });
    assert_eq!(admitted(&limit, &token, 50).await, 0);
    limit.set_policy(LimitPolicy { per_minute: 200, ..limit.policy() });
    let sum = 60 + admitted(&limit, &token, 200).await;
    assert!((190..=200).contains(&sum), "{sum}");
}

#[tokio::test]
async fn a_redis_that_is_killed_refuses_nobody_falsely_and_is_noticed_again() {
    for (redis_lost, wanted) in
        [(RedisLost::Local, 90..=100), (RedisLost::Allow, 500..=500), (RedisLost::Deny, 0..=1)]
    {
        let mut server = RedisServer::start(Options::default()).await.unwrap();
        let (limit, token) = (limit(&server, 100, redis_lost), token(1));
        assert_eq!(admitted(&limit, &token, 5).await, 5);
        server.stop().await;
        let begin = Instant::now();
        let sum = admitted(&limit, &token, 500).await;
        assert!(wanted.contains(&sum), "{redis_lost:?}: {sum}");
        assert!(begin.elapsed() < SOON, "nobody waits: {:?}", begin.elapsed());
        // Another token, which has its advance where that is allowed.
        let other = self::token(2);
        let answer = limit.admit(&other, &Subject::default()).await;
        if redis_lost == RedisLost::Deny {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().contains("Redis is away"), "{}", status.message());
            let after = metadata::retry_pushback(status.metadata()).unwrap();
            assert!((2..=12).contains(&after.as_secs()), "{after:?}");
        } else {
            answer.unwrap();
        }
        server.restart().await.unwrap();
        counts_again(&limit, &other).await;
        assert_eq!(call(&limit, &self::token(3)).await, Ok(()));
        let sum = admitted(&limit, &self::token(3), 150).await;
        assert_eq!(sum, 99, "{redis_lost:?}");
    }
}

#[tokio::test]
async fn a_redis_that_hangs_costs_the_first_calls_a_second_and_the_next_nothing() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let limit = hurried(&server, 200, RedisLost::Local);
    assert_eq!(admitted(&limit, &token(1), 5).await, 5);
    server.pause();
    // From here on nobody but the broker's own deadlines can end a wait, and so time need not really pass.
    tokio::time::pause();
    let begin = Instant::now();
    let first = join_all((0..50).map(|n| {
        let limit = &limit;
        async move { admitted(limit, &token(n), 4).await }
    }));
    assert_eq!(first.await.into_iter().sum::<usize>(), 200);
    assert!(begin.elapsed() < PATIENCE * 3 / 2, "{:?}", begin.elapsed());
    let begin = Instant::now();
    assert_eq!(admitted(&limit, &token(2), 1_000).await, 196);
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    tokio::time::resume();
    server.resume();
    counts_again(&limit, &token(3)).await;
}

#[tokio::test]
async fn a_redis_that_forgets_grants_no_second_minute() {
    let mut server = RedisServer::start(Options::default()).await.unwrap();
    let (limit, token) = (limit(&server, 200, RedisLost::Local), token(1));
    assert_eq!(admitted(&limit, &token, 150).await, 150);
    server.restart().await.unwrap();
    let sum = 150 + admitted(&limit, &token, 300).await;
    assert!((198..=204).contains(&sum), "{sum}");
}

/// Policies of one file, and the edits of it.
struct Edited {
    folder: tempfile::TempDir,
    policies: Policies,
    _stop: DropGuard,
}

impl Edited {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("limits.yaml"), text).unwrap();
        let live = Live::open(Some(folder.path())).unwrap();
        let stop = CancellationToken::new();
        let keeper = live.clone();
        let until = stop.clone();
        tokio::spawn(async move { keeper.keep_fresh(until).await });
        let rate = Rate::default();
        let base = Base {
            configuration: SOON,
            manifests: SOON,
            max_age: SOON,
            calls: LimitPolicy { per_minute: 20, redis_lost: RedisLost::Local },
            gitlab: rate,
            gitaly: rate,
            gitaly_per_server: rate,
        };
        Self { folder, policies: Policies::new(live, base), _stop: stop.drop_guard() }
    }

    async fn becomes(&self, text: &str) {
        let mut changes = self.policies.live().changes();
        changes.mark_unchanged();
        let beside = self.folder.path().join(".new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.folder.path().join("limits.yaml")).unwrap();
        timeout(SOON, changes.changed()).await.expect("it is noticed").unwrap();
    }
}

fn seven_calls(per_minute: u32) -> String {
    format!(
        "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: seven}}\nmatch: {{agentIds: [7]}}\nspec: \
         {{agentCallsPerMinute: {per_minute}}}\n"
    )
}

#[tokio::test]
async fn each_agent_has_the_limit_of_its_policy_and_another_policy_begins_no_count_anew() {
    let server = RedisServer::start(Options::default()).await.unwrap();
    let edited = Edited::new(&seven_calls(100));
    let times = (Seconds::new().clock(), SOON);
    let limit = AgentLimit::under_with(at(server.socket()), "gitlab-kas", edited.policies.clone(), times);
    let calls = async |n: u64, times: usize| {
        let (token, mut admitted) = (token(n as usize), 0);
        let who = Subject { agent_id: Some(n), ..Subject::default() };
        for _ in 0..times {
            let both = async {
                limit.begin(&token)?;
                limit.admit(&token, &who).await
            };
            admitted += usize::from(both.await.is_ok());
        }
        admitted
    };
    assert_eq!(calls(8, 150).await, 20, "the configuration's, of whom no document speaks");
    assert_eq!(calls(7, 60).await, 60, "more than everybody may, also before it is known who it is");
    edited.becomes(&seven_calls(50)).await;
    assert_eq!(calls(7, 50).await, 0);
    assert!(limit.begin(&token(7)).is_err(), "it is known to be used up before anybody is asked");
    edited.becomes(&seven_calls(200)).await;
    let sum = 60 + calls(7, 300).await;
    assert!((190..=200).contains(&sum), "{sum}");
    assert_eq!(calls(8, 150).await, 0);
}
