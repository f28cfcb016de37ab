//! A real `redis-server` of its own for one test: on a Unix socket in a temporary folder, and on a free port where that
//! is asked for. It keeps no data on disk, can be stopped, started again and made to hang, and ends with its
//! `RedisServer`. Several together are in `sentinels.rs` and `cluster.rs`.

pub mod cluster;
pub mod sentinels;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

pub use crate::kube_api::Tls;

/// Longer than the 30 s that a sentinel does nothing for when its host stood still for two.
const START: Duration = Duration::from_secs(120);

/// How the server is to be set up.
#[derive(Default)]
pub struct Options {
    /// What clients must log in with, as user `default`.
    pub password: Option<String>,
    /// An ACL user that may do everything, and its password.
    pub user: Option<(String, String)>,
    /// Serves TLS on a TCP port too, and wants a certificate of that CA from its clients.
    pub tls: Option<Tls>,
    /// Serves a TCP port too.
    pub tcp: bool,
    /// Is a sentinel that watches the server at this host and port, under the name `mymaster`.
    pub sentinel_of: Option<String>,
    /// Is a node of a cluster; serves a TCP port, too.
    pub cluster: bool,
    /// More lines of its configuration.
    pub lines: Vec<String>,
}

/// A server that runs, unless it was stopped.
pub struct RedisServer {
    directory: TempDir,
    options: Options,
    /// `None` while it is stopped.
    child: Option<Child>,
    port: u16,
    /// Where nodes of a cluster talk to each other.
    bus: u16,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start(options: Options) -> io::Result<RedisServer> {
        let directory = tempfile::tempdir()?;
        if let Some(tls) = &options.tls {
            std::fs::write(directory.path().join("tls.crt"), &tls.certificate_pem)?;
            std::fs::write(directory.path().join("tls.key"), &tls.key_pem)?;
            std::fs::write(directory.path().join("ca.crt"), &tls.ca_pem)?;
        }
        let mut server = RedisServer { directory, options, child: None, port: 0, bus: 0 };
        // Somebody else may take the free port in between.
        let mut tries = 5;
        while let Err(error) = server.restart().await {
            tries -= 1;
            if tries == 0 || error.kind() == io::ErrorKind::NotFound {
                return Err(error);
            }
            server.port = 0;
        }
        Ok(server)
    }

