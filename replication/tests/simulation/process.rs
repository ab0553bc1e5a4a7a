//! One process: shards, the rings between them, connections and clients, all in one thread, in an order that a seed
//! decides.
//!
//! A tick of a shard is cut into what other threads can tell apart: it runs commands; it takes its ticket and hands over
//! its parcels, one by one; it lets replies go. In between, and between two parcels, other shards go on.

use crate::DATABASES;
use crate::env::Env;
use crate::hub::{Abort, Hub, WalkedPiece};
use crate::model::State;
use crate::session::{Conn, Front, Phase, Thread};
use crate::stock::dump;
use crate::stream;
use crate::workload::{Client, Op, Scenario};
use braid_core::keyspace::{Keyspace, SnapshotPiece, WatcherId};
use braid_core::table::HashKey;
use braid_replication::follower::{FollowerRules, start_shard_as_replica};
use braid_replication::home::{Piece, Rules};
use braid_replication::link::Target;
use braid_shards::{Counters, Outlet, Parcel, Shard, ShardConfig, ShardId, SlotMap};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Seeds of hash functions in use: each is kept for the life of the process.
const HASH_SEEDS: u64 = 64;
/// How deep a step may be interrupted by others.
const DEPTH_MAX: usize = 2;

/// One in so many times a slow shard hears what it could hear.
const SLOWNESS: u8 = 8;
/// One in so many ticks of a shard a connection ends.
const CONSTANCY: u8 = 250;
/// Times that clients send all they can, around a change of role.
const HURRY: u32 = 40;

/// What a process is made of.
pub struct Plan {
    /// Its name for the others, of this run of it.
    pub incarnation: usize,
    pub rules: Rules,
    pub follower_rules: FollowerRules,
    pub clients: usize,
    /// Operations of each client.
    pub ops: usize,
    /// Follows this node from the start.
    pub master: Option<Target>,
    /// The snapshot file it starts from.
    pub file: Option<Vec<u8>>,
}

struct Awaited {
    op: usize,
    replies: usize,
}

/// See the module.
pub struct Process {
    pub incarnation: usize,
    /// None: it is interrupted within a step.
    threads: Vec<Option<Box<Thread>>>,
    rings: Vec<VecDeque<Box<Parcel>>>,
    ring_len: usize,
    /// How often each shard gets its turn, relative to the others.
    weights: Vec<u32>,
    /// What this shard hears from the home comes late: what it lent for a change of role, for one.
    slow: Option<usize>,
    /// So many times clients send whatever they can.
    hurry: u32,
    home: usize,
    clients: Vec<Client>,
    awaited: Vec<VecDeque<Awaited>>,
    pipeline_len: usize,
    pub counters: Arc<Counters>,
    keys: Rc<[Cell<usize>]>,
    /// As of the home shard's last step: whether it is a replica and how often that changed, and what is applied.
    role: (bool, u32),
    /// A master's dataset may be about to become a replica's.
    is_turning: bool,
    applied_offset: u64,
    /// What was answered up to this moment was seen in the log; if it is killed now, the rest may not be.
    pub merged_until: u64,
    /// What connections that ended were to those whose keys they watched.
    closed: Vec<WatcherId>,
    /// Clients do not run anything: the dataset is being loaded, or writes wait.
    is_closed: bool,
}

