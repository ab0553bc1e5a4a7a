//! Commands over the whole keyspace: its size, emptying it, exchanging databases, a random key.

use super::generic::parse_int;
use crate::command::{Args, Category, Command, Error, Flags, Handler, Outcome, WholeCtx};
use crate::keyspace::Keys;

const CLEARING: Category = Category::KEYSPACE.or(Category::DANGEROUS);

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("dbsize", 1, Handler::Whole(dbsize))
        .flags(Flags::READONLY.or(Flags::FAST))
        .categories(Category::KEYSPACE)
        .doc("server", "1.0.0", "Counts the keys of the database.", "O(1)"),
    Command::new("flushall", -1, Handler::Whole(flushall)).flags(Flags::WRITE).categories(CLEARING).doc(
        "server",
        "1.0.0",
        "Removes all keys of all databases.",
        "O(1) for each database; the memory is reclaimed in the background.",
    ),
    Command::new("flushdb", -1, Handler::Whole(flushdb)).flags(Flags::WRITE).categories(CLEARING).doc(
        "server",
        "1.0.0",
        "Removes all keys of the database.",
        "O(1); the memory is reclaimed in the background.",
    ),
    Command::new("swapdb", 3, Handler::Whole(swapdb))
        .flags(Flags::WRITE.or(Flags::FAST))
        .categories(CLEARING)
        .doc("server", "4.0.0", "Exchanges two databases.", "O(N) for N watched keys."),
    Command::new("randomkey", 1, Handler::Whole(randomkey))
        .flags(Flags::READONLY)
        .categories(Category::KEYSPACE)
        .doc("generic", "1.0.0", "Returns a key chosen at random.", "O(1)"),
];

fn dbsize(c: &mut WholeCtx<'_>, _: Args<'_>) -> Outcome {
    let len: usize = c.slices.iter().map(|slice| slice.db(c.db).table.len()).sum();
    c.out.int(len as i64);
    Ok(())
}

/// ASYNC and SYNC are accepted and mean the same: the old content is always freed in slices.
fn check_flush_mode(args: Args<'_>) -> Outcome {
    let known = args.len() == 1 || args.len() == 2 && (args.is(1, "ASYNC") || args.is(1, "SYNC"));
    if known { Ok(()) } else { Err(Error::Syntax) }
}

fn flushall(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    check_flush_mode(args)?;
    for slice in c.slices.iter_mut() {
        for db in 0..slice.databases() as u16 {
            slice.clear(db);
        }
    }
    // Told even when there was nothing to remove: a replica may differ.
    c.replicate(args.list());
    c.out.ok();
    Ok(())
}

fn flushdb(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    check_flush_mode(args)?;
    for slice in c.slices.iter_mut() {
        slice.clear(c.db);
    }
    c.replicate(args.list());
    c.out.ok();
    Ok(())
}

fn swapdb(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    let first = parse_int(args[1]).map_err(|_| Error::text("ERR invalid first DB index"))?;
    let second = parse_int(args[2]).map_err(|_| Error::text("ERR invalid second DB index"))?;
    let databases = c.slices[0].databases();
    let known = |db: i32| u16::try_from(db).ok().filter(|&db| usize::from(db) < databases);
    let (Some(first), Some(second)) = (known(first), known(second)) else {
        return Err(Error::text("ERR DB index is out of range"));
    };
    if first != second {
        for slice in c.slices.iter_mut() {
            slice.swap(first, second);
        }
    }
    c.replicate(args.list());
    c.out.ok();
    Ok(())
}

/// Keys drawn before the rest is taken to have expired.
const MAX_DRAWS: usize = 100;

