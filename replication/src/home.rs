//! The whole of replication as a master does it, as one state machine: merge, log, replicas, snapshots, acknowledgements.
//!
//! It lives on one shard, the home shard. Inputs are what shards and replicas send, and the time; what has to be done
//! comes out of [`Home::take_actions`], and what a replica is to be sent out of [`Home::next_send`].

mod farewell;
mod files;
mod handover;
mod parts;
mod peers;
pub mod relay;
mod report;
mod sending;
mod snapshots;
mod upkeep;
mod waits;

use crate::acks::{Acks, ReplicaId, Resolved, WaiterId};
use crate::failover::{Failover, Step};
use crate::ids::Ids;
use crate::log::{Log, ReaderLimits};
use crate::merge::{Marked, Merge};
use crate::psync::State;
use crate::sharing::{Policy, Sharing};
use braid_core::command::Segment;
use braid_shards::{Mark, Share};
use bytes::Bytes;
use farewell::Farewell;
use peers::Peer;
use relay::{Relay, Turn};
use snapshots::Snapshot;
use std::collections::BTreeMap;
use upkeep::{Protection, Retention};

pub use farewell::Attendance;
pub use files::FileStep;
pub use parts::PartsPlan;
pub use report::{ReplicaLine, Report};
pub use sending::Unsent;
pub use snapshots::{Piece, RDB_VERSION};

/// Between two looks at the time while there are replicas.
const TICK_MS: u64 = 1000;
/// The mark of the ticket from which on the shards collect no effects.
pub const STOP_MARK: u64 = u64::MAX;
/// How far one shard's ticket may be ahead of the slowest's. A shard takes one ticket a tick, so this many ticks.
const EARLY_TICKETS_MAX: usize = 1 << 24;

/// What the configuration says about replication.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub backlog_bytes: u64,
    /// What may be on disk of the stream, for who is behind the backlog; 0: nothing.
    pub backlog_disk_bytes: u64,
    /// How long the stream is kept after the last replica left; 0: for ever.
    pub backlog_ttl_ms: u64,
    /// `protected-restart`: a master that started empty does not replace datasets of other histories.
    pub protects: bool,
    pub ping_period_ms: u64,
    pub timeout_ms: u64,
    pub sharing: Policy,
    pub limits: ReaderLimits,
    pub compress: bool,
    pub checksum: bool,
}

/// What the layer around has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a cut over all shards whose ticket carries `Mark::Cut(snapshot)`; from it on the shards collect effects, and
    /// each walks its slice and hands in its pieces. `with_data`: otherwise the snapshot stays empty.
    Cut { snapshot: u64, with_data: bool },
    /// Nobody wants this snapshot any more.
    Abort { snapshot: u64 },
    /// Do something with a snapshot's file.
    File { snapshot: u64, step: FileStep },
    /// Close a replica's connection, and why.
    Close { replica: ReplicaId, why: String },
    /// Close what further connections a replica has for the parts of its snapshot.
    EndParts { replica: ReplicaId },
    /// Every replica has all of the stream, or there was no more time to wait for it: the process may end.
    Leave(Attendance),
    /// A step of a failover.
    Failover(Step),
    /// The change of role is complete: what follows is done in the new one.
    Turned(Turn),
    /// A client that waits is to be told that it waits for nothing: this node became a replica.
    Unblock { waiter: WaiterId },
    /// Nobody has followed the stream for long: the shards are to collect no effects any more, by a transaction over
    /// everything whose ticket carries `Mark::Offset` of [`STOP_MARK`].
    StopStream,
}

/// See the module.
pub struct Home {
    shards: usize,
    ids: Ids,
    log: Log,
    merge: Merge,
    acks: Acks,
    sharing: Sharing,
    peers: BTreeMap<ReplicaId, Peer>,
    snapshot: Option<Snapshot>,
    next_snapshot: u64,
    next_replica: u64,
    rules: Rules,
    actions: Vec<Action>,
    marked: Vec<Marked>,
    last_tick_ms: u64,
    last_ping_ms: u64,
    /// When a cut that could not be made is asked for again.
    retry_cut_ms: Option<u64>,
    /// A snapshot to be kept is asked for.
    wants_save: bool,
    /// The snapshot whose pieces are all in its file, which is being finished, and those who wait for it.
    finishing: Option<(u64, Vec<ReplicaId>)>,
    rng: fastrand::Rng,
    /// Clients whose wait is over.
    resolved: Vec<Resolved>,
    /// Where the stream ended when replicas were last asked for their offsets.
    asked_at: Option<u64>,
    failover: Failover,
    farewell: Option<Farewell>,
    retention: Retention,
    protection: Protection,
    full_syncs: u64,
    partial_syncs: u64,
    refused_partial_syncs: u64,
    syncs_in_parts: u64,
    /// This node follows a master.
    relay: Option<Relay>,
    turn: Option<Turn>,
    /// Pieces of snapshots, for [`Home::take_dropped`].
    dropped: Vec<Bytes>,
}
impl Home {
    pub fn new(shards: usize, rules: Rules, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut log = Log::new(0, rules.backlog_bytes);
        log.set_disk_bytes(rules.backlog_disk_bytes);
        Self {
            shards,
            ids: Ids::new(&mut rng),
            log,
            merge: Merge::new(0, EARLY_TICKETS_MAX),
            acks: Acks::default(),
            sharing: Sharing::default(),
            peers: BTreeMap::new(),
            snapshot: None,
            next_snapshot: 0,
            next_replica: 0,
            rules,
            actions: Vec::new(),
            marked: Vec::new(),
            last_tick_ms: 0,
            last_ping_ms: 0,
            retry_cut_ms: None,
            wants_save: false,
            finishing: None,
            rng,
            resolved: Vec::new(),
            asked_at: None,
            failover: Failover::default(),
            farewell: None,
            retention: Retention::default(),
            protection: Protection::default(),
            full_syncs: 0,
            partial_syncs: 0,
            refused_partial_syncs: 0,
            syncs_in_parts: 0,
            relay: None,
            turn: None,
            dropped: Vec::new(),
        }
    }

