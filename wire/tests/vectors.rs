//! Bytes computed by hand from the field numbers: what Go peers send and expect, to the letter.

use postern_wire::{
    http,
    proto::gitlab::agent::{
        agent_tracker::ConnectedAgentInfo,
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        kas::{GatewayKasResponse, StartStreaming, gateway_kas_response},
        modshared::AgentMeta,
        prototool::Values,
        redistool::ExpiringValue,
        reverse_tunnel::{
            info,
            rpc::{self, ConnectRequest, ConnectResponse, connect_request, connect_response},
            tracker::TunnelInfo,
        },
    },
};
use prost::Message;
use std::collections::HashMap;

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex.replace([' ', '\n'], "")).expect("hexadecimal")
}

fn check<M: Message + PartialEq + Default + std::fmt::Debug>(message: M, hex: &str) {
    assert_eq!(message.encode_to_vec(), bytes(hex));
    assert_eq!(M::decode(bytes(hex).as_slice()).expect("decodes"), message);
}

const GET_VERSION: &str = "0a 03 47 45 54 12 0f 0a 06 41 63 63 65 70 74 12 05 0a 03 2a 2f 2a 1a 08 2f 76 65 72 \
     73 69 6f 6e 22 10 0a 07 74 69 6d 65 6f 75 74 12 05 0a 03 33 32 73";

fn get_version(content_length: Option<i64>) -> HttpRequest {
    let mut headers = ::http::HeaderMap::new();
    headers.insert("accept", ::http::HeaderValue::from_static("*/*"));
    let method = ::http::Method::GET;
    let mut message =
        http::request_header(&method, "/version", Some("timeout=32s"), &headers, 0, None).expect("a head");
    let Some(http_request::Message::Header(header)) = &mut message.message else { panic!("a header") };
    header.content_length = content_length;
    message
}

#[test]
fn a_descriptor_names_the_kubernetes_api() {
    let descriptor = rpc::Descriptor { agent_descriptor: Some(kubernetes_api()) };
    check(
        ConnectRequest { msg: Some(connect_request::Msg::Descriptor(descriptor)) },
        "0a 42 0a 40 0a 3e 0a 2d 67 69 74 6c 61 62 2e 61 67 65 6e 74 2e 6b 75 62 65 72 6e 65 74 65 73 5f 61 70 69
         2e 72 70 63 2e 4b 75 62 65 72 6e 65 74 65 73 41 70 69 12 0d 0a 0b 4d 61 6b 65 52 65 71 75 65 73 74",
    );
}

#[test]
fn a_request_info_carries_method_and_metadata() {
    let values = Values { value: vec!["application/grpc".into()] };
    let info = rpc::RequestInfo {
        method_name: "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest".into(),
        meta: HashMap::from([("content-type".into(), values)]),
    };
    check(
        ConnectResponse { msg: Some(connect_response::Msg::RequestInfo(info)) },
        "0a 60 0a 3a 2f 67 69 74 6c 61 62 2e 61 67 65 6e 74 2e 6b 75 62 65 72 6e 65 74 65 73 5f 61 70 69 2e 72 70
         63 2e 4b 75 62 65 72 6e 65 74 65 73 41 70 69 2f 4d 61 6b 65 52 65 71 75 65 73 74 12 22 0a 0c 63 6f 6e 74
         65 6e 74 2d 74 79 70 65 12 12 0a 10 61 70 70 6c 69 63 61 74 69 6f 6e 2f 67 72 70 63",
    );
}

#[test]
fn a_request_header_as_14_1_sends_it() {
    check(get_version(None), &format!("0a 34 0a 32 {GET_VERSION}"));
}

#[test]
fn a_content_length_of_zero_is_present_on_the_wire() {
    check(get_version(Some(0)), &format!("0a 36 0a 32 {GET_VERSION} 18 00"));
}

