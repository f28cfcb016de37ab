//! An edge and three brokers that read the same directory of policies, agents with their tunnels through the edge, and
//! callers at a steady pace. Of what an edit does it only says what somebody met at each process, and when.

use crate::harness::{
    PATIENCE, Process,
    agents::{Agents, Habits},
    brokers::Brokers,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpSocket,
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

const BROKERS: usize = 3;
const AGENTS: usize = 100;
const TUNNELS: usize = 2;
/// Requests a second, all together.
const RATE: u32 = 500;
const LANES: u32 = 20;
/// Between two looks at a process; a decision is seen so much late at most, and as long as a request takes.
const LOOK: Duration = Duration::from_millis(3);
/// The address of whoever looks at the edge: policies mean nobody else.
const WATCHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// The agent that nobody but those who look at brokers asks for.
const WATCHED: i64 = 1;
/// The agent that nobody but whoever looks at the edge asks for.
const WATCHED_AT_EDGE: i64 = WATCHED + 1;
/// Tunnels of [`WATCHED`]. An edit may cut one at each broker, and who was cut rests a while before the next; with few
/// tunnels the looks would wait for that, and the edit would seem late.
const WATCHED_TUNNELS: usize = 16;

/// Where something is decided.
pub(crate) const PROCESSES: [&str; 1 + BROKERS] = ["edge", "broker 0", "broker 1", "broker 2"];

/// What the policies say now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Open,
    Shut,
}

/// What a watcher knows of one process.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// `None`: nothing yet.
    word: Option<Word>,
    /// Of the first look that met it.
    since: Instant,
    /// How many looks are over. They follow each other, so that at most one more has begun.
    looks: u64,
    /// The number of the first look that met it.
    first: u64,
}

/// All of it, running.
pub(crate) struct Field {
    /// First, so that they end before what they look at.
    _watchers: JoinSet<()>,
    pub(crate) agents: Agents,
    _watched: Agents,
    _edge: Process,
    edge_address: SocketAddr,
    _brokers: Brokers,
    policies: tempfile::TempDir,
    /// Where each process tells of itself.
    told: Vec<SocketAddr>,
    seen: Vec<watch::Receiver<Seen>>,
    entrance: String,
}

/// Requests until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    lanes: JoinSet<BTreeMap<String, u64>>,
    begin: Instant,
}

impl Field {
    pub(crate) async fn start() -> Self {
        let policies = tempfile::tempdir().expect("folder");
        write(policies.path(), Word::Open);
        let section = format!("policies: {{directory: '{}'}}\n", policies.path().display());
        let brokers = Brokers::start(BROKERS, AGENTS, &section).await;
        let folder = tempfile::tempdir().expect("folder");
        let list = |addresses: Vec<SocketAddr>| {
            addresses.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>().join(", ")
        };
        let text = format!(
            "listen: [{{address: '127.0.0.1:0'}}]\nupstreams:\n  agents: {{addresses: [{}]}}\n  kubernetes_api: \
             {{addresses: [{}]}}\nadmin: {{listen: '127.0.0.1:0'}}\n{section}",
            list(brokers.all.iter().map(|broker| broker.agents).collect()),
            list(brokers.all.iter().map(|broker| broker.kubernetes).collect()),
        );
        fs::write(folder.path().join("edge.yaml"), text).expect("written");
        let arguments = ["--config".into(), folder.path().join("edge.yaml").display().to_string()];
        // At `debug` the logs would be what is measured.
        let mut edge = Process::start(
            "edge",
            "postern-edge",
            folder.path(),
            &arguments,
            &[("POSTERN_LOG", "warn,postern_edge=info")],
        );
        let edge_address = edge.address("listening", |line| line["tls"] == false).await;
        let admin = edge.address("admin listening", |_| true).await;
        let habits = Habits { tunnels: TUNNELS, aged: false };
        // Requests to the watched one are cut when an edit denies them, so its tunnels do not count.
        let (one, others) = brokers.identities.split_at(WATCHED as usize);
        let watched = Agents::start(&[edge_address], one, Habits { tunnels: WATCHED_TUNNELS, ..habits });
        let agents = Agents::start(&[edge_address], others, habits);
        watched.stand().await;
        agents.stand().await;
        let (_, entrance) = brokers.entrance(0);
        let mut field = Self {
            _watchers: JoinSet::new(),
            agents,
            _watched: watched,
            _edge: edge,
            edge_address,
            policies,
            told: brokers.all.iter().map(|broker| broker.probes).collect(),
            seen: Vec::new(),
            entrance,
            _brokers: brokers,
        };
        field.told.insert(0, admin);
        field.watch();
        field.meets(Word::Open, Instant::now()).await;
        field
    }

