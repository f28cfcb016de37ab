//! Which tokens have paid for a tunnel on one connection.
//!
//! Beneath `transport`. An agent has a connection with one token, a proxy that speaks HTTP/2 may carry many agents on one.
//! Knows tokens by a part of their hash, and never more than some dozens.

use postern_wire::token::TokenKey;

/// Beyond these the oldest pays again.
const MOST: usize = 64;

/// A bounded set of tokens; without memory of its own for the usual one.
#[derive(Debug, Default)]
pub(super) struct Paid {
    /// 0: none.
    first: u64,
    /// The oldest first. Hardly any connection has more, and each has this.
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More(Vec<u64>);

impl Paid {
    pub(super) fn have(&self, token: &TokenKey) -> bool {
        let id = id(token);
        self.first == id || self.more.as_ref().is_some_and(|more| more.0.contains(&id))
    }

    pub(super) fn add(&mut self, token: &TokenKey) {
        if self.have(token) {
            return;
        }
        if self.first == 0 {
            self.first = id(token);
            return;
        }
        let More(more) = &mut **self.more.get_or_insert_default();
        if more.len() + 1 == MOST {
            self.first = more.remove(0);
        }
        more.push(id(token));
    }
}

/// Enough of the hash: who makes two tokens that share it has opened a tunnel with one of them.
fn id(token: &TokenKey) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *token.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn each_of_some_dozens_of_tokens_pays_once_and_then_the_oldest_again() {
        let token = |n: usize| TokenKey::of(&n.to_le_bytes());
        let mut paid = Paid::default();
        assert!(!paid.have(&token(0)));
        for n in 0..MOST {
            paid.add(&token(n));
            paid.add(&token(n));
            assert!((0..=n).all(|n| paid.have(&token(n))) && !paid.have(&token(n + 1)), "{n}");
        }
        for n in MOST..1_000 {
            paid.add(&token(n));
            let known: Vec<_> = (0..=n).filter(|n| paid.have(&token(*n))).collect();
            assert_eq!((known.len(), known[0]), (MOST, n + 1 - MOST));
        }
        assert!(paid.more.unwrap().0.capacity() <= MOST);
    }

    #[test]
    fn a_connection_is_hardly_larger_for_it() {
        assert!(size_of::<Mutex<Paid>>() <= 24);
        let mut paid = Paid::default();
        paid.add(&TokenKey::of(b"usual"));
        assert!(paid.more.is_none());
    }
}
