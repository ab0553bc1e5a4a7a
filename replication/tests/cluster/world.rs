//! The nodes and the network between them.

use crate::dataset::Dataset;
use crate::node::{DATABASES, Errand, Node};
use braid_core::resp::parse::{Arg, BIG_BULK_LEN_BYTES, ParseLimits, Parsed, Parser};
use braid_replication::acks::ReplicaId;
use braid_replication::ids::ReplId;
use braid_replication::psync::{Replconf, Replica};
use std::collections::{BTreeMap, VecDeque};

/// Steps within which a healed cluster must be equal: far more than any takes.
const HEAL_STEPS_MAX: usize = 200_000;

/// A connection from a replica's link to its master.
struct Conn {
    from: usize,
    to: usize,
    is_accepted: bool,
    /// Bytes on their way to the master, and to the replica.
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    /// At the master.
    input: Vec<u8>,
    handshake: Replica,
    replica: Option<ReplicaId>,
}

/// See the module.
pub struct World {
    rng: fastrand::Rng,
    nodes: Vec<Node>,
    conns: Vec<Conn>,
    now_ms: u64,
    /// A step takes less than this.
    step_max_ms: u64,
    backlog_bytes: u64,
    written: u64,
    /// What the master of a history held at an offset.
    truth: BTreeMap<(String, u64), Dataset>,
    /// Positions that were compared with it.
    pub checks: u64,
    lost_syncs: [u64; 2],
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let backlog_bytes = [300, 3_000, 1 << 20][rng.usize(..3)];
        let nodes = (0..rng.usize(2..6)).map(|_| Node::new(rng.u64(..), backlog_bytes)).collect();
        Self {
            rng,
            nodes,
            conns: Vec::new(),
            now_ms: 1_000_000,
            step_max_ms: 40,
            backlog_bytes,
            written: 0,
            truth: BTreeMap::new(),
            checks: 0,
            lost_syncs: [0; 2],
        }
    }

    pub fn run(&mut self) {
        for _ in 0..self.rng.usize(1000..10_000) {
            let node = self.rng.usize(..self.nodes.len());
            match self.rng.u16(..1000) {
                0..4 => self.change_role(node),
                4 => self.kill(node),
                5..12 if !self.conns.is_empty() => {
                    let conn = self.rng.usize(..self.conns.len());
                    self.break_conn(conn);
                }
                12..60 => self.write(node),
                _ => self.step(node),
            }
            self.check();
        }
    }

    fn write(&mut self, node: usize) {
        self.written += 1;
        let (db, key) = (self.rng.u16(..DATABASES), format!("key{}", self.rng.u8(..5)));
        // Some are long enough to be put together apart from the stream; links break within them.
        let is_long = self.rng.u16(..1000) == 0;
        let tail = if is_long { ".".repeat(BIG_BULK_LEN_BYTES) } else { String::new() };
        let text = format!("{}.{tail}", self.written);
        self.nodes[node].write(db, &key, &text);
    }

    fn change_role(&mut self, node: usize) {
        let other = self.rng.usize(..self.nodes.len());
        let target = (other != node && self.rng.u8(..4) > 0).then_some(other);
        self.follow(node, target);
    }

    fn follow(&mut self, node: usize, target: Option<usize>) {
        self.break_link(node);
        self.nodes[node].follow(target, self.now_ms);
        self.run_errands(node);
    }

    /// A node starts over, empty.
    fn kill(&mut self, node: usize) {
        while let Some(conn) = self.conns.iter().position(|conn| conn.from == node || conn.to == node) {
            self.break_conn(conn);
        }
        let report = self.nodes[node].home.report(self.now_ms);
        self.lost_syncs[0] += report.full_syncs;
        self.lost_syncs[1] += report.partial_syncs;
        let target = self.nodes[node].link.as_ref().map(|link| link.target().host.parse().expect("a node"));
        self.nodes[node] = Node::new(self.rng.u64(..), self.backlog_bytes);
        self.nodes[node].follow(target, self.now_ms);
    }

    /// Both ends notice.
    fn break_conn(&mut self, conn: usize) {
        let Conn { from, to, replica, .. } = self.conns.swap_remove(conn);
        if let Some(replica) = replica {
            self.nodes[to].home.detach(replica);
        }
        if let Some(link) = &mut self.nodes[from].link {
            link.closed("cut", self.now_ms);
        }
        self.run_errands(from);
        self.run_errands(to);
    }

    /// The link's end closes.
    fn break_link(&mut self, node: usize) {
        while let Some(conn) = self.conns.iter().position(|conn| conn.from == node) {
            let Conn { to, replica, .. } = self.conns.swap_remove(conn);
            if let Some(replica) = replica {
                self.nodes[to].home.detach(replica);
            }
            self.run_errands(to);
        }
    }

    /// Something small happens at a node or near it.
    fn step(&mut self, node: usize) {
        self.now_ms += self.rng.u64(..self.step_max_ms);
        match self.rng.u8(..4) {
            0 => {
                self.nodes[node].tick(self.now_ms);
                self.send_to_replicas(node);
            }
            1 => {
                let is_lazy = self.rng.bool();
                self.nodes[node].work(is_lazy, self.now_ms);
            }
            _ if !self.conns.is_empty() => {
                let conn = self.rng.usize(..self.conns.len());
                self.deliver(conn);
            }
            _ => {}
        }
        self.run_errands(node);
    }

    fn send_to_replicas(&mut self, node: usize) {
        let home = &mut self.nodes[node].home;
        let idle: Vec<ReplicaId> = home.idle_replicas().collect();
        for id in idle {
            let mut out = Vec::new();
            if home.next_send(id, &mut out) {
                let is_its = |conn: &&mut Conn| conn.to == node && conn.replica == Some(id);
                let conn = self.conns.iter_mut().find(is_its).expect("it is connected");
                conn.down.extend(out.iter().flatten());
                home.sent(id, self.now_ms);
            }
        }
    }

    /// Some bytes arrive, in either direction.
    fn deliver(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let (from, to) = (conn.from, conn.to);
        if !std::mem::replace(&mut conn.is_accepted, true) {
            let position = self.nodes[from].home.position();
            let link = self.nodes[from].link.as_mut().expect("it asked for the connection");
            link.connected(position, self.now_ms);
            return self.run_errands(from);
        }
        if self.rng.bool() {
            let len = self.rng.usize(..=conn.up.len());
            conn.input.extend(conn.up.drain(..len));
            self.serve(index);
            self.run_errands(to);
        } else {
            // What is long is on its way for a few steps only.
            let most_bytes = if conn.down.len() > 10_000 { 40_000 } else { 200 };
            let len = self.rng.usize(..=conn.down.len().min(most_bytes));
            let bytes: Vec<u8> = conn.down.drain(..len).collect();
            if let Some(link) = self.nodes[from].link.as_mut().filter(|_| !bytes.is_empty()) {
                link.received(&bytes, self.now_ms);
            }
            self.run_errands(from);
        }
    }

    /// The master's end handles what has arrived.
    fn serve(&mut self, index: usize) {
        let limits = ParseLimits { max_bulk_len_bytes: 1 << 20, authenticated: true };
        let conn = &mut self.conns[index];
        let home = &mut self.nodes[conn.to].home;
        loop {
            let mut parser = Parser::new();
            let Parsed::Command { len } = parser.parse(&conn.input, &limits).expect("valid requests") else {
                return;
            };
            let base = parser.base(&conn.input[..len]);
            let words: Vec<Vec<u8>> = parser
                .args()
                .iter()
                .map(|arg| match arg {
                    Arg::Range { start, len } => base[*start as usize..][..*len as usize].to_vec(),
                    Arg::Big(value) => value.to_vec(),
                })
                .collect();
            conn.input.drain(..len);
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            match (words.first().copied(), conn.replica) {
                (None, Some(id)) => home.heard(id, self.now_ms),
                (None, None) => {}
                (Some(_), Some(id)) => home.replconf(id, &words[1..], self.now_ms),
                (Some(b"PING"), None) => conn.down.extend(b"+PONG\r\n"),
                (Some(b"REPLCONF"), None) => match conn.handshake.replconf(&words[1..]) {
                    Replconf::Ok => conn.down.extend(b"+OK\r\n"),
                    other => panic!("{other:?}"),
                },
                (Some(b"PSYNC"), None) => {
                    let asked = home.attach(conn.handshake.clone(), "ip", Some(&words[1..]), self.now_ms);
                    match asked {
                        Ok(id) => conn.replica = Some(id),
                        Err(error) => conn.down.extend(format!("-{error}\r\n").into_bytes()),
                    }
                }
                (Some(other), None) => panic!("{}", other.escape_ascii()),
            }
        }
    }

    fn run_errands(&mut self, node: usize) {
        loop {
            let errands = self.nodes[node].errands(self.now_ms);
            if errands.is_empty() {
                return;
            }
            for errand in errands {
                match errand {
                    Errand::Connect { to } => self.conns.push(Conn {
                        from: node,
                        to,
                        is_accepted: false,
                        up: VecDeque::new(),
                        down: VecDeque::new(),
                        input: Vec::new(),
                        handshake: Replica::default(),
                        replica: None,
                    }),
                    Errand::Send(bytes) => {
                        if let Some(conn) = self.conns.iter_mut().find(|conn| conn.from == node) {
                            conn.up.extend(bytes);
                        }
                    }
                    Errand::CloseLink => self.break_link(node),
                    Errand::CloseReplica(id) => {
                        let its =
                            self.conns.iter().position(|conn| conn.to == node && conn.replica == Some(id));
                        if let Some(conn) = its {
                            self.break_conn(conn);
                        }
                    }
                }
            }
        }
    }

    /// Masters say what their history holds; whoever is at a position must hold that.
    fn check(&mut self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let Some((id, offset)) = node.position() else { continue };
            let position = (id.to_string(), offset);
            if !node.home.is_replica() {
                let former = self.truth.insert(position, node.data.clone());
                assert!(former.is_none_or(|data| data == node.data), "node {index}: two truths at {offset}");
            } else if let Some(data) = self.truth.get(&position) {
                self.checks += 1;
                assert_eq!(*data, node.data, "node {index} at {id}:{offset}");
            }
        }
    }

    /// Makes a tree of the nodes and lets them come to rest, equal.
    pub fn heal(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        self.rng.shuffle(&mut order);
        self.follow(order[0], None);
        for (at, node) in order.iter().enumerate().skip(1) {
            let above = order[self.rng.usize(..at)];
            self.follow(*node, Some(above));
        }
        // Now and then everything has arrived before the next PING.
        self.step_max_ms = 4;
        for _ in 0..20 {
            self.write(order[0]);
        }
        for step in 0.. {
            assert!(step < HEAL_STEPS_MAX, "it does not come to rest: {:#?}", self.shown());
            let node = self.rng.usize(..self.nodes.len());
            self.step(node);
            self.check();
            if self.is_equal(order[0]) {
                break;
            }
        }
        let master = order[0];
        for node in 0..self.nodes.len() {
            assert_eq!(self.nodes[node].data, self.nodes[master].data, "node {node} after healing");
            assert_eq!(self.tail(node), self.tail(master), "law 6: node {node} has other bytes");
        }
    }

    /// Whether every link is up and everything is applied everywhere.
    fn is_equal(&self, master: usize) -> bool {
        let end: Option<(ReplId, u64)> = self.nodes[master].position();
        self.nodes.iter().enumerate().all(|(index, node)| {
            let is_up = index == master || node.link.as_ref().is_some_and(|link| link.is_up());
            is_up && node.position() == end
        })
    }

    /// Where every node stands, for whoever looks into a failure.
    fn shown(&self) -> Vec<String> {
        let line = |(index, node): (usize, &Node)| {
            let link = node.link.as_ref().map(|link| (link.target().host.clone(), link.state()));
            let report = node.home.report(self.now_ms);
            let replicas: Vec<_> = report.replicas.iter().map(|line| line.info.clone()).collect();
            format!("{index}: {link:?} {} {} {replicas:?}", report.id, report.end_offset)
        };
        self.nodes.iter().enumerate().map(line).collect()
    }

    /// The last bytes of a node's log, as many as all have.
    fn tail(&mut self, node: usize) -> Vec<u8> {
        let first = self.nodes.iter().map(|node| node.home.report(0).first_byte).max().expect("nodes");
        let mut slices = Vec::new();
        self.nodes[node].home.log().slices(first - 1, u64::MAX, usize::MAX, &mut slices);
        slices.concat()
    }

    pub fn full_syncs(&self) -> u64 {
        self.lost_syncs[0] + self.nodes.iter().map(|node| node.home.report(0).full_syncs).sum::<u64>()
    }

    pub fn partial_syncs(&self) -> u64 {
        self.lost_syncs[1] + self.nodes.iter().map(|node| node.home.report(0).partial_syncs).sum::<u64>()
    }
}
