//! `WATCH`: which connections want to know whether a key of this slice changes.

use std::collections::HashMap;

/// A watching connection: the shard that holds it and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatcherId {
    pub shard: u16,
    pub conn: u64,
}

#[derive(Default)]
struct Watcher {
    dirty: bool,
    /// (database, key, whether it had already expired when the watch began).
    keys: Vec<(u16, Box<[u8]>, bool)>,
}

/// The watched keys of one slice.
#[derive(Default)]
pub struct Watches {
    keys: HashMap<(u16, Box<[u8]>), Vec<WatcherId>>,
    watchers: HashMap<WatcherId, Watcher>,
}

impl Watches {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Begins to watch a key. `expired`: it exists but its time is over; its removal is then no change.
    pub fn watch(&mut self, id: WatcherId, db: u16, key: &[u8], expired: bool) {
        let watcher = self.watchers.entry(id).or_default();
        if watcher.keys.iter().any(|(at, name, _)| *at == db && **name == *key) {
            return;
        }
        watcher.keys.push((db, key.into(), expired));
        self.keys.entry((db, key.into())).or_default().push(id);
    }

    /// Forgets all that a connection watches here.
    pub fn unwatch(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        for (db, key, _) in watcher.keys {
            let key = (db, key);
            if let Some(list) = self.keys.get_mut(&key) {
                list.retain(|other| *other != id);
                if list.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
    }

    /// A key changed.
    pub fn touch(&mut self, db: u16, key: &[u8]) {
        let Some(list) = self.keys.get(&(db, Box::from(key))) else { return };
        for id in list {
            self.watchers.get_mut(id).expect("listed").dirty = true;
        }
    }

    /// A key was removed because its time was over: no change for who began to watch it after that time.
    pub fn touch_expired(&mut self, db: u16, key: &[u8]) {
        let Some(list) = self.keys.get(&(db, Box::from(key))) else { return };
        for id in list {
            let watcher = self.watchers.get_mut(id).expect("listed");
            watcher.dirty |=
                !watcher.keys.iter().any(|(at, name, expired)| *at == db && **name == *key && *expired);
        }
    }

    /// Marks the watchers of every key in `db` for which `changed` says so.
    pub fn touch_where(&mut self, db: u16, mut changed: impl FnMut(&[u8]) -> bool) {
        for ((at, key), list) in &self.keys {
            if *at == db && changed(key) {
                for id in list {
                    self.watchers.get_mut(id).expect("listed").dirty = true;
                }
            }
        }
    }

    /// Whether something watched changed; `expired` tells of a key whether its time is over by now.
    pub fn is_dirty(&self, id: WatcherId, mut expired: impl FnMut(u16, &[u8]) -> bool) -> bool {
        self.watchers.get(&id).is_some_and(|watcher| {
            watcher.dirty || watcher.keys.iter().any(|(db, key, then)| !then && expired(*db, key))
        })
    }

    /// What a connection watches here and had not expired when the watch began.
    pub fn live_keys(&self, id: WatcherId) -> impl Iterator<Item = (u16, &[u8])> {
        let keys = self.watchers.get(&id).into_iter().flat_map(|watcher| &watcher.keys);
        keys.filter(|(_, _, expired)| !expired).map(|(db, key, _)| (*db, &**key))
    }

    /// The keys that a connection watches here, of all databases.
    pub fn keys(&self, id: WatcherId) -> impl Iterator<Item = &[u8]> {
        self.watchers.get(&id).into_iter().flat_map(|watcher| watcher.keys.iter().map(|(_, key, _)| &**key))
    }

    /// Number of connections that watch something (`INFO`: `watching_clients`) and of keys (`total_watched_keys`).
    pub fn counts(&self) -> (usize, usize) {
        (self.watchers.len(), self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WatcherId = WatcherId { shard: 0, conn: 1 };
    const B: WatcherId = WatcherId { shard: 1, conn: 1 };

    #[test]
    fn a_change_marks_those_who_watch_it() {
        let mut watches = Watches::default();
        watches.watch(A, 0, b"k", false);
        watches.watch(A, 0, b"k", false);
        watches.watch(B, 1, b"k", false);
        watches.touch(0, b"k");
        assert!(watches.is_dirty(A, |_, _| false) && !watches.is_dirty(B, |_, _| false));
        watches.unwatch(A);
        assert_eq!(watches.counts(), (1, 1));
        watches.watch(A, 0, b"k", false);
        assert!(!watches.is_dirty(A, |_, _| false));
        watches.touch_where(1, |key| key == b"k");
        assert!(watches.is_dirty(B, |_, _| false));
        watches.unwatch(A);
        watches.unwatch(B);
        assert!(watches.is_empty() && watches.counts() == (0, 0));
    }

    #[test]
    fn expiry_is_a_change_unless_it_came_before_the_watch() {
        let mut watches = Watches::default();
        watches.watch(A, 0, b"old", true);
        watches.watch(B, 0, b"new", false);
        watches.touch_expired(0, b"old");
        assert!(!watches.is_dirty(A, |_, _| true) && watches.is_dirty(B, |_, _| true));
        assert!(!watches.is_dirty(B, |_, _| false));
        watches.touch_expired(0, b"new");
        assert!(watches.is_dirty(B, |_, _| false));
    }
}
