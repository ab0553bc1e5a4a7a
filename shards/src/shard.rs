//! One shard: its slice of the keyspace, and everything that happens to it in a tick. No I/O, no clock, no threads.
//!
//! The layer above feeds it parcels from other shards ([`Shard::receive`]), runs and dispatches its connections'
//! commands ([`Shard::run`], [`Shard::dispatch`], [`Shard::begin`]), and ends every tick with [`Shard::end_tick`],
//! before which nothing that lets anyone see the tick's effects may leave: that is the proof of law 4.

use crate::epoch::{EpochError, EpochMsg, Outstanding, Part, WaitingPart};
use crate::flight::{FlightId, Flights, Leg, Pieces, WaitingLeg, WaitingLegs};
use crate::load::{LoadAnswer, LoadMsg, Loads};
use crate::locks::{Locks, TxId};
use crate::parcel::{ConnId, Mark, Msg, Parcel, RunFlags, TxMsg};
use crate::pipeline::{OpenFlight, Pipeline};
use crate::slots::{ShardId, SlotMap};
use crate::stats::CommandStats;
use crate::tx::{Tx, WaitingClaim};
use crate::unit::{self, Commands, Unit};
use crate::walk::WalkWait;
use braid_core::command::{
    Args, Command, CommandId, Effects, Error, Flags, Handler, Outcome, Segment, Settings, Time, Walk,
    registry,
};
use braid_core::keyspace::{Keyspace, WatcherId};
use braid_core::resp::Reply;
use braid_core::table::HashKey;
use smallvec::SmallVec;
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that all shards of a process share.
#[derive(Default)]
pub struct Counters {
    /// Next ticket of the stream.
    pub ticket: AtomicU64,
    /// Last transaction id.
    pub tx: AtomicU64,
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

    /// Monotonic time, for how long commands take.
    fn monotonic_ns(&mut self) -> u64;
}

/// Where the parcels of a tick go.
pub trait Outlet {
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

/// Commands that wait until a transaction returns a key.
pub(crate) struct ParkedRun {
    from: ShardId,
    conn: ConnId,
    flags: RunFlags,
    watcher: Option<WatcherId>,
    /// None: it is all that the connection, which is one of this shard's, has under way.
    leg: Option<Leg>,
    unit: Unit,
    /// Replies to what ran before.
    done: Reply,
}

/// What waits for a transaction to return something.
pub(crate) enum Waiting {
    Run(Box<ParkedRun>),
    Claim(WaitingClaim),
    Unwatch(WatcherId),
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
    pub(crate) waiting: VecDeque<Waiting>,
    // Parcels travel as boxes, and come back to the pool as such.
    #[allow(clippy::vec_box)]
    outgoing: Vec<Box<Parcel>>,
    #[allow(clippy::vec_box)]
    pool: Vec<Box<Parcel>>,
    /// What the shard has for itself, to be handled by [`Shard::settle`].
    pub(crate) loopback: VecDeque<Loopback>,
    pub(crate) effects: Effects,
    pub(crate) mark: Option<Mark>,
    pub(crate) txs: HashMap<u64, Tx>,
    pub(crate) next_token: u64,
    /// Who has something of this shard on loan: the coordinator, and its name for the attempt.
    pub(crate) borrowers: HashMap<TxId, (ShardId, u64)>,
    /// At the home shard: the epoch under way.
    pub(crate) outstanding: Option<Outstanding>,
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
    /// A snapshot was given up while the slice was on loan.
    pub(crate) aborted_snapshot: Option<u64>,
    /// What this shard's connections have under way.
    flights: Flights,
    waiting_legs: WaitingLegs,
    /// For the answers to this shard's own legs.
    spare: Vec<u8>,
    /// This node follows a master. That of the slice ([`Keyspace::replica`]), as of when it was last here.
    pub replica: bool,
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

/// A leg whose turn has come.
struct NextLeg {
    coordinator: ShardId,
    flight: FlightId,
    number: u16,
    /// Otherwise it may be another shard's, or there may be none.
    is_certain: bool,
}

/// Runs whose keys are fetched ahead at a time.
pub(crate) const AHEAD: usize = 16;
/// Parcels kept for reuse.
const POOL_LEN: usize = 64;

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
            waiting: VecDeque::new(),
            outgoing: (0..shards).map(|_| Box::default()).collect(),
            pool: Vec::new(),
            loopback: VecDeque::new(),
            effects: Effects::default(),
            mark: None,
            txs: HashMap::new(),
            next_token: 0,
            borrowers: HashMap::new(),
            outstanding: None,
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
            aborted_snapshot: None,
            flights: Flights::default(),
            waiting_legs: WaitingLegs::default(),
            spare: Vec::new(),
            replica: false,
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

