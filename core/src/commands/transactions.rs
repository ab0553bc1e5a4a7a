//! Transactions: declared here, carried out by the connection, but for what `WATCH` does at the owner of a key.

use crate::command::{Args, Category, Command, Ctx, Flags, Handler, KeySpec, Outcome, Use};

/// What transactions share: they may run at any time and never from a script.
const ALWAYS: Flags =
    Flags::NOSCRIPT.or(Flags::LOADING).or(Flags::STALE).or(Flags::FAST).or(Flags::ALLOW_BUSY);

const fn declare(name: &'static str, arity: i16, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, arity, Handler::Session).flags(ALWAYS).categories(Category::TRANSACTION).doc(
        "transactions",
        since,
        summary,
        "O(1)",
    )
}

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    declare("multi", 1, "1.2.0", "Starts a transaction."),
    declare("exec", 1, "1.2.0", "Executes all commands queued in a transaction.")
        .flags(Flags::NOSCRIPT.or(Flags::LOADING).or(Flags::STALE).or(Flags::SKIP_SLOWLOG)),
    declare("discard", 1, "2.0.0", "Drops a transaction."),
    declare("watch", -2, "2.2.0", "Makes the next transaction depend on keys staying unchanged.")
        .flags(ALWAYS.or(Flags::NO_MULTI))
        .keys(&[KeySpec::all(1, 1, Use::Read, &[])]),
    declare("unwatch", 1, "2.2.0", "Forgets the watched keys."),
];

/// Registers the connection as a watcher of the keys, which live in this slice: the owner's part of `WATCH`.
pub fn watch_here(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let watcher = c.watcher.expect("the connection says who watches");
    for key in &args[1..] {
        let space = &c.keys.space;
        let found = space.db(c.keys.db).table.find(space.hash(key), key);
        let expired = found.and_then(|entry| entry.expiry_ms()).is_some_and(|at| c.now_ms() > at);
        c.keys.space.watches.watch(watcher, c.keys.db, key, expired);
    }
    c.out.ok();
    Ok(())
}

/// What travels to the owner of watched keys. No client can name it.
pub const WATCH_HERE: Command = Command::new("watch|here", -2, Handler::Keys(watch_here))
    .flags(Flags::INTERNAL.or(Flags::READONLY).or(Flags::FAST))
    .keys(&[KeySpec::all(1, 1, Use::Read, &[])])
    .doc("transactions", "1.0.0", "The owner's part of WATCH.", "O(1)");
