//! Ranges of sorted sets: by rank, by score, by text; to return, to count, to remove.

use super::collection::*;
use super::sorted_sets::{SORTED, show_member};
use crate::command::{Args, Command, Ctx, Error, Handler, Outcome};
use crate::types::{LexRange, ScoreRange, ZSet};
use std::ops::Range;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("zrange", -4, Handler::Keys(zrange)).flags(READ).categories(SORTED).keys(ACCESS).doc(
        "sorted-set",
        "1.2.0",
        "Returns the members of a range of ranks, scores or texts.",
        "O(log(N)+M) for M members returned of a set of N.",
    ),
    Command::new("zrevrange", -4, Handler::Keys(zrevrange)).flags(READ).categories(SORTED).keys(ACCESS).doc(
        "sorted-set",
        "1.2.0",
        "Returns the members of a range of ranks, highest score first.",
        "O(log(N)+M) for M members returned of a set of N.",
    ),
    Command::new("zrangebyscore", -4, Handler::Keys(zrangebyscore))
        .flags(READ)
        .categories(SORTED)
        .keys(ACCESS)
        .doc(
            "sorted-set",
            "1.0.5",
            "Returns the members of a range of scores.",
            "O(log(N)+M) for M members returned of a set of N.",
        ),
    Command::new("zrevrangebyscore", -4, Handler::Keys(zrevrangebyscore))
        .flags(READ)
        .categories(SORTED)
        .keys(ACCESS)
        .doc(
            "sorted-set",
            "2.2.0",
            "Returns the members of a range of scores, highest first.",
            "O(log(N)+M) for M members returned of a set of N.",
        ),
    Command::new("zrangebylex", -4, Handler::Keys(zrangebylex))
        .flags(READ)
        .categories(SORTED)
        .keys(ACCESS)
        .doc(
            "sorted-set",
            "2.8.9",
            "Returns the members of a range of texts, all scores being equal.",
            "O(log(N)+M) for M members returned of a set of N.",
        ),
    Command::new("zrevrangebylex", -4, Handler::Keys(zrevrangebylex))
        .flags(READ)
        .categories(SORTED)
        .keys(ACCESS)
        .doc(
            "sorted-set",
            "2.8.9",
            "Returns the members of a range of texts, last first, all scores being equal.",
            "O(log(N)+M) for M members returned of a set of N.",
        ),
    Command::new("zcount", 4, Handler::Keys(zcount)).flags(READ_FAST).categories(SORTED).keys(ACCESS).doc(
        "sorted-set",
        "2.0.0",
        "Counts the members of a range of scores.",
        "O(log(N)) in a set of N.",
    ),
    Command::new("zlexcount", 4, Handler::Keys(zlexcount))
        .flags(READ_FAST)
        .categories(SORTED)
        .keys(ACCESS)
        .doc(
            "sorted-set",
            "2.8.9",
            "Counts the members of a range of texts, all scores being equal.",
            "O(log(N)) in a set of N.",
        ),
    Command::new("zremrangebyrank", 4, Handler::Keys(zremrangebyrank))
        .flags(WRITE)
        .categories(SORTED)
        .keys(DELETE)
        .doc(
            "sorted-set",
            "2.0.0",
            "Removes the members of a range of ranks.",
            "O(log(N)+M) for M members removed of a set of N.",
        ),
    Command::new("zremrangebyscore", 4, Handler::Keys(zremrangebyscore))
        .flags(WRITE)
        .categories(SORTED)
        .keys(DELETE)
        .doc(
            "sorted-set",
            "1.2.0",
            "Removes the members of a range of scores.",
            "O(log(N)+M) for M members removed of a set of N.",
        ),
    Command::new("zremrangebylex", 4, Handler::Keys(zremrangebylex))
        .flags(WRITE)
        .categories(SORTED)
        .keys(DELETE)
        .doc(
            "sorted-set",
            "2.8.9",
            "Removes the members of a range of texts, all scores being equal.",
            "O(log(N)+M) for M members removed of a set of N.",
        ),
];

/// What a range's bounds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Rank,
    Score,
    Lex,
}

/// A range of members.
enum Bounds<'a> {
    Ranks(i64, i64),
    Scores(ScoreRange),
    Texts(LexRange<'a>),
}

