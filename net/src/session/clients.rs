//! Who is connected: what every shard publishes of its connections, so that any shard can list, find and close clients.
//!
//! A connection's owner writes its [`ClientInfo`] with plain stores; what is read elsewhere may be a moment old. Names
//! change rarely and stand behind a lock that nobody but `CLIENT` takes.

use braid_shards::stats::Counter;
use braid_shards::{ConnId, ShardId};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicI32, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One end of a connection, in 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// IPv4 addresses are mapped into IPv6.
    Tcp {
        ip: [u8; 16],
        port: u16,
    },
    Unix,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Endpoint::Tcp { ip: ip.octets(), port: address.port() }
    }
}

impl Endpoint {
    /// The address; None for a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Endpoint::Tcp { ip, .. } => Some(Ipv6Addr::from(*ip).to_canonical()),
            Endpoint::Unix => None,
        }
    }

    /// As Redis writes it; a Unix socket is its path with port 0.
    pub fn text(&self, unixsocket: &str) -> String {
        match (self, self.ip()) {
            (Endpoint::Tcp { port, .. }, Some(ip)) => SocketAddr::new(ip, *port).to_string(),
            _ => format!("{unixsocket}:0"),
        }
    }
}

/// What [`ClientInfo::flags`] is made of.
pub mod flag {
    pub const MULTI: u32 = 1 << 0;
    pub const BLOCKED: u32 = 1 << 1;
    pub const CLOSE_AFTER_REPLY: u32 = 1 << 2;
    pub const NO_EVICT: u32 = 1 << 3;
    pub const NO_TOUCH: u32 = 1 << 4;
    pub const RESP3: u32 = 1 << 5;
    pub const SENDING: u32 = 1 << 6;
    pub const RECEIVING: u32 = 1 << 7;
    /// The connection is a replica's.
    pub const REPLICA: u32 = 1 << 8;
    /// The connection leads to the master.
    pub const MASTER: u32 = 1 << 9;
    pub const PUBSUB: u32 = 1 << 10;
    /// Blocked in `WAIT` or `WAITAOF`.
    pub const AWAITS_REPLICAS: u32 = 1 << 11;
    /// The connection carries a part of a snapshot, to a replica or from the master.
    pub const PART: u32 = 1 << 12;
}

/// The classes that `TYPE` filters and output buffer limits know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Normal,
    Replica,
    PubSub,
    Master,
}

impl Class {
    /// Finds a class by the names that `CLIENT KILL TYPE` takes.
    pub fn by_name(name: &[u8]) -> Option<Self> {
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        match () {
            () if is("normal") => Some(Class::Normal),
            () if is("slave") || is("replica") => Some(Class::Replica),
            () if is("pubsub") => Some(Class::PubSub),
            () if is("master") || is("primary") => Some(Class::Master),
            () => None,
        }
    }
}

/// What a client told of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    pub name: Box<str>,
    pub lib_name: Box<str>,
    pub lib_ver: Box<str>,
}

/// One connection, as others see it.
#[derive(Debug)]
pub struct ClientInfo {
    pub id: u64,
    pub conn: ConnId,
    pub peer: Endpoint,
    pub local: Endpoint,
    pub fd: i32,
    /// Seconds from the server's start to the connection's, and to its last command or byte.
    pub created_s: u32,
    pub active_s: AtomicU32,
    pub db: AtomicU16,
    /// See [`flag`].
    pub flags: AtomicU32,
    /// Commands queued in a transaction; -1 outside.
    pub multi: AtomicI32,
    pub multi_bytes: AtomicU32,
    pub watched: AtomicU32,
    /// Position of the last command's counters plus one; 0 before the first.
    pub command: AtomicU32,
    pub input_bytes: AtomicU32,
    pub input_free_bytes: AtomicU32,
    /// Bytes of replies that wait.
    pub output_bytes: Counter,
    pub net_in_bytes: Counter,
    pub net_out_bytes: Counter,
    pub commands: Counter,
    names: Mutex<Option<Box<Names>>>,
}

/// Memory of a connection at rest, besides the kernel's, bytes: what `CLIENT LIST` counts for each.
pub const AT_REST_BYTES: usize = size_of::<ClientInfo>() + size_of::<crate::engine::Conn>() + 64;

