//! The table of directives that Braid implements, and the [`Config`] struct it gives.
//!
//! A row is a directive: its name, its aliases, the field with its type, how the value is read, the default as it would
//! stand in a file, whether `CONFIG SET` may change it, what the server then has to do, and the line of help. The macro
//! turns every row into a field of [`Config`] and an entry of [`IMPLEMENTED`], so a directive without a field, or a
//! field without a directive, cannot be written. To add a directive, add a row.

use super::table::{Apply, Directive, Field, Group, Kind, Mutability, SpecialField, Support};
use super::values::{
    BindAddresses, Choice, DisklessLoad, EvictionPolicy, FsyncPolicy, KeyspaceEvents, LogLevel, OutputLimits,
    Permission, ReplicaOf, SavePoints, Special, Supervised,
};
use std::collections::BTreeMap;

macro_rules! kind {
    ($field:ident: $type:ty, flag) => {
        Kind::Flag(Field { get: |c| c.$field, set: |c, value| c.$field = value })
    };
    ($field:ident: $type:ty, integer($min:expr, $max:expr)) => {{
        // The range makes the casts below lossless.
        const { assert!(<$type>::MIN as i128 <= $min as i128 && $max as i128 <= <$type>::MAX as i128) };
        Kind::Integer {
            field: Field { get: |c| c.$field as i64, set: |c, value| c.$field = value as $type },
            min: $min as i64,
            max: $max as i64,
        }
    }};
    ($field:ident: $type:ty, size($min:expr)) => {
        kind!($field: $type, size($min, u64::MAX))
    };
    ($field:ident: $type:ty, size($min:expr, $max:expr)) => {
        Kind::Size {
            field: Field { get: |c| c.$field, set: |c, value| c.$field = value },
            min: $min,
            max: $max,
        }
    };
    ($field:ident: $type:ty, octal($max:expr)) => {
        Kind::Octal { field: Field { get: |c| c.$field, set: |c, value| c.$field = value }, max: $max }
    };
    ($field:ident: $type:ty, choice) => {
        Kind::Choice {
            field: Field {
                get: |c| c.$field.index(),
                set: |c, index| c.$field = <$type as Choice>::from_index(index),
            },
            names: <$type as Choice>::NAMES,
        }
    };
    ($field:ident: $type:ty, text) => {
        Kind::Text(Field { get: |c| c.$field.clone(), set: |c, value| c.$field = value })
    };
    ($field:ident: $type:ty, special) => {
        Kind::Special(SpecialField {
            expects: <$type as Special>::EXPECTS,
            accept: |c, words, replace| c.$field.accept(words, replace),
            show: |c| c.$field.show(),
            lines: |c, full| c.$field.lines(full),
        })
    };
}

macro_rules! support {
    () => {
        Support::Implemented
    };
    ($support:expr) => {
        $support
    };
}

macro_rules! directives {
    ($($group:ident {
        $($name:literal [$($alias:literal),*] $field:ident: $type:ty = $kind:ident $(($($range:expr),+))?, $default:expr,
            $mutability:ident $apply:ident, $help:literal $(, $support:expr)?;)+
    })+) => {
        /// The settings of a server: one typed field per directive. See the table in this file for what each means.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $($(#[doc = concat!("`", $name, "`: ", $help)] pub $field: $type,)+)+
            /// Directives of stock files that nothing in Braid reads, where they differ from their default.
            pub(super) kept: BTreeMap<&'static str, String>,
        }

        impl Config {
            /// All fields at the zero of their types, to be filled from the defaults of the table.
            fn blank() -> Self {
                Self { $($($field: Default::default(),)+)+ kept: BTreeMap::new() }
            }
        }

        /// The directives Braid implements, in the order of the help.
        pub static IMPLEMENTED: &[Directive] = &[$($(Directive {
            name: $name,
            aliases: &[$($alias),*],
            group: Group::$group,
            kind: kind!($field: $type, $kind $(($($range),+))?),
            default: $default,
            mutability: Mutability::$mutability,
            apply: Apply::$apply,
            support: support!($($support)?),
            help: $help,
        },)+)+];
    };
}

