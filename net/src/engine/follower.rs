//! The replica role at work on the home shard: the link's connection, loading, applying, and changes of role. What is
//! decided where: see `braid_replication::link` for the protocol, `braid_replication::home::relay` for what becomes of the
//! stream, `braid_shards::epoch` for how it is applied, [`super::loading`] for a full sync.
//!
//! One thing at a time is done to the dataset: an epoch is applied, or a snapshot is cut (which is so taken between two
//! epochs), or a loaded dataset swapped in, or the role changed. Meanwhile received bytes wait, and beyond a bound the link
//! is not read.

mod roles;

pub use roles::{Asker, RoleRequest, request_role};

use super::link_socket::LinkSocket;
use super::{Engine, Front};
use crate::config::Config;
use crate::config::values::{DisklessLoad, MasterAddress};
use crate::node::{REDIS_VERSION, Upstream};
use crate::{log_notice, log_warning};
use braid_core::command::{Args, CommandId};
use braid_replication::ids::ReplId;
use braid_replication::link::stream::{Epoch, EpochWork, Parts};
use braid_replication::link::{Link, LinkAction, LinkRules, Target};
use braid_replication::parts::PARTS_MAX;
use braid_shards::{
    EpochBuilder, EpochError, Everything, FROM_MASTER, Fit, MASTER_CONN, Plan, SlotMap, Unit, Work,
};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// How old the published state of the link may be.
const REPORT_PERIOD_MS: u64 = 100;
/// Bytes of a snapshot that one round feeds to the loader.
const FEED_BYTES: usize = 256 << 10;

/// An epoch that is being applied.
struct Applying {
    begin_offset: u64,
    end_offset: u64,
    asks_ack: bool,
}

/// What is done to the dataset as a whole.
enum Whole {
    /// A snapshot is cut, or the stream stopped.
    Step {
        done: Rc<Cell<bool>>,
    },
    Swap {
        done: Rc<Cell<bool>>,
        id: ReplId,
        offset: u64,
        db: u16,
    },
    Turn {
        request: RoleRequest,
    },
}

/// The home shard's state of the replica role.
pub struct Follower {
    pub(super) link: Option<Link>,
    pub(super) socket: LinkSocket,
    builder: Builder,
    /// The number of the last epoch.
    epoch: u64,
    applying: Option<Applying>,
    /// Everything up to here is applied.
    applied_offset: u64,
    whole: Option<Whole>,
    /// A snapshot that is to be cut between two epochs.
    wanted_cut: Option<(u64, bool)>,
    /// The shards are to collect no effects any more.
    wants_stop: bool,
    /// The dataset is to go before its successor is loaded.
    wants_flush: bool,
    /// A dataset that is to be swapped in when every shard has decoded its part.
    wanted_swap: Option<(ReplId, u64)>,
    requests: VecDeque<RoleRequest>,
    /// Even an empty dataset of an unknown history is taken in the place of ours: this master was asked for.
    accepts_empty: bool,
    /// One was refused.
    has_refused: bool,
    /// Commands of the master's stream that failed.
    failed_commands: u64,
    /// The dataset is not what its history says: one did, or it was given up for another that has not come yet.
    is_doubtful: bool,
    next_report_ms: u64,
    reported_up: Option<bool>,
}

/// The parts of an epoch.
struct Builder(EpochBuilder);

impl Parts for Builder {
    fn fits(&self, id: CommandId, args: Args<'_>) -> bool {
        self.0.fit(id, args) == Fit::Added
    }

    fn push(&mut self, id: CommandId, db: u16, args: Args<'_>) {
        let fit = self.0.push(id, db, args);
        debug_assert_eq!(fit, Fit::Added, "it fitted before");
    }
}

/// What the configuration of a node with so many shards says about the link.
fn link_rules(config: &Config, shards: usize) -> LinkRules {
    LinkRules {
        timeout_ms: u64::from(config.repl_timeout_s) * 1000,
        user: config.masteruser.clone(),
        password: config.masterauth.clone(),
        listening_port: match config.replica_announce_port {
            0 => config.port,
            port => port,
        },
        announced_ip: config.replica_announce_ip.clone(),
        version: REDIS_VERSION.to_owned(),
        databases: config.databases,
        connections: match config.repl_sync_connections as usize {
            0 => shards.min(PARTS_MAX),
            connections => connections,
        },
    }
}

