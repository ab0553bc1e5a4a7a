//! The replication protocol's commands: `REPLCONF`, `PSYNC`, `SYNC`, `ROLE`. What they mean is decided in
//! `braid_replication`; here they meet a connection.

use super::{Call, Session};
use crate::engine::Front;
use braid_core::command::Error;
use braid_replication::acks::ReplicaId;
use braid_replication::psync::{Replconf, Replica};

/// A connection that is, or is about to become, a replica.
#[derive(Default)]
pub struct ReplicaSession {
    pub handshake: Replica,
    /// Once it is one.
    pub id: Option<ReplicaId>,
    /// The words of a `PSYNC` (None: `SYNC`) that the home shard has to answer: the connection is moving there.
    pub moving: Option<Option<Vec<Vec<u8>>>>,
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
        Replconf::Ack { .. } | Replconf::GetAck | Replconf::Nothing => {}
    }
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
    if call.conn.sending || !call.out.is_empty() {
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

impl Session {
    /// Whether the connection is a replica's, so that nothing but the stream may be sent on it.
    pub fn is_replica(&self) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.id.is_some())
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

/// `ROLE`
pub fn role(call: &mut Call<'_>) -> Result<(), Error> {
    let report =
        call.front.node.replication.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let out = &mut *call.out;
    out.array(3);
    out.bulk(b"master");
    out.int(call.front.node.end_offset() as i64);
    let online: Vec<_> = report.replicas.iter().filter_map(|line| line.role.as_ref()).collect();
    out.array(online.len());
    for words in online {
        out.array(words.len());
        words.iter().for_each(|word| out.bulk(word.as_bytes()));
    }
    Ok(())
}
