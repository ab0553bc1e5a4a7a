//! Hashes.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::resp::Reply;
use crate::types::hash::IncrementError;
use crate::types::num::parse_f64;
use crate::types::{Field, Hash, SumError, add_texts};

const HASH: Category = Category::HASH;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("hset", -4, Handler::Keys(hset)).flags(GROW_FAST).categories(HASH).keys(UPDATE).doc(
        "hash",
        "2.0.0",
        "Sets fields of a hash, which is created if there is none.",
        "O(N) for N fields.",
    ),
    Command::new("hmset", -4, Handler::Keys(hmset)).flags(GROW_FAST).categories(HASH).keys(UPDATE).doc(
        "hash",
        "2.0.0",
        "Sets fields of a hash, as HSET does, and answers OK.",
        "O(N) for N fields.",
    ),
    Command::new("hsetnx", 4, Handler::Keys(hsetnx)).flags(GROW_FAST).categories(HASH).keys(INSERT).doc(
        "hash",
        "2.0.0",
        "Sets a field of a hash unless it exists.",
        "O(1)",
    ),
    Command::new("hget", 3, Handler::Keys(hget)).flags(READ_FAST).categories(HASH).keys(ACCESS).doc(
        "hash",
        "2.0.0",
        "Returns the value of a field.",
        "O(1)",
    ),
    Command::new("hmget", -3, Handler::Keys(hmget)).flags(READ_FAST).categories(HASH).keys(ACCESS).doc(
        "hash",
        "2.0.0",
        "Returns the values of some fields.",
        "O(N) for N fields asked for.",
    ),
    Command::new("hgetall", 2, Handler::Keys(hgetall)).flags(READ).categories(HASH).keys(ACCESS).doc(
        "hash",
        "2.0.0",
        "Returns all fields of a hash with their values.",
        "O(N) for N fields.",
    ),
    Command::new("hkeys", 2, Handler::Keys(hkeys)).flags(READ).categories(HASH).keys(ACCESS).doc(
        "hash",
        "2.0.0",
        "Returns the names of all fields of a hash.",
        "O(N) for N fields.",
    ),
    Command::new("hvals", 2, Handler::Keys(hvals)).flags(READ).categories(HASH).keys(ACCESS).doc(
        "hash",
        "2.0.0",
        "Returns the values of all fields of a hash.",
        "O(N) for N fields.",
    ),
    Command::new("hlen", 2, Handler::Keys(hlen)).flags(READ_FAST).categories(HASH).keys(LOOK).doc(
        "hash",
        "2.0.0",
        "Returns the number of fields of a hash.",
        "O(1)",
    ),
    Command::new("hexists", 3, Handler::Keys(hexists)).flags(READ_FAST).categories(HASH).keys(LOOK).doc(
        "hash",
        "2.0.0",
        "Tells whether a hash has a field.",
        "O(1)",
    ),
    Command::new("hstrlen", 3, Handler::Keys(hstrlen)).flags(READ_FAST).categories(HASH).keys(LOOK).doc(
        "hash",
        "3.2.0",
        "Returns the length of a field's value in bytes.",
        "O(1)",
    ),
    Command::new("hdel", -3, Handler::Keys(hdel)).flags(WRITE_FAST).categories(HASH).keys(DELETE).doc(
        "hash",
        "2.0.0",
        "Removes fields from a hash.",
        "O(N) for N fields removed.",
    ),
    Command::new("hincrby", 4, Handler::Keys(hincrby))
        .flags(GROW_FAST)
        .categories(HASH)
        .keys(ACCESS_UPDATE)
        .doc("hash", "2.0.0", "Adds to the integer in a field, which counts as 0 if absent.", "O(1)"),
    Command::new("hincrbyfloat", 4, Handler::Keys(hincrbyfloat))
        .flags(GROW_FAST)
        .categories(HASH)
        .keys(ACCESS_UPDATE)
        .doc("hash", "2.6.0", "Adds to the number in a field, which counts as 0 if absent.", "O(1)"),
];

fn hset(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let created = set_fields(c, args, "hset")?;
    c.out.int(created as i64);
    Ok(())
}

