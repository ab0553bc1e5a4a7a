//! `INFO`: the state of the server in Redis's sections and fields, in its order.
//!
//! A field of Redis that cannot have a meaning here (of forks, of defragmentation, of TLS) is left out, unless tools
//! look for it; then it has the value that stands for nothing.

use super::clients::Class;
use super::memory::{Usage, percent, ratio};
use super::survey::Survey;
use super::table::Call;
use crate::memory;
use crate::node::{REDIS_VERSION, unix_us};
use braid_core::command::Error;
use braid_replication::link::{HistoryReport, LinkState};
use braid_shards::stats::slot_name;
use std::fmt::Write as _;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// The sections, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Server,
    Clients,
    Memory,
    Persistence,
    Threads,
    Stats,
    Replication,
    Cpu,
    Modules,
    CommandStats,
    ErrorStats,
    LatencyStats,
    Cluster,
    Keyspace,
}

impl Section {
    const ALL: [Self; 14] = [
        Section::Server,
        Section::Clients,
        Section::Memory,
        Section::Persistence,
        Section::Threads,
        Section::Stats,
        Section::Replication,
        Section::Cpu,
        Section::Modules,
        Section::CommandStats,
        Section::ErrorStats,
        Section::LatencyStats,
        Section::Cluster,
        Section::Keyspace,
    ];

    fn title(self) -> &'static str {
        match self {
            Section::Server => "Server",
            Section::Clients => "Clients",
            Section::Memory => "Memory",
            Section::Persistence => "Persistence",
            Section::Threads => "Threads",
            Section::Stats => "Stats",
            Section::Replication => "Replication",
            Section::Cpu => "CPU",
            Section::Modules => "Modules",
            Section::CommandStats => "Commandstats",
            Section::ErrorStats => "Errorstats",
            Section::LatencyStats => "Latencystats",
            Section::Cluster => "Cluster",
            Section::Keyspace => "Keyspace",
        }
    }

    /// Shown without being asked for.
    fn is_default(self) -> bool {
        !matches!(self, Section::CommandStats | Section::LatencyStats)
    }

    /// Tells of keys, if only of how many are watched.
    fn needs_survey(self) -> bool {
        matches!(
            self,
            Section::Clients | Section::Memory | Section::Persistence | Section::Stats | Section::Keyspace
        )
    }
}

/// The sections that the arguments behind `INFO` ask for, in their order.
fn wanted(names: &[&[u8]]) -> Vec<Section> {
    let is_wanted = |section: &Section| {
        names.is_empty() && section.is_default()
            || names.iter().any(|name| match () {
                () if name.eq_ignore_ascii_case(b"default") => section.is_default(),
                () if name.eq_ignore_ascii_case(b"all") => *section != Section::Modules,
                () if name.eq_ignore_ascii_case(b"everything") => true,
                () => name.eq_ignore_ascii_case(section.title().as_bytes()),
            })
    };
    Section::ALL.into_iter().filter(is_wanted).collect()
}

/// Whether what is asked for tells of keys.
pub fn needs_survey(names: &[&[u8]]) -> bool {
    wanted(names).into_iter().any(Section::needs_survey)
}

/// `INFO [section …]`, of sections that do not tell of keys, or within a transaction.
pub fn info(call: &mut Call<'_>) -> Result<(), Error> {
    let survey = Survey::published(call.front);
    reply(call, &survey);
    Ok(())
}

