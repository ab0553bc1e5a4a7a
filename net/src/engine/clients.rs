//! Clients beyond their commands: what the others see of them, their limits, pauses, and what other shards ask for.

use super::{Conn, Engine, Front};
use crate::ring::Token;
use crate::session::clients::{self, Class, ClientInfo, Endpoint, flag};
use crate::session::control::{Order, Pause, PauseMode};
use crate::session::latency::Event;
use crate::startup::{protected, sockets};
use crate::{log_verbose, log_warning, memory};
use braid_core::command::{Args, Command, Flags, registry};
use braid_core::resp::Reply;
use braid_shards::{ConnId, Host};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often idle clients and those that read slowly are looked for.
const WATCH_PERIOD: Duration = Duration::from_millis(500);
/// Connections looked at in one tick.
const WATCH_SLICE: usize = 4096;
/// A change of this thread's memory that makes it worth summing up all threads'.
const MEMORY_STEP_BYTES: u64 = 64 << 10;

/// A shard's state for the tasks of this file.
#[derive(Default)]
pub struct Watch {
    /// Connections whose command waits for the end of a pause.
    suspended: Vec<ConnId>,
    /// The strictest mode that held one of them back.
    suspended_by: Option<PauseMode>,
    /// When connections are looked at again; None: not begun.
    next: Option<Instant>,
    /// The slot the present look goes on with.
    at: Option<usize>,
    /// Connections beyond their soft limit of output.
    over_soft_limit: usize,
    /// This thread's memory when all threads' was last summed up.
    memory_bytes: i64,
}

impl Front {
    /// Seconds since the server started.
    pub fn uptime_s(&self) -> u32 {
        (self.now_ms() / 1000) as u32
    }

    /// Makes a connection known to all shards.
    pub(super) fn register(&mut self, conn: &mut Conn) {
        let socket = self.ring.socket(conn.token).expect("the connection has just been made");
        let peer = sockets::peer_address(socket).map_or(Endpoint::Unix, Endpoint::from);
        let local = sockets::local_address(socket).map_or(Endpoint::Unix, Endpoint::from);
        let fd = socket.as_raw_fd();
        let session = &mut conn.session;
        let former = session.info.take();
        let since_s = former.as_ref().map_or(self.uptime_s(), |info| info.created_s);
        let info = Arc::new(ClientInfo::new(session.client, conn.id, peer, local, fd, since_s));
        if let Some(former) = former {
            info.set_names(|names| *names = former.names());
        }
        session.info = Some(Arc::clone(&info));
        self.node.clients.add(info);
    }

    /// Refuses a client that has just connected, if there are too many or it may not come from there.
    pub(super) fn greet(&mut self, token: Token, clients: usize) {
        let Some(mut conn) = self.take_conn(token) else { return };
        let info = conn.session.info();
        let counters = &self.public().counters;
        log_verbose!("Accepted {}", info.peer.text(&self.config.unixsocket));
        let refused = if clients > self.config.maxclients as usize {
            Some("ERR max number of clients reached")
        } else if protected::refuses(self.config.protected_mode, &self.config.requirepass, info.peer.ip()) {
            Some(protected::DENIED.trim_start_matches('-'))
        } else {
            None
        };
        match refused {
            Some(text) => {
                counters.connections_rejected.add(1);
                conn.out.error(text);
                conn.closing = true;
                self.list(&mut conn);
            }
            None => counters.connections_received.add(1),
        }
        self.put_conn(conn);
    }

    /// Counts what is sent to a client.
    pub(super) fn count_sent(&self, conn: &Conn, len_bytes: u64) {
        let counters = &self.public().counters;
        counters.net_out_bytes.add(len_bytes);
        counters.writes.add(1);
        conn.session.info().net_out_bytes.add(len_bytes);
    }

    /// Counts what was received from a client, which is active.
    pub(super) fn count_received(&self, conn: &Conn, len_bytes: u64) {
        let counters = &self.public().counters;
        counters.net_in_bytes.add(len_bytes);
        counters.reads.add(1);
        let info = conn.session.info();
        info.net_in_bytes.add(len_bytes);
        info.active_s.store(self.uptime_s(), Ordering::Relaxed);
    }

