//! Transactions over several shards.
//!
//! The coordinator is the shard of the connection. It borrows the keys concerned from their owners: each owner takes
//! the entries out of its slice, remembers that they are on loan ([`crate::locks`]), and sends them. When all have
//! come the coordinator runs the commands on a scratch keyspace with the very code that runs on a slice, and sends the
//! entries back. So every command works over any shards, its effects are one piece of one tick's segment, and at any
//! moment each entry belongs to exactly one thread.
//!
//! A transaction over the whole keyspace (`FLUSHALL`, the cut of a snapshot) borrows the slices themselves.

use crate::epoch::EpochMsg;
use crate::locks::{Claim, LockKey, TxId, Verdict};
use crate::parcel::{Caller, LentKey, Loan, Mark, Msg, RunFlags, TxMsg};
use crate::shard::{Host, Shard, Waiting};
use crate::slots::ShardId;
use crate::unit::{Invocation, Unit};
use braid_core::command::{Handler, Walk, WholeCtx, registry};
use braid_core::keyspace::{Keyspace, WatcherId};
use braid_core::resp::Reply;
use smallvec::SmallVec;

/// What a transaction does once it has everything.
pub enum Work {
    /// Runs commands and answers the connection. What the caller watches is among the keys locked.
    Commands { caller: Caller, unit: Unit },
    /// Runs a function over all slices.
    Action(Box<dyn FnOnce(&mut Everything<'_>)>),
}

/// All slices, for [`Work::Action`].
pub struct Everything<'a> {
    pub slices: &'a mut [&'a mut Keyspace],
    /// Set to have a ticket that ends here carry a mark.
    pub mark: &'a mut Option<Mark>,
}

/// A transaction under way at its coordinator.
pub(crate) struct Tx {
    id: TxId,
    claims: Vec<(ShardId, Claim)>,
    watcher: Option<WatcherId>,
    work: Work,
    /// Answers still to come.
    waiting: usize,
    loans: Vec<(ShardId, Loan)>,
    refused: bool,
    /// An epoch took its loans back: the next one waits for it.
    is_recalled: bool,
    /// Until when the watch holds; None: it does not.
    watch_until_ms: Option<u64>,
}

/// A request for locks that waits at an owner.
pub(crate) struct WaitingClaim {
    from: ShardId,
    token: u64,
    id: TxId,
    pub(crate) claim: Claim,
    watcher: Option<WatcherId>,
}

fn lend(keyspace: &mut Keyspace, key: &LockKey) -> LentKey {
    let marked = keyspace.take_marks(key);
    LentKey { entries: keyspace.lend(key), key: key.clone(), marked, changes: SmallVec::new() }
}

impl Shard {
    /// Begins a transaction over the given keys; None: over everything. The caller then calls
    /// [`Shard::settle`].
    pub fn begin(&mut self, keys: Option<Vec<LockKey>>, work: Work) {
        let claims = match keys {
            None => (0..self.map.shards() as ShardId).map(|shard| (shard, Claim::Everything)).collect(),
            Some(keys) => self.split_claims(keys),
        };
        assert!(!claims.is_empty(), "a transaction concerns somebody");
        let watcher = match &work {
            Work::Commands { caller, .. } => caller.watcher,
            Work::Action(_) => None,
        };
        self.counters.sequencer.begin_unrest(1);
        self.next_token += 1;
        let tx = Tx {
            id: 0,
            claims,
            watcher,
            work,
            waiting: 0,
            loans: Vec::new(),
            refused: false,
            is_recalled: false,
            watch_until_ms: Some(u64::MAX),
        };
        self.ask(self.next_token, tx);
    }

    fn split_claims(&self, keys: Vec<LockKey>) -> Vec<(ShardId, Claim)> {
        let mut by_shard: Vec<Vec<LockKey>> = (0..self.map.shards()).map(|_| Vec::new()).collect();
        for key in keys {
            by_shard[usize::from(self.map.shard_of(&key))].push(key);
        }
        let used = by_shard.into_iter().enumerate().filter(|(_, keys)| !keys.is_empty());
        used.map(|(shard, keys)| (shard as ShardId, Claim::of(keys))).collect()
    }

