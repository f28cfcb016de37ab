//! What stands between an agent and its broker: a web server that answers every request alike, and a forward proxy
//! that lets through or refuses. Both remember what they were asked. `dialling.rs` puts them in the way.

use postern_certs::dev::Issued;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// A running one; gone when dropped.
pub(super) struct Obstacle {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Obstacle {
    /// The heads it was sent, in order.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// A web server behind TLS. `answer` gets its own port.
    pub(super) async fn web_server(issued: &Issued, answer: impl FnOnce(u16) -> String) -> Self {
        let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let tls = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answer: Arc<str> = answer(listener.local_addr().unwrap().port()).into();
        Self::serve(listener, move |stream, asked| {
            let (tls, answer) = (tls.clone(), answer.clone());
            async move {
                let Ok(mut stream) = tls.accept(stream).await else { return };
                let Some(head) = head(&mut stream).await else { return };
                asked.lock().unwrap().push(head);
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        })
    }

    /// A proxy that knows CONNECT. With a `refusal`, a status line, it lets nobody through.
    pub(super) async fn proxy(refusal: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, move |mut stream, asked| async move {
            let Some(head) = head(&mut stream).await else { return };
            let target =
                head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
            asked.lock().unwrap().push(head);
            let (Some(target), None) = (target, refusal) else {
                let line = refusal.unwrap_or("HTTP/1.1 405 Method Not Allowed");
                let _ = stream.write_all(format!("{line}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
                return;
            };
            let mut broker = TcpStream::connect(target).await.expect("the broker is there");
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut broker).await;
        })
    }

    fn serve<F>(
        listener: TcpListener,
        attend: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heads = asked.clone();
        let task = tokio::spawn(async move {
            let mut clients = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(attend(stream, heads.clone()));
            }
        });
        Self { address, asked, _task: AbortOnDropHandle::new(task) }
    }
}

/// Everything up to and with the empty line.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}
