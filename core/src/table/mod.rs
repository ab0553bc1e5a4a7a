//! The hash table of keyspace slices, large hashes, sets and sorted sets: from key bytes to a compact [`Entry`].
//!
//! The table is ordered by hash. A [`directory`] maps the top bits of the hash to [`segment`]s of at most some 950
//! entries, each a small array that grows in steps of the allocator's size classes and splits in two when it is full.
//! There is no rehash: the longest single step lays one segment out anew, a few microseconds. And since the order of
//! hashes is fixed for ever, a position in hash space is a cursor that survives any change between two calls ([`scan`]).
//!
//! Cost of a lookup at any size: one cache line of slots (sometimes its neighbour), and the entry. Memory: a slot takes
//! 8 bytes and loads stay between some 75 and 94 %.

mod directory;
mod entry;
mod hash;
mod scan;
mod segment;
#[cfg(test)]
mod tests;

use directory::Directory;
use segment::{EMPTY, Segment};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;

pub use entry::{
    Entry, EntryRef, Kind, MAX_LEN_BYTES, NewValue, OwnedValue, ValueMut, ValueRef, size_class_bytes,
};
pub use hash::{HashKey, hash_bytes};
pub use scan::{Drain, Due, Iter, Verdict};

/// Most entries of two neighbours that become one; half of what makes a segment split, so it does not swing.
const MERGE_LEN: usize = 460;

/// A map from keys to [`Entry`]s. The caller supplies each key's hash, from the table's own [`HashKey`].
pub struct Table<T> {
    directory: Directory,
    len: usize,
    segment_bytes: usize,
    hash_key: HashKey,
    owns: PhantomData<Entry<T>>,
}

/// An entry found for change. It reads as an [`Entry`]; every change goes through to the table at once.
pub struct EntryMut<'a, T> {
    /// The entry that the slot owns; written back whenever its address may have changed.
    entry: ManuallyDrop<Entry<T>>,
    segment: Segment,
    index: usize,
    group_min_expiry_ms: &'a mut u64,
    borrows: PhantomData<&'a mut Entry<T>>,
}

/// The place where a key would go.
pub struct Vacant<'a, T> {
    table: &'a mut Table<T>,
    hash: u64,
    /// Where in the segment; `None` in an empty table.
    place: Option<(Segment, usize)>,
}

