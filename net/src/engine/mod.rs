//! One shard's thread: its ring, its connections, its mailboxes, and the loop that drives them.
//!
//! A round of the loop: take what arrived from sockets and from other shards, run it, end the shard's tick (which takes its
//! ticket), and only then let replies and messages go. While other shards keep sending a round has several ticks, up to
//! [`TICKS_PER_ROUND`]. See [`Engine::run`].

mod accepting;
mod clients;
mod conn;
mod courtesy;
pub mod follower;
mod front;
mod handover;
mod leaving;
mod link_socket;
pub mod mailbox;
pub mod parts;
mod patience;
mod replicas;
mod restoring;
mod roaming;
mod saving;
mod spilling;
mod spooling;
pub mod stream;

pub use conn::Conn;
pub use front::Front;
pub use leaving::Ending;
pub use replicas::HOME;
pub use saving::Asker;

use crate::config::values::LogLevel;
use crate::freeing;
use crate::log_verbose;
use crate::memory;
use crate::niceness;
use crate::node::{Node, settings, unix_us};
use crate::ring::{Event, Ring, Token};
use crate::session::Flow;
use crate::session::latency::Event as Slow;
use accepting::Accepting;
use braid_core::command::{ArgList, Time};
use braid_core::resp::Batch;
use braid_core::resp::batch::BATCH_MAX_COMMANDS;
use braid_core::resp::parse::ParseLimits;
use braid_shards::{ConnId, Pipeline, Shard, ShardConfig, ShardId};
use courtesy::Worker;
use mailbox::Mailboxes;
use patience::Patience;
use roaming::Berth;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Ticks that follow each other without a look at the sockets, while other shards keep sending.
const TICKS_PER_ROUND: u32 = 16;
/// Looks for a parcel that is being sent before its sender may have the core.
const LOOKS: u32 = 200;
/// Keys that one slice of background work looks at: some tens of microseconds.
const BACKGROUND_SLICE: usize = 1024;
/// Batches kept for reuse.
const SPARE_BATCHES: usize = 64;
/// Pause between two expiry sweeps that found nothing more to do.
const SWEEP_PERIOD: Duration = Duration::from_millis(100);

/// One shard with everything around it.
pub struct Engine {
    shard: Shard,
    front: Front,
    mailboxes: Mailboxes,
    turn: usize,
    config_version: u64,
    /// Emptied batches, for reuse.
    #[expect(
        clippy::vec_box,
        reason = "they move between here and the connections, which hold one only while in need"
    )]
    spare: Vec<Box<Batch>>,
    next_sweep: Instant,
    courtesy: Worker,
    berth: Option<Berth>,
    /// Of the listening sockets, those of TCP.
    tcp_listeners: Vec<Token>,
    accepting: Accepting,
}

impl Engine {
    pub fn new(id: ShardId, node: Arc<Node>, ring: Ring, mailboxes: Mailboxes) -> Self {
        let config = node.config.snapshot();
        let shard = Shard::new(ShardConfig {
            id,
            map: node.map,
            databases: config.databases as usize,
            hash: node.hash,
            seed: fastrand::u64(..),
            settings: Arc::new(settings(&config)),
            counters: Arc::clone(&node.counters),
            home: replicas::HOME,
        });
        let config_version = node.config.version();
        let own = &node.statistics.shards[usize::from(id)];
        own.commands.set(Arc::clone(&shard.stats)).ok().expect("a shard starts once");
        let mut front = Front::new(id, node, ring, config);
        front.refresh_thresholds();
        let mut engine = Self {
            shard,
            front,
            mailboxes,
            turn: 0,
            config_version,
            spare: Vec::new(),
            next_sweep: Instant::now() + SWEEP_PERIOD,
            courtesy: Worker::default(),
            berth: None,
            tcp_listeners: Vec::new(),
            accepting: Accepting::default(),
        };
        engine.begin_role();
        engine
    }

    /// Listens on a socket; the connections it accepts are spread over all shards.
    pub fn listen(&mut self, listener: OwnedFd) {
        let is_tcp = crate::startup::sockets::local_address(listener.as_fd()).is_some();
        let token = self.front.ring.accept(listener);
        if is_tcp {
            self.tcp_listeners.push(token);
        }
    }

    /// The calling thread is pinned to processor `own`; while that is overcrowded, and others of `all` that the process may
    /// use are not, it may run on those.
    pub fn roam(&mut self, own: usize, all: &[usize]) {
        self.berth = Berth::new(self.front.id, own, all);
    }

