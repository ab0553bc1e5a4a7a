//! What a connection is to the server: who it is, what it selected, what it has queued; and the commands about that.

mod connection;
mod dispatch;
pub mod replication;
mod table;
mod transactions;

pub use dispatch::{Flow, OpenRun, call_in_transaction};
pub use table::Call;
pub use transactions::step_answered;

use braid_core::keyspace::WatcherId;
use braid_shards::{RunFlags, ShardId, Unit};

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
    /// `KEYS`: walks the shards with SCAN and joins what it finds.
    Keys {
        pattern: Box<[u8]>,
        /// Encoded elements, and how many.
        found: Vec<u8>,
        count: usize,
        /// Where the next step goes on; 0: the last one is done. None before the first.
        cursor: Option<u64>,
    },
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
    pub name: Option<Box<str>>,
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
            name: None,
            replica: None,
        }
    }
}

/// The watcher that a connection is, for the owners of keys.
pub fn watcher(shard: ShardId, conn: braid_shards::ConnId) -> WatcherId {
    WatcherId { shard, conn: conn.0 }
}
