//! What hashes, sets and sorted sets share: their large tables, drawing members at random, and checks on bytes from
//! outside.

use super::free_steps;
use super::listpack::{Element, Listpack};
use crate::table::{Entry, EntryRef, HashKey, NewValue, Table, ValueRef, Verdict};
use std::collections::HashSet;
use std::sync::OnceLock;

/// The table of a large hash, set or sorted set: nothing in it is boxed.
pub type MemberTable = Table<Never>;

/// A type without values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never {}

static SEED: OnceLock<u64> = OnceLock::new();

/// Sets the seed of the hash function in large values, once for a process and before there are any. The server draws
/// it at random at start, so that no client can choose members that collide; tests keep the default, a constant.
/// False if it was set, or used, before.
pub fn set_hash_seed(seed: u64) -> bool {
    SEED.set(seed).is_ok()
}

pub(super) fn new_table() -> MemberTable {
    static KEY: OnceLock<HashKey> = OnceLock::new();
    Table::new(*KEY.get_or_init(|| HashKey::from_seed(*SEED.get_or_init(|| 0))))
}

/// A copy of the table, entry by entry.
pub(super) fn clone_table(table: &MemberTable) -> MemberTable {
    let mut copy = Table::new(table.hash_key());
    for entry in table {
        let value = match entry.value() {
            ValueRef::None => NewValue::None,
            ValueRef::Str(text) => NewValue::Str(text),
            ValueRef::Int(number) => NewValue::Int(number),
            ValueRef::Score(score) => NewValue::Score(score),
            ValueRef::Boxed(never) => match *never {},
        };
        copy.insert(copy.hash(entry.key()), Entry::with_expiry(entry.key(), value, entry.expiry_ms()));
    }
    copy
}

/// Steps that freeing the table takes, about.
pub(super) fn free_effort(table: &MemberTable) -> usize {
    // Long entries are looked for where few entries would be freed at once.
    const FEW: usize = 64;
    if table.len() > FEW {
        table.len()
    } else {
        table.iter().map(|entry| free_steps(entry.heap_bytes())).sum()
    }
}

/// Frees entries for up to about `max_steps`; true once the table is empty.
pub(super) fn free_some(table: &mut MemberTable, max_steps: usize) -> bool {
    let mut left = max_steps;
    // Each time from another place, and around the end if need be: the directory does not shrink, and from the front
    // each call would pass everything that the earlier ones have emptied.
    let mut position = (table.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while left > 0 && !table.is_empty() {
        position = table.retain_slice(position, left, |entry| {
            if left == 0 {
                return Verdict::Keep;
            }
            left -= free_steps(entry.heap_bytes()).min(left);
            Verdict::Remove
        });
    }
    table.is_empty()
}

/// Bytes of the table and its entries, of which a sample tells enough: a walk over a huge table would stall.
pub(super) fn table_bytes(table: &MemberTable) -> usize {
    const SAMPLES: usize = 32;
    let (mut bytes, mut count) = (0, 0);
    for entry in table.iter().take(SAMPLES) {
        bytes += entry.heap_bytes();
        count += 1;
    }
    table.heap_bytes() + (bytes * table.len()).checked_div(count).unwrap_or(0)
}

/// `count` distinct entries (all, if there are not more), drawn at random.
pub(super) fn sample_table<'a>(
    table: &'a MemberTable,
    rng: &mut fastrand::Rng,
    count: usize,
) -> Vec<EntryRef<'a, Never>> {
    if count >= table.len() / 3 {
        // Drawing one by one would mostly meet what was drawn before.
        let mut all: Vec<_> = table.iter().collect();
        let count = count.min(all.len());
        for at in 0..count {
            let other = rng.usize(at..all.len());
            all.swap(at, other);
        }
        all.truncate(count);
        return all;
    }
    let mut seen = HashSet::with_capacity(count);
    let mut drawn = Vec::with_capacity(count);
    while drawn.len() < count
        && let Some(entry) = table.random(rng)
    {
        if seen.insert(entry.key().as_ptr()) {
            drawn.push(entry);
        }
    }
    drawn
}

