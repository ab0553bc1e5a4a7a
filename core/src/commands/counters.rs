//! Strings as numbers: `INCR` and its kin.

use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::keyspace::{Expiry, StrRef};
use crate::resp::number::parse_i64;
use crate::table::{NewValue, ValueMut};
use crate::types::extended::{Extended, Parsed};

const UPDATE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["access", "update"])];

const fn counter(
    name: &'static str,
    arity: i16,
    run: fn(&mut Ctx<'_>, Args<'_>) -> Outcome,
    since: &'static str,
    summary: &'static str,
) -> Command {
    Command::new(name, arity, Handler::Keys(run))
        .flags(Flags::WRITE.or(Flags::DENYOOM).or(Flags::FAST))
        .categories(Category::STRING)
        .keys(UPDATE)
        .doc("string", since, summary, "O(1)")
}

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    counter(
        "decr",
        2,
        decr,
        "1.0.0",
        "Takes one from a key's integer; a key that does not exist counts as 0.",
    ),
    counter(
        "decrby",
        3,
        decrby,
        "1.0.0",
        "Takes a number from a key's integer; a key that does not exist counts as 0.",
    ),
    counter("incr", 2, incr, "1.0.0", "Adds one to a key's integer; a key that does not exist counts as 0."),
    counter(
        "incrby",
        3,
        incrby,
        "1.0.0",
        "Adds a number to a key's integer; a key that does not exist counts as 0.",
    ),
    counter(
        "incrbyfloat",
        3,
        incrbyfloat,
        "2.6.0",
        "Adds a number to a key's floating point number; a key that does not exist counts as 0.",
    ),
];

fn incr(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    add(c, args, 1)
}

fn decr(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    add(c, args, -1)
}

fn incrby(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    add(c, args, parse_i64(args[2]).ok_or(Error::NotInteger)?)
}

fn decrby(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let amount = parse_i64(args[2]).ok_or(Error::NotInteger)?;
    add(c, args, amount.checked_neg().ok_or(Error::text("ERR decrement would overflow"))?)
}

/// Adds to the integer at the command's key: one lookup, in place, if it is stored as one.
fn add(c: &mut Ctx<'_>, args: Args<'_>, amount: i64) -> Outcome {
    const OVERFLOW: Error = Error::text("ERR increment or decrement would overflow");
    let key = args[1];
    let sum = match c.keys.write(key) {
        Some(mut entry) => {
            if let ValueMut::Int(number) = entry.value_mut() {
                *number = number.checked_add(amount).ok_or(OVERFLOW)?;
                *number
            } else {
                let value = StrRef::of(entry.value()).ok_or(Error::WrongType)?;
                let number = value.with(parse_i64).ok_or(Error::NotInteger)?;
                let sum = number.checked_add(amount).ok_or(OVERFLOW)?;
                entry.set_value(NewValue::Int(sum));
                sum
            }
        }
        None => {
            c.keys.put(key, NewValue::Int(amount), Expiry::Clear);
            amount
        }
    };
    c.keys.changed(key);
    c.keys.replicate_as_is(args);
    c.out.int(sum);
    Ok(())
}

fn incrbyfloat(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let key = args[1];
    // The type is checked before the argument is read.
    let old = match c.keys.write_string(key)? {
        Some(entry) => {
            StrRef::of(entry.value()).expect("a string").with(Extended::parse).ok_or(Error::NotFloat)?
        }
        None => Parsed::Finite(Extended::ZERO),
    };
    let amount = Extended::parse(args[2]).ok_or(Error::NotFloat)?;
    let (Parsed::Finite(old), Parsed::Finite(amount)) = (old, amount) else { return Err(NOT_FINITE) };
    let sum = old.checked_add(amount).ok_or(NOT_FINITE)?.format();
    match c.keys.write(key) {
        Some(mut entry) => entry.set_value(NewValue::Str(&sum)),
        None => c.keys.put(key, NewValue::Str(&sum), Expiry::Clear),
    }
    c.keys.changed(key);
    c.keys.replicate(&[b"SET", key, &sum, b"KEEPTTL"]);
    c.out.bulk(&sum);
    Ok(())
}

/// The error of `INCRBYFLOAT` and `HINCRBYFLOAT` when infinity is added, or reached.
pub(super) const NOT_FINITE: Error = Error::text("ERR increment would produce NaN or Infinity");

#[cfg(test)]
mod tests {
    use crate::commands::testing::{Node, OK, bulk};

    #[test]
    fn integers() {
        let mut node = Node::new();
        for (line, reply, effects) in [
            ("INCR k", ":1\r\n", "INCR k"),
            ("INCRBY k 10", ":11\r\n", "INCRBY k 10"),
            ("DECR k", ":10\r\n", "DECR k"),
            ("DECRBY k 20", ":-10\r\n", "DECRBY k 20"),
            ("GET k", "$3\r\n-10\r\n", ""),
            ("DECRBY k -9223372036854775808", "-ERR decrement would overflow\r\n", ""),
            ("INCRBY k 9223372036854775807", ":9223372036854775797\r\n", "INCRBY k 9223372036854775807"),
            ("INCRBY k 11", "-ERR increment or decrement would overflow\r\n", ""),
            ("INCRBY k 1.0", "-ERR value is not an integer or out of range\r\n", ""),
            ("SET t abc", OK, "SET t abc"),
            ("INCR t", "-ERR value is not an integer or out of range\r\n", ""),
            ("SET e 5 PXAT 99999999999999", OK, "SET e 5 PXAT 99999999999999"),
            ("INCR e", ":6\r\n", "INCR e"),
            ("GETEX e PERSIST", "$1\r\n6\r\n", "PERSIST e"),
        ] {
            assert_eq!(node.run(line), reply, "{line}");
            assert_eq!(node.effects(), effects, "{line}");
        }
    }

    #[test]
    fn floats() {
        let mut node = Node::new();
        for (line, reply, effects) in [
            ("INCRBYFLOAT k 0.1", bulk("0.1"), "SET k 0.1 KEEPTTL"),
            ("INCRBYFLOAT k 0.2", bulk("0.3"), "SET k 0.3 KEEPTTL"),
            ("INCRBYFLOAT k -0.3", bulk("0"), "SET k 0 KEEPTTL"),
            ("INCRBYFLOAT k 5.0e3", bulk("5000"), "SET k 5000 KEEPTTL"),
            ("INCR k", ":5001\r\n".into(), "INCR k"),
            ("INCRBYFLOAT k inf", "-ERR increment would produce NaN or Infinity\r\n".into(), ""),
            ("INCRBYFLOAT k x", "-ERR value is not a valid float\r\n".into(), ""),
            ("SET t abc", OK.into(), "SET t abc"),
            ("INCRBYFLOAT t 1", "-ERR value is not a valid float\r\n".into(), ""),
            ("SET e 5 PXAT 99999999999999", OK.into(), "SET e 5 PXAT 99999999999999"),
            ("INCRBYFLOAT e .5", bulk("5.5"), "SET e 5.5 KEEPTTL"),
            ("GETEX e PERSIST", bulk("5.5"), "PERSIST e"),
        ] {
            assert_eq!(node.run(line), reply, "{line}");
            assert_eq!(node.effects(), effects, "{line}");
        }
    }
}
