//! Giving way to others on the same core, without being starved by those who never do.
//!
//! Who yields goes behind everybody who wants the core, and comes back when they sleep, yield, or have used up what the
//! kernel lets them have: some microseconds if they are servers like this one, several milliseconds if they compute. A
//! yield may also cost all that one had saved up towards going before others at the next wake-up.

use std::time::{Duration, Instant};

/// Whoever has the core for so long computes, and does not answer somebody. The kernel's clock may end its turn at any
/// moment, so this is well below what it grants.
const LONG: Duration = Duration::from_millis(1);
/// Who looks makes no yield for so many times as long as a long one took: nearly all of the core is worth more to it than
/// what it looks for.
const RESERVE: u32 = 64;
/// Yields of one who works may take so many times as long as its work. Two that share a core with each other, and are both
/// courteous, are far from it; beside one that computes the work still goes on. (Among the courteous a yield may take long
/// now and then: if that made one stop for long, the other's yields would take long, and it would stop, too.)
const PATIENCE: u32 = 10;
/// What work can earn ahead of yields.
const EARNED_MAX: Duration = Duration::from_millis(5);
/// Whoever seems to have worked for longer did not: the core was taken away.
const ROUND_MAX: Duration = Duration::from_micros(250);

/// The courtesy of who looks for something that another may be about to give.
#[derive(Default)]
pub struct Looker {
    next: Option<Instant>,
}

impl Looker {
    /// Whether others may go first now.
    fn may_yield(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// They went first, from `begin` to `end`.
    fn yielded(&mut self, begin: Instant, end: Instant) {
        let took = end.duration_since(begin);
        self.next = Some(end + if took < LONG { took } else { took * RESERVE });
    }

    /// Lets others go first, if it is their turn. Returns whether it was. `look`: when the look began that ends here. If
    /// it took long, the core was taken away in it.
    pub fn give_way(&mut self, look: Instant) -> bool {
        let begin = Instant::now();
        if begin.duration_since(look) >= LONG {
            self.yielded(look, begin);
        }
        if !self.may_yield(begin) {
            return false;
        }
        std::thread::yield_now();
        self.yielded(begin, Instant::now());
        true
    }
}

/// The courtesy of who works without a pause at something that has time.
#[derive(Default)]
pub struct Worker {
    /// The end of the last yield.
    since: Option<Instant>,
    /// How long yields may take, and how long they took beyond that.
    earned: Duration,
    owed: Duration,
}

impl Worker {
    /// It worked until now. Whether others may go first.
    fn worked(&mut self, now: Instant) -> bool {
        let worked = self.since.replace(now).map_or(ROUND_MAX, |since| now.duration_since(since));
        let earned = self.earned + worked.min(ROUND_MAX) * PATIENCE;
        self.earned = earned.saturating_sub(self.owed).min(EARNED_MAX);
        self.owed = self.owed.saturating_sub(earned);
        self.owed.is_zero()
    }

    /// Others went first, until now.
    fn yielded(&mut self, now: Instant) {
        let took = self.since.replace(now).map_or(Duration::ZERO, |since| now.duration_since(since));
        self.owed += took.saturating_sub(self.earned);
        self.earned = self.earned.saturating_sub(took);
    }

    /// Lets others go first, if it is their turn.
    pub fn give_way(&mut self) {
        if self.worked(Instant::now()) {
            std::thread::yield_now();
            self.yielded(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law8_who_looks_is_not_starved_by_who_computes() {
        let mut looker = Looker::default();
        // Each yield costs what is left of the kernel's 4 ms. This one looks for 50 us.
        let mut random = fastrand::Rng::with_seed(1);
        let (start, mut own) = (Instant::now(), Duration::ZERO);
        let mut now = start;
        while now < start + Duration::from_secs(100) {
            if looker.may_yield(now) {
                let took = Duration::from_micros(random.u64(1..4000));
                looker.yielded(now, now + took);
                now += took;
            }
            now += Duration::from_micros(50);
            own += Duration::from_micros(50);
        }
        let percent = own.as_micros() * 100 / (now - start).as_micros();
        assert!(percent >= 95, "{percent}");
    }

    #[test]
    fn among_those_who_look_everybody_has_every_other_turn() {
        let mut looker = Looker::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            assert!(looker.may_yield(now));
            looker.yielded(now, now + Duration::from_micros(50));
            now += Duration::from_micros(50 + 50);
        }
    }

    /// Works in rounds of 50 us for ten seconds, with yields that take so long. Returns which part of the time it worked, in
    /// percent, and how many rounds were followed by a yield.
    fn work(worker: &mut Worker, mut took: impl FnMut() -> Duration) -> (u128, u128) {
        let start = Instant::now();
        let (mut now, mut rounds, mut yields) = (start, 0, 0);
        while now < start + Duration::from_secs(10) {
            now += Duration::from_micros(50);
            rounds += 1;
            if worker.worked(now) {
                now += took();
                worker.yielded(now);
                yields += 1;
            }
        }
        (rounds * 50 * 100 / (now - start).as_micros(), yields * 100 / rounds)
    }

    #[test]
    fn law8_who_works_is_not_starved_by_who_computes() {
        let (worked, _) = work(&mut Worker::default(), || Duration::from_millis(4));
        assert!((8..=10).contains(&worked), "{worked}");
    }

    #[test]
    fn law8_losing_the_core_earns_nothing() {
        let (mut worker, mut now) = (Worker::default(), Instant::now());
        let mut yields = 0;
        for _ in 0..1000 {
            now += Duration::from_micros(50);
            if worker.worked(now) {
                now += Duration::from_millis(8);
                worker.yielded(now);
                yields += 1;
            }
            // The kernel's clock ends its turn.
            now += Duration::from_millis(8);
        }
        assert!((200..400).contains(&yields), "{yields}");
    }

    #[test]
    fn among_those_who_work_everybody_has_every_other_turn_though_one_takes_long() {
        let mut worker = Worker::default();
        assert_eq!(work(&mut worker, || Duration::from_micros(50)), (50, 100));
        let mut random = fastrand::Rng::with_seed(1);
        let now_and_then_long = || Duration::from_micros(if random.u32(..100) == 0 { 4000 } else { 50 });
        let (worked, yielded) = work(&mut worker, now_and_then_long);
        assert!(worked >= 35 && yielded >= 95, "{worked} {yielded}");
    }
}
