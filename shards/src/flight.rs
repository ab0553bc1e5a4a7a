//! Flights: the commands of one connection under way on several shards at once, in program order (law 2).
//!
//! A pipeline's commands are cut into legs: consecutive commands for the same shard. All legs are sent at once, the
//! connection's own shard among them. Mostly they are part of a batch, which all shards run in the same order
//! ([`crate::sequencer`]).
//!
//! Where something may have to wait, the legs keep their order by themselves. A leg runs when the leg before it has run and
//! the tick in which it ran has its ticket: the shard of that leg then says so to the shard of the next
//! ([`crate::parcel::Msg::Go`]; to the coordinator the answer itself says it). A leg waits for earlier legs of its own
//! flight only, so there is no cycle.

use crate::parcel::{Caller, ConnId, Parcel};
use crate::slots::ShardId;
use bytes::Bytes;
use smallvec::SmallVec;
use std::ops::Range;

/// Number of a flight at its coordinator, used again when all of it is answered.
pub type FlightId = u32;

/// Large parts of an answer, each with its place in the bytes.
pub type Pieces = Vec<(usize, Bytes)>;

/// What the shard that runs a leg knows of its flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    pub flight: FlightId,
    /// Its place in the flight, from 0.
    pub number: u16,
    /// Its place among all that its shard sends in one tick, from 1.
    pub place: u32,
    /// It may run only after the leg before it.
    pub waits: bool,
    /// The shard with the next leg.
    pub next: Option<ShardId>,
}

/// An answer that came before an earlier leg's.
struct Early {
    number: u16,
    /// In the flight's buffer.
    bytes: Range<usize>,
    pieces: Pieces,
}

struct Flight {
    conn: ConnId,
    legs: u16,
    answered: u16,
    early: Vec<Early>,
    buf: Vec<u8>,
}

/// A buffer that grew beyond this is not kept for reuse.
const KEEP_BUF_BYTES: usize = 16 << 10;

/// The flights that a shard coordinates: puts the answers in order.
#[derive(Default)]
pub(crate) struct Flights {
    all: Vec<Flight>,
    free: Vec<FlightId>,
}

impl Flights {
    pub fn begin(&mut self, conn: ConnId) -> FlightId {
        let flight = self.free.pop().unwrap_or_else(|| {
            self.all.push(Flight { conn, legs: 0, answered: 0, early: Vec::new(), buf: Vec::new() });
            (self.all.len() - 1) as FlightId
        });
        let fresh = &mut self.all[flight as usize];
        assert!(fresh.early.is_empty(), "answered before it is used again");
        (fresh.conn, fresh.legs, fresh.answered) = (conn, 0, 0);
        flight
    }

    /// The number of a further leg.
    pub fn add_leg(&mut self, flight: FlightId) -> u16 {
        let flight = &mut self.all[flight as usize];
        flight.legs += 1;
        flight.legs - 1
    }

    /// Nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.all.len()
    }

    /// A leg was answered. `deliver` is given, in order, what the connection may have by now: its id, the answer, and
    /// whether that was the last.
    pub fn answered(
        &mut self,
        id: FlightId,
        number: u16,
        bytes: &[u8],
        pieces: Pieces,
        mut deliver: impl FnMut(ConnId, &[u8], Pieces, bool),
    ) {
        let flight = &mut self.all[id as usize];
        assert!(flight.answered <= number && number < flight.legs, "each leg is answered once");
        if number != flight.answered {
            let start = flight.buf.len();
            flight.buf.extend_from_slice(bytes);
            return flight.early.push(Early { number, bytes: start..flight.buf.len(), pieces });
        }
        flight.answered += 1;
        deliver(flight.conn, bytes, pieces, flight.answered == flight.legs);
        while let Some(at) = flight.early.iter().position(|early| early.number == flight.answered) {
            let Early { bytes, pieces, .. } = flight.early.swap_remove(at);
            flight.answered += 1;
            deliver(flight.conn, &flight.buf[bytes], pieces, flight.answered == flight.legs);
        }
        if flight.early.is_empty() {
            flight.buf.clear();
            flight.buf.shrink_to(KEEP_BUF_BYTES);
        }
        if flight.answered == flight.legs {
            self.free.push(id);
        }
    }
}

/// A leg that waits. Its commands lie in a parcel that is kept for it.
pub(crate) struct WaitingLeg {
    pub parcel: usize,
    pub caller: Caller,
    pub bytes: Range<usize>,
    pub leg: Leg,
}

/// What a shard knows of one flight.
#[derive(Default)]
struct Waits {
    /// This leg may run, and has not come yet.
    go: Option<u16>,
    legs: SmallVec<[WaitingLeg; 2]>,
}