    /// Lets other shards see a connection's state.
    pub fn publish_client(&self, conn: &Conn) {
        let (session, info) = (&conn.session, conn.session.info());
        let flags = [
            (session.multi.is_some(), flag::MULTI),
            (conn.suspended || conn.awaits_replicas, flag::BLOCKED),
            (conn.awaits_replicas, flag::AWAITS_REPLICAS),
            (conn.closing, flag::CLOSE_AFTER_REPLY),
            (session.no_evict, flag::NO_EVICT),
            (session.flags.no_touch, flag::NO_TOUCH),
            (session.flags.resp3, flag::RESP3),
            (conn.sending, flag::SENDING),
            (!conn.paused && !conn.eof, flag::RECEIVING),
            (session.is_replica(), flag::REPLICA),
            (session.carries_part(), flag::PART),
        ];
        let flags = flags.iter().fold(0, |all, (on, flag)| if *on { all | flag } else { all });
        info.flags.store(flags, Ordering::Relaxed);
        info.db.store(session.db, Ordering::Relaxed);
        let (multi, multi_bytes) = match &session.multi {
            Some(multi) => (multi.unit.count as i32, multi.unit.len_bytes() as u32),
            None => (-1, 0),
        };
        info.multi.store(multi, Ordering::Relaxed);
        info.multi_bytes.store(multi_bytes, Ordering::Relaxed);
        let watched = session.watching.as_ref().map_or(0, |watching| watching.keys.len() as u32);
        info.watched.store(watched, Ordering::Relaxed);
        info.input_bytes.store(conn.held_input_bytes() as u32, Ordering::Relaxed);
        info.input_free_bytes.store((conn.input.capacity() - conn.input.len()) as u32, Ordering::Relaxed);
        info.output_bytes.set((conn.out.len_bytes() + self.ring.unsent_len_bytes(conn.token)) as u64);
    }

    /// The client's line as of now, for the log and for `CLIENT INFO`.
    pub fn client_line(&self, conn: &Conn) -> String {
        self.publish_client(conn);
        conn.session.info().line(self.uptime_s(), &self.config.unixsocket)
    }

    /// The pause that holds a command of this connection back, if one does.
    pub fn held_back_by(&self, conn: &Conn, command: &Command) -> Option<PauseMode> {
        if conn.session.is_replica() {
            return None;
        }
        let writes = Flags::WRITE.or(Flags::MAY_REPLICATE);
        let mode = self.node.pause.mode_at(self.now_ms())?;
        (mode == PauseMode::All || self.is_write(conn, command, writes)).then_some(mode)
    }

    /// Whether a command, or what `EXEC` is about to execute, has one of these flags.
    pub(super) fn is_write(&self, conn: &Conn, command: &Command, flags: Flags) -> bool {
        let Some(multi) = conn.session.multi.as_ref().filter(|_| command.name == "exec") else {
            return command.flags.has(flags);
        };
        let mut queued = multi.unit.commands();
        queued.any(|queued| registry().get(queued.id).resolve(queued.args()).flags.has(flags))
    }

    /// Leaves a connection alone until the pause ends. The command under way is parsed again then.
    pub fn suspend(&mut self, conn: &mut Conn, mode: PauseMode) {
        conn.suspended = true;
        conn.waiting = true;
        self.watch.suspended.push(conn.id);
        self.watch.suspended_by = self.watch.suspended_by.max(Some(mode));
        self.count_blocked();
    }

    /// Counts the connections whose command waits.
    pub(super) fn count_blocked(&self) {
        self.public().blocked_clients.set((self.watch.suspended.len() + self.waits()) as u64);
    }

