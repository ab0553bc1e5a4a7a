//! A replica applies its master's stream in epochs: a stretch of commands, split by the shards that own their keys.
//!
//! The home shard cuts the stream into epochs ([`EpochBuilder`]) and sends each shard its part ([`Shard::apply_epoch`]). A
//! shard applies its part at once and says so; no command is answered on its own. If an epoch concerns several shards, each
//! of them holds until all have applied their parts: it runs no client command and lends nothing. So whoever reads here
//! sees the state between two epochs and nothing else, which is law 2 and the atomicity of the master's transactions.
//!
//! A part may find keys on loan to a client's transaction. That transaction may wait for a shard that holds, so the part
//! cannot simply wait for it: the owner recalls the loan, and a coordinator that has not got all its loans yet returns those
//! it has and starts over. One that has them all runs at once and returns them anyway. Hence an epoch waits for nothing but
//! messages under way. A transaction that was recalled goes before the epoch after the next, so it is recalled twice at most. Since a hold ends only when every part is applied, while a loan taken before a part arrived
//! keeps that part back, transactions and epochs are serializable (both are strictly two-phase).

use crate::locks::TxId;
use crate::parcel::{Caller, ConnId, Msg, RunFlags, TxMsg};
use crate::pipeline::{Place, place};
use crate::shard::{AHEAD, Host, Shard, prefetch};
use crate::slots::{ShardId, SlotMap};
use crate::unit::{Decoded, Unit, likely_keys};
use braid_core::command::{ArgList, Args, Command, CommandId, Handler, registry};
use braid_core::resp::Reply;
use smallvec::SmallVec;

/// The connection that the master's commands count as. No real one has this name.
pub const MASTER_CONN: ConnId = ConnId(u64::MAX);

/// As whom commands of the master's stream run.
pub const MASTER: Caller = Caller {
    conn: MASTER_CONN,
    flags: RunFlags { resp3: false, atomic: false, no_touch: false, from_master: true },
    watcher: None,
};

/// One shard's commands of an epoch.
#[derive(Default)]
pub struct Part {
    unit: Unit,
    /// Of each command, its number within the epoch.
    indexes: Vec<u32>,
}

/// A part that grew beyond this is not kept for reuse.
const KEEP_PART_BYTES: usize = 512 << 10;

impl Part {
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// Makes it ready for reuse.
    fn cleared(mut self) -> Self {
        if self.unit.bytes.capacity() > KEEP_PART_BYTES {
            return Self::default();
        }
        self.unit.clear();
        self.indexes.clear();
        self
    }
}

/// Commands of an epoch that failed: on a faithful replica none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochError {
    /// The first that failed, by its number within the epoch.
    pub index: u32,
    /// The shard that it failed on.
    pub shard: ShardId,
    /// Its error reply, without the `-` and the line's end.
    pub text: String,
    /// How many failed.
    pub count: u32,
}

/// What became of a command offered to an [`EpochBuilder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Added,
    /// It works on several shards at once and has to run as a transaction of its own, between epochs.
    Alone,
    /// It is about a connection or the server, not about keys, or it is a cursor's step.
    Unfit,
}

/// Keys of a command: their owners, and where they stand among the arguments.
type Owned = SmallVec<[(ShardId, u32); 16]>;

/// Where a command of an epoch goes.
enum Spread {
    One(ShardId),
    /// To several owners, to each with its own keys.
    Split {
        stride: usize,
        owned: Owned,
    },
}

/// Splits commands by the shards that own their keys.
pub struct EpochBuilder {
    map: SlotMap,
    parts: Vec<Part>,
    commands: u32,
    len_bytes: usize,
}

impl EpochBuilder {
    pub fn new(map: SlotMap) -> Self {
        Self { map, parts: (0..map.shards()).map(|_| Part::default()).collect(), commands: 0, len_bytes: 0 }
    }

