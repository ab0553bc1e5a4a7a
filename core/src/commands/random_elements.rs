//! `SRANDMEMBER`, `HRANDFIELD`, `ZRANDMEMBER`: elements chosen at random.

use super::collection::*;
use super::sorted_sets::show_member;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::keyspace::Collection;
use crate::resp::Reply;
use crate::types::{Element, Field, Hash, Set, ZSet};

const COMPLEXITY: &str = "O(1) without a count, else O(N) for N elements returned.";

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("srandmember", -2, Handler::Keys(srandmember))
        .flags(READ)
        .categories(Category::SET)
        .keys(ACCESS)
        .doc("set", "1.0.0", "Returns random members of a set.", COMPLEXITY),
    Command::new("hrandfield", -2, Handler::Keys(hrandfield))
        .flags(READ)
        .categories(Category::HASH)
        .keys(ACCESS)
        .doc("hash", "6.2.0", "Returns random fields of a hash.", COMPLEXITY),
    Command::new("zrandmember", -2, Handler::Keys(zrandmember))
        .flags(READ)
        .categories(Category::SORTEDSET)
        .keys(ACCESS)
        .doc("sorted-set", "6.2.0", "Returns random members of a sorted set.", COMPLEXITY),
];

/// Elements that one call draws with repetitions at most, so that it ends: a reply of 100 MB, about.
const MAX_REPETITIONS: u64 = 1 << 24;

/// A collection to draw from.
trait Draw: Collection + 'static {
    type Drawn<'a>;
    fn one(&self, rng: &mut fastrand::Rng) -> Option<Self::Drawn<'_>>;
    fn distinct(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<Self::Drawn<'_>>;
}

impl Draw for Set {
    type Drawn<'a> = Element<'a>;
    fn one(&self, rng: &mut fastrand::Rng) -> Option<Element<'_>> {
        self.random(rng)
    }
    fn distinct(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<Element<'_>> {
        self.sample(rng, count)
    }
}

impl Draw for Hash {
    type Drawn<'a> = Field<'a>;
    fn one(&self, rng: &mut fastrand::Rng) -> Option<Field<'_>> {
        self.random(rng)
    }
    fn distinct(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<Field<'_>> {
        self.sample(rng, count)
    }
}

impl Draw for ZSet {
    type Drawn<'a> = (Element<'a>, f64);
    fn one(&self, rng: &mut fastrand::Rng) -> Option<(Element<'_>, f64)> {
        self.random(rng)
    }
    fn distinct(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<(Element<'_>, f64)> {
        self.sample(rng, count)
    }
}

/// How many to draw, and how to show them.
struct Wanted {
    /// Negative: as many, with repetitions. None: one, not in an array.
    count: Option<i64>,
    /// With its value or score.
    pairs: bool,
}

impl Wanted {
    /// `pairs`: the word that asks for the second part, if the type has one.
    fn parse(args: Args<'_>, pairs: Option<&str>) -> Result<Self, Error> {
        let with_pairs = args.len() == 4 && pairs.is_some_and(|word| args.is(3, word));
        let most = if with_pairs { 4 } else { 3 };
        let count = args.get(2).map(|arg| signed_count(arg)).transpose()?;
        if args.len() > most {
            return Err(Error::Syntax);
        }
        let limit = if with_pairs { i64::MAX / 2 } else { i64::MAX };
        if count.is_some_and(|count| count.abs() > limit || count < -(MAX_REPETITIONS as i64)) {
            return Err(Error::ValueOutOfRange);
        }
        Ok(Self { count, pairs: with_pairs })
    }
}

