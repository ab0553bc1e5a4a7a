//! Huge values in a snapshot: written a stretch at a time, each as a piece of its own.
//!
//! While one is half written it may be read but not changed: the layer above lets commands that would change it, or one
//! that is still owed, wait for it ([`Keyspace::awaits_walk`]), which stalls that command and no other. A command that
//! comes all the same (one of a transaction over everything) first has the rest written, at once.
//!
//! What is to be removed anyway moves here with its entry.

use super::{Db, KeyEntry, Keyspace, Object, PIECE_ROOM_BYTES, SnapshotPiece, VISIT_EFFORT_BYTES};
use crate::rdb::{Checksum, Stretches, Writer, WriterOptions};
use crate::table::{EntryRef, ValueRef};
use std::collections::VecDeque;

/// Output is set aside in chunks of about this size, so that none is ever copied or freed at length.
const CHUNK_BYTES: usize = if cfg!(test) { 1 << 10 } else { PIECE_ROOM_BYTES - STRETCH_BYTES };
/// The longest stretch without a look at the output: some 0.1 ms.
const STRETCH_BYTES: usize = if cfg!(test) { 1 << 10 } else { 32 << 10 };

/// A value under way.
struct Current {
    cut_db: u16,
    place: Place,
    written: Written,
}

/// What of it was written.
struct Written {
    stretches: Stretches,
    writer: Writer,
    chunks: Vec<Vec<u8>>,
    checksum: Checksum,
}

/// Where its entry is.
enum Place {
    /// In the table of its database.
    Table(Box<[u8]>),
    /// Here: it was removed since.
    Here(KeyEntry),
}

/// See the module.
pub(super) struct Huge {
    options: WriterOptions,
    current: Option<Box<Current>>,
    /// Entries in tables, by the number of the database at the cut, that are to be written next, or at least marked.
    asked: VecDeque<(u16, Box<[u8]>)>,
    /// Entries that are in no table any more.
    adopted: VecDeque<(u16, KeyEntry)>,
    ready: VecDeque<SnapshotPiece>,
    ready_len_bytes: usize,
}

impl Written {
    fn begin(options: WriterOptions, cut_db: u16, entry: EntryRef<'_, Object>) -> Self {
        let mut writer = Writer::in_pieces(options, PIECE_ROOM_BYTES);
        writer.select_db(u64::from(cut_db));
        let stretches = Stretches::begin(&mut writer, entry);
        Written { stretches, writer, chunks: Vec::new(), checksum: Checksum::default() }
    }

    /// Returns the effort.
    fn write(&mut self, value: ValueRef<'_, Object>, budget_bytes: usize) -> usize {
        let effort_bytes = self.stretches.write(&mut self.writer, value, budget_bytes.min(STRETCH_BYTES));
        if self.writer.len_bytes() >= CHUNK_BYTES || self.stretches.is_done() {
            let (chunk, checksum) = self.writer.take_piece();
            if !chunk.is_empty() {
                self.checksum.append(&checksum);
                self.chunks.push(chunk);
            }
        }
        effort_bytes
    }
}

impl Current {
    fn is(&self, cut_db: u16, key: &[u8]) -> bool {
        self.cut_db == cut_db && matches!(&self.place, Place::Table(own) if **own == *key)
    }
}

impl Huge {
    pub(super) fn new(options: WriterOptions) -> Self {
        Huge {
            options,
            current: None,
            asked: VecDeque::new(),
            adopted: VecDeque::new(),
            ready: VecDeque::new(),
            ready_len_bytes: 0,
        }
    }

    pub(super) fn ready_len_bytes(&self) -> usize {
        self.ready_len_bytes
    }

    pub(super) fn adopted_len(&self) -> usize {
        self.adopted.len()
    }

