//! From what is wanted of a socket to operations that the kernel has.

use std::io;

use io_uring::squeue::Entry;
use io_uring::{EnterFlags, opcode, types};

use super::buffers::BUFFER_GROUP;
use super::slots::{Operation, Phase, Tag, Token};
use super::{Ring, raw_fd};

impl Ring {
    /// Starts a multishot operation and keeps it going.
    pub(super) fn want(&mut self, token: Token, operation: Operation) {
        let Some(slot) = self.slots.get_mut(token).filter(|slot| slot.phase == Phase::Open) else { return };
        slot.wanted = true;
        // While one is being cancelled there is no second, which the cancellation could hit; the answer to the
        // cancellation starts it.
        if slot.in_flight.has(operation) || slot.in_flight.has_cancel(operation) || slot.starved {
            return;
        }
        let fd = types::Fd(raw_fd(&slot.socket));
        let entry = match operation {
            Operation::Receive => opcode::RecvMulti::new(fd, BUFFER_GROUP).build(),
            Operation::Accept => opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build(),
            _ => unreachable!("{operation:?} is not multishot"),
        };
        self.submit(token, operation, entry);
    }

    pub(super) fn cancel(&mut self, token: Token, operation: Operation) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if !slot.in_flight.has(operation) || slot.in_flight.has_cancel(operation) {
            return;
        }
        slot.in_flight.begin(operation, true);
        let target = Tag { operation, is_cancel: false, token };
        let tag = Tag { is_cancel: true, ..target };
        self.push(opcode::AsyncCancel::new(target.encode()).build().user_data(tag.encode()));
    }

    pub(super) fn retire(&mut self, token: Token, phase: Phase) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        match (slot.phase, phase) {
            (Phase::Open, _) | (Phase::Detaching, Phase::Closing) => slot.phase = phase,
            _ => return,
        }
        slot.wanted = false;
        for operation in Operation::OF_SOCKETS {
            if phase == Phase::Closing || operation != Operation::Send {
                self.cancel(token, operation);
            }
        }
        self.finish(token);
    }

    pub(super) fn submit(&mut self, token: Token, operation: Operation, entry: Entry) {
        let slot = self.slots.get_mut(token).expect("operations are started on live sockets");
        slot.in_flight.begin(operation, false);
        let tag = Tag { operation, is_cancel: false, token };
        self.push(entry.user_data(tag.encode()));
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.in_flight += 1;
        if self.overflow.is_empty() {
            // SAFETY: what an entry points to stays valid and unchanged until its completion was seen: sends and
            // addresses are owned by this ring, moved out only by `complete`, and leaked by `drop` when the kernel
            // has not answered; the timer's time is boxed and read at submission.
            let pushed = unsafe { self.uring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
        }
        self.overflow.push_back(entry);
    }

    /// Enters the kernel as often as it takes to submit everything, and once if it has task work to finish.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.feed_starved();
        let must_enter = {
            let submission = self.uring.submission();
            !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
        };
        if must_enter {
            self.enter(0)?;
        }
        while !self.overflow.is_empty() {
            let mut submission = self.uring.submission();
            while let Some(entry) = self.overflow.front() {
                // SAFETY: as in `push`.
                if unsafe { submission.push(entry) }.is_err() {
                    break;
                }
                self.overflow.pop_front();
            }
            drop(submission);
            self.enter(0)?;
            if self.uring.submission().is_full() {
                // The kernel takes no more before completions are collected.
                break;
            }
        }
        Ok(())
    }

    /// Enters the kernel, until at least `wait_for` completions are there.
    pub(super) fn enter(&mut self, wait_for: u32) -> io::Result<()> {
        let to_submit = self.uring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the entries submitted are sound as `push` explains.
        let entered =
            unsafe { self.uring.submitter().enter::<libc::sigset_t>(to_submit, wait_for, flags, None) };
        match entered {
            Ok(_) => Ok(()),
            // Interrupted, or short of memory or of completion space: what was not submitted stays queued for the
            // next round.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() || !self.pool.has_free() {
            return;
        }
        for token in std::mem::take(&mut self.starved) {
            // The token may be stale; then its slot's successor is not concerned.
            if let Some(slot) = self.slots.get_mut(token) {
                slot.starved = false;
                if slot.wanted {
                    self.want(token, Operation::Receive);
                }
            }
        }
    }
}
