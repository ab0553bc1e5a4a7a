//! Snapshots on disk, on the home shard: `SAVE`, `BGSAVE`, `save` points, the snapshot before the end, and the files from
//! which replicas are sent theirs. The snapshot itself is made as for replicas (`braid_replication::home::files`); the files
//! are written by threads of their own ([`crate::disk`]).

use super::leaving::Ending;
use super::replicas::HOME;
use super::{Engine, Front};
use crate::disk::{SnapshotFile, Told};
use crate::persistence::Due;
use crate::session::control::{Order, PauseMode, PausePurpose, UNTIL_ENDED_MS};
use crate::{log_notice, log_warning};
use braid_core::resp::Reply;
use braid_replication::acks::ReplicaId;
use braid_replication::follower::CutHook;
use braid_replication::home::{FileStep, Home};
use braid_shards::{ConnId, ShardId};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the `save` points are looked at while something changes.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Snapshots that are made at the end until one holds everything that was answered.
const LAST_SAVES_MAX: u32 = 5;

/// Who waits for an answer: the shard and its connection.
pub type Asker = (ShardId, ConnId);

/// The home shard's state for this file.
#[derive(Default)]
pub struct Saving {
    /// By snapshot.
    files: BTreeMap<u64, SnapshotFile>,
    /// The snapshot to be kept that is being written, and since when.
    kept: Option<(u64, Instant)>,
    /// Clients whose `SAVE` waits.
    askers: Vec<Asker>,
    last_saves: u32,
    /// When the `save` points were looked at last.
    last_look: Option<Instant>,
    /// When they are looked at next though nothing changes.
    next_look: Option<Instant>,
    /// Of the snapshot to be kept, once it is cut: its number, and all changes of the dataset before it.
    dirty_at_cut: Rc<Cell<(u64, u64)>>,
}

impl Saving {
    /// Notes at the cut of a snapshot to be kept what was changed before it. Others are cut while its file is brought to
    /// the disk.
    pub(super) fn at_cut(&self, snapshot: u64) -> Option<CutHook> {
        self.kept.filter(|(kept, _)| *kept == snapshot)?;
        let dirty_at_cut = Rc::clone(&self.dirty_at_cut);
        Some(Box::new(move |everything| {
            dirty_at_cut.set((snapshot, everything.slices.iter().map(|slice| slice.stats.dirty).sum()));
        }))
    }
}

impl Engine {
    /// One round's work for snapshots on disk.
    pub(super) fn look_after_saves(&mut self) {
        let front = &mut self.front;
        if front.saves_deadline().is_none_or(|at| front.now < at) {
            return;
        }
        let (now, persistence) = (front.moment(), &front.node.persistence);
        front.saving.last_look = Some(front.now);
        front.saving.next_look = None;
        // What is left of a dataset that was given up does not replace the file; what changes, has this looked at again.
        if persistence.is_loading() || front.home.as_deref().is_some_and(Home::has_lost_dataset) {
            persistence.begin_rest();
            return;
        }
        persistence.begin_rest();
        let due = persistence.saves().due(&front.config.save.0, front.node.statistics.dirty(), now);
        match due {
            Due::Never => {}
            Due::InS(in_s) => front.saving.next_look = Some(front.now + Duration::from_secs(in_s)),
            Due::Now(point) => {
                assert!(persistence.begin_save(now), "none is running");
                log_notice!("{} changes in {} seconds. Saving...", point.changes, point.seconds);
                self.save(None);
            }
        }
    }

    /// A client asks for a snapshot, which may be what replaces a file that holds more.
    pub(super) fn save_as_asked(&mut self, asker: Option<Asker>) {
        self.front.home.as_mut().expect("orders to save go home").accept_loss();
        self.save(asker);
    }

    /// Begins the snapshot that [`crate::persistence::Persistence::begin_save`] admitted.
    pub(super) fn save(&mut self, asker: Option<Asker>) {
        self.front.saving.askers.extend(asker);
        let now_ms = self.front.now_ms();
        let home = self.front.home.as_mut().expect("orders to save go home");
        home.request_save(now_ms);
    }

    /// Begins the snapshot before the end. Writes wait from now on.
    pub(super) fn save_before_end(&mut self) {
        let now_ms = self.front.now_ms();
        let node = Arc::clone(&self.front.node);
        log_notice!("Saving the final RDB snapshot before exiting.");
        node.pause.begin(PausePurpose::Shutdown, PauseMode::Write, UNTIL_ENDED_MS, now_ms);
        self.front.saving.last_saves = 0;
        // One that was begun before does not have everything.
        self.front.home.as_mut().expect("orders to save go home").cancel_save();
        if let Some((snapshot, _)) = self.front.saving.kept.take() {
            // The home has forgotten one whose file is being finished, which must not land over this one's.
            self.front.give_up_file(snapshot);
        }
        let now = self.front.moment();
        if !node.persistence.begin_save(now) {
            // The former one's place is kept.
            node.persistence.saves().running_since = Some(now);
        }
        self.save(None);
    }

    /// Does what the home wants to be done with a file.
    pub(super) fn file_step(&mut self, snapshot: u64, step: FileStep) {
        let front = &mut self.front;
        match step {
            FileStep::Create { keeps } => front.create_file(snapshot, keeps),
            FileStep::Drop => {
                front.give_up_file(snapshot);
                if front.saving.kept.is_some_and(|(id, _)| id == snapshot) {
                    self.save_given_up();
                }
            }
            FileStep::Write(bytes) => front.with_file(snapshot, |file| file.write(bytes)),
            FileStep::Finish => front.with_file(snapshot, SnapshotFile::finish),
            FileStep::Read { replica, offset, len_bytes } => {
                front.with_file(snapshot, |file| file.read(replica.0, offset, len_bytes));
            }
        }
    }