impl Process {
    pub fn new(env: &mut Env, plan: Plan) -> Self {
        let rng = &mut env.rng;
        let shards = match env.scenario {
            Scenario::Litmus { .. } => rng.usize(2..=8),
            Scenario::Crowded => rng.usize(3..=8),
            _ => rng.usize(1..=8),
        };
        let home = rng.usize(..shards);
        let counters = Arc::new(Counters::new(shards));
        let hash = HashKey::from_seed(rng.u64(..HASH_SEEDS));
        let keys: Rc<[Cell<usize>]> = (0..shards).map(|_| Cell::new(0)).collect();
        let mut threads: Vec<Box<Thread>> = (0..shards)
            .map(|id| {
                let shard = Shard::new(ShardConfig {
                    id: id as ShardId,
                    map: SlotMap::new(shards),
                    databases: DATABASES,
                    hash,
                    seed: rng.u64(..),
                    settings: Default::default(),
                    counters: Arc::clone(&counters),
                    home: home as ShardId,
                });
                let front = Front::new(id as ShardId, None);
                Box::new(Thread { shard, front, phase: Phase::Idle })
            })
            .collect();
        let Thread { shard, front, .. } = &mut *threads[home];
        let Plan { rules, follower_rules, master, file, .. } = plan;
        let mut hub = Hub::new(shard, rules, follower_rules, Rc::clone(&keys), rng.u64(..));
        if let Some(master) = &master {
            hub.with_follower(shard, env.now_us / 1000, |follower, site| {
                follower.start_as_replica(master.clone(), site);
            });
        }
        if let Some(file) = file {
            hub.start_from(shard, file);
        }
        let is_closed = hub.follower.is_restoring();
        front.hub = Some(Box::new(hub));
        shard.settle(front);
        for (_, thread) in threads.iter_mut().enumerate().filter(|(id, _)| master.is_some() && *id != home) {
            start_shard_as_replica(&mut thread.shard);
        }
        let first = env.clients;
        env.clients += plan.clients;
        let rng = &mut env.rng;
        let clients: Vec<Client> = (first..env.clients)
            .map(|index| {
                let db = if matches!(env.scenario, Scenario::Mixed | Scenario::Calm) {
                    rng.u16(..DATABASES as u16)
                } else {
                    0
                };
                let is_writer = index % 2 == 0;
                let ops_left = match env.scenario {
                    Scenario::Litmus { .. } if is_writer && index > 0 => 0,
                    Scenario::Litmus { .. } => 2 * plan.ops,
                    _ => plan.ops,
                };
                let is_unordered = is_writer && env.scenario == Scenario::Litmus { is_ordered: false };
                let front = &mut threads[rng.usize(..shards)].front;
                front.conns.push(Conn::new(index as u64, db, is_unordered));
                Client::new(index, db, ops_left)
            })
            .collect();
        Self {
            incarnation: plan.incarnation,
            threads: threads.into_iter().map(Some).collect(),
            rings: (0..shards * shards).map(|_| VecDeque::new()).collect(),
            ring_len: rng.usize(1..6),
            weights: (0..shards).map(|id| rng.u32(1..8) + if id == home { 4 } else { 0 }).collect(),
            slow: (rng.bool()).then(|| rng.usize(..shards)),
            hurry: 0,
            home,
            awaited: clients.iter().map(|_| VecDeque::new()).collect(),
            clients,
            pipeline_len: rng.usize(1..10),
            counters,
            keys,
            role: (master.is_some(), 0),
            is_turning: false,
            applied_offset: 0,
            merged_until: env.clock,
            closed: Vec::new(),
            is_closed,
        }
    }

    fn home_thread(&mut self) -> &mut Thread {
        self.threads[self.home].as_mut().expect("not interrupted")
    }

    pub fn hub(&mut self) -> &mut Hub {
        self.home_thread().front.hub.as_mut().expect("the home")
    }

    pub fn shards(&self) -> usize {
        self.threads.len()
    }

    /// All clients have sent what they had to send.
    pub fn is_done(&self) -> bool {
        self.clients.iter().all(Client::is_done)
    }

    /// The clients send all they can for a while.
    pub fn hurry(&mut self) {
        self.hurry = HURRY;
    }

    /// Whether something of the master's stream is being applied.
    pub fn has_epoch(&mut self) -> bool {
        let hub = self.hub();
        hub.home.is_replica() && hub.follower.is_applying()
    }

    /// The clients send nothing more.
    pub fn stop_clients(&mut self) {
        self.clients.iter_mut().for_each(Client::stop);
    }

    /// One step of anyone.
    pub fn step(&mut self, env: &mut Env) {
        match env.rng.u8(..10) {
            0..6 => self.step_any(env),
            6..9 => self.send(env),
            _ => env.now_us += env.rng.u64(..3000),
        }
    }

    /// One step of any shard.
    pub fn step_any(&mut self, env: &mut Env) {
        let sum: u32 = self.weights.iter().sum();
        let mut at = env.rng.u32(..sum);
        let chosen = self.weights.iter().position(|weight| {
            let is_here = at < *weight;
            at = at.saturating_sub(*weight);
            is_here
        });
        self.step_thread(chosen.expect("below the sum"), env);
    }

    /// Other threads go on while one is in the middle of something.
    fn interrupt(&mut self, env: &mut Env) {
        if env.depth < DEPTH_MAX && env.rng.u8(..6) == 0 {
            env.depth += 1;
            for _ in 0..env.rng.usize(1..12) {
                self.step(env);
            }
            env.depth -= 1;
        }
    }

