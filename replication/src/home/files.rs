//! Snapshots that go into a file: to be kept (`BGSAVE`), or to be sent to replicas that want to know the length first
//! (`repl-diskless-sync no`, and who cannot read up to a mark). The file itself is the layer's around: what has to be done
//! with it comes out as [`Action::File`], in order; what came of it is told here.

use super::{Action, Home, Snapshot};
use crate::acks::ReplicaId;
use crate::framing::bulk_header;
use crate::ids::ReplId;
use braid_core::rdb::Writer;
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
    snapshot: u64,
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

    pub(super) fn kept(&self) -> Option<u64> {
        let snapshot = self.snapshot.as_ref()?;
        snapshot.file.as_ref().is_some_and(|file| file.keeps).then_some(snapshot.id)
    }

    /// Gives up the snapshot to be kept.
    pub fn cancel_save(&mut self) {
        self.wants_save = false;
        if self.kept().is_some() {
            self.abort_file();
        }
    }

    /// Begins the snapshot that was asked for, if no other is in the making.
    pub(super) fn poll_save(&mut self) {
        if !self.wants_save || !self.sharing.try_reserve() {
            return;
        }
        self.wants_save = false;
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        self.snapshot = Some(Snapshot {
            id,
            members: Vec::new(),
            with_data: true,
            writer: Writer::new(self.writer_options()),
            mark: None,
            file: Some(FileOut { keeps: true, unwritten_bytes: 0 }),
            in_parts: false,
            shards_left: self.shards,
            early: Vec::new(),
            is_cut: false,
            is_paused: false,
        });
        self.actions.push(Action::File { snapshot: id, step: FileStep::Create { keeps: true } });
        self.actions.push(Action::Cut { snapshot: id, with_data: true });
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
            self.finishing.push((snapshot.id, snapshot.members));
        }
    }

    /// A snapshot's file is complete and this long, or could not be written. Returns whether it was to be kept, or was
    /// given up already: then nobody here waits for it.
    pub fn file_done(&mut self, snapshot: u64, outcome: Result<u64, String>, now_ms: u64) {
        if let Some(at) = self.finishing.iter().position(|(id, _)| *id == snapshot) {
            let (_, members) = self.finishing.remove(at);
            self.sharing.finish();
            match outcome {
                Ok(len_bytes) => self.send_file(snapshot, len_bytes, members),
                Err(why) => self.give_up_file(snapshot, members, &why),
            }
            self.poll_sharing(now_ms);
        } else if self.snapshot.as_ref().is_some_and(|current| current.id == snapshot) {
            // It failed before it was complete.
            let members = std::mem::take(&mut self.snapshot.as_mut().expect("just seen").members);
            self.abort_file();
            if let Err(why) = outcome {
                self.give_up_file(snapshot, members, &why);
            }
            self.poll_sharing(now_ms);
        }
    }

    fn give_up_file(&mut self, snapshot: u64, members: Vec<ReplicaId>, why: &str) {
        self.actions.push(Action::File { snapshot, step: FileStep::Drop });
        for replica in members {
            if let Some(peer) = self.peers.get_mut(&replica) {
                peer.is_closing = true;
                self.actions.push(Action::Close { replica, why: format!("its snapshot failed: {why}") });
            }
        }
    }

    /// Gives up the snapshot in the making, which goes into a file.
    pub(super) fn abort_file(&mut self) {
        let snapshot = self.snapshot.take().expect("in the making");
        self.actions.push(Action::Abort { snapshot: snapshot.id });
        self.actions.push(Action::File { snapshot: snapshot.id, step: FileStep::Drop });
        self.retry_cut_ms = None;
        self.sharing.finish();
    }

    /// Those of `members` that are still there get the file.
    fn send_file(&mut self, snapshot: u64, len_bytes: u64, members: Vec<ReplicaId>) {
        let mut readers = 0;
        for replica in members {
            let Some(peer) = self.peers.get_mut(&replica) else { continue };
            peer.handshake.begin_bulk();
            peer.push(bulk_header(len_bytes));
            peer.file = Some(FileSend { snapshot, len_bytes, read_bytes: 0, is_reading: false });
            readers += 1;
            self.read_on(replica);
        }
        if readers == 0 {
            self.actions.push(Action::File { snapshot, step: FileStep::Drop });
        } else {
            self.file_readers.insert(snapshot, readers);
        }
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
                    self.let_go_of_file(snapshot);
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

    /// A replica needs its file no more.
    pub(super) fn drop_reader(&mut self, file: Option<FileSend>) {
        if let Some(file) = file {
            self.let_go_of_file(file.snapshot);
        }
    }

    fn let_go_of_file(&mut self, snapshot: u64) {
        let readers = self.file_readers.get_mut(&snapshot).expect("it has readers");
        *readers -= 1;
        if *readers == 0 {
            self.file_readers.remove(&snapshot);
            self.actions.push(Action::File { snapshot, step: FileStep::Drop });
        }
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