impl<'a> Bounds<'a> {
    fn parse(by: By, min: &'a [u8], max: &'a [u8]) -> Result<Self, Error> {
        match by {
            By::Rank => Ok(Bounds::Ranks(integer(min)?, integer(max)?)),
            By::Score => ScoreRange::parse(min, max)
                .map(Bounds::Scores)
                .ok_or(Error::text("ERR min or max is not a float")),
            By::Lex => LexRange::parse(min, max)
                .map(Bounds::Texts)
                .ok_or(Error::text("ERR min or max not valid string range item")),
        }
    }

    /// The ranks, lowest first, of the members in the range.
    fn ranks_in(&self, zset: &ZSet) -> Range<usize> {
        match self {
            Bounds::Ranks(start, stop) => index_range(*start, *stop, zset.len()),
            Bounds::Scores(range) => zset.ranks_by_score(range),
            Bounds::Texts(range) => zset.ranks_by_lex(range),
        }
    }
}

fn zrange(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    show_range(c, args, None, None)
}

fn zrevrange(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    show_range(c, args, Some(By::Rank), Some(true))
}

fn zrangebyscore(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    show_range(c, args, Some(By::Score), Some(false))
}

fn zrevrangebyscore(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    show_range(c, args, Some(By::Score), Some(true))
}

fn zrangebylex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    show_range(c, args, Some(By::Lex), Some(false))
}

fn zrevrangebylex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    show_range(c, args, Some(By::Lex), Some(true))
}

/// What is asked for behind the bounds.
struct Options {
    by: By,
    reverse: bool,
    with_scores: bool,
    /// Members to pass over; negative: all of them.
    offset: i64,
    /// Members to return; negative: all.
    limit: i64,
}

impl Options {
    /// Reads the options from index 4 on; what the command's name decides already is no option, nor is what an earlier
    /// option decided.
    fn parse(args: Args<'_>, mut by: Option<By>, mut reverse: Option<bool>) -> Result<Self, Error> {
        let (mut with_scores, mut offset, mut limit) = (false, 0, -1);
        let mut at = 4;
        while at < args.len() {
            if args.is(at, "WITHSCORES") {
                with_scores = true;
            } else if args.is(at, "LIMIT") && at + 2 < args.len() {
                offset = integer(args[at + 1])?;
                limit = integer(args[at + 2])?;
                at += 2;
            } else if reverse.is_none() && args.is(at, "REV") {
                reverse = Some(true);
            } else if by.is_none() && args.is(at, "BYSCORE") {
                by = Some(By::Score);
            } else if by.is_none() && args.is(at, "BYLEX") {
                by = Some(By::Lex);
            } else {
                return Err(Error::Syntax);
            }
            at += 1;
        }
        let (by, reverse) = (by.unwrap_or(By::Rank), reverse.unwrap_or(false));
        let options = Options { by, reverse, with_scores, offset, limit };
        if options.limit != -1 && options.by == By::Rank {
            return Err(Error::text(
                "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
            ));
        }
        if options.with_scores && options.by == By::Lex {
            return Err(Error::text("ERR syntax error, WITHSCORES not supported in combination with BYLEX"));
        }
        Ok(options)
    }

    /// The ranks to return of those in the range.
    fn limited(&self, ranks: Range<usize>) -> Range<usize> {
        // LIMIT 0 -1 is accepted with ranks, to no effect.
        if self.by == By::Rank {
            return ranks;
        }
        let len = ranks.len();
        let skip = usize::try_from(self.offset).unwrap_or(usize::MAX).min(len);
        let take = usize::try_from(self.limit).unwrap_or(usize::MAX).min(len - skip);
        if self.reverse {
            ranks.end - skip - take..ranks.end - skip
        } else {
            ranks.start + skip..ranks.start + skip + take
        }
    }
}

