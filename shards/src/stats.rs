//! How often commands ran, how long they took, how they failed: `INFO commandstats`, `errorstats`, `latencystats`.
//!
//! A shard counts in memory that the others may read at any time: each counter has one writer, so counting is an
//! ordinary addition and reading needs no request to the shard. Nothing is ever set back; `CONFIG RESETSTAT` remembers
//! what the counters were ([`CommandTotals::since`]).

use braid_core::command::{Command, CommandId, Flags, registry};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

/// A number that one thread adds to and all may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; to be called by the counter's one writer only, for it is no atomic addition.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Replaces a value that is kept elsewhere and published here.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where the subcommands of each command have their counters; those without any have one, at their own id.
static SUBCOMMANDS_AT: LazyLock<Vec<u16>> = LazyLock::new(|| {
    let all = registry().all();
    let mut next = all.len();
    all.iter()
        .map(|command| {
            let at = next;
            next += command.subcommands.len();
            u16::try_from(at).expect("fewer than 65536 commands with their subcommands")
        })
        .collect()
});

/// How many sets of counters there are: one for each command and subcommand.
pub fn slots() -> usize {
    registry().all().iter().map(|command| 1 + command.subcommands.len()).sum()
}

/// The position of a command's counters, the command being `id` or a subcommand of it.
#[inline]
pub fn slot(id: CommandId, command: &'static Command) -> usize {
    let container = registry().get(id);
    if container.subcommands.is_empty() {
        return usize::from(id);
    }
    match container.subcommands.iter().position(|sub| std::ptr::eq(sub, command)) {
        Some(index) => usize::from(SUBCOMMANDS_AT[usize::from(id)]) + index,
        None => usize::from(id),
    }
}

/// The name of the command at a position, as `client|list`.
pub fn slot_name(slot: usize) -> String {
    let all = registry().all();
    if let Some(command) = all.get(slot) {
        return command.name.to_owned();
    }
    let id = SUBCOMMANDS_AT.partition_point(|&at| usize::from(at) <= slot) - 1;
    let sub = &all[id].subcommands[slot - usize::from(SUBCOMMANDS_AT[id])];
    format!("{}|{}", all[id].name, sub.name)
}

/// Each doubling of a duration is divided into this many buckets (as a power of two).
const SUB_BITS: u32 = 4;
/// Durations from here on share the last bucket: about 17 seconds.
const MAX_DURATION_NS: u64 = (1 << 34) - 1;
/// Number of buckets of a histogram.
pub const BUCKETS: usize = bucket(MAX_DURATION_NS) + 1;

/// The bucket of a duration: exact below 32 ns, then within a sixteenth.
#[inline]
const fn bucket(duration_ns: u64) -> usize {
    let ns = if duration_ns > MAX_DURATION_NS { MAX_DURATION_NS } else { duration_ns };
    if ns < 2 << SUB_BITS {
        return ns as usize;
    }
    let shift = 63 - ns.leading_zeros() - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (ns >> shift) as usize
}

