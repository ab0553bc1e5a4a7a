//! The end of the process, on the home shard: `SHUTDOWN` and signals. Replicas that lag are waited for first
//! (`braid_replication::home::farewell`), then the snapshot is made if there is to be one ([`super::saving`]).

use super::{Asker, Engine};
use crate::log_notice;
use crate::session::control::{Order, PauseMode, PausePurpose};
use braid_core::resp::Reply;
use braid_replication::home::Attendance;
use std::sync::Arc;

/// How the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// A snapshot is made before.
    pub saves: bool,
    /// End even if that fails.
    pub force: bool,
    /// Wait for no replica.
    pub now: bool,
}

/// The home shard's state for this file.
#[derive(Default)]
pub struct Leaving {
    /// The end that is under way.
    pub(super) ending: Option<Ending>,
    /// Nothing is waited for any more but the snapshot that is made for it.
    is_saving: bool,
    /// Clients whose `SHUTDOWN` waits.
    askers: Vec<Asker>,
}

impl Leaving {
    /// The end that waits for its snapshot. One that was begun before it is another's.
    pub(super) fn awaits_snapshot(&self) -> Option<Ending> {
        self.ending.filter(|_| self.is_saving)
    }
}

impl Engine {
    /// Begins to end the process.
    pub(super) fn begin_ending(&mut self, ending: Ending, asker: Option<Asker>) {
        let now_ms = self.front.now_ms();
        let node = Arc::clone(&self.front.node);
        if self.front.leaving.ending.is_none() {
            log_notice!("User requested shutdown...");
        }
        if node.persistence.is_loading() || self.front.follower().has_given_up_dataset() {
            log_notice!("The dataset is not there: the snapshot file is left as it is.");
            return node.stop();
        }
        let timeout_ms = u64::from(self.front.config.shutdown_timeout_s) * 1000;
        let leaving = &mut self.front.leaving;
        leaving.askers.extend(asker);
        let is_first = leaving.ending.is_none();
        let home = self.front.home.as_mut().expect("orders to end go home");
        if is_first {
            leaving.ending = Some(ending);
            if !ending.now && timeout_ms > 0 && home.begin_farewell(now_ms + timeout_ms) {
                node.pause.begin(PausePurpose::Shutdown, PauseMode::Write, u64::MAX, now_ms);
                return log_notice!("Waiting for replicas before shutting down.");
            }
        } else if !(ending.now && home.cancel_farewell()) {
            // It goes on as it was begun.
            return;
        }
        let attendance = home.attendance(now_ms);
        self.leave(&attendance);
    }

    /// Replicas are waited for no longer.
    pub(super) fn leave(&mut self, attendance: &Attendance) {
        let ending = self.front.leaving.ending.expect("it was begun");
        let Attendance { in_step, replicas, lagging } = attendance;
        lagging.iter().for_each(|line| log_notice!("{line}"));
        if *replicas > 0 {
            log_notice!("{in_step} of {replicas} replicas are in sync when shutting down.");
        }
        if ending.saves {
            self.front.leaving.is_saving = true;
            self.save_before_end();
        } else {
            log_notice!("Shutting down without a snapshot.");
            self.front.node.stop();
        }
    }

    /// `SHUTDOWN ABORT`.
    pub(super) fn abort_ending(&mut self, (shard, conn): Asker) {
        let mut answer = Reply::default();
        if self.front.home.as_mut().expect("orders to end go home").cancel_farewell() {
            log_notice!("Shutdown manually aborted.");
            self.give_up_ending();
            answer.ok();
        } else {
            answer.error("ERR No shutdown in progress.");
        }
        self.front.node.order(shard, Order::Answer(conn, answer.buf));
    }

    /// The process goes on.
    pub(super) fn give_up_ending(&mut self) {
        let leaving = &mut self.front.leaving;
        (leaving.ending, leaving.is_saving) = (None, false);
        let node = &self.front.node;
        node.pause.end(PausePurpose::Shutdown);
        node.wake_all();
        let mut answer = Reply::default();
        answer.error("ERR Errors trying to SHUTDOWN. Check logs.");
        for (shard, conn) in std::mem::take(&mut leaving.askers) {
            node.order(shard, Order::Answer(conn, answer.buf.clone()));
        }
    }
}
