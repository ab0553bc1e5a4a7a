//! Law 8: a value that grows never has to be moved as a whole. Whatever structure does that asks for a block of memory in
//! proportion to its length, so the size of the largest block asked for tells.

use braid_core::types::{Hash, Limits, List, Set, ZSet};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LARGEST_BYTES: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

fn note(bytes: usize) {
    // A thread that ends may free and allocate when its variables are gone.
    let _ = LARGEST_BYTES.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size);
        // SAFETY: the caller's.
        unsafe { System.realloc(block, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Adds so many elements; the largest block of memory that was asked for.
fn largest_block_bytes(mut add: impl FnMut(u64)) -> usize {
    const ELEMENTS: u64 = 400_000;
    LARGEST_BYTES.set(0);
    (0..ELEMENTS).for_each(|number| add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    LARGEST_BYTES.get()
}

#[test]
fn law8_no_value_is_moved_as_a_whole_while_it_grows() {
    /// Copying this much takes some microseconds.
    const MAX_BYTES: usize = 128 << 10;
    let limits = Limits::default();
    // As of elements so long that each has a node of its own.
    let single = Limits { list_max_listpack_size: 1, ..limits.clone() };
    let (mut front, mut back) = (List::new(), List::new());
    let (mut set, mut hash, mut zset) = (Set::new(), Hash::new(), ZSet::new());
    let set_hash = |n: u64| {
        hash.set(&n.to_ne_bytes(), b"value", &limits);
    };
    let insert = |n: u64| {
        set.insert(format!("member:{n}").as_bytes(), &limits);
    };
    let grown = [
        ("list, at its back", largest_block_bytes(|n| back.push_back(&n.to_ne_bytes(), &single))),
        ("list, at its front", largest_block_bytes(|n| front.push_front(&n.to_ne_bytes(), &single))),
        ("hash", largest_block_bytes(set_hash)),
        ("set", largest_block_bytes(insert)),
        ("sorted set", largest_block_bytes(|n| zset.insert(&n.to_ne_bytes(), n as f64, &limits))),
    ];
    for (what, bytes) in grown {
        assert!(bytes <= MAX_BYTES, "{what}: {bytes} bytes at once");
    }
}
