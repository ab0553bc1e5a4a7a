//! A large sorted set: a table that finds a member's score, and a tree that keeps the members in order.
//!
//! Members' bytes are stored once, in the table's entries; the tree's items hold the entry's address beside the score.
//! An item costs 16 bytes, and comparing scores touches no entry.
//!
//! **Invariant** that the one `unsafe` block here rests on: for each item in `tree`, the entry it refers to is in
//! `table`. It holds because an entry of score kind without expiry keeps its heap block as long as it stays in the
//! table (its score is changed in place, nothing else is), and because whatever takes an entry out of the table takes
//! its item out of the tree first. No item leaves this module, and what is lent from one borrows the whole set.

use super::members::{self, MemberTable, Never};
use super::ordered::{self, CountedTree};
use crate::table::{Entry, EntryRef, Lookup, NewValue, ValueMut, ValueRef};
use std::cmp::Ordering;
use std::ops::Range;

/// A member and its score, in order: by score, members of the same score by their bytes.
#[derive(Clone, Copy)]
struct Item {
    score: f64,
    /// Not really 'static; see the module's invariant.
    entry: EntryRef<'static, Never>,
}

impl Item {
    fn new(score: f64, entry: EntryRef<'_, Never>) -> Self {
        // SAFETY: only the lifetime changes. By the module's invariant the entry outlives the item, and `key` ties
        // what it lends to a borrow of the set.
        let entry = unsafe { std::mem::transmute::<EntryRef<'_, Never>, EntryRef<'static, Never>>(entry) };
        Item { score, entry }
    }

    /// The member, borrowed as long as the set that `_owner` belongs to.
    fn key<'a>(&self, _owner: &'a MemberTable) -> &'a [u8] {
        self.entry.key()
    }

    fn is_before(&self, owner: &MemberTable, score: f64, member: &[u8]) -> bool {
        compare(self.score, score).then_with(|| self.key(owner).cmp(member)).is_lt()
    }
}

/// The order of two scores; they are never NaN, and both zeros are the same.
pub(super) fn compare(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).expect("a score is never NaN")
}

/// See the module.
pub struct ScoredSet {
    tree: CountedTree<Item>,
    table: MemberTable,
}

impl std::fmt::Debug for ScoredSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.range(0..self.len())).finish()
    }
}

impl Clone for ScoredSet {
    fn clone(&self) -> Self {
        let mut copy = ScoredSet::new();
        for (member, score) in self.range(0..self.len()) {
            copy.push_back(member, score);
        }
        copy
    }
}

impl Default for ScoredSet {
    fn default() -> Self {
        ScoredSet::new()
    }
}

fn score_of(entry: EntryRef<'_, Never>) -> f64 {
    match entry.value() {
        ValueRef::Score(score) => score,
        other => unreachable!("a member's entry holds its score, not {other:?}"),
    }
}

impl ScoredSet {
    pub fn new() -> Self {
        ScoredSet { tree: CountedTree::new(), table: members::new_table() }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub fn score(&self, member: &[u8]) -> Option<f64> {
        self.table.find(self.table.hash(member), member).map(score_of)
    }

    /// Adds the member or changes its score; returns the score it had. Panics if `score` is NaN.
    pub fn insert(&mut self, member: &[u8], score: f64) -> Option<f64> {
        assert!(!score.is_nan(), "a score is never NaN");
        let hash = self.table.hash(member);
        let (item, old) = match self.table.lookup(hash, member) {
            Lookup::Found(mut entry) => {
                let ValueMut::Score(stored) = entry.value_mut() else {
                    unreachable!("a member's entry holds its score")
                };
                let old = std::mem::replace(stored, score);
                (Item::new(score, entry.into_ref()), Some(old))
            }
            Lookup::Vacant(place) => {
                let entry = Entry::new(member, NewValue::Score(score));
                let item = Item::new(score, entry.view());
                place.insert(entry);
                (item, None)
            }
        };
        if let Some(old) = old {
            if old == score {
                return Some(old);
            }
            self.remove_item(old, member);
        }
        let table = &self.table;
        self.tree.insert(item, |other| other.is_before(table, score, member));
        old
    }

    /// Adds a member that belongs behind all others and is not there yet.
    pub fn push_back(&mut self, member: &[u8], score: f64) {
        debug_assert!(self.last_item().is_none_or(|last| last.is_before(&self.table, score, member)));
        let entry = Entry::new(member, NewValue::Score(score));
        let item = Item::new(score, entry.view());
        self.table.insert(self.table.hash(member), entry);
        self.tree.insert(item, |_| true);
    }

    /// Removes the member and returns its score.
    pub fn remove(&mut self, member: &[u8]) -> Option<f64> {
        let hash = self.table.hash(member);
        let score = self.table.find(hash, member).map(score_of)?;
        self.remove_item(score, member);
        self.table.remove(hash, member);
        Some(score)
    }

    /// Removes the member of that rank, after showing it to `with`.
    pub fn remove_at<R>(&mut self, rank: usize, with: impl FnOnce(&[u8], f64) -> R) -> Option<R> {
        let item = self.tree.remove_at(rank)?;
        let member = item.key(&self.table);
        let result = with(member, item.score);
        let hash = self.table.hash(member);
        // The entry that is removed owns the bytes that name it; they are read before it is freed.
        let member = smallvec::SmallVec::<[u8; 64]>::from_slice(member);
        let removed = self.table.remove(hash, &member);
        assert!(removed.is_some(), "the entry of an item is in the table");
        Some(result)
    }

    /// The member of that rank.
    pub fn get(&self, rank: usize) -> Option<(&[u8], f64)> {
        self.tree.get(rank).map(|item| (item.key(&self.table), item.score))
    }

    /// The member's rank and score.
    pub fn rank(&self, member: &[u8]) -> Option<(usize, f64)> {
        let score = self.score(member)?;
        Some((self.rank_of(score, member), score))
    }

    /// Number of members that `precedes` holds for, a prefix of the order.
    pub fn partition_point(&self, mut precedes: impl FnMut(&[u8], f64) -> bool) -> usize {
        self.tree.partition_point(|item| precedes(item.key(&self.table), item.score))
    }

    /// [`ScoredSet::partition_point`] for tests that look at the score alone: touches no entry.
    pub fn partition_point_by_score(&self, mut precedes: impl FnMut(f64) -> bool) -> usize {
        self.tree.partition_point(|item| precedes(item.score))
    }

    /// The members of those ranks, from either side.
    pub fn range(&self, ranks: Range<usize>) -> Iter<'_> {
        Iter { items: self.tree.range(ranks), table: &self.table }
    }

