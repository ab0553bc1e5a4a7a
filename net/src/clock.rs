//! A clock for the durations of commands, which may take less time than asking the system for it twice.
//!
//! On x86-64 whose time-stamp counter runs evenly (`constant_tsc` and `nonstop_tsc`, which CPUID calls invariant) a
//! reading is that counter, scaled by what was measured against the system's monotonic clock at the start. Elsewhere it
//! is the system's clock.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long the counter is measured: an error of some 50 ns at either end is then 1 in 40,000.
const CALIBRATION: Duration = Duration::from_millis(2);

/// A clock that counts nanoseconds from an arbitrary beginning. Copies agree with each other.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// Time-stamp counter at `start`, and nanoseconds per tick times 2^32.
    tsc: Option<(u64, u64)>,
}

static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::calibrated);

impl Clock {
    /// The process's clock; the first call takes 2 ms.
    pub fn get() -> Self {
        *CLOCK
    }

    fn calibrated() -> Self {
        let start = Instant::now();
        let Some(first) = tsc::read_if_invariant() else { return Self { start, tsc: None } };
        while start.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let (ticks, elapsed) = (tsc::read().wrapping_sub(first), start.elapsed());
        let scale = (elapsed.as_nanos() << 32) / u128::from(ticks.max(1));
        // More than 4 s or less than 2^-32 ns per tick is no time-stamp counter.
        let scale = u64::try_from(scale).ok().filter(|scale| *scale > 0);
        Self { start, tsc: scale.map(|scale| (first, scale)) }
    }

    /// Nanoseconds since the clock's beginning.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        match self.tsc {
            Some((first, scale)) => {
                let ticks = tsc::read().wrapping_sub(first);
                ((u128::from(ticks) * u128::from(scale)) >> 32) as u64
            }
            None => self.start.elapsed().as_nanos() as u64,
        }
    }

    /// What the clock reads, for `INFO`.
    pub fn name(&self) -> &'static str {
        if self.tsc.is_some() { "X86 TSC" } else { "POSIX clock_gettime" }
    }
}

#[cfg(target_arch = "x86_64")]
mod tsc {
    use std::arch::x86_64::{__cpuid, _rdtsc};

    /// The counter, if the processor says that it runs evenly whatever it does.
    pub fn read_if_invariant() -> Option<u64> {
        const POWER_MANAGEMENT: u32 = 0x8000_0007;
        const INVARIANT_TSC: u32 = 1 << 8;
        let known = __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT;
        (known && __cpuid(POWER_MANAGEMENT).edx & INVARIANT_TSC != 0).then(read)
    }

    #[inline]
    pub fn read() -> u64 {
        // SAFETY: the instruction only reads a counter; Linux leaves it to user space unless a process asks otherwise.
        unsafe { _rdtsc() }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod tsc {
    pub fn read_if_invariant() -> Option<u64> {
        None
    }

    pub fn read() -> u64 {
        unreachable!("there is no such counter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_system() {
        let clock = Clock::get();
        let (start, start_ns) = (Instant::now(), clock.now_ns());
        let mut last_ns = start_ns;
        while start.elapsed() < Duration::from_millis(20) {
            let now_ns = clock.now_ns();
            // Another core's counter may be a few ticks behind; a clock of the system is not.
            assert!(now_ns + 1000 >= last_ns);
            last_ns = now_ns;
        }
        let (ours, theirs) = (clock.now_ns() - start_ns, start.elapsed().as_nanos() as u64);
        assert!(ours.abs_diff(theirs) < theirs / 100, "{ours} {theirs}");
    }
}
