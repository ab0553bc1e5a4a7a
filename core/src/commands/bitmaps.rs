//! Strings as arrays of bits: the bit of position 0 is the highest of the first byte. `BITFIELD` is in
//! [`super::bitfield`].

use super::strings::resolve_range;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::keyspace::{StrRef, edit_string, grow_with_zeros};
use crate::resp::number::parse_i64;
use bytes::{Bytes, BytesMut};

pub(super) const ACCESS: &[KeySpec] = &[KeySpec::one(1, Use::Read, &["access"])];

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("bitcount", -2, Handler::Keys(bitcount))
        .flags(Flags::READONLY)
        .categories(Category::BITMAP)
        .keys(ACCESS)
        .doc("bitmap", "2.6.0", "Counts the bits that are set in a string, or in a part of it.", "O(N)"),
    Command::new("bitop", -4, Handler::Keys(bitop))
        .flags(Flags::WRITE.or(Flags::DENYOOM))
        .categories(Category::BITMAP)
        .keys(&[KeySpec::one(2, Use::Overwrite, &["update"]), KeySpec::all(3, 1, Use::Read, &["access"])])
        .doc("bitmap", "2.6.0", "Combines the bits of strings and stores the result.", "O(N)"),
    Command::new("bitpos", -3, Handler::Keys(bitpos))
        .flags(Flags::READONLY)
        .categories(Category::BITMAP)
        .keys(ACCESS)
        .doc("bitmap", "2.8.7", "Finds the first bit that is set, or clear, in a string.", "O(N)"),
    Command::new("getbit", 3, Handler::Keys(getbit))
        .flags(Flags::READONLY.or(Flags::FAST))
        .categories(Category::BITMAP)
        .keys(ACCESS)
        .doc("bitmap", "2.2.0", "Tells the bit at a position.", "O(1)"),
    Command::new("setbit", 4, Handler::Keys(setbit))
        .flags(Flags::WRITE.or(Flags::DENYOOM))
        .categories(Category::BITMAP)
        .keys(&[KeySpec::one(1, Use::ReadWrite, &["access", "update"])])
        .doc(
            "bitmap",
            "2.2.0",
            "Sets or clears the bit at a position; the string grows as far as needed.",
            "O(1)",
        ),
];

pub(super) const BAD_OFFSET: Error = Error::text("ERR bit offset is not an integer or out of range");

/// Checks a bit's position against the longest string.
pub(super) fn check_offset(c: &Ctx<'_>, offset: Option<i64>) -> Result<u64, Error> {
    let offset = offset.and_then(|offset| u64::try_from(offset).ok()).ok_or(BAD_OFFSET)?;
    if offset >> 3 >= c.keys.max_string_len_bytes() { Err(BAD_OFFSET) } else { Ok(offset) }
}

/// Lets `edit` change a string's bytes after growing it to `len_bytes`. The result, and whether it was made or grew.
pub(super) fn edit_grown<R>(
    c: &mut Ctx<'_>,
    key: &[u8],
    len_bytes: usize,
    edit: impl FnOnce(&mut [u8]) -> R,
) -> Result<(R, bool), Error> {
    if let Some(mut entry) = c.keys.write_string(key)? {
        return Ok(edit_string(&mut entry, |buf| {
            let grows = buf.len() < len_bytes;
            grow_with_zeros(buf, len_bytes);
            (edit(buf), grows)
        }));
    }
    let mut buf = BytesMut::zeroed(len_bytes);
    let result = edit(&mut buf);
    c.keys.put_buffer(key, buf.freeze());
    Ok((result, true))
}

fn setbit(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let offset = check_offset(c, parse_i64(args[2]))?;
    let bit = match parse_i64(args[3]) {
        Some(bit @ 0..=1) => bit as u8,
        _ => return Err(Error::text("ERR bit is not an integer or out of range")),
    };
    let (at, shift) = ((offset >> 3) as usize, 7 - (offset & 7));
    let (old, grew) = edit_grown(c, args[1], at + 1, |bytes| {
        let old = bytes[at] >> shift & 1;
        bytes[at] = bytes[at] & !(1 << shift) | bit << shift;
        old
    })?;
    if grew || old != bit {
        c.keys.changed(args[1]);
        c.keys.replicate_as_is(args);
    }
    c.out.int(i64::from(old));
    Ok(())
}

