//! How commands get from a connection to the shards of their keys, and messages to the parcels they travel in.

use super::{Loopback, Shard};
use crate::flight::Leg;
use crate::parcel::{Caller, Msg, Parcel};
use crate::pipeline::{OpenFlight, Pipeline};
use crate::slots::ShardId;
use crate::unit::{self, Invocation, Unit};
use braid_core::keyspace::WatcherId;
use std::any::Any;

impl Shard {
    /// Sends a command to the shard that owns its keys, as part of what a pipeline has under way. Commands for the same
    /// shard that follow each other travel together. The answers come through [`Host::reply`].
    pub fn submit(&mut self, pipeline: &mut Pipeline, to: ShardId, caller: Caller, call: Invocation<'_>) {
        let Parcel { msgs, arena, shared, has_legs, .. } = &mut *self.outgoing[usize::from(to)];
        *has_legs = true;
        let start = arena.len();
        unit::encode(arena, shared, call);
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
                self.has_order |= pipeline.is_ordered;
                before.id
            }
            None => {
                assert_ne!(to, self.id, "own commands run at once");
                self.flights.begin(caller.conn)
            }
        };
        let number = self.flights.add_leg(flight);
        let waits = number > 0 && pipeline.is_ordered;
        let leg = Leg { flight, number, place: self.next_place(), waits, next: None };
        self.outgoing[usize::from(to)].msgs.push(Msg::Run { leg, caller, bytes });
        let commands = pipeline.open.map_or(1, |open| open.commands);
        pipeline.open = Some(OpenFlight { id: flight, to, message, commands });
    }

    fn next_place(&mut self) -> u32 {
        self.legs += 1;
        self.legs
    }

    /// Sends a whole transaction to the one shard that owns all of its keys.
    pub fn dispatch_atomic(&mut self, to: ShardId, mut caller: Caller, unit: &Unit) {
        assert_ne!(to, self.id, "own commands run at once");
        caller.flags.atomic = true;
        let flight = self.flights.begin(caller.conn);
        let (number, place) = (self.flights.add_leg(flight), self.next_place());
        let leg = Leg { flight, number, place, waits: false, next: None };
        let Parcel { msgs, arena, shared, has_legs, .. } = &mut *self.outgoing[usize::from(to)];
        *has_legs = true;
        let start = arena.len();
        for command in unit.commands() {
            unit::encode(arena, shared, command.invocation());
        }
        let bytes = start..arena.len();
        msgs.push(Msg::Run { leg, caller, bytes });
    }

    /// Forgets what a connection of this shard watches here or elsewhere.
    pub fn unwatch(&mut self, watcher: WatcherId, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            self.send(shard, Msg::Unwatch(watcher));
        }
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

    /// Sends a message of the layers above.
    pub fn send_upper(&mut self, to: ShardId, message: Box<dyn Any + Send>) {
        assert_ne!(to, self.id, "the layers above talk to themselves directly");
        self.send(to, Msg::Upper(message));
    }
}
