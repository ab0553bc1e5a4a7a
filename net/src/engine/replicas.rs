//! Replication at work on one shard: the home shard feeds replicas from the log; every shard walks its slice for a
//! snapshot. What is decided where: see `braid_replication::home`.

use super::parts::PartMsg;
use super::{Conn, Engine, Front};
use crate::config::Config;
use crate::log_notice;
use crate::ring::{SendBuffer, Token};
use crate::session::Session;
use crate::session::replication::ReplicaSession;
use braid_core::keyspace::PIECE_BYTES;
use braid_core::keyspace::SnapshotPiece;
use braid_replication::acks::ReplicaId;
use braid_replication::home::{Action, Home, Piece, Rules, Unsent};
use braid_replication::log::ReaderLimits;
use braid_replication::sharing::Policy;
use braid_shards::ShardId;
use bytes::Bytes;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The shard with the merge stage and the log.
pub const HOME: ShardId = 0;
/// Bytes of values that one slice of the walk serializes: some 25 us of work.
const WALK_SLICE_BYTES: usize = 8 << 10;

/// What is written within this time after a send waits for the next one: a send, and what follows from it at the replica,
/// costs as much as several writes.
const FEED_PERIOD: Duration = Duration::from_millis(1);

/// A connection on its way to the home shard, to become a replica there.
pub struct Handover {
    pub(super) socket: OwnedFd,
    pub(super) session: Session,
    /// What it sent after the words.
    pub(super) input: Vec<u8>,
    /// Those of its `PSYNC`, if it is about to become a replica by one.
    words: Option<Vec<Vec<u8>>>,
}

/// A piece of a shard's part of a snapshot, on its way to the home shard.
pub struct WalkedPiece {
    snapshot: u64,
    piece: Piece,
}

/// Nobody wants the snapshot any more.
pub struct Abort {
    pub(super) snapshot: u64,
}

/// What the configuration says about replication.
pub fn rules(config: &Config) -> Rules {
    let replica = &config.client_output_buffer_limit.replica;
    Rules {
        backlog_bytes: config.repl_backlog_size_bytes.max(16 << 10),
        backlog_disk_bytes: config.repl_backlog_disk_size_bytes,
        backlog_ttl_ms: u64::from(config.repl_backlog_ttl_s) * 1000,
        protects: config.protected_restart,
        ping_period_ms: u64::from(config.repl_ping_replica_period_s) * 1000,
        timeout_ms: u64::from(config.repl_timeout_s) * 1000,
        sharing: Policy {
            is_diskless: config.repl_diskless_sync,
            delay_ms: u64::from(config.repl_diskless_sync_delay_s) * 1000,
            max_replicas: config.repl_diskless_sync_max_replicas as usize,
        },
        limits: ReaderLimits {
            hard_bytes: replica.hard_bytes,
            soft_bytes: replica.soft_bytes,
            soft_ms: replica.soft_seconds * 1000,
        },
        compress: config.rdbcompression,
        checksum: config.rdbchecksum,
    }
}

impl Engine {
    /// Does what the home asks for, and this shard's part of a snapshot. Called in every round before the tick ends.
    /// Returns whether that was anything.
    pub(super) fn replicate(&mut self) -> bool {
        let more = self.walk_for_snapshot();
        self.front.is_walking = more;
        let now_ms = self.front.now_ms();
        for message in self.front.take_messages_home() {
            if self.front.home.is_none() {
                self.shard.send_upper(HOME, message);
            } else {
                let taken = self.front.stream_message(message);
                assert!(taken.is_ok(), "nothing else is sent home this way");
            }
        }
        let Some(home) = &mut self.front.home else { return more };
        let is_due = self.front.next_home_tick_ms.is_some_and(|at| at <= now_ms);
        if is_due {
            home.tick(now_ms);
        }
        home.poll_failover(now_ms);
        home.poll_farewell(now_ms);
        let actions = home.take_actions();
        for resolved in home.take_resolved() {
            self.front.answer_wait(resolved);
        }
        let home = self.front.home.as_ref().expect("checked above");
        let is_freeing = home.is_freeing();
        self.front.next_home_tick_ms = home.next_tick_ms();
        for action in actions {
            match action {
                Action::Cut { snapshot, with_data } => {
                    self.announce_parts(snapshot);
                    let hook = self.front.saving.at_cut(snapshot);
                    self.front.follower().want_cut(snapshot, with_data, hook);
                }
                Action::Turned(turn) => self.front.follower().turned(turn),
                Action::Abort { snapshot } => self.abort_snapshot(snapshot),
                Action::File { snapshot, step } => self.file_step(snapshot, step),
                Action::StopStream => self.front.follower().want_stop(),
                Action::Failover(step) => self.failover_step(step),
                Action::EndParts { replica } => self.front.send_to_all(|| PartMsg::End { replica }),
                Action::Unblock { waiter } => self.front.let_go(waiter),
                Action::Leave(attendance) => self.leave(&attendance),
                Action::Close { replica, why } => {
                    log_notice!("Closing the connection of replica {}: {why}", replica.0);
                    if let Some(token) = self.front.replicas.get(&replica).copied() {
                        self.close(token);
                    }
                }
            }
        }
        self.shard.settle(&mut self.front);
        more || is_due || is_freeing
    }

