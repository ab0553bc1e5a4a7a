//! One segment: the entries of a contiguous range of hashes, in one small open-addressed array sorted by hash.
//!
//! A slot is one word: the entry's address (45 bits: 48, less the three that alignment leaves zero) below a 19-bit tag.
//! The tag is a window of the hash that starts at bit `depth & !3` (from the top), `depth` being the number of hash bits
//! that all entries of the segment share. So 16 to 19 bits of the tag discriminate, and the tag alone gives the home
//! slot: growing, shrinking and merging never touch an entry, and splitting does so only at every fourth doubling.
//!
//! Probing is linear and ordered: slots, empty ones left out, ascend by tag, and an entry stands at its home or in the
//! unbroken run behind it. An empty slot is all ones, so "stop here" is a single comparison: `slot >= tag << 45`.
//! There is no wrap-around: the homes leave a few slots free at the end (at least a window), and the last slot is always
//! empty. If the end overflows, the segment is laid out again with a smaller range.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

pub(super) const TAG_BITS: u32 = 19;
const ADDRESS_BITS: u32 = 64 - TAG_BITS;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const ALIGN_SHIFT: u32 = 3;
/// The empty slot; larger than every tag's smallest word.
pub(super) const EMPTY: u64 = u64::MAX;
/// The tag window moves in steps of this many bits of depth, less one as a mask.
const WINDOW_MASK: u32 = 3;
/// Deepest segment: full ones of this depth hold 2^26 * 960 entries together. It bounds the directory should a hash be
/// skewed, which a seeded one never is; such a segment may grow up to `MAX_WORDS` instead of splitting.
pub(super) const MAX_DEPTH: u32 = 26;
/// Words of the largest ordinary segment; a full one splits.
pub(super) const SPLIT_WORDS: usize = 1024;
/// Words of the largest segment at `MAX_DEPTH`, where splitting has ended.
pub(super) const MAX_WORDS: usize = 8192;
const MIN_WORDS: usize = 32;
/// Slots examined at once, from the home on; even at the highest load most lookups need no more. Measured: with 4 or 8 the
/// mispredicted ends cost more than the comparisons saved.
const WINDOW: usize = 16;
const HEADER_WORDS: usize = 2;

const RANGE_BITS: u32 = 13;
const DEPTH_BITS: u32 = 6;

/// A word for a slot.
#[inline]
pub(super) fn pack(tag: u64, address: usize) -> u64 {
    let address = address as u64;
    assert!(address >> 48 == 0 && address & ((1 << ALIGN_SHIFT) - 1) == 0, "entry address beyond 48 bits");
    let word = tag << ADDRESS_BITS | address >> ALIGN_SHIFT;
    debug_assert!(word != EMPTY);
    word
}

#[inline]
pub(super) fn tag_in(word: u64) -> u64 {
    word >> ADDRESS_BITS
}

#[inline]
pub(super) fn address_in(word: u64) -> usize {
    ((word & ADDRESS_MASK) << ALIGN_SHIFT) as usize
}

#[inline]
pub(super) fn replace_address(word: u64, address: usize) -> u64 {
    pack(tag_in(word), address)
}

/// The tag of `hash` in segments of `depth`. The largest tag falls to its neighbour, so that none equals an empty slot's.
#[inline]
pub(super) fn tag_of(depth: u32, hash: u64) -> u64 {
    ((hash << (depth & !WINDOW_MASK)) >> ADDRESS_BITS).min((1 << TAG_BITS) - 2)
}

/// Whether segments of both depths cut the same window from a hash, so that tags carry over.
pub(super) fn same_window(depth_a: u32, depth_b: u32) -> bool {
    depth_a & !WINDOW_MASK == depth_b & !WINDOW_MASK
}

/// The window that starts four bits earlier: the tag `tag` of a segment whose hashes start with `prefix_hash`.
pub(super) fn widen_tag(depth: u32, prefix_hash: u64, tag: u64) -> u64 {
    let from = depth & !WINDOW_MASK;
    debug_assert!(from > 0);
    tag_of(from - 1, prefix_hash & !(u64::MAX >> from) | (tag << ADDRESS_BITS) >> from)
}

/// Smallest class of block (in words) that is larger than `words`; the allocator's classes, so nothing is lost to it.
fn class_above(words: usize) -> usize {
    super::entry::size_class_bytes(words * 8 + 8) / 8
}

fn slots_in(words: usize) -> usize {
    words - HEADER_WORDS
}

/// Most entries in a block of `words`: 15/16 of its slots, less the guard at the end.
fn max_len_in(words: usize) -> usize {
    (slots_in(words) - 1) * 15 / 16
}