    /// Looks at every process all the time.
    fn watch(&mut self) {
        let mut addresses = vec![self.edge_address];
        addresses.extend(self._brokers.all.iter().map(|broker| broker.kubernetes));
        for (process, address) in addresses.into_iter().enumerate() {
            let (tell, told) = watch::channel(Seen { word: None, since: Instant::now(), looks: 0, first: 0 });
            let agent = if process == 0 { WATCHED_AT_EDGE } else { WATCHED };
            let bearer = format!("Bearer postern:{agent}:{}", self.entrance);
            self.seen.push(told);
            self._watchers.spawn(look(process, address, bearer, tell));
        }
    }

    /// Changes the files, as an editor does. Returns when that began.
    pub(crate) fn edit(&self, word: Word) -> Instant {
        let begin = Instant::now();
        write(self.policies.path(), word);
        begin
    }

    /// Waits until this is what every process decides after another word, and says after what time each did for the first time.
    pub(crate) async fn meets(&mut self, word: Word, since: Instant) -> Vec<Duration> {
        let mut after = Vec::new();
        for (process, seen) in self.seen.iter_mut().enumerate() {
            let met = timeout(PATIENCE, seen.wait_for(|seen| seen.word == Some(word))).await;
            let met = met.unwrap_or_else(|_| panic!("{} never decides {word:?}", PROCESSES[process]));
            after.push(met.expect("the watcher lives").since.saturating_duration_since(since));
        }
        after
    }

    /// Waits until every process has decided this in some looks in a row: what a bucket lets through once is used up then.
    pub(crate) async fn stands(&mut self, word: Word) {
        for (seen, name) in self.seen.iter_mut().zip(PROCESSES) {
            let stands = seen.wait_for(|seen| seen.word == Some(word) && seen.looks >= seen.first + 5);
            let stands = timeout(PATIENCE, stands).await;
            stands.unwrap_or_else(|_| panic!("{name} does not stay at {word:?}")).expect("the watcher lives");
        }
    }

    /// Requires that every process goes on deciding this, in so many looks that begin from now on.
    pub(crate) async fn keeps(&mut self, word: Word, looks: u64) {
        let before: Vec<u64> = self.seen.iter().map(|seen| seen.borrow().looks).collect();
        for ((seen, before), name) in self.seen.iter_mut().zip(before).zip(PROCESSES) {
            // One may be under way.
            let later = timeout(PATIENCE, seen.wait_for(|seen| seen.looks > before + looks)).await;
            let later = *later
                .unwrap_or_else(|_| panic!("{name} is not looked at any more"))
                .expect("the watcher lives");
            assert!(
                later.word == Some(word) && later.first <= before,
                "{name} after {before} looks: {later:?}"
            );
        }
    }

    /// Waits until every process tells a problem of its policies with these words.
    pub(crate) async fn complain(&self, of: &str) {
        for (&address, name) in self.told.iter().zip(PROCESSES) {
            let mut caller = Caller { kept: None, from: None, address };
            let told = async {
                let mut pace = interval(Duration::from_millis(10));
                loop {
                    pace.tick().await;
                    let (status, page) = caller.ask("/policies", "nobody").await.expect("a page");
                    assert_eq!(status, 200, "{name}");
                    let page: Value = serde_json::from_slice(&page).expect("JSON");
                    if page["problems"].to_string().contains(of) {
                        break;
                    }
                }
            };
            timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{name} never tells of {of}"));
        }
    }

    /// Callers that no policy means: [`RATE`] requests a second through the edge, to all agents that nobody looks at.
    pub(crate) fn load(&self) -> Load {
        let (stop, mut lanes) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for lane in 0..LANES {
            let (stop, address, entrance) = (Arc::clone(&stop), self.edge_address, self.entrance.clone());
            lanes.spawn(async move {
                let mut outcomes = BTreeMap::new();
                let mut pace = interval(Duration::from_secs(1) * LANES / RATE);
                // What was late is made up for: the rate is that of all of the time.
                pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut caller = Caller { kept: None, from: None, address };
                let first = WATCHED_AT_EDGE + 1;
                let mut agents = (first..=AGENTS as i64).cycle().skip(lane as usize);
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let agent = agents.next().expect("there are agents");
                    let bearer = format!("Bearer postern:{agent}:{entrance}");
                    let outcome = match caller.ask("/k8s-proxy/version", &bearer).await {
                        Ok((status, _)) => status.to_string(),
                        Err(error) => error,
                    };
                    *outcomes.entry(outcome).or_default() += 1;
                }
                outcomes
            });
        }
        Load { stop, lanes, begin: Instant::now() }
    }

    /// The folder of the policies, for edits of another kind.
    pub(crate) fn folder(&self) -> &Path {
        self.policies.path()
    }
}

