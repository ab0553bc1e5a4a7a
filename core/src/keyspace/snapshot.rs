//! The snapshot of one slice without fork and without a second copy: what the slice held at the cut, as the body of an
//! RDB file, written while commands go on changing it.
//!
//! Every entry carries a mark, and the slice knows the current one, the epoch. Outside of a snapshot all marks equal the
//! epoch. The cut turns the epoch over, so that no entry has its mark: an entry whose mark is not the epoch's belongs to
//! the cut and is not written yet. The walk writes such entries in hash order, slice by slice, and marks them. Whoever
//! is about to change an entry, its expiry or its place calls [`preserve`] first, which writes it as it is if it is
//! still owed. What comes into being after the cut is born with the epoch's mark and never written.
//!
//! That costs a comparison with a byte of the entry's header, which the command has just read, and nothing else while
//! there is no snapshot.
//!
//! A database that is emptied leaves its table to the snapshot, which writes and frees it in one walk. Databases that
//! are exchanged keep the number they had at the cut: it travels with the table.
//!
//! A small value is written whole, in one slice or in the command that touches it. A huge one (a million short elements
//! take 0.03 to 0.1 s as a list, 0.2 s as a set, 0.4 s as a sorted set and up to 1 s as a hash) is written over many
//! slices; see [`huge`].

mod huge;

use self::huge::Huge;
use super::keys::{INLINE_MAX_LEN_BYTES, small_integer};
use super::{Db, KeyEntry, Keyspace, Trash};
use crate::rdb::{Checksum, Writer, WriterOptions, is_huge, save_effort_bytes, save_key};
use crate::table::{Drain, EntryRef, NewValue, OwnedValue, ValueRef, Verdict};
use crate::types::Object;
use bytes::Bytes;
use std::collections::VecDeque;

/// How long a piece of a snapshot is meant to be: worth a message and a send of its own.
pub const PIECE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 240 << 10 };
/// It is over that by up to one entry, most of which are short.
const PIECE_ROOM_BYTES: usize = PIECE_BYTES + PIECE_BYTES / 15;

/// A snapshot under way.
pub(super) struct Snapshot {
    /// `None` after an abort: then the walk only brings the marks in line.
    writer: Option<Writer>,
    /// The database that the piece being written has selected.
    piece_db: Option<u16>,
    /// Emptied databases with the number they had at the cut.
    flushed: VecDeque<(u16, Drain<Object>)>,
    /// Huge values.
    huge: Huge,
    /// Nothing is owed any more.
    walked: bool,
}

/// A stretch of the body of an RDB file: whole keys after a `SELECTDB`. Pieces may follow each other in any order,
/// those of different shards mixed.
pub struct SnapshotPiece {
    /// What it consists of, one after the other; no empty ones. More than one if it is a huge value.
    pub chunks: Vec<Vec<u8>>,
    /// Of all chunks, for [`Writer::append_piece`].
    pub checksum: Checksum,
    /// The snapshot is complete with this piece, which may be empty.
    pub is_last: bool,
}

/// Where a snapshot stands after a slice of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotProgress {
    /// There is none, or an aborted one was just cleared away: the next can begin.
    Idle,
    /// The budget is used up: call again.
    More,
    /// Too much output waits: take it, then call again.
    Full,
    /// All is written; the last piece waits to be taken.
    Walked,
}

/// A snapshot cannot begin while another one is under way or an aborted one is being cleared away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotBusy;

impl Snapshot {
    fn save(&mut self, cut_db: u16, entry: EntryRef<'_, Object>) {
        let Some(writer) = &mut self.writer else { return };
        if self.piece_db != Some(cut_db) {
            writer.select_db(u64::from(cut_db));
            self.piece_db = Some(cut_db);
        }
        save_key(writer, entry);
    }

    fn output_len_bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, Writer::len_bytes) + self.huge.ready_len_bytes()
    }

    /// Whether an entry of the cut that is not written yet is to be written in stretches.
    fn is_huge(&self, value: ValueRef<'_, Object>) -> bool {
        self.writer.as_ref().is_some_and(|writer| is_huge(value, writer.version()))
    }
}

