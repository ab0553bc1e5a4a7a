//! What a command's implementation is given.

use super::Effects;
use crate::keyspace::{Keys, Keyspace, WatcherId};
use crate::resp::Reply;
use crate::table::EntryMut;
use crate::types::Object;

pub use crate::types::Limits;

/// Wall-clock time of a tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Microseconds since the Unix epoch.
    pub us: u64,
}

impl Time {
    pub fn ms(self) -> u64 {
        self.us / 1000
    }
}

/// How accesses are noted in a key's 24-bit clock field, by `maxmemory-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessClock {
    /// Seconds, wrapping after 194 days.
    Lru,
    /// 16 bits of minutes at the last decay, 8 bits of a logarithmic counter (Redis's LFU).
    Lfu { log_factor: u32, decay_min: u32 },
}

const LFU_INIT: u32 = 5;
const CLOCK_MASK: u32 = 0xff_ffff;

impl AccessClock {
    /// The field of a key just created.
    #[inline]
    pub fn fresh(self, now_ms: u64) -> u32 {
        match self {
            AccessClock::Lru => (now_ms / 1000) as u32 & CLOCK_MASK,
            AccessClock::Lfu { .. } => minutes(now_ms) << 8 | LFU_INIT,
        }
    }

    /// The field of a key that came from outside with its idle time or its access counter, if it came with one.
    pub fn loaded(self, now_ms: u64, idle_s: Option<u64>, frequency: Option<u8>) -> u32 {
        match (self, idle_s, frequency) {
            (AccessClock::Lru, Some(idle_s), _) => (now_ms / 1000).saturating_sub(idle_s) as u32 & CLOCK_MASK,
            (AccessClock::Lfu { .. }, _, Some(count)) => minutes(now_ms) << 8 | u32::from(count),
            _ => self.fresh(now_ms),
        }
    }

    /// Notes an access.
    #[inline]
    pub fn touch(self, entry: &mut EntryMut<'_, Object>, now_ms: u64) {
        match self {
            AccessClock::Lru => entry.set_lru((now_ms / 1000) as u32 & CLOCK_MASK),
            AccessClock::Lfu { log_factor, .. } => {
                let count = self.frequency(entry.lru(), now_ms);
                // The counter grows with probability 1 / (excess * factor + 1); the low bits of the clock and of the
                // entry's address are random enough to decide.
                let excess = count.saturating_sub(LFU_INIT);
                let dice = (now_ms as u32 ^ entry.key().as_ptr() as u32).wrapping_mul(0x9e37_79b9) >> 8;
                let grows = count < 255 && dice.is_multiple_of(excess * log_factor + 1);
                entry.set_lru(minutes(now_ms) << 8 | (count + u32::from(grows)));
            }
        }
    }

    /// Whether accesses are counted (LFU), not timed.
    pub fn counts_accesses(self) -> bool {
        matches!(self, AccessClock::Lfu { .. })
    }

    /// Seconds since the last access (LRU).
    pub fn idle_s(self, clock: u32, now_ms: u64) -> u32 {
        ((now_ms / 1000) as u32 & CLOCK_MASK).wrapping_sub(clock) & CLOCK_MASK
    }

    /// The access counter after decay (LFU).
    pub fn frequency(self, clock: u32, now_ms: u64) -> u32 {
        let AccessClock::Lfu { decay_min, .. } = self else { return 0 };
        let elapsed = minutes(now_ms).wrapping_sub(clock >> 8) & 0xffff;
        let periods = elapsed.checked_div(decay_min).unwrap_or(0);
        (clock & 0xff).saturating_sub(periods)
    }
}

fn minutes(now_ms: u64) -> u32 {
    (now_ms / 60_000) as u32 & 0xffff
}

/// The part of the configuration that commands depend on.
#[derive(Debug, Clone)]
pub struct Settings {
    pub limits: Limits,
    /// `proto-max-bulk-len`: also the longest string value.
    pub max_bulk_len_bytes: u64,
    pub access_clock: AccessClock,
    /// `lazyfree-lazy-expire`: expired keys are announced as UNLINK.
    pub lazyfree_expire: bool,
}

impl Settings {
    /// How the removal of an expired key is told to replicas.
    pub fn expire_verb(&self) -> &'static [u8] {
        if self.lazyfree_expire { b"UNLINK" } else { b"DEL" }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_bulk_len_bytes: 512 << 20,
            access_clock: AccessClock::Lru,
            lazyfree_expire: true,
        }
    }
}

/// One command at work on keys.
pub struct Ctx<'a> {
    pub keys: Keys<'a>,
    pub out: &'a mut Reply,
    pub rng: &'a mut fastrand::Rng,
    pub time: Time,
    /// Who watches, for `WATCH`.
    pub watcher: Option<WatcherId>,
    /// This shard's number and how many there are: part of a `SCAN` cursor.
    pub shard: u16,
    pub shards: u16,
}

impl Ctx<'_> {
    pub fn settings(&self) -> &Settings {
        self.keys.settings
    }

    pub fn now_ms(&self) -> u64 {
        self.keys.now_ms
    }
}

/// One command at work on the whole keyspace: all slices at once.
pub struct WholeCtx<'a> {
    /// In the order of their shards.
    pub slices: &'a mut [&'a mut Keyspace],
    pub effects: &'a mut Effects,
    pub out: &'a mut Reply,
    pub rng: &'a mut fastrand::Rng,
    pub settings: &'a Settings,
    pub db: u16,
    pub time: Time,
    pub replica: bool,
}

impl WholeCtx<'_> {
    pub fn replicate(&mut self, args: &[&[u8]]) {
        self.effects.push(self.db, args);
    }
}