    fn abort_snapshot(&mut self, snapshot: u64) {
        for to in 0..self.front.node.map.shards() as ShardId {
            if to == self.front.id {
                self.shard.abort_snapshot(snapshot);
            } else {
                self.shard.send_upper(to, Box::new(Abort { snapshot }));
            }
        }
    }

    /// One slice of this shard's walk. True if there is more to do at once.
    fn walk_for_snapshot(&mut self) -> bool {
        for snapshot in std::mem::take(&mut self.front.aborted) {
            self.shard.abort_snapshot(snapshot);
        }
        let paused = self.front.node.is_walk_paused(self.front.id) || self.shard.is_home_full();
        self.front.held_back = paused;
        let walked = self.shard.walk_snapshot(WALK_SLICE_BYTES, PIECE_BYTES, paused, &mut self.front);
        let Some(walked) = walked else { return false };
        if let Some(SnapshotPiece { chunks, checksum, is_last }) = walked.piece {
            let chunks = chunks.into_iter().map(Bytes::from).collect();
            let piece = Piece { chunks, checksum, is_last };
            let Some(piece) = self.front.piece_in_parts(walked.snapshot, piece) else { return walked.more };
            let piece = WalkedPiece { snapshot: walked.snapshot, piece };
            if self.front.home.is_some() {
                self.front.piece(piece);
            } else {
                self.shard.send_upper(HOME, Box::new(piece));
            }
        }
        walked.more
    }

    /// A socket left the ring: its connection moves to the home shard.
    pub(super) fn hand_over(&mut self, token: Token, socket: OwnedFd) {
        let Some(mut conn) = self.front.take_conn(token) else { return };
        let input = std::mem::take(&mut conn.input);
        self.front.release(&mut conn);
        let Conn { mut session, parser, .. } = *conn;
        let is_part = session.replica.as_ref().is_some_and(|replica| replica.part.is_some());
        let moving = session.replica.as_mut().and_then(|replica| replica.moving.take());
        let moving = if is_part { Some(None) } else { moving };
        // What was sent after the words moves along, but for an argument so large that it is half assembled.
        let Some(words) = moving.filter(|_| parser.held_bytes() == 0) else {
            self.front.node.connected_clients.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        session.steps = None;
        let handover = Handover { socket, session, input, words };
        if is_part {
            self.front.move_part(handover);
        } else {
            self.shard.send_upper(HOME, Box::new(handover));
        }
    }
}

impl Front {
    pub(super) fn piece(&mut self, walked: WalkedPiece) {
        self.home.as_mut().expect("pieces go home").piece(walked.snapshot, walked.piece);
    }

    /// Takes what other shards sent about replication. Gives back what is something else.
    pub(super) fn replication_message(
        &mut self,
        message: Box<dyn std::any::Any + Send>,
    ) -> Result<(), Box<dyn std::any::Any + Send>> {
        let message = match message.downcast::<WalkedPiece>() {
            Ok(piece) => {
                self.piece(*piece);
                return Ok(());
            }
            Err(other) => other,
        };
        let message = match message.downcast::<Abort>() {
            Ok(abort) => {
                self.aborted.push(abort.snapshot);
                return Ok(());
            }
            Err(other) => other,
        };
        let message = match message.downcast::<PartMsg>() {
            Ok(message) => {
                self.parts.receive(*message);
                return Ok(());
            }
            Err(other) => other,
        };
        match message.downcast::<Handover>() {
            Ok(handover) => {
                self.take_over(*handover);
                Ok(())
            }
            Err(other) if self.home.is_some() => self.stream_message(other),
            Err(other) => Err(other),
        }
    }

    /// A connection arrives to become a replica.
    fn take_over(&mut self, handover: Handover) {
        let Handover { socket, session, input, words } = handover;
        let token = self.admit(socket, session);
        let Some(mut conn) = self.take_conn(token) else { return };
        if !input.is_empty() {
            conn.input = input;
            self.ready.push(conn.id);
        }
        if let Err(error) = self.attach_replica(&mut conn, words) {
            conn.out.error(&error.to_string());
            self.list(&mut conn);
        }
        self.put_conn(conn);
    }

