//! Strings: reading them, setting them, and changing parts of them. Numbers in strings are in [`super::counters`].

use super::expiry::{Timing, parse_positive_deadline_ms};
use super::set_options::{self, Condition, SetOptions};
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::keyspace::{Expiry, StrRef, edit_string, grow_with_zeros, string_len};
use crate::resp::number::parse_i64;
use bytes::BytesMut;

const WRITE: Flags = Flags::WRITE.or(Flags::DENYOOM);
const WRITE_FAST: Flags = WRITE.or(Flags::FAST);
const READ_FAST: Flags = Flags::READONLY.or(Flags::FAST);
const UPDATE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["access", "update"])];
const OVERWRITE: &[KeySpec] = &[KeySpec::one(1, Use::Overwrite, &["update"])];
const ACCESS: &[KeySpec] = &[KeySpec::one(1, Use::Read, &["access"])];

const RANGE_COMPLEXITY: &str = "O(N) in the length of the part returned";

/// A command of this family.
const fn string(name: &'static str, arity: i16, run: fn(&mut Ctx<'_>, Args<'_>) -> Outcome) -> Command {
    Command::new(name, arity, Handler::Keys(run)).categories(Category::STRING)
}

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    string("append", 3, append).flags(WRITE_FAST).keys(&[KeySpec::one(1, Use::ReadWrite, &["insert"])]).doc(
        "string",
        "2.0.0",
        "Adds to the end of a string; a key that does not exist starts empty.",
        "O(1), amortized",
    ),
    string("delifeq", 3, delifeq)
        .flags(Flags::WRITE.or(Flags::FAST))
        .keys(&[KeySpec::one(1, Use::Remove, &["delete"])])
        .doc("string", "9.0.0", "Deletes a key if its string is the one given.", "O(1)"),
    string("get", 2, get).flags(READ_FAST).keys(ACCESS).doc(
        "string",
        "1.0.0",
        "Tells a key's string.",
        "O(1)",
    ),
    string("getdel", 2, getdel)
        .flags(Flags::WRITE.or(Flags::FAST))
        .keys(&[KeySpec::one(1, Use::ReadWrite, &["access", "delete"])])
        .doc("string", "6.2.0", "Tells a key's string and deletes the key.", "O(1)"),
    string("getex", -2, getex).flags(Flags::WRITE.or(Flags::FAST)).keys(UPDATE).doc(
        "string",
        "6.2.0",
        "Tells a key's string and sets or clears its expiry.",
        "O(1)",
    ),
    string("getrange", 4, getrange).flags(Flags::READONLY).keys(ACCESS).doc(
        "string",
        "2.4.0",
        "Tells a part of a string.",
        RANGE_COMPLEXITY,
    ),
    string("getset", 3, getset).flags(WRITE_FAST).keys(UPDATE).doc(
        "string",
        "1.0.0",
        "Sets a key to a string and tells the one before.",
        "O(1)",
    ),
    string("mget", -2, mget).flags(READ_FAST).keys(&[KeySpec::all(1, 1, Use::Read, &["access"])]).doc(
        "string",
        "1.0.0",
        "Tells the strings of several keys at one moment.",
        "O(N) in the number of keys",
    ),
    string("mset", -3, mset).flags(WRITE).keys(&[KeySpec::all(1, 2, Use::Overwrite, &["update"])]).doc(
        "string",
        "1.0.1",
        "Sets several keys to strings, all at once.",
        "O(N) in the number of keys",
    ),
    string("msetex", -4, msetex)
        .flags(WRITE.or(Flags::MOVABLEKEYS))
        .keys(&[KeySpec::counted_step(1, 2, Use::Overwrite, &["update"])])
        .doc(
            "string",
            "8.4.0",
            "Sets several keys to strings with one expiry, all at once and on a condition.",
            "O(N) in the number of keys",
        ),
    string("msetnx", -3, msetnx).flags(WRITE).keys(&[KeySpec::all(1, 2, Use::Overwrite, &["insert"])]).doc(
        "string",
        "1.0.1",
        "Sets several keys to strings if none of them exists.",
        "O(N) in the number of keys",
    ),
    string("psetex", 4, psetex).flags(WRITE).keys(OVERWRITE).doc(
        "string",
        "2.6.0",
        "Sets a key to a string that expires after some milliseconds.",
        "O(1)",
    ),
    string("set", -3, set)
        .flags(WRITE)
        .keys(&[KeySpec::one(1, Use::ReadWrite, &["access", "update", "variable_flags"])])
        .doc("string", "1.0.0", "Sets a key to a string, whatever it held before.", "O(1)"),
    string("setex", 4, setex).flags(WRITE).keys(OVERWRITE).doc(
        "string",
        "2.0.0",
        "Sets a key to a string that expires after some seconds.",
        "O(1)",
    ),
    string("setnx", 3, setnx).flags(WRITE_FAST).keys(&[KeySpec::one(1, Use::Overwrite, &["insert"])]).doc(
        "string",
        "1.0.0",
        "Sets a key to a string if the key does not exist.",
        "O(1)",
    ),
    string("setrange", 4, setrange).flags(WRITE).keys(&[KeySpec::one(1, Use::ReadWrite, &["update"])]).doc(
        "string",
        "2.2.0",
        "Overwrites a part of a string from an offset on, padding with zero bytes up to there.",
        "O(M) in the length of the part written",
    ),
    string("strlen", 2, strlen).flags(READ_FAST).keys(&[KeySpec::one(1, Use::Read, &[])]).doc(
        "string",
        "2.2.0",
        "Tells the length of a string.",
        "O(1)",
    ),
    string("substr", 4, getrange).flags(Flags::READONLY).keys(ACCESS).doc(
        "string",
        "1.0.0",
        "Tells a part of a string (the older name of GETRANGE).",
        RANGE_COMPLEXITY,
    ),
];

