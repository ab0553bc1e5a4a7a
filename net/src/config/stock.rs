//! Directives that stock `redis.conf` and `valkey.conf` files have and Braid does not implement.
//!
//! An honest answer for each: where the value makes no difference to what a client can see, it is taken, kept for
//! `CONFIG GET` and `CONFIG REWRITE`, and noted in the log; where it would promise something, only the value that asks
//! for nothing is taken; and where there is no such value, any use is an error that says what to do instead.

use super::table::{Apply, Directive, Group, Kind, Mutability, Shape, Support};
use Shape::{Flag, Integer, OneOf, Size, Text, Words};

const INT: i64 = i32::MAX as i64;
const NO: &[&str] = &["no"];
const ZERO: &[&str] = &["0"];
const EMPTY: &[&str] = &[""];

/// A value that does nothing here.
const fn ignored(
    name: &'static str,
    aliases: &'static [&'static str],
    shape: Shape,
    default: &'static str,
    why: &'static str,
) -> Directive {
    row(name, aliases, shape, default, Support::NoEffect(why))
}

/// A value that must be one of `values`.
const fn only(
    name: &'static str,
    aliases: &'static [&'static str],
    shape: Shape,
    default: &'static str,
    values: &'static [&'static str],
) -> Directive {
    row(name, aliases, shape, default, Support::Only(values))
}

/// A directive that cannot be used at all.
const fn refused(name: &'static str, why: &'static str) -> Directive {
    row(name, &[], Words, "", Support::Refused(why))
}

const fn row(
    name: &'static str,
    aliases: &'static [&'static str],
    shape: Shape,
    default: &'static str,
    support: Support,
) -> Directive {
    Directive {
        name,
        aliases,
        group: Group::Stock,
        kind: Kind::Kept(shape),
        default,
        mutability: Mutability::Runtime,
        apply: Apply::Nothing,
        support,
        help: "",
    }
}

const REHASH: &str = "tables grow piece by piece at all times";
const ALLOCATOR: &str = "it belongs to another allocator";
const THREADS: &str = "the number of shards is set with shards";
const NO_AOF: &str = "there is no append-only file";
const NO_TLS: &str = "there is no TLS";
const NO_CLUSTER: &str = "there is no cluster mode";
const NO_SYSLOG: &str = "there is no syslog output";
const NO_ACL: &str = "there are no ACL users";
const NO_OOM: &str = "the kernel's choice of victims is left alone";
const LAYOUT: &str = "it tunes the internals of another server";
const CHECKED: &str = "serialized values are always checked";

