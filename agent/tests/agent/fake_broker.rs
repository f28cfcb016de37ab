//! A broker as far as an agent can tell: gRPC over HTTP/2, in clear, over TLS or inside a WebSocket. Tunnels and streams
//! of manifests are handed to the test, which plays kas on them.

use crate::harness::soon;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use postern_certs::{CertFiles, server::ServerIdentity};
use postern_wire::{
    http::{request_target, response_header},
    order::{ConnectRequestOrder, RequestOrder, ResponseOrder},
    proto::gitlab::agent::{
        agent_configuration::rpc::{
            ConfigurationRequest, ConfigurationResponse,
            agent_configuration_server::{AgentConfiguration, AgentConfigurationServer},
        },
        agent_registrar::rpc::{
            RegisterRequest, RegisterResponse,
            agent_registrar_server::{AgentRegistrar, AgentRegistrarServer},
        },
        gitlab_access::rpc::{
            HeaderExtra,
            gitlab_access_server::{GitlabAccess, GitlabAccessServer},
        },
        gitops::rpc::{
            ObjectsToSynchronizeRequest, ObjectsToSynchronizeResponse,
            gitops_server::{Gitops, GitopsServer},
            objects_to_synchronize_response::{self as objects, Header, Object},
        },
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        kubernetes_api::rpc::{self as kubernetes_api, ImpersonationConfig},
        prototool::{self, Values},
        reverse_tunnel::rpc::{
            CloseSend, ConnectRequest, ConnectResponse, Message, RequestInfo, connect_request,
            connect_response,
            reverse_tunnel_server::{ReverseTunnel, ReverseTunnelServer},
        },
    },
    proto::postern::agent::{
        PushViewsResponse, ReportRequest, ReportResponse, ViewUpdate,
        agent_reports_server::{AgentReports, AgentReportsServer},
    },
    sniff::{self, Limits, Opening},
    ws,
};
use prost::Message as _;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

pub(crate) const MAKE_REQUEST: &str = "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest";

/// How bytes reach the broker.
#[derive(Clone)]
pub(crate) enum Via {
    Grpc,
    Grpcs(CertFiles),
    Ws,
    Wss(CertFiles),
}

pub(crate) struct FakeBroker {
    /// `host:port`.
    pub(crate) at: String,
    pub(crate) state: Arc<State>,
    tunnels: mpsc::Receiver<Tunnel>,
    syncs: mpsc::Receiver<Synchronization>,
    /// Those that a test was not waiting for yet.
    early: Vec<Synchronization>,
    serving: CancellationToken,
}

/// What tests look at and turn.
#[derive(Default)]
pub(crate) struct State {
    /// Only this token is let in; any if unset.
    pub(crate) token: Mutex<Option<String>>,
    /// Before 16.5.
    pub(crate) old: AtomicBool,
    /// Knows nothing of reports.
    pub(crate) deaf: AtomicBool,
    /// Every report that came, also to the deaf.
    pub(crate) reports: watch::Sender<Vec<ReportRequest>>,
    /// End tunnels politely as soon as they are there.
    pub(crate) hasty: AtomicBool,
    pub(crate) connects: AtomicUsize,
    /// Sends GOAWAY on every connection that there is.
    pub(crate) goodbye: Notify,
    pub(crate) configuration: watch::Sender<Option<ConfigurationResponse>>,
    pub(crate) asked: watch::Sender<Vec<ConfigurationRequest>>,
    pub(crate) registered: watch::Sender<Vec<RegisterRequest>>,
    pub(crate) metadata: Mutex<Vec<HeaderMap>>,
    /// Headers of WebSocket upgrades.
    pub(crate) upgrades: Mutex<Vec<HeaderMap>>,
    /// What the agent asked of GitLab.
    pub(crate) asked_gitlab: watch::Sender<Vec<AskedGitlab>>,
    /// What GitLab answers to the next requests, in turn; 200 once there is none left.
    pub(crate) gitlab_answers: Mutex<VecDeque<u16>>,
}

/// A request of the agent's own to GitLab.
#[derive(Clone, Debug)]
pub(crate) struct AskedGitlab {
    pub(crate) module: String,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) content_type: String,
    pub(crate) content_length: Option<i64>,
    pub(crate) body: Vec<u8>,
}

/// One reverse tunnel, from kas' side.
pub(crate) struct Tunnel {
    from_agent: Streaming<ConnectRequest>,
    to_agent: Option<mpsc::Sender<Result<ConnectResponse, Status>>>,
    order: ConnectRequestOrder,
    responses: ResponseOrder,
    pub(crate) token: String,
}

