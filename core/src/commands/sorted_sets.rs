//! Sorted sets: members and scores.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::resp::Reply;
use crate::types::num::parse_f64;
use crate::types::{AddFlags, Added, Element, NotANumber, ZSet};
use smallvec::SmallVec;

pub(super) const SORTED: Category = Category::SORTEDSET;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("zadd", -4, Handler::Keys(zadd)).flags(GROW_FAST).categories(SORTED).keys(UPDATE).doc(
        "sorted-set",
        "1.2.0",
        "Adds members to a sorted set, which is created if there is none, or changes their scores.",
        "O(log(N)) for each member, in a set of N.",
    ),
    Command::new("zpopmin", -2, Handler::Keys(zpopmin))
        .flags(WRITE_FAST)
        .categories(SORTED)
        .keys(ACCESS_DELETE)
        .doc(
            "sorted-set",
            "5.0.0",
            "Removes the members with the lowest scores and returns them.",
            "O(log(N)*M) for M members of a set of N.",
        ),
    Command::new("zpopmax", -2, Handler::Keys(zpopmax))
        .flags(WRITE_FAST)
        .categories(SORTED)
        .keys(ACCESS_DELETE)
        .doc(
            "sorted-set",
            "5.0.0",
            "Removes the members with the highest scores and returns them.",
            "O(log(N)*M) for M members of a set of N.",
        ),
    Command::new("zcard", 2, Handler::Keys(zcard)).flags(READ_FAST).categories(SORTED).keys(LOOK).doc(
        "sorted-set",
        "1.2.0",
        "Returns the number of members of a sorted set.",
        "O(1)",
    ),
    Command::new("zscore", 3, Handler::Keys(zscore)).flags(READ_FAST).categories(SORTED).keys(ACCESS).doc(
        "sorted-set",
        "1.2.0",
        "Returns the score of a member.",
        "O(1)",
    ),
    Command::new("zmscore", -3, Handler::Keys(zmscore)).flags(READ_FAST).categories(SORTED).keys(ACCESS).doc(
        "sorted-set",
        "6.2.0",
        "Returns the scores of some members.",
        "O(N) for N members asked for.",
    ),
    Command::new("zrank", -3, Handler::Keys(zrank)).flags(READ_FAST).categories(SORTED).keys(ACCESS).doc(
        "sorted-set",
        "2.0.0",
        "Returns how many members have a lower score than a member.",
        "O(log(N)) in a set of N.",
    ),
    Command::new("zrevrank", -3, Handler::Keys(zrevrank))
        .flags(READ_FAST)
        .categories(SORTED)
        .keys(ACCESS)
        .doc(
            "sorted-set",
            "2.0.0",
            "Returns how many members have a higher score than a member.",
            "O(log(N)) in a set of N.",
        ),
    Command::new("zincrby", 4, Handler::Keys(zincrby))
        .flags(GROW_FAST)
        .categories(SORTED)
        .keys(ACCESS_UPDATE)
        .doc(
            "sorted-set",
            "1.2.0",
            "Adds to the score of a member, which counts as 0 if absent.",
            "O(log(N)) in a set of N.",
        ),
    Command::new("zrem", -3, Handler::Keys(zrem)).flags(WRITE_FAST).categories(SORTED).keys(DELETE).doc(
        "sorted-set",
        "1.2.0",
        "Removes members from a sorted set.",
        "O(M*log(N)) for M members of a set of N.",
    ),
];

/// A score argument.
#[inline]
fn parse_score(arg: &[u8]) -> Result<f64, Error> {
    match arg {
        // The common case by far: a whole number that a double holds exactly.
        [b'0'..=b'9', ..] if arg.len() < 16 && arg.iter().all(u8::is_ascii_digit) => {
            Ok(arg.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0')) as f64)
        }
        _ => parse_f64(arg).ok_or(Error::NotFloat),
    }
}

fn zadd(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let mut flags = AddFlags::default();
    let mut changed_too = false;
    let mut at = 2;
    while at < args.len() {
        // Options have two letters or are INCR; a score seldom has this shape.
        match args[at] {
            word if word.eq_ignore_ascii_case(b"NX") => flags.only_new = true,
            word if word.eq_ignore_ascii_case(b"XX") => flags.only_existing = true,
            word if word.eq_ignore_ascii_case(b"GT") => flags.only_greater = true,
            word if word.eq_ignore_ascii_case(b"LT") => flags.only_less = true,
            word if word.eq_ignore_ascii_case(b"CH") => changed_too = true,
            word if word.eq_ignore_ascii_case(b"INCR") => flags.increment = true,
            _ => break,
        }
        at += 1;
    }
    let pairs = &args[at..];
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
        return Err(Error::Syntax);
    }
    let AddFlags { only_new, only_existing, only_greater, only_less, increment } = flags;
    if only_new && only_existing {
        return Err(Error::text("ERR XX and NX options at the same time are not compatible"));
    }
    if [only_new, only_greater, only_less].into_iter().filter(|&given| given).count() > 1 {
        return Err(Error::text("ERR GT, LT, and/or NX options at the same time are not compatible"));
    }
    if increment && pairs.len() > 2 {
        return Err(Error::text("ERR INCR option supports a single increment-element pair"));
    }
    let sum = add(c, args, pairs, flags)?;
    if increment {
        score_or_null(c.out, sum.score);
    } else {
        c.out.int((sum.added + if changed_too { sum.changed } else { 0 }) as i64);
    }
    Ok(())
}

