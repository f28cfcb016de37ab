//! TLS of one listener: certificates from files, by SNI, reloaded when they change.
//!
//! After accept, before the sniff. Offers HTTP/2 and HTTP/1.1; everything else about TLS is in `certs`.

use crate::config::Tls;
use crate::lane;
use crate::listen::socket::Raw;
use bytes::BytesMut;
use postern_certs::mutual::{ClientCas, ClientCertificate};
use postern_certs::server::ServerIdentity;
use postern_certs::{CertError, CertFiles};
use postern_wire::sniff::Rewound;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// First byte of every TLS connection.
const HANDSHAKE: u8 = 0x16;
/// A client's first message fits, so that one read takes it.
const HELLO: usize = 2048;

const NOT_TLS: &str = "this port speaks TLS; dial it with https://, wss:// or grpcs://\n";

/// A connection whose TLS ends here.
pub type TlsStream = tokio_rustls::server::TlsStream<Rewound<Raw>>;

/// Ends TLS of one listener. Sessions are resumed by ticket where clients show no certificates.
#[derive(Clone)]
pub struct Terminator {
    identity: Arc<ServerIdentity>,
    clients: Option<Arc<ClientCas>>,
    acceptor: TlsAcceptor,
}

/// Why a TLS connection did not come about. All are the dialler's doing, or the network's.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Closed before the first byte, as health checks of load balancers do.
    #[error("closed before it sent anything")]
    Silent,
    /// The client did not finish its handshake.
    #[error("no complete TLS handshake within {0:?}")]
    TooSlow(Duration),
    /// The first byte is not TLS; the client was told in clear text.
    #[error("clear text on a TLS port")]
    NotTls,
    /// The client does not trust the certificate, shows none that we trust, or speaks no TLS that we do.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
}

impl Terminator {
    /// Reads the files. The first pair serves names that no other pair has.
    ///
    /// # Errors
    /// The first file that cannot be used, by name.
    pub fn load(tls: &Tls) -> Result<Self, CertError> {
        let files = tls
            .certificates
            .iter()
            .map(|pair| CertFiles { certificate: pair.certificate_file.clone(), key: pair.key_file.clone() })
            .collect();
        let identity = ServerIdentity::load(files)?;
        let clients = match &tls.clients {
            Some((file, auth)) => Some(ClientCas::load(file.clone(), *auth)?),
            None => None,
        };
        let config = identity.listener_config(&[b"h2", b"http/1.1"], tls.min_version, clients.clone());
        Ok(Self { identity, clients, acceptor: TlsAcceptor::from(config) })
    }

    /// Takes changed files into use until `stop`. Spawn it once per listener.
    pub fn keep_fresh(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let identity = self.identity.keep_fresh(stop.clone());
        let clients = self.clients.as_ref().map(|clients| clients.keep_fresh(stop));
        async move {
            let clients = async {
                if let Some(clients) = clients {
                    clients.await;
                }
            };
            tokio::join!(identity, clients);
        }
    }

    /// Does the handshake; all of it within `limit`, however many reads it takes.
    ///
    /// # Errors
    /// See [`TlsError`]; the connection is closed then.
    pub async fn accept(&self, io: Rewound<Raw>, limit: Duration) -> Result<TlsStream, TlsError> {
        tokio::time::timeout(limit, self.handshake(io)).await.unwrap_or(Err(TlsError::TooSlow(limit)))
    }

    async fn handshake(&self, io: Rewound<Raw>) -> Result<TlsStream, TlsError> {
        let (mut raw, mut read) = io.into_inner();
        if read.is_empty() {
            read = BytesMut::with_capacity(HELLO);
            if raw.read_buf(&mut read).await.map_err(TlsError::Handshake)? == 0 {
                return Err(TlsError::Silent);
            }
        }
        // Somebody who forgot the `s` of `https` should read more than a broken record.
        if read[0] != HANDSHAKE {
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{NOT_TLS}",
                NOT_TLS.len()
            );
            // It may be anything that talks to us; whether it reads the answer does not matter.
            let _ = raw.write_all(answer.as_bytes()).await;
            let _ = raw.shutdown().await;
            return Err(TlsError::NotTls);
        }
        // Half a millisecond of work: a storm of them must not hold up the streams that are open.
        lane::in_turns(self.acceptor.accept(Rewound::new(raw, read))).await.map_err(TlsError::Handshake)
    }
}

/// The certificate that the client showed, for the log.
pub fn client_certificate(stream: &TlsStream) -> Option<Arc<ClientCertificate>> {
    let shown = stream.get_ref().1.peer_certificates()?.first()?;
    // What a handshake took can be parsed.
    ClientCertificate::of(shown).ok().map(Arc::new)
}

impl fmt::Debug for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminator")
            .field("identity", &self.identity)
            .field("clients", &self.clients)
            .finish()
    }
}