/// Writes the sections that are asked for.
pub fn reply(call: &mut Call<'_>, survey: &Survey) {
    let mut text = String::new();
    for section in wanted(&call.args[1..]) {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let _ = write!(text, "# {}\r\n", section.title());
        let mut page = Page(&mut text);
        match section {
            Section::Server => server(&mut page, call),
            Section::Clients => clients(&mut page, call, survey),
            Section::Memory => memory_section(&mut page, call, survey),
            Section::Persistence => persistence(&mut page, call),
            Section::Threads => threads(&mut page, call),
            Section::Stats => stats(&mut page, call, survey),
            Section::Replication => replication(&mut page, call),
            Section::Cpu => cpu(&mut page),
            Section::Modules => {}
            Section::CommandStats => command_stats(&mut page, call),
            Section::ErrorStats => {
                for (code, count) in &call.front.node.statistics.commands().errors {
                    page.field(&format!("errorstat_{code}"), format_args!("count={count}"));
                }
            }
            Section::LatencyStats => latency_stats(&mut page, call),
            Section::Cluster => page.field("cluster_enabled", 0),
            Section::Keyspace => {
                for db in &survey.dbs {
                    let (keys, expires, ttl) = (db.keys, db.expires, db.average_ttl_ms);
                    page.field(
                        &format!("db{}", db.db),
                        format_args!("keys={keys},expires={expires},avg_ttl={ttl},subexpiry=0"),
                    );
                }
            }
        }
    }
    call.out.verbatim(&text);
}

/// Lines of `name:value`.
struct Page<'a>(&'a mut String);

impl Page<'_> {
    fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{name}:{value}\r\n");
    }

    /// A number of bytes, and the same for people.
    fn bytes(&mut self, name: &str, bytes: u64) {
        self.field(name, bytes);
        self.field(&format!("{name}_human"), human(bytes));
    }

    fn kilobytes(&mut self, name: &str, bytes: f64) {
        self.field(name, format_args!("{:.2}", bytes / 1024.0));
    }

    fn zeros(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.field(name, 0));
    }
}

/// A number of bytes with a unit, as Redis writes it.
fn human(bytes: u64) -> String {
    let n = bytes as f64;
    match bytes {
        0..0x400 => format!("{bytes}B"),
        0x400..0x10_0000 => format!("{:.2}K", n / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.2}M", n / (1024.0 * 1024.0)),
        0x4000_0000..0x100_0000_0000 => format!("{:.2}G", n / (1024.0 * 1024.0 * 1024.0)),
        _ => format!("{:.2}T", n / (1024.0 * 1024.0 * 1024.0 * 1024.0)),
    }
}

fn server(page: &mut Page<'_>, call: &Call<'_>) {
    let (front, node) = (&*call.front, &call.front.node);
    let config = &front.config;
    let uptime_s = node.started.elapsed().as_secs();
    page.field("redis_version", REDIS_VERSION);
    page.field("redis_git_sha1", "00000000");
    page.zeros(&["redis_git_dirty", "redis_build_id"]);
    page.field("redis_mode", "standalone");
    page.field("os", os());
    page.field("arch_bits", 64);
    page.field("monotonic_clock", front.clock.name());
    page.field("multiplexing_api", "io_uring");
    page.field("process_id", std::process::id());
    page.field("process_supervised", supervisor(config));
    page.field("run_id", &node.run_id);
    page.field("tcp_port", config.port);
    page.field("server_time_usec", unix_us());
    page.field("uptime_in_seconds", uptime_s);
    page.field("uptime_in_days", uptime_s / 86_400);
    page.field("hz", config.hz);
    page.field("configured_hz", config.hz);
    page.field("lru_clock", (unix_us() / 1_000_000) & 0xff_ffff);
    page.field("executable", std::env::current_exe().unwrap_or_default().display());
    page.field("config_file", node.config_path.as_deref().unwrap_or(std::path::Path::new("")).display());
    page.field("io_threads_active", 0);
    let mut listener = 0;
    if config.port != 0 {
        let bound: Vec<String> = config.bind.0.iter().map(|address| format!("bind={address}")).collect();
        page.field("listener0", format_args!("name=tcp,{},port={}", bound.join(","), config.port));
        listener += 1;
    }
    if !config.unixsocket.is_empty() {
        page.field(&format!("listener{listener}"), format_args!("name=unix,bind={}", config.unixsocket));
    }
    page.field("braid_version", env!("CARGO_PKG_VERSION"));
    page.field("shards", node.map.shards());
}