impl Load {
    /// How often each came of it. Prints at what rate.
    pub(crate) async fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let lanes = timeout(PATIENCE, self.lanes.join_all()).await.expect("no request hangs");
        let mut all = BTreeMap::new();
        for (outcome, count) in lanes.into_iter().flatten() {
            *all.entry(outcome).or_default() += count;
        }
        let (count, time) = (all.values().sum::<u64>(), self.begin.elapsed());
        println!(
            "{count} requests in {time:.1?}: {:.0} of {RATE} in a second",
            count as f64 / time.as_secs_f64()
        );
        all
    }
}

/// One file, made beside and renamed over: at the edge how much an address may send, at brokers what may be read at an
/// agent, and of other kinds what is in force without anybody meeting it soon.
fn write(folder: &Path, word: Word) {
    let (bytes, effect, age, period, idle) = match word {
        Word::Open => ("0", "allow", "1h", "20s", 100),
        Word::Shut => ("10", "deny", "2h", "30s", 200),
    };
    let text = format!(
        "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: watcher}}\nmatch: {{clientCidrs: [{WATCHER}/32]}}\n\
         spec: {{bodyBytes: {bytes}}}\n---\n\
         apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: watched}}\nmatch: {{agentIds: [{WATCHED}]}}\n\
         spec: {{kubernetesApi: {{otherwise: {effect}}}}}\n---\n\
         apiVersion: postern/v1\nkind: ConnectionPolicy\nmetadata: {{name: ages}}\nspec: {{maxAge: {age}}}\n---\n\
         apiVersion: postern/v1\nkind: PollingPolicy\nmetadata: {{name: looks}}\n\
         spec: {{configuration: {{period: {period}}}}}\n---\n\
         apiVersion: postern/v1\nkind: TunnelPolicy\nmetadata: {{name: tunnels}}\nspec: {{idlePerAgent: {idle}}}\n"
    );
    let beside = folder.join(".edited");
    fs::write(&beside, text).expect("written");
    fs::rename(&beside, folder.join("edited.yaml")).expect("renamed");
}

/// Asks one process again and again, and tells of each decision, and when it was another for the first time.
async fn look(process: usize, address: SocketAddr, bearer: String, tell: watch::Sender<Seen>) {
    let from = (process == 0).then_some(WATCHER);
    let mut caller = Caller { kept: None, from, address };
    let mut pace = interval(LOOK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cut = 0;
    loop {
        pace.tick().await;
        let word = match caller.ask("/k8s-proxy/api/v1/configmaps", &bearer).await {
            Ok((200, _)) => Word::Open,
            Ok((403 | 413, _)) => Word::Shut,
            // It was under way when an edit denied it.
            Err(_) if process > 0 && cut == 0 => {
                cut += 1;
                continue;
            }
            other => panic!("{} answers {other:?}", PROCESSES[process]),
        };
        cut = 0;
        tell.send_modify(|seen| {
            seen.looks += 1;
            if seen.word != Some(word) {
                *seen = Seen { word: Some(word), since: Instant::now(), first: seen.looks, ..*seen };
            }
        });
    }
}

/// One kept connection.
struct Caller {
    kept: Option<http1::SendRequest<Full<Bytes>>>,
    /// `None`: whatever the system takes.
    from: Option<Ipv4Addr>,
    address: SocketAddr,
}

impl Caller {
    async fn ask(&mut self, path: &str, bearer: &str) -> Result<(u16, Bytes), String> {
        let asking = async {
            let mut send = match self.kept.take() {
                Some(send) => send,
                None => self.connect().await?,
            };
            // Whoever looks at the edge sends more than a policy may allow.
            let looks = self.from.is_some();
            let (method, body) = if looks { ("POST", "more than ten bytes") } else { ("GET", "") };
            let body = Full::new(Bytes::from_static(body.as_bytes()));
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "localhost")
                .header("authorization", bearer)
                .body(body)
                .expect("a request");
            send.ready().await.map_err(|error| format!("ready: {error}"))?;
            let response = send.send_request(request).await.map_err(|error| format!("head: {error}"))?;
            let status = response.status().as_u16();
            let close = response.headers().get("connection").is_some_and(|value| value == "close");
            let body = response.into_body().collect().await.map_err(|error| format!("body: {error}"))?;
            if !close {
                self.kept = Some(send);
            }
            Ok((status, body.to_bytes()))
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err("no answer".to_owned()))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, String> {
        let connecting = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(from) = self.from {
                socket.bind((from, 0).into())?;
            }
            let stream = socket.connect(self.address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        };
        let stream = connecting.await.map_err(|error| error.to_string())?;
        let (send, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(send)
    }
}
