//! Before the process ends (`shutdown-timeout`): replicas that lag are waited for while writes are paused, so that one of them
//! can take over with everything.

use super::{Action, Home};

/// The end that waits for replicas.
pub(super) struct Farewell {
    deadline_ms: u64,
    /// Where the stream ended when the replicas were last asked for their offsets, and behind the question.
    asked: Option<(u64, u64)>,
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
    pub fn begin_farewell(&mut self, deadline_ms: u64, now_ms: u64) -> bool {
        let lags = !self.attendance(now_ms).lagging.is_empty();
        if lags {
            self.farewell = Some(Farewell { deadline_ms, asked: None });
        }
        lags
    }

    /// There is no end after all, or it waits no longer. False: it did not wait.
    pub fn cancel_farewell(&mut self) -> bool {
        self.farewell.take().is_some()
    }

    /// Looks whether all are in step or the time is over: to be called when anything has happened.
    pub fn poll_farewell(&mut self, now_ms: u64) {
        let Some(Farewell { deadline_ms, .. }) = self.farewell else { return };
        let attendance = self.attendance(now_ms);
        if attendance.lagging.is_empty() || now_ms >= deadline_ms {
            self.farewell = None;
            return self.actions.push(Action::Leave(attendance));
        }
        let end_offset = self.log.end_offset();
        let is_asked = |farewell: &Farewell| farewell.asked.is_some_and(|(_, behind)| behind == end_offset);
        let may_ask = self.relay.is_none() && self.log.is_active();
        if may_ask && !self.farewell.as_ref().is_some_and(is_asked) {
            self.merge.get_ack(&mut self.log);
            let asked = Some((end_offset, self.log.end_offset()));
            self.farewell = Some(Farewell { deadline_ms, asked });
        }
    }

    pub(super) fn next_farewell_ms(&self) -> Option<u64> {
        self.farewell.as_ref().map(|farewell| farewell.deadline_ms)
    }

    /// Who has acknowledged all of the stream but the question for that.
    pub fn attendance(&self, now_ms: u64) -> Attendance {
        let end_offset = self.log.end_offset();
        let asked = self.farewell.as_ref().and_then(|farewell| farewell.asked);
        let needed =
            asked.filter(|(_, behind)| *behind == end_offset).map_or(end_offset, |(before, _)| before);
        let mut attendance = Attendance::default();
        for candidate in self.candidates() {
            attendance.replicas += 1;
            if candidate.acked_offset >= needed && self.acks.acked(candidate.id).is_some() {
                attendance.in_step += 1;
                continue;
            }
            let heard_ms = self.acks.acked(candidate.id).map_or(0, |acked| acked.at_ms);
            attendance.lagging.push(format!(
                "Lagging replica {}:{} reported offset {} behind master, lag={}, state={}.",
                candidate.host,
                candidate.port,
                needed.saturating_sub(candidate.acked_offset),
                now_ms.saturating_sub(heard_ms) / 1000,
                candidate.state.name(),
            ));
        }
        attendance
    }
}
