//! Snapshots that go into a file: to be kept (`BGSAVE`), or to be sent to replicas that want to know the length first
//! (`repl-diskless-sync no`, and who cannot read up to a mark). The file itself is the layer's around: what has to be done
//! with it comes out as [`Action::File`], in order; what came of it is told here.

use super::peers::Peer;
use super::snapshots::Target;
use super::{Action, Home, Snapshot};
use crate::acks::ReplicaId;
use crate::framing::bulk_header;
use crate::ids::ReplId;
use bytes::Bytes;

/// Bytes of a file that are read for a replica at a time.
const READ_BYTES: u64 = 1 << 20;

/// What is to be done with a snapshot's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileStep {
    /// Make it. `keeps`: it becomes the node's snapshot file; otherwise it is only read from.
    Create { keeps: bool },
    /// Append this, then call [`Home::file_written`].
    Write(Bytes),
    /// It is complete: bring it to the disk, in its place if it is to be kept, then call [`Home::file_done`].
    Finish,
    /// Read for a replica, then call [`Home::file_read`].
    Read { replica: ReplicaId, offset: u64, len_bytes: u64 },
    /// Nobody needs it any more. What is not in its place is removed.
    Drop,
}

/// The file that a snapshot in the making goes into.
pub(super) struct FileOut {
    pub(super) keeps: bool,
    /// Handed out and not written yet.
    pub(super) unwritten_bytes: u64,
}

/// A replica's way through a file.
pub(super) struct FileSend {
    pub(super) snapshot: u64,
    len_bytes: u64,
    /// Read so far.
    read_bytes: u64,
    is_reading: bool,
}

impl Snapshot {
    /// Somebody waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        !self.members.is_empty() || self.file.as_ref().is_some_and(|file| file.keeps)
    }
}

impl Home {
    /// Asks for a snapshot into a file that is kept; it begins when no other is in the making. False: one is asked for or
    /// in the making already.
    pub fn request_save(&mut self, now_ms: u64) -> bool {
        if self.is_saving() {
            return false;
        }
        self.wants_save = true;
        self.poll_sharing(now_ms);
        true
    }

    /// Whether a snapshot to be kept is asked for or in the making; its file may be unfinished for longer.
    pub fn is_saving(&self) -> bool {
        self.wants_save || self.kept().is_some()
    }

    fn kept(&self) -> Option<u64> {
        let snapshot = self.snapshot.as_ref()?;
        snapshot.file.as_ref().is_some_and(|file| file.keeps).then_some(snapshot.id)
    }

    /// Gives up the snapshot to be kept.
    pub fn cancel_save(&mut self) {
        self.wants_save = false;
        if self.kept().is_some() {
            self.abort_snapshot();
        }
    }

    /// Begins the snapshot that was asked for, if no other is in the making.
    pub(super) fn poll_save(&mut self) {
        if !self.wants_save || !self.sharing.try_reserve() {
            return;
        }
        self.wants_save = false;
        self.begin_snapshot(Vec::new(), true, Target::File { keeps: true });
    }

    /// Appends to the file of the snapshot in the making.
    pub(super) fn write_file(&mut self, bytes: Bytes) {
        let snapshot = self.snapshot.as_mut().expect("in the making");
        let file = snapshot.file.as_mut().expect("it goes into a file");
        file.unwritten_bytes += bytes.len() as u64;
        self.actions.push(Action::File { snapshot: snapshot.id, step: FileStep::Write(bytes) });
    }

    /// So many bytes more of a snapshot's file are written.
    pub fn file_written(&mut self, snapshot: u64, len_bytes: u64) {
        let current = self.snapshot.as_mut().filter(|current| current.id == snapshot);
        if let Some(file) = current.and_then(|current| current.file.as_mut()) {
            file.unwritten_bytes -= len_bytes;
        }
        self.regulate();
    }

    /// All pieces of a snapshot that goes into a file are there.
    pub(super) fn finish_file(&mut self, snapshot: Snapshot) {
        self.actions.push(Action::File { snapshot: snapshot.id, step: FileStep::Finish });
        let keeps = snapshot.file.as_ref().is_some_and(|file| file.keeps);
        if keeps {
            self.sharing.finish();
        } else {
            let former = self.finishing.replace((snapshot.id, snapshot.members));
            assert!(former.is_none(), "the next begins when it is finished");
        }
    }