/// The table.
pub static STOCK: &[Directive] = &[
    // The process.
    ignored("activerehashing", &[], Flag, "yes", REHASH),
    ignored("always-show-logo", &[], Flag, "no", "there is no logo"),
    ignored("set-proc-title", &[], Flag, "yes", "the process title is left alone"),
    ignored(
        "proc-title-template",
        &[],
        Text,
        "{title} {listen-addr} {server-mode}",
        "the process title is left alone",
    ),
    ignored("crash-memcheck-enabled", &[], Flag, "yes", "there is no memory check"),
    ignored("locale-collate", &[], Text, "", "strings are compared by their bytes"),
    ignored("ignore-warnings", &[], Text, "", "there are no such warnings"),
    only("oom-score-adj", &[], OneOf(&["no", "yes", "relative", "absolute"]), "no", NO),
    ignored("oom-score-adj-values", &[], Words, "0 200 800", NO_OOM),
    only("syslog-enabled", &[], Flag, "no", NO),
    ignored("syslog-ident", &[], Text, "redis", NO_SYSLOG),
    ignored("syslog-facility", &[], Text, "local0", NO_SYSLOG),
    only("shutdown-on-sigint", &[], Words, "default", &["default"]),
    only("shutdown-on-sigterm", &[], Words, "default", &["default"]),
    only("hide-user-data-from-log", &[], Flag, "no", &["no", "yes"]),
    only("log-format", &[], Text, "legacy", &["legacy"]),
    only("log-timestamp-format", &[], Text, "legacy", &["legacy"]),
    only("import-mode", &[], Flag, "no", NO),
    only("extended-redis-compatibility", &[], Flag, "no", &["no", "yes"]),
    ignored("hash-seed", &[], Text, "", "every start has a seed of its own"),
    ignored("availability-zone", &[], Text, "", LAYOUT),
    // Threads and processors.
    ignored("io-threads", &[], Integer(1, 128), "1", THREADS),
    ignored("io-threads-do-reads", &[], Flag, "no", THREADS),
    ignored("prefetch-batch-max-size", &[], Integer(0, 128), "16", LAYOUT),
    only("server-cpulist", &["server_cpulist"], Text, "", EMPTY),
    only("bio-cpulist", &["bio_cpulist"], Text, "", EMPTY),
    only("aof-rewrite-cpulist", &["aof_rewrite_cpulist"], Text, "", EMPTY),
    only("bgsave-cpulist", &["bgsave_cpulist"], Text, "", EMPTY),
    ignored("max-new-connections-per-cycle", &[], Integer(1, 1000), "10", LAYOUT),
    ignored("max-new-tls-connections-per-cycle", &[], Integer(1, 1000), "1", NO_TLS),
    ignored("vset-force-single-threaded-execution", &[], Flag, "no", LAYOUT),
    // Memory.
    ignored("jemalloc-bg-thread", &[], Flag, "yes", ALLOCATOR),
    only("activedefrag", &[], Flag, "no", NO),
    ignored("active-defrag-cycle-min", &[], Integer(1, 99), "1", ALLOCATOR),
    ignored("active-defrag-cycle-max", &[], Integer(1, 99), "25", ALLOCATOR),
    ignored("active-defrag-cycle-us", &[], Integer(0, 100_000), "500", ALLOCATOR),
    ignored("active-defrag-ignore-bytes", &[], Size, "100mb", ALLOCATOR),
    ignored("active-defrag-max-scan-fields", &[], Integer(1, INT), "1000", ALLOCATOR),
    ignored("active-defrag-threshold-lower", &[], Integer(0, 1000), "10", ALLOCATOR),
    ignored("active-defrag-threshold-upper", &[], Integer(0, 1000), "100", ALLOCATOR),
    ignored("maxmemory-eviction-tenacity", &[], Integer(0, 100), "10", "eviction works in slices of time"),
    only("maxmemory-clients", &[], Text, "0", &["0", "0%"]),
    ignored(
        "tracking-table-max-keys",
        &[],
        Integer(0, i64::MAX),
        "1000000",
        "there is no client-side caching",
    ),
    ignored(
        "list-max-ziplist-entries",
        &[],
        Integer(0, INT),
        "512",
        "it was replaced by list-max-listpack-size",
    ),
    ignored(
        "list-max-ziplist-value",
        &[],
        Integer(0, INT),
        "64",
        "it was replaced by list-max-listpack-size",
    ),
    // Network.
    only("bind-source-addr", &[], Text, "", EMPTY),
    only("socket-mark-id", &[], Integer(0, u32::MAX as i64), "0", ZERO),
    only("unixsocketgroup", &[], Text, "", EMPTY),
    only("mptcp", &[], Flag, "no", NO),
    only("repl-mptcp", &[], Flag, "no", NO),
    only("rdma-port", &[], Integer(0, 65535), "0", ZERO),
    only("rdma-bind", &[], Text, "", EMPTY),
    ignored("rdma-rx-size", &[], Size, "1048576", "there is no RDMA"),
    ignored("rdma-completion-vector", &[], Integer(-1, 1024), "-1", "there is no RDMA"),
    // TLS.
    only("tls-port", &[], Integer(0, 65535), "0", ZERO),
    only("tls-replication", &[], Flag, "no", NO),
    only("tls-cluster", &[], Flag, "no", NO),
    ignored("tls-cert-file", &[], Text, "", NO_TLS),
    ignored("tls-key-file", &[], Text, "", NO_TLS),
    ignored("tls-key-file-pass", &[], Text, "", NO_TLS),
    ignored("tls-client-cert-file", &[], Text, "", NO_TLS),
    ignored("tls-client-key-file", &[], Text, "", NO_TLS),
    ignored("tls-client-key-file-pass", &[], Text, "", NO_TLS),
    ignored("tls-dh-params-file", &[], Text, "", NO_TLS),
    ignored("tls-ca-cert-file", &[], Text, "", NO_TLS),
    ignored("tls-ca-cert-dir", &[], Text, "", NO_TLS),
    ignored("tls-auth-clients", &[], OneOf(&["no", "yes", "optional"]), "yes", NO_TLS),
    ignored("tls-auth-clients-user", &[], Text, "off", NO_TLS),
    ignored("tls-auto-reload-interval", &[], Integer(0, INT), "0", NO_TLS),
    ignored("tls-protocols", &[], Text, "", NO_TLS),
    ignored("tls-ciphers", &[], Text, "", NO_TLS),
    ignored("tls-ciphersuites", &[], Text, "", NO_TLS),
    ignored("tls-prefer-server-ciphers", &[], Flag, "no", NO_TLS),
    ignored("tls-session-caching", &[], Flag, "yes", NO_TLS),
    ignored("tls-session-cache-size", &[], Integer(0, INT), "20480", NO_TLS),
    ignored("tls-session-cache-timeout", &[], Integer(0, INT), "300", NO_TLS),
    // Users and modules.
    only("aclfile", &[], Text, "", EMPTY),
    ignored("acllog-max-len", &[], Integer(0, i64::MAX), "128", NO_ACL),
    ignored("acl-pubsub-default", &[], OneOf(&["allchannels", "resetchannels"]), "resetchannels", NO_ACL),
    ignored("enable-module-command", &[], OneOf(&["no", "yes", "local"]), "no", "there are no modules"),
    refused("user", "there are no ACL users; set requirepass"),
    refused("rename-command", "commands keep their names"),
    refused("loadmodule", "there are no modules"),
    refused("loadmodule-ex", "there are no modules"),
    // Snapshots, replication.
    ignored("rdb-save-incremental-fsync", &[], Flag, "yes", "snapshots are written past the page cache"),
    only("rdb-del-sync-files", &[], Flag, "no", NO),
    only("rdb-version-check", &[], OneOf(&["strict", "relaxed"]), "strict", &["strict"]),
    ignored("sanitize-dump-payload", &[], OneOf(&["no", "yes", "clients"]), "no", CHECKED),
    only(
        "propagation-error-behavior",
        &[],
        OneOf(&["ignore", "panic", "panic-on-replicas"]),
        "ignore",
        &["ignore"],
    ),
    only("replica-ignore-disk-write-errors", &[], Flag, "no", NO),
    only("replica-full-sync-buffer-limit", &[], Size, "0", ZERO),
    ignored(
        "dual-channel-replication-enabled",
        &[],
        Flag,
        "no",
        "the stream is kept in the backlog during a sync",
    ),
    // Monitoring.
    ignored(
        "latency-tracking-info-percentiles",
        &[],
        Words,
        "50 99 99.9",
        "INFO shows the default percentiles",
    ),
    ignored(
        "commandlog-request-larger-than",
        &[],
        Integer(-1, i64::MAX),
        "1048576",
        "there is only a slow log",
    ),
    ignored(
        "commandlog-reply-larger-than",
        &[],
        Integer(-1, i64::MAX),
        "1048576",
        "there is only a slow log",
    ),
    ignored("commandlog-large-request-max-len", &[], Integer(0, i64::MAX), "128", "there is only a slow log"),
    ignored("commandlog-large-reply-max-len", &[], Integer(0, i64::MAX), "128", "there is only a slow log"),
    // The append-only file.
    ignored("appendfilename", &[], Text, "appendonly.aof", NO_AOF),
    ignored("appenddirname", &[], Text, "appendonlydir", NO_AOF),
    ignored("no-appendfsync-on-rewrite", &[], Flag, "no", NO_AOF),
    ignored("auto-aof-rewrite-percentage", &[], Integer(0, INT), "100", NO_AOF),
    ignored("auto-aof-rewrite-min-size", &[], Size, "64mb", NO_AOF),
    ignored("aof-load-truncated", &[], Flag, "yes", NO_AOF),
    ignored("aof-use-rdb-preamble", &[], Flag, "yes", NO_AOF),
    ignored("aof-timestamp-enabled", &[], Flag, "no", NO_AOF),
    ignored("aof-rewrite-incremental-fsync", &[], Flag, "yes", NO_AOF),
    ignored("aof-disable-auto-gc", &[], Flag, "no", NO_AOF),
    // Cluster mode.
    only("cluster-enabled", &[], Flag, "no", NO),
    ignored("cluster-config-file", &[], Text, "nodes.conf", NO_CLUSTER),
    ignored("cluster-config-save-behavior", &[], Text, "sync", NO_CLUSTER),
    ignored("cluster-node-timeout", &[], Integer(0, i64::MAX), "15000", NO_CLUSTER),
    ignored("cluster-manual-failover-timeout", &[], Integer(0, INT), "5000", NO_CLUSTER),
    ignored("cluster-blacklist-ttl", &[], Integer(0, INT), "60", NO_CLUSTER),
    ignored("cluster-databases", &[], Integer(1, INT), "1", NO_CLUSTER),
    ignored("cluster-port", &[], Integer(0, 65535), "0", NO_CLUSTER),
    ignored("cluster-announce-ip", &[], Text, "", NO_CLUSTER),
    ignored("cluster-announce-port", &[], Integer(0, 65535), "0", NO_CLUSTER),
    ignored("cluster-announce-tls-port", &[], Integer(0, 65535), "0", NO_CLUSTER),
    ignored("cluster-announce-bus-port", &[], Integer(0, 65535), "0", NO_CLUSTER),
    ignored("cluster-announce-hostname", &[], Text, "", NO_CLUSTER),
    ignored("cluster-announce-human-nodename", &[], Text, "", NO_CLUSTER),
    ignored("cluster-announce-client-ipv4", &[], Text, "", NO_CLUSTER),
    ignored("cluster-announce-client-ipv6", &[], Text, "", NO_CLUSTER),
    ignored("cluster-announce-client-port", &[], Integer(0, 65535), "0", NO_CLUSTER),
    ignored("cluster-announce-client-tls-port", &[], Integer(0, 65535), "0", NO_CLUSTER),
    ignored("cluster-preferred-endpoint-type", &[], Text, "ip", NO_CLUSTER),
    ignored("cluster-link-sendbuf-limit", &[], Size, "0", NO_CLUSTER),
    ignored("cluster-migration-barrier", &[], Integer(0, INT), "1", NO_CLUSTER),
    ignored(
        "cluster-replica-validity-factor",
        &["cluster-slave-validity-factor"],
        Integer(0, INT),
        "10",
        NO_CLUSTER,
    ),
    ignored("cluster-replica-no-failover", &["cluster-slave-no-failover"], Flag, "no", NO_CLUSTER),
    ignored("cluster-require-full-coverage", &[], Flag, "yes", NO_CLUSTER),
    ignored("cluster-allow-reads-when-down", &[], Flag, "no", NO_CLUSTER),
    ignored("cluster-allow-pubsubshard-when-down", &[], Flag, "yes", NO_CLUSTER),
    ignored("cluster-allow-replica-migration", &[], Flag, "yes", NO_CLUSTER),
    ignored("cluster-slot-stats-enabled", &[], Flag, "no", NO_CLUSTER),
    ignored("cluster-compatibility-sample-ratio", &[], Integer(0, 100), "0", NO_CLUSTER),
    ignored("cluster-slot-migration-log-max-len", &[], Integer(0, INT), "1000", NO_CLUSTER),
    ignored("slot-migration-max-failover-repl-bytes", &[], Integer(-1, i64::MAX), "0", NO_CLUSTER),
];
