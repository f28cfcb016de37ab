//! Replicas of one agent, in one cluster: one of them leads, and the next one as soon as that one stops.

use crate::{
    fake_broker::{FakeBroker, Via},
    harness::{Running, TOKEN, soon, try_start_at},
};
use postern_agent::cluster::Kind;
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::ConfigurationResponse,
    agentcfg::{AgentConfiguration, GitopsCf, ManifestProjectCf},
};
use stand_ins::kube_api::{KubeApi, Options};

/// A broker that has manifests for its agents, or none.
async fn broker(manifests: bool) -> FakeBroker {
    let broker = FakeBroker::start(Via::Grpc).await;
    let project = ManifestProjectCf { id: "leading/manifests".to_owned(), ..Default::default() };
    let gitops = manifests.then(|| GitopsCf { manifest_projects: vec![project] });
    let configuration = AgentConfiguration { agent_id: 7, gitops, ..Default::default() };
    let response = ConfigurationResponse { configuration: Some(configuration), commit_id: "c1".to_owned() };
    broker.state.configuration.send_replace(Some(response));
    broker
}

async fn replica(broker: &FakeBroker, api: &KubeApi, name: &str) -> Running {
    let env = [("AGENTK_TOKEN", TOKEN), ("POD_NAMESPACE", "default"), ("POD_NAME", name)];
    let address = format!("grpc://{}", broker.at);
    try_start_at(&address, &api.url(), &[], &env).await.expect("the agent starts")
}

async fn holder(of: &Running) -> Option<String> {
    let leases = Kind::new("coordination.k8s.io", "v1", "Lease", "leases", true);
    let lease = of.cluster.get(&leases, "default", "agent-7-lock").await.expect("the API answers")?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn the_second_replica_leads_once_the_first_has_stopped() {
    let (broker, api) = (broker(true).await, KubeApi::start(Options::default()).await.expect("a free port"));
    let mut first = replica(&broker, &api, "leading-1").await;
    soon("the first to lead", first.leads.wait_for(|leads| *leads)).await.expect("it runs");
    let mut second = replica(&broker, &api, "leading-2").await;
    assert_eq!(holder(&second).await.as_deref(), Some("leading-1"));
    let (_, metrics) = first.probe("/metrics").await;
    assert!(metrics.contains("agentk_leading 1"), "{metrics}");
    assert!(!*second.leads.borrow());
    first.stop();
    first.ended().await.expect("a clean end");
    soon("the second to lead", second.leads.wait_for(|leads| *leads)).await.expect("it runs");
    assert_eq!(holder(&second).await.as_deref(), Some("leading-2"));
}

#[tokio::test]
async fn an_agent_that_only_answers_requests_wants_no_lease() {
    let (broker, api) = (broker(false).await, KubeApi::start(Options::default()).await.expect("a free port"));
    let mut agent = replica(&broker, &api, "leading-3").await;
    let configured = agent.configuration.wait_for(|latest| latest.is_some());
    soon("the configuration", configured).await.expect("it runs");
    agent.stop();
    let (cluster, leads) = (agent.cluster.clone(), agent.leads.clone());
    agent.ended().await.expect("a clean end");
    assert!(!*leads.borrow());
    assert_eq!((api.requests().len(), cluster.calls()), (0, 0));
}
