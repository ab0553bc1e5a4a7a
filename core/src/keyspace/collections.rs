//! Lists, hashes, sets and sorted sets as the values of keys: found, changed or created in one probe of the table.

use super::keys::Collection;
use super::snapshot::preserve;
use super::{Db, KeyEntry, Keys, Keyspace, Trash};
use crate::command::Error;
use crate::table::{Lookup, NewValue, ValueMut};
use crate::types::{Hash, List, Object, Set, ZSet};

macro_rules! collections {
    ($($name:ident),*) => {
        $(impl Collection for $name {
            #[inline]
            fn of(object: &Object) -> Option<&Self> {
                if let Object::$name(value) = object { Some(value) } else { None }
            }

            #[inline]
            fn of_mut(object: &mut Object) -> Option<&mut Self> {
                if let Object::$name(value) = object { Some(value) } else { None }
            }

            #[inline]
            fn new_object() -> Object {
                Object::$name($name::new())
            }

            #[inline]
            fn is_empty(&self) -> bool {
                $name::is_empty(self)
            }
        })*
    };
}

collections!(List, Hash, Set, ZSet);

impl Keys<'_> {
    /// Changes a collection, a new one if the key does not exist; what `change` leaves empty is not created. The caller
    /// reports what changed.
    ///
    /// # Errors
    /// The key holds another type.
    #[inline]
    pub fn upsert<C: Collection, R>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut C) -> R,
    ) -> Result<R, Error> {
        let hash = self.space.hash(key);
        self.clear_hidden(hash, key);
        let (now_ms, clock) = (self.now_ms, self.settings.access_clock);
        let Keyspace { dbs, snapshot, epoch, .. } = &mut *self.space;
        let Db { table, cut_db, .. } = &mut dbs[usize::from(self.db)];
        match table.lookup(hash, key) {
            Lookup::Found(mut entry) => {
                preserve(snapshot, *epoch, *cut_db, &entry);
                entry.set_mark(*epoch);
                clock.touch(&mut entry, now_ms);
                match entry.into_value_mut() {
                    ValueMut::Boxed(object) => C::of_mut(object).map(change).ok_or(Error::WrongType),
                    _ => Err(Error::WrongType),
                }
            }
            Lookup::Vacant(place) => {
                let mut object = Box::new(C::new_object());
                let value = C::of_mut(&mut object).expect("made as one");
                let result = change(value);
                if !value.is_empty() {
                    let mut entry = KeyEntry::new(key, NewValue::Boxed(object));
                    entry.set_lru(clock.fresh(now_ms));
                    entry.set_mark(*epoch);
                    place.insert(entry);
                }
                Ok(result)
            }
        }
    }

    /// Removes a key that was just found, as the collection in it has given up its last element, or is about to.
    pub fn remove_found(&mut self, key: &[u8]) {
        let removed = self.space.remove_for_good(self.db, key);
        assert!(removed, "found just before");
    }

    /// Frees, in slices, what a command cut off a collection.
    pub fn discard_cut(&mut self, object: Object) {
        self.space.trash.push_back(Trash::Value(Box::new(object)));
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::Node;

    #[test]
    fn a_collection_in_the_place_of_an_expired_key_is_a_new_one() {
        let mut node = Node::new();
        node.run("RPUSH k old");
        node.run("PEXPIRE k 5");
        node.effects();
        node.advance_ms(6);
        assert_eq!(node.run("RPUSH k new"), ":1\r\n");
        assert_eq!(node.effects(), "UNLINK k\nRPUSH k new");
        assert_eq!((node.space.len(), node.space.db(0).expires), (1, 0));
    }

    #[test]
    fn a_replica_replaces_what_it_hides_and_its_master_sees_it() {
        for (from_master, want) in [(false, ":1\r\n"), (true, ":2\r\n")] {
            let mut node = Node::new();
            node.run("SADD k old");
            node.run("PEXPIRE k 5");
            node.effects();
            node.advance_ms(6);
            (node.replica, node.from_master) = (true, from_master);
            node.run("SADD k new");
            assert_eq!(node.effects(), "SADD k new");
            node.from_master = true;
            assert_eq!(node.run("SCARD k"), want);
        }
    }

    #[test]
    fn what_a_large_list_gives_up_is_freed_in_slices() {
        let mut node = Node::new();
        let big = "x".repeat(8000);
        for _ in 0..300 {
            node.run(&format!("RPUSH k {big}"));
        }
        node.run("LTRIM k 0 9");
        assert_eq!(node.space.trash_len(), 1);
        while node.space.free_some(10, drop) {}
        assert_eq!(node.run("LLEN k"), ":10\r\n");
    }

    #[test]
    fn law8_few_long_elements_are_freed_in_slices_too() {
        let long = "x".repeat(500 << 10);
        for write in ["RPUSH k N", "HSET k N v", "HSET k f N", "ZADD k 1 N", "SADD k N"] {
            for end in ["DEL k", "SET k new", "FLUSHALL"] {
                let mut node = Node::new();
                for at in 0..10 {
                    let write = write.replace("f ", &format!("f{at} "));
                    node.run(&write.replace('N', &format!("{at}{long}")));
                }
                node.run(end);
                let slices = (1..100).take_while(|_| node.space.free_some(64, drop)).count() + 1;
                assert!((5..20).contains(&slices), "{write}, {end}: {slices}");
            }
        }
    }

    #[test]
    fn law8_blocks_of_megabytes_are_freed_elsewhere() {
        let huge = "x".repeat(1 << 20);
        for end in ["DEL k", "SET k new", "SADD other m", "PEXPIRE k 0", "FLUSHALL"] {
            let mut node = Node::new();
            node.run(&format!("SET k {huge}"));
            node.run(end);
            let mut blocks = Vec::new();
            while node.space.free_some(10, |block| blocks.push(block.len())) {}
            let want = if end == "SADD other m" { vec![] } else { vec![huge.len()] };
            assert_eq!(blocks, want, "{end}");
            node.run("SET k small");
            node.run("DEL k");
        }
    }
}
