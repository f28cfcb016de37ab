//! What stands in Redis and what is published, byte for byte: keys, entries and news. The entries of agents are those of
//! a kas of 16 and later, so that both can serve one fleet. Whatever is read is checked here; nothing is sent.

use crate::fleet::PeerUrl;
use postern_wire::ids::AgentId;
use prost::Message;

/// The channel that a kas of 16 and later uses as well, without a prefix.
pub(super) const EVENTS: &[u8] = b"kas_events";
/// One agent's brokers beyond these are not read; no fleet is that large.
pub(super) const BROKERS_MAX: usize = 64;
/// Longer fields are no address.
const FIELD_MAX: usize = 300;
/// An entry as it is written has 6 bytes.
const VALUE_MAX: usize = 64;

/// Removes a field that still has the value that was found expired; it may have been refreshed meanwhile.
pub(super) const REMOVE: &str = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then \
                                 return redis.call('HDEL', KEYS[1], ARGV[1]) end return 0";

/// The names of everything.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Hash: the brokers that hold this agent.
    pub(super) fn agent(&self, agent: AgentId) -> Vec<u8> {
        self.of("tunnel_tracker2:kas_by_agent_id:", agent)
    }

    /// String: where it was last.
    pub(super) fn last_seen(&self, agent: AgentId) -> Vec<u8> {
        self.of("postern:last_seen:", agent)
    }

    /// Hash: all brokers.
    pub(super) fn brokers(&self) -> Vec<u8> {
        format!("{}:postern:brokers", self.prefix).into_bytes()
    }

    /// Channel for [`News`].
    pub(super) fn news(&self) -> Vec<u8> {
        format!("{}:postern:tunnels", self.prefix).into_bytes()
    }

    fn of(&self, name: &str, agent: AgentId) -> Vec<u8> {
        let mut key = format!("{}:{name}", self.prefix).into_bytes();
        key.extend(agent.0.to_le_bytes());
        key
    }
}

#[derive(Clone, PartialEq, Message)]
struct ExpiringValue {
    /// Seconds since 1970; 0: never.
    #[prost(int64, tag = "1")]
    expires_at: i64,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// The value of an entry that is good until then, in seconds since 1970.
pub(super) fn entry(expires_at: i64) -> Vec<u8> {
    ExpiringValue { expires_at, value: Vec::new() }.encode_to_vec()
}

/// A field and its value as they were read: who, and until when if not forever. `None` for what is no entry.
pub(super) fn parse_entry(field: &[u8], value: &[u8]) -> Option<(PeerUrl, Option<i64>)> {
    if field.len() > FIELD_MAX || value.len() > VALUE_MAX {
        return None;
    }
    let peer = std::str::from_utf8(field).ok()?.parse().ok()?;
    let expires_at = ExpiringValue::decode(value).ok()?.expires_at;
    Some((peer, (expires_at != 0).then_some(expires_at)))
}

/// What brokers tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// An agent has its first tunnel at a broker.
    Came(AgentId, PeerUrl),
    /// It has none there any more.
    Left(AgentId, PeerUrl),
    /// A broker is there.
    Broker(PeerUrl),
    /// It is about to go.
    BrokerLeaves(PeerUrl),
}

impl News {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, agent, peer) = match self {
            Self::Came(agent, peer) => (b'+', *agent, peer),
            Self::Left(agent, peer) => (b'-', *agent, peer),
            Self::Broker(peer) => (b'B', AgentId(0), peer),
            Self::BrokerLeaves(peer) => (b'b', AgentId(0), peer),
        };
        let mut payload = vec![kind];
        payload.extend(agent.0.to_le_bytes());
        payload.extend(peer.to_string().into_bytes());
        payload
    }

    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (kind, rest) = payload.split_first()?;
        let (agent, peer) = rest.split_first_chunk()?;
        let agent = AgentId(i64::from_le_bytes(*agent));
        let peer = std::str::from_utf8(peer).ok()?.parse().ok()?;
        Some(match kind {
            b'+' => Self::Came(agent, peer),
            b'-' => Self::Left(agent, peer),
            b'B' => Self::Broker(peer),
            b'b' => Self::BrokerLeaves(peer),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_keys_are_those_of_a_kas() {
        assert_eq!(hex::encode(entry(1_700_000_300)), "08ace4cfaa06");
        let keys = Keys::new("gitlab-kas");
        let mut key = b"gitlab-kas:tunnel_tracker2:kas_by_agent_id:".to_vec();
        key.extend([42, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(keys.agent(AgentId(42)), key);
        assert_eq!(keys.brokers(), b"gitlab-kas:postern:brokers");
        assert_eq!(keys.news(), b"gitlab-kas:postern:tunnels");
        assert_eq!(keys.last_seen(AgentId(1)), b"gitlab-kas:postern:last_seen:\x01\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_is_no_entry_is_not_read() {
        let url = b"grpc://10.0.0.1:8155";
        let peer: PeerUrl = "grpc://10.0.0.1:8155".parse().unwrap();
        assert_eq!(parse_entry(url, &entry(7)), Some((peer.clone(), Some(7))));
        assert_eq!(parse_entry(url, b""), Some((peer.clone(), None)), "no end");
        // A value of a later version, with fields that are not known.
        assert_eq!(parse_entry(url, b"\x08\x07\x12\x01x\x18\x01"), Some((peer, Some(7))));
        let long = [b"grpc://".as_slice(), &[b'a'; 300], b":1"].concat();
        // The last one is an entry of a kas of 14.1.
        for (field, value) in [
            (b"123456".as_slice(), entry(7)),
            (b"\xff\xfe", entry(7)),
            (&long, entry(7)),
            (url, vec![0xff; 6]),
            (url, vec![0x12; 65]),
            (url, vec![0x0a, 0x06, 0x08, 0xac, 0xe4, 0xcf, 0xaa, 0x06]),
        ] {
            assert_eq!(parse_entry(field, &value), None, "{field:?} {value:?}");
        }
    }

    #[test]
    fn news_are_read_as_they_are_written_and_nothing_else_is() {
        let peer = || "grpc://10.0.0.1:8155".parse::<PeerUrl>().unwrap();
        for (news, wanted) in [
            (News::Came(AgentId(42), peer()), b"+\x2a\0\0\0\0\0\0\0grpc://10.0.0.1:8155"),
            (News::Left(AgentId(42), peer()), b"-\x2a\0\0\0\0\0\0\0grpc://10.0.0.1:8155"),
            (News::Broker(peer()), b"B\0\0\0\0\0\0\0\0grpc://10.0.0.1:8155"),
            (News::BrokerLeaves(peer()), b"b\0\0\0\0\0\0\0\0grpc://10.0.0.1:8155"),
        ] {
            assert_eq!(news.encode(), wanted);
            assert_eq!(News::parse(wanted), Some(news));
        }
        for payload in
            [b"".as_slice(), b"+", b"+1234567", b"+12345678", b"?12345678grpc://a:1", b"+12345678\xff"]
        {
            assert_eq!(News::parse(payload), None);
        }
    }
}
