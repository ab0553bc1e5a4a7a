//! How long a shard looks for another shard's answer before it sleeps.
//!
//! Between shards that have cores of their own an answer takes a few microseconds if both are awake, and more than ten if
//! one has to be woken; where several threads share a core it cannot come before this one sleeps. Which of these it is
//! shows: looking that was rewarded makes the shard more patient, looking in vain less. Two impatient shards would put
//! each other to sleep for ever, so now and then one looks for long enough to see the other wake.
//!
//! Where others want the core, too, that is for shards that have little to do for each message, as for one connection's
//! pipeline that goes to and fro. Who had much to do is hardly slower for being woken, and while it sleeps others have the core.

use super::courtesy::Looker;
use std::time::{Duration, Instant};

const MIN: Duration = Duration::from_micros(4);
const MAX: Duration = Duration::from_micros(50);
/// From here on others on the same core go first: the answer may be theirs to give. On a core of its own that costs a call
/// to the kernel.
const ALONE: Duration = Duration::from_micros(3);
/// Work of this length is worth being woken for.
const LONG_WORK: Duration = Duration::from_micros(30);
/// One in so many looks after one in vain is a long one.
const TRIES: u32 = 16;

/// See the module.
pub struct Patience {
    current: Duration,
    is_looking: bool,
    in_vain: u32,
    /// The beginning of the rounds with something to do, of which no end was seen yet.
    busy_since: Option<Instant>,
    worked_long: bool,
    courtesy: Looker,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            current: MAX,
            is_looking: false,
            in_vain: 0,
            busy_since: None,
            worked_long: false,
            courtesy: Looker::default(),
        }
    }
}

impl Patience {
    /// A round that began at `now` found nothing to do.
    pub fn found_nothing(&mut self, now: Instant) {
        if let Some(since) = self.busy_since.take() {
            self.worked_long = now.duration_since(since) >= LONG_WORK;
        }
    }

    /// Nothing has come for `idle`: whether to go on looking. `is_crowded`: others want the core, too.
    pub fn lasts(&mut self, idle: Duration, is_crowded: bool) -> bool {
        if self.worked_long && is_crowded {
            return false;
        }
        self.is_looking = idle < self.current;
        if !self.is_looking {
            self.in_vain += 1;
            self.current = if self.in_vain.is_multiple_of(TRIES) { MAX } else { (self.current / 2).max(MIN) };
        }
        self.is_looking
    }

    /// Lets some time pass before the next look; nothing has come for `idle`. `look`: when the last one began.
    pub fn look_again(&mut self, idle: Duration, look: Instant) {
        if idle < ALONE || !self.courtesy.give_way(look) {
            std::hint::spin_loop();
        }
    }

    /// There was something to do in a round that began at `now`.
    pub fn worked(&mut self, now: Instant) {
        self.busy_since.get_or_insert(now);
        if std::mem::take(&mut self.is_looking) {
            self.current = (self.current * 2).min(MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_success_and_shrinks_without() {
        let mut patience = Patience::default();
        let idle = MAX - Duration::from_nanos(1);
        assert!(patience.lasts(idle, true));
        patience.worked(Instant::now());
        assert!(patience.lasts(idle, true));
        assert!(!patience.lasts(MAX, true));
        assert!(!patience.lasts(idle, true), "half as long");
        for _ in 0..10 {
            assert!(!patience.lasts(MAX, true));
        }
        assert!(patience.lasts(MIN / 2, true));
        patience.worked(Instant::now());
        assert!(patience.lasts(MIN + MIN / 2, true), "twice as long");
        patience.worked(Instant::now());
        patience.worked(Instant::now());
        assert!(!patience.lasts(idle, true), "work that came without looking teaches nothing");
    }

    #[test]
    fn who_had_much_to_do_sleeps_at_once() {
        let mut patience = Patience::default();
        let start = Instant::now();
        let mut work = |rounds: u32| {
            (0..rounds).for_each(|round| patience.worked(start + LONG_WORK * round / 10));
            patience.found_nothing(start + LONG_WORK * rounds / 10);
            // What was found before does not count again.
            patience.found_nothing(start + LONG_WORK * 100);
            [patience.lasts(Duration::ZERO, true), patience.lasts(Duration::ZERO, false)]
        };
        assert_eq!(work(9), [true, true]);
        assert_eq!(work(10), [false, true], "where others want the core");
        assert_eq!(work(1), [true, true], "each time anew");
    }

    #[test]
    fn now_and_then_it_looks_for_long() {
        let mut patience = Patience::default();
        let mut look_in_vain = || {
            let idle = (0..).map(Duration::from_micros).take_while(|idle| patience.lasts(*idle, true));
            Duration::from_micros(idle.count() as u64)
        };
        let looks: Vec<Duration> = (0..10 * TRIES).map(|_| look_in_vain()).collect();
        for (number, look) in looks.iter().enumerate() {
            assert_eq!(*look == MAX, (number as u32).is_multiple_of(TRIES), "{number}: {look:?}");
        }
        // Most are as short as they may be.
        assert!(looks.iter().filter(|look| **look == MIN).count() > looks.len() / 2, "{looks:?}");
    }
}
