//! Giving way to others on the same core, without being starved by those who never do.
//!
//! Who yields goes behind everybody who wants the core, and comes back when they sleep, yield, or have used up what the
//! kernel lets them have: some microseconds if they are servers like this one, several milliseconds if they compute. So a
//! yield that took long is not repeated before this one has had the core for much longer.

use std::time::{Duration, Instant};

/// Whoever has the core for so long computes, and does not answer somebody. The kernel's clock may end its turn at any
/// moment, so this is well below what it grants.
const LONG: Duration = Duration::from_millis(1);
/// After a long yield none is made for so many times as long. A yield costs more than its time: who went behind others does
/// not go before them when it wakes up next.
const RESERVE: u32 = 64;

/// See the module.
#[derive(Default)]
pub struct Courtesy {
    next: Option<Instant>,
}

impl Courtesy {
    /// Whether others may go first now.
    pub fn may_yield(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// They went first, from `begin` to `end`.
    pub fn yielded(&mut self, begin: Instant, end: Instant) {
        let took = end.duration_since(begin);
        self.next = Some(end + if took < LONG { took } else { took * RESERVE });
    }

    /// Lets others go first, if it is their turn. Returns whether it was. `round`: when the round began that ends here. If
    /// it took long, the core was taken away in it.
    pub fn give_way(&mut self, round: Instant) -> bool {
        let begin = Instant::now();
        if begin.duration_since(round) >= LONG {
            self.yielded(round, begin);
        }
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
        let mut courtesy = Courtesy::default();
        // The other one computes: each yield costs what is left of the kernel's 4 ms. This one has rounds of 50 us.
        let mut random = fastrand::Rng::with_seed(1);
        let (start, mut own) = (Instant::now(), Duration::ZERO);
        let mut now = start;
        while now < start + Duration::from_secs(100) {
            if courtesy.may_yield(now) {
                let took = Duration::from_micros(random.u64(1..4000));
                courtesy.yielded(now, now + took);
                now += took;
            }
            now += Duration::from_micros(50);
            own += Duration::from_micros(50);
        }
        let percent = own.as_micros() * 100 / (now - start).as_micros();
        assert!(percent >= 95, "{percent}");
    }

    #[test]
    fn among_the_courteous_everybody_has_every_other_turn() {
        let mut courtesy = Courtesy::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            assert!(courtesy.may_yield(now));
            courtesy.yielded(now, now + Duration::from_micros(50));
            now += Duration::from_micros(50 + 50);
        }
    }
}