    /// Commands added since the last [`EpochBuilder::take`].
    pub fn commands(&self) -> u32 {
        self.commands
    }

    /// Bytes of their arguments.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }

    /// Whether a command could be added.
    pub fn fit(&self, id: CommandId, args: Args<'_>) -> Fit {
        match self.place(registry().get(id).resolve(args), args) {
            Ok(_) => Fit::Added,
            Err(fit) => fit,
        }
    }

    /// Adds a command if it fits.
    pub fn push(&mut self, id: CommandId, db: u16, args: Args<'_>) -> Fit {
        match self.place(registry().get(id).resolve(args), args) {
            Ok(Spread::One(to)) => self.add(to, id, db, args),
            Ok(Spread::Split { stride, owned }) => self.split(id, db, args, stride, owned),
            Err(fit) => return fit,
        }
        self.commands += 1;
        self.len_bytes += args.iter().map(|arg| arg.len()).sum::<usize>();
        Fit::Added
    }

    /// Where a command goes; or why it cannot be added.
    fn place(&self, command: &Command, args: Args<'_>) -> Result<Spread, Fit> {
        if matches!(command.handler, Handler::Session | Handler::Cursor(_)) {
            return Err(Fit::Unfit);
        }
        if let Some(stride) = stride(command).filter(|_| self.map.shards() > 1) {
            let owned = (1..args.len()).step_by(stride).map(|at| (self.map.shard_of(args[at]), at as u32));
            let owned: Owned = owned.collect();
            let first = owned.first().map_or(0, |(owner, _)| *owner);
            return Ok(match owned.iter().all(|(owner, _)| *owner == first) {
                true => Spread::One(first),
                false => Spread::Split { stride, owned },
            });
        }
        match place(command, args, self.map, 0) {
            Place::One(to) => Ok(Spread::One(to)),
            Place::Several(_) | Place::Everywhere => Err(Fit::Alone),
        }
    }

    fn add(&mut self, to: ShardId, id: CommandId, db: u16, args: Args<'_>) {
        let part = &mut self.parts[usize::from(to)];
        part.unit.push(id, db, args);
        part.indexes.push(self.commands);
    }

    /// Splits a command that does the same to each of its keys, each with the `stride - 1` arguments behind it.
    fn split(&mut self, id: CommandId, db: u16, args: Args<'_>, stride: usize, mut owned: Owned) {
        // Keys of one owner stay in their order.
        owned.sort_unstable();
        for keys in owned.chunk_by(|(left, _), (right, _)| left == right) {
            let mut list = ArgList::default();
            list.push(args[0]);
            for (_, at) in keys {
                let at = *at as usize;
                for index in at..(at + stride).min(args.len()) {
                    match args.shared(index) {
                        Some(value) => list.push_shared(args[index], value),
                        None => list.push(args[index]),
                    }
                }
            }
            self.add(keys[0].0, id, db, list.args());
        }
    }

    /// The parts, by shard; the builder is empty again. `spare`: parts that were applied ([`Shard::spare_parts`]), whose memory
    /// it goes on with.
    pub fn take(&mut self, spare: &mut Vec<Part>) -> Vec<(ShardId, Part)> {
        self.commands = 0;
        self.len_bytes = 0;
        let used = self.parts.iter_mut().zip(0..).filter(|(part, _)| part.unit.count > 0);
        used.map(|(part, shard)| (shard, std::mem::replace(part, spare.pop().unwrap_or_default()))).collect()
    }
}

/// For commands that do the same to each key on its own: after how many arguments the next key comes.
fn stride(command: &Command) -> Option<usize> {
    match command.name {
        "del" | "unlink" => Some(1),
        "mset" => Some(2),
        _ => None,
    }
}

