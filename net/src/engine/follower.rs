//! The replica role on the home shard: what `braid_replication::follower` decides meets the configuration, the link's
//! connection, and those who ask for another role.

use super::link_socket::LinkSocket;
use super::parts::PartMsg;
use super::replicas::HOME;
use super::{Engine, Front};
use crate::config::Config;
use crate::config::values::DisklessLoad;
use crate::node::{REDIS_VERSION, Upstream};
use crate::session::control::Order;
use crate::{log_notice, log_warning};
use braid_replication::follower::{
    Asker, Follower, FollowerAction, FollowerRules, Intake, RoleRequest, Site,
};
use braid_replication::link::{Link, LinkRules};
use braid_replication::loading::LoadRules;
use braid_replication::parts::PARTS_MAX;
use braid_shards::{ConnId, SlotMap};
use std::sync::atomic::Ordering;

/// How old the published state of the link may be.
const REPORT_PERIOD_MS: u64 = 100;
/// No string in a snapshot may be longer, unless the configuration allows clients longer ones.
const STRING_MAX_BYTES: u64 = 512 << 20;

/// The home shard's state of the replica role.
pub struct Following {
    pub(super) machine: Follower,
    pub(super) socket: LinkSocket,
    next_report_ms: u64,
    reported_up: Option<bool>,
    /// Clients are told that there is no dataset.
    reported_gone: bool,
}

/// What the configuration says about loading.
pub(super) fn load_rules(config: &Config) -> LoadRules {
    LoadRules {
        databases: config.databases as usize,
        string_max_bytes: config.proto_max_bulk_len_bytes.max(STRING_MAX_BYTES),
        verify: config.rdbchecksum,
    }
}

/// What the configuration of a node with so many shards says about its link to a master.
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
        connections: match (config.repl_diskless_load, config.repl_sync_connections as usize) {
            // It may go into a file, which takes one stream.
            (DisklessLoad::Disabled | DisklessLoad::OnEmptyDb, _) => 1,
            (_, 0) => shards.min(PARTS_MAX),
            (_, connections) => connections,
        },
    }
}

/// And about the replica role.
fn rules(config: &Config, shards: usize) -> FollowerRules {
    FollowerRules {
        link: link_rules(config, shards),
        load: load_rules(config),
        protects: config.protected_restart,
        intake: match config.repl_diskless_load {
            DisklessLoad::SwapDb => Intake::Beside,
            DisklessLoad::OnEmptyDb => Intake::BesideIfEmpty,
            DisklessLoad::Disabled => Intake::FileFirst,
            DisklessLoad::FlushBeforeLoad => Intake::FlushFirst,
        },
    }
}

impl Following {
    pub fn new(map: SlotMap, config: &Config) -> Self {
        Self {
            machine: Follower::new(map, rules(config, map.shards())),
            socket: LinkSocket::default(),
            next_report_ms: 0,
            reported_up: None,
            reported_gone: false,
        }
    }

    pub(super) fn set_rules(&mut self, config: &Config, shards: usize) {
        self.machine.set_rules(rules(config, shards));
    }
}

impl Engine {
    /// Begins as the configuration says: with a master to follow, or none.
    pub(super) fn begin_role(&mut self) {
        let Some(master) = self.front.config.replicaof.0.clone() else { return };
        if self.front.home.is_some() {
            self.with_follower(|follower, site| follower.start_as_replica(master, site));
            self.do_follower_actions();
        } else {
            braid_replication::follower::start_shard_as_replica(&mut self.shard);
        }
    }

