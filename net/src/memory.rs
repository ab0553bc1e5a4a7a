//! How much is allocated: the allocator with a counter for each thread.
//!
//! A thread adds the size of what it allocates to its own counter and takes off what it frees, whoever allocated it; the
//! sum over all threads is what is in use ([`used_bytes`]). Sizes are rounded up to mimalloc's size classes, so the sum
//! counts what a block takes, not what was asked for. What the allocator holds back to reuse is not in use; the
//! resident set shows it.

use crate::allocator::Allocator;
use crate::freeing::{self, Block};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// Threads with a counter of their own; any more share the last one.
const COUNTERS: usize = 512;

#[repr(align(128))]
struct Padded(AtomicI64);

static IN_USE: [Padded; COUNTERS] = [const { Padded(AtomicI64::new(0)) }; COUNTERS];
/// Threads that have begun to allocate. A counter outlives its thread: what the thread allocated may still be in use.
static THREADS: AtomicUsize = AtomicUsize::new(0);

const UNASSIGNED: usize = usize::MAX;

thread_local! {
    /// This thread's counter. A constant without a destructor: reading it needs no allocation and no registration.
    static MINE: Cell<usize> = const { Cell::new(UNASSIGNED) };
}

/// The global allocator of `braid-server`.
pub struct CountingAllocator;

