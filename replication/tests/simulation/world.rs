//! One process: shards, the rings between them, connections and clients, all in one thread, in an order that a seed
//! decides.
//!
//! A tick of a shard is cut into what other threads can tell apart: it runs commands; it takes its ticket and hands over
//! its parcels, one by one; it lets replies go. In between, and between two parcels, other shards go on.

use crate::DATABASES;
use crate::model::State;
use crate::replicas::{Abort, Replicas, WalkedPiece, dump};
use crate::session::{Conn, Front, Node, Phase};
use crate::stream;
use crate::workload::{Client, Op, Scenario, Tags};
use braid_core::keyspace::SnapshotPiece;
use braid_core::table::HashKey;
use braid_replication::home::Piece;
use braid_shards::{Counters, Outlet, Parcel, Shard, ShardConfig, ShardId, SlotMap};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Seeds of hash functions in use: each is kept for the life of the process.
const HASH_SEEDS: u64 = 64;
/// Steps within which a run must come to rest: far more than any takes.
const QUIET_STEPS_MAX: usize = 200_000;
/// How deep a step may be interrupted by others.
const DEPTH_MAX: usize = 2;

struct Awaited {
    op: usize,
    replies: usize,
}

/// See the module.
pub struct World {
    pub scenario: Scenario,
    pub rng: fastrand::Rng,
    /// None: its thread is interrupted within a step.
    nodes: Vec<Option<Box<Node>>>,
    rings: Vec<VecDeque<Box<Parcel>>>,
    ring_len: usize,
    /// How often each shard gets its turn, relative to the others.
    weights: Vec<u32>,
    home: usize,
    keys: usize,
    depth: usize,
    now_us: u64,
    /// Moments of sends and replies.
    clock: u64,
    clients: Vec<Client>,
    awaited: Vec<VecDeque<Awaited>>,
    pipeline_len: usize,
    pub ops: Vec<Op>,
    pub tags: Tags,
    counters: Arc<Counters>,
    /// From this moment on whatever is sent has its effects in the stream.
    pub activated: Option<u64>,
    /// Offsets at which everything was at rest, and the dataset then.
    pub rests: Vec<(u64, State)>,
}

