//! A snapshot on its way from the shards to those who share it: cut, pieces, the frame around them.

use super::files::{FileOut, FileStep};
use super::{Action, Home};
use crate::acks::ReplicaId;
use crate::framing::EofMark;
use braid_core::rdb::{Checksum, Writer, WriterOptions};
use bytes::Bytes;

/// The newest RDB version that every supported peer reads (Redis 7.0 reads up to 10).
pub const RDB_VERSION: u32 = 10;
/// Bytes of a snapshot that wait for the slowest replica before the shards are asked to pause.
pub(super) const SNAPSHOT_WINDOW_BYTES: u64 = 16 << 20;

/// How long a refused cut waits before it is tried again.
pub(super) const CUT_RETRY_MS: u64 = 2;

/// A piece of a shard's slice.
#[derive(Clone)]
pub struct Piece {
    /// What it consists of, one after the other.
    pub chunks: Vec<Bytes>,
    pub checksum: Checksum,
    /// The slice is complete.
    pub is_last: bool,
}

impl Piece {
    /// The end of a slice whose pieces went elsewhere.
    pub fn end() -> Self {
        Self { chunks: Vec::new(), checksum: Checksum::default(), is_last: true }
    }
}

/// Where a snapshot goes.
pub(super) enum Target {
    /// To its members, as it is made. `in_parts`: see [`crate::parts`].
    Sockets { in_parts: bool },
    /// Into a file. `keeps`: as the node's snapshot file; otherwise its members are sent it.
    File { keeps: bool },
}

pub(super) struct Snapshot {
    pub id: u64,
    pub members: Vec<ReplicaId>,
    pub with_data: bool,
    pub writer: Writer,
    pub mark: Option<EofMark>,
    /// Where it goes if not straight to the members.
    pub file: Option<FileOut>,
    /// The shards send it to the members themselves, see [`crate::parts`], and only say here when they are done.
    pub in_parts: bool,
    pub shards_left: usize,
    /// Pieces that came before the cut's ticket could be merged.
    pub early: Vec<Piece>,
    pub is_cut: bool,
    pub is_paused: bool,
}

impl Home {
    pub(super) fn poll_sharing(&mut self, now_ms: u64) {
        self.poll_save();
        let Some(start) = self.sharing.poll(self.rules.sharing, now_ms) else { return };
        if !self.log.is_active() {
            // A history that nobody has followed so far: it gets a name of its own.
            self.ids.renew(&mut self.rng);
            self.protection.add(self.ids.current());
            self.log.activate();
            self.begin_history();
            self.merge.forget_db();
        }
        let with_data = !start.needs.without_data;
        let in_parts = self.decide_on_parts(&start.replicas, start.is_diskless && with_data);
        let target =
            if start.is_diskless { Target::Sockets { in_parts } } else { Target::File { keeps: false } };
        self.begin_snapshot(start.replicas, with_data, target);
    }

    /// Has a snapshot cut. Its place is taken.
    pub(super) fn begin_snapshot(&mut self, members: Vec<ReplicaId>, with_data: bool, target: Target) {
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        let (mark, file, in_parts) = match target {
            Target::Sockets { in_parts } => (Some(EofMark::random(&mut self.rng)), None, in_parts),
            Target::File { keeps } => {
                self.actions.push(Action::File { snapshot: id, step: FileStep::Create { keeps } });
                (None, Some(FileOut { keeps, unwritten_bytes: 0 }), false)
            }
        };
        self.snapshot = Some(Snapshot {
            id,
            members,
            with_data,
            writer: Writer::new(self.writer_options()),
            mark,
            file,
            in_parts,
            shards_left: self.shards,
            early: Vec::new(),
            is_cut: false,
            is_paused: false,
        });
        self.actions.push(Action::Cut { snapshot: id, with_data });
    }

    /// Gives up a snapshot that nobody is left to receive. One that is not cut yet is given up at its cut.
    pub(super) fn drop_unwanted_snapshot(&mut self) {
        if let Some(snapshot) = &self.snapshot
            && !snapshot.is_wanted()
            && snapshot.is_cut
        {
            self.abort_snapshot();
        }
    }

    /// Nobody wants the snapshot in the making any more, or it failed. Returns who waited for it.
    pub(super) fn abort_snapshot(&mut self) -> Vec<ReplicaId> {
        let snapshot = self.snapshot.take().expect("in the making");
        self.actions.push(Action::Abort { snapshot: snapshot.id });
        if snapshot.file.is_some() {
            self.drop_file(snapshot.id);
        }
        self.retry_cut_ms = None;
        self.sharing.finish();
        snapshot.members
    }

    /// Adds a replica to the snapshot in the making, or to one whose file is being finished.
    pub(super) fn join_snapshot(&mut self, id: ReplicaId) {
        match &mut self.snapshot {
            Some(snapshot) => snapshot.members.push(id),
            None => self.finishing.as_mut().expect("what can be joined is not finished").1.push(id),
        }
    }

