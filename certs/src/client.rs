//! The dialling side: which CAs are trusted, as a rustls configuration. The system's roots and, added to
//! them, the bundle that the operator names. Before it: `--ca-cert-file`. After it: whoever dials takes
//! [`ClientTrust::config`] anew for each dial, and hands what fails to [`explain`]. There is no way here to
//! turn verification off.

mod explain;
mod identity;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::CertificateResult;
use tokio_util::sync::CancellationToken;

pub use self::explain::explain;
pub use self::identity::{ClientIdentity, Material};
use crate::CertError;
use crate::files::{self, Holds};
use crate::reload::{self, Outcome};

/// The CAs that a dialler trusts.
pub struct ClientTrust {
    ca_file: Option<PathBuf>,
    system: RootCertStore,
    current: ArcSwap<Current>,
}

struct Current {
    bundle: Arc<Vec<CertificateDer<'static>>>,
    /// Clones share one store of TLS sessions, so that dials with different ALPN lists still resume.
    config: ClientConfig,
}

impl ClientTrust {
    /// Reads the system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured) and adds the certificates
    /// of `ca_file`. System roots that cannot be read are a warning as long as anything is left to trust.
    ///
    /// # Errors
    /// A `ca_file` that cannot be read or holds no certificate; [`CertError::NoRoots`] where nothing is left
    /// to trust.
    pub fn load(ca_file: Option<PathBuf>) -> Result<Arc<ClientTrust>, CertError> {
        Self::with_system(rustls_native_certs::load_native_certs(), ca_file)
    }

    /// Trusts the certificates of `ca_file` and nobody else: for servers of one's own.
    ///
    /// # Errors
    /// A `ca_file` that cannot be read or holds no certificate.
    pub fn only(ca_file: PathBuf) -> Result<Arc<ClientTrust>, CertError> {
        let system = RootCertStore::empty();
        let current = Current::build(&system, Some(&ca_file))?;
        Ok(Arc::new(ClientTrust { ca_file: Some(ca_file), system, current: ArcSwap::from_pointee(current) }))
    }

    fn with_system(
        native: CertificateResult,
        ca_file: Option<PathBuf>,
    ) -> Result<Arc<ClientTrust>, CertError> {
        let mut system = RootCertStore::empty();
        let (_, ignored) = system.add_parsable_certificates(native.certs);
        let trouble = match native.errors.as_slice() {
            [] if ignored > 0 => format!("{ignored} of the system's CA certificates cannot be parsed"),
            [] => "the system has no CA certificates".to_owned(),
            [first, ..] => format!("the system's CA certificates cannot all be read ({first})"),
        };
        if ca_file.is_none() && system.is_empty() {
            return Err(CertError::NoRoots { system: trouble });
        }
        if system.is_empty() || ignored > 0 || !native.errors.is_empty() {
            tracing::warn!(usable = system.len(), "{trouble}");
        }
        let current = Current::build(&system, ca_file.as_deref())?;
        Ok(Arc::new(ClientTrust { ca_file, system, current: ArcSwap::from_pointee(current) }))
    }

    /// The current trust as a rustls configuration for TLS 1.2 and 1.3 without a client certificate. `alpn`
    /// is in order of preference. It is a snapshot: take it anew for each dial, it is cheap.
    pub fn config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut config = self.current.load().config.clone();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// As [`ClientTrust::config`], and shows this certificate to a server that asks for one.
    pub fn config_as(&self, identity: &ClientIdentity, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut config = self.current.load().config.clone();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.client_auth_cert_resolver = identity.resolver();
        // A resumed session keeps what was shown when it began: a certificate that was replaced would live on in it.
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// The certificates of the CA file as they are now, for TLS that is not ours. The same `Arc` as before means that
    /// nothing changed.
    pub fn bundle(&self) -> Arc<Vec<CertificateDer<'static>>> {
        Arc::clone(&self.current.load().bundle)
    }

    /// Whether a CA file was given: what [`explain`] asks for.
    pub fn ca_given(&self) -> bool {
        self.ca_file.is_some()
    }

    /// Reloads the CA file when it changes, until `stop`; a bad change is logged as an error and the last
    /// good bundle stays. The system's roots are read once, at the start. Spawn it once; without a CA file it
    /// ends at once.
    pub fn keep_fresh(self: &Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let trust = Arc::clone(self);
        async move {
            if let Some(path) = trust.ca_file.clone() {
                reload::keep_fresh("CA file", vec![path], stop, || trust.reload()).await;
            }
        }
    }

    fn reload(&self) -> Outcome {
        match Current::build(&self.system, self.ca_file.as_deref()) {
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
    fn build(system: &RootCertStore, ca_file: Option<&Path>) -> Result<Current, CertError> {
        let mut roots = system.clone();
        let mut bundle = Vec::new();
        if let Some(path) = ca_file {
            for found in files::load_certificates(path, Holds::CaBundle)? {
                roots.add(found.der.clone()).map_err(|source| CertError::BadCertificate {
                    holds: Holds::CaBundle,
                    path: path.to_owned(),
                    line: found.line,
                    source,
                })?;
                bundle.push(found.der);
            }
        }
        let config = ClientConfig::builder_with_provider(crate::provider())
            .with_protocol_versions(crate::VERSIONS)
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Current { bundle: Arc::new(bundle), config })
    }
}

impl fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTrust")
            .field("ca_file", &self.ca_file)
            .field("system", &self.system.len())
            .finish()
    }
}