    /// Feeds every replica that has nothing in flight. Called after the tick has ended. What is little waits if something
    /// was sent just before: see [`Front::feed_deadline`]. `worked`: the tick did something.
    pub(super) fn feed_replicas(&mut self, worked: bool) {
        let Some(home) = &mut self.home else { return };
        home.trim();
        drop(home.take_dropped());
        self.spill();
        let Some(home) = &mut self.home else { return };
        let may_wait = self.now < self.next_feed && !self.node.stopping.load(Ordering::Relaxed);
        self.feed_waits = false;
        let mut due: smallvec::SmallVec<[ReplicaId; 8]> = smallvec::SmallVec::new();
        for id in home.idle_replicas() {
            match home.unsent(id) {
                Unsent::Nothing => {}
                Unsent::MayWait if may_wait => self.feed_waits = true,
                Unsent::MayWait | Unsent::Pressing => due.push(id),
            }
        }
        if !due.is_empty() {
            self.next_feed = self.now + FEED_PERIOD;
        }
        for id in due {
            let Some(token) = self.replicas.get(&id).copied() else { continue };
            let Some(mut conn) = self.take_conn(token) else { continue };
            if !conn.sending && conn.out.is_empty() {
                let mut pieces = Vec::new();
                let home = self.home.as_mut().expect("checked above");
                if home.next_send(id, &mut pieces) {
                    let buffer = SendBuffer::with_pieces(
                        Vec::new(),
                        pieces.into_iter().map(|piece| (0, piece)).collect(),
                    );
                    self.public().counters.net_repl_out_bytes.add(buffer.len_bytes() as u64);
                    conn.session.info().net_out_bytes.add(buffer.len_bytes() as u64);
                    conn.sending = self.ring.send(token, buffer).is_ok();
                    conn.session.replica.get_or_insert_default().is_fed = true;
                }
            }
            self.put_conn(conn);
        }
        self.publish_replication(worked);
    }

    /// When what waits for more is sent without it.
    pub(super) fn feed_deadline(&self) -> Option<Instant> {
        self.feed_waits.then_some(self.next_feed)
    }

    /// Whether the walk for a snapshot, which this tick left alone, may go on. To be looked at before going to sleep: who
    /// lets it go on wakes only those who sleep already.
    pub(super) fn may_walk_on(node: &crate::node::Node, id: ShardId, held_back: bool) -> bool {
        held_back && !node.is_walk_paused(id)
    }

    /// A send to a replica ended.
    pub(super) fn fed(&mut self, replica: &mut ReplicaSession, succeeded: bool) {
        let now_ms = self.now_ms();
        let is_fed = std::mem::take(&mut replica.is_fed);
        if let (true, Some(id), Some(home)) = (is_fed, replica.id, &mut self.home) {
            home.sent(id, now_ms);
        }
        if let (true, Some(part)) = (is_fed && succeeded, &replica.part) {
            self.fed_part(part);
        }
    }

    /// A connection that was a replica is gone.
    pub(super) fn forget_replica(&mut self, replica: &ReplicaSession) {
        if let (Some(id), Some(home)) = (replica.id, &mut self.home) {
            home.detach(id);
            self.replicas.remove(&id);
        }
        if let Some(part) = &replica.part {
            self.forget_part(part);
        }
    }

    /// Lets the other shards see where the stream is, and replication's other numbers if they `may_differ` from those
    /// published last.
    pub(super) fn publish_replication(&mut self, may_differ: bool) {
        /// How old the published numbers but the offset may be.
        const PERIOD_MS: u64 = 100;
        let now_ms = self.now_ms();
        self.publish_stream();
        let Some(home) = &self.home else { return };
        let paused = home.is_snapshot_paused();
        if self.node.pause_walks(paused) {
            self.node.wake_all();
        }
        let replicas = home.replicas();
        if now_ms >= self.next_report_ms || replicas != self.reported_replicas {
            self.next_report_ms = now_ms + PERIOD_MS;
            self.reported_replicas = replicas;
            let report = home.report(now_ms);
            self.node.waiting_bytes.store(report.waiting_bytes, Ordering::Relaxed);
            *self.node.replication.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = report;
            self.stale_report_ms = None;
        } else if may_differ {
            self.stale_report_ms = Some(self.next_report_ms);
        }
    }
}

/// The home's state machine, on the shard that has it.
pub fn home(id: ShardId, shards: usize, config: &Config) -> Option<Box<Home>> {
    (id == HOME).then(|| Box::new(Home::new(shards, rules(config), fastrand::u64(..))))
}
