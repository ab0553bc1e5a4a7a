//! The compact entry: a key, its value and its metadata in one heap allocation behind a thin pointer.
//!
//! ```text
//! offset 0  u32  access clock (24 bits) << 8 | flags: kind (3 bits), EXPIRY, MARK
//!        4  u32  key length, bytes
//!        8  u64  expiry, ms since the Unix epoch          only with EXPIRY
//!        .. body:
//!             None     key
//!             Str      u32 value length, key, value
//!             Int      i64, key
//!             Score    f64, key
//!             Boxed    owned pointer (Box<T>), key
//! ```
//! The body moves as one block when the expiry field comes or goes. 8-byte fields stand before the key, so they are
//! aligned and can be lent out as references.
//!
//! No capacity is stored: the allocation size is a pure function of the contents ([`size_class_bytes`], which follows
//! the allocator's size classes), so a value is rewritten in place exactly when its class does not change.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Longest key and longest inline value, bytes: lengths have 32 bits. Whatever comes from outside is held to less, or to
/// this: what clients send, a master's commands, RDB files.
pub const MAX_LEN_BYTES: usize = u32::MAX as usize;

const KIND_MASK: u32 = 7;
const EXPIRY: u32 = 8;
const MARK: u32 = 16;
const CLOCK_SHIFT: u32 = 8;
const ALIGN: usize = 8;

/// What an entry holds beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    None = 0,
    Str = 1,
    Int = 2,
    Score = 3,
    Boxed = 4,
}

