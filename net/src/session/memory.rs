//! `MEMORY`: where memory goes. (`MEMORY USAGE` is about a key and runs where that is.)

use super::clients::AT_REST_BYTES;
use super::control::Order;
use super::survey::Survey;
use super::table::Call;
use crate::memory;
use braid_core::command::Error;
use braid_core::resp::Reply;
use std::sync::atomic::Ordering;

/// Memory of the process, measured at one moment, bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub used: u64,
    pub peak: u64,
    pub startup: u64,
    pub resident: u64,
    /// What the allocator holds from the system.
    pub committed: u64,
    pub clients: u64,
    /// What waits for replicas beyond the backlog.
    pub replicas: u64,
    pub replication_backlog: u64,
    pub tables: u64,
}

impl Usage {
    /// Measures.
    pub fn of(call: &Call<'_>, survey: &Survey) -> Self {
        let node = &call.front.node;
        let replication = node.replication.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let used = node.refresh_memory();
        Self {
            used,
            peak: node.peak_memory_bytes.load(Ordering::Relaxed).max(used),
            startup: node.startup_memory_bytes.load(Ordering::Relaxed),
            resident: memory::resident_bytes(),
            committed: memory::committed_bytes(),
            clients: (node.connected_clients.load(Ordering::Relaxed) * AT_REST_BYTES) as u64,
            replicas: node.replica_buffers_bytes(),
            replication_backlog: replication.memory_bytes.min(replication.backlog_bytes),
            tables: survey.table_bytes,
        }
    }

    /// What is not keys and values.
    pub fn overhead(&self) -> u64 {
        self.startup + self.clients + self.replicas + self.replication_backlog + self.tables
    }

    /// Keys and values.
    pub fn dataset(&self) -> u64 {
        self.used.saturating_sub(self.overhead())
    }

    /// The part of what was added since the start that is keys and values.
    pub fn dataset_percent(&self) -> f64 {
        percent(self.dataset(), self.used.saturating_sub(self.startup)).min(100.0)
    }

    pub fn fragmentation(&self) -> f64 {
        ratio(self.resident, self.used)
    }
}

/// 0 if there is nothing to divide by.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

pub fn percent(part: u64, whole: u64) -> f64 {
    100.0 * ratio(part, whole)
}

/// `MEMORY STATS`, after the survey.
pub fn stats(call: &mut Call<'_>, survey: &Survey) {
    let usage = Usage::of(call, survey);
    let keys = survey.keys();
    let out = &mut *call.out;
    let integers = [
        ("peak.allocated", usage.peak),
        ("total.allocated", usage.used),
        ("startup.allocated", usage.startup),
        ("replication.backlog", usage.replication_backlog),
        ("clients.slaves", usage.replicas),
        ("clients.normal", usage.clients),
        ("aof.buffer", 0),
    ];
    out.map(integers.len() + survey.dbs.len() + 13);
    let int = |out: &mut Reply, name: &str, value: u64| {
        out.bulk(name.as_bytes());
        out.int(value as i64);
    };
    let double = |out: &mut Reply, name: &str, value: f64| {
        out.bulk(name.as_bytes());
        out.double(value);
    };
    integers.iter().for_each(|(name, value)| int(out, name, *value));
    for db in &survey.dbs {
        out.bulk(format!("db.{}", db.db).as_bytes());
        out.map(2);
        int(out, "overhead.hashtable.main", db.table_bytes);
        int(out, "overhead.hashtable.expires", 0);
    }
    int(out, "overhead.db.hashtable.lut", usage.tables);
    int(out, "overhead.total", usage.overhead());
    int(out, "keys.count", keys);
    int(out, "keys.bytes-per-key", usage.used.saturating_sub(usage.startup).checked_div(keys).unwrap_or(0));
    int(out, "dataset.bytes", usage.dataset());
    double(out, "dataset.percentage", usage.dataset_percent());
    double(out, "peak.percentage", percent(usage.used, usage.peak));
    int(out, "allocator.allocated", usage.used);
    int(out, "allocator.active", usage.committed);
    int(out, "allocator.resident", usage.resident);
    double(out, "allocator-fragmentation.ratio", ratio(usage.committed, usage.used));
    double(out, "fragmentation", usage.fragmentation());
    int(out, "fragmentation.bytes", usage.resident.saturating_sub(usage.used));
}

/// Less than this is not worth an opinion.
const WORTH_BYTES: u64 = 5 << 20;

fn doctor(usage: &Usage) -> String {
    if usage.used < WORTH_BYTES {
        return "This instance uses very little memory: there is nothing to say about it yet.\n".to_owned();
    }
    let mut text = String::new();
    if usage.peak as f64 > usage.used as f64 * 1.5 {
        text.push_str(
            " * Peak memory: far more was in use in the past than is now. What was freed may still be held by the \
             allocator: MEMORY PURGE gives it back.\n",
        );
    }
    if usage.fragmentation() > 1.4 && usage.resident - usage.used > WORTH_BYTES * 2 {
        text.push_str(
            " * High fragmentation: the process holds over 1.4 times the memory that is in use. It goes down as values \
             are replaced; MEMORY PURGE gives back pages that are wholly free.\n",
        );
    }
    if usage.clients > usage.used / 2 {
        text.push_str(" * Clients: connections take more than half of the memory. See CLIENT LIST, timeout and maxclients.\n");
    }
    if text.is_empty() {
        "No problem with memory was found.\n".to_owned()
    } else {
        format!("Problems with memory:\n\n{text}")
    }
}

/// `MEMORY DOCTOR|MALLOC-STATS|PURGE`, and `STATS` within a transaction.
pub fn memory(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    match () {
        () if args.is(1, "stats") => {
            let survey = Survey::published(call.front);
            stats(call, &survey);
        }
        () if args.is(1, "doctor") => {
            let usage = Usage::of(call, &Survey::default());
            call.out.verbatim(&doctor(&usage));
        }
        () if args.is(1, "malloc-stats") => call.out.verbatim(&memory::statistics()),
        () => {
            call.front.node.order_all(|| Order::Purge);
            call.out.ok();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doctor_names_what_is_wrong() {
        let healthy = Usage { used: 100 << 20, peak: 110 << 20, resident: 120 << 20, ..Usage::default() };
        assert_eq!(doctor(&healthy), "No problem with memory was found.\n");
        assert!(doctor(&Usage { used: 1 << 20, ..healthy }).starts_with("This instance uses very little"));
        assert!(doctor(&Usage { peak: 200 << 20, ..healthy }).contains("Peak memory"));
        assert!(doctor(&Usage { resident: 200 << 20, ..healthy }).contains("High fragmentation"));
        assert!(doctor(&Usage { clients: 60 << 20, ..healthy }).contains("Clients"));
    }

    #[test]
    fn parts_add_up() {
        let usage = Usage {
            used: 1000,
            startup: 200,
            clients: 100,
            replication_backlog: 50,
            tables: 250,
            ..Usage::default()
        };
        assert_eq!((usage.overhead(), usage.dataset(), usage.dataset_percent()), (600, 400, 50.0));
        assert_eq!((ratio(1, 0), percent(1, 4)), (0.0, 25.0));
    }
}
