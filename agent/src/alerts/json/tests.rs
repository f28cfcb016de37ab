//! Flows as they are written, and what of them is not.

use super::*;
use postern_wire::proto::flow::{CiliumEventType, Dns, Ethernet, Http, IcmPv6, Tcp, Udp, Workload};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_flow_is_written_as_protobuf_writes_json() {
    let recorded = Flow {
        time: Some(Timestamp { seconds: 1_626_786_645, nanos: 120_000_000 }),
        verdict: Verdict::Dropped as i32,
        drop_reason: 133,
        drop_reason_desc: DropReason::PolicyDenied as i32,
        ethernet: Some(Ethernet { source: "0a:58:0a:00:00:01".to_owned(), destination: String::new() }),
        ip: Some(Ip {
            source: "10.0.0.1".to_owned(),
            destination: "10.0.0.2".to_owned(),
            ip_version: 1,
            encrypted: false,
        }),
        l4: Some(Layer4 {
            protocol: Some(layer4::Protocol::Tcp(Tcp {
                source_port: 40_000,
                destination_port: 5432,
                flags: Some(TcpFlags { syn: true, ..Default::default() }),
            })),
        }),
        source: Some(Endpoint {
            id: 7,
            identity: 1234,
            namespace: "shop".to_owned(),
            labels: texts(&["k8s:app=web"]),
            pod_name: "web-0".to_owned(),
            workloads: vec![Workload { name: "web".to_owned(), kind: "Deployment".to_owned() }],
        }),
        destination: Some(Endpoint { identity: 2, labels: texts(&["reserved:world"]), ..Default::default() }),
        r#type: FlowType::L3L4 as i32,
        node_name: "node-1".to_owned(),
        event_type: Some(CiliumEventType { r#type: 5, sub_type: 0 }),
        traffic_direction: TrafficDirection::Egress as i32,
        is_reply: Some(false),
        summary: "TCP Flags: SYN".to_owned(),
        ..Default::default()
    };
    let wanted = json!({
        "time": "2021-07-20T13:10:45.120Z",
        "verdict": "DROPPED",
        "dropReason": 133,
        "dropReasonDesc": "POLICY_DENIED",
        "ethernet": {"source": "0a:58:0a:00:00:01"},
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"sourcePort": 40000, "destinationPort": 5432, "flags": {"SYN": true}}},
        "source": {
            "ID": 7, "identity": 1234, "namespace": "shop", "labels": ["k8s:app=web"], "podName": "web-0",
            "workloads": [{"name": "web", "kind": "Deployment"}],
        },
        "destination": {"identity": 2, "labels": ["reserved:world"]},
        "Type": "L3_L4",
        "nodeName": "node-1",
        "eventType": {"type": 5},
        "trafficDirection": "EGRESS",
        "isReply": false,
        "Summary": "TCP Flags: SYN",
    });
    assert_eq!(flow(&recorded), wanted);
    assert_eq!(flow(&Flow::default()), json!({}));
}

#[test]
fn requests_are_written_with_their_records() {
    let with = |record| {
        flow(&Flow {
            l7: Some(Layer7 { r#type: 1, latency_ns: 5_000_000_000, record: Some(record) }),
            ..Default::default()
        })
    };
    let http = Http {
        code: 403,
        method: "GET".to_owned(),
        url: "http://db/x".to_owned(),
        protocol: "HTTP/1.1".to_owned(),
        headers: vec![HttpHeader { key: "Accept".to_owned(), value: String::new() }],
    };
    assert_eq!(
        with(layer7::Record::Http(http)),
        json!({"l7": {
            "type": "REQUEST", "latencyNs": "5000000000",
            "http": {
                "code": 403, "method": "GET", "url": "http://db/x", "protocol": "HTTP/1.1",
                "headers": [{"key": "Accept"}],
            },
        }})
    );
    let dns =
        Dns { query: "db.".to_owned(), ips: texts(&["10.0.0.1"]), ttl: 30, rcode: 3, ..Default::default() };
    let written = with(layer7::Record::Dns(dns));
    assert_eq!(written["l7"]["dns"], json!({"query": "db.", "ips": ["10.0.0.1"], "ttl": 30, "rcode": 3}));
}

#[test]
fn what_lets_its_holder_in_is_not_written() {
    let header = |key: &str, value: &str| HttpHeader { key: key.to_owned(), value: value.to_owned() };
    let written = |header: HttpHeader| {
        let http = Http { headers: vec![header], ..Default::default() };
        let l7 = Layer7 { record: Some(layer7::Record::Http(http)), ..Default::default() };
        flow(&Flow { l7: Some(l7), ..Default::default() })["l7"]["http"]["headers"][0].clone()
    };
    for name in [
        "Authorization",
        "proxy-authorization",
        "Cookie",
        "Set-Cookie",
        "X-Auth-Token",
        "X-CSRF-TOKEN",
        "X-Vault-Token",
        "X-Forwarded-Access-Token",
        "PRIVATE-TOKEN",
        "X-Api-Key",
        "X-Goog-Iap-Jwt-Assertion",
    ] {
        assert_eq!(written(header(name, "hunter2")), json!({"key": name, "value": "[redacted]"}));
    }
    assert_eq!(written(header("Cookie", "")), json!({"key": "Cookie"}));
    for name in ["Accept", "User-Agent", "X-Request-Id", ":authority"] {
        assert_eq!(written(header(name, "x")), json!({"key": name, "value": "x"}));
    }
}

#[test]
fn what_a_newer_cilium_says_is_kept_as_a_number() {
    let newer = Flow { verdict: 99, drop_reason_desc: 250, traffic_direction: -1, ..Default::default() };
    assert_eq!(flow(&newer), json!({"verdict": 99, "dropReasonDesc": 250, "trafficDirection": -1}));
    // A time that RFC 3339 cannot say is left out.
    for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
        let odd = Flow { time: Some(Timestamp { seconds, nanos }), ..Default::default() };
        assert_eq!(flow(&odd), json!({}));
    }
    for (nanos, wanted) in [(0, "Z"), (1_000_000, ".001Z"), (1_000, ".000001Z"), (1, ".000000001Z")] {
        let time = Some(Timestamp { seconds: 0, nanos });
        assert_eq!(
            flow(&Flow { time, ..Default::default() })["time"],
            format!("1970-01-01T00:00:00{wanted}")
        );
    }
}

#[test]
fn every_protocol_has_its_name() {
    let with = |protocol| flow(&Flow { l4: Some(Layer4 { protocol }), ..Default::default() })["l4"].clone();
    let udp = Udp { source_port: 1, destination_port: 53 };
    assert_eq!(
        with(Some(layer4::Protocol::Udp(udp))),
        json!({"UDP": {"sourcePort": 1, "destinationPort": 53}})
    );
    let ping = IcmPv6 { r#type: 128, code: 0 };
    assert_eq!(with(Some(layer4::Protocol::IcmPv6(ping))), json!({"ICMPv6": {"type": 128}}));
    assert_eq!(with(None), json!({}));
}