    /// A client sends its next operation.
    fn send(&mut self, env: &mut Env) {
        let is_hurried = self.hurry > 0;
        self.hurry = self.hurry.saturating_sub(1);
        if self.clients.is_empty() || !is_hurried && env.rng.u32(..env.lull) > 0 {
            return;
        }
        let index = env.rng.usize(..self.clients.len());
        if self.awaited[index].len() >= self.pipeline_len {
            return;
        }
        let client = &mut self.clients[index];
        // Its shard may be in the middle of a step: the input lies in the socket until then.
        let found = self.threads.iter_mut().flatten().flat_map(|thread| &mut thread.front.conns);
        let Some(conn) = found.into_iter().find(|conn| conn.client() == client.index) else { return };
        let Env { scenario, keys, rng, tags, ops, .. } = env;
        let Some((kind, commands)) = client.next(*scenario, *keys, rng, tags, ops) else { return };
        conn.input.extend(commands.iter().cloned());
        let sent = env.next_moment();
        self.awaited[index].push_back(Awaited { op: env.ops.len(), replies: commands.len() });
        env.ops.push(Op {
            client: client.index,
            db: client.db,
            kind,
            commands,
            sent,
            sent_ms: env.now_ms(),
            replied: None,
            replied_ms: 0,
            reply: Vec::new(),
            process: self.incarnation,
            sent_role: self.role,
            replied_role: self.role,
            floor: if self.role.0 { self.applied_offset } else { 0 },
        });
    }

    /// The next part of a shard's tick.
    pub fn step_thread(&mut self, id: usize, env: &mut Env) {
        let Some(mut thread) = self.threads[id].take() else { return };
        match thread.phase {
            Phase::Idle => {
                self.run_tick(id, &mut thread, env);
                thread.phase = Phase::Ran;
            }
            Phase::Ran => {
                let Thread { shard, front, .. } = &mut *thread;
                shard.end_tick(&mut Rings { process: self, from: id, env }, front);
                thread.phase = Phase::Ended;
            }
            Phase::Ended => {
                self.flush(&mut thread, env);
                thread.phase = Phase::Idle;
            }
        }
        if let Some(keyspace) = thread.shard.keyspace() {
            self.keys[id].set(keyspace.len());
        }
        self.threads[id] = Some(thread);
    }

    /// Every shard ends the tick it is in.
    pub fn end_ticks(&mut self, env: &mut Env) {
        for id in 0..self.threads.len() {
            while self.threads[id].as_ref().is_some_and(|thread| thread.phase != Phase::Idle) {
                self.step_thread(id, env);
            }
        }
    }

    /// Runs what has arrived, some of it.
    fn run_tick(&mut self, id: usize, thread: &mut Thread, env: &mut Env) {
        thread.begin_tick(env.now_us);
        if let Some(hub) = &mut thread.front.hub {
            hub.take_inputs(env);
        }
        self.close_some(thread, env);
        for index in 0..thread.front.conns.len() {
            let may_run = thread.front.conns[index].can_go_on() && !thread.shard.is_behind();
            if may_run && !self.is_closed && env.rng.u8(..4) > 0 {
                thread.consume(index);
            }
        }
        let shards = self.threads.len();
        for _ in 0..env.rng.usize(..2 * shards + 2) {
            let from = env.rng.usize(..shards);
            if from == self.home && self.slow == Some(id) && env.rng.u8(..SLOWNESS) > 0 {
                continue;
            }
            if let Some(parcel) = self.rings[from * shards + id].pop_front() {
                thread.shard.receive(from as ShardId, parcel, &mut thread.front);
            }
        }
        thread.shard.settle(&mut thread.front);
        thread.resume_ready();
        if env.rng.u8(..4) == 0 {
            thread.shard.background(env.rng.usize(1..20), &mut thread.front);
        }
        self.load(thread, env);
        self.replicate(thread, env);
        self.follow(thread, env);
    }

    /// A connection may end in the midst of something. What it sent may take effect or not, and nobody hears of it.
    fn close_some(&mut self, thread: &mut Thread, env: &mut Env) {
        let may_end = matches!(
            env.scenario,
            Scenario::Mixed | Scenario::Calm | Scenario::AllOrNothing | Scenario::Crowded
        );
        if !may_end || env.rng.u8(..CONSTANCY) > 0 {
            return;
        }
        let involved = |(_, conn): &(usize, &Conn)| conn.is_involved();
        let found = thread.front.conns.iter().enumerate().filter(involved).map(|(index, _)| index);
        let Some(index) = env.rng.choice(found.collect::<Vec<_>>()) else { return };
        let former = thread.front.conns[index].client();
        let client = self.clients.iter().position(|client| client.index == former).expect("its client");
        self.closed.push(thread.reconnect(index, env.clients as u64));
        self.clients[client] = self.clients[client].on_another(env.clients);
        self.awaited[client].clear();
        env.clients += 1;
        env.closed += 1;
    }

