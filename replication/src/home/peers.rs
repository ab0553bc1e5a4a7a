//! Replicas as they come, say how far they are, and go.

use super::files::FileSend;
use super::{Action, Home};
use crate::acks::ReplicaId;
use crate::ids::ReplId;
use crate::log::{Log, ReaderId};
use crate::parts::rendezvous::Rendezvous;
use crate::psync::{self, Replconf, Replica, Sync};
use crate::queue::SendQueue;
use crate::sharing::{Placement, Request};
use bytes::Bytes;

/// A replica, or one that is about to be.
pub(super) struct Peer {
    pub handshake: Replica,
    pub ip: String,
    pub reader: Option<ReaderId>,
    /// To be sent before the stream: replies, keep-alives, the snapshot.
    pub queue: SendQueue,
    /// The snapshot is complete in `queue`: when that is sent the replica is online.
    pub bulk_ends: bool,
    /// The snapshot is sent with a mark at its end.
    pub has_mark: bool,
    /// Bytes of the stream in the send under way.
    pub stream_in_flight: u64,
    pub is_sending: bool,
    /// Since when, as ticks tell, the send under way has not been completed.
    pub stuck_since_ms: Option<u64>,
    /// When it last sent anything.
    pub last_heard_ms: u64,
    /// The file that its snapshot is read from.
    pub file: Option<FileSend>,
    /// It has, or is about to have, further connections for the parts of its snapshot.
    pub parts: Option<Rendezvous>,
    /// It has said that it has the dataset.
    pub has_acked: bool,
    /// Its connection is to be closed, and gets nothing more.
    pub is_closing: bool,
}

impl Peer {
    pub fn push(&mut self, bytes: Bytes) {
        self.queue.push(bytes);
    }

    /// Its snapshot is cut at `offset` of this history: from there on it is to have the stream.
    pub fn cut(&mut self, id: ReplId, offset: u64, log: &mut Log) {
        let reply = self.handshake.cut(id, offset);
        self.push(reply);
        if !self.handshake.is_rdb_only() {
            let is_silent = !self.handshake.knows_psync();
            self.reader =
                Some(if is_silent { log.add_silent_reader(offset) } else { log.add_reader(offset) });
        }
    }

    /// By which it is known when it comes back.
    pub fn name(&self) -> String {
        name(&self.handshake, &self.ip)
    }
}

fn name(handshake: &Replica, ip: &str) -> String {
    let (host, port) = handshake.address(ip);
    format!("{host}:{port}")
}