fn getbit(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let offset = check_offset(c, parse_i64(args[2]))?;
    let byte = c.keys.string(args[1])?.and_then(|value| {
        let at = (offset >> 3) as usize;
        value.with(|bytes| bytes.get(at).copied())
    });
    c.out.int(i64::from(byte.unwrap_or(0) >> (7 - (offset & 7)) & 1));
    Ok(())
}

fn parse_unit(args: Args<'_>, index: usize) -> Result<bool, Error> {
    match () {
        () if args.len() <= index || args.is(index, "BYTE") => Ok(false),
        () if args.is(index, "BIT") => Ok(true),
        () => Err(Error::Syntax),
    }
}

/// Set bits in bytes.
fn count_ones(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let in_words: u64 = words.iter().map(|word| u64::from(u64::from_ne_bytes(*word).count_ones())).sum();
    in_words + rest.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
}

fn bitcount(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    if args.len() > 5 {
        return Err(Error::Syntax);
    }
    let number =
        |index: usize| args.get(index).map(|arg| parse_i64(arg).ok_or(Error::NotInteger)).transpose();
    // A start without an end is Valkey's (since 8.1).
    let (start, end) = (number(2)?.unwrap_or(0), number(3)?.unwrap_or(-1));
    let in_bits = parse_unit(args, 4)?;
    let count = c.keys.string(args[1])?.map_or(0, |value| {
        value.with(|bytes| {
            let scale = if in_bits { 1 } else { 8 };
            let (first, len) = resolve_range(start, end, bytes.len() * 8 / scale);
            count_ones_between(bytes, first * scale, len * scale)
        })
    });
    c.out.int(count as i64);
    Ok(())
}

/// Set bits among `len` from `first` on.
fn count_ones_between(bytes: &[u8], first: usize, len: usize) -> u64 {
    if len == 0 {
        return 0;
    }
    let last = first + len - 1;
    let before = u64::from((bytes[first / 8] & !(0xff >> (first % 8))).count_ones());
    let behind = u64::from((bytes[last / 8] & !(0xff << (7 - last % 8))).count_ones());
    count_ones(&bytes[first / 8..=last / 8]) - before - behind
}

/// The first bit of that value among `len` from `first` on.
fn find_bit(bytes: &[u8], bit: bool, first: usize, len: usize) -> Option<usize> {
    if len == 0 {
        return None;
    }
    let end = first + len;
    // Bits that are looked for are ones from here on.
    let flip = if bit { 0 } else { 0xff };
    let head = (bytes[first / 8] ^ flip) & (0xff >> (first % 8));
    let found = if head != 0 {
        first / 8 * 8 + head.leading_zeros() as usize
    } else {
        let rest = &bytes[first / 8 + 1..end.div_ceil(8)];
        let dull = u64::from_ne_bytes([flip; 8]);
        let skipped =
            rest.as_chunks::<8>().0.iter().take_while(|word| u64::from_ne_bytes(**word) == dull).count() * 8;
        let at = skipped + rest[skipped..].iter().position(|byte| *byte != flip)?;
        (first / 8 + 1 + at) * 8 + (rest[at] ^ flip).leading_zeros() as usize
    };
    (found < end).then_some(found)
}