    /// Applies a changed configuration.
    pub fn set_rules(&mut self, rules: Rules) {
        if rules.backlog_bytes != self.rules.backlog_bytes {
            self.log.set_backlog_bytes(rules.backlog_bytes);
        }
        if rules.backlog_disk_bytes != self.rules.backlog_disk_bytes {
            self.log.set_disk_bytes(rules.backlog_disk_bytes);
        }
        self.rules = rules;
    }

    /// What has to be done since this was last asked.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether the stream is kept, for replicas that are there or may come back.
    pub fn is_followed(&self) -> bool {
        self.log.is_active()
    }

    pub fn end_offset(&self) -> u64 {
        self.log.end_offset()
    }

    /// Behind the last effect in the stream. What follows it are signs of life, and questions.
    pub fn written_offset(&self) -> u64 {
        self.merge.written_offset(&self.log)
    }

    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// A tick's effects arrive under their ticket.
    pub fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.merge.submit(ticket, segment, mark, &mut self.log, &mut self.marked);
        self.answer_marks();
    }

    /// A shard's share of a batch's effects arrives under its ticket.
    pub fn share(&mut self, ticket: u64, share: Share) {
        self.merge.submit_share(ticket, share, &mut self.log, &mut self.marked);
        self.answer_marks();
    }

    fn answer_marks(&mut self) {
        if self.marked.is_empty() {
            return;
        }
        for marked in std::mem::take(&mut self.marked) {
            match marked.mark {
                Mark::Cut(snapshot) => self.cut(snapshot, marked.offset),
                Mark::Role => self.turned(marked.offset),
                Mark::Offset(STOP_MARK) => self.stream_stopped(),
                Mark::Offset(_) => {}
            }
        }
    }

    /// Lets go of what nobody needs; call it after a batch of segments, and as long as [`Home::is_freeing`].
    pub fn trim(&mut self) {
        self.log.trim();
    }

    /// Whether [`Home::trim`] has more to free at once.
    pub fn is_freeing(&self) -> bool {
        self.log.is_freeing()
    }

    /// Pieces that nobody here needs any more. Those that are long are to be freed elsewhere, where nobody else has them. To
    /// be asked for whenever it was trimmed.
    pub fn take_dropped(&mut self) -> Vec<Bytes> {
        let mut dropped = self.log.take_dropped();
        dropped.append(&mut self.dropped);
        dropped
    }

    /// Time passes. To be called at least every second while there are replicas.
    pub fn tick(&mut self, now_ms: u64) {
        self.last_tick_ms = now_ms;
        self.log.tick(now_ms);
        self.acks.expire(now_ms, &mut self.resolved);
        self.keep_or_stop_stream(now_ms);
        self.poll_failover(now_ms);
        self.poll_farewell(now_ms);
        self.poll_sharing(now_ms);
        if self.retry_cut_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            self.retry_cut_ms = None;
            // It may have been given up since.
            if let Some(snapshot) = self.snapshot.as_ref().filter(|snapshot| !snapshot.is_cut) {
                self.actions.push(Action::Cut { snapshot: snapshot.id, with_data: snapshot.with_data });
            }
        }
        if self.peers.is_empty() {
            return;
        }
        if now_ms.saturating_sub(self.last_ping_ms) >= self.rules.ping_period_ms {
            self.last_ping_ms = now_ms;
            if self.relay.is_none()
                && !self.failover.is_under_way()
                && self.farewell.is_none()
                && self.log.is_active()
                && self.peers.values().any(|peer| peer.handshake.is_streaming())
            {
                self.merge.ping(&mut self.log);
            }
            self.peers.values_mut().for_each(Peer::keep_alive);
        }
        let timeout_ms = self.rules.timeout_ms;
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| !peer.is_closing) {
            let silent_ms = now_ms.saturating_sub(peer.last_heard_ms);
            let stuck_ms = if peer.is_sending {
                now_ms.saturating_sub(*peer.stuck_since_ms.get_or_insert(now_ms))
            } else {
                0
            };
            let exceeded =
                peer.reader.and_then(|reader| self.log.check_limits(reader, self.rules.limits, now_ms));
            let why = if peer.handshake.acknowledges() && silent_ms > timeout_ms {
                "timeout".to_string()
            } else if peer.handshake.state() == State::SendBulk && stuck_ms > timeout_ms {
                // The others of its snapshot, and the next one, wait for it.
                "timeout while it was sent the snapshot".to_string()
            } else if let Some(exceeded) = exceeded {
                exceeded.to_string()
            } else {
                continue;
            };
            peer.is_closing = true;
            self.actions.push(Action::Close { replica: *id, why });
        }
    }

    /// When [`Home::tick`] has something to do; None: not before something happens.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let start = self.sharing.next_start_ms(self.rules.sharing);
        let save = (self.wants_save && self.sharing.is_free()).then_some(self.last_tick_ms);
        let period = (!self.peers.is_empty()).then_some(self.last_tick_ms + TICK_MS);
        let others = [
            save,
            self.retry_cut_ms,
            self.log.next_tick_ms(),
            self.acks.next_deadline_ms(),
            self.next_retention_ms(),
            self.failover.next_deadline_ms(),
            self.next_farewell_ms(),
        ];
        start.into_iter().chain(period).chain(others.into_iter().flatten()).min()
    }
}

#[cfg(test)]
mod tests;
