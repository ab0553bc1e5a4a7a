//! A shard's part of a snapshot: walking its slice, a bounded stretch at a time.

use crate::shard::Shard;
use braid_core::rdb::Checksum;

/// What a stretch of the walk gave.
pub struct Walked {
    pub snapshot: u64,
    /// Pieces of the snapshot, each with its checksum and whether it is the slice's last.
    pub pieces: Vec<(Vec<u8>, Checksum, bool)>,
    /// There is more to do at once.
    pub more: bool,
}

impl Shard {
    /// Walks some `keys` keys further. None: no snapshot is being made, or its slice is on loan.
    pub fn walk_snapshot(&mut self, _keys: usize, _piece_bytes: usize, _window_bytes: usize) -> Option<Walked> {
        None
    }

    /// Gives a snapshot up.
    pub fn abort_snapshot(&mut self, _snapshot: u64) {}
}
