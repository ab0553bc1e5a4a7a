//! The hash of a key, seeded so that a client cannot choose keys that collide.

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;

/// A seeded hash function; 8 bytes, `Copy`. All tables of a process usually share one.
#[derive(Clone, Copy)]
pub struct HashKey(&'static SeedableRandomState);

/// States live for the process; the same seed gives the same one, so there are as many as seeds were used.
static STATES: Mutex<BTreeMap<u64, &'static SeedableRandomState>> = Mutex::new(BTreeMap::new());

impl HashKey {
    /// The hash function of `seed`. Takes a lock and may allocate for good: get it at startup, once for a process
    /// (or for each node of a simulation), from a random seed.
    ///
    /// foldhash's constants are public, and a key that cancels one of them collides under every seed; so the constants
    /// are drawn from the seed as well, not only the initial state.
    pub fn from_seed(seed: u64) -> Self {
        let mut states = STATES.lock().expect("no panic while the lock is held");
        HashKey(states.entry(seed).or_insert_with(|| {
            let shared: &'static SharedSeed = Box::leak(Box::new(SharedSeed::from_u64(seed)));
            Box::leak(Box::new(SeedableRandomState::with_seed(seed.rotate_left(32) ^ !seed, shared)))
        }))
    }

    /// The 64-bit hash of `bytes`; all bits are well mixed (foldhash, its "quality" form).
    #[inline]
    pub fn hash(self, bytes: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }
}

/// [`HashKey::hash`] as a function.
#[inline]
pub fn hash_bytes(key: HashKey, bytes: &[u8]) -> u64 {
    key.hash(bytes)
}