    /// How the shards' pieces and the frame around them are written.
    pub fn writer_options(&self) -> WriterOptions {
        WriterOptions { version: RDB_VERSION, compress: self.rules.compress, checksum: self.rules.checksum }
    }

    /// The cut of a snapshot is merged: its offset is known.
    pub(super) fn cut(&mut self, id: u64, offset: u64) {
        let Some(mut snapshot) = self.snapshot.take_if(|snapshot| snapshot.id == id) else {
            // It was given up while the cut was under way, and the shards have just begun it.
            return self.actions.push(Action::Abort { snapshot: id });
        };
        self.sharing.cut(offset);
        snapshot.is_cut = true;
        let current = self.ids.current();
        snapshot.writer.header();
        snapshot.writer.aux(b"redis-ver", b"7.0.0");
        snapshot.writer.aux(b"redis-bits", b"64");
        if let Some(db) = self.history_db() {
            snapshot.writer.aux(b"repl-stream-db", db.to_string().as_bytes());
            snapshot.writer.aux(b"repl-id", current.as_str().as_bytes());
            snapshot.writer.aux(b"repl-offset", offset.to_string().as_bytes());
        }
        for member in &snapshot.members {
            let peer = self.peers.get_mut(member).expect("members are attached");
            peer.cut(current, offset, &mut self.log);
            peer.has_mark = snapshot.mark.is_some();
            if let Some(header) = super::parts::header(&snapshot) {
                peer.push(header);
                peer.handshake.begin_bulk();
            }
        }
        if snapshot.in_parts {
            self.spread_header(snapshot);
        } else {
            let header = snapshot.writer.take();
            self.snapshot = Some(snapshot);
            self.spread(Bytes::from(header));
        }
        let snapshot = self.snapshot.as_mut().expect("just put back");
        if !snapshot.is_wanted() {
            self.abort_snapshot();
        } else if !snapshot.with_data {
            self.finish_snapshot();
        } else {
            for piece in std::mem::take(&mut snapshot.early) {
                self.piece(id, piece);
            }
        }
    }

    /// Gives bytes of the snapshot to all its members.
    pub(super) fn spread(&mut self, bytes: Bytes) {
        let snapshot = self.snapshot.as_mut().expect("in the making");
        if snapshot.file.is_some() {
            return self.write_file(bytes);
        }
        for member in &snapshot.members {
            self.peers.get_mut(member).expect("members are attached").push(bytes.clone());
        }
    }

    /// A piece of a shard's slice arrives.
    pub fn piece(&mut self, id: u64, piece: Piece) {
        // Pieces of an aborted snapshot may still be on their way.
        let Some(snapshot) = self.snapshot.as_mut().filter(|snapshot| snapshot.id == id) else { return };
        if !snapshot.is_cut {
            return snapshot.early.push(piece);
        }
        snapshot.shards_left -= usize::from(piece.is_last);
        let is_complete = snapshot.shards_left == 0;
        assert!(!snapshot.in_parts || piece.chunks.is_empty(), "what is sent in parts does not come home");
        if !snapshot.in_parts {
            snapshot.writer.append_piece(&piece.checksum);
            piece.chunks.into_iter().for_each(|chunk| self.spread(chunk));
        }
        if is_complete {
            self.finish_snapshot();
        } else {
            self.regulate();
        }
    }

    /// Whether the shards should hand in no more pieces for now.
    pub fn is_snapshot_paused(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_paused)
    }

    /// Pauses the shards' walk while the slowest member has much to read, and resumes it.
    pub(super) fn regulate(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let unwritten = snapshot.file.as_ref().map_or(0, |file| file.unwritten_bytes);
        let queued = snapshot
            .members
            .iter()
            .map(|member| self.peers[member].queue.len_bytes())
            .fold(unwritten, u64::max);
        snapshot.is_paused = queued > SNAPSHOT_WINDOW_BYTES;
    }

    pub(super) fn finish_snapshot(&mut self) {
        if self.snapshot.take_if(|snapshot| snapshot.in_parts).is_some() {
            return self.sharing.finish();
        }
        let snapshot = self.snapshot.as_mut().expect("in the making");
        snapshot.writer.eof();
        let end = Bytes::from(snapshot.writer.take());
        if snapshot.file.is_some() {
            self.write_file(end);
            let snapshot = self.snapshot.take().expect("in the making");
            return self.finish_file(snapshot);
        }
        let snapshot = self.snapshot.take().expect("in the making");
        let mark = snapshot.mark.as_ref().expect("what goes into no file ends with a mark");
        for member in &snapshot.members {
            let peer = self.peers.get_mut(member).expect("members are attached");
            peer.push(end.clone());
            peer.push(mark.trailer());
            peer.bulk_ends = true;
        }
        self.sharing.finish();
    }

    /// A cut could not be made: what an aborted snapshot left behind is still being cleared away. It is asked for again,
    /// but not at once: the shards clear it away between two attempts, for each takes their slices from them.
    pub fn cut_refused(&mut self, now_ms: u64) {
        self.retry_cut_ms = Some(now_ms + CUT_RETRY_MS);
    }
}
