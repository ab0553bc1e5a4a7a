use crate::commands::testing::{NULL, Node, OK, START_MS, bulk};
use crate::keyspace::StrRef;
use crate::resp::reply::SHARED_BULK_LEN_BYTES;
use crate::table::{Kind, ValueRef};
use crate::types::Object;
use bytes::Bytes;

const WRONG_TYPE: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
const SYNTAX: &str = "-ERR syntax error\r\n";
const NOT_INTEGER: &str = "-ERR value is not an integer or out of range\r\n";

/// Makes `key` a value that is no string.
fn put_list(node: &mut Node, key: &[u8]) {
    let list = crate::types::list::List::default();
    let entry =
        crate::keyspace::KeyEntry::new(key, crate::table::NewValue::Boxed(Box::new(Object::List(list))));
    node.space.attach(0, entry);
}

fn kind(node: &Node, key: &[u8]) -> Kind {
    let hash = node.space.hash(key);
    node.space.db(0).table.find(hash, key).expect("exists").kind()
}

/// Runs commands and compares replies and effects. A blank effect: none, and nothing counted as changed.
fn check(node: &mut Node, steps: &[(&str, &str, &str)]) {
    for (line, reply, effects) in steps {
        let dirty = node.dirty();
        assert_eq!(node.run(line), *reply, "{line}");
        assert_eq!(node.effects(), *effects, "{line}");
        assert_eq!(node.dirty() > dirty, !effects.is_empty(), "{line}");
    }
}

#[test]
fn set_and_its_options() {
    let mut node = Node::new();
    let at = START_MS + 10_000;
    check(
        &mut node,
        &[
            ("SET k v", OK, "SET k v"),
            ("SET k w NX", NULL, ""),
            ("SET k w XX GET", &bulk("v"), "SET k w"),
            ("SET n w XX", NULL, ""),
            ("SET n w XX GET", NULL, ""),
            ("SET n w NX GET", NULL, "SET n w"),
            ("SET k v EX 10", OK, &format!("SET k v PXAT {at}")),
            ("SET k v2 KEEPTTL", OK, "SET k v2 KEEPTTL"),
            ("GETEX k PERSIST", &bulk("v2"), "PERSIST k"),
            ("GETEX k PERSIST", &bulk("v2"), ""),
            ("SET k v px 10000 nx get", &bulk("v2"), ""),
            (&format!("SET k v pxat {at}"), OK, &format!("SET k v PXAT {at}")),
            ("SET k v3", OK, "SET k v3"),
            ("GETEX k PERSIST", &bulk("v3"), ""),
            ("SET k v EXAT 5", OK, "UNLINK k"),
            ("SET k v EXAT 5", OK, ""),
            ("GET k", NULL, ""),
            ("SET k 1 IFEQ 1", NULL, ""),
            ("SET k 1 IFNE 1", OK, "SET k 1"),
            ("SET k 2 IFEQ 1", OK, "SET k 2"),
            ("SET k 3 IFEQ 1 GET", &bulk("2"), ""),
            ("SET k 3 IFNE 2", NULL, ""),
            ("SET k 3 NX XX", SYNTAX, ""),
            ("SET k 3 IFEQ 1 XX", SYNTAX, ""),
            ("SET k 3 IFEQ", SYNTAX, ""),
            ("SET k 3 IFEQ 2 IFEQ 2", SYNTAX, ""),
            ("SET k 3 EX 10 KEEPTTL", SYNTAX, ""),
            ("SET k 3 KEEPTTL EX 10", SYNTAX, ""),
            ("SET k 3 EX 10 PX 10", SYNTAX, ""),
            ("SET k 3 PERSIST", SYNTAX, ""),
            ("SET k 3 EX", SYNTAX, ""),
            ("SET k 3 EX 0", "-ERR invalid expire time in 'set' command\r\n", ""),
            ("SET k 3 PX x", NOT_INTEGER, ""),
            ("GETSET k 5", &bulk("2"), "SET k 5"),
            ("GETSET m 5", NULL, "SET m 5"),
            ("SETNX k 6", ":0\r\n", ""),
            ("SETNX o 6", ":1\r\n", "SET o 6"),
            ("SETEX k 10 v", OK, &format!("SET k v PXAT {at}")),
            ("PSETEX k 10000 v", OK, &format!("SET k v PXAT {at}")),
            ("SETEX k -1 v", "-ERR invalid expire time in 'setex' command\r\n", ""),
            ("PSETEX k 9223372036854775807 v", "-ERR invalid expire time in 'psetex' command\r\n", ""),
        ],
    );
    assert_eq!(node.run3("SET k v NX"), "_\r\n");
    put_list(&mut node, b"l");
    check(
        &mut node,
        &[
            ("SET l v GET", WRONG_TYPE, ""),
            ("SET l v IFEQ v", WRONG_TYPE, ""),
            ("GETSET l v", WRONG_TYPE, ""),
            ("GET l", WRONG_TYPE, ""),
            ("SET l v", OK, "SET l v"),
        ],
    );
}