/// Replies a key's string, or null. False if there is none.
fn reply_string(c: &mut Ctx<'_>, key: &[u8]) -> Result<bool, Error> {
    match c.keys.string(key)? {
        Some(value) => {
            value.reply(c.out);
            Ok(true)
        }
        None => {
            c.out.null();
            Ok(false)
        }
    }
}

fn get(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    reply_string(c, args[1]).map(drop)
}

fn mget(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    c.out.array(args.len() - 1);
    for key in &args[1..] {
        // What is no string is told as if it were not there.
        match c.keys.string(key) {
            Ok(Some(value)) => value.reply(c.out),
            _ => c.out.null(),
        }
    }
    Ok(())
}

fn strlen(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let len = c.keys.string(args[1])?.map_or(0, StrRef::len);
    c.out.int(len as i64);
    Ok(())
}

/// The bytes that an inclusive range of positions names, negative ones counted from the end: (first, length).
pub(super) fn resolve_range(start: i64, end: i64, len: usize) -> (usize, usize) {
    let len = len as i64;
    if start < 0 && end < 0 && start > end {
        return (0, 0);
    }
    let from_end = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if start > end { (0, 0) } else { (start as usize, (end - start + 1) as usize) }
}

fn getrange(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let start = parse_i64(args[2]).ok_or(Error::NotInteger)?;
    let end = parse_i64(args[3]).ok_or(Error::NotInteger)?;
    let Some(value) = c.keys.string(args[1])? else {
        c.out.bulk(b"");
        return Ok(());
    };
    let (first, len) = resolve_range(start, end, value.len());
    match value {
        StrRef::Shared(bytes) => c.out.bulk_shared(&bytes.slice(first..first + len)),
        _ => value.with(|bytes| c.out.bulk(&bytes[first..first + len])),
    }
    Ok(())
}

/// Removes a key that exists, and tells everyone.
fn delete(c: &mut Ctx<'_>, key: &[u8], verb: &[u8]) {
    let existed = c.keys.remove(key);
    debug_assert!(existed);
    c.keys.changed(key);
    c.keys.replicate(&[verb, key]);
}

fn getdel(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    if reply_string(c, args[1])? {
        delete(c, args[1], b"DEL");
    }
    Ok(())
}

fn delifeq(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let equal = c.keys.string(args[1])?.is_some_and(|value| value.is(args[2]));
    if equal {
        delete(c, args[1], b"DEL");
    }
    c.out.int(i64::from(equal));
    Ok(())
}

fn getex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let options = set_options::parse_getex(&args[2..])?;
    let key = args[1];
    if !reply_string(c, key)? {
        return Ok(());
    }
    if let Some((timing, amount)) = options.expiry {
        let at = parse_positive_deadline_ms(amount, timing, c.now_ms(), "getex")?;
        if timing.is_absolute() && is_past(c, at) {
            let verb = c.settings().expire_verb();
            delete(c, key, verb);
            return Ok(());
        }
        c.keys.set_expiry(key, Some(at));
        c.keys.changed(key);
        c.keys.replicate(&[b"PEXPIREAT", key, itoa::Buffer::new().format(at).as_bytes()]);
    } else if options.persist && c.keys.peek(key).is_some_and(|entry| entry.expiry_ms().is_some()) {
        c.keys.set_expiry(key, None);
        c.keys.changed(key);
        c.keys.replicate(&[b"PERSIST", key]);
    }
    Ok(())
}

/// Whether a deadline given as such has come. Only the node that decides about expiry asks: a replica does what its
/// master says.
fn is_past(c: &Ctx<'_>, at: u64) -> bool {
    at <= c.now_ms() && !c.keys.replica && !c.keys.from_master
}

