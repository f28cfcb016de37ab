//! Views for Rails: what changes in them is published to the Redis of its cable. Before it: [`super::views`]. After it:
//! Rails' own processes, which pass it on to browsers. It follows each view as any other reader does, so an outage of that
//! Redis costs nothing here: afterwards, each view that changed meanwhile is published whole.
//!
//! The broadcasting is `kas_agent_views:<agent id>`; a message is a page, as `docs/views.md` describes it.

use super::views::{Follower, Kind, PAGE, Views};
use crate::{
    api::agent_views,
    error::chain,
    events::action_cable::ActionCable,
    redis::{Redis, RedisError},
};
use postern_wire::ids::AgentId;
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between two rounds: changes that come together go together.
const ROUND: Duration = Duration::from_millis(50);
/// Between two attempts while that Redis is away.
const AGAIN: Duration = Duration::from_secs(2);
/// Pages of a view that go in one round trip, of some 64 KiB each; then it is the turn of others.
const TOGETHER: usize = 8;

/// Publishes views.
pub struct Cable {
    redis: Arc<Redis>,
    /// With its colon.
    prefix: String,
    views: Views,
    following: HashMap<(AgentId, Kind), Follower>,
}

impl fmt::Debug for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cable").field("redis", &self.redis).finish_non_exhaustive()
    }
}

impl Cable {
    /// Reads the files that the configuration names; connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with the configuration or its files.
    pub fn open(config: ActionCable, views: Views) -> Result<Self, RedisError> {
        let prefix = config.channel_prefix.filter(|prefix| !prefix.is_empty());
        Ok(Self {
            redis: Redis::open(config.redis)?,
            prefix: prefix.map(|prefix| format!("{prefix}:")).unwrap_or_default(),
            views,
            following: HashMap::new(),
        })
    }

