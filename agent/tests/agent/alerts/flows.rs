//! Flows and policies of a small shop, as a cluster with Cilium shows them. What is recorded is what a relay sent: labels
//! with their sources, identities, event types 5 (a policy's verdict) and 129 (a request).

use postern_wire::proto::flow::{
    CiliumEventType, DropReason, Endpoint, Flow, FlowType, Http, HttpHeader, Ip, L7FlowType, Layer4, Layer7,
    Tcp, TcpFlags, TrafficDirection, Verdict, layer4, layer7,
};
use serde_json::{Value, json};

pub(super) const PROJECT: i64 = 21;

/// A pod of the shop.
fn pod(app: &str, id: u32) -> Endpoint {
    Endpoint {
        id,
        identity: 10_000 + id,
        namespace: "shop".to_owned(),
        labels: vec![
            format!("k8s:app={app}"),
            "k8s:io.cilium.k8s.policy.cluster=default".to_owned(),
            "k8s:io.cilium.k8s.policy.serviceaccount=default".to_owned(),
            "k8s:io.kubernetes.pod.namespace=shop".to_owned(),
        ],
        pod_name: format!("{app}-7d4f9c6b8-{id:05}"),
        workloads: Vec::new(),
    }
}

/// Everything outside.
fn world() -> Endpoint {
    Endpoint { identity: 2, labels: vec!["reserved:world".to_owned()], ..Endpoint::default() }
}

fn app(name: &str) -> Endpoint {
    match name {
        "world" => world(),
        "front" => pod(name, 1),
        "web" => pod(name, 2),
        "api" => pod(name, 3),
        "db" => pod(name, 4),
        _ => pod(name, 5),
    }
}

/// A first packet that was dropped.
pub(super) fn dropped(uuid: &str, from: &str, to: &str, port: u32, direction: TrafficDirection) -> Flow {
    let flags = Some(TcpFlags { syn: true, ..TcpFlags::default() });
    let tcp = Tcp { source_port: 43_210, destination_port: port, flags };
    let address = |name: &str| match name {
        "world" => "198.51.100.7".to_owned(),
        name => format!("10.0.1.{}", app(name).id),
    };
    Flow {
        uuid: uuid.to_owned(),
        verdict: Verdict::Dropped as i32,
        drop_reason: 133,
        drop_reason_desc: DropReason::PolicyDenied as i32,
        ip: Some(Ip { source: address(from), destination: address(to), ip_version: 1, encrypted: false }),
        l4: Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) }),
        source: Some(app(from)),
        destination: Some(app(to)),
        r#type: FlowType::L3L4 as i32,
        node_name: "node-1".to_owned(),
        event_type: Some(CiliumEventType { r#type: 5, sub_type: 0 }),
        traffic_direction: direction as i32,
        is_reply: Some(false),
        summary: "TCP Flags: SYN".to_owned(),
        ..Flow::default()
    }
}

/// A request that the proxy answered with 403.
pub(super) fn request(uuid: &str, from: &str, to: &str, method: &str, url: &str) -> Flow {
    let http = Http {
        code: 403,
        method: method.to_owned(),
        url: url.to_owned(),
        protocol: "HTTP/1.1".to_owned(),
        headers: vec![HttpHeader { key: "X-Request-Id".to_owned(), value: "7".to_owned() }],
    };
    let record = Some(layer7::Record::Http(http));
    Flow {
        drop_reason: 0,
        drop_reason_desc: 0,
        r#type: FlowType::L7 as i32,
        l7: Some(Layer7 { r#type: L7FlowType::Request as i32, latency_ns: 0, record }),
        event_type: Some(CiliumEventType { r#type: 129, sub_type: 0 }),
        summary: format!("HTTP/1.1 {method} {url}"),
        ..dropped(uuid, from, to, 80, TrafficDirection::Ingress)
    }
}

/// A policy as the cluster has it.
pub(super) fn policy(name: &str, project: &str, alert: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-of-{name}"),
            "labels": {"app.gitlab.com/proj": project},
            "annotations": {"app.gitlab.com/alert": alert},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": spec,
        "status": {"conditions": []},
    })
}

/// `web` takes `front` at 8080 and may go to `db` at 5432; `api` takes GET of `/public` from `front`. Of `db` there is a
/// policy that asks for no alerts, and one of another project.
pub(super) fn policies() -> Vec<Value> {
    let is = |app: &str| json!({"matchLabels": {"app": app}});
    let port = |port: &str| json!([{"ports": [{"port": port, "protocol": "TCP"}]}]);
    let web_in = json!({
        "endpointSelector": is("web"),
        "ingress": [{"fromEndpoints": [is("front")], "toPorts": port("8080")}],
    });
    let web_out = json!({
        "endpointSelector": is("web"),
        "egress": [{"toEndpoints": [is("db")], "toPorts": port("5432")}],
    });
    let api = json!({
        "endpointSelector": is("api"),
        "ingress": [{
            "fromEndpoints": [is("front")],
            "toPorts": [{
                "ports": [{"port": "80", "protocol": "TCP"}],
                "rules": {"http": [{"method": "GET", "path": "/public.*"}]},
            }],
        }],
    });
    let db = json!({"endpointSelector": is("db"), "ingress": [{"fromEndpoints": [is("web")]}]});
    // One policy about both directions of `web` would look at each flow twice; people write one each, or one for both.
    let mut web = web_in;
    web["egress"] = web_out["egress"].clone();
    vec![
        policy("web", "21", "true", &web),
        policy("api", "21", "true", &api),
        policy("db-silent", "21", "false", &db),
        policy("db-of-others", "22", "true", &db),
    ]
}
