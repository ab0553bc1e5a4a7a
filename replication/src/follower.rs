//! The replica role on the home shard, as one state machine: the link, loading, applying, and changes of role. What is
//! decided where: see [`crate::link`] for the protocol, [`crate::home::relay`] for what becomes of the stream,
//! `braid_shards::epoch` for how it is applied, [`crate::loading`] for a full sync.
//!
//! One thing at a time is done to the dataset: an epoch is applied, or a snapshot is cut (which is so taken between two
//! epochs), or a loaded dataset swapped in, or the role changed. Meanwhile received bytes wait, and beyond a bound
//! ([`Link::is_full`]) the link is not to be read.
//!
//! In every round the layer around calls [`Follower::go_on`], does what [`Follower::take_actions`] gives, lets the shard
//! settle, and does the same with [`Follower::finish`], for what was begun may be over at once. What shards and home tell in between goes into
//! [`Follower::epoch_applied`], [`Follower::turned`] and [`Loads::answer`].

mod refill;
mod restore;
mod roles;
mod whole;

pub use refill::{Intake, SpoolStep};
pub use restore::Restored;
pub use roles::{Asker, RoleRequest, start_shard_as_replica};
pub use whole::CutHook;

use crate::home::Home;
use crate::home::relay::Turn;
use crate::ids::ReplId;
use crate::link::stream::{Epoch, EpochWork, Parts};
use crate::link::{Link, LinkAction, LinkRules, Target};
use crate::loader::FEED_BYTES;
use crate::loading::{LoadRules, Loads};
use crate::parts::Token;
use braid_core::command::{Args, CommandId};
use braid_shards::{EpochBuilder, EpochError, Fit, MASTER, Plan, Shard, SlotMap, Unit, Work};
use refill::Spool;
use restore::Restore;
use std::collections::VecDeque;
use whole::{WantedCut, Whole};

/// What the configuration says about the replica role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowerRules {
    pub link: LinkRules,
    pub load: LoadRules,
    /// `protected-restart`: an empty dataset of another history does not replace one that is not.
    pub protects: bool,
    pub intake: Intake,
}

/// What the layer around has to do.
#[derive(Debug)]
pub enum FollowerAction {
    /// Open a connection to this node, in the place of any before; [`Follower::connected`] or [`Follower::closed`] is the
    /// answer.
    Connect(Target),
    Send(Vec<u8>),
    /// Close the connection; there is no answer to this.
    Close,
    /// Open so many further connections to the master, each with a [`crate::link::part::PartLink`].
    OpenParts {
        token: Token,
        count: usize,
    },
    /// What they bring may be loaded, under this number. What becomes of it is told with [`Follower::part_progress`],
    /// [`Follower::part_loaded`] and [`Follower::part_failed`].
    LoadParts {
        token: Token,
        load: u64,
        count: usize,
    },
    /// Close the further connections, if there are any; there is no answer to this.
    CloseParts,
    /// The role that was asked for is in effect: the configuration is to say so, and who asked is to be told. Then, if it was
    /// an heir, its `PSYNC` is to be answered.
    Answer(RoleRequest),
    /// The role stays as it is, and why.
    Refuse(RoleRequest, &'static str),
    /// A dataset with so many keys was loaded and is in place.
    Loaded {
        keys: u64,
    },
    /// The dataset is a replica's from now on, or a master's.
    Role {
        is_replica: bool,
    },
    /// Do something with the file of the snapshot that is being received.
    Spool {
        number: u64,
        step: SpoolStep,
    },
    /// Something for the log.
    Notice(String),
    Warning(String),
}

/// What the follower works on.
pub struct Site<'a> {
    pub shard: &'a mut Shard,
    pub home: &'a mut Home,
    /// Whether the node holds any keys, as far as that is known here.
    pub has_keys: &'a dyn Fn() -> bool,
    pub now_ms: u64,
}

/// An epoch that is being applied.
struct Applying {
    begin_offset: u64,
    end_offset: u64,
    asks_ack: bool,
}

