//! Lists.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::types::{End, Limits, List, Object};
use std::ops::Range;

const LIST: Category = Category::LIST;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("lpush", -3, Handler::Keys(lpush)).flags(GROW_FAST).categories(LIST).keys(INSERT).doc(
        "list",
        "1.0.0",
        "Adds elements at the head of a list, which is created if there is none.",
        "O(N) for N elements added.",
    ),
    Command::new("rpush", -3, Handler::Keys(rpush)).flags(GROW_FAST).categories(LIST).keys(INSERT).doc(
        "list",
        "1.0.0",
        "Adds elements at the tail of a list, which is created if there is none.",
        "O(N) for N elements added.",
    ),
    Command::new("lpop", -2, Handler::Keys(lpop)).flags(WRITE_FAST).categories(LIST).keys(ACCESS_DELETE).doc(
        "list",
        "1.0.0",
        "Removes and returns elements from the head of a list.",
        "O(N) for N elements returned.",
    ),
    Command::new("rpop", -2, Handler::Keys(rpop)).flags(WRITE_FAST).categories(LIST).keys(ACCESS_DELETE).doc(
        "list",
        "1.0.0",
        "Removes and returns elements from the tail of a list.",
        "O(N) for N elements returned.",
    ),
    Command::new("lrange", 4, Handler::Keys(lrange)).flags(READ).categories(LIST).keys(ACCESS).doc(
        "list",
        "1.0.0",
        "Returns the elements of a range of indexes.",
        "O(S+N) for N elements returned that begin S nodes from the nearer end.",
    ),
    Command::new("llen", 2, Handler::Keys(llen)).flags(READ_FAST).categories(LIST).keys(LOOK).doc(
        "list",
        "1.0.0",
        "Returns the length of a list.",
        "O(1)",
    ),
    Command::new("lindex", 3, Handler::Keys(lindex)).flags(READ).categories(LIST).keys(ACCESS).doc(
        "list",
        "1.0.0",
        "Returns the element of an index.",
        "O(N) for N nodes on the way from the nearer end.",
    ),
    Command::new("lset", 4, Handler::Keys(lset)).flags(GROW).categories(LIST).keys(UPDATE).doc(
        "list",
        "1.0.0",
        "Replaces the element of an index.",
        "O(N) for N nodes on the way from the nearer end.",
    ),
    Command::new("linsert", 5, Handler::Keys(linsert)).flags(GROW).categories(LIST).keys(INSERT).doc(
        "list",
        "2.2.0",
        "Inserts an element before or behind the first one equal to a pivot.",
        "O(N) for N elements up to the pivot.",
    ),
    Command::new("lrem", 4, Handler::Keys(lrem)).flags(WRITE).categories(LIST).keys(DELETE).doc(
        "list",
        "1.0.0",
        "Removes elements equal to a value.",
        "O(N+M) for a list of N elements of which M are removed.",
    ),
    Command::new("ltrim", 4, Handler::Keys(ltrim)).flags(WRITE).categories(LIST).keys(DELETE).doc(
        "list",
        "1.0.0",
        "Removes the elements outside a range of indexes.",
        "O(N) for N nodes removed.",
    ),
    Command::new("lpushx", -3, Handler::Keys(lpushx)).flags(GROW_FAST).categories(LIST).keys(INSERT).doc(
        "list",
        "2.2.0",
        "Adds elements at the head of a list if it exists.",
        "O(N) for N elements added.",
    ),
    Command::new("rpushx", -3, Handler::Keys(rpushx)).flags(GROW_FAST).categories(LIST).keys(INSERT).doc(
        "list",
        "2.2.0",
        "Adds elements at the tail of a list if it exists.",
        "O(N) for N elements added.",
    ),
];

fn lpush(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    push(c, args, End::Front)
}

fn rpush(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    push(c, args, End::Back)
}

fn push(c: &mut Ctx<'_>, args: Args<'_>, end: End) -> Outcome {
    let limits = &c.keys.settings.limits;
    let len = c.keys.upsert(args[1], |list: &mut List| add(list, &args[2..], end, limits))?;
    pushed(c, args, len);
    Ok(())
}