    /// A file's thread told something.
    pub(super) fn file_told(&mut self, snapshot: u64, told: Told) {
        let now_ms = self.front.now_ms();
        let home = self.front.home.as_mut().expect("files tell the home");
        match told {
            Told::Written(len_bytes) => home.file_written(snapshot, len_bytes),
            Told::Read { reader, outcome } => home.file_read(ReplicaId(reader), outcome),
            Told::Done(outcome) => {
                home.file_done(snapshot, outcome.clone(), now_ms);
                if self.front.saving.kept.is_some_and(|(id, _)| id == snapshot) {
                    self.front.give_up_file(snapshot);
                    self.saved(snapshot, outcome);
                } else if outcome.is_err() {
                    self.front.give_up_file(snapshot);
                }
            }
        }
    }

    /// The dataset was replaced while its snapshot was made.
    fn save_given_up(&mut self) {
        log_warning!("The snapshot was given up, for its dataset was replaced");
        self.front.saving.kept = None;
        self.front.node.persistence.cancel_save();
        let why = "the dataset was replaced meanwhile";
        self.answer_askers(&Err(why.to_owned()));
        if let Some(ending) = self.front.leaving.awaits_snapshot() {
            self.last_saved(ending, false, 0);
        }
    }

    fn answer_askers(&mut self, outcome: &Result<u64, String>) {
        let mut answer = Reply::default();
        match outcome {
            Ok(_) => answer.ok(),
            Err(why) => answer.error(&format!("ERR Error saving DB on disk: {why}")),
        }
        for (shard, conn) in std::mem::take(&mut self.front.saving.askers) {
            self.front.node.order(shard, Order::Answer(conn, answer.buf.clone()));
        }
    }

    /// A snapshot to be kept is in its place, or failed.
    fn saved(&mut self, snapshot: u64, outcome: Result<u64, String>) {
        let front = &mut self.front;
        let now = front.moment();
        let begun = front.saving.kept.take().map_or(front.now, |(_, begun)| begun);
        let (cut, dirty) = front.saving.dirty_at_cut.get();
        match &outcome {
            Ok(len_bytes) => {
                assert_eq!(cut, snapshot, "one snapshot at a time");
                let took_s = front.now.duration_since(begun).as_secs_f64();
                log_notice!("DB saved on disk: {len_bytes} bytes in {took_s:.3} seconds");
                front.node.persistence.end_save(Some(dirty), now);
            }
            Err(why) => {
                log_warning!("Write error saving DB on disk: {why}");
                front.node.persistence.end_save(None, now);
            }
        }
        self.answer_askers(&outcome);
        if let Some(ending) = self.front.leaving.awaits_snapshot() {
            self.last_saved(ending, outcome.is_ok(), dirty);
        }
    }

    /// The snapshot before the end is made, or failed.
    fn last_saved(&mut self, ending: Ending, is_ok: bool, dirty: u64) {
        let node = Arc::clone(&self.front.node);
        self.front.saving.last_saves += 1;
        // What a replica's file lacks its master has.
        let is_complete = node.is_replica() || node.statistics.dirty() <= dirty;
        if is_ok && !is_complete && self.front.saving.last_saves < LAST_SAVES_MAX {
            // Writes that were on their way when the pause began were answered after the cut.
            node.persistence.begin_save(self.front.moment());
            return self.save(None);
        }
        if is_ok || ending.force {
            return node.stop();
        }
        log_warning!("Errors trying to shut down the server. Check the logs for more information.");
        self.give_up_ending();
    }
}

impl Front {
    fn create_file(&mut self, snapshot: u64, keeps: bool) {
        let temporary = PathBuf::from(format!("temp-{}-{snapshot}.rdb", std::process::id()));
        let target = keeps.then(|| PathBuf::from(&self.config.dbfilename));
        let node = Arc::clone(&self.node);
        let tell = move |told| node.order(HOME, Order::File(snapshot, told));
        if keeps {
            self.saving.kept = Some((snapshot, self.now));
            self.node.persistence.saves().is_scheduled = false;
        }
        self.saving.files.insert(snapshot, SnapshotFile::create(temporary, target, tell));
    }

    /// Lets go of a file. One that is in its place stays there.
    fn give_up_file(&mut self, snapshot: u64) {
        if let Some(file) = self.saving.files.remove(&snapshot) {
            file.give_up();
        }
    }

    /// Before the end: files that are not in their place are removed.
    pub(super) fn close_files(&mut self) {
        std::mem::take(&mut self.saving.files).into_values().for_each(SnapshotFile::close);
    }

    /// Files that are being made, or read from.
    #[cfg(test)]
    pub(super) fn open_files(&self) -> Vec<u64> {
        self.saving.files.keys().copied().collect()
    }

    fn with_file(&mut self, snapshot: u64, work: impl FnOnce(&SnapshotFile)) {
        // One that failed is gone, and the home hears of it.
        if let Some(file) = self.saving.files.get(&snapshot) {
            work(file);
        }
    }

    /// When the `save` points are looked at next; None: when something changes, if there are any.
    pub(super) fn saves_deadline(&self) -> Option<Instant> {
        if self.home.is_none() || self.config.save.0.is_empty() {
            return None;
        }
        let Saving { last_look, next_look, .. } = self.saving;
        let soon = last_look.map_or(self.now, |last| last + LOOK_PERIOD);
        let has_changed = !self.node.persistence.rests();
        has_changed.then_some(soon).into_iter().chain(next_look).min()
    }
}