    /// Runs until the node stops.
    ///
    /// # Errors
    /// Those of the ring as a whole: none is expected, and none is recoverable.
    pub fn run(mut self) -> io::Result<()> {
        freeing::hand_over(memory::free_for_good);
        if self.front.home.is_some() {
            self.begin_restore();
        }
        let mut last_worked = Instant::now();
        let mut patience = Patience::default();
        while !self.front.node.stopping.load(Ordering::Relaxed) {
            let worked = self.round()?;
            let is_busy = self.shard.has_outgoing() || self.shard.is_behind();
            if worked || is_busy || !self.front.ready.is_empty() {
                last_worked = self.front.now;
                if worked {
                    patience.worked(self.front.now);
                }
                continue;
            }
            patience.found_nothing(self.front.now);
            let idle = self.front.now.duration_since(last_worked);
            let busy_poll = Duration::from_micros(u64::from(self.front.config.busy_poll_us));
            if idle < busy_poll {
                std::hint::spin_loop();
                continue;
            }
            // Where that is not known it is likely: shards on one processor, or a quota that looking would use up.
            let is_crowded = self.berth.as_ref().is_none_or(Berth::is_crowded);
            if self.shard.awaits_answers() && patience.lasts(idle, is_crowded) {
                patience.look_again(idle, self.front.now);
                continue;
            }
            let rests = self.front.home.is_some() && self.front.node.persistence.rests();
            let deadline = self.sleep_deadline();
            let (mailboxes, Front { ring, node, id, held_back, stream, watch, .. }) =
                (&self.mailboxes, &mut self.front);
            let orders = &node.statistics.shards[usize::from(*id)].orders;
            let has_work = || {
                !mailboxes.is_empty()
                    || orders.any()
                    || node.stopping.load(Ordering::Relaxed)
                    || Front::may_walk_on(node, *id, *held_back)
                    || Front::may_catch_up(node, stream)
                    || Front::may_resume(&node.pause, watch)
                    || (rests && !node.persistence.rests())
            };
            ring.wait(deadline, has_work)?;
        }
        self.front.close_files();
        self.front.close_spool();
        Ok(())
    }

    /// One visit to the sockets, and the ticks between. Returns whether there was anything to do.
    fn round(&mut self) -> io::Result<bool> {
        if self.shard.is_held_up() {
            self.shard.end_tick(&mut self.mailboxes, &mut self.front);
            self.mailboxes.wake();
            if self.shard.is_held_up() {
                // The home shard may want this very core.
                self.courtesy.give_way();
                return Ok(true);
            }
        }
        self.front.ring.poll()?;
        let mut worked = self.tick(Instant::now(), Time { us: unix_us() });
        // The tickets are taken: what these ticks did may be seen now.
        self.front.flush();
        self.front.feed_replicas(worked);
        self.front.feed_parts();
        worked |= self.front.catch_up();
        self.give_way();
        let now = self.front.now;
        self.berth.take_if(|berth| !berth.look(now));
        Ok(worked)
    }

    /// Where cores are shared, others wait for this one to answer clients: a full sync has time, at both its ends.
    fn give_way(&mut self) {
        let is_loading = self.shard.is_loading();
        // Before there is a dataset, nothing else is to be done than to load it.
        let steps_back = is_loading && !self.front.node.persistence.is_loading();
        if steps_back != std::mem::replace(&mut self.front.has_stepped_back, steps_back) {
            if steps_back { niceness::step_back() } else { niceness::come_back() }
        }
        if is_loading || self.front.is_walking {
            self.courtesy.give_way();
        }
    }

