//! A clock for the durations of commands, which may take less time than asking the system for it twice.
//!
//! On x86-64 whose time-stamp counter runs evenly (`constant_tsc` and `nonstop_tsc`, which CPUID calls invariant) a
//! reading is that counter, scaled by what was measured against the system's monotonic clock at the start. Elsewhere it
//! is the system's clock.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long the counter is measured: an error of some 50 ns at either end is then 1 in 40,000.
const CALIBRATION: Duration = Duration::from_millis(2);

/// How far a reading of the counter may be from the system's before and after it. It takes tens of nanoseconds unless
/// the thread loses its core just then.
const GAP_MAX: Duration = Duration::from_nanos(500);

/// How often a pair of readings is tried; the closest is taken.
const PAIRS_MAX: usize = 100;

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
        if tsc::is_invariant() {
            Self::calibrated_by(&mut tsc::read, &mut Instant::now)
        } else {
            Self { start: Instant::now(), tsc: None }
        }
    }

    /// The counter's scale, by its reading and the system's. Whoever reads may lose the core between any two readings.
    fn calibrated_by(counter: &mut dyn FnMut() -> u64, system: &mut dyn FnMut() -> Instant) -> Self {
        let (first, start) = pair(counter, system);
        while system() < start + CALIBRATION {
            std::hint::spin_loop();
        }
        let (last, end) = pair(counter, system);
        let scale = ((end - start).as_nanos() << 32) / u128::from(last.wrapping_sub(first).max(1));
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

/// The counter, and when that was by the system's clock, to half a [`GAP_MAX`] if the thread is let.
fn pair(counter: &mut dyn FnMut() -> u64, system: &mut dyn FnMut() -> Instant) -> (u64, Instant) {
    let mut closest: Option<(Duration, u64, Instant)> = None;
    for _ in 0..PAIRS_MAX {
        let (before, ticks, after) = (system(), counter(), system());
        let gap = after - before;
        if closest.is_none_or(|(least, ..)| gap < least) {
            closest = Some((gap, ticks, before + gap / 2));
        }
        if gap <= GAP_MAX {
            break;
        }
    }
    let (_, ticks, at) = closest.expect("it was read at least once");
    (ticks, at)
}

#[cfg(target_arch = "x86_64")]
mod tsc {
    use std::arch::x86_64::{__cpuid, _rdtsc};

    /// Whether the processor says that its counter runs evenly whatever it does.
    pub fn is_invariant() -> bool {
        const POWER_MANAGEMENT: u32 = 0x8000_0007;
        const INVARIANT_TSC: u32 = 1 << 8;
        let known = __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT;
        known && __cpuid(POWER_MANAGEMENT).edx & INVARIANT_TSC != 0
    }

    #[inline]
    pub fn read() -> u64 {
        // SAFETY: the instruction only reads a counter; Linux leaves it to user space unless a process asks otherwise.
        unsafe { _rdtsc() }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod tsc {
    pub fn is_invariant() -> bool {
        false
    }

    pub fn read() -> u64 {
        unreachable!("there is no such counter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A counter of 2.5 ticks per nanosecond beside a system's clock, where the thread loses its core for 8 ms between
    /// some of its readings.
    fn calibrated_where(loses_core: impl Fn(u32) -> bool) -> Clock {
        const CORE_LOST: Duration = Duration::from_millis(8);
        let (start, since_ns, readings) = (Instant::now(), Cell::new(0), Cell::new(0));
        let read = || {
            readings.set(readings.get() + 1);
            let lost = if loses_core(readings.get()) { CORE_LOST } else { Duration::ZERO };
            since_ns.set(since_ns.get() + 20 + lost.as_nanos() as u64);
            since_ns.get()
        };
        Clock::calibrated_by(&mut || read() * 5 / 2, &mut || start + Duration::from_nanos(read()))
    }

    #[test]
    fn losing_the_core_while_it_is_measured_does_not_bend_it() {
        let mut random = fastrand::Rng::with_seed(7);
        let often: Vec<bool> = (0..100_000).map(|_| random.u32(..8) == 0).collect();
        let whatever_is_lost = (0..200).map(|at| calibrated_where(move |reading| reading == at));
        for clock in whatever_is_lost.chain([calibrated_where(|reading| often[reading as usize])]) {
            let (_, scale) = clock.tsc.expect("it has a scale");
            let expected = (1 << 32) * 2 / 5;
            assert!(scale.abs_diff(expected) < expected / 10_000, "{scale}, not {expected}");
        }
    }

    #[test]
    fn it_agrees_with_the_system() {
        let clock = Clock::get();
        let both = || pair(&mut || clock.now_ns(), &mut Instant::now);
        let (start_ns, start) = both();
        let mut last_ns = start_ns;
        while start.elapsed() < Duration::from_millis(20) {
            let now_ns = clock.now_ns();
            // Another core's counter may be a few ticks behind; a clock of the system is not.
            assert!(now_ns + 1000 >= last_ns);
            last_ns = now_ns;
        }
        let (end_ns, end) = both();
        let (ours, theirs) = (end_ns - start_ns, (end - start).as_nanos() as u64);
        assert!(ours.abs_diff(theirs) < theirs / 100, "{ours} {theirs}");
    }
}