#[test]
fn a_key_that_expired_hands_nothing_on() {
    let mut node = Node::new();
    node.run("SET k v PX 10");
    node.effects();
    node.advance_ms(11);
    check(
        &mut node,
        &[("SET k w KEEPTTL", OK, "UNLINK k\nSET k w KEEPTTL"), ("GETEX k PERSIST", &bulk("w"), "")],
    );
    node.run("SET c 5 PX 10");
    node.advance_ms(11);
    node.effects();
    check(&mut node, &[("INCR c", ":1\r\n", "UNLINK c\nINCR c")]);
}

#[test]
fn a_replica_keeps_what_its_master_gives_it_even_if_it_is_over() {
    let mut node = Node::new();
    (node.replica, node.from_master) = (true, true);
    node.run("SET k v PXAT 5");
    assert_eq!(node.space.len(), 1);
    assert_eq!(node.run("GET k"), bulk("v"));
    node.from_master = false;
    assert_eq!(node.run("GET k"), NULL);
}

#[test]
fn reading_with_a_consequence() {
    let mut node = Node::new();
    check(
        &mut node,
        &[
            ("GETDEL k", NULL, ""),
            ("GETEX k EX 0", NULL, ""),
            ("SET k v", OK, "SET k v"),
            ("GETEX k", &bulk("v"), ""),
            ("GETEX k EX 10", &bulk("v"), &format!("PEXPIREAT k {}", START_MS + 10_000)),
            ("GETEX k EX 0", "-ERR invalid expire time in 'getex' command\r\n", ""),
            ("GETEX k KEEPTTL", SYNTAX, ""),
            ("GETEX k EX 1 PERSIST", SYNTAX, ""),
            ("GETEX k PXAT 1", &bulk("v"), "UNLINK k"),
            ("GETEX k PXAT 1", NULL, ""),
            ("SET k 12", OK, "SET k 12"),
            ("DELIFEQ k 1", ":0\r\n", ""),
            ("DELIFEQ k 12", ":1\r\n", "DEL k"),
            ("DELIFEQ k 12", ":0\r\n", ""),
            ("SET k v", OK, "SET k v"),
            ("GETDEL k", &bulk("v"), "DEL k"),
        ],
    );
}

#[test]
fn several_keys() {
    let mut node = Node::new();
    let at = START_MS + 10;
    check(
        &mut node,
        &[
            ("MSET a 1 b 2", OK, "MSET a 1 b 2"),
            ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command\r\n", ""),
            ("MGET a x b", &format!("*3\r\n{}{NULL}{}", bulk("1"), bulk("2")), ""),
            ("MSETNX c 1 b 2", ":0\r\n", ""),
            ("MSETNX c 1 d 2", ":1\r\n", "MSET c 1 d 2"),
            ("MSETEX 2 a 1 b 2 XX", ":1\r\n", "MSET a 1 b 2"),
            ("MSETEX 2 a 1 b 2 NX", ":0\r\n", ""),
            ("MSETEX 2 a 1 x 2 XX EX 10", ":0\r\n", ""),
            (
                "MSETEX 2 a 1 b 2 PX 10",
                ":1\r\n",
                &format!("MULTI\nSET a 1 PXAT {at}\nSET b 2 PXAT {at}\nEXEC"),
            ),
            ("MSETEX 1 a 7 KEEPTTL", ":1\r\n", "MULTI\nSET a 7 KEEPTTL\nEXEC"),
            ("MSETEX 3 a 1 x 2 b 4 EXAT 1", ":1\r\n", "UNLINK a b"),
            ("MSETEX 2 a 1 x 2 EXAT 1", ":1\r\n", ""),
            ("MSETEX 2 a 1 b", SYNTAX, ""),
            ("MSETEX 0 a 1", "-ERR invalid numkeys value or out of range\r\n", ""),
            ("MSETEX 1 a 1 EX 0", "-ERR invalid expire time in 'msetex' command\r\n", ""),
            ("MSETEX 1 a 1 GET", SYNTAX, ""),
        ],
    );
}

