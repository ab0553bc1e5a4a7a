//! One shard: its slice of the keyspace, and everything that happens to it in a tick. No I/O, no clock, no threads.
//!
//! The layer above feeds it parcels from other shards ([`Shard::receive`]), runs and dispatches its connections'
//! commands ([`Shard::run`], [`Shard::submit`], [`Shard::dispatch_atomic`], [`Shard::begin`]), and ends every tick with
//! [`Shard::end_tick`], before which nothing that lets anyone see the tick's effects may leave: that is the proof of law 4.

mod dispatch;
mod parcels;
mod parking;
mod prefetch;
mod running;

pub(crate) use parking::{ParkedRun, Waiting};
pub(crate) use prefetch::{AHEAD, prefetch};

use crate::epoch::{EpochError, EpochMsg, Outstanding, Part, WaitingPart};
use crate::flight::{Flights, Pieces, WaitingLegs};
use crate::load::{LoadAnswer, LoadMsg, Loads};
use crate::locks::{Locks, TxId};
use crate::parcel::{ConnId, Mark, Parcel, Share, TxMsg};
use crate::sequencer::{Position, Sequencer};
use crate::slots::{ShardId, SlotMap};
use crate::stats::CommandStats;
use crate::tx::Tx;
use crate::walk::WalkWait;
use braid_core::command::{Args, CommandId, Effects, Outcome, Segment, Settings, Time};
use braid_core::keyspace::{Keyspace, WatcherId};
use braid_core::resp::Reply;
use braid_core::table::HashKey;
use bytes::Bytes;
use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that all shards of a process share.
pub struct Counters {
    pub sequencer: Sequencer,
    /// Last transaction id.
    pub tx: AtomicU64,
}

impl Counters {
    pub fn new(shards: usize) -> Self {
        Self { sequencer: Sequencer::new(shards), tx: AtomicU64::new(0) }
    }
}

/// What a shard needs of the layer above while it works.
pub trait Host {
    /// A part of the answer to what this shard's connection `conn` has under way, in order. `is_last`: all is answered.
    fn reply(&mut self, conn: ConnId, bytes: &[u8], pieces: Pieces, is_last: bool);

    /// Executes a command of the connection or the server ([`Handler::Session`]) within a transaction.
    ///
    /// # Errors
    /// The command's.
    fn session(&mut self, conn: ConnId, id: CommandId, args: Args<'_>, out: &mut Reply) -> Outcome;

    /// A message that only the layers above understand.
    fn upper(&mut self, from: ShardId, message: Box<dyn Any + Send>);

    /// Effects for the merge stage, which lives on this shard.
    fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>);

    /// On the home shard: a share of the effects of a batch, for the merge stage.
    fn share(&mut self, _ticket: u64, _share: Share) {
        unreachable!("only who has clients runs batches");
    }

    /// On the home shard: an epoch that [`Shard::apply_epoch`] began is applied by every shard concerned, and its effects
    /// may be seen. With an error the commands that failed did nothing; all others took effect.
    fn epoch_applied(&mut self, _epoch: u64, _outcome: Result<(), EpochError>) {
        unreachable!("only who begins epochs hears of their ends");
    }

    /// On the home shard: what a shard says about the dataset being loaded.
    fn load_answer(&mut self, _from: ShardId, _answer: LoadAnswer) {
        unreachable!("only who begins to load hears of it");
    }

    /// A command took this long.
    fn took(&mut self, conn: ConnId, duration_ns: u64, args: Args<'_>);

    /// Frees a block of megabytes, which takes long, where it holds up nobody.
    fn free_block(&mut self, block: Bytes) {
        drop(block);
    }

    /// Monotonic time, for how long commands take.
    fn monotonic_ns(&mut self) -> u64;
}

/// Where the parcels of a tick go.
pub trait Outlet {
    /// Whether [`Outlet::deliver`] would take a parcel now.
    fn has_room(&self, _to: ShardId) -> bool {
        true
    }

    /// Hands a parcel to another shard; gives it back if there is no room.
    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>>;
}

/// What became of a command that was to run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// The reply has been written.
    Done,
    /// A transaction has the key. The command waits; the answer comes through [`Host::reply`].
    Parked,
}

/// Effects that may wait for room in the ring to the home shard.
pub(crate) const UNDELIVERED_MAX_BYTES: u64 = 16 << 20;

/// What a shard is built from.
pub struct ShardConfig {
    pub id: ShardId,
    pub map: SlotMap,
    pub databases: usize,
    pub hash: HashKey,
    pub seed: u64,
    pub settings: Arc<Settings>,
    pub counters: Arc<Counters>,
    /// The shard with the merge stage.
    pub home: ShardId,
}