impl Default for Config {
    /// Every directive at its default.
    fn default() -> Self {
        static DEFAULT: std::sync::LazyLock<Config> = std::sync::LazyLock::new(|| {
            let mut config = Config::blank();
            for directive in IMPLEMENTED {
                let words = [directive.default.to_owned()];
                if let Err(error) = directive.set(&mut config, &words, true) {
                    panic!("the default of {} is not valid: {error}", directive.name);
                }
            }
            config
        });
        DEFAULT.clone()
    }
}

/// The largest value of a directive that Redis keeps in a C int.
const INT: i64 = i32::MAX as i64;
const MB: u64 = 1 << 20;
/// The longest request that may be allowed: positions in it have 32 bits.
const REQUEST_MAX_BYTES: u64 = 3 << 30;
const OFF: Support = Support::Only(&["no"]);

directives! {
    Shards {
        "shards" [] shards: u16 = integer(0, 1024), "0", Startup Nothing,
            "Number of shards, each a thread on a core of its own; 0 takes every core the process may use";
        "busy-poll-us" [] busy_poll_us: u32 = integer(0, 1_000_000), "0", Runtime Timers,
            "Microseconds a shard spins for work before it sleeps; only for cores that run nothing else";
    }
    Network {
        "port" [] port: u16 = integer(0, 65535), "6379", Runtime Listeners,
            "TCP port; 0 listens on no TCP port";
        "bind" [] bind: BindAddresses = special, "* -::*", Runtime Listeners,
            "Addresses to listen on; a leading - marks one that may be missing";
        "unixsocket" [] unixsocket: String = text, "", Startup Nothing,
            "Path of a Unix socket to listen on as well";
        "unixsocketperm" [] unixsocketperm: u32 = octal(0o777), "0", Startup Nothing,
            "Mode of the Unix socket; 0 leaves it to the umask";
        "tcp-backlog" [] tcp_backlog: u32 = integer(0, INT), "511", Startup Nothing,
            "Connections the kernel queues before they are accepted";
        "tcp-keepalive" [] tcp_keepalive_s: u32 = integer(0, INT), "300", Runtime Connections,
            "Seconds between keepalive probes of idle connections; 0 sends none";
        "timeout" [] timeout_s: u32 = integer(0, INT), "0", Runtime Nothing,
            "Seconds after which an idle client is disconnected; 0 never";
        "maxclients" [] maxclients: u32 = integer(1, u32::MAX), "10000", Runtime MaxClients,
            "Most clients at a time";
    }
    Security {
        "requirepass" [] requirepass: String = text, "", Runtime Password,
            "Password clients must give with AUTH";
        "protected-mode" [] protected_mode: bool = flag, "yes", Runtime Nothing,
            "Refuse clients from other hosts as long as no password is set";
        "enable-protected-configs" [] enable_protected_configs: Permission = choice, "no", Startup Nothing,
            "Who may change dir and dbfilename with CONFIG SET";
        "enable-debug-command" [] enable_debug_command: Permission = choice, "no", Startup Nothing,
            "Who may use DEBUG";
    }
    General {
        "daemonize" [] daemonize: bool = flag, "no", Startup Nothing,
            "Run in the background";
        "disable-thp" [] disable_thp: bool = flag, "yes", Startup Nothing,
            "Do without transparent huge pages: the kernel clears one in milliseconds";
        "supervised" [] supervised: Supervised = choice, "no", Startup Nothing,
            "Tell systemd when the server is ready", Support::Only(&["no", "systemd", "auto"]);
        "pidfile" [] pidfile: String = text, "", Startup Nothing,
            "File to write the process id to";
        "loglevel" [] loglevel: LogLevel = choice, "notice", Runtime LogLevel,
            "How much to log";
        "logfile" [] logfile: String = text, "", Startup Nothing,
            "File to log to; empty logs to the standard output";
        "databases" [] databases: u32 = integer(1, 65536), "16", Startup Nothing,
            "Number of databases that SELECT offers";
        "hz" [] hz: u32 = integer(1, 500), "10", Runtime Timers,
            "How often a second background work runs";
        "dynamic-hz" [] dynamic_hz: bool = flag, "yes", Runtime Timers,
            "Run background work more often when many clients are connected";
        "crash-log-enabled" [] crash_log_enabled: bool = flag, "yes", Runtime Nothing,
            "Log where the server stopped when it crashes";
        "shutdown-timeout" [] shutdown_timeout_s: u32 = integer(0, INT), "10", Runtime Nothing,
            "Seconds a shutdown waits for replicas to catch up";
        "busy-reply-threshold" ["lua-time-limit"] busy_reply_threshold_ms: u32 = integer(0, INT), "5000",
            Runtime Nothing, "Milliseconds after which a running script answers others with BUSY";
    }
    Memory {
        "maxmemory" [] maxmemory_bytes: u64 = size(0), "0", Runtime MaxMemory,
            "Most memory the data may use; 0 sets no limit";
        "maxmemory-policy" [] maxmemory_policy: EvictionPolicy = choice, "noeviction", Runtime MaxMemory,
            "Which keys are evicted when memory is full", Support::Only(&["noeviction"]);
        "maxmemory-samples" [] maxmemory_samples: u32 = integer(1, 64), "5", Runtime MaxMemory,
            "Keys compared for each eviction";
        "replica-ignore-maxmemory" ["slave-ignore-maxmemory"] replica_ignore_maxmemory: bool = flag, "yes",
            Runtime MaxMemory, "Let a replica leave eviction to its master";
        "lfu-log-factor" [] lfu_log_factor: u32 = integer(0, INT), "10", Runtime MaxMemory,
            "How slowly the access counter of LFU policies grows";
        "lfu-decay-time" [] lfu_decay_time_min: u32 = integer(0, INT), "1", Runtime MaxMemory,
            "Minutes after which the access counter halves";
        "active-expire-effort" [] active_expire_effort: u32 = integer(1, 10), "1", Runtime Timers,
            "How hard to look for expired keys, 1 to 10";
        "lazyfree-lazy-eviction" [] lazyfree_lazy_eviction: bool = flag, "no", Runtime Nothing,
            "Evict as UNLINK rather than DEL in the stream";
        "lazyfree-lazy-expire" [] lazyfree_lazy_expire: bool = flag, "no", Runtime Nothing,
            "Expire as UNLINK rather than DEL in the stream";
        "lazyfree-lazy-server-del" [] lazyfree_lazy_server_del: bool = flag, "no", Runtime Nothing,
            "Free overwritten values in the background";
        "lazyfree-lazy-user-del" [] lazyfree_lazy_user_del: bool = flag, "no", Runtime Nothing,
            "Treat DEL as UNLINK";
        "lazyfree-lazy-user-flush" [] lazyfree_lazy_user_flush: bool = flag, "no", Runtime Nothing,
            "Treat FLUSHALL and FLUSHDB as asynchronous";
    }
    Snapshots {
        "dir" [] dir: String = text, "./", Protected Dir,
            "Working directory, where snapshots are kept";
        "dbfilename" [] dbfilename: String = text, "dump.rdb", Protected Nothing,
            "Name of the snapshot file";
        "save" [] save: SavePoints = special, "3600 1 300 100 60 10000", Runtime SavePoints,
            "Snapshot after so many seconds if so many keys changed; \"\" never";
        "rdbcompression" [] rdbcompression: bool = flag, "yes", Runtime Nothing,
            "Compress long strings in snapshots";
        "rdbchecksum" [] rdbchecksum: bool = flag, "yes", Startup Nothing,
            "End snapshots with a checksum, and verify it";
        "stop-writes-on-bgsave-error" [] stop_writes_on_bgsave_error: bool = flag, "yes", Runtime Nothing,
            "Refuse writes while the last snapshot failed";
    }
    Replication {
        "replicaof" ["slaveof"] replicaof: ReplicaOf = special, "", Startup Nothing,
            "Follow a master";
        "masterauth" ["primaryauth"] masterauth: String = text, "", Runtime Replication,
            "Password for the master";
        "masteruser" ["primaryuser"] masteruser: String = text, "", Runtime Replication,
            "User for the master";
        "replica-serve-stale-data" ["slave-serve-stale-data"] replica_serve_stale_data: bool = flag, "yes",
            Runtime Nothing, "Answer from old data while the link to the master is down";
        "replica-read-only" ["slave-read-only"] replica_read_only: bool = flag, "yes", Runtime Nothing,
            "Refuse writes on a replica";
        "replica-priority" ["slave-priority"] replica_priority: u32 = integer(0, INT), "100", Runtime Nothing,
            "Sentinel promotes the lowest number; 0 is never promoted";
        "replica-announce-ip" ["slave-announce-ip"] replica_announce_ip: String = text, "", Runtime Replication,
            "Address the master shows for this replica";
        "replica-announce-port" ["slave-announce-port"] replica_announce_port: u16 = integer(0, 65535), "0",
            Runtime Replication, "Port the master shows for this replica; 0 is the port it listens on";
        "replica-announced" [] replica_announced: bool = flag, "yes", Runtime Nothing,
            "Let Sentinel see this replica";
        "replica-lazy-flush" ["slave-lazy-flush"] replica_lazy_flush: bool = flag, "no", Runtime Nothing,
            "Free the old dataset of a full sync in the background";
        "repl-backlog-size" [] repl_backlog_size_bytes: u64 = size(1), "64mb", Runtime Backlog,
            "Stream kept in memory for replicas that come back";
        "repl-backlog-disk-size" [] repl_backlog_disk_size_bytes: u64 = size(0), "4gb", Runtime Backlog,
            "Stream kept on disk for replicas that fell behind memory; 0 keeps none";
        "repl-backlog-ttl" [] repl_backlog_ttl_s: u32 = integer(0, INT), "3600", Runtime Backlog,
            "Seconds the stream is kept after the last replica left; 0 for ever";
        "repl-timeout" [] repl_timeout_s: u32 = integer(1, INT), "60", Runtime Replication,
            "Seconds of silence after which a replication link is closed";
        "repl-ping-replica-period" ["repl-ping-slave-period"] repl_ping_replica_period_s: u32 = integer(1, INT), "10",
            Runtime Replication, "Seconds between PINGs to replicas";
        "repl-diskless-sync" [] repl_diskless_sync: bool = flag, "yes", Runtime Replication,
            "Send snapshots straight to replicas instead of through a file";
        "repl-diskless-sync-delay" [] repl_diskless_sync_delay_s: u32 = integer(0, INT), "5", Runtime Replication,
            "Seconds to wait for more replicas before a snapshot starts";
        "repl-diskless-sync-max-replicas" [] repl_diskless_sync_max_replicas: u32 = integer(0, INT), "0",
            Runtime Replication, "Start the snapshot at once when so many replicas wait; 0 always waits";
        "repl-sync-connections" [] repl_sync_connections: u32 = integer(0, 16), "0", Runtime Replication,
            "Connections a replica fetches a Braid master's snapshot on; 0 is as many as shards";
        "repl-diskless-load" [] repl_diskless_load: DisklessLoad = choice, "swapdb", Runtime Replication,
            "What becomes of the old dataset while a new one is loaded: it serves (swapdb), goes when a file holds the \
             new one (disabled; on-empty-db: unless it is empty), or goes first (flush-before-load)";
        "repl-disable-tcp-nodelay" [] repl_disable_tcp_nodelay: bool = flag, "no", Runtime Replication,
            "Let the kernel gather the stream into fewer packets";
        "min-replicas-to-write" ["min-slaves-to-write"] min_replicas_to_write: u32 = integer(0, INT), "0",
            Runtime Replication, "Refuse writes with fewer replicas in step than this";
        "min-replicas-max-lag" ["min-slaves-max-lag"] min_replicas_max_lag_s: u32 = integer(0, INT), "10",
            Runtime Replication, "Seconds a replica may be silent and still count as in step";
        "protected-restart" [] protected_restart: bool = flag, "yes", Runtime Replication,
            "Do not let a master that restarted empty wipe its replicas";
    }
    AppendOnly {
        "appendonly" [] appendonly: bool = flag, "no", Runtime AppendOnly,
            "Log every write to disk", OFF;
        "appendfsync" [] appendfsync: FsyncPolicy = choice, "everysec", Runtime AppendOnly,
            "When the log of writes must have reached the disk";
    }
    Limits {
        "client-output-buffer-limit" [] client_output_buffer_limit: OutputLimits = special, OutputLimits::DEFAULT,
            Runtime OutputLimits, "Close clients of a class that read too slowly; 0 sets no limit";
        "client-query-buffer-limit" [] client_query_buffer_limit_bytes: u64 = size(MB, REQUEST_MAX_BYTES), "1gb",
            Runtime Connections,
            "Longest unfinished request of a client";
        "proto-max-bulk-len" [] proto_max_bulk_len_bytes: u64 = size(MB, REQUEST_MAX_BYTES), "512mb",
            Runtime Connections,
            "Longest string in a request";
    }
    Monitoring {
        "slowlog-log-slower-than" ["commandlog-execution-slower-than"] slowlog_log_slower_than_us: i64
            = integer(-1, i64::MAX), "10000", Runtime SlowLog,
            "Microseconds from which a command is in the slow log; -1 logs none, 0 all";
        "slowlog-max-len" ["commandlog-slow-execution-max-len"] slowlog_max_len: u64 = integer(0, i64::MAX), "128",
            Runtime SlowLog, "Entries the slow log keeps";
        "latency-monitor-threshold" [] latency_monitor_threshold_ms: u64 = integer(0, i64::MAX), "0", Runtime Nothing,
            "Milliseconds from which LATENCY records an event; 0 records none";
        "latency-tracking" [] latency_tracking: bool = flag, "yes", Runtime Nothing,
            "Keep a histogram of latencies per command";
        "notify-keyspace-events" [] notify_keyspace_events: KeyspaceEvents = special, "", Runtime KeyspaceEvents,
            "Events about keys to publish, as letters of KEg$lshzxetdmnA", Support::Only(&[""]);
    }
    Encodings {
        "hash-max-listpack-entries" ["hash-max-ziplist-entries"] hash_max_listpack_entries: u64 = integer(0, i64::MAX),
            "512", Runtime Encodings, "Most fields of a hash in the compact form";
        "hash-max-listpack-value" ["hash-max-ziplist-value"] hash_max_listpack_value_bytes: u64 = integer(0, i64::MAX),
            "64", Runtime Encodings, "Longest field or value of a hash in the compact form";
        "list-max-listpack-size" ["list-max-ziplist-size"] list_max_listpack_size: i32 = integer(-INT, INT), "-2",
            Runtime Encodings, "Size of a list's nodes: elements, or -1 to -5 for 4 to 64 kb";
        "list-compress-depth" [] list_compress_depth: u32 = integer(0, INT), "0", Runtime Encodings,
            "Nodes at each end of a list that are never compressed; 0 compresses none";
        "set-max-intset-entries" [] set_max_intset_entries: u64 = integer(0, i64::MAX), "512", Runtime Encodings,
            "Most members of a set of integers in the compact form";
        "set-max-listpack-entries" [] set_max_listpack_entries: u64 = integer(0, i64::MAX), "128", Runtime Encodings,
            "Most members of a set in the compact form";
        "set-max-listpack-value" [] set_max_listpack_value_bytes: u64 = integer(0, i64::MAX), "64", Runtime Encodings,
            "Longest member of a set in the compact form";
        "zset-max-listpack-entries" ["zset-max-ziplist-entries"] zset_max_listpack_entries: u64 = integer(0, i64::MAX),
            "128", Runtime Encodings, "Most members of a sorted set in the compact form";
        "zset-max-listpack-value" ["zset-max-ziplist-value"] zset_max_listpack_value_bytes: u64 = integer(0, i64::MAX),
            "64", Runtime Encodings, "Longest member of a sorted set in the compact form";
        "stream-node-max-bytes" [] stream_node_max_bytes: u64 = size(0), "4096", Runtime Encodings,
            "Size of a stream's nodes; 0 sets no limit";
        "stream-node-max-entries" [] stream_node_max_entries: u64 = integer(0, i64::MAX), "100", Runtime Encodings,
            "Entries of a stream's nodes; 0 sets no limit";
        "hll-sparse-max-bytes" [] hll_sparse_max_bytes: u64 = size(0), "3000", Runtime Encodings,
            "Longest HyperLogLog in the sparse form";
    }
}