#[test]
fn parts() {
    let mut node = Node::new();
    check(
        &mut node,
        &[
            ("APPEND k abc", ":3\r\n", "APPEND k abc"),
            ("APPEND k def", ":6\r\n", "APPEND k def"),
            ("STRLEN k", ":6\r\n", ""),
            ("STRLEN none", ":0\r\n", ""),
            ("GETRANGE k 1 2", &bulk("bc"), ""),
            ("GETRANGE k -2 -1", &bulk("ef"), ""),
            ("GETRANGE k -100 -99", &bulk("a"), ""),
            ("GETRANGE k -99 -100", &bulk(""), ""),
            ("GETRANGE k 4 100", &bulk("ef"), ""),
            ("GETRANGE k 9 100", &bulk(""), ""),
            ("GETRANGE none 0 -1", &bulk(""), ""),
            ("SUBSTR k 0 0", &bulk("a"), ""),
            ("GETRANGE k x 0", NOT_INTEGER, ""),
            ("SETRANGE k 5 XYZ", ":8\r\n", "SETRANGE k 5 XYZ"),
            ("GET k", &bulk("abcdeXYZ"), ""),
            ("SETRANGE z 2 a", ":3\r\n", "SETRANGE z 2 a"),
            ("GET z", &bulk("\0\0a"), ""),
            ("SETRANGE k -1 a", "-ERR offset is out of range\r\n", ""),
            (
                "SETRANGE k 536870911 aa",
                "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n",
                "",
            ),
            ("SET n 123", OK, "SET n 123"),
            ("GETRANGE n 1 1", &bulk("2"), ""),
            ("APPEND n 4", ":4\r\n", "APPEND n 4"),
            ("INCR n", ":1235\r\n", "INCR n"),
        ],
    );
    assert_eq!(node.run_args(&[b"SETRANGE", b"none", b"5", b""]), b":0\r\n");
    assert_eq!(node.run_args(&[b"APPEND", b"k", b""]), b":8\r\n");
    assert_eq!(node.effects(), "");
    node.settings.max_bulk_len_bytes = 9;
    assert!(node.run("APPEND k 12").starts_with("-ERR string exceeds"));
    put_list(&mut node, b"l");
    for line in ["APPEND l a", "SETRANGE l 0 a", "GETRANGE l 0 1", "STRLEN l", "GETEX l", "GETDEL l"] {
        assert_eq!(node.run(line), WRONG_TYPE, "{line}");
    }
    assert_eq!(node.run("MGET l"), format!("*1\r\n{NULL}"));
}

#[test]
fn what_is_edited_becomes_a_buffer_of_its_own() {
    let mut node = Node::new();
    node.run("SET k 12");
    assert_eq!(kind(&node, b"k"), Kind::Int);
    node.run("SET s abc");
    assert_eq!(kind(&node, b"s"), Kind::Str);
    node.run("APPEND k 3");
    node.run("SETRANGE s 0 x");
    assert_eq!((kind(&node, b"k"), kind(&node, b"s")), (Kind::Boxed, Kind::Boxed));
    node.run("APPEND new 12");
    assert_eq!(kind(&node, b"new"), Kind::Int);
}

#[test]
fn long_values_are_shared_and_a_reader_keeps_what_it_saw() {
    let mut node = Node::new();
    let value = Bytes::from(vec![b'x'; 3 * SHARED_BULK_LEN_BYTES]);
    let args: [&[u8]; 3] = [b"SET", b"k", &value];
    assert_eq!(node.run_shared(&args, &[(2, value.clone())]), OK.as_bytes());
    let stored =
        |node: &Node| match node.space.db(0).table.find(node.space.hash(b"k"), b"k").map(|e| e.value()) {
            Some(ValueRef::Boxed(Object::Str(bytes))) => bytes.clone(),
            other => panic!("{:?}", other.is_some()),
        };
    assert_eq!(stored(&node).as_ptr(), value.as_ptr());
    node.run("SETRANGE k 0 y");
    assert_eq!(value[0], b'x');
    assert_eq!(stored(&node)[0], b'y');
    // Nobody else has it now: edited where it is.
    let before = stored(&node).as_ptr();
    node.run("SETRANGE k 1 z");
    assert_eq!(stored(&node).as_ptr(), before);
    let part = node.run("GETRANGE k 1 20000");
    assert!(part.starts_with("$20000\r\nzx") && part.ends_with("x\r\n"));
}

