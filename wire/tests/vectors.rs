//! Bytes computed by hand from the field numbers: what Go peers send and expect, to the letter.

use postern_wire::{
    http,
    proto::gitlab::agent::{
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        kas::{GatewayKasResponse, StartStreaming, gateway_kas_response},
        prototool::Values,
        reverse_tunnel::{
            info,
            rpc::{self, ConnectRequest, ConnectResponse, connect_request, connect_response},
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
    let method = info::Method { name: "MakeRequest".into() };
    let name = "gitlab.agent.kubernetes_api.rpc.KubernetesApi".into();
    let services = vec![info::Service { name, methods: vec![method] }];
    let descriptor = rpc::Descriptor { agent_descriptor: Some(info::AgentDescriptor { services }) };
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
    let ready = gateway_kas_response::Msg::TunnelReady(gateway_kas_response::TunnelReady {});
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
