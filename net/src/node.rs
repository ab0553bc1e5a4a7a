//! What all shards of a process know: configuration, counters, who is connected. Nothing here holds data of keys, and
//! nothing here is touched on a request's path but counters.

use crate::config;
use crate::holds::WalkHolds;
use crate::persistence::Persistence;
use crate::ring::Waker;
use crate::session::clients::Registry;
use crate::session::control::{Order, Pause};
use crate::session::latency::Latency;
use crate::session::slowlog::SlowLog;
use crate::session::totals::Statistics;
use braid_core::command::Settings;
use braid_core::table::HashKey;
use braid_replication::home::Report;
use braid_replication::link::LinkReport;
use braid_shards::{Counters, ShardId, SlotMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The version of Redis whose behaviour clients may expect (`redis_version` in `INFO` and `HELLO`).
pub const REDIS_VERSION: &str = "8.2.0";

/// How far the stream is; see the fields of [`Node`].
pub struct StreamNow {
    pub is_active: bool,
    pub end_offset: u64,
    pub written_offset: u64,
    pub next_ticket: u64,
    pub good_replicas: usize,
}

/// A replica's view of its master.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub link: LinkReport,
    /// Commands of the stream that failed.
    pub failed_commands: u64,
    /// The master's dataset was empty, and this node's is not: it keeps it.
    pub has_refused: bool,
}

/// A number that changes all the time, on a cache line of its own: what other shards read for every command must not share
/// one with it.
#[derive(Default)]
#[repr(align(128))]
pub struct OwnLine(AtomicU64);

impl std::ops::Deref for OwnLine {
    type Target = AtomicU64;

    fn deref(&self) -> &AtomicU64 {
        &self.0
    }
}

/// Shared by all shards; see the module. Most fields are read often and change seldom; who writes one of those writes only
/// what differs, for a write takes the line from all who read it.
pub struct Node {
    pub config: config::Shared,
    /// Where `CONFIG REWRITE` writes.
    pub config_path: Option<PathBuf>,
    pub map: SlotMap,
    pub hash: HashKey,
    pub counters: Arc<Counters>,
    pub wakers: OnceLock<Vec<Waker>>,
    pub started: Instant,
    /// A random name for this run of the process, 40 hex digits (`INFO`: `run_id`).
    pub run_id: String,
    pub next_client: AtomicU64,
    pub connected_clients: AtomicUsize,
    pub clients: Registry,
    pub statistics: Statistics,
    pub pause: Pause,
    pub persistence: Persistence,
    slowlog: Mutex<SlowLog>,
    latency: Mutex<Latency>,
    /// The TCP sockets it listens on, by their addresses, to be kept when others are added.
    pub tcp_listeners: Mutex<Vec<(SocketAddr, OwnedFd)>>,
    /// Seconds since the Unix epoch at the start.
    pub started_unix_s: u64,
    /// Most memory that was in use, and when that was, seconds since the Unix epoch.
    pub peak_memory_bytes: AtomicU64,
    pub peak_memory_unix_s: AtomicU64,
    /// Memory in use before the first client came.
    pub startup_memory_bytes: AtomicU64,
    /// What waits for replicas beyond the backlog, as the home shard last published it.
    pub waiting_bytes: OwnLine,
    /// Memory in use that counts for `maxmemory`, as last measured.
    limited_memory_bytes: OwnLine,
    /// `INFO replication` and `ROLE`, as the home shard last published them.
    pub replication: Mutex<Report>,
    /// The link to the master as last published; None on a master.
    pub upstream: Mutex<Option<Upstream>>,
    /// This node follows a master.
    pub replica: AtomicBool,
    pub is_link_up: AtomicBool,
    /// Offsets behind what a replica received and what it applied.
    pub read_offset: OwnLine,
    pub applied_offset: OwnLine,
    end_offset: OwnLine,
    /// Behind the last effect before `end_offset`.
    written_offset: OwnLine,
    /// The stream is being collected.
    pub has_stream: AtomicBool,
    /// The ticket that is merged next: `end_offset` has all before it.
    pub next_ticket: OwnLine,
    /// Connections of all shards that wait for the merge.
    pub behind: AtomicUsize,
    /// Replicas in step (`min-replicas-max-lag`).
    pub good_replicas: AtomicUsize,
    /// The shards' walks for a snapshot are to wait: a replica reads slowly.
    pub snapshot_paused: AtomicBool,
    /// And those of single shards.
    pub walk_holds: WalkHolds,
    /// Set once: every shard leaves its loop.
    pub stopping: AtomicBool,
}