    /// Sends the requests of a transaction under a new id.
    fn ask(&mut self, token: u64, mut tx: Tx) {
        tx.id = self.next_tx_id();
        tx.waiting = tx.claims.len();
        tx.refused = false;
        for (shard, claim) in &tx.claims {
            let (claim, watcher) = (claim.clone(), tx.watcher);
            self.send(*shard, Msg::Tx(Box::new(TxMsg::Lock { token, id: tx.id, claim, watcher })));
        }
        self.txs.insert(token, tx);
    }

    pub(crate) fn receive_tx(&mut self, from: ShardId, message: TxMsg, host: &mut impl Host) {
        match message {
            TxMsg::Lock { token, id, claim, watcher } => {
                self.try_claim(WaitingClaim { from, token, id, claim, watcher });
            }
            TxMsg::Grant { token, id, loan, watch_until_ms, stream, replica, is_gone } => {
                let tx = self.txs.get_mut(&token).expect("a grant answers a request under way");
                assert_eq!(tx.id, id, "all answers to an attempt come before the next begins");
                tx.loans.push((from, loan));
                tx.watch_until_ms =
                    tx.watch_until_ms.zip(watch_until_ms).map(|(ours, theirs)| ours.min(theirs));
                // The cut that switched the stream on may have been at the owner and not here yet, where the slice is
                // still on its way back: whatever runs here from now on comes after it.
                self.effects.set_enabled(stream);
                // So with a change of role, and with a dataset that is given up.
                (self.replica, self.is_gone) = (replica, is_gone);
                self.answered(token, host);
            }
            TxMsg::Refuse { token, id } => {
                let tx = self.txs.get_mut(&token).expect("a refusal answers a request under way");
                assert_eq!(tx.id, id, "all answers to an attempt come before the next begins");
                tx.refused = true;
                self.answered(token, host);
            }
            TxMsg::Recall { token, id } => self.recalled(token, id),
            TxMsg::Return { id, loan } => {
                self.take_back(id, loan);
                self.note_walk();
                self.try_part(host);
                self.retry_waiting(host);
                self.counters.sequencer.end_unrest();
            }
        }
    }

    /// Coordinator: an owner needs what it lent. If the transaction has not begun it starts over; its other loans go back
    /// as well, for the transaction now waits for answers that may take long.
    fn recalled(&mut self, token: u64, id: TxId) {
        let Some(tx) = self.txs.get_mut(&token).filter(|tx| tx.id == id) else { return };
        tx.refused = true;
        let is_first = !std::mem::replace(&mut tx.is_recalled, true);
        for (shard, loan) in std::mem::take(&mut tx.loans) {
            self.give_back(shard, id, loan);
        }
        if is_first {
            self.send(self.home(), Msg::Epoch(Box::new(EpochMsg::Wait)));
        }
    }

