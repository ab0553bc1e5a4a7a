//! What a connection is to the server: who it is, what it selected, what it has queued; and the commands about that.

mod client;
pub mod clients;
mod command;
mod config;
mod connection;
pub mod control;
mod debug;
mod dispatch;
mod info;
pub mod latency;
mod memory;
pub mod replication;
mod saving;
mod server;
pub mod slowlog;
mod survey;
mod table;
pub mod totals;
mod transactions;
mod waits;

pub use dispatch::{Flow, call};
pub use table::Call;
pub use transactions::step_answered;

use braid_core::keyspace::WatcherId;
use braid_shards::{RunFlags, ShardId, Unit};
use clients::ClientInfo;
use std::sync::Arc;

/// A transaction under construction.
#[derive(Default)]
pub struct Multi {
    pub unit: Unit,
    /// A command could not be queued: EXEC will refuse.
    pub failed: bool,
    /// Database as of the commands queued so far.
    pub db: u16,
}

/// What the connection watches.
#[derive(Default)]
pub struct Watching {
    pub keys: Vec<Box<[u8]>>,
    pub shards: Vec<ShardId>,
}

/// A piece of work in several steps, each for another shard, one after the other.
pub enum Steps {
    /// `WATCH` of keys of several shards: what is left to do.
    Watch(Vec<(ShardId, Unit)>),
    /// `INFO` and `MEMORY STATS`: reads the keyspace first.
    Survey { command: Unit, survey: survey::Survey },
    /// `KEYS`: walks the shards with SCAN and joins what it finds.
    Keys {
        pattern: Box<[u8]>,
        /// Encoded elements, and how many.
        found: Vec<u8>,
        count: usize,
        /// Where the next step goes on; 0: the last one is done. None before the first.
        cursor: Option<u64>,
    },
    /// One of these was refused: with this, as encoded.
    Refused(Vec<u8>),
}

/// `CLIENT REPLY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyMode {
    On,
    Off,
    /// The next command is not answered.
    SkipNext,
}

/// State of one connection's dialogue.
pub struct Session {
    /// Unique for the process (`CLIENT ID`).
    pub client: u64,
    pub db: u16,
    pub authenticated: bool,
    pub flags: RunFlags,
    pub multi: Option<Box<Multi>>,
    pub watching: Option<Box<Watching>>,
    pub steps: Option<Box<Steps>>,
    /// What others see of the client; None only while the connection is being made.
    pub info: Option<Arc<ClientInfo>>,
    pub reply: ReplyMode,
    /// `CLIENT NO-EVICT`: accepted and shown; clients are never evicted.
    pub no_evict: bool,
    pub replica: Option<Box<replication::ReplicaSession>>,
}

impl Session {
    pub fn new(client: u64, authenticated: bool) -> Self {
        Self {
            client,
            db: 0,
            authenticated,
            flags: RunFlags::default(),
            multi: None,
            watching: None,
            steps: None,
            info: None,
            reply: ReplyMode::On,
            no_evict: false,
            replica: None,
        }
    }
}

impl Session {
    /// What others see of the client.
    pub fn info(&self) -> &Arc<ClientInfo> {
        self.info.as_ref().expect("set when the connection was made")
    }
}

/// The watcher that a connection is, for the owners of keys.
pub fn watcher(shard: ShardId, conn: braid_shards::ConnId) -> WatcherId {
    WatcherId { shard, conn: conn.0 }
}
