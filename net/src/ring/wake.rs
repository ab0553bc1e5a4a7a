//! Sleeping and being woken.
//!
//! One eventfd serves all who can end a sleep: the kernel writes it when a completion of the ring is due, a [`Waker`]
//! writes it for another thread, and the [`Sleeper`] awaits a read of it through glommio.
//!
//! No wake-up is lost because both sides write before they read, with a full fence between:
//! - the sleeper sets `asleep`, fences, and then looks for work once more before it sleeps;
//! - the waker's caller publishes the work, then `wake` fences and looks at `asleep`.
//!
//! In the single order of the two fences one comes first, so either the sleeper sees the work or the waker sees
//! `asleep`. The kernel plays the same part for completions, with the ring's "eventfd disabled" flag for `asleep`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use glommio::io::BufferedFile;

struct Shared {
    asleep: AtomicBool,
    eventfd: File,
}

/// The ring's own end.
pub(super) struct WakeState(Arc<Shared>);

impl WakeState {
    pub(super) fn new() -> io::Result<Self> {
        // Blocking on purpose: io_uring answers a read of a non-blocking descriptor with EAGAIN instead of waiting.
        // SAFETY: creates a descriptor, touches no memory.
        let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if eventfd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open and nobody else's.
        let eventfd = unsafe { File::from_raw_fd(eventfd) };
        Ok(Self(Arc::new(Shared { asleep: AtomicBool::new(false), eventfd })))
    }

    pub(super) fn eventfd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }

    /// Announces the sleep. What is published before a later `wake` that does not see this is visible after it.
    pub(super) fn announce(&self) {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn withdraw(&self) {
        self.0.asleep.store(false, Ordering::Relaxed);
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    pub(super) fn sleeper(&self) -> io::Result<Sleeper> {
        let eventfd: OwnedFd = self.0.eventfd.as_fd().try_clone_to_owned()?;
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
        if self.0.asleep.load(Ordering::Relaxed) && self.0.asleep.swap(false, Ordering::AcqRel) {
            // Cannot fail: the counter would have to reach 2^64 without ever being read.
            let written = (&self.0.eventfd).write(&1_u64.to_ne_bytes());
            debug_assert!(matches!(written, Ok(8)));
        }
    }
}

/// What the driving task awaits. It is separate from the ring so that nothing borrows the ring during a sleep.
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
