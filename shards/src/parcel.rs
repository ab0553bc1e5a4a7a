//! What one shard sends another in one tick.

use crate::epoch::EpochMsg;
use crate::flight::{FlightId, Leg, Pieces};
use crate::load::LoadMsg;
use crate::locks::{Claim, LockKey, TxId};
use crate::sequencer::{Batch, Position};
use crate::slots::ShardId;
use braid_core::command::Segment;
use braid_core::keyspace::{Change, KeyEntry, Keyspace, MarkedDbs, WatcherId};
use bytes::Bytes;
use smallvec::SmallVec;
use std::any::Any;
use std::ops::Range;

/// A connection, by its index and generation at the shard that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// How a run's commands are executed and answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunFlags {
    /// Reply in RESP3.
    pub resp3: bool,
    /// One transaction: all or nothing of it is seen, one array answers it.
    pub atomic: bool,
    /// `CLIENT NO-TOUCH on`: reads leave the access time alone.
    pub no_touch: bool,
    /// Commands of the master's stream: expired keys stay until it says so.
    pub from_master: bool,
}

/// On whose behalf commands run.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub conn: ConnId,
    pub flags: RunFlags,
    /// The connection as one that watches keys, if the commands begin, need or end its watch.
    pub watcher: Option<WatcherId>,
}

impl Caller {
    /// A connection whose watches are not concerned.
    #[inline]
    pub fn new(conn: ConnId, flags: RunFlags) -> Self {
        Self { conn, flags, watcher: None }
    }
}

/// A question a ticket carries: at which offset of the stream does it end? The number is the asker's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Nothing but the question, as `WAIT` asks it.
    Offset(u64),
    /// A snapshot is cut here. Who starts from it knows no database, so the next effect is preceded by `SELECT`: it may
    /// be merged in the same call, before the asker could say so.
    Cut(u64),
    /// The node becomes a replica here, or a master: the next effect is preceded by `SELECT`, for the same reason.
    Role,
}

/// One shard's share of the effects of a batch ([`crate::sequencer`]).
#[derive(Debug, Clone, Default)]
pub struct Share {
    pub segment: Segment,
    /// Where its legs end, in order.
    pub cuts: Vec<Cut>,
    /// How many shares the ticket has.
    pub shares: u16,
}

/// The end of a leg's effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The leg's place in its batch, over all shards; 0: what the shard did before.
    pub place: u32,
    /// In the share.
    pub end_bytes: u64,
}

/// One message. Bytes it refers to lie in its parcel's arena.
pub enum Msg {
    /// Commands of one connection for the receiver's keys, to be executed in order and answered by one `Reply`.
    Run {
        leg: Leg,
        caller: Caller,
        bytes: Range<usize>,
    },
    /// The answer to a run, from which the next leg of its flight may run if that belongs to the receiver.
    Reply {
        flight: FlightId,
        number: u16,
        bytes: Range<usize>,
        pieces: Pieces,
    },
    /// A leg of a flight may run: the one before it has.
    Go {
        coordinator: ShardId,
        flight: FlightId,
        number: u16,
    },
    /// Forget what a connection watches here.
    Unwatch(WatcherId),
    Tx(Box<TxMsg>),
    /// The master's stream at work, see [`crate::epoch`].
    Epoch(Box<EpochMsg>),
    /// A dataset being loaded, see [`crate::load`].
    Load(Box<LoadMsg>),
    /// A tick's effects for the merge stage.
    Segment {
        ticket: u64,
        segment: Segment,
        mark: Option<Mark>,
    },
    /// A shard's share of a batch's effects for the merge stage.
    Share {
        ticket: u64,
        share: Box<Share>,
    },
    /// For the layers above, which know the type.
    Upper(Box<dyn Any + Send>),
}

/// Multi-shard transactions. `token` is the coordinator's name for one, `id` the age of its attempt under way.
pub enum TxMsg {
    /// Coordinator to owner: lend me this.
    Lock {
        token: u64,
        id: TxId,
        claim: Claim,
        watcher: Option<WatcherId>,
    },
    /// Owner to coordinator. `watch_until_ms`: until when the watch holds over the owner's slice; None: it does not.
    /// `stream`: the owner's slice has its effects collected ([`Keyspace::stream`]); `replica`: it follows a master
    /// ([`Keyspace::replica`]).
    Grant {
        stream: bool,
        replica: bool,
        is_gone: bool,
        token: u64,
        id: TxId,
        loan: Loan,
        watch_until_ms: Option<u64>,
    },
    Refuse {
        token: u64,
        id: TxId,
    },
    /// Owner to coordinator: if you have not got everything yet, return what you have and start over. See
    /// [`crate::epoch`].
    Recall {
        token: u64,
        id: TxId,
    },
    /// Coordinator to owner: here is everything back.
    Return {
        id: TxId,
        loan: Loan,
    },
}

/// Data whose ownership travels with a transaction.
pub enum Loan {
    Keys(Vec<LentKey>),
    Everything(Box<Keyspace>),
}

/// One key on loan: its entries, by the databases in which it exists.
pub struct LentKey {
    pub key: LockKey,
    pub entries: SmallVec<[(u16, KeyEntry); 1]>,
    /// Databases in which its expiry is a replica's own.
    pub marked: MarkedDbs,
    /// What the transaction did to it, by database.
    pub changes: SmallVec<[(u16, Change); 4]>,
}

/// The messages of a tick for one receiver.
#[derive(Default)]
pub struct Parcel {
    pub msgs: Vec<Msg>,
    pub arena: Vec<u8>,
    /// Values that encoded commands refer to, whichever message they belong to.
    pub shared: Vec<Bytes>,
    /// There are commands among it.
    pub has_legs: bool,
    /// The receiver's last batch when this was sent: nothing of it may run before.
    pub after: Position,
    /// The commands in it are part of a batch.
    pub batch: Option<Batch>,
}

/// A parcel that grew beyond this is not kept for reuse.
const KEEP_ARENA_BYTES: usize = 256 * 1024;

impl Parcel {
    pub fn is_empty(&self) -> bool {
        self.msgs.is_empty()
    }

    /// Makes it ready for reuse.
    pub fn clear(&mut self) {
        self.msgs.clear();
        self.shared.clear();
        (self.has_legs, self.batch) = (false, None);
        if self.arena.capacity() > KEEP_ARENA_BYTES {
            self.arena = Vec::new();
        }
        self.arena.clear();
    }
}