impl Node {
    /// The node follows a master from now on, or is one; the log's lines say which.
    pub fn set_replica(&self, replica: bool) {
        self.replica.store(replica, Ordering::SeqCst);
        crate::log::set_role(if replica { crate::log::Role::Replica } else { crate::log::Role::Master });
    }

    pub fn new(config: config::Config, config_path: Option<PathBuf>, shards: usize) -> Self {
        let mut rng = fastrand::Rng::new();
        let databases = config.databases as usize;
        let is_replica = config.replicaof.0.is_some();
        Self {
            clients: Registry::new(shards),
            statistics: Statistics::new(shards, databases),
            pause: Pause::default(),
            persistence: Persistence::new(unix_us() / 1_000_000),
            slowlog: Mutex::default(),
            latency: Mutex::default(),
            tcp_listeners: Mutex::default(),
            started_unix_s: unix_us() / 1_000_000,
            peak_memory_bytes: AtomicU64::new(0),
            peak_memory_unix_s: AtomicU64::new(0),
            startup_memory_bytes: AtomicU64::new(0),
            config: config::Shared::new(config),
            config_path,
            map: SlotMap::new(shards),
            hash: HashKey::from_seed(rng.u64(..)),
            counters: Arc::new(Counters::new(shards)),
            wakers: OnceLock::new(),
            started: Instant::now(),
            run_id: (0..40).map(|_| char::from_digit(rng.u32(..16), 16).expect("a hex digit")).collect(),
            next_client: AtomicU64::new(1),
            connected_clients: AtomicUsize::new(0),
            waiting_bytes: OwnLine::default(),
            limited_memory_bytes: OwnLine::default(),
            replication: Mutex::default(),
            upstream: Mutex::default(),
            replica: AtomicBool::new(is_replica),
            is_link_up: AtomicBool::new(false),
            read_offset: OwnLine::default(),
            applied_offset: OwnLine::default(),
            end_offset: OwnLine::default(),
            written_offset: OwnLine::default(),
            has_stream: AtomicBool::new(false),
            next_ticket: OwnLine::default(),
            behind: AtomicUsize::new(0),
            good_replicas: AtomicUsize::new(0),
            snapshot_paused: AtomicBool::new(false),
            walk_holds: WalkHolds::new(shards),
            stopping: AtomicBool::new(false),
        }
    }

    /// Whether this node follows a master.
    pub fn is_replica(&self) -> bool {
        self.replica.load(Ordering::Relaxed)
    }

    /// What waits for replicas beyond the backlog. It does not count for `maxmemory`: a slow replica is no reason to refuse
    /// writes.
    pub fn replica_buffers_bytes(&self) -> u64 {
        let parts = self.statistics.shards.iter().map(|shard| shard.part_bytes.get());
        self.waiting_bytes.load(Ordering::Relaxed) + parts.sum::<u64>()
    }

    /// Whether memory in use exceeds `maxmemory_bytes` (0: no limit).
    pub fn is_out_of_memory(&self, maxmemory_bytes: u64) -> bool {
        maxmemory_bytes > 0 && self.limited_memory_bytes.load(Ordering::Relaxed) > maxmemory_bytes
    }

    /// `master_repl_offset`.
    pub fn end_offset(&self) -> u64 {
        self.end_offset.load(Ordering::Relaxed)
    }

