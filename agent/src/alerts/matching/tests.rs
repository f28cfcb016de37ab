//! The comparison, row by row: selectors, peers, ports, HTTP.

use super::{super::policies::Policies, *};
use crate::cluster::Change;
use postern_wire::proto::flow::{IcmPv4, Layer4, Layer7, Sctp, Tcp, Udp};
use serde_json::{Value, json};
use std::sync::Arc;

fn end(labels: &[&str]) -> Option<Endpoint> {
    Some(Endpoint { labels: labels.iter().map(|label| (*label).to_owned()).collect(), ..Default::default() })
}

/// From `app=front` to port 80 of `app=web`, as both their directions see it.
fn flow(direction: TrafficDirection) -> Flow {
    Flow {
        source: end(&["k8s:app=front", "k8s:io.kubernetes.pod.namespace=shop"]),
        destination: end(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "k8s:tier"]),
        l4: tcp(80),
        traffic_direction: direction as i32,
        ..Default::default()
    }
}

fn tcp(port: u32) -> Option<Layer4> {
    let tcp = Tcp { source_port: 40_000, destination_port: port, flags: None };
    Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) })
}

fn policies(specs: &[(&str, Value)]) -> Policies {
    let mut policies = Policies::new(21);
    for (name, spec) in specs {
        policies.apply(Change::Applied(Arc::new(json!({
            "metadata": {
                "namespace": "shop", "name": name,
                "labels": {"app.gitlab.com/proj": "21"}, "annotations": {"app.gitlab.com/alert": "true"},
            },
            "spec": spec,
        }))));
    }
    policies
}