/// Adds elements at one end, one by one; returns the length.
#[inline]
fn add(list: &mut List, elements: &[&[u8]], end: End, limits: &Limits) -> usize {
    if elements.len() > 1 {
        list.prepare(elements.len(), elements.iter().map(|element| element.len()).sum(), limits);
    }
    for element in elements {
        list.push(end, element, limits);
    }
    list.len()
}

fn pushed(c: &mut Ctx<'_>, args: Args<'_>, len: usize) {
    c.keys.changed(args[1]);
    c.keys.replicate_as_is(args);
    c.out.int(len as i64);
}

fn lpop(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    pop(c, args, End::Front, "lpop")
}

fn rpop(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    pop(c, args, End::Back, "rpop")
}

fn pop(c: &mut Ctx<'_>, args: Args<'_>, end: End, name: &'static str) -> Outcome {
    let limits = &c.keys.settings.limits;
    let key = args[1];
    let wanted = match args.len() {
        2 => None,
        3 => Some(count(args[2])?),
        _ => return Err(Error::WrongArity(name.into())),
    };
    let Some(list) = c.keys.get_mut::<List>(key)? else {
        match wanted {
            None => c.out.null(),
            Some(_) => c.out.null_array(),
        }
        return Ok(());
    };
    match wanted {
        None => {
            let popped = list.pop_with(end, limits, |element| bulk_element(c.out, element));
            popped.expect("no key holds an empty list");
            if list.is_empty() {
                c.keys.remove_found(key);
            }
        }
        Some(0) => {
            c.out.array(0);
            return Ok(());
        }
        Some(wanted) => {
            let len = list.len();
            let wanted = wanted.min(len);
            c.out.array(wanted);
            let kept = match end {
                End::Front => {
                    list.range(0, wanted).for_each(|element| bulk_element(c.out, element));
                    wanted..len
                }
                End::Back => {
                    list.range(len - wanted, len).rev().for_each(|element| bulk_element(c.out, element));
                    0..len - wanted
                }
            };
            keep(c, key, kept);
        }
    }
    c.keys.changed(key);
    c.keys.replicate_as_is(args);
    Ok(())
}

/// Cuts the list in a key down to a range of its elements, or removes it.
fn keep(c: &mut Ctx<'_>, key: &[u8], kept: Range<usize>) {
    if kept.is_empty() {
        c.keys.remove_found(key);
        return;
    }
    let limits = &c.keys.settings.limits;
    let list = c.keys.get_mut::<List>(key).ok().flatten().expect("found just before");
    if let Some(cut) = list.trim(kept.start, kept.end, limits) {
        c.keys.discard_cut(Object::List(cut));
    }
}

fn lrange(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (start, stop) = (integer(args[2])?, integer(args[3])?);
    let Some(list) = c.keys.get::<List>(args[1])? else {
        c.out.array(0);
        return Ok(());
    };
    let range = index_range(start, stop, list.len());
    c.out.array(range.len());
    // Headers and line ends alone; short elements seldom make it grow more than once again.
    c.out.buf.reserve(range.len().min(1 << 16) * 16);
    for element in list.range(range.start, range.end) {
        bulk_element(c.out, element);
    }
    Ok(())
}

fn llen(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let len = c.keys.get::<List>(args[1])?.map_or(0, List::len);
    c.out.int(len as i64);
    Ok(())
}

fn lindex(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let Some(list) = c.keys.get::<List>(args[1])? else {
        c.out.null();
        return Ok(());
    };
    let index = index_in(integer(args[2])?, list.len());
    match index.and_then(|index| list.get(index)) {
        Some(element) => bulk_element(c.out, element),
        None => c.out.null(),
    }
    Ok(())
}

fn lset(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let limits = &c.keys.settings.limits;
    let list = c.keys.get_mut::<List>(args[1])?.ok_or(Error::NoSuchKey)?;
    let index = index_in(integer(args[2])?, list.len()).ok_or(Error::OutOfRange)?;
    list.set(index, args[3], limits);
    c.keys.changed(args[1]);
    c.keys.replicate_as_is(args);
    c.out.ok();
    Ok(())
}

