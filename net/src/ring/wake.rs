//! Being woken: other threads end a ring's sleep ([`Ring::wait`](super::Ring::wait)) by an eventfd that the ring polls.
//!
//! No wake-up is lost because both sides write before they read, with a full fence between:
//! - the sleeper says that it sleeps, fences, and then looks for work once more before it sleeps;
//! - the waker's caller publishes the work, then `wake` fences and looks whether the other sleeps.
//!
//! In the single order of the two fences one comes first, so either the sleeper sees the work or the waker sees
//! the sleep.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

struct Shared {
    is_asleep: AtomicBool,
    eventfd: File,
}

/// The ring's own end.
pub(super) struct WakeState(Arc<Shared>);

fn eventfd() -> io::Result<File> {
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
        Ok(Self(Arc::new(Shared { is_asleep: AtomicBool::new(false), eventfd: eventfd()? })))
    }

    /// To be polled by the ring.
    pub(super) fn eventfd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }

    /// Announces the sleep. What is published before a later `wake` that does not see this is visible after it.
    pub(super) fn announce(&self) {
        self.0.is_asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn withdraw(&self) {
        self.0.is_asleep.store(false, Ordering::Relaxed);
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
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
        if !self.0.is_asleep.load(Ordering::Relaxed) || !self.0.is_asleep.swap(false, Ordering::AcqRel) {
            return;
        }
        // Cannot fail: the counter would have to reach 2^64 without ever being read.
        let written = (&self.0.eventfd).write(&1_u64.to_ne_bytes());
        debug_assert!(matches!(written, Ok(8)));
    }
}
