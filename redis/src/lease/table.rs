//! What this process knows about tokens in the current minute, and no longer: how often those were presented that nobody
//! has found good yet, and the shares of those that are. Both parts are bounded, each for itself, so that strangers push
//! nobody out. It asks nobody.

use super::{Allowed, Id, share::Share};
use std::collections::HashMap;

/// A clock that is set back by less than this goes on with the minute it was in.
const SET_BACK: u64 = 3;

pub(super) struct Table {
    /// Since 1970.
    minute: u64,
    shares: HashMap<Id, Share>,
    /// What the good names of the minute before were last allowed.
    allowed_before: HashMap<Id, Allowed>,
    /// Calls that began and were not authenticated, or are not yet.
    strangers: HashMap<Id, u32>,
    room: (usize, usize),
}

impl Table {
    pub(super) fn with_room(shares: usize, strangers: usize) -> Self {
        let room = (shares, strangers);
        Self {
            minute: 0,
            shares: HashMap::new(),
            allowed_before: HashMap::new(),
            strangers: HashMap::new(),
            room,
        }
    }

    /// It is this minute now. What belongs to another one is forgotten, but for what names were last allowed in the one
    /// that ends.
    pub(super) fn turn(&mut self, minute: u64) {
        let back = self.minute.saturating_sub(minute);
        if minute > self.minute || back >= SET_BACK {
            self.minute = minute;
            // About as many will come again; what a flood took is given back.
            let room = self.shares.len();
            let ended = std::mem::replace(&mut self.shares, HashMap::with_capacity(room));
            let allowed = ended.into_iter().filter_map(|(key, share)| Some((key, share.judged?)));
            self.allowed_before = allowed.collect();
            self.strangers = HashMap::new();
        }
    }

    pub(super) fn minute(&self) -> u64 {
        self.minute
    }

    /// A call begins with this token, good or not. `false`: one too many. `alone`: only this broker counts right now.
    pub(super) fn begin(&mut self, key: &Id, per_minute: u32, alone: bool) -> bool {
        if self.shares.get(key).is_some_and(|share| share.is_used_up(per_minute, alone)) {
            return false;
        }
        self.begin_unjudged(key, per_minute)
    }

    /// The same where only what comes of the token says whether its minute is used up.
    pub(super) fn begin_unjudged(&mut self, key: &Id, per_minute: u32) -> bool {
        if let Some(calls) = self.strangers.get_mut(key) {
            if *calls >= per_minute {
                return false;
            }
            *calls += 1;
            return true;
        }
        if self.strangers.len() >= self.room.1 {
            self.forget_strangers();
        }
        self.strangers.insert(*key, 1);
        per_minute > 0
    }

    /// What a name was last allowed, in this minute or the one before.
    pub(super) fn last_allowed(&self, key: &Id) -> Option<Allowed> {
        let now = self.shares.get(key).and_then(|share| share.judged);
        now.or_else(|| self.allowed_before.get(key).copied())
    }

    /// A name that was found good is allowed so much.
    pub(super) fn judged(&mut self, key: &Id, allowed: Allowed) {
        if let Some(share) = self.share(key) {
            share.judged = Some(allowed);
        }
    }

    /// The token of a call that began was found good.
    pub(super) fn proven(&mut self, key: &Id) {
        if let Some(calls) = self.strangers.get_mut(key) {
            *calls -= 1;
            if *calls == 0 {
                self.strangers.remove(key);
            }
        }
    }

    /// Of a good token; `None`: there is no room.
    pub(super) fn share(&mut self, key: &Id) -> Option<&mut Share> {
        if self.shares.len() >= self.room.0 && !self.shares.contains_key(key) {
            return None;
        }
        Some(self.shares.entry(*key).or_default())
    }

    /// Where it is still that minute.
    pub(super) fn share_of(&mut self, minute: u64, key: &Id) -> Option<&mut Share> {
        if self.minute == minute { self.shares.get_mut(key) } else { None }
    }

    /// Half of them or more: those that came least.
    fn forget_strangers(&mut self) {
        let mut calls: Vec<u32> = self.strangers.values().copied().collect();
        if let Some(at) = calls.len().checked_sub(1) {
            let (_, &mut median, _) = calls.select_nth_unstable(at / 2);
            self.strangers.retain(|_, calls| *calls > median);
        }
    }

    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.shares.len(), self.strangers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{LimitPolicy, RedisLost};

    fn key(n: u32) -> Id {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[test]
    fn a_stranger_begins_as_many_calls_as_the_limit_says_and_again_in_the_next_minute() {
        let mut table = Table::with_room(100, 100);
        table.turn(100);
        let begun = |table: &mut Table| (0..10).filter(|_| table.begin(&key(1), 5, false)).count();
        assert_eq!([begun(&mut table), begun(&mut table)], [5, 0]);
        table.turn(99);
        assert_eq!(begun(&mut table), 0, "a clock that is set back a little gives nothing");
        table.turn(101);
        assert_eq!(begun(&mut table), 5);
        table.turn(7);
        assert_eq!((begun(&mut table), table.minute()), (5, 7), "a clock that was put right counts again");
    }

    #[test]
    fn good_calls_do_not_count_as_a_strangers() {
        let mut table = Table::with_room(100, 100);
        for _ in 0..100 {
            assert!(table.begin(&key(1), 2, false));
            table.proven(&key(1));
        }
        assert_eq!(table.sizes(), (0, 0));
        assert!(!table.begin(&key(2), 0, false), "none means none");
    }

    #[test]
    fn a_flood_of_strangers_takes_bounded_room_and_pushes_out_neither_good_tokens_nor_who_comes_often() {
        let mut table = Table::with_room(10, 1_000);
        table.share(&key(0)).unwrap().waiting = 7;
        for _ in 0..50 {
            table.begin(&key(1), 50, false);
        }
        for n in 2..100_000 {
            assert!(table.begin(&key(n), 50, false));
            assert!(table.sizes().1 <= 1_000);
        }
        assert_eq!(table.share(&key(0)).unwrap().waiting, 7);
        assert!(!table.begin(&key(1), 50, false));
    }

    #[test]
    fn where_there_is_no_room_for_another_share_those_there_stay() {
        let mut table = Table::with_room(2, 2);
        assert!(table.share(&key(1)).is_some() && table.share(&key(2)).is_some());
        assert!(table.share(&key(3)).is_none() && table.share(&key(1)).is_some());
        table.turn(1);
        assert!(table.share(&key(3)).is_some());
    }

    #[test]
    fn what_a_name_is_allowed_is_remembered_into_the_next_minute_and_no_longer() {
        let allowed = |per_minute, generation| {
            let policy = LimitPolicy { per_minute, redis_lost: RedisLost::Local };
            Allowed { policy, generation }
        };
        let mut table = Table::with_room(2, 2);
        table.turn(1);
        for n in 0..5 {
            table.judged(&key(n), allowed(n, 1));
        }
        table.turn(2);
        let known = |table: &Table| (0..5).filter(|n| table.last_allowed(&key(*n)).is_some()).count();
        assert_eq!((known(&table), table.last_allowed(&key(1))), (2, Some(allowed(1, 1))));
        table.judged(&key(1), allowed(7, 2));
        assert_eq!(table.last_allowed(&key(1)), Some(allowed(7, 2)), "what was told in this minute holds");
        table.turn(3);
        assert_eq!((known(&table), table.last_allowed(&key(1))), (1, Some(allowed(7, 2))));
        table.turn(4);
        assert_eq!(known(&table), 0);
    }
}
