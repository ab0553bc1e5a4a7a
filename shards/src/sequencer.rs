//! The order in which shards run pipelines that concern several of them, agreed on before they run (law 2).
//!
//! A tick's pipelines that go to several shards are a batch. Its coordinator takes a position for it, which comes behind that
//! of every batch before on each of the shards concerned; each of them runs its batches by position. As all agree on which of
//! two batches is first, what they do is what they would do one batch after the other, each in the order in which it was
//! sent, and no shard waits for another's progress within a batch. (Deterministic scheduling, as of Calvin: Thomson et al.,
//! SIGMOD 2012.)
//!
//! Everything else keeps its place among the batches by one rule: nothing runs on a shard before the batches that had a
//! position there when it was sent. Parcels carry that position ([`crate::Parcel::after`]), and clients' commands
//! wait until [`crate::Shard::has_run`] says so of the last. So whoever saw one shard's part of a batch finds all others run.
//!
//! In a batch no command may have to wait for anything. What might make one wait — loans to transactions, holds of epochs, the
//! walks of snapshots — is announced as unrest before it begins, and while there is some, pipelines keep their order by
//! themselves, leg by leg ([`crate::flight`]).

use crate::slots::ShardId;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// On a cache line of its own: each shard reads its own all the time.
#[repr(align(128))]
#[derive(Default)]
struct Latest(AtomicU64);

/// A place in the order of batches. 0 is before the first.
pub type Position = u64;

/// What shards have to agree on. One for all of them.
pub struct Sequencer {
    /// The last position. Held for some dozen instructions, and never while anything is run or sent: it guards numbers that have to
    /// change together, no data.
    last: Mutex<Position>,
    /// By shard, the last batch that it takes part in.
    latest: Box<[Latest]>,
    ticket: AtomicU64,
    /// Reasons for commands to wait.
    unrest: AtomicU64,
}

/// The place of a batch, as told to one of the shards concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub position: Position,
    /// The ticket of its effects, if effects are collected.
    pub ticket: Option<u64>,
    /// How many shards run a part of it.
    pub shares: u16,
}

impl Sequencer {
    pub fn new(shards: usize) -> Self {
        Self {
            last: Mutex::new(0),
            latest: (0..shards).map(|_| Latest::default()).collect(),
            ticket: AtomicU64::new(0),
            unrest: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Position> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next ticket of the stream.
    pub fn next_ticket(&self) -> u64 {
        self.ticket.load(Ordering::SeqCst)
    }

    /// The last batch that a shard takes part in.
    #[inline]
    pub fn latest(&self, shard: ShardId) -> Position {
        self.latest[usize::from(shard)].0.load(Ordering::SeqCst)
    }

    /// A ticket for what `shard` did alone, having run its batches up to `ran`. None: it takes part in a later one already.
    /// What it did precedes that one's effects and belongs to their ticket.
    pub fn take_ticket(&self, shard: ShardId, ran: Position) -> Option<u64> {
        if self.latest.len() == 1 {
            return Some(self.ticket.fetch_add(1, Ordering::SeqCst));
        }
        let _guard = self.lock();
        (self.latest(shard) == ran).then(|| self.ticket.fetch_add(1, Ordering::SeqCst))
    }

    /// Gives a batch its place, unless there is unrest. `shares`: the shards concerned, each with room for the
    /// position that it has to run before.
    pub fn sequence<'a>(
        &self,
        with_ticket: bool,
        shares: impl ExactSizeIterator<Item = (ShardId, &'a mut Position)>,
    ) -> Option<Batch> {
        let mut last = self.lock();
        if self.unrest.load(Ordering::SeqCst) > 0 {
            return None;
        }
        *last += 1;
        let batch = Batch {
            position: *last,
            ticket: with_ticket.then(|| self.ticket.fetch_add(1, Ordering::SeqCst)),
            shares: shares.len() as u16,
        };
        for (shard, after) in shares {
            *after = self.latest[usize::from(shard)].0.swap(*last, Ordering::SeqCst);
        }
        Some(batch)
    }

    /// Announces reasons for commands to wait. No batch gets a place from here on; those that have one come first wherever
    /// what is sent after this arrives.
    pub fn begin_unrest(&self, reasons: u64) {
        // Not in the midst of giving a batch its place.
        let _guard = self.lock();
        self.unrest.fetch_add(reasons, Ordering::SeqCst);
    }

    /// One of the reasons is gone, and nothing waits for it any more.
    pub fn end_unrest(&self) {
        let before = self.unrest.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "unrest ends once");
    }

    /// There is nothing that a command would have to wait for.
    pub fn is_calm(&self) -> bool {
        self.unrest.load(Ordering::SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law2_shards_agree_on_which_batch_is_first() {
        let sequencer = Sequencer::new(3);
        let sequence = |shards: [ShardId; 2]| {
            let mut after = [0; 2];
            let batch = sequencer.sequence(true, shards.into_iter().zip(&mut after));
            (batch.unwrap().position, after)
        };
        assert_eq!(sequence([0, 1]), (1, [0, 0]));
        assert_eq!(sequence([2, 1]), (2, [0, 1]));
        assert_eq!(sequence([0, 2]), (3, [1, 2]));
        assert_eq!([0, 1, 2].map(|shard| sequencer.latest(shard)), [3, 2, 3]);
    }

    #[test]
    fn one_stream_what_precedes_a_batch_takes_no_later_ticket() {
        let sequencer = Sequencer::new(2);
        assert_eq!(sequencer.take_ticket(0, 0), Some(0));
        let mut after = [0; 2];
        let batch = sequencer.sequence(true, [0, 1].into_iter().zip(&mut after)).unwrap();
        assert_eq!(batch, Batch { position: 1, ticket: Some(1), shares: 2 });
        assert_eq!(sequencer.take_ticket(0, 0), None, "it has not run the batch");
        assert_eq!(sequencer.take_ticket(0, 1), Some(2));
        let batch = sequencer.sequence(false, [0, 1].into_iter().zip(&mut after)).unwrap();
        assert_eq!((batch.ticket, sequencer.next_ticket()), (None, 3));
    }

    #[test]
    fn law3_no_batch_while_something_may_wait() {
        let sequencer = Sequencer::new(2);
        let mut after = [0; 2];
        let mut sequence = || sequencer.sequence(true, [0, 1].into_iter().zip(&mut after)).is_some();
        assert!(sequence());
        sequencer.begin_unrest(2);
        assert!(!sequence() && !sequencer.is_calm());
        sequencer.end_unrest();
        assert!(!sequence());
        sequencer.end_unrest();
        assert!(sequence() && sequencer.is_calm());
    }
}
