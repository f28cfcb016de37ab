//! What the relay does beyond copying: deadlines, brokers that turn a stream away, clients that flood.

use crate::clients::{call, echo, grpc, h2, tcp};
use crate::frames::{
    self, Client, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, Road, SETTINGS, settings,
};
use crate::harness::{DEADLINE, Edge, Setup, token};
use crate::upstreams::{Agents, DRIPS, KubernetesApi};
use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn before(agents: SocketAddr) -> Edge {
    let edge = Edge::start(Setup { agents: vec![agents], ..Setup::default() }).await;
    edge.probe("/readiness", 200).await;
    edge
}

#[tokio::test]
async fn a_call_that_outlives_its_deadline_is_ended_and_the_broker_is_told() {
    let agents = Agents::start().await;
    let edge = before(agents.address).await;
    let client = h2(tcp(edge.plain).await).await;
    let mut request = grpc("/stall", Some(&token("agent")));
    request.headers_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let begin = Instant::now();
    let (code, message) = call(&client, request).await.status().await;
    assert_eq!(code, 4, "{message}");
    assert!(message.contains(&agents.address.to_string()), "{message}");
    // The broker has a second to say so itself.
    assert!(begin.elapsed() > Duration::from_millis(1200), "{:?}", begin.elapsed());
    let line = edge.access(|line| line["error"] == "deadline exceeded").await;
    assert_eq!((&line["fault"], &line["grpc_status"]), (&"upstream".into(), &4.into()));
    echo(&client, &token("agent")).await;
}

/// What a broker that speaks in frames does with a stream.
#[derive(Clone, Copy)]
enum Manner {
    /// GOAWAY that names no stream.
    TurnAway,
    Ignore,
}

/// A broker of frames.
async fn frames(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(answer(tcp, manner));
        }
    });
    address
}

