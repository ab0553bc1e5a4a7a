//! `FAILOVER` at home: what its state machine sees of the replicas, and does to the stream.

use super::{Action, Home};
use crate::failover::{Candidate, Request, Step};

impl Home {
    /// `FAILOVER`. What is to be done comes as [`Action::Failover`].
    ///
    /// # Errors
    /// Redis's, as the client is to be told.
    pub fn failover(&mut self, request: Request, now_ms: u64) -> Result<(), &'static str> {
        match request {
            Request::Abort => self.failover.abort()?,
            // Nor when it is about to be one.
            Request::Begin(_) if self.is_replica() || self.turn.is_some() => {
                return Err("ERR FAILOVER is not valid when server is a replica.");
            }
            Request::Begin(order) => self.failover.begin(order, &self.candidates(), now_ms)?,
        }
        self.poll_failover(now_ms);
        Ok(())
    }

    /// Whether a failover is under way, which alone may change this node's role then.
    pub fn is_failing_over(&self) -> bool {
        self.failover.is_under_way()
    }

    /// `master_failover_state`.
    pub fn failover_state(&self) -> &'static str {
        self.failover.state_name()
    }

    /// The node that was asked to take over has done so, and this one follows it.
    pub fn failover_done(&mut self, now_ms: u64) {
        self.failover.taken_over();
        self.poll_failover(now_ms);
    }

    /// It has not.
    pub fn failover_refused(&mut self, why: &str, now_ms: u64) {
        self.failover.refused(why);
        self.poll_failover(now_ms);
    }

    /// Looks whether a failover can go on: to be called when anything has happened.
    pub fn poll_failover(&mut self, now_ms: u64) {
        if self.failover.is_under_way() {
            let candidates = self.candidates();
            self.failover.poll(self.log.end_offset(), &candidates, now_ms);
        }
        for step in self.failover.take_steps() {
            match step {
                Step::AskForAcks => {
                    let before = self.log.end_offset();
                    self.merge.get_ack(&mut self.log);
                    self.failover.asked(before, self.log.end_offset());
                }
                step => self.actions.push(Action::Failover(step)),
            }
        }
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        self.followers()
            .map(|(id, peer)| {
                let (host, port) = peer.handshake.address(&peer.ip);
                let acked_offset = self.acks.acked(id).map_or(0, |acked| acked.offset);
                Candidate { id, host: host.into(), port, state: peer.handshake.state(), acked_offset }
            })
            .collect()
    }
}
