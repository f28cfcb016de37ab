//! Serves `GitlabAccess.MakeRequest`: an agent's own request to a module of GitLab, streamed there and back. Before it:
//! admission, which says who the agent is. After it: `gitlab/module_request.rs`, which speaks to GitLab as that agent and
//! lets it reach its module only. An HTTP status is an answer, never an error of the call; no body is ever held.
//!
//! Bounds: [`REQUESTS_PER_AGENT`] requests of an agent at a time, each without a limit of size; one in which nothing
//! moved in either direction for [`IDLE`] (noticed within twice that) is given up, here and at GitLab.

use crate::{
    auth::{self, AgentPermit},
    error::chain,
    gitlab::{Call, Fault, ModuleAnswer, ModuleRequest, Rails, RailsError, RequestBody, no_body, streamed},
    outgoing::{Outgoing, Sender, outgoing},
    per_agent::PerAgent,
};
use bytes::Bytes;
use futures::{FutureExt, Stream, future::Fuse, stream};
use http::Method;
use postern_wire::{
    http::{self as wire_http, MAX_DATA},
    metadata::CORRELATION_ID,
    order::{OutOfOrder, RequestOrder},
    proto::gitlab::agent::{
        gitlab_access::rpc::{HeaderExtra, gitlab_access_server::GitlabAccess},
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
    },
};
use prost::Message as _;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

/// Requests of one agent at a time.
pub const REQUESTS_PER_AGENT: usize = 64;
/// How long nothing may move. Longer than GitLab's own time for the head of an answer.
pub const IDLE: Duration = Duration::from_secs(60);
const HEADER_EXTRA: &str = "gitlab.agent.gitlab_access.rpc.HeaderExtra";

/// The service.
#[derive(Clone, Debug)]
pub struct GitlabAccessService {
    /// Absent without GitLab: every request is refused.
    pub rails: Option<Arc<Rails>>,
    /// How many run for each agent.
    pub requests: PerAgent,
    /// How long nothing may move; [`IDLE`].
    pub idle: Duration,
    /// Ends what still runs when the broker stops.
    pub stopping: CancellationToken,
}

impl GitlabAccessService {
    /// With the bounds that this module documents.
    pub fn new(rails: Option<Arc<Rails>>, stopping: CancellationToken) -> Self {
        Self { rails, requests: PerAgent::new(REQUESTS_PER_AGENT), idle: IDLE, stopping }
    }
}

#[async_trait]
impl GitlabAccess for GitlabAccessService {
    type MakeRequestStream = Outgoing<HttpResponse>;

    async fn make_request(
        &self,
        request: Request<Streaming<HttpRequest>>,
    ) -> Result<Response<Self::MakeRequestStream>, Status> {
        let permit = auth::permit(&request)?;
        let Some(rails) = self.rails.clone() else {
            return Err(Status::unimplemented(
                "this broker runs without GitLab, so there are no modules to reach; configure gitlab.address",
            ));
        };
        let Some(slot) = self.requests.try_enter(permit.agent.id) else {
            return Err(Status::resource_exhausted(format!(
                "this agent has {} requests to GitLab under way already",
                self.requests.each()
            )));
        };
        let correlation_id = request.metadata().get(CORRELATION_ID).and_then(|id| id.to_str().ok());
        let call =
            Call { deadline: None, correlation_id: correlation_id.map(str::to_owned), ..Call::default() };
        let moved = Arc::new(AtomicU64::new(0));
        let messages = Messages {
            incoming: request.into_inner(),
            order: RequestOrder::new(),
            moved: Arc::clone(&moved),
        };
        let (idle, stopping) = (self.idle, self.stopping.clone());
        Ok(Response::new(outgoing(idle, move |sender| async move {
            let _slot = slot;
            let withdrawn = permit.withdrawn();
            tokio::select! {
                biased;
                status = withdrawn => Err(status),
                () = stopping.cancelled() => Err(Status::unavailable("unavailable: the broker is stopping")),
                () = unmoved(&moved, idle) => Err(Status::deadline_exceeded(format!(
                    "unavailable: neither the agent nor GitLab sent anything for {idle:?}"
                ))),
                done = exchange(&rails, &permit, &call, messages, &sender) => done,
            }
        })))
    }
}

/// Waits until nothing moves any more.
async fn unmoved(moved: &AtomicU64, idle: Duration) {
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        sleep(idle).await;
        let now = moved.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

/// The agent's messages, in order.
struct Messages {
    incoming: Streaming<HttpRequest>,
    order: RequestOrder,
    moved: Arc<AtomicU64>,
}

impl Messages {
    /// The next message; `None` at a proper end.
    async fn next(&mut self) -> Result<Option<http_request::Message>, Status> {
        let message = self.incoming.message().await?;
        self.moved.fetch_add(1, Ordering::Relaxed);
        let Some(message) = message else {
            self.order.finish().map_err(|error| out_of_order(&error))?;
            return Ok(None);
        };
        self.order.accept(&message).map_err(|error| out_of_order(&error))?;
        match message.message {
            Some(http_request::Message::UpgradeData(_)) => {
                Err(Status::invalid_argument("a request to GitLab cannot be upgraded"))
            }
            message => Ok(message),
        }
    }

    /// The next piece of the body; `None` after the last.
    async fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        match self.next().await? {
            Some(http_request::Message::Data(data)) => Ok(Some(data.data)),
            _ => Ok(None),
        }
    }
}

