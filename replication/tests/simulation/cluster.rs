//! Nodes that follow each other in any topology, and the network between them: it delivers any number of bytes at a time and
//! breaks connections; nodes change roles, hand over, die and start again, empty or from their snapshot file.
//!
//! At every step a node that is at some offset of some history must hold what the master of that history held there, and
//! have its bytes; at the end of each stretch the clients' operations must have their points in it. After healing all nodes
//! are equal.

use crate::env::Env;
use crate::history::Histories;
use crate::hub::{Errand, Input};
use crate::process::{Plan, Process};
use crate::rules::{TIMEOUT_MS, follower_rules, rules};
use crate::workload::Scenario;
use braid_replication::failover::{Order, Request};
use braid_replication::follower::{FollowerRules, Intake, RoleRequest};
use braid_replication::home::Rules;
use braid_replication::link::Target;
use braid_replication::sharing::Policy;
use std::collections::VecDeque;

/// Steps within which a healed cluster must be equal: far more than any takes.
const HEAL_STEPS_MAX: usize = 2_000_000;
/// Between two looks whether it is, and whether everybody has the role it is to have.
const LOOK_STEPS: usize = 64;
/// Bytes that arrive at once.
const ARRIVE_MAX_BYTES: usize = 600;
/// Steps for which something is being applied before its node is made a master: long, and a transaction is in its way.
const AMBUSH_STEPS_MAX: u32 = 60;

/// A connection from a replica's link to its master.
struct Conn {
    id: usize,
    from: usize,
    /// Its name at the link.
    number: u64,
    to: usize,
    is_accepted: bool,
    /// Bytes on their way to the master, and to the replica.
    up: VecDeque<u8>,
    down: VecDeque<u8>,
}

struct Node {
    process: Process,
    rules: Rules,
    follower_rules: FollowerRules,
    ambush: Option<Ambush>,
}

/// A node is to be made a master when it has been applying something for so many steps.
struct Ambush {
    steps: u32,
    steps_so_far: u32,
}

/// What happened in a run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Happened {
    pub full_syncs: u64,
    pub partial_syncs: u64,
    pub kills: u64,
    pub restores: u64,
    pub failovers: u64,
    pub role_changes: u64,
    /// Asked for while something of the old master's was being applied.
    pub promotions_in_epochs: u64,
    /// Connections that ended in the midst of something.
    pub closed: u64,
}

impl std::ops::AddAssign for Happened {
    fn add_assign(&mut self, other: Self) {
        self.full_syncs += other.full_syncs;
        self.partial_syncs += other.partial_syncs;
        self.kills += other.kills;
        self.restores += other.restores;
        self.failovers += other.failovers;
        self.role_changes += other.role_changes;
        self.promotions_in_epochs += other.promotions_in_epochs;
        self.closed += other.closed;
    }
}

impl Happened {
    /// Enough for a run of many seeds to mean something.
    pub fn is_plenty(&self) -> bool {
        let Self {
            full_syncs,
            partial_syncs,
            kills,
            restores,
            failovers,
            role_changes,
            promotions_in_epochs,
            closed,
        } = *self;
        [full_syncs, partial_syncs, kills, failovers, role_changes, promotions_in_epochs, closed]
            .iter()
            .all(|count| *count > 300)
            && restores > 50
    }
}

/// See the module.
pub struct Cluster {
    pub env: Env,
    nodes: Vec<Node>,
    conns: Vec<Conn>,
    conns_made: usize,
    /// One in so many blows strikes.
    calm: u32,
    incarnations: usize,
    pub histories: Histories,
    pub happened: Happened,
}

/// Where a node is reached.
fn address(node: usize) -> Target {
    Target { host: node.to_string(), port: 1 }
}

impl Cluster {
    pub fn new(seed: u64, is_loud: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let scenario = match rng.u8(..12) {
            0..3 => Scenario::Mixed,
            3..5 => Scenario::Calm,
            5..7 => Scenario::AllOrNothing,
            7..11 => Scenario::Crowded,
            _ => Scenario::Litmus { is_ordered: true },
        };
        let nodes = rng.usize(2..5);
        let backlog_bytes = [300, 3_000, 1 << 20][rng.usize(..3)];
        let backlog_ttl_ms = [0, 0, 300][rng.usize(..3)];
        let protects = rng.u8(..3) == 0;
        let calm = [1, 4, 16][rng.usize(..3)];
        let intake = if rng.u8(..6) == 0 { Intake::FlushFirst } else { Intake::Beside };
        let mut cluster = Self {
            env: Env::new(scenario, rng, is_loud),
            nodes: Vec::new(),
            conns: Vec::new(),
            conns_made: 0,
            calm,
            incarnations: 0,
            histories: Histories::default(),
            happened: Happened::default(),
        };
        let lull_max = if scenario == Scenario::Crowded { 10 } else { 40 };
        cluster.env.lull = cluster.env.rng.u32(1..lull_max);
        for node in 0..nodes {
            let is_diskless = cluster.env.rng.u8(..4) > 0;
            let rules = Rules {
                backlog_bytes,
                backlog_ttl_ms,
                protects,
                timeout_ms: TIMEOUT_MS,
                sharing: Policy { is_diskless, delay_ms: 0, max_replicas: 0 },
                ..rules()
            };
            let follower_rules = FollowerRules { protects, intake, ..follower_rules(node) };
            let process = cluster.start(rules, follower_rules.clone(), None, None);
            cluster.nodes.push(Node { process, rules, follower_rules, ambush: None });
        }
        cluster
    }

