//! TLS of one listener: certificates from files, by SNI, reloaded when they change.
//!
//! After accept, before the sniff. Offers HTTP/2 and HTTP/1.1; everything else about TLS is in `certs`.

use crate::config::Certificate;
use postern_certs::server::ServerIdentity;
use postern_certs::{CertError, CertFiles};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// First byte of every TLS connection.
const HANDSHAKE: u8 = 0x16;

const NOT_TLS: &str = "this port speaks TLS; dial it with https://, wss:// or grpcs://\n";

/// Ends TLS of one listener.
#[derive(Clone)]
pub struct Terminator {
    identity: Arc<ServerIdentity>,
    acceptor: TlsAcceptor,
}

/// Why a TLS connection did not come about. All are the dialler's doing, or the network's.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The client did not finish its handshake.
    #[error("no complete TLS handshake within {0:?}")]
    TooSlow(Duration),
    /// The first byte is not TLS; the client was told in clear text.
    #[error("clear text on a TLS port")]
    NotTls,
    /// The client does not trust the certificate, or speaks no TLS that we do.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
}

impl Terminator {
    /// Reads the files. The first pair serves names that no other pair has.
    pub fn load(certificates: &[Certificate]) -> Result<Self, CertError> {
        let files = certificates
            .iter()
            .map(|pair| CertFiles { certificate: pair.certificate_file.clone(), key: pair.key_file.clone() })
            .collect();
        let identity = ServerIdentity::load(files)?;
        let acceptor = TlsAcceptor::from(identity.config(&[b"h2", b"http/1.1"]));
        Ok(Self { identity, acceptor })
    }

    pub fn identity(&self) -> &Arc<ServerIdentity> {
        &self.identity
    }

    /// Does the handshake within `limit`.
    pub async fn accept(&self, tcp: TcpStream, limit: Duration) -> Result<TlsStream<TcpStream>, TlsError> {
        tokio::time::timeout(limit, self.handshake(tcp)).await.unwrap_or(Err(TlsError::TooSlow(limit)))
    }

    async fn handshake(&self, mut tcp: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        let mut first = [0];
        // Somebody who forgot the `s` of `https` should read more than a broken record.
        if tcp.peek(&mut first).await.map_err(TlsError::Handshake)? == 1 && first[0] != HANDSHAKE {
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{NOT_TLS}",
                NOT_TLS.len()
            );
            // It may be anything that talks to us; whether it reads the answer does not matter.
            let _ = tcp.write_all(answer.as_bytes()).await;
            let _ = tcp.shutdown().await;
            return Err(TlsError::NotTls);
        }
        self.acceptor.accept(tcp).await.map_err(TlsError::Handshake)
    }
}
