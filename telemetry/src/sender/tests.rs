//! Against a receiver on this machine: what arrives, what answers mean, and that a connection is used again.

use super::*;
use hyper::server::conn::{http1 as server1, http2 as server2};
use hyper::service::service_fn;
use std::convert::Infallible;
use std::sync::Mutex;
use tokio::net::TcpListener;

type Seen = Arc<Mutex<Vec<(HeaderMap, String, Bytes)>>>;
type Answers = Arc<Mutex<Vec<(u16, Option<u16>)>>>;

/// Answers each request with the next status, HTTP's and gRPC's, then with success.
async fn receiver(protocol: Protocol, answers: &[(u16, Option<u16>)]) -> (String, Seen, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (seen, dials) = (Seen::default(), Arc::new(Mutex::new(0)));
    let answers: Answers = Arc::new(Mutex::new(answers.iter().rev().copied().collect()));
    let (all, count) = (seen.clone(), dials.clone());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            *count.lock().unwrap() += 1;
            let (all, answers) = (all.clone(), answers.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (all, answers) = (all.clone(), answers.clone());
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    all.lock().unwrap().push((head.headers, head.uri.path().to_owned(), body));
                    let (status, grpc) = answers.lock().unwrap().pop().unwrap_or((200, Some(0)));
                    let mut response = Response::new(Full::new(Bytes::new()));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    if let Some(grpc) = grpc {
                        response.headers_mut().insert("grpc-status", grpc.into());
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let io = TokioIo::new(tcp);
            match protocol {
                Protocol::Http => drop(tokio::spawn(server1::Builder::new().serve_connection(io, service))),
                Protocol::Grpc => {
                    drop(tokio::spawn(
                        server2::Builder::new(TokioExecutor::new()).serve_connection(io, service),
                    ));
                }
            }
        }
    });
    (url, seen, dials)
}

fn sender(url: &str, protocol: Protocol) -> Sender {
    let headers = vec![crate::endpoint::header("x-key", "s3cr3t").unwrap()];
    Sender::new(Endpoint::parse(url, protocol).unwrap(), headers, None).unwrap()
}

#[tokio::test]
async fn both_protocols_carry_messages_over_one_connection() {
    for (protocol, path, body) in [
        (Protocol::Http, "/v1/traces", &b"spans"[..]),
        (
            Protocol::Grpc,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            &b"\0\0\0\0\x05spans"[..],
        ),
    ] {
        let (url, seen, dials) = receiver(protocol, &[]).await;
        let mut sender = sender(&url, protocol);
        for _ in 0..3 {
            sender.send(Bytes::from_static(b"spans")).await.unwrap();
        }
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        for (headers, asked, got) in seen.iter() {
            assert_eq!((asked.as_str(), &got[..]), (path, body));
            assert_eq!(headers["x-key"], "s3cr3t");
        }
        assert_eq!(*dials.lock().unwrap(), 1, "{protocol:?}");
        assert!(!format!("{sender:?}").contains("s3cr3t"));
    }
}

#[tokio::test]
async fn an_answer_says_whether_to_come_again() {
    for (protocol, answer, for_now) in [
        (Protocol::Http, (429, None), true),
        (Protocol::Http, (503, None), true),
        (Protocol::Http, (400, None), false),
        (Protocol::Http, (404, None), false),
        (Protocol::Grpc, (200, Some(14)), true),
        (Protocol::Grpc, (200, Some(8)), true),
        (Protocol::Grpc, (200, Some(16)), false),
        (Protocol::Grpc, (404, None), false),
        (Protocol::Grpc, (200, None), true),
    ] {
        let (url, _, _) = receiver(protocol, &[answer]).await;
        let mut sender = sender(&url, protocol);
        let refused = sender.send(Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(refused.for_now, for_now, "{protocol:?} {answer:?}: {}", refused.why);
        sender.send(Bytes::from_static(b"x")).await.unwrap();
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_may_come() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let refused = sender(&url, Protocol::Grpc).send(Bytes::new()).await.unwrap_err();
    assert!(refused.for_now && refused.why.starts_with("dial"), "{}", refused.why);
}
