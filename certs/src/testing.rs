//! What this crate's tests share: a TLS handshake in memory, and waiting for a condition with a deadline.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::DuplexStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Well under the 30 s after which polling would hide an event that was missed.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) async fn dial(config: Arc<ClientConfig>, io: DuplexStream, name: &str) -> io::Result<Vec<u8>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(config).connect(name, io).await?;
    Ok(leaf(stream.get_ref().1.peer_certificates().unwrap()))
}

/// Returns the certificate that the client saw.
pub(crate) async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: &str,
) -> io::Result<Vec<u8>> {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let serve = async move {
        let _ = TlsAcceptor::from(server).accept(far).await;
    };
    tokio::join!(dial(client, near, name), serve).0
}

pub(crate) fn leaf(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    chain[0].to_vec()
}

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it happens within 10 s")
}

/// Looks again and again until it is so.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !condition() {
            looks.tick().await;
        }
    })
    .await;
}

/// Publishes files the way Kubernetes does with a ConfigMap or Secret: `write` fills a new directory, then
/// the link `..data` is renamed over the old one. The files themselves are links through `..data` and are
/// never touched.
pub(crate) fn publish(mount: &Path, version: &str, write: impl FnOnce(&Path)) {
    let directory = mount.join(format!("..{version}"));
    std::fs::create_dir(&directory).unwrap();
    write(&directory);
    let aside = mount.join("..data_tmp");
    std::os::unix::fs::symlink(format!("..{version}"), &aside).unwrap();
    std::fs::rename(&aside, mount.join("..data")).unwrap();
    for file in std::fs::read_dir(&directory).unwrap() {
        let name = file.unwrap().file_name();
        if std::fs::symlink_metadata(mount.join(&name)).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(&name), mount.join(&name)).unwrap();
        }
    }
}
