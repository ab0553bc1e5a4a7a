//! The network ring: all socket I/O of one shard, through one io_uring of its own.
//!
//! It moves bytes and knows nothing of protocols, sessions or shards. Operations are queued by plain calls
//! ([`Ring::send`], [`Ring::start_recv`], ...), go to the kernel together at the next [`Ring::poll`], and come back as
//! [`Event`]s from [`Ring::next`]. Events own what they carry, so the owner may call the ring while it handles one.
//!
//! One task of the shard's glommio executor drives the ring:
//!
//! ```no_run
//! # use braid_net::ring::{Event, Ring, RingConfig};
//! # fn drive() -> std::io::Result<()> {
//! let mut ring = Ring::new(&RingConfig::default())?;
//! loop {
//!     ring.poll()?;
//!     while let Some(event) = ring.next() {
//!         match event {
//!             Event::Received { token, data } => {
//!                 let _ = ring.send(token, data.to_vec().into());
//!             }
//!             _ => {}
//!         }
//!     }
//!     // Other inputs, such as messages from other shards, are handled here.
//!     let mailboxes_hold_something = || false;
//!     ring.wait(None, mailboxes_hold_something)?;
//! }
//! # }
//! ```
//!
//! The ring is set up with `SINGLE_ISSUER | DEFER_TASKRUN`: completions never interrupt the thread, they are worked
//! off when the thread enters the kernel, which it does when it has something to submit or the kernel has set the
//! ring's "task work" flag. Invariant: only the thread that made the ring uses it (the type is not `Send`).

mod buffers;
mod send;
mod slots;
mod support;
#[cfg(test)]
mod tests;
mod wake;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, SubmitArgs, TimeoutFlags, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, types};

pub use buffers::RecvBuffer;
pub use send::SendBuffer;
pub use slots::Token;
pub use support::check_support;
pub use wake::{Sleeper, Waker};

use buffers::{BUFFER_GROUP, BufferPool};
use send::InFlightSend;
use slots::{Operation, Phase, Slots, Tag};
use wake::{Sleep, WakeState};

mod connect;
use connect::SocketAddress;

/// Sizes of a ring. None of it is locked memory.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Operations that one entry to the kernel submits; a power of two, at most 32768. More than that in one tick is
    /// allowed and costs another entry.
    pub entries: u32,
    /// Completions the kernel can leave before it must queue them elsewhere; a power of two, at least `entries`.
    pub completion_entries: u32,
    /// Receive buffers that all connections share; a power of two, at most 32768. It bounds what one round receives;
    /// connections that find none left continue in the next round.
    pub recv_buffers: u16,
    /// Bytes of one receive buffer.
    pub recv_buffer_len_bytes: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { entries: 1024, completion_entries: 8192, recv_buffers: 64, recv_buffer_len_bytes: 16 << 10 }
    }
}

/// What happened. See the methods of [`Ring`] for what leads to each.
#[derive(Debug)]
pub enum Event {
    /// A listener accepted a connection. The socket belongs to the owner, to [`add`](Ring::add) here or elsewhere.
    Accepted { listener: Token, socket: OwnedFd },
    /// Accepting stopped (mostly: no file descriptors left). [`Ring::start_accept`] tries again; wait a while first.
    AcceptError { listener: Token, error: io::Error },
    /// The answer to [`Ring::connect`]. After an error the token still has to be closed.
    Connected { token: Token, result: io::Result<()> },
    /// Bytes arrived; never empty.
    Received { token: Token, data: RecvBuffer },
    /// The peer will send no more. It may still read.
    Eof { token: Token },
    /// Receiving failed and has stopped.
    RecvError { token: Token, error: io::Error },
    /// A send ended, completely or with an error, and hands its buffer back as it was given.
    Sent { token: Token, buffer: SendBuffer, result: io::Result<()> },
    /// The socket is closed and nothing of it is in flight: the last event of its token.
    Closed { token: Token },
    /// The answer to [`Ring::detach`]: nothing of the socket is in flight; the last event of its token.
    Detached { token: Token, socket: OwnedFd },
}

struct Completion {
    tag: Tag,
    result: i32,
    flags: u32,
}

