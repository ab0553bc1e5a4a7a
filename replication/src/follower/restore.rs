//! The snapshot file at the start. Until its dataset is in its place nothing else is done to the dataset.

use super::{Follower, Site};
use crate::loader::LoadedInfo;
use braid_shards::{LoadFault, Shard};
use std::cell::Cell;
use std::rc::Rc;

/// How far it is.
pub(super) enum Restore {
    /// It is fed to [`Follower::loads`].
    Loading,
    Swapping {
        done: Rc<Cell<bool>>,
        keys: u64,
    },
}

/// What [`Follower::restore`] has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It is under way. `has_worked`: a step was made.
    UnderWay { has_worked: bool },
    /// The dataset is in its place, with so many keys.
    Done { keys: u64 },
}

impl Follower {
    /// A snapshot file is to be loaded: its bytes go into [`Follower::loads`].
    pub fn begin_restore(&mut self, shard: &mut Shard) {
        self.restore = Some(Restore::Loading);
        self.loads.begin(shard);
    }

    /// Whether the dataset is still coming from a file.
    pub fn is_restoring(&self) -> bool {
        self.restore.is_some()
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// A shard found the file to be unusable. The attempt is over.
    pub fn restore(&mut self, site: &mut Site<'_>) -> Result<Restored, LoadFault> {
        match self.restore.take() {
            Some(Restore::Swapping { done, keys }) if done.get() => return Ok(Restored::Done { keys }),
            other => self.restore = other,
        }
        let Some(outcome) = self.loads.take_outcome() else {
            return Ok(Restored::UnderWay { has_worked: false });
        };
        let info = outcome?;
        let done = self.put_in_place(site, &info);
        self.restore = Some(Restore::Swapping { done, keys: info.keys });
        Ok(Restored::UnderWay { has_worked: true })
    }

    /// The snapshot is whole: its history is ours, and it becomes the dataset.
    fn put_in_place(&mut self, site: &mut Site<'_>, info: &LoadedInfo) -> Rc<Cell<bool>> {
        let is_replica = site.home.is_replica();
        let history = info.repl_id.zip(info.repl_offset);
        if info.keys > 0 {
            site.home.confirm_dataset();
        }
        if let Some((id, offset)) = history {
            site.home.resume(id, offset, is_replica);
            site.home.set_stream_db(info.stream_db.unwrap_or(0));
            if is_replica {
                self.applied_offset = offset;
            }
        }
        let streams = history.is_some() && !is_replica;
        let done = Rc::<Cell<bool>>::default();
        let is_there = Rc::clone(&done);
        self.loads.swap(site.shard, move |everything| {
            for slice in &mut *everything.slices {
                slice.stream = streams;
            }
            is_there.set(true);
        });
        done
    }
}