/// A view of an entry's value.
#[derive(Debug)]
pub enum ValueRef<'a, T> {
    None,
    Str(&'a [u8]),
    Int(i64),
    Score(f64),
    Boxed(&'a T),
}

impl<T> Clone for ValueRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for ValueRef<'_, T> {}

/// A mutable view of an entry's value; a string's length is fixed (use [`Entry::set_value`] to change it).
#[derive(Debug)]
pub enum ValueMut<'a, T> {
    None,
    Str(&'a mut [u8]),
    Int(&'a mut i64),
    Score(&'a mut f64),
    Boxed(&'a mut T),
}

/// A value to store.
#[derive(Debug)]
pub enum NewValue<'a, T> {
    None,
    Str(&'a [u8]),
    Int(i64),
    Score(f64),
    Boxed(Box<T>),
}

/// A value moved out of an entry.
#[derive(Debug, PartialEq)]
pub enum OwnedValue<T> {
    None,
    Str(Vec<u8>),
    Int(i64),
    Score(f64),
    Boxed(Box<T>),
}

impl<T> NewValue<'_, T> {
    fn kind(&self) -> Kind {
        match self {
            NewValue::None => Kind::None,
            NewValue::Str(_) => Kind::Str,
            NewValue::Int(_) => Kind::Int,
            NewValue::Score(_) => Kind::Score,
            NewValue::Boxed(_) => Kind::Boxed,
        }
    }

    fn inline_len_bytes(&self) -> usize {
        if let NewValue::Str(bytes) = self { bytes.len() } else { 0 }
    }
}

/// Bytes the allocator really uses for a block of `size_bytes`: mimalloc's classes, multiples of 16 up to 64, then four to
/// each doubling. Above 64 KiB, where blocks are few, whole pages.
pub fn size_class_bytes(size_bytes: usize) -> usize {
    match size_bytes {
        0..=8 => 8,
        9..=64 => size_bytes.next_multiple_of(16),
        65..=65_536 => {
            let step_bytes = (size_bytes - 1).ilog2() - 2;
            size_bytes.next_multiple_of(1 << step_bytes)
        }
        _ => size_bytes.next_multiple_of(4096),
    }
}

/// Bytes between the start of the body and the key.
const fn key_gap_bytes(kind_bits: u32) -> usize {
    // One nibble for each kind: None 0, Str 4, Int 8, Score 8, Boxed 8.
    ((0x88840_u32 >> (kind_bits * 4)) & 0xF) as usize
}

const fn body_offset(flags: u32) -> usize {
    // EXPIRY is the value 8, which is also the width of the field it announces.
    8 + (flags & EXPIRY) as usize
}

fn layout_for(flags: u32, key_len: usize, inline_len: usize) -> Layout {
    let size = body_offset(flags) + key_gap_bytes(flags & KIND_MASK) + key_len + inline_len;
    Layout::from_size_align(size_class_bytes(size), ALIGN).expect("an entry is far smaller than isize::MAX")
}

/// The untyped block. Copying a `Raw` copies a pointer; who owns the block is the business of the types below.
///
/// Invariant: `ptr` addresses a block laid out as the module's head describes and allocated with `layout()`.
#[derive(Clone, Copy)]
struct Raw(NonNull<u8>);

// Every function here relies on the invariant of `Raw`: the block is live and initialized up to its used size. The
// owner types guarantee that a `Raw` does not outlive its block and that writes are exclusive.
impl Raw {
    #[inline]
    fn head(self) -> u32 {
        // SAFETY: the block starts with an initialized, 8-aligned u32 (see above).
        unsafe { self.0.cast::<u32>().read() }
    }

    #[inline]
    fn set_head(self, head: u32) {
        // SAFETY: as in `head`; callers hold the entry exclusively.
        unsafe { self.0.cast::<u32>().write(head) }
    }

    #[inline]
    fn kind(self) -> Kind {
        match self.head() & KIND_MASK {
            0 => Kind::None,
            1 => Kind::Str,
            2 => Kind::Int,
            3 => Kind::Score,
            bits => {
                debug_assert_eq!(bits, Kind::Boxed as u32);
                Kind::Boxed
            }
        }
    }

    #[inline]
    fn key_len(self) -> usize {
        // SAFETY: the second word of every block is the key length.
        unsafe { self.0.cast::<u32>().add(1).read() as usize }
    }

    #[inline]
    fn at(self, offset: usize) -> NonNull<u8> {
        // SAFETY: callers pass offsets inside the block.
        unsafe { self.0.add(offset) }
    }

    #[inline]
    fn body(self) -> NonNull<u8> {
        self.at(body_offset(self.head()))
    }

    #[inline]
    fn key(self) -> NonNull<u8> {
        let flags = self.head();
        self.at(body_offset(flags) + key_gap_bytes(flags & KIND_MASK))
    }

    /// Length of an inline string value; 0 for other kinds.
    #[inline]
    fn inline_len(self) -> usize {
        if self.kind() != Kind::Str {
            return 0;
        }
        // SAFETY: the body of a Str starts with its value's length; the body is 8-aligned.
        unsafe { self.body().cast::<u32>().read() as usize }
    }

    fn layout(self) -> Layout {
        layout_for(self.head(), self.key_len(), self.inline_len())
    }

    fn allocate(layout: Layout) -> Raw {
        // SAFETY: the layout has at least 8 bytes.
        match NonNull::new(unsafe { alloc(layout) }) {
            Some(ptr) => Raw(ptr),
            None => handle_alloc_error(layout),
        }
    }

    /// Frees the block without dropping a boxed value.
    fn free(self) {
        // SAFETY: the block was allocated with the layout that its contents determine.
        unsafe { dealloc(self.0.as_ptr(), self.layout()) }
    }

    /// Writes what precedes the key for `value`, and an inline string after the key. The head and the key length are
    /// already final.
    fn write_value<T>(self, value: NewValue<'_, T>) {
        let body = self.body();
        // SAFETY: the block has room for this kind of body (its layout was computed from the same kind and lengths),
        // the body is 8-aligned, and a borrowed `value` cannot overlap a block held exclusively.
        unsafe {
            match value {
                NewValue::None => {}
                NewValue::Str(bytes) => {
                    body.cast::<u32>().write(bytes.len() as u32);
                    let to = body.add(4 + self.key_len());
                    to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
                }
                NewValue::Int(number) => body.cast::<i64>().write(number),
                NewValue::Score(score) => body.cast::<f64>().write(score),
                NewValue::Boxed(boxed) => body.cast::<*mut T>().write(Box::into_raw(boxed)),
            }
        }
    }

    /// # Safety
    /// The kind is Boxed and the box was stored as a `Box<T>`.
    #[inline]
    unsafe fn boxed<T>(self) -> *mut T {
        debug_assert_eq!(self.kind(), Kind::Boxed);
        // SAFETY: the body of a Boxed starts with the pointer, 8-aligned.
        unsafe { self.body().cast::<*mut T>().read() }
    }
}

/// Equality of short byte strings without a call: keys are mostly 8 to 32 bytes.
#[inline]
fn bytes_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let word = |s: &[u8], at: usize| u64::from_le_bytes(s[at..at + 8].try_into().expect("8 bytes"));
    let len = a.len();
    match len {
        8..=16 => (word(a, 0) ^ word(b, 0)) | (word(a, len - 8) ^ word(b, len - 8)) == 0,
        17..=32 => {
            (word(a, 0) ^ word(b, 0))
                | (word(a, 8) ^ word(b, 8))
                | (word(a, len - 16) ^ word(b, len - 16))
                | (word(a, len - 8) ^ word(b, len - 8))
                == 0
        }
        _ => a == b,
    }
}

/// An owned key with its value: 8 bytes, one allocation. `T` is the type of boxed values.
pub struct Entry<T> {
    raw: Raw,
    owns: PhantomData<Box<T>>,
}

// SAFETY: an entry owns its block and its Box<T> like a Box would.
unsafe impl<T: Send> Send for Entry<T> {}
// SAFETY: shared access only reads the block and lends &T.
unsafe impl<T: Sync> Sync for Entry<T> {}

/// A borrowed entry: 8 bytes, `Copy`; what it lends lives as long as the borrow of the table.
pub struct EntryRef<'a, T> {
    raw: Raw,
    borrows: PhantomData<&'a Entry<T>>,
}

impl<T> Clone for EntryRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for EntryRef<'_, T> {}

// SAFETY: an EntryRef is a shared reference to an Entry<T>, which is Sync when T is.
unsafe impl<T: Sync> Send for EntryRef<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for EntryRef<'_, T> {}

impl<'a, T> EntryRef<'a, T> {
    #[inline]
    pub fn key(self) -> &'a [u8] {
        // SAFETY: key() addresses key_len() initialized bytes, borrowed for 'a.
        unsafe { NonNull::slice_from_raw_parts(self.raw.key(), self.raw.key_len()).as_ref() }
    }

    #[inline]
    pub(super) fn key_is(self, key: &[u8]) -> bool {
        bytes_eq(self.key(), key)
    }

    #[inline]
    pub fn kind(self) -> Kind {
        self.raw.kind()
    }

    #[inline]
    pub fn value(self) -> ValueRef<'a, T> {
        let body = self.raw.body();
        // SAFETY: the kind says what the body holds, initialized and 8-aligned; borrowed for 'a.
        unsafe {
            match self.raw.kind() {
                Kind::None => ValueRef::None,
                Kind::Str => {
                    let start = body.add(4 + self.raw.key_len());
                    let len = body.cast::<u32>().read() as usize;
                    ValueRef::Str(NonNull::slice_from_raw_parts(start, len).as_ref())
                }
                Kind::Int => ValueRef::Int(body.cast::<i64>().read()),
                Kind::Score => ValueRef::Score(body.cast::<f64>().read()),
                Kind::Boxed => ValueRef::Boxed(&*self.raw.boxed::<T>()),
            }
        }
    }

    /// When the entry expires, ms since the Unix epoch.
    #[inline]
    pub fn expiry_ms(self) -> Option<u64> {
        if self.raw.head() & EXPIRY == 0 {
            return None;
        }
        // SAFETY: with EXPIRY the third 8-aligned field is the expiry.
        Some(unsafe { self.raw.0.cast::<u64>().add(1).read() })
    }

    /// The access clock (LRU time or LFU counter), 24 bits.
    #[inline]
    pub fn lru(self) -> u32 {
        self.raw.head() >> CLOCK_SHIFT
    }

    /// A free flag of the owner (which snapshot epoch has seen the entry).
    #[inline]
    pub fn mark(self) -> bool {
        self.raw.head() & MARK != 0
    }

    /// Bytes of the entry's own block; what a `T` owns or occupies is not counted.
    #[inline]
    pub fn heap_bytes(self) -> usize {
        self.raw.layout().size()
    }
}