impl ClientInfo {
    pub fn new(id: u64, conn: ConnId, peer: Endpoint, local: Endpoint, fd: i32, now_s: u32) -> Self {
        Self {
            id,
            conn,
            peer,
            local,
            fd,
            created_s: now_s,
            active_s: AtomicU32::new(now_s),
            db: AtomicU16::new(0),
            flags: AtomicU32::new(flag::RECEIVING),
            multi: AtomicI32::new(-1),
            multi_bytes: AtomicU32::new(0),
            watched: AtomicU32::new(0),
            command: AtomicU32::new(0),
            input_bytes: AtomicU32::new(0),
            input_free_bytes: AtomicU32::new(0),
            output_bytes: Counter::default(),
            net_in_bytes: Counter::default(),
            net_out_bytes: Counter::default(),
            commands: Counter::default(),
            names: Mutex::new(None),
        }
    }

    fn lock_names(&self) -> MutexGuard<'_, Option<Box<Names>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn names(&self) -> Names {
        self.lock_names().as_deref().cloned().unwrap_or_default()
    }

    /// Changes what the client told of itself.
    pub fn set_names(&self, change: impl FnOnce(&mut Names)) {
        let mut names = self.lock_names();
        let mut changed = names.as_deref().cloned().unwrap_or_default();
        change(&mut changed);
        *names = (changed != Names::default()).then(|| Box::new(changed));
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    pub fn class(&self) -> Class {
        match () {
            () if self.has(flag::MASTER) => Class::Master,
            () if self.has(flag::REPLICA) => Class::Replica,
            () if self.has(flag::PUBSUB) => Class::PubSub,
            () => Class::Normal,
        }
    }

    /// Flags by Redis's letters, in its order.
    fn letters(&self) -> String {
        let mut letters = String::new();
        for (on, letter) in [
            (self.has(flag::REPLICA), 'S'),
            (self.has(flag::MASTER), 'M'),
            (self.has(flag::PART), 'D'),
            (self.has(flag::PUBSUB), 'P'),
            (self.has(flag::MULTI), 'x'),
            (self.has(flag::BLOCKED), 'b'),
            (self.has(flag::CLOSE_AFTER_REPLY), 'c'),
            (self.peer == Endpoint::Unix, 'U'),
            (self.has(flag::NO_EVICT), 'e'),
            (self.has(flag::NO_TOUCH), 'T'),
        ] {
            if on {
                letters.push(letter);
            }
        }
        if letters.is_empty() { "N".to_owned() } else { letters }
    }

    /// The client's line in `CLIENT LIST`, without a line end: Redis's fields. `io-thread` is the shard.
    pub fn line(&self, now_s: u32, unixsocket: &str) -> String {
        let load = |value: &AtomicU32| value.load(Ordering::Relaxed);
        let names = self.names();
        let age_s = now_s.saturating_sub(self.created_s);
        let idle_s = now_s.saturating_sub(load(&self.active_s));
        let (qbuf, qbuf_free) = (load(&self.input_bytes), load(&self.input_free_bytes));
        let (output, multi_bytes) = (self.output_bytes.get(), load(&self.multi_bytes));
        let total =
            AT_REST_BYTES as u64 + u64::from(qbuf) + u64::from(qbuf_free) + output + u64::from(multi_bytes);
        let command = match load(&self.command) {
            0 => "NULL".to_owned(),
            slot => braid_shards::stats::slot_name(slot as usize - 1),
        };
        let mut events = String::new();
        if self.has(flag::RECEIVING) {
            events.push('r');
        }
        if self.has(flag::SENDING) {
            events.push('w');
        }
        format!(
            "id={} addr={} laddr={} fd={} name={} age={age_s} idle={idle_s} flags={} db={} sub=0 psub=0 ssub=0 multi={} \
             watch={} qbuf={qbuf} qbuf-free={qbuf_free} argv-mem=0 multi-mem={multi_bytes} rbs=0 rbp=0 obl=0 oll={} \
             omem={output} tot-mem={total} events={events} cmd={command} user=default redir=-1 resp={} lib-name={} \
             lib-ver={} io-thread={} tot-net-in={} tot-net-out={} tot-cmds={}",
            self.id,
            self.peer.text(unixsocket),
            self.local.text(unixsocket),
            self.fd,
            names.name,
            self.letters(),
            self.db.load(Ordering::Relaxed),
            self.multi.load(Ordering::Relaxed),
            load(&self.watched),
            u8::from(output > 0),
            if self.has(flag::RESP3) { 3 } else { 2 },
            names.lib_name,
            names.lib_ver,
            shard_of(self.conn),
            self.net_in_bytes.get(),
            self.net_out_bytes.get(),
            self.commands.get(),
        )
    }
}

