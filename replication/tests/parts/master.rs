//! The master: a home, shards in outline, and what its layer around does.

use crate::{Keys, Network};
use braid_core::command::Segment;
use braid_core::rdb::{Writer, kind};
use braid_replication::acks::ReplicaId;
use braid_replication::home::{Action, Home, PartsPlan, Piece, Rules};
use braid_replication::log::ReaderLimits;
use braid_replication::parts::outlet::Outlet;
use braid_replication::psync::{Replconf, Replica};
use braid_replication::sharing::Policy;
use braid_shards::Mark;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// What a connection is to the master.
#[derive(Default)]
struct Peer {
    input: Vec<u8>,
    handshake: Replica,
    replica: Option<ReplicaId>,
    /// The part that it carries, and once the snapshot is about to be cut what is sent of it.
    part: Option<(ReplicaId, usize)>,
    outlet: Option<Outlet>,
}

/// A snapshot that the shards walk.
struct Walk {
    snapshot: u64,
    plan: Option<PartsPlan>,
    /// By shard.
    pieces: Vec<VecDeque<Piece>>,
    /// The ticket of its cut and what it holds, until it is merged.
    ticket: Option<(u64, Keys)>,
}

pub struct Master {
    pub home: Home,
    shards: usize,
    next_ticket: u64,
    keys: Keys,
    /// What was there at each cut, by its offset in the stream.
    pub cuts: BTreeMap<u64, Keys>,
    walk: Option<Walk>,
    peers: BTreeMap<u64, Peer>,
}

impl Master {
    pub fn new(shards: usize, seed: u64, waits: bool) -> Self {
        let rules = Rules {
            backlog_bytes: 1 << 20,
            backlog_disk_bytes: 0,
            backlog_ttl_ms: 0,
            protects: false,
            ping_period_ms: 1000,
            timeout_ms: 5000,
            sharing: Policy { is_diskless: true, delay_ms: if waits { 300 } else { 0 }, max_replicas: 0 },
            limits: ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 },
            compress: false,
            checksum: true,
        };
        Self {
            home: Home::new(shards, rules, seed),
            shards,
            next_ticket: 0,
            keys: Keys::new(),
            cuts: BTreeMap::new(),
            walk: None,
            peers: BTreeMap::new(),
        }
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    pub fn write(&mut self, rng: &mut fastrand::Rng) {
        let key = format!("key:{}", rng.u32(..));
        if self.home.is_followed() {
            let ticket = self.take_ticket();
            let effect = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
            self.home.segment(ticket, Segment::of(0, effect.into()), None);
        }
        self.keys.insert(key);
    }

