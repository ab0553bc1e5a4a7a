//! One shard's slice of the keyspace: its databases, what is known of their keys, and what is left to free.
//!
//! [`Keyspace`] is the data; commands reach it through [`Keys`], which adds a database, a time and the effects of what
//! is done, and hides keys whose time is over.

mod collections;
mod expire;
mod keys;
mod own_expiries;
mod snapshot;
mod text;
mod watch;

pub use keys::{Collection, Expiry, Keys, StrRef};
pub use own_expiries::MarkedDbs;
pub use snapshot::{PIECE_BYTES, SnapshotBusy, SnapshotPiece, SnapshotProgress, storable};
pub use text::{edit_string, grow_with_zeros, string_len};
pub use watch::{WatcherId, Watches};

use crate::table::{Drain, Entry, HashKey, Kind, OwnedValue, Table, ValueRef};
use crate::types::{Object, free_steps};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// A key with its value, as it travels between shards.
pub type KeyEntry = Entry<Object>;

/// One numbered database of a slice.
pub struct Db {
    pub table: Table<Object>,
    /// Keys with an expiry.
    pub expires: usize,
    /// Where the expiry sweep goes on.
    sweep: u64,
    /// The number that this content had when the latest snapshot was cut.
    cut_db: u16,
    /// Where the snapshot's walk goes on; `None` if it owes nothing here.
    walk: Option<u64>,
}

impl Db {
    fn new(hash: HashKey) -> Self {
        Self { table: Table::new(hash), expires: 0, sweep: 0, cut_db: 0, walk: None }
    }
}

/// Counters of `INFO stats` that the keyspace itself keeps. They only ever grow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct KeyspaceStats {
    pub hits: u64,
    pub misses: u64,
    pub expired: u64,
    pub evicted: u64,
    /// Changes to the dataset (`rdb_changes_since_last_save` counts from a base).
    pub dirty: u64,
    pub lazyfreed_objects: u64,
    /// Microseconds that the expiry sweep took.
    pub expire_cycle_us: u64,
}

impl std::ops::AddAssign for KeyspaceStats {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.expired += other.expired;
        self.evicted += other.evicted;
        self.dirty += other.dirty;
        self.lazyfreed_objects += other.lazyfreed_objects;
        self.expire_cycle_us += other.expire_cycle_us;
    }
}

/// What became of a key, for those who watch it and for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was changed, created or removed.
    Changed,
    /// It was written to, and left as it was.
    Touched,
    /// It was removed because its time was over.
    Expired,
}

/// What became of keys, by database, in order.
pub type Changes = Vec<(u16, Box<[u8]>, Change)>;

/// A value of at most this many steps (see [`free_steps`]) is freed at once: that takes some microseconds.
const FREE_AT_ONCE: usize = 64;
/// A block of this size or more goes back to the system when it is freed, at some 100 us for each megabyte.
const HUGE_BLOCK_LEN_BYTES: usize = 1 << 20;

/// What waits to be freed in slices.
enum Trash {
    Value(Box<Object>),
    /// The bytes of a huge string.
    Block(Bytes),
    Table(Drain<Object>),
    Marks(own_expiries::Marks),
}

impl Trash {
    /// Whether a value is not to be dropped at once.
    fn takes_long(object: &Object) -> bool {
        match object {
            Object::Str(bytes) => bytes.len() >= HUGE_BLOCK_LEN_BYTES,
            object => object.free_effort() > FREE_AT_ONCE,
        }
    }

    fn of(mut object: Box<Object>) -> Self {
        match &mut *object {
            Object::Str(bytes) => Self::Block(std::mem::take(bytes)),
            _ => Self::Value(object),
        }
    }
}