fn supervisor(config: &crate::config::Config) -> &'static str {
    use crate::config::values::Supervised;
    let notified = std::env::var_os("NOTIFY_SOCKET").is_some();
    match config.supervised {
        Supervised::No => "no",
        _ if notified => "systemd",
        _ => "no",
    }
}

/// The kernel's name, release and machine.
fn os() -> String {
    // SAFETY: an array of bytes, for which all zeros are valid.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live struct of that type, which the call fills.
    if unsafe { libc::uname(&mut name) } != 0 {
        return "Linux".to_owned();
    }
    let text = |chars: &[libc::c_char]| -> String {
        chars.iter().take_while(|char| **char != 0).map(|char| char::from(*char as u8)).collect()
    };
    format!("{} {} {}", text(&name.sysname), text(&name.release), text(&name.machine))
}

fn clients(page: &mut Page<'_>, call: &Call<'_>, survey: &Survey) {
    let node = &call.front.node;
    call.front.publish_client(call.conn);
    let all = node.clients.all();
    let of_class = |class| all.iter().filter(|info| info.class() == class).count();
    let replicas = of_class(Class::Replica);
    let most =
        |value: fn(&super::clients::ClientInfo) -> u64| all.iter().map(|info| value(info)).max().unwrap_or(0);
    page.field("connected_clients", all.len() - replicas - of_class(Class::Master));
    page.field("cluster_connections", 0);
    page.field("maxclients", call.front.config.maxclients);
    page.field(
        "client_recent_max_input_buffer",
        most(|info| u64::from(info.input_bytes.load(Ordering::Relaxed))),
    );
    page.field("client_recent_max_output_buffer", most(|info| info.output_bytes.get()));
    let blocked: u64 = node.statistics.shards.iter().map(|shard| shard.blocked_clients.get()).sum();
    page.field("blocked_clients", blocked);
    page.field("tracking_clients", 0);
    page.field("pubsub_clients", of_class(Class::PubSub));
    page.field(
        "watching_clients",
        all.iter().filter(|info| info.watched.load(Ordering::Relaxed) > 0).count(),
    );
    page.field("clients_in_timeout_table", 0);
    page.field("total_watched_keys", survey.watched_keys);
    page.zeros(&["total_blocking_keys", "total_blocking_keys_on_nokey"]);
}

fn memory_section(page: &mut Page<'_>, call: &Call<'_>, survey: &Survey) {
    let usage = Usage::of(call, survey);
    let (node, config) = (&call.front.node, &call.front.config);
    page.bytes("used_memory", usage.used);
    page.bytes("used_memory_rss", usage.resident);
    page.bytes("used_memory_peak", usage.peak);
    page.field("used_memory_peak_time", node.peak_memory_unix_s.load(Ordering::Relaxed));
    page.field("used_memory_peak_perc", format_args!("{:.2}%", percent(usage.used, usage.peak)));
    page.field("used_memory_overhead", usage.overhead());
    page.field("used_memory_startup", usage.startup);
    page.field("used_memory_dataset", usage.dataset());
    page.field("used_memory_dataset_perc", format_args!("{:.2}%", usage.dataset_percent()));
    page.field("allocator_allocated", usage.used);
    page.field("allocator_active", usage.committed);
    page.field("allocator_resident", usage.resident);
    page.field("allocator_muzzy", 0);
    page.bytes("total_system_memory", memory::system_bytes());
    page.bytes("used_memory_lua", 0);
    page.bytes("used_memory_scripts", 0);
    page.bytes("maxmemory", config.maxmemory_bytes);
    let policy = crate::config::table::find("maxmemory-policy").expect("in the table");
    page.field("maxmemory_policy", policy.get(config));
    page.field("allocator_frag_ratio", format_args!("{:.2}", ratio(usage.committed, usage.used)));
    page.field("allocator_frag_bytes", usage.committed.saturating_sub(usage.used));
    page.field("allocator_rss_ratio", format_args!("{:.2}", ratio(usage.resident, usage.committed)));
    page.field("allocator_rss_bytes", usage.resident.saturating_sub(usage.committed));
    page.field("mem_fragmentation_ratio", format_args!("{:.2}", usage.fragmentation()));
    page.field("mem_fragmentation_bytes", usage.resident as i64 - usage.used as i64);
    page.field("mem_not_counted_for_evict", usage.replicas);
    page.field("mem_replication_backlog", usage.replication_backlog);
    page.field("mem_total_replication_buffers", usage.replication_backlog + usage.replicas);
    page.field("mem_clients_slaves", usage.replicas);
    page.field("mem_clients_normal", usage.clients);
    page.zeros(&["mem_cluster_links", "mem_aof_buffer"]);
    page.field("mem_allocator", "mimalloc");
    page.field("active_defrag_running", 0);
    page.field("lazyfree_pending_objects", survey.pending_frees);
    page.field("lazyfreed_objects", node.statistics.totals().lazyfreed);
}