/// Messages about an epoch.
pub enum EpochMsg {
    /// Home to owner: apply this. `holds`: and let nobody see it before the release.
    Apply { epoch: u64, holds: bool, part: Part },
    /// Owner to home: it is applied, and the part comes back empty.
    Applied { epoch: u64, error: Option<EpochError>, part: Part },
    /// Home to owner: everybody has applied it.
    Release { epoch: u64 },
    /// Coordinator to home: a transaction that was recalled is to run before the next epoch begins.
    Wait,
    /// Coordinator to home: it ran.
    GoOn,
}

/// An epoch under way, at the home shard.
pub(crate) struct Outstanding {
    epoch: u64,
    shards: SmallVec<[ShardId; 8]>,
    left: usize,
    error: Option<EpochError>,
}

/// A part that came and waits for keys on loan.
pub(crate) struct WaitingPart {
    epoch: u64,
    holds: bool,
    part: Part,
}

impl Shard {
    /// Home shard: begins an epoch; its end is told by [`Host::epoch_applied`]. The caller then calls [`Shard::settle`].
    ///
    /// # Panics
    /// If the epoch before is not over, or there is nothing to apply.
    pub fn apply_epoch(&mut self, epoch: u64, parts: Vec<(ShardId, Part)>) {
        assert!(!self.has_epoch(), "one epoch at a time");
        assert!(!parts.is_empty(), "an epoch concerns somebody");
        if self.recalled_txs > 0 {
            self.postponed = Some((epoch, parts));
        } else {
            self.begin_epoch(epoch, parts);
        }
    }

    fn begin_epoch(&mut self, epoch: u64, parts: Vec<(ShardId, Part)>) {
        let holds = parts.len() > 1;
        let shards: SmallVec<[ShardId; 8]> = parts.iter().map(|(shard, _)| *shard).collect();
        self.counters.sequencer.begin_unrest(parts.len() as u64);
        self.outstanding = Some(Outstanding { epoch, left: shards.len(), shards, error: None });
        for (to, part) in parts {
            self.send(to, Msg::Epoch(Box::new(EpochMsg::Apply { epoch, holds, part })));
        }
    }

    /// Home shard: whether an epoch is under way.
    pub fn has_epoch(&self) -> bool {
        self.outstanding.is_some() || self.postponed.is_some()
    }

    pub(crate) fn receive_epoch(&mut self, from: ShardId, message: EpochMsg, host: &mut impl Host) {
        match message {
            EpochMsg::Apply { epoch, holds, part } => {
                assert!(self.part.is_none() && !self.locks.is_holding(), "released before the next");
                // From here on nothing new is lent, so that what the part waits for can only become less.
                self.locks.hold();
                self.recall_loans(&part);
                self.part = Some(Box::new(WaitingPart { epoch, holds, part }));
                self.try_part(host);
            }
            EpochMsg::Applied { epoch, error, part } => {
                if self.spare_parts.len() < self.map.shards() {
                    self.spare_parts.push(part);
                }
                self.part_applied(from, epoch, error, host);
            }
            EpochMsg::Release { .. } => self.release_hold(host),
            EpochMsg::Wait => self.recalled_txs += 1,
            EpochMsg::GoOn => {
                self.recalled_txs -= 1;
                if self.recalled_txs == 0
                    && let Some((epoch, parts)) = self.postponed.take()
                {
                    self.begin_epoch(epoch, parts);
                }
            }
        }
    }

    /// Asks for the loans back that a part needs.
    fn recall_loans(&mut self, part: &Part) {
        if !self.locks.has_loans() {
            return;
        }
        let mut holders: SmallVec<[TxId; 4]> = self.locks.exclusive_holder().into_iter().collect();
        for command in part.unit.commands() {
            let args = command.args();
            let keys = registry().get(command.id).resolve(args).find_keys(args).unwrap_or_default();
            holders.extend(keys.iter().filter_map(|key| self.locks.holder(args[key.index])));
        }
        holders.sort_unstable();
        holders.dedup();
        for id in holders {
            let (coordinator, token) = self.borrowers[&id];
            self.send(coordinator, Msg::Tx(Box::new(TxMsg::Recall { token, id })));
        }
    }

