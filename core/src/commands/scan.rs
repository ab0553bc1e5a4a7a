//! `SCAN` and `KEYS`: walking the keys of a database over all shards.
//!
//! A cursor says where to go on: the shard in its upper 16 bits, the position in that shard's table in the lower 48.
//! A table's positions are 64-bit hashes whose lowest bits are zero at the table's resolution, so nothing is lost.
//! The position outlives any change to the table, so a key that is there from the first call to the last is returned.

use super::generic::type_name;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, Outcome, Walk, WholeCtx};
use crate::glob;
use crate::keyspace::Keyspace;
use crate::resp::Reply;
use crate::resp::number::parse_i64;
use crate::table::EntryRef;
use crate::types::Object;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("scan", -2, Handler::Cursor(Walk { slice: scan, whole: scan_whole }))
        .flags(Flags::READONLY)
        .categories(Category::KEYSPACE)
        .doc(
            "generic",
            "2.8.0",
            "Walks the keys of the database, some at a time.",
            "O(1) for a call, O(N) for the whole walk over N keys.",
        ),
    Command::new("keys", 2, Handler::Cursor(Walk { slice: keys, whole: keys_whole }))
        .flags(Flags::READONLY)
        .categories(Category::KEYSPACE.or(Category::DANGEROUS))
        .doc(
            "generic",
            "1.0.0",
            "Returns all keys that match a pattern.",
            "O(N) for N keys in the database.",
        ),
];

/// Bits of a cursor that hold the position within a shard's table.
const POSITION_BITS: u32 = 48;
/// Low bits of a table's position that a cursor leaves out.
const DROPPED_BITS: u32 = 64 - POSITION_BITS;
/// Keys visited by one call at most, whatever COUNT says (it is a hint): a call holds its shard for less than a
/// millisecond.
const MAX_COUNT: usize = 8192;
const DEFAULT_COUNT: usize = 10;

/// Where a walk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    shard: u16,
    /// A position in the shard's table.
    position: u64,
}

impl Cursor {
    fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(text).ok();
        let cursor: u64 = text.and_then(|text| text.parse().ok()).ok_or(Error::text("ERR invalid cursor"))?;
        Ok(Self { shard: (cursor >> POSITION_BITS) as u16, position: cursor << DROPPED_BITS })
    }

    /// The cursor behind a call that walked `shard` and returned the table's `position`; 0 when all is done.
    fn after(shard: u16, position: u64, shards: u16) -> u64 {
        assert_eq!(
            position.trailing_zeros().min(DROPPED_BITS),
            DROPPED_BITS,
            "a position finer than a cursor"
        );
        if position != 0 {
            u64::from(shard) << POSITION_BITS | position >> DROPPED_BITS
        } else if shard + 1 < shards {
            u64::from(shard + 1) << POSITION_BITS
        } else {
            0
        }
    }
}

/// The options of `SCAN`.
struct Options<'a> {
    pattern: Option<&'a [u8]>,
    type_name: Option<&'a [u8]>,
    count: usize,
}

impl<'a> Options<'a> {
    fn parse(args: Args<'a>) -> Result<Self, Error> {
        let mut options = Self { pattern: None, type_name: None, count: DEFAULT_COUNT };
        let mut at = 2;
        while at < args.len() {
            let value = args.get(at + 1).copied();
            match value {
                Some(value) if args.is(at, "COUNT") => {
                    let count = parse_i64(value).ok_or(Error::NotInteger)?;
                    let count = usize::try_from(count).ok().filter(|&count| count > 0);
                    options.count = count.ok_or(Error::Syntax)?.min(MAX_COUNT);
                }
                Some(value) if args.is(at, "MATCH") => options.pattern = Some(value).filter(|&p| p != b"*"),
                Some(value) if args.is(at, "TYPE") => options.type_name = Some(value),
                _ if args.is(at, "NOVALUES") => {
                    return Err(Error::text("ERR NOVALUES option can only be used in HSCAN"));
                }
                _ => return Err(Error::Syntax),
            }
            at += 2;
        }
        Ok(options)
    }
}

/// The shard that a `SCAN` is for. A cursor of a shard that does not exist, for there once were more of them, means
/// that the walk is over; any shard can tell.
///
/// # Errors
/// A cursor that is no number.
pub fn scan_shard(args: Args<'_>, shards: u16) -> Result<u16, Error> {
    let cursor = Cursor::parse(args.get(1).copied().unwrap_or_default())?;
    Ok(if cursor.shard < shards { cursor.shard } else { 0 })
}

