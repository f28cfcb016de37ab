//! One CiliumNetworkPolicy, read into what flows are compared with. Before it: `policies.rs`, which keeps them. After it:
//! `matching.rs`, which compares. What an alert does not look at is not read; nothing here fails on any JSON.

use postern_wire::proto::flow::TrafficDirection;
use serde_json::Value;
use std::sync::Arc;

/// A policy asks for alerts with this annotation, whose value is `true`.
const ALERT: &str = "app.gitlab.com/alert";
/// The label that names, by its number, the project whose agent looks after a policy.
const PROJECT: &str = "app.gitlab.com/proj";
/// A policy that is larger, in bytes of JSON, is not one that people look after.
const LARGEST: usize = 256 * 1024;
/// Selectors name the namespace of a policy in several ways, all of which are skipped.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// A policy that flows are compared with.
#[derive(Debug)]
pub(crate) struct Policy {
    /// `namespace/name`.
    pub(crate) name: String,
    /// As the cluster has it, but for what only the cluster's own bookkeeping needs.
    pub(crate) value: Arc<Value>,
    /// Bytes of JSON, about.
    pub(crate) size: usize,
    pub(crate) rules: Vec<Rule>,
}

/// One of its rules.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Whom it is about.
    pub(crate) endpoints: Selector,
    ingress: Vec<Section>,
    egress: Vec<Section>,
}

/// What may come in or go out.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// `fromEndpoints` or `toEndpoints`.
    pub(crate) peers: Vec<Selector>,
    pub(crate) ports: Vec<Port>,
    pub(crate) http: Vec<HttpRule>,
}

/// A port and those after it, up to the last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) protocol: Protocol,
}

/// Which protocols a port is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    /// Named `ANY`, or not named.
    Any,
    /// One that alerts do not compare.
    Other,
}

/// A rule about HTTP requests; empty texts say nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HttpRule {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) method: String,
    /// `Name: value`.
    pub(crate) headers: Vec<String>,
}

/// Labels that an endpoint must have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector(pub(crate) Vec<Part>);

/// One of them. The texts are parts of labels as flows write them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// One of these is part of a label.
    In(Vec<String>),
    /// None of these is part of a label.
    NotIn(Vec<String>),
}

/// What a policy is to this agent.
#[derive(Debug)]
pub(crate) enum Read {
    /// Flows are compared with it.
    Policy(Policy),
    /// It does not ask for alerts of this project.
    NotOurs,
    /// It asks for alerts and will not get any, for this reason.
    Unusable(&'static str),
}

/// `namespace/name`.
pub(crate) fn name(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
}

/// Reads a policy for the agent of this project.
pub(crate) fn read(object: &Value, project: &str) -> Read {
    let metadata = &object["metadata"];
    if metadata["annotations"][ALERT] != "true" || metadata["labels"][PROJECT] != project {
        return Read::NotOurs;
    }
    let value = without_bookkeeping(object);
    let size = value.to_string().len();
    if size > LARGEST {
        return Read::Unusable("it is larger than 256 KiB");
    }
    let specs = list(&object["specs"]);
    let rules: Option<Vec<Rule>> =
        Some(&object["spec"]).filter(|spec| spec.is_object()).into_iter().chain(specs).map(rule).collect();
    match rules {
        None => Read::Unusable("one of its rules has no endpointSelector"),
        Some(rules) if rules.is_empty() => Read::Unusable("it has neither spec nor specs"),
        Some(rules) => Read::Policy(Policy { name: name(object), value: Arc::new(value), size, rules }),
    }
}

fn without_bookkeeping(object: &Value) -> Value {
    let mut value = object.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    if let Some(annotations) = value["metadata"]["annotations"].as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    value
}

fn rule(spec: &Value) -> Option<Rule> {
    let sections =
        |name: &str, peers: &str| list(&spec[name]).map(|section| read_section(section, peers)).collect();
    Some(Rule {
        endpoints: Selector::read(spec.get("endpointSelector").filter(|selector| selector.is_object())?),
        ingress: sections("ingress", "fromEndpoints"),
        egress: sections("egress", "toEndpoints"),
    })
}

fn read_section(section: &Value, peers: &str) -> Section {
    let mut read =
        Section { peers: list(&section[peers]).map(Selector::read).collect(), ..Section::default() };
    for to in list(&section["toPorts"]) {
        read.ports.extend(list(&to["ports"]).filter_map(port));
        read.http.extend(list(&to["rules"]["http"]).map(http_rule));
    }
    read
}

/// Ports that have names are of pods that a flow says nothing about: they equal none.
fn port(port: &Value) -> Option<Port> {
    let first = text(&port["port"]).parse().ok().or_else(|| number(&port["port"]))?;
    let last = number(&port["endPort"]).filter(|last| *last > first).unwrap_or(first);
    let protocol = match text(&port["protocol"]).to_ascii_uppercase().as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "ANY" | "" => Protocol::Any,
        _ => Protocol::Other,
    };
    Some(Port { first, last, protocol })
}

