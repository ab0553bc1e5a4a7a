//! `LCS`: the longest common subsequence of two strings.
//!
//! The table of the classic algorithm is kept as bits: row i says at which positions of the second string the length
//! of the longest common subsequence of it and the first i bytes of the first string does *not* grow. A row follows
//! from the one before with one addition and some logic per 64 positions (Crochemore, Iliopoulos, Pinzon, Reid, "A
//! fast and practical bit-vector algorithm for the longest common subsequence problem", 2001), so the table takes a
//! 32nd of the memory and about a 60th of the time of one of integers. The way back through it is Redis's, because
//! among several subsequences of the same length clients expect the one that Redis finds.

use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::keyspace::{Keys, StrRef};
use crate::resp::Reply;
use crate::resp::number::parse_i64;
use bytes::Bytes;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[Command::new("lcs", -3, Handler::Keys(lcs))
    .flags(Flags::READONLY)
    .categories(Category::STRING)
    .keys(&[KeySpec {
        find: crate::command::Find::Range { last: 1, step: 1, limit: 0 },
        ..KeySpec::one(1, Use::Read, &["access"])
    }])
    .doc(
        "string",
        "7.0.0",
        "Finds the longest common subsequence of two strings.",
        "O(N*M) where N and M are the lengths of the strings",
    )];

/// A stretch of the subsequence that is contiguous in both strings: positions of its first byte, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    a: usize,
    b: usize,
    len: usize,
}

struct Table {
    /// Words to a row.
    width: usize,
    /// Row 0 first.
    rows: Vec<u64>,
}

impl Table {
    fn new(a: &[u8], b: &[u8]) -> Self {
        let width = b.len().div_ceil(64);
        // Where each byte of `a` occurs in `b`: as many masks as `a` has different bytes.
        let mut masks: Vec<u64> = Vec::new();
        let mut mask_of = [usize::MAX; 256];
        for &byte in a {
            if mask_of[usize::from(byte)] == usize::MAX {
                let start = masks.len();
                mask_of[usize::from(byte)] = start;
                masks.resize(start + width, 0);
                for at in memchr::memchr_iter(byte, b) {
                    masks[start + at / 64] |= 1 << (at % 64);
                }
            }
        }
        let mut rows = vec![u64::MAX; (a.len() + 1) * width];
        for (index, &byte) in a.iter().enumerate() {
            let mask = &masks[mask_of[usize::from(byte)]..][..width];
            let (before, row) = rows[index * width..].split_at_mut(width);
            let mut carry = false;
            for ((row, &before), &mask) in row.iter_mut().zip(&*before).zip(mask) {
                let matches = before & mask;
                let sum;
                (sum, carry) = before.carrying_add(matches, carry);
                *row = sum | before & !mask;
            }
        }
        Self { width, rows }
    }

    /// Length of the longest common subsequence of the first `i` and the first `j` bytes.
    fn len(&self, i: usize, j: usize) -> usize {
        let row = &self.rows[i * self.width..];
        let whole: u32 = row[..j / 64].iter().map(|word| word.count_zeros()).sum();
        let rest = if j.is_multiple_of(64) { 0 } else { (!row[j / 64] << (64 - j % 64)).count_ones() };
        (whole + rest) as usize
    }

    /// What position `j` (from 1) adds to the length in row `i`: 1 or 0.
    fn step(&self, i: usize, j: usize) -> usize {
        let word = self.rows[i * self.width + (j - 1) / 64];
        usize::from(word >> ((j - 1) % 64) & 1 == 0)
    }

    /// The matches of the subsequence that Redis picks, the last one first.
    fn matches(&self, a: &[u8], b: &[u8]) -> Vec<Match> {
        let mut matches: Vec<Match> = Vec::new();
        let (mut i, mut j) = (a.len(), b.len());
        let mut contiguous = false;
        // Lengths at (i, j) and (i - 1, j). A step to the left updates them; only a step upwards counts a row anew, so
        // that the whole way costs no more than the table.
        let (mut here, mut above) = (self.len(i, j), self.len(i.saturating_sub(1), j));
        while i > 0 && j > 0 {
            let found = a[i - 1] == b[j - 1];
            let left = here - self.step(i, j);
            let up = !found && above > left;
            if !up {
                (here, above) = (left, above - self.step(i - 1, j));
                j -= 1;
            }
            if up || found {
                i -= 1;
                (here, above) = (above, self.len(i.saturating_sub(1), j));
            }
            if found {
                match matches.last_mut() {
                    Some(last) if contiguous => *last = Match { a: i, b: j, len: last.len + 1 },
                    _ => matches.push(Match { a: i, b: j, len: 1 }),
                }
            }
            contiguous = found;
        }
        matches
    }
}

fn string(keys: &mut Keys<'_>, key: &[u8]) -> Result<Bytes, Error> {
    match keys.string(key) {
        Ok(value) => Ok(value.map_or_else(Bytes::new, StrRef::to_bytes)),
        Err(_) => Err(Error::text("ERR The specified keys must contain string values")),
    }
}

#[derive(Default)]
struct Options {
    len: bool,
    idx: bool,
    with_match_len: bool,
    min_match_len: usize,
}

