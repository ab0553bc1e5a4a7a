//! What has to wait for a transaction to return a key, or for a snapshot to write it.

use super::{Host, Loopback, Shard};
use crate::flight::Leg;
use crate::parcel::{Caller, ConnId, Msg};
use crate::slots::ShardId;
use crate::tx::WaitingClaim;
use crate::unit::Unit;
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
        let run = ParkedRun { from: self.id, caller, leg: None, unit, done };
        self.loopback.push_back(Loopback::Run(Box::new(run)));
    }

    pub(super) fn park(&mut self, run: ParkedRun) {
        self.waiting.push_back(Waiting::Run(Box::new(run)));
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
    pub(super) fn try_run(&mut self, run: ParkedRun, host: &mut impl Host) {
        let ParkedRun { from, caller, leg, unit, mut done } = run;
        let mut commands = unit.commands();
        if self.run_commands(caller, &mut commands, &mut done, host) {
            self.answer(from, caller.conn, leg, done, host);
        } else {
            let unit = commands.into_unit();
            self.park(ParkedRun { from, caller, leg, unit, done });
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
            .any(|other| matches!(other, Waiting::Run(run) if run.caller.watcher == Some(watcher)));
        match &mut self.keyspace {
            Some(keyspace) if !begins_later => keyspace.watches.unwatch(watcher),
            // It is on loan as a whole, and the watch ends when it is back; or what begins the watch waits.
            _ => self.waiting.push_back(Waiting::Unwatch(watcher)),
        }
    }
}