fn show_range(c: &mut Ctx<'_>, args: Args<'_>, by: Option<By>, reverse: Option<bool>) -> Outcome {
    let options = Options::parse(args, by, reverse)?;
    let (mut min, mut max) = (args[2], args[3]);
    if options.reverse && options.by != By::Rank {
        (min, max) = (max, min);
    }
    let bounds = Bounds::parse(options.by, min, max)?;
    let Some(zset) = c.keys.get::<ZSet>(args[1])? else {
        c.out.array(0);
        return Ok(());
    };
    let mut ranks = options.limited(bounds.ranks_in(zset));
    if options.reverse && options.by == By::Rank {
        ranks = zset.len() - ranks.end..zset.len() - ranks.start;
    }
    let (with_scores, nested) = (options.with_scores, options.with_scores && c.out.resp3);
    c.out.array(if with_scores && !nested { 2 * ranks.len() } else { ranks.len() });
    let mut show = |(member, value)| {
        if with_scores {
            show_member(c.out, member, value, nested);
        } else {
            bulk_element(c.out, member);
        }
    };
    if options.reverse {
        zset.range(ranks).rev().for_each(&mut show);
    } else {
        zset.range(ranks).for_each(&mut show);
    }
    Ok(())
}

fn zcount(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    count_range(c, args, By::Score)
}

fn zlexcount(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    count_range(c, args, By::Lex)
}

fn count_range(c: &mut Ctx<'_>, args: Args<'_>, by: By) -> Outcome {
    let bounds = Bounds::parse(by, args[2], args[3])?;
    let len = c.keys.get::<ZSet>(args[1])?.map_or(0, |zset| bounds.ranks_in(zset).len());
    c.out.int(len as i64);
    Ok(())
}

fn zremrangebyrank(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    remove_range(c, args, By::Rank)
}

fn zremrangebyscore(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    remove_range(c, args, By::Score)
}

fn zremrangebylex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    remove_range(c, args, By::Lex)
}