/// One shard's data.
pub struct Keyspace {
    dbs: Box<[Db]>,
    hash: HashKey,
    pub watches: Watches,
    pub stats: KeyspaceStats,
    trash: VecDeque<Trash>,
    own_expiries: own_expiries::OwnExpiries,
    snapshot: Option<Box<snapshot::Snapshot>>,
    /// The mark of entries that no snapshot owes; see [`snapshot`].
    epoch: bool,
    /// In a transaction's scratch keyspace: what became of keys, by database, for their owners.
    changes: Option<Changes>,
    /// Effects are collected (a replica, a backlog or an append-only file listens). Travels with the data so that the
    /// cut of a snapshot switches it on for the whole dataset at once.
    pub stream: bool,
    /// The dataset follows a master's. Travels with the data, so that a change of role holds for all of it at once.
    pub replica: bool,
    /// A replica gave the dataset up for another, which has still to be loaded: no client sees what is left. Travels with the
    /// data, so that it holds for all of it at once.
    pub is_gone: bool,
    /// The number that its owner gave the latest snapshot.
    pub snapshot_id: u64,
    /// Counts up whenever the reason for [`Keyspace::awaits_walk`] may have gone.
    pub huge_values_written: u64,
    /// How often another dataset was put in the place of this one.
    pub replacements: u64,
    /// `DEBUG SET-ACTIVE-EXPIRE`.
    pub active_expire: bool,
}

impl Keyspace {
    pub fn new(databases: usize, hash: HashKey) -> Self {
        Self {
            dbs: (0..databases).map(|_| Db::new(hash)).collect(),
            hash,
            watches: Watches::default(),
            stats: KeyspaceStats::default(),
            trash: VecDeque::new(),
            own_expiries: own_expiries::OwnExpiries::new(databases),
            snapshot: None,
            epoch: false,
            changes: None,
            stream: false,
            replica: false,
            is_gone: false,
            snapshot_id: 0,
            huge_values_written: 0,
            replacements: 0,
            active_expire: true,
        }
    }

    /// A keyspace for keys on loan, which records what changes.
    pub fn scratch(databases: usize, hash: HashKey) -> Self {
        Self { changes: Some(Vec::new()), ..Self::new(databases, hash) }
    }

    /// Another one, empty, for the same node.
    pub fn successor(&self) -> Self {
        Self::new(self.databases(), self.hash)
    }

    pub fn databases(&self) -> usize {
        self.dbs.len()
    }

    pub fn db(&self, db: u16) -> &Db {
        &self.dbs[usize::from(db)]
    }

