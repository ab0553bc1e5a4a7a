//! Commands about the server and its clients: declared here, implemented where those are, but for the survey of the
//! keyspace that `INFO` and `MEMORY STATS` begin with.

use crate::command::{Args, Category, Command, Flags, Handler, Outcome, WholeCtx};

const ANYTIME: Flags = Flags::LOADING.or(Flags::STALE);
const ADMIN: Flags = Flags::ADMIN.or(Flags::NOSCRIPT).or(ANYTIME);
const DANGEROUS: Category = Category::DANGEROUS;

const fn declare(name: &'static str, arity: i16, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, arity, Handler::Session).doc("server", since, summary, "O(1)")
}

const fn about(name: &'static str, since: &'static str, summary: &'static str) -> Command {
    declare(name, 1, since, summary)
}

const CONTAINER: &str = "Depends on subcommand.";

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    declare("command", -1, "2.8.13", "Returns detailed information about all commands.")
        .flags(ANYTIME)
        .categories(Category::CONNECTION)
        .subcommands(&[
            declare("count", 2, "2.8.13", "Returns a count of commands.")
                .flags(ANYTIME)
                .categories(Category::CONNECTION),
            declare("docs", -2, "7.0.0", "Returns documentary information about commands.")
                .flags(ANYTIME)
                .categories(Category::CONNECTION),
            declare("getkeys", -3, "2.8.13", "Extracts the key names from an arbitrary command.")
                .flags(ANYTIME)
                .categories(Category::CONNECTION),
            declare(
                "getkeysandflags",
                -3,
                "7.0.0",
                "Extracts the key names and access flags for an arbitrary command.",
            )
            .flags(ANYTIME)
            .categories(Category::CONNECTION),
            declare("help", 2, "5.0.0", "Lists the subcommands.")
                .flags(ANYTIME)
                .categories(Category::CONNECTION),
            declare("info", -2, "2.8.13", "Returns information about commands.")
                .flags(ANYTIME)
                .categories(Category::CONNECTION),
            declare("list", -2, "7.0.0", "Returns a list of command names.")
                .flags(ANYTIME)
                .categories(Category::CONNECTION),
        ]),
    declare("config", -2, "2.0.0", "A container for server configuration commands.")
        .doc("server", "2.0.0", "A container for server configuration commands.", CONTAINER)
        .subcommands(&[
            declare("get", -3, "2.0.0", "Returns the effective values of configuration parameters.")
                .flags(ADMIN),
            declare("help", 2, "5.0.0", "Lists the subcommands.").flags(ANYTIME),
            declare("resetstat", 2, "2.0.0", "Resets the server's statistics.").flags(ADMIN),
            declare("rewrite", 2, "2.8.0", "Persists the effective configuration to file.").flags(ADMIN),
            declare("set", -4, "2.0.0", "Sets configuration parameters in-flight.").flags(ADMIN),
        ]),
    declare("info", -1, "1.0.0", "Returns information and statistics about the server.")
        .flags(ANYTIME)
        .categories(DANGEROUS),
    declare("bgsave", -1, "1.0.0", "Writes a snapshot to disk in the background.")
        .flags(Flags::ADMIN.or(Flags::NOSCRIPT).or(Flags::NO_ASYNC_LOADING)),
    about("save", "1.0.0", "Writes a snapshot to disk, and answers when it is there.")
        .flags(Flags::ADMIN.or(Flags::NOSCRIPT).or(Flags::NO_ASYNC_LOADING).or(Flags::NO_MULTI)),
    about("lastsave", "1.0.0", "Returns the Unix timestamp of the last successful save to disk.")
        .flags(ANYTIME.or(Flags::FAST))
        .categories(Category::ADMIN.or(DANGEROUS)),
    declare("latency", -2, "2.8.13", "A container for latency diagnostics commands.").subcommands(&[
        declare("doctor", 2, "2.8.13", "Returns a human-readable latency analysis report.").flags(ADMIN),
        declare("graph", 3, "2.8.13", "Returns a latency graph for an event.").flags(ADMIN),
        declare("help", 2, "2.8.13", "Lists the subcommands.").flags(ANYTIME),
        declare("histogram", -2, "7.0.0", "Returns the distribution of latencies of commands.").flags(ADMIN),
        declare("history", 3, "2.8.13", "Returns timestamp-latency samples for an event.").flags(ADMIN),
        declare("latest", 2, "2.8.13", "Returns the latest latency samples for all events.").flags(ADMIN),
        declare("reset", -2, "2.8.13", "Resets the latency data for one or more events.").flags(ADMIN),
    ]),
    declare("lolwut", -1, "5.0.0", "Displays computer art and the version.")
        .flags(Flags::READONLY.or(Flags::FAST)),
    declare("shutdown", -1, "1.0.0", "Shuts the server down.")
        .flags(ADMIN.or(Flags::NO_MULTI).or(Flags::ALLOW_BUSY)),
    declare("slowlog", -2, "2.2.12", "A container for slow log commands.").subcommands(&[
        declare("get", -2, "2.2.12", "Returns the slow log's entries.").flags(ADMIN),
        declare("help", 2, "6.2.0", "Lists the subcommands.").flags(ANYTIME),
        declare("len", 2, "2.2.12", "Returns the number of entries in the slow log.").flags(ADMIN),
        declare("reset", 2, "2.2.12", "Clears all entries from the slow log.").flags(ADMIN),
    ]),
    about("time", "2.6.0", "Returns the server time.").flags(ANYTIME.or(Flags::FAST)),
];