/// Nothing is appended to a file yet: those fields say that nothing ever was.
fn persistence(page: &mut Page<'_>, call: &Call<'_>) {
    let node = &call.front.node;
    let saves = node.persistence.saves().clone();
    let now_s = call.front.moment().uptime_s;
    let seconds = |time: Option<u64>| time.map_or(-1, |seconds| seconds as i64);
    page.field("loading", u8::from(node.persistence.is_loading()));
    page.field("async_loading", 0);
    page.field("rdb_changes_since_last_save", node.statistics.dirty().saturating_sub(saves.saved_dirty));
    page.field("rdb_bgsave_in_progress", u8::from(saves.running_since.is_some()));
    page.field("rdb_last_save_time", saves.last.unix_s);
    page.field("rdb_last_bgsave_status", if saves.is_last_ok { "ok" } else { "err" });
    page.field("rdb_last_bgsave_time_sec", seconds(saves.last_took_s));
    let running_s = saves.running_since.map(|since| now_s.saturating_sub(since.uptime_s));
    page.field("rdb_current_bgsave_time_sec", seconds(running_s));
    page.field("rdb_saves", saves.count);
    page.zeros(&["rdb_last_cow_size", "rdb_last_load_keys_expired"]);
    page.field("rdb_last_load_keys_loaded", saves.keys_loaded);
    page.zeros(&["aof_enabled", "aof_rewrite_in_progress", "aof_rewrite_scheduled"]);
    page.field("aof_last_rewrite_time_sec", -1);
    page.field("aof_current_rewrite_time_sec", -1);
    page.field("aof_last_bgrewrite_status", "ok");
    page.field("aof_last_write_status", "ok");
    page.field("aof_last_cow_size", 0);
    if let Some(progress) = node.persistence.progress() {
        let elapsed_s = now_s.saturating_sub(progress.since.uptime_s);
        let (loaded, total) = (progress.loaded_bytes, progress.total_bytes);
        page.field("loading_start_time", progress.since.unix_s);
        page.field("loading_total_bytes", total);
        page.field("loading_rdb_used_mem", 0);
        page.field("loading_loaded_bytes", loaded);
        page.field("loading_loaded_perc", format_args!("{:.2}", loaded as f64 * 100.0 / total.max(1) as f64));
        let left_s = elapsed_s.saturating_mul(total.saturating_sub(loaded)).checked_div(loaded).unwrap_or(1);
        page.field("loading_eta_seconds", left_s);
    }
}