    /// Only for this module's children: whoever changes an entry must preserve it for the snapshot first.
    fn db_mut(&mut self, db: u16) -> &mut Db {
        &mut self.dbs[usize::from(db)]
    }

    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hash.hash(key)
    }

    /// Takes a key out without any effect: it goes on loan, or comes home from one.
    pub fn detach(&mut self, db: u16, key: &[u8]) -> Option<KeyEntry> {
        self.detach_hashed(db, self.hash(key), key)
    }

    fn detach_hashed(&mut self, db: u16, hash: u64, key: &[u8]) -> Option<KeyEntry> {
        let Self { dbs, snapshot, epoch, own_expiries, .. } = self;
        let number = db;
        let db = &mut dbs[usize::from(db)];
        let entry = db.table.remove(hash, key)?;
        db.expires -= usize::from(entry.expiry_ms().is_some());
        own_expiries.unmark(number, key, entry.expiry_ms());
        snapshot::preserve(snapshot, *epoch, db.cut_db, &entry);
        Some(entry)
    }

    /// Takes a key out of every database.
    pub fn detach_all(&mut self, key: &[u8]) -> SmallVec<[(u16, KeyEntry); 1]> {
        let hash = self.hash(key);
        let mut entries = SmallVec::new();
        for db in 0..self.databases() as u16 {
            // Most databases are empty.
            if !self.db(db).table.is_empty()
                && let Some(entry) = self.detach_hashed(db, hash, key)
            {
                entries.push((db, entry));
            }
        }
        entries
    }

    /// Takes a key out of every database to lend it to a transaction, which may change it.
    pub fn lend(&mut self, key: &[u8]) -> SmallVec<[(u16, KeyEntry); 1]> {
        self.detach_all(key)
    }

    /// Whether a key that `watcher` watches changed, or its time came.
    pub fn watch_is_dirty(&self, watcher: WatcherId, now_ms: u64) -> bool {
        self.watches.is_dirty(watcher, |db, key| {
            let found = self.db(db).table.find(self.hash(key), key);
            found.and_then(|entry| entry.expiry_ms()).is_some_and(|at| now_ms > at)
        })
    }

    /// Until when what `watcher` watches stays as it was, if nobody changes it: the last millisecond at which every key
    /// that expires still exists. None: something changed already.
    pub fn watch_holds_until_ms(&self, watcher: WatcherId, now_ms: u64) -> Option<u64> {
        if self.watch_is_dirty(watcher, now_ms) {
            return None;
        }
        let expiry_ms = |(db, key): (u16, &[u8])| self.db(db).table.find(self.hash(key), key)?.expiry_ms();
        Some(self.watches.live_keys(watcher).filter_map(expiry_ms).min().unwrap_or(u64::MAX))
    }

    /// Puts an entry in without any effect. The key must not exist.
    pub fn attach(&mut self, db: u16, mut entry: KeyEntry) {
        let hash = self.hash(entry.key());
        // It came after the cut, or home from a loan, for which it was preserved.
        entry.set_mark(self.epoch);
        let db = self.db_mut(db);
        db.expires += usize::from(entry.expiry_ms().is_some());
        db.table.insert(hash, entry);
    }

    /// A key was changed (or created, or removed): tells who watches it and counts it.
    #[inline]
    pub fn changed(&mut self, db: u16, key: &[u8]) {
        debug_assert!(self.is_preserved(db, key), "changed without regard to the snapshot");
        self.note(db, key, Change::Changed);
    }

    /// Tells who watches a key what became of it, and counts it.
    #[inline]
    pub fn note(&mut self, db: u16, key: &[u8], change: Change) {
        self.stats.dirty += u64::from(change != Change::Touched);
        self.stats.expired += u64::from(change == Change::Expired);
        if !self.watches.is_empty() {
            match change {
                Change::Changed | Change::Touched => self.watches.touch(db, key),
                Change::Expired => self.watches.touch_expired(db, key),
            }
        }
        if let Some(changes) = &mut self.changes {
            changes.push((db, key.into(), change));
        }
    }

    /// In a scratch keyspace: what became of keys since it was last asked. It is for the owners to count.
    pub fn take_changes(&mut self) -> Changes {
        (self.stats.dirty, self.stats.expired) = (0, 0);
        self.changes.replace(Vec::new()).unwrap_or_default()
    }

    /// Moves what a scratch keyspace left to free, and its counters, over here.
    pub fn absorb(&mut self, scratch: &mut Keyspace) {
        self.trash.append(&mut scratch.trash);
        self.stats += std::mem::take(&mut scratch.stats);
    }

    /// Drops a value, or frees it later in slices if dropping it would take long.
    pub fn discard_value(&mut self, object: Box<Object>) {
        if Trash::takes_long(&object) {
            self.trash.push_back(Trash::of(object));
        }
    }

    /// Takes a key out and frees it, large ones in slices. False if there is none.
    fn remove_for_good(&mut self, db: u16, key: &[u8]) -> bool {
        let hash = self.hash(key);
        let Db { table, expires, cut_db, .. } = self.db_mut(db);
        let Some(entry) = table.remove(hash, key) else { return false };
        *expires -= usize::from(entry.expiry_ms().is_some());
        let cut_db = *cut_db;
        self.own_expiries.unmark(db, key, entry.expiry_ms());
        self.let_go(cut_db, entry);
        true
    }

    /// As `discard_value`, for a whole entry.
    pub fn discard(&mut self, mut entry: KeyEntry) {
        if entry.kind() == Kind::Boxed {
            self.discard_owned(entry.take_value());
        }
    }

    /// As `discard_value`, for a value of any kind.
    pub fn discard_owned(&mut self, value: OwnedValue<Object>) {
        match value {
            OwnedValue::Boxed(object) => self.discard_value(object),
            OwnedValue::Str(bytes) => self.discard_value(Box::new(Object::Str(bytes.into()))),
            OwnedValue::Int(_) | OwnedValue::Score(_) | OwnedValue::None => {}
        }
    }

    /// Empties one database; its old content is freed in slices.
    pub fn clear(&mut self, db: u16) {
        let Self { dbs, watches, stats, .. } = self;
        let old = std::mem::replace(&mut dbs[usize::from(db)], Db::new(self.hash));
        stats.dirty += old.table.len() as u64;
        if !watches.is_empty() {
            watches.touch_where(db, |key| old.table.find(self.hash.hash(key), key).is_some());
        }
        self.retire(old);
        self.forget_own_expiries_of(db);
    }

    /// Exchanges two databases.
    pub fn swap(&mut self, a: u16, b: u16) {
        let Self { dbs, watches, .. } = self;
        if !watches.is_empty() {
            let (left, right) = (&dbs[usize::from(a)].table, &dbs[usize::from(b)].table);
            let exists = |key: &[u8]| {
                let hash = self.hash.hash(key);
                left.find(hash, key).is_some() || right.find(hash, key).is_some()
            };
            watches.touch_where(a, exists);
            watches.touch_where(b, exists);
        }
        dbs.swap(usize::from(a), usize::from(b));
        self.own_expiries.swap(a, b);
        self.stats.dirty += 1;
    }

    /// Keys in all databases.
    pub fn len(&self) -> usize {
        self.dbs.iter().map(|db| db.table.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.dbs.iter().all(|db| db.table.is_empty())
    }

    /// Some key has an expiry.
    pub fn has_expires(&self) -> bool {
        self.dbs.iter().any(|db| db.expires > 0)
    }

    /// Something waits to be freed.
    pub fn has_trash(&self) -> bool {
        !self.trash.is_empty()
    }

    /// Values and tables that wait to be freed (`INFO`: `lazyfree_pending_objects`).
    pub fn trash_len(&self) -> usize {
        self.trash
            .iter()
            .map(|trash| match trash {
                Trash::Value(_) | Trash::Block(_) | Trash::Marks(_) => 1,
                Trash::Table(drain) => drain.len(),
            })
            .sum::<usize>()
            + self.flushed_len()
    }

    /// Frees for about `budget` steps of what waits. True if something is left. What cannot be freed in slices, blocks of
    /// megabytes, is given to `free_elsewhere`.
    pub fn free_some(&mut self, budget: usize, mut free_elsewhere: impl FnMut(Bytes)) -> bool {
        let mut left = budget;
        while left > 0 {
            match self.trash.pop_front() {
                None => return false,
                Some(Trash::Block(block)) => {
                    free_elsewhere(block);
                    self.stats.lazyfreed_objects += 1;
                    left -= 1;
                }
                Some(Trash::Value(mut object)) => {
                    if object.free_some(left) {
                        self.stats.lazyfreed_objects += 1;
                        left -= 1;
                    } else {
                        self.trash.push_front(Trash::Value(object));
                        break;
                    }
                }
                Some(Trash::Marks(mut marks)) => {
                    while left > 0 && marks.pop_first().is_some() {
                        left -= 1;
                    }
                    if !marks.is_empty() {
                        self.trash.push_back(Trash::Marks(marks));
                    }
                }
                Some(Trash::Table(mut drain)) => {
                    while left > 0
                        && let Some(entry) = drain.next()
                    {
                        // A large value is set aside, the small ones are freed on the way.
                        let steps = match entry.value() {
                            ValueRef::Boxed(object) if Trash::takes_long(object) => 1,
                            ValueRef::Boxed(object) => 1 + object.free_effort(),
                            _ => free_steps(entry.heap_bytes()),
                        };
                        left -= steps.min(left);
                        self.discard(entry);
                        self.stats.lazyfreed_objects += 1;
                    }
                    if drain.len() > 0 {
                        self.trash.push_back(Trash::Table(drain));
                    }
                }
            }
        }
        !self.trash.is_empty()
    }
}
