//! Keys to slots, slots to shards.

use crc::{CRC_16_XMODEM, Crc, Table};

/// A shard's number, from 0.
pub type ShardId = u16;

/// Number of hash slots, as in Redis Cluster.
pub const SLOTS: u32 = 16384;

/// Most shards of one process. A shard's number has to fit what a SCAN cursor leaves for it.
pub const MAX_SHARDS: usize = 1024;

static CRC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);

/// The slot of a key: CRC16 of its hash tag, `{…}` (first brace pair with something between), or of all of it.
///
/// Source: the Redis Cluster specification, "Hash tags".
pub fn key_slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key)
        .and_then(|open| {
            let rest = &key[open + 1..];
            memchr::memchr(b'}', rest).filter(|&len| len > 0).map(|len| &rest[..len])
        })
        .unwrap_or(key);
    CRC.checksum(tag) % SLOTS as u16
}

/// Which shard owns a slot: contiguous ranges of as equal length as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotMap {
    shards: u32,
}

impl SlotMap {
    pub fn new(shards: usize) -> Self {
        assert!((1..=MAX_SHARDS).contains(&shards), "1 to {MAX_SHARDS} shards");
        Self { shards: shards as u32 }
    }

    pub fn shards(self) -> usize {
        self.shards as usize
    }

    #[inline]
    pub fn shard_of_slot(self, slot: u16) -> ShardId {
        (u32::from(slot) * self.shards / SLOTS) as ShardId
    }

    /// The owner of a key. With one shard the slot is not even computed.
    #[inline]
    pub fn shard_of(self, key: &[u8]) -> ShardId {
        if self.shards == 1 { 0 } else { self.shard_of_slot(key_slot(key)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(key_slot(b"123456789"), 0x31c3);
        assert_eq!(key_slot(b"foo"), 12182);
        assert_eq!(key_slot(b"{user1000}.following"), key_slot(b"{user1000}.followers"));
        assert_eq!(key_slot(b"foo{}{bar}"), CRC.checksum(b"foo{}{bar}") % 16384);
        assert_eq!(key_slot(b"foo{{bar}}zap"), key_slot(b"{bar"));
        assert_eq!(key_slot(b"foo{bar}{zap}"), key_slot(b"bar"));
    }

    #[test]
    fn ranges_are_contiguous_and_even() {
        for shards in [1usize, 2, 3, 7, 64, 1000] {
            let map = SlotMap::new(shards);
            let mut sizes = vec![0; shards];
            let mut last = 0;
            for slot in 0..SLOTS as u16 {
                let shard = map.shard_of_slot(slot);
                assert!(shard == last || shard == last + 1);
                last = shard;
                sizes[usize::from(shard)] += 1;
            }
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
