//! The Kubernetes API listener: HTTP/1.1 with upgrades, as the edge and CI jobs speak it. After it comes
//! `kubernetes_api.rs`; it authenticates nobody.

use crate::{
    kubernetes_api::{KubernetesApi, Transport},
    listeners::socket::{Accepted, Listener, Peer},
};
use futures::FutureExt;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_wire::metadata::LEAVING;
use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the end of one request to the complete head of the next, idle time included; longer than the edge keeps
/// unused connections, so that the edge closes first.
const NEXT_HEAD: Duration = Duration::from_secs(75);
/// Larger heads are answered with 431.
const MAX_HEAD: usize = 64 * 1024;

/// After `stop`, so long is still served what comes, each answer saying that its connection closes and that this broker
/// leaves. A request that is on its way when a connection or a listener closes is lost, and its sender cannot tell
/// whether anybody has seen it; this is far longer than any way, and longer than an edge needs to hear of it.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Connections that are still taken from the queue when the last call is over.
const LATE: usize = 1024;

/// Accepts until a moment after `stop` fires; connections then finish the request they carry and close.
pub async fn serve(
    listener: Arc<Listener>,
    api: Arc<KubernetesApi>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    // It waits for nobody where nobody is connected.
    let open = TaskTracker::new();
    open.close();
    let closing = CancellationToken::new();
    let last_call = async {
        stop.cancelled().await;
        tokio::select! {
            () = open.wait() => {}
            () = sleep(LAST_CALL) => {}
        }
        closing.cancel();
    };
    let accepting = async {
        let mut late = 0..LATE;
        let mut next = async || match listener.accept(&closing).await {
            Some(accepted) => Some(accepted),
            // Whoever is in the queue already would be cut off with the listener.
            None => {
                late.next()?;
                yield_now().await;
                listener.accept(&CancellationToken::new()).now_or_never()?
            }
        };
        while let Some(accepted) = next().await {
            let (api, stop, closing) = (Arc::clone(&api), stop.clone(), closing.clone());
            let (identity, open) = (listener.identity.clone(), open.token());
            let transport = match accepted.peer {
                Peer::Tcp(peer) => Transport(Some(peer.ip())),
                Peer::Unix => Transport(None),
            };
            tasks.spawn(async move {
                let _open = open;
                match identity {
                    None => connection(accepted, transport, api, stop, closing).await,
                    Some(identity) => {
                        let peer = accepted.peer;
                        let acceptor = TlsAcceptor::from(identity.config(&[b"http/1.1"]));
                        match handshake(acceptor, accepted).await {
                            Ok(stream) => connection(stream, transport, api, stop, closing).await,
                            Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        }
                    }
                }
            });
        }
    };
    tokio::join!(last_call, accepting);
}

async fn handshake(
    acceptor: TlsAcceptor,
    accepted: Accepted,
) -> std::io::Result<tokio_rustls::server::TlsStream<Accepted>> {
    timeout(HANDSHAKE, acceptor.accept(accepted)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    transport: Transport,
    api: Arc<KubernetesApi>,
    stop: CancellationToken,
    closing: CancellationToken,
) {
    let is_used = Arc::new(AtomicBool::new(false));
    let used = Arc::clone(&is_used);
    let service = service_fn(move |mut request: Request<Incoming>| {
        used.store(true, Relaxed);
        request.extensions_mut().insert(transport);
        let (api, stop) = (Arc::clone(&api), stop.clone());
        async move {
            let mut response = api.serve(request).await;
            if stop.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                headers.insert(LEAVING, HeaderValue::from_static("1"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD).max_buf_size(MAX_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            // Who has connected just now is about to ask; hyper would close the connection of somebody who has not yet.
            let asks = async {
                if !is_used.load(Relaxed) {
                    sleep(LAST_CALL).await;
                }
            };
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = asks => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::error::chain(&error), "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        app::PROGRAM,
        auth::Identities,
        config::{ListenAddress, ListenConfig},
        drain::Running,
        identities::IdentitySource,
        kubernetes_api::Cors,
    };
    use std::{io::Write, net::SocketAddr};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        task::JoinHandle,
        time::Instant,
    };

    /// The listener of a broker that knows nobody: each request is answered with 401. It has a host of its own, so that
    /// nobody else is given its port when it is free again.
    async fn listening(
        host: [u8; 4],
    ) -> (SocketAddr, CancellationToken, JoinHandle<()>, tempfile::NamedTempFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "agents: []\ncallers: []").unwrap();
        let config = ListenConfig { address: ListenAddress::Tcp((host, 0).into()), tls: None };
        let listener = Listener::bind(&config, "kubernetes_api").await.unwrap();
        let ListenAddress::Tcp(address) = listener.address else { panic!("it is TCP") };
        let api = KubernetesApi {
            identities: Identities::File(IdentitySource::load(file.path().to_owned()).unwrap()),
            cors: Cors::NoCookies,
            counted: Arc::new(()),
            router: crate::fleet::router::Router { registry: Arc::default(), fleet: None },
            url_path_prefix: "/".into(),
            policies: postern_policies::Live::open(None).unwrap(),
            agent_wait: Duration::ZERO,
            proxies: crate::kubernetes_api::Proxies::default(),
            program: PROGRAM,
            metrics: Arc::default(),
            under_way: Running::default(),
            tracing: None,
        };
        let stop = CancellationToken::new();
        let serving =
            tokio::spawn(serve(Arc::new(listener), Arc::new(api), stop.clone(), TaskTracker::new()));
        (address, stop, serving, file)
    }

    /// The head of the answer to a request.
    async fn ask(caller: &mut TcpStream) -> String {
        caller.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(caller.read_buf(&mut answer).await.unwrap(), 0, "it closed without an answer");
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    }

    #[tokio::test]
    async fn a_listener_that_leaves_answers_what_still_comes_and_says_so() {
        let (address, stop, serving, _file) = listening([127, 0, 0, 2]).await;
        let (mut used, mut unused) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let before = ask(&mut used).await;
        assert!(before.starts_with("http/1.1 401") && !before.contains(LEAVING), "{before}");
        let frozen = crate::stage::freeze();
        stop.cancel();
        // On a kept connection, on one that has carried nothing yet, and on a new one.
        let mut new = TcpStream::connect(address).await.unwrap();
        for caller in [&mut used, &mut unused, &mut new] {
            let after = ask(caller).await;
            assert!(after.starts_with("http/1.1 401"), "{after}");
            assert!(after.contains("connection: close") && after.contains(LEAVING), "{after}");
            assert_eq!(caller.read(&mut [0]).await.unwrap(), 0, "it is closed");
        }
        drop(frozen);
        let begin = Instant::now();
        serving.await.unwrap();
        assert!(begin.elapsed() < LAST_CALL, "nobody is connected any more");
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_idle_caller_is_closed_after_the_last_call_and_nobody_is_waited_for_without_one() {
        let (address, stop, serving, _file) = listening([127, 0, 0, 3]).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        let begin = Instant::now();
        stop.cancel();
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
        assert!(begin.elapsed() >= LAST_CALL);
        serving.await.unwrap();

        let (_, stop, serving, _file) = listening([127, 0, 0, 3]).await;
        tokio::time::pause();
        let begin = Instant::now();
        stop.cancel();
        serving.await.unwrap();
        assert!(begin.elapsed() < LAST_CALL, "nobody is connected");
    }
}
