//! Hashes.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::types::Hash;

const HASH: Category = Category::HASH;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[Command::new("hset", -4, Handler::Keys(hset))
    .flags(GROW_FAST)
    .categories(HASH)
    .keys(UPDATE)
    .doc("hash", "2.0.0", "Sets fields of a hash, which is created if there is none.", "O(N) for N fields.")];

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
    let created = c.keys.upsert(args[1], |hash: &mut Hash| {
        if pairs.len() > 2 {
            let longest = pairs.iter().map(|text| text.len()).max().unwrap_or(0);
            hash.prepare(pairs.len() / 2, longest, limits);
        }
        pairs.chunks_exact(2).filter(|pair| hash.set(pair[0], pair[1], limits)).count()
    })?;
    c.keys.changed(args[1]);
    c.keys.replicate(args.list());
    Ok(created)
}
