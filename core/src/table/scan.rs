//! Walks in hash order: SCAN, the expiry sweep, the snapshot walk, sampling, freeing.
//!
//! A position is a hash: everything with a smaller hash is behind it. Positions between calls always lie where one tag
//! ends and the next begins, at the resolution of that moment. A later, coarser tag window (after merging) may hold
//! entries from both sides of a position; those are told apart by their full hash. So a walk visits every entry that
//! is present throughout exactly once, whatever happens between its calls.

use super::directory::Segments;
use super::segment::{self, EMPTY, Segment};
use super::{Entry, EntryRef, Table};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

/// Segments a call visits at most, should they be empty or have nothing due.
const MAX_SEGMENTS: usize = 128;
/// Segments whose bounds one call of [`Table::next_due`] reads: all of a group, up to several hundred million entries.
const MAX_BOUNDS: usize = 2048;
/// Entries whose blocks are asked for ahead of a visit.
const AHEAD: usize = 6;

/// What a visitor wants done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Remove,
}

/// The answer of [`Table::next_due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Something may be due in the segment that starts here.
    At(u64),
    /// Nothing up to here; ask again from here when there is time.
    Resume(u64),
    /// Nothing from the position asked for to the end.
    Nothing,
}

/// First hash behind the segment of `position`; 0 behind the last one.
fn segment_end(segment: Segment, position: u64) -> u64 {
    match segment.depth() {
        0 => 0,
        depth => (position >> (64 - depth)).wrapping_add(1) << (64 - depth),
    }
}

/// First hash of the segment of `position`.
fn segment_start(segment: Segment, position: u64) -> u64 {
    match segment.depth() {
        0 => 0,
        depth => position >> (64 - depth) << (64 - depth),
    }
}

/// First hash with `tag` in the segment of `position`.
fn tag_start(segment: Segment, position: u64, tag: u64) -> u64 {
    let window = segment.depth() & !3;
    let prefix = if window == 0 { 0 } else { position >> (64 - window) << (64 - window) };
    prefix | (tag << (64 - segment::TAG_BITS)) >> window
}

impl<T> Table<T> {
    /// Prefetches the entry some slots behind `index`, if there is one.
    #[inline]
    fn prefetch_ahead(segment: Segment, index: usize) {
        let ahead = index + AHEAD;
        if ahead < segment.slot_count() {
            // An empty slot gives a meaningless address, which a prefetch may have.
            segment::prefetch(std::ptr::without_provenance(segment::address_in(segment.get(ahead))));
        }
    }

    /// Whether the entry of `word` lies before `position`, which may fall within a tag.
    fn is_before(&self, segment: Segment, word: u64, position: u64) -> bool {
        segment::tag_in(word) == segment.tag(position)
            && tag_start(segment, position, segment.tag(position)) != position
            // SAFETY: the slot owns the entry while self is borrowed.
            && self.hash_key.hash(unsafe { Self::entry_ref(word) }.key()) < position
    }

