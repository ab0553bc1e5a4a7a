//! Before the process ends (`shutdown-timeout`): replicas that lag are waited for while writes are paused, so that one of them
//! can take over with everything.

use super::peers::Peer;
use super::{Action, Home};
use crate::acks::ReplicaId;

/// The end that waits for replicas.
pub(super) struct Farewell {
    deadline_ms: u64,
}

/// Who has everything when the process ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    pub in_step: usize,
    pub replicas: usize,
    /// A line for each of the others.
    pub lagging: Vec<String>,
}

impl Home {
    /// Waits until every replica has acknowledged all of the stream, which [`Action::Leave`] tells. False: nobody lags. Writes
    /// are to be paused from now on.
    pub fn begin_farewell(&mut self, deadline_ms: u64) -> bool {
        let lags = self.lagging().next().is_some();
        if lags {
            self.farewell = Some(Farewell { deadline_ms });
        }
        lags
    }

    /// There is no end after all, or it waits no longer. False: it did not wait.
    pub fn cancel_farewell(&mut self) -> bool {
        self.farewell.take().is_some()
    }

    /// Looks whether all are in step or the time is over: to be called when anything has happened.
    pub fn poll_farewell(&mut self, now_ms: u64) {
        let Some(Farewell { deadline_ms }) = self.farewell else { return };
        if now_ms >= deadline_ms || self.lagging().next().is_none() {
            self.farewell = None;
            let attendance = self.attendance(now_ms);
            self.actions.push(Action::Leave(attendance));
        } else {
            self.ask_for_acks();
        }
    }

    pub(super) fn next_farewell_ms(&self) -> Option<u64> {
        self.farewell.as_ref().map(|farewell| farewell.deadline_ms)
    }

    /// Replicas that have not acknowledged all that was written.
    fn lagging(&self) -> impl Iterator<Item = (ReplicaId, &Peer)> {
        let needed = self.written_offset();
        let has_it = move |id: &ReplicaId| self.acks.acked(*id).is_some_and(|acked| acked.offset >= needed);
        self.followers().filter(move |(id, _)| !has_it(id))
    }

    /// Who has acknowledged all that was written.
    pub fn attendance(&self, now_ms: u64) -> Attendance {
        let line = |(id, peer): (ReplicaId, &Peer)| {
            let (host, port) = peer.handshake.address(&peer.ip);
            let acked = self.acks.acked(id);
            format!(
                "Lagging replica {host}:{port} reported offset {} behind master, lag={}, state={}.",
                self.written_offset().saturating_sub(acked.map_or(0, |acked| acked.offset)),
                now_ms.saturating_sub(acked.map_or(0, |acked| acked.at_ms)) / 1000,
                peer.handshake.state().name(),
            )
        };
        let lagging: Vec<String> = self.lagging().map(line).collect();
        let replicas = self.followers().count();
        Attendance { in_step: replicas - lagging.len(), replicas, lagging }
    }
}
