//! Alerts about network policies, from a Hubble relay that is a stand-in to a broker that is a fake: which flows are
//! posted, how, and how often; what restarts, refusals and another leader do to that.

mod flows;

use crate::{
    fake_broker::{AskedGitlab, FakeBroker, Via},
    harness::{Still, TOKEN, keep_log, logged, soon, try_start_at},
};
use TrafficDirection::{Egress, Ingress};
use flows::{PROJECT, dropped, policies, request};
use futures::{StreamExt, stream, stream::BoxStream};
use http::HeaderMap;
use postern_agent::{
    alerts::{Alerts, Pace, Source},
    broker::{address::Address, dial::Dialler, proxy::Proxies, road, tls::Tls},
    cluster::Change,
    observability::Metrics,
};
use postern_certs::client::ClientTrust;
use postern_wire::{
    proto::{
        flow::{Flow, LostEvent, TrafficDirection, Verdict},
        gitlab::agent::{
            agent_configuration::rpc::ConfigurationResponse,
            agentcfg::{AgentConfiguration, CiliumCf},
        },
        observer::{GetFlowsResponse, get_flows_response::ResponseTypes},
    },
    token::AgentToken,
};
use prometheus_client::encoding::text;
use serde_json::{Value, json};
use stand_ins::{
    hubble::Hubble,
    kube_api::{KubeApi, Options},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// Policies as a cluster would tell of them.
#[derive(Clone)]
struct Told {
    now: Arc<Vec<Value>>,
    later: broadcast::Sender<Change>,
}

impl Source for Told {
    fn follow(&self) -> BoxStream<'static, Change> {
        let found = self.now.iter().map(|policy| Change::Found(Arc::new(policy.clone())));
        let list: Vec<_> = std::iter::once(Change::Begun).chain(found).chain([Change::Listed]).collect();
        let later = stream::unfold(self.later.subscribe(), |mut later| async move {
            let change = later.recv().await.ok()?;
            Some((change, later))
        });
        stream::iter(list).chain(later).chain(stream::pending()).boxed()
    }
}

/// Everything between a relay and GitLab.
struct Field {
    broker: FakeBroker,
    hubble: Hubble,
    later: broadcast::Sender<Change>,
    configuration: watch::Sender<Option<Arc<AgentConfiguration>>>,
    leads: watch::Sender<bool>,
    metrics: Metrics,
    _tasks: [AbortOnDropHandle<()>; 2],
}

fn configured(relay: Option<&str>) -> Option<Arc<AgentConfiguration>> {
    Some(Arc::new(AgentConfiguration {
        agent_id: 7,
        project_id: PROJECT,
        cilium: relay.map(|relay| CiliumCf { hubble_relay_address: relay.to_owned() }),
        ..AgentConfiguration::default()
    }))
}

impl Field {
    async fn new() -> Self {
        keep_log();
        let broker = FakeBroker::start(Via::Grpc).await;
        let hubble = Hubble::start().await.expect("a free port");
        let (_, token) = watch::channel(AgentToken::new(TOKEN).expect("a token"));
        let dialler = Dialler {
            address: Address::parse(&format!("grpc://{}", broker.at)).expect("an address"),
            headers: HeaderMap::new(),
            tls: Tls { trust: ClientTrust::load(None).expect("roots"), skip_verify: false },
            tls_server_name: None,
            proxies: Proxies::none(),
            user_agent: "test".to_owned(),
        };
        let metrics = Metrics::default();
        let (road, keeper) = road(dialler, token, "a test", metrics.clone());
        let configuration = watch::Sender::new(configured(Some(&hubble.address())));
        let leads = watch::Sender::new(true);
        let later = broadcast::Sender::new(100);
        let soon = Duration::from_millis(20);
        let alerts = Alerts {
            road,
            configuration: configuration.subscribe(),
            leads: leads.subscribe(),
            policies: Told { now: Arc::new(policies()), later: later.clone() },
            pace: Pace { again: soon, first: soon, most: 3 * soon, post_again: soon },
            metrics: metrics.clone(),
        };
        let tasks = [tokio::spawn(keeper.keep_connected()), tokio::spawn(alerts.run())];
        let _tasks = tasks.map(AbortOnDropHandle::new);
        Self { broker, hubble, later, configuration, leads, metrics, _tasks }
    }