impl Home {
    /// A connection asks to become a replica, with the words of its `PSYNC` (without the name; None: `SYNC`). On
    /// success it is one from now on; otherwise the error to answer with.
    pub fn attach(
        &mut self,
        mut handshake: Replica,
        ip: &str,
        psync: Option<&[&[u8]]>,
        now_ms: u64,
    ) -> Result<ReplicaId, String> {
        self.admit(psync)?;
        let master = psync::Master {
            ids: &self.ids,
            log: &self.log,
            upstream: self.upstream(),
            is_failing_over: self.failover.is_under_way(),
            is_protected: self.refuses_history_of(&name(&handshake, ip), psync),
            has_pending_output: false,
        };
        let outcome = match psync {
            Some(args) => handshake.psync(args, &master),
            None => handshake.sync(&master),
        };
        let mut peer = Peer {
            handshake,
            ip: ip.to_owned(),
            reader: None,
            queue: SendQueue::default(),
            bulk_ends: false,
            has_mark: false,
            stream_in_flight: 0,
            is_sending: false,
            stuck_since_ms: None,
            last_heard_ms: now_ms,
            file: None,
            parts: None,
            has_acked: false,
            is_closing: false,
        };
        let id = ReplicaId(self.next_replica);
        match outcome {
            Sync::Refuse(error) => return Err(error),
            Sync::Nothing => return Err("ERR already a replica".into()),
            Sync::Promote => return Err("ERR FAILOVER is not supported".into()),
            Sync::Continue { reply, position } => {
                self.partial_syncs += 1;
                peer.reader = Some(self.log.add_reader(position));
                peer.push(reply);
                self.acks.add_replica(id, now_ms);
            }
            Sync::Full { is_fallback } => {
                self.full_syncs += 1;
                self.refused_partial_syncs += u64::from(is_fallback);
                let request = Request {
                    replica: id,
                    needs: peer.handshake.needs(),
                    can_eof: peer.handshake.capabilities().eof,
                };
                let log = &self.log;
                // Those it would join keep the log from the cut on, unless they could not be kept up with.
                let is_kept = |offset| peer.handshake.is_rdb_only() || log.can_continue_with(offset + 1);
                match self.sharing.request(request, is_kept, now_ms) {
                    Placement::Joins { offset } => {
                        peer.cut(self.ids.current(), offset, &mut self.log);
                        self.join_snapshot(id);
                    }
                    Placement::Waits if psync.is_some() && self.offer_parts(&mut peer) => {
                        self.sharing.gathers(id);
                    }
                    Placement::Waits => {}
                }
            }
        }
        self.retention.begin_anew();
        if self.peers.is_empty() {
            // Nobody had to be pinged before.
            self.last_tick_ms = now_ms;
            self.last_ping_ms = now_ms;
        }
        self.next_replica += 1;
        self.log.is_back(&peer.name());
        self.peers.insert(id, peer);
        self.poll_sharing(now_ms);
        Ok(id)
    }

    /// Replicas that read the stream, or will.
    pub(super) fn followers(&self) -> impl Iterator<Item = (ReplicaId, &Peer)> {
        let peers = self.peers.iter().map(|(id, peer)| (*id, peer));
        peers.filter(|(_, peer)| !peer.handshake.is_rdb_only() && !peer.is_closing)
    }

    /// A replica's connection is gone.
    pub fn detach(&mut self, id: ReplicaId) {
        let Some(mut peer) = self.peers.remove(&id) else { return };
        self.dropped.extend(std::mem::take(&mut peer.queue).into_pieces());
        if let Some(file) = peer.file.take() {
            self.drop_file_without_readers(file.snapshot);
        }
        if peer.parts.take().is_some() {
            self.actions.push(Action::EndParts { replica: id });
        }
        if let Some(reader) = peer.reader {
            if peer.handshake.is_streaming() {
                self.log.expect_back(reader, peer.name());
            }
            self.log.remove_reader(reader);
        }
        self.acks.remove_replica(id);
        self.sharing.cancel(id);
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.members.retain(|member| *member != id);
        }
        if let Some((_, members)) = &mut self.finishing {
            members.retain(|member| *member != id);
        }
        self.drop_unwanted_snapshot();
        // It may have been the one that the others' snapshot waited for.
        self.regulate();
    }

    /// A replica sent something, be it the empty line by which one that loads its snapshot says that it is alive.
    pub fn heard(&mut self, id: ReplicaId, now_ms: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.last_heard_ms = now_ms;
        }
    }

    /// `REPLCONF` of an attached replica.
    pub fn replconf(&mut self, id: ReplicaId, args: &[&[u8]], now_ms: u64) {
        // What comes of a connection that is to be closed may be about another history.
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.is_closing) else { return };
        if let Replconf::Ack { offset, durable_offset } = peer.handshake.replconf(args) {
            peer.last_heard_ms = now_ms;
            if !peer.handshake.is_streaming() {
                return;
            }
            if self.acks.acked(id).is_none() {
                self.acks.add_replica(id, now_ms);
            }
            if let Some(reader) = peer.reader {
                self.log.acked(reader, offset);
            }
            let is_first = !std::mem::replace(&mut peer.has_acked, true);
            if is_first {
                self.protection.know(peer.name());
            }
            self.acks.ack(id, offset, durable_offset, now_ms, &mut self.resolved);
            if is_first {
                self.end_parts(id);
            }
        }
    }
}