    /// Applies the part that waits, if nothing of it is on loan any more. To be called whenever something was returned.
    pub(crate) fn try_part(&mut self, host: &mut impl Host) {
        let Some(waiting) = self.part.take_if(|waiting| {
            // A command without keys that is not about the whole slice needs none of it.
            let is_free = |args: Args<'_>, command: &Command| {
                let keys = command.find_keys(args).unwrap_or_default();
                keys.iter().all(|key| self.locks.holder(args[key.index]).is_none())
                    && (!matches!(command.handler, Handler::Whole(_)) || !self.locks.has_loans())
            };
            self.keyspace.is_some()
                && (!self.locks.has_loans()
                    || waiting.part.unit.commands().all(|command| {
                        is_free(command.args(), registry().get(command.id).resolve(command.args()))
                    }))
        }) else {
            return;
        };
        let WaitingPart { epoch, holds, part } = *waiting;
        let error = self.apply_part(&part, host);
        let part = part.cleared();
        self.send(self.home(), Msg::Epoch(Box::new(EpochMsg::Applied { epoch, error, part })));
        if !holds {
            self.release_hold(host);
        }
    }

    fn apply_part(&mut self, part: &Part, host: &mut impl Host) -> Option<EpochError> {
        let mut keyspace = self.keyspace.take().expect("not on loan: checked before");
        let mut out = Reply::default();
        let mut error: Option<EpochError> = None;
        let mut keys = likely_keys(&part.unit.bytes);
        let (mut commands, mut command) = (part.unit.commands(), Decoded::default());
        let mut now_ns = 0;
        for (at, index) in part.indexes.iter().enumerate() {
            assert!(commands.decode(&mut command), "each has its number");
            if at % AHEAD == 0 {
                prefetch(&keyspace, command.db, keys.by_ref().take(AHEAD));
                now_ns = host.monotonic_ns();
            }
            let mark = out.mark();
            now_ns = self.run_since(now_ns, &mut keyspace, MASTER, command.invocation(), &mut out, host);
            if out.buf.first() == Some(&b'-') {
                match &mut error {
                    Some(error) => error.count += 1,
                    None => {
                        let text = String::from_utf8_lossy(&out.buf[1..]).trim_end().to_owned();
                        error = Some(EpochError { index: *index, shard: self.id, text, count: 1 });
                    }
                }
            }
            out.truncate(mark);
        }
        self.keyspace = Some(keyspace);
        error
    }

    fn release_hold(&mut self, host: &mut impl Host) {
        self.locks.release_hold();
        self.retry_waiting(host);
        self.counters.sequencer.end_unrest();
    }

    /// Home: a shard has applied its part.
    fn part_applied(&mut self, from: ShardId, epoch: u64, error: Option<EpochError>, host: &mut impl Host) {
        let outstanding = self.outstanding.as_mut().expect("an epoch is under way");
        assert_eq!(outstanding.epoch, epoch, "one epoch at a time");
        assert!(outstanding.shards.contains(&from), "only who was asked answers");
        outstanding.left -= 1;
        outstanding.error = match (outstanding.error.take(), error) {
            (Some(one), Some(other)) => {
                let count = one.count + other.count;
                let first = if one.index <= other.index { one } else { other };
                Some(EpochError { count, ..first })
            }
            (one, other) => one.or(other),
        };
        if outstanding.left > 0 {
            return;
        }
        let Outstanding { shards, error, .. } = self.outstanding.take().expect("just used");
        if shards.len() > 1 {
            for to in shards {
                self.send(to, Msg::Epoch(Box::new(EpochMsg::Release { epoch })));
            }
        }
        host.epoch_applied(epoch, error.map_or(Ok(()), Err));
    }
}

#[cfg(test)]
mod tests;