    /// How many batches there were.
    pub fn batches(&self) -> u64 {
        (0..self.threads.len()).map(|id| self.counters.sequencer.latest(id as ShardId)).max().unwrap_or(0)
    }

    /// At rest: nothing is left of connections that ended, nor of what made commands wait.
    pub fn check_rest(&self) {
        let slices = self.slices().expect("at rest");
        // A snapshot may be on its way to somebody.
        let is_walked = slices.iter().any(|keyspace| keyspace.has_snapshot());
        assert!(is_walked || self.counters.sequencer.is_calm(), "law 2: unrest that nobody ends");
        for keyspace in slices {
            for watcher in &self.closed {
                assert_eq!(keyspace.watches.keys(*watcher).count(), 0, "a watch outlives its connection");
            }
        }
    }

    /// The part of a dataset being loaded.
    fn load(&mut self, thread: &mut Thread, env: &mut Env) {
        let Thread { shard, front, .. } = thread;
        if let Some(hub) = &mut front.hub {
            hub.restore(shard, env);
            shard.settle(front);
        }
        if env.rng.u8(..3) > 0 {
            shard.load_some();
        }
        if let Some(hub) = &mut front.hub {
            hub.follower.loads.work(shard);
        }
        shard.settle(front);
    }

    /// What the home asks for, and this shard's part of a snapshot.
    fn replicate(&mut self, thread: &mut Thread, env: &mut Env) {
        let Thread { shard, front, .. } = thread;
        for snapshot in std::mem::take(&mut front.aborted) {
            shard.abort_snapshot(snapshot);
        }
        let effort_bytes = env.rng.usize(..2000);
        if let Some(walked) = shard.walk_snapshot(effort_bytes, env.rng.usize(1..500), false, front)
            && let Some(SnapshotPiece { chunks, checksum, is_last }) = walked.piece
        {
            let chunks = chunks.into_iter().map(Bytes::from).collect();
            let piece = Piece { chunks, checksum, is_last };
            let walked = Box::new(WalkedPiece { snapshot: walked.snapshot, piece });
            match &mut front.hub {
                Some(hub) => hub.message(walked),
                None => shard.send_upper(self.home as ShardId, walked),
            }
        }
        if let Some(hub) = &mut front.hub {
            for snapshot in hub.act(env) {
                for to in 0..self.threads.len() {
                    match to == self.home {
                        true => shard.abort_snapshot(snapshot),
                        false => shard.send_upper(to as ShardId, Box::new(Abort { snapshot })),
                    }
                }
            }
        }
        shard.settle(front);
    }

    /// The replica role, on the home shard.
    fn follow(&mut self, thread: &mut Thread, env: &mut Env) {
        let Thread { shard, front, .. } = thread;
        let Some(hub) = &mut front.hub else { return };
        hub.go_on(shard, env);
        shard.settle(front);
        let hub = front.hub.as_mut().expect("just used");
        hub.finish(shard, env);
        shard.settle(front);
        let hub = front.hub.as_mut().expect("just used");
        let is_replica = hub.home.is_replica();
        if is_replica != self.role.0 {
            self.role = (is_replica, self.role.1 + 1);
        }
        self.is_turning = !is_replica && !hub.follower.is_idle();
        self.applied_offset = hub.follower.applied_offset();
        self.is_closed = hub.follower.is_restoring() || hub.is_paused;
    }