fn http_rule(rule: &Value) -> HttpRule {
    let of = |name: &str| text(&rule[name]).to_owned();
    HttpRule {
        host: of("host"),
        path: of("path"),
        method: of("method"),
        headers: list(&rule["headers"]).map(|header| text(header).to_owned()).collect(),
    }
}

impl Rule {
    /// What it says about one direction; nothing about an unknown one.
    pub(crate) fn sections(&self, direction: TrafficDirection) -> &[Section] {
        match direction {
            TrafficDirection::Ingress => &self.ingress,
            TrafficDirection::Egress => &self.egress,
            TrafficDirection::Unknown => &[],
        }
    }
}

impl Port {
    /// Whether a flow to this port is one to it.
    pub(crate) fn is(&self, port: u32, protocol: Protocol) -> bool {
        (self.first..=self.last).contains(&port)
            && matches!(protocol, Protocol::Tcp | Protocol::Udp)
            && (self.protocol == protocol || self.protocol == Protocol::Any)
    }
}

impl Selector {
    fn read(selector: &Value) -> Self {
        let mut parts = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            parts.push(Part::In(vec![format!("{}={}", spelt(key), text(value))]));
        }
        for expression in list(&selector["matchExpressions"]) {
            let key = spelt(text(&expression["key"]));
            let pairs =
                || list(&expression["values"]).map(|value| format!("{key}={}", text(value))).collect();
            match text(&expression["operator"]) {
                "In" => parts.push(Part::In(pairs())),
                "NotIn" => parts.push(Part::NotIn(pairs())),
                "DoesNotExist" => parts.push(Part::NotIn(vec![key])),
                _ => parts.push(Part::In(vec![key])),
            }
        }
        parts.retain(|part| !part.texts().iter().any(|text| text.contains(NAMESPACE)));
        Self(parts)
    }
}

impl Part {
    pub(crate) fn texts(&self) -> &[String] {
        match self {
            Self::In(texts) | Self::NotIn(texts) => texts,
        }
    }
}