    /// Nothing is on loan and nothing waits: the state in which most ticks find a shard.
    pub fn is_quiet(&self) -> bool {
        let nothing_waits = self.waiting.is_empty() && self.waiting_legs.is_empty();
        self.locks.is_empty() && nothing_waits && self.txs.is_empty() && self.flights.is_empty()
    }

    /// Whether a command must wait for a transaction to return one of its keys, or for a snapshot to write it.
    fn is_blocked(&mut self, command: &Command, args: Args<'_>) -> bool {
        let is_walked = self.keyspace.as_ref().is_some_and(|keyspace| keyspace.has_snapshot());
        if is_walked && command.flags.has(Flags::WRITE) {
            let keys = command.find_keys(args).unwrap_or_default();
            if self.awaits_walk(keys.iter().map(|key| args[key.index])) {
                return true;
            }
        }
        if self.locks.is_empty() {
            return false;
        }
        self.locks.blocks_all()
            || command
                .find_keys(args)
                .is_some_and(|keys| keys.iter().any(|key| self.locks.blocks(args[key.index])))
    }

    /// Runs a command of this shard's own connection on this shard's keys.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn run(
        &mut self,
        conn: ConnId,
        flags: RunFlags,
        id: CommandId,
        db: u16,
        args: Args<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) -> Ran {
        let command = registry().get(id).resolve(args);
        if self.is_blocked(command, args) {
            let mut unit = Unit::default();
            unit.push(id, db, args);
            self.park(ParkedRun {
                from: self.id,
                conn,
                flags,
                watcher: None,
                leg: None,
                unit,
                done: Reply::new(flags.resp3),
            });
            return Ran::Parked;
        }
        self.run_now(conn, flags, None, id, db, args, out, host);
        Ran::Done
    }

    /// Runs commands of this shard's own connection in [`Shard::settle`]; the answer comes through [`Host::reply`].
    /// With [`RunFlags::atomic`] they are a transaction whose keys all live here.
    pub fn run_later(&mut self, conn: ConnId, flags: RunFlags, watcher: Option<WatcherId>, unit: Unit) {
        let done = Reply::new(flags.resp3);
        let run = ParkedRun { from: self.id, conn, flags, watcher, leg: None, unit, done };
        self.loopback.push_back(Loopback::Run(Box::new(run)));
    }

    fn park(&mut self, run: ParkedRun) {
        self.waiting.push_back(Waiting::Run(Box::new(run)));
    }

