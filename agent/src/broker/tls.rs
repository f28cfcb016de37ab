//! TLS to the broker (or to a proxy): trusted roots as they are on disk now, the name to check, ALPN.
//! Before it: a TCP connection. After it: a WebSocket upgrade or HTTP/2.

use postern_certs::client::{self, ClientTrust};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{io, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A handshake that takes longer than this will not end.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How servers are checked.
pub struct Tls {
    /// System roots and the bundle of `--ca-cert-file`, kept fresh by its own task.
    pub trust: Arc<ClientTrust>,
    /// `--kas-insecure-skip-tls-verify`: any certificate will do.
    pub skip_verify: bool,
}

/// Why there is no encrypted connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The name to check is neither a DNS name nor an IP address.
    #[error("{0:?} cannot be the name in a certificate")]
    Name(String),
    /// The handshake failed and it is known why.
    #[error("TLS to {host} failed: {why}")]
    Explained {
        /// `host:port` of the server.
        host: String,
        /// One line.
        why: String,
        /// What to do about it, or empty.
        fix: String,
    },
    /// The handshake failed in some other way.
    #[error("TLS to {host} failed")]
    Handshake {
        /// `host:port` of the server.
        host: String,
        #[source]
        source: io::Error,
    },
    /// Nothing came back.
    #[error("TLS to {host} did not finish within {HANDSHAKE:?}")]
    Slow {
        /// Who stayed silent.
        host: String,
    },
    /// gRPC over TLS needs HTTP/2, and the server did not choose it.
    #[error("{host} did not negotiate HTTP/2 (ALPN h2)")]
    NotHttp2 {
        /// Who it was.
        host: String,
    },
}

impl Tls {
    /// Does a handshake that must end with the name and one of the protocols agreed on. Errors say `target`.
    pub async fn connect<S>(
        &self,
        io: S,
        target: &str,
        name: &str,
        alpn: &[&[u8]],
    ) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let host = || target.to_owned();
        let server = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let connector = TlsConnector::from(self.config(alpn));
        match tokio::time::timeout(HANDSHAKE, connector.connect(server, io)).await {
            Err(_) => Err(TlsError::Slow { host: host() }),
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(failure(host(), alpn, source, self.trust.ca_given())),
        }
    }

    fn config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        if !self.skip_verify {
            return self.trust.config(alpn);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }
}

fn failure(host: String, alpn: &[&[u8]], source: io::Error, ca_given: bool) -> TlsError {
    use rustls::{AlertDescription::NoApplicationProtocol, Error::AlertReceived};
    let cause = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if alpn == [b"h2"] && matches!(cause, Some(AlertReceived(NoApplicationProtocol))) {
        return TlsError::NotHttp2 { host };
    }
    match client::explain(&source, ca_given) {
        Some(line) => {
            // What happened, and mostly what to do.
            let (why, fix) = line.split_once("; ").unwrap_or((&line, ""));
            TlsError::Explained { host, why: why.to_owned(), fix: fix.to_owned() }
        }
        None => TlsError::Handshake { host, source },
    }
}

/// For `--kas-insecure-skip-tls-verify` alone: the peer must hold the key of its certificate, whatever that says.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
