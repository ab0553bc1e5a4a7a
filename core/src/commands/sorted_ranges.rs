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
    /// Reads the options from index 4 on; what the command's name decides already is no option.
    fn parse(args: Args<'_>, by: Option<By>, reverse: Option<bool>) -> Result<Self, Error> {
        let mut options = Options {
            by: by.unwrap_or(By::Rank),
            reverse: reverse.unwrap_or(false),
            with_scores: false,
            offset: 0,
            limit: -1,
        };
        let mut at = 4;
        while at < args.len() {
            if args.is(at, "WITHSCORES") {
                options.with_scores = true;
            } else if args.is(at, "LIMIT") && at + 2 < args.len() {
                options.offset = integer(args[at + 1])?;
                options.limit = integer(args[at + 2])?;
                at += 2;
            } else if reverse.is_none() && args.is(at, "REV") {
                options.reverse = true;
            } else if by.is_none() && args.is(at, "BYSCORE") {
                options.by = By::Score;
            } else if by.is_none() && args.is(at, "BYLEX") {
                options.by = By::Lex;
            } else {
                return Err(Error::Syntax);
            }
            at += 1;
        }
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
        c.keys.replicate(args.list());
    }
    c.out.int(removed as i64);
    Ok(())
}
