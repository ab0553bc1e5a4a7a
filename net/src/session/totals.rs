//! Counters of the server: what each shard publishes, their sums, and the rates of the last moments.

use super::control::Orders;
use braid_core::keyspace::{Keyspace, KeyspaceStats};
use braid_shards::Shard;
use braid_shards::stats::{CommandStats, CommandTotals, Counter};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// A shard's counters, written by it alone.
        #[derive(Default)]
        pub struct ShardCounters {
            $($(#[$doc])* pub $name: Counter,)+
        }

        /// The sums of all shards' [`ShardCounters`].
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Totals {
            fn add(&mut self, shard: &ShardCounters) {
                $(self.$name += shard.$name.get();)+
            }

            /// What was counted since an earlier reading.
            #[must_use]
            pub fn since(self, base: &Totals) -> Self {
                Totals { $($name: self.$name.saturating_sub(base.$name),)+ }
            }
        }
    };
}

totals! {
    connections_received,
    connections_rejected,
    /// But from a master and to replicas, which is counted below.
    net_in_bytes,
    net_out_bytes,
    net_repl_in_bytes,
    net_repl_out_bytes,
    reads,
    writes,
    query_limit_closed,
    output_limit_closed,
    ticks,
    hits,
    misses,
    expired,
    evicted,
    dirty,
    lazyfreed,
    expire_cycle_us,
}

/// What a shard lets the others see.
#[repr(align(128))]
#[derive(Default)]
pub struct ShardPublic {
    pub counters: ShardCounters,
    /// Set when the shard starts.
    pub commands: OnceLock<Arc<CommandStats>>,
    pub orders: Orders,
    /// (keys, keys with an expiry) of each database.
    dbs: Box<[(Counter, Counter)]>,
    /// Any database, published or not, has a key.
    has_keys: AtomicBool,
    pub lazyfree_pending: Counter,
    /// Connections whose commands wait.
    pub blocked_clients: Counter,
    pub watched_keys: Counter,
    pub own_expiries: Counter,
    /// Of snapshots in parts, what waits to be sent from this shard.
    pub part_bytes: Counter,
}

/// Databases up to which their sizes are published with every change.
const DBS_AT_ONCE: usize = 64;

/// What the shard itself remembers of its last publication.
#[derive(Default)]
pub struct Published {
    stats: KeyspaceStats,
    replacements: u64,
    trash: usize,
}

impl ShardPublic {
    pub fn new(databases: usize) -> Self {
        Self { dbs: (0..databases).map(|_| Default::default()).collect(), ..Self::default() }
    }

    /// Publishes what a tick changed; returns whether that was anything of the dataset. Costs a comparison when nothing
    /// did.
    #[inline]
    pub fn publish(&self, shard: &Shard, last: &mut Published) -> bool {
        let Some(keyspace) = shard.keyspace() else { return false };
        let trash = usize::from(keyspace.has_trash());
        let is_replaced = keyspace.replacements != last.replacements;
        if keyspace.stats == last.stats && trash == last.trash && !is_replaced {
            return false;
        }
        let has_changed = keyspace.stats.dirty != last.stats.dirty;
        if has_changed || trash != last.trash || is_replaced {
            self.publish_sizes(keyspace);
        }
        last.replacements = keyspace.replacements;
        last.stats = keyspace.stats;
        last.trash = trash;
        let KeyspaceStats { hits, misses, expired, evicted, dirty, lazyfreed_objects, expire_cycle_us } =
            keyspace.stats;
        let counters = &self.counters;
        counters.hits.set(hits);
        counters.misses.set(misses);
        counters.expired.set(expired);
        counters.evicted.set(evicted);
        counters.dirty.set(dirty);
        counters.lazyfreed.set(lazyfreed_objects);
        counters.expire_cycle_us.set(expire_cycle_us);
        has_changed
    }

    fn publish_sizes(&self, keyspace: &Keyspace) {
        self.lazyfree_pending.set(keyspace.trash_len() as u64);
        let (_, watched) = keyspace.watches.counts();
        self.watched_keys.set(watched as u64);
        self.own_expiries.set(keyspace.own_expiries_len() as u64);
        self.has_keys.store(!keyspace.is_empty(), Ordering::Relaxed);
        for (db, (keys, expires)) in self.dbs.iter().enumerate().take(DBS_AT_ONCE) {
            let db = keyspace.db(db as u16);
            keys.set(db.table.len() as u64);
            expires.set(db.expires as u64);
        }
    }

    /// (keys, keys with an expiry) of a database, as of the shard's last tick that changed something.
    pub fn db(&self, db: usize) -> (u64, u64) {
        self.dbs.get(db).map_or((0, 0), |(keys, expires)| (keys.get(), expires.get()))
    }
}

/// What counts from the last `CONFIG RESETSTAT` on: the readings of that moment.
#[derive(Default)]
struct Base {
    totals: Totals,
    commands: CommandTotals,
}

/// Readings of what all shards publish.
pub struct Statistics {
    pub shards: Vec<ShardPublic>,
    base: Mutex<Base>,
    rates: Mutex<Rates>,
    /// When the next sample of [`Rates`] is due, milliseconds of the node's clock.
    next_sample_ms: AtomicU64,
}

impl Statistics {
    /// Whether any shard has published that it holds keys.
    pub fn has_keys(&self) -> bool {
        self.shards.iter().any(|shard| shard.has_keys.load(Ordering::Relaxed))
    }

