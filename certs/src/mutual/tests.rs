//! Who may finish a handshake, before and after the CA file changes, and who may take a session up again.

use std::time::Duration;

use super::*;
use crate::CertFiles;
use crate::client::{ClientIdentity, ClientTrust};
use crate::dev::Ca;
use crate::server::{MinVersion, ServerIdentity};
use crate::testing::{until, within};
use rustls::server::ProducesTickets;
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Both ends as seen by the listener: how the handshake went, and the client's certificate. One byte each way, so
/// that the ticket arrives and a refusal is not missed.
async fn meet(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> std::io::Result<(HandshakeKind, Option<CertificateDer<'static>>)> {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let dial = async move {
        let name = ServerName::try_from("a.example").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0]).await?;
        std::io::Result::Ok(())
    };
    let serve = async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let session = stream.get_ref().1;
        let shown = session.peer_certificates().map(|chain| chain[0].clone().into_owned());
        Ok((session.handshake_kind().unwrap(), shown))
    };
    let (dialled, served) = within(async { tokio::join!(dial, serve) }).await;
    dialled.and(served)
}

struct Field {
    root: tempfile::TempDir,
    ca: Ca,
    identity: Arc<ServerIdentity>,
    trust: Arc<ClientTrust>,
    cas: Arc<ClientCas>,
}

impl Field {
    fn new(auth: ClientAuth) -> Self {
        let root = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let files = ca.issue(&["a.example"]).write(root.path()).unwrap();
        let identity = ServerIdentity::load(vec![files]).unwrap();
        let file = ca.write(root.path()).unwrap();
        let trust = ClientTrust::load(Some(file.clone())).unwrap();
        let clients = root.path().join("clients.crt");
        std::fs::copy(file, &clients).unwrap();
        let cas = ClientCas::load(clients, auth).unwrap();
        Self { root, ca, identity, trust, cas }
    }

    fn server(&self, min: MinVersion) -> Arc<ServerConfig> {
        self.identity.listener_config(&[b"h2"], min, Some(self.cas.clone()))
    }

    /// A client of one version, without a certificate.
    fn bare(&self, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.cas.current.load().bundle[0].to_vec())).unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(client)
    }

    fn client_of(&self, ca: &Ca) -> Arc<ClientConfig> {
        let directory = tempfile::tempdir_in(self.root.path()).unwrap();
        let files: CertFiles = ca.issue(&["client.example"]).write(directory.path()).unwrap();
        self.trust.config_as(&ClientIdentity::load(&files).unwrap(), &[b"h2"])
    }
}

#[tokio::test]
async fn a_required_certificate_is_required_and_an_optional_one_must_still_be_good() {
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        let field = Field::new(auth);
        let server = field.server(MinVersion::Tls12);
        let (_, shown) = meet(field.client_of(&field.ca), server.clone()).await.unwrap();
        let about = ClientCertificate::of(&shown.unwrap()).unwrap();
        assert_eq!(about.subject.len(), 64);
        assert!(!about.serial.is_empty());
        let bare = ClientTrust::load(Some(field.root.path().join("ca.crt"))).unwrap().config(&[b"h2"]);
        assert_eq!(meet(bare, server.clone()).await.is_ok(), auth == ClientAuth::Optional, "{auth:?}");
        meet(field.client_of(&Ca::new()), server).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_new_ca_is_believed_within_100_ms() {
    let field = Field::new(ClientAuth::Required);
    let server = field.server(MinVersion::Tls12);
    let old = field.client_of(&field.ca);
    meet(old.clone(), server.clone()).await.unwrap();

    let stop = CancellationToken::new();
    let task = tokio::spawn(field.cas.keep_fresh(stop.clone()));
    tokio::task::yield_now().await;
    let (begin, mut quickest) = (std::time::Instant::now(), Duration::MAX);
    let mut new = Ca::new();
    // The machine may be busy with other things; at least one change must be in force in time.
    while quickest >= Duration::from_millis(100) && begin.elapsed() < Duration::from_secs(30) {
        new = Ca::new();
        let before = field.cas.current.load_full();
        std::fs::write(field.root.path().join("clients.new"), new.pem()).unwrap();
        let start = std::time::Instant::now();
        std::fs::rename(field.root.path().join("clients.new"), field.root.path().join("clients.crt"))
            .unwrap();
        until(|| field.cas.current.load().bundle != before.bundle).await;
        quickest = quickest.min(start.elapsed());
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");

    meet(old, server.clone()).await.unwrap_err();
    meet(field.client_of(&new), server).await.unwrap();
    stop.cancel();
    task.await.unwrap();
}

/// A session that is resumed would outlive the certificate that it began with.
#[tokio::test]
async fn where_clients_show_certificates_every_handshake_is_a_whole_one() {
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        let field = Field::new(auth);
        for (version, min) in
            [(&rustls::version::TLS12, MinVersion::Tls12), (&rustls::version::TLS13, MinVersion::Tls13)]
        {
            let server = field.server(min);
            let mut clients = vec![field.client_of(&field.ca)];
            if auth == ClientAuth::Optional {
                clients.push(field.bare(version));
            }
            for client in clients {
                for _ in 0..3 {
                    let (kind, _) = meet(client.clone(), server.clone()).await.unwrap();
                    assert_eq!(kind, HandshakeKind::Full, "{auth:?} {version:?}");
                }
            }
        }
        assert_eq!(field.server(MinVersion::Tls12).send_tls13_tickets, 0);
    }
}

#[tokio::test]
async fn a_bad_bundle_keeps_the_last_good_one() {
    let field = Field::new(ClientAuth::Required);
    std::fs::write(field.root.path().join("clients.crt"), "no PEM").unwrap();
    let outcome = field.cas.reload();
    assert!(!outcome.replaced && outcome.failures.len() == 1);
    meet(field.client_of(&field.ca), field.server(MinVersion::Tls12)).await.unwrap();
}

#[tokio::test]
async fn returning_clients_resume_until_the_certificate_is_replaced() {
    let field = Field::new(ClientAuth::Optional);
    for (version, min) in
        [(&rustls::version::TLS12, MinVersion::Tls12), (&rustls::version::TLS13, MinVersion::Tls13)]
    {
        let server = field.identity.listener_config(&[], min, None);
        let client = field.bare(version);
        assert_eq!(meet(client.clone(), server.clone()).await.unwrap().0, HandshakeKind::Full);
        assert_eq!(meet(client.clone(), server.clone()).await.unwrap().0, HandshakeKind::Resumed);
        let tickets = field.identity.tickets();
        let old = tickets.encrypt(b"x").unwrap();
        field.ca.issue(&["a.example"]).write(field.root.path()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(field.identity.keep_fresh(stop.clone()));
        // The keys are new when what the old ones made cannot be read any more.
        until(|| tickets.decrypt(&old).is_none()).await;
        assert_eq!(meet(client, server).await.unwrap().0, HandshakeKind::Full);
        stop.cancel();
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_listener_for_tls_1_3_refuses_1_2() {
    let field = Field::new(ClientAuth::Optional);
    let client = field.bare(&rustls::version::TLS12);
    meet(client.clone(), field.identity.listener_config(&[], MinVersion::Tls12, None)).await.unwrap();
    meet(client, field.identity.listener_config(&[], MinVersion::Tls13, None)).await.unwrap_err();
}
