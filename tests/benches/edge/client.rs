//! The load client: connections as agents open them, the requests that the edge takes from them, and echo streams.
//!
//! In front of a proxy, or of the origin itself. Runs on the benchmark's own thread, which is never counted.

use crate::origin;
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{self, SendRequest},
};
use http::{HeaderMap, Request};
use postern_wire::ws::{self, Handshake};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::sync::Arc;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The path that peers pass through as a WebSocket; ours takes any.
const TUNNEL: &str = "/tunnel";
const HOST: &str = "localhost";
/// Client preface and an empty SETTINGS frame.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How to reach the origin.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Road {
    /// Through nothing, in the clear.
    Direct,
    /// HTTP/2 in TLS.
    Tls,
    /// HTTP/2 in a WebSocket in TLS.
    Wss,
}

/// Who dials: one trust, full handshakes only, the same cipher suite wherever one dials.
#[derive(Clone)]
pub(crate) struct Dialler {
    h2: TlsConnector,
    http1: TlsConnector,
}

/// One connection, open until the last clone and stream of it is dropped.
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    authorization: String,
    pub(crate) task: JoinHandle<()>,
}

/// A stream whose bytes come back.
pub(crate) struct Echo {
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Dialler {
    pub(crate) fn new(ca_pem: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let roots = Arc::new(roots);
        let connector = |alpn: &[u8]| {
            let mut provider = ring::default_provider();
            provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
            provider.kx_groups = vec![ring::kx_group::X25519];
            let provider: Arc<CryptoProvider> = Arc::new(provider);
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = Resumption::disabled();
            TlsConnector::from(Arc::new(config))
        };
        Self { h2: connector(b"h2"), http1: connector(b"http/1.1") }
    }

    /// Opens a connection; `number` chooses its token.
    pub(crate) async fn open(&self, road: Road, port: u16, number: usize) -> Connection {
        let authorization = format!("Bearer bench-token-{number:05}-0123456789abcdefghijklm");
        match road {
            Road::Direct => handshake(tcp(port).await, authorization).await,
            Road::Tls => handshake(tls(&self.h2, port).await, authorization).await,
            Road::Wss => {
                let io = tls(&self.http1, port).await;
                let headers = HeaderMap::new();
                let asked =
                    Handshake { host: HOST, path_and_query: TUNNEL, user_agent: "bench", headers: &headers };
                handshake(ws::dial(io, asked).await.unwrap(), authorization).await
            }
        }
    }

    /// Opens an HTTP/2 connection in TLS until the server has said its settings, and closes it. Returns how many tickets
    /// came with it.
    pub(crate) async fn touch(&self, port: u16) -> u32 {
        let mut io = tls(&self.h2, port).await;
        io.write_all(OPENING).await.unwrap();
        io.flush().await.unwrap();
        let mut settings = [0; 9];
        io.read_exact(&mut settings).await.unwrap();
        assert_eq!(settings[3], 4, "HTTP/2 begins with SETTINGS");
        let tickets = io.get_ref().1.tls13_tickets_received();
        // The server may be first.
        let _ = io.shutdown().await;
        tickets
    }
}

async fn tcp(port: u16) -> TcpStream {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

async fn tls(connector: &TlsConnector, port: u16) -> TlsStream<TcpStream> {
    connector.connect(ServerName::try_from(HOST).unwrap(), tcp(port).await).await.unwrap()
}

async fn handshake<S>(io: S, authorization: String) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (send, connection) = client::Builder::new().enable_push(false).handshake(io).await.unwrap();
    // How it ends does not matter; a stream that it takes along says so.
    let task = tokio::spawn(async move { drop(connection.await) });
    Connection { send, authorization, task }
}

impl Connection {
    async fn send(&self, path: &str, end: bool) -> (client::ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("https://{HOST}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", &self.authorization)
            .body(())
            .unwrap();
        let mut send = self.send.clone().ready().await.unwrap();
        send.send_request(request, end).unwrap()
    }

    /// A request without a message; its answer.
    pub(crate) async fn bare(&self) {
        let (response, _) = self.send(origin::BARE, true).await;
        let mut body = answered(response).await;
        assert_eq!(read(&mut body, usize::MAX).await, origin::ANSWER.len());
    }

    /// A gRPC call with one message; its answer.
    pub(crate) async fn unary(&self, message: &Bytes) {
        let (response, mut send) = self.send(origin::UNARY, false).await;
        send.send_data(message.clone(), true).unwrap();
        let mut body = answered(response).await;
        assert_eq!(read(&mut body, usize::MAX).await, origin::ANSWER.len());
        let trailers = body.trailers().await.unwrap().expect("a gRPC answer has trailers");
        assert_eq!(trailers["grpc-status"], "0");
    }

    /// Opens a stream with its first message, which nginx waits for, and returns it when that message is back.
    pub(crate) async fn echo(&self, message: &Bytes) -> Echo {
        let (response, mut send) = self.send(origin::ECHO, false).await;
        send.send_data(message.clone(), false).unwrap();
        let mut receive = answered(response).await;
        assert_eq!(read(&mut receive, message.len()).await, message.len());
        Echo { send, receive }
    }
}

impl Echo {
    /// Sends a message and waits until all of it is back.
    pub(crate) async fn message(&mut self, message: &Bytes) {
        self.send.send_data(message.clone(), false).unwrap();
        assert_eq!(read(&mut self.receive, message.len()).await, message.len());
    }
}

async fn answered(response: client::ResponseFuture) -> RecvStream {
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200, "{:?}", response.headers());
    response.into_body()
}

/// Reads until so many bytes came, or the body ends.
async fn read(body: &mut RecvStream, wanted: usize) -> usize {
    let mut length = 0;
    while length < wanted {
        let Some(data) = body.data().await else { break };
        let data = data.unwrap();
        length += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    length
}