impl<T> Entry<T> {
    /// A new entry without expiry, clock 0, unmarked.
    ///
    /// # Panics
    /// If key or value exceed [`MAX_LEN_BYTES`].
    pub fn new(key: &[u8], value: NewValue<'_, T>) -> Self {
        Self::with_expiry(key, value, None)
    }

    /// A new entry that expires at `expiry_ms` (ms since the Unix epoch), if given.
    ///
    /// # Panics
    /// As [`Entry::new`].
    #[inline]
    pub fn with_expiry(key: &[u8], value: NewValue<'_, T>, expiry_ms: Option<u64>) -> Self {
        assert!(key.len() <= MAX_LEN_BYTES && value.inline_len_bytes() <= MAX_LEN_BYTES);
        let head = value.kind() as u32 | if expiry_ms.is_some() { EXPIRY } else { 0 };
        let raw = Raw::allocate(layout_for(head, key.len(), value.inline_len_bytes()));
        raw.set_head(head);
        // SAFETY: the block has room for the header, the expiry if flagged, and the key at its place.
        unsafe {
            raw.0.cast::<u32>().add(1).write(key.len() as u32);
            if let Some(ms) = expiry_ms {
                raw.0.cast::<u64>().add(1).write(ms);
            }
            raw.key().copy_from_nonoverlapping(NonNull::from(key).cast(), key.len());
        }
        raw.write_value(value);
        Entry { raw, owns: PhantomData }
    }

