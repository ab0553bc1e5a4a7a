//! The file of the snapshot that a replica receives before its dataset goes (`repl-diskless-load disabled`). What is done when
//! is decided in `braid_replication::follower`; the file is written by a thread of its own ([`crate::disk`]).

use super::replicas::HOME;
use super::restoring::Restoring;
use super::{Engine, Front};
use crate::disk::{FileReader, SnapshotFile, Told};
use crate::log_notice;
use crate::session::control::Order;
use braid_replication::follower::SpoolStep;
use braid_replication::loader::FEED_BYTES;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The home shard's state for this file.
#[derive(Default)]
pub struct Spooling {
    /// The file, while it is needed, and the snapshot's number.
    file: Option<(u64, SnapshotFile)>,
    /// It is complete, and open to be loaded: what can fail fails before the dataset goes.
    reader: Option<(u64, FileReader)>,
    /// It is being loaded.
    loading: Option<(u64, Box<Restoring>)>,
}

impl Spooling {
    /// What replaces the dataset comes from a file.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }
}

/// Where a snapshot is kept until it is loaded, in `dir` as it is when that begins.
fn path(number: u64) -> PathBuf {
    PathBuf::from(format!("temp-{}-sync-{number}.rdb", std::process::id()))
}

impl Engine {
    /// Does what the follower wants to be done with the file.
    pub(super) fn spool_step(&mut self, number: u64, step: SpoolStep) {
        let front = &mut self.front;
        match step {
            SpoolStep::Create => front.create_spool(number),
            SpoolStep::Write(bytes) => front.with_spool(number, |file| file.write(bytes)),
            SpoolStep::Finish => front.with_spool(number, SnapshotFile::finish),
            SpoolStep::Load => self.begin_spool_load(number),
            SpoolStep::Drop => {
                front.spooling.loading.take_if(|(own, _)| *own == number);
                front.spooling.reader.take_if(|(own, _)| *own == number);
                if let Some((_, file)) = front.spooling.file.take_if(|(own, _)| *own == number) {
                    file.give_up();
                }
            }
        }
    }

    fn begin_spool_load(&mut self, number: u64) {
        let (_, reader) =
            self.front.spooling.reader.take_if(|(own, _)| *own == number).expect("it is complete");
        let path = self.front.spool_path(number).to_owned();
        log_notice!("Loading {}, {} bytes", path.display(), reader.len_bytes);
        self.front.spooling.loading = Some((number, Box::new(Restoring::new(path, reader))));
    }

    fn spool_unreadable(&mut self, why: &str) {
        self.with_follower(|follower, site| follower.spool_unreadable(why, site));
        self.shard.settle(&mut self.front);
    }

    /// The file's thread told something.
    pub(super) fn spooled(&mut self, number: u64, told: Told) {
        let outcome = match told {
            Told::Written(len_bytes) => return self.front.follower().spool_written(number, len_bytes),
            Told::Done(outcome) => outcome,
            Told::Read { .. } => unreachable!("it is read by its name"),
        };
        let is_wanted = self.front.spooling.file.as_ref().is_some_and(|(own, _)| *own == number);
        let outcome = outcome.and_then(|len_bytes| {
            if is_wanted {
                let reader = self.front.open_spool(number)?;
                self.front.spooling.reader = Some((number, reader));
            }
            Ok(len_bytes)
        });
        self.front.follower().spool_done(number, outcome);
    }

    /// One round's work for a file that is being loaded in the place of a dataset that has gone. Returns whether there is
    /// more to do at once.
    pub(super) fn refill(&mut self) -> bool {
        let Some((number, mut loading)) = self.front.spooling.loading.take() else { return false };
        match self.feed_restore(&mut loading, FEED_BYTES) {
            Ok(more) => {
                self.front.spooling.loading = Some((number, loading));
                more
            }
            Err(why) => {
                self.spool_unreadable(&why);
                true
            }
        }
    }
}

impl Front {
    fn create_spool(&mut self, number: u64) {
        let node = Arc::clone(&self.node);
        let tell = move |told| node.order(HOME, Order::Spooled(number, told));
        self.spooling.file = Some((number, SnapshotFile::create(path(number), None, tell)));
    }

    /// Of the snapshot that was just completed.
    fn spool_path(&self, number: u64) -> &Path {
        let file = self.spooling.file.as_ref().filter(|(own, _)| *own == number);
        file.expect("it is kept until it is loaded").1.temporary()
    }

    fn open_spool(&self, number: u64) -> Result<FileReader, String> {
        let node = Arc::clone(&self.node);
        match FileReader::open(self.spool_path(number), move || node.order(HOME, Order::Look)) {
            Ok(Some(reader)) => Ok(reader),
            Ok(None) => Err("the file is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn with_spool(&mut self, number: u64, work: impl FnOnce(&SnapshotFile)) {
        // One that failed is gone, and the follower hears of it.
        if let Some((_, file)) = self.spooling.file.as_ref().filter(|(own, _)| *own == number) {
            work(file);
        }
    }

    /// Before the end: the file is removed.
    pub(super) fn close_spool(&mut self) {
        if let Some((_, file)) = self.spooling.file.take() {
            file.close();
        }
    }
}