fn randomkey(c: &mut WholeCtx<'_>, _: Args<'_>) -> Outcome {
    let mut expired = None;
    for _ in 0..MAX_DRAWS {
        let total: usize = c.slices.iter().map(|slice| slice.db(c.db).table.len()).sum();
        if total == 0 {
            expired = None;
            break;
        }
        let mut nth = c.rng.usize(..total);
        let index = c.slices.iter().position(|slice| {
            let len = slice.db(c.db).table.len();
            let here = nth < len;
            nth = nth.saturating_sub(len);
            here
        });
        let space = &mut *c.slices[index.expect("the number is below the sum")];
        let drawn = space.db(c.db).table.random(c.rng).expect("the slice is not empty");
        let key: Box<[u8]> = drawn.key().into();
        let mut keys = Keys {
            space,
            effects: c.effects,
            settings: c.settings,
            db: c.db,
            now_ms: c.time.ms(),
            replica: c.replica,
            from_master: false,
            no_touch: true,
        };
        // On a master the look removes what has expired, so the next draw is among the others.
        if keys.exists(&key) {
            c.out.bulk(&key);
            return Ok(());
        }
        expired = c.replica.then_some(key);
    }
    match expired {
        // A replica that holds hardly anything else: as Redis, an expired key rather than none.
        Some(key) => c.out.bulk(&key),
        None => c.out.null(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Effects, Settings, Time, registry};
    use crate::commands::testing::{NULL, Node, OK, bulk, commands};
    use crate::keyspace::{KeyEntry, Keyspace, WatcherId};
    use crate::resp::Reply;
    use crate::table::{HashKey, NewValue};
    use std::collections::HashMap;

    /// A node of several slices.
    struct Nodes {
        slices: Vec<Keyspace>,
        rng: fastrand::Rng,
        now_ms: u64,
        replica: bool,
    }

    impl Nodes {
        fn new(count: usize) -> Self {
            let slices = (0..count).map(|_| Keyspace::new(4, HashKey::from_seed(9))).collect();
            Self { slices, rng: fastrand::Rng::with_seed(5), now_ms: 1000, replica: false }
        }

        fn put(&mut self, slice: usize, db: u16, key: &str, expiry_ms: Option<u64>) {
            let entry = KeyEntry::with_expiry(key.as_bytes(), NewValue::Int(1), expiry_ms);
            self.slices[slice].attach(db, entry);
        }

        /// Runs a command in database 1: its reply and its effects.
        fn run(&mut self, line: &str) -> (String, String) {
            let (mut out, mut effects, settings) =
                (Reply::default(), Effects::default(), Settings::default());
            effects.set_enabled(true);
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let Handler::Whole(run) = registry().find(args[0]).unwrap().1.handler else { panic!("{line}") };
            let mut parts: Vec<&mut Keyspace> = self.slices.iter_mut().collect();
            let mut ctx = WholeCtx {
                slices: &mut parts,
                effects: &mut effects,
                out: &mut out,
                rng: &mut self.rng,
                settings: &settings,
                db: 1,
                time: Time { us: self.now_ms * 1000 },
                replica: self.replica,
            };
            run(&mut ctx, Args::new(&args, &[])).unwrap();
            let effects = commands(&effects.take().pieces.concat());
            let effects: Vec<String> =
                effects.iter().map(|args| String::from_utf8(args.join(&b' ')).unwrap()).collect();
            (String::from_utf8(out.to_wire()).unwrap(), effects.join("\n"))
        }

        fn len(&self, db: u16) -> usize {
            self.slices.iter().map(|slice| slice.db(db).table.len()).sum()
        }
    }

    #[test]
    fn all_slices_count_and_are_emptied() {
        for (line, want) in [("FLUSHDB", (0, 7)), ("FLUSHALL async", (0, 0)), ("flushdb SYNC", (0, 7))] {
            let mut nodes = Nodes::new(3);
            for i in 0..30 {
                nodes.put(i % 3, 1, &format!("k{i}"), None);
            }
            for i in 0..7 {
                nodes.put(i % 3, 2, &format!("k{i}"), None);
            }
            let watcher = WatcherId { shard: 0, conn: 1 };
            nodes.slices[1].watches.watch(watcher, 1, b"k4", false);
            assert_eq!(nodes.run("DBSIZE").0, ":30\r\n");
            assert_eq!(nodes.run(line), (OK.to_owned(), line.to_owned()));
            assert_eq!((nodes.len(1), nodes.len(2)), want);
            assert!(nodes.slices[1].watch_is_dirty(watcher, 0));
            assert_eq!(nodes.run(line).1, line, "told even when there is nothing to remove");
        }
        let mut node = Node::new();
        for line in ["FLUSHALL now", "FLUSHALL ASYNC SYNC", "FLUSHDB x"] {
            assert_eq!(node.run(line), "-ERR syntax error\r\n");
        }
        assert_eq!(node.effects(), "");
    }

    #[test]
    fn databases_are_exchanged_in_every_slice() {
        let mut nodes = Nodes::new(2);
        nodes.put(0, 1, "a", Some(5000));
        nodes.put(1, 2, "b", None);
        assert_eq!(nodes.run("SWAPDB 1 2"), (OK.to_owned(), "SWAPDB 1 2".to_owned()));
        assert_eq!(nodes.slices[0].db(2).table.len() + nodes.slices[1].db(1).table.len(), 2);
        assert_eq!(nodes.slices[0].db(2).expires, 1);
        let mut node = Node::new();
        for (line, error) in [
            ("SWAPDB x 1", "invalid first DB index"),
            ("SWAPDB 0 9999999999", "invalid second DB index"),
            ("SWAPDB 0 16", "DB index is out of range"),
            ("SWAPDB -1 0", "DB index is out of range"),
        ] {
            assert_eq!(node.run(line), format!("-ERR {error}\r\n"));
        }
        assert_eq!(node.run("SWAPDB 3 3"), OK);
    }

    #[test]
    fn every_key_has_the_same_chance() {
        let mut nodes = Nodes::new(3);
        assert_eq!(nodes.run("RANDOMKEY").0, NULL);
        // Slices of very different sizes, one of them empty.
        for i in 0..40 {
            nodes.put(if i < 4 { 0 } else { 2 }, 1, &format!("k{i}"), None);
        }
        nodes.put(0, 0, "elsewhere", None);
        let mut counts: HashMap<String, u32> = HashMap::new();
        for _ in 0..40_000 {
            *counts.entry(nodes.run("RANDOMKEY").0).or_default() += 1;
        }
        assert_eq!(counts.len(), 40);
        // 1000 each; the deviation is 31, so 200 more or less is beyond chance.
        assert!(counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_random_key_has_not_expired() {
        let mut nodes = Nodes::new(2);
        for i in 0..20 {
            nodes.put(i % 2, 1, &format!("over{i}"), Some(10));
        }
        nodes.put(0, 1, "live", Some(1000));
        let (reply, effects) = nodes.run("RANDOMKEY");
        assert_eq!(reply, bulk("live"));
        assert_eq!(effects.lines().count(), 21 - nodes.len(1));
        nodes.now_ms = 1001;
        assert_eq!(nodes.run("RANDOMKEY").0, NULL);
        assert_eq!(nodes.len(1), 0);
        nodes.put(0, 1, "over", Some(10));
        nodes.replica = true;
        assert_eq!(nodes.run("RANDOMKEY"), (bulk("over"), String::new()));
        assert_eq!(nodes.len(1), 1);
    }
}
