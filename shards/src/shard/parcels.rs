//! Ticks as other shards see them: what their parcels bring is run, and what this shard's tick did leaves with its end.

use super::{AHEAD, Host, Loopback, Outlet, ParkedRun, Shard};
use crate::flight::{FlightId, Leg, Pieces, WaitingLeg};
use crate::parcel::{Caller, Cut, Msg, Parcel, Share};
use crate::sequencer::{Batch, Position};
use crate::slots::ShardId;
use crate::unit::{self, Commands};
use braid_core::resp::Reply;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::ops::Range;

/// A leg whose turn has come.
struct NextLeg {
    coordinator: ShardId,
    flight: FlightId,
    number: u16,
    /// Otherwise it may be another shard's, or there may be none.
    is_certain: bool,
}

/// Parcels kept for reuse.
const POOL_LEN: usize = 64;

impl Shard {
    /// Handles everything another shard sent in one of its ticks, and what waited for that; or keeps it until its turn.
    pub fn receive(&mut self, from: ShardId, parcel: Box<Parcel>, host: &mut impl Host) {
        let queue = &mut self.early[usize::from(from)];
        if parcel.after <= self.ran && queue.is_empty() {
            self.open(from, parcel, host);
        } else {
            queue.push_back(parcel);
            self.early_len += 1;
        }
        while self.early_len > 0 {
            let ran = self.ran;
            let is_due =
                |queue: &VecDeque<Box<Parcel>>| queue.front().is_some_and(|first| first.after <= ran);
            let Some(from) = self.early.iter().position(is_due) else { break };
            let parcel = self.early[from].pop_front().expect("it has one");
            self.early_len -= 1;
            self.open(from as ShardId, parcel, host);
        }
    }

    /// Handles a parcel whose turn it is.
    fn open(&mut self, from: ShardId, mut parcel: Box<Parcel>, host: &mut impl Host) {
        let mut msgs = std::mem::take(&mut parcel.msgs);
        let batch = parcel.batch;
        let at_once = msgs.iter().filter_map(|message| match message {
            Msg::Run { leg, bytes, .. } if !leg.waits || batch.is_some() => Some(bytes.clone()),
            _ => None,
        });
        let at_once: SmallVec<[Range<usize>; 64]> = at_once.collect();
        let mut started = 0;
        // Where the parcel is kept if a leg in it has to wait.
        let mut place = None;
        let mut next_legs: SmallVec<[NextLeg; 64]> = SmallVec::new();
        let mut cuts = Vec::new();
        if batch.is_some() {
            let keyspace = self.keyspace.as_ref().expect("nothing is on loan");
            assert!(self.locks.is_empty() && !keyspace.has_snapshot(), "a batch meets nothing to wait for");
            if batch.is_some_and(|batch| batch.ticket.is_some()) {
                cuts.reserve(at_once.len() + 1);
            }
            self.cut(0, &mut cuts);
        }
        for message in msgs.drain(..) {
            match message {
                Msg::Run { mut leg, caller, bytes } => {
                    if batch.is_some() {
                        // All of it has one place in the order, on this shard as on others.
                        (leg.waits, leg.next) = (false, None);
                    }
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
                        self.run_for(from, leg, caller, commands, host);
                        if batch.is_some() {
                            self.cut(leg.place, &mut cuts);
                        }
                    } else {
                        let parcel = *place.get_or_insert_with(|| self.waiting_legs.reserve());
                        let waiting = WaitingLeg { parcel, caller, bytes, leg };
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
                    // Of a batch none waits.
                    if !self.waiting_legs.is_empty() {
                        let (coordinator, number) = (self.id, number + 1);
                        next_legs.push(NextLeg { coordinator, flight, number, is_certain: false });
                    }
                }
                Msg::Go { coordinator, flight, number } => {
                    next_legs.push(NextLeg { coordinator, flight, number, is_certain: true });
                }
                Msg::Unwatch(watcher) => self.unwatch_here(watcher),
                Msg::Tx(message) => self.receive_tx(from, *message, host),
                Msg::Epoch(message) => self.receive_epoch(from, *message, host),
                Msg::Load(message) => self.receive_load(from, *message, host),
                Msg::Segment { ticket, segment, mark } => host.segment(ticket, segment, mark),
                Msg::Share { ticket, share } => host.share(ticket, *share),
                Msg::Upper(message) => host.upper(from, message),
            }
        }
        if let Some(batch) = batch {
            self.end_batch(batch, cuts, host);
        }
        parcel.msgs = msgs;
        match place {
            Some(place) => self.waiting_legs.keep(place, parcel),
            None => self.recycle(parcel),
        }
        self.run_next_legs(&next_legs, host);
        self.settle(host);
    }

