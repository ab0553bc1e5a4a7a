//! A shard's part of a snapshot: walking its slice, a bounded stretch at a time.

use crate::shard::{Host, Shard};
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

/// Commands that wait until the walk has written the huge value that they are to change.
#[derive(Default)]
pub(crate) struct WalkWait {
    /// There are some.
    any: bool,
    /// [`Keyspace::huge_values_written`] when they were tried last.
    seen: u64,
}

impl Shard {
    /// Whether a claim or a command on these keys has to wait for the walk to write one of them.
    pub(crate) fn awaits_walk<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]>) -> bool {
        let Some(keyspace) = self.keyspace.as_mut().filter(|keyspace| keyspace.has_snapshot()) else {
            return false;
        };
        // All of them are asked for, not only the first.
        let waits = keys.filter(|key| keyspace.awaits_walk(key)).count() > 0;
        self.walk_wait.any |= waits;
        waits
    }

    /// Tries again what waits for the walk, if it got any further.
    fn retry_after_walk(&mut self, host: &mut impl Host) {
        let Some(keyspace) = self.keyspace.as_ref().filter(|_| self.walk_wait.any) else { return };
        if keyspace.huge_values_written != self.walk_wait.seen || !keyspace.has_snapshot() {
            self.walk_wait = WalkWait { any: false, seen: keyspace.huge_values_written };
            self.retry_waiting(host);
        }
    }

    /// Walks on until about `effort_bytes` of values were read, or until `piece_bytes` of output wait, which then come as a
    /// piece. `paused`: nobody takes more for now; only what commands wait for is written. None: no snapshot is being
    /// made, or the slice is on loan.
    pub fn walk_snapshot(
        &mut self,
        effort_bytes: usize,
        piece_bytes: usize,
        paused: bool,
        host: &mut impl Host,
    ) -> Option<Walked> {
        let walked = self.walk(effort_bytes, piece_bytes, paused);
        self.note_walk();
        self.retry_after_walk(host);
        walked
    }

    /// Whether a snapshot walks the slice may have changed.
    pub(crate) fn note_walk(&mut self) {
        let Some(is_walked) = self.keyspace.as_ref().map(|keyspace| keyspace.has_snapshot()) else { return };
        match (std::mem::replace(&mut self.is_walked, is_walked), is_walked) {
            (false, true) => self.counters.sequencer.begin_unrest(1),
            (true, false) => self.counters.sequencer.end_unrest(),
            _ => {}
        }
    }

    fn walk(&mut self, effort_bytes: usize, piece_bytes: usize, paused: bool) -> Option<Walked> {
        let is_home_full = self.is_home_full();
        let keyspace = self.keyspace.as_mut().filter(|keyspace| keyspace.has_snapshot())?;
        let room = if paused { 0 } else { piece_bytes };
        let progress = keyspace.snapshot_slice(effort_bytes, room);
        let snapshot = keyspace.snapshot_id;
        let is_ready = match progress {
            SnapshotProgress::Walked => true,
            // What commands added meanwhile waits in pieces of its length, rather than in one buffer that grows.
            SnapshotProgress::Full => {
                !paused || !is_home_full && keyspace.snapshot_output_len_bytes() >= piece_bytes
            }
            SnapshotProgress::Idle | SnapshotProgress::More => false,
        };
        let piece = if is_ready { keyspace.take_snapshot_output() } else { None };
        Some(Walked {
            snapshot,
            piece,
            more: match progress {
                SnapshotProgress::Idle => false,
                // Before it is full it does not heed the pause.
                SnapshotProgress::More => true,
                SnapshotProgress::Full | SnapshotProgress::Walked => !paused && keyspace.has_snapshot(),
            },
        })
    }

    /// Gives a snapshot up, and no other; if the slice is on loan, when it is back.
    pub fn abort_snapshot(&mut self, snapshot: u64) {
        match &mut self.keyspace {
            Some(keyspace) if keyspace.snapshot_id == snapshot => keyspace.abort_snapshot(),
            Some(_) => {}
            None => self.aborted_snapshots.push(snapshot),
        }
        self.note_walk();
    }
}

#[cfg(test)]
mod tests;
