//! The whole way: an API server, the agent's own client of it, views, and a broker over gRPC. In real time.

use super::{all, broker::Broker, objects::event, plan, small_cluster};
use crate::{
    broker::{Road, address::Address, dial::Dialler, proxy::Proxies, road, tls::Tls},
    cluster::Cluster,
    kubernetes_api::{Access, Overrides, Settings},
    observability::Metrics,
    views::{plan::Plan, run},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use postern_certs::client::ClientTrust;
use postern_wire::{
    proto::{
        gitlab::agent::agentcfg::ViewsCf,
        postern::agent::{
            PushViewsResponse, ReportRequest, ReportResponse, ViewUpdate,
            agent_reports_server::{AgentReports, AgentReportsServer},
        },
    },
    token::AgentToken,
};
use serde_json::{Value, json};
use stand_ins::kube_api::{KubeApi, Options};
use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming, service::Routes};

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A broker as far as views are concerned.
struct Reports {
    at: String,
    state: Arc<State>,
    streams: mpsc::Receiver<Stream>,
    _accepting: AbortOnDropHandle<()>,
}

struct State {
    wants_views: watch::Sender<bool>,
    asked: watch::Sender<usize>,
    streams: mpsc::Sender<Stream>,
    connections: Mutex<JoinSet<()>>,
}

struct Stream {
    updates: Streaming<ViewUpdate>,
    end: oneshot::Sender<Result<(), Status>>,
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl AgentReports for Service {
    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        Err(Status::unimplemented("no reports here"))
    }

    async fn push_views(
        &self,
        request: Request<Streaming<ViewUpdate>>,
    ) -> Result<Response<PushViewsResponse>, Status> {
        self.0.asked.send_modify(|asked| *asked += 1);
        if !*self.0.wants_views.borrow() {
            return Err(Status::unimplemented("unknown service"));
        }
        let (end, ended) = oneshot::channel();
        let _ = self.0.streams.send(Stream { updates: request.into_inner(), end }).await;
        ended.await.unwrap_or(Ok(()))?;
        Ok(Response::new(PushViewsResponse {}))
    }
}

impl Reports {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let (sender, streams) = mpsc::channel(10);
        let state = Arc::new(State {
            wants_views: watch::Sender::new(true),
            asked: watch::Sender::new(0),
            streams: sender,
            connections: Mutex::default(),
        });
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let routes = Routes::new(AgentReportsServer::new(Service(shared.clone()))).prepare();
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes));
                shared.connections.lock().unwrap().spawn(async {
                    let _ = serving.await;
                });
            }
        });
        Self { at, state, streams, _accepting: AbortOnDropHandle::new(accepting) }
    }

    async fn stream(&mut self) -> Stream {
        soon("a stream", self.streams.recv()).await.unwrap()
    }

    fn end_connections(&self) {
        self.state.connections.lock().unwrap().abort_all();
    }
}

impl Stream {
    /// Takes messages until it is so.
    async fn until(&mut self, model: &mut Broker, what: &str, so: impl Fn(&Broker) -> bool) {
        soon(what, async {
            while !so(model) {
                let update = self.updates.message().await.unwrap();
                model.take(update.unwrap_or_else(|| panic!("the stream ended before {what}")));
            }
        })
        .await;
    }

    /// A new one: everything comes.
    async fn everything(&mut self, views: usize) -> Broker {
        let mut model = Broker::new();
        self.until(&mut model, "everything", |model| model.views.len() == views).await;
        model
    }
}

fn road_to(reports: &Reports) -> (Road, AbortOnDropHandle<()>) {
    postern_certs::install_provider();
    let dialler = Dialler {
        address: Address::parse(&format!("grpc://{}", reports.at)).unwrap(),
        headers: http::HeaderMap::new(),
        tls: Tls { trust: ClientTrust::load(None).unwrap(), skip_verify: false },
        tls_server_name: None,
        proxies: Proxies::none(),
        user_agent: "agentk".to_owned(),
    };
    let token = AgentToken::new("some-token-of-an-agent").unwrap();
    let (road, keeper) = road(dialler, watch::channel(token).1, "a test", Metrics::default());
    (road, AbortOnDropHandle::new(tokio::spawn(keeper.keep_connected())))
}

