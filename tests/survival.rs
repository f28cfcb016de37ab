//! Processes killed, restarted and drained while requests run: the others live, nothing hangs, and the agent is
//! reachable again soon.

use crate::harness::{
    Addresses, Field, Options, PATIENCE, Process,
    http::{self, Body, Client, full, probe},
    until, within,
};
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, timeout},
};
use tokio_rustls::TlsConnector;

/// What ran through a killed process must have ended after this.
const CUT: Duration = Duration::from_secs(10);
/// Waiting for an agent, plus time for everything else on a machine that is slow or stands still.
const LONGEST: Duration = Duration::from_secs(30);
/// Far more than it takes; the test prints what it took.
const BACK: Duration = Duration::from_secs(60);

async fn field() -> Field {
    Field::with(Options { agent_wait: "3s", ..Options::default() }).await
}

/// Asks again and again, each time on a new connection, whatever happens in between.
#[derive(Clone)]
struct Caller {
    tls: Arc<rustls::ClientConfig>,
    edge: SocketAddr,
    bearer: String,
}

impl Caller {
    fn of(field: &Field) -> Self {
        Self { tls: http::tls(field, &[b"http/1.1"]), edge: field.addresses.edge_tls, bearer: field.bearer() }
    }

    /// The answer's status; `None` where the connection failed. Panics where nothing happens at all.
    async fn ask(&self) -> Option<u16> {
        let asking = async {
            let stream = TcpStream::connect(self.edge).await.ok()?;
            let stream =
                TlsConnector::from(self.tls.clone()).connect("localhost".try_into().unwrap(), stream);
            let (mut send, connection) = http1::handshake(TokioIo::new(stream.await.ok()?)).await.ok()?;
            tokio::spawn(connection);
            let request = Request::get("/k8s-proxy/version").header("host", "localhost");
            let request = request.header("authorization", &self.bearer).body(full("")).unwrap();
            let response = send.send_request(request).await.ok()?;
            let status = response.status().as_u16();
            response.into_body().collect().await.ok()?;
            Some(status)
        };
        timeout(LONGEST, asking).await.expect("a request hangs")
    }

    /// How long it takes until an answer comes from the cluster.
    async fn reached(&self) -> Duration {
        let start = Instant::now();
        within(BACK, "the agent is reachable again", async || (self.ask().await == Some(200)).then_some(()))
            .await;
        start.elapsed()
    }

    /// Asks until told to stop; returns how many answers of each kind came.
    async fn pester(self, stop: watch::Receiver<bool>) -> BTreeMap<Option<u16>, usize> {
        let mut answers = BTreeMap::new();
        // A dead port refuses faster than is good for the others on this machine.
        let mut pace = interval(Duration::from_millis(20));
        while !*stop.borrow() {
            pace.tick().await;
            *answers.entry(self.ask().await).or_default() += 1;
        }
        answers
    }
}