    /// `master_failover_state`, as the home shard last published it.
    pub fn failover_state(&self) -> &'static str {
        self.replication.lock().unwrap_or_else(PoisonError::into_inner).failover_state
    }

    /// What replicas must have applied to have all that was written.
    pub fn written_offset(&self) -> u64 {
        self.written_offset.load(Ordering::Relaxed)
    }

    /// Publishes the stream as the home shard, which alone writes these, has it. True: the merge went on.
    pub fn publish_stream(&self, stream: &StreamNow) -> bool {
        if self.has_stream.load(Ordering::Relaxed) != stream.is_active {
            self.has_stream.store(stream.is_active, Ordering::SeqCst);
        }
        if self.good_replicas.load(Ordering::Relaxed) != stream.good_replicas {
            self.good_replicas.store(stream.good_replicas, Ordering::Relaxed);
        }
        for (shown, now) in
            [(&self.end_offset, stream.end_offset), (&self.written_offset, stream.written_offset)]
        {
            if shown.load(Ordering::Relaxed) != now {
                shown.store(now, Ordering::Relaxed);
            }
        }
        // Behind the offset: who sees the ticket sees that, too.
        let has_merged = self.next_ticket.load(Ordering::Relaxed) != stream.next_ticket;
        if has_merged {
            self.next_ticket.store(stream.next_ticket, Ordering::SeqCst);
        }
        has_merged
    }

    /// Has the shards' walks for a snapshot wait, or not; for the home shard alone. True: they may go on from now on.
    pub fn pause_walks(&self, paused: bool) -> bool {
        let was_paused = self.snapshot_paused.load(Ordering::Relaxed);
        if was_paused != paused {
            self.snapshot_paused.store(paused, Ordering::SeqCst);
        }
        was_paused && !paused
    }

    /// Measures memory in use.
    pub fn refresh_memory(&self) -> u64 {
        let used_bytes = crate::memory::used_bytes();
        let limited_bytes = used_bytes.saturating_sub(self.replica_buffers_bytes());
        self.limited_memory_bytes.store(limited_bytes, Ordering::Relaxed);
        if self.peak_memory_bytes.fetch_max(used_bytes, Ordering::Relaxed) < used_bytes {
            self.peak_memory_unix_s.store(unix_us() / 1_000_000, Ordering::Relaxed);
        }
        used_bytes
    }

    pub fn slowlog(&self) -> MutexGuard<'_, SlowLog> {
        self.slowlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn latency(&self) -> MutexGuard<'_, Latency> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a shard for something.
    pub fn order(&self, shard: ShardId, order: Order) {
        self.statistics.shards[usize::from(shard)].orders.push(order);
        self.wake(shard);
    }

    /// Wakes a shard, to look at what changed.
    pub fn wake(&self, shard: ShardId) {
        if let Some(waker) = self.wakers.get().and_then(|wakers| wakers.get(usize::from(shard))) {
            waker.wake();
        }
    }

    /// Whether a shard's walk for a snapshot is to wait.
    pub fn is_walk_paused(&self, shard: ShardId) -> bool {
        self.snapshot_paused.load(Ordering::Relaxed) || self.walk_holds.hold(shard)
    }

    /// Asks every shard for something.
    pub fn order_all(&self, order: impl Fn() -> Order) {
        for shard in 0..self.map.shards() {
            self.order(shard as ShardId, order());
        }
    }

    /// Wakes every shard, to look at what changed.
    pub fn wake_all(&self) {
        for waker in self.wakers.get().into_iter().flatten() {
            waker.wake();
        }
    }

    /// Asks every shard to leave its loop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.persistence.interrupt();
        self.wake_all();
    }
}

/// Wall-clock time, microseconds since the Unix epoch.
pub fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as u64)
}

/// What commands depend on, from the configuration.
pub fn settings(config: &config::Config) -> Settings {
    use braid_core::command::{AccessClock, Limits};
    Settings {
        limits: Limits {
            list_max_listpack_size: config.list_max_listpack_size,
            hash_max_listpack_entries: config.hash_max_listpack_entries as usize,
            hash_max_listpack_value_bytes: config.hash_max_listpack_value_bytes as usize,
            set_max_intset_entries: config.set_max_intset_entries as usize,
            set_max_listpack_entries: config.set_max_listpack_entries as usize,
            set_max_listpack_value_bytes: config.set_max_listpack_value_bytes as usize,
            zset_max_listpack_entries: config.zset_max_listpack_entries as usize,
            zset_max_listpack_value_bytes: config.zset_max_listpack_value_bytes as usize,
        },
        max_bulk_len_bytes: config.proto_max_bulk_len_bytes,
        access_clock: AccessClock::Lru,
        lazyfree_expire: config.lazyfree_lazy_expire,
    }
}