impl Follower {
    pub fn new(map: SlotMap) -> Self {
        Self {
            link: None,
            socket: LinkSocket::default(),
            builder: Builder(EpochBuilder::new(map)),
            epoch: 0,
            applying: None,
            applied_offset: 0,
            whole: None,
            wanted_cut: None,
            wants_stop: false,
            wants_flush: false,
            wanted_swap: None,
            requests: VecDeque::new(),
            accepts_empty: false,
            has_refused: false,
            failed_commands: 0,
            is_doubtful: false,
            next_report_ms: 0,
            reported_up: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.applying.is_none() && self.whole.is_none()
    }

    /// Somebody asks for another role.
    pub(super) fn request(&mut self, request: RoleRequest) {
        self.requests.push_back(request);
    }

    /// A snapshot is to be cut as soon as it can be.
    pub(super) fn want_cut(&mut self, snapshot: u64, with_data: bool) {
        self.wanted_cut = Some((snapshot, with_data));
    }

    /// The shards are to collect no effects any more, as soon as they can be told.
    pub(super) fn want_stop(&mut self) {
        self.wants_stop = true;
    }

    pub(super) fn set_rules(&mut self, config: &Config, shards: usize) {
        if let Some(link) = &mut self.link {
            link.set_rules(link_rules(config, shards));
        }
    }
}

impl Engine {
    /// Begins as the configuration says: with a master to follow, or none.
    pub(super) fn begin_role(&mut self) {
        let Some(MasterAddress { host, port }) = self.front.config.replicaof.0.clone() else { return };
        self.shard.replica = true;
        self.shard.keyspace_mut().expect("nothing is on loan yet").replica = true;
        if let (Some(home), Some(follower)) = (&mut self.front.home, &mut self.front.follower) {
            home.start_as_replica();
            let rules = link_rules(&self.front.config, self.front.node.map.shards());
            let now_ms = crate::node::unix_us() / 1000;
            follower.link = Some(Link::new(Target { host, port }, rules, now_ms));
            self.front.node.set_replica(true);
        }
    }

    /// One round's work of the replica role. Returns whether there was any.
    pub(super) fn follow(&mut self) -> bool {
        // Taken out while it works: the shards' answers meanwhile go to `Front::applied`.
        let Some(mut follower) = self.front.follower.take() else { return false };
        let worked = self.follow_with(&mut follower);
        self.front.follower = Some(follower);
        worked
    }

    fn follow_with(&mut self, follower: &mut Follower) -> bool {
        let is_involved =
            follower.link.is_some() || !follower.requests.is_empty() || follower.whole.is_some();
        if !is_involved && follower.wanted_cut.is_none() && !follower.wants_stop {
            return false;
        }
        if self.front.restoring.is_some() {
            // The dataset is still coming from a file.
            return false;
        }
        let now_ms = self.front.now_ms();
        let mut worked = self.finish_epoch(follower);
        worked |= self.finish_whole(follower);
        worked |= self.answer_requests(follower);
        // First: a stream that is continued tells what is applied.
        worked |= self.do_link_actions(follower);
        if let Some(link) = &mut follower.link
            && link.next_tick_ms().is_some_and(|at_ms| at_ms <= now_ms)
        {
            link.tick(follower.applied_offset, now_ms);
        }
        worked |= self.do_link_actions(follower);
        worked |= self.feed_snapshot(follower);
        worked |= self.begin_whole(follower);
        worked |= self.begin_epoch(follower);
        worked |= self.finish_epoch(follower);
        worked |= self.do_link_actions(follower);
        if let Some(link) = &follower.link {
            follower.socket.pause(&mut self.front.ring, link.is_full());
        }
        follower.socket.flush(&mut self.front.ring);
        self.publish_link(follower);
        self.front.next_link_tick_ms = follower.link.as_ref().and_then(Link::next_tick_ms);
        worked
    }

