//! A shard's part of a snapshot: walking its slice, a bounded stretch at a time.

use crate::shard::Shard;
use braid_core::keyspace::{SnapshotPiece, SnapshotProgress};

/// What a stretch of the walk gave.
pub struct Walked {
    /// The snapshot's number.
    pub snapshot: u64,
    /// A piece that is ready.
    pub piece: Option<SnapshotPiece>,
    /// There is more to do at once.
    pub more: bool,
}

impl Shard {
    /// Walks on until about `effort_bytes` of values were read, or until `piece_bytes` of output wait, which then come as a
    /// piece. `paused`: nobody takes more for now. None: no snapshot is being made, or the slice is on loan.
    pub fn walk_snapshot(&mut self, effort_bytes: usize, piece_bytes: usize, paused: bool) -> Option<Walked> {
        let keyspace = self.keyspace.as_mut().filter(|keyspace| keyspace.has_snapshot())?;
        let room = if paused { 0 } else { piece_bytes };
        let progress = keyspace.snapshot_slice(effort_bytes, room);
        let snapshot = keyspace.snapshot_id;
        let is_ready = match progress {
            SnapshotProgress::Walked => true,
            SnapshotProgress::Full => !paused,
            SnapshotProgress::Idle | SnapshotProgress::More => false,
        };
        let piece = if is_ready { keyspace.take_snapshot_output() } else { None };
        Some(Walked {
            snapshot,
            piece,
            more: !paused && progress != SnapshotProgress::Idle && keyspace.has_snapshot(),
        })
    }

    /// Gives a snapshot up, and no other; if the slice is on loan, when it is back.
    pub fn abort_snapshot(&mut self, snapshot: u64) {
        match &mut self.keyspace {
            Some(keyspace) if keyspace.snapshot_id == snapshot => keyspace.abort_snapshot(),
            Some(_) => {}
            None => self.aborted_snapshot = Some(snapshot),
        }
    }
}
