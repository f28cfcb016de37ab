//! Starts agents, reads their log, waits for conditions. Every wait has a deadline and none of them sleeps.

use crate::fake_api::FakeApi;
use clap::Parser;
use postern_agent::{
    app::Agent,
    config::{Config, Flags},
    observability::logging::LogLevel,
};
use std::{
    future::Future,
    io::Write,
    sync::{Mutex, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::task::AbortOnDropHandle;
use tracing_subscriber::fmt::MakeWriter;

pub(crate) const TOKEN: &str = "glagent-secret-token";
/// Texts that must not be in any line at any level; tests put them where secrets travel.
const SECRETS: &[&str] = &[TOKEN, "glagent-second-token", "query-secret", "body-secret", "header-secret"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits with a deadline.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}; log:\n{}", log().join("\n")),
    }
}

/// Time that stands still while everything goes on, until this is dropped: nothing comes too late meanwhile, however slow
/// the machine is or however long it stops.
pub(crate) struct Still(AbortOnDropHandle<()>);

impl Still {
    pub(crate) fn begin() -> Self {
        tokio::time::pause();
        let begin = std::time::Instant::now();
        // Paused time leaps as soon as nobody has anything to do; in the end it may, so that what hangs is noticed.
        Self(AbortOnDropHandle::new(tokio::spawn(async move {
            while begin.elapsed() < PATIENCE {
                tokio::task::yield_now().await;
            }
        })))
    }

    /// Time goes on, but only a little each time everybody has had a turn.
    pub(crate) fn almost() -> Self {
        const STEP: Duration = Duration::from_millis(5);
        tokio::time::pause();
        Self(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut last = std::time::Instant::now();
            loop {
                let now = std::time::Instant::now();
                tokio::time::advance(now.duration_since(last).min(STEP)).await;
                last = now;
                tokio::task::yield_now().await;
            }
        })))
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.0.abort();
        tokio::time::resume();
    }
}

struct Log {
    lines: Mutex<Vec<String>>,
    leaks: Mutex<Vec<String>>,
    grown: watch::Sender<usize>,
}

static LOG: OnceLock<Log> = OnceLock::new();

struct Lines;

impl Write for &Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(log) = LOG.get() else {
            return Ok(bytes.len());
        };
        let line = String::from_utf8_lossy(bytes);
        if SECRETS.iter().any(|secret| line.contains(secret)) {
            log.leaks.lock().expect("no panic holds the lock").push(line.to_string());
        }
        if line.contains("\"target\":\"postern_agent") || line.contains("\"target\":\"access") {
            log.lines.lock().expect("no panic holds the lock").push(line.trim_end().to_owned());
            log.grown.send_modify(|count| *count += 1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;
    fn make_writer(&'a self) -> &'a Lines {
        self
    }
}

/// Lines are kept from now on; a test that starts no agent says so itself.
pub(crate) fn keep_log() {
    start_log();
}

fn start_log() -> &'static Log {
    LOG.get_or_init(|| {
        // At `trace`, libraries included: what must not be in a log must not be in this one.
        let lines =
            tracing_subscriber::fmt().json().flatten_event(true).with_max_level(tracing::Level::TRACE);
        lines.with_writer(Lines).try_init().expect("the first subscriber");
        Log { lines: Mutex::default(), leaks: Mutex::default(), grown: watch::Sender::new(0) }
    })
}

fn log() -> Vec<String> {
    start_log().lines.lock().expect("no panic holds the lock").clone()
}

/// Waits for a line that has all these texts in it. Tests run side by side, so one text should be unique.
pub(crate) async fn logged(texts: &[&str]) -> String {
    let mut grown = start_log().grown.subscribe();
    soon(&format!("a line with {texts:?}"), async {
        loop {
            grown.borrow_and_update();
            if let Some(line) = log().into_iter().find(|line| texts.iter().all(|text| line.contains(text))) {
                return line;
            }
            grown.changed().await.expect("the log lives as long as the process");
        }
    })
    .await
}

/// How many lines there are with all these texts.
pub(crate) fn count_logged(texts: &[&str]) -> usize {
    log().iter().filter(|line| texts.iter().all(|text| line.contains(text))).count()
}

/// Lines that a secret got into, from all tests so far.
pub(crate) fn leaks() -> Vec<String> {
    start_log().leaks.lock().expect("no panic holds the lock").clone()
}

/// An agent that runs.
pub(crate) struct Running {
    pub(crate) observability: String,
    pub(crate) configuration: postern_agent::configuration::Latest,
    pub(crate) manifests: postern_agent::gitops::Manifests,
    pub(crate) cluster: postern_agent::cluster::Cluster,
    pub(crate) leads: watch::Receiver<bool>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Flags without which no test agent starts, except the address.
pub(crate) async fn start(address: &str, api: &FakeApi, more: &[&str]) -> Running {
    start_in(address, api, more, &[("AGENTK_TOKEN", TOKEN)]).await
}

/// The same, in another environment.
pub(crate) async fn start_in(address: &str, api: &FakeApi, more: &[&str], env: &[(&str, &str)]) -> Running {
    try_start(address, api, more, env).await.expect("the agent starts")
}

/// The same, where it may fail.
pub(crate) async fn try_start(
    address: &str,
    api: &FakeApi,
    more: &[&str],
    env: &[(&str, &str)],
) -> anyhow::Result<Running> {
    try_start_at(address, api.url(), more, env).await
}

/// The same, with whatever Kubernetes API is at this URL.
pub(crate) async fn try_start_at(
    address: &str,
    api: &str,
    more: &[&str],
    env: &[(&str, &str)],
) -> anyhow::Result<Running> {
    start_log();
    let server = format!("--server={api}");
    let address = format!("--kas-address={address}");
    let mut line = vec!["agentk", &address, &server, "--observability-listen-address=127.0.0.1:0"];
    line.extend(more);
    let flags = Flags::try_parse_from(line).expect("flags parse");
    let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let config = Config::from_flags(flags, get).expect("flags make sense");
    let agent = Agent::start(config, LogLevel::default()).await?;
    let (stop, stopped) = oneshot::channel();
    Ok(Running {
        observability: agent.observability_address().to_owned(),
        configuration: agent.configuration(),
        manifests: agent.manifests(),
        cluster: agent.cluster(),
        leads: agent.leads(),
        stop: Some(stop),
        task: tokio::spawn(agent.run(async move {
            let _ = stopped.await;
        })),
    })
}

impl Running {
    /// What SIGTERM does.
    pub(crate) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the end.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        soon("the end of the agent", self.task).await.expect("the agent does not panic")
    }

    /// Status and body of a probe.
    pub(crate) async fn probe(&self, path: &str) -> (u16, String) {
        let mut io = TcpStream::connect(&self.observability).await.expect("the listener is there");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        io.write_all(request.as_bytes()).await.expect("the request is taken");
        let mut answer = String::new();
        soon("a probe's answer", io.read_to_string(&mut answer)).await.expect("the answer is text");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Waits until a probe answers with this status.
    pub(crate) async fn probes(&self, path: &str, wanted: u16) -> String {
        soon(&format!("{path} with {wanted}"), async {
            loop {
                let (status, body) = self.probe(path).await;
                if status == wanted {
                    return body;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}
