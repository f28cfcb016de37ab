//! The four proxies: started from their templates in `peers/` with one worker each, ended with the benchmark.
//!
//! Between `client` and `origin`. Every start is a process of its own, on a port of its own.

use crate::{
    client::{Dialler, Road},
    process,
};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// Envoy takes a second or two.
const PATIENCE: Duration = Duration::from_secs(20);

/// In the order of the table's columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Haproxy,
    Nginx,
    Envoy,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Haproxy, Self::Nginx, Self::Envoy];

    /// As in `edge.json`.
    pub(crate) fn name(self) -> &'static str {
        ["ours", "haproxy", "nginx", "envoy"][self as usize]
    }

    /// The template, and the name it gets.
    fn template(self) -> (&'static str, &'static str) {
        match self {
            Self::Ours => (include_str!("peers/edge.yaml"), "edge.yaml"),
            Self::Haproxy => (include_str!("peers/haproxy.cfg"), "haproxy.cfg"),
            Self::Nginx => (include_str!("peers/nginx.conf"), "nginx.conf"),
            Self::Envoy => (include_str!("peers/envoy.yaml"), "envoy.yaml"),
        }
    }

    fn command(self, programs: &Programs) -> Vec<String> {
        let program = programs.path(self).to_str().expect("a path in UTF-8").to_owned();
        let flags: &[&str] = match self {
            Self::Ours => &["--config"],
            Self::Haproxy => &["-q", "-db", "-f"],
            Self::Nginx => &["-e", "stderr", "-c"],
            Self::Envoy => &["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"],
        };
        std::iter::once(program).chain(flags.iter().map(|flag| (*flag).to_owned())).collect()
    }
}

/// Where the programs are.
pub(crate) struct Programs {
    paths: [PathBuf; 4],
}

impl Programs {
    /// `BENCH_EDGE` names another build of ours than the one that `make bench` makes.
    pub(crate) fn find() -> Self {
        let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let cache =
            home("XDG_CACHE_HOME").unwrap_or_else(|| home("HOME").expect("HOME is set").join(".cache"));
        // This program is in target/PROFILE/deps.
        let this = std::env::current_exe().expect("this program has a path");
        let target = this.ancestors().nth(3).expect("target folder").to_owned();
        let ours = home("BENCH_EDGE").unwrap_or_else(|| target.join("release/postern-edge"));
        let paths = [
            ours,
            PathBuf::from("/usr/sbin/haproxy"),
            PathBuf::from("/usr/sbin/nginx"),
            cache.join("postern/envoy/bin/envoy"),
        ];
        for path in &paths {
            assert!(path.exists(), "{} is missing; `make bench` brings it", path.display());
        }
        Self { paths }
    }

    fn path(&self, kind: Kind) -> &Path {
        &self.paths[kind as usize]
    }

    /// One line for each, as the program says it.
    pub(crate) fn versions(&self) -> Vec<String> {
        let version = |kind: Kind, flag: &str| {
            let path = self.path(kind);
            let output = Command::new(path).arg(flag).output().expect("it runs");
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            // Envoy begins with the path it was called by.
            line.trim().replace(path.to_str().expect("a path in UTF-8"), kind.name())
        };
        let flags = ["--version", "-v", "-v", "--version"];
        Kind::ALL.iter().zip(flags).map(|(kind, flag)| version(*kind, flag)).collect()
    }
}

/// What all of them are configured with.
pub(crate) struct Field {
    pub(crate) programs: Programs,
    pub(crate) folder: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one file.
    pub(crate) pem: PathBuf,
    pub(crate) origin: u16,
    pub(crate) dialler: Dialler,
}

/// A running proxy; gone when dropped.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) port: u16,
    pub(crate) family: Vec<i32>,
    child: Child,
}

impl Peer {
    /// Starts one, and waits until a request has come through on every road.
    pub(crate) async fn start(field: &Field, kind: Kind) -> Self {
        let port = free_port();
        let folder = field.folder.join(format!("{}-{port}", kind.name()));
        fs::create_dir_all(&folder).unwrap();
        let (template, name) = kind.template();
        let mut text = template.to_owned();
        let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        for (placeholder, value) in [
            ("{{port}}", port.to_string()),
            ("{{origin}}", field.origin.to_string()),
            ("{{certificate}}", path(&field.certificate)),
            ("{{key}}", path(&field.key)),
            ("{{pem}}", path(&field.pem)),
            ("{{directory}}", path(&folder)),
        ] {
            text = text.replace(placeholder, &value);
        }
        let config = folder.join(name);
        fs::write(&config, text).unwrap();
        // Should the benchmark be killed, its thread's end is the proxy's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .args(kind.command(&field.programs))
            .arg(&config)
            .env("POSTERN_LOG", "warn")
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut peer = Self { kind, port, family: Vec::new(), child };
        peer.wait(field).await;
        peer.family = process::family(peer.child.id().cast_signed());
        peer
    }

    async fn wait(&mut self, field: &Field) {
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{:?} ended: {ended:?}; its words are above", self.kind);
            assert!(begin.elapsed() < PATIENCE, "{:?} does not listen", self.kind);
            sleep(Duration::from_millis(20)).await;
        }
        for road in [Road::Tls, Road::Wss] {
            let once = async {
                let connection = field.dialler.open(road, self.port, 0).await;
                let message = Bytes::from_static(b"\0\0\0\0\0");
                connection.bare().await;
                connection.unary(&message).await;
                connection.echo(&message).await.message(&message).await;
            };
            let through = timeout(PATIENCE, once).await;
            assert!(through.is_ok(), "{:?} lets no requests through as {road:?}", self.kind);
        }
    }

    pub(crate) fn cpu(&self) -> Duration {
        process::cpu(&self.family)
    }

    /// KiB.
    pub(crate) fn resident(&self) -> u64 {
        process::resident(&self.family)
    }
}

impl Drop for Peer {
    #[expect(clippy::disallowed_methods, reason = "a drop cannot await")]
    fn drop(&mut self) {
        // The one that was started ends its workers when it is asked to; what is left a second later is killed.
        let end = |pid: i32, signal| Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok());
        end(
            self.child.id().cast_signed(),
            if self.kind == Kind::Nginx { Signal::TERM } else { Signal::KILL },
        );
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > Duration::from_secs(1) {
                for pid in &self.family {
                    end(*pid, Signal::KILL);
                }
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
