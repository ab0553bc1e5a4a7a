//! `DUMP` and `RESTORE`: a key's value as bytes, as in an RDB file.

use crate::command::{
    AccessClock, Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use,
};
use crate::keyspace::{KeyEntry, storable};
use crate::rdb::{
    Cursor, DEFAULT_VERSION, Limits, Writer, WriterOptions, kind, kind_of, load_value, open_dump, save_value,
    seal_dump,
};
use crate::resp::number::parse_i64;
use crate::table::{OwnedValue, ValueRef};
use crate::types::Object;

/// The first version of Redis's that carries the expiries of fields.
const FIELD_EXPIRY_VERSION: u32 = 12;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("dump", 2, Handler::Keys(dump))
        .flags(Flags::READONLY)
        .categories(Category::KEYSPACE)
        .keys(&[KeySpec::one(1, Use::Read, &["access"])])
        .doc(
            "generic",
            "2.6.0",
            "Returns a key's value as bytes that RESTORE takes.",
            "O(N) for a value of N bytes or elements.",
        ),
    Command::new("restore", -4, Handler::Keys(restore))
        .flags(Flags::WRITE.or(Flags::DENYOOM))
        .categories(Category::KEYSPACE.or(Category::DANGEROUS))
        .keys(&[KeySpec::one(1, Use::Overwrite, &["update"])])
        .doc(
            "generic",
            "2.6.0",
            "Makes a key of what DUMP returned.",
            "O(N) for a value of N bytes or elements; O(N log N) for sorted sets.",
        ),
];

/// A value's payload, of a version that every supported server reads if it can carry the value whole.
fn payload(value: ValueRef<'_, Object>, version_max: u32) -> Vec<u8> {
    let is_timed =
        matches!(kind_of(value, FIELD_EXPIRY_VERSION), kind::HASH_METADATA | kind::HASH_LISTPACK_EX);
    let version = if is_timed { FIELD_EXPIRY_VERSION.min(version_max) } else { DEFAULT_VERSION };
    // The payload has a checksum of its own.
    let mut writer = Writer::new(WriterOptions { version, compress: true, checksum: false });
    let mut payload = vec![kind_of(value, version)];
    save_value(&mut writer, value);
    payload.append(&mut writer.take());
    seal_dump(version, &mut payload);
    payload
}

fn dump(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let payload = c.keys.read(args[1]).map(|entry| payload(entry.value(), FIELD_EXPIRY_VERSION));
    match payload {
        Some(payload) => c.out.bulk(&payload),
        None => c.out.null(),
    }
    Ok(())
}

/// What stands behind the payload.
#[derive(Default)]
struct Options {
    replace: bool,
    is_absolute: bool,
    idle_s: Option<u64>,
    frequency: Option<u8>,
}

fn parse_options(args: Args<'_>) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut at = 4;
    while at < args.len() {
        let has_value = at + 1 < args.len();
        if args.is(at, "REPLACE") {
            options.replace = true;
        } else if args.is(at, "ABSTTL") {
            options.is_absolute = true;
        } else if args.is(at, "IDLETIME") && has_value && options.frequency.is_none() {
            at += 1;
            let idle_s = parse_i64(args[at]).ok_or(Error::NotInteger)?;
            let negative = Error::text("ERR Invalid IDLETIME value, must be >= 0");
            options.idle_s = Some(u64::try_from(idle_s).map_err(|_| negative)?);
        } else if args.is(at, "FREQ") && has_value && options.idle_s.is_none() {
            at += 1;
            let frequency = parse_i64(args[at]).ok_or(Error::NotInteger)?;
            let outside = Error::text("ERR Invalid FREQ value, must be >= 0 and <= 255");
            options.frequency = Some(u8::try_from(frequency).map_err(|_| outside)?);
        } else {
            return Err(Error::Syntax);
        }
        at += 1;
    }
    Ok(options)
}

/// Reads a payload: its version and its value.
fn read_payload(c: &Ctx<'_>, bytes: &[u8]) -> Result<(u32, OwnedValue<Object>), Error> {
    let opened = open_dump(bytes).ok_or(Error::text("ERR DUMP payload version or checksum are wrong"))?;
    let (version, kind, value) = opened;
    let mut cursor = Cursor::whole(value, Limits { string_bytes: c.settings().max_bulk_len_bytes });
    let loaded = load_value(kind, version, &mut cursor, &c.settings().limits);
    let bad = || Error::text("ERR Bad data format");
    let loaded = loaded.map_err(|_| bad())?;
    // A collection without elements is none, and what follows the value belongs to nothing.
    let is_value = !matches!(loaded, OwnedValue::None) && cursor.remaining_bytes() == 0;
    if is_value { Ok((version, loaded)) } else { Err(bad()) }
}

