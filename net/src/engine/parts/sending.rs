//! Connections to replicas that carry a part of a snapshot, on the shard that sends it. The shards' walks put their pieces
//! straight into them; where more than one shard does, the pieces of the others come as messages.

use super::{HOME, PartMsg};
use crate::engine::replicas::Handover;
use crate::engine::{Conn, Engine, Front};
use crate::log_notice;
use crate::node::Node;
use crate::ring::{SendBuffer, Token as Socket};
use braid_core::command::Error;
use braid_replication::acks::ReplicaId;
use braid_replication::home::{PartsPlan, Piece};
use braid_replication::parts::outlet::Outlet;
use braid_replication::parts::{PARTS_MAX, Token};
use braid_shards::{ConnId, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A connection that carries a part, or is to.
pub struct PartSession {
    token: Token,
    index: usize,
    /// Whose it is, once the home has taken it.
    replica: Option<ReplicaId>,
}

impl PartSession {
    /// The home has taken it: nothing but its part may be sent.
    pub fn is_taken(&self) -> bool {
        self.replica.is_some()
    }
}

/// Holds one shard's walk as long as it lives.
struct Hold {
    node: Arc<Node>,
    shard: ShardId,
}

impl Hold {
    fn new(node: &Arc<Node>, shard: ShardId) -> Self {
        node.walk_holds.add(shard);
        Self { node: Arc::clone(node), shard }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.node.walk_holds.remove(self.shard) {
            self.node.wake(self.shard);
        }
    }
}

/// What a connection carries.
struct Sends {
    snapshot: u64,
    /// So many connections the replica has.
    count: usize,
    outlet: Outlet,
}

/// A connection that the home has taken.
struct Part {
    socket: Socket,
    /// Once its snapshot is about to be cut.
    sends: Option<Sends>,
    /// The shards that are to wait for it.
    holds: Vec<Hold>,
    /// Why it is being closed.
    why: Option<String>,
}

/// The shard's state for this file.
#[derive(Default)]
pub struct Sending {
    /// The snapshot that was last said to go out in parts.
    plan: Option<PartsPlan>,
    parts: BTreeMap<(ReplicaId, usize), Part>,
}

impl Sending {
    pub(super) fn next_tick_ms(&self, timeout_ms: u64) -> Option<u64> {
        // Of one that is being closed, its end is all that is to come.
        let open = self.parts.values().filter(|part| part.why.is_none());
        let outlets = open.filter_map(|part| part.sends.as_ref());
        let since_ms = outlets.filter_map(|sends| sends.outlet.sending_since_ms()).min()?;
        Some(since_ms + timeout_ms + 1)
    }
}

impl Front {
    /// `REPLCONF sync-part …`: the connection is to carry a part. The answer comes when it has been taken.
    pub fn begin_part(&mut self, conn: &mut Conn, token: Token, index: usize) -> Result<(), Error> {
        let is_busy = conn.sending || !conn.out.is_empty() || conn.session.is_replica();
        if is_busy || conn.session.replica.as_ref().is_some_and(|replica| replica.part.is_some()) {
            return Err(Error::text("ERR REPLCONF sync-part is invalid here"));
        }
        if index >= PARTS_MAX {
            return Err(Error::text("ERR sync-part index is out of range"));
        }
        let part = PartSession { token, index, replica: None };
        conn.session.replica.get_or_insert_default().part = Some(part);
        conn.waiting = true;
        if self.part_host(index) == self.id {
            self.ask_for_part(conn);
        } else {
            self.ring.detach(conn.token);
        }
        Ok(())
    }

    /// The shard that keeps a connection.
    fn part_host(&self, index: usize) -> ShardId {
        PartsPlan::host_of(index, self.shards()) as ShardId
    }

    fn ask_for_part(&mut self, conn: &Conn) {
        let part = conn.session.replica.as_ref().and_then(|replica| replica.part.as_ref());
        let PartSession { token, index, .. } = *part.expect("it is to carry one");
        let message = PartMsg::Come { conn: conn.id, shard: self.id, token, index };
        self.parts.send(HOME, message);
    }

    /// A connection that is to carry a part left another shard's ring: it moves to the shard that keeps it.
    pub(in crate::engine) fn move_part(&mut self, handover: Handover) {
        let part = handover.session.replica.as_ref().and_then(|replica| replica.part.as_ref());
        let host = self.part_host(part.expect("it is to carry one").index);
        self.parts.send(host, PartMsg::Move(handover));
    }

    /// Such a connection arrives.
    pub(super) fn take_part_over(&mut self, handover: Handover) {
        let Handover { socket, session, input, .. } = handover;
        let token = self.admit(socket, session);
        let Some(mut conn) = self.take_conn(token) else { return };
        conn.input = input;
        conn.waiting = true;
        self.ask_for_part(&conn);
        self.put_conn(conn);
    }

    /// The home has taken a connection, or not.
    pub(super) fn part_answered(&mut self, id: ConnId, outcome: Result<(ReplicaId, usize), &'static str>) {
        let conn = self.take_conn_by_id(id);
        match (conn, outcome) {
            (None, Err(_)) => {}
            (None, Ok((replica, part))) => {
                let why = "it was closed".to_owned();
                self.parts.send(HOME, PartMsg::Gone { replica, part, why });
            }
            (Some(mut conn), Err(error)) => {
                conn.session.replica = None;
                conn.waiting = false;
                conn.out.error(error);
                conn.closing = true;
                self.list(&mut conn);
                self.put_conn(conn);
            }
            (Some(mut conn), Ok((replica, index))) => {
                let part = conn.session.replica.as_mut().and_then(|replica| replica.part.as_mut());
                part.expect("it is to carry one").replica = Some(replica);
                conn.waiting = false;
                let answer = SendBuffer::with_pieces(b"+OK\r\n".to_vec(), Vec::new());
                conn.sending = self.ring.send(conn.token, answer).is_ok();
                let part = Part { socket: conn.token, sends: None, holds: Vec::new(), why: None };
                let former = self.parts.sending.parts.insert((replica, index), part);
                assert!(former.is_none(), "the home takes one connection for a part");
                self.set_up_replica(&conn);
                if conn.eof {
                    self.ring.close(conn.token);
                } else if !conn.input.is_empty() {
                    self.ready.push(id);
                }
                self.put_conn(conn);
            }
        }
    }

    /// A snapshot is about to be cut: this shard's connections begin their streams.
    pub(super) fn plan_parts(&mut self, plan: PartsPlan) {
        let shards = self.shards();
        let mut rng = fastrand::Rng::new();
        for &(replica, count) in &plan.members {
            for part in 0..count {
                // One that is gone meanwhile was told to the home.
                let Some(kept) = self.parts.sending.parts.get_mut(&(replica, part)) else { continue };
                // A cut that was refused is made later.
                if kept.sends.as_ref().is_some_and(|sends| sends.snapshot == plan.snapshot) {
                    continue;
                }
                let feeders = PartsPlan::feeders(part, count, shards);
                let window_bytes = PartsPlan::window_bytes_of(count);
                let outlet = Outlet::new(plan.options, feeders, window_bytes, &mut rng);
                kept.sends = Some(Sends { snapshot: plan.snapshot, count, outlet });
            }
        }
        self.parts.sending.plan = Some(plan);
    }

    /// This shard's walk has a piece. Gives it back if its snapshot goes home.
    pub(in crate::engine) fn piece_in_parts(&mut self, snapshot: u64, piece: Piece) -> Option<Piece> {
        let plan = self.parts.sending.plan.take_if(|plan| plan.snapshot == snapshot);
        let Some(plan) = plan else { return Some(piece) };
        for &(replica, count) in &plan.members {
            let part = PartsPlan::part_of(usize::from(self.id), count);
            let host = self.part_host(part);
            let piece = piece.clone();
            if host == self.id {
                self.part_piece(snapshot, replica, part, piece);
            } else {
                let piece = Box::new(piece);
                self.parts.send(host, PartMsg::Piece { snapshot, replica, part, piece });
            }
        }
        if piece.is_last {
            // The home waits for the end of every walk, and needs none of its bytes.
            return Some(Piece::end());
        }
        self.parts.sending.plan = Some(plan);
        None
    }

    pub(super) fn part_piece(&mut self, snapshot: u64, replica: ReplicaId, part: usize, piece: Piece) {
        let Some(kept) = self.parts.sending.parts.get_mut(&(replica, part)) else { return };
        if let Some(sends) = kept.sends.as_mut().filter(|sends| sends.snapshot == snapshot) {
            sends.outlet.piece(piece);
            self.regulate_walks(replica, part);
        }
    }

    /// Lets `INFO` see how much waits here.
    fn count_part_bytes(&self) {
        let sends = self.parts.sending.parts.values().filter_map(|part| part.sends.as_ref());
        self.public().part_bytes.set(sends.map(|sends| sends.outlet.queued_bytes()).sum());
    }

    /// Lets the shards that a connection sends for wait while it has much to send.
    fn regulate_walks(&mut self, replica: ReplicaId, index: usize) {
        self.count_part_bytes();
        let (node, shards) = (Arc::clone(&self.node), self.shards());
        let Some(part) = self.parts.sending.parts.get_mut(&(replica, index)) else { return };
        match part.sends.as_ref().filter(|sends| sends.outlet.is_full()) {
            None => part.holds.clear(),
            Some(sends) if part.holds.is_empty() => {
                let feeds = |shard: &usize| PartsPlan::part_of(*shard, sends.count) == index;
                let hold = |shard| Hold::new(&node, shard as ShardId);
                part.holds = (0..shards).filter(feeds).map(hold).collect();
            }
            Some(_) => {}
        }
    }

    /// Sends what there is on every connection that has nothing in flight. Called after the tick has ended.
    pub(in crate::engine) fn feed_parts(&mut self) {
        if self.parts.sending.parts.is_empty() {
            return;
        }
        let now_ms = self.now_ms();
        let due: Vec<_> = self.parts.sending.parts.iter().map(|(key, part)| (*key, part.socket)).collect();
        for ((replica, index), socket) in due {
            let Some(mut conn) = self.take_conn(socket) else { continue };
            let part = self.parts.sending.parts.get_mut(&(replica, index)).expect("just listed");
            let mut pieces = Vec::new();
            if !conn.sending
                && part.why.is_none()
                && let Some(sends) = &mut part.sends
                && sends.outlet.next_send(&mut pieces, now_ms)
            {
                let pieces = pieces.into_iter().map(|piece| (0, piece)).collect();
                let buffer = SendBuffer::with_pieces(Vec::new(), pieces);
                self.public().counters.net_repl_out_bytes.add(buffer.len_bytes() as u64);
                conn.session.info().net_out_bytes.add(buffer.len_bytes() as u64);
                conn.sending = self.ring.send(socket, buffer).is_ok();
                conn.session.replica.get_or_insert_default().is_fed = true;
                self.regulate_walks(replica, index);
            }
            self.put_conn(conn);
        }
    }

    /// A send of a part's bytes ended.
    pub(in crate::engine) fn fed_part(&mut self, session: &PartSession) {
        let Some(replica) = session.replica else { return };
        let part = self.parts.sending.parts.get_mut(&(replica, session.index));
        let Some(sends) = part.and_then(|part| part.sends.as_mut()) else { return };
        drop(sends.outlet.take_dropped());
        if let Some(len_bytes) = sends.outlet.sent() {
            self.parts.send(HOME, PartMsg::Sent { replica, part: session.index, len_bytes });
        }
    }

    /// A connection that carried a part is gone.
    pub(in crate::engine) fn forget_part(&mut self, session: &PartSession) {
        let Some(replica) = session.replica else { return };
        if let Some(part) = self.parts.sending.parts.remove(&(replica, session.index)) {
            let why = part.why.unwrap_or_else(|| "it was closed".to_owned());
            self.parts.send(HOME, PartMsg::Gone { replica, part: session.index, why });
            self.count_part_bytes();
        }
    }

    /// Closes connections that do not get on (`repl-timeout`).
    pub(super) fn look_after_outlets(&mut self) {
        let timeout_ms = u64::from(self.config.repl_timeout_s) * 1000;
        let now_ms = self.now_ms();
        for part in self.parts.sending.parts.values_mut().filter(|part| part.why.is_none()) {
            let since_ms = part.sends.as_ref().and_then(|sends| sends.outlet.sending_since_ms());
            if since_ms.is_some_and(|since_ms| now_ms > since_ms + timeout_ms) {
                part.why = Some("timeout while it was sent its part".to_owned());
                self.ring.close(part.socket);
            }
        }
    }
}

impl Engine {
    /// The snapshot is about to be cut: if it goes out in parts every shard is told, before its slice is taken for the cut.
    pub(in crate::engine) fn announce_parts(&mut self, snapshot: u64) {
        let Some(plan) = self.front.home.as_ref().and_then(|home| home.parts_plan(snapshot)) else { return };
        for (replica, count) in &plan.members {
            log_notice!("Sending snapshot number {snapshot} to replica {} on {count} connections", replica.0);
        }
        for to in 0..self.front.shards() as ShardId {
            if to == self.front.id {
                self.front.plan_parts(plan.clone());
            } else {
                self.shard.send_upper(to, Box::new(PartMsg::Plan(plan.clone())));
            }
        }
    }

    /// Closes this shard's connections of a replica.
    pub(super) fn end_parts(&mut self, replica: ReplicaId) {
        let its = self.front.parts.sending.parts.range_mut((replica, 0)..=(replica, usize::MAX));
        let sockets: Vec<Socket> = its
            .map(|(_, part)| {
                part.why.get_or_insert_with(|| "it is not needed any more".to_owned());
                part.socket
            })
            .collect();
        sockets.into_iter().for_each(|socket| self.close(socket));
    }
}