impl World {
    pub fn new(seed: u64, scenario: Scenario) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = match scenario {
            Scenario::Litmus { .. } => rng.usize(2..=8),
            _ => rng.usize(1..=8),
        };
        let home = rng.usize(..shards);
        let counters = Arc::new(Counters::default());
        let hash = HashKey::from_seed(rng.u64(..HASH_SEEDS));
        let mut nodes: Vec<Box<Node>> = (0..shards)
            .map(|id| {
                let id = id as ShardId;
                let shard = Shard::new(ShardConfig {
                    id,
                    map: SlotMap::new(shards),
                    databases: DATABASES,
                    hash,
                    seed: rng.u64(..),
                    settings: Default::default(),
                    counters: Arc::clone(&counters),
                    home: home as ShardId,
                });
                let replicas =
                    (usize::from(id) == home).then(|| Box::new(Replicas::new(shards, rng.u64(..))));
                Box::new(Node { shard, front: Front::new(id, replicas), phase: Phase::Idle })
            })
            .collect();
        let clients_len = rng.usize(2..7);
        let ops_len = rng.usize(5..40);
        let clients: Vec<Client> = (0..clients_len)
            .map(|index| {
                let db = if scenario == Scenario::Mixed { rng.u16(..DATABASES as u16) } else { 0 };
                let is_writer = index % 2 == 0;
                let ops_left = match scenario {
                    Scenario::Litmus { .. } if is_writer && index > 0 => 0,
                    Scenario::Litmus { .. } => 2 * ops_len,
                    _ => ops_len,
                };
                let is_unordered = is_writer && scenario == Scenario::Litmus { is_ordered: false };
                let front = &mut nodes[rng.usize(..shards)].front;
                front.conns.push(Conn::new(index as u64, db, is_unordered));
                Client::new(index, db, ops_left)
            })
            .collect();
        Self {
            scenario,
            nodes: nodes.into_iter().map(Some).collect(),
            rings: (0..shards * shards).map(|_| VecDeque::new()).collect(),
            ring_len: rng.usize(1..6),
            weights: (0..shards).map(|_| rng.u32(1..8)).collect(),
            home,
            keys: rng.usize(2..10),
            depth: 0,
            now_us: 1_000_000_000,
            clock: 0,
            awaited: clients.iter().map(|_| VecDeque::new()).collect(),
            clients,
            pipeline_len: rng.usize(1..10),
            ops: Vec::new(),
            tags: Tags::default(),
            counters,
            activated: None,
            rests: Vec::new(),
            rng,
        }
    }

    /// From the first command to the last reply.
    pub fn run(&mut self) {
        let starts_followed = self.rng.u8(..4) > 0;
        if starts_followed {
            self.attach();
            self.rest();
        }
        let mut attaches_left = 3;
        let mut steps = 0;
        while !self.clients.iter().all(Client::is_done) {
            self.step();
            steps += 1;
            assert!(steps < QUIET_STEPS_MAX, "law 3: clients do not get on");
            if self.rng.u16(..300) == 0 && attaches_left > 0 {
                attaches_left -= 1;
                self.attach();
            }
            if self.rng.u16(..600) == 0 {
                self.detach();
            }
            if self.rng.u16(..500) == 0 {
                self.rest();
            }
        }
        self.rest();
        if self.activated.is_none() {
            self.attach();
            self.rest();
        }
    }

    fn node(&mut self, id: usize) -> &mut Node {
        self.nodes[id].as_mut().expect("not interrupted")
    }

    pub fn replicas(&mut self) -> &mut Replicas {
        let home = self.home;
        self.node(home).front.replicas.as_mut().expect("the home")
    }

    fn attach(&mut self) {
        let now_ms = self.now_us / 1000;
        self.replicas().attach(now_ms);
    }

    /// A replica but the first is lost, in whatever state it is.
    fn detach(&mut self) {
        let links = self.replicas().links.len();
        if links > 1 {
            let index = self.rng.usize(1..links);
            if !self.replicas().links[index].is_closed {
                self.replicas().detach(index);
            }
        }
    }

    /// One step of anyone.
    fn step(&mut self) {
        match self.rng.u8(..10) {
            0..6 => {
                let sum: u32 = self.weights.iter().sum();
                let mut at = self.rng.u32(..sum);
                let chosen = self.weights.iter().position(|weight| {
                    let is_here = at < *weight;
                    at = at.saturating_sub(*weight);
                    is_here
                });
                self.step_node(chosen.expect("below the sum"));
            }
            6..9 => self.send(),
            _ => self.now_us += self.rng.u64(..3000),
        }
    }

    /// Other threads go on while one is in the middle of something.
    fn interrupt(&mut self) {
        if self.depth < DEPTH_MAX && self.rng.u8(..6) == 0 {
            self.depth += 1;
            for _ in 0..self.rng.usize(1..12) {
                self.step();
            }
            self.depth -= 1;
        }
    }

    /// A client sends its next operation.
    fn send(&mut self) {
        let index = self.rng.usize(..self.clients.len());
        if self.awaited[index].len() >= self.pipeline_len {
            return;
        }
        let Self { clients, scenario, keys, rng, tags, ops, .. } = self;
        // Its shard may be in the middle of a step: the input lies in the socket until then.
        let found = self.nodes.iter_mut().flatten().flat_map(|node| &mut node.front.conns);
        let Some(conn) = found.into_iter().find(|conn| conn.client() == index) else { return };
        let Some((kind, commands)) = clients[index].next(*scenario, *keys, rng, tags, ops) else { return };
        conn.input.extend(commands.iter().cloned());
        self.clock += 1;
        self.awaited[index].push_back(Awaited { op: ops.len(), replies: commands.len() });
        let db = clients[index].db;
        let (sent, replied, reply) = (self.clock, None, Vec::new());
        ops.push(Op { client: index, db, kind, commands, sent, replied, reply });
    }

    /// The next part of a shard's tick.
    fn step_node(&mut self, id: usize) {
        let Some(mut node) = self.nodes[id].take() else { return };
        match node.phase {
            Phase::Idle => {
                self.run_tick(id, &mut node);
                node.phase = Phase::Ran;
            }
            Phase::Ran => {
                let Node { shard, front, .. } = &mut *node;
                shard.end_tick(&mut Rings { world: self, from: id }, front);
                node.phase = Phase::Ended;
            }
            Phase::Ended => {
                self.flush(&mut node);
                node.phase = Phase::Idle;
            }
        }
        self.nodes[id] = Some(node);
    }

    /// Runs what has arrived, some of it.
    fn run_tick(&mut self, id: usize, node: &mut Node) {
        node.begin_tick(self.now_us);
        for index in 0..node.front.conns.len() {
            if node.front.conns[index].can_go_on() && self.rng.u8(..4) > 0 {
                node.consume(index);
            }
        }
        let shards = self.nodes.len();
        for _ in 0..self.rng.usize(..2 * shards + 2) {
            let from = self.rng.usize(..shards);
            if let Some(parcel) = self.rings[from * shards + id].pop_front() {
                node.shard.receive(from as ShardId, parcel, &mut node.front);
            }
        }
        node.shard.settle(&mut node.front);
        node.resume_ready();
        self.replicate(node);
        if self.rng.u8(..4) == 0 {
            node.shard.background(self.rng.usize(1..20), &mut node.front);
        }
    }

    /// What the home asks for, and this shard's part of a snapshot.
    fn replicate(&mut self, node: &mut Node) {
        let Node { shard, front, .. } = node;
        if let Some(snapshot) = front.aborted.take() {
            shard.abort_snapshot(snapshot);
        }
        let effort_bytes = self.rng.usize(..2000);
        if let Some(walked) = shard.walk_snapshot(effort_bytes, self.rng.usize(1..500), false, front)
            && let Some(SnapshotPiece { chunks, checksum, is_last }) = walked.piece
        {
            let chunks = chunks.into_iter().map(Bytes::from).collect();
            let piece = Piece { chunks, checksum, is_last };
            let walked = Box::new(WalkedPiece { snapshot: walked.snapshot, piece });
            match &mut front.replicas {
                Some(replicas) => replicas.message(walked),
                None => shard.send_upper(self.home as ShardId, walked),
            }
        }
        if let Some(replicas) = &mut front.replicas
            && let Some(snapshot) = replicas.act(shard, self.now_us / 1000)
        {
            for to in 0..self.nodes.len() {
                match to == self.home {
                    true => shard.abort_snapshot(snapshot),
                    false => shard.send_upper(to as ShardId, Box::new(Abort { snapshot })),
                }
            }
        }
        shard.settle(front);
    }

    /// Lets the replies of a tick go.
    fn flush(&mut self, node: &mut Node) {
        if let Some(replicas) = &mut node.front.replicas {
            replicas.feed(&mut self.rng, self.now_us / 1000);
            if self.activated.is_none()
                && replicas.links.first().is_some_and(|link| link.received.contains(&b'+'))
            {
                self.activated = Some(self.clock);
            }
        }
        for conn in &mut node.front.conns {
            let wire = std::mem::take(&mut conn.out).to_wire();
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let (reply, tail) = rest.split_at(stream::reply(rest));
                rest = tail;
                let client = conn.client();
                let awaited = self.awaited[client].front_mut().expect("a reply to something");
                awaited.replies -= 1;
                let op = &mut self.ops[awaited.op];
                if awaited.replies == 0 {
                    self.clock += 1;
                    op.replied = Some(self.clock);
                    op.reply = reply.to_vec();
                    self.awaited[client].pop_front();
                } else {
                    assert!(matches!(reply, b"+OK\r\n" | b"+QUEUED\r\n"), "{}", reply.escape_ascii());
                }
            }
        }
    }

    /// Nobody sends anything; all that is under way comes to its end.
    fn rest(&mut self) {
        assert_eq!(self.depth, 0);
        let mut steps = 0;
        while !self.is_at_rest() {
            let id = self.rng.usize(..self.nodes.len());
            self.step_node(id);
            self.now_us += self.rng.u64(..20);
            steps += 1;
            if steps == QUIET_STEPS_MAX {
                self.explain_unrest();
            }
        }
        let tickets = self.counters.ticket.load(Ordering::SeqCst);
        assert_eq!(tickets, self.replicas().segments, "law 4: a ticket without a segment");
        if self.activated.is_some() {
            let state = self.dump();
            let end = self.replicas().home.end_offset();
            self.rests.push((end, state));
        }
    }

    fn is_at_rest(&mut self) -> bool {
        let is_quiet = |node: &Node| {
            node.phase == Phase::Idle
                && node.shard.is_quiet()
                && !node.shard.has_outgoing()
                && node.front.aborted.is_none()
                && node.front.conns.iter().all(Conn::is_idle)
        };
        self.rings.iter().all(VecDeque::is_empty)
            && self.awaited.iter().all(VecDeque::is_empty)
            && self.nodes.iter().flatten().all(|node| is_quiet(node))
            && self.replicas().is_quiet()
    }

    /// Says who does not come to rest.
    fn explain_unrest(&mut self) -> ! {
        for node in self.nodes.iter().flatten() {
            eprintln!(
                "shard {}: {:?}, quiet {}, outgoing {}, idle connections {:?}",
                node.shard.id,
                node.phase,
                node.shard.is_quiet(),
                node.shard.has_outgoing(),
                node.front.conns.iter().map(Conn::is_idle).collect::<Vec<_>>()
            );
        }
        let parcels: Vec<usize> = self.rings.iter().map(VecDeque::len).collect();
        eprintln!("rings {parcels:?}, replicas quiet {}", self.replicas().is_quiet());
        let end = self.replicas().home.end_offset();
        for link in &self.replicas().links {
            eprintln!("end {end}, {}", link.explain());
        }
        panic!("law 3: something is never finished");
    }

    /// What the shards hold together.
    fn dump(&self) -> State {
        let map = SlotMap::new(self.nodes.len());
        let slices = self.nodes.iter().flatten().map(|node| node.shard.keyspace().expect("at rest"));
        dump(slices, |index, key| {
            assert_eq!(usize::from(map.shard_of(key)), index, "law 1: a key with a stranger")
        })
    }
}

/// One shard's ends of the rings.
struct Rings<'a> {
    world: &'a mut World,
    from: usize,
}

impl Outlet for Rings<'_> {
    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        let shards = self.world.nodes.len();
        let ring_len = self.world.ring_len;
        let ring = &mut self.world.rings[self.from * shards + usize::from(to)];
        if ring.len() == ring_len {
            return Err(parcel);
        }
        ring.push_back(parcel);
        // The receiver may be faster than this shard's next instruction.
        self.world.interrupt();
        Ok(())
    }
}
