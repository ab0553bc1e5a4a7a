//! What all shards know of snapshots on disk: whether one is being written or loaded, and how the last ones ended. What
//! `INFO persistence`, `LASTSAVE` and the refusal of commands meanwhile are told from.

use crate::config::values::SavePoint;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A point in time: the date to be shown, and the node's own clock, which nobody sets, to tell what has passed since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the Unix epoch.
    pub unix_s: u64,
    /// Seconds since the node started.
    pub uptime_s: u64,
}

/// How snapshots on disk went.
#[derive(Debug, Clone)]
pub struct Saves {
    /// One is asked for or being written, since then.
    pub running_since: Option<Moment>,
    /// It is asked for, and has not begun yet.
    pub is_scheduled: bool,
    /// The last one that succeeded; at first, the start.
    pub last: Moment,
    /// When one was last begun.
    pub last_try: Moment,
    pub is_last_ok: bool,
    /// How long the last one took.
    pub last_took_s: Option<u64>,
    pub count: u64,
    /// Changes to the dataset that are in the last one.
    pub saved_dirty: u64,
    /// Keys that were loaded at the start.
    pub keys_loaded: u64,
}

/// After a snapshot failed, none is tried by itself for so long.
const RETRY_DELAY_S: u64 = 5;

/// When the next snapshot is to be begun by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// For this `save` point.
    Now(SavePoint),
    /// If nothing else changes until then.
    InS(u64),
    /// Not as long as nothing changes.
    Never,
}

impl Saves {
    /// What the `save` points ask for. `dirty`: all changes to the dataset so far.
    pub fn due(&self, points: &[SavePoint], dirty: u64, now: Moment) -> Due {
        let changes = dirty.saturating_sub(self.saved_dirty);
        if changes == 0 || self.running_since.is_some() {
            return Due::Never;
        }
        let retry_s = if self.is_last_ok { 0 } else { self.last_try.uptime_s + RETRY_DELAY_S + 1 };
        let reached = points.iter().filter(|point| changes >= point.changes);
        // As in Redis, a point's seconds must be over, and the clock counts whole ones.
        let first = reached
            .map(|point| ((self.last.uptime_s + u64::from(point.seconds) + 1).max(retry_s), *point))
            .min_by_key(|(at_s, _)| *at_s);
        match first {
            Some((at_s, point)) if at_s <= now.uptime_s => Due::Now(point),
            Some((at_s, _)) => Due::InS(at_s - now.uptime_s),
            None => Due::Never,
        }
    }
}

/// How far loading at the start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub since: Moment,
    pub total_bytes: u64,
    pub loaded_bytes: u64,
}

/// See the module.
pub struct Persistence {
    saves: Mutex<Saves>,
    /// The home shard has looked at the `save` points, and looks again when something changes.
    rests: AtomicBool,
    /// The dataset is being loaded and there is no other, so that commands on keys are refused.
    is_loading: AtomicBool,
    /// There was one, and it went for the one that is being loaded.
    has_gone: AtomicBool,
    since_unix_s: AtomicU64,
    since_uptime_s: AtomicU64,
    total_bytes: AtomicU64,
    loaded_bytes: AtomicU64,
    /// The last snapshot failed and `stop-writes-on-bgsave-error` may apply.
    is_broken: AtomicBool,
    over: Mutex<bool>,
    is_over: Condvar,
    failure: Mutex<Option<String>>,
}

impl Persistence {
    /// Of a node that starts at this date.
    pub fn new(unix_s: u64) -> Self {
        let start = Moment { unix_s, uptime_s: 0 };
        let saves = Saves {
            running_since: None,
            is_scheduled: false,
            last: start,
            last_try: start,
            is_last_ok: true,
            last_took_s: None,
            count: 0,
            saved_dirty: 0,
            keys_loaded: 0,
        };
        Self {
            saves: Mutex::new(saves),
            rests: AtomicBool::new(false),
            is_loading: AtomicBool::new(true),
            has_gone: AtomicBool::new(false),
            since_unix_s: AtomicU64::new(unix_s),
            since_uptime_s: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            loaded_bytes: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            over: Mutex::new(false),
            is_over: Condvar::new(),
            failure: Mutex::new(None),
        }
    }