fn out_of_order(error: &OutOfOrder) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn exchange(
    rails: &Rails,
    permit: &AgentPermit,
    call: &Call,
    mut messages: Messages,
    sender: &Sender<HttpResponse>,
) -> Result<(), Status> {
    let Some(http_request::Message::Header(header)) = messages.next().await? else {
        return Err(Status::invalid_argument("a request begins with its header"));
    };
    let moved = Arc::clone(&messages.moved);
    let (request, mut broken) = module_request(header, messages).await?;
    let (agent_id, module) = (permit.agent.id, request.module.clone());
    let answer = tokio::select! {
        biased;
        Ok(status) = &mut broken => return Err(status),
        answer = rails.module_request(&permit.token, request, call) => answer,
    };
    let failed = |error: RailsError| {
        tracing::info!(%agent_id, module, error = %chain(&error), "request to a module failed");
        status_of(&error)
    };
    let ModuleAnswer { status, headers, mut body } = answer.map_err(failed)?;
    tracing::debug!(%agent_id, module, status = status.as_u16(), "request to a module answered");
    sender.send(wire_http::response_header(status, &headers)).await?;
    loop {
        let room = sender.room().await?;
        let piece = tokio::select! {
            biased;
            Ok(status) = &mut broken => return Err(status),
            piece = body.next() => piece,
        };
        moved.fetch_add(1, Ordering::Relaxed);
        let Some(piece) = piece else {
            room.send(response(http_response::Message::Trailer(http_response::Trailer {})));
            return Ok(());
        };
        let mut piece = piece.map_err(failed)?;
        room.send(data(piece.split_to(piece.len().min(MAX_DATA))));
        while !piece.is_empty() {
            sender.send(data(piece.split_to(piece.len().min(MAX_DATA)))).await?;
            moved.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Resolves with what is wrong with the agent's messages, if something is.
type Broken = Fuse<oneshot::Receiver<Status>>;

async fn module_request(
    header: http_request::Header,
    mut messages: Messages,
) -> Result<(ModuleRequest, Broken), Status> {
    let module = module(header.extra.as_ref())?;
    let request = header.request.unwrap_or_default();
    let bad = |error: wire_http::BadHead| Status::invalid_argument(error.to_string());
    let method =
        Method::from_bytes(request.method.as_bytes()).map_err(|_| bad(wire_http::BadHead::Method))?;
    let target = wire_http::request_target(&request).map_err(bad)?;
    let headers = wire_http::from_values(&request.header).map_err(bad)?;
    // A body of unknown length is sent in chunks, which some servers do not expect of a GET.
    let mut first = None;
    let none = match header.content_length {
        Some(0) => true,
        None if method == Method::GET || method == Method::HEAD => true,
        _ => false,
    };
    let ended = none && {
        first = messages.piece().await?;
        first.is_none()
    };
    if first.is_some() && header.content_length == Some(0) {
        return Err(Status::invalid_argument("a body follows a header that says there is none"));
    }
    let (broken, is_broken) = oneshot::channel();
    let body = if ended { no_body() } else { body(first, messages, broken) };
    Ok((ModuleRequest { module, method, target, headers, body }, is_broken.fuse()))
}

fn module(extra: Option<&prost_types::Any>) -> Result<String, Status> {
    let missing = || Status::unavailable("unavailable: the request's header does not name a module");
    let extra = extra.filter(|extra| extra.type_url.rsplit('/').next() == Some(HEADER_EXTRA));
    let extra = HeaderExtra::decode(extra.ok_or_else(missing)?.value.as_slice()).map_err(|_| missing())?;
    if extra.module_name.is_empty() { Err(missing()) } else { Ok(extra.module_name) }
}

/// What is left of the agent's body: the next message is taken when GitLab has room for it.
fn body(first: Option<Bytes>, messages: Messages, broken: oneshot::Sender<Status>) -> RequestBody {
    let first = stream::iter(first.map(Ok));
    streamed(futures::StreamExt::chain(first, pieces(messages, broken)))
}

fn pieces(
    messages: Messages,
    broken: oneshot::Sender<Status>,
) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    stream::unfold(Some((messages, broken)), |state| async {
        let (mut messages, broken) = state?;
        match messages.piece().await {
            Ok(Some(piece)) => Some((Ok(piece), Some((messages, broken)))),
            Ok(None) => None,
            Err(status) => {
                let _ = broken.send(status);
                Some((Err(io::Error::other("the agent's request broke off")), None))
            }
        }
    })
}

fn status_of(error: &RailsError) -> Status {
    match &error.fault {
        Fault::Illegal(what) => Status::invalid_argument(format!("the request cannot be sent: {what}")),
        _ => Status::unavailable("unavailable: GitLab gave no answer; see the broker's log"),
    }
}

fn data(data: Bytes) -> HttpResponse {
    response(http_response::Message::Data(http_response::Data { data }))
}

fn response(message: http_response::Message) -> HttpResponse {
    HttpResponse { message: Some(message) }
}

#[cfg(test)]
mod tests;