/// What a shard has for itself.
pub(crate) enum Loopback {
    Tx(TxMsg),
    Run(Box<ParkedRun>),
    Unwatch(WatcherId),
    Epoch(EpochMsg),
    Load(LoadMsg),
}

/// See the module's documentation.
pub struct Shard {
    pub id: ShardId,
    pub map: SlotMap,
    /// None while it is on loan to a transaction over everything.
    pub(crate) keyspace: Option<Box<Keyspace>>,
    pub(crate) scratch: Option<Box<Keyspace>>,
    pub(crate) locks: Locks,
    /// What waits for something to be returned, by age.
    pub(crate) waiting: BTreeMap<TxId, Waiting>,
    // Parcels travel as boxes, and come back to the pool as such.
    #[allow(clippy::vec_box)]
    outgoing: Vec<Box<Parcel>>,
    #[allow(clippy::vec_box)]
    pool: Vec<Box<Parcel>>,
    /// What this tick sends has so many legs.
    legs: u32,
    /// There are flights of several among them, for which shards have to keep an order.
    has_order: bool,
    /// What could not be delivered has legs that keep their order by themselves.
    left_in_order: bool,
    /// The last batch that ran here.
    ran: Position,
    /// By sender, what came before its turn.
    early: Vec<VecDeque<Box<Parcel>>>,
    early_len: usize,
    /// A snapshot walks the slice: commands may have to wait for that.
    pub(crate) is_walked: bool,
    /// What the shard has for itself, to be handled by [`Shard::settle`].
    pub(crate) loopback: VecDeque<Loopback>,
    pub(crate) effects: Effects,
    pub(crate) mark: Option<Mark>,
    /// What the segments in the parcel to the home shard take.
    undelivered_bytes: u64,
    is_home_full: bool,
    pub(crate) txs: HashMap<u64, Tx>,
    pub(crate) next_token: u64,
    /// Who has something of this shard on loan: the coordinator, and its name for the transaction.
    pub(crate) borrowers: HashMap<TxId, (ShardId, u64)>,
    /// At the home shard: the epoch under way.
    pub(crate) outstanding: Option<Outstanding>,
    /// Parts of epochs that are over, empty, for the next.
    pub spare_parts: Vec<Part>,
    /// At the home shard: transactions that were recalled and are to run before the next epoch.
    pub(crate) recalled_txs: usize,
    /// At the home shard: the epoch that waits for them.
    pub(crate) postponed: Option<(u64, Vec<(ShardId, Part)>)>,
    /// A part of an epoch that waits for keys on loan.
    pub(crate) part: Option<Box<WaitingPart>>,
    /// A dataset being loaded beside the slice.
    pub(crate) loads: Loads,
    /// Datasets to be freed when the slice is not on loan.
    #[allow(clippy::vec_box)]
    pub(crate) dropped: Vec<Box<Keyspace>>,
    pub(crate) counters: Arc<Counters>,
    pub settings: Arc<Settings>,
    pub rng: fastrand::Rng,
    pub(crate) time: Time,
    home: ShardId,
    /// Snapshots that were given up while the slice was on loan.
    pub(crate) aborted_snapshots: Vec<u64>,
    /// What this shard's connections have under way.
    flights: Flights,
    waiting_legs: WaitingLegs,
    /// For the answers to this shard's own legs.
    spare: Vec<u8>,
    /// This node follows a master. That of the slice ([`Keyspace::replica`]), as of when it was last here.
    pub replica: bool,
    /// As a replica it has no dataset. That of the slice ([`Keyspace::is_gone`]), as of when it was last here.
    pub(crate) is_gone: bool,
    /// As a replica, clients may not change anything (`replica-read-only`).
    pub is_read_only: bool,
    /// The first error of a command of the master's stream since [`Shard::take_stream_fault`] was called.
    stream_fault: Option<String>,
    /// The dataset is to stay as it is: expired keys are not removed in the background.
    pub holds_expiry: bool,
    /// What waits for the walk of a snapshot.
    pub(crate) walk_wait: WalkWait,
    /// Read by other threads too.
    pub stats: Arc<CommandStats>,
}

