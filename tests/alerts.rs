//! Alerts about network policies: a policy of the real control plane, flows of a stand-in for a Hubble relay, and what
//! GitLab's stand-in was posted through agent, edge and broker.

use crate::{
    gitops::field::{api, apply, client},
    harness::{
        Options,
        gitlab::{GitLabField, PROJECTS, Setup},
        http, random, until,
    },
    kubectl::control_plane,
};
use kube::{
    Client,
    api::{Patch, PatchParams},
};
use postern_wire::proto::flow::{
    CiliumEventType, Endpoint, Flow, Http, HttpHeader, Layer4, Layer7, Tcp, TrafficDirection, Verdict,
    layer4, layer7,
};
use serde_json::{Value, json};
use stand_ins::{hubble::Hubble, rails};
use std::collections::BTreeSet;

/// As much of Cilium's definition as an API server needs to keep policies.
async fn define_policies(client: &Client) {
    let name = "ciliumnetworkpolicies.cilium.io";
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": "cilium.io",
            "scope": "Namespaced",
            "names": {
                "plural": "ciliumnetworkpolicies", "singular": "ciliumnetworkpolicy",
                "kind": "CiliumNetworkPolicy", "listKind": "CiliumNetworkPolicyList",
            },
            "versions": [{
                "name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    apply(client, &definition).await;
    let (group, kind) = ("apiextensions.k8s.io", "CustomResourceDefinition");
    let definitions = api(client, group, "v1", kind, "customresourcedefinitions", None);
    until("the definition is established", async || {
        let definition = definitions.get(name).await.ok()?;
        let conditions = definition.data["status"]["conditions"].as_array()?.clone();
        conditions.iter().find(|is| is["type"] == "Established" && is["status"] == "True").map(|_| ())
    })
    .await;
}

/// `web` takes `front` at 8080, and tells the agent of the field's project of everybody else.
async fn write_policy(client: &Client, namespace: &str) {
    let app = |name: &str| json!({"matchLabels": {"app": name, "of": namespace}});
    let policy = json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {
            "name": "web", "namespace": namespace,
            "labels": {"app.gitlab.com/proj": PROJECTS[0].0.to_string()},
            "annotations": {"app.gitlab.com/alert": "true"},
        },
        "spec": {
            "endpointSelector": app("web"),
            "ingress": [{
                "fromEndpoints": [app("front")],
                "toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}],
            }],
        },
    });
    let policies =
        api(client, "cilium.io", "v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", Some(namespace));
    let parameters = PatchParams::apply("somebody").force();
    // The API server may take a moment to serve what it has established.
    until("the policy is there", async || {
        policies.patch("web", &parameters, &Patch::Apply(&policy)).await.ok()
    })
    .await;
}

/// A request to `web` at 8080 that Cilium denied.
fn denied(uuid: &str, namespace: &str, from: &str) -> Flow {
    let pod = |app: &str| {
        Some(Endpoint {
            namespace: namespace.to_owned(),
            pod_name: format!("{app}-0"),
            labels: vec![format!("k8s:app={app}"), format!("k8s:of={namespace}")],
            ..Endpoint::default()
        })
    };
    let tcp = Tcp { source_port: 40_000, destination_port: 8080, flags: None };
    let header = |key: &str, value: &str| HttpHeader { key: key.to_owned(), value: value.to_owned() };
    let http = Http {
        code: 403,
        method: "GET".to_owned(),
        url: "http://web:8080/".to_owned(),
        headers: vec![header("Accept", "text/html"), header("Authorization", "Bearer hunter2")],
        ..Http::default()
    };
    Flow {
        uuid: uuid.to_owned(),
        verdict: Verdict::Dropped as i32,
        source: pod(from),
        destination: pod("web"),
        l4: Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) }),
        l7: Some(Layer7 { record: Some(layer7::Record::Http(http)), ..Layer7::default() }),
        event_type: Some(CiliumEventType { r#type: 129, sub_type: 0 }),
        traffic_direction: TrafficDirection::Ingress as i32,
        ..Flow::default()
    }
}

/// Alerts that GitLab has got.
fn posted(field: &GitLabField) -> Vec<Value> {
    let modules = field.rails().requests().into_iter().filter(|seen| {
        seen.endpoint == rails::Endpoint::Module && seen.uri.path().ends_with("/modules/cilium_alert/")
    });
    modules.map(|seen| seen.body.unwrap()["alert"].clone()).collect()
}

async fn counted(field: &GitLabField, result: &str) -> Option<f64> {
    let (_, text) = http::text(field.addresses.agent_probes, "/metrics").await?;
    let wanted = format!("agentk_alerts_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_flow_is_posted_to_gitlab_once() {
    postern_certs::install_provider();
    let kubeconfig = control_plane::kubeconfig();
    let client = client(&kubeconfig).await;
    let namespace = format!("t{}", random()[..8].to_lowercase());
    apply(&client, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).await;
    define_policies(&client).await;
    write_policy(&client, &namespace).await;

    let hubble = Hubble::start().await.unwrap();
    let configuration = format!("cilium: {{hubble_relay_address: '{}'}}\n", hubble.address());
    let options = Options {
        kubeconfig: Some(kubeconfig),
        configuration: Box::leak(configuration.into_boxed_str()),
        agent_env: vec![("POD_NAMESPACE", namespace.clone())],
        ..Options::default()
    };
    let field = GitLabField::with(Setup { field: options, ..Setup::default() }).await;
    // By then it knows the policies.
    until("the relay is followed", async || (*hubble.streams().borrow() == 1).then_some(())).await;

    hubble.send(denied("denied", &namespace, "stranger"));
    until("the flow is posted", async || (posted(&field).len() == 1).then_some(())).await;
    let alert = posted(&field).remove(0);
    assert_eq!(alert["flow"]["uuid"], "denied");
    assert_eq!(alert["flow"]["verdict"], "DROPPED");
    assert_eq!(
        alert["flow"]["l7"]["http"]["headers"],
        json!([{"key": "Accept", "value": "text/html"}, {"key": "Authorization", "value": "[redacted]"}])
    );
    let policy = &alert["ciliumNetworkPolicy"];
    assert_eq!(
        (&policy["metadata"]["name"], &policy["metadata"]["namespace"]),
        (&json!("web"), &json!(namespace))
    );
    assert_eq!(policy["spec"]["endpointSelector"]["matchLabels"]["app"], "web");
    assert!(
        policy["metadata"]["uid"].is_string() && policy["metadata"]["managedFields"].is_null(),
        "{policy}"
    );

    // The same again, one that the policy allows, and one that is new: when that is posted the others have been judged.
    hubble.send(denied("repeated", &namespace, "stranger"));
    hubble.send(denied("allowed", &namespace, "front"));
    hubble.send(denied("another", &namespace, "another"));
    until("the other one is posted", async || (posted(&field).len() >= 2).then_some(())).await;
    let uuids: BTreeSet<String> =
        posted(&field).iter().filter_map(|alert| alert["flow"]["uuid"].as_str().map(str::to_owned)).collect();
    assert_eq!(uuids, BTreeSet::from(["another".to_owned(), "denied".to_owned()]));
    assert_eq!(counted(&field, "repeated").await, Some(1.0));
    until("both are counted", async || counted(&field, "posted").await.filter(|count| *count == 2.0)).await;
    assert_eq!(posted(&field).len(), 2);
}
