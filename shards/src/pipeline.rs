//! From a connection's commands to the shards that run them: where a command's keys are, and program order (law 2).
//!
//! The rule: the commands of one connection go to one shard at a time. Consecutive commands for the same shard go
//! together; the next one for another shard waits until those are answered.

use crate::locks::LockKey;
use crate::slots::{ShardId, SlotMap};
use crate::unit::Unit;
use braid_core::command::{Args, Command, Handler, registry};

/// Most commands of one connection that travel as one run; it bounds the receiver's tick.
pub const RUN_MAX_COMMANDS: u32 = 256;

/// Where a command is to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Here and now, or as a transaction that this shard coordinates.
    Here,
    /// On another shard.
    Shard(ShardId),
}

/// What program order says about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Nothing of this connection is under way: run it.
    Run,
    /// Send it; more may follow.
    Send,
    /// It has to wait for the answer to what was sent before.
    Later,
}

/// Commands on their way to one shard: which, and how many.
#[derive(Debug, Clone, Copy)]
struct OpenRun {
    to: ShardId,
    commands: u32,
}

/// Program order within one batch of a connection's commands. When the batch is through and a run is open, the
/// connection waits for its answer before the next batch begins.
#[derive(Debug)]
pub struct Pipeline {
    open: Option<OpenRun>,
    is_ordered: bool,
}

impl Default for Pipeline {
    #[inline]
    fn default() -> Self {
        Self { open: None, is_ordered: true }
    }
}

impl Pipeline {
    /// Without the rule: everything goes at once. It exists to prove that the tests of law 2 notice.
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
    pub fn admit(&mut self, target: Target) -> Admit {
        match (target, &mut self.open) {
            (Target::Here, None) => Admit::Run,
            (Target::Shard(to), open @ None) => {
                *open = Some(OpenRun { to, commands: 1 });
                Admit::Send
            }
            (Target::Shard(to), Some(open)) if open.to == to && open.commands < RUN_MAX_COMMANDS => {
                open.commands += 1;
                Admit::Send
            }
            (_, Some(_)) if self.is_ordered => Admit::Later,
            (Target::Here, Some(_)) => Admit::Run,
            (Target::Shard(_), Some(_)) => Admit::Send,
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
    Place::Several(keys.iter().map(|key| args[key.index].into()).collect())
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
        for command in unit.commands() {
            let args = command.args();
            let declared = registry().get(command.id).resolve(args);
            match declared.handler {
                Handler::Session => plan.has_session = true,
                Handler::Whole(_) | Handler::Cursor(_) => plan.everywhere = true,
                Handler::Keys(_) => {
                    for key in declared.find_keys(args).unwrap_or_default() {
                        plan.add(args[key.index], map);
                    }
                }
            }
        }
        for key in watched {
            plan.add(key, map);
        }
        plan
    }

    fn add(&mut self, key: &[u8], map: SlotMap) {
        let owner = map.shard_of(key);
        if !self.owners.contains(&owner) {
            self.owners.push(owner);
        }
        self.keys.push(key.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law2_one_shard_at_a_time() {
        let mut pipeline = Pipeline::default();
        assert_eq!(pipeline.admit(Target::Here), Admit::Run);
        assert_eq!(pipeline.admit(Target::Shard(3)), Admit::Send);
        assert!(pipeline.is_open());
        assert_eq!(pipeline.admit(Target::Shard(3)), Admit::Send);
        assert_eq!(pipeline.admit(Target::Here), Admit::Later);
        assert_eq!(pipeline.admit(Target::Shard(2)), Admit::Later);
        let mut unordered = Pipeline::unordered();
        let targets = [Target::Shard(3), Target::Here, Target::Shard(2)];
        assert_eq!(targets.map(|target| unordered.admit(target)), [Admit::Send, Admit::Run, Admit::Send]);
    }

    #[test]
    fn a_run_is_bounded() {
        let mut pipeline = Pipeline::default();
        for _ in 0..RUN_MAX_COMMANDS {
            assert_eq!(pipeline.admit(Target::Shard(1)), Admit::Send);
        }
        assert_eq!(pipeline.admit(Target::Shard(1)), Admit::Later);
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