impl Shard {
    pub fn new(config: ShardConfig) -> Self {
        let shards = config.map.shards();
        assert!(usize::from(config.id) < shards && usize::from(config.home) < shards);
        Self {
            id: config.id,
            map: config.map,
            keyspace: Some(Box::new(Keyspace::new(config.databases, config.hash))),
            scratch: Some(Box::new(Keyspace::scratch(config.databases, config.hash))),
            locks: Locks::default(),
            waiting: BTreeMap::new(),
            outgoing: (0..shards).map(|_| Box::default()).collect(),
            pool: Vec::new(),
            legs: 0,
            has_order: false,
            left_in_order: false,
            ran: 0,
            early: (0..shards).map(|_| VecDeque::new()).collect(),
            early_len: 0,
            is_walked: false,
            loopback: VecDeque::new(),
            effects: Effects::default(),
            mark: None,
            undelivered_bytes: 0,
            is_home_full: false,
            txs: HashMap::new(),
            next_token: 0,
            borrowers: HashMap::new(),
            outstanding: None,
            spare_parts: Vec::new(),
            recalled_txs: 0,
            postponed: None,
            part: None,
            loads: Loads::default(),
            dropped: Vec::new(),
            counters: config.counters,
            settings: config.settings,
            rng: fastrand::Rng::with_seed(config.seed),
            time: Time::default(),
            home: config.home,
            aborted_snapshots: Vec::new(),
            flights: Flights::default(),
            waiting_legs: WaitingLegs::default(),
            spare: Vec::new(),
            replica: false,
            is_gone: false,
            is_read_only: true,
            stream_fault: None,
            holds_expiry: false,
            walk_wait: WalkWait::default(),
            stats: Arc::default(),
        }
    }

    /// Begins a tick at `time`.
    pub fn set_time(&mut self, time: Time) {
        self.time = time;
    }

    pub fn time(&self) -> Time {
        self.time
    }

    /// The slice, unless it is on loan.
    pub fn keyspace(&self) -> Option<&Keyspace> {
        self.keyspace.as_deref()
    }

    /// The slice, to be changed in ways that are no effects; unless it is on loan.
    pub fn keyspace_mut(&mut self) -> Option<&mut Keyspace> {
        self.keyspace.as_deref_mut()
    }

    /// Another shard is about to answer: its message is likely to come within microseconds.
    pub fn awaits_answers(&self) -> bool {
        !self.flights.is_empty()
            || !self.waiting_legs.is_empty()
            || !self.txs.is_empty()
            || self.outstanding.is_some()
            || self.locks.is_holding()
    }

    /// The last batch that was given a place here.
    #[inline]
    pub fn latest_batch(&self) -> Position {
        self.counters.sequencer.latest(self.id)
    }

    /// Whether a batch has run here. Until then nothing may run that arrived after it was given its place: it is on its way.
    #[inline]
    pub fn has_run(&self, batch: Position) -> bool {
        self.ran >= batch
    }

    /// There is a batch that has not run here yet.
    #[inline]
    pub fn is_behind(&self) -> bool {
        !self.has_run(self.latest_batch())
    }

    /// Nothing is on loan and nothing waits: the state in which most ticks find a shard.
    pub fn is_quiet(&self) -> bool {
        let nothing_waits = self.waiting.is_empty() && self.waiting_legs.is_empty();
        self.early_len == 0
            && self.locks.is_empty()
            && nothing_waits
            && self.txs.is_empty()
            && self.flights.is_empty()
    }

    /// Background work in a slice of about `budget` keys: expiry, freeing. True if there is more to do now.
    pub fn background(&mut self, budget: usize, host: &mut impl Host) -> bool {
        let Some(keyspace) = &mut self.keyspace else { return false };
        for dropped in self.dropped.drain(..) {
            keyspace.bury(*dropped);
        }
        let mut more = keyspace.free_some(budget, |block| host.free_block(block));
        if !self.holds_expiry && self.locks.is_empty() {
            more |= if self.replica {
                keyspace.expire_own_slice(self.time.ms(), budget)
            } else {
                keyspace.expire_slice(self.time.ms(), budget, &self.settings, &mut self.effects)
            };
        }
        more
    }

    /// Some key's time will be over that [`Shard::background`] is to remove then: a master's, or a replica's own.
    pub fn awaits_expiry(&self) -> bool {
        let removes = |keyspace: &Keyspace| match self.replica {
            true => keyspace.own_expiries_len() > 0,
            false => keyspace.has_expires(),
        };
        self.keyspace().is_some_and(|keyspace| keyspace.active_expire && removes(keyspace))
    }

    /// There was no room in the ring to the home shard when the last tick ended: pieces of datasets are not to go there.
    pub fn is_home_full(&self) -> bool {
        self.is_home_full
    }

    /// So much that was written could not be handed to the merge that nothing more should be written: until it is,
    /// [`Shard::end_tick`] is all there is to do.
    pub fn is_held_up(&self) -> bool {
        self.is_home_full && self.undelivered_bytes > UNDELIVERED_MAX_BYTES
    }

    pub(crate) fn home(&self) -> ShardId {
        self.home
    }

    pub(crate) fn next_tx_id(&self) -> TxId {
        self.counters.tx.fetch_add(1, Ordering::Relaxed) + 1
    }
}

#[cfg(test)]
mod tests;