    /// Everything of a round between the sockets, at a time.
    fn tick(&mut self, now: Instant, time: Time) -> bool {
        let mut worked = false;
        self.shard.set_time(time);
        self.front.begin_tick(now, time.ms());
        self.refresh_config();
        worked |= self.carry_out_orders();
        worked |= self.catch_up_with_batches();
        for listener in self.accepting.due(now) {
            self.front.ring.start_accept(listener);
        }
        while let Some(event) = self.front.ring.next() {
            worked = true;
            self.handle(event);
        }
        // Messages between shards are worth several ticks for one visit to the sockets: a pipeline crosses between shards
        // many times for every time that it is received and sent.
        for turn in 0..TICKS_PER_ROUND {
            let received = self.receive_parcels();
            if turn == 0 {
                worked |= self.background();
                worked |= self.restore();
                worked |= self.refill();
                worked |= self.load();
                self.look_after_saves();
                worked |= self.serve_parts();
                worked |= self.replicate();
                worked |= self.watch_clients();
            }
            // Behind what the home asks for, part of which is for it to do.
            worked |= self.follow();
            worked |= self.part_messages();
            self.publish();
            self.shard.end_tick(&mut self.mailboxes, &mut self.front);
            self.mailboxes.wake();
            worked |= received;
            // What a round gives to loading is bounded, for those who wait for the sockets.
            if self.mailboxes.is_empty() || self.shard.is_loading() {
                break;
            }
        }
        worked
    }

