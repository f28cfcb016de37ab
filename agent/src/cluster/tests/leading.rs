//! Who leads, over HTTP; `leader/tests.rs` has what needs a broken network.

use super::{super::leader, *};
use crate::config::Pod;
use leader::{Leader, Term};
use postern_wire::proto::gitlab::agent::agentcfg::{
    AgentConfiguration, CiAccessCf, GitopsCf, ManifestProjectCf, ViewsCf,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn of_two_replicas_one_leads_and_the_other_when_that_stops() {
    let (api, cluster) = start().await;
    let (other, _) = reach(&api.url(), &Metrics::default()).await;
    let first = Leader::new(&cluster, "agent-7-lock", "default", "one");
    let (mut leads, stop) = (first.leads(), CancellationToken::new());
    let running = tokio::spawn(first.run(stop.clone()));
    soon("the first", leads.wait_for(|leads| *leads)).await.unwrap();
    let second = Leader::new(&other, "agent-7-lock", "default", "two");
    let mut second_leads = second.leads();
    let waiting = tokio::spawn(second.run(CancellationToken::new()));
    let kind = cluster.kind("coordination.k8s.io", "v1", "Lease").await.unwrap();
    let lease = cluster.get(&kind, "default", "agent-7-lock").await.unwrap().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "one");
    assert!(!*second_leads.borrow());
    stop.cancel();
    drop(leads);
    soon("the release", running).await.unwrap();
    soon("the second", second_leads.wait_for(|leads| *leads)).await.unwrap();
    waiting.abort();
}

#[test]
fn only_an_agent_with_work_for_one_replica_wants_a_lease() {
    let nothing = AgentConfiguration { agent_id: 7, ..Default::default() };
    assert_eq!(leader::wanted(&nothing), None);
    let access = AgentConfiguration { ci_access: Some(CiAccessCf::default()), ..nothing.clone() };
    assert_eq!(leader::wanted(&access), None);
    let projects = GitopsCf { manifest_projects: vec![ManifestProjectCf::default()] };
    let gitops = AgentConfiguration { gitops: Some(projects), ..nothing.clone() };
    assert_eq!(leader::wanted(&gitops).as_deref(), Some("agent-7-lock"));
    let views = AgentConfiguration { views: Some(ViewsCf::default()), ..nothing };
    assert_eq!(leader::wanted(&views), None, "no view is on");
    let nodes = ViewsCf { nodes: true, ..ViewsCf::default() };
    let views = AgentConfiguration { views: Some(nodes), ..views };
    assert_eq!(leader::wanted(&views).as_deref(), Some("agent-7-lock"));
}

#[tokio::test]
async fn the_configuration_decides_whether_there_is_an_election() {
    let (api, cluster) = start().await;
    let idle = AgentConfiguration { agent_id: 7, ..Default::default() };
    let nodes = ViewsCf { nodes: true, ..ViewsCf::default() };
    let busy = AgentConfiguration { views: Some(nodes), ..idle.clone() };
    let (latest_sender, latest) = watch::channel(None);
    let leads_sender = watch::Sender::new(false);
    let mut leads = leads_sender.subscribe();
    let stop = CancellationToken::new();
    let pod = Pod { namespace: "default".to_owned(), name: "pod-1".to_owned() };
    let electing =
        tokio::spawn(leader::elect(cluster, latest, pod, leads_sender, Term::default(), stop.clone()));
    latest_sender.send_replace(Some(Arc::new(idle.clone())));
    latest_sender.send_replace(Some(Arc::new(busy)));
    soon("the lead", leads.wait_for(|leads| *leads)).await.unwrap();
    latest_sender.send_replace(Some(Arc::new(idle)));
    soon("its end", leads.wait_for(|leads| !*leads)).await.unwrap();
    stop.cancel();
    soon("the end", electing).await.unwrap();
    assert_eq!(asked(&api, "/apis/coordination.k8s.io/v1/namespaces/default/leases"), 1);
}

#[test]
fn the_shipped_manifests_grant_what_the_log_says_is_missing() {
    let shipped = include_str!("../../../../deploy/rbac.yaml").replace("\n    ", ", ");
    for rule in [leader::RULE, super::super::events::RULE] {
        assert!(shipped.contains(rule.trim_matches(['{', '}'])), "{rule}");
    }
}