    #[inline]
    pub fn view(&self) -> EntryRef<'_, T> {
        EntryRef { raw: self.raw, borrows: PhantomData }
    }

    #[inline]
    pub fn key(&self) -> &[u8] {
        self.view().key()
    }

    #[inline]
    pub fn kind(&self) -> Kind {
        self.view().kind()
    }

    #[inline]
    pub fn value(&self) -> ValueRef<'_, T> {
        self.view().value()
    }

    /// See [`EntryRef::expiry_ms`].
    #[inline]
    pub fn expiry_ms(&self) -> Option<u64> {
        self.view().expiry_ms()
    }

    /// See [`EntryRef::lru`].
    #[inline]
    pub fn lru(&self) -> u32 {
        self.view().lru()
    }

    /// See [`EntryRef::mark`].
    #[inline]
    pub fn mark(&self) -> bool {
        self.view().mark()
    }

    /// See [`EntryRef::heap_bytes`].
    #[inline]
    pub fn heap_bytes(&self) -> usize {
        self.view().heap_bytes()
    }

    /// Sets the access clock; only the low 24 bits are kept.
    #[inline]
    pub fn set_lru(&mut self, clock: u32) {
        self.raw.set_head(clock << CLOCK_SHIFT | self.raw.head() & ((1 << CLOCK_SHIFT) - 1));
    }

    #[inline]
    pub fn set_mark(&mut self, mark: bool) {
        let head = self.raw.head();
        self.raw.set_head(if mark { head | MARK } else { head & !MARK });
    }

    #[inline]
    pub fn value_mut(&mut self) -> ValueMut<'_, T> {
        // SAFETY: the result borrows self.
        unsafe { self.value_mut_unbound() }
    }

    /// # Safety
    /// The entry lives for 'a, and nothing else touches its value in that time.
    #[inline]
    pub(super) unsafe fn value_mut_unbound<'a>(&mut self) -> ValueMut<'a, T> {
        let body = self.raw.body();
        // SAFETY: the kind says what the body holds, initialized and 8-aligned; exclusive for 'a.
        unsafe {
            match self.raw.kind() {
                Kind::None => ValueMut::None,
                Kind::Str => {
                    let start = body.add(4 + self.raw.key_len());
                    let len = body.cast::<u32>().read() as usize;
                    ValueMut::Str(NonNull::slice_from_raw_parts(start, len).as_mut())
                }
                Kind::Int => ValueMut::Int(body.cast::<i64>().as_mut()),
                Kind::Score => ValueMut::Score(body.cast::<f64>().as_mut()),
                Kind::Boxed => ValueMut::Boxed(&mut *self.raw.boxed::<T>()),
            }
        }
    }

    /// Replaces the value and keeps everything else; in place when the allocation's class stays the same.
    ///
    /// # Panics
    /// If an inline value exceeds [`MAX_LEN_BYTES`].
    #[inline]
    pub fn set_value(&mut self, value: NewValue<'_, T>) {
        drop(self.replace_value(value));
    }

    /// As [`Entry::set_value`]; hands back the box of a boxed value.
    #[inline]
    fn replace_value(&mut self, value: NewValue<'_, T>) -> Option<Box<T>> {
        assert!(value.inline_len_bytes() <= MAX_LEN_BYTES);
        let old = self.raw;
        let old_head = old.head();
        let old_boxed = if old.kind() == Kind::Boxed {
            // SAFETY: the entry owns this box, and the pointer is overwritten or freed below without dropping it.
            Some(unsafe { Box::from_raw(old.boxed::<T>()) })
        } else {
            None
        };
        let old_layout = old.layout();
        let head = old_head & !KIND_MASK | value.kind() as u32;
        let layout = layout_for(head, old.key_len(), value.inline_len_bytes());
        let key = old.key();
        if layout == old_layout {
            old.set_head(head);
            // SAFETY: both places of the key lie in the block; they may overlap.
            unsafe { old.key().copy_from(key, old.key_len()) };
            old.write_value(value);
            return old_boxed;
        }
        let raw = Raw::allocate(layout);
        // SAFETY: header and expiry (8 or 16 bytes) are initialized in the old block and fit any new one; the key has
        // its place in the new block; the blocks are distinct; the old one was allocated with `old_layout`.
        unsafe {
            raw.0.copy_from_nonoverlapping(old.0, body_offset(head));
            raw.set_head(head);
            raw.key().copy_from_nonoverlapping(key, old.key_len());
            dealloc(old.0.as_ptr(), old_layout);
        }
        raw.write_value(value);
        self.raw = raw;
        old_boxed
    }

    /// Moves the value out and leaves the kind None.
    pub fn take_value(&mut self) -> OwnedValue<T> {
        let inline = match self.value() {
            ValueRef::None => return OwnedValue::None,
            ValueRef::Str(bytes) => OwnedValue::Str(bytes.to_vec()),
            ValueRef::Int(number) => OwnedValue::Int(number),
            ValueRef::Score(score) => OwnedValue::Score(score),
            ValueRef::Boxed(_) => OwnedValue::None,
        };
        match self.replace_value(NewValue::None) {
            Some(boxed) => OwnedValue::Boxed(boxed),
            None => inline,
        }
    }

    /// Sets or clears the expiry (ms since the Unix epoch). Clearing or adding moves the body, possibly to a new block.
    pub fn set_expiry(&mut self, expiry_ms: Option<u64>) {
        let old = self.raw;
        let old_head = old.head();
        let head = old_head & !EXPIRY | if expiry_ms.is_some() { EXPIRY } else { 0 };
        if head != old_head {
            let old_layout = old.layout();
            let (key_len, inline_len) = (old.key_len(), old.inline_len());
            let body_len = key_gap_bytes(head & KIND_MASK) + key_len + inline_len;
            let body = old.body();
            let layout = layout_for(head, key_len, inline_len);
            let raw = if layout == old_layout { old } else { Raw::allocate(layout) };
            // SAFETY: the body's `body_len` bytes are initialized and have room at the new offset; in place the two
            // ranges may overlap, which copy_from allows. The old block, if left, is freed with its own layout.
            unsafe {
                raw.at(body_offset(head)).copy_from(body, body_len);
                raw.0.cast::<u32>().add(1).write(key_len as u32);
                raw.set_head(head);
                if raw.0 != old.0 {
                    dealloc(old.0.as_ptr(), old_layout);
                }
            }
            self.raw = raw;
        }
        if let Some(ms) = expiry_ms {
            // SAFETY: the block has the expiry field now.
            unsafe { self.raw.0.cast::<u64>().add(1).write(ms) };
        }
    }

    /// The block's address, for a table's slot; the entry is forgotten and the address owns it.
    #[inline]
    pub(super) fn into_address(self) -> usize {
        ManuallyDrop::new(self).address()
    }

    /// The block's address; the entry still owns it.
    #[inline]
    pub(super) fn address(&self) -> usize {
        self.raw.0.expose_provenance().get()
    }

    /// # Safety
    /// `address` comes from [`Entry::into_address`] of an `Entry<T>`, and ownership is taken once.
    #[inline]
    pub(super) unsafe fn from_address(address: usize) -> Self {
        // SAFETY: the address is that of a block, so not null.
        let ptr = unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) };
        Entry { raw: Raw(ptr), owns: PhantomData }
    }
}

