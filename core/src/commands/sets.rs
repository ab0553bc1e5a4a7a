//! Sets.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Effects, Error, Handler, KeySpec, Outcome, Use};
use crate::types::Set;
use smallvec::SmallVec;

const SET: Category = Category::SET;

/// One command of the stream names members of no more than this, unless it is one alone.
const SREM_MAX_BYTES: usize = if cfg!(test) { 8 << 10 } else { 64 << 20 };

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("sadd", -3, Handler::Keys(sadd)).flags(GROW_FAST).categories(SET).keys(INSERT).doc(
        "set",
        "1.0.0",
        "Adds members to a set, which is created if there is none.",
        "O(N) for N members added.",
    ),
    Command::new("spop", -2, Handler::Keys(spop)).flags(WRITE_FAST).categories(SET).keys(ACCESS_DELETE).doc(
        "set",
        "1.0.0",
        "Removes random members of a set and returns them.",
        "O(1) without a count, else O(N) for a count of N.",
    ),
    Command::new("scard", 2, Handler::Keys(scard)).flags(READ_FAST).categories(SET).keys(LOOK).doc(
        "set",
        "1.0.0",
        "Returns the number of members of a set.",
        "O(1)",
    ),
    Command::new("sismember", 3, Handler::Keys(sismember)).flags(READ_FAST).categories(SET).keys(LOOK).doc(
        "set",
        "1.0.0",
        "Tells whether a set has a member.",
        "O(1)",
    ),
    Command::new("smismember", -3, Handler::Keys(smismember))
        .flags(READ_FAST)
        .categories(SET)
        .keys(ACCESS)
        .doc("set", "6.2.0", "Tells of each of some texts whether a set has it.", "O(N) for N texts."),
    Command::new("smembers", 2, Handler::Keys(smembers)).flags(READ).categories(SET).keys(ACCESS).doc(
        "set",
        "1.0.0",
        "Returns all members of a set.",
        "O(N) for N members.",
    ),
    Command::new("srem", -3, Handler::Keys(srem)).flags(WRITE_FAST).categories(SET).keys(DELETE).doc(
        "set",
        "1.0.0",
        "Removes members from a set.",
        "O(N) for N members removed.",
    ),
    Command::new("smove", 4, Handler::Keys(smove))
        .flags(WRITE_FAST)
        .categories(SET)
        .keys(&[
            KeySpec::one(1, Use::ReadWrite, &["access", "delete"]),
            KeySpec::one(2, Use::ReadWrite, &["insert"]),
        ])
        .doc("set", "1.0.0", "Moves a member from one set to another.", "O(1)"),
];

fn sadd(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let limits = &c.keys.settings.limits;
    let members = &args[2..];
    let added = c.keys.upsert(args[1], |set: &mut Set| {
        if set.is_empty() {
            *set = Set::with_hint(members[0], members.len(), limits);
        } else {
            set.prepare(members.len(), limits);
        }
        members.iter().filter(|member| set.insert(member, limits)).count()
    })?;
    if added > 0 {
        c.keys.changed(args[1]);
        c.keys.replicate_as_is(args);
    }
    c.out.int(added as i64);
    Ok(())
}

fn spop(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    match args.len() {
        2 => spop_one(c, args[1]),
        3 => spop_many(c, args[1], count(args[2])?),
        _ => Err(Error::Syntax),
    }
}

fn spop_one(c: &mut Ctx<'_>, key: &[u8]) -> Outcome {
    let Some(set) = c.keys.get_mut::<Set>(key)? else {
        c.out.null();
        return Ok(());
    };
    let drawn = set.random(c.rng).expect("no key holds an empty set");
    let member: SmallVec<[u8; 64]> = SmallVec::from_slice(drawn.bytes(&mut itoa::Buffer::new()));
    set.remove(&member);
    if set.is_empty() {
        c.keys.remove_found(key);
    }
    c.out.bulk(&member);
    c.keys.changed(key);
    c.keys.replicate(&[b"SREM", key, &member]);
    Ok(())
}

fn spop_many(c: &mut Ctx<'_>, key: &[u8], wanted: usize) -> Outcome {
    let Some(set) = c.keys.get_mut::<Set>(key)?.filter(|_| wanted > 0) else {
        c.out.set(0);
        return Ok(());
    };
    if wanted >= set.len() {
        c.out.set(set.len());
        set.iter().for_each(|member| bulk_element(c.out, member));
        c.keys.remove_found(key);
        c.keys.changed(key);
        c.keys.replicate(&[b"DEL", key]);
        return Ok(());
    }
    let drawn: Vec<Vec<u8>> = set.sample(c.rng, wanted).into_iter().map(|member| member.to_vec()).collect();
    c.out.set(drawn.len());
    for member in &drawn {
        set.remove(member);
        c.out.bulk(member);
    }
    c.keys.changed(key);
    if c.keys.effects.enabled() {
        let db = c.keys.db;
        let tell = |effects: &mut Effects| {
            let mut rest = &drawn[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(fitting(rest));
                let members = now.iter().map(Vec::as_slice);
                let srem: Vec<&[u8]> = [&b"SREM"[..], key].into_iter().chain(members).collect();
                effects.push(db, &srem);
                rest = later;
            }
        };
        if fitting(&drawn) == drawn.len() { tell(c.keys.effects) } else { c.keys.effects.together(tell) }
    }
    Ok(())
}

