//! A Redis: one connection for commands that all share, opened with the first command and kept up from then on; more
//! under load. Before it: limits of the fleet ([`lease`]), the broker's tracker, events for browsers. After it: a Redis
//! server, plain, over TLS, over a Unix socket, found through sentinels, or a cluster. A command never waits longer than the
//! time-outs say; while Redis is away it fails at once. It reads no configuration file and knows nothing of agents.

pub mod lease;

mod backoff;
mod call;
mod cluster;
mod credentials;
mod dial;
mod error;
mod pool;
mod server;
mod subscription;
#[cfg(test)]
mod tests;

pub use self::error::{RedisError, chain};
pub use self::subscription::{Heard, Subscription};

use self::{call::Call, cluster::Cluster, dial::Dialler, pool::Pool, subscription::Listener};
use ::redis::{Cmd, FromRedisValue, Pipeline};
use futures::future::join_all;
use postern_certs::CertFiles;
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Which Redis, and how patient to be with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it is.
    pub servers: Servers,
    /// The ACL user; `None`: `default`. Nothing without `password_file`.
    pub username: Option<String>,
    /// Its content is the password. One trailing newline is not part of it, as editors add it; a kas of 14.1 takes
    /// the newline for a character of the password. Read again for each dial.
    pub password_file: Option<PathBuf>,
    /// `None`: no TLS. Sentinels are dialled in the same way. It has no part in a Unix socket.
    pub tls: Option<Tls>,
    /// Number of the database.
    pub database: i64,
    /// What all keys begin with, before a colon.
    pub key_prefix: String,
    /// From the name to the first PING, for each server dialled.
    pub dial_timeout: Duration,
    /// How long an answer may take, after `write_timeout`.
    pub read_timeout: Duration,
    /// How long a command may take to be written.
    pub write_timeout: Duration,
    /// At most so many connections for commands to each server; the second is opened only while the first is busy.
    pub pool_size: usize,
    /// All but the first are closed when they were not used for so long.
    pub idle_timeout: Duration,
}

impl Config {
    /// No password, no TLS, database 0, and the rest as a kas of 14.1 has it.
    pub fn new(servers: Servers) -> Self {
        Self {
            servers,
            username: None,
            password_file: None,
            tls: None,
            database: 0,
            key_prefix: "gitlab-kas".to_owned(),
            dial_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            pool_size: 5,
            idle_timeout: Duration::from_secs(50),
        }
    }
}

/// Where a Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// `host:port`; an IPv6 address in brackets.
    Tcp(String),
    /// A socket file.
    Unix(PathBuf),
    /// Whichever server the sentinels call master, asked anew for each dial.
    Sentinel {
        /// What the sentinels call it.
        master_name: String,
        /// `host:port` of each sentinel, tried in this order.
        addresses: Vec<String>,
        /// The sentinels' own password, read like [`Config::password_file`] and sent without a user name.
        password_file: Option<PathBuf>,
    },
    /// `host:port` of some nodes of a cluster; they tell of the others, which must be reachable under the names that
    /// they give. It has database 0 only.
    Cluster(Vec<String>),
}

/// How TLS is spoken. The server's name is the host of its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Shown to a server that asks who dials. Read again for each dial.
    pub certificate: Option<CertFiles>,
    /// CAs to trust beside the system's. Read again for each dial.
    pub ca_certificate_file: Option<PathBuf>,
}

/// One Redis. Its connections end with it, but for those of subscriptions.
pub struct Redis {
    dialler: Arc<Dialler>,
    route: Route,
    openings: Arc<watch::Sender<u64>>,
    key_prefix: String,
    answer: Duration,
}

enum Route {
    One(Pool),
    Cluster(Box<Cluster>),
}

impl Redis {
    /// Reads the files; connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with an address or a file.
    pub fn open(config: Config) -> Result<Arc<Self>, RedisError> {
        let dialler = Arc::new(Dialler::new(&config)?);
        let openings = Arc::new(watch::Sender::new(0));
        let (with, counting) = (Arc::clone(&dialler), Arc::clone(&openings));
        let route = match dialler.nodes() {
            Some(nodes) => Route::Cluster(Box::new(Cluster::new(&config, with, nodes.to_vec(), counting))),
            None => Route::One(Pool::new(&config, with, None, counting)),
        };
        Ok(Arc::new(Self {
            route,
            dialler,
            openings,
            answer: config.write_timeout + config.read_timeout,
            key_prefix: config.key_prefix,
        }))
    }

