//! Certificates that dialling clients show to a listener (mutual TLS): which CAs are believed, kept fresh while their
//! file changes. Before it: the path of a CA bundle. After it: `server` puts it into the rustls configuration. It
//! decides who may finish a handshake, never what that client may do.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::files::{self, Holds};
use crate::reload::{self, Outcome};
use crate::{CertError, provider};

#[cfg(test)]
mod tests;

/// Whether a client must show a certificate. One that is shown must be good either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without any is served, too.
    Optional,
    /// A client without any is refused during the handshake.
    Required,
}

/// The CAs whose client certificates a listener believes.
pub struct ClientCas {
    file: PathBuf,
    auth: ClientAuth,
    current: ArcSwap<Current>,
}

struct Current {
    bundle: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientCas {
    /// Reads the bundle.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no certificate that can be a CA.
    pub fn load(file: PathBuf, auth: ClientAuth) -> Result<Arc<ClientCas>, CertError> {
        let current = ArcSwap::from_pointee(Current::build(&file)?);
        Ok(Arc::new(ClientCas { file, auth, current }))
    }

    /// Reloads the bundle when its file changes, until `stop`; a bad change is logged as an error and the last good
    /// one stays. Connections that are open stay open. Spawn it once.
    pub fn keep_fresh(self: &Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let cas = Arc::clone(self);
        async move {
            reload::keep_fresh("client CA file", vec![cas.file.clone()], stop, || cas.reload()).await;
        }
    }

    fn reload(&self) -> Outcome {
        match Current::build(&self.file) {
            Ok(new) if new.bundle == self.current.load().bundle => {
                Outcome { replaced: false, failures: vec![] }
            }
            Ok(new) => {
                self.current.store(Arc::new(new));
                Outcome { replaced: true, failures: vec![] }
            }
            Err(error) => Outcome { replaced: false, failures: vec![error] },
        }
    }
}

impl Current {
    fn build(file: &Path) -> Result<Current, CertError> {
        let mut roots = RootCertStore::empty();
        let mut bundle = Vec::new();
        for found in files::load_certificates(file, Holds::CaBundle)? {
            roots.add(found.der.clone()).map_err(|source| CertError::BadCertificate {
                holds: Holds::CaBundle,
                path: file.to_owned(),
                line: found.line,
                source,
            })?;
            bundle.push(found.der);
        }
        // Whether a certificate is needed at all is asked of `ClientCas`.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .expect("there is a root, and no revocation list that could be malformed");
        Ok(Current { bundle, verifier })
    }
}

impl ClientCertVerifier for ClientCas {
    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    /// None: they would have to outlive a reload. A client then shows the certificate it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.current.load().verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.load().verifier.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.load().verifier.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.load().verifier.supported_verify_schemes()
    }
}

impl fmt::Debug for ClientCas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCas").field("file", &self.file).field("auth", &self.auth).finish()
    }
}

/// What a log may say about a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of the subject as encoded, in hex: the same for a renewed certificate.
    pub subject: String,
    /// The serial number, in hex, as its CA knows it.
    pub serial: String,
}

impl ClientCertificate {
    /// Reads the client's own certificate, the first of the chain that it showed.
    ///
    /// # Errors
    /// It cannot be parsed, which a handshake has ruled out before.
    pub fn of(der: &CertificateDer<'_>) -> Result<ClientCertificate, Error> {
        let cert = webpki::EndEntityCert::try_from(der)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(ClientCertificate { subject: hex(&Sha256::digest(cert.subject())), serial: hex(cert.serial()) })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