fn bitpos(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let bit = match parse_i64(args[2]).ok_or(Error::NotInteger)? {
        0 => false,
        1 => true,
        _ => return Err(Error::text("ERR The bit argument must be 1 or 0.")),
    };
    if args.len() > 6 {
        return Err(Error::Syntax);
    }
    let number =
        |index: usize| args.get(index).map(|arg| parse_i64(arg).ok_or(Error::NotInteger)).transpose();
    let start = number(3)?.unwrap_or(0);
    // The order of Redis's complaints: the unit's comes before that about the end.
    let in_bits = parse_unit(args, 5)?;
    let end = number(4)?;
    let position = match c.keys.string(args[1])? {
        None => (!bit).then_some(0),
        Some(value) => value.with(|bytes| {
            let scale = if in_bits { 1 } else { 8 };
            let (first, len) = resolve_range_for_search(start, end.unwrap_or(-1), bytes.len() * 8 / scale);
            let found = find_bit(bytes, bit, first * scale, len * scale);
            // Without an end the string is taken to go on with zeros for ever.
            found.or((!bit && end.is_none() && len > 0).then_some(bytes.len() * 8))
        }),
    };
    c.out.int(position.map_or(-1, |at| at as i64));
    Ok(())
}

/// As [`resolve_range`], but a range whose ends are both before the beginning is its first element: in `BITPOS` Redis
/// clamps first and compares then.
fn resolve_range_for_search(start: i64, end: i64, len: usize) -> (usize, usize) {
    let len = len as i64;
    let clamp = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    resolve_range(clamp(start), clamp(end), len as usize)
}

/// What `BITOP` does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    And,
    Or,
    Xor,
    Not,
    /// In the first and in no other.
    Diff,
    /// In some other and not in the first.
    Diff1,
    /// In the first and in some other.
    AndOr,
    /// In exactly one.
    One,
}

impl Operation {
    const ALL: [(&'static str, Self); 8] = [
        ("AND", Self::And),
        ("OR", Self::Or),
        ("XOR", Self::Xor),
        ("NOT", Self::Not),
        ("DIFF", Self::Diff),
        ("DIFF1", Self::Diff1),
        ("ANDOR", Self::AndOr),
        ("ONE", Self::One),
    ];

    /// Every version of Redis and Valkey knows it.
    fn is_old(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Xor | Self::Not)
    }

    /// Combines the sources, the short ones padded with zeros to `len_bytes`.
    fn run(self, sources: &[Bytes], len_bytes: usize) -> BytesMut {
        let (first, others) = sources.split_first().expect("at least one source");
        let padded = |source: &Bytes| {
            let mut bytes = BytesMut::from(&source[..]);
            bytes.resize(len_bytes, 0);
            bytes
        };
        match self {
            Self::Not => {
                let mut result = padded(first);
                result.iter_mut().for_each(|byte| *byte = !*byte);
                result
            }
            Self::And => {
                let mut result = padded(first);
                for other in others {
                    combine(&mut result, other, |a, b| a & b);
                    result[other.len()..].fill(0);
                }
                result
            }
            Self::Or | Self::Xor => {
                let mut result = padded(first);
                for other in others {
                    if self == Self::Or {
                        combine(&mut result, other, |a, b| a | b);
                    } else {
                        combine(&mut result, other, |a, b| a ^ b);
                    }
                }
                result
            }
            Self::Diff | Self::Diff1 | Self::AndOr => {
                let (second, rest) = others.split_first().expect("at least two sources");
                let mut result = padded(second);
                for other in rest {
                    combine(&mut result, other, |a, b| a | b);
                }
                match self {
                    Self::Diff => {
                        combine(&mut result, first, |a, b| b & !a);
                        result[first.len()..].fill(0);
                    }
                    Self::Diff1 => combine(&mut result, first, |a, b| a & !b),
                    _ => {
                        combine(&mut result, first, |a, b| a & b);
                        result[first.len()..].fill(0);
                    }
                }
                result
            }
            Self::One => {
                let (mut once, mut twice) = (padded(first), BytesMut::zeroed(len_bytes));
                for other in others {
                    for ((once, twice), byte) in once.iter_mut().zip(&mut twice[..]).zip(other) {
                        *twice |= *once & byte;
                        *once |= byte;
                    }
                }
                combine(&mut once, &twice, |a, b| a & !b);
                once
            }
        }
    }
}