/// Sets the key, argument 1, to argument `at` with this expiry, and tells everyone. One that is already over deletes the key.
fn set_to(c: &mut Ctx<'_>, args: Args<'_>, at: usize, expiry: Expiry) {
    let (key, value) = (args[1], args[at]);
    match expiry {
        Expiry::At(at) if is_past(c, at) => {
            if c.keys.exists(key) {
                let verb = c.settings().expire_verb();
                delete(c, key, verb);
            } else {
                c.keys.touched(key);
            }
            return;
        }
        Expiry::Keep => {
            // The expiry of a key whose time is over must not pass to the new one.
            c.keys.exists(key);
        }
        _ => {}
    }
    c.keys.set(key, value, args.shared(at), expiry);
    c.keys.changed(key);
    match expiry {
        Expiry::Clear => c.keys.replicate_sharing(&[b"SET", key, value], args),
        Expiry::Keep => c.keys.replicate_sharing(&[b"SET", key, value, b"KEEPTTL"], args),
        Expiry::At(at) => {
            let mut digits = itoa::Buffer::new();
            c.keys.replicate_sharing(&[b"SET", key, value, b"PXAT", digits.format(at).as_bytes()], args);
        }
    }
}

fn set(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    if args.len() == 3 {
        set_to(c, args, 2, Expiry::Clear);
        c.out.ok();
        return Ok(());
    }
    set_with(c, args, set_options::parse_set(&args[3..])?)
}

fn set_with(c: &mut Ctx<'_>, args: Args<'_>, options: SetOptions<'_>) -> Outcome {
    let key = args[1];
    let expiry = options.resolve(c.now_ms(), "set")?;
    let exists = match options.get {
        true => reply_string(c, key)?,
        false if options.condition == Condition::Always => false,
        false => c.keys.exists(key),
    };
    let holds = match options.condition {
        Condition::Always => true,
        Condition::Missing => !exists,
        Condition::Exists => exists,
        Condition::Equal(want) => peek_string(c, key)?.is_some_and(|value| value.is(want)),
        Condition::NotEqual(want) => peek_string(c, key)?.is_none_or(|value| !value.is(want)),
    };
    if holds {
        set_to(c, args, 2, expiry);
    }
    match (options.get, holds) {
        // The reply, the value before, is written.
        (true, _) => {}
        (false, true) => c.out.ok(),
        (false, false) => c.out.null(),
    }
    Ok(())
}

/// A string, without counting the access.
fn peek_string<'a>(c: &'a mut Ctx<'_>, key: &[u8]) -> Result<Option<StrRef<'a>>, Error> {
    match c.keys.peek(key) {
        None => Ok(None),
        Some(entry) => StrRef::of(entry.value()).map(Some).ok_or(Error::WrongType),
    }
}

fn setex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_expiring(c, args, Timing::EX, "setex")
}

fn psetex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_expiring(c, args, Timing::PX, "psetex")
}

fn set_expiring(c: &mut Ctx<'_>, args: Args<'_>, timing: Timing, command: &'static str) -> Outcome {
    let at = parse_positive_deadline_ms(args[2], timing, c.now_ms(), command)?;
    set_to(c, args, 3, Expiry::At(at));
    c.out.ok();
    Ok(())
}

fn setnx(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let missing = !c.keys.exists(args[1]);
    if missing {
        set_to(c, args, 2, Expiry::Clear);
    }
    c.out.int(i64::from(missing));
    Ok(())
}

fn getset(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    reply_string(c, args[1])?;
    set_to(c, args, 2, Expiry::Clear);
    Ok(())
}

/// Sets keys to the values behind them, from argument `first` on.
fn set_pairs(c: &mut Ctx<'_>, args: Args<'_>, first: usize, end: usize, expiry: Expiry) {
    for at in (first..end).step_by(2) {
        c.keys.set(args[at], args[at + 1], args.shared(at + 1), expiry);
        c.keys.changed(args[at]);
    }
}

fn check_pairs(args: Args<'_>, command: &'static str) -> Outcome {
    if args.len().is_multiple_of(2) { Err(Error::WrongArity(command.into())) } else { Ok(()) }
}

fn mset(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    check_pairs(args, "mset")?;
    set_pairs(c, args, 1, args.len(), Expiry::Clear);
    c.keys.replicate_as_is(args);
    c.out.ok();
    Ok(())
}

fn msetnx(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    check_pairs(args, "msetnx")?;
    let missing = args[1..].iter().step_by(2).all(|key| !c.keys.exists(key));
    if missing {
        set_pairs(c, args, 1, args.len(), Expiry::Clear);
        replicate_mset(c, args, &args[1..]);
    }
    c.out.int(i64::from(missing));
    Ok(())
}

