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

/// Of subcommands of `CLIENT`, and of those that concern other clients.
const OWN: Flags = Flags::NOSCRIPT.or(Flags::LOADING).or(Flags::STALE);
const OTHERS: Flags = OWN.or(Flags::ADMIN);

const fn client(name: &'static str, arity: i16, since: &'static str, summary: &'static str) -> Command {
    declare(name, arity, since, summary).flags(OWN)
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
    Command::new("client", -2, Handler::Session)
        .doc("connection", "2.4.0", "A container for client connection commands.", "Depends on subcommand.")
        .subcommands(&[
            client("getname", 2, "2.6.9", "Returns the name of the connection."),
            client("help", 2, "5.0.0", "Lists the subcommands."),
            client("id", 2, "5.0.0", "Returns the unique id of the connection."),
            client("info", 2, "6.2.0", "Returns information about the connection."),
            client("kill", -3, "2.4.0", "Terminates open connections.").flags(OTHERS),
            client("list", -2, "2.4.0", "Lists open connections.").flags(OTHERS),
            client("no-evict", 3, "7.0.0", "Sets the client eviction mode of the connection.").flags(OTHERS),
            client(
                "no-touch",
                3,
                "7.2.0",
                "Controls whether commands of the connection note accesses to keys.",
            ),
            client("pause", -3, "3.0.0", "Suspends commands processing.").flags(OTHERS),
            client("reply", 3, "3.2.0", "Instructs the server whether to reply to commands."),
            client("setinfo", 4, "7.2.0", "Sets information about the client or its library."),
            client("setname", 3, "2.6.9", "Sets the name of the connection."),
            client("unblock", -3, "5.0.0", "Unblocks a client blocked by a blocking command.").flags(OTHERS),
            client("unpause", 2, "3.0.0", "Resumes processing commands of paused clients.").flags(OTHERS),
        ]),
    declare("reset", 1, "6.2.0", "Resets the connection.").flags(ALWAYS.or(Flags::NO_AUTH)),
];