    /// Goes on with what was received, by one epoch.
    fn begin_epoch(&mut self, follower: &mut Follower) -> bool {
        if !follower.is_idle() {
            return false;
        }
        let Some(link) = &mut follower.link else { return false };
        let epoch = match link.next_epoch(&mut follower.builder) {
            Ok(None) => return false,
            Ok(Some(epoch)) => epoch,
            Err(error) => {
                self.distrust(follower, 1, &format!("The master's stream cannot be followed {error}"));
                return true;
            }
        };
        let Epoch { bytes, end_offset, db, asks_ack, work, .. } = epoch;
        let begin_offset = end_offset - bytes.len() as u64;
        self.front.home.as_mut().expect("on the home shard").relay(bytes, end_offset, db);
        follower.applying = Some(Applying { begin_offset, end_offset, asks_ack });
        match work {
            EpochWork::Alone(unit) => self.begin_alone(unit),
            EpochWork::Parts if follower.builder.0.is_empty() => self.front.applied = Some(Ok(())),
            EpochWork::Parts => {
                follower.epoch += 1;
                self.shard.apply_epoch(follower.epoch, follower.builder.0.take());
            }
        }
        self.shard.settle(&mut self.front);
        true
    }

    /// Begins what is a transaction over several shards.
    fn begin_alone(&mut self, unit: Unit) {
        let plan = Plan::of(&unit, [], self.front.node.map);
        let keys = (!plan.everywhere).then_some(plan.keys);
        self.shard.begin(keys, Work::Commands { conn: MASTER_CONN, flags: FROM_MASTER, watcher: None, unit });
    }

    /// The epoch under way may have been applied.
    fn finish_epoch(&mut self, follower: &mut Follower) -> bool {
        let Some(outcome) = self.front.applied.take() else { return false };
        let Applying { begin_offset, end_offset, asks_ack } =
            follower.applying.take().expect("an epoch is being applied");
        // A transaction of its own ran here, and its replies are not looked at.
        let fault = self.shard.take_stream_fault();
        let fault = fault.map(|text| EpochError { index: 0, shard: self.front.id, text, count: 1 });
        match outcome.and(fault.map_or(Ok(()), Err)) {
            Ok(()) => {
                follower.applied_offset = end_offset;
                if let (true, Some(link)) = (asks_ack, &mut follower.link) {
                    link.acknowledge(end_offset, self.front.now_ms());
                }
            }
            Err(EpochError { index, shard, text, count }) => {
                let why = format!(
                    "Command {} of the master's stream between offsets {begin_offset} and {end_offset} failed on shard \
                     {shard}: {text}",
                    index + 1
                );
                self.distrust(follower, count, &why);
            }
        }
        true
    }

    /// The dataset is no longer the master's: another is asked for.
    fn distrust(&mut self, follower: &mut Follower, commands: u32, why: &str) {
        follower.failed_commands += u64::from(commands);
        follower.is_doubtful = true;
        if let Some(link) = &mut follower.link {
            link.distrust(why, self.front.now_ms());
        }
    }