/// A parcel with legs that wait.
struct Kept {
    /// None while a leg of it runs.
    parcel: Option<Box<Parcel>>,
    legs: usize,
}

/// The legs that wait on a shard for the legs before them on other shards.
#[derive(Default)]
pub(crate) struct WaitingLegs {
    /// By coordinator, by flight.
    flights: Vec<Vec<Waits>>,
    parcels: Vec<Kept>,
    free: Vec<usize>,
}

impl WaitingLegs {
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.parcels.len()
    }

    fn of(&mut self, coordinator: ShardId, flight: FlightId) -> &mut Waits {
        let (coordinator, flight) = (usize::from(coordinator), flight as usize);
        if self.flights.len() <= coordinator {
            self.flights.resize_with(coordinator + 1, Vec::new);
        }
        let flights = &mut self.flights[coordinator];
        if flights.len() <= flight {
            flights.resize_with(flight + 1, Waits::default);
        }
        &mut flights[flight]
    }

    /// A leg came. Whether it may run at once.
    pub fn may_run(&mut self, coordinator: ShardId, leg: Leg) -> bool {
        if !leg.waits {
            return true;
        }
        let waits = self.of(coordinator, leg.flight);
        let may = waits.go == Some(leg.number);
        if may {
            waits.go = None;
        }
        may
    }

    /// A place for a parcel that holds legs to be kept; [`WaitingLegs::keep`] fills it.
    pub fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.parcels.push(Kept { parcel: None, legs: 0 });
            self.parcels.len() - 1
        })
    }

    /// A leg in a parcel at a reserved place waits.
    pub fn wait(&mut self, coordinator: ShardId, waiting: WaitingLeg) {
        self.parcels[waiting.parcel].legs += 1;
        self.of(coordinator, waiting.leg.flight).legs.push(waiting);
    }

    pub fn keep(&mut self, place: usize, parcel: Box<Parcel>) {
        assert!(self.parcels[place].legs > 0, "kept for legs that wait");
        self.parcels[place].parcel = Some(parcel);
    }

    /// The encoded commands of a leg that waits here.
    pub fn commands_of(&self, coordinator: ShardId, flight: FlightId, number: u16) -> Option<&[u8]> {
        let waits = self.flights.get(usize::from(coordinator))?.get(flight as usize)?;
        let waiting = waits.legs.iter().find(|waiting| waiting.leg.number == number)?;
        let parcel = self.parcels[waiting.parcel].parcel.as_deref()?;
        Some(&parcel.arena[waiting.bytes.clone()])
    }

    /// A leg may run. Gives it out if it is here, with its parcel, which [`WaitingLegs::put_back`] takes back;
    /// otherwise that is remembered, if `expected`.
    pub fn go(
        &mut self,
        coordinator: ShardId,
        flight: FlightId,
        number: u16,
        expected: bool,
    ) -> Option<(WaitingLeg, Box<Parcel>)> {
        let waits = self.of(coordinator, flight);
        let Some(at) = waits.legs.iter().position(|waiting| waiting.leg.number == number) else {
            if expected {
                assert!(waits.go.is_none(), "one leg of a flight at a time may run");
                waits.go = Some(number);
            }
            return None;
        };
        let waiting = waits.legs.remove(at);
        let parcel = self.parcels[waiting.parcel].parcel.take().expect("one leg at a time is given out");
        Some((waiting, parcel))
    }

    /// A leg that was given out has run. Gives the parcel back when no other leg needs it.
    pub fn put_back(&mut self, place: usize, parcel: Box<Parcel>) -> Option<Box<Parcel>> {
        let kept = &mut self.parcels[place];
        kept.legs -= 1;
        if kept.legs > 0 {
            kept.parcel = Some(parcel);
            return None;
        }
        self.free.push(place);
        Some(parcel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law2_answers_are_put_in_order() {
        let mut flights = Flights::default();
        let flight = flights.begin(ConnId(5));
        let other = flights.begin(ConnId(6));
        assert_ne!(flight, other);
        for number in 0..4 {
            assert_eq!(flights.add_leg(flight), number);
        }
        flights.add_leg(other);
        let mut got = Vec::new();
        for number in [2, 0, 3, 1] {
            let text = number.to_string();
            flights.answered(flight, number, text.as_bytes(), Vec::new(), |conn, bytes, _, is_last| {
                got.push((conn.0, bytes.to_vec(), is_last));
            });
        }
        let expected: Vec<_> = (0..4).map(|n| (5, n.to_string().into_bytes(), n == 3)).collect();
        assert_eq!(got, expected);
        assert!(!flights.is_empty());
        flights.answered(other, 0, b"", Vec::new(), |conn, _, _, is_last| {
            assert_eq!((conn, is_last), (ConnId(6), true));
        });
        assert!(flights.is_empty());
    }
}