    /// Visits some `count` entries from `cursor` on (0 to start), all with one hash at most more. Returns the cursor for
    /// the next call, 0 when done. An entry that is present from the first call to the last is visited exactly once.
    /// Cursors of any origin are safe; the work of a call is bounded by `count` and a constant.
    pub fn scan(&self, cursor: u64, count: usize, mut visit: impl FnMut(EntryRef<'_, T>)) -> u64 {
        let mut position = cursor;
        let mut left = count.max(1);
        for _ in 0..MAX_SEGMENTS {
            let Some(segment) = self.directory.find(position) else { return 0 };
            let mut last_tag = None;
            for index in segment.lower_bound(segment.tag(position))..segment.slot_count() {
                let word = segment.get(index);
                if word == EMPTY {
                    continue;
                }
                let tag = segment::tag_in(word);
                if left == 0 && last_tag != Some(tag) {
                    return tag_start(segment, position, tag);
                }
                Self::prefetch_ahead(segment, index);
                if self.is_before(segment, word, position) {
                    continue;
                }
                last_tag = Some(tag);
                left = left.saturating_sub(1);
                // SAFETY: the slot owns the entry while self is borrowed.
                visit(unsafe { Self::entry_ref(word) });
            }
            position = segment_end(segment, position);
            if position == 0 || left == 0 {
                return position;
            }
        }
        position
    }

    /// Visits some `count` entries from `position` on, in hash order, with the right to change and to remove them (a
    /// visitor must not exchange the key). Returns the next position, 0 when done; as [`Table::scan`] otherwise. A call
    /// with a `count` of 1024 or more finishes at least one segment, and so brings its expiry bound up to date.
    pub fn retain_slice(
        &mut self,
        position: u64,
        count: usize,
        mut visit: impl FnMut(&mut Entry<T>) -> Verdict,
    ) -> u64 {
        let mut position = position;
        let mut left = count.max(1);
        for _ in 0..MAX_SEGMENTS {
            let Some(segment) = self.directory.find(position) else { return 0 };
            let len_before = segment.len();
            let next = self.retain_in_segment(segment, position, &mut left, &mut visit);
            let removed = len_before - segment.len();
            if removed > 0 && (segment.is_sparse() || self.len == 0) {
                self.give_room(position);
            }
            position = next;
            if position == 0 || left == 0 {
                return position;
            }
        }
        position
    }

    fn retain_in_segment(
        &mut self,
        segment: Segment,
        position: u64,
        left: &mut usize,
        visit: &mut impl FnMut(&mut Entry<T>) -> Verdict,
    ) -> u64 {
        let mut index = segment.lower_bound(segment.tag(position));
        let mut last_tag = None;
        let mut min_expiry_ms = u64::MAX;
        while index < segment.slot_count() {
            let word = segment.get(index);
            if word == EMPTY {
                index += 1;
                continue;
            }
            let tag = segment::tag_in(word);
            if *left == 0 && last_tag != Some(tag) {
                return tag_start(segment, position, tag);
            }
            Self::prefetch_ahead(segment, index);
            if self.is_before(segment, word, position) {
                index += 1;
                continue;
            }
            last_tag = Some(tag);
            *left = left.saturating_sub(1);
            // SAFETY: the slot keeps owning the entry, unless the verdict takes it away below.
            let mut entry = ManuallyDrop::new(unsafe { Self::entry_owned(word) });
            let mut guard = super::SlotGuard { entry: &mut entry, segment, index };
            let verdict = visit(guard.entry_mut());
            drop(guard);
            match verdict {
                Verdict::Keep => {
                    if let Some(ms) = entry.expiry_ms() {
                        min_expiry_ms = min_expiry_ms.min(ms);
                        if ms < segment.min_expiry_ms() {
                            segment.set_min_expiry_ms(ms);
                            self.directory.note_expiry(position, ms);
                        }
                    }
                    index += 1;
                }
                Verdict::Remove => {
                    segment.remove_at(index);
                    self.len -= 1;
                    drop(ManuallyDrop::into_inner(entry));
                }
            }
        }
        if position == segment_start(segment, position) {
            segment.set_min_expiry_ms(min_expiry_ms);
        }
        segment_end(segment, position)
    }

    /// Where, from `position` on, the next segment begins that may hold an entry expiring at or before `now_ms`. Looks at
    /// a bounded number of segments, and only at those of groups that may hold one.
    pub fn next_due(&mut self, position: u64, now_ms: u64) -> Due {
        let mut position = position;
        let mut seen = 0;
        loop {
            if self.directory.find(position).is_none() {
                return Due::Nothing;
            }
            let group = self.directory.group_index(position);
            let from_start = position == self.directory.group_start(group);
            let mut min_expiry_ms = u64::MAX;
            if self.directory.groups()[group].min_expiry_ms <= now_ms {
                loop {
                    let Some(segment) = self.directory.find(position) else { return Due::Nothing };
                    if segment.min_expiry_ms() <= now_ms {
                        return Due::At(position);
                    }
                    if seen == MAX_BOUNDS {
                        return Due::Resume(position);
                    }
                    seen += 1;
                    min_expiry_ms = min_expiry_ms.min(segment.min_expiry_ms());
                    position = segment_end(segment, position);
                    if position == 0 || self.directory.group_index(position) != group {
                        break;
                    }
                }
                if from_start {
                    let start = self.directory.group_start(group);
                    self.directory.group_mut(start).min_expiry_ms = min_expiry_ms;
                }
            }
            if group + 1 == self.directory.groups().len() {
                return Due::Nothing;
            }
            position = self.directory.group_start(group + 1);
        }
    }

    /// An entry chosen at random, all with the same chance; `None` if the table is empty. In a table most of which was
    /// removed a moment ago the chances may differ.
    pub fn random(&self, rng: &mut fastrand::Rng) -> Option<EntryRef<'_, T>> {
        const TRIALS: usize = 64;
        if self.len == 0 {
            return None;
        }
        let max_depth = self.directory.max_depth();
        let lone = self.directory.groups().len() == 1 && max_depth == 0;
        for _ in 0..TRIALS {
            let position = rng.u64(..);
            let segment = self.directory.find(position)?;
            // Shallow segments are hit more often: let only their first place count, so every segment has one chance.
            let depth = segment.depth();
            if depth < max_depth && (position << depth) >> (64 - (max_depth - depth)) != 0 {
                continue;
            }
            // All slots of the table have the same chance if missing ones count as empty.
            let slots = segment.slot_count();
            let index = rng.usize(..if lone { slots } else { slots.max(segment::SPLIT_WORDS) });
            if index < slots && segment.get(index) != EMPTY {
                // SAFETY: the slot owns the entry while self is borrowed.
                return Some(unsafe { Self::entry_ref(segment.get(index)) });
            }
        }
        self.random_near(rng.u64(..))
    }