    /// The same, once the relay is being asked.
    async fn following() -> Self {
        let field = Self::new().await;
        field.streams(1).await;
        field
    }

    async fn streams(&self, count: usize) {
        let what = format!("{count} streams of flows");
        soon(&what, self.hubble.streams().wait_for(|open| *open == count)).await.expect("it lives");
    }

    /// The posts, once there are so many.
    async fn posts(&self, count: usize) -> Vec<AskedGitlab> {
        let mut asked = self.broker.state.asked_gitlab.subscribe();
        let enough = asked.wait_for(|asked| asked.len() >= count);
        let asked = soon(&format!("{count} posts"), enough).await.expect("it lives").clone();
        assert_eq!(asked.len(), count, "{:?}", said(&asked));
        asked
    }

    /// A flow that is always posted and comes after all others: then those before it have been judged.
    async fn nothing_more_than(&self, count: usize) -> Vec<AskedGitlab> {
        self.hubble.send(dropped("last", "last", "web", 1, Ingress));
        self.posts(count + 1).await
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let mut all = String::new();
        text::encode(&mut all, &self.metrics.registry(&postern_agent::PROGRAM)).expect("text");
        let line = all.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
    }

    /// Waits until a metric has this value.
    async fn measures(&self, name: &str, value: f64) {
        soon(&format!("{name} {value}"), async {
            while self.metric(name) != Some(value) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

fn body(post: &AskedGitlab) -> Value {
    serde_json::from_slice(&post.body).expect("JSON")
}

/// Flow and policy of each post.
fn said(posts: &[AskedGitlab]) -> BTreeMap<String, String> {
    let of = |post: &AskedGitlab| {
        let alert = &body(post)["alert"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&alert["flow"]["uuid"]), text(&alert["ciliumNetworkPolicy"]["metadata"]["name"]))
    };
    posts.iter().map(of).collect()
}

#[tokio::test]
async fn recorded_flows_lead_to_the_expected_posts_and_none_twice() {
    let field = Field::following().await;
    let recorded: Vec<(Flow, Option<&str>)> = vec![
        (dropped("allowed-in", "front", "web", 8080, Ingress), None),
        (dropped("allowed-out", "web", "db", 5432, Egress), None),
        (dropped("strange-peer", "other", "web", 8080, Ingress), Some("web")),
        (dropped("strange-port", "front", "web", 22, Ingress), Some("web")),
        (dropped("to-the-world", "web", "world", 443, Egress), Some("web")),
        (dropped("from-the-world", "world", "web", 8080, Ingress), Some("web")),
        (dropped("unknown-direction", "other", "web", 8080, TrafficDirection::Unknown), None),
        (dropped("of-silent-policies", "other", "db", 5432, Ingress), None),
        (request("public", "front", "api", "GET", "http://api.shop/public/prices?x=1"), None),
        (request("admin", "front", "api", "GET", "http://api.shop/admin"), Some("api")),
        (request("change", "front", "api", "POST", "http://api.shop/public/prices"), Some("api")),
        (dropped("refused-at-api", "front", "api", 80, Ingress), Some("api")),
    ];
    let mut again = dropped("strange-peer-again", "other", "web", 8080, Ingress);
    again.summary = "TCP Flags: SYN, ECE".to_owned();
    let mut forwarded = dropped("forwarded", "other", "web", 8081, Ingress);
    forwarded.verdict = Verdict::Forwarded as i32;
    for (flow, _) in &recorded {
        field.hubble.send(flow.clone());
    }
    field.hubble.send(again);
    field.hubble.send(forwarded);

    let mut wanted: BTreeMap<_, _> = recorded
        .iter()
        .filter_map(|(flow, policy)| Some((flow.uuid.clone(), policy.as_ref()?.to_string())))
        .collect();
    let posts = field.nothing_more_than(wanted.len()).await;
    wanted.insert("last".to_owned(), "web".to_owned());
    assert_eq!(said(&posts), wanted);
    field.measures("agentk_alerts_total{result=\"posted\"}", wanted.len() as f64).await;
    assert_eq!(field.metric("agentk_alerts_total{result=\"repeated\"}"), Some(1.0));
    assert_eq!(field.metric("agentk_alert_policies"), Some(2.0));
    // All that the relay had to tell: not the one that was forwarded.
    assert_eq!(field.metric("agentk_alert_flows_total"), Some(recorded.len() as f64 + 2.0));

    let first = field.hubble.requests().borrow()[0].clone();
    assert!(first.follow && first.since.is_some() && first.number == 0);
    assert_eq!(first.whitelist.len(), 1);
    assert_eq!(first.whitelist[0].verdict, [2]);
    assert_eq!(first.whitelist[0].event_type.iter().map(|event| event.r#type).collect::<Vec<_>>(), [5, 129]);
}

#[tokio::test]
async fn a_post_is_what_gitlab_expects() {
    let field = Field::following().await;
    field.hubble.send(request("r", "front", "api", "GET", "http://api.shop/admin"));
    let posts = field.posts(1).await;
    let post = &posts[0];
    assert_eq!((post.module.as_str(), post.method.as_str()), ("cilium_alert", "POST"));
    assert_eq!((post.target.as_str(), post.content_type.as_str()), ("/", "application/json"));
    assert_eq!(post.content_length, Some(post.body.len() as i64));
    let body = body(post);
    assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["alert"]);
    let alert = body["alert"].as_object().unwrap();
    assert_eq!(alert.keys().collect::<Vec<_>>(), ["ciliumNetworkPolicy", "flow"]);
    let (flow, policy) = (&alert["flow"], &alert["ciliumNetworkPolicy"]);
    assert!(flow["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(flow["verdict"], "DROPPED");
    assert_eq!(flow["trafficDirection"], "INGRESS");
    assert_eq!(flow["source"]["podName"], "front-7d4f9c6b8-00001");
    assert_eq!(flow["l7"]["http"]["url"], "http://api.shop/admin");
    assert_eq!(flow["l4"]["TCP"]["destinationPort"], 80);
    assert_eq!(policy["metadata"]["uid"], "uid-of-api");
    assert_eq!(policy["spec"], policies()[1]["spec"]);
    assert_eq!((policy.get("status"), policy["metadata"].get("managedFields")), (None, None));
}

#[tokio::test]
async fn a_large_alert_comes_in_pieces() {
    let field = Field::following().await;
    let mut large = dropped("large", "other", "web", 8080, Ingress);
    large.summary = "x".repeat(100 * 1024);
    field.hubble.send(large);
    let posts = field.posts(1).await;
    assert!(posts[0].body.len() > 64 * 1024);
    let summary = &body(&posts[0])["alert"]["flow"]["Summary"];
    assert_eq!(summary.as_str().map(str::len), Some(100 * 1024), "{}", posts[0].body.len());
    // One that is larger than any flow is breaks the stream, which begins anew after it.
    let mut huge = dropped("huge", "other", "web", 8081, Ingress);
    huge.summary = "x".repeat(300 * 1024);
    field.hubble.send(huge);
    soon("the next stream", field.hubble.requests().wait_for(|asked| asked.len() > 1)).await.unwrap();
    field.streams(1).await;
    field.nothing_more_than(1).await;
}

#[tokio::test]
async fn a_relay_may_end_refuse_break_and_restart_without_loss_or_repetition() {
    let mut field = Field::following().await;
    field.hubble.send(dropped("1", "other", "web", 1001, Ingress));
    field.posts(1).await;
    field.hubble.end_streams();
    soon("another stream", field.hubble.requests().wait_for(|asked| asked.len() >= 2)).await.unwrap();
    field.streams(1).await;
    field.hubble.send(dropped("2", "other", "web", 1002, Ingress));
    field.posts(2).await;

    field.hubble.refuse(Some(Status::unavailable("the peers are not there yet")));
    field.hubble.break_streams(Status::internal("lost its peers"));
    logged(&["no flows from the hubble relay", &field.hubble.address(), "not there yet", "retry_in"]).await;
    field.hubble.send(dropped("3", "other", "web", 1003, Ingress));
    field.hubble.refuse(None);
    field.posts(3).await;

    field.hubble.stop().await;
    field.measures("agentk_alert_relay_connected", 0.0).await;
    logged(&["cannot connect to the hubble relay", &field.hubble.address()]).await;
    field.hubble.send(dropped("4", "other", "web", 1004, Ingress));
    field.hubble.start_again().await.unwrap();
    field.posts(4).await;
    field.measures("agentk_alert_relay_connected", 1.0).await;
    let posts = field.nothing_more_than(4).await;
    assert_eq!(said(&posts).keys().collect::<Vec<_>>(), ["1", "2", "3", "4", "last"]);
    let asked = field.hubble.requests().borrow().clone();
    let since: Vec<_> = asked.iter().map(|request| request.since.map(|at| (at.seconds, at.nanos))).collect();
    assert!(since.is_sorted() && since.first() < since.last(), "{since:?}");
    // What is not a flow is passed over.
    let lost = LostEvent { source: 1, num_events_lost: 5 };
    field.hubble.say(GetFlowsResponse {
        response_types: Some(ResponseTypes::LostEvents(lost)),
        ..GetFlowsResponse::default()
    });
    field.hubble.say(GetFlowsResponse::default());
    field.hubble.send(dropped("5", "other", "web", 1005, Ingress));
    field.posts(6).await;
}

#[tokio::test]
async fn policies_are_those_that_the_cluster_has_now() {
    let field = Field::following().await;
    let deny = json!({"endpointSelector": {"matchLabels": {"app": "db"}}});
    let other = |uuid: &str, port| dropped(uuid, "other", "db", port, Ingress);
    field.hubble.send(other("before", 1));
    field.nothing_more_than(0).await;
    let change = |change| field.later.send(change).expect("it is followed");
    change(Change::Applied(Arc::new(flows::policy("db", "21", "true", &deny))));
    field.measures("agentk_alert_policies", 3.0).await;
    field.hubble.send(other("during", 2));
    let posts = field.posts(2).await;
    assert_eq!(said(&posts)["during"], "db");
    change(Change::Applied(Arc::new(flows::policy("db", "21", "false", &deny))));
    field.measures("agentk_alert_policies", 2.0).await;
    field.hubble.send(other("after", 3));
    field.hubble.send(dropped("sentinel", "other", "web", 1, Ingress));
    assert!(!said(&field.posts(3).await).contains_key("after"));
}

#[tokio::test]
async fn only_the_leader_of_a_configured_agent_follows_flows() {
    let field = Field::following().await;
    field.leads.send_replace(false);
    field.streams(0).await;
    field.measures("agentk_alert_policies", 0.0).await;
    field.measures("agentk_alert_relay_connected", 0.0).await;
    field.leads.send_replace(true);
    field.streams(1).await;
    let asked = field.hubble.requests().borrow().len();
    // The same once more changes nothing.
    field.configuration.send_replace(configured(Some(&field.hubble.address())));
    field.configuration.send_replace(configured(None));
    field.streams(0).await;
    assert_eq!(field.hubble.requests().borrow().len(), asked);
    let elsewhere = Hubble::start().await.unwrap();
    field.configuration.send_replace(configured(Some(&elsewhere.address())));
    soon("the other relay", elsewhere.streams().wait_for(|open| *open == 1)).await.unwrap();
    field.configuration.send_replace(configured(Some("https://relay.of.nowhere")));
    soon("the end", elsewhere.streams().wait_for(|open| *open == 0)).await.unwrap();
    logged(&["\"ERROR\"", "no alerts about network policies", "write host:port"]).await;
    field.configuration.send_replace(configured(Some(&field.hubble.address())));
    field.streams(1).await;
    field.hubble.send(dropped("again", "other", "web", 8080, Ingress));
    field.posts(1).await;
}

#[tokio::test]
async fn what_gitlab_does_not_take_is_tried_again_or_said() {
    let field = Field::following().await;
    let answers = |answers: &[u16]| {
        *field.broker.state.gitlab_answers.lock().unwrap() = answers.iter().copied().collect();
    };
    answers(&[503, 502, 204]);
    field.hubble.send(dropped("patience", "other", "web", 1001, Ingress));
    field.posts(3).await;
    field.measures("agentk_alerts_total{result=\"posted\"}", 1.0).await;

    answers(&[403]);
    field.hubble.send(dropped("refused", "other", "web", 1002, Ingress));
    field.measures("agentk_alerts_total{result=\"failed\"}", 1.0).await;
    let line = logged(&["\"alert not posted\"", "shop/web", "403"]).await;
    assert!(line.contains("licence"), "{line}");
    field.posts(4).await;
    // It has not been said: the next flow like it is.
    field.hubble.send(dropped("refused-again", "other", "web", 1002, Ingress));
    field.posts(5).await;
    field.measures("agentk_alerts_total{result=\"posted\"}", 2.0).await;
}

#[tokio::test]
async fn an_alert_waits_for_a_broker_that_is_away() {
    let field = Field::following().await;
    let (at, state) = (field.broker.at.clone(), field.broker.state.clone());
    field.broker.kill();
    field.measures("agentk_broker_connected", 0.0).await;
    field.hubble.send(dropped("patient", "other", "web", 8080, Ingress));
    field.measures("agentk_alert_flows_total", 1.0).await;
    let _broker = FakeBroker::start_at(&at, Via::Grpc, state).await;
    assert_eq!(said(&field.posts(1).await).len(), 1);
}

#[tokio::test]
async fn a_policy_that_everything_goes_against_does_not_flood_gitlab() {
    let field = Field::following().await;
    // Every six seconds there may be one more.
    let _still = Still::begin();
    for port in 0..100 {
        field.hubble.send(dropped("flood", "other", "web", 2_000 + port, Ingress));
    }
    field.hubble.send(request("quiet", "front", "api", "GET", "http://api.shop/admin"));
    field.posts(21).await;
    assert_eq!(field.metric("agentk_alerts_total{result=\"limited\"}"), Some(80.0));
}

#[tokio::test]
async fn a_flow_with_more_labels_than_anybody_has_is_skipped_and_counted() {
    let field = Field::following().await;
    let mut crowded = dropped("crowded", "other", "web", 8080, Ingress);
    if let Some(source) = &mut crowded.source {
        source.labels = vec!["k8s:app=other".to_owned(); 10_000];
    }
    field.hubble.send(crowded);
    field.nothing_more_than(0).await;
    assert_eq!(field.metric("agentk_alerts_total{result=\"skipped\"}"), Some(1.0));
}

#[tokio::test]
async fn a_whole_agent_follows_its_configuration_and_its_cluster() {
    let (broker, hubble) = (FakeBroker::start(Via::Grpc).await, Hubble::start().await.expect("a free port"));
    let api = KubeApi::start(Options::default()).await.expect("a free port");
    let namespace = |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    for object in [namespace("shop"), namespace("postern")].into_iter().chain(policies()) {
        api.create(object).expect("a legal object");
    }
    let configure = |commit_id: &str, relay: Option<&str>| {
        let configuration = configured(relay).as_deref().cloned();
        let response = ConfigurationResponse { configuration, commit_id: commit_id.to_owned() };
        broker.state.configuration.send_replace(Some(response));
    };
    configure("1", Some(&hubble.address()));
    let pod = [("AGENTK_TOKEN", TOKEN), ("POD_NAMESPACE", "postern"), ("POD_NAME", "agentk-alerts-0")];
    let mut agent =
        try_start_at(&format!("grpc://{}", broker.at), &api.url(), &[], &pod).await.expect("it starts");
    soon("a stream of flows", hubble.streams().wait_for(|open| *open == 1)).await.expect("it lives");
    hubble.send(dropped("whole", "other", "web", 8080, Ingress));
    let mut asked = broker.state.asked_gitlab.subscribe();
    let asked = soon("a post", asked.wait_for(|asked| !asked.is_empty())).await.expect("it lives").clone();
    assert_eq!(said(&asked)["whole"], "web");
    let (_, metrics) = agent.probe("/metrics").await;
    assert!(metrics.contains("agentk_alert_policies 2"), "{metrics}");
    configure("2", None);
    soon("the end of the stream", hubble.streams().wait_for(|open| *open == 0)).await.expect("it lives");
    configure("3", Some(&hubble.address()));
    soon("another stream", hubble.streams().wait_for(|open| *open == 1)).await.expect("it lives");
    agent.stop();
    agent.ended().await.expect("it drains");
    soon("the end of the stream", hubble.streams().wait_for(|open| *open == 0)).await.expect("it lives");
}
