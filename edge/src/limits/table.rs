//! What is remembered of tokens, addresses and agents: a table of a fixed size, however many different ones come.
//!
//! Beneath `limits`. A key belongs to one set of sixteen places; in a full set the one that is worth least is forgotten,
//! never one that something open still counts on. Places stay where they are, so a permit can name them in a few bits.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Enough that two workers rarely want the same lock.
const SHARDS: usize = 16;
/// Places of a set, whose tags are one cache line.
const WAYS: usize = 16;

/// What is known of one key.
pub(super) trait Record: Copy + Default {
    /// Whether something open counts on it, so that it must stay.
    fn is_held(&self) -> bool;

    /// The least is forgotten first.
    fn worth(&self) -> u64;
}

/// A place in a table, as a number below 2^21.
pub(super) type Place = u32;

/// Records by key.
#[derive(Debug)]
pub(super) struct Table<K, R> {
    shards: Box<[Mutex<Shard<K, R>>]>,
    sets: usize,
    /// Random, so that nobody can aim at the set of another.
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard<K, R> {
    sets: Box<[Lazy<K, R>]>,
    used: usize,
}

/// Made when the first of its keys comes.
type Lazy<K, R> = Option<Box<Set<K, R>>>;

#[derive(Debug)]
struct Set<K, R> {
    /// Part of the hash of what is there; 0: nothing.
    tags: [u32; WAYS],
    /// As many as are in use, from the first on: most sets of a table that is not full hold one key or two.
    slots: Vec<(K, R)>,
}

/// Where a key belongs.
#[derive(Debug, Clone, Copy)]
struct Home {
    shard: usize,
    set: usize,
    tag: u32,
}

impl<K: Copy + Default + Eq + Hash, R: Record> Table<K, R> {
    /// Room for about `capacity` keys, and never more.
    pub(super) fn new(capacity: usize) -> Self {
        let shards = (capacity / WAYS).clamp(1, SHARDS);
        let sets = (capacity / (WAYS * shards)).max(1);
        let shard = |_| Mutex::new(Shard { sets: (0..sets).map(|_| None).collect(), used: 0 });
        Self { shards: (0..shards).map(shard).collect(), sets, hasher: RandomState::new() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.shards.len() * self.sets * WAYS
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        (0..self.shards.len()).map(|shard| self.lock(shard).used).sum()
    }

    /// Shows the record of `key`, and whether it is a new one. `keep` false: a new one is not remembered after all. `None`:
    /// there is no room, because everything in its set is held.
    pub(super) fn with<T>(&self, key: &K, see: impl FnOnce(&mut R, bool) -> (T, bool)) -> Option<(T, Place)> {
        let home = self.home(key);
        let mut shard = self.lock(home.shard);
        let Shard { sets, used } = &mut *shard;
        let set = sets[home.set].get_or_insert_with(Set::empty);
        if let Some(way) = set.find(home.tag, key) {
            let (seen, _) = see(&mut set.slots[way].1, false);
            return Some((seen, self.place(home, way)));
        }
        let way = set.room()?;
        let mut record = R::default();
        let (seen, keep) = see(&mut record, true);
        if keep {
            *used += usize::from(set.tags[way] == 0);
            set.tags[way] = home.tag;
            set.put(way, (*key, record));
        }
        Some((seen, self.place(home, way)))
    }

    /// Shows the record of a key that is remembered.
    pub(super) fn find<T>(&self, key: &K, see: impl FnOnce(&mut R) -> T) -> Option<T> {
        let home = self.home(key);
        let mut shard = self.lock(home.shard);
        let set = shard.sets[home.set].as_mut()?;
        let way = set.find(home.tag, key)?;
        Some(see(&mut set.slots[way].1))
    }

    /// Shows the record at a place. It is still that of the key which was put there only while it is held.
    pub(super) fn at(&self, place: Place, see: impl FnOnce(&mut R)) {
        let place = place as usize;
        let (way, set) = (place % WAYS, place / WAYS);
        let mut shard = self.lock(set % self.shards.len());
        let slot = shard.sets[set / self.shards.len()].as_mut().and_then(|set| set.slots.get_mut(way));
        if let Some((_, record)) = slot {
            see(record);
        }
    }

    /// Shows all of them, a part of the table at a time.
    pub(super) fn each(&self, mut see: impl FnMut(&K, &R)) {
        for shard in 0..self.shards.len() {
            let shard = self.lock(shard);
            for set in shard.sets.iter().flatten() {
                let used = set.slots.iter().zip(set.tags).filter(|(_, tag)| *tag != 0);
                used.for_each(|((key, record), _)| see(key, record));
            }
        }
    }

    fn home(&self, key: &K) -> Home {
        let hash = self.hasher.hash_one(key);
        let (low, tag) = (hash as u32 as usize, (hash >> 32) as u32);
        let shard = low % self.shards.len();
        Home { shard, set: low / self.shards.len() % self.sets, tag: tag.max(1) }
    }

    fn place(&self, home: Home, way: usize) -> Place {
        ((home.set * self.shards.len() + home.shard) * WAYS + way) as Place
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard<K, R>> {
        // A poisoned shard is still consistent enough to count with.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Default + Eq, R: Record> Set<K, R> {
    fn empty() -> Box<Self> {
        Box::new(Self { tags: [0; WAYS], slots: Vec::new() })
    }

    /// In the next free place, or instead of what is there.
    fn put(&mut self, way: usize, slot: (K, R)) {
        if let Some(there) = self.slots.get_mut(way) {
            *there = slot;
            return;
        }
        if self.slots.len() == self.slots.capacity() {
            // 1, 2, 4, 8, 16: a vector left to itself begins with four.
            self.slots.reserve_exact(self.slots.len().max(1));
        }
        self.slots.push(slot);
    }

    fn find(&self, tag: u32, key: &K) -> Option<usize> {
        (0..WAYS).find(|&way| self.tags[way] == tag && self.slots[way].0 == *key)
    }

    /// A free place, or the one of what is worth least.
    fn room(&self) -> Option<usize> {
        if let Some(free) = self.tags.iter().position(|tag| *tag == 0) {
            return Some(free);
        }
        let loose = (0..WAYS).filter(|way| !self.slots[*way].1.is_held());
        loose.min_by_key(|way| self.slots[*way].1.worth())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, Default)]
    struct Count {
        open: u32,
        worth: u64,
    }

    impl Record for Count {
        fn is_held(&self) -> bool {
            self.open > 0
        }

        fn worth(&self) -> u64 {
            self.worth
        }
    }

    fn put(table: &Table<u64, Count>, key: u64, open: u32, worth: u64) -> Option<Place> {
        table.with(&key, |count, _| (*count = Count { open, worth }, true)).map(|((), place)| place)
    }

    #[test]
    fn it_never_holds_more_than_its_capacity_and_forgets_what_is_worth_least() {
        for capacity in [1, 16, 100, 1_000, 100_000] {
            let table = Table::new(capacity);
            for key in 0..1_000 {
                put(&table, key, 0, u64::MAX - key);
            }
            for key in 0..200_000 {
                put(&table, 1_000_000 + key, 0, key % 10);
            }
            assert!(table.len() <= table.capacity() && table.capacity() <= capacity.max(WAYS), "{capacity}");
            let kept = (0..1_000).filter(|key| table.find(key, |_| ()).is_some()).count();
            assert!(capacity < 100_000 || kept == 1_000, "{kept}");
        }
    }

    #[test]
    fn what_is_held_stays_at_its_place_and_nothing_else_gets_it() {
        let table = Table::new(16);
        let places: Vec<_> = (0..16).map(|key| put(&table, key, 1, key).unwrap()).collect();
        assert_eq!(put(&table, 99, 0, 100), None, "everything is held");
        table.at(places[7], |count| count.open -= 1);
        assert_eq!(put(&table, 99, 0, 100), Some(places[7]));
        assert_eq!((table.find(&7, |_| ()), table.find(&8, |count| count.worth)), (None, Some(8)));
        assert_eq!(table.len(), 16);
    }

    #[test]
    fn what_is_not_kept_leaves_no_trace() {
        let table: Table<u64, Count> = Table::new(16);
        let (new, _) = table.with(&1, |_, new| (new, false)).unwrap();
        assert!(new && table.len() == 0 && table.find(&1, |_| ()).is_none());
    }

    #[test]
    fn places_of_the_largest_table_fit_into_21_bits() {
        let table: Table<u64, Count> = Table::new(crate::config::limits::MOST_TRACKED as usize);
        assert!(table.capacity() < 1 << 21);
    }
}
