//! Which shards' walks for a snapshot are to wait, because a connection that they send on has much to send.

use braid_shards::ShardId;
use std::sync::atomic::{AtomicUsize, Ordering};

/// By shard, how many connections want it to wait.
pub struct WalkHolds(Vec<AtomicUsize>);

impl WalkHolds {
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| AtomicUsize::new(0)).collect())
    }

    /// Whether a shard's walk is to wait.
    pub fn hold(&self, shard: ShardId) -> bool {
        self.0[usize::from(shard)].load(Ordering::SeqCst) > 0
    }

    /// One connection more wants it to.
    pub fn add(&self, shard: ShardId) {
        self.0[usize::from(shard)].fetch_add(1, Ordering::SeqCst);
    }

    /// One does not any more. True: it was the last.
    pub fn remove(&self, shard: ShardId) -> bool {
        self.0[usize::from(shard)].fetch_sub(1, Ordering::SeqCst) == 1
    }
}
