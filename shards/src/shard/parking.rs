//! What has to wait for a transaction to return a key, or for a snapshot to write it.
//!
//! Commands that wait have an age, as transactions have, and their keys are not lent to younger transactions: so they
//! wait for what is older only, of which there is less and less, and however many transactions come later they get their
//! turn. They hold nothing and are older than whatever waits for them, so there is no deadlock either ([`crate::locks`]).

use super::running::walks_keys;
use super::{Host, Loopback, Shard};
use crate::flight::Leg;
use crate::locks::{Claim, LockKeys, TxId};
use crate::parcel::{Caller, ConnId, Msg};
use crate::slots::ShardId;
use crate::tx::WaitingClaim;
use crate::unit::Unit;
use braid_core::command::registry;
use braid_core::keyspace::WatcherId;
use braid_core::resp::Reply;

/// Commands that wait until a transaction returns a key.
pub(crate) struct ParkedRun {
    pub(super) from: ShardId,
    pub(super) caller: Caller,
    /// None: it is all that the connection, which is one of this shard's, has under way.
    pub(super) leg: Option<Leg>,
    pub(super) unit: Unit,
    /// Replies to what ran before.
    pub(super) done: Reply,
    /// Since when they wait. None: they have not been tried.
    waits_since: Option<TxId>,
    /// What younger transactions have to leave to them. None: they wait for none.
    wants: Option<Claim>,
}

impl ParkedRun {
    pub(super) fn new(from: ShardId, caller: Caller, leg: Option<Leg>, unit: Unit, done: Reply) -> Self {
        Self { from, caller, leg, unit, done, waits_since: None, wants: None }
    }
}

/// What waits for a transaction to return something.
pub(crate) enum Waiting {
    Run(Box<ParkedRun>),
    Claim(WaitingClaim),
    Unwatch(WatcherId),
}

impl Shard {
    /// Runs commands of this shard's own connection in [`Shard::settle`]; the answer comes through [`Host::reply`].
    /// With [`RunFlags::atomic`] they are a transaction whose keys all live here.
    pub fn run_later(&mut self, caller: Caller, unit: Unit) {
        let done = Reply::new(caller.flags.resp3);
        let run = ParkedRun::new(self.id, caller, None, unit, done);
        self.loopback.push_back(Loopback::Run(Box::new(run)));
    }

    /// Lets commands wait, the first of which is blocked.
    pub(super) fn park(&mut self, mut run: ParkedRun) {
        // If nothing is on loan they wait for a walk, or for the end of a hold, during which nothing is lent.
        run.wants = if self.locks.has_loans() { self.claim_of(&run) } else { None };
        let youngest_holder = run.wants.as_ref().and_then(|claim| self.locks.youngest_holder(claim));
        // Who waits is younger than whom it waits for.
        let keeps_age = |id: &TxId| youngest_holder.is_none_or(|holder| holder < *id);
        let id = run.waits_since.filter(keeps_age).unwrap_or_else(|| self.next_tx_id());
        run.waits_since = Some(id);
        self.waiting.insert(id, Waiting::Run(Box::new(run)));
    }

    /// What the first of the commands needs; of a transaction, what all do, and what it watches. None: they wait for the
    /// walk of a snapshot, which may take long.
    fn claim_of(&mut self, run: &ParkedRun) -> Option<Claim> {
        let ParkedRun { caller, unit, .. } = run;
        let mut keys = LockKeys::default();
        let count = if caller.flags.atomic { usize::MAX } else { 1 };
        for command in unit.commands().take(count) {
            let args = command.args();
            let declared = registry().get(command.id).resolve(args);
            if walks_keys(declared) {
                return Some(Claim::Everything);
            }
            let found = declared.find_keys(args).unwrap_or_default();
            if declared.is_write() && self.awaits_walk(found.iter().map(|key| args[key.index])) {
                return None;
            }
            found.iter().for_each(|key| keys.push(args[key.index]));
        }
        if let (Some(keyspace), Some(watcher), true) = (&self.keyspace, caller.watcher, caller.flags.atomic) {
            keyspace.watches.keys(watcher).for_each(|key| keys.push(key));
        }
        Some(Claim::of(keys.finish()))
    }

    /// Something older than `id` waits for what `claim` asks for.
    pub(crate) fn is_awaited(&self, claim: &Claim, id: TxId) -> bool {
        self.waiting.range(..id).any(|(_, other)| match other {
            Waiting::Run(run) => run.wants.as_ref().is_some_and(|wanted| wanted.conflicts_with(claim)),
            Waiting::Claim(other) => other.claim.conflicts_with(claim),
            Waiting::Unwatch(_) => false,
        })
    }

    /// Who is older than `id` has something of `claim` on loan.
    pub(crate) fn is_held_by_older(&self, claim: &Claim, id: TxId) -> bool {
        self.locks.youngest_holder(claim).is_some_and(|holder| holder < id)
    }

    /// Tries again what waits, the oldest first. To be called whenever something was returned.
    pub(crate) fn retry_waiting(&mut self, host: &mut impl Host) {
        if self.locks.is_holding() {
            return;
        }
        // What is tried sees only what is older waiting.
        for (id, waiting) in std::mem::take(&mut self.waiting) {
            match waiting {
                // To find that out by trying takes much longer, and many may wait for the same key.
                Waiting::Run(run)
                    if run.wants.as_ref().is_some_and(|claim| self.is_held_by_older(claim, id)) =>
                {
                    self.waiting.insert(id, Waiting::Run(run));
                }
                Waiting::Claim(claim) => self.try_claim(claim),
                Waiting::Unwatch(watcher) => self.unwatch_here(watcher),
                Waiting::Run(run) => self.try_run(*run, host),
            }
        }
    }

    /// Runs commands that own their bytes as far as nothing blocks them.
    pub(super) fn try_run(&mut self, run: ParkedRun, host: &mut impl Host) {
        let ParkedRun { from, caller, leg, unit, mut done, waits_since, .. } = run;
        let mut commands = unit.commands();
        if self.run_commands(caller, &mut commands, &mut done, host) {
            self.answer(from, caller.conn, leg, done, host);
        } else {
            let unit = commands.into_unit();
            self.park(ParkedRun { waits_since, ..ParkedRun::new(from, caller, leg, unit, done) });
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

    pub(super) fn unwatch_here(&mut self, watcher: WatcherId) {
        if self
            .loopback
            .iter()
            .any(|own| matches!(own, Loopback::Run(run) if run.caller.watcher == Some(watcher)))
        {
            // The watch is about to begin.
            return self.loopback.push_back(Loopback::Unwatch(watcher));
        }
        let begins_later = self
            .waiting
            .iter()
            .any(|(_, other)| matches!(other, Waiting::Run(run) if run.caller.watcher == Some(watcher)));
        match &mut self.keyspace {
            Some(keyspace) if !begins_later => keyspace.watches.unwatch(watcher),
            // It is on loan as a whole, and the watch ends when it is back; or what begins the watch waits.
            _ => {
                let id = self.next_tx_id();
                self.waiting.insert(id, Waiting::Unwatch(watcher));
            }
        }
    }
}

#[cfg(test)]
mod tests;
