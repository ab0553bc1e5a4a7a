//! `INFO` and `MEMORY STATS` begin with a look at the whole keyspace, as one transaction: what they tell of keys is
//! then right after whatever was answered before, on any shard.

use super::table::Call;
use super::{info, memory};
use crate::engine::{Conn, Front};
use braid_core::command::Args;
use braid_core::commands::server::SURVEY_HEAD_LEN;
use braid_core::keyspace::KeyspaceStats;

/// One database that has keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DbSize {
    pub db: u64,
    pub keys: u64,
    pub expires: u64,
    /// Estimated.
    pub average_ttl_ms: u64,
    pub table_bytes: u64,
}

/// What the look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    pub stats: KeyspaceStats,
    /// Values and tables that wait to be freed.
    pub pending_frees: u64,
    pub watched_keys: u64,
    /// Keys whose expiry is a replica's own.
    pub own_expiries: u64,
    pub table_bytes: u64,
    pub dbs: Vec<DbSize>,
}

impl Survey {
    /// Reads the answer of the internal command.
    pub fn read(answer: &[u8]) -> Self {
        let text = std::str::from_utf8(answer).expect("an array of integers");
        let numbers: Vec<u64> =
            text.lines().skip(1).map(|line| line[1..].parse().expect("a number that was counted")).collect();
        let (head, dbs) = numbers.split_at(SURVEY_HEAD_LEN);
        let [
            hits,
            misses,
            expired,
            evicted,
            dirty,
            lazyfreed,
            pending_frees,
            watched_keys,
            table_bytes,
            expire_us,
            own_expiries,
        ] = *head
        else {
            unreachable!("the head has eleven numbers")
        };
        let dbs = dbs.chunks_exact(5).map(|db| DbSize {
            db: db[0],
            keys: db[1],
            expires: db[2],
            average_ttl_ms: db[3],
            table_bytes: db[4],
        });
        Self {
            stats: KeyspaceStats {
                hits,
                misses,
                expired,
                evicted,
                dirty,
                lazyfreed_objects: lazyfreed,
                expire_cycle_us: expire_us,
            },
            pending_frees,
            watched_keys,
            own_expiries,
            table_bytes,
            dbs: dbs.collect(),
        }
    }

    /// What the shards published last: for a command within a transaction, which cannot wait for another.
    pub fn published(front: &Front) -> Self {
        let shards = &front.node.statistics.shards;
        let mut survey = Self::default();
        for shard in shards {
            let counters = &shard.counters;
            survey.stats += KeyspaceStats {
                hits: counters.hits.get(),
                misses: counters.misses.get(),
                expired: counters.expired.get(),
                evicted: counters.evicted.get(),
                dirty: counters.dirty.get(),
                lazyfreed_objects: counters.lazyfreed.get(),
                expire_cycle_us: counters.expire_cycle_us.get(),
            };
            survey.pending_frees += shard.lazyfree_pending.get();
            survey.watched_keys += shard.watched_keys.get();
            survey.own_expiries += shard.own_expiries.get();
        }
        for db in 0..front.config.databases as usize {
            let sizes = shards.iter().map(|shard| shard.db(db));
            let (keys, expires) = sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
            if keys > 0 {
                survey.dbs.push(DbSize { db: db as u64, keys, expires, ..DbSize::default() });
            }
        }
        survey
    }

    pub fn keys(&self) -> u64 {
        self.dbs.iter().map(|db| db.keys).sum()
    }
}

/// Whether a command begins with a survey.
pub fn is_needed(args: Args<'_>) -> bool {
    match () {
        () if args.is(0, "info") => info::needs_survey(&args[1..]),
        () => args.is(0, "memory") && args.is(1, "stats"),
    }
}

/// Writes the answer of such a command.
pub fn answer(front: &mut Front, conn: &mut Conn, args: Args<'_>, survey: &Survey) {
    let mut out = std::mem::take(&mut conn.out);
    if args.is(0, "info") {
        info::reply(&mut Call { front, conn, args, out: &mut out }, survey);
    } else {
        memory::stats(&mut Call { front, conn, args, out: &mut out }, survey);
    }
    conn.out = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_back() {
        let numbers: Vec<String> = (1..=21).map(|number| format!(":{number}\r\n")).collect();
        let survey = Survey::read(format!("*21\r\n{}", numbers.concat()).as_bytes());
        assert_eq!((survey.stats.hits, survey.stats.expire_cycle_us), (1, 10));
        assert_eq!((survey.pending_frees, survey.watched_keys, survey.table_bytes), (7, 8, 9));
        assert_eq!(survey.own_expiries, 11);
        let second = DbSize { db: 17, keys: 18, expires: 19, average_ttl_ms: 20, table_bytes: 21 };
        assert_eq!((survey.dbs.len(), survey.dbs[1], survey.keys()), (2, second, 31));
    }
}
