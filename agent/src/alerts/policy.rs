//! One CiliumNetworkPolicy, read into what flows are compared with. Before it: `policies.rs`, which keeps them. After it:
//! `matching.rs`, which compares. What an alert does not look at is not read; nothing here fails on any JSON.

use super::patterns::Pattern;
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
    pub(crate) effort: Effort,
    /// The beginning of a pattern of an HTTP rule that is illegal or too large.
    pub(crate) bad_pattern: Option<String>,
    pub(crate) rules: Vec<Rule>,
}

/// What it takes to compare a flow with policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effort {
    /// Regular expressions.
    pub(crate) patterns: usize,
    /// Texts of selectors and of rules about headers.
    pub(crate) texts: usize,
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
#[derive(Debug, Default)]
pub(crate) struct HttpRule {
    pub(crate) host: Pattern,
    pub(crate) path: Pattern,
    pub(crate) method: Pattern,
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

/// Reads a policy for the agent of this project, which may take so much effort.
pub(crate) fn read(object: &Value, project: &str, most: Effort) -> Read {
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
    let Some(mut rules) = rules else {
        return Read::Unusable("one of its rules has no endpointSelector");
    };
    if rules.is_empty() {
        return Read::Unusable("it has neither spec nor specs");
    }
    let effort = rules.iter().fold(Effort::default(), |effort, rule| effort.and(rule.effort()));
    if effort.patterns > most.patterns {
        return Read::Unusable("it and those before it have more than 200 regular expressions in HTTP rules");
    }
    if effort.texts > most.texts {
        return Read::Unusable(
            "it and those before it have more than 20,000 texts in selectors and HTTP rules",
        );
    }
    let http = rules.iter_mut().flat_map(Rule::all_sections_mut).flat_map(|section| &mut section.http);
    let patterns = http.flat_map(|rule| [&mut rule.host, &mut rule.path, &mut rule.method]);
    // All of them, also those behind a bad one.
    let bad: Vec<&mut Pattern> =
        patterns.filter_map(|pattern| if pattern.compile() { None } else { Some(pattern) }).collect();
    let bad_pattern = bad.first().map(|pattern| pattern.begin());
    Read::Policy(Policy { name: name(object), value: Arc::new(value), size, effort, bad_pattern, rules })
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
    let of = |name: &str| Pattern::new(text(&rule[name]));
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

    fn all_sections_mut(&mut self) -> impl Iterator<Item = &mut Section> {
        self.ingress.iter_mut().chain(&mut self.egress)
    }

    fn effort(&self) -> Effort {
        let sections = self.ingress.iter().chain(&self.egress);
        let own = Effort { patterns: 0, texts: self.endpoints.texts() };
        sections.fold(own, |effort, section| effort.and(section.effort()))
    }
}

impl Section {
    fn effort(&self) -> Effort {
        let patterns = self.http.iter().flat_map(HttpRule::patterns).filter(|pattern| !pattern.is_empty());
        let peers: usize = self.peers.iter().map(Selector::texts).sum();
        // What says nothing is looked at too.
        let http: usize = self.http.iter().map(|rule| 1 + rule.headers.len()).sum();
        Effort { patterns: patterns.count(), texts: peers + http }
    }
}

impl HttpRule {
    pub(crate) fn patterns(&self) -> [&Pattern; 3] {
        [&self.host, &self.path, &self.method]
    }
}

impl Effort {
    /// Both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { patterns: self.patterns + other.patterns, texts: self.texts + other.texts }
    }

    /// What is left of it after the other one; nothing where that is more.
    pub(crate) fn without(self, other: Self) -> Self {
        Self {
            patterns: self.patterns.saturating_sub(other.patterns),
            texts: self.texts.saturating_sub(other.texts),
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

    /// How many texts are compared; what has none is looked at too.
    fn texts(&self) -> usize {
        self.0.iter().map(|part| part.texts().len().max(1)).sum::<usize>().max(1)
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
mod tests;