    pub fn random(&self, rng: &mut fastrand::Rng) -> Option<(&[u8], f64)> {
        if self.is_empty() { None } else { self.get(rng.usize(..self.len())) }
    }

    /// Visits some `count` members from `cursor` on, in hash order; returns the next cursor, 0 at the end.
    pub fn scan(&self, cursor: u64, count: usize, mut visit: impl FnMut(&[u8], f64)) -> u64 {
        self.table.scan(cursor, count, |entry| visit(entry.key(), score_of(entry)))
    }

    pub fn heap_bytes(&self) -> usize {
        self.tree.heap_bytes() + members::table_bytes(&self.table)
    }

    /// Steps that freeing the set takes, about.
    pub fn free_effort(&self) -> usize {
        members::free_effort(&self.table) + self.tree.node_count()
    }

    /// Frees for up to about `max_steps`; true once nothing is left. Nothing else may be done with the set from the
    /// first call on.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        // Items first: they refer to entries.
        self.tree.free_some(max_steps) && members::free_some(&mut self.table, max_steps)
    }

    fn last_item(&self) -> Option<Item> {
        self.tree.get(self.tree.len().checked_sub(1)?)
    }

    fn rank_of(&self, score: f64, member: &[u8]) -> usize {
        self.tree.partition_point(|item| item.is_before(&self.table, score, member))
    }

    /// Takes the item of a member out of the tree, whose score there is `score`.
    fn remove_item(&mut self, score: f64, member: &[u8]) {
        let rank = self.rank_of(score, member);
        let item = self.tree.remove_at(rank).expect("a member of the table is in the tree");
        assert!(item.key(&self.table) == member, "the tree found another member in its place");
    }
}

/// Members in order with their scores, from either side.
#[derive(Clone)]
pub struct Iter<'a> {
    items: ordered::Iter<'a, Item>,
    table: &'a MemberTable,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], f64);

    fn next(&mut self) -> Option<Self::Item> {
        self.items.next().map(|item| (item.key(self.table), item.score))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.size_hint()
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.items.next_back().map(|item| (item.key(self.table), item.score))
    }
}

impl ExactSizeIterator for Iter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn random_edits_match_a_sorted_vector() {
        let steps = if cfg!(miri) { 300 } else { 20_000 };
        let mut rng = fastrand::Rng::with_seed(31);
        let (mut set, mut scores) = (ScoredSet::new(), BTreeMap::<Vec<u8>, f64>::new());
        for step in 0..steps {
            let member = format!("member {}", rng.usize(..steps / 5)).into_bytes();
            let score = [rng.i32(-9..9) as f64, rng.f64(), 0.0, -0.0, f64::INFINITY][rng.usize(..5)];
            match rng.u8(..10) {
                0..7 => assert_eq!(set.insert(&member, score), scores.insert(member, score)),
                7 | 8 => assert_eq!(set.remove(&member), scores.remove(&member)),
                _ if set.is_empty() => {}
                _ => {
                    let rank = rng.usize(..set.len());
                    let shown = set.get(rank).map(|(member, score)| (member.to_vec(), score));
                    let (member, score) = shown.unwrap();
                    assert_eq!(set.rank(&member), Some((rank, score)));
                    set.remove_at(rank, |shown, _| assert_eq!(shown, member));
                    assert_eq!(scores.remove(&member), Some(score));
                }
            }
            if step % (steps / 20) == 0 {
                check(&set, &scores);
            }
        }
        check(&set, &scores);
        check(&set.clone(), &scores);
        drop(set.clone());
        while !set.free_some(10) {}
        assert!(set.is_empty());
    }

    fn check(set: &ScoredSet, scores: &BTreeMap<Vec<u8>, f64>) {
        let mut order: Vec<_> = scores.iter().map(|(member, &score)| (member.as_slice(), score)).collect();
        order.sort_by(|a, b| compare(a.1, b.1).then(a.0.cmp(b.0)));
        assert_eq!(set.len(), order.len());
        assert!(set.range(0..set.len()).eq(order.iter().copied()));
        assert!(set.range(0..set.len()).rev().eq(order.iter().rev().copied()));
        let half = set.partition_point_by_score(|score| score < 0.5);
        assert_eq!(half, order.partition_point(|&(_, score)| score < 0.5));
    }
}