    fn start(
        &mut self,
        rules: Rules,
        follower_rules: FollowerRules,
        master: Option<Target>,
        file: Option<Vec<u8>>,
    ) -> Process {
        self.incarnations += 1;
        let (clients, ops) = (self.env.rng.usize(1..5), self.env.rng.usize(30..150));
        let incarnation = self.incarnations;
        let plan = Plan { incarnation, rules, follower_rules, clients, ops, master, file };
        Process::new(&mut self.env, plan)
    }

    pub fn run(&mut self) {
        // Mostly somebody is followed from the start.
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        self.env.rng.shuffle(&mut order);
        for at in 1..order.len() {
            if self.env.rng.u8(..8) > 0 {
                let above = order[self.env.rng.usize(..at)];
                self.ask(order[at], Some(above));
            }
        }
        for _ in 0..self.env.rng.usize(10_000..80_000) {
            let node = self.env.rng.usize(..self.nodes.len());
            match self.env.rng.u16(..10_000) {
                0..28 if self.env.rng.u32(..self.calm) > 0 => {}
                0..3 => self.change_role(node),
                3..4 => self.kill(node),
                4..16 => self.cut(),
                16..20 => self.fail_over(),
                20..28 => {
                    let now_ms = self.env.now_ms();
                    self.nodes[node].process.hub().home.request_save(now_ms);
                }
                90..110 => self.lie_in_wait(node),
                28..60 => self.nodes[node].process.hub().wait(&self.env),
                60..90 => self.env.now_us += self.env.rng.u64(..300_000),
                _ => self.step(node),
            }
        }
    }

    fn change_role(&mut self, node: usize) {
        let other = self.env.rng.usize(..self.nodes.len());
        let target = (other != node && self.env.rng.u8(..4) > 0).then_some(other);
        self.ask(node, target);
    }

    /// `REPLICAOF`.
    fn ask(&mut self, node: usize, target: Option<usize>) {
        self.happened.role_changes += 1;
        if self.env.is_loud {
            eprintln!("at {}: node {node} is to follow {target:?}", self.env.clock);
        }
        let request = RoleRequest { master: target.map(address), answer: None };
        self.nodes[node].process.hub().follower.request(request);
        self.nodes[node].process.hurry();
    }

    /// A replica is to be made a master in the middle of an epoch; there is always one again.
    fn lie_in_wait(&mut self, node: usize) {
        if self.nodes[node].process.hub().home.is_replica() {
            let rng = &mut self.env.rng;
            let max = rng.u32(1..AMBUSH_STEPS_MAX);
            self.nodes[node].ambush = Some(Ambush { steps: rng.u32(..max), steps_so_far: 0 });
        } else {
            self.change_role(node);
        }
    }

    /// A node may be made a master in the middle of an epoch.
    fn spring(&mut self, node: usize) {
        let Node { process, ambush: Some(ambush), .. } = &mut self.nodes[node] else { return };
        if !process.has_epoch() {
            ambush.steps_so_far = 0;
            return;
        }
        ambush.steps_so_far += 1;
        if ambush.steps_so_far <= ambush.steps {
            return;
        }
        self.nodes[node].ambush = None;
        self.happened.promotions_in_epochs += 1;
        self.ask(node, None);
    }

    /// A master is asked to hand over to one of its replicas.
    fn fail_over(&mut self) {
        if self.conns.is_empty() {
            return;
        }
        let rng = &mut self.env.rng;
        let Conn { from: heir, to: node, .. } = self.conns[rng.usize(..self.conns.len())];
        let timeout_ms = rng.u64(1..3_000);
        let target = rng.bool().then(|| (heir.to_string(), 1));
        let force = target.is_some() && rng.u8(..4) == 0;
        let now_ms = self.env.now_ms();
        let request = Request::Begin(Order { target, force, timeout_ms });
        let outcome = self.nodes[node].process.hub().home.failover(request, now_ms);
        self.happened.failovers += u64::from(outcome.is_ok());
    }

