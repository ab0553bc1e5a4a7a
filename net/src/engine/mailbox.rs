//! The rings between shards: one bounded single-producer single-consumer ring per ordered pair.

use crate::ring::Waker;
use braid_shards::{Outlet, Parcel, ShardId};
use rtrb::{Consumer, Producer, PushError, RingBuffer};

/// Parcels a ring holds. A sender that finds it full lets its parcel grow instead, so this bounds nothing but slots.
const RING_LEN: usize = 256;

/// One shard's ends of all rings.
pub struct Mailboxes {
    id: ShardId,
    inboxes: Vec<Option<Consumer<Box<Parcel>>>>,
    outboxes: Vec<Option<Producer<Box<Parcel>>>>,
    wakers: Vec<Waker>,
    /// Shards that were sent something since the last [`Mailboxes::wake`].
    to_wake: Vec<ShardId>,
}

/// The rings of `shards` shards, each shard's ends together; wakers are added when the shards run.
pub fn connect_all(shards: usize) -> Vec<Mailboxes> {
    let mut all: Vec<Mailboxes> = (0..shards)
        .map(|id| Mailboxes {
            id: id as ShardId,
            inboxes: (0..shards).map(|_| None).collect(),
            outboxes: (0..shards).map(|_| None).collect(),
            wakers: Vec::new(),
            to_wake: Vec::new(),
        })
        .collect();
    for from in 0..shards {
        for to in (0..shards).filter(|to| *to != from) {
            let (producer, consumer) = RingBuffer::new(RING_LEN);
            all[from].outboxes[to] = Some(producer);
            all[to].inboxes[from] = Some(consumer);
        }
    }
    all
}

impl Mailboxes {
    pub fn set_wakers(&mut self, wakers: Vec<Waker>) {
        self.wakers = wakers;
    }

    /// The next parcel from any shard, taking turns.
    pub fn receive(&mut self, turn: &mut usize) -> Option<(ShardId, Box<Parcel>)> {
        let shards = self.inboxes.len();
        for _ in 0..shards {
            let from = *turn % shards;
            *turn += 1;
            if let Some(inbox) = &mut self.inboxes[from]
                && let Ok(parcel) = inbox.pop()
            {
                return Some((from as ShardId, parcel));
            }
        }
        None
    }

    pub fn is_empty(&self) -> bool {
        self.inboxes.iter().flatten().all(Consumer::is_empty)
    }

    /// Wakes the shards that were sent something, should they sleep.
    pub fn wake(&mut self) {
        for to in self.to_wake.drain(..) {
            self.wakers[usize::from(to)].wake();
        }
    }
}

impl Outlet for Mailboxes {
    fn has_room(&self, to: ShardId) -> bool {
        self.outboxes[usize::from(to)].as_ref().is_some_and(|outbox| !outbox.is_full())
    }

    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        debug_assert_ne!(to, self.id);
        let outbox = self.outboxes[usize::from(to)].as_mut().expect("every other shard has one");
        let outcome = outbox.push(parcel).map_err(|PushError::Full(parcel)| parcel);
        // Even a full ring needs its consumer awake.
        self.to_wake.push(to);
        outcome
    }
}
