//! `SCAN` and `KEYS`: walking the keys of a database over all shards.
//!
//! A cursor says where to go on: the shard in its upper 16 bits, the position in that shard's table in the lower 48.
//! A table's positions are 64-bit hashes whose lowest bits are zero at the table's resolution, so nothing is lost.
//! The position outlives any change to the table, so a key that is there from the first call to the last is returned.

use super::generic::type_name;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, Outcome, WholeCtx};
use crate::glob;
use crate::keyspace::Keyspace;
use crate::resp::Reply;
use crate::resp::number::parse_i64;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("scan", -2, Handler::Cursor(scan))
        .flags(Flags::READONLY)
        .categories(Category::KEYSPACE)
        .doc(
            "generic",
            "2.8.0",
            "Walks the keys of the database, some at a time.",
            "O(1) for a call, O(N) for the whole walk over N keys.",
        ),
    Command::new("keys", 2, Handler::Whole(keys))
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

/// `SCAN` with all slices at hand, as within a transaction.
///
/// # Errors
/// Those of `SCAN`.
pub fn scan_whole(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    let cursor = Cursor::parse(args[1])?;
    let shards = u16::try_from(c.slices.len()).expect("fewer shards than a cursor can name");
    let slice = c.slices.get(usize::from(cursor.shard)).map(|slice| &**slice);
    scan_slice(slice, cursor, shards, c.db, c.time.ms(), args, c.out)
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
            let wanted = !entry.expiry_ms().is_some_and(|at| now_ms > at)
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
        if !entry.expiry_ms().is_some_and(|at| now_ms > at) && (all || glob::matches(pattern, entry.key())) {
            out.bulk(entry.key());
            found += 1;
        }
    });
    (next, found)
}

/// `KEYS` with all slices at hand, as within a transaction. Elsewhere it is run shard by shard with [`keys_slice`].
fn keys(c: &mut WholeCtx<'_>, args: Args<'_>) -> Outcome {
    let WholeCtx { slices, out, db, time, .. } = c;
    out.array_of(|out| {
        let mut found = 0;
        for slice in slices.iter() {
            let mut position = 0;
            loop {
                let (next, more) = append_matches(slice, *db, time.ms(), args[1], position, MAX_COUNT, out);
                found += more;
                position = next;
                if position == 0 {
                    break;
                }
            }
        }
        found
    });
    Ok(())
}
