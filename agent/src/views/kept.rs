//! A bounded set of what is remembered of objects. Each belongs to the watch that brought it, so that the end of a list
//! tells which of them have vanished meanwhile. It remembers; what it means is up to `state.rs`.

use std::collections::HashMap;

/// Which watch an object came from, and of which of its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) slot: usize,
    pub(crate) list: u64,
}

/// What became of something that was to be remembered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put<T> {
    New,
    Same,
    Instead(T),
    /// There is no room.
    Full,
}

/// By key, at most so many.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    items: HashMap<Box<str>, (T, Origin)>,
    most: usize,
}

impl<T: PartialEq> Kept<T> {
    pub(crate) fn new(most: usize) -> Self {
        Self { items: HashMap::new(), most }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it is worth listing again what there was no room for.
    pub(crate) fn has_room(&self) -> bool {
        self.items.len() < self.most - self.most / 10
    }

    pub(crate) fn get(&self, key: &str) -> Option<&T> {
        self.items.get(key).map(|(value, _)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.items.iter().map(|(key, (value, _))| (&**key, value))
    }

    pub(crate) fn put(&mut self, key: &str, value: T, origin: Origin) -> Put<T> {
        if let Some((known, came)) = self.items.get_mut(key) {
            *came = origin;
            if *known == value {
                return Put::Same;
            }
            return Put::Instead(std::mem::replace(known, value));
        }
        if self.items.len() >= self.most {
            return Put::Full;
        }
        self.items.insert(key.into(), (value, origin));
        Put::New
    }

    /// Forgets it, if it came by this watch: what has moved on to another is not this one's any more.
    pub(crate) fn remove(&mut self, key: &str, slot: usize) -> Option<T> {
        let (_, origin) = self.items.get(key)?;
        if origin.slot == slot { self.take(key).map(|(value, _)| value) } else { None }
    }

    /// Forgets it, whichever watch it came by, and says which.
    pub(crate) fn take(&mut self, key: &str) -> Option<(T, Origin)> {
        self.items.remove(key)
    }

    /// Forgets what the watch has brought before this list and not again.
    pub(crate) fn sweep(&mut self, origin: Origin) -> Vec<(Box<str>, T)> {
        let stale =
            self.items.extract_if(|_, (_, came)| came.slot == origin.slot && came.list != origin.list);
        stale.map(|(key, (value, _))| (key, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_forgets_what_it_does_not_bring_again_and_nothing_of_other_watches() {
        let at = |slot, list| Origin { slot, list };
        let mut kept = Kept::new(4);
        assert_eq!(kept.put("a", 1, at(0, 1)), Put::New);
        assert_eq!(kept.put("b", 2, at(0, 1)), Put::New);
        assert_eq!(kept.put("c", 3, at(1, 2)), Put::New);
        assert_eq!(kept.put("a", 1, at(0, 3)), Put::Same);
        assert_eq!(kept.sweep(at(0, 3)), [("b".into(), 2)]);
        assert_eq!(kept.put("a", 5, at(0, 3)), Put::Instead(1));
        assert_eq!(kept.remove("c", 0), None);
        assert_eq!(kept.remove("c", 1), Some(3));
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let origin = Origin { slot: 0, list: 1 };
        let mut kept = Kept::new(2);
        for key in ["a", "b"] {
            assert_eq!(kept.put(key, 0, origin), Put::New);
        }
        assert_eq!(kept.put("c", 0, origin), Put::Full);
        assert_eq!(kept.put("a", 1, origin), Put::Instead(0));
        assert_eq!(kept.len(), 2);
        assert!(!kept.has_room());
    }
}
