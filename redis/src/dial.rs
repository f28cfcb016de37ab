//! Opens a connection to Redis: TCP, TLS over TCP with our own trust, or a Unix socket; through sentinels where there
//! are any. Before it: the pool and the subscription, which decide when. After it: a connection that has answered. It
//! tries each server once and logs nothing.

use super::{
    Config, RedisError, Servers,
    credentials::{Credentials, Files, Secure},
    server::Server,
};
use ::redis::{
    AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisResult,
    aio::{MultiplexedConnection, PubSub},
};
use postern_certs::client;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// A connection that nothing comes on for so long is asked whether it is still there, ...
const KEEPALIVE: Duration = Duration::from_secs(15);
/// ... again after so long, ...
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
/// ... so many times: half a minute in all. This alone finds a subscription dead, for it sends nothing.
const KEEPALIVE_TRIES: u32 = 3;

/// What moves the bytes of a connection; it ends with it.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// A connection for commands.
pub(super) struct Dialled {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: Driver,
    pub(super) server: Server,
}

/// Dials the same Redis again and again.
pub(super) struct Dialler {
    place: Place,
    files: Arc<Files>,
    /// For each server dialled.
    pub(super) patience: Duration,
}

enum Place {
    One(Server),
    Sentinels {
        master_name: String,
        sentinels: Vec<Server>,
    },
    /// Nodes of a cluster, some at least.
    Cluster(Vec<Server>),
}

impl Dialler {
    /// Reads the files once, so that a mistake in them is known at once.
    pub(super) fn new(config: &Config) -> Result<Self, RedisError> {
        let place = match &config.servers {
            Servers::Tcp(address) => Place::One(Server::parse(address, "redis.server.address")?),
            Servers::Unix(path) => Place::One(Server::Unix(path.clone())),
            Servers::Sentinel { addresses, .. } if addresses.is_empty() => {
                return Err(RedisError::NoSentinels);
            }
            Servers::Sentinel { master_name, addresses, .. } => {
                let parse = |address: &String| Server::parse(address, "an item of redis.sentinel.addresses");
                let sentinels = addresses.iter().map(parse).collect::<Result<_, _>>()?;
                Place::Sentinels { master_name: master_name.clone(), sentinels }
            }
            Servers::Cluster(addresses) if addresses.is_empty() => return Err(RedisError::NoNodes),
            Servers::Cluster(addresses) => {
                let parse = |address: &String| Server::parse(address, "an item of redis.cluster.addresses");
                Place::Cluster(addresses.iter().map(parse).collect::<Result<_, _>>()?)
            }
        };
        let files = Files::new(config);
        files.read()?;
        Ok(Self { place, files: Arc::new(files), patience: config.dial_timeout })
    }

    /// For errors: which Redis is meant, wherever it is right now.
    pub(super) fn name(&self) -> String {
        match &self.place {
            Place::One(server) => server.to_string(),
            Place::Sentinels { master_name, .. } => format!("the sentinels' master {master_name}"),
            Place::Cluster(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(Server::to_string).collect();
                format!("the cluster of {}", nodes.join(", "))
            }
        }
    }

    /// Those that the configuration names, where it is a cluster.
    pub(super) fn nodes(&self) -> Option<&[Server]> {
        match &self.place {
            Place::Cluster(nodes) => Some(nodes),
            _ => None,
        }
    }

    /// A connection for commands, to `server` or where the configuration says.
    pub(super) async fn dial(&self, server: Option<&Server>) -> Result<Dialled, RedisError> {
        let credentials = self.credentials().await?;
        let server = self.place(server, &credentials).await?;
        self.within(&server, self.reach(&server, &credentials.login, &credentials)).await
    }

    /// The same, subscribed to channels; and where it leads.
    pub(super) async fn listen(
        &self,
        server: Option<&Server>,
        channels: &[Vec<u8>],
    ) -> Result<(PubSub, Server), RedisError> {
        let credentials = self.credentials().await?;
        let server = self.place(server, &credentials).await?;
        // Redis publishes to all databases alike.
        let login = credentials.login.set_db(0);
        let opened = async {
            let io = connect(&server, credentials.secure.as_ref()).await?;
            let mut listening = PubSub::new(&login, io).await?;
            listening.subscribe(channels).await?;
            Ok(listening)
        };
        let opened = async { opened.await.map_err(|error: Failure| error.of(&server)) };
        let listening = self.within(&server, opened).await?;
        Ok((listening, server))
    }

    /// As the files are now.
    async fn credentials(&self) -> Result<Credentials, RedisError> {
        let files = Arc::clone(&self.files);
        let read = tokio::task::spawn_blocking(move || files.read()).await;
        read.expect("reading files does not panic, and is not cancelled while it is awaited")
    }