fn remove_range(c: &mut Ctx<'_>, args: Args<'_>, by: By) -> Outcome {
    let bounds = Bounds::parse(by, args[2], args[3])?;
    let mut removed = 0;
    if let Some(zset) = c.keys.get_mut::<ZSet>(args[1])? {
        let ranks = bounds.ranks_in(zset);
        removed = ranks.len();
        if removed == zset.len() {
            c.keys.remove_found(args[1]);
        } else {
            zset.remove_range(ranks);
        }
    }
    if removed > 0 {
        c.keys.changed(args[1]);
        c.keys.replicate_as_is(args);
    }
    c.out.int(removed as i64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::{Node, bulk};

    /// A node with `k` (a 1, b 2, c 2, d 3) and `l` (the same texts with equal scores), compact or large.
    fn node(large: bool) -> Node {
        let mut node = Node::new();
        node.run("ZADD k 1 a 2 b 2 c 3 d");
        node.run("ZADD l 0 a 0 b 0 c 0 d");
        if large {
            let long = "x".repeat(65);
            for key in ["k", "l"] {
                node.run(&format!("ZADD {key} 1 {long}"));
                node.run(&format!("ZREM {key} {long}"));
                assert_eq!(node.run(&format!("OBJECT ENCODING {key}")), bulk("skiplist"));
            }
        }
        node.effects();
        node
    }

    fn array(texts: &str) -> String {
        let bulks: Vec<String> = texts.split_whitespace().map(bulk).collect();
        format!("*{}\r\n{}", bulks.len(), bulks.concat())
    }

    #[test]
    fn every_form_of_range_returns_its_members() {
        for large in [false, true] {
            let mut node = node(large);
            for (line, members) in [
                ("ZRANGE k 0 -1", "a b c d"),
                ("ZRANGE k 1 2 WITHSCORES", "b 2 c 2"),
                ("ZRANGE k 0 1 REV", "d c"),
                ("ZRANGE k -2 9 REV WITHSCORES", "b 2 a 1"),
                ("ZRANGE k 3 1", ""),
                ("ZRANGE none 0 -1", ""),
                ("ZRANGE k 0 1 LIMIT 0 -1", "a b"),
                ("ZREVRANGE k 0 1", "d c"),
                ("ZRANGE k 2 (3 BYSCORE", "b c"),
                ("ZRANGE k (3 -inf BYSCORE REV", "c b a"),
                ("ZRANGE k -inf +inf BYSCORE LIMIT 1 2", "b c"),
                ("ZRANGE k +inf -inf BYSCORE REV LIMIT 1 2 WITHSCORES", "c 2 b 2"),
                ("ZRANGE k -inf +inf BYSCORE LIMIT -1 2", ""),
                ("ZRANGE k -inf +inf BYSCORE LIMIT 2 -5", "c d"),
                ("ZRANGEBYSCORE k (1 3 LIMIT 1 9", "c d"),
                ("ZREVRANGEBYSCORE k 2 1 WITHSCORES", "c 2 b 2 a 1"),
                ("ZRANGE l [b (d BYLEX", "b c"),
                ("ZRANGE l + (b BYLEX REV LIMIT 0 1", "d"),
                ("ZRANGEBYLEX l - [b", "a b"),
                ("ZREVRANGEBYLEX l (d - LIMIT 1 1", "b"),
            ] {
                assert_eq!(node.run(line), array(members), "{line}");
            }
            for (line, count) in [
                ("ZCOUNT k 2 3", 3),
                ("ZCOUNT k (2 (3", 0),
                ("ZCOUNT none 2 3", 0),
                ("ZLEXCOUNT l (a +", 3),
                ("ZLEXCOUNT l + -", 0),
            ] {
                assert_eq!(node.run(line), format!(":{count}\r\n"), "{line}");
            }
            for line in ["ZRANGE k 0 1 REV REV", "ZRANGE k 0 1 BYSCORE BYSCORE", "ZREVRANGE k 0 1 REV"] {
                assert_eq!(node.run(line), "-ERR syntax error\r\n", "{line}");
            }
            assert_eq!(node.run3("ZRANGE k 0 0 WITHSCORES"), "*1\r\n*2\r\n$1\r\na\r\n,1\r\n");
            assert_eq!(node.run3("ZRANGE k 0 0"), "*1\r\n$1\r\na\r\n");
            assert_eq!(node.effects(), "");
        }
    }

    #[test]
    fn ranges_are_removed_and_an_empty_set_goes() {
        for large in [false, true] {
            let mut node = node(large);
            for (line, count, left) in [
                ("ZREMRANGEBYRANK k 9 10", 0, 4),
                ("ZREMRANGEBYRANK k -1 -1", 1, 3),
                ("ZREMRANGEBYSCORE k 5 6", 0, 3),
                ("ZREMRANGEBYSCORE k (1 +inf", 2, 1),
                ("ZREMRANGEBYSCORE k 1 1", 1, 0),
                ("ZREMRANGEBYSCORE k 1 1", 0, 0),
            ] {
                assert_eq!(node.run(line), format!(":{count}\r\n"), "{line}");
                assert_eq!(node.effects(), if count > 0 { line } else { "" });
                assert_eq!(node.run("ZCARD k"), format!(":{left}\r\n"));
            }
            assert_eq!(node.run("ZREMRANGEBYLEX l [b [c"), ":2\r\n");
            assert_eq!(node.run("ZRANGE l 0 -1"), array("a d"));
            assert_eq!(node.run("ZREMRANGEBYLEX l - +"), ":2\r\n");
            assert_eq!(node.space.len(), 0);
        }
    }

    #[test]
    fn errors_are_those_of_redis() {
        let mut node = node(false);
        node.run("SET s v");
        for (line, error) in [
            ("ZRANGE s x 1", "value is not an integer or out of range"),
            ("ZRANGE k 0 1 BYSCORE BYNAME", "syntax error"),
            ("ZRANGE k 0 1 LIMIT 1", "syntax error"),
            ("ZRANGE k 0 1 BYSCORE LIMIT x 1", "value is not an integer or out of range"),
            (
                "ZRANGE k 0 1 LIMIT 0 1",
                "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
            ),
            (
                "ZRANGE k - + BYLEX WITHSCORES",
                "syntax error, WITHSCORES not supported in combination with BYLEX",
            ),
            ("ZRANGE k a 1 BYSCORE", "min or max is not a float"),
            ("ZRANGE k a + BYLEX", "min or max not valid string range item"),
            ("ZREVRANGE k 0 1 REV", "syntax error"),
            ("ZRANGEBYSCORE k 0 1 BYLEX", "syntax error"),
            ("ZCOUNT s x 1", "min or max is not a float"),
            ("ZREMRANGEBYLEX s x 1", "min or max not valid string range item"),
        ] {
            assert_eq!(node.run(line), format!("-ERR {error}\r\n"), "{line}");
        }
        for line in ["ZRANGE s 0 1", "ZCOUNT s 0 1", "ZREMRANGEBYRANK s 0 1"] {
            assert!(node.run(line).starts_with("-WRONGTYPE"), "{line}");
        }
    }
}