    fn do_link_actions(&mut self, follower: &mut Follower) -> bool {
        let actions = follower.link.as_mut().map(Link::take_actions).unwrap_or_default();
        let worked = !actions.is_empty();
        let now_ms = self.front.now_ms();
        for action in actions {
            match action {
                LinkAction::Connect => self.connect_link(follower),
                LinkAction::Send(bytes) => follower.socket.send(&bytes),
                LinkAction::Close => follower.socket.close(&mut self.front.ring, &self.front.node),
                LinkAction::BeginLoading => {
                    let order = self.front.config.repl_diskless_load;
                    follower.wants_flush = order == DisklessLoad::FlushBeforeLoad;
                    self.begin_load();
                }
                LinkAction::AbandonLoading => {
                    follower.wants_flush = false;
                    follower.wanted_swap = None;
                    self.drop_load();
                }
                LinkAction::OpenParts { token, count } => {
                    let address = follower.socket.peer(&self.front.ring);
                    let rules = link_rules(&self.front.config, self.front.node.map.shards());
                    self.open_parts(token, count, address, &rules);
                }
                LinkAction::LoadParts { token, count } => self.begin_loading_parts(token, count),
                LinkAction::CloseParts => self.close_parts_everywhere(),
                LinkAction::Swap { id, offset } => {
                    self.parts_loaded();
                    follower.wanted_swap = Some((id, offset));
                }
                LinkAction::Continue { id } => {
                    let home = self.front.home.as_mut().expect("on the home shard");
                    home.continue_as(id);
                    home.failover_done(now_ms);
                    (follower.accepts_empty, follower.has_refused) = (false, false);
                    // What is being applied is so when it is.
                    if follower.applying.is_none() {
                        follower.applied_offset = home.end_offset();
                    }
                }
                LinkAction::FailoverRefused(why) => {
                    let home = self.front.home.as_mut().expect("on the home shard");
                    home.failover_refused(&format!("Failover target rejected psync request: {why}"), now_ms);
                }
                LinkAction::Notice(text) => log_notice!("{text}"),
                LinkAction::Warning(text) => log_warning!("{text}"),
            }
        }
        let is_up = follower.link.as_ref().is_some_and(Link::is_up);
        self.front.home.as_mut().expect("on the home shard").set_link(is_up);
        worked
    }

    /// Gives the loader what it takes of a snapshot.
    fn feed_snapshot(&mut self, follower: &mut Follower) -> bool {
        let Some(link) = &mut follower.link else { return false };
        let now_ms = self.front.now_ms();
        if let Some(Err(fault)) = self.front.load_outcome.take_if(|outcome| outcome.is_err()) {
            let why = format!("Failed trying to load the MASTER synchronization DB: {fault}");
            if follower.wanted_swap.take().is_some() {
                link.swapped(Err(&why), now_ms);
            } else {
                link.fail(&why, now_ms);
            }
            return true;
        }
        if link.payload().is_empty() || !self.load_wants_more() {
            return false;
        }
        let len = link.payload().len().min(FEED_BYTES);
        match self.feed_load(&link.payload()[..len]) {
            Ok(used) => {
                let is_whole = self.loader().is_some_and(|loader| loader.is_read());
                link.consume_payload(used, is_whole, now_ms);
            }
            Err(fault) => {
                link.fail(&format!("Failed trying to load the MASTER synchronization DB: {fault}"), now_ms);
            }
        }
        true
    }

    /// Begins what waits for the dataset to be left alone.
    fn begin_whole(&mut self, follower: &mut Follower) -> bool {
        if !follower.is_idle() {
            return false;
        }
        if std::mem::take(&mut follower.wants_flush) {
            follower.is_doubtful = true;
            if let Some(link) = &mut follower.link {
                link.forget_position();
            }
            let done = Rc::<Cell<bool>>::default();
            follower.whole = Some(Whole::Step { done: Rc::clone(&done) });
            self.flush(done);
        } else if let Some((snapshot, with_data)) = follower.wanted_cut.take() {
            let done = Rc::<Cell<bool>>::default();
            follower.whole = Some(Whole::Step { done: Rc::clone(&done) });
            self.begin_snapshot(snapshot, with_data, done);
        } else if std::mem::take(&mut follower.wants_stop) {
            let home = self.front.home.as_mut().expect("on the home shard");
            if home.is_replica() {
                home.go_on_with_stream();
                return true;
            }
            let done = Rc::<Cell<bool>>::default();
            follower.whole = Some(Whole::Step { done: Rc::clone(&done) });
            self.stop_stream(done);
        } else if let (Some((id, offset)), Some(Ok(_))) = (follower.wanted_swap, &self.front.load_outcome) {
            follower.wanted_swap = None;
            let info = self.front.take_load_outcome().expect("just seen").expect("just seen");
            if info.keys == 0 && self.refuses_empty(follower, id) {
                return true;
            }
            log_notice!("MASTER <-> REPLICA sync: {} keys loaded, putting them in place", info.keys);
            let done = Rc::<Cell<bool>>::default();
            let db = info.stream_db.unwrap_or(0);
            follower.whole = Some(Whole::Swap { done: Rc::clone(&done), id, offset, db });
            self.swap_loaded(move |_| done.set(true));
        } else {
            return false;
        }
        self.shard.settle(&mut self.front);
        true
    }

