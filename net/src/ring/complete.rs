//! From the kernel's completions to events.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use io_uring::EnterFlags;
use io_uring::cqueue;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};

use super::buffers::RecvBuffer;
use super::slots::{Operation, Phase, Tag, Token};
use super::{Event, Ring, connect, raw_fd};

pub(super) struct Completion {
    tag: Tag,
    result: i32,
    flags: u32,
}

impl Ring {
    /// Moves completions out of the queue that the kernel shares, so that it has room again.
    pub(super) fn collect(&mut self) {
        for entry in self.uring.completion() {
            if !cqueue::more(entry.flags()) {
                self.in_flight -= 1;
            }
            self.completions.push_back(Completion {
                tag: Tag::decode(entry.user_data()),
                result: entry.result(),
                flags: entry.flags(),
            });
        }
    }

    pub(super) fn complete(&mut self, completion: Completion) -> Option<Event> {
        let Completion { tag: Tag { operation, is_cancel, token }, result, flags } = completion;
        if is_cancel {
            self.complete_cancel(token, operation, result);
            self.finish(token);
            return None;
        }
        match operation {
            Operation::Timer => {
                self.timer_deadline = None;
                return None;
            }
            // If it came too late, the timer has fired, and its completion says so.
            Operation::TimerUpdate => return None,
            Operation::Wake => {
                if !cqueue::more(flags) {
                    self.poll_wakes();
                }
                return None;
            }
            _ => {}
        }
        let has_more = cqueue::more(flags);
        let slot = self.slots.get_mut(token).expect("a slot outlives its operations");
        if !has_more {
            slot.in_flight.end(operation, false);
        }
        let event = match operation {
            Operation::Receive => {
                let data = cqueue::buffer_select(flags).map(|id| self.pool.take(id, result.max(0) as u32));
                self.complete_recv(token, result, data, has_more)
            }
            Operation::Accept => self.complete_accept(token, result, has_more),
            Operation::Send => self.complete_send(token, result),
            Operation::Connect => {
                let place = self.connects.iter().position(|(connecting, _)| *connecting == token);
                self.connects.swap_remove(place.expect("the address of a connect under way is kept"));
                let is_open = self.phase(token) == Phase::Open;
                is_open.then(|| Event::Connected { token, result: io_result(result).map(drop) })
            }
            Operation::Timer | Operation::TimerUpdate | Operation::Wake => unreachable!("handled above"),
        };
        self.finish(token);
        event
    }

    /// Lets go of a retired socket once nothing of it is in flight.
    pub(super) fn finish(&mut self, token: Token) {
        let Some(slot) = self.slots.get(token) else { return };
        if slot.phase == Phase::Open || !slot.in_flight.is_empty() {
            return;
        }
        let phase = slot.phase;
        let socket = self.slots.remove(token);
        self.events.push_back(match phase {
            Phase::Detaching => Event::Detached { token, socket },
            Phase::Open | Phase::Closing => {
                drop(socket);
                Event::Closed { token }
            }
        });
    }

    pub(super) fn phase(&self, token: Token) -> Phase {
        self.slots.get(token).expect("a slot outlives its operations").phase
    }

    pub(super) fn complete_recv(
        &mut self,
        token: Token,
        result: i32,
        data: Option<RecvBuffer>,
        has_more: bool,
    ) -> Option<Event> {
        let slot = self.slots.get_mut(token).expect("a slot outlives its operations");
        if slot.phase == Phase::Closing {
            return None;
        }
        let has_failed = match -result {
            libc::ENOBUFS => {
                if slot.wanted && !has_more && !slot.starved {
                    slot.starved = true;
                    self.starved.push(token);
                }
                return None;
            }
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => false,
            code => code >= 0,
        };
        if has_failed {
            slot.wanted = false;
        } else if slot.wanted && !has_more {
            self.want(token, Operation::Receive);
        }
        match data {
            _ if has_failed && result == 0 => Some(Event::Eof { token }),
            _ if has_failed => Some(Event::RecvError { token, error: io::Error::from_raw_os_error(-result) }),
            Some(data) if result > 0 => Some(Event::Received { token, data }),
            _ => None,
        }
    }

