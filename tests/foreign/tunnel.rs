//! An agent as small as one can be, on tonic over a `ws-tunnel` through the edge: opens tunnels on one connection and
//! answers as a test says. It shares the generated messages with us and none of agentk.

use crate::harness::{Field, PATIENCE, http as client};
use ::http::{HeaderMap, Uri};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use postern_wire::{
    proto::gitlab::agent::{
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        prototool,
        reverse_tunnel::{
            info::{AgentDescriptor, Method, Service as ServiceInfo},
            rpc::{
                ConnectRequest, ConnectResponse, Descriptor, Header, Message, Trailer, connect_request,
                connect_response, reverse_tunnel_client::ReverseTunnelClient,
            },
        },
    },
    token::AgentToken,
    ws::{self, Handshake, WsStream},
};
use prost::Message as _;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    codec::CompressionEncoding,
    codegen::Service,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

type Io = TokioIo<WsStream<TlsStream<TcpStream>>>;

/// Dials the edge over TLS and WebSocket, and counts how often it had to.
#[derive(Clone)]
struct Dial {
    tls: Arc<tokio_rustls::rustls::ClientConfig>,
    port: u16,
    dials: Arc<AtomicUsize>,
}

impl Service<Uri> for Dial {
    type Response = Io;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Io>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let (tls, port) = (self.tls.clone(), self.port);
        Box::pin(async move {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            let name = "localhost".try_into().expect("a name");
            let tls = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?;
            let headers = HeaderMap::new();
            let handshake =
                Handshake { host: "localhost", path_and_query: "/", user_agent: "test", headers: &headers };
            let tunnel = ws::dial(tls, handshake).await.map_err(std::io::Error::other)?;
            Ok(TokioIo::new(tunnel))
        })
    }
}

/// One connection of an agent.
pub(crate) struct Agent {
    client: ReverseTunnelClient<Channel>,
    token: AgentToken,
    dials: Arc<AtomicUsize>,
}

impl Agent {
    /// Connects, with the field's agent token.
    pub(crate) async fn connect(field: &Field) -> Self {
        let dials = Arc::new(AtomicUsize::new(0));
        let dial = Dial {
            tls: client::tls(field, &[b"http/1.1"]),
            port: field.addresses.edge_tls.port(),
            dials: dials.clone(),
        };
        let endpoint = Endpoint::from_static("http://kas.example.com")
            .user_agent("agentk/v17.0.0/abcdef")
            .expect("a legal value")
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024);
        let channel = timeout(PATIENCE, endpoint.connect_with_connector(dial)).await.expect("in time");
        let token = AgentToken::new(field.agent_token.clone()).expect("a legal token");
        Self { client: ReverseTunnelClient::new(channel.expect("connected")), token, dials }
    }

    /// From now on every message is compressed.
    pub(crate) fn compressing(self) -> Self {
        Self { client: self.client.send_compressed(CompressionEncoding::Gzip), ..self }
    }

    /// How many connections it took so far.
    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    /// Calls Connect with this as the first message.
    pub(crate) async fn call(&self, first: ConnectRequest) -> Result<Tunnel, Status> {
        let (to_broker, messages) = mpsc::channel(1);
        to_broker.try_send(first).expect("there is room");
        let mut request = Request::new(ReceiverStream::new(messages));
        let bearer = MetadataValue::try_from(self.token.bearer().as_bytes()).expect("a legal value");
        request.metadata_mut().insert("authorization", bearer);
        let response = timeout(PATIENCE, self.client.clone().connect(request)).await.expect("in time")?;
        Ok(Tunnel { to_broker, from_broker: response.into_inner() })
    }

    /// Opens a tunnel.
    pub(crate) async fn open(&self) -> Tunnel {
        self.call(descriptor("gitlab.agent.kubernetes_api.rpc.KubernetesApi")).await.expect("a tunnel")
    }
}

/// The first message of an agent that serves this and nothing else.
pub(crate) fn descriptor(service: &str) -> ConnectRequest {
    let methods = vec![Method { name: "MakeRequest".into() }];
    let services = vec![ServiceInfo { name: service.into(), methods }];
    let descriptor = Descriptor { agent_descriptor: Some(AgentDescriptor { services }) };
    ConnectRequest { msg: Some(connect_request::Msg::Descriptor(descriptor)) }
}

/// One tunnel, idle or serving.
pub(crate) struct Tunnel {
    to_broker: mpsc::Sender<ConnectRequest>,
    from_broker: Streaming<ConnectResponse>,
}

impl Tunnel {
    async fn put(&self, msg: connect_request::Msg) {
        self.to_broker.send(ConnectRequest { msg: Some(msg) }).await.expect("the tunnel is open");
    }

    async fn message(&self, message: http_response::Message) {
        let data = HttpResponse { message: Some(message) }.encode_to_vec().into();
        self.put(connect_request::Msg::Message(Message { data })).await;
    }

    /// The next message of the broker; however long that takes.
    pub(crate) async fn next(&mut self) -> Result<Option<ConnectResponse>, Status> {
        self.from_broker.message().await
    }

    /// Takes a whole request, then begins the answer; returns the path.
    pub(crate) async fn begin(&mut self) -> String {
        let mut path = String::new();
        loop {
            let message = timeout(PATIENCE, self.next()).await.expect("a request in time");
            match message.expect("no error").expect("no end").msg.expect("a message") {
                connect_response::Msg::RequestInfo(_) => {}
                connect_response::Msg::CloseSend(_) => break,
                connect_response::Msg::Message(message) => {
                    let request = HttpRequest::decode(message.data).expect("a request");
                    if let Some(http_request::Message::Header(header)) = request.message {
                        path = header.request.expect("a head").url_path;
                    }
                }
            }
        }
        self.put(connect_request::Msg::Header(Header::default())).await;
        let response =
            prototool::HttpResponse { status_code: 200, status: "200 OK".into(), ..Default::default() };
        self.message(http_response::Message::Header(http_response::Header { response: Some(response) }))
            .await;
        path
    }

    /// One piece of the answer's body, once there is room for it.
    pub(crate) async fn data(&self, data: Bytes) {
        self.message(http_response::Message::Data(http_response::Data { data })).await;
    }

    /// Ends the answer; returns how the broker ended the tunnel.
    pub(crate) async fn finish(mut self) -> Result<(), Status> {
        self.message(http_response::Message::Trailer(http_response::Trailer {})).await;
        self.put(connect_request::Msg::Trailer(Trailer::default())).await;
        drop(self.to_broker);
        let end = timeout(PATIENCE, self.from_broker.message()).await.expect("an end in time")?;
        assert_eq!(end, None, "nothing follows an answer");
        Ok(())
    }
}