/// Bits of a [`ConnId`]: the slot at its shard, a number that tells its users apart, the shard.
const SLOT_BITS: u32 = 24;
const NUMBER_BITS: u32 = 30;

/// Names the `number`th connection of a shard, which has a slot there.
pub fn conn_id(shard: ShardId, number: u64, slot: usize) -> ConnId {
    assert!(slot < 1 << SLOT_BITS && u32::from(shard) < 1 << (64 - SLOT_BITS - NUMBER_BITS));
    let number = number & ((1 << NUMBER_BITS) - 1);
    ConnId(u64::from(shard) << (SLOT_BITS + NUMBER_BITS) | number << SLOT_BITS | slot as u64)
}

/// The slot of a connection at its shard.
pub fn slot_of(conn: ConnId) -> usize {
    (conn.0 & ((1 << SLOT_BITS) - 1)) as usize
}

/// The shard that serves a connection.
pub fn shard_of(conn: ConnId) -> ShardId {
    (conn.0 >> (SLOT_BITS + NUMBER_BITS)) as ShardId
}

/// All connections, each shard's by their slots.
pub struct Registry {
    shards: Vec<Mutex<Vec<Option<Arc<ClientInfo>>>>>,
}

impl Registry {
    pub fn new(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::default()).collect() }
    }

    fn lock(&self, shard: ShardId) -> MutexGuard<'_, Vec<Option<Arc<ClientInfo>>>> {
        self.shards[usize::from(shard)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, info: Arc<ClientInfo>) {
        let (mut table, slot) = (self.lock(shard_of(info.conn)), slot_of(info.conn));
        if table.len() <= slot {
            table.resize(slot + 1, None);
        }
        table[slot] = Some(info);
    }

    pub fn remove(&self, conn: ConnId) {
        if let Some(place) = self.lock(shard_of(conn)).get_mut(slot_of(conn)) {
            *place = None;
        }
    }

    /// The client of a connection, if it is still there.
    pub fn find(&self, conn: ConnId) -> Option<Arc<ClientInfo>> {
        // The master's link runs commands, too, and is no connection of a shard's.
        let shard = self.shards.get(usize::from(shard_of(conn))).map(|_| shard_of(conn))?;
        let found = self.lock(shard).get(slot_of(conn))?.clone();
        found.filter(|info| info.conn == conn)
    }

    /// Connections of a shard.
    pub fn count(&self, shard: ShardId) -> usize {
        self.lock(shard).iter().flatten().count()
    }

    /// All clients, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<ClientInfo>> {
        let mut all: Vec<Arc<ClientInfo>> = Vec::new();
        for shard in 0..self.shards.len() {
            all.extend(self.lock(shard as ShardId).iter().flatten().cloned());
        }
        all.sort_unstable_by_key(|info| info.id);
        all
    }
}

/// Which clients a command means.
#[derive(Debug, Default)]
pub struct Filter {
    pub ids: Vec<u64>,
    pub addr: Option<String>,
    pub laddr: Option<String>,
    pub class: Option<Class>,
    /// Connected for at least this long.
    pub min_age_s: Option<u64>,
    /// Not this client.
    pub skip: Option<u64>,
}

