//! Strings.

use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::keyspace::Expiry;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("get", 2, Handler::Keys(get))
        .flags(Flags::READONLY.or(Flags::FAST))
        .categories(Category::STRING)
        .keys(&[KeySpec::one(1, Use::Read, &["access"])])
        .doc("string", "1.0.0", "Returns the string value of a key.", "O(1)"),
    Command::new("set", -3, Handler::Keys(set))
        .flags(Flags::WRITE.or(Flags::DENYOOM))
        .categories(Category::STRING)
        .keys(&[KeySpec::one(1, Use::ReadWrite, &["access", "update", "variable_flags"])])
        .doc("string", "1.0.0", "Sets the string value of a key, ignoring its type.", "O(1)"),
];

fn get(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    match c.keys.string(args[1])? {
        Some(value) => value.reply(c.out),
        None => c.out.null(),
    }
    Ok(())
}

fn set(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    if args.len() > 3 {
        return Err(Error::Syntax);
    }
    c.keys.set(args[1], args[2], args.shared(2), Expiry::Clear);
    c.keys.changed(args[1]);
    c.keys.replicate(args.list());
    c.out.ok();
    Ok(())
}
