//! Sets.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, KeySpec, Outcome, Use};
use crate::types::Set;
use smallvec::SmallVec;

const SET: Category = Category::SET;

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
        c.keys.replicate(args.list());
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
        let srem: Vec<&[u8]> =
            [&b"SREM"[..], key].into_iter().chain(drawn.iter().map(Vec::as_slice)).collect();
        c.keys.replicate(&srem);
    }
    Ok(())
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
        c.keys.replicate(args.list());
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
        c.keys.replicate(args.list());
    }
    c.out.int(i64::from(moved));
    Ok(())
}