    /// One round.
    pub fn work(&mut self, network: &mut Network, rng: &mut fastrand::Rng, now_ms: u64) {
        if self.home.next_tick_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.home.tick(now_ms);
        }
        for action in self.home.take_actions() {
            match action {
                Action::Cut { snapshot, .. } => self.cut(snapshot, rng),
                Action::Abort { snapshot } => {
                    self.walk.take_if(|walk| walk.snapshot == snapshot);
                }
                Action::Close { replica, .. } => self.close(network, |peer| peer.replica == Some(replica)),
                Action::EndParts { replica } => {
                    self.close(network, |peer| peer.part.is_some_and(|(of, _)| of == replica));
                }
                other => panic!("nobody wants {other:?}"),
            }
        }
        self.walk(rng);
        self.send(network, rng, now_ms);
    }

    fn close(&mut self, network: &mut Network, which: impl Fn(&Peer) -> bool) {
        for (id, _) in self.peers.iter().filter(|(_, peer)| which(peer)) {
            network.cut(*id);
        }
    }

    /// The cut: what it holds is what was written up to its ticket.
    fn cut(&mut self, snapshot: u64, rng: &mut fastrand::Rng) {
        let plan = self.home.parts_plan(snapshot);
        if let Some(plan) = &plan {
            for (replica, count) in &plan.members {
                for peer in
                    self.peers.values_mut().filter(|peer| peer.part.is_some_and(|(of, _)| of == *replica))
                {
                    let (_, part) = peer.part.expect("just seen");
                    let feeders = PartsPlan::feeders(part, *count, self.shards);
                    let window_bytes = PartsPlan::window_bytes_of(*count);
                    peer.outlet = Some(Outlet::new(plan.options, feeders, window_bytes, rng));
                }
            }
        }
        let mut pieces: Vec<VecDeque<Piece>> = (0..self.shards).map(|_| VecDeque::new()).collect();
        for key in &self.keys {
            let mut writer = Writer::new(self.home.writer_options());
            writer.select_db(0);
            writer.key(kind::STRING, key.as_bytes());
            writer.string(b"value");
            let (bytes, checksum) = writer.take_piece();
            let piece = Piece { chunks: vec![bytes.into()], checksum, is_last: false };
            pieces[rng.usize(..self.shards)].push_back(piece);
        }
        pieces.iter_mut().for_each(|pieces| pieces.push_back(Piece::end()));
        let ticket = Some((self.take_ticket(), self.keys.clone()));
        self.walk = Some(Walk { snapshot, plan, pieces, ticket });
        if rng.bool() {
            self.merge_cut();
        }
    }

    fn merge_cut(&mut self) {
        let Some(walk) = &mut self.walk else { return };
        let Some((ticket, keys)) = walk.ticket.take() else { return };
        let mark = Mark::Cut(walk.snapshot);
        // What was written since waits for it.
        self.cuts.insert(self.home.end_offset(), keys);
        self.home.segment(ticket, Segment::default(), Some(mark));
    }

    /// Some shards hand in some pieces.
    fn walk(&mut self, rng: &mut fastrand::Rng) {
        if rng.u8(..4) == 0 {
            self.merge_cut();
        }
        let Some(walk) = &mut self.walk else { return };
        for _ in 0..rng.usize(..20) {
            let shard = rng.usize(..self.shards);
            let Some(piece) = walk.pieces[shard].pop_front() else { continue };
            let Some(plan) = &walk.plan else {
                self.home.piece(walk.snapshot, piece);
                continue;
            };
            for (replica, count) in &plan.members {
                let its = Some((*replica, PartsPlan::part_of(shard, *count)));
                let peer = self.peers.values_mut().find(|peer| peer.part == its);
                if let Some(outlet) = peer.and_then(|peer| peer.outlet.as_mut()) {
                    outlet.piece(piece.clone());
                }
            }
            if piece.is_last {
                self.home.piece(walk.snapshot, Piece::end());
            }
        }
    }

    fn send(&mut self, network: &mut Network, rng: &mut fastrand::Rng, now_ms: u64) {
        for (id, peer) in &mut self.peers {
            let Some(wire) = network.wire(*id).filter(|_| rng.bool()) else { continue };
            let mut out: Vec<Bytes> = Vec::new();
            if let Some(replica) = peer.replica
                && self.home.next_send(replica, &mut out)
            {
                self.home.sent(replica, now_ms);
            }
            if let (Some((replica, part)), Some(outlet)) = (peer.part, &mut peer.outlet)
                && outlet.next_send(&mut out, now_ms)
                && let Some(len_bytes) = outlet.sent()
            {
                self.home.part_sent(replica, part, len_bytes);
            }
            wire.down.extend(out.iter().flatten());
        }
    }

    pub fn received(&mut self, id: u64, bytes: &[u8], network: &mut Network, now_ms: u64) {
        let peer = self.peers.entry(id).or_default();
        peer.input.extend_from_slice(bytes);
        while let Some(words) = take_command(&mut peer.input) {
            let args: Vec<&[u8]> = words[1..].iter().map(String::as_bytes).collect();
            let answer = match (words[0].as_str(), peer.replica) {
                ("PING", _) => "+PONG\r\n".to_owned(),
                ("REPLCONF", Some(replica)) => {
                    self.home.replconf(replica, &args, now_ms);
                    String::new()
                }
                ("REPLCONF", None) => match peer.handshake.replconf(&args) {
                    Replconf::Ok => "+OK\r\n".into(),
                    Replconf::Part { token, index } => match self.home.part_come(token, index, now_ms) {
                        Ok(replica) => {
                            peer.part = Some((replica, index));
                            "+OK\r\n".into()
                        }
                        Err(error) => format!("-{error}\r\n"),
                    },
                    other => panic!("{other:?}"),
                },
                ("PSYNC", None) => {
                    match self.home.attach(peer.handshake.clone(), "ip", Some(&args), now_ms) {
                        Ok(replica) => {
                            peer.replica = Some(replica);
                            String::new()
                        }
                        Err(error) => format!("-{error}\r\n"),
                    }
                }
                (other, _) => panic!("{other} comes unexpectedly"),
            };
            if let Some(wire) = network.wire(id) {
                wire.down.extend_from_slice(answer.as_bytes());
            }
        }
    }

    pub fn closed(&mut self, id: u64, now_ms: u64) {
        let Some(peer) = self.peers.remove(&id) else { return };
        if let Some(replica) = peer.replica {
            self.home.detach(replica);
        }
        if let Some((replica, part)) = peer.part {
            self.home.part_gone(replica, part, "it broke", now_ms);
        }
    }
}

/// The next command that has come whole.
fn take_command(input: &mut Vec<u8>) -> Option<Vec<String>> {
    while input.first() == Some(&b'\n') {
        input.remove(0);
    }
    let text = String::from_utf8(input.clone()).expect("text");
    let mut lines = text.split_inclusive("\r\n").filter(|line| line.ends_with('\n'));
    let header = lines.next()?;
    let count: usize = header.trim_end().strip_prefix('*').expect("an array").parse().expect("a number");
    let lines: Vec<&str> = lines.take(2 * count).collect();
    if lines.len() < 2 * count {
        return None;
    }
    let len = header.len() + lines.iter().map(|line| line.len()).sum::<usize>();
    let words = lines.chunks(2).map(|pair| pair[1].trim_end().to_owned()).collect();
    input.drain(..len);
    Some(words)
}
