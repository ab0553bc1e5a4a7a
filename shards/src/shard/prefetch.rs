//! Fetching ahead from memory what commands will touch.

use super::Shard;
use braid_core::keyspace::Keyspace;
use smallvec::SmallVec;

/// Runs whose keys are fetched ahead at a time.
pub(crate) const AHEAD: usize = 16;

impl Shard {
    /// As [`prefetch`], for keys of this shard that are about to be used.
    pub(super) fn prefetch_own<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        if let Some(keyspace) = &self.keyspace {
            prefetch(keyspace, 0, keys);
        }
    }

    /// As [`prefetch`], for a pipeline's keys as far as they are this shard's: from the first that is not, everything runs
    /// later, as legs, and is fetched then.
    pub fn prefetch<'a>(&self, db: u16, keys: impl Iterator<Item = &'a [u8]>) {
        if let Some(keyspace) = &self.keyspace {
            prefetch(keyspace, db, keys.take_while(|key| self.map.shard_of(key) == self.id));
        }
    }
}

/// Starts fetching what commands on these keys will touch from memory: a table of some size is mostly not in the cache, and
/// fetching ahead lets the misses of a batch overlap.
pub(crate) fn prefetch<'a>(keyspace: &Keyspace, db: u16, keys: impl Iterator<Item = &'a [u8]>) {
    /// A smaller table is likely to be in the cache.
    const LARGE_TABLE_LEN: usize = 4096;
    let table = &keyspace.db(db).table;
    if table.len() < LARGE_TABLE_LEN {
        return;
    }
    let mut hashes: SmallVec<[u64; 64]> = SmallVec::new();
    for key in keys {
        let hash = table.hash(key);
        table.prefetch(hash);
        hashes.push(hash);
    }
    for hash in hashes {
        table.prefetch_entry(hash);
    }
}
