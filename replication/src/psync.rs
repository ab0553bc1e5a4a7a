//! The master's side of the handshake with one replica: `REPLCONF`, `PSYNC`, `SYNC`, and the states that `INFO` names.
//!
//! ```text
//! Handshake --PSYNC in range--> Online
//!     |
//!     +--PSYNC, SYNC--> WaitBgsave --its snapshot is cut, or complete in a file--> SendBulk --last byte--> Online
//! ```
//! Which replicas share a snapshot is decided in [`crate::sharing`]; acknowledged offsets live in [`crate::acks`].

use bytes::Bytes;

use crate::acks::Acked;
use crate::ids::{Ids, ReplId};
use crate::log::Log;
use crate::parts::{Token, parse_capability};

/// Longest address a replica may announce.
const ADDRESS_BYTES_MAX: usize = 255;
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not a replica yet.
    Handshake,
    /// Waits for a snapshot that it can be sent.
    WaitBgsave,
    /// Receives a snapshot.
    SendBulk,
    /// Receives the stream.
    Online,
}

impl State {
    /// As in `INFO replication`.
    pub fn name(self) -> &'static str {
        match self {
            State::Handshake => "handshake",
            State::WaitBgsave => "wait_bgsave",
            State::SendBulk => "send_bulk",
            State::Online => "online",
        }
    }
}

/// What a replica can do (`REPLCONF capa`). Unknown ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Reads snapshots that end with a mark.
    pub eof: bool,
    /// Takes a new id from `+CONTINUE`.
    pub psync2: bool,
    /// Takes a snapshot in so many parts, see [`crate::parts`]; 0: in one piece only.
    pub parts: usize,
}

/// What a replica wants in its snapshot (`REPLCONF rdb-filter-only`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub without_data: bool,
    pub without_functions: bool,
}

impl Needs {
    fn is_filtered(self) -> bool {
        self.without_data || self.without_functions
    }
}

/// What to do about a `REPLCONF`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replconf {
    /// Reply `+OK`.
    Ok,
    /// Reply this error, which is without the leading `-`.
    Error(String),
    /// Give it to [`crate::acks::Acks::ack`]; no reply. If [`Replica::is_streaming`] turned true, start sending.
    Ack { offset: u64, durable_offset: Option<u64> },
    /// We are a replica and our master wants our offset now; no reply.
    GetAck,
    /// The connection is to carry a part of a snapshot, see [`crate::parts`]. The reply is for who sends the parts to give.
    Part { token: Token, index: usize },
    /// No reply.
    Nothing,
}

/// Our own link upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// We are a master.
    None,
    /// We are a replica and follow our master.
    Connected,
    /// We are a replica without a usable dataset.
    NotConnected,
}

/// What a decision about `PSYNC` depends on.
pub struct Master<'a> {
    pub ids: &'a Ids,
    pub log: &'a Log,
    pub upstream: Upstream,
    /// We are handing over to another node.
    pub is_failing_over: bool,
    /// We started empty and nobody confirmed that: who has data keeps it.
    pub is_protected: bool,
    /// The connection has replies that were not sent yet.
    pub has_pending_output: bool,
}

/// What to do about a `PSYNC` or `SYNC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sync {
    /// It is a replica already; no reply.
    Nothing,
    /// Reply this error, which is without the leading `-`.
    Refuse(String),
    /// Reply these bytes and send the stream from `position` on. The replica is online.
    Continue { reply: Bytes, position: u64 },
    /// Put the replica in for a snapshot; no reply yet. `is_fallback`: it had asked for a partial resync
    /// (`sync_partial_err`).
    Full { is_fallback: bool },
    /// `PSYNC … FAILOVER` from our master, which wants us in its place: become master, then call again without it.
    Promote,
}

/// One replica's connection, as its master sees it.
#[derive(Clone, Debug)]
pub struct Replica {
    state: State,
    capabilities: Capabilities,
    needs: Needs,
    is_rdb_only: bool,
    /// Began with `SYNC`: it knows no `+FULLRESYNC` and sends no acknowledgements.
    is_pre_psync: bool,
    /// The stream waits for the first acknowledgement: who reads up to a mark says so that it found it.
    starts_on_ack: bool,
    listening_port: u16,
    announced_address: Option<String>,
}

