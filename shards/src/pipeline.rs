//! From a connection's commands to the shards that run them: where a command's keys are, and what program order (law 2)
//! lets be under way together. How the order is kept is told in [`crate::flight`].

use crate::flight::FlightId;
use crate::locks::{LockKey, LockKeys};
use crate::slots::{ShardId, SlotMap};
use crate::unit::Unit;
use braid_core::command::{Args, Command, Handler, registry};

/// Most commands of one connection that are under way together; it bounds what their answers take.
pub const FLIGHT_MAX_COMMANDS: u32 = 256;

/// Where a command is to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// On the connection's shard.
    Here,
    /// On another shard.
    Shard(ShardId),
    /// On several shards, as a transaction, or in the connection itself.
    Alone,
}

/// What program order says about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Nothing of this connection is under way: run it.
    Run,
    /// Send it with [`crate::Shard::submit`]; more may follow.
    Send,
    /// It has to wait for the answer to what was sent before.
    Later,
}

/// The flight that a batch of commands opened, as far as it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenFlight {
    pub id: FlightId,
    /// The shard of its last leg, and where that stands among the messages to it.
    pub to: ShardId,
    pub message: usize,
    pub commands: u32,
}

/// Program order within one batch of a connection's commands. When the batch is through and a flight is open, the
/// connection waits for its answers before the next batch begins.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) open: Option<OpenFlight>,
    pub(crate) is_ordered: bool,
}

impl Default for Pipeline {
    #[inline]
    fn default() -> Self {
        Self { open: None, is_ordered: true }
    }
}

impl Pipeline {
    /// Without order: every leg runs at once. It exists to prove that the tests of law 2 notice.
    pub fn unordered() -> Self {
        Self { open: None, is_ordered: false }
    }

    /// Something was sent in this batch.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the next command may go where it has to go.
    #[inline]
    pub fn admit(&self, target: Target) -> Admit {
        match (target, &self.open) {
            (Target::Here | Target::Alone, None) => Admit::Run,
            (Target::Shard(_), None) => Admit::Send,
            (Target::Alone, Some(_)) => Admit::Later,
            (_, Some(open)) if open.commands >= FLIGHT_MAX_COMMANDS => Admit::Later,
            (Target::Here, Some(_)) if !self.is_ordered => Admit::Run,
            (_, Some(_)) => Admit::Send,
        }
    }
}

/// Where a command's keys are.
pub enum Place {
    One(ShardId),
    Several(Vec<LockKey>),
    Everywhere,
}

/// Finds where a command runs. Commands without keys run where they are.
#[inline]
pub fn place(command: &Command, args: Args<'_>, map: SlotMap, here: ShardId) -> Place {
    if map.shards() == 1 {
        return Place::One(here);
    }
    match command.handler {
        Handler::Keys(_) => {}
        Handler::Whole(_) => return Place::Everywhere,
        Handler::Session | Handler::Cursor(_) => return Place::One(here),
    }
    // Most commands have one key, at a fixed place.
    if let [spec] = command.keys
        && let Some(index) = spec.single_index()
        && let Some(key) = args.get(index)
    {
        return Place::One(map.shard_of(key));
    }
    // Arguments that do not fit the specs make the command itself fail, anywhere.
    let Some(keys) = command.find_keys(args) else { return Place::One(here) };
    let mut owners = keys.iter().map(|key| map.shard_of(args[key.index]));
    let Some(first) = owners.next() else { return Place::One(here) };
    if owners.all(|owner| owner == first) {
        return Place::One(first);
    }
    Place::Several(keys.iter().map(|key| args[key.index]).collect::<LockKeys>().finish())
}

/// What a transaction's commands need.
#[derive(Default)]
pub struct Plan {
    pub everywhere: bool,
    pub keys: Vec<LockKey>,
    /// Shards that own its keys, each once.
    pub owners: Vec<ShardId>,
    /// It has commands that only the connection's shard can run.
    pub has_session: bool,
}

impl Plan {
    pub fn of<'a>(unit: &Unit, watched: impl IntoIterator<Item = &'a [u8]>, map: SlotMap) -> Self {
        let mut plan = Plan::default();
        let mut all = LockKeys::default();
        let mut add = |plan: &mut Plan, key: &[u8]| {
            let owner = map.shard_of(key);
            if !plan.owners.contains(&owner) {
                plan.owners.push(owner);
            }
            all.push(key);
        };
        for command in unit.commands() {
            let args = command.args();
            let declared = registry().get(command.id).resolve(args);
            match declared.handler {
                Handler::Session => plan.has_session = true,
                Handler::Whole(_) | Handler::Cursor(_) => plan.everywhere = true,
                Handler::Keys(_) => {
                    for key in declared.find_keys(args).unwrap_or_default() {
                        add(&mut plan, args[key.index]);
                    }
                }
            }
        }
        for key in watched {
            add(&mut plan, key);
        }
        plan.keys = all.finish();
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law2_what_concerns_several_shards_waits_for_what_is_under_way() {
        let mut pipeline = Pipeline::default();
        assert_eq!(pipeline.admit(Target::Here), Admit::Run);
        assert_eq!(pipeline.admit(Target::Alone), Admit::Run);
        assert_eq!(pipeline.admit(Target::Shard(3)), Admit::Send);
        pipeline.open = Some(OpenFlight { id: 0, to: 3, message: 0, commands: 1 });
        // What belongs here follows what was sent before.
        assert_eq!(pipeline.admit(Target::Here), Admit::Send);
        assert_eq!(pipeline.admit(Target::Shard(2)), Admit::Send);
        assert_eq!(pipeline.admit(Target::Alone), Admit::Later);
        pipeline.open = Some(OpenFlight { id: 0, to: 3, message: 0, commands: FLIGHT_MAX_COMMANDS });
        assert_eq!(pipeline.admit(Target::Shard(2)), Admit::Later);
    }

    #[test]
    fn commands_go_to_the_owners_of_their_keys() {
        let map = SlotMap::new(8);
        let place_of = |line: &str| {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            place(registry().find(args[0]).unwrap().1, Args::new(&args, &[]), map, 5)
        };
        assert!(matches!(place_of("get a"), Place::One(owner) if owner == map.shard_of(b"a")));
        assert!(matches!(place_of("mget {t}1 {t}2"), Place::One(owner) if owner == map.shard_of(b"t")));
        assert!(matches!(place_of("mget a b a"), Place::Several(keys) if keys.len() == 3));
        assert!(matches!(place_of("flushall"), Place::Everywhere));
        assert!(matches!(place_of("ping"), Place::One(5)));
        let mut unit = Unit::default();
        for line in ["set a 1", "get a"] {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            unit.push(registry().find(args[0]).unwrap().0, 0, Args::new(&args, &[]));
        }
        let plan = Plan::of(&unit, [&b"b"[..]], map);
        assert_eq!(plan.owners, [map.shard_of(b"a"), map.shard_of(b"b")]);
        assert!(!plan.everywhere && !plan.has_session);
    }
}
