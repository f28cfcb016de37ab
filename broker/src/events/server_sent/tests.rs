//! The stream as a reader sees it, in bare HTTP/1.1 over a loopback port.

use super::super::EventKind;
use super::*;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use postern_wire::ids::{AgentId, ProjectId};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(60);

struct Server {
    address: SocketAddr,
    events: Arc<Events>,
    stop: CancellationToken,
}

impl Server {
    async fn start(readers: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (events, stop) = (Arc::new(Events::default()), CancellationToken::new());
        let router = router("/api/v1/events", Arc::clone(&events), readers, stop.clone());
        tokio::spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(router.clone());
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(io), service));
            }
        });
        Self { address, events, stop }
    }

    fn publish(&self, agent_id: i64, project_id: i64) {
        let event = Event::now(EventKind::AgentConnected, AgentId(agent_id), ProjectId(project_id));
        self.events.publish(event);
    }

    async fn get(&self, query: &str) -> Client {
        let mut io = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET /api/v1/events{query} HTTP/1.1\r\nhost: kas\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        Client { io, read: String::new() }
    }

    /// A reader whose stream has begun.
    async fn watch(&self, query: &str) -> Client {
        let mut client = self.get(query).await;
        let head = client.until("\n\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
        assert!(head.contains("cache-control: no-store\r\n"), "{head}");
        client
    }
}

struct Client {
    io: TcpStream,
    read: String,
}

impl Client {
    /// What comes up to this text, with the sizes of chunks in between.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.find(end) {
                let rest = self.read.split_off(at + end.len());
                return std::mem::replace(&mut self.read, rest);
            }
            let mut buffer = [0; 4096];
            let read = timeout(SOON, self.io.read(&mut buffer)).await.expect("it comes soon").unwrap();
            assert_ne!(read, 0, "the connection ended after {:?}", self.read);
            self.read.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    }

    async fn event(&mut self) -> (String, String, serde_json::Value) {
        let text = self.until("\n\n").await;
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        let data = serde_json::from_str(&field("data: ")).expect("data is JSON");
        (field("event: "), field("id: "), data)
    }
}

#[tokio::test]
async fn a_reader_gets_the_events_of_the_agents_and_projects_that_it_names() {
    let server = Server::start(8).await;
    let mut all = server.watch("").await;
    let mut some = server.watch("?agent_id=7&agent_id=8&project_id=3").await;
    for (agent, project) in [(7, 1), (8, 1), (9, 1), (10, 3)] {
        server.publish(agent, project);
    }
    for (reader, wanted) in [(&mut all, vec![7, 8, 9, 10]), (&mut some, vec![7, 8, 10])] {
        for agent in wanted {
            let (event, id, data) = reader.event().await;
            assert_eq!((event.as_str(), &data["agent_id"]), ("agent_connected", &agent.into()));
            assert_eq!(id, (agent - 6).to_string());
            assert_eq!(data["kind"], "agent_connected");
        }
    }
}

#[tokio::test]
async fn a_query_that_is_not_understood_is_refused() {
    let server = Server::start(8).await;
    let many = format!("?{}", "agent_id=1&".repeat(101));
    for query in ["?agent_id=x", "?agent_id=", "?agentid=7", many.as_str()] {
        let answer = server.get(query).await.until("\r\n").await;
        assert_eq!(answer, "HTTP/1.1 400 Bad Request\r\n", "{query}");
    }
}

#[tokio::test]
async fn there_are_so_many_seats_and_one_that_leaves_makes_room() {
    let server = Server::start(1).await;
    let first = server.watch("").await;
    let refused = server.get("").await.until("\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{refused}");
    assert!(refused.contains("retry-after: 30\r\n"), "{refused}");
    drop(first);
    let freed = async {
        while !server.get("").await.until("\r\n").await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, freed).await.expect("the seat is free again");
}

#[tokio::test]
async fn streams_end_in_order_when_the_broker_stops() {
    let server = Server::start(1).await;
    let mut reader = server.watch("").await;
    server.stop.cancel();
    // The chunk that ends a body.
    reader.until("0\r\n\r\n").await;
}

fn reader(events: &Events) -> Reader {
    Reader {
        events: events.subscribe(),
        filter: Filter::parse("agent_id=7").unwrap(),
        stop: CancellationToken::new(),
        begun: true,
        _seat: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
    }
}

#[tokio::test]
async fn a_reader_that_lags_is_told_how_much_it_missed() {
    let events = Events::behind(2);
    let mut reader = reader(&events);
    for _ in 0..5 {
        events.publish(Event::now(EventKind::AgentDisconnected, AgentId(7), ProjectId(3)));
    }
    assert_eq!(reader.next().await.unwrap(), "event: lagged\ndata: {\"missed\":3}\n\n");
    let next = reader.next().await.unwrap();
    assert!(next.starts_with(b"event: agent_disconnected\nid: 4\ndata: {"), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_says_every_15_seconds_that_it_lives_whatever_others_get() {
    let events = Events::default();
    let mut reader = reader(&events);
    let begin = Instant::now();
    let others = async {
        loop {
            tokio::time::sleep(Duration::from_secs(4)).await;
            events.publish(Event::now(EventKind::AgentConnected, AgentId(8), ProjectId(3)));
        }
    };
    let alive = async {
        for _ in 0..3 {
            assert_eq!(reader.next().await.unwrap(), ": still here\n\n");
        }
    };
    tokio::select! {
        () = alive => {}
        () = others => {}
    }
    assert_eq!(begin.elapsed().as_secs(), 45);
}