    pub(super) fn complete_accept(&mut self, listener: Token, result: i32, has_more: bool) -> Option<Event> {
        let accepted = io_result(result).map(connect::adopt);
        let slot = self.slots.get_mut(listener).expect("a slot outlives its operations");
        match accepted {
            Ok(socket) => {
                if slot.wanted && !has_more {
                    self.want(listener, Operation::Accept);
                }
                // A listener that closes drops what it still accepts; one that moves elsewhere does not.
                (self.phase(listener) != Phase::Closing).then_some(Event::Accepted { listener, socket })
            }
            Err(_) if !slot.wanted => None,
            Err(error) => match error.raw_os_error() {
                // The peer was gone before it was accepted, which says nothing of the next.
                Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                    self.want(listener, Operation::Accept);
                    None
                }
                _ => {
                    slot.wanted = false;
                    Some(Event::AcceptError { listener, error })
                }
            },
        }
    }

    pub(super) fn complete_send(&mut self, token: Token, result: i32) -> Option<Event> {
        let slot = self.slots.get_mut(token).expect("a slot outlives its operations");
        let place = slot.send().expect("a send under way has its place");
        let fd = raw_fd(&slot.socket);
        let is_closing = slot.phase == Phase::Closing;
        let send = self.sends[place].as_mut().expect("a send under way is in its place");
        let outcome = match io_result(result) {
            Ok(len) => {
                send.advance(len as usize);
                if len == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        };
        if outcome.is_ok() && send.unsent_len_bytes() > 0 && !is_closing {
            let operation = send.operation(fd);
            self.submit(token, Operation::Send, operation);
            return None;
        }
        slot.set_send(None);
        let send = self.sends[place].take().expect("a send under way is in its place");
        self.vacant_sends.push(place as u32);
        (!is_closing).then(|| Event::Sent { token, buffer: send.into_buffer(), result: outcome })
    }

    pub(super) fn complete_cancel(&mut self, token: Token, operation: Operation, result: i32) {
        let slot = self.slots.get_mut(token).expect("a slot outlives its cancellations");
        slot.in_flight.end(operation, true);
        if slot.wanted {
            self.want(token, operation);
        } else if result < 0 && slot.in_flight.has(operation) {
            // The kernel was busy with the operation just then. Again, until it is found or done.
            self.cancel(token, operation);
        }
    }
}

impl Drop for Ring {
    /// Cancels everything and waits, for a bounded time, until the kernel has let go of the buffers.
    fn drop(&mut self) {
        // Entries the kernel was never given are not in flight.
        let unsubmitted = self.uring.submission().len() + self.overflow.len();
        let mut rounds_left = 10;
        self.collect();
        while self.in_flight > unsubmitted && rounds_left > 0 {
            rounds_left -= 1;
            let wait = Timespec::from(Duration::from_millis(100));
            // Not finding anything to cancel is fine: then the answers are on their way.
            let _ = self.uring.submitter().register_sync_cancel(Some(wait), CancelBuilder::any());
            let arguments = SubmitArgs::new().timespec(&wait);
            let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
            // SAFETY: the argument has the layout that EXT_ARG announces, and nothing is submitted.
            let _ = unsafe { self.uring.submitter().enter(0, 1, flags.bits(), Some(&arguments)) };
            self.collect();
        }
        if self.in_flight > unsubmitted {
            // The kernel may still read or write this memory; it must not be used for anything else.
            std::mem::forget(Rc::clone(&self.pool));
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.connects));
        }
        // Connections accepted but not handed out would otherwise stay open for ever.
        while let Some(completion) = self.completions.pop_front() {
            let Completion { tag, result, .. } = completion;
            if tag.operation == Operation::Accept && !tag.is_cancel && result >= 0 {
                drop(connect::adopt(result as u32));
            }
        }
    }
}

fn io_result(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
