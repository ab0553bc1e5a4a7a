//! Sleeping in the ring: one call to the kernel that returns upon a completion.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::types::TimeoutFlags;
use io_uring::{opcode, types};

use super::Ring;
use super::slots::{Operation, Tag};

impl Ring {
    /// Sleeps until a completion, a [`Waker::wake`](super::Waker::wake), or about `deadline`; then go on with [`poll`](Self::poll). It may
    /// return without a reason. Nothing else on this thread runs meanwhile. `has_work` looks at the inputs whose senders
    /// use the waker; it is called after the sleep was announced, so that nothing they sent is missed.
    ///
    /// The deadline is kept by one timer of the ring that is set again only when it fired or came later than asked:
    /// sleeping often costs no timers, but may end without a reason.
    ///
    /// # Errors
    /// As for [`poll`](Self::poll).
    pub fn wait(&mut self, deadline: Option<Instant>, has_work: impl FnOnce() -> bool) -> io::Result<()> {
        if !self.may_sleep(deadline)? {
            return Ok(());
        }
        self.wake.announce();
        let slept = if has_work() { Ok(()) } else { self.enter(1) };
        self.wake.withdraw();
        slept
    }

    /// Sets the timer and hands everything to the kernel. False if that brought something to do.
    fn may_sleep(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        if let Some(deadline) = deadline {
            self.arm_timer(deadline);
        }
        self.flush()?;
        self.collect();
        Ok(!self.has_events() && self.uring.submission().is_empty() && self.overflow.is_empty())
    }

    /// Starts to poll for what [`Waker`](super::Waker)s write. Nobody reads it: each write is an event of its own.
    pub(super) fn poll_wakes(&mut self) {
        let eventfd = types::Fd(self.wake.eventfd().as_raw_fd());
        let poll = opcode::PollAdd::new(eventfd, libc::POLLIN as u32).multi(true).build();
        self.push(poll.user_data(Tag::of_ring(Operation::Wake).encode()));
    }

    fn arm_timer(&mut self, deadline: Instant) {
        if self.timer_deadline.is_some_and(|armed| armed <= deadline) {
            return;
        }
        *self.timer_spec = deadline.saturating_duration_since(Instant::now()).into();
        let timer = Tag::of_ring(Operation::Timer).encode();
        let spec = &raw const *self.timer_spec;
        if self.timer_deadline.replace(deadline).is_none() {
            self.push(opcode::Timeout::new(spec).build().user_data(timer));
        } else {
            let update = opcode::TimeoutUpdate::new(timer, spec).flags(TimeoutFlags::empty()).build();
            self.push(update.user_data(Tag::of_ring(Operation::TimerUpdate).encode()));
        }
    }
}