    /// Owner: lends what is asked for, lets the request wait, or refuses it.
    pub(crate) fn try_claim(&mut self, request: WaitingClaim) {
        // Then nothing else matters, and many may wait for the same key.
        if self.locks.is_holding() || self.is_held_by_older(&request.claim, request.id) {
            self.waiting.insert(request.id, Waiting::Claim(request));
            return;
        }
        // What is older and waits is not overtaken: a request would have to start over, commands would wait for ever.
        let overtakes = self.is_awaited(&request.claim, request.id);
        // A huge value is not lent before a snapshot has written it: that would be done at once.
        let waits = match &request.claim {
            Claim::Keys(keys) => self.awaits_walk(keys.iter().map(|key| &**key)),
            Claim::Everything => false,
        };
        let verdict =
            if overtakes || waits { Verdict::Wait } else { self.locks.acquire(request.id, &request.claim) };
        match verdict {
            Verdict::Wait => {
                self.waiting.insert(request.id, Waiting::Claim(request));
            }
            Verdict::Refused => {
                let WaitingClaim { from, token, id, .. } = request;
                self.send(from, Msg::Tx(Box::new(TxMsg::Refuse { token, id })));
            }
            Verdict::Granted => {
                let WaitingClaim { from, token, id, claim, watcher } = request;
                if let Claim::Keys(keys) = &claim {
                    self.prefetch(0, keys.iter().map(|key| &key[..]));
                }
                self.borrowers.insert(id, (from, token));
                // The watch is judged now: from here to the end nothing but time can change what is watched.
                let now_ms = self.time().ms();
                let keyspace = self.keyspace.as_mut().expect("nobody else holds everything");
                let watch_until_ms =
                    watcher.map_or(Some(u64::MAX), |watcher| keyspace.watch_holds_until_ms(watcher, now_ms));
                let (stream, replica, is_gone) = (keyspace.stream, keyspace.replica, keyspace.is_gone);
                let loan = match claim {
                    Claim::Everything => Loan::Everything(self.keyspace.take().expect("just used")),
                    Claim::Keys(keys) => Loan::Keys(keys.iter().map(|key| lend(keyspace, key)).collect()),
                };
                let grant = TxMsg::Grant { token, id, loan, watch_until_ms, stream, replica, is_gone };
                self.send(from, Msg::Tx(Box::new(grant)));
            }
        }
    }

    /// Owner: puts back what was on loan.
    fn take_back(&mut self, id: TxId, loan: Loan) {
        self.borrowers.remove(&id);
        match loan {
            Loan::Everything(keyspace) => {
                self.effects.set_enabled(keyspace.stream);
                (self.replica, self.is_gone) = (keyspace.replica, keyspace.is_gone);
                self.keyspace = Some(keyspace);
                self.locks.release(id, []);
                for snapshot in std::mem::take(&mut self.aborted_snapshots) {
                    self.abort_snapshot(snapshot);
                }
            }
            Loan::Keys(keys) => {
                let keyspace = self.keyspace.as_mut().expect("keys on loan: not all of it is");
                let keys = keys.into_iter().map(|lent| {
                    for (db, entry) in lent.entries {
                        keyspace.attach(db, entry);
                    }
                    keyspace.put_marks(&lent.key, lent.marked);
                    for (db, change) in lent.changes {
                        keyspace.note(db, &lent.key, change);
                    }
                    lent.key
                });
                self.locks.release(id, keys);
            }
        }
    }

    /// Coordinator: an answer came. With the last one the transaction runs, or starts over.
    fn answered(&mut self, token: u64, host: &mut impl Host) {
        let tx = self.txs.get_mut(&token).expect("under way");
        tx.waiting -= 1;
        if tx.waiting > 0 {
            return;
        }
        let mut tx = self.txs.remove(&token).expect("under way");
        if tx.refused {
            for (shard, loan) in tx.loans.drain(..) {
                self.give_back(shard, tx.id, loan);
            }
            tx.watch_until_ms = Some(u64::MAX);
            return self.ask(token, tx);
        }
        let Tx { id, loans, work, watch_until_ms, watcher, is_recalled, .. } = tx;
        if is_recalled {
            self.send(self.home(), Msg::Epoch(Box::new(EpochMsg::GoOn)));
        }
        // A watched key may have expired since its owner looked.
        let watch_dirty = watch_until_ms.is_none_or(|until_ms| self.time().ms() > until_ms);
        if let Some(watcher) = watcher {
            // Executed or not, the transaction ends the watch.
            let owners: Vec<ShardId> = loans.iter().map(|(shard, _)| *shard).collect();
            self.unwatch(watcher, owners);
        }
        let everything = matches!(loans[0].1, Loan::Everything(_));
        if everything {
            self.run_over_everything(id, loans, work, watch_dirty, host);
        } else {
            self.run_over_keys(id, loans, work, watch_dirty, host);
        }
        self.counters.sequencer.end_unrest();
    }

