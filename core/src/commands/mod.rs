//! The command families.

pub mod connection;
pub mod replication;
pub mod scan;
pub mod strings;
pub mod transactions;

use crate::command::Command;

/// Every family, in the order in which `COMMAND` lists them.
pub const FAMILIES: &[&[Command]] = &[
    strings::COMMANDS,
    connection::COMMANDS,
    transactions::COMMANDS,
    &[transactions::WATCH_HERE],
    replication::COMMANDS,
];
