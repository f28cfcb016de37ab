//! What the road costs: the same requests straight to the stand-in API and through edge, broker, tunnel and agent, side
//! by side in one run. Prints ratios, asserts nothing about time. `make bench` builds the programs optimised first.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]

#[path = "../harness.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod harness;

use harness::{
    Field,
    http::{Client, full},
};
use http_body_util::BodyExt;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::time::{Duration, Instant};
use tokio::{net::TcpStream, task::JoinSet};

/// Requests of one measurement.
const REQUESTS: usize = 2_000;
const AT_ONCE: usize = 20;
const BODY: usize = 50_000_000;
const ROUNDS: usize = 3;

/// A connection by either way.
enum Way {
    Direct { send: http1::SendRequest<harness::http::Body>, bearer: String },
    Road(Client),
}

impl Way {
    async fn get(&mut self, path: &str) -> usize {
        let response = match self {
            Self::Road(client) => client.send("GET", path, full("")).await,
            Self::Direct { send, bearer } => {
                send.ready().await.unwrap();
                let request = Request::get(path).header("host", "api").header("authorization", &*bearer);
                send.send_request(request.body(full("")).unwrap()).await.unwrap()
            }
        };
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        length
    }
}

async fn way(field: &Field, road: bool) -> Way {
    if road {
        return Way::Road(Client::new(field).await);
    }
    let stream = TcpStream::connect(field.api().address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Way::Direct { send, bearer: format!("Bearer {}", field.cluster_token) }
}

/// The median time of one request after another.
async fn latency(field: &Field, road: bool) -> Duration {
    let mut way = way(field, road).await;
    let mut times = Vec::with_capacity(REQUESTS / 4);
    for _ in 0..REQUESTS / 4 {
        let start = Instant::now();
        way.get("/version").await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// The time of all requests, so many at once.
async fn many(field: &Field, road: bool) -> Duration {
    let mut workers = JoinSet::new();
    let mut ways = Vec::new();
    for _ in 0..AT_ONCE {
        ways.push(way(field, road).await);
    }
    let start = Instant::now();
    for mut way in ways {
        workers.spawn(async move {
            for _ in 0..REQUESTS / AT_ONCE {
                way.get("/version").await;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    start.elapsed()
}

/// The time of one large answer.
async fn bulk(field: &Field, road: bool) -> Duration {
    let mut way = way(field, road).await;
    let start = Instant::now();
    assert_eq!(way.get(&format!("/slow?bytes={BODY}&chunk=65536")).await, BODY);
    start.elapsed()
}

fn say(what: &str, direct: Duration, road: Duration) {
    let ratio = road.as_secs_f64() / direct.as_secs_f64();
    println!("{what:<44} direct {direct:>10.2?}   road {road:>10.2?}   x {ratio:.1}");
}

#[tokio::main]
async fn main() {
    let field = Field::start().await;
    println!("each line: best of {ROUNDS} rounds, both ways in turn");
    let (mut one, mut all, mut large) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push((latency(&field, false).await, latency(&field, true).await));
        all.push((many(&field, false).await, many(&field, true).await));
        large.push((bulk(&field, false).await, bulk(&field, true).await));
    }
    let best = |rounds: &[(Duration, Duration)]| {
        let direct = rounds.iter().map(|round| round.0).min().unwrap();
        (direct, rounds.iter().map(|round| round.1).min().unwrap())
    };
    for (what, rounds) in [
        ("GET /version, one after another, median".to_owned(), &one),
        (format!("{REQUESTS} x GET /version, {AT_ONCE} at once"), &all),
        (format!("one answer of {} MB", BODY / 1_000_000), &large),
    ] {
        let (direct, road) = best(rounds);
        say(&what, direct, road);
    }
    for process in [&field.edge, &field.broker, &field.agent] {
        println!("{:<8} {:>7} KiB resident", process.name, process.resident());
    }
}
