//! A thread that frees blocks of megabytes. The kernel takes about 100 us for each megabyte that it takes back, and nothing
//! may hold a shard for that long (law 8): whatever block it is, and wherever it is let go.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// What is shorter is freed where it is.
pub const LONG_LEN_BYTES: usize = 1 << 20;
/// Blocks that may wait.
const QUEUE_LEN: usize = 64;

/// A block that nobody refers to any more.
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is memory and nothing else; who has the block is the only one who has it.
unsafe impl Send for Block {}

/// None: no thread could be started.
static QUEUE: OnceLock<Option<Sender<Block>>> = OnceLock::new();

thread_local! {
    /// This thread has its long blocks freed elsewhere. A constant without a destructor: reading it needs no allocation.
    static HANDS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// From here on this thread's long blocks are freed by another one; `free` frees one for good.
pub fn hand_over(free: fn(Block)) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, blocks) = bounded::<Block>(QUEUE_LEN);
        crate::background::spawn("braid-free", move || work(&blocks, free)).ok().map(|_| queue)
    });
    HANDS_OVER.set(queue.is_some());
}

/// Takes a block of this thread's to be freed elsewhere. Gives it back if it is to be freed here: it is short, the other
/// thread has too much to do, or this is that thread.
///
/// # Safety
/// The block was allocated by the allocator that [`hand_over`] was told how to free for, with this layout, and nobody uses
/// it any more.
#[inline]
pub unsafe fn take(start: NonNull<u8>, layout: Layout) -> Result<(), Block> {
    let block = Block { start, layout };
    if layout.size() < LONG_LEN_BYTES || !HANDS_OVER.get() {
        return Err(block);
    }
    match QUEUE.get() {
        Some(Some(queue)) => offer(queue, block),
        _ => Err(block),
    }
}

/// Allocates nothing: it is called where a block is freed.
#[cold]
fn offer(queue: &Sender<Block>, block: Block) -> Result<(), Block> {
    queue.try_send(block).map_err(|error| error.into_inner())
}

fn work(blocks: &Receiver<Block>, free: fn(Block)) {
    for mut block in blocks {
        give_back(block.bytes());
        free(block);
    }
}

impl Block {
    /// Its start, and how it was allocated.
    pub fn into_parts(self) -> (NonNull<u8>, Layout) {
        (self.start, self.layout)
    }

    fn bytes(&mut self) -> &mut [std::mem::MaybeUninit<u8>] {
        // SAFETY: the block is this long, and nobody else has it; what is in it is not read.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast().as_ptr(), self.layout.size()) }
    }
}

/// Has the kernel take the pages back here and now. The allocator alone would leave that to the thread that allocated the
/// block, for the time when that thread looks at it again.
fn give_back<T>(block: &mut [T]) {
    // SAFETY: asks for a number, touches no memory.
    let page_len_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page_len_bytes) = usize::try_from(page_len_bytes) else { return };
    let pages = whole_pages(block, page_len_bytes);
    // SAFETY: whole pages of a block that nobody else refers to; they read as zeros afterwards, and nobody reads them. A
    // mapping for which that cannot be done is left as it is.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), pages.len(), libc::MADV_DONTNEED) };
}

/// The pages that lie in a block of bytes as a whole. What shares a page with the block's ends must not be given back with it,
/// and the kernel rounds a length up to its pages, which are of 64 KiB on some machines.
fn whole_pages<T>(block: &mut [T], page_len_bytes: usize) -> &mut [T] {
    const { assert!(size_of::<T>() == 1) };
    let start = block.as_ptr().align_offset(page_len_bytes).min(block.len());
    let pages = &mut block[start..];
    let len = pages.len() / page_len_bytes * page_len_bytes;
    &mut pages[..len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{CountingAllocator, free_for_good, used_by_this_thread_bytes};
    use std::alloc::GlobalAlloc;

    fn allocate(size: usize) -> (NonNull<u8>, Layout) {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: the layout is valid and not empty.
        (NonNull::new(unsafe { CountingAllocator.alloc(layout) }).expect("memory"), layout)
    }

    fn free((start, layout): (NonNull<u8>, Layout)) {
        // SAFETY: allocated with that layout, and used by nobody.
        unsafe { CountingAllocator.dealloc(start.as_ptr(), layout) };
    }

    #[test]
    fn law8_a_shards_long_blocks_are_freed_by_another_thread() {
        let shard = std::thread::spawn(|| {
            let used = || used_by_this_thread_bytes();
            let long = || allocate(LONG_LEN_BYTES);
            free(long());
            assert_eq!(used(), 0, "no shard frees as it likes");
            hand_over(free_for_good);
            free(allocate(LONG_LEN_BYTES / 2));
            assert_eq!(used(), 0, "a short one");
            free(long());
            assert_eq!(used(), LONG_LEN_BYTES as i64, "another thread freed it, or will");
        });
        shard.join().unwrap();
    }

    #[test]
    fn law8_who_has_too_much_to_do_is_given_no_more() {
        let (queue, blocks) = bounded(1);
        let block = || {
            let (start, layout) = allocate(LONG_LEN_BYTES);
            Block { start, layout }
        };
        assert!(offer(&queue, block()).is_ok());
        let back = offer(&queue, block()).expect_err("it is full");
        free(back.into_parts());
        drop(queue);
        let before = used_by_this_thread_bytes();
        work(&blocks, free_for_good);
        assert_eq!(before - used_by_this_thread_bytes(), LONG_LEN_BYTES as i64);
    }

    #[test]
    fn a_block_is_given_back_whatever_its_bounds_are() {
        for len in [0, 1, 4095, 4096, 8192, 3 << 20] {
            for skip in [0, 1, 100] {
                let mut block = vec![7u8; len + skip];
                give_back(&mut block[skip..]);
                assert!(block[..skip].iter().all(|byte| *byte == 7), "what is not in the block stays");
            }
        }
    }

    #[test]
    fn only_whole_pages_are_given_back_however_large_they_are() {
        let mut block = vec![7u8; (300 << 10) + 5];
        for page_len_bytes in [4 << 10, 16 << 10, 64 << 10, 1 << 20] {
            for skip in [0, 1, 5000] {
                let pages = whole_pages(&mut block[skip..], page_len_bytes);
                assert!(pages.len().is_multiple_of(page_len_bytes));
                assert!(pages.is_empty() || pages.as_ptr().addr().is_multiple_of(page_len_bytes));
                assert_eq!(pages.is_empty(), page_len_bytes == 1 << 20);
            }
        }
    }
}