#[tokio::test]
async fn every_stream_begins_with_everything_and_the_last_one_with_the_end() {
    let mut reports = Reports::start().await;
    let (road, _keeping) = road_to(&reports);
    let cluster = Arc::new(small_cluster());
    let (plans, wanted) = watch::channel(plan(all()));
    let running = tokio::spawn({
        let cluster = cluster.clone();
        async move { run(&road, cluster, &wanted).await }
    });
    let mut stream = reports.stream().await;
    let first = stream.everything(5).await;
    // The broker wants it to come to another one.
    let _ = stream.end.send(Ok(()));
    let mut stream = reports.stream().await;
    assert_eq!(stream.everything(5).await.views, first.views);
    reports.end_connections();
    let mut stream = reports.stream().await;
    let mut model = stream.everything(5).await;
    assert_eq!(model.views, first.views);
    assert_eq!(cluster.followed(), 6, "what is known is known");
    plans.send_replace(Plan::default());
    stream.until(&mut model, "the end of all views", |model| model.ended.len() == 5).await;
    assert!(soon("the end of the stream", stream.updates.message()).await.unwrap().is_none());
    let _ = stream.end.send(Ok(()));
    soon("the end", running).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_knows_no_views_is_asked_once_a_connection() {
    let mut reports = Reports::start().await;
    reports.state.wants_views.send_replace(false);
    let (road, _keeping) = road_to(&reports);
    let cluster = Arc::new(small_cluster());
    let (_plans, wanted) = watch::channel(plan(all()));
    let _running = AbortOnDropHandle::new(tokio::spawn({
        let cluster = cluster.clone();
        async move { run(&road, cluster, &wanted).await }
    }));
    let mut asked = reports.state.asked.subscribe();
    soon("a question", asked.wait_for(|asked| *asked == 1)).await.unwrap();
    reports.end_connections();
    soon("another one", asked.wait_for(|asked| *asked == 2)).await.unwrap();
    assert_eq!(cluster.followed(), 0);
    // It has been replaced by a newer one.
    reports.state.wants_views.send_replace(true);
    reports.end_connections();
    assert_eq!(reports.stream().await.everything(5).await.views.len(), 5);
    assert_eq!((*asked.borrow(), cluster.followed()), (3, 6));
}

fn served(kind: &str, mut object: Value) -> Value {
    object["apiVersion"] = json!("v1");
    object["kind"] = json!(kind);
    object["metadata"]["namespace"] = json!("default");
    object["metadata"]["labels"] = json!({});
    object
}

#[tokio::test]
async fn views_of_an_api_server_that_restarts_and_forgets_are_right_again() {
    let mut api = KubeApi::start(Options::default()).await.unwrap();
    api.create(served("Event", event("default", "first", 1))).unwrap();
    let mut reports = Reports::start().await;
    let (road, _keeping) = road_to(&reports);
    let overrides = Overrides { server: Some(api.url().parse().unwrap()), ..Overrides::default() };
    let access = Access::load(Settings { overrides, ..Settings::default() }).await.unwrap();
    let (cluster, _recorder) = Cluster::new(access, "pod-1", &Metrics::default());
    let (_plans, wanted) = watch::channel(plan(ViewsCf { events: true, ..ViewsCf::default() }));
    let _running =
        AbortOnDropHandle::new(tokio::spawn(async move { run(&road, Arc::new(cluster), &wanted).await }));

    let mut stream = reports.stream().await;
    let mut model = stream.everything(1).await;
    let keys = |model: &Broker| model.view("events").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&model), ["default/first"]);
    api.create(served("Event", event("default", "second", 2))).unwrap();
    stream.until(&mut model, "a second event", |model| keys(model).len() == 2).await;
    api.delete("v1", "Event", "default", "first").unwrap();
    stream.until(&mut model, "the first is gone", |model| keys(model) == ["default/second"]).await;

    api.stop().await;
    api.delete("v1", "Event", "default", "second").unwrap();
    api.create(served("Event", event("default", "third", 3))).unwrap();
    api.forget_history();
    api.serve_again().await.unwrap();
    stream.until(&mut model, "what happened meanwhile", |model| keys(model) == ["default/third"]).await;
}