    /// Coordinator: returns a loan. Until it is back commands may have to wait for it.
    fn give_back(&mut self, to: ShardId, id: TxId, loan: Loan) {
        self.counters.sequencer.begin_unrest(1);
        self.send(to, Msg::Tx(Box::new(TxMsg::Return { id, loan })));
    }

    fn run_over_keys(
        &mut self,
        id: TxId,
        mut loans: Vec<(ShardId, Loan)>,
        work: Work,
        watch_dirty: bool,
        host: &mut impl Host,
    ) {
        let Work::Commands { caller, unit } = work else { unreachable!("actions are over everything") };
        let mut scratch = self.scratch.take().expect("transactions run one after another");
        let mut reply = Reply::new(caller.flags.resp3);
        if watch_dirty {
            reply.null_array();
        } else {
            for (_, loan) in &mut loans {
                let Loan::Keys(keys) = loan else { unreachable!("a claim is answered in kind") };
                for lent in keys {
                    for (db, entry) in lent.entries.drain(..) {
                        scratch.attach(db, entry);
                    }
                    scratch.put_marks(&lent.key, std::mem::take(&mut lent.marked));
                }
            }
            self.framed(caller.flags, &unit, &mut reply, |shard, reply| {
                for command in unit.commands() {
                    shard.run_on(&mut scratch, caller, command.invocation(), reply, host);
                }
            });
            for (_, loan) in &mut loans {
                let Loan::Keys(keys) = loan else { unreachable!("a claim is answered in kind") };
                for lent in keys {
                    lent.marked = scratch.take_marks(&lent.key);
                    lent.entries = scratch.detach_all(&lent.key);
                }
            }
            loans.sort_unstable_by_key(|(shard, _)| *shard);
            for (db, key, change) in scratch.take_changes() {
                let owner = self.map.shard_of(&key);
                let at = loans.binary_search_by_key(&owner, |(shard, _)| *shard).expect("an owner it asked");
                let Loan::Keys(keys) = &mut loans[at].1 else { unreachable!("a claim is answered in kind") };
                // As they were claimed, they are in order.
                let at = keys.binary_search_by(|lent| (*lent.key).cmp(&key)).expect("a key it locked");
                keys[at].changes.push((db, change));
            }
            assert!(scratch.is_empty(), "a transaction touches only the keys it locked");
        }
        if let Some(keyspace) = &mut self.keyspace {
            keyspace.absorb(&mut scratch);
        }
        self.scratch = Some(scratch);
        for (shard, loan) in loans {
            self.give_back(shard, id, loan);
        }
        host.reply(caller.conn, &reply.buf, reply.pieces, true);
    }

    /// Runs `body` as a transaction's frame: the array around its replies, MULTI and EXEC around its effects.
    fn framed(
        &mut self,
        flags: RunFlags,
        unit: &Unit,
        reply: &mut Reply,
        body: impl FnOnce(&mut Self, &mut Reply),
    ) {
        if flags.atomic {
            reply.array(unit.count as usize);
            self.effects.begin_multi();
        }
        body(self, reply);
        if flags.atomic {
            self.effects.end_multi();
        }
    }

