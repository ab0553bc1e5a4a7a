//! How commands reach the keys of a database.

use super::snapshot::preserve;
use super::{Change, Db, KeyEntry, Keyspace};
use crate::command::{Args, Effects, Error, Settings};
use crate::resp::Reply;
use crate::resp::number::parse_i64;
use crate::table::{EntryMut, EntryRef, Lookup, NewValue, OwnedValue, ValueMut, ValueRef};
use crate::types::Object;
use bytes::Bytes;
use std::borrow::Cow;

/// A string longer than this is a value of its own that can be sent by reference; shorter ones lie in the key's entry.
pub const INLINE_MAX_LEN_BYTES: usize = 8 * 1024;

/// What becomes of a key's expiry when its value is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    Keep,
    Clear,
    /// Milliseconds since the Unix epoch.
    At(u64),
}

/// A string value as it is stored.
#[derive(Debug, Clone, Copy)]
pub enum StrRef<'a> {
    Int(i64),
    Inline(&'a [u8]),
    Shared(&'a Bytes),
}

impl<'a> StrRef<'a> {
    pub fn of(value: ValueRef<'a, Object>) -> Option<Self> {
        match value {
            ValueRef::Int(value) => Some(Self::Int(value)),
            ValueRef::Str(bytes) => Some(Self::Inline(bytes)),
            ValueRef::Boxed(Object::Str(bytes)) => Some(Self::Shared(bytes)),
            _ => None,
        }
    }

    pub fn bytes(self) -> Cow<'a, [u8]> {
        match self {
            Self::Int(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Inline(bytes) => Cow::Borrowed(bytes),
            Self::Shared(bytes) => Cow::Borrowed(bytes),
        }
    }

    pub fn len(self) -> usize {
        match self {
            Self::Int(value) => itoa::Buffer::new().format(value).len(),
            Self::Inline(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub fn reply(self, out: &mut Reply) {
        match self {
            Self::Int(value) => out.bulk_int(value),
            Self::Inline(bytes) => out.bulk(bytes),
            Self::Shared(bytes) => out.bulk_shared(bytes),
        }
    }
}

/// A collection type that a key can hold.
pub trait Collection: Sized {
    fn of(object: &Object) -> Option<&Self>;
    fn of_mut(object: &mut Object) -> Option<&mut Self>;
    fn new_object() -> Object;
    fn is_empty(&self) -> bool;
}

/// The keys of one database at one moment, seen by one command.
///
/// Keys whose time is over are never seen. On a master they are removed on the way, with the effect that tells
/// replicas; a replica keeps them until its master says so, but for those whose expiry its own clients gave.
pub struct Keys<'a> {
    pub space: &'a mut Keyspace,
    pub effects: &'a mut Effects,
    pub settings: &'a Settings,
    pub db: u16,
    pub now_ms: u64,
    /// This node follows a master: keys that the master let expire are hidden, not removed.
    pub replica: bool,
    /// The master's own command: it sees even what has expired, for its master still had it.
    pub from_master: bool,
    /// Reads leave the access time alone.
    pub no_touch: bool,
}

impl Keys<'_> {
    /// The same, on another database.
    pub fn on(&mut self, db: u16) -> Keys<'_> {
        Keys { space: self.space, effects: self.effects, db, ..*self }
    }

    /// Tells replicas what happened, as a command with a deterministic outcome.
    #[inline]
    pub fn replicate(&mut self, args: &[&[u8]]) {
        self.effects.push(self.db, args);
    }

    /// Tells replicas the command under way, as it came.
    #[inline]
    pub fn replicate_as_is(&mut self, args: Args<'_>) {
        self.replicate_sharing(args.list(), args);
    }

    /// As [`Keys::replicate`]. Long arguments that the command under way, `with`, has in buffers of their own are not copied.
    #[inline]
    pub fn replicate_sharing(&mut self, args: &[&[u8]], with: Args<'_>) {
        self.effects.push_sharing(self.db, args, with.all_shared());
    }

    /// A key was changed, created or removed: counts it and tells who watches it.
    #[inline]
    pub fn changed(&mut self, key: &[u8]) {
        self.space.changed(self.db, key);
    }

    /// A command wrote to a key and left it as it was: tells who watches it, as Redis does.
    pub fn touched(&mut self, key: &[u8]) {
        self.space.note(self.db, key, Change::Touched);
    }

    /// Whether a key that expires at a time is over.
    fn is_over(&self) -> impl Fn(u64) -> bool + use<> {
        let (from_master, now_ms) = (self.from_master, self.now_ms);
        // Redis's master still serves a key in the very millisecond of its expiry.
        move |expiry_ms| !from_master && now_ms > expiry_ms
    }

    /// Removes a key whose time has been over since `expiry_ms`. On a replica it stays, unseen, unless the expiry is its own.
    #[cold]
    fn expire_now(&mut self, key: &[u8], expiry_ms: u64) {
        let is_own = self.replica && self.space.own_expiries.contains(self.db, key, expiry_ms);
        if self.replica && !is_own {
            return;
        }
        let removed = self.space.remove_for_good(self.db, key);
        assert!(removed, "found just before");
        self.space.note(self.db, key, Change::Expired);
        if !is_own {
            self.effects.push(self.db, &[self.settings.expire_verb(), key]);
        }
    }

    /// A key's expiry was set or cleared. What a replica's own client gave, the replica takes.
    #[inline]
    fn note_expiry(&mut self, key: &[u8], old_ms: Option<u64>, new_ms: Option<u64>) {
        if !self.replica {
            return;
        }
        self.space.own_expiries.unmark(self.db, key, old_ms);
        if let Some(at_ms) = new_ms
            && !self.from_master
        {
            self.space.own_expiries.mark(self.db, key, at_ms);
        }
    }

    /// Removes the key if its time is over. False if it must not be seen (only a replica still has it then).
    #[inline]
    pub(super) fn settle(&mut self, hash: u64, key: &[u8]) -> bool {
        // Databases without expiries, the common case, pay no second lookup.
        self.space.db(self.db).expires == 0 || self.settle_slowly(hash, key)
    }

    fn settle_slowly(&mut self, hash: u64, key: &[u8]) -> bool {
        let found = self.space.db(self.db).table.find(hash, key);
        let Some(expiry_ms) = found.and_then(EntryRef::expiry_ms).filter(|at| self.is_over()(*at)) else {
            return true;
        };
        self.expire_now(key, expiry_ms);
        false
    }

    /// To be called before a key comes into being: removes what it held if its time is over, which a writable replica may
    /// still have.
    #[inline]
    pub(super) fn clear_hidden(&mut self, hash: u64, key: &[u8]) {
        if !self.settle(hash, key) && self.replica {
            self.space.remove_for_good(self.db, key);
        }
    }

    /// Looks a key up without a trace: no hit or miss counted, access time untouched.
    pub fn peek(&mut self, key: &[u8]) -> Option<EntryRef<'_, Object>> {
        let hash = self.space.hash(key);
        if !self.settle(hash, key) {
            return None;
        }
        self.space.db(self.db).table.find(hash, key)
    }

    /// Looks a key up to read it: counts a hit or a miss and notes the access.
    #[inline]
    pub fn read(&mut self, key: &[u8]) -> Option<EntryRef<'_, Object>> {
        let hash = self.space.hash(key);
        let seen = self.settle(hash, key);
        let Keyspace { dbs, stats, .. } = &mut *self.space;
        match dbs[usize::from(self.db)].table.find_mut(hash, key) {
            Some(mut entry) if seen => {
                stats.hits += 1;
                if !self.no_touch {
                    self.settings.access_clock.touch(&mut entry, self.now_ms);
                }
                Some(entry.into_ref())
            }
            _ => {
                stats.misses += 1;
                None
            }
        }
    }

    /// Looks a key up to change it. The caller reports the change with [`Keys::changed`] and [`Keys::replicate`].
    #[inline]
    pub fn write(&mut self, key: &[u8]) -> Option<EntryMut<'_, Object>> {
        let hash = self.space.hash(key);
        if !self.settle(hash, key) {
            return None;
        }
        let Keyspace { dbs, snapshot, epoch, .. } = &mut *self.space;
        let Db { table, cut_db, .. } = &mut dbs[usize::from(self.db)];
        let mut entry = table.find_mut(hash, key)?;
        preserve(snapshot, *epoch, *cut_db, &entry);
        entry.set_mark(*epoch);
        self.settings.access_clock.touch(&mut entry, self.now_ms);
        Some(entry)
    }

    pub fn exists(&mut self, key: &[u8]) -> bool {
        self.peek(key).is_some()
    }

    /// Sets a key to a string, whatever it held. The value is stored as an integer where it is one, inside the key's
    /// entry where it is short, else as a buffer of its own, which is the argument's if it has one.
    pub fn set(&mut self, key: &[u8], value: &[u8], shared: Option<Bytes>, expiry: Expiry) {
        let new = if value.len() > INLINE_MAX_LEN_BYTES {
            let value = shared.unwrap_or_else(|| Bytes::copy_from_slice(value));
            NewValue::Boxed(Box::new(Object::Str(value)))
        } else {
            match small_integer(value) {
                Some(number) => NewValue::Int(number),
                None => NewValue::Str(value),
            }
        };
        self.put(key, new, expiry);
    }

    /// Sets a key to a value, whatever it held.
    pub fn put(&mut self, key: &[u8], value: NewValue<'_, Object>, mut expiry: Expiry) {
        let hash = self.space.hash(key);
        let is_over = self.is_over();
        let (now_ms, clock) = (self.now_ms, self.settings.access_clock);
        let Keyspace { dbs, trash, snapshot, epoch, .. } = &mut *self.space;
        let db = &mut dbs[usize::from(self.db)];
        let old_ms = match db.table.lookup(hash, key) {
            Lookup::Found(mut entry) => {
                preserve(snapshot, *epoch, db.cut_db, &entry);
                entry.set_mark(*epoch);
                if let ValueRef::Boxed(object) = entry.value()
                    && super::Trash::takes_long(object)
                    && let OwnedValue::Boxed(object) = entry.take_value()
                {
                    trash.push_back(super::Trash::of(object));
                }
                let old_ms = entry.expiry_ms();
                let had_expiry = old_ms.is_some();
                if expiry == Expiry::Keep && old_ms.is_some_and(is_over) {
                    // A replica hid it, so there is nothing to keep.
                    expiry = Expiry::Clear;
                }
                let has_expiry = match expiry {
                    Expiry::Keep => had_expiry,
                    Expiry::Clear => {
                        if had_expiry {
                            entry.set_expiry(None);
                        }
                        false
                    }
                    Expiry::At(at) => {
                        entry.set_expiry(Some(at));
                        true
                    }
                };
                entry.set_value(value);
                clock.touch(&mut entry, now_ms);
                db.expires = db.expires - usize::from(had_expiry) + usize::from(has_expiry);
                old_ms
            }
            Lookup::Vacant(place) => {
                let at = match expiry {
                    Expiry::At(at) => Some(at),
                    Expiry::Keep | Expiry::Clear => None,
                };
                let mut entry = KeyEntry::with_expiry(key, value, at);
                entry.set_lru(clock.fresh(now_ms));
                entry.set_mark(*epoch);
                db.expires += usize::from(at.is_some());
                place.insert(entry);
                None
            }
        };
        match expiry {
            Expiry::Keep => {}
            Expiry::Clear => self.note_expiry(key, old_ms, None),
            Expiry::At(at) => self.note_expiry(key, old_ms, Some(at)),
        }
    }

    /// Removes a key; a large value is freed in slices. False if there is none.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        // An expired key is removed as such, which is what replicas must hear.
        if self.peek(key).is_none() {
            return false;
        }
        let removed = self.space.remove_for_good(self.db, key);
        assert!(removed, "just seen");
        true
    }

    /// Takes a key out with its value.
    pub fn take(&mut self, key: &[u8]) -> Option<KeyEntry> {
        self.peek(key)?;
        self.space.detach(self.db, key)
    }

    /// Puts an entry in under its own key, which must not be there to be seen. It is accessed by that.
    pub fn attach(&mut self, mut entry: KeyEntry) {
        entry.set_lru(self.settings.access_clock.fresh(self.now_ms));
        self.attach_as_it_is(entry);
    }

    /// The same, with the access time that the entry brings.
    pub fn attach_as_it_is(&mut self, entry: KeyEntry) {
        let hash = self.space.hash(entry.key());
        self.clear_hidden(hash, entry.key());
        let expiry_ms = entry.expiry_ms();
        let key: Option<Box<[u8]>> = (self.replica && expiry_ms.is_some()).then(|| entry.key().into());
        self.space.attach(self.db, entry);
        if let Some(key) = key {
            self.note_expiry(&key, None, expiry_ms);
        }
    }

    /// Sets or clears the expiry of an existing key.
    pub fn set_expiry(&mut self, key: &[u8], expiry_ms: Option<u64>) {
        let hash = self.space.hash(key);
        let Keyspace { dbs, snapshot, epoch, .. } = &mut *self.space;
        let db = &mut dbs[usize::from(self.db)];
        let mut entry = db.table.find_mut(hash, key).expect("the key exists");
        preserve(snapshot, *epoch, db.cut_db, &entry);
        entry.set_mark(*epoch);
        let old_ms = entry.expiry_ms();
        entry.set_expiry(expiry_ms);
        db.expires = db.expires - usize::from(old_ms.is_some()) + usize::from(expiry_ms.is_some());
        self.note_expiry(key, old_ms, expiry_ms);
    }

    /// Reads a string.
    pub fn string(&mut self, key: &[u8]) -> Result<Option<StrRef<'_>>, Error> {
        match self.read(key) {
            None => Ok(None),
            Some(entry) => StrRef::of(entry.value()).map(Some).ok_or(Error::WrongType),
        }
    }

    /// Reads a collection.
    pub fn get<C: Collection + 'static>(&mut self, key: &[u8]) -> Result<Option<&C>, Error> {
        match self.read(key) {
            None => Ok(None),
            Some(entry) => match entry.value() {
                ValueRef::Boxed(object) => C::of(object).map(Some).ok_or(Error::WrongType),
                _ => Err(Error::WrongType),
            },
        }
    }

    /// A collection to change. When that leaves it empty the caller calls [`Keys::remove_found`].
    pub fn get_mut<C: Collection + 'static>(&mut self, key: &[u8]) -> Result<Option<&mut C>, Error> {
        match self.write(key) {
            None => Ok(None),
            Some(entry) => match entry.into_value_mut() {
                ValueMut::Boxed(object) => C::of_mut(object).map(Some).ok_or(Error::WrongType),
                _ => Err(Error::WrongType),
            },
        }
    }
}

/// The number a value is, if it is printed as Redis would print it.
#[inline]
pub fn small_integer(value: &[u8]) -> Option<i64> {
    match value {
        [b'-' | b'0'..=b'9', ..] if value.len() <= 20 => parse_i64(value),
        _ => None,
    }
}
