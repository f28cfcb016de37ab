//! The listening side: certificate and key files to what rustls presents, chosen by the name a client asks
//! for (SNI). Before it: paths from the config. After it: the TLS acceptors of edge and broker, which hold
//! the configuration for as long as they live; reloads happen underneath it. A bad replacement never takes a
//! good certificate out of use.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

use crate::files::{self, Pair, Validity};
use crate::mutual::ClientCas;
use crate::reload::{self, Outcome};
use crate::{CertError, CertFiles};

#[cfg(test)]
mod tests;
mod tickets;

use tickets::Tickets;

/// The oldest version of TLS that a listener speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// Agents and load balancers of the 14.1 generation may not speak anything newer.
    #[default]
    Tls12,
    Tls13,
}

/// The certificates that a server can present. The first one is the default: for clients that send no name
/// (they dialled an IP address) and for names that no certificate is for.
pub struct ServerIdentity {
    slots: Vec<Slot>,
    tickets: Arc<Tickets>,
}

struct Slot {
    files: CertFiles,
    current: ArcSwap<Pair>,
}

impl ServerIdentity {
    /// Reads every pair of files, in order; the first is the default. A certificate outside its validity
    /// period is used all the same and logged as a warning.
    ///
    /// # Errors
    /// [`CertError::NothingConfigured`] for an empty list; otherwise the first file that cannot be used, by
    /// name.
    pub fn load(pairs: Vec<CertFiles>) -> Result<Arc<ServerIdentity>, CertError> {
        if pairs.is_empty() {
            return Err(CertError::NothingConfigured);
        }
        let mut slots = Vec::with_capacity(pairs.len());
        for files in pairs {
            let pair = files::load_pair(&files)?;
            warn_of_dates(&files, &pair);
            slots.push(Slot { files, current: ArcSwap::from_pointee(pair) });
        }
        Ok(Arc::new(ServerIdentity { slots, tickets: Tickets::new() }))
    }

    /// A rustls configuration for TLS 1.2 and 1.3 without client certificates. `alpn` is in order of
    /// preference; with an empty list ALPN is not negotiated. Reloads take effect in configurations handed
    /// out before.
    pub fn config(self: &Arc<Self>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(crate::provider())
            .with_protocol_versions(crate::VERSIONS)
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// As [`ServerIdentity::config`], for a listener that strangers dial by the thousand: sessions are resumed by
    /// ticket. `clients` says whose certificates are asked for; then none is resumed, because a session that is
    /// resumed would outlive the client's certificate.
    pub fn listener_config(
        self: &Arc<Self>,
        alpn: &[&[u8]],
        min_version: MinVersion,
        clients: Option<Arc<ClientCas>>,
    ) -> Arc<ServerConfig> {
        let versions = match min_version {
            MinVersion::Tls12 => crate::VERSIONS,
            MinVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(crate::provider())
            .with_protocol_versions(versions)
            .expect("ring has cipher suites for TLS 1.2 and 1.3");
        let resumes = clients.is_none();
        let builder = match clients {
            Some(cas) => builder.with_client_cert_verifier(cas),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        if resumes {
            config.ticketer = Arc::clone(&self.tickets) as Arc<dyn rustls::server::ProducesTickets>;
        }
        // Each connection comes back as one. What is kept here instead would outlive a reload.
        config.send_tls13_tickets = usize::from(resumes);
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Arc::new(config)
    }

    #[cfg(test)]
    pub(crate) fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// Reloads changed files until `stop`. Each pair stands for itself: one that cannot be used is logged as
    /// an error and its last good version stays. Spawn it once.
    pub fn keep_fresh(self: &Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let identity = Arc::clone(self);
        async move {
            let paths = identity.paths();
            reload::keep_fresh("server certificates", paths, stop, || identity.reload()).await;
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.slots.iter().flat_map(|slot| [slot.files.certificate.clone(), slot.files.key.clone()]).collect()
    }

    fn reload(&self) -> Outcome {
        let mut outcome = Outcome { replaced: false, failures: Vec::new() };
        for slot in &self.slots {
            match files::load_pair(&slot.files) {
                // Same chain, same public key: only the files' dates moved.
                Ok(pair) if pair.certified.cert == slot.current.load().certified.cert => {}
                Ok(pair) => {
                    warn_of_dates(&slot.files, &pair);
                    slot.current.store(Arc::new(pair));
                    outcome.replaced = true;
                }
                Err(error) => outcome.failures.push(error),
            }
        }
        if outcome.replaced {
            // A client that resumed would go on without ever seeing the new certificate.
            self.tickets.renew();
        }
        outcome
    }

    /// The pair whose names fit best, and among those one whose key can sign what this client understands (so
    /// that an ECDSA and an RSA certificate for the same name can stand side by side). The earlier wins a
    /// tie.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut best: Option<(u8, Arc<CertifiedKey>)> = None;
        for slot in &self.slots {
            let pair = slot.current.load();
            let rank =
                fit(&pair.names, name) * 2 + u8::from(pair.certified.key.choose_scheme(schemes).is_some());
            if best.as_ref().is_none_or(|(least, _)| rank > *least) {
                best = Some((rank, Arc::clone(&pair.certified)));
            }
        }
        best.map(|(_, certified)| certified)
    }
}

/// 2: the name itself; 1: a wildcard for it; 0: not for it.
fn fit(names: &[String], wanted: Option<&str>) -> u8 {
    let Some(wanted) = wanted else { return 0 };
    let parent = wanted.split_once('.').map(|(_, parent)| parent);
    let wildcard = |name: &String| {
        let suffix = name.strip_prefix("*.");
        suffix.zip(parent).is_some_and(|(suffix, parent)| suffix.eq_ignore_ascii_case(parent))
    };
    if names.iter().any(|name| name.eq_ignore_ascii_case(wanted)) {
        2
    } else {
        u8::from(names.iter().any(wildcard))
    }
}

fn warn_of_dates(files: &CertFiles, pair: &Pair) {
    let days = |time: Duration| time.as_secs() / 86_400;
    let file = files.certificate.display();
    match files::validity(&pair.certified.cert[0], UnixTime::now()) {
        Validity::Current => {}
        Validity::ExpiredFor(time) => {
            tracing::warn!(%file, days_ago = days(time), "certificate has expired; clients will refuse it, renew it");
        }
        Validity::StartsIn(time) => {
            tracing::warn!(%file, in_days = days(time), "certificate is not valid yet; is this machine's clock right?");
        }
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| &slot.files)).finish()
    }
}