/// One stream of manifests, from kas' side.
pub(crate) struct Synchronization {
    pub(crate) request: ObjectsToSynchronizeRequest,
    to_agent: mpsc::Sender<Result<ObjectsToSynchronizeResponse, Status>>,
}

#[derive(Clone)]
struct Service {
    state: Arc<State>,
    tunnels: mpsc::Sender<Tunnel>,
    syncs: mpsc::Sender<Synchronization>,
}

impl FakeBroker {
    pub(crate) async fn start(via: Via) -> Self {
        Self::start_at("127.0.0.1:0", via, Arc::default()).await
    }

    /// On a given address with the state of a broker before it.
    pub(crate) async fn start_at(at: &str, via: Via, state: Arc<State>) -> Self {
        postern_certs::install_provider();
        let listener = TcpListener::bind(at).await.expect("a free port");
        let at = listener.local_addr().expect("bound").to_string();
        let (sender, tunnels) = mpsc::channel(1000);
        let (syncs_sender, syncs) = mpsc::channel(1000);
        let service = Service { state: state.clone(), tunnels: sender, syncs: syncs_sender };
        let serving = CancellationToken::new();
        tokio::spawn(serving.clone().run_until_cancelled_owned(accept(
            listener,
            via,
            service,
            serving.clone(),
        )));
        Self { at, state, tunnels, syncs, early: Vec::new(), serving }
    }

    /// The next tunnel that the agent opened and that is still open, after its descriptor.
    pub(crate) async fn tunnel(&mut self) -> Tunnel {
        soon("a tunnel", async {
            loop {
                let mut tunnel = self.tunnels.recv().await.expect("the service keeps its sender");
                if let Some(connect_request::Msg::Descriptor(_)) = tunnel.next().await {
                    return tunnel;
                }
            }
        })
        .await
    }

    /// The next stream that the agent opened for the manifests of this project.
    pub(crate) async fn synchronization(&mut self, project: &str) -> Synchronization {
        soon(&format!("a stream for {project}"), async {
            loop {
                if let Some(at) = self.early.iter().position(|sync| sync.request.project_id == project) {
                    return self.early.remove(at);
                }
                self.early.push(self.syncs.recv().await.expect("the service keeps its sender"));
            }
        })
        .await
    }

    /// As `kill -9` would: every connection ends.
    pub(crate) fn kill(&self) {
        self.serving.cancel();
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, via: Via, service: Service, serving: CancellationToken) {
    loop {
        let (io, _) = listener.accept().await.expect("the listener lives");
        let (via, service) = (via.clone(), service.clone());
        tokio::spawn(serving.clone().run_until_cancelled_owned(async move {
            match via {
                Via::Grpc => serve(io, service).await,
                Via::Ws => websocket(io, service).await,
                Via::Grpcs(files) => {
                    if let Some(io) = tls(io, files, b"h2").await {
                        serve(io, service).await;
                    }
                }
                Via::Wss(files) => {
                    if let Some(io) = tls(io, files, b"http/1.1").await {
                        websocket(io, service).await;
                    }
                }
            }
        }));
    }
}

async fn tls<S>(io: S, files: CertFiles, alpn: &[u8]) -> Option<tokio_rustls::server::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let identity = ServerIdentity::load(vec![files]).expect("a good certificate");
    TlsAcceptor::from(identity.config(&[alpn])).accept(io).await.ok()
}

async fn websocket<S>(mut io: S, service: Service)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = Limits { head: 16 * 1024, deadline: Duration::from_secs(10) };
    let Ok(Opening::Http1 { head, mut read }) = sniff::sniff(&mut io, limits).await else {
        return;
    };
    let read = read.split_off(head.size());
    service.state.upgrades.lock().expect("no panic holds the lock").push(head.headers.clone());
    let accepted = ws::accept(&head, &HeaderMap::new()).expect("the agent upgrades properly");
    io.write_all(&accepted.response).await.expect("the agent reads");
    serve(ws::WsStream::listener(io, read, None), service).await;
}

async fn serve<S>(io: S, service: Service)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = Routes::new(ReverseTunnelServer::new(service.clone()))
        .add_service(AgentConfigurationServer::new(service.clone()))
        .add_service(AgentReportsServer::new(service.clone()))
        .add_service(GitopsServer::new(service.clone()))
        .add_service(GitlabAccessServer::new(service.clone()));
    let routes = match service.state.old.load(Ordering::Relaxed) {
        true => routes,
        false => routes.add_service(AgentRegistrarServer::new(service.clone())),
    };
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes.prepare()));
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        _ = &mut serving => {}
        () = service.state.goodbye.notified() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

