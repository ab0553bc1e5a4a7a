//! Removing keys whose time is over, in slices.

use super::snapshot::{owes_huge, preserve};
use super::{Change, Db, Keyspace, Trash};
use crate::command::{Effects, Settings};
use crate::table::{Due, OwnedValue, Verdict};

/// Keys visited at a time: enough to finish a segment of the table, which updates its record of what is due.
const SWEEP_LEN: usize = 1024;
/// What of their values is freed at once, steps.
const SWEEP_FREE_STEPS: usize = 1024;

impl Keyspace {
    /// One slice of the background expiry: looks at no more than about `budget` keys, only where the table knows that
    /// something may be due. Returns true if it stopped for its budget, so that there is more to do now.
    ///
    /// A replica never calls this: its keys go when the master says so.
    pub fn expire_slice(
        &mut self,
        now_ms: u64,
        budget: usize,
        settings: &Settings,
        effects: &mut Effects,
    ) -> bool {
        if !self.active_expire {
            return false;
        }
        let mut left = budget;
        for db in 0..self.dbs.len() as u16 {
            while self.db(db).expires > 0 {
                if left == 0 {
                    return true;
                }
                let Self { dbs, snapshot, epoch, .. } = self;
                let Db { table, sweep, cut_db, .. } = &mut dbs[usize::from(db)];
                let position = match table.next_due(*sweep, now_ms) {
                    Due::At(position) => position,
                    Due::Resume(position) => {
                        *sweep = position;
                        left -= 1;
                        continue;
                    }
                    Due::Nothing => break,
                };
                let (mut over, mut values, mut visited) = (Vec::new(), Vec::new(), 0);
                *sweep = table.retain_slice(position, SWEEP_LEN, |entry| {
                    visited += 1;
                    if entry.expiry_ms().is_none_or(|at| now_ms <= at) {
                        return Verdict::Keep;
                    }
                    if owes_huge(snapshot, *epoch, *cut_db, entry) {
                        // Nobody sees it any more; it goes when it has been written.
                        return Verdict::Keep;
                    }
                    preserve(snapshot, *epoch, *cut_db, entry);
                    over.push(Box::<[u8]>::from(entry.key()));
                    if let OwnedValue::Boxed(object) = entry.take_value() {
                        values.push(object);
                    }
                    Verdict::Remove
                });
                let done = *sweep == 0;
                left -= visited.min(left);
                self.db_mut(db).expires -= over.len();
                let mut at_once = SWEEP_FREE_STEPS;
                for object in values {
                    let steps = object.free_effort();
                    if steps > at_once {
                        self.trash.push_back(Trash::of(object));
                    } else {
                        at_once -= steps;
                        self.discard_value(object);
                    }
                }
                for key in over {
                    self.note(db, &key, Change::Expired);
                    effects.push(db, &[settings.expire_verb(), &key]);
                }
                if done {
                    break;
                }
            }
            self.db_mut(db).sweep = 0;
        }
        false
    }
}
