//! The fleet's Redis: Debian's server on a host of its own, or two of them and a sentinel on three; and a look at what
//! brokers wrote there. It keeps nothing on disk. What brokers ought to write is not its business.

use super::hosts::{Host, Hosts};
use crate::harness::{PATIENCE, Process, until};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const MASTER: &str = "mymaster";
/// What a kas calls it too: an agent's hash has the private URL of each broker that holds it.
const DIRECTORY: &str = "gitlab-kas:tunnel_tracker2:kas_by_agent_id:";

/// One server on its host.
pub(crate) struct Server {
    pub(crate) host: Host,
    /// Nothing that is in force when it starts again.
    replica_of: Option<Host>,
    folder: PathBuf,
    process: Process,
}

impl Server {
    async fn start(host: Host, replica_of: Option<Host>, folder: &Path) -> Self {
        let folder = folder.join(format!("redis-{}", host.address));
        fs::create_dir_all(&folder).expect("folder");
        let process = Self::launch(&host, replica_of.as_ref(), &folder);
        let server = Self { host, replica_of, folder, process };
        server.answers().await;
        server
    }

    fn launch(host: &Host, replica_of: Option<&Host>, folder: &Path) -> Process {
        let mut lines = format!(
            "bind {}\nport {PORT}\nprotected-mode no\nsave \"\"\nappendonly no\nlogfile redis.log\ndir {}\n\
             repl-diskless-sync yes\nrepl-diskless-sync-delay 0\n",
            host.address,
            folder.display()
        );
        if let Some(master) = replica_of {
            lines += &format!("replicaof {} {PORT}\n", master.address);
        }
        let file = folder.join("redis.conf");
        fs::write(&file, lines).expect("written");
        host.launch("redis", "redis-server", folder, &[file.display().to_string()], &[])
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Kills it and starts it again: it knows nothing then.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        self.process = Self::launch(&self.host, self.replica_of.as_ref(), &self.folder);
        self.answers().await;
    }

    async fn answers(&self) {
        until("redis-server answers", async || self.keys("*").await.ok()).await;
    }

    async fn keys(&self, pattern: &str) -> io::Result<Vec<Vec<u8>>> {
        self.list(&[b"KEYS", pattern.as_bytes()]).await
    }

    /// A command whose answer is a list of strings.
    async fn list(&self, command: &[&[u8]]) -> io::Result<Vec<Vec<u8>>> {
        let address = (self.host.address, PORT);
        let asking = async {
            let mut io = BufReader::new(self.host.inside(TcpStream::connect(address)).await?);
            let mut request = format!("*{}\r\n", command.len()).into_bytes();
            for part in command {
                request.extend(format!("${}\r\n", part.len()).bytes());
                request.extend_from_slice(part);
                request.extend_from_slice(b"\r\n");
            }
            io.write_all(&request).await?;
            let mut found = Vec::new();
            for _ in 0..number(&mut io, '*').await? {
                let mut text = vec![0; number(&mut io, '$').await? + 2];
                io.read_exact(&mut text).await?;
                text.truncate(text.len() - 2);
                found.push(text);
            }
            Ok(found)
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The brokers' private URLs by agent.
    pub(crate) async fn directory(&self) -> io::Result<BTreeMap<i64, BTreeSet<String>>> {
        let mut directory = BTreeMap::new();
        for key in self.keys(&format!("{DIRECTORY}*")).await? {
            let id = key[DIRECTORY.len()..].try_into().map(i64::from_le_bytes);
            let fields = self.list(&[b"HKEYS", &key]).await?;
            let urls = fields.into_iter().map(|url| String::from_utf8_lossy(&url).into_owned());
            directory.insert(id.expect("an agent's id has eight bytes"), urls.collect());
        }
        Ok(directory)
    }
}

async fn number(io: &mut BufReader<TcpStream>, kind: char) -> io::Result<usize> {
    let mut line = String::new();
    io.read_line(&mut line).await?;
    let number = line.trim_end().strip_prefix(kind).and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("not what was asked for: {line:?}")))
}

/// All servers of a fleet.
pub(crate) struct Redis {
    pub(crate) master: Server,
    replica: Option<Server>,
    /// Makes the replica master when the other one is gone.
    sentinel: Option<(Process, Host)>,
}

impl Redis {
    /// One server.
    pub(crate) async fn single(hosts: &mut Hosts, folder: &Path) -> Self {
        let master = Server::start(hosts.add("redis"), None, folder).await;
        Self { master, replica: None, sentinel: None }
    }

    /// Two servers and a sentinel that gives the first one up after a second.
    pub(crate) async fn watched(hosts: &mut Hosts, folder: &Path) -> Self {
        let master = Server::start(hosts.add("redis-a"), None, folder).await;
        let replica = Server::start(hosts.add("redis-b"), Some(master.host.clone()), folder).await;
        let host = hosts.add("sentinel");
        let folder = folder.join("sentinel");
        fs::create_dir_all(&folder).expect("folder");
        let file = folder.join("sentinel.conf");
        let lines = format!(
            "bind {}\nport {SENTINEL_PORT}\nprotected-mode no\nlogfile sentinel.log\ndir {}\n\
             sentinel monitor {MASTER} {} {PORT} 1\nsentinel down-after-milliseconds {MASTER} {}\n\
             sentinel failover-timeout {MASTER} 5000\n",
            host.address,
            folder.display(),
            master.host.address,
            Duration::from_secs(1).as_millis()
        );
        fs::write(&file, lines).expect("written");
        let arguments = [file.display().to_string(), "--sentinel".to_owned()];
        let sentinel = host.launch("sentinel", "redis-server", &folder, &arguments, &[]);
        // Whom it does not know yet it cannot promote.
        until("the sentinel knows the replica", async || {
            let known = fs::read_to_string(&file).ok()?;
            known.contains(&format!("known-replica {MASTER} {}", replica.host.address)).then_some(())
        })
        .await;
        Self { master, replica: Some(replica), sentinel: Some((sentinel, host)) }
    }

    /// From now on the replica is what is looked at.
    pub(crate) fn failed_over(&mut self) {
        self.master = self.replica.take().expect("there is a replica");
    }

    /// `redis` of kas.yaml.
    pub(crate) fn section(&self) -> String {
        match &self.sentinel {
            None => format!("{{server: {{address: '{}:{PORT}'}}}}", self.master.host.address),
            Some((_, host)) => format!(
                "{{sentinel: {{master_name: {MASTER}, addresses: ['{}:{SENTINEL_PORT}']}}}}",
                host.address
            ),
        }
    }
}