/// `count` distinct numbers below `len` (all, if there are not more), ascending, drawn at random.
pub(super) fn sample_indices(len: usize, rng: &mut fastrand::Rng, count: usize) -> Vec<usize> {
    if count >= len {
        return (0..len).collect();
    }
    // Floyd: the last draw for each growing bound takes the bound itself if its choice is taken.
    let mut chosen = HashSet::with_capacity(count);
    for bound in len - count..len {
        let choice = rng.usize(..=bound);
        if !chosen.insert(choice) {
            chosen.insert(bound);
        }
    }
    let mut indices: Vec<usize> = chosen.into_iter().collect();
    indices.sort_unstable();
    indices
}

/// Positions of the tuples of those ascending indices, for tuples of `stride` elements, in one walk.
pub(super) fn positions<'a>(
    pack: &'a Listpack,
    stride: usize,
    indices: &'a [usize],
) -> impl Iterator<Item = usize> + 'a {
    let mut at = pack.start();
    let mut tuple = 0;
    indices.iter().map(move |&wanted| {
        for _ in tuple * stride..wanted * stride {
            at = pack.next(at);
        }
        tuple = wanted;
        at
    })
}

/// Whether two of the listpack's elements 0, `stride`, 2 `stride` ... are the same text.
pub(super) fn has_duplicates(pack: &Listpack, stride: usize) -> bool {
    let hash_key = new_table().hash_key();
    let mut scratch = itoa::Buffer::new();
    let mut hashes: Vec<u64> =
        pack.iter().step_by(stride).map(|element| hash_key.hash(element.bytes(&mut scratch))).collect();
    hashes.sort_unstable();
    if hashes.is_sorted_by(|a, b| a < b) {
        return false;
    }
    // Two texts may share a hash, once in a very long time.
    let mut texts: Vec<Vec<u8>> = pack.iter().step_by(stride).map(Element::to_vec).collect();
    texts.sort_unstable();
    !texts.is_sorted_by(|a, b| a < b)
}

/// Why a listpack is not the hash, set or sorted set it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Not a whole number of tuples.
    Odd,
    /// A field or member occurs twice.
    Duplicate,
    /// A score or an expiry is no number.
    Number,
    /// Scores or expiries are not in order.
    Order,
    /// There is nothing in it.
    Empty,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Misfit::Odd => "collection has an incomplete element",
            Misfit::Duplicate => "collection has a duplicate element",
            Misfit::Number => "collection has a malformed number",
            Misfit::Order => "collection is out of order",
            Misfit::Empty => "collection is empty",
        })
    }
}

impl std::error::Error for Misfit {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_distinct_and_all_equally_likely() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut hits = [0; 20];
        for _ in 0..4_000 {
            let indices = sample_indices(20, &mut rng, 5);
            assert!(indices.len() == 5 && indices.is_sorted_by(|a, b| a < b));
            indices.iter().for_each(|&index| hits[index] += 1);
        }
        assert!(hits.iter().all(|&count| (850..1_150).contains(&count)), "{hits:?}");
        assert_eq!(sample_indices(3, &mut rng, 9), [0, 1, 2]);
    }

    #[test]
    fn duplicates_are_found_whatever_their_encoding() {
        let mut pack = Listpack::new();
        for text in ["a", "1", "b", "1", "12", "7"] {
            pack.push_back(text.as_bytes());
        }
        assert!(!has_duplicates(&pack, 2));
        assert!(has_duplicates(&pack, 1));
        // "12" stored as a text, which only foreign bytes do.
        let mut bytes = pack.as_bytes().to_vec();
        bytes.pop();
        bytes.extend_from_slice(&[0x82, b'1', b'2', 3, 5, 1, 0xFF]);
        bytes[0] = bytes.len() as u8;
        bytes[4] += 2;
        let pack = Listpack::from_bytes(bytes).unwrap();
        assert!(has_duplicates(&pack, 2));
    }
}
