//! The replication protocol's commands: `REPLCONF`, `PSYNC`, `SYNC`, `ROLE`. What they mean is decided in
//! `braid_replication`; here they meet a connection.

use super::{Call, Session};
use crate::engine::Front;
use crate::engine::follower::request_role;
use crate::engine::parts::PartSession;
use braid_core::command::Error;
use braid_core::resp::number::parse_i64;
use braid_replication::acks::ReplicaId;
use braid_replication::failover::Request;
use braid_replication::follower::{Asker, RoleRequest};
use braid_replication::link::{LinkState, Target};
use braid_replication::psync::{Replconf, Replica};

/// A connection that is, or is about to become, a replica.
#[derive(Default)]
pub struct ReplicaSession {
    pub handshake: Replica,
    /// Once it is one.
    pub id: Option<ReplicaId>,
    /// The words of a `PSYNC` (None: `SYNC`) that the home shard has to answer: the connection is moving there.
    pub moving: Option<Option<Vec<Vec<u8>>>>,
    /// It carries a part of a snapshot for a replica, or is to.
    pub part: Option<PartSession>,
    /// The send under way carries the stream or a snapshot.
    pub is_fed: bool,
}

/// `REPLCONF option value …`
pub fn replconf(call: &mut Call<'_>) -> Result<(), Error> {
    let now_ms = call.front.now_ms();
    let replica = call.conn.session.replica.get_or_insert_default();
    let args = &call.args[1..];
    if let Some(id) = replica.id {
        if let Some(home) = &mut call.front.home {
            home.replconf(id, args, now_ms);
        }
        return Ok(());
    }
    match replica.handshake.replconf(args) {
        Replconf::Ok => call.out.ok(),
        Replconf::Error(text) => return Err(Error::owned(text)),
        Replconf::Part { token, index } => return call.front.begin_part(call.conn, token, index),
        Replconf::Ack { .. } | Replconf::GetAck | Replconf::Nothing => {}
    }
    Ok(())
}

/// `FAILOVER [TO host port [FORCE]] [ABORT] [TIMEOUT milliseconds]`
pub fn failover(call: &mut Call<'_>) -> Result<(), Error> {
    let words: Vec<&[u8]> = call.args[1..].to_vec();
    let request = Request::parse(&words).map_err(Error::text)?;
    call.front.ask_for_failover(call.conn, request);
    Ok(())
}

/// `PSYNC replicationid offset`
pub fn psync(call: &mut Call<'_>) -> Result<(), Error> {
    let words: Vec<Vec<u8>> = call.args[1..].iter().map(|arg| arg.to_vec()).collect();
    become_replica(call, Some(words))
}

/// `SYNC`
pub fn sync(call: &mut Call<'_>) -> Result<(), Error> {
    become_replica(call, None)
}

fn become_replica(call: &mut Call<'_>, words: Option<Vec<Vec<u8>>>) -> Result<(), Error> {
    let replica = call.conn.session.replica.get_or_insert_default();
    if replica.id.is_some() {
        return Ok(());
    }
    if call.conn.sending || !call.out.is_empty() || replica.part.is_some() {
        return Err(Error::text("ERR SYNC and PSYNC are invalid with pending output"));
    }
    if call.front.home.is_none() {
        // Only the home shard has the stream: the connection moves there and asks again.
        replica.moving = Some(words);
        call.conn.waiting = true;
        call.front.ring.detach(call.conn.token);
        return Ok(());
    }
    call.front.attach_replica(call.conn, words)
}

impl Front {
    /// Makes a connection of the home shard a replica.
    pub fn attach_replica(
        &mut self,
        conn: &mut crate::engine::Conn,
        words: Option<Vec<Vec<u8>>>,
    ) -> Result<(), Error> {
        let now_ms = self.now_ms();
        if self.takes_over(conn, words.as_deref()) {
            return Ok(());
        }
        let home = self.home.as_mut().expect("on the home shard");
        let replica = conn.session.replica.get_or_insert_default();
        let words: Option<Vec<&[u8]>> = words.as_ref().map(|words| words.iter().map(Vec::as_slice).collect());
        let ip = peer_ip(self.ring.socket(conn.token));
        let id =
            home.attach(replica.handshake.clone(), &ip, words.as_deref(), now_ms).map_err(Error::owned)?;
        replica.id = Some(id);
        self.replicas.insert(id, conn.token);
        self.set_up_replica(conn);
        let replica = conn.session.replica.get_or_insert_default();
        crate::log_notice!("Replica {ip}:{} asks for synchronization", replica.handshake.address("").1);
        Ok(())
    }
}

