//! Everything of a shard's thread but the shard itself: ring, connections, configuration. It is the shard's
//! [`Host`]: what a shard needs of the layers above while it runs commands.

use super::clients::{Watch, conn_id};
use super::conn::{Conn, HELD_INPUT_MAX_LEN_BYTES, HELD_OUTPUT_MAX_LEN_BYTES};
use super::follower::Following;
use super::parts::Parts;
use super::restoring::Restoring;
use super::saving::Saving;
use super::stream::Stream;
use crate::clock::Clock;
use crate::config::Config;
use crate::log_notice;
use crate::node::Node;
use crate::persistence::Moment;
use crate::ring::{Ring, SendBuffer, Token};
use crate::session::totals::{Published, ShardPublic};
use crate::session::{self, Session};
use braid_core::command::{Args, CommandId, Outcome, Segment};
use braid_core::resp::Reply;
use braid_replication::acks::ReplicaId;
use braid_replication::follower::Follower;
use braid_replication::home::Home;
use braid_replication::loading::OWN_STREAM;
use braid_shards::{ConnId, EpochError, Host, LoadAnswer, MASTER_CONN, Mark, ShardId, Share};
use bytes::Bytes;
use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// An accepted socket on its way to the shard that will serve it.
pub struct Adopt(pub OwnedFd);

/// Buffers kept for reuse, and how large one may be to be kept.
const POOL_LEN: usize = 256;
const POOL_BUFFER_MAX_BYTES: usize = 64 * 1024;

/// See the module.
pub struct Front {
    pub id: ShardId,
    pub node: Arc<Node>,
    pub config: Arc<Config>,
    pub ring: Ring,
    /// By the slot of their token. None: no connection, or one that is being worked on.
    conns: Vec<Option<Box<Conn>>>,
    next_conn: u64,
    /// Connections with replies to send.
    outgoing: Vec<Token>,
    /// Connections whose command was answered and that may have more input.
    pub ready: Vec<ConnId>,
    pub adopted: Vec<OwnedFd>,
    pool: Vec<Vec<u8>>,
    next_place: usize,
    /// The time of this tick.
    pub now: Instant,
    pub clock: Clock,
    /// Commands that take this long are noted.
    pub(super) long_ns: u64,
    pub(super) watch: Watch,
    /// What the other shards saw last.
    pub(super) published: Published,
    unix_ms: u64,
    /// Replication's state machine, on the home shard.
    pub home: Option<Box<Home>>,
    pub replicas: BTreeMap<ReplicaId, Token>,
    pub(super) next_home_tick_ms: Option<u64>,
    /// The replica role, on the home shard.
    pub(super) following: Option<Box<Following>>,
    pub(super) next_link_tick_ms: Option<u64>,
    /// Snapshots that are to be given up.
    pub(super) aborted: Vec<u64>,
    /// This shard's walk for a snapshot waits for a slow replica.
    pub(super) held_back: bool,
    /// Until when replicas may wait for more, and whether one does.
    pub(super) next_feed: Instant,
    pub(super) feed_waits: bool,
    pub(super) stream: Stream,
    /// A snapshot is being made, and there is more of it to do at once.
    pub(super) is_walking: bool,
    /// This thread insists less on its processor than others, see [`crate::niceness`].
    pub(super) has_stepped_back: bool,
    pub(super) next_report_ms: u64,
    /// The published numbers may be old, and are to be published anew at this time.
    pub(super) stale_report_ms: Option<u64>,
    pub(super) reported_replicas: usize,
    pub(super) parts: Parts,
    pub(super) saving: Saving,
    pub(super) leaving: super::leaving::Leaving,
    /// Where the stream waits for slow replicas, once there were any.
    pub(super) segments: Option<crate::disk::segments::Segments>,
    pub(super) spooling: super::spooling::Spooling,
    pub(super) restoring: Option<Box<Restoring>>,
}