    fn run_over_everything(
        &mut self,
        id: TxId,
        loans: Vec<(ShardId, Loan)>,
        work: Work,
        watch_dirty: bool,
        host: &mut impl Host,
    ) {
        let mut slices: Vec<(ShardId, Box<Keyspace>)> = loans
            .into_iter()
            .map(|(shard, loan)| match loan {
                Loan::Everything(keyspace) => (shard, keyspace),
                Loan::Keys(_) => unreachable!("a claim is answered in kind"),
            })
            .collect();
        slices.sort_by_key(|(shard, _)| *shard);
        let answer = match work {
            Work::Action(action) => {
                let mut parts: Vec<&mut Keyspace> =
                    slices.iter_mut().map(|(_, slice)| &mut **slice).collect();
                action(&mut Everything { slices: &mut parts, mark: &mut self.mark });
                if self.mark.is_some() {
                    // What this tick does from here on, with the slice back or for other transactions, is behind it.
                    self.take_ticket(host);
                }
                None
            }
            Work::Commands { caller, unit } => {
                let mut reply = Reply::new(caller.flags.resp3);
                if watch_dirty {
                    reply.null_array();
                } else {
                    self.framed(caller.flags, &unit, &mut reply, |shard, reply| {
                        for command in unit.commands() {
                            let call = command.invocation();
                            shard.run_command_over_everything(&mut slices, caller, call, reply, host);
                        }
                    });
                }
                Some((caller.conn, reply))
            }
        };
        for (shard, keyspace) in slices {
            self.give_back(shard, id, Loan::Everything(keyspace));
        }
        if let Some((conn, reply)) = answer {
            host.reply(conn, &reply.buf, reply.pieces, true);
        }
    }

    fn run_command_over_everything(
        &mut self,
        slices: &mut [(ShardId, Box<Keyspace>)],
        caller: Caller,
        call: Invocation<'_>,
        reply: &mut Reply,
        host: &mut impl Host,
    ) {
        let Invocation { id, db, args } = call;
        let declared = registry().get(id).resolve(args);
        if let Handler::Whole(run) | Handler::Cursor(Walk { whole: run, .. }) = declared.handler {
            let start_ns = host.monotonic_ns();
            let mark = reply.mark();
            let mut parts: Vec<&mut Keyspace> = slices.iter_mut().map(|(_, slice)| &mut **slice).collect();
            let (time, replica) = (self.time(), self.replica);
            let refusal = self.refusal(declared, caller.flags);
            let mut ctx = WholeCtx {
                slices: &mut parts,
                effects: &mut self.effects,
                out: reply,
                rng: &mut self.rng,
                settings: &self.settings,
                db,
                time,
                replica,
            };
            let outcome = refusal.map_or_else(|| run(&mut ctx, args), Err);
            let failed = outcome.is_err();
            if let Err(error) = outcome {
                reply.truncate(mark);
                self.failed(caller.flags, &error, reply);
            }
            let took_ns = host.monotonic_ns().saturating_sub(start_ns);
            self.stats.called(id, declared, took_ns, failed);
            host.took(caller.conn, took_ns, args);
            return;
        }
        let keys = declared.find_keys(args).unwrap_or_default();
        let owners: Vec<usize> =
            keys.iter().map(|key| usize::from(self.map.shard_of(args[key.index]))).collect();
        let first = owners.first().copied().unwrap_or(usize::from(self.id));
        if owners.iter().all(|owner| *owner == first) {
            return self.run_on(&mut slices[first].1, caller, call, reply, host);
        }
        // Its keys lie in several slices: they come together in the scratch keyspace for this one command.
        let mut scratch = self.scratch.take().expect("transactions run one after another");
        for (key, owner) in keys.iter().zip(&owners) {
            let key = args[key.index];
            let marked = slices[*owner].1.take_marks(key);
            for (db, entry) in slices[*owner].1.lend(key) {
                scratch.attach(db, entry);
            }
            scratch.put_marks(key, marked);
        }
        self.run_on(&mut scratch, caller, call, reply, host);
        for (key, owner) in keys.iter().zip(&owners) {
            let key = args[key.index];
            let marked = scratch.take_marks(key);
            for (db, entry) in scratch.detach_all(key) {
                slices[*owner].1.attach(db, entry);
            }
            slices[*owner].1.put_marks(key, marked);
        }
        for (db, key, change) in scratch.take_changes() {
            slices[usize::from(self.map.shard_of(&key))].1.note(db, &key, change);
        }
        slices[usize::from(self.id)].1.absorb(&mut scratch);
        self.scratch = Some(scratch);
    }
}

#[cfg(test)]
mod tests;
