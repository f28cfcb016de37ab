//! Three masters without replicas that serve a third of a cluster's slots each: real processes. Slots can be moved
//! between them, and be left half-way.

use super::{Options, RedisServer, until};
use std::io;

const SLOTS: u32 = 16_384;
const NODES: u32 = 3;

/// It runs until it is dropped.
pub struct RedisCluster {
    /// Its masters; the first serves the lowest slots.
    pub nodes: Vec<RedisServer>,
    ids: Vec<String>,
}

impl RedisCluster {
    /// Starts the nodes and waits until each of them serves. `lines` are added to the configuration of each.
    ///
    /// # Errors
    /// A server is not installed, or does not start, or they do not find each other.
    pub async fn start(lines: &[&str]) -> io::Result<Self> {
        let mut cluster = Self { nodes: Vec::new(), ids: Vec::new() };
        for at in 0..NODES {
            let lines = lines.iter().map(|line| (*line).to_owned()).collect();
            let node = RedisServer::start(Options { cluster: true, lines, ..Options::default() }).await?;
            let (first, last) = (SLOTS * at / NODES, SLOTS * (at + 1) / NODES - 1);
            node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await?;
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]).await?;
            let id = node.ask(&["CLUSTER", "MYID"]).await?;
            cluster.ids.push(id.lines().nth(1).unwrap_or_default().to_owned());
            if let Some(met) = cluster.nodes.first() {
                let (port, bus) = (node.port.to_string(), node.bus.to_string());
                met.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await?;
            }
            cluster.nodes.push(node);
        }
        for node in &cluster.nodes {
            until("the nodes of the cluster do not find each other", async || {
                let info = node.ask(&["CLUSTER", "INFO"]).await.unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains("cluster_size:3")
            })
            .await?;
        }
        for node in &cluster.nodes {
            // They find each other quickly; then nobody is lost for a moment in which all stand still.
            node.ask(&["CONFIG", "SET", "cluster-node-timeout", "60000"]).await?;
        }
        Ok(cluster)
    }

    /// Host and port of each node.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::address).collect()
    }

    /// The slot of a key, as Redis says, and which node served it in the beginning.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn slot(&self, key: &str) -> io::Result<(u16, usize)> {
        let slot = self.nodes[0].ask(&["CLUSTER", "KEYSLOT", key]).await?;
        let slot: u16 = slot.trim().trim_start_matches(':').parse().map_err(io::Error::other)?;
        let at = (0..NODES).find(|at| u32::from(slot) < SLOTS * (at + 1) / NODES);
        Ok((slot, at.unwrap_or_default() as usize))
    }

    /// From now on the slot is on its way: keys that are not there any more are asked for at the other node.
    ///
    /// # Errors
    /// The nodes refuse.
    pub async fn begin_move(&self, slot: u16, from: usize, to: usize) -> io::Result<()> {
        let slot = slot.to_string();
        self.nodes[to].ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]]).await?;
        self.nodes[from].ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]]).await?;
        Ok(())
    }

    /// Moves the one key, where it is there, and makes the other node the slot's master.
    ///
    /// # Errors
    /// The nodes refuse.
    pub async fn end_move(&self, key: &str, from: usize, to: usize) -> io::Result<()> {
        let (slot, _) = self.slot(key).await?;
        let port = self.nodes[to].port.to_string();
        self.nodes[from].ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]).await?;
        for node in [to, from] {
            self.nodes[node].ask(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &self.ids[to]]).await?;
        }
        Ok(())
    }
}