/// What a `ZADD` did.
#[derive(Default)]
struct Sum {
    added: usize,
    changed: usize,
    /// The last member's score, if no flag forbade to set it.
    score: Option<f64>,
}

/// Adds scores and members, and reports the change.
fn add(c: &mut Ctx<'_>, args: Args<'_>, pairs: &[&[u8]], flags: AddFlags) -> Result<Sum, Error> {
    let key = args[1];
    let mut scores = SmallVec::<[f64; 8]>::with_capacity(pairs.len() / 2);
    for pair in pairs.chunks_exact(2) {
        scores.push(parse_score(pair[0])?);
    }
    let limits = &c.keys.settings.limits;
    let sum = c.keys.upsert(key, |zset: &mut ZSet| {
        if zset.is_empty() {
            let longest = pairs.iter().skip(1).step_by(2).map(|member| member.len()).max().unwrap_or(0);
            *zset = ZSet::with_hint(scores.len(), longest, limits);
        }
        let mut sum = Sum::default();
        for (pair, &score) in pairs.chunks_exact(2).zip(&scores) {
            sum.score = match zset.add(pair[1], score, flags, limits)? {
                Added::New(score) => {
                    sum.added += 1;
                    Some(score)
                }
                Added::Changed(score) => {
                    sum.changed += 1;
                    Some(score)
                }
                Added::Same(score) => Some(score),
                Added::Refused => None,
            };
        }
        Ok(sum)
    })?;
    let sum = sum.map_err(|_: NotANumber| Error::text("ERR resulting score is not a number (NaN)"))?;
    if sum.added + sum.changed > 0 {
        c.keys.changed(key);
        c.keys.replicate_as_is(args);
    }
    Ok(sum)
}

/// A member and its score, as an array of two if `nested`.
pub(super) fn show_member(out: &mut Reply, member: Element<'_>, value: f64, nested: bool) {
    if nested {
        out.array(2);
    }
    bulk_element(out, member);
    score(out, value);
}

fn zpopmin(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    pop(c, args, false)
}

fn zpopmax(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    pop(c, args, true)
}

fn pop(c: &mut Ctx<'_>, args: Args<'_>, highest: bool) -> Outcome {
    let key = args[1];
    let wanted = match args.len() {
        2 => None,
        3 => Some(count(args[2])?),
        _ => return Err(Error::Syntax),
    };
    let Some(zset) = c.keys.get_mut::<ZSet>(key)?.filter(|_| wanted != Some(0)) else {
        c.out.array(0);
        return Ok(());
    };
    let len = zset.len();
    let popped = wanted.unwrap_or(1).min(len);
    let nested = c.out.resp3 && wanted.is_some();
    c.out.array(if nested { popped } else { 2 * popped });
    let ranks = if highest { len - popped..len } else { 0..popped };
    let out = &mut *c.out;
    let mut show = |(member, value)| show_member(out, member, value, nested);
    if popped == 1 {
        show(zset.get(ranks.start).expect("as many as the set is long"));
    } else if highest {
        zset.range(ranks.clone()).rev().for_each(show);
    } else {
        zset.range(ranks.clone()).for_each(show);
    }
    if popped == len {
        c.keys.remove_found(key);
    } else {
        zset.remove_range(ranks);
    }
    c.keys.changed(key);
    c.keys.replicate_as_is(args);
    Ok(())
}

fn zcard(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let len = c.keys.get::<ZSet>(args[1])?.map_or(0, ZSet::len);
    c.out.int(len as i64);
    Ok(())
}

