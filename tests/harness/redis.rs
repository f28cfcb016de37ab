//! What a Redis has been asked, by whom it is connected and what it holds, by its own count. What this asks itself is
//! taken off again.

use redis::{Cmd, FromRedisValue, aio::MultiplexedConnection};
use stand_ins::redis::RedisServer;
use std::{collections::BTreeMap, time::Duration};

/// One connection that counts what it sends.
pub(crate) struct Auditor {
    connection: MultiplexedConnection,
    own: BTreeMap<&'static str, u64>,
}

/// Redis at a moment, without the auditor.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    /// How often each command was carried out since the start, those of a transaction or a script each for itself.
    pub(crate) commands: BTreeMap<String, u64>,
    pub(crate) connections: u64,
    /// In bytes, since the start.
    #[allow(dead_code, reason = "for benchmarks")]
    pub(crate) received: u64,
    #[allow(dead_code, reason = "for benchmarks")]
    pub(crate) sent: u64,
}

/// The keys of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) keys: u64,
    /// As `MEMORY USAGE` has it: key, value and what Redis needs to find them.
    pub(crate) bytes: u64,
}

impl Auditor {
    pub(crate) async fn connect(server: &RedisServer) -> Self {
        let client = redis::Client::open(format!("unix://{}", server.socket().display()));
        let connection = client.expect("a path").get_multiplexed_async_connection().await;
        let mut connection = connection.expect("redis accepts");
        // The machine may be busy.
        connection.set_response_timeout(Duration::from_secs(20));
        Self { connection, own: BTreeMap::new() }
    }

    /// `name` is the command's in Redis' statistics.
    async fn ask<T: FromRedisValue>(&mut self, name: &'static str, command: &Cmd) -> T {
        let answer = command.query_async(&mut self.connection).await;
        *self.own.entry(name).or_default() += 1;
        answer.unwrap_or_else(|error| panic!("redis answers {name}: {error}"))
    }

    pub(crate) async fn audit(&mut self) -> Audit {
        // The one that asks is not in its own answer yet.
        let own = self.own.clone();
        let text: String = self.ask("info", redis::cmd("INFO").arg("all")).await;
        let mut audit = Audit::parse(&text);
        for (name, calls) in own {
            if let Some(known) = audit.commands.get_mut(name) {
                *known = known.saturating_sub(calls);
            }
        }
        audit.connections = audit.connections.saturating_sub(1);
        audit
    }

    /// What there is, by kind: a key's words before its first part that is none.
    pub(crate) async fn held(&mut self) -> BTreeMap<String, Held> {
        let mut kinds: BTreeMap<String, Held> = BTreeMap::new();
        let mut cursor = 0_u64;
        loop {
            let scan = redis::cmd("SCAN").arg(cursor).arg("COUNT").arg(1000).to_owned();
            let (next, keys): (u64, Vec<Vec<u8>>) = self.ask("scan", &scan).await;
            for key in keys {
                let usage = redis::cmd("MEMORY").arg("USAGE").arg(&key).arg("SAMPLES").arg(0).to_owned();
                let bytes: Option<u64> = self.ask("memory|usage", &usage).await;
                let held = kinds.entry(kind(&key)).or_default();
                held.keys += 1;
                // One that has expired meanwhile takes nothing.
                held.bytes += bytes.unwrap_or_default();
            }
            cursor = next;
            if cursor == 0 {
                return kinds;
            }
        }
    }
}

fn kind(key: &[u8]) -> String {
    let word = |part: &&[u8]| part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(byte));
    let words = key.split(|byte| *byte == b':').take_while(word).take(3);
    words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(":")
}

impl Audit {
    fn parse(text: &str) -> Self {
        let lines = || text.lines().filter_map(|line| line.trim().split_once(':'));
        let number = |name: &str| {
            let found = lines().find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok());
            found.unwrap_or_else(|| panic!("INFO has {name}"))
        };
        let commands = lines().filter_map(|(key, value)| {
            let calls = value.strip_prefix("calls=")?.split(',').next()?.parse().ok()?;
            Some((key.strip_prefix("cmdstat_")?.to_owned(), calls))
        });
        Self {
            commands: commands.collect(),
            connections: number("connected_clients"),
            received: number("total_net_input_bytes"),
            // The answer itself is sent after it was written.
            sent: number("total_net_output_bytes"),
        }
    }

    /// Since an earlier audit: each command that was carried out at least once.
    pub(crate) fn since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let calls = |audit: &Self, name: &str| audit.commands.get(name).copied().unwrap_or_default();
        let differences =
            self.commands.keys().map(|name| (name.clone(), calls(self, name) - calls(earlier, name)));
        differences.filter(|(_, calls)| *calls > 0).collect()
    }
}