/// How many of the members go into one command of the stream. A set may be longer than a replica takes a command to be.
fn fitting(members: &[Vec<u8>]) -> usize {
    let mut bytes = 0;
    let fit = |member: &&Vec<u8>| {
        bytes += member.len();
        bytes <= SREM_MAX_BYTES
    };
    members.iter().take_while(fit).count().max(1)
}

fn scard(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let len = c.keys.get::<Set>(args[1])?.map_or(0, Set::len);
    c.out.int(len as i64);
    Ok(())
}

fn sismember(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let is_member = c.keys.get::<Set>(args[1])?.is_some_and(|set| set.contains(args[2]));
    c.out.int(i64::from(is_member));
    Ok(())
}

fn smismember(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let set = c.keys.get::<Set>(args[1])?;
    c.out.array(args.len() - 2);
    for member in &args[2..] {
        c.out.int(i64::from(set.is_some_and(|set| set.contains(member))));
    }
    Ok(())
}

fn smembers(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let set = c.keys.get::<Set>(args[1])?;
    c.out.set(set.map_or(0, Set::len));
    set.into_iter().flat_map(Set::iter).for_each(|member| bulk_element(c.out, member));
    Ok(())
}

fn srem(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let mut removed = 0;
    if let Some(set) = c.keys.get_mut::<Set>(args[1])? {
        removed = args[2..].iter().filter(|member| set.remove(member)).count();
        if set.is_empty() {
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

fn smove(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (from, to, member) = (args[1], args[2], args[3]);
    let moved = match c.keys.get::<Set>(from)? {
        None => false,
        Some(set) => {
            let is_member = set.contains(member);
            // The target's type matters even if nothing is moved.
            c.keys.get_mut::<Set>(to)?;
            is_member
        }
    };
    if moved && from != to {
        let limits = &c.keys.settings.limits;
        let set = c.keys.get_mut::<Set>(from)?.expect("seen above");
        set.remove(member);
        if set.is_empty() {
            c.keys.remove_found(from);
        }
        c.keys.upsert(to, |set: &mut Set| {
            if set.is_empty() {
                *set = Set::with_hint(member, 1, limits);
            }
            set.insert(member, limits)
        })?;
        c.keys.changed(from);
        c.keys.changed(to);
        c.keys.replicate_as_is(args);
    }
    c.out.int(i64::from(moved));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::{NULL, Node, bulk};

    /// Members that make a set of each encoding.
    fn encodings() -> [(String, &'static str); 3] {
        let long = "x".repeat(65);
        [("1 2 3".into(), "intset"), ("1 b 3".into(), "listpack"), (format!("1 b {long}"), "hashtable")]
    }

    fn node(members: &str, encoding: &str) -> Node {
        let mut node = Node::new();
        assert_eq!(node.run(&format!("SADD k {members}")), ":3\r\n");
        assert_eq!(node.run("OBJECT ENCODING k"), bulk(encoding));
        node.effects();
        node
    }

    fn check(node: &mut Node, line: &str, reply: &str, effect: &str) {
        let dirty = node.dirty();
        assert_eq!(node.run(line), reply, "{line}");
        assert_eq!(node.effects(), effect, "{line}");
        assert_eq!(node.dirty() > dirty, !effect.is_empty(), "{line}");
    }

    #[test]
    fn what_spop_removed_goes_into_commands_that_a_replica_takes() {
        let mut node = Node::new();
        let long = |at: usize| format!("{at:0>5000}");
        for at in 0..6 {
            node.run(&format!("SADD k {} {at}", long(at)));
        }
        node.effects();
        node.run("SPOP k 11");
        let effects = node.effects();
        assert!(effects.starts_with("MULTI\nSREM k ") && effects.ends_with("\nEXEC"), "{effects}");
        assert!(effects.lines().all(|line| line.len() < SREM_MAX_BYTES + 200));
        let mut replica = Node::new();
        for at in 0..6 {
            replica.run(&format!("SADD k {} {at}", long(at)));
        }
        effects.lines().filter(|line| line.starts_with("SREM")).for_each(|line| drop(replica.run(line)));
        assert_eq!(replica.run("SMEMBERS k"), node.run("SMEMBERS k"));
        node.run("SADD k a b c");
        node.effects();
        node.run("SPOP k 2");
        assert!(node.effects().starts_with("SREM k "), "one is no block");
    }

    #[test]
    fn members_come_and_go_in_every_encoding() {
        for (members, encoding) in encodings() {
            let mut node = node(&members, encoding);
            for (line, reply, has_effect) in [
                ("SADD k 1 1", ":0\r\n", false),
                ("SADD k 1 9", ":1\r\n", true),
                ("SCARD k", ":4\r\n", false),
                ("SISMEMBER k 9", ":1\r\n", false),
                ("SISMEMBER k z", ":0\r\n", false),
                ("SMISMEMBER k z 9", "*2\r\n:0\r\n:1\r\n", false),
                ("SREM k z", ":0\r\n", false),
                ("SREM k z 9", ":1\r\n", true),
            ] {
                check(&mut node, line, reply, if has_effect { line } else { "" });
            }
            let all = node.run("SMEMBERS k");
            assert!(
                all.starts_with("*3\r\n") && members.split(' ').all(|member| all.contains(&bulk(member)))
            );
            assert!(node.run3("SMEMBERS k").starts_with("~3\r\n"));
            let line = format!("SREM k {members}");
            check(&mut node, &line, ":3\r\n", &line);
            assert_eq!(node.space.len(), 0);
        }
    }

    #[test]
    fn pops_are_told_as_removals() {
        for (members, encoding) in encodings() {
            let mut node = node(&members, encoding);
            let popped = node.run("SPOP k");
            let member = popped.split("\r\n").nth(1).unwrap().to_owned();
            assert!(members.split(' ').any(|other| other == member));
            assert_eq!(node.effects(), format!("SREM k {member}"));
            assert_eq!(node.run(&format!("SISMEMBER k {member}")), ":0\r\n");
            let popped = node.run3("SPOP k 1");
            assert!(popped.starts_with("~1\r\n"));
            let member = popped.split("\r\n").nth(2).unwrap().to_owned();
            assert_eq!(node.effects(), format!("SREM k {member}"));
            assert!(node.run("SPOP k 9").starts_with("*1\r\n"));
            assert_eq!(node.effects(), "DEL k");
            assert_eq!(node.space.len(), 0);
            node.run("SADD k only");
            node.effects();
            check(&mut node, "SPOP k", &bulk("only"), "SREM k only");
            assert_eq!(node.space.len(), 0);
        }
    }

    #[test]
    fn many_are_popped_once_each() {
        for prefix in ["", "m"] {
            let mut node = Node::new();
            for i in 0..600 {
                node.run(&format!("SADD k {prefix}{i}"));
            }
            node.effects();
            let popped = node.run("SPOP k 500");
            assert!(popped.starts_with("*500\r\n"));
            let effect = node.effects();
            assert_eq!(effect.split(' ').count(), 502);
            assert!(effect.split(' ').skip(2).all(|member| popped.contains(&bulk(member))));
            assert_eq!(node.run("SCARD k"), ":100\r\n");
        }
    }

    #[test]
    fn smove_moves_between_encodings() {
        for (members, encoding) in encodings() {
            let mut node = node(&members, encoding);
            node.run("SADD to t");
            node.effects();
            for (line, reply, has_effect) in [
                ("SMOVE k to z", ":0\r\n", false),
                ("SMOVE k k 1", ":1\r\n", false),
                ("SMOVE k k z", ":0\r\n", false),
                ("SMOVE none to z", ":0\r\n", false),
                ("SMOVE k to 1", ":1\r\n", true),
                ("SISMEMBER to 1", ":1\r\n", false),
                ("SISMEMBER k 1", ":0\r\n", false),
                ("SMOVE to k t", ":1\r\n", true),
                ("SMOVE to new 1", ":1\r\n", true),
                ("EXISTS to", ":0\r\n", false),
                ("OBJECT ENCODING new", "$6\r\nintset\r\n", false),
            ] {
                check(&mut node, line, reply, if has_effect { line } else { "" });
            }
        }
    }

    #[test]
    fn errors_are_those_of_redis() {
        let mut node = node("1 2 3", "intset");
        node.run("SET s v");
        node.effects();
        for (line, reply) in [
            ("SPOP k -1", "-ERR value is out of range, must be positive\r\n"),
            ("SPOP k 1 2", "-ERR syntax error\r\n"),
            ("SPOP k 0", "*0\r\n"),
            ("SPOP none", NULL),
            ("SPOP none 3", "*0\r\n"),
            ("SMEMBERS none", "*0\r\n"),
        ] {
            check(&mut node, line, reply, "");
        }
        for line in ["SADD s a", "SPOP s", "SPOP s 0", "SMEMBERS s", "SREM s a", "SMOVE k s z", "SMOVE s k z"]
        {
            assert!(node.run(line).starts_with("-WRONGTYPE"), "{line}");
        }
        assert_eq!(node.effects(), "");
    }
}