    /// What all keys begin with, before a colon.
    pub fn key_prefix(&self) -> &str {
        &self.key_prefix
    }

    /// Whether Redis answers: for readiness.
    ///
    /// # Errors
    /// Why it does not. So do all commands.
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.command(&::redis::cmd("PING")).await
    }

    /// Whether commands are answered right now, as far as is known without asking: not before the first one.
    pub fn is_up(&self) -> bool {
        match &self.route {
            Route::One(pool) => pool.is_up(),
            Route::Cluster(cluster) => cluster.is_up(),
        }
    }

    /// Counts up whenever a connection for commands was opened, or opened again: what Redis held may be gone, after a
    /// restart or a fail-over. Those that are opened only because the others are busy do not count.
    pub fn openings(&self) -> watch::Receiver<u64> {
        self.openings.subscribe()
    }

    /// A connection of its own that listens to channels; opened again by itself. It lives as long as the value.
    pub fn subscribe(self: &Arc<Self>, channels: Vec<Vec<u8>>) -> Subscription {
        let nodes = match &self.route {
            Route::One(_) => None,
            Route::Cluster(cluster) => Some(cluster.nodes()),
        };
        let (dialler, openings, answer) = (Arc::clone(&self.dialler), self.openings.subscribe(), self.answer);
        Subscription::new(Listener { dialler, channels, nodes, openings, answer })
    }

    /// One command and its answer.
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.call(self.dialler.patience, self.answer, Call::Command(command)).await
    }

    /// Several commands in one round trip, or as one transaction where they are `atomic()`.
    pub async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        self.call(self.dialler.patience, self.answer, Call::Pipeline(pipeline)).await
    }

    /// The same for callers with less time: the connection that is being opened, and then the answer, may each take so
    /// long. A limit around this call would never let the connection be found broken.
    pub async fn pipeline_in<T: FromRedisValue>(
        &self,
        limit: Duration,
        pipeline: &Pipeline,
    ) -> Result<T, RedisError> {
        let (dial, answer) = (self.dialler.patience.min(limit), self.answer.min(limit));
        self.call(dial, answer, Call::Pipeline(pipeline)).await
    }

    /// Many keys in as few round trips as there are servers: each pipeline concerns one key. One result each, in their
    /// order; one that fails takes none of the others with it. `limit` as for [`Self::pipeline_in`].
    pub async fn batch(&self, limit: Duration, each: &[Pipeline]) -> Vec<Result<::redis::Value, RedisError>> {
        let (dial, answer) = (self.dialler.patience.min(limit), self.answer.min(limit));
        let pool = match &self.route {
            Route::One(pool) => pool,
            Route::Cluster(cluster) => return cluster.batch(dial, answer, each).await,
        };
        match pool.lease(dial).await {
            Ok(lease) => {
                let end = Instant::now() + answer;
                join_all(each.iter().map(|pipeline| Call::Pipeline(pipeline).on(&lease, end, answer))).await
            }
            Err(error) => vec![Err(error); each.len()],
        }
    }

    async fn call<T: FromRedisValue>(
        &self,
        dial: Duration,
        limit: Duration,
        call: Call<'_>,
    ) -> Result<T, RedisError> {
        let answer = match &self.route {
            Route::One(pool) => {
                let lease = pool.lease(dial).await?;
                call.on(&lease, Instant::now() + limit, limit).await?
            }
            Route::Cluster(cluster) => cluster.call(dial, limit, call).await?,
        };
        let strange = |error: ::redis::ParsingError| RedisError::Failed {
            server: self.dialler.name(),
            source: error.into(),
        };
        ::redis::from_redis_value(answer).map_err(strange)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.dialler.name()).finish_non_exhaustive()
    }
}
