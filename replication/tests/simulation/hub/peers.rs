//! The connections that replicas made.

use super::{Errand, Hub};
use crate::env::Env;
use braid_core::resp::parse::{Arg, ParseLimits, Parsed, Parser};
use braid_replication::acks::ReplicaId;
use braid_replication::follower::{Asker, RoleRequest};
use braid_replication::psync::{Replconf, Replica};
use braid_shards::ConnId;

/// A connection that a replica made.
#[derive(Default)]
pub(super) struct Peer {
    input: Vec<u8>,
    handshake: Replica,
    replica: Option<ReplicaId>,
    /// Its `PSYNC` is answered when this node is a master.
    is_heir: bool,
}

impl Hub {
    pub(super) fn peer_sent(&mut self, conn: usize, bytes: Vec<u8>, now_ms: u64) {
        self.peers.entry(conn).or_default().input.extend(bytes);
        self.serve(conn, now_ms);
    }

    pub(super) fn peer_closed(&mut self, conn: usize) {
        if let Some(replica) = self.peers.remove(&conn).and_then(|peer| peer.replica) {
            self.sending.remove(&replica);
            self.home.detach(replica);
        }
    }

    /// Who asked this node to take over is answered, now that it did.
    pub(super) fn serve_heir(&mut self, conn: usize, words: &[Vec<u8>], now_ms: u64) {
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        self.attach(conn, &words, now_ms);
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.is_heir = false;
            self.serve(conn, now_ms);
        }
    }

    /// Handles what a replica's connection has sent.
    fn serve(&mut self, conn: usize, now_ms: u64) {
        let limits = ParseLimits { max_bulk_len_bytes: 1 << 20, authenticated: true };
        loop {
            let peer = self.peers.get_mut(&conn).expect("it sent something");
            let mut parser = Parser::new();
            let parsed = parser.parse(&peer.input, &limits).expect("valid requests");
            let Parsed::Command { len } = parsed else { return };
            if peer.is_heir {
                return;
            }
            let base = parser.base(&peer.input[..len]);
            let words: Vec<Vec<u8>> = parser
                .args()
                .iter()
                .map(|arg| match arg {
                    Arg::Range { start, len } => base[*start as usize..][..*len as usize].to_vec(),
                    Arg::Big(value) => value.to_vec(),
                })
                .collect();
            peer.input.drain(..len);
            let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let mut reply = |text: &[u8]| self.outbox.push(Errand::ToPeer(conn, text.to_vec()));
            match (args.first().copied(), peer.replica) {
                (None, Some(id)) => self.home.heard(id, now_ms),
                (None, None) => {}
                (Some(_), Some(id)) => {
                    self.home.heard(id, now_ms);
                    self.home.replconf(id, &args[1..], now_ms);
                }
                (Some(b"PING"), None) => reply(b"+PONG\r\n"),
                (Some(b"REPLCONF"), None) => match peer.handshake.replconf(&args[1..]) {
                    Replconf::Ok => reply(b"+OK\r\n"),
                    other => panic!("{other:?}"),
                },
                (Some(b"PSYNC"), None) if self.follower.is_restoring() => {
                    reply(b"-LOADING Redis is loading the dataset in memory\r\n");
                }
                (Some(b"PSYNC"), None) if self.home.is_asked_to_take_over(&args[1..]) => {
                    peer.is_heir = true;
                    let answer = Some(Asker::Heir(ConnId(conn as u64), words[1..3].to_vec()));
                    self.follower.request(RoleRequest { master: None, answer });
                }
                (Some(b"PSYNC"), None) => self.attach(conn, &args[1..], now_ms),
                (Some(other), None) => panic!("{}", other.escape_ascii()),
            }
        }
    }

    fn attach(&mut self, conn: usize, words: &[&[u8]], now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&conn) else { return };
        match self.home.attach(peer.handshake.clone(), "ip", Some(words), now_ms) {
            Ok(id) => peer.replica = Some(id),
            Err(error) => {
                self.outbox.push(Errand::ToPeer(conn, format!("-{error}\r\n").into_bytes()));
            }
        }
    }

    pub(super) fn close_peer(&mut self, env: &Env, replica: ReplicaId, why: &str) {
        if env.is_loud {
            eprintln!("replica {replica:?} is to go: {why}");
        }
        match self.peers.iter().find(|(_, peer)| peer.replica == Some(replica)) {
            Some((conn, _)) => self.outbox.push(Errand::ClosePeer(*conn)),
            None => {
                let is_stock = self.links.iter().any(|link| link.id == replica);
                assert!(!is_stock, "a link is to be closed: {why}");
            }
        }
    }

    /// Sends them what there is for them, or completes a send.
    pub(super) fn feed_peers(&mut self, env: &mut Env) {
        let now_ms = env.now_ms();
        for (conn, peer) in &self.peers {
            let Some(id) = peer.replica.filter(|_| env.rng.bool()) else { continue };
            if self.sending.remove(&id) {
                self.home.sent(id, now_ms);
                continue;
            }
            let mut pieces = Vec::new();
            if self.home.next_send(id, &mut pieces) {
                self.outbox.push(Errand::ToPeer(*conn, pieces.concat()));
                self.sending.insert(id);
            }
        }
    }
}