/// The shards, in the place of I/O threads.
fn threads(page: &mut Page<'_>, call: &Call<'_>) {
    let node = &call.front.node;
    for (id, shard) in node.statistics.shards.iter().enumerate() {
        let (clients, counters) = (node.clients.count(id as u16), &shard.counters);
        page.field(
            &format!("io_thread_{id}"),
            format_args!("clients={clients},reads={},writes={}", counters.reads.get(), counters.writes.get()),
        );
    }
}

fn stats(page: &mut Page<'_>, call: &Call<'_>, survey: &Survey) {
    let node = &call.front.node;
    let (totals, commands) = (node.statistics.totals(), node.statistics.commands());
    let rates = node.statistics.rates(call.front.now_ms());
    let replication = node.replication.lock().unwrap_or_else(PoisonError::into_inner);
    page.field("total_connections_received", totals.connections_received);
    page.field("total_commands_processed", commands.processed);
    page.field("instantaneous_ops_per_sec", rates.commands);
    page.field("total_net_input_bytes", totals.net_in_bytes + totals.net_repl_in_bytes);
    page.field("total_net_output_bytes", totals.net_out_bytes + totals.net_repl_out_bytes);
    page.field("total_net_repl_input_bytes", totals.net_repl_in_bytes);
    page.field("total_net_repl_output_bytes", totals.net_repl_out_bytes);
    page.kilobytes("instantaneous_input_kbps", rates.net_in_bytes);
    page.kilobytes("instantaneous_output_kbps", rates.net_out_bytes);
    page.kilobytes("instantaneous_input_repl_kbps", rates.net_repl_in_bytes);
    page.kilobytes("instantaneous_output_repl_kbps", rates.net_repl_out_bytes);
    page.field("rejected_connections", totals.connections_rejected);
    page.field("sync_full", replication.full_syncs);
    page.field("sync_full_in_parts", replication.syncs_in_parts);
    page.field("sync_partial_ok", replication.partial_syncs);
    page.field("sync_partial_err", replication.refused_partial_syncs);
    page.field("expired_subkeys", 0);
    // The survey is newer than what was published, which knows when the counting began.
    let since = |now: u64, published: u64, counted: u64| counted + now.saturating_sub(published);
    let published = Survey::published(call.front).stats;
    page.field("expired_keys", since(survey.stats.expired, published.expired, totals.expired));
    page.field("expired_stale_perc", "0.00");
    page.field("expired_time_cap_reached_count", 0);
    page.field("expire_cycle_cpu_milliseconds", totals.expire_cycle_us / 1000);
    page.field("evicted_keys", since(survey.stats.evicted, published.evicted, totals.evicted));
    page.zeros(&[
        "evicted_clients",
        "evicted_scripts",
        "total_eviction_exceeded_time",
        "current_eviction_exceeded_time",
    ]);
    page.field("keyspace_hits", since(survey.stats.hits, published.hits, totals.hits));
    page.field("keyspace_misses", since(survey.stats.misses, published.misses, totals.misses));
    page.zeros(&["pubsub_channels", "pubsub_patterns", "pubsubshard_channels"]);
    page.zeros(&["latest_fork_usec", "total_forks", "migrate_cached_sockets"]);
    page.field("slave_expires_tracked_keys", survey.own_expiries);
    page.zeros(&[
        "active_defrag_hits",
        "active_defrag_misses",
        "active_defrag_key_hits",
        "active_defrag_key_misses",
    ]);
    page.zeros(&["tracking_total_keys", "tracking_total_items", "tracking_total_prefixes"]);
    page.field("unexpected_error_replies", 0);
    page.field("total_error_replies", commands.error_replies);
    page.field("dump_payload_sanitizations", 0);
    page.field("total_reads_processed", totals.reads);
    page.field("total_writes_processed", totals.writes);
    page.zeros(&["io_threaded_reads_processed", "io_threaded_writes_processed"]);
    page.field("client_query_buffer_limit_disconnections", totals.query_limit_closed);
    page.field("client_output_buffer_limit_disconnections", totals.output_limit_closed);
    page.zeros(&["reply_buffer_shrinks", "reply_buffer_expands"]);
    page.field("eventloop_cycles", totals.ticks);
    page.field("instantaneous_eventloop_cycles_per_sec", rates.ticks);
    page.zeros(&[
        "acl_access_denied_auth",
        "acl_access_denied_cmd",
        "acl_access_denied_key",
        "acl_access_denied_channel",
    ]);
}

