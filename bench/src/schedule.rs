//! When each operation of an open-loop load is due.
//!
//! A load that waits for a reply before it sends the next command measures nothing while the server stalls: the
//! commands that would have met the stall are never sent ("coordinated omission", Gil Tene). Here every operation
//! has an intended time, fixed beforehand, and its latency counts from there however late it could be sent.

/// Nanoseconds per second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Operations at a constant rate: operation `n` is due at `start + n / rate`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start_ns: u64,
    /// Operations per second, times a thousand: rates below one a second are allowed, and sums do not drift.
    rate_milli: u64,
}

impl Schedule {
    /// `rate_per_s` operations a second, the first at `start_ns` on the caller's clock.
    ///
    /// # Panics
    /// When the rate is not between 0.001 and a thousand million.
    pub fn new(rate_per_s: f64, start_ns: u64) -> Schedule {
        assert!((0.001..=1e9).contains(&rate_per_s), "rate {rate_per_s} per second");
        Schedule { start_ns, rate_milli: (rate_per_s * 1000.0).round() as u64 }
    }

    /// When operation `n`, counted from zero, is due.
    pub fn intended_ns(&self, n: u64) -> u64 {
        let offset_ns = u128::from(n) * u128::from(NS_PER_S) * 1000 / u128::from(self.rate_milli);
        self.start_ns + offset_ns as u64
    }

    /// How many operations are due at `now_ns`.
    pub fn due(&self, now_ns: u64) -> u64 {
        let Some(elapsed_ns) = now_ns.checked_sub(self.start_ns) else { return 0 };
        // Operation n is due from the ceiling of its exact time, as intended_ns rounds down: count, then correct.
        let estimate =
            (u128::from(elapsed_ns) * u128::from(self.rate_milli) / (u128::from(NS_PER_S) * 1000)) as u64;
        let mut due = estimate + 1;
        while self.intended_ns(due) <= now_ns {
            due += 1;
        }
        due
    }

    /// The start on the caller's clock.
    pub fn start_ns(&self) -> u64 {
        self.start_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_due_exactly_from_its_intended_time() {
        for rate in [0.5, 1.0, 3.0, 7.7, 1000.0, 33_333.0, 1_234_567.0, 1e9] {
            let schedule = Schedule::new(rate, 5_000);
            for n in [0, 1, 2, 3, 10, 999, 1_000_000] {
                let at_ns = schedule.intended_ns(n);
                assert!(schedule.due(at_ns) > n, "{rate}/s: {n} is due at {at_ns}");
                if at_ns > 5_000 {
                    assert!(schedule.due(at_ns - 1) <= n, "{rate}/s: {n} is not due before {at_ns}");
                }
            }
            assert_eq!(schedule.due(4_999), 0);
        }
    }

    #[test]
    fn an_hour_does_not_drift() {
        let schedule = Schedule::new(30_000.0, 0);
        assert_eq!(schedule.intended_ns(30_000 * 3600), 3600 * NS_PER_S);
        assert_eq!(schedule.due(3600 * NS_PER_S), 30_000 * 3600 + 1);
    }

    /// A server that answers in 1 ms but stalls once for 100 ms: a closed loop would see one slow operation, the
    /// schedule accounts for all hundred that were due meanwhile.
    #[test]
    fn a_stall_is_charged_to_every_operation_that_was_due_in_it() {
        let ms = 1_000_000;
        let schedule = Schedule::new(1000.0, 0);
        let mut now_ns = 0;
        let mut latencies_ms = Vec::new();
        for n in 0..1000 {
            now_ns = now_ns.max(schedule.intended_ns(n));
            now_ns += if n == 500 { 100 * ms } else { ms / 10 };
            latencies_ms.push((now_ns - schedule.intended_ns(n)) / ms);
        }
        assert_eq!(latencies_ms.iter().max(), Some(&100));
        assert!(latencies_ms.iter().filter(|latency| **latency >= 50).count() >= 50);
        assert_eq!(latencies_ms[499], 0);
        assert_eq!(latencies_ms[999], 0);
    }
}