    /// Runs one command that nothing blocks.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn run_now(
        &mut self,
        conn: ConnId,
        flags: RunFlags,
        watcher: Option<WatcherId>,
        id: CommandId,
        db: u16,
        args: Args<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) {
        let mut keyspace = self.keyspace.take().expect("not on loan: nothing blocks");
        self.run_on(&mut keyspace, conn, flags, watcher, id, db, args, out, host);
        self.keyspace = Some(keyspace);
    }

    /// Runs one command on a keyspace: this shard's slice, or a transaction's scratch.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub(crate) fn run_on(
        &mut self,
        keyspace: &mut Keyspace,
        conn: ConnId,
        flags: RunFlags,
        watcher: Option<WatcherId>,
        id: CommandId,
        db: u16,
        args: Args<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) {
        use braid_core::command::{Ctx, WholeCtx};
        use braid_core::keyspace::Keys;
        let start_ns = host.monotonic_ns();
        let mark = out.mark();
        let command = registry().get(id).resolve(args);
        let replica = self.replica;
        let is_refused = self.refuses(command, flags);
        let outcome = match command.handler {
            _ if is_refused => Err(Error::ReadOnly),
            Handler::Keys(run) | Handler::Cursor(Walk { slice: run, .. }) => run(
                &mut Ctx {
                    keys: Keys {
                        space: keyspace,
                        effects: &mut self.effects,
                        settings: &self.settings,
                        db,
                        now_ms: self.time.ms(),
                        replica,
                        from_master: flags.from_master,
                        no_touch: flags.no_touch,
                    },
                    out,
                    rng: &mut self.rng,
                    time: self.time,
                    watcher,
                    shard: self.id,
                    shards: self.map.shards() as u16,
                },
                args,
            ),
            Handler::Whole(run) => run(
                &mut WholeCtx {
                    slices: &mut [keyspace],
                    effects: &mut self.effects,
                    out,
                    rng: &mut self.rng,
                    settings: &self.settings,
                    db,
                    time: self.time,
                    replica,
                },
                args,
            ),
            Handler::Session => host.session(conn, id, args, out),
        };
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            out.truncate(mark);
            self.failed(flags, &error, out);
        }
        let took_ns = host.monotonic_ns().saturating_sub(start_ns);
        self.stats.called(id, command, took_ns, failed);
        host.took(conn, took_ns, args);
    }

    /// Whether this node's role does not let a command run. Its connection was asked before, but the role may have
    /// changed while it was on its way.
    #[inline]
    pub(crate) fn refuses(&self, command: &Command, flags: RunFlags) -> bool {
        self.replica && self.is_read_only && !flags.from_master && command.is_write()
    }

    /// A command failed: answers with the error and counts it.
    #[cold]
    pub(crate) fn failed(&mut self, flags: RunFlags, error: &Error, out: &mut Reply) {
        let text = error.to_string();
        out.error(&text);
        self.stats.error(&text);
        if flags.from_master {
            self.stream_fault.get_or_insert(text);
        }
    }

    /// The first error of a command of the master's stream that ran here since this was last asked.
    pub fn take_stream_fault(&mut self) -> Option<String> {
        self.stream_fault.take()
    }

    /// Runs commands until the end (true) or until one is blocked; then `commands` stands before that one.
    fn run_commands(
        &mut self,
        conn: ConnId,
        flags: RunFlags,
        watcher: Option<WatcherId>,
        commands: &mut Commands<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) -> bool {
        if flags.atomic {
            let all = Commands::new(commands.rest(), commands.shared());
            let mut count = 0;
            for command in all {
                count += 1;
                if self.is_blocked(registry().get(command.id).resolve(command.args()), command.args()) {
                    return false;
                }
            }
            // A watched key on loan may have been changed already, though that is not known here before it is back.
            if self.locks.blocks_all() || watcher.is_some_and(|watcher| self.is_watched_on_loan(watcher)) {
                return false;
            }
            if watcher.is_some_and(|watcher| self.forget_watcher(watcher)) {
                out.null_array();
                return true;
            }
            out.array(count);
            self.effects.begin_multi();
            for command in commands.by_ref() {
                self.run_now(conn, flags, watcher, command.id, command.db, command.args(), out, host);
            }
            self.effects.end_multi();
            return true;
        }
        loop {
            let rest = commands.rest();
            let Some(command) = commands.next() else { return true };
            if self.is_blocked(registry().get(command.id).resolve(command.args()), command.args()) {
                commands.rewind(rest);
                return false;
            }
            self.run_now(conn, flags, watcher, command.id, command.db, command.args(), out, host);
        }
    }

    /// Whether something that a connection watches here is on loan.
    fn is_watched_on_loan(&self, watcher: WatcherId) -> bool {
        let keyspace = self.keyspace.as_ref().expect("not on loan as a whole");
        !self.locks.is_empty() && keyspace.watches.keys(watcher).any(|key| self.locks.blocks(key))
    }

    /// Ends a connection's watch over this slice; true if something it watched changed.
    pub(crate) fn forget_watcher(&mut self, watcher: WatcherId) -> bool {
        let now_ms = self.time.ms();
        let keyspace = self.keyspace.as_mut().expect("not on loan");
        let dirty = keyspace.watch_is_dirty(watcher, now_ms);
        keyspace.watches.unwatch(watcher);
        dirty
    }

    /// Forgets what a connection of this shard watches here or elsewhere.
    pub fn unwatch(&mut self, watcher: WatcherId, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            self.send(shard, Msg::Unwatch(watcher));
        }
    }

    /// Sends a command to the shard that owns its keys, as part of what a pipeline has under way. Commands for the same
    /// shard that follow each other travel together. The answers come through [`Host::reply`].
    #[allow(clippy::too_many_arguments)]
    pub fn submit(
        &mut self,
        pipeline: &mut Pipeline,
        to: ShardId,
        conn: ConnId,
        flags: RunFlags,
        watcher: Option<WatcherId>,
        id: CommandId,
        db: u16,
        args: Args<'_>,
    ) {
        let Parcel { msgs, arena, shared } = &mut *self.outgoing[usize::from(to)];
        let start = arena.len();
        unit::encode(arena, shared, id, db, args);
        let end = arena.len();
        if let Some(open) = &mut pipeline.open {
            open.commands += 1;
            if open.to == to {
                let Msg::Run { bytes, .. } = &mut msgs[open.message] else {
                    unreachable!("the last leg's message")
                };
                assert_eq!(bytes.end, start, "nothing comes between a pipeline's commands");
                bytes.end = end;
                return;
            }
        }
        let (message, bytes) = (msgs.len(), start..end);
        let flight = match pipeline.open {
            Some(before) => {
                let Msg::Run { leg, .. } = &mut self.outgoing[usize::from(before.to)].msgs[before.message]
                else {
                    unreachable!("the last leg's message")
                };
                leg.next = pipeline.is_ordered.then_some(to);
                before.id
            }
            None => {
                assert_ne!(to, self.id, "own commands run at once");
                self.flights.begin(conn)
            }
        };
        let number = self.flights.add_leg(flight);
        let leg = Leg { flight, number, waits: number > 0 && pipeline.is_ordered, next: None };
        self.outgoing[usize::from(to)].msgs.push(Msg::Run { leg, conn, flags, watcher, bytes });
        let commands = pipeline.open.map_or(1, |open| open.commands);
        pipeline.open = Some(OpenFlight { id: flight, to, message, commands });
    }

    /// Sends a whole transaction to the one shard that owns all of its keys.
    pub fn dispatch_atomic(
        &mut self,
        to: ShardId,
        conn: ConnId,
        flags: RunFlags,
        watcher: Option<WatcherId>,
        unit: &Unit,
    ) {
        assert_ne!(to, self.id, "own commands run at once");
        let flags = RunFlags { atomic: true, ..flags };
        let flight = self.flights.begin(conn);
        let leg = Leg { flight, number: self.flights.add_leg(flight), waits: false, next: None };
        let Parcel { msgs, arena, shared } = &mut *self.outgoing[usize::from(to)];
        let start = arena.len();
        for command in unit.commands() {
            unit::encode(arena, shared, command.id, command.db, command.args());
        }
        let bytes = start..arena.len();
        msgs.push(Msg::Run { leg, conn, flags, watcher, bytes });
    }

    /// Adds a message for another shard, or for this one.
    pub fn send(&mut self, to: ShardId, message: Msg) {
        if to != self.id {
            return self.outgoing[usize::from(to)].msgs.push(message);
        }
        match message {
            Msg::Tx(message) => self.loopback.push_back(Loopback::Tx(*message)),
            Msg::Epoch(message) => self.loopback.push_back(Loopback::Epoch(*message)),
            Msg::Load(message) => self.loopback.push_back(Loopback::Load(*message)),
            Msg::Unwatch(watcher) => self.unwatch_here(watcher),
            _ => unreachable!("other messages address other shards"),
        }
    }

    fn unwatch_here(&mut self, watcher: WatcherId) {
        if self.loopback.iter().any(|own| matches!(own, Loopback::Run(run) if run.watcher == Some(watcher))) {
            // The watch is about to begin.
            return self.loopback.push_back(Loopback::Unwatch(watcher));
        }
        let begins_later = self
            .waiting
            .iter()
            .any(|other| matches!(other, Waiting::Run(run) if run.watcher == Some(watcher)));
        match &mut self.keyspace {
            Some(keyspace) if !begins_later => keyspace.watches.unwatch(watcher),
            // It is on loan as a whole, and the watch ends when it is back; or what begins the watch waits.
            _ => self.waiting.push_back(Waiting::Unwatch(watcher)),
        }
    }

    /// Sends a message of the layers above.
    pub fn send_upper(&mut self, to: ShardId, message: Box<dyn Any + Send>) {
        assert_ne!(to, self.id, "the layers above talk to themselves directly");
        self.send(to, Msg::Upper(message));
    }

    /// As [`prefetch`], for keys of this shard that are about to be used.
    fn prefetch_own<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        if let Some(keyspace) = &self.keyspace {
            prefetch(keyspace, 0, keys);
        }
    }

    /// As [`prefetch`], for those of the keys that are this shard's.
    pub fn prefetch<'a>(&self, db: u16, keys: impl Iterator<Item = &'a [u8]>) {
        if let Some(keyspace) = &self.keyspace {
            prefetch(keyspace, db, keys.filter(|key| self.map.shard_of(key) == self.id));
        }
    }

    /// Handles everything another shard sent in one of its ticks.
    pub fn receive(&mut self, from: ShardId, mut parcel: Box<Parcel>, host: &mut impl Host) {
        let mut msgs = std::mem::take(&mut parcel.msgs);
        let at_once = msgs.iter().filter_map(|message| match message {
            Msg::Run { leg: Leg { waits: false, .. }, bytes, .. } => Some(bytes.clone()),
            _ => None,
        });
        let at_once: SmallVec<[Range<usize>; 64]> = at_once.collect();
        let mut started = 0;
        // Where the parcel is kept if a leg in it has to wait.
        let mut place = None;
        let mut next_legs: SmallVec<[NextLeg; 64]> = SmallVec::new();
        for message in msgs.drain(..) {
            match message {
                Msg::Run { leg, conn, flags, watcher, bytes } => {
                    if !leg.waits {
                        if started % AHEAD == 0 {
                            let ahead = &at_once[started..at_once.len().min(started + AHEAD)];
                            let commands = ahead.iter().map(|range| &parcel.arena[range.clone()]);
                            self.prefetch_own(commands.flat_map(unit::likely_keys));
                        }
                        started += 1;
                    }
                    if self.waiting_legs.may_run(from, leg) {
                        let commands = Commands::new(&parcel.arena[bytes], &parcel.shared);
                        self.run_for(from, conn, flags, watcher, leg, commands, host);
                    } else {
                        let parcel = *place.get_or_insert_with(|| self.waiting_legs.reserve());
                        let waiting = WaitingLeg { parcel, conn, flags, watcher, bytes, leg };
                        self.waiting_legs.wait(from, waiting);
                    }
                }
                Msg::Reply { flight, number, bytes, pieces } => {
                    self.flights.answered(
                        flight,
                        number,
                        &parcel.arena[bytes],
                        pieces,
                        |conn, bytes, pieces, is_last| {
                            host.reply(conn, bytes, pieces, is_last);
                        },
                    );
                    next_legs.push(NextLeg {
                        coordinator: self.id,
                        flight,
                        number: number + 1,
                        is_certain: false,
                    });
                }
                Msg::Go { coordinator, flight, number } => {
                    next_legs.push(NextLeg { coordinator, flight, number, is_certain: true });
                }
                Msg::Unwatch(watcher) => self.unwatch_here(watcher),
                Msg::Tx(message) => self.receive_tx(from, *message, host),
                Msg::Epoch(message) => self.receive_epoch(from, *message, host),
                Msg::Load(message) => self.receive_load(from, *message, host),
                Msg::Segment { ticket, segment, mark } => host.segment(ticket, segment, mark),
                Msg::Upper(message) => host.upper(from, message),
            }
        }
        parcel.msgs = msgs;
        match place {
            Some(place) => self.waiting_legs.keep(place, parcel),
            None => self.recycle(parcel),
        }
        self.run_next_legs(&next_legs, host);
        self.settle(host);
    }

    /// Runs the legs whose turn has come, as far as they are here.
    fn run_next_legs(&mut self, next_legs: &[NextLeg], host: &mut impl Host) {
        for ahead in next_legs.chunks(AHEAD) {
            let commands = ahead
                .iter()
                .filter_map(|next| self.waiting_legs.commands_of(next.coordinator, next.flight, next.number));
            self.prefetch_own(commands.flat_map(unit::likely_keys));
            for NextLeg { coordinator, flight, number, is_certain } in ahead {
                let Some((waiting, parcel)) =
                    self.waiting_legs.go(*coordinator, *flight, *number, *is_certain)
                else {
                    continue;
                };
                let WaitingLeg { parcel: place, conn, flags, watcher, bytes, leg } = waiting;
                let commands = Commands::new(&parcel.arena[bytes], &parcel.shared);
                self.run_for(*coordinator, conn, flags, watcher, leg, commands, host);
                if let Some(parcel) = self.waiting_legs.put_back(place, parcel) {
                    self.recycle(parcel);
                }
            }
        }
    }

    /// Handles what the shard sent to itself. To be called after [`Shard::begin`].
    pub fn settle(&mut self, host: &mut impl Host) {
        while let Some(message) = self.loopback.pop_front() {
            match message {
                Loopback::Tx(message) => self.receive_tx(self.id, message, host),
                Loopback::Run(run) => self.try_run(*run, host),
                Loopback::Unwatch(watcher) => self.unwatch_here(watcher),
                Loopback::Epoch(message) => self.receive_epoch(self.id, message, host),
                Loopback::Load(message) => self.receive_load(self.id, message, host),
            }
        }
    }

    /// Runs a leg; the answer goes into the parcel back to its coordinator.
    #[allow(clippy::too_many_arguments)]
    fn run_for(
        &mut self,
        from: ShardId,
        conn: ConnId,
        flags: RunFlags,
        watcher: Option<WatcherId>,
        leg: Leg,
        mut commands: Commands<'_>,
        host: &mut impl Host,
    ) {
        let mut out = Reply::new(flags.resp3);
        let is_own = from == self.id;
        let home = if is_own { &mut self.spare } else { &mut self.outgoing[usize::from(from)].arena };
        out.buf = std::mem::take(home);
        let start = out.buf.len();
        let all_done = self.run_commands(conn, flags, watcher, &mut commands, &mut out, host);
        let end = out.buf.len();
        let pieces = out.pieces.into_iter().map(|(at, piece)| (at - start, piece)).collect();
        if !all_done {
            let mut done = Reply::new(flags.resp3);
            done.buf.extend_from_slice(&out.buf[start..]);
            done.pieces = pieces;
            self.park(ParkedRun {
                from,
                conn,
                flags,
                watcher,
                leg: Some(leg),
                unit: commands.into_unit(),
                done,
            });
            out.buf.truncate(start);
        } else if is_own {
            self.leg_answered(leg, &out.buf, pieces, host);
            out.buf.clear();
        } else {
            let (flight, number) = (leg.flight, leg.number);
            self.outgoing[usize::from(from)].msgs.push(Msg::Reply {
                flight,
                number,
                bytes: start..end,
                pieces,
            });
            self.let_go(from, leg);
        }
        let home = if is_own { &mut self.spare } else { &mut self.outgoing[usize::from(from)].arena };
        *home = out.buf;
    }

    /// A leg of this shard's own flight ran here.
    fn leg_answered(&mut self, leg: Leg, bytes: &[u8], pieces: Pieces, host: &mut impl Host) {
        self.flights.answered(leg.flight, leg.number, bytes, pieces, |conn, bytes, pieces, is_last| {
            host.reply(conn, bytes, pieces, is_last);
        });
        self.let_go(self.id, leg);
    }

    /// A leg ran: the next may.
    fn let_go(&mut self, coordinator: ShardId, leg: Leg) {
        if let Some(next) = leg.next
            && next != coordinator
        {
            let (flight, number) = (leg.flight, leg.number + 1);
            self.outgoing[usize::from(next)].msgs.push(Msg::Go { coordinator, flight, number });
        }
    }

    /// Tries again what waits, in the order of arrival. To be called whenever something was returned.
    pub(crate) fn retry_waiting(&mut self, host: &mut impl Host) {
        if self.locks.is_holding() {
            return;
        }
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front().expect("counted") {
                Waiting::Claim(claim) => self.try_claim(claim),
                Waiting::Unwatch(watcher) => self.unwatch_here(watcher),
                Waiting::Run(run) => self.try_run(*run, host),
            }
        }
    }

    /// Runs commands that own their bytes as far as nothing blocks them.
    fn try_run(&mut self, run: ParkedRun, host: &mut impl Host) {
        let ParkedRun { from, conn, flags, watcher, leg, unit, mut done } = run;
        let mut commands = unit.commands();
        if self.run_commands(conn, flags, watcher, &mut commands, &mut done, host) {
            self.answer(from, conn, leg, done, host);
        } else {
            let unit = commands.into_unit();
            self.park(ParkedRun { from, conn, flags, watcher, leg, unit, done });
        }
    }

    /// Delivers the answer to what owned its bytes.
    fn answer(&mut self, to: ShardId, conn: ConnId, leg: Option<Leg>, reply: Reply, host: &mut impl Host) {
        let Some(leg) = leg else {
            assert_eq!(to, self.id, "what another shard sends is a leg");
            return host.reply(conn, &reply.buf, reply.pieces, true);
        };
        if to == self.id {
            return self.leg_answered(leg, &reply.buf, reply.pieces, host);
        }
        let back = &mut self.outgoing[usize::from(to)];
        let start = back.arena.len();
        back.arena.extend_from_slice(&reply.buf);
        let bytes = start..back.arena.len();
        let (flight, number) = (leg.flight, leg.number);
        back.msgs.push(Msg::Reply { flight, number, bytes, pieces: reply.pieces });
        self.let_go(to, leg);
    }

    /// Background work in a slice of about `budget` keys: expiry, freeing. True if there is more to do now.
    pub fn background(&mut self, budget: usize) -> bool {
        let Some(keyspace) = &mut self.keyspace else { return false };
        for dropped in self.dropped.drain(..) {
            keyspace.bury(*dropped);
        }
        let mut more = keyspace.free_some(budget);
        if !self.replica && !self.holds_expiry && self.locks.is_empty() {
            more |= keyspace.expire_slice(self.time.ms(), budget, &self.settings, &mut self.effects);
        }
        more
    }

    /// Freezes the effects so far, if there are any, under a ticket of their own. Nothing of this tick has left the shard,
    /// so any moment is right, and a tick may take several.
    pub(crate) fn take_ticket(&mut self, host: &mut impl Host) {
        if self.effects.is_empty() && self.mark.is_none() {
            return;
        }
        let ticket = self.counters.ticket.fetch_add(1, Ordering::SeqCst);
        let (segment, mark) = (self.effects.take(), self.mark.take());
        if self.home == self.id {
            host.segment(ticket, segment, mark);
        } else {
            self.send(self.home, Msg::Segment { ticket, segment, mark });
        }
    }

    /// Ends a tick: takes its ticket if it had effects, then lets its messages go. After this its replies may leave.
    pub fn end_tick(&mut self, outlet: &mut impl Outlet, host: &mut impl Host) {
        debug_assert!(self.loopback.is_empty(), "a tick ends settled");
        self.take_ticket(host);
        self.keep_own_legs();
        for to in 0..self.outgoing.len() {
            if self.outgoing[to].is_empty() {
                continue;
            }
            let fresh = self.pool.pop().unwrap_or_default();
            let parcel = std::mem::replace(&mut self.outgoing[to], fresh);
            if let Err(parcel) = outlet.deliver(to as ShardId, parcel) {
                // No room: it goes on growing and leaves with a later tick. What it holds is bounded by the number of
                // connections, each of which waits for its answer.
                let fresh = std::mem::replace(&mut self.outgoing[to], parcel);
                self.pool.push(fresh);
            }
        }
    }

    /// What this shard sent itself are legs that wait.
    fn keep_own_legs(&mut self) {
        let own = usize::from(self.id);
        if self.outgoing[own].is_empty() {
            return;
        }
        let fresh = self.pool.pop().unwrap_or_default();
        let mut parcel = std::mem::replace(&mut self.outgoing[own], fresh);
        let place = self.waiting_legs.reserve();
        for message in parcel.msgs.drain(..) {
            let Msg::Run { leg, conn, flags, watcher, bytes } = message else {
                unreachable!("only legs are sent to oneself")
            };
            assert!(leg.waits, "own commands run at once");
            let waiting = WaitingLeg { parcel: place, conn, flags, watcher, bytes, leg };
            self.waiting_legs.wait(self.id, waiting);
        }
        self.waiting_legs.keep(place, parcel);
    }

    /// Something could not be delivered at the end of the last tick.
    pub fn has_outgoing(&self) -> bool {
        self.outgoing.iter().any(|parcel| !parcel.is_empty())
    }

    fn recycle(&mut self, mut parcel: Box<Parcel>) {
        if self.pool.len() < POOL_LEN {
            parcel.clear();
            self.pool.push(parcel);
        }
    }

    pub(crate) fn home(&self) -> ShardId {
        self.home
    }

    pub(crate) fn next_tx_id(&self) -> TxId {
        self.counters.tx.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Starts fetching what commands on these keys will touch from memory: a table of some size is mostly not in the cache, and
/// fetching ahead lets the misses of a batch overlap.
pub(crate) fn prefetch<'a>(keyspace: &Keyspace, db: u16, keys: impl Iterator<Item = &'a [u8]>) {
    /// A smaller table is likely to be in the cache.
    const LARGE_TABLE_LEN: usize = 4096;
    let table = &keyspace.db(db).table;
    if table.len() < LARGE_TABLE_LEN {
        return;
    }
    let mut hashes: SmallVec<[u64; 64]> = SmallVec::new();
    for key in keys {
        let hash = table.hash(key);
        table.prefetch(hash);
        hashes.push(hash);
    }
    for hash in hashes {
        table.prefetch_entry(hash);
    }
}

#[cfg(test)]
mod tests;