impl Front {
    /// Whether a `PSYNC` is our master's, which wants this node in its place. It is answered when this node is a master.
    fn takes_over(&mut self, conn: &mut crate::engine::Conn, words: Option<&[Vec<u8>]>) -> bool {
        let Some(words) = words else { return false };
        let list: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let home = self.home.as_ref().expect("on the home shard");
        if !home.is_asked_to_take_over(&list) {
            return false;
        }
        crate::log_notice!("Failover request received from the master: taking over");
        conn.waiting = true;
        let words = words[..2].to_vec();
        request_role(self, RoleRequest { master: None, answer: Some(Asker::Heir(conn.id, words)) });
        true
    }
}

impl Session {
    /// Whether the connection is a replica's, so that nothing but the stream may be sent on it.
    pub fn is_replica(&self) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.id.is_some()) || self.carries_part()
    }

    /// Whether the connection carries a part of a snapshot for a replica.
    pub fn carries_part(&self) -> bool {
        let part = self.replica.as_ref().and_then(|replica| replica.part.as_ref());
        part.is_some_and(PartSession::is_taken)
    }
}

impl Front {
    /// A connection sent something.
    #[inline]
    pub fn heard(&mut self, session: &Session) {
        let now_ms = self.now_ms();
        if let Some(id) = session.replica.as_ref().and_then(|replica| replica.id)
            && let Some(home) = &mut self.home
        {
            home.heard(id, now_ms);
        }
    }
}

/// The address a socket's peer has; empty for unix sockets.
pub fn peer_ip(socket: Option<std::os::fd::BorrowedFd<'_>>) -> String {
    socket
        .and_then(crate::startup::sockets::peer_address)
        .map_or_else(String::new, |address| address.ip().to_string())
}

/// `REPLICAOF host port`, `REPLICAOF NO ONE`. The answer comes when the new role is in effect, so that whoever has it finds
/// a replica read-only, or a master that takes writes.
pub fn replicaof(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let master = if args.is(1, "no") && args.is(2, "one") {
        None
    } else {
        let port = parse_i64(args[2]).and_then(|port| u16::try_from(port).ok());
        let port = port.ok_or(Error::text("ERR Invalid master port"))?;
        let host = String::from_utf8_lossy(args[1]).into_owned();
        // It is written to the configuration file, word by word.
        if host.is_empty() || host.contains(|char: char| char.is_whitespace() || char.is_control()) {
            return Err(Error::text("ERR Invalid master host"));
        }
        Some(Target { host, port })
    };
    let has_refused = || {
        let upstream = call.front.node.upstream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        upstream.as_ref().is_some_and(|upstream| upstream.has_refused)
    };
    let is_same = master.is_some() && call.front.node.config.snapshot().replicaof.0 == master;
    if is_same && !has_refused() {
        call.out.simple("OK Already connected to specified master");
        return Ok(());
    }
    let state = call.front.node.failover_state();
    if !state.is_empty() && state != "no-failover" {
        return Err(Error::text("ERR REPLICAOF not allowed while failing over."));
    }
    // Within a transaction there is no later.
    let is_later = !call.conn.waiting;
    let answer = is_later.then_some(Asker::Client(call.front.id, call.conn.id));
    if is_later {
        call.conn.waiting = true;
    } else {
        call.out.ok();
    }
    request_role(call.front, RoleRequest { master, answer });
    Ok(())
}

/// `ROLE`
pub fn role(call: &mut Call<'_>) -> Result<(), Error> {
    let node = &call.front.node;
    let out = &mut *call.out;
    if node.is_replica() {
        let upstream = node.upstream.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let config = node.config.snapshot();
        let (host, port) =
            config.replicaof.0.as_ref().map_or(("", 0), |master| (master.host.as_str(), master.port));
        let state = upstream.as_ref().map_or(LinkState::Connect, |upstream| upstream.link.state);
        let offset = match state {
            LinkState::Connected => node.applied_offset.load(std::sync::atomic::Ordering::Relaxed) as i64,
            _ => -1,
        };
        out.array(5);
        out.bulk(b"slave");
        out.bulk(host.as_bytes());
        out.int(i64::from(port));
        out.bulk(state.name().as_bytes());
        out.int(offset);
        return Ok(());
    }
    let report = node.replication.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    out.array(3);
    out.bulk(b"master");
    out.int(node.end_offset() as i64);
    let online: Vec<_> = report.replicas.iter().filter_map(|line| line.role.as_ref()).collect();
    out.array(online.len());
    for words in online {
        out.array(words.len());
        words.iter().for_each(|word| out.bulk(word.as_bytes()));
    }
    Ok(())
}
