//! Sets.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
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
