//! Events for Rails: published to the Redis of its cable, from where Rails' own processes pass them on to browsers.
//! Before it: [`super::Events`]. After it: a Redis, perhaps another one than the broker's. Events that happen while
//! that Redis is away are dropped and counted; nothing waits for it and nothing is sent twice.
//!
//! The broadcastings are `kas_agent:<agent id>` and `kas_project:<project id>`; each event goes to both, once. The
//! message is the event's JSON, as [`super::Event`] describes it.

use super::Published;
use crate::{
    error::chain,
    redis::{self, Redis, RedisError},
};
use ::redis::Pipeline;
use prometheus_client::metrics::counter::Counter;
use std::{fmt, sync::Arc};
use tokio::sync::broadcast::{
    Receiver,
    error::{RecvError, TryRecvError},
};
use tokio_util::sync::CancellationToken;

/// Events that go in one round trip.
const TOGETHER: usize = 64;

/// The configuration.
#[derive(Clone, Debug)]
pub struct ActionCable {
    /// Rails' cable Redis: the one in its `config/cable.yml`. The key prefix and the database have no part in it.
    pub redis: redis::Config,
    /// `channel_prefix` of the same file; `None` or empty where there is none.
    pub channel_prefix: Option<String>,
}

/// Publishes events to Rails' cable.
pub struct Broadcaster {
    redis: Arc<Redis>,
    /// With its colon.
    prefix: String,
    dropped: Counter,
}

impl Broadcaster {
    /// Reads the files that the configuration names; connects to nothing yet. `dropped` counts the events that nobody
    /// got to see.
    ///
    /// # Errors
    /// What is wrong with the configuration or its files.
    pub fn open(config: ActionCable, dropped: Counter) -> Result<Self, RedisError> {
        let prefix = config.channel_prefix.filter(|prefix| !prefix.is_empty());
        Ok(Self {
            redis: Redis::open(config.redis)?,
            prefix: prefix.map(|prefix| format!("{prefix}:")).unwrap_or_default(),
            dropped,
        })
    }

    /// Publishes until `stop` fires or there is nobody left who could hand in events. One warning for each outage.
    pub async fn run(self, mut events: Receiver<Arc<Published>>, stop: CancellationToken) {
        stop.run_until_cancelled(async move {
            let mut outage = None;
            loop {
                let (batch, missed, more) = next(&mut events).await;
                self.account(&mut outage, missed, None);
                if !batch.is_empty() {
                    match self.redis.pipeline::<()>(&self.pipeline(&batch)).await {
                        Ok(()) => self.account(&mut outage, 0, Some(Ok(()))),
                        Err(error) => self.account(&mut outage, batch.len() as u64, Some(Err(error))),
                    }
                }
                if !more {
                    return;
                }
            }
        })
        .await;
    }

    fn pipeline(&self, batch: &[Arc<Published>]) -> Pipeline {
        let mut pipeline = ::redis::pipe();
        for published in batch {
            let (prefix, event) = (&self.prefix, &published.event);
            for channel in [
                format!("{prefix}kas_agent:{}", event.agent_id),
                format!("{prefix}kas_project:{}", event.project_id),
            ] {
                pipeline.cmd("PUBLISH").arg(channel).arg(&published.json).ignore();
            }
        }
        pipeline
    }

    /// Counts what is lost and says when an outage begins and ends. `outage` is how many were lost in it so far.
    fn account(&self, outage: &mut Option<u64>, lost: u64, result: Option<Result<(), RedisError>>) {
        self.dropped.inc_by(lost);
        if let Some(dropped) = outage {
            *dropped += lost;
        }
        match result {
            Some(Err(error)) if outage.is_none() => {
                let error = chain(&error);
                tracing::warn!(error, "events are dropped while rails' cable redis does not take them");
                *outage = Some(lost);
            }
            Some(Ok(())) => {
                if let Some(dropped) = outage.take() {
                    tracing::info!(dropped, "rails' cable redis takes events again");
                }
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Broadcaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcaster").field("redis", &self.redis).finish_non_exhaustive()
    }
}

/// Waits for an event and takes those that are there already, too; how many were missed before; whether more may come.
async fn next(events: &mut Receiver<Arc<Published>>) -> (Vec<Arc<Published>>, u64, bool) {
    let (mut batch, mut missed) = (Vec::new(), 0);
    match events.recv().await {
        Ok(event) => batch.push(event),
        Err(RecvError::Lagged(count)) => missed += count,
        Err(RecvError::Closed) => return (batch, missed, false),
    }
    while batch.len() < TOGETHER {
        match events.try_recv() {
            Ok(event) => batch.push(event),
            Err(TryRecvError::Lagged(count)) => missed += count,
            Err(TryRecvError::Empty) => break,
            Err(TryRecvError::Closed) => return (batch, missed, false),
        }
    }
    (batch, missed, true)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Event, EventKind, Events};
    use super::*;
    use crate::redis::Servers;
    use postern_wire::ids::{AgentId, ProjectId};
    use stand_ins::redis::{Options, RedisServer};
    use std::time::Duration;
    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
        net::UnixStream,
        task::JoinHandle,
        time::timeout,
    };

    const SOON: Duration = Duration::from_secs(60);

    /// What Rails does, in bare RESP: subscribes to a channel and reads what is published there.
    pub(crate) struct Subscriber(BufReader<UnixStream>);

