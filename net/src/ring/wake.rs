//! Sleeping and being woken.
//!
//! There are two ways to sleep. In the ring itself ([`Ring::wait`](super::Ring::wait)) is the cheap one: one call to the
//! kernel, which returns upon a completion; it holds up everything else on the thread. Through the executor
//! ([`Sleeper`]) is the one for times in which the executor has other tasks.
//!
//! Each way has an eventfd. The ring polls its own, which [`Waker`]s of other threads write. The executor's is read by
//! the [`Sleeper`]; the kernel writes it when a completion of the ring is due, and wakers do. (One for both would feed
//! itself: the completion of the poll would write what is polled.)
//!
//! No wake-up is lost because both sides write before they read, with a full fence between:
//! - the sleeper says how it sleeps, fences, and then looks for work once more before it sleeps;
//! - the waker's caller publishes the work, then `wake` fences and looks whether and how the other sleeps.
//!
//! In the single order of the two fences one comes first, so either the sleeper sees the work or the waker sees
//! the sleep. The kernel plays the same part for completions, with the ring's "eventfd disabled" flag.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use glommio::io::BufferedFile;

/// How a ring's thread sleeps.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Sleep {
    Not = 0,
    InRing = 1,
    InExecutor = 2,
}

struct Shared {
    /// A [`Sleep`].
    sleep: AtomicU8,
    for_ring: File,
    for_executor: File,
}

/// The ring's own end.
pub(super) struct WakeState(Arc<Shared>);

fn eventfd() -> io::Result<File> {
    // Blocking on purpose: io_uring answers a read of a non-blocking descriptor with EAGAIN instead of waiting.
    // SAFETY: creates a descriptor, touches no memory.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if eventfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and nobody else's.
    Ok(unsafe { File::from_raw_fd(eventfd) })
}

impl WakeState {
    pub(super) fn new() -> io::Result<Self> {
        let sleep = AtomicU8::new(Sleep::Not as u8);
        Ok(Self(Arc::new(Shared { sleep, for_ring: eventfd()?, for_executor: eventfd()? })))
    }

    /// To be polled by the ring.
    pub(super) fn for_ring(&self) -> BorrowedFd<'_> {
        self.0.for_ring.as_fd()
    }

    /// To be written by the kernel.
    pub(super) fn for_executor(&self) -> BorrowedFd<'_> {
        self.0.for_executor.as_fd()
    }

    /// Announces the sleep. What is published before a later `wake` that does not see this is visible after it.
    pub(super) fn announce(&self, sleep: Sleep) {
        self.0.sleep.store(sleep as u8, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn withdraw(&self) {
        self.0.sleep.store(Sleep::Not as u8, Ordering::Relaxed);
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    pub(super) fn sleeper(&self) -> io::Result<Sleeper> {
        let eventfd: OwnedFd = self.0.for_executor.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is open, and this duplicate is given to the file, which closes it.
        Ok(Sleeper { eventfd: unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) } })
    }
}

/// Ends a ring's sleep, from any thread.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Call after publishing the work (a store with release ordering or stronger). While the ring is awake this costs
    /// one fence and one load; so publish a batch and wake once.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.0.sleep.load(Ordering::Relaxed) == Sleep::Not as u8 {
            return;
        }
        let sleep = self.0.sleep.swap(Sleep::Not as u8, Ordering::AcqRel);
        let mut eventfd = match sleep {
            _ if sleep == Sleep::InRing as u8 => &self.0.for_ring,
            _ if sleep == Sleep::InExecutor as u8 => &self.0.for_executor,
            _ => return,
        };
        // Cannot fail: the counter would have to reach 2^64 without ever being read.
        let written = eventfd.write(&1_u64.to_ne_bytes());
        debug_assert!(matches!(written, Ok(8)));
    }
}

/// What the driving task awaits to sleep through the executor. It is separate from the ring so that nothing borrows the ring during a sleep.
pub struct Sleeper {
    eventfd: BufferedFile,
}

impl Sleeper {
    /// Sleeps until the eventfd is written. Call when [`Ring::prepare_sleep`](super::Ring::prepare_sleep) returned
    /// true, and then go on with [`Ring::poll`](super::Ring::poll). It may return without a reason.
    ///
    /// # Errors
    /// Those of reading an eventfd: none is expected, and none is recoverable.
    pub async fn sleep(&self) -> io::Result<()> {
        self.eventfd.read_at(0, size_of::<u64>()).await?;
        Ok(())
    }
}