    /// A node dies, and starts again.
    fn kill(&mut self, node: usize) {
        if self.env.is_loud {
            eprintln!("at {}: node {node} is killed", self.env.clock);
        }
        self.happened.kills += 1;
        while let Some(at) = self.conns.iter().position(|conn| conn.from == node || conn.to == node) {
            self.break_conn(at);
        }
        self.close(node);
        self.count_syncs(node);
        let hub = self.nodes[node].process.hub();
        let master = hub.follower.link().map(|link| link.target().clone());
        let file = hub.saved().cloned();
        let file = file.filter(|_| self.env.rng.u8(..4) > 0);
        self.happened.restores += u64::from(file.is_some());
        let (rules, follower_rules) = (self.nodes[node].rules, self.nodes[node].follower_rules.clone());
        self.nodes[node].process = self.start(rules, follower_rules, master, file);
        self.look_at(node);
    }

    /// What a node answered so far is judged.
    fn close(&mut self, node: usize) {
        let process = &mut self.nodes[node].process;
        let until = process.hub().true_until().min(process.merged_until);
        self.histories.close(&self.env, process.incarnation, until);
    }

    fn count_syncs(&mut self, node: usize) {
        let report = self.nodes[node].process.hub().home.report(0);
        self.happened.full_syncs += report.full_syncs;
        self.happened.partial_syncs += report.partial_syncs;
    }

    /// A connection breaks.
    fn cut(&mut self) {
        if !self.conns.is_empty() {
            let at = self.env.rng.usize(..self.conns.len());
            self.break_conn(at);
        }
    }

    /// Both ends notice, when they look.
    fn break_conn(&mut self, at: usize) {
        let Conn { id, from, number, to, .. } = self.conns.swap_remove(at);
        self.nodes[from].process.hub().inbox.push_back(Input::LinkClosed(number));
        self.nodes[to].process.hub().inbox.push_back(Input::PeerClosed(id));
    }

    /// Something small happens at a node, or in the network.
    fn step(&mut self, node: usize) {
        if self.env.rng.u8(..4) == 0 {
            self.deliver();
        } else {
            self.nodes[node].process.step(&mut self.env);
            self.look_at(node);
            self.spring(node);
        }
    }

    /// Some bytes arrive, in either direction.
    fn deliver(&mut self) {
        if self.conns.is_empty() {
            return;
        }
        let at = self.env.rng.usize(..self.conns.len());
        let conn = &mut self.conns[at];
        if !std::mem::replace(&mut conn.is_accepted, true) {
            let (from, input) = (conn.from, Input::LinkUp(conn.number));
            return self.nodes[from].process.hub().inbox.push_back(input);
        }
        let is_up = self.env.rng.bool();
        let way = if is_up { &mut conn.up } else { &mut conn.down };
        let len = self.env.rng.usize(..=way.len().min(ARRIVE_MAX_BYTES));
        if len == 0 {
            return;
        }
        let bytes = way.drain(..len).collect();
        let (to, input) = match is_up {
            true => (conn.to, Input::PeerBytes(conn.id, bytes)),
            false => (conn.from, Input::LinkBytes(conn.number, bytes)),
        };
        self.nodes[to].process.hub().inbox.push_back(input);
    }

    /// Sees to what a node wants done, and looks whether it is as it should be.
    fn look_at(&mut self, node: usize) {
        let process = &mut self.nodes[node].process;
        let errands = std::mem::take(&mut process.hub().outbox);
        for mut capture in std::mem::take(&mut process.hub().captures) {
            if capture.has_stopped {
                // What was merged last went with the log, and nobody has seen it.
                let until = capture.doubtful_since.unwrap_or(u64::MAX);
                capture.doubtful_since = Some(until.min(process.merged_until));
            }
            self.histories.observe(&self.env, process.incarnation, capture);
        }
        process.note_merged(&self.env);
        self.histories.check_ack(process);
        if self.env.rng.u8(..4) == 0 {
            self.histories.check_dataset(&self.env, process);
        }
        for errand in errands {
            self.run_errand(node, errand);
        }
    }

    fn run_errand(&mut self, node: usize, errand: Errand) {
        match errand {
            Errand::Connect { to, number } => {
                self.break_link(node);
                self.conns_made += 1;
                self.conns.push(Conn {
                    id: self.conns_made,
                    from: node,
                    number,
                    to,
                    is_accepted: false,
                    up: VecDeque::new(),
                    down: VecDeque::new(),
                });
            }
            Errand::Send(bytes) => {
                if let Some(conn) = self.conns.iter_mut().find(|conn| conn.from == node) {
                    conn.up.extend(bytes);
                }
            }
            Errand::CloseLink => self.break_link(node),
            Errand::ToPeer(id, bytes) => {
                if let Some(conn) = self.conns.iter_mut().find(|conn| conn.id == id) {
                    conn.down.extend(bytes);
                }
            }
            Errand::ClosePeer(id) => {
                if let Some(at) = self.conns.iter().position(|conn| conn.id == id) {
                    self.break_conn(at);
                }
            }
        }
    }