fn replication(page: &mut Page<'_>, call: &Call<'_>) {
    let node = &call.front.node;
    let report = node.replication.lock().unwrap_or_else(PoisonError::into_inner);
    page.field("role", if node.is_replica() { "slave" } else { "master" });
    if node.is_replica() {
        upstream(page, call);
    }
    page.field("connected_slaves", report.replicas.len());
    let config = &call.front.config;
    if config.min_replicas_to_write > 0 && config.min_replicas_max_lag_s > 0 {
        page.field("min_slaves_good_slaves", node.good_replicas.load(Ordering::Relaxed));
    }
    for line in &report.replicas {
        let _ = write!(page.0, "{}\r\n", line.info);
    }
    let state = report.failover_state;
    page.field("master_failover_state", if state.is_empty() { "no-failover" } else { state });
    page.field("master_replid", &report.id);
    page.field("master_replid2", &report.former_id);
    page.field("master_repl_offset", node.end_offset());
    page.field("second_repl_offset", report.fork_byte);
    page.field("protected_restart", u8::from(report.is_protected));
    page.field("repl_backlog_active", u8::from(report.is_backlog_active));
    page.field("repl_backlog_size", call.front.config.repl_backlog_size_bytes);
    page.field("repl_backlog_first_byte_offset", report.first_byte);
    page.field("repl_backlog_histlen", report.histlen_bytes);
    page.field("repl_backlog_disk_bytes", report.disk_bytes);
}

/// What a replica knows of its master.
fn upstream(page: &mut Page<'_>, call: &Call<'_>) {
    let (node, config) = (&call.front.node, &call.front.config);
    let upstream = node.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let link = upstream.as_ref().map(|upstream| &upstream.link);
    let (host, port) = match (link, &config.replicaof.0) {
        (Some(link), _) => (link.target.host.as_str(), link.target.port),
        (None, Some(master)) => (master.host.as_str(), master.port),
        (None, None) => ("", 0),
    };
    let is_up = link.is_some_and(|link| link.state == LinkState::Connected);
    let sync = link.and_then(|link| link.sync);
    let seconds = |ms: Option<u64>| ms.map_or(-1, |ms| (ms / 1000) as i64);
    page.field("master_host", host);
    page.field("master_port", port);
    page.field("master_link_status", if is_up { "up" } else { "down" });
    let last_io_s = seconds(link.and_then(|link| link.last_io_ms));
    page.field("master_last_io_seconds_ago", if is_up { last_io_s } else { -1 });
    page.field("master_sync_in_progress", u8::from(sync.is_some()));
    page.field("slave_read_repl_offset", node.read_offset.load(Ordering::Relaxed));
    page.field("slave_repl_offset", node.applied_offset.load(Ordering::Relaxed));
    // What the stream brings during a full sync waits at the master.
    page.zeros(&["replica_full_sync_buffer_size", "replica_full_sync_buffer_peak"]);
    let history = link.map_or_else(HistoryReport::default, |link| link.history.clone());
    page.field("master_current_sync_attempts", history.attempts);
    page.field("master_total_sync_attempts", history.total_attempts);
    if let Some((total, read)) = sync {
        let total = total.map_or(-1, |total| total as i64);
        let percent = if total > 0 { read as f64 / total as f64 * 100.0 } else { 0.0 };
        page.field("master_sync_total_bytes", total);
        page.field("master_sync_read_bytes", read);
        page.field("master_sync_left_bytes", total - read as i64);
        page.field("master_sync_perc", format_args!("{percent:.2}"));
        page.field("master_sync_last_io_seconds_ago", last_io_s);
    }
    if is_up {
        page.field("master_link_up_since_seconds", seconds(history.up_since_ms));
    } else {
        page.field("master_link_down_since_seconds", seconds(history.down_since_ms));
    }
    page.field("total_disconnect_time_sec", history.down_total_ms / 1000);
    page.field("slave_priority", config.replica_priority);
    page.field("slave_read_only", u8::from(config.replica_read_only));
    page.field("replica_announced", u8::from(config.replica_announced));
    page.field(
        "master_dataset_refused",
        u8::from(upstream.as_ref().is_some_and(|upstream| upstream.has_refused)),
    );
    page.field("slave_failed_commands", upstream.as_ref().map_or(0, |upstream| upstream.failed_commands));
}

