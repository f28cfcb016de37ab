//! The broker's Redis: one connection that all share, opened with the first command and kept up from then on. Before
//! it: the limiter, the tracker, events for browsers. After it: a Redis server, plain, over TLS, over a Unix socket or
//! found through sentinels. A command never waits longer than the time-outs say; while Redis is away it fails at once.

mod dial;
#[cfg(test)]
mod tests;

use self::dial::{Dialled, Dialler};
use ::redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, ServerErrorKind, aio::MultiplexedConnection};
use postern_certs::{CertError, CertFiles};
use rand::Rng;
use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Between two dials; doubled each time, and up to half as much again at random.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Which Redis, and how patient to be with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it is.
    pub servers: Servers,
    /// The ACL user; `None`: `default`. Nothing without `password_file`.
    pub username: Option<String>,
    /// Its content is the password. One trailing newline is not part of it, as editors add it; a kas of 14.1 takes
    /// the newline for a character of the password. Read once.
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
}

/// How TLS is spoken. The server's name is the host of its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Shown to a server that asks who dials. Read once.
    pub certificate: Option<CertFiles>,
    /// CAs to trust beside the system's. Read once.
    pub ca_certificate_file: Option<PathBuf>,
}

/// Why Redis cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisError {
    /// An address is no `host:port`. It is not shown, for it may be a URL with a password.
    #[error("{0} is not host:port; a URL is not wanted here")]
    Address(&'static str),
    /// No sentinel is named.
    #[error("redis.sentinel.addresses is empty; name at least one sentinel as host:port")]
    NoSentinels,
    /// A password file is missing or unreadable.
    #[error("cannot read the Redis password file {}", .path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// A password file holds nothing but perhaps a newline, or no UTF-8.
    #[error("the Redis password file {} {what}", .path.display())]
    BadPassword {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file named for TLS cannot be used.
    #[error("redis.tls")]
    Files(#[source] Arc<CertError>),
    /// There is no connection.
    #[error("cannot connect to Redis at {server}; is it up, and may this host reach it?")]
    Connect {
        /// Its address.
        server: String,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// There is a connection, but TLS failed on it.
    #[error("TLS with Redis at {server}: {what}")]
    Tls {
        /// Its address.
        server: String,
        /// What is wrong, and what to do about it.
        what: String,
    },
    /// Dialling took longer than `dial_timeout`, or than the caller waits.
    #[error("Redis at {server} does not answer within {limit:?}; is it up, and may this host reach it?")]
    Slow {
        /// Its address.
        server: String,
        /// How long that is.
        limit: Duration,
    },
    /// It wants another user name or password than ours.
    #[error("Redis at {server} refuses the user name or password; check username and password_file")]
    Refused {
        /// Its address.
        server: String,
        /// What Redis or its client library says.
        #[source]
        source: ::redis::RedisError,
    },
    /// No sentinel answers, or none knows the master; the source is what the last one said.
    #[error("no sentinel names the master {master_name}")]
    NoMaster {
        /// `redis.sentinel.master_name`.
        master_name: String,
        /// Why the last one does not.
        #[source]
        source: Option<Box<RedisError>>,
    },
    /// The connection ended soon after it was opened, more than once. It is opened again in a moment.
    #[error("Redis at {server} ends connections soon after they are opened; its log says why")]
    Lost {
        /// Its address.
        server: String,
    },
    /// No answer to a command in time. The connection is given up, for what is on it would come too late.
    #[error("Redis at {server} does not answer a command within {limit:?}")]
    Silent {
        /// Its address.
        server: String,
        /// `write_timeout` and `read_timeout` together, or what the caller allows if that is less.
        limit: Duration,
    },
    /// A command failed, or the connection did while it ran.
    #[error("a command failed at Redis at {server}")]
    Failed {
        /// Its address.
        server: String,
        /// What Redis or its client library says.
        #[source]
        source: ::redis::RedisError,
    },
}

/// One Redis. Its connection ends with it.
pub struct Redis {
    dialler: Arc<Dialler>,
    state: watch::Sender<State>,
    /// Runs from the first command on.
    keeper: OnceLock<AbortOnDropHandle<()>>,
    key_prefix: String,
    answer: Duration,
}

#[derive(Clone)]
enum State {
    /// For the first time, or after a connection broke.
    Dialling,
    Up(Up),
    /// Dialled again and again in the background.
    Away(RedisError),
}

#[derive(Clone)]
struct Up {
    commands: MultiplexedConnection,
    /// Where the connection leads; with sentinels, another place after each failover.
    server: Arc<str>,
    /// Whoever finds the connection useless says so.
    broken: CancellationToken,
}

impl Redis {
    /// Reads the files; connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with an address or a file.
    pub fn open(config: Config) -> Result<Arc<Self>, RedisError> {
        Ok(Arc::new(Self {
            dialler: Arc::new(Dialler::new(&config)?),
            state: watch::Sender::new(State::Dialling),
            keeper: OnceLock::new(),
            key_prefix: config.key_prefix,
            answer: config.write_timeout + config.read_timeout,
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

    /// One command and its answer.
    pub(crate) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let Up { mut commands, server, broken } = self.connection(self.dialler.patience).await?;
        let answer = timeout(self.answer, command.query_async(&mut commands)).await;
        self.judge(answer.ok(), self.answer, &server, &broken)
    }

    /// Several commands in one round trip, or as one transaction where they are `atomic()`.
    pub(crate) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        self.pipeline_within(self.dialler.patience, self.answer, pipeline).await
    }

    /// The same for callers with less time: the connection that is being opened, and then the answer, may each take so
    /// long. A limit around this call would never let the connection be found broken.
    pub(crate) async fn pipeline_in<T: FromRedisValue>(
        &self,
        limit: Duration,
        pipeline: &Pipeline,
    ) -> Result<T, RedisError> {
        self.pipeline_within(self.dialler.patience.min(limit), self.answer.min(limit), pipeline).await
    }

    async fn pipeline_within<T: FromRedisValue>(
        &self,
        dial: Duration,
        limit: Duration,
        pipeline: &Pipeline,
    ) -> Result<T, RedisError> {
        let Up { mut commands, server, broken } = self.connection(dial).await?;
        let answer = timeout(limit, pipeline.query_async(&mut commands)).await;
        self.judge(answer.ok(), limit, &server, &broken)
    }

    fn judge<T>(
        &self,
        answer: Option<::redis::RedisResult<T>>,
        limit: Duration,
        server: &str,
        broken: &CancellationToken,
    ) -> Result<T, RedisError> {
        let server = server.to_owned();
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(source)) => {
                // A replica says READONLY: the master has moved.
                let moved = matches!(
                    source.kind(),
                    ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
                );
                if moved || source.is_unrecoverable_error() {
                    broken.cancel();
                }
                Err(RedisError::Failed { server, source })
            }
            None => {
                broken.cancel();
                Err(RedisError::Silent { server, limit })
            }
        }
    }

    /// The connection that is there, or the one that is being opened.
    async fn connection(&self, limit: Duration) -> Result<Up, RedisError> {
        let mut state = self.state.subscribe();
        self.keeper.get_or_init(|| {
            let keeper = keep(Arc::clone(&self.dialler), self.state.clone());
            AbortOnDropHandle::new(tokio::spawn(keeper))
        });
        let settled = state.wait_for(|state| match state {
            State::Dialling => false,
            State::Up(up) => !up.broken.is_cancelled(),
            State::Away(_) => true,
        });
        let settled = timeout(limit, settled).await;
        match settled.as_ref().map(|state| state.as_deref()) {
            Ok(Ok(State::Up(up))) => Ok(up.clone()),
            Ok(Ok(State::Away(error))) => Err(error.clone()),
            _ => Err(RedisError::Slow { server: self.dialler.name(), limit }),
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.dialler.name()).finish_non_exhaustive()
    }
}

/// Keeps one connection up until the `Redis` is dropped.
async fn keep(dialler: Arc<Dialler>, state: watch::Sender<State>) {
    // None at all after a connection that has been good for a while: servers restart.
    let mut wait = Duration::ZERO;
    loop {
        match dialler.dial().await {
            Ok(Dialled { commands, driver, server }) => {
                let (begin, broken) = (Instant::now(), CancellationToken::new());
                tracing::info!(%server, "connected to redis");
                let up = Up { commands, server: server.as_str().into(), broken: broken.clone() };
                state.send_replace(State::Up(up));
                // Until the server ends it, or a command finds it useless.
                broken.run_until_cancelled(driver).await;
                tracing::info!(%server, "connection to redis lost");
                if begin.elapsed() > RETRY_MAX {
                    wait = Duration::ZERO;
                }
                let again = wait.is_zero();
                let lost = || State::Away(RedisError::Lost { server });
                state.send_replace(if again { State::Dialling } else { lost() });
            }
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "no connection to redis");
                state.send_replace(State::Away(error));
                wait = wait.max(RETRY);
            }
        }
        let jitter = rand::rng().random_range(1.0..1.5);
        sleep(wait.mul_f64(jitter)).await;
        wait = (wait * 2).clamp(RETRY, RETRY_MAX);
    }
}
