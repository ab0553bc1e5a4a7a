//! `FAILOVER` at work: writes are paused, and the node changes places with one of its replicas.

use super::follower::request_role;
use super::{Conn, Engine, Front};
use crate::log_notice;
use crate::session::control::{PauseMode, PausePurpose, UNTIL_ENDED_MS};
use braid_replication::failover::{Request, Step};
use braid_replication::follower::{Asker, RoleRequest};
use braid_replication::link::Target;
use braid_shards::ConnId;

/// `FAILOVER`, on its way to the home shard.
pub struct FailoverRequest {
    conn: ConnId,
    request: Request,
}

impl Front {
    /// Asks the home shard for a failover. The answer comes later.
    pub fn ask_for_failover(&mut self, conn: &mut Conn, request: Request) {
        conn.waiting = true;
        self.send_home(Box::new(FailoverRequest { conn: conn.id, request }));
    }

    pub(super) fn failover_request(&mut self, message: FailoverRequest) {
        let now_ms = self.now_ms();
        let home = self.home.as_mut().expect("sent home");
        let answer = match home.failover(message.request, now_ms) {
            Ok(()) => "+OK\r\n".to_owned(),
            Err(error) => format!("-{error}\r\n"),
        };
        self.answer_later(message.conn, answer.into_bytes());
    }
}

impl Engine {
    pub(super) fn failover_step(&mut self, step: Step) {
        let node = &self.front.node;
        match step {
            Step::PauseWrites => {
                let now_ms = self.front.now_ms();
                node.pause.begin(PausePurpose::Failover, PauseMode::Write, UNTIL_ENDED_MS, now_ms);
            }
            Step::ResumeWrites => {
                node.pause.end(PausePurpose::Failover);
                node.wake_all();
            }
            Step::Follow { host, port, offset } => {
                let master = Some(Target { host, port });
                request_role(&self.front, RoleRequest { master, answer: Some(Asker::Failover { offset }) });
            }
            Step::StayMaster => request_role(&self.front, RoleRequest { master: None, answer: None }),
            Step::Log(line) => log_notice!("{line}"),
            Step::AskForAcks => unreachable!("done at home"),
        }
    }
}
