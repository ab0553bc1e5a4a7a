//! The file of the snapshot that a replica receives before its dataset goes (`repl-diskless-load disabled`). What is done when
//! is decided in `braid_replication::follower`; the file is written by a thread of its own ([`crate::disk`]).

use super::replicas::HOME;
use super::restoring::Restoring;
use super::{Engine, Front};
use crate::disk::{FileReader, SnapshotFile, Told};
use crate::log_notice;
use crate::session::control::Order;
use braid_replication::follower::SpoolStep;
use std::path::PathBuf;
use std::sync::Arc;

/// The home shard's state for this file.
#[derive(Default)]
pub struct Spooling {
    /// The file, while it is needed, and the snapshot's number.
    file: Option<(u64, SnapshotFile)>,
    /// It is being loaded.
    loading: Option<Box<Restoring>>,
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
            SpoolStep::Announce { len_bytes } => {
                front.node.persistence.begin_loading(front.moment(), len_bytes);
            }
            SpoolStep::Load => self.begin_spool_load(number),
            SpoolStep::Conclude { keys } => {
                front.spooling.loading = None;
                front.node.persistence.end_loading(keys);
            }
            SpoolStep::Drop => {
                if let Some((_, file)) = front.spooling.file.take_if(|(own, _)| *own == number) {
                    file.give_up();
                }
            }
        }
    }

    fn begin_spool_load(&mut self, number: u64) {
        let file = self.front.spooling.file.as_ref().filter(|(own, _)| *own == number);
        let path = file.expect("it was just completed").1.temporary().to_owned();
        let waker = Arc::clone(&self.front.node);
        match FileReader::open(&path, move || waker.order(HOME, Order::Look)) {
            Ok(Some(reader)) => {
                log_notice!("Loading {}, {} bytes", path.display(), reader.len_bytes);
                self.front.spooling.loading = Some(Box::new(Restoring::new(path, reader)));
            }
            Ok(None) => self.spool_unreadable("the file is gone"),
            Err(error) => self.spool_unreadable(&error.to_string()),
        }
    }

    fn spool_unreadable(&mut self, why: &str) {
        self.with_follower(|follower, site| follower.spool_unreadable(why, site));
        self.shard.settle(&mut self.front);
    }

    /// The file's thread told something.
    pub(super) fn spooled(&mut self, number: u64, told: Told) {
        let follower = self.front.follower();
        match told {
            Told::Written(len_bytes) => follower.spool_written(number, len_bytes),
            Told::Done(outcome) => follower.spool_done(number, outcome),
            Told::Read { .. } => unreachable!("it is read by its name"),
        }
    }

    /// One round's work for a file that is being loaded in the place of a dataset that has gone. Returns whether there is
    /// more to do at once.
    pub(super) fn refill(&mut self) -> bool {
        let Some(mut loading) = self.front.spooling.loading.take() else { return false };
        match self.feed_restore(&mut loading) {
            Ok(more) => {
                self.front.spooling.loading = Some(loading);
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