impl Front {
    pub fn new(id: ShardId, node: Arc<Node>, ring: Ring, config: Arc<Config>) -> Self {
        let home = super::replicas::home(id, node.map.shards(), &config);
        let following = home.is_some().then(|| Box::new(Following::new(node.map, &config)));
        Self {
            id,
            node,
            config,
            ring,
            conns: Vec::new(),
            next_conn: 0,
            outgoing: Vec::new(),
            ready: Vec::new(),
            adopted: Vec::new(),
            pool: Vec::new(),
            next_place: 0,
            now: Instant::now(),
            clock: Clock::get(),
            long_ns: u64::MAX,
            watch: Watch::default(),
            published: Published::default(),
            unix_ms: 0,
            home,
            replicas: BTreeMap::new(),
            next_home_tick_ms: None,
            following,
            next_link_tick_ms: None,
            aborted: Vec::new(),
            held_back: false,
            next_feed: Instant::now(),
            feed_waits: false,
            stream: Stream::default(),
            is_walking: false,
            has_stepped_back: false,
            next_report_ms: 0,
            stale_report_ms: None,
            reported_replicas: 0,
            parts: Parts::default(),
            saving: Saving::default(),
            leaving: Default::default(),
            segments: None,
            spooling: Default::default(),
            restoring: None,
        }
    }

    /// The replica role's state machine.
    pub(super) fn follower(&mut self) -> &mut Follower {
        &mut self.following.as_mut().expect("on the home shard").machine
    }

    pub fn begin_tick(&mut self, now: Instant, unix_ms: u64) {
        self.now = now;
        self.unix_ms = unix_ms;
    }

    /// The time of this tick on the node's own clock, milliseconds since it started: what periods and timeouts are told
    /// by. Nobody sets that clock.
    pub fn now_ms(&self) -> u64 {
        self.now.saturating_duration_since(self.node.started).as_millis() as u64
    }

    /// Wall-clock time of this tick, milliseconds since the Unix epoch: for dates that are shown or kept.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    /// This tick's time, as a date and on the node's own clock.
    pub fn moment(&self) -> Moment {
        Moment { unix_s: self.unix_ms / 1000, uptime_s: u64::from(self.uptime_s()) }
    }

    /// Decides which shard serves an accepted socket: in turn. Returns it if that is another one.
    pub fn place(&mut self, socket: OwnedFd) -> Option<(ShardId, OwnedFd)> {
        let to = self.next_place % self.node.map.shards();
        self.next_place += 1;
        if to == usize::from(self.id) {
            self.adopted.push(socket);
            return None;
        }
        Some((to as ShardId, socket))
    }

    /// What this shard lets the others see.
    pub fn public(&self) -> &ShardPublic {
        &self.node.statistics.shards[usize::from(self.id)]
    }

    /// Slots for connections, used or not.
    pub(super) fn slots(&self) -> usize {
        self.conns.len()
    }

    pub(super) fn take_conn_at(&mut self, slot: usize) -> Option<Box<Conn>> {
        self.conns[slot].take()
    }

    /// Begins to serve an accepted socket.
    pub fn adopt(&mut self, socket: OwnedFd) {
        let clients = self.node.connected_clients.fetch_add(1, Ordering::Relaxed) + 1;
        set_socket_options(&socket, self.config.tcp_keepalive_s);
        let authenticated = self.config.requirepass.is_empty();
        let session = Session::new(self.node.next_client.fetch_add(1, Ordering::Relaxed), authenticated);
        let token = self.admit(socket, session);
        self.greet(token, clients);
    }

    /// Makes a connection of a socket and a session, and reads from it.
    pub fn admit(&mut self, socket: OwnedFd, session: Session) -> Token {
        let token = self.ring.add(socket);
        let slot = token.slot();
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        let number = self.next_conn_number();
        let id = conn_id(self, number, token);
        let mut conn = Box::new(Conn::new(token, id, session));
        self.register(&mut conn);
        assert!(self.conns[slot].replace(conn).is_none(), "a slot is free before it is used again");
        self.ring.start_recv(token);
        token
    }

    /// Tells the connections apart that have the same slot one after the other.
    pub(super) fn next_conn_number(&mut self) -> u64 {
        self.next_conn += 1;
        self.next_conn
    }

    pub fn conn_mut(&mut self, token: Token) -> Option<&mut Conn> {
        self.conns.get_mut(token.slot())?.as_deref_mut().filter(|conn| conn.token == token)
    }

    pub fn take_conn(&mut self, token: Token) -> Option<Box<Conn>> {
        self.conn_mut(token)?;
        self.conns[token.slot()].take()
    }

    pub fn take_conn_by_id(&mut self, id: ConnId) -> Option<Box<Conn>> {
        let token = self.by_id(id)?.token;
        self.take_conn(token)
    }

    fn by_id(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = session::clients::slot_of(id);
        self.conns.get_mut(slot)?.as_deref_mut().filter(|conn| conn.id == id)
    }

