//! What connections of any shard need of the stream, which is at home: how far it is, and who has acknowledged it.
//!
//! A command that shows where the stream is (`INFO`, `ROLE`, `WAIT`) must not show less than its client has seen: the
//! tickets of what was answered before may still be on their way to the merge. So it waits, parked like a command in a
//! pause, until all tickets taken before are merged. That is the usual state, found with one load.

use super::handover::FailoverRequest;
use super::{Conn, Front};
use crate::node::{Node, StreamNow};
use crate::session::clients::shard_of;
use crate::session::control::Order;
use braid_core::command::{Command, Flags, registry};
use braid_replication::acks::{Level, Resolved, WaiterId};
use braid_shards::{ConnId, Host};
use std::any::Any;
use std::sync::atomic::Ordering;

/// A client that waits for acknowledgements, on its way to the home shard.
pub struct Wait {
    pub conn: ConnId,
    /// End of what it waits for.
    pub offset: u64,
    pub replicas: usize,
    /// 0: for ever.
    pub timeout_ms: u64,
    pub level: Level,
}

/// Such a client is gone, or is to be let go.
pub struct EndWait {
    conn: ConnId,
    how: End,
}

/// What the client is told, if it is not answered already.
enum End {
    /// It is gone.
    Gone,
    /// What was reached.
    Count,
    /// That it was unblocked.
    Error,
}

/// A shard's state for this file.
#[derive(Default)]
pub struct Stream {
    /// Connections whose command waits for the merge, and the ticket that has to come next in it; None: that of the end
    /// of the tick under way.
    behind: Vec<(ConnId, Option<u64>)>,
    /// Messages for the home shard, which may be this one.
    to_home: Vec<Box<dyn Any + Send>>,
    /// This shard's clients that wait for acknowledgements.
    waits: usize,
}

/// Whether a command tells where the stream is.
fn shows_stream(command: &Command) -> bool {
    matches!(command.name, "info" | "role" | "wait" | "waitaof" | "failover")
}

impl Front {
    /// Whether a command has to wait until the merge has caught up. Then it is parsed again.
    pub fn is_behind(&mut self, conn: &mut Conn, command: &Command) -> bool {
        let shows_stream = match &conn.session.multi {
            None => shows_stream(command),
            Some(multi) => {
                let mut queued = multi.unit.commands();
                command.name == "exec"
                    && queued.any(|queued| shows_stream(registry().get(queued.id).resolve(queued.args())))
            }
        };
        if !shows_stream || std::mem::take(&mut conn.caught_up) {
            return false;
        }
        let is_active = match &self.home {
            Some(home) => home.is_followed(),
            None => self.node.has_stream.load(Ordering::SeqCst),
        };
        if is_active {
            conn.waiting = true;
            self.stream.behind.push((conn.id, None));
            self.node.behind.fetch_add(1, Ordering::SeqCst);
        }
        is_active
    }

    /// Lets go of the connections for which the merge is far enough. To be called when all ticks of a round have ended.
    /// True if there were any.
    pub(super) fn catch_up(&mut self) -> bool {
        if self.stream.behind.is_empty() {
            return false;
        }
        let taken = self.node.counters.sequencer.next_ticket();
        let merged = self.node.next_ticket.load(Ordering::SeqCst);
        let mut behind = std::mem::take(&mut self.stream.behind);
        let before = behind.len();
        behind.retain_mut(|(id, ticket)| {
            if merged < *ticket.get_or_insert(taken) {
                return true;
            }
            if let Some(mut conn) = self.take_conn_by_id(*id) {
                conn.waiting = false;
                conn.caught_up = true;
                self.ready.push(*id);
                self.put_conn(conn);
            }
            false
        });
        let gone = before - behind.len();
        self.stream.behind = behind;
        self.node.behind.fetch_sub(gone, Ordering::SeqCst);
        gone > 0
    }

    /// Whether [`Front::catch_up`] would find somebody. To be looked at before going to sleep.
    pub(super) fn may_catch_up(node: &Node, stream: &Stream) -> bool {
        let merged = || node.next_ticket.load(Ordering::SeqCst);
        stream.behind.iter().any(|(_, ticket)| ticket.is_none_or(|ticket| ticket <= merged()))
    }

    /// Lets the other shards see how far the merge is; on the home shard, at the end of a round.
    pub(super) fn publish_stream(&mut self) {
        let now_ms = self.now_ms();
        let max_lag_s = u64::from(self.config.min_replicas_max_lag_s);
        let Some(home) = &self.home else { return };
        let now = StreamNow {
            is_active: home.is_followed(),
            end_offset: home.end_offset(),
            written_offset: home.written_offset(),
            next_ticket: home.next_ticket(),
            good_replicas: home.good_replicas(max_lag_s, now_ms),
        };
        if self.node.publish_stream(&now) && self.node.behind.load(Ordering::SeqCst) > 0 {
            self.node.wake_all();
        }
    }

    /// A connection became a replica's.
    pub fn set_up_replica(&mut self, conn: &Conn) {
        if let Some(socket) = self.ring.socket(conn.token) {
            super::front::set_nodelay(socket, !self.config.repl_disable_tcp_nodelay);
        }
        self.publish_client(conn);
    }

