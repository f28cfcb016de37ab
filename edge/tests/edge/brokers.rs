//! Brokers that leave, hang, vanish and come back, while others are there.

use crate::clients::{call, echo, grpc, h2, tcp};
use crate::harness::{DEADLINE, Edge, Setup, status, token};
use crate::upstreams::{Agents, read_head};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The two brokers, the one that has this token's streams first.
fn by_choice(brokers: [Agents; 2]) -> [Agents; 2] {
    let [one, two] = brokers;
    let has = |broker: &Agents| !broker.seen.lock().unwrap().is_empty();
    assert!(has(&one) != has(&two), "a token has one broker");
    if has(&one) { [one, two] } else { [two, one] }
}

async fn two() -> ([Agents; 2], Edge) {
    let brokers = [Agents::start().await, Agents::start().await];
    let agents = brokers.iter().map(|broker| broker.address).collect();
    let edge = Edge::start(Setup { agents, ..Setup::default() }).await;
    for broker in &brokers {
        edge.line(|line| reachable(line, broker.address)).await;
    }
    (brokers, edge)
}

fn reachable(line: &serde_json::Value, broker: SocketAddr) -> bool {
    line["message"] == "broker is reachable" && line["upstream"] == broker.to_string()
}

#[tokio::test]
async fn a_broker_that_leaves_keeps_what_runs_and_gets_nothing_new() {
    let (brokers, edge) = two().await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut old = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    let [first, second] = by_choice(brokers);
    first.leave();
    // While the edge may not have heard of it yet, and afterwards: nothing is lost.
    for _ in 0..50 {
        echo(&client, &token).await;
    }
    let here = first.seen.lock().unwrap().len();
    let there = second.seen.lock().unwrap().len();
    assert_eq!(here + there, 51);
    assert!(there > 40, "{there} of 50 streams went to the broker that stays");
    old.send(b"still here").await;
    assert_eq!(old.read(10).await, b"still here");
    old.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(old.status().await.0, 0);
}

#[tokio::test]
async fn a_broker_that_hangs_is_found_and_its_streams_end() {
    let (brokers, edge) = two().await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut stuck = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    stuck.send(b"x").await;
    stuck.read(1).await;
    let [first, second] = by_choice(brokers);
    first.hang();
    let (code, message) = stuck.status().await;
    assert_eq!(code, 14, "{message}");
    assert!(message.contains(&first.address.to_string()), "{message}");
    echo(&client, &token).await;
    assert_eq!(second.seen.lock().unwrap().len(), 1);
}

/// An address at which nothing is ever answered, not even a connection: its queue is full. Holds what fills it.
async fn black_hole() -> (SocketAddr, socket2::Socket, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        filling.push(connected.unwrap());
    }
    (address, socket, filling)
}

/// Brokers whose hosts vanished; who waited for one after the other waited for as many seconds.
const VANISHED: u64 = 20;
const HALF: Duration = Duration::from_secs(VANISHED / 2);

#[tokio::test]
async fn a_broker_whose_host_vanished_delays_nobody_elses_probe_and_a_request_does_not_wait_for_each_of_them()
{
    let holes = futures::future::join_all((0..VANISHED).map(|_| black_hole())).await;
    let (agents, api) = (Agents::start().await, Callers::start(Manner::Answer).await);
    let gone = || holes.iter().map(|(gone, ..)| *gone);
    let edge = Edge::start(Setup {
        // The vanished ones first: one after the other their probes would take a second each.
        agents: gone().chain([agents.address]).collect(),
        kubernetes_api: gone().chain([api.address]).collect(),
        more: "timeouts: {upstream_connect: 1s}",
    })
    .await;
    let begin = Instant::now();
    edge.line(|line| reachable(line, agents.address)).await;
    edge.line(|line| reachable(line, api.address)).await;
    assert!(begin.elapsed() < HALF, "{:?}", begin.elapsed());
    let client = h2(tcp(edge.plain).await).await;
    for n in 0..8 {
        let begin = Instant::now();
        echo(&client, &token(&format!("agent-{n}"))).await;
        let mut io = tcp(edge.plain).await;
        assert_eq!(ask(&mut io, "GET", &token(&format!("caller-{n}")), "").await, Some(200));
        assert!(begin.elapsed() < HALF, "{:?}", begin.elapsed());
    }
}

/// What a broker does with requests on a connection.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answer,
    /// Says that it leaves, and closes.
    Leave,
    /// Answers the first of a connection, and closes it in silence when it has read the second.
    Second,
    /// Answers none.
    Never,
}

/// A broker's Kubernetes API listener.
#[derive(Clone)]
struct Callers {
    address: SocketAddr,
    /// Methods, as they came.
    heard: Arc<Mutex<Vec<String>>>,
    manner: Arc<Mutex<Manner>>,
}