fn restore(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (key, bytes) = (args[1], args[3]);
    let options = parse_options(args)?;
    // It is accessed by that, as in Redis.
    if !options.replace && c.keys.write(key).is_some() {
        return Err(Error::text("BUSYKEY Target key name already exists."));
    }
    let ttl_ms = parse_i64(args[2]).ok_or(Error::NotInteger)?;
    if ttl_ms < 0 {
        return Err(Error::text("ERR Invalid TTL value, must be >= 0"));
    }
    let (version, mut value) = read_payload(c, bytes)?;
    let had = options.replace && c.keys.remove(key);
    let now_ms = c.now_ms();
    // A sum that overflows is over already, as in Redis.
    let expiry_ms = match ttl_ms {
        0 => None,
        at_ms if options.is_absolute => Some(at_ms as u64),
        ttl_ms => Some(u64::try_from((now_ms as i64).wrapping_add(ttl_ms)).unwrap_or(0)),
    };
    if expiry_ms.is_some_and(|at_ms| at_ms <= now_ms) && !c.keys.replica && !c.keys.from_master {
        // It is over already: nothing comes into being.
        if had {
            c.keys.changed(key);
            c.keys.replicate(&[b"DEL", key]);
        }
        c.out.ok();
        return Ok(());
    }
    let clock = c.settings().access_clock;
    let lru = match clock {
        AccessClock::Lru => clock.loaded(now_ms, options.idle_s, None),
        AccessClock::Lfu { .. } => clock.loaded(now_ms, None, options.frequency),
    };
    let mut entry = KeyEntry::with_expiry(key, storable(&mut value), expiry_ms);
    entry.set_lru(lru);
    // A replica may be older than who made the payload.
    let again = (version > DEFAULT_VERSION).then(|| payload(entry.value(), DEFAULT_VERSION));
    c.keys.attach_as_it_is(entry);
    c.keys.changed(key);
    let bytes = again.as_deref().unwrap_or(bytes);
    let at_ms = expiry_ms.unwrap_or(0).to_string();
    let mut effect: Vec<&[u8]> = vec![b"RESTORE", key, at_ms.as_bytes(), bytes];
    effect.extend_from_slice(&args[4..]);
    if !options.is_absolute {
        effect.push(b"ABSTTL");
    }
    c.keys.replicate_sharing(&effect, args);
    c.out.ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Node;

    fn dumped(node: &mut Node, key: &str) -> Vec<u8> {
        let reply = node.run_args(&[b"DUMP", key.as_bytes()]);
        let start = reply.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        reply[start..reply.len() - 2].to_vec()
    }

    fn restored(node: &mut Node, words: &[&[u8]]) -> String {
        String::from_utf8(node.run_args(words)).expect("text")
    }

    #[test]
    fn what_was_dumped_is_restored() {
        let mut node = Node::new();
        for line in [
            "SET text some",
            "SET number 12345",
            "RPUSH list a b c",
            "SADD ints 1 2 3",
            "SADD set a b",
            "ZADD zset 1.5 a inf b",
            "HSET hash f v",
        ] {
            node.run(line);
            let key = line.split(' ').nth(1).unwrap();
            let payload = dumped(&mut node, key);
            assert_eq!(restored(&mut node, &[b"RESTORE", b"to", b"0", &payload, b"REPLACE"]), "+OK\r\n");
            assert_eq!(dumped(&mut node, "to"), payload, "{line}");
            let encoding = |node: &mut Node, key: &str| node.run(&format!("OBJECT ENCODING {key}"));
            assert_eq!(encoding(&mut node, "to"), encoding(&mut node, key));
        }
        assert_eq!(node.run("DUMP none"), "$-1\r\n");
        assert_eq!(
            node.run("GET to"),
            "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
        );
    }

    #[test]
    fn expiry_access_and_what_is_there_already() {
        let mut node = Node::new();
        node.run("SET a 1");
        let payload = dumped(&mut node, "a");
        let now_ms = node.now_ms();
        let mut restore =
            |words: &[&[u8]]| restored(&mut node, &[&[b"RESTORE", b"k" as &[u8]], words].concat());
        assert_eq!(restore(&[b"5000", &payload]), "+OK\r\n");
        assert_eq!(restore(&[b"0", &payload]), "-BUSYKEY Target key name already exists.\r\n");
        let at_ms = (now_ms + 7000).to_string();
        assert_eq!(restore(&[at_ms.as_bytes(), &payload, b"ABSTTL", b"replace"]), "+OK\r\n");
        assert_eq!(restore(&[b"-1", &payload, b"replace"]), "-ERR Invalid TTL value, must be >= 0\r\n");
        assert_eq!(
            restore(&[b"0", b"garbage", b"replace"]),
            "-ERR DUMP payload version or checksum are wrong\r\n"
        );
        assert_eq!(restore(&[b"0", &payload, b"replace", b"idletime", b"100"]), "+OK\r\n");
        assert_eq!(
            restore(&[b"0", &payload, b"replace", b"idletime", b"-1"]),
            "-ERR Invalid IDLETIME value, must be >= 0\r\n"
        );
        assert_eq!(
            restore(&[b"0", &payload, b"replace", b"freq", b"256"]),
            "-ERR Invalid FREQ value, must be >= 0 and <= 255\r\n"
        );
        assert_eq!(restore(&[b"0", &payload, b"freq", b"1", b"idletime", b"1"]), "-ERR syntax error\r\n");
        assert_eq!(node.run("OBJECT IDLETIME k"), ":100\r\n");
        assert_eq!(node.run("PTTL k"), ":-1\r\n");
        // Over already: what was there goes.
        assert_eq!(
            restored(&mut node, &[b"RESTORE", b"k", b"1", &payload, b"REPLACE", b"ABSTTL"]),
            "+OK\r\n"
        );
        assert_eq!(node.run("EXISTS k"), ":0\r\n");
    }

    #[test]
    fn law4_the_effect_is_absolute_and_of_a_version_that_all_read() {
        let mut node = Node::new();
        node.run("SADD s a b");
        let mut entry: KeyEntry = node.space.detach(0, b"s").expect("there");
        let value = entry.take_value();
        let OwnedValue::Boxed(object) = &value else { panic!("a set") };
        let mut writer = Writer::new(WriterOptions { version: 11, compress: true, checksum: false });
        let mut newer = vec![kind_of(ValueRef::Boxed(object), 11)];
        save_value(&mut writer, ValueRef::Boxed(object));
        newer.append(&mut writer.take());
        seal_dump(11, &mut newer);
        assert_eq!(newer[0], kind::SET_LISTPACK);
        node.effects.take();
        assert_eq!(restored(&mut node, &[b"RESTORE", b"s", b"5000", &newer]), "+OK\r\n");
        let effect = node.effect_bytes();
        let text = String::from_utf8_lossy(&effect).into_owned();
        assert!(text.contains(&(node.now_ms() + 5000).to_string()) && text.contains("ABSTTL"), "{text}");
        let older = dumped(&mut node, "s");
        assert!(effect.windows(older.len()).any(|part| part == older));
        assert_eq!(u16::from_le_bytes([older[older.len() - 10], older[older.len() - 9]]), 10);
    }

    #[test]
    fn no_loss_garbage_is_an_error_and_changes_nothing() {
        let mut node = Node::new();
        for line in ["RPUSH list a b c 1 2 3", "SADD ints 1 2 3", "ZADD zset 1.5 a 2 b", "HSET hash f v g w"]
        {
            node.run(line);
            let good = dumped(&mut node, line.split(' ').nth(1).unwrap());
            let mut rng = fastrand::Rng::with_seed(4);
            let mut refused = 0;
            for _ in 0..500 {
                let mut bad = good[..good.len() - 10].to_vec();
                let at = rng.usize(..bad.len());
                match rng.u8(..3) {
                    0 => bad[at] = rng.u8(..),
                    1 => bad.truncate(at.max(1)),
                    _ => bad.insert(at, rng.u8(..)),
                }
                // The checksum is right, so that the value itself is looked at.
                seal_dump(10, &mut bad);
                let reply = node.run_args(&[b"RESTORE", b"x", b"0", &bad]);
                if reply != b"+OK\r\n" {
                    assert_eq!(reply, b"-ERR Bad data format\r\n");
                    assert_eq!(node.run("EXISTS x"), ":0\r\n");
                    refused += 1;
                }
                node.run("DEL x");
            }
            assert!(refused > 250, "{refused}");
        }
    }
}
