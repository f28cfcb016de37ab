//! Opens a connection to Redis: TCP, TLS over TCP with our own trust, or a Unix socket; through sentinels where there
//! are any. Before it: [`super::Redis`], which decides when. After it: a connection that has answered a PING. It tries
//! each server once and logs nothing.

use super::{Config, RedisError, Servers};
use ::redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisResult,
    aio::MultiplexedConnection,
};
use postern_certs::client::{self, ClientIdentity, ClientTrust};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{
    fs,
    path::{Path, PathBuf},
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

/// So that a connection that nobody uses is found dead, too.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// What moves the bytes of a connection; it ends with it.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// A connection that works.
pub(super) struct Dialled {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: Driver,
    pub(super) server: String,
}

/// Dials the same Redis again and again. No `Debug`, for it holds passwords.
pub(super) struct Dialler {
    place: Place,
    login: RedisConnectionInfo,
    secure: Option<Secure>,
    /// For each server dialled.
    pub(super) patience: Duration,
}

enum Place {
    One(Server),
    Sentinels { master_name: String, sentinels: Vec<Server>, login: RedisConnectionInfo },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

struct Secure {
    trust: Arc<ClientTrust>,
    identity: Option<ClientIdentity>,
}

impl Dialler {
    pub(super) fn new(config: &Config) -> Result<Self, RedisError> {
        let place = match &config.servers {
            Servers::Tcp(address) => Place::One(Server::parse(address, "redis.server.address")?),
            Servers::Unix(path) => Place::One(Server::Unix(path.clone())),
            Servers::Sentinel { addresses, .. } if addresses.is_empty() => {
                return Err(RedisError::NoSentinels);
            }
            Servers::Sentinel { master_name, addresses, password_file } => {
                let parse = |address: &String| Server::parse(address, "an item of redis.sentinel.addresses");
                let sentinels = addresses.iter().map(parse).collect::<Result<_, _>>()?;
                let login = login(None, password_file.as_deref())?;
                Place::Sentinels { master_name: master_name.clone(), sentinels, login }
            }
        };
        let files = |error| RedisError::Files(Arc::new(error));
        let secure = match &config.tls {
            None => None,
            Some(tls) => {
                let trust = ClientTrust::load(tls.ca_certificate_file.clone()).map_err(files)?;
                let identity =
                    tls.certificate.as_ref().map(ClientIdentity::load).transpose().map_err(files)?;
                Some(Secure { trust, identity })
            }
        };
        let login =
            login(config.username.as_deref(), config.password_file.as_deref())?.set_db(config.database);
        Ok(Self { place, login, secure, patience: config.dial_timeout })
    }

    /// For errors: which Redis is meant, wherever it is right now.
    pub(super) fn name(&self) -> String {
        match &self.place {
            Place::One(server) => server.to_string(),
            Place::Sentinels { master_name, .. } => format!("the sentinels' master {master_name}"),
        }
    }

    pub(super) async fn dial(&self) -> Result<Dialled, RedisError> {
        match &self.place {
            Place::One(server) => self.within(server, self.reach(server, &self.login)).await,
            Place::Sentinels { master_name, sentinels, login } => {
                let mut last = None;
                for sentinel in sentinels {
                    match self.within(sentinel, self.ask(sentinel, login, master_name)).await {
                        Ok(Some(master)) => {
                            return self.within(&master, self.reach(&master, &self.login)).await;
                        }
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
        login: &RedisConnectionInfo,
        master_name: &str,
    ) -> Result<Option<Server>, RedisError> {
        let Dialled { mut commands, mut driver, server } = self.reach(sentinel, login).await?;
        let mut question = ::redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(master_name);
        let answer = driven(&mut driver, question.query_async::<Option<(String, u16)>>(&mut commands)).await;
        let answer = answer.map_err(|source| RedisError::Failed { server, source })?;
        Ok(answer.map(|(host, port)| Server::Tcp { host, port }))
    }

    /// Connects, logs in and waits for a PING: a server that hangs accepts connections all the same.
    async fn reach(&self, server: &Server, login: &RedisConnectionInfo) -> Result<Dialled, RedisError> {
        let io = self.connect(server).await?;
        // Time-outs are the caller's: the library's own would be a second one.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let name = server.to_string();
        let refused = |source: ::redis::RedisError| {
            let login = source.kind() == ErrorKind::AuthenticationFailed
                || matches!(source.code(), Some("NOAUTH" | "WRONGPASS"));
            let server = name.clone();
            if login { RedisError::Refused { server, source } } else { RedisError::Failed { server, source } }
        };
        let (mut commands, driver) =
            MultiplexedConnection::new_with_config(login, io, config).await.map_err(refused)?;
        let mut driver: Driver = Box::pin(driver);
        let ping = ::redis::cmd("PING");
        driven(&mut driver, ping.query_async::<()>(&mut commands)).await.map_err(refused)?;
        Ok(Dialled { commands, driver, server: name })
    }

    async fn connect(&self, server: &Server) -> Result<Pin<Box<dyn Io>>, RedisError> {
        let failed = |source| RedisError::Connect { server: server.to_string(), source: Arc::new(source) };
        let (host, port) = match server {
            Server::Unix(path) => return Ok(Box::pin(UnixStream::connect(path).await.map_err(failed)?)),
            Server::Tcp { host, port } => (host, *port),
        };
        let io = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
        io.set_nodelay(true).map_err(failed)?;
        let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE);
        SockRef::from(&io).set_tcp_keepalive(&keepalive).map_err(failed)?;
        let Some(secure) = &self.secure else { return Ok(Box::pin(io)) };
        let trouble = |what: String| RedisError::Tls { server: server.to_string(), what };
        let name = ServerName::try_from(host.clone())
            .map_err(|_| trouble("its host is no name that a certificate can hold".to_owned()))?;
        let config = match &secure.identity {
            Some(identity) => secure.trust.config_as(identity, &[]),
            None => secure.trust.config(&[]),
        };
        let io = TlsConnector::from(config).connect(name, io).await.map_err(|error| {
            let explained = client::explain(&error, secure.trust.ca_given());
            // The words are those of a program with flags; here it is a key of the configuration.
            let explained =
                explained.map(|text| text.replace("--ca-cert-file", "redis.tls.ca_certificate_file"));
            trouble(explained.unwrap_or_else(|| format!("the handshake failed: {error}")))
        })?;
        Ok(Box::pin(io))
    }
}

/// An answer on a connection that nobody drives yet. Where the connection ends, that is the answer.
async fn driven<T>(driver: &mut Driver, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        () = driver => answer.await,
    }
}

fn login(username: Option<&str>, password_file: Option<&Path>) -> Result<RedisConnectionInfo, RedisError> {
    // The older protocol, which all servers know; nothing here needs the newer one.
    let login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let Some(path) = password_file else { return Ok(login) };
    let unreadable = |source| RedisError::PasswordFile { path: path.to_owned(), source: Arc::new(source) };
    let bad = |what| RedisError::BadPassword { path: path.to_owned(), what };
    let content = fs::read(path).map_err(unreadable)?;
    let content = std::str::from_utf8(&content).map_err(|_| bad("is not UTF-8; is it the right file?"))?;
    let password = content.strip_suffix('\n').unwrap_or(content);
    let password = password.strip_suffix('\r').filter(|_| content.ends_with('\n')).unwrap_or(password);
    if password.is_empty() {
        return Err(bad("is empty; where Redis wants no password, leave password_file out"));
    }
    let login = login.set_password(password);
    Ok(match username {
        Some(username) if !username.is_empty() => login.set_username(username),
        _ => login,
    })
}

impl Server {
    fn parse(address: &str, key: &'static str) -> Result<Self, RedisError> {
        let (host, port) = address.rsplit_once(':').ok_or(RedisError::Address(key))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let illegal = |host: &str| host.is_empty() || host.contains(['/', '@', '[', ']', ' ']);
        let host = match bracketed {
            Some(host) if !illegal(host) => host,
            None if !illegal(host) && !host.contains(':') => host,
            _ => return Err(RedisError::Address(key)),
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => Err(RedisError::Address(key)),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_and_what_else_it_may_hold_is_not_shown() {
        for (address, shown) in [
            ("redis:6379", Some("redis:6379")),
            ("[::1]:6379", Some("[::1]:6379")),
            ("redis", None),
            ("redis:", None),
            ("redis:0", None),
            (":6379", None),
            ("::1:6379", None),
            ("redis://user:hunter2@redis:6379", None),
            ("user:hunter2@redis:6379", None),
        ] {
            match Server::parse(address, "address") {
                Ok(server) => assert_eq!(Some(server.to_string().as_str()), shown),
                Err(error) => {
                    assert_eq!(shown, None, "{address}");
                    assert!(!error.to_string().contains("hunter2"));
                }
            }
        }
    }

    #[test]
    fn a_password_loses_one_newline_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        for (content, wanted) in [
            ("abc", Some("abc")),
            ("abc\n", Some("abc")),
            ("abc\r\n", Some("abc")),
            ("abc\r", Some("abc\r")),
            (" a b\n\n", Some(" a b\n")),
            ("\n", None),
            ("", None),
        ] {
            fs::write(&path, content).unwrap();
            let login = login(None, Some(&path));
            assert_eq!(login.ok().and_then(|login| login.password().map(str::to_owned)).as_deref(), wanted);
        }
    }
}