/// A key as it is found in the labels of flows, which always name their source: keys of any source go without.
fn spelt(key: &str) -> String {
    key.strip_prefix("any:").or_else(|| key.strip_prefix("any.")).unwrap_or(key).to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(spec: Value) -> Value {
        json!({
            "metadata": {
                "namespace": "shop", "name": "web",
                "labels": {PROJECT: "21"}, "annotations": {ALERT: "true"},
            },
            "spec": spec,
        })
    }

    #[test]
    fn only_policies_of_the_project_that_ask_for_alerts_are_ours() {
        let good = object(json!({"endpointSelector": {}}));
        assert!(matches!(read(&good, "21"), Read::Policy(_)));
        let table = [
            ("/metadata/labels/app.gitlab.com~1proj", json!("22")),
            ("/metadata/labels/app.gitlab.com~1proj", json!("021")),
            ("/metadata/labels/app.gitlab.com~1proj", json!(21)),
            ("/metadata/annotations/app.gitlab.com~1alert", json!("false")),
            ("/metadata/annotations/app.gitlab.com~1alert", json!(true)),
            ("/metadata/annotations", Value::Null),
            ("/metadata", json!("x")),
        ];
        for (place, value) in table {
            let mut other = good.clone();
            *other.pointer_mut(place).unwrap() = value.clone();
            assert!(matches!(read(&other, "21"), Read::NotOurs), "{place} {value}");
        }
    }

    #[test]
    fn what_cannot_be_compared_says_why() {
        let unusable = |object: Value| match read(&object, "21") {
            Read::Unusable(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(unusable(object(Value::Null)).contains("neither spec nor specs"));
        assert!(unusable(object(json!({"nodeSelector": {}}))).contains("endpointSelector"));
        let long = "x".repeat(LARGEST);
        assert!(unusable(object(json!({"endpointSelector": {}, "description": long}))).contains("larger"));
        let mut both = object(json!({"endpointSelector": {}}));
        both["specs"] = json!([{"endpointSelector": {"matchLabels": {"a": "b"}}}, {"endpointSelector": {}}]);
        let Read::Policy(policy) = read(&both, "21") else { panic!("usable") };
        assert_eq!((policy.rules.len(), policy.name.as_str()), (3, "shop/web"));
    }

    #[test]
    fn bookkeeping_is_not_sent_along() {
        let mut object = object(json!({"endpointSelector": {}}));
        object["status"] = json!({"nodes": {}});
        object["metadata"]["managedFields"] = json!([{}]);
        object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = json!("{}");
        object["metadata"]["uid"] = json!("u");
        let Read::Policy(policy) = read(&object, "21") else { panic!("usable") };
        let metadata = &policy.value["metadata"];
        assert!(policy.value.get("status").is_none() && metadata.get("managedFields").is_none());
        assert_eq!(metadata["annotations"], json!({ALERT: "true"}));
        assert_eq!((&metadata["uid"], &policy.value["spec"]), (&json!("u"), &object["spec"]));
    }

    #[test]
    fn selectors_become_texts_to_be_found_in_labels() {
        let is = |texts: &[&str]| Part::In(texts.iter().map(|text| (*text).to_owned()).collect());
        let is_not = |texts: &[&str]| Part::NotIn(texts.iter().map(|text| (*text).to_owned()).collect());
        let expression = |operator: &str| json!({"matchExpressions": [{"key": "any:a", "operator": operator, "values": ["1", "2"]}]});
        let table = [
            (json!({}), vec![]),
            (json!({"matchLabels": {"app": "web"}}), vec![is(&["app=web"])]),
            (json!({"matchLabels": {"any:app": "web", "any.b": "c"}}), vec![is(&["b=c"]), is(&["app=web"])]),
            (json!({"matchLabels": {"k8s:app": "web"}}), vec![is(&["k8s:app=web"])]),
            (json!({"matchLabels": {"company.com/x": "1"}}), vec![is(&["company.com/x=1"])]),
            (json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "shop", "a": ""}}), vec![is(&["a="])]),
            (expression("In"), vec![is(&["a=1", "a=2"])]),
            (expression("NotIn"), vec![is_not(&["a=1", "a=2"])]),
            (expression("Exists"), vec![is(&["a"])]),
            (expression("DoesNotExist"), vec![is_not(&["a"])]),
        ];
        for (selector, parts) in table {
            assert_eq!(Selector::read(&selector).0, parts, "{selector}");
        }
    }

    #[test]
    fn ports_have_numbers_and_protocols() {
        let read = |value: Value| port(&value);
        let http = read(json!({"port": "80", "protocol": "TCP"})).unwrap();
        assert!(http.is(80, Protocol::Tcp) && !http.is(81, Protocol::Tcp) && !http.is(80, Protocol::Udp));
        for any in [json!({"port": "53"}), json!({"port": 53, "protocol": "ANY"})] {
            let dns = read(any).unwrap();
            assert!(dns.is(53, Protocol::Tcp) && dns.is(53, Protocol::Udp) && !dns.is(53, Protocol::Other));
        }
        let range = read(json!({"port": "8000", "endPort": 8010, "protocol": "udp"})).unwrap();
        assert!(range.is(8010, Protocol::Udp) && !range.is(8011, Protocol::Udp));
        assert_eq!(read(json!({"port": "http", "protocol": "TCP"})), None);
        assert!(!read(json!({"port": "1", "protocol": "SCTP"})).unwrap().is(1, Protocol::Other));
    }
}