    /// Lets the home shard's follower work.
    pub(super) fn with_follower<T>(&mut self, work: impl FnOnce(&mut Follower, &mut Site<'_>) -> T) -> T {
        let now_ms = self.front.now_ms();
        let Front { home, following, node, .. } = &mut self.front;
        let has_keys = || node.statistics.has_keys();
        let mut site = Site {
            shard: &mut self.shard,
            home: home.as_mut().expect("on the home shard"),
            has_keys: &has_keys,
            now_ms,
        };
        work(&mut following.as_mut().expect("on the home shard").machine, &mut site)
    }

    /// One round's work of the replica role. Returns whether there was any.
    pub(super) fn follow(&mut self) -> bool {
        if !self.front.following.as_ref().is_some_and(|following| following.machine.is_involved()) {
            return false;
        }
        let mut worked = self.with_follower(Follower::go_on);
        self.do_follower_actions();
        self.front.publish_loading();
        self.shard.settle(&mut self.front);
        worked |= self.with_follower(Follower::finish);
        self.do_follower_actions();
        let following = self.front.following.as_mut().expect("on the home shard");
        following.socket.pause(&mut self.front.ring, following.machine.is_full());
        let counters = &self.front.node.statistics.shards[usize::from(self.front.id)].counters;
        following.socket.flush(&mut self.front.ring, &counters.net_out_bytes);
        self.front.next_link_tick_ms = following.machine.next_tick_ms();
        self.front.publish_link();
        worked
    }

    fn do_follower_actions(&mut self) {
        let actions = self.front.following.as_mut().expect("on the home shard").machine.take_actions();
        for action in actions {
            let front = &mut self.front;
            let following = front.following.as_mut().expect("on the home shard");
            match action {
                FollowerAction::Connect(target) => self.connect_link(&target),
                FollowerAction::Send(bytes) => following.socket.send(&bytes),
                FollowerAction::Close => following.socket.close(&mut front.ring, &front.node),
                FollowerAction::OpenParts { token, count } => {
                    let address = following.socket.peer(&front.ring);
                    let rules = link_rules(&front.config, front.node.map.shards());
                    front.open_parts(token, count, address, &rules);
                }
                FollowerAction::LoadParts { token, load, count } => {
                    front.send_to_all(|| PartMsg::Load { token, load, parts: count });
                }
                FollowerAction::CloseParts => front.send_to_all(|| PartMsg::Close),
                FollowerAction::Answer(request) => front.answer_role(request),
                FollowerAction::Refuse(request, why) => front.refuse_role(request, why),
                FollowerAction::Loaded { keys } => front.node.persistence.note_loaded(keys),
                FollowerAction::Role { is_replica } => front.node.set_replica(is_replica),
                FollowerAction::Spool { number, step } => self.spool_step(number, step),
                FollowerAction::Notice(text) => log_notice!("{text}"),
                FollowerAction::Warning(text) => log_warning!("{text}"),
            }
        }
    }

    /// One round's work for what is being loaded. Returns whether there is more to do at once.
    pub(super) fn load(&mut self) -> bool {
        let mut more = self.shard.load_some();
        if let Some(following) = &mut self.front.following {
            more |= following.machine.loads.work(&mut self.shard);
        }
        self.shard.settle(&mut self.front);
        more
    }
}

impl Front {
    /// The role stays as it is.
    fn refuse_role(&mut self, request: RoleRequest, why: &str) {
        log_warning!("{why}");
        if let Some(Asker::Client(shard, conn)) = request.answer {
            self.node.order(shard, Order::Answer(conn, format!("-ERR {why}\r\n").into_bytes()));
        }
    }

    /// The role is as it was asked for: the configuration says so, and who asked is told.
    fn answer_role(&mut self, request: RoleRequest) {
        let RoleRequest { master, answer } = request;
        match &master {
            Some(master) => log_notice!("REPLICAOF {}:{} enabled", master.host, master.port),
            None => log_notice!("REPLICAOF NO ONE enabled"),
        }
        let node = &self.node;
        let changed: Result<(), std::convert::Infallible> = node.config.update(|config| {
            config.replicaof.0 = master;
            Ok(())
        });
        changed.expect("cannot fail");
        node.wake_all();
        // Whoever hears of it must not find the numbers of before.
        self.next_report_ms = 0;
        self.publish_replication(true);
        match answer {
            None | Some(Asker::Failover { .. }) => {}
            Some(Asker::Client(shard, conn)) => {
                self.node.order(shard, Order::Answer(conn, b"+OK\r\n".to_vec()));
            }
            Some(Asker::Heir(id, words)) => self.serve_former_master(id, words),
        }
    }

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

    /// Has commands on keys refused as long as there is no dataset.
    fn publish_loading(&mut self) {
        let now = self.moment();
        let following = self.following.as_mut().expect("on the home shard");
        let is_gone = following.machine.has_given_up_dataset();
        if is_gone == std::mem::replace(&mut following.reported_gone, is_gone) {
            return;
        }
        if is_gone {
            self.node.persistence.begin_loading(now);
        } else {
            self.node.persistence.resume();
        }
    }

    /// Lets `INFO` and `ROLE` see the link.
    fn publish_link(&mut self) {
        let now_ms = self.now_ms();
        let following = self.following.as_mut().expect("on the home shard");
        let machine = &following.machine;
        self.node.read_offset.store(machine.read_offset(), Ordering::Relaxed);
        self.node.applied_offset.store(machine.applied_offset(), Ordering::Relaxed);
        let state = machine.link().map(Link::is_up);
        if now_ms < following.next_report_ms && state == following.reported_up {
            return;
        }
        following.next_report_ms = now_ms + REPORT_PERIOD_MS;
        if state != following.reported_up {
            // The history may be another one.
            self.next_report_ms = 0;
        }
        following.reported_up = state;
        self.node.is_link_up.store(state == Some(true), Ordering::SeqCst);
        let report = machine.link().map(|link| link.report(now_ms));
        if let Some((Some(total_bytes), read_bytes)) = report.as_ref().and_then(|report| report.sync)
            && following.reported_gone
            && !self.spooling.is_loading()
        {
            self.node.persistence.set_progress(read_bytes, total_bytes);
        }
        *self.node.upstream.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = report.map(|link| {
            Upstream { link, failed_commands: machine.failed_commands(), has_refused: machine.has_refused() }
        });
    }
}

/// Sends a request for another role to the shard that sees to it.
pub fn request_role(front: &Front, request: RoleRequest) {
    front.node.order(HOME, Order::Role(request));
}
