//! Changes of role, on the home shard: what `REPLICAOF`, a failover and a former master ask for. See the module above for
//! when they are done.

use super::{Follower, Whole, link_rules};
use crate::config::values::MasterAddress;
use crate::engine::replicas::HOME;
use crate::engine::{Engine, Front};
use crate::session::control::Order;
use crate::{log_notice, log_warning};
use braid_replication::home::relay::Turn;
use braid_replication::link::{Link, Target};
use braid_shards::{ConnId, Everything, Mark, ShardId, Work};

/// `REPLICAOF`, on its way to the home shard.
pub struct RoleRequest {
    /// None: no master.
    pub master: Option<MasterAddress>,
    /// Who waits for the answer.
    pub answer: Option<Asker>,
}

/// Who asked for another role.
pub enum Asker {
    /// A client, on this shard.
    Client(ShardId, ConnId),
    /// The master, which wants this node in its place, on a connection of the home shard; with the words of the `PSYNC`
    /// that it wants answered then.
    Heir(ConnId, Vec<Vec<u8>>),
    /// A failover: the node to be followed is to take over, at this offset of the stream.
    Failover { offset: u64 },
}

impl Engine {
    /// Does what `REPLICAOF` asks for.
    pub(super) fn answer_requests(&mut self, follower: &mut Follower) -> bool {
        let mut worked = false;
        while follower.whole.is_none()
            && let Some(request) = follower.requests.pop_front()
        {
            worked = true;
            follower.accepts_empty = request.master.is_some();
            let home = self.front.home.as_mut().expect("on the home shard");
            if home.is_failing_over() && matches!(request.answer, None | Some(Asker::Client(..))) {
                // Who asked saw what was published before the failover began.
                self.refuse_role(request);
                continue;
            }
            match (&request.master, home.is_replica()) {
                (None, false) => {
                    // Whoever says so wants this dataset to be the master's.
                    home.confirm_dataset();
                    self.answer_role(request);
                }
                (None, true) if follower.applying.is_some() => {
                    // What was passed on must be applied before this node writes anything of its own.
                    follower.requests.push_front(request);
                    return false;
                }
                (None, true) => {
                    self.drop_link(follower);
                    if follower.is_doubtful {
                        self.front.home.as_mut().expect("on the home shard").abandon_history();
                    }
                    self.begin_turn(follower, Turn::Promote, request);
                }
                (Some(_), false) => self.begin_turn(follower, Turn::Follow, request),
                (Some(MasterAddress { host, port }), true) => {
                    let target = Target { host: host.clone(), port: *port };
                    if follower.link.as_ref().is_none_or(|link| *link.target() != target) {
                        self.drop_link(follower);
                        self.make_link(follower, target);
                    }
                    self.answer_role(request);
                }
            }
        }
        worked
    }

