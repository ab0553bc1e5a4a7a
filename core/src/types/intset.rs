//! Intset: a sorted array of integers, 2, 4 or 8 bytes each, in the byte format of Redis.
//!
//! ```text
//! u32 bytes per member (2, 4 or 8) | u32 count | members in ascending order, little endian
//! ```
//! One member that needs more bytes widens all of them; nothing narrows them again.

const HEADER_BYTES: usize = 8;

/// Why bytes are not an intset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The width is not 2, 4 or 8, or the count does not fit the bytes.
    Frame,
    /// No members: Redis never stores an empty set.
    Empty,
    /// Members out of order, or one of them twice.
    Order,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Malformed::Frame => "intset frame is malformed",
            Malformed::Empty => "intset is empty",
            Malformed::Order => "intset members are out of order",
        })
    }
}

impl std::error::Error for Malformed {}

/// A set of integers. Invariant: strictly ascending, all members `width` bytes wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntSet {
    bytes: Vec<u8>,
}

impl Default for IntSet {
    fn default() -> Self {
        IntSet::new()
    }
}

/// Bytes that `value` needs.
fn width_of(value: i64) -> usize {
    if i16::try_from(value).is_ok() {
        2
    } else if i32::try_from(value).is_ok() {
        4
    } else {
        8
    }
}

fn read(slot: &[u8]) -> i64 {
    match *slot {
        [a, b] => i64::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => i64::from_le_bytes(slot.try_into().expect("members are 2, 4 or 8 bytes wide")),
    }
}

impl IntSet {
    pub fn new() -> Self {
        IntSet { bytes: vec![2, 0, 0, 0, 0, 0, 0, 0] }
    }

    /// Takes bytes from outside after checking all of them. Never panics.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Malformed> {
        if bytes.len() < HEADER_BYTES {
            return Err(Malformed::Frame);
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (width, count) = (word(0) as usize, word(4) as usize);
        if !matches!(width, 2 | 4 | 8) || count.checked_mul(width) != Some(bytes.len() - HEADER_BYTES) {
            return Err(Malformed::Frame);
        }
        if count == 0 {
            return Err(Malformed::Empty);
        }
        let set = IntSet { bytes };
        if !set.iter().is_sorted_by(|a, b| a < b) {
            return Err(Malformed::Order);
        }
        Ok(set)
    }

    /// The bytes as Redis stores them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub fn len(&self) -> usize {
        (self.bytes.len() - HEADER_BYTES) / self.width()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    /// The member of that index in ascending order.
    pub fn get(&self, index: usize) -> Option<i64> {
        let at = HEADER_BYTES + index * self.width();
        self.bytes.get(at..at + self.width()).map(read)
    }

    pub fn contains(&self, value: i64) -> bool {
        self.search(value).is_ok()
    }

    /// Adds `value`; false if it was there.
    pub fn insert(&mut self, value: i64) -> bool {
        if width_of(value) > self.width() {
            self.widen(width_of(value));
        }
        let Err(index) = self.search(value) else { return false };
        let (width, old_len) = (self.width(), self.bytes.len());
        let at = HEADER_BYTES + index * width;
        self.reserve(width);
        self.bytes.resize(old_len + width, 0);
        self.bytes.copy_within(at..old_len, at + width);
        self.bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        self.set_count();
        true
    }

    /// Removes `value`; false if it was not there.
    pub fn remove(&mut self, value: i64) -> bool {
        let Ok(index) = self.search(value) else { return false };
        self.remove_at(index);
        true
    }

    /// Removes and returns the member of that index in ascending order.
    pub fn remove_at(&mut self, index: usize) -> Option<i64> {
        let value = self.get(index)?;
        let at = HEADER_BYTES + index * self.width();
        self.bytes.drain(at..at + self.width());
        self.set_count();
        Some(value)
    }

