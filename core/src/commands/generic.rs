//! Keys of any type: deleting, copying, renaming, moving, and whether they exist.

use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::keyspace::{Expiry, KeyEntry};
use crate::resp::number::parse_i64;
use crate::table::{EntryRef, NewValue, OwnedValue, ValueRef};
use crate::types::Object;

const READ_FAST: Flags = Flags::READONLY.or(Flags::FAST);
const WRITE_FAST: Flags = Flags::WRITE.or(Flags::FAST);
const EVERY_KEY: &[KeySpec] = &[KeySpec::all(1, 1, Use::Read, &[])];
const EVERY_KEY_REMOVED: &[KeySpec] = &[KeySpec::all(1, 1, Use::Remove, &["delete"])];

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("copy", -3, Handler::Keys(copy))
        .flags(Flags::WRITE.or(Flags::DENYOOM))
        .categories(Category::KEYSPACE)
        .keys(&[KeySpec::one(1, Use::Read, &["access"]), KeySpec::one(2, Use::Overwrite, &["update"])])
        .doc(
            "generic",
            "6.2.0",
            "Copies a key's value, and its expiry, to another key.",
            "O(N) for a collection of N elements, O(1) for a string.",
        ),
    Command::new("del", -2, Handler::Keys(del))
        .flags(Flags::WRITE)
        .categories(Category::KEYSPACE)
        .keys(EVERY_KEY_REMOVED)
        .doc(
            "generic",
            "1.0.0",
            "Deletes keys.",
            "O(N) for N keys; large values are freed in the background.",
        ),
    Command::new("unlink", -2, Handler::Keys(del))
        .flags(WRITE_FAST)
        .categories(Category::KEYSPACE)
        .keys(EVERY_KEY_REMOVED)
        .doc(
            "generic",
            "4.0.0",
            "Deletes keys and frees their values in the background.",
            "O(N) for N keys; the memory is reclaimed later.",
        ),
    Command::new("exists", -2, Handler::Keys(exists))
        .flags(READ_FAST)
        .categories(Category::KEYSPACE)
        .keys(EVERY_KEY)
        .doc("generic", "1.0.0", "Counts how many of the given keys exist.", "O(N) for N keys."),
    Command::new("touch", -2, Handler::Keys(touch))
        .flags(READ_FAST)
        .categories(Category::KEYSPACE)
        .keys(EVERY_KEY)
        .doc("generic", "3.2.1", "Notes an access to keys and counts those that exist.", "O(N) for N keys."),
    Command::new("type", 2, Handler::Keys(type_of))
        .flags(READ_FAST)
        .categories(Category::KEYSPACE)
        .keys(&[KeySpec::one(1, Use::Read, &[])])
        .doc("generic", "1.0.0", "Tells the type of a key's value.", "O(1)"),
    Command::new("rename", 3, Handler::Keys(rename))
        .flags(Flags::WRITE)
        .categories(Category::KEYSPACE)
        .keys(&[
            KeySpec::one(1, Use::ReadWrite, &["access", "delete"]),
            KeySpec::one(2, Use::Overwrite, &["update"]),
        ])
        .doc("generic", "1.0.0", "Renames a key; what had the new name is replaced.", "O(1)"),
    Command::new("renamenx", 3, Handler::Keys(renamenx))
        .flags(WRITE_FAST)
        .categories(Category::KEYSPACE)
        .keys(&[
            KeySpec::one(1, Use::ReadWrite, &["access", "delete"]),
            KeySpec::one(2, Use::Overwrite, &["insert"]),
        ])
        .doc("generic", "1.0.0", "Renames a key unless the new name is taken.", "O(1)"),
    Command::new("move", 3, Handler::Keys(move_key))
        .flags(WRITE_FAST)
        .categories(Category::KEYSPACE)
        .keys(&[KeySpec::one(1, Use::ReadWrite, &["access", "update"])])
        .doc("generic", "1.0.0", "Moves a key to another database.", "O(1)"),
];

const SAME_OBJECT: Error = Error::text("ERR source and destination objects are the same");
const NO_SUCH_DATABASE: Error = Error::text("ERR DB index is out of range");