impl Service {
    fn admit<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let headers = request.metadata().clone().into_headers();
        self.state.metadata.lock().expect("no panic holds the lock").push(headers);
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
        match &*self.state.token.lock().expect("no panic holds the lock") {
            Some(good) if *good != token => Err(Status::unauthenticated("unauthenticated")),
            _ => Ok(token),
        }
    }
}

#[tonic::async_trait]
impl ReverseTunnel for Service {
    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        self.state.connects.fetch_add(1, Ordering::Relaxed);
        let token = self.admit(&request)?;
        let (to_agent, stream) = mpsc::channel(4);
        if !self.state.hasty.load(Ordering::Relaxed) {
            let tunnel = Tunnel {
                from_agent: request.into_inner(),
                to_agent: Some(to_agent),
                order: ConnectRequestOrder::new(),
                responses: ResponseOrder::new(),
                token,
            };
            let _ = self.tunnels.send(tunnel).await;
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl AgentConfiguration for Service {
    type GetConfigurationStream = ReceiverStream<Result<ConfigurationResponse, Status>>;

    async fn get_configuration(
        &self,
        request: Request<ConfigurationRequest>,
    ) -> Result<Response<Self::GetConfigurationStream>, Status> {
        self.admit(&request)?;
        self.state.asked.send_modify(|asked| asked.push(request.into_inner()));
        let (sender, stream) = mpsc::channel(1);
        let mut configuration = self.state.configuration.subscribe();
        tokio::spawn(async move {
            loop {
                let now = configuration.borrow_and_update().clone();
                if let Some(now) = now
                    && sender.send(Ok(now)).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    changed = configuration.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl Gitops for Service {
    type GetObjectsToSynchronizeStream = ReceiverStream<Result<ObjectsToSynchronizeResponse, Status>>;

    async fn get_objects_to_synchronize(
        &self,
        request: Request<ObjectsToSynchronizeRequest>,
    ) -> Result<Response<Self::GetObjectsToSynchronizeStream>, Status> {
        self.admit(&request)?;
        let (to_agent, stream) = mpsc::channel(4);
        let _ = self.syncs.send(Synchronization { request: request.into_inner(), to_agent }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl GitlabAccess for Service {
    type MakeRequestStream = ReceiverStream<Result<HttpResponse, Status>>;

    async fn make_request(
        &self,
        request: Request<Streaming<HttpRequest>>,
    ) -> Result<Response<Self::MakeRequestStream>, Status> {
        self.admit(&request)?;
        let asked = asked_gitlab(request.into_inner()).await?;
        self.state.asked_gitlab.send_modify(|all| all.push(asked));
        let answer = self.state.gitlab_answers.lock().expect("no panic holds the lock").pop_front();
        let status = StatusCode::from_u16(answer.unwrap_or(200)).expect("a status");
        let (sender, stream) = mpsc::channel(4);
        let data = http_response::Message::Data(http_response::Data { data: Bytes::from_static(b"null") });
        let trailer = http_response::Message::Trailer(http_response::Trailer {});
        let rest = [data, trailer].map(|message| HttpResponse { message: Some(message) });
        for message in std::iter::once(response_header(status, &HeaderMap::new())).chain(rest) {
            let _ = sender.send(Ok(message)).await;
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A whole request, which must be as a broker wants it.
async fn asked_gitlab(mut messages: Streaming<HttpRequest>) -> Result<AskedGitlab, Status> {
    let mut order = RequestOrder::new();
    let (mut head, mut body) = (None, Vec::new());
    while let Some(message) = messages.message().await? {
        order.accept(&message).map_err(|error| Status::invalid_argument(error.to_string()))?;
        match message.message {
            Some(http_request::Message::Header(header)) => head = Some(header),
            Some(http_request::Message::Data(data)) => {
                assert!(data.data.len() <= 32 * 1024, "{} bytes in one message", data.data.len());
                body.extend_from_slice(&data.data);
            }
            _ => {}
        }
    }
    order.finish().map_err(|error| Status::invalid_argument(error.to_string()))?;
    let head = head.expect("the order begins with a header");
    let extra = head.extra.expect("a module is named");
    assert_eq!(extra.type_url, "type.googleapis.com/gitlab.agent.gitlab_access.rpc.HeaderExtra");
    let extra = HeaderExtra::decode(extra.value.as_slice()).expect("an extra");
    let request = head.request.expect("a request");
    let content_type = request.header.get("Content-Type").and_then(|values| values.value.first());
    Ok(AskedGitlab {
        module: extra.module_name,
        target: request_target(&request).expect("a path"),
        content_type: content_type.cloned().unwrap_or_default(),
        method: request.method,
        content_length: head.content_length,
        body,
    })
}

#[tonic::async_trait]
impl AgentRegistrar for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.admit(&request)?;
        self.state.registered.send_modify(|registered| registered.push(request.into_inner()));
        Ok(Response::new(RegisterResponse {}))
    }
}

#[tonic::async_trait]
impl AgentReports for Service {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        self.admit(&request)?;
        self.state.reports.send_modify(|reports| reports.push(request.into_inner()));
        match self.state.deaf.load(Ordering::Relaxed) {
            true => Err(Status::unimplemented("unknown service")),
            false => Ok(Response::new(ReportResponse {})),
        }
    }

    async fn push_views(
        &self,
        _: Request<Streaming<ViewUpdate>>,
    ) -> Result<Response<PushViewsResponse>, Status> {
        Err(Status::unimplemented("no views here"))
    }
}

/// The request on behalf of somebody.
pub(crate) fn impersonating(mut request: HttpRequest, config: ImpersonationConfig) -> HttpRequest {
    let Some(http_request::Message::Header(header)) = &mut request.message else { panic!("not a header") };
    header.extra = Some(prost_types::Any {
        type_url: "type.googleapis.com/gitlab.agent.kubernetes_api.rpc.HeaderExtra".into(),
        value: kubernetes_api::HeaderExtra { imp_config: Some(config) }.encode_to_vec(),
    });
    request
}

/// A request's head, as kas would send it.
pub(crate) fn head(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    content_length: Option<i64>,
) -> HttpRequest {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut pairs: HashMap<String, Values> = HashMap::new();
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        pairs.entry(key.to_owned()).or_default().value.push(value.to_owned());
    }
    let header = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Values { value: vec![(*value).to_owned()] }))
        .collect();
    let request =
        prototool::HttpRequest { method: method.to_owned(), header, url_path: path.to_owned(), query: pairs };
    let header = http_request::Header { request: Some(request), extra: None, content_length };
    HttpRequest { message: Some(http_request::Message::Header(header)) }
}

pub(crate) fn data(bytes: &[u8]) -> HttpRequest {
    let data = http_request::Data { data: Bytes::copy_from_slice(bytes) };
    HttpRequest { message: Some(http_request::Message::Data(data)) }
}

pub(crate) fn trailer() -> HttpRequest {
    HttpRequest { message: Some(http_request::Message::Trailer(http_request::Trailer {})) }
}

pub(crate) fn upgrade_data(bytes: &[u8]) -> HttpRequest {
    let data = http_request::UpgradeData { data: Bytes::copy_from_slice(bytes) };
    HttpRequest { message: Some(http_request::Message::UpgradeData(data)) }
}

/// An answer as it came through a tunnel.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: prototool::HttpResponse,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header.get(name).and_then(|values| values.value.first()).map(String::as_str)
    }
}

impl Tunnel {
    /// The next message, which must be in order.
    pub(crate) async fn next(&mut self) -> Option<connect_request::Msg> {
        let message = self.from_agent.message().await.ok()??;
        self.order.accept(&message).expect("the agent keeps the order");
        message.msg
    }

    async fn send(&mut self, msg: connect_response::Msg) {
        let to_agent = self.to_agent.as_ref().expect("not ended");
        // An agent that is gone shows in what comes back.
        let _ = to_agent.send(Ok(ConnectResponse { msg: Some(msg) })).await;
    }

    pub(crate) async fn call(&mut self, method: &str) {
        let info = RequestInfo { method_name: method.to_owned(), meta: HashMap::new() };
        self.send(connect_response::Msg::RequestInfo(info)).await;
    }

    pub(crate) async fn say(&mut self, message: HttpRequest) {
        let data = message.encode_to_vec().into();
        self.send(connect_response::Msg::Message(Message { data })).await;
    }

    pub(crate) async fn close_send(&mut self) {
        self.send(connect_response::Msg::CloseSend(CloseSend {})).await;
    }

    /// Ends the tunnel with OK; the agent's side can still be read.
    pub(crate) fn end(&mut self) {
        self.to_agent = None;
    }

    /// Ends the tunnel with an error.
    pub(crate) async fn fail(&mut self, status: Status) {
        if let Some(to_agent) = self.to_agent.take() {
            let _ = to_agent.send(Err(status)).await;
        }
    }

    /// The next message of the answer, or the status it ended with.
    pub(crate) async fn hear(&mut self) -> Result<http_response::Message, Result<(), (i32, String)>> {
        loop {
            match soon("a message", self.next()).await {
                Some(connect_request::Msg::Header(_)) => {}
                Some(connect_request::Msg::Message(message)) => {
                    let message = HttpResponse::decode(message.data).expect("an HttpResponse");
                    self.responses.accept(&message).expect("the answer keeps the order");
                    return Ok(message.message.expect("accepted"));
                }
                Some(connect_request::Msg::Trailer(_)) => {
                    let error = match soon("the end", self.next()).await {
                        Some(connect_request::Msg::Error(error)) => {
                            error.status.expect("an error has a status")
                        }
                        Some(other) => panic!("{other:?} after the trailer"),
                        None => return Err(Ok(())),
                    };
                    assert!(soon("the half-close", self.next()).await.is_none());
                    return Err(Err((error.code, error.message)));
                }
                other => panic!("{other:?} in an answer"),
            }
        }
    }

    /// The head of the answer.
    pub(crate) async fn hear_head(&mut self) -> prototool::HttpResponse {
        match self.hear().await {
            Ok(http_response::Message::Header(header)) => header.response.expect("a head"),
            other => panic!("{other:?} instead of a head"),
        }
    }

    /// The whole rest of an answer.
    pub(crate) async fn hear_all(&mut self) -> Result<Answer, (i32, String)> {
        let mut answer = Answer { head: prototool::HttpResponse::default(), body: Vec::new() };
        loop {
            match self.hear().await {
                Ok(http_response::Message::Header(header)) => answer.head = header.response.expect("a head"),
                Ok(http_response::Message::Data(data)) => {
                    assert!(data.data.len() <= 32 * 1024, "{} bytes in one message", data.data.len());
                    answer.body.extend_from_slice(&data.data);
                }
                Ok(http_response::Message::UpgradeData(data)) => answer.body.extend_from_slice(&data.data),
                Ok(http_response::Message::Trailer(_)) => {}
                Err(Ok(())) => return Ok(answer),
                Err(Err(status)) => return Err(status),
            }
        }
    }

    /// Asks and hears everything; the tunnel is then ended as kas does it.
    pub(crate) async fn ask(&mut self, messages: Vec<HttpRequest>) -> Result<Answer, (i32, String)> {
        self.call(MAKE_REQUEST).await;
        for message in messages {
            self.say(message).await;
        }
        self.close_send().await;
        let answer = self.hear_all().await;
        self.end();
        answer
    }
}

impl Synchronization {
    async fn send(&self, message: objects::Message) {
        // An agent that is gone shows in what it does next.
        let _ = self.to_agent.send(Ok(ObjectsToSynchronizeResponse { message: Some(message) })).await;
    }

    pub(crate) async fn header(&self, commit_id: &str) {
        self.send(objects::Message::Header(Header { commit_id: commit_id.to_owned(), project_id: 42 })).await;
    }

    /// A whole file in pieces of at most this many bytes, or an empty piece.
    pub(crate) async fn file(&self, source: &str, content: &[u8], piece: usize) {
        let pieces: Vec<&[u8]> = if content.is_empty() { vec![&[]] } else { content.chunks(piece).collect() };
        for piece in pieces {
            let data = Bytes::copy_from_slice(piece);
            self.send(objects::Message::Object(Object { source: source.to_owned(), data })).await;
        }
    }

    /// Ends the stream with OK, and nothing before it.
    pub(crate) fn end(self) {}

    /// Trailer and OK.
    pub(crate) async fn complete(self) {
        self.send(objects::Message::Trailer(objects::Trailer {})).await;
    }

    /// One commit of one small file, whole.
    pub(crate) async fn commit(self, commit_id: &str, content: &str) {
        self.header(commit_id).await;
        self.file("a.yaml", content.as_bytes(), 3).await;
        self.complete().await;
    }

    pub(crate) async fn fail(self, status: Status) {
        let _ = self.to_agent.send(Err(status)).await;
    }

    /// Waits until the agent has given the stream up.
    pub(crate) async fn given_up(self) {
        soon("the end of a stream", self.to_agent.closed()).await;
    }

    /// Whether the agent still holds the stream.
    pub(crate) fn is_open(&self) -> bool {
        !self.to_agent.is_closed()
    }
}