impl Callers {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let callers = Self { address, heard: Arc::default(), manner: Arc::new(Mutex::new(manner)) };
        let broker = callers.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(broker.clone().serve(tcp));
            }
        });
        callers
    }

    async fn serve(self, mut tcp: TcpStream) -> Option<()> {
        for number in 0.. {
            let (head, mut body) = read_head(&mut tcp).await?;
            while body.len() < content_length(&head) {
                tcp.read_buf(&mut body).await.ok().filter(|read| *read > 0)?;
            }
            self.heard.lock().unwrap().push(head.split(' ').next()?.to_owned());
            let manner = *self.manner.lock().unwrap();
            let answer: &[u8] = match manner {
                Manner::Answer | Manner::Second if manner == Manner::Answer || number == 0 => {
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                Manner::Leave => {
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nX-Postern-Leaving: 1\r\nContent-Length: 2\r\n\r\nok"
                }
                _ => return None,
            };
            tcp.write_all(answer).await.ok()?;
            if manner == Manner::Leave {
                return None;
            }
        }
        None
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn content_length(head: &str) -> usize {
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    length.unwrap_or(0)
}

/// One request on a caller's connection: its status; `None` if the connection is closed.
async fn ask(io: &mut TcpStream, method: &str, token: &str, more: &str) -> Option<u16> {
    let request =
        format!("{method} /api/v1/pods HTTP/1.1\r\nHost: h\r\nAuthorization: {token}\r\n{more}\r\n");
    io.write_all(request.as_bytes()).await.ok()?;
    let answer = tokio::time::timeout(DEADLINE, read_head(io)).await.expect("no answer")?;
    let (head, mut body) = answer;
    assert!(!head.to_lowercase().contains("x-postern"), "{head}");
    while body.len() < content_length(&head) {
        assert_ne!(io.read_buf(&mut body).await.unwrap(), 0, "the body is cut");
    }
    Some(status(&head))
}

async fn before(brokers: &[&Callers]) -> Edge {
    let agents = Agents::start().await;
    let kubernetes_api = brokers.iter().map(|broker| broker.address).collect();
    let edge = Edge::start(Setup { agents: vec![agents.address], kubernetes_api, more: "" }).await;
    for broker in brokers {
        edge.line(|line| reachable(line, broker.address)).await;
    }
    edge
}

#[tokio::test]
async fn callers_are_taken_elsewhere_as_soon_as_a_broker_says_that_it_leaves() {
    let brokers = [Callers::start(Manner::Answer).await, Callers::start(Manner::Answer).await];
    let edge = before(&[&brokers[0], &brokers[1]]).await;
    let mut io = tcp(edge.plain).await;
    let token = token("caller");
    assert_eq!(ask(&mut io, "GET", &token, "").await, Some(200));
    let [first, second] =
        if brokers[0].heard().is_empty() { [&brokers[1], &brokers[0]] } else { [&brokers[0], &brokers[1]] };
    *first.manner.lock().unwrap() = Manner::Leave;
    for _ in 0..10 {
        assert_eq!(ask(&mut io, "POST", &token, "Content-Length: 0\r\n").await, Some(200));
    }
    assert_eq!((first.heard().len(), second.heard().len()), (2, 9));
    edge.line(|line| line["message"] == "broker is about to leave").await;
}

#[tokio::test]
async fn what_a_broker_never_answered_is_sent_again_only_where_twice_is_as_good_as_once() {
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    // On a kept connection, and on a new one.
    for (manner, method, more, heard) in [
        (Manner::Second, "GET", "", 2),
        (Manner::Second, "PUT", "Content-Length: 0\r\n", 2),
        (Manner::Second, "POST", "Content-Length: 0\r\n", 1),
        (Manner::Second, "GET", upgrade, 1),
        (Manner::Never, "GET", "", 2),
        (Manner::Never, "PUT", "Content-Length: 0\r\n", 1),
        (Manner::Never, "POST", "Content-Length: 0\r\n", 1),
        (Manner::Never, "GET", upgrade, 1),
    ] {
        let broker = Callers::start(manner).await;
        let edge = before(&[&broker]).await;
        let token = token("caller");
        // One connection stays with one worker, and so with one pool.
        let mut io = tcp(edge.plain).await;
        if manner == Manner::Second {
            // An upgrade travels on what was kept for requests with a body; this one's has three bytes.
            let body = if more == upgrade { "Content-Length: 3\r\n\r\nx" } else { "" };
            assert_eq!(ask(&mut io, "OPTIONS", &token, body).await, Some(200));
        }
        let asked = ask(&mut io, method, &token, more).await;
        let served = manner == Manner::Second && heard == 2;
        assert_eq!(asked, Some(if served { 200 } else { 502 }), "{method} {more}");
        let count = broker.heard().iter().filter(|came| *came == method).count();
        assert_eq!(count, heard, "{method} {more}");
    }
}

#[tokio::test]
async fn a_broker_that_comes_back_is_used_again_soon() {
    // Of this test alone, so that nobody else is given the port meanwhile.
    let agents = Agents::at(([127, 0, 3, 1], 0).into()).await;
    let address = agents.address;
    // A dial that falls into a pause of the machine has not failed.
    let more = "timeouts: {upstream_connect: 30s}";
    let edge = Edge::start(Setup { agents: vec![address], more, ..Setup::default() }).await;
    let client = h2(tcp(edge.plain).await).await;
    edge.probe("/readiness", 200).await;
    echo(&client, &token("agent")).await;
    agents.kill();
    edge.probe("/readiness", 503).await;
    let _again = Agents::at(address).await;
    edge.probe("/readiness", 200).await;
    echo(&client, &token("agent")).await;
}
