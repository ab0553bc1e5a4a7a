//! The provided-buffer ring: one pool of receive buffers that all connections of a ring share.
//!
//! The kernel takes a buffer out of the pool only when bytes have arrived, so an idle connection holds none. A
//! [`RecvBuffer`] is the exclusive right to read one of them; dropping it gives the buffer back to the kernel.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// The id of the pool within its ring; a ring has one.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Anonymous private memory, page-aligned and zeroed, as the kernel wants it for a buffer ring.
struct Pages {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl Pages {
    fn map(len_bytes: usize) -> io::Result<Self> {
        assert!(len_bytes > 0);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap never returns null without MAP_FIXED");
        Ok(Self { start, len_bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `map` created exactly this mapping, and every borrow of it holds the pool that owns it.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
        debug_assert_eq!(result, 0);
    }
}

/// The pool: the ring of descriptors the kernel reads, and the memory they describe.
///
/// Invariant: a buffer id is either owned by the kernel (published between its head and our tail, or named by a
/// completion not yet taken) or held by exactly one [`RecvBuffer`].
pub(super) struct BufferPool {
    descriptors: Pages,
    memory: Pages,
    count: u16,
    buffer_len_bytes: u32,
    tail: Cell<u16>,
    held: Cell<u16>,
}

impl BufferPool {
    /// Maps `count` buffers (a power of two, at most 32768) of `buffer_len_bytes` each and publishes them all.
    pub(super) fn new(count: u16, buffer_len_bytes: u32) -> io::Result<Rc<Self>> {
        assert!(count.is_power_of_two() && count <= 1 << 15);
        assert!(buffer_len_bytes > 0);
        let pool = Self {
            descriptors: Pages::map(usize::from(count) * size_of::<BufRingEntry>())?,
            memory: Pages::map(usize::from(count) * buffer_len_bytes as usize)?,
            count,
            buffer_len_bytes,
            tail: Cell::new(0),
            held: Cell::new(0),
        };
        for id in 0..count {
            pool.publish(id);
        }
        Ok(Rc::new(pool))
    }

    /// The address to register with the kernel, together with [`count`](Self::count).
    pub(super) fn descriptors_address(&self) -> u64 {
        self.descriptors.start.as_ptr() as u64
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Whether the kernel may have a buffer left: false while the owner holds every one of them.
    pub(super) fn has_free(&self) -> bool {
        self.held.get() < self.count
    }

    /// Takes possession of the buffer that a completion named, which holds `len_bytes` received bytes.
    pub(super) fn take(self: &Rc<Self>, id: u16, len_bytes: u32) -> RecvBuffer {
        assert!(id < self.count && len_bytes <= self.buffer_len_bytes);
        assert!(self.has_free());
        self.held.set(self.held.get() + 1);
        RecvBuffer { pool: Rc::clone(self), id, len_bytes }
    }

    fn buffer_start(&self, id: u16) -> NonNull<u8> {
        debug_assert!(id < self.count);
        // SAFETY: `id < count`, so the offset lies within the mapping of `count * buffer_len_bytes` bytes.
        unsafe { self.memory.start.add(usize::from(id) * self.buffer_len_bytes as usize) }
    }

    fn publish(&self, id: u16) {
        let tail = self.tail.get();
        let entries = self.descriptors.start.cast::<BufRingEntry>();
        // SAFETY: the index is below `count`, so the entry lies within the page-aligned mapping, which is zeroed (a
        // valid entry). At most `count` ids exist and each is published once, so this entry is not one that the
        // kernel may still read. Only the three fields are written: the reserved field of entry 0 is the tail.
        let entry = unsafe { entries.add(usize::from(tail & (self.count - 1))).as_mut() };
        entry.set_addr(self.buffer_start(id).as_ptr() as u64);
        entry.set_len(self.buffer_len_bytes);
        entry.set_bid(id);
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the tail field lies within entry 0 of the mapping, is aligned for u16, and is shared with the
        // kernel only through atomic accesses. Release makes the entry visible before the tail that covers it.
        unsafe {
            let shared_tail = BufRingEntry::tail(entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(shared_tail).store(self.tail.get(), Ordering::Release);
        }
    }
}

/// Received bytes. Dropping it returns the buffer to the pool, so hold it no longer than it takes to read: while the
/// owner holds all buffers of a ring, none of the ring's connections receives anything.
pub struct RecvBuffer {
    pool: Rc<BufferPool>,
    id: u16,
    len_bytes: u32,
}

impl Deref for RecvBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.pool.buffer_start(self.id);
        // SAFETY: `len_bytes` fits the buffer; the memory is initialized (mapped zeroed); and until this value is
        // dropped the id is not published, so the kernel does not write to it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len_bytes as usize) }
    }
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        self.pool.held.set(self.pool.held.get() - 1);
        self.pool.publish(self.id);
    }
}

impl std::fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvBuffer({}, {} bytes)", self.id, self.len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(pool: &BufferPool, position: u16) -> u16 {
        let entries = pool.descriptors.start.cast::<BufRingEntry>();
        // SAFETY: the index is reduced to the mapping's `count` entries.
        unsafe { entries.add(usize::from(position & (pool.count - 1))).as_ref() }.bid()
    }

    #[test]
    fn a_dropped_buffer_goes_to_the_tail_and_a_held_one_does_not() {
        let pool = BufferPool::new(4, 64).unwrap();
        assert_eq!(pool.tail.get(), 4);
        let first = pool.take(0, 10);
        let second = pool.take(1, 64);
        assert_eq!((first.len(), second.len()), (10, 64));
        drop(second);
        assert_eq!(pool.tail.get(), 5);
        assert_eq!(published(&pool, 4), 1);
        drop(first);
        assert_eq!(published(&pool, 5), 0);
    }

    #[test]
    fn a_pool_held_entirely_has_none_free() {
        let pool = BufferPool::new(2, 64).unwrap();
        let held = [pool.take(0, 1), pool.take(1, 1)];
        assert!(!pool.has_free());
        drop(held);
        assert!(pool.has_free());
    }

    #[test]
    fn the_tail_wraps_around() {
        let pool = BufferPool::new(2, 64).unwrap();
        for round in 0..70_000_u32 {
            drop(pool.take((round & 1) as u16, 1));
        }
        assert_eq!(pool.tail.get(), (70_002_u32 & 0xffff) as u16);
    }
}