    /// The first entry behind `position`, around the end if need be.
    fn random_near(&self, position: u64) -> Option<EntryRef<'_, T>> {
        let mut position = position;
        loop {
            let segment = self.directory.find(position)?;
            let first = segment.lower_bound(segment.tag(position));
            let mut words = (first..segment.slot_count()).map(|index| segment.get(index));
            if let Some(word) = words.find(|&word| word != EMPTY) {
                // SAFETY: the slot owns the entry while self is borrowed.
                return Some(unsafe { Self::entry_ref(word) });
            }
            // Not empty (see `random`), so the walk around meets an entry.
            position = segment_end(segment, position);
        }
    }

    /// All entries in hash order.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { table: self, segment: self.directory.find(0), position: 0, index: 0 }
    }

    /// Turns the table into an iterator over its entries that frees as it goes: what remains can be freed slice by slice.
    pub fn into_drain(mut self) -> Drain<T> {
        Drain::of(&mut self)
    }
}

impl<'a, T> IntoIterator for &'a Table<T> {
    type Item = EntryRef<'a, T>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

/// See [`Table::iter`].
pub struct Iter<'a, T> {
    table: &'a Table<T>,
    /// `None` behind the last segment.
    segment: Option<Segment>,
    position: u64,
    index: usize,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = EntryRef<'a, T>;

    fn next(&mut self) -> Option<EntryRef<'a, T>> {
        loop {
            let segment = self.segment?;
            while self.index < segment.slot_count() {
                let word = segment.get(self.index);
                Table::<T>::prefetch_ahead(segment, self.index);
                self.index += 1;
                if word != EMPTY {
                    // SAFETY: the slot owns the entry while the table is borrowed for 'a.
                    return Some(unsafe { Table::entry_ref(word) });
                }
            }
            self.position = segment_end(segment, self.position);
            self.index = 0;
            self.segment = if self.position == 0 { None } else { self.table.directory.find(self.position) };
        }
    }
}

/// See [`Table::into_drain`]. Dropping it frees the rest at once.
pub struct Drain<T> {
    segments: Segments,
    segment: Option<Segment>,
    index: usize,
    len: usize,
    owns: PhantomData<Entry<T>>,
}

impl<T> Drain<T> {
    /// Takes everything out of `table`, which is empty afterwards.
    pub(super) fn of(table: &mut Table<T>) -> Self {
        let len = std::mem::take(&mut table.len);
        table.segment_bytes = 0;
        Drain { segments: table.directory.take_segments(), segment: None, index: 0, len, owns: PhantomData }
    }

    /// Frees up to `count` entries; true when there are none left.
    pub fn free_some(&mut self, count: usize) -> bool {
        self.by_ref().take(count).for_each(drop);
        self.len == 0
    }
}

impl<T> Iterator for Drain<T> {
    type Item = Entry<T>;

    fn next(&mut self) -> Option<Entry<T>> {
        loop {
            if let Some(segment) = self.segment {
                while self.index < segment.slot_count() {
                    Table::<T>::prefetch_ahead(segment, self.index);
                    let word = segment.get(self.index);
                    self.index += 1;
                    if word != EMPTY {
                        self.len -= 1;
                        // SAFETY: this slot is passed once, and its segment is freed without touching entries.
                        return Some(unsafe { Table::entry_owned(word) });
                    }
                }
                self.segment = None;
                segment.free();
            }
            self.segment = Some(self.segments.next()?);
            self.index = 0;
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl<T> ExactSizeIterator for Drain<T> {}

impl<T> Drop for Drain<T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}
