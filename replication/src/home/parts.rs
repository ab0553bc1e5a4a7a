//! Snapshots that replicas get in parts ([`crate::parts`]): the shards send them themselves, and what the home does is to bring
//! the connections together, to say on the first one when all is sent, and to end what lacks a part.

use super::peers::Peer;
use super::snapshots::{SNAPSHOT_WINDOW_BYTES, Snapshot};
use super::{Action, Home};
use crate::acks::ReplicaId;
use crate::framing::KEEPALIVE;
use crate::parts::rendezvous::Rendezvous;
use crate::parts::{self, Token};
use crate::psync::State;
use braid_core::rdb::WriterOptions;
use bytes::Bytes;

/// Below this, what waits for one connection is not worth holding a shard's walk.
const PART_WINDOW_MIN_BYTES: u64 = 1 << 20;

/// How the shards are to send a snapshot.
#[derive(Clone, Debug)]
pub struct PartsPlan {
    pub snapshot: u64,
    /// Who gets it, on how many connections.
    pub members: Vec<(ReplicaId, usize)>,
    pub options: WriterOptions,
}

impl PartsPlan {
    /// The connection on which a replica gets a shard's pieces.
    pub fn part_of(shard: usize, count: usize) -> usize {
        shard % count
    }

    /// The shard that keeps a connection: the one whose pieces go there, if they are one shard's.
    pub fn host_of(part: usize, shards: usize) -> usize {
        part % shards
    }

    /// How many shards' pieces go to a connection.
    pub fn feeders(part: usize, count: usize, shards: usize) -> usize {
        (0..shards).filter(|shard| Self::part_of(*shard, count) == part).count()
    }

    /// What may wait for one connection of so many.
    pub fn window_bytes_of(count: usize) -> u64 {
        (SNAPSHOT_WINDOW_BYTES / count as u64).max(PART_WINDOW_MIN_BYTES)
    }
}

impl Peer {
    /// Shows a replica that waits for its snapshot, or for the end of its parts, that its connection is alive.
    pub(super) fn keep_alive(&mut self) {
        let awaits_end = || {
            let in_parts = self.parts.as_ref().is_some_and(Rendezvous::is_sending);
            in_parts && !self.bulk_ends && self.queue.is_empty()
        };
        let is_due = match self.handshake.state() {
            State::WaitBgsave => true,
            State::SendBulk => awaits_end(),
            State::Handshake | State::Online => false,
        };
        if is_due {
            self.push(Bytes::from_static(KEEPALIVE));
        }
    }

    /// Says that all parts are sent, if they are. That may be so before the cut's ticket is merged, and is said behind it.
    fn end_of_parts(&mut self) {
        let end = self.parts.as_ref().and_then(Rendezvous::end);
        if let Some(end) = end.filter(|_| self.handshake.state() == State::SendBulk && !self.bulk_ends) {
            self.push(end);
            self.bulk_ends = true;
        }
    }
}

impl Home {
    /// A replica that waits for a snapshot may get it in parts: it is told how.
    pub(super) fn offer_parts(&mut self, peer: &mut Peer) -> bool {
        let count = peer.handshake.capabilities().parts;
        if count < 2 || !self.rules.sharing.is_diskless || peer.handshake.needs() != Default::default() {
            return false;
        }
        let rendezvous = Rendezvous::new(count, &mut self.rng);
        peer.push(rendezvous.offer());
        peer.parts = Some(rendezvous);
        true
    }

    /// A connection came that is to carry a part.
    ///
    /// # Errors
    /// Nobody waits for it; the connection is to be told.
    pub fn part_come(&mut self, token: Token, index: usize, now_ms: u64) -> Result<ReplicaId, &'static str> {
        let is_meant = |peer: &Peer| peer.parts.as_ref().is_some_and(|parts| parts.token() == token);
        let meant = self.peers.iter_mut().find(|(_, peer)| is_meant(peer) && !peer.is_closing);
        let Some((id, peer)) = meant else { return Err("ERR sync-part token is of no full synchronization") };
        let id = *id;
        let rendezvous = peer.parts.as_mut().expect("just seen");
        rendezvous.come(index)?;
        peer.last_heard_ms = now_ms;
        if rendezvous.is_settled() {
            self.sharing.gathered(id);
            self.poll_sharing(now_ms);
        }
        Ok(id)
    }

    /// A connection that carries a part, or was to, is gone.
    pub fn part_gone(&mut self, replica: ReplicaId, index: usize, why: &str, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let Some(rendezvous) = &mut peer.parts else { return };
        if !rendezvous.gone(index) {
            // What was to come on it was sent, or comes on the first one.
            self.sharing.gathered(replica);
            self.poll_sharing(now_ms);
        } else if !peer.is_closing {
            peer.is_closing = true;
            let why = format!("its data connection {index} was lost: {why}");
            self.actions.push(Action::Close { replica, why });
        }
    }

    /// A part of this length is sent.
    pub fn part_sent(&mut self, replica: ReplicaId, index: usize, len_bytes: u64) {
        let Some(peer) = self.peers.get_mut(&replica).filter(|peer| !peer.is_closing) else { return };
        if let Some(parts) = &mut peer.parts {
            parts.sent(index, len_bytes);
        }
        peer.end_of_parts();
    }

    /// The snapshot that is about to begin goes to these: in parts if all of them have their connections. Who has some
    /// needs them no longer otherwise.
    pub(super) fn decide_on_parts(&mut self, members: &[ReplicaId], is_possible: bool) -> bool {
        let has_all = |id: &ReplicaId| self.peers[id].parts.as_ref().is_some_and(Rendezvous::is_complete);
        let in_parts = is_possible && members.iter().all(has_all);
        for id in members {
            if !in_parts {
                self.end_parts(*id);
            } else if let Some(parts) = &mut self.peers.get_mut(id).expect("members are attached").parts {
                parts.begin();
                self.syncs_in_parts += 1;
            }
        }
        in_parts
    }

    /// A replica needs its further connections no more.
    pub(super) fn end_parts(&mut self, replica: ReplicaId) {
        let parts = self.peers.get_mut(&replica).and_then(|peer| peer.parts.take());
        if parts.is_some() {
            self.actions.push(Action::EndParts { replica });
        }
    }

    /// How the shards are to send this snapshot, if it goes out in parts: to be asked for when it is cut.
    pub fn parts_plan(&self, snapshot: u64) -> Option<PartsPlan> {
        let current = self.snapshot.as_ref().filter(|current| current.id == snapshot && current.in_parts)?;
        let members = current.members.iter().filter_map(|id| {
            let parts = self.peers[id].parts.as_ref()?;
            Some((*id, parts.count()))
        });
        Some(PartsPlan { snapshot, members: members.collect(), options: self.writer_options() })
    }

    /// The header of a snapshot in parts is all that its members get on their first connections for now.
    pub(super) fn spread_header(&mut self, mut snapshot: Snapshot) {
        snapshot.writer.eof();
        let header = Bytes::from(snapshot.writer.take());
        let mark = snapshot.mark.as_ref().expect("what goes into no file ends with a mark");
        for member in &snapshot.members {
            let peer = self.peers.get_mut(member).expect("members are attached");
            peer.push(header.clone());
            peer.push(mark.trailer());
            peer.end_of_parts();
        }
        self.snapshot = Some(snapshot);
    }
}

/// What the first connection begins with.
pub(super) fn header(snapshot: &Snapshot) -> Option<Bytes> {
    let mark = snapshot.mark.as_ref()?;
    Some(if snapshot.in_parts { parts::header(mark) } else { mark.header() })
}