/// See the module.
pub struct Follower {
    rules: FollowerRules,
    link: Option<Link>,
    pub loads: Loads,
    builder: Builder,
    /// The number of the last epoch.
    epoch: u64,
    applying: Option<Applying>,
    /// What became of it, once every shard concerned has said so.
    applied: Option<Result<(), EpochError>>,
    /// Everything up to here is applied.
    applied_offset: u64,
    whole: Option<Whole>,
    /// The change of role that has just been completed.
    turned: Option<Turn>,
    /// The dataset is still coming from a file.
    restore: Option<Restore>,
    /// A snapshot that is to be cut between two epochs.
    wanted_cut: Option<WantedCut>,
    /// The shards are to collect no effects any more.
    wants_stop: bool,
    /// The dataset is to go before its successor is loaded, which is coming.
    wants_flush: bool,
    /// Parts of that successor that may be loaded then.
    wanted_parts: Option<(Token, usize)>,
    /// The snapshot that is being received, if it goes into a file.
    spool: Option<Spool>,
    /// The number of the last such.
    spools: u64,
    /// The dataset was given up for one that is not in place yet: of what is left no snapshot is made.
    is_given_up: bool,
    /// A dataset that is to be swapped in when every shard has decoded its part.
    wanted_swap: Option<(ReplId, u64)>,
    requests: VecDeque<RoleRequest>,
    /// Even an empty dataset of an unknown history is taken in the place of ours: this master was asked for.
    accepts_empty: bool,
    /// One was refused.
    has_refused: bool,
    /// Commands of the master's stream that failed.
    failed_commands: u64,
    actions: Vec<FollowerAction>,
}

/// The parts of an epoch.
struct Builder(EpochBuilder);

impl Parts for Builder {
    fn fits(&self, id: CommandId, args: Args<'_>) -> bool {
        self.0.fit(id, args) == Fit::Added
    }

    fn push(&mut self, id: CommandId, db: u16, args: Args<'_>) -> bool {
        self.0.push(id, db, args) == Fit::Added
    }
}

impl Follower {
    pub fn new(map: SlotMap, rules: FollowerRules) -> Self {
        Self {
            link: None,
            loads: Loads::new(rules.load),
            rules,
            builder: Builder(EpochBuilder::new(map)),
            epoch: 0,
            applying: None,
            applied: None,
            applied_offset: 0,
            whole: None,
            turned: None,
            restore: None,
            wanted_cut: None,
            wants_stop: false,
            wants_flush: false,
            wanted_parts: None,
            spool: None,
            spools: 0,
            is_given_up: false,
            wanted_swap: None,
            requests: VecDeque::new(),
            accepts_empty: false,
            has_refused: false,
            failed_commands: 0,
            actions: Vec::new(),
        }
    }

    /// Applies a changed configuration.
    pub fn set_rules(&mut self, rules: FollowerRules) {
        if let Some(link) = &mut self.link {
            link.set_rules(rules.link.clone());
        }
        self.loads.set_rules(rules.load);
        self.rules = rules;
    }

    /// What has to be done since this was last asked, in this order.
    pub fn take_actions(&mut self) -> Vec<FollowerAction> {
        std::mem::take(&mut self.actions)
    }

    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Everything up to here is applied by every shard concerned.
    pub fn applied_offset(&self) -> u64 {
        self.applied_offset
    }

    /// The offset behind what was received of the stream.
    pub fn read_offset(&self) -> u64 {
        self.link.as_ref().and_then(Link::read_offset).unwrap_or(self.applied_offset)
    }

    /// Commands of masters' streams that failed.
    pub fn failed_commands(&self) -> u64 {
        self.failed_commands
    }

    /// A master's empty dataset was refused.
    pub fn has_refused(&self) -> bool {
        self.has_refused
    }