fn linsert(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let behind = match () {
        () if args.is(2, "BEFORE") => false,
        () if args.is(2, "AFTER") => true,
        () => return Err(Error::Syntax),
    };
    let limits = &c.keys.settings.limits;
    let Some(list) = c.keys.get_mut::<List>(args[1])? else {
        c.out.int(0);
        return Ok(());
    };
    let Some(pivot) = list.find(args[3]) else {
        c.out.int(-1);
        return Ok(());
    };
    list.insert(pivot + usize::from(behind), args[4], limits);
    let len = list.len();
    pushed(c, args, len);
    Ok(())
}

fn lrem(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let count = signed_count(args[2])?;
    let limits = &c.keys.settings.limits;
    let Some(list) = c.keys.get_mut::<List>(args[1])? else {
        c.out.int(0);
        return Ok(());
    };
    let from = if count < 0 { End::Back } else { End::Front };
    let most = if count == 0 { usize::MAX } else { count.unsigned_abs() as usize };
    let removed = list.remove_matching(args[3], most, from, limits);
    if removed > 0 {
        if list.is_empty() {
            c.keys.remove_found(args[1]);
        }
        c.keys.changed(args[1]);
        c.keys.replicate_as_is(args);
    }
    c.out.int(removed as i64);
    Ok(())
}

fn ltrim(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (start, stop) = (integer(args[2])?, integer(args[3])?);
    if let Some(list) = c.keys.get_mut::<List>(args[1])? {
        let len = list.len();
        let kept = index_range(start, stop, len);
        if kept.len() < len {
            keep(c, args[1], kept);
            c.keys.changed(args[1]);
            c.keys.replicate_as_is(args);
        }
    }
    c.out.ok();
    Ok(())
}

fn lpushx(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    push_existing(c, args, End::Front)
}

fn rpushx(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    push_existing(c, args, End::Back)
}