    /// A snapshot's file is complete and this long, or could not be written. That of one that was to be kept, or was given up
    /// already, is nobody's here.
    pub fn file_done(&mut self, snapshot: u64, outcome: Result<u64, String>, now_ms: u64) {
        if let Some((_, members)) = self.finishing.take_if(|(id, _)| *id == snapshot) {
            self.sharing.finish();
            match outcome {
                Ok(len_bytes) => self.send_file(snapshot, len_bytes, members),
                Err(why) => {
                    self.close_members(members, &why);
                    self.drop_file(snapshot);
                }
            }
            self.poll_sharing(now_ms);
        } else if self.snapshot.as_ref().is_some_and(|current| current.id == snapshot) {
            // It failed before it was complete.
            let members = self.abort_snapshot();
            if let Err(why) = outcome {
                self.close_members(members, &why);
            }
            self.poll_sharing(now_ms);
        }
    }

    fn close_members(&mut self, members: Vec<ReplicaId>, why: &str) {
        for replica in members {
            if let Some(peer) = self.peers.get_mut(&replica) {
                peer.is_closing = true;
                self.actions.push(Action::Close { replica, why: format!("its snapshot failed: {why}") });
            }
        }
    }

    /// Those of `members` that are still there get the file.
    fn send_file(&mut self, snapshot: u64, len_bytes: u64, members: Vec<ReplicaId>) {
        for replica in members {
            let Some(peer) = self.peers.get_mut(&replica) else { continue };
            peer.handshake.begin_bulk();
            peer.push(bulk_header(len_bytes));
            peer.file = Some(FileSend { snapshot, len_bytes, read_bytes: 0, is_reading: false });
            self.read_on(replica);
        }
        self.drop_file_without_readers(snapshot);
    }

    /// Has the next part of its file read for a replica that has little left to send.
    pub(super) fn read_on(&mut self, replica: ReplicaId) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let Some(file) = peer.file.as_mut().filter(|file| !file.is_reading) else { return };
        if peer.queue.len_bytes() >= READ_BYTES {
            return;
        }
        file.is_reading = true;
        let len_bytes = READ_BYTES.min(file.len_bytes - file.read_bytes);
        let step = FileStep::Read { replica, offset: file.read_bytes, len_bytes };
        self.actions.push(Action::File { snapshot: file.snapshot, step });
    }

    /// A part of a file was read for a replica, or could not be.
    pub fn file_read(&mut self, replica: ReplicaId, outcome: Result<Bytes, String>) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let Some(file) = &mut peer.file else { return };
        match outcome {
            Ok(bytes) => {
                file.is_reading = false;
                file.read_bytes += bytes.len() as u64;
                let (snapshot, is_read) = (file.snapshot, file.read_bytes == file.len_bytes);
                peer.push(bytes);
                if is_read {
                    peer.file = None;
                    peer.bulk_ends = true;
                    self.drop_file_without_readers(snapshot);
                } else {
                    self.read_on(replica);
                }
            }
            Err(why) => {
                peer.is_closing = true;
                self.actions
                    .push(Action::Close { replica, why: format!("its snapshot can't be read: {why}") });
            }
        }
    }

    /// Somebody needs this file, which is complete, no more.
    pub(super) fn drop_file_without_readers(&mut self, snapshot: u64) {
        let reads = |peer: &Peer| peer.file.as_ref().is_some_and(|file| file.snapshot == snapshot);
        if !self.peers.values().any(reads) {
            self.drop_file(snapshot);
        }
    }

    pub(super) fn drop_file(&mut self, snapshot: u64) {
        self.actions.push(Action::File { snapshot, step: FileStep::Drop });
    }

    /// The dataset was loaded from a file that belongs to the history of `id`, cut at `offset`: replicas that have no more
    /// than that continue. A master goes on under a new id, for who followed it before it ended may have more. `is_replica`:
    /// the node stays on that history, to ask its master to continue it.
    ///
    /// # Panics
    /// If there are replicas: their history is another.
    pub fn resume(&mut self, id: ReplId, offset: u64, is_replica: bool) {
        assert!(self.peers.is_empty(), "before anybody follows");
        self.ids.replace(id);
        if !is_replica {
            self.ids.promote(offset, &mut self.rng);
        }
        self.log.reset(offset);
        self.log.activate();
        self.merge.forget_idle();
        self.merge.forget_db();
    }
}
