//! A thread that frees blocks of megabytes. The kernel takes about 100 us for each megabyte that it takes back, and nothing
//! may hold a shard for that long (law 8).

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Sender, bounded};
use std::sync::OnceLock;

/// What is shorter is freed where it is.
const LONG_LEN_BYTES: usize = 1 << 20;
/// Blocks that may wait.
const QUEUE_LEN: usize = 64;

/// The thread starts with the first block.
#[derive(Default)]
pub struct Freeing {
    /// None: no thread could be started.
    queue: OnceLock<Option<Sender<Bytes>>>,
}

fn start() -> Option<Sender<Bytes>> {
    let (queue, blocks) = bounded::<Bytes>(QUEUE_LEN);
    let work = move || {
        for block in blocks {
            // Others may still read it; then whoever is last frees it.
            if let Ok(block) = block.try_into_mut() {
                give_back(block);
            }
        }
    };
    crate::background::spawn("braid-free", work).ok().map(|_| queue)
}

impl Freeing {
    /// Lets go of a block that others may have, too: if nobody does and freeing it takes long, it is freed as a block of
    /// megabytes is.
    pub fn let_go(&self, block: Bytes) {
        if block.len() >= LONG_LEN_BYTES && block.is_unique() {
            self.free(block);
        }
    }

    /// Frees a block, here if the thread has too much to do.
    pub fn free(&self, block: Bytes) {
        match self.queue.get_or_init(start) {
            Some(queue) => drop(queue.try_send(block)),
            None => drop(block),
        }
    }
}

/// Has the kernel take the pages back here and now. The allocator alone would leave that to the thread that allocated the
/// block, for the time when that thread looks at it again.
fn give_back(mut block: BytesMut) {
    // SAFETY: asks for a number, touches no memory.
    let page_len_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page_len_bytes) = usize::try_from(page_len_bytes) else { return };
    let pages = whole_pages(&mut block, page_len_bytes);
    // SAFETY: whole pages of a buffer that nobody else refers to; they read as zeros afterwards, which bytes may be. A
    // mapping for which that cannot be done is left as it is.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), pages.len(), libc::MADV_DONTNEED) };
}

/// The pages that lie in a block as a whole. What shares a page with the block's ends must not be given back with it, and the
/// kernel rounds a length up to its pages, which are of 64 KiB on some machines.
fn whole_pages(block: &mut [u8], page_len_bytes: usize) -> &mut [u8] {
    let start = block.as_ptr().align_offset(page_len_bytes).min(block.len());
    let pages = &mut block[start..];
    let len = pages.len() / page_len_bytes * page_len_bytes;
    &mut pages[..len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::ThreadId;

    /// Tells which thread drops it, then waits to be let go.
    struct Watched {
        dropped_by: Sender<ThreadId>,
        go_on: crossbeam_channel::Receiver<()>,
    }

    impl AsRef<[u8]> for Watched {
        fn as_ref(&self) -> &[u8] {
            b"bytes"
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            let _ = self.dropped_by.send(std::thread::current().id());
            let _ = self.go_on.recv();
        }
    }

    #[test]
    fn law8_blocks_are_freed_by_another_thread_until_that_has_too_much_to_do() {
        let freeing = Freeing::default();
        let (dropped_by, who) = crossbeam_channel::unbounded();
        let (let_go, go_on) = crossbeam_channel::unbounded::<()>();
        let block = |go_on| Bytes::from_owner(Watched { dropped_by: dropped_by.clone(), go_on });
        freeing.free(block(go_on));
        let thread = who.recv().unwrap();
        assert_ne!(thread, std::thread::current().id());
        // It is busy with that one.
        let (_, gone) = bounded::<()>(0);
        for _ in 0..QUEUE_LEN {
            freeing.free(block(gone.clone()));
        }
        assert!(who.is_empty());
        freeing.free(block(gone));
        assert_eq!(who.recv(), Ok(std::thread::current().id()));
        drop(let_go);
        assert!((0..QUEUE_LEN).all(|_| who.recv() == Ok(thread)));
    }

    #[test]
    fn law8_only_the_last_of_a_long_block_is_freed_by_another_thread() {
        let freeing = Freeing::default();
        let has_thread = || freeing.queue.get().is_some();
        freeing.let_go(Bytes::from(vec![1; LONG_LEN_BYTES - 1]));
        let block = Bytes::from(vec![1; LONG_LEN_BYTES]);
        freeing.let_go(block.clone());
        assert!(!has_thread(), "one is short, of the other somebody has more");
        freeing.let_go(block);
        assert!(has_thread());
    }

    #[test]
    fn a_block_is_given_back_whatever_its_bounds_are() {
        for len in [0, 1, 4095, 4096, 8192, 3 << 20] {
            for skip in [0, 1, 100] {
                let mut block = BytesMut::from(&vec![7; len + skip][..]);
                give_back(block.split_off(skip));
                assert!(block.iter().all(|byte| *byte == 7), "what is not in the block stays");
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
