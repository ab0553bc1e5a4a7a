//! Giving way to others on the same core, without being starved by those who never do.
//!
//! Who yields goes behind everybody who wants the core, and comes back when they sleep, yield, or have used up what the
//! kernel lets them have: some microseconds if they are servers like this one, several milliseconds if they compute. So a
//! yield that took long is not repeated before this one has had the core for as long.

use std::time::{Duration, Instant};

/// Whoever has the core for so long computes, and does not answer somebody.
const LONG: Duration = Duration::from_millis(1);

/// See the module.
pub struct Courtesy {
    /// After a long yield none is made for so many times as long.
    reserve: u32,
    next: Option<Instant>,
}

impl Courtesy {
    /// For who has work of its own to do: it gets half of the core at least.
    pub fn of_worker() -> Self {
        Self { reserve: 1, next: None }
    }

    /// For who waits for an answer, and has it sooner when it sleeps if others compute: the kernel lets those go first who
    /// wake up.
    pub fn of_waiter() -> Self {
        Self { reserve: 64, next: None }
    }

    /// Whether others may go first now.
    pub fn may_yield(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// They went first, from `begin` to `end`.
    pub fn yielded(&mut self, begin: Instant, end: Instant) {
        let took = end.duration_since(begin);
        self.next = Some(end + if took < LONG { took } else { took * self.reserve });
    }

    /// Lets others go first, if it is their turn. Returns whether it was.
    pub fn give_way(&mut self) -> bool {
        let begin = Instant::now();
        if !self.may_yield(begin) {
            return false;
        }
        std::thread::yield_now();
        self.yielded(begin, Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law8_who_gives_way_is_not_starved_by_who_does_not() {
        for (mut courtesy, least_percent) in [(Courtesy::of_worker(), 45), (Courtesy::of_waiter(), 95)] {
            // The other one computes: each yield costs 4 ms. This one has rounds of 50 us.
            let (start, mut own) = (Instant::now(), Duration::ZERO);
            let mut now = start;
            while now < start + Duration::from_secs(10) {
                if courtesy.may_yield(now) {
                    courtesy.yielded(now, now + Duration::from_millis(4));
                    now += Duration::from_millis(4);
                }
                now += Duration::from_micros(50);
                own += Duration::from_micros(50);
            }
            let percent = own.as_micros() * 100 / (now - start).as_micros();
            assert!(percent >= least_percent, "{percent}");
        }
    }

    #[test]
    fn among_the_courteous_everybody_has_every_other_turn() {
        for mut courtesy in [Courtesy::of_worker(), Courtesy::of_waiter()] {
            let mut now = Instant::now();
            for _ in 0..100 {
                assert!(courtesy.may_yield(now));
                courtesy.yielded(now, now + Duration::from_micros(50));
                now += Duration::from_micros(50 + 50);
            }
        }
    }
}
