//! Full syncs over several connections at work: every shard may keep connections that carry a part of a snapshot, to replicas
//! ([`sending`]) or from the master ([`receiving`]). What they say to each other and what it means is decided in
//! `braid_replication::parts` and, for the replica, `braid_replication::link`; the home shard brings it together.
//!
//! What shards tell each other about it are [`PartMsg`]s. They are dealt with at least once before the walk for a snapshot: a
//! plan comes before the slice that is walked by it, for it was sent before.

mod receiving;
mod sending;

pub use sending::PartSession;

use super::replicas::{HOME, Handover};
use super::{Engine, Front};
use braid_replication::acks::ReplicaId;
use braid_replication::home::{PartsPlan, Piece};
use braid_replication::link::LinkRules;
use braid_replication::parts::Token;
use braid_shards::{ConnId, ShardId};
use receiving::Receiving;
use sending::Sending;
use std::net::SocketAddr;

/// See the module.
pub enum PartMsg {
    /// A connection that is to carry a part moves to the shard that keeps it.
    Move(Handover),
    /// Home: such a connection is where it is to be.
    Come { conn: ConnId, shard: ShardId, token: Token, index: usize },
    /// It is taken, or not.
    Answer { conn: ConnId, outcome: Result<(ReplicaId, usize), &'static str> },
    /// A snapshot that is about to be cut goes out in parts.
    Plan(PartsPlan),
    /// Something for a connection of the receiver.
    Piece { snapshot: u64, replica: ReplicaId, part: usize, piece: Box<Piece> },
    /// Home: all of a part is sent, and it was this long.
    Sent { replica: ReplicaId, part: usize, len_bytes: u64 },
    /// Home: a connection is gone.
    Gone { replica: ReplicaId, part: usize, why: String },
    /// A replica needs its connections no more.
    End { replica: ReplicaId },
    /// Open a connection to the master for one of its parts.
    Open { token: Token, part: usize, address: SocketAddr, rules: Box<LinkRules> },
    /// What the connections bring may be loaded.
    Load { token: Token, load: u64, parts: usize },
    /// Close the connections to the master.
    Close,
    /// Home: so many bytes of a part are loaded.
    Progress { token: Token, part: usize, read_bytes: u64 },
    /// Home: a part of this length is loaded, with so many keys.
    Loaded { token: Token, part: usize, len_bytes: u64, keys: u64 },
    /// Home: nothing will come of a part.
    Failed { token: Token, part: usize, why: String },
}

/// A shard's state for these files.
#[derive(Default)]
pub struct Parts {
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// Came from other shards.
    incoming: Vec<PartMsg>,
    outgoing: Vec<(ShardId, PartMsg)>,
}

impl Parts {
    /// Something came from another shard.
    pub(super) fn receive(&mut self, message: PartMsg) {
        self.incoming.push(message);
    }

    /// Sends something to a shard, which may be this one.
    pub(super) fn send(&mut self, to: ShardId, message: PartMsg) {
        self.outgoing.push((to, message));
    }

    /// When something is to be looked at though nothing arrives.
    fn next_tick_ms(&self, timeout_ms: u64) -> Option<u64> {
        self.sending.next_tick_ms(timeout_ms).into_iter().chain(self.receiving.next_tick_ms()).min()
    }
}

impl Engine {
    /// One round's work for parts. Returns whether there is more to do at once.
    pub(super) fn serve_parts(&mut self) -> bool {
        let mut worked = self.part_messages();
        worked |= self.receive_parts();
        self.front.look_after_outlets();
        worked | self.part_messages()
    }

    /// Deals with what was sent here and sends what is for others.
    pub(super) fn part_messages(&mut self) -> bool {
        let mut worked = false;
        loop {
            for message in std::mem::take(&mut self.front.parts.incoming) {
                worked = true;
                self.part_message(message);
            }
            for (to, message) in std::mem::take(&mut self.front.parts.outgoing) {
                if to == self.front.id {
                    self.front.parts.incoming.push(message);
                } else {
                    worked = true;
                    self.shard.send_upper(to, Box::new(message));
                }
            }
            if self.front.parts.incoming.is_empty() {
                break;
            }
        }
        self.shard.settle(&mut self.front);
        worked
    }

    fn part_message(&mut self, message: PartMsg) {
        let now_ms = self.front.now_ms();
        match message {
            PartMsg::Move(handover) => self.front.take_part_over(handover),
            PartMsg::Answer { conn, outcome } => self.front.part_answered(conn, outcome),
            PartMsg::Plan(plan) => self.front.plan_parts(plan),
            PartMsg::Piece { snapshot, replica, part, piece } => {
                self.front.part_piece(snapshot, replica, part, *piece);
            }
            PartMsg::End { replica } => self.end_parts(replica),
            PartMsg::Open { token, part, address, rules } => self.open_part(token, part, address, *rules),
            PartMsg::Load { token, load, parts } => self.front.load_parts(token, load, parts),
            PartMsg::Close => self.close_parts(),
            PartMsg::Come { conn, shard, token, index } => {
                let home = self.front.home.as_mut().expect("sent home");
                let outcome = home.part_come(token, index, now_ms).map(|replica| (replica, index));
                self.front.parts.send(shard, PartMsg::Answer { conn, outcome });
            }
            PartMsg::Sent { replica, part, len_bytes } => {
                self.front.home.as_mut().expect("sent home").part_sent(replica, part, len_bytes);
            }
            PartMsg::Gone { replica, part, why } => {
                self.front.home.as_mut().expect("sent home").part_gone(replica, part, &why, now_ms);
            }
            PartMsg::Progress { .. } | PartMsg::Loaded { .. } | PartMsg::Failed { .. } => {
                self.part_news(message);
            }
        }
    }

    /// What came of this shard's connections goes to the home shard.
    fn tell_home(&mut self, message: PartMsg) {
        self.front.parts.send(HOME, message);
    }
}

impl Front {
    /// Tells every shard something.
    pub(super) fn send_to_all(&mut self, message: impl Fn() -> PartMsg) {
        for to in 0..self.shards() as ShardId {
            self.parts.send(to, message());
        }
    }

    /// When something of this shard's parts is to be looked at though nothing arrives.
    pub(super) fn next_parts_tick_ms(&self) -> Option<u64> {
        self.parts.next_tick_ms(u64::from(self.config.repl_timeout_s) * 1000)
    }

    /// So many shards there are.
    fn shards(&self) -> usize {
        self.node.map.shards()
    }
}
