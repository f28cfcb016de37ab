//! What a dialler shows to servers that want to know who dials: a certificate and its key, from files. Before it:
//! the paths. After it: [`ClientTrust::config_as`](super::ClientTrust::config_as). Reloads happen underneath; a bad
//! change never takes a good certificate out of use.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::reload::{self, Outcome};
use crate::{CertError, CertFiles};

/// A certificate and its key, for servers that want to know who dials.
#[derive(Clone)]
pub struct ClientIdentity(Arc<Shown>);

struct Shown {
    files: CertFiles,
    current: ArcSwap<Material>,
}

/// One version of the files.
pub struct Material {
    certified: Arc<CertifiedKey>,
    key: PrivateKeyDer<'static>,
}

impl ClientIdentity {
    /// Reads both files.
    ///
    /// # Errors
    /// What is wrong with one of them, or that they do not belong together.
    pub fn load(files: &CertFiles) -> Result<Self, CertError> {
        let current = ArcSwap::from_pointee(Material::load(files)?);
        Ok(Self(Arc::new(Shown { files: files.clone(), current })))
    }

    /// Reloads both files when one changes, until `stop`; a bad change is logged as an error and the last good pair
    /// stays. Reloads take effect in configurations handed out before. Spawn it once.
    pub fn keep_fresh(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let shown = Arc::clone(&self.0);
        async move {
            let paths = vec![shown.files.certificate.clone(), shown.files.key.clone()];
            reload::keep_fresh("client certificate", paths, stop, || shown.reload()).await;
        }
    }

    /// What is shown now, for TLS that is not ours. The same `Arc` as before means that nothing changed.
    pub fn material(&self) -> Arc<Material> {
        self.0.current.load_full()
    }

    #[cfg(test)]
    pub(super) fn reload(&self) -> Outcome {
        self.0.reload()
    }

    pub(super) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::clone(&self.0) as Arc<dyn ResolvesClientCert>
    }
}

impl Material {
    fn load(files: &CertFiles) -> Result<Self, CertError> {
        let certified = files::load_pair(files)?.certified;
        Ok(Self { certified, key: files::load_key(&files.key)? })
    }

    /// The chain, DER, the own certificate first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The private key, DER. A secret.
    pub fn key(&self) -> &[u8] {
        self.key.secret_der()
    }
}

impl Shown {
    fn reload(&self) -> Outcome {
        match Material::load(&self.files) {
            Ok(new) => {
                let old = self.current.load();
                let replaced =
                    new.certified.cert != old.certified.cert || new.key.secret_der() != old.key.secret_der();
                if replaced {
                    self.current.store(Arc::new(new));
                }
                Outcome { replaced, failures: vec![] }
            }
            Err(error) => Outcome { replaced: false, failures: vec![error] },
        }
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity")
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Material")
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("files", &self.files).finish_non_exhaustive()
    }
}