    /// Lets the replies of a tick go.
    fn flush(&mut self, thread: &mut Thread, env: &mut Env) {
        if let Some(hub) = &mut thread.front.hub {
            hub.feed(env);
        }
        for conn in &mut thread.front.conns {
            let wire = std::mem::take(&mut conn.out).to_wire();
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let (reply, tail) = rest.split_at(stream::reply(rest));
                rest = tail;
                let client = self.clients.iter().position(|client| client.index == conn.client());
                let awaited = &mut self.awaited[client.expect("a client of this process")];
                let front = awaited.front_mut().expect("a reply to something");
                front.replies -= 1;
                if front.replies == 0 {
                    let replied = env.next_moment();
                    let op = &mut env.ops[front.op];
                    op.replied = Some(replied);
                    op.replied_ms = env.now_us / 1000;
                    op.reply = reply.to_vec();
                    // One that is changing may be the other already.
                    op.replied_role = (self.role.0, self.role.1 + u32::from(self.is_turning));
                    awaited.pop_front();
                } else {
                    assert!(matches!(reply, b"+OK\r\n" | b"+QUEUED\r\n"), "{}", reply.escape_ascii());
                }
            }
        }
    }

    /// Whether nothing is under way between clients and shards.
    pub fn is_at_rest(&self) -> bool {
        let is_quiet = |thread: &Thread| {
            thread.phase == Phase::Idle
                && thread.shard.is_quiet()
                && !thread.shard.has_outgoing()
                && thread.front.aborted.is_empty()
                && thread.front.conns.iter().all(Conn::is_idle)
        };
        self.rings.iter().all(VecDeque::is_empty)
            && self.awaited.iter().all(VecDeque::is_empty)
            && self.threads.iter().flatten().all(|thread| is_quiet(thread))
    }

    /// Says who does not come to rest.
    pub fn explain(&mut self) {
        for thread in self.threads.iter().flatten() {
            eprintln!(
                "shard {}: {:?}, quiet {}, outgoing {}, idle connections {:?}",
                thread.shard.id,
                thread.phase,
                thread.shard.is_quiet(),
                thread.shard.has_outgoing(),
                thread.front.conns.iter().map(Conn::is_idle).collect::<Vec<_>>()
            );
        }
        let parcels: Vec<usize> = self.rings.iter().map(VecDeque::len).collect();
        eprintln!("rings {parcels:?}");
    }

    /// What the shards hold together. None: something is on loan, or held back.
    pub fn whole(&self) -> Option<State> {
        if !self.threads.iter().all(|thread| thread.as_ref().is_some_and(|thread| thread.shard.is_quiet())) {
            return None;
        }
        let map = SlotMap::new(self.threads.len());
        Some(dump(self.slices()?, |index, key| {
            assert_eq!(usize::from(map.shard_of(key)), index, "law 1: a key with a stranger");
        }))
    }

    fn slices(&self) -> Option<Vec<&Keyspace>> {
        self.threads.iter().map(|thread| thread.as_ref()?.shard.keyspace()).collect()
    }

    /// What one shard holds. None: some of it is on loan, or held back.
    pub fn part(&self, id: usize) -> Option<State> {
        let thread = self.threads[id].as_ref().filter(|thread| thread.shard.is_quiet())?;
        Some(dump([thread.shard.keyspace()?], |_, _| {}))
    }

    /// Which of a state's keys a shard owns.
    pub fn own_part(&self, id: usize, state: &State) -> State {
        let map = SlotMap::new(self.threads.len());
        let mut part = state.clone();
        for db in &mut part.dbs {
            db.retain(|key, _| usize::from(map.shard_of(key)) == id);
        }
        part
    }

    /// Whether every effect so far is in the log, and every further one will be.
    pub fn is_streamed(&mut self) -> bool {
        let is_taken = self.threads.iter().flatten().all(|thread| thread.phase != Phase::Ran);
        let streams = self.slices().is_some_and(|slices| slices.iter().all(|slice| slice.stream));
        is_taken && streams && self.is_merged()
    }

    /// Whether every ticket is in the log.
    fn is_merged(&mut self) -> bool {
        let tickets = self.counters.sequencer.next_ticket();
        self.hub().home.next_ticket() == tickets
    }

    /// If every ticket is in the log now, then what was answered so far is.
    pub fn note_merged(&mut self, env: &Env) {
        if self.is_merged() && self.hub().is_captured() {
            self.merged_until = env.clock;
        }
    }
}

/// One shard's ends of the rings.
struct Rings<'a> {
    process: &'a mut Process,
    from: usize,
    env: &'a mut Env,
}

impl Outlet for Rings<'_> {
    fn has_room(&self, to: ShardId) -> bool {
        let shards = self.process.threads.len();
        self.process.rings[self.from * shards + usize::from(to)].len() < self.process.ring_len
    }

    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        let shards = self.process.threads.len();
        let ring_len = self.process.ring_len;
        let ring = &mut self.process.rings[self.from * shards + usize::from(to)];
        if ring.len() == ring_len {
            return Err(parcel);
        }
        ring.push_back(parcel);
        // The receiver may be faster than this shard's next instruction.
        self.process.interrupt(self.env);
        Ok(())
    }
}
