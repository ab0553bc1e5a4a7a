//! What masters of other kinds put into the stream, and clients cannot say here.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, Outcome};
use crate::resp::number::parse_i64;
use crate::types::Hash;

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
];

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
        let expiry_ms = args.get(at + 1).and_then(|text| parse_i64(text)).ok_or(Error::NotInteger)?;
        at += 2;
        // A time before 1970 is over, too.
        FieldExpiry::Become(Some(u64::try_from(expiry_ms).unwrap_or(0)))
    } else {
        FieldExpiry::Become(None)
    };
    let count = args.get(at + 1).and_then(|text| parse_i64(text)).ok_or(Error::Syntax)?;
    let pairs = args.get(at + 2..).unwrap_or_default();
    if !args.is(at, "fields") || pairs.is_empty() || pairs.len() as i64 != count.saturating_mul(2) {
        return Err(Error::Syntax);
    }
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
    c.keys.replicate(args.list());
    c.out.int(1);
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
}
