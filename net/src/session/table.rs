//! Which function implements which command of the connection or the server.

use super::{
    client, command, config, connection, debug, info, latency, memory, replication, saving, server, slowlog,
    waits,
};
use crate::engine::{Conn, Front};
use braid_core::command::{Args, CommandId, Error, registry};
use braid_core::resp::Reply;
use std::sync::LazyLock;

/// What a command of the connection or the server works on.
pub struct Call<'a> {
    pub front: &'a mut Front,
    pub conn: &'a mut Conn,
    pub args: Args<'a>,
    pub out: &'a mut Reply,
}

/// Such a command's implementation.
pub type Implementation = fn(&mut Call<'_>) -> Result<(), Error>;

/// By name. Commands that the dispatcher itself carries out (`MULTI`, `WATCH`, …) are not here.
const IMPLEMENTATIONS: &[(&str, Implementation)] = &[
    ("ping", connection::ping),
    ("echo", connection::echo),
    ("select", connection::select),
    ("quit", connection::quit),
    ("auth", connection::auth),
    ("hello", connection::hello),
    ("reset", connection::reset),
    ("unwatch", super::transactions::unwatch),
    ("replconf", replication::replconf),
    ("psync", replication::psync),
    ("sync", replication::sync),
    ("replicaof", replication::replicaof),
    ("slaveof", replication::replicaof),
    ("role", replication::role),
    ("failover", replication::failover),
    ("wait", waits::wait),
    ("waitaof", waits::waitaof),
    ("client", client::client),
    ("command", command::command),
    ("config", config::config),
    ("debug", debug::debug),
    ("info", info::info),
    ("lastsave", saving::lastsave),
    ("save", saving::save),
    ("bgsave", saving::bgsave),
    ("latency", latency::latency),
    ("lolwut", server::lolwut),
    ("memory", memory::memory),
    ("shutdown", saving::shutdown),
    ("slowlog", slowlog::slowlog),
    ("time", server::time),
];

static BY_ID: LazyLock<Vec<Option<Implementation>>> = LazyLock::new(|| {
    let by_name =
        |name: &str| IMPLEMENTATIONS.iter().find(|(other, _)| *other == name).map(|(_, call)| *call);
    registry().all().iter().map(|command| by_name(command.name)).collect()
});

/// The error for a subcommand that is known and has too many arguments or too few.
pub fn subcommand_syntax(container: &str, word: &[u8]) -> Error {
    let word = String::from_utf8_lossy(&word[..word.len().min(128)]).into_owned();
    Error::owned(format!(
        "ERR unknown subcommand or wrong number of arguments for '{word}'. Try {container} HELP."
    ))
}

/// The implementation of a command, if it is one of the connection or the server.
pub fn implementation(id: CommandId) -> Option<Implementation> {
    BY_ID[usize::from(id)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_core::command::{Command, Handler};

    #[test]
    fn every_session_command_is_implemented() {
        let by_dispatcher = ["multi", "exec", "discard", "watch"];
        for (id, command) in registry().all().iter().enumerate() {
            let is_session = |command: &Command| matches!(command.handler, Handler::Session);
            // A container runs itself only where the session runs one of its subcommands.
            let concerned = command.subcommands.is_empty() || command.subcommands.iter().any(is_session);
            if is_session(command) && concerned && !by_dispatcher.contains(&command.name) {
                assert!(implementation(id as CommandId).is_some(), "{}", command.name);
            }
        }
        for (name, _) in IMPLEMENTATIONS {
            assert!(registry().find(name.as_bytes()).is_some(), "{name}");
        }
    }
}