/// The longest duration of a bucket.
fn bucket_end_ns(bucket: usize) -> u64 {
    if bucket < 2 << SUB_BITS {
        return bucket as u64;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    let head = (bucket - (shift << SUB_BITS)) as u64;
    ((head + 1) << shift) - 1
}

/// One command's counters.
#[derive(Default)]
struct CallStats {
    calls: Counter,
    duration_ns: Counter,
    rejected: Counter,
    failed: Counter,
    /// Made when the command first runs.
    histogram: OnceLock<Box<[Counter; BUCKETS]>>,
}

/// One shard's counters.
pub struct CommandStats {
    commands: Box<[CallStats]>,
    /// By error code, the first word of an error. Only errors take this lock.
    errors: Mutex<BTreeMap<String, u64>>,
    processed: Counter,
    error_replies: Counter,
    /// `latency-tracking`.
    tracking: AtomicBool,
}

/// Distinct error codes counted; Redis stops at this number as well.
const MAX_ERRORS: usize = 128;

impl Default for CommandStats {
    fn default() -> Self {
        Self {
            commands: (0..slots()).map(|_| CallStats::default()).collect(),
            errors: Mutex::default(),
            processed: Counter::default(),
            error_replies: Counter::default(),
            tracking: AtomicBool::new(true),
        }
    }
}

impl CommandStats {
    /// Counts a command that ran; `command` is what `id` resolved to.
    #[inline]
    pub fn called(&self, id: CommandId, command: &'static Command, duration_ns: u64, failed: bool) {
        // What the server says to itself is no command of a client.
        if command.flags.has(Flags::INTERNAL) {
            return;
        }
        let stats = &self.commands[slot(id, command)];
        stats.calls.add(1);
        stats.duration_ns.add(duration_ns);
        if failed {
            stats.failed.add(1);
        }
        self.processed.add(1);
        if self.tracking.load(Ordering::Relaxed) {
            let histogram =
                stats.histogram.get_or_init(|| Box::new([const { Counter(AtomicU64::new(0)) }; BUCKETS]));
            histogram[bucket(duration_ns)].add(1);
        }
    }

    /// Counts a command that was refused before it ran (wrong arity, no permission, out of memory, …).
    pub fn rejected(&self, id: CommandId, command: &'static Command, text: &str) {
        self.commands[slot(id, command)].rejected.add(1);
        self.error(text);
    }

    /// Counts an error reply by its code.
    pub fn error(&self, text: &str) {
        self.error_replies.add(1);
        let code = text.split(' ').next().unwrap_or("ERR");
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = errors.get_mut(code) {
            *count += 1;
        } else if errors.len() < MAX_ERRORS {
            errors.insert(code.to_string(), 1);
        }
    }

    /// Switches the histograms on or off.
    pub fn set_tracking(&self, on: bool) {
        self.tracking.store(on, Ordering::Relaxed);
    }

    /// Commands executed so far.
    pub fn processed(&self) -> u64 {
        self.processed.get()
    }

    /// Error replies so far.
    pub fn error_replies(&self) -> u64 {
        self.error_replies.get()
    }
}

/// One command's counters, read at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallTotals {
    pub calls: u64,
    pub duration_ns: u64,
    pub rejected: u64,
    pub failed: u64,
    /// Empty, or calls by the bucket of their duration.
    histogram: Vec<u64>,
}

impl CallTotals {
    /// Calls that the histogram holds.
    pub fn tracked(&self) -> u64 {
        self.histogram.iter().sum()
    }

    /// The duration that `percent` of the calls did not exceed, nanoseconds.
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        let wanted = ((self.tracked() as f64 * percent / 100.0).ceil() as u64).max(1);
        let mut sum = 0;
        for (bucket, count) in self.histogram.iter().enumerate() {
            sum += count;
            if sum >= wanted {
                return bucket_end_ns(bucket);
            }
        }
        0
    }

    /// (microseconds, calls that took no longer), at 1 µs (1024 ns) and its doublings, where the number grows: what
    /// `LATENCY HISTOGRAM` shows.
    pub fn cumulative(&self) -> Vec<(u64, u64)> {
        let total = self.tracked();
        let (mut steps, mut shown, mut sum, mut next) = (Vec::new(), 0, 0, 0);
        for power in 10.. {
            if shown == total {
                break;
            }
            let end = bucket((1 << power) - 1) + 1;
            sum += self.histogram[next..end.min(self.histogram.len())].iter().sum::<u64>();
            next = end.min(self.histogram.len());
            if sum > shown {
                shown = sum;
                steps.push(((1u64 << power) / 1000, sum));
            }
        }
        steps
    }

    fn add(&mut self, stats: &CallStats) {
        self.calls += stats.calls.get();
        self.duration_ns += stats.duration_ns.get();
        self.rejected += stats.rejected.get();
        self.failed += stats.failed.get();
        if let Some(histogram) = stats.histogram.get() {
            self.histogram.resize(BUCKETS, 0);
            for (sum, count) in self.histogram.iter_mut().zip(histogram.iter()) {
                *sum += count.get();
            }
        }
    }

    fn since(&mut self, base: &CallTotals) {
        self.calls = self.calls.saturating_sub(base.calls);
        self.duration_ns = self.duration_ns.saturating_sub(base.duration_ns);
        self.rejected = self.rejected.saturating_sub(base.rejected);
        self.failed = self.failed.saturating_sub(base.failed);
        for (count, base) in self.histogram.iter_mut().zip(&base.histogram) {
            *count = count.saturating_sub(*base);
        }
    }
}

