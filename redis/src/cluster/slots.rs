//! Which node of a cluster serves which key: a key's slot, and the nodes of all slots as one of them tells. It asks
//! nobody.

use super::super::{call::Call, server::Server};
use ::redis::{Arg, Cmd, Value};

const SLOTS: usize = 16_384;
const NOBODY: u16 = u16::MAX;

/// The first key that a call names; all of its keys must have the same slot. `None`: any node will do.
pub(super) fn key(call: Call<'_>) -> Option<&[u8]> {
    match call {
        Call::Command(command) => key_of(command),
        Call::Pipeline(pipeline) => pipeline.cmd_iter().find_map(key_of),
    }
}

fn key_of(command: &Cmd) -> Option<&[u8]> {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => word,
        // A cursor, which no call of ours has.
        _ => b"0",
    });
    let is = |name: &[u8], names: &[&str]| names.iter().any(|one| name.eq_ignore_ascii_case(one.as_bytes()));
    match words.next()? {
        name if is(name, KEYLESS) => None,
        // A script, the number of keys, the keys.
        name if is(name, &["EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"]) => {
            words.nth(1).filter(|count| *count != b"0").and_then(|_| words.next())
        }
        _ => words.next(),
    }
}

const KEYLESS: &[&str] =
    &["PUBLISH", "TIME", "PING", "ECHO", "INFO", "CLIENT", "CONFIG", "SCRIPT", "PUBSUB", "CLUSTER"];

/// Where keys have a part in braces, all keys with the same part have the same slot.
pub(in super::super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        Some(&rest[..close]).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS as u16
}

/// CRC-16/XMODEM: polynomial 0x1021, begun with zero, nothing reflected.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// The masters of a cluster, and which of them serves which slot.
pub(super) struct Slots {
    pub(super) masters: Vec<Server>,
    /// Into `masters`.
    of: Vec<u16>,
}

impl Slots {
    /// What `asked` says to CLUSTER SLOTS; `None`: it is not understood, or no slot is served at all.
    pub(super) fn learnt(answer: &Value, asked: &Server) -> Option<Self> {
        let Value::Array(ranges) = answer else { return None };
        let mut slots = Self { masters: Vec::new(), of: vec![NOBODY; SLOTS] };
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = range.as_slice() else {
                return None;
            };
            let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
            let of = slots.of.get_mut(first..=last)?;
            let master = node(master, asked)?;
            let known = slots.masters.iter().position(|one| *one == master);
            let at = known.unwrap_or_else(|| {
                slots.masters.push(master);
                slots.masters.len() - 1
            });
            // Fewer masters than slots, or the same is named twice.
            of.fill(u16::try_from(at).ok()?);
        }
        (!slots.masters.is_empty()).then_some(slots)
    }

    pub(super) fn master(&self, slot: u16) -> Option<&Server> {
        self.masters.get(usize::from(*self.of.get(usize::from(slot))?))
    }
}

fn node(words: &[Value], asked: &Server) -> Option<Server> {
    let [host, Value::Int(port), ..] = words else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        // It does not know its own name.
        Value::Nil => "",
        _ => return None,
    };
    Server::beside(asked, host, u16::try_from(*port).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_has_its_published_check_value() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn only_the_first_braces_with_something_in_them_choose_the_slot() {
        for (key, same) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
        ] {
            assert_eq!(slot(key.as_bytes()), crc16(same.as_bytes()) % 16_384, "{key}");
        }
    }

    #[test]
    fn the_key_of_a_call_is_found() {
        let command = |words: &[&str]| {
            let mut command = ::redis::cmd(words[0]);
            command.arg(&words[1..]);
            command
        };
        for (words, wanted) in [
            (&["GET", "k"][..], Some("k")),
            (&["hset", "k", "f", "v"], Some("k")),
            (&["EVALSHA", "1f", "1", "k", "a"], Some("k")),
            (&["EVAL", "return 1", "0", "a"], None),
            (&["EVAL", "return 1"], None),
            (&["PUBLISH", "channel", "x"], None),
            (&["TIME"], None),
            (&["DBSIZE"], None),
        ] {
            assert_eq!(key(Call::Command(&command(words))), wanted.map(str::as_bytes), "{words:?}");
        }
        let mut pipeline = ::redis::pipe();
        pipeline.cmd("TIME").cmd("GET").arg("k");
        assert_eq!(key(Call::Pipeline(&pipeline)), Some(&b"k"[..]));
        assert_eq!(key(Call::Pipeline(&::redis::pipe())), None);
    }

    #[test]
    fn what_a_node_says_of_the_slots_is_understood_or_refused() {
        let asked = Server::parse("[::1]:7000", "address").unwrap();
        let text = |text: &str| Value::BulkString(text.into());
        let range = |first, last, host: Value, port| {
            let id = Value::BulkString(b"id".to_vec());
            let master = Value::Array(vec![host, Value::Int(port), id, Value::Array(vec![])]);
            let replica = Value::Array(vec![text("replica"), Value::Int(1)]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master, replica])
        };
        let answer = Value::Array(vec![
            range(0, 99, text("a"), 1),
            range(200, 16_383, Value::Nil, 7001),
            range(100, 100, text("a"), 1),
        ]);
        let slots = Slots::learnt(&answer, &asked).unwrap();
        let master = |slot| slots.master(slot).map(Server::to_string);
        assert_eq!(master(0).as_deref(), Some("a:1"));
        assert_eq!(master(100).as_deref(), Some("a:1"));
        assert_eq!(master(101), None);
        assert_eq!(master(16_383).as_deref(), Some("[::1]:7001"));
        assert_eq!(master(16_384), None);
        assert_eq!(slots.masters.len(), 2);
        for wrong in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16_384, text("a"), 1)]),
            Value::Array(vec![range(-1, 5, text("a"), 1)]),
            Value::Array(vec![range(9, 5, text("a"), 1)]),
            Value::Array(vec![range(0, 5, text("a"), 65_536)]),
            Value::Array(vec![range(0, 5, text("a"), 0)]),
            Value::Array(vec![range(0, 5, Value::Int(1), 1)]),
        ] {
            assert!(Slots::learnt(&wrong, &asked).is_none(), "{wrong:?}");
        }
    }
}
