//! The table of sockets: who they are, what of theirs is in flight, and when their place may be used again.
//!
//! A slot is freed only when the kernel has answered every operation of its socket, so a completion always finds the
//! socket it belongs to. The generation protects from the other side: a [`Token`] that its holder kept too long.

use std::os::fd::OwnedFd;

const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;
const NO_SEND: u32 = u32::MAX;

/// Names one socket of one ring: a dense slot number and the slot's generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token {
    slot: u32,
    generation: u32,
}

impl Token {
    /// The slot number: dense, reused after [`Closed`](super::Event::Closed), fit to index a table of the owner's.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// What an operation does; each is in flight at most once per socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Operation {
    Receive = 0,
    Send = 1,
    Accept = 2,
    Connect = 3,
    /// Of the ring itself, not of a socket.
    Timer = 4,
    TimerUpdate = 5,
    /// The poll of the eventfd by which other threads end a sleep.
    Wake = 6,
}

impl Operation {
    /// Those that a socket can have.
    pub(super) const OF_SOCKETS: [Self; 4] = [Self::Receive, Self::Send, Self::Accept, Self::Connect];

    fn decode(code: u8) -> Self {
        match code {
            0 => Self::Receive,
            1 => Self::Send,
            2 => Self::Accept,
            3 => Self::Connect,
            4 => Self::Timer,
            5 => Self::TimerUpdate,
            6 => Self::Wake,
            _ => unreachable!("the ring never submitted operation {code}"),
        }
    }
}

/// The 64 bits that travel with an operation: 8 for what, 24 of generation, 32 of slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag {
    pub(super) operation: Operation,
    /// The operation is the cancellation of `operation`.
    pub(super) is_cancel: bool,
    pub(super) token: Token,
}

impl Tag {
    const CANCEL: u8 = 0x80;

    pub(super) fn of_ring(operation: Operation) -> Self {
        Self { operation, is_cancel: false, token: Token { slot: 0, generation: 0 } }
    }

    pub(super) fn encode(self) -> u64 {
        let code = self.operation as u8 | if self.is_cancel { Self::CANCEL } else { 0 };
        u64::from(code) << 56 | u64::from(self.token.generation) << 32 | u64::from(self.token.slot)
    }

    pub(super) fn decode(user_data: u64) -> Self {
        let code = (user_data >> 56) as u8;
        Self {
            operation: Operation::decode(code & !Self::CANCEL),
            is_cancel: code & Self::CANCEL != 0,
            token: Token { slot: user_data as u32, generation: (user_data >> 32) as u32 & GENERATION_MASK },
        }
    }
}

/// The operations and cancellations of one socket that the kernel has not answered yet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct InFlight(u8);

impl InFlight {
    fn bit(operation: Operation, is_cancel: bool) -> u8 {
        debug_assert!((operation as u8) < 4);
        1 << (operation as u8 + if is_cancel { 4 } else { 0 })
    }

    pub(super) fn has(self, operation: Operation) -> bool {
        self.0 & Self::bit(operation, false) != 0
    }

    pub(super) fn has_cancel(self, operation: Operation) -> bool {
        self.0 & Self::bit(operation, true) != 0
    }

    pub(super) fn begin(&mut self, operation: Operation, is_cancel: bool) {
        let bit = Self::bit(operation, is_cancel);
        assert!(self.0 & bit == 0, "{operation:?} is in flight already");
        self.0 |= bit;
    }

    pub(super) fn end(&mut self, operation: Operation, is_cancel: bool) {
        let bit = Self::bit(operation, is_cancel);
        assert!(self.0 & bit != 0, "the kernel answered {operation:?}, which was not in flight");
        self.0 &= !bit;
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Open,
    /// Waits for the last answer, then closes the socket.
    Closing,
    /// Waits for the last answer, then hands the socket out.
    Detaching,
}

pub(super) struct Slot {
    /// None: the slot is vacant.
    pub(super) socket: Option<OwnedFd>,
    generation: u32,
    send: u32,
    pub(super) phase: Phase,
    pub(super) in_flight: InFlight,
    /// The owner wants to receive (or, on a listener, accept): a multishot operation that ends is started again.
    pub(super) wanted: bool,
    /// The receive ended for want of a buffer and stands in the ring's list of those to start again.
    pub(super) starved: bool,
}

impl Slot {
    /// The place of the send under way in the ring's table of sends.
    pub(super) fn send(&self) -> Option<usize> {
        (self.send != NO_SEND).then_some(self.send as usize)
    }