/// Combines the beginning of `result` with `other`, which may be shorter.
fn combine(result: &mut [u8], other: &[u8], with: impl Fn(u8, u8) -> u8) {
    for (byte, other) in result.iter_mut().zip(other) {
        *byte = with(*byte, *other);
    }
}

fn bitop(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let found = Operation::ALL.iter().find(|(name, _)| args.is(1, name));
    let &(name, operation) = found.ok_or(Error::Syntax)?;
    let (dest, keys) = (args[2], &args[3..]);
    match operation {
        Operation::Not if keys.len() != 1 => {
            return Err(Error::text("ERR BITOP NOT must be called with a single source key."));
        }
        Operation::Diff | Operation::Diff1 | Operation::AndOr if keys.len() < 2 => {
            let text = format!("ERR BITOP {name} must be called with at least two source keys.");
            return Err(Error::owned(text));
        }
        _ => {}
    }
    let mut sources = Vec::with_capacity(keys.len());
    for key in keys {
        sources.push(c.keys.string(key)?.map_or_else(Bytes::new, StrRef::to_bytes));
    }
    let len = sources.iter().map(Bytes::len).max().expect("at least one source");
    if len == 0 {
        if c.keys.remove(dest) {
            c.keys.changed(dest);
            c.keys.replicate(&[b"DEL", dest]);
        }
    } else {
        let result = operation.run(&sources, len).freeze();
        if operation.is_old() {
            c.keys.replicate_as_is(args);
        } else {
            let shared = [(2, result.clone())];
            c.keys.effects.push_sharing(c.keys.db, &[b"SET", dest, &result], &shared);
        }
        c.keys.put_buffer(dest, result);
        c.keys.changed(dest);
    }
    c.out.int(len as i64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::{Node, OK};

    #[test]
    fn single_bits() {
        let mut node = Node::new();
        for (line, reply, effects) in [
            ("SETBIT k 7 1", ":0\r\n", "SETBIT k 7 1"),
            ("SETBIT k 7 1", ":1\r\n", ""),
            ("SETBIT k 7 0", ":1\r\n", "SETBIT k 7 0"),
            ("SETBIT k 100 0", ":0\r\n", "SETBIT k 100 0"),
            ("STRLEN k", ":13\r\n", ""),
            ("SETBIT n 0 0", ":0\r\n", "SETBIT n 0 0"),
            ("SETBIT k -1 1", "-ERR bit offset is not an integer or out of range\r\n", ""),
            ("SETBIT k 4294967296 1", "-ERR bit offset is not an integer or out of range\r\n", ""),
            ("SETBIT k 1 2", "-ERR bit is not an integer or out of range\r\n", ""),
            ("SET d 1", OK, "SET d 1"),
            ("GETBIT d 2", ":1\r\n", ""),
            ("GETBIT d 1000", ":0\r\n", ""),
            ("GETBIT none 0", ":0\r\n", ""),
        ] {
            assert_eq!(node.run(line), reply, "{line}");
            assert_eq!(node.effects(), effects, "{line}");
        }
    }

    fn bit(bytes: &[u8], at: usize) -> bool {
        bytes[at / 8] >> (7 - at % 8) & 1 == 1
    }

    #[test]
    fn counting_and_searching_agree_with_looking_at_every_bit() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..3_000 {
            let fill = [0, 0xff, rng.u8(..)][rng.usize(..3)];
            let mut bytes = vec![fill; rng.usize(1..40)];
            for _ in 0..rng.usize(..3) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            let bits = bytes.len() * 8;
            let first = rng.usize(..bits);
            let len = rng.usize(..=bits - first);
            let range = first..first + len;
            let ones = range.clone().filter(|&at| bit(&bytes, at)).count();
            assert_eq!(count_ones_between(&bytes, first, len), ones as u64);
            for wanted in [false, true] {
                let found = range.clone().find(|&at| bit(&bytes, at) == wanted);
                assert_eq!(find_bit(&bytes, wanted, first, len), found);
            }
        }
    }

    #[test]
    fn counting_and_searching() {
        let mut node = Node::new();
        node.run("SET k foobar");
        node.run_args(&[b"SET", b"f", b"\xff\xf0\x00"]);
        node.run_args(&[b"SET", b"ones", b"\xff\xff"]);
        node.run_args(&[b"SET", b"empty", b""]);
        for (line, reply) in [
            ("BITCOUNT k", ":26\r\n"),
            ("BITCOUNT k 0 0", ":4\r\n"),
            ("BITCOUNT k 1 1 byte", ":6\r\n"),
            ("BITCOUNT k 5 30 BIT", ":17\r\n"),
            ("BITCOUNT none 0 1", ":0\r\n"),
            ("BITCOUNT k 1", ":22\r\n"),
            ("BITCOUNT k 1 2 FOO", "-ERR syntax error\r\n"),
            ("BITPOS f 0", ":12\r\n"),
            ("BITPOS f 1 2", ":-1\r\n"),
            ("BITPOS f 0 2 -1 BYTE", ":16\r\n"),
            ("BITPOS f 0 9 11 BIT", ":-1\r\n"),
            ("BITPOS ones 0", ":16\r\n"),
            ("BITPOS ones 0 0 -1", ":-1\r\n"),
            ("BITPOS ones 0 5", ":-1\r\n"),
            ("BITPOS empty 0", ":-1\r\n"),
            ("BITPOS none 0", ":0\r\n"),
            ("BITPOS none 1", ":-1\r\n"),
            ("BITPOS f 2", "-ERR The bit argument must be 1 or 0.\r\n"),
        ] {
            assert_eq!(node.run(line), reply, "{line}");
        }
    }

    #[test]
    fn operations_agree_with_their_definition() {
        let mut rng = fastrand::Rng::with_seed(13);
        for _ in 0..2_000 {
            let (_, operation) = Operation::ALL[rng.usize(..8)];
            let count = if operation == Operation::Not { 1 } else { rng.usize(2..5) };
            let sources: Vec<Bytes> =
                (0..count).map(|_| (0..rng.usize(..20)).map(|_| rng.u8(..)).collect()).collect();
            let len = sources.iter().map(Bytes::len).max().expect("a source");
            let result = operation.run(&sources, len);
            assert_eq!(result.len(), len);
            for at in 0..len * 8 {
                let set: Vec<bool> = sources.iter().map(|s| at / 8 < s.len() && bit(s, at)).collect();
                let (first, others) = (set[0], set[1..].iter().any(|set| *set));
                let want = match operation {
                    Operation::And => set.iter().all(|set| *set),
                    Operation::Or => first || others,
                    Operation::Xor => set.iter().filter(|set| **set).count() % 2 == 1,
                    Operation::Not => !first,
                    Operation::Diff => first && !others,
                    Operation::Diff1 => !first && others,
                    Operation::AndOr => first && others,
                    Operation::One => set.iter().filter(|set| **set).count() == 1,
                };
                assert_eq!(bit(&result, at), want);
            }
        }
    }

    #[test]
    fn effects_of_operations() {
        let mut node = Node::new();
        node.run("MSET a abc b abd");
        node.effects();
        for (line, reply, effects) in [
            ("BITOP AND d a b", ":3\r\n", "BITOP AND d a b"),
            ("BITOP and d none", ":0\r\n", "DEL d"),
            ("BITOP AND d none", ":0\r\n", ""),
            ("BITOP DIFF1 d a b", ":3\r\n", "SET d \0\0\u{4}"),
            ("BITOP NOT d a b", "-ERR BITOP NOT must be called with a single source key.\r\n", ""),
            ("BITOP diff d a", "-ERR BITOP DIFF must be called with at least two source keys.\r\n", ""),
            ("BITOP NOPE d a", "-ERR syntax error\r\n", ""),
            ("BITOP ONE d none none", ":0\r\n", "DEL d"),
        ] {
            assert_eq!(node.run(line), reply, "{line}");
            assert_eq!(node.effects(), effects, "{line}");
        }
    }
}