    /// The Unix socket. It stays the same when the server is started again.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Host and port, where TCP or TLS was asked for.
    pub fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// A folder that lives as long as the server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends it at once, as a crash does.
    pub async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().await;
        }
        let _ = std::fs::remove_file(self.socket());
    }

    /// Starts it again where it was, without its data; stops it first where it runs.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.stop().await;
        if self.port == 0 && (self.options.tcp || self.options.cluster || self.options.tls.is_some()) {
            // Both at the same time, or they could be one.
            let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
            let (port, bus) = (free()?, free()?);
            self.port = port.local_addr()?.port();
            self.bus = bus.local_addr()?.port();
        }
        // A sentinel writes to this file.
        std::fs::write(self.directory.path().join("redis.conf"), self.configuration())?;
        let spawned = Command::new("redis-server")
            .arg("redis.conf")
            .args(self.options.sentinel_of.is_some().then_some("--sentinel"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = spawned.map_err(|error| {
            let what = format!("cannot start redis-server: {error}; tests/setup/tests.sh installs it");
            io::Error::new(error.kind(), what)
        })?;
        let answers = async {
            let mut tick = interval(Duration::from_millis(5));
            loop {
                tick.tick().await;
                if let Some(status) = child.try_wait()? {
                    return Err(io::Error::other(format!("redis-server ended at its start: {status}")));
                }
                if self.answers().await.is_ok() {
                    return Ok(());
                }
            }
        };
        let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "redis-server does not answer");
        timeout(START, answers).await.map_err(slow)??;
        self.child = Some(child);
        Ok(())
    }

    /// Forgets all data, and goes on.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn flush(&self) -> io::Result<()> {
        self.ask(&["FLUSHALL"]).await.map(drop)
    }

    /// One command and its answer as Redis writes it: `+OK\r\n`, `:1\r\n`.
    ///
    /// # Errors
    /// Redis says so, or does not answer.
    pub async fn ask(&self, words: &[&str]) -> io::Result<String> {
        let asked = async {
            let mut io = UnixStream::connect(self.socket()).await?;
            if let Some(password) = &self.options.password {
                said(&mut io, &["AUTH", password]).await?;
            }
            said(&mut io, words).await
        };
        timeout(START, asked).await?
    }

    /// From now on it accepts connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// It answers again, also what it was asked meanwhile.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid as i32));
        let pid = pid.expect("the server was started and not stopped");
        kill_process(pid, signal).expect("it is a child of this process");
    }

    /// Any answer to a PING will do: `+PONG`, or `-NOAUTH` from one with a password.
    async fn answers(&self) -> io::Result<()> {
        let mut io = UnixStream::connect(self.socket()).await?;
        io.write_all(b"PING\r\n").await?;
        match io.read_u8().await? {
            b'+' | b'-' => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn configuration(&self) -> String {
        let Options { password, user, tls, tcp, sentinel_of, cluster, lines } = &self.options;
        let mut text = format!(
            "bind 127.0.0.1\nport {}\nunixsocket redis.sock\ndaemonize no\n",
            if (*tcp || *cluster) && tls.is_none() { self.port } else { 0 },
        );
        if *cluster {
            text += &format!("cluster-enabled yes\ncluster-port {}\ncluster-node-timeout 1000\n", self.bus);
        }
        match sentinel_of.as_ref().and_then(|master| master.rsplit_once(':')) {
            Some((host, port)) => text += &format!("sentinel monitor mymaster {host} {port} 1\n"),
            None => text += "save \"\"\nappendonly no\n",
        }
        if tls.is_some() {
            text += &format!("tls-port {}\n", self.port);
            text += "tls-cert-file tls.crt\ntls-key-file tls.key\ntls-ca-cert-file ca.crt\ntls-auth-clients yes\n";
        }
        if let Some(password) = password {
            text += &format!("requirepass {password}\n");
        }
        if let Some((name, password)) = user {
            text += &format!("user {name} on >{password} ~* &* +@all\n");
        }
        for line in lines {
            text += line;
            text.push('\n');
        }
        text
    }
}

async fn said(io: &mut UnixStream, words: &[&str]) -> io::Result<String> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command += &format!("${}\r\n{word}\r\n", word.len());
    }
    io.write_all(command.as_bytes()).await?;
    let mut answer = Vec::new();
    while end(&answer, 0).is_none() {
        if io.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with('-') { Err(io::Error::other(answer)) } else { Ok(answer) }
}

/// Where the answer that begins here ends; `None`: not all of it is there.
fn end(bytes: &[u8], begin: usize) -> Option<usize> {
    let line = bytes[begin..].windows(2).position(|two| two == b"\r\n")?;
    let (head, after) = (&bytes[begin..begin + line], begin + line + 2);
    let count = || std::str::from_utf8(head.get(1..)?).ok()?.parse::<i64>().ok();
    match head.first()? {
        b'$' => match usize::try_from(count()?) {
            Ok(length) => Some(after + length + 2).filter(|end| *end <= bytes.len()),
            Err(_) => Some(after),
        },
        b'*' => (0..count()?).try_fold(after, |at, _| end(bytes, at)),
        _ => Some(after),
    }
}

/// Asks until the answer is wanted.
pub(crate) async fn until(what: &str, wanted: impl AsyncFn() -> bool) -> io::Result<()> {
    let asked = async {
        let mut tick = interval(Duration::from_millis(10));
        while !wanted().await {
            tick.tick().await;
        }
    };
    timeout(START, asked).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, what.to_owned()))
}