    /// Parks a connection until enough replicas have acknowledged what it waits for.
    pub fn begin_wait(&mut self, conn: &mut Conn, wait: Wait) {
        if conn.eof {
            conn.closing = true;
            return;
        }
        conn.waiting = true;
        conn.awaits_replicas = true;
        self.stream.waits += 1;
        self.count_blocked();
        self.stream.to_home.push(Box::new(wait));
    }

    /// A connection does not wait any more: it was answered, or is gone.
    pub(super) fn waited(&mut self, conn: &mut Conn) {
        if std::mem::take(&mut conn.awaits_replicas) {
            self.stream.waits -= 1;
            self.count_blocked();
        }
    }

    /// A connection that waits is going away.
    pub(super) fn abandon_wait(&mut self, conn: &mut Conn) {
        if conn.awaits_replicas {
            self.waited(conn);
            self.stream.to_home.push(Box::new(EndWait { conn: conn.id, how: End::Gone }));
        }
    }

    /// `CLIENT UNBLOCK` of a connection of this shard that waits. `error`: it is told so instead of what was reached. The
    /// home shard answers in both cases, for its answer may be on its way already.
    pub(super) fn unblock(&mut self, id: ConnId, error: bool) {
        let Some(conn) = self.take_conn_by_id(id) else { return };
        let waits = conn.awaits_replicas;
        self.put_conn(conn);
        if waits {
            let how = if error { End::Error } else { End::Count };
            self.stream.to_home.push(Box::new(EndWait { conn: id, how }));
        }
    }

    /// Whether a command is a write that too few replicas would follow (`min-replicas-to-write`).
    pub fn lacks_replicas(&self, conn: &Conn, command: &Command) -> bool {
        let config = &self.config;
        let good = || self.node.good_replicas.load(Ordering::Relaxed);
        config.min_replicas_max_lag_s > 0
            && (good() as u64) < u64::from(config.min_replicas_to_write)
            && self.is_write(conn, command, Flags::WRITE)
            && !self.node.is_replica()
    }

    /// Connections that wait here for acknowledgements.
    pub(super) fn waits(&self) -> usize {
        self.stream.waits
    }

    /// Sends something to the home shard, which may be this one.
    pub(super) fn send_home(&mut self, message: Box<dyn Any + Send>) {
        self.stream.to_home.push(message);
    }

    pub(super) fn take_messages_home(&mut self) -> Vec<Box<dyn Any + Send>> {
        std::mem::take(&mut self.stream.to_home)
    }

    /// Takes what this file's functions sent home. Gives back what is something else.
    pub(super) fn stream_message(&mut self, message: Box<dyn Any + Send>) -> Result<(), Box<dyn Any + Send>> {
        let now_ms = self.now_ms();
        let message = match message.downcast::<Wait>() {
            Ok(wait) => {
                let Wait { conn, offset, replicas, timeout_ms, level } = *wait;
                let home = self.home.as_mut().expect("sent home");
                if home.is_replica() {
                    // It has become one meanwhile.
                    self.let_go(WaiterId(conn.0));
                    return Ok(());
                }
                // The millisecond under way has begun already.
                let deadline_ms = (timeout_ms > 0).then(|| now_ms.saturating_add(timeout_ms + 1));
                let answer = home.wait(WaiterId(conn.0), offset, replicas, deadline_ms, level);
                if let Some(replicas) = answer {
                    self.answer_wait(Resolved { waiter: WaiterId(conn.0), replicas, level });
                }
                return Ok(());
            }
            Err(other) => other,
        };
        let message = match message.downcast::<FailoverRequest>() {
            Ok(request) => {
                self.failover_request(*request);
                return Ok(());
            }
            Err(other) => other,
        };
        let end = message.downcast::<EndWait>()?;
        let home = self.home.as_mut().expect("sent home");
        match (home.cancel_wait(WaiterId(end.conn.0)), end.how) {
            (Some(resolved), End::Count) => self.answer_wait(resolved),
            (Some(_), End::Error) => {
                const UNBLOCKED: &[u8] = b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n";
                self.answer_later(end.conn, UNBLOCKED.to_vec());
            }
            // Its answer is on its way already, or nobody is left to read it.
            (None, _) | (_, End::Gone) => {}
        }
        Ok(())
    }

    /// Tells a client how many replicas have acknowledged what it waited for.
    pub(super) fn answer_wait(&mut self, resolved: Resolved) {
        let conn = ConnId(resolved.waiter.0);
        let bytes = match resolved.level {
            Level::Applied => format!(":{}\r\n", resolved.replicas),
            // There is no append-only file here.
            Level::Durable => format!("*2\r\n:0\r\n:{}\r\n", resolved.replicas),
        };
        self.answer_later(conn, bytes.into_bytes());
    }

    /// Tells a client that what it waits for will not come: this node became a replica.
    pub(super) fn let_go(&mut self, waiter: WaiterId) {
        const UNBLOCKED: &[u8] = b"-UNBLOCKED force unblock from blocking operation, instance state changed \
                                   (master -> replica?)\r\n";
        self.answer_later(ConnId(waiter.0), UNBLOCKED.to_vec());
    }

    /// Answers a connection of any shard.
    pub(super) fn answer_later(&mut self, conn: ConnId, bytes: Vec<u8>) {
        match shard_of(conn) {
            shard if shard == self.id => self.reply(conn, &bytes, Vec::new(), true),
            shard => self.node.order(shard, Order::Answer(conn, bytes)),
        }
    }
}