fn alerts(flow: &Flow, spec: &Value) -> bool {
    first(flow, &policies(&[("web", spec.clone())])).is_some()
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// About `app=web`: from `app=front`, to port 80.
fn ingress() -> Value {
    json!({
        "endpointSelector": app("web"),
        "ingress": [{
            "fromEndpoints": [app("front")],
            "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}],
        }],
    })
}

/// About `app=front`: to `app=web`, to port 80.
fn egress() -> Value {
    json!({
        "endpointSelector": app("front"),
        "egress": [{
            "toEndpoints": [app("web")],
            "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}],
        }],
    })
}

#[test]
fn a_flow_that_a_policy_allows_is_no_alert_in_either_direction() {
    assert!(!alerts(&flow(TrafficDirection::Ingress), &ingress()));
    assert!(!alerts(&flow(TrafficDirection::Egress), &egress()));
}

#[test]
fn a_direction_that_is_unknown_is_no_alert() {
    let mut denied = ingress();
    denied["ingress"][0]["fromEndpoints"] = json!([app("other")]);
    assert!(alerts(&flow(TrafficDirection::Ingress), &denied));
    assert!(!alerts(&flow(TrafficDirection::Unknown), &denied));
    let odd = Flow { traffic_direction: 9, ..flow(TrafficDirection::Ingress) };
    assert!(!alerts(&odd, &denied));
}

#[test]
fn a_policy_is_asked_only_about_endpoints_that_all_its_rules_select() {
    let nothing = json!([{}]);
    let table = [
        (TrafficDirection::Ingress, app("web"), true),
        (TrafficDirection::Ingress, app("front"), false),
        (TrafficDirection::Egress, app("front"), true),
        (TrafficDirection::Egress, app("web"), false),
        (TrafficDirection::Ingress, json!({}), true),
    ];
    for (direction, selector, alert) in table {
        let spec = json!({"endpointSelector": selector, "ingress": nothing, "egress": nothing});
        assert_eq!(alerts(&flow(direction), &spec), alert, "{direction:?} {selector}");
    }
    let mut policies = Policies::new(21);
    let of = |specs: Value| {
        Arc::new(json!({
            "metadata": {
                "namespace": "shop", "name": "web",
                "labels": {"app.gitlab.com/proj": "21"}, "annotations": {"app.gitlab.com/alert": "true"},
            },
            "specs": specs,
        }))
    };
    policies.apply(Change::Applied(of(json!([{"endpointSelector": app("web")}]))));
    let coming = flow(TrafficDirection::Ingress);
    assert!(first(&coming, &policies).is_some());
    let two = json!([{"endpointSelector": app("web")}, {"endpointSelector": app("db")}]);
    policies.apply(Change::Applied(of(two)));
    assert!(first(&coming, &policies).is_none());
}

#[test]
fn a_peer_must_fit_every_selector() {
    let table = [
        (json!([app("front")]), false),
        (json!([app("other")]), true),
        (json!([app("front"), app("other")]), true),
        (json!([]), false),
        (json!([{}]), false),
    ];
    for (peers, alert) in table {
        let mut coming = ingress();
        coming["ingress"][0]["fromEndpoints"] = peers.clone();
        assert_eq!(alerts(&flow(TrafficDirection::Ingress), &coming), alert, "from {peers}");
    }
    for (peers, alert) in [(json!([app("web")]), false), (json!([app("web"), app("db")]), true)] {
        let mut going = egress();
        going["egress"][0]["toEndpoints"] = peers.clone();
        assert_eq!(alerts(&flow(TrafficDirection::Egress), &going), alert, "to {peers}");
    }
    // Of each rule, and of each section of a rule.
    let mut sections = ingress();
    sections["ingress"].as_array_mut().unwrap().push(json!({"fromEndpoints": [app("other")]}));
    assert!(alerts(&flow(TrafficDirection::Ingress), &sections));
}

#[test]
fn labels_are_compared_as_parts_of_texts() {
    let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let selects = |selector: Value, selected: bool| {
        let spec = json!({"endpointSelector": selector});
        assert_eq!(alerts(&flow(TrafficDirection::Ingress), &spec), selected, "{selector}");
    };
    let with = |key: &str, value: &str| json!({"matchLabels": {key: value}});
    selects(with("app", "web"), true);
    selects(with("any:app", "web"), true);
    selects(with("k8s:app", "web"), true);
    selects(with("reserved:app", "web"), false);
    selects(with("app", "we"), true);
    selects(with("pp", "web"), true);
    selects(with("app", "front"), false);
    selects(with("k8s:io.kubernetes.pod.namespace", "elsewhere"), true);
    selects(with("io.kubernetes.pod.namespace", "elsewhere"), true);
    selects(json!({"matchLabels": {"app": "web", "io.kubernetes.pod.namespace": "x", "b": "c"}}), false);
    selects(with("tier", ""), true);
    selects(with("app", ""), true);
    selects(with("tie", ""), false);
    selects(expression("app", "Exists", &[]), true);
    selects(expression("other", "Exists", &[]), false);
    selects(expression("other", "DoesNotExist", &[]), true);
    selects(expression("app", "DoesNotExist", &[]), false);
    selects(expression("app", "In", &["db", "web"]), true);
    selects(expression("app", "In", &["db"]), false);
    selects(expression("app", "NotIn", &["db"]), true);
    selects(expression("app", "NotIn", &["db", "web"]), false);
}

#[test]
fn the_port_must_be_named_with_its_protocol() {
    let table = [
        (tcp(80), json!([{"port": "80", "protocol": "TCP"}]), false),
        (tcp(81), json!([{"port": "80", "protocol": "TCP"}]), true),
        (tcp(81), json!([{"port": "80", "protocol": "TCP"}, {"port": "81", "protocol": "TCP"}]), false),
        (tcp(80), json!([{"port": "80", "protocol": "UDP"}]), true),
        (tcp(80), json!([{"port": "80", "protocol": "ANY"}]), false),
        (tcp(80), json!([{"port": "80"}]), false),
        (tcp(80), json!([{"port": "http", "protocol": "TCP"}]), true),
        (tcp(80), json!([]), true),
        (
            Some(Layer4 {
                protocol: Some(layer4::Protocol::Udp(Udp { source_port: 1, destination_port: 80 })),
            }),
            json!([{"port": "80", "protocol": "UDP"}]),
            false,
        ),
        (
            Some(Layer4 {
                protocol: Some(layer4::Protocol::Sctp(Sctp { source_port: 1, destination_port: 80 })),
            }),
            json!([{"port": "80", "protocol": "SCTP"}]),
            true,
        ),
        (
            Some(Layer4 { protocol: Some(layer4::Protocol::IcmPv4(IcmPv4 { r#type: 8, code: 0 })) }),
            json!([{"port": "80", "protocol": "ANY"}]),
            true,
        ),
        (None, json!([{"port": "0", "protocol": "ANY"}]), true),
    ];
    for (l4, ports, alert) in table {
        let mut spec = ingress();
        spec["ingress"][0]["toPorts"][0]["ports"] = ports.clone();
        let flow = Flow { l4, ..flow(TrafficDirection::Ingress) };
        assert_eq!(alerts(&flow, &spec), alert, "{l4:?} {ports}");
    }
    // Ports of the other direction say nothing.
    let mut other = ingress();
    other["egress"] = other["ingress"].take();
    assert!(alerts(&flow(TrafficDirection::Ingress), &other));
}

#[test]
fn a_request_must_fit_one_of_the_rules_about_http() {
    let request = |method: &str, url: &str, headers: &[(&str, &str)]| {
        let headers = headers
            .iter()
            .map(|(key, value)| HttpHeader { key: (*key).to_owned(), value: (*value).to_owned() })
            .collect();
        let http = Http { method: method.to_owned(), url: url.to_owned(), headers, ..Default::default() };
        let l7 = Layer7 { record: Some(layer7::Record::Http(http)), ..Default::default() };
        Flow { l7: Some(l7), ..flow(TrafficDirection::Ingress) }
    };
    let get = request(
        "GET",
        "http://user@web.shop:8080/public/a%20b?x=/admin",
        &[("X-Team", "blue"), ("X-Team", "b")],
    );
    let table = [
        (json!([]), false),
        (json!([{}]), false),
        (json!([{"method": "GET"}]), false),
        (json!([{"method": "POST"}]), true),
        (json!([{"method": "POST"}, {"method": "GET"}]), false),
        (json!([{"path": "/public"}]), false),
        (json!([{"path": "^/public/a b$"}]), false),
        (json!([{"path": "^/public$"}]), true),
        (json!([{"path": "admin"}]), true),
        (json!([{"host": "^web[.]shop:8080$"}]), false),
        (json!([{"host": "user"}]), true),
        (json!([{"host": "web", "path": "/public", "method": "GET"}]), false),
        (json!([{"host": "web", "path": "/public", "method": "PUT"}]), true),
        (json!([{"path": "("}]), true),
        (json!([{"headers": ["X-Team: blue"]}]), false),
        (json!([{"headers": ["X-Team:blue", "X-Team:   b"]}]), false),
        (json!([{"headers": ["X-Team: red"]}]), true),
        (json!([{"headers": ["x-team: blue"]}]), true),
        (json!([{"headers": ["X-Team"]}]), true),
        (json!([{"headers": ["X-Team: blue"], "method": "POST"}]), true),
    ];
    for (rules, alert) in table {
        let mut spec = ingress();
        spec["ingress"][0]["toPorts"][0]["rules"] = json!({"http": rules});
        assert_eq!(alerts(&get, &spec), alert, "{rules}");
    }
    let mut spec = ingress();
    spec["ingress"][0]["toPorts"][0]["rules"] = json!({"http": [{}]});
    // A connection that was refused before anything was asked.
    assert!(alerts(&flow(TrafficDirection::Ingress), &spec));
    // Rules of the other direction say nothing.
    spec["egress"] = json!([{"toPorts": [{"rules": {"http": [{"method": "POST"}]}}]}]);
    assert!(!alerts(&get, &spec));
    // Rules about something else are not about HTTP.
    spec["ingress"][0]["toPorts"][0]["rules"] = json!({"dns": [{"matchName": "x"}]});
    assert!(!alerts(&flow(TrafficDirection::Ingress), &spec));
}

#[test]
fn urls_come_apart_even_where_they_are_not_whole() {
    let table = [
        ("http://web:80/a/b?c#d", Some(("web:80", "/a/b"))),
        ("http://web", Some(("web", ""))),
        ("http://web?x", Some(("web", ""))),
        ("//web/a", Some(("web", "/a"))),
        ("/a?b=http://x/y", Some(("", "/a"))),
        ("a/b", Some(("", "a/b"))),
        ("", Some(("", ""))),
        ("http://a@b@web/x", Some(("web", "/x"))),
        ("/%ff", None),
    ];
    for (url, wanted) in table {
        let found = host_and_path(url);
        assert_eq!(found.as_ref().map(|(host, path)| (*host, path.as_str())), wanted, "{url}");
    }
}

#[test]
fn the_first_policy_by_name_is_the_one_that_is_named() {
    let denied = json!({"endpointSelector": app("web")});
    let all = policies(&[("c", denied.clone()), ("b", denied), ("a", ingress())]);
    let found = first(&flow(TrafficDirection::Ingress), &all).unwrap();
    assert_eq!(found.name, "shop/b");
    assert!(first(&flow(TrafficDirection::Egress), &all).is_none());
}

#[test]
fn flows_with_more_than_anybody_has_are_not_compared() {
    let with = |count: usize, label: &str| Flow {
        source: end(&vec![label; count]),
        ..flow(TrafficDirection::Ingress)
    };
    assert!(!is_too_large(&with(MOST_LABELS, "k8s:app=front")));
    assert!(is_too_large(&with(MOST_LABELS + 1, "k8s:app=front")));
    assert!(is_too_large(&with(1, &"x".repeat(LONGEST_LABEL + 1))));
    let other = with(MOST_LABELS + 1, "a");
    assert!(is_too_large(&Flow { source: None, destination: other.source, ..Default::default() }));
    let asks = |count: usize| {
        let http = Http { headers: vec![HttpHeader::default(); count], ..Default::default() };
        let l7 = Layer7 { record: Some(layer7::Record::Http(http)), ..Default::default() };
        Flow { l7: Some(l7), ..Default::default() }
    };
    assert!(!is_too_large(&asks(MOST_LABELS)) && is_too_large(&asks(MOST_LABELS + 1)));
}