/// Replies with drawn elements; `show` gets each, and whether its two parts make an array of their own.
fn draw<C: Draw>(
    c: &mut Ctx<'_>,
    key: &[u8],
    wanted: &Wanted,
    show: impl Fn(&mut Reply, C::Drawn<'_>, bool),
) -> Outcome {
    let collection = c.keys.get::<C>(key)?;
    let Some(count) = wanted.count else {
        match collection.and_then(|collection| collection.one(c.rng)) {
            Some(drawn) => show(c.out, drawn, false),
            None => c.out.null(),
        }
        return Ok(());
    };
    let Some(collection) = collection.filter(|_| count != 0) else {
        c.out.array(0);
        return Ok(());
    };
    let nested = wanted.pairs && c.out.resp3;
    let parts = if wanted.pairs && !nested { 2 } else { 1 };
    if count > 0 {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let drawn = collection.distinct(c.rng, count);
        c.out.array(parts * drawn.len());
        drawn.into_iter().for_each(|drawn| show(c.out, drawn, nested));
    } else {
        let count = count.unsigned_abs() as usize;
        c.out.array(parts * count);
        for _ in 0..count {
            show(c.out, collection.one(c.rng).expect("no key holds an empty collection"), nested);
        }
    }
    Ok(())
}

fn srandmember(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let wanted = Wanted::parse(args, None)?;
    draw::<Set>(c, args[1], &wanted, |out, member, _| bulk_element(out, member))
}

fn hrandfield(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let wanted = Wanted::parse(args, Some("WITHVALUES"))?;
    draw::<Hash>(c, args[1], &wanted, |out, field, nested| {
        if nested {
            out.array(2);
        }
        bulk_element(out, field.name);
        if wanted.pairs {
            bulk_element(out, field.value);
        }
    })
}

fn zrandmember(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let wanted = Wanted::parse(args, Some("WITHSCORES"))?;
    draw::<ZSet>(c, args[1], &wanted, |out, (member, value), nested| {
        if wanted.pairs {
            show_member(out, member, value, nested);
        } else {
            bulk_element(out, member);
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::{NULL, Node};

    fn strings(reply: &str) -> Vec<String> {
        let is_data = |line: &&str| !line.is_empty() && !line.starts_with(['*', '$']);
        reply.split("\r\n").filter(is_data).map(str::to_owned).collect()
    }

    #[test]
    fn draws_are_members_distinct_or_repeated() {
        for (add, draw, pairs) in [
            ("SADD k a b c d", "SRANDMEMBER k", None),
            ("HSET k a 1 b 2 c 3 d 4", "HRANDFIELD k", Some("WITHVALUES")),
            ("ZADD k 1 a 2 b 3 c 4 d", "ZRANDMEMBER k", Some("WITHSCORES")),
        ] {
            let mut node = Node::new();
            assert_eq!(node.run(draw), NULL);
            assert_eq!(node.run(&format!("{draw} 3")), "*0\r\n");
            node.run(add);
            node.effects();
            assert!(["$1\r\na\r\n", "$1\r\nb\r\n", "$1\r\nc\r\n", "$1\r\nd\r\n"].contains(&&*node.run(draw)));
            for (count, want) in [(0, 0), (3, 3), (9, 4), (-3, 3), (-200, 200)] {
                let reply = node.run(&format!("{draw} {count}"));
                assert!(reply.starts_with(&format!("*{want}\r\n")));
                let mut drawn = strings(&reply);
                drawn.sort();
                drawn.dedup();
                assert!(drawn.iter().all(|member| ["a", "b", "c", "d"].contains(&&**member)));
                assert_eq!(drawn.len(), if count == -200 { 4 } else { drawn.len() });
                assert!(count < 0 || drawn.len() == want);
            }
            if let Some(word) = pairs {
                let reply = node.run(&format!("{draw} 9 {word}"));
                assert!(reply.starts_with("*8\r\n"));
                for pair in strings(&reply).chunks(2) {
                    assert!([["a", "1"], ["b", "2"], ["c", "3"], ["d", "4"]].contains(&[&pair[0], &pair[1]]));
                }
                assert!(node.run3(&format!("{draw} -2 {word}")).starts_with("*2\r\n*2\r\n$1\r\n"));
                assert_eq!(
                    node.run(&format!("{draw} -9223372036854775807 {word}")),
                    "-ERR value is out of range\r\n"
                );
            }
            assert_eq!(node.run(&format!("{draw} 1 x")), "-ERR syntax error\r\n");
            assert_eq!(node.run(&format!("{draw} x")), "-ERR value is not an integer or out of range\r\n");
            assert_eq!(
                node.run(&format!("{draw} -9223372036854775808")),
                "-ERR value is out of range, value must between -9223372036854775807 and 9223372036854775807\r\n"
            );
            assert_eq!(node.effects(), "");
        }
    }
}