/// Sets the fields that `HSET` or `HMSET` name; returns how many are new.
fn set_fields(c: &mut Ctx<'_>, args: Args<'_>, name: &'static str) -> Result<usize, Error> {
    if !args.len().is_multiple_of(2) {
        return Err(Error::WrongArity(name.into()));
    }
    let limits = &c.keys.settings.limits;
    let pairs = &args[2..];
    let seen = Seen::of(c);
    let created = c.keys.upsert(args[1], |hash: &mut Hash| {
        // The field is new, and to replicas it becomes what it becomes: they need no word of the old one.
        seen.take_expired(hash, pairs.iter().copied().step_by(2));
        if pairs.len() > 2 {
            let longest = pairs.iter().map(|text| text.len()).max().unwrap_or(0);
            hash.prepare(pairs.len() / 2, longest, limits);
        }
        pairs.chunks_exact(2).filter(|pair| hash.set(pair[0], pair[1], limits)).count()
    })?;
    c.keys.changed(args[1]);
    c.keys.replicate_as_is(args);
    Ok(created)
}

fn hmset(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_fields(c, args, "hmset")?;
    c.out.ok();
    Ok(())
}

fn hsetnx(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (limits, seen) = (&c.keys.settings.limits, Seen::of(c));
    let (expired, is_new) = c.keys.upsert(args[1], |hash: &mut Hash| {
        let expired = seen.take_expired(hash, [args[2]]);
        (expired, !hash.contains(args[2]) && hash.set(args[2], args[3], limits))
    })?;
    if is_new {
        c.keys.changed(args[1]);
        replicate_without(c, &expired, args);
    }
    c.out.int(i64::from(is_new));
    Ok(())
}

/// What a command sees of fields: a master's own command, on a replica, even those whose time is over.
#[derive(Clone, Copy)]
struct Seen {
    now_ms: u64,
    from_master: bool,
}

impl Seen {
    fn of(c: &Ctx<'_>) -> Self {
        Self { now_ms: c.keys.now_ms, from_master: c.keys.from_master }
    }

    /// Removes those of the fields to be written whose time is over: what is in them must not count any more.
    fn take_expired<'a>(self, hash: &mut Hash, names: impl IntoIterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
        let none_is_over = hash.next_expiry_ms().is_none_or(|at_ms| self.now_ms <= at_ms);
        if self.from_master || none_is_over {
            return Vec::new();
        }
        let is_over = |field: Field<'_>| !field.is_live(self.now_ms);
        names.into_iter().filter(|name| hash.find(name).is_some_and(is_over) && hash.remove(name)).collect()
    }
}

/// Tells replicas of fields that had expired, and of what was done without them, as one step. They hold such fields until
/// they are told.
fn replicate_without(c: &mut Ctx<'_>, expired: &[&[u8]], args: Args<'_>) {
    if expired.is_empty() {
        return c.keys.replicate_as_is(args);
    }
    let db = c.keys.db;
    c.keys.effects.together(|effects| {
        effects.push(db, &[&[b"HDEL", args[1]], expired].concat());
        effects.push_sharing(db, args.list(), args.all_shared());
    });
}

/// A field as readers see it. An expired one is hidden, whoever will remove it.
fn find<'h>(hash: Option<&'h Hash>, name: &[u8], now_ms: u64) -> Option<Field<'h>> {
    hash?.find(name).filter(|field| field.is_live(now_ms))
}

fn hget(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.keys.now_ms;
    match find(c.keys.get(args[1])?, args[2], now_ms) {
        Some(field) => bulk_element(c.out, field.value),
        None => c.out.null(),
    }
    Ok(())
}

fn hmget(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.keys.now_ms;
    let hash = c.keys.get(args[1])?;
    c.out.array(args.len() - 2);
    for name in &args[2..] {
        match find(hash, name, now_ms) {
            Some(field) => bulk_element(c.out, field.value),
            None => c.out.null(),
        }
    }
    Ok(())
}

fn hgetall(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    every_field(c, args[1], Reply::map, |out, field| {
        bulk_element(out, field.name);
        bulk_element(out, field.value);
    })
}

fn hkeys(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    every_field(c, args[1], Reply::array, |out, field| bulk_element(out, field.name))
}

fn hvals(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    every_field(c, args[1], Reply::array, |out, field| bulk_element(out, field.value))
}