/// See the [module](self).
pub struct Ring {
    // Fields are dropped in order: the kernel's side goes before the memory it may refer to.
    uring: IoUring,
    pool: Rc<BufferPool>,
    slots: Slots,
    sends: Vec<Option<InFlightSend>>,
    vacant_sends: Vec<u32>,
    /// Addresses of connects under way: the kernel reads them by pointer.
    connects: Vec<(Token, Box<SocketAddress>)>,
    /// Operations that found the submission queue full.
    overflow: VecDeque<Entry>,
    /// Operations handed to the kernel, or queued to be, whose final completion was not seen yet.
    in_flight: usize,
    completions: VecDeque<Completion>,
    /// Events that no completion brings.
    events: VecDeque<Event>,
    starved: Vec<Token>,
    wake: WakeState,
    /// As it was announced.
    sleep: Sleep,
    timer_deadline: Option<Instant>,
    /// Boxed because the kernel reads it by pointer.
    timer_spec: Box<Timespec>,
}

impl Ring {
    /// Sets up a ring that the calling thread, and only it, may use.
    ///
    /// # Errors
    /// What the kernel says; [`check_support`] explains it to an operator.
    pub fn new(config: &RingConfig) -> io::Result<Self> {
        assert!(config.entries.is_power_of_two() && config.completion_entries.is_power_of_two());
        assert!(config.completion_entries >= config.entries);
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(config.completion_entries)
            .dontfork()
            .build(config.entries)?;
        let pool = BufferPool::new(config.recv_buffers, config.recv_buffer_len_bytes)?;
        // SAFETY: the pool maps that many descriptors at that address until after the ring is dropped (field order),
        // or for ever, if the ring could not be drained.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                pool.descriptors_address(),
                pool.count(),
                BUFFER_GROUP,
                0,
            )?;
        }
        let wake = WakeState::new()?;
        // Not the "async" variant: that one is silent for deferred task work, which is how all completions begin here.
        uring.submitter().register_eventfd(wake.for_executor().as_raw_fd())?;
        let mut ring = Self {
            uring,
            pool,
            slots: Slots::default(),
            sends: Vec::new(),
            vacant_sends: Vec::new(),
            connects: Vec::new(),
            overflow: VecDeque::new(),
            in_flight: 0,
            completions: VecDeque::new(),
            events: VecDeque::new(),
            starved: Vec::new(),
            wake,
            sleep: Sleep::Not,
            timer_deadline: None,
            timer_spec: Box::new(Timespec::new()),
        };
        ring.uring.completion().disable_eventfd();
        ring.poll_wakes();
        Ok(ring)
    }

    /// A handle that ends this ring's sleep from any thread, or from another task of this one.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.wake.waker()
    }

    /// What the driving task awaits to sleep. Call it inside a glommio executor.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn sleeper(&self) -> io::Result<Sleeper> {
        self.wake.sleeper()
    }

    /// Sockets of the ring, listeners included.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.slots.len()
    }

    /// Listens on a bound, listening socket (TCP or unix), from now until [`close`](Self::close).
    pub fn accept(&mut self, listener: OwnedFd) -> Token {
        let token = self.slots.insert(listener);
        self.start_accept(token);
        token
    }

    /// Accepts again after [`Event::AcceptError`].
    pub fn start_accept(&mut self, listener: Token) {
        self.want(listener, Operation::Accept);
    }

    /// Takes over a connected socket: an accepted one, or one from a listener thread or another shard.
    /// Nothing is received before [`start_recv`](Self::start_recv).
    pub fn add(&mut self, socket: OwnedFd) -> Token {
        self.slots.insert(socket)
    }

    /// Opens a TCP connection to `address`, from the local address `source` if one is given. The outcome comes as
    /// [`Event::Connected`]; nothing else may be asked of the token before, except [`close`](Self::close).
    ///
    /// # Errors
    /// When no socket can be made, or bound to `source`.
    pub fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<Token> {
        let socket = connect::new_tcp_socket(address, source)?;
        let fd = socket.as_raw_fd();
        let token = self.slots.insert(socket);
        let address = Box::new(SocketAddress::new(address));
        let operation = opcode::Connect::new(types::Fd(fd), address.as_ptr(), address.len_bytes()).build();
        self.connects.push((token, address));
        self.submit(token, Operation::Connect, operation);
        Ok(token)
    }

    /// Receives from now on, as [`Event::Received`], until [`Event::Eof`], [`Event::RecvError`], a pause or the close.
    /// Does nothing when it is receiving already or the token is no longer open.
    pub fn start_recv(&mut self, token: Token) {
        self.want(token, Operation::Receive);
    }

    /// The socket of a token, to ask it for its addresses.
    #[must_use]
    pub fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        self.slots.get(token).and_then(|slot| slot.socket.as_ref()).map(AsFd::as_fd)
    }

    /// Stops receiving, to hold back a peer that sends faster than its requests are served. What the kernel had
    /// received before it learned of the pause still arrives. [`start_recv`](Self::start_recv) resumes.
    pub fn pause_recv(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.wanted = false;
        self.cancel(token, Operation::Receive);
    }

    /// Sends all of `buffer` (which is not empty), in as many operations as it takes. The ring owns the buffer until
    /// [`Event::Sent`] hands it back; after [`close`](Self::close) it is dropped instead.
    /// One send per connection may be under way.
    ///
    /// # Errors
    /// The buffer comes straight back when the token is no longer open.
    pub fn send(&mut self, token: Token, buffer: SendBuffer) -> Result<(), SendBuffer> {
        assert!(!buffer.is_empty(), "an empty send would never be answered");
        let Some(slot) = self.slots.get_mut(token).filter(|slot| slot.phase == Phase::Open) else {
            return Err(buffer);
        };
        assert!(slot.send().is_none(), "one send per connection may be under way");
        let fd = raw_fd(&slot.socket);
        let place = self.vacant_sends.pop().map_or_else(
            || {
                self.sends.push(None);
                self.sends.len() - 1
            },
            |place| place as usize,
        );
        slot.set_send(Some(place));
        let operation = self.sends[place].insert(InFlightSend::new(buffer)).operation(fd);
        self.submit(token, Operation::Send, operation);
        Ok(())
    }

    /// Bytes of the send under way that the kernel has not taken yet (of this, the peer has read nothing); 0 without
    /// one. That a large number does not change over time is the mark of a slow reader.
    #[must_use]
    pub fn unsent_len_bytes(&self, token: Token) -> usize {
        let send =
            self.slots.get(token).and_then(slots::Slot::send).and_then(|place| self.sends[place].as_ref());
        send.map_or(0, InFlightSend::unsent_len_bytes)
    }

    /// Closes a connection or a listener at once: what is unsent is dropped, what is received is not delivered.
    /// [`Event::Closed`] follows, possibly after events that had happened before. A stale token is ignored.
    pub fn close(&mut self, token: Token) {
        self.retire(token, Phase::Closing);
    }

    /// Takes the socket out of the ring, unharmed, to hand it elsewhere. Receiving stops, a send under way is
    /// finished, and then [`Event::Detached`] brings the socket. What arrives as [`Event::Received`] before it has
    /// been taken off the socket and is for the owner to hand on.
    pub fn detach(&mut self, token: Token) {
        self.retire(token, Phase::Detaching);
    }

    /// Submits what is queued and collects what has completed, without waiting. Enters the kernel only if there is
    /// something to submit or the kernel has work to finish. Ends a sleep. Returns whether [`next`](Self::next) has
    /// something to look at.
    ///
    /// # Errors
    /// Those of the ring as a whole; none is expected, and none is recoverable.
    pub fn poll(&mut self) -> io::Result<bool> {
        self.withdraw_sleep();
        self.flush()?;
        self.collect();
        Ok(self.has_events())
    }

    /// The next event, in the order of completion. Call it until it returns None, after every [`poll`](Self::poll).
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would keep the ring borrowed while events last"
    )]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                if let Event::Closed { token } | Event::Detached { token, .. } = event {
                    self.slots.vacate(token);
                }
                return Some(event);
            }
            let completion = self.completions.pop_front()?;
            if let Some(event) = self.complete(completion) {
                return Some(event);
            }
        }
    }

    /// Sleeps until a completion, a [`Waker::wake`], or about `deadline`; then go on with [`poll`](Self::poll). It may
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
        self.sleep = Sleep::InRing;
        self.wake.announce(Sleep::InRing);
        if !has_work() {
            self.enter(1)?;
        }
        self.withdraw_sleep();
        Ok(())
    }

    /// Gets ready to sleep through the executor; when it returns true, await [`Sleeper::sleep`], which ends as
    /// [`wait`](Self::wait) does. When it returns false there is something to do. In both cases go on with
    /// [`poll`](Self::poll).
    ///
    /// # Errors
    /// As for [`poll`](Self::poll).
    pub fn prepare_sleep(
        &mut self,
        deadline: Option<Instant>,
        has_work: impl FnOnce() -> bool,
    ) -> io::Result<bool> {
        if !self.may_sleep(deadline)? {
            return Ok(false);
        }
        self.sleep = Sleep::InExecutor;
        self.uring.completion().enable_eventfd();
        self.wake.announce(Sleep::InExecutor);
        if has_work() || self.kernel_has_work()? {
            self.withdraw_sleep();
            return Ok(false);
        }
        Ok(true)
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

    /// Whether, after the eventfd was enabled, a completion is due that may have come before and so did not write it.
    fn kernel_has_work(&mut self) -> io::Result<bool> {
        fence(Ordering::SeqCst);
        // The kernel queues task work, sets the flag and then looks whether the eventfd is enabled. On x86-64 setting
        // the flag is a full barrier. Elsewhere only the queueing is, and entering the kernel is how to look at that.
        if !cfg!(target_arch = "x86_64") {
            self.enter(0)?;
        }
        let is_due = self.uring.submission().taskrun() || self.uring.submission().cq_overflow();
        Ok(is_due || !self.uring.completion().is_empty())
    }

    fn withdraw_sleep(&mut self) {
        match std::mem::replace(&mut self.sleep, Sleep::Not) {
            Sleep::Not => {}
            Sleep::InRing => self.wake.withdraw(),
            Sleep::InExecutor => {
                self.wake.withdraw();
                self.uring.completion().disable_eventfd();
            }
        }
    }

    fn has_events(&self) -> bool {
        !self.completions.is_empty() || !self.events.is_empty()
    }

    /// Starts to poll for what [`Waker`]s write. Nobody reads it: each write is an event of its own.
    fn poll_wakes(&mut self) {
        let eventfd = types::Fd(self.wake.for_ring().as_raw_fd());
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

    /// Starts a multishot operation and keeps it going.
    fn want(&mut self, token: Token, operation: Operation) {
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

    fn cancel(&mut self, token: Token, operation: Operation) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if !slot.in_flight.has(operation) || slot.in_flight.has_cancel(operation) {
            return;
        }
        slot.in_flight.begin(operation, true);
        let target = Tag { operation, is_cancel: false, token };
        let tag = Tag { is_cancel: true, ..target };
        self.push(opcode::AsyncCancel::new(target.encode()).build().user_data(tag.encode()));
    }

    fn retire(&mut self, token: Token, phase: Phase) {
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

    /// Lets go of a retired socket once nothing of it is in flight.
    fn finish(&mut self, token: Token) {
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

    fn submit(&mut self, token: Token, operation: Operation, entry: Entry) {
        let slot = self.slots.get_mut(token).expect("operations are started on live sockets");
        slot.in_flight.begin(operation, false);
        let tag = Tag { operation, is_cancel: false, token };
        self.push(entry.user_data(tag.encode()));
    }

    fn push(&mut self, entry: Entry) {
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
    fn flush(&mut self) -> io::Result<()> {
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
    fn enter(&mut self, wait_for: u32) -> io::Result<()> {
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

    /// Moves completions out of the queue that the kernel shares, so that it has room again.
    fn collect(&mut self) {
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

    fn feed_starved(&mut self) {
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

    fn complete(&mut self, completion: Completion) -> Option<Event> {
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

    fn phase(&self, token: Token) -> Phase {
        self.slots.get(token).expect("a slot outlives its operations").phase
    }

    fn complete_recv(
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

    fn complete_accept(&mut self, listener: Token, result: i32, has_more: bool) -> Option<Event> {
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

    fn complete_send(&mut self, token: Token, result: i32) -> Option<Event> {
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

    fn complete_cancel(&mut self, token: Token, operation: Operation, result: i32) {
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

fn raw_fd(socket: &Option<OwnedFd>) -> RawFd {
    socket.as_ref().expect("a live slot has a socket").as_raw_fd()
}

fn io_result(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