fn score_or_null(out: &mut Reply, value: Option<f64>) {
    match value {
        Some(value) => score(out, value),
        None => out.null(),
    }
}

fn zscore(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let zset = c.keys.get::<ZSet>(args[1])?;
    score_or_null(c.out, zset.and_then(|zset| zset.score(args[2])));
    Ok(())
}

fn zmscore(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let zset = c.keys.get::<ZSet>(args[1])?;
    c.out.array(args.len() - 2);
    for member in &args[2..] {
        score_or_null(c.out, zset.and_then(|zset| zset.score(member)));
    }
    Ok(())
}

fn zrank(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    rank(c, args, false, "zrank")
}

fn zrevrank(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    rank(c, args, true, "zrevrank")
}

fn rank(c: &mut Ctx<'_>, args: Args<'_>, from_highest: bool, name: &'static str) -> Outcome {
    let with_score = match args.len() {
        3 => false,
        4 if args.is(3, "WITHSCORE") => true,
        4 => return Err(Error::Syntax),
        _ => return Err(Error::WrongArity(name.into())),
    };
    let zset = c.keys.get::<ZSet>(args[1])?;
    let found = zset.and_then(|zset| Some((zset.rank(args[2])?, zset.len())));
    let Some(((rank, value), len)) = found else {
        if with_score {
            c.out.null_array();
        } else {
            c.out.null();
        }
        return Ok(());
    };
    if with_score {
        c.out.array(2);
    }
    c.out.int(if from_highest { len - 1 - rank } else { rank } as i64);
    if with_score {
        score(c.out, value);
    }
    Ok(())
}

fn zincrby(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let flags = AddFlags { increment: true, ..AddFlags::default() };
    let sum = add(c, args, &args[2..], flags)?;
    score(c.out, sum.score.expect("no flag forbids it"));
    Ok(())
}

