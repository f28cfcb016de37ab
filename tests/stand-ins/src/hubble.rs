//! A Hubble relay: flows over gRPC in clear, kept in memory, told to whoever follows and, with `since`, again to who comes
//! later. It filters as the real one does and can be told to refuse, to end streams and to be away for a while. Gone,
//! connections included, when the [`Hubble`] is dropped.

#[cfg(test)]
mod tests;

use futures::{Stream, StreamExt, stream};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use postern_wire::proto::{
    flow::{Flow, FlowFilter},
    observer::{
        GetFlowsRequest, GetFlowsResponse,
        get_flows_response::ResponseTypes,
        observer_server::{Observer, ObserverServer},
    },
};
use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::{Request, Response, Status, service::Routes};

/// Flows that are kept for those who come later.
const KEPT: usize = 1_000;
/// How far a stream may stay behind before it is ended.
const AHEAD: usize = 1_000;
/// Requests that are remembered.
const REQUESTS: usize = 1_000;
const CONNECTIONS: usize = 64;

/// A running stand-in.
pub struct Hubble {
    address: SocketAddr,
    state: Arc<State>,
    serving: Option<JoinHandle<()>>,
}

struct State {
    kept: Mutex<VecDeque<Flow>>,
    news: broadcast::Sender<News>,
    refusal: Mutex<Option<Status>>,
    requests: watch::Sender<Vec<GetFlowsRequest>>,
    streams: watch::Sender<usize>,
}

/// What happens to open streams.
#[derive(Clone)]
enum News {
    Message(Box<GetFlowsResponse>),
    End,
    Break(Status),
}

impl Hubble {
    /// On a free port of loopback.
    ///
    /// # Errors
    /// There is none.
    pub async fn start() -> io::Result<Hubble> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            kept: Mutex::default(),
            news: broadcast::Sender::new(AHEAD),
            refusal: Mutex::default(),
            requests: watch::Sender::new(Vec::new()),
            streams: watch::Sender::new(0),
        });
        let serving = Some(tokio::spawn(accept(listener, Arc::clone(&state))));
        Ok(Hubble { address, state, serving })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// A flow was seen, just now unless it says when.
    pub fn send(&self, mut flow: Flow) {
        let time = *flow.time.get_or_insert_with(|| SystemTime::now().into());
        let message = GetFlowsResponse {
            node_name: flow.node_name.clone(),
            time: Some(time),
            response_types: Some(ResponseTypes::Flow(flow.clone())),
        };
        // Under the lock: who comes now gets it as one that is kept or as news, not as both.
        let mut kept = self.state.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(flow);
        let _ = self.state.news.send(News::Message(Box::new(message)));
    }

    /// Says this to everybody who follows, whatever it is.
    pub fn say(&self, message: GetFlowsResponse) {
        let _ = self.state.news.send(News::Message(Box::new(message)));
    }

    /// Ends all streams with OK.
    pub fn end_streams(&self) {
        let _ = self.state.news.send(News::End);
    }

    /// Ends all streams with an error.
    pub fn break_streams(&self, status: Status) {
        let _ = self.state.news.send(News::Break(status));
    }

    /// Refuses requests from now on; `None`: serves them again.
    pub fn refuse(&self, status: Option<Status>) {
        *self.state.refusal.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// What was asked so far, refused requests included.
    pub fn requests(&self) -> watch::Receiver<Vec<GetFlowsRequest>> {
        self.state.requests.subscribe()
    }

    /// How many streams are open.
    pub fn streams(&self) -> watch::Receiver<usize> {
        self.state.streams.subscribe()
    }

    /// Closes the listener and breaks every connection. Flows are kept: they are the nodes', not the relay's.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Listens again where it did before.
    ///
    /// # Errors
    /// Somebody else does by now.
    pub async fn start_again(&mut self) -> io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await?;
        self.serving = Some(tokio::spawn(accept(listener, Arc::clone(&self.state))));
        Ok(())
    }
}

impl Drop for Hubble {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// Connections end with this task, which owns them.
async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((io, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            continue;
        }
        let routes = Routes::new(ObserverServer::from_arc(Arc::clone(&state)));
        let service = TowerToHyperService::new(routes.prepare());
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service);
        connections.spawn(async move {
            if let Err(error) = serving.await {
                tracing::debug!(%error, "a connection to the stand-in for a hubble relay broke");
            }
        });
    }
}

impl State {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Flow>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self) -> Option<Status> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl Observer for State {
    type GetFlowsStream = Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let request = request.into_inner();
        self.requests.send_modify(|requests| {
            if requests.len() < REQUESTS {
                requests.push(request.clone());
            }
        });
        if let Some(status) = self.refusal() {
            return Err(status);
        }
        let (past, news) = {
            let kept = self.kept();
            let past: VecDeque<Flow> = kept.iter().filter(|flow| is_past(flow, &request)).cloned().collect();
            (past, self.news.subscribe())
        };
        let told = Told { past, news, request, _open: Open::count(&self.streams) };
        let mut told = Box::pin(stream::unfold(told, next));
        // Like Go's servers, which send no headers before there is a message or an end.
        let first = told.next().await;
        Ok(Response::new(Box::pin(stream::iter(first).chain(told))))
    }
}

/// What a stream tells.
struct Told {
    past: VecDeque<Flow>,
    news: broadcast::Receiver<News>,
    request: GetFlowsRequest,
    _open: Open,
}

async fn next(mut told: Told) -> Option<(Result<GetFlowsResponse, Status>, Told)> {
    if let Some(flow) = told.past.pop_front() {
        let (node_name, time) = (flow.node_name.clone(), flow.time);
        let message = GetFlowsResponse { node_name, time, response_types: Some(ResponseTypes::Flow(flow)) };
        return Some((Ok(message), told));
    }
    while told.request.follow {
        match told.news.recv().await {
            Ok(News::Message(message)) => {
                let fits = match &message.response_types {
                    Some(ResponseTypes::Flow(flow)) => is_wanted(flow, &told.request),
                    _ => true,
                };
                if fits {
                    return Some((Ok(*message), told));
                }
            }
            Ok(News::Break(status)) => {
                told.request.follow = false;
                return Some((Err(status), told));
            }
            Ok(News::End) | Err(_) => return None,
        }
    }
    None
}

fn is_past(flow: &Flow, request: &GetFlowsRequest) -> bool {
    let at = flow.time.map(|time| (time.seconds, time.nanos));
    let since = request.since.map(|since| (since.seconds, since.nanos));
    let until = request.until.map(|until| (until.seconds, until.nanos));
    since.is_some() && at >= since && (until.is_none() || at <= until) && is_wanted(flow, request)
}

fn is_wanted(flow: &Flow, request: &GetFlowsRequest) -> bool {
    let fits = |filters: &[FlowFilter]| filters.iter().any(|filter| fits(flow, filter));
    (request.whitelist.is_empty() || fits(&request.whitelist)) && !fits(&request.blacklist)
}

fn fits(flow: &Flow, filter: &FlowFilter) -> bool {
    let event = flow.event_type.unwrap_or_default();
    let verdict = filter.verdict.is_empty() || filter.verdict.contains(&flow.verdict);
    let of_type = filter.event_type.is_empty()
        || filter.event_type.iter().any(|wanted| {
            wanted.r#type == event.r#type && (!wanted.match_sub_type || wanted.sub_type == event.sub_type)
        });
    verdict && of_type
}

/// Counts as an open stream.
struct Open(watch::Sender<usize>);

impl Open {
    fn count(streams: &watch::Sender<usize>) -> Open {
        streams.send_modify(|open| *open += 1);
        Open(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}