    /// Whether connections are held back by a pause that somebody has ended. To be looked at before going to sleep: who ends
    /// it wakes only those who sleep already. That its time is over is known by [`Front::clients_deadline`].
    pub(super) fn may_resume(pause: &Pause, watch: &Watch) -> bool {
        !watch.suspended.is_empty() && pause.mode() < watch.suspended_by
    }

    /// Lets go of the connections that a pause held back, if it is over or milder: who is to wait on is held back again.
    pub(super) fn resume_suspended(&mut self) {
        if self.watch.suspended.is_empty()
            || self.node.pause.mode_at(self.now_ms()) >= self.watch.suspended_by
        {
            return;
        }
        self.watch.suspended_by = None;
        for id in std::mem::take(&mut self.watch.suspended) {
            let Some(mut conn) = self.take_conn_by_id(id) else { continue };
            conn.suspended = false;
            conn.waiting = false;
            self.ready.push(id);
            self.put_conn(conn);
        }
        self.count_blocked();
    }

    /// Closes a connection whose replies pile up beyond its class's limit. `conn` stays until the ring has let go.
    pub(super) fn limit_output(&mut self, conn: &mut Conn) {
        let limit = match conn.session.info().class() {
            Class::Normal => self.config.client_output_buffer_limit.normal,
            Class::PubSub => self.config.client_output_buffer_limit.pubsub,
            // What a replica has not been sent is kept in the log, whose reader has that limit.
            Class::Replica | Class::Master => return,
        };
        if limit.hard_bytes == 0 && limit.soft_bytes == 0 {
            return;
        }
        let waiting_bytes = (conn.out.len_bytes() + self.ring.unsent_len_bytes(conn.token)) as u64;
        let over = |limit_bytes: u64| limit_bytes > 0 && waiting_bytes > limit_bytes;
        let now_s = self.uptime_s();
        let over_for_long = match (over(limit.soft_bytes), conn.over_soft_since_s) {
            (false, None) => false,
            (false, Some(_)) => {
                conn.over_soft_since_s = None;
                self.watch.over_soft_limit -= 1;
                false
            }
            (true, None) => {
                conn.over_soft_since_s = Some(now_s);
                self.watch.over_soft_limit += 1;
                false
            }
            (true, Some(since_s)) => u64::from(now_s - since_s) > limit.soft_seconds,
        };
        if over(limit.hard_bytes) || over_for_long {
            log_warning!(
                "Client {} scheduled to be closed ASAP for overcoming of output buffer limits.",
                self.client_line(conn)
            );
            self.public().counters.output_limit_closed.add(1);
            self.drop_output(conn);
        }
    }

    /// Closes a connection at once, without what it has not been sent.
    fn drop_output(&mut self, conn: &mut Conn) {
        conn.out = Reply::default();
        conn.closing = true;
        self.ring.close(conn.token);
    }

    /// Closes a connection that sends more than `client-query-buffer-limit` without an end.
    pub(super) fn close_for_query_limit(&mut self, conn: &mut Conn) {
        let shown = conn.input[..conn.input.len().min(64)].escape_ascii().to_string();
        log_warning!(
            "Closing client that reached max query buffer length: {} (qbuf initial bytes: \"{shown}\")",
            self.client_line(conn)
        );
        self.public().counters.query_limit_closed.add(1);
        self.ring.close(conn.token);
    }

    /// A connection is gone, or moves to another shard.
    pub(super) fn unregister(&mut self, conn: &Conn) {
        self.node.clients.remove(conn.id);
        if conn.over_soft_since_s.is_some() {
            self.watch.over_soft_limit -= 1;
        }
        if conn.suspended {
            self.watch.suspended.retain(|id| *id != conn.id);
            self.count_blocked();
        }
    }

    /// When something of this file is due though nothing arrives.
    pub(super) fn clients_deadline(&self) -> Option<Instant> {
        let watches = self.config.timeout_s > 0 || self.watch.over_soft_limit > 0;
        let look =
            watches.then(|| if self.watch.at.is_some() { Some(self.now) } else { self.watch.next }).flatten();
        let held_back = (!self.watch.suspended.is_empty()).then_some(&self.node.pause);
        let pause_end_ms = held_back.and_then(|pause| pause.next_end_ms(self.now_ms()));
        let pause_end = pause_end_ms
            .map(|end_ms| self.node.started + Duration::from_millis(end_ms.saturating_add(1).min(1 << 40)));
        look.into_iter().chain(pause_end).min()
    }

