//! What a replica is sent next: its snapshot, then the stream.

use super::{Action, Home};
use crate::acks::ReplicaId;
use bytes::Bytes;

/// Bytes and pieces of the stream that one send carries.
const SEND_MAX_BYTES: u64 = 1 << 20;
const SEND_MAX_PIECES: usize = 512;
/// So much of the stream is worth a send of its own.
const PRESSING_BYTES: u64 = 64 << 10;

/// What there is to be sent to a replica, by its urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    Nothing,
    /// A little, that may wait for more.
    MayWait,
    Pressing,
}

impl Home {
    /// Replicas that may have something to send and no send under way.
    pub fn idle_replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.peers.iter().filter(|(_, peer)| !peer.is_sending).map(|(id, _)| *id)
    }

    /// What there is to be sent to a replica.
    pub fn unsent(&self, id: ReplicaId) -> Unsent {
        let Some(peer) = self.peers.get(&id) else { return Unsent::Nothing };
        let reader = peer.reader.filter(|_| peer.handshake.is_streaming());
        let pending_bytes = reader.map_or(0, |reader| self.log.pending_bytes(reader));
        // Who waits for acknowledgements waits for what is not sent, too.
        let is_pressing = pending_bytes >= PRESSING_BYTES || self.acks.has_waiters();
        match pending_bytes {
            _ if !peer.queue.is_empty() => Unsent::Pressing,
            0 => Unsent::Nothing,
            _ if is_pressing => Unsent::Pressing,
            _ => Unsent::MayWait,
        }
    }

    /// What to send a replica next, appended to `out`. [`Home::sent`] is called when it has been sent. False: nothing.
    pub fn next_send(&mut self, id: ReplicaId, out: &mut Vec<Bytes>) -> bool {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.is_closing) else { return false };
        assert!(!peer.is_sending, "one send at a time");
        if !peer.queue.is_empty() {
            peer.queue.take(SEND_MAX_BYTES, out);
            peer.is_sending = true;
            self.regulate();
            self.read_on(id);
            return true;
        }
        let Some(reader) = peer.reader.filter(|_| peer.handshake.is_streaming()) else { return false };
        if self.log.pending_bytes(reader) == 0 {
            return false;
        }
        peer.stream_in_flight = self.log.reader_slices(reader, SEND_MAX_BYTES, SEND_MAX_PIECES, out);
        peer.is_sending = peer.stream_in_flight > 0;
        peer.is_sending
    }

    /// A send to a replica was completed.
    pub fn sent(&mut self, id: ReplicaId, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.is_sending = false;
        peer.stuck_since_ms = None;
        self.dropped.extend(peer.queue.sent());
        if peer.stream_in_flight > 0 {
            let reader = peer.reader.expect("it reads the stream");
            self.log.advance(reader, std::mem::take(&mut peer.stream_in_flight));
        }
        if peer.bulk_ends && peer.queue.is_empty() {
            peer.bulk_ends = false;
            peer.handshake.end_bulk(peer.has_mark);
            peer.last_heard_ms = now_ms;
            if peer.handshake.is_rdb_only() {
                peer.is_closing = true;
                self.actions.push(Action::Close { replica: id, why: "it has its snapshot".into() });
            } else if peer.handshake.is_streaming() {
                self.acks.add_replica(id, now_ms);
            }
        }
    }
}
