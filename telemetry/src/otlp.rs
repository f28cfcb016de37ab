//! Spans as bytes: the messages of `opentelemetry.proto.collector.trace.v1`, version 1 of OTLP, as far as a program
//! that only sends spans needs them. The numbers are the standard's and do not change. Reads nothing.

use crate::exporter::Service;
use crate::span::{Kind, Span, Value};
use prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "AnyKind", tags = "1, 3")]
    value: Option<AnyKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum AnyKind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;

/// An `ExportTraceServiceRequest`.
pub(crate) fn encode(service: &Service, spans: &[Span]) -> Vec<u8> {
    let mut resource = vec![
        pair("service.name", &Value::from(service.name)),
        pair("service.version", &Value::from(service.version)),
        pair("service.instance.id", &Value::from(service.instance.clone())),
    ];
    resource.extend(service.attributes.iter().map(|(key, value)| KeyValue {
        key: key.clone(),
        value: Some(AnyValue { value: Some(AnyKind::Text(value.clone())) }),
    }));
    let scope = Scope { name: "postern".to_owned(), version: service.version.to_owned() };
    let scoped = ScopeSpans { scope: Some(scope), spans: spans.iter().map(wire).collect() };
    let resource = Resource { attributes: resource };
    let of_resource = ResourceSpans { resource: Some(resource), scope_spans: vec![scoped] };
    Request { resource_spans: vec![of_resource] }.encode_to_vec()
}

fn wire(span: &Span) -> WireSpan {
    WireSpan {
        trace_id: span.context.trace.bytes().to_vec(),
        span_id: span.context.span.bytes().to_vec(),
        parent_span_id: span.parent.map(|id| id.bytes().to_vec()).unwrap_or_default(),
        name: span.name.clone().into_owned(),
        kind: match span.kind {
            Kind::Server => SERVER,
            Kind::Client => CLIENT,
        },
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end.max(span.start)),
        attributes: span.attributes.iter().map(|(key, value)| pair(key, value)).collect(),
        status: span.error.as_ref().map(|error| Status { message: error.clone().into_owned(), code: ERROR }),
        flags: u32::from(span.context.sampled),
    }
}

fn pair(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => AnyKind::Text(text.clone().into_owned()),
        Value::Number(number) => AnyKind::Number(*number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Context;
    use std::time::Duration;

    #[test]
    fn a_span_is_on_the_wire_as_the_standard_numbers_it() {
        let context = Context::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let start = UNIX_EPOCH + Duration::from_nanos(1);
        let span = Span {
            name: "GET".into(),
            kind: Kind::Server,
            context,
            parent: None,
            start,
            end: UNIX_EPOCH,
            attributes: vec![("n", Value::Number(5))],
            error: Some("x".into()),
        };
        let bytes = wire(&span).encode_to_vec();
        let mut wanted = vec![0x0a, 16];
        wanted.extend(context.trace.bytes());
        wanted.extend([0x12, 8]);
        wanted.extend(context.span.bytes());
        wanted.extend([0x2a, 3, b'G', b'E', b'T', 0x30, 2]);
        // Fixed 64 bits each; an end before the start is the start.
        wanted.extend([0x39, 1, 0, 0, 0, 0, 0, 0, 0, 0x41, 1, 0, 0, 0, 0, 0, 0, 0]);
        wanted.extend([0x4a, 7, 0x0a, 1, b'n', 0x12, 2, 0x18, 5]);
        wanted.extend([0x7a, 5, 0x12, 1, b'x', 0x18, 2]);
        wanted.extend([0x85, 0x01, 1, 0, 0, 0]);
        assert_eq!(bytes, wanted);
    }
}