    pub fn put_conn(&mut self, conn: Box<Conn>) {
        let slot = conn.token.slot();
        self.conns[slot] = Some(conn);
    }

    /// The socket is closed for good.
    pub fn forget(&mut self, token: Token) {
        if let Some(mut conn) = self.take_conn(token) {
            self.node.connected_clients.fetch_sub(1, Ordering::Relaxed);
            if let Some(replica) = conn.session.replica.take() {
                self.forget_replica(&replica);
            }
            self.release(&mut conn);
        }
    }

    /// Takes back a connection's buffers.
    pub fn release(&mut self, conn: &mut Conn) {
        self.abandon_wait(conn);
        self.unregister(conn);
        self.recycle(std::mem::take(&mut conn.out.buf));
        self.recycle(std::mem::take(&mut conn.input));
    }

    /// Notes that a connection has something to send, or is to be closed.
    pub fn list(&mut self, conn: &mut Conn) {
        if !conn.listed && (!conn.out.is_empty() || conn.closing) {
            conn.listed = true;
            self.outgoing.push(conn.token);
        }
    }

    /// A buffer for replies, from the pool.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.pool.pop().unwrap_or_default()
    }

    /// Keeps a buffer for reuse.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if (1..=POOL_BUFFER_MAX_BYTES).contains(&buffer.capacity()) && self.pool.len() < POOL_LEN {
            buffer.clear();
            self.pool.push(buffer);
        }
    }

    /// Sends what the tick's commands replied. To be called after the shard's tick has ended.
    pub fn flush(&mut self) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        for token in outgoing.drain(..) {
            let Some(mut conn) = self.take_conn(token) else { continue };
            conn.listed = false;
            self.limit_output(&mut conn);
            // The replies of a pipeline leave together: what another shard is about to answer comes within microseconds.
            let more_comes =
                conn.waiting && !conn.waits_long() && conn.out.len_bytes() < HELD_OUTPUT_MAX_LEN_BYTES;
            if !conn.sending && !more_comes {
                self.send(&mut conn);
            }
            self.put_conn(conn);
        }
        self.outgoing = outgoing;
    }

    fn send(&mut self, conn: &mut Conn) {
        if conn.out.is_empty() {
            if conn.closing && !conn.waiting {
                self.ring.close(conn.token);
            }
            return;
        }
        if conn.session.is_replica() {
            // It would stand in the midst of the stream.
            log_notice!("Closing the connection of a replica that sent a command with an answer");
            return self.ring.close(conn.token);
        }
        let bytes = std::mem::take(&mut conn.out.buf);
        let pieces = std::mem::take(&mut conn.out.pieces);
        let buffer = SendBuffer::with_pieces(bytes, pieces);
        self.count_sent(conn, buffer.len_bytes() as u64);
        match self.ring.send(conn.token, buffer) {
            Ok(()) => conn.sending = true,
            Err(buffer) => self.recycle(buffer.bytes),
        }
    }

    /// A send ended.
    pub fn sent(&mut self, token: Token, buffer: SendBuffer, succeeded: bool) {
        self.recycle(buffer.bytes);
        let Some(mut conn) = self.take_conn(token) else { return };
        conn.sending = false;
        if let Some(mut replica) = conn.session.replica.take() {
            self.fed(&mut replica, succeeded);
            conn.session.replica = Some(replica);
        }
        if !succeeded {
            self.ring.close(token);
        } else if !conn.out.is_empty() || conn.closing {
            self.list(&mut conn);
        } else if conn.eof && !conn.waiting && conn.input.is_empty() {
            self.ring.close(token);
        }
        // Where input is left it goes on in this very tick, and only then is it known whether there is room for more.
        if conn.waiting || conn.input.is_empty() {
            self.limit_input(&mut conn);
        }
        self.put_conn(conn);
    }

    /// Stops reading from a connection that sends more than it is served, or does not read its replies; and resumes.
    pub fn limit_input(&mut self, conn: &mut Conn) {
        let held = conn.held_input_bytes();
        // An answer or the end of a send is on its way in each case, and brings us here again.
        let busy = conn.waiting || conn.sending || conn.is_full();
        let stop = conn.is_congested() || (busy && conn.input.len() > HELD_INPUT_MAX_LEN_BYTES);
        if stop != conn.paused && !conn.eof {
            conn.paused = stop;
            if stop { self.ring.pause_recv(conn.token) } else { self.ring.start_recv(conn.token) }
        }
        if held as u64 > self.config.client_query_buffer_limit_bytes {
            self.close_for_query_limit(conn);
        }
        self.publish_client(conn);
    }
}