#[test]
fn a_request_header_inside_a_tunnel() {
    let data = get_version(None).encode_to_vec().into();
    let message = connect_response::Msg::Message(rpc::Message { data });
    check(ConnectResponse { msg: Some(message) }, &format!("12 38 0a 36 0a 34 0a 32 {GET_VERSION}"));
}

#[test]
fn empty_members_still_have_their_tag() {
    let trailer = HttpRequest { message: Some(http_request::Message::Trailer(http_request::Trailer {})) };
    check(trailer.clone(), "1a 00");
    let inside = rpc::Message { data: trailer.encode_to_vec().into() };
    check(ConnectResponse { msg: Some(connect_response::Msg::Message(inside)) }, "12 04 0a 02 1a 00");
    check(ConnectResponse { msg: Some(connect_response::Msg::CloseSend(rpc::CloseSend {})) }, "1a 00");
    check(ConnectRequest { msg: Some(connect_request::Msg::Header(rpc::Header::default())) }, "12 00");
    check(ConnectRequest { msg: Some(connect_request::Msg::Trailer(rpc::Trailer::default())) }, "22 00");
    let ready = gateway_kas_response::Msg::TunnelReady(gateway_kas_response::TunnelReady::default());
    check(GatewayKasResponse { msg: Some(ready) }, "0a 00");
    check(StartStreaming {}, "");
}

#[test]
fn a_response_header_has_status_text_and_canonical_names() {
    let mut headers = ::http::HeaderMap::new();
    headers.insert("content-type", ::http::HeaderValue::from_static("application/json"));
    check(
        http::response_header(::http::StatusCode::OK, &headers),
        "0a 31 0a 2f 08 c8 01 12 06 32 30 30 20 4f 4b 1a 22 0a 0c 43 6f 6e 74 65 6e 74 2d 54 79 70 65 12 12 0a 10
         61 70 70 6c 69 63 61 74 69 6f 6e 2f 6a 73 6f 6e",
    );
}

#[test]
fn response_data_inside_a_tunnel() {
    let data = http_response::Data { data: bytes::Bytes::from_static(b"{}") };
    let response = HttpResponse { message: Some(http_response::Message::Data(data)) };
    let message = rpc::Message { data: response.encode_to_vec().into() };
    check(
        ConnectRequest { msg: Some(connect_request::Msg::Message(message)) },
        "1a 08 0a 06 12 04 0a 02 7b 7d",
    );
}

#[test]
fn an_error_carries_a_grpc_status() {
    let status = postern_wire::proto::google::rpc::Status {
        code: 14,
        message: "unavailable".into(),
        details: Vec::new(),
    };
    let error = rpc::Error { status: Some(status) };
    check(
        ConnectRequest { msg: Some(connect_request::Msg::Error(error)) },
        "2a 11 0a 0f 08 0e 12 0b 75 6e 61 76 61 69 6c 61 62 6c 65",
    );
}

fn kubernetes_api() -> info::AgentDescriptor {
    let method = info::Method { name: "MakeRequest".into() };
    let name = "gitlab.agent.kubernetes_api.rpc.KubernetesApi".into();
    info::AgentDescriptor { services: vec![info::Service { name, methods: vec![method] }] }
}

/// Both sides of an entry as 14.1 stores it: the envelope, and what is inside.
fn check_stored<M: Message + PartialEq + Default + std::fmt::Debug>(
    name: &str,
    message: M,
    length: usize,
    hex: &str,
) {
    let type_url = format!("type.googleapis.com/{name}");
    let value = prost_types::Any { type_url, value: message.encode_to_vec() };
    let at = prost_types::Timestamp { seconds: 1_700_000_300, nanos: 0 };
    check(ExpiringValue { expires_at: Some(at), value: Some(value) }, hex);
    assert_eq!(bytes(hex).len(), length);
    let stored = ExpiringValue::decode(bytes(hex).as_slice()).expect("decodes").value.expect("a value");
    assert_eq!(M::decode(stored.value.as_slice()).expect("decodes"), message);
}

