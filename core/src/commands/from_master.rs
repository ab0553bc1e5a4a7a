//! What masters of other kinds put into the stream, and clients cannot say here.

use super::collection::*;
use super::expire::Condition;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, Outcome};
use crate::resp::number::parse_i64;
use crate::types::Hash;
use crate::types::hash::EXPIRY_END_MS;

/// The declarations.
pub const COMMANDS: &[Command] = &[
    // Redis 8 tells replicas of an HINCRBYFLOAT as an HSETEX that leaves the field its expiry.
    Command::new("hsetex", -6, Handler::Keys(hsetex))
        .flags(GROW_FAST.or(Flags::INTERNAL))
        .categories(Category::HASH)
        .keys(UPDATE)
        .doc(
            "hash",
            "8.0.0",
            "Sets fields of a hash with their expiry, as a master says.",
            "O(N) for N fields.",
        ),
    // HEXPIRE and its kin, and HGETEX, of Redis 7.4 and Valkey 9 on.
    Command::new("hpexpireat", -6, Handler::Keys(hpexpireat))
        .flags(Flags::WRITE.or(Flags::FAST).or(Flags::INTERNAL))
        .categories(Category::HASH)
        .keys(UPDATE)
        .doc("hash", "7.4.0", "Gives fields of a hash an expiry, as a master says.", "O(N) for N fields."),
    Command::new("hpersist", -5, Handler::Keys(hpersist))
        .flags(Flags::WRITE.or(Flags::FAST).or(Flags::INTERNAL))
        .categories(Category::HASH)
        .keys(UPDATE)
        .doc(
            "hash",
            "7.4.0",
            "Takes the expiry from fields of a hash, as a master says.",
            "O(N) for N fields.",
        ),
];

/// When fields are to expire.
fn expiry_ms(text: Option<&&[u8]>) -> Result<u64, Error> {
    let at_ms = text.and_then(|text| parse_i64(text)).ok_or(Error::NotInteger)?;
    // A time before 1970 is over, too. 0 would be none.
    let at_ms = u64::try_from(at_ms).unwrap_or(0).max(1);
    if at_ms < EXPIRY_END_MS { Ok(at_ms) } else { Err(Error::text("ERR invalid expire time")) }
}

/// What follows `FIELDS`, which is expected at `at`, and the number of fields: `width` words each.
fn fields<'a>(args: &'a Args<'_>, at: usize, width: i64) -> Result<&'a [&'a [u8]], Error> {
    let count = args.get(at + 1).and_then(|text| parse_i64(text)).ok_or(Error::Syntax)?;
    let words = args.get(at + 2..).unwrap_or_default();
    if !args.is(at, "fields") || words.is_empty() || words.len() as i64 != count.saturating_mul(width) {
        return Err(Error::Syntax);
    }
    Ok(words)
}

/// Whether the fields' expiries are left alone, or what they become.
enum FieldExpiry {
    Keep,
    Become(Option<u64>),
}

/// `HSETEX key [KEEPTTL|PXAT ms] FIELDS count field value …`: the forms that a stream brings.
fn hsetex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let mut at = 2;
    let expiry = if args.is(at, "keepttl") {
        at += 1;
        FieldExpiry::Keep
    } else if args.is(at, "pxat") {
        let expiry_ms = expiry_ms(args.get(at + 1))?;
        at += 2;
        FieldExpiry::Become(Some(expiry_ms))
    } else {
        FieldExpiry::Become(None)
    };
    let pairs = fields(&args, at, 2)?;
    let limits = &c.keys.settings.limits;
    c.keys.upsert(args[1], |hash: &mut Hash| {
        let longest = pairs.iter().map(|text| text.len()).max().unwrap_or(0);
        hash.prepare(pairs.len() / 2, longest, limits);
        for pair in pairs.chunks_exact(2) {
            match expiry {
                FieldExpiry::Keep => {
                    hash.set_keeping_expiry(pair[0], pair[1], limits);
                }
                FieldExpiry::Become(expiry_ms) => {
                    hash.set(pair[0], pair[1], limits);
                    if expiry_ms.is_some() {
                        hash.set_expiry(pair[0], expiry_ms);
                    }
                }
            }
        }
    })?;
    c.keys.changed(args[1]);
    c.keys.replicate_as_is(args);
    c.out.int(1);
    Ok(())
}

/// `HPEXPIREAT key ms [NX|XX|GT|LT] FIELDS count field …`. The condition held for each field where it was first run, and
/// does here.
fn hpexpireat(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let expiry_ms = expiry_ms(args.get(2))?;
    let mut condition = Condition::default();
    let has_condition = condition.add(args, 3);
    let names = fields(&args, 3 + usize::from(has_condition), 1)?;
    let holds = |before_ms| condition.allows(before_ms, expiry_ms as i64);
    set_expiries(c, args, names, Some(expiry_ms), holds)
}