    /// Something another shard or thread asked for has not been done yet.
    pub(super) fn has_orders(&self) -> bool {
        self.public().orders.any()
    }

    /// Keeps the sum of all threads' memory current.
    pub(super) fn count_memory(&mut self) {
        let mine = memory::used_by_this_thread_bytes();
        if mine.abs_diff(self.watch.memory_bytes) >= MEMORY_STEP_BYTES {
            self.watch.memory_bytes = mine;
            self.node.refresh_memory();
        }
    }

    /// A command took long enough for the slow log or the latency monitor.
    #[cold]
    pub(super) fn took_long(&mut self, id: ConnId, duration_ns: u64, args: Args<'_>) {
        let Some((_, container)) = args.first().and_then(|name| registry().find(name)) else { return };
        let command = container.resolve(args);
        let unix_s = self.unix_ms() / 1000;
        let duration_us = duration_ns / 1000;
        let slower_than_us = self.config.slowlog_log_slower_than_us;
        let is_slow = slower_than_us >= 0 && duration_us >= slower_than_us as u64;
        if is_slow && !command.flags.has(Flags::SKIP_SLOWLOG.or(Flags::INTERNAL)) {
            let client = self.node.clients.find(id);
            let peer =
                client.as_ref().map_or_else(String::new, |info| info.peer.text(&self.config.unixsocket));
            let name = client.map(|info| info.names().name).unwrap_or_default();
            self.node.slowlog().add(
                self.config.slowlog_max_len,
                unix_s,
                duration_us,
                args.list(),
                peer,
                name,
            );
        }
        let event = if command.flags.has(Flags::FAST) { Event::FastCommand } else { Event::Command };
        self.note_latency(event, duration_us / 1000);
    }

    /// Notes an event for the latency monitor, if it took long enough.
    pub(super) fn note_latency(&self, event: Event, duration_ms: u64) {
        let threshold_ms = self.config.latency_monitor_threshold_ms;
        if threshold_ms > 0 && duration_ms >= threshold_ms {
            self.node.latency().add(event, self.unix_ms() / 1000, duration_ms);
        }
    }

    /// From which duration on a command has to be looked at, by the configuration.
    pub(super) fn refresh_thresholds(&mut self) {
        let slow_us = u64::try_from(self.config.slowlog_log_slower_than_us).unwrap_or(u64::MAX);
        let latency_us = match self.config.latency_monitor_threshold_ms {
            0 => u64::MAX,
            ms => ms.saturating_mul(1000),
        };
        self.long_ns = slow_us.min(latency_us).saturating_mul(1000);
        if let Some(stats) = self.public().commands.get() {
            stats.set_tracking(self.config.latency_tracking);
        }
    }
}

impl Engine {
    /// Does what other shards and threads asked for. Returns whether there was anything.
    pub(super) fn carry_out_orders(&mut self) -> bool {
        if !self.front.has_orders() {
            return false;
        }
        for order in self.front.public().orders.take() {
            match order {
                Order::Close(id) => self.close_client(id),
                Order::Unblock { conn, error } => self.front.unblock(conn, error),
                Order::Answer(id, bytes) => self.front.reply(id, &bytes, Vec::new(), true),
                Order::SleepUntil(end) => std::thread::sleep(end.saturating_duration_since(Instant::now())),
                Order::ActiveExpire(on) => match self.shard.keyspace_mut() {
                    Some(keyspace) => keyspace.active_expire = on,
                    // On loan to a transaction: as soon as it is back.
                    None => self.front.public().orders.push(Order::ActiveExpire(on)),
                },
                Order::Save(asker) => self.save_as_asked(asker),
                Order::End(ending, asker) => self.begin_ending(ending, asker),
                Order::Signalled(stop) => self.signalled(stop),
                Order::AbortEnd(asker) => self.abort_ending(asker),
                Order::File(snapshot, told) => self.file_told(snapshot, told),
                Order::Spooled(number, told) => self.spooled(number, told),
                Order::Spilled(told) => self.front.spilled(told),
                Order::Look => {}
                Order::Role(request) => {
                    if let Some(following) = &mut self.front.following {
                        following.machine.request(request);
                    }
                }
                Order::LookedUp { lookup, found } => self.looked_up(lookup, found),
                Order::Purge => memory::purge_this_thread(),
                Order::Listen(listeners) => {
                    for token in std::mem::take(&mut self.tcp_listeners) {
                        self.front.ring.close(token);
                    }
                    for listener in listeners {
                        self.listen(listener);
                    }
                }
            }
        }
        true
    }

