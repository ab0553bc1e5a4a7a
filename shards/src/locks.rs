//! Which keys of a shard are on loan to a multi-shard transaction.
//!
//! Deadlock cannot arise because whoever waits is younger than whom it waits for (transaction ids are drawn from one
//! counter): a request that finds an older holder waits, one that finds a younger holder is refused and starts over
//! with a new id ("wait-die", Rosenkrantz, Stearns and Lewis, 1978). Single-shard commands that wait draw an id of the
//! same counter when they begin to, so they too are younger than whom they wait for.
//!
//! A request also waits behind what is older and waits for the same key. Were it granted, an older request would find a
//! younger holder and have to start over, and commands would wait for one after the other; a few transactions can do
//! that for ever.

use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// A transaction's age: smaller is older. Drawn from one counter for all shards.
pub type TxId = u64;

/// A key under lock: in all databases at once, for some commands work on two (`MOVE`, `COPY … DB`).
pub type LockKey = Bytes;

/// Keys to be locked, gathered in one allocation.
#[derive(Default)]
pub struct LockKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl LockKeys {
    pub fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    pub fn finish(self) -> Vec<LockKey> {
        let (bytes, mut start) = (Bytes::from(self.bytes), 0);
        self.ends.into_iter().map(|end| bytes.slice(std::mem::replace(&mut start, end)..end)).collect()
    }
}

impl<'a> FromIterator<&'a [u8]> for LockKeys {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(keys: I) -> Self {
        let mut all = Self::default();
        keys.into_iter().for_each(|key| all.push(key));
        all
    }
}

/// What a transaction asks of one shard.
#[derive(Debug, Clone)]
pub enum Claim {
    /// Ascending, each once.
    Keys(Arc<[LockKey]>),
    /// The whole slice.
    Everything,
}

impl Claim {
    /// Of keys in any order.
    pub fn of(mut keys: Vec<LockKey>) -> Self {
        keys.sort_unstable();
        keys.dedup();
        Self::Keys(keys.into())
    }

    /// Whether the two cannot be granted at the same time.
    pub fn conflicts_with(&self, other: &Claim) -> bool {
        let (Claim::Keys(left), Claim::Keys(right)) = (self, other) else { return true };
        let mut right = right.iter().peekable();
        left.iter().any(|key| {
            while right.next_if(|other| *other < key).is_some() {}
            right.peek().is_some_and(|other| *other == key)
        })
    }
}

/// Answer to a request for locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Granted,
    /// Ask again when something was released.
    Wait,
    /// Start over with a new id, releasing what was granted elsewhere.
    Refused,
}

/// One shard's locks.
#[derive(Default)]
pub struct Locks {
    held: HashMap<LockKey, TxId, foldhash::fast::RandomState>,
    /// Holder of the whole slice.
    exclusive: Option<TxId>,
    /// An epoch of the master's stream is being applied: clients get nothing.
    holding: bool,
}

impl Locks {
    /// The one branch of the fast path: nothing is on loan or held back.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.exclusive.is_none() && !self.holding
    }

    /// Whether nothing at all may run here now.
    pub fn blocks_all(&self) -> bool {
        self.exclusive.is_some() || self.holding
    }

    /// Something is on loan.
    pub fn has_loans(&self) -> bool {
        !self.held.is_empty() || self.exclusive.is_some()
    }

    pub fn exclusive_holder(&self) -> Option<TxId> {
        self.exclusive
    }

    /// Who has this key on loan.
    pub fn holder(&self, key: &[u8]) -> Option<TxId> {
        self.exclusive.or_else(|| self.held.get(key).copied())
    }

    /// From now on nothing runs and nothing is lent; what is on loan stays so until it is returned.
    pub fn hold(&mut self) {
        assert!(!self.holding, "one epoch at a time");
        self.holding = true;
    }

    pub fn release_hold(&mut self) {
        assert!(self.holding, "held before");
        self.holding = false;
    }

    pub fn is_holding(&self) -> bool {
        self.holding
    }

    /// Whether a single-shard command may not touch this key now.
    pub fn blocks(&self, key: &[u8]) -> bool {
        self.blocks_all() || self.held.contains_key(key)
    }

    /// The youngest of those who have something of a claim on loan.
    pub fn youngest_holder(&self, claim: &Claim) -> Option<TxId> {
        match claim {
            Claim::Everything => self.held.values().chain(self.exclusive.as_ref()).max().copied(),
            Claim::Keys(keys) => {
                let held = keys.iter().filter_map(|key| self.held.get(key).copied());
                held.chain(self.exclusive).max()
            }
        }
    }

    /// Takes all of a claim, or nothing of it.
    pub fn acquire(&mut self, id: TxId, claim: &Claim) -> Verdict {
        if self.holding {
            return Verdict::Wait;
        }
        match self.youngest_holder(claim) {
            Some(holder) if holder > id => Verdict::Refused,
            Some(holder) => {
                assert_ne!(holder, id, "a transaction asks each shard once");
                Verdict::Wait
            }
            None => {
                match claim {
                    Claim::Everything => self.exclusive = Some(id),
                    Claim::Keys(keys) => self.held.extend(keys.iter().cloned().map(|key| (key, id))),
                }
                Verdict::Granted
            }
        }
    }

    /// Gives back what a transaction holds here.
    pub fn release(&mut self, id: TxId, keys: impl IntoIterator<Item = LockKey>) {
        if self.exclusive == Some(id) {
            self.exclusive = None;
        }
        for key in keys {
            let holder = self.held.remove(&key);
            assert_eq!(holder, Some(id), "only the holder releases");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(names: &[&str]) -> Claim {
        Claim::Keys(keys(names).into())
    }

    fn keys(names: &[&str]) -> Vec<LockKey> {
        names.iter().map(|name| name.as_bytes()).collect::<LockKeys>().finish()
    }

    #[test]
    fn claims_conflict_in_a_common_key() {
        assert!(claim(&["a", "c", "e"]).conflicts_with(&claim(&["b", "e", "f"])));
        assert!(claim(&["e"]).conflicts_with(&claim(&["a", "b", "e"])));
        assert!(!claim(&["a", "c"]).conflicts_with(&claim(&["b", "d"])));
        assert!(!claim(&[]).conflicts_with(&claim(&["b"])));
        assert!(
            Claim::Everything.conflicts_with(&claim(&["b"]))
                && claim(&["b"]).conflicts_with(&Claim::Everything)
        );
    }

    #[test]
    fn law3_the_younger_waits_and_the_older_starts_over() {
        let mut locks = Locks::default();
        assert_eq!(locks.acquire(5, &claim(&["a", "b"])), Verdict::Granted);
        assert_eq!(locks.acquire(7, &claim(&["b", "c"])), Verdict::Wait);
        assert_eq!(locks.acquire(3, &claim(&["b"])), Verdict::Refused);
        assert!(!locks.blocks(b"c"), "who waits holds nothing");
        assert!(locks.blocks(b"a"));
        assert_eq!(locks.acquire(9, &Claim::Everything), Verdict::Wait);
        locks.release(5, keys(&["a", "b"]));
        assert!(locks.is_empty());
        assert_eq!(locks.acquire(9, &Claim::Everything), Verdict::Granted);
        assert!(locks.blocks(b"anything"));
        assert_eq!(locks.acquire(10, &claim(&["z"])), Verdict::Wait);
        assert_eq!(locks.acquire(8, &claim(&["z"])), Verdict::Refused);
        locks.release(9, []);
        assert!(locks.is_empty());
    }
}