    /// Nothing is under way or about to be.
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none() && self.asked.is_empty() && self.adopted.is_empty()
    }

    /// An entry of the cut that left its table for good.
    pub(super) fn adopt(&mut self, cut_db: u16, entry: KeyEntry) {
        self.adopted.push_back((cut_db, entry));
    }

    /// An entry of the cut is to be written next.
    pub(super) fn ask_for(&mut self, cut_db: u16, key: &[u8]) {
        let is_known = self.current.as_ref().is_some_and(|current| current.is(cut_db, key))
            || self.asked.iter().any(|(db, other)| *db == cut_db && **other == *key);
        if !is_known {
            self.asked.push_back((cut_db, key.into()));
        }
    }

    pub(super) fn take_ready(&mut self) -> Option<SnapshotPiece> {
        let piece = self.ready.pop_front()?;
        self.ready_len_bytes -= piece.chunks.iter().map(Vec::len).sum::<usize>();
        Some(piece)
    }

    fn finish(&mut self, written: Written) {
        let Written { chunks, checksum, .. } = written;
        self.ready_len_bytes += chunks.iter().map(Vec::len).sum::<usize>();
        self.ready.push_back(SnapshotPiece { chunks, checksum, is_last: false });
    }

    /// The output is not wanted any more. Entries in tables are still to be marked. Returns those to be freed.
    pub(super) fn abort(&mut self) -> Vec<KeyEntry> {
        let mut entries: Vec<KeyEntry> = self.adopted.drain(..).map(|(_, entry)| entry).collect();
        if let Some(current) = self.current.take() {
            match current.place {
                Place::Table(key) => self.asked.push_back((current.cut_db, key)),
                Place::Here(entry) => entries.push(entry),
            }
        }
        self.ready.clear();
        self.ready_len_bytes = 0;
        entries
    }
}

impl super::Snapshot {
    /// Writes the rest of a half-written value, whose entry is about to change, at once. False: it is not that one.
    pub(super) fn finish_huge(&mut self, cut_db: u16, entry: &KeyEntry) -> bool {
        let is_it = |current: &mut Box<Current>| current.is(cut_db, entry.key());
        let Some(mut current) = self.huge.current.take_if(is_it) else { return false };
        while !current.written.stretches.is_done() {
            current.written.write(entry.value(), usize::MAX);
        }
        self.huge.finish(current.written);
        true
    }
}

impl Keyspace {
    /// Whether a command that is about to change this key should wait for the snapshot, which has to write a huge value
    /// first. It is written next; [`Keyspace::huge_values_written`] tells when to ask again.
    pub fn awaits_walk(&mut self, key: &[u8]) -> bool {
        let Self { snapshot: Some(snapshot), dbs, hash, epoch, .. } = self else { return false };
        if snapshot.walked || snapshot.writer.is_none() {
            return false;
        }
        let hash = hash.hash(key);
        let mut waits = false;
        for db in dbs.iter().filter(|db| !db.table.is_empty()) {
            if let Some(entry) = db.table.find(hash, key)
                && entry.mark() != *epoch
                && snapshot.is_huge(entry.value())
            {
                snapshot.huge.ask_for(db.cut_db, key);
                waits = true;
            }
        }
        waits
    }

    /// An entry that was taken out of its table to be freed: if the snapshot owes it and it is huge, that happens after it
    /// was written.
    pub(in crate::keyspace) fn let_go(&mut self, cut_db: u16, entry: KeyEntry) {
        if entry.mark() != self.epoch
            && let Some(snapshot) = &mut self.snapshot
        {
            if snapshot.is_huge(entry.value()) {
                return match snapshot.huge.current.as_mut().filter(|current| current.is(cut_db, entry.key()))
                {
                    Some(current) => current.place = Place::Here(entry),
                    None => snapshot.huge.adopt(cut_db, entry),
                };
            }
            snapshot.save(cut_db, entry.view());
        }
        self.discard(entry);
    }