/// To be called before an entry changes or leaves its table: writes it if the snapshot still owes it. The caller marks
/// it with the epoch. `cut_db` is its table's.
#[inline]
pub(super) fn preserve(snapshot: &mut Option<Box<Snapshot>>, epoch: bool, cut_db: u16, entry: &KeyEntry) {
    if entry.mark() != epoch {
        preserve_slowly(snapshot, cut_db, entry);
    }
}

#[cold]
fn preserve_slowly(snapshot: &mut Option<Box<Snapshot>>, cut_db: u16, entry: &KeyEntry) {
    let snapshot = snapshot.as_mut().expect("outside of a snapshot every mark is the epoch's");
    if !snapshot.finish_huge(cut_db, entry) {
        snapshot.save(cut_db, entry.view());
    }
}

/// Whether the snapshot still has to write an entry in stretches; it is then written next.
pub(super) fn owes_huge(
    snapshot: &mut Option<Box<Snapshot>>,
    epoch: bool,
    cut_db: u16,
    entry: &KeyEntry,
) -> bool {
    let owes = |snapshot: &&mut Box<Snapshot>| entry.mark() != epoch && snapshot.is_huge(entry.value());
    let Some(snapshot) = snapshot.as_mut().filter(owes) else { return false };
    snapshot.huge.ask_for(cut_db, entry.key());
    true
}

impl Keyspace {
    /// Begins a snapshot of what the slice holds now. Nothing may be on loan. Takes constant time; the work is done by
    /// [`Keyspace::snapshot_slice`] and by the commands that come in its way.
    ///
    /// # Errors
    /// Another one is not over yet; nothing was changed.
    ///
    /// # Panics
    /// If the options name a version that is not written.
    pub fn begin_snapshot(&mut self, options: WriterOptions) -> Result<(), SnapshotBusy> {
        if self.snapshot.is_some() {
            return Err(SnapshotBusy);
        }
        self.epoch = !self.epoch;
        for (number, db) in (0..).zip(&mut self.dbs) {
            db.cut_db = number;
            db.walk = (!db.table.is_empty()).then_some(0);
        }
        let writer = Some(Writer::in_pieces(options, PIECE_ROOM_BYTES));
        self.snapshot = Some(Box::new(Snapshot {
            writer,
            piece_db: None,
            flushed: VecDeque::new(),
            huge: Huge::new(options),
            walked: false,
        }));
        Ok(())
    }