#[inline]
fn count(bytes: i64) {
    let mut mine = MINE.get();
    if mine == UNASSIGNED {
        mine = THREADS.fetch_add(1, Ordering::Relaxed).min(COUNTERS - 1);
        MINE.set(mine);
    }
    let counter = &IN_USE[mine].0;
    if mine < COUNTERS - 1 {
        counter.store(counter.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    } else {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The size of the block that mimalloc takes for `size` bytes: up to 64 a multiple of 16 (or 8), beyond that four
/// classes to each doubling.
#[inline]
fn block_bytes(size: usize) -> i64 {
    let step = if size <= 8 {
        8
    } else if size <= 64 {
        16
    } else {
        1 << ((size - 1).ilog2() - 2)
    };
    ((size + step - 1) & !(step - 1)) as i64
}

// SAFETY: every call goes to the allocator with the arguments it was given, and its result comes back unchanged; counting
// neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the allocator asks for.
        let block = unsafe { Allocator.alloc(layout) };
        if !block.is_null() {
            count(block_bytes(layout.size()));
        }
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let block = unsafe { Allocator.alloc_zeroed(layout) };
        if !block.is_null() {
            count(block_bytes(layout.size()));
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: no block begins at null; the caller's promises are those that are asked for.
        let taken = unsafe { freeing::take(NonNull::new_unchecked(block), layout) };
        if let Err(block) = taken {
            free_for_good(block);
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let new_block = unsafe { Allocator.realloc(block, layout, new_size) };
        if !new_block.is_null() {
            count(block_bytes(new_size) - block_bytes(layout.size()));
        }
        new_block
    }
}

/// Frees a block of [`CountingAllocator`]'s here and now.
#[inline]
pub fn free_for_good(block: Block) {
    let (start, layout) = block.into_parts();
    // SAFETY: a `Block` is one that was to be freed, with the layout it was allocated with, and there is no other of it.
    unsafe { Allocator.dealloc(start.as_ptr(), layout) };
    count(-block_bytes(layout.size()));
}

/// Bytes in use, in all threads together.
pub fn used_bytes() -> u64 {
    let threads = THREADS.load(Ordering::Relaxed).min(COUNTERS);
    let sum: i64 = IN_USE[..threads].iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
    // What one thread frees may be seen before what another allocated.
    sum.max(0) as u64
}

/// What this thread has allocated and not freed; negative if it frees what others allocate.
#[inline]
pub fn used_by_this_thread_bytes() -> i64 {
    match MINE.get() {
        UNASSIGNED => 0,
        mine => IN_USE[mine].0.load(Ordering::Relaxed),
    }
}

/// Has the allocator give back to the system what this thread holds for reuse. May take milliseconds.
pub fn purge_this_thread() {
    // SAFETY: may be called at any time from any thread; only that thread's free memory is given back.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// mimalloc's `mi_option_purge_delay`, which libmimalloc-sys does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = libmimalloc_sys::mi_option_use_numa_nodes - 1;
/// How long free memory is kept for reuse. What runs all the time uses it again much sooner; mimalloc's own second lets a
/// full sync beside many writes take a tenth of a small dataset more than it needs.
const PURGE_DELAY_MS: std::ffi::c_long = 100;

/// Has the allocator give free memory back soon, unless the environment (`MIMALLOC_PURGE_DELAY`) says how soon.
pub fn give_back_soon() {
    // SAFETY: sets a number, of an option that exists.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) };
}

/// Memory that mimalloc holds from the system, in use or not.
pub fn committed_bytes() -> u64 {
    let mut committed = 0;
    let null = std::ptr::null_mut();
    // SAFETY: null pointers are allowed, and the other one is to a live integer.
    unsafe { libmimalloc_sys::mi_process_info(null, null, null, null, null, &raw mut committed, null, null) };
    committed as u64
}

/// mimalloc's own statistics, as it prints them.
pub fn statistics() -> String {
    use std::ffi::{CStr, c_char, c_void};
    unsafe extern "C" fn append(text: *const c_char, out: *mut c_void) {
        // SAFETY: mimalloc passes a string that ends with zero, and the argument given below.
        let (text, out) = unsafe { (CStr::from_ptr(text), &mut *out.cast::<String>()) };
        out.push_str(&text.to_string_lossy());
    }
    let mut out = String::new();
    // SAFETY: the callback has the type asked for and is called during this call only, while `out` is borrowed by
    // nobody else.
    unsafe { libmimalloc_sys::mi_stats_print_out(Some(append), (&raw mut out).cast()) };
    out
}

/// Resident memory of the process as the kernel counts it, bytes; 0 if it does not say.
pub fn resident_bytes() -> u64 {
    // The second field, in pages.
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: touches no memory.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(0) as u64
}

/// Memory of the machine, bytes.
pub fn system_bytes() -> u64 {
    // SAFETY: neither call touches memory.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    pages.max(0) as u64 * page.max(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_given_back_soon() {
        // SAFETY: reads a number.
        let delay_ms = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay_ms(), 1000, "mimalloc's own, so it is this option");
        give_back_soon();
        assert_eq!(delay_ms(), PURGE_DELAY_MS);
    }

    #[test]
    fn blocks_have_mimallocs_sizes() {
        for size in 1..100_000usize {
            // SAFETY: a size is all it takes.
            let good = unsafe { libmimalloc_sys::mi_good_size(size) };
            let ours = block_bytes(size) as usize;
            assert!(ours >= size && ours.abs_diff(good) <= good / 8 + 8, "{size}: {ours} {good}");
        }
    }

    /// The tests themselves run on the system's allocator, so here only what goes through this one is counted.
    #[test]
    fn what_is_allocated_is_counted_until_it_is_freed_by_any_thread() {
        let layout = Layout::from_size_align(1 << 20, 8).unwrap();
        let before = used_by_this_thread_bytes();
        // SAFETY: the layout is valid and not empty.
        let block = unsafe { CountingAllocator.alloc(layout) };
        assert_eq!(used_by_this_thread_bytes() - before, 1 << 20);
        // SAFETY: the block was allocated with that layout; the new one is again valid.
        let block = unsafe { CountingAllocator.realloc(block, layout, 2 << 20) };
        assert_eq!(used_by_this_thread_bytes() - before, 2 << 20);
        let address = block as usize;
        let other = std::thread::spawn(move || {
            let layout = Layout::from_size_align(2 << 20, 8).unwrap();
            // SAFETY: the block was allocated with that layout and nobody uses it any more.
            unsafe { CountingAllocator.dealloc(address as *mut u8, layout) };
            used_by_this_thread_bytes()
        });
        assert_eq!(other.join().unwrap(), -(2 << 20));
    }
}