    pub(super) fn set_send(&mut self, place: Option<usize>) {
        self.send = place.map_or(NO_SEND, |place| u32::try_from(place).expect("fewer sends than sockets"));
    }
}

#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
}

impl Slots {
    pub(super) fn insert(&mut self, socket: OwnedFd) -> Token {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                socket: None,
                generation: 0,
                send: NO_SEND,
                phase: Phase::Open,
                in_flight: InFlight::default(),
                wanted: false,
                starved: false,
            });
            u32::try_from(self.slots.len() - 1).expect("file descriptors are fewer than 2^31")
        });
        let place = &mut self.slots[slot as usize];
        debug_assert!(place.socket.is_none() && place.in_flight.is_empty() && place.send == NO_SEND);
        place.socket = Some(socket);
        place.generation = (place.generation + 1) & GENERATION_MASK;
        place.phase = Phase::Open;
        place.wanted = false;
        place.starved = false;
        Token { slot, generation: place.generation }
    }

    /// The slot, unless the token has outlived its socket.
    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Slot> {
        self.slots
            .get_mut(token.slot())
            .filter(|slot| slot.generation == token.generation && slot.socket.is_some())
    }

    pub(super) fn get(&self, token: Token) -> Option<&Slot> {
        self.slots
            .get(token.slot())
            .filter(|slot| slot.generation == token.generation && slot.socket.is_some())
    }

    /// Takes the socket out of a slot of which nothing is in flight. The slot is used again after [`Slots::vacate`].
    pub(super) fn remove(&mut self, token: Token) -> OwnedFd {
        let slot = self.get_mut(token).expect("only a live slot is removed");
        assert!(slot.in_flight.is_empty() && slot.send == NO_SEND, "a slot is freed when all is answered");
        slot.socket.take().expect("a live slot has a socket")
    }

    /// The owner has heard that a slot's socket is gone, and has forgotten what it kept under that number.
    pub(super) fn vacate(&mut self, token: Token) {
        let slot = &self.slots[token.slot()];
        debug_assert!(slot.socket.is_none() && slot.generation == token.generation);
        self.vacant.push(token.slot);
    }

    /// Sockets in the table, listeners included.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::os::unix::net::UnixDatagram::unbound().unwrap().into()
    }

    #[test]
    fn a_tag_survives_its_encoding() {
        let tokens =
            [Token { slot: 0, generation: 1 }, Token { slot: u32::MAX - 1, generation: GENERATION_MASK }];
        for token in tokens {
            for operation in Operation::OF_SOCKETS {
                for is_cancel in [false, true] {
                    let tag = Tag { operation, is_cancel, token };
                    assert_eq!(Tag::decode(tag.encode()), tag);
                }
            }
        }
    }

    #[test]
    fn a_token_does_not_outlive_its_socket() {
        let mut slots = Slots::default();
        let old = slots.insert(socket());
        drop(slots.remove(old));
        slots.vacate(old);
        let new = slots.insert(socket());
        assert_eq!(old.slot(), new.slot());
        assert!(slots.get(old).is_none());
        assert!(slots.get(new).is_some());
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn the_generation_wraps_within_its_bits() {
        let mut slots = Slots::default();
        let first = slots.insert(socket());
        slots.get_mut(first).unwrap().generation = GENERATION_MASK;
        let last = Token { slot: first.slot, generation: GENERATION_MASK };
        drop(slots.remove(last));
        slots.vacate(last);
        assert_eq!(slots.insert(socket()).generation, 0);
    }

    #[test]
    #[should_panic(expected = "in flight already")]
    fn an_operation_is_in_flight_at_most_once() {
        let mut in_flight = InFlight::default();
        in_flight.begin(Operation::Send, false);
        in_flight.begin(Operation::Send, true);
        in_flight.begin(Operation::Send, false);
    }
}
