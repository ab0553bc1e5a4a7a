//! `HSCAN`, `SSCAN`, `ZSCAN`: walking the elements of one collection.
//!
//! A large collection is a table, whose positions outlive changes as those of the keyspace do (see `scan.rs`); a cursor
//! is a position without the low bits that are zero at any table's resolution. A compact one is returned whole.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::glob;
use crate::keyspace::Collection;
use crate::resp::Reply;
use crate::types::{Element, Hash, Set, ZSet};

const COMPLEXITY: &str = "O(1) for a call, O(N) for the whole walk over N elements.";

/// The family's declarations.
pub const COMMANDS: &[Command] =
    &[
        Command::new("hscan", -3, Handler::Keys(hscan))
            .flags(READ)
            .categories(Category::HASH)
            .keys(ACCESS)
            .doc("hash", "2.8.0", "Walks the fields of a hash, some at a time.", COMPLEXITY),
        Command::new("sscan", -3, Handler::Keys(sscan))
            .flags(READ)
            .categories(Category::SET)
            .keys(ACCESS)
            .doc("set", "2.8.0", "Walks the members of a set, some at a time.", COMPLEXITY),
        Command::new("zscan", -3, Handler::Keys(zscan))
            .flags(READ)
            .categories(Category::SORTEDSET)
            .keys(ACCESS)
            .doc("sorted-set", "2.8.0", "Walks the members of a sorted set, some at a time.", COMPLEXITY),
    ];

/// Low bits of a table's position that a cursor leaves out: clients read cursors into signed numbers.
const DROPPED_BITS: u32 = 16;
const DEFAULT_COUNT: usize = 10;
/// Elements visited by one call at most, whatever COUNT says (it is a hint).
const MAX_COUNT: usize = 8192;

/// What stands behind the cursor.
struct Options<'a> {
    pattern: Option<&'a [u8]>,
    count: usize,
    names_only: bool,
}

impl<'a> Options<'a> {
    fn parse(args: Args<'a>, is_hash: bool) -> Result<Self, Error> {
        let mut options = Self { pattern: None, count: DEFAULT_COUNT, names_only: false };
        let mut at = 3;
        while at < args.len() {
            match args.get(at + 1) {
                Some(value) if args.is(at, "COUNT") => {
                    let count = usize::try_from(integer(value)?).ok().filter(|&count| count > 0);
                    options.count = count.ok_or(Error::Syntax)?.min(MAX_COUNT);
                    at += 2;
                }
                Some(value) if args.is(at, "MATCH") => {
                    options.pattern = Some(*value).filter(|&pattern| pattern != b"*");
                    at += 2;
                }
                _ if args.is(at, "NOVALUES") && is_hash => {
                    options.names_only = true;
                    at += 1;
                }
                _ if args.is(at, "NOVALUES") => {
                    return Err(Error::text("ERR NOVALUES option can only be used in HSCAN"));
                }
                _ => return Err(Error::Syntax),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: Element<'_>) -> bool {
        self.pattern.is_none_or(|pattern| glob::matches(pattern, name.bytes(&mut itoa::Buffer::new())))
    }
}

/// One call on a collection: `walk` appends the wanted elements from a position on to a reply, and returns the next
/// position and how many parts it appended.
fn scan<C: Collection + 'static>(
    c: &mut Ctx<'_>,
    args: Args<'_>,
    is_hash: bool,
    walk: impl FnOnce(&C, u64, &Options<'_>, &mut Reply) -> (u64, usize),
) -> Outcome {
    let cursor = std::str::from_utf8(args[2]).ok().and_then(|text| text.parse::<u64>().ok());
    let cursor = cursor.ok_or(Error::text("ERR invalid cursor"))?;
    let mut found = Reply::new(c.out.resp3);
    let (mut next, mut len) = (0, 0);
    if let Some(collection) = c.keys.get::<C>(args[1])? {
        let options = Options::parse(args, is_hash)?;
        (next, len) = walk(collection, cursor << DROPPED_BITS, &options, &mut found);
    }
    assert!(next.is_multiple_of(1 << DROPPED_BITS), "a position finer than a cursor");
    c.out.array(2);
    c.out.bulk(itoa::Buffer::new().format(next >> DROPPED_BITS).as_bytes());
    c.out.array(len);
    c.out.append_encoded(&found.buf, found.pieces);
    Ok(())
}

fn hscan(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.keys.now_ms;
    scan::<Hash>(c, args, true, |hash, position, options, out| {
        let mut len = 0;
        let next = hash.scan(position, options.count, |field| {
            if field.is_live(now_ms) && options.wants(field.name) {
                bulk_element(out, field.name);
                if !options.names_only {
                    bulk_element(out, field.value);
                }
                len += if options.names_only { 1 } else { 2 };
            }
        });
        (next, len)
    })
}

fn sscan(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    scan::<Set>(c, args, false, |set, position, options, out| {
        let mut len = 0;
        let next = set.scan(position, options.count, |member| {
            if options.wants(member) {
                bulk_element(out, member);
                len += 1;
            }
        });
        (next, len)
    })
}

fn zscan(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    scan::<ZSet>(c, args, false, |zset, position, options, out| {
        let mut len = 0;
        let next = zset.scan(position, options.count, |member, value| {
            if options.wants(member) {
                bulk_element(out, member);
                // A string in RESP3 too.
                out.bulk(&crate::types::num::format_f64(value));
                len += 2;
            }
        });
        (next, len)
    })
}
