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