fn scan(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let cursor = Cursor::parse(args[1])?;
    let here = if cursor.shard == c.shard { Some(&*c.keys.space) } else { None };
    assert!(here.is_some() || cursor.shard >= c.shards, "a SCAN goes to the shard of its cursor");
    let (db, now_ms) = (c.keys.db, c.keys.now_ms);
    scan_slice(here, cursor, c.shards, db, now_ms, args, c.out)
}

/// `SCAN` with all slices at hand.
fn scan_whole(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    let cursor = Cursor::parse(args[1])?;
    let shards = u16::try_from(c.slices.len()).expect("fewer shards than a cursor can name");
    let slice = c.slices.get(usize::from(cursor.shard)).map(|slice| &**slice);
    scan_slice(slice, cursor, shards, c.db, c.time.ms(), args, c.out)
}

/// Whether a key is still to be seen. What has expired is left to the expiry sweep.
fn is_live(entry: EntryRef<'_, Object>, now_ms: u64) -> bool {
    entry.expiry_ms().is_none_or(|at| now_ms <= at)
}

/// One call's work: on `slice`, that of the cursor, or on nothing if that does not exist.
fn scan_slice(
    slice: Option<&Keyspace>,
    cursor: Cursor,
    shards: u16,
    db: u16,
    now_ms: u64,
    args: Args<'_>,
    out: &mut Reply,
) -> Outcome {
    let options = Options::parse(args)?;
    let mut found = Reply::new(out.resp3);
    let mut len = 0;
    let next = slice.map_or(0, |slice| {
        let table = &slice.db(db).table;
        let position = table.scan(cursor.position, options.count, |entry| {
            let wanted = is_live(entry, now_ms)
                && options
                    .type_name
                    .is_none_or(|name| type_name(entry.value()).as_bytes().eq_ignore_ascii_case(name))
                && options.pattern.is_none_or(|pattern| glob::matches(pattern, entry.key()));
            if wanted {
                len += 1;
                found.bulk(entry.key());
            }
        });
        Cursor::after(cursor.shard, position, shards)
    });
    out.array(2);
    let mut digits = itoa::Buffer::new();
    out.bulk(digits.format(next).as_bytes());
    out.array(len);
    out.append_encoded(&found.buf, found.pieces);
    Ok(())
}

/// One slice of a `KEYS` over this shard's keys: visits some `budget` keys from `position` on (0 to begin) and appends
/// those that match to the reply, as elements of an array whose header the caller writes. Returns the position for the
/// next call (0: this shard is done) and how many were appended.
pub fn keys_slice(c: &mut Ctx<'_>, pattern: &[u8], position: u64, budget: usize) -> (u64, usize) {
    append_matches(c.keys.space, c.keys.db, c.keys.now_ms, pattern, position, budget, c.out)
}

fn append_matches(
    slice: &Keyspace,
    db: u16,
    now_ms: u64,
    pattern: &[u8],
    position: u64,
    budget: usize,
    out: &mut Reply,
) -> (u64, usize) {
    let mut found = 0;
    let all = pattern == b"*";
    let next = slice.db(db).table.scan(position, budget, |entry| {
        if is_live(entry, now_ms) && (all || glob::matches(pattern, entry.key())) {
            out.bulk(entry.key());
            found += 1;
        }
    });
    (next, found)
}

/// `KEYS` of one slice, all at once: within a transaction, or where there is one shard. Elsewhere the keys are gathered
/// slice by slice, with [`keys_slice`] or `SCAN`.
fn keys(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    reply_keys([&*c.keys.space].into_iter(), c.keys.db, c.keys.now_ms, args[1], c.out);
    Ok(())
}

fn keys_whole(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    reply_keys(c.slices.iter().map(|slice| &**slice), c.db, c.time.ms(), args[1], c.out);
    Ok(())
}