#[test]
fn a_connected_agent_as_14_1_stores_it() {
    check_stored(
        "gitlab.agent.agent_tracker.ConnectedAgentInfo",
        ConnectedAgentInfo {
            agent_meta: Some(AgentMeta {
                version: "v14.1.1".into(),
                commit_id: "7a36596".into(),
                pod_namespace: "gitlab-agent".into(),
                pod_name: "gitlab-agent-0".into(),
                kubernetes_version: None,
            }),
            connected_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            connection_id: 1_234_567_890_123_456_789,
            agent_id: 42,
            project_id: 7,
        },
        152,
        "0a0608ace4cfaa06128d010a41747970652e676f6f676c65617069732e636f6d2f6769746c61622e6167656e742e6167656e745f
         747261636b65722e436f6e6e65637465644167656e74496e666f12480a300a077631342e312e311207376133363539361a0c6769
         746c61622d6167656e74220e6769746c61622d6167656e742d3012060880e2cfaa06189582a6efc79e849111202a2807",
    );
}

#[test]
fn a_tunnel_as_14_1_stores_it() {
    check_stored(
        "gitlab.agent.reverse_tunnel.tracker.TunnelInfo",
        TunnelInfo {
            agent_descriptor: Some(kubernetes_api()),
            connection_id: 1_234_567_890_123_456_789,
            agent_id: 42,
            kas_url: "grpc://10.0.0.1:8155".into(),
        },
        181,
        "0a0608ace4cfaa0612aa010a42747970652e676f6f676c65617069732e636f6d2f6769746c61622e6167656e742e726576657273
         655f74756e6e656c2e747261636b65722e54756e6e656c496e666f12640a400a3e0a2d6769746c61622e6167656e742e6b756265
         726e657465735f6170692e7270632e4b756265726e65746573417069120d0a0b4d616b6552657175657374109582a6efc79e8491
         11182a2214677270633a2f2f31302e302e302e313a38313535",
    );
}

#[test]
fn both_generations_of_a_manifest_path_and_of_a_gitaly_address_are_the_same_bytes() {
    use postern_wire::proto::gitlab::agent::{agentcfg, entity::GitalyInfo, gitops::rpc::*, modserver};
    let glob = agentcfg::PathCf { path: Some(agentcfg::path_cf::Path::Glob("/*.yaml".into())) };
    let old = "0a 03 61 2f 62 1a 09 0a 07 2f 2a 2e 79 61 6d 6c";
    let request = ObjectsToSynchronizeRequest {
        project_id: "a/b".into(),
        commit_id: String::new(),
        paths: vec![glob],
        r#ref: None,
    };
    check(request.clone(), old);
    let branch = agentcfg::GitRefCf { r#ref: Some(agentcfg::git_ref_cf::Ref::Branch("main".into())) };
    let request = ObjectsToSynchronizeRequest { r#ref: Some(branch), ..request };
    check(request, &format!("{old} 22 06 12 04 6d 61 69 6e"));

    let old = modserver::GitalyAddress { address: "unix:/g".into(), token: "t".into() };
    let new = GitalyInfo { address: "unix:/g".into(), token: "t".into(), features: HashMap::new() };
    assert_eq!(old.encode_to_vec(), new.encode_to_vec());
}

#[test]
fn objects_to_synchronize_by_field_number() {
    use postern_wire::proto::gitlab::agent::gitops::rpc::{
        ObjectsToSynchronizeResponse as Response,
        objects_to_synchronize_response::{Header, Message as Msg, Object, Trailer},
    };
    let header = Header { commit_id: "c1".into(), project_id: 42 };
    check(Response { message: Some(Msg::Header(header)) }, "0a 06 0a 02 63 31 10 2a");
    let object = Object { source: "a".into(), data: bytes::Bytes::from_static(b"b") };
    check(Response { message: Some(Msg::Object(object)) }, "12 06 0a 01 61 12 01 62");
    check(Response { message: Some(Msg::Trailer(Trailer {})) }, "1a 00");
}