/// One request of every kind, all of which would go on for long.
struct Running(JoinSet<(&'static str, Duration)>, watch::Sender<Option<Instant>>);

impl Running {
    async fn start(field: &Field) -> Self {
        let mut running = Self(JoinSet::new(), watch::Sender::new(None));
        let mut client = Client::new(field).await;
        let watch = client.send("GET", "/stream-forever?every=50", full("")).await;
        running.spawn("a watch", client, drain(watch));
        let mut client = Client::new(field).await;
        let download = client.send("GET", "/slow?bytes=1000000000&chunk=10000&every=10", full("")).await;
        running.spawn("a download", client, drain(download));
        let mut client = Client::new(field).await;
        let request =
            client.request("GET", "/echo").header("connection", "upgrade").header("upgrade", "postern-echo");
        let response = client.raw(request.body(full("")).unwrap()).await.unwrap();
        assert_eq!(response.status(), 101);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        io.write_all(b"x").await.unwrap();
        running.spawn("an upgraded connection", client, async move {
            let mut bytes = Vec::new();
            let _ = io.read_to_end(&mut bytes).await;
            assert_eq!(bytes, b"x");
        });
        let mut client = Client::new(field).await;
        let request = client.request("POST", "/never-reads?seconds=3000").body(unfinished()).unwrap();
        let ticket = running.1.subscribe();
        running.0.spawn(async move {
            // Its head is what it waits for; a status instead of one is an end like any other.
            match client.raw(request).await {
                Ok(response) => assert!(response.status().is_server_error(), "{response:?}"),
                Err(error) => println!("a request without an answer: {error}"),
            }
            ended("a request without an answer", ticket)
        });
        for kind in ["stream-forever", "slow", "echo", "never-reads"] {
            until(kind, async || (field.api().open_of(kind) == 1).then_some(())).await;
        }
        running
    }

    fn spawn(&mut self, name: &'static str, client: Client, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.1.subscribe();
        self.0.spawn(async move {
            work.await;
            drop(client);
            ended(name, cut)
        });
    }

    /// From now on they must end.
    fn cut(&self) {
        assert_eq!(self.0.len(), 4);
        self.1.send_replace(Some(Instant::now()));
    }

    async fn all_ended(mut self) {
        let ended = timeout(CUT, async {
            while let Some(task) = self.0.join_next().await {
                let (name, after) = task.expect("ended as it should");
                println!("{name} ended {after:?} after the kill");
            }
        });
        ended.await.unwrap_or_else(|_| panic!("{} requests hang", self.0.len()));
    }
}

fn ended(name: &'static str, cut: watch::Receiver<Option<Instant>>) -> (&'static str, Duration) {
    let cut = cut.borrow().unwrap_or_else(|| panic!("{name} ended before anything was killed"));
    (name, cut.elapsed())
}

/// A body of which one piece comes and then nothing.
fn unfinished() -> Body {
    use futures::StreamExt;
    let piece = futures::stream::iter([Ok::<_, std::io::Error>(hyper::body::Frame::data("{".into()))]);
    BodyExt::boxed(http_body_util::StreamBody::new(piece.chain(futures::stream::pending())))
}

async fn drain(response: Response<Incoming>) {
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    while let Some(Ok(_)) = body.frame().await {}
}

/// Kills with `kill`, looks at what that does to all that runs, and brings back with `restart`.
async fn survives(
    name: &str,
    kill: impl AsyncFn(&mut Field),
    restart: impl AsyncFn(&mut Field),
    others: impl Fn(&mut Field) -> [&mut Process; 2],
) {
    let mut field = field().await;
    let caller = Caller::of(&field);
    assert_eq!(caller.ask().await, Some(200));
    let running = Running::start(&field).await;
    let (stop, stopped) = watch::channel(false);
    let mut pesterers = JoinSet::new();
    for _ in 0..4 {
        pesterers.spawn(caller.clone().pester(stopped.clone()));
    }
    running.cut();
    kill(&mut field).await;
    running.all_ended().await;
    assert!(others(&mut field).into_iter().all(Process::alive), "{name} took another process with it");
    // Nobody hangs while it is away, either.
    assert_ne!(caller.ask().await, Some(200));

    let start = Instant::now();
    restart(&mut field).await;
    let up = start.elapsed();
    caller.reached().await;
    println!("{name} was up {up:?} after its start, the agent reachable {:?} after it", start.elapsed());
    within(BACK, "the agent is ready", async || {
        (probe(field.addresses.agent_probes, "/readiness").await == Some(200)).then_some(())
    })
    .await;
    assert!(others(&mut field).into_iter().all(Process::alive), "{name} took another process with it");
    stop.send_replace(true);
    let ended = timeout(LONGEST, async {
        while let Some(answers) = pesterers.join_next().await {
            println!("answers meanwhile: {:?}", answers.expect("no request hangs"));
        }
    });
    ended.await.expect("no request hangs");
    // Everything as before, including a watch.
    let mut client = Client::new(&field).await;
    let mut watch = client.send("GET", "/stream-forever", full("")).await;
    assert!(timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().is_ok());
    drop((watch, client));
    until("what was cut is gone at the cluster too", async || {
        let left = ["stream-forever", "slow", "echo"].map(|kind| field.api().open_of(kind));
        (left == [0; 3]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_broker_cuts_what_runs_and_is_found_again_by_edge_and_agent() {
    survives(
        "broker",
        async |field| field.broker.kill().await,
        async |field| field.restart_broker().await,
        |field| [&mut field.edge, &mut field.agent],
    )
    .await;
}

#[tokio::test]
async fn a_killed_edge_cuts_what_runs_and_is_found_again_by_the_agent() {
    survives(
        "edge",
        async |field| field.edge.kill().await,
        async |field| field.restart_edge().await,
        |field| [&mut field.broker, &mut field.agent],
    )
    .await;
}

#[tokio::test]
async fn a_killed_agent_cuts_what_runs_and_another_takes_its_place() {
    survives(
        "agent",
        async |field| field.agent.kill().await,
        async |field| field.restart_agent().await,
        |field| [&mut field.edge, &mut field.broker],
    )
    .await;
}

/// A gauge of the broker's metrics.
async fn number(field: &Field, metric: &str) -> Option<u64> {
    let (_, metrics) = http::text(field.addresses.broker_probes, "/metrics").await?;
    let line = metrics.lines().find(|line| line.contains(metric) && !line.starts_with('#'))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_request_that_waits_for_a_reconnecting_agent_is_served_when_it_is_back() {
    let mut field = Field::start().await;
    let caller = Caller::of(&field);
    field.agent.kill().await;
    // A request that takes a tunnel before the broker knows would be cut, not kept waiting.
    until("the broker sees the agent gone", async || {
        number(&field, "tunnels_idle").await.filter(|idle| *idle == 0)
    })
    .await;
    let asking = tokio::spawn({
        let caller = caller.clone();
        async move { caller.ask().await }
    });
    until("the request waits", async || {
        number(&field, "requests_waiting").await.filter(|waiting| *waiting == 1)
    })
    .await;
    field.restart_agent().await;
    assert_eq!(asking.await.unwrap(), Some(200));
}

/// Signals with SIGTERM while an answer of some seconds is under way; it must come whole and the process end well.
async fn drains(
    field: &mut Field,
    name: &str,
    probes: SocketAddr,
    process: impl Fn(&mut Field) -> &mut Process,
) {
    let mut client = Client::new(field).await;
    let response = client.send("GET", "/slow?bytes=200000&chunk=10000&every=100", full("")).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut length = body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    // And one whose answer has not begun: the stand-in says 408 after three seconds.
    let mut quiet = Client::new(field).await;
    let quiet =
        tokio::spawn(async move { quiet.send("GET", "/never-reads?seconds=3", full("")).await.status() });
    let api = field.api();
    until("the cluster has both", async || (api.open_of("never-reads") == 1).then_some(())).await;
    let start = Instant::now();
    process(field).signal("TERM").await;
    until("it says that it is not ready", async || match probe(probes, "/readiness").await {
        Some(200) => None,
        Some(503) => Some(()),
        other => panic!("{name} answers its probe with {other:?} while a request runs"),
    })
    .await;
    while let Some(frame) = timeout(PATIENCE, body.frame()).await.expect("no hang") {
        length += frame.expect("the answer is not cut").into_data().unwrap().len();
    }
    assert_eq!(length, 200_000, "{name} cut the answer");
    assert_eq!(timeout(PATIENCE, quiet).await.expect("no hang").unwrap(), 408, "{name} cut a request");
    let finished = start.elapsed();
    assert!(finished > Duration::from_secs(1), "the answer was over before {name} drained");
    drop(client);
    let status = process(field).ended().await;
    println!("{name}: the answer ended {finished:?} and the process {:?} after SIGTERM", start.elapsed());
    assert!(status.success(), "{name}: {status}\n{}", process(field).text());
}

#[tokio::test]
async fn each_process_finishes_what_runs_when_it_is_asked_to_end_and_ends_with_status_0() {
    let mut field = field().await;
    let caller = Caller::of(&field);
    let Addresses { edge_admin, broker_probes, .. } = field.addresses;
    drains(&mut field, "edge", edge_admin, |field| &mut field.edge).await;
    field.restart_edge().await;
    println!("reached after {:?}", caller.reached().await);
    drains(&mut field, "broker", broker_probes, |field| &mut field.broker).await;
    field.restart_broker().await;
    println!("reached after {:?}", caller.reached().await);
    let agent_probes = field.addresses.agent_probes;
    drains(&mut field, "agent", agent_probes, |field| &mut field.agent).await;
    field.restart_agent().await;
    println!("reached after {:?}", caller.reached().await);
}

#[tokio::test]
async fn a_process_that_is_asked_twice_to_end_cuts_what_runs_and_ends_with_status_1() {
    let mut field = field().await;
    let caller = Caller::of(&field);
    for which in ["edge", "broker", "agent"] {
        let mut client = Client::new(&field).await;
        let mut watch = client.send("GET", "/stream-forever", full("")).await;
        assert!(watch.frame().await.unwrap().is_ok());
        let (probes, process) = match which {
            "edge" => (field.addresses.edge_admin, &mut field.edge),
            "broker" => (field.addresses.broker_probes, &mut field.broker),
            _ => (field.addresses.agent_probes, &mut field.agent),
        };
        process.signal("TERM").await;
        until("it is not ready", async || (probe(probes, "/readiness").await == Some(503)).then_some(()))
            .await;
        assert!(
            timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().is_ok(),
            "{which} cut the watch at once"
        );
        let start = Instant::now();
        process.signal("TERM").await;
        assert_eq!(process.ended().await.code(), Some(1), "{}", process.text());
        assert!(start.elapsed() < CUT, "{which} took {:?}", start.elapsed());
        let cut = timeout(CUT, async { while let Some(Ok(_)) = watch.frame().await {} });
        cut.await.unwrap_or_else(|_| panic!("the watch outlived the {which}"));
        match which {
            "edge" => field.restart_edge().await,
            "broker" => field.restart_broker().await,
            _ => field.restart_agent().await,
        }
        caller.reached().await;
    }
}

#[tokio::test]
async fn a_drain_that_runs_out_of_time_cuts_what_is_left_and_says_how_much() {
    let drain = "drain: {grace: 1s}\n";
    let mut field = Field::with(Options { edge_extra: drain.into(), ..Options::default() }).await;
    let mut client = Client::new(&field).await;
    let mut watch = client.send("GET", "/stream-forever", full("")).await;
    assert!(watch.frame().await.unwrap().is_ok());
    field.edge.signal("TERM").await;
    let status = field.edge.ended().await;
    assert_eq!(status.code(), Some(1), "{}", field.edge.text());
    let said =
        field.edge.lines().into_iter().rfind(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    println!("{}", said.expect("a line about what was cut"));
    let cut = timeout(CUT, async { while let Some(Ok(_)) = watch.frame().await {} });
    cut.await.expect("the watch ends");
}

#[tokio::test]
async fn an_idle_process_ends_at_once_when_it_is_asked_to() {
    let mut field = field().await;
    for process in [&mut field.agent, &mut field.edge, &mut field.broker] {
        let start = Instant::now();
        process.signal("TERM").await;
        let status = process.ended().await;
        println!("{} ended {:?} after SIGTERM", process.name, start.elapsed());
        assert!(status.success(), "{}: {status}\n{}", process.name, process.text());
        assert!(start.elapsed() < CUT, "{}\n{}", process.name, process.text());
    }
}