/// The result of [`Table::lookup`].
pub enum Lookup<'a, T> {
    Found(EntryMut<'a, T>),
    Vacant(Vacant<'a, T>),
}

impl<T> Table<T> {
    /// An empty table; it allocates nothing before the first insertion.
    pub fn new(hash_key: HashKey) -> Self {
        Table { directory: Directory::default(), len: 0, segment_bytes: 0, hash_key, owns: PhantomData }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hash this table wants for `key`.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hash_key.hash(key)
    }

    #[inline]
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// Bytes of directory and segments; the entries' blocks are not counted (sum up [`Entry::heap_bytes`]).
    pub fn heap_bytes(&self) -> usize {
        self.segment_bytes + self.directory.heap_bytes()
    }

    /// Starts loading the slots for `hash`, for a lookup some dozens of nanoseconds later.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        if let Some(segment) = self.directory.find(hash) {
            segment.prefetch_home(hash);
        }
    }

    /// Starts loading the entry for `hash`, if there is one; call it when [`Table::prefetch`] has taken effect.
    #[inline]
    pub fn prefetch_entry(&self, hash: u64) {
        if let Some(segment) = self.directory.find(hash) {
            let tag = segment.tag(hash);
            let word = segment.get(segment.lower_bound(tag));
            if segment::tag_in(word) == tag {
                // Header, key and a short value lie in two cache lines.
                let address = segment::address_in(word);
                segment::prefetch(std::ptr::without_provenance(address));
                segment::prefetch(std::ptr::without_provenance(address + 64));
            }
        }
    }

    /// The slot of `key`, or else the index where it goes; `None` in an empty table.
    #[inline]
    fn probe(&self, hash: u64, key: &[u8]) -> Option<(Segment, usize, bool)> {
        let segment = self.directory.find(hash)?;
        // SAFETY: a word in use owns an entry of this table.
        Some(match segment.search(segment.tag(hash), |word| unsafe { Self::entry_ref(word) }.key_is(key)) {
            Ok(index) => (segment, index, true),
            Err(index) => (segment, index, false),
        })
    }

    /// # Safety
    /// `word` is in a slot of this table and stays there for 'a.
    #[inline]
    unsafe fn entry_ref<'a>(word: u64) -> EntryRef<'a, T> {
        debug_assert!(word != EMPTY);
        // SAFETY: the slot owns an entry whose address came from `Entry::into_address`.
        unsafe { EntryRef::from_address(segment::address_in(word)) }
    }

    /// # Safety
    /// The caller owns the word: it was taken out of its slot, or the result is not dropped.
    #[inline]
    unsafe fn entry_owned(word: u64) -> Entry<T> {
        debug_assert!(word != EMPTY);
        // SAFETY: the address came from `Entry::into_address`; ownership as the caller promises.
        unsafe { Entry::from_address(segment::address_in(word)) }
    }

    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<EntryRef<'_, T>> {
        let (segment, index, found) = self.probe(hash, key)?;
        // SAFETY: the slot is in use, and the table is borrowed as long as the result.
        found.then(|| unsafe { Self::entry_ref(segment.get(index)) })
    }

    #[inline]
    pub fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<EntryMut<'_, T>> {
        let (segment, index, found) = self.probe(hash, key)?;
        found.then(|| self.entry_mut(hash, segment, index))
    }

    #[inline]
    fn entry_mut(&mut self, hash: u64, segment: Segment, index: usize) -> EntryMut<'_, T> {
        EntryMut {
            // SAFETY: the slot is in use and keeps owning the entry: ManuallyDrop does not drop it.
            entry: ManuallyDrop::new(unsafe { Self::entry_owned(segment.get(index)) }),
            segment,
            index,
            group_min_expiry_ms: &mut self.directory.group_mut(hash).min_expiry_ms,
            borrows: PhantomData,
        }
    }

    /// Finds `key` or the place to insert it, with one probe.
    #[inline]
    pub fn lookup(&mut self, hash: u64, key: &[u8]) -> Lookup<'_, T> {
        match self.probe(hash, key) {
            Some((segment, index, true)) => Lookup::Found(self.entry_mut(hash, segment, index)),
            Some((segment, index, false)) => {
                Lookup::Vacant(Vacant { table: self, hash, place: Some((segment, index)) })
            }
            None => Lookup::Vacant(Vacant { table: self, hash, place: None }),
        }
    }

    /// Adds an entry whose key is not in the table yet.
    #[inline]
    pub fn insert(&mut self, hash: u64, entry: Entry<T>) {
        debug_assert!(self.find(hash, entry.key()).is_none(), "the key is in the table already");
        let place =
            self.directory.find(hash).map(|segment| (segment, segment.upper_bound(segment.tag(hash))));
        self.insert_at(hash, place, entry);
    }

    #[inline]
    fn insert_at(&mut self, hash: u64, place: Option<(Segment, usize)>, entry: Entry<T>) {
        debug_assert_eq!(hash, self.hash(entry.key()));
        let expiry_ms = entry.expiry_ms();
        let address = entry.into_address();
        let segment = match place {
            Some((segment, index))
                if segment.len() < segment.max_len()
                    && segment.insert_at(index, segment::pack(segment.tag(hash), address)).is_ok() =>
            {
                segment
            }
            _ => self.insert_slowly(hash, address),
        };
        self.len += 1;
        if let Some(ms) = expiry_ms {
            segment.set_min_expiry_ms(segment.min_expiry_ms().min(ms));
            self.directory.note_expiry(hash, ms);
        }
    }

    #[cold]
    fn insert_slowly(&mut self, hash: u64, address: usize) -> Segment {
        loop {
            let segment = self.make_room(hash);
            let tag = segment.tag(hash);
            if segment.len() < segment.max_len()
                && segment.insert_at(segment.upper_bound(tag), segment::pack(tag, address)).is_ok()
            {
                return segment;
            }
        }
    }

    /// Takes the entry of `key` out.
    #[inline]
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> Option<Entry<T>> {
        let (segment, index, found) = self.probe(hash, key)?;
        if !found {
            return None;
        }
        let word = segment.remove_at(index);
        self.len -= 1;
        if segment.is_sparse() || self.len == 0 {
            self.give_room(hash);
        }
        // SAFETY: the word was just taken out of its slot.
        Some(unsafe { Self::entry_owned(word) })
    }

    /// Tells the table that an entry with `hash` may expire as early as `ms` (ms since the Unix epoch). Needed only for
    /// changes that did not go through [`EntryMut::set_expiry`].
    pub fn note_expiry(&mut self, hash: u64, ms: u64) {
        if let Some(segment) = self.directory.find(hash) {
            segment.set_min_expiry_ms(segment.min_expiry_ms().min(ms));
            self.directory.note_expiry(hash, ms);
        }
    }

    /// Changes the structure so that the segment of `hash` can take one entry more, or gets closer to that.
    fn make_room(&mut self, hash: u64) -> Segment {
        let Some(segment) = self.directory.find(hash) else {
            let segment = self.build(0, 1, 0, None, u64::MAX, &[]);
            self.directory = Directory::with_segment(segment);
            return segment;
        };
        let mut words = Vec::with_capacity(segment.len());
        segment.collect_into(&mut words);
        if segment.len() < segment.max_len() {
            // The end overflowed: fewer homes leave more slots behind them. Homes must not get scarce, though.
            let range = segment.range() - (segment.range() / 64 + 1).min(segment.range() - 1);
            if range * 31 > segment.len() * 30 || segment.words_above() > segment::MAX_WORDS {
                return self.rebuild(hash, segment, segment.words(), Some(range), &words);
            }
        }
        let above = segment.words_above();
        if above <= segment::SPLIT_WORDS || segment.depth() == segment::MAX_DEPTH {
            assert!(
                above <= segment::MAX_WORDS,
                "thousands of keys agree in most of their hash: broken hash"
            );
            return self.rebuild(hash, segment, above, None, &words);
        }
        self.split(hash, segment, words)
    }

    /// Builds a segment for `len` entries (at least), or of `words` words if that is not 0.
    fn build(
        &mut self,
        words: usize,
        len: usize,
        depth: u32,
        range: Option<usize>,
        min_expiry_ms: u64,
        sorted: &[u64],
    ) -> Segment {
        let words = if words == 0 { segment::words_for(len, len / 32) } else { words };
        let segment = Segment::build(words, depth, range, min_expiry_ms, sorted);
        self.segment_bytes += segment.heap_bytes();
        segment
    }

    fn free(&mut self, segment: Segment) {
        self.segment_bytes -= segment.heap_bytes();
        segment.free();
    }

    fn rebuild(
        &mut self,
        hash: u64,
        old: Segment,
        words: usize,
        range: Option<usize>,
        sorted: &[u64],
    ) -> Segment {
        let new = self.build(words, sorted.len(), old.depth(), range, old.min_expiry_ms(), sorted);
        self.directory.place(hash, new);
        self.free(old);
        new
    }

    fn split(&mut self, hash: u64, old: Segment, mut words: Vec<u64>) -> Segment {
        let depth = old.depth() + 1;
        // The new depth's last shared bit parts the halves; it lies in the old tags.
        let half_bit = 1 << (64 - depth);
        let half_tag_bit = old.tag(half_bit);
        let middle = words.partition_point(|&word| segment::tag_in(word) & half_tag_bit == 0);
        let (low, high) = words.split_at_mut(middle);
        if !segment::same_window(old.depth(), depth) {
            self.cut_new_tags(depth, low);
            self.cut_new_tags(depth, high);
        }
        let low = self.build(0, low.len(), depth, None, old.min_expiry_ms(), low);
        let high = self.build(0, high.len(), depth, None, old.min_expiry_ms(), high);
        self.directory.place_halves(hash, low, high);
        self.free(old);
        if hash & half_bit == 0 { low } else { high }
    }

    /// Cuts the tags of `words` anew for `depth`, and sorts by them.
    fn cut_new_tags(&self, depth: u32, words: &mut [u64]) {
        // Every entry must be read. Asking for them all ahead makes that some 20 ns each.
        const AHEAD: usize = 12;
        for index in 0..words.len() {
            if let Some(&ahead) = words.get(index + AHEAD) {
                segment::prefetch(std::ptr::without_provenance(segment::address_in(ahead)));
            }
            let word = words[index];
            // SAFETY: the segment being split still owns the entry.
            let hash = self.hash_key.hash(unsafe { Self::entry_ref(word) }.key());
            words[index] = segment::pack(segment::tag_of(depth, hash), segment::address_in(word));
        }
        // Almost sorted already: only entries with equal old tags may have to change places.
        words.sort_unstable();
    }

    /// Gives memory back around `hash`, where entries went away: a smaller block, or one segment instead of two.
    #[cold]
    fn give_room(&mut self, hash: u64) {
        if self.len == 0 {
            for segment in self.directory.take_segments() {
                segment.free();
            }
            self.segment_bytes = 0;
            return;
        }
        let Some(mut segment) = self.directory.find(hash) else { return };
        while segment.depth() > self.directory.root_bits() {
            let half_bit = 1 << (64 - segment.depth());
            let Some(other) = self.directory.find(hash ^ half_bit) else { break };
            let len = segment.len() + other.len();
            if other.depth() != segment.depth() || len > MERGE_LEN {
                break;
            }
            let (low, high) = if hash & half_bit == 0 { (segment, other) } else { (other, segment) };
            segment = self.merge(hash, half_bit, low, high);
        }
        if segment.is_sparse() {
            let words = segment::words_for(segment.len(), segment.len() / 32 + 1);
            if words < segment.words() {
                let mut sorted = Vec::with_capacity(segment.len());
                segment.collect_into(&mut sorted);
                self.rebuild(hash, segment, words, None, &sorted);
            }
        }
    }

    fn merge(&mut self, hash: u64, half_bit: u64, low: Segment, high: Segment) -> Segment {
        let depth = low.depth() - 1;
        let mut words = Vec::with_capacity(low.len() + high.len());
        low.collect_into(&mut words);
        let middle = words.len();
        high.collect_into(&mut words);
        if !segment::same_window(depth, depth + 1) {
            for (index, word) in words.iter_mut().enumerate() {
                let prefix = if index < middle { hash & !half_bit } else { hash | half_bit };
                let tag = segment::widen_tag(depth + 1, prefix, segment::tag_in(*word));
                *word = segment::pack(tag, segment::address_in(*word));
            }
        }
        let min_expiry_ms = low.min_expiry_ms().min(high.min_expiry_ms());
        let merged = self.build(0, words.len(), depth, None, min_expiry_ms, &words);
        self.directory.place_merged(hash, merged);
        self.free(low);
        self.free(high);
        merged
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        drop(Drain::of(self));
    }
}

