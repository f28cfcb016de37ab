//! TLS material for every Postern program: PEM files in, rustls configurations out, kept fresh while files
//! change. Before it: paths from a config file or a flag. After it: the listeners of edge and broker, the
//! dialler of the agent. It opens no socket, never writes outside [`dev`] and never shows a private key in a
//! log, an error or `Debug`.

pub mod client;
#[cfg(any(test, feature = "dev-ca"))]
pub mod dev;
mod files;
pub mod mutual;
mod reload;
pub mod server;
#[cfg(test)]
mod testing;
pub mod watch;

use std::sync::Arc;

pub use files::{CertError, CertFiles, Holds};
use rustls::crypto::CryptoProvider;

/// Makes *ring* the process-wide rustls provider, for libraries that ask for the default one.
///
/// Idempotent. Where another provider was installed first, that one stays; Postern's own configurations use
/// *ring* either way.
pub fn install_provider() {
    // An error means that a provider is installed already, which is all that was asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS 1.2 stays because agents and load balancers of the 14.1 generation may not speak 1.3.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// An error and its causes on one line, each said once.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