/// The counters of all shards, read at one moment and summed up.
#[derive(Debug, Clone, Default)]
pub struct CommandTotals {
    /// By [`slot`].
    pub commands: Vec<CallTotals>,
    pub errors: BTreeMap<String, u64>,
    pub processed: u64,
    pub error_replies: u64,
}

impl CommandTotals {
    /// Reads the counters of every shard.
    pub fn of<'a>(shards: impl IntoIterator<Item = &'a CommandStats>) -> Self {
        let mut totals = Self { commands: vec![CallTotals::default(); slots()], ..Self::default() };
        for stats in shards {
            for (sum, command) in totals.commands.iter_mut().zip(&stats.commands) {
                sum.add(command);
            }
            for (code, count) in stats.errors.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                *totals.errors.entry(code.clone()).or_default() += count;
            }
            totals.processed += stats.processed();
            totals.error_replies += stats.error_replies();
        }
        totals
    }

    /// What was counted since an earlier reading.
    #[must_use]
    pub fn since(mut self, base: &CommandTotals) -> Self {
        for (command, base) in self.commands.iter_mut().zip(&base.commands) {
            command.since(base);
        }
        for (code, count) in &mut self.errors {
            *count = count.saturating_sub(base.errors.get(code).copied().unwrap_or(0));
        }
        self.errors.retain(|_, count| *count > 0);
        self.processed = self.processed.saturating_sub(base.processed);
        self.error_replies = self.error_replies.saturating_sub(base.error_replies);
        self
    }

    /// The commands that ran while histograms were kept, with their positions.
    pub fn histograms(&self) -> impl Iterator<Item = (usize, &CallTotals)> {
        self.commands.iter().enumerate().filter(|(_, totals)| totals.tracked() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_close() {
        let mut last = 0;
        for ns in 0..200_000u64 {
            let index = bucket(ns);
            assert!(index == last || index == last + 1, "{ns}");
            last = index;
            let end = bucket_end_ns(index);
            assert!(end >= ns && end as f64 <= ns as f64 * 1.0626 + 1.0, "{ns} {end}");
            assert_eq!(bucket(end), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn every_command_and_subcommand_has_a_place_and_a_name() {
        let mut names = std::collections::HashSet::new();
        for (id, command) in registry().all().iter().enumerate() {
            let id = id as CommandId;
            assert_eq!(slot_name(slot(id, command)), command.name);
            for sub in command.subcommands {
                assert_eq!(slot_name(slot(id, sub)), format!("{}|{}", command.name, sub.name));
            }
        }
        assert!((0..slots()).all(|slot| names.insert(slot_name(slot))));
    }

    #[test]
    fn totals_are_sums_since_the_last_reset() {
        let (one, two) = (CommandStats::default(), CommandStats::default());
        let (id, get) = registry().find(b"get").unwrap();
        one.called(id, get, 900, false);
        one.called(id, get, 3000, true);
        one.error("WRONGTYPE text");
        let base = CommandTotals::of([&one, &two]);
        two.called(id, get, 100, false);
        two.rejected(id, get, "OOM text");
        let all = CommandTotals::of([&one, &two]);
        let at = slot(id, get);
        assert_eq!(all.commands[at].cumulative(), [(1, 2), (4, 3)]);
        assert!((100..107).contains(&all.commands[at].percentile_ns(1.0)));
        assert!((3000..3200).contains(&all.commands[at].percentile_ns(99.9)));
        assert_eq!((all.processed, all.error_replies, all.commands[at].duration_ns), (3, 2, 4000));
        let since = all.since(&base);
        assert_eq!(since.commands[at].cumulative(), [(1, 1)]);
        assert_eq!(
            (since.commands[at].calls, since.commands[at].rejected, since.commands[at].failed),
            (1, 1, 0)
        );
        assert_eq!(since.errors.into_iter().collect::<Vec<_>>(), [("OOM".to_string(), 1)]);
    }
}
