//! Expiries that the clients of a writable replica gave. The master knows nothing of them, so the replica removes these
//! keys itself, and tells nobody: none of it is in the master's stream.
//!
//! A mark belongs to the expiry, not to the key: whoever sets or clears the expiry decides about the mark.

use super::{Change, Keyspace, Trash};
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// What the marks of one shard may take. A key that finds no room is hidden when its time is over, and stays until a
/// write or the master removes it.
const MAX_BYTES: usize = 16 << 20;
/// What a mark takes beside its key.
const MARK_BYTES: usize = 64;

/// Marked keys in the order in which they expire.
pub(super) type Marks = BTreeSet<(u64, Box<[u8]>)>;

/// Databases in which a key on loan has a mark.
pub type MarkedDbs = SmallVec<[u16; 4]>;

#[derive(Default)]
struct DbMarks {
    keys: Marks,
    bytes: usize,
}

/// The marks of a slice.
pub(super) struct OwnExpiries {
    dbs: Box<[DbMarks]>,
    bytes: usize,
}

impl OwnExpiries {
    pub fn new(databases: usize) -> Self {
        Self { dbs: (0..databases).map(|_| DbMarks::default()).collect(), bytes: 0 }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn len(&self) -> usize {
        self.dbs.iter().map(|db| db.keys.len()).sum()
    }

    pub fn contains(&self, db: u16, key: &[u8], expiry_ms: u64) -> bool {
        !self.is_empty() && self.dbs[usize::from(db)].keys.contains(&(expiry_ms, key.into()))
    }

    pub fn mark(&mut self, db: u16, key: &[u8], expiry_ms: u64) {
        let bytes = key.len() + MARK_BYTES;
        let db = &mut self.dbs[usize::from(db)];
        if self.bytes + bytes <= MAX_BYTES && db.keys.insert((expiry_ms, key.into())) {
            db.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// True if there was a mark.
    #[inline]
    pub fn unmark(&mut self, db: u16, key: &[u8], expiry_ms: Option<u64>) -> bool {
        match expiry_ms {
            Some(at_ms) if !self.is_empty() => self.unmark_slowly(db, key, at_ms),
            _ => false,
        }
    }

    fn unmark_slowly(&mut self, db: u16, key: &[u8], expiry_ms: u64) -> bool {
        let db = &mut self.dbs[usize::from(db)];
        let was_marked = db.keys.remove(&(expiry_ms, key.into()));
        if was_marked {
            let bytes = key.len() + MARK_BYTES;
            db.bytes -= bytes;
            self.bytes -= bytes;
        }
        was_marked
    }

    pub fn swap(&mut self, a: u16, b: u16) {
        self.dbs.swap(usize::from(a), usize::from(b));
    }

    /// Forgets a database's marks, which are to be freed.
    pub fn take(&mut self, db: u16) -> Marks {
        let DbMarks { keys, bytes } = std::mem::take(&mut self.dbs[usize::from(db)]);
        self.bytes -= bytes;
        keys
    }

    /// A key whose time is over.
    fn first_over(&self, db: u16, now_ms: u64) -> Option<(u64, &[u8])> {
        let (at_ms, key) = self.dbs[usize::from(db)].keys.first()?;
        (now_ms > *at_ms).then_some((*at_ms, key))
    }
}

impl Keyspace {
    /// Keys whose expiry is a replica's own (`slave_expires_tracked_keys`).
    pub fn own_expiries_len(&self) -> usize {
        self.own_expiries.len()
    }

    /// No expiry is the replica's own any more: the role or the dataset changes.
    pub fn forget_own_expiries(&mut self) {
        if self.own_expiries.is_empty() {
            return;
        }
        for db in 0..self.databases() as u16 {
            self.forget_own_expiries_of(db);
        }
    }

    pub(super) fn forget_own_expiries_of(&mut self, db: u16) {
        let marks = self.own_expiries.take(db);
        if !marks.is_empty() {
            self.trash.push_back(Trash::Marks(marks));
        }
    }

    /// Takes the marks of a key that goes on loan, or comes home from one.
    pub fn take_marks(&mut self, key: &[u8]) -> MarkedDbs {
        if self.own_expiries.is_empty() {
            return MarkedDbs::new();
        }
        let hash = self.hash(key);
        let Self { dbs, own_expiries, .. } = self;
        (0..dbs.len() as u16)
            .filter(|db| {
                let found = dbs[usize::from(*db)].table.find(hash, key);
                own_expiries.unmark(*db, key, found.and_then(|entry| entry.expiry_ms()))
            })
            .collect()
    }

    /// The key has come with these marks.
    pub fn put_marks(&mut self, key: &[u8], marked: MarkedDbs) {
        for db in marked {
            let found = self.db(db).table.find(self.hash(key), key);
            let expiry_ms = found.and_then(|entry| entry.expiry_ms()).expect("marked with its expiry");
            self.own_expiries.mark(db, key, expiry_ms);
        }
    }

    /// One slice of a replica's background expiry: removes no more than `budget` keys whose expiry is its own. Returns true
    /// if it stopped for its budget. Nothing may be on loan.
    pub fn expire_own_slice(&mut self, now_ms: u64, budget: usize) -> bool {
        if self.own_expiries.is_empty() || !self.active_expire {
            return false;
        }
        let mut left = budget;
        for db in 0..self.databases() as u16 {
            while let Some((at_ms, key)) = self.own_expiries.first_over(db, now_ms) {
                if left == 0 {
                    return true;
                }
                left -= 1;
                let key: Box<[u8]> = key.into();
                let found = self.db(db).table.find(self.hash(&key), &key);
                let expiry_ms = found.and_then(|entry| entry.expiry_ms());
                assert_eq!(expiry_ms, Some(at_ms), "who changes an expiry or removes it changes its mark");
                self.remove_for_good(db, &key);
                self.note(db, &key, Change::Expired);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Node;

    /// A writable replica to which its master gave `theirs`, and a client of its own `own`, both for 10 ms.
    fn replica() -> Node {
        let mut node = Node::new();
        (node.replica, node.from_master) = (true, true);
        node.run("SET theirs 1 PX 10");
        node.from_master = false;
        node.run("SET own 1 PX 10");
        node.effects();
        node
    }

    fn from_master(node: &mut Node, line: &str) {
        node.from_master = true;
        node.run(line);
        node.from_master = false;
    }

    #[test]
    fn a_replica_removes_what_its_own_clients_let_expire() {
        for by_access in [true, false] {
            let mut node = replica();
            assert_eq!(node.space.own_expiries_len(), 1);
            node.advance_ms(11);
            if by_access {
                assert_eq!(node.run("EXISTS own theirs"), ":0\r\n");
            } else {
                assert!(!node.space.expire_own_slice(node.now_ms(), 10));
            }
            assert_eq!(
                (node.space.len(), node.space.db(0).expires),
                (1, 1),
                "theirs is the master's to remove"
            );
            assert_eq!((node.space.own_expiries_len(), node.space.stats.expired), (0, 1));
            assert_eq!(node.effects(), "", "it is nothing of the stream");
        }
    }

    #[test]
    fn a_mark_belongs_to_the_expiry() {
        for (line, by_master, want) in [
            ("PEXPIRE own 99", false, 1),
            ("PEXPIRE theirs 99", false, 2),
            ("INCR own", true, 1),
            ("SET own 2 KEEPTTL", false, 1),
            ("RENAME own new", false, 1),
            ("COPY own new", false, 2),
            ("COPY theirs new", true, 1),
            ("GETEX theirs PX 99", false, 2),
            ("SETEX new 5 v", false, 2),
            ("SETEX own 5 v", true, 0),
            ("PEXPIRE own 99", true, 0),
            ("SET own 2", true, 0),
            ("SET own 2", false, 0),
            ("PERSIST own", false, 0),
            ("GETDEL own", false, 0),
            ("DEL own", true, 0),
            ("MOVE own 3", false, 1),
            ("SWAPDB 0 3", true, 1),
            ("FLUSHALL", true, 0),
            ("FLUSHDB", false, 0),
        ] {
            let mut node = replica();
            if by_master {
                from_master(&mut node, line);
            } else {
                node.run(line);
            }
            assert_eq!(node.space.own_expiries_len(), want, "{line}, master: {by_master}");
            node.advance_ms(6000);
            assert!(!node.space.expire_own_slice(node.now_ms(), 10), "{line}");
            assert_eq!(node.space.own_expiries_len(), 0, "{line}");
        }
    }

    /// What a client of a writable replica writes takes the place of what the master let expire, which is still there.
    #[test]
    fn what_the_master_let_expire_gives_way_to_a_clients_key() {
        for line in [
            "RENAME own theirs",
            "RENAMENX own theirs",
            "COPY own theirs",
            "SET theirs 2",
            "SET theirs 2 KEEPTTL",
            "INCR theirs",
            "INCRBYFLOAT theirs 1",
            "APPEND theirs x",
            "SETRANGE theirs 0 x",
            "SETBIT theirs 1 1",
            "BITFIELD theirs SET u8 0 1",
            "GETSET theirs x",
            "MSETNX theirs 1",
            "BITOP NOT theirs own",
            "RPUSH theirs x",
            "HSET theirs f x",
            "ZADD theirs 1 x",
            "SADD theirs x",
            "RESTORE-own",
            "MOVE",
        ] {
            let mut node = Node::new();
            (node.replica, node.from_master) = (true, true);
            node.run("SET theirs 1 PX 10");
            node.from_master = false;
            node.advance_ms(11);
            node.run("SET own 1 PX 1000");
            match line {
                "RESTORE-own" => {
                    let dump = node.run_args(&[b"DUMP", b"own"]);
                    let start = dump.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
                    let payload = &dump[start..dump.len() - 2];
                    assert_eq!(node.run_args(&[b"RESTORE", b"theirs", b"0", payload]), b"+OK\r\n");
                }
                "MOVE" => {
                    node.db = 3;
                    node.run("SET theirs 2 PX 1000");
                    assert_eq!(node.run("MOVE theirs 0"), ":1\r\n");
                    node.db = 0;
                }
                line => assert!(!node.run(line).starts_with('-'), "{line}"),
            }
            assert_eq!(node.run("EXISTS theirs"), ":1\r\n", "{line}");
            let entries = node.space.detach_all(b"theirs").len();
            assert_eq!((entries, node.space.detach_all(b"theirs").len()), (1, 0), "{line}: one key, once");
            node.advance_ms(1001);
            assert!(!node.space.expire_own_slice(node.now_ms(), 10), "{line}");
            assert_eq!((node.space.db(0).expires, node.space.own_expiries_len()), (0, 0), "{line}");
        }
    }

    #[test]
    fn a_restored_key_has_its_mark() {
        let mut node = replica();
        node.run("SET k v");
        let dump = node.run_args(&[b"DUMP", b"k"]);
        let start = dump.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        let payload = &dump[start..dump.len() - 2];
        node.run_args(&[b"RESTORE", b"new", b"10", payload]);
        node.run_args(&[b"RESTORE", b"own", b"10", payload, b"REPLACE"]);
        assert_eq!(node.space.own_expiries_len(), 2);
        node.from_master = true;
        node.run_args(&[b"RESTORE", b"own", b"10", payload, b"REPLACE"]);
        node.from_master = false;
        assert_eq!(node.space.own_expiries_len(), 1);
        node.advance_ms(11);
        assert!(!node.space.expire_own_slice(node.now_ms(), 10));
        assert_eq!(node.space.detach_all(b"new").len(), 0);
    }

    #[test]
    fn another_dataset_or_role_forgets_the_marks() {
        let mut node = replica();
        let successor = node.space.successor();
        node.space.replace_with(successor);
        assert_eq!(node.space.own_expiries_len(), 0);
        let mut node = replica();
        node.space.forget_own_expiries();
        node.advance_ms(11);
        assert!(!node.space.expire_own_slice(node.now_ms(), 10));
        assert_eq!((node.space.own_expiries_len(), node.space.len()), (0, 2));
    }

    #[test]
    fn law8_marks_are_worked_off_and_freed_in_slices() {
        let mut node = replica();
        for i in 0..100 {
            node.run(&format!("SET k{i} v PX 5"));
        }
        node.advance_ms(20);
        assert!(node.space.expire_own_slice(node.now_ms(), 60));
        assert_eq!(node.space.own_expiries_len(), 41);
        node.space.forget_own_expiries();
        let mut slices = 1;
        while node.space.free_some(10, drop) {
            slices += 1;
        }
        assert_eq!(slices, 5);
    }

    #[test]
    fn marks_take_bounded_memory_and_what_has_none_is_hidden() {
        let mut node = replica();
        let long = "x".repeat(MAX_BYTES / 2);
        node.run(&format!("SET a{long} 1 PX 10"));
        node.run(&format!("SET b{long} 1 PX 10"));
        assert_eq!(node.space.own_expiries_len(), 2, "the last found no room");
        node.advance_ms(11);
        node.space.expire_own_slice(node.now_ms(), 10);
        assert_eq!(node.run(&format!("EXISTS b{long}")), ":0\r\n");
        assert_eq!(node.space.len(), 2);
        node.run(&format!("SET b{long} 1 PX 10"));
        assert_eq!(node.space.own_expiries_len(), 1, "there is room again");
    }
}
