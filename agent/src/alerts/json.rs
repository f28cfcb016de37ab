//! A flow as JSON, by protobuf's own rules: names in lowerCamelCase, enums by name, 64-bit numbers as text, times of RFC
//! 3339, and nothing that has its default. Before it: a flow that goes against a policy. After it: `posts.rs`.

use postern_wire::proto::flow::{
    AuthType, DropReason, Endpoint, Flow, FlowType, HttpHeader, Ip, IpVersion, L7FlowType, Layer4, Layer7,
    Policy, Service, TcpFlags, TraceObservationPoint, TrafficDirection, Verdict, layer4, layer7,
};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

/// What a time of RFC 3339 can say: the years 1 to 9999.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Of headers whose name holds one of these nobody is told the value: it opens doors.
const CONFIDENTIAL: [&str; 8] =
    ["authorization", "cookie", "token", "secret", "password", "api-key", "apikey", "jwt"];
const REDACTED: &str = "[redacted]";

/// The flow, for people and for GitLab.
pub(crate) fn flow(flow: &Flow) -> Value {
    Object::default()
        .field("time", flow.time.as_ref().and_then(time))
        .text("uuid", &flow.uuid)
        .field("verdict", named(flow.verdict, Verdict::as_str_name))
        .number("dropReason", flow.drop_reason)
        .field("authType", named(flow.auth_type, AuthType::as_str_name))
        .field(
            "ethernet",
            flow.ethernet.as_ref().map(|ethernet| {
                Object::default()
                    .text("source", &ethernet.source)
                    .text("destination", &ethernet.destination)
                    .done()
            }),
        )
        .field("IP", flow.ip.as_ref().map(ip))
        .field("l4", flow.l4.as_ref().map(l4))
        .field("source", flow.source.as_ref().map(endpoint))
        .field("destination", flow.destination.as_ref().map(endpoint))
        .field("Type", named(flow.r#type, FlowType::as_str_name))
        .text("nodeName", &flow.node_name)
        .texts("sourceNames", &flow.source_names)
        .texts("destinationNames", &flow.destination_names)
        .field("l7", flow.l7.as_ref().map(l7))
        .flag("reply", flow.reply)
        .field(
            "eventType",
            flow.event_type.as_ref().map(|event| {
                Object::default().number("type", event.r#type).number("subType", event.sub_type).done()
            }),
        )
        .field("sourceService", flow.source_service.as_ref().map(service))
        .field("destinationService", flow.destination_service.as_ref().map(service))
        .field("trafficDirection", named(flow.traffic_direction, TrafficDirection::as_str_name))
        .number("policyMatchType", flow.policy_match_type)
        .field(
            "traceObservationPoint",
            named(flow.trace_observation_point, TraceObservationPoint::as_str_name),
        )
        .field("dropReasonDesc", named(flow.drop_reason_desc, DropReason::as_str_name))
        .field("isReply", flow.is_reply.map(Value::from))
        .field(
            "interface",
            flow.interface.as_ref().map(|interface| {
                Object::default().number("index", interface.index).text("name", &interface.name).done()
            }),
        )
        .number("proxyPort", flow.proxy_port)
        .field(
            "traceContext",
            flow.trace_context.as_ref().map(|context| {
                let parent = |parent: &postern_wire::proto::flow::TraceParent| {
                    Object::default().text("traceId", &parent.trace_id).done()
                };
                Object::default().field("parent", context.parent.as_ref().map(parent)).done()
            }),
        )
        .list("egressAllowedBy", &flow.egress_allowed_by, policy)
        .list("ingressAllowedBy", &flow.ingress_allowed_by, policy)
        .list("egressDeniedBy", &flow.egress_denied_by, policy)
        .list("ingressDeniedBy", &flow.ingress_denied_by, policy)
        .text("Summary", &flow.summary)
        .done()
}

fn ip(ip: &Ip) -> Value {
    Object::default()
        .text("source", &ip.source)
        .text("destination", &ip.destination)
        .field("ipVersion", named(ip.ip_version, IpVersion::as_str_name))
        .flag("encrypted", ip.encrypted)
        .done()
}

fn l4(l4: &Layer4) -> Value {
    let ports = |source, destination| {
        Object::default().number("sourcePort", source).number("destinationPort", destination)
    };
    let icmp = |kind, code| Object::default().number("type", kind).number("code", code).done();
    let (name, value) = match &l4.protocol {
        None => return json!({}),
        Some(layer4::Protocol::Tcp(tcp)) => {
            let flags = tcp.flags.as_ref().map(tcp_flags);
            ("TCP", ports(tcp.source_port, tcp.destination_port).field("flags", flags).done())
        }
        Some(layer4::Protocol::Udp(udp)) => ("UDP", ports(udp.source_port, udp.destination_port).done()),
        Some(layer4::Protocol::Sctp(sctp)) => ("SCTP", ports(sctp.source_port, sctp.destination_port).done()),
        Some(layer4::Protocol::IcmPv4(v4)) => ("ICMPv4", icmp(v4.r#type, v4.code)),
        Some(layer4::Protocol::IcmPv6(v6)) => ("ICMPv6", icmp(v6.r#type, v6.code)),
    };
    json!({ name: value })
}

fn tcp_flags(flags: &TcpFlags) -> Value {
    Object::default()
        .flag("FIN", flags.fin)
        .flag("SYN", flags.syn)
        .flag("RST", flags.rst)
        .flag("PSH", flags.psh)
        .flag("ACK", flags.ack)
        .flag("URG", flags.urg)
        .flag("ECE", flags.ece)
        .flag("CWR", flags.cwr)
        .flag("NS", flags.ns)
        .done()
}

fn endpoint(endpoint: &Endpoint) -> Value {
    Object::default()
        .number("ID", endpoint.id)
        .number("identity", endpoint.identity)
        .text("namespace", &endpoint.namespace)
        .texts("labels", &endpoint.labels)
        .text("podName", &endpoint.pod_name)
        .list("workloads", &endpoint.workloads, |workload| {
            Object::default().text("name", &workload.name).text("kind", &workload.kind).done()
        })
        .done()
}

fn service(service: &Service) -> Value {
    Object::default().text("name", &service.name).text("namespace", &service.namespace).done()
}

fn policy(policy: &Policy) -> Value {
    Object::default()
        .text("name", &policy.name)
        .text("namespace", &policy.namespace)
        .texts("labels", &policy.labels)
        .long("revision", policy.revision)
        .done()
}

fn l7(l7: &Layer7) -> Value {
    let common = Object::default()
        .field("type", named(l7.r#type, L7FlowType::as_str_name))
        .long("latencyNs", l7.latency_ns);
    let (name, record) = match &l7.record {
        None => return common.done(),
        Some(layer7::Record::Dns(dns)) => (
            "dns",
            Object::default()
                .text("query", &dns.query)
                .texts("ips", &dns.ips)
                .number("ttl", dns.ttl)
                .texts("cnames", &dns.cnames)
                .text("observationSource", &dns.observation_source)
                .number("rcode", dns.rcode)
                .texts("qtypes", &dns.qtypes)
                .texts("rrtypes", &dns.rrtypes),
        ),
        Some(layer7::Record::Http(http)) => (
            "http",
            Object::default()
                .number("code", http.code)
                .text("method", &http.method)
                .text("url", &http.url)
                .text("protocol", &http.protocol)
                .list("headers", &http.headers, |header| {
                    let value = if is_confidential(header) { REDACTED } else { &header.value };
                    Object::default().text("key", &header.key).text("value", value).done()
                }),
        ),
        Some(layer7::Record::Kafka(kafka)) => (
            "kafka",
            Object::default()
                .number("errorCode", kafka.error_code)
                .number("apiVersion", kafka.api_version)
                .text("apiKey", &kafka.api_key)
                .number("correlationId", kafka.correlation_id)
                .text("topic", &kafka.topic),
        ),
    };
    common.field(name, Some(record.done())).done()
}

fn is_confidential(header: &HttpHeader) -> bool {
    let name = header.key.to_ascii_lowercase();
    !header.value.is_empty() && CONFIDENTIAL.iter().any(|word| name.contains(word))
}

fn time(time: &Timestamp) -> Option<Value> {
    let legal = SECONDS.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    legal.then(|| Value::from(time.to_string()))
}

/// By name, or by number where a newer Cilium has names that are not known here.
fn named<E: TryFrom<i32>>(number: i32, name: fn(&E) -> &'static str) -> Option<Value> {
    let known = || E::try_from(number).map_or(Value::from(number), |known| Value::from(name(&known)));
    (number != 0).then(known)
}

/// A message's fields; those with their default are left out.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn field(mut self, name: &str, value: Option<Value>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    fn text(self, name: &str, text: &str) -> Self {
        self.field(name, (!text.is_empty()).then(|| Value::from(text)))
    }

    fn texts(self, name: &str, texts: &[String]) -> Self {
        self.field(name, (!texts.is_empty()).then(|| Value::from(texts)))
    }

    fn list<T>(self, name: &str, list: &[T], each: impl Fn(&T) -> Value) -> Self {
        self.field(name, (!list.is_empty()).then(|| list.iter().map(each).collect()))
    }

    fn number(self, name: &str, number: impl Into<i64>) -> Self {
        let number = number.into();
        self.field(name, (number != 0).then(|| Value::from(number)))
    }

    fn long(self, name: &str, number: u64) -> Self {
        self.field(name, (number != 0).then(|| Value::from(number.to_string())))
    }

    fn flag(self, name: &str, flag: bool) -> Self {
        self.field(name, flag.then_some(Value::Bool(true)))
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

#[cfg(test)]
mod tests;