#[test]
fn edits_agree_with_a_model() {
    let mut node = Node::new();
    let mut model: Vec<u8> = Vec::new();
    let mut rng = fastrand::Rng::with_seed(9);
    node.run_args(&[b"SET", b"k", b""]);
    for step in 0..3_000 {
        let part: Vec<u8> = (0..rng.usize(1..20)).map(|_| rng.u8(..)).collect();
        if rng.bool() {
            node.run_args(&[b"APPEND", b"k", &part]);
            model.extend_from_slice(&part);
        } else {
            let at = rng.usize(0..=model.len() + 10);
            node.run_args(&[b"SETRANGE", b"k", at.to_string().as_bytes(), &part]);
            model.resize(model.len().max(at + part.len()), 0);
            model[at..at + part.len()].copy_from_slice(&part);
        }
        if rng.u8(..) == 0 {
            model.clear();
            node.run_args(&[b"SET", b"k", b""]);
        }
        let (start, end) = (rng.i64(-50..50), rng.i64(-50..50));
        let want = if step % 2 == 0 { &model[..] } else { python_like_slice(&model, start, end) };
        let reply = match step % 2 {
            0 => node.run_args(&[b"GET", b"k"]),
            _ => {
                node.run_args(&[b"GETRANGE", b"k", start.to_string().as_bytes(), end.to_string().as_bytes()])
            }
        };
        let want = [format!("${}\r\n", want.len()).as_bytes(), want, b"\r\n"].concat();
        assert_eq!(reply, want, "{start} {end}");
    }
}

/// The bytes whose position p satisfies start <= p <= end, where negative ends count from the end; ends before the
/// beginning mean the first byte, unless they are in the wrong order.
fn python_like_slice(bytes: &[u8], start: i64, end: i64) -> &[u8] {
    let len = bytes.len() as i64;
    if start < 0 && end < 0 && start > end {
        return b"";
    }
    let position = |at: i64| if at < 0 { (at + len).max(0) } else { at };
    let picked: Vec<usize> =
        (0..bytes.len()).filter(|&at| (position(start)..=position(end)).contains(&(at as i64))).collect();
    match picked[..] {
        [] => b"",
        [first, ..] => &bytes[first..first + picked.len()],
    }
}

#[test]
fn appending_to_a_long_value_does_not_copy_it_each_time() {
    let mut node = Node::new();
    node.run_args(&[b"SET", b"k", &[b'x'; 100_000]]);
    let mut moves = 0;
    let mut at = std::ptr::null();
    for _ in 0..10_000 {
        node.run("APPEND k 0123456789");
        let hash = node.space.hash(b"k");
        let entry = node.space.db(0).table.find(hash, b"k").expect("exists");
        let Some(StrRef::Shared(value)) = StrRef::of(entry.value()) else { panic!("a long value") };
        let now = value.as_ptr();
        moves += usize::from(now != at);
        at = now;
    }
    assert!(moves < 8, "{moves}");
    assert_eq!(node.run("STRLEN k"), ":200000\r\n");
}

/// The value that arrived is the key's and the stream's.
#[test]
fn law8_a_long_value_is_the_very_buffer_in_the_stream() {
    for line in [
        "SET k @",
        "SET k @ KEEPTTL",
        "SET k @ EX 100 GET",
        "SETEX k 100 @",
        "SETNX new @",
        "GETSET k @",
        "MSET k @ a b",
        "MSETNX new @ new2 b",
        "MSETEX 2 k @ a b EX 100",
        "APPEND new @",
        "SETRANGE k 1 @",
        "LPUSH list @",
        "HSET hash f @",
    ] {
        let mut node = Node::new();
        let value = Bytes::from(vec![b'v'; 64 << 10]);
        let words: Vec<&str> = line.split(' ').collect();
        let at = words.iter().position(|word| *word == "@").expect("a value");
        let mut args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        args[at] = &value;
        let reply = node.run_shared(&args, &[(at as u32, value.clone())]);
        assert!(!reply.starts_with(b"-"), "{line}: {}", reply.escape_ascii());
        let pieces = node.effects.take().pieces;
        assert!(pieces.iter().any(|piece| piece.as_ptr() == value.as_ptr()), "{line}");
        assert!(pieces.concat().len() < value.len() + 200, "{line}");
    }
}

/// Where nothing is different afterwards Redis says so all the same.
#[test]
fn watchers_hear_of_writes_that_leave_all_as_it_was() {
    let id = crate::keyspace::WatcherId { shard: 0, conn: 1 };
    for (line, want) in [
        (&["APPEND", "k", ""][..], true),
        (&["SET", "missing", "v", "PXAT", "1000"], true),
        (&["SET", "k", "v", "PXAT", "1000"], true),
        (&["SETRANGE", "k", "0", ""], false),
        (&["GETEX", "k", "PERSIST"], false),
    ] {
        let mut node = Node::new();
        node.run("SET k v");
        for key in [b"k".as_slice(), b"missing"] {
            node.space.watches.watch(id, 0, key, false);
        }
        let words: Vec<&[u8]> = line.iter().map(|word| word.as_bytes()).collect();
        node.run_args(&words);
        let now_ms = node.now_ms();
        assert_eq!(node.space.watch_is_dirty(id, now_ms), want, "{line:?}");
    }
}