    /// Gives the dataset up, so that memory need not hold two.
    fn flush(&mut self, done: Rc<Cell<bool>>) {
        log_notice!("MASTER <-> REPLICA sync: Flushing old data");
        let flush = move |everything: &mut Everything<'_>| {
            for slice in &mut *everything.slices {
                (0..slice.databases() as u16).for_each(|db| slice.clear(db));
            }
            done.set(true);
        };
        self.shard.begin(None, Work::Action(Box::new(flush)));
    }

    /// Whether an empty dataset is not taken in the place of ours: a master that lost its own would wipe us. Without data,
    /// or on an order to follow that very master, there is nothing to lose.
    fn refuses_empty(&mut self, follower: &mut Follower, id: ReplId) -> bool {
        let is_known = self.front.home.as_ref().is_some_and(|home| home.knows(id));
        let refuses = self.front.config.protected_restart
            && !follower.accepts_empty
            && !is_known
            && self.front.node.statistics.has_keys();
        if refuses {
            follower.has_refused = true;
            self.drop_load();
            if let Some(link) = &mut follower.link {
                let why = "The master has an empty dataset of another history: refused, for this node holds data \
                           (protected-restart). REPLICAOF with its address confirms that it is to be followed";
                link.swapped(Err(why), self.front.now_ms());
            }
        }
        refuses
    }

    /// What was done to the dataset as a whole may be over.
    fn finish_whole(&mut self, follower: &mut Follower) -> bool {
        let now_ms = self.front.now_ms();
        match follower.whole.take() {
            Some(Whole::Step { done }) if done.get() => true,
            Some(Whole::Swap { done, id, offset, db }) if done.get() => {
                let home = self.front.home.as_mut().expect("on the home shard");
                home.replace_history(id, offset, db);
                follower.applied_offset = offset;
                follower.is_doubtful = false;
                (follower.accepts_empty, follower.has_refused) = (false, false);
                if let Some(link) = &mut follower.link {
                    link.swapped(Ok(db), now_ms);
                }
                true
            }
            Some(Whole::Turn { request }) if let Some(turn) = self.front.turned.take() => {
                self.complete_turn(follower, turn, request);
                true
            }
            other => {
                follower.whole = other;
                false
            }
        }
    }

    /// Lets `INFO` and `ROLE` see the link.
    fn publish_link(&mut self, follower: &mut Follower) {
        let now_ms = self.front.now_ms();
        let node = &self.front.node;
        let read_offset =
            follower.link.as_ref().and_then(Link::read_offset).unwrap_or(follower.applied_offset);
        node.read_offset.store(read_offset, Ordering::Relaxed);
        node.applied_offset.store(follower.applied_offset, Ordering::Relaxed);
        let state = follower.link.as_ref().map(Link::is_up);
        if now_ms < follower.next_report_ms && state == follower.reported_up {
            return;
        }
        follower.next_report_ms = now_ms + REPORT_PERIOD_MS;
        if state != follower.reported_up {
            // The history may be another one.
            self.front.next_report_ms = 0;
        }
        follower.reported_up = state;
        node.is_link_up.store(state == Some(true), Ordering::SeqCst);
        *node.upstream.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            follower.link.as_ref().map(|link| Upstream {
                link: link.report(now_ms),
                failed_commands: follower.failed_commands,
                has_refused: follower.has_refused,
            });
    }
}

impl Front {
    /// Home: an epoch is over.
    pub(super) fn note_applied(&mut self, outcome: Result<(), EpochError>) {
        let former = self.applied.replace(outcome);
        debug_assert!(former.is_none(), "one epoch at a time");
    }
}
