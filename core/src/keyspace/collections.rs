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
        if !self.settle(hash, key) {
            // A replica that takes writes of its own still had it, unseen.
            self.space.remove_unseen(self.db, key);
        }
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
        let entry = self.space.detach(self.db, key).expect("found just before");
        self.space.discard(entry);
    }

    /// Frees, in slices, what a command cut off a collection.
    pub fn discard_cut(&mut self, object: Object) {
        self.space.trash.push_back(Trash::Value(Box::new(object)));
    }
}