impl<'a, T> EntryMut<'a, T> {
    /// Applies `change` and writes the entry's address back to its slot, also when a destructor in it panics.
    #[inline]
    fn change<R>(&mut self, change: impl FnOnce(&mut Entry<T>) -> R) -> R {
        let mut guard = SlotGuard { entry: &mut self.entry, segment: self.segment, index: self.index };
        change(guard.entry_mut())
    }

    /// See [`Entry::value_mut`].
    #[inline]
    pub fn value_mut(&mut self) -> ValueMut<'_, T> {
        self.entry.value_mut()
    }

    /// The value, borrowed as long as the table.
    #[inline]
    pub fn into_value_mut(mut self) -> ValueMut<'a, T> {
        // SAFETY: the table, which owns the entry, is borrowed mutably for 'a, and this handle ends here.
        unsafe { self.entry.value_mut_unbound() }
    }

    /// The entry, borrowed as long as the table.
    #[inline]
    pub fn into_ref(self) -> EntryRef<'a, T> {
        // SAFETY: the slot is in use, and the table is borrowed for 'a.
        unsafe { Table::entry_ref(self.segment.get(self.index)) }
    }

    /// See [`Entry::set_value`].
    #[inline]
    pub fn set_value(&mut self, value: NewValue<'_, T>) {
        self.change(|entry| entry.set_value(value));
    }

    /// See [`Entry::take_value`].
    pub fn take_value(&mut self) -> OwnedValue<T> {
        self.change(Entry::take_value)
    }

    /// See [`Entry::set_expiry`]; the table's lower bounds follow.
    #[inline]
    pub fn set_expiry(&mut self, expiry_ms: Option<u64>) {
        self.change(|entry| entry.set_expiry(expiry_ms));
        if let Some(ms) = expiry_ms {
            self.segment.set_min_expiry_ms(self.segment.min_expiry_ms().min(ms));
            *self.group_min_expiry_ms = ms.min(*self.group_min_expiry_ms);
        }
    }

    /// See [`Entry::set_lru`].
    #[inline]
    pub fn set_lru(&mut self, clock: u32) {
        self.entry.set_lru(clock);
    }

    /// See [`Entry::set_mark`].
    #[inline]
    pub fn set_mark(&mut self, mark: bool) {
        self.entry.set_mark(mark);
    }

    /// Puts another entry with the same key in this one's place and returns this one.
    pub fn replace(&mut self, entry: Entry<T>) -> Entry<T> {
        assert!(entry.key() == self.entry.key(), "an entry is replaced by one with the same key");
        let expiry_ms = entry.expiry_ms();
        let old = self.change(|current| std::mem::replace(current, entry));
        if let Some(ms) = expiry_ms {
            self.segment.set_min_expiry_ms(self.segment.min_expiry_ms().min(ms));
            *self.group_min_expiry_ms = ms.min(*self.group_min_expiry_ms);
        }
        old
    }
}

impl<T> Deref for EntryMut<'_, T> {
    type Target = Entry<T>;

    #[inline]
    fn deref(&self) -> &Entry<T> {
        &self.entry
    }
}

/// While it lives the entry may change its address; the slot learns it at the end.
struct SlotGuard<'a, T> {
    entry: &'a mut ManuallyDrop<Entry<T>>,
    segment: Segment,
    index: usize,
}

impl<T> SlotGuard<'_, T> {
    #[inline]
    fn entry_mut(&mut self) -> &mut Entry<T> {
        self.entry
    }
}

impl<T> Drop for SlotGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let word = self.segment.get(self.index);
        self.segment.set(self.index, segment::replace_address(word, self.entry.address()));
    }
}

impl<T> Vacant<'_, T> {
    /// Adds the entry, whose key is the one that was looked up.
    #[inline]
    pub fn insert(self, entry: Entry<T>) {
        self.table.insert_at(self.hash, self.place, entry);
    }
}
