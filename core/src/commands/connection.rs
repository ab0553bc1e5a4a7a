//! Commands about the connection itself: declared here, implemented where connections are.

use crate::command::{Category, Command, Flags, Handler};

const ALWAYS: Flags =
    Flags::NOSCRIPT.or(Flags::LOADING).or(Flags::STALE).or(Flags::FAST).or(Flags::ALLOW_BUSY);

const fn declare(name: &'static str, arity: i16, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, arity, Handler::Session).flags(ALWAYS).categories(Category::CONNECTION).doc(
        "connection",
        since,
        summary,
        "O(1)",
    )
}

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    declare("auth", -2, "1.0.0", "Authenticates the connection.").flags(ALWAYS.or(Flags::NO_AUTH)),
    declare("hello", -1, "6.0.0", "Handshakes with the server.").flags(ALWAYS.or(Flags::NO_AUTH)),
    declare("ping", -1, "1.0.0", "Returns the server's liveliness response.").flags(Flags::FAST),
    declare("echo", 2, "1.0.0", "Returns the given string.")
        .flags(Flags::LOADING.or(Flags::STALE).or(Flags::FAST)),
    declare("select", 2, "1.0.0", "Changes the selected database.")
        .flags(Flags::LOADING.or(Flags::STALE).or(Flags::FAST)),
    declare("quit", -1, "1.0.0", "Closes the connection.").flags(ALWAYS.or(Flags::NO_AUTH)),
    declare("reset", 1, "6.2.0", "Resets the connection.").flags(ALWAYS.or(Flags::NO_AUTH)),
];