/// `HPERSIST key FIELDS count field …`
fn hpersist(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let names = fields(&args, 2, 1)?;
    set_expiries(c, args, names, None, |before_ms| before_ms.is_some())
}

/// Sets the expiry of those fields that are there and for whose present one `holds` is true.
fn set_expiries(
    c: &mut Ctx<'_>,
    args: Args<'_>,
    names: &[&[u8]],
    expiry_ms: Option<u64>,
    holds: impl Fn(Option<u64>) -> bool,
) -> Outcome {
    let mut changed = 0;
    if let Some(hash) = c.keys.get_mut::<Hash>(args[1])? {
        for name in names {
            if hash.find(name).is_some_and(|field| holds(field.expiry_ms)) {
                hash.set_expiry(name, expiry_ms);
                changed += 1;
            }
        }
    }
    if changed > 0 {
        c.keys.changed(args[1]);
        c.keys.replicate_as_is(args);
    }
    c.out.int(changed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Node, START_MS};

    #[test]
    fn hsetex_sets_fields_and_keeps_or_sets_their_expiry() {
        let mut node = Node::new();
        (node.replica, node.from_master) = (true, true);
        assert_eq!(node.run("HSETEX h KEEPTTL FIELDS 2 a 1 b 2"), ":1\r\n");
        let later = START_MS + 1000;
        assert_eq!(node.run(&format!("HSETEX h PXAT {later} FIELDS 1 a 3")), ":1\r\n");
        assert_eq!(node.run("HSETEX h KEEPTTL FIELDS 1 a 4"), ":1\r\n");
        assert_eq!(node.run("HMGET h a b"), "*2\r\n$1\r\n4\r\n$1\r\n2\r\n");
        node.advance_ms(1001);
        assert_eq!(node.run("HMGET h a b"), "*2\r\n$-1\r\n$1\r\n2\r\n", "its expiry was kept");
        assert_eq!(node.run("HSETEX h FIELDS 1 a 5"), ":1\r\n");
        assert_eq!(node.run("HGET h a"), "$1\r\n5\r\n");
        for bad in
            ["HSETEX h KEEPTTL FIELDS 2 a 1", "HSETEX h FNX FIELDS 1 a 1", "HSETEX h PXAT x FIELDS 1 a 1"]
        {
            assert!(node.run(bad).starts_with('-'), "{bad}");
        }
    }

    #[test]
    fn a_field_that_was_to_expire_before_1970_is_over() {
        for at_ms in [-1, 0, i64::MIN] {
            for fields in [1, 1000] {
                let mut node = Node::new();
                (node.replica, node.from_master) = (true, true);
                for field in 0..fields {
                    node.run(&format!("HSET h f{field} 1"));
                }
                node.run(&format!("HPEXPIREAT h {} FIELDS 1 f0", START_MS + 1000));
                assert_eq!(node.run(&format!("HPEXPIREAT h {at_ms} FIELDS 1 f0")), ":1\r\n");
                node.run(&format!("HSETEX h PXAT {at_ms} FIELDS 1 g 1"));
                node.from_master = false;
                assert_eq!(node.run("HMGET h f0 g"), "*2\r\n$-1\r\n$-1\r\n", "{at_ms}, {fields} fields");
            }
        }
    }

    #[test]
    fn fields_get_and_lose_an_expiry_as_a_master_says() {
        let mut node = Node::new();
        (node.replica, node.from_master) = (true, true);
        node.run("HSET h a 1 b 2 c 3");
        let (soon, later) = (START_MS + 1000, START_MS + 5000);
        assert_eq!(node.run(&format!("HPEXPIREAT h {soon} FIELDS 2 a b")), ":2\r\n");
        assert_eq!(node.run(&format!("HPEXPIREAT h {later} NX FIELDS 2 b c")), ":1\r\n");
        assert_eq!(node.run(&format!("HPEXPIREAT h {later} GT FIELDS 2 b c")), ":1\r\n");
        assert_eq!(node.run(&format!("HPEXPIREAT h {soon} XX FIELDS 1 c")), ":1\r\n");
        assert_eq!(node.run(&format!("HPEXPIREAT h {later} LT FIELDS 1 c")), ":0\r\n");
        assert_eq!(node.run("HPERSIST h FIELDS 2 a none"), ":1\r\n");
        node.advance_ms(1001);
        assert_eq!(node.run("HMGET h a b c"), "*3\r\n$1\r\n1\r\n$1\r\n2\r\n$-1\r\n");
        for bad in ["HPEXPIREAT h 1 FIELDS 2 a", "HPEXPIREAT h x FIELDS 1 a", "HPERSIST h FOO 1 a"] {
            assert!(node.run(bad).starts_with('-'), "{bad}");
        }
        let beyond = 1u64 << 48;
        for bad in
            [format!("HPEXPIREAT h {beyond} FIELDS 1 a"), format!("HSETEX h PXAT {beyond} FIELDS 1 a 1")]
        {
            assert_eq!(node.run(&bad), "-ERR invalid expire time\r\n");
        }
    }
}