/// Smallest class that holds `len` entries with `slack` more to come.
pub(super) fn words_for(len: usize, slack: usize) -> usize {
    let mut words = MIN_WORDS;
    while max_len_in(words) < len + slack {
        words = class_above(words);
    }
    words
}

#[repr(C)]
struct Header {
    min_expiry_ms: u64,
    len: u32,
    slots: u32,
}
const _: () = assert!(size_of::<Header>() == HEADER_WORDS * 8 && align_of::<Header>() == 8);

/// A handle to a segment, packed for the directory: address (45 bits), range (13), depth (6). `Copy`: the directory owns
/// the block and the table frees it. All a lookup needs to know before it reads the slots is in this word.
///
/// Invariant: a handle in a directory addresses a live block; handles elsewhere do not outlive the next change of the
/// table's structure. Only this module and its siblings can hold one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment(u64);

/// The array has no room behind the given position: lay the segment out anew.
#[derive(Debug)]
pub(super) struct Overflow;

impl Segment {
    /// A segment of `words` with the slots `sorted` (ascending tags of `depth`), bounded below by `min_expiry_ms`.
    /// `range` is the wish for the number of homes; `None` is the best for the size.
    pub fn build(
        words: usize,
        depth: u32,
        range: Option<usize>,
        min_expiry_ms: u64,
        sorted: &[u64],
    ) -> Segment {
        let slots = slots_in(words);
        assert!(sorted.len() < slots && words <= MAX_WORDS && depth <= MAX_DEPTH);
        debug_assert!(sorted.is_sorted_by_key(|&word| tag_in(word)));
        let layout = Self::layout(slots);
        // SAFETY: the layout is not empty.
        let Some(block) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        let header = Header { min_expiry_ms, len: sorted.len() as u32, slots: slots as u32 };
        // SAFETY: the block has room for the header and `slots` words behind it; all ones is a word.
        unsafe {
            block.cast::<Header>().write(header);
            block.add(HEADER_WORDS * 8).write_bytes(0xFF, slots * 8);
        }
        let address = block.expose_provenance().get() as u64;
        assert!(address >> 48 == 0 && address & 7 == 0, "segment address beyond 48 bits");
        // About as many free slots at the end as overflow from the homes before it at the usual load.
        let mut range = range.unwrap_or(slots - (slots / 64 + 2)).clamp(1, slots - WINDOW);
        loop {
            let word = (address >> ALIGN_SHIFT) << (RANGE_BITS + DEPTH_BITS)
                | (range as u64) << DEPTH_BITS
                | depth as u64;
            let segment = Segment(word);
            if segment.fill(sorted) {
                return segment;
            }
            segment.slots_mut().fill(EMPTY);
            // At 1 every entry stands directly behind the one before, which always fits.
            assert!(range > 1);
            range = (range - (slots / 64 + 2).min(range - 1)).max(1);
        }
    }

    fn fill(self, sorted: &[u64]) -> bool {
        let slots = self.slots_mut();
        let mut next = 0;
        for &word in sorted {
            let at = self.home(tag_in(word)).max(next);
            if at + 1 >= slots.len() {
                return false;
            }
            slots[at] = word;
            next = at + 1;
        }
        true
    }

    /// Frees the block; entries in it are not touched.
    pub fn free(self) {
        let layout = Self::layout(self.slot_count());
        // SAFETY: the block is live (invariant) and was allocated with this layout.
        unsafe { dealloc(self.block().as_ptr(), layout) }
    }

    fn layout(slots: usize) -> Layout {
        Layout::from_size_align((slots + HEADER_WORDS) * 8, 8).expect("at most 64 KiB")
    }