async fn answer(mut tcp: TcpStream, manner: Manner) -> std::io::Result<()> {
    let mut preface = [0; 24];
    tcp.read_exact(&mut preface).await?;
    tcp.write_all(&frame(4, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tcp.read_exact(&mut payload).await?;
        match (head[3], manner) {
            (4 | 6, _) if head[4] & 1 == 0 => {
                tcp.write_all(&frame(head[3], 1, if head[3] == 6 { &payload } else { &[] })).await?
            }
            (1, Manner::TurnAway) => tcp.write_all(&frame(7, 0, &[0; 8])).await?,
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn a_stream_that_a_leaving_broker_never_looked_at_may_be_sent_again() {
    let edge = before(frames(Manner::TurnAway).await).await;
    let client = h2(tcp(edge.plain).await).await;
    let mut client = client.ready().await.unwrap();
    let (response, _out) = client.send_request(grpc("/a.B/C", Some(&token("agent"))), false).unwrap();
    let error = tokio::time::timeout(DEADLINE, response).await.expect("no answer").unwrap_err();
    // gRPC clients repeat such a call by themselves.
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM), "{error}");
    let line = edge.access(|line| line["error"] == "connection closing").await;
    assert_eq!(line["fault"], "upstream");
}

#[tokio::test]
async fn who_opens_and_resets_streams_without_end_is_sent_away_and_others_are_served() {
    let edge = before(frames(Manner::Ignore).await).await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut opened = 0;
    let reason = loop {
        assert!(opened < 20_000, "still connected");
        let Ok(mut client) = client.clone().ready().await.map_err(|error| error.reason()) else {
            break None;
        };
        match client.send_request(grpc("/a.B/C", Some(&token)), false) {
            Ok((_response, mut out)) => out.send_reset(Reason::CANCEL),
            Err(error) => break error.reason(),
        }
        opened += 1;
        tokio::task::yield_now().await;
    };
    assert!(reason.is_none_or(|reason| reason == Reason::ENHANCE_YOUR_CALM), "{reason:?}");
    // Another connection is another one.
    drop(h2(tcp(edge.plain).await).await.ready().await.unwrap());
}

#[tokio::test]
async fn a_flood_of_pings_ends_the_connection() {
    let edge = before(Agents::start().await.address).await;
    let mut tcp = tcp(edge.plain).await;
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(frame(4, 0, &[]));
    for _ in 0..50_000 {
        flood.extend(frame(6, 0, &[7; 8]));
    }
    let (mut read, mut write) = tcp.split();
    let mut answer = Vec::new();
    let flooded = async {
        // Either may fail: the edge closes in the middle of it.
        let _ = tokio::join!(write.write_all(&flood), read.read_to_end(&mut answer));
    };
    tokio::time::timeout(DEADLINE, flooded).await.expect("it is still connected");
    edge.line(|line| line["why"].as_str().is_some_and(|why| why.contains("flood"))).await;
}

/// How many bytes eight streams take that nobody reads, until no window opens for so long or `enough` are taken.
async fn pour(client: &SendRequest<Bytes>, token: &str, quiet: Duration, enough: usize) -> usize {
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(call(client, grpc("/stall", Some(token))).await);
    }
    let mut poured = 0;
    streams.iter_mut().for_each(|stream| stream.out.reserve_capacity(1 << 20));
    while poured < enough {
        let opened = poll_fn(|cx| {
            let mut each = streams.iter_mut();
            let found = each.find_map(|stream| match stream.out.poll_capacity(cx) {
                Poll::Ready(Some(Ok(capacity))) => Some((stream, capacity)),
                _ => None,
            });
            found.map_or(Poll::Pending, |(stream, capacity)| {
                stream.out.send_data(Bytes::from(vec![0; capacity]), false).unwrap();
                stream.out.reserve_capacity(1 << 20);
                Poll::Ready(capacity)
            })
        });
        let Ok(capacity) = tokio::time::timeout(quiet, opened).await else { break };
        poured += capacity;
    }
    poured
}

#[tokio::test]
async fn a_stranger_cannot_make_the_edge_hold_what_an_agent_may() {
    // The stand-in, and sockets that are full, take 64 KiB and some per stream.
    let taken = 8 * 128 * 1024;
    let agents = Agents::start().await;
    let edge = before(agents.address).await;
    let stranger = h2(tcp(edge.plain).await).await;
    let poured = pour(&stranger, &token("stranger"), Duration::from_millis(250), usize::MAX).await;
    assert!(poured <= (1 << 20) + taken, "{poured} bytes of a stranger are held");
    let agent = h2(tcp(edge.plain).await).await;
    echo(&agent, &token("agent")).await;
    let poured = pour(&agent, &token("agent"), DEADLINE, 2 << 20).await;
    assert!(poured >= 2 << 20, "{poured} bytes of an agent are taken");
}

#[tokio::test]
async fn who_takes_no_answers_and_is_nobody_has_a_hundred_of_them_at_a_time() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let mut client = Client::new(tcp(edge.plain).await);
    let no_window = frames::frame(SETTINGS, 0, 0, &settings(&[(4, 0)]));
    client.send(&[PREFACE, &no_window].concat()).await;
    let block = Road::KubernetesApi.fields().set(":path", "/").without("authorization").block();
    for stream in (1..260).step_by(2) {
        client.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
    }
    client.find("the last refusal", |frame| frame.kind == RST_STREAM && frame.stream == 259).await.unwrap();
    let resets = client.seen.iter().filter(|frame| frame.kind == RST_STREAM);
    let refused: Vec<_> = resets.map(|frame| (frame.stream, frame.code())).collect();
    assert_eq!(refused, (201..260).step_by(2).map(|stream| (stream, 7)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_caller_whose_token_a_broker_accepted_may_have_more_streams_than_a_stranger() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    // A dial that falls into a pause of the machine has not failed.
    let more = "timeouts: {upstream_connect: 30s}";
    let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
    let edge = Edge::start(setup).await;
    let client = h2(tcp(edge.plain).await).await;
    let request = |path: &str| {
        let request = Request::get(format!("https://kas.example.com{path}"));
        request.header("authorization", token("ci:1")).body(()).unwrap()
    };
    let (first, _) = client.clone().ready().await.unwrap().send_request(request("/api"), true).unwrap();
    assert_eq!(first.await.unwrap().status(), 200);
    let mut watches = Vec::new();
    for _ in 0..150 {
        let mut client = client.clone().ready().await.unwrap();
        watches.push(client.send_request(request("/api/v1/pods?watch=1"), true).unwrap().0);
    }
    let mut open = Vec::new();
    for watch in watches {
        open.push(tokio::time::timeout(DEADLINE, watch).await.expect("no answer").unwrap());
    }
    assert!(open.iter().all(|response| response.status() == 200));
}

#[tokio::test]
async fn single_bytes_that_a_client_does_not_take_cost_nobody_the_connection_to_the_broker() {
    let agents = Agents::start().await;
    // Each has connections of its own.
    let setup = Setup { agents: vec![agents.address], more: "workers: 1", ..Setup::default() };
    // A line for each of so many frames would keep the edge from answering to pings.
    let edge = Edge::start_quietly(setup).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (stalled, connection) = builder.handshake::<_, Bytes>(tcp(edge.plain).await).await.unwrap();
    tokio::spawn(connection);
    let client = h2(tcp(edge.plain).await).await;
    let mut beside = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    let stalled = call(&stalled, grpc("/drip", Some(&token("agent")))).await;
    // All of them were sent, and read by the edge, when its window is used up.
    let dripped = async {
        while agents.dripped.load(Ordering::Relaxed) < DRIPS {
            beside.send(b"on").await;
            assert_eq!(beside.read(2).await, b"on");
        }
    };
    tokio::time::timeout(3 * DEADLINE, dripped).await.expect("it does not go on");
    echo(&client, &token("agent")).await;
    assert_eq!(agents.connections.load(Ordering::Relaxed), 1, "the connection was lost");
    drop(stalled);
}

#[tokio::test]
async fn a_broker_that_admits_no_streams_is_not_dialled_again_and_again_by_who_waits() {
    let edge = before(Agents::admitting(0).await.address).await;
    let client = h2(tcp(edge.plain).await).await;
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await.status().await;
    assert_eq!(code, 14, "{message}");
    assert!(message.contains("no stream admitted"), "{message}");
}
