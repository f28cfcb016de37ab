//! From a request to the head of its answer: pooled HTTP/1.1 connections to one GitLab, plain or TLS. Before it: the
//! calls. After it: TCP. It follows no redirect, tries nothing twice and reads no body.

use super::{error::Fault, proxy::Proxy};
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use postern_certs::client::{ClientTrust, explain};
use rustls::pki_types::ServerName;
use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A body on its way to GitLab; read as fast as GitLab takes it.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
/// Why a body broke off.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// As many as the limits of a busy broker let run at once.
const IDLE_CONNECTIONS: usize = 100;
/// Below what servers in front of GitLab allow (nginx: 75 s), so that it is we who close.
const IDLE: Duration = Duration::from_secs(60);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Name resolution and TCP.
    pub connect: Duration,
    /// TLS on top of it.
    pub handshake: Duration,
    /// From the end of the request to the head of the answer.
    pub head: Duration,
    /// A call that is not streamed, whole, for callers without a deadline; and the longest wait in the queue.
    pub call: Duration,
    /// Bytes of an answer that is read whole.
    pub answer: usize,
}

impl Default for Limits {
    /// The first three are a kas' own.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(20),
            call: Duration::from_secs(60),
            answer: 8 << 20,
        }
    }
}

/// Where GitLab is.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// `None`: plain HTTP.
    pub(super) tls: Option<(ServerName<'static>, Arc<ClientTrust>)>,
    pub(super) limits: Limits,
    pub(super) proxy: Option<Proxy>,
}

pub(super) struct Transport {
    client: Client<Connector, Watched>,
    server: Arc<Server>,
}

impl Transport {
    pub(super) fn new(server: Server) -> Self {
        let server = Arc::new(server);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(Connector(Arc::clone(&server)));
        Self { client, server }
    }

    /// Sends, and waits for the head of the answer. The time for it begins when the body was taken.
    pub(super) async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Fault> {
        let (whole, sent) = oneshot::channel();
        let mut request = request.map(|body| Watched { body, whole: Some(whole) });
        if let Some(authorization) = self.server.proxy.as_ref().and_then(Proxy::authorization) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let limit = self.server.limits.head;
        let silent = async {
            // Nothing is ever sent: the other end goes when the body does.
            let _ = sent.await;
            tokio::time::sleep(limit).await;
        };
        tokio::select! {
            biased;
            answer = self.client.request(request) => answer.map_err(|error| self.fault(error)),
            () = silent => Err(Fault::Silent(limit)),
        }
    }

    fn fault(&self, error: hyper_util::client::legacy::Error) -> Fault {
        let Server { tls, .. } = &*self.server;
        let advice = tls.as_ref().and_then(|(_, trust)| explain(&error, trust.ca_given()));
        let what = match advice {
            // The words are those of an agent's flag; here it is a key of the configuration file.
            Some(advice) => {
                return Fault::Transport {
                    what: format!(
                        "TLS failed: {}",
                        advice.replace("--ca-cert-file", "gitlab.ca_certificate_file")
                    ),
                    source: None,
                };
            }
            None if error.is_connect() => "no connection could be made; is gitlab.address right?",
            None => "the connection broke before the answer",
        };
        Fault::Transport { what: what.to_owned(), source: Some(Arc::new(error)) }
    }
}

/// A request body whose end, or drop, is noticed.
struct Watched {
    body: RequestBody,
    whole: Option<oneshot::Sender<()>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) {
            self.whole = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Dials the one server; trust is taken as it is at that moment.
#[derive(Clone)]
struct Connector(Arc<Server>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Dialled>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Dialled>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let server = Arc::clone(&self.0);
        Box::pin(async move { server.dial(target).await.map(TokioIo::new) })
    }
}

impl Server {
    async fn dial(&self, target: Uri) -> io::Result<Dialled> {
        let late = |what: &str| io::Error::new(io::ErrorKind::TimedOut, format!("{what} took too long"));
        let connect = async {
            match &self.proxy {
                Some(proxy) => proxy.connect(target).await,
                None => TcpStream::connect((self.host.as_str(), self.port)).await,
            }
        };
        let proxied = self.proxy.as_ref().is_some_and(Proxy::reads_requests);
        let tcp =
            tokio::time::timeout(self.limits.connect, connect).await.map_err(|_| late("connecting"))??;
        tcp.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE);
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        let Some((name, trust)) = &self.tls else {
            return Ok(Dialled { io: Stream::Plain(tcp), proxied });
        };
        let handshake = TlsConnector::from(trust.config(&[b"http/1.1"])).connect(name.clone(), tcp);
        let tls = tokio::time::timeout(self.limits.handshake, handshake)
            .await
            .map_err(|_| late("the TLS handshake"))??;
        Ok(Dialled { io: Stream::Tls(Box::new(tls)), proxied })
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection, and whether a proxy reads what is written to it.
struct Dialled {
    io: Stream,
    proxied: bool,
}

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

/// Does the same to whichever it is.
macro_rules! either {
    ($stream:expr, $io:ident => $what:expr) => {
        match $stream {
            Stream::Plain($io) => $what,
            Stream::Tls($io) => $what,
        }
    };
}

impl AsyncRead for Dialled {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(&mut self.get_mut().io, io => Pin::new(io).poll_read(context, buffer))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(&mut self.get_mut().io, io => Pin::new(io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(&mut self.get_mut().io, io => Pin::new(io).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        either!(&self.io, io => io.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.get_mut().io, io => Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.get_mut().io, io => Pin::new(io).poll_shutdown(context))
    }
}