impl Options {
    fn parse(args: Args<'_>) -> Result<Self, Error> {
        let mut options = Self::default();
        let mut at = 3;
        while at < args.len() {
            match () {
                () if args.is(at, "IDX") => options.idx = true,
                () if args.is(at, "LEN") => options.len = true,
                () if args.is(at, "WITHMATCHLEN") => options.with_match_len = true,
                () if args.is(at, "MINMATCHLEN") && at + 1 < args.len() => {
                    at += 1;
                    let len = parse_i64(args[at]).ok_or(Error::NotInteger)?;
                    options.min_match_len = usize::try_from(len).unwrap_or(0);
                }
                () => return Err(Error::Syntax),
            }
            at += 1;
        }
        if options.idx && options.len {
            return Err(Error::text("ERR If you want both the length and indexes, please just use IDX."));
        }
        Ok(options)
    }
}

fn lcs(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let a = string(&mut c.keys, args[1])?;
    let b = string(&mut c.keys, args[2])?;
    let options = Options::parse(args)?;
    let longest = u64::from(u32::MAX) - 1;
    if a.len() as u64 >= longest || b.len() as u64 >= longest {
        return Err(Error::text("ERR String too long for LCS"));
    }
    // Redis's bound on its own table, of four bytes to a cell: it bounds the time as well.
    if (a.len() as u64 + 1) * (b.len() as u64 + 1) > c.settings().max_bulk_len_bytes / 4 {
        let text = "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len";
        return Err(Error::text(text));
    }
    let table = Table::new(&a, &b);
    let len = table.len(a.len(), b.len());
    if options.len {
        c.out.int(len as i64);
    } else if options.idx {
        reply_matches(c.out, &options, &table.matches(&a, &b), len);
    } else {
        let mut subsequence = Vec::with_capacity(len);
        for found in table.matches(&a, &b).iter().rev() {
            subsequence.extend_from_slice(&a[found.a..found.a + found.len]);
        }
        c.out.bulk(&subsequence);
    }
    Ok(())
}

fn reply_matches(out: &mut Reply, options: &Options, matches: &[Match], len: usize) {
    let long_enough = |found: &&Match| found.len >= options.min_match_len;
    out.map(2);
    out.bulk(b"matches");
    out.array(matches.iter().filter(long_enough).count());
    for found in matches.iter().filter(long_enough) {
        out.array(if options.with_match_len { 3 } else { 2 });
        for start in [found.a, found.b] {
            out.array(2);
            out.int(start as i64);
            out.int((start + found.len - 1) as i64);
        }
        if options.with_match_len {
            out.int(found.len as i64);
        }
    }
    out.bulk(b"len");
    out.int(len as i64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::{Node, bulk};

    /// The classic table.
    fn lengths(a: &[u8], b: &[u8]) -> Vec<Vec<usize>> {
        let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
        for i in 1..=a.len() {
            for j in 1..=b.len() {
                table[i][j] = if a[i - 1] == b[j - 1] {
                    table[i - 1][j - 1] + 1
                } else {
                    table[i - 1][j].max(table[i][j - 1])
                };
            }
        }
        table
    }

    #[test]
    fn the_bits_say_what_the_classic_table_says() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..300 {
            let letters = rng.u8(1..6);
            let mut text =
                |max: usize| -> Vec<u8> { (0..rng.usize(0..max)).map(|_| rng.u8(0..letters)).collect() };
            let (a, b) = (text(40), text(200));
            let (table, want) = (Table::new(&a, &b), lengths(&a, &b));
            for (i, row) in want.iter().enumerate() {
                for (j, len) in row.iter().enumerate() {
                    assert_eq!(table.len(i, j), *len);
                }
            }
            let matched: usize = table.matches(&a, &b).iter().map(|found| found.len).sum();
            assert_eq!(matched, want[a.len()][b.len()]);
        }
    }

    #[test]
    fn replies() {
        let mut node = Node::new();
        node.run("MSET a ohmytext b mynewtext");
        assert_eq!(node.run("LCS a b"), bulk("mytext"));
        assert_eq!(node.run("LCS a b LEN"), ":6\r\n");
        assert_eq!(
            node.run("LCS a b IDX MINMATCHLEN 4 WITHMATCHLEN"),
            "*4\r\n$7\r\nmatches\r\n*1\r\n*3\r\n*2\r\n:4\r\n:7\r\n*2\r\n:5\r\n:8\r\n:4\r\n$3\r\nlen\r\n:6\r\n"
        );
        assert_eq!(
            node.run3("LCS a b IDX"),
            "%2\r\n$7\r\nmatches\r\n*2\r\n*2\r\n*2\r\n:4\r\n:7\r\n*2\r\n:5\r\n:8\r\n\
             *2\r\n*2\r\n:2\r\n:3\r\n*2\r\n:0\r\n:1\r\n$3\r\nlen\r\n:6\r\n"
        );
        assert_eq!(node.run("LCS a none"), bulk(""));
        assert_eq!(node.run("LCS a b MINMATCHLEN"), "-ERR syntax error\r\n");
        node.settings.max_bulk_len_bytes = 100;
        assert!(node.run("LCS a b").starts_with("-ERR Insufficient memory, transient"));
    }
}