    pub fn saves(&self) -> MutexGuard<'_, Saves> {
        self.saves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a snapshot as asked for. False: one is already.
    pub fn begin_save(&self, now: Moment) -> bool {
        let mut saves = self.saves();
        if saves.running_since.is_some() {
            return false;
        }
        saves.running_since = Some(now);
        saves.is_scheduled = true;
        saves.last_try = now;
        true
    }

    /// A snapshot ended; with the changes that it holds, if it succeeded.
    pub fn end_save(&self, saved_dirty: Option<u64>, now: Moment) {
        let mut saves = self.saves();
        let since = saves.running_since.take().unwrap_or(now);
        saves.last_took_s = Some(now.uptime_s.saturating_sub(since.uptime_s));
        saves.is_last_ok = saved_dirty.is_some();
        if let Some(dirty) = saved_dirty {
            saves.last = now;
            saves.count += 1;
            saves.saved_dirty = dirty;
        }
        self.end_rest();
        self.is_broken.store(saved_dirty.is_none(), Ordering::Relaxed);
    }

    /// A snapshot was given up because its dataset was replaced: that says nothing of the disk.
    pub fn cancel_save(&self) {
        self.saves().running_since = None;
        self.end_rest();
    }

    /// The home shard is about to look at the `save` points; what changes after this has it look again.
    pub fn begin_rest(&self) {
        self.rests.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Whether nothing has changed since [`Persistence::begin_rest`]: one load.
    #[inline]
    pub fn rests(&self) -> bool {
        self.rests.load(Ordering::SeqCst)
    }

    /// Something that the `save` points depend on has changed, and others can see that. True: the home shard is to be woken.
    #[inline]
    pub fn end_rest(&self) -> bool {
        // Either the home sees the change when it looks, or it began to rest before and is found resting here.
        fence(Ordering::SeqCst);
        self.rests.load(Ordering::Relaxed) && self.rests.swap(false, Ordering::SeqCst)
    }

    /// Whether the last snapshot failed: one load.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Whether the dataset is still being loaded: one load.
    #[inline]
    pub fn is_loading(&self) -> bool {
        self.is_loading.load(Ordering::Relaxed)
    }

    /// The dataset has gone, and another is to be loaded in its place.
    pub fn begin_loading(&self, now: Moment) {
        self.has_gone.store(true, Ordering::SeqCst);
        self.since_unix_s.store(now.unix_s, Ordering::Relaxed);
        self.since_uptime_s.store(now.uptime_s, Ordering::Relaxed);
        self.set_progress(0, 0);
        self.is_loading.store(true, Ordering::SeqCst);
    }

    /// How far that is.
    pub fn progress(&self) -> Option<Progress> {
        self.is_loading().then(|| Progress {
            since: Moment {
                unix_s: self.since_unix_s.load(Ordering::Relaxed),
                uptime_s: self.since_uptime_s.load(Ordering::Relaxed),
            },
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            loaded_bytes: self.loaded_bytes.load(Ordering::Relaxed),
        })
    }

    pub fn set_progress(&self, loaded_bytes: u64, total_bytes: u64) {
        self.loaded_bytes.store(loaded_bytes, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Whether it is loaded in the place of one that has gone: who loads may never come to an end, and has to be told to
    /// follow another master, or none.
    pub fn has_gone(&self) -> bool {
        self.has_gone.load(Ordering::Relaxed)
    }

    /// The dataset is there: at the start with so many keys.
    pub fn end_loading(&self, keys: u64) {
        self.note_loaded(keys);
        self.resume();
        self.tell_over();
    }

    /// After [`Persistence::begin_loading`]: commands on keys are run again.
    pub fn resume(&self) {
        self.is_loading.store(false, Ordering::SeqCst);
        self.has_gone.store(false, Ordering::SeqCst);
        self.end_rest();
    }

    /// A dataset with so many keys was loaded.
    pub fn note_loaded(&self, keys: u64) {
        self.saves().keys_loaded = keys;
    }

    /// The server cannot go on: why, for the operator.
    pub fn fail(&self, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.tell_over();
    }

    fn tell_over(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.is_over.notify_all();
    }

    /// Ends [`Persistence::wait_loaded`] whatever comes.
    pub fn interrupt(&self) {
        self.tell_over();
    }

    /// Waits until loading is over, one way or the other. True: the dataset is there.
    pub fn wait_loaded(&self) -> bool {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            over = self.is_over.wait(over).unwrap_or_else(PoisonError::into_inner);
        }
        drop(over);
        !self.is_loading()
    }

    /// What [`Persistence::fail`] was told.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uptime_s: u64) -> Moment {
        Moment { unix_s: 1_000_000 + uptime_s, uptime_s }
    }

    #[test]
    fn a_save_is_one_at_a_time_and_its_end_is_remembered() {
        let persistence = Persistence::new(1_000_000);
        assert!(persistence.begin_save(at(10)));
        assert!(!persistence.begin_save(at(11)));
        persistence.end_save(None, at(15));
        assert!(persistence.is_broken());
        let saves = persistence.saves().clone();
        assert_eq!(
            (saves.last, saves.is_last_ok, saves.last_took_s, saves.count),
            (at(0), false, Some(5), 0)
        );
        assert!(persistence.begin_save(at(20)));
        // Somebody set the clock back by a day.
        let end = Moment { unix_s: 1_000_000 - 86_400, uptime_s: 21 };
        persistence.end_save(Some(33), end);
        let saves = persistence.saves().clone();
        assert_eq!((saves.last, saves.last_try, saves.last_took_s), (end, at(20), Some(1)));
        assert_eq!((saves.saved_dirty, saves.count), (33, 1));
        assert!(!persistence.is_broken());
    }

    #[test]
    fn save_points_say_when_to_look_again() {
        let points = [(60, 1000), (3600, 1)].map(|(seconds, changes)| SavePoint { seconds, changes });
        let persistence = Persistence::new(1_000_000);
        let due = |dirty, now_s| persistence.saves().due(&points, dirty, at(now_s));
        assert_eq!(due(0, 100_000), Due::Never);
        assert_eq!(due(1, 0), Due::InS(3601));
        assert_eq!(due(999, 3600), Due::InS(1));
        assert_eq!(due(999, 3601), Due::Now(points[1]));
        assert_eq!(due(1000, 60), Due::InS(1));
        assert_eq!(due(1000, 61), Due::Now(points[0]));
        assert!(persistence.begin_save(at(61)));
        assert_eq!(due(5000, 10_000), Due::Never, "one at a time");
        persistence.end_save(None, at(62));
        assert_eq!(due(5000, 63), Due::InS(4), "not at once after a failure");
        assert_eq!(due(5000, 67), Due::Now(points[0]));
        persistence.end_save(Some(5000), at(70));
        assert_eq!(due(5000, 100_000), Due::Never);
        assert_eq!(due(6000, 100), Due::InS(31));
    }

    #[test]
    fn who_rests_is_woken_by_the_first_change() {
        let persistence = Persistence::new(0);
        assert!(!persistence.end_rest() && !persistence.rests());
        persistence.begin_rest();
        assert!(persistence.rests());
        assert!(persistence.end_rest());
        assert!(!persistence.end_rest() && !persistence.rests());
    }

    #[test]
    fn loading_ends_in_a_dataset_or_a_failure() {
        let persistence = Persistence::new(100);
        persistence.set_progress(5, 10);
        let since = Moment { unix_s: 100, uptime_s: 0 };
        assert_eq!(persistence.progress(), Some(Progress { since, total_bytes: 10, loaded_bytes: 5 }));
        persistence.fail("broken".into());
        assert!(!persistence.wait_loaded());
        assert_eq!(persistence.failure().as_deref(), Some("broken"));
        let persistence = Persistence::new(100);
        persistence.end_loading(7);
        assert!(persistence.wait_loaded());
        assert_eq!((persistence.progress(), persistence.saves().keys_loaded), (None, 7));
    }
}
