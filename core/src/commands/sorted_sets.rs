//! Sorted sets: members and scores.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
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
    if (only_greater && only_new) || (only_less && only_new) || (only_greater && only_less) {
        return Err(Error::text("ERR GT, LT, and/or NX options at the same time are not compatible"));
    }
    if increment && pairs.len() > 2 {
        return Err(Error::text("ERR INCR option supports a single increment-element pair"));
    }
    let sum = add(c, args, pairs, flags)?;
    if increment {
        match sum.score {
            Some(value) => score(c.out, value),
            None => c.out.null(),
        }
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
        c.keys.replicate(args.list());
    }
    Ok(sum)
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
    let mut show = |(member, value): (Element<'_>, f64)| {
        if nested {
            out.array(2);
        }
        bulk_element(out, member);
        score(out, value);
    };
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
    c.keys.replicate(args.list());
    Ok(())
}
