//! One HTTP/2 connection for each server and token, opened by the first call and kept; calls share it. Bounded: Rails
//! decides which servers there are, but a mistake there must not exhaust this process. It makes no calls itself.

use super::{Server, address::Address, dial::Dialler, error::GitalyError};
use crate::rate::{Bucket, Rate};
use postern_certs::client::ClientTrust;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// An installation with more servers than this has more than one broker too.
const CONNECTIONS_MAX: usize = 256;
/// Polling uses a connection several times a minute; one unused for so long is of a moved repository or an old token.
const IDLE: Duration = Duration::from_secs(600);
/// A file whose reader has stalled must not stop the other calls to its server, so the connection's window is as large as
/// HTTP/2 allows: what is held unread is bounded by the streams, and few files are read at a time.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What kas does, so that a firewall between forgets nothing.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Between two warnings that looks at a server are skipped.
const TELL_AGAIN: Duration = Duration::from_secs(3600);
/// Then a server that lacked a call may have been upgraded.
const ASK_AGAIN: Duration = Duration::from_secs(3600);

pub(super) struct Pool {
    known: Mutex<Known>,
    trust: Arc<ClientTrust>,
    user_agent: String,
}

struct Known {
    connections: HashMap<Key, Arc<Connection>>,
    /// Of each of them.
    rate: Rate,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    address: String,
    token: [u8; 32],
}

pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) bucket: Bucket,
    used: Mutex<Instant>,
    /// When the server said that it cannot look up commits.
    lacks_find_commit: Mutex<Option<Instant>>,
    told_of_skips: Mutex<Option<Instant>>,
}

impl Connection {
    pub(super) fn may_find_commits(&self) -> bool {
        let lacks = self.lacks_find_commit.lock().unwrap_or_else(PoisonError::into_inner);
        lacks.is_none_or(|since| since.elapsed() >= ASK_AGAIN)
    }

    pub(super) fn cannot_find_commits(&self) {
        *self.lacks_find_commit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it is time to say that looks are skipped.
    pub(super) fn tells_of_skips(&self) -> bool {
        let mut told = self.told_of_skips.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| told.elapsed() >= TELL_AGAIN);
        if due {
            *told = Some(Instant::now());
        }
        due
    }

    fn last_used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(super) fn new(trust: Arc<ClientTrust>, user_agent: String, rate: Rate) -> Self {
        Self { known: Mutex::new(Known { connections: HashMap::new(), rate }), trust, user_agent }
    }

    /// Of the connections that there are, and of those that come.
    pub(super) fn set_rate(&self, rate: Rate) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.rate = rate;
        for connection in known.connections.values() {
            connection.bucket.set(rate);
        }
    }

    /// The connection to a server; dialled by its first call, and again by the first call after it broke.
    pub(super) fn connection(&self, server: &Server) -> Result<Arc<Connection>, GitalyError> {
        let key = Key { address: server.address.clone(), token: server.token.hash() };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { connections, rate } = &mut *known;
        if let Some(known) = connections.get(&key) {
            *known.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return Ok(Arc::clone(known));
        }
        let connection = Arc::new(self.lazy(server, *rate)?);
        connections.retain(|_, connection| connection.last_used().elapsed() < IDLE);
        if connections.len() >= CONNECTIONS_MAX {
            // Calls that are using it hold on to it until they end.
            let oldest = connections.iter().min_by_key(|(_, connection)| connection.last_used());
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                connections.remove(&oldest);
            }
        }
        connections.insert(key, Arc::clone(&connection));
        Ok(connection)
    }

    fn lazy(&self, server: &Server, rate: Rate) -> Result<Connection, GitalyError> {
        let bad = |reason| GitalyError::Address { address: server.address.clone(), reason };
        let address = Address::parse(&server.address).map_err(bad)?;
        let origin = address.origin().map_err(bad)?;
        let endpoint = Endpoint::from_static("http://gitaly.invalid")
            .origin(origin)
            .user_agent(self.user_agent.as_str())
            .map_err(|error| bad(error.to_string()))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let dialler = Dialler { address, trust: Arc::clone(&self.trust) };
        Ok(Connection {
            channel: endpoint.connect_with_connector_lazy(dialler),
            bucket: Bucket::new(rate, super::PATIENCE),
            used: Mutex::new(Instant::now()),
            lacks_find_commit: Mutex::default(),
            told_of_skips: Mutex::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitaly::GitalyToken;

    fn pool() -> Pool {
        postern_certs::install_provider();
        let rate = Rate { per_second: 1.0, burst: 1 };
        let ca = postern_certs::dev::Ca::new();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, ca.pem()).unwrap();
        Pool::new(ClientTrust::load(Some(file)).unwrap(), "gitlab-kas/v0/test".into(), rate)
    }

    fn server(port: usize, token: &str) -> Server {
        let address = format!("tcp://localhost:{port}");
        Server { address, token: GitalyToken::new(token), features: Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_shared_by_address_and_token() {
        let pool = pool();
        let one = pool.connection(&server(1, "a")).unwrap();
        assert!(Arc::ptr_eq(&one, &pool.connection(&server(1, "a")).unwrap()));
        assert!(!Arc::ptr_eq(&one, &pool.connection(&server(1, "b")).unwrap()));
        assert!(!Arc::ptr_eq(&one, &pool.connection(&server(2, "a")).unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pool_is_bounded_and_forgets_the_oldest_first() {
        let pool = pool();
        let first = pool.connection(&server(1, "")).unwrap();
        for port in 2..=CONNECTIONS_MAX + 1 {
            tokio::time::advance(Duration::from_millis(1)).await;
            pool.connection(&server(port, "")).unwrap();
        }
        assert_eq!(pool.known.lock().unwrap().connections.len(), CONNECTIONS_MAX);
        assert!(!Arc::ptr_eq(&first, &pool.connection(&server(1, "")).unwrap()));
        tokio::time::advance(IDLE).await;
        pool.connection(&server(9_999, "")).unwrap();
        assert_eq!(pool.known.lock().unwrap().connections.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_holds_for_connections_that_are_there_and_for_those_that_come() {
        let pool = pool();
        let there = pool.connection(&server(1, "")).unwrap();
        there.bucket.wait(None).await.unwrap();
        pool.set_rate(Rate { per_second: 100.0, burst: 2 });
        for connection in [there, pool.connection(&server(2, "")).unwrap()] {
            let begin = Instant::now();
            for _ in 0..3 {
                connection.bucket.wait(None).await.unwrap();
            }
            assert!(begin.elapsed() <= Duration::from_millis(25), "{:?}", begin.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lacked_a_call_is_asked_again_after_an_hour() {
        let connection = pool().connection(&server(1, "")).unwrap();
        assert!(connection.may_find_commits());
        connection.cannot_find_commits();
        assert!(!connection.may_find_commits());
        tokio::time::advance(ASK_AGAIN).await;
        assert!(connection.may_find_commits());
    }

    #[tokio::test(start_paused = true)]
    async fn skipped_looks_are_told_of_once_an_hour() {
        let connection = pool().connection(&server(1, "")).unwrap();
        assert!(connection.tells_of_skips());
        assert!(!connection.tells_of_skips());
        tokio::time::advance(TELL_AGAIN).await;
        assert!(connection.tells_of_skips());
    }
}