fn zrem(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let mut removed = 0;
    if let Some(zset) = c.keys.get_mut::<ZSet>(args[1])? {
        removed = args[2..].iter().filter(|member| zset.remove(member).is_some()).count();
        if zset.is_empty() {
            c.keys.remove_found(args[1]);
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
    use crate::commands::testing::{NULL, Node, bulk};

    /// A node with the sorted set `k`, compact or large: a 1, b 2, c 3.
    fn node(large: bool) -> Node {
        let mut node = Node::new();
        assert_eq!(node.run("ZADD k 2 b 1 a 3 c"), ":3\r\n");
        if large {
            let long = "x".repeat(65);
            node.run(&format!("ZADD k 1 {long}"));
            node.run(&format!("ZREM k {long}"));
        }
        assert_eq!(node.run("OBJECT ENCODING k"), bulk(if large { "skiplist" } else { "listpack" }));
        node.effects();
        node
    }

    fn check(node: &mut Node, line: &str, reply: &str, has_effect: bool) {
        let dirty = node.dirty();
        assert_eq!(node.run(line), reply, "{line}");
        assert_eq!(node.effects(), if has_effect { line } else { "" }, "{line}");
        assert_eq!(node.dirty() > dirty, has_effect, "{line}");
    }

    #[test]
    fn zadd_heeds_its_options_in_both_encodings() {
        for large in [false, true] {
            let mut node = node(large);
            for (line, reply, has_effect) in [
                ("ZADD k 1 a", ":0\r\n", false),
                ("ZADD k 1.5 a 4 d", ":1\r\n", true),
                ("ZADD k CH 1 a 5 e", ":2\r\n", true),
                ("ZADD k NX 9 a", ":0\r\n", false),
                ("ZADD k nx 9 a 6 f", ":1\r\n", true),
                ("ZADD k XX 9 z", ":0\r\n", false),
                ("ZADD k XX CH 7 f", ":1\r\n", true),
                ("ZADD k GT CH 6 f", ":0\r\n", false),
                ("ZADD k GT CH 8 f", ":1\r\n", true),
                ("ZADD k LT CH 9 f", ":0\r\n", false),
                ("ZADD k LT CH XX 6 f", ":1\r\n", true),
                ("ZADD k INCR 0.5 f", "$3\r\n6.5\r\n", true),
                ("ZADD k INCR 0 f", "$3\r\n6.5\r\n", false),
                ("ZADD k NX INCR 1 f", NULL, false),
                ("ZADD k LT INCR 1 f", NULL, false),
                ("ZINCRBY k -0.5 f", "$1\r\n6\r\n", true),
                ("ZINCRBY k 2 g", "$1\r\n2\r\n", true),
                ("ZSCORE k a", "$1\r\n1\r\n", false),
                ("ZMSCORE k f z", "*2\r\n$1\r\n6\r\n$-1\r\n", false),
                ("ZCARD k", ":7\r\n", false),
            ] {
                check(&mut node, line, reply, has_effect);
            }
            assert_eq!(node.run3("ZADD k INCR 1 a"), ",2\r\n");
            assert_eq!(node.run3("ZADD k XX INCR 1 none"), "_\r\n");
        }
    }

    #[test]
    fn ranks_count_from_either_side() {
        for large in [false, true] {
            let mut node = node(large);
            for (line, reply) in [
                ("ZRANK k c", ":2\r\n"),
                ("ZREVRANK k c", ":0\r\n"),
                ("ZRANK k z", NULL),
                ("ZRANK k z WITHSCORE", "*-1\r\n"),
                ("ZREVRANK k a withscore", "*2\r\n:2\r\n$1\r\n1\r\n"),
                ("ZRANK none a", NULL),
                ("ZRANK k a WITH", "-ERR syntax error\r\n"),
                ("ZRANK k a WITHSCORE x", "-ERR wrong number of arguments for 'zrank' command\r\n"),
            ] {
                check(&mut node, line, reply, false);
            }
            assert_eq!(node.run3("ZRANK k b WITHSCORE"), "*2\r\n:1\r\n,2\r\n");
        }
    }

    #[test]
    fn pops_take_the_ends_and_removals_the_key() {
        for large in [false, true] {
            let mut node = node(large);
            for (line, reply, has_effect) in [
                ("ZPOPMIN k", "*2\r\n$1\r\na\r\n$1\r\n1\r\n", true),
                ("ZPOPMIN k 0", "*0\r\n", false),
                ("ZPOPMAX k 5", "*4\r\n$1\r\nc\r\n$1\r\n3\r\n$1\r\nb\r\n$1\r\n2\r\n", true),
                ("ZPOPMIN k", "*0\r\n", false),
                ("EXISTS k", ":0\r\n", false),
                ("ZADD k 1 a 2 b 3 c", ":3\r\n", true),
                ("ZREM k z", ":0\r\n", false),
                ("ZREM k z a b c", ":3\r\n", true),
                ("EXISTS k", ":0\r\n", false),
            ] {
                check(&mut node, line, reply, has_effect);
            }
            node.run("ZADD k 1 a 2 b 2 c");
            assert_eq!(node.run3("ZPOPMAX k"), "*2\r\n$1\r\nc\r\n,2\r\n");
            assert_eq!(node.run3("ZPOPMIN k 1"), "*1\r\n*2\r\n$1\r\na\r\n,1\r\n");
        }
    }

    #[test]
    fn errors_are_those_of_redis_and_make_no_key() {
        let mut node = Node::new();
        node.run("SET s v");
        node.run("ZADD i inf a");
        node.effects();
        for (line, error) in [
            ("ZADD k 1", "wrong number of arguments for 'zadd' command"),
            ("ZADD k 1 a 2", "syntax error"),
            ("ZADD k NX XX", "syntax error"),
            ("ZADD k NX XX 1 a", "XX and NX options at the same time are not compatible"),
            ("ZADD k GT LT 1 a", "GT, LT, and/or NX options at the same time are not compatible"),
            ("ZADD k GT NX 1 a", "GT, LT, and/or NX options at the same time are not compatible"),
            ("ZADD k INCR 1 a 2 b", "INCR option supports a single increment-element pair"),
            ("ZADD k 1 a x b", "value is not a valid float"),
            ("ZADD s x b", "value is not a valid float"),
            ("ZADD k nan a", "value is not a valid float"),
            ("ZINCRBY i -inf a", "resulting score is not a number (NaN)"),
            ("ZPOPMIN k -1", "value is out of range, must be positive"),
            ("ZPOPMIN k 1 2", "syntax error"),
        ] {
            check(&mut node, line, &format!("-ERR {error}\r\n"), false);
        }
        check(&mut node, "ZADD k XX 1 a", ":0\r\n", false);
        for line in ["ZADD s 1 a", "ZPOPMIN s", "ZSCORE s a", "ZREM s a", "ZINCRBY s 1 a", "ZRANK s a"] {
            assert!(node.run(line).starts_with("-WRONGTYPE"), "{line}");
        }
        assert_eq!((node.effects().as_str(), node.space.len()), ("", 2));
    }
}