    /// Ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = i64> + ExactSizeIterator + Clone + '_ {
        self.bytes[HEADER_BYTES..].chunks_exact(self.width()).map(read)
    }

    pub fn min(&self) -> Option<i64> {
        self.get(0)
    }

    pub fn max(&self) -> Option<i64> {
        self.get(self.len().checked_sub(1)?)
    }

    fn width(&self) -> usize {
        usize::from(self.bytes[0])
    }

    /// The index of `value`, or the index at which it belongs.
    fn search(&self, value: i64) -> Result<usize, usize> {
        let width = self.width();
        let members = &self.bytes[HEADER_BYTES..];
        let (mut low, mut high) = (0, members.len() / width);
        while low < high {
            let middle = low.midpoint(high);
            match read(&members[middle * width..(middle + 1) * width]).cmp(&value) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn widen(&mut self, width: usize) {
        // Room for the member that made it necessary, too.
        let mut bytes = Vec::with_capacity(HEADER_BYTES + (self.len() + 1) * width);
        bytes.extend_from_slice(&(width as u32).to_le_bytes());
        bytes.extend_from_slice(&self.bytes[4..HEADER_BYTES]);
        for member in self.iter() {
            bytes.extend_from_slice(&member.to_le_bytes()[..width]);
        }
        self.bytes = bytes;
    }

    fn set_count(&mut self) {
        let count = self.len() as u32;
        self.bytes[4..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
    }

    fn reserve(&mut self, added: usize) {
        let needed = self.bytes.len() + added;
        if needed > self.bytes.capacity() {
            self.bytes.reserve_exact(((needed + needed / 4 + 7) & !7) - self.bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn random_edits_match_an_ordered_set() {
        let mut rng = fastrand::Rng::with_seed(3);
        for round in 0..60 {
            let (mut set, mut model) = (IntSet::new(), BTreeSet::new());
            let span = [50, 40_000, 3_000_000_000, i64::MAX][round % 4];
            for _ in 0..300 {
                let value = rng.i64(-span..=span);
                match rng.u8(..4) {
                    0 => assert_eq!(set.remove(value), model.remove(&value)),
                    1 if !model.is_empty() => {
                        let index = rng.usize(..model.len());
                        let expected = *model.iter().nth(index).unwrap();
                        assert_eq!(set.remove_at(index), Some(expected));
                        model.remove(&expected);
                    }
                    _ => assert_eq!(set.insert(value), model.insert(value)),
                }
                assert_eq!(set.contains(value), model.contains(&value));
            }
            assert!(set.iter().eq(model.iter().copied()));
            assert_eq!((set.min(), set.max()), (model.first().copied(), model.last().copied()));
            assert_eq!(set.get(model.len()), None);
            if !model.is_empty() {
                assert_eq!(IntSet::from_bytes(set.as_bytes().to_vec()).as_ref(), Ok(&set));
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_redis() {
        let mut set = IntSet::new();
        for value in [5, -1, 3] {
            set.insert(value);
        }
        assert_eq!(set.as_bytes(), [2, 0, 0, 0, 3, 0, 0, 0, 0xFF, 0xFF, 3, 0, 5, 0]);
        set.insert(70_000);
        set.remove(5);
        assert_eq!(
            set.as_bytes(),
            [4, 0, 0, 0, 3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 3, 0, 0, 0, 0x70, 0x11, 1, 0]
        );
        assert!(set.insert(i64::MIN) && set.contains(70_000));
        assert_eq!(set.as_bytes()[0], 8);
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let of = |bytes: &[u8]| IntSet::from_bytes(bytes.to_vec()).unwrap_err();
        assert_eq!(of(&[2, 0, 0]), Malformed::Frame);
        assert_eq!(of(&[3, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3]), Malformed::Frame);
        assert_eq!(of(&[2, 0, 0, 0, 2, 0, 0, 0, 1, 0]), Malformed::Frame);
        assert_eq!(of(&[2, 0, 0, 0, 0, 0, 0, 0]), Malformed::Empty);
        assert_eq!(of(&[2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 1, 0]), Malformed::Order);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            width in 0u8..10, count in 0u8..5, members in proptest::collection::vec(any::<u8>(), 0..40)
        ) {
            let mut bytes = vec![width, 0, 0, 0, count, 0, 0, 0];
            bytes.extend(members);
            if let Ok(set) = IntSet::from_bytes(bytes) {
                prop_assert!(set.iter().all(|value| set.contains(value)));
            }
        }
    }
}