fn cpu(page: &mut Page<'_>) {
    for (who, suffix) in [(libc::RUSAGE_SELF, ""), (libc::RUSAGE_CHILDREN, "_children")] {
        // SAFETY: a struct of integers, for which all zeros are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live struct of that type, which the call fills; on an error it stays zero.
        unsafe { libc::getrusage(who, &mut usage) };
        for (name, time) in [("sys", usage.ru_stime), ("user", usage.ru_utime)] {
            page.field(
                &format!("used_cpu_{name}{suffix}"),
                format_args!("{}.{:06}", time.tv_sec, time.tv_usec),
            );
        }
    }
}

fn command_stats(page: &mut Page<'_>, call: &Call<'_>) {
    for (slot, totals) in call.front.node.statistics.commands().commands.iter().enumerate() {
        if totals.calls == 0 && totals.rejected == 0 && totals.failed == 0 {
            continue;
        }
        let us = totals.duration_ns as f64 / 1000.0;
        let per_call = if totals.calls == 0 { 0.0 } else { us / totals.calls as f64 };
        page.field(
            &format!("cmdstat_{}", slot_name(slot)),
            format_args!(
                "calls={},usec={},usec_per_call={per_call:.2},rejected_calls={},failed_calls={}",
                totals.calls, us as u64, totals.rejected, totals.failed
            ),
        );
    }
}

fn latency_stats(page: &mut Page<'_>, call: &Call<'_>) {
    for (slot, totals) in call.front.node.statistics.commands().histograms() {
        let us = |percentile| totals.percentile_ns(percentile) as f64 / 1000.0;
        page.field(
            &format!("latency_percentiles_usec_{}", slot_name(slot)),
            format_args!("p50={:.3},p99={:.3},p99.9={:.3}", us(50.0), us(99.0), us(99.9)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(names: &[&str]) -> Vec<&'static str> {
        let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
        wanted(&names).into_iter().map(Section::title).collect()
    }

    #[test]
    fn sections_are_chosen_by_name_or_group() {
        assert_eq!(titles(&[]), titles(&["DEFAULT"]));
        assert!(!titles(&[]).contains(&"Commandstats") && titles(&[]).contains(&"Errorstats"));
        assert_eq!(titles(&["everything"]).len(), 14);
        assert_eq!(titles(&["all"]).len(), 13);
        assert_eq!(titles(&["keyspace", "SERVER", "keyspace"]), ["Server", "Keyspace"]);
        assert_eq!(titles(&["default", "commandstats"]).len(), 13);
        assert!(titles(&["none"]).is_empty());
    }

    #[test]
    fn only_what_tells_of_keys_needs_a_survey() {
        assert!(needs_survey(&[]) && needs_survey(&[b"stats"]));
        assert!(!needs_survey(&[b"server", b"replication", b"commandstats", b"none"]));
    }

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in
            [(0, "0B"), (1023, "1023B"), (1536, "1.50K"), (3 << 20, "3.00M"), (5 << 30, "5.00G")]
        {
            assert_eq!(human(bytes), text);
        }
    }
}