impl Host for Front {
    fn reply(&mut self, id: ConnId, bytes: &[u8], pieces: Vec<(usize, Bytes)>, is_last: bool) {
        if id == MASTER_CONN {
            return self.follower().epoch_applied(Ok(()));
        }
        let mut buffer = self.buffer();
        let Some(conn) = self.by_id(id) else {
            // Closed in the meantime.
            return self.recycle(buffer);
        };
        if !is_last {
            // The replies of a pipeline leave together.
            assert!(!conn.muted, "what is muted is under way alone");
            if conn.out.buf.capacity() == 0 {
                std::mem::swap(&mut conn.out.buf, &mut buffer);
            }
            conn.out.append_encoded(bytes, pieces);
            return self.recycle(buffer);
        }
        let token = conn.token;
        let Some(mut conn) = self.take_conn(token) else { return };
        conn.waiting = false;
        self.waited(&mut conn);
        if conn.session.steps.is_some() {
            session::step_answered(&mut conn, bytes);
        } else if !std::mem::take(&mut conn.muted) {
            if conn.out.buf.capacity() == 0 {
                std::mem::swap(&mut conn.out.buf, &mut buffer);
            }
            conn.out.append_encoded(bytes, pieces);
        }
        self.recycle(buffer);
        if conn.eof && conn.input.is_empty() && conn.session.steps.is_none() {
            conn.closing = true;
        }
        // Replies of a pipeline leave together: what is still to be run adds to them.
        if conn.input.is_empty() && conn.session.steps.is_none() {
            self.list(&mut conn);
            self.limit_input(&mut conn);
        } else {
            self.ready.push(id);
        }
        self.put_conn(conn);
    }

    fn session(&mut self, id: ConnId, command: CommandId, args: Args<'_>, out: &mut Reply) -> Outcome {
        // Closed in the meantime: nobody will read the answer.
        let Some(mut conn) = self.take_conn_by_id(id) else { return Ok(()) };
        conn.in_exec = true;
        let outcome = session::call(self, &mut conn, command, args, out);
        conn.in_exec = false;
        self.put_conn(conn);
        outcome
    }

    fn upper(&mut self, _from: ShardId, message: Box<dyn Any + Send>) {
        let Err(message) = self.replication_message(message) else { return };
        match message.downcast::<Adopt>() {
            Ok(adopt) => self.adopted.push(adopt.0),
            Err(_) => unreachable!("no other message exists"),
        }
    }

    fn share(&mut self, ticket: u64, share: Share) {
        self.home.as_mut().expect("shares go home").share(ticket, share);
    }

    fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.home.as_mut().expect("segments go home").segment(ticket, segment, mark);
    }

    fn epoch_applied(&mut self, _epoch: u64, outcome: Result<(), EpochError>) {
        self.follower().epoch_applied(outcome);
    }

    fn load_answer(&mut self, from: ShardId, answer: LoadAnswer) {
        match answer {
            LoadAnswer::Batch { load, stream, len_bytes, outcome } if stream != OWN_STREAM => {
                self.part_batch_answered(load, stream, len_bytes, outcome);
            }
            answer => self.follower().loads.answer(from, answer),
        }
    }

    #[inline]
    fn took(&mut self, id: ConnId, duration_ns: u64, args: Args<'_>) {
        if duration_ns >= self.long_ns {
            self.took_long(id, duration_ns, args);
        }
    }

    fn monotonic_ns(&mut self) -> u64 {
        self.clock.now_ns()
    }
}

/// Sets an option of a socket that is an int. A socket that has none of that name, as unix sockets do, stays as it is.
fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the option's value is an int that lives through the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

/// Whether small pieces leave at once. `repl-disable-tcp-nodelay` lets those to a replica be gathered.
pub(super) fn set_nodelay(socket: BorrowedFd<'_>, on: bool) {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, i32::from(on));
}

/// TCP_NODELAY and keepalive.
fn set_socket_options(socket: &OwnedFd, keepalive_s: u32) {
    let socket = socket.as_fd();
    set_nodelay(socket, true);
    if keepalive_s > 0 {
        let seconds = keepalive_s as i32;
        set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds);
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, (seconds / 3).max(1));
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3);
    }
}