fn reply_keys<'k>(
    slices: impl Iterator<Item = &'k Keyspace>,
    db: u16,
    now_ms: u64,
    pattern: &[u8],
    out: &mut Reply,
) {
    out.array_of(|out| {
        let mut len = 0;
        for slice in slices {
            let mut position = 0;
            loop {
                let (next, found) = append_matches(slice, db, now_ms, pattern, position, MAX_COUNT, out);
                len += found;
                position = next;
                if position == 0 {
                    break;
                }
            }
        }
        len
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Effects, Settings, Time};
    use crate::commands::testing::{Node, bulk};
    use crate::keyspace::{KeyEntry, Keys};
    use crate::table::{HashKey, NewValue};
    use std::collections::{HashMap, HashSet};

    const NOW_MS: u64 = 1_700_000_000_000;

    fn put(slice: &mut Keyspace, key: &str, expiry_ms: Option<u64>) {
        slice.attach(0, KeyEntry::with_expiry(key.as_bytes(), NewValue::Int(1), expiry_ms));
    }

    fn slices(count: usize) -> Vec<Keyspace> {
        (0..count).map(|_| Keyspace::new(2, HashKey::from_seed(3))).collect()
    }

    /// Runs `work` as a command on one slice; its reply.
    fn on_slice<R>(slices: &mut [Keyspace], shard: u16, work: impl FnOnce(&mut Ctx<'_>) -> R) -> (R, String) {
        let (mut out, mut effects, settings) = (Reply::default(), Effects::default(), Settings::default());
        let shards = slices.len() as u16;
        let keys = Keys {
            space: &mut slices[usize::from(shard)],
            effects: &mut effects,
            settings: &settings,
            db: 0,
            now_ms: NOW_MS,
            replica: false,
            from_master: false,
            no_touch: false,
        };
        let (rng, time) = (&mut fastrand::Rng::with_seed(1), Time { us: NOW_MS * 1000 });
        let result = work(&mut Ctx { keys, out: &mut out, rng, time, watcher: None, shard, shards });
        (result, String::from_utf8(out.to_wire()).unwrap())
    }

    fn on_all<R>(slices: &mut [Keyspace], work: impl FnOnce(&mut WholeCtx<'_>) -> R) -> (R, String) {
        let (mut out, mut effects, settings) = (Reply::default(), Effects::default(), Settings::default());
        let mut parts: Vec<&mut Keyspace> = slices.iter_mut().collect();
        let result = work(&mut WholeCtx {
            slices: &mut parts,
            effects: &mut effects,
            out: &mut out,
            rng: &mut fastrand::Rng::with_seed(1),
            settings: &settings,
            db: 0,
            time: Time { us: NOW_MS * 1000 },
            replica: false,
        });
        (result, String::from_utf8(out.to_wire()).unwrap())
    }

    /// The bulk strings in a reply.
    fn bulks(reply: &str) -> Vec<String> {
        let mut lines = reply.split("\r\n");
        let mut bulks = Vec::new();
        while let Some(line) = lines.next() {
            if line.starts_with('$') {
                bulks.push(lines.next().unwrap().to_owned());
            }
        }
        bulks
    }

    /// One `SCAN`, sent where its cursor says: the next cursor and the keys.
    fn scan_once(slices: &mut [Keyspace], line: &str, within_transaction: bool) -> (String, Vec<String>) {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let args = Args::new(&args, &[]);
        let (outcome, reply) = if within_transaction {
            on_all(slices, |c| scan_whole(c, args))
        } else {
            let shard = scan_shard(args, slices.len() as u16).unwrap();
            on_slice(slices, shard, |c| scan(c, args))
        };
        outcome.unwrap();
        let mut bulks = bulks(&reply);
        let cursor = bulks.remove(0);
        assert!(reply.contains(&format!("\r\n*{}\r\n", bulks.len())));
        (cursor, bulks)
    }

    fn scan_all(
        slices: &mut [Keyspace],
        options: &str,
        mut between: impl FnMut(&mut [Keyspace]),
    ) -> Vec<String> {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        for call in 0..100_000 {
            let (next, keys) = scan_once(slices, &format!("SCAN {cursor}{options}"), call % 3 == 0);
            found.extend(keys);
            if next == "0" {
                return found;
            }
            cursor = next;
            between(slices);
        }
        panic!("a walk without end");
    }

    #[test]
    fn a_walk_over_quiet_slices_returns_every_key_once() {
        for (shards, len) in [(1, 5000), (3, 5000), (4, 2), (64, 700), (2, 0)] {
            let mut slices = slices(shards);
            for i in 0..len {
                put(&mut slices[i % shards], &format!("key:{i}"), None);
            }
            for options in ["", " COUNT 1", " COUNT 300 MATCH *", " COUNT 1000000 TYPE STRING"] {
                let mut found = scan_all(&mut slices, options, |_| {});
                assert_eq!(found.len(), len, "{options}");
                found.sort();
                found.dedup();
                assert_eq!(found.len(), len, "{options}");
            }
            assert!(scan_all(&mut slices, " TYPE list", |_| {}).is_empty());
        }
    }

    #[test]
    fn what_is_there_throughout_is_returned_whatever_else_happens() {
        for seed in 0..8 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let shards = rng.usize(1..6);
            let mut slices = slices(shards);
            let mut steady = HashSet::new();
            let mut extra: Vec<(usize, String)> = Vec::new();
            for i in 0..3000 {
                put(&mut slices[i % shards], &format!("steady:{i}"), None);
                steady.insert(format!("steady:{i}"));
            }
            let mut added = 0;
            let growing = rng.bool();
            let found = scan_all(&mut slices, " COUNT 40", |slices| {
                for _ in 0..rng.usize(0..400) {
                    if extra.is_empty() || rng.u8(..10) < if growing { 8 } else { 4 } {
                        added += 1;
                        let (shard, key) = (rng.usize(0..shards), format!("extra:{added}"));
                        put(&mut slices[shard], &key, None);
                        extra.push((shard, key));
                    } else {
                        let (shard, key) = extra.swap_remove(rng.usize(0..extra.len()));
                        slices[shard].detach(0, key.as_bytes()).unwrap();
                    }
                }
            });
            let found: HashSet<String> = found.into_iter().collect();
            assert!(steady.is_subset(&found), "seed {seed}");
            assert!(found.len() > steady.len(), "the churn was not seen at all: seed {seed}");
        }
    }

    #[test]
    fn expired_keys_are_not_returned_and_patterns_choose() {
        let mut slices = slices(2);
        put(&mut slices[0], "a1", Some(NOW_MS - 1));
        put(&mut slices[0], "a2", Some(NOW_MS));
        put(&mut slices[1], "a3", None);
        put(&mut slices[1], "b1", None);
        let sorted = |mut keys: Vec<String>| {
            keys.sort();
            keys
        };
        assert_eq!(sorted(scan_all(&mut slices, "", |_| {})), ["a2", "a3", "b1"]);
        assert_eq!(sorted(scan_all(&mut slices, " match a* COUNT 1", |_| {})), ["a2", "a3"]);
        for (pattern, want) in [("*", vec!["a2", "a3", "b1"]), ("?1", vec!["b1"]), ("x*", vec![])] {
            let (outcome, reply) =
                on_all(&mut slices, |c| keys_whole(c, Args::new(&[b"KEYS", pattern.as_bytes()], &[])));
            outcome.unwrap();
            assert!(reply.starts_with(&format!("*{}\r\n", want.len())));
            assert_eq!(sorted(bulks(&reply)), want);
        }
    }

    #[test]
    fn keys_comes_in_bounded_slices() {
        let mut slices = slices(2);
        for i in 0..2000 {
            put(&mut slices[i % 2], &format!("key:{i}"), None);
        }
        let mut counts: HashMap<String, usize> = HashMap::new();
        for shard in 0..2 {
            let mut position = 0;
            loop {
                let ((next, found), reply) =
                    on_slice(&mut slices, shard, |c| keys_slice(c, b"key:*5", position, 50));
                let keys = bulks(&reply);
                assert!(keys.len() == found && found <= 52);
                keys.into_iter().for_each(|key| *counts.entry(key).or_default() += 1);
                position = next;
                if position == 0 {
                    break;
                }
            }
        }
        assert!(counts.len() == 200 && counts.values().all(|&count| count == 1));
    }

    #[test]
    fn cursors_of_any_origin_are_safe() {
        let mut node = Node::new();
        node.run("SET k v");
        let all = format!("*2\r\n{}*1\r\n{}", bulk("0"), bulk("k"));
        let over = format!("*2\r\n{}*0\r\n", bulk("0"));
        assert_eq!(node.run("SCAN 0"), all);
        assert_eq!(node.run3("SCAN 00 COUNT 1"), all);
        assert_eq!(node.run("SCAN 18446744073709551615"), over);
        assert_eq!(node.run("SCAN 281474976710656"), over);
        for bad in ["x", "-1", "18446744073709551616", "1.5", "0x0"] {
            assert_eq!(node.run(&format!("SCAN {bad}")), "-ERR invalid cursor\r\n");
            assert!(scan_shard(Args::new(&[b"scan", bad.as_bytes()], &[]), 4).is_err());
        }
        let cursor = (5u64 << 48 | 77).to_string();
        let args = [&b"scan"[..], cursor.as_bytes()];
        assert_eq!(scan_shard(Args::new(&args, &[]), 6), Ok(5));
        assert_eq!(scan_shard(Args::new(&args, &[]), 5), Ok(0));
        for (options, error) in [
            ("COUNT 0", "syntax error"),
            ("COUNT -1", "syntax error"),
            ("COUNT x", "value is not an integer or out of range"),
            ("COUNT", "syntax error"),
            ("FOO 1", "syntax error"),
            ("NOVALUES", "NOVALUES option can only be used in HSCAN"),
        ] {
            assert_eq!(node.run(&format!("SCAN 0 {options}")), format!("-ERR {error}\r\n"));
        }
        assert_eq!(node.run("SCAN 0 TYPE nosuchtype"), over);
    }
}