impl Default for Replica {
    fn default() -> Self {
        Replica {
            state: State::Handshake,
            capabilities: Capabilities::default(),
            needs: Needs::default(),
            is_rdb_only: false,
            is_pre_psync: false,
            starts_on_ack: false,
            listening_port: 0,
            announced_address: None,
        }
    }
}

impl Replica {
    pub fn state(&self) -> State {
        self.state
    }

    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Wants a snapshot and no stream (`redis-cli --rdb`): closed when it has it, and not shown as a replica.
    pub fn is_rdb_only(&self) -> bool {
        self.is_rdb_only
    }

    /// Whether it ever says what it has applied, and asks for the rest when it comes back.
    pub fn knows_psync(&self) -> bool {
        !self.is_pre_psync
    }

    /// Whether the stream may be sent.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Online && !self.starts_on_ack && !self.is_rdb_only
    }

    /// Whether its silence means something: `repl-timeout` applies.
    pub fn acknowledges(&self) -> bool {
        self.state == State::Online && !self.is_pre_psync
    }

    /// `REPLCONF` with `args` behind the name. Options before a faulty one take effect, as in Redis.
    pub fn replconf(&mut self, args: &[&[u8]]) -> Replconf {
        let (pairs, []) = args.as_chunks::<2>() else {
            return Replconf::Error("ERR syntax error".into());
        };
        for (i, [name, value]) in pairs.iter().enumerate() {
            let result = match name.to_ascii_lowercase().as_slice() {
                b"ack" => return self.ack(value, &args[i * 2 + 2..]),
                b"getack" => return Replconf::GetAck,
                b"sync-part" => return self.part(value, &args[i * 2 + 2..]),
                b"listening-port" => self.set_listening_port(value),
                b"ip-address" => self.set_address(value),
                b"capa" => {
                    self.add_capability(value);
                    Ok(())
                }
                b"version" => check_version(value),
                b"rdb-only" => self.set_rdb_only(value),
                b"rdb-filter-only" => self.set_filter(value),
                _ => Err(format!("ERR Unrecognized REPLCONF option: {}", text(name))),
            };
            if let Err(message) = result {
                return Replconf::Error(message);
            }
        }
        Replconf::Ok
    }

    fn ack(&mut self, value: &[u8], rest: &[&[u8]]) -> Replconf {
        let offset = number(value).and_then(|offset| u64::try_from(offset).ok());
        let (State::Online, Some(offset)) = (self.state, offset) else {
            return Replconf::Nothing;
        };
        self.starts_on_ack = false;
        let durable_offset = match rest {
            [name, value, ..] if name.eq_ignore_ascii_case(b"fack") => {
                number(value).and_then(|offset| u64::try_from(offset).ok())
            }
            _ => None,
        };
        Replconf::Ack { offset, durable_offset }
    }

    fn part(&self, token: &[u8], rest: &[&[u8]]) -> Replconf {
        let index = match rest {
            [name, index] if name.eq_ignore_ascii_case(b"index") => number(index),
            _ => None,
        };
        match (Token::parse(token), index.and_then(|index| usize::try_from(index).ok())) {
            (Some(token), Some(index)) if self.state == State::Handshake => Replconf::Part { token, index },
            _ => Replconf::Error("ERR syntax error".into()),
        }
    }

    fn set_listening_port(&mut self, value: &[u8]) -> Result<(), String> {
        let port = number(value).and_then(|port| u16::try_from(port).ok());
        self.listening_port = port.ok_or(NOT_AN_INTEGER)?;
        Ok(())
    }

    fn set_address(&mut self, value: &[u8]) -> Result<(), String> {
        if value.len() > ADDRESS_BYTES_MAX {
            return Err(format!(
                "ERR REPLCONF ip-address provided by replica instance is too long: {} bytes",
                value.len()
            ));
        }
        // It is printed in INFO, one replica a line.
        let is_printable = value.iter().all(u8::is_ascii_graphic);
        self.announced_address = (is_printable && !value.is_empty()).then(|| text(value));
        Ok(())
    }

    fn add_capability(&mut self, value: &[u8]) {
        self.capabilities.eof |= value.eq_ignore_ascii_case(b"eof");
        self.capabilities.psync2 |= value.eq_ignore_ascii_case(b"psync2");
        if let Some(parts) = parse_capability(value) {
            self.capabilities.parts = parts;
        }
    }

    fn set_rdb_only(&mut self, value: &[u8]) -> Result<(), String> {
        self.is_rdb_only = match number(value) {
            Some(0) => false,
            Some(1) => true,
            Some(_) => return Err("ERR value is out of range, value must between 0 and 1".into()),
            None => return Err(NOT_AN_INTEGER.into()),
        };
        Ok(())
    }

    fn set_filter(&mut self, value: &[u8]) -> Result<(), String> {
        let mut needs = Needs { without_data: true, without_functions: true };
        for word in value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            if !word.eq_ignore_ascii_case(b"functions") {
                return Err(format!("ERR Unsupported rdb-filter-only option: {}", text(word)));
            }
            needs.without_functions = false;
        }
        self.needs = needs;
        Ok(())
    }

    /// `SYNC`.
    pub fn sync(&mut self, master: &Master<'_>) -> Sync {
        if self.state != State::Handshake {
            return Sync::Nothing;
        }
        if let Err(message) = self.admit(master) {
            return Sync::Refuse(message);
        }
        self.is_pre_psync = true;
        self.state = State::WaitBgsave;
        Sync::Full { is_fallback: false }
    }

    /// `PSYNC` with `args` behind the name: the history the replica is on, `?` if on none, the byte, counted from 1,
    /// that it wants next, and perhaps `FAILOVER`.
    pub fn psync(&mut self, args: &[&[u8]], master: &Master<'_>) -> Sync {
        if self.state != State::Handshake {
            return Sync::Nothing;
        }
        let [id, next_byte, options @ ..] = args else {
            return Sync::Refuse("ERR wrong number of arguments for 'psync' command".into());
        };
        if let [option, ..] = options
            && option.eq_ignore_ascii_case(b"failover")
        {
            return failover(id, master);
        }
        if let Err(message) = self.admit(master) {
            return Sync::Refuse(message);
        }
        let Some(next_byte) = number(next_byte) else {
            return Sync::Refuse(NOT_AN_INTEGER.into());
        };
        let next_byte = u64::try_from(next_byte).unwrap_or(0);
        let is_ours = ReplId::parse(id).is_some_and(|id| master.ids.is_ours(id, next_byte));
        if is_ours && master.log.can_continue_with(next_byte) && !self.needs.is_filtered() {
            self.state = State::Online;
            let reply = if self.capabilities.psync2 {
                format!("+CONTINUE {}\r\n", master.ids.current())
            } else {
                "+CONTINUE\r\n".into()
            };
            return Sync::Continue { reply: reply.into(), position: next_byte - 1 };
        }
        let is_current = ReplId::parse(id) == Some(master.ids.current());
        if is_current && master.upstream == Upstream::Connected && self.is_ahead(next_byte, master.log) {
            // It followed somebody who is nearer to the top, and has what is on its way to us: it need not start over.
            return Sync::Refuse(
                "NOMASTERLINK Can't SYNC: what you ask for has not come from my master yet".into(),
            );
        }
        let is_fallback = *id != b"?";
        if is_fallback && master.is_protected {
            // The one error after which stock replicas keep their data and ask again.
            return Sync::Refuse(
                "NOMASTERLINK Can't SYNC: this master started empty and is protected from wiping its replicas"
                    .into(),
            );
        }
        self.state = State::WaitBgsave;
        Sync::Full { is_fallback }
    }

    /// Whether the replica is ahead of us by no more than a stream could be on its way.
    fn is_ahead(&self, next_byte: u64, log: &Log) -> bool {
        let ahead_bytes = next_byte.saturating_sub(log.end_offset() + 1);
        ahead_bytes > 0 && ahead_bytes <= log.backlog_bytes() && !self.needs.is_filtered()
    }

    fn admit(&self, master: &Master<'_>) -> Result<(), String> {
        if master.is_failing_over {
            return Err("NOMASTERLINK Can't SYNC while failing over".into());
        }
        if master.upstream == Upstream::NotConnected {
            return Err("NOMASTERLINK Can't SYNC while not connected with my master".into());
        }
        if self.needs.is_filtered() && !self.capabilities.eof {
            return Err("ERR Filtered replica requires EOF capability".into());
        }
        if master.has_pending_output {
            return Err("ERR SYNC and PSYNC are invalid with pending output".into());
        }
        Ok(())
    }

    /// The snapshot this replica waits for is cut at `offset`: what to send now. From here on the log must keep what
    /// comes after `offset`.
    pub fn cut(&mut self, id: ReplId, offset: u64) -> Bytes {
        assert_eq!(self.state, State::WaitBgsave);
        if self.is_pre_psync {
            return Bytes::new();
        }
        format!("+FULLRESYNC {id} {offset}\r\n").into()
    }

    /// The snapshot can be sent: at its cut, or when its file is complete.
    pub fn begin_bulk(&mut self) {
        assert_eq!(self.state, State::WaitBgsave);
        self.state = State::SendBulk;
    }

    /// The snapshot's last byte went out; with `ends_with_mark` the stream waits for an acknowledgement, so that
    /// the replica is not sent what it would have to search for the mark.
    pub fn end_bulk(&mut self, ends_with_mark: bool) {
        assert_eq!(self.state, State::SendBulk);
        self.state = State::Online;
        self.starts_on_ack = ends_with_mark && !self.is_pre_psync;
    }

    /// Where clients reach the replica: what it announced, else what its connection shows.
    pub fn address<'a>(&'a self, peer_ip: &'a str) -> (&'a str, u16) {
        (self.announced_address.as_deref().unwrap_or(peer_ip), self.listening_port)
    }

    /// The replica's line in `INFO replication`, without the line's end.
    pub fn info_line(&self, index: usize, peer_ip: &str, acked: Option<Acked>, now_ms: u64) -> String {
        let (ip, port) = self.address(peer_ip);
        let offset = acked.map_or(0, |acked| acked.offset);
        let lag_s = match acked {
            Some(acked) if self.state == State::Online => acked.lag_s(now_ms),
            _ => 0,
        };
        format!("slave{index}:ip={ip},port={port},state={},offset={offset},lag={lag_s}", self.state.name())
    }

    /// The replica's entry in `ROLE`: address, port, acknowledged offset, all of them strings there. Only who is
    /// online is listed.
    pub fn role_entry(&self, peer_ip: &str, acked: Option<Acked>) -> Option<[String; 3]> {
        let (ip, port) = self.address(peer_ip);
        let offset = acked.map_or(0, |acked| acked.offset);
        (self.state == State::Online).then(|| [ip.to_owned(), port.to_string(), offset.to_string()])
    }
}