    /// What clients sent may follow from batches that others have run: they run here first. They are on their way, in rings
    /// that have room for them.
    fn catch_up_with_batches(&mut self) -> bool {
        let (mut worked, mut looks) = (false, 0);
        let latest = self.shard.latest_batch();
        while !self.shard.has_run(latest) {
            if let Some((from, parcel)) = self.mailboxes.receive(&mut self.turn) {
                worked = true;
                self.refresh_config();
                self.shard.receive(from, parcel, &mut self.front);
            } else if looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                // Its sender lost its core in between.
                std::thread::yield_now();
            }
        }
        worked
    }

    /// Takes what other shards sent, and goes on with the connections that were answered.
    fn receive_parcels(&mut self) -> bool {
        let mut worked = false;
        while let Some((from, parcel)) = self.mailboxes.receive(&mut self.turn) {
            worked = true;
            // What a client changed before it sent this must hold for it.
            self.refresh_config();
            self.shard.receive(from, parcel, &mut self.front);
        }
        self.shard.settle(&mut self.front);
        self.adopt_connections();
        self.front.resume_suspended();
        while let Some(conn) = self.front.ready.pop() {
            worked = true;
            self.resume(conn);
            self.shard.settle(&mut self.front);
        }
        worked
    }

    fn background(&mut self) -> bool {
        if !self.shard.has_trash() && self.front.now < self.next_sweep {
            return false;
        }
        self.shard.holds_expiry = self.front.node.pause.mode_at(self.front.now_ms()).is_some();
        let start_ns = self.front.clock.now_ns();
        let more = self.shard.background(BACKGROUND_SLICE, &mut self.front);
        let took_ns = self.front.clock.now_ns() - start_ns;
        self.front.note_latency(Slow::ExpireCycle, took_ns / 1_000_000);
        if !more {
            self.next_sweep = self.front.now + SWEEP_PERIOD;
        }
        more
    }

    /// When the shard has to look at something though nothing arrives; None lets an idle server sleep for good.
    fn sleep_deadline(&self) -> Option<Instant> {
        let expires = self.shard.awaits_expiry();
        let Front { next_home_tick_ms, next_link_tick_ms, stale_report_ms, .. } = self.front;
        let parts_tick_ms = self.front.next_parts_tick_ms();
        let due_ms = [next_home_tick_ms, next_link_tick_ms, stale_report_ms, parts_tick_ms]
            .into_iter()
            .flatten()
            .min();
        let tick_ms = due_ms.map(|at| at.saturating_sub(self.front.now_ms()));
        let tick = tick_ms.map(|in_ms| self.front.now + Duration::from_millis(in_ms));
        let clients = self.front.clients_deadline();
        let (saves, feed) = (self.front.saves_deadline(), self.front.feed_deadline());
        let sweep = expires.then_some(self.next_sweep);
        [sweep, tick, clients, saves, feed, self.accepting.deadline()].into_iter().flatten().min()
    }

    /// Lets the others see what this tick changed.
    fn publish(&mut self) {
        let front = &mut self.front;
        let public = &front.node.statistics.shards[usize::from(front.id)];
        let has_changed = public.publish(&self.shard, &mut front.published);
        if has_changed && front.node.persistence.end_rest() {
            front.node.wake(HOME);
        }
        public.counters.ticks.add(1);
        front.node.statistics.sample(front.now_ms());
        front.count_memory();
    }

    pub(crate) fn refresh_config(&mut self) {
        let version = self.front.node.config.version();
        if version != self.config_version {
            self.config_version = version;
            self.front.config = self.front.node.config.snapshot();
            self.shard.settings = Arc::new(settings(&self.front.config));
            self.shard.is_read_only = self.front.config.replica_read_only;
            if let Some(following) = &mut self.front.following {
                following.set_rules(&self.front.config, self.front.node.map.shards());
            }
            self.front.refresh_thresholds();
            if let Some(home) = &mut self.front.home {
                home.set_rules(replicas::rules(&self.front.config));
                self.front.node.persistence.end_rest();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let Some(event) = self.link_event(event).and_then(|event| self.part_event(event)) else { return };
        match event {
            Event::Accepted { socket, .. } => {
                self.accepting.succeeded();
                if let Some((to, socket)) = self.front.place(socket) {
                    self.shard.send_upper(to, Box::new(front::Adopt(socket)));
                }
            }
            Event::AcceptError { listener, error } => self.accepting.failed(listener, &error, self.front.now),
            Event::Received { token, data } => self.received(token, &data),
            Event::Eof { token } => self.end_of_input(token),
            Event::RecvError { token, error } => {
                if let Some(conn) = self.front.conn_mut(token) {
                    log_verbose!("Reading from client id={}: {error}", conn.session.client);
                }
                self.close(token);
            }
            Event::Sent { token, buffer, result } => {
                self.front.sent(token, buffer, result.is_ok());
                if let Some(conn) = self.front.conn_mut(token)
                    && !conn.waiting
                    && !conn.input.is_empty()
                {
                    let id = conn.id;
                    self.front.ready.push(id);
                }
            }
            Event::Closed { token } => {
                self.end_watches(token);
                self.front.forget(token);
            }
            Event::Detached { token, socket } => {
                self.end_watches(token);
                self.hand_over(token, socket);
            }
            Event::Connected { .. } => {}
        }
    }

    fn adopt_connections(&mut self) {
        for socket in std::mem::take(&mut self.front.adopted) {
            self.front.adopt(socket);
        }
    }

    fn received(&mut self, token: Token, data: &[u8]) {
        let Some(mut conn) = self.front.take_conn(token) else { return };
        self.front.count_received(&conn, data.len() as u64);
        self.front.heard(&conn.session);
        let fed = conn.parser.feed_big(data);
        let data = &data[fed..];
        if conn.waiting || !conn.input.is_empty() || conn.is_full() {
            conn.input.extend_from_slice(data);
            if !conn.waiting && !conn.is_full() {
                self.consume_held(&mut conn);
            }
        } else {
            // The common case: commands are executed where they were received, and nothing is left over.
            let mut batch = self.spare.pop().unwrap_or_default();
            let cut = self.consume(&mut conn, data, &mut batch);
            let executed = batch.executed_to();
            match cut {
                None => conn.input.extend_from_slice(&data[executed..]),
                Some((at, len)) => {
                    conn.input.extend_from_slice(&data[executed..at]);
                    conn.input.extend_from_slice(&data[at + len..]);
                }
            }
            self.keep_rest(&mut conn, batch, executed);
            if cut.is_some() {
                self.consume_held(&mut conn);
            }
        }
        self.front.limit_input(&mut conn);
        self.front.put_conn(conn);
    }

    /// `executed` bytes of the input are gone; what was parsed and not executed stays with the connection.
    fn keep_rest(&mut self, conn: &mut Conn, mut batch: Box<Batch>, executed: usize) {
        if conn.closing {
            conn.input.clear();
        }
        if conn.closing || (batch.is_done() && batch.error().is_none()) {
            batch.reset();
            if self.spare.len() < SPARE_BATCHES {
                self.spare.push(batch);
            }
        } else {
            batch.shift(executed);
            conn.batch = Some(batch);
        }
    }

    /// Goes on with what a connection had sent before its command under way was answered.
    fn resume(&mut self, id: ConnId) {
        let Some(mut conn) = self.front.take_conn_by_id(id) else { return };
        if conn.session.steps.is_some() && !conn.waiting {
            let mark = conn.out.mark();
            self.next_step(&mut conn);
            if !conn.waiting && std::mem::take(&mut conn.muted) {
                conn.out.truncate(mark);
            }
            self.front.list(&mut conn);
        }
        if conn.is_full() {
            // What was answered goes first; the end of the send brings us here again.
            self.front.list(&mut conn);
        } else if !conn.waiting {
            self.consume_held(&mut conn);
        }
        // Nothing follows, and what is left is no command: a half-closed connection has been served.
        if conn.eof && !conn.waiting && !conn.is_full() {
            conn.closing = true;
            self.front.list(&mut conn);
        }
        self.front.limit_input(&mut conn);
        self.front.put_conn(conn);
    }

    fn consume_held(&mut self, conn: &mut Conn) {
        loop {
            let mut input = std::mem::take(&mut conn.input);
            let mut batch = conn.batch.take().or_else(|| self.spare.pop()).unwrap_or_default();
            let cut = self.consume(conn, &input, &mut batch);
            let executed = batch.executed_to();
            if let Some((at, len)) = cut {
                input.drain(at..at + len);
            }
            if executed == input.len() {
                self.front.recycle(input);
            } else {
                input.drain(..executed);
                conn.input = input;
            }
            self.keep_rest(conn, batch, executed);
            if cut.is_none() {
                return;
            }
        }
    }

    /// Parses and runs commands from `input` as far as it goes; `batch` tells how far that was. Returns what to cut out of
    /// the input before going on, see [`Batch::fill`].
    fn consume(&mut self, conn: &mut Conn, input: &[u8], batch: &mut Batch) -> Option<(usize, usize)> {
        let mut pipeline = Pipeline::default();
        let mut cut = None;
        'batches: while !conn.waiting && !conn.closing {
            loop {
                let flow = {
                    let mut list = ArgList::default();
                    if !batch.peek(input, &mut list) {
                        break;
                    }
                    self.command(conn, list.args(), &mut pipeline)
                };
                match flow {
                    Flow::Later => break 'batches,
                    Flow::Done => {}
                    Flow::Wait => conn.waiting = true,
                    Flow::Close => conn.closing = true,
                }
                batch.advance();
                if conn.waiting || conn.closing || conn.is_full() {
                    break 'batches;
                }
            }
            if let Some(error) = batch.error() {
                // The answers to what came before go first.
                if !pipeline.is_open() {
                    log_verbose!("Protocol error ({error}) from client: {}", self.front.client_line(conn));
                    conn.out.error(&format!("ERR {error}"));
                    conn.closing = true;
                }
                break;
            }
            if cut.is_some() {
                break;
            }
            let authenticated = conn.session.authenticated;
            let max_bulk_len_bytes = self.front.config.proto_max_bulk_len_bytes;
            let limits = ParseLimits { max_bulk_len_bytes, authenticated };
            // Authentication changes what the next command may be.
            let max = if authenticated { BATCH_MAX_COMMANDS } else { 1 };
            cut = batch.fill(&mut conn.parser, input, &limits, max);
            if batch.is_done() && batch.error().is_none() {
                break;
            }
            self.shard.prefetch(conn.session.db, batch.likely_keys(input));
        }
        conn.waiting |= pipeline.is_open();
        self.front.list(conn);
        cut
    }

    fn end_of_input(&mut self, token: Token) {
        let Some(conn) = self.front.conn_mut(token) else { return };
        if !conn.eof && crate::log::enabled(LogLevel::Verbose) {
            let info = Arc::clone(conn.session.info());
            let line = info.line(self.front.uptime_s(), &self.front.config.unixsocket);
            log_verbose!("Client closed connection {line}");
        }
        let Some(conn) = self.front.conn_mut(token) else { return };
        conn.eof = true;
        if conn.awaits_replicas {
            // It may have to wait for ever, and a client that went away looks like this.
            return self.close(token);
        }
        // A half-closed connection still gets the answers to what it sent, of which some may not have been run yet.
        if conn.waiting || !conn.input.is_empty() {
            // The end of a send may have been taken from the ring just before this, and have made room for more.
            let id = conn.id;
            self.front.ready.push(id);
            return;
        }
        if !conn.sending && conn.out.is_empty() {
            self.close(token);
        } else {
            conn.closing = true;
        }
    }

    fn close(&mut self, token: Token) {
        self.end_watches(token);
        self.front.ring.close(token);
    }

    /// A connection is gone, in whatever way: nobody asks any more for what it watched.
    fn end_watches(&mut self, token: Token) {
        if let Some(mut conn) = self.front.take_conn(token) {
            self.drop_watches(&mut conn);
            self.front.put_conn(conn);
        }
    }

    pub(crate) fn parts(&mut self) -> (&mut Shard, &mut Front) {
        (&mut self.shard, &mut self.front)
    }
}

#[cfg(test)]
mod tests;