    async fn place(&self, server: Option<&Server>, credentials: &Credentials) -> Result<Server, RedisError> {
        match (server, &self.place) {
            (Some(server), _) | (None, Place::One(server)) => Ok(server.clone()),
            (None, Place::Cluster(nodes)) => nodes.first().cloned().ok_or(RedisError::NoNodes),
            (None, Place::Sentinels { master_name, sentinels }) => {
                let mut last = None;
                for sentinel in sentinels {
                    match self.within(sentinel, self.ask(sentinel, credentials, master_name)).await {
                        Ok(Some(master)) => return Ok(master),
                        Ok(None) => {}
                        Err(error) => last = Some(Box::new(error)),
                    }
                }
                Err(RedisError::NoMaster { master_name: master_name.clone(), source: last })
            }
        }
    }

    async fn within<T>(
        &self,
        server: &Server,
        what: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let slow = || RedisError::Slow { server: server.to_string(), limit: self.patience };
        timeout(self.patience, what).await.unwrap_or_else(|_| Err(slow()))
    }

    /// Where a sentinel says that the master is; `None`: it does not know it.
    async fn ask(
        &self,
        sentinel: &Server,
        credentials: &Credentials,
        master_name: &str,
    ) -> Result<Option<Server>, RedisError> {
        let dialled = self.reach(sentinel, &credentials.sentinel_login, credentials).await?;
        let Dialled { mut commands, mut driver, server } = dialled;
        let mut question = ::redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(master_name);
        let answer = driven(&mut driver, question.query_async::<Option<(String, u16)>>(&mut commands)).await;
        let answer = answer.map_err(|source| RedisError::Failed { server: server.to_string(), source })?;
        Ok(answer.map(|(host, port)| Server::Tcp { host, port }))
    }

    /// Connects, logs in and waits for a PING: a server that hangs accepts connections all the same.
    async fn reach(
        &self,
        server: &Server,
        login: &RedisConnectionInfo,
        credentials: &Credentials,
    ) -> Result<Dialled, RedisError> {
        let opened = async {
            let io = connect(server, credentials.secure.as_ref()).await?;
            // Time-outs are the caller's: the library's own would be a second one.
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let (mut commands, driver) = MultiplexedConnection::new_with_config(login, io, config).await?;
            // It may end while a question is under way, and is then asked again by whoever keeps the connection.
            let mut driver: Driver = Box::pin(futures::future::maybe_done(driver));
            let ping = ::redis::cmd("PING");
            driven(&mut driver, ping.query_async::<()>(&mut commands)).await?;
            Ok(Dialled { commands, driver, server: server.clone() })
        };
        opened.await.map_err(|error: Failure| error.of(server))
    }
}

/// Why a connection is not there, before it is said of which server.
enum Failure {
    Connect(std::io::Error),
    Tls(String),
    Redis(::redis::RedisError),
}

impl From<::redis::RedisError> for Failure {
    fn from(error: ::redis::RedisError) -> Self {
        Self::Redis(error)
    }
}

impl Failure {
    fn of(self, server: &Server) -> RedisError {
        let server = server.to_string();
        match self {
            Self::Connect(source) => RedisError::Connect { server, source: Arc::new(source) },
            Self::Tls(what) => RedisError::Tls { server, what },
            Self::Redis(source) => {
                let login = source.kind() == ErrorKind::AuthenticationFailed
                    || matches!(source.code(), Some("NOAUTH" | "WRONGPASS"));
                if login {
                    RedisError::Refused { server, source }
                } else {
                    RedisError::Failed { server, source }
                }
            }
        }
    }
}

async fn connect(server: &Server, secure: Option<&Secure>) -> Result<Pin<Box<dyn Io>>, Failure> {
    let (host, port) = match server {
        Server::Unix(path) => {
            return Ok(Box::pin(UnixStream::connect(path).await.map_err(Failure::Connect)?));
        }
        Server::Tcp { host, port } => (host, *port),
    };
    let io = TcpStream::connect((host.as_str(), port)).await.map_err(Failure::Connect)?;
    io.set_nodelay(true).map_err(Failure::Connect)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN).with_retries(KEEPALIVE_TRIES);
    SockRef::from(&io).set_tcp_keepalive(&keepalive).map_err(Failure::Connect)?;
    let Some(secure) = secure else { return Ok(Box::pin(io)) };
    let name = ServerName::try_from(host.clone())
        .map_err(|_| Failure::Tls("its host is no name that a certificate can hold".to_owned()))?;
    let config = match &secure.identity {
        Some(identity) => secure.trust.config_as(identity, &[]),
        None => secure.trust.config(&[]),
    };
    let io = TlsConnector::from(config).connect(name, io).await.map_err(|error| {
        let explained = client::explain(&error, secure.trust.ca_given());
        // The words are those of a program with flags; here it is a key of the configuration.
        let explained = explained.map(|text| text.replace("--ca-cert-file", "redis.tls.ca_certificate_file"));
        Failure::Tls(explained.unwrap_or_else(|| format!("the handshake failed: {error}")))
    })?;
    Ok(Box::pin(io))
}

/// An answer on a connection that nobody drives yet. Where the connection ends, that is the answer.
pub(super) async fn driven<T>(
    driver: &mut Driver,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        () = driver => answer.await,
    }
}
