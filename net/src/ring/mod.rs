//! The network ring: all socket I/O of one shard, through one io_uring of its own.
//!
//! It moves bytes and knows nothing of protocols, sessions or shards. Operations are queued by plain calls
//! ([`Ring::send`], [`Ring::start_recv`], ...), go to the kernel together at the next [`Ring::poll`], and come back as
//! [`Event`]s from [`Ring::next`]. Events own what they carry, so the owner may call the ring while it handles one.
//!
//! The one task of the shard's glommio executor drives the ring:
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
mod complete;
mod connect;
mod send;
mod sleep;
mod slots;
mod submit;
mod support;
#[cfg(test)]
mod tests;
mod wake;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use io_uring::squeue::Entry;
use io_uring::types::Timespec;
use io_uring::{IoUring, opcode, types};

pub use buffers::RecvBuffer;
pub use send::SendBuffer;
pub use slots::Token;
pub use support::check_support;
pub use wake::Waker;

use buffers::{BUFFER_GROUP, BufferPool};
use complete::Completion;
use connect::SocketAddress;
use send::InFlightSend;
use slots::{Operation, Phase, Slots};
use wake::WakeState;

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
            timer_deadline: None,
            timer_spec: Box::new(Timespec::new()),
        };
        ring.poll_wakes();
        Ok(ring)
    }

    /// A handle that ends this ring's sleep from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.wake.waker()
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
    /// something to submit or the kernel has work to finish.
    ///
    /// # Errors
    /// Those of the ring as a whole; none is expected, and none is recoverable.
    pub fn poll(&mut self) -> io::Result<()> {
        self.flush()?;
        self.collect();
        Ok(())
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

    fn has_events(&self) -> bool {
        !self.completions.is_empty() || !self.events.is_empty()
    }
}

fn raw_fd(socket: &Option<OwnedFd>) -> RawFd {
    socket.as_ref().expect("a live slot has a socket").as_raw_fd()
}
