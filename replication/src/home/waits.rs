//! Who waits for acknowledgements: `WAIT`, `WAITAOF`, `min-replicas-to-write`.

use super::Home;
use crate::acks::{Level, Resolved, WaiterId};

impl Home {
    /// A client waits until that many replicas have applied the stream up to `offset`, or made it durable. They are asked
    /// at once. The answer, if it is not known yet, comes from [`Home::take_resolved`]. `deadline_ms`: None waits for ever.
    ///
    /// # Panics
    /// If the client waits already.
    pub fn wait(
        &mut self,
        waiter: WaiterId,
        offset: u64,
        replicas_wanted: usize,
        deadline_ms: Option<u64>,
        level: Level,
    ) -> Option<usize> {
        let answer = self.acks.wait(waiter, offset, replicas_wanted, deadline_ms, level);
        if answer.is_none() {
            self.ask_for_acks();
        }
        answer
    }

    /// Puts `REPLCONF GETACK *` into the stream. If nothing was written since the last one, its answers are on their way.
    pub(super) fn ask_for_acks(&mut self) {
        // What a replica passes on is its master's, to which nothing can be added.
        let is_read = !self.is_replica() && self.peers.values().any(|peer| peer.handshake.is_streaming());
        if is_read && self.asked_at != Some(self.log.end_offset()) {
            self.merge.get_ack(&mut self.log);
            self.asked_at = Some(self.log.end_offset());
        }
    }

    /// The client is gone, or is to wait no longer. Returns what it got to, if it was still waiting.
    pub fn cancel_wait(&mut self, waiter: WaiterId) -> Option<Resolved> {
        self.acks.cancel(waiter)
    }

    /// Waits that are over since this was last asked.
    pub fn take_resolved(&mut self) -> Vec<Resolved> {
        std::mem::take(&mut self.resolved)
    }

    /// What the replicas that are online have acknowledged.
    pub(super) fn acked_offsets(&self) -> Vec<u64> {
        self.peers.keys().filter_map(|id| self.acks.acked(*id)).map(|acked| acked.offset).collect()
    }

    /// Replicas that are online and spoke within the last `max_lag_s` seconds (`min-replicas-max-lag`).
    pub fn good_replicas(&self, max_lag_s: u64, now_ms: u64) -> usize {
        self.acks.good_replicas(max_lag_s, now_ms)
    }

    /// The ticket that is merged next: all before it are in the log.
    pub fn next_ticket(&self) -> u64 {
        self.merge.next_ticket()
    }
}
