//! How long a shard's thread may run before the kernel looks whether another is due.

use std::time::Duration;

/// The kernel's smallest. On shared cores a shard then waits a tenth of a millisecond for its turn, not three.
const SLICE: Duration = Duration::from_micros(100);

/// Asks the scheduler for short slices for the calling thread. Kernels before 6.12 know no such wish, and a thread that has
/// its core to itself needs none, so nothing depends on the outcome.
pub fn ask_for_short_slices() {
    // SAFETY: a C struct of integers, for which zeros are valid.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes to a struct that lives through the call.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    // Who was started under another policy knows why.
    if got == 0 && attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = SLICE.as_nanos() as u64;
        // SAFETY: the kernel reads one struct, which lives through the call.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_slice_stays_as_it_was() {
        let read = || {
            // SAFETY: as above.
            unsafe {
                let mut attributes: libc::sched_attr = std::mem::zeroed();
                let size = size_of::<libc::sched_attr>() as u32;
                assert_eq!(libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0), 0);
                attributes
            }
        };
        // SAFETY: lowers the calling thread's own priority.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) };
        let before = read();
        ask_for_short_slices();
        let after = read();
        assert_eq!((before.sched_policy, before.sched_nice), (after.sched_policy, after.sched_nice));
        assert_eq!(after.sched_nice, 3);
    }
}