impl Filter {
    pub fn matches(&self, info: &ClientInfo, now_s: u32, unixsocket: &str) -> bool {
        let is = |endpoint: &Endpoint, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| endpoint.text(unixsocket) == *wanted)
        };
        let age_s = u64::from(now_s.saturating_sub(info.created_s));
        (self.ids.is_empty() || self.ids.contains(&info.id))
            && self.class.is_none_or(|class| class == info.class())
            && self.min_age_s.is_none_or(|wanted| age_s >= wanted)
            && self.skip != Some(info.id)
            && is(&info.peer, &self.addr)
            && is(&info.local, &self.laddr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: u64, peer: &str, created_s: u32) -> ClientInfo {
        let peer = peer.parse::<SocketAddr>().map_or(Endpoint::Unix, Endpoint::from);
        let local = Endpoint::from("127.0.0.1:6379".parse::<SocketAddr>().unwrap());
        ClientInfo::new(id, conn_id(3, id, id as usize), peer, local, 9, created_s)
    }

    #[test]
    fn a_connection_id_holds_shard_and_slot() {
        for (shard, number, slot) in [(0, 1, 0), (1023, u64::MAX, (1 << 24) - 1), (5, 77, 12)] {
            let id = conn_id(shard, number, slot);
            assert_eq!((shard_of(id), slot_of(id)), (shard, slot));
        }
        assert_ne!(conn_id(1, 1, 4), conn_id(1, 2, 4));
    }

    #[test]
    fn a_line_has_redis_fields_in_its_order() {
        let info = info(7, "[::ffff:10.0.0.1]:5000", 10);
        info.set_names(|names| names.name = "me".into());
        let line = info.line(15, "");
        let start = "id=7 addr=10.0.0.1:5000 laddr=127.0.0.1:6379 fd=9 name=me age=5 idle=5 flags=N db=0 sub=0 psub=0 \
                     ssub=0 multi=-1 watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 \
                     tot-mem=";
        assert!(line.starts_with(start), "{line}");
        let end = " events=r cmd=NULL user=default redir=-1 resp=2 lib-name= lib-ver= io-thread=3 tot-net-in=0 \
                   tot-net-out=0 tot-cmds=0";
        assert!(line.ends_with(end), "{line}");
        info.flags.store(flag::MULTI | flag::RESP3 | flag::NO_TOUCH | flag::SENDING, Ordering::Relaxed);
        let line = info.line(15, "");
        assert!(
            line.contains(" flags=xT ") && line.contains(" resp=3 ") && line.contains(" events=w "),
            "{line}"
        );
        let unix = super::tests::info(1, "unix", 0);
        assert!(unix.line(0, "/run/braid").contains(" addr=/run/braid:0 "));
        assert!(unix.line(0, "/run/braid").contains(" flags=U "));
        let v6 = super::tests::info(1, "[::1]:80", 0);
        assert!(v6.line(0, "").contains(" addr=[::1]:80 "));
    }

    #[test]
    fn names_at_their_defaults_take_no_memory() {
        let info = info(1, "1.2.3.4:5", 0);
        info.set_names(|names| names.lib_name = "lib".into());
        assert_eq!(&*info.names().lib_name, "lib");
        info.set_names(|names| names.lib_name = "".into());
        assert!(info.lock_names().is_none());
    }

    #[test]
    fn filters_all_have_to_match() {
        let client = info(7, "1.2.3.4:5", 10);
        let matches = |filter: Filter| filter.matches(&client, 30, "");
        assert!(matches(Filter::default()));
        assert!(matches(Filter { ids: vec![1, 7], addr: Some("1.2.3.4:5".into()), ..Filter::default() }));
        assert!(!matches(Filter { ids: vec![1, 7], addr: Some("1.2.3.4:6".into()), ..Filter::default() }));
        assert!(!matches(Filter { ids: vec![1], ..Filter::default() }));
        assert!(matches(Filter { min_age_s: Some(20), class: Some(Class::Normal), ..Filter::default() }));
        assert!(!matches(Filter { min_age_s: Some(21), ..Filter::default() }));
        assert!(!matches(Filter { class: Some(Class::PubSub), ..Filter::default() }));
        assert!(!matches(Filter { skip: Some(7), ..Filter::default() }));
        assert!(matches(Filter { laddr: Some("127.0.0.1:6379".into()), ..Filter::default() }));
        assert_eq!(Class::by_name(b"SLAVE"), Some(Class::Replica));
        assert_eq!(Class::by_name(b"nobody"), None);
    }

    #[test]
    fn the_registry_finds_only_who_is_there() {
        let registry = Registry::new(4);
        for id in [5, 2, 9] {
            registry.add(Arc::new(info(id, "1.2.3.4:5", 0)));
        }
        assert_eq!(registry.all().iter().map(|info| info.id).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!(registry.find(conn_id(3, 5, 5)).unwrap().id, 5);
        assert!(registry.find(conn_id(3, 6, 5)).is_none(), "another connection in the same slot");
        registry.remove(conn_id(3, 5, 5));
        assert!(registry.find(conn_id(3, 5, 5)).is_none());
        assert_eq!(registry.all().len(), 2);
    }
}