    /// A snapshot is under way, waits for its last piece to be taken, or is being cleared away: no other can begin.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Bytes that wait to be taken.
    pub fn snapshot_output_len_bytes(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.output_len_bytes())
    }

    /// Works on the snapshot until about `budget_bytes` of values were read (see [`save_effort_bytes`]; 32 KiB take 15
    /// to 110 us, with compression the most) or `max_output_bytes` wait to be taken. Commands go on adding to the output what they are about to change,
    /// also when it is above that.
    pub fn snapshot_slice(&mut self, budget_bytes: usize, max_output_bytes: usize) -> SnapshotProgress {
        let mut left = budget_bytes;
        loop {
            let Some(snapshot) = &self.snapshot else { return SnapshotProgress::Idle };
            if snapshot.walked {
                return SnapshotProgress::Walked;
            }
            // Commands may wait for a huge value, which is not held up by a slow reader.
            let may_pause = snapshot.writer.is_some() && snapshot.huge.is_idle();
            if snapshot.output_len_bytes() >= max_output_bytes && may_pause {
                return SnapshotProgress::Full;
            }
            if left == 0 {
                return SnapshotProgress::More;
            }
            left = left.saturating_sub(self.snapshot_step(left));
        }
    }

    /// Writes the next entry or a stretch of a huge one, or finds that there is none. Returns the effort in bytes.
    fn snapshot_step(&mut self, budget_bytes: usize) -> usize {
        if let Some(effort_bytes) = self.huge_step(budget_bytes) {
            return effort_bytes;
        }
        let epoch = self.epoch;
        let snapshot = self.snapshot.as_mut().expect("under way");
        // What was flushed comes first: it takes up memory for the snapshot alone.
        if let Some((cut_db, drain)) = snapshot.flushed.front_mut() {
            let (cut_db, next) = (*cut_db, drain.next());
            let Some(entry) = next else {
                snapshot.flushed.pop_front();
                return VISIT_EFFORT_BYTES;
            };
            let mut effort_bytes = VISIT_EFFORT_BYTES;
            if entry.mark() != epoch {
                if snapshot.is_huge(entry.value()) {
                    snapshot.huge.adopt(cut_db, entry);
                    return effort_bytes;
                }
                effort_bytes += save_effort_bytes(entry.value());
                snapshot.save(cut_db, entry.view());
            }
            self.discard(entry);
            self.stats.lazyfreed_objects += 1;
            return effort_bytes;
        }
        let found = self.dbs.iter_mut().find_map(|db| db.walk.map(|position| (db, position)));
        let Some((Db { table, cut_db, walk, .. }, position)) = found else {
            snapshot.walked = true;
            if snapshot.writer.is_none() {
                self.snapshot = None;
            }
            return 0;
        };
        let mut effort_bytes = VISIT_EFFORT_BYTES;
        let next = table.retain_slice(position, 1, |entry| {
            if entry.mark() != epoch {
                if snapshot.is_huge(entry.value()) {
                    snapshot.huge.ask_for(*cut_db, entry.key());
                    return Verdict::Keep;
                }
                effort_bytes += save_effort_bytes(entry.value());
                snapshot.save(*cut_db, entry.view());
                entry.set_mark(epoch);
            }
            Verdict::Keep
        });
        *walk = (next != 0).then_some(next);
        effort_bytes
    }

    /// Takes what was written so far. `None` if that is nothing and more is to come. With the last piece the snapshot is
    /// over.
    pub fn take_snapshot_output(&mut self) -> Option<SnapshotPiece> {
        let snapshot = self.snapshot.as_mut()?;
        let writer = snapshot.writer.as_mut()?;
        if let Some(piece) = snapshot.huge.take_ready() {
            return Some(piece);
        }
        let is_last = snapshot.walked;
        if writer.len_bytes() == 0 && !is_last {
            return None;
        }
        let (bytes, checksum) = writer.take_piece();
        snapshot.piece_db = None;
        if is_last {
            self.snapshot = None;
        }
        let chunks = if bytes.is_empty() { Vec::new() } else { vec![bytes] };
        Some(SnapshotPiece { chunks, checksum, is_last })
    }

    /// Gives the snapshot up and drops its output. The marks are brought in line by further calls of
    /// [`Keyspace::snapshot_slice`], until which no other can begin.
    pub fn abort_snapshot(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        if snapshot.walked {
            self.snapshot = None;
            return;
        }
        snapshot.writer = None;
        self.huge_values_written += 1;
        self.discard_kept();
    }

    /// What only the snapshot holds on to is freed in slices.
    fn discard_kept(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        self.trash.extend(snapshot.flushed.drain(..).map(|(_, drain)| Trash::Table(drain)));
        snapshot.huge.abort().into_iter().for_each(|entry| self.discard(entry));
    }

    /// Lets go of a database that was emptied: what the snapshot still owes of it is written while it is freed.
    pub(super) fn retire(&mut self, mut old: Db) {
        self.keep_huge_of(&mut old);
        if old.table.is_empty() {
            return;
        }
        let drain = old.table.into_drain();
        match &mut self.snapshot {
            Some(snapshot) if old.walk.is_some() && snapshot.writer.is_some() => {
                snapshot.flushed.push_back((old.cut_db, drain));
            }
            _ => self.trash.push_back(Trash::Table(drain)),
        }
    }

    /// Tables that the snapshot holds on to after their databases were emptied: entries in them.
    pub(super) fn flushed_len(&self) -> usize {
        let flushed = self.snapshot.iter().flat_map(|snapshot| &snapshot.flushed);
        let adopted: usize = self.snapshot.iter().map(|snapshot| snapshot.huge.adopted_len()).sum();
        adopted + flushed.map(|(_, drain)| drain.len()).sum::<usize>()
    }

    /// Puts another dataset in this one's place, in constant time. What was here is freed in slices; a snapshot of it that
    /// is under way is given up. Whoever watches any key sees a change.
    ///
    /// # Panics
    /// If the other has another number of databases, or a snapshot of its own.
    pub fn replace_with(&mut self, mut successor: Keyspace) {
        assert_eq!(self.databases(), successor.databases(), "datasets of one node");
        assert!(successor.snapshot.is_none(), "nobody has seen the successor");
        self.discard_kept();
        self.snapshot = None;
        self.replacements += 1;
        self.forget_own_expiries();
        std::mem::swap(&mut self.dbs, &mut successor.dbs);
        // Its entries carry its own mark, and no snapshot is under way that would need another.
        self.epoch = successor.epoch;
        self.bury(successor);
        for db in 0..self.databases() as u16 {
            self.watches.touch_where(db, |_| true);
        }
    }

    /// Frees another dataset in slices.
    pub fn bury(&mut self, mut other: Keyspace) {
        self.trash.append(&mut other.trash);
        for db in Vec::from(std::mem::take(&mut other.dbs)) {
            if !db.table.is_empty() {
                self.trash.push_back(Trash::Table(db.table.into_drain()));
            }
        }
    }

    /// Every entry that a snapshot does not owe carries the epoch's mark. For assertions: a key about to be reported as
    /// changed must not be owed any more.
    pub(super) fn is_preserved(&self, db: u16, key: &[u8]) -> bool {
        let found = self.db(db).table.find(self.hash(key), key);
        found.is_none_or(|entry| entry.mark() == self.epoch)
    }

    /// Adds a key that a file or another node brought; false if there is one already. `expiry_ms` since the Unix epoch;
    /// `lru` is the access clock, see [`crate::command::AccessClock::fresh`].
    ///
    /// # Panics
    /// If the value is none that a key can hold.
    pub fn load_key(
        &mut self,
        db: u16,
        key: &[u8],
        mut value: OwnedValue<Object>,
        expiry_ms: Option<u64>,
        lru: u32,
    ) -> bool {
        if self.db(db).table.find(self.hash(key), key).is_some() {
            self.discard_owned(value);
            return false;
        }
        let mut entry = KeyEntry::with_expiry(key, storable(&mut value), expiry_ms);
        entry.set_lru(lru);
        self.attach(db, entry);
        true
    }
}

/// What a look at an entry costs that was written before, in bytes that are copied in the same time.
const VISIT_EFFORT_BYTES: usize = 64;

/// A value that was read from outside, to be stored: a string in the form that the keyspace keeps it in.
///
/// # Panics
/// If it is none that a key can hold.
pub fn storable(value: &mut OwnedValue<Object>) -> NewValue<'_, Object> {
    if let OwnedValue::Str(text) = value {
        if let Some(number) = small_integer(text) {
            *value = OwnedValue::Int(number);
        } else if text.len() > INLINE_MAX_LEN_BYTES {
            let text = Bytes::from(std::mem::take(text));
            *value = OwnedValue::Boxed(Box::new(Object::Str(text)));
        }
    }
    match value {
        OwnedValue::Str(text) => NewValue::Str(text),
        OwnedValue::Int(number) => NewValue::Int(*number),
        value => match std::mem::replace(value, OwnedValue::None) {
            OwnedValue::Boxed(object) => NewValue::Boxed(object),
            _ => unreachable!("a key holds a string or a collection"),
        },
    }
}

#[cfg(test)]
mod tests;