    fn close_client(&mut self, id: ConnId) {
        if self.kill_link(id) || self.kill_part(id) {
            return;
        }
        if let Some(conn) = self.front.take_conn_by_id(id) {
            let token = conn.token;
            self.front.put_conn(conn);
            self.close(token);
        }
    }

    /// Looks for connections that have been idle for too long, and for those that read too slowly; a part of them in
    /// each tick. Returns whether there is more to look at now.
    pub(super) fn watch_clients(&mut self) -> bool {
        let front = &mut self.front;
        if front.config.timeout_s == 0 && front.watch.over_soft_limit == 0 {
            front.watch.at = None;
            return false;
        }
        let from = match (front.watch.at, front.watch.next) {
            (Some(at), _) => at,
            (None, Some(next)) if front.now < next => return false,
            (None, _) => 0,
        };
        front.watch.next = Some(front.now + WATCH_PERIOD);
        let end = (from + WATCH_SLICE).min(front.slots());
        let timeout_s = front.config.timeout_s;
        let now_s = front.uptime_s();
        for slot in from..end {
            let Some(mut conn) = front.take_conn_at(slot) else { continue };
            let info = conn.session.info();
            let idle_s = now_s.saturating_sub(info.active_s.load(Ordering::Relaxed));
            let may_expire = !conn.waiting && info.class() == Class::Normal;
            let token: Token = conn.token;
            let is_idle = timeout_s > 0 && idle_s > timeout_s && may_expire;
            if is_idle {
                log_verbose!("Closing idle client");
            } else {
                front.limit_output(&mut conn);
            }
            front.put_conn(conn);
            if is_idle {
                self.close(token);
                return self.watch_from(slot + 1);
            }
        }
        self.watch_from(end)
    }

    /// The look at connections goes on from a slot; true if there is one.
    fn watch_from(&mut self, slot: usize) -> bool {
        self.front.watch.at = (slot < self.front.slots()).then_some(slot);
        self.front.watch.at.is_some()
    }
}

/// Names a connection; see [`clients::conn_id`].
pub(super) fn conn_id(front: &Front, number: u64, token: Token) -> ConnId {
    clients::conn_id(front.id, number, token.slot())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::control::PausePurpose;

    #[test]
    fn who_is_held_back_by_a_pause_that_was_ended_keeps_the_shard_awake() {
        let (pause, mut watch) = (Pause::default(), Watch::default());
        assert!(!Front::may_resume(&pause, &watch));
        pause.begin(PausePurpose::Client, PauseMode::All, 1000, 0);
        watch.suspended.push(ConnId(1));
        watch.suspended_by = Some(PauseMode::All);
        assert!(!Front::may_resume(&pause, &watch));
        pause.begin(PausePurpose::Failover, PauseMode::Write, 1000, 0);
        pause.end(PausePurpose::Client);
        assert!(Front::may_resume(&pause, &watch), "it may be a reader");
        watch.suspended_by = Some(PauseMode::Write);
        assert!(!Front::may_resume(&pause, &watch));
        pause.end(PausePurpose::Failover);
        assert!(Front::may_resume(&pause, &watch));
    }
}