/// Replies with something of every field, under a header that tells how many they are.
fn every_field(
    c: &mut Ctx<'_>,
    key: &[u8],
    header: impl FnOnce(&mut Reply, usize),
    show: impl Fn(&mut Reply, Field<'_>),
) -> Outcome {
    let now_ms = c.keys.now_ms;
    let Some(hash) = c.keys.get::<Hash>(key)? else {
        header(c.out, 0);
        return Ok(());
    };
    let live = |field: &Field<'_>| field.is_live(now_ms);
    let len = match hash.next_expiry_ms() {
        None => hash.len(),
        Some(_) => hash.iter().filter(live).count(),
    };
    header(c.out, len);
    hash.iter().filter(live).for_each(|field| show(c.out, field));
    Ok(())
}

fn hlen(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let len = c.keys.get::<Hash>(args[1])?.map_or(0, Hash::len);
    c.out.int(len as i64);
    Ok(())
}

fn hexists(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.keys.now_ms;
    let exists = find(c.keys.get(args[1])?, args[2], now_ms).is_some();
    c.out.int(i64::from(exists));
    Ok(())
}

fn hstrlen(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.keys.now_ms;
    let len = find(c.keys.get(args[1])?, args[2], now_ms).map_or(0, |field| field.value.len_bytes());
    c.out.int(len as i64);
    Ok(())
}

fn hdel(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let mut removed = 0;
    if let Some(hash) = c.keys.get_mut::<Hash>(args[1])? {
        removed = args[2..].iter().filter(|name| hash.remove(name)).count();
        if hash.is_empty() {
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

fn hincrby(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let delta = integer(args[3])?;
    let limits = &c.keys.settings.limits;
    let seen = Seen::of(c);
    let (expired, sum) = c.keys.upsert(args[1], |hash: &mut Hash| {
        (seen.take_expired(hash, [args[2]]), hash.increment(args[2], delta, limits))
    })?;
    let sum = sum.map_err(|error| match error {
        IncrementError::NotAnInteger => Error::text("ERR hash value is not an integer"),
        IncrementError::Overflow => Error::text("ERR increment or decrement would overflow"),
    })?;
    c.keys.changed(args[1]);
    replicate_without(c, &expired, args);
    c.out.int(sum);
    Ok(())
}

fn hincrbyfloat(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (key, name, delta) = (args[1], args[2], args[3]);
    if parse_f64(delta).is_some_and(f64::is_infinite) {
        return Err(Error::text("ERR value is NaN or Infinity"));
    }
    // A bad increment is told of before a key of the wrong type.
    add_texts(None, delta).map_err(|_| Error::NotFloat)?;
    let (limits, seen) = (&c.keys.settings.limits, Seen::of(c));
    let (expiry_ms, sum) = c.keys.upsert(key, |hash: &mut Hash| {
        seen.take_expired(hash, [name]);
        let sum = hash.increment_by_float(name, delta, limits);
        (hash.find(name).and_then(|field| field.expiry_ms), sum)
    })?;
    let sum = sum.map_err(|error| match error {
        SumError::Value => Error::text("ERR hash value is not a float"),
        SumError::Increment => Error::NotFloat,
        SumError::Infinite => Error::text("ERR increment would produce NaN or Infinity"),
    })?;
    c.keys.changed(key);
    // The sum, for a replica may add differently. With it the field would lose its expiry there.
    let set: &[&[u8]] = &[b"HSET", key, name, &sum];
    match expiry_ms {
        None => c.keys.replicate(set),
        Some(at_ms) => {
            let (db, mut digits) = (c.keys.db, itoa::Buffer::new());
            c.keys.effects.together(|effects| {
                effects.push(db, set);
                let at_ms = digits.format(at_ms).as_bytes();
                effects.push(db, &[b"HPEXPIREAT", key, at_ms, b"FIELDS", b"1", name]);
            });
        }
    }
    c.out.bulk(&sum);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::{NULL, Node, OK, bulk};
    use crate::keyspace::KeyEntry;
    use crate::table::NewValue;
    use crate::types::{Hash, Limits, Object};

    /// A node with the hash `k`, compact or large.
    fn node(large: bool) -> Node {
        let mut node = Node::new();
        node.run("HSET k a 1 b two");
        if large {
            node.run(&format!("HSET k long {}", "x".repeat(65)));
            node.run("HDEL k long");
        }
        assert_eq!(node.run("OBJECT ENCODING k"), bulk(if large { "hashtable" } else { "listpack" }));
        node.effects();
        node
    }

    fn check(node: &mut Node, line: &str, reply: &str, effect: &str) {
        let dirty = node.dirty();
        assert_eq!(node.run(line), reply, "{line}");
        assert_eq!(node.effects(), effect, "{line}");
        assert_eq!(node.dirty() > dirty, !effect.is_empty(), "{line}");
    }

    /// `proto-max-bulk-len` may allow it, and a master may send it.
    #[test]
    fn a_value_may_be_longer_than_512_mib() {
        let mut node = Node::new();
        node.effects.set_enabled(false);
        let long = vec![0; (512 << 20) + 1];
        assert_eq!(node.run_args(&[b"HSET", b"h", b"f", &long]), b":1\r\n");
        assert_eq!(node.run("HSTRLEN h f"), format!(":{}\r\n", long.len()));
    }

    #[test]
    fn fields_are_set_read_and_removed_in_both_encodings() {
        for large in [false, true] {
            let mut node = node(large);
            for (line, reply, has_effect) in [
                ("HSET k a 1 c 3", ":1\r\n", true),
                ("HMSET k c 3", OK, true),
                ("HSETNX k c 4", ":0\r\n", false),
                ("HSETNX k d 4", ":1\r\n", true),
                ("HGET k b", "$3\r\ntwo\r\n", false),
                ("HGET k z", NULL, false),
                ("HMGET k a z d", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n4\r\n", false),
                ("HLEN k", ":4\r\n", false),
                ("HEXISTS k a", ":1\r\n", false),
                ("HEXISTS k z", ":0\r\n", false),
                ("HSTRLEN k b", ":3\r\n", false),
                ("HSTRLEN k z", ":0\r\n", false),
                ("HDEL k z", ":0\r\n", false),
                ("HDEL k z c d", ":2\r\n", true),
                ("HDEL k b", ":1\r\n", true),
                ("HKEYS k", "*1\r\n$1\r\na\r\n", false),
                ("HVALS k", "*1\r\n$1\r\n1\r\n", false),
                ("HGETALL k", "*2\r\n$1\r\na\r\n$1\r\n1\r\n", false),
                ("HDEL k a", ":1\r\n", true),
                ("EXISTS k", ":0\r\n", false),
            ] {
                check(&mut node, line, reply, if has_effect { line } else { "" });
            }
        }
    }

    #[test]
    fn numbers_are_added_and_sums_replicated() {
        for large in [false, true] {
            let mut node = node(large);
            check(&mut node, "HINCRBY k a 4", ":5\r\n", "HINCRBY k a 4");
            check(&mut node, "HINCRBY k n -2", ":-2\r\n", "HINCRBY k n -2");
            check(&mut node, "HINCRBYFLOAT k a 0.5", &bulk("5.5"), "HSET k a 5.5");
            check(&mut node, "HINCRBYFLOAT k f 3e2", &bulk("300"), "HSET k f 300");
            for (line, error) in [
                ("HINCRBY k b 1", "hash value is not an integer"),
                ("HINCRBY k f x", "value is not an integer or out of range"),
                ("HINCRBY k n -9223372036854775807", "increment or decrement would overflow"),
                ("HINCRBYFLOAT k b 1", "hash value is not a float"),
                ("HINCRBYFLOAT k a x", "value is not a valid float"),
                ("HINCRBYFLOAT k a inf", "value is NaN or Infinity"),
            ] {
                check(&mut node, line, &format!("-ERR {error}\r\n"), "");
            }
        }
    }

    #[test]
    fn a_hash_not_to_be_is_not_made() {
        let mut node = Node::new();
        for (line, reply) in [
            ("HGET k a", NULL),
            ("HMGET k a b", "*2\r\n$-1\r\n$-1\r\n"),
            ("HGETALL k", "*0\r\n"),
            ("HKEYS k", "*0\r\n"),
            ("HLEN k", ":0\r\n"),
            ("HDEL k a", ":0\r\n"),
            ("HSET k a 1 b", "-ERR wrong number of arguments for 'hset' command\r\n"),
            ("HMSET k a 1 b", "-ERR wrong number of arguments for 'hmset' command\r\n"),
            ("HINCRBY k a x", "-ERR value is not an integer or out of range\r\n"),
            ("HINCRBYFLOAT k a x", "-ERR value is not a valid float\r\n"),
        ] {
            check(&mut node, line, reply, "");
        }
        assert_eq!(node.run3("HGETALL k"), "%0\r\n");
        assert_eq!(node.space.len(), 0);
        node.run("SET s v");
        node.effects();
        for line in ["HSET s a 1", "HGET s a", "HDEL s a", "HGETALL s", "HINCRBY s a 1", "HINCRBYFLOAT s a 1"]
        {
            assert!(node.run(line).starts_with("-WRONGTYPE"), "{line}");
        }
        assert_eq!(node.effects(), "");
        node.run("HSET k a 1");
        assert_eq!(node.run3("HGETALL k"), "%1\r\n$1\r\na\r\n$1\r\n1\r\n");
    }

    /// A node with the hash `k` of the fields `a` and `b`; those in `timed` expire in 10 ms.
    fn timed_node(timed: &[&str], large: bool) -> Node {
        let mut node = Node::new();
        let limits = Limits { hash_max_listpack_entries: if large { 1 } else { 512 }, ..Limits::default() };
        let mut hash = Hash::new();
        for (name, value) in [("a", "1"), ("b", "two")] {
            hash.set(name.as_bytes(), value.as_bytes(), &limits);
        }
        for name in timed {
            assert!(hash.set_expiry(name.as_bytes(), Some(node.now_ms() + 10)));
        }
        node.space.attach(0, KeyEntry::new(b"k", NewValue::Boxed(Box::new(Object::Hash(hash)))));
        node
    }

    #[test]
    fn what_is_written_to_an_expired_field_knows_nothing_of_it() {
        for (line, reply, effect) in [
            ("HINCRBY k a 5", ":5\r\n", "MULTI\nHDEL k a\nHINCRBY k a 5\nEXEC"),
            ("HINCRBY k b 5", ":5\r\n", "MULTI\nHDEL k b\nHINCRBY k b 5\nEXEC"),
            ("HINCRBYFLOAT k a 1.5", "$3\r\n1.5\r\n", "HSET k a 1.5"),
            ("HSETNX k a 9", ":1\r\n", "MULTI\nHDEL k a\nHSETNX k a 9\nEXEC"),
            ("HSET k a 9 c 1", ":2\r\n", "HSET k a 9 c 1"),
            ("HMSET k a 9", OK, "HMSET k a 9"),
        ] {
            for large in [false, true] {
                let mut node = timed_node(&["a", "b"], large);
                node.advance_ms(11);
                check(&mut node, line, reply, effect);
                let name = line.split(' ').nth(2).unwrap();
                node.advance_ms(1000);
                assert_ne!(node.run(&format!("HGET k {name}")), NULL, "{line}: it expires no more");
                // A replica applies the master's commands to what it hides, and has the same then.
                let mut replica = timed_node(&["a", "b"], large);
                (replica.replica, replica.from_master) = (true, true);
                replica.advance_ms(11);
                effect.lines().filter(|line| !["MULTI", "EXEC"].contains(line)).for_each(|line| {
                    replica.run(line);
                });
                replica.from_master = false;
                assert_eq!(replica.run("HGETALL k"), node.run("HGETALL k"), "{line}");
                assert_eq!(replica.run("HLEN k"), node.run("HLEN k"), "{line}");
            }
        }
    }

    #[test]
    fn a_sum_leaves_the_field_its_expiry_here_and_at_replicas() {
        let mut node = timed_node(&["a"], false);
        let at_ms = node.now_ms() + 10;
        let effect = format!("MULTI\nHSET k a 1.5\nHPEXPIREAT k {at_ms} FIELDS 1 a\nEXEC");
        check(&mut node, "HINCRBYFLOAT k a 0.5", &bulk("1.5"), &effect);
        check(&mut node, "HINCRBYFLOAT k c 0.5", &bulk("0.5"), "HSET k c 0.5");
        node.advance_ms(11);
        assert_eq!(node.run("HGET k a"), NULL);
    }

    #[test]
    fn a_hash_whose_fields_have_all_expired_is_shown_as_redis_does() {
        let mut node = timed_node(&["a", "b"], false);
        node.advance_ms(11);
        for (line, reply) in [
            ("HLEN k", ":2\r\n"),
            ("HGETALL k", "*0\r\n"),
            ("HEXISTS k a", ":0\r\n"),
            ("HSCAN k 0", "*2\r\n$1\r\n0\r\n*0\r\n"),
            ("TYPE k", "+hash\r\n"),
            ("EXISTS k", ":1\r\n"),
            ("DBSIZE", ":1\r\n"),
        ] {
            check(&mut node, line, reply, "");
        }
        check(&mut node, "HDEL k b", ":1\r\n", "HDEL k b");
        check(&mut node, "HDEL k a", ":1\r\n", "HDEL k a");
        check(&mut node, "EXISTS k", ":0\r\n", "");
    }

    #[test]
    fn expired_fields_are_hidden() {
        let mut node = timed_node(&["a"], false);
        assert_eq!(node.run("HGET k a"), bulk("1"));
        node.advance_ms(11);
        assert_eq!(node.run("HGET k a"), NULL);
        assert_eq!(node.run("HMGET k a b"), "*2\r\n$-1\r\n$3\r\ntwo\r\n");
        assert_eq!(node.run("HEXISTS k a"), ":0\r\n");
        assert_eq!(node.run("HKEYS k"), "*1\r\n$1\r\nb\r\n");
        assert_eq!(node.run("HSCAN k 0 NOVALUES"), "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nb\r\n");
    }
}