    pub fn new(shards: usize, databases: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| ShardPublic::new(databases)).collect(),
            base: Mutex::default(),
            rates: Mutex::default(),
            next_sample_ms: AtomicU64::new(0),
        }
    }

    fn base(&self) -> MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.shards.iter().for_each(|shard| totals.add(&shard.counters));
        totals
    }

    fn all_commands(&self) -> CommandTotals {
        CommandTotals::of(self.shards.iter().filter_map(|shard| shard.commands.get()).map(|stats| &**stats))
    }

    /// Counted since the last reset.
    pub fn totals(&self) -> Totals {
        self.all_totals().since(&self.base().totals)
    }

    /// Counted since the start: changes to the dataset are not reset.
    pub fn dirty(&self) -> u64 {
        self.all_totals().dirty
    }

    pub fn commands(&self) -> CommandTotals {
        self.all_commands().since(&self.base().commands)
    }

    /// `CONFIG RESETSTAT`.
    pub fn reset(&self) {
        let (totals, commands) = (self.all_totals(), self.all_commands());
        *self.base() = Base { totals, commands };
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner) = Rates::default();
    }

    /// Takes a sample of the rates if one is due. To be called by any shard at the end of its ticks.
    #[inline]
    pub fn sample(&self, now_ms: u64) {
        let due = self.next_sample_ms.load(Ordering::Relaxed);
        if now_ms < due {
            return;
        }
        let next = now_ms + SAMPLE_PERIOD_MS;
        if self.next_sample_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.sample_now(now_ms);
        }
    }

    fn sample_now(&self, now_ms: u64) {
        let sample = self.reading(now_ms);
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).add(sample);
    }

    fn reading(&self, now_ms: u64) -> Sample {
        let totals = self.all_totals();
        let commands =
            self.shards.iter().filter_map(|shard| shard.commands.get()).map(|stats| stats.processed()).sum();
        Sample {
            at_ms: now_ms,
            commands,
            net_in: totals.net_in_bytes + totals.net_repl_in_bytes,
            net_out: totals.net_out_bytes + totals.net_repl_out_bytes,
            net_repl_in: totals.net_repl_in_bytes,
            net_repl_out: totals.net_repl_out_bytes,
            ticks: totals.ticks,
        }
    }

    /// The present rates, per second.
    pub fn rates(&self, now_ms: u64) -> Rate {
        let now = self.reading(now_ms);
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).until(now)
    }
}

/// Time between two samples, and how many are kept: the rates are those of the last 1.6 seconds, as in Redis.
const SAMPLE_PERIOD_MS: u64 = 100;
const SAMPLES: usize = 16;

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    at_ms: u64,
    commands: u64,
    net_in: u64,
    net_out: u64,
    net_repl_in: u64,
    net_repl_out: u64,
    ticks: u64,
}

/// Averages over the last moments, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    pub commands: u64,
    pub net_in_bytes: f64,
    pub net_out_bytes: f64,
    /// Of these, from a master and to replicas.
    pub net_repl_in_bytes: f64,
    pub net_repl_out_bytes: f64,
    pub ticks: u64,
}

/// Samples of the last moments. None are taken while the server is idle.
#[derive(Default)]
struct Rates(VecDeque<Sample>);

impl Rates {
    fn add(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The average from the oldest sample that is recent to `now`; after a time without samples, from the last one.
    fn until(&self, now: Sample) -> Rate {
        let oldest_ms = now.at_ms.saturating_sub(SAMPLE_PERIOD_MS * SAMPLES as u64);
        let recent = self.0.iter().find(|sample| sample.at_ms >= oldest_ms);
        let Some(from) = recent.or(self.0.back()) else { return Rate::default() };
        let elapsed_ms = now.at_ms.saturating_sub(from.at_ms);
        // Too short to say anything: what a moment brings is not a rate.
        if elapsed_ms < SAMPLE_PERIOD_MS / 2 {
            return Rate::default();
        }
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 * 1000.0 / elapsed_ms as f64;
        Rate {
            commands: rate(now.commands, from.commands) as u64,
            net_in_bytes: rate(now.net_in, from.net_in),
            net_out_bytes: rate(now.net_out, from.net_out),
            net_repl_in_bytes: rate(now.net_repl_in, from.net_repl_in),
            net_repl_out_bytes: rate(now.net_repl_out, from.net_repl_out),
            ticks: rate(now.ticks, from.ticks) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_the_last_moments_and_fall_when_nothing_happens() {
        let mut rates = Rates::default();
        let sample = |at_ms: u64, commands| Sample { at_ms, commands, ..Sample::default() };
        assert_eq!(rates.until(sample(5, 100)), Rate::default());
        for i in 0..40 {
            rates.add(sample(i * 100, i * 50));
        }
        assert_eq!(rates.until(sample(4000, 2000)).commands, 500);
        assert_eq!(rates.until(sample(13_900, 1950)).commands, 0);
        assert_eq!(rates.until(sample(5600, 1950)).commands, 0);
        let falling = rates.until(sample(4900, 1950)).commands;
        assert!((50..200).contains(&falling), "{falling}");
    }

    #[test]
    fn sums_count_from_the_last_reset() {
        let statistics = Statistics::new(3, 16);
        for (index, shard) in statistics.shards.iter().enumerate() {
            shard.counters.net_in_bytes.add(index as u64 + 1);
            shard.counters.dirty.add(10);
        }
        assert_eq!(statistics.totals().net_in_bytes, 6);
        statistics.reset();
        statistics.shards[1].counters.net_in_bytes.add(5);
        assert_eq!((statistics.totals().net_in_bytes, statistics.dirty()), (5, 30));
    }
}