    /// A transaction over everything in which the dataset changes sides.
    fn begin_turn(&mut self, follower: &mut Follower, turn: Turn, request: RoleRequest) {
        let home = self.front.home.as_mut().expect("on the home shard");
        home.begin_turn(turn);
        let is_replica = turn == Turn::Follow;
        let stream = !is_replica && home.log().is_active();
        self.shard.begin(
            None,
            Work::Action(Box::new(move |everything: &mut Everything<'_>| {
                for slice in &mut *everything.slices {
                    slice.replica = is_replica;
                    slice.stream = stream;
                }
                *everything.mark = Some(Mark::Role);
            })),
        );
        follower.whole = Some(Whole::Turn { request });
        self.shard.settle(&mut self.front);
    }

    /// The dataset has changed sides.
    pub(super) fn complete_turn(&mut self, follower: &mut Follower, turn: Turn, request: RoleRequest) {
        match (turn, &request.master) {
            (Turn::Follow, Some(MasterAddress { host, port })) => {
                self.front.node.set_replica(true);
                follower.applied_offset = self.front.home.as_ref().expect("on the home shard").end_offset();
                let target = Target { host: host.clone(), port: *port };
                match request.answer {
                    Some(Asker::Failover { offset }) => self.make_failover_link(follower, target, offset),
                    _ => self.make_link(follower, target),
                }
            }
            (Turn::Promote, None) => {
                self.front.node.set_replica(false);
                follower.is_doubtful = false;
                log_notice!("MASTER MODE enabled");
            }
            _ => unreachable!("a request and its turn go the same way"),
        }
        self.answer_role(request);
    }

    /// A link by which the target is asked to take over.
    fn make_failover_link(&mut self, follower: &mut Follower, target: Target, offset: u64) {
        let now_ms = self.front.now_ms();
        let home = self.front.home.as_mut().expect("on the home shard");
        if home.end_offset() == offset {
            let link = Link::for_failover(
                target,
                link_rules(&self.front.config, self.front.node.map.shards()),
                now_ms,
            );
            follower.link = Some(link);
        } else {
            // A write that was under way when writes were paused came in late. What it wrote is not lost: this node is
            // made a master again.
            home.failover_refused("a write came in after the target had caught up", now_ms);
        }
    }

    fn make_link(&mut self, follower: &mut Follower, target: Target) {
        let now_ms = self.front.now_ms();
        let mut link =
            Link::new(target, link_rules(&self.front.config, self.front.node.map.shards()), now_ms);
        if follower.is_doubtful {
            link.distrust("The dataset is in doubt", now_ms);
        }
        follower.link = Some(link);
    }

    fn drop_link(&mut self, follower: &mut Follower) {
        if follower.link.take().is_some() {
            follower.socket.close(&mut self.front.ring, &self.front.node);
            follower.wanted_swap = None;
            self.close_parts_everywhere();
            self.drop_load();
            self.front.home.as_mut().expect("on the home shard").set_link(false);
        }
    }

    /// The role stays as it is until the failover is over.
    fn refuse_role(&mut self, request: RoleRequest) {
        const WHY: &str = "REPLICAOF not allowed while failing over.";
        log_warning!("{WHY}");
        if let Some(Asker::Client(shard, conn)) = request.answer {
            self.front.node.order(shard, Order::Answer(conn, format!("-ERR {WHY}\r\n").into_bytes()));
        }
    }

    /// The role is as it was asked for: the configuration says so, and who asked is told.
    fn answer_role(&mut self, request: RoleRequest) {
        let RoleRequest { master, answer } = request;
        match &master {
            Some(MasterAddress { host, port }) => log_notice!("REPLICAOF {host}:{port} enabled"),
            None => log_notice!("REPLICAOF NO ONE enabled"),
        }
        let node = &self.front.node;
        let changed: Result<(), std::convert::Infallible> = node.config.update(|config| {
            config.replicaof.0 = master;
            Ok(())
        });
        changed.expect("cannot fail");
        node.wake_all();
        // Whoever hears of it must not find the numbers of before.
        self.front.next_report_ms = 0;
        self.front.publish_replication();
        let node = &self.front.node;
        match answer {
            None | Some(Asker::Failover { .. }) => {}
            Some(Asker::Client(shard, conn)) => {
                node.order(shard, Order::Answer(conn, b"+OK\r\n".to_vec()));
            }
            Some(Asker::Heir(id, words)) => self.front.serve_former_master(id, words),
        }
    }
}

impl Front {
    /// Answers the `PSYNC` of who was this node's master.
    fn serve_former_master(&mut self, id: ConnId, words: Vec<Vec<u8>>) {
        let Some(mut conn) = self.take_conn_by_id(id) else { return };
        conn.waiting = false;
        if let Err(error) = self.attach_replica(&mut conn, Some(words)) {
            conn.out.error(&error.to_string());
            self.list(&mut conn);
        }
        if !conn.input.is_empty() {
            self.ready.push(id);
        }
        self.put_conn(conn);
    }
}

/// Sends a request for another role to the shard that sees to it.
pub fn request_role(front: &Front, request: RoleRequest) {
    front.node.order(HOME, Order::Role(request));
}