    /// A database is about to be given up: the half-written value in it is kept.
    pub(super) fn keep_huge_of(&mut self, old: &mut Db) {
        let Some(current) = self.snapshot.as_mut().and_then(|snapshot| snapshot.huge.current.as_mut()) else {
            return;
        };
        if let Place::Table(key) = &current.place
            && current.cut_db == old.cut_db
        {
            let hash = self.hash.hash(key);
            if old.table.find(hash, key).is_some_and(|entry| entry.mark() != self.epoch) {
                let entry = old.table.remove(hash, key).expect("just seen");
                current.place = Place::Here(entry);
            }
        }
    }

    /// A stretch of a huge value, if there is one to be written. Returns the effort.
    pub(super) fn huge_step(&mut self, budget_bytes: usize) -> Option<usize> {
        let Self { snapshot, dbs, hash, epoch, .. } = self;
        let snapshot = snapshot.as_mut()?;
        let Some(current) = &mut snapshot.huge.current else { return self.begin_huge() };
        let effort_bytes = match &current.place {
            Place::Here(entry) => current.written.write(entry.value(), budget_bytes),
            Place::Table(key) => {
                let hash = hash.hash(key);
                let db =
                    owing_db(dbs, *epoch, current.cut_db, hash, key).expect("it stays until it is written");
                let entry = db.table.find(hash, key).expect("just seen");
                current.written.write(entry.value(), budget_bytes)
            }
        };
        if !current.written.stretches.is_done() {
            return Some(effort_bytes);
        }
        let Current { cut_db, place, written } = *snapshot.huge.current.take().expect("just written");
        snapshot.huge.finish(written);
        self.huge_values_written += 1;
        match place {
            Place::Here(entry) => {
                self.discard(entry);
                self.stats.lazyfreed_objects += 1;
            }
            Place::Table(key) => self.mark_written(cut_db, &key),
        }
        Some(effort_bytes)
    }

    fn mark_written(&mut self, cut_db: u16, key: &[u8]) {
        let hash = self.hash.hash(key);
        if let Some(db) = owing_db(&mut self.dbs, self.epoch, cut_db, hash, key) {
            db.table.find_mut(hash, key).expect("just seen").set_mark(self.epoch);
        }
    }

    /// Begins with the next huge value that waits. None: there is none.
    fn begin_huge(&mut self) -> Option<usize> {
        let Self { snapshot, dbs, hash, epoch, .. } = self;
        let snapshot = snapshot.as_mut()?;
        let huge = &mut snapshot.huge;
        if let Some((cut_db, entry)) = huge.adopted.pop_front() {
            let written = Written::begin(huge.options, cut_db, entry.view());
            huge.current = Some(Box::new(Current { cut_db, place: Place::Here(entry), written }));
            return Some(VISIT_EFFORT_BYTES);
        }
        let (cut_db, key) = huge.asked.pop_front()?;
        if snapshot.writer.is_none() {
            self.mark_written(cut_db, &key);
            return Some(VISIT_EFFORT_BYTES);
        }
        let hash = hash.hash(&key);
        // It may have been written, or have gone, since.
        if let Some(db) = owing_db(dbs, *epoch, cut_db, hash, &key) {
            let entry = db.table.find(hash, &key).expect("just seen");
            let written = Written::begin(huge.options, cut_db, entry);
            huge.current = Some(Box::new(Current { cut_db, place: Place::Table(key), written }));
        } else {
            self.huge_values_written += 1;
        }
        Some(VISIT_EFFORT_BYTES)
    }
}

/// The database that had the number `cut_db` at the cut, if it still owes that key. Databases made since bear a number,
/// too, but owe nothing.
fn owing_db<'a>(dbs: &'a mut [Db], epoch: bool, cut_db: u16, hash: u64, key: &[u8]) -> Option<&'a mut Db> {
    dbs.iter_mut()
        .find(|db| db.cut_db == cut_db && db.table.find(hash, key).is_some_and(|entry| entry.mark() != epoch))
}