    impl Subscriber {
        pub(crate) async fn to(server: &RedisServer, channel: &str) -> Self {
            let mut io = UnixStream::connect(server.socket()).await.unwrap();
            io.write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes()).await.unwrap();
            let mut subscriber = Self(BufReader::new(io));
            assert_eq!(subscriber.line().await, "*3");
            assert_eq!(subscriber.text().await, "subscribe");
            assert_eq!(subscriber.text().await, channel);
            assert_eq!(subscriber.line().await, ":1");
            subscriber
        }

        async fn line(&mut self) -> String {
            let mut line = String::new();
            timeout(SOON, self.0.read_line(&mut line)).await.expect("it comes soon").unwrap();
            line.trim_end().to_owned()
        }

        async fn text(&mut self) -> String {
            let length: usize = self.line().await.strip_prefix('$').unwrap().parse().unwrap();
            let mut bytes = vec![0; length + 2];
            self.0.read_exact(&mut bytes).await.unwrap();
            bytes.truncate(length);
            String::from_utf8(bytes).unwrap()
        }

        pub(crate) async fn message(&mut self) -> serde_json::Value {
            assert_eq!(self.line().await, "*3");
            assert_eq!(self.text().await, "message");
            self.text().await;
            serde_json::from_str(&self.text().await).unwrap()
        }
    }

    fn run(server: &RedisServer, prefix: Option<&str>, events: &Events) -> (Counter, JoinHandle<()>) {
        // A machine that stands still for a while makes no command fail.
        let redis = redis::Config::new(Servers::Unix(server.socket()));
        let redis = redis::Config { dial_timeout: SOON, read_timeout: SOON, ..redis };
        let config = ActionCable { redis, channel_prefix: prefix.map(str::to_owned) };
        let dropped = Counter::default();
        let broadcaster = Broadcaster::open(config, dropped.clone()).unwrap();
        let run = broadcaster.run(events.subscribe(), CancellationToken::new());
        (dropped, tokio::spawn(run))
    }

    fn connected(agent_id: i64) -> Event {
        Event::now(EventKind::AgentConnected, AgentId(agent_id), ProjectId(3))
    }

    #[tokio::test]
    async fn an_event_is_published_once_to_the_channel_of_its_agent_and_of_its_project() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        for (prefix, agent, project) in [
            (None, "kas_agent:7", "kas_project:3"),
            (Some(""), "kas_agent:7", "kas_project:3"),
            (Some("gitlab_production"), "gitlab_production:kas_agent:7", "gitlab_production:kas_project:3"),
        ] {
            let mut subscribers =
                [Subscriber::to(&server, agent).await, Subscriber::to(&server, project).await];
            let events = Events::default();
            let (dropped, task) = run(&server, prefix, &events);
            let kind = EventKind::ConfigurationSent { commit_id: "4b825dc".to_owned() };
            events.publish(Event::now(kind, AgentId(7), ProjectId(3)));
            events.publish(connected(7));
            for subscriber in &mut subscribers {
                let message = subscriber.message().await;
                assert_eq!(message["kind"], "configuration_sent");
                assert_eq!(message["commit_id"], "4b825dc");
                assert_eq!((&message["agent_id"], &message["project_id"]), (&7.into(), &3.into()));
                assert_eq!(subscriber.message().await["kind"], "agent_connected");
            }
            drop(events);
            timeout(SOON, task).await.expect("it ends with its events").unwrap();
            assert_eq!(dropped.get(), 0);
        }
    }

    #[tokio::test]
    async fn events_of_an_outage_are_dropped_and_counted_and_later_ones_arrive() {
        let mut server = RedisServer::start(Options::default()).await.unwrap();
        let events = Events::default();
        let mut first = Subscriber::to(&server, "kas_agent:1").await;
        let (dropped, task) = run(&server, None, &events);
        events.publish(connected(1));
        first.message().await;

        server.stop().await;
        let all_dropped = async {
            for count in 1..=20 {
                events.publish(connected(2));
                while dropped.get() < count {
                    tokio::task::yield_now().await;
                }
            }
        };
        timeout(SOON, all_dropped).await.expect("nothing waits for a redis that is away");

        server.restart().await.unwrap();
        let mut later = Subscriber::to(&server, "kas_agent:3").await;
        let arrived = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            // One and the same, or half a message could be lost.
            let mut message = std::pin::pin!(later.message());
            loop {
                tokio::select! {
                    message = &mut message => break message,
                    _ = tick.tick() => events.publish(connected(3)),
                }
            }
        };
        assert_eq!(timeout(SOON, arrived).await.expect("it comes back by itself")["agent_id"], 3);
        drop(events);
        timeout(SOON, task).await.expect("it ends with its events").unwrap();
    }

    #[tokio::test]
    async fn what_is_missed_behind_a_slow_redis_is_counted() {
        let events = Events::behind(4);
        let mut watcher = events.subscribe();
        (0..10).for_each(|_| events.publish(connected(1)));
        let (batch, missed, more) = next(&mut watcher).await;
        assert_eq!((batch.len(), missed, more), (4, 6, true));
    }

    #[tokio::test]
    async fn it_ends_when_it_is_told_to() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        let redis = redis::Config::new(Servers::Unix(server.socket()));
        let config = ActionCable { redis, channel_prefix: None };
        let (events, stop) = (Events::default(), CancellationToken::new());
        let run =
            Broadcaster::open(config, Counter::default()).unwrap().run(events.subscribe(), stop.clone());
        stop.cancel();
        timeout(SOON, run).await.expect("it ends");
    }
}