    /// Publishes until `stop` fires. One warning for each outage.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(async move {
            let mut away = false;
            loop {
                self.views.mark_changes();
                // Whole, from here on: what was published before is of no use to those who missed some.
                self.following.clear();
                let error = self.publish(&mut away).await;
                if !std::mem::replace(&mut away, true) {
                    let error = chain(&error);
                    tracing::warn!(
                        error,
                        "views are not published while rails' cable redis does not take them"
                    );
                }
                sleep(AGAIN).await;
            }
        })
        .await;
    }

    /// Publishes what changes until that fails.
    async fn publish(&mut self, away: &mut bool) -> RedisError {
        loop {
            for (agent, kind) in self.views.changed().await {
                let (messages, over) = self.messages(agent, kind);
                if !messages.is_empty() {
                    let mut pipeline = ::redis::pipe();
                    for message in messages {
                        let channel = format!("{}kas_agent_views:{agent}", self.prefix);
                        pipeline.cmd("PUBLISH").arg(channel).arg(message).ignore();
                    }
                    if let Err(error) = self.redis.pipeline::<()>(&pipeline).await {
                        return error;
                    }
                    if std::mem::take(away) {
                        tracing::info!("rails' cable redis takes views again");
                    }
                }
                // One that changes faster than it is published must not be all that is.
                if !over {
                    self.views.mark(agent, kind);
                }
            }
            sleep(ROUND).await;
        }
    }

    /// The next pages of a view, and whether those are all for now.
    fn messages(&mut self, agent: AgentId, kind: Kind) -> (Vec<String>, bool) {
        let mut messages = Vec::new();
        while messages.len() < TOGETHER {
            let known = self.following.remove(&(agent, kind));
            let was_known = known.is_some();
            let Some(mut follower) = known.or_else(|| self.views.follow(agent, kind)) else {
                return (messages, true);
            };
            match follower.take(PAGE) {
                Ok(page) => {
                    self.following.insert((agent, kind), follower);
                    let Some(page) = page else { return (messages, true) };
                    messages.push(agent_views::page(agent, kind, None, &page));
                }
                // Perhaps there is another copy by now; the next look says.
                Err(_) if was_known => messages.push(agent_views::ended(agent, kind)),
                Err(_) => return (messages, true),
            }
        }
        (messages, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent_reports::tests::whole,
        events::action_cable::tests::Subscriber,
        redis::{self, Servers},
    };
    use postern_wire::proto::postern::agent::ViewUpdate;
    use stand_ins::redis::{Options, RedisServer};
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(60);

    fn run(server: &RedisServer, prefix: &str, views: &Views, stop: &CancellationToken) {
        // A machine that stands still for a while makes no command fail.
        let redis = redis::Config::new(Servers::Unix(server.socket()));
        let redis = redis::Config { dial_timeout: SOON, read_timeout: SOON, ..redis };
        let config = ActionCable { redis, channel_prefix: Some(prefix.to_owned()) };
        tokio::spawn(Cable::open(config, views.clone()).unwrap().run(stop.clone()));
    }

    #[tokio::test]
    async fn views_are_published_for_their_agent_and_again_after_an_outage() {
        let mut server = RedisServer::start(Options::default()).await.unwrap();
        let (views, stop) = (Views::default(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        let mut subscriber = Subscriber::to(&server, "gitlab:kas_agent_views:7").await;
        run(&server, "gitlab", &views, &stop);
        let mut stream = views.begin(AgentId(7));
        views.begin(AgentId(8)).apply(whole("nodes", &[("of another", "{}")])).unwrap();
        stream.apply(whole("nodes", &[("a", r#"{"ready":true}"#)])).unwrap();
        let message = subscriber.message().await;
        assert_eq!(
            (&message["agent_id"], &message["view"], &message["whole"]),
            (&7.into(), &"nodes".into(), &true.into())
        );
        assert_eq!(message["entries"]["a"]["ready"], true);
        let gone = ViewUpdate { whole: false, gone: vec!["a".to_owned()], ..whole("nodes", &[("b", "{}")]) };
        stream.apply(gone).unwrap();
        let message = subscriber.message().await;
        assert_eq!((&message["gone"][0], &message["whole"]), (&"a".into(), &false.into()));

        server.stop().await;
        stream.apply(ViewUpdate { whole: false, ..whole("nodes", &[("c", "{}")]) }).unwrap();
        server.restart().await.unwrap();
        let mut later = Subscriber::to(&server, "gitlab:kas_agent_views:7").await;
        // What was published before anybody listened is of the past.
        let arrived = async {
            let (mut tick, mut count) = (tokio::time::interval(Duration::from_millis(50)), 0);
            // One and the same, or half a message could be lost.
            let mut message = std::pin::pin!(later.message());
            loop {
                tokio::select! {
                    message = &mut message => break message,
                    _ = tick.tick() => {
                        count += 1;
                        let json = format!(r#"{{"count":{count}}}"#);
                        let change = ViewUpdate { whole: false, ..whole("nodes", &[("d", &json)]) };
                        stream.apply(change).unwrap();
                    }
                }
            }
        };
        let message = timeout(SOON, arrived).await.expect("it comes back by itself");
        assert!(message["entries"]["d"].is_object(), "{message}");
        stream.apply(ViewUpdate { ended: true, ..whole("nodes", &[]) }).unwrap();
        let ended = async {
            loop {
                let message = later.message().await;
                if message["ended"] == true {
                    return;
                }
            }
        };
        timeout(SOON, ended).await.expect("it is told");
    }

    #[tokio::test]
    async fn a_large_view_is_published_in_pages() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        let (views, stop) = (Views::default(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        let mut subscriber = Subscriber::to(&server, "kas_agent_views:7").await;
        let keys: Vec<_> = (0..1_000).map(|at| format!("n{at:04}")).collect();
        let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000));
        let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), json.as_str())).collect();
        let mut stream = views.begin(AgentId(7));
        stream.apply(whole("nodes", &entries)).unwrap();
        run(&server, "", &views, &stop);
        let (mut seen, mut pages) = (0, 0);
        loop {
            let message = subscriber.message().await;
            assert_eq!(message["whole"], pages == 0);
            (seen, pages) = (seen + message["entries"].as_object().unwrap().len(), pages + 1);
            if message["more"] == false {
                break;
            }
        }
        assert_eq!(seen, 1_000);
        assert!(pages > TOGETHER, "{pages}");
    }

    #[tokio::test]
    async fn large_views_take_turns() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        let (views, stop) = (Views::default(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        let mut subscriber = Subscriber::to(&server, "kas_agent_views:7").await;
        let keys: Vec<_> = (0..1_000).map(|at| format!("n{at:04}")).collect();
        let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000));
        let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), json.as_str())).collect();
        let mut stream = views.begin(AgentId(7));
        for kind in Kind::ALL {
            stream.apply(whole(kind.name(), &entries)).unwrap();
        }
        run(&server, "", &views, &stop);
        let mut pages = HashMap::new();
        for _ in 0..TOGETHER * Kind::ALL.len() {
            let view = subscriber.message().await["view"].as_str().unwrap().to_owned();
            *pages.entry(view).or_insert(0) += 1;
        }
        assert!(
            pages.len() == Kind::ALL.len() && pages.values().all(|count| *count == TOGETHER),
            "{pages:?}"
        );
    }
}