    /// When [`Follower::go_on`] has something to do though nothing else happens.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let link = self.link.as_ref().and_then(Link::next_tick_ms);
        link.into_iter().chain(self.next_refill_ms()).min()
    }

    /// So much waits to be applied or loaded that the connection should not be read.
    pub fn is_full(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_full)
    }

    /// Nothing is being done to the dataset.
    pub fn is_idle(&self) -> bool {
        self.applying.is_none() && self.whole.is_none() && self.restore.is_none()
    }

    /// Something of the master's stream is being applied.
    pub fn is_applying(&self) -> bool {
        self.applying.is_some()
    }

    /// Whether [`Follower::go_on`] can have anything to do.
    pub fn is_involved(&self) -> bool {
        let is_asked = !self.requests.is_empty() || self.wanted_cut.is_some() || self.wants_stop;
        (is_asked || self.link.is_some() || self.whole.is_some()) && self.restore.is_none()
    }

    /// The connection that was asked for stands.
    pub fn connected(&mut self, home: &Home, now_ms: u64) {
        if let Some(link) = &mut self.link {
            link.connected(home.position(), now_ms);
        }
    }

    /// It could not be made, or is gone.
    pub fn closed(&mut self, why: &str, now_ms: u64) {
        if let Some(link) = &mut self.link {
            link.closed(why, now_ms);
        }
    }

    /// Bytes came from the master.
    pub fn received(&mut self, bytes: &[u8], now_ms: u64) {
        if let Some(link) = &mut self.link {
            link.received(bytes, now_ms);
        }
    }

    /// So many bytes of a part of a snapshot are loaded.
    pub fn part_progress(&mut self, token: Token, index: usize, read_bytes: u64, now_ms: u64) {
        if let Some(link) = &mut self.link {
            link.part_progress(token, index, read_bytes, now_ms);
        }
    }

    /// A part of this length is loaded, with so many keys.
    pub fn part_loaded(&mut self, token: Token, index: usize, len_bytes: u64, keys: u64, now_ms: u64) {
        if let Some(link) = &mut self.link
            && link.part_loaded(token, index, len_bytes, now_ms)
        {
            self.loads.count_part_keys(keys);
        }
    }

    /// Nothing will come of a part.
    pub fn part_failed(&mut self, token: Token, index: usize, why: &str, now_ms: u64) {
        if let Some(link) = &mut self.link {
            link.part_failed(token, index, why, now_ms);
        }
    }

    /// Every shard concerned has applied the epoch under way, or its transaction has run.
    pub fn epoch_applied(&mut self, outcome: Result<(), EpochError>) {
        let former = self.applied.replace(outcome);
        debug_assert!(former.is_none(), "one epoch at a time");
    }

    /// One round's work. Returns whether there was any.
    pub fn go_on(&mut self, site: &mut Site<'_>) -> bool {
        if !self.is_involved() {
            return false;
        }
        let mut worked = self.finish_epoch(site);
        worked |= self.finish_whole(site);
        worked |= self.answer_requests(site);
        // First: a stream that is continued tells what is applied.
        worked |= self.do_link_actions(site);
        if let Some(link) = &mut self.link
            && link.next_tick_ms().is_some_and(|at_ms| at_ms <= site.now_ms)
        {
            link.tick(self.applied_offset, site.now_ms);
        }
        worked |= self.do_link_actions(site);
        worked |= self.feed_snapshot(site);
        worked |= self.begin_whole(site);
        worked |= self.begin_epoch(site);
        worked |= self.do_link_actions(site);
        worked
    }

    /// The shard has settled: what [`Follower::go_on`] began may be over. Returns whether it is.
    pub fn finish(&mut self, site: &mut Site<'_>) -> bool {
        self.finish_epoch(site) | self.do_link_actions(site)
    }

    /// Goes on with what was received, by one epoch.
    fn begin_epoch(&mut self, site: &mut Site<'_>) -> bool {
        if !self.is_idle() {
            return false;
        }
        let Some(link) = &mut self.link else { return false };
        let epoch = match link.next_epoch(&mut self.builder) {
            Ok(None) => return false,
            Ok(Some(epoch)) => epoch,
            Err(error) => {
                self.distrust(1, &format!("The master's stream cannot be followed {error}"), site);
                return true;
            }
        };
        let begin_offset = epoch.end_offset - epoch.len_bytes();
        let Epoch { pieces, end_offset, db, asks_ack, work } = epoch;
        site.home.relay(pieces, end_offset, db);
        self.applying = Some(Applying { begin_offset, end_offset, asks_ack });
        match work {
            EpochWork::Alone(unit) => begin_alone(site.shard, unit),
            EpochWork::Parts if self.builder.0.is_empty() => self.applied = Some(Ok(())),
            EpochWork::Parts => {
                self.epoch += 1;
                let parts = self.builder.0.take(&mut site.shard.spare_parts);
                site.shard.apply_epoch(self.epoch, parts);
            }
        }
        true
    }

    /// The epoch under way may have been applied.
    fn finish_epoch(&mut self, site: &mut Site<'_>) -> bool {
        let Some(outcome) = self.applied.take() else { return false };
        let Applying { begin_offset, end_offset, asks_ack } =
            self.applying.take().expect("an epoch is being applied");
        // A transaction of its own ran here, and its replies are not looked at.
        let fault = site.shard.take_stream_fault();
        let fault = fault.map(|text| EpochError { index: 0, shard: site.shard.id, text, count: 1 });
        match outcome.and(fault.map_or(Ok(()), Err)) {
            Ok(()) => {
                self.applied_offset = end_offset;
                if let (true, Some(link)) = (asks_ack, &mut self.link) {
                    link.acknowledge(end_offset, site.now_ms);
                }
            }
            Err(EpochError { index, shard, text, count }) => {
                let why = format!(
                    "Command {} of the master's stream between offsets {begin_offset} and {end_offset} failed on shard \
                     {shard}: {text}",
                    index + 1
                );
                self.distrust(count, &why, site);
            }
        }
        true
    }

    /// The dataset is no longer the master's: another is asked for.
    fn distrust(&mut self, commands: u32, why: &str, site: &mut Site<'_>) {
        self.failed_commands += u64::from(commands);
        site.home.distrust_dataset();
        if let Some(link) = &mut self.link {
            link.distrust(why, site.now_ms);
        }
    }

    fn do_link_actions(&mut self, site: &mut Site<'_>) -> bool {
        let actions = self.link.as_mut().map(Link::take_actions).unwrap_or_default();
        let worked = !actions.is_empty();
        for action in actions {
            match action {
                LinkAction::Connect => {
                    let target = self.link.as_ref().expect("it asked").target().clone();
                    self.actions.push(FollowerAction::Connect(target));
                }
                LinkAction::Send(bytes) => self.actions.push(FollowerAction::Send(bytes)),
                LinkAction::Close => self.actions.push(FollowerAction::Close),
                LinkAction::BeginLoading => self.begin_intake(site),
                LinkAction::AbandonLoading => self.abandon_intake(site),
                LinkAction::OpenParts { token, count } => {
                    self.actions.push(FollowerAction::OpenParts { token, count });
                }
                LinkAction::LoadParts { token, count } => self.load_parts(token, count, site.now_ms),
                LinkAction::CloseParts => self.actions.push(FollowerAction::CloseParts),
                LinkAction::Swap { id, offset } => {
                    self.loads.parts_loaded();
                    self.wanted_swap = Some((id, offset));
                }
                LinkAction::Continue { id } => {
                    site.home.continue_as(id);
                    site.home.failover_done(site.now_ms);
                    (self.accepts_empty, self.has_refused) = (false, false);
                    // What is being applied is so when it is.
                    if self.applying.is_none() {
                        self.applied_offset = site.home.end_offset();
                    }
                }
                LinkAction::FailoverRefused(why) => {
                    let why = format!("Failover target rejected psync request: {why}");
                    site.home.failover_refused(&why, site.now_ms);
                }
                LinkAction::Notice(text) => self.actions.push(FollowerAction::Notice(text)),
                LinkAction::Warning(text) => self.actions.push(FollowerAction::Warning(text)),
            }
        }
        site.home.set_link(self.link.as_ref().is_some_and(Link::is_up));
        worked
    }

    /// Gives the loader what it takes of a snapshot.
    fn feed_snapshot(&mut self, site: &mut Site<'_>) -> bool {
        if self.spool.is_some() {
            return self.feed_spool(site.now_ms);
        }
        if matches!(self.whole, Some(Whole::Refill(_))) {
            // What is being loaded comes from a file, or the old dataset has to go first.
            return false;
        }
        let Some(link) = &mut self.link else { return false };
        let why = |fault| format!("Failed trying to load the MASTER synchronization DB: {fault}");
        if let Some(fault) = self.loads.take_fault() {
            if self.wanted_swap.take().is_some() {
                link.swapped(Err(&why(fault)), site.now_ms);
            } else {
                link.fail(&why(fault), site.now_ms);
            }
            return true;
        }
        if link.payload().is_empty() || !self.loads.wants_more() {
            return false;
        }
        let len = link.payload().len().min(FEED_BYTES);
        match self.loads.feed(site.shard, &link.payload()[..len]) {
            Ok(used) => {
                let is_whole = self.loads.loader().is_some_and(|loader| loader.is_read());
                link.consume_payload(used, is_whole, site.now_ms);
            }
            Err(fault) => link.fail(&why(fault), site.now_ms),
        }
        true
    }
}

/// Begins what is a transaction over several shards.
fn begin_alone(shard: &mut Shard, unit: Unit) {
    let plan = Plan::of(&unit, [], shard.map);
    let keys = (!plan.everywhere).then_some(plan.keys);
    shard.begin(keys, Work::Commands { caller: MASTER, unit });
}

#[cfg(test)]
mod tests;