/// What the session runs over all slices before it answers `INFO` or `MEMORY STATS`. No client can name it.
pub const SURVEY: Command = Command::new("info|survey", 1, Handler::Whole(survey))
    .flags(Flags::INTERNAL.or(Flags::READONLY))
    .doc("server", "1.0.0", "Counts keys and reads the keyspace's counters.", "O(1)");

/// Keys whose expiry is looked at to estimate the average of a database.
const TTL_SAMPLES: usize = 64;

/// Numbers at the head of a survey's reply, before five for each database that has keys.
pub const SURVEY_HEAD_LEN: usize = 11;

/// Replies with an array of integers: hits, misses, expired, evicted, dirty, lazily freed, what is left to free, watched
/// keys, bytes of the tables, microseconds of expiry, keys whose expiry is a replica's own; then for each database with keys its number, keys, keys with an
/// expiry, their average time to live in milliseconds (estimated), bytes of its tables.
fn survey(c: &mut WholeCtx<'_>, _: Args<'_>) -> Outcome {
    let mut stats = crate::keyspace::KeyspaceStats::default();
    let (mut trash, mut watched, mut own_expiries, mut table_bytes) = (0, 0, 0, 0);
    for slice in c.slices.iter() {
        stats += slice.stats;
        trash += slice.trash_len();
        watched += slice.watches.counts().1;
        own_expiries += slice.own_expiries_len();
    }
    let mut dbs: Vec<[usize; 5]> = Vec::new();
    for db in 0..c.slices[0].databases() {
        let parts = c.slices.iter().map(|slice| slice.db(db as u16));
        let (mut keys, mut expires, mut bytes) = (0, 0, 0);
        for part in parts {
            keys += part.table.len();
            expires += part.expires;
            bytes += part.table.heap_bytes();
        }
        table_bytes += bytes;
        if keys > 0 {
            dbs.push([db, keys, expires, 0, bytes]);
        }
    }
    let now_ms = c.time.ms();
    for db in dbs.iter_mut().filter(|db| db[2] > 0) {
        let (mut sum_ms, mut count) = (0, 0);
        for slice in c.slices.iter() {
            let part = slice.db(db[0] as u16);
            // As many samples of each slice as it has of the keys.
            let samples = (TTL_SAMPLES * part.table.len()).div_ceil(db[1]);
            for _ in 0..if part.expires > 0 { samples } else { 0 } {
                let drawn = part.table.random(c.rng).and_then(|entry| entry.expiry_ms());
                if let Some(at_ms) = drawn {
                    sum_ms += at_ms.saturating_sub(now_ms);
                    count += 1;
                }
            }
        }
        db[3] = sum_ms.checked_div(count).unwrap_or(0) as usize;
    }
    let head = [
        stats.hits,
        stats.misses,
        stats.expired,
        stats.evicted,
        stats.dirty,
        stats.lazyfreed_objects,
        trash as u64,
        watched as u64,
        table_bytes as u64,
        stats.expire_cycle_us,
        own_expiries as u64,
    ];
    assert_eq!(head.len(), SURVEY_HEAD_LEN);
    c.out.array(head.len() + 5 * dbs.len());
    for number in head.into_iter().chain(dbs.into_iter().flatten().map(|number| number as u64)) {
        c.out.int(number as i64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::SURVEY_HEAD_LEN;
    use crate::commands::testing::Node;

    fn numbers(node: &mut Node) -> Vec<i64> {
        let reply = node.run("info|survey");
        reply.lines().skip(1).map(|line| line[1..].parse().unwrap()).collect()
    }

    #[test]
    fn a_survey_counts_keys_and_estimates_their_time() {
        let mut node = Node::new();
        assert_eq!(numbers(&mut node).len(), SURVEY_HEAD_LEN);
        for i in 0..100 {
            node.run(&format!("SET k{i} v"));
            node.run(&format!("PEXPIRE k{i} 5000"));
        }
        node.db = 3;
        node.run("SET other v");
        node.run("GET none");
        let numbers = numbers(&mut node);
        let (head, dbs) = numbers.split_at(SURVEY_HEAD_LEN);
        assert_eq!((head[1], head[7]), (1, 0));
        assert_eq!((&dbs[..4], &dbs[5..9]), (&[0, 100, 100, 5000][..], &[3, 1, 0, 0][..]));
        assert!(head[8] >= dbs[4] + dbs[9] && dbs[4] > 0);
    }
}
