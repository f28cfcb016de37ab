//! TLS to brokers: whom to trust, what to show, and both again in the words of pingora.
//!
//! Under `dial` and `broker`. Files that change are read again; a bad change leaves the last good one in use.

use crate::config;
use pingora::upstreams::peer::{HttpPeer, Scheme};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use postern_certs::client::{ClientIdentity, ClientTrust, Material};
use postern_certs::{CertError, CertFiles};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// What TLS to the brokers of one route needs.
pub(super) struct Secure {
    trust: Arc<ClientTrust>,
    identity: Option<ClientIdentity>,
    dressed: Mutex<Arc<Dressed>>,
}

/// One version of the files, for pingora.
struct Dressed {
    bundle: Arc<Vec<CertificateDer<'static>>>,
    material: Option<Arc<Material>>,
    ca: Option<Arc<[WrappedX509]>>,
    shown: Option<Arc<CertKey>>,
    /// Connections of other versions are not used again.
    version: u64,
}

impl Secure {
    pub(super) fn load(tls: &config::upstreams::Tls) -> Result<Self, CertError> {
        let trust = match &tls.ca_file {
            Some(file) => ClientTrust::only(file.clone())?,
            None => ClientTrust::load(None)?,
        };
        let identity = match (&tls.certificate_file, &tls.key_file) {
            (Some(certificate), Some(key)) => {
                let files = CertFiles { certificate: certificate.clone(), key: key.clone() };
                Some(ClientIdentity::load(&files)?)
            }
            _ => None,
        };
        let dressed = Dressed::new(trust.bundle(), identity.as_ref().map(ClientIdentity::material), 1);
        Ok(Self { trust, identity, dressed: Mutex::new(Arc::new(dressed)) })
    }

    /// For a dial of ours.
    pub(super) fn config(&self, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
        match &self.identity {
            Some(identity) => self.trust.config_as(identity, alpn),
            None => self.trust.config(alpn),
        }
    }

    pub(super) fn ca_given(&self) -> bool {
        self.trust.ca_given()
    }

    /// For a dial of pingora's.
    pub(super) fn dress(&self, peer: &mut HttpPeer, server_name: &str) {
        let dressed = self.dressed();
        peer.scheme = Scheme::HTTPS;
        // An empty one would turn verification off; no configuration leads to that.
        peer.sni = server_name.to_owned();
        peer.options.ca = dressed.ca.clone();
        peer.client_cert_key = dressed.shown.clone();
        // pingora's own key of a connection knows the client's certificate, but not whom it trusted.
        peer.group_key |= dressed.version << 1;
    }

    fn dressed(&self) -> Arc<Dressed> {
        let (bundle, material) = (self.trust.bundle(), self.identity.as_ref().map(ClientIdentity::material));
        let mut dressed = self.dressed.lock().unwrap_or_else(PoisonError::into_inner);
        let same_material = match (&dressed.material, &material) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !Arc::ptr_eq(&dressed.bundle, &bundle) || !same_material {
            *dressed = Arc::new(Dressed::new(bundle, material, dressed.version + 1));
        }
        dressed.clone()
    }

    /// Follows changes of the files. Does not return while there is one to follow.
    pub(super) async fn keep_fresh(&self) {
        let never = CancellationToken::new();
        let shown = async {
            if let Some(identity) = &self.identity {
                identity.keep_fresh(never.clone()).await;
            }
        };
        tokio::join!(self.trust.keep_fresh(never.clone()), shown);
    }
}

impl Dressed {
    fn new(bundle: Arc<Vec<CertificateDer<'static>>>, material: Option<Arc<Material>>, version: u64) -> Self {
        let wrap = |der: &CertificateDer<'_>| WrappedX509::new(der.to_vec(), parse_x509);
        let ca = (!bundle.is_empty()).then(|| bundle.iter().map(wrap).collect());
        let shown = material.as_ref().map(|material| {
            let chain = material.chain().iter().map(|der| der.to_vec()).collect();
            Arc::new(CertKey::new(chain, material.key().to_vec()))
        });
        Self { bundle, material, ca, shown, version }
    }
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure")
            .field("trust", &self.trust)
            .field("shows", &self.identity)
            .finish_non_exhaustive()
    }
}
