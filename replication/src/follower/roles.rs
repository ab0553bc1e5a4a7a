//! Changes of role: what `REPLICAOF`, a failover and a former master ask for. See the module above for when they are done.

use super::whole::Whole;
use super::{Follower, FollowerAction, Site};
use crate::home::relay::Turn;
use crate::link::{Link, Target};
use braid_shards::{ConnId, Everything, Mark, Shard, ShardId, Work};

/// `REPLICAOF`, on its way to the home shard.
#[derive(Debug)]
pub struct RoleRequest {
    /// None: no master.
    pub master: Option<Target>,
    /// Who waits for the answer.
    pub answer: Option<Asker>,
}

/// Who asked for another role.
#[derive(Debug)]
pub enum Asker {
    /// A client, on this shard.
    Client(ShardId, ConnId),
    /// The master, which wants this node in its place, on a connection of the home shard; with the words of the `PSYNC`
    /// that it wants answered then.
    Heir(ConnId, Vec<Vec<u8>>),
    /// A failover: the node to be followed is to take over, at this offset of the stream.
    Failover { offset: u64 },
}

impl Follower {
    /// Begins as a replica, on a node that holds nothing yet.
    pub fn start_as_replica(&mut self, master: Target, site: &mut Site<'_>) {
        start_shard_as_replica(site.shard);
        site.home.start_as_replica();
        self.link = Some(Link::new(master, self.rules.link.clone(), site.now_ms));
        self.actions.push(FollowerAction::Role { is_replica: true });
    }

    /// Somebody asks for another role.
    pub fn request(&mut self, request: RoleRequest) {
        self.requests.push_back(request);
    }

    /// Does what was asked for.
    pub(super) fn answer_requests(&mut self, site: &mut Site<'_>) -> bool {
        let mut worked = false;
        while self.whole.is_none()
            && let Some(request) = self.requests.pop_front()
        {
            worked = true;
            self.accepts_empty = request.master.is_some();
            if site.home.is_failing_over() && matches!(request.answer, None | Some(Asker::Client(..))) {
                // Who asked saw what was published before the failover began.
                const WHY: &str = "REPLICAOF not allowed while failing over.";
                self.actions.push(FollowerAction::Refuse(request, WHY));
                continue;
            }
            match (&request.master, site.home.is_replica()) {
                (None, false) => {
                    // Whoever says so wants this dataset to be the master's.
                    site.home.confirm_dataset();
                    self.actions.push(FollowerAction::Answer(request));
                }
                (None, true) if self.applying.is_some() || self.is_draining(site.now_ms) => {
                    // What was passed on must be applied before this node writes anything of its own, and what was only
                    // received nobody else may have.
                    self.requests.push_front(request);
                    return false;
                }
                (None, true) => {
                    self.drop_link(site);
                    if site.home.is_doubtful() {
                        site.home.abandon_history();
                    }
                    self.begin_turn(site, Turn::Promote, request);
                }
                (Some(_), false) => self.begin_turn(site, Turn::Follow, request),
                (Some(target), true) => {
                    if self.link.as_ref().is_none_or(|link| link.target() != target) {
                        let had_link = self.link.as_ref().is_some_and(Link::has_been_up);
                        self.drop_link(site);
                        self.make_link(target.clone(), site);
                        if let Some(link) = self.link.as_mut().filter(|_| had_link) {
                            link.begins_down(site.now_ms);
                        }
                    }
                    self.actions.push(FollowerAction::Answer(request));
                }
            }
        }
        worked
    }

    /// Nothing more is taken from the master; whether something that was is still to be applied.
    fn is_draining(&mut self, now_ms: u64) -> bool {
        self.link.as_mut().is_some_and(|link| link.drain(now_ms))
    }

    /// A transaction over everything in which the dataset changes sides.
    fn begin_turn(&mut self, site: &mut Site<'_>, turn: Turn, request: RoleRequest) {
        site.home.begin_turn(turn);
        let is_replica = turn == Turn::Follow;
        let stream = !is_replica && site.home.is_followed();
        site.shard.begin(
            None,
            Work::Action(Box::new(move |everything: &mut Everything<'_>| {
                for slice in &mut *everything.slices {
                    (slice.replica, slice.is_gone) = (is_replica, false);
                    slice.forget_own_expiries();
                    slice.stream = stream;
                }
                *everything.mark = Some(Mark::Role);
            })),
        );
        self.whole = Some(Whole::Turn { request });
    }

    /// The dataset has changed sides.
    pub(super) fn complete_turn(&mut self, site: &mut Site<'_>, turn: Turn, request: RoleRequest) {
        match (turn, &request.master) {
            (Turn::Follow, Some(target)) => {
                self.actions.push(FollowerAction::Role { is_replica: true });
                self.applied_offset = site.home.end_offset();
                match request.answer {
                    Some(Asker::Failover { offset }) => {
                        self.make_failover_link(site, target.clone(), offset);
                    }
                    _ => self.make_link(target.clone(), site),
                }
            }
            (Turn::Promote, None) => {
                self.actions.push(FollowerAction::Role { is_replica: false });
                (self.is_given_up, self.has_refused) = (false, false);
                self.actions.push(FollowerAction::Notice("MASTER MODE enabled".into()));
                if site.home.has_lost_dataset() {
                    self.actions.push(FollowerAction::Warning(
                        "The dataset was given up for another that never came: replicas that hold data are not sent what \
                         there is now until REPLICAOF NO ONE is said again, and the snapshot file stays as it is until \
                         SAVE or BGSAVE"
                            .into(),
                    ));
                }
            }
            _ => unreachable!("a request and its turn go the same way"),
        }
        self.actions.push(FollowerAction::Answer(request));
    }

    /// A link by which the target is asked to take over.
    fn make_failover_link(&mut self, site: &mut Site<'_>, target: Target, offset: u64) {
        if site.home.end_offset() == offset {
            self.link = Some(Link::for_failover(target, self.rules.link.clone(), site.now_ms));
        } else {
            // A write that was under way when writes were paused came in late. What it wrote is not lost: this node is
            // made a master again.
            site.home.failover_refused("a write came in after the target had caught up", site.now_ms);
        }
    }

    fn make_link(&mut self, target: Target, site: &Site<'_>) {
        let mut link = Link::new(target, self.rules.link.clone(), site.now_ms);
        if site.home.is_doubtful() {
            link.distrust("The dataset is in doubt", site.now_ms);
        }
        self.link = Some(link);
        // Another may have refused.
        self.has_refused = false;
    }

    fn drop_link(&mut self, site: &mut Site<'_>) {
        if self.link.take().is_some() {
            self.actions.push(FollowerAction::Close);
            self.actions.push(FollowerAction::CloseParts);
            // What was to be loaded does not come: the dataset stays (law 9).
            self.abandon_intake(site);
            site.home.set_link(false);
        }
    }
}

/// Nothing is on loan yet: each shard can be told by itself.
pub fn start_shard_as_replica(shard: &mut Shard) {
    shard.replica = true;
    shard.keyspace_mut().expect("nothing is on loan yet").replica = true;
}
