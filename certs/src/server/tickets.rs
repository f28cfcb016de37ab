//! Session tickets of one listener: a client that was here before proves it with what we gave it then, and neither
//! side signs anything. They make a storm of reconnecting agents cheap. Before it: nothing. After it: `server`.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::ProducesTickets;

/// Keys for tickets that live in this process only. They change every six hours, and `renew` makes all
/// tickets worthless that were given out before.
#[derive(Debug)]
pub(crate) struct Tickets {
    /// `None` where the system had no randomness for new keys: no tickets, and every handshake is a whole one.
    current: ArcSwap<Option<Arc<dyn ProducesTickets>>>,
}

impl Tickets {
    pub(super) fn new() -> Arc<Tickets> {
        Arc::new(Tickets { current: ArcSwap::from_pointee(keys()) })
    }

    /// Forgets the keys. To be called whenever the certificate has changed: a resumed session is shown none.
    pub(super) fn renew(&self) {
        self.current.store(Arc::new(keys()));
    }
}

fn keys() -> Option<Arc<dyn ProducesTickets>> {
    match rustls::crypto::ring::Ticketer::new() {
        Ok(keys) => Some(keys),
        Err(error) => {
            tracing::warn!(%error, "no keys for TLS session tickets; returning clients cost a whole handshake");
            None
        }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.current.load().is_some()
    }

    fn lifetime(&self) -> u32 {
        self.current.load().as_ref().as_ref().map_or(0, |keys| keys.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.current.load().as_ref().as_ref()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.current.load().as_ref().as_ref()?.decrypt(cipher)
    }
}