fn replicate_mset(c: &mut Ctx<'_>, args: Args<'_>, pairs: &[&[u8]]) {
    if c.keys.effects.enabled() {
        let mut command: Vec<&[u8]> = Vec::with_capacity(pairs.len() + 1);
        command.push(b"MSET");
        command.extend_from_slice(pairs);
        c.keys.replicate_sharing(&command, args);
    }
}

fn msetex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let count = parse_i64(args[1])
        .filter(|count| (1..=i64::from(i32::MAX)).contains(count))
        .ok_or(Error::text("ERR invalid numkeys value or out of range"))?;
    let end = 2 + 2 * count as usize;
    if end > args.len() {
        return Err(Error::Syntax);
    }
    let options = set_options::parse_msetex(&args[end..])?;
    let expiry = options.resolve(c.now_ms(), "msetex")?;
    let mut keys = args[2..end].iter().step_by(2);
    let holds = match options.condition {
        Condition::Missing => keys.all(|key| !c.keys.exists(key)),
        Condition::Exists => keys.all(|key| c.keys.exists(key)),
        _ => true,
    };
    if holds {
        set_pairs_expiring(c, args, end, expiry);
    }
    c.out.int(i64::from(holds));
    Ok(())
}

/// What `MSETEX` does when its condition holds. Replicas hear it in commands that every version knows.
fn set_pairs_expiring(c: &mut Ctx<'_>, args: Args<'_>, end: usize, expiry: Expiry) {
    let pairs = &args[2..end];
    match expiry {
        Expiry::Clear => {
            set_pairs(c, args, 2, end, expiry);
            replicate_mset(c, args, pairs);
        }
        Expiry::At(at) if is_past(c, at) => {
            let gone: Vec<&[u8]> =
                pairs.iter().step_by(2).copied().filter(|key| c.keys.remove(key)).collect();
            for key in &gone {
                c.keys.changed(key);
            }
            if !gone.is_empty() {
                c.keys.replicate(&[&[c.settings().expire_verb()], &gone[..]].concat());
            }
        }
        Expiry::Keep | Expiry::At(_) => {
            for key in pairs.iter().step_by(2) {
                c.keys.exists(key);
            }
            set_pairs(c, args, 2, end, expiry);
            let mut digits = itoa::Buffer::new();
            let option: &[&[u8]] = match expiry {
                Expiry::At(at) => &[b"PXAT", digits.format(at).as_bytes()],
                _ => &[b"KEEPTTL"],
            };
            let db = c.keys.db;
            c.keys.effects.together(|effects| {
                for pair in pairs.chunks_exact(2) {
                    let set = [&[b"SET", pair[0], pair[1]], option].concat();
                    effects.push_sharing(db, &set, args.all_shared());
                }
            });
        }
    }
}

fn append(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (key, tail) = (args[1], args[2]);
    let max_len_bytes = c.keys.max_string_len_bytes();
    let len = if let Some(mut entry) = c.keys.write_string(key)? {
        let len = string_len(&entry) + tail.len();
        if len as u64 > max_len_bytes {
            return Err(Error::TooLong);
        }
        edit_string(&mut entry, |buf| buf.extend_from_slice(tail));
        if tail.is_empty() {
            c.keys.touched(key);
            c.out.int(len as i64);
            return Ok(());
        }
        len
    } else {
        c.keys.set(key, tail, args.shared(2), Expiry::Clear);
        tail.len()
    };
    c.keys.changed(key);
    c.keys.replicate_as_is(args);
    c.out.int(len as i64);
    Ok(())
}

fn setrange(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (key, part) = (args[1], args[3]);
    let offset = parse_i64(args[2]).ok_or(Error::NotInteger)?;
    let offset = u64::try_from(offset).map_err(|_| Error::text("ERR offset is out of range"))?;
    let end = offset.saturating_add(part.len() as u64);
    let too_long = end > c.keys.max_string_len_bytes();
    let (offset, end) = (offset as usize, end as usize);
    let len = if let Some(mut entry) = c.keys.write_string(key)? {
        if part.is_empty() {
            c.out.int(string_len(&entry) as i64);
            return Ok(());
        }
        if too_long {
            return Err(Error::TooLong);
        }
        edit_string(&mut entry, |buf| {
            grow_with_zeros(buf, end);
            buf[offset..end].copy_from_slice(part);
            buf.len()
        })
    } else {
        if part.is_empty() {
            c.out.int(0);
            return Ok(());
        }
        if too_long {
            return Err(Error::TooLong);
        }
        let mut buf = BytesMut::zeroed(end);
        buf[offset..].copy_from_slice(part);
        c.keys.put_buffer(key, buf.freeze());
        end
    };
    c.keys.changed(key);
    c.keys.replicate_as_is(args);
    c.out.int(len as i64);
    Ok(())
}

#[cfg(test)]
mod tests;
