//! Commands of the replication protocol: declared here, implemented where the stream is.

use crate::command::{Category, Command, Flags, Handler};

const PROTOCOL: Flags = Flags::ADMIN.or(Flags::NOSCRIPT).or(Flags::NO_MULTI);

const ROLE: Flags = Flags::ADMIN.or(Flags::NOSCRIPT).or(Flags::STALE).or(Flags::NO_ASYNC_LOADING);

const fn wait(name: &'static str, arity: i16, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, arity, Handler::Session)
        .flags(Flags::BLOCKING)
        .categories(Category::CONNECTION)
        .doc("generic", since, summary, "O(1)")
}

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("psync", -3, Handler::Session).flags(PROTOCOL.or(Flags::NO_ASYNC_LOADING)).doc(
        "server",
        "2.8.0",
        "Asks for the replication stream from an offset on.",
        "O(1)",
    ),
    Command::new("sync", 1, Handler::Session).flags(PROTOCOL.or(Flags::NO_ASYNC_LOADING)).doc(
        "server",
        "1.0.0",
        "Asks for a snapshot and the replication stream.",
        "O(1)",
    ),
    Command::new("replconf", -1, Handler::Session)
        .flags(PROTOCOL.or(Flags::LOADING).or(Flags::STALE).or(Flags::ALLOW_BUSY))
        .doc("server", "3.0.0", "Configures the replication stream, and acknowledges it.", "O(1)"),
    Command::new("failover", -1, Handler::Session)
        .flags(Flags::ADMIN.or(Flags::NOSCRIPT).or(Flags::STALE).or(Flags::NO_MULTI))
        .doc("server", "6.2.0", "Lets a replica take this master's place.", "O(1)"),
    Command::new("replicaof", 3, Handler::Session).flags(ROLE).doc(
        "server",
        "5.0.0",
        "Makes the server follow a master, or a master itself.",
        "O(1)",
    ),
    Command::new("slaveof", 3, Handler::Session).flags(ROLE).doc(
        "server",
        "1.0.0",
        "Makes the server follow a master, or a master itself.",
        "O(1)",
    ),
    wait("wait", 3, "3.0.0", "Waits until replicas have applied the writes of the connection."),
    wait("waitaof", 4, "7.2.0", "Waits until replicas have made the writes of the connection durable."),
    Command::new("role", 1, Handler::Session)
        .flags(Flags::NOSCRIPT.or(Flags::LOADING).or(Flags::STALE).or(Flags::FAST))
        .doc("server", "2.8.12", "Returns the replication role.", "O(1)"),
];
