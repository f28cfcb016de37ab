//! A master, a replica of it and sentinels that watch both under the name `mymaster`: real processes, quick to fail over.

use super::{Options, RedisServer, until};
use std::io;

/// They run until they are dropped.
pub struct Sentinels {
    /// The master that they began with, then its replica.
    pub servers: Vec<RedisServer>,
    /// The sentinels.
    pub sentinels: Vec<RedisServer>,
}

impl Sentinels {
    /// Starts so many sentinels and waits until they know each other and the replica.
    ///
    /// # Errors
    /// A server is not installed, or does not start, or they do not find each other.
    pub async fn start(count: usize) -> io::Result<Self> {
        let line = |text: &str| vec![text.to_owned()];
        // Replicas are served at once, not after a pause for more of them.
        let lines = line("repl-diskless-sync-delay 0");
        let master = RedisServer::start(Options { tcp: true, lines, ..Options::default() }).await?;
        let address = master.address();
        let lines = line(&format!("replicaof {}", address.replace(':', " ")));
        let replica = RedisServer::start(Options { tcp: true, lines, ..Options::default() }).await?;
        // Before the sentinels ask: they do so rarely.
        until("the replica does not follow its master", async || {
            master.ask(&["INFO", "replication"]).await.is_ok_and(|text| text.contains("state=online"))
        })
        .await?;
        let mut sentinels = Vec::new();
        for _ in 0..count {
            let lines = vec![
                // Until it is to fail: where all stand still for a moment, nobody is down for that.
                "sentinel down-after-milliseconds mymaster 600000".to_owned(),
                "sentinel failover-timeout mymaster 2000".to_owned(),
            ];
            let sentinel_of = Some(address.clone());
            let options = Options { tcp: true, sentinel_of, lines, ..Options::default() };
            let sentinel = RedisServer::start(options).await?;
            // One whose host stood still for two seconds does nothing for thirty. Before Redis 7 nobody can change that.
            let _ = sentinel.ask(&["SENTINEL", "DEBUG", "tilt-trigger", "600000"]).await;
            sentinels.push(sentinel);
        }
        let started = Self { servers: vec![master, replica], sentinels };
        for sentinel in &started.sentinels {
            let others =
                format!("num-other-sentinels\r\n${}\r\n{}\r\n", (count - 1).to_string().len(), count - 1);
            until("the sentinels do not find each other and the replica", async || {
                let known = sentinel.ask(&["SENTINEL", "MASTER", "mymaster"]).await.unwrap_or_default();
                known.contains("num-slaves\r\n$1\r\n1\r\n") && known.contains(&others)
            })
            .await?;
        }
        Ok(started)
    }

    /// Host and port of each sentinel.
    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(RedisServer::address).collect()
    }

    /// Kills the first master and waits until the sentinels name the replica in its place.
    ///
    /// # Errors
    /// They do not.
    pub async fn fail_over(&mut self) -> io::Result<()> {
        for sentinel in &self.sentinels {
            sentinel.ask(&["SENTINEL", "SET", "mymaster", "down-after-milliseconds", "500"]).await?;
        }
        self.servers[0].stop().await;
        let port = self.servers[1].address().rsplit(':').next().unwrap_or_default().to_owned();
        for sentinel in &self.sentinels {
            until("the sentinels do not fail over", async || {
                let master = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]).await;
                master.is_ok_and(|text| text.contains(&port))
            })
            .await?;
        }
        Ok(())
    }
}
