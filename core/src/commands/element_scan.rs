//! `HSCAN`, `SSCAN`, `ZSCAN`: walking the elements of one collection.
//!
//! A large collection is a table, whose positions outlive changes as those of the keyspace do (see `scan.rs`); a cursor
//! is a position without the low bits that are zero at any table's resolution. A compact one is returned whole.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::glob;
use crate::keyspace::Collection;
use crate::resp::Reply;
use crate::types::num::format_f64;
use crate::types::{Element, Hash, Set, ZSet, ZSetRef};

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
        let is_compact = matches!(zset.stored(), ZSetRef::Packed(_));
        let next = zset.scan(position, options.count, |member, value| {
            if options.wants(member) {
                bulk_element(out, member);
                // A string in RESP3 too, and printed as Redis prints it here and nowhere else.
                out.bulk(&if is_compact { format_f64(value) } else { format_17_digits(value) });
                len += 2;
            }
        });
        (next, len)
    })
}

/// A score in the format `%.17g` of C: what `ZSCAN` shows of a large set.
fn format_17_digits(value: f64) -> Vec<u8> {
    const DIGITS: i32 = 17;
    if !value.is_finite() || value == 0.0 {
        return format_f64(value);
    }
    let scientific = format!("{value:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("scientific notation has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a small integer");
    let trim = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    let text = if (-4..DIGITS).contains(&exponent) {
        let decimals = (DIGITS - 1 - exponent) as usize;
        let plain = format!("{value:.decimals$}");
        if decimals > 0 { trim(&plain) } else { plain }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    };
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::{Node, bulk};
    use std::collections::BTreeSet;

    /// The texts that C's printf gives.
    #[test]
    fn scores_print_with_17_digits() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (0.1, "0.10000000000000001"),
            (-0.0005, "-0.00050000000000000001"),
            (1e-5, "1.0000000000000001e-05"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (123456789012345678.0, "1.2345678901234568e+17"),
            (1e22, "1e+22"),
            (5e-324, "4.9406564584124654e-324"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(format_17_digits(value), text.as_bytes());
        }
    }

    /// The strings of a reply to a scan: the cursor, then the elements.
    fn strings(reply: &str) -> Vec<String> {
        reply
            .split("\r\n")
            .filter(|line| !line.is_empty() && !line.starts_with(['*', '$']))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_walk_meets_every_element_in_every_encoding() {
        for (add, scan, each) in [("SADD k", "SSCAN", 1), ("HSET k", "HSCAN", 2), ("ZADD k", "ZSCAN", 2)] {
            for (count, prefix) in [(40, ""), (40, "m"), (3000, "m")] {
                let mut node = Node::new();
                for i in 0..count {
                    let second = if each == 2 { format!("{i} ") } else { String::new() };
                    node.run(&format!("{add} {second}{prefix}{i}{}", if scan == "HSCAN" { "x" } else { "" }));
                }
                let (mut cursor, mut seen) = ("0".to_owned(), BTreeSet::new());
                loop {
                    let found = strings(&node.run(&format!("{scan} k {cursor} COUNT 100")));
                    cursor = found[0].clone();
                    assert!(found.len() < 600 && found[1..].len().is_multiple_of(each));
                    seen.extend(found[1..].chunks(each).map(|parts| parts.join("=")));
                    if cursor == "0" {
                        break;
                    }
                }
                assert_eq!(seen.len(), count, "{scan} {prefix}");
            }
        }
    }

    #[test]
    fn options_choose_elements_and_parts() {
        let mut node = Node::new();
        node.run("HSET h a 1 b 2 ab 3");
        let empty = "*2\r\n$1\r\n0\r\n*0\r\n";
        let of = |texts: &[&str]| {
            let bulks: String = texts.iter().map(|text| bulk(text)).collect();
            format!("*2\r\n$1\r\n0\r\n*{}\r\n{bulks}", texts.len())
        };
        assert_eq!(node.run("HSCAN h 0 MATCH a* COUNT 5"), of(&["a", "1", "ab", "3"]));
        assert_eq!(node.run("HSCAN h 0 NOVALUES match *b"), of(&["b", "ab"]));
        assert_eq!(node.run3("HSCAN h 0 MATCH b"), of(&["b", "2"]));
        // Without a key, nobody looks at the options.
        assert_eq!(node.run("HSCAN none 0 NONSENSE"), empty);
        node.run("ZADD z 0.1 m");
        assert_eq!(node.run3("ZSCAN z 0"), of(&["m", "0.1"]));
        node.run(&format!("ZADD z 1 {}", "x".repeat(65)));
        assert_eq!(node.run("ZSCAN z 0 MATCH m"), of(&["m", "0.10000000000000001"]));
        for (line, error) in [
            ("HSCAN none x", "invalid cursor"),
            ("HSCAN h 0 COUNT 0", "syntax error"),
            ("HSCAN h 0 COUNT x", "value is not an integer or out of range"),
            ("HSCAN h 0 MATCH", "syntax error"),
            ("HSCAN h 0 TYPE hash", "syntax error"),
            ("ZSCAN z 0 NOVALUES", "NOVALUES option can only be used in HSCAN"),
        ] {
            assert_eq!(node.run(line), format!("-ERR {error}\r\n"), "{line}");
        }
        assert!(node.run("SSCAN h 0").starts_with("-WRONGTYPE"));
    }
}