/// Looks a key up to tell about it: a hit or a miss is counted, the access time stays.
pub(super) fn inspect<R>(
    c: &mut Ctx<'_>,
    key: &[u8],
    with: impl FnOnce(Option<EntryRef<'_, Object>>) -> R,
) -> R {
    let mut keys = c.keys.on(c.keys.db);
    keys.no_touch = true;
    with(keys.read(key))
}

/// The type of a value, as `TYPE` names it.
pub fn type_name(value: ValueRef<'_, Object>) -> &'static str {
    match value {
        ValueRef::Boxed(object) => object.type_name(),
        _ => "string",
    }
}

/// Reads an argument that C's `int` must hold.
pub(super) fn parse_int(arg: &[u8]) -> Result<i32, Error> {
    let number = parse_i64(arg).ok_or(Error::NotInteger)?;
    let error = "ERR value is out of range, value must between -2147483648 and 2147483647";
    i32::try_from(number).map_err(|_| Error::text(error))
}

fn parse_database(arg: &[u8], databases: usize) -> Result<u16, Error> {
    let number = parse_int(arg)?;
    u16::try_from(number).ok().filter(|&db| usize::from(db) < databases).ok_or(NO_SUCH_DATABASE)
}

/// `DEL` and `UNLINK`: either way a large value is freed in slices, for nothing may hold a shard.
fn del(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let mut removed = 0;
    for key in &args[1..] {
        if c.keys.remove(key) {
            c.keys.changed(key);
            removed += 1;
        }
    }
    if removed > 0 {
        c.keys.replicate_as_is(args);
    }
    c.out.int(removed);
    Ok(())
}

fn exists(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let found = args[1..].iter().filter(|key| inspect(c, key, |entry| entry.is_some())).count();
    c.out.int(found as i64);
    Ok(())
}

fn touch(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    // The one command whose purpose is the access: it counts even for a connection that otherwise leaves no trace.
    let mut keys = c.keys.on(c.keys.db);
    keys.no_touch = false;
    let found = args[1..].iter().filter(|key| keys.read(key).is_some()).count();
    c.out.int(found as i64);
    Ok(())
}

fn type_of(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let name = inspect(c, args[1], |entry| entry.map_or("none", |entry| type_name(entry.value())));
    c.out.simple(name);
    Ok(())
}

fn rename(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    rename_to(c, args, true)?;
    c.out.ok();
    Ok(())
}

fn renamenx(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let renamed = rename_to(c, args, false)?;
    c.out.int(i64::from(renamed));
    Ok(())
}

/// Renames; false if the new name is taken and must not be replaced, or is the old one.
fn rename_to(c: &mut Ctx<'_>, args: Args<'_>, replace: bool) -> Result<bool, Error> {
    let (from, to) = (args[1], args[2]);
    if !c.keys.exists(from) {
        return Err(Error::NoSuchKey);
    }
    if from == to || (!replace && c.keys.exists(to)) {
        return Ok(false);
    }
    c.keys.remove(to);
    let mut entry = c.keys.take(from).expect("seen above");
    let expiry_ms = entry.expiry_ms();
    let mut value = entry.take_value();
    c.keys.attach(KeyEntry::with_expiry(to, to_store(&mut value), expiry_ms));
    c.keys.changed(from);
    c.keys.changed(to);
    c.keys.replicate_as_is(args);
    Ok(true)
}

fn move_key(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let key = args[1];
    let to = parse_database(args[2], c.keys.space.databases())?;
    if to == c.keys.db {
        return Err(SAME_OBJECT);
    }
    let moved = c.keys.exists(key) && !c.keys.on(to).exists(key);
    if moved {
        let entry = c.keys.take(key).expect("seen above");
        c.keys.on(to).attach(entry);
        c.keys.changed(key);
        c.keys.on(to).changed(key);
        c.keys.replicate_as_is(args);
    }
    c.out.int(i64::from(moved));
    Ok(())
}

/// The value, to be put under another key.
fn to_store(value: &mut OwnedValue<Object>) -> NewValue<'_, Object> {
    match value {
        OwnedValue::Str(bytes) => NewValue::Str(bytes),
        OwnedValue::Int(number) => NewValue::Int(*number),
        _ => match std::mem::replace(value, OwnedValue::None) {
            OwnedValue::Boxed(object) => NewValue::Boxed(object),
            _ => unreachable!("a key holds a string or a collection"),
        },
    }
}

fn copy_of(value: ValueRef<'_, Object>) -> OwnedValue<Object> {
    match value {
        ValueRef::Str(bytes) => OwnedValue::Str(bytes.to_vec()),
        ValueRef::Int(number) => OwnedValue::Int(number),
        ValueRef::Boxed(object) => OwnedValue::Boxed(Box::new(object.clone())),
        ValueRef::None | ValueRef::Score(_) => unreachable!("a key holds a string or a collection"),
    }
}

fn copy(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (from, to) = (args[1], args[2]);
    let (mut to_db, mut replace) = (c.keys.db, false);
    let mut at = 3;
    while at < args.len() {
        if args.is(at, "REPLACE") {
            replace = true;
        } else if args.is(at, "DB") && at + 1 < args.len() {
            at += 1;
            to_db = parse_database(args[at], c.keys.space.databases())?;
        } else {
            return Err(Error::Syntax);
        }
        at += 1;
    }
    if to_db == c.keys.db && from == to {
        return Err(SAME_OBJECT);
    }
    let copied = c.keys.read(from).is_some() && (replace || !c.keys.on(to_db).exists(to));
    if copied {
        let entry = c.keys.peek(from).expect("just read");
        let (mut value, expiry_ms) = (copy_of(entry.value()), entry.expiry_ms());
        let mut target = c.keys.on(to_db);
        // What has expired there goes with the effect that says so.
        target.exists(to);
        target.put(to, to_store(&mut value), expiry_ms.map_or(Expiry::Clear, Expiry::At));
        target.changed(to);
        c.keys.replicate_as_is(args);
    }
    c.out.int(i64::from(copied));
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::{NULL, Node, OK, START_MS, bulk};
    use crate::keyspace::{KeyEntry, WatcherId};
    use crate::table::{NewValue, ValueRef};
    use crate::types::{Hash, List, Object, Set, ZSet};

    /// A node with `s`, `n` and `l` (a string, a number, a large string), the last two to expire.
    fn node() -> Node {
        let mut node = Node::new();
        node.run("SET s v");
        node.run("SET n 17");
        node.run(&format!("SET l {}", "x".repeat(20_000)));
        node.run("PEXPIRE n 1000");
        node.run("PEXPIRE l 2000");
        node.effects();
        node
    }

    #[test]
    fn del_and_unlink_tell_only_of_what_they_removed() {
        for verb in ["DEL", "unlink"] {
            let mut node = node();
            assert_eq!(node.run(&format!("{verb} none other")), ":0\r\n");
            assert_eq!(node.effects(), "");
            let dirty = node.dirty();
            assert_eq!(node.run(&format!("{verb} s none l s")), ":2\r\n");
            assert_eq!(node.effects(), format!("{verb} s none l s"));
            assert_eq!(node.dirty(), dirty + 2);
            assert_eq!((node.space.len(), node.space.db(0).expires), (1, 1));
            node.advance_ms(1001);
            assert_eq!(node.run(&format!("{verb} n")), ":0\r\n");
            assert_eq!(node.effects(), "UNLINK n");
        }
    }

    #[test]
    fn a_replica_deletes_what_its_master_says_even_when_it_has_expired() {
        let mut node = node();
        node.advance_ms(1001);
        node.replica = true;
        assert_eq!(node.run("DEL n"), ":0\r\n");
        assert_eq!(node.space.len(), 3);
        node.from_master = true;
        assert_eq!(node.run("DEL n"), ":1\r\n");
        assert_eq!(node.effects(), "DEL n");
    }

    #[test]
    fn exists_touch_and_type_leave_no_effects() {
        let mut node = node();
        node.advance_ms(1001);
        assert_eq!(node.run("EXISTS s s l none"), ":3\r\n");
        assert_eq!(node.run("TOUCH s none s"), ":2\r\n");
        assert_eq!(node.run("TYPE s"), "+string\r\n");
        assert_eq!(node.run("TYPE l"), "+string\r\n");
        assert_eq!(node.run("TYPE none"), "+none\r\n");
        assert_eq!(node.effects(), "");
        assert_eq!((node.space.stats.hits, node.space.stats.misses), (7, 3));
        assert_eq!(node.run("EXISTS n"), ":0\r\n");
        assert_eq!(node.effects(), "UNLINK n");
    }

    #[test]
    fn only_touch_notes_the_access() {
        let mut node = node();
        node.advance_ms(100_000);
        for line in ["EXISTS s", "TYPE s", "TTL s", "OBJECT ENCODING s", "OBJECT IDLETIME s"] {
            node.run(line);
            assert_eq!(node.run("OBJECT IDLETIME s"), ":100\r\n", "{line}");
        }
        node.run("TOUCH s");
        assert_eq!(node.run("OBJECT IDLETIME s"), ":0\r\n");
    }

    #[test]
    fn rename_keeps_value_and_expiry() {
        let mut node = node();
        for (from, expiry) in [("s", -1i64), ("n", START_MS as i64 + 1000), ("l", START_MS as i64 + 2000)] {
            let value = node.run(&format!("GET {from}"));
            node.run("SET to old EX 5");
            node.effects();
            assert_eq!(node.run(&format!("RENAME {from} to")), OK);
            assert_eq!(node.effects(), format!("RENAME {from} to"));
            assert_eq!(node.run("GET to"), value);
            assert_eq!(node.run("PEXPIRETIME to"), format!(":{expiry}\r\n"));
            assert_eq!(node.run(&format!("GET {from}")), NULL);
        }
        assert_eq!(node.run("RENAME none to"), "-ERR no such key\r\n");
        assert_eq!(node.run("RENAME none none"), "-ERR no such key\r\n");
        assert_eq!(node.run("RENAME to to"), OK);
        assert_eq!(node.effects(), "");
        assert_eq!((node.space.len(), node.space.db(0).expires), (1, 1));
    }

    #[test]
    fn renamenx_replaces_nothing_but_what_has_expired() {
        let mut node = node();
        assert_eq!(node.run("RENAMENX s n"), ":0\r\n");
        assert_eq!(node.run("RENAMENX s s"), ":0\r\n");
        assert_eq!(node.run("RENAMENX none n"), "-ERR no such key\r\n");
        assert_eq!(node.effects(), "");
        node.advance_ms(1001);
        assert_eq!(node.run("RENAMENX s n"), ":1\r\n");
        assert_eq!(node.effects(), "UNLINK n\nRENAMENX s n");
        assert_eq!(node.run("GET n"), bulk("v"));
    }

    #[test]
    fn move_takes_a_key_to_another_database() {
        let mut node = node();
        assert_eq!(node.run("MOVE n 3"), ":1\r\n");
        assert_eq!(node.effects(), "MOVE n 3");
        assert_eq!(node.run("MOVE n 3"), ":0\r\n");
        node.run("SET n other");
        node.effects();
        assert_eq!(node.run("MOVE n 3"), ":0\r\n");
        assert_eq!(node.effects(), "");
        node.advance_ms(1001);
        assert_eq!(node.run("MOVE n 3"), ":1\r\n");
        assert_eq!(node.effects(), "UNLINK n\nMOVE n 3");
        node.db = 3;
        assert_eq!(node.run("GET n"), bulk("other"));
        assert_eq!((node.space.db(0).expires, node.space.db(3).expires), (1, 0));
        for (to, error) in [
            ("3", "source and destination objects are the same"),
            ("16", "DB index is out of range"),
            ("-1", "DB index is out of range"),
            ("x", "value is not an integer or out of range"),
            ("9999999999", "value is out of range, value must between -2147483648 and 2147483647"),
        ] {
            assert_eq!(node.run(&format!("MOVE n {to}")), format!("-ERR {error}\r\n"));
        }
    }

    #[test]
    fn copies_are_whole_and_independent() {
        let mut node = node();
        for (from, expiry) in [("s", -1i64), ("n", START_MS as i64 + 1000), ("l", START_MS as i64 + 2000)] {
            let value = node.run(&format!("GET {from}"));
            let line = format!("COPY {from} to REPLACE DB 2");
            assert_eq!(node.run(&line), ":1\r\n");
            assert_eq!(node.effects(), line);
            assert_eq!(node.run(&format!("GET {from}")), value);
            node.db = 2;
            assert_eq!(node.run("GET to"), value);
            assert_eq!(node.run("PEXPIRETIME to"), format!(":{expiry}\r\n"));
            node.db = 0;
        }
        assert_eq!(node.run("COPY s to DB 2"), ":0\r\n");
        assert_eq!(node.run("COPY none to"), ":0\r\n");
        assert_eq!(node.effects(), "");
        assert_eq!(node.run("COPY s s DB 1"), ":1\r\n");
        assert_eq!(node.run("COPY s s2"), ":1\r\n");
        node.run("DEL s");
        assert_eq!(node.run("GET s2"), bulk("v"));
        for (line, error) in [
            ("COPY s s", "source and destination objects are the same"),
            ("COPY s t DB 0 DB", "syntax error"),
            ("COPY s t KEEP", "syntax error"),
            ("COPY s t DB 16", "DB index is out of range"),
            ("COPY s t DB x", "value is not an integer or out of range"),
        ] {
            assert_eq!(node.run(line), format!("-ERR {error}\r\n"), "{line}");
        }
    }

    #[test]
    fn collections_are_copied_deeply_and_renamed_whole() {
        let mut node = Node::new();
        let limits = node.settings.limits.clone();
        for (kind, encoding, len) in [
            ("list", "listpack", 10),
            ("list", "quicklist", 5000),
            ("hash", "listpack", 10),
            ("hash", "hashtable", 1000),
            ("set", "intset", 10),
            ("set", "hashtable", 1000),
            ("zset", "listpack", 10),
            ("zset", "skiplist", 1000),
        ] {
            let mut object = match kind {
                "list" => Object::List(List::new()),
                "hash" => Object::Hash(Hash::new()),
                "set" => Object::Set(Set::new()),
                _ => Object::ZSet(ZSet::new()),
            };
            for i in 0..len {
                let text = i.to_string();
                let text = text.as_bytes();
                match &mut object {
                    Object::List(list) => list.push_back(text, &limits),
                    Object::Hash(hash) => assert!(hash.set(text, text, &limits)),
                    Object::Set(set) => assert!(set.insert(text, &limits)),
                    Object::ZSet(zset) => zset.insert(text, f64::from(i), &limits),
                    Object::Str(_) => unreachable!(),
                }
            }
            node.space.attach(0, KeyEntry::new(b"from", NewValue::Boxed(Box::new(object))));
            assert_eq!(node.run("COPY from copy"), ":1\r\n");
            assert_eq!(node.run("RENAME from to"), OK);
            assert_eq!(node.effects(), "COPY from copy\nRENAME from to");
            for key in ["copy", "to"] {
                assert_eq!(node.run(&format!("TYPE {key}")), format!("+{kind}\r\n"));
                assert_eq!(node.run(&format!("OBJECT ENCODING {key}")), bulk(encoding));
                let entry = node.space.detach(0, key.as_bytes()).expect("it is there");
                let ValueRef::Boxed(object) = entry.value() else { panic!("{kind}") };
                let got = match object {
                    Object::List(list) => list.len(),
                    Object::Hash(hash) => hash.len(),
                    Object::Set(set) => set.len(),
                    Object::ZSet(zset) => zset.len(),
                    Object::Str(_) => unreachable!(),
                };
                assert_eq!(got, len as usize);
                node.space.discard(entry);
            }
            assert!(node.space.is_empty());
        }
    }

    #[test]
    fn watchers_hear_of_both_names() {
        let id = |conn| WatcherId { shard: 0, conn };
        for (line, want) in [
            ("RENAME s t", [true, true, false]),
            ("RENAMENX s n", [false, false, false]),
            ("COPY s t", [false, true, false]),
            ("COPY s t DB 1", [false, false, true]),
            ("DEL s t", [true, false, false]),
            ("TOUCH s t", [false, false, false]),
            ("EXPIRE s 10", [true, false, false]),
            ("PERSIST n", [false, false, false]),
        ] {
            let mut node = node();
            for (conn, db, key) in [(1, 0, b"s"), (2, 0, b"t"), (3, 1, b"t")] {
                node.space.watches.watch(id(conn), db, key, false);
            }
            node.run(line);
            let now_ms = node.now_ms();
            assert_eq!([1, 2, 3].map(|conn| node.space.watch_is_dirty(id(conn), now_ms)), want, "{line}");
        }
    }
}
