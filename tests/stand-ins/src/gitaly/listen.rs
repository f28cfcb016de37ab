//! Where the stand-in listens: accepts, does the TLS handshake and hands the streams to the gRPC server.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{Options, Tls};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES_MAX: usize = 64;

type Connections = ReceiverStream<io::Result<Connection>>;

/// The address that clients are to use, and who connects to it.
pub(super) async fn listen(options: &Options, stop: CancellationToken) -> io::Result<(String, Connections)> {
    let (ready, connections) = mpsc::channel(HANDSHAKES_MAX);
    let connections = ReceiverStream::new(connections);
    if let Some(path) = &options.socket {
        let listener = UnixListener::bind(path)?;
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((io, _)) = listener.accept().await {
                if ready.send(Ok(Connection(Box::pin(io)))).await.is_err() {
                    break;
                }
            }
        }));
        return Ok((format!("unix:{}", path.display()), connections));
    }
    let acceptor = options.tls.as_ref().map(acceptor).transpose()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let scheme = if acceptor.is_some() { "tls" } else { "tcp" };
    let address = format!("{scheme}://{}", listener.local_addr()?);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Ok((io, _)) = listener.accept().await {
            let Some(acceptor) = acceptor.clone() else {
                if ready.send(Ok(Connection(Box::pin(io)))).await.is_err() {
                    break;
                }
                continue;
            };
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { break };
            let ready = ready.clone();
            tokio::spawn(async move {
                let _permit = permit;
                if let Ok(Ok(io)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(io)).await {
                    let _ = ready.send(Ok(Connection(Box::pin(io)))).await;
                }
            });
        }
    }));
    Ok((address, connections))
}

fn acceptor(tls: &Tls) -> io::Result<TlsAcceptor> {
    let bad = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let certificates = CertificateDer::pem_slice_iter(tls.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(&error))?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).map_err(|error| bad(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| bad(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// A client's byte stream, whatever it is wrapped in.
pub(super) struct Connection(Pin<Box<dyn Io>>);

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}