    /// A leg of a batch ends here.
    fn cut(&self, place: u32, cuts: &mut Vec<Cut>) {
        let end_bytes = self.effects.len_bytes();
        if end_bytes > cuts.last().map_or(0, |last| last.end_bytes) {
            cuts.push(Cut { place, end_bytes });
        }
    }

    /// This shard's part of a batch has run.
    fn end_batch(&mut self, batch: Batch, cuts: Vec<Cut>, host: &mut impl Host) {
        assert!(self.ran < batch.position, "batches run by their positions");
        self.ran = batch.position;
        let Some(ticket) = batch.ticket else { return };
        let share = Share { segment: self.effects.take(), cuts, shares: batch.shares };
        if self.home == self.id {
            host.share(ticket, share);
        } else {
            self.undelivered_bytes += share.segment.len_bytes() + size_of::<(Msg, Share)>() as u64;
            self.send(self.home, Msg::Share { ticket, share: Box::new(share) });
        }
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
                let WaitingLeg { parcel: place, caller, bytes, leg } = waiting;
                let commands = Commands::new(&parcel.arena[bytes], &parcel.shared);
                self.run_for(*coordinator, leg, caller, commands, host);
                if let Some(parcel) = self.waiting_legs.put_back(place, parcel) {
                    self.recycle(parcel);
                }
            }
        }
    }

    /// Handles what the shard sent to itself. To be called after [`Shard::begin`].
    pub fn settle(&mut self, host: &mut impl Host) {
        while let Some(message) = self.next_own() {
            match message {
                Loopback::Tx(message) => self.receive_tx(self.id, message, host),
                Loopback::Run(run) => self.try_run(*run, host),
                Loopback::Unwatch(watcher) => self.unwatch_here(watcher),
                Loopback::Epoch(message) => self.receive_epoch(self.id, message, host),
                Loopback::Load(message) => self.receive_load(self.id, message, host),
            }
        }
    }

    fn next_own(&mut self) -> Option<Loopback> {
        let is_due = match self.loopback.front()? {
            // The batches before it are on their way here, as they are to the others that were sent the same.
            Loopback::Tx(_) | Loopback::Epoch(_) => !self.is_behind(),
            Loopback::Run(_) | Loopback::Unwatch(_) | Loopback::Load(_) => true,
        };
        if is_due { self.loopback.pop_front() } else { None }
    }

    /// Runs a leg; the answer goes into the parcel back to its coordinator.
    fn run_for(
        &mut self,
        from: ShardId,
        leg: Leg,
        caller: Caller,
        mut commands: Commands<'_>,
        host: &mut impl Host,
    ) {
        let mut out = Reply::new(caller.flags.resp3);
        let is_own = from == self.id;
        let home = if is_own { &mut self.spare } else { &mut self.outgoing[usize::from(from)].arena };
        out.buf = std::mem::take(home);
        let start = out.buf.len();
        let all_done = self.run_commands(caller, &mut commands, &mut out, host);
        let end = out.buf.len();
        let pieces = out.pieces.into_iter().map(|(at, piece)| (at - start, piece)).collect();
        if !all_done {
            let mut done = Reply::new(caller.flags.resp3);
            done.buf.extend_from_slice(&out.buf[start..]);
            done.pieces = pieces;
            self.park(ParkedRun::new(from, caller, Some(leg), commands.into_unit(), done));
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
    pub(super) fn leg_answered(&mut self, leg: Leg, bytes: &[u8], pieces: Pieces, host: &mut impl Host) {
        self.flights.answered(leg.flight, leg.number, bytes, pieces, |conn, bytes, pieces, is_last| {
            host.reply(conn, bytes, pieces, is_last);
        });
        self.let_go(self.id, leg);
    }

    /// A leg ran: the next may.
    pub(super) fn let_go(&mut self, coordinator: ShardId, leg: Leg) {
        if let Some(next) = leg.next
            && next != coordinator
        {
            let (flight, number) = (leg.flight, leg.number + 1);
            self.outgoing[usize::from(next)].msgs.push(Msg::Go { coordinator, flight, number });
        }
    }

    /// Freezes the effects so far, if there are any, under a ticket of their own. Nothing of this tick has left the shard,
    /// so any moment is right, and a tick may take several.
    pub(crate) fn take_ticket(&mut self, host: &mut impl Host) {
        if self.effects.is_empty() && self.mark.is_none() {
            return;
        }
        let Some(ticket) = self.counters.sequencer.take_ticket(self.id, self.ran) else {
            // They precede the next batch, which has a ticket.
            return assert!(
                self.mark.is_none(),
                "what marks a place is over everything, and nothing beside it"
            );
        };
        let (segment, mark) = (self.effects.take(), self.mark.take());
        if self.home == self.id {
            host.segment(ticket, segment, mark);
        } else {
            self.undelivered_bytes += segment.len_bytes() + size_of::<Msg>() as u64;
            self.send(self.home, Msg::Segment { ticket, segment, mark });
        }
    }

    /// Ends a tick: takes its ticket if it had effects, then lets its messages go. After this its replies may leave.
    pub fn end_tick(&mut self, outlet: &mut impl Outlet, host: &mut impl Host) {
        debug_assert!(self.loopback.is_empty() || self.is_behind(), "a tick ends settled");
        self.take_ticket(host);
        let own = if self.has_order && !self.left_in_order { self.send_batch(outlet) } else { None };
        if self.has_order {
            self.left_in_order = true;
            self.keep_own_legs();
        }
        for to in 0..self.outgoing.len() {
            if self.outgoing[to].is_empty() {
                continue;
            }
            // Whatever caused what it brings ran after these.
            let after = self.counters.sequencer.latest(to as ShardId);
            self.deliver(to, after, None, outlet);
        }
        if !self.has_outgoing() {
            (self.legs, self.has_order, self.left_in_order) = (0, false, false);
        }
        if let Some(parcel) = own {
            // The others have theirs, and wait for nothing here.
            self.receive(self.id, parcel, host);
        }
    }

    /// Sends the commands of this tick to their shards, as a batch. Returns this shard's own part of it. If there is unrest, or
    /// a ring without room, nothing is done.
    fn send_batch(&mut self, outlet: &mut impl Outlet) -> Option<Box<Parcel>> {
        let has_legs = |to: &usize| self.outgoing[*to].has_legs;
        let to: SmallVec<[usize; 16]> = (0..self.outgoing.len()).filter(has_legs).collect();
        let own = usize::from(self.id);
        if !to.iter().all(|to| *to == own || outlet.has_room(*to as ShardId)) {
            return None;
        }
        let mut afters: SmallVec<[Position; 16]> = SmallVec::from_elem(0, to.len());
        let shares = to.iter().map(|to| *to as ShardId).zip(&mut afters);
        let batch = self.counters.sequencer.sequence(self.effects.enabled(), shares)?;
        self.has_order = false;
        let mut own_part = None;
        for (to, after) in to.into_iter().zip(afters) {
            if to == own {
                let mut parcel = self.take_outgoing(own);
                (parcel.after, parcel.batch) = (after, Some(batch));
                own_part = Some(parcel);
            } else {
                self.deliver(to, after, Some(batch), outlet);
                assert!(self.outgoing[to].is_empty(), "there was room");
            }
        }
        own_part
    }

    fn take_outgoing(&mut self, to: usize) -> Box<Parcel> {
        let fresh = self.pool.pop().unwrap_or_default();
        std::mem::replace(&mut self.outgoing[to], fresh)
    }

    fn deliver(&mut self, to: usize, after: Position, batch: Option<Batch>, outlet: &mut impl Outlet) {
        let mut parcel = self.take_outgoing(to);
        (parcel.after, parcel.batch) = (after, batch);
        let outcome = outlet.deliver(to as ShardId, parcel);
        if to == usize::from(self.home) {
            self.is_home_full = outcome.is_err();
            self.undelivered_bytes *= u64::from(self.is_home_full);
        }
        if let Err(parcel) = outcome {
            // No room: it goes on growing and leaves with a later tick. Runs and answers are bounded by the number of
            // connections, each of which waits for its answer; segments by [`Shard::is_held_up`], as no more are
            // written then; and who sends pieces of datasets looks at [`Shard::is_home_full`] or awaits answers.
            let fresh = std::mem::replace(&mut self.outgoing[to], parcel);
            self.pool.push(fresh);
        }
    }

    /// What this shard sent itself are legs that wait.
    fn keep_own_legs(&mut self) {
        let own = usize::from(self.id);
        if self.outgoing[own].is_empty() {
            return;
        }
        let mut parcel = self.take_outgoing(own);
        let place = self.waiting_legs.reserve();
        for message in parcel.msgs.drain(..) {
            let Msg::Run { leg, caller, bytes } = message else {
                unreachable!("only legs are sent to oneself")
            };
            assert!(leg.waits, "own commands run at once");
            let waiting = WaitingLeg { parcel: place, caller, bytes, leg };
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
}