    #[inline]
    fn block(self) -> NonNull<u8> {
        let address = (self.0 >> (RANGE_BITS + DEPTH_BITS) << ALIGN_SHIFT) as usize;
        // SAFETY: the address is that of a block, so not null.
        unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) }
    }

    /// Hash bits shared by all entries.
    #[inline]
    pub fn depth(self) -> u32 {
        (self.0 & ((1 << DEPTH_BITS) - 1)) as u32
    }

    #[inline]
    pub fn range(self) -> usize {
        (self.0 >> DEPTH_BITS) as usize & ((1 << RANGE_BITS) - 1)
    }

    #[inline]
    fn header(self) -> NonNull<Header> {
        self.block().cast()
    }

    #[inline]
    pub fn len(self) -> usize {
        // SAFETY: the block is live (invariant) and starts with its header.
        unsafe { (*self.header().as_ptr()).len as usize }
    }

    fn set_len(self, len: usize) {
        // SAFETY: as in `len`; tables change segments through &mut self only.
        unsafe { (*self.header().as_ptr()).len = len as u32 }
    }

    #[inline]
    pub fn slot_count(self) -> usize {
        // SAFETY: as in `len`.
        unsafe { (*self.header().as_ptr()).slots as usize }
    }

    /// No entry expires before this, ms since the Unix epoch; `u64::MAX` if none expires.
    #[inline]
    pub fn min_expiry_ms(self) -> u64 {
        // SAFETY: as in `len`.
        unsafe { (*self.header().as_ptr()).min_expiry_ms }
    }

    #[inline]
    pub fn set_min_expiry_ms(self, ms: u64) {
        // SAFETY: as in `set_len`.
        unsafe { (*self.header().as_ptr()).min_expiry_ms = ms }
    }

    pub fn words(self) -> usize {
        self.slot_count() + HEADER_WORDS
    }

    pub fn heap_bytes(self) -> usize {
        self.words() * 8
    }

    pub fn max_len(self) -> usize {
        max_len_in(self.words())
    }

    /// Words of the next larger class.
    pub fn words_above(self) -> usize {
        class_above(self.words())
    }

    /// Whether so few entries are left that a smaller block would do.
    #[inline]
    pub fn is_sparse(self) -> bool {
        let slots = self.slot_count();
        self.len() * 16 < slots * 11 && slots > slots_in(MIN_WORDS)
    }

    #[inline]
    fn slot_ptr(self, index: usize) -> NonNull<u64> {
        // SAFETY: slots lie behind the header; callers keep `index` below the slot count.
        unsafe { self.block().cast::<u64>().add(HEADER_WORDS + index) }
    }

    #[inline]
    pub fn get(self, index: usize) -> u64 {
        debug_assert!(index < self.slot_count());
        // SAFETY: the block is live and all slots are initialized. Probes start at a home and stop at an empty slot at
        // the latest, and the last slot is always empty, so `index` is below the slot count.
        unsafe { self.slot_ptr(index).read() }
    }

    #[inline]
    pub fn set(self, index: usize, word: u64) {
        debug_assert!(index + 1 < self.slot_count());
        // SAFETY: as in `get`; tables change segments through &mut self only.
        unsafe { self.slot_ptr(index).write(word) }
    }

    /// All slots, for changes of many at once. The borrow is the caller's to keep short and alone.
    fn slots_mut<'a>(self) -> &'a mut [u64] {
        // SAFETY: the slots are initialized; callers are functions of this module that hold the only access while a
        // table is borrowed mutably (or the segment is not in a table yet), and do not let the slice escape.
        unsafe { NonNull::slice_from_raw_parts(self.slot_ptr(0), self.slot_count()).as_mut() }
    }

    /// The tag of a hash that belongs here.
    #[inline]
    pub fn tag(self, hash: u64) -> u64 {
        tag_of(self.depth(), hash)
    }

    /// Home slot: monotone in the tag (a multiplication maps the tag's free bits onto the range).
    #[inline]
    pub fn home(self, tag: u64) -> usize {
        let aligned = (tag << (self.depth() & WINDOW_MASK)) & ((1 << TAG_BITS) - 1);
        (aligned as usize * self.range()) >> TAG_BITS
    }

    /// Compares the window at `home` with `tag`: a bit for each slot with the same tag, and for each one behind them (with
    /// a larger tag, or empty). No branch depends on what is found, so the processor can run ahead to the next lookup.
    #[inline]
    pub fn window(self, home: usize, tag: u64) -> (u32, u32) {
        debug_assert!(home + WINDOW <= self.slot_count());
        let slots = self.slot_ptr(home).as_ptr();
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE2 is part of x86-64. A home is below the range, which leaves a window of slots behind it.
        unsafe {
            use std::arch::x86_64::*;
            let wanted = _mm_set1_epi32(tag as i32);
            let quarter = |at: usize| {
                let low = _mm_loadu_ps(slots.add(at).cast());
                let high = _mm_loadu_ps(slots.add(at + 2).cast());
                // The upper halves of four slots; a tag is their upper 19 bits.
                let halves = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(low, high));
                let tags = _mm_srli_epi32::<{ (32 - TAG_BITS) as i32 }>(halves);
                (_mm_cmpeq_epi32(tags, wanted), _mm_cmpgt_epi32(tags, wanted))
            };
            let half = |at: usize| {
                let ((same_a, above_a), (same_b, above_b)) = (quarter(at), quarter(at + 4));
                (_mm_packs_epi32(same_a, same_b), _mm_packs_epi32(above_a, above_b))
            };
            let ((same_low, above_low), (same_high, above_high)) = (half(0), half(8));
            let same = _mm_movemask_epi8(_mm_packs_epi16(same_low, same_high));
            let above = _mm_movemask_epi8(_mm_packs_epi16(above_low, above_high));
            (same as u32, above as u32)
        }
        #[cfg(not(target_arch = "x86_64"))]
        (0..WINDOW).fold((0, 0), |(same, above), at| {
            // SAFETY: as above.
            let other = tag_in(unsafe { slots.add(at).read() });
            (same | u32::from(other == tag) << at, above | u32::from(other > tag) << at)
        })
    }

    /// The first index from `index` on that is empty or whose tag is at least that of the word `smallest`.
    #[inline]
    fn skip_below(self, mut index: usize, smallest: u64) -> usize {
        while self.get(index) < smallest {
            index += 1;
        }
        index
    }

    /// First index at or behind the home whose slot is empty or has a tag >= `tag`.
    #[inline]
    pub fn lower_bound(self, tag: u64) -> usize {
        let home = self.home(tag);
        let (same, above) = self.window(home, tag);
        match same | above {
            0 => self.skip_below(home + WINDOW, tag << ADDRESS_BITS),
            bits => home + bits.trailing_zeros() as usize,
        }
    }

    /// First index behind all entries with `tag`: where another one goes.
    #[inline]
    pub fn upper_bound(self, tag: u64) -> usize {
        let home = self.home(tag);
        match self.window(home, tag).1 {
            0 => self.skip_below(home + WINDOW, (tag + 1) << ADDRESS_BITS),
            above => home + above.trailing_zeros() as usize,
        }
    }

    /// Finds the slot with `tag` whose word `matches`; or else the index where such a word goes.
    #[inline]
    pub fn search(self, tag: u64, mut matches: impl FnMut(u64) -> bool) -> Result<usize, usize> {
        let home = self.home(tag);
        let (mut same, above) = self.window(home, tag);
        while same != 0 {
            let index = home + same.trailing_zeros() as usize;
            if matches(self.get(index)) {
                return Ok(index);
            }
            same &= same - 1;
        }
        if above != 0 {
            return Err(home + above.trailing_zeros() as usize);
        }
        let mut index = self.skip_below(home + WINDOW, tag << ADDRESS_BITS);
        while tag_in(self.get(index)) == tag {
            if matches(self.get(index)) {
                return Ok(index);
            }
            index += 1;
        }
        Err(index)
    }

    /// Puts `word` at `index` (its upper bound) and moves the run behind it one slot on.
    #[inline]
    pub fn insert_at(self, index: usize, word: u64) -> Result<(), Overflow> {
        let len = self.len();
        let mut end = index;
        while self.get(end) != EMPTY {
            end += 1;
        }
        if end + 1 >= self.slot_count() {
            return Err(Overflow);
        }
        self.slots_mut().copy_within(index..end, index + 1);
        self.set(index, word);
        self.set_len(len + 1);
        Ok(())
    }

    /// Takes the word at `index` out; those behind it that are not at home move back one slot.
    pub fn remove_at(self, index: usize) -> u64 {
        let word = self.get(index);
        debug_assert!(word != EMPTY);
        let mut end = index + 1;
        loop {
            let next = self.get(end);
            if next == EMPTY || self.home(tag_in(next)) == end {
                break;
            }
            end += 1;
        }
        self.slots_mut().copy_within(index + 1..end, index);
        self.set(end - 1, EMPTY);
        self.set_len(self.len() - 1);
        word
    }

    /// Appends the slots in use, in order.
    pub fn collect_into(self, words: &mut Vec<u64>) {
        words.extend((0..self.slot_count()).map(|index| self.get(index)).filter(|&word| word != EMPTY));
    }

    /// Asks the processor for the slots where `hash` would be.
    #[inline]
    pub fn prefetch_home(self, hash: u64) {
        prefetch(self.slot_ptr(self.home(self.tag(hash))).as_ptr().cast());
    }

    /// Checks what the module's head promises.
    #[cfg(test)]
    pub fn check(self) {
        let mut words = Vec::new();
        self.collect_into(&mut words);
        assert_eq!(words.len(), self.len());
        assert!(words.is_sorted_by_key(|&word| tag_in(word)));
        assert_eq!(self.get(self.slot_count() - 1), EMPTY);
        for index in 0..self.slot_count() {
            let word = self.get(index);
            if word != EMPTY {
                let home = self.home(tag_in(word));
                assert!(home <= index);
                assert!((home..index).all(|between| self.get(between) != EMPTY));
            }
        }
    }
}

/// Asks the processor for a cache line; any address will do.
#[inline]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}
