//! The Kubernetes API listener: HTTP/1.1 with upgrades, as the edge and CI jobs speak it. After it comes
//! `kubernetes_api.rs`; it authenticates nobody.

use crate::{
    kubernetes_api::KubernetesApi,
    listeners::socket::{Accepted, Listener},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the end of one request to the complete head of the next, idle time included; longer than the edge keeps
/// unused connections, so that the edge closes first.
const NEXT_HEAD: Duration = Duration::from_secs(75);
/// Larger heads are answered with 431.
const MAX_HEAD: usize = 64 * 1024;

/// Accepts until `stop` fires; connections then finish the request they carry and close.
pub async fn serve(
    listener: Arc<Listener>,
    api: Arc<KubernetesApi>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    while let Some(accepted) = listener.accept(&stop).await {
        let (api, stop) = (Arc::clone(&api), stop.clone());
        let identity = listener.identity.clone();
        tasks.spawn(async move {
            match identity {
                None => connection(accepted, api, stop).await,
                Some(identity) => {
                    let peer = accepted.peer;
                    let acceptor = TlsAcceptor::from(identity.config(&[b"http/1.1"]));
                    match handshake(acceptor, accepted).await {
                        Ok(stream) => connection(stream, api, stop).await,
                        Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    }
                }
            }
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    accepted: Accepted,
) -> std::io::Result<tokio_rustls::server::TlsStream<Accepted>> {
    timeout(HANDSHAKE, acceptor.accept(accepted)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    api: Arc<KubernetesApi>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.serve(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD).max_buf_size(MAX_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::error::chain(&error), "connection ended");
    }
}