impl<'a, T> EntryRef<'a, T> {
    /// # Safety
    /// `address` comes from [`Entry::into_address`] of an `Entry<T>` that lives, unchanged, for 'a.
    #[inline]
    pub(super) unsafe fn from_address(address: usize) -> Self {
        // SAFETY: the address is that of a block, so not null.
        let ptr = unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) };
        EntryRef { raw: Raw(ptr), borrows: PhantomData }
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        let boxed = if self.raw.kind() == Kind::Boxed {
            // SAFETY: the entry owns this box and dies here.
            Some(unsafe { Box::from_raw(self.raw.boxed::<T>()) })
        } else {
            None
        };
        self.raw.free();
        drop(boxed);
    }
}

impl<T: Clone> Clone for Entry<T> {
    fn clone(&self) -> Self {
        let value = match self.value() {
            ValueRef::None => NewValue::None,
            ValueRef::Str(bytes) => NewValue::Str(bytes),
            ValueRef::Int(number) => NewValue::Int(number),
            ValueRef::Score(score) => NewValue::Score(score),
            ValueRef::Boxed(boxed) => NewValue::Boxed(Box::new(boxed.clone())),
        };
        let mut copy = Entry::with_expiry(self.key(), value, self.expiry_ms());
        copy.set_lru(self.lru());
        copy.set_mark(self.mark());
        copy
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key().escape_ascii().to_string())
            .field("value", &self.value())
            .field("expiry_ms", &self.expiry_ms())
            .finish()
    }
}