/// `REPLCONF version`: nothing depends on it.
fn check_version(value: &[u8]) -> Result<(), String> {
    let parts: Vec<_> = value.split(|byte| *byte == b'.').collect();
    let is_version = parts.len() == 3 && parts.iter().all(|part| number(part).is_some_and(|n| n >= 0));
    let error = || format!("ERR Unrecognized version format: {}", text(value));
    is_version.then_some(()).ok_or_else(error)
}

fn failover(id: &[u8], master: &Master<'_>) -> Sync {
    if master.upstream == Upstream::None {
        return Sync::Refuse("ERR PSYNC FAILOVER can't be sent to a master.".into());
    }
    if ReplId::parse(id) != Some(master.ids.current()) {
        return Sync::Refuse("ERR PSYNC FAILOVER replid must match my replid.".into());
    }
    Sync::Promote
}

fn number(value: &[u8]) -> Option<i64> {
    let is_signed_needlessly = value.first() == Some(&b'+');
    std::str::from_utf8(value).ok().filter(|_| !is_signed_needlessly)?.parse().ok()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        ids: Ids,
        log: Log,
    }

    impl Node {
        /// A master after `offset` bytes of which the last `kept_bytes` are in the backlog.
        fn new(offset: u64, kept_bytes: usize) -> Self {
            let mut log = Log::new(offset - kept_bytes as u64, 1 << 20);
            log.activate();
            log.append(vec![0; kept_bytes].into());
            Node { ids: Ids::new(&mut fastrand::Rng::with_seed(1)), log }
        }

        fn view(&self) -> Master<'_> {
            Master {
                ids: &self.ids,
                log: &self.log,
                upstream: Upstream::None,
                is_failing_over: false,
                is_protected: false,
                has_pending_output: false,
            }
        }

        fn psync(&self, id: &str, next_byte: &str) -> Sync {
            Replica::default().psync(&[id.as_bytes(), next_byte.as_bytes()], &self.view())
        }
    }

    fn replconf(replica: &mut Replica, words: &str) -> Replconf {
        let args: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        replica.replconf(&args)
    }

    #[test]
    fn psync_continues_exactly_in_the_range_of_redis() {
        let node = Node::new(160, 50);
        let id = node.ids.current().to_string();
        let full = Sync::Full { is_fallback: true };
        for (next_byte, position) in [("111", 110), ("160", 159), ("161", 160)] {
            let reply = Bytes::from_static(b"+CONTINUE\r\n");
            assert_eq!(node.psync(&id, next_byte), Sync::Continue { reply, position });
        }
        for next_byte in ["110", "162", "0", "-1", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(node.psync(&id, next_byte), full, "{next_byte}");
        }
        assert_eq!(node.psync(&"0".repeat(40), "120"), full);
        assert_eq!(node.psync("?", "-1"), Sync::Full { is_fallback: false });
        assert_eq!(node.psync(&id, "x"), Sync::Refuse(NOT_AN_INTEGER.into()));
    }

    #[test]
    fn law6_who_is_ahead_of_a_replica_waits_for_it_and_keeps_its_data() {
        let mut node = Node::new(160, 50);
        let id = node.ids.current().to_string();
        let ask = |node: &Node, id: &str, next_byte: &str| {
            let master = Master { upstream: Upstream::Connected, ..node.view() };
            Replica::default().psync(&[id.as_bytes(), next_byte.as_bytes()], &master)
        };
        let refused = |answer| matches!(answer, Sync::Refuse(text) if text.starts_with("NOMASTERLINK "));
        let full = Sync::Full { is_fallback: true };
        assert!(!refused(ask(&node, &id, "161")));
        assert!(refused(ask(&node, &id, "162")));
        let farthest = 160 + 1 + node.log.backlog_bytes();
        assert!(refused(ask(&node, &id, &farthest.to_string())));
        // So far ahead nobody can be on our history.
        assert_eq!(ask(&node, &id, &(farthest + 1).to_string()), full);
        assert_eq!(ask(&node, &"0".repeat(40), "162"), full);
        assert_eq!(node.psync(&id, "162"), full, "a master has sent no more than it has");
        node.ids.promote(160, &mut fastrand::Rng::with_seed(2));
        assert_eq!(ask(&node, &id, "162"), full, "beyond the fork");
    }

    #[test]
    fn relay_the_former_history_continues_up_to_the_fork_under_the_new_id() {
        let mut node = Node::new(160, 50);
        let old = node.ids.current().to_string();
        node.ids.promote(150, &mut fastrand::Rng::with_seed(2));
        let mut replica = Replica::default();
        assert_eq!(replconf(&mut replica, "capa eof capa psync2 capa unheard-of"), Replconf::Ok);
        let answer = replica.psync(&[old.as_bytes(), b"151"], &node.view());
        let reply = format!("+CONTINUE {}\r\n", node.ids.current()).into();
        assert_eq!(answer, Sync::Continue { reply, position: 150 });
        assert_eq!(replica.state(), State::Online);
        assert!(replica.is_streaming());
        assert_eq!(node.psync(&old, "152"), Sync::Full { is_fallback: true });
        assert_eq!(replica.psync(&[b"?", b"-1"], &node.view()), Sync::Nothing);
    }

    #[test]
    fn a_full_sync_passes_the_states_of_redis_and_streams_after_the_first_ack() {
        let node = Node::new(160, 50);
        let mut replica = Replica::default();
        assert_eq!(replconf(&mut replica, "listening-port 6380"), Replconf::Ok);
        assert_eq!(replconf(&mut replica, "ack 5"), Replconf::Nothing);
        assert_eq!(replica.psync(&[b"?", b"-1"], &node.view()), Sync::Full { is_fallback: false });
        assert_eq!(
            replica.info_line(0, "10.0.0.1", None, 9000),
            "slave0:ip=10.0.0.1,port=6380,state=wait_bgsave,offset=0,lag=0"
        );
        let reply = replica.cut(node.ids.current(), 160);
        assert_eq!(reply, format!("+FULLRESYNC {} 160\r\n", node.ids.current()));
        replica.begin_bulk();
        assert_eq!(replica.state().name(), "send_bulk");
        assert_eq!(replica.role_entry("10.0.0.1", None), None);
        replica.end_bulk(true);
        assert!(!replica.is_streaming());
        let ack = Replconf::Ack { offset: 160, durable_offset: Some(20) };
        assert_eq!(replconf(&mut replica, "ACK 160 FACK 20"), ack);
        assert!(replica.is_streaming());
        assert_eq!(replconf(&mut replica, "ack -1"), Replconf::Nothing);
        let acked = Some(Acked { offset: 160, durable_offset: 20, at_ms: 6000 });
        assert_eq!(
            replica.info_line(1, "10.0.0.1", acked, 9500),
            "slave1:ip=10.0.0.1,port=6380,state=online,offset=160,lag=3"
        );
        replconf(&mut replica, "ip-address replica.example");
        let entry = ["replica.example", "6380", "160"].map(String::from);
        assert_eq!(replica.role_entry("10.0.0.1", acked), Some(entry));
    }

    #[test]
    fn sync_is_for_those_who_know_no_psync() {
        let node = Node::new(160, 50);
        let mut replica = Replica::default();
        assert_eq!(replica.sync(&node.view()), Sync::Full { is_fallback: false });
        assert!(replica.cut(node.ids.current(), 160).is_empty());
        replica.begin_bulk();
        replica.end_bulk(true);
        assert!(replica.is_streaming() && !replica.acknowledges());
    }

    #[test]
    fn no_loss_a_protected_master_refuses_who_has_a_history_and_serves_who_has_none() {
        let node = Node::new(160, 50);
        let protected = Master { is_protected: true, ..node.view() };
        let mut replica = Replica::default();
        let other = "1".repeat(40);
        let Sync::Refuse(message) = replica.psync(&[other.as_bytes(), b"5"], &protected) else { panic!() };
        assert!(message.starts_with("NOMASTERLINK "));
        assert_eq!(replica.state(), State::Handshake);
        let ours = node.ids.current().to_string();
        let answer = Replica::default().psync(&[ours.as_bytes(), b"150"], &protected);
        assert!(matches!(answer, Sync::Continue { .. }));
        assert_eq!(replica.psync(&[b"?", b"-1"], &protected), Sync::Full { is_fallback: false });
    }

    #[test]
    fn syncs_that_cannot_be_served_are_refused_with_the_errors_of_redis() {
        let node = Node::new(160, 50);
        let refuse = |master: Master<'_>| match Replica::default().sync(&master) {
            Sync::Refuse(message) => message,
            other => panic!("{other:?}"),
        };
        let cut_off = Master { upstream: Upstream::NotConnected, ..node.view() };
        assert_eq!(refuse(cut_off), "NOMASTERLINK Can't SYNC while not connected with my master");
        let pending = Master { has_pending_output: true, ..node.view() };
        assert_eq!(refuse(pending), "ERR SYNC and PSYNC are invalid with pending output");
        let id = node.ids.current().to_string();
        let failover: [&[u8]; 3] = [id.as_bytes(), b"5", b"failover"];
        let answer = Replica::default().psync(&failover, &node.view());
        assert_eq!(answer, Sync::Refuse("ERR PSYNC FAILOVER can't be sent to a master.".into()));
        let follower = Master { upstream: Upstream::Connected, ..node.view() };
        assert_eq!(Replica::default().psync(&failover, &follower), Sync::Promote);
    }

    #[test]
    fn replconf_errors_are_those_of_redis() {
        let mut replica = Replica::default();
        for (words, message) in [
            ("listening-port", "ERR syntax error"),
            ("listening-port x", NOT_AN_INTEGER),
            ("rdb-only x", NOT_AN_INTEGER),
            ("rdb-only 5", "ERR value is out of range, value must between 0 and 1"),
            ("rdb-filter-only keys", "ERR Unsupported rdb-filter-only option: keys"),
            ("version 1.2", "ERR Unrecognized version format: 1.2"),
            ("foo bar", "ERR Unrecognized REPLCONF option: foo"),
        ] {
            assert_eq!(replconf(&mut replica, words), Replconf::Error(message.into()));
        }
        assert_eq!(replconf(&mut replica, "version 9.1.2 rdb-only 1"), Replconf::Ok);
        assert!(replica.is_rdb_only());
        assert_eq!(replconf(&mut replica, "getack *"), Replconf::GetAck);
        assert_eq!(replconf(&mut replica, "rdb-filter-only functions"), Replconf::Ok);
        assert_eq!(replica.needs(), Needs { without_data: true, without_functions: false });
        let node = Node::new(160, 50);
        let message = "ERR Filtered replica requires EOF capability".into();
        assert_eq!(replica.sync(&node.view()), Sync::Refuse(message));
    }
}