fn push_existing(c: &mut Ctx<'_>, args: Args<'_>, end: End) -> Outcome {
    let limits = &c.keys.settings.limits;
    match c.keys.get_mut::<List>(args[1])? {
        Some(list) => {
            let len = add(list, &args[2..], end, limits);
            pushed(c, args, len);
        }
        None => c.out.int(0),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::{NULL, Node, OK, bulk};

    fn array(texts: &[&str]) -> String {
        let bulks: String = texts.iter().map(|text| bulk(text)).collect();
        format!("*{}\r\n{bulks}", texts.len())
    }

    /// A node with the list `k` of the elements 0 to `len`; 5000 of them take several nodes.
    fn node(len: usize) -> Node {
        let mut node = Node::new();
        for i in 0..len {
            node.run(&format!("RPUSH k {i}"));
        }
        assert_eq!(node.run("OBJECT ENCODING k"), bulk(if len > 4000 { "quicklist" } else { "listpack" }));
        node.effects();
        node
    }

    /// Runs a line twice, with what it must say and what replicas must hear.
    fn check(node: &mut Node, line: &str, reply: &str, effect: bool) {
        let dirty = node.dirty();
        assert_eq!(node.run(line), reply, "{line}");
        assert_eq!(node.effects(), if effect { line } else { "" }, "{line}");
        assert_eq!(node.dirty() > dirty, effect, "{line}");
    }

    #[test]
    fn pushes_and_pops_at_both_ends_in_both_encodings() {
        for len in [3, 5000] {
            let mut node = node(len);
            check(&mut node, "LPUSH k a b", &format!(":{}\r\n", len + 2), true);
            check(&mut node, "RPUSH k y z", &format!(":{}\r\n", len + 4), true);
            check(&mut node, "LPUSHX k h", &format!(":{}\r\n", len + 5), true);
            check(&mut node, "RPUSHX k t", &format!(":{}\r\n", len + 6), true);
            check(&mut node, "LRANGE k 0 3", &array(&["h", "b", "a", "0"]), false);
            check(&mut node, "LRANGE k -3 -1", &array(&["y", "z", "t"]), false);
            check(&mut node, "LPOP k", &bulk("h"), true);
            check(&mut node, "RPOP k", &bulk("t"), true);
            check(&mut node, "LPOP k 2", &array(&["b", "a"]), true);
            check(&mut node, "RPOP k 2", &array(&["z", "y"]), true);
            check(&mut node, "LPOP k 0", "*0\r\n", false);
            check(&mut node, "LLEN k", &format!(":{len}\r\n"), false);
            let rest = node.run("RPOP k 100000");
            assert!(rest.starts_with(&format!("*{len}\r\n")) && rest.ends_with(&bulk("0")));
            assert_eq!(node.effects(), "RPOP k 100000");
            assert_eq!(node.run("EXISTS k"), ":0\r\n");
        }
    }

    #[test]
    fn the_last_element_takes_the_key_along() {
        for line in ["LPOP k", "RPOP k", "LPOP k 1", "LREM k 0 0", "LTRIM k 1 2"] {
            let mut node = node(1);
            node.run(line);
            assert_eq!(node.effects(), line);
            assert_eq!((node.run("EXISTS k").as_str(), node.space.len()), (":0\r\n", 0));
        }
    }

    #[test]
    fn without_a_list_nothing_happens() {
        let mut node = Node::new();
        for (line, reply) in [
            ("LPOP k", NULL),
            ("LPOP k 3", "*-1\r\n"),
            ("LPUSHX k a", ":0\r\n"),
            ("RPUSHX k a", ":0\r\n"),
            ("LRANGE k 0 -1", "*0\r\n"),
            ("LLEN k", ":0\r\n"),
            ("LINDEX k x", NULL),
            ("LSET k 0 a", "-ERR no such key\r\n"),
            ("LREM k 0 a", ":0\r\n"),
            ("LTRIM k 0 1", OK),
            ("LINSERT k BEFORE a b", ":0\r\n"),
        ] {
            check(&mut node, line, reply, false);
        }
        assert_eq!(node.run3("LPOP k 3"), "_\r\n");
        assert_eq!(node.space.len(), 0);
    }

    #[test]
    fn elements_are_found_and_changed_by_index_and_value() {
        for len in [10, 5000] {
            let mut node = node(len);
            let last = (len - 1).to_string();
            check(&mut node, "LINDEX k 7", &bulk("7"), false);
            check(&mut node, "LINDEX k -1", &bulk(&last), false);
            check(&mut node, "LINDEX k 9999", NULL, false);
            check(&mut node, "LSET k 7 x", OK, true);
            check(&mut node, "LSET k -1 x", OK, true);
            check(&mut node, "LSET k 9999 x", "-ERR index out of range\r\n", false);
            check(&mut node, "LINSERT k before x new", &format!(":{}\r\n", len + 1), true);
            check(&mut node, "LINSERT k AFTER x x", &format!(":{}\r\n", len + 2), true);
            check(&mut node, "LINSERT k AFTER none x", ":-1\r\n", false);
            check(&mut node, "LRANGE k 6 10", &array(&["6", "new", "x", "x", "8"]), false);
            check(&mut node, "LREM k -2 x", ":2\r\n", true);
            check(&mut node, "LREM k 0 x", ":1\r\n", true);
            check(&mut node, "LREM k 0 x", ":0\r\n", false);
            check(&mut node, "LRANGE k 6 8", &array(&["6", "new", "8"]), false);
            check(&mut node, "LTRIM k 0 -1", OK, false);
            check(&mut node, "LTRIM k 5 7", OK, true);
            check(&mut node, "LRANGE k 0 -1", &array(&["5", "6", "new"]), false);
        }
    }

    #[test]
    fn errors_are_those_of_redis() {
        let mut node = node(2);
        node.run("SET s v");
        node.effects();
        for (line, error) in [
            ("LPOP k -1", "ERR value is out of range, must be positive"),
            ("LPOP k x", "ERR value is out of range, must be positive"),
            ("RPOP k 1 2", "ERR wrong number of arguments for 'rpop' command"),
            ("LRANGE s x 1", "ERR value is not an integer or out of range"),
            ("LINSERT s BESIDE a b", "ERR syntax error"),
            (
                "LREM k -9223372036854775808 a",
                "ERR value is out of range, value must between -9223372036854775807 and 9223372036854775807",
            ),
        ] {
            check(&mut node, line, &format!("-{error}\r\n"), false);
        }
        for line in ["LPUSH s a", "LPUSHX s a", "LPOP s", "LRANGE s 0 1", "LSET s 0 a", "LTRIM s 0 0"] {
            assert!(node.run(line).starts_with("-WRONGTYPE"), "{line}");
        }
        assert_eq!(node.effects(), "");
    }
}