    fn break_link(&mut self, node: usize) {
        if let Some(at) = self.conns.iter().position(|conn| conn.from == node) {
            self.break_conn(at);
        }
    }

    /// Makes a tree of the nodes and lets them come to rest, equal.
    pub fn heal(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        self.env.rng.shuffle(&mut order);
        self.nodes.iter_mut().for_each(|node| node.ambush = None);
        let mut above = vec![None; order.len()];
        for at in 1..order.len() {
            above[order[at]] = Some(order[self.env.rng.usize(..at)]);
        }
        if self.env.is_loud {
            eprintln!("at {}: healing {above:?}", self.env.clock);
        }
        let now_ms = self.env.now_ms();
        for (node, target) in above.iter().enumerate() {
            // None may be under way.
            let _ = self.nodes[node].process.hub().home.failover(Request::Abort, now_ms);
            self.nodes[node].process.stop_clients();
            self.ask(node, *target);
        }
        for step in 0.. {
            assert!(step < HEAL_STEPS_MAX, "it does not come to rest: {:#?}", self.shown());
            let node = self.env.rng.usize(..self.nodes.len());
            self.step(node);
            if step % LOOK_STEPS == 0 {
                self.env.now_us += self.env.rng.u64(..2_000);
                self.repeat_orders(&above);
                for node in 0..self.nodes.len() {
                    self.nodes[node].process.end_ticks(&mut self.env);
                    self.look_at(node);
                }
                if self.is_equal() {
                    break;
                }
            }
        }
        let states: Vec<_> = self.nodes.iter().map(|node| node.process.whole().expect("at rest")).collect();
        for (node, state) in states.iter().enumerate() {
            crate::check::assert_same(&states[0], state, &format!("nodes 0 and {node} after healing"));
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].process.check_rest();
            self.close(node);
            self.count_syncs(node);
        }
        self.happened.closed += self.env.closed;
    }

    /// What was asked for while a failover was under way was refused; and an empty dataset is taken on an order only.
    fn repeat_orders(&mut self, above: &[Option<usize>]) {
        for (node, target) in above.iter().enumerate() {
            let hub = self.nodes[node].process.hub();
            let target = target.map(address);
            let is_so = match &target {
                // One that lost its dataset is to serve what it has on a second order only.
                None => !hub.home.is_replica() && !hub.home.has_lost_dataset(),
                Some(target) => hub.follower.link().is_some_and(|link| link.target() == target),
            };
            let is_so = is_so && !hub.follower.has_refused();
            if !is_so && hub.follower.is_idle() && !hub.home.is_failing_over() {
                hub.follower.request(RoleRequest { master: target, answer: None });
            }
        }
    }

    /// Whether every link is up and everything is applied everywhere.
    fn is_equal(&mut self) -> bool {
        let mut positions = self.nodes.iter_mut().map(|node| {
            let is_at_rest = node.process.is_at_rest() && node.process.is_done();
            let hub = node.process.hub();
            let is_up = !hub.home.is_replica() || hub.follower.link().is_some_and(|link| link.is_up());
            let is_settled = is_at_rest && is_up && hub.follower.is_idle() && !hub.home.is_doubtful();
            hub.home.position().filter(|_| is_settled).map(|position| (position.id, position.offset))
        });
        let Some(Some(first)) = positions.next() else { return false };
        positions.all(|position| position == Some(first))
    }

    /// Where every node stands, for whoever looks into a failure.
    fn shown(&mut self) -> Vec<String> {
        let now_ms = self.env.now_ms();
        let line = |(index, node): (usize, &mut Node)| {
            let is_at_rest = node.process.is_at_rest();
            if !is_at_rest {
                node.process.explain();
            }
            let hub = node.process.hub();
            let link = hub.follower.link().map(|link| (link.target().host.clone(), link.state()));
            let report = hub.home.report(now_ms);
            let replicas: Vec<_> = report.replicas.iter().map(|line| line.info.clone()).collect();
            let Some(position) = hub.home.position() else { return format!("{index}: {link:?}, no stream") };
            format!(
                "{index}: {link:?} {} {} {replicas:?}, at rest {is_at_rest}",
                position.id, position.offset
            )
        };
        self.nodes.iter_mut().enumerate().map(line).collect()
    }
}
